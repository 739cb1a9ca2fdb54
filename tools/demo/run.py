"""`python run.py demo`.

The same prompts plain and with Foresight, side by side, with a map, measured times and quality.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import time
from pathlib import Path

import torch
from PIL import Image
from tqdm import tqdm

from foresight.report import plot, quality
from foresight.report.machine import processor
from tools import hosts

from . import big, videos

PROMPTS = [("red ball moving right", 1), ("blue box moving down", 2), ("yellow ring moving left", 3)]
SETTINGS = {"plain": None, "default": {}, "fast": {"threshold": 1.0}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[-1])
    parser.add_argument("--out", type=Path, default=hosts.ROOT / "out", help="folder to write to")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--big", action="store_true", help="instead: seconds of Wan 2.1 1.3B on this machine's GPU")
    parser.add_argument("--smoke", action="store_true", help="with --big: a tiny model on the processor, to try it")
    args = parser.parse_args()
    if args.smoke and not args.big:
        parser.error("--smoke is for --big alone: the demo's model is tiny as it is")
    if args.big:
        sys.exit(big.main(args.smoke))
    args.out.mkdir(parents=True, exist_ok=True)
    host = hosts.find(args.out)
    name = type(host).__name__
    print(f"Starting {name} ...", flush=True)
    marks = [time.perf_counter()]
    clips = {prompt: {} for prompt, _ in PROMPTS}
    with host:
        marks.append(time.perf_counter())
        host.generate(*PROMPTS[0], None, steps=2)  # loads the model, so that no measured run has to
        marks.append(time.perf_counter())
        with tqdm(total=len(PROMPTS) * len(SETTINGS), unit="video") as bar:
            for prompt, seed in PROMPTS:
                for setting, values in SETTINGS.items():
                    bar.set_description(f"{prompt}, {setting}")
                    clips[prompt][setting] = host.generate(prompt, seed, values, args.steps)
                    bar.update()
        marks.append(time.perf_counter())
    rows = summarize(clips)
    write(args.out, clips, rows, name, args.steps)
    print(table(rows, name, args.steps))
    marks.append(time.perf_counter())
    print(f"\nWritten to {args.out}: side_by_side.mp4, side_by_side.gif, map.png, report.json\n{spent(marks, name)}")


def spent(marks: list[float], host: str) -> str:
    """Where the time went, from the moments at which each part began and the last one ended."""
    parts = f"to start {host}", "to warm up", "for the videos", "to stop, compare and write"
    took = ", ".join(f"{b - a:.0f} s {part}" for a, b, part in zip(marks, marks[1:], parts, strict=False))
    return f"{marks[-1] - marks[0]:.0f} s in all: {took}"


def summarize(clips: dict[str, dict[str, hosts.Clip]]) -> dict[str, dict]:
    """Per setting, over the prompts: mean seconds and reuse ratio, measured speed-up, PSNR and SSIM against plain."""
    rows = {}
    plain = [c["plain"] for c in clips.values()]
    for setting in SETTINGS:
        mine = [c[setting] for c in clips.values()]
        pairs = [(torch.from_numpy(p.frames), torch.from_numpy(c.frames)) for p, c in zip(plain, mine, strict=True)]
        rows[setting] = {
            "seconds": statistics.mean(c.seconds for c in mine),
            "speedup": sum(p.seconds for p in plain) / sum(c.seconds for c in mine),
            "reuse_ratio": statistics.mean(c.stats["reuse_ratio"] if c.stats else 0.0 for c in mine),
            "psnr": None if setting == "plain" else statistics.mean(quality.mean_psnr(p, c) for p, c in pairs),
            "ssim": None if setting == "plain" else statistics.mean(float(quality.ssim(p, c).mean()) for p, c in pairs),
        }
    return rows


def table(rows: dict[str, dict], host: str, steps: int) -> str:
    """The figures for the terminal."""
    lines = [f"{len(PROMPTS)} videos of {steps} steps each, through {host}, measured on this machine",
             f"{'setting':<10}{'wall time':>11}{'speed-up':>10}{'left out':>10}{'PSNR':>9}{'SSIM':>8}"]  # fmt: skip
    for setting, row in rows.items():
        psnr = "" if row["psnr"] is None else f"{row['psnr']:.1f} dB"
        ssim = "" if row["ssim"] is None else f"{row['ssim']:.4f}"
        lines.append(
            f"{setting:<10}{row['seconds']:>9.2f} s{row['speedup']:>9.2f}x{row['reuse_ratio']:>10.0%}{psnr:>9}{ssim:>8}"
        )
    return "\n".join(lines)


def write(out: Path, clips: dict, rows: dict, host: str, steps: int) -> None:
    """Videos, map and report."""
    video = videos.side_by_side({prompt: {s: c.frames for s, c in by.items()} for prompt, by in clips.items()})
    videos.write_mp4(out / "side_by_side.mp4", video)
    videos.write_gif(out / "side_by_side.gif", video)
    first, by_setting = next(iter(clips.items()))
    runs = {setting: clip.stats for setting, clip in by_setting.items() if clip.stats}
    Image.fromarray(plot.run_map(runs, f'"{first}", {steps} steps')).save(out / "map.png")
    data = {
        "host": host,
        "machine": {"system": platform.platform(), "processor": processor(), "cores": os.cpu_count(),
                    "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None},
        "torch": torch.__version__,
        "steps": steps,
        "settings": rows,
        "videos": [
            {"prompt": prompt, "seed": seed, "setting": setting, "seconds": clip.seconds, "stats": clip.stats}
            for prompt, seed in PROMPTS
            for setting, clip in clips[prompt].items()
        ],
    }  # fmt: skip
    (out / "report.json").write_text(json.dumps(data, indent=1, default=str) + "\n")


if __name__ == "__main__":
    main()

"""Speed against quality of the settings on the demo model, output and residual reuse: `python -m bench.settings`.

PSNR is against the plain run of the same prompt and seed; speed-up is by block count, which no machine changes.
The prompts and seeds are neither the held-out ones of the model's score nor those of the demo.
"""

import argparse
import json
import statistics
from pathlib import Path

import torch

from foresight import PaperConfig
from foresight.report.quality import mean_psnr

from .comfy import Demo

RESULT = Path(__file__).with_name("settings.json")
PROMPTS = [
    ("green ball moving left", 101),
    ("cyan box moving up", 102),
    ("magenta ring moving down", 103),
    ("blue ball moving right", 104),
    ("yellow box moving left", 105),
    ("red ring moving up", 106),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--prompts", type=int, default=len(PROMPTS))
    args = parser.parse_args()
    demo = Demo()
    prompts = PROMPTS[: args.prompts]
    plain = [demo.run(prompt, seed, None, args.steps).clip for prompt, seed in prompts]
    rows = []
    print(f"{'kind':<10}{'R':>3}{'gamma':>7}{'speed-up':>10}{'PSNR':>8}{'worst':>8}")
    for interval in (2, 3, 4):
        for gamma in (0.5, 1.0, 2.0):
            for kind in ("output", "residual"):
                settings = PaperConfig(reuse_interval=interval, threshold=gamma, cache_kind=kind)
                runs = [demo.run(prompt, seed, settings, args.steps) for prompt, seed in prompts]
                quality = [
                    min(mean_psnr(torch.from_numpy(a), torch.from_numpy(run.clip)), 99.0)
                    for a, run in zip(plain, runs, strict=True)
                ]
                row = {
                    "cache_kind": kind,
                    "reuse_interval": interval,
                    "threshold": gamma,
                    "block_speedup": statistics.mean(run.stats["block_speedup"] for run in runs),
                    "psnr": statistics.mean(quality),
                    "psnr_worst": min(quality),
                }
                rows.append(row)
                print(
                    f"{kind:<10}{interval:>3}{gamma:>7}{row['block_speedup']:>9.2f}x{row['psnr']:>8.1f}"
                    f"{row['psnr_worst']:>8.1f}",
                    flush=True,
                )
    RESULT.write_text(json.dumps({"steps": args.steps, "prompts": prompts, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()

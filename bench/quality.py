"""Every cache on the same models in one run, quality against speed, on a CPU: `python -m bench.quality`.

`--quick` takes about 5 minutes, the whole run under 40 on two cores; `--table` only writes README's table and the plots
again. What each figure means: bench/README.md.
"""

import argparse
import json
import logging
import multiprocessing
import statistics
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

from . import jobs, table
from .contenders import CONTENDERS
from .models import EVERYWHERE

RESULTS = Path(__file__).with_name("results")
SETTINGS = (("euler", 50), ("euler", 20), ("heun", 30))
PROMPTS = {  # no pair occurs in both halves, in demo/evaluate.py, demo/run.py or bench/settings.py
    "report": (
        ("cyan ball moving down", 401),
        ("red box moving left", 402),
        ("green ring moving right", 403),
        ("magenta box moving right", 404),
        ("yellow ball moving up", 405),
        ("blue ring moving left", 406),
    ),
    "tune": (
        ("magenta ball moving left", 301),
        ("green box moving down", 302),
        ("red ring moving right", 303),
        ("cyan ring moving left", 304),
        ("yellow ball moving down", 305),
        ("blue box moving up", 306),
    ),
}
FIGURES = ("time_ratio", "cpu_ratio", "work_share", "psnr", "ssim", "temporal_psnr")


def plan(args: argparse.Namespace) -> list[jobs.Job]:
    """The jobs of a run, one per model, sampler setting and prompt."""
    chosen = [
        contender
        for contender in CONTENDERS
        if not args.contenders or any(word.lower() in contender.name.lower() for word in args.contenders)
    ]
    every = tuple((contender.name, index) for contender in chosen for index in range(len(contender.sweep)))
    few = tuple((contender.name, index) for contender in chosen for index in contender.few)
    settings = list(dict.fromkeys((name, args.steps or steps) for name, steps in SETTINGS[: 2 if args.quick else 3]))
    points = {setting: few if args.quick or setting != settings[0] else every for setting in settings}
    return [
        jobs.Job(model, *setting, prompt, seed, points[setting], weigh=number == 0)
        for model in args.models
        for number, (prompt, seed) in enumerate(PROMPTS[args.half][: args.prompts])
        for setting in settings
    ]


def combine(done: list[dict]) -> list[dict]:
    """Job results to rows, one per model, sampler setting and point: median time ratios, means of the rest."""
    groups: dict[tuple, list[tuple[dict, dict]]] = {}
    for job in done:
        for point in job["points"]:
            key = (job["model"], job["sampler"], job["steps"], point["contender"], json.dumps(point["settings"]))
            groups.setdefault(key, []).append((job, point))
    rows = []
    for (model, sampler, steps, name, settings), found in groups.items():
        row = {"model": model, "sampler": sampler, "steps": steps, "contender": name, "settings": json.loads(settings)}
        reasons = [point["cannot_run"] for _, point in found if "cannot_run" in point]
        if reasons:
            rows.append({**row, "cannot_run": reasons[0]})
            continue
        row["recommended"] = found[0][1]["recommended"]
        for figure in FIGURES:
            kind = statistics.median if figure in ("time_ratio", "cpu_ratio") else statistics.mean
            row[figure] = kind(point[figure] for _, point in found)
        row["psnr_worst"] = min(point["psnr"] for _, point in found)
        row["checker"] = statistics.mean(point["checker"] for _, point in found)
        row["checker_plain"] = statistics.mean(job["plain"][point["host"]]["checker"] for job, point in found)
        row["held_bytes"] = next((point["held_bytes"] for _, point in found if "held_bytes" in point), None)
        rows.append(row)
    return rows


def run(args: argparse.Namespace) -> dict:
    """Run what is not there yet and return everything as JSON types."""
    work, began, done = plan(args), time.perf_counter(), []
    folder = args.out.with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(args.processes, context, initializer=jobs.prepare) as pool:
        waiting = [pool.submit(jobs.result, job, folder) for job in work]
        for future in as_completed(waiting):
            if future.exception():
                pool.shutdown(cancel_futures=True)
            done.append(future.result())
            print(f"{len(done)}/{len(work)} jobs, {(time.perf_counter() - began) / 60:.1f} min", flush=True)
        machine = pool.submit(jobs.machine, args.models[0]).result()
        sampling = [pool.submit(jobs.sampling_check, model, *PROMPTS[args.half][0]) for model in args.models]
        sampling = [future.result() for future in sampling]
    facts = {
        "machine": {**machine, "processes": args.processes, "threads_per_process": 1},
        "half": args.half,
        "prompts": PROMPTS[args.half][: args.prompts],
        "minutes": round((time.perf_counter() - began) / 60, 1),
        "plain_hosts_agree_db": min(job["hosts_agree_db"] for job in done),
        "pristine_after": all(all(job["pristine"].values()) for job in done),
        "plain_checker": {
            model: statistics.mean(job["plain"]["comfyui"]["checker"] for job in done if job["model"] == model)
            for model in args.models
        },
        "metric_sampling": sampling,
    }
    return {**facts, "rows": combine(done)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="bundled model, euler only, fewer points")
    parser.add_argument("--table", action="store_true", help="only write README's table and the plots from the results")
    parser.add_argument("--models", nargs="+", choices=EVERYWHERE, default=None)
    parser.add_argument("--contenders", nargs="+", help="only those whose name contains one of these words")
    parser.add_argument("--half", choices=list(PROMPTS), default="report", help="which prompts")
    parser.add_argument("--prompts", type=int, default=2, help="how many of them")
    parser.add_argument("--steps", type=int, help="instead of each setting's own number")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    args.models = args.models or (["wan"] if args.quick else list(EVERYWHERE))
    args.out = args.out or RESULTS / ("quick.json" if args.quick else "quality.json")
    logging.basicConfig(level=logging.WARNING)
    if not args.table:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(run(args), indent=1) + "\n")
    data = json.loads(args.out.read_text())
    print(table.markdown(data))
    table.plots(data, args.out.parent, args.out.stem)
    if args.out == RESULTS / "quality.json":
        table.into_readme(data)


if __name__ == "__main__":
    main()

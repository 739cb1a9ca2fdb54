"""Every cache on the same models in one run, quality against speed, on a CPU: `python -m bench.quality`.

`--quick` takes about 5 minutes, the whole run at most 90 on two cores; `--table` only writes the tables of README and
docs/benchmarks.md and the plots again. What each figure means: bench/README.md.
"""

import argparse
import json
import logging
import multiprocessing
import statistics
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

from . import jobs, pages, plots
from .contenders import CONTENDERS
from .workloads import BY_NAME, LAST, NETWORKS, PAPERS, PROMPTS, QUICK, SMALL, WORKLOADS, Workload, missing

RESULTS = Path(__file__).with_name("results")
FIGURES = ("time_ratio", "cpu_ratio", "work_share", "psnr", "ssim", "temporal_psnr")


def chosen_points(args: argparse.Namespace, workload: Workload, ours: bool) -> tuple[tuple[str, int], ...]:
    """The points of a job: Foresight's or those of all others."""
    words = [word.lower() for word in args.contenders or [""]]
    return tuple(
        (contender.name, index)
        for contender in CONTENDERS
        if contender.ours == ours and any(word in contender.name.lower() for word in words)
        if workload.name == PAPERS or contender.name not in args.last
        for index in contender.points(workload.is_short, args.quick or not workload.whole)
    )


def plan(args: argparse.Namespace) -> list[jobs.Job]:
    """The jobs of a run, per model, workload and prompt one of Foresight and one of the others, prompt by prompt."""
    return [
        jobs.Job(model, workload, prompt, seed, points, weigh=number == 0)
        for number, (prompt, seed) in enumerate(PROMPTS[args.half][: args.prompts])
        for workload in (BY_NAME[name] for name in args.workloads)
        for model in workload.models
        if model in args.models and missing(model) is None
        for ours in (True, False)
        if (points := chosen_points(args, workload, ours))
    ]


def left_out(args: argparse.Namespace) -> list[str]:
    """Sentences on what of the whole this run does not do."""
    wanted = dict.fromkeys(model for name in args.workloads for model in BY_NAME[name].models if model in args.models)
    said = [sentence for model in wanted if (sentence := missing(model))]
    if args.last and any(name != PAPERS for name in args.workloads):
        said.append(f"{' and '.join(args.last)} run with {PAPERS} only.")
    return said


def combine(done: list[dict]) -> list[dict]:
    """Job results to rows, one per model, workload and point: median time ratios, means of the rest, all by prompt."""
    groups: dict[tuple, list[tuple[dict, dict]]] = {}
    for job in sorted(done, key=lambda job: job["seed"]):
        for point in job["points"]:
            key = (job["model"], job["workload"], point["contender"], json.dumps(point["settings"]))
            groups.setdefault(key, []).append((job, point))
    rows = []
    for (model, workload, name, settings), found in groups.items():
        row = {"model": model, "workload": workload, "contender": name, "settings": json.loads(settings)}
        row["recommended"] = found[0][1]["recommended"]
        reasons = [point["cannot_run"] for _, point in found if "cannot_run" in point]
        rows.append({**row, "cannot_run": reasons[0]} if reasons else {**row, **_figures(found)})
    return rows


def _figures(found: list[tuple[dict, dict]]) -> dict:
    """What a row says of a point that ran, from its (job, point) per prompt."""
    row = {"by_prompt": {figure: [point[figure] for _, point in found] for figure in FIGURES}}
    for figure in FIGURES:
        kind = statistics.median if figure in ("time_ratio", "cpu_ratio") else statistics.mean
        row[figure] = kind(row["by_prompt"][figure])
    row["psnr_worst"] = min(row["by_prompt"]["psnr"])
    row["checker"] = statistics.mean(point["checker"] for _, point in found)
    row["checker_plain"] = statistics.mean(job["plain"][point["host"]]["checker"] for job, point in found)
    row["held_bytes"] = next((point["held_bytes"] for _, point in found if "held_bytes" in point), None)
    return row


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
        machine = pool.submit(jobs.machine, work[0].model).result()
        models = [model for model in args.models if model in SMALL]
        sampling = [pool.submit(jobs.sampling_check, model, *PROMPTS[args.half][0]) for model in models]
        sampling = [] if args.quick else [future.result() for future in sampling]
    agree = [job["hosts_agree_db"] for job in done if job["hosts_agree_db"] is not None]
    return {
        "machine": {**machine, "processes": args.processes, "threads_per_process": 1},
        "half": args.half,
        "prompts": PROMPTS[args.half][: args.prompts],
        "minutes": round((time.perf_counter() - began) / 60, 1),
        "cpu_minutes": round(sum(job["cpu_seconds"] for job in done) / 60, 1),
        "left_out": left_out(args),
        "plain_hosts_agree_db": min(agree, default=None),
        "pristine_after": all(all(job["pristine"].values()) for job in done),
        "plain_checker": _plain_checker(done),
        "metric_sampling": sampling,
        "rows": combine(done),
    }


def _plain_checker(done: list[dict]) -> dict[str, float]:
    """Per model, the share of plain clips in which the checker reads what the prompt says."""
    found: dict[str, list[bool]] = {}
    for job in done:
        found.setdefault(job["model"], []).append(next(iter(job["plain"].values()))["checker"])
    return {model: statistics.mean(checks) for model, checks in found.items()}


def parse(given: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="bundled model, fewer workloads, points and prompts")
    parser.add_argument("--table", action="store_true", help="only write the tables and the plots from the results")
    parser.add_argument("--models", nargs="+", choices=[*SMALL, *NETWORKS], default=None)
    parser.add_argument("--workloads", nargs="+", choices=list(BY_NAME), default=None, help="which columns")
    parser.add_argument("--contenders", nargs="+", help="only those whose name contains one of these words")
    parser.add_argument("--last", nargs="*", default=LAST, help=f"those that run with {PAPERS} only")
    parser.add_argument("--half", choices=list(PROMPTS), default="report", help="which prompts")
    parser.add_argument("--prompts", type=int, default=None, help="how many of them: 3, with --quick 2")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args(given)
    args.models = args.models or ([SMALL[0], *NETWORKS] if args.quick else [*SMALL, *NETWORKS])
    args.workloads = args.workloads or (QUICK if args.quick else [workload.name for workload in WORKLOADS])
    args.prompts = args.prompts or (2 if args.quick else 3)
    args.out = args.out or RESULTS / ("quick.json" if args.quick else "quality.json")
    return args


def main(given: list[str] | None = None) -> None:
    args = parse(given)
    logging.basicConfig(level=logging.WARNING)
    if not args.table:
        print("\n".join(left_out(args)))
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(run(args), indent=1) + "\n")
    data = json.loads(args.out.read_text())
    print(pages.benchmarks(data))
    plots.draw(data, args.out.parent, args.out.stem)
    if args.out == RESULTS / "quality.json":
        pages.write(data)


if __name__ == "__main__":
    main()

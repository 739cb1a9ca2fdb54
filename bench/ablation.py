"""What each part of the method "forecast" is worth: one taken away at a time. `python -m bench.ablation`, 10 minutes.

Every variant sweeps the threshold on the prompts that settings are chosen on; PSNR is read off its front at the same
speed-up by evaluations, so that a variant that computes more often is not taken for a better one.
"""

import argparse
import dataclasses
import functools
import json
import multiprocessing
import os
import statistics
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from foresight import ForecastConfig
from foresight.engine.forecast import Forecast
from foresight.engine.history import History

from .forced import errors_of, settings_of
from .fronts import SAME, quality_at
from .workloads import BY_NAME, Workload

RESULT = Path(__file__).with_name("results") / "ablation.json"
NOTES, PLACE = Path(__file__).with_name("NOTES.md"), "<!-- made by python -m bench.ablation -->"
THRESHOLDS = (0.3, 0.5, 0.8, 1.3)
SPEEDUPS = {  # by workload, at which PSNR is compared
    "euler 50": (3.0, 4.0),
    "euler 20": (1.75, 2.25),
    "res_multistep 20": (2.0, 2.5),
    "euler 10 + 10": (1.75, 2.25),
}


class UncorrectedHistory(History):
    """What the forecasts left in x stays there."""

    def _corrected(self, place, output, h):
        return output


class Uncorrected(Forecast):
    """Nothing is paid back, and no sampler is started again."""

    history, replays = UncorrectedHistory, False


class ClosedEnd(Forecast):
    """The first of two stages finishes its end, as if nobody went on from it."""

    def __init__(self, config, steps, resources):
        super().__init__(config, steps, dataclasses.replace(resources, whole=None))


class Repeating(History):
    """Order 0: no slope is taken."""

    damping = 1e-9


class Undamped(History):
    """The whole slope, however far it goes."""

    damping = 1e9


def _with_history(kind: type[History]) -> type[Forecast]:
    return type(f"With{kind.__name__}", (Forecast,), {"history": kind})


class Clock(Forecast):
    """Computed by the clock: the threshold stands for the interval, 2 to 5 steps."""

    def _next(self) -> int:
        return int(self._now.u_n + 1e-3) + 2 + THRESHOLDS.index(self.config.threshold)


class WithoutEvidence(Forecast):
    """The plan that was made before the run stays."""

    def settle(self, values, evaluation) -> None:
        errors = errors_of(self)
        super().settle([0.0] * errors + values[errors:], evaluation)


class EarlyWeighsNoMore(Forecast):
    """An error costs the same at every noise level."""

    early = 0.0


class LastUnprotected(Forecast):
    """The last steps may be left out."""

    last = 0.0


VARIANTS = {
    "the method": Forecast,
    "no correction (nothing paid back, no replay)": Uncorrected,
    "the first of two stages finishes its end": ClosedEnd,
    "no plan: every 2nd to 5th step": Clock,
    "no evidence": WithoutEvidence,
    "repeats the last output (order 0)": _with_history(Repeating),
    "whole slope however far (not damped)": _with_history(Undamped),
    "early errors weigh no more (no sigma weighting)": EarlyWeighsNoMore,
    "last steps not protected": LastUnprotected,
}
_SETTINGS = {name: settings_of(variant, ForecastConfig) for name, variant in VARIANTS.items()}


@functools.lru_cache
def _plain(model: str, prompt: str, seed: int, workload: Workload):
    from .jobs import both_hosts

    demo, _ = both_hosts(model)
    return demo.sample(demo.plain(workload.shift), prompt, seed, workload)[0]


def points(name: str, model: str, workload: Workload, prompts) -> list[tuple[float, float]]:
    """(speed-up by evaluations, PSNR) of a variant at every threshold, means over the prompts."""
    from .jobs import both_hosts, compare

    demo, _ = both_hosts(model)
    found = []
    for threshold in THRESHOLDS:
        shares, quality = [], []
        for prompt, seed in prompts:
            settings = _SETTINGS[name](threshold=threshold)
            patched = [demo.apply(patcher, settings) for patcher in demo.plain(workload.shift)]
            clip, _ = demo.sample(patched, prompt, seed, workload)
            runs = demo.newest_runs(len(patched))
            left_out = sum(run["reused"] - run["taken_back"] for run in runs)  # what was taken back was computed, too
            shares.append(1 - left_out / sum(run["total"] for run in runs))
            quality.append(compare(_plain(model, prompt, seed, workload), clip, prompt)["psnr"])
        found.append((1 / statistics.mean(shares), statistics.mean(quality)))
    return found


def psnr_at(found: list[tuple[float, float]], speedup: float) -> float | None:
    """PSNR of a variant at a speed-up, as the tables read it; None outside of what was measured."""
    read = quality_at([point for point in found if point[1] < SAME], speedup)
    return None if read is None or read[1] else read[0]


def _one(name: str, model: str, prompts) -> list[dict]:
    rows = []
    for workload, speedups in SPEEDUPS.items():
        if model in BY_NAME[workload].models:
            found = points(name, model, BY_NAME[workload], prompts)
            at = {str(speedup): psnr_at(found, speedup) for speedup in speedups}
            rows.append({"variant": name, "model": model, "workload": workload, "points": found, "at": at})
    return rows


def markdown(rows: list[dict]) -> str:
    """PSNR of every variant at the speed-ups of each workload, "-" where its front does not reach."""
    columns = list(dict.fromkeys((r["model"], r["workload"], x) for r in rows for x in SPEEDUPS[r["workload"]]))
    lines = ["| | " + " | ".join(f"{m}, {w}, {x:g}x" for m, w, x in columns) + " |"]
    lines.append("|---" * (len(columns) + 1) + "|")
    for name in VARIANTS:
        at = {(r["model"], r["workload"], float(x)): value for r in rows if r["variant"] == name
              for x, value in r["at"].items()}  # fmt: skip
        cells = ("-" if at.get(c) is None else f"{at[c]:.1f}" for c in columns)
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    from . import jobs
    from .quality import PROMPTS

    models = ["wan", "wan_deep", "experts"]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=models, default=models)
    parser.add_argument("--prompts", type=int, default=2)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument(
        "--table", action="store_true", help="only write the table of the results that are there into NOTES.md"
    )
    args = parser.parse_args()
    if not args.table:
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(args.processes, context, initializer=jobs.prepare) as pool:
            chosen = PROMPTS["tune"][: args.prompts]
            waiting = [pool.submit(_one, name, model, chosen) for model in args.models for name in VARIANTS]
            rows = [row for future in waiting for row in future.result()]
        RESULT.write_text(json.dumps({"prompts": chosen, "rows": rows}, indent=1) + "\n")
    text = markdown(json.loads(RESULT.read_text())["rows"])
    head, rest = NOTES.read_text().split(PLACE)
    below = rest.split("\n\n", 2)[2]  # behind the table that is there
    NOTES.write_text(f"{head}{PLACE}\n\n{text}\n\n{below}")
    print(text)


if __name__ == "__main__":
    main()

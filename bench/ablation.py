"""What each part of the method "forecast" is worth: one taken away at a time. `python -m bench.ablation`, 5 minutes.

Every variant sweeps the threshold on the prompts that settings are chosen on; PSNR is read off its front at the same
speed-up by evaluations, so that a variant that computes more often is not taken for a better one.
"""

import argparse
import functools
import json
import multiprocessing
import os
import statistics
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from foresight.engine import forecast

from .models import MODELS
from .table import SAME, front

RESULT = Path(__file__).with_name("results") / "ablation.json"
NOTES, PLACE = Path(__file__).with_name("NOTES.md"), "<!-- made by python -m bench.ablation -->"
SETTINGS = (("euler", 50), ("euler", 20))
THRESHOLDS = (0.3, 0.5, 0.8, 1.3)
SPEEDUPS = {50: (3.0, 4.0), 20: (1.75, 2.25)}  # at which PSNR is compared


@contextmanager
def _changed(target, **values):
    found = {name: getattr(target, name) for name in values}
    for name, value in values.items():
        setattr(target, name, value)
    try:
        yield
    finally:
        for name, value in found.items():
            setattr(target, name, value)


def _without_correction():
    output, observe = forecast.Output, forecast.Output.observe

    def plain(self, step, result, unit, home):
        observe(self, step, result, unit, home)
        return result

    return _changed(output, observe=plain)


def _fixed_interval():
    """Computed by the clock: the threshold stands for the interval, 2 to 5 steps."""
    forecaster = forecast.Forecaster

    def begin(self, step):
        self.step = step
        interval = 2 + THRESHOLDS.index(self.gamma)
        return 0.0 if step.position - self._since < interval - 1e-3 else 2.0

    def settle(self, errors):
        for output in self._outputs.values():
            output.error = None

    made = forecaster.__init__

    def init(self, gamma, *rest):
        made(self, gamma, *rest)
        self.gamma = gamma

    return _changed(forecaster, begin=begin, settle=settle, leave_out=lambda self: None, __init__=init)


VARIANTS = {
    "the method": lambda: _changed(forecast),
    "no correction": _without_correction,
    "repeats the last output (order 0)": lambda: _changed(forecast, DAMPING=1e-9),
    "whole slope however far (not damped)": lambda: _changed(forecast, DAMPING=1e9),
    "no evidence: a fixed interval": _fixed_interval,
    "early errors weigh no more (no sigma weighting)": lambda: _changed(forecast, EARLY=0.0),
    "last steps not protected": lambda: _changed(forecast, last_steps=lambda steps: 0),
    "no jumps": lambda: _changed(forecast, JUMP=1e9),
}


@functools.lru_cache
def _plain(model: str, prompt: str, seed: int, sampler: str, steps: int):
    from .jobs import both_hosts

    demo, _ = both_hosts(model)
    return demo.measure(demo.model, prompt, seed, sampler, steps)[0]


def points(name: str, model: str, sampler: str, steps: int, prompts) -> list[tuple[float, float]]:
    """(speed-up by evaluations, PSNR) of a variant at every threshold, means over the prompts."""
    from .jobs import both_hosts, compare

    demo, _ = both_hosts(model)
    found = []
    for threshold in THRESHOLDS:
        shares, quality = [], []
        for prompt, seed in prompts:
            with VARIANTS[name]():
                clip, _ = demo.measure(
                    demo.apply(demo.model, demo.config(threshold=threshold)), prompt, seed, sampler, steps
                )
            run = demo.newest_run()
            shares.append(1 - run["reuse_ratio"])
            quality.append(compare(_plain(model, prompt, seed, sampler, steps), clip, prompt)["psnr"])
        found.append((1 / statistics.mean(shares), statistics.mean(quality)))
    return found


def psnr_at(found: list[tuple[float, float]], speedup: float) -> float | None:
    """PSNR of a front at a speed-up, on the straight line between its neighbours; None outside of it."""
    best = front([point for point in found if point[1] < SAME])
    for (slow, high), (fast, low) in zip(best, best[1:], strict=False):
        if slow <= speedup <= fast:
            return high + (low - high) * (speedup - slow) / (fast - slow)
    return None


def _one(name: str, model: str, prompts) -> list[dict]:
    rows = []
    for sampler, steps in SETTINGS:
        found = points(name, model, sampler, steps, prompts)
        at = {str(speedup): psnr_at(found, speedup) for speedup in SPEEDUPS[steps]}
        rows.append({"variant": name, "model": model, "sampler": sampler, "steps": steps, "points": found, "at": at})
    return rows


def markdown(rows: list[dict]) -> str:
    """PSNR of every variant at the speed-ups of each setting, "-" where its front does not reach."""
    columns = [(m, s, x) for m in dict.fromkeys(r["model"] for r in rows) for _, s in SETTINGS for x in SPEEDUPS[s]]
    lines = ["| | " + " | ".join(f"{m}, {s} steps, {x:g}x" for m, s, x in columns) + " |"]
    lines.append("|---" * (len(columns) + 1) + "|")
    for name in VARIANTS:
        at = {(r["model"], r["steps"], x): r["at"][str(x)] for r in rows if r["variant"] == name
              for x in SPEEDUPS[r["steps"]]}  # fmt: skip
        cells = ("-" if at.get(c) is None else f"{at[c]:.1f}" for c in columns)
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    from . import jobs
    from .quality import PROMPTS

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=["wan", "wan_deep"])
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
    head = NOTES.read_text().split(PLACE)[0]
    NOTES.write_text(f"{head}{PLACE}\n\n{text}\n")
    print(text)


if __name__ == "__main__":
    main()

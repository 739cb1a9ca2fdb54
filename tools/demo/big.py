"""`python run.py demo --big`: seconds of an evaluation of Wan 2.1 1.3B on this card, plain and with Foresight.

Random weights at the published size: nothing to download, and as much work as with real ones. How many evaluations a
run leaves out cannot be seen on random weights, so whole runs are computed from the plan, and called so.
"""

import os
import sys

import torch

from foresight.report.machine import card

NAME = "wan-1.3b"
EVALUATIONS = 4  # of the plain run, the first of which warms up: a minute's work on a fast card, not more


def main(smoke: bool) -> int:
    """Measure and print, or say what is missing; the exit code. `smoke` runs a tiny model on the processor instead."""
    why = missing(smoke)
    if why is None:
        from bench import gpu, gpu_measure, gpu_plans, real_models

        gpu.host(smoke)
        device, model, row = torch.device("cpu" if smoke else "cuda:0"), real_models.MODELS[NAME], {}
        size = "as small as can be, to try the command" if smoke else model.video
        print(f"{gpu_plans.TITLES[NAME]}, random bf16 weights, {size}, on {card(device)} ...", flush=True)
        gpu_measure.attempt(model, row, device, smoke, lambda bench: measure(bench, row))
        why = row.get("failed") or row.get("skipped")
    if why is not None:
        print(f"--big: {why}", file=sys.stderr)
        return 1
    print(figures(row, gpu.machine(device), smoke))
    return 0


def missing(smoke: bool) -> str | None:
    """What this machine lacks, and what to do; None where nothing."""
    if not os.environ.get("COMFYUI_PATH"):
        return "it runs ComfyUI's own Wan, and ComfyUI was not found: set COMFYUI_PATH to the folder with its main.py"
    if smoke or torch.cuda.is_available():
        return None
    found = f"torch {torch.__version__} finds no CUDA or ROCm GPU on this machine"
    if torch.version.cuda is None and torch.version.hip is None:
        found += f", as it was built without; pytorch.org has others, to be installed into {sys.prefix}"
    return f"{found}. Without --big the demo needs none"


def measure(bench, row: dict) -> None:
    """Seconds of an evaluation, plain, computed with Foresight and left out, into `row` as `bench.gpu` has them.

    Raises:
        RuntimeError: the model gave numbers that are not finite, whose time is not that of a number.
    """
    from bench.forced import every
    from bench.gpu_measure import left_out

    plain = bench.sample(EVALUATIONS)
    if not plain.finite:
        raise RuntimeError("the model's output is not finite: its times would say nothing")
    waiting, leaving = [True] * (EVALUATIONS + 2), every(2 * EVALUATIONS, 2)
    row["plain"] = {"seconds": plain.median(1)}
    more = row["plain"]["seconds"] * (sum(waiting) + sum(leaving))
    print(f"measured plain; with Foresight it takes about {more:.0f} s more ...", flush=True)
    row["forecast"] = left_out(bench.forecast(waiting), bench.forecast(leaving), row["plain"]["seconds"])


def figures(row: dict, machine: dict, smoke: bool) -> str:
    """What was measured, and what runs take by it."""
    from bench import gpu_plans

    mine, where = row["forecast"], f"{machine['card']}, torch {machine['torch']}, ComfyUI {machine['comfyui']}"
    lines = [
        f"\nOne evaluation (cond and uncond), measured on {where}",
        f"  plain                     {row['plain']['seconds']:9.4f} s",
        f"  with Foresight, computed  {mine['idle_seconds']:9.4f} s",
        f"  with Foresight, left out  {mine['left_out_seconds']:9.4f} s",
        f"\nRuns, computed from measured evaluations with the plan of threshold 0.5 at flow shift {gpu_plans.SHIFT:g}",
    ]
    for steps in gpu_plans.STEPS:
        plain, fast, computed = gpu_plans.run_of(row, steps)
        lines.append(f"  {steps} steps {plain:8.1f} s plain {fast:8.1f} s with Foresight, {computed} steps computed")
    lines.append("A video that changes more than expected takes more computed steps.")
    if smoke:
        lines.append("\nA tiny model on the processor was measured: this says nothing about Wan 1.3B or a card.")
    return "\n".join(lines)

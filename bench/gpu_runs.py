"""Whole runs on a card as ComfyUI has them: `python -m bench.gpu_runs`; `--smoke` does it on a CPU with tiny models.

Weights come from a file and DynamicVRAM is on, as in a usual installation. Each model runs with all of the card's
memory, and with so little that part of its weights is fetched again in every evaluation; there, an evaluation that is
left out saves the transfer too. Weights are random, so that forecasts miss by a lot: Foresight computes what the plan
before the run says, whatever it measures, and all else is as users have it.
"""

import argparse
import contextlib
import gc
import importlib
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from foresight import ForecastConfig

from . import gpu, real_models
from .forced import forced_forecast
from .gpu_bench import Bench

MODELS = ("wan-1.3b", "cogvideox-2b", "latte", "ltxv-2b")
THRESHOLD = 0.5
STEPS = (20, 30, 50)  # of the runs whose plan is told
RESIDENT = 0.5  # share of the weights whose size is free where memory is little; what a run takes beside goes off it
SPARE = 2**30  # bytes that are free beside that
CHECK = 3  # steps of the runs that are compared bit by bit


def start(cpu: bool) -> bool:
    """Begin ComfyUI as its main.py does; whether DynamicVRAM can be used. Before torch is on the card."""
    if cpu:
        gpu.host(cpu)
        return False
    control = importlib.import_module("comfy_aimdo.control")
    control.init(simple_vram_headroom=None, nvml_pressure=True)
    gpu.host(cpu, highvram=False)
    import comfy.model_management

    return bool(control.init_devices((d.index, 0) for d in comfy.model_management.get_all_torch_devices()))


def dynamic_vram() -> None:
    """Switch it on. Not before the random weights exist: with it, layers are made without any."""
    import comfy.memory_management
    import comfy.model_patcher

    comfy.model_patcher.CoreModelPatcher = comfy.model_patcher.ModelPatcherDynamic
    comfy.memory_management.aimdo_enabled = True


@contextlib.contextmanager
def filled(device: torch.device, free: int) -> Iterator[int]:
    """The card's memory taken but for `free` bytes; how many that takes."""
    taken = torch.empty(max(0, torch.cuda.mem_get_info(device)[0] - free), dtype=torch.uint8, device=device)
    try:
        yield taken.nbytes
    finally:
        del taken
        unload()


def unload() -> None:
    """Take all models off the card."""
    import comfy.model_management

    comfy.model_management.unload_all_models()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def runs(bench: Bench, steps: int, taken: int = 0) -> dict:
    """A plain run and one by the plan, in seconds of the whole call and of single evaluations.

    Args:
        taken: Bytes of the card that are no part of the run.
    """
    by_plan = bench.foresight(forced_forecast(threshold=THRESHOLD))
    bench.sample(2)  # warms up
    short, again = bench.sample(CHECK), bench.sample(CHECK)
    idle = bench.forecast([True] * CHECK)
    plain, mine = bench.sample(steps), bench.sample(steps, by_plan)
    kinds = mine.by(lambda evaluation: bool(sum(evaluation["computed"])), 3)
    row = {"plain_seconds": plain.wall, "seconds": mine.wall, "speedup": plain.wall / mine.wall}
    row |= {"computed": mine.stats["steps"] - mine.stats["reused"], "in_ram": mine.stats["in_ram"]}
    row |= {"plain_evaluation": plain.median(1), "held_bytes": mine.stats["peak_bytes"]}
    row |= {
        f"{name}_evaluation": statistics.median(kinds[kind]) for name, kind in (("computed", True), ("left_out", False))
    }
    row |= {
        "plain_is_plain": torch.equal(short.latent, again.latent),
        "idle_is_plain": torch.equal(again.latent, idle.latent),
    }
    row |= {"finite": plain.finite and mine.finite, "inactive": mine.stats["inactive"]}
    if bench.device.type == "cuda":
        row |= {"plain_peak_bytes": plain.peak_bytes - taken, "peak_bytes": mine.peak_bytes - taken}
    return row


def plans(patcher) -> dict[str, int]:
    """How many steps the plan computes before a run of so many, at the model's own noise levels."""
    import comfy.samplers

    from foresight.hosts.comfyui.run import SamplerRun

    found, settings = {}, ForecastConfig(threshold=THRESHOLD)
    for steps in STEPS:
        sigmas = comfy.samplers.calculate_sigmas(patcher.get_model_object("model_sampling"), "simple", steps)
        run = SamplerRun(settings, patcher, sigmas, sampler=comfy.samplers.sampler_object("euler"))
        found[str(steps)] = run.stats.planned or steps
        run.end()
    return found


def measure(model: real_models.RealModel, device: torch.device, steps: int, smoke: bool, dynamic: bool) -> dict:
    """One model, with all of the memory and, on a card, with little."""
    import comfy.memory_management

    row: dict = {"video": model.video, "steps": steps}
    with tempfile.TemporaryDirectory(prefix="foresight-runs-") as folder:
        path = Path(folder) / "model.safetensors"
        comfy.memory_management.aimdo_enabled = False
        real_models.save(model, path, device, smoke)
        unload()
        if dynamic:
            dynamic_vram()
        bench = Bench(model, device, smoke, real_models.load(model, path, device, smoke))
        row |= {"weight_bytes": path.stat().st_size, "patcher": type(bench.patcher).__name__}
        row["plans"] = plans(bench.patcher)
        row["all of the memory"] = runs(bench, steps)
        if device.type == "cuda":
            unload()
            free = int(RESIDENT * row["weight_bytes"]) + SPARE
            with filled(device, free) as taken:
                row["little memory"] = {"free_bytes": free, **runs(bench, steps, taken)}
        del bench
        unload()
    return row


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=real_models.MODELS, default=list(MODELS), metavar="NAME")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--smoke", action="store_true", help="tiny models on the CPU")
    parser.add_argument("--out", type=Path, help="result file (bench/results/runs-<card>.json)")
    args = parser.parse_args(argv)
    if not args.smoke and not torch.cuda.is_available():
        parser.error("there is no CUDA GPU; --smoke runs tiny models on the CPU")
    dynamic = start(args.smoke)
    device = torch.device("cpu" if args.smoke else "cuda:0")
    facts = {"format": 1, "smoke": args.smoke, "machine": gpu.machine(device), "engine": gpu.engine()}
    results = {**facts, "dynamic_vram": dynamic, "threshold": THRESHOLD, "models": {}}
    card = results["machine"]["card"]
    path = args.out or gpu.result_path(card, "runs")
    for name in args.models:
        begin = time.monotonic()
        try:
            row = measure(real_models.MODELS[name], device, args.steps, args.smoke, dynamic)
        except Exception as error:  # the other models shall still be measured
            row = {"failed": f"{type(error).__name__}: {error}"}
            unload()
        results["models"][name] = row
        path.write_text(json.dumps(results, indent=1) + "\n")
        print(f"{name}, {time.monotonic() - begin:.0f} s: {json.dumps(row, indent=1)}", flush=True)
    return 1 if any("failed" in row for row in results["models"].values()) else 0


if __name__ == "__main__":
    sys.exit(main())

"""TorchCompileModel on a GPU, a plain compiled run first: `python -m bench.gpu_compile`; `--smoke` on a CPU.

A Wan of the 1.3B's width with few blocks and random weights. What counts is whether anything is reused, in how many
graphs, and that a run in which nothing is left out is bit for bit the compiled plain one.
"""

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

import torch

from foresight import ForecastConfig, PaperConfig

from . import gpu, real_models
from .gpu_bench import Bench

BLOCKS, LATENT, STEPS = 6, (16, 9, 60, 104), 20
SETTINGS = {
    "forecast, nothing left out": ForecastConfig(threshold=1e-3),
    "forecast": ForecastConfig(threshold=2.0),
    "paper": PaperConfig(threshold=2.0, reuse_interval=3),
}


def measure(bench: Bench, steps: int) -> dict:
    """Seconds of whole runs, graphs so far, and what was reused, by name."""
    import torch._dynamo.utils
    from comfy_extras.nodes_torch_compile import TorchCompileModel

    def compiled(patcher):
        return TorchCompileModel.execute(patcher, "inductor").args[0]

    rows: dict[str, dict] = {}

    def note(name: str, patcher) -> torch.Tensor:
        run = bench.sample(steps, patcher)
        row = {"seconds": run.wall, "graphs": torch._dynamo.utils.counters["stats"]["unique_graphs"]}
        if run.stats is not None:
            row |= {key: run.stats[key] for key in ("inactive", "reused", "block_speedup")}
        rows[name] = row
        print(name, row, flush=True)
        return run.latent

    note("plain", bench.patcher)
    plain = compiled(bench.patcher)
    note("compiled, the first run", plain)
    expected = note("compiled", plain)
    for name, config in SETTINGS.items():
        for order in ("behind", "before"):
            behind = order == "behind"
            patcher = bench.foresight(config, plain) if behind else compiled(bench.foresight(config))
            latent = note(f"compiled, {name}, Foresight {order} the compiler", patcher)
            rows[f"compiled, {name}, Foresight {order} the compiler"]["is_plain"] = torch.equal(latent, expected)
    return rows


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="a tiny model on the CPU")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--out", type=Path, help="result file (bench/results/compile-<card>.json)")
    args = parser.parse_args(argv)
    if not args.smoke and not torch.cuda.is_available():
        parser.error("there is no CUDA GPU; --smoke runs a tiny model on the CPU")
    gpu.host(args.smoke)
    device, wan = torch.device("cpu" if args.smoke else "cuda:0"), real_models.MODELS["wan-1.3b"]
    model = replace(wan, config={**wan.config, "num_layers": BLOCKS}, latent=LATENT)
    facts = {"format": 1, "smoke": args.smoke, "machine": gpu.machine(device), "engine": gpu.engine()}
    facts |= {"model": f"Wan, width {wan.config['dim']}, {BLOCKS} blocks", "latent": LATENT, "steps": args.steps}
    path = args.out or gpu.result_path(facts["machine"]["card"], "compile")
    rows = measure(Bench(model, device, args.smoke), args.steps)
    path.write_text(json.dumps({**facts, "runs": rows}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

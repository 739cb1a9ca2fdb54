"""Speed on a GPU at real size: `python -m bench.gpu`; `--smoke` runs the same code on a CPU with tiny models.

Published architectures and video sizes, random bf16 weights (see `real_models`), ComfyUI's sampler. The reuse schedule
is forced (see `forced`): what is measured is the cost of the real engine, not what the policy would decide. The smoke
form alone runs an image model too, to see that the benchmark's code takes one.
"""

import argparse
import hashlib
import importlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from foresight.report.machine import processor
from tools import hosts

from .gpu_measure import attempt, evaluate, recorded_shares, whole_runs
from .gpu_table import table
from .real_models import MODELS

FOLDER = Path(__file__).with_name("results")
FORMAT = 1
NOTE = (
    "Random weights: the reuse schedule was forced, nothing was decided by the policy. All blocks, 1 of 2 (2 of 3): "
    "after 15 % warmup that share of the evaluations reuses every block, the paper's N1R2 (N2R3). The demo model's "
    "map: what the bundled model reused with default settings, scaled to the number of blocks."
)


def host(cpu: bool, highvram: bool = True) -> None:
    """Make ComfyUI and the pack importable.

    Args:
        highvram: Weights stay on the GPU. Else ComfyUI may leave out part of them and fetch it in each evaluation.

    Raises:
        SystemExit: COMFYUI_PATH is not set.
    """
    if not os.environ.get("COMFYUI_PATH"):
        sys.exit("COMFYUI_PATH is not set: the models are ComfyUI's own classes")
    hosts.steady_malloc()
    if os.environ["COMFYUI_PATH"] not in sys.path:
        sys.path.insert(0, os.environ["COMFYUI_PATH"])
    arguments, sys.argv = sys.argv, sys.argv[:1]  # ComfyUI reads them as its own
    from comfy.cli_args import args

    args.cpu = args.cpu or cpu
    args.highvram = highvram and not args.cpu
    import comfy.sample  # noqa: F401

    sys.argv = arguments


def machine(device: torch.device) -> dict:
    """Where the figures come from."""
    version = importlib.import_module("comfyui_version").__version__
    attention = importlib.import_module("comfy.ldm.modules.attention").optimized_attention
    facts = {"system": platform.platform(), "python": platform.python_version(), "torch": torch.__version__}
    facts |= {"comfyui": version, "attention": attention.__name__}
    if device.type != "cuda":
        return {"card": processor(), "driver": None, **facts}
    return {
        "card": torch.cuda.get_device_name(device),
        "memory_gib": round(torch.cuda.get_device_properties(device).total_memory / 2**30, 1),
        "driver": _driver(),
        "cuda": torch.version.cuda,
        **facts,
    }


def _driver() -> str | None:
    if shutil.which("nvidia-smi") is None:
        return None
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    said = subprocess.run(query, capture_output=True, text=True, check=False).stdout
    return said.split("\n")[0].strip() or None


def engine() -> str:
    """What identifies the code that is measured."""
    digest = hashlib.sha256()
    for folder in ("foresight", "models"):
        for file in sorted((hosts.ROOT / folder).rglob("*.py")):
            digest.update(file.read_bytes())
    return digest.hexdigest()[:12]


def result_path(card: str, kind: str = "gpu") -> Path:
    """Where the results of a card go."""
    return FOLDER / f"{kind}-{re.sub(r'[^a-z0-9]+', '-', card.lower()).strip('-')}.json"


def load(path: Path, facts: dict) -> dict:
    """The results to add to: those of `path` if they are of the same machine, code and settings, else none yet.

    Args:
        path: JSON of an earlier session.
        facts: What has to agree.
    """
    if path.is_file():
        found = json.loads(path.read_text())
        if all(found.get(key) == value for key, value in facts.items()):
            return found
        print(f"{path} is of another machine, code or settings and is begun anew")
    return {**facts, "models": {}}


def measure(names: list[str], device: torch.device, args: argparse.Namespace, path: Path) -> dict:
    """Single evaluations of all models, then, if asked for, whole runs where time allows; written after each."""
    deadline = time.monotonic() + 60 * args.minutes
    facts = {"format": FORMAT, "smoke": args.smoke, "machine": machine(device), "note": NOTE}
    facts |= {"engine": engine(), "steps": args.steps, "repeats": args.repeats}
    results = load(path, facts)
    print(f"{facts['machine']['card']}; {NOTE}", flush=True)
    shares = results["recorded_map"] = recorded_shares(args.steps)

    def step(row: dict, name: str, what: str, action) -> None:
        begin = time.monotonic()
        if begin > deadline:
            row.setdefault("skipped", f"{what}: no time left")
        else:
            attempt(MODELS[name], row, device, args.smoke, lambda bench: action(bench, row))
        outcome = row.get("failed") or row.get("skipped") or "done"
        print(f"{name}: {what} {outcome}, {time.monotonic() - begin:.0f} s", flush=True)

    def save(name: str, row: dict) -> None:
        if "forecast" in row or "forecast" not in results["models"].get(name, {}):  # else keep what an earlier one has
            results["models"][name] = row
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(results, indent=1) + "\n")

    rows = {name: {"video": MODELS[name].video} for name in names}
    for name, row in rows.items():
        step(row, name, "evaluations", lambda bench, row: evaluate(bench, row, args.repeats, deadline))
        save(name, row)
    for name, row in rows.items():
        if "forecast" in row and "failed" not in row and not args.evaluations_only:
            step(row, name, "whole runs", lambda bench, row: whole_runs(bench, row, shares, deadline))
            save(name, row)
    return results


def tables() -> str:
    """The tables of all cards with results, as Markdown."""
    files = sorted(FOLDER.glob("gpu-*.json"))
    return "\n\n".join(table(json.loads(file.read_text())) for file in files) or "not measured on a GPU yet"


def usual(smoke: bool) -> list[str]:
    """The models that are measured where none is named."""
    return [name for name, model in MODELS.items() if smoke or not model.smoke_only]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, metavar="NAME", help=", ".join(MODELS))
    parser.add_argument("--steps", type=int, help="of a whole run (50; 14 with --smoke)")
    parser.add_argument("--repeats", type=int, help="evaluations behind each median (5; 2 with --smoke)")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin nothing that would end later")
    parser.add_argument("--evaluations-only", action="store_true", help="no whole runs")
    parser.add_argument("--smoke", action="store_true", help="tiny models on the CPU")
    parser.add_argument(
        "--out", type=Path, help="result file (bench/results/gpu-<card>.json; a temporary one with --smoke)"
    )
    parser.add_argument("--table", action="store_true", help="print the tables of what was measured, and stop")
    args = parser.parse_args(argv)
    if args.table:
        print(tables())
        return 0
    args.steps, args.repeats = args.steps or (14 if args.smoke else 50), args.repeats or (2 if args.smoke else 5)
    if args.repeats < 5 and not args.smoke:
        parser.error(f"--repeats {args.repeats}: must be at least 5, a median of fewer says little")
    if images := set(args.models or ()) - set(usual(args.smoke)):
        parser.error(f"--models {' '.join(images)}: an image model runs with --smoke only")
    if not args.smoke and not torch.cuda.is_available():
        parser.error("there is no CUDA GPU; --smoke runs tiny models on the CPU")
    host(args.smoke)
    device = torch.device("cpu" if args.smoke else "cuda:0")
    default = Path(tempfile.mkdtemp(prefix="foresight-gpu-")) / "smoke.json" if args.smoke else None
    path = args.out or default or result_path(torch.cuda.get_device_name(device))
    threads = torch.get_num_threads()
    if args.smoke:
        torch.set_num_threads(1)  # tiny tensors gain nothing from more, and on a busy machine lose much
    try:
        results = measure(args.models or usual(args.smoke), device, args, path)
    finally:
        torch.set_num_threads(threads)
    print(f"\n{table(results)}\n\n{path}")
    return 1 if any("failed" in row for row in results["models"].values()) else 0


if __name__ == "__main__":
    sys.exit(main())

"""What runs take on a card that was measured, plain and by the plan: `python -m bench.gpu_plans` writes README's table.

Whole runs are computed from measured evaluations, and called so: steps times a plain one, against the planned number
of computed ones and for the rest left-out ones.
"""

import json
from pathlib import Path

from foresight import ForecastConfig
from foresight.engine import Run

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "bench" / "results" / "gpu-nvidia-h200.json"
BEGIN, END = "<!-- GPU table: python -m bench.gpu_plans -->", "<!-- end of GPU table -->"
STEPS = (20, 30, 50)
SHIFT = 5.0  # of the noise levels, as for Wan
TITLES = {"wan-1.3b": "Wan 2.1 1.3B", "ltxv-2b": "LTX-Video 2B", "open-sora-480p": "Open-Sora 1.2"}  # flow models


def planned(steps: int, threshold: float = 0.5) -> int:
    """How many of `steps` are computed, by the plan before the run."""
    levels = [SHIFT * t / (1 + (SHIFT - 1) * t) for t in (1 - k / steps for k in range(steps + 1))]
    stats = Run(ForecastConfig(threshold=threshold), schedule=levels, noise=lambda sigma: sigma).stats
    return steps if stats.inactive else stats.planned


def run_of(row: dict, steps: int) -> tuple[float, float, int]:
    """Seconds of a run, plain and with Foresight, from a model's measured evaluations, and how many it computes."""
    n, mine = planned(steps), row["forecast"]
    return steps * row["plain"]["seconds"], n * mine["idle_seconds"] + (steps - n) * mine["left_out_seconds"], n


def table(results: dict) -> str:
    """Markdown: a row for each flow model that was measured."""
    head = ["model", "video", "plain", "computed, with Foresight", "left out", *(f"{n} steps" for n in STEPS)]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for name, title in TITLES.items():
        row = results["models"].get(name, {})
        if "forecast" not in row:
            continue
        plain, busy, idle = (
            row["plain"]["seconds"],
            row["forecast"]["idle_seconds"],
            row["forecast"]["left_out_seconds"],
        )
        runs = [f"{slow:.1f} s -> **{fast:.1f} s** ({n} computed)" for slow, fast, n in (run_of(row, s) for s in STEPS)]
        cells = [title, row["video"], f"{plain:.3f} s", f"{busy:.3f} s", f"{1000 * idle:.1f} ms", *runs]
        lines.append(f"| {' | '.join(cells)} |")
    where = results["machine"]
    note = (
        f"{where['card']}, torch {where['torch']}, ComfyUI {where['comfyui']}, random bf16 weights, cond and uncond. "
        "The seconds of one evaluation are measured; the runs are computed from them with the plan of threshold 0.5 "
        f"at flow shift {SHIFT:g}. A video that changes more than expected takes more computed steps."
    )
    return "\n".join(lines) + f"\n\n{note}"


def main() -> None:
    page, path = table(json.loads(RESULT.read_text())), ROOT / "README.md"
    head, rest = path.read_text(encoding="utf-8").split(BEGIN, 1)
    path.write_text(f"{head}{BEGIN}\n\n{page}\n\n{END}{rest.split(END, 1)[1]}", encoding="utf-8")
    print(page)


if __name__ == "__main__":
    main()

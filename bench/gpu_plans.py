"""What runs take on a card that was measured, plain and by the plan: `python -m bench.gpu_plans` writes README's table.

Runs of 30 steps are measured (`bench.gpu_runs`). Those of other lengths are computed from measured evaluations, and
called so: steps times a plain one, against the planned number of computed ones and for the rest left-out ones.
"""

import json
from pathlib import Path

from foresight import ForecastConfig
from foresight.engine import Run

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "bench" / "results" / "runs-nvidia-h200.json"
BEGIN, END = "<!-- GPU table: python -m bench.gpu_plans -->", "<!-- end of GPU table -->"
STEPS = (20, 30, 50)
SHIFT = 5.0  # of the noise levels, as for Wan
TITLES = {"wan-1.3b": "Wan 2.1 1.3B", "cogvideox-2b": "CogVideoX-2B", "ltxv-2b": "LTX-Video 2B", "latte": "Latte"}


def planned(steps: int, threshold: float = 0.5, guided: bool = True) -> int:
    """How many of `steps` are computed, by the plan before the run."""
    levels = [SHIFT * t / (1 + (SHIFT - 1) * t) for t in (1 - k / steps for k in range(steps + 1))]
    stats = Run(ForecastConfig(threshold=threshold), schedule=levels, noise=lambda sigma: sigma, guided=guided).stats
    return steps if stats.inactive else stats.planned


def run_of(row: dict, steps: int) -> tuple[float, float, int]:
    """Seconds of a run, plain and with Foresight, from a model's measured evaluations, and how many it computes."""
    n, mine = planned(steps), row["forecast"]
    return steps * row["plain"]["seconds"], n * mine["idle_seconds"] + (steps - n) * mine["left_out_seconds"], n


def _computed(row: dict, steps: int) -> str:
    """A run of so many steps by the seconds of single evaluations."""
    one, n = row["all of the memory"], row["plans"][str(steps)]
    plain = steps * one["plain_evaluation"]
    mine = n * one["computed_evaluation"] + (steps - n) * one["left_out_evaluation"]
    return f"{plain:.1f} s -> {mine:.1f} s"


def _measured(run: dict) -> str:
    free = f"{run['free_bytes'] / 2**30:.1f} GiB: " if "free_bytes" in run else ""
    return f"{free}{run['plain_seconds']:.1f} s -> **{run['seconds']:.1f} s** ({run['speedup']:.2f}x)"


def table(results: dict) -> str:
    """Markdown: a row for each model whose runs were measured."""
    (steps,) = {row["steps"] for row in results["models"].values()}
    head = ["model", "video", "an evaluation: plain, computed, left out", f"**{steps} steps, measured**"]
    head += ["the same, with less memory free", "20 steps, calculated", "50 steps, calculated"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for name, title in TITLES.items():
        row = results["models"][name]
        one, little = row["all of the memory"], row["little memory"]
        evaluation = f"{one['plain_evaluation']:.3f} s, {one['computed_evaluation']:.3f} s"
        evaluation += f", {1000 * one['left_out_evaluation']:.1f} ms"
        cells = [title, row["video"], evaluation, _measured(one), _measured(little), _computed(row, 20)]
        lines.append(f"| {' | '.join([*cells, _computed(row, 50)])} |")
    where = results["machine"]
    host = f"torch {where['torch']}, ComfyUI {where['comfyui']} with DynamicVRAM"
    counts, now = [row["plans"][str(steps)] for row in results["models"].values()], planned(steps)
    since = "" if min(counts) <= now <= max(counts) else f" (now {now})"
    note = (
        f"{where['card']}, {host}, `euler`, cond and uncond. The weights are random, so that forecast errors mean "
        f"nothing here; the steps were fixed to what threshold {results['threshold']:g} plans: {min(counts)} to "
        f"{max(counts)} of {steps} computed{since}. A real video that changes more than expected computes more."
    )
    return "\n".join(lines) + f"\n\n{note}"


def main() -> None:
    """Put the table into the README, and print it."""
    page, path = table(json.loads(RESULT.read_text())), ROOT / "README.md"
    head, rest = path.read_text(encoding="utf-8").split(BEGIN, 1)
    path.write_text(f"{head}{BEGIN}\n\n{page}\n{END}{rest.split(END, 1)[1]}", encoding="utf-8")
    print(page)


if __name__ == "__main__":
    main()

"""The plots from the results of `bench.quality`."""

from pathlib import Path

from .fronts import TITLES, by_contender, front, groups, points_of
from .pages import QUALITIES

# Okabe and Ito's palette, which colour-blind people can tell apart; line styles tell apart what shares a colour
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000")
STYLES = ("-", "--", ":")
MARKERS = ("o", "s", "^")


def spread(wanted: list[float], gap: float, lowest: float) -> list[float]:
    """Positions near the wanted ones (falling), at least `gap` apart and none below `lowest`."""
    out: list[float] = []
    for value in wanted:
        out.append(min(value, out[-1] - gap) if out else value)
    for place in range(len(out)):  # from the bottom up, where that went too far down
        out[-1 - place] = max(out[-1 - place], lowest + place * gap)
    return out


def draw(data: dict, folder: Path, stem: str) -> None:
    """One PNG per model and workload: `<stem>-<model>-<workload>.png`."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    for workload, model, rows in groups(data["rows"]):
        found = {name: points_of(some, "work_share", "psnr") for name, some in by_contender(rows).items()}
        fig, ax = plt.subplots(figsize=(9, 5.5), layout="constrained")
        _draw(ax, {name: points for name, points in found.items() if points})
        ax.set_title(f"{TITLES.get(model, model)}: {workload}", loc="left")
        fig.savefig(folder / f"{stem}-{model}-{workload.replace(' + ', '+').replace(' ', '')}.png", dpi=110)
        plt.close(fig)


def _draw(ax, found: dict[str, list[tuple[float, float]]]) -> None:
    """Every contender's points and front, its name at the right margin beside the end of its front."""
    lowest, highest, ends = 20.0, 65.0, []
    right = max((speed for points in found.values() for speed, _ in points), default=1.0) * 1.02
    for number, (name, points) in enumerate(found.items()):
        colour, kind = COLOURS[number % len(COLOURS)], number // len(COLOURS)
        best = front(points)
        style = {"color": colour, "linestyle": STYLES[kind % len(STYLES)]}
        ax.plot(*zip(*points, strict=True), MARKERS[kind % len(MARKERS)], color=colour, markersize=4, alpha=0.6)
        if best:
            ax.plot(*zip(*best, strict=True), linewidth=2.2 if "Foresight" in name else 1.2, **style)
            ends.append((best[-1], name, colour))
    ends.sort(key=lambda end: -end[0][1])
    for ((speed, psnr), name, colour), y in zip(
        ends, spread([end[0][1] for end in ends], 2.4, lowest + 1), strict=True
    ):
        ax.annotate(
            name, (speed, max(psnr, lowest)), (right * 1.03, y), color=colour, va="center", fontsize=9,
            annotation_clip=False, arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.5, "alpha": 0.6},
        )  # fmt: skip
    for target in QUALITIES:
        ax.axhline(target, color="0.85", linewidth=0.8, zorder=0)
    ax.set(xlim=(0.95, right), ylim=(lowest, highest))
    ax.set_xlabel("speed-up by work against plain")
    ax.set_ylabel("PSNR against plain (dB)")
    ax.spines[["top", "right"]].set_visible(False)

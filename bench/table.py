"""Fronts, README's table and the plots from the results of `bench.quality`."""

from pathlib import Path

TARGETS = (45.0, 40.0, 35.0)  # dB
SAME = 99.0  # dB, stands for identical clips
README = Path(__file__).resolve().parents[1] / "README.md"
BEGIN, END = "<!-- quality table: python -m bench.quality --table -->", "<!-- end of quality table -->"
TITLES = {"wan": "Wan, bundled", "wan_deep": "Wan, 16 narrow blocks", "cogvideox": "CogVideoX"}

# Okabe and Ito's palette, which colour-blind people can tell apart; line styles tell apart what shares a colour
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000")
STYLES = ("-", "--", ":")
MARKERS = ("o", "s", "^")


def front(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """The (speed-up, PSNR) points that no other beats in both, slowest first; none slower than plain."""
    best: list[tuple[float, float]] = []
    for speed, psnr in sorted(points, reverse=True):
        if speed >= 1 and (not best or psnr > best[-1][1]):
            best.append((speed, psnr))
    return best[::-1]


def speedup_at(points: list[tuple[float, float]], target: float) -> tuple[float, bool] | None:
    """Speed-up of a front where its PSNR is `target` dB, on the straight line between its two nearest points.

    Returns:
        (speed-up, whether it is a lower bound: the whole front is above the target, and this is its fastest point), or
        None when the whole front is below the target. Nothing is extrapolated.
    """
    best = front(points)
    if not best or best[0][1] < target:
        return None
    if best[-1][1] >= target:
        return best[-1][0], best[-1][1] > target
    for (slow, high), (fast, low) in zip(best, best[1:], strict=False):
        if high >= target > low:
            return slow + (high - target) / (high - low) * (fast - slow), False
    raise AssertionError("a front falls")


def fronts(rows: list[dict], figure: str) -> dict[str, list[tuple[float, float]]]:
    """Per contender, (speed-up, PSNR) of its points that ran and reused anything.

    A point at which nothing was reused says nothing about what reuse costs, and its PSNR is a cap.

    Args:
        figure: "time_ratio" or "work_share".
    """
    found: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        if "cannot_run" not in row and row["psnr"] < SAME:
            found.setdefault(row["contender"], []).append((1 / row[figure], row["psnr"]))
    return found


def _settings(rows: list[dict]) -> list[tuple[str, int]]:
    return list(dict.fromkeys((row["sampler"], row["steps"]) for row in sorted(rows, key=_setting_order)))


def _setting_order(row: dict) -> tuple:
    return row["sampler"], -row["steps"]


def _of(rows: list[dict], model: str, sampler: str, steps: int) -> list[dict]:
    return [row for row in rows if (row["model"], row["sampler"], row["steps"]) == (model, sampler, steps)]


def _cell(found: tuple[float, bool] | None, work: tuple[float, bool] | None, leads: bool) -> str:
    if found is None:
        return "-"
    text = f"{'>=' if found[1] else ''}{found[0]:.2f}x"
    text = f"**{text}**" if leads else text
    return text if work is None else f"{text} ({'>=' if work[1] else ''}{work[0]:.2f})"


def markdown(data: dict) -> str:
    """One table per model: speed-up at each PSNR by measured wall time, by work in brackets; the leaders in bold."""
    parts = []
    for model in dict.fromkeys(row["model"] for row in data["rows"]):
        rows = [row for row in data["rows"] if row["model"] == model]
        settings = _settings(rows)
        names = list(dict.fromkeys(row["contender"] for row in rows if "cannot_run" not in row))
        columns, leaders = [], []
        for sampler, steps in settings:
            chosen = _of(rows, model, sampler, steps)
            time, work = fronts(chosen, "time_ratio"), fronts(chosen, "work_share")
            for target in TARGETS:
                at = {name: speedup_at(time.get(name, []), target) for name in names}
                reached = {name: value for name, value in at.items() if value is not None}
                leader = max(reached, key=lambda name: reached[name][0], default=None)
                leaders.append(f"{sampler} {steps}, {target:.0f} dB: {leader or 'nobody'}")
                works = {name: speedup_at(work.get(name, []), target) for name in names}
                columns.append({name: _cell(at[name], works[name], name == leader) for name in names})
        heads = [f"{sampler} {steps}, {target:.0f} dB" for sampler, steps in settings for target in TARGETS]
        lines = [f"**{TITLES.get(model, model)}**", "", f"| | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
        lines += [f"| {name} | {' | '.join(column[name] for column in columns)} |" for name in names]
        lines.append(_ahead(rows, settings))
        lines += ["", f"Fastest by wall time: {'; '.join(leaders)}."]
        refused = dict.fromkeys(f"{r['contender']} ({r['cannot_run']})" for r in rows if "cannot_run" in r)
        if refused:
            lines += ["", f"Cannot run on it: {'; '.join(refused)}."]
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


OURS = "Foresight forecast"


def _ahead(rows: list[dict], settings: list[tuple[str, int]]) -> str:
    """The row that says how many times faster forecast is than the best cache of others, by wall time and by work."""
    cells = []
    for sampler, steps in settings:
        chosen = _of(rows, model=rows[0]["model"], sampler=sampler, steps=steps)
        for target in TARGETS:
            ratios = []
            for figure in ("time_ratio", "work_share"):
                at = {name: speedup_at(points, target) for name, points in fronts(chosen, figure).items()}
                mine = at.get(OURS)
                others = [value[0] for name, value in at.items() if value and not name.startswith("Foresight")]
                ratios.append(f"{mine[0] / max(others):.2f}" if mine and others else "-")
            cells.append(f"{ratios[0]} ({ratios[1]})")
    return f"| *{OURS} over the best of the others* | {' | '.join(cells)} |"


def knob(data: dict) -> str:
    """What forecast's threshold does: speed-up by work and PSNR (worst prompt) for each model and setting."""
    rows = [row for row in data["rows"] if row["contender"] == OURS and "cannot_run" not in row]
    values = sorted({row["settings"]["threshold"] for row in rows})
    lines = [f"| forecast, `threshold` | {' | '.join(f'{v:g}' for v in values)} |", "|---" * (len(values) + 1) + "|"]
    for model in dict.fromkeys(row["model"] for row in rows):
        for sampler, steps in _settings([row for row in rows if row["model"] == model]):
            at = {row["settings"]["threshold"]: row for row in _of(rows, model, sampler, steps)}
            cells = [
                f"{1 / at[v]['work_share']:.2f}x, {at[v]['psnr']:.1f} ({at[v]['psnr_worst']:.1f}) dB" if v in at else ""
                for v in values
            ]
            lines.append(f"| {TITLES.get(model, model)}, {sampler} {steps} | {' | '.join(cells)} |")
    return "\n".join(lines)


def disagreements(data: dict, speedups: tuple[float, ...] = (1.5, 2.0, 3.0)) -> list[str]:
    """Where SSIM or the PSNR of frame differences put another cache first than PSNR does, at equal speed-up by work."""
    found = []
    for model in dict.fromkeys(row["model"] for row in data["rows"]):
        for sampler, steps in _settings([row for row in data["rows"] if row["model"] == model]):
            rows = [row for row in _of(data["rows"], model, sampler, steps) if row.get("psnr", SAME) < SAME]
            for speedup in speedups:
                first = {figure: _first(rows, figure, speedup) for figure in ("psnr", "ssim", "temporal_psnr")}
                others = {f"{figure}: {name}" for figure, name in first.items() if name != first["psnr"]}
                if first["psnr"] and others:
                    where = f"{TITLES.get(model, model)}, {sampler} {steps}, {speedup:g}x"
                    found.append(f"{where}: PSNR {first['psnr']}, {', '.join(sorted(others))}")
    return found


def _agreement(data: dict) -> str:
    found = disagreements(data)
    said = "; ".join(found) if found else "nowhere"
    return f"SSIM or the PSNR of frame differences put another cache first than PSNR at 1.5x, 2x or 3x by work: {said}."


def _first(rows: list[dict], figure: str, speedup: float) -> str | None:
    """The contender that is best in a figure where its front has this speed-up; None where no front reaches it."""
    at = {}
    for name in dict.fromkeys(row["contender"] for row in rows):
        best = front([(1 / row["work_share"], row[figure]) for row in rows if row["contender"] == name])
        for (slow, high), (fast, low) in zip(best, best[1:], strict=False):
            if slow <= speedup <= fast:
                at[name] = high + (low - high) * (speedup - slow) / (fast - slow)
    return max(at, key=at.get, default=None)


def into_readme(data: dict, path: Path = README) -> None:
    """Put the tables between the two comments of README.

    Raises:
        ValueError: README does not have the two comments, in this order.
    """
    text = path.read_text()
    if BEGIN not in text or END not in text.split(BEGIN, 1)[1]:
        raise ValueError(f"{path} has no place for the table: it needs the lines {BEGIN!r} and {END!r}")
    head, rest = text.split(BEGIN, 1)
    path.write_text(
        f"{head}{BEGIN}\n\n{markdown(data)}\n\n{knob(data)}\n\n{_agreement(data)}\n\n{END}{rest.split(END, 1)[1]}"
    )


def spread(wanted: list[float], gap: float, lowest: float) -> list[float]:
    """Positions near the wanted ones (falling), at least `gap` apart and none below `lowest`."""
    out: list[float] = []
    for value in wanted:
        out.append(min(value, out[-1] - gap) if out else value)
    for place in range(len(out)):  # from the bottom up, where that went too far down
        out[-1 - place] = max(out[-1 - place], lowest + place * gap)
    return out


def plots(data: dict, folder: Path, stem: str) -> None:
    """One PNG per model and sampler setting: `<stem>-<model>-<sampler><steps>.png`."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    for model in dict.fromkeys(row["model"] for row in data["rows"]):
        for sampler, steps in _settings([row for row in data["rows"] if row["model"] == model]):
            fig, ax = plt.subplots(figsize=(9, 5.5), layout="constrained")
            _draw(ax, fronts(_of(data["rows"], model, sampler, steps), "time_ratio"))
            ax.set_title(f"{TITLES.get(model, model)}: {sampler}, {steps} steps", loc="left")
            fig.savefig(folder / f"{stem}-{model}-{sampler}{steps}.png", dpi=110)
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
    for target in TARGETS:
        ax.axhline(target, color="0.85", linewidth=0.8, zorder=0)
    ax.set(xlim=(0.95, right), ylim=(lowest, highest))
    ax.set_xlabel("speed-up, measured wall time against plain")
    ax.set_ylabel("PSNR against plain (dB)")
    ax.spines[["top", "right"]].set_visible(False)

"""README's table from the results of `bench.quality`."""

from pathlib import Path

from .fronts import SAME, TARGETS, TITLES, front, fronts, of_setting, settings_of, speedup_at

README = Path(__file__).resolve().parents[1] / "README.md"
BEGIN, END = "<!-- quality table: python -m bench.quality --table -->", "<!-- end of quality table -->"


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
        settings = settings_of(rows)
        names = list(dict.fromkeys(row["contender"] for row in rows if "cannot_run" not in row))
        columns, leaders = [], []
        for sampler, steps in settings:
            chosen = of_setting(rows, model, sampler, steps)
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
        chosen = of_setting(rows, model=rows[0]["model"], sampler=sampler, steps=steps)
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
        for sampler, steps in settings_of([row for row in rows if row["model"] == model]):
            at = {row["settings"]["threshold"]: row for row in of_setting(rows, model, sampler, steps)}
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
        for sampler, steps in settings_of([row for row in data["rows"] if row["model"] == model]):
            rows = [row for row in of_setting(data["rows"], model, sampler, steps) if row.get("psnr", SAME) < SAME]
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

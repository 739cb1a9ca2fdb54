"""The tables from the results of `bench.quality`: the large ones of docs/benchmarks.md and the small one of README."""

import math
import statistics
from pathlib import Path

from .fronts import (
    TITLES,
    Reading,
    by_contender,
    groups,
    quality_at,
    read,
    speedup_at,
    standard_error,
    where_reused,
)
from .workloads import BY_NAME, LAST, PAPERS

QUALITIES = (45.0, 40.0, 35.0, 30.0)  # dB
SPEEDS = (1.5, 1.8, 2.0, 2.5, 3.0)
OURS = "Foresight forecast"
README_ROWS = 6
ROOT = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- quality table: python -m bench.quality --table -->", "<!-- end of quality table -->"


def benchmarks(data: dict) -> str:
    """All tables: what each contender does at its default, and for every column two tables per model."""
    rows = data["rows"]
    parts = [facts(data), "## Each at its default", defaults(rows)]
    for workload in dict.fromkeys(row["workload"] for row in rows):
        parts.append(f"## {heading(workload)}")
        for name, model, found in groups(rows):
            if name == workload:
                parts += [f"**{TITLES.get(model, model)}**", at_qualities(found), at_speeds(found), refusals(found)]
    parts += ["## What the threshold does", knob(rows), disagreements(rows)]
    return "\n\n".join(part for part in parts if part)


def heading(workload: str) -> str:
    known = BY_NAME.get(workload)
    return f"{workload}, shift {known.shift:g}, CFG {known.cfg:g}" if known else workload


def facts(data: dict) -> str:
    """Where the figures come from, and what is not in them."""
    machine, prompts = data["machine"], len(data["prompts"])
    said = [
        f"{prompts} prompts of the half {data['half']!r}; {machine['processes']} processes of one thread on "
        f"{machine['cores']} cores ({machine['processor']}), {data['minutes']:.0f} minutes.",
        *data["left_out"],
        *_slowest(data["rows"]),
        "Work is counted; what is in brackets is by CPU time, which other work on the machine hardly changes, where it "
        "would spoil wall time. Order and bold type go by "
        "work. ± is the standard error over the prompts.",
    ]
    return " ".join(said)


def _slowest(rows: list[dict]) -> list[str]:
    """What those that run in one column only reach there."""
    known = [row for row in rows if row["contender"] in LAST and row["workload"] == PAPERS and "cannot_run" not in row]
    if not known or {row["workload"] for row in rows} == {PAPERS}:
        return []
    return [f"Their fastest point there is {max(1 / row['work_share'] for row in known):.2f}x by work."]


# ---- the tables


def at_qualities(rows: list[dict]) -> str:
    """Speed-up at each PSNR by work, in brackets by CPU time."""
    columns = []
    for target in QUALITIES:
        work, cpu = (_read_all(rows, speedup_at, target, cost) for cost in ("work_share", "cpu_ratio"))
        leader = _leader(work)
        columns.append({n: _speed_cell(work[n], cpu[n], n == leader) for n in work})
    table = _table("speed-up at", [f"{target:g} dB" for target in QUALITIES], ranked(rows), columns)
    return f"{table}\n{_ahead(rows)}"


def ranked(rows: list[dict]) -> list[str]:
    """The contenders by their speed-up by work, the sum over the qualities that they reach, fastest first."""
    at = [_read_all(rows, speedup_at, target) for target in QUALITIES]
    sums = {name: sum(readings[name].value for readings in at if readings[name]) for name in by_contender(rows)}
    return sorted(sums, key=sums.get, reverse=True)


def at_speeds(rows: list[dict]) -> str:
    """PSNR, then SSIM, at each speed-up by work; in brackets PSNR at that speed-up by CPU time."""
    columns = []
    for speed in SPEEDS:
        psnr, ssim = (_read_all(rows, quality_at, speed, quality=figure) for figure in ("psnr", "ssim"))
        cpu = _read_all(rows, quality_at, speed, "cpu_ratio")
        leader = _leader(psnr)
        columns.append({n: _quality_cell(psnr[n], ssim[n], cpu[n], n == leader) for n in psnr})
    return _table("PSNR, SSIM at", [f"{speed:g}x" for speed in SPEEDS], ranked(rows), columns)


def defaults(rows: list[dict]) -> str:
    """Every contender as its authors set it: speed-up by work (CPU time), PSNR and SSIM in each column.

    "(2 of 3)": quality where something was reused, which was so in two of three videos; the speed-up is that of all.
    """
    parts = []
    for model in dict.fromkeys(row["model"] for row in rows):
        chosen = [row for row in rows if row["model"] == model and row["recommended"]]
        workloads = list(dict.fromkeys(row["workload"] for row in chosen))
        columns = [{row["contender"]: _default_cell(row) for row in chosen if row["workload"] == w} for w in workloads]
        names = list(dict.fromkeys(row["contender"] for row in chosen))
        parts.append(f"**{TITLES.get(model, model)}**\n\n{_table('at its default', workloads, names, columns)}")
    return "\n\n".join(parts)


def knob(rows: list[dict]) -> str:
    """What forecast's threshold does: speed-up by work and PSNR (worst prompt) in each column."""
    mine = [row for row in rows if row["contender"] == OURS and "cannot_run" not in row]
    values = sorted({row["settings"]["threshold"] for row in mine})
    lines, columns = [], [{} for _ in values]
    for workload, model, found in groups(mine):
        lines.append(f"{TITLES.get(model, model)}, {workload}")
        for row in found:
            psnr = where_reused(row, "psnr")
            quality = f", {statistics.mean(psnr):.1f} ({min(psnr):.1f}) dB" if psnr else ""
            text = f"{1 / row['work_share']:.2f}x{quality}"
            columns[values.index(row["settings"]["threshold"])][lines[-1]] = text
    return _table("threshold", [f"{value:g}" for value in values], lines, columns)


def refusals(rows: list[dict]) -> str:
    found = dict.fromkeys(f"{row['contender']} ({row['cannot_run']})" for row in rows if "cannot_run" in row)
    return f"Cannot run on it: {'; '.join(found)}." if found else ""


def disagreements(rows: list[dict], speeds: tuple[float, ...] = (1.5, 2.0, 3.0)) -> str:
    """Where SSIM or the PSNR of frame differences put another cache first than PSNR does, at equal speed-up by work."""
    found = []
    for workload, model, some in groups(rows):
        for speed in speeds:
            first = {
                f: _leader(_read_all(some, quality_at, speed, quality=f)) for f in ("psnr", "ssim", "temporal_psnr")
            }
            others = [f"{figure}: {name}" for figure, name in first.items() if name != first["psnr"]]
            if first["psnr"] and others:
                where = f"{TITLES.get(model, model)}, {workload}, {speed:g}x"
                found.append(f"{where}: PSNR {first['psnr']}, {', '.join(others)}")
    return f"Another cache is first by another measure: {'; '.join(found) or 'nowhere'}."


def readme(data: dict) -> str:
    """The small table: PSNR at one speed-up a column, mean over the models; ours and the best of the others."""
    columns, heads = [], []
    for workload in dict.fromkeys(row["workload"] for row in data["rows"]):
        known = BY_NAME.get(workload)
        speed = known.compared_at if known else 2.0
        models = [found for name, _, found in groups(data["rows"]) if name == workload]
        readings = [_read_all(found, quality_at, speed) for found in models]
        names = set.intersection(*(set(one) for one in readings))
        columns.append({n: _mean([one[n] for one in readings]) for n in names})
        heads.append(f"{workload}, {speed:.2g}x")
    leaders = [_leader(column) for column in columns]
    cells = [
        {n: _plain_cell(r, n == leader) for n, r in column.items()}
        for column, leader in zip(columns, leaders, strict=True)
    ]
    return _table("PSNR at", heads, _chosen(columns), cells)


def write(data: dict, root: Path = ROOT) -> None:
    """Put the tables between the two comments of README and of docs/benchmarks.md.

    Raises:
        ValueError: one of them does not have the two comments, in this order.
    """
    for path, text in ((root / "README.md", readme(data)), (root / "docs" / "benchmarks.md", benchmarks(data))):
        page = path.read_text(encoding="utf-8")
        if BEGIN not in page or END not in page.split(BEGIN, 1)[1]:
            raise ValueError(f"{path} has no place for the table: it needs the lines {BEGIN!r} and {END!r}")
        head, rest = page.split(BEGIN, 1)
        path.write_text(f"{head}{BEGIN}\n\n{text}\n\n{END}{rest.split(END, 1)[1]}", encoding="utf-8")


# ---- cells


def _read_all(rows, at, value: float, cost="work_share", quality="psnr") -> dict[str, Reading | None]:
    return {name: read(some, at, value, cost, quality) for name, some in by_contender(rows).items()}


def _leader(readings: dict[str, Reading | None]) -> str | None:
    """Who is first; None where nobody has a reading."""
    known = {name: reading.value for name, reading in readings.items() if reading is not None}
    return max(known, key=known.get, default=None)


def _chosen(columns: list[dict]) -> list[str]:
    """README's rows: ours, then who is the best of the others in most columns, then the best on average."""
    names = dict.fromkeys(name for column in columns for name in column if not name.startswith("Foresight"))
    best = [_leader({n: r for n, r in column.items() if n in names}) for column in columns]

    def merit(name: str) -> tuple:
        known = [column[name].value for column in columns if column.get(name)]
        return best.count(name), len(known), statistics.mean(known) if known else 0.0

    return [OURS, *sorted(names, key=merit, reverse=True)[: README_ROWS - 1]]


def _mean(readings: list[Reading | None]) -> Reading | None:
    """Over models; None where one has no reading."""
    if any(reading is None for reading in readings):
        return None
    errors = [reading.error for reading in readings]
    error = None if None in errors else math.sqrt(sum(e * e for e in errors)) / len(errors)
    return Reading(statistics.mean(r.value for r in readings), any(r.bound for r in readings), error)


def _ahead(rows: list[dict]) -> str:
    """The row that says how many times faster forecast is than the best cache of others, by work and by CPU time."""
    cells = []
    for target in QUALITIES:
        ratios = []
        for cost in ("work_share", "cpu_ratio"):
            at = _read_all(rows, speedup_at, target, cost)
            others = [r.value for name, r in at.items() if r and not name.startswith("Foresight")]
            mine = at.get(OURS)
            ratios.append(f"{mine.value / max(others):.2f}" if mine and others else "-")
        cells.append(f"{ratios[0]} ({ratios[1]})")
    return f"| *{OURS} over the best of the others* | {' | '.join(cells)} |"


def _number(reading: Reading, digits: int, unit: str = "") -> str:
    error = "" if reading.error is None else f" ± {reading.error:.{digits}f}"
    return f"{'>=' if reading.bound else ''}{reading.value:.{digits}f}{unit}{error}"


def _bold(text: str, leads: bool) -> str:
    return f"**{text}**" if leads else text


def _speed_cell(work: Reading | None, cpu: Reading | None, leads: bool) -> str:
    if work is None:
        return "-"
    aside = "-" if cpu is None else f"{'>=' if cpu.bound else ''}{cpu.value:.2f}"
    return f"{_bold(_number(work, 2, 'x'), leads)} ({aside})"


def _quality_cell(psnr: Reading | None, ssim: Reading | None, cpu: Reading | None, leads: bool) -> str:
    if psnr is None:
        return "-"
    aside = "-" if cpu is None else f"{'>=' if cpu.bound else ''}{cpu.value:.1f}"
    return f"{_bold(_number(psnr, 1), leads)} ({aside}), {ssim.value:.4f}"


def _plain_cell(reading: Reading | None, leads: bool) -> str:
    return "-" if reading is None else _bold(_number(reading, 1), leads)


def _default_cell(row: dict) -> str:
    if "cannot_run" in row:
        return "cannot run"
    speed = f"{1 / row['work_share']:.2f}x ({1 / row['cpu_ratio']:.2f})"
    psnr, ssim, prompts = where_reused(row, "psnr"), where_reused(row, "ssim"), len(row["by_prompt"]["psnr"])
    if not psnr:
        return f"{speed}, nothing reused"
    number = _number(Reading(statistics.mean(psnr), error=standard_error(psnr)), 1)
    aside = f" ({len(psnr)} of {prompts})" if len(psnr) < prompts else ""
    return f"{speed}, {number}, {statistics.mean(ssim):.4f}{aside}"


def _table(corner: str, heads: list[str], names: list[str], columns: list[dict]) -> str:
    lines = [f"| {corner} | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
    lines += [f"| {name} | {' | '.join(column.get(name, '') for column in columns)} |" for name in names]
    return "\n".join(lines)

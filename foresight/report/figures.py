"""Figures of one or several runs together, as a text table and as the report file (`schema.json`)."""

import statistics
from collections.abc import Iterable

FORMAT = 4  # of `report_file` and of each run in it; 3 counted blocks in every method and said nothing of errors


def totals(runs: list[dict]) -> dict:
    """Figures over all runs.

    Args:
        runs: Each `RunStats.to_dict()`; empty where nothing ran.

    Returns:
        `reuse_ratio` over all that is counted, `estimated_speedup` of all evaluations by each run's measured medians (1
        where nothing was measured), `seconds`, the measured time of all evaluations, `seconds_full` and
        `seconds_reuse`, the largest median of a run (0 where there is none), and `peak_bytes`, the most that a run
        held.

    Raises:
        ValueError: a run has another format.
    """
    _check(runs)
    reused, total = (sum(run[name] for run in runs) for name in ("reused", "total"))
    full = spent = 0.0
    for run in runs:
        if run["seconds_full"] and run["estimated_speedup"]:
            full += len(run["evaluations"]) * run["seconds_full"]
            spent += len(run["evaluations"]) * run["seconds_full"] / run["estimated_speedup"]
    return {
        "reused": reused,
        "total": total,
        "reuse_ratio": reused / total if total else 0.0,
        "estimated_speedup": full / spent if spent else 1.0,
        "seconds": sum(e["seconds"] or 0.0 for run in runs for e in run["evaluations"]),
        "seconds_full": max((run["seconds_full"] or 0.0 for run in runs), default=0.0),
        "seconds_reuse": max((run["seconds_reuse"] or 0.0 for run in runs), default=0.0),
        "peak_bytes": max((run["peak_bytes"] for run in runs), default=0),
    }


def table(runs: dict[str, dict]) -> str:
    """Runs by name as a text table, one column each.

    Raises:
        ValueError: a run has another format.
    """
    _check(runs.values())
    rows = [("", *runs)]
    for label, figure in _ROWS.items():
        rows.append((label, *(figure(run) for run in runs.values())))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    lines += [f"{name}: {words}" for name, run in runs.items() if (words := _of_computed(run))]
    for why, words in (("inactive", "inactive"), ("uncorrected", "forecasts not corrected")):
        lines += [f"{name}: {words}: {run[why]}" for name, run in runs.items() if run[why]]
    return "\n".join(line.rstrip() for line in lines)


def _check(runs: Iterable[dict]) -> None:
    for found in {run.get("format") for run in runs} - {FORMAT}:
        raise ValueError(
            f"format={found} of a run: must be {FORMAT}. Another version of Foresight made it; make the report again"
        )


def _seconds(value: float | None) -> str:
    if value is None:
        return "-"
    if value < 1e-3:
        return f"{1000 * value:.3f} ms"
    return f"{value:.3g} s" if value < 100 else f"{value:.0f} s"


def plan(run: dict) -> str:
    """What a run meant to compute, by its plan."""
    if run["planned"] is None:
        return "-"
    return f"{run['planned']} of {run['steps']} steps computed, {run['steps'] / max(1, run['planned']):.2f}x"


def _computed(run: dict) -> str:
    rows = run["evaluations"]
    return f"{sum(not sum(e['reused']) for e in rows)} of {len(rows)} evaluations"


def _restarts(run: dict) -> str:
    return {0: "-", 1: "once"}.get(run["restarts"], f"{run['restarts']} times")


def _by_kind(run: dict) -> str:
    kinds = [e["kind"] for e in run["evaluations"]]
    reuse = "left out" if run["counted"] == "outputs" else "may reuse"
    stopped = ", then stopped" if run.get("broken_off") else ""
    return f"{len(kinds)} ({kinds.count('warmup')} warmup, {kinds.count('reuse')} {reuse}){stopped}"


_ROWS = {
    "evaluations": _by_kind,
    "plan": plan,
    "computed in full": _computed,
    "sampler started again": _restarts,
    "computed again": lambda run: str(run["taken_back"] or "-"),
    "left out": lambda run: f"{run['reused']} of {run['total']} {run['counted']} ({run['reuse_ratio']:.0%})",
    "error of it, validated": lambda run: _off(run),
    "full evaluation, measured": lambda run: _seconds(run["seconds_full"]),
    "reuse evaluation, measured": lambda run: _seconds(run["seconds_reuse"]),
    "all evaluations, measured": lambda run: _seconds(sum(e["seconds"] or 0.0 for e in run["evaluations"])),
    "speed-up, estimated": lambda run: _speedup(run),
    "memory held": lambda run: f"{run['peak_bytes'] / 2**20:.1f} MiB{' and RAM' if run['in_ram'] else ''}",
    "settings": lambda run: _settings(run["config"], run["warmup_steps"]),
}


def _speedup(run: dict) -> str:
    if run["estimated_speedup"] is None:
        return "-"
    return f"{run['estimated_speedup']:.2f}x{' without validate' if run['config']['validate'] else ''}"


def _off(run: dict) -> str:
    """By how much what was left out was off, where the run has computed it as well."""
    rows = [e for e in run["evaluations"] if sum(e["reused"]) and e["missed"] is not None]
    if not rows:
        return "-"
    missed, of_parts = [e["missed"] for e in rows], _by_part(run, rows)
    words = f"{statistics.median(missed):.2%} of the noise, {max(missed):.2%} at most"
    return f"{words} ({of_parts})" if of_parts else words


def _of_computed(run: dict) -> str:
    """By how much forecasts of what was computed were off, where the latent has several parts."""
    rows = [e for e in run["evaluations"] if not sum(e["reused"]) and e["missed"] is not None]
    of_parts = _by_part(run, rows)
    return f"forecasts of what was computed missed at most: {of_parts} of the noise" if of_parts else ""


def _by_part(run: dict, rows: list[dict]) -> str:
    """The largest error of each part of the latent, where all of these evaluations know it."""
    if not rows or not all(e["missed_parts"] for e in rows):
        return ""
    worst = map(max, zip(*(e["missed_parts"] for e in rows), strict=True))
    return ", ".join(f"{name} {error:.2%}" for name, error in zip(run["parts"], worst, strict=True))


def _settings(config: dict, warmup: int | None) -> str:
    interval = f", interval {config['reuse_interval']}" if config["reuse_interval"] else ""
    return f"{config['method']}, threshold {config['threshold']:g}, warmup {warmup}{interval}"


def in_short(runs: list[dict]) -> str:
    """How much of the runs was computed and with which settings, in one line.

    Raises:
        ValueError: a run has another format.
    """
    _check(runs)
    rows = [row for run in runs for row in run["evaluations"]]
    settings = {f"{run['config']['method']}, threshold {run['config']['threshold']:g}": None for run in runs}
    validated = ", validated" if any(run["config"]["validate"] for run in runs) else ""
    computed = f"{sum(not sum(row['reused']) for row in rows)} of {len(rows)} evaluations computed in full"
    return f"{computed} ({'; '.join(settings)}{validated})"


def report_file(runs: list[dict]) -> dict:
    """What the report node writes as JSON."""
    return {"format": FORMAT, "totals": totals(runs), "runs": runs}

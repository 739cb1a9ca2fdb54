"""Figures of one or several runs together, as a text table and as the report file (`schema.json`)."""

FORMAT = 2  # of `report_file`; 1 had the settings of both methods in each run


def totals(runs: list[dict]) -> dict:
    """Figures over all runs.

    Args:
        runs: Each `RunStats.to_dict()`; empty where nothing ran.

    Returns:
        `reuse_ratio` over all block calls, `estimated_speedup` of all evaluations by each run's measured medians (1
        where nothing was measured), `seconds`, the measured time of all evaluations, `seconds_full` and
        `seconds_reuse`, the largest median of a run (0 where there is none), and `peak_bytes`, the most that a run
        held.
    """
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
    """Runs by name as a text table, one column each."""
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
    lines += [f"{name}: inactive: {run['inactive']}" for name, run in runs.items() if run["inactive"]]
    return "\n".join(line.rstrip() for line in lines)


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g} s"


def _by_kind(run: dict) -> str:
    kinds = [e["kind"] for e in run["evaluations"]]
    return f"{len(kinds)} ({kinds.count('warmup')} warmup, {kinds.count('reuse')} may reuse)"


_ROWS = {
    "evaluations": _by_kind,
    "block calls reused": lambda run: f"{run['reused']} of {run['total']} ({run['reuse_ratio']:.0%})",
    "full evaluation, measured": lambda run: _seconds(run["seconds_full"]),
    "reuse evaluation, measured": lambda run: _seconds(run["seconds_reuse"]),
    "all evaluations, measured": lambda run: _seconds(sum(e["seconds"] or 0.0 for e in run["evaluations"])),
    "speed-up, estimated": lambda run: "-" if run["estimated_speedup"] is None else f"{run['estimated_speedup']:.2f}x",
    "memory held": lambda run: f"{run['peak_bytes'] / 2**20:.1f} MiB{' and RAM' if run['in_ram'] else ''}",
    "settings": lambda run: _settings(run["config"], run["warmup_steps"]),
}


def _settings(config: dict, warmup: int | None) -> str:
    interval = f", R {config['reuse_interval']}" if config["reuse_interval"] else ""
    return f"{config['method']}, W {warmup}, gamma {config['threshold']:g}{interval}"


def report_file(runs: list[dict]) -> dict:
    """What the report node writes as JSON."""
    return {"format": FORMAT, "totals": totals(runs), "runs": runs}

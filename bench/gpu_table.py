"""The README's tables, made from the JSON of `bench.gpu`."""

from collections.abc import Iterator

SHARE, IDLE, STATES, SYNCS = 0.97, 0.01, 1.3, 1  # targets
TITLES = {
    **{"n1r2": "all blocks, 1 of 2", "n2r3": "all blocks, 2 of 3", "recorded": "the demo model's map"},
    **{"forecast3": "forecast, 1 of 3 computed", "forecast4": "forecast, 1 of 4 computed"},
}


def table(results: dict) -> str:
    """Markdown of one card's results; "not measured" where there is no figure."""
    where = results["machine"]
    card = f"{where['card']}, driver {where['driver']}, torch {where['torch']}, ComfyUI {where['comfyui']}"
    heading = "**Smoke test on a CPU with tiny models: these figures say nothing.** " if results["smoke"] else ""
    rows = {name: row for name, row in results["models"].items() if "by_depth" in row}
    parts = [f"{heading}{card}, {where['attention']}. {results['note']}"]
    if rows:
        parts += [_evaluations(rows, results["repeats"]), _runs(rows, results["steps"])]
        if not results["smoke"]:
            parts.append("Targets missed: " + ("; ".join(_missed(rows)) or "none of those that were measured") + ".")
    images = {name: row for name, row in results["models"].items() if "forecast" in row and name not in rows}
    parts += [_forecast_alone(name, row) for name, row in images.items()]
    left_out = [
        f"{name}: {row.get('failed') or row.get('skipped')}"
        for name, row in results["models"].items()
        if "failed" in row or "skipped" in row
    ]
    if left_out:
        parts.append("Not measured, or not in full: " + "; ".join(left_out) + ".")
    return "\n\n".join(parts)


def _line(cells) -> str:
    return f"| {' | '.join(cells)} |"


def _markdown(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join([_line(head), _line(["---"] * len(head)), *(_line(row) for row in rows)])


def _evaluations(rows: dict, repeats: int) -> str:
    head = ["model", "video", "plain", f"active, nothing reused (target {IDLE:+.0%})", "EasyCache, nothing reused"]
    head += ["reusing ... of the blocks takes ... of plain", f"GPU memory, hidden states (target {STATES}) + samples"]
    head += [
        f"GPU syncs (target {SYNCS}; forecast; EasyCache)",
        f"forecast: nothing left out (target {IDLE:+.0%}); left out",
    ]
    lines = []
    for name, row in rows.items():
        depths = ", ".join(
            f"{rung['blocks'] / row['blocks']:.0%}: {rung['of_plain']:.1%}"
            for rung in row["by_depth"]
            if rung["blocks"]
        )
        memory, syncs = row["memory"], row["syncs"]
        states = "not measured"
        if "extra_states" in memory:
            states = f"{memory['extra_states']:.2f} + {memory['samples_bytes'] / 2**20:.0f} MiB"
            states += ", in RAM" if memory["in_ram"] else ""
        lines.append(
            [
                *(name, row["video"], f"{row['plain']['seconds']:.3f} s ({row['plain']['drift']:+.1%} drift)"),
                *(f"{row['idle']['overhead']:+.1%}", f"{row['easycache']['overhead']:+.1%}", depths, states),
                f"{syncs['foresight']:g}; {syncs['forecast']:g}; {syncs['easycache']:g}" if syncs else "not measured",
                f"{row['forecast']['overhead']:+.1%}; {row['forecast']['left_out_of_plain']:.1%} of plain",
            ]
        )
    return f"One evaluation (all conds), medians of {repeats} or more:\n\n" + _markdown(head, lines)


def _runs(rows: dict, steps: int) -> str:
    head = [
        "model",
        f"plain, {steps} steps",
        *(f"{title}: measured of ideal (target {SHARE})" for title in TITLES.values()),
    ]
    lines = []
    for name, row in rows.items():
        runs = row.get("runs", {})
        plain = runs.get("plain", {})
        cells = [f"{plain['seconds']:.1f} s" if "seconds" in plain else "not measured"]
        for schedule in TITLES:
            run = runs.get(schedule, {})
            cells.append(
                f"{run['seconds']:.1f} s, {run['speedup']:.2f}x of {run['block_speedup']:.2f}x: {run['of_ideal']:.3f}"
                if "speedup" in run
                else "not measured"
            )
        lines.append([name, *cells])
    return "Whole runs; ideal is all block calls over those computed:\n\n" + _markdown(head, lines)


def _forecast_alone(name: str, row: dict) -> str:
    """A model whose blocks are not known."""
    found, runs = row["forecast"], row.get("runs", {})
    whole = [f"{TITLES[key]} {runs[key]['speedup']:.2f}x" for key in TITLES if "speedup" in runs.get(key, {})]
    return (
        f"{name}, {row['video']}, with forecast alone: {row['plain']['seconds']:.3f} s plain, with nothing left out "
        f"{found['overhead']:+.1%}, left out {found['left_out_of_plain']:.1%} of plain; whole runs: "
        f"{'; '.join(whole) or 'not measured'}."
    )


def _missed(rows: dict) -> Iterator[str]:
    for name, row in rows.items():
        if row["idle"]["overhead"] > IDLE:
            yield f"{name} overhead {row['idle']['overhead']:+.1%} (drift {row['plain']['drift']:+.1%})"
        if row["forecast"]["overhead"] > IDLE:
            yield f"{name} forecast overhead {row['forecast']['overhead']:+.1%} (drift {row['plain']['drift']:+.1%})"
        if row["memory"].get("extra_states", 0) > STATES:
            yield f"{name} memory {row['memory']['extra_states']:.2f}"
        for method in ("foresight", "forecast"):
            if row["syncs"] and row["syncs"][method] > SYNCS:
                yield f"{name} syncs {row['syncs'][method]:g} ({method})"
        for schedule, title in TITLES.items():
            run = row.get("runs", {}).get(schedule, {})
            if run.get("of_ideal", SHARE) < SHARE:
                yield f"{name} {title} {run['of_ideal']:.3f}"

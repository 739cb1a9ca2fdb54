"""What is measured of one model: single evaluations, plain and with each cache, and whole runs."""

import gc
import statistics
import time
from collections import Counter
from collections.abc import Sequence

import torch

from foresight import PaperConfig

from . import real_models
from .forced import LADDER_INTERVAL, all_blocks, depth_of, every, ladder, scaled
from .gpu_bench import Bench, Sampled

WARMUP = 2  # evaluations before reuse where only single evaluations are timed; lambda needs a change
SCHEDULES = ("n1r2", "recorded", "n2r3")
FORECASTS = {"forecast3": 3, "forecast4": 4}  # one evaluation of so many is computed


def stage_evaluations(repeats: int) -> int:
    """About how many full evaluations `evaluate` takes after its first look."""
    plain, idle, easycache, rungs, syncs = 2 * (repeats + 2), 2 * repeats + 3, repeats + 3, 2.5 * repeats + 3, 18
    forecast = repeats + 4 + 4 + repeats
    return round(plain + idle + easycache + rungs + forecast + syncs)


def evaluate(bench: Bench, row: dict, repeats: int, deadline: float) -> None:
    """Single evaluations of every kind: fills `row` as it goes on, so that what was measured before a failure stays.

    Args:
        repeats: Evaluations behind each median.
        deadline: Of time.monotonic; what would end later is left out.
    """
    if bench.model.smoke_only:
        forecast_alone(bench, row, repeats)
        return
    row["blocks"], row["conds"] = bench.blocks, bench.conds
    hidden, samples, rough = bench.first_look()
    count, left = stage_evaluations(repeats), deadline - time.monotonic()
    if count * rough > left:
        row["skipped"] = f"{count} evaluations of about {rough:.2f} s do not fit into the {max(0.0, left):.0f} s left"
        return

    before = bench.sample(repeats + 2)
    idle = bench.forced([-1] * (WARMUP + 2 * repeats + 1), WARMUP, 2)
    easycache = bench.sample(repeats + 3, bench.easycache())
    rungs = bench.forced(ladder(WARMUP, repeats, bench.blocks), WARMUP, LADDER_INTERVAL)
    waiting = bench.forecast([True] * (repeats + 4))
    leaving = bench.forecast(every(2 * repeats + 4, 2))
    after = bench.sample(repeats + 2)

    plain = statistics.median(before.seconds[1:] + after.seconds[1:])
    row["plain"] = {"seconds": plain, "drift": after.median(1) / before.median(1) - 1}
    row["finite"] = after.finite and rungs.finite
    row["idle"] = idling(idle, plain)
    row["easycache"] = {"seconds": easycache.median(2), "overhead": easycache.median(2) / plain - 1}
    row["forecast"] = left_out(waiting, leaving, plain)
    row["by_depth"] = [
        {"blocks": depth + 1, "seconds": statistics.median(times), "of_plain": statistics.median(times) / plain}
        for depth, times in sorted(rungs.by(depth_of, WARMUP).items())
    ]
    row["memory"] = {"hidden_bytes": hidden, "samples_bytes": samples, "in_ram": rungs.stats["in_ram"]}
    if after.peak_bytes is not None:
        row["memory"] |= memory(after.peak_bytes, max(idle.peak_bytes, rungs.peak_bytes), hidden, samples)
    row["syncs"] = syncs(bench) if bench.device.type == "cuda" else None


def forecast_alone(bench: Bench, row: dict, repeats: int) -> None:
    """Single evaluations of a model whose blocks are not known: plain, with nothing left out, and left out."""
    row["conds"] = bench.conds
    bench.sample(3)  # warm up
    plain = bench.sample(repeats + 2)
    waiting = bench.forecast([True] * (repeats + 4))
    leaving = bench.forecast(every(2 * repeats + 4, 2))
    row["plain"] = {"seconds": plain.median(1)}
    row["finite"] = plain.finite and leaving.finite
    row["forecast"] = left_out(waiting, leaving, plain.median(1))


def idling(run: Sampled, plain: float) -> dict:
    """What the method "paper" costs in a run that reused nothing; `plain` is the seconds of a plain evaluation."""
    kinds = {kind: statistics.median(times) for kind, times in run.by(lambda e: e["kind"], WARMUP).items()}
    return {
        "full_seconds": kinds["full"],
        "reuse_seconds": kinds["reuse"],
        "overhead": (kinds["full"] + kinds["reuse"]) / 2 / plain - 1,
    }


def left_out(waiting: Sampled, leaving: Sampled, plain: float) -> dict:
    """What the method "forecast" costs where it computes, and where it leaves evaluations out.

    Args:
        waiting: A run that computed everything.
        leaving: A run that left out every other evaluation.
        plain: Seconds of a plain evaluation.
    """
    idle, skipped = waiting.median(3), statistics.median(leaving.by(lambda e: bool(sum(e["computed"])), 3)[False])
    return {
        "idle_seconds": idle,
        "overhead": idle / plain - 1,
        "left_out_seconds": skipped,
        "left_out_of_plain": skipped / plain,
        "held_bytes": waiting.stats["peak_bytes"],
    }


def memory(plain: int, foresight: int, hidden: int, samples: int) -> dict:
    """Peaks in bytes, and what lies between them in hidden states of all streams, the samples taken off."""
    extra = (foresight - plain - samples) / hidden
    return {"plain_peak_bytes": plain, "foresight_peak_bytes": foresight, "extra_states": extra}


def syncs(bench: Bench) -> dict:
    """GPU syncs per evaluation: plain, and what Foresight and EasyCache add; places only where Foresight has more."""
    last = bench.blocks - 1
    plain = bench.sample(4, syncs=True).clock
    mine = bench.forced([-1, -1, -1, last, last, -1, last, last, -1], WARMUP, 3, syncs=True).clock
    easy = bench.sample(5, bench.easycache(), syncs=True).clock
    forecast = bench.forecast([True, True, True, False, True, False, True], syncs=True).clock
    usual = statistics.median(plain.syncs()[1:])
    share = {place: count / len(plain.syncs()) for place, count in plain.sync_places().items()}
    added = Counter(
        {
            place: round(count / len(mine.syncs()) - share.get(place, 0.0), 2)
            for place, count in mine.sync_places().items()
        }
    )
    return {
        "plain": usual,
        "foresight": statistics.median(mine.syncs()[WARMUP:]) - usual,
        "easycache": statistics.median(easy.syncs()[2:]) - usual,
        "forecast": max(forecast.syncs()[3:]) - usual,
        "places": {place: count for place, count in added.most_common() if count > 0},
    }


def whole_runs(bench: Bench, row: dict, shares: Sequence[float], deadline: float) -> None:
    """A plain run and the forced schedules, as many as end before `deadline` (of time.monotonic), into row["runs"].

    Args:
        shares: The recorded map: share of the blocks that each evaluation reused. Its length is the number of steps.
    """
    steps, runs = len(shares), row.setdefault("runs", {})
    warmup = PaperConfig().warmup_of(steps)
    schedules = {
        "n1r2": (2, all_blocks(steps, warmup, 2, bench.blocks)),
        "recorded": (2, scaled(shares, bench.blocks)),
        "n2r3": (3, all_blocks(steps, warmup, 3, bench.blocks)),
    }
    if not _fits(row, runs, "plain", steps, deadline):
        return
    bench.sample(2)
    plain = bench.sample(steps)
    runs["plain"] = {"seconds": plain.wall, "peak_bytes": plain.peak_bytes}
    for name in () if bench.model.smoke_only else SCHEDULES:
        interval, depths = schedules[name]
        if not _fits(row, runs, name, sum(1 - (depth + 1) / bench.blocks for depth in depths), deadline):
            continue
        runs[name] = against(plain, bench.forced(depths, warmup, interval))
    for name, interval in FORECASTS.items():
        computed = every(steps, interval)
        if not _fits(row, runs, name, sum(computed), deadline):
            continue
        runs[name] = against(plain, bench.forecast(computed))


def against(plain: Sampled, run: Sampled) -> dict:
    """A whole run beside the plain one."""
    speedup, ideal = plain.wall / run.wall, run.stats["block_speedup"]
    return {
        **{"seconds": run.wall, "speedup": speedup, "block_speedup": ideal, "of_ideal": speedup / ideal},
        **{"peak_bytes": run.peak_bytes, "in_ram": run.stats["in_ram"]},
    }


def _fits(row: dict, runs: dict, name: str, evaluations: float, deadline: float) -> bool:
    seconds, left = evaluations * row["plain"]["seconds"], deadline - time.monotonic()
    if seconds <= left:
        return True
    runs[name] = {"skipped": f"{seconds:.0f} s, and {max(0.0, left):.0f} s were left"}
    return False


def attempt(model: real_models.RealModel, row: dict, device: torch.device, tiny: bool, action) -> None:
    """Build the model, do `action(bench)`, free everything; what does not work is noted in the row and is no error."""
    try:
        if device.type == "cuda":
            free = torch.cuda.mem_get_info(device)[0]
            if not tiny and model.weight_bytes > free:
                row["skipped"] = (
                    f"its weights take {model.weight_bytes / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free"
                )
                return
        action(Bench(model, device, tiny))
    except real_models.NotThere as error:
        row["skipped"] = str(error)
    except torch.OutOfMemoryError:
        row["skipped"] = f"out of GPU memory beside {model.weight_bytes / 2**30:.1f} GiB of weights"
    except Exception as error:  # the other models shall still be measured
        row["failed"] = f"{type(error).__name__}: {error}"
    finally:
        import comfy.model_management

        comfy.model_management.unload_all_models()
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()


def recorded_shares(steps: int) -> list[float]:
    """Share of the blocks that each evaluation of the bundled demo model reused, with default settings."""
    from .comfy import Demo

    demo = Demo()
    stats = demo.run("red ball moving right", 1, PaperConfig(), steps).stats
    return [(depth_of(e) + 1) / len(e["computed"]) for e in stats["evaluations"]]

"""Fronts of speed and quality from the rows of `bench.quality`, read at a quality or at a speed, with standard errors.

A row has the figures of one point, means over the prompts, and under "by_prompt" those of each prompt.
"""

import math
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass

SAME = 99.0  # dB, stands for identical clips
TITLES = {
    "wan": "Wan, bundled",
    "wan_deep": "Wan, 16 narrow blocks",
    "cogvideox": "CogVideoX",
    "experts": "Wan, a pair of experts",
    "distilled": "Wan, distilled",
}


@dataclass(frozen=True)
class Reading:
    """What a front was read as.

    Attributes:
        value: The figure; `bound` says that it is only at least this.
        error: Its standard error over the prompts; None where leaving one out leaves nothing to read.
    """

    value: float
    bound: bool = False
    error: float | None = None


def front(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """The (speed-up, quality) points that no other beats in both, slowest first; none slower than plain."""
    best: list[tuple[float, float]] = []
    for speed, quality in sorted(points, reverse=True):
        if speed >= 1 and (not best or quality > best[-1][1]):
            best.append((speed, quality))
    return best[::-1]


def speedup_at(points: list[tuple[float, float]], target: float) -> tuple[float, bool] | None:
    """Speed-up of a front where its PSNR is `target` dB.

    It is on the straight line from the fastest point that has it to the next faster one that was measured, on the front
    or not: a line over points that are worse would claim what they disprove.

    Returns:
        (speed-up, whether it is a lower bound: the whole front is above the target, and this is its fastest point), or
        None when the whole front is below the target. Nothing is extrapolated.
    """
    best = front(points)
    if not best or best[0][1] < target:
        return None
    if best[-1][1] >= target:
        return best[-1][0], best[-1][1] > target
    slow, high = max(point for point in best if point[1] >= target)
    fast, negative = min((speed, -quality) for speed, quality in points if speed > slow)
    return slow + (high - target) / (high + negative) * (fast - slow), False


def quality_at(points: list[tuple[float, float]], speedup: float) -> tuple[float, bool] | None:
    """Quality of a front at a speed-up.

    It is on the straight line between the two measured points around it, on the front or not, or what a faster one has
    where that is more.

    Returns:
        (quality, whether it is a lower bound: the whole front is faster, and this is its slowest point), or None when
        the whole front is slower. Nothing is extrapolated.
    """
    best = front(points)
    if not best or best[-1][0] < speedup - 1e-9:
        return None
    if best[0][0] >= speedup - 1e-9:
        return best[0][1], best[0][0] > speedup + 1e-9
    slow, high = max(point for point in points if point[0] < speedup - 1e-9)
    fast, negative = min((speed, -quality) for speed, quality in points if speed > speedup - 1e-9)
    between = high + (speedup - slow) / (fast - slow) * (-negative - high)
    return max(between, *(quality for speed, quality in best if speed > speedup - 1e-9)), False


def points_of(rows: list[dict], cost: str, quality: str, without: int | None = None) -> list[tuple[float, float]]:
    """(speed-up, quality) of one contender's rows that ran and reused something in every prompt.

    Where nothing was reused, the quality is a cap and says nothing of what reuse costs: with it, a mean of 74 dB could
    be one prompt of 23 dB and two that are as plain.

    Args:
        cost: "work_share" or "time_ratio".
        without: The number of a prompt that is left out of the means.
    """
    used = [row for row in rows if "cannot_run" not in row and max(row["by_prompt"]["psnr"]) < SAME]
    return [(1 / _mean(row, cost, without), _mean(row, quality, without)) for row in used]


def read(
    rows: list[dict], at: Callable, value: float, cost: str = "work_share", quality: str = "psnr"
) -> Reading | None:
    """`at` (`speedup_at` or `quality_at`) of one contender's rows, with the jackknife's error over the prompts.

    The whole reading is repeated with each prompt left out in turn: for a mean that is its usual standard error.
    """
    found = at(points_of(rows, cost, quality), value)
    if found is None:
        return None
    prompts = max(len(row["by_prompt"][quality]) for row in rows if "by_prompt" in row)
    others = [at(points_of(rows, cost, quality, without), value) for without in range(prompts)] if prompts > 1 else []
    if not others or found[1] or any(other is None or other[1] for other in others):
        return Reading(*found)
    return Reading(*found, jackknife([other[0] for other in others]))


def jackknife(others: list[float]) -> float:
    """Standard error of a figure from what it is with each observation left out."""
    mean = statistics.mean(others)
    return math.sqrt((len(others) - 1) / len(others) * sum((other - mean) ** 2 for other in others))


def _mean(row: dict, figure: str, without: int | None) -> float:
    if without is None:
        return row[figure]
    kept = [value for number, value in enumerate(row["by_prompt"][figure]) if number != without]
    return (statistics.median if figure in ("time_ratio", "cpu_ratio") else statistics.mean)(kept)


def where_reused(row: dict, figure: str) -> list[float]:
    """A figure of the prompts in which something was reused; in the others PSNR is a cap, see `points_of`."""
    by_prompt = row["by_prompt"]
    return [value for value, psnr in zip(by_prompt[figure], by_prompt["psnr"], strict=True) if psnr < SAME]


def standard_error(values: list[float]) -> float | None:
    """Standard error of a mean; None of one value."""
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None


def groups(rows: list[dict]) -> Iterator[tuple[str, str, list[dict]]]:
    """(workload, model, their rows), in the order of the rows."""
    for workload, model in dict.fromkeys((row["workload"], row["model"]) for row in rows):
        yield workload, model, [row for row in rows if (row["workload"], row["model"]) == (workload, model)]


def by_contender(rows: list[dict]) -> dict[str, list[dict]]:
    """The rows of each contender that ran at all."""
    found: dict[str, list[dict]] = {}
    for row in rows:
        if "cannot_run" not in row:
            found.setdefault(row["contender"], []).append(row)
    return found

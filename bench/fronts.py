"""Fronts of speed and quality from the rows of `bench.quality`."""

TARGETS = (45.0, 40.0, 35.0)  # dB
SAME = 99.0  # dB, stands for identical clips
TITLES = {"wan": "Wan, bundled", "wan_deep": "Wan, 16 narrow blocks", "cogvideox": "CogVideoX"}


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


def settings_of(rows: list[dict]) -> list[tuple[str, int]]:
    return list(dict.fromkeys((row["sampler"], row["steps"]) for row in sorted(rows, key=_setting_order)))


def _setting_order(row: dict) -> tuple:
    return row["sampler"], -row["steps"]


def of_setting(rows: list[dict], model: str, sampler: str, steps: int) -> list[dict]:
    return [row for row in rows if (row["model"], row["sampler"], row["steps"]) == (model, sampler, steps)]

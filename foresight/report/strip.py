"""The picture of a run whose method takes whole evaluations: one column each, below it how far off a forecast was.

A column is as high as the share of the way that its step covers. Below it stands the predicted error over the limit,
and where it is known, as a dot, the real one.
"""

from dataclasses import dataclass

RGB = tuple[int, int, int]
MOST = 2.0  # errors are drawn up to this many times the limit
LOWEST = 0.08  # height of a column that covers next to nothing, so that it can be seen
ERRORS, GAP = 0.32, 0.08  # shares of the picture's height


@dataclass(frozen=True)
class Column:
    """One evaluation.

    Attributes:
        height: 0..1.
        left_out: Whether its output was forecast.
        reached: Whether it took place; else it is a step of the plan that the run did not come to.
        predicted: Predicted error over the limit, None where there is none.
        real: The real one over the limit, None where it is not known.
    """

    height: float
    left_out: bool
    reached: bool = True
    predicted: float | None = None
    real: float | None = None


def _is_ahead(level: float | None, reached: float | None, by_count: bool) -> bool:
    """Whether a step is still to come; by its number where the host does not tell levels beforehand (diffusers)."""
    return by_count if level is None or reached is None else level < reached * (1 - 1e-4)


def columns(run: dict) -> list[Column]:
    """The columns of a `RunStats.to_dict()`: its evaluations, and of the plan what the run did not come to."""
    rows, rest = run["evaluations"], list(run["outlook"] or ())
    if rows:
        rest = [step for k, step in enumerate(rest) if _is_ahead(step["level"], rows[-1]["level"], k >= len(rows))]
    rest = [] if run["inactive"] else rest
    highest = max((x["share"] or 0.0 for x in (*rows, *rest)), default=0.0)

    def height(share: float | None) -> float:
        return 1.0 if share is None or not highest else max(LOWEST, share / highest)

    found = []
    for row in rows:
        predicted = row["ratio"][0] if row["ratio"] else None
        known = None not in (predicted, row["expected"], row["missed"]) and row["expected"]
        real = predicted * row["missed"] / row["expected"] if known else None
        found.append(Column(height(row["share"]), bool(sum(row["reused"])), True, predicted, real))
    return found + [Column(height(step["share"]), not step["computes"], False) for step in rest]

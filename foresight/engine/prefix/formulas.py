"""When a block's stored output may replace a new computation, in the paper's symbols (arXiv 2506.00329, section 4)."""

from collections.abc import Sequence

import torch

LAMBDA_WEIGHTS = (1.0, 0.1, 0.01)  # 10^-(W-t) for t = W, W-1, W-2


def block_lambda(changes: Sequence[torch.Tensor]) -> torch.Tensor | None:
    """lambda_l = sum_{t=W-2..W} 10^-(W-t) MSE(x_l(t), x_l(t-1)): a block's reference change.

    Args:
        changes: The changes measured in warmup, oldest first, each (blocks,); the last three count, fewer when there
            are fewer.

    Returns:
        (blocks,), or None when warmup measured no change.
    """
    if not changes:
        return None
    newest_first = list(changes)[::-1]
    return sum(weight * change for weight, change in zip(LAMBDA_WEIGHTS, newest_first, strict=False))


def qualifies(delta: torch.Tensor, limit: torch.Tensor) -> torch.Tensor:
    """delta_l <= gamma * lambda_l, as a bool tensor on the device; NaN never qualifies."""
    return delta <= limit


def is_full(evaluation: int, warmup: int, reuse_interval: int) -> bool:
    """Whether an evaluation after warmup is computed in full: every R-th, the first one after warmup included.

    With W = 2 and R = 3: W W | C R R | C R R.
    """
    return (evaluation - warmup) % reuse_interval == 0


def prefix_depth(flags: Sequence[bool]) -> int:
    """l*, the deepest block that qualifies; -1 when none does. All blocks up to it form the reused prefix."""
    return max((block for block, flag in enumerate(flags) if flag), default=-1)


def most_reuse_evaluations(evaluations: int, warmup: int, reuse_interval: int) -> int:
    """How many of a run's evaluations can be reuse evaluations at the most."""
    return sum(not is_full(e, warmup, reuse_interval) for e in range(warmup, evaluations))

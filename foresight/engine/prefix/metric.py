"""The change between two outputs of a block, on a fixed sample of rows: fp32 on the device, never read here."""

from collections.abc import Sequence

import torch

Tensors = tuple[torch.Tensor, ...]


def sample_stride(rows: int, wanted: int) -> int:
    """Stride that keeps about `wanted` of `rows` rows, and a third at most; 1 when `wanted` is 0.

    It is odd, so that it never walks down one column of a frame whose width in tokens is a power of two.
    """
    return 1 if wanted == 0 else max(4, rows // wanted) - 1 | 1


def sample_rows(hidden_states: Tensors, wanted: int) -> Tensors:
    """Rows at a constant stride of each tensor (..., C) as (rows, C): a view where the layout allows one.

    A row is one token of one video; the streams of a block (video, text) share the stride.
    """
    flat = [x.flatten(0, -2) for x in hidden_states]
    stride = sample_stride(sum(x.shape[0] for x in flat), wanted)
    return tuple(x[::stride] for x in flat)


def change(now: Sequence[torch.Tensor], before: Sequence[torch.Tensor]) -> torch.Tensor:
    """MSE over all elements of the tensors together, a 0-d fp32 tensor; fp16 differences are squared in fp32."""
    total, count = None, 0
    for a, b in zip(now, before, strict=True):
        difference = (a.float() - b.float()).flatten()
        squares = torch.dot(difference, difference)  # in one pass; mse_loss takes three times as long on a CPU
        total, count = squares if total is None else total + squares, count + a.numel()
    return total / count

"""How far apart two outputs of a block are, on a fixed sample of rows: fp32 on the device, never read here."""

import functools

import torch

from ..tensors import Tensors


def sample_stride(rows: int, wanted: int) -> int:
    """Stride that keeps about `wanted` of `rows` rows, and a third at most; 1 when `wanted` is 0.

    It is odd, so that it never walks down one column of a frame whose width in tokens is a power of two.
    """
    if wanted == 0:
        return 1
    stride = max(3, rows // wanted - 1)
    return stride if stride % 2 else stride + 1


def rows_of(x: torch.Tensor, streams: int, batch_dim: int) -> torch.Tensor:
    """A block's tensor (..., C) as (streams, rows, C), one row per token of each video: a view where one is possible.

    Args:
        streams: How many streams are stacked along `batch_dim`, each with the same number of entries.
    """
    if batch_dim == 0:
        return x if x.ndim == 3 and x.shape[0] == streams else x.reshape(streams, -1, x.shape[-1])
    return x.unflatten(batch_dim, (streams, -1)).movedim(batch_dim, 0).flatten(1, -2)


def sample_of(rows: torch.Tensor, index: torch.Tensor | None) -> torch.Tensor:
    """The sampled rows of (streams, rows, C) as a fresh tensor; all of them where `index` is None."""
    return rows.clone(memory_format=torch.contiguous_format) if index is None else rows.index_select(1, index)


def distance(now: Tensors, before: Tensors, by_stream: bool) -> torch.Tensor:
    """Root of the summed squares of `now` - `before` over all tensors: 0-d fp32, or (streams,) fp32.

    Squares are summed in fp32. bf16 and fp32 are subtracted as they are, which is exact where two outputs are close;
    fp16 in fp32, since its differences overflow.
    """
    norms = []
    for a, b in zip(now, before, strict=True):
        difference = (a.float() if a.dtype is torch.float16 else a) - b
        narrow = difference.dtype in (torch.bfloat16, torch.float16)
        dims, dtype = (1, 2) if by_stream else None, torch.float32 if narrow else None
        norms.append(torch.linalg.vector_norm(difference, dim=dims, dtype=dtype))
    return functools.reduce(torch.hypot, norms)

"""The type of an output, and how running out of memory is recognised."""

import torch

Tensors = tuple[torch.Tensor, ...]


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether memory ran out: torch.OutOfMemoryError on a GPU; RAM that runs out has no class of its own."""
    return isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error)


def read_level(level: torch.Tensor | float | None) -> float | None:
    """A noise level that is read on its own; of several, as tokens may have, the highest."""
    return float(level.detach().float().max()) if isinstance(level, torch.Tensor) else level


def format_bytes(count: int) -> str:
    """Bytes as a readable quantity."""
    return f"{count / 2**30:.2f} GiB" if count >= 2**29 else f"{count / 2**20:.1f} MiB"

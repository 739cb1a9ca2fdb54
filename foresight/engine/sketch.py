"""Short stand-ins for tensors, from which products of the tensors can be told without having them.

A process that has one cond can't tell products of its output with an output of another process, and sending a latent
costs too much. So few numbers stand for each tensor, its sketch: its elements, each times a sign, dealt out in turn to
so many sums. The signs look random and are the same in every process. Then

- a sketch is linear: that of a blend of outputs is the blend of their sketches, so that weights which explain a step
  exactly are found exactly;
- <S a, S b> is <a, b> on the average over the signs, and misses it by about sqrt((|a|^2 |b|^2 + <a, b>^2) / size). A
  length in 1024 numbers is off by 2 %;
- a tensor that has no more elements than its sketch has numbers is told exactly.
"""

from collections.abc import Sequence

import torch

_SALTS = 0x9E3779B, 0x85EBCA7, 0x2C1B3C7  # odd, and nothing else is wanted of them


def sketch(rows: Sequence[torch.Tensor], size: int) -> torch.Tensor:
    """Sketches of tensors, item by item: n of one shape (items, ...) to (n, items, size), fp32, on their device."""
    count, device = rows[0][0].numel(), rows[0].device
    signs, rest = _signs(count, device), -count % size

    def one(x: torch.Tensor) -> torch.Tensor:
        signed = x.detach().float().flatten(1) * signs
        return torch.nn.functional.pad(signed, (0, rest)).unflatten(1, (-1, size)).sum(1)

    return torch.stack([one(x) for x in rows])


def _signs(count: int, device: torch.device) -> torch.Tensor:
    """1 or -1 for each place, (count,) fp32.

    They are computed from the place alone: generators of random numbers differ between kinds of devices, and signs that
    are kept would take memory.
    """
    mixed = torch.arange(count, dtype=torch.int32, device=device)
    for salt in _SALTS:  # what does not fit into 32 bits is cut off
        mixed = (mixed ^ (mixed >> 15)) * salt
        mixed = mixed ^ (mixed >> 13)
    return ((mixed >> 16) & 1).float() * 2 - 1

"""The latents among a transformer's arguments, and how many conds they are for."""

from collections.abc import Mapping

import torch

from ...engine.tensors import Tensors
from .families import DiffusersFamily


def latents_of(family: DiffusersFamily, arguments: Mapping) -> Tensors:
    """The latents among the arguments of a call, in the order of the outputs that are for them."""
    found = (arguments.get(name) for name in family.latents)
    parts = [x for value in found for x in (value if isinstance(value, (list, tuple)) else [value])]
    return tuple(x for x in parts if isinstance(x, torch.Tensor))


def conds_in(latents: Tensors) -> int:
    """How many conds a call has: pipelines without contexts stack them, so that its latent is there several times."""
    rows = {len(x) for x in latents if x.ndim}
    if len(rows) != 1:
        return 1
    (rows,) = rows
    for n in range(rows, 1, -1):
        if rows % n == 0 and all(_repeats(x, n) for x in latents):
            return n
    return 1


def _repeats(x: torch.Tensor, n: int) -> bool:
    first, *others = x.chunk(n)
    return all(torch.equal(first, other) for other in others)

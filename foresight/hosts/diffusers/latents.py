"""What the latents among a transformer's arguments are for: how many conds, and whether all calls have the same."""

from collections.abc import Mapping

import torch

from ...engine.tensors import Tensors
from .families import DiffusersFamily
from .streams import equal

LOOKS = 2  # evaluations in which latents are compared: videos that begin with the same noise differ after a step


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


class Latents:
    """The latents of a run's calls. They are compared in the first evaluations only, because that reads the device."""

    def __init__(self):
        self._first: Tensors = ()  # of the evaluation's first call, one cond's
        self._found: dict[tuple, tuple[int, int]] = {}  # by stream and rows: how often compared, how many conds
        self._apart = False  # the calls of an evaluation are for different latents (tiles, two videos)

    def begin(self, name: str, latents: Tensors) -> Tensors | None:
        """An evaluation begins with this call: the latent that it is for, None where its calls do not share one."""
        self._first = ()
        self.look(name, latents)
        return None if self._apart else self._of_one_cond(name, latents)

    def look(self, name: str, latents: Tensors) -> None:
        """Compare the latents of a call with one another and with the first call's."""
        looks, _ = self._found.get(self._key(name, latents), (0, 1))
        if looks < LOOKS:
            self._found[self._key(name, latents)] = looks + 1, conds_in(latents)
            one = self._of_one_cond(name, latents)
            self._first = self._first or one
            same = len(one) == len(self._first) and all(map(equal, one, self._first))
            self._apart |= not same

    def conds(self, name: str, latents: Tensors) -> int:
        """How many conds a call has."""
        return self._found[self._key(name, latents)][1]

    def _of_one_cond(self, name: str, latents: Tensors) -> Tensors:
        return tuple(x.chunk(self.conds(name, latents))[0] for x in latents)

    @staticmethod
    def _key(name: str, latents: Tensors) -> tuple:
        return name, tuple(x.shape[:1] for x in latents)

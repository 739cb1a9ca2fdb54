"""Which evaluation a call belongs to, and which of its streams the call is."""

from collections.abc import Mapping

import torch
from torch.utils._pytree import tree_leaves


class Streams:
    """Tells the calls of an evaluation apart.

    Most pipelines say in a cache context which cond they call for; an evaluation is over when one comes a second time.
    Where a pipeline says nothing, what is given beside the latent tells the conds apart: a call at the noise level of
    the last one is a further stream of the same evaluation if it is for something else (another text) than all calls
    of that evaluation so far. A stream is then called by its ordinal.
    """

    def __init__(self):
        self._names: set[str] = set()  # of the present evaluation
        self._asked: list[list] = []  # what its calls without a context were for
        self._timestep: torch.Tensor | None = None
        self._evaluation = 0
        self._last: dict[str, int] = {}  # the newest evaluation of each stream
        self._breaks: dict[str, int] = {}

    def of_call(self, context: str | None, timestep: torch.Tensor | None, given: Mapping) -> tuple[str, bool]:
        """The stream of a call, and whether an evaluation begins with it.

        Args:
            context: Name of the cache context, None where there is none.
            timestep: Argument that says the noise level.
            given: All other arguments but the latents.
        """
        asked = tree_leaves(dict(given))
        if context is not None:
            name, begins = context, context in self._names
        else:
            begins = self._is_over(timestep, asked)
            name = str(0 if begins else len(self._asked))
        begins |= not self._names
        if begins:
            self._names, self._asked, self._evaluation = set(), [], self._evaluation + 1
        self._names.add(name)
        if context is None:
            self._asked.append(asked)
            self._timestep = timestep
        self._breaks[name] = self._breaks.get(name, 0) + (self._last.get(name, self._evaluation) < self._evaluation - 1)
        self._last[name] = self._evaluation
        return name, begins

    def breaks(self, name: str) -> int:
        """How often a stream was absent for an evaluation or more: what was before says nothing about what comes."""
        return self._breaks[name]

    def _is_over(self, timestep: torch.Tensor | None, asked: list) -> bool:
        """Whether a call without a context does not belong to the evaluation of the last one."""
        pairs = [[(timestep, self._timestep)], *(list(zip(asked, before, strict=False)) for before in self._asked)]
        pairs = [p if len(p) == len(asked) or i == 0 else None for i, p in enumerate(pairs)]
        same_time, *same = _all_equal(pairs)
        return not same_time or any(same)


def _all_equal(groups: list[list[tuple] | None]) -> list[bool]:
    """For each list of pairs, whether all of them are equal; with one read of the device at most."""
    answers, waiting = [], []
    for pairs in groups:
        found = None if pairs is None else [_equal(a, b) for a, b in pairs]
        answers.append(found is not None and not any(x is False for x in found))
        if answers[-1]:
            waiting += [(len(answers) - 1, x) for x in found if isinstance(x, torch.Tensor)]
    if waiting:
        device = waiting[0][1].device
        for (i, _), equal in zip(waiting, torch.stack([x.to(device) for _, x in waiting]).tolist(), strict=True):
            answers[i] &= equal
    return answers


def _equal(a: object, b: object) -> bool | torch.Tensor:
    """Whether two arguments are equal, as a 0-d tensor where only the device can say."""
    if a is b:
        return True
    if not (isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor)):
        simple = isinstance(a, (int, float, str)) and isinstance(b, (int, float, str))
        return a == b if simple else type(a) is type(b)
    if (a.shape, a.dtype, a.device) != (b.shape, b.dtype, b.device):
        return False
    if a.data_ptr() == b.data_ptr() and a.stride() == b.stride():
        return True
    return (a == b).all()

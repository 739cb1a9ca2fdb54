"""Which evaluation a call belongs to, and which of its streams the call is."""

import weakref
from collections.abc import Container, Mapping, Sequence

import torch
from torch.utils._pytree import tree_leaves

MOST_STREAMS = 8  # of an evaluation, where one is asked for again; a loop that measures calls it with the same for ever


class Streams:
    """Tells the calls of an evaluation apart.

    Most pipelines say in a cache context which cond they call for; an evaluation is over when one comes a second time,
    or when one that was absent (guidance for a part of the run) comes at another noise level. Where a pipeline says
    nothing, what is given beside the latent tells the conds apart: a call for what an earlier one was for (the same
    text) is the same stream, any other is named by its place in the evaluation. The evaluation is over when a stream
    comes a second time, or when the noise level changes. But a second time with the very latent that the evaluation
    began with is a stream of its own: guidance asks for the cond again, with some of the model's layers changed (SLG),
    or both conds are the same.

    Attributes:
        changed: With the newest call, what its stream is for is not what it was in the calls before.
    """

    def __init__(self):
        self._names: set[str] = set()  # of the present evaluation
        self._asked: dict[str, list] = {}  # what a stream without a context was for
        self._timestep: list = []  # of the last call
        self._evaluation = 0
        self._last: dict[str, int] = {}  # the newest evaluation of each stream
        self._breaks: dict[str, int] = {}
        self._given: dict[str, _Given] = {}
        self._latents: list = []  # with which the evaluation began
        self._moves = False  # an evaluation has begun with other latents than the one before
        self.changed = False

    def of_call(
        self, context: str | None, timestep: torch.Tensor | None, given: Mapping, latents: Sequence[torch.Tensor] = ()
    ) -> tuple[str, bool]:
        """The stream of a call, and whether an evaluation begins with it.

        Args:
            context: Name of the cache context, None where there is none.
            timestep: Argument that says the noise level.
            given: All other arguments but the latents.
            latents: These.
        """
        level = timestep.detach().max() if isinstance(timestep, torch.Tensor) else timestep
        name, same_time, asked = context, True, tree_leaves(dict(given))
        if context is None:
            name, same_time = self._find(level, asked)
        elif self._last.get(name, -1) < self._evaluation - 1:
            (same_time,) = _all_equal([([level], self._timestep)])
        least = 1 if self._moves else 2  # else it is a loop of one cond whose latent stands still
        others = least <= len(self._names) < MOST_STREAMS
        if name in self._names and others and same_time and self._asks_again(context, latents):
            name, same_time = self._find(level, asked, but=self._names) if context is None else self._again(name, level)
        begins = not self._names or not same_time or name in self._names
        if begins:
            waits = context is None and not self._moves and bool(self._latents)  # each look may read the device
            self._moves |= waits and not self._asks_again(None, latents)
            self._names, self._evaluation, self._latents = set(), self._evaluation + 1, _noted(latents)
        name = name or self._free_name()
        self._names.add(name)
        if context is None:
            self._asked[name] = _noted(asked)
        self._timestep = _noted([level])
        was_away = self._last.get(name, self._evaluation) < self._evaluation - 1
        self.changed = self._given.setdefault(name, _Given()).changes(asked)
        self._breaks[name] = self._breaks.get(name, 0) + (was_away or self.changed)
        self._last[name] = self._evaluation
        return name, begins

    def breaks(self, name: str) -> int:
        """How often what was before said nothing about what comes.

        The stream was absent for an evaluation or more, or a callback of the pipeline has changed what it is for.
        """
        return self._breaks[name]

    def _find(
        self, level: torch.Tensor | float | None, asked: list, but: Container[str] = ()
    ) -> tuple[str | None, bool]:
        """The known stream that is for the same, if any, and whether the noise level is still that of the last call."""
        known = [name for name in self._asked if name not in but]
        groups = [([level], self._timestep), *((asked, self._asked[name]) for name in known)]
        same_time, *same = _all_equal(groups)
        return next((name for name, found in zip(known, same, strict=True) if found), None), same_time

    def _asks_again(self, context: str | None, latents: Sequence[torch.Tensor]) -> bool:
        """Whether these are the latents with which the evaluation began; with contexts no device is read for it."""
        if context is None:
            return bool(latents) and all(_all_equal([(latents, self._latents)]))
        pairs = zip(latents, self._latents, strict=False)
        return 0 < len(latents) == len(self._latents) and all(_is_still(x, noted) is True for x, noted in pairs)

    def _again(self, name: str, level: torch.Tensor | float | None) -> tuple[str, bool]:
        """A name for one more call of a context, and whether the noise level is still that of the last call."""
        free = next(f"{name} {n}" for n in range(2, MOST_STREAMS + 2) if f"{name} {n}" not in self._names)
        (same_time,) = _all_equal([([level], self._timestep)])
        return (free if same_time else name), same_time

    def _free_name(self) -> str:
        places = map(str, range(len(self._names), 2 * len(self._names) + 1))
        return next(name for name in places if name not in self._names)


class _Given:
    """The tensors that a stream gets beside the latent, by identity: no read of the device, and none is kept alive.

    One that was the very same in two calls in turn is there for all of the run, unless somebody changes it. One that is
    made anew for every call says nothing.
    """

    def __init__(self):
        self._before: list[tuple[weakref.ref, int | None, bool]] = []  # of the last call; whether it was the same then

    def changes(self, values: list) -> bool:
        """Whether one that stayed the same so far is another in this call."""
        tensors = [x for x in values if isinstance(x, torch.Tensor)]
        before = self._before if len(self._before) == len(tensors) else [(None, None, False)] * len(tensors)
        pairs = list(zip(tensors, before, strict=True))
        same = [ref is not None and ref() is x and _version(x) == version for x, (ref, version, _) in pairs]
        self._before = [(weakref.ref(x), _version(x), stays) for x, stays in zip(tensors, same, strict=True)]
        return any(stayed and not stays for (_, (_, _, stayed)), stays in zip(pairs, same, strict=True))


def _noted(values: list) -> list[tuple]:
    """Values with what tells later whether they were overwritten in the meantime."""
    return [(x, _version(x)) for x in values]


def _version(x: object) -> int | None:
    return x._version if isinstance(x, torch.Tensor) and not x.is_inference() else None


def _all_equal(groups: list[tuple[list, list[tuple]]]) -> list[bool]:
    """For each list of values, whether it is what was noted; with one read of the device at most."""
    answers, waiting = [], []
    for values, noted in groups:
        found = list(map(_is_still, values, noted))
        answers.append(len(values) == len(noted) and not any(x is False for x in found))
        if answers[-1]:
            waiting += [(len(answers) - 1, x) for x in found if isinstance(x, torch.Tensor)]
    if waiting:
        device = waiting[0][1].device
        for (i, _), same in zip(waiting, torch.stack([x.to(device) for _, x in waiting]).tolist(), strict=True):
            answers[i] &= same
    return answers


def _is_still(x: object, noted: tuple) -> bool | torch.Tensor:
    y, version = noted
    return equal(x, y) if _version(y) == version else False


def equal(a: object, b: object) -> bool | torch.Tensor:
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

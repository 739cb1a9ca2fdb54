"""What the latents among a transformer's arguments are for: how many conds, and whether all calls have the same."""

from collections.abc import Mapping

import torch

from ...engine.tensors import Tensors
from .families import DiffusersFamily
from .streams import equal

LOOKS = 2  # evaluations in which latents are compared: videos that begin with the same noise differ after a step


def latents_of(family: DiffusersFamily, arguments: Mapping, channels: tuple[int, int] | None = None) -> Tensors:
    """The latents among the arguments of a call, in the order of the outputs that are for them.

    Args:
        channels: How many the model takes and how many it gives, where its config says so. What it takes more of is
            there to guide it (InstructPix2Pix, image to video), and differs between conds.
    """
    return tuple(_leading(x, channels) for tensors in _by_argument(family, arguments) for x in tensors)


def names_of(family: DiffusersFamily, arguments: Mapping) -> tuple[str, ...]:
    """Names of the parts of a latent that has several, in the order of `latents_of`.

    Empty where an argument brings several tensors: these are the items of a batch, and no parts of a video.
    """
    found = zip(family.parts, _by_argument(family, arguments), strict=False)
    counts = {name: len(tensors) for name, tensors in found if tensors}
    return tuple(counts) if len(counts) > 1 and set(counts.values()) == {1} else ()


def _by_argument(family: DiffusersFamily, arguments: Mapping) -> list[Tensors]:
    found = [arguments.get(name) for name in family.latents]
    values = [value if isinstance(value, (list, tuple)) else [value] for value in found]
    return [tuple(x for x in value if isinstance(x, torch.Tensor)) for value in values]


def channels_of(module: torch.nn.Module) -> tuple[int, int] | None:
    """How many channels a model takes and gives, None where its config does not say that it takes more."""
    config = getattr(module, "config", None)
    taken, given = (getattr(config, name, None) for name in ("in_channels", "out_channels"))
    return (taken, given) if isinstance(taken, int) and isinstance(given, int) and given < taken else None


def _leading(x: torch.Tensor, channels: tuple[int, int] | None) -> torch.Tensor:
    """The leading channels of a latent, as many as the model gives, where its shape leaves no doubt which they are."""
    places = [d for d in range(1, x.ndim) if channels is not None and x.shape[d] == channels[0]]
    return x.narrow(places[0], 0, channels[1]) if x.ndim > 3 and len(places) == 1 else x


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


def lists_in(latents: Tensors) -> int:
    """The same of a pipeline that gives a list of latents: all of one cond, then all of the next (Z-Image)."""
    for n in range(len(latents), 1, -1):
        each = len(latents) // n
        if len(latents) % n == 0 and all(equal(x, latents[i % each]) for i, x in enumerate(latents)):
            return n
    return 1


def _repeats(x: torch.Tensor, n: int) -> bool:
    first, *others = x.chunk(n)
    return all(torch.equal(first, other) for other in others)


class Latents:
    """The latents of a run's calls. They are compared in the first evaluations only, because that reads the device."""

    def __init__(self):
        self._first: Tensors = ()  # of the evaluation's first call, one cond's
        # by stream and rows: how often compared, how many conds are in a latent's rows and how many in the list
        self._found: dict[tuple, tuple[int, int, int]] = {}
        self._apart = False  # the calls of an evaluation are for different latents (tiles, two videos)

    def begin(self, name: str, latents: Tensors) -> Tensors | None:
        """An evaluation begins with this call: the latent that it is for, None where its calls do not share one."""
        self._first = ()
        self.look(name, latents)
        return None if self._apart else self._of_one_cond(name, latents)

    def look(self, name: str, latents: Tensors) -> None:
        """Compare the latents of a call with one another and with the first call's."""
        looks, *_ = self._found.get(self._key(name, latents), (0,))
        if looks < LOOKS:
            self._found[self._key(name, latents)] = looks + 1, conds_in(latents), lists_in(latents)
            one = self._of_one_cond(name, latents)
            self._first = self._first or one
            same = len(one) == len(self._first) and all(map(equal, one, self._first))
            self._apart |= not same

    def found(self, name: str, latents: Tensors) -> tuple[int, int]:
        """How many conds a call has in its rows, and how many in the list of its latents."""
        return self._found[self._key(name, latents)][1:]

    def conds(self, name: str, latents: Tensors) -> int:
        """How many conds a latent of a call has in its rows."""
        return self.found(name, latents)[0]

    def _of_one_cond(self, name: str, latents: Tensors) -> Tensors:
        conds, lists = self.found(name, latents)
        return tuple(x.chunk(conds)[0] for x in latents[: len(latents) // lists])

    @staticmethod
    def _key(name: str, latents: Tensors) -> tuple:
        return name, tuple(x.shape[:1] for x in latents)


def alike(a: Tensors, b: Tensors) -> bool:
    """Whether latents have the same form and lie on the same device."""
    return [(x.shape, x.device) for x in a] == [(x.shape, x.device) for x in b]


def is_near(a: Tensors, b: Tensors) -> bool:
    """Whether latents could be a step apart; two of different noise are 1.4 times their norm apart."""
    return alike(a, b) and all(bool((x - y).norm() < 0.7 * y.norm()) for x, y in zip(a, b, strict=True))

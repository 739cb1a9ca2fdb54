"""One decision for several processes that make a video together: what each knows is exchanged, and the worst counts.

A model that is spread over processes hangs, or its video is spoilt without a word, where one of them computes an
evaluation and another leaves it out. So nothing that a decision rests on may be one process's own. In every evaluation
each of them gives the same few numbers, and all go on with the largest of each. The largest is the careful one,
whatever the processes see: the same output, a shard, another cond or another video.

Where more can be made of what each knows than the largest of it, all are told what each has told (see `pooled`). That
goes with the same exchange: each process fills its own row of a table that holds -inf elsewhere.
"""

import math
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from .config import Config

OPINIONS = 9  # most numbers of a method
MEMORY, OTHER = 2.0, 1.0  # why a process gives up; among several reasons the larger number counts
_NOTHING = -math.inf  # what a process says that knows nothing
_WHY = {
    MEMORY: "another process has no memory for what has to be stored, see its record",
    OTHER: "another process has given up, see its record",
}
NO_TAPE = "another process has no memory to keep the outputs of the run"


class Worst(Protocol):
    """What a host gives to a run whose decisions other processes share.

    Attributes:
        size: How many processes there are, this one included.
        places, place: A number for each process that is no other's, and below which they all are.
    """

    size: int
    places: int
    place: int

    def __call__(self, numbers: torch.Tensor) -> torch.Tensor:
        """The largest of each number over the processes; 1-D fp32 on the CPU, as long in each of them.

        Raises:
            RuntimeError: a process does not answer.
        """


class Apart(RuntimeError):
    """The processes do not do the same. All of them raise it in the same evaluation."""


@dataclass(frozen=True)
class Joint:
    """What holds for all processes in an evaluation.

    Attributes:
        level: Its noise level; None where the host gives none.
        inactive: Why all processes compute everything from here on, or None.
        untaped: Why no sampler is started again from here on, or None.
        opinion: The numbers of the method.
        told: What each process has told, (processes, length); None where one has told nothing.
    """

    level: float | None
    inactive: str | None
    untaped: str | None
    opinion: list[float]
    told: torch.Tensor | None = None


class Agreement:
    """What a run exchanges with the other processes, once per evaluation until all of them have given up.

    Args:
        worst: See `Worst`.
        settings: Whatever must be the same everywhere: config, schedule.
        length: How many numbers each process may tell that all others are to hear, and not the largest only.

    Attributes:
        wish: Why this process gives up, told to the others in the next evaluation.
        untaped: Why it can't start its sampler again.
        sees_level: Whether the newest level was what this process sees. One whose tokens are all of a kept first frame
            sees 0; what it measures at that level says nothing.
    """

    def __init__(self, worst: Worst, settings: Iterable, length: int = 0):
        self._worst, self._settings = worst, float(zlib.crc32(repr(tuple(settings)).encode()) % 2**24)
        self.wish: str | None = None
        self.untaped: str | None = None
        self._kind = OTHER
        self._evaluation, self._over = -1, False
        self.sees_level = True
        self._length = length

    def is_due(self, evaluation: int) -> bool:
        """Whether nothing was exchanged for this evaluation yet."""
        return not self._over and evaluation > self._evaluation

    def give_up(self, reason: str, kind: float = OTHER) -> None:
        """Wish that everything is computed from the next evaluation on; the first reason counts."""
        if self.wish is None:
            self.wish, self._kind = reason, kind

    def exchange(
        self,
        evaluation: int,
        computed: int,
        level: float | None,
        opinion: Sequence[float],
        told: Sequence[float] = (),
    ) -> Joint:
        """Tell the others what this process knows, and hear what holds for all.

        Args:
            evaluation: The one that begins.
            computed: How many have been computed so far.
            level: Its noise level, as this process sees it.
            opinion: What the method has measured, larger for worse; at most `OPINIONS` numbers.
            told: What all are to hear: as many numbers as was said at first, or nothing.

        Raises:
            Apart: another process has other settings, is elsewhere in its run, or has computed what this one left out.
            RuntimeError: a process does not answer.
        """
        self._evaluation = evaluation
        given_up = self._kind if self.wish is not None else 0.0
        own = _NOTHING if level is None else level
        numbers = [own, given_up, float(self.untaped is not None), *opinion]
        (largest, *heard), told_by_all = self._of_all(numbers, evaluation, computed, told)
        self.sees_level = largest == _fp32(own)
        self._over = heard[0] > 0
        inactive = self.wish or _WHY[heard[0]] if self._over else None
        untaped = self.untaped or NO_TAPE if heard[1] > 0 else None
        joint = level if self.sees_level else largest  # a level may have more digits than fp32
        return Joint(joint, inactive, untaped, heard[2:], told_by_all)

    def differs(self, at: int, level: bool, latent: bool) -> tuple[bool, bool]:
        """Whether, in any process, a sampler that was started again came to evaluation `at` with another level or
        latent than before."""
        found, _ = self._of_all([float(level), float(latent)], -1 - at, 0)
        return found[0] > 0, found[1] > 0

    def _of_all(
        self, numbers: list[float], place: int, computed: int, told: Sequence[float] = ()
    ) -> tuple[list[float], torch.Tensor | None]:
        same = [self._settings, float(place), float(computed)]
        numbers = [math.inf if math.isnan(x) else x for x in numbers]
        numbers += [_NOTHING] * (3 + OPINIONS - len(numbers))
        own = torch.tensor([*numbers, *same, *(-x for x in same)], dtype=torch.float32, device="cpu")
        heard = self._worst(torch.cat([own, self._told(told)]) if self._length else own)
        found = heard[: len(own)].tolist()
        largest, smallest = found[len(numbers) : -3], [-x for x in found[-3:]]
        if largest[0] != smallest[0]:
            raise Apart(
                "another process runs Foresight with other settings, another schedule or another version: give all "
                f"{self._worst.size} processes the same"
            )
        if largest != smallest:
            what = f"evaluation {place}, {computed} computed so far" if place >= 0 else f"a repeat of {-1 - place}"
            raise Apart(
                f"the {self._worst.size} processes have gone apart: this one is in {what}, another is not. All of them "
                "must call the model for the same evaluations and conds"
            )
        return found[: len(numbers)], self._told_by_all(heard[len(found) :])

    def _told(self, told: Sequence[float]) -> torch.Tensor:
        """What this process tells, in its own row; the other rows are -inf, so that the largest is what was told."""
        table = torch.full((self._worst.places, self._length), _NOTHING, dtype=torch.float32, device="cpu")
        if told:
            table[self._worst.place] = torch.tensor(told, dtype=torch.float32, device="cpu")
        return table.flatten()

    def _told_by_all(self, heard: torch.Tensor) -> torch.Tensor | None:
        """The rows of all processes, None where one has told nothing: half of it would mislead."""
        if not self._length:
            return None
        table = heard.view(-1, self._length)
        table = table[table[:, 0] > _NOTHING]
        return table if len(table) == self._worst.size else None


def _fp32(x: float) -> float:
    return torch.tensor(x, dtype=torch.float32).item()


def settings_of(config: Config, levels: Sequence[float]) -> tuple:
    """What of a run's settings must be the same in all processes.

    Each has a memory of its own, and who computes noise levels may make other last digits.
    """
    own = "cache_device", "cache_budget_gb"
    settings = [(name, value) for name, value in config.to_dict().items() if name not in own]
    return (*settings, *(f"{level:.4g}" for level in levels))

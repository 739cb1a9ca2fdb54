"""What a sampler was given in each evaluation, so that it can be started again with better outputs: replay.

A sampler is a function of its first latent, its noise levels, its seed and the outputs that it is given. Say that the
evaluations between n and m were left out, and that m is computed now. The outputs left out are then known better, on
the line between D_n and D_m. They take the place of the forecasts, the host starts the sampler again from its
beginning, and evaluations 0 to m are answered from here, without the model. So the sampler comes to m with the latent,
and with the memory of earlier outputs, that better forecasts would have led it to, whatever its order.

That a sampler is such a function is checked: as long as it is given the same, it must come with the same latents. The
first check is at the second evaluation of a run, when other noise than before spoils nothing yet.
"""

import math
from collections.abc import Hashable
from dataclasses import dataclass

import torch

from .agreement import Agreement
from .compiler import outside_graphs
from .tensors import Tensors

NO_ROOM = "no memory to keep the outputs of the run"
OWN_NOISE = "the sampler draws noise that no seed repeats"
NO_NUMBERS = (
    "the latent is not finite (NaN or infinity): the model's outputs are not, or its dtype is too narrow for it"
)


class Restart(BaseException):
    """Asks the host to start the sampler again. No `except Exception` of a sampler may swallow it.

    Args:
        taken_back: How many of the newest evaluations are done again.
    """

    def __init__(self, taken_back: int = 0):
        super().__init__()
        self.taken_back = taken_back


@dataclass
class _Entry:
    """One evaluation; what it gave the sampler is filled in at its end.

    Attributes:
        arrived: Noise level and sum of squares of the latent that came, (2,) on the device.
        u: Position in the schedule.
    """

    arrived: torch.Tensor
    trajectory: Hashable = None
    u: float = 0.0
    left_out: bool = False
    given: Tensors = ()


class Tape:
    """The evaluations of a run, in order.

    Args:
        amplifies: How much more than Euler's method the sampler makes of errors that are there in every other output.
        order: How many outputs a step of the sampler goes by, where it makes much of the last ones; else 1.
        most_taken: How much more than Euler's step one of its steps takes of an output at most, where that renews the
            noise (see `moves.Move`); not known by default.
        until: Position of the last evaluation that is kept; by default all are. A tape that ends early is there to take
            back what was left out, and corrects nothing.

    Attributes:
        corrects: Whether it is there to correct forecasts.
        broken: Why the sampler is not started again any more, or None.
        restarts: How often it was started again with better outputs.
        agreement: With other processes, whose samplers are started again in the same evaluations; None without.
    """

    def __init__(self, amplifies: float = 1.0, order: int = 1, until: float = math.inf, most_taken: float = math.inf):
        self.amplifies, self.order, self._until, self.most_taken = amplifies, order, until, most_taken
        self.corrects = until == math.inf
        self.broken: str | None = None
        self.restarts = 0
        self.agreement: Agreement | None = None
        self._entries: list[_Entry] = []
        self._at = 0  # evaluations since the sampler was started
        self._same = 1  # up to this entry, the sampler must come with the latents of its last start
        self._checked = False

    @property
    def price(self) -> float:
        """How much more of an output than Euler's a step is expected to take, before one was seen."""
        return 1.0 if math.isinf(self.most_taken) else self.most_taken

    @property
    def nbytes(self) -> int:
        """Bytes held now."""
        return sum(x.nbytes for entry in self._entries for x in entry.given)

    def give_up(self, why: str) -> None:
        """Start the sampler no more, and give all memory back."""
        self.broken, self._entries = self.broken or why, []

    def run_out(self) -> None:
        """There is no more memory: give up, with other processes at once with all of them."""
        if self.agreement is None:
            self.give_up(NO_ROOM)
        else:
            self.agreement.untaped = NO_ROOM

    @outside_graphs()
    def answer(self, level: torch.Tensor, latent: Tensors) -> tuple[Tensors, Hashable] | None:
        """What the sampler was given in the evaluation that begins, as fresh tensors, and on which trajectory.

        None where the model has to say.

        Raises:
            Restart: the sampler is to be started again, in order to check it.
        """
        index, self._at = self._at, self._at + 1
        if self.broken:
            return None
        squares = sum(x.detach().float().square().sum() for x in latent)
        arrived = torch.stack([level.detach().float().max(), squares])
        if index < len(self._entries):
            self._compare(index, arrived)
        if index < len(self._entries) and self._entries[index].given:
            return self._answer(self._entries[index], latent[0].device)
        if not self.broken and index == len(self._entries):
            self._entries.append(_Entry(arrived))
        if index == 1 and not self._checked and self.corrects:  # else it may never be started again
            self._checked, self._at = True, 0
            raise Restart
        return None

    def _compare(self, index: int, arrived: torch.Tensor) -> None:
        """Compare what comes with what came before the sampler was started again; where it differs, the tape ends."""
        before = self._entries[index].arrived
        level, squares, level_before, squares_before = torch.cat([arrived, before]).tolist()
        other_level, other_latent = level != level_before, squares != squares_before
        if self.agreement is not None:
            other_level, other_latent = self.agreement.differs(index, other_level, other_latent)
        if other_level:
            del self._entries[index:]
        elif index <= self._same and other_latent:
            self.give_up(OWN_NOISE if math.isfinite(squares) else NO_NUMBERS)
        else:
            self._entries[index].arrived = arrived

    def _answer(self, entry: _Entry, device: torch.device) -> tuple[Tensors, Hashable]:
        return tuple(x.to(device, copy=True) for x in entry.given), entry.trajectory

    def keeps(self, steps: int) -> int:
        """How many of so many evaluations it will have kept at the most."""
        return steps if self.corrects else min(steps, math.floor(self._until) + 1)

    @outside_graphs()
    def note(self, trajectory: Hashable, u: float, left_out: bool, given: Tensors, device: torch.device | None) -> None:
        """Write down what the sampler is given in this evaluation; copies wait on `device`, None for where it is."""
        if u > self._until:
            self.give_up("its part of the run is over")
        if self._entries and not self._entries[-1].given:
            entry = self._entries[-1]
            entry.trajectory, entry.u, entry.left_out = trajectory, u, left_out
            entry.given = tuple(x.detach().to(device or x.device, copy=True) for x in given)

    @outside_graphs()
    def mend(self) -> None:
        """Replace what was left out just before the newest evaluation, which is computed, and start the sampler again.

        Raises:
            Restart: something was replaced.
        """
        before, gap = self._gap(len(self._entries) - 1)
        if not gap:
            return
        entry, newest = self._entries[before], self._entries[-1]
        for left_out in (self._entries[i] for i in gap):
            share = (left_out.u - entry.u) / (newest.u - entry.u) if newest.u > entry.u else 1.0
            ends = zip(entry.given, newest.given, strict=True)
            left_out.given = tuple(a.to(b.device).lerp(b, share) for a, b in ends)
        self._same, self._at, self.restarts = gap[-1], 0, self.restarts + 1
        raise Restart

    def take_back(self) -> int:
        """Forget what was left out before the evaluation computed last, and that one: how many that are, 0 for none.

        The sampler then has to be started again.
        """
        last = len(self._entries) - 2  # the one that begins is there already
        before, gap = self._gap(last)
        others_between = last - before != len(gap) + 1  # and go on from what is known
        if not gap or others_between or self._entries[last].left_out:
            return 0
        self._same, self._at = before, 0
        del self._entries[before + 1 :]
        return last - before

    def _gap(self, last: int) -> tuple[int, list[int]]:
        """The computed entry before entry `last` on its trajectory, and those left out since, newest first."""
        gap = []
        for index in reversed(range(max(last, 0))):
            if self._entries[index].trajectory != self._entries[last].trajectory:
                continue
            if not self._entries[index].left_out:
                return index, gap
            gap.append(index)
        return -1, []

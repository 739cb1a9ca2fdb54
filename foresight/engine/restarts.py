"""The side of a run for hosts that can start the sampler again: what it was given, and when to start it."""

from collections.abc import Callable

import torch

from .agreement import Agreement
from .policy import Decision, Policy
from .possible import decide
from .schedule import Schedule
from .stats import Evaluation, Kind, RunStats
from .tape import Restart, Tape
from .tensors import Tensors, is_out_of_memory


class Restarts:
    """What `Run` answers such a host. It has no state of its own."""

    stats: RunStats
    kind: Kind
    _policy: Policy
    _tape: Tape | None
    _schedule: Schedule
    evaluation: int
    _began: float | None
    _agreement: Agreement | None
    deactivate: Callable[[str], None]

    @property
    def may_restart(self) -> bool:
        """Whether the sampler may be started again in this run."""
        return self._tape is not None and self._policy.replays and not self.stats.inactive

    def _decide(self, row: Evaluation) -> Decision:
        """What is done in the evaluation that begins; `row` is its record, not among the others yet.

        Raises:
            Restart: first, some of the last ones are done again.
        """
        try:
            return decide(self._policy, self._schedule, row)
        except Restart as restart:
            self.evaluation -= 1 + restart.taken_back
            self._began = None  # nobody waits for the end of what was begun
            self.stats.take_back(restart.taken_back)
            raise

    def give(self, given: Tensors) -> None:
        """Be told what the sampler gets in this evaluation in the end; for hosts that can start it again.

        Raises:
            Restart: it should be started again.
        """
        if self.stats.inactive or self.kind == "plain":
            return
        try:
            self._policy.given(given)
        except RuntimeError as error:
            if self._agreement is not None or not is_out_of_memory(error):  # others do not stop here
                raise
            self._tape.give_up("out of memory while keeping the outputs of the run")
        finally:
            self.note_bytes()
            if self._tape.corrects:
                self.stats.restarts, self.stats.uncorrected = self._tape.restarts, self._tape.broken

    def answer(self, level: torch.Tensor, latent: Tensors) -> Tensors | None:
        """What the sampler was given in the evaluation that begins, before it was started again; None if it is new.

        Raises:
            Restart: the sampler should be started again, to check it.
        """
        return None if self.stats.inactive else self._unless_out_of_memory(self._policy.answer, level, latent)

    def restart_no_more(self, why: str) -> None:
        """Do not start the sampler again from here on, since not all that it calls would begin again with it."""
        if self._tape is not None:
            self._tape.give_up(why)
            self.stats.uncorrected = self._tape.broken if self._tape.corrects else self.stats.uncorrected

    def _unless_out_of_memory(self, step: Callable, *args) -> Tensors | None:
        """Do this; where memory runs out, all is computed from here on: the video matters more."""
        try:
            return step(*args)
        except RuntimeError as error:
            if self._agreement is not None or not is_out_of_memory(error):
                raise  # other processes do not stop here
            self.deactivate("out of memory while looking at the latent")
            return None

"""What the forecasts of a run have missed, and how the sampler went on: from the device to the next decision."""

import math
from collections.abc import Collection, Sequence

import torch

from .blend import Blend
from .history import History
from .moves import Move
from .stats import Evaluation
from .tensors import Tensors
from .trajectory import Trajectory

_NOTHING = -math.inf  # in an opinion


class Evidence:
    """What was measured since the last decision.

    Args:
        blend: Where the outputs are conds, what finds out how much of each the sampler takes; else None.
        together: Other processes share the decisions: `opinion` and `agree` come before `weigh`.
    """

    def __init__(self, blend: Blend | None, together: bool = False):
        self._blend, self._together = blend, together
        self._arriving: torch.Tensor | None = None
        self._sums: list[float] | None = None
        self._errors: tuple[list[float], bool] = [], True  # measured and not learned from yet; whether all had a slope
        self._row: Evaluation | None = None  # the record of the evaluation that has measured them
        self._missed_by: Trajectory | None = None  # whose errors these are
        self._agreed: tuple[Move | None, float | None] | None = None

    def arrive(self, now: Trajectory, latent: Tensors) -> None:
        """An evaluation begins with this latent."""
        self._arriving = (self._blend or now.track).measure(latent)

    def measured(self, trajectories: Collection[Trajectory]) -> list[torch.Tensor]:
        """See `Policy.measured`."""
        errors = [history.error.reshape(1) for trajectory in trajectories for history in _measured(trajectory)]
        return errors if self._arriving is None else [*errors, self._arriving]

    def settle(self, values: list[float], trajectories: Collection[Trajectory], evaluation: Evaluation | None) -> None:
        """See `Policy.settle`."""
        values = list(values)
        for trajectory in trajectories:
            measured = _measured(trajectory)
            errors, sloped = [values.pop(0) for _ in measured], all(history.sloped for history in measured)
            for history in measured:
                history.error = None
            if errors and (self._blend is not None or self._together):
                self._errors, self._missed_by, self._row = (errors, sloped), trajectory, evaluation
            elif errors:
                trajectory.learn(errors, sloped)
                evaluation.note_missed(max(errors))
        if self._arriving is not None:
            self._sums, self._arriving = values, None

    def weigh(self, now: Trajectory, level: float | None) -> None:
        """Take in how the sampler came to the evaluation that begins at `level`, and what that says of errors."""
        move, error = self._agreed or self._found(now, level)
        if move is not None:
            now.take(move)
        if self._blend is not None:
            now.euler &= move is not None  # what was not seen is not paid back
            if error is not None and now.histories:
                now.learn([error], self._errors[1])
                self._note(error)
            self._errors, self._row = ([], True), None
        self._sums = self._agreed = None

    def _found(self, now: Trajectory, level: float | None) -> tuple[Move | None, float | None]:
        """The move, None if it was not seen, and the error of what the sampler was given, None if there is none."""
        seen = self._sums is not None
        move = (self._blend or now.track).judge(self._sums, level) if seen else None
        errors, _ = self._errors
        if not errors:
            return move, None
        return move, max(errors) if self._blend is None else self._blend.guided(errors)

    def _note(self, error: float) -> None:
        if self._row is not None:
            self._row.note_missed(error)

    def opinion(self, now: Trajectory, level: float | None) -> list[float]:
        """See `Policy.opinion`: the error, whether it had no slope, and how the sampler came here."""
        move, error = self._found(now, level)
        missed = [_NOTHING] * 2 if error is None else [error, not self._errors[1]]
        if not all(map(math.isfinite, self._errors[0])):
            missed[0] = math.inf
        if move is None:
            return [*missed, *[_NOTHING] * 4]
        return [*missed, not move.continues, not move.euler, move.price, move.idle]

    def agree(self, now: Trajectory, opinion: Sequence[float]) -> None:
        """See `Policy.agree`."""
        error, unsloped, broken, bent, price, idle = opinion[:6]
        move = None if price == _NOTHING else Move(not broken, not bent, price, idle > 0)
        self._errors = [], not unsloped > 0
        self._agreed = move, None if error == _NOTHING else error
        if self._blend is None and error != _NOTHING:
            (self._missed_by or now).learn([error], self._errors[1])
            self._note(error)
        self._missed_by = None

    def drop(self) -> None:
        """Forget all of it."""
        self._errors, self._missed_by, self._row = ([], True), None, None
        self._arriving = self._agreed = None


def _measured(trajectory: Trajectory) -> list[History]:
    return [history for history in trajectory.histories.values() if history.error is not None]

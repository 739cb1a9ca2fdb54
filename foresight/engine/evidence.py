"""What the forecasts of a run have missed, and how the sampler went on: from the device to the next decision."""

import math
from collections.abc import Collection, Sequence

import torch

from .blend import Blend
from .history import History, by_part
from .moves import Move
from .pooled import MOST_PARTS
from .stats import Evaluation
from .tensors import Tensors
from .trajectory import Trajectory

_NOTHING = -math.inf  # in an opinion


class Evidence:
    """What was measured since the last decision.

    Args:
        blend: Where the outputs are conds, what finds out how much of each the sampler takes; else None.
        together: Other processes share the decisions: `opinion` and `agree` come before `weigh`.
        parts: How many the latent has. The worst one's error decides; the record has each one's.
        most_taken: See `tape.Tape`.
    """

    def __init__(self, blend: Blend | None, together: bool = False, parts: int = 1, most_taken: float = math.inf):
        self._blend, self._together, self._parts, self._most_taken = blend, together, parts, most_taken
        self._arriving: torch.Tensor | None = None
        self._sums: list[float] | None = None
        # by part, measured and not learned from yet; whether all had a slope; of how many outputs they are the worst
        self._errors: tuple[list[float], bool, int] = [], True, 0
        self._row: Evaluation | None = None  # the record of the evaluation that has measured them
        self._missed_by: Trajectory | None = None  # whose errors these are
        self._agreed: tuple[Move | None, list[float]] | None = None

    def arrive(self, now: Trajectory, latent: Tensors) -> None:
        """An evaluation begins with this latent."""
        self._arriving = (self._blend or now.track).measure(latent)

    def measured(self, trajectories: Collection[Trajectory]) -> list[torch.Tensor]:
        """See `Policy.measured`."""
        errors = [history.error for trajectory in trajectories for history in _measured(trajectory)]
        return errors if self._arriving is None else [*errors, self._arriving]

    def settle(self, values: list[float], trajectories: Collection[Trajectory], evaluation: Evaluation | None) -> None:
        """See `Policy.settle`."""
        values = list(values)
        for trajectory in trajectories:
            measured = _measured(trajectory)
            if not measured:
                continue
            outputs = [[values.pop(0) for _ in range(len(history.error))] for history in measured]
            errors, sloped = by_part(outputs, self._parts), all(history.sloped for history in measured)
            for history in measured:
                history.error = None
            self._errors, self._missed_by, self._row = (errors, sloped, len(outputs)), trajectory, evaluation
            if self._blend is None and not self._together:  # already here: no decision follows the last evaluation
                self._note(errors)
        if self._arriving is not None:
            self._sums, self._arriving = values, None

    def weigh(self, now: Trajectory, level: float | None) -> None:
        """Take in how the sampler came to the evaluation that begins at `level`, and what that says of errors."""
        move, errors = self._agreed or self._found(now, level)
        if errors:
            (self._missed_by or now).learn(errors, self._errors[1])
            self._note(errors)
        if move is not None:
            now.take(move, self._most_taken)  # this forgets all where the run does not go on
        if self._blend is not None:
            now.euler &= move is not None  # what was not seen is not paid back
        self._errors, self._missed_by, self._row = ([], True, 0), None, None
        self._sums = self._agreed = None

    def _found(self, now: Trajectory, level: float | None) -> tuple[Move | None, list[float]]:
        """The move, None if it was not seen, and by part the errors of what the sampler was given, if there are any."""
        seen = self._sums is not None
        move = (self._blend or now.track).judge(self._sums, level) if seen else None
        errors, _, outputs = self._errors
        return move, self._blend.guided(errors, outputs) if errors and self._blend is not None else errors

    def _note(self, errors: list[float]) -> None:
        if self._row is not None:
            self._row.note_missed(errors)

    def opinion(self, now: Trajectory, level: float | None) -> list[float]:
        """See `Policy.opinion`: the error, whether it had no slope, how the sampler came here, each part's error."""
        move, errors = self._found(now, level)
        missed = [max(errors), not self._errors[1]] if errors else [_NOTHING] * 2
        if not all(map(math.isfinite, self._errors[0])):
            missed[0] = math.inf
        came = [_NOTHING] * 5
        if move is not None:
            came = [not move.continues, not move.euler, move.price, move.idle, move.noisy]
        if len(errors) != MOST_PARTS:  # one that can't tell them apart keeps all from doing so
            errors = [math.inf if errors else _NOTHING] * MOST_PARTS
        return [*missed, *came, *errors]

    def agree(self, opinion: Sequence[float], told: torch.Tensor | None = None) -> None:
        """See `Policy.agree`."""
        error, unsloped, broken, bent, price, idle, noisy, *parts = opinion
        move = None if price == _NOTHING else Move(not broken, not bent, price, idle > 0, noisy > 0)
        self._errors = [], not unsloped > 0, 0
        errors = [] if error == _NOTHING else parts if all(map(math.isfinite, (error, *parts))) else [error]
        if told is not None and self._blend is not None:
            move, errors = self._pooled(told, move, errors)
        self._agreed = move, errors

    def _pooled(self, told: torch.Tensor, move: Move | None, errors: list[float]) -> tuple[Move | None, list[float]]:
        """The same as far as it is known of the blend whose streams lie in several processes."""
        found = self._blend.judge_pooled(told)
        if found is None:
            return move, errors
        move, of_parts = found
        if not errors or not of_parts:  # nothing was measured, or not everywhere
            return move, errors
        return move, of_parts if len(of_parts) == len(errors) else [max(of_parts)]

    def drop(self) -> None:
        """Forget all of it."""
        self._errors, self._missed_by, self._row = ([], True, 0), None, None
        self._arriving = self._agreed = None


def _measured(trajectory: Trajectory) -> list[History]:
    return [history for history in trajectory.histories.values() if history.error is not None]

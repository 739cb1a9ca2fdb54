"""What the forecasts of a run have missed, and how the sampler went on: from the device to the next decision."""

from collections.abc import Collection

import torch

from .blend import Blend
from .history import History
from .tensors import Tensors
from .trajectory import Trajectory

GUIDED = 4.0  # where only the errors of conds are known, that of the guided output is taken to be this much larger


class Evidence:
    """What was measured since the last decision.

    Args:
        blend: Where the outputs are conds, what finds out how much of each the sampler takes; else None.
    """

    def __init__(self, blend: Blend | None):
        self._blend = blend
        self._arriving: torch.Tensor | None = None
        self._sums: list[float] | None = None
        self._unsettled: tuple[list[float], bool] = [], False  # measured before the blend is known

    def arrive(self, now: Trajectory, latent: Tensors) -> None:
        """An evaluation begins with this latent."""
        self._arriving = (self._blend or now.track).measure(latent)

    def measured(self, trajectories: Collection[Trajectory]) -> list[torch.Tensor]:
        """See `Policy.measured`."""
        errors = [history.error.reshape(1) for trajectory in trajectories for history in _measured(trajectory)]
        return errors if self._arriving is None else [*errors, self._arriving]

    def settle(self, values: list[float], trajectories: Collection[Trajectory]) -> None:
        """See `Policy.settle`."""
        values = list(values)
        for trajectory in trajectories:
            measured = _measured(trajectory)
            errors, sloped = [values.pop(0) for _ in measured], all(history.sloped for history in measured)
            for history in measured:
                history.error = None
            if errors and self._blend is not None:
                self._unsettled = errors, sloped
            elif errors:
                trajectory.learn(errors, sloped)
        if self._arriving is not None:
            self._sums, self._arriving = values, None

    def weigh(self, now: Trajectory, level: float | None) -> None:
        """Take in how the sampler came to the evaluation that begins at `level`, and what that says of errors."""
        if self._sums is not None:
            now.take((self._blend or now.track).judge(self._sums, level))
        if self._blend is not None:
            self._learn_of_blend(now)
        self._sums = None

    def _learn_of_blend(self, now: Trajectory) -> None:
        """What the last evaluation has measured, now that it is known how much of each output the sampler took."""
        (errors, sloped), self._unsettled = self._unsettled, ([], False)
        now.euler &= self._sums is not None  # what was not seen is not paid back
        if errors and now.histories:
            unknown = self._sums is None or self._blend.error is None
            guided = max(errors) * (GUIDED if len(errors) > 1 else 1.0) if unknown else self._blend.error
            now.learn([guided], sloped)

    def drop(self) -> None:
        """Forget all of it."""
        self._unsettled, self._arriving = ([], False), None


def _measured(trajectory: Trajectory) -> list[History]:
    return [history for history in trajectory.histories.values() if history.error is not None]

"""Where an evaluation stands in its run: noise levels, steps, and what the sampler makes of an output there."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Step:
    """Where an evaluation stands in its run.

    Attributes:
        position: u, in steps of the schedule from its beginning.
        noise: Share of noise in the sampler's latent, 0..1 (sigma of a flow model).
        share: How much of that share the step takes away.
        a: The sampler's step is x <- a x + b D; only a / b and the ratios of successive b matter.
        b: See `a`.
    """

    position: float
    noise: float
    share: float
    a: float
    b: float


class Schedule:
    """A run's noise levels, as far as the host tells them.

    Args:
        levels: First to last (steps + 1 values, falling), None if unknown.
        steps: Number of denoising steps, if only that is known.
        noise: Share of noise (0..1) in the sampler's latent at a level; the level over the first one by default.
    """

    def __init__(
        self, levels: Sequence[float] | None, steps: int | None = None, noise: Callable[[float], float] | None = None
    ):
        self._levels = tuple(levels) if levels is not None else None
        self.steps = len(self._levels) - 1 if self._levels is not None else steps
        self._noise = noise
        self._position, self._level, self._share = -1.0, None, 0.02  # where the levels are unknown: u, the last ones
        self.first: float | None = None  # level that was seen

    def step(self, level: float | None, evaluation: int) -> int:
        """The denoising step whose level this is; evaluations are not steps, a second-order sampler has more."""
        if self._levels is None or level is None:
            return evaluation
        return sum(entry >= level * (1 - 1e-4) for entry in self._levels) - 1

    def place(self, level: float | None) -> Step:
        """Where the next evaluation stands; once for each, in order."""
        if self.first is None:
            self.first = level
        if self._levels is None or level is None:
            return self._unscheduled(level)
        index = min(max(self.step(level, 0), 0), self.steps - 1)
        here, following = self._levels[index : index + 2]
        within = (here - level) / (here - following) if here > following else 0.0
        a = min(following / level, 1.0) if level else 0.0
        noise = self._noise or (lambda x: x / self._levels[0])
        share = max(0.0, noise(level) - noise(following))
        return Step(index + min(1.0, max(0.0, within)), noise(level), share, a, 1.0 - a)

    def _unscheduled(self, level: float | None) -> Step:
        """The same where the host does not tell its levels: the next step is taken to be like the last one."""
        before, self._level = self._level, level
        if before is None or level is None or level != before:
            self._position += 1
        if level is None:
            return Step(self._position, 0.5, 1 / (self.steps or 50), 1.0, 1.0)
        if before is not None and before > level:
            self._share = (before - level) / self.first
        return Step(self._position, level / self.first, self._share, 1.0, 1.0)

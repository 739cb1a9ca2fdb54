"""How many steps a run has, told from its first noise levels, where the host does not say it (diffusers).

Most schedules are even in time under a flow shift: in step k there is t = t_0 - k d of the time left, 1..0, and

    sigma / (1 - sigma) = shift t / (1 - t).

Three levels tell t_0, d and shift, which is all that there is to know of such a schedule. The fourth shows whether it
is one: of others (Karras, beta) nothing is told.

One that is not even in time looks so at first: linear-quadratic levels (Mochi's, LTX's condition pipeline), whose first
N / 2 steps are even over 0.025 of the noise. Taken for a whole run they would be 20 N steps without a shift.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

NEAR = 0.003  # of a step; a level so far from where it should be, and more, is one of another schedule
ROUNDED = 0.3  # the same where levels are rounded, since the fit goes by three rounded ones
SURE = 0.1  # share of the number of steps that the rounding of the levels may leave open
WHOLE = 0.005  # of a step; a schedule that comes so near to t = 0 ends there, others end a step before, just above it
LINEAR = 0.05, 100  # 2 * 0.025, see above; most steps of such a schedule
EQUAL = 0.001  # of a step; so near to each other are those of linear-quadratic levels, which are fp32
PRECISIONS = 8, 11, 24  # bits of a mantissa: bfloat16, float16 (or whole numbers), float32


@dataclass(frozen=True)
class Even:
    """Steps that are even in time.

    Attributes:
        first: t_0, time left at the first level.
        step: d, time that a step takes.
        shift: Flow shift.
    """

    first: float
    step: float
    shift: float

    @property
    def steps(self) -> int:
        """How many there are from the first level to the end of the run."""
        exact = self.first / self.step
        return round(exact) if abs(exact - round(exact)) < WHOLE else math.ceil(exact)

    def fits(self, k: int, lowest: float, highest: float, near: float) -> bool:
        """Whether the level of step k is one of these steps', within a share of a step: its noise is between two."""
        below, above = (sigma / (sigma + self.shift * (1 - sigma)) for sigma in (lowest, highest))
        expected, around = self.first - k * self.step, near * self.step
        return below - around <= expected <= above + around


class Shown:
    """What the noise levels of a run's first steps show of the others.

    Args:
        most: Steps that a schedule may have.
        listed: What they are likely to be, if the host has seen a list in which the first one stands.

    Attributes:
        even: The even steps that they fit, None where they fit none or leave it open.
        listed: As above; empty from where they are others.
    """

    def __init__(self, most: int, listed: Sequence[float] = ()):
        self.even: Even | None = None
        self.listed = list(listed)
        self._most, self._quadratic = most, None  # the latter: steps, if the levels are linear-quadratic

    @property
    def steps(self) -> int | None:
        """How many there are, None where that is not known."""
        if self.listed:
            return len(self.listed)
        return self._quadratic or (self.even.steps if self.even is not None else None)

    def see(self, levels: Sequence[float], noise: Callable[[float], float] | None) -> bool:
        """Look at the levels so far, whenever there is one more of them; whether they show something new.

        Args:
            levels: Those of the run's first steps, without one missing, falling.
            noise: Share of noise at a level of a flow model, which alone has linear-quadratic levels; else None.
        """
        if self.listed and self.listed[: len(levels)] == list(levels):
            return False
        before, self.listed = self.steps, []
        even = even_of(levels, noise or (lambda level: level / levels[0]), self._most)
        if noise is not None and len(levels) == 3:
            self._quadratic = linear_quadratic(levels, noise)
        elif self._quadratic is not None and len(levels) > self._quadratic:
            self._quadratic = None  # they were even after all
        if (even is None) != (self.even is None) or even is not None and abs(even.steps - self.even.steps) > 1:
            self.even = even  # a number that is off by one is kept: it may be the levels' rounding
            return True
        return self.steps != before


def shifted(t: float, shift: float) -> float:
    """Share of noise at time t, 1..0, under a flow shift."""
    return shift * t / (1 + (shift - 1) * t)


def following_of(levels: Sequence[float]) -> float:
    """The level that comes after these, if steps go on growing or shrinking as the last two did."""
    level, last = levels[-1], levels[-3:]
    steps = [a - b for a, b in zip(last, last[1:], strict=False) if a > b]
    if not steps:
        return level - min(0.02 * levels[0], level)
    growth = min(max(steps[-1] / steps[0], 0.5), 2.0)
    return max(0.0, level - steps[-1] * growth)


def even_of(levels: Sequence[float], noise: Callable[[float], float], most: int) -> Even | None:
    """The even steps that a run's levels so far fit, None while they leave that open, as roundings to bfloat16 do.

    Args:
        levels: Those of its first steps, without one missing, falling.
        noise: Share of noise at a level.
        most: Steps that a schedule may have.
    """
    j, k = (len(levels) - 1) // 2, len(levels) - 1
    if j < 1:
        return None
    bits = next((bits for bits in PRECISIONS if _are_of(levels, bits)), PRECISIONS[-1])
    off, near = 2.0**-bits, NEAR if bits == PRECISIONS[-1] else ROUNDED
    first, middle, last = (levels[i] for i in (0, j, k))
    tries = [(middle, last), (middle * (1 + off), last * (1 - off)), (middle * (1 - off), last * (1 + off))]
    found = [_fitted([noise(first), noise(b), noise(c)], j, k) for b, c in tries]
    if any(fit is None or not k < fit.first / fit.step <= most for fit in found):
        return None
    lengths, fit = [fit.first / fit.step for fit in found], found[0]
    even = all(fit.fits(i, noise(x * (1 - off)), noise(x * (1 + off)), near) for i, x in enumerate(levels))
    return fit if even and max(lengths) - min(lengths) < SURE * lengths[0] else None


def linear_quadratic(levels: Sequence[float], noise: Callable[[float], float]) -> int | None:
    """N of linear-quadratic levels, which the first three of a run show; None of others.

    Args:
        levels: These three, falling.
        noise: Share of noise at a level.
    """
    first, second, third = map(noise, levels)
    step, (over, most) = (first - third) / 2, LINEAR
    if first != 1 or step <= 0 or abs(first - second - step) > EQUAL * step:
        return None
    steps = round(over / step)
    return steps if 8 <= steps <= most and abs(over / step - steps) <= 2 * EQUAL * steps else None


def _are_of(levels: Sequence[float], bits: int) -> bool:
    """Whether so many bits of mantissa are enough for all of them."""
    return all((math.frexp(level)[0] * 2**bits).is_integer() for level in levels)


def _fitted(sigmas: Sequence[float], j: int, k: int) -> Even | None:
    """Even steps whose shares of noise are these before the steps 0, j and k; None where there are none.

    With a = (1 - sigma) / sigma, t is 1 / (1 + shift a), and k (t_0 - t_j) = j (t_0 - t_k).
    """
    if min(sigmas) <= 0:
        return None
    a, b, c = ((1 - sigma) / sigma for sigma in sigmas)
    above, below = (k - j) * a + j * c - k * b, (k - j) * b * c - k * a * c + j * a * b
    if above * below <= 0:
        return None
    shift = above / below
    first, last = 1 / (1 + shift * a), 1 / (1 + shift * c)
    return Even(first, (first - last) / k, shift) if first > last else None

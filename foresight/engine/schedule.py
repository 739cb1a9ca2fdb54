"""Where an evaluation stands in its run: noise levels, steps, warmup, and what the sampler makes of an output there."""

import functools
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from .config import Config
from .even import Even, Shown, following_of, shifted

AUTO_WARMUP = 0.15  # share of the run's steps (paper, section 4.1)
LOWEST = 0.1001  # share of noise; schedules may end there (LTX-Video's do), so that less is taken to be the end
AUTO_WARMUP_MIN = 3  # lambda needs two changes, and one is too noisy
MOST_STEPS = 1000  # of a whole run; no schedule has more
ROUNDING = 1e-6  # of the levels, which are fp32, so that a percent that lies on a step lies on it whatever the shift
NOISIEST, CLEAREST = -5.0, 5.0  # lambda of a latent, which is never noise or signal alone
TYPICAL = 30  # steps of a run, where nobody says how many there are
TYPICAL_SHIFT = 5.0  # of its noise levels, where nobody tells them

Phase = Literal["warmup", "before", "within", "after"]


@dataclass(frozen=True)
class Place:
    """Where an evaluation stands in its run.

    Attributes:
        evaluation: Its number in the run, from 0.
        phase: "warmup", or where the level lies against start_percent..end_percent.
        since_warmup: Evaluations since warmup ended; None while it lasts.
        level: The noise level; None where the host gives none.
        position: u, in steps of the schedule from its beginning.
        tau: Share of a whole run that is over, 0..1; a run that begins with a noisy video begins in its middle.
        noise: Share of noise in the sampler's latent, 0..1 (sigma of a flow model).
        share: Share of noise that this step removes.
        a: The sampler's step is x <- a x + b D; only a / b and the ratios of successive b matter.
        b: See `a`.
        ends_noisy: The run ends before the noise is gone; another one goes on from there.
        last: By its level, this is the last evaluation of the run; said only where the host does not tell its levels.
    """

    evaluation: int
    phase: Phase
    since_warmup: int | None
    level: float | None
    position: float
    tau: float
    noise: float
    share: float
    a: float
    b: float
    ends_noisy: bool = False
    last: bool = False

    @property
    def may_reuse(self) -> bool:
        """Whether anything may be left out here."""
        return self.phase == "within"

    @property
    def lam(self) -> float:
        """lambda = log((1 - sigma) / sigma), the logarithm of the signal-to-noise ratio (DPM-Solver, section 3)."""
        sigma = min(max(self.noise, 1e-6), 1 - 1e-6)
        return min(max(math.log((1 - sigma) / sigma), NOISIEST), CLEAREST)


class Schedule:
    """The noise levels of a run, if the host gives them, and its phases: warmup, the user's range, the rest.

    Args:
        config: Says how long warmup is, and the range of percents.
        levels: First to last (steps + 1 values, falling), None if unknown.
        steps: Number of denoising steps, if only that is known.
        noise: Share of noise (0..1) in the sampler's latent at a level; the level over the first one by default.
        region: (highest, lowest) level of start_percent..end_percent; None takes the share of the steps, or of the
            noise level.
        over: Share of a whole run that is over at a level; the share of this run's steps by default.
        first_step: Where levels are unknown, the step with which this run begins, if that is known.
        listed: Levels that the run's are likely to be, from its first step on; believed as long as they are.
    """

    def __init__(
        self,
        config: Config,
        levels: Sequence[float] | None = None,
        steps: int | None = None,
        noise: Callable[[float], float] | None = None,
        region: tuple[float, float] | None = None,
        first_step: int | None = None,
        over: Callable[[float], float] | None = None,
        listed: Sequence[float] = (),
    ):
        self._levels = _without_padding(levels) if levels is not None else None
        self.steps = len(self._levels) - 1 if self._levels is not None else steps
        self.warmup = config.warmup_of(self.steps)
        self._noise, self._region, self._over = noise, region, over
        self._percents = config.start_percent, config.end_percent
        self._evaluation, self._news = -1, False
        self._warm_at: int | None = None  # the first evaluation after warmup
        self._visits: Counter[int] = Counter()  # evaluations of each step during warmup
        self._first: float | None = None  # the level that was seen first
        self._start: int | None = None  # its step: a sampler may begin in the middle of what it was told
        self._first_step = first_step or 0
        self._counted = steps is not None and first_step is not None  # so that the last step is known
        self._position = self._first_step - 1.0  # u, where the levels are unknown
        self._seen: list[float] = []  # the different levels so far
        # what they show; of a flow model none is 0, which only stands behind the last
        self._shown = Shown(MOST_STEPS, [level for level in listed if level > 0 or noise is None])
        self._times: list[float] = []  # that are likely left at every step

    @property
    def is_warm(self) -> bool:
        """Whether warmup is over."""
        return self._warm_at is not None

    @property
    def length(self) -> int | None:
        """Denoising steps of the run; where nobody says it, what its levels so far show, None before that."""
        return self.steps if self.steps or not self._shown.steps else self._first_step + self._shown.steps

    def place(self, level: float | None) -> Place:
        """Where the next evaluation stands; asked once for each, in order."""
        self._evaluation, self._news = self._evaluation + 1, False
        if self._first is None:
            self._first = level
        if self._seen and self.steps is not None and level != self._seen[-1]:
            if self._first_step + len(self._seen) >= self.steps:  # somebody has said too few
                self.steps, self._counted, self._news = None, False, True
        if self._start is None:
            self._start = max(0, self._step(level))
        if self._warm_at is None and not self._warming(level):
            self._warm_at = self._evaluation
        since = None if self._warm_at is None else self._evaluation - self._warm_at
        phase = "warmup" if since is None else self._part(level)
        known = self._levels is not None and level is not None
        place = functools.partial(Place, self._evaluation, phase, since, level)
        if known:
            return place(*self._scheduled(level), ends_noisy=self._levels[-1] > 0)
        *where, last = self._unscheduled(level)
        return place(*where, last=last)

    def outlook(self) -> list[Place]:
        """Where the first evaluation of every step will stand, and the end of the run, as far as that is known now.

        Where the levels are unknown, they are those of the list; without one, the steps are taken to be even in time,
        under the flow shift that the first levels show. Where their number is unknown too, it is what these show, and
        `TYPICAL` before that.
        """
        steps = TYPICAL if self.length is None else self.length
        first = self._first_step if self._levels is None else self._start or 0
        places, noisy = [], self._levels is not None and self._levels[-1] > 0
        self._times, noise = self._likely(steps)
        for k in range(steps + 1):
            level = self._levels[k] if self._levels is not None else None
            if self._levels is not None:
                where = self._scheduled(level)
            else:
                where = float(k), 1 - self._times[k], noise[k], noise[k] - noise[min(k + 1, steps)], 1.0, 1.0
            warming = k - first < (self.warmup or AUTO_WARMUP_MIN)
            phase = "warmup" if warming else self._part(level, k)
            places.append(Place(k, phase, None, level, *where, ends_noisy=noisy))
        return places

    def _likely(self, steps: int) -> tuple[list[float], list[float]]:
        """Time that is left, 1..0, and share of noise at every step, where only the first levels are known.

        Three of them tell all, see `even`. Two tell the flow shift, of as many steps as there are in the time.
        """
        even, first, listed = self._shown.even, self._first_step, self._shown.listed
        if listed and first + len(listed) == steps:
            share = self._noise or (lambda level: level / listed[0])
            return [1 - k / steps for k in range(steps + 1)], [*first * [1.0], *map(share, listed), 0.0]
        if even is None or abs(first + even.steps - steps) > 1:
            d = 1 / max(1, steps)
            even = Even(1 - first * d, d, self._likely_shift(1 - (first + 1) * d))
        times = [*(min(max(even.first - (k - first) * even.step, 0.0), 1.0) for k in range(steps)), 0.0]
        return times, [shifted(t, even.shift) for t in times]

    def _likely_shift(self, second: float) -> float:
        """The flow shift that the second level shows, if this is the time that is left there."""
        if self._noise is None:
            return TYPICAL_SHIFT if self._first is None else 1.0
        if len(self._seen) < 2 or second <= 0:
            return 1.0
        sigma = min(self._noise(self._seen[1]), 1 - 1e-6)
        return max(sigma / (1 - sigma) * (1 - second) / second, 0.1)

    @property
    def has_news(self) -> bool:
        """Whether the newest evaluation has shown something that changes the outlook."""
        if self._levels is not None:
            return self._evaluation == 0 and self._start > 0
        return 0 < self._evaluation <= 2 or self._news

    @property
    def rises(self) -> bool:
        """Whether the levels rise anywhere: that is no denoising, so that nothing here holds."""
        return any(b > a * (1 + 1e-4) for a, b in zip(self._levels or (), (self._levels or ())[1:], strict=False))

    def _step(self, level: float | None) -> int:
        """The denoising step whose level this is; evaluations are not steps, a second-order sampler has more."""
        if level is None or self._levels is None and not self._seen:
            return self._first_step + self._evaluation
        if self._levels is None:
            return self._first_step + len(self._seen) - (level == self._seen[-1])
        return sum(entry >= level * (1 - 1e-4) for entry in self._levels) - 1

    def _passed(self, level: float | None) -> float:
        """Share of the first level that is gone."""
        return 1 - level / self._first if level is not None and self._first else 0.0

    def _warming(self, level: float | None) -> bool:
        if self.warmup is None:  # it is a share of the run, and nobody says how long that is
            passed = 1.0 if level is None else self._passed(level)
            return self._evaluation < AUTO_WARMUP_MIN or passed < AUTO_WARMUP
        step = self._step(level) - self._start
        self._visits[step] += 1
        # Heun evaluates twice a step, the second time at the next step's level: that one still belongs to warmup
        return step < self.warmup or step == self.warmup and self._evaluation < self.warmup * self._visits[step - 1]

    def _part(self, level: float | None, step: int | None = None) -> Phase:
        if self._region is not None and level is not None:
            start, end = (bound * (1 + ROUNDING) for bound in self._region)
            before, after = level > start, level <= end
        else:
            step = self._step(level) if step is None else step
            percent = self._passed(level) if self.steps is None else step / self.steps
            before, after = percent < self._percents[0], percent >= self._percents[1]
        return "after" if after else "before" if before else "within"

    def _scheduled(self, level: float) -> tuple[float, float, float, float, float, float]:
        index = min(max(self._step(level), 0), self.steps - 1)
        here, following = self._levels[index : index + 2]
        within = (here - level) / (here - following) if here > following else 0.0
        a = min(following / level, 1.0) if level else 0.0
        noise = self._noise or (lambda x: x / self._levels[0] if self._levels[0] else 0.0)
        share = max(0.0, noise(level) - noise(following))
        position = index + min(1.0, max(0.0, within))
        tau = self._over(level) if self._over is not None else position / self.steps
        return position, tau, noise(level), share, a, 1.0 - a

    def _unscheduled(self, level: float | None) -> tuple[float, float, float, float, float, float, bool]:
        """The same where the host does not tell its levels, and whether this one is the last."""
        if level is None or not self._seen or level != self._seen[-1]:
            self._position += 1
        elif self._counted and not self._shown.listed and self._evaluation in (1, 2):  # a second-order sampler's
            self.steps = None if self._first_step else (self.steps + 1) // 2
            self._counted, self._news = False, True
        over = int(self._position) - len(self._times)  # below 0 within what is known of the run
        tau = 1 - self._times[over] if over < 0 else self._position / (self.steps or TYPICAL)
        if level is None:
            noise = shifted(max(0.0, 1 - tau), TYPICAL_SHIFT)
            return self._position, tau, noise, 1 / (self.steps or TYPICAL), 1.0, 1.0, False
        if not self._seen or level != self._seen[-1]:
            self._see(level)
        following, last = self._following(level)
        if self._noise is None:  # nothing is known of what the sampler does with an output
            noise = [x / self._first if self._first else 0.0 for x in (level, following)]
            return self._position, tau, noise[0], max(0.0, noise[0] - noise[1]), 1.0, 1.0, last
        noise, a = self._noise(level), following / level if level else 0.0
        last |= self.steps is None and not self._shown.listed and noise <= LOWEST
        return self._position, tau, noise, noise - self._noise(following), a, 1.0 - a, last

    def _see(self, level: float) -> None:
        """A step begins at a level that nobody has told before; it may show how many there are."""
        self._seen.append(level)
        if min(self._seen) > 0:
            self._news |= self._shown.see(self._seen, self._noise)

    def _following(self, level: float) -> tuple[float, bool]:
        """The level that comes next, and whether that is the end of the run."""
        if self._shown.listed:
            rest = self._shown.listed[len(self._seen) :]  # a list may end in the level behind the last step
            return (rest or [0.0])[0], not any(rest)
        following = following_of(self._seen)
        return following, level <= 0 or not self._counted and following <= 0.5 * (level - following)


def whole_steps(places: Sequence[Place]) -> float:
    """N: how many steps like these a whole run has, of which a run that begins or ends in the middle is a part.

    Args:
        places: Where every step stands, and where the run ends.
    """
    steps = len(places) - 1
    return steps / max(places[-1].tau - places[0].tau, steps / MOST_STEPS, 1 / MOST_STEPS)


def _without_padding(levels: Sequence[float]) -> tuple[float, ...]:
    """A schedule without zeros before it and without more than one behind it, as some samplers pad theirs."""
    kept = list(levels)
    while len(kept) > 2 and kept[0] == 0:
        kept.pop(0)
    while len(kept) > 2 and kept[-1] == kept[-2] == 0:
        kept.pop()
    return tuple(kept)

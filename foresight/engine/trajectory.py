"""One way through the noise levels: what was computed, what it showed, and what was left out since."""

import math
from collections.abc import Hashable
from dataclasses import replace

from .history import History
from .moves import Move, Track
from .plan import bend
from .schedule import NOISIEST

MOST_TRAJECTORIES = 4  # of a run at a time; a name that is new at every evaluation is none
NEWEST = 0.35  # share of the newest measurement in what is expected of the next
LEAST = 0.5  # the bend of a run over what is expected is never taken to be less
MOST = 32.0  # no measurement counts for more than this factor, up or down
HELD = 0.08  # error that is expected when the first output is given again, per unit of lambda
NEAR = 0.1  # in lambda; an output that is closer than this to the one before may lower K, but not raise it
JUMP = 8.0  # an error this many times the expected one is a jump
ROUNDING = 0.01  # an error up to this is never a jump
FAR = 0.5  # one from this on always is


def _off(before: float, n: float, m: float) -> float:
    """What a line through the outputs at `before` and n is expected to be off at m, all three of them lambdas."""
    return bend((n + m) / 2) * max(m - n, NEAR) * math.sqrt(max(m - before, NEAR))


class Trajectory:
    """The state of a way through the noise levels. A run has one, but for samplers that follow two latents (FlowEdit).

    Attributes:
        histories: By output.
        track: Where its latent was last.
        late: Whether it began in the middle of a whole run; None before it has begun.
        move: How it came to the evaluation under way.
        u_n: Position of the evaluation computed last.
        before: That of the computed one before.
        found: `scale` by what the one computed last has shown alone; None where it has shown nothing.
        next: The step to compute next, None before it is planned.
        in_a_row: How many evaluations were left out since the last computed.
        euler: Whether all moves since then were Euler's.
        noisy: Whether all moves so far have renewed the noise. The first one tells it best: a deterministic sampler has
            only one output to go by there, while later ones of high order may swing as far as noise would.
    """

    def __init__(self):
        self.track, self.late = Track(), None
        self.forget()

    def forget(self) -> None:
        """What was measured says nothing about what comes."""
        self.histories: dict[Hashable, History] = {}
        self.move = Move()
        self.noisy = True
        self._bent = 0.0  # log(K measured / K expected), a running mean
        self._lams: list[float] = []  # lambda of the last three computed
        self.before = self.u_n = 0.0
        self.begin_gap(0.0, None)

    def begin_gap(self, u_n: float, lam_n: float | None) -> None:
        """The evaluation at u_n, with lambda_n, is computed."""
        if lam_n is not None and (not self._lams or abs(u_n - self.u_n) > 1e-3):
            self._lams = [*self._lams[-2:], lam_n]
        if abs(u_n - self.u_n) > 1e-3:  # else it is a second evaluation at the same noise level (Heun)
            self.before, self.u_n = self.u_n, u_n
        self.found: float | None = None
        self.next: int | None = None
        self.in_a_row = 0
        self.euler = True

    def learn(self, errors: list[float], sloped: bool) -> None:
        """Take in what the forecasts for the evaluation computed last have missed; `sloped` if they had a slope."""
        if not all(map(math.isfinite, errors)):
            self.histories.clear()
            return
        error = max(errors, default=0.0)
        if not error or len(self._lams) < 2 + sloped:  # 0 is no evidence, see `history.relative`
            return
        far = self._lams[-1] - self._lams[-2]
        # given again, the first output of a whole run is off by less than that of a run from a noisy video
        held = bend((self._lams[-2] + self._lams[-1]) / 2) if self.late else HELD
        expected = _off(*self._lams) if sloped else min(max(held * far, ROUNDING), error)
        jump = error > min(max(JUMP * expected * max(1.0, self._bend), ROUNDING), FAR)
        found = min(max(error / expected, 1 / MOST), MOST)
        if far >= NEAR or not sloped or max(1.0, found) < self._bend:
            self.found = found
            # nothing was shown before, and for an output of pure noise it is well known how far off it usually is
            first = not sloped and not self._bent and len(self._lams) == 2 and self._lams[0] <= NOISIEST
            self._bent += (1.0 if first else NEWEST) * (math.log(self.found) - self._bent)
        if jump:
            for history in self.histories.values():
                history.forget()  # so that what comes next is computed

    def expected(self, lam: float) -> float | None:
        """e that a forecast along the present slope is taken to have at lambda; None while there is no slope."""
        return self._bend * _off(*self._lams[-2:], lam) if len(self._lams) > 1 else None

    @property
    def _bend(self) -> float:
        """K of this run over the one that is expected."""
        return max(LEAST, math.exp(self._bent))

    def take(self, move: Move, most_taken: float = math.inf) -> None:
        """The way on to the next evaluation; `most_taken` limits its price where it renews the noise."""
        if not move.continues:
            self.forget()
        else:
            self.noisy &= move.noisy
        flat = self.noisy and move.continues
        self.move = replace(move, price=min(move.price, most_taken)) if flat else move
        self.euler &= move.euler
        for history in self.histories.values():
            history.flat = flat

    @property
    def scale(self) -> float:
        """How much more the outputs bend than expected, times how much more of them the sampler takes in."""
        return self._bend * self.move.price

    def take_back(self, found: float) -> None:
        """Go back to the computed evaluation before the last one, but with the scale that the last one has shown."""
        for history in self.histories.values():
            history.take_back()
        self._bent = max(self._bent, math.log(found))
        self.track.forget()
        self._lams.pop()
        self.begin_gap(self.before, None)

    @property
    def nbytes(self) -> int:
        """Bytes held now."""
        return self.track.nbytes + sum(history.nbytes for history in self.histories.values())

"""The method "forecast": whole evaluations are left out, and the output that they would have given is forecast.

It is not the paper's: what is measured and reused here is the output at latent size, not the blocks'. In symbols, with
D_n the output computed at position u_n of the schedule (in steps), x the sampler's latent, sigma the share of noise in
it, sigma' that share after the step, gamma the user's threshold:

1. Forecast: D^(u) = D_n + s r(u - u_n), s = (D_n - D_(n-1)) / (u_n - u_(n-1)), along the line through the last two
   computed, of which less is taken the farther it goes: r(h) = h / (1 + h / 8).
2. Evidence: each computed output D_m measures what the forecast for it would have missed,
   e = rms(D^ - D_m) / rms(x - D_m), and so the rate e / (u_m - u_n) per step of distance.
3. Decision: leaving out the evaluation at u is predicted to cost
   c(u) = rate (u - u_n) (sigma - sigma') / (1 - sigma)^0.6 in x. It is left out while the sum of c over the evaluations
   left out since the last computed one stays within 0.04 gamma^2.
4. Correction: once D_m is computed, the outputs left out are known better, on the line between D_n and D_m, whose slope
   is s'. A sampler's step takes an output as x <- a x + (1 - a) D, a = sigma' / sigma; so the forecasts have left
   s A - s' B in x, where over them A <- a A + (1 - a) r(u - u_n) and B <- a B + (1 - a)(u - u_n). The computed step
   pays it back: it gets D_m - a_m / (1 - a_m) (s A - s' B) in place of D_m. That is exact for Euler's step, and done
   only where `moves` has seen the sampler take such steps all the way from D_n to D_m.

That an evaluation goes on from the last one is checked: `moves` compares the latents. Where it does not, everything
that was measured is forgotten; where more of an output is taken in than by Euler's step, c(u) is multiplied by that.
"""

import math
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import ClassVar

import torch

from .budget import Need
from .compiler import outside_graphs
from .config import Config
from .history import History
from .moves import Move, Track
from .policy import Decision, Policy, policy_for
from .schedule import AUTO_WARMUP_MIN, Place
from .stats import Evaluation
from .tensors import Tensors

LONGEST = 0.16  # share of the run's steps; beyond it a measured error says nothing about the next
LAST = 0.04  # share of the run's steps, at its end, that are never left out: little comes after to pay an error back
TOLERANCE = 0.04  # error in x that gamma = 1 allows between two computed evaluations; it grows with gamma squared
JUMP = 4.0  # an error this many times the predicted one is a jump: forget the slope
ROUNDING = 0.01  # an e up to this is never a jump
MOST_TRAJECTORIES = 4  # of a run at a time; a name that is new at every evaluation is none
FLOOR = 1e-3  # a rate is never less: an error of nearly nothing is rounding, and leaving out is never free
GUIDED = 4.0  # guidance makes this much of an error, where it is not known how much of each output is taken
EARLY = 0.6  # exponent: an early error weighs more, because the rest of the run builds on it


@dataclass(frozen=True)
class ForecastConfig(Config):
    """Settings of the method "forecast".

    `warmup_steps` 0 means three steps, however long the run is. `threshold` scales the error that leaving evaluations
    out may cause. `reuse_interval` n leaves out at most n - 1 evaluations in a row; 0 leaves that to what is measured.
    """

    name: ClassVar[str] = "forecast"
    unused: ClassVar[str] = "no forecast was good enough"

    def automatic_warmup(self, steps: int | None) -> int:
        return AUTO_WARMUP_MIN


class Trajectory:
    """One way through the noise levels: its outputs, what they showed, and what was left out since the last computed.

    A run has one, but for samplers that follow two latents at once (FlowEdit).
    """

    def __init__(self):
        self.histories: dict[Hashable, History] = {}
        self.track = Track()
        self.move = Move()
        self.rate: float | None = None  # e per step of distance
        self.begin_gap(0.0)

    def begin_gap(self, u_n: float) -> None:
        """The evaluation at u_n is computed."""
        self.u_n = u_n
        self.spent = 0.0  # sum of c since then
        self.in_a_row = 0  # evaluations left out since then
        self.euler = True  # all moves since then were Euler's

    def take(self, move: Move) -> None:
        """The way on to the next evaluation."""
        self.move = move
        self.euler &= move.euler
        if not move.continues:
            self.histories.clear()
            self.rate = None

    @property
    def nbytes(self) -> int:
        """Bytes held now."""
        return self.track.nbytes + sum(history.nbytes for history in self.histories.values())


@policy_for(ForecastConfig)
class Forecast(Policy):
    """What a run forecasts, and when it computes. The ablation of the benchmarks changes one of these at a time."""

    rest = "the rest is the end, which is always computed"
    history, early, jump, last = History, EARLY, JUMP, LAST

    def __init__(self, *args):
        super().__init__(*args)
        self._tolerance = TOLERANCE * self.config.threshold**2
        self._longest = math.ceil(LONGEST * (self.steps or 20))
        self._most_in_a_row = self.config.reuse_interval - 1 if self.config.reuse_interval else math.inf
        self._trajectories: dict[Hashable, Trajectory] = {None: Trajectory()}
        self._now = self._trajectories[None]
        self._latent: Tensors = ()
        self._arriving: torch.Tensor | None = None  # what `check` measured
        self._sums: list[float] | None = None
        self._blend = self.resources.blend
        self._unsettled: tuple[list[History], list[float]] = [], []  # measured before the blend is known
        self._place: Place | None = None
        self._computes, self._pays = True, False

    def most_reuse(self, steps: int, warmup: int) -> int:
        return max(0, steps - warmup - self._last_steps(steps))

    def _last_steps(self, steps: int) -> int:
        """How many of a run's last steps are always computed."""
        return max(1, round(self.last * steps)) if self.last else 0

    def check(self, trajectory: Hashable, latent: Tensors) -> None:
        if trajectory not in self._trajectories and len(self._trajectories) >= MOST_TRAJECTORIES:
            self._trajectories.pop(next(iter(self._trajectories)))
        self._now = self._trajectories.setdefault(trajectory, Trajectory())
        self._latent, self._arriving = latent, (self._blend or self._now.track).measure(latent)

    def decide(self, place: Place) -> Decision:
        self._place, now = place, self._now
        if self._sums is not None:
            now.take((self._blend or now.track).judge(self._sums, place.level))
        if self._blend is not None:
            self._learn_of_blend(place)
        self._sums = None
        ratio = self._ratio(place)
        self._pays = now.euler and not (place.ends_noisy and place.position > self.steps - 1.5)
        self._computes = not place.may_reuse or self.must_compute(place, ratio)
        if not self._computes:
            now.spent += self._cost(place)
            now.in_a_row += 1
        return Decision(self._computes, ratio)

    def _learn_of_blend(self, place: Place) -> None:
        """What the last evaluation has measured, now that it is known how much of each output the sampler took."""
        (measured, errors), self._unsettled = self._unsettled, ([], [])
        self._now.euler &= self._sums is not None  # what was not seen is not paid back
        if measured and self._now.histories:
            unknown = self._sums is None or self._blend.error is None
            worst = max(errors) * (GUIDED if len(errors) > 1 else 1.0) if unknown else self._blend.error
            self._learn(self._now, measured, [worst] * len(measured))
        self._blend.begin(place.level, self._latent, self.resources.offload.device)
        self._latent = ()

    def must_compute(self, place: Place, ratio: float) -> bool:
        """Whether an evaluation that the user's settings would let go is computed all the same."""
        return ratio > 1 or self._is_last(place) or self._now.in_a_row >= self._most_in_a_row

    def _is_last(self, place: Place) -> bool:
        # a run that ends noisy pays back before its last step, whose output others may use as it is
        if place.last:
            return self.last > 0
        return self.steps is not None and place.position > self.steps - self._last_steps(self.steps) - 0.5 - (
            place.ends_noisy and self.last > 0
        )

    def _ratio(self, place: Place) -> float:
        """Predicted error over the tolerance if this evaluation is left out too; infinite where nothing is known."""
        now = self._now
        unknown = now.rate is None or not now.histories or not all(h.ready for h in now.histories.values())
        if unknown or place.position - now.u_n > self._longest:
            return math.inf
        return (now.spent + self._cost(place)) / self._tolerance

    def _cost(self, place: Place) -> float:
        """c(u), the predicted error in x of leaving this evaluation out, in units of the noise's rms."""
        distance = max(place.position - self._now.u_n, 0.25)  # a step's second evaluation is not free
        share = max(place.share, FLOOR)  # nor is one where the schedule stands still
        early = max(1 - place.noise, 0.005) ** self.early
        return max(self._now.rate, FLOOR) * distance * share * self._now.move.price / early

    @outside_graphs(recursive=False)
    def output(
        self,
        key: Hashable,
        signature: Hashable,
        compute: Callable[[], Tensors],
        device: torch.device,
        unit: Callable[[Tensors], Tensors],
    ) -> Tensors:
        now, waits_on = self._now, self.resources.offload.device
        history = now.histories.get(key)
        known = history is not None and history.signature == signature
        if known and history.ready and not self._computes:
            given = history.forecast(self._place, device)
            self._note(given, None, own=False)
            return given
        result = compute()
        if not known:
            history, now.rate = self.history(signature), None
            now.histories[key] = history
        with torch.no_grad():
            given = history.observe(self._place, result, unit(result), waits_on, self._pays)
            now.begin_gap(self._place.position)
            computed = given is result
            self._note(history.newest if computed else given, history.missed, own=computed)
            history.missed = None
        return given

    @outside_graphs()
    def _note(self, given: Tensors, missed: Tensors | None, own: bool) -> None:
        """Remember what the sampler was given, where the host says for which latent."""
        if self._blend is not None:
            self._blend.note(given, missed)
        elif self._latent:
            self._now.track.note(self._place.level, self._latent, given, own, self.resources.offload.device)
        self._latent = ()

    def measured(self) -> list[torch.Tensor]:
        errors = [history.error.reshape(1) for history in self._measured()]
        return errors if self._arriving is None else [*errors, self._arriving]

    def _measured(self) -> list[History]:
        histories = (h for trajectory in self._trajectories.values() for h in trajectory.histories.values())
        return [history for history in histories if history.error is not None]

    def settle(self, values: list[float], evaluation: Evaluation | None) -> None:
        """The worst error of a trajectory sets its rate, which falls by half at most."""
        values = list(values)
        for trajectory in self._trajectories.values():
            measured = [history for history in trajectory.histories.values() if history.error is not None]
            errors = [values.pop(0) for _ in measured]
            if self._blend is not None:
                self._unsettled = (measured, errors) if measured else self._unsettled
            else:
                self._learn(trajectory, measured, errors)
            for history in measured:
                history.error = None
        if self._arriving is not None:
            self._sums, self._arriving = values, None

    def _learn(self, trajectory: Trajectory, measured: list[History], errors: list[float]) -> None:
        rates = [self._rate_of(trajectory, history, e) for history, e in zip(measured, errors, strict=True)]
        rates = [rate for rate in rates if rate]  # an error of 0 is no evidence, see `history._relative`
        if rates:
            rate = max(rates) if all(map(math.isfinite, rates)) else math.inf
            trajectory.rate = rate if trajectory.rate is None else max(rate, (rate + trajectory.rate) / 2)

    def _rate_of(self, trajectory: Trajectory, history: History, error: float) -> float:
        jump = trajectory.rate is not None and not error <= max(
            self.jump * trajectory.rate * history.distance, ROUNDING
        )
        if jump:  # it happened at once, so it is no rate
            history.forget()
        return error if jump else error / history.distance

    def planned_bytes(self, latent: tuple[int, ...], hidden: tuple, blocks: int, streams: int) -> int:
        return 4 * 4 * math.prod(latent)  # in fp32: two outputs, and of the last evaluation x' and D'

    def need(self) -> Need:
        """Bytes held once every output has its two points."""
        outputs = sum(
            h.nbytes if h.ready else 2 * h.nbytes for t in self._trajectories.values() for h in t.histories.values()
        )
        size = outputs + sum(2 * trajectory.track.nbytes for trajectory in self._trajectories.values())
        size += self._blend.nbytes if self._blend is not None else 0
        return Need("the stored outputs", size, 0, size)

    @property
    def held_bytes(self) -> int:
        blend = self._blend.nbytes if self._blend is not None else 0
        return blend + sum(trajectory.nbytes for trajectory in self._trajectories.values())

    def drop(self) -> None:
        self._unsettled = [], []
        if self._blend is not None:
            self._blend.begin(None, (), None)
        self._trajectories = {None: Trajectory()}
        self._now, self._latent, self._arriving = self._trajectories[None], (), None

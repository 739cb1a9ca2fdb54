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
   pays it back: it gets D_m - a_m / (1 - a_m) (s A - s' B) in place of D_m. Exact for Euler, to first order for every
   other sampler.
"""

import math
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import ClassVar

import torch

from .budget import Need
from .config import Config
from .policy import Decision, Policy, policy_for
from .schedule import AUTO_WARMUP_MIN, Place
from .stats import Evaluation
from .tensors import Tensors

DAMPING = 8.0  # steps at which a forecast takes half of the slope
LONGEST = 0.16  # share of the run's steps; beyond it a measured error says nothing about the next
LAST = 0.04  # share of the run's steps, at its end, that are never left out: little comes after to pay an error back
TOLERANCE = 0.04  # error in x that gamma = 1 allows between two computed evaluations; it grows with gamma squared
JUMP = 4.0  # an error this many times the predicted one is a jump: forget the slope
ROUNDING = 0.01  # an e up to this is never a jump
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


class History:
    """One output (of the guider, or of one cond): the two computed last, and what the forecasts since then left in x.

    Attributes:
        signature: Whatever must stay the same for a forecast to make sense.
        error: e of its newest computed evaluation, 0-d on the device; None where there was nothing to forecast from.
        distance: |u_m - u_n| that `error` was measured over; an adaptive sampler may go back.
    """

    damping = DAMPING

    def __init__(self, signature: Hashable):
        self.signature = signature
        self.error: torch.Tensor | None = None
        self.distance = 0.0
        self._computed: list[tuple[float, Tensors]] = []  # (u_(n-1), D_(n-1)), (u_n, D_n)
        self._A = self._B = 0.0

    @property
    def ready(self) -> bool:
        """Whether there is a slope."""
        return len(self._computed) == 2

    @property
    def u_n(self) -> float:
        """Position of the newest computed output."""
        return self._computed[-1][0]

    @property
    def nbytes(self) -> int:
        """Bytes held now."""
        return sum(x.nbytes for _, output in self._computed for x in output)

    def reach(self, h: float) -> float:
        """r(h): how much of the slope a forecast takes; the farther, the less it can be trusted."""
        return h / (1 + max(0.0, h) / self.damping)

    def forget(self) -> None:
        """Only the newest computed output has anything to do with what comes."""
        self._computed = self._computed[-1:]

    def forecast(self, place: Place, device: torch.device) -> Tensors:
        """D^(u) in place of an output that is left out, as fresh tensors."""
        h = place.position - self.u_n
        self._A = place.a * self._A + place.b * self.reach(h)
        self._B = place.a * self._B + place.b * h
        return self._line(self.reach(h), device)

    def _line(self, r: float, device: torch.device) -> Tensors:
        """D_n + s r."""
        (u_before, before), (u_n, newest) = self._computed
        r_in_gaps = r / (u_n - u_before)
        return tuple(n.to(device).lerp(b.to(device), -r_in_gaps) for n, b in zip(newest, before, strict=True))

    def observe(self, place: Place, output: Tensors, unit: Tensors, waits_on: torch.device | None) -> Tensors:
        """Take a computed output; what to give the sampler in its place.

        Args:
            output: D_m, any shapes, batch first.
            unit: Tensors of the same shapes whose rms is the unit of e.
            waits_on: Where it waits; None for the device on which it came.
        """
        self.error, given = None, output
        if self._computed and abs(place.position - self.u_n) < 1e-3:  # again at the same noise level (Heun)
            self._computed.pop()
        elif self.ready:
            h = place.position - self.u_n
            self.distance = abs(h)
            self.error = _relative(self._line(self.reach(h), output[0].device), output, unit)
            if self._B and place.a and place.b:  # b is 0 where a schedule stands still
                given = self._corrected(place, output, h)
        self._A = self._B = 0.0
        kept = tuple(x.detach().to(waits_on or x.device, copy=True) for x in output)
        self._computed = [*self._computed[-1:], (place.position, kept)]
        return given

    def _corrected(self, place: Place, output: Tensors, h: float) -> Tensors:
        """D_m - a_m / (1 - a_m) (s A - s' B), where s' = (D_m - D_n) / h."""
        device, owed_share = output[0].device, place.a / place.b
        newest = (x.to(device) for x in self._computed[-1][1])
        return tuple(
            d_m - owed_share * ((line - d_n) - self._B / h * (d_m - d_n))
            for d_m, d_n, line in zip(output, newest, self._line(self._A, device), strict=True)
        )


def _relative(a: Tensors, b: Tensors, unit: Tensors) -> torch.Tensor:
    """rms(a - b) / rms(unit) of the worst item of the batch, a 0-d fp32 tensor."""

    def squares(tensors: Tensors) -> torch.Tensor:
        return sum(x.float().flatten(1).square().sum(1) for x in tensors)

    apart = squares(tuple(x - y for x, y in zip(a, b, strict=True)))
    return (apart / squares(unit).clamp_min(1e-12)).max().sqrt()


@policy_for(ForecastConfig)
class Forecast(Policy):
    """What a run forecasts, and when it computes. The ablation of the benchmarks changes one of these at a time."""

    rest = "the rest is the end, which is always computed"
    history, early, jump, last = History, EARLY, JUMP, LAST

    def __init__(self, *args):
        super().__init__(*args)
        self._tolerance = TOLERANCE * self.config.threshold**2
        self._longest = math.ceil(LONGEST * (self.steps or 20))
        self._end = math.inf if self.steps is None else self.steps - self._last_steps(self.steps) - 0.5
        self._most_in_a_row = self.config.reuse_interval - 1 if self.config.reuse_interval else math.inf
        self._histories: dict[Hashable, History] = {}
        self._rate: float | None = None  # e per step of distance
        self._u_n = 0.0  # position of the run's newest computed evaluation
        self._spent = 0.0  # sum of c since then
        self._in_a_row = 0  # evaluations left out since then
        self._place: Place | None = None
        self._computes = True

    def most_reuse(self, steps: int, warmup: int) -> int:
        return max(0, steps - warmup - self._last_steps(steps))

    def _last_steps(self, steps: int) -> int:
        """How many of a run's last steps are always computed."""
        return max(1, round(self.last * steps)) if self.last else 0

    def decide(self, place: Place) -> Decision:
        self._place, ratio = place, self._ratio(place)
        self._computes = not place.may_reuse or self.must_compute(place, ratio)
        if not self._computes:
            self._spent += self._cost(place)
            self._in_a_row += 1
        return Decision(self._computes, ratio)

    def must_compute(self, place: Place, ratio: float) -> bool:
        """Whether an evaluation that the user's settings would let go is computed all the same."""
        return ratio > 1 or place.position > self._end or self._in_a_row >= self._most_in_a_row

    def _ratio(self, place: Place) -> float:
        """Predicted error over the tolerance if this evaluation is left out too; infinite where nothing is known."""
        unknown = self._rate is None or not all(history.ready for history in self._histories.values())
        if unknown or place.position - self._u_n > self._longest:
            return math.inf
        return (self._spent + self._cost(place)) / self._tolerance

    def _cost(self, place: Place) -> float:
        """c(u), the predicted error in x of leaving this evaluation out, in units of the noise's rms."""
        distance = max(place.position - self._u_n, 0.25)  # a step's second evaluation is not free
        return self._rate * distance * place.share / max(1 - place.noise, 0.005) ** self.early

    def output(
        self,
        key: Hashable,
        signature: Hashable,
        compute: Callable[[], Tensors],
        device: torch.device,
        unit: Callable[[Tensors], Tensors],
    ) -> Tensors:
        history = self._histories.get(key)
        known = history is not None and history.signature == signature
        if known and history.ready and not self._computes:
            return history.forecast(self._place, device)
        result = compute()
        if not known:
            history, self._rate = self.history(signature), None
            self._histories[key] = history
        self._u_n, self._spent, self._in_a_row = self._place.position, 0.0, 0
        with torch.no_grad():
            return history.observe(self._place, result, unit(result), self.resources.offload.device)

    def measured(self) -> list[torch.Tensor]:
        return [history.error.reshape(1) for history in self._histories.values() if history.error is not None]

    def settle(self, values: list[float], evaluation: Evaluation | None) -> None:
        """The worst error sets the rate, which falls by half at most."""
        measured = [history for history in self._histories.values() if history.error is not None]
        rates = []
        for history, error in zip(measured, values, strict=True):
            history.error = None
            jump = self._rate is not None and not error <= max(self.jump * self._rate * history.distance, ROUNDING)
            if jump:  # it happened at once, so it is no rate
                history.forget()
            rates.append(error if jump else error / history.distance)
        if rates:
            rate = max(rates) if all(map(math.isfinite, rates)) else math.inf
            self._rate = rate if self._rate is None else max(rate, (rate + self._rate) / 2)

    def planned_bytes(self, latent: tuple[int, ...], hidden: tuple, blocks: int, streams: int) -> int:
        return 2 * 4 * math.prod(latent)  # two latents in fp32

    def need(self) -> Need:
        """Bytes held once every output has its two points."""
        size = sum(h.nbytes if h.ready else 2 * h.nbytes for h in self._histories.values())
        return Need("the stored outputs", size, 0, size)

    @property
    def held_bytes(self) -> int:
        return sum(history.nbytes for history in self._histories.values())

    def drop(self) -> None:
        self._histories.clear()

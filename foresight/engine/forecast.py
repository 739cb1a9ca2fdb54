"""The method "forecast": whole evaluations are left out, and the output that they would have given is forecast.

It is not the paper's: what is measured and reused here is the output at latent size, not the blocks'. In symbols, with
D_n the output computed at position u_n of the schedule (in steps), x the sampler's latent, sigma its noise level:

1. Forecast: D^(u) = D_n + s r(u - u_n), s = (D_n - D_(n-1)) / (u_n - u_(n-1)), along the line through the last two
   computed, of which less is taken the farther it goes: r(h) = h / (1 + h / 8).
2. Decision: each computed output measures what the forecast for it would have missed, e = rms(D^ - D) / rms(x - D), or
   e / (u_m - u_n) per step of distance. An evaluation is left out while the error that this predicts for x, summed over
   the evaluations left out since the last computed one, stays within the tolerance.
3. Correction: once D_m is computed, the outputs left out are known better, on the line between D_n and D_m, whose slope
   is s'. A sampler's step takes an output as x <- a x + (1 - a) D, a = sigma_next / sigma; so the forecasts have left
   s A - s' B in x, where over them A <- a A + (1 - a) r(u - u_n) and B <- a B + (1 - a)(u - u_n). The computed step
   pays it back: it gets D_m - a_m / (1 - a_m) (s A - s' B) in place of D_m. Exact for Euler, to first order for every
   other sampler.
"""

import math
from collections.abc import Hashable

import torch

from .prefix.metric import Tensors
from .schedule import Step

DAMPING = 8.0  # steps at which a forecast takes half of the slope
LONGEST = 0.16  # share of the run's steps; beyond it a measured error says nothing about the next
LAST = 0.04  # share of the run's steps, at its end, that are never left out: little comes after to pay an error back
TOLERANCE = 0.04  # error in x that gamma = 1 allows between two computed evaluations; it grows with gamma squared
JUMP = 4.0  # times the predicted error: then it happened at once, and what came before says nothing
ROUNDING = 0.01  # an e up to this is never a jump
EARLY = 0.6  # exponent: an early error weighs more, because the rest of the run builds on it


class Output:
    """One output (of the guider, or of one cond): the two computed last, and what the forecasts since then left in x.

    Attributes:
        signature: Whatever must stay the same for a forecast to make sense.
        calls: Block calls of its newest computed evaluation, per block.
        error: e of its newest computed evaluation, 0-d on the device; None where there was nothing to forecast from.
        distance: |u_m - u_n| that `error` was measured over; an adaptive sampler may go back.
    """

    def __init__(self, signature: Hashable):
        self.signature = signature
        self.calls: list[int] = []
        self.error: torch.Tensor | None = None
        self.distance = 0.0
        self._points: list[tuple[float, Tensors]] = []
        self._damped = self._whole = 0.0  # A and B

    @property
    def ready(self) -> bool:
        """Whether there is a slope."""
        return len(self._points) == 2

    @property
    def newest(self) -> float:
        """u_n."""
        return self._points[-1][0]

    @property
    def nbytes(self) -> int:
        return sum(x.nbytes for _, output in self._points for x in output)

    def forget(self) -> None:
        """Only the newest computed output has anything to do with what comes."""
        self._points = self._points[-1:]

    def forecast(self, step: Step, device: torch.device) -> Tensors:
        """D^(u) in place of an output that is left out, as fresh tensors."""
        far = step.position - self.newest
        self._damped = step.a * self._damped + step.b * _reach(far)
        self._whole = step.a * self._whole + step.b * far
        return self._line(_reach(far), device)

    def _line(self, reach: float, device: torch.device) -> Tensors:
        """D_n + s reach."""
        (before, old), (newest, new) = self._points
        return tuple(n.to(device).lerp(o.to(device), -reach / (newest - before)) for n, o in zip(new, old, strict=True))

    def observe(self, step: Step, output: Tensors, unit: Tensors, home: torch.device | None) -> Tensors:
        """Take a computed output; what to give the sampler in its place.

        Args:
            output: D_m, any shapes, batch first.
            unit: Tensors of the same shapes whose rms is the unit of e.
            home: Where it waits; None for the device on which it came.
        """
        self.error, corrected = None, output
        if self._points and abs(step.position - self.newest) < 1e-3:  # again at the same noise level (Heun)
            self._points.pop()
        elif self.ready:
            far, device = step.position - self.newest, output[0].device
            self.distance = abs(far)
            self.error = _relative(self._line(_reach(far), device), output, unit)
            if self._whole and step.a and step.b:  # b is 0 where a schedule stands still
                pay, share = step.a / step.b, self._whole / far
                new = (n.to(device) for n in self._points[-1][1])
                corrected = tuple(  # s A is the line at A, less D_n; s' B is a share of D_m - D_n
                    x - pay * ((line - n) - share * (x - n))
                    for x, n, line in zip(output, new, self._line(self._damped, device), strict=True)
                )
        self._damped = self._whole = 0.0
        kept = tuple(x.detach().to(home or x.device, copy=True) for x in output)
        self._points = [*self._points[-1:], (step.position, kept)]
        return corrected


def last_steps(steps: int) -> int:
    """How many of a run's last steps are always computed."""
    return max(1, round(LAST * steps))


def _reach(far: float) -> float:
    """r(h): how much of the slope a forecast takes; the farther, the less it can be trusted."""
    return far / (1 + max(0.0, far) / DAMPING)


def _relative(a: Tensors, b: Tensors, unit: Tensors) -> torch.Tensor:
    """rms(a - b) / rms(unit) of the worst item of the batch, a 0-d fp32 tensor."""

    def squares(tensors: Tensors) -> torch.Tensor:
        return sum(x.float().flatten(1).square().sum(1) for x in tensors)

    apart = squares(tuple(x - y for x, y in zip(a, b, strict=True)))
    return (apart / squares(unit).clamp_min(1e-12)).max().sqrt()


class Forecaster:
    """What a run forecasts, and when it computes.

    Args:
        gamma: The user's threshold.
        steps: Denoising steps of the run, None if unknown.
        home: Where the stored outputs wait; None for the device on which they came.
    """

    def __init__(self, gamma: float, steps: int | None = None, home: torch.device | None = None):
        self._tolerance = TOLERANCE * gamma**2
        self._longest = math.ceil(LONGEST * (steps or 20))
        self.home = home
        self._outputs: dict[Hashable, Output] = {}
        self._rate: float | None = None  # e per step of distance
        self._since = 0.0  # u_n of the run's newest computed evaluation
        self._spent = 0.0  # predicted error in x since then
        self.step: Step | None = None

    def cost(self, step: Step) -> float:
        """Predicted error in x, in units of the noise's rms, of leaving this evaluation out."""
        distance = max(step.position - self._since, 0.25)  # a step's second evaluation is not free
        return self._rate * distance * step.share / max(1 - step.noise, 0.005) ** EARLY

    def begin(self, step: Step) -> float:
        """Begin an evaluation: the predicted error over the tolerance; up to 1 it may be left out."""
        self.step = step
        unknown = self._rate is None or not all(output.ready for output in self._outputs.values())
        if unknown or step.position - self._since > self._longest:
            return math.inf
        return (self._spent + self.cost(step)) / self._tolerance

    def leave_out(self) -> None:
        """The evaluation is left out."""
        self._spent += self.cost(self.step)

    def reports(self) -> list[torch.Tensor]:
        """The errors measured in the evaluation that ends, 0-d on the device."""
        return [output.error for output in self._outputs.values() if output.error is not None]

    def settle(self, errors: list[float]) -> None:
        """Take back the values of `reports`: the worst one sets the rate, which falls by half at most."""
        measured = [output for output in self._outputs.values() if output.error is not None]
        rates = []
        for output, error in zip(measured, errors, strict=True):
            output.error = None
            jump = self._rate is not None and not error <= max(JUMP * self._rate * output.distance, ROUNDING)
            if jump:
                output.forget()
            rates.append(error if jump else error / output.distance)
        if rates:
            rate = max(rates) if all(map(math.isfinite, rates)) else math.inf
            self._rate = rate if self._rate is None else max(rate, (rate + self._rate) / 2)

    def known(self, key: Hashable, signature: Hashable) -> Output | None:
        """An output that can be forecast now, else None."""
        output = self._outputs.get(key)
        return output if output is not None and output.signature == signature and output.ready else None

    def observe(self, key: Hashable, signature: Hashable, result: Tensors, unit: Tensors, calls: list[int]) -> Tensors:
        """Take a computed output; what to give the sampler in its place. See `Output`."""
        output = self._outputs.get(key)
        if output is None or output.signature != signature:
            output = self._outputs[key] = Output(signature)
            self._rate = None
        output.calls = calls
        self._since, self._spent = self.step.position, 0.0
        return output.observe(self.step, result, unit, self.home)

    def clear(self) -> None:
        """Give all memory back."""
        self._outputs.clear()

    @property
    def nbytes(self) -> int:
        """Bytes held now."""
        return sum(output.nbytes for output in self._outputs.values())

    @property
    def need_bytes(self) -> int:
        """Bytes held once every output has its two points."""
        return sum(output.nbytes if output.ready else 2 * output.nbytes for output in self._outputs.values())

"""One output of a run: what was computed last, the forecast from it, and what forecasts have left in the latent.

The symbols are those of `forecast`.
"""

import math
from collections.abc import Hashable, Sequence

import torch

from .compiler import outside_graphs
from .schedule import Place
from .tensors import Tensors

DAMPING = 0.2  # share of a whole run's steps at which a forecast takes half of the slope
HOLDS_UNTIL = 0.1  # share of a whole run; up to there an output may be given again before there is a slope
LOUDEST = 1.2  # in a latent with several parts, errors are divided by at most this many times the noise


class History:
    """One output (of the guider, or of one cond): the two computed last, and what the forecasts since then left in x.

    Args:
        holds: Whether the first output may be given again before there is a slope.
        steps: N, of a whole run with steps like these; a run that is a part of one has fewer. May change.

    Attributes:
        signature: Whatever must stay the same for a forecast to make sense.
        error: e of its newest computed evaluation, see `relative`; None where there was nothing to forecast from.
        missed: D^ - D_m, while `error` is.
        sloped: Whether that D^ had two outputs to go by.
        flat: The sampler renews the noise, so that a forecast takes nothing of the slope: what the model expects of
            the video, given all that it has seen, changes by what nobody can foresee (it is a martingale).
    """

    damping = DAMPING

    def __init__(self, signature: Hashable, holds: bool, steps: float):
        self.signature, self._holds, self.steps = signature, holds, steps
        self.error: torch.Tensor | None = None
        self.missed: Tensors | None = None
        self.sloped = self.flat = False
        self._computed: list[tuple[float, Tensors]] = []  # (u_(n-1), D_(n-1)), (u_n, D_n)
        self._A = self._B = 0.0

    @property
    def ready(self) -> bool:
        """Whether there is a slope."""
        return len(self._computed) == 2

    @property
    def may_hold(self) -> bool:
        """Whether the only output there is may be given again."""
        return self._holds and len(self._computed) == 1

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
        return 0.0 if self.flat else h / (1 + max(0.0, h) / (self.damping * self.steps))

    def forget(self) -> None:
        """Drop the older output: after a jump the slope says nothing."""
        self._computed, self._holds = self._computed[-1:], False

    def take_back(self) -> None:
        """Drop the newer output: what comes next is computed."""
        self._computed, self._holds = self._computed[:-1], False

    @outside_graphs()
    def forecast(self, place: Place, device: torch.device) -> Tensors:
        """D^(u) in place of an output that is left out, as fresh tensors."""
        h = place.position - self.u_n
        self._A = place.a * self._A + place.b * self.reach(h)
        self._B = place.a * self._B + place.b * h
        return self._line(self.reach(h), device)

    def _line(self, r: float, device: torch.device) -> Tensors:
        """D_n + s r."""
        if not self.ready:
            return tuple(n.to(device, copy=True) for n in self.newest)
        (u_before, before), (u_n, newest) = self._computed
        r_in_gaps = r / (u_n - u_before)
        return tuple(n.to(device).lerp(b.to(device), -r_in_gaps) for n, b in zip(newest, before, strict=True))

    def is_like(self, output: Tensors) -> bool:
        """Whether an output has the shapes of the one before, so that the two can be compared."""
        return not self._computed or [x.shape for x in output] == [x.shape for x in self.newest]

    @property
    def newest(self) -> Tensors:
        """D_n."""
        return self._computed[-1][1]

    @outside_graphs()
    def observe(
        self, place: Place, output: Tensors, unit: Tensors, waits_on: torch.device | None, pays: bool
    ) -> Tensors:
        """Take a computed output; what to give the sampler in its place.

        Args:
            output: D_m, any shapes, batch first.
            unit: Tensors of the same shapes whose rms is the unit of e; where it is 0, nothing counts.
            waits_on: Where it waits; None for the device on which it came.
            pays: Whether what forecasts left in x may be paid back.
        """
        self.error, self.missed, given = None, None, output
        if self._computed and abs(place.position - self.u_n) < 1e-3:  # again at the same noise level (Heun)
            self._computed.pop()
        elif self._computed:
            h = place.position - self.u_n
            line = self._line(self.reach(h), output[0].device)
            self.missed = missing(line, output, unit)
            self.error, self.sloped = relative(self.missed, unit), self.ready
            if pays and self._B and place.a and place.b:  # b is 0 where a schedule stands still
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


def missing(given: Tensors, real: Tensors, unit: Tensors) -> Tensors:
    """What outputs that were given miss of the real ones; nothing where the unit of errors is 0."""
    return tuple((x.to(y.device) - y) * (u != 0) for x, y, u in zip(given, real, unit, strict=True))


def relative(missed: Tensors, unit: Tensors) -> torch.Tensor:
    """rms(missed) / rms(unit) of the worst item of the batch, for each of these tensors: 1-D, fp32, on their device.

    It is 0 only where the unit is 0 too: then nothing has been forecast that would be evidence.
    """

    def squares(x: torch.Tensor) -> torch.Tensor:
        return x.float().flatten(1).square().sum(1)

    def worst(x: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
        size = squares(u)
        return (squares(x) / size.clamp_min(1e-12) + (size > 0) * 1e-18).max()

    return torch.stack([worst(*pair) for pair in zip(missed, unit, strict=True)]).sqrt()


def quieted(unit: Tensors, noise: Sequence[float]) -> Tensors:
    """What errors in the parts of a latent are measured in: their `unit`, but at most `LOUDEST` times the noise, rms.

    One part (the sound of a video) may have much larger values than the others. Measured in its own size, it would be
    allowed so much larger an error than they are.

    Args:
        unit: x - D of every part, batch first; 0 where nothing counts.
        noise: Rms of the noise in each, times the scale at which the part is carried.
    """
    means = (x.float().flatten(1).square().sum(1) / (x != 0).flatten(1).sum(1).clamp_min(1) for x in unit)
    sizes = (mean.sqrt().view(-1, *[1] * (x.ndim - 1)) for mean, x in zip(means, unit, strict=True))
    return tuple(
        x * (LOUDEST * rms / size.clamp_min(1e-12)).clamp_max(1.0) if rms else x
        for x, size, rms in zip(unit, sizes, noise, strict=True)
    )


def by_part(outputs: Sequence[Sequence[float]], parts: int) -> list[float]:
    """The worst error of each part of the latent (video, audio); not a number where one is none.

    Where an output has not as many tensors for each part, nobody knows which is which, and all of it counts as one.

    Args:
        outputs: Of one output or several, the numbers of `relative`: of every part in turn, once or several times.
        parts: How many the latent has.
    """
    n = parts if all(len(errors) % parts == 0 for errors in outputs) else 1
    found = [[error for errors in outputs for error in errors[i::n]] for i in range(n)]
    return [max(errors, key=lambda error: math.inf if math.isnan(error) else error) for errors in found]

"""ComfyUI-FSampler's rules (obisin, arXiv 2511.09180): epsilon = denoised - x, extrapolated from the computed ones.

Written after its formulas, none of its code is in here. With e_1, e_2, e_3 the last computed epsilons, newest first:

    h2: 2 e_1 - e_2        h3: 3 e_1 - 3 e_2 + e_3

"h2" leaves out one evaluation after every `calls` computed ones. "adaptive" leaves one out where h3 and h2 lead to
nearly the same next latent (Euler) or are nearly the same (other samplers), with fixed ones between. A forecast is
divided by the learned ratio of norms. Protected ends, caps and the slow learning rate are those of its simple node. Of
our samplers that node knows euler and res_multistep; the rules are applied to all.
"""

import torch

from .diffusers_host import Denoiser

SMOOTHING = 0.9999  # of the learned ratio, which stays in [0.5, 2]
MOST_IN_A_ROW = 4


def linear(history: list[torch.Tensor]) -> torch.Tensor:
    """h2."""
    return 2 * history[-1] - history[-2]


def richardson(history: list[torch.Tensor]) -> torch.Tensor:
    """h3."""
    return 3 * history[-1] - 3 * history[-2] + history[-3]


class Skipper:
    """The guided velocity of a denoiser, computed or forecast.

    Args:
        calls: Computed evaluations before one is left out ("h2"); None for "adaptive".
        anchor: "adaptive": every so many evaluations one is computed.
        tolerance: "adaptive": the relative difference up to which one is left out.
        first, last: Protected evaluations.
    """

    def __init__(
        self, denoiser: Denoiser, calls: int | None = None, anchor: int = 4, tolerance: float = 0.1, first=2, last=3
    ):
        self._denoiser, self._compute = denoiser, denoiser.guided
        self._calls, self._anchor, self._tolerance, self._first, self._last = calls, anchor, tolerance, first, last
        self._history: list[torch.Tensor] = []
        self._ratio, self._in_a_row = 1.0, 0

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        sigma = self._denoiser.timestep / 1000
        forecast = self._forecast(x, sigma)
        if forecast is None:
            velocity = self._compute(x)
            self._learn(-sigma * velocity)
            self._in_a_row = 0
            return velocity
        self._in_a_row += 1
        return -(forecast / self._ratio if len(self._history) > 2 else forecast) / sigma

    def _learn(self, epsilon: torch.Tensor) -> None:
        self._history = [*self._history[-2:], epsilon]
        if len(self._history) > 2:
            seen = float(linear(self._history).norm() / (epsilon.norm() + 1e-8))
            self._ratio = min(max(SMOOTHING * self._ratio + (1 - SMOOTHING) * seen, 0.5), 2.0)

    def _forecast(self, x: torch.Tensor, sigma: float) -> torch.Tensor | None:
        """The epsilon to use instead of a computed one; None where one has to be computed."""
        index, total = self._denoiser.index, self._denoiser.evaluations
        if index < self._first or index >= total - self._last:
            return None
        if self._calls is not None:
            due = len(self._history) > 1 and (index - max(self._first, 2)) % (self._calls + 1) == self._calls
            return linear(self._history) if due else None
        anchored = self._anchor and (index - self._first) % self._anchor == 0
        if len(self._history) < 3 or self._in_a_row >= MOST_IN_A_ROW or anchored:
            return None
        high, low = richardson(self._history), linear(self._history)
        return high if self._differ(x, sigma, high, low) <= self._tolerance else None

    def _differ(self, x: torch.Tensor, sigma: float, high: torch.Tensor, low: torch.Tensor) -> float:
        if self._denoiser.sampler == "euler":
            below = self._denoiser.sigmas[self._denoiser.sigmas < sigma - 1e-6].max()
            high, low = (x + (below - sigma) * -epsilon / sigma for epsilon in (high, low))
        return float((high - low).square().mean().sqrt() / high.square().mean().sqrt().clamp(min=1e-6))


def apply(denoiser: Denoiser, settings: dict, calibration=None) -> None:
    """Put a `Skipper` around the guided evaluation."""
    denoiser.guided = Skipper(denoiser, **settings)

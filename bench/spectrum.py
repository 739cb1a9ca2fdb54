"""Spectrum (Han et al., arXiv 2603.01623): the hidden state after the last block as a polynomial of the step.

Written after the paper and the settings of its ports, none of their code is in here. With t a step's place in [-1, 1]:

    Phi[i, j] = T_j(t_i)                                   Chebyshev polynomials at the computed steps, j = 0..degree
    forecast(t) = phi(t) (Phi^T Phi + ridge I)^-1 Phi^T H  H: the hidden states there, one row each

`blend` is the weight of that; the rest is the straight line through the last two. What follows the blocks (norm, output
layer) runs in every step. Which steps are computed is a rhythm: see `Rhythm`. A port for ComfyUI then samples once more
without the blocks, with the line between the two computed neighbours in place of each forecast (`second_pass`; what the
port mixes into that line, where it proves better at the computed steps, is left out here).
"""

import math
from dataclasses import dataclass

import torch

from .diffusers_host import Denoiser
from .meter import blocks_of

RIDGE = 0.1  # of the paper and its ports


def basis(t: torch.Tensor, degree: int) -> torch.Tensor:
    """T_0 to T_degree at each of t, (len(t), degree + 1)."""
    return torch.cos(torch.arange(degree + 1) * torch.arccos(t.double().clamp(-1, 1))[:, None])


def ridge_weights(times: list[float], at: float, degree: int, ridge: float) -> torch.Tensor:
    """The weight of each hidden state in the polynomial's forecast."""
    known, wanted = basis(torch.tensor(times), degree), basis(torch.tensor([at]), degree)[0]
    return known @ torch.linalg.solve(known.T @ known + ridge * torch.eye(degree + 1, dtype=known.dtype), wanted)


def line_weights(times: list[float], at: float) -> torch.Tensor:
    """The same for the line through the last two; the last one alone where there is one."""
    weights = torch.zeros(len(times), dtype=torch.float64)
    reach = (at - times[-1]) / (times[-1] - times[-2]) if len(times) > 1 else 0.0
    weights[-1] = 1 + reach
    if len(times) > 1:
        weights[-2] = -reach
    return weights


def between_weights(times: list[float], at: float) -> torch.Tensor:
    """The same for the line between the two neighbours, which one at a computed step goes through."""
    weights = torch.zeros(len(times), dtype=torch.float64)
    after = next(place for place, time in enumerate(times) if (time - at) * (times[-1] - times[0]) >= 0)
    before = max(after - 1, 0)
    share = (at - times[before]) / (times[after] - times[before]) if after else 1.0
    weights[before] += 1 - share
    weights[after] += share
    return weights


@dataclass
class Rhythm:
    """Which steps are computed: the first `warmup`, the last `tail`, and between them one in floor(window).

    Attributes:
        flex_window: What the window, 2 at first, grows by with each computed step after the warmup.
        limit: The most forecasts in a row.
        hold_first: Whether step 1 repeats step 0.
    """

    steps: int
    warmup: int = 5
    flex_window: float = 0.75
    tail: int = 0
    limit: int | None = None
    hold_first: bool = False

    def computed(self) -> list[bool]:
        """Whether each step is."""
        found, window, run = [], 2.0, 0
        for step in range(self.steps):
            holds = self.hold_first and step == 1
            fixed = step < self.warmup or step >= self.steps - self.tail or (sum(found) < 2 and not holds)
            due = not holds and (run + 1) % math.floor(window) == 0
            found.append(fixed or due or (self.limit is not None and run >= self.limit))
            window += self.flex_window if due and not fixed else 0
            run = 0 if found[-1] else run + 1
        return found


class Forecaster(torch.nn.Module):
    """Stands in for the blocks of a network: runs them, or gives the forecast of what they would return.

    Cond and uncond have histories of their own.

    Args:
        kept: How many hidden states a forecast is made from, the newest; None for all.
    """

    def __init__(self, denoiser: Denoiser, rhythm: Rhythm, degree: int, blend: float, by_sigma: bool, kept=None):
        super().__init__()
        self.blocks = blocks_of(denoiser.net)
        self._denoiser, self._computed, self._kept = denoiser, rhythm.computed(), kept
        self._degree, self._blend, self._again = degree, blend, False
        self._times = _times(denoiser, by_sigma)
        self._history: dict[str, list[tuple[float, torch.Tensor]]] = {}

    def forward(self, hidden_states: torch.Tensor, encoder_hidden_states: torch.Tensor, *args, **kwargs):
        """What the last block returns."""
        now, history = self._denoiser.index, self._history.setdefault(self._denoiser.context, [])
        if self._again or not self._computed[now]:
            return self._like(self.forecast(self._times[now], history), encoder_hidden_states)
        text = encoder_hidden_states
        for block in self.blocks:
            out = block(hidden_states, text, *args, **kwargs)
            hidden_states, text = out if isinstance(out, tuple) else (out, text)
        history.append((self._times[now], hidden_states.clone()))
        return self._like(hidden_states, text)

    def forecast(self, at: float, history: list[tuple[float, torch.Tensor]]) -> torch.Tensor:
        """The hidden state at a place, from those of the computed steps, oldest first."""
        used = history if self._again or not self._kept else history[-self._kept :]
        times, states = [time for time, _ in used], [state for _, state in used]
        weights = between_weights(times, at) if self._again else line_weights(times, at)
        if len(times) > 1 and self._blend and not self._again:
            polynomial = ridge_weights(times, at, self._degree, RIDGE)
            weights = self._blend * polynomial + (1 - self._blend) * weights
        return sum(weight * state for weight, state in zip(weights.tolist(), states, strict=True))

    def start_again(self) -> None:
        """The next pass computes nothing."""
        if not self._computed[-1]:
            raise ValueError("a second pass needs a computed last step: set tail=1")
        self._again = True

    def _like(self, hidden_states: torch.Tensor, text: torch.Tensor):
        return hidden_states if self._denoiser.family == "wan" else (hidden_states, text)


def _times(denoiser: Denoiser, by_sigma: bool) -> list[float]:
    """Each evaluation's place in [-1, 1]: by its number, or by its noise level."""
    if not by_sigma:
        return [2 * index / denoiser.evaluations - 1 for index in range(denoiser.evaluations)]
    levels = denoiser.sigmas[:-1].tolist()
    return [2 * (level - levels[-1]) / max(levels[0] - levels[-1], 1e-9) - 1 for level in levels]


def apply(denoiser: Denoiser, settings: dict, calibration=None) -> None:
    """Put a `Forecaster` in place of the blocks.

    Args:
        settings: `degree`, `blend`, `by_sigma`, `kept`, `second_pass`, `res_tail` (of res_multistep), and the fields of
            `Rhythm`.
    """
    own = {"degree": 4, "blend": 1.0, "by_sigma": False, "kept": None, "res_tail": 0, "second_pass": False, **settings}
    how = {name: own.pop(name) for name in ("degree", "blend", "by_sigma", "kept")}
    least, again = own.pop("res_tail"), own.pop("second_pass")
    if denoiser.sampler == "res_multistep":
        own["tail"] = max(own.get("tail", 0), least)
    if denoiser.evaluations != len(denoiser.sigmas) - 1:
        raise ValueError(f"{denoiser.sampler} evaluates more than once in a step, its rhythm counts steps")
    whole = Forecaster(denoiser, Rhythm(denoiser.evaluations, **own), **how)
    name = next(name for name, module in denoiser.net.named_children() if module is whole.blocks)
    setattr(denoiser.net, name, torch.nn.ModuleList([whole]))
    denoiser.again = whole.start_again if again else None

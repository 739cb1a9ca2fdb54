"""What a model says of its noise and its levels, asked without making the GPU wait.

Models of discrete levels keep them in tables beside their weights, so that on a GPU each question is a device read: as
long as the work in flight takes, dozens of times. Here a copy of the tables is asked, and nothing twice.
"""

import copy
from collections.abc import Callable

import comfy.model_sampling
import numpy as np
import torch


def fp32(x: float) -> float:
    """A number as torch compares it with a level, which is fp32."""
    return float(np.float32(float(x)))  # of a tensor too: Stable Cascade has its bounds as such


class Noise:
    """How much of a latent is noise, and how large the latent is.

    Both are told as of a flow model, x = (1 - s) x_0 + s n with n as large as x_0: what the plan and the errors go by
    was measured on such models. There x - D is s times the velocity. In x = x_0 + sigma n it is sigma n, up to
    1 / (1 - s) times as much, and no error would look large beside it.

    Args:
        model_sampling: ComfyUI's object. A flow model's has x = (1 - sigma) x_0 + sigma `noise_scale` n, every other's
            x = x_0 + sigma n with an x_0 of size `sigma_data`.
    """

    def __init__(self, model_sampling: object):
        self._flow = isinstance(model_sampling, comfy.model_sampling.CONST)
        scale = float(getattr(model_sampling, "noise_scale" if self._flow else "sigma_data", None) or 1.0)
        self._per_sigma = scale if self._flow else 1.0 / scale

    def share(self, sigma: float) -> float:
        """s at a noise level."""
        return self._per_sigma * sigma / self.size(sigma)

    def size(self, sigma: float) -> float:
        """The latent over that of a flow model with the same s."""
        return self._per_sigma * sigma + (1.0 - sigma if self._flow else 1.0)


class Levels:
    """The levels of a model's run from percent 0 to 1.

    Args:
        model_sampling: ComfyUI's object of it; any with `percent_to_sigma`.
    """

    def __init__(self, model_sampling: object):
        self._percent_to_sigma = _in_ram(model_sampling)
        self._sigmas: dict[float, float] = {}
        self._shares: dict[float, float] = {}

    def sigma(self, percent: float) -> float:
        """The noise level at this share of a whole run."""
        if percent not in self._sigmas:
            self._sigmas[percent] = float(self._percent_to_sigma(percent))
        return self._sigmas[percent]

    def over(self, sigma: float) -> float:
        """Share of a whole run of the model that is over at a noise level: the percent that has this sigma, as 0..1."""
        if sigma not in self._shares:
            low, high = 0.0, 1.0
            for _ in range(20):
                middle = (low + high) / 2
                low, high = (middle, high) if self.sigma(middle) > sigma else (low, middle)
            self._shares[sigma] = (low + high) / 2
        return self._shares[sigma]


def _in_ram(model_sampling: object) -> Callable[[float], float]:
    """Its `percent_to_sigma`, of a copy with its tables in RAM; its own where it can't be told what else it reads."""
    own = model_sampling.percent_to_sigma
    if not isinstance(model_sampling, torch.nn.Module) or any(True for _ in model_sampling.parameters()):
        return own
    try:
        copied = copy.copy(model_sampling)
        if copied is model_sampling or model_sampling._modules:
            return own
        copied._buffers = dict(model_sampling._buffers)
        for held in (copied._buffers, vars(copied)):
            for name, x in list(held.items()):
                if isinstance(x, torch.Tensor):
                    held[name] = x.cpu()
        float(copied.percent_to_sigma(0.5))
    except Exception:  # a class of another pack that can't be copied so, or keeps tensors elsewhere
        return own
    return copied.percent_to_sigma

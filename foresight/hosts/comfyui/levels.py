"""What a model says of its noise levels, asked without making the GPU wait.

Models of discrete levels keep them in tables beside their weights, so that on a GPU each question is a device read: as
long as the work in flight takes, dozens of times. Here a copy of the tables is asked, and nothing twice.
"""

import copy
from collections.abc import Callable

import torch


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

"""What a model says of its noise levels, asked without making the GPU wait.

Models of discrete levels keep them in tables beside their weights, so that on a GPU each question is a device read: as
long as the work in flight takes, dozens of times. Here a copy of the tables is asked, and nothing twice.
"""

import copy
import functools

import torch


class Levels:
    """The levels of a model's run from percent 0 to 1.

    Args:
        model_sampling: ComfyUI's object of it; any with `percent_to_sigma`.
    """

    def __init__(self, model_sampling: object):
        self._percent_to_sigma = _in_ram(model_sampling).percent_to_sigma
        self.sigma = functools.cache(self._sigma)
        self.over = functools.cache(self._over)

    def _sigma(self, percent: float) -> float:
        """The noise level at this share of a whole run."""
        return float(self._percent_to_sigma(percent))

    def _over(self, sigma: float) -> float:
        """Share of a whole run of the model that is over at a noise level: the percent that has this sigma, as 0..1."""
        low, high = 0.0, 1.0
        for _ in range(20):
            middle = (low + high) / 2
            low, high = (middle, high) if self.sigma(middle) > sigma else (low, middle)
        return (low + high) / 2


def _in_ram(model_sampling: object) -> object:
    """The same, with a copy of its tables in RAM; what is not a torch module is given back as it is."""
    if not isinstance(model_sampling, torch.nn.Module):
        return model_sampling
    copied = copy.copy(model_sampling)
    copied._buffers = dict(model_sampling._buffers)
    for held in (copied._buffers, vars(copied)):
        for name, x in list(held.items()):
            if isinstance(x, torch.Tensor):
                held[name] = x.cpu()
    return copied

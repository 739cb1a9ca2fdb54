"""Runs of one tiny transformer of diffusers, called as a hand-written loop calls it."""

import torch

from foresight.hosts.diffusers import apply_foresight
from support import contract
from support.told import computes


class Run:
    """Calls without a context, as a hand-written loop makes them; with a config, Foresight is on the transformer.

    Without `moves` the latent stays as it is, so that no sampler has taken in what it was given in any other way.
    """

    def __init__(self, transformer, config=None, steps=contract.STEPS, moves=True, **options):
        self.transformer, self.steps, self.moves, self.options = transformer, steps, moves, options
        self.handle = apply_foresight(transformer.model, config, steps=steps) if config else None

    def __call__(self, step):
        timestep = torch.tensor([1000.0 * (1 - step / self.steps)])
        x = contract.latent_at(self.transformer.latent, step if self.moves else 0)
        with torch.no_grad():
            return self.transformer.call(x, timestep, **self.options)

    def end(self):
        self.handle.remove()
        return self.handle.stats


class Plain(Run):
    """The same model while another run has its hook on it: straight to the class's forward."""

    def __call__(self, step):
        model = self.transformer.model
        hooked = model.__dict__.pop("forward", None)
        try:
            return super().__call__(step)
        finally:
            if hooked is not None:
                model.forward = hooked


def forecast_runs(transformer, config, **options):
    """A plain run and one with the method "forecast", for `contract`."""
    options |= {"steps": contract.FORECAST_STEPS, "moves": False}
    return Plain(transformer, **options), Run(transformer, config, **options)


def check_forecast(transformer, family, stack, return_dict: bool) -> None:
    """A forecast takes the place of the whole model, see `contract.check_forecast`; `stack` says what is the model."""
    plain, active = forecast_runs(transformer, computes({0, 2, 4, 7, 10, 13}), return_dict=return_dict)

    def denoised(tensors, step):  # but for the latent, which does not change
        sigma = 1 - step / contract.FORECAST_STEPS if family.flow else 1.0
        return [sigma * x for x in tensors]

    contract.check_forecast(transformer.model, stack, plain, active, active.end, denoised)

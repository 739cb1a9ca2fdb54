"""A run of one tiny network, with the calls nested as ComfyUI's sampling code nests them."""

import types

import comfy.patcher_extension
import torch

from foresight.hosts import comfyui
from support import contract

WRAPPERS = comfy.patcher_extension.WrappersMP


class Run:
    """A run at CFG 1 with the wrappers of one `_Run`, or with none."""

    def __init__(self, network, config=None):
        self.network, self.run = network, None
        self.options = {"transformer_options": {}}
        self.sigmas = torch.linspace(1, 0, contract.STEPS + 1)
        if config is not None:
            model_sampling = types.SimpleNamespace(percent_to_sigma=lambda percent: 1 - percent)
            patcher = types.SimpleNamespace(get_model_object=lambda name: model_sampling)
            self.run = comfyui._Run(config, patcher, self.sigmas)
            self.options = self.run.install(self.options)

    def _wrapped(self, kind, function, owner, *args):
        wrappers = comfy.patcher_extension.get_all_wrappers(kind, self.options, is_model_options=True)
        return comfy.patcher_extension.WrapperExecutor.new_class_executor(function, owner, wrappers).execute(*args)

    def __call__(self, step, **extra):
        """One evaluation, as CFGGuider, BaseModel and the network nest their calls."""

        def predict_noise(x, timestep):
            return self._wrapped(WRAPPERS.CALC_COND_BATCH, lambda: self.call_model(step, **extra), None)

        x = contract.latent_at(self.network.latent, step)
        with torch.inference_mode():
            return self._wrapped(WRAPPERS.PREDICT_NOISE, predict_noise, None, x, self.sigmas[step : step + 1])

    def call_model(self, step, **extra):
        """The one call of the model in that evaluation."""
        x, sigma = contract.latent_at(self.network.latent, step), self.sigmas[step : step + 1]
        base_model = types.SimpleNamespace(diffusion_model=self.network.model)
        options = {**self.options["transformer_options"], "cond_or_uncond": [0], "uuids": ["one"]}
        options = {**options, "sigmas": sigma, "sample_sigmas": self.sigmas, **extra}

        def apply_model(x, t, c_concat, c_crossattn, control, transformer_options):
            return self.network.call(x, dict(transformer_options))

        return self._wrapped(WRAPPERS.APPLY_MODEL, apply_model, base_model, x, sigma, None, None, None, options)

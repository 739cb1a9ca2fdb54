"""A run of one tiny network, with the calls nested as ComfyUI's sampling code nests them."""

import types

import comfy.patcher_extension
import comfy.samplers
import comfy.utils
import torch

from foresight.hosts import comfyui
from support import contract

WRAPPERS = comfy.patcher_extension.WrappersMP


class Run:
    """A run at CFG 1 with the wrappers of one `SamplerRun`, or with none."""

    def __init__(self, network, config=None, steps=contract.STEPS):
        self.network, self.run, self.latent = network, None, network.latent
        self.options = {"transformer_options": {}}
        self.sigmas = torch.linspace(1, 0, steps + 1)
        if config is not None:
            model_sampling = types.SimpleNamespace(percent_to_sigma=lambda percent: 1 - percent)
            patcher = types.SimpleNamespace(get_model_object=lambda name: model_sampling)
            euler = comfy.samplers.sampler_object("euler")
            self.run = comfyui.SamplerRun(config, patcher, self.sigmas, sampler=euler)
            self.options = self.run.install(self.options)

    def _wrapped(self, kind, function, owner, *args):
        wrappers = comfy.patcher_extension.get_all_wrappers(kind, self.options, is_model_options=True)
        return comfy.patcher_extension.WrapperExecutor.new_class_executor(function, owner, wrappers).execute(*args)

    def __call__(self, step, **extra):
        """One evaluation, as CFGGuider, BaseModel and the network nest their calls."""

        def predict_noise(x, timestep, *_):
            return self._wrapped(WRAPPERS.CALC_COND_BATCH, lambda: self.call_model(step, **extra), None)

        with torch.inference_mode():
            x, options = self.sampler_latent(step), {**self.options["transformer_options"], **extra}
            given = x, self._sigma(step), {**self.options, "transformer_options": options}
            return self._wrapped(WRAPPERS.PREDICT_NOISE, predict_noise, self._guider(), *given)

    def sampler_latent(self, step):
        """The sampler's own latent at a step."""
        return contract.latent_at(self.latent, step)

    def begin_evaluation(self, step):
        """What comes before the calls of the model, where these run elsewhere."""
        self._wrapped(WRAPPERS.PREDICT_NOISE, lambda x, *_: x, self._guider(), torch.zeros(1), self._sigma(step))

    @staticmethod
    def _guider():
        return types.SimpleNamespace(conds={"positive": [{"uuid": "one"}]})

    def _sigma(self, step):
        return self.sigmas[step : step + 1]

    def call_model(self, step, **extra):
        """The one call of the model in that evaluation."""
        x, sigma = contract.latent_at(self.network.latent, step), self.sigmas[step : step + 1]
        base_model = types.SimpleNamespace(diffusion_model=self.network.model)
        options = {**self.options["transformer_options"], "cond_or_uncond": [0], "uuids": ["one"]}
        options = {**options, "sigmas": sigma, "sample_sigmas": self.sigmas, **extra}

        def apply_model(x, t, c_concat, c_crossattn, control, transformer_options):
            return self.network.call(x, dict(transformer_options))

        return self._wrapped(WRAPPERS.APPLY_MODEL, apply_model, base_model, x, sigma, None, None, None, options)


class PackedRun(Run):
    """The same as the sampler sees it: one latent, of the shape of what it gets back.

    BaseModel packs video and audio into one tensor, and what else a network takes as channels joins the latent there.
    The sampler's latent takes Euler's steps along what it is given, for a forecast needs a sampler that goes on from
    the last evaluation. The network gets the same input at a step whatever was given before, to be comparable.
    """

    def __init__(self, network, config=None, steps=contract.FORECAST_STEPS):
        super().__init__(network, config, steps)
        self.latent = PackedRun.call_model(Run(network), 0).shape
        self._x = contract.latent_at(self.latent, 0)

    def __call__(self, step, **extra):
        given = super().__call__(step, **extra)
        with torch.inference_mode():
            self._x = self._x + (1 - self.sigmas[step + 1] / self.sigmas[step]) * (given - self._x)
        return given

    def sampler_latent(self, step):
        return self._x

    def call_model(self, step, **extra):
        output = Run.call_model(self, step, **extra)
        return comfy.utils.pack_latents(output)[0] if isinstance(output, list) else output

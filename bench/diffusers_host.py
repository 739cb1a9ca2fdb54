"""The small trained models as diffusers classes, sampled by the same k-diffusion functions as in ComfyUI.

A run works on a copy of the network, so that what a cache leaves on it is gone with it.
"""

import copy

import torch

from models.demo import codec, model
from models.demo.prompt import embed

from .comfy import CFG, noise_of
from .meter import Meter, blocks_of
from .models import MODELS


class Denoiser:
    """A network as k-diffusion calls one, cond and uncond under `cache_context` as in diffusers' pipelines.

    Attributes:
        net: The network of this run; a cache may be enabled on it.
        family: "wan" or "cogvideox".
        batched: Whether cond and uncond go through the network in one call, uncond first.
        evaluations: How many evaluations the run has; `index` is the present one.
        timestep: The present one, 1000 x sigma.
        guided: Latents to velocities with CFG; a cache of whole evaluations may wrap it.
    """

    def __init__(self, net: torch.nn.Module, prompt: str, evaluations: int):
        self.net, self.evaluations = net, evaluations
        self.family = "wan" if type(net).__name__.startswith("Wan") else "cogvideox"
        self.batched, self.index, self.timestep = False, -1, 1000.0
        self.guided = self._guided
        self._texts = {"cond": embed([prompt]), "uncond": embed([""])}

    def __call__(self, x: torch.Tensor, sigma: torch.Tensor, **_) -> torch.Tensor:
        """Latents (1, 12, 8, 16, 16) at noise level sigma (1,) to denoised ones."""
        self.index += 1
        self.timestep = float(sigma[0]) * 1000
        return x - self.guided(x) * sigma.reshape(-1, 1, 1, 1, 1)

    def _guided(self, x: torch.Tensor) -> torch.Tensor:
        if self.batched:
            text = torch.cat([self._texts["uncond"], self._texts["cond"]])
            with self._context("cond_uncond"):
                uncond, cond = self._velocity(torch.cat([x, x]), text).chunk(2)
        else:
            with self._context("cond"):
                cond = self._velocity(x, self._texts["cond"])
            with self._context("uncond"):
                uncond = self._velocity(x, self._texts["uncond"])
        return uncond + CFG * (cond - uncond)

    def _context(self, name: str):
        place = {"step_index": self.index, "num_inference_steps": self.evaluations, "sigma": self.timestep / 1000}
        return self.net.cache_context(name, **place)

    def _velocity(self, x: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        timestep = torch.full((len(x),), self.timestep)
        if self.family == "wan":
            x = torch.cat([x, model.coordinates(x)], dim=1)
        else:
            x = x.transpose(1, 2)
        out = self.net(hidden_states=x, timestep=timestep, encoder_hidden_states=text, return_dict=False)[0]
        return out if self.family == "wan" else out.transpose(1, 2)


class Host:
    """One trained model in diffusers.

    Args:
        name: Which of `bench.models.MODELS`.
        sigmas: Steps to noise levels, the ones of `comfy.Demo`.
    """

    def __init__(self, name: str, sigmas):
        self.name, self.net, self.sigmas = name, MODELS[name].load(), sigmas

    def measure(self, apply, prompt: str, seed: int, sampler: str, steps: int, weigh: bool = False):
        """Sample once: the clip (T, H, W, 3) as a tensor, and the `Meter` of the run.

        Args:
            apply: Called with the `Denoiser` before sampling; what it returns, if anything, is called afterwards.
        """
        denoiser = Denoiser(copy.deepcopy(self.net), prompt, evaluations_of(sampler, steps))
        meter = Meter(weigh)
        with torch.inference_mode(), meter.counting(blocks_of(denoiser.net)):
            undo = apply(denoiser) if apply is not None else None
            try:
                out = meter.sampler(sampler)(denoiser, noise_of(seed), self.sigmas(steps))
            finally:
                if undo is not None:
                    undo()
        return codec.decode(out)[0], meter


def evaluations_of(sampler: str, steps: int) -> int:
    """How often the model is evaluated in a run; Heun's last step is one of Euler's."""
    return {"euler": steps, "heun": 2 * steps - 1}[sampler]

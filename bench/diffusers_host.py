"""The small trained models as diffusers classes, sampled by the same k-diffusion functions as in ComfyUI.

A run works on a copy of the network, so that what a cache leaves on it is gone with it.
"""

import copy
from types import SimpleNamespace

import torch

from models.demo import codec, model
from models.demo.prompt import embed

from .comfy import noise_of
from .meter import Meter, blocks_of
from .models import MODELS
from .workloads import Workload, evaluations, networks_of


class Denoiser:
    """A network as k-diffusion calls one, cond and uncond under `cache_context` as in diffusers' pipelines.

    Attributes:
        net: The network of this stage; a cache may be enabled on it.
        family: "wan" or "cogvideox".
        stage: Which stage of the run it is for; `sigmas` are its noise levels.
        cfg: Guidance; at 1 uncond is not computed.
        batched: Whether cond and uncond go through the network in one call, uncond first.
        evaluations: How many evaluations the stage has; `index` is the present one.
        timestep: The present one, 1000 x sigma.
        context: What the network is being called for: "cond", "uncond" or "cond_uncond".
        guided: Latents to velocities with CFG; a cache of whole evaluations may wrap it.
        again: Called after the last step if it is not None; then the stage is sampled once more, from the same latent.
        inner_model: What some samplers ask for the kind of noise levels.
    """

    def __init__(
        self, net: torch.nn.Module, prompt: str, workload: Workload, stage: int, sigmas: torch.Tensor, patcher
    ):
        self.net, self.stage, self.sigmas, self.cfg = net, stage, sigmas, workload.cfg
        self.evaluations = evaluations(workload.sampler, workload.stages[stage])
        self.sampler = workload.sampler
        self.family = "wan" if type(net).__name__.startswith("Wan") else "cogvideox"
        self.batched, self.index, self.timestep, self.context = False, -1, 1000.0, "cond"
        self.guided, self.again = self._guided, None
        self.inner_model = SimpleNamespace(
            model_patcher=patcher,
            inner_model=SimpleNamespace(model_sampling=patcher.get_model_object("model_sampling")),
        )
        self._texts = {"cond": embed([prompt]), "uncond": embed([""])}

    def __call__(self, x: torch.Tensor, sigma: torch.Tensor, **_) -> torch.Tensor:
        """Latents (1, 12, 8, 16, 16) at noise level sigma (1,) to denoised ones."""
        self.index += 1
        self.timestep = float(sigma[0]) * 1000
        return x - self.guided(x) * sigma.reshape(-1, 1, 1, 1, 1)

    def _guided(self, x: torch.Tensor) -> torch.Tensor:
        if self.cfg == 1:
            return self._velocity("cond", x, self._texts["cond"])
        if self.batched:
            text = torch.cat([self._texts["uncond"], self._texts["cond"]])
            uncond, cond = self._velocity("cond_uncond", torch.cat([x, x]), text).chunk(2)
        else:
            cond, uncond = (self._velocity(name, x, self._texts[name]) for name in ("cond", "uncond"))
        return uncond + self.cfg * (cond - uncond)

    def _velocity(self, context: str, x: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        place = {"step_index": self.index, "num_inference_steps": self.evaluations, "sigma": self.timestep / 1000}
        self.context = context
        with self.net.cache_context(context, **place):
            return self._called(x, text)

    def _called(self, x: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
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
        name: Which of `bench.models.MODELS`, or of `bench.workloads.NETWORKS`.
        demo: `comfy.Demo` of the same model, which gives the noise levels.
    """

    def __init__(self, name: str, demo):
        self.name, self._demo = name, demo
        self._nets = [MODELS[network].load() for network in networks_of(name)]
        self.net = self._nets[0]

    def sample(self, apply, prompt: str, seed: int, workload: Workload, weigh: bool = False):
        """Sample once: the clip (T, H, W, 3) as a tensor, and the `Meter` of the run.

        Args:
            apply: Called with the `Denoiser` of each stage; what it returns, if anything, is called afterwards.
        """
        meter, x = Meter(weigh), noise_of(seed) * 0
        for stage, ((first, end), net) in enumerate(zip(workload.spans, self._nets, strict=True)):
            patcher = self._demo.plain(workload.shift)[stage]
            sigmas = self._demo.sigmas(workload.steps, workload.sampler, patcher)[first : end + 1].clone()
            denoiser = Denoiser(copy.deepcopy(net), prompt, workload, stage, sigmas, patcher)
            levels = denoiser.inner_model.inner_model.model_sampling
            x = levels.noise_scaling(sigmas[0], noise_of(seed) if first == 0 else x * 0, x)
            with torch.inference_mode(), meter.counting(blocks_of(denoiser.net)):
                undo = apply(denoiser) if apply is not None else None
                try:
                    begun, sampler = x, meter.sampler(workload.sampler)
                    x = sampler(denoiser, begun.clone(), sigmas, {"seed": seed})
                    if denoiser.again is not None:
                        denoiser.again()
                        denoiser.index = -1
                        x = sampler(denoiser, begun.clone(), sigmas, {"seed": seed})
                finally:
                    if undo is not None:
                        undo()
            x = levels.inverse_noise_scaling(sigmas[-1], x)
        return codec.decode(x)[0], meter

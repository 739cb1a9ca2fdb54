"""The small trained models in a ComfyUI without a server, for the benchmarks; COMFYUI_PATH says where ComfyUI is."""

import os
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar
from unittest import mock

from foresight.report.machine import processor
from models.demo import model
from models.demo.prompt import embed
from tools import hosts

from .meter import Meter, blocks_of
from .models import MODELS
from .workloads import Workload, networks_of

SHAPE = (1, 12, 8, 16, 16)  # of the latents


Result = TypeVar("Result")


@dataclass
class Run:
    """One sampler run: decoded clip (T, H, W, 3), wall seconds of sampling, RunStats.to_dict() or None when plain."""

    clip: object
    seconds: float
    stats: dict | None


class Demo:
    """One of the trained models behind ComfyUI's own sampling code.

    Args:
        name: Which of `bench.models.MODELS`, or of `bench.workloads.NETWORKS`.
        pytorch_attention: Run attention as ComfyUI does on a GPU and diffusers everywhere; its choice for a CPU takes a
            third longer. Only the first `Demo` of a process decides.

    Raises:
        SystemExit: COMFYUI_PATH is not set.
    """

    def __init__(self, name: str = "wan", pytorch_attention: bool = False):
        if not os.environ.get("COMFYUI_PATH"):
            sys.exit("COMFYUI_PATH is not set: the benchmarks run the models in ComfyUI")
        hosts.steady_malloc()
        if os.environ["COMFYUI_PATH"] not in sys.path:
            sys.path.insert(0, os.environ["COMFYUI_PATH"])
        arguments, sys.argv = sys.argv, sys.argv[:1]  # ComfyUI reads them as its own
        import torch
        from comfy.cli_args import args

        args.cpu = args.cpu or not torch.cuda.is_available()
        args.use_pytorch_cross_attention |= pytorch_attention
        import comfy.sample
        import comfy.samplers
        from comfy_extras.nodes_model_advanced import ModelSamplingSD3

        sys.argv = arguments
        from foresight.hosts.comfyui import apply_foresight, live

        self._torch, self._samplers, self._sample = torch, comfy.samplers, comfy.sample
        self._live, self.apply = live, apply_foresight
        self._set_shift = ModelSamplingSD3().patch
        self._networks = [_build(network) for network in networks_of(name)]
        self.model, self._vae = self._networks[0], _vae()

    def run(self, prompt: str, seed: int, settings=None, steps: int = 50) -> Run:
        """Sample one video with euler; `settings` are those of a method, None leaves the model alone."""
        patcher = self.model if settings is None else self.apply(self.model, settings)
        begin = time.perf_counter()
        clip, _ = self.measure(patcher, prompt, seed, "euler", steps)
        seconds = time.perf_counter() - begin
        return Run(clip.numpy(), seconds, None if settings is None else self.newest_run())

    def newest_run(self) -> dict:
        """`RunStats.to_dict()` of the newest run with Foresight."""
        return self.newest_runs(1)[0]

    def newest_runs(self, count: int) -> list[dict]:
        """Those of the newest runs, the newest last."""
        return self._live.runs()[-count:]

    def plain(self, shift: float) -> list:
        """A patcher of each network, with this flow shift."""
        return [self._set_shift(network, shift)[0] for network in self._networks]

    def sigmas(self, steps: int, sampler: str = "euler", patcher=None):
        """Noise levels of KSampler with the "simple" scheduler, (steps + 1,)."""
        patcher = patcher or self.model
        return self._samplers.KSampler(patcher, steps, patcher.load_device, sampler, "simple").sigmas

    def measure(self, patcher, prompt: str, seed: int, sampler: str, steps: int, weigh: bool = False):
        """Sample in one stage with a (patched) model and its own shift: see `sample`."""
        return self.sample([patcher], prompt, seed, Workload(sampler, sampler, (steps,), model.SHIFT), weigh)

    def sample(self, patchers: list, prompt: str, seed: int, workload: Workload, weigh: bool = False):
        """Sample with a (patched) model for each stage: the clip (T, H, W, 3) as a tensor, and the `Meter` of the run.

        Each stage is what the node KSamplerAdvanced does: the first adds the noise, all but the last leave some.
        """
        if len(patchers) > 1:
            return _in_a_prompt(lambda: self._stages(patchers, prompt, seed, workload, weigh), workload.steps)
        return self._stages(patchers, prompt, seed, workload, weigh)

    def _stages(self, patchers: list, prompt: str, seed: int, workload: Workload, weigh: bool):
        meter = Meter(weigh)
        positive, negative = ([[embed([text]), {}]] for text in (prompt, ""))
        noise, latent = noise_of(seed), self._torch.zeros(SHAPE)
        blocks = [blocks_of(patcher.model.diffusion_model) for patcher in patchers]
        with self._torch.inference_mode(), meter.counting(*blocks), meter.timing():
            for patcher, (first, end) in zip(patchers, workload.spans, strict=True):
                latent = self._sample.sample(
                    patcher, noise if first == 0 else noise * 0, workload.steps, workload.cfg, workload.sampler,
                    "simple", positive, negative, latent, disable_noise=first > 0, start_step=first, last_step=end,
                    force_full_denoise=end == workload.steps, disable_pbar=True, seed=seed,
                )  # fmt: skip
        return self.decode(latent), meter

    def decode(self, latent):
        """The clip (T, H, W, 3) of a latent (1, C, T, H, W)."""
        return self._vae.decode(latent)[0]

    def machine(self) -> dict:
        """Where the figures come from."""
        return {
            "system": platform.platform(),
            "processor": processor(),
            "cores": os.cpu_count(),
            "device": str(self.model.load_device),
            "torch": self._torch.__version__,
        }


def _in_a_prompt(sample: Callable[[], Result], steps: int) -> Result:
    """What `sample` gives where the prompt says that the second of two samplers goes on from the first.

    There is no prompt here to see that in. Foresight then leaves the first stage's end open, as it does for a user.
    """
    from foresight.hosts.comfyui import stages

    with mock.patch.object(stages, "following", lambda nodes, sampler_id: steps):
        return sample()


def noise_of(seed: int):
    """The noise that a seed stands for, in both hosts."""
    import torch

    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


def _vae():
    from models.demo.comfy import DemoVAE

    return DemoVAE()


def _build(name: str):
    """ModelPatcher of a trained network: ComfyUI's own class of its architecture with the trained weights."""
    import comfy.model_management
    import comfy.model_patcher

    from models.demo.comfy import build

    if name == "wan":
        network = build()
    elif MODELS[name].class_name == "WanTransformer3DModel":
        network = _build_wan(MODELS[name])
    else:
        network = _build_cogvideox(MODELS[name])
    return comfy.model_patcher.CoreModelPatcher(
        network,
        load_device=comfy.model_management.get_torch_device(),
        offload_device=comfy.model_management.unet_offload_device(),
    )


def _build_wan(trained):
    from models.demo.comfy import build

    given = trained.config
    shape = {
        "dim": given["num_attention_heads"] * given["attention_head_dim"],
        "num_heads": given["num_attention_heads"],
        "ffn_dim": given["ffn_dim"],
        "num_layers": given["num_layers"],
    }
    return build({**model.COMFY_CONFIG, **shape}, model.published_state_dict(trained.load()))


def _build_cogvideox(trained):
    import comfy.model_base
    import torch

    from models import cogvideox
    from models.demo.comfy import DemoLatentFormat

    weights = {cogvideox.core_key(key): value for key, value in trained.load().state_dict().items()}
    # core's own sines need a width that 6 divides: built without, then given the pack's, which the weights expect
    config = cogvideox.config_of(weights, sinusoidal=False)
    # what core cannot tell from the tensors of a small model; the demo's latent, and velocities instead of DDPM's
    config.unet_config.update({key: value for key, value in trained.config.items() if key != "sample_frames"})
    config.latent_format, config.sampling_settings = DemoLatentFormat(), {"shift": model.SHIFT}
    config.set_inference_dtype(torch.float32, None)
    network = comfy.model_base.CogVideoX(config, comfy.model_base.ModelType.FLOW)
    network.diffusion_model.use_rotary_positional_embeddings = False
    network.diffusion_model.patch_embed.pos_embedding = None
    cogvideox._sinusoidal(network.diffusion_model.patch_embed)
    network.diffusion_model.load_state_dict(weights)
    return network

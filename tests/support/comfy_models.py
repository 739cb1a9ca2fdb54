"""Some of `comfy_networks` as ModelPatchers, with conditioning, for real sampler runs."""

import comfy.model_management
import comfy.model_patcher
import comfy.sample
import comfy.supported_models
import torch

from support.comfy_networks import COGVIDEOX, HUNYUAN, LTXV, WAN, fill, noise

CPU = torch.device("cpu")


def _patcher(config_class, unet_config: dict) -> comfy.model_patcher.ModelPatcher:
    config = config_class({**unet_config, "dtype": torch.float32})
    config.set_inference_dtype(torch.float32, None)
    network = config.get_model({})
    fill(network.diffusion_model)
    return comfy.model_patcher.ModelPatcher(network, load_device=CPU, offload_device=CPU)


class Model:
    """A patcher, its blocks in order, and a way to make conditioning and latents for it.

    `text(seed, tokens)` is a CONDITIONING; `latent(batch)` an empty latent.
    """

    def __init__(self, name, config_class, unet_config, stack, latent, text_dim, pooled_dim=None, masked=False):
        self.name, self.patcher = name, _patcher(config_class, unet_config)
        diffusion_model = self.patcher.model.diffusion_model
        self.stack = [block for blocks in stack for block in getattr(diffusion_model, blocks)]
        self._latent, self._text_dim, self._pooled_dim, self._masked = latent, text_dim, pooled_dim, masked

    def text(self, seed: int, tokens: int = 6, **extra) -> list:
        if self._pooled_dim is not None:
            extra["pooled_output"] = noise(1, self._pooled_dim, seed=seed + 50)
        if self._masked:
            extra["attention_mask"] = torch.ones(1, tokens, dtype=torch.int)
        return [[noise(1, tokens, self._text_dim, seed=seed), extra]]

    def latent(self, batch: int = 1) -> torch.Tensor:
        return torch.zeros(batch, *self._latent)


def wan(blocks: int = WAN["num_layers"]) -> Model:
    config = {"image_model": "wan2.1", "model_type": "t2v", **WAN, "num_layers": blocks}
    return Model("wan", comfy.supported_models.WAN21_T2V, config, ["blocks"], (16, 3, 4, 4), 32)


def hunyuan() -> Model:
    config, stack = {"image_model": "hunyuan_video", **HUNYUAN}, ["double_blocks", "single_blocks"]
    return Model("hunyuan", comfy.supported_models.HunyuanVideo, config, stack, (16, 3, 4, 4), 32, 24)


def ltxv() -> Model:
    config = {"image_model": "ltxv", **LTXV}
    return Model("ltxv", comfy.supported_models.LTXV, config, ["transformer_blocks"], (128, 3, 4, 4), 32, masked=True)


def cogvideox() -> Model:
    config = {"image_model": "cogvideox", **COGVIDEOX}
    return Model("cogvideox", comfy.supported_models.CogVideoX_T2V, config, ["blocks"], (16, 4, 4, 4), 32)


MODELS = {"wan": wan, "hunyuan": hunyuan, "ltxv": ltxv}
if hasattr(comfy.supported_models, "CogVideoX_T2V"):  # since ComfyUI 0.20
    MODELS["cogvideox"] = cogvideox


def sample(
    model: Model,
    patcher=None,
    *,
    steps=14,
    cfg=3.0,
    sampler="euler",
    scheduler="simple",
    batch=1,
    tokens=(6, 6),
    seed=0,
    positive=None,
    negative=None,
    latent=None,
    **options,
) -> torch.Tensor:
    """One sampler run as the KSampler node does it."""
    latent = model.latent(batch) if latent is None else latent
    with torch.inference_mode():
        return comfy.sample.sample(
            patcher or model.patcher,
            noise(*latent.shape, seed=100 + seed),
            steps,
            cfg,
            sampler,
            scheduler,
            positive or model.text(1, tokens[0]),
            negative or model.text(2, tokens[1]),
            latent,
            seed=seed,
            disable_pbar=True,
            **options,
        )

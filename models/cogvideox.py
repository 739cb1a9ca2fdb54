"""The published CogVideoX checkpoints for core's own CogVideoX class, which reads another naming of their tensors."""

import re

import comfy.model_base
import comfy.model_detection
import comfy.model_sampling
import torch

from . import common

_SNR_SHIFT_2B = 3.0  # `snr_shift_scale` of the published scheduler config; the larger models have 1
_CHANNELS_2B = 1920

_KEYS = (  # diffusers' name, core's name
    (r"^transformer_blocks\.", "blocks."),
    (r"^(time|ofs)_embedding\.linear_", r"\1_embedding_linear_"),
    (r"\.attn1\.to_out\.0\.", ".attn_out."),
    (r"\.attn1\.to_([qkv])\.", r".\1."),
    (r"\.attn1\.norm_", ".norm_"),
    (r"\.ff\.net\.0\.proj\.", ".ff_proj."),
    (r"\.ff\.net\.2\.", ".ff_out."),
)


def core_key(key: str) -> str:
    """Core's name of a tensor in diffusers' layout."""
    for pattern, replacement in _KEYS:
        key = re.sub(pattern, replacement, key)
    return key


def config_of(state_dict: dict[str, torch.Tensor], sinusoidal: bool | None = None):
    """Core's record of the model, from a state dict with core's names.

    Args:
        sinusoidal: Whether positions are added as sines, as in the 2B model; None to tell by its width. No tensor says
            so, and core takes rotary positions where the file has no learned ones.

    Raises:
        RuntimeError: this ComfyUI has no CogVideoX.
    """
    config = comfy.model_detection.model_config_from_unet(state_dict, "")
    if config is None or config.unet_config.get("image_model") != "cogvideox":
        raise RuntimeError("this ComfyUI has no CogVideoX: update it")
    if sinusoidal is None:
        sinusoidal = state_dict["norm_final.weight"].shape[0] == _CHANNELS_2B
    settings = config.unet_config
    if sinusoidal:
        settings["use_rotary_positional_embeddings"] = False
    elif settings.get("patch_size_t") is None:
        settings["spatial_interpolation_scale"] = 1.0  # core's 1.875 belongs to sines; rotary positions count patches
    return config


def _sinusoidal(patch_embed: torch.nn.Module) -> torch.nn.Module:
    """Core's patch embedding with the 2B model's positions; core's own order them otherwise than the weights expect."""

    class SinusoidalPatchEmbed(type(patch_embed)):
        def forward(self, text_embeds: torch.Tensor, image_embeds: torch.Tensor) -> torch.Tensor:
            """Text (B, L, text channels) and latent (B, T, C, h, w) to tokens (B, L + T*S, channels)."""
            frames, _, height, width = image_embeds.shape[1:]
            rows, columns = (
                torch.arange(n // self.patch_size, device=image_embeds.device) / self.spatial_interpolation_scale
                for n in (height, width)
            )
            where = common.grid_embedding(rows, columns, self.dim * 3 // 4).to(text_embeds.dtype)
            when = torch.arange(frames, device=image_embeds.device) / self.temporal_interpolation_scale
            when = common.position_embedding(when, self.dim // 4).to(text_embeds.dtype)
            tokens = super().forward(text_embeds, image_embeds)
            video = tokens[:, text_embeds.shape[1] :].unflatten(1, (frames, -1))
            video[..., : self.dim // 4] += when[:, None]
            video[..., self.dim // 4 :] += where
            return tokens

    patch_embed.__class__ = SinusoidalPatchEmbed  # its weights and settings stay
    patch_embed.use_positional_embeddings = False
    del patch_embed.pos_embedding
    return patch_embed


def build(config) -> comfy.model_base.BaseModel:
    """Core's CogVideoX with the prediction that all samplers understand.

    Core hands it over with a prediction that only the sampler of its inpainting model fits: the network's input is then
    not scaled, and KSampler's noise reaches it several thousand times too large.
    """
    settings = config.unet_config
    kind = comfy.model_base.ModelType.V_PREDICTION
    model = comfy.model_base.CogVideoX(config, kind, image_to_video=settings.get("in_channels", 16) > 16)
    if not (settings["use_rotary_positional_embeddings"] or settings["use_learned_positional_embeddings"]):
        _sinusoidal(model.diffusion_model.patch_embed)
        plain = comfy.model_sampling.ModelSamplingDiscrete(config, zsnr=False).sigmas
        sigmas = comfy.model_sampling.rescale_zero_terminal_snr_sigmas(plain.double() * _SNR_SHIFT_2B**0.5)
        model.model_sampling.set_sigmas(sigmas)
    return model

"""Tiny random image models of diffusers, which have no record, and pipelines that call them."""

import diffusers
import torch

from .diffusers_pipelines import euler
from .diffusers_transformers import TEXT, Transformer, seeded

POOLED = seeded(1, 16, seed=3)
_ONES = torch.ones(1, 6, dtype=torch.long)


def flux() -> Transformer:
    model = diffusers.FluxTransformer2DModel(
        **{"patch_size": 1, "in_channels": 16, "num_layers": 1, "num_single_layers": 1, "attention_head_dim": 16},
        **{"num_attention_heads": 2, "joint_attention_dim": 16, "pooled_projection_dim": 16},
        axes_dims_rope=[4, 4, 8],
    )
    ids = {"txt_ids": torch.zeros(6, 3), "img_ids": torch.cartesian_prod(torch.zeros(1), *[torch.arange(4.0)] * 2)}
    return Transformer(
        model,
        (1, 16, 16),
        lambda x, t, return_dict=False: model(
            hidden_states=x, timestep=t / 1000, encoder_hidden_states=TEXT, pooled_projections=POOLED, **ids,
            return_dict=return_dict,
        ),
    )  # fmt: skip


def qwen_image() -> Transformer:
    model = diffusers.QwenImageTransformer2DModel(
        **{"patch_size": 2, "in_channels": 16, "out_channels": 4, "num_layers": 2, "attention_head_dim": 16},
        **{"num_attention_heads": 2, "joint_attention_dim": 16, "axes_dims_rope": (8, 4, 4)},
    )
    return Transformer(
        model,
        (1, 16, 16),
        lambda x, t, return_dict=False: model(
            hidden_states=x, timestep=t / 1000, encoder_hidden_states=TEXT, encoder_hidden_states_mask=_ONES,
            img_shapes=[[(1, 4, 4)]], return_dict=return_dict,
        ),
    )  # fmt: skip


def sd3() -> Transformer:
    model = diffusers.SD3Transformer2DModel(
        **{"sample_size": 8, "patch_size": 2, "in_channels": 4, "out_channels": 4, "num_layers": 2},
        **{"attention_head_dim": 8, "num_attention_heads": 4, "caption_projection_dim": 32},
        **{"joint_attention_dim": 16, "pooled_projection_dim": 16},
    )
    return Transformer(
        model,
        (1, 4, 8, 8),
        lambda x, t, return_dict=False: model(
            hidden_states=x, timestep=t, encoder_hidden_states=TEXT, pooled_projections=POOLED, return_dict=return_dict
        ),
    )


def sdxl() -> Transformer:
    model = diffusers.UNet2DConditionModel(
        **{"block_out_channels": (16, 32), "layers_per_block": 1, "sample_size": 8, "in_channels": 4},
        **{"out_channels": 4, "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"), "norm_num_groups": 4},
        **{"up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"), "attention_head_dim": (2, 4)},
        **{"use_linear_projection": True, "addition_embed_type": "text_time", "addition_time_embed_dim": 8},
        **{"projection_class_embeddings_input_dim": 6 * 8 + 16, "cross_attention_dim": 16},
    )
    added = {"text_embeds": POOLED, "time_ids": torch.tensor([[64.0, 64, 0, 0, 64, 64]])}
    return Transformer(
        model,
        (1, 4, 8, 8),
        lambda x, t, return_dict=False: model(
            x, t, encoder_hidden_states=TEXT, added_cond_kwargs=added, return_dict=return_dict
        ),
    )


def z_image() -> Transformer:
    """Its latents are a list, and its time rises from 0 to 1."""
    model = diffusers.ZImageTransformer2DModel(
        **{"in_channels": 4, "dim": 32, "n_layers": 1, "n_refiner_layers": 1, "n_heads": 2, "n_kv_heads": 2},
        **{"cap_feat_dim": 16, "axes_dims": [8, 4, 4], "axes_lens": [64, 64, 64]},
    )
    return Transformer(
        model,
        (4, 1, 8, 8),
        lambda x, t, return_dict=False: model([x], 1 - t / 1000, [TEXT[0]], return_dict=return_dict),
    )


IMAGES = (flux, qwen_image, sd3, sdxl, z_image)


# ---- pipelines

_NO_TEXT = {"tokenizer": None, "text_encoder": None}
_EMBEDS = {"prompt_embeds": TEXT, "negative_prompt_embeds": seeded(1, 6, 16, seed=2)}
_POOLED = {"pooled_prompt_embeds": POOLED, "negative_pooled_prompt_embeds": seeded(1, 16, seed=4)}
_SIZE = {"height": 64, "width": 64}


def _two(count: int) -> dict:
    names = ("tokenizer", "text_encoder")
    return {**_NO_TEXT, **{f"{name}_{i}": None for name in names for i in range(2, count + 1)}}


def flux_pipeline():
    pipe = diffusers.FluxPipeline(**_two(2), vae=None, scheduler=euler(), transformer=flux().model)
    return pipe, {"prompt_embeds": TEXT, "pooled_prompt_embeds": POOLED, "guidance_scale": 1.0, **_SIZE}


def qwen_image_pipeline():
    pipe = diffusers.QwenImagePipeline(**_NO_TEXT, vae=None, scheduler=euler(), transformer=qwen_image().model)
    masks = {"prompt_embeds_mask": _ONES, "negative_prompt_embeds_mask": _ONES}
    return pipe, {**_EMBEDS, **masks, "true_cfg_scale": 3.0, **_SIZE}


def sd3_pipeline():
    pipe = diffusers.StableDiffusion3Pipeline(**_two(3), vae=None, scheduler=euler(), transformer=sd3().model)
    return pipe, {**_EMBEDS, **_POOLED, "guidance_scale": 3.0, **_SIZE}


def sdxl_pipeline():
    scheduler = diffusers.EulerDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    vae = diffusers.AutoencoderKL(
        **{"block_out_channels": (8,) * 4, "norm_num_groups": 4},
        **{"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4},
    )
    pipe = diffusers.StableDiffusionXLPipeline(**_two(2), vae=vae, scheduler=scheduler, unet=sdxl().model)
    return pipe, {**_EMBEDS, **_POOLED, "guidance_scale": 3.0, **_SIZE}


IMAGE_PIPELINES = (flux_pipeline, qwen_image_pipeline, sd3_pipeline, sdxl_pipeline)

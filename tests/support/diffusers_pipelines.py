"""Pipelines of diffusers with a tiny random transformer, and what each is called with.

A maker gives the pipeline and the arguments of a call. Text is given as embeddings, and the result is a latent.
"""

import diffusers
import torch
from PIL import Image

from . import diffusers_transformers as tiny
from .diffusers_transformers import seeded

CFG = 3.0
NO_TEXT = {"tokenizer": None, "text_encoder": None}
TWO_TEXTS = {**NO_TEXT, "tokenizer_2": None, "text_encoder_2": None}
NO_IMAGE = {"image_encoder": None, "image_processor": None}
EMBEDS = {"prompt_embeds": seeded(1, 6, 16, seed=1), "negative_prompt_embeds": seeded(1, 6, 16, seed=2)}
MASKS = {"prompt_attention_mask": torch.ones(1, 6), "negative_prompt_attention_mask": torch.ones(1, 6)}
SIZE = {"height": 64, "width": 64, "num_frames": 9, "guidance_scale": CFG}
PLAIN = {**EMBEDS, **SIZE, "latents": seeded(1, 4, 3, 8, 8, seed=5)}


def euler():
    return diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)


def uni_pc():
    return diffusers.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)


def vae(channels: int) -> diffusers.AutoencoderKLWan:
    torch.manual_seed(0)
    made = diffusers.AutoencoderKLWan(
        **{"base_dim": 4, "z_dim": channels, "dim_mult": [1] * 4, "num_res_blocks": 1},
        **{"latents_mean": [0.0] * channels, "latents_std": [1.0] * channels},
    )
    return made.eval().requires_grad_(False)


def _hunyuan_vae() -> diffusers.AutoencoderKLHunyuanVideo:
    torch.manual_seed(0)
    made = diffusers.AutoencoderKLHunyuanVideo(
        latent_channels=4, block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=4
    )
    return made.eval().requires_grad_(False)


def picture(size: int = 64) -> Image.Image:
    return Image.linear_gradient("L").resize((size, size)).convert("RGB")


def _wan(kind=diffusers.WanTransformer3DModel, **more):
    return tiny._plain(kind(**{**tiny._WAN, **more}, rope_max_seq_len=32)).model


def wan_two_stages():
    nets = {"transformer": _wan(), "transformer_2": _wan(), "boundary_ratio": 0.875}
    return diffusers.WanPipeline(**NO_TEXT, vae=None, scheduler=euler(), **nets), PLAIN


def wan_image_to_video():
    net = _wan(in_channels=12)
    pipe = diffusers.WanImageToVideoPipeline(**NO_TEXT, **NO_IMAGE, vae=vae(4), scheduler=euler(), transformer=net)
    return pipe, {**PLAIN, "image": picture()}


def wan_image_to_video_two_stages():
    nets = {"transformer": _wan(in_channels=12), "transformer_2": _wan(in_channels=12), "boundary_ratio": 0.875}
    pipe = diffusers.WanImageToVideoPipeline(**NO_TEXT, **NO_IMAGE, vae=vae(4), scheduler=euler(), **nets)
    return pipe, {**PLAIN, "image": picture()}


def wan_vace():
    net = _wan(diffusers.WanVACETransformer3DModel, vace_layers=[0, 2], vace_in_channels=72)
    return diffusers.WanVACEPipeline(**NO_TEXT, vae=vae(4), scheduler=euler(), transformer=net), PLAIN


def wan_animate():
    pipe = diffusers.WanAnimatePipeline(
        **NO_TEXT, **NO_IMAGE, vae=vae(4), scheduler=euler(), transformer=tiny.wan_animate().model
    )
    pipe.encode_image = lambda image, device=None: seeded(1, 5, 4, seed=3)
    size = {"height": 64, "width": 64, "segment_frame_length": 9, "guidance_scale": CFG}
    videos = {"image": picture(), "pose_video": [picture()] * 9, "face_video": [picture(16)] * 9}
    return pipe, {**EMBEDS, **size, **videos}


def lucy_edit():
    net = _wan(in_channels=8)
    pipe = diffusers.LucyEditPipeline(**NO_TEXT, vae=vae(4), scheduler=euler(), transformer=net)
    return pipe, {**EMBEDS, **SIZE, "video": [picture()] * 9}


def skyreels_v2():
    net = tiny.skyreels_v2().model
    return diffusers.SkyReelsV2Pipeline(**NO_TEXT, vae=None, scheduler=uni_pc(), transformer=net), PLAIN


def skyreels_v2_diffusion_forcing():
    net = tiny.skyreels_v2().model
    pipe = diffusers.SkyReelsV2DiffusionForcingPipeline(**NO_TEXT, vae=vae(4), scheduler=uni_pc(), transformer=net)
    return pipe, {**EMBEDS, **SIZE, "prompt": None, "base_num_frames": 9}


def chronoedit():
    net = _wan(diffusers.ChronoEditTransformer3DModel, in_channels=12, image_dim=4, added_kv_proj_dim=48)
    pipe = diffusers.ChronoEditPipeline(**NO_TEXT, **NO_IMAGE, vae=vae(4), scheduler=euler(), transformer=net)
    pipe.encode_image = lambda image, device=None: seeded(1, 5, 4, seed=3)
    return pipe, {**PLAIN, "num_frames": 5, "latents": seeded(1, 4, 2, 8, 8, seed=5), "image": picture()}


def kandinsky_5():
    net = tiny.kandinsky_5().model
    pipe = diffusers.Kandinsky5T2VPipeline(**TWO_TEXTS, vae=None, scheduler=euler(), transformer=net)
    given = dict(SIZE, latents=seeded(1, 3, 8, 8, 4, seed=5))
    for seed, name in enumerate(("", "negative_")):
        given[f"{name}prompt_embeds_qwen"] = seeded(1, 6, 16, seed=seed)
        given[f"{name}prompt_embeds_clip"] = seeded(1, 8, seed=seed)
        given[f"{name}prompt_cu_seqlens"] = torch.tensor([0, 6], dtype=torch.int32)
    return pipe, given


def cogvideox():
    scheduler = diffusers.CogVideoXDDIMScheduler(prediction_type="v_prediction", timestep_spacing="trailing")
    pipe = diffusers.CogVideoXPipeline(**NO_TEXT, vae=None, scheduler=scheduler, transformer=tiny.cogvideox().model)
    return pipe, {**PLAIN, "latents": seeded(1, 3, 4, 8, 8, seed=5)}


def ltx():
    pipe = diffusers.LTXPipeline(**NO_TEXT, vae=None, scheduler=euler(), transformer=tiny.ltx().model)
    return pipe, {**EMBEDS, **MASKS, **SIZE, "height": 128, "width": 128}


def mochi():
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(invert_sigmas=True)
    pipe = diffusers.MochiPipeline(**NO_TEXT, vae=None, scheduler=scheduler, transformer=tiny.mochi().model)
    return pipe, {**PLAIN, **{name: mask.bool() for name, mask in MASKS.items()}}


def hunyuan_skyreels_image_to_video():
    net = tiny._plain(
        diffusers.HunyuanVideoTransformer3DModel(
            **{**tiny._HUNYUAN, "in_channels": 8}, num_single_layers=2, pooled_projection_dim=8, guidance_embeds=True
        )
    ).model
    pipe = diffusers.HunyuanSkyreelsImageToVideoPipeline(
        **TWO_TEXTS, vae=_hunyuan_vae(), scheduler=euler(), transformer=net
    )
    pooled = {f"{name}pooled_prompt_embeds": seeded(1, 8, seed=4) for name in ("", "negative_")}
    given = {**PLAIN, **MASKS, **pooled, "image": picture(), "guidance_scale": 1.0, "true_cfg_scale": CFG}
    return pipe, given


PIPELINES = [
    wan_two_stages,
    wan_image_to_video,
    wan_image_to_video_two_stages,
    wan_vace,
    wan_animate,
    lucy_edit,
    skyreels_v2,
    skyreels_v2_diffusion_forcing,
    chronoedit,
    kandinsky_5,
    cogvideox,
    ltx,
    mochi,
    hunyuan_skyreels_image_to_video,
]

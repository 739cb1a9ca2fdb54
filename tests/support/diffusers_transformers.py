"""A tiny random instance of every diffusers transformer that is supported, and how its pipeline calls it."""

from collections.abc import Callable
from dataclasses import dataclass

import diffusers
import torch


def seeded(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@dataclass
class Transformer:
    """`call(latent, timestep)` is one call for one cond; `latent` its latent's shape, `timestep` a tensor (1,).

    It gives the model's whole result; with `return_dict=True` a diffusers output in place of a tuple.
    """

    model: torch.nn.Module
    latent: tuple[int, ...]
    call: Callable

    def __post_init__(self):
        g = torch.Generator().manual_seed(0)
        for p in self.model.parameters():
            p.data = torch.randn(p.shape, generator=g) * 0.1
            p.requires_grad_(False)
        self.model.eval()


TEXT = seeded(1, 6, 16, seed=1)
_LATENT = (1, 4, 3, 8, 8)
_WAN = {
    **{"num_attention_heads": 4, "attention_head_dim": 12, "in_channels": 4, "out_channels": 4, "text_dim": 16},
    **{"freq_dim": 16, "ffn_dim": 64, "num_layers": 4},
}


def _plain(model, latent=_LATENT, **more):
    return Transformer(
        model,
        latent,
        lambda x, t, return_dict=False: model(
            hidden_states=x, timestep=t, encoder_hidden_states=TEXT, return_dict=return_dict, **more
        ),
    )


def wan():
    return _plain(diffusers.WanTransformer3DModel(**_WAN, rope_max_seq_len=32))


def wan_vace():
    model = diffusers.WanVACETransformer3DModel(**_WAN, rope_max_seq_len=32, vace_layers=[0, 2], vace_in_channels=8)
    return _plain(model, control_hidden_states=seeded(1, 8, 3, 8, 8, seed=2))


def wan_animate():
    model = diffusers.WanAnimateTransformer3DModel(
        **{**_WAN, "in_channels": 12},
        **{"latent_channels": 4, "image_dim": 4, "rope_max_seq_len": 32, "inject_face_latents_blocks": 2},
        motion_encoder_channel_sizes={"4": 16, "8": 16, "16": 16},
        **{"motion_encoder_size": 16, "motion_style_dim": 8, "motion_dim": 4, "motion_encoder_dim": 16},
        **{"face_encoder_hidden_dim": 16, "face_encoder_num_heads": 2},
    )
    return _plain(
        model,
        (1, 12, 3, 8, 8),
        encoder_hidden_states_image=seeded(1, 5, 4, seed=2),
        pose_hidden_states=seeded(1, 4, 2, 8, 8, seed=3),
        face_pixel_values=seeded(1, 3, 5, 16, 16, seed=4),
    )


def skyreels_v2():
    return _plain(diffusers.SkyReelsV2Transformer3DModel(**_WAN, rope_max_seq_len=32))


def chronoedit():
    return _plain(diffusers.ChronoEditTransformer3DModel(**_WAN, rope_max_seq_len=32))


def helios():
    model = diffusers.HeliosTransformer3DModel(**_WAN, rope_dim=(4, 4, 4))
    return _plain(
        model,
        indices_hidden_states=torch.arange(2, 5)[None],
        latents_history_short=seeded(1, 4, 2, 8, 8, seed=2),
        indices_latents_history_short=torch.arange(2)[None],
    )


def cogvideox():
    model = diffusers.CogVideoXTransformer3DModel(
        **{"num_attention_heads": 2, "attention_head_dim": 16, "in_channels": 4, "out_channels": 4},
        **{"time_embed_dim": 8, "text_embed_dim": 16, "num_layers": 4, "sample_width": 8, "sample_height": 8},
        **{"sample_frames": 8, "max_text_seq_length": 6, "use_rotary_positional_embeddings": True},
    )
    return _plain(model, (1, 3, 4, 8, 8), **cogvideox_inputs())


def cogvideox_inputs() -> dict:
    rotary = diffusers.models.embeddings.get_3d_rotary_pos_embed(16, ((0, 0), (4, 4)), (4, 4), 3)
    return {"image_rotary_emb": rotary}


def latte():
    return _plain(
        diffusers.LatteTransformer3DModel(
            **{"num_attention_heads": 4, "attention_head_dim": 8, "in_channels": 4, "out_channels": 8},
            **{"num_layers": 3, "cross_attention_dim": 32, "sample_size": 8, "patch_size": 2, "video_length": 3},
            **{"caption_channels": 16, "norm_type": "ada_norm_single", "activation_fn": "gelu-approximate"},
            **{"attention_bias": True, "norm_elementwise_affine": False},
        )
    )


def allegro():
    model = diffusers.AllegroTransformer3DModel(
        **{"num_attention_heads": 2, "attention_head_dim": 24, "in_channels": 4, "out_channels": 4, "num_layers": 4},
        **{"cross_attention_dim": 48, "sample_height": 8, "sample_width": 8, "sample_frames": 3},
        **{"caption_channels": 16, "norm_elementwise_affine": False, "norm_eps": 1e-6},
    )
    rotary = diffusers.models.embeddings.get_3d_rotary_pos_embed_allegro(24, ((0, 0), (4, 4)), (4, 4), 3)
    grid = torch.cartesian_prod(*(axis.long() for axis in rotary[3:])).T[:, None]
    return _plain(model, image_rotary_emb=(rotary[:3], tuple(grid.contiguous())))


def mochi():
    model = diffusers.MochiTransformer3DModel(
        **{"patch_size": 2, "num_attention_heads": 2, "attention_head_dim": 12, "num_layers": 4, "in_channels": 4},
        **{"pooled_projection_dim": 16, "text_embed_dim": 16, "time_embed_dim": 8, "max_sequence_length": 6},
    )
    transformer = _plain(model, encoder_attention_mask=torch.ones(1, 6, dtype=torch.bool))
    transformer.rising = call = transformer.call
    transformer.call = lambda x, t, **more: call(x, 1000 - t, **more)  # its timestep rises
    return transformer


_HUNYUAN = {
    **{"in_channels": 4, "out_channels": 4, "num_attention_heads": 2, "attention_head_dim": 12, "num_layers": 2},
    **{"num_refiner_layers": 1, "patch_size": 2, "patch_size_t": 1, "text_embed_dim": 16, "rope_axes_dim": (4, 4, 4)},
}


def hunyuan_inputs(text: torch.Tensor = TEXT) -> dict:
    mask, guidance = torch.ones(text.shape[:2]), torch.full(text.shape[:1], 6000.0)
    return {"encoder_attention_mask": mask, "pooled_projections": text[:, 0, :8], "guidance": guidance}


def hunyuan():
    model = diffusers.HunyuanVideoTransformer3DModel(**_HUNYUAN, num_single_layers=2, pooled_projection_dim=8)
    return _plain(model, **hunyuan_inputs())


def hunyuan_framepack():
    model = diffusers.HunyuanVideoFramepackTransformer3DModel(
        **_HUNYUAN, num_single_layers=2, pooled_projection_dim=8, has_image_proj=True, image_proj_dim=8,
        has_clean_x_embedder=True,
    )  # fmt: skip
    return _plain(
        model,
        **hunyuan_inputs(),
        image_embeds=seeded(1, 2, 8, seed=2),
        indices_latents=torch.arange(4, 7),
        latents_clean=seeded(1, 4, 2, 8, 8, seed=3),
        indices_latents_clean=torch.arange(2),
        latents_history_2x=seeded(1, 4, 2, 8, 8, seed=4),
        indices_latents_history_2x=torch.arange(2),
        latents_history_4x=seeded(1, 4, 4, 8, 8, seed=5),
        indices_latents_history_4x=torch.arange(4),
    )


def hunyuan_1_5():
    model = diffusers.HunyuanVideo15Transformer3DModel(
        **{**_HUNYUAN, "num_layers": 4},
        **{"text_embed_2_dim": 8, "image_embed_dim": 8, "target_size": 16, "task_type": "t2v"},
    )
    return _plain(
        model,
        encoder_attention_mask=torch.ones(1, 6),
        encoder_hidden_states_2=seeded(1, 3, 8, seed=2),
        encoder_attention_mask_2=torch.ones(1, 3),
        image_embeds=torch.zeros(1, 2, 8),
    )


def motif_video():
    model = diffusers.MotifVideoTransformer3DModel(
        **{key: value for key, value in _HUNYUAN.items() if key != "num_refiner_layers"},
        **{"num_single_layers": 4, "num_decoder_layers": 2},
    )
    return _plain(model, encoder_attention_mask=torch.ones(1, 6))


def ltx():
    model = diffusers.LTXVideoTransformer3DModel(
        **{"in_channels": 4, "out_channels": 4, "num_attention_heads": 4, "attention_head_dim": 12},
        **{"cross_attention_dim": 48, "num_layers": 4, "caption_channels": 16},
    )
    return _plain(model, (1, 192, 4), **ltx_inputs())


def ltx_inputs(text: torch.Tensor = TEXT) -> dict:
    return {"encoder_attention_mask": torch.ones(text.shape[:2]), "num_frames": 3, "height": 8, "width": 8}


def ltx_2():
    model = diffusers.LTX2VideoTransformer3DModel(
        **{"in_channels": 4, "out_channels": 4, "num_attention_heads": 2, "attention_head_dim": 12},
        **{"cross_attention_dim": 24, "audio_in_channels": 4, "audio_out_channels": 4, "num_layers": 4},
        **{"audio_num_attention_heads": 2, "audio_attention_head_dim": 8, "audio_cross_attention_dim": 16},
        **{"caption_channels": 16, "rope_double_precision": False},
    )
    audio = seeded(1, 5, 4, seed=2)
    return Transformer(
        model,
        (1, 48, 4),
        lambda x, t, return_dict=False: model(
            hidden_states=x, audio_hidden_states=audio, encoder_hidden_states=TEXT, audio_encoder_hidden_states=TEXT,
            timestep=t, num_frames=3, height=4, width=4, audio_num_frames=5, return_dict=return_dict,
        ),
    )  # fmt: skip


def sana_wm_refiner(**more):
    model = diffusers.SanaWMLTX2RefinerTransformer3DModel(
        **{"in_channels": 4, "out_channels": 4, "num_attention_heads": 2, "attention_head_dim": 12},
        **{"cross_attention_dim": 24, "num_layers": 4, "caption_channels": 16, "rope_double_precision": False},
    )
    rotary = (torch.ones(1, 48, 24), torch.zeros(1, 48, 24))
    return _plain(model, (1, 48, 4), video_rotary_emb=rotary, **more)


def kandinsky_5():
    model = diffusers.Kandinsky5Transformer3DModel(
        **{"in_visual_dim": 4, "out_visual_dim": 4, "in_text_dim": 16, "in_text_dim2": 8, "time_dim": 16},
        **{"model_dim": 48, "ff_dim": 64, "num_text_blocks": 1, "num_visual_blocks": 4, "axes_dims": (8, 8, 8)},
    )
    return _plain(
        model,
        (1, 3, 8, 8, 4),
        pooled_projections=TEXT[:, 0, :8],
        visual_rope_pos=[torch.arange(3), torch.arange(4), torch.arange(4)],
        text_rope_pos=torch.arange(6),
    )


def _kandinsky_6(audio):
    model = diffusers.Kandinsky6Transformer3DModel(
        **{"in_visual_dim": 4, "out_visual_dim": 4, "in_text_dim": 16, "in_text_dim2": 8, "time_dim": 16},
        **{"model_dim": 48, "ff_dim": 64, "num_text_blocks": 1, "num_visual_blocks": 4, "axes_dims": (8, 8, 8)},
        **{"visual_cond": False, "in_audio_dim": 4, "out_audio_dim": 4},
    )
    return Transformer(
        model,
        (1, 3, 8, 8, 4),
        lambda x, t, return_dict=False: model(
            hidden_states=x, encoder_hidden_states=TEXT, pooled_projections=TEXT[:, 0, :8], timestep=t,
            audio_hidden_states=audio, return_dict=return_dict,
        ),
    )  # fmt: skip


def kandinsky_6():
    return _kandinsky_6(seeded(1, 5, 4, seed=2))


def kandinsky_6_silent():
    return _kandinsky_6(None)


def cosmos_3():
    model = diffusers.Cosmos3OmniTransformer(
        **{"head_dim": 12, "hidden_size": 48, "intermediate_size": 64, "latent_channel": 4, "patch_latent_dim": 16},
        **{"num_attention_heads": 4, "num_hidden_layers": 4, "num_key_value_heads": 2, "vocab_size": 32},
        rope_axes_dim=(2, 2, 2),
    )
    text, video = torch.arange(6), torch.arange(6, 54)
    return Transformer(
        model,
        _LATENT,
        lambda x, t, return_dict=False: model(
            input_ids=text, text_indexes=text, position_ids=torch.arange(54).expand(3, -1), und_len=6,
            sequence_length=54, vision_tokens=[x], vision_token_shapes=[(3, 4, 4)], vision_sequence_indexes=video,
            vision_mse_loss_indexes=video, vision_timesteps=t.expand(48),
            vision_noisy_frame_indexes=[torch.arange(3)], return_dict=return_dict,
        ),
    )  # fmt: skip


def minimax_h3():
    model = diffusers.MiniMaxH3Transformer3DModel(
        **{"num_attention_heads": 2, "attention_head_dim": 24, "hidden_size": 48, "num_layers": 4, "ffn_dim": 64},
        **{"num_refiner_layers": 1, "in_channels": 4, "audio_in_channels": 4, "text_dim": 16, "freq_dim": 16},
        **{"time_embed_hidden_dim": 48, "time_embed_dim": 24, "rope_freq_dim": 2},
    )
    counts = {"text": 6, "video": 48, "audio": 5}
    first = dict(zip(counts, (0, 6, 54), strict=True))
    indices = {f"{kind}_indices": torch.arange(first[kind], first[kind] + n) for kind, n in counts.items()}
    tags = torch.cat([torch.full((n,), {"video": 0, "text": 1, "audio": 2}[kind]) for kind, n in counts.items()])
    audio = seeded(1, 5, 4, seed=2)
    return Transformer(
        model,
        (1, 48, 16),
        lambda x, t, return_dict=False: model(
            hidden_states=x, audio_hidden_states=audio, encoder_hidden_states=TEXT, timestep=1 - t / 1000,
            timestep_indices=torch.zeros(59, dtype=torch.long), token_tags=tags,
            position_ids=torch.arange(59)[:, None].expand(-1, 3), **indices, return_dict=return_dict,
        ),
    )  # fmt: skip


TRANSFORMERS = [
    *(wan, wan_vace, wan_animate, skyreels_v2, chronoedit, helios, cogvideox, latte, allegro, mochi, hunyuan),
    *(hunyuan_framepack, hunyuan_1_5, motif_video, ltx, ltx_2, sana_wm_refiner, kandinsky_5, kandinsky_6),
    *(kandinsky_6_silent, cosmos_3, minimax_h3),
]

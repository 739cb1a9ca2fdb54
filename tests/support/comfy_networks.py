"""A tiny random instance of the network class of every family in ComfyUI, and how its BaseModel calls it."""

from collections.abc import Callable
from dataclasses import dataclass

import comfy.ops
import torch

_HOST = {"device": torch.device("cpu"), "dtype": torch.float32, "operations": comfy.ops.disable_weight_init}
_T = torch.tensor([500.0])

WAN = {
    **{"in_dim": 16, "out_dim": 16, "dim": 48, "ffn_dim": 64, "num_heads": 4, "num_layers": 4},
    **{"text_dim": 32, "text_len": 6, "freq_dim": 16},
}
HUNYUAN = {
    **{"in_channels": 16, "out_channels": 16, "vec_in_dim": 24, "context_in_dim": 32, "hidden_size": 48},
    **{"mlp_ratio": 2.0, "num_heads": 3, "depth": 3, "depth_single_blocks": 3, "axes_dim": [4, 6, 6]},
    **{"theta": 256, "patch_size": [1, 2, 2], "qkv_bias": True, "guidance_embed": True},
    **{"byt5": False, "meanflow": False, "use_cond_type_embedding": False, "vision_in_dim": None},
    "meanflow_sum": False,
}
LTXV = {
    **{"in_channels": 128, "cross_attention_dim": 48, "attention_head_dim": 12, "num_attention_heads": 4},
    **{"caption_channels": 32, "num_layers": 4},
}
COGVIDEOX = {
    **{"num_attention_heads": 2, "attention_head_dim": 16, "in_channels": 16, "out_channels": 16},
    **{"time_embed_dim": 24, "text_embed_dim": 32, "num_layers": 4, "sample_width": 4, "sample_height": 4},
    **{"sample_frames": 9, "patch_size": 2, "max_text_seq_length": 6, "use_rotary_positional_embeddings": True},
}


def noise(*shape: int, seed: int, scale: float = 1.0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale


def fill(model: torch.nn.Module, seed: int = 0) -> None:
    """Random weights, the same each time: all that a checkpoint brings, since buffers too may hold what memory held."""
    g = torch.Generator().manual_seed(seed)
    for tensor in model.state_dict(keep_vars=True).values():
        if tensor.is_floating_point():
            tensor.data = torch.randn(tensor.shape, generator=g) * 0.08


@dataclass
class Network:
    """`call(latent, transformer_options)` is one call of `model` for one cond; `latent` its latent's shape."""

    model: torch.nn.Module
    latent: tuple[int, ...]
    call: Callable

    def __post_init__(self):
        fill(self.model)
        self.model.requires_grad_(False)
        self.model.eval()


def _wan(cls, model_type: str, channels: int = 16, size: int = 4, layers: int = 4, call: dict | None = None, **config):
    model = cls(model_type=model_type, **{**WAN, "in_dim": channels, "num_layers": layers}, **config, **_HOST)
    text = noise(1, 6, 32, seed=3)
    return Network(
        model,
        (1, channels, 3, size, size),
        lambda x, options: model(x, _T, text, transformer_options=options, **(call or {})),
    )


def wan():
    from comfy.ldm.wan.model import WanModel

    return _wan(WanModel, "t2v")


def wan_i2v():
    from comfy.ldm.wan.model import WanModel

    return _wan(WanModel, "i2v", 36, call={"clip_fea": noise(1, 257, 1280, seed=4)})


def wan_vace():
    from comfy.ldm.wan.model import VaceWanModel

    context = noise(1, 1, 96, 3, 4, 4, seed=5)
    return _wan(
        VaceWanModel,
        "vace",
        vace_layers=2,
        vace_in_dim=96,
        call={"vace_context": context, "vace_strength": [1.0]},
    )


def wan_camera():
    from comfy.ldm.wan.model import CameraWanModel

    return _wan(CameraWanModel, "camera_2.2", call={"camera_conditions": noise(1, 24, 3, 32, 32, seed=5)})


def wan_s2v():
    from comfy.ldm.wan.model import WanModel_S2V

    audio = noise(1, 25, 32, 12, seed=5)
    return _wan(WanModel_S2V, "s2v", audio_dim=32, audio_inject_layers=[0, 2], call={"audio_embed": audio})


def humo():
    from comfy.ldm.wan.model import HumoWanModel

    return _wan(HumoWanModel, "humo", call={"audio_embed": noise(1, 3, 8, 5, 1280, seed=5)})


def scail():
    from comfy.ldm.wan.model import SCAILWanModel

    return _wan(SCAILWanModel, "scail", 20, call={"pose_latents": noise(1, 20, 3, 4, 4, seed=5)})


def scail_2():
    from comfy.ldm.wan.model import SCAIL2WanModel

    return _wan(SCAIL2WanModel, "scail2", 20, call={"pose_latents": noise(1, 20, 3, 4, 4, seed=5)})


def wan_animate():
    from comfy.ldm.wan.model_animate import AnimateWanModel

    return _wan(AnimateWanModel, "animate", layers=6, call={"pose_latents": noise(1, 16, 2, 4, 4, seed=5)})


def wan_animate_2():
    from comfy.ldm.wan.model_animate2 import WanAnimate2Model

    return _wan(WanAnimate2Model, "animate2", 36, call={"pose_latents": noise(1, 16, 2, 4, 4, seed=5)})


def wandancer():
    from comfy.ldm.wan.model_wandancer import WanDancerModel

    music = {"audio_inject_layers": [0, 2], "music_dim": 32, "music_latent_dim": 32}
    return _wan(WanDancerModel, "wandancer", size=8, call={"audio_embed": noise(1, 9, 35, seed=5)}, **music)


def wan_causal():
    from comfy.ldm.wan.ar_model import CausalWanModel

    return _wan(CausalWanModel, "t2v")


def hunyuan(double: int = 3, single: int = 3, pooled: int | None = 24, control: dict | None = None):
    from comfy.ldm.hunyuan_video.model import HunyuanVideo

    depths = {"depth": double, "depth_single_blocks": single}
    model = HunyuanVideo(**{**HUNYUAN, **depths, "vec_in_dim": pooled, "guidance_embed": pooled is not None}, **_HOST)
    text = noise(1, 6, 32, seed=3)
    y = noise(1, pooled, seed=6) if pooled else None
    guidance = torch.tensor([6.0])
    return Network(
        model,
        (1, 16, 3, 4, 4),
        lambda x, o: model(x, _T / 1000, text, y=y, guidance=guidance, control=control, transformer_options=o),
    )


def hunyuan_control():
    return hunyuan(control={"input": [noise(1, 12, 48, seed=8)] * 3, "output": [noise(1, 12, 48, seed=9)] * 3})


def hunyuan_1_5():
    return hunyuan(4, 0, None)


def ltxv():
    from comfy.ldm.lightricks.model import LTXVModel

    model, text = LTXVModel(**LTXV, **_HOST), noise(1, 6, 32, seed=3)
    return Network(
        model, (1, 128, 3, 4, 4), lambda x, o: model(x, torch.tensor([0.5]), text, None, transformer_options=o)
    )


def ltx_2():
    from comfy.ldm.lightricks.av_model import LTXAVModel

    model = LTXAVModel(
        **{"in_channels": 16, "audio_in_channels": 128, "cross_attention_dim": 48, "audio_cross_attention_dim": 24},
        **{"attention_head_dim": 12, "audio_attention_head_dim": 6, "num_attention_heads": 4},
        **{"audio_num_attention_heads": 4, "caption_channels": 32, "num_layers": 4},
        **{"connector_attention_head_dim": 16, "connector_num_attention_heads": 2, "connector_num_layers": 1},
        **_HOST,
    )
    text, audio = noise(1, 6, 64, seed=3), noise(1, 8, 5, 16, seed=9)
    return Network(
        model,
        (1, 16, 3, 4, 4),
        lambda x, o: model([x.clone(), audio.clone()], torch.tensor([0.5]), text, transformer_options=o),
    )


def mochi():
    from comfy.ldm.genmo.joint_model.asymm_models_joint import AsymmDiTJoint

    model = AsymmDiTJoint(
        **{"patch_size": 2, "in_channels": 12, "hidden_size_x": 48, "hidden_size_y": 24, "depth": 4, "num_heads": 4},
        **{"mlp_ratio_x": 256.0, "mlp_ratio_y": 2.0, "use_t5": True, "t5_feat_dim": 32, "t5_token_length": 6},
        **{"learn_sigma": False, "qk_norm": True, "qkv_bias": False, "out_bias": True, "attn_drop": 0.0},
        **{"posenc_preserve_area": True, "attend_to_padding": False, "timestep_scale": 1000.0},
        **_HOST,
    )
    text, mask = noise(1, 6, 32, seed=3), torch.ones(1, 6)
    return Network(
        model,
        (1, 12, 3, 4, 4),
        lambda x, o: model(x, torch.tensor([0.5]), text, mask, num_tokens=6, transformer_options=o),
    )


_COSMOS = {
    **{"max_img_h": 16, "max_img_w": 16, "max_frames": 8, "in_channels": 16, "out_channels": 16, "patch_spatial": 2},
    **{"patch_temporal": 1, "model_channels": 48, "num_blocks": 4, "num_heads": 2, "mlp_ratio": 2.0},
    **{"crossattn_emb_channels": 32, "pos_emb_cls": "rope3d", "pos_emb_interpolation": "crop"},
    **{"use_adaln_lora": True, "adaln_lora_dim": 8},
}


def _cosmos(cls, **config):
    model, text = cls(**_COSMOS, **config, **_HOST), noise(1, 6, 32, seed=3)
    return Network(model, (1, 16, 3, 4, 4), lambda x, o: model(x, torch.tensor([0.5]), text, transformer_options=o))


def cosmos_1():
    from comfy.ldm.cosmos.model import GeneralDIT

    embeddings = {"extra_per_block_abs_pos_emb": True, "extra_per_block_abs_pos_emb_type": "learnable"}
    return _cosmos(GeneralDIT, block_config="FA-CA-MLP", block_x_format="THWBD", affline_emb_norm=True, **embeddings)


def cosmos_predict2():
    from comfy.ldm.cosmos.predict2 import MiniTrainDIT

    return _cosmos(MiniTrainDIT, pos_emb_learnable=True, rope_enable_fps_modulation=False)


def cogvideox(patch_size_t: int | None = None):
    from comfy.ldm.cogvideo.model import CogVideoXTransformer3DModel

    model, text = CogVideoXTransformer3DModel(**COGVIDEOX, patch_size_t=patch_size_t, **_HOST), noise(1, 6, 32, seed=3)
    return Network(model, (1, 16, 4, 4, 4), lambda x, o: model(x, _T, text, transformer_options=o))


def cogvideox_1_5():
    return cogvideox(2)


def kandinsky_5():
    from comfy.ldm.kandinsky5.model import Kandinsky5

    model = Kandinsky5(
        **{"in_visual_dim": 16, "out_visual_dim": 16, "in_text_dim": 32, "in_text_dim2": 24, "time_dim": 24},
        **{"model_dim": 48, "ff_dim": 64, "visual_embed_dim": 64, "num_text_blocks": 1, "num_visual_blocks": 4},
        axes_dims=(4, 4, 4),
        **_HOST,
    )
    text, y = noise(1, 6, 32, seed=3), noise(1, 24, seed=6)
    return Network(model, (1, 16, 3, 4, 4), lambda x, o: model(x, _T, text, y, transformer_options=o))


def seedvr_2():
    from comfy.ldm.seedvr.model import NaDiT

    model = NaDiT(
        **{"norm_eps": 1e-5, "num_layers": 4, "mlp_type": "swiglu", "vid_dim": 48, "txt_in_dim": 32, "heads": 2},
        **{"head_dim": 24, "mm_layers": 2, "expand_ratio": 2, "rope_dim": 12, "vid_out_norm": True},
        **_HOST,
    )
    text, condition = noise(1, 6, 32, seed=3), noise(1, 17, 3, 4, 4, seed=5)
    return Network(
        model,
        (1, 16, 3, 4, 4),
        lambda x, o: model(x, torch.tensor([0.5]), text, condition=condition, transformer_options=o),
    )


def minimax_h3():
    from comfy.ldm.minimax.model import MiniMaxH3Model

    model = MiniMaxH3Model(
        **{"hidden_size": 48, "num_layers": 4, "token_refiner_num_layers": 1, "num_attention_heads": 2},
        **{"attention_head_dim": 24, "ffn_hidden_size": 64, "latents_dim": 24, "audio_latents_dim": 32, "text_dim": 32},
        **{"timestep_input_dim": 16, "time_embed_hidden_size": 48, "time_embed_dim": 24, "rope_inv_freq_len": 2},
        **_HOST,
    )
    text, audio = noise(1, 6, 32, seed=3), noise(1, 32, 2, 4, seed=9)
    return Network(
        model,
        (1, 24, 3, 4, 4),
        lambda x, o: model([x.clone(), audio.clone()], _T, text, transformer_options=o),
    )


def latte():
    from models.latte import LatteDiT

    heads = {"num_layers": 3, "num_attention_heads": 4, "attention_head_dim": 12}
    model = LatteDiT(**heads, cross_attention_dim=48, caption_channels=32, **_HOST)
    text = noise(1, 6, 32, seed=3)
    return Network(model, (1, 4, 3, 4, 4), lambda x, o: model(x, _T, text, transformer_options=o))


def open_sora():
    from models.open_sora import STDiT3

    model = STDiT3(depth=3, hidden_size=48, num_heads=4, caption_channels=32, model_max_length=8, **_HOST)
    text = noise(1, 6, 32, seed=3)
    return Network(model, (1, 4, 3, 5, 4), lambda x, o: model(x, _T, text, transformer_options=o))


NETWORKS = [
    *(wan, wan_i2v, wan_vace, wan_camera, wan_s2v, humo, scail, scail_2, wan_animate, wan_animate_2, wandancer),
    *(wan_causal, hunyuan, hunyuan_control, hunyuan_1_5, ltxv, ltx_2, mochi, cosmos_1, cosmos_predict2),
    *(cogvideox, cogvideox_1_5, kandinsky_5, seedvr_2, minimax_h3, latte, open_sora),
]

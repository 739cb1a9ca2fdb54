"""Tiny random models of every kind that ComfyUI samples, most of which Foresight knows nothing of.

What they differ in is what a method behind the guider could trip over: UNet and transformer, flow, eps and v, latents
of three to five dimensions and of two parts, what conditioning brings, and who has written the class.
"""

import comfy.conds
import comfy.latent_formats
import comfy.ldm.flux.model
import comfy.lora
import comfy.model_base
import comfy.model_patcher
import comfy.nested_tensor
import comfy.ops
import comfy.sample
import comfy.samplers
import comfy.supported_models as supported
import comfy.supported_models_base
import comfy.utils
import comfy_extras.nodes_custom_sampler as guider_nodes
import torch

from support.comfy_models import CPU, _patcher
from support.comfy_networks import fill, noise

_FLUX = {
    **{"in_channels": 16, "out_channels": 16, "context_in_dim": 32, "hidden_size": 48, "mlp_ratio": 2.0},
    **{"num_heads": 3, "depth": 1, "depth_single_blocks": 1, "axes_dim": [4, 6, 6], "theta": 256, "patch_size": 2},
    **{"qkv_bias": True, "txt_ids_dims": []},
}
_UNET = {
    **{"image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 32, "num_res_blocks": [1, 1]},
    **{"channel_mult": [1, 2], "num_head_channels": 16, "use_spatial_transformer": True, "legacy": False},
    **{"use_linear_in_transformer": True, "transformer_depth": [0, 1], "transformer_depth_output": [0, 0, 1, 1]},
    **{"transformer_depth_middle": 1, "context_dim": 32, "num_classes": "sequential", "use_temporal_attention": False},
    "adm_in_channels": 24 + 6 * 256,  # the pooled text, and six numbers about sizes
}


class Tiny:
    """A model to sample with, as `comfy_models.Model` but for its blocks, which nobody asks for.

    Args:
        latent: Shapes of the parts of a latent without the batch; one part for most.
        text: Width of a text token, 0 for conditioning without text.
        pooled: Width of the pooled text, if there is one.
        more: Makes what else is in conditioning, from a seed.
    """

    def __init__(self, patcher, *latent, text=32, pooled=None, more=lambda seed: {}):
        self.patcher, self._latent = patcher, latent
        self._width, self._pooled, self._more = text, pooled, more

    def text(self, seed: int, tokens: int = 6, **extra) -> list:
        extra |= self._more(seed)
        if self._pooled:
            extra["pooled_output"] = noise(1, self._pooled, seed=seed + 50)
        return [[noise(1, tokens, self._width, seed=seed), extra]]

    def latent(self, batch: int = 1):
        return self._of_parts(torch.zeros(batch, *part) for part in self._latent)

    def noise(self, batch: int = 1, seed: int = 100):
        return self._of_parts(noise(batch, *part, seed=seed + i) for i, part in enumerate(self._latent))

    def _of_parts(self, tensors):
        parts = list(tensors)
        return comfy.nested_tensor.NestedTensor(parts) if len(parts) > 1 else parts[0]


def flux():
    config = {"image_model": "flux", **_FLUX, "vec_in_dim": 24, "guidance_embed": True}
    return Tiny(_patcher(supported.Flux, config), (16, 8, 8), pooled=24)


def chroma():
    config = {
        **{"image_model": "chroma", **_FLUX, "in_channels": 64, "out_channels": 64, "vec_in_dim": None},
        **{"in_dim": 64, "out_dim": 48, "hidden_dim": 48, "n_layers": 1},
    }
    return Tiny(_patcher(supported.Chroma, config), (16, 8, 8))


def _qwen():
    config = {
        **{"image_model": "qwen_image", "in_channels": 64, "num_layers": 2, "attention_head_dim": 16},
        **{"num_attention_heads": 3, "joint_attention_dim": 32, "axes_dims_rope": (4, 6, 6)},
    }
    return _patcher(supported.QwenImage, config)


def qwen_image():
    return Tiny(_qwen(), (16, 1, 8, 8))


def qwen_image_edit():
    """With what is to be edited beside the prompt, of another size than the image."""
    return Tiny(_qwen(), (16, 1, 8, 8), more=lambda seed: {"reference_latents": [noise(1, 16, 1, 4, 8, seed=60)]})


def z_image():
    config = {
        **{
            "image_model": "lumina2",
            "in_channels": 16,
            "dim": 256,
            "n_layers": 1,
            "n_refiner_layers": 1,
            "n_heads": 16,
        },
        **{"n_kv_heads": 16, "multiple_of": 16, "ffn_dim_multiplier": 1.0, "qk_norm": True, "cap_feat_dim": 32},
        **{"axes_dims": [4, 6, 6], "axes_lens": [64, 16, 16], "z_image_modulation": True, "time_scale": 1000.0},
        "pad_tokens_multiple": 8,
    }
    patcher = _patcher(supported.ZImage, config)
    for p in patcher.model.diffusion_model.final_layer.parameters():
        p.data *= 0.3  # else its outputs jump from step to step, and nothing of them could be foreseen
    return Tiny(patcher, (16, 8, 8))


def sd3():
    config = {
        **{"in_channels": 16, "out_channels": 16, "patch_size": 2, "depth": 1, "num_blocks": 2, "input_size": None},
        **{"adm_in_channels": 24, "pos_embed_scaling_factor": None, "pos_embed_max_size": 8, "num_patches": 64},
        "context_embedder_config": {"target": "torch.nn.Linear", "params": {"in_features": 32, "out_features": 64}},
    }
    patcher = _patcher(supported.SD3, config)
    positions = patcher.model.diffusion_model.pos_embed  # left as it is found in memory until a checkpoint is loaded
    positions.copy_(noise(*positions.shape, seed=9))
    return Tiny(patcher, (16, 8, 8), pooled=24)


def hidream():
    config = {
        **{"image_model": "hidream", "patch_size": 2, "in_channels": 16, "out_channels": 16, "num_layers": 1},
        **{"num_single_layers": 1, "attention_head_dim": 16, "num_attention_heads": 3, "caption_channels": [32, 32]},
        **{"text_emb_dim": 24, "num_routed_experts": 2, "num_activated_experts": 1, "axes_dims_rope": (4, 6, 6)},
        **{"max_resolution": (8, 8), "llama_layers": [0, 1]},
    }
    llama = lambda seed: {"conditioning_llama3": noise(1, 2, 5, 32, seed=seed + 20)}  # noqa: E731
    return Tiny(_patcher(supported.HiDream, config), (16, 8, 8), pooled=24, more=llama)


def sdxl():
    """A UNet, and the noise is what it predicts."""
    return Tiny(_patcher(supported.SDXL, _UNET), (4, 8, 8), pooled=24)


class _VPrediction(supported.SDXL):
    def model_type(self, state_dict, prefix=""):
        return comfy.model_base.ModelType.V_PREDICTION


def sdxl_v():
    """As NoobAI's v models."""
    return Tiny(_patcher(_VPrediction, _UNET), (4, 8, 8), pooled=24)


class _EDM(supported.SDXL):
    sampling_settings = {"sigma_data": 0.5, "sigma_max": 80.0, "sigma_min": 0.002}

    def model_type(self, state_dict, prefix=""):
        return comfy.model_base.ModelType.EDM


def sdxl_edm():
    """As Playground 2.5."""
    return Tiny(_patcher(_EDM, _UNET), (4, 8, 8), pooled=24)


def _seconds(*_):
    """Weights that are asked for when the model is made."""
    import comfy.ldm.audio.embedders

    embedder = comfy.ldm.audio.embedders.NumberConditioner(768, min_val=0, max_val=512)
    fill(embedder)
    return embedder.state_dict()


class _StableAudio(supported.StableAudio):
    def get_model(self, state_dict, prefix="", device=None):
        return comfy.model_base.StableAudio1(self, _seconds(), _seconds(), device=device)


def stable_audio():
    """A latent of three dimensions, and a model of v over a wide range of noise levels."""
    config = {"audio_model": "dit1.0", "embed_dim": 64, "depth": 2, "num_heads": 1, "project_cond_tokens": True}
    return Tiny(_patcher(_StableAudio, config), (64, 12), text=768)


def ace_step():
    config = {
        **{"audio_model": "ace", "num_layers": 2, "attention_head_dim": 16, "num_attention_heads": 2},
        **{"text_embedding_dim": 32, "ssl_latent_dims": [8, 8], "lyric_encoder_vocab_size": 16},
    }
    lyrics = lambda seed: {"conditioning_lyrics": torch.arange(4)[None] + seed}  # noqa: E731
    patcher = _patcher(supported.ACEStep, config)
    del patcher.model.diffusion_model.lyric_encoder.encoders[1:]  # 1024 wide, whatever the config says
    return Tiny(patcher, (8, 16, 12), more=lyrics)


def hunyuan_3d():
    config = {
        **{"image_model": "hunyuan3d2", "context_in_dim": 32, "hidden_size": 48, "mlp_ratio": 2.0, "num_heads": 3},
        **{"depth": 1, "depth_single_blocks": 1, "guidance_embed": True},
    }
    return Tiny(_patcher(supported.Hunyuan3Dv2, config), (64, 16))


def ltx_2():
    """A latent of two parts, video and audio."""
    config = {
        **{"image_model": "ltxav", "in_channels": 16, "audio_in_channels": 128, "cross_attention_dim": 48},
        **{"audio_cross_attention_dim": 24, "attention_head_dim": 12, "audio_attention_head_dim": 6},
        **{"num_attention_heads": 4, "audio_num_attention_heads": 4, "caption_channels": 32, "num_layers": 2},
        **{"connector_attention_head_dim": 16, "connector_num_attention_heads": 2, "connector_num_layers": 1},
    }
    return Tiny(_patcher(supported.LTXAV, config), (16, 3, 4, 4), (8, 5, 16), text=64)


# ---- classes that are not ComfyUI's


class Convolutions(torch.nn.Module):
    """A network that nobody has heard of: no blocks, no `transformer_options`, its own idea of a text."""

    dtype = torch.float32

    def __init__(self, channels, text, device=None, operations=None, **_):
        super().__init__()
        self.first = operations.Conv2d(channels, 24, 3, padding=1, device=device)
        self.text, self.time = operations.Linear(text, 24, device=device), operations.Linear(16, 24, device=device)
        self.last = operations.Conv2d(24, channels, 3, padding=1, device=device)

    def forward(self, x, timestep, context=None, **_):
        angle = timestep[:, None] * torch.logspace(-3, 0, 8)
        told = self.time(torch.cat((angle.cos(), angle.sin()), 1)) + self.text(context).mean(1)
        return self.last(torch.nn.functional.silu(self.first(x) + told[:, :, None, None]))


class ThirdParty(comfy.model_base.BaseModel):
    """What a pack writes for a model that core does not have."""

    def __init__(self, model_config, device=None):
        super().__init__(model_config, comfy.model_base.ModelType.FLOW, device, unet_model=Convolutions)

    def extra_conds(self, **kwargs):
        return {"c_crossattn": comfy.conds.CONDRegular(kwargs["cross_attn"])}


class ThirdPartyConfig(comfy.supported_models_base.BASE):
    unet_config, sampling_settings = {}, {"shift": 3.0}
    latent_format = comfy.latent_formats.SD15

    def get_model(self, state_dict, prefix="", device=None):
        return ThirdParty(self, device=device)


def third_party():
    return Tiny(_patcher(ThirdPartyConfig, {"channels": 4, "text": 32}), (4, 8, 8))


class OtherFlux(comfy.ldm.flux.model.Flux):
    """A pack's class on top of one of core's, as packs have them for ControlNets inside the model."""

    def _forward(self, x, *args, **kwargs):
        return 0.9 * super()._forward(x, *args, **kwargs)


class _OtherFluxConfig(supported.Flux):
    def get_model(self, state_dict, prefix="", device=None):
        return comfy.model_base.Flux(self, device=device, unet_model=OtherFlux)


def subclassed():
    config = {"image_model": "flux", **_FLUX, "vec_in_dim": 24, "guidance_embed": True}
    return Tiny(_patcher(_OtherFluxConfig, config), (16, 8, 8), pooled=24)


class _Packed(comfy.ops.disable_weight_init):
    class Linear(comfy.ops.disable_weight_init.Linear):
        """Weights that are unpacked where they are used; what changes them is added there."""

        patches = ()

        def forward(self, x):
            weight = comfy.lora.calculate_weight(self.patches, self.weight.clone(), "") if self.patches else self.weight
            return torch.nn.functional.linear(x, weight, self.bias)


class QuantizedPatcher(comfy.model_patcher.ModelPatcher):
    """A patcher as quantized checkpoints have them, GGUF's say: it leaves weights as they are, and clones itself."""

    on_device = False

    def patch_weight_to_device(self, key, *args, **kwargs):
        module, _, name = key.rpartition(".")
        if name == "weight":
            comfy.utils.get_attr(self.model, module).patches = self.patches.get(key, ())

    def clone(self, *args, **kwargs):
        copy = super().clone(*args, **kwargs)
        copy.on_device = self.on_device
        return copy


class _QuantizedConfig(supported.Flux):
    custom_operations = _Packed


def quantized(lora: bool = True):
    config = {"image_model": "flux", **_FLUX, "vec_in_dim": 24, "guidance_embed": True}
    patcher = QuantizedPatcher(_patcher(_QuantizedConfig, config).model, load_device=CPU, offload_device=CPU)
    patcher.on_device = True
    if lora:
        patcher.add_patches({"diffusion_model.img_in.weight": ("diff", (noise(48, 64, seed=7),))})
    return Tiny(patcher, (16, 8, 8), pooled=24)


MODELS = {
    make.__name__: make
    for make in (
        *(flux, chroma, qwen_image, qwen_image_edit, z_image, sd3, hidream, sdxl, sdxl_v, sdxl_edm, stable_audio),
        *(ace_step, hunyuan_3d, ltx_2, third_party, subclassed, quantized),
    )
}


def sample(
    model: Tiny, patcher=None, *, steps=16, cfg=3.0, sampler="euler", scheduler="simple", batch=1, **options
) -> torch.Tensor:
    """One sampler run as the KSampler node does it."""
    with torch.inference_mode():
        samples = comfy.sample.sample(
            patcher or model.patcher,
            model.noise(batch),
            steps,
            cfg,
            sampler,
            scheduler,
            model.text(1),
            model.text(2),
            model.latent(batch),
            disable_pbar=True,
            **{"seed": 0, **options},
        )
    return _one_tensor(samples)


GUIDERS = {
    "BasicGuider": lambda patcher, a, b, c: guider_nodes.BasicGuider.execute(patcher, a),
    "CFGGuider": lambda patcher, a, b, c: guider_nodes.CFGGuider.execute(patcher, a, c, 3.0),
    "DualCFGGuider": lambda patcher, a, b, c: guider_nodes.DualCFGGuider.execute(patcher, a, b, c, 3.0, 2.0, "regular"),
}


def guided(model: Tiny, patcher, guider: str, steps=14) -> torch.Tensor:
    """One sampler run as the nodes of a workflow with SamplerCustomAdvanced do it."""
    sigmas = comfy.samplers.calculate_sigmas(patcher.get_model_object("model_sampling"), "simple", steps)
    guide = GUIDERS[guider](patcher, model.text(1), model.text(3), model.text(2)).args[0]
    sampler, source = comfy.samplers.sampler_object("euler"), guider_nodes.RandomNoise.execute(5).args[0]
    with torch.inference_mode():
        out = guider_nodes.SamplerCustomAdvanced.execute(source, guide, sampler, sigmas, {"samples": model.latent()})
    return _one_tensor(out.args[0]["samples"])


def _one_tensor(samples) -> torch.Tensor:
    """A latent of several parts as one row of numbers."""
    return torch.cat([part.flatten(1) for part in samples.unbind()], 1) if samples.is_nested else samples

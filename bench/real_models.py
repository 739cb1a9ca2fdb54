"""Models at their published size with random bf16 weights, made on the device, and the inputs to sample them.

The networks are ComfyUI's own classes (for Latte and Open-Sora the pack's), so that what runs on a card is what users
run; depth, width and heads are those of the published configs, latents and text lengths those of the usual workflows.
"""

import importlib
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import save_file

WEIGHT_STD = 0.02  # of every matrix; norms are 1 and biases 0, so that hidden states stay finite through any depth


class NotThere(RuntimeError):
    """This ComfyUI has no such model."""


@dataclass(frozen=True)
class RealModel:
    """One architecture at one size of video, or of image.

    Attributes:
        name: For `--models` and the table.
        video: Pixels and frames, of an image its pixels.
        kind: "latte", "open_sora", "cogvideox" (the pack builds these), or the name of core's config class.
        config: Arguments of the network.
        tiny: What differs in the tiny instance of the smoke test.
        latent: (C, T, h, w), of an image (C, h, w).
        tiny_latent: The same of the smoke test.
        text: (tokens, channels) of the text embedding.
        parameters: In billions.
        cfg: Guidance scale; 1 samples the positive prompt alone.
        extra: What else the conditioning holds, with its shape.
        smoke_only: It is measured in the smoke test alone, and with the method "forecast" alone: an image model, whose
            blocks nothing here knows.
    """

    name: str
    video: str
    kind: str
    config: dict
    tiny: dict
    latent: tuple[int, ...]
    tiny_latent: tuple[int, ...]
    text: tuple[int, int]
    parameters: float
    cfg: float = 5.0
    extra: dict[str, tuple[int, ...]] = field(default_factory=dict)
    smoke_only: bool = False

    @property
    def weight_bytes(self) -> int:
        """Bytes that its weights take in bf16."""
        return int(self.parameters * 2e9)


def _cogvideox(name: str, heads: int, layers: int, rotary: bool, parameters: float) -> RealModel:
    config = {
        **{"image_model": "cogvideox", "num_attention_heads": heads, "attention_head_dim": 64, "num_layers": layers},
        **{"in_channels": 16, "time_embed_dim": 512, "text_embed_dim": 4096, "patch_size": 2},
        **{"use_rotary_positional_embeddings": rotary, "use_learned_positional_embeddings": False},
    }
    config |= {"spatial_interpolation_scale": 1.0} if rotary else {}
    tiny = {"num_attention_heads": 3, "attention_head_dim": 16, "num_layers": 4, "time_embed_dim": 24}
    return RealModel(
        name, "720x480, 49 frames", "cogvideox", config, tiny, (16, 13, 60, 90), (16, 3, 4, 6), (226, 4096), parameters
    )


def _wan(name: str, dim: int, ffn: int, heads: int, layers: int, parameters: float) -> RealModel:
    config = {
        **{"image_model": "wan2.1", "model_type": "t2v", "dim": dim, "ffn_dim": ffn, "num_heads": heads},
        **{"num_layers": layers, "text_dim": 4096, "freq_dim": 256, "in_dim": 16, "out_dim": 16},
    }
    tiny = {"dim": 48, "ffn_dim": 64, "num_heads": 4, "num_layers": 4, "freq_dim": 16}
    return RealModel(
        name, "832x480, 81 frames", "WAN21_T2V", config, tiny, (16, 21, 60, 104), (16, 3, 4, 6), (512, 4096), parameters
    )


def _open_sora(name: str, video: str, latent: tuple[int, int, int, int]) -> RealModel:
    tiny = {"depth": 2, "hidden_size": 48, "num_heads": 4}
    return RealModel(name, video, "open_sora", {}, tiny, latent, (4, 3, 4, 6), (300, 4096), 1.21)


_HUNYUAN = {
    **{"image_model": "hunyuan_video", "in_channels": 16, "out_channels": 16, "vec_in_dim": 768},
    **{"context_in_dim": 4096, "hidden_size": 3072, "mlp_ratio": 4.0, "num_heads": 24, "depth": 20},
    **{"depth_single_blocks": 40, "axes_dim": [16, 56, 56], "theta": 256, "patch_size": [1, 2, 2], "qkv_bias": True},
    **{"guidance_embed": True, "byt5": False, "meanflow": False, "use_cond_type_embedding": False},
    **{"vision_in_dim": None, "meanflow_sum": False},
}
_HUNYUAN_TINY = {"hidden_size": 48, "num_heads": 3, "depth": 2, "depth_single_blocks": 2, "axes_dim": [4, 6, 6]}
_FLUX = {
    **{"image_model": "flux", "in_channels": 16, "out_channels": 16, "vec_in_dim": 768, "context_in_dim": 4096},
    **{"hidden_size": 3072, "mlp_ratio": 4.0, "num_heads": 24, "depth": 19, "depth_single_blocks": 38},
    **{"axes_dim": [16, 56, 56], "theta": 10000, "patch_size": 2, "qkv_bias": True, "guidance_embed": True},
    "txt_ids_dims": [],
}
_FLUX_TINY = {"hidden_size": 48, "num_heads": 3, "depth": 2, "depth_single_blocks": 2, "axes_dim": [4, 6, 6]}
_LTXV = {"image_model": "ltxv", "num_layers": 28, "attention_head_dim": 64, "cross_attention_dim": 2048}
_LTXV_TINY = {"num_layers": 4, "num_attention_heads": 4, "attention_head_dim": 12, "cross_attention_dim": 48}
_LATTE_TINY = {"num_layers": 2, "num_attention_heads": 4, "attention_head_dim": 12, "cross_attention_dim": 48}

MODELS = {
    model.name: model
    for model in (  # the most useful first: a lease may end before the last
        _cogvideox("cogvideox-2b", 30, 30, False, 1.69),
        RealModel(
            *("latte", "512x512, 16 frames", "latte", {}, _LATTE_TINY),
            *((4, 16, 64, 64), (4, 3, 4, 6), (120, 4096), 1.06),
        ),
        _open_sora("open-sora-480p", "854x480, 51 frames", (4, 15, 60, 106)),
        _wan("wan-1.3b", 1536, 8960, 12, 30, 1.42),
        _cogvideox("cogvideox-5b", 48, 42, True, 5.57),
        RealModel(
            *("ltxv-2b", "768x512, 121 frames", "LTXV", _LTXV, _LTXV_TINY),
            *((128, 16, 16, 24), (128, 3, 4, 6), (128, 4096), 1.92),
            extra={"attention_mask": (1, 128)},
        ),
        RealModel(  # guidance is an input of it, so it is sampled without CFG
            *("hunyuan-video", "960x544, 61 frames", "HunyuanVideo", _HUNYUAN, _HUNYUAN_TINY),
            *((16, 16, 68, 120), (16, 3, 4, 6), (256, 4096), 12.8),
            cfg=1.0,
            extra={"pooled_output": (1, 768)},
        ),
        _open_sora("open-sora-720p", "1280x720, 51 frames", (4, 15, 90, 160)),
        _wan("wan-14b", 5120, 13824, 40, 40, 14.3),
        RealModel(  # as HunyuanVideo, without CFG
            *("flux-dev", "1024x1024", "Flux", _FLUX, _FLUX_TINY),
            *((16, 128, 128), (16, 8, 8), (512, 4096), 11.9),
            cfg=1.0,
            extra={"pooled_output": (1, 768)},
            smoke_only=True,
        ),
    )
}


def _ours(name: str):
    return importlib.import_module(f"models.{name}")  # once ComfyUI can be imported


def network(model: RealModel, device: torch.device | str, tiny: bool = False) -> torch.nn.Module:
    """The BaseModel with its weights on `device`, in bf16 and without values.

    Raises:
        NotThere: this ComfyUI does not have it.
    """
    import comfy.supported_models

    settings = {**model.config, **(model.tiny if tiny else {}), "dtype": torch.bfloat16}
    if model.kind == "latte":
        config = _ours("latte").LatteConfig(settings)
    elif model.kind == "open_sora":
        config = _ours("open_sora_config").OpenSoraConfig(settings)
    else:
        name = "CogVideoX_T2V" if model.kind == "cogvideox" else model.kind
        if not hasattr(comfy.supported_models, name):
            raise NotThere(f"this ComfyUI has no {name}: update it")
        config = getattr(comfy.supported_models, name)(settings)
    config.set_inference_dtype(torch.bfloat16, None)
    with torch.device(device):  # not every class passes the device on
        return _ours("cogvideox").build(config) if model.kind == "cogvideox" else config.get_model({})


def fill(module: torch.nn.Module, seed: int = 0) -> None:
    """Random values for everything that a checkpoint would have brought, made where it lies."""
    generators: dict[torch.device, torch.Generator] = {}
    with torch.no_grad():
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            if not tensor.is_floating_point():
                continue
            if isinstance(tensor, torch.nn.Parameter) and tensor.ndim < 2:
                tensor.fill_(1.0 if name.endswith(("weight", "scale")) else 0.0)
            elif isinstance(tensor, torch.nn.Parameter) or not torch.isfinite(tensor).all():
                generator = generators.setdefault(tensor.device, torch.Generator(tensor.device).manual_seed(seed))
                tensor.normal_(0.0, WEIGHT_STD, generator=generator)


def build(model: RealModel, device: torch.device, tiny: bool = False):
    """A ModelPatcher that holds all weights on `device` and never moves them.

    Raises:
        NotThere: this ComfyUI does not have it.
    """
    import comfy.model_patcher

    base = network(model, device, tiny)
    fill(base.diffusion_model)
    return comfy.model_patcher.ModelPatcher(base, load_device=device, offload_device=device)


def save(model: RealModel, path: Path, device: torch.device, tiny: bool = False) -> None:
    """Random weights as a file, whose tensors have the names that the network has for them.

    Raises:
        NotThere: this ComfyUI does not have the model.
    """
    base = network(model, device, tiny)
    fill(base.diffusion_model)
    save_file({key: value.to("cpu", copy=True) for key, value in base.diffusion_model.state_dict().items()}, path)


def load(model: RealModel, path: Path, device: torch.device, tiny: bool = False):
    """The ModelPatcher that ComfyUI's own loader would make of such a file: where DynamicVRAM is on, one of that."""
    import comfy.model_management
    import comfy.model_patcher
    import comfy.utils

    base, patcher_class = network(model, "cpu", tiny), comfy.model_patcher.CoreModelPatcher
    patcher = patcher_class(base, load_device=device, offload_device=comfy.model_management.unet_offload_device())
    base.load_model_weights(comfy.utils.load_torch_file(str(path)), "", assign=patcher.is_dynamic())
    return patcher


def conditioning(model: RealModel, seed: int) -> list:
    """Random text embeddings as ComfyUI's CONDITIONING."""
    generator = torch.Generator().manual_seed(seed)
    tokens, channels = model.text
    extra = {
        name: torch.ones(shape, dtype=torch.int)
        if name == "attention_mask"
        else torch.randn(shape, generator=generator)
        for name, shape in model.extra.items()
    }
    return [[torch.randn((1, tokens, channels), generator=generator), extra]]


def empty_latent(model: RealModel, tiny: bool = False) -> torch.Tensor:
    """(1, C, T, h, w) of zeros, for an image (1, C, h, w)."""
    return torch.zeros(1, *(model.tiny_latent if tiny else model.latent))

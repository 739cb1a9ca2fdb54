"""Checkpoint files to ModelPatchers and VAEs, and what a wrong file looks like."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import comfy.model_base
import comfy.model_detection
import comfy.model_management
import comfy.model_patcher
import comfy.supported_models_base
import comfy.utils
import torch

from . import cogvideox, lora_names
from .latte import LatteConfig
from .open_sora_config import OpenSoraConfig
from .video_vae import VideoVAE, latte_vae, open_sora_vae

State = dict[str, torch.Tensor]

LATTE, OPEN_SORA, COGVIDEOX = "Latte-1", "Open-Sora 1.2", "CogVideoX"
LOADERS = {  # what a file can hold: (a key that gives it away, the node that loads it)
    LATTE: ("temporal_transformer_blocks.0.scale_shift_table", "Load Latte"),
    OPEN_SORA: ("spatial_blocks.0.attn.qkv.weight", "Load Open-Sora 1.2"),
    COGVIDEOX: ("transformer_blocks.0.norm1.linear.weight", "Load CogVideoX"),
    "the Open-Sora 1.2 VAE": ("temporal_vae.decoder.conv1.conv.weight", "Load Open-Sora 1.2 VAE"),
    "a T5 text encoder": ("encoder.block.0.layer.0.SelfAttention.q.weight", "Load CLIP, type mochi"),
    "a temporal decoder for Latte": ("decoder.mid_block.resnets.0.time_mixer.mix_factor", "Load Latte VAE"),
    "an image VAE": ("decoder.conv_in.weight", "Load Latte VAE or Load VAE"),
    "a checkpoint with its VAE": ("first_stage_model.decoder.conv_in.weight", "Load Checkpoint"),
}


class WrongFile(ValueError):
    """The file does not hold what this loader loads."""


def looks_like(state_dict: State) -> str | None:
    """What a state dict seems to hold, for people, with the node that loads it; None if nobody can say."""
    for name, (key, loader) in LOADERS.items():
        if key in state_dict:
            return f"{name}: load it with {loader}"
    if any("lora" in key for key in state_dict):
        return "a LoRA: load it with Load LoRA (Model Only)"
    try:
        config = comfy.model_detection.detect_unet_config(dict(state_dict), "")
    except Exception:  # core's detection assumes keys that another file need not have
        config = None
    return (
        f"a {config['image_model']} model: load it with Load Diffusion Model"
        if config and config.get("image_model")
        else None
    )


def _wrong_file(path: str, wanted: str, state_dict: State) -> WrongFile:
    found = looks_like(state_dict)
    return WrongFile(
        f"{path} is not {wanted}. " + (f"It looks like {found}." if found else "No known model has its keys.")
    )


def _check(state_dict: State, wanted: str, path: str) -> None:
    if LOADERS[wanted][0] not in state_dict:
        raise _wrong_file(path, wanted, state_dict)


def _layers(state_dict: State, prefix: str) -> int:
    """How many numbered entries lie under `prefix`."""
    return len({key[len(prefix) :].split(".")[0] for key in state_dict if key.startswith(prefix)})


def _latte_config(state_dict: State, metadata: dict) -> dict:
    """Latte's config: from the file's metadata if it has one, else from the shapes, with 72 channels to a head."""
    config = json.loads(metadata.get("config", "{}"))
    if "num_attention_heads" not in config:
        channels, head = state_dict["scale_shift_table"].shape[1], config.get("attention_head_dim", 72)
        if channels % head:
            raise WrongFile(
                f"{channels} channels do not divide into heads of {head}, which Latte-1 has: "
                'say how many in the metadata of the file, "config": {"num_attention_heads": ..., ...}'
            )
        config.update(num_attention_heads=channels // head, attention_head_dim=head)
    return {
        **{key: value for key, value in config.items() if not key.startswith("_")},
        "num_layers": _layers(state_dict, "transformer_blocks."),
        "in_channels": state_dict["pos_embed.proj.weight"].shape[1],
        "out_channels": state_dict["proj_out.weight"].shape[0] // state_dict["pos_embed.proj.weight"].shape[2] ** 2,
        "patch_size": state_dict["pos_embed.proj.weight"].shape[2],
        "cross_attention_dim": state_dict["transformer_blocks.0.attn2.to_k.weight"].shape[1],
        "caption_channels": state_dict["caption_projection.linear_1.weight"].shape[1],
        "attention_bias": "transformer_blocks.0.attn1.to_q.bias" in state_dict,
    }


def _open_sora_config(state_dict: State) -> dict:
    """STDiT3's config from the shapes."""
    patch = state_dict["x_embedder.proj.weight"].shape
    tokens, caption_channels = state_dict["y_embedder.y_embedding"].shape
    channels = patch[0]
    head = state_dict.get("spatial_blocks.0.attn.q_norm.weight", torch.empty(72)).shape[0]
    return {
        "depth": _layers(state_dict, "spatial_blocks."),
        "hidden_size": channels,
        "num_heads": channels // head,
        "mlp_ratio": state_dict["spatial_blocks.0.mlp.fc1.weight"].shape[0] / channels,
        "in_channels": patch[1],
        "pred_sigma": state_dict["final_layer.linear.weight"].shape[0] // (patch[3] * patch[4]) == 2 * patch[1],
        "patch_size": tuple(patch[2:]),
        "caption_channels": caption_channels,
        "model_max_length": tokens,
        "qk_norm": "spatial_blocks.0.attn.q_norm.weight" in state_dict,
    }


def load_latte(path: str, model_options: dict | None = None, disable_dynamic: bool = False):
    """Latte-1 as a ModelPatcher, from a file in diffusers' layout (`transformer/*.safetensors`).

    Args:
        model_options: As core's loader takes them: `dtype`, `fp8_optimizations`, `load_device`, `offload_device`.
        disable_dynamic: For core: a patcher that loads whole layers.

    Raises:
        WrongFile: it holds something else, or not all of it.
    """
    state_dict, metadata = _read(path)
    _check(state_dict, LATTE, path)
    config = LatteConfig(_latte_config(state_dict, metadata))
    return _patcher(load_latte, path, state_dict, config, model_options, disable_dynamic)


def load_open_sora(path: str, model_options: dict | None = None, disable_dynamic: bool = False):
    """Open-Sora 1.2 as a ModelPatcher, from its published `model.safetensors`; arguments and errors as `load_latte`."""
    state_dict, _ = _read(path)
    state_dict.pop("rope.freqs", None)  # computed
    _check(state_dict, OPEN_SORA, path)
    config = OpenSoraConfig(_open_sora_config(state_dict))
    return _patcher(load_open_sora, path, state_dict, config, model_options, disable_dynamic)


def load_cogvideox(path: str, model_options: dict | None = None, disable_dynamic: bool = False):
    """CogVideoX as a ModelPatcher that KSampler can sample, from a file in diffusers' layout; rest as `load_latte`."""
    state_dict, metadata = _read(path)
    _check(state_dict, COGVIDEOX, path)
    published = {cogvideox.core_key(key): key for key in state_dict}
    state_dict = {key: state_dict[name] for key, name in published.items()}
    rotary = json.loads(metadata.get("config", "{}")).get("use_rotary_positional_embeddings")
    config = cogvideox.config_of(state_dict, None if rotary is None else not rotary)
    return _patcher(
        load_cogvideox, path, state_dict, config, model_options, disable_dynamic, cogvideox.build, published
    )


def _read(path: str) -> tuple[State, dict]:
    """Tensors and metadata of a file and, of a model in several (`...-00001-of-00002...`), of them all.

    Raises:
        WrongFile: a part is missing.
    """
    part = re.search(r"-(\d{5})-of-(\d{5})\.", Path(path).name)
    count = int(part[2]) if part else 1
    state_dict, metadata = {}, {}
    for i in range(1, count + 1):
        name = (
            path if not part else str(Path(path).with_name(Path(path).name.replace(part[0], f"-{i:05}-of-{part[2]}.")))
        )
        if not Path(name).is_file():
            raise WrongFile(f"{name} is missing, part {i} of {count}: put all parts into the same folder")
        tensors, found = comfy.utils.load_torch_file(name, return_metadata=True)
        metadata |= found or {}
        state_dict |= {key.removeprefix("model.diffusion_model."): value for key, value in tensors.items()}
    return state_dict, metadata


def _patcher(
    again: Callable,
    path: str,
    state_dict: State,
    config: comfy.supported_models_base.BASE,
    options: dict | None,
    disable_dynamic: bool,
    build: Callable[[comfy.supported_models_base.BASE], comfy.model_base.BaseModel] | None = None,
    published: dict[str, str] | None = None,
) -> comfy.model_patcher.ModelPatcher:
    """What core does after it has recognized a model; `again` is the loader, for core to call another time.

    `published` has the names of the file for those of `state_dict`, where they differ; LoRA files use them.
    """
    management, options = comfy.model_management, options or {}
    load_device = options.get("load_device", management.get_torch_device())
    offload_device = options.get("offload_device", management.unet_offload_device())
    dtype = options.get("dtype") or management.unet_dtype(
        model_params=comfy.utils.calculate_parameters(state_dict),
        supported_dtypes=config.supported_inference_dtypes,
        weight_dtype=comfy.utils.weight_dtype(state_dict),
    )
    manual_cast = management.unet_manual_cast(dtype, load_device, config.supported_inference_dtypes)
    config.set_inference_dtype(dtype, manual_cast)
    config.optimizations["fp8"] = options.get("fp8_optimizations", False)
    model = build(config) if build else config.get_model(state_dict)
    _check_complete(state_dict, model.diffusion_model, path)
    patcher_class = comfy.model_patcher.ModelPatcher if disable_dynamic else comfy.model_patcher.CoreModelPatcher
    patcher = patcher_class(model, load_device=load_device, offload_device=offload_device)
    if not management.is_device_cpu(offload_device):
        model.to(offload_device)
    lora_names.tell(model, published or {key: key for key in state_dict})
    model.load_model_weights(state_dict, "", assign=patcher.is_dynamic())
    patcher.cached_patcher_init = (again, (path, options))  # core loads it again for a second GPU
    return patcher


def _check_complete(state_dict: State, network: torch.nn.Module, path: str) -> None:
    wanted = {key: value.shape for key, value in network.state_dict().items()}
    missing = sorted(wanted.keys() - state_dict.keys())
    extra = sorted(state_dict.keys() - wanted.keys())
    wrong = [key for key in wanted.keys() & state_dict.keys() if wanted[key] != state_dict[key].shape]
    for what, keys in (("misses", missing), ("has unknown", extra), ("has other shapes for", wrong)):
        if keys:
            more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
            raise WrongFile(f"{path} {what} {', '.join(keys[:3])}{more}: download it again, or convert all of it")


def load_latte_vae(path: str) -> VideoVAE:
    """Latte's decoder from a file, see `video_vae.latte_vae`.

    Raises:
        WrongFile: it holds no image VAE.
    """
    state_dict = comfy.utils.load_torch_file(path)
    try:
        if LOADERS["the Open-Sora 1.2 VAE"][0] not in state_dict:
            return latte_vae(state_dict)
    except RuntimeError:
        pass  # core found no VAE in it
    raise _wrong_file(path, "a Stable Diffusion 1 VAE or Latte's temporal decoder", state_dict)


def load_open_sora_vae(path: str) -> VideoVAE:
    """Open-Sora 1.2's VAE from its published file.

    Raises:
        WrongFile: it holds something else.
    """
    state_dict = comfy.utils.load_torch_file(path)
    try:
        return open_sora_vae(state_dict)
    except ValueError:
        raise _wrong_file(path, "the Open-Sora 1.2 VAE", state_dict) from None

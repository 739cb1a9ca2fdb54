"""The names that published LoRA files have for the tensors of our models, told to ComfyUI's LoRA loaders."""

import functools

import comfy.lora
import comfy.model_base

_TOLD = "foresight_published_names"  # on a model: {name of a weight in the network: its published name}
# What trainers put before the published name of a weight.
_DOTTED = ("transformer.", "diffusion_model.", "base_model.model.", "")  # diffusers, diffusion-pipe, PEFT
_UNDERSCORED = ("lora_unet_", "lora_unet__", "lora_transformer_", "lycoris_")  # kohya, VideoX-Fun, OneTrainer, LyCORIS


def tell(model: comfy.model_base.BaseModel, published: dict[str, str]) -> None:
    """Every LoRA loader of ComfyUI finds the weights of `model` by their published names too.

    Core has a branch for each model that it knows, and no place where a model could say it of itself. So the first
    model that is told extends core's function by a look at the model; for any other model it gives what it gave.

    Args:
        model: What is told, for as long as it lives.
        published: For each key of the network's state dict the key in the published file.
    """
    setattr(model, _TOLD, published)
    if not hasattr(comfy.lora.model_lora_keys_unet, _TOLD):
        comfy.lora.model_lora_keys_unet = _extended(comfy.lora.model_lora_keys_unet)


def _extended(found):
    """Core's map of LoRA names to keys, with those of a model that was told."""

    @functools.wraps(found)
    def model_lora_keys_unet(model, key_map=None):
        key_map = found(model, {} if key_map is None else key_map)
        key_map.update(names_of(getattr(model, _TOLD, {})))  # core's callers may look at the one that they gave
        return key_map

    setattr(model_lora_keys_unet, _TOLD, True)
    return model_lora_keys_unet


def names_of(published: dict[str, str]) -> dict[str, str]:
    """Every name that a LoRA file may have for a weight, and the weight's key in the whole model."""
    names = {}
    for key, name in published.items():
        if key.endswith(".weight"):
            name = name.removesuffix(".weight")
            names |= dict.fromkeys((f"{prefix}{name}" for prefix in _DOTTED), f"diffusion_model.{key}")
            flat = name.replace(".", "_")
            names |= dict.fromkeys((f"{prefix}{flat}" for prefix in _UNDERSCORED), f"diffusion_model.{key}")
    return names

"""Loaders of Latte-1, Open-Sora 1.2 and the published files of CogVideoX."""

import folder_paths
import torch
from comfy_api.latest import io

from ..models import loading

CATEGORY = "model/loaders/foresight"

_DTYPES = {  # as in core's Load Diffusion Model
    "default": {},
    "fp8_e4m3fn": {"dtype": torch.float8_e4m3fn},
    "fp8_e4m3fn_fast": {"dtype": torch.float8_e4m3fn, "fp8_optimizations": True},
    "fp8_e5m2": {"dtype": torch.float8_e5m2},
}


def _file(name: str, folder: str, tooltip: str) -> io.Combo.Input:
    return io.Combo.Input(name, options=folder_paths.get_filename_list(folder), tooltip=tooltip)


def _model_inputs(file: str) -> list:
    return [
        _file("unet_name", "diffusion_models", f"{file}, in models/diffusion_models."),
        io.Combo.Input(
            "weight_dtype",
            options=list(_DTYPES),
            default="default",
            advanced=True,
            tooltip="How weights are kept in memory. default = what the card computes in; fp8 takes half of that.",
        ),
    ]


def _path(folder: str, name: str) -> str:
    return folder_paths.get_full_path_or_raise(folder, name)


class ForesightLatteLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ForesightLatteLoader",
            display_name="Load Latte",
            category=CATEGORY,
            description="Latte-1 (16 frames of 512x512) as an ordinary MODEL. Load Diffusion Model would take its file "
            "for a PixArt model and leave half of it out.",
            search_aliases=["latte", "load latte", "text to video"],
            inputs=_model_inputs("transformer/diffusion_pytorch_model.safetensors of maxin-cn/Latte-1"),
            outputs=[io.Model.Output(tooltip="For KSampler and Foresight.")],
        )

    @classmethod
    def execute(cls, unet_name: str, weight_dtype: str) -> io.NodeOutput:
        return io.NodeOutput(loading.load_latte(_path("diffusion_models", unet_name), _DTYPES[weight_dtype]))


class ForesightOpenSoraLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ForesightOpenSoraLoader",
            display_name="Load Open-Sora 1.2",
            category=CATEGORY,
            description="Open-Sora 1.2 (STDiT3) as an ordinary MODEL. Put ModelSamplingOpenSora after it.",
            search_aliases=["open-sora", "opensora", "stdit", "text to video"],
            inputs=_model_inputs("model.safetensors of hpcai-tech/OpenSora-STDiT-v3"),
            outputs=[io.Model.Output(tooltip="For ModelSamplingOpenSora, then KSampler and Foresight.")],
        )

    @classmethod
    def execute(cls, unet_name: str, weight_dtype: str) -> io.NodeOutput:
        return io.NodeOutput(loading.load_open_sora(_path("diffusion_models", unet_name), _DTYPES[weight_dtype]))


class ForesightCogVideoXLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ForesightCogVideoXLoader",
            display_name="Load CogVideoX",
            category=CATEGORY,
            description="CogVideoX as published (diffusers layout, in one file or in parts) as an ordinary MODEL for "
            "KSampler. ComfyUI has the network but knows other names of its tensors.",
            search_aliases=["cogvideo", "cogvideox", "text to video"],
            inputs=_model_inputs("transformer/*.safetensors of a CogVideoX (the first one of several)"),
            outputs=[io.Model.Output(tooltip="For KSampler and Foresight.")],
        )

    @classmethod
    def execute(cls, unet_name: str, weight_dtype: str) -> io.NodeOutput:
        return io.NodeOutput(loading.load_cogvideox(_path("diffusion_models", unet_name), _DTYPES[weight_dtype]))


class ForesightLatteVAELoader(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ForesightLatteVAELoader",
            display_name="Load Latte VAE",
            category=CATEGORY,
            description="A VAE for Latte with which VAE Decode gives all frames: any Stable Diffusion 1 VAE, frame by "
            "frame, or Latte's vae_temporal_decoder (14 frames at a time, less flicker, decodes only).",
            search_aliases=["latte vae", "temporal decoder"],
            inputs=[_file("vae_name", "vae", "vae or vae_temporal_decoder of maxin-cn/Latte-1, in models/vae.")],
            outputs=[io.Vae.Output(tooltip="For VAE Decode.")],
        )

    @classmethod
    def execute(cls, vae_name: str) -> io.NodeOutput:
        return io.NodeOutput(loading.load_latte_vae(_path("vae", vae_name)))


class ForesightOpenSoraVAELoader(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ForesightOpenSoraVAELoader",
            display_name="Load Open-Sora 1.2 VAE",
            category=CATEGORY,
            description="Open-Sora 1.2's video VAE: 17 frames out of 5 latent frames. It decodes only.",
            search_aliases=["open-sora vae", "opensora vae"],
            inputs=[_file("vae_name", "vae", "model.safetensors of hpcai-tech/OpenSora-VAE-v1.2, in models/vae.")],
            outputs=[io.Vae.Output(tooltip="For VAE Decode.")],
        )

    @classmethod
    def execute(cls, vae_name: str) -> io.NodeOutput:
        return io.NodeOutput(loading.load_open_sora_vae(_path("vae", vae_name)))

"""The published files of CogVideoX: the loader. All else is ComfyUI's own."""

from comfy_api.latest import io

from ..models import loading
from .common import LOADERS_CATEGORY, load_model, model_inputs


class ForesightCogVideoXLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ForesightCogVideoXLoader",
            display_name="Load CogVideoX",
            category=LOADERS_CATEGORY,
            description="CogVideoX as published (diffusers layout, in one file or in parts) as an ordinary MODEL for "
            "KSampler. ComfyUI has the network but knows other names of its tensors.",
            search_aliases=["cogvideo", "cogvideox", "text to video"],
            inputs=model_inputs("transformer/*.safetensors of a CogVideoX (the first one of several)"),
            outputs=[io.Model.Output(tooltip="For KSampler and Foresight.")],
        )

    @classmethod
    def execute(cls, unet_name: str, weight_dtype: str) -> io.NodeOutput:
        return load_model(loading.load_cogvideox, unet_name, weight_dtype)

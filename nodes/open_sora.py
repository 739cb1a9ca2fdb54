"""Open-Sora 1.2: loaders, conditioning, flow shift, empty latent."""

import comfy.model_sampling
import torch
from comfy_api.latest import io

from ..models import loading, open_sora_config
from ..models.open_sora import MAX_TEXT_TOKENS
from .common import (
    CONDITIONING_CATEGORY,
    LATENT_CATEGORY,
    LOADERS_CATEGORY,
    SAMPLING_CATEGORY,
    empty_latent,
    file_input,
    load_model,
    load_vae,
    model_inputs,
    size_input,
    text_rows,
    without_mask,
)


class ForesightOpenSoraLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ForesightOpenSoraLoader",
            display_name="Load Open-Sora 1.2",
            category=LOADERS_CATEGORY,
            description="Open-Sora 1.2 (STDiT3) as an ordinary MODEL. Put ModelSamplingOpenSora after it.",
            search_aliases=["open-sora", "opensora", "stdit", "text to video"],
            inputs=model_inputs("model.safetensors of hpcai-tech/OpenSora-STDiT-v3"),
            outputs=[io.Model.Output(tooltip="For ModelSamplingOpenSora, then KSampler and Foresight.")],
        )

    @classmethod
    def execute(cls, unet_name: str, weight_dtype: str) -> io.NodeOutput:
        return load_model(loading.load_open_sora, unet_name, weight_dtype)


class ForesightOpenSoraVAELoader(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ForesightOpenSoraVAELoader",
            display_name="Load Open-Sora 1.2 VAE",
            category=LOADERS_CATEGORY,
            description="Open-Sora 1.2's video VAE: 17 frames out of 5 latent frames. It decodes only.",
            search_aliases=["open-sora vae", "opensora vae"],
            inputs=[file_input("vae_name", "vae", "model.safetensors of hpcai-tech/OpenSora-VAE-v1.2, in models/vae.")],
            outputs=[io.Vae.Output(tooltip="For VAE Decode.")],
        )

    @classmethod
    def execute(cls, vae_name: str) -> io.NodeOutput:
        return load_vae(loading.load_open_sora_vae, vae_name)


class ForesightOpenSoraConditioning(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ForesightOpenSoraConditioning",
            display_name="Open-Sora Conditioning",
            category=CONDITIONING_CATEGORY,
            description="Makes the negative out of the model's own null caption, as long as the prompt: Open-Sora was "
            "trained with that and takes no negative prompt.",
            search_aliases=["open-sora cfg", "null caption"],
            inputs=[
                io.Conditioning.Input("positive", tooltip="The prompt, from T5-XXL (Load CLIP, type mochi)."),
                io.Float.Input(
                    "fps", default=24.0, min=0.0, max=240.0, step=1.0,
                    tooltip="Frame rate that the model is told. 0 = 24, and 120 for a still image, as in training.",
                ),
                size_input("width", 0, 0, 8192, 1, "Pixels that the model is told. 0 = those of the latent."),
                size_input("height", 0, 0, 8192, 1, "Pixels that the model is told. 0 = those of the latent."),
            ],
            outputs=[
                io.Conditioning.Output(display_name="positive", tooltip="Without padding, at most 300 tokens."),
                io.Conditioning.Output(display_name="negative", tooltip="The null caption, as long as the positive."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, positive: list, fps: float, width: int, height: int) -> io.NodeOutput:
        rows = text_rows(positive, "positive", MAX_TEXT_TOKENS)
        video = {"fps": fps, "video_width": width, "video_height": height}
        return io.NodeOutput(
            without_mask(positive, rows, **video),
            without_mask(positive, torch.zeros_like(rows), null_caption=True, **video),
        )


class ForesightModelSamplingOpenSora(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ForesightModelSamplingOpenSora",
            display_name="ModelSamplingOpenSora",
            category=SAMPLING_CATEGORY,
            description="Open-Sora's timestep shift: larger and longer videos spend more steps at high noise. With "
            "euler and simple the timesteps are its authors'.",
            search_aliases=["open-sora shift", "flow shift", "timestep transform"],
            inputs=[
                io.Model.Input("model", tooltip="From Load Open-Sora 1.2."),
                size_input("width", 854, 64, 8192, 1, "Pixels, as in Empty Open-Sora Latent."),
                size_input("height", 480, 64, 8192, 1, "Pixels, as in Empty Open-Sora Latent."),
                size_input("length", 51, 1, 4096, 1, "Frames, as in Empty Open-Sora Latent."),
            ],
            outputs=[io.Model.Output(tooltip="For KSampler and Foresight.")],
        )

    @classmethod
    def execute(cls, model, width: int, height: int, length: int) -> io.NodeOutput:
        class ModelSamplingOpenSora(comfy.model_sampling.ModelSamplingDiscreteFlow, comfy.model_sampling.CONST):
            pass

        sampling = ModelSamplingOpenSora(model.model.model_config)
        open_sora_config.set_flow_shift(sampling, open_sora_config.flow_shift(width, height, length))
        patched = model.clone()
        patched.add_object_patch("model_sampling", sampling)
        return io.NodeOutput(patched)


class ForesightEmptyOpenSoraLatent(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ForesightEmptyOpenSoraLatent",
            display_name="Empty Open-Sora Latent",
            category=LATENT_CATEGORY,
            description="An empty latent for Open-Sora 1.2: 5 latent frames for every 17 frames, one for every 4 of "
            "the rest. It was trained on 51, 102, 204 and 408 frames at 240p to 720p, and on images (length 1).",
            search_aliases=["open-sora latent", "opensora latent"],
            inputs=[
                size_input("width", 854, 64, 4096, 1, "Pixels, in whole eights: 854 gives 848."),
                size_input("height", 480, 64, 4096, 1, "Pixels, in whole eights."),
                size_input(
                    "length", 51, 1, 4096, 1,
                    "Frames. Multiples of 17, and 1, 5, 9 or 13 more, come back as they are; other lengths are decoded "
                    "to the next shorter one of these.",
                ),
                size_input("batch_size", 1, 1, 64, 1, "Videos."),
            ],
            outputs=[io.Latent.Output(tooltip="For KSampler.")],
        )  # fmt: skip

    @classmethod
    def execute(cls, width: int, height: int, length: int, batch_size: int) -> io.NodeOutput:
        return empty_latent(batch_size, open_sora_config.latent_frames(length), width, height)

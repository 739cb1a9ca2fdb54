"""Latte-1: loaders, conditioning, empty latent."""

from comfy_api.latest import io

from ..models import latte, loading
from .common import (
    CONDITIONING_CATEGORY,
    LATENT_CATEGORY,
    LOADERS_CATEGORY,
    empty_latent,
    file_input,
    load_model,
    load_vae,
    model_inputs,
    size_input,
    text_rows,
    without_mask,
)


class ForesightLatteLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ForesightLatteLoader",
            display_name="Load Latte",
            category=LOADERS_CATEGORY,
            description="Latte-1 (16 frames of 512x512) as an ordinary MODEL. Load Diffusion Model would take its file "
            "for a PixArt model and leave half of it out.",
            search_aliases=["latte", "load latte", "text to video"],
            inputs=model_inputs("transformer/diffusion_pytorch_model.safetensors of maxin-cn/Latte-1"),
            outputs=[io.Model.Output(tooltip="For KSampler and Foresight.")],
        )

    @classmethod
    def execute(cls, unet_name: str, weight_dtype: str) -> io.NodeOutput:
        return load_model(loading.load_latte, unet_name, weight_dtype)


class ForesightLatteVAELoader(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ForesightLatteVAELoader",
            display_name="Load Latte VAE",
            category=LOADERS_CATEGORY,
            description="A VAE for Latte with which VAE Decode gives all frames: any Stable Diffusion 1 VAE, frame by "
            "frame, or Latte's vae_temporal_decoder (14 frames at a time, less flicker, decodes only).",
            search_aliases=["latte vae", "temporal decoder"],
            inputs=[file_input("vae_name", "vae", "vae or vae_temporal_decoder of maxin-cn/Latte-1, in models/vae.")],
            outputs=[io.Vae.Output(tooltip="For VAE Decode.")],
        )

    @classmethod
    def execute(cls, vae_name: str) -> io.NodeOutput:
        return load_vae(loading.load_latte_vae, vae_name)


class ForesightLatteConditioning(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ForesightLatteConditioning",
            display_name="Latte Conditioning",
            category=CONDITIONING_CATEGORY,
            description="Cuts the negative prompt to as many tokens as the positive has, which is how Latte's own "
            "pipeline guides. Both then run in one call of the model.",
            search_aliases=["latte cfg", "latte negative prompt"],
            inputs=[
                io.Conditioning.Input("positive", tooltip="The prompt, from T5-XXL (Load CLIP, type mochi)."),
                io.Conditioning.Input("negative", tooltip="Usually an empty prompt, from the same encoder."),
            ],
            outputs=[
                io.Conditioning.Output(display_name="positive", tooltip="Without padding, at most 120 tokens."),
                io.Conditioning.Output(display_name="negative", tooltip="As long as the positive."),
            ],
        )

    @classmethod
    def execute(cls, positive: list, negative: list) -> io.NodeOutput:
        rows = text_rows(positive, "positive", latte.MAX_TEXT_TOKENS)
        text_rows(negative, "negative", latte.MAX_TEXT_TOKENS)  # checks it
        padded = negative[0][0]
        if padded.shape[1] < rows.shape[1]:
            raise ValueError(
                f"the negative conditioning has {padded.shape[1]} rows, fewer than the positive's {rows.shape[1]} "
                "tokens: encode both with Load CLIP, type mochi, which pads"
            )
        return io.NodeOutput(without_mask(positive, rows), without_mask(negative, padded[:, : rows.shape[1]]))


class ForesightEmptyLatteLatent(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ForesightEmptyLatteLatent",
            display_name="Empty Latte Latent",
            category=LATENT_CATEGORY,
            description="An empty latent for Latte, which was trained on 16 frames of 512x512.",
            search_aliases=["latte latent"],
            inputs=[
                size_input("width", 512, 64, 2048, 16, "Pixels."),
                size_input("height", 512, 64, 2048, 16, "Pixels."),
                size_input("length", 16, 1, 256, 1, "Frames."),
                size_input("batch_size", 1, 1, 64, 1, "Videos."),
            ],
            outputs=[io.Latent.Output(tooltip="One latent frame for each frame.")],
        )

    @classmethod
    def execute(cls, width: int, height: int, length: int, batch_size: int) -> io.NodeOutput:
        return empty_latent(batch_size, length, width, height)

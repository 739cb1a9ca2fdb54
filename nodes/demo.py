"""The bundled demo model as nodes, so that a workflow runs anywhere without a download."""

import comfy.latent_formats
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.supported_models
import torch
from comfy_api.latest import io

from ..demo import codec, model, prompt
from ..demo.clips import FRAMES, HEIGHT, WIDTH

CATEGORY = "model/patch/foresight/demo"


class _DemoLatentFormat(comfy.latent_formats.LatentFormat):
    latent_channels = codec.CHANNELS
    latent_dimensions = 3
    spacial_downscale_ratio = codec.FACTOR
    # the mean of a 2x2 square is channels 0..2, in the codec's colour basis
    latent_rgb_factors = (codec.BASIS.reshape(codec.CHANNELS, 4, 3).mean(dim=1)).tolist()


class _LocatedWan(comfy.model_base.WAN21):
    """Core's Wan 2.1 with the demo's coordinate channels as its concat conditioning."""

    def concat_cond(self, **kwargs) -> torch.Tensor:
        return model.coordinates(kwargs["noise"])


class _DemoWan(comfy.supported_models.WAN21_T2V):
    """Core's Wan 2.1 configuration with the demo's latent and flow shift."""

    unet_config = {}
    sampling_settings = {"shift": model.SHIFT}
    latent_format = _DemoLatentFormat

    def get_model(self, state_dict, prefix="", device=None) -> comfy.model_base.BaseModel:
        return _LocatedWan(self, device=device)


class DemoVAE:
    """The demo codec behind the two methods of a VAE that core's encode and decode nodes use."""

    def decode(self, samples: torch.Tensor) -> torch.Tensor:
        """Latent (B, 12, T, h, w) to images (B, T, 2h, 2w, 3)."""
        return codec.decode(samples.float().cpu())

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """Frames (T, H, W, 3) of one video, or (B, T, H, W, 3), to a latent (B, 12, T, H/2, W/2)."""
        return codec.encode((pixels if pixels.ndim == 5 else pixels[None])[..., :3].float().cpu())


class ForesightDemoModel(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ForesightDemoModel",
            display_name="Foresight Demo Model",
            category=CATEGORY,
            description="A tiny text-to-video model (Wan 2.1 architecture, 3 M parameters) that comes with the pack. "
            "It draws a coloured object that moves, 8 frames of 32x32, in seconds on a CPU.",
            search_aliases=["demo", "tiny video model", "text to video without download"],
            inputs=[],
            outputs=[
                io.Model.Output(tooltip="For Foresight and the sampler."),
                io.Vae.Output(tooltip="For VAE Decode and VAE Encode."),
            ],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        config = _DemoWan(model.COMFY_CONFIG)
        config.set_inference_dtype(torch.float32, None)
        network = config.get_model({})
        network.diffusion_model.load_state_dict(model.load_state_dict())
        patcher = comfy.model_patcher.CoreModelPatcher(
            network,
            load_device=comfy.model_management.get_torch_device(),
            offload_device=comfy.model_management.unet_offload_device(),
        )
        return io.NodeOutput(patcher, DemoVAE())


class ForesightDemoPrompt(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ForesightDemoPrompt",
            display_name="Foresight Demo Prompt",
            category=CATEGORY,
            description="Words for the demo model. It knows "
            + ", ".join(prompt.VOCABULARY)
            + ". Leave a kind of word out for any; an empty prompt is the negative.",
            search_aliases=["demo prompt"],
            inputs=[
                io.String.Input(
                    "text", default="red ball moving right", tooltip="At most one colour, one shape and one direction."
                )
            ],
            outputs=[io.Conditioning.Output(tooltip="For the sampler; its CFG is 4.")],
        )

    @classmethod
    def validate_inputs(cls, text) -> bool | str:
        if text is None:  # comes from a link: known at execution only
            return True
        try:
            prompt.parse(text)
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def execute(cls, text: str) -> io.NodeOutput:
        return io.NodeOutput([[prompt.embed([text]), {}]])


class ForesightDemoLatent(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        def size(name: str, default: int, low: int, high: int, step: int, tooltip: str):
            return io.Int.Input(name, default=default, min=low, max=high, step=step, tooltip=tooltip)

        return io.Schema(
            node_id="ForesightDemoLatent",
            display_name="Foresight Demo Latent",
            category=CATEGORY,
            description="An empty latent for the demo model, which was trained on 8 frames of 32x32.",
            search_aliases=["demo latent"],
            inputs=[
                size("width", WIDTH, 16, 64, 4, "Pixels."),
                size("height", HEIGHT, 16, 64, 4, "Pixels."),
                size("length", FRAMES, 1, 32, 1, "Frames."),
                size("batch_size", 1, 1, 64, 1, "Videos."),
            ],
            outputs=[io.Latent.Output(tooltip="For the sampler.")],
        )

    @classmethod
    def execute(cls, width: int, height: int, length: int, batch_size: int) -> io.NodeOutput:
        shape = (batch_size, codec.CHANNELS, length, height // codec.FACTOR, width // codec.FACTOR)
        return io.NodeOutput({"samples": torch.zeros(shape, device=comfy.model_management.intermediate_device())})

"""The bundled demo model as nodes, so that a workflow runs anywhere without a download."""

from comfy_api.latest import io

from ..models.demo import codec, prompt
from ..models.demo.comfy import DemoVAE, load
from ..models.demo.model import FRAMES, HEIGHT, WIDTH
from .common import DEMO_CATEGORY, empty_latent, size_input


class ForesightDemoModel(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ForesightDemoModel",
            display_name="Foresight Demo Model",
            category=DEMO_CATEGORY,
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
        return io.NodeOutput(load(), DemoVAE())


class ForesightDemoPrompt(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ForesightDemoPrompt",
            display_name="Foresight Demo Prompt",
            category=DEMO_CATEGORY,
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
        return io.Schema(
            node_id="ForesightDemoLatent",
            display_name="Foresight Demo Latent",
            category=DEMO_CATEGORY,
            description="An empty latent for the demo model, which was trained on 8 frames of 32x32.",
            search_aliases=["demo latent"],
            inputs=[
                size_input("width", WIDTH, 16, 64, 4, "Pixels."),
                size_input("height", HEIGHT, 16, 64, 4, "Pixels."),
                size_input("length", FRAMES, 1, 32, 1, "Frames."),
                size_input("batch_size", 1, 1, 64, 1, "Videos."),
            ],
            outputs=[io.Latent.Output(tooltip="For the sampler.")],
        )

    @classmethod
    def execute(cls, width: int, height: int, length: int, batch_size: int) -> io.NodeOutput:
        return empty_latent(batch_size, length, width, height, codec.CHANNELS, codec.FACTOR)

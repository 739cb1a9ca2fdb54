"""Measured sampling seconds, and the speed-up between two models."""

from comfy_api.latest import io

from ..foresight.hosts.comfyui.timer import apply_timer, seconds_on
from .common import CATEGORY, samplers_of


class ForesightTimer(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ForesightTimer",
            display_name="Foresight Timer",
            category=CATEGORY,
            description="Measures how long the sampler runs of this model take. Put one on the plain line and one on "
            "the line with Foresight, and read both with Measured Speed-up.",
            search_aliases=["benchmark", "stopwatch", "sampling time", "measure"],
            is_experimental=True,
            inputs=[io.Model.Input("model", tooltip="Any model; with Foresight, after it.")],
            outputs=[io.Model.Output(tooltip="The same model, timed.")],
        )

    @classmethod
    def execute(cls, model) -> io.NodeOutput:
        return io.NodeOutput(apply_timer(model))


class ForesightSpeedup(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ForesightSpeedup",
            display_name="Measured Speed-up",
            category=CATEGORY,
            description="Measured sampling seconds of two timed models and their ratio, on this machine. The latents "
            "pass through, so that it runs after both samplers.",
            search_aliases=["benchmark", "compare speed", "timing"],
            is_experimental=True,
            is_output_node=True,
            inputs=[
                io.Model.Input("plain_model", tooltip="The plain line's MODEL, after its Foresight Timer."),
                io.Latent.Input("plain_latent", tooltip="The plain sampler's result."),
                io.Model.Input(
                    "foresight_model", tooltip="The other line's MODEL, after Foresight and its Foresight Timer."
                ),
                io.Latent.Input("foresight_latent", tooltip="The other sampler's result."),
            ],
            outputs=[
                io.Latent.Output("plain", tooltip="The plain latent, unchanged."),
                io.Latent.Output("foresight", tooltip="The other latent, unchanged."),
                io.String.Output("text", tooltip="Both times and the speed-up in one line."),
                io.Float.Output("speedup", display_name="measured speed-up", tooltip="Plain seconds over Foresight's."),
            ],
            hidden=[io.Hidden.prompt],
        )

    @classmethod
    def execute(cls, plain_model, plain_latent, foresight_model, foresight_latent) -> io.NodeOutput:
        samplers = samplers_of(cls.hidden)
        plain, fast = (sum(seconds_on(model, samplers)) for model in (plain_model, foresight_model))
        if not plain or not fast:
            raise ValueError(
                f"the {'plain' if not plain else 'other'} model has not been sampled since it was timed: connect the "
                "sampler to the Foresight Timer's MODEL, and its LATENT to this node"
            )
        text = f"plain {plain:.2f} s, Foresight {fast:.2f} s: {plain / fast:.2f}x measured"
        return io.NodeOutput(plain_latent, foresight_latent, text, plain / fast, ui={"text": [text]})

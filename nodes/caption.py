"""Prompts as Latte and Open-Sora were trained on."""

from comfy_api.latest import io

from ..models import caption
from .common import CONDITIONING_CATEGORY


class ForesightVideoCaption(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ForesightVideoCaption",
            display_name="Video Caption",
            category=CONDITIONING_CATEGORY,
            description="A prompt as Latte and Open-Sora were trained on: lower case, no addresses or markup, and for "
            "Open-Sora the scores that its captions end in.",
            search_aliases=["open-sora prompt", "aesthetic score", "motion score", "camera motion"],
            inputs=[
                io.String.Input("text", multiline=True, default="", tooltip="The prompt."),
                io.Boolean.Input("clean", default=True, tooltip="Lower case, no addresses or markup."),
                io.Float.Input(
                    "aesthetic_score", default=0.0, min=0.0, max=10.0, step=0.1,
                    tooltip="Open-Sora only: how pretty, 6.5 is its authors' choice. 0 = leave it out.",
                ),
                io.Float.Input(
                    "motion_score", default=0.0, min=0.0, max=100.0, step=0.5,
                    tooltip="Open-Sora only: how much moves, 0 to about 20. 0 = leave it out.",
                ),
                io.String.Input(
                    "camera_motion", default="",
                    tooltip="Open-Sora only: pan right, pan left, tilt up, tilt down, zoom in, zoom out or static. "
                    "Empty = leave it out.",
                ),
            ],
            outputs=[io.String.Output(tooltip="For CLIP Text Encode.")],
        )  # fmt: skip

    @classmethod
    def execute(cls, text, clean, aesthetic_score, motion_score, camera_motion) -> io.NodeOutput:
        text = caption.with_scores(text, aesthetic_score, motion_score, camera_motion)
        return io.NodeOutput(caption.clean(text) if clean else text)

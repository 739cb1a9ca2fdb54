"""One picture of an A/B comparison that can be posted: both videos, and what was measured of them."""

import torch
from comfy_api.latest import io

from ..foresight.hosts.comfyui import runs_on
from ..foresight.hosts.comfyui.prompts import Present
from ..foresight.hosts.comfyui.timer import steps_on
from ..foresight.report import figures, picture, plot, quality
from ..foresight.report.machine import card
from .common import CATEGORY, image_of, present_in, size_input
from .timing import measured_lines


class ForesightPicture(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ForesightPicture",
            display_name="Comparison Picture",
            category=CATEGORY,
            description="One picture to post: the plain and the accelerated video side by side, with the measured "
            "seconds and speed-up, PSNR, model, steps and card below. As many frames as the videos have, for Save "
            "Animated WEBP, Save Image or Create Video.",
            search_aliases=["A/B", "share", "post", "side by side", "benchmark", "caption", "webp"],
            inputs=[
                io.Image.Input("plain", tooltip="Frames of the video without Foresight."),
                io.Image.Input("accelerated", tooltip="Frames of the video with it: same seed, size and length."),
                io.Model.Input("plain_model", tooltip="The plain line's MODEL, after its Foresight Timer."),
                io.Model.Input(
                    "foresight_model", tooltip="The other line's MODEL, after Foresight and its Foresight Timer."
                ),
                io.String.Input(
                    "model_name", default="", tooltip="What the picture calls the model. Empty = the name of its class."
                ),
                size_input("width", 1024, 512, 4096, 2, "Pixels of the picture, both videos and a margin."),
            ],
            outputs=[
                io.Image.Output("picture", tooltip="Both videos with the figures, every frame."),
                io.String.Output("text", tooltip="The figures, and why there is none where one is missing."),
            ],
            hidden=[io.Hidden.dynprompt],
        )

    @classmethod
    def execute(cls, plain, accelerated, plain_model, foresight_model, model_name: str, width: int) -> io.NodeOutput:
        a, b = (frames[..., :3].cpu() for frames in (plain, accelerated))
        try:
            psnr = quality.mean_psnr(a, b)
        except ValueError as error:  # told, not raised: that would end the prompt before both videos are saved
            return io.NodeOutput(image_of(plot.note(f"not compared: {error}")), str(error))
        titles, lines, missing = caption(
            plain_model, foresight_model, psnr, model_name, present_in(cls.hidden, strictly=True)
        )
        frames = picture.comparison(a, b, titles, lines, width)
        text = "\n".join((", ".join(titles), *lines, *missing))
        return io.NodeOutput(torch.from_numpy(frames).float().div_(255), text)


def caption(plain, other, psnr: float, model_name: str, present: Present) -> tuple[list[str], list[str], list[str]]:
    """What there is to say of two timed models: a title for each video, lines below, and why figures are missing."""
    times = measured_lines(plain, other, present)
    missing = [text for seconds, text in times if not seconds]
    runs = runs_on(other, present)
    if runs_on(plain, present):
        missing.append("plain: Foresight ran on this line too: take the MODEL from before it")
    speedup = "no speed-up measured" if missing else f"measured speed-up {times[0][0] / times[1][0]:.2f}x"
    lines = [
        f"{speedup}, {'equal, bit for bit' if psnr == float('inf') else f'PSNR {psnr:.1f} dB'}",
        ", ".join(filter(None, (model_name or name_of(other), steps(times, (plain, other), present), did(runs)))),
        f"seconds of sampling on {card(other.load_device)}, with ComfyUI-Foresight",
    ]
    return [text if seconds else text.partition(":")[0] for seconds, text in times], lines, missing


def name_of(model) -> str:
    """The class of a model's configuration, which tells more than that of its network: WAN21_T2V, LTXV, Flux."""
    return type(getattr(model.model, "model_config", model.model)).__name__


def steps(times: list[tuple[float, str]], models: tuple, present: Present) -> str:
    """The steps that were timed, of both lines where they differ; empty where neither was timed."""
    found = [
        " + ".join(str(count) for count in steps_on(model, present))
        for (seconds, _), model in zip(times, models, strict=True)
        if seconds
    ]
    if len(set(found)) == 2:
        return f"{found[0]} steps plain and {found[1]} with Foresight"
    return f"{found[0]} steps" if found else ""


def did(runs: list[dict]) -> str:
    """What Foresight left out."""
    return figures.in_short(runs) if runs else "Foresight did not run"

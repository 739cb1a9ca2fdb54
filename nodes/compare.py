"""Quality of an accelerated video against the plain one."""

import torch
from comfy_api.latest import io

from ..foresight.report import plot, quality, sound
from .common import CATEGORY, image_of, shown


class ForesightCompare(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ForesightCompare",
            display_name="Compare Videos",
            category=CATEGORY,
            description="How close an accelerated video is to the plain one of the same seed: PSNR and SSIM of every "
            "frame, both side by side, their difference, and the worst frame; with sound, how far that is off.",
            search_aliases=["psnr", "ssim", "quality", "difference", "side by side", "A/B", "audio"],
            is_output_node=True,
            inputs=[
                io.Image.Input("plain", tooltip="Frames of the video without reuse."),
                io.Image.Input("accelerated", tooltip="Frames of the video with reuse: same seed, size and length."),
                io.Float.Input(
                    "difference_gain",
                    default=4.0,
                    min=1.0,
                    max=64.0,
                    step=0.5,
                    tooltip="How much the difference video is amplified. Grey is no difference.",
                ),
                io.Audio.Input("plain_audio", optional=True, tooltip="Sound of the plain video."),
                io.Audio.Input("audio", optional=True, tooltip="Sound of the accelerated video."),
            ],
            outputs=[
                io.Image.Output(
                    "side_by_side", display_name="side by side", tooltip="Plain left, accelerated right, every frame."
                ),
                io.Image.Output("difference", tooltip="Accelerated minus plain, amplified, on grey; every frame."),
                io.Image.Output(
                    "worst_frame",
                    display_name="worst frame",
                    tooltip="Frame of the lowest PSNR: plain, accelerated, difference.",
                ),
                io.Image.Output("plot", tooltip="PSNR and SSIM over the frames."),
                io.Float.Output("psnr", display_name="PSNR", tooltip="Whole video, dB; inf: equal, 0: not compared."),
                io.Float.Output("ssim", display_name="SSIM", tooltip="Mean of the frames; 1: equal, 0: not compared."),
                io.String.Output("text", tooltip="The figures."),
            ],
        )

    @classmethod
    def execute(cls, plain, accelerated, difference_gain: float, plain_audio=None, audio=None) -> io.NodeOutput:
        a, b = (frames[..., :3].cpu() for frames in (plain, accelerated))
        try:
            psnr, ssim = quality.psnr(a, b), quality.ssim(a, b)
        except ValueError as error:  # told, not raised: that would end the prompt before both videos are saved
            note = image_of(plot.note(f"not compared: {error}"))
            return io.NodeOutput(note, note, note, note, 0.0, 0.0, str(error), ui=shown(note, str(error), cls))
        difference = ((b - a) * difference_gain / 2 + 0.5).clamp(0, 1)
        worst = int(psnr.argmin())
        whole = quality.mean_psnr(a, b)
        equal, frames = whole == float("inf"), f"{len(a)} frame{'s' if len(a) > 1 else ''}"
        panels = {
            f"PSNR in dB, {'no difference' if equal else f'{whole:.2f}'} over {frames}": {"PSNR": psnr.tolist()},
            f"SSIM, {ssim.mean():.4f} on average": {"SSIM": ssim.tolist()},
        }
        chart = image_of(plot.curves(panels, "frame"))
        text = (
            f"PSNR {whole:.2f} dB over {frames}, worst {psnr[worst]:.2f} dB in frame {worst}\n"
            f"SSIM {ssim.mean():.4f} on average, worst {ssim.min():.4f} in frame {int(ssim.argmin())}"
        )
        if equal:
            text = f"{f'all {frames} are' if len(a) > 1 else f'{frames} is'} equal, bit for bit"
        text += heard(plain_audio, audio)
        return io.NodeOutput(
            torch.cat([a, b], dim=2),
            difference,
            torch.cat([video[worst : worst + 1] for video in (a, b, difference)], dim=2),
            chart,
            whole,
            float(ssim.mean()),
            text,
            ui=shown(chart, text, cls),
        )


def heard(plain: dict | None, other: dict | None) -> str:
    """A line about two sounds as ComfyUI has them; none where one is missing."""
    if plain is None or other is None:
        return ""
    (a, rate), (b, rate_b) = ((audio["waveform"].cpu(), audio["sample_rate"]) for audio in (plain, other))
    if rate != rate_b:
        return f"\nsound not compared: {rate} samples a second in the plain one, {rate_b} in the other"
    try:
        distance = sound.log_mel_distance(a, b, rate)
    except (ImportError, OSError, RuntimeError, ValueError) as error:  # a torchaudio that is not of this torch, say
        return f"\nsound not compared: {error}"
    return f"\nsound: log-mel distance {distance:.2f} dB, loudness {sound.rms_ratio(a, b):.3f} of the plain one"

"""What Latte-1 and Open-Sora 1.2 need between loader and sampler: prompts, exact CFG, flow shift, empty latents."""

import comfy.model_management
import comfy.model_sampling
import torch
from comfy_api.latest import io

from ..models import caption, latte, open_sora

CATEGORY = "model/conditioning/foresight"


def _text(cond: list, what: str, limit: int) -> torch.Tensor:
    """The rows of the tokens of a text, (B, n, C), without padding.

    Raises:
        ValueError: the text encoder gave no mask, or the conditioning is not one text.
    """
    if len(cond) != 1:
        raise ValueError(
            f"the {what} conditioning has {len(cond)} entries, it must be one text: combine them after this node"
        )
    rows, extra = cond[0]
    if extra.get("attention_mask") is None:
        raise ValueError(
            f"the {what} conditioning says nothing of its padding: encode it with T5-XXL from Load CLIP, type mochi"
        )
    return rows[:, : min(limit, int(extra["attention_mask"].sum(-1).max()))]


def _without_mask(cond: list, rows: torch.Tensor, **more) -> list:
    return [[rows, {**{key: value for key, value in cond[0][1].items() if key != "attention_mask"}, **more}]]


def _size(name: str, default: int, low: int, high: int, step: int, tooltip: str) -> io.Int.Input:
    return io.Int.Input(name, default=default, min=low, max=high, step=step, tooltip=tooltip)


def _empty(batch_size: int, frames: int, width: int, height: int) -> io.NodeOutput:
    device = comfy.model_management.intermediate_device()
    return io.NodeOutput({"samples": torch.zeros((batch_size, 4, frames, height // 8, width // 8), device=device)})


class ForesightVideoCaption(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ForesightVideoCaption",
            display_name="Video Caption",
            category=CATEGORY,
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


class ForesightLatteConditioning(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ForesightLatteConditioning",
            display_name="Latte Conditioning",
            category=CATEGORY,
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
        rows = _text(positive, "positive", latte.MAX_TEXT_TOKENS)
        _text(negative, "negative", latte.MAX_TEXT_TOKENS)  # checks it
        padded = negative[0][0]
        if padded.shape[1] < rows.shape[1]:
            raise ValueError(
                f"the negative conditioning has {padded.shape[1]} rows, fewer than the positive's {rows.shape[1]} "
                "tokens: encode both with Load CLIP, type mochi, which pads"
            )
        return io.NodeOutput(_without_mask(positive, rows), _without_mask(negative, padded[:, : rows.shape[1]]))


class ForesightOpenSoraConditioning(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ForesightOpenSoraConditioning",
            display_name="Open-Sora Conditioning",
            category=CATEGORY,
            description="Makes the negative out of the model's own null caption, as long as the prompt: Open-Sora was "
            "trained with that and takes no negative prompt.",
            search_aliases=["open-sora cfg", "null caption"],
            inputs=[
                io.Conditioning.Input("positive", tooltip="The prompt, from T5-XXL (Load CLIP, type mochi)."),
                io.Float.Input(
                    "fps", default=24.0, min=0.0, max=240.0, step=1.0,
                    tooltip="Frame rate that the model is told. 0 = 24, and 120 for a still image, as in training.",
                ),
                _size("width", 0, 0, 8192, 1, "Pixels that the model is told. 0 = those of the latent."),
                _size("height", 0, 0, 8192, 1, "Pixels that the model is told. 0 = those of the latent."),
            ],
            outputs=[
                io.Conditioning.Output(display_name="positive", tooltip="Without padding, at most 300 tokens."),
                io.Conditioning.Output(display_name="negative", tooltip="The null caption, as long as the positive."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, positive: list, fps: float, width: int, height: int) -> io.NodeOutput:
        rows = _text(positive, "positive", open_sora.MAX_TEXT_TOKENS)
        video = {"fps": fps, "video_width": width, "video_height": height}
        return io.NodeOutput(
            _without_mask(positive, rows, **video),
            _without_mask(positive, torch.zeros_like(rows), null_caption=True, **video),
        )


class ForesightModelSamplingOpenSora(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ForesightModelSamplingOpenSora",
            display_name="ModelSamplingOpenSora",
            category="model/sampling/foresight",
            description="Open-Sora's timestep shift: larger and longer videos spend more steps at high noise. With "
            "euler and simple the timesteps are its authors'.",
            search_aliases=["open-sora shift", "flow shift", "timestep transform"],
            inputs=[
                io.Model.Input("model", tooltip="From Load Open-Sora 1.2."),
                _size("width", 854, 64, 8192, 1, "Pixels, as in Empty Open-Sora Latent."),
                _size("height", 480, 64, 8192, 1, "Pixels, as in Empty Open-Sora Latent."),
                _size("length", 51, 1, 4096, 1, "Frames, as in Empty Open-Sora Latent."),
            ],
            outputs=[io.Model.Output(tooltip="For KSampler and Foresight.")],
        )

    @classmethod
    def execute(cls, model, width: int, height: int, length: int) -> io.NodeOutput:
        class ModelSamplingOpenSora(comfy.model_sampling.ModelSamplingDiscreteFlow, comfy.model_sampling.CONST):
            pass

        sampling = ModelSamplingOpenSora(model.model.model_config)
        open_sora.set_flow_shift(sampling, open_sora.flow_shift(width, height, length))
        patched = model.clone()
        patched.add_object_patch("model_sampling", sampling)
        return io.NodeOutput(patched)


class ForesightEmptyLatteLatent(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ForesightEmptyLatteLatent",
            display_name="Empty Latte Latent",
            category="model/latent/foresight",
            description="An empty latent for Latte, which was trained on 16 frames of 512x512.",
            search_aliases=["latte latent"],
            inputs=[
                _size("width", 512, 64, 2048, 16, "Pixels."),
                _size("height", 512, 64, 2048, 16, "Pixels."),
                _size("length", 16, 1, 256, 1, "Frames."),
                _size("batch_size", 1, 1, 64, 1, "Videos."),
            ],
            outputs=[io.Latent.Output(tooltip="One latent frame for each frame.")],
        )

    @classmethod
    def execute(cls, width: int, height: int, length: int, batch_size: int) -> io.NodeOutput:
        return _empty(batch_size, length, width, height)


class ForesightEmptyOpenSoraLatent(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ForesightEmptyOpenSoraLatent",
            display_name="Empty Open-Sora Latent",
            category="model/latent/foresight",
            description="An empty latent for Open-Sora 1.2: 5 latent frames for every 17 frames, one for every 4 of "
            "the rest. It was trained on 51, 102, 204 and 408 frames at 240p to 720p, and on images (length 1).",
            search_aliases=["open-sora latent", "opensora latent"],
            inputs=[
                _size("width", 854, 64, 4096, 1, "Pixels, in whole eights: 854 gives 848."),
                _size("height", 480, 64, 4096, 1, "Pixels, in whole eights."),
                _size(
                    "length", 51, 1, 4096, 1,
                    "Frames. Multiples of 17, and 1, 5, 9 or 13 more, come back as they are; other lengths are decoded "
                    "to the next shorter one of these.",
                ),
                _size("batch_size", 1, 1, 64, 1, "Videos."),
            ],
            outputs=[io.Latent.Output(tooltip="For KSampler.")],
        )  # fmt: skip

    @classmethod
    def execute(cls, width: int, height: int, length: int, batch_size: int) -> io.NodeOutput:
        return _empty(batch_size, open_sora.latent_frames(length), width, height)

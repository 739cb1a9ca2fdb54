"""What several rooms of the nodes share: categories, inputs, loading, empty latents, texts, and what a node shows."""

from collections.abc import Callable

import comfy.model_management
import folder_paths
import torch
from comfy_api.latest import io, ui

from ..foresight.hosts.comfyui.prompts import Present, executing
from ..models.common import without_padding

CATEGORY = "model/patch/foresight"
DEMO_CATEGORY = "model/patch/foresight/demo"
LOADERS_CATEGORY = "model/loaders/foresight"
CONDITIONING_CATEGORY = "model/conditioning/foresight"
SAMPLING_CATEGORY = "model/sampling/foresight"
LATENT_CATEGORY = "model/latent/foresight"

RAY_ACTORS = io.Custom("RAY_ACTORS")  # raylight's workers, each with the model in it

DTYPES = {  # as in core's Load Diffusion Model
    "default": {},
    "fp8_e4m3fn": {"dtype": torch.float8_e4m3fn},
    "fp8_e4m3fn_fast": {"dtype": torch.float8_e4m3fn, "fp8_optimizations": True},
    "fp8_e5m2": {"dtype": torch.float8_e5m2},
}


def image_of(pixels) -> torch.Tensor:
    """A plot (H, W, 3), uint8, as an IMAGE (1, H, W, 3)."""
    return torch.from_numpy(pixels.copy()).float().div(255)[None]


def present_in(hidden, strictly: bool = False) -> Present:
    """The prompt that a node with the hidden input DYNPROMPT is executed in; `strictly` for what leads to it alone."""
    running = executing()
    return Present(hidden.dynprompt, running.prompt_id, running.node_id, strictly)


def shown(image: torch.Tensor, text: str, cls: type[io.ComfyNode]) -> dict:
    """What a node shows: a picture, which is written to the temporary folder, and a text, which says if that failed.

    The node comes after sampling; an error of it would end the prompt before the video is saved.
    """
    try:
        return {**ui.PreviewImage(image, cls=cls).as_dict(), "text": [text]}
    except OSError as error:  # the disk is full, say
        return {"text": [f"{text}\n\nthe picture is not shown: {error}"]}


def size_input(name: str, default: int, low: int, high: int, step: int, tooltip: str) -> io.Int.Input:
    """Width, height, length or number of videos."""
    return io.Int.Input(name, default=default, min=low, max=high, step=step, tooltip=tooltip)


def empty_latent(
    batch_size: int, frames: int, width: int, height: int, channels: int = 4, factor: int = 8
) -> io.NodeOutput:
    """A latent of zeros.

    Args:
        frames: Of the latent.
        width: Pixels.
        height: Pixels.
        channels: Of the latent.
        factor: Pixels to a position of the latent, either way.
    """
    shape = (batch_size, channels, frames, height // factor, width // factor)
    return io.NodeOutput({"samples": torch.zeros(shape, device=comfy.model_management.intermediate_device())})


def file_input(name: str, folder: str, tooltip: str) -> io.Combo.Input:
    """A file of one of ComfyUI's model folders."""
    return io.Combo.Input(name, options=folder_paths.get_filename_list(folder), tooltip=tooltip)


def model_inputs(file: str) -> list[io.Input]:
    """The file of a video model, and the dtype of its weights."""
    return [
        file_input("unet_name", "diffusion_models", f"{file}, in models/diffusion_models."),
        io.Combo.Input(
            "weight_dtype",
            options=list(DTYPES),
            default="default",
            advanced=True,
            tooltip="How weights are kept in memory. default = what the card computes in; fp8 takes half of that.",
        ),
    ]


def load_model(load: Callable, unet_name: str, weight_dtype: str) -> io.NodeOutput:
    """What `load`, a function of `models.loading`, makes of the values of `model_inputs`."""
    path = folder_paths.get_full_path_or_raise("diffusion_models", unet_name)
    return io.NodeOutput(load(path, DTYPES[weight_dtype]))


def load_vae(load: Callable, vae_name: str) -> io.NodeOutput:
    """What `load`, a function of `models.loading`, makes of a file in models/vae."""
    return io.NodeOutput(load(folder_paths.get_full_path_or_raise("vae", vae_name)))


def text_rows(cond: list, what: str, limit: int) -> torch.Tensor:
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
    return without_padding(rows, extra["attention_mask"], limit)


def without_mask(cond: list, rows: torch.Tensor, **more) -> list:
    """A conditioning with these rows for its text, all of them tokens, and `more` beside it."""
    return [[rows, {**{key: value for key, value in cond[0][1].items() if key != "attention_mask"}, **more}]]

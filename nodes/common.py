"""What several rooms of the nodes share: inputs, empty latents, texts, and plots as images."""

import comfy.model_management
import folder_paths
import torch
from comfy_api.latest import io

_DTYPES = {  # as in core's Load Diffusion Model
    "default": {},
    "fp8_e4m3fn": {"dtype": torch.float8_e4m3fn},
    "fp8_e4m3fn_fast": {"dtype": torch.float8_e4m3fn, "fp8_optimizations": True},
    "fp8_e5m2": {"dtype": torch.float8_e5m2},
}


def image_of(pixels) -> torch.Tensor:
    """A plot (H, W, 3), uint8, as an IMAGE (1, H, W, 3)."""
    return torch.from_numpy(pixels.copy()).float().div(255)[None]


def samplers_of(hidden) -> set[str] | None:
    """Ids of the prompt's nodes, so that figures leave out samplers that were deleted; None where they are unknown."""
    return set(hidden.prompt) if hidden.prompt else None


def _file(name: str, folder: str, tooltip: str) -> io.Combo.Input:
    return io.Combo.Input(name, options=folder_paths.get_filename_list(folder), tooltip=tooltip)


def _model_inputs(file: str) -> list:
    return [
        _file("unet_name", "diffusion_models", f"{file}, in models/diffusion_models."),
        io.Combo.Input(
            "weight_dtype",
            options=list(_DTYPES),
            default="default",
            advanced=True,
            tooltip="How weights are kept in memory. default = what the card computes in; fp8 takes half of that.",
        ),
    ]


def _path(folder: str, name: str) -> str:
    return folder_paths.get_full_path_or_raise(folder, name)


def _size(name: str, default: int, low: int, high: int, step: int, tooltip: str) -> io.Int.Input:
    return io.Int.Input(name, default=default, min=low, max=high, step=step, tooltip=tooltip)


def _empty(batch_size: int, frames: int, width: int, height: int) -> io.NodeOutput:
    device = comfy.model_management.intermediate_device()
    return io.NodeOutput({"samples": torch.zeros((batch_size, 4, frames, height // 8, width // 8), device=device)})


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

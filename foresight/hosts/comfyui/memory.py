"""What a run may hold: planned before the model is loaded, checked against what its first evaluation leaves free."""

import functools
import math

import comfy.model_management
import torch

from ...engine import Config, Offload, Run
from .families import ComfyFamily

RAM = torch.device("cpu")


def offload(config: Config) -> Offload:
    """Where the stored tensors of a run wait, by the user's `cache_device`."""
    # one of ComfyUI's streams for moving weights; each time it is asked, it gives the next of them
    return Offload.of(config.cache_device, functools.cache(comfy.model_management.get_offload_stream))


def planned_bytes(
    run: Run,
    model,
    family: ComfyFamily | None,
    blocks: int,
    noise_shape: tuple[int, ...],
    conds: dict[str, list],
    cfg: float | None,
) -> int:
    """About what a run will hold on the model's device; 0 where that can't be said beforehand, or nothing.

    Args:
        model: ComfyUI's BaseModel.
        family: Of its diffusion model, None for one that is not known.
        blocks: Length of its stack.
        noise_shape: Shape of the latent.
        conds: Entries by name ("positive", "negative").
        cfg: At 1 only the positive conds run; None where the guider has none.
    """
    shape = family and family.hidden_shape(model.diffusion_model, noise_shape)
    hidden = () if shape is None else (torch.Size(shape), model.get_dtype_inference())
    only_positive = cfg is not None and math.isclose(cfg, 1.0)
    streams = sum(len(entries) for name, entries in conds.items() if name == "positive" or not only_positive)
    return run.planned_bytes(noise_shape, hidden, blocks, streams)


def budget(config: Config, device: torch.device, after_first: bool, held_bytes: int) -> tuple[int, int]:
    """Bytes that may be stored on the model's device and in RAM: the user's figure, else from what is free.

    Args:
        after_first: The first evaluation has shown how large activations are.
        held_bytes: What is stored already.
    """
    ram = comfy.model_management.get_free_memory(RAM) // 2
    if config.cache_budget_gb:
        return int(config.cache_budget_gb * 2**30), ram
    free, pooled = comfy.model_management.get_free_memory(device, torch_free_too=True)
    if device.type == "cpu" or not after_first:
        return free // 2, ram
    # torch's pool is as large as an evaluation needs; what is free beside it can go to the cache
    return free - pooled - comfy.model_management.extra_reserved_memory() + held_bytes, ram

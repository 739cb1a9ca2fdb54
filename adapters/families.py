"""The models that are supported, one record each: the blocks of the stack, and how hidden states pass through them.

A family is matched by the full name of its class, so that nothing is imported to look it up and a subclass, whose
blocks may do more, is refused until it has a record of its own.
"""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

Tensors = tuple[torch.Tensor, ...]
# (first block's input, this block's input, this block's keyword arguments) -> the first block's input in this block's
# layout
Join = Callable[[Tensors, Tensors, Mapping], Tensors]


class UnsupportedModel(ValueError):
    """The model has no record in the table of families."""


@dataclass(frozen=True)
class Section:
    """One block list of a model.

    Attributes:
        blocks: Attribute of the model that holds the list.
        inputs: The hidden-state parameters of a block, as (name, position), in the order in which it returns them.
        join: Needed when the hidden states have another layout here than at the first block of the stack.
    """

    blocks: str
    inputs: tuple[tuple[str, int], ...]
    join: Join | None = None

    def read(self, args: tuple, kwargs: Mapping) -> Tensors:
        """The hidden states among the arguments of a block."""
        return tuple(args[position] if position < len(args) else kwargs[name] for name, position in self.inputs)

    def unpack(self, result) -> Tensors:
        """What a block returned, as a tuple."""
        return (result,) if len(self.inputs) == 1 else tuple(result)

    def pack(self, hidden_states: Tensors):
        """The same back as the block would return it."""
        return hidden_states[0] if len(self.inputs) == 1 else hidden_states


@dataclass(frozen=True)
class Family:
    """A model class and its stack of blocks.

    Attributes:
        name: For people.
        model: Full name of the class.
        sections: Block lists in the order in which they run.
        interleaved: The lists take turns (block 0 of each, then block 1 of each) instead of following one another.
        batch_dim: Dimension of the hidden states along which conds are stacked.
    """

    name: str
    model: str
    sections: tuple[Section, ...]
    interleaved: bool = False
    batch_dim: int = 0

    def stack(self, model: torch.nn.Module) -> list[tuple[torch.nn.Module, Section]]:
        """All blocks in the order in which they run, each with its section."""
        lists = [[(block, section) for block in getattr(model, section.blocks)] for section in self.sections]
        if self.interleaved:
            return [entry for turn in zip(*lists, strict=True) for entry in turn]
        return [entry for blocks in lists for entry in blocks]


def _joined_text_video(base: Tensors, inputs: Tensors, kwargs: Mapping) -> Tensors:
    """ComfyUI's HunyuanVideo: (img, txt) to one sequence; `img_slice` says where the video tokens are."""
    img, txt = base
    video_start = kwargs["transformer_options"].get("img_slice", (0,))[0]
    return (torch.cat((txt, img) if video_start else (img, txt), 1),)


def _frames_to_tokens(base: Tensors, inputs: Tensors, kwargs: Mapping) -> Tensors:
    """Latte: (B*F, N, C) as the spatial blocks have it to (B*N, F, C) as the temporal blocks do."""
    frames = inputs[0].shape[1]
    x = base[0].unflatten(0, (-1, frames))  # (B, F, N, C)
    return (x.transpose(1, 2).flatten(0, 1),)


_X = (("x", 0),)
_HIDDEN = (("hidden_states", 0),)
_HIDDEN_TEXT = (("hidden_states", 0), ("encoder_hidden_states", 1))

COMFYUI = (
    Family("Wan 2.1 / 2.2", "comfy.ldm.wan.model.WanModel", (Section("blocks", _X),)),
    Family(
        "HunyuanVideo",
        "comfy.ldm.hunyuan_video.model.HunyuanVideo",
        (Section("double_blocks", (("img", 0), ("txt", 1))), Section("single_blocks", (("x", 0),), _joined_text_video)),
    ),
    Family("LTX-Video", "comfy.ldm.lightricks.model.LTXVModel", (Section("transformer_blocks", _X),)),
    Family("CogVideoX", "comfy.ldm.cogvideo.model.CogVideoXTransformer3DModel", (Section("blocks", _HIDDEN_TEXT),)),
)

_D = "diffusers.models.transformers."
DIFFUSERS = (
    Family("Wan 2.1 / 2.2", _D + "transformer_wan.WanTransformer3DModel", (Section("blocks", _HIDDEN),)),
    Family(
        "CogVideoX",
        _D + "cogvideox_transformer_3d.CogVideoXTransformer3DModel",
        (Section("transformer_blocks", _HIDDEN_TEXT),),
    ),
    Family(
        "Latte",
        _D + "latte_transformer_3d.LatteTransformer3DModel",
        (Section("transformer_blocks", _HIDDEN), Section("temporal_transformer_blocks", _HIDDEN, _frames_to_tokens)),
        interleaved=True,
    ),
    Family(
        "HunyuanVideo",
        _D + "transformer_hunyuan_video.HunyuanVideoTransformer3DModel",
        (Section("transformer_blocks", _HIDDEN_TEXT), Section("single_transformer_blocks", _HIDDEN_TEXT)),
    ),
    Family("LTX-Video", _D + "transformer_ltx.LTXVideoTransformer3DModel", (Section("transformer_blocks", _HIDDEN),)),
)


def family_of(model: object, table: tuple[Family, ...]) -> Family:
    """The record of a model.

    Raises:
        UnsupportedModel: the table has none.
    """
    name = f"{type(model).__module__}.{type(model).__qualname__}"
    for family in table:
        if family.model == name:
            return family
    known = ", ".join(f"{family.name} ({family.model.rsplit('.', 1)[1]})" for family in table)
    raise UnsupportedModel(
        f"Foresight does not support {type(model).__qualname__} (from {type(model).__module__}). "
        f"Supported: {known}. Remove the node from this model's path."
    )


class Swapped:
    """Context manager: during one call of the model, every block's `forward` asks `call` first.

    It replaces an instance attribute and puts back exactly what was there, another pack's attribute or nothing.

    Args:
        stack: From `Family.stack`.
        call: The engine's `Call`.
    """

    def __init__(self, stack: list[tuple[torch.nn.Module, Section]], call):
        self._stack, self._call = stack, call
        self._found: list[tuple[torch.nn.Module, object]] = []

    def __enter__(self) -> None:
        for index, (block, section) in enumerate(self._stack):
            self._found.append((block, block.__dict__.get("forward", self)))
            # nn.Module's own __setattr__ (and a compiled module's) would look for parameters first
            object.__setattr__(block, "forward", functools.partial(self._forward, index, section, block.forward))

    def __exit__(self, *_) -> None:
        for block, found in reversed(self._found):
            if found is self:
                block.__dict__.pop("forward", None)
            else:
                object.__setattr__(block, "forward", found)
        self._found.clear()

    def _forward(self, index: int, section: Section, original: Callable, /, *args, **kwargs):
        inputs = section.read(args, kwargs)
        results = []

        def compute() -> Tensors:
            results.append(original(*args, **kwargs))
            return section.unpack(results[0])

        join = section.join and functools.partial(section.join, inputs=inputs, kwargs=kwargs)
        hidden_states = self._call.block(index, inputs, compute, join)
        return results[0] if results else section.pack(hidden_states)

"""The models that are supported, one record each: the blocks of the stack, and how hidden states pass through them.

A family is matched by the full name of its class, so that nothing is imported to look it up and a subclass, whose
blocks may do more, is refused until it has a record of its own.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from ..engine import Run
from ..engine.compiler import outside_graphs
from ..engine.policy import BlockCall
from ..engine.tensors import Tensors

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
        passed: Names of further keyword arguments that a block returns, unchanged, after its hidden states.
        paired: The one entry of `inputs` is a tuple of hidden states.
        method: The method of a block that computes its hidden states.
    """

    blocks: str
    inputs: tuple[tuple[str, int], ...]
    join: Join | None = None
    passed: tuple[str, ...] = ()
    paired: bool = False
    method: str = "forward"

    @outside_graphs()
    def read(self, args: tuple, kwargs: Mapping) -> Tensors:
        """The hidden states among the arguments of a block, without those that are None (a video without audio)."""
        return tuple(x for x in self._slots(args, kwargs) if x is not None)

    def _slots(self, args: tuple, kwargs: Mapping) -> tuple:
        found = tuple(args[position] if position < len(args) else kwargs[name] for name, position in self.inputs)
        return tuple(found[0]) if self.paired else found

    @property
    def _single(self) -> bool:
        return len(self.inputs) == 1 and not self.paired

    @outside_graphs()
    def unpack(self, result) -> Tensors:
        """The hidden states among what a block returned."""
        if self._single:
            return (result,)
        return tuple(x for x in result[: len(result) - len(self.passed)] if x is not None)

    @outside_graphs()
    def pack(self, hidden_states: Tensors, args: tuple, kwargs: Mapping):
        """What a block with these arguments would return with these hidden states."""
        if self._single:
            return hidden_states[0]
        rest = iter(hidden_states)
        slots = (None if x is None else next(rest) for x in self._slots(args, kwargs))
        return (*slots, *(kwargs[name] for name in self.passed))


@dataclass(frozen=True)
class Family:
    """A model class and its stack of blocks.

    Attributes:
        name: For people.
        model: Full name of the class.
        sections: Block lists in the order in which they run.
        interleaved: The lists take turns (block 0 of each, then block 1 of each) instead of following one another.
        batch_dim: Dimension of the hidden states along which conds are stacked; None where their tokens are mixed, so
            that all conds of a call are one stream.
        wrapped: Whether the model's forward calls ComfyUI's DIFFUSION_MODEL wrappers; else its caller is wrapped.
        plain_with: Transformer option (diffusers: argument) with which blocks write state of their own, so that none
            may be left out.
        prefetches: ComfyUI fetches the next block's weights ahead, also those of a block that is left out.
        leaves_last: The last block always runs and is no part of the stack.
        timestep: Argument of a diffusers model that says the noise level.
        size: Channels of a token and size of a patch in frames, rows and columns, of a ComfyUI model.
    """

    name: str
    model: str
    sections: tuple[Section, ...]
    interleaved: bool = False
    batch_dim: int | None = 0
    wrapped: bool = True
    plain_with: str | None = None
    prefetches: bool = False
    leaves_last: bool = False
    timestep: str = "timestep"
    size: Callable[[torch.nn.Module], tuple[int, int, int, int]] | None = None

    def hidden_shape(self, model: torch.nn.Module, latent: tuple[int, ...]) -> tuple[int, int, int] | None:
        """(B, L, C) of the video's hidden state for a latent of shape (B, C, T, h, w), for planning memory.

        Text and reference tokens are not counted. None where a latent's shape does not tell.
        """
        if self.size is None or len(latent) != 5:
            return None
        width, *patch = self.size(model)
        return latent[0], math.prod(math.ceil(n / p) for n, p in zip(latent[2:], patch, strict=True)), width

    def stack(self, model: torch.nn.Module) -> list[tuple[torch.nn.Module, Section]]:
        """All blocks in the order in which they run, each with its section."""
        lists = []
        for section in self.sections:
            blocks = getattr(model, section.blocks)
            blocks = blocks.values() if isinstance(blocks, torch.nn.ModuleDict) else blocks
            lists.append([(block, section) for block in blocks])
        if self.interleaved:
            lists = list(zip(*lists, strict=True))
        stack = [entry for blocks in lists for entry in blocks]
        return stack[:-1] if self.leaves_last else stack


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


def _encoder_or_decoder(base: Tensors, inputs: Tensors, kwargs: Mapping) -> Tensors:
    """Motif-Video: its last blocks start over from the video of the first block, with the video as context."""
    return base if inputs[1].shape == base[1].shape else (base[0], base[0])


_X = (("x", 0),)
_HIDDEN = (("hidden_states", 0),)
_HIDDEN_TEXT = (("hidden_states", 0), ("encoder_hidden_states", 1))


def _cosmos_size(model: torch.nn.Module) -> tuple[int, int, int, int]:
    return model.model_channels, model.patch_temporal, model.patch_spatial, model.patch_spatial


def _wan(name: str, model: str, method: str = "forward", **more) -> Family:
    section = Section("blocks", _X, method=method)
    return Family(name, f"comfy.ldm.wan.{model}", (section,), size=lambda m: (m.dim, *m.patch_size), **more)


_L = "comfy.ldm."
_OURS = __package__.removesuffix("foresight.hosts") + "models."


def _spatial_temporal(name: str, model: str, spatial: str, temporal: str) -> Family:
    """The pack's own models: a spatial and a temporal block take turns, on one layout of tokens."""
    sections = (Section(spatial, _X), Section(temporal, _X))
    size = lambda m: (m.channels, 1, m.patch_size, m.patch_size)  # noqa: E731
    return Family(name, _OURS + model, sections, interleaved=True, size=size)


COMFYUI = (
    _wan("Wan 2.1 / 2.2 (T2V, I2V, 5B, FLF, Fun)", "model.WanModel"),
    # between blocks VACE, S2V, Animate and WanDancer add what side blocks give; that code runs in any case
    _wan("Wan VACE", "model.VaceWanModel"),
    _wan("Wan Fun Camera", "model.CameraWanModel"),
    _wan("Wan 2.2 S2V", "model.WanModel_S2V"),
    _wan("HuMo", "model.HumoWanModel"),
    _wan("SCAIL", "model.SCAILWanModel"),
    _wan("SCAIL-2", "model.SCAIL2WanModel"),
    _wan("Wan 2.2 Animate", "model_animate.AnimateWanModel"),
    # `forward_pose` has to go on: its state enters the next block
    _wan("Wan Animate-2", "model_animate2.WanAnimate2Model", method="forward_gen"),
    _wan("WanDancer", "model_wandancer.WanDancerModel"),
    _wan("Wan Causal-AR", "ar_model.CausalWanModel", plain_with="ar_state"),
    Family(
        "HunyuanVideo 1.0 / 1.5",
        _L + "hunyuan_video.model.HunyuanVideo",
        (Section("double_blocks", (("img", 0), ("txt", 1))), Section("single_blocks", (("x", 0),), _joined_text_video)),
        size=lambda m: (m.hidden_size, *m.patch_size),
    ),
    Family(
        "LTX-Video",
        _L + "lightricks.model.LTXVModel",
        (Section("transformer_blocks", _X),),
        size=lambda m: (m.inner_dim, 1, 1, 1),
    ),
    Family(
        "LTX-2",
        _L + "lightricks.av_model.LTXAVModel",
        (Section("transformer_blocks", _X, paired=True),),
        prefetches=True,
    ),
    Family(
        "Mochi",
        _L + "genmo.joint_model.asymm_models_joint.AsymmDiTJoint",
        (Section("blocks", (("x", 0), ("y", 2))),),
        wrapped=False,
        size=lambda m: (m.hidden_size_x, 1, m.patch_size, m.patch_size),
    ),
    Family("Cosmos 1", _L + "cosmos.model.GeneralDIT", (Section("blocks", _X),), batch_dim=3, size=_cosmos_size),
    Family(
        "Cosmos Predict2",
        _L + "cosmos.predict2.MiniTrainDIT",
        (Section("blocks", (("x_B_T_H_W_D", 0),)),),
        size=_cosmos_size,
    ),
    Family(
        "CogVideoX",
        _L + "cogvideo.model.CogVideoXTransformer3DModel",
        (Section("blocks", _HIDDEN_TEXT),),
        size=lambda m: (m.dim, m.patch_size_t or 1, m.patch_size, m.patch_size),
    ),
    Family(
        "Kandinsky 5",
        _L + "kandinsky5.model.Kandinsky5",
        (Section("visual_transformer_blocks", (("visual_embed", 0),)),),
        size=lambda m: (m.model_dim, *m.patch_size),
    ),
    Family(
        "SeedVR2",
        _L + "seedvr.model.NaDiT",
        (Section("blocks", (("vid", 0), ("txt", 1)), passed=("vid_shape", "txt_shape")),),
        batch_dim=None,
        wrapped=False,
        leaves_last=True,  # what the output layer is modulated with is worked out in the blocks
    ),
    Family(
        "MiniMax H3", _L + "minimax.model.MiniMaxH3Model", (Section("blocks", _X),), batch_dim=None, prefetches=True
    ),
    _spatial_temporal("Latte", "latte.LatteDiT", "transformer_blocks", "temporal_transformer_blocks"),
    _spatial_temporal("Open-Sora 1.2", "open_sora.STDiT3", "spatial_blocks", "temporal_blocks"),
)

_D = "diffusers.models.transformers."
_BLOCKS = (Section("blocks", _HIDDEN),)
_TRANSFORMER_BLOCKS = (Section("transformer_blocks", _HIDDEN),)
_TWO_STREAMS = (Section("transformer_blocks", _HIDDEN_TEXT),)
_DOUBLE_SINGLE = (*_TWO_STREAMS, Section("single_transformer_blocks", _HIDDEN_TEXT))
DIFFUSERS = (
    Family("Wan 2.1 / 2.2", _D + "transformer_wan.WanTransformer3DModel", _BLOCKS),
    Family("Wan VACE", _D + "transformer_wan_vace.WanVACETransformer3DModel", _BLOCKS),
    Family("Wan 2.2 Animate", _D + "transformer_wan_animate.WanAnimateTransformer3DModel", _BLOCKS),
    Family("SkyReels V2", _D + "transformer_skyreels_v2.SkyReelsV2Transformer3DModel", _BLOCKS),
    Family("ChronoEdit", _D + "transformer_chronoedit.ChronoEditTransformer3DModel", _BLOCKS),
    Family("Helios", _D + "transformer_helios.HeliosTransformer3DModel", _BLOCKS),
    Family("CogVideoX", _D + "cogvideox_transformer_3d.CogVideoXTransformer3DModel", _TWO_STREAMS),
    Family(
        "Latte",
        _D + "latte_transformer_3d.LatteTransformer3DModel",
        (*_TRANSFORMER_BLOCKS, Section("temporal_transformer_blocks", _HIDDEN, _frames_to_tokens)),
        interleaved=True,
    ),
    Family("Allegro", _D + "transformer_allegro.AllegroTransformer3DModel", _TRANSFORMER_BLOCKS),
    Family("Mochi", _D + "transformer_mochi.MochiTransformer3DModel", _TWO_STREAMS),
    Family("HunyuanVideo", _D + "transformer_hunyuan_video.HunyuanVideoTransformer3DModel", _DOUBLE_SINGLE),
    Family("HunyuanVideo 1.5", _D + "transformer_hunyuan_video15.HunyuanVideo15Transformer3DModel", _TWO_STREAMS),
    Family(
        "HunyuanVideo FramePack",
        _D + "transformer_hunyuan_video_framepack.HunyuanVideoFramepackTransformer3DModel",
        _DOUBLE_SINGLE,
    ),
    Family(
        "Motif-Video",
        _D + "transformer_motif_video.MotifVideoTransformer3DModel",
        (*_TWO_STREAMS, Section("single_transformer_blocks", _HIDDEN_TEXT, _encoder_or_decoder)),
    ),
    Family("LTX-Video", _D + "transformer_ltx.LTXVideoTransformer3DModel", _TRANSFORMER_BLOCKS),
    Family(
        "LTX-2",
        _D + "transformer_ltx2.LTX2VideoTransformer3DModel",
        (Section("transformer_blocks", (("hidden_states", 0), ("audio_hidden_states", 1))),),
    ),
    Family(
        "SANA-WM refiner",
        _D + "transformer_sana_wm_refiner.SanaWMLTX2RefinerTransformer3DModel",
        _TRANSFORMER_BLOCKS,
        plain_with="kv_cache",
    ),
    Family(
        "Kandinsky 5",
        _D + "transformer_kandinsky.Kandinsky5Transformer3DModel",
        (Section("visual_transformer_blocks", (("visual_embed", 0),)),),
    ),
    Family(
        "Kandinsky 6",
        _D + "transformer_kandinsky6.Kandinsky6Transformer3DModel",
        (Section("visual_transformer_blocks", (("visual_embed", 0), ("audio_embed", 1))),),
    ),
    Family(
        "Cosmos 3",
        _D + "transformer_cosmos3.Cosmos3OmniTransformer",
        (Section("layers", (("und_seq", 0), ("gen_seq", 1))),),
        batch_dim=None,
        timestep="vision_timesteps",
    ),
    Family(
        "MiniMax H3", _D + "transformer_minimax_h3.MiniMaxH3Transformer3DModel", _TRANSFORMER_BLOCKS, batch_dim=None
    ),
)


def family_of(model: object, table: tuple[Family, ...]) -> Family:
    """The record of a model.

    Raises:
        UnsupportedModel: the table has none.
    """
    cls = _own_class(type(model))
    name = f"{cls.__module__}.{cls.__qualname__}"
    for family in table:
        if family.model == name:
            return family
    known = ", ".join(f"{family.name} ({family.model.rsplit('.', 1)[1]})" for family in table)
    raise UnsupportedModel(
        f"Foresight does not support {type(model).__qualname__} (from {type(model).__module__}). "
        f"Supported: {known}. Remove the node from this model's path."
    )


def _own_class(cls: type) -> type:
    """The class that a model was made of, where torch's FSDP has put a class of its own before it."""
    bases = cls.__bases__
    fsdp = [base for base in bases if base.__name__ == "FSDPModule" and base.__module__.startswith("torch.distributed")]
    return next((base for base in bases if base not in fsdp), cls) if fsdp else cls


class Swapped:
    """Context manager: during one call of the model, every block's `forward` (or the like) asks `call` first.

    It replaces an instance attribute and puts back exactly what was there, another pack's attribute or nothing.

    Args:
        stack: From `Family.stack`.
        call: The engine's `BlockCall`.
    """

    def __init__(self, stack: list[tuple[torch.nn.Module, Section]], call: BlockCall):
        self._stack, self._call = stack, call
        self._found: list[tuple[torch.nn.Module, str, object]] = []

    @outside_graphs()
    def __enter__(self) -> None:
        for index, (block, section) in enumerate(self._stack):
            name = section.method
            self._found.append((block, name, block.__dict__.get(name, self)))
            # nn.Module's own __setattr__ (and a compiled module's) would look for parameters first
            object.__setattr__(block, name, functools.partial(self._forward, index, section, getattr(block, name)))

    @outside_graphs()
    def __exit__(self, *_) -> None:
        for block, name, found in reversed(self._found):
            if found is self:
                block.__dict__.pop(name, None)
            else:
                object.__setattr__(block, name, found)
        self._found.clear()

    @outside_graphs(recursive=False)
    def _forward(self, index: int, section: Section, original: Callable, /, *args, **kwargs):
        inputs, computed = section.read(args, kwargs), _Computed(section, original, args, kwargs)
        join = section.join and functools.partial(section.join, inputs=inputs, kwargs=kwargs)
        hidden_states = self._call.block(index, inputs, computed.compute, join)
        return computed.results[0] if computed.results else section.pack(hidden_states, args, kwargs)


class _Computed:
    """A block with its arguments, which is computed if and when the engine asks for it."""

    def __init__(self, section: Section, original: Callable, args: tuple, kwargs: dict):
        self._section, self._original, self._args, self._kwargs = section, original, args, kwargs
        self.results: list = []  # what the block itself returned

    @outside_graphs(recursive=False)
    def compute(self) -> Tensors:
        self.results.append(self._original(*self._args, **self._kwargs))
        return self._section.unpack(self.results[0])


@outside_graphs(recursive=False)
def run_blocks(
    run: Run, stack: list[tuple[torch.nn.Module, Section]], keys: Sequence, forward: Callable[[], object], batch_dim=0
):
    """One call of the model, `forward`, whose blocks ask the run first; they stay untouched where it wants nothing.

    Called as `blocks.run_blocks`, so that a compiler can be kept out. Arguments as in `Run.begin_call`.
    """
    call = run.begin_call(keys, len(stack), batch_dim)
    if call is None:
        return forward()
    with Swapped(stack, call):
        result = forward()
    if run.end_call(call):
        return result
    return run_blocks(run, stack, keys, forward, batch_dim)  # once more, plainly: the run is inactive now

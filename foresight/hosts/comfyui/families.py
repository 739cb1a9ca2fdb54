"""The models of ComfyUI whose blocks are known, one record each."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from ...engine.tensors import Tensors
from ..blocks import Family, Section


@dataclass(frozen=True)
class ComfyFamily(Family):
    """A model class of ComfyUI.

    Attributes:
        wrapped: Whether the model's forward calls ComfyUI's DIFFUSION_MODEL wrappers; else its caller is wrapped.
        prefetches: ComfyUI fetches the next block's weights ahead, also those of a block that is left out.
        size: Channels of a token and size of a patch in frames, rows and columns.
    """

    wrapped: bool = True
    prefetches: bool = False
    size: Callable[[torch.nn.Module], tuple[int, int, int, int]] | None = None

    def hidden_shape(self, model: torch.nn.Module, latent: tuple[int, ...]) -> tuple[int, int, int] | None:
        """(B, L, C) of the video's hidden state for a latent of shape (B, C, T, h, w), for planning memory.

        Text and reference tokens are not counted. None where a latent's shape does not tell.
        """
        if self.size is None or len(latent) != 5:
            return None
        width, *patch = self.size(model)
        return latent[0], math.prod(math.ceil(n / p) for n, p in zip(latent[2:], patch, strict=True)), width


def _joined_text_video(base: Tensors, inputs: Tensors, kwargs: Mapping) -> Tensors:
    """ComfyUI's HunyuanVideo: (img, txt) to one sequence; `img_slice` says where the video tokens are."""
    img, txt = base
    video_start = kwargs["transformer_options"].get("img_slice", (0,))[0]
    return (torch.cat((txt, img) if video_start else (img, txt), 1),)


_X = (("x", 0),)
_HIDDEN_TEXT = (("hidden_states", 0), ("encoder_hidden_states", 1))


def _cosmos_size(model: torch.nn.Module) -> tuple[int, int, int, int]:
    return model.model_channels, model.patch_temporal, model.patch_spatial, model.patch_spatial


def _wan(name: str, model: str, method: str = "forward", **more) -> ComfyFamily:
    section = Section("blocks", _X, method=method)
    return ComfyFamily(name, f"comfy.ldm.wan.{model}", (section,), size=lambda m: (m.dim, *m.patch_size), **more)


_L = "comfy.ldm."
_OURS = __package__.removesuffix("foresight.hosts.comfyui") + "models."


def _spatial_temporal(name: str, model: str, spatial: str, temporal: str) -> ComfyFamily:
    """The pack's own models: a spatial and a temporal block take turns, on one layout of tokens."""
    sections = (Section(spatial, _X), Section(temporal, _X))
    size = lambda m: (m.channels, 1, m.patch_size, m.patch_size)  # noqa: E731
    return ComfyFamily(name, _OURS + model, sections, interleaved=True, size=size)


FAMILIES = (
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
    ComfyFamily(
        "HunyuanVideo 1.0 / 1.5",
        _L + "hunyuan_video.model.HunyuanVideo",
        (Section("double_blocks", (("img", 0), ("txt", 1))), Section("single_blocks", (("x", 0),), _joined_text_video)),
        size=lambda m: (m.hidden_size, *m.patch_size),
    ),
    ComfyFamily(
        "LTX-Video",
        _L + "lightricks.model.LTXVModel",
        (Section("transformer_blocks", _X, in_place=True),),
        size=lambda m: (m.inner_dim, 1, 1, 1),
    ),
    ComfyFamily(
        "LTX-2",
        _L + "lightricks.av_model.LTXAVModel",
        (Section("transformer_blocks", _X, paired=True, in_place=True),),
        prefetches=True,
    ),
    ComfyFamily(
        "Mochi",
        _L + "genmo.joint_model.asymm_models_joint.AsymmDiTJoint",
        (Section("blocks", (("x", 0), ("y", 2))),),
        wrapped=False,
        size=lambda m: (m.hidden_size_x, 1, m.patch_size, m.patch_size),
    ),
    ComfyFamily("Cosmos 1", _L + "cosmos.model.GeneralDIT", (Section("blocks", _X),), batch_dim=3, size=_cosmos_size),
    ComfyFamily(
        "Cosmos Predict2",
        _L + "cosmos.predict2.MiniTrainDIT",
        (Section("blocks", (("x_B_T_H_W_D", 0),)),),
        size=_cosmos_size,
    ),
    ComfyFamily(
        "CogVideoX",
        _L + "cogvideo.model.CogVideoXTransformer3DModel",
        (Section("blocks", _HIDDEN_TEXT),),
        size=lambda m: (m.dim, m.patch_size_t or 1, m.patch_size, m.patch_size),
    ),
    ComfyFamily(
        "Kandinsky 5",
        _L + "kandinsky5.model.Kandinsky5",
        (Section("visual_transformer_blocks", (("visual_embed", 0),)),),
        size=lambda m: (m.model_dim, *m.patch_size),
    ),
    ComfyFamily(
        "SeedVR2",
        _L + "seedvr.model.NaDiT",
        (Section("blocks", (("vid", 0), ("txt", 1)), passed=("vid_shape", "txt_shape")),),
        batch_dim=None,
        wrapped=False,
        leaves_last=True,  # what the output layer is modulated with is worked out in the blocks
    ),
    ComfyFamily(
        "MiniMax H3", _L + "minimax.model.MiniMaxH3Model", (Section("blocks", _X),), batch_dim=None, prefetches=True
    ),
    _spatial_temporal("Latte", "latte.LatteDiT", "transformer_blocks", "temporal_transformer_blocks"),
    _spatial_temporal("Open-Sora 1.2", "open_sora.STDiT3", "spatial_blocks", "temporal_blocks"),
)


def keeps_state(model_options: Mapping) -> bool:
    """Whether each evaluation leaves something behind in the model that the next one needs."""
    options = model_options.get("transformer_options", {})
    return any(family.plain_with in options for family in FAMILIES if family.plain_with)

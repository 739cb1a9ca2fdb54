"""The models of diffusers whose blocks are known, one record each, and what is taken of all others."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from ...engine import Config
from ...engine.tensors import Tensors
from ..blocks import Family, Section, UnsupportedModel, class_name, family_of


@dataclass(frozen=True)
class DiffusersFamily(Family):
    """A model class of diffusers.

    Attributes:
        timestep: Argument of the model that says the noise level.
        latents: Arguments that are what the sampler works on, in the order of the results that are for them.
        parts: What people call these.
        flow: It is a flow model whose timestep is the share of noise, times 1000 as a rule, and gives a velocity.
        rises: Where its timestep is the share of what is not noise, so that its velocity goes the other way: what it is
            when no noise is left; else 0.
    """

    timestep: str = "timestep"
    latents: tuple[str, ...] = ("hidden_states", "audio_hidden_states")
    parts: tuple[str, ...] = ("video", "audio")
    flow: bool = True
    rises: float = 0.0

    @property
    def known(self) -> bool:
        """Whether more is known of it than what its forward's arguments say."""
        return bool(self.sections) or self.flow


def _frames_to_tokens(base: Tensors, inputs: Tensors, kwargs: Mapping) -> Tensors:
    """Latte: (B*F, N, C) as the spatial blocks have it to (B*N, F, C) as the temporal blocks do."""
    frames = inputs[0].shape[1]
    x = base[0].unflatten(0, (-1, frames))  # (B, F, N, C)
    return (x.transpose(1, 2).flatten(0, 1),)


def _encoder_or_decoder(base: Tensors, inputs: Tensors, kwargs: Mapping) -> Tensors:
    """Motif-Video: its last blocks start over from the video of the first block, with the video as context."""
    return base if inputs[1].shape == base[1].shape else (base[0], base[0])


_HIDDEN = (("hidden_states", 0),)
_HIDDEN_TEXT = (("hidden_states", 0), ("encoder_hidden_states", 1))

_D = "diffusers.models.transformers."
_XFUSER = "xfuser.model_executor.models.transformers."
_BLOCKS = (Section("blocks", _HIDDEN),)
_TRANSFORMER_BLOCKS = (Section("transformer_blocks", _HIDDEN),)
_TWO_STREAMS = (Section("transformer_blocks", _HIDDEN_TEXT),)
_DOUBLE_SINGLE = (*_TWO_STREAMS, Section("single_transformer_blocks", _HIDDEN_TEXT))
FAMILIES = (
    DiffusersFamily(
        "Wan 2.1 / 2.2",
        _D + "transformer_wan.WanTransformer3DModel",
        _BLOCKS,
        also=(_XFUSER + "transformer_wan.xFuserWanTransformer3DWrapper",),
    ),
    DiffusersFamily(
        "Wan VACE",
        _D + "transformer_wan_vace.WanVACETransformer3DModel",
        _BLOCKS,
        also=(_XFUSER + "transformer_wan_vace.xFuserWanVACETransformer3DWrapper",),
    ),
    DiffusersFamily("Wan 2.2 Animate", _D + "transformer_wan_animate.WanAnimateTransformer3DModel", _BLOCKS),
    DiffusersFamily("SkyReels V2", _D + "transformer_skyreels_v2.SkyReelsV2Transformer3DModel", _BLOCKS),
    DiffusersFamily("ChronoEdit", _D + "transformer_chronoedit.ChronoEditTransformer3DModel", _BLOCKS),
    DiffusersFamily("Helios", _D + "transformer_helios.HeliosTransformer3DModel", _BLOCKS),
    DiffusersFamily("CogVideoX", _D + "cogvideox_transformer_3d.CogVideoXTransformer3DModel", _TWO_STREAMS, flow=False),
    DiffusersFamily(
        "Latte",
        _D + "latte_transformer_3d.LatteTransformer3DModel",
        (*_TRANSFORMER_BLOCKS, Section("temporal_transformer_blocks", _HIDDEN, _frames_to_tokens)),
        interleaved=True,
        flow=False,
    ),
    DiffusersFamily("Allegro", _D + "transformer_allegro.AllegroTransformer3DModel", _TRANSFORMER_BLOCKS, flow=False),
    DiffusersFamily("Mochi", _D + "transformer_mochi.MochiTransformer3DModel", _TWO_STREAMS, rises=1000.0),
    DiffusersFamily(
        "HunyuanVideo",
        _D + "transformer_hunyuan_video.HunyuanVideoTransformer3DModel",
        _DOUBLE_SINGLE,
        also=(_XFUSER + "transformer_hunyuan_video.xFuserHunyuanVideoTransformer3DWrapper",),
    ),
    DiffusersFamily(
        "HunyuanVideo 1.5",
        _D + "transformer_hunyuan_video15.HunyuanVideo15Transformer3DModel",
        _TWO_STREAMS,
        also=(_XFUSER + "transformer_hunyuan_video15.xFuserHunyuanVideo15Transformer3DWrapper",),
    ),
    DiffusersFamily(
        "HunyuanVideo FramePack",
        _D + "transformer_hunyuan_video_framepack.HunyuanVideoFramepackTransformer3DModel",
        _DOUBLE_SINGLE,
    ),
    DiffusersFamily(
        "Motif-Video",
        _D + "transformer_motif_video.MotifVideoTransformer3DModel",
        (*_TWO_STREAMS, Section("single_transformer_blocks", _HIDDEN_TEXT, _encoder_or_decoder)),
    ),
    DiffusersFamily("LTX-Video", _D + "transformer_ltx.LTXVideoTransformer3DModel", _TRANSFORMER_BLOCKS),
    DiffusersFamily(
        "LTX-2",
        _D + "transformer_ltx2.LTX2VideoTransformer3DModel",
        (Section("transformer_blocks", (("hidden_states", 0), ("audio_hidden_states", 1))),),
        also=(_XFUSER + "transformer_ltx2.xFuserLTX2VideoTransformer3DWrapper",),
    ),
    DiffusersFamily(
        "SANA-WM refiner",
        _D + "transformer_sana_wm_refiner.SanaWMLTX2RefinerTransformer3DModel",
        _TRANSFORMER_BLOCKS,
        plain_with="kv_cache",
    ),
    DiffusersFamily(
        "Kandinsky 5",
        _D + "transformer_kandinsky.Kandinsky5Transformer3DModel",
        (Section("visual_transformer_blocks", (("visual_embed", 0),)),),
    ),
    DiffusersFamily(
        "Kandinsky 6",
        _D + "transformer_kandinsky6.Kandinsky6Transformer3DModel",
        (Section("visual_transformer_blocks", (("visual_embed", 0), ("audio_embed", 1))),),
    ),
    DiffusersFamily(
        "Cosmos 3",
        _D + "transformer_cosmos3.Cosmos3OmniTransformer",
        (Section("layers", (("und_seq", 0), ("gen_seq", 1))),),
        batch_dim=None,
        timestep="vision_timesteps",
        latents=("vision_tokens", "sound_tokens", "action_tokens"),
        parts=("vision", "sound", "action"),
    ),
    DiffusersFamily(
        "MiniMax H3",
        _D + "transformer_minimax_h3.MiniMaxH3Transformer3DModel",
        _TRANSFORMER_BLOCKS,
        batch_dim=None,
        rises=1.0,
        also=(_XFUSER + "transformer_minimax_h3.xFuserMiniMaxH3Transformer3DWrapper",),
    ),
)

# flow models of images, with their `rises`: a method that leaves blocks alone needs to know no more
FLOW = {
    _D + "transformer_flux.FluxTransformer2DModel": 0.0,
    _D + "transformer_qwenimage.QwenImageTransformer2DModel": 0.0,
    _D + "transformer_sd3.SD3Transformer2DModel": 0.0,
    _D + "transformer_z_image.ZImageTransformer2DModel": 1.0,
    _D + "transformer_lumina2.Lumina2Transformer2DModel": 1.0,
}
_LATENTS = ("hidden_states", "sample", "x")  # what models of diffusers call the latent that comes in
_TIMES = ("timestep", "timesteps", "t", "timestep_ratio")  # and the noise level


def family_for(model: torch.nn.Module, config: Config) -> DiffusersFamily:
    """The record of a model, or for a method that leaves blocks alone what its forward's arguments say.

    Raises:
        UnsupportedModel: the method needs the blocks and there is no record; or the forward has no latent or timestep.
    """
    try:
        return family_of(model, FAMILIES, advice="Use ForecastConfig, which takes every model.")
    except UnsupportedModel:
        if config.by_block:
            raise
    arguments = list(inspect.signature(type(model).forward).parameters)[1:]
    latents, times = ([name for name in names if name in arguments] for names in (_LATENTS, _TIMES))
    if not latents or not times:
        raise UnsupportedModel(
            f"Foresight does not know what to forecast of {type(model).__name__}: its forward needs one of "
            f"{', '.join(_LATENTS)} and one of {', '.join(_TIMES)}, it has {', '.join(arguments)}. "
            "Leave Foresight off this model."
        )
    name, arguments = class_name(model), {"timestep": times[0], "latents": (latents[0],)}
    flow = {"flow": name in FLOW, "rises": FLOW.get(name, 0.0)}
    return DiffusersFamily(type(model).__name__, name, (), **arguments, **flow)

"""Decoders of Latte and Open-Sora as VAE objects from which core's VAE Decode gets all frames of a video."""

import logging
from collections.abc import Callable

import comfy.model_patcher
import comfy.ops
import comfy.sd
import torch
import torch.nn.functional as F
from torch import nn

from .open_sora_config import FRAMES_PER_CHUNK, LATENTS_PER_CHUNK

log = logging.getLogger(__name__)

ops = comfy.ops.disable_weight_init

IMAGE_SCALE = 0.18215  # of Stable Diffusion 1's latent, which both image decoders share
_FRAMES_AT_ONCE = 4
_TEMPORAL_FRAMES_AT_ONCE = 14  # as the temporal decoder was trained

State = dict[str, torch.Tensor]


class VideoVAE(comfy.sd.VAE):
    """Core's VAE around an image decoder, for latents (B, 4, T, h, w).

    Args:
        state_dict: The image VAE, in any layout that core knows.
        wrap: Makes the video model out of the image model that core built.
        frames_at_once: Frames that the image decoder sees at a time, for planning memory.
        pixel_frames: Frames of a video of so many latent frames.
        split_time: Whether tiled decoding may cut a video in time.

    Raises:
        RuntimeError: core finds no image VAE in `state_dict`.
    """

    def __init__(
        self,
        state_dict: State,
        wrap: Callable[[nn.Module], nn.Module],
        frames_at_once: int,
        pixel_frames: Callable[[int], int] = lambda t: t,
        split_time: bool = True,
    ):
        super().__init__(sd=state_dict)
        self.throw_exception_if_invalid()
        self._split_time = split_time
        self.latent_dim = 3
        self.upscale_ratio, self.downscale_ratio = (pixel_frames, 8, 8), (lambda t: t, 8, 8)
        # core's figure for the image decoder, and three channels of the whole video
        self.memory_used_decode = lambda shape, dtype: (
            (2178 * min(frames_at_once, shape[2]) + 3 * pixel_frames(shape[2]))
            * (64 * shape[3] * shape[4] * dtype.itemsize)
        )
        self.memory_used_encode = lambda shape, dtype: 1767 * frames_at_once * shape[3] * shape[4] * dtype.itemsize
        self.first_stage_model = wrap(self.first_stage_model).eval().to(self.vae_dtype)
        self.patcher = comfy.model_patcher.CoreModelPatcher(
            self.first_stage_model, load_device=self.device, offload_device=self.patcher.offload_device
        )
        self.size = None  # of the image model; core measures again

    def decode_tiled_3d(self, samples, tile_t=999, tile_x=32, tile_y=32, overlap=(1, 8, 8)):
        """As core's, but never across the border of a chunk in time."""
        tile_t = tile_t if self._split_time else samples.shape[2]
        return super().decode_tiled_3d(samples, tile_t, tile_x, tile_y, overlap)


class FrameByFrame(nn.Module):
    """An image VAE over the frames of a video, a few at a time."""

    def __init__(self, image: nn.Module, frames_at_once: int, encodes: bool):
        super().__init__()
        self.image, self._frames_at_once, self._encodes = image, frames_at_once, encodes

    def _map(self, function: Callable, videos: torch.Tensor) -> torch.Tensor:
        """`function` over the frames of (B, C, T, h, w)."""
        outputs = []
        for frames in videos.transpose(1, 2):
            chunks = [function(chunk) for chunk in frames.split(self._frames_at_once)]
            outputs.append(torch.cat(chunks).transpose(0, 1))
        return torch.stack(outputs)

    def decode(self, latent: torch.Tensor) -> torch.Tensor:
        """(B, 4, T, h, w) to (B, 3, T, 8h, 8w)."""
        return self._map(self.image.decode, latent)

    def encode(self, video: torch.Tensor) -> torch.Tensor:
        """(B, 3, T, H, W) to (B, 4, T, H/8, W/8).

        Raises:
            RuntimeError: the file holds the temporal decoder, whose encoder core cannot use.
        """
        if not self._encodes:
            raise RuntimeError("Latte's temporal decoder cannot encode: use a Stable Diffusion 1 VAE for that")
        return self._map(self.image.encode, video)


def latte_vae(state_dict: State) -> VideoVAE:
    """Latte's decoder: any Stable Diffusion 1 VAE, frame by frame, or Stable Video Diffusion's temporal decoder.

    Raises:
        RuntimeError: it is neither.
    """
    state_dict = _image_keys(state_dict)
    temporal = any(key.endswith("mix_factor") for key in state_dict)
    frames = _TEMPORAL_FRAMES_AT_ONCE if temporal else _FRAMES_AT_ONCE
    return VideoVAE(
        state_dict, lambda image: FrameByFrame(image, frames, not temporal), frames, split_time=not temporal
    )


_TEMPORAL_KEYS = (  # diffusers' name of a part, core's name
    (".spatial_res_block.", "."),
    (".temporal_res_block.norm1.", ".time_stack.in_layers.0."),
    (".temporal_res_block.conv1.", ".time_stack.in_layers.2."),
    (".temporal_res_block.norm2.", ".time_stack.out_layers.0."),
    (".temporal_res_block.conv2.", ".time_stack.out_layers.3."),
    (".time_mixer.mix_factor", ".mix_factor"),
    ("decoder.time_conv_out.", "decoder.conv_out.time_mix_conv."),
)


def _image_keys(state_dict: State) -> State:
    """Without the prefixes of checkpoints, and diffusers' temporal decoder in words that core's converter knows."""
    keys = {}
    for key in state_dict:
        name = key.removeprefix("first_stage_model.").removeprefix("vae.")
        for theirs, ours in _TEMPORAL_KEYS:
            name = name.replace(theirs, ours)
        keys[name] = state_dict[key]
    return keys


class _CausalConv3d(nn.Module):
    """Convolution that sees no later frame; in front of the first one there are zeros."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, bias: bool = True):
        super().__init__()
        self._padding = (kernel // 2,) * 4 + (kernel - 1, 0)
        self.conv = ops.Conv3d(in_channels, out_channels, kernel, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(F.pad(x, self._padding))


class _ResBlock(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, groups: int):
        super().__init__()
        self.norm1 = ops.GroupNorm(groups, in_channels)
        self.conv1 = _CausalConv3d(in_channels, out_channels, 3, bias=False)
        self.norm2 = ops.GroupNorm(groups, out_channels)
        self.conv2 = _CausalConv3d(out_channels, out_channels, 3, bias=False)
        self.conv3 = _CausalConv3d(in_channels, out_channels, 1, bias=False) if in_channels != out_channels else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv1(F.silu(self.norm1(x)))
        y = self.conv2(F.silu(self.norm2(y)))
        return y + (x if self.conv3 is None else self.conv3(x))


class _Decoder(nn.Module):
    def __init__(self, channels: int, latent: int, filters: int, depth: int, multipliers, upsample, groups: int):
        super().__init__()
        widths = [filters * multiplier for multiplier in multipliers]
        self._upsample = upsample
        self.conv1 = _CausalConv3d(latent, widths[-1], 3)
        self.res_blocks = nn.Sequential(*(_ResBlock(widths[-1], widths[-1], groups) for _ in range(depth)))
        stages, convs, before = [], [], widths[-1]
        for level in reversed(range(len(widths))):
            width = widths[level]
            blocks = (_ResBlock(before if i == 0 else width, width, groups) for i in range(depth))
            stages.insert(0, nn.Sequential(*blocks))
            if level > 0:
                convs.insert(0, _CausalConv3d(width, 2 * width, 3) if upsample[level - 1] else nn.Identity())
            before = width
        self.block_res_blocks, self.conv_blocks = nn.ModuleList(stages), nn.ModuleList(convs)
        self.norm1 = ops.GroupNorm(groups, widths[0])
        self.conv_out = _CausalConv3d(widths[0], channels, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.res_blocks(self.conv1(x))
        for level in reversed(range(len(self.block_res_blocks))):
            x = self.block_res_blocks[level](x)
            if level > 0 and self._upsample[level - 1]:
                x = self.conv_blocks[level - 1](x).unflatten(1, (-1, 2))  # (B, C, 2, T, h, w): two frames for each
                x = x.movedim(2, 3).flatten(2, 3)
        return self.conv_out(F.silu(self.norm1(x)))


class TemporalDecoder(nn.Module):
    """Decoding half of Open-Sora 1.2's temporal VAE; keys as published below `temporal_vae.`.

    Args:
        filters: Channels of the widest level over the largest multiplier.
        num_res_blocks: Residual blocks of a level.
        channel_multipliers: Width of each level in `filters`.
        temporal_downsample: Whether time is halved after each level but the last.
    """

    def __init__(
        self,
        filters: int = 128,
        num_res_blocks: int = 4,
        channel_multipliers: tuple[int, ...] = (1, 2, 2, 4),
        temporal_downsample: tuple[bool, ...] = (False, True, True),
        num_groups: int = 32,
        channels: int = 4,
    ):
        super().__init__()
        self._factor = 2 ** sum(temporal_downsample)
        self.post_quant_conv = _CausalConv3d(channels, channels, 1)
        self.decoder = _Decoder(
            channels, channels, filters, num_res_blocks, channel_multipliers, temporal_downsample, num_groups
        )

    def forward(self, latent: torch.Tensor) -> torch.Tensor:
        """One chunk (B, 4, n, h, w), n of 1 to 5, to (B, 4, 4n - 3, h, w): 17 frames for 5."""
        return self.decoder(self.post_quant_conv(latent))[:, :, self._factor - 1 :]


class OpenSoraDecoder(nn.Module):
    """Temporal decoder, then image decoder, a chunk of latent frames at a time."""

    def __init__(self, temporal: nn.Module, image: nn.Module):
        super().__init__()
        self.temporal, self.image = temporal, FrameByFrame(image, _FRAMES_AT_ONCE, False)

    def decode(self, latent: torch.Tensor) -> torch.Tensor:
        """(B, 4, T, h, w) to (B, 3, frames, 8h, 8w)."""
        chunks = latent.split(LATENTS_PER_CHUNK, 2)
        return torch.cat([self.image.decode(self.temporal(chunk) / IMAGE_SCALE) for chunk in chunks], 2)

    def encode(self, video: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("the Open-Sora 1.2 VAE can only decode here: start from an Empty Open-Sora Latent")


def open_sora_frames(latents: int) -> int:
    """Frames that so many latent frames decode to: 17 for every 5, and 4n - 3 for n that are left."""
    chunks, rest = divmod(latents, LATENTS_PER_CHUNK)
    return chunks * FRAMES_PER_CHUNK + max(0, 4 * rest - 3)


def open_sora_vae(state_dict: State) -> VideoVAE:
    """Open-Sora 1.2's VAE from its published file.

    Raises:
        ValueError: the file does not hold it.
    """
    image_prefix, temporal_prefix = "spatial_vae.module.", "temporal_vae."
    image = {k.removeprefix(image_prefix): v for k, v in state_dict.items() if k.startswith(image_prefix)}
    found = {k.removeprefix(temporal_prefix): v for k, v in state_dict.items() if k.startswith(temporal_prefix)}
    if not image or not found:
        raise ValueError("no spatial_vae.* and temporal_vae.* tensors in it")
    config = {}
    if "decoder.norm1.weight" in found:
        config["filters"] = found["decoder.norm1.weight"].shape[0]
        config["num_res_blocks"] = len({k.split(".")[2] for k in found if k.startswith("decoder.res_blocks.")})
    temporal = TemporalDecoder(**config)
    wanted = temporal.state_dict().keys()
    temporal.load_state_dict({key: value for key, value in found.items() if key in wanted})  # without its encoder
    log.debug("Open-Sora VAE: %d tensors of the encoder are left out", len(found) - len(wanted))
    return VideoVAE(
        image,
        lambda model: OpenSoraDecoder(temporal, model),
        _FRAMES_AT_ONCE,
        pixel_frames=open_sora_frames,
        split_time=False,
    )

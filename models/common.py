"""What the networks share: their stacks, embeddings of numbers, patches, modulation, texts without padding."""

import math

import torch
import torch.nn.functional as F
from torch import nn


def sinusoid(values: torch.Tensor, channels: int) -> tuple[torch.Tensor, torch.Tensor]:
    """sin and cos of `values` (N,) times 10000^(-k / (channels/2)), each (N, channels/2) in fp32."""
    half = channels // 2
    # exp in fp32, as the models were trained: a timestep of 1000 makes its rounding visible
    frequencies = torch.exp(-math.log(10000) * torch.arange(half, device=values.device, dtype=torch.float32) / half)
    angles = values.float()[:, None] * frequencies
    return angles.sin(), angles.cos()


def timestep_embedding(timesteps: torch.Tensor, channels: int = 256) -> torch.Tensor:
    """(N,) to (N, channels) in fp32, cos first."""
    sin, cos = sinusoid(timesteps, channels)
    return torch.cat((cos, sin), -1)


def position_embedding(positions: torch.Tensor, channels: int) -> torch.Tensor:
    """(N,) to (N, channels) in fp32, sin first."""
    return torch.cat(sinusoid(positions, channels), -1)


def grid_embedding(rows: torch.Tensor, columns: torch.Tensor, channels: int) -> torch.Tensor:
    """Positions of the rows (h,) and columns (w,) of patches to (h*w, channels): the columns' half first."""
    h, w = len(rows), len(columns)
    y = position_embedding(rows, channels // 2)[:, None].expand(h, w, -1)
    x = position_embedding(columns, channels // 2)[None].expand(h, w, -1)
    return torch.cat((x, y), -1).flatten(0, 1)


def pad_to_patches(x: torch.Tensor, patch: int) -> torch.Tensor:
    """Latent (B, C, T, h, w) with zeros to the right and below, so that whole patches cover it."""
    return F.pad(x, (0, -x.shape[-1] % patch, 0, -x.shape[-2] % patch))


def unpatchify(x: torch.Tensor, frames: int, height: int, width: int, patch: int) -> torch.Tensor:
    """Tokens (B, T*h*w, patch*patch*C), channels last within a patch, to (B, C, T, h*patch, w*patch)."""
    x = x.unflatten(2, (patch, patch, -1)).unflatten(1, (frames, height, width))
    return x.permute(0, 6, 1, 2, 4, 3, 5).flatten(5, 6).flatten(3, 4)


def without_padding(text: torch.Tensor, mask: torch.Tensor | None, limit: int) -> torch.Tensor:
    """The rows (B, n, C) of a text (B, L, C) up to the last token that `mask` marks, at most `limit`; no mask: all."""
    valid = text.shape[1] if mask is None else int(mask.sum(-1).max())
    return text[:, : min(valid, limit)]


def modulate(x: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return torch.addcmul(shift, x, 1 + scale)


def per_frame(x: torch.Tensor, frames: int) -> torch.Tensor:
    """Tokens of a video (B, T*S, C) as the sequences that spatial attention sees, (B*T, S, C)."""
    return x.unflatten(1, (frames, -1)).flatten(0, 1)


def per_position(x: torch.Tensor, frames: int) -> torch.Tensor:
    """Tokens of a video (B, T*S, C) as the sequences that temporal attention sees, (B*S, T, C)."""
    return x.unflatten(1, (frames, -1)).transpose(1, 2).flatten(0, 1)


def whole_video(x: torch.Tensor, batch: int, temporal: bool) -> torch.Tensor:
    """Back from `per_position` (temporal) or `per_frame` to (B, T*S, C)."""
    x = x.unflatten(0, (batch, -1))
    return (x.transpose(1, 2) if temporal else x).flatten(1, 2)


def stacks(block: type[nn.Module], depth: int, config: tuple, operations, **factory) -> tuple[nn.ModuleList, ...]:
    """`depth` spatial and as many temporal blocks, each `block(*config, temporal, operations, **factory)`."""
    return tuple(
        nn.ModuleList(block(*config, temporal, operations, **factory) for _ in range(depth))
        for temporal in (False, True)
    )

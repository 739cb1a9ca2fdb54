"""The demo's stand-in for a video VAE: a fixed orthonormal space-to-depth transform, lossless in both directions.

Every 2x2 pixel square of a frame becomes one latent position with 12 channels. The channel mix is the Kronecker product
of the 2x2 Haar basis (mean, horizontal, vertical, diagonal) and an orthonormal colour basis (grey, red-blue, green-
magenta), so the latent of white noise is white noise and distances between videos are distances between latents.
"""

import torch

FACTOR = 2  # pixels per latent position, each way
CHANNELS = 3 * FACTOR * FACTOR

_HAAR = torch.tensor([[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]], dtype=torch.float64) / 2
_COLOUR = torch.tensor([[1, 1, 1], [1, 0, -1], [-1, 2, -1]], dtype=torch.float64)
_COLOUR = _COLOUR / _COLOUR.norm(dim=1, keepdim=True)
BASIS = torch.kron(_HAAR, _COLOUR).float()  # (12 latent channels, 12 pixel values in order (dy, dx, rgb)), orthonormal


def encode(video: torch.Tensor) -> torch.Tensor:
    """Video (B, T, H, W, 3) with values in [0, 1] to latent (B, 12, T, H/2, W/2).

    Raises:
        ValueError: height or width is odd.
    """
    b, t, h, w, c = video.shape
    if c != 3 or h % FACTOR or w % FACTOR:
        raise ValueError(f"video is {w}x{h} with {c} channels: needs even sides and 3 channels")
    x = (video * 2 - 1).reshape(b, t, h // FACTOR, FACTOR, w // FACTOR, FACTOR, 3)
    x = x.permute(0, 1, 2, 4, 3, 5, 6).reshape(b, t, h // FACTOR, w // FACTOR, CHANNELS)
    return (x @ BASIS.to(x).T).permute(0, 4, 1, 2, 3).contiguous()


def decode(latent: torch.Tensor) -> torch.Tensor:
    """Latent (B, 12, T, h, w) to video (B, T, 2h, 2w, 3), clipped to [0, 1].

    Raises:
        ValueError: the latent has another number of dimensions or channels.
    """
    if latent.ndim != 5 or latent.shape[1] != CHANNELS:
        raise ValueError(f"latent of shape {tuple(latent.shape)}: the demo codec decodes (B, {CHANNELS}, T, h, w)")
    b, _, t, h, w = latent.shape
    x = latent.permute(0, 2, 3, 4, 1) @ BASIS.to(latent)
    x = x.reshape(b, t, h, w, FACTOR, FACTOR, 3).permute(0, 1, 2, 4, 3, 5, 6)
    return (x.reshape(b, t, h * FACTOR, w * FACTOR, 3) / 2 + 0.5).clamp(0, 1)

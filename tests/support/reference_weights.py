"""Weights and inputs that anybody can make again from their names, and tiny instances of the pack's two networks.

`latte_open_sora.npz` holds what the reference implementations gave for them (diffusers 0.42.1's Latte; STDiT3, its
rectified flow and temporal VAE as the Foresight authors released them).
"""

import zlib
from pathlib import Path

import numpy as np
import torch

from models.latte import LatteDiT
from models.open_sora import STDiT3

LATTE = {
    "num_layers": 2,
    "num_attention_heads": 4,
    "attention_head_dim": 12,
    "cross_attention_dim": 48,
    "caption_channels": 32,
    "video_length": 3,
}
OPEN_SORA = {"depth": 2, "hidden_size": 48, "num_heads": 4, "caption_channels": 32, "model_max_length": 20}
CAPTION_TOKENS = 9


def named(name: str, *shape: int, std: float = 1.0) -> torch.Tensor:
    values = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    return torch.from_numpy(values.astype(np.float32) * std)


def fill(module: torch.nn.Module) -> torch.nn.Module:
    """Weights by key: 0.2 standard deviation, norms around 1, so that nothing a network does stays invisible."""
    values = {}
    for key, value in module.state_dict().items():
        if value.ndim == 1 and "norm" in key and key.endswith("weight"):
            values[key] = 1 + named(key, *value.shape, std=0.1)
        else:
            values[key] = named(key, *value.shape, std=1.0 if key == "y_embedder.y_embedding" else 0.2)
    module.load_state_dict(values)
    return module.eval().requires_grad_(False)


def latte() -> LatteDiT:
    return fill(LatteDiT(**LATTE))


def open_sora() -> STDiT3:
    return fill(STDiT3(**OPEN_SORA))


def caption() -> torch.Tensor:
    """(2, 9, 32): the valid tokens of the fixture's captions."""
    return named("sy", 2, 1, 20, 32)[:, 0, :CAPTION_TOKENS]


def expected(name: str) -> torch.Tensor:
    with np.load(Path(__file__).with_name("latte_open_sora.npz")) as arrays:
        return torch.from_numpy(arrays[name])


def assert_agrees(got: torch.Tensor, name: str) -> None:
    """Within 1e-4 of the value, and of a hundredth of the largest one where it is near zero.

    Another CPU's `exp` moves the timestep embedding in its last bit; at these weights 4e-4 of 9 came of that, in
    diffusers' Latte as in ours.
    """
    want = expected(name)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=5e-5 * want.abs().max().item())

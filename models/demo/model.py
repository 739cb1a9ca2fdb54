"""The demo DiT's shape and the one weight file, loadable as diffusers' and as ComfyUI's Wan 2.1 class."""

import re
from pathlib import Path

import torch

from .codec import CHANNELS
from .prompt import TEXT_DIM

WEIGHTS = Path(__file__).with_name("foresight_demo_wan.safetensors")  # keys as in the published Wan 2.1 checkpoints
FRAMES, HEIGHT, WIDTH = 8, 32, 32  # of the clips that it was trained on
SHIFT = 3.0  # flow shift of the sigma schedule in sampling

DIM, HEADS, FFN_DIM, LAYERS, FREQ_DIM = 128, 4, 384, 12, 64

COORDINATES = 3  # noise-free input channels beside the latent's: t, y, x, each from -1 to 1

DIFFUSERS_CONFIG = dict(
    patch_size=(1, 2, 2),
    num_attention_heads=HEADS,
    attention_head_dim=DIM // HEADS,
    in_channels=CHANNELS + COORDINATES,
    out_channels=CHANNELS,
    text_dim=TEXT_DIM,
    freq_dim=FREQ_DIM,
    ffn_dim=FFN_DIM,
    num_layers=LAYERS,
    cross_attn_norm=True,
    qk_norm="rms_norm_across_heads",
    eps=1e-6,
    rope_max_seq_len=64,
)
COMFY_CONFIG = dict(
    image_model="wan2.1",
    model_type="t2v",
    patch_size=(1, 2, 2),
    in_dim=CHANNELS + COORDINATES,
    out_dim=CHANNELS,
    dim=DIM,
    ffn_dim=FFN_DIM,
    freq_dim=FREQ_DIM,
    text_dim=TEXT_DIM,
    num_heads=HEADS,
    num_layers=LAYERS,
    cross_attn_norm=True,
    qk_norm=True,
    eps=1e-6,
)


def coordinates(latent: torch.Tensor) -> torch.Tensor:
    """Where each latent position is: (B, 3, T, h, w) for a latent (B, 12, T, h, w).

    Attention with rotary positions alone sees where tokens are relative to one another, never where the frame begins.
    Without these channels the model moved its objects along the right axis, but as often as not the wrong way.
    """
    axes = [torch.linspace(-1, 1, size, device=latent.device, dtype=latent.dtype) for size in latent.shape[2:]]
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij"))
    return grid[None].expand(latent.shape[0], -1, -1, -1, -1)


_TO_DIFFUSERS = [  # (published key, diffusers key), applied in order
    (r"^time_embedding\.0\.", "condition_embedder.time_embedder.linear_1."),
    (r"^time_embedding\.2\.", "condition_embedder.time_embedder.linear_2."),
    (r"^time_projection\.1\.", "condition_embedder.time_proj."),
    (r"^text_embedding\.0\.", "condition_embedder.text_embedder.linear_1."),
    (r"^text_embedding\.2\.", "condition_embedder.text_embedder.linear_2."),
    (r"^head\.modulation$", "scale_shift_table"),
    (r"^head\.head\.", "proj_out."),
    (r"\.modulation$", ".scale_shift_table"),
    (r"\.(self|cross)_attn\.([qkv])\.", r".\1_attn.to_\2."),
    (r"\.(self|cross)_attn\.o\.", r".\1_attn.to_out.0."),
    (r"\.self_attn\.", ".attn1."),
    (r"\.cross_attn\.", ".attn2."),
    (r"\.ffn\.0\.", ".ffn.net.0.proj."),
    (r"\.ffn\.2\.", ".ffn.net.2."),
    (r"\.norm3\.", ".norm2."),
]


def diffusers_key(key: str) -> str:
    """The diffusers name of a parameter of the published (and ComfyUI's) naming."""
    for pattern, replacement in _TO_DIFFUSERS:
        key = re.sub(pattern, replacement, key)
    return key


def load_state_dict() -> dict[str, torch.Tensor]:
    """The bundled weights in fp32, published key names.

    Raises:
        FileNotFoundError: the weight file is missing from the pack.
    """
    from safetensors.torch import load_file

    if not WEIGHTS.is_file():
        raise FileNotFoundError(
            f"{WEIGHTS} is missing: reinstall the pack, or make it with `python -m tools.demo.train`"
        )
    return {key: value.float() for key, value in load_file(WEIGHTS).items()}


def load_diffusers(state_dict: dict[str, torch.Tensor] | None = None) -> torch.nn.Module:
    """The demo model as diffusers' `WanTransformer3DModel`, fp32, in eval mode."""
    from diffusers import WanTransformer3DModel

    model = WanTransformer3DModel(**DIFFUSERS_CONFIG)
    model.load_state_dict({diffusers_key(key): value for key, value in (state_dict or load_state_dict()).items()})
    return model.eval().requires_grad_(False)


def published_state_dict(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The parameters of a diffusers instance under the published names (the inverse of `diffusers_key`)."""
    inverse = {}
    for name in _published_names(len(model.blocks)):
        inverse[diffusers_key(name)] = name
    return {inverse[key]: value for key, value in model.state_dict().items()}


def _published_names(blocks: int) -> list[str]:
    linear = [
        f"{m}.{p}"
        for m in (
            "patch_embedding",
            "text_embedding.0",
            "text_embedding.2",
            "time_embedding.0",
            "time_embedding.2",
            "time_projection.1",
            "head.head",
        )
        for p in ("weight", "bias")
    ]
    block = ["modulation", "norm3.weight", "norm3.bias"]
    block += [f"{a}.{m}.{p}" for a in ("self_attn", "cross_attn") for m in "qkvo" for p in ("weight", "bias")]
    block += [f"{a}.norm_{m}.weight" for a in ("self_attn", "cross_attn") for m in "qk"]
    block += [f"ffn.{i}.{p}" for i in (0, 2) for p in ("weight", "bias")]
    return linear + ["head.modulation"] + [f"blocks.{i}.{name}" for i in range(blocks) for name in block]

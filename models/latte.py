"""Latte-1 (arXiv 2401.03048) as a ComfyUI model; state-dict keys as published in the diffusers layout."""

import comfy.conds
import comfy.latent_formats
import comfy.model_base
import comfy.ops
import comfy.patcher_extension
import comfy.supported_models_base
import torch
import torch.nn.functional as F
from comfy.ldm.modules.attention import optimized_attention
from torch import nn

from . import common

MAX_TEXT_TOKENS = 120
_EXPECTED = {  # of a config; other values stand for another architecture
    "activation_fn": "gelu-approximate",
    "norm_type": "ada_norm_single",
    "norm_elementwise_affine": False,
}


class _Attention(nn.Module):
    def __init__(self, channels: int, context_channels: int, heads: int, bias: bool, operations, **factory):
        super().__init__()
        self._heads = heads
        self.to_q = operations.Linear(channels, channels, bias=bias, **factory)
        self.to_k = operations.Linear(context_channels, channels, bias=bias, **factory)
        self.to_v = operations.Linear(context_channels, channels, bias=bias, **factory)
        self.to_out = nn.ModuleList([operations.Linear(channels, channels, **factory)])

    def forward(self, x: torch.Tensor, context: torch.Tensor, transformer_options: dict) -> torch.Tensor:
        q, k, v = self.to_q(x), self.to_k(context), self.to_v(context)
        return self.to_out[0](optimized_attention(q, k, v, self._heads, transformer_options=transformer_options))


def _gelu(x: torch.Tensor) -> torch.Tensor:
    return F.gelu(x, approximate="tanh")


class _GELU(nn.Module):
    def __init__(self, channels: int, hidden: int, operations, **factory):
        super().__init__()
        self.proj = operations.Linear(channels, hidden, **factory)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _gelu(self.proj(x))


class _FeedForward(nn.Module):
    def __init__(self, channels: int, operations, **factory):
        super().__init__()
        hidden = 4 * channels
        # the Identity holds the place of a dropout, which counts in the published keys
        self.net = nn.Sequential(
            _GELU(channels, hidden, operations, **factory),
            nn.Identity(),
            operations.Linear(hidden, channels, **factory),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)


class LatteBlock(nn.Module):
    """One block over the tokens of a whole video, (B, T*S, C) in and out.

    Args:
        temporal: Attends along time at each position, without text; else within each frame, then to the text.
    """

    def __init__(self, channels, context_channels, heads, bias, eps, temporal, operations, **factory):
        super().__init__()
        self._temporal = temporal
        norm = {"elementwise_affine": False, "eps": eps, **factory}
        self.scale_shift_table = nn.Parameter(torch.empty(6, channels, **factory))
        self.norm1 = operations.LayerNorm(channels, **norm)
        self.attn1 = _Attention(channels, channels, heads, bias, operations, **factory)
        if not temporal:
            self.attn2 = _Attention(channels, context_channels, heads, bias, operations, **factory)
        self.norm3 = operations.LayerNorm(channels, **norm)
        self.ff = _FeedForward(channels, operations, **factory)

    def forward(
        self,
        x: torch.Tensor,
        modulation: torch.Tensor,
        frames: int,
        context: torch.Tensor | None = None,
        transformer_options: dict = {},  # noqa: B006  (ComfyUI's convention; never written to)
    ) -> torch.Tensor:
        """`modulation` is (B, 6, C), `context` (B, L, C)."""
        table = comfy.ops.cast_to_input(self.scale_shift_table, x)
        shift, scale, gate, ff_shift, ff_scale, ff_gate = (table + modulation).chunk(6, 1)
        y = common.modulate(self.norm1(x), shift, scale)
        y = (common.per_position if self._temporal else common.per_frame)(y, frames)
        y = common.whole_video(self.attn1(y, y, transformer_options), x.shape[0], self._temporal)
        x = torch.addcmul(x, gate, y)
        if context is not None and not self._temporal:
            x = x + self.attn2(x, context, transformer_options)
        return torch.addcmul(x, ff_gate, self.ff(common.modulate(self.norm3(x), ff_shift, ff_scale)))


class _PatchEmbed(nn.Module):
    def __init__(self, in_channels: int, channels: int, patch: int, operations, **factory):
        super().__init__()
        self.proj = operations.Conv2d(in_channels, channels, patch, stride=patch, **factory)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Frames (N, C, h, w) to tokens (N, S, channels)."""
        return self.proj(x).flatten(2).transpose(1, 2)


class _TwoLayers(nn.Module):
    def __init__(self, in_channels: int, channels: int, activation, operations, **factory):
        super().__init__()
        self._activation = activation
        self.linear_1 = operations.Linear(in_channels, channels, **factory)
        self.linear_2 = operations.Linear(channels, channels, **factory)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear_2(self._activation(self.linear_1(x)))


class _Timestep(nn.Module):
    """`adaln_single`: what all blocks are modulated with."""

    def __init__(self, channels: int, operations, **factory):
        super().__init__()
        self.emb = nn.Module()
        self.emb.timestep_embedder = _TwoLayers(256, channels, F.silu, operations, **factory)
        self.linear = operations.Linear(channels, 6 * channels, **factory)

    def forward(self, timesteps: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """(B,) to the blocks' modulation (B, 6, C) and the output layer's (B, 1, C)."""
        embedded = self.emb.timestep_embedder(common.timestep_embedding(timesteps).to(dtype))
        return self.linear(F.silu(embedded)).unflatten(1, (6, -1)), embedded[:, None]


class LatteDiT(nn.Module):
    """Latte-1's transformer: `num_layers` pairs of a spatial and a temporal block.

    The arguments up to `video_length` are those of the published config; what the published model does not use
    (other activations or norms, learned positions) is refused.

    Raises:
        ValueError: a config value stands for another architecture.
    """

    def __init__(
        self,
        num_layers: int = 28,
        num_attention_heads: int = 16,
        attention_head_dim: int = 72,
        in_channels: int = 4,
        out_channels: int = 8,
        cross_attention_dim: int = 1152,
        caption_channels: int = 4096,
        sample_size: int = 64,
        patch_size: int = 2,
        attention_bias: bool = True,
        activation_fn: str = "gelu-approximate",
        norm_type: str = "ada_norm_single",
        norm_elementwise_affine: bool = False,
        norm_eps: float = 1e-6,
        num_embeds_ada_norm: int = 1000,
        dropout: float = 0.0,
        video_length: int = 16,
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
        operations=comfy.ops.disable_weight_init,
    ):
        super().__init__()
        for name, value in _EXPECTED.items():
            if locals()[name] != value:
                raise ValueError(f"{name}={locals()[name]!r}: Latte-1 has {value!r}, this is another architecture")
        factory = {"dtype": dtype, "device": device}
        channels = num_attention_heads * attention_head_dim
        self.dtype, self.channels, self.patch_size = dtype, channels, patch_size
        self._in_channels, self._base_size = in_channels, sample_size // patch_size
        self.pos_embed = _PatchEmbed(in_channels, channels, patch_size, operations, **factory)
        self.adaln_single = _Timestep(channels, operations, **factory)
        self.caption_projection = _TwoLayers(caption_channels, channels, _gelu, operations, **factory)
        config = (channels, cross_attention_dim, num_attention_heads, attention_bias, norm_eps)
        stacks = common.stacks(LatteBlock, num_layers, config, operations, **factory)
        self.transformer_blocks, self.temporal_transformer_blocks = stacks
        self.norm_out = operations.LayerNorm(channels, elementwise_affine=False, eps=1e-6, **factory)
        self.scale_shift_table = nn.Parameter(torch.empty(2, channels, **factory))
        self.proj_out = operations.Linear(channels, patch_size * patch_size * out_channels, **factory)

    def forward(
        self,
        x: torch.Tensor,
        timesteps: torch.Tensor,
        context: torch.Tensor,
        transformer_options: dict = {},  # noqa: B006
        **kwargs,
    ) -> torch.Tensor:
        """Predicted noise.

        Args:
            x: Latent (B, 4, T, h, w); any T, h and w.
            timesteps: (B,), 0 to 999.
            context: T5 hidden states (B, L, 4096), no mask: only rows that are to be attended to.

        Returns:
            epsilon, shaped like `x`; the learned variances that the network also gives are dropped.
        """
        wrappers = comfy.patcher_extension.get_all_wrappers(
            comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, transformer_options
        )
        return comfy.patcher_extension.WrapperExecutor.new_class_executor(self._forward, self, wrappers).execute(
            x, timesteps, context, transformer_options, **kwargs
        )

    def _forward(self, x, timesteps, context, transformer_options={}, **kwargs):  # noqa: B006
        batch, _, frames, height, width = x.shape
        padded = common.pad_to_patches(x, self.patch_size)
        h, w = padded.shape[-2] // self.patch_size, padded.shape[-1] // self.patch_size
        tokens = self.pos_embed(padded.transpose(1, 2).flatten(0, 1))
        tokens = tokens + self._grid(h, w, x.device).to(x.dtype)
        tokens = common.whole_video(tokens, batch, temporal=False)
        modulation, out_modulation = self.adaln_single(timesteps, x.dtype)
        context = self.caption_projection(context)

        for i, (spatial, temporal) in enumerate(
            zip(self.transformer_blocks, self.temporal_transformer_blocks, strict=True)
        ):
            tokens = spatial(tokens, modulation, frames, context=context, transformer_options=transformer_options)
            if i == 0 and frames > 1:
                when = common.position_embedding(torch.arange(frames, device=x.device), self.channels).to(x.dtype)
                tokens = tokens + when.repeat_interleave(h * w, 0)
            tokens = temporal(tokens, modulation, frames, transformer_options=transformer_options)

        shift, scale = (comfy.ops.cast_to_input(self.scale_shift_table, x) + out_modulation).chunk(2, 1)
        tokens = self.proj_out(common.modulate(self.norm_out(tokens), shift, scale))
        out = common.unpatchify(tokens, frames, h, w, self.patch_size)
        return out[:, : self._in_channels, :, :height, :width]

    def _grid(self, h: int, w: int, device: torch.device) -> torch.Tensor:
        """Position embedding of a frame's patches; sizes other than the trained one are stretched over its range."""
        rows = torch.arange(h, device=device) * (self._base_size / h)
        columns = torch.arange(w, device=device) * (self._base_size / w)
        return common.grid_embedding(rows, columns, self.channels)


class LatteLatent(comfy.latent_formats.SD15):
    """The latent of Stable Diffusion 1, frame by frame."""

    latent_dimensions = 3


class Latte(comfy.model_base.BaseModel):
    def __init__(self, model_config, device=None):
        super().__init__(model_config, comfy.model_base.ModelType.EPS, device=device, unet_model=LatteDiT)

    def extra_conds(self, **kwargs) -> dict:
        """The text without its padding, cut to what Latte was trained with."""
        out = super().extra_conds(**kwargs)
        text, mask = kwargs.get("cross_attn"), kwargs.get("attention_mask")
        if text is not None:
            out["c_crossattn"] = comfy.conds.CONDRegular(common.without_padding(text, mask, MAX_TEXT_TOKENS))
        return out


class LatteConfig(comfy.supported_models_base.BASE):
    """Core's record of a model, for Latte: epsilon prediction over 1000 steps of linear betas."""

    unet_extra_config = {}
    sampling_settings = {
        "beta_schedule": "sqrt_linear",  # ComfyUI's name of the truly linear one
        "linear_start": 0.0001,
        "linear_end": 0.02,
        "timesteps": 1000,
    }
    latent_format = LatteLatent
    memory_usage_factor = 0.5  # PixArt's, whose blocks these are

    def get_model(self, state_dict, prefix="", device=None) -> Latte:
        return Latte(self, device=device)

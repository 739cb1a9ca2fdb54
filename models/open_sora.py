"""Open-Sora 1.2's network (STDiT3, github.com/hpcaitech/Open-Sora v1.2.0); state-dict keys as published."""

import math

import comfy.ops
import comfy.patcher_extension
import torch
import torch.nn.functional as F
from comfy.ldm.modules.attention import optimized_attention
from torch import nn

from . import common

MAX_TEXT_TOKENS = 300
FPS, IMAGE_FPS = 24.0, 120.0  # what the model is told of the frame rate; a still image has its own value


class _SelfAttention(nn.Module):
    def __init__(self, channels: int, heads: int, qk_norm: bool, rotary: bool, operations, **factory):
        super().__init__()
        self._heads, self._rotary = heads, rotary
        head = channels // heads
        self.qkv = operations.Linear(channels, 3 * channels, **factory)
        self.q_norm = operations.RMSNorm(head, eps=1e-6, **factory) if qk_norm else nn.Identity()
        self.k_norm = operations.RMSNorm(head, eps=1e-6, **factory) if qk_norm else nn.Identity()
        self.proj = operations.Linear(channels, channels, **factory)

    def forward(self, x: torch.Tensor, transformer_options: dict) -> torch.Tensor:
        """(N, L, C) to the same."""
        q, k, v = self.qkv(x).unflatten(2, (3, self._heads, -1)).permute(2, 0, 3, 1, 4)  # (N, heads, L, head) each
        q, k = self.q_norm(q), self.k_norm(k)
        if self._rotary:
            sin, cos = common.sinusoid(torch.arange(x.shape[1], device=x.device), q.shape[-1])
            q, k = _rotate(q, sin, cos), _rotate(k, sin, cos)
        options = {"skip_reshape": True, "transformer_options": transformer_options}
        return self.proj(optimized_attention(q, k, v, self._heads, **options))


def _rotate(x: torch.Tensor, sin: torch.Tensor, cos: torch.Tensor) -> torch.Tensor:
    """Rotary position embedding: neighbouring channels of (..., L, head) form the pairs; sin and cos (L, head/2)."""
    real, imaginary = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack((real * cos - imaginary * sin, imaginary * cos + real * sin), -1)
    return turned.flatten(-2).to(x.dtype)


class _CrossAttention(nn.Module):
    def __init__(self, channels: int, heads: int, operations, **factory):
        super().__init__()
        self._heads = heads
        self.q_linear = operations.Linear(channels, channels, **factory)
        self.kv_linear = operations.Linear(channels, 2 * channels, **factory)
        self.proj = operations.Linear(channels, channels, **factory)

    def forward(self, x: torch.Tensor, context: torch.Tensor, transformer_options: dict) -> torch.Tensor:
        k, v = self.kv_linear(context).chunk(2, -1)
        q = self.q_linear(x)
        return self.proj(optimized_attention(q, k, v, self._heads, transformer_options=transformer_options))


class _Mlp(nn.Module):
    def __init__(self, in_channels: int, hidden: int, channels: int, operations, **factory):
        super().__init__()
        self.fc1 = operations.Linear(in_channels, hidden, **factory)
        self.fc2 = operations.Linear(hidden, channels, **factory)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class STDiT3Block(nn.Module):
    """One block over the tokens of a whole video, (B, T*S, C) in and out; temporal ones attend along time."""

    def __init__(self, channels, heads, mlp_ratio, qk_norm, temporal, operations, **factory):
        super().__init__()
        self._temporal = temporal
        norm = {"elementwise_affine": False, "eps": 1e-6, **factory}
        self.scale_shift_table = nn.Parameter(torch.empty(6, channels, **factory))
        self.norm1 = operations.LayerNorm(channels, **norm)
        self.attn = _SelfAttention(channels, heads, qk_norm, temporal, operations, **factory)
        self.cross_attn = _CrossAttention(channels, heads, operations, **factory)
        self.norm2 = operations.LayerNorm(channels, **norm)
        self.mlp = _Mlp(channels, int(channels * mlp_ratio), channels, operations, **factory)

    def forward(
        self,
        x: torch.Tensor,
        context: torch.Tensor,
        modulation: torch.Tensor,
        frames: int,
        transformer_options: dict = {},  # noqa: B006  (ComfyUI's convention; never written to)
    ) -> torch.Tensor:
        """`modulation` is (B, 6, C), `context` (B, L, C)."""
        table = comfy.ops.cast_to_input(self.scale_shift_table, x)
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = (table + modulation).chunk(6, 1)
        y = common.modulate(self.norm1(x), shift, scale)
        y = (common.per_position if self._temporal else common.per_frame)(y, frames)
        y = common.whole_video(self.attn(y, transformer_options), x.shape[0], self._temporal)
        x = torch.addcmul(x, gate, y)
        x = x + self.cross_attn(x, context, transformer_options)
        return torch.addcmul(x, mlp_gate, self.mlp(common.modulate(self.norm2(x), mlp_shift, mlp_scale)))


class _PatchEmbed(nn.Module):
    def __init__(self, in_channels: int, channels: int, patch_size, operations, **factory):
        super().__init__()
        self.proj = operations.Conv3d(in_channels, channels, tuple(patch_size), stride=tuple(patch_size), **factory)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Latent (B, C, T, h, w) to tokens (B, T*S, channels)."""
        return self.proj(x).flatten(2).transpose(1, 2)


class _NumberEmbed(nn.Module):
    """A number (timestep, frame rate) to channels."""

    def __init__(self, channels: int, operations, **factory):
        super().__init__()
        self.mlp = nn.Sequential(
            operations.Linear(256, channels, **factory), nn.SiLU(), operations.Linear(channels, channels, **factory)
        )

    def forward(self, values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        return self.mlp(common.timestep_embedding(values).to(dtype))


class _CaptionEmbed(nn.Module):
    def __init__(self, in_channels: int, channels: int, tokens: int, operations, **factory):
        super().__init__()
        self.y_proj = _Mlp(in_channels, channels, channels, operations, **factory)
        self.register_buffer("y_embedding", torch.empty(tokens, in_channels, **factory))

    def forward(self, context: torch.Tensor, null_caption: torch.Tensor | None) -> torch.Tensor:
        """(B, L, caption channels) to (B, L, C); rows flagged in `null_caption` (B,) take the null caption instead."""
        if null_caption is not None:
            null = comfy.ops.cast_to_input(self.y_embedding[: context.shape[1]], context)
            context = torch.where(null_caption.reshape(-1, 1, 1) > 0.5, null, context)
        return self.y_proj(context)


class _FinalLayer(nn.Module):
    def __init__(self, channels: int, out_channels: int, operations, **factory):
        super().__init__()
        self.norm_final = operations.LayerNorm(channels, elementwise_affine=False, eps=1e-6, **factory)
        self.scale_shift_table = nn.Parameter(torch.empty(2, channels, **factory))
        self.linear = operations.Linear(channels, out_channels, **factory)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        shift, scale = (comfy.ops.cast_to_input(self.scale_shift_table, x) + t[:, None]).chunk(2, 1)
        return self.linear(common.modulate(self.norm_final(x), shift, scale))


class STDiT3(nn.Module):
    """Open-Sora 1.2's transformer: `depth` pairs of a spatial and a temporal block.

    The arguments up to `qk_norm` are those of the published config that shape the network. Its others are about
    training or the reference's own kernels and are taken without effect, but for those that would change the network.

    Raises:
        ValueError: a config value stands for another architecture.
    """

    def __init__(
        self,
        depth: int = 28,
        hidden_size: int = 1152,
        num_heads: int = 16,
        mlp_ratio: float = 4.0,
        in_channels: int = 4,
        pred_sigma: bool = True,
        patch_size: tuple[int, int, int] = (1, 2, 2),
        caption_channels: int = 4096,
        model_max_length: int = MAX_TEXT_TOKENS,
        input_sq_size: int = 512,
        qk_norm: bool = True,
        skip_y_embedder: bool = False,
        class_dropout_prob: float = 0.1,
        drop_path: float = 0.0,
        freeze_y_embedder: bool = True,
        only_train_temporal: bool = False,
        no_temporal_pos_emb: bool = False,
        input_size: tuple = (None, None, None),
        enable_flash_attn: bool = False,
        enable_layernorm_kernel: bool = False,
        enable_sequence_parallelism: bool = False,
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
        operations=comfy.ops.disable_weight_init,
    ):
        super().__init__()
        _refuse_others(skip_y_embedder, patch_size)
        factory = {"dtype": dtype, "device": device}
        self.dtype, self.channels, self.patch_size = dtype, hidden_size, patch_size[1]
        self._in_channels, self._input_sq_size = in_channels, input_sq_size
        out_channels = in_channels * (2 if pred_sigma else 1)
        self.x_embedder = _PatchEmbed(in_channels, hidden_size, patch_size, operations, **factory)
        self.t_embedder, self.fps_embedder = (_NumberEmbed(hidden_size, operations, **factory) for _ in range(2))
        self.t_block = nn.Sequential(nn.SiLU(), operations.Linear(hidden_size, 6 * hidden_size, **factory))
        self.y_embedder = _CaptionEmbed(caption_channels, hidden_size, model_max_length, operations, **factory)
        config = (hidden_size, num_heads, mlp_ratio, qk_norm)
        self.spatial_blocks, self.temporal_blocks = common.stacks(STDiT3Block, depth, config, operations, **factory)
        self.final_layer = _FinalLayer(hidden_size, self.patch_size**2 * out_channels, operations, **factory)

    def forward(
        self,
        x: torch.Tensor,
        timesteps: torch.Tensor,
        context: torch.Tensor,
        transformer_options: dict = {},  # noqa: B006
        **kwargs,
    ) -> torch.Tensor:
        """Predicted noise less clean latent, ComfyUI's sign: the reference's velocity is its negative.

        Args:
            x: Latent (B, 4, T, h, w); any T, h and w.
            timesteps: (B,), 0 to 1000, fractions allowed.
            context: T5 hidden states (B, L, 4096), no mask: only rows that are to be attended to.
            kwargs: `fps` of the video; `height` and `width` in pixels, 8 per latent position by default;
                `null_caption` (B,), 1 in rows whose text is replaced by the null caption.

        Returns:
            Shaped like `x`; the variances that the network also gives are dropped.
        """
        wrappers = comfy.patcher_extension.get_all_wrappers(
            comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, transformer_options
        )
        return comfy.patcher_extension.WrapperExecutor.new_class_executor(self._forward, self, wrappers).execute(
            x, timesteps, context, transformer_options, **kwargs
        )

    def _forward(
        self,
        x,
        timesteps,
        context,
        transformer_options={},  # noqa: B006
        fps=None,
        height=None,
        width=None,
        null_caption=None,
        **kwargs,
    ):
        frames, h, w = x.shape[-3:]
        padded = common.pad_to_patches(x, self.patch_size)
        rows, columns = padded.shape[-2] // self.patch_size, padded.shape[-1] // self.patch_size
        tokens = self.x_embedder(padded)
        where = self._grid(rows, columns, _number(height, 8 * h), _number(width, 8 * w), x.device).to(x.dtype)
        tokens = tokens + where.repeat(frames, 1)

        # trained with the timestep rounded to the weights' dtype: in bf16 that is a step of 4 above 512
        t = self.t_embedder(timesteps.to(x.dtype), x.dtype)
        fps = torch.full((1,), _number(fps, IMAGE_FPS if frames == 1 else FPS), device=x.device)
        t = t + self.fps_embedder(fps.to(x.dtype), x.dtype)
        modulation = self.t_block(t).unflatten(1, (6, -1))
        context = self.y_embedder(context, null_caption)

        for spatial, temporal in zip(self.spatial_blocks, self.temporal_blocks, strict=True):
            tokens = spatial(tokens, context, modulation, frames, transformer_options=transformer_options)
            tokens = temporal(tokens, context, modulation, frames, transformer_options=transformer_options)

        out = common.unpatchify(self.final_layer(tokens, t), frames, rows, columns, self.patch_size)
        return -out[:, : self._in_channels, :, :h, :w]

    def _grid(self, rows: int, columns: int, height: float, width: float, device: torch.device) -> torch.Tensor:
        """Position embedding of a frame's patches, scaled by the video's size in pixels."""
        base_size = round(math.sqrt(rows * columns))
        scale = math.sqrt(height * width) / self._input_sq_size
        y = torch.arange(rows, device=device) / scale * (base_size / rows)
        x = torch.arange(columns, device=device) / scale * (base_size / columns)
        return common.grid_embedding(y, x, self.channels)


def _refuse_others(skip_y_embedder: bool, patch_size: tuple[int, int, int]) -> None:
    if skip_y_embedder:
        raise ValueError("skip_y_embedder=True: Open-Sora 1.2 has a caption embedder, this is another architecture")
    if patch_size[0] != 1 or patch_size[1] != patch_size[2]:
        raise ValueError(f"patch_size={tuple(patch_size)}: must be (1, n, n), as Open-Sora 1.2's (1, 2, 2)")


def _number(value, default: float) -> float:
    """A setting that comes as a number, as a tensor of equal numbers, or not at all."""
    if isinstance(value, torch.Tensor):
        value = value.flatten()[0].item()
    return float(default if value is None else value)

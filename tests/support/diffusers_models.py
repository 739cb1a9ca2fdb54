"""Tiny random instances of diffusers' own classes, and the loop that calls them as the stock pipelines do."""

import diffusers
import torch

from foresight.hosts import families

STEPS = 12


def seeded(shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def wan():
    return diffusers.WanTransformer3DModel(
        num_attention_heads=4,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=16,
        freq_dim=16,
        ffn_dim=64,
        num_layers=4,
        rope_max_seq_len=32,
    )


def cogvideox():
    return diffusers.CogVideoXTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        time_embed_dim=8,
        text_embed_dim=16,
        num_layers=3,
        sample_width=8,
        sample_height=8,
        sample_frames=8,
        max_text_seq_length=6,
        use_rotary_positional_embeddings=True,
    )


def latte():
    return diffusers.LatteTransformer3DModel(
        num_attention_heads=4,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=3,
        cross_attention_dim=32,
        sample_size=8,
        patch_size=2,
        caption_channels=16,
        video_length=3,
        norm_type="ada_norm_single",
        activation_fn="gelu-approximate",
        attention_bias=True,
        norm_elementwise_affine=False,
    )


def hunyuan():
    return diffusers.HunyuanVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=12,
        num_layers=2,
        num_single_layers=2,
        num_refiner_layers=1,
        patch_size=2,
        patch_size_t=1,
        text_embed_dim=16,
        pooled_projection_dim=8,
        rope_axes_dim=(4, 4, 4),
        guidance_embeds=True,
    )


def ltx():
    return diffusers.LTXVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=4,
        attention_head_dim=12,
        cross_attention_dim=48,
        num_layers=4,
        caption_channels=16,
    )


def arguments(name, x, t, text):
    """The keyword arguments of the stock pipeline's call; `x` (B, 4, 3, 8, 8), `t` a number, `text` (B, 6, 16)."""
    batch = x.shape[0]
    timestep = torch.full((batch,), float(t))
    common = dict(hidden_states=x, timestep=timestep, encoder_hidden_states=text, return_dict=False)
    if name == "cogvideox":
        rotary = diffusers.models.embeddings.get_3d_rotary_pos_embed(16, ((0, 0), (4, 4)), (4, 4), 3)
        return {**common, "hidden_states": x.transpose(1, 2), "image_rotary_emb": rotary}
    if name == "hunyuan":
        return {
            **common,
            "encoder_attention_mask": torch.ones(batch, 6),
            "pooled_projections": text[:, 0, :8],
            "guidance": torch.full((batch,), 6000.0),
        }
    if name == "ltx":
        return {
            **common,
            "hidden_states": x.flatten(2).transpose(1, 2),
            "encoder_attention_mask": torch.ones(batch, 6),
            "num_frames": 3,
            "height": 8,
            "width": 8,
        }
    return common


MODELS = {"wan": wan, "cogvideox": cogvideox, "latte": latte, "hunyuan": hunyuan, "ltx": ltx}


def loop(model, name, *, steps=STEPS, cfg=True, batch=1, seed=0, heun=False, contexts=True, reset=True, fail_at=None):
    """A denoising loop as the stock pipelines write it: a context per call, hooks reset at the end."""
    x = seeded((batch, 4, 3, 8, 8), 10 + seed)
    texts = {"cond": seeded((batch, 6, 16), 1), "uncond": seeded((batch, 6, 16), 2)}
    calls = 0
    joined = name in ("cogvideox", "ltx", "latte")  # cond and uncond as one batch

    def velocity(x, t):
        nonlocal calls
        calls += 1
        if calls == fail_at:
            raise KeyboardInterrupt
        if joined:
            text = torch.cat([texts["uncond"], texts["cond"]]) if cfg else texts["cond"]
            inputs, context = torch.cat([x, x]) if cfg else x, "cond_uncond"
            with model.cache_context(context) if contexts and name != "latte" else torch.no_grad():
                out = model(**arguments(name, inputs, t, text))[0]
            outs = list(out.chunk(2))[::-1] if cfg else [out]
        else:
            outs = []
            for which in ("cond", "uncond") if cfg else ("cond",):
                with model.cache_context(which):
                    outs.append(model(**arguments(name, x, t, texts[which]))[0])
        v = outs[0] if len(outs) == 1 else outs[1] + 3 * (outs[0] - outs[1])
        if name == "ltx":
            v = v.transpose(1, 2)
        if name == "cogvideox":
            v = v.transpose(1, 2)
        return v.reshape(batch, -1, 3, 8, 8)[:, :4]

    grid = torch.linspace(1, 0, steps + 1)
    with torch.no_grad():
        for t, s in zip(grid[:-1], grid[1:], strict=True):
            v = velocity(x, t * 1000)
            if heun and s > 0:
                v = (v + velocity(x + (s - t) * v, s * 1000)) / 2
            x = x + (s - t) * v
    if reset:
        model._reset_stateful_cache()
    return x


def stack(models, name):
    return [block for block, _ in families.family_of(models[name], families.DIFFUSERS).stack(models[name])]


def stats_streams(name, run):
    return 2 if run.get("cfg", True) and name in ("wan", "hunyuan") else 1

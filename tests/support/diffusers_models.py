"""Some of `diffusers_transformers`, and the loop that calls them as the stock pipelines do."""

import torch

from foresight.hosts import blocks
from foresight.hosts.diffusers import families
from support.diffusers_transformers import (
    cogvideox,
    cogvideox_inputs,
    hunyuan,
    hunyuan_inputs,
    latte,
    ltx,
    ltx_inputs,
    seeded,
    wan,
)

STEPS = 12


def arguments(name, x, t, text):
    """The keyword arguments of the stock pipeline's call; `x` (B, 4, 3, 8, 8), `t` a number, `text` (B, 6, 16)."""
    timestep = torch.full((x.shape[0],), float(t))
    common = dict(hidden_states=x, timestep=timestep, encoder_hidden_states=text, return_dict=False)
    if name == "cogvideox":
        return {**common, "hidden_states": x.transpose(1, 2), **cogvideox_inputs()}
    if name == "hunyuan":
        return {**common, **hunyuan_inputs(text)}
    if name == "ltx":
        return {**common, "hidden_states": x.flatten(2).transpose(1, 2), **ltx_inputs(text)}
    return common


MODELS = {"wan": wan, "cogvideox": cogvideox, "latte": latte, "hunyuan": hunyuan, "ltx": ltx}


def loop(model, name, *, steps=STEPS, cfg=True, batch=1, seed=0, heun=False, contexts=True, reset=True, fail_at=None):
    """A denoising loop as the stock pipelines write it: a context per call, hooks reset at the end."""
    x = seeded(batch, 4, 3, 8, 8, seed=10 + seed)
    texts = {"cond": seeded(batch, 6, 16, seed=1), "uncond": seeded(batch, 6, 16, seed=2)}
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
    return [block for block, _ in blocks.family_of(models[name], families.FAMILIES).stack(models[name])]


def stats_streams(name, run):
    return 2 if run.get("cfg", True) and name in ("wan", "hunyuan") else 1

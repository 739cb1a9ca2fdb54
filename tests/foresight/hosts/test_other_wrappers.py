"""Wrappers of other packs around and inside ours that pass every argument by name, as core's functions call them."""

import inspect

import pytest
import torch

pytest.importorskip("comfy", reason="ComfyUI is not installed here")

import comfy.patcher_extension

from foresight import ForecastConfig, PaperConfig
from foresight.hosts.comfyui import apply_foresight, timer
from support.comfy_models import sample

WrappersMP = comfy.patcher_extension.WrappersMP
KINDS = [
    *("OUTER_SAMPLE", "PREDICT_NOISE", "CALC_COND_BATCH", "APPLY_MODEL", "DIFFUSION_MODEL", "PREPARE_SAMPLING"),
]


def by_name(executor, *args, **kwargs):
    """Call what is behind with names for all arguments that have one."""
    bound = inspect.signature(executor.original).bind(*args, **kwargs)
    named, rest = {}, ()
    for name, value in bound.arguments.items():
        kind = bound.signature.parameters[name].kind
        if kind is inspect.Parameter.VAR_KEYWORD:
            named |= value
        elif kind is inspect.Parameter.VAR_POSITIONAL:
            rest = value
        else:
            named[name] = value
    return executor(*args, **kwargs) if rest else executor(**named)


def with_wrapper(patcher, kind):
    patched = patcher.clone()
    patched.add_wrapper_with_key(getattr(WrappersMP, kind), "another pack", by_name)
    return patched


@pytest.mark.parametrize("config", [ForecastConfig(threshold=2.0), PaperConfig(threshold=2.0)])
@pytest.mark.parametrize("first", ["ours", "theirs"])
@pytest.mark.parametrize("kind", KINDS)
def test_arguments_by_name(models, runs, kind, first, config):
    model = models["wan"]
    want = sample(model, apply_foresight(model.patcher, config))
    if first == "ours":
        patched = with_wrapper(timer.apply_timer(apply_foresight(model.patcher, config)), kind)
    else:
        patched = timer.apply_timer(apply_foresight(with_wrapper(model.patcher, kind), config))
    assert torch.equal(sample(model, patched), want)
    assert runs[-1].reused == runs[-2].reused > 0 and len(timer.seconds_on(patched)) == 1

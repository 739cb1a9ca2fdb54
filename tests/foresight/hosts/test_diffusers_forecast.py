"""The method "forecast" in diffusers, in the loop of `diffusers_models`."""

import pytest
import torch

pytest.importorskip("diffusers", reason="diffusers is not installed here")

from foresight import ForecastConfig
from support.diffusers_models import arguments, loop, seeded, stack

NOTHING = ForecastConfig(threshold=1e-12)
MUCH = ForecastConfig(threshold=2.0)


@pytest.mark.parametrize("run", [{}, {"batch": 2}, {"cfg": False}, {"heun": True}], ids=str)
def test_measuring_changes_nothing(transformers, name, applied, run):
    plain = loop(transformers[name], name, **run)
    handle = applied(NOTHING)
    assert torch.equal(loop(transformers[name], name, **run), plain)
    assert handle.stats.reused == 0 and handle.stats.total and handle.stats.peak_bytes


def test_what_is_left_out_calls_no_block_and_what_is_computed_calls_all(transformers, name, applied):
    calls = [0]

    def count(*_):
        calls[0] += 1

    hook = stack(transformers, name)[0].register_forward_pre_hook(count)
    handle = applied(MUCH, steps=60)
    out = loop(transformers[name], name, steps=60)
    hook.remove()
    evaluations = handle.stats.evaluations
    computed = [e for e in evaluations if sum(e.computed)]
    assert 0 < len(computed) < len(evaluations) == 60
    assert calls[0] == sum(e.computed[0] for e in evaluations)
    assert all(sum(e.reused) == sum(computed[0].computed) for e in evaluations if e not in computed)
    assert all(sum(e.computed) for e in evaluations[-2:]) and torch.isfinite(out).all()


def test_two_runs_in_a_row_and_one_after_an_interrupt_are_each_as_alone(transformers, name, applied):
    plain = loop(transformers[name], name)
    handle = applied(MUCH, steps=12)
    first = loop(transformers[name], name)
    assert torch.equal(loop(transformers[name], name), first)
    with pytest.raises(KeyboardInterrupt):
        loop(transformers[name], name, fail_at=7)
    assert torch.equal(loop(transformers[name], name), first)
    handle.remove()
    assert torch.equal(loop(transformers[name], name), plain)


@pytest.mark.parametrize("return_dict", [False, True])
def test_a_forecast_has_the_form_of_the_result(transformers, name, applied, return_dict):
    applied(MUCH, steps=60)
    kinds = set()
    with torch.no_grad():
        for i in range(6):
            x = seeded(1, 4, 3, 8, 8, seed=3)  # nothing changes: what can be left out is
            kwargs = arguments(name, x, 900 - 30 * i, seeded(1, 6, 16, seed=1))
            with transformers[name].cache_context("cond"):
                result = transformers[name](**{**kwargs, "return_dict": return_dict})
            kinds.add((type(result), result[0].shape))
    assert len(kinds) == 1
    transformers[name]._reset_stateful_cache()

"""The method "forecast" in diffusers, in the loop of `diffusers_models`."""

import pytest
import torch

pytest.importorskip("diffusers", reason="diffusers is not installed here")

from foresight.engine import ForesightConfig
from foresight.hosts.diffusers import apply_foresight
from support.diffusers_models import MODELS, arguments, loop, seeded, stack

NOTHING = ForesightConfig(method="forecast", threshold=1e-12)
MUCH = ForesightConfig(method="forecast", threshold=2.0)


@pytest.fixture(scope="module")
def models():
    built = {}
    for name, make in MODELS.items():
        torch.manual_seed(0)
        built[name] = make().eval().requires_grad_(False)
        g = torch.Generator().manual_seed(1)
        for p in built[name].parameters():
            p.data = torch.randn(p.shape, generator=g) * 0.1
    return built


@pytest.fixture(params=MODELS)
def name(request):
    return request.param


@pytest.fixture
def applied(models, name):
    handles = []

    def apply(config, **options):
        handles.append(apply_foresight(models[name], config, **options))
        return handles[-1]

    yield apply
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize("run", [{}, {"batch": 2}, {"cfg": False}, {"heun": True}], ids=str)
def test_measuring_changes_nothing(models, name, applied, run):
    plain = loop(models[name], name, **run)
    handle = applied(NOTHING)
    assert torch.equal(loop(models[name], name, **run), plain)
    assert handle.stats.reused == 0 and handle.stats.total and handle.stats.peak_bytes


def test_what_is_left_out_calls_no_block_and_what_is_computed_calls_all(models, name, applied):
    calls = [0]

    def count(*_):
        calls[0] += 1

    hook = stack(models, name)[0].register_forward_pre_hook(count)
    handle = applied(MUCH, steps=60)
    out = loop(models[name], name, steps=60)
    hook.remove()
    evaluations = handle.stats.evaluations
    computed = [e for e in evaluations if sum(e.computed)]
    assert 0 < len(computed) < len(evaluations) == 60
    assert calls[0] == sum(e.computed[0] for e in evaluations)
    assert all(sum(e.reused) == sum(computed[0].computed) for e in evaluations if e not in computed)
    assert all(sum(e.computed) for e in evaluations[-2:]) and torch.isfinite(out).all()


def test_two_runs_in_a_row_and_one_after_an_interrupt_are_each_as_alone(models, name, applied):
    plain = loop(models[name], name)
    handle = applied(MUCH, steps=12)
    first = loop(models[name], name)
    assert torch.equal(loop(models[name], name), first)
    with pytest.raises(KeyboardInterrupt):
        loop(models[name], name, fail_at=7)
    assert torch.equal(loop(models[name], name), first)
    handle.remove()
    assert torch.equal(loop(models[name], name), plain)


@pytest.mark.parametrize("return_dict", [False, True])
def test_a_forecast_has_the_form_of_the_result(models, name, applied, return_dict):
    applied(MUCH, steps=60)
    kinds = set()
    with torch.no_grad():
        for i in range(6):
            x = seeded((1, 4, 3, 8, 8), 3)  # nothing changes: what can be left out is
            kwargs = arguments(name, x, 900 - 30 * i, seeded((1, 6, 16), 1))
            with models[name].cache_context("cond"):
                result = models[name](**{**kwargs, "return_dict": return_dict})
            kinds.add((type(result), result[0].shape))
    assert len(kinds) == 1
    models[name]._reset_stateful_cache()

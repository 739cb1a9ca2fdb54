"""Every family in diffusers on a tiny random instance."""

import pytest
import torch

pytest.importorskip("diffusers", reason="diffusers is not installed here")

from foresight import ForecastConfig, PaperConfig
from foresight.hosts import blocks
from foresight.hosts.diffusers import families
from support import contract
from support.diffusers_run import Plain, Run, check_forecast, forecast_runs
from support.diffusers_transformers import TRANSFORMERS, sana_wm_refiner
from support.told import computes


@pytest.fixture(scope="module", params=TRANSFORMERS, ids=lambda make: make.__name__)
def transformer(request):
    return request.param()


def stack_of(transformer):
    return blocks.family_of(transformer.model, families.FAMILIES).stack(transformer.model)


def test_measuring_changes_nothing(transformer):
    active = Run(transformer, PaperConfig(threshold=1e-12, warmup_steps=3))
    contract.check_measuring(stack_of(transformer), Plain(transformer), active, active.end)


@pytest.mark.parametrize("kind", ["output", "residual"])
@pytest.mark.parametrize("interval", [2, 3])
def test_reuse_is_what_a_network_with_stubs_gives(transformer, kind, interval):
    config = PaperConfig(threshold=2.0, warmup_steps=3, sample_rows=0, cache_kind=kind, reuse_interval=interval)
    active = Run(transformer, config)
    contract.check_reuse(transformer.model, stack_of(transformer), Plain(transformer), active, active.end, kind)


ALL = computes(range(contract.FORECAST_STEPS))  # a plan that would leave steps out, and a policy that computes them


@pytest.mark.parametrize("config", [ForecastConfig(threshold=0), ForecastConfig(threshold=1e-12), ALL], ids=str)
def test_no_forecast_is_the_plain_result(transformer, config):
    plain, active = forecast_runs(transformer, config, return_dict=True)
    stats = contract.check_no_forecast(transformer.model, stack_of(transformer), plain, active, active.end)
    assert (stats.inactive is None) == (config is ALL)


@pytest.mark.parametrize("return_dict", [False, True])
def test_a_forecast_takes_the_place_of_the_whole_model(transformer, return_dict):
    family = blocks.family_of(transformer.model, families.FAMILIES)
    check_forecast(transformer, family, stack_of(transformer), return_dict)


def test_blocks_that_write_a_kv_cache_always_run():
    from diffusers.models.transformers.transformer_sana_wm_refiner import SanaWMRefinerKVCache

    transformer = sana_wm_refiner(kv_cache=SanaWMRefinerKVCache(4))
    for config in (PaperConfig(threshold=2.0), ForecastConfig(threshold=2.0)):
        plain, active = Plain(transformer), Run(transformer, config)
        for step in range(contract.STEPS):
            assert torch.equal(active(step)[0], plain(step)[0])
        assert active.end() is None  # not even a run


def test_every_family_has_a_transformer():
    covered = {blocks.family_of(make().model, families.FAMILIES).name for make in TRANSFORMERS}
    assert covered == {family.name for family in families.FAMILIES}


def test_what_xfuser_makes_of_a_class_is_that_class():
    """Classes of these names, with xfuser's way of splitting in their forward; here they are empty."""
    names = [name for family in families.FAMILIES for name in family.also]
    assert len(names) == 6
    for family in families.FAMILIES:
        for name in family.also:
            module, _, cls = name.rpartition(".")
            assert module.startswith("xfuser.") and cls.startswith("xFuser")
            made = type(cls, (torch.nn.Module,), {"__module__": module})
            assert blocks.family_of(made(), families.FAMILIES) is family
            with pytest.raises(blocks.UnsupportedModel, match=cls):
                blocks.family_of(type(cls, (torch.nn.Module,), {})(), families.FAMILIES)

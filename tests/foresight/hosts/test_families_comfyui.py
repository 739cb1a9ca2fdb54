"""Every family in ComfyUI on a tiny random instance, called as its sampling code nests the calls."""

import importlib

import pytest
import torch

pytest.importorskip("comfy", reason="ComfyUI is not installed here")

import comfyui_version

from foresight import ForecastConfig, PaperConfig
from foresight.hosts import blocks
from foresight.hosts.comfyui import families
from support import contract
from support.comfy_networks import NETWORKS, wan_causal
from support.comfy_run import PackedRun, Run
from support.told import computes

ALL = computes(range(contract.FORECAST_STEPS))  # a plan that would leave steps out, and a policy that computes them


@pytest.fixture(scope="module", params=NETWORKS, ids=lambda make: make.__name__)
def network(request):
    try:
        return request.param()
    except ImportError as error:
        pytest.skip(f"this ComfyUI has no {request.param.__name__}: {error}")


def stack_of(network):
    return blocks.family_of(network.model, families.FAMILIES).stack(network.model)


def test_blocks_that_are_said_to_write_in_place_give_back_what_entered_them(network):
    seen, stack = [], stack_of(network)

    class Call:
        held_bytes = 0

        def block(self, index, inputs, compute, join=None, in_place=False):
            output = compute()
            if in_place:
                seen.append(all(a is b for a, b in zip(inputs, output, strict=True)))
            return output

    with torch.no_grad(), blocks.Swapped(stack, Call()):
        Run(network)(0)
    assert all(seen) and len(seen) == sum(section.in_place for _, section in stack)


def test_measuring_changes_nothing(network):
    active = Run(network, PaperConfig(threshold=1e-12, warmup_steps=3))
    contract.check_measuring(stack_of(network), Run(network), active, active.run.end)


@pytest.mark.parametrize("kind", ["output", "residual"])
@pytest.mark.parametrize("interval", [2, 3])
def test_reuse_is_what_a_network_with_stubs_gives(network, kind, interval):
    active = Run(
        network,
        PaperConfig(threshold=2.0, warmup_steps=3, sample_rows=0, cache_kind=kind, reuse_interval=interval),
    )
    contract.check_reuse(network.model, stack_of(network), Run(network), active, active.run.end, kind)


@pytest.mark.parametrize("config", [ForecastConfig(threshold=0), ForecastConfig(threshold=1e-12), ALL], ids=str)
def test_no_forecast_is_the_plain_result(network, config):
    active = PackedRun(network, config)
    plain = PackedRun(network)
    stats = contract.check_no_forecast(network.model, stack_of(network), plain, active, active.run.end)
    assert (stats.inactive is None) == (config is ALL)


def test_a_forecast_takes_the_place_of_the_whole_model(network):
    active = PackedRun(network, ForecastConfig(threshold=2.0))
    contract.check_forecast(network.model, stack_of(network), PackedRun(network), active, active.run.end)


@pytest.mark.parametrize(
    "config",
    [
        PaperConfig(threshold=2.0),
        ForecastConfig(threshold=2.0),
    ],
    ids=lambda config: config.name,
)
def test_blocks_that_write_a_kv_cache_always_run(config):
    """What ComfyUI's sampler `ar_video` does: each evaluation writes its tokens to a cache that later frames read."""
    try:
        model = (network := wan_causal()).model
    except ImportError as error:
        pytest.skip(f"this ComfyUI has no wan_causal: {error}")
    caches = {"kv_caches": model.init_kv_caches(1, 12, "cpu", torch.float32)}
    caches["crossattn_caches"] = model.init_crossattn_caches(1, "cpu", torch.float32)
    plain, active = PackedRun(network), PackedRun(network, config)
    for step in range(contract.FORECAST_STEPS):
        outputs = []
        for run in (plain, active):
            model.reset_kv_caches(caches["kv_caches"])
            outputs.append(run(step, ar_state={"start_frame": 0, **caches}))
            assert all(cache["end"] == 12 for cache in caches["kv_caches"])
        assert torch.equal(*outputs)
    assert active.run.end().reused == 0


def test_every_family_has_a_network():
    covered = set()
    for make in NETWORKS:
        try:
            covered.add(blocks.family_of(make().model, families.FAMILIES).name)
        except ImportError:
            pass
    assert covered == {family.name for family in families.FAMILIES if exists(family.model)}


def exists(name: str) -> bool:
    """Whether this ComfyUI has the class; the newest has them all."""
    module, _, cls = name.rpartition(".")
    try:
        return hasattr(importlib.import_module(module), cls) or version_at_least(0, 33)
    except ModuleNotFoundError:
        return version_at_least(0, 33)


def version_at_least(*wanted: int) -> bool:
    return tuple(int(part) for part in comfyui_version.__version__.split(".")[:2]) >= wanted

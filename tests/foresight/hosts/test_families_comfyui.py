"""Every family in ComfyUI on a tiny random instance, called as its sampling code nests the calls."""

import importlib

import pytest

pytest.importorskip("comfy", reason="ComfyUI is not installed here")

import comfyui_version

from foresight.hosts import families
from support import contract
from support.comfy_networks import NETWORKS
from support.comfy_run import Run
from support.toy import paper


@pytest.fixture(scope="module", params=NETWORKS, ids=lambda make: make.__name__)
def network(request):
    try:
        return request.param()
    except ImportError as error:
        pytest.skip(f"this ComfyUI has no {request.param.__name__}: {error}")


def stack_of(network):
    return families.family_of(network.model, families.COMFYUI).stack(network.model)


def test_measuring_changes_nothing(network):
    active = Run(network, paper(threshold=1e-12, warmup_steps=3))
    contract.check_measuring(stack_of(network), Run(network), active, active.run.end)


@pytest.mark.parametrize("kind", ["output", "residual"])
@pytest.mark.parametrize("interval", [2, 3])
def test_reuse_is_what_a_network_with_stubs_gives(network, kind, interval):
    active = Run(
        network,
        paper(threshold=2.0, warmup_steps=3, sample_rows=0, cache_kind=kind, reuse_interval=interval),
    )
    contract.check_reuse(network.model, stack_of(network), Run(network), active, active.run.end, kind)


def test_every_family_has_a_network():
    covered = set()
    for make in NETWORKS:
        try:
            covered.add(families.family_of(make().model, families.COMFYUI).name)
        except ImportError:
            pass
    assert covered == {family.name for family in families.COMFYUI if exists(family.model)}


def exists(name: str) -> bool:
    """Whether this ComfyUI has the class; the newest has them all."""
    module, _, cls = name.rpartition(".")
    try:
        return hasattr(importlib.import_module(module), cls) or version_at_least(0, 33)
    except ModuleNotFoundError:
        return version_at_least(0, 33)


def version_at_least(*wanted: int) -> bool:
    return tuple(int(part) for part in comfyui_version.__version__.split(".")[:2]) >= wanted

"""The method "paper" in workflows that today's caches get wrong, each through ComfyUI's own sampling code.

In every one of them measuring alone changes no bit, and with reuse the result is that of `reference_prefix.Reference`.
"""

import pytest
import torch

pytest.importorskip("comfy", reason="ComfyUI is not installed here")

from foresight import PaperConfig
from foresight.hosts.comfyui import apply_foresight
from support.comfy_models import sample
from support.reference_prefix import Reference
from support.situations import SITUATIONS, WARMUP, context_windows

NOTHING = PaperConfig(threshold=1e-12)
GAMMA, INTERVAL = 2.0, 3
MUCH = PaperConfig(threshold=GAMMA, warmup_steps=WARMUP, reuse_interval=INTERVAL, sample_rows=0)


@pytest.fixture(params=SITUATIONS)
def case(request, models):
    workflow, name, warmup, reuses = SITUATIONS[request.param]
    return workflow, models[name], warmup, reuses


@pytest.fixture(scope="module")
def plains():
    """Plain results of this file's tests, by workflow."""
    return {}


@pytest.fixture
def plain(case, plains):
    workflow, model, *_ = case
    if workflow not in plains:
        plains[workflow] = workflow(model, lambda patcher: patcher)
    return plains[workflow]


def test_measuring_changes_nothing(case, plain, runs):
    workflow, model, _, reuses = case
    assert torch.isfinite(plain).all()
    assert torch.equal(workflow(model, lambda patcher: apply_foresight(patcher, NOTHING)), plain)
    assert runs and not any(stats.reused for stats in runs)
    for stats in runs if reuses else ():
        assert stats.inactive is None and any(any(e.ratio) for e in stats.evaluations)


def test_reuse_gives_what_the_reference_gives(case, plain, runs):
    workflow, model, warmup, reuses = case
    ours = workflow(model, lambda patcher: apply_foresight(patcher, MUCH))
    if runs[0].inactive and runs[0].inactive.startswith("an adaptive sampler"):
        assert torch.equal(ours, plain) and not runs[0].reused
        return
    if warmup is None:  # known only when the run is over
        warmup = next(i for i, e in enumerate(runs[0].evaluations) if e.kind != "warmup")
    for stats in runs:
        assert sum(e.kind == "warmup" for e in stats.evaluations) == warmup or not reuses
        assert reuses is None or bool(stats.reused) == reuses
    reference = Reference(GAMMA, warmup, INTERVAL)
    expected = workflow(model, reference)
    assert sum(stats.reused for stats in runs) == reference.reused
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)
    if reuses:
        assert not torch.equal(ours, plain)


def test_two_nodes_with_settings_of_their_own_on_two_branches(models, runs):
    model = models["wan"]
    settings = [MUCH, PaperConfig(threshold=0.7, warmup_steps=4, sample_rows=0)]
    alone = [sample(model, apply_foresight(model.patcher, config)) for config in settings]
    branches = [apply_foresight(model.patcher, config) for config in settings]
    for turn in (0, 1, 1, 0):
        assert torch.equal(sample(model, branches[turn]), alone[turn])
    assert not torch.equal(*alone)
    assert [stats.config for stats in runs[2:]] == [settings[turn] for turn in (0, 1, 1, 0)]


def test_another_resolution_in_the_next_run(models, runs):
    model = models["ltxv"]
    patched, wide = apply_foresight(model.patcher, MUCH), torch.zeros(1, 128, 3, 4, 8)
    first, second = sample(model, patched), sample(model, patched, latent=wide)
    assert torch.equal(second, sample(model, apply_foresight(model.patcher, MUCH), latent=wide))
    assert torch.equal(sample(model, patched), first)
    assert all(stats.reused for stats in runs) and runs[1].peak_bytes == 2 * runs[0].peak_bytes


def test_moving_windows_say_why_nothing_is_reused(models, runs):
    context_windows(models["wan"], lambda patcher: apply_foresight(patcher, MUCH), "standard_uniform")
    (stats,) = runs
    if not stats.reused:
        assert "moving context windows" in stats.summary()
    bound = 4 * 2 * (1 + len(models["wan"].stack)) * 5 * 4 * 48 * 4  # four windows of 5 frames of 4 tokens, two conds
    assert 0 < stats.peak_bytes <= 2 * bound  # those of the last evaluation and of this one

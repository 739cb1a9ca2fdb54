"""ComfyUI's own MultiGPU CFG Split: one process, a worker thread per GPU, each with a cond. Here the GPUs are CPUs."""

import threading

import pytest
import torch

pytest.importorskip("comfy", reason="ComfyUI is not installed here")
multigpu = pytest.importorskip("comfy.multigpu", reason="this ComfyUI samples on one GPU")

import comfy.sampler_helpers

from foresight import ForecastConfig, PaperConfig
from foresight.hosts.comfyui import apply_foresight
from support.comfy_models import MODELS, sample

STEPS = 20


@pytest.fixture
def split(monkeypatch):
    """From here on a model is on two devices; what was sent to each, by evaluation of the sampler."""
    second, sent = MODELS["wan"]().patcher, []

    def clones(patcher, loaded, model_options):
        other = second.clone()
        other.load_device = torch.device("cpu", 1)
        model_options["multigpu_clones"] = {patcher.load_device: patcher, other.load_device: other}
        return [other]

    submit = multigpu.MultiGPUThreadPool.submit

    def counted(self, device, function, *args, **kwargs):
        def work():
            sent.append((str(device), threading.current_thread() is not threading.main_thread()))
            return function(*args, **kwargs)

        submit(self, device, work)

    monkeypatch.setattr(comfy.sampler_helpers, "prepare_model_patcher_multigpu_clones", clones)
    monkeypatch.setattr(multigpu.MultiGPUThreadPool, "submit", counted)
    return sent


@pytest.mark.parametrize("sampler", ["euler", "res_multistep"])
def test_an_evaluation_that_is_left_out_sends_nothing_to_any_gpu(runs, request, sampler):
    model = MODELS["wan"]()
    config = ForecastConfig(threshold=1.0)
    alone = sample(model, apply_foresight(model.patcher, config), steps=STEPS, sampler=sampler)
    sent = request.getfixturevalue("split")
    plain = sample(model, steps=STEPS, sampler=sampler)
    assert sorted(sent) == STEPS * [("cpu", True)] + STEPS * [("cpu:1", True)]  # a cond each, in threads
    sent.clear()
    out = sample(model, apply_foresight(model.patcher, config), steps=STEPS, sampler=sampler)
    one, two = runs
    computed = [e for e in two.evaluations if e.kind != "reuse"]
    assert [e.kind for e in one.evaluations] == [e.kind for e in two.evaluations] and len(computed) < STEPS
    assert len(sent) == 2 * len(computed) and two.restarts == one.restarts
    torch.testing.assert_close(out, alone, rtol=1e-4, atol=1e-5)  # conds one by one instead of in a batch
    assert not torch.equal(out, plain)


def test_blocks_are_reused_for_each_cond_in_its_thread(runs, split):
    model, config = MODELS["wan"](), PaperConfig(threshold=2.0, warmup_steps=3, sample_rows=0)
    plain = sample(model, steps=STEPS)
    sent = len(split)
    out = sample(model, apply_foresight(model.patcher, config), steps=STEPS)
    assert len(split) == 2 * sent == 4 * STEPS  # no call of the model is left out
    (stats,) = runs
    assert stats.reused and stats.total == STEPS * 2 * len(model.stack) and stats.inactive is None
    assert torch.isfinite(out).all() and not torch.equal(out, plain)


def test_nothing_that_qualifies_is_the_plain_result(runs, split):
    model = MODELS["wan"]()
    plain = sample(model, steps=8)
    for config in (ForecastConfig(threshold=1e-12), PaperConfig(threshold=1e-12, warmup_steps=3)):
        assert torch.equal(sample(model, apply_foresight(model.patcher, config), steps=8), plain)

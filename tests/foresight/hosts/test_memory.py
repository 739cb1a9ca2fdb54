"""What a run holds: planned before, within a budget, and given back."""

import contextlib
import logging
import threading

import pytest
import torch

pytest.importorskip("comfy", reason="ComfyUI is not installed here")

import comfy.model_management

from foresight import ForecastConfig, PaperConfig
from foresight.engine.moves import Track
from foresight.engine.tape import Tape
from foresight.hosts import blocks, comfyui
from foresight.hosts.comfyui import apply_foresight, families, memory
from support.comfy_models import MODELS, sample
from support.comfy_networks import ltx_2, wan
from support.comfy_run import Run
from support.contract import STEPS
from support.left import no_tensor_left

MUCH = PaperConfig(threshold=2.0, warmup_steps=3, sample_rows=0)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("cfg", [1.0, 3.0])
def test_the_plan_is_what_is_held_but_for_the_text(models, name, cfg, runs, monkeypatch):
    asked, model = [], models[name]
    original = comfy.model_management.load_models_gpu

    def load_models_gpu(*args, **kwargs):
        asked.append(kwargs["minimum_memory_required"])
        return original(*args, **kwargs)

    monkeypatch.setattr(comfy.model_management, "load_models_gpu", load_models_gpu)
    factor = model.patcher.model.memory_usage_factor
    sample(model, cfg=cfg)
    sample(model, apply_foresight(model.patcher, MUCH), cfg=cfg)
    assert model.patcher.model.memory_usage_factor == factor
    family = blocks.family_of(model.patcher.model.diffusion_model, families.FAMILIES)
    _, tokens, width = family.hidden_shape(model.patcher.model.diffusion_model, tuple(model.latent(1).shape))
    states = (1 + len(model.stack)) * (1 if cfg == 1.0 else 2)  # fp32; exact samples are hidden states too
    assert asked[1] - asked[0] == pytest.approx(states * tokens * width * 4, rel=1e-3)
    assert asked[1] - asked[0] <= runs[0].peak_bytes * 1.01
    text = {"wan": 0, "ltxv": 0, "hunyuan": 6, "cogvideox": 6}[name]
    assert runs[0].peak_bytes == pytest.approx(states * (tokens + text) * width * 4, rel=0.02)


def test_the_plan_is_logged_before_the_first_evaluation(models, caplog):
    with caplog.at_level(logging.INFO, logger=comfyui.__name__):
        sample(models["wan"], apply_foresight(models["wan"].patcher, MUCH))
    first, last = [r.getMessage() for r in caplog.records if r.name == comfyui.__name__]
    assert first == "Foresight: at most 5 of 14 steps can be reused, about 0.0 MiB will be held"
    assert last.startswith("Foresight left out")


def test_a_short_device_moves_hidden_states_to_ram_then_ends_reuse(models, runs, monkeypatch):
    """A stream of this LTX-Video has 48 tokens of 48 floats: 9216 bytes a slot, 4 times that in exact samples."""
    model, slot = models["ltxv"], 48 * 48 * 4
    plain = sample(model, tokens=(6, 4))  # two calls, so that one slot at a time is on the device
    reused = sample(model, apply_foresight(model.patcher, MUCH), tokens=(6, 4))
    for free, in_ram, active in ((10 * slot, False, True), (9 * slot, True, True), (9 * slot - 1, False, False)):
        monkeypatch.setattr(memory, "budget", lambda *_, f=free: (f, 2 * slot))
        out = sample(model, apply_foresight(model.patcher, MUCH), tokens=(6, 4))
        assert runs[-1].in_ram == in_ram
        assert torch.equal(out, reused if active else plain)
        assert (runs[-1].inactive is None) == active
    assert "the stored features of 2 streams need" in runs[-1].inactive


def test_the_budget_is_what_the_first_evaluation_left_free(models, monkeypatch):
    """A device with 10 GB free of which 4 GB are in torch's pool, and 1 GB that ComfyUI keeps for others."""
    seen = []
    monkeypatch.setattr(comfy.model_management, "extra_reserved_memory", lambda: 10**9)
    monkeypatch.setattr(
        comfy.model_management,
        "get_free_memory",
        lambda device, torch_free_too=False: (10 * 10**9, 4 * 10**9) if torch_free_too else 64 * 10**9,
    )
    seen = [memory.budget(MUCH, torch.device("cuda"), after_first, 0) for after_first in (False, True)]
    assert seen == [(5 * 10**9, 32 * 10**9), (5 * 10**9, 32 * 10**9)]
    assert memory.budget(MUCH, torch.device("cuda"), True, 10**9)[0] == 6 * 10**9  # what is stored is not free twice
    limited = PaperConfig(cache_budget_gb=1.5)
    assert memory.budget(limited, torch.device("cuda"), True, 0) == (1.5 * 2**30, 32 * 10**9)


METHODS = {
    "paper": (MUCH, "euler"),
    "forecast": (ForecastConfig(threshold=2.0), "euler"),
    "forecast, replayed": (ForecastConfig(threshold=2.0), "res_multistep"),
}


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_runs_leave_no_tensor_behind(models, runs, method, fails):
    (config, sampler), model = METHODS[method], models["wan"]
    patched = apply_foresight(model.patcher, config)

    def stop(step, *_):
        if fails and step == 6:
            raise RuntimeError

    def once():
        with pytest.raises(RuntimeError) if fails else contextlib.nullcontext():
            sample(model, patched, steps=14, sampler=sampler, callback=stop)

    once()
    with no_tensor_left():
        for _ in range(5):
            once()
    assert all(stats.reused for stats in runs) and len(runs) == 6


@pytest.mark.parametrize(
    ("owner", "step"), [(Track, "measure"), (Track, "arrive"), (Tape, "answer"), (Tape, "_answer")]
)
def test_a_run_that_has_no_memory_to_look_at_its_latent_goes_on(runs, monkeypatch, owner, step):
    """Whatever is allocated for our own use may fail; the video is made all the same."""
    model, original, calls = MODELS["wan"](), getattr(owner, step), []

    def failing(*args):
        calls.append(step)
        if len(calls) == 6:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(*args)

    patcher, how = (
        apply_foresight(model.patcher, ForecastConfig(threshold=2.0)),
        {"sampler": "res_multistep", "steps": 20},
    )
    plain = sample(model, **how)
    with monkeypatch.context() as patch:
        patch.setattr(owner, step, failing)
        ours = sample(model, patcher, **how)
    assert len(calls) >= 6 and "out of memory" in runs[-1].inactive and runs[-1].evaluations[-1].kind == "plain"
    assert ((ours - plain).norm() / plain.norm()).item() < 0.05
    sample(model, patcher, **how)
    assert runs[-1].reused and not runs[-1].inactive


def test_outputs_that_are_no_numbers_are_called_so(runs):
    model = MODELS["wan"]()
    calls = []

    def overflows(apply_model, args):
        calls.append(1)
        return apply_model(args["input"], args["timestep"], **args["c"]) * (float("nan") if len(calls) == 1 else 1.0)

    patcher = model.patcher.clone()
    patcher.set_model_unet_function_wrapper(overflows)
    sample(model, apply_foresight(patcher, ForecastConfig(threshold=2.0)), sampler="res_multistep", steps=20)
    assert "not finite" in runs[-1].uncorrected


def test_weights_of_skipped_blocks_are_not_prefetched(models):
    """LTX-2 and MiniMax H3 fetch the next block's weights whether or not the block runs; in reuse evaluations not."""
    for make, switches in ((ltx_2, True), (wan, False)):
        network, seen = make(), []
        call = network.call
        network.call = lambda x, options, call=call, seen=seen: (seen.append(options), call(x, options))[1]
        run = Run(network, MUCH)
        for step in range(STEPS):
            run(step, prefetch_dynamic_vbars=True)
        kinds = [e.kind for e in run.run.end().evaluations]
        assert [options["prefetch_dynamic_vbars"] for options in seen] == [
            not (switches and kind == "reuse") for kind in kinds
        ]


def test_two_devices_at_once_share_no_state(runs):
    """ComfyUI's multi-GPU sampling runs conds in worker threads, each with a model of its own."""
    multigpu = pytest.importorskip("comfy.multigpu", reason="this ComfyUI samples on one GPU")
    networks = [wan(), wan()]
    alone = []
    for network in networks:
        run = Run(network, MUCH)
        alone.append([run(step).clone() for step in range(STEPS)])
        run.run.end()

    shared = Run(networks[0], MUCH)
    workers = [Run(network) for network in networks]
    for worker in workers:
        worker.options = shared.options
    devices = [torch.device("cpu", i) for i in range(2)]
    pool = multigpu.MultiGPUThreadPool(devices)

    def work(worker, step):
        barrier.wait()
        with torch.inference_mode():
            return worker.call_model(step)

    barrier = threading.Barrier(2)
    for step in range(STEPS):
        shared.begin_evaluation(step)
        shared.run._calc_cond_batch(lambda: None)
        for device, worker in zip(devices, workers, strict=True):
            pool.submit(device, work, worker, step)
        for device, expected in zip(devices, alone, strict=True):
            result, error = pool.get_result(device)
            assert error is None and torch.equal(result, expected[step])
    pool.shutdown()
    stats = shared.run.end()
    assert stats.reused and stats.total == 2 * STEPS * 4

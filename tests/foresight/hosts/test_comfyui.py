import ast
import gc
import logging
import os
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import torch

pytest.importorskip("comfy", reason="ComfyUI is not installed here")

import comfy.model_management
import comfy.patcher_extension

from foresight import PaperConfig
from foresight.hosts import blocks, comfyui
from foresight.hosts.comfyui import apply_foresight, families, live, memory
from foresight.hosts.comfyui import run as comfy_run
from support import comfy_models
from support.comfy_models import MODELS, sample

NOTHING = PaperConfig(threshold=1e-12)  # active, measured, and no block ever qualifies
MUCH = PaperConfig(threshold=2.0, warmup_steps=3, sample_rows=0)


@pytest.fixture(params=MODELS)
def model(request, models):
    return models[request.param]


def patched(model, config):
    return apply_foresight(model.patcher, config)


def assert_unpatched(model):
    assert not any("forward" in block.__dict__ for block in model.stack)
    assert not [w for w in model.patcher.wrappers.values() if comfyui.KEY in w]


@pytest.mark.parametrize("config", [PaperConfig(threshold=0), PaperConfig(reuse_interval=1)])
def test_off_is_the_plain_result_and_no_wrapper(model, config, runs):
    off = patched(model, config)
    assert not [w for w in off.wrappers.values() if comfyui.KEY in w]
    assert torch.equal(sample(model, off), sample(model)) and not runs


@pytest.mark.parametrize("run", [{}, {"batch": 2}, {"tokens": (6, 4)}, {"cfg": 1.0}, {"sampler": "heun"}], ids=str)
def test_active_with_nothing_that_qualifies_is_the_plain_result(model, run, runs):
    assert torch.equal(sample(model, patched(model, NOTHING), **run), sample(model, **run))
    (stats,) = runs
    assert stats.reused == 0 and stats.inactive is None and stats.peak_bytes > 0
    measured = [ratio for e in stats.evaluations for ratio in e.ratio if ratio is not None]
    assert measured and min(measured) > 1  # it did measure
    assert_unpatched(model)


@pytest.mark.parametrize("off", [False, True])
def test_off_again_after_on(model, runs, off):
    plain = sample(model)
    sample(model, patched(model, MUCH))
    assert runs[0].reused
    assert torch.equal(sample(model, patched(model, PaperConfig(threshold=0))) if off else sample(model), plain)


class Watch:
    """Counts calls of the submodules of every block; keeps what entered and left each block, by evaluation."""

    def __init__(self, model, streams=1):
        self.inner, self.outputs, self.inputs = [], [], []
        self._depth, self._handles = len(model.stack), []
        for i, block in enumerate(model.stack):
            for child in block.modules():
                if child is not block:
                    self._handles.append(child.register_forward_pre_hook(lambda *_, i=i: self._count(i)))
            self._handles.append(
                block.register_forward_pre_hook(lambda b, a, k, i=i: self._enter(i, a, k), with_kwargs=True)
            )
            self._handles.append(block.register_forward_hook(lambda b, a, out, i=i: self._leave(i, out)))

    def _enter(self, i, args, kwargs):
        if i == 0:
            self.inner.append([0] * self._depth)
            self.outputs.append({})
            hidden = args[:1] or [
                kwargs[k] for k in ("img", "txt", "hidden_states", "encoder_hidden_states") if k in kwargs
            ]
            self.inputs.append([x.clone() for x in hidden])

    def _count(self, i):
        self.inner[-1][i] += 1

    def _leave(self, i, out):
        self.outputs[-1][i] = [x.clone() for x in (out if isinstance(out, tuple) else (out,))]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for handle in self._handles:
            handle.remove()


@pytest.mark.parametrize("interval", [2, 3])
@pytest.mark.parametrize("kind", ["output", "residual"])
@pytest.mark.parametrize("run", [{}, {"batch": 2}, {"cfg": 1.0}], ids=str)
def test_a_reused_prefix_is_skipped_and_replaced_by_what_it_gave_before(model, kind, interval, run, runs):
    config = PaperConfig(threshold=2.0, warmup_steps=3, sample_rows=0, cache_kind=kind, reuse_interval=interval)
    with Watch(model) as watch:
        sample(model, patched(model, config), **run)
    (stats,) = runs
    depths, stored = [], {}
    for e, evaluation in enumerate(stats.evaluations):
        depth = sum(1 for reused in evaluation.reused if reused) - 1
        depths.append(depth)
        assert [count > 0 for count in watch.inner[e]] == [block > depth for block in range(len(model.stack))]
        if depth >= 0:
            before = stored[depth]
            expected = watch.outputs[before][depth]
            if kind == "residual":
                now, then = watch.inputs[e], watch.inputs[before]
                if len(expected) < len(now):  # HunyuanVideo's single blocks: one sequence of text, then video
                    now, then = ([torch.cat(x[::-1], 1)] for x in (now, then))
                expected = [n + (x - t) for n, x, t in zip(now, expected, then, strict=True)]
            for got, want in zip(watch.outputs[e][depth], expected, strict=True):
                torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5 if kind == "residual" else 0)
        stored.update(dict.fromkeys(range(depth + 1, len(model.stack)), e))
    assert max(depths) >= 0
    assert stats.reused == sum(d + 1 for d in depths) * (1 if run.get("cfg") == 1.0 else 2)


@pytest.mark.parametrize("kind", ["output", "residual"])
def test_hunyuan_reuses_across_the_change_of_token_count(models, kind, runs):
    model = models["hunyuan"]
    sample(model, patched(model, PaperConfig(threshold=2.0, warmup_steps=3, sample_rows=0, cache_kind=kind)))
    assert any(evaluation.reused[4] for evaluation in runs[0].evaluations)  # blocks 0..2 are double, 3..5 single


@pytest.mark.parametrize("tokens", [(6, 6), (6, 4)], ids=["one call", "two calls"])
def test_cond_and_uncond_in_one_call_and_in_two(models, tokens, runs):
    model = models["ltxv"]  # text of unequal length is not padded: two calls
    calls = []

    def count(executor, *args, **kwargs):
        calls.append(args[0].shape[0])
        return executor(*args, **kwargs)

    counted = patched(model, MUCH)
    counted.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.APPLY_MODEL, "count", count)
    out = sample(model, counted, tokens=tokens, steps=14)
    assert calls == ([2] * 14 if tokens == (6, 6) else [1] * 28)
    assert runs[0].reused and runs[0].total == 14 * 2 * 4
    assert torch.isfinite(out).all()


def test_streams_in_two_calls_are_those_of_cfg_1(models):
    """At CFG 1 only the cond runs, alone.

    With cond and uncond in calls of their own, the first reuse decision is the same.
    """
    model = models["ltxv"]
    with Watch(model) as together:
        sample(model, patched(model, MUCH), tokens=(6, 4), steps=6)
    with Watch(model) as alone:
        sample(model, patched(model, MUCH), cfg=1.0, steps=6)
    assert len(together.inner) == 2 * len(alone.inner)
    assert torch.equal(together.outputs[0][3][0], alone.outputs[0][3][0])


def test_two_runs_in_a_row_are_each_as_alone(model, runs):
    first = sample(model, patched(model, MUCH), seed=1)
    both = patched(model, MUCH)  # one patcher, as a cached node output is
    assert torch.equal(sample(model, both, seed=1), first)
    again = sample(model, both, seed=2)
    assert torch.equal(again, sample(model, patched(model, MUCH), seed=2))
    assert not torch.equal(first, again)
    assert [stats.reused for stats in runs[:2]] == [runs[0].reused] * 2 and runs[0].reused


ALONE: dict = {}  # of each model the plain result, that with reuse, and its record


class Stop(BaseException):
    """Like ComfyUI's InterruptProcessingException, not an Exception."""


@pytest.mark.parametrize(
    ("error", "at"),
    [(RuntimeError, 1), (RuntimeError, 8), (Stop, 8), (comfy.model_management.InterruptProcessingException, 8)],
)
@pytest.mark.parametrize("where", ["block", "callback"])
def test_an_interrupted_run_leaves_nothing_behind(model, error, where, at, runs, caplog):
    if model not in ALONE:
        ALONE[model] = sample(model), sample(model, patched(model, MUCH)), runs[-1]
    (plain, reused, usual), both = ALONE[model], patched(model, MUCH)
    options = {}
    calls = []

    def fail(*_):
        calls.append(1)
        if len(calls) == at:
            raise error

    if where == "callback":
        options["callback"] = fail
        handle = None
    else:
        handle = next(m for m in model.stack[-1].modules() if m is not model.stack[-1]).register_forward_pre_hook(fail)
    with pytest.raises(error):
        sample(model, both, **options)
    if handle:
        handle.remove()
    # the evaluation that was broken off is none
    assert runs[-1].broken_off and not usual.broken_off
    count = len(runs[-1].evaluations)  # a block that was left out does not fail
    assert count == at - (where == "block") if at == 1 or where == "callback" else 7 <= count < len(usual.evaluations)
    assert all(e.computed or e.reused for e in runs[-1].evaluations) and "could not read" not in caplog.text
    assert_unpatched(model)
    assert torch.equal(sample(model), plain)
    assert torch.equal(sample(model, both), reused)


def test_nothing_of_a_run_outlives_it(models, monkeypatch):
    sessions = []
    original = comfy_run.Run

    def remember(*args, **kwargs):
        session = original(*args, **kwargs)
        sessions.append(weakref.ref(session))
        return session

    monkeypatch.setattr(comfy_run, "Run", remember)
    kept = patched(models["wan"], MUCH)
    sample(models["wan"], kept)
    gc.collect()
    assert len(sessions) == 1 and sessions[0]() is None


def test_heun_evaluates_twice_per_step(models, runs):
    sample(models["wan"], patched(models["wan"], PaperConfig(threshold=2.0, warmup_steps=4)), sampler="heun", steps=12)
    (stats,) = runs
    assert len(stats.evaluations) == 23  # 2 * 12 - 1
    assert [e.kind for e in stats.evaluations[:8]] == ["warmup"] * 8  # four steps
    assert [e.kind for e in stats.evaluations[8:10]] == ["full", "reuse"]
    assert stats.steps == 12 and stats.reused


def test_two_stages_of_ksampler_advanced_are_two_runs(models, runs):
    import nodes

    model = models["wan"]

    def two_stages(patcher):
        def stage(latent, start, end, add_noise, leftover):
            with torch.inference_mode():
                return nodes.KSamplerAdvanced().sample(
                    patcher,
                    add_noise,
                    5,
                    20,
                    3.0,
                    "euler",
                    "simple",
                    model.text(1),
                    model.text(2),
                    latent,
                    start,
                    end,
                    leftover,
                )[0]

        middle = stage({"samples": model.latent()}, 0, 10, "enable", "enable")
        return stage(middle, 10, 20, "disable", "disable")["samples"]

    plain = two_stages(model.patcher)
    assert torch.equal(two_stages(patched(model, NOTHING)), plain)
    runs.clear()
    out = two_stages(patched(model, MUCH))
    assert [(s.steps, s.warmup_steps, len(s.evaluations)) for s in runs] == [(10, 3, 10)] * 2
    assert all(s.reused and s.evaluations[0].kind == "warmup" for s in runs)
    assert not torch.equal(out, plain)


def test_start_and_end_percent_are_of_sampling_not_of_the_schedule(models, runs):
    config = PaperConfig(threshold=2.0, warmup_steps=2, start_percent=0.5, end_percent=0.8)
    sample(models["wan"], patched(models["wan"], config), steps=20)
    inside = [evaluation.kind in ("full", "reuse") for evaluation in runs[0].evaluations]
    assert inside == [10 <= step < 16 for step in range(20)]  # half of 20 steps, and four fifths


def test_applying_twice_replaces_the_first(models, runs):
    model = models["wan"]
    twice = apply_foresight(patched(model, NOTHING), MUCH)
    assert torch.equal(sample(model, twice), sample(model, patched(model, MUCH)))
    assert len(runs) == 2
    off = apply_foresight(twice, PaperConfig(threshold=0))
    assert torch.equal(sample(model, off), sample(model)) and len(runs) == 2


def test_two_settings_on_two_branches_of_one_model(models, runs):
    model = models["wan"]
    a, b = patched(model, MUCH), patched(model, NOTHING)
    assert torch.equal(sample(model, b), sample(model))
    sample(model, a)
    assert [bool(s.reused) for s in runs] == [False, True]


def test_another_packs_forward_survives(models):
    """An instance attribute left by another pack's object patch is called, and is there afterwards."""
    model = models["wan"]
    block, calls = model.stack[1], []
    original = block.forward

    def other(*args, **kwargs):
        calls.append(1)
        return original(*args, **kwargs)

    block.forward = other
    try:
        sample(model, patched(model, NOTHING), steps=6)
        assert block.__dict__["forward"] is other and len(calls) == 6
    finally:
        del block.forward


def test_a_block_that_another_node_replaces_midway_costs_the_speed_not_the_video(models, runs):
    model = models["wan"]
    patcher = patched(model, MUCH)
    evaluations = []

    def leave_out_the_last_blocks(executor, x, timestep, model_options, seed):
        evaluations.append(1)
        if len(evaluations) > 6:  # from here on, blocks 1..3 are another pack's, like Skip Layer Guidance's
            dit = model_options["transformer_options"].setdefault("patches_replace", {}).setdefault("dit", {})
            dit.update({("double_block", i): lambda args, extra: {"img": args["img"]} for i in (1, 2, 3)})
        return executor(x, timestep, model_options, seed)

    def with_skips(patcher):
        evaluations.clear()
        patcher.add_wrapper_with_key(
            comfy.patcher_extension.WrappersMP.PREDICT_NOISE, "skips", leave_out_the_last_blocks
        )
        return sample(model, patcher)

    out = with_skips(patcher)
    assert "was not called" in runs[0].inactive
    exact = with_skips(model.patcher.clone())
    assert (out - exact).norm() < 0.5 * exact.norm()


def test_a_missing_budget_is_said_and_the_result_is_plain(models, runs, monkeypatch):
    model = models["wan"]
    monkeypatch.setattr(memory, "budget", lambda *_: (500, 0))
    assert torch.equal(sample(model, patched(model, MUCH)), sample(model))
    assert runs[0].inactive.endswith("the budgets are 0.0 MiB and 0.0 MiB") and runs[0].peak_bytes == 0


def test_cpu_as_cache_device_gives_the_same(models):
    model = models["wan"]
    config = PaperConfig(threshold=2.0, warmup_steps=3, sample_rows=0, cache_device="cpu")
    assert torch.equal(sample(model, patched(model, config)), sample(model, patched(model, MUCH)))


def test_one_line_per_run(models, caplog):
    with caplog.at_level(logging.INFO, logger=comfyui.__name__):
        sample(models["wan"], patched(models["wan"], MUCH))
    _, line = [r.getMessage() for r in caplog.records if r.name == comfyui.__name__]
    assert (
        line.startswith("Foresight left out ")
        and "block calls" in line
        and "per reuse evaluation" in line
        and "held" in line
    )


def test_too_few_steps_says_so(models, caplog, runs):
    model = models["wan"]
    with caplog.at_level(logging.INFO, logger=comfyui.__name__):
        assert torch.equal(sample(model, patched(model, PaperConfig()), steps=4), sample(model, steps=4))
    assert "inactive: at most 0 of 4 steps can be reused: 3 are warmup" in caplog.text


def test_a_short_run_says_how_much_can_be_reused(models, caplog):
    model = models["wan"]
    with caplog.at_level(logging.INFO, logger=comfyui.__name__):
        sample(model, patched(model, PaperConfig()), steps=8, cfg=1.0)
    assert "Foresight: at most 2 of 8 steps can be reused" in caplog.text


def test_trouble_while_telling_does_not_lose_the_video(models, monkeypatch, caplog):
    model = models["wan"]
    expected = sample(model, patched(model, MUCH))

    def broken(*_):
        raise OSError("no server")

    monkeypatch.setattr(live, "_server", broken)
    assert torch.equal(sample(model, patched(model, MUCH)), expected)
    assert "could not show" in caplog.text
    monkeypatch.setattr(comfy_run.Run, "close", broken)
    assert torch.equal(sample(model, patched(model, MUCH)), expected)
    assert "could not read its last measurements" in caplog.text


def test_an_unsupported_model_is_refused_by_name():
    class Lumina(torch.nn.Module):
        pass

    class Patcher:
        class model:
            diffusion_model = Lumina()

    with pytest.raises(blocks.UnsupportedModel) as error:
        apply_foresight(Patcher, PaperConfig())
    text = str(error.value)
    assert "Lumina" in text and __name__ in text
    assert all(family.name in text for family in families.FAMILIES) and "Use the method forecast" in text


def test_a_subclass_whose_blocks_may_do_more_is_refused():
    import comfy.ldm.wan.model

    class NextWanModel(comfy.ldm.wan.model.WanModel):
        pass

    with pytest.raises(blocks.UnsupportedModel, match="NextWanModel"):
        blocks.family_of(object.__new__(NextWanModel), families.FAMILIES)


def test_controlnet_residuals_between_blocks_still_run(models, runs):
    """HunyuanVideo adds a ControlNet's residuals in place to what a block returned.

    The slot must not change by that.
    """
    model = models["hunyuan"]
    residual = comfy_models.noise(1, 12, 48, seed=9)
    control = {"input": [residual] * 3, "output": [residual] * 3}

    def with_control(executor, x, t, c_concat, c_crossattn, _, *args, **kwargs):
        return executor(x, t, c_concat, c_crossattn, control, *args, **kwargs)

    def sampled(config):
        patcher = model.patcher.clone() if config is None else patched(model, config)
        patcher.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.APPLY_MODEL, "control", with_control)
        return sample(model, patcher)

    assert torch.equal(sampled(NOTHING), sampled(None))
    assert not torch.equal(sampled(None), sample(model))
    with Watch(model) as watch:
        sampled(MUCH)
    stats, stored = runs[-1], {}
    assert stats.reused
    for e, evaluation in enumerate(stats.evaluations):
        depth = sum(1 for reused in evaluation.reused if reused) - 1
        if depth >= 0:
            for got, want in zip(watch.outputs[e][depth], watch.outputs[stored[depth]][depth], strict=True):
                assert torch.equal(got, want)
        stored.update(dict.fromkeys(range(depth + 1, len(model.stack)), e))


def swaps(monkeypatch):
    """How often the blocks of a model were swapped."""
    count = [0]
    enter = blocks.Swapped.__enter__

    def counted(self):
        count[0] += 1
        return enter(self)

    monkeypatch.setattr(blocks.Swapped, "__enter__", counted)
    return count


@pytest.mark.parametrize(
    ("settings", "steps", "expected"),
    [
        ({}, 4, 0),  # too short to gain anything
        ({"warmup_steps": 1}, 12, 0),
        ({"warmup_steps": 3, "end_percent": 0.5}, 12, 6),  # as long as the range lasts
        ({"warmup_steps": 3}, 12, 12),
    ],
)
def test_blocks_are_swapped_only_while_the_method_wants_them(models, runs, monkeypatch, settings, steps, expected):
    model, count = models["wan"], swaps(monkeypatch)
    plain = sample(model, steps=steps)
    out = sample(model, patched(model, PaperConfig(threshold=1e-12, **settings)), steps=steps)
    inside = sum(e.kind != "plain" for e in runs[0].evaluations)
    assert torch.equal(out, plain) and count[0] == inside
    assert inside == expected
    assert all(e.computed == [2] * len(model.stack) for e in runs[0].evaluations)  # counted all the same


def test_a_run_without_memory_for_it_swaps_no_block_after_the_first_call(models, runs, monkeypatch):
    count = swaps(monkeypatch)
    monkeypatch.setattr(memory, "budget", lambda *_: (500, 0))
    sample(models["wan"], patched(models["wan"], MUCH))
    assert runs[0].inactive and count[0] == 1


def test_wrappers_take_their_arguments_by_name(models, runs):
    """Another pack's wrapper may call on with keywords."""
    model, kinds = models["wan"], comfy.patcher_extension.WrappersMP
    expected = sample(model, patched(model, MUCH))
    noisy = model.patcher.clone()

    def by_name(*names):
        def wrapper(executor, *args, **kwargs):
            return executor(**dict(zip(names, args, strict=False)), **kwargs)

        return wrapper

    outer = ("noise", "latent_image", "sampler", "sigmas", "denoise_mask", "callback", "disable_pbar", "seed")
    for kind, names in (
        (kinds.OUTER_SAMPLE, outer),
        (kinds.PREDICT_NOISE, ("x", "timestep", "model_options", "seed")),
        (kinds.CALC_COND_BATCH, ("model", "conds", "x_in", "timestep", "model_options")),
        (kinds.APPLY_MODEL, ("x", "t", "c_concat", "c_crossattn", "control", "transformer_options")),
        (kinds.DIFFUSION_MODEL, ("x", "timestep", "context", "clip_fea", "time_dim_concat", "transformer_options")),
    ):
        noisy.add_wrapper_with_key(kind, "by_name", by_name(*names))
    out = sample(model, apply_foresight(noisy, MUCH))
    assert torch.equal(out, expected) and runs[0].reused == runs[1].reused > 0


def test_a_model_that_torch_has_sharded_is_the_model_that_it_was(models):
    from torch.distributed.fsdp import FSDPModule

    network = models["wan"].patcher.model.diffusion_model
    sharded = type("FSDPWanModel", (FSDPModule, type(network)), {})  # what fully_shard makes of a class
    assert blocks.family_of(object.__new__(sharded), families.FAMILIES) is blocks.family_of(network, families.FAMILIES)
    with pytest.raises(blocks.UnsupportedModel, match="Other"):
        blocks.family_of(object.__new__(type("Other", (type(network),), {})), families.FAMILIES)


FIRST_RUN = """
import sys
sys.argv = sys.argv[:1]
from comfy.cli_args import args
args.cpu = True
import comfy.samplers
sys.path += [{root!r}, {root!r} + "/tests"]
from foresight import ForecastConfig, PaperConfig
from foresight.hosts.comfyui import apply_foresight
from support.comfy_models import MODELS, sample
model = MODELS["wan"]()
sample(model, steps=12)
before = set(sys.modules)
for config in (ForecastConfig(threshold=2.0), PaperConfig(threshold=2.0)):
    sample(model, apply_foresight(model.patcher, config), steps=12)
print(sorted(set(sys.modules) - before))
"""


def test_the_first_run_of_a_process_imports_next_to_nothing():
    """The server and torch's compiler take a second or more each."""
    root = str(Path(__file__).resolve().parents[3])
    env = {**os.environ, "PYTHONPATH": os.environ["COMFYUI_PATH"]}
    command = [sys.executable, "-c", FIRST_RUN.format(root=root)]
    result = subprocess.run(command, capture_output=True, text=True, env=env)
    assert result.returncode == 0, result.stderr
    small = {"comfy_execution", "comfy_execution.utils"}
    assert set(ast.literal_eval(result.stdout.splitlines()[-1])) <= small

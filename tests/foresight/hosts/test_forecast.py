"""The method "forecast" in ComfyUI: every one of `situations`, against the method written down once more."""

import logging
import sys
import types

import pytest
import torch

pytest.importorskip("comfy", reason="ComfyUI is not installed here")

import comfy.patcher_extension

from foresight.engine import ForecastConfig, Run
from foresight.hosts import comfyui
from foresight.hosts.comfyui import apply_foresight, run
from foresight.hosts.comfyui.conds import active_conds
from foresight.hosts.comfyui.run import TAKES_BACK
from support.comfy_models import MODELS, sample
from support.reference_forecast import Reference
from support.situations import SITUATIONS, context_windows

WRAPPERS = comfy.patcher_extension.WrappersMP
NOTHING = ForecastConfig(threshold=1e-12)
MUCH = ForecastConfig(threshold=2.0)


@pytest.fixture(params=SITUATIONS)
def case(request, models):
    workflow, name, warmup, _ = SITUATIONS[request.param]
    return request.param, workflow, models[name], warmup


def kinds(stats, kind):
    return sum(e.kind == kind for e in stats.evaluations)


def test_measuring_changes_nothing(case, runs):
    _, workflow, model, _ = case
    plain = workflow(model, lambda patcher: patcher)
    assert torch.equal(workflow(model, lambda patcher: apply_foresight(patcher, NOTHING)), plain)
    assert runs and not any(stats.reused for stats in runs)


# what changes at a level, at which the reference does not look; see `test_changes`
CHANGING = {
    "cfg_override",
    "conds_with_start_and_end_percent",
    "skip_layer_guidance",
    "skip_layer_guidance_of_the_uncond_only",
}


def test_forecasts_are_what_the_method_says(case, runs):
    name, workflow, model, _ = case
    ours = workflow(model, lambda patcher: apply_foresight(patcher, MUCH))
    reference = Reference(MUCH.threshold)
    if name in CHANGING:
        return
    if runs[0].inactive:
        assert torch.equal(ours, workflow(model, lambda patcher: patcher)) and not any(stats.reused for stats in runs)
        return
    expected = workflow(model, reference)
    computed = sum(len(stats.evaluations) - kinds(stats, "reuse") + stats.taken_back for stats in runs)
    assert computed == reference.computed
    torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-3)


def test_most_situations_leave_something_out(models, runs):
    without = []
    for name, (workflow, model, *_) in SITUATIONS.items():
        runs.clear()
        try:
            workflow(models[model], lambda patcher: apply_foresight(patcher, MUCH))
        except pytest.skip.Exception:
            continue
        if not any(stats.reused for stats in runs):
            without.append(name)
    never = {"distilled_4_steps", "sa_solver", "dpmpp_sde", "dpmpp_2s_ancestral", "euler_ancestral", "dpm_adaptive"}
    assert set(without) <= never


class Calls:
    """Counts what the model really computes."""

    def __init__(self, patcher):
        self.count, self.patcher = 0, patcher.clone()
        self.patcher.add_wrapper_with_key(WRAPPERS.APPLY_MODEL, "count", self._apply_model)

    def _apply_model(self, executor, *args, **kwargs):
        self.count += 1
        return executor(*args, **kwargs)


@pytest.mark.parametrize("name", MODELS)
def test_an_evaluation_that_is_left_out_calls_no_model(name, models, runs):
    model = models[name]
    calls = Calls(model.patcher)
    sample(model, apply_foresight(calls.patcher, MUCH), steps=20)
    (stats,) = runs
    left_out = [e for e in stats.evaluations if e.kind == "reuse"]
    assert left_out and calls.count == 20 - len(left_out) + stats.taken_back
    assert all((e.computed, e.reused) == ([0], [1]) for e in left_out) and stats.total == 20


@pytest.mark.parametrize("off", [{"threshold": 0}, {"reuse_interval": 1}])
def test_off_is_the_plain_result_and_no_wrapper(off, models, runs):
    model = models["wan"]
    patched = apply_foresight(model.patcher, ForecastConfig(**off))
    assert not [w for w in patched.wrappers.values() if comfyui.KEY in w]
    assert torch.equal(sample(model, patched), sample(model)) and not runs


def test_a_cond_that_begins_in_mid_run_is_never_forecast_across(models, runs):
    model = models["wan"]
    early, late = model.text(1, start_percent=0.0, end_percent=0.6), model.text(3, start_percent=0.6, end_percent=1.0)
    sample(model, apply_foresight(model.patcher, MUCH), positive=early + late, steps=30)
    (stats,) = runs
    sigmas = [e.level for e in stats.evaluations]
    change = model.patcher.get_model_object("model_sampling").percent_to_sigma(0.6)
    both = next(i for i, sigma in enumerate(sigmas) if torch.tensor(sigma) <= change)  # in fp32, as core compares
    assert torch.tensor(sigmas[both]) == change  # there both conds are active, behind it one
    assert any(e.kind == "reuse" for e in stats.evaluations[:both])
    for e in stats.evaluations[both : both + 3]:  # a value; a value and a slope
        assert sum(e.computed) and not sum(e.reused) and e.kind == "full"  # though the plan would leave one out


def test_what_is_active_is_told_apart():
    class Control:
        timestep_range, previous_controlnet = (0.8, 0.4), None

    class Keyframes:
        keyframes, strength = [0, 1], 1.0

    class Hook:
        hook_keyframe = Keyframes

    class Hooks:
        hooks = [Hook]

    conds = {"positive": [{"uuid": 1, "timestep_start": 0.9, "timestep_end": 0.3, "control": Control}], "negative": []}
    at = lambda sigma: active_conds(conds, sigma)  # noqa: E731
    assert at(0.7) == at(0.5) and len({at(1.0), at(0.85), at(0.7), at(0.2)}) == 3  # the first and the last: nothing
    conds["positive"][0]["hooks"] = Hooks
    before = at(0.7)
    assert before == at(0.5)
    Keyframes.strength = 0.5
    assert before != at(0.5)


@pytest.mark.parametrize("grouped", [True, False])
def test_a_controlnet_whose_strength_has_keyframes_is_another_behind_each(grouped):
    """As Advanced-ControlNet's, whose keyframes know their noise levels once the run is about to begin."""
    Keyframe = types.SimpleNamespace
    keyframes = [Keyframe(start_percent=p, start_t=t, guarantee_steps=1) for p, t in ((0.0, 999999999.9), (0.4, 0.6))]
    control = types.SimpleNamespace(
        timestep_keyframes=types.SimpleNamespace(keyframes=keyframes) if grouped else keyframes,
        timestep_range=None,
        previous_controlnet=types.SimpleNamespace(timestep_range=(1.0, 0.3)),  # one without
    )
    at = lambda sigma: active_conds({"positive": [{"uuid": 1, "control": control}]}, sigma)  # noqa: E731
    assert at(0.9) == at(0.7) != at(0.6) == at(0.5) != at(0.2)
    control.previous_controlnet.timestep_keyframes = object()  # another pack's, of which nothing is known
    assert at(0.9) == at(0.7)
    keyframes[1].guarantee_steps = 2
    assert at(0.9) != at(0.7) and at(0.6) != at(0.5)


def test_what_begins_or_ends_on_a_step_is_active_there_as_it_is_in_core():
    """Percents are often multiples of a tenth, and steps of 20 or 30."""
    import comfy.controlnet
    import comfy.model_sampling
    import comfy.samplers

    class Control(comfy.controlnet.ControlNet):
        def __init__(self, start, end):
            self.timestep_range, self.previous_controlnet, self.control_model = (start, end), None, None

        def is_there(self, sigma):
            try:
                return self.get_control(torch.zeros(1), sigma, None, 1, {}) is not None
            except AttributeError:  # it is, and looks for its model
                return True

    x, on_a_step = torch.zeros(1, 4, 8, 8), 0
    for shift, steps in ((1.0, 10), (3.0, 20), (5.0, 20), (5.0, 30), (8.0, 50)):
        sampling = comfy.model_sampling.ModelSamplingDiscreteFlow()
        sampling.set_parameters(shift=shift)
        bounds = [sampling.percent_to_sigma(k / 20) for k in range(1, 20)]
        for sigma in comfy.samplers.calculate_sigmas(sampling, "simple", steps)[:-1]:
            for start, end in zip(bounds, bounds[6:], strict=False):
                cond = {"timestep_start": start, "timestep_end": end, "uuid": 0, "model_conds": {}}
                in_core = comfy.samplers.get_area_and_mult(cond, x, sigma[None]) is not None
                with_control = {"uuid": 0, "control": Control(start, end)}
                found = active_conds({"positive": [cond, with_control]}, sigma.item())
                assert found[0][2] == in_core and found[1][3] == with_control["control"].is_there(sigma[None])
                on_a_step += any(bound != sigma.item() and sigma == bound for bound in (start, end))
    assert on_a_step > 20


@pytest.mark.parametrize("beginning, latents", [(TAKES_BACK, 10), (-1.0, 4)])
def test_four_latents_are_all_that_is_held_but_for_the_outputs_of_the_beginning(
    beginning, latents, models, runs, monkeypatch
):
    """Two outputs, and of the last evaluation what came in and what was given out; 6 of 20 may be taken back."""
    monkeypatch.setattr(run, "TAKES_BACK", beginning)
    model = models["wan"]
    sample(model, apply_foresight(model.patcher, MUCH), batch=2, steps=20)
    assert runs[0].reused and runs[0].peak_bytes == latents * model.latent(2).numel() * 4


def test_an_interrupt_leaves_nothing_behind(models, runs):
    import comfy.model_management

    model = models["wan"]
    patched, plain = apply_foresight(model.patcher, MUCH), sample(model)

    def interrupt(step, *_):
        if step == 6:
            raise comfy.model_management.InterruptProcessingException

    with pytest.raises(comfy.model_management.InterruptProcessingException):
        sample(model, patched, callback=interrupt)
    assert torch.equal(sample(model), plain)
    first = sample(model, patched)
    assert torch.equal(sample(model, patched), first) and not torch.equal(first, plain)


def test_moving_context_windows_are_forecast_as_one_video(models, runs):
    context_windows(models["wan"], lambda patcher: apply_foresight(patcher, MUCH), "standard_uniform")
    assert len(runs) == 1 and runs[0].inactive is None


def test_a_model_that_is_not_in_the_table_is_said_once_and_taken(models, runs, caplog):
    model = models["wan"]
    network = model.patcher.model.diffusion_model
    with caplog.at_level(logging.INFO, logger=comfyui.__name__):
        known = sample(model, apply_foresight(model.patcher, MUCH))
        assert not [r for r in caplog.records if "not among the models" in r.getMessage()]
        network.__class__ = type("OtherWanModel", (type(network),), {})
        try:
            ours = sample(model, apply_foresight(model.patcher, MUCH))
        finally:
            network.__class__ = type(network).__bases__[0]
    (said,) = [r.getMessage() for r in caplog.records if "not among the models" in r.getMessage()]
    assert "OtherWanModel" in said and torch.equal(ours, known)


def test_the_device_is_read_once_per_evaluation(models, monkeypatch):
    """Nothing but the session's read-back makes numbers out of tensors, in whatever way; see test_levels too."""
    model, reads, inside = models["wan"], [], []
    read_back = Run.read_back

    def once(self, *args):
        inside.append(1)
        try:
            return read_back(self, *args)
        finally:
            inside.pop()

    def counted(name):
        found = getattr(torch.Tensor, name)

        def read(self, *args):
            frame = sys._getframe(1)
            if "foresight" in frame.f_globals.get("__name__", "") and not inside:
                reads.append(frame.f_code.co_name)
            return found(self, *args)

        monkeypatch.setattr(torch.Tensor, name, read)

    monkeypatch.setattr(Run, "read_back", once)
    for name in ("item", "tolist", "cpu", "numpy", "__float__", "__bool__", "__int__", "nonzero"):
        counted(name)
    sample(model, apply_foresight(model.patcher, MUCH), steps=20)
    assert set(reads) <= {"__init__", "_in_ram"}  # the schedule and the model's levels, once a run
    assert len(reads) < 10

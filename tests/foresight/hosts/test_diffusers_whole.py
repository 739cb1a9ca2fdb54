"""A pipeline that is given whole: its scheduler tells all levels, exactly, and each of its transformers gets a hook."""

import gc
import itertools
import weakref

import pytest
import torch

pytest.importorskip("diffusers", reason="diffusers is not installed here")

import diffusers

from foresight import ForecastConfig
from foresight.hosts.blocks import UnsupportedModel
from foresight.hosts.diffusers import apply_foresight
from foresight.hosts.diffusers.levels import Scheduled
from models.demo.pipeline import DemoPipeline
from support import diffusers_images
from support.diffusers_models import seeded
from support.diffusers_pipelines import NO_TEXT, PIPELINES, PLAIN, euler, wan_two_stages
from support.diffusers_transformers import wan

CONFIG, STEPS = ForecastConfig(threshold=1.0), 12
MAKERS = (*PIPELINES, *diffusers_images.IMAGE_PIPELINES)


def made(make, steps=STEPS, **more):
    """A pipeline, and a call of it."""
    pipe, given = make()
    pipe.set_progress_bar_config(disable=True)

    def call(**changed):
        noise = {"generator": torch.Generator().manual_seed(0)}
        usual = {"num_inference_steps": steps, "output_type": "latent", "return_dict": False}
        return pipe(**{**given, **noise, **usual, **more, **changed})[0]

    return pipe, call


def kinds(stats):
    return "".join(e.kind[0] for e in stats.evaluations)


@pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__)
def test_every_pipeline_says_its_plan_before_the_first_evaluation(make, monkeypatch):
    planned, begin = [], Scheduled.begin
    monkeypatch.setattr(Scheduled, "begin", lambda *a: planned.append(begin(*a)) or planned[-1])
    pipe, call = made(make)
    handle = apply_foresight(pipe, CONFIG)
    call()
    handle.remove()
    assert planned[0][1:] == (0, STEPS) and handle.runs[0].planned, planned
    levels, place, _ = planned[-1]
    assert place + len(levels) == STEPS  # the second of two transformers begins in the middle of the list
    assert sum(len(stats.evaluations) for stats in handle.runs) == STEPS
    for stats in handle.runs:
        assert stats.steps == STEPS and stats.inactive is None
    seen = [e.level for stats in handle.runs for e in stats.evaluations]
    assert seen == planned[0][0]  # as the scheduler has them, whatever the model is given


def test_levels_that_are_rounded_are_known_all_the_same():
    """FLUX's in bfloat16: alone they show the number of steps halfway through, and several are the same."""
    pipe, call = made(diffusers_images.flux_pipeline, 28)
    pipe.to(torch.bfloat16)
    text = {
        name: value.bfloat16() for name, value in diffusers_images.flux_pipeline()[1].items() if torch.is_tensor(value)
    }
    found = []
    for target in (pipe.transformer, pipe):
        handle = apply_foresight(target, CONFIG)
        call(**text)
        found.append(handle.stats)
        handle.remove()
    alone, whole = found
    assert alone.steps is None and whole.steps == 28 and whole.planned
    assert kinds(whole).count("r") > kinds(alone).count("r") > 0
    exact = pipe.scheduler.sigmas[:-1].tolist()
    assert [e.level for e in whole.evaluations] == exact != [e.level for e in alone.evaluations]


@pytest.mark.parametrize("scheduler", ["FlowMatchHeunDiscreteScheduler", "FlowMatchEulerDiscreteScheduler"])
def test_steps_are_no_evaluations(scheduler):
    heun = "Heun" in scheduler
    pipe = diffusers.WanPipeline(
        **NO_TEXT, vae=None, scheduler=getattr(diffusers, scheduler)(), transformer=wan().model
    )
    _, call = made(lambda: (pipe, PLAIN))
    handle = apply_foresight(pipe, ForecastConfig(threshold=4.0))
    call()
    assert handle.stats.steps == STEPS and len(handle.stats.evaluations) == (2 * STEPS - 1 if heun else STEPS)
    assert "r" in kinds(handle.stats) and kinds(handle.stats)[-1] == "f" and "p" not in kinds(handle.stats)


@pytest.mark.parametrize("levels", ["use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"])
def test_levels_that_are_not_even_are_planned_by_as_they_are(levels):
    """Wan's pipeline tells a share of noise in place of a number of a list, so that the list says nothing there."""
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=5.0, **{levels: True})
    pipe = diffusers.WanPipeline(**NO_TEXT, vae=None, scheduler=scheduler, transformer=wan().model)
    _, call = made(lambda: (pipe, PLAIN))
    handle = apply_foresight(pipe, CONFIG)
    call()
    assert [e.level for e in handle.stats.evaluations] == scheduler.sigmas[:-1].tolist()
    assert handle.stats.planned is not None and handle.stats.steps == STEPS


@pytest.mark.parametrize("make", diffusers_images.IMAGE_PIPELINES, ids=lambda make: make.__name__)
def test_what_was_cancelled_is_no_part_of_the_next_run(make):
    """Also where nothing but the scheduler tells it: after one evaluation, at a lower level, from the same latent."""
    pipe, call = made(make)
    handle = apply_foresight(pipe, CONFIG)

    def cancels(pipe, step, timestep, given):
        raise InterruptedError

    given = {
        "latents": seeded(
            *((1, 16, 16) if hasattr(pipe, "transformer") and "sd3" not in make.__name__ else (1, 4, 8, 8)), seed=5
        )
    }
    call(**given)
    alone = kinds(handle.stats)
    with pytest.raises(InterruptedError):
        call(**given, callback_on_step_end=cancels)
    call(**given)
    assert kinds(handle.stats) == alone


def test_two_transformers_have_a_hook_each_and_none_stays():
    pipe, call = made(wan_two_stages)
    plain = call()
    first = apply_foresight(pipe, CONFIG)
    second = apply_foresight(pipe, CONFIG)  # in place of the first
    call()
    assert first.stats is None and first.runs == []
    assert len(second.runs) == 2 and second.stats is second.runs[1]
    assert [len(stats.evaluations) for stats in second.runs] == [4, STEPS - 4]
    second.remove()
    second.remove()
    assert torch.equal(call(), plain) and len(second.runs) == 2
    for net in (pipe.transformer, pipe.transformer_2):
        assert "forward" not in vars(net)


def test_the_scheduler_is_the_one_that_the_pipeline_has_when_it_runs():
    pipe, call = made(wan_two_stages)
    handle = apply_foresight(pipe, CONFIG)
    pipe.scheduler = diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=8.0
    )
    call()
    seen = [e.level for stats in handle.runs for e in stats.evaluations]
    assert seen == pipe.scheduler.sigmas[:-1].tolist()


def test_another_pipeline_with_the_same_transformer_is_not_taken_for_this_one():
    """A scheduler that has ended its run, or has not begun one, says nothing of a run that is not its own."""
    pipe, call = made(wan_two_stages)
    other = diffusers.WanPipeline(**NO_TEXT, vae=None, scheduler=euler(), transformer=pipe.transformer)
    _, call_other = made(lambda: (other, PLAIN), steps=20)
    handle = apply_foresight(pipe, CONFIG)
    call_other()
    assert len(handle.stats.evaluations) == 20 and handle.stats.steps == 20  # as the pipeline says it
    call()
    call_other()
    assert [(len(stats.evaluations), stats.steps) for stats in handle.runs] == [(20, 20), (STEPS - 4, STEPS)]


@pytest.mark.parametrize("name", ["DDIMScheduler", "DDPMScheduler", "PNDMScheduler", "EulerDiscreteScheduler"])
def test_a_scheduler_whose_run_is_over_says_nothing_of_another_pipelines(name):
    """One that counts no steps looks as it did when that run began."""
    settings = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    settings |= {"timestep_spacing": "trailing"} | ({"skip_prk_steps": True} if name == "PNDMScheduler" else {})
    made_by = []
    for _ in range(2):
        pipe, given = diffusers_images.sdxl_pipeline()
        pipe.scheduler = getattr(diffusers, name)(**settings)
        made_by.append((pipe, given))
    first, other = made_by
    other[0].unet = first[0].unet
    (_, call), (_, call_other) = (
        made(lambda pair=pair: pair, steps) for pair, steps in zip(made_by, (40, 20), strict=True)
    )
    handle = apply_foresight(first[0], CONFIG)
    call()
    assert handle.stats.steps == 40 or name == "PNDMScheduler"
    call_other()
    assert handle.stats.steps is None and kinds(handle.stats)[-1] == "f"
    alone = apply_foresight(first[0].unet, CONFIG)
    call_other()
    assert kinds(handle.stats) == kinds(alone.stats)


@pytest.mark.parametrize(
    ("make", "steps", "threshold"),
    [
        ("wan", 8, 0.5),
        ("wan", 6, 2.0),
        (diffusers_images.sd3_pipeline, 6, 1.0),
        (diffusers_images.flux_pipeline, 4, 4.0),
    ],
)
def test_short_runs_without_guidance_gain_as_much(make, steps, threshold):
    """That there is none shows in mid-run, so that a plan with guidance does not end it before."""
    if make == "wan":
        scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=5.0)
        wanted = diffusers.WanPipeline(**NO_TEXT, vae=None, scheduler=scheduler, transformer=wan().model), PLAIN
        pipe, call = made(lambda: wanted, steps, guidance_scale=1.0)
    else:
        pipe, call = made(make, steps, guidance_scale=1.0)
    left_out = []
    for target in (pipe.transformer, pipe):
        handle = apply_foresight(target, ForecastConfig(threshold=threshold))
        call()
        left_out.append(kinds(handle.stats).count("r"))
        handle.remove()
    assert left_out[1] >= left_out[0] > 0


def test_levels_between_steps_are_no_steps():
    """KDPM2 has 39 for 20 of them."""
    pipe, given = diffusers_images.sdxl_pipeline()
    pipe.scheduler = diffusers.KDPM2DiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    _, call = made(lambda: (pipe, given))
    handle = apply_foresight(pipe, CONFIG)
    call()
    assert handle.stats.steps is None and len(handle.stats.evaluations) == 2 * STEPS - 1


def test_of_levels_that_are_rounded_to_the_same_the_scheduler_knows_which():
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=12.0)
    scheduler.set_timesteps(50)
    given = [float(t.bfloat16()) for t in scheduler.timesteps]
    begin = next(k for k in range(1, 50) if given[k] == given[k - 1])
    scheduler.set_begin_index(begin)
    levels, place, steps = Scheduled(lambda: scheduler).begin(given[begin], True)
    assert (place, steps, len(levels)) == (begin, 50, 50 - begin)


def test_a_pipeline_is_not_kept_alive():
    pipe = DemoPipeline()
    gone, handle = weakref.ref(pipe), apply_foresight(pipe, CONFIG)
    net = pipe.transformer
    del pipe
    gc.collect()
    assert gone() is None
    handle.remove()
    assert "forward" not in vars(net)


class Empty:
    components = {"vae": torch.nn.Linear(1, 1), "scheduler": None}


@pytest.mark.parametrize(
    ("given", "error", "says"),
    [
        ("wan", TypeError, "takes a diffusers pipeline, or its transformer or UNet, not str"),
        (Empty(), UnsupportedModel, "finds neither a transformer nor a UNet in Empty, which has vae"),
        (type("None", (), {"components": {}})(), UnsupportedModel, "which has no model at all"),
    ],
)
def test_what_is_no_pipeline_is_refused(given, error, says):
    with pytest.raises(error, match=says):
        apply_foresight(given)


def timesteps_of(name, **settings):
    scheduler = getattr(diffusers, name)(**settings)
    scheduler.set_timesteps(STEPS)
    return scheduler


FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 5.0}


@pytest.mark.parametrize(
    ("name", "settings", "flow"),
    [
        ("FlowMatchEulerDiscreteScheduler", {"shift": 5.0}, True),
        ("FlowMatchEulerDiscreteScheduler", {"shift": 5.0, "invert_sigmas": True}, True),
        ("FlowMatchHeunDiscreteScheduler", {"shift": 5.0}, True),
        ("FlowMatchLCMScheduler", {"shift": 5.0}, True),
        ("UniPCMultistepScheduler", FLOW, True),  # whose timesteps are whole numbers
        ("DPMSolverMultistepScheduler", FLOW, True),
        ("EulerDiscreteScheduler", {}, False),
        ("HeunDiscreteScheduler", {}, False),
        ("DDIMScheduler", {}, False),  # counts no steps
        ("DDIMScheduler", {"timestep_spacing": "trailing"}, False),
        ("PNDMScheduler", {"skip_prk_steps": True}, False),
        ("LCMScheduler", {}, False),
    ],
)
@pytest.mark.parametrize("start", [0, 5])
def test_each_level_of_every_scheduler(name, settings, flow, start):
    """Whether the model gets timesteps or shares, falling or rising, rounded or not, from the first or a later one."""
    scheduler = timesteps_of(name, **settings)
    times, sigmas = scheduler.timesteps.tolist(), scheduler.sigmas.tolist() if flow else []
    counts = hasattr(scheduler, "set_begin_index")
    if counts and start:
        scheduler.set_begin_index(start)
    rounded = [torch.float32, torch.bfloat16] if counts else [torch.float32]  # else nothing but its level tells a step
    for whole, bits in itertools.product((1000.0, 1.0), rounded):
        scheduled, rises = Scheduled(lambda: scheduler), settings.get("invert_sigmas")
        exact = [s * whole for s in sigmas[: len(times)]] if flow else [t * whole / 1000 for t in times]
        exact = [whole - s for s in exact] if rises else exact
        given = [float(torch.tensor(t * whole / 1000).to(bits)) for t in times]
        given = [whole - t for t in given] if rises else given
        levels, place, steps = scheduled.begin(given[start], flow)
        kept = list(dict.fromkeys(exact))
        assert (levels, steps) == (pytest.approx(kept[place:], abs=1e-9), len(kept)), (levels, kept)
        assert levels[0] == pytest.approx(exact[start], abs=1e-9) and not scheduled.is_over
        for k in range(start, len(times)):
            if counts:
                scheduler._step_index = k
            assert scheduled.exact(given[k]) == pytest.approx(exact[k], abs=1e-9), k
        assert scheduled.exact(given[start] / 2 + 0.01 * whole) != given[start] or not counts
        scheduler.set_timesteps(STEPS)
        if counts and start:
            scheduler.set_begin_index(start)
        assert scheduled.is_over
        scheduled.end()
        assert not scheduled.is_over and scheduled.exact(given[2]) == given[2]


def test_a_scheduler_that_stands_elsewhere_says_nothing():
    scheduler = timesteps_of("FlowMatchEulerDiscreteScheduler", shift=5.0)
    times = scheduler.timesteps.tolist()
    for level, index in ((times[0], 5), (times[5], 0), (times[0], STEPS), (times[0] + 30, 0), (None, 0)):
        scheduler._step_index = index
        scheduled = Scheduled(lambda: scheduler)
        assert scheduled.begin(level, True) == ([], 0, None) and scheduled.exact(level) == level
    for none in (None, object(), diffusers.FlowMatchEulerDiscreteScheduler):
        assert Scheduled(lambda none=none: none).begin(times[0], True) == ([], 0, None)
    edm = timesteps_of("EDMEulerScheduler")  # logarithms, which fall below 0
    assert Scheduled(lambda: edm).begin(float(edm.timesteps[0]), False) == ([], 0, None)

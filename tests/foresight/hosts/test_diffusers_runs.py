"""One run after another with one handle: what an error or a cancel button has ended is no part of the next run."""

import pytest
import torch

pytest.importorskip("diffusers", reason="diffusers is not installed here")

import diffusers
import diffusers.callbacks as callbacks
import numpy

from foresight import ForecastConfig
from foresight.hosts.diffusers import apply_foresight, latents
from foresight.hosts.diffusers.levels import levels_of
from foresight.hosts.diffusers.signs import Signs
from support import diffusers_images
from support.diffusers_models import seeded
from support.diffusers_transformers import mochi, wan

CONFIG = ForecastConfig(threshold=2.0)
STEPS, SHARE = 20, 0.5  # of a whole run, and what a run that begins in its middle has of it


class Cancelled(Exception):
    pass


def cancel(at, kindly):
    def callback(pipe, step, timestep, given):
        if step == at and kindly:
            pipe._interrupt = True
        elif step == at:
            raise Cancelled
        return given

    return callback


def of_images(make):
    """A pipeline's whole run, and one that begins in the middle, as those that are given an image have it."""
    pipe, given = make()
    pipe.set_progress_bar_config(disable=True)
    usual = {**given, "output_type": "latent", "return_dict": False}
    shape = (1, 16, 16) if pipe.__class__.__name__ in ("FluxPipeline", "QwenImagePipeline") else (1, 4, 8, 8)
    count = round(SHARE * STEPS)
    levels = list(numpy.linspace(SHARE, 1 / STEPS, count))
    later = {"sigmas": levels} if shape[1] == 16 or make is diffusers_images.sd3_pipeline else {}
    later = later or {"timesteps": [round(1000 * level) for level in levels]}

    def whole(**more):
        return pipe(**usual, num_inference_steps=STEPS, latents=seeded(*shape, seed=5), **more)[0]

    def half():
        return pipe(**usual, num_inference_steps=count, latents=seeded(*shape, seed=9), **later)[0]

    return pipe.unet if hasattr(pipe, "unet") else pipe.transformer, whole, half


def video_to_video(**levels):
    network = wan().model
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=5.0, **levels)
    pipe = diffusers.WanVideoToVideoPipeline(None, None, network, None, scheduler)
    pipe.set_progress_bar_config(disable=True)

    def run(strength, seed, **more):
        return pipe(
            latents=seeded(1, 4, 3, 8, 8, seed=seed), prompt_embeds=seeded(1, 6, 16, seed=1),
            negative_prompt_embeds=seeded(1, 6, 16, seed=2), num_inference_steps=STEPS, strength=strength,
            guidance_scale=4.0, output_type="latent", height=64, width=64, **more,
        ).frames  # fmt: skip

    return network, lambda **more: run(1.0, 5, **more), lambda: run(SHARE, 9)


PIPELINES = {make.__name__: lambda make=make: of_images(make) for make in diffusers_images.IMAGE_PIPELINES}
PIPELINES["video_to_video"] = video_to_video
CONVERTED = "flux_pipeline", "qwen_image_pipeline"  # they hand over t / 1000: one call alone says nothing
CASES = [
    (name, at, kindly)
    for name in PIPELINES
    for at in ((1, 5, 9) if name in CONVERTED else (0, 1, 5, 9))
    for kindly in ((False,) if name == "video_to_video" else (False, True))  # it has no such button
]


@pytest.mark.parametrize(("name", "at", "kindly"), CASES)
def test_a_run_in_the_middle_after_one_that_was_cancelled(name, at, kindly):
    network, whole, half = PIPELINES[name]()
    handle = apply_foresight(network, CONFIG)
    alone, usual = half(), "".join(e.kind[0] for e in handle.stats.evaluations)
    handle = apply_foresight(network, CONFIG)
    try:
        whole(callback_on_step_end=cancel(at, kindly))
    except Cancelled:
        assert not kindly
    assert torch.equal(half(), alone)
    assert "".join(e.kind[0] for e in handle.stats.evaluations) == usual and "r" in usual


@pytest.mark.parametrize("name", PIPELINES)
def test_a_whole_run_is_one_run(name):
    """Nothing of that takes a run apart."""
    network, whole, _ = PIPELINES[name]()
    handle, begun = apply_foresight(network, CONFIG), []
    make = handle._hooked[0][1]._new_run
    handle._hooked[0][1]._new_run = lambda level, timestep: begun.append(level) or make(level, timestep)
    whole()
    assert len(begun) == 1 and len(handle.stats.evaluations) == STEPS


def test_signs_of_a_list_of_timesteps():
    """Only a number that lies among others says which list it is of; each call may bring a list of its own."""
    near, far, unasked = (lambda: True), (lambda: False), (lambda: 1 / 0)
    first, second = (torch.linspace(1000.0, 50.0, 20) for _ in range(2))
    for form in (lambda t: t, lambda t: t.expand(2), lambda t: t.reshape(1)):
        signs = Signs()
        assert signs.of_another_run(None, form(first[0]), unasked) is None  # the first call of all
        signs.note(None, form(first[0]), True)
        assert signs.of_another_run(None, form(second[0]), far) and not signs.of_another_run(
            None, form(second[0]), near
        )
        assert signs.of_another_run(None, form(second[1]), unasked) is None  # as where each call has its own
        assert signs.of_another_run(None, form(first[1]), unasked) is False
        signs.note(None, form(first[1]), True)
        assert signs.of_another_run(None, form(second[2]), unasked)  # now it is known what its list is
        for other in (first[2].clone(), 300.0, torch.rand(2)):  # a number, a number, tokens with times of their own
            assert signs.of_another_run(None, other, unasked) is None
    signs = Signs()
    for k in range(5):
        assert signs.of_another_run(None, first.clone()[k], unasked) is None
        signs.note(None, first.clone()[k], True)


def test_the_levels_of_a_list_and_the_place_in_it():
    times = torch.linspace(1000.0, 50.0, 20)
    rest = times[3:].tolist()
    for form in (times[3], times[3].expand(2), times[3:4], times[3].unsqueeze(0)):
        assert levels_of(form, rest[0], None, None) == levels_of(form, rest[0], None, 17) == (rest, 3)
        assert levels_of(form, rest[0], None, 20) == ([], 0)  # somebody says another number
        assert levels_of(form, rest[0] / 1000, None, None) == ([], 0)  # it is in other units
    batches = (torch.full((4,), rest[0])[:1], torch.tensor([rest[0], 1.0])[:1], torch.tensor([rest[0], 7.0, 8.0])[0])
    for other in (times[3].clone(), times[:2], times[3:5], 300.0, None, *batches):
        assert levels_of(other, rest[0], None, None) == ([], 0), other
    heun = torch.cat([times[:1], times[1:].repeat_interleave(2)])
    assert levels_of(heun[5], rest[0], None, None) == levels_of(heun[6], rest[0], None, None) == (rest, 3)
    for top in (1.0, 1000.0):  # Lumina's and Mochi's; the level is what the hook reads of it
        rising = top * (1 - 5 * torch.linspace(1, 0.05, 20) / (1 + 4 * torch.linspace(1, 0.05, 20)))
        read = [float((top - t).float()) for t in rising]
        assert levels_of(rising[3], read[3], top, None) == (read[3:], 3)
    rising = torch.arange(20) / 20
    assert levels_of(torch.linspace(1.0, 0.0, 5000)[0], 1.0, None, None) == ([], 0)  # that is no schedule
    logarithms = torch.linspace(1.0, -1.0, 9)  # EDM's
    for numbers in (rising, -times, logarithms, torch.tensor([1000.0, 7.0, 8.0, 800.0])):  # no levels
        assert levels_of(numbers[0], float(numbers[0]), None, None) == ([], 0)


@pytest.mark.parametrize("rises", [False, True])
def test_a_list_is_believed_to_its_end(rises, monkeypatch):
    """Whether timesteps fall or rise, and a user who tells the steps that are left does not stand in its way."""
    sigmas = 5 * torch.linspace(1, 0.05, 20) / (1 + 4 * torch.linspace(1, 0.05, 20))
    transformer = (mochi if rises else wan)()
    handle = apply_foresight(transformer.model, CONFIG, steps=12)
    seen, make = [], handle._hooked[0][1]._new_run
    monkeypatch.setattr(handle._hooked[0][1], "_new_run", lambda *args: seen.append(make(*args)) or seen[-1])
    times, call = (1 - sigmas if rises else sigmas) * 1000, transformer.rising if rises else transformer.call
    x = seeded(*transformer.latent, seed=3)
    with torch.no_grad():
        for k in range(8, 20):  # a run from the middle
            x = x - 0.05 * call(x, times[k : k + 1])[0]
            assert len(seen) == 1 and len(seen[0]._schedule._shown.listed) == 12, k
    assert len(handle.stats.evaluations) == 12
    handle.remove()


def test_latents_on_another_device_are_no_step_apart():
    """Between two runs a model may have been moved."""
    x = torch.ones(1, 4)
    assert (
        latents.is_near((x,), (x,))
        and not latents.is_near((x,), (x.to("meta"),))
        and not latents.is_near((x,), (x[..., :2],))
    )


@pytest.mark.parametrize("name", ["sd3_pipeline", "sdxl_pipeline"])
def test_guidance_that_a_callback_cuts_off_is_no_new_run(name):
    """diffusers' own callbacks: the prompts and the latents are of one cond from there on."""
    sdxl = name == "sdxl_pipeline"
    cutoff = (callbacks.SDXLCFGCutoffCallback if sdxl else callbacks.SD3CFGCutoffCallback)(cutoff_step_ratio=0.4)
    network, whole, _ = PIPELINES[name]()
    handle = apply_foresight(network, CONFIG)
    whole(callback_on_step_end=cutoff, callback_on_step_end_tensor_inputs=cutoff.tensor_inputs)
    assert len(handle.stats.evaluations) == STEPS


def test_a_prompt_and_latents_that_a_callback_changes_are_no_new_run():
    pipe = diffusers.WanPipeline(None, None, None, diffusers.FlowMatchEulerDiscreteScheduler(shift=5.0), wan().model)
    pipe.set_progress_bar_config(disable=True)

    def changed(pipe, step, timestep, given):
        if step == 8:
            given = {"prompt_embeds": seeded(1, 6, 16, seed=7), "latents": seeded(1, 4, 3, 8, 8, seed=8)}
        return given

    handle = apply_foresight(pipe.transformer, CONFIG)
    pipe(
        prompt_embeds=seeded(1, 6, 16, seed=1), negative_prompt_embeds=seeded(1, 6, 16, seed=2), guidance_scale=4.0,
        latents=seeded(1, 4, 3, 8, 8, seed=5), height=64, width=64, num_frames=9, num_inference_steps=STEPS,
        output_type="latent", callback_on_step_end=changed,
        callback_on_step_end_tensor_inputs=["latents", "prompt_embeds"],
    )  # fmt: skip
    assert len(handle.stats.evaluations) == STEPS


@pytest.mark.parametrize("levels", ["use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"])
@pytest.mark.parametrize("share", [1.0, SHARE])
def test_where_levels_do_not_tell_the_steps_the_list_of_timesteps_does(levels, share):
    """Also in a run that begins in its middle: it ends where it does, and not where a longer one would."""
    network, whole, half = video_to_video(**{levels: True})
    kinds = []
    for steps in (None, round(share * STEPS)):  # those that the run has, if the user says it
        handle = apply_foresight(network, CONFIG, steps=steps)
        (whole if share == 1.0 else half)()
        kinds.append("".join(e.kind[0] for e in handle.stats.evaluations))
        assert handle.stats.steps == steps and handle.stats.inactive is None
    assert len(kinds[0]) == share * STEPS and kinds[0][-1] == "f"
    assert kinds[1].count("r") - 1 <= kinds[0].count("r") <= kinds[1].count("r") + 2

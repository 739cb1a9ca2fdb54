"""One run after another with one handle: what an error or a cancel button has ended is no part of the next run."""

import pytest
import torch

pytest.importorskip("diffusers", reason="diffusers is not installed here")

import diffusers
import numpy

from foresight import ForecastConfig
from foresight.hosts.diffusers import apply_foresight
from foresight.hosts.diffusers.signs import Signs
from support import diffusers_images
from support.diffusers_models import seeded
from support.diffusers_transformers import wan

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


def video_to_video():
    network = wan().model
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=5.0)
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
    make = handle._hook._new_run
    handle._hook._new_run = lambda level: begun.append(level) or make(level)
    whole()
    assert len(begun) == 1 and len(handle.stats.evaluations) == STEPS


def test_signs_of_a_list_of_timesteps():
    """Only a number that lies among others says which list it is of; one call may bring a list of its own."""
    near, far = (lambda: True), (lambda: False)
    first, second = (torch.linspace(1000.0, 50.0, 20) for _ in range(2))
    for form in (lambda t: t, lambda t: t.expand(2), lambda t: t.reshape(1)):
        signs = Signs()
        assert not signs.of_another_run(None, form(first[0]), far)  # the first call of all
        signs.note(None, form(first[0]), True)
        assert signs.of_another_run(None, form(second[1]), far)
        assert not signs.of_another_run(None, form(second[1]), near)  # it may be that every call has its own
        assert not signs.of_another_run(None, form(first[1]), far)
        signs.note(None, form(first[1]), True)
        assert signs.of_another_run(None, form(second[2]), near)  # now it is known what its list is
        assert not signs.of_another_run(None, first[2].clone(), far) and not signs.of_another_run(None, 300.0, far)
        assert not signs.of_another_run(None, torch.rand(2), far)  # tokens with times of their own

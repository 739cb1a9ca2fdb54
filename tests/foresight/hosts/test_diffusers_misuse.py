"""What people do to a pipeline between and around its runs: offloading, errors, gradients, wrong numbers."""

import functools
import math
import threading
import time

import pytest
import torch

pytest.importorskip("diffusers", reason="diffusers is not installed here")

import diffusers

from foresight import ForecastConfig, PaperConfig
from foresight.hosts.diffusers import apply_foresight
from foresight.hosts.diffusers.threads import ALONE, Threads
from models.demo import codec, model
from models.demo.pipeline import SHAPE, _locate
from models.demo.prompt import embed
from support.diffusers_models import seeded
from support.diffusers_transformers import wan

CONFIG = ForecastConfig(threshold=2.0)


def euler():
    return diffusers.FlowMatchEulerDiscreteScheduler(shift=5.0)


def pipeline(cls=diffusers.WanPipeline):
    """Wan's with tiny random weights."""
    pipe = cls(None, None, None, euler(), wan().model)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def sample(pipe, steps=20, **more):
    more = {"latents": seeded(1, 4, 3, 8, 8, seed=5), **more}
    return pipe(
        prompt_embeds=seeded(1, 6, 16, seed=1),
        negative_prompt_embeds=seeded(1, 6, 16, seed=2), guidance_scale=4.0, output_type="latent",
        height=64, width=64, num_frames=9, num_inference_steps=steps, **more,
    ).frames  # fmt: skip


def kinds(handle):
    return "".join(e.kind[0] for e in handle.stats.evaluations)


class Offloaded(diffusers.WanPipeline):
    """As accelerate's model offloading does it: a wrapper that is taken off and put on again around every run."""

    calls = 0

    def enable_model_cpu_offload(self, *args, **kwargs):
        module = self.transformer
        if "_old_forward" in module.__dict__:
            module.forward = module._old_forward
            del module._old_forward
        self._all_hooks, module._old_forward = [self], module.forward

        def wrapper(module, *args, **kwargs):
            self.calls += 1
            return module._old_forward(*args, **kwargs)

        module.forward = functools.update_wrapper(functools.partial(wrapper, module), module._old_forward)


@pytest.mark.parametrize("first", ["offloading", "foresight"])
def test_offloading_that_is_put_on_anew_after_every_run(first):
    pipe, alone = pipeline(Offloaded), pipeline()
    plain, handle = sample(alone), apply_foresight(alone.transformer, CONFIG)
    ours, expected = sample(alone), kinds(handle)
    assert "r" in expected
    if first == "offloading":
        pipe.enable_model_cpu_offload()
    handle = apply_foresight(pipe.transformer, CONFIG)
    if first == "foresight":
        pipe.enable_model_cpu_offload()
    seen = []
    for _ in range(3):
        assert torch.equal(sample(pipe), ours) and kinds(handle) == expected
        assert handle.stats not in seen
        seen.append(handle.stats)
    handle.remove()
    for _ in range(2):
        before = pipe.calls
        assert torch.equal(sample(pipe), plain) and pipe.calls == before + 40  # it is there, and we are not


def test_a_call_outside_of_a_pipeline_is_no_part_of_its_next_run():
    """As to compile the model: its timestep is told in another unit than that of a pipeline with contexts."""
    pipe = pipeline()
    handle = apply_foresight(pipe.transformer, CONFIG)
    ours, usual = sample(pipe), kinds(handle)
    for timestep in (999.0, 1000.0, 1.0):
        with torch.no_grad():
            pipe.transformer(seeded(1, 4, 3, 8, 8, seed=9), torch.tensor([timestep]), seeded(1, 6, 16, seed=1))
        assert torch.equal(sample(pipe), ours) and kinds(handle) == usual, timestep


@pytest.mark.parametrize("steps", [50, 20, 12])
@pytest.mark.parametrize("at", [0, 1, 4])
def test_a_run_that_an_error_between_calls_has_ended_is_over(steps, at):
    pipe = pipeline()
    handle = apply_foresight(pipe.transformer, CONFIG)
    ours, usual = sample(pipe), kinds(handle)

    def fails(pipe, step, *_):
        if step == at:
            raise ValueError("of the user's")
        return {}

    for _ in range(2):
        with pytest.raises(ValueError, match="of the user's"):
            sample(pipe, steps, callback_on_step_end=fails)
    assert torch.equal(sample(pipe), ours) and kinds(handle) == usual


@pytest.mark.parametrize("method", [ForecastConfig(threshold=2.0), PaperConfig(threshold=2.0)], ids=lambda c: c.name)
@pytest.mark.parametrize("again", [False, True], ids=["removed", "applied anew"])
@pytest.mark.parametrize("at", [8, 13])
def test_what_is_taken_off_while_the_model_computes(method, again, at):
    """By a button, say. The call under way is finished, and the rest of the video is plain or the new one's."""
    pipe, calls = pipeline(), []
    handle = apply_foresight(pipe.transformer, method)

    def during(module, args):
        calls.append(1)
        if len(calls) == at:
            handle.remove()
            if again:
                apply_foresight(pipe.transformer, ForecastConfig(threshold=0.001))

    plain = sample(pipeline())
    pipe.transformer.blocks[1].register_forward_pre_hook(during)
    ours = sample(pipe)
    assert ((ours - plain).norm() / plain.norm()).item() < 0.06 and len(calls) >= at
    assert handle.stats.evaluations and not handle.stats.inactive


def test_two_threads_with_one_transformer_have_plain_videos():
    pipes, alone, found = [pipeline(), pipeline()], [], {}
    pipes[1].transformer = transformer = pipes[0].transformer
    both = threading.Barrier(2)

    def latents(seed):
        return {"latents": seeded(1, 4, 3, 8, 8, seed=seed)}

    def meet(pipe, step, t, given):
        if step == 0:
            both.wait(30)
        return given

    def job(i):
        found[i] = sample(pipes[i], callback_on_step_end=meet, **latents(i))

    alone = [sample(pipeline(), **latents(i)) for i in (0, 1)]
    transformer.blocks[1].register_forward_pre_hook(lambda *_: time.sleep(0.02))  # so that they are there at once
    handle = apply_foresight(transformer, CONFIG)
    threads = [threading.Thread(target=job, args=(i,)) for i in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert torch.equal(found[0], alone[0]) and torch.equal(found[1], alone[1])
    assert not handle.stats or "two threads" in (handle.stats.inactive or "") or not handle.stats.reused
    after = sample(pipes[0], **latents(0))  # in a thread alone it goes on as before
    assert handle.stats.reused and ((after - alone[0]).norm() / alone[0].norm()).item() < 0.05


def test_a_crowd_is_over_when_one_thread_has_been_alone_for_a_while():
    """A UNet does not say when a run ends, which would end it too."""
    threads = Threads()
    other = threading.Thread(target=threads.enter)
    other.start()
    other.join()
    threads.enter()
    assert threads.crowded
    threads.leave()
    threads._inside.clear()  # the other is out
    seen = []
    for _ in range(ALONE):
        threads.enter()
        threads.leave()
        seen.append(threads.crowded)
    assert seen == [True] * (ALONE - 1) + [False]


@pytest.mark.parametrize("in_place", [False, True], ids=["another", "overwritten"])
def test_a_prompt_that_a_callback_changes(in_place):
    def changes(pipe, step, t, given):
        if step == 8:
            other = seeded(1, 6, 16, seed=9)
            given["prompt_embeds"] = given["prompt_embeds"].copy_(other) if in_place else other
        return given

    pipe, embeds = pipeline(), ["prompt_embeds"]
    handle = apply_foresight(pipe.transformer, ForecastConfig(threshold=8.0), steps=20)
    with torch.no_grad():
        sample(pipe)
        as_it_is = kinds(handle)
        sample(pipe, callback_on_step_end=changes, callback_on_step_end_tensor_inputs=embeds)
    assert as_it_is[9] == "r" and kinds(handle)[9] == "f", (as_it_is, kinds(handle))


def test_what_the_pipeline_says_goes_before_what_was_told():
    pipe = pipeline()
    handle = apply_foresight(pipe.transformer, CONFIG)
    ours, usual = sample(pipe), kinds(handle)
    for told in (10, 50):
        handle = apply_foresight(pipe.transformer, CONFIG, steps=told)
        assert torch.equal(sample(pipe), ours) and kinds(handle) == usual


@pytest.mark.parametrize("place", ["auto", "cpu", "gpu"])
@pytest.mark.parametrize("config", [ForecastConfig, PaperConfig])
def test_what_does_not_fit_into_the_budget_waits_in_ram_unless_it_must_not(config, place):
    pipe = pipeline()
    handle = apply_foresight(pipe.transformer, config(threshold=2.0))
    sample(pipe)
    budget = 0.85 * handle.stats.peak_bytes / 2**30
    handle = apply_foresight(pipe.transformer, config(threshold=2.0, cache_device=place, cache_budget_gb=budget))
    sample(pipe)
    if place == "gpu":
        assert ", the budget is " in handle.stats.inactive
    else:
        assert handle.stats.inactive is None and handle.stats.in_ram and handle.stats.reused


@pytest.mark.parametrize("steps", [0, -3, 2.5, "8"])
def test_a_number_of_steps_that_is_none_is_refused(steps):
    transformer = pipeline().transformer
    with pytest.raises(ValueError, match=f"steps={steps!r}: must be a whole number of 1 or more, or None"):
        apply_foresight(transformer, CONFIG, steps=steps)
    assert not hasattr(transformer, "_diffusers_hook")


def test_gradients_are_those_of_the_model(caplog):
    """Forecasts have none: half of a run's would be missing, and nobody would see it."""
    net = wan().model
    handle = apply_foresight(net, CONFIG)

    def gradient():
        x = start = seeded(1, 4, 3, 8, 8, seed=5).requires_grad_()
        for k in range(8):
            x = x - net(x, torch.tensor([1000.0 - 125 * k]), seeded(1, 6, 16, seed=1))[0] / 8
        x.square().sum().backward()
        return start.grad

    with caplog.at_level("INFO"):
        ours = gradient()
    assert caplog.text.count("gradients are wanted") == 1
    handle.remove()
    assert torch.equal(ours, gradient())


@pytest.mark.parametrize("steps", [10, 20])
def test_a_pipeline_that_counts_evaluations_as_steps(steps):
    """Wan's with Heun's method; taken for 39 steps, the last ones of 20 were left out (36 dB; 20 dB with 10)."""
    net = model.load_diffusers()
    net.register_forward_pre_hook(_locate, with_kwargs=True)
    pipe = diffusers.WanPipeline(None, None, None, diffusers.FlowMatchHeunDiscreteScheduler(shift=5.0), net)
    pipe.set_progress_bar_config(disable=True)

    def made():
        noise = torch.randn(SHAPE, generator=torch.Generator().manual_seed(3))[..., :8, :]
        latents = pipe(
            prompt_embeds=embed(["red ball moving right"]), negative_prompt_embeds=embed([""]), latents=noise,
            num_inference_steps=steps, guidance_scale=4.0, output_type="latent", height=64, width=128,
            num_frames=4 * (SHAPE[2] - 1) + 1,
        ).frames  # fmt: skip
        return codec.decode(latents)

    plain, handle = made(), apply_foresight(net)
    missed = (made() - plain).square().mean().item()
    assert handle.stats.steps == steps and len(handle.stats.evaluations) == 2 * steps - 1
    assert kinds(handle).endswith("f") and ("r" in kinds(handle)) == (steps == 20)
    assert missed == 0 or -10 * math.log10(missed) > 50


@pytest.mark.parametrize("told", [None, 20])
def test_the_second_half_of_a_second_order_run_is_not_behind_its_end(told):
    """Where levels are not told, evaluations were taken for steps: from halfway on the run was over."""
    net, levels = wan().model, [5 * t / (1 + 4 * t) for t in (1 - k / 20 for k in range(20))]
    handle, x = apply_foresight(net, CONFIG, steps=told), seeded(1, 4, 3, 8, 8, seed=5)

    def velocity(x, level):
        return net(x, torch.tensor([1000.0 * level]), seeded(1, 6, 16, seed=1))[0]

    with torch.no_grad():
        for now, after in zip(levels, [*levels[1:], None], strict=True):
            v = velocity(x, now)
            if after is not None:
                x = x + (after - now) * (v + velocity(x + (after - now) * v, after)) / 2
    handle.remove()
    found = kinds(handle)
    assert len(found) == 39 and "p" not in found and "r" in found[20:]


@pytest.mark.parametrize("steps", [10, 20, 30])
def test_both_transformers_of_such_a_pipeline_end_as_they_should(steps):
    """The second one begins with a pair of evaluations."""
    scheduler = diffusers.FlowMatchHeunDiscreteScheduler(shift=5.0)
    pipe = diffusers.WanPipeline(
        None, None, None, scheduler, wan().model, transformer_2=wan().model, boundary_ratio=0.875
    )
    pipe.set_progress_bar_config(disable=True)
    plain = sample(pipe, steps)
    handles = [apply_foresight(net, CONFIG) for net in (pipe.transformer, pipe.transformer_2)]
    ours, (first, second) = sample(pipe, steps), map(kinds, handles)
    assert len(first) + len(second) == 2 * steps - 1 and second.endswith("f"), (first, second)
    assert (ours - plain).norm() < 0.1 * plain.norm()

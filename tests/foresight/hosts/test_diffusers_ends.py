"""The last evaluations are computed: of a run whose length is not known, of two transformers' runs, of their stages."""

import pytest
import torch

pytest.importorskip("diffusers", reason="diffusers is not installed here")

import diffusers

from foresight import ForecastConfig
from foresight.hosts.diffusers import apply_foresight
from support.diffusers_models import arguments, seeded
from support.diffusers_transformers import wan

CONFIG = ForecastConfig(threshold=2.0)


def pipeline(scheduler, two=False, cls=diffusers.WanPipeline):
    nets = {"transformer": wan().model}
    more = {"boundary_ratio": 0.875, "transformer_2": wan().model} if two else {}
    pipe = cls(tokenizer=None, text_encoder=None, vae=None, scheduler=scheduler, **nets, **more)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def sample(pipe, steps):
    pipe(
        latents=seeded(1, 4, 3, 8, 8, seed=5), prompt_embeds=seeded(1, 6, 16, seed=1),
        negative_prompt_embeds=seeded(1, 6, 16, seed=2), num_inference_steps=steps, guidance_scale=4.0,
        output_type="latent", height=64, width=64, num_frames=9,
    )  # fmt: skip


def kinds(handle):
    return "".join(e.kind[0] for e in handle.stats.evaluations)


@pytest.mark.parametrize("steps", [20, 30, 50])
def test_both_stages_of_two_transformers(steps):
    pipe = pipeline(diffusers.FlowMatchEulerDiscreteScheduler(shift=5.0), two=True)
    handles = [apply_foresight(net, CONFIG) for net in (pipe.transformer, pipe.transformer_2)]
    sample(pipe, steps)
    first = [kinds(handle) for handle in handles]
    assert sum(map(len, first)) == steps and first[1][-1] == "f" and "r" in first[1]
    sample(pipe, steps)  # the first transformer knows now where its stage ends
    again = [kinds(handle) for handle in handles]
    assert again[0][-1] == "f" and again[1][-1] == "f" and sum(map(len, again)) == steps
    handles[0] = apply_foresight(pipe.transformer, CONFIG, until=0.875)
    sample(pipe, steps)
    assert kinds(handles[0])[-1] == "f"


def test_a_run_that_is_no_stage_forgets_the_boundary():
    pipe = pipeline(diffusers.FlowMatchEulerDiscreteScheduler(shift=5.0), two=True)
    handle = apply_foresight(pipe.transformer, CONFIG)
    sample(pipe, 30)
    alone = diffusers.WanPipeline(None, None, None, pipe.scheduler, pipe.transformer)
    alone.set_progress_bar_config(disable=True)
    sample(alone, 30)
    sample(alone, 30)
    whole = kinds(handle)
    handle.remove()
    fresh = apply_foresight(pipe.transformer, CONFIG)
    sample(alone, 30)
    assert kinds(fresh) == whole and whole[-1] == "f"


def levels(steps, shift, lowest=0.0):
    """Shares of noise of a schedule: first to last, without the 0 at its end."""
    even = [1 - i / steps for i in range(steps)]
    shifted = [shift * t / (1 + (shift - 1) * t) for t in even]
    return [lowest + (1 - lowest) * t if lowest else t for t in shifted]


@pytest.mark.parametrize("steps", [20, 30, 50])
@pytest.mark.parametrize("shift", [1.0, 3.0, 5.0, 12.0])
@pytest.mark.parametrize("lowest", [0.0, 0.1], ids=["to 0", "to 0.1"])
def test_the_last_evaluation_where_the_number_of_steps_is_not_known(steps, shift, lowest):
    net, grid = wan().model, levels(steps, shift)
    if lowest:  # stretched, so that the last level before 0 is this, as LTX-Video's schedule is
        grid = [1 - (1 - t) * (1 - lowest) / (1 - grid[-1]) for t in grid]
    handle = apply_foresight(net, CONFIG)
    x = seeded(1, 4, 3, 8, 8, seed=5)
    with torch.no_grad():
        for now, after in zip(grid, [*grid[1:], 0.0], strict=True):
            v = net(**arguments("wan", x, 1000 * now, seeded(1, 6, 16, seed=1)))[0]
            x = x + (after - now) * v
    handle.remove()
    found = kinds(handle)
    assert len(found) == steps and found[-1] == "f" and "r" in found

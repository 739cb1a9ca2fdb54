"""The last evaluations are computed, also where nobody says how many there are; of two transformers, the second's."""

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


@pytest.mark.parametrize(
    "scheduler",
    [
        diffusers.FlowMatchEulerDiscreteScheduler(shift=5.0),
        diffusers.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0),
    ],
    ids=["euler", "unipc"],
)
def test_only_the_second_of_two_transformers_computes_its_end(scheduler):
    pipe = pipeline(scheduler, two=True)
    handles = [apply_foresight(net, CONFIG) for net in (pipe.transformer, pipe.transformer_2)]
    ends = []
    for steps in (20, 20, 30, 50):
        sample(pipe, steps)
        first, second = map(kinds, handles)
        assert len(first) + len(second) == steps and second[-1] == "f" and "r" in second
        ends.append(first[-1])
    assert "r" in ends and ends[0] == ends[1]  # which it knows nothing of, in its second run as in its first


def test_a_run_that_is_no_stage_is_planned_as_before():
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

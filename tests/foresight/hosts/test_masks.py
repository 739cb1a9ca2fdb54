"""What a mask keeps is nobody's evidence: a sampler leaves it as it is, whatever the model gives for it."""

import pytest
import torch

pytest.importorskip("comfy", reason="ComfyUI is not installed here")

import comfy.nested_tensor
import comfy.sample

from foresight import ForecastConfig
from foresight.engine.history import quieted
from foresight.hosts.comfyui import apply_foresight
from foresight.hosts.comfyui.outputs import Parts
from support.comfy_any import ltx_2
from support.comfy_models import ltxv
from support.reference_forecast import Reference

CONFIG = ForecastConfig(threshold=2.0)
VIDEO, SOUND = (1, 16, 3, 4, 4), (1, 8, 5, 16)


def normal(*shape, seed=7):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def sample(model, patcher, latent, mask, sampler="euler", steps=20):
    noise = comfy.sample.prepare_noise(latent, 5)
    texts = model.text(1), model.text(2)
    with torch.inference_mode():
        return comfy.sample.sample(
            patcher, noise, steps, 3.0, sampler, "simple", *texts, latent, noise_mask=mask, disable_pbar=True, seed=0
        )


def nested(*parts):
    return comfy.nested_tensor.NestedTensor(list(parts))


def computed(stats):
    return len(stats.evaluations) - stats.reused


@pytest.mark.parametrize("sampler", ["euler", "res_multistep"])
@pytest.mark.parametrize("kept", ["sound", "video"])
def test_a_part_that_is_kept_does_not_keep_the_other_from_being_forecast(kept, sampler, runs):
    """The sound of a video that is there already (LTX-2): the model holds it clean, so that it never moves."""
    model, latent = ltx_2(), nested(normal(*VIDEO), normal(*SOUND))
    mask = nested(
        *(torch.full((1, 1, *shape[2:]), float(part != kept)) for part, shape in (("video", VIDEO), ("sound", SOUND)))
    )
    patcher = apply_foresight(model.patcher, CONFIG)
    plain, ours = (sample(model, p, latent, mask, sampler).unbind() for p in (model.patcher, patcher))
    sample(model, patcher, latent, None, sampler)
    masked, whole = runs
    assert masked.reused >= 7 and computed(masked) <= computed(whole) + 2
    made, other = (0, 1) if kept == "sound" else (1, 0)
    assert torch.equal(ours[other], plain[other]) and not torch.equal(ours[made], plain[made])
    assert (ours[made] - plain[made]).norm() < 0.05 * plain[made].norm()
    shown = [row.missed_parts for row in masked.evaluations if row.missed_parts]
    assert shown and all(errors[other] == 0 < errors[made] for errors in shown)


@pytest.mark.parametrize("columns", [1, 2, 6])
@pytest.mark.parametrize("sampler", ["euler", "uni_pc"])
def test_however_little_is_made_it_is_forecast(sampler, columns, runs):
    """LTX-Video holds what is kept clean; seven eighths of it said that the sampler had not gone on."""
    model, latent = ltxv(), normal(1, 128, 3, 8, 8)
    mask = torch.zeros(1, 1, 3, 8, 8)
    mask[..., :columns] = 1
    patcher, reference = apply_foresight(model.patcher, CONFIG), Reference(CONFIG.threshold)
    plain, ours = (sample(model, p, latent, mask, sampler) for p in (model.patcher, patcher))
    torch.testing.assert_close(
        ours, sample(model, reference(model.patcher), latent, mask, sampler), rtol=1e-4, atol=1e-4
    )
    assert runs[0].reused >= 6 and reference.computed == computed(runs[0]) + runs[0].taken_back
    assert torch.equal(ours[..., columns:], plain[..., columns:])
    assert (ours - plain)[..., :columns].norm() < 0.1 * plain[..., :columns].norm()


def test_a_run_of_which_all_is_kept_is_the_plain_one(runs):
    model, latent = ltxv(), normal(1, 128, 3, 8, 8)
    ours = sample(model, apply_foresight(model.patcher, CONFIG), latent, torch.zeros(1, 1, 3, 8, 8))
    assert torch.equal(ours, sample(model, model.patcher, latent, torch.zeros(1, 1, 3, 8, 8))) and not runs[0].reused


def test_a_mask_of_another_size_than_the_latent_has_by_now_is_not_used():
    """A sampler may make the latent larger on its way."""
    mask = torch.zeros(1, 2, 4, 4)
    parts, x, larger = Parts(None, mask=mask), torch.ones(1, 2, 4, 4), torch.ones(1, 2, 8, 8)
    assert not parts.made(x)[0].any() and parts.made(larger)[0].all()
    assert not parts.unit(x, 1.0, 1.0, (2 * x,))[0].any() and parts.unit(larger, 1.0, 1.0, (2 * larger,))[0].all()


def test_validate_measures_what_is_made(runs):
    """With an eighth of the latent made, what is kept would count eight times as much as that."""
    model, latent = ltxv(), normal(1, 128, 3, 8, 8)
    mask = torch.zeros(1, 1, 3, 8, 8)
    mask[..., :1] = 1
    config = ForecastConfig(threshold=2.0, validate=True)
    for given in (mask, None):
        sample(model, apply_foresight(model.patcher, config), latent, given)
    errors, whole = ([row.missed for row in stats.evaluations if row.kind == "reuse"] for stats in runs)
    assert len(errors) > 5 and None not in errors and max(errors) < 1.5 * max(whole)


def test_the_unit_of_a_loud_part_is_limited_however_little_of_it_is_made():
    unit = torch.zeros(1, 1, 1000)
    unit[..., :10] = 8.0
    assert quieted((unit,), [1.0])[0].max() == pytest.approx(1.2)

"""The method "forecast" in diffusers, in the loop of `diffusers_models`."""

import pytest
import torch

pytest.importorskip("diffusers", reason="diffusers is not installed here")

from foresight import ForecastConfig
from foresight.hosts.diffusers import apply_foresight
from foresight.hosts.diffusers.families import FAMILIES
from foresight.hosts.diffusers.latents import names_of
from support.diffusers_models import arguments, loop, seeded, stack
from support.diffusers_transformers import ltx_2

NOTHING = ForecastConfig(threshold=1e-12)
MUCH = ForecastConfig(threshold=2.0)


@pytest.mark.parametrize("run", [{}, {"batch": 2}, {"cfg": False}, {"heun": True}], ids=str)
def test_measuring_changes_nothing(transformers, name, applied, run):
    plain = loop(transformers[name], name, **run)
    handle = applied(NOTHING)
    assert torch.equal(loop(transformers[name], name, **run), plain)
    assert handle.stats.reused == 0 and handle.stats.total and handle.stats.peak_bytes


def test_what_is_left_out_calls_no_block_and_what_is_computed_calls_all(transformers, name, applied):
    calls = [0]

    def count(*_):
        calls[0] += 1

    hook = stack(transformers, name)[0].register_forward_pre_hook(count)
    handle = applied(MUCH, steps=60)
    out = loop(transformers[name], name, steps=60)
    hook.remove()
    evaluations = handle.stats.evaluations
    computed = [e for e in evaluations if sum(e.computed)]
    assert 0 < len(computed) < len(evaluations) == 60
    assert calls[0] == sum(e.computed[0] for e in evaluations)
    assert all(sum(e.reused) == sum(computed[0].computed) for e in evaluations if e not in computed)
    assert all(sum(e.computed) for e in evaluations[-2:]) and torch.isfinite(out).all()


def test_two_runs_in_a_row_and_one_after_an_interrupt_are_each_as_alone(transformers, name, applied):
    plain = loop(transformers[name], name)
    handle = applied(MUCH, steps=12)
    first = loop(transformers[name], name)
    assert torch.equal(loop(transformers[name], name), first)
    with pytest.raises(KeyboardInterrupt):
        loop(transformers[name], name, fail_at=7)
    assert torch.equal(loop(transformers[name], name), first)
    handle.remove()
    assert torch.equal(loop(transformers[name], name), plain)


@pytest.mark.parametrize("return_dict", [False, True])
def test_a_forecast_has_the_form_of_the_result(transformers, name, applied, return_dict):
    applied(MUCH, steps=60)
    kinds = set()
    with torch.no_grad():
        for i in range(6):
            x = seeded(1, 4, 3, 8, 8, seed=3)  # nothing changes: what can be left out is
            kwargs = arguments(name, x, 900 - 30 * i, seeded(1, 6, 16, seed=1))
            with transformers[name].cache_context("cond"):
                result = transformers[name](**{**kwargs, "return_dict": return_dict})
            kinds.add((type(result), result[0].shape))
    assert len(kinds) == 1
    transformers[name]._reset_stateful_cache()


def rms(x):
    return float(x.double().square().mean().sqrt())


def test_video_and_audio_each_have_their_error():
    """What is off is what guidance makes of cond and uncond, in either part; the audio changes faster."""
    steps, net = 24, ltx_2().model
    for p in net.parameters():
        p.data *= 0.3  # so that outputs change little from step to step,
    net.audio_proj_out.weight.data *= 20  # but for the audio's
    # no more than three in a row: how guidance blends is measured from what was computed, and gets stale
    handle = apply_foresight(net, ForecastConfig(threshold=2.0, reuse_interval=4, validate=True), steps=steps)
    x, off, loud = [seeded(1, 48, 4, seed=3), seeded(1, 5, 4, seed=4)], [], []
    shape = {"num_frames": 3, "height": 4, "width": 4, "audio_num_frames": 5, "return_dict": False}

    def guided(forward, k):
        outs = []
        for name, seed in (("uncond", 1), ("cond", 2)):
            text = dict.fromkeys(("encoder_hidden_states", "audio_encoder_hidden_states"), seeded(1, 6, 16, seed=seed))
            latents = {"hidden_states": x[0], "audio_hidden_states": x[1]}
            with net.cache_context(name):
                outs.append(forward(timestep=torch.tensor([1000 * (1 - k / steps)]), **latents, **text, **shape))
        return [u + 3 * (c - u) for u, c in zip(*outs, strict=True)]

    with torch.no_grad():
        for k in range(steps):
            given = guided(net, k)
            real = guided(handle._hooked[0][1].fn_ref.original_forward, k)
            off.append([rms(g - r) / min(rms(r), 1.2) for g, r in zip(given, real, strict=True)])
            loud.append(rms(real[1]) > 1.2)
            x = [y - v / steps for y, v in zip(x, given, strict=True)]
    stats = handle.stats
    handle.remove()
    left_out = [k for k, e in enumerate(stats.evaluations) if e.kind == "reuse"]
    assert stats.parts == ("video", "audio") and len(left_out) > 3 and any(loud[k] for k in left_out)
    for k in left_out:
        row = stats.evaluations[k]
        assert row.missed_parts == pytest.approx(off[k], rel=0.02, abs=1e-4) and row.missed == max(row.missed_parts)
    assert stats.missed_parts["audio"] > 1.5 * stats.missed_parts["video"] > 0
    assert all(e.missed_parts for e in stats.evaluations[2:-1])  # of the last nobody sees what came of it


def test_names_of_parts():
    video, audio = torch.zeros(1, 4, 3, 8, 8), torch.zeros(1, 5, 4)
    of = {name: family for name in ("LTX-2", "Wan 2.1 / 2.2", "Cosmos 3") for family in FAMILIES if family.name == name}
    both = {"hidden_states": video, "audio_hidden_states": audio}
    assert names_of(of["LTX-2"], both) == ("video", "audio")
    assert names_of(of["LTX-2"], {**both, "audio_hidden_states": None}) == ()  # a video without sound
    assert names_of(of["Wan 2.1 / 2.2"], {"hidden_states": video}) == ()
    tokens = {"vision_tokens": [video], "action_tokens": [audio]}
    assert names_of(of["Cosmos 3"], tokens) == ("vision", "action")
    assert names_of(of["Cosmos 3"], {**tokens, "vision_tokens": [video, video]}) == ()  # two videos

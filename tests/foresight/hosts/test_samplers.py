"""Every sampler, scheduler and guider of ComfyUI on the bundled model: as good as promised, or left alone."""

import math

import pytest
import torch

pytest.importorskip("comfy", reason="ComfyUI is not installed here")

import comfy.patcher_extension
import comfy.samplers
import comfy_extras.nodes_custom_sampler as guiders
import comfy_extras.nodes_perpneg as perpneg

from bench import samplers
from bench.comfy import Demo, noise_of
from foresight import ForecastConfig
from foresight.engine import moves
from foresight.engine.forecast import Forecast
from foresight.engine.trajectory import Trajectory
from foresight.hosts.comfyui.replay import amplification, order
from models.demo.prompt import embed
from support.told import computes

pytestmark = pytest.mark.sweep
HALF, ONE = ForecastConfig(threshold=0.5), ForecastConfig(threshold=1.0)
ENOUGH = 33.0  # dB at threshold 0.5, for the guiders with three conds, which make most of an early error
ROWS = 8  # half of the picture, in 0.4 of the time
FEWER = 4  # where what is asked for holds on a smaller corner too, in a third of that time


@pytest.fixture(scope="module")
def demo():
    return Demo()


def run(demo, settings, sampler="euler", steps=20, scheduler="simple", cfg=samplers.CFG, rows=ROWS):
    return samplers.sample(demo, settings, sampler, steps, scheduler, cfg, rows)


def check(plain, ours, enough=ENOUGH):
    """Good enough, or left alone; and what the record says of corrections is what was done."""
    found = samplers.compare(plain, ours)
    if found["inactive"] or found["speedup"] == 1:
        assert torch.equal(ours.clip, plain.clip)
    else:
        assert found["psnr"] >= enough, found
    assert found["uncorrected"] is None
    return found


def each_once(samplers):
    """Those that draw their noise on a GPU are the same as those that don't where there is none."""
    reason = "without a GPU it does what the sampler without _gpu does"
    without = pytest.mark.skipif(not torch.cuda.is_available(), reason=reason)
    return [pytest.param(sampler, marks=without) if sampler.endswith("_gpu") else sampler for sampler in samplers]


@pytest.mark.parametrize("sampler", each_once(comfy.samplers.KSampler.SAMPLERS))
def test_every_sampler(demo, sampler):
    try:
        plain = run(demo, None, sampler, cfg=1.0, rows=FEWER)  # a guidance of 1 takes half of the time
    except Exception as error:
        pytest.skip(f"not for this model: {error}")
    check(plain, run(demo, HALF, sampler, cfg=1.0, rows=FEWER))


def test_an_ancestral_sampler_without_noise_is_taken_for_what_it_is():
    """`euler_cfg_pp` is `euler_ancestral_cfg_pp` with an eta of 0, which a node of core can set."""
    without_noise = comfy.samplers.ksampler("euler_ancestral_cfg_pp", {"eta": 0.0})
    assert amplification(without_noise) == amplification(comfy.samplers.sampler_object("euler_cfg_pp")) == 2


def latents_of(demo, sampler, output):
    """The latents that a sampler comes with, if the model's answer at evaluation k is `output(k, x)`."""
    patcher, seen = demo.model.clone(), []

    def answer(executor, x, *args, **kwargs):
        seen.append(x.flatten().clone())
        return output(len(seen) - 1, x)

    patcher.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.PREDICT_NOISE, "answer", answer)
    guider = comfy.samplers.CFGGuider(patcher)
    guider.set_conds(*[[[embed([""]), {}]]] * 2)
    guider.set_cfg(1.0)
    noise = noise_of(1)[..., :ROWS, :]
    with torch.inference_mode():
        guider.sample(
            noise, noise * 0, comfy.samplers.sampler_object(sampler), demo.sigmas(20), disable_pbar=True, seed=1
        )
    return seen


def one_hot(k, x):
    out = torch.zeros_like(x)
    out.view(-1)[k] = 1
    return out


FIXED = [s for s in comfy.samplers.KSampler.SAMPLERS if not s.endswith("_cfg_pp") and "adaptive" not in s]


@pytest.mark.parametrize("sampler", each_once(FIXED))
def test_a_sampler_that_makes_much_more_of_outputs_than_euler_is_known(demo, sampler):
    """A latent is the noise and a sum of outputs, whose weights are seen where output k is 1 in place k alone.

    Their size over their sum is what errors of either sign may come to: 1 for Euler, and 10 for `ipndm_v` at the end.
    Samplers of CFG++ go by the unguided output as well, and are compared with plain runs.
    """
    try:
        with_outputs, without = (latents_of(demo, sampler, o) for o in (one_hot, lambda k, x: torch.zeros_like(x)))
    except NotImplementedError as error:
        pytest.skip(f"not for this model: {error}")
    weights = [a - b for a, b in zip(with_outputs, without, strict=True)]
    most = max((w.abs().sum() / w.sum().abs().clamp_min(0.02)).item() for w in weights)
    chosen = comfy.samplers.sampler_object(sampler)
    known = order(chosen) > 1 or amplification(chosen) > 1
    assert known == (most > 2.5), most


@pytest.mark.parametrize("sampler", ["euler", "euler_cfg_pp", "res_multistep", "uni_pc"])
def test_more_steps_and_a_higher_threshold(demo, sampler):
    plain = run(demo, None, sampler, 30, rows=FEWER)
    check(plain, run(demo, HALF, sampler, 30, rows=FEWER))
    check(plain, run(demo, ONE, sampler, 30, rows=FEWER), 22.0)


@pytest.mark.parametrize("sampler", ["euler", "heun", "res_multistep", "dpmpp_2m", "uni_pc"])
def test_the_default_fires_and_is_hard_to_see(demo, sampler):
    found = check(run(demo, None, sampler), run(demo, HALF, sampler), 42.0)
    assert found["speedup"] >= 1.6


@pytest.mark.parametrize("sampler", ["euler_ancestral", "euler_ancestral_cfg_pp", "dpmpp_2m_sde", "exp_heun_2_x0_sde"])
def test_where_a_sampler_renews_the_noise_the_slope_only_adds_to_the_error(demo, monkeypatch, sampler):
    def missed():
        ours = run(demo, computes({*range(7), *range(8, 20, 2), 19}), sampler, rows=FEWER)
        errors = [e["missed"] for e in ours.record["evaluations"] if e["missed"] and e["kind"] == "full"]
        return math.exp(sum(map(math.log, errors)) / len(errors))

    monkeypatch.setattr(Forecast, "_take_back", lambda self: None)
    without_slope = missed()
    monkeypatch.setattr(moves, "RENEWED", math.inf)
    with_slope = missed()
    assert without_slope < 0.85 * with_slope, (without_slope, with_slope)


PARTLY = (
    "adaptive",
    "_gpu",
    "er_sde",
    "sa_solver",
    "ddpm",
    "2s_ancestral",
    "dpm_2_ancestral",
    "res_multistep_ancestral",
)
RENEWING = ("ancestral", "sde", "seeds", "lcm")


@pytest.mark.parametrize("sampler", [s for s in comfy.samplers.KSampler.SAMPLERS if not any(p in s for p in PARTLY)])
def test_a_sampler_that_renews_the_noise_is_told_from_one_that_swings(demo, monkeypatch, sampler):
    """Under strong guidance and levels far apart samplers of high order go from one side to the other."""
    seen, take = [], Trajectory.take

    def watched(self, move, *args):
        take(self, move, *args)
        seen.extend([self.noisy] * move.continues)

    monkeypatch.setattr(Trajectory, "take", watched)
    try:
        run(demo, ForecastConfig(threshold=0.01), sampler, scheduler="karras", cfg=8.0, rows=FEWER)
    except NotImplementedError as error:
        pytest.skip(f"not for this model: {error}")
    renews = any(name in sampler for name in RENEWING)
    assert seen or math.isinf(amplification(comfy.samplers.sampler_object(sampler)))  # nothing is forecast for it
    assert all(noisy == renews for noisy in seen), seen


def test_an_ancestral_sampler_gains_where_the_threshold_asks_for_it(demo):
    plain = run(demo, None, "euler_ancestral")
    assert check(plain, run(demo, ONE, "euler_ancestral"))["speedup"] > 1.2


@pytest.mark.parametrize("scheduler", [s for s in comfy.samplers.KSampler.SCHEDULERS if s != "simple"])  # above
def test_every_scheduler(demo, scheduler):
    check(*(run(demo, settings, scheduler=scheduler, cfg=1.0, rows=FEWER) for settings in (None, HALF)))


GUIDERS = {
    "BasicGuider": lambda patcher, a, b, empty: guiders.BasicGuider.execute(patcher, a),
    "CFGGuider": lambda patcher, a, b, empty: guiders.CFGGuider.execute(patcher, a, empty, 4.0),
    "DualCFGGuider": lambda patcher, a, b, empty: guiders.DualCFGGuider.execute(
        patcher, a, b, empty, 2.0, 2.0, "nested"
    ),
    "PerpNegGuider": lambda patcher, a, b, empty: perpneg.PerpNegGuider.execute(patcher, a, b, empty, 4.0, 0.5),
}


@pytest.mark.parametrize("guider", GUIDERS)
def test_every_guider(demo, guider):
    prompts = [[[embed([text]), {}]] for text in ("green ring moving right", "red ball moving right", "")]
    sigmas, noise = demo.sigmas(20), noise_of(403)[..., :FEWER, : 3 * FEWER]

    def sampled(settings):
        patcher = demo.model if settings is None else demo.apply(demo.model, settings)
        guide = GUIDERS[guider](patcher, *prompts).args[0]
        with torch.inference_mode():
            latent = guide.sample(
                noise, noise * 0, comfy.samplers.sampler_object("res_multistep"), sigmas, disable_pbar=True, seed=0
            )
        return samplers.Sampled(demo.decode(latent), None if settings is None else demo.newest_run())

    assert check(sampled(None), sampled(HALF))["speedup"] > 1.4

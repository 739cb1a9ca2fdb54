"""What node packs do around a sampler run, as their sources have it: nothing ends, and nothing is lost or untrue."""

import copy
import math

import pytest
import torch

pytest.importorskip("comfy", reason="ComfyUI is not installed here")

import comfy.k_diffusion.sampling
import comfy.model_patcher
import comfy.patcher_extension
import comfy.samplers

from foresight import ForecastConfig, PaperConfig
from foresight.hosts.comfyui import apply_foresight, replay
from foresight.hosts.comfyui.changes import has_kept
from foresight.hosts.comfyui.timer import apply_timer, seconds_on
from support.comfy_models import noise, sample

STEPS = 20
FORECAST = ForecastConfig(threshold=1.0)
SAMPLERS = ["euler", "dpmpp_2m", "res_multistep", "euler_cfg_pp", "dpmpp_2m_sde"]


@pytest.fixture(scope="module")
def model():
    from support import comfy_models

    return comfy_models.wan()


def guided(model, function, kind="set_model_sampler_post_cfg_function"):
    patcher = model.patcher.clone()
    getattr(patcher, kind)(function)
    return patcher


@pytest.mark.parametrize(
    "config", [FORECAST, PaperConfig(threshold=2.0, warmup_steps=3)], ids=lambda config: config.name
)
@pytest.mark.parametrize("sampler", ["euler", "res_multistep", "euler_cfg_pp"])
def test_options_that_are_copied_to_the_ground_in_mid_run(model, runs, config, sampler):
    """Pre CFG nodes do so to call the model with a change of their own."""
    copies = []

    def copying(args):
        copies.append(copy.deepcopy(args["model_options"]))
        return args["conds_out"]

    patcher = guided(model, copying, "set_model_sampler_pre_cfg_function")
    timed = apply_timer(apply_foresight(patcher, config))
    assert torch.equal(
        sample(model, timed, steps=STEPS, sampler=sampler),
        sample(model, apply_foresight(model.patcher, config), steps=STEPS, sampler=sampler),
    )
    assert runs[0].reused == runs[1].reused > 0 and runs[0].inactive is None and seconds_on(timed)
    kinds = copies[0]["transformer_options"]["wrappers"].values()
    own = [f for kind in kinds for key, of_key in kind.items() if str(key).startswith("foresight") for f in of_key]
    own += [f for f in copies[0].get("sampler_post_cfg_function", []) if hasattr(f, "__self__")]
    assert own and all(copy.deepcopy(f) == f for f in own)  # no second run


class TwoLatents(comfy.samplers.CFGGuider):
    """LanPaint's: the guided output of two strengths."""

    def predict_noise(self, *args, **kwargs):
        out = super().predict_noise(*args, **kwargs)
        return out, 2 * out


@comfy.samplers.KSAMPLER
def of_two_latents(model, x, sigmas, extra_args=None, callback=None, disable=None):
    for sigma, following in zip(sigmas, sigmas[1:], strict=False):
        out, twice = model(x, sigma * x.new_ones([x.shape[0]]), **extra_args)
        x = x + (0.9 * out + 0.05 * twice - x) * (1 - following / sigma)
    return x


@pytest.mark.parametrize("config", [FORECAST, PaperConfig(threshold=1.0)], ids=lambda config: config.name)
def test_a_guider_that_gives_two_latents(model, runs, config):
    found = []
    for patcher in (model.patcher, apply_foresight(model.patcher, config)):
        guider = TwoLatents(patcher)
        guider.set_conds(model.text(1), model.text(2))
        guider.set_cfg(3.0)
        sigmas = comfy.samplers.calculate_sigmas(patcher.get_model_object("model_sampling"), "simple", STEPS)
        start = noise(*model.latent().shape, seed=3)
        found.append(guider.sample(start, model.latent(), of_two_latents, sigmas, disable_pbar=True, seed=1))
    assert len(runs[0].evaluations) == STEPS
    if config.by_block:  # which never looks at what a guider gives
        assert runs[0].inactive is None and runs[0].reused
    else:
        assert runs[0].inactive == "another pack's guider gives something else than a latent"
        assert torch.equal(*found)


def momentum(group="mg", of=lambda args: args["denoised"]):
    """As sd-perturbed-attention has it: what was seen before lies in the options."""

    def post_cfg(args):
        kept = args["model_options"].setdefault(group, {})
        before, now = kept.get("before"), of(args)
        kept["before"] = now if before is None else 0.6 * before + 0.4 * now
        return args["denoised"] + 0.3 * kept["before"]

    return post_cfg


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_guidance_that_keeps_what_it_saw_in_the_options_is_left_alone(model, runs, sampler):
    patcher = guided(model, momentum())
    plain = sample(model, patcher, steps=STEPS, sampler=sampler)
    assert torch.equal(sample(model, apply_foresight(patcher, FORECAST), steps=STEPS, sampler=sampler), plain)
    assert runs[0].inactive == "a guidance node goes by what it saw before (APG with a momentum)"


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_what_guidance_writes_into_the_options_stays_there_for_the_whole_run(model, runs, sampler):
    """A number there ends nothing, and counts on, whenever the sampler is started again."""
    seen, functions = [], set()

    def counting(args):
        functions.add(len(args["model_options"]["sampler_post_cfg_function"]))
        kept = args["model_options"].setdefault("counter", {"calls": 0})
        kept["calls"] += 1
        seen.append(kept["calls"])
        return args["denoised"]

    sample(model, apply_foresight(guided(model, counting), FORECAST), steps=STEPS, sampler=sampler)
    assert runs[0].inactive is None or runs[0].inactive == FORECAST.unused
    assert seen == list(range(1, STEPS - runs[0].reused + runs[0].taken_back + 1))
    assert len(functions) == 1  # what watches a sampler's own functions is taken away after each evaluation


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_mask_that_guidance_brings_to_the_size_of_the_latent_is_no_memory(model, runs, sampler):
    """Inspire's Regional CFG: it sets the variable that holds the mask, once."""
    mask = torch.linspace(0.5, 1, 64).reshape(1, 1, 1, 8, 8)

    def regional(args):
        nonlocal mask
        if mask.shape[-2:] != args["denoised"].shape[-2:]:
            mask = torch.nn.functional.interpolate(mask[0], args["denoised"].shape[-2:])[None]
        return args["denoised"] * mask

    plain = sample(model, guided(model, regional), steps=STEPS, sampler=sampler)
    mask = torch.linspace(0.5, 1, 16).reshape(1, 1, 1, 4, 4).repeat_interleave(4, -1)  # of another size again
    ours = sample(model, apply_foresight(guided(model, regional), FORECAST), steps=STEPS, sampler=sampler)
    assert runs[0].inactive in (None, FORECAST.unused) and ours.shape == plain.shape
    assert runs[0].evaluations[1].kind == "full" and bool(runs[0].reused) == (sampler != "dpmpp_2m_sde")


def test_what_is_kept_in_the_options():
    tensor, brought = torch.zeros(2, 2), {"old"}
    kept = {"a": {"b": [tensor]}}, {"a": tensor}, {"a": ({"b": {"c": tensor}},)}
    others = {"old": tensor}, {"a": 3}, {"a": {"b": tensor[0, 0]}}, {"a": [torch.nn.Linear(2, 2)]}, {}
    assert all(has_kept(options, brought) for options in kept)
    assert not any(has_kept(options, brought) for options in others)


@pytest.mark.parametrize("key", ["sampler_post_cfg_function", "sampler_pre_cfg_function"])
def test_a_sampler_that_adds_to_the_options_it_was_given_adds_once(model, runs, key):
    calls = []

    @comfy.samplers.KSAMPLER
    def adding(network, x, sigmas, extra_args=None, callback=None, disable=None):
        def own(args):
            calls[-1] += 1
            return args["denoised"] if "denoised" in args else args["conds_out"]

        extra_args["model_options"].setdefault(key, []).append(own)
        before = None
        for sigma, following in zip(sigmas, sigmas[1:], strict=False):
            calls.append(0)
            out = network(x, sigma * x.new_ones([x.shape[0]]), **extra_args)
            taken = out if before is None else 1.5 * out - 0.5 * before
            x, before = x + (taken - x) * (1 - following / sigma), out
        return x

    sigmas = comfy.samplers.calculate_sigmas(model.patcher.get_model_object("model_sampling"), "simple", STEPS)
    for has in (False, True):  # with a function of the model's in the list too
        patcher = model.patcher.clone()
        if has:
            patcher.model_options[key] = [lambda args: args.get("denoised", args.get("conds_out"))]
        guider = comfy.samplers.CFGGuider(apply_foresight(patcher, FORECAST))
        guider.set_conds(model.text(1), model.text(2))
        guider.set_cfg(3.0)
        guider.sample(noise(*model.latent().shape, seed=3), model.latent(), adding, sigmas, disable_pbar=True, seed=1)
        # of its last start; own post-CFG functions are called in every evaluation, left out or not
        assert set(calls) == {0, 1} and runs[-1].restarts > 0
        assert "post" not in key or calls[-STEPS:] == [1] * STEPS
        calls.clear()


def own_sampler(begin):
    """A sampler of order 2 that does something with the options that it was given when it begins."""

    @comfy.samplers.KSAMPLER
    def sampler(network, x, sigmas, extra_args=None, callback=None, disable=None):
        begin(extra_args["model_options"])
        before = None
        for sigma, following in zip(sigmas, sigmas[1:], strict=False):
            out = network(x, sigma * x.new_ones([x.shape[0]]), **extra_args)
            taken = out if before is None else 1.5 * out - 0.5 * before
            x, before = x + (taken - x) * (1 - following / sigma), out
        return x

    return sampler


def wraps(options):
    old = options.get("sampler_cfg_function", lambda args: args["uncond"] + 2 * (args["cond"] - args["uncond"]))
    options["sampler_cfg_function"] = lambda args: 0.98 * old(args)


def pops(options):
    share = 1 - options.pop("my_share")
    found = options.get("sampler_post_cfg_function", [])
    options["sampler_post_cfg_function"] = [*found, lambda args: share * args["denoised"]]


def calls_back(options):
    before = options.get("my_function", lambda x: x)
    options["my_function"] = lambda x: 0.97 * before(x)
    options["sampler_post_cfg_function"] = [lambda args: options["my_function"](args["denoised"])]


@pytest.mark.parametrize("begin", [wraps, pops, calls_back])
def test_a_sampler_that_is_started_again_finds_the_options_of_its_first_start(model, runs, begin):
    """What it wraps or takes away there it wraps and takes away once, and the guider's own options see none of it."""
    sigmas, found, given = (
        comfy.samplers.calculate_sigmas(model.patcher.get_model_object("model_sampling"), "simple", STEPS),
        [],
        [],
    )
    for config in (None, ForecastConfig(threshold=0.5)):
        patcher = model.patcher.clone()
        patcher.model_options["my_share"] = 0.1
        guider = comfy.samplers.CFGGuider(apply_foresight(patcher, config) if config else patcher)
        guider.set_conds(model.text(1), model.text(2))
        guider.set_cfg(3.0)

        def beginning(options, guider=guider):
            begin(options)
            given.append(guider.model_options)

        start = noise(*model.latent().shape, seed=3)
        found.append(guider.sample(start, model.latent(), own_sampler(beginning), sigmas, disable_pbar=True, seed=1))
    assert runs[0].restarts > 1 and runs[0].reused
    assert (found[0] - found[1]).square().mean().sqrt() < 0.02 * found[0].square().mean().sqrt()
    for options in given[1:]:  # plainly, they are the sampler's
        assert "my_share" in options and not any(key in options for key in ("sampler_cfg_function", "my_function"))
        assert not options.get("sampler_post_cfg_function")


def wrapped(sampler):
    """As Detail Daemon's and others: the sampler that it runs is among its options."""

    def around(network, x, sigmas, *, inner, extra_args=None, callback=None, disable=None):
        return inner.sampler_function(network, x, sigmas, extra_args=extra_args, callback=callback, disable=disable)

    return comfy.samplers.KSAMPLER(around, extra_options={"inner": sampler})


@pytest.mark.parametrize("name", comfy.samplers.KSampler.SAMPLERS)
def test_a_sampler_is_known_inside_of_another(name):
    bare = comfy.samplers.sampler_object(name)
    chain = comfy.samplers.KSAMPLER(lambda: None, extra_options={"chain": [wrapped(bare), 3, None]})
    for around in (wrapped(bare), wrapped(wrapped(bare)), chain):
        for trait in (replay.amplification, replay.order, replay.most_taken, replay.is_adaptive):
            assert trait(around) == trait(bare), trait
        assert not replay.takes_euler_steps(around, None)  # what is around it may do anything
    itself = comfy.samplers.KSAMPLER(lambda: None, extra_options={})
    itself.extra_options["inner"] = itself
    assert replay.amplification(itself) == 1 and math.isinf(replay.most_taken(itself))


@pytest.mark.parametrize("name", ["res_multistep_cfg_pp", "gradient_estimation_cfg_pp", "dpm_adaptive"])
def test_what_is_never_forecast_for_is_not_inside_of_another_either(model, runs, name):
    sampler = wrapped(comfy.samplers.ksampler(name))
    sigmas = comfy.samplers.calculate_sigmas(model.patcher.get_model_object("model_sampling"), "simple", STEPS)
    guider = comfy.samplers.CFGGuider(apply_foresight(model.patcher, FORECAST))
    guider.set_conds(model.text(1), model.text(2))
    guider.set_cfg(3.0)
    guider.sample(noise(*model.latent().shape, seed=3), model.latent(), sampler, sigmas, disable_pbar=True, seed=1)
    assert runs[0].reused == 0 and runs[0].inactive


class Keyframe:
    def __init__(self, value, start_percent, guarantee_steps):
        self.value, self.start_percent, self.guarantee_steps = value, start_percent, guarantee_steps


class Keyframes:
    """AnimateDiff-Evolved's: each evaluation that the model sees takes it on by one, if its level is reached."""

    def __init__(self, *keyframes):
        self.keyframes, self.current, self.used, self.log = [Keyframe(*k) for k in keyframes], 0, 0, {}

    def follow(self, level, sigma_of):
        if self.used >= self.keyframes[self.current].guarantee_steps:
            for n in range(self.current + 1, len(self.keyframes)):
                if sigma_of(self.keyframes[n].start_percent) < level - 1e-6:
                    break
                self.current, self.used = n, 0
                if self.keyframes[n].guarantee_steps:
                    break
        self.used += 1
        self.log[round(level, 5)] = self.keyframes[self.current].value
        return self.keyframes[self.current].value


class Settings:
    def __init__(self, custom_cfg):
        self.custom_cfg = custom_cfg


class State:
    """What lies in the options, a few objects deep; it holds much more than that."""

    def __init__(self, model, custom_cfg):
        self.patcher, self.sample_settings, self.itself, self.latents = model, Settings(custom_cfg), self, torch.ones(3)


def with_keyframes(model, *keyframes):
    patcher, group = model.patcher.clone(), Keyframes(*keyframes)
    sigma_of = patcher.get_model_object("model_sampling").percent_to_sigma

    def cfg(args):
        scale = group.follow(float(args["sigma"].max()), sigma_of)
        return args["input"] - (args["uncond_denoised"] + scale * (args["cond_denoised"] - args["uncond_denoised"]))

    patcher.set_model_sampler_cfg_function(cfg, disable_cfg1_optimization=True)
    patcher.model_options["transformer_options"]["State"] = State(patcher, group)
    return patcher, group


LASTS = "another pack's keyframes last for a number of evaluations (guarantee_steps)"
CURVE = [(1 + k / 10, k / 40, 0) for k in range(1, 40)]


@pytest.mark.parametrize(
    ("keyframes", "inactive"),
    [
        ([(8.0, 0.0, 5), (1.5, 0.01, 1)], LASTS),
        ([(1 + k / 5, k / STEPS, 1) for k in range(STEPS)], LASTS),
        ([(1.0, 0.0, 1), (2.0, 0.3, 1), (3.0, 0.6, 1)], None),
        ([(1.0, 0.0, 1), *CURVE], None),
        ([(1.0, 0.0, 1)], None),
    ],
    ids=["long", "many", "few", "a curve", "one"],
)
@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m", "uni_pc"])
def test_keyframes_that_count_evaluations_are_where_they_are_without(model, runs, keyframes, inactive, sampler):
    """What is left out is not counted, and what is computed again comes when a later keyframe is in force."""
    patcher, group = with_keyframes(model, *keyframes)
    plain = sample(model, patcher, steps=STEPS, sampler=sampler)
    fresh, ours = with_keyframes(model, *keyframes)
    result = sample(model, apply_foresight(fresh, ForecastConfig(threshold=2.0)), steps=STEPS, sampler=sampler)
    assert ours.log.items() <= group.log.items() and runs[0].inactive == inactive
    assert torch.equal(result, plain) if inactive else runs[0].reused
    goes_on = runs[0].restarts == 0 and runs[0].taken_back == 0
    assert goes_on == (len(keyframes) > 1 or sampler == "euler")
    if sampler != "euler" and not inactive and len(keyframes) > 1:
        assert runs[0].uncorrected == "keyframes of another pack only go forward"


def test_keyframes_of_which_none_is_current_go_by_the_level(model, runs):
    """What looks at the level alone can be started again."""
    patcher, group = with_keyframes(model, (1.0, 0.0, 1), (2.0, 0.3, 1))
    del group.current
    patcher.model_options.pop("sampler_cfg_function")
    sample(model, apply_foresight(patcher, FORECAST), steps=STEPS, sampler="dpmpp_2m")
    assert runs[0].restarts and runs[0].uncorrected is None and runs[0].inactive is None


def test_where_few_keyframes_begin_all_is_computed(model, runs):
    patcher, group = with_keyframes(model, (1.0, 0.0, 1), (2.0, 0.3, 1), (3.0, 0.6, 1))
    sample(model, patcher, steps=STEPS)
    plain = dict(group.log)
    fresh, ours = with_keyframes(model, (1.0, 0.0, 1), (2.0, 0.3, 1), (3.0, 0.6, 1))
    sample(model, apply_foresight(fresh, ForecastConfig(threshold=4.0)), steps=STEPS)
    begun = [k for k, (a, b) in enumerate(zip(plain.values(), [*plain.values()][1:], strict=False), 1) if a != b]
    assert len(begun) == 2 and len(ours.log) < STEPS
    assert all(runs[0].evaluations[k].kind == "full" for k in begun)


@pytest.mark.parametrize("sampler", ["dpmpp_2m", "uni_pc"])
def test_a_sampler_that_is_called_in_rounds_is_started_again_in_the_first_alone(model, runs, sampler):
    """Iterations and FreeInit of AnimateDiff-Evolved; its node comes before or after ours."""
    patcher = apply_foresight(model.patcher, FORECAST)

    def twice(executor, noise, latent, sampler, sigmas, *args, **kwargs):
        executor(noise, latent, sampler, sigmas, *args, **kwargs)
        return executor(noise, latent, sampler, sigmas, *args, **kwargs)

    patcher.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.OUTER_SAMPLE, "rounds", twice)
    found = sample(model, patcher, steps=STEPS, sampler=sampler)
    plain = sample(model, model.patcher, steps=STEPS, sampler=sampler)
    assert (found - plain).norm() < 0.05 * plain.norm()
    assert runs[0].uncorrected == "the sampler is called several times in one run"
    assert runs[0].restarts and len(runs[0].evaluations) >= 2 * STEPS and runs[0].reused > STEPS // 4


def test_a_sampler_is_known_by_the_name_that_another_packs_function_calls():
    k_diffusion = comfy.k_diffusion.sampling

    def sample_dpmpp_sde(model, x, sigmas, **kwargs):
        return k_diffusion.sample_dpmpp_3m_sde(model, x, sigmas, **kwargs)

    def picks(model, x, sigmas, name=None, **kwargs):
        return (k_diffusion.sample_lms if name else k_diffusion.sample_dpm_adaptive)(model, x, sigmas, **kwargs)

    def ancestral(model, x, sigmas, **kwargs):
        return k_diffusion.sample_euler_ancestral(model, x, sigmas, **kwargs)

    known = [comfy.samplers.KSAMPLER(function) for function in (sample_dpmpp_sde, picks, ancestral)]
    core = [comfy.samplers.sampler_object(name) for name in ("dpmpp_3m_sde", "euler", "euler_ancestral")]
    for ours, its in zip(known, core, strict=True):
        assert replay.amplification(ours) == replay.amplification(its)
        assert replay.most_taken(ours) == replay.most_taken(its) and not replay.is_adaptive(ours)

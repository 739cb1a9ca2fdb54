"""Samplers that do not go down one way, step by step: what is believed free must not exist."""

import functools

import pytest
import torch

pytest.importorskip("comfy", reason="ComfyUI is not installed here")

import comfy.k_diffusion.sampling
import comfy.model_patcher
import comfy.patcher_extension
import comfy.samplers

from foresight import ForecastConfig, PaperConfig
from foresight.hosts.comfyui import apply_foresight
from foresight.hosts.comfyui.replay import takes_euler_steps
from support.comfy_models import noise

NOTHING = [ForecastConfig(threshold=1e-12), PaperConfig(threshold=1e-12)]
MUCH = [ForecastConfig(threshold=1.0), PaperConfig(threshold=2.0)]
by_name = {"ids": lambda config: config.name}


@pytest.fixture(scope="module")
def model():
    from support.comfy_models import MODELS

    return MODELS["wan"]()


def levels(model, steps: int) -> torch.Tensor:
    return comfy.samplers.calculate_sigmas(model.patcher.get_model_object("model_sampling"), "simple", steps)


def sampled(model, config, sampler, sigmas, guider=comfy.samplers.CFGGuider, latent=None, **conds) -> torch.Tensor:
    """One run of a guider; `config` None is the plain one."""
    guide = guider(model.patcher if config is None else apply_foresight(model.patcher, config))
    guide.inner_set_conds(conds or {"positive": model.text(1), "negative": model.text(2)})
    guide.set_cfg(3.0)
    x = model.latent() if latent is None else latent
    start = noise(*x.shape, seed=5) if latent is None else torch.zeros_like(x)
    with torch.inference_mode():
        return guide.sample(start, x, sampler, sigmas, seed=0, disable_pbar=True).clone()


def sampler_of(function):
    return comfy.samplers.KSAMPLER(function)


def euler_at(own: torch.Tensor):
    """Euler on levels of its own, whatever it is told."""

    def sample(model, x, sigmas, extra_args=None, callback=None, disable=None):
        for level, following in zip(own[:-1], own[1:], strict=True):
            x = x + (x - model(x, level * x.new_ones(1), **extra_args)) / level * (following - level)
        return x

    return sampler_of(sample)


def restarting(model, x, sigmas, extra_args=None, callback=None, disable=None):
    """Half way down, up again with new noise, and down."""
    for part in (sigmas[:11], sigmas[6:]):
        for level, following in zip(part[:-1], part[1:], strict=True):
            x = x + (x - model(x, level * x.new_ones(1), **extra_args)) / level * (following - level)
        if part[-1] > 0:
            x = x + noise(*x.shape, seed=9) * (sigmas[6] ** 2 - part[-1] ** 2).sqrt()
    return x


def two_latents(model, x, sigmas, extra_args=None, callback=None, disable=None, named=True):
    """FlowEdit: at each level the velocities of two latents, of which only the difference is taken."""
    source, z, generator = noise(*x.shape, seed=3), noise(*x.shape, seed=3), torch.Generator().manual_seed(7)

    def velocity(latent, level, part):
        options = comfy.model_patcher.create_model_options_clone(extra_args["model_options"])
        if named:
            options["transformer_options"]["edit_part"] = part
        return (latent - model(latent, level * x.new_ones(1), **{**extra_args, "model_options": options})) / level

    for level, following in zip(sigmas[2:-1], sigmas[3:], strict=True):
        a = (1 - level) * source + level * torch.randn(source.shape, generator=generator)
        z = z + (following - level) * (velocity(z + a - source, level, "target") - velocity(a, level, "source"))
    return z


def padded(sigmas: torch.Tensor) -> torch.Tensor:
    zero = sigmas.new_zeros(1)
    return torch.cat([zero, sigmas, zero])


def runs_of_every_kind(model, config):
    """Every way that is not one way down, by name."""
    down = levels(model, 24)
    up = down.flip(0).clone()
    up[0] = 1e-4
    start = torch.ones_like(model.latent())
    yield "rising", sampled(model, config, comfy.samplers.sampler_object("euler"), up, latent=start)
    yield "restart", sampled(model, config, sampler_of(restarting), down)
    yield "padded, begun in the middle", sampled(model, config, euler_at(down[8:]), padded(down))
    yield "levels of its own", sampled(model, config, euler_at(torch.linspace(0.97, 0.0, 17)), down)
    yield "two latents, named", sampled(model, config, sampler_of(two_latents), down)
    yield (
        "two latents, not named",
        sampled(model, config, sampler_of(lambda *args, **kwargs: two_latents(*args, **kwargs, named=False)), down),
    )
    yield "standing still", sampled(model, config, comfy.samplers.sampler_object("euler"), down.new_full((9,), 0.9))


@pytest.mark.parametrize("config", NOTHING, **by_name)
def test_a_threshold_of_nearly_0_leaves_nothing_out_whatever_the_sampler_does(model, runs, config):
    plain = dict(runs_of_every_kind(model, None))
    assert len(plain) == 7 and not runs
    for name, result in runs_of_every_kind(model, config):
        assert torch.equal(result, plain[name]), name
    assert len(runs) == 7 and not any(stats.reused for stats in runs)


@pytest.mark.parametrize("config", MUCH, **by_name)
def test_what_is_left_out_where_nothing_can_be_said_is_nothing(model, runs, config):
    plain = dict(runs_of_every_kind(model, None))
    ours = dict(runs_of_every_kind(model, config))
    by_kind = dict(zip(plain, runs, strict=True))
    # the paper's method compares blocks, whatever latent they are for
    for name in ("rising", "two latents, not named") if config.name == "forecast" else ("rising",):
        assert torch.equal(ours[name], plain[name]) and not by_kind[name].reused, name
    assert by_kind["rising"].inactive == "noise levels rise in this run (unsampling or a restart)"
    for name in ("restart", "levels of its own", "padded, begun in the middle", "two latents, named"):
        assert ((ours[name] - plain[name]).norm() / plain[name].norm()).item() < 0.05, name


def test_a_sampler_that_begins_in_the_middle_warms_up_there_and_computes_the_last_level(model, runs):
    down = levels(model, 24)
    for config in MUCH:
        sampled(model, config, euler_at(down[8:]), padded(down))
        kinds = [e.kind for e in runs[-1].evaluations]
        # in the middle of a run no output is given again, so that forecast needs two
        assert kinds[:3] == ["warmup"] * 3 or kinds[:2] == ["warmup", "full"] and config.name == "forecast"
        assert "reuse" in kinds
        assert kinds[-1] != "reuse" or config.name == "paper"  # which has no end of its own


def test_a_restart_forgets_what_was_measured(model, runs):
    sampled(model, ForecastConfig(threshold=1.0), sampler_of(restarting), levels(model, 24))
    (stats,) = runs
    rise = next(i for i in range(1, 23) if stats.evaluations[i].level > stats.evaluations[i - 1].level)
    assert all(sum(e.computed) for e in stats.evaluations[rise : rise + 2]) and stats.reused  # a value and a slope


def test_an_adaptive_sampler_is_left_alone_and_says_so(model, runs):
    sampler = comfy.samplers.sampler_object("dpm_adaptive")
    plain = sampled(model, None, sampler, levels(model, 20))
    for config in MUCH:
        assert torch.equal(sampled(model, config, sampler, levels(model, 20)), plain)
        assert runs[-1].inactive.startswith("an adaptive sampler")


@pytest.mark.parametrize("steps", [20, 50])
@pytest.mark.parametrize("config", NOTHING, **by_name)
def test_an_output_that_is_the_latent_is_no_evidence(model, runs, steps, config):
    """CFG-Zero* with init steps: the guidance gives the latent back unchanged at first."""

    def zeroed(patcher):
        def guide(args):
            schedule = args["model_options"]["transformer_options"]["sample_sigmas"]
            step = int((schedule >= args["timestep"][0] * 0.9999).sum()) - 1
            return args["cond"] * 0 if step < 3 else args["uncond"] + 3 * (args["cond"] - args["uncond"])

        patched = patcher.clone()
        patched.set_model_sampler_cfg_function(guide)
        return patched

    from support.comfy_models import sample

    plain = sample(model, zeroed(model.patcher), steps=steps)
    assert torch.equal(sample(model, zeroed(apply_foresight(model.patcher, config)), steps=steps), plain)
    assert not runs[0].reused


CFG_PP = [name for name in comfy.samplers.KSampler.SAMPLERS if name.endswith("_cfg_pp")]


class Asked:
    """A sampler's post-CFG function as CFG++ has it, and what it was given."""

    def __init__(self):
        self.seen = []

    def sampler(self, steps_by_uncond: bool = True):
        def sample(model, x, sigmas, extra_args=None, callback=None, disable=None):
            uncond = [None]

            def learn(args):
                uncond[0] = args["uncond_denoised"]
                self.seen.append((float(args["sigma"].max()), args["uncond_denoised"].clone(), args["input"].clone()))
                return args["denoised"]

            options = comfy.model_patcher.set_model_options_post_cfg_function(
                extra_args["model_options"], learn, disable_cfg1_optimization=True
            )
            for level, following in zip(sigmas[:-1], sigmas[1:], strict=True):
                denoised = model(x, level * x.new_ones(1), **{**extra_args, "model_options": options})
                x = denoised + (x - uncond[0]) / level * following
            return x

        return sampler_of(sample)


def test_the_functions_of_a_sampler_are_called_in_every_evaluation_with_what_they_would_get(model, runs):
    plain, ours = Asked(), Asked()
    expected = sampled(model, None, plain.sampler(), levels(model, 24))
    result = sampled(model, ForecastConfig(threshold=2.0), ours.sampler(), levels(model, 24))
    left_out = [e.kind == "reuse" for e in runs[0].evaluations]
    assert any(left_out) and len(left_out) == len(plain.seen) == 24
    newest = ours.seen[-24:]  # of the sampler as it was started last
    for (level, uncond, _), (level_plain, uncond_plain, _) in zip(newest, plain.seen, strict=True):
        assert level == level_plain
        assert ((uncond - uncond_plain).norm() / uncond_plain.norm()).item() < 0.2
    assert ((result - expected).norm() / expected.norm()).item() < 0.1


@pytest.mark.parametrize("sampler", CFG_PP)
def test_cfg_plus_plus_samplers(model, runs, sampler):
    from support.comfy_models import sample

    plain = sample(model, sampler=sampler, cfg=1.0, steps=24)
    nothing = sample(model, apply_foresight(model.patcher, NOTHING[0]), sampler=sampler, cfg=1.0, steps=24)
    assert torch.equal(nothing, plain)
    ours = sample(model, apply_foresight(model.patcher, ForecastConfig()), sampler=sampler, cfg=1.0, steps=24)
    assert ((ours - plain).norm() / plain.norm()).item() < 0.05


@pytest.mark.parametrize("left", [0.0, 0.5])
def test_levels_without_a_step_are_no_error(model, runs, left):
    sampler = comfy.samplers.sampler_object("res_multistep")
    plain = sampled(model, None, sampler, torch.tensor([left]))
    assert torch.equal(sampled(model, MUCH[0], sampler, torch.tensor([left])), plain) and not runs


def test_patches_that_draw_numbers_draw_others_after_a_restart(model, runs):
    """Noise that a function of the model adds is another in each evaluation, however often the sampler is restarted."""
    drawn = []

    def add_noise(args):
        drawn.append(torch.randn(1).item())
        return args["denoised"]

    patcher = model.patcher.clone()
    patcher.set_model_sampler_post_cfg_function(add_noise)
    guide = comfy.samplers.CFGGuider(apply_foresight(patcher, ForecastConfig(threshold=1.0)))
    guide.inner_set_conds({"positive": model.text(1), "negative": model.text(2)})
    with torch.inference_mode():
        x = noise(*model.latent().shape, seed=5)
        guide.sample(x, model.latent(), comfy.samplers.sampler_object("res_multistep"), levels(model, 24), seed=0)
    (stats,) = runs
    assert stats.restarts and len(set(drawn)) == len(drawn) == 24 - sum(e.kind == "reuse" for e in stats.evaluations)


def test_a_function_that_another_pack_adds_takes_no_payback_away(model, runs):
    """It gets what the sampler gets, in every evaluation, and Euler's debt is paid all the same."""

    def watching(patcher):
        def add(executor, guider, sigmas, extra_args, *args, **kwargs):
            options = comfy.model_patcher.set_model_options_post_cfg_function(
                extra_args["model_options"], lambda args: args["denoised"]
            )
            return executor(guider, sigmas, {**extra_args, "model_options": options}, *args, **kwargs)

        patched = patcher.clone()
        patched.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.SAMPLER_SAMPLE, "other", add)
        return patched

    from support.comfy_models import sample

    alone = sample(model, apply_foresight(model.patcher, MUCH[0]), steps=24)
    watched = sample(model, apply_foresight(watching(model.patcher), MUCH[0]), steps=24)
    assert runs[0].reused == runs[1].reused > 0
    torch.testing.assert_close(watched, alone)


def test_a_sampler_that_is_only_watched_is_the_one_inside():
    euler = comfy.k_diffusion.sampling.sample_euler

    @functools.wraps(euler)
    def watched(*args, **kwargs):
        return euler(*args, **kwargs)

    assert takes_euler_steps(comfy.samplers.KSAMPLER(watched), None)
    assert not takes_euler_steps(comfy.samplers.KSAMPLER(lambda *args: euler(*args)), None)
    assert not takes_euler_steps(comfy.samplers.KSAMPLER(watched, {"s_churn": 0.1}), None)
    assert not takes_euler_steps(comfy.samplers.KSAMPLER(watched), torch.ones(1))

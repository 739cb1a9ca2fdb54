"""A threshold means the same in both hosts and in all units: the bundled model, the same levels, guidance, samplers."""

import pytest
import torch

pytest.importorskip("comfy", reason="ComfyUI is not installed here")
pytest.importorskip("diffusers", reason="diffusers is not installed here")

import comfy.model_patcher
import comfy.model_sampling
import comfy.sample
import comfy.samplers
import diffusers

from foresight import ForecastConfig
from foresight.hosts import comfyui
from foresight.hosts import diffusers as adapter
from models.demo import codec, model
from models.demo.comfy import build
from models.demo.pipeline import CFG, SHAPE, _locate
from models.demo.prompt import embed

STEPS = 30
PROMPT = "a red ball moving right"
ROWS = 8  # half of the picture, in 0.4 of the time
NOISE = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))[..., :ROWS, :]
QUARTER = NOISE[..., : ROWS // 2, :]
SCHEDULERS = {
    "euler": lambda: diffusers.FlowMatchEulerDiscreteScheduler(shift=model.SHIFT),
    "uni_pc": lambda: diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=model.SHIFT
    ),
}


@pytest.fixture(scope="module")
def patcher():
    return comfy.model_patcher.ModelPatcher(build(), torch.device("cpu"), torch.device("cpu"))


@pytest.fixture(scope="module")
def transformer():
    net = model.load_diffusers()
    net.register_forward_pre_hook(_locate, with_kwargs=True)
    return net


def in_comfyui(patcher, sampler, steps=STEPS, cfg=CFG):
    scheduler = SCHEDULERS[sampler]()
    scheduler.set_timesteps(steps)
    conds = [[[embed([text]), {}]] for text in (PROMPT, "")]
    with torch.inference_mode():
        latent = comfy.sample.sample_custom(
            patcher, NOISE, cfg, comfy.samplers.sampler_object(sampler), scheduler.sigmas.float().clone(), *conds,
            torch.zeros_like(NOISE), disable_pbar=True, seed=0,
        )  # fmt: skip
    return codec.decode(latent.float())


def in_diffusers(transformer, sampler, steps=STEPS, cfg=CFG, cls=diffusers.WanPipeline, **more):
    pipe = cls(tokenizer=None, text_encoder=None, vae=None, scheduler=SCHEDULERS[sampler](), transformer=transformer)
    pipe.set_progress_bar_config(disable=True)
    latent = pipe(
        prompt_embeds=embed([PROMPT]), negative_prompt_embeds=embed([""]), guidance_scale=cfg, latents=NOISE.clone(),
        num_inference_steps=steps, output_type="latent", height=8 * ROWS, width=128, **more,
    ).frames  # fmt: skip
    return codec.decode(latent)


def psnr(a, b):
    return float(-10 * (a - b).square().mean().log10())


def left_out(stats):
    return sum(e.kind == "reuse" for e in stats.evaluations)


@pytest.mark.parametrize("sampler", SCHEDULERS)
def test_both_hosts_leave_out_as_much_and_lose_as_little(patcher, transformer, runs, sampler):
    plain = in_comfyui(patcher, sampler), in_diffusers(transformer, sampler, num_frames=29)
    for threshold in (0.5, 1.0):
        config = ForecastConfig(threshold=threshold)
        one = psnr(in_comfyui(comfyui.apply_foresight(patcher, config), sampler), plain[0])
        handle = adapter.apply_foresight(transformer, config)
        other = psnr(in_diffusers(transformer, sampler, num_frames=29), plain[1])
        handle.remove()
        # only ComfyUI corrects UniPC's earlier outputs, so that it loses less
        least, most = (-2, 2) if sampler == "euler" else (-1, 4)
        assert least < one - other < most, (threshold, one, other)
        assert abs(left_out(runs[-1]) - left_out(handle.stats)) <= 1 and left_out(handle.stats)


@pytest.mark.parametrize(("sampler", "steps", "least"), [("euler", 8, 2), ("euler", 12, 4), ("uni_pc", 8, 0)])
def test_few_steps_without_guidance_gain_by_default_in_both_hosts(patcher, transformer, runs, sampler, steps, least):
    """As models do that were distilled. With guidance or another sampler, few steps are hardly stable: nothing."""

    def gained(cfg):
        given = {"steps": steps, "cfg": cfg}
        plain = in_comfyui(patcher, sampler, **given), in_diffusers(transformer, sampler, num_frames=29, **given)
        ours = in_comfyui(comfyui.apply_foresight(patcher, ForecastConfig()), sampler, **given)
        handle = adapter.apply_foresight(transformer, ForecastConfig())
        theirs = in_diffusers(transformer, sampler, num_frames=29, **given)
        handle.remove()
        assert psnr(ours, plain[0]) > 40 and psnr(theirs, plain[1]) > 40
        return left_out(runs[-1]), left_out(handle.stats)

    unguided, guided = gained(cfg=1.0), gained(cfg=CFG)
    assert unguided[0] == unguided[1] >= least and guided == (0, 0)


class AsFlow(comfy.model_sampling.ModelSamplingDiscreteFlow, comfy.model_sampling.CONST):
    """x = (1 - sigma) x_0 + sigma `noise_scale` n, as HiDream-O1 has it with 8; what is inside is the bundled model."""

    data = 1.0

    def share(self, sigma):
        return self.noise_scale * sigma / self.size(sigma)

    def size(self, sigma):
        return self.noise_scale * sigma + 1 - sigma

    def level(self, share):
        return share / (self.noise_scale * (1 - share) + share)

    def calculate_input(self, sigma, noise):
        return noise / self.size(sigma.view(-1, 1, 1, 1, 1))

    def timestep(self, sigma):
        return 1000 * self.share(sigma)

    def calculate_denoised(self, sigma, model_output, model_input):
        sigma = sigma.view(-1, 1, 1, 1, 1)
        return self.data * (model_input / self.size(sigma) - self.share(sigma) * model_output)


class AsVariance(comfy.model_sampling.ModelSamplingContinuousEDM, comfy.model_sampling.EDM):
    """x = x_0 + sigma n, with an x_0 of size `sigma_data`, as in models of eps, v and EDM, and Cosmos's flow."""

    @property
    def data(self):
        return self.sigma_data

    def share(self, sigma):
        return sigma / (sigma + self.data)

    def size(self, sigma):
        return self.data + sigma

    def level(self, share):
        return self.data * share / (1 - share)

    def noise_scaling(self, sigma, noise, latent_image, max_denoise=False):
        return sigma * noise + latent_image

    calculate_input, timestep = AsFlow.calculate_input, AsFlow.timestep
    calculate_denoised = AsFlow.calculate_denoised


def _with_noise_of(scale):
    sampling = AsFlow()
    sampling.set_noise_scale(scale)
    return sampling


def _with_data_of(size):
    sampling = AsVariance()
    sampling.set_parameters(0.001 * size, 1000.0 * size, size)
    return sampling


def _in_units(patcher, sampling, sampler):
    """The plain video, and the one with Foresight at its default."""
    shares = comfy.samplers.calculate_sigmas(patcher.get_model_object("model_sampling"), "simple", 20).clamp(max=0.999)
    conds = [[[embed([text]), {}]] for text in (PROMPT, "")]
    other = patcher.clone()
    other.add_object_patch("model_sampling", sampling)
    for config in (None, ForecastConfig()):
        with torch.inference_mode():
            latent = comfy.sample.sample_custom(
                other if config is None else comfyui.apply_foresight(other, config), QUARTER, CFG,
                comfy.samplers.sampler_object(sampler), sampling.level(shares), *conds,
                torch.zeros_like(QUARTER), disable_pbar=True, seed=0,
            )  # fmt: skip
        yield codec.decode(latent.float() / sampling.data)


UNITS = {  # res_multistep goes by the logarithm of sigma, so that its steps are others where x = x_0 + sigma n
    "euler, 8 n": ("euler", _with_noise_of(8.0)),
    "res_multistep, 8 n": ("res_multistep", _with_noise_of(8.0)),
    "euler, sigma n": ("euler", _with_data_of(1.0)),
    "euler, sigma n beside half the data": ("euler", _with_data_of(0.5)),
}


@pytest.mark.parametrize("units", UNITS)
def test_a_threshold_means_the_same_in_all_units(patcher, runs, units):
    """The same model of the same shares of noise, but with another latent around it."""
    sampler, other = UNITS[units]
    flow, in_flow = _in_units(patcher, _with_noise_of(1.0), sampler)
    plain, in_other = _in_units(patcher, other, sampler)
    usual, seen = runs
    assert left_out(usual) and [e.kind for e in usual.evaluations] == [e.kind for e in seen.evaluations]
    assert abs(psnr(in_flow, flow) - psnr(in_other, plain)) < 2
    errors = [[e.missed or 0.0 for e in run.evaluations] for run in runs]
    assert errors[1] == pytest.approx(errors[0], rel=0.1, abs=1e-4)


def test_a_pipeline_without_contexts_loses_no_more(transformer):
    """Video to video says nothing of its conds, its steps or its levels, but for the timestep."""
    more = {"cls": diffusers.WanVideoToVideoPipeline, "strength": 1.0}
    plain = in_diffusers(transformer, "euler", **more)
    handle = adapter.apply_foresight(transformer, ForecastConfig())
    ours = in_diffusers(transformer, "euler", **more)
    handle.remove()
    assert psnr(ours, plain) > 45 and left_out(handle.stats) >= 15 and len(handle.stats.evaluations) == STEPS


def guided_loop(transformer, joined):
    """Euler's steps; cond and uncond as one batch, uncond first, or each in a call and a context of its own."""
    scheduler = SCHEDULERS["euler"]()
    scheduler.set_timesteps(STEPS)
    x, levels = NOISE, scheduler.sigmas.tolist()
    uncond, cond = embed([""]), embed([PROMPT])
    calls = [("cond_uncond", torch.cat([uncond, cond]))] if joined else [("uncond", uncond), ("cond", cond)]
    with torch.no_grad():
        for now, after in zip(levels[:-1], levels[1:], strict=True):
            outs = []
            for name, text in calls:
                given = {"hidden_states": x.expand(len(text), -1, -1, -1, -1), "encoder_hidden_states": text}
                timestep = torch.full((len(text),), 1000 * now)
                with transformer.cache_context(name):
                    outs.append(transformer(**given, timestep=timestep, return_dict=False)[0])
            uncond, cond = torch.cat(outs).chunk(2)
            x = x + (after - now) * (uncond + CFG * (cond - uncond))
    transformer._reset_stateful_cache()
    return codec.decode(x)


@pytest.mark.parametrize("threshold", [0.5, 1.0])
def test_conds_in_one_batch_are_those_in_calls_of_their_own(transformer, threshold):
    found = []
    for joined in (True, False):
        handle = adapter.apply_foresight(transformer, ForecastConfig(threshold=threshold), steps=STEPS)
        video = guided_loop(transformer, joined)
        handle.remove()
        assert handle.stats.total == (STEPS if joined else 2 * STEPS)
        found.append((video, [e.kind for e in handle.stats.evaluations]))
    assert found[0][1] == found[1][1] and psnr(found[0][0], found[1][0]) > 80

"""The pipelines of diffusers as they are: guidance is kept apart, evaluations are counted right, the end is computed.

The bundled model runs in each pipeline that takes it; where the architecture differs, tiny random transformers do.
"""

import pytest
import torch

pytest.importorskip("diffusers", reason="diffusers is not installed here")

import diffusers

from foresight import ForecastConfig, PaperConfig
from foresight.hosts.blocks import family_of
from foresight.hosts.diffusers import apply_foresight
from foresight.hosts.diffusers.families import FAMILIES
from models.demo import codec, model
from models.demo.pipeline import CFG, SHAPE, _locate
from models.demo.prompt import embed
from support.diffusers_pipelines import NO_IMAGE, NO_TEXT, PIPELINES, euler, picture, uni_pc, vae

pytestmark = pytest.mark.sweep
STEPS = 20
JOINED = ("cogvideox", "ltx", "mochi")  # cond and uncond as one batch


@pytest.fixture(scope="module", params=PIPELINES, ids=lambda make: make.__name__)
def made(request):
    """A pipeline, its transformers, and a call of it."""
    pipe, given = request.param()
    pipe.set_progress_bar_config(disable=True)
    nets = [net for net in (pipe.transformer, getattr(pipe, "transformer_2", None)) if net is not None]

    def call():
        noise = {"generator": torch.Generator().manual_seed(0)}
        return pipe(**given, **noise, num_inference_steps=STEPS, output_type="latent", return_dict=False)[0]

    return request.param.__name__, nets, call


def with_foresight(nets, call, config):
    """The result of a run, and the record that each transformer has of it."""
    handles = [apply_foresight(net, config) for net in nets]
    result = call()
    for handle in handles:
        handle.remove()
    return result, [handle.stats for handle in handles]


@pytest.mark.parametrize(
    "config", [ForecastConfig(threshold=1e-12), PaperConfig(threshold=1e-12)], ids=["forecast", "paper"]
)
def test_evaluations_and_conds_are_counted_and_nothing_changes(made, config):
    name, nets, call = made
    ours, records = with_foresight(nets, call, config)
    assert torch.equal(ours, call())
    calls = 1 if name in JOINED else 2
    for net, stats in zip(nets, records, strict=True):
        counted = len(family_of(net, FAMILIES).stack(net)) if config.by_block else 1
        assert not stats.inactive or "the plan computes" in stats.inactive
        assert stats.total == calls * counted * len(stats.evaluations)
    assert sum(len(stats.evaluations) for stats in records) == STEPS


def test_little_is_lost_and_the_end_is_computed(made):
    _, nets, call = made
    plain = call()
    ours, _ = with_foresight(nets, call, ForecastConfig())
    assert (ours - plain).norm() < 0.05 * plain.norm()
    _, records = with_foresight(nets, call, ForecastConfig(threshold=2.0))
    kinds = ["".join(e.kind[0] for e in stats.evaluations) for stats in records]
    assert kinds[-1].endswith("f") and "r" in kinds[-1], kinds  # of two transformers the second ends the video


def wan():
    return diffusers.WanPipeline, {}


def video_to_video():
    return diffusers.WanVideoToVideoPipeline, {"strength": 1.0}


def image_to_video():
    """Wan 2.2 5B's way: the first frame is given, at noise level 0."""
    return diffusers.WanImageToVideoPipeline, {"image": picture(128)}


ROWS, COLUMNS = 6, 12  # of the bundled model's picture: a corner


@pytest.fixture(scope="module")
def bundled():
    net = model.load_diffusers()
    net.register_forward_pre_hook(_locate, with_kwargs=True)
    return net


@pytest.mark.parametrize("scheduler", [euler, uni_pc], ids=lambda make: make.__name__)
@pytest.mark.parametrize("pipeline", [wan, video_to_video, image_to_video], ids=lambda make: make.__name__)
def test_the_bundled_model_in_every_pipeline_that_takes_it(bundled, pipeline, scheduler):
    kind, more = pipeline()
    if kind is diffusers.WanImageToVideoPipeline:
        pipe = kind(
            **NO_TEXT, **NO_IMAGE, vae=vae(12), scheduler=scheduler(), transformer=bundled, expand_timesteps=True
        )
    else:
        pipe = kind(**NO_TEXT, vae=None, scheduler=scheduler(), transformer=bundled)
    pipe.set_progress_bar_config(disable=True)
    if kind is not diffusers.WanVideoToVideoPipeline:
        more["num_frames"] = 4 * (SHAPE[2] - 1) + 1

    def call():
        latent = pipe(
            prompt_embeds=embed(["a red ball moving right"]), negative_prompt_embeds=embed([""]), guidance_scale=CFG,
            latents=torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))[..., :ROWS, :COLUMNS],
            num_inference_steps=STEPS, output_type="latent", height=8 * ROWS, width=8 * COLUMNS, **more,
        ).frames  # fmt: skip
        return codec.decode(latent)

    plain = call()
    for threshold, floor in ((0.5, 33), (1.0, 28)):
        ours, (stats,) = with_foresight([bundled], call, ForecastConfig(threshold=threshold))
        psnr = float(-10 * (ours - plain).square().mean().log10())
        assert psnr > floor and len(stats.evaluations) == STEPS, (threshold, psnr)

"""forecast takes models of diffusers that have no record: image transformers and UNets, in loops and pipelines."""

import logging

import pytest
import torch

pytest.importorskip("diffusers", reason="diffusers is not installed here")

from foresight import ForecastConfig, PaperConfig
from foresight.hosts import diffusers as adapter
from foresight.hosts.blocks import UnsupportedModel
from foresight.hosts.diffusers import apply_foresight, families
from support import contract
from support.diffusers_images import IMAGE_PIPELINES, IMAGES, flux
from support.diffusers_run import check_forecast, forecast_runs
from support.told import computes

ALL = computes(range(contract.FORECAST_STEPS))
STEPS = 20


@pytest.fixture(scope="module", params=IMAGES, ids=lambda make: make.__name__)
def image(request):
    return request.param()


def parts(image):
    """The children of a model in place of its blocks, to see that all of it runs or nothing."""
    return [(child, None) for child in image.model.children() if any(True for _ in child.parameters())]


@pytest.mark.parametrize("config", [ForecastConfig(threshold=0), ForecastConfig(threshold=1e-12), ALL], ids=str)
def test_no_forecast_is_the_plain_result(image, config):
    plain, active = forecast_runs(image, config, return_dict=True)
    stats = contract.check_no_forecast(image.model, parts(image), plain, active, active.end)
    assert (stats.inactive is None) == (config is ALL)


@pytest.mark.parametrize("return_dict", [False, True])
def test_a_forecast_takes_the_place_of_the_whole_model(image, return_dict):
    family = families.family_for(image.model, ForecastConfig())
    check_forecast(image, family, parts(image), return_dict)


def test_the_method_paper_refuses_it_by_name(image):
    with pytest.raises(UnsupportedModel, match=f"{type(image.model).__name__} .*Use ForecastConfig, which takes every"):
        apply_foresight(image.model, PaperConfig())


def test_a_model_that_is_known_in_no_way_is_said_once(caplog):
    with caplog.at_level(logging.INFO, logger=adapter.__name__):
        for make, said in ((flux, 0), (other, 1)):
            caplog.clear()
            apply_foresight(make().model, ForecastConfig()).remove()
            assert sum("not among the models that were tested" in r.getMessage() for r in caplog.records) == said


def other(rising: bool = False):
    """A transformer that nobody knows, with names and times of its own."""

    class Other(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(8, 8)

        def forward(self, sample, timesteps, text=None):
            return (self.layer(sample) + 0.1 * timesteps.view(-1, 1),)

    made = flux()
    made.model, made.latent = Other().requires_grad_(False), (1, 8)
    made.call = lambda x, t: made.model(x, 1 - t / 1000 if rising else t / 1000)
    return made


def test_times_that_rise_are_seen_in_the_second_evaluation():
    """Until then nobody can know; the run that began is over, and from there on all are whole."""
    made = other(rising=True)
    handle = apply_foresight(made.model, ForecastConfig(threshold=2.0), steps=STEPS)
    counts = []
    with torch.no_grad():
        for _ in range(2):
            x = torch.randn(made.latent, generator=torch.Generator().manual_seed(0))
            for k in range(STEPS):
                x = x - 0.05 * made.call(x, torch.tensor([1000.0 * (1 - k / STEPS)]))[0]
            counts.append([len(handle.stats.evaluations), handle.stats.reused > 0])
    handle.remove()
    assert counts == [[STEPS - 1, True], [STEPS, True]]


@pytest.fixture(scope="module", params=IMAGE_PIPELINES, ids=lambda make: make.__name__)
def pipeline(request):
    """The network of a pipeline, and a call of it."""
    pipe, given = request.param()
    pipe.set_progress_bar_config(disable=True)

    def call():
        seed = {"generator": torch.Generator().manual_seed(0)}
        return pipe(**given, **seed, num_inference_steps=STEPS, output_type="latent", return_dict=False)[0]

    return getattr(pipe, "transformer", None) or pipe.unet, call


def test_in_its_pipeline(pipeline):
    """Nothing changes where nothing is left out, little where much is; calls are counted right, in run after run."""
    net, call = pipeline
    calls = []
    last = getattr(net, "proj_out", None) or net.conv_out
    counter = last.register_forward_pre_hook(lambda *_: calls.append(1))
    plain, per_run = call(), len(calls)
    handle = apply_foresight(net, ForecastConfig(threshold=1e-12), steps=STEPS)
    assert torch.equal(call(), plain) and handle.stats.total == per_run and handle.stats.reused == 0
    handle.remove()
    handle = apply_foresight(net, ForecastConfig(threshold=2.0), steps=STEPS)
    results = []
    for _ in range(2):
        calls.clear()
        results.append(call())
        stats = handle.stats
        assert len(stats.evaluations) == STEPS and stats.total == per_run
        assert stats.total - stats.reused == len(calls) <= 0.7 * per_run
        assert stats.evaluations[-1].kind == "full"
    handle.remove()
    counter.remove()
    assert torch.equal(*results) and torch.equal(call(), plain)
    assert (results[0] - plain).norm() < 0.1 * plain.norm()


def test_validate_changes_no_bit_and_says_the_error_of_all_that_was_left_out(pipeline):
    net, call = pipeline
    results, records = [], []
    for validate in (False, True):
        handle = apply_foresight(net, ForecastConfig(threshold=2.0, validate=validate), steps=STEPS)
        results.append(call())
        handle.remove()
        records.append(handle.stats)
    assert torch.equal(*results)
    assert [e.kind for e in records[0].evaluations] == [e.kind for e in records[1].evaluations]
    missed = [e.missed for e in records[1].evaluations if e.kind == "reuse"]
    assert missed and all(m is not None and 0 <= m < 1 for m in missed) and max(missed) > 0


def test_a_run_of_one_step_before_another_does_not_turn_the_time():
    made = other()
    handle = apply_foresight(made.model, ForecastConfig(threshold=2.0), steps=STEPS)
    with torch.no_grad():
        made.call(torch.randn(made.latent, generator=torch.Generator().manual_seed(9)), torch.tensor([199.0]))
        for _ in range(2):
            x = torch.randn(made.latent, generator=torch.Generator().manual_seed(0))
            for k in range(STEPS):
                x = x - 0.05 * made.call(x, torch.tensor([1000.0 * (1 - k / STEPS)]))[0]
            assert len(handle.stats.evaluations) == STEPS and handle.stats.reused
    handle.remove()

"""A run in ComfyUI whose decisions other processes share, as in raylight's workers; here there is one process."""

import pytest
import torch

pytest.importorskip("comfy", reason="ComfyUI is not installed here")

from foresight import ForecastConfig, PaperConfig
from foresight.hosts import comfyui
from foresight.hosts.comfyui import apply_foresight
from foresight.hosts.ranks import Ranks
from support.comfy_models import sample

STEPS = 20
FORECAST = ForecastConfig(threshold=1.0)


class Worst:
    """An exchange with a second process that says less, in all but one number if it `gives_up` in an evaluation."""

    size = 2

    def __init__(self, gives_up=None):
        self.exchanges, self._gives_up = 0, gives_up

    def __call__(self, numbers):
        self.exchanges += 1
        numbers = numbers.clone()
        if self._gives_up is not None and self.exchanges > self._gives_up:
            numbers[1] = 2.0
        return numbers


@pytest.fixture
def shared(monkeypatch):
    """`shared(ranks)`: what is found about other processes when a run begins."""

    def find(ranks):
        monkeypatch.setattr(comfyui.run, "ranks_of", lambda model: ranks)

    return find


@pytest.mark.parametrize("sampler", ["euler", "res_multistep", "heun"])
def test_a_shared_run_is_the_run_of_one_process(models, runs, shared, sampler):
    model, worst = models["wan"], Worst()
    alone = sample(model, apply_foresight(model.patcher, FORECAST), steps=STEPS, sampler=sampler)
    shared(Ranks("2 processes", worst))
    out = sample(model, apply_foresight(model.patcher, FORECAST), steps=STEPS, sampler=sampler)
    one, two = runs
    assert torch.equal(out, alone) and one.reused and one.restarts == two.restarts
    assert [e.kind for e in one.evaluations] == [e.kind for e in two.evaluations]
    assert (worst.exchanges > len(two.evaluations)) if two.restarts else (worst.exchanges == len(two.evaluations))


def test_another_process_that_gives_up_ends_it_here(models, runs, shared):
    model, worst = models["wan"], Worst(gives_up=6)
    shared(Ranks("2 processes", worst))
    sample(model, apply_foresight(model.patcher, FORECAST), steps=STEPS)
    kinds = [e.kind for e in runs[0].evaluations]
    assert kinds[6:] == (STEPS - 6) * ["plain"] and "plain" not in kinds[:6] and worst.exchanges == 7
    assert runs[0].inactive == "another process has no memory for what has to be stored, see its record"


@pytest.mark.parametrize(
    ("config", "ranks", "reason"),
    [
        (PaperConfig(threshold=2.0), Ranks("2 processes", Worst()), "blocks are spread over 2 processes"),
        (FORECAST, Ranks(never="pipeline parallel: some of the blocks"), "pipeline parallel: some of the blocks"),
    ],
)
def test_what_cannot_be_shared_is_the_plain_result(models, runs, shared, config, ranks, reason):
    model = models["wan"]
    plain = sample(model, steps=STEPS)
    shared(ranks)
    assert torch.equal(sample(model, apply_foresight(model.patcher, config), steps=STEPS), plain)
    assert runs[0].inactive == reason and runs[0].reused == 0


def test_one_process_speaks_in_the_log(models, shared, caplog):
    model = models["wan"]
    caplog.set_level("INFO", "foresight.hosts.comfyui")
    for first in (True, False):
        caplog.clear()
        shared(Ranks("2 processes", Worst(), first=first))
        sample(model, apply_foresight(model.patcher, FORECAST), steps=STEPS)
        assert any("estimated speed-up" in message for message in caplog.messages) is first


@pytest.mark.parametrize("ranks", [Ranks(), Ranks("2 processes", Worst())], ids=["alone", "two processes"])
def test_no_end_is_left_open_where_others_share_the_run(models, shared, monkeypatch, ranks):
    """Each process would find for itself whether another stage goes on from it."""
    from foresight.hosts.comfyui import stages
    from foresight.hosts.comfyui.run import SamplerRun

    shared(ranks)
    monkeypatch.setattr(stages, "following", lambda nodes, sampler_id: 40)
    resources = SamplerRun(FORECAST, models["wan"].patcher, torch.linspace(1, 0.5, 11))._run._policy.resources
    assert (resources.whole, resources.together) == ((None, True) if ranks.worst else (40, False))

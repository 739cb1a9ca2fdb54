"""Where more of what is stored may wait beside the rest."""

import pytest
import torch

from foresight.engine import ForecastConfig, Run
from foresight.engine.budget import Budget, Need, Offload
from foresight.engine.tensors import random_numbers

RAM = torch.device("cpu")


@pytest.mark.parametrize(
    ("offload", "size", "fits", "where"),
    [
        (Offload(), 30, True, None),  # 50 of need and 30 in 80
        (Offload(), 31, False, None),
        (Offload(fallback=RAM), 30, True, None),
        (Offload(fallback=RAM), 100, True, RAM),  # the need stays on the device
        (Offload(fallback=RAM), 101, False, RAM),
        (Offload(RAM), 50, True, RAM),  # the need is in RAM, too: 50 and 50 in 100
        (Offload(RAM), 51, False, RAM),
    ],
)
def test_what_is_asked_for_beside_the_need(offload, size, fits, where):
    found = Budget(device=80, ram=100).room(size, Need("the outputs", on_device=50, beside=0, in_ram=50), offload)
    assert found == (fits, where)


@pytest.mark.parametrize(
    ("setting", "device", "fallback"), [("gpu", None, None), ("cpu", RAM, None), ("auto", None, RAM)]
)
def test_the_users_setting(setting, device, fallback):
    offload = Offload.of(setting)
    assert (offload.device, offload.fallback, offload.copy_stream) == (device, fallback, None)


def calm_run(budget):
    """20 of Euler's steps: what each evaluation was, and the bytes that it asked for and held."""
    levels = [5 * t / (1 + 4 * t) for t in (1 - k / 20 for k in range(21))]
    config = ForecastConfig(threshold=1.0, cache_device="gpu")
    run = Run(config, schedule=levels, noise=lambda level: level, over=lambda level: 1 - level)
    run.set_budget(budget, None)
    x, asked = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0)), []
    for level, following in zip(levels, levels[1:], strict=False):
        run.begin_evaluation(level, (x,))
        compute = lambda x=x, level=level: (torch.tanh(x / 2) * (1 - level),)  # noqa: E731
        (d,) = run.output("output", "form", compute, RAM, lambda o, x=x: (x - o[0],))
        asked.append((run.kind, run._policy.need().on_device, run.held_bytes))
        x = following / level * x + (1 - following / level) * d
    return run.close(), asked, x.nbytes


def test_no_more_is_asked_for_than_will_be_held():
    """Two outputs, the latent and what was given for it: with room for these four nothing is in the way."""
    usual, asked, one = calm_run(None)
    assert max(need for _, need, _ in asked) == usual.peak_bytes == 4 * one
    stats, again, _ = calm_run(4 * one)
    assert stats.inactive is None and [kind for kind, *_ in again] == [kind for kind, *_ in asked]
    assert calm_run(4 * one - 1)[0].inactive.startswith("the stored outputs need ")


def test_random_numbers_are_those_of_the_device_that_is_named(monkeypatch):
    """Not of the one that is the current device."""
    states = {0: 7, 1: 9}
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device="cuda": states[torch.device(device).index or 0])
    put = lambda state, device="cuda": states.update({torch.device(device).index or 0: state})  # noqa: E731
    monkeypatch.setattr(torch.cuda, "set_rng_state", put)
    put_back = random_numbers(torch.device("cuda:1"))
    states.update({0: 8, 1: 8})
    put_back()
    assert states == {0: 8, 1: 9}

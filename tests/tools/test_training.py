"""The trainings of the small models: levels, batches, learning rates, and the loop on a toy."""

import argparse

import pytest
import torch

from models.demo import codec
from tools.demo import fit


class Toy(torch.nn.Module):
    """Predicts one number everywhere; a matrix that is frozen and one that is trained."""

    def __init__(self):
        super().__init__()
        self.blocks = torch.nn.ModuleList([torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)])
        self.blocks[0].requires_grad_(False)
        self.number = torch.nn.Parameter(torch.zeros(()))


def toy_velocity(net, noisy, timestep, text):
    hidden = torch.ones(2)
    for block in net.blocks:
        hidden = block(hidden)
    return noisy * 0 + net.number + 0 * hidden.sum()


def constant(count, generator):
    """Clips of 0, noise of 1: the velocity is 1."""
    ones = torch.ones(count, 12, 1, 1, 1)
    return ones * 0, ones, torch.zeros(count, 3, 16), torch.full((count,), 0.5)


def run(settings, source=constant):
    torch.manual_seed(0)
    net, saved = Toy(), []
    frozen = net.blocks[0].weight.clone()
    fit.fit(net, toy_velocity, lambda ema, log, **facts: saved.append((ema, log, facts)), settings, source)
    assert torch.equal(net.blocks[0].weight, frozen)
    return net, saved


def test_learning_rates_rise_stay_and_fall():
    settings = fit.Settings(steps=100, rate=0.5, warmup=10)
    assert settings.rate_at(0, 0.0) == pytest.approx(0.5 / 10)
    assert settings.rate_at(9, 0.09) == settings.rate_at(60, 0.6) == pytest.approx(0.5)
    assert settings.rate_at(80, 0.8) == pytest.approx(0.25)  # half of the last 40 % is over
    assert settings.progress(25, elapsed=1e9) == 0.25
    assert fit.Settings(steps=100, seconds=8).progress(25, elapsed=2) == 0.25


def test_levels_are_logit_normal_under_four_shifts_in_turn():
    levels = fit.sigma_batch(40_000, torch.Generator().manual_seed(1)).reshape(-1, 4)
    medians = levels.median(dim=0).values  # the median of u is 1/2: s / (1 + s)
    torch.testing.assert_close(medians, torch.tensor([1 / 2, 3 / 4, 20 / 21, 3 / 4]), rtol=0, atol=0.01)


def test_a_batch_is_clips_noise_prompts_and_levels():
    latents, noise, text, sigma = fit.clip_batch(6, torch.Generator().manual_seed(2))
    assert latents.shape == noise.shape == (6, codec.CHANNELS, 8, 16, 16)
    assert text.shape == (6, 3, 16) and sigma.shape == (6,) and 0 < sigma.min() and sigma.max() < 1
    again = fit.clip_batch(6, torch.Generator().manual_seed(2))
    assert all(torch.equal(a, b) for a, b in zip(again, (latents, noise, text, sigma), strict=True))


def test_training_finds_the_number_and_records_what_it_did():
    net, saved = run(fit.Settings(steps=300, batch=2, seed=5, rate=10, warmup=1, compile=False))
    assert net.number.item() == pytest.approx(1, abs=0.02)
    assert len(saved) == 300 // 50 + 1
    ema, log, facts = saved[-1]
    assert [entry["step"] for entry in log] == list(range(25, 301, 25)) and log[-1]["loss"] < 0.01 < log[0]["loss"]
    assert ema.number.item() == pytest.approx(1, abs=0.1)
    assert (facts["steps"], facts["batch"], facts["seed"], facts["rate"]) == (300, 2, 5, 10)
    assert facts["device"].startswith("CPU, ")


def test_training_ends_after_the_seconds(monkeypatch):
    now = iter(range(1000))
    monkeypatch.setattr(fit.time, "perf_counter", lambda: float(next(now)))  # begins at 0, then 2 seconds a step
    _, saved = run(fit.Settings(steps=7, seconds=20, batch=1, compile=False))
    assert saved[-1][2]["steps"] < 25 and 20 <= saved[-1][2]["seconds"] <= 22


def test_a_loss_that_is_not_finite_ends_it():
    def broken(count, generator):
        latents, noise, text, sigma = constant(count, generator)
        return latents, noise * float("nan"), text, sigma

    with pytest.raises(FloatingPointError, match="loss is nan at step 1"):
        run(fit.Settings(batch=1, compile=False), broken)


def test_options_change_what_they_name():
    parser = argparse.ArgumentParser()
    fit.add_options(parser)
    known = fit.Settings(steps=60, warmup=10, compile=False)
    assert fit.settings_of(parser.parse_args([]), known) == known
    args = parser.parse_args("--seconds 154 --batch 128 --device cuda".split())
    assert fit.settings_of(args, known) == fit.Settings(60, 154.0, 128, device="cuda", warmup=10, compile=False)

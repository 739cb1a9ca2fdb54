"""The relatives of the bundled model: how their differences are kept, and what the three in the repository do."""

import pytest
import torch

pytest.importorskip("diffusers", reason="diffusers is not installed here")

from safetensors.torch import save_file

from bench import finetune, models
from models.demo import model
from tools.demo import clips, evaluate, fit

WANTED = ["red ball moving right", "blue box moving up", "yellow ring moving left", "green ball moving down"]
SEEDS = [11, 12, 13, 14]


class Two(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = torch.nn.ModuleList([torch.nn.Linear(3, 2), torch.nn.Linear(2, 4)])

    def forward(self, x):
        return self.blocks[1](self.blocks[0](x))


def test_a_difference_is_kept_and_applied(tmp_path):
    plain, x = Two(), torch.randn(5, 3)
    tuned = Two()
    tuned.load_state_dict(plain.state_dict())
    finetune.add_differences(tuned, rank=2)
    assert torch.equal(tuned(x), plain(x))  # up begins at 0
    assert [p.shape for p in tuned.parameters() if p.requires_grad] == [(2, 2), (2, 3), (4, 2), (2, 2)]  # up, down
    with torch.no_grad():
        tuned.blocks[0].parametrizations.weight[0].up.fill_(0.5)
    found = finetune.differences(tuned)
    assert sorted(found) == ["blocks.0.down", "blocks.0.up", "blocks.1.down", "blocks.1.up"]
    save_file({key: value.contiguous() for key, value in found.items()}, tmp_path / "difference.safetensors")
    assert not torch.allclose(tuned(x), plain(x))
    torch.testing.assert_close(finetune.apply_differences(plain, tmp_path / "difference.safetensors")(x), tuned(x))


@pytest.mark.parametrize("low, high", [(finetune.BOUNDARY, 1.0), (0.0, finetune.BOUNDARY)])
def test_an_expert_sees_its_own_levels(low, high):
    latents, noise, text, sigma = finetune.expert_batch(low, high)(32, torch.Generator().manual_seed(1))
    assert len(latents) == len(noise) == len(text) == len(sigma) == 32
    assert low <= sigma.min() and sigma.max() < high


def test_the_distilled_model_learns_the_ways_between_levels():
    prompts = ["red ball", "blue box", "cyan ring"]
    levels = evaluate.levels(8, 5.0)  # run r is at 100 r + sigma^2: from s to t its velocity is s + t
    states = 100 * torch.arange(3.0)[:, None] + levels**2
    states = states[:, :, None, None, None, None].expand(3, 9, 12, 1, 1, 1)
    clip, noise, text, sigma = finetune.distilled_batch(prompts, states)(200, torch.Generator().manual_seed(2))
    state, velocity = ((1 - sigma) * clip[:, 0, 0, 0, 0] + sigma * noise[:, 0, 0, 0, 0]), (noise - clip)[:, 0, 0, 0, 0]
    run = (state / 100).floor().long()
    torch.testing.assert_close(state, 100 * run + sigma**2, rtol=0, atol=1e-4)
    assert torch.equal(text, evaluate.embed(prompts)[run])
    nearest = [(level[:, None] - levels).abs().argmin(dim=1).tolist() for level in (sigma, velocity - sigma)]
    ways = set(zip(*nearest, strict=True))
    assert ways == {(i, i + 1) for i in range(8)} | {(0, 2), (2, 4), (4, 6), (6, 8)}
    torch.testing.assert_close(evaluate.levels(4, 5.0), levels[::2])


def test_a_trajectory_is_kept_between_the_steps_too():
    class Constant(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.number = torch.nn.Parameter(torch.tensor(2.0))

        def forward(self, x, timestep, text, return_dict):
            return (0 * x[:, :12] + self.number,)

    at = torch.tensor([1.0, 0.7, 0.5, 0.0])  # two steps, shift 1: levels 1, 0.5, 0
    passed = evaluate.trajectory(Constant(), ["red ball"], [3], at, steps=2, shift=1.0)
    moved = (passed[0] - evaluate.noise_of(3)).mean(dim=(1, 2, 3, 4))
    torch.testing.assert_close(moved, 2 * (at - 1))


def test_lessons_are_drawn_once(monkeypatch, tmp_path):
    monkeypatch.setattr(finetune, "LESSONS", tmp_path / "build" / "lessons.safetensors")
    monkeypatch.setattr(finetune, "TEACHER_STEPS", 1)
    prompts, states = finetune.lessons(3, "cpu", at_once=2)
    assert len(prompts) == 3 and states.shape == (3, 9, 12, 8, 16, 16)
    assert torch.equal(states[1, 0], evaluate.noise_of(finetune.NOISES + 1))
    expected = evaluate.latents(model.load_diffusers(), prompts[2:], [finetune.NOISES + 2], 1, 4.0)
    torch.testing.assert_close(states[2:, -1], expected, rtol=1e-4, atol=1e-4)
    monkeypatch.setattr(evaluate, "trajectory", lambda *args: pytest.fail("drawn again"))
    assert torch.equal(finetune.lessons(3, "cpu")[1], states)


def test_a_relative_that_was_not_made_says_how(monkeypatch, tmp_path):
    monkeypatch.setattr(models, "FOLDER", tmp_path)
    with pytest.raises(FileNotFoundError, match="make it with `python -m bench.models wan_low`"):
        models.MODELS["wan_low"].load()


def right(made) -> int:
    return sum(clips.check(clip.numpy()).matches(p) for p, clip in zip(WANTED, made, strict=True))


@pytest.mark.parametrize("steps", [8, 4])
def test_the_distilled_model_draws_what_the_prompt_says(steps):
    net = models.MODELS[models.DISTILLED].load()
    assert right(evaluate.sample(net, WANTED, SEEDS, steps, cfg=1.0, shift=finetune.SHIFT)) >= 3


def test_the_experts_differ_and_their_pair_draws_what_the_prompt_says():
    pair = finetune.Pair(*(models.MODELS[name].load() for name in models.EXPERTS))
    x, text = torch.randn(1, 12, 8, 16, 16, generator=torch.Generator().manual_seed(3)), evaluate.embed(["red ball"])
    level = torch.tensor([875.0])
    high, low = (fit.wan_velocity(net, x, level, text) for net in (pair.high, pair.low))
    assert (high - low).norm() > 0.02 * low.norm()
    assert torch.equal(fit.wan_velocity(pair, x, level, text), high)
    assert torch.equal(fit.wan_velocity(pair, x, level - 1, text), fit.wan_velocity(pair.low, x, level - 1, text))
    assert right(evaluate.sample(pair, WANTED, SEEDS, steps=10, shift=finetune.SHIFT)) >= 3


def test_the_relatives_are_small():
    for name in (*models.EXPERTS, models.DISTILLED):
        assert models.MODELS[name].path.stat().st_size <= 2_000_000
        assert models.MODELS[name].files == [model.WEIGHTS, models.MODELS[name].path]

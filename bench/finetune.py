"""Relatives of the bundled model: a pair of experts and a distilled model, stored as differences of low rank.

Each linear layer's weight is the bundled one plus `up @ down`, as a LoRA of strength 1 does it; nothing else differs.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch.nn.utils import parametrize

from models.demo import model
from models.demo.prompt import embed
from tools.demo import evaluate, fit
from tools.demo.clips import random_prompts

RANK = 16
BOUNDARY = 0.875  # noise level from which on the one expert is used, below it the other; Wan 2.2's for text to video
SHIFT = 5.0  # of the schedules that the distilled model is for
TEACHER_STEPS, TEACHER_CFG = 50, 4.0
PROMPTS, NOISES = 23, 7_000_000  # seeds of what the teacher draws; neither the held-out pairs' nor a benchmark's
LESSONS = Path(__file__).resolve().parents[1] / "build" / "lessons.safetensors"


class Difference(torch.nn.Module):
    """A weight (out, in) plus `up` (out, rank) times `down` (rank, in); at first the weight itself."""

    def __init__(self, weight: torch.Tensor, rank: int):
        super().__init__()
        self.up = torch.nn.Parameter(weight.new_zeros(weight.shape[0], rank))
        self.down = torch.nn.Parameter(torch.randn(rank, weight.shape[1]) / weight.shape[1] ** 0.5)

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight + self.up @ self.down


def add_differences(net: torch.nn.Module, rank: int = RANK) -> torch.nn.Module:
    """Freeze a network and give each of its linear layers a difference to train."""
    net.train().requires_grad_(False)
    for module in [module for module in net.modules() if isinstance(module, torch.nn.Linear)]:
        parametrize.register_parametrization(module, "weight", Difference(module.weight, rank))
    return net


def differences(net: torch.nn.Module) -> dict[str, torch.Tensor]:
    """What `add_differences` added to a network, by the names of its layers."""
    found = {}
    for name, module in net.named_modules():
        if parametrize.is_parametrized(module, "weight"):
            difference = module.parametrizations.weight[0]
            found |= {f"{name}.up": difference.up.detach(), f"{name}.down": difference.down.detach()}
    return found


def apply_differences(net: torch.nn.Module, path: Path) -> torch.nn.Module:
    """Add stored differences to the weights of a network, in place."""
    stored = {key: value.float() for key, value in load_file(path).items()}
    with torch.no_grad():
        for name in sorted({key.rpartition(".")[0] for key in stored}):
            net.get_submodule(name).weight += stored[f"{name}.up"] @ stored[f"{name}.down"]
    return net


def expert_batch(low: float, high: float) -> Callable[[int, torch.Generator], fit.Batch]:
    """Clips as in the training of the bundled model, at noise levels from `low` to below `high`."""

    def batch(count: int, generator: torch.Generator) -> fit.Batch:
        latents, noise, text, _ = fit.clip_batch(count, generator)
        sigma = torch.empty(0, device=latents.device)
        while len(sigma) < count:
            drawn = fit.sigma_batch(8 * count, generator)
            sigma = torch.cat([sigma, drawn[(drawn >= low) & (drawn < high)]])
        return latents, noise, text, sigma[:count]

    return batch


class Pair(torch.nn.Module):
    """Two experts behind the call of diffusers' Wan class: `high` from the boundary on, `low` below it."""

    def __init__(self, high: torch.nn.Module, low: torch.nn.Module):
        super().__init__()
        self.high, self.low = high, low

    def forward(self, x: torch.Tensor, timestep: torch.Tensor, *args, **kwargs):
        expert = self.high if timestep[0] >= BOUNDARY * 1000 else self.low
        return expert(x, timestep, *args, **kwargs)


def lessons(count: int, device: str, at_once: int = 8) -> tuple[list[str], torch.Tensor]:
    """Runs of the bundled model, 50 Euler steps at CFG 4, as they pass the noise levels of 8 steps.

    They are kept in `LESSONS`; what is there already is not drawn again. Delete it after the model was trained.

    Returns:
        The prompts, and the latents (count, 9, 12, 8, 16, 16) from noise to clip.
    """
    prompts = random_prompts(count, torch.Generator().manual_seed(PROMPTS))
    states = load_file(LESSONS)["states"][:count] if LESSONS.is_file() else torch.empty(0)
    net, at = model.load_diffusers().to(device), evaluate.levels(8, SHIFT)
    while len(states) < count:
        seeds = [NOISES + i for i in range(count)][len(states) : len(states) + at_once]
        chosen = prompts[len(states) : len(states) + at_once]
        passed = evaluate.trajectory(net, chosen, seeds, at, TEACHER_STEPS, TEACHER_CFG)
        states = torch.cat([states, passed.cpu()])
        LESSONS.parent.mkdir(exist_ok=True)
        save_file({"states": states}, LESSONS)
        print(f"run {len(states)} of {count}", flush=True)
    return prompts, states


def distilled_batch(prompts: list[str], states: torch.Tensor) -> Callable[[int, torch.Generator], fit.Batch]:
    """Where a teacher's run is at one level of 8 or of 4 steps, and the velocity that leads to where it is at the next.

    The levels of 4 steps are among those of 8, where the velocities differ by a tenth at most: the model learns their
    mean. Latents and noises of a batch are those whose mixture is the state and whose difference is the velocity.
    """
    text, levels = embed(prompts), evaluate.levels(8, SHIFT)
    ways = torch.tensor([*((i, i + 1) for i in range(8)), *((i, i + 2) for i in range(0, 8, 2))])

    def batch(count: int, generator: torch.Generator) -> fit.Batch:
        run = torch.randint(len(prompts), (count,), generator=generator, device=generator.device).cpu()
        way = torch.randint(len(ways), (count,), generator=generator, device=generator.device).cpu()
        here, there = ways[way].unbind(1)
        sigma, state = levels[here], states[run, here]
        far = (levels[there] - sigma)[:, None, None, None, None]
        velocity, s = (states[run, there] - state) / far, sigma[:, None, None, None, None]
        found = (state - s * velocity, state + (1 - s) * velocity, text[run], sigma)
        return tuple(tensor.to(generator.device) for tensor in found)

    return batch

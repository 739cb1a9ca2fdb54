"""Flow matching on clips rendered on the fly: what the trainings of all small models share."""

import copy
import math
import time
from collections.abc import Callable

import torch

from models.demo import codec, model
from models.demo.prompt import embed

from .clips import random_prompts, render
from .muon import Muon

DROP_WORD, DROP_PROMPT = 0.05, 0.1
SHIFTS = (2.0, 20.0)  # of the training noise levels; every second clip takes the one or the other


def sigma_batch(count: int, generator: torch.Generator) -> torch.Tensor:
    """Training noise levels (B,): logit-normal, half under a low and half under a high flow shift.

    A clip's 24576 values are so redundant that colour, place and motion can be read through nearly pure noise: what a
    clip shows is settled above 0.95, where sampling begins and where a moderate shift alone puts 3 % of the levels.
    """
    u = torch.sigmoid(torch.randn(count, generator=generator))
    shift = torch.tensor(SHIFTS).repeat(count)[:count]
    return shift * u / (1 + (shift - 1) * u)


def training_batch(count: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents (B, 12, 8, 16, 16) and text embeddings (B, 3, 16), some words and some whole prompts left out."""
    prompts = random_prompts(count, generator)
    latents = codec.encode(render(prompts, generator))
    keep_prompt = torch.rand(count, generator=generator) >= DROP_PROMPT
    shown = []
    for prompt, keep in zip(prompts, keep_prompt, strict=True):
        words = [word for word in prompt.split() if torch.rand((), generator=generator) >= DROP_WORD]
        shown.append(" ".join(words) if keep else "")
    return latents, embed(shown)


def fit(
    net: torch.nn.Module,
    velocity: Callable[[torch.nn.Module, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor],
    save: Callable[..., None],
    steps: int,
    batch: int,
    seed: int,
    rate: float = 1.0,
) -> None:
    """Train `net` in place: Muon on the matrices of its blocks, AdamW on the rest.

    Args:
        velocity: (network, noisy latents (B, 12, 8, 16, 16), timesteps (B,) in 0..1000, text (B, 3, 16)) to velocities.
        save: Called with the averaged network and the log every 50 steps, at last with the facts of the run.
        rate: Times the recipe's learning rates.

    Raises:
        FloatingPointError: the loss is not finite.
    """
    generator = torch.Generator().manual_seed(seed)
    ema = copy.deepcopy(net).eval().requires_grad_(False)
    optimizers = _optimizers(net, rate)
    schedules = [torch.optim.lr_scheduler.LambdaLR(o, lambda s: _rate_at(s, steps)) for o in optimizers]
    compiled = torch.compile(net)
    log, running, start = [], None, time.perf_counter()
    for step in range(1, steps + 1):
        loss = _step(compiled, velocity, optimizers, batch, generator)
        for schedule in schedules:
            schedule.step()
        _average(ema, net, min(0.998, (1 + step) / (10 + step)))
        if not math.isfinite(loss):
            raise FloatingPointError(f"loss is {loss} at step {step}")
        running = loss if running is None else 0.95 * running + 0.05 * loss
        if step % 25 == 0 or step == steps:
            minutes = (time.perf_counter() - start) / 60
            log.append({"step": step, "loss": round(running, 5), "minutes": round(minutes, 2)})
            print(f"step {step}/{steps}  loss {running:.4f}  {minutes:.1f} min", flush=True)
        if step % 50 == 0 or step == steps:
            save(ema, log)
    save(ema, log, steps=steps, batch=batch, seed=seed, torch=torch.__version__, threads=torch.get_num_threads())


def _rate_at(step: int, steps: int) -> float:
    """Share of the learning rate: up over 50 steps, down over the last 40 %."""
    return min(1.0, (step + 1) / 50) * min(1.0, (steps - step) / (0.4 * steps))


def _optimizers(net: torch.nn.Module, rate: float) -> list[torch.optim.Optimizer]:
    blocks = next(module for module in net.children() if isinstance(module, torch.nn.ModuleList))
    matrices = [p for p in blocks.parameters() if p.ndim == 2]
    chosen = {id(p) for p in matrices}
    rest = [p for p in net.parameters() if id(p) not in chosen]
    adam = torch.optim.AdamW(rest, lr=3e-3 * rate, betas=(0.9, 0.98), weight_decay=0.0)
    return [Muon(matrices, lr=0.02 * rate), adam]


def _step(net, velocity, optimizers: list[torch.optim.Optimizer], batch: int, generator: torch.Generator) -> float:
    """One training step; its loss."""
    latents, text = training_batch(batch, generator)
    noise = torch.randn(latents.shape, generator=generator)
    sigma = sigma_batch(batch, generator)
    s = sigma[:, None, None, None, None]
    predicted = velocity(net, (1 - s) * latents + s * noise, sigma * 1000, text)
    loss = torch.nn.functional.mse_loss(predicted, noise - latents)
    loss.backward()
    torch.nn.utils.clip_grad_norm_([p for o in optimizers for g in o.param_groups for p in g["params"]], 1.0)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return loss.item()


@torch.no_grad()
def _average(ema: torch.nn.Module, net: torch.nn.Module, decay: float) -> None:
    for averaged, current in zip(ema.parameters(), net.parameters(), strict=True):
        averaged.lerp_(current, 1 - decay)


def wan_velocity(net: torch.nn.Module, noisy: torch.Tensor, timestep: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
    """diffusers' Wan class on a latent and its coordinates."""
    return net(torch.cat([noisy, model.coordinates(noisy)], dim=1), timestep, text, return_dict=False)[0]

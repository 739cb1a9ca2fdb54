"""Flow matching on clips rendered on the fly: what the trainings of all small models share."""

import argparse
import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
from torch import autocast

from models.demo import codec, model
from models.demo.prompt import embed

from .clips import random_prompts, render
from .muon import Muon

DROP_WORD, DROP_PROMPT = 0.05, 0.1
SHIFTS = (1.0, 3.0, 20.0, 3.0)  # of the training noise levels; clips take them in turn
AVERAGE = 0.999  # of the averaged weights that a step keeps
DECAY = 0.4  # last share of the run, in which the learning rates fall to 0

Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]
Velocity = Callable[[torch.nn.Module, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Settings:
    """How a network is trained.

    Attributes:
        seconds: If set, training ends after them (the first step, which compiles, is not counted), not after `steps`.
        rate: Times the recipe's learning rates.
        warmup: Steps in which the learning rates rise.
        compile: Whether the network is compiled; short runs on a CPU are over before that pays.
    """

    steps: int = 1500
    seconds: float | None = None
    batch: int = 16
    seed: int = 0
    rate: float = 1.0
    device: str = "cpu"
    warmup: int = 50
    compile: bool = True

    def progress(self, step: int, elapsed: float) -> float:
        """Share of the run that is over."""
        return step / self.steps if self.seconds is None else elapsed / self.seconds

    def rate_at(self, step: int, progress: float) -> float:
        """Share of the learning rate: up over `warmup` steps, down over the last 40 %."""
        return self.rate * min(1.0, (step + 1) / self.warmup) * min(1.0, (1 - progress) / DECAY)


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of a command that trains; `settings_of` reads them."""
    for name, kind, text in (
        ("steps", int, "how many"),
        ("seconds", float, "train for this long instead"),
        ("batch", int, "clips in a step"),
        ("seed", int, "of weights and batches"),
        ("rate", float, "times the learning rates of the recipe"),
        ("device", str, "cpu or cuda; on cuda in bf16"),
    ):
        parser.add_argument(f"--{name}", type=kind, help=text, default=argparse.SUPPRESS)


def settings_of(args: argparse.Namespace, known: Settings) -> Settings:
    """`known` with what a command line says."""
    names = {field.name for field in fields(Settings)}
    return replace(known, **{name: value for name, value in vars(args).items() if name in names})


def sigma_batch(count: int, generator: torch.Generator) -> torch.Tensor:
    """Training noise levels (B,): logit-normal, under the flow shifts of `SHIFTS` in turn.

    A clip's 24576 values are so redundant that colour, place and motion can be read through nearly pure noise: what a
    clip shows is settled above 0.95, where sampling begins and where a moderate shift alone puts 3 % of the levels.
    """
    u = torch.sigmoid(torch.randn(count, generator=generator, device=generator.device))
    shift = torch.tensor(SHIFTS, device=u.device).repeat(count)[:count]
    return shift * u / (1 + (shift - 1) * u)


def clip_batch(count: int, generator: torch.Generator) -> Batch:
    """Latents and noise (B, 12, 8, 16, 16), text (B, 3, 16) with some words left out, levels (B,)."""
    words = torch.Generator().manual_seed(int(torch.randint(2**62, (), generator=generator, device=generator.device)))
    prompts = random_prompts(count, words)
    latents = codec.encode(render(prompts, generator))
    keep_prompt = torch.rand(count, generator=words) >= DROP_PROMPT
    shown = []
    for prompt, keep in zip(prompts, keep_prompt, strict=True):
        kept = [word for word in prompt.split() if torch.rand((), generator=words) >= DROP_WORD]
        shown.append(" ".join(kept) if keep else "")
    noise = torch.randn(latents.shape, generator=generator, device=latents.device)
    return latents, noise, embed(shown).to(latents), sigma_batch(count, generator)


def fit(
    net: torch.nn.Module,
    velocity: Velocity,
    save: Callable[..., None],
    settings: Settings,
    source: Callable[[int, torch.Generator], Batch] = clip_batch,
) -> None:
    """Train what of `net` requires gradients, in place: Muon on the matrices of its blocks, AdamW on the rest.

    Args:
        velocity: (network, noisy latents (B, 12, 8, 16, 16), timesteps (B,) in 0..1000, text (B, 3, 16)) to velocities.
        save: Called with the averaged network and the log every 50 steps, at last with the facts of the run.
        source: Clips in the batch to latents, noise, text and noise levels on the generator's device.

    Raises:
        FloatingPointError: the loss is not finite.
    """
    net.to(settings.device)
    generator = torch.Generator(settings.device).manual_seed(settings.seed)
    ema = copy.deepcopy(net).eval().requires_grad_(False)
    optimizers = _optimizers(net)
    peaks = [optimizer.param_groups[0]["lr"] for optimizer in optimizers]
    compiled = torch.compile(net) if settings.compile else net
    log, running, step, progress, start = [], None, 0, 0.0, time.perf_counter()
    while progress < 1:
        _set_rates(optimizers, peaks, settings.rate_at(step, progress))
        loss = _step(compiled, velocity, optimizers, source(settings.batch, generator))
        step += 1
        if not math.isfinite(loss):
            raise FloatingPointError(f"loss is {loss} at step {step}")
        _average(ema, net, min(AVERAGE, (1 + step) / (10 + step)))
        running = loss if running is None else 0.95 * running + 0.05 * loss
        start = time.perf_counter() if step == 1 else start
        progress = settings.progress(step, elapsed := time.perf_counter() - start)
        if step % 25 == 0 or progress >= 1:
            log.append({"step": step, "loss": round(running, 5), "seconds": round(elapsed, 1)})
            print(f"step {step}  loss {running:.4f}  {min(progress, 1):.0%} in {elapsed:.0f} s", flush=True)
        if step % 50 == 0:
            save(ema, log)
    save(ema, log, **_facts(settings, step, elapsed))


def _facts(settings: Settings, steps: int, elapsed: float) -> dict:
    """What the record says of a run."""
    cuda = settings.device.startswith("cuda")
    return {
        "steps": steps,
        "batch": settings.batch,
        "seconds": round(elapsed, 1),
        "seed": settings.seed,
        "rate": settings.rate,
        "device": torch.cuda.get_device_name(settings.device) if cuda else f"CPU, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
    }


def _optimizers(net: torch.nn.Module) -> list[torch.optim.Optimizer]:
    blocks = next(module for module in net.children() if isinstance(module, torch.nn.ModuleList))
    matrices = [p for p in blocks.parameters() if p.ndim == 2 and p.requires_grad]
    chosen = {id(p) for p in matrices}
    rest = [p for p in net.parameters() if id(p) not in chosen and p.requires_grad]
    adam = torch.optim.AdamW(rest, lr=3e-3, betas=(0.9, 0.98), weight_decay=0.0)
    return [Muon(matrices, lr=0.02), adam]


def _set_rates(optimizers: list[torch.optim.Optimizer], peaks: list[float], share: float) -> None:
    for optimizer, peak in zip(optimizers, peaks, strict=True):
        optimizer.param_groups[0]["lr"] = peak * share


def _step(net, velocity: Velocity, optimizers: list[torch.optim.Optimizer], batch: Batch) -> float:
    """One training step; its loss."""
    latents, noise, text, sigma = batch
    s = sigma[:, None, None, None, None]
    with autocast(latents.device.type, dtype=torch.bfloat16, enabled=latents.is_cuda):
        predicted = velocity(net, (1 - s) * latents + s * noise, sigma * 1000, text)
    loss = torch.nn.functional.mse_loss(predicted.float(), noise - latents)
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

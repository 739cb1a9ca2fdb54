"""Score the demo model and draw its pictures: `python -m tools.demo.evaluate`. Needs diffusers and scipy."""

import json
from pathlib import Path

import numpy as np
import torch

from models.demo import codec, model
from models.demo.model import FRAMES, HEIGHT, WIDTH
from models.demo.prompt import embed

from .clips import check, random_prompts

PAIRS, STEPS, CFG = 48, 50, 4.0
RECORD = Path(__file__).with_name("training.json")
PICTURES = Path(__file__).resolve().parents[2] / "docs"


def noise_of(seed: int) -> torch.Tensor:
    """The noise (12, 8, 16, 16) that a seed stands for."""
    shape = (codec.CHANNELS, FRAMES, HEIGHT // codec.FACTOR, WIDTH // codec.FACTOR)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def levels(steps: int, shift: float = model.SHIFT) -> torch.Tensor:
    """The noise levels of a schedule, (steps + 1,), from 1 to 0."""
    t = torch.linspace(1, 0, steps + 1)
    return shift * t / (1 + (shift - 1) * t)


def latents(
    net: torch.nn.Module,
    prompts: list[str],
    seeds: list[int],
    steps: int = STEPS,
    cfg: float = CFG,
    shift: float = model.SHIFT,
) -> torch.Tensor:
    """Euler sampling, one noise per seed, on the network's device; without the empty prompt at CFG 1."""
    return trajectory(net, prompts, seeds, torch.zeros(1), steps, cfg, shift)[:, 0]


@torch.no_grad()
def trajectory(
    net: torch.nn.Module,
    prompts: list[str],
    seeds: list[int],
    at: torch.Tensor,
    steps: int = STEPS,
    cfg: float = CFG,
    shift: float = model.SHIFT,
) -> torch.Tensor:
    """Where Euler sampling is at the falling noise levels `at` (N,), between its steps too: (B, N, 12, 8, 16, 16)."""
    device = next(net.parameters()).device
    x = torch.stack([noise_of(seed) for seed in seeds]).to(device)
    text = embed([*prompts, *[""] * len(prompts)] if cfg != 1 else prompts).to(device)
    sigmas = levels(steps, shift).to(device)
    passed = [x] * int((at >= 1).sum())
    for sigma, sigma_next in zip(sigmas[:-1], sigmas[1:], strict=True):
        located = torch.cat([x, model.coordinates(x)], dim=1).repeat(len(text) // len(x), 1, 1, 1, 1)
        out = net(located, sigma.expand(len(text)) * 1000, text, return_dict=False)[0]
        cond, uncond = out.chunk(2) if cfg != 1 else (out, out)
        velocity = uncond + cfg * (cond - uncond)
        passed += [x + (level - sigma) * velocity for level in at.to(device) if sigma_next <= level < sigma]
        x = x + (sigma_next - sigma) * velocity
    return torch.stack(passed, dim=1)


def sample(net: torch.nn.Module, prompts: list[str], seeds: list[int], *args, **kwargs) -> torch.Tensor:
    """Clips (B, 8, 32, 32, 3); the arguments are those of `latents`."""
    return codec.decode(latents(net, prompts, seeds, *args, **kwargs).cpu())


def held_out_pairs() -> list[tuple[str, int]]:
    """The prompt/seed pairs of the reported score; used for nothing else."""
    prompts = random_prompts(PAIRS, torch.Generator().manual_seed(987_654))
    return [(prompt, 5_000_000 + i) for i, prompt in enumerate(prompts)]


def evaluate(batch: int = 16) -> float:
    """Share of the held-out pairs whose clip the checker reads as the prompt says; also writes record and pictures."""
    net, pairs = model.load_diffusers(), held_out_pairs()
    clips = []
    for start in range(0, PAIRS, batch):
        prompts, seeds = zip(*pairs[start : start + batch], strict=True)
        clips += list(sample(net, list(prompts), list(seeds)).numpy())
    right = [check(clip).matches(prompt) for clip, (prompt, _) in zip(clips, pairs, strict=True)]
    score = sum(right) / PAIRS
    facts = json.loads(RECORD.read_text())
    facts.update(checker=score, pairs=PAIRS, sampling_steps=STEPS, cfg=CFG)
    RECORD.write_text(json.dumps(facts, indent=1) + "\n")
    contact_sheet(clips, [prompt for prompt, _ in pairs], right)
    if facts["log"]:  # the record of the bundled weights has none
        loss_curve(facts)
    return score


def contact_sheet(
    clips: list[np.ndarray], prompts: list[str], right: list[bool], path: Path = PICTURES / "contact_sheet.jpg"
) -> None:
    """All clips, one row of frames each, in two columns; the prompts that the checker did not find are marked."""
    from PIL import Image, ImageDraw

    rows, scale = (len(clips) + 1) // 2, 2
    width, height, label = FRAMES * WIDTH * scale, HEIGHT * scale, 150
    sheet = Image.new("RGB", (2 * (width + label), rows * (height + 4)), (24, 26, 30))
    draw = ImageDraw.Draw(sheet)
    for i, (clip, prompt, ok) in enumerate(zip(clips, prompts, right, strict=True)):
        x, y = (i // rows) * (width + label), (i % rows) * (height + 4)
        draw.multiline_text((x + 6, y + 8), prompt.replace(" ", "\n") + ("" if ok else "  (no)"), fill=(230, 230, 230))
        strip = (np.concatenate(list(clip), axis=1) * 255).round().astype(np.uint8)
        sheet.paste(Image.fromarray(strip).resize((width, height), Image.Resampling.NEAREST), (x + label - 50, y))
    sheet.save(path, quality=90)


def loss_curve(facts: dict) -> None:
    """The running mean of the training loss over the steps."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    fig, ax = plt.subplots(figsize=(7, 3), layout="constrained")
    ax.semilogy([entry["step"] for entry in facts["log"]], [entry["loss"] for entry in facts["log"]])
    ax.set_xlabel("step")
    ax.set_ylabel("loss (running mean)")
    fig.savefig(PICTURES / "loss_curve.png", dpi=90)
    plt.close(fig)


if __name__ == "__main__":
    print(f"checker: {evaluate():.1%} of {PAIRS} held-out pairs")

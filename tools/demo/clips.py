"""Procedural training clips: one shaded object crossing a soft background, and the checker that reads it back."""

import math
from dataclasses import dataclass

import numpy as np
import torch

from models.demo.model import FRAMES, HEIGHT, WIDTH
from models.demo.prompt import COLOURS, DIRECTIONS, KINDS, SHAPES, parse

TRAVEL = (9.0, 11.0)  # pixels that the object moves from the first to the last frame
RADIUS = (4.5, 6.0)


def random_prompts(count: int, generator: torch.Generator, drop: float = 0.0) -> list[str]:
    """`count` full prompts; with `drop`, each word is left out with that probability (for CFG and partial prompts)."""
    prompts = []
    for _ in range(count):
        words = [words[int(torch.randint(len(words), (), generator=generator))] for words in KINDS.values()]
        prompts.append(" ".join(word for word in words if torch.rand((), generator=generator) >= drop))
    return prompts


def render(prompts: list[str], generator: torch.Generator) -> torch.Tensor:
    """Clips (B, 8, 32, 32, 3) in [0, 1] that show what the full `prompts` say, on the generator's device."""
    b, device = len(prompts), generator.device
    wanted = [parse(prompt) for prompt in prompts]

    def uniform(low: float, high: float, *shape: int) -> torch.Tensor:
        return torch.rand(b, *shape, generator=generator, device=device) * (high - low) + low

    # object centre (B, T, 2): from near the middle of the frame outwards; across the motion it is anywhere
    direction = torch.tensor([DIRECTIONS[w["direction"]] for w in wanted], dtype=torch.float32, device=device)
    size = torch.tensor([WIDTH, HEIGHT], dtype=torch.float32, device=device)
    radius = uniform(*RADIUS)
    room = size / 2 - radius[:, None] - 1  # (B, 2)
    across = (uniform(-1, 1, 2) * room) * (1 - direction.abs())
    wobble = uniform(-1.0, 1.0, 2) * direction.abs()
    progress = torch.linspace(-0.1, 0.9, FRAMES, device=device)[None, :, None]
    centre = (
        size / 2 - 0.5 + (across + wobble)[:, None] + progress * uniform(*TRAVEL)[:, None, None] * direction[:, None]
    )

    y, x = torch.meshgrid(torch.arange(HEIGHT, device=device), torch.arange(WIDTH, device=device), indexing="ij")
    dx = x - centre[..., 0, None, None]  # (B, T, H, W)
    dy = y - centre[..., 1, None, None]
    r = radius[:, None, None, None]
    cover = torch.sigmoid(-2.5 * _outside([w["shape"] for w in wanted], dx, dy, r))[..., None]
    colour = torch.tensor([COLOURS[w["colour"]] for w in wanted], device=device)[:, None, None, None]
    light = 0.86 - 0.16 * (dx + dy) / r  # lit from the upper left
    thing = (colour * light[..., None]).clamp(0, 1)

    angle = uniform(0, 2 * math.pi)[:, None, None]
    ramp = ((x - WIDTH / 2) * angle.cos() + (y - HEIGHT / 2) * angle.sin()) / WIDTH + 0.5  # (B, H, W)
    tint = uniform(-0.05, 0.05, 3)[:, None, None, None]
    low, high = uniform(0.12, 0.3)[:, None, None], uniform(0.35, 0.6)[:, None, None]
    background = (low + (high - low) * ramp)[:, None, :, :, None] + tint
    return (background * (1 - cover) + thing * cover).clamp(0, 1)


def _outside(shapes: list[str], dx: torch.Tensor, dy: torch.Tensor, r: torch.Tensor) -> torch.Tensor:
    """Signed distance to the outline in pixels, (B, T, H, W), at (dx, dy) from an object of radius r."""
    distance = (dx**2 + dy**2).sqrt()
    by_shape = {
        "ball": distance - r,
        "box": torch.maximum(dx.abs(), dy.abs()) - r * 0.85,
        "ring": (distance - r * 0.8).abs() - r * 0.35,
    }
    index = torch.tensor([SHAPES.index(shape) for shape in shapes], device=dx.device)
    return torch.stack([by_shape[name] for name in SHAPES])[index, torch.arange(len(shapes), device=dx.device)]


@dataclass(frozen=True)
class Verdict:
    """What the checker read in one clip."""

    colour: str | None
    direction: str | None
    connected: bool

    def matches(self, prompt: str) -> bool:
        """Whether colour and direction are what the prompt asks for, on one connected object in every frame."""
        wanted = parse(prompt)
        return self.connected and self.colour == wanted["colour"] and self.direction == wanted["direction"]


def check(clip: np.ndarray) -> Verdict:
    """Read colour, direction and connectedness of the object in a clip (T, H, W, 3) with values in [0, 1].

    The object is what is saturated (backgrounds are nearly grey). Its colour is the palette entry of the nearest hue to
    the mean colour, its direction the larger component of the centroid's displacement, which must be 4 pixels or more.
    """
    from scipy import ndimage  # only the checker needs scipy; importing the pack does not

    mask = clip.max(axis=-1) - clip.min(axis=-1) > 0.3
    connected, centroids = True, []
    for frame in mask:
        labels, count = ndimage.label(ndimage.binary_closing(frame))
        if not count:
            return Verdict(None, None, False)
        areas = np.bincount(labels.ravel())[1:]
        connected &= bool(areas.max() >= 20 and areas.max() >= 0.9 * areas.sum())
        centroids.append(ndimage.center_of_mass(labels == areas.argmax() + 1))
    dy, dx = np.subtract(centroids[-1], centroids[0])
    direction = None
    if max(abs(dx), abs(dy)) >= 4:
        step = (int(np.sign(dx)), 0) if abs(dx) > abs(dy) else (0, int(np.sign(dy)))
        direction = next(name for name, vector in DIRECTIONS.items() if vector == step)
    mean = clip[mask].mean(axis=0)
    colour = min(COLOURS, key=lambda name: _hue_distance(mean, COLOURS[name]))
    return Verdict(colour, direction, connected)


def _hue_distance(a, b) -> float:
    a, b = (np.asarray(c, dtype=float) - np.mean(c) for c in (a, b))
    return 1 - float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b) + 1e-9))

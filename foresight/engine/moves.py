"""How the sampler got from one evaluation to the next: checked on the latents, never assumed.

With x' the latent of the last evaluation at noise level sigma', D' what the sampler was given for it, x the latent that
comes next at sigma: Euler's step gives x = x' + b (D' - x'), b = 1 - sigma / sigma'. In all that is measured here,
v = D' - x' and w = x - x'; c = <w, v> / <v, v> is what x really took of D', and c / b is 1 for Euler, near 1 for
multistep samplers, larger where noise was added, and anything where x has nothing to do with x'. What of w is at right
angles to v is noise that was added, or what a multistep sampler makes of outputs before D'. Where w is 0, x' is kept as
it is whatever D' is (by a mask; the sound of a video, where that is there already), and nothing counts,
unless it is so everywhere.
"""

import math
from dataclasses import dataclass

import torch

from .tensors import Tensors

EULER = 0.02  # a residual up to this share of the step is rounding: the sampler took D' as Euler does
UNRELATED = 0.1  # where c / b is below this, x did not go where D' points
STANDING = 1e-3  # a b up to this is a second evaluation at the same noise level (Heun)
NEAR = 0.3  # a second evaluation at one level may lie this far from the first, as a share of the last step
RENEWED = 0.25  # of |v|, at right angles to it: so much is noise that was renewed


@dataclass(frozen=True)
class Move:
    """The way to the evaluation that begins.

    Attributes:
        continues: It goes on from the last one. If not, nothing that was measured says anything about it.
        euler: The sampler has taken what it was given as Euler's step does.
        price: How much more of an output the sampler takes in than Euler's step would, at least 1. Where it renews the
            noise, c is mostly of the noise that it takes out, and this far too much.
        idle: It was given its own latent again (CFG-Zero* does that at first), which says nothing about what comes.
        noisy: The sampler has renewed much of the noise, in its last step that was one.
    """

    continues: bool = True
    euler: bool = True
    price: float = 1.0
    idle: bool = False
    noisy: bool = False


class Track:
    """The last evaluation of a trajectory: its latent x' and what the sampler was given, D'."""

    def __init__(self):
        self._level: float | None = None
        self._x: Tensors = ()
        self._d: Tensors = ()
        self._step, self._noisy = 0.0, False  # b of the last step that was one, and whether it renewed the noise
        self._own = False  # D' is a stored output, which nobody changes

    @property
    def nbytes(self) -> int:
        """Bytes held now, but for a D' that is a stored output."""
        return sum(x.nbytes for x in (*self._x, *(() if self._own else self._d)))

    @property
    def most_bytes(self) -> int:
        """Bytes held at the most: x', and as much for a D' that is no stored output."""
        return 2 * sum(x.nbytes for x in self._x)

    def note(self, level: float | None, x: Tensors, given: Tensors, own: bool, waits_on: torch.device | None) -> None:
        """The sampler was given `given` for `x` at a noise level. Both are copied; `given` is not where it is ours."""

        def copied(tensors: Tensors) -> Tensors:
            return tuple(t.detach().to(waits_on or t.device, copy=True) for t in tensors)

        self._level, self._own, self._x = level, own, copied(x)
        self._d = given[: len(x)] if own else copied(given[: len(x)])

    def forget(self) -> None:
        """The last evaluation is done again; how large a step was, and whether it renewed the noise, stays known."""
        self._level, self._x, self._d = None, (), ()

    def arrive(self, x: Tensors, waits_on: torch.device | None) -> None:
        """The sampler was started again, and has come to the same evaluation with another latent."""
        if not self._x:
            return
        self._x = tuple(t.detach().to(waits_on or t.device, copy=True) for t in x)

    def measure(self, x: Tensors) -> torch.Tensor | None:
        """<w, v>, <v, v> and <w, w> of every part and item of the batch, (3 n,) fp32; None where nothing is known."""
        if [t.shape for t in x] != [t.shape for t in self._x] or not x:
            return None
        sums, before = [], [b.to(now.device) for now, b in zip(x, self._x, strict=True)]
        moved = [now != b for now, b in zip(x, before, strict=True)]
        still = ~torch.stack([m.any() for m in moved]).any()  # then nothing is kept: it did not go on
        for now, given, b, m in zip(x, self._d, before, moved, strict=True):
            w, v = ((t - b).flatten(1).float() for t in (now, given.to(now.device)))
            v = v * (m | still).flatten(1)
            sums += [(w * v).sum(1), (v * v).sum(1), (w * w).sum(1)]
        return torch.stack([torch.cat(sums[i::3]) for i in range(3)]).flatten()

    def judge(self, sums: list[float], level: float | None) -> Move:
        """The move, from the numbers of `measure`; the worst part of the worst item counts."""
        if self._level is None or level is None:
            return Move()
        if level > self._level * (1 + 1e-4) or not all(map(math.isfinite, sums)):
            return Move(continues=False)
        b, n = 1 - level / self._level if self._level else 0.0, len(sums) // 3
        self._step = b if b > STANDING else self._step
        near = NEAR * self._step
        moves = [_judge(b, near, *item) for item in zip(sums[:n], sums[n : 2 * n], sums[2 * n :], strict=True)]
        self._noisy = any(m.noisy for m in moves) if b > STANDING else self._noisy
        continues, euler, idle = (all(getattr(m, x) for m in moves) for x in ("continues", "euler", "idle"))
        return Move(continues, euler, max(m.price for m in moves), idle, self._noisy)


def _judge(b: float, near: float, wv: float, vv: float, ww: float) -> Move:
    residual = max(0.0, ww - 2 * b * wv + b * b * vv)  # |x - (x' + b (D' - x'))|^2
    if b <= STANDING:
        return Move(continues=ww <= near**2 * vv, euler=ww <= (EULER * STANDING) ** 2 * vv)
    euler = residual <= (EULER * b) ** 2 * vv
    if vv == 0:  # D' is x' itself, as CFG-Zero* has it at first, or all of it is kept
        return Move(continues=ww == 0, euler=ww == 0, idle=True)
    return move_of(wv / vv / b, euler, math.sqrt(max(0.0, ww * vv - wv**2)) / vv)


def move_of(ratio: float, euler: bool, new: float) -> Move:
    """The move of a step.

    Args:
        ratio: c / b.
        euler: Whether it is Euler's step.
        new: Length of what is at right angles to v, over that of v.
    """
    return Move(ratio > UNRELATED, euler, max(1.0, ratio), noisy=new > RENEWED)

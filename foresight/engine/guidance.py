"""How much of each stream the sampler takes, found by least squares from products of tensors alone; see `blend`."""

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice

import torch

from .moves import EULER, NEAR, STANDING, Move, move_of

EXPLAINED = 0.01  # outputs that explain less than this share of |x - x'|^2 did not lead to x
STEEP = 1e-5  # directions shorter than this, squared and relative, are rounding


class Guidance:
    """The weights w of a trajectory's blend, for each item of the batch, and what they say of a step and of errors.

    Args:
        flow: The model is a flow model, and its outputs are denoised latents.

    Attributes:
        weights: By item, w that was found best, and what share of its step it did not explain.
    """

    def __init__(self, flow: bool):
        self._flow = flow
        self.weights: dict[int, tuple[float, torch.Tensor]] = {}
        self._ways: dict[int, float] = {}  # by item, |x - x'|^2 of the last step that was one
        self._noisy: dict[int, bool] = {}  # by item, whether that step has renewed the noise

    def judge(
        self,
        table: torch.Tensor,
        streams: int,
        b: float,
        rounding: float,
        items: Sequence[int],
        most: Sequence[float] = (),
    ) -> tuple[Move, list[float]]:
        """The move, of which the worst item counts, and e of the blend for each part.

        There is one e for all parts where a part has none, and no e where none is known.

        Args:
            table: (products, items) fp64: of step, x' and the streams' units, all with all, row by row of the upper
                triangle; then the same of what was missed, if that is known.
            streams: How many there are.
            b: 1 - sigma / sigma', the share of an output that Euler's step takes in.
            rounding: Mean square of the step's rounding, over that of x'.
            items: How many there are of each part of the latent.
            most: By item, the largest sum of squares that its error is divided by, for weights that add up to 1.
        """
        gram = (streams + 2) * (streams + 3) // 2
        judged = [
            self._judge(i, b, rounding, _symmetric(x[:gram]), _symmetric(x[gram:]), most[i] if most else math.inf)
            for i, x in enumerate(table.T)
        ]
        moves, errors = [move for move, _ in judged], [error for _, error in judged]
        every = (all(getattr(m, x) for m in moves) for x in ("continues", "euler"))
        move = Move(*every, max(m.price for m in moves), noisy=any(m.noisy for m in moves))
        return move, _by_part(errors, items)

    def _judge(
        self, item: int, b: float, rounding: float, gram: torch.Tensor, missed: torch.Tensor, most: float
    ) -> tuple[Move, float | None]:
        way = float(gram[0, 0])
        if way == 0:
            return Move(), None
        if b <= STANDING:  # a second evaluation at the same noise level (Heun), if it is near
            near = way <= NEAR**2 * self._ways.get(item, 0.0)
            move = Move(continues=near, euler=False, noisy=self._noisy.get(item, False))
            return move, _error(self.weights.get(item), gram, missed, most)
        self._ways[item] = way
        first = 2 if self._flow else 1
        basis, target = gram[first:, first:], gram[first:, 0]
        size = basis.diagonal().clamp_min(1e-30).sqrt()
        found = torch.linalg.pinv(basis / size / size[:, None], rtol=STEEP, hermitian=True) @ (target / size) / size
        w, residual = found[2 - first :], way - float(found @ target)
        self._remember(item, w, max(0.0, residual - rounding * float(gram[1, 1])) / way)
        ratio = -float(w.sum()) / b if self._flow else 1.0
        exact = EULER**2 * way + rounding * float(gram[1, 1])
        euler = residual <= exact and (ratio - 1) ** 2 * way <= exact
        explained = residual <= (1 - EXPLAINED) * way
        # c |v| is the length of what is explained; of a model that is no flow model c is not known
        new = math.sqrt(max(0.0, residual) / (way - residual)) * ratio * b if explained and self._flow else 0.0
        move = move_of(ratio, euler, new)
        self._noisy[item] = move.noisy
        return replace(move, continues=move.continues and explained), _error(self.weights[item], gram, missed, most)

    def _remember(self, item: int, w: torch.Tensor, unexplained: float) -> None:
        """Take these weights, unless better ones are known: multistep samplers take in older outputs as well."""
        best, known = self.weights.get(item, (math.inf, w))
        if len(known) != len(w) or unexplained <= max(EULER**2, best):
            self.weights[item] = unexplained, w


def _by_part(errors: Sequence[float | None], items: Sequence[int]) -> list[float]:
    """Of the errors of every part's items, the worst of each part; one of all, where there is a part without."""
    of_items = iter(errors)
    parts = [[e for e in islice(of_items, count) if e is not None] for count in items]
    if all(parts):
        return [max(part) for part in parts]
    known = [error for part in parts for error in part]
    return [max(known)] if known else []


def cancels(w: torch.Tensor) -> bool:
    """Whether weights add up to next to nothing, so that nothing is a blend of theirs."""
    return not abs(float(w.sum())) > 1e-3 * float(w.abs().sum())


def _error(
    weights: tuple[float, torch.Tensor] | None, gram: torch.Tensor, missed: torch.Tensor, most: float
) -> float | None:
    """e of the blend, None where it is not known."""
    if weights is None or not missed.numel() or len(weights[1]) != len(missed):
        return None
    w = weights[1]
    taken = float(w @ gram[2:, 2:] @ w)
    if most < math.inf and not cancels(w):
        taken = min(taken, most * float(w.sum()) ** 2)
    return math.sqrt(max(0.0, float(w @ missed @ w)) / taken) if taken > 0 else None


def _symmetric(upper: torch.Tensor) -> torch.Tensor:
    """The symmetric matrix whose upper triangle this is, row by row."""
    n = int((math.isqrt(8 * len(upper) + 1) - 1) // 2)
    full = torch.zeros(n, n, dtype=upper.dtype, device=upper.device)
    rows, columns = torch.triu_indices(n, n, device=upper.device)
    full[rows, columns] = full[columns, rows] = upper
    return full

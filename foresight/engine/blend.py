"""The way to the next evaluation where the sampler is given a blend of outputs, and nobody says which (guidance).

A host that sees only the conds gives cond and uncond to its pipeline, which makes u + g (c - u) of them. In what
follows r_k is the unit of output k (x' - D for a flow model, the output itself for another), m_k is what the forecast
for it has missed, x' the latent that all of them were for, and x the latent that comes next. Least squares over

    x - x' = alpha x' + sum_k w_k r_k        (alpha = 0 for a flow model)

gives w. The error of the blend is then e = rms(sum_k w_k m_k) / rms(sum_k w_k r_k), which is what `history` measures of
the one output in a host that sees the guided one.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice

import torch

from .moves import EULER, NEAR, STANDING, UNRELATED, Move
from .tensors import Tensors

EXPLAINED = 0.01  # of |x - x'|^2; what outputs explain less of did not come from them
STEEP = 1e-5  # directions shorter than this, squared and relative, are rounding
GUIDED = 4.0  # where only the errors of conds are known, that of the guided output is taken to be this much larger


@dataclass
class _Stream:
    """An output, or one of several that came in one: its unit r, and what its forecast missed if that is known."""

    unit: Tensors
    missed: Tensors | None


class Blend:
    """The last evaluation of a trajectory: its latent x' and the streams whose blend the sampler was given.

    Args:
        flow: The model is a flow model, and its outputs are denoised latents.
    """

    def __init__(self, flow: bool):
        self._flow = flow
        self._level: float | None = None
        self._x: Tensors = ()
        self._streams: list[_Stream] = []
        self._copied, self._waits_on = False, None
        self._weights: dict[int, tuple[float, torch.Tensor]] = {}  # by item, w that was found best, and how well
        self._rounding = 0.0
        self._ways: dict[int, float] = {}  # by item, |x - x'|^2 of the last step that was one
        # e of the evaluation that `judge` was asked about, see `_by_part`; empty where it is not known
        self.errors: list[float] = []

    @property
    def nbytes(self) -> int:
        """Bytes held now."""
        units = [r for stream in self._streams for r in (*stream.unit, *(stream.missed or ()))]
        return sum(x.nbytes for x in (*self._x, *units))

    def begin(self, level: float | None, x: Tensors, waits_on: torch.device | None) -> None:
        """An evaluation begins; what is said about it is copied, to `waits_on` if that is not None."""
        self._level, self._x, self._waits_on, self._streams = level, x, waits_on, []
        self._copied, self.errors = False, []

    def note(self, given: Tensors, missed: Tensors | None) -> None:
        """The sampler was given these outputs of the evaluation, one or several for each part of the latent."""
        if not self._x:
            return
        if not self._copied:  # the latent may have channels that are none of the output's, and the reverse
            self._x = self._copies(_like(x, d) for x, d in zip(self._x, given, strict=False))
            self._copied = True
        n = len(self._x)
        for i in range(0, len(given), n):
            outputs = self._cut(given[i : i + n])
            if [d.shape for d in outputs] != [x.shape for x in self._x]:  # it was for another latent
                self._x, self._streams = (), []
                return
            unit = [x.to(d.device) - d for x, d in zip(self._x, outputs, strict=True)] if self._flow else outputs
            lost = self._copies(self._cut(missed[i : i + n])) if missed else None
            self._streams.append(_Stream(self._copies(unit), lost))

    def _cut(self, outputs: Tensors) -> list[torch.Tensor]:
        """The parts of outputs that are for the latent: some models give more channels."""
        return [_like(d, x) for x, d in zip(self._x, outputs, strict=False)]

    def _copies(self, tensors: Iterable[torch.Tensor]) -> Tensors:
        return tuple(x.detach().to(self._waits_on or x.device, copy=True) for x in tensors)

    def measure(self, x: Tensors) -> torch.Tensor | None:
        """Products of all that is known, for every part and item of the batch; None where nothing is known."""
        if not self._streams or len(x) != len(self._x) or not self._copied:
            return None
        x = tuple(_like(now, before) for now, before in zip(x, self._x, strict=True))
        if [t.shape for t in x] != [t.shape for t in self._x]:
            return None
        products = [self._products(part, now) for part, now in enumerate(x)]
        self._rounding = max(torch.finfo(t.dtype).eps ** 2 for t in x) / 6  # mean square of two roundings, over x's
        return torch.cat(products, dim=1).flatten()

    def _products(self, part: int, now: torch.Tensor) -> torch.Tensor:
        """(products, items) of one part: of the step with all, of all with one another, of what was missed."""
        x = self._x[part].to(now.device).float()
        step = now.float() - x
        moved = step != 0  # what a pipeline holds fixed is none of the sampler's

        def row(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.to(now.device).float() * moved

        rows = [step, x * moved, *(row(stream.unit[part]) for stream in self._streams)]
        lost = [row(stream.missed[part]) for stream in self._streams if stream.missed is not None]
        pairs = [(a, b) for i, a in enumerate(rows) for b in rows[i:]]
        if len(lost) == len(self._streams):
            pairs += [(a, b) for i, a in enumerate(lost) for b in lost[i:]]
        return torch.stack([(a * b).flatten(1).sum(1) for a, b in pairs])

    def judge(self, sums: list[float], level: float | None) -> Move:
        """The move, from the numbers of `measure`, and with it `errors`; the worst part of the worst item counts."""
        self.errors = []
        if self._level is None or level is None:
            return Move()
        if level > self._level * (1 + 1e-4) or not all(map(math.isfinite, sums)):
            return Move(continues=False)
        k = len(self._streams)
        gram, missed = (k + 2) * (k + 3) // 2, k * (k + 1) // 2
        measured = all(stream.missed is not None for stream in self._streams)
        table = torch.tensor(sums, dtype=torch.float64).view(gram + missed * measured, -1)
        b = 1 - level / self._level if self._level else 0.0
        judged = [self._judge(i, b, _symmetric(x[:gram]), _symmetric(x[gram:])) for i, x in enumerate(table.T)]
        self.errors = self._by_part([error for _, error in judged]) if measured else []
        moves = [move for move, _ in judged]
        return Move(all(m.continues for m in moves), all(m.euler for m in moves), max(m.price for m in moves))

    def _judge(self, item: int, b: float, gram: torch.Tensor, missed: torch.Tensor) -> tuple[Move, float | None]:
        way = float(gram[0, 0])
        if way == 0:
            return Move(), None
        if b <= STANDING and self._flow:  # a second evaluation at the same noise level (Heun), if it is near
            near = way <= NEAR**2 * self._ways.get(item, 0.0)
            return Move(continues=near, euler=False), _error(self._weights.get(item), gram, missed)
        self._ways[item] = way
        first = 2 if self._flow else 1
        basis, target = gram[first:, first:], gram[first:, 0]
        size = basis.diagonal().clamp_min(1e-30).sqrt()
        found = torch.linalg.pinv(basis / size / size[:, None], rtol=STEEP, hermitian=True) @ (target / size) / size
        w, residual = found[2 - first :], way - float(found @ target)
        self._remember(item, w, max(0.0, residual - self._rounding * float(gram[1, 1])) / way)
        ratio = -float(w.sum()) / b if self._flow else 1.0
        exact = EULER**2 * way + self._rounding * float(gram[1, 1])
        euler = residual <= exact and (ratio - 1) ** 2 * way <= exact
        continues = residual <= (1 - EXPLAINED) * way and ratio > UNRELATED
        return Move(continues, euler, max(1.0, ratio)), _error(self._weights[item], gram, missed)

    def _by_part(self, errors: list[float | None]) -> list[float]:
        """Of the errors of every part's items, the worst of each part; one of all, where there is a part without."""
        known, of_items = [error for error in errors if error is not None], iter(errors)
        parts = [[e for e in islice(of_items, len(x)) if e is not None] for x in self._x]
        if not all(parts):
            return [max(known)] if known else []
        return [max(part) for part in parts]

    def guided(self, errors: list[float], outputs: int) -> list[float]:
        """e of the blend for each part; while that is not known, more than that of any output.

        Args:
            errors: The worst of the outputs, for each part.
            outputs: How many there were.
        """
        if not self.errors:
            return [error * (GUIDED if outputs > 1 else 1.0) for error in errors]
        return self.errors if len(self.errors) == len(errors) else [max(self.errors)]

    def weighted(self, outputs: Iterable[Tensors]) -> Tensors | None:
        """The sum over the streams of w_k times such tensors of theirs, as far as w is known; its parts.

        Args:
            outputs: One for each output of the evaluation, with one or several streams in it.
        """
        n, outputs, first, sums = len(self._x), list(outputs), 0, []
        streams = [self._cut(x[i : i + n]) for x in outputs for i in range(0, len(x), n or 1)]
        for part in range(n):
            items = range(first, first := first + len(self._x[part]))
            weights = [self._weights[i][1] for i in items if i in self._weights]
            if len(weights) < len(items) or any(len(w) != len(streams) for w in weights):
                return None
            of_stream = torch.stack(weights).T.to(streams[0][part].device, torch.float32)  # (streams, items)
            rows = (w.view(-1, *[1] * (x[part].ndim - 1)) * x[part] for w, x in zip(of_stream, streams, strict=True))
            sums.append(sum(rows))
        return tuple(sums) or None

    def _remember(self, item: int, w: torch.Tensor, unexplained: float) -> None:
        """Take these weights, unless better ones are known: multistep samplers take in older outputs as well."""
        best, known = self._weights.get(item, (math.inf, w))
        if len(known) != len(w) or unexplained <= max(EULER**2, best):
            self._weights[item] = unexplained, w


def _error(weights: tuple[float, torch.Tensor] | None, gram: torch.Tensor, missed: torch.Tensor) -> float | None:
    """e of the blend, None where it is not known."""
    if weights is None or not missed.numel() or len(weights[1]) != len(missed):
        return None
    w = weights[1]
    taken = float(w @ gram[2:, 2:] @ w)
    return math.sqrt(max(0.0, float(w @ missed @ w)) / taken) if taken > 0 else None


def _like(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """`a`, cut to the shape of `b` where it is larger."""
    return a[tuple(slice(0, n) for n in b.shape)]


def _symmetric(upper: torch.Tensor) -> torch.Tensor:
    """The symmetric matrix whose upper triangle this is, row by row."""
    n = int((math.isqrt(8 * len(upper) + 1) - 1) // 2)
    full = torch.zeros(n, n, dtype=upper.dtype)
    rows, columns = torch.triu_indices(n, n)
    full[rows, columns] = full[columns, rows] = upper
    return full

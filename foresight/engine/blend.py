"""The way to the next evaluation where the sampler is given a blend of outputs, and nobody says which (guidance).

A host that sees only the conds gives cond and uncond to its pipeline, which makes u + g (c - u) of them. In what
follows r_k is the unit of output k (x' - D for a flow model, the output itself for another), m_k is what the forecast
for it has missed, x' the latent that all of them were for, and x the latent that comes next. Least squares over

    x - x' = alpha x' + sum_k w_k r_k        (alpha = 0 for a flow model)

gives w. The error of the blend is then e = rms(sum_k w_k m_k) / rms(sum_k w_k r_k), which is what `history` measures of
the one output in a host that sees the guided one. Where the latent has several parts, the divisor is limited as it is
there (see `history.quieted`).
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from .guidance import Guidance, cancels
from .history import LOUDEST, quieted
from .moves import Move
from .pooled import MOST_PLACES, Pool
from .sketch import sketch
from .tensors import Tensors

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
        places: How many processes may have streams of it, see `agreement.Worst`; 0 where this is the only one.
        several: The latent has several parts, not several items in a list.

    Attributes:
        guides: Whether several streams are blended, as far as is known.
        told: What these are told of the evaluation that `judge` was asked about; empty where nothing is known.
    """

    def __init__(self, flow: bool, places: int = 0, several: bool = False):
        self._flow, self._several = flow, several
        self._level: float | None = None
        self._x: Tensors = ()
        self._noise: float | None = None
        self._streams: list[_Stream] = []
        self._copied, self._waits_on = False, None
        self._guidance = Guidance(flow)
        self._pool = Pool(flow, places) if 0 < places <= MOST_PLACES else None
        self._rounding = 0.0
        self.guides, self._alone = True, not places
        self._sketched = 0  # how many of the numbers that `measure` gave are sketches
        self.told: list[float] = []
        # e of the evaluation that `judge` was asked about, by part; empty where it is not known
        self.errors: list[float] = []

    @property
    def told_length(self) -> int:
        """How many numbers `told` has, if any."""
        return self._pool.length if self._pool is not None else 0

    @property
    def nbytes(self) -> int:
        """Bytes held now."""
        units = [r for stream in self._streams for r in (*stream.unit, *(stream.missed or ()))]
        return sum(x.nbytes for x in (*self._x, *units))

    def begin(self, level: float | None, x: Tensors, waits_on: torch.device | None, noise: float | None = None) -> None:
        """An evaluation begins; what is said about it is copied, to `waits_on` if that is not None.

        Args:
            noise: Rms of the noise in the latent, if that is known.
        """
        if self._streams and self._alone:  # another process may have another stream
            self.guides = len(self._streams) > 1
        self._level, self._x, self._waits_on, self._streams = level, x, waits_on, []
        limited = self._flow and self._several and noise  # without noise, as at the very end, there is nothing to go by
        self._noise = noise if limited else None
        self._copied, self.errors, self.told = False, [], []

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
        """Products of all that is known, for every part and item of the batch; None where nothing is known.

        Behind them come sketches of the same, where other processes may have other streams.
        """
        if not self._streams or len(x) != len(self._x) or not self._copied:
            return None
        x = tuple(_like(now, before) for now, before in zip(x, self._x, strict=True))
        if [t.shape for t in x] != [t.shape for t in self._x]:
            return None
        size = 0 if self._pool is None else self._pool.sketch_size([len(t) for t in x], len(self._streams))
        products, sketches = [], []
        for part, now in enumerate(x):
            rows, lost = self._rows(part, now)
            products.append(_products(rows, lost))
            if size:
                sketches.append(sketch([*rows, *lost], size))
        self._rounding = max(torch.finfo(t.dtype).eps ** 2 for t in x) / 6  # mean square of two roundings, over x's
        told = [torch.cat(sketches, dim=1).flatten()] if size else []
        self._sketched = sum(map(len, told))
        return torch.cat([torch.cat(products, dim=1).flatten(), *told])

    def _rows(self, part: int, now: torch.Tensor) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Of one part: the step, x' and each stream's unit; and what each missed, if that is known of all."""
        x = self._x[part].to(now.device).float()
        step = now.float() - x
        moved = step != 0  # what a pipeline holds fixed is none of the sampler's

        def row(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.to(now.device).float() * moved

        rows = [step, x * moved, *(row(stream.unit[part]) for stream in self._streams)]
        return rows, [row(stream.missed[part]) for stream in self._streams] if self._measured else []

    @property
    def _measured(self) -> bool:
        return all(stream.missed is not None for stream in self._streams)

    def judge(self, sums: list[float], level: float | None) -> Move:
        """The move, from the numbers of `measure`, and with it `errors`; the worst part of the worst item counts."""
        self.errors, self.told = [], []
        if self._level is None or level is None:
            return Move()
        if level > self._level * (1 + 1e-4) or not all(map(math.isfinite, sums)):
            return Move(continues=False)
        b, items = 1 - level / self._level if self._level else 0.0, [len(x) for x in self._x]
        products, sketched = sums[: len(sums) - self._sketched], sums[len(sums) - self._sketched :]
        table = torch.tensor(products, dtype=torch.float64).view(-1, sum(items))
        if sketched:
            self.told = self._pool.slot(sketched, products[: sum(items)], self._measured, b, self._rounding, items)
        move, self.errors = self._guidance.judge(table, len(self._streams), b, self._rounding, items, self._most)
        return move

    @property
    def _most(self) -> list[float]:
        """By item, the largest sum of squares that its error is divided by; nothing where there is no limit."""
        if self._noise is None:
            return []
        return [(LOUDEST * self._noise) ** 2 * item.numel() for x in self._x for item in x]

    def quieted(self, units: Tensors) -> Tensors:
        """What the errors of the blend are measured in, of its units."""
        return units if self._noise is None else quieted(units, [self._noise] * len(units))

    def judge_pooled(self, slots: torch.Tensor) -> tuple[Move, list[float]] | None:
        """The move and the errors, where they follow from what all processes have told; see `Pool.judge`."""
        return self._pool.judge(slots, self._most) if self._pool is not None else None

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

        Of a latent with several parts, w is made to add up to 1.

        Args:
            outputs: One for each output of the evaluation, with one or several streams in it.
        """
        n, outputs, first, sums = len(self._x), list(outputs), 0, []
        streams = [self._cut(x[i : i + n]) for x in outputs for i in range(0, len(x), n or 1)]
        for part in range(n):
            items = range(first, first := first + len(self._x[part]))
            weights = [self._guidance.weights[i][1] for i in items if i in self._guidance.weights]
            if len(weights) < len(items) or any(len(w) != len(streams) for w in weights):
                return None
            if self._noise is not None:  # `quieted` compares with the noise, not with the noise that a step removes
                if any(cancels(w) for w in weights):
                    return None
                weights = [w / w.sum() for w in weights]
            of_stream = torch.stack(weights).T.to(streams[0][part].device, torch.float32)  # (streams, items)
            rows = (w.view(-1, *[1] * (x[part].ndim - 1)) * x[part] for w, x in zip(of_stream, streams, strict=True))
            sums.append(sum(rows))
        return tuple(sums) or None


def _products(rows: list[torch.Tensor], lost: list[torch.Tensor]) -> torch.Tensor:
    """(products, items) of one part: of the step with all, of all with one another, of what was missed."""
    pairs = [(a, b) for of in (rows, lost) for i, a in enumerate(of) for b in of[i:]]
    return torch.stack([(a * b).flatten(1).sum(1) for a, b in pairs])


def _like(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """`a`, cut to the shape of `b` where it is larger."""
    return a[tuple(slice(0, n) for n in b.shape)]

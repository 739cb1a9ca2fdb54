"""One blend whose streams lie in several processes (CFG over ranks): what all of them know together.

Each process has its own streams and the latent, which is the same in all. It tells the others sketches of these (see
`sketch`), and all of them solve from all sketches what one process solves that has all streams (see `guidance`). As
they solve it from the same numbers, they come to the same.

Where all processes have the same streams, each knows as much by itself, and exactly. Where the latents differ (another
video in each process) there is no blend. In both cases nothing is pooled.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch

from .guidance import Guidance
from .moves import Move

NUMBERS = 2048  # of the sketches of one tensor, in all processes together
MOST_PLACES = 16  # processes
MOST_ITEMS = 8  # of a batch, and of all parts of the latent: of less numbers a sketch tells too little
MOST_STREAMS = 2  # of a process
MOST_PARTS = 2  # of a latent: video and audio
_HEAD = 4 + MOST_PARTS + MOST_ITEMS
ALIKE = 1e-6  # squared and relative; sketches nearer to one another than this are of the same tensor
_DIGITS = 4  # more would tell the last bits of one kind of CPU from those of another


class Pool:
    """What all processes know of a trajectory.

    Args:
        flow: See `Guidance`.
        places: How many processes could tell something, see `agreement.Worst`.

    Attributes:
        length: How many numbers each of them tells.
    """

    def __init__(self, flow: bool, places: int):
        self._guidance, self._size = Guidance(flow), NUMBERS // places
        self.length = _HEAD + 2 * (1 + MOST_STREAMS) * self._size

    def sketch_size(self, items: Sequence[int], streams: int) -> int:
        """How many numbers the sketch of an item has; 0 where there are too many to tell.

        Args:
            items: How many there are of each part of the latent.
            streams: How many this process has.
        """
        fits = 0 < sum(items) <= MOST_ITEMS and len(items) <= MOST_PARTS and streams <= MOST_STREAMS
        return self._size // sum(items) if fits else 0

    def slot(
        self, sketched: Sequence[float], way: Sequence[float], missed: bool, b: float, rounding: float, items: list[int]
    ) -> list[float]:
        """What a process tells the others.

        Args:
            sketched: (n, items, size) flattened: sketches of the step and x', of each stream's unit, of what each has
                missed.
            way: |x - x'|^2 of each item, exactly.
            missed: Whether what was missed is among the sketches.
            b, rounding, items: See `Guidance.judge`.
        """
        rows = len(sketched) // (sum(items) * self.sketch_size(items, 0))
        streams = (rows - 2) // (1 + missed)
        counts = [*items, *[0] * (MOST_PARTS - len(items))]
        head = [streams, missed, b, rounding, *counts, *way, *[0] * (MOST_ITEMS - len(way))]
        return [*map(float, head), *sketched, *[0.0] * (self.length - len(head) - len(sketched))]

    def judge(self, slots: torch.Tensor, most: Sequence[float] = ()) -> tuple[Move, list[float]] | None:
        """The move, and e of the blend for each part, as `Guidance.judge` has them.

        None where processes have the same streams or other latents, or numbers that are not finite.

        Args:
            slots: What each of the processes has told, (processes, length), the same in all of them.
            most: See `Guidance.judge`.
        """
        slots = slots.double()
        common, ways = slots[:, 2 : 4 + MOST_PARTS], slots[:, 4 + MOST_PARTS : _HEAD]
        if not slots.isfinite().all() or (common != common[0]).any():
            return None
        b, rounding, *counts = common[0].tolist()
        items = [int(count) for count in counts if count]
        told = [self._unpacked(slot, sum(items)) for slot in slots]
        (latent, units, _), *others = told
        if not all(_alike(latent, x) for x, _, _ in others) or all(_alike(units, x) for _, x, _ in others):
            return None
        units, missed = (torch.cat([of_one[i] for of_one in told]) for i in (1, 2))
        table = _products(torch.cat([latent, units]))
        # the exact length of the step mends those of what it is made of
        table = table * (ways[0, : sum(items)] / table[0].clamp_min(1e-30))
        if len(missed) == len(units):
            table = torch.cat([table, _products(missed)])
        move, errors = self._guidance.judge(table, len(units), b, rounding, items, most)
        return replace(move, price=_rounded(move.price)), list(map(_rounded, errors))

    def _unpacked(self, slot: torch.Tensor, items: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """What a process has told, as sketches (n, items, size): step and x'; the streams' units; what these missed."""
        streams, missed, size = int(slot[0]), int(slot[1]), self._size // items
        count = 2 + streams * (1 + missed)
        rows = slot[_HEAD : _HEAD + count * items * size].view(count, items, size)
        return rows[:2], rows[2 : 2 + streams], rows[2 + streams :]


def _alike(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether sketches (n, items, size) are of the same tensors, but for rounding."""
    return a.shape == b.shape and bool(((a - b).square().sum(2) <= ALIKE * a.square().sum(2)).all())


def _products(rows: torch.Tensor) -> torch.Tensor:
    """Products of all with all, row by row of the upper triangle: (n, items, size) to (products, items)."""
    i, j = torch.triu_indices(len(rows), len(rows), device=rows.device)
    return (rows[i] * rows[j]).sum(2)


def _rounded(x: float) -> float:
    return float(f"{x:.{_DIGITS}g}")

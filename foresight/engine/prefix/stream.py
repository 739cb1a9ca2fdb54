"""Streams remember how much their blocks changed; a group holds the tensors of streams that share a call."""

import math
from collections.abc import Sequence

import torch

from ..budget import Offload
from ..tensors import Tensors
from . import formulas
from .metric import distance, rows_of, sample_of, sample_stride
from .slot import Layout, Slot, layout_bytes, layout_of


class Stream:
    """One cond in one place of the evaluation: what it measured, and the group that its tensors are in.

    Attributes:
        changes: Warmup's changes, oldest first, (blocks,) each; at most the three that lambda takes.
        limit: gamma * lambda, (blocks,), once warmup is over.
        evaluations: How many evaluations the stream took part in; `last` is the newest of them.
        signature: Layout of what entered its first block; another one makes everything stored useless.
        need: Bytes that it takes, for the slot and for the samples.
        depth: l* of what the slot holds, -1 for nothing.
        group: The streams that it shared its newest call with, itself among them at `row`; None before its first call.
    """

    def __init__(self):
        self.changes: list[torch.Tensor] = []
        self.limit: torch.Tensor | None = None
        self.evaluations = 0
        self.last = -1
        self.signature: tuple | None = None
        self.need = (0, 0)
        self.depth = -1
        self.group: Group | None = None
        self.row = 0

    def begin(self, evaluation: int, warm: bool, threshold: float) -> None:
        """Take part in an evaluation; after warmup, fix gamma * lambda."""
        if self.limit is None and self.changes and warm:
            self.limit, self.changes = threshold * formulas.block_lambda(self.changes), []
        self.last = evaluation
        self.evaluations += 1

    def note(self, change: torch.Tensor) -> None:
        """File what an evaluation of the warmup changed, (blocks,), NaN for a block that was not measured."""
        self.changes = [*self.changes, change][-len(formulas.LAMBDA_WEIGHTS) :]


class Group:
    """What is stored of the streams of one call, stacked as it stacks them: samples of every block, and one slot.

    A stream that turns up in a call with other streams moves to a new group, see `regroup`. Streams know their group,
    and a group does not know its streams: in a circle, all of its memory would wait for Python's garbage collector.

    Args:
        count: How many streams.
        blocks: Length of the stack.
        batch_dim: Dimension of the block tensors along which the streams are stacked.
        wanted: Rows to sample of a block's output, see `metric.sample_stride`.
        offload: Where the slot waits between calls.
    """

    def __init__(self, count: int, blocks: int, batch_dim: int, wanted: int, offload: Offload):
        self.count = count
        self.layouts: list[Layout | None] = [None] * blocks
        self.samples: list[Tensors | None] = [None] * blocks  # (streams, rows, C) each
        self.slot: Slot | None = None
        self.batch_dim = batch_dim
        self._wanted, self._offload = wanted, offload
        self._indices: dict[tuple[int, int], torch.Tensor | None] = {}  # by rows of a tensor, and stride
        self._elements: torch.Tensor | None = None

    @property
    def nbytes(self) -> int:
        """Bytes held now: the slot, the samples, and the numbers of the sampled rows."""
        samples = sum(x.nbytes for sample in self.samples if sample is not None for x in sample)
        indices = sum(index.nbytes for index in tuple(self._indices.values()) if index is not None)
        return samples + indices + (self.slot.nbytes if self.slot else 0)

    def holds(self, streams: Sequence[Stream]) -> bool:
        """Whether these are its streams, in this order."""
        mine = (stream.group is self and stream.row == row for row, stream in enumerate(streams))
        return len(streams) == self.count and all(mine)

    def _sample(self, output: Tensors) -> Tensors:
        rows = [rows_of(x, self.count, self.batch_dim) for x in output]
        stride = sample_stride(sum(x.shape[1] for x in rows), self._wanted)
        return tuple(sample_of(x, self._index(x, stride)) for x in rows)

    def _index(self, rows: torch.Tensor, stride: int) -> torch.Tensor | None:
        key = rows.shape[1], stride
        if key not in self._indices:
            everyone = stride == 1
            self._indices[key] = None if everyone else torch.arange(0, key[0], stride, device=rows.device)
        return self._indices[key]

    def refresh(self, block: int, output: Tensors, by_stream: bool) -> torch.Tensor | None:
        """Take the sample of a newly computed output.

        Returns its distance from the last one, see `metric.distance`; None the first time.
        """
        self.layouts[block] = layout_of(output)
        before, self.samples[block] = self.samples[block], self._sample(output)
        return None if before is None else distance(self.samples[block], before, by_stream)

    def elements(self, device: torch.device) -> torch.Tensor:
        """How many elements one stream's sample of each block has, (blocks,) fp32 on the device; 0 for one not seen."""
        if self._elements is None or None in self.layouts:
            counts = [0 if sample is None else sum(x[0].numel() for x in sample) for sample in self.samples]
            self._elements = torch.tensor(counts, dtype=torch.float32, device=device)
        return self._elements

    def keep_where(self, flag: torch.Tensor, output: Tensors, base: Tensors | None) -> None:
        """Overwrite the slot with a block's output (less `base`) where the 0-d `flag` is true."""
        if self.slot is None:
            nbytes = max(layout_bytes(layout) for layout in self.layouts if layout is not None)
            self.slot = Slot(nbytes, output[0].device, self._offload)
        self.slot.write_where(flag, output, base)

    def clear(self) -> None:
        """What the slot holds is of no use any more."""
        if self.slot is not None:
            self.slot.clear()

    def rows(self, hidden_states: Tensors, row: int) -> Tensors:
        """The rows of one stream of a whole call's tensors, as views."""
        sizes = [x.shape[self.batch_dim] // self.count for x in hidden_states]
        return tuple(x.narrow(self.batch_dim, row * size, size) for x, size in zip(hidden_states, sizes, strict=True))

    def regroup(self, streams: Sequence[Stream], depth: int) -> None:
        """Become the group of these streams, in the order of their rows.

        What they have in their old groups is taken over: samples, and the slot where it holds block `depth`.
        """
        sources = [(stream.group, stream.row) for stream in streams]
        if all(group is not None for group, _ in sources):
            for block in range(len(self.samples)):
                parts = [group.samples[block] for group, _ in sources]
                if all(part is not None for part in parts):
                    rows = [[x[row] for x in part] for part, (_, row) in zip(parts, sources, strict=True)]
                    self.samples[block] = tuple(torch.stack(x) for x in zip(*rows, strict=True))
            self.layouts = [_stacked(layout, self, sources[0][0]) for layout in sources[0][0].layouts]
            if depth >= 0:
                stored = [group.rows(group.slot.read(group.layouts[depth]), row) for group, row in sources]
                whole = tuple(torch.cat(x, self.batch_dim) for x in zip(*stored, strict=True))
                self.keep_where(torch.ones((), dtype=torch.bool, device=whole[0].device), whole, None)
        for row, stream in enumerate(streams):
            stream.group, stream.row = self, row


def _stacked(layout: Layout | None, group: Group, source: Group) -> Layout | None:
    """The layout of a block's output in a call with another number of streams."""
    if layout is None:
        return None
    streams, dim = (source.count, group.count), group.batch_dim
    shapes = ((list(shape), dtype) for shape, dtype in layout)
    return tuple(
        (torch.Size([n // streams[0] * streams[1] if d == dim else n for d, n in enumerate(shape)]), dtype)
        for shape, dtype in shapes
    )


def stream_bytes(layout: Layout, blocks: int, wanted: int) -> tuple[int, int]:
    """Bytes that a stream takes for its slot and for the samples of all blocks; `wanted` as in `Group`."""
    stride = sample_stride(sum(math.prod(shape[:-1]) for shape, _ in layout), wanted)
    sampled = sum(math.ceil(math.prod(shape[:-1]) / stride) * shape[-1] * dtype.itemsize for shape, dtype in layout)
    return layout_bytes(layout), blocks * sampled

"""What one stream keeps: one slot for a hidden state, and the sampled rows of every block's last output."""

import math

import torch

from .metric import Tensors, change, sample_rows, sample_stride

Layout = tuple[tuple[torch.Size, torch.dtype], ...]

_ALIGN = 64  # bytes; lets any dtype be viewed at any tensor's start


def layout_of(hidden_states: Tensors) -> Layout:
    """Shapes and dtypes of a block's tensors, the key under which a slot is read back."""
    return tuple((x.shape, x.dtype) for x in hidden_states)


def layout_bytes(layout: Layout) -> int:
    """Bytes that a hidden state of this layout takes in a slot."""
    return sum(math.ceil(math.prod(shape) * dtype.itemsize / _ALIGN) * _ALIGN for shape, dtype in layout)


def stream_bytes(layout: Layout, blocks: int, rows: int) -> tuple[int, int]:
    """Bytes that a stream takes for its slot and for the samples of all blocks; `layout` and `rows` as in `Store`."""
    stride = sample_stride(sum(math.prod(shape[:-1]) for shape, _ in layout), rows)
    sampled = sum(math.ceil(math.prod(shape[:-1]) / stride) * shape[-1] * dtype.itemsize for shape, dtype in layout)
    return layout_bytes(layout), blocks * sampled


class Slot:
    """One hidden state (all tensors of one block output), written where a flag on the device says so.

    Blocks of one model may differ in layout (video and text apart, then joined); they share the bytes.

    Args:
        nbytes: Size of the largest layout.
        device: Where the block outputs live.
        home: Where the hidden state waits between calls; `device` itself, or the CPU.
    """

    def __init__(self, nbytes: int, device: torch.device, home: torch.device):
        self.device, self.home = device, home  # `home` may change between calls
        self._buffer: torch.Tensor | None = torch.empty(nbytes, dtype=torch.uint8, device=device)  # while a call writes
        self._parked: torch.Tensor | None = None  # between calls, if home is another device

    @property
    def nbytes(self) -> int:
        return sum(b.nbytes for b in (self._buffer, self._parked) if b is not None)

    @staticmethod
    def _views(buffer: torch.Tensor, layout: Layout) -> Tensors:
        views, start = [], 0
        for entry in layout:
            shape, dtype = entry
            views.append(buffer[start : start + math.prod(shape) * dtype.itemsize].view(dtype).view(shape))
            start += layout_bytes((entry,))
        return tuple(views)

    def write_where(self, flag: torch.Tensor, hidden_states: Tensors, base: Tensors | None = None) -> None:
        """Copy `hidden_states` (less `base`) in where the 0-d bool `flag` is true; no device read, no temporary."""
        if self._buffer is None:
            self._buffer = self._parked.to(self.device)
        views = self._views(self._buffer, layout_of(hidden_states))
        for i, (view, x) in enumerate(zip(views, hidden_states, strict=True)):
            torch.where(flag, x, view, out=view)
            if base is not None:
                torch.addcmul(view, base[i], flag.to(view.dtype), value=-1, out=view)

    def park(self) -> None:
        """End of a call: move what was written home and free the device buffer."""
        if self._buffer is None or self.home == self.device:
            return
        if self._parked is None:
            pinned = self.home.type == "cpu" and self.device.type == "cuda"
            self._parked = torch.empty(self._buffer.shape, dtype=torch.uint8, device=self.home, pin_memory=pinned)
        self._parked.copy_(self._buffer)
        self._buffer = None

    def read(self, layout: Layout) -> Tensors:
        """The stored hidden state as fresh tensors on the model's device."""
        if self._buffer is None:
            return tuple(view.to(self.device, copy=True) for view in self._views(self._parked, layout))
        return tuple(view.clone() for view in self._views(self._buffer, layout))


class Store:
    """Slot, layouts and samples of one stream of `blocks` blocks.

    Args:
        blocks: Number of blocks in the stack.
        rows: Rows to sample per block output, see `metric.sample_rows`.
        home: Device that the slot waits on; None for the model's own.
    """

    def __init__(self, blocks: int, rows: int, home: torch.device | None = None):
        self._rows, self._home = rows, home  # see `settle_at`
        self.layouts: list[Layout | None] = [None] * blocks
        self._samples: list[Tensors | None] = [None] * blocks
        self.slot: Slot | None = None

    @property
    def nbytes(self) -> int:
        """Bytes held now: slot and samples."""
        samples = sum(x.nbytes for sample in self._samples if sample is not None for x in sample)
        return samples + (self.slot.nbytes if self.slot else 0)

    def refresh(self, block: int, output: Tensors) -> torch.Tensor | None:
        """Take the sample of a newly computed output.

        Returns its change from the last one (0-d), None the first time.
        """
        self.layouts[block] = layout_of(output)
        now, before = sample_rows(output, self._rows), self._samples[block]
        if before is None:
            self._samples[block] = tuple(x.clone(memory_format=torch.contiguous_format) for x in now)
            return None
        delta = change(now, before)
        for kept, x in zip(before, now, strict=True):
            kept.copy_(x)
        return delta

    def keep_where(self, flag: torch.Tensor, output: Tensors, base: Tensors | None) -> None:
        """Overwrite the slot with a block's output (less `base`) where `flag` is true."""
        if self.slot is None:
            device = output[0].device
            nbytes = max(layout_bytes(layout) for layout in self.layouts if layout is not None)
            self.slot = Slot(nbytes, device, self._home or device)
        self.slot.write_where(flag, output, base)

    def settle_at(self, home: torch.device) -> None:
        """Let the slot wait on another device from now on."""
        self._home = home
        if self.slot is not None:
            self.slot.home = home

    def park(self) -> None:
        """End of a call: the slot goes to where it waits."""
        if self.slot is not None:
            self.slot.park()

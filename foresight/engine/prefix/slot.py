"""What one stream keeps: one slot for a hidden state, and the sampled rows of every block's last output."""

import math
from collections.abc import Callable
from dataclasses import dataclass

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


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether memory ran out: torch.OutOfMemoryError on a GPU; RAM that runs out has no class of its own."""
    return isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error)


@dataclass
class Parking:
    """Where the hidden states of a run wait between calls.

    Attributes:
        home: The device; None for the model's own. It may change between calls.
        copy_stream: Gives the model device's stream for copies to and from `home`, so that computing goes on
            meanwhile; None, or giving None, for the current one.
    """

    home: torch.device | None = None
    copy_stream: Callable[[torch.device], object] | None = None

    def copy(self, source: torch.Tensor, target: torch.Tensor, device: torch.device) -> None:
        """Begin to copy between `device` and `home`; `wait` before the target is used."""
        stream = self.copy_stream and self.copy_stream(device)
        pinned = source.is_pinned() or target.is_pinned()  # from pageable memory a copy may run ahead of its source
        if stream is None:
            target.copy_(source, non_blocking=pinned)
            return
        module = getattr(torch, device.type)
        stream.wait_stream(module.current_stream(device))
        with module.stream(stream):
            target.copy_(source, non_blocking=pinned)
        on_device = source if source.device == device else target
        if device.type != "cpu":
            on_device.record_stream(stream)  # its memory may be freed before the copy is over

    def wait(self, device: torch.device) -> None:
        """Let the device do what comes next after the copies that were begun; nothing waits here."""
        stream = self.copy_stream and self.copy_stream(device)
        if stream is not None:
            getattr(torch, device.type).current_stream(device).wait_stream(stream)


class Slot:
    """One hidden state (all tensors of one block output), written where a flag on the device says so.

    Blocks of one model may differ in layout (video and text apart, then joined); they share the bytes.

    Args:
        nbytes: Size of the largest layout.
        device: Where the block outputs live.
        parking: Where the hidden state waits between calls.
    """

    def __init__(self, nbytes: int, device: torch.device, parking: Parking):
        self._nbytes, self._device, self._parking = nbytes, device, parking
        self._buffer: torch.Tensor | None = None  # on the device: always, or during a call if it waits elsewhere
        self._parked: torch.Tensor | None = None  # where it waits, if that is elsewhere
        self._written = False  # since it was parked
        self._arriving = False  # a copy to the device was begun

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
        self._fetch()
        self._written = True
        views = self._views(self._buffer, layout_of(hidden_states))
        for i, (view, x) in enumerate(zip(views, hidden_states, strict=True)):
            torch.where(flag, x, view, out=view)
            if base is not None:
                torch.addcmul(view, base[i], flag.to(view.dtype), value=-1, out=view)

    def prefetch(self) -> None:
        """Begin to bring the hidden state back to the model's device, ahead of its use."""
        if self._buffer is None:
            self._buffer = torch.empty(self._nbytes, dtype=torch.uint8, device=self._device)
            if self._parked is not None:
                self._parking.copy(self._parked, self._buffer, self._device)
                self._arriving = True

    def _fetch(self) -> None:
        """See to it that the hidden state is on the model's device."""
        self.prefetch()
        if self._arriving:
            self._parking.wait(self._device)
            self._arriving = False

    def clear(self) -> None:
        """Nobody will read what it holds now: there is no need to bring it back."""
        self._parked = None

    def park(self) -> None:
        """End of a call: begin to move the hidden state to where it waits, and give the device's memory back."""
        home = self._parking.home or self._device
        if self._buffer is None or home == self._device:
            return
        if self._written:
            if self._parked is None:
                self._parked = _empty(self._nbytes, home, pinned=self._device.type == "cuda")
            self._parking.copy(self._buffer, self._parked, self._device)
        self._buffer, self._written = None, False

    def read(self, layout: Layout) -> Tensors:
        """The stored hidden state as fresh tensors on the model's device."""
        self._fetch()
        return tuple(view.clone() for view in self._views(self._buffer, layout))


def _empty(nbytes: int, device: torch.device, pinned: bool) -> torch.Tensor:
    """Bytes on a device, in pinned memory where it can be had."""
    if pinned and device.type == "cpu":
        try:
            return torch.empty(nbytes, dtype=torch.uint8, pin_memory=True)
        except RuntimeError:  # systems limit it; pageable memory does, only slower
            pass
    return torch.empty(nbytes, dtype=torch.uint8, device=device)


class Store:
    """Slot, layouts and samples of one stream of `blocks` blocks.

    Args:
        blocks: Number of blocks in the stack.
        rows: Rows to sample per block output, see `metric.sample_rows`.
        parking: Where the slot waits; with the model by default.
    """

    def __init__(self, blocks: int, rows: int, parking: Parking | None = None):
        self._rows, self._parking = rows, parking or Parking()
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
            self.slot = Slot(nbytes, device, self._parking)
        self.slot.write_where(flag, output, base)

    def clear(self) -> None:
        """What the slot holds is of no use any more."""
        if self.slot is not None:
            self.slot.clear()

    def park(self) -> None:
        """End of a call: the slot goes to where it waits."""
        if self.slot is not None:
            self.slot.park()

"""One stored hidden state, and where it lies between the calls of the model."""

import math

import torch

from ..budget import Offload
from ..tensors import Tensors

Layout = tuple[tuple[torch.Size, torch.dtype], ...]

_ALIGN = 64  # bytes; lets any dtype be viewed at any tensor's start


def layout_of(hidden_states: Tensors) -> Layout:
    """Shapes and dtypes of a block's tensors, the key under which a slot is read back."""
    return tuple((x.shape, x.dtype) for x in hidden_states)


def layout_bytes(layout: Layout) -> int:
    """Bytes that a hidden state of this layout takes in a slot."""
    return sum(math.ceil(math.prod(shape) * dtype.itemsize / _ALIGN) * _ALIGN for shape, dtype in layout)


class Slot:
    """One stored hidden state. A write happens only where a flag on the device is true, so nothing is read.

    Between calls of the model it may wait elsewhere, see `Offload`. Blocks of one model may differ in layout (video and
    text apart, then joined); they share the bytes.

    Args:
        nbytes: Size of the largest layout.
        device: Where the block outputs live.
        offload: Where the hidden state waits between calls.
    """

    def __init__(self, nbytes: int, device: torch.device, offload: Offload):
        self._nbytes, self._device, self._offload = nbytes, device, offload
        self._buffer: torch.Tensor | None = None  # on the device: always, or during a call if it waits elsewhere
        self._waiting: torch.Tensor | None = None  # where it waits, if that is elsewhere
        self._views: dict[Layout, Tensors] = {}  # of the buffer
        self._written = False  # since it was put there
        self._arriving = False  # a copy to the device was begun

    @property
    def nbytes(self) -> int:
        """Bytes held now, on the device and elsewhere."""
        return sum(b.nbytes for b in (self._buffer, self._waiting) if b is not None)

    def _at(self, layout: Layout) -> Tensors:
        """The buffer as tensors of this layout."""
        if layout not in self._views:
            views, start = [], 0
            for entry in layout:
                shape, dtype = entry
                part = self._buffer[start : start + math.prod(shape) * dtype.itemsize]
                views.append(part.view(dtype).view(shape))
                start += layout_bytes((entry,))
            self._views[layout] = tuple(views)
        return self._views[layout]

    def write_where(self, flag: torch.Tensor, hidden_states: Tensors, base: Tensors | None = None) -> None:
        """Copy `hidden_states` (less `base`) in where the 0-d bool `flag` is true; no device read, no temporary."""
        self._fetch()
        self._written = True
        views = self._at(layout_of(hidden_states))
        for i, (view, x) in enumerate(zip(views, hidden_states, strict=True)):
            torch.where(flag, x, view, out=view)
            if base is not None:
                torch.addcmul(view, base[i], flag.to(view.dtype), value=-1, out=view)

    def prefetch(self) -> None:
        """Begin to bring the hidden state back to the model's device, ahead of its use."""
        if self._buffer is None:
            self._buffer = torch.empty(self._nbytes, dtype=torch.uint8, device=self._device)
            if self._waiting is not None:
                self._offload.copy(self._waiting, self._buffer, self._device)
                self._arriving = True

    def _fetch(self) -> None:
        """See to it that the hidden state is on the model's device."""
        self.prefetch()
        if self._arriving:
            self._offload.wait(self._device)
            self._arriving = False

    def clear(self) -> None:
        """Nobody will read what it holds now: there is no need to bring it back."""
        self._waiting = None

    def to_offload(self) -> None:
        """End of a call: begin to move the hidden state to where it waits, and give the device's memory back."""
        waits_on = self._offload.device or self._device
        if self._buffer is None or waits_on == self._device:
            return
        if self._written:
            if self._waiting is None:
                self._waiting = _empty(self._nbytes, waits_on, pinned=self._device.type == "cuda")
            self._offload.copy(self._buffer, self._waiting, self._device)
        self._buffer, self._written = None, False
        self._views.clear()

    def read(self, layout: Layout, into: Tensors | None = None) -> Tensors:
        """The stored hidden state as fresh tensors on the model's device, or written into these."""
        self._fetch()
        if into is None:
            return tuple(view.clone() for view in self._at(layout))
        return tuple(x.copy_(view) for x, view in zip(into, self._at(layout), strict=True))


def _empty(nbytes: int, device: torch.device, pinned: bool) -> torch.Tensor:
    """Bytes on a device, in pinned memory where it can be had."""
    if pinned and device.type == "cpu":
        try:
            return torch.empty(nbytes, dtype=torch.uint8, pin_memory=True)
        except RuntimeError:  # systems limit it; pageable memory does, only slower
            pass
    return torch.empty(nbytes, dtype=torch.uint8, device=device)

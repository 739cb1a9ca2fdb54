"""Where stored tensors may wait: on the model's device, in RAM, or nowhere, with the sentence that says why."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from .tensors import format_bytes


@dataclass
class Offload:
    """Where the stored tensors of a run wait between their uses.

    Attributes:
        device: None for the model's own. It may change between calls.
        fallback: Where they wait instead when the model's device is short of memory; None for nowhere.
        copy_stream: Gives the model device's stream for copies to and from `device`, so that computing goes on
            meanwhile; None, or giving None, for the current one.
    """

    device: torch.device | None = None
    fallback: torch.device | None = None
    copy_stream: Callable[[torch.device], object] | None = None

    @classmethod
    def of(cls, cache_device: str, copy_stream: Callable[[torch.device], object] | None = None) -> "Offload":
        """As the user's setting says: "gpu", "cpu" (RAM) or "auto", RAM where the model's device is short."""
        ram = torch.device("cpu")
        device, fallback = ram if cache_device == "cpu" else None, ram if cache_device == "auto" else None
        return cls(device, fallback, copy_stream)

    def copy(self, source: torch.Tensor, target: torch.Tensor, device: torch.device) -> None:
        """Begin to copy between the model's `device` and ours; call `wait` before the target is used."""
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
        """Make the device finish the copies begun so far before later work; the processor does not wait."""
        stream = self.copy_stream and self.copy_stream(device)
        if stream is not None:
            getattr(torch, device.type).current_stream(device).wait_stream(stream)


@dataclass(frozen=True)
class Need:
    """Bytes that a method stores.

    Attributes:
        what: What they are, as the subject of a sentence ("the stored outputs").
        on_device: All of it, when everything stays on the model's device.
        beside: What stays on the model's device even when the rest waits in RAM.
        in_ram: The rest.
    """

    what: str
    on_device: int
    beside: int
    in_ram: int


@dataclass(frozen=True)
class Budget:
    """Most bytes for stored tensors on the model's device and in RAM; None for no limit."""

    device: int | None = None
    ram: int | None = None

    def place(self, need: Need, offload: Offload) -> str | None:
        """Choose where stored tensors wait. Returns None, or the reason why they fit nowhere."""
        if offload.device is None and _fits(need.on_device, self.device):
            return None
        elsewhere = offload.device or offload.fallback
        if elsewhere is None:
            sizes = f"{format_bytes(need.on_device)}, the budget is {_limit(self.device)}"
        elif _fits(need.beside, self.device) and _fits(need.in_ram, self.ram):
            offload.device = elsewhere
            return None
        else:
            sizes = f"{format_bytes(need.beside)} beside " if need.beside else ""
            sizes += f"{format_bytes(need.in_ram)} in RAM, the budgets are {_limit(self.device)} and {_limit(self.ram)}"
        return f"{need.what} need {sizes}"

    def room(self, size: int, need: Need, offload: Offload) -> tuple[bool, torch.device | None]:
        """Whether and where that much more may wait beside what is needed; None is the model's device."""
        if offload.device is None and _fits(need.on_device + size, self.device):
            return True, None
        elsewhere, beside = offload.device or offload.fallback, need.in_ram if offload.device else 0
        return elsewhere is not None and _fits(beside + size, self.ram), elsewhere


def _fits(size: int, limit: int | None) -> bool:
    return limit is None or size == 0 or size <= limit  # what is free may be less than nothing


def _limit(limit: int | None) -> str:
    return "no limit" if limit is None else format_bytes(max(0, limit))

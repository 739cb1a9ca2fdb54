"""What the machine is called that figures were measured on."""

import platform
from pathlib import Path

import torch


def card(device: torch.device) -> str:
    """The device's name as torch gives it; of a CPU the processor's, and where torch has none that and the kind."""
    name_of = getattr(getattr(torch, device.type, None), "get_device_name", None)
    if name_of is not None:
        return name_of(device)
    return processor() if device.type == "cpu" else f"{processor()}, {device.type}"


def processor() -> str:
    """The processor's name as the system gives it, or what kind it is."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()

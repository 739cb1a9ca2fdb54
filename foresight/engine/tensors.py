"""The type of an output, how running out of memory is recognised, and random numbers that go on as if nothing was."""

import functools
from collections.abc import Callable

import torch

Tensors = tuple[torch.Tensor, ...]


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether memory ran out: torch.OutOfMemoryError on a GPU; RAM that runs out has no class of its own."""
    return isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error)


def read_level(level: torch.Tensor | float | None) -> float | None:
    """A noise level that is read on its own; of several, as tokens may have, the highest."""
    return float(level.detach().float().max()) if isinstance(level, torch.Tensor) else level


def random_numbers(device: torch.device) -> Callable[[], None]:
    """What puts random numbers back to where they are now: the CPU's and those of such devices (CUDA, XPU ...)."""
    module = getattr(torch, device.type, None) if device.type != "cpu" else None
    states = [(torch.set_rng_state, torch.get_rng_state())]
    if hasattr(module, "get_rng_state"):
        states.append((functools.partial(module.set_rng_state, device=device), module.get_rng_state(device)))

    def put_back() -> None:
        for put, state in states:
            put(state)

    return put_back


def format_bytes(count: int) -> str:
    """Bytes as a readable quantity."""
    return f"{count / 2**30:.2f} GiB" if count >= 2**29 else f"{count / 2**20:.1f} MiB"

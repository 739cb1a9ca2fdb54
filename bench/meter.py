"""What a sampler run costs, measured the same way for every cache: seconds, multiply-adds of the blocks, bytes held."""

import contextlib
import functools
import gc
import time
from contextlib import contextmanager
from unittest import mock

import torch

HELD_AT = (0.4, 0.7)  # shares of the run at which the bytes held are looked at


class Meter:
    """Measures one sampler run.

    Attributes:
        seconds: Wall time of the k-diffusion sampler function, without what the measurement itself took.
        cpu_seconds: Processor time of the process in it: the same on a machine that has nothing else to do.
        multiply_adds: Of the `nn.Linear` modules inside the blocks: rows x inputs x outputs of each executed one.
        held_bytes: Most bytes in tensors that Python objects held between two steps; None unless asked for.
    """

    def __init__(self, weigh: bool = False):
        self.seconds, self.cpu_seconds, self.multiply_adds = 0.0, 0.0, 0
        self.held_bytes: int | None = None
        self._weigh = weigh

    @contextmanager
    def counting(self, *blocks: torch.nn.ModuleList):
        """Count the work of these blocks; their forwards stay as they are."""
        handles = [
            module.register_forward_pre_hook(self._count)
            for one in blocks
            for module in one.modules()
            if isinstance(module, torch.nn.Linear)
        ]
        try:
            yield self
        finally:
            for handle in handles:
                handle.remove()

    def _count(self, module: torch.nn.Linear, args: tuple) -> None:
        self.multiply_adds += args[0].numel() * module.out_features  # rows x inputs is the number of elements

    def sampler(self, name: str):
        """ComfyUI's sampler function of a name, timed; ComfyUI has to be importable. Stages of a run add up."""
        import comfy.samplers

        return self._timed(comfy.samplers.sampler_object(name).sampler_function)

    @contextmanager
    def timing(self):
        """Time the samplers that ComfyUI makes by name in this context."""
        import comfy.samplers

        plain = comfy.samplers.sampler_object

        def timed(name: str):
            kind = plain(name)
            kind.sampler_function = self._timed(kind.sampler_function)
            return kind

        with mock.patch.object(comfy.samplers, "sampler_object", timed):
            yield self

    def _timed(self, function):
        @functools.wraps(function)  # who looks at the sampler sees the one it is
        def timed(model, x, sigmas, extra_args=None, callback=None, disable=None, **options):
            steps, spent = len(sigmas) - 1, [0.0, 0.0]
            moments = {int(steps * share) for share in HELD_AT} if self._weigh else set()

            def watch(state: dict) -> None:
                if state["i"] in moments:
                    began = _clocks()
                    self.held_bytes = max(self.held_bytes or 0, live_bytes())
                    spent[:] = (s + now - then for s, now, then in zip(spent, _clocks(), began, strict=True))

            began = _clocks()
            try:
                return function(model, x, sigmas, extra_args, callback=watch, disable=True, **options)
            finally:  # a sampler that is started again leaves by an error, and has taken its time
                wall, cpu = (b - a - s for a, b, s in zip(began, _clocks(), spent, strict=True))
                self.seconds, self.cpu_seconds = self.seconds + wall, self.cpu_seconds + cpu

        return timed


def _clocks() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def live_bytes() -> int:
    """Bytes of all distinct storages of the tensors that exist as Python objects."""
    storages = {}
    for thing in gc.get_objects():
        if issubclass(type(thing), torch.Tensor) and thing.layout == torch.strided:
            with contextlib.suppress(RuntimeError):  # a compiler's stand-ins for tensors have no memory
                storage = thing.untyped_storage()
                storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def blocks_of(net: torch.nn.Module) -> torch.nn.ModuleList:
    """The transformer blocks of a network: its one direct child that is a list."""
    return next(module for module in net.children() if isinstance(module, torch.nn.ModuleList))

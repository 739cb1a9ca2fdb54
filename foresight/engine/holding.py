"""The side of a run that knows memory: what is held, within which limits, and the most that it was."""

from collections.abc import Callable

import torch

from .agreement import MEMORY
from .budget import Budget, Offload
from .compiler import outside_graphs
from .policy import Policy
from .stats import RunStats


class Holding:
    """What `Run` answers about memory. It has no state of its own."""

    stats: RunStats
    deactivate: Callable[..., None]
    _policy: Policy
    _budget: Budget
    _offload: Offload

    def planned_bytes(self, latent: tuple[int, ...], hidden: tuple, blocks: int, streams: int) -> int:
        """About what will be held on the model's device, see `Policy.planned_bytes`; 0 for an inactive run."""
        return 0 if self.stats.inactive else self._policy.planned_bytes(latent, hidden, blocks, streams)

    def set_budget(self, device: int | None, ram: int | None) -> None:
        """Most bytes for stored tensors on the model's device and in RAM, None for no limit; checked at once."""
        self._budget = Budget(device, ram)
        if not self.stats.inactive:
            self._fit()

    @outside_graphs()
    def _fit(self) -> bool:
        """Choose where stored tensors wait: RAM, if the host lets them, before the run becomes inactive."""
        reason = self._budget.place(self._policy.need(), self._offload)
        self.stats.in_ram |= reason is None and self._offload.device is not None
        if reason is not None:
            self.deactivate(reason, kind=MEMORY)
        return reason is None

    def _room(self, size: int) -> tuple[bool, torch.device | None]:
        fits, where = self._budget.room(size, self._policy.need(), self._offload)
        self.stats.in_ram |= fits and where is not None
        return fits, where

    @property
    def held_bytes(self) -> int:
        """Bytes that are held now."""
        return self._policy.held_bytes

    @outside_graphs()
    def note_bytes(self, extra: int = 0) -> None:
        """Record how much is held at this moment; `extra` is held by a call."""
        self.stats.peak_bytes = max(self.stats.peak_bytes, self.held_bytes + extra)

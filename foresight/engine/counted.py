"""Computing an output, and counting what that took."""

from collections.abc import Callable

from .compiler import outside_graphs
from .stats import RunStats
from .tensors import Tensors


class Counted:
    """Computes an output, and says what the record has counted for it.

    Args:
        by_block: The calls of the model count their blocks; else the output counts as one call of one block.

    Attributes:
        calls: Block calls by block, None while nothing was computed.
        failed: The computing has raised an error, which is the host's own.
    """

    def __init__(self, compute: Callable[[], Tensors], stats: RunStats, by_block: bool):
        self._compute, self._stats, self._by_block = compute, stats, by_block
        self._evaluation = stats.evaluations[-1]
        self.calls: list[int] | None = None
        self.failed = False

    @outside_graphs(recursive=False)
    def __call__(self) -> Tensors:
        before, self.failed, self._stats.cut = list(self._evaluation.computed), True, True
        self.result = self._compute()
        if not self._by_block:
            self._evaluation.count_all(1, 1)
        before += [0] * (len(self._evaluation.computed) - len(before))
        self.calls = [n - m for n, m in zip(self._evaluation.computed, before, strict=True)]
        self.failed = self._stats.cut = False
        return self.result

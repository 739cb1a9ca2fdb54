"""Computing an output, and what that took."""

from collections.abc import Callable

from .compiler import outside_graphs
from .stats import Evaluation
from .tensors import Tensors


class Counted:
    """Computes an output, and counts the block calls that this takes.

    Attributes:
        calls: Block calls by block, None while nothing was computed.
        failed: The computing has raised an error, which is the host's own.
    """

    def __init__(self, compute: Callable[[], Tensors], evaluation: Evaluation):
        self._compute, self._evaluation = compute, evaluation
        self.calls: list[int] | None = None
        self.failed = False

    @outside_graphs(recursive=False)
    def __call__(self) -> Tensors:
        before, self.failed = list(self._evaluation.computed), True
        self.result = self._compute()
        before += [0] * (len(self._evaluation.computed) - len(before))
        self.calls = [n - m for n, m in zip(self._evaluation.computed, before, strict=True)]
        self.failed = False
        return self.result

"""The real engine on a schedule of ours, and the clock of its evaluations.

With random weights nothing that the policy measures means anything, so the benchmark says how deep the reused prefix
is. Everything else is what users run: wrappers, swapped blocks, samples, slots, the read-back. `Forced` is the one
place that reaches into the engine.
"""

import time
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from foresight.engine.forecast import Forecaster
from foresight.engine.prefix import formulas as policy

LADDER = (0.25, 0.5, 0.75, 1.0)  # shares of the blocks, in rising order: inside a chain l* only grows
LADDER_INTERVAL = len(LADDER) + 1


class Forced:
    """Context manager: blocks up to `depths[e]` are reused in evaluation `e` (-1 for none), whatever they measured.

    The engine compares delta <= gamma * lambda per block, as a tensor. Here lambda is the block's own number, and the
    comparison is that number <= depth of the next evaluation: the same work on the device, another outcome. Needs
    threshold=1.

    Args:
        depths: l* of every evaluation of the run; in a full evaluation it has to be -1.
        evaluation: Gives the number of the present evaluation.
    """

    def __init__(self, depths: Sequence[int], evaluation: Callable[[], int]):
        self._depths, self._evaluation = [*depths, -1], evaluation

    def __enter__(self) -> "Forced":
        self._found = policy.block_lambda, policy.qualifies
        policy.block_lambda, policy.qualifies = self._block_lambda, self._qualifies
        return self

    def __exit__(self, *_) -> None:
        policy.block_lambda, policy.qualifies = self._found

    def _block_lambda(self, changes: Sequence[torch.Tensor]) -> torch.Tensor:
        self._found[0](changes)  # for its cost
        return torch.arange(len(changes[0]), dtype=changes[0].dtype, device=changes[0].device)

    def _qualifies(self, delta: torch.Tensor, limit: torch.Tensor) -> torch.Tensor:
        return limit <= self._depths[self._evaluation() + 1]


class ForcedForecast:
    """Context manager: with the method "forecast", exactly the evaluations marked in `computed` are computed.

    Forecasts, corrections, measured errors and the read-back are as users have them; only the decision is replaced.

    Args:
        computed: For every evaluation of the run; the first three have to be.
    """

    def __init__(self, computed: Sequence[bool]):
        self._computed = computed

    def __enter__(self) -> "ForcedForecast":
        self._found = {name: getattr(Forecaster, name) for name in ("begin", "settle", "leave_out")}
        begin, settle, computed = self._found["begin"], self._found["settle"], self._computed

        def forced(forecaster, step):
            begin(forecaster, step)
            return 2.0 if computed[min(round(step.position), len(computed) - 1)] else 0.0

        def never_forget(forecaster, errors):
            settle(forecaster, [0.0] * len(errors))  # whatever was measured: random weights jump all the time

        Forecaster.begin, Forecaster.settle = forced, never_forget
        Forecaster.leave_out = lambda forecaster: None
        return self

    def __exit__(self, *_) -> None:
        for name, value in self._found.items():
            setattr(Forecaster, name, value)


def every(steps: int, interval: int) -> list[bool]:
    """The first three and the last evaluation of a run, and between them every `interval`-th, are computed."""
    return [e < 3 or e == steps - 1 or (e - 2) % interval == 0 for e in range(steps)]


def all_blocks(steps: int, warmup: int, interval: int, blocks: int) -> list[int]:
    """The paper's N(R-1)R(R) with every block: after warmup one evaluation in full, R - 1 that reuse all of it."""
    return [-1 if e < warmup or (e - warmup) % interval == 0 else blocks - 1 for e in range(steps)]


def ladder(warmup: int, repeats: int, blocks: int) -> list[int]:
    """`repeats` times a full evaluation and then one for each share of `LADDER`, and a last one that no one times."""
    rungs = [-1, *(max(1, round(share * blocks)) - 1 for share in LADDER)]
    return [-1] * warmup + rungs * repeats + [-1]


def scaled(shares: Sequence[float], blocks: int) -> list[int]:
    """Reused shares of another model's blocks, by evaluation, as depths in a model of `blocks` blocks."""
    return [round(share * blocks) - 1 for share in shares]


def depth_of(evaluation: dict) -> int:
    """The deepest block that was reused in an evaluation of `RunStats.to_dict()`, -1 for none."""
    return max((block for block, count in enumerate(evaluation["reused"]) if count), default=-1)


class Clock:
    """A PREDICT_NOISE wrapper outside of all others that marks where each evaluation begins, and counts syncs.

    CUDA events on a GPU, the processor's clock elsewhere. An evaluation lasts until the next begins: what a cache does
    between two of them is in its time.

    Args:
        device: Where the model runs.
        syncs: Count what makes the processor wait for the GPU, as torch's sync debug mode reports it.
    """

    def __init__(self, device: torch.device, syncs: bool = False):
        self._cuda, self._marks = device.type == "cuda", []
        self._counts: list[int] = []
        self._syncs = syncs and self._cuda
        self._caught: list[warnings.WarningMessage] = []

    @property
    def evaluation(self) -> int:
        """Number of the present evaluation, from 0."""
        return len(self._marks) - 1

    def __call__(self, executor, *args, **kwargs):
        self._mark()
        return executor(*args, **kwargs)

    def _mark(self) -> None:
        if self._cuda:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._marks.append(event)
        else:
            self._marks.append(time.perf_counter())
        self._counts.append(len(self._caught))

    def __enter__(self) -> "Clock":
        if self._syncs:
            self._catching = warnings.catch_warnings(record=True)
            self._caught = self._catching.__enter__()
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
        return self

    def __exit__(self, *_) -> None:
        if self._syncs:
            torch.cuda.set_sync_debug_mode("default")
            self._catching.__exit__(None, None, None)
        if self._cuda:
            torch.cuda.synchronize()

    def seconds(self) -> list[float]:
        """Of every evaluation but the last, which has no successor. After the run only."""
        pairs = zip(self._marks, self._marks[1:], strict=False)
        if self._cuda:
            return [start.elapsed_time(end) / 1000 for start, end in pairs]
        return [end - start for start, end in pairs]

    def syncs(self) -> list[int] | None:
        """Of every evaluation but the last; None where they were not counted."""
        if not self._syncs:
            return None
        pairs = zip(self._counts, self._counts[1:], strict=False)
        return [sum("synchroniz" in str(w.message) for w in self._caught[a:b]) for a, b in pairs]

    def sync_places(self) -> Counter:
        """File and line of every sync that was counted, and how often."""
        return Counter(
            f"{Path(w.filename).parent.name}/{Path(w.filename).name}:{w.lineno}"
            for w in self._caught[self._counts[0] : self._counts[-1]]
            if "synchroniz" in str(w.message)
        )

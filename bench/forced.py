"""The real engine on a schedule of ours, and the clock of its evaluations.

With random weights nothing that the policy measures means anything, so the benchmark says how deep the reused prefix
is. Everything else is what users run: wrappers, swapped blocks, samples, slots, the read-back.
"""

import time
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from foresight import Config, ForecastConfig, PaperConfig
from foresight.engine.forecast import Forecast
from foresight.engine.policy import Policy, policy_for
from foresight.engine.prefix.policy import ReusedPrefix
from foresight.engine.schedule import Place

LADDER = (0.25, 0.5, 0.75, 1.0)  # shares of the blocks, in rising order: inside a chain l* only grows
LADDER_INTERVAL = len(LADDER) + 1


def settings_of(policy: type[Policy], base: type[Config]) -> type[Config]:
    """A type of settings of its own for a policy that differs in something from the one of `base`."""
    own = dataclass(frozen=True)(type(f"{policy.__name__}Config", (base,), {"__doc__": policy.__doc__}))
    policy_for(own)(policy)
    return own


def forced_prefix(depths: Sequence[int], **settings) -> Config:
    """Settings with which blocks up to `depths[e]` are reused in evaluation `e` (-1 for none), whatever they measured.

    The engine compares a block's distance with its limit on the device. Here the limit is infinite or not a number: the
    same work, another outcome.

    Args:
        depths: l* of every evaluation of the run; in a full evaluation it has to be -1.
    """

    class ForcedPrefix(ReusedPrefix):
        """Reuses what it is told to."""

        def __init__(self, *args):
            super().__init__(*args)
            self.has_measured = True

        def plan(self, keys, blocks, batch_dim, signature, layout):
            plan = super().plan(keys, blocks, batch_dim, signature, layout)
            if plan is None or plan.limit is None:
                return plan
            depth = [*depths, -1][self._evaluation + 1]
            qualifies = torch.arange(blocks, device=plan.limit.device) <= depth
            return replace(plan, limit=torch.where(qualifies, torch.inf, torch.nan).to(plan.limit))

    return settings_of(ForcedPrefix, PaperConfig)(threshold=1.0, **settings)


def forced_forecast(computed: Sequence[bool] | None = None, threshold: float = 1.0) -> Config:
    """Settings with which exactly the evaluations marked in `computed` are computed, the others forecast.

    Forecasts, corrections, measured errors and the read-back are as users have them; only the decision is replaced.

    Args:
        computed: For every evaluation of the run; the first has to be. By default, what the plan before a run at
            `threshold` computes.
    """

    class ForcedForecast(Forecast):
        """Computes what it is told to."""

        def most_reuse(self, steps: int, warmup: int) -> int:
            return 1  # whatever the plan would be, the run is active

        def must_compute(self, place: Place) -> bool:
            step = round(place.position)
            planned = step in self._plan if computed is None else computed[min(step, len(computed) - 1)]
            return planned or not self._now.histories

        def settle(self, values, evaluation) -> None:
            errors = errors_of(self)  # random weights jump all the time
            super().settle([0.0] * errors + values[errors:], evaluation)

    return settings_of(ForcedForecast, ForecastConfig)(threshold=threshold)


def errors_of(policy: Forecast) -> int:
    """How many errors are among the numbers that a policy is about to settle; they come first."""
    histories = [history for trajectory in policy._trajectories.values() for history in trajectory.histories.values()]
    return sum(len(history.error) for history in histories if history.error is not None)


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

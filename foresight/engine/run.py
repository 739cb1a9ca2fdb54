"""A run: its streams, its evaluations and when they may reuse. One object per sampler run, dropped at its end."""

import math
import time
from collections import Counter
from collections.abc import Callable, Hashable, Sequence

import torch

from . import forecast
from .config import AUTO_WARMUP, AUTO_WARMUP_MIN, ForesightConfig
from .prefix import formulas as policy
from .prefix.call import Call, Stream
from .prefix.metric import Tensors
from .prefix.slot import Parking, is_out_of_memory
from .schedule import Schedule
from .stats import Evaluation, RunStats, format_bytes


class Session:
    """One sampler run.

    The host calls `begin_evaluation` once per evaluation and `close` at the end. With the method "paper" it calls
    `begin_call` once per call of the model, `Call.block` in place of each block and `Call.finish` after it; with
    "forecast" `output` in place of what gives the sampler its output, and `count_call` once per call of the model.

    Args:
        config: The user's settings.
        schedule: Noise levels of the run, first to last (steps + 1 values, falling), if the host knows them.
        steps: Number of denoising steps, if only that is known.
        region: (highest, lowest) noise level of start_percent..end_percent; None takes the share of the steps, or of
            the noise level.
        home: Device on which hidden states wait between evaluations; None for the model's own.
        spill: Where they wait instead when they are over the budget, see `set_budget`; None for nowhere.
        copy_stream: See `store.Parking`.
        noise: Share of noise (0..1) in the sampler's latent at a noise level; the level over the first one by default.
    """

    def __init__(
        self,
        config: ForesightConfig,
        *,
        schedule: Sequence[float] | None = None,
        steps: int | None = None,
        region: tuple[float, float] | None = None,
        home: torch.device | None = None,
        spill: torch.device | None = None,
        copy_stream: Callable[[torch.device], object] | None = None,
        noise: Callable[[float], float] | None = None,
    ):
        self.config = config
        self._schedule = Schedule(schedule, steps, noise)
        self._steps = self._schedule.steps
        self._forecaster = None
        if config.method == "forecast":
            self._forecaster = forecast.Forecaster(config.threshold, self._steps, home)
        self._region, self._parking, self._spill = region, Parking(home, copy_stream), spill
        self._budget: tuple[int | None, int | None] = (None, None)
        self._together = 1  # most streams in one call
        known = self._steps is not None or config.method == "forecast"  # which needs as many whatever the length
        self._warmup = config.warmup_of(self._steps or 0) if known else config.warmup_steps
        self._warm_evaluations: int | None = None  # how many evaluations warmup took, once it is over
        self._first_level: float | None = None
        self._visits: Counter[int] = Counter()  # evaluations of each step during warmup
        self._streams: dict[Hashable, Stream] = {}
        self._calls: list[Call] = []  # of the present evaluation
        self._began: float | None = None
        self._closed = False
        self.evaluation = -1
        self.kind = "plain"
        self.stats = RunStats(config, self._steps, self._warmup or None, inactive=config.off_reason or self._hopeless())

    def _hopeless(self) -> str | None:
        if self.config.warmup_steps == 1 and self._forecaster is None:
            return "warmup_steps is 1, which leaves no change to measure; use 0 (automatic) or at least 2"
        if self.most_reuse == 0:
            rest = f"with reuse_interval {self.config.reuse_interval} the rest is computed in full"
            if self._forecaster is not None:
                rest = "the rest is the end, which is always computed"
            return f"at most 0 of {self._steps} steps can be reused: {self._warmup} are warmup, and {rest}"
        return None

    @property
    def most_reuse(self) -> int | None:
        """How many steps can be reused at the most, by schedule; None if the host does not say how many there are."""
        if self._steps is None:
            return None
        if self._forecaster is not None:
            return max(0, self._steps - self._warmup - forecast.last_steps(self._steps))
        return policy.most_reuse_evaluations(self._steps, self._warmup, self.config.reuse_interval)

    # ---- what the host calls

    def begin_evaluation(self, level: torch.Tensor | float | None = None) -> None:
        """Begin the next evaluation at noise level `level`, after reading back what the last one measured."""
        level = self.read_back(level)
        self.evaluation += 1
        # one that missed an evaluation has nothing to compare with; windows that move would pile up
        self._streams = {key: stream for key, stream in self._streams.items() if stream.last >= self.evaluation - 1}
        self._began = time.perf_counter()
        self._ratio = None if self._forecaster is None else self._forecaster.begin(self._schedule.place(level))
        self.kind = self._kind(level)
        self.stats.evaluations.append(Evaluation(self.kind, level))
        if self._forecaster is not None and self.kind == "reuse":
            self._forecaster.leave_out()

    def begin_call(self, keys: Sequence[Hashable], blocks: int, batch_dim: int = 0) -> Call:
        """Begin one call of the model.

        Args:
            keys: Its streams, in the order of their rows along `batch_dim`; all have the same number of rows.
            blocks: Length of the stack.
            batch_dim: Dimension of the block tensors along which the streams are stacked.
        """
        call = Call(self, keys, blocks, batch_dim)
        if self.kind == "reuse":
            call.prefetch([self._streams[key] for key in keys if key in self._streams])
        self._together = max(self._together, len(keys))
        self._calls.append(call)
        return call

    def output(
        self,
        key: Hashable,
        signature: Hashable,
        compute: Callable[[], Tensors],
        device: torch.device,
        unit: Callable[[Tensors], Tensors] = lambda output: output,
    ) -> Tensors:
        """What the sampler gets in this evaluation: forecast, or computed and corrected (method "forecast").

        Args:
            key: Which output, where an evaluation has several (a cond each).
            signature: What must stay the same for a forecast to make sense: shapes, active conds.
            compute: Gives the output, tensors with the batch first.
            device: Where the output belongs.
            unit: From an output to tensors whose rms its errors are measured in.
        """
        evaluation = self.stats.evaluations[-1]
        known = self._forecaster.known(key, signature) if self.kind == "reuse" else None
        if known is not None:
            evaluation.repeat(known.calls)
            return known.forecast(self._forecaster.step, device)
        before = list(evaluation.computed)
        result = compute()
        if self.kind == "plain":
            return result
        calls = [n - m for n, m in zip(evaluation.computed, before + [0] * len(evaluation.computed), strict=False)]
        if self.kind != "warmup":
            evaluation.note_ratio(self._ratio)
        try:
            with torch.no_grad():
                corrected = self._forecaster.observe(key, signature, result, unit(result), calls)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            self.deactivate("out of memory while storing an output")
            return result
        self.note_bytes(0)
        self.fit()
        return corrected

    def count_call(self, blocks: int, streams: int) -> None:
        """A call of the model computes all its blocks, for so many streams (method "forecast")."""
        for block in range(blocks):
            self.stats.evaluations[-1].count(block, False, streams, None)

    def close(self, timed: bool = True) -> RunStats:
        """End the run: read back the last evaluation, drop everything stored, return what happened.

        Args:
            timed: Whether this moment is the end of the last evaluation; else its time is left unknown.
        """
        if not self._closed:
            if not timed:
                self._began = None
            self.read_back(None)
            self._closed = True
            measured = any(ratio is not None for e in self.stats.evaluations for ratio in e.ratio)
            measured |= self._forecaster is not None
            if not self.stats.inactive and self._warm_evaluations is not None and not measured:
                self.stats.inactive = "no part of the video was computed twice in a row (moving context windows?)"
            self.kind = "plain"
            self._drop()
        return self.stats

    def read_back(self, level: torch.Tensor | float | None) -> float | None:
        """The one device read of an evaluation.

        What the last one measured, and the level of the next, which is returned.
        """
        reports = [call.report() for call in self._calls]
        errors = [] if self._forecaster is None else self._forecaster.reports()
        on_device = isinstance(level, torch.Tensor)
        parts = [report for report in reports if report is not None] + [error.reshape(1) for error in errors]
        if on_device:
            parts.append(level.detach().float().max().reshape(1))  # tokens that stay as they are have level 0
        values = torch.cat([part.to(parts[0].device) for part in parts]).tolist() if parts else []
        if self._began is not None:  # after the read, so that the device has finished the evaluation
            self.stats.evaluations[-1].seconds = time.perf_counter() - self._began
            self._began = None
        if on_device:
            level = values.pop()
        for call, report in zip(self._calls, reports, strict=True):
            size = 0 if report is None else report.numel()
            call.settle(values[:size], self.stats.evaluations[-1])
            del values[:size]
        self._calls = []
        if self._forecaster is not None:
            self._forecaster.settle(values)
        return level

    # ---- what a call asks

    def stream(self, key: Hashable, blocks: int, renew: bool = False) -> Stream:
        """The state of one stream, made on first sight; `renew` throws the old one away."""
        if renew or key not in self._streams:
            self._streams[key] = Stream(blocks, self.config.sample_rows, self._parking)
        return self._streams[key]

    def deactivate(self, reason: str) -> None:
        """Compute everything from here on and give all memory back."""
        self.stats.inactive = reason
        self.kind = "plain"
        self._drop()

    def _drop(self) -> None:
        """Give all memory back."""
        self._streams.clear()
        if self._forecaster is not None:
            self._forecaster.clear()

    def next_may_reuse(self) -> bool:
        """Whether the evaluation after this one may read the slots, as far as is known now."""
        if self._warm_evaluations is None or self.kind == "plain":
            return False
        return not policy.is_full(self.evaluation + 1, self._warm_evaluations, self.config.reuse_interval)

    def is_warm(self, stream: Stream) -> bool:
        """Whether a stream has measured enough; one that joins a run late warms up on its own."""
        return self._warm_evaluations is not None and stream.evaluations >= self._warm_evaluations

    def fit(self) -> bool:
        """Choose where what is stored waits, so that it fits; if it doesn't, become inactive."""
        if self._forecaster is not None:
            return self._fit_outputs()
        streams = list(self._streams.values())
        slots, samples = [stream.need[0] for stream in streams], sum(stream.need[1] for stream in streams)
        # those of one call are written together, on the model's device
        whole, staged = sum(slots) + samples, self._together * max(slots, default=0) + samples
        device, ram = self._budget
        if self._parking.home is None and (device is None or whole <= device):
            return True
        elsewhere = self._parking.home or self._spill
        if elsewhere and (device is None or staged <= device) and (ram is None or sum(slots) <= ram):
            self._parking.home = elsewhere
            self.stats.in_ram = True
            return True
        need = f"{format_bytes(whole)}, the budget is {_limit(device)}"
        if elsewhere:
            need = f"{format_bytes(staged)} beside {format_bytes(sum(slots))} in RAM, "
            need += f"the budgets are {_limit(device)} and {_limit(ram)}"
        self.deactivate(f"the stored features of {len(streams)} streams need {need}")
        return False

    def _fit_outputs(self) -> bool:
        need, (device, ram) = self._forecaster.need_bytes, self._budget
        if self._forecaster.home is None and device is not None and need > device:
            self._forecaster.home, self.stats.in_ram = self._spill, self._spill is not None
        waits_in_ram = self._forecaster.home is not None
        limit = ram if waits_in_ram else device
        if limit is None or need <= limit:
            return True
        where = "in RAM " if waits_in_ram else ""
        self.deactivate(f"the stored outputs need {format_bytes(need)} {where}and the budget is {_limit(limit)}")
        return False

    def set_budget(self, device: int | None, ram: int | None) -> None:
        """Most bytes for stored features on the model's device and in RAM, None for no limit; checked at once.

        Hidden states move to RAM (unless the host said they must not) before the run becomes inactive.
        """
        self._budget = (device, ram)
        if not self.stats.inactive:
            self.fit()

    @property
    def held_bytes(self) -> int:
        """Bytes that all streams hold now."""
        outputs = self._forecaster.nbytes if self._forecaster is not None else 0
        return outputs + sum(stream.store.nbytes for stream in list(self._streams.values()))

    def note_bytes(self, extra: int) -> None:
        """Record how much is held at this moment; `extra` is held by the call."""
        self.stats.peak_bytes = max(self.stats.peak_bytes, self.held_bytes + extra)

    # ---- decisions

    def _kind(self, level: float | None) -> str:
        if self.stats.inactive:
            return "plain"
        if self._first_level is None:
            self._first_level = level
        if self._warm_evaluations is None:
            if self._warming(level):
                return "warmup"
            self._warm_evaluations = self.evaluation
        passed = self._percent_passed(level)
        if passed != 0:
            if passed > 0:
                self._drop()
            return "plain" if passed > 0 else "outside"
        if self._forecaster is not None:
            end = math.inf if self._steps is None else self._steps - forecast.last_steps(self._steps)
            last = self._forecaster.step.position > end - 0.5
            return "full" if last or self._ratio > 1 else "reuse"
        return (
            "full" if policy.is_full(self.evaluation, self._warm_evaluations, self.config.reuse_interval) else "reuse"
        )

    def _warming(self, level: float | None) -> bool:
        if not self._warmup:
            passed = 1.0 if level is None else 1 - level / self._first_level
            return self.evaluation < AUTO_WARMUP_MIN or passed < AUTO_WARMUP
        step = self._schedule.step(level, self.evaluation)
        self._visits[step] += 1
        # Heun evaluates twice a step, the second time at the next step's level: that one still belongs to warmup
        return step < self._warmup or step == self._warmup and self.evaluation < self._warmup * self._visits[step - 1]

    def _percent_passed(self, level: float | None) -> int:
        """-1 before start_percent, 0 within, 1 after end_percent."""
        if self._region is not None and level is not None:
            return (level <= self._region[1]) - (level > self._region[0])
        if self._steps is not None:
            percent = self._schedule.step(level, self.evaluation) / self._steps
        else:
            percent = 0.0 if level is None else 1 - level / self._first_level
        return (percent >= self.config.end_percent) - (percent < self.config.start_percent)


def _limit(budget: int | None) -> str:
    return "no limit" if budget is None else format_bytes(max(0, budget))

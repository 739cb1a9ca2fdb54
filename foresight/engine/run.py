"""A run: its evaluations, what may be left out in each, its budget and its record. One object per sampler run."""

import threading
import time
from collections.abc import Callable, Hashable, Sequence

import torch

from .agreement import OTHER, Agreement, Worst, settings_of
from .blend import Blend
from .budget import Budget, Offload
from .compiler import keep_out_of_graphs, outside_graphs
from .config import Config
from .counted import Counted
from .holding import Holding
from .policy import BlockCall, Decision, Policy, Resources, policy_of
from .possible import APART, most_reuse, why_nothing
from .restarts import Restarts
from .schedule import Schedule
from .stats import Evaluation, RunStats
from .tape import Tape
from .tensors import Tensors, is_out_of_memory
from .validate import Validation

_FEW = 3  # evaluations; of fewer that means nothing


class Run(Restarts, Holding):
    """One sampler run. What is left out, and how, its policy decides; which policy that is, the type of `config` says.

    The host calls `begin_evaluation` once per evaluation, `output` in place of whatever gives the sampler its output,
    `begin_call` and `end_call` around each call of the model, and `close` at the end.

    Args:
        config: The user's settings.
        schedule: Noise levels of the run, first to last (steps + 1 values, falling), if the host knows them.
        steps: Number of denoising steps, if only that is known.
        offload: Where stored tensors wait between their uses; with the model by default.
        inactive: Why the host knows that the method must not be used in this run, or None.
        region, noise, first_step, over, listed: See `Schedule`.
        blended: The host sees conds and not what a pipeline makes of them, see `blend`.
        tape: For a host that can start the sampler again.
        worst: Where other processes share the decisions of this run, what exchanges numbers with them.
        parts: Names of the parts of a latent that has several, in their order.
        guided, whole: See `Resources`.
    """

    def __init__(
        self,
        config: Config,
        *,
        schedule: Sequence[float] | None = None,
        steps: int | None = None,
        region: tuple[float, float] | None = None,
        noise: Callable[[float], float] | None = None,
        offload: Offload | None = None,
        inactive: str | None = None,
        first_step: int | None = None,
        listed: Sequence[float] = (),
        blended: bool = False,
        over: Callable[[float], float] | None = None,
        tape: Tape | None = None,
        worst: Worst | None = None,
        parts: Sequence[str] = (),
        guided: bool = True,
        whole: int | None = None,
    ):
        self.lock = threading.RLock()  # with several GPUs, the calls of one evaluation run in threads
        self.evaluation, self.kind, self._closed, self._by_block = -1, "plain", False, config.by_block  # see `Kind`
        self._schedule = Schedule(config, schedule, steps, noise, region, first_step, over, listed)
        self._budget, self._offload, self._tape = Budget(), offload or Offload(), tape
        blend = Blend(noise is not None, worst.places if worst is not None else 0, len(parts) > 1) if blended else None
        asks = self._fit, self.deactivate, self.lock, self._room, self._compute_instead
        together = worst is not None  # what one process knows for itself is then nothing to plan by
        shared = {"together": together, "parts": max(1, len(parts)), "guided": guided or together}
        lent = Resources(self._offload, *asks, blend, tape, None if together else whole, **shared)
        self._policy: Policy = policy_of(config)(config, self._schedule.steps, lent)
        self._policy.outlook(self._schedule.outlook())
        self._decision, self._began = Decision(compute=True), None
        self._calls: dict[Hashable, list[int]] = {}  # block calls that each output took when it was computed last
        spread = f"blocks are spread over {worst.size} processes" if together and not self._policy.together else None
        inactive = config.off_reason or inactive or spread or why_nothing(self._policy, self._schedule)
        self.stats = RunStats(config, self._schedule.steps, self._schedule.warmup, inactive=inactive, parts=parts)
        if not inactive and not first_step and self._policy.planned is not None:
            self.stats.note_plan(self._policy.planned, self._schedule.outlook())
        self._validation = Validation(config.validate, blend, lent.parts)
        self._agreement = self._agreement_of(worst, schedule, first_step, blend) if worst is not None else None

    @property
    def most_reuse(self) -> int | None:
        """How many steps can be left out at the most, by schedule; None if the host does not say how many there are."""
        return most_reuse(self._policy, self._schedule)

    # ---- what the host calls

    def begin_evaluation(
        self, level: torch.Tensor | float | None = None, latent: Tensors | None = None, trajectory: Hashable = None
    ) -> None:
        """Begin the next evaluation at noise level `level`, after reading back what the last one measured.

        Args:
            latent: The sampler's latent in its parts, so that it can be checked whether it goes on from the last one.
            trajectory: Which way through the levels this is, where a run has several (see `Policy.check`).

        Raises:
            Restart: the sampler should be started again, and does some of its evaluations once more.
        """
        keep_out_of_graphs()
        level = self.read_back(level, latent, trajectory)
        self.evaluation, self._began = self.evaluation + 1, time.perf_counter()
        row = Evaluation("plain", level)
        if not self.stats.inactive:
            self._decision = self._decide(row)
        self.kind = row.kind
        self.stats.evaluations.append(row)
        if self._schedule.steps != self.stats.steps:  # what the host has counted were evaluations
            self.stats.steps = self._schedule.steps
            if self.stats.planned is not None:
                self.stats.note_plan(self._policy.planned if self.stats.steps else None, self._schedule.outlook())

    @outside_graphs(recursive=False)
    def output(
        self,
        key: Hashable,
        signature: Hashable,
        compute: Callable[[], Tensors],
        device: torch.device,
        unit: Callable[[Tensors], Tensors] = lambda output: output,
    ) -> Tensors:
        """What the sampler gets in this evaluation: computed, or what the policy gives in its place.

        Args:
            key: Which output, where an evaluation has several (a cond each).
            signature: What must stay the same for an output to say anything about the next: shapes, active conds.
            compute: Gives the output, tensors with the batch first.
            device: Where the output belongs.
            unit: From an output to tensors whose rms its errors are measured in.
        """
        counted = Counted(compute, self.stats, self._by_block)
        if self.kind == "plain":
            return counted()
        try:
            given = self._policy.output(key, signature, counted, device, unit)
        except RuntimeError as error:
            if counted.failed or self._agreement is not None or not is_out_of_memory(error):
                raise  # other processes do not stop here
            self.deactivate("out of memory while storing an output")
        if self.stats.inactive:  # since this evaluation began: what was stored meanwhile is of no use
            self._policy.drop()
            return counted() if counted.calls is None else counted.result
        self._note_calls(key, counted.calls)
        if self.kind == "reuse" and (self._by_block or counted.calls is None):
            self._validate(given, compute, unit, device)
        self.note_bytes()
        self._fit()
        return given

    @outside_graphs(recursive=False)
    def _validate(self, given: Tensors, compute: Callable, unit: Callable, device: torch.device) -> None:
        """Compare what is given with what it would have been; without memory for that, the run goes on unvalidated."""
        try:
            self._validation.compare(given, compute, unit, device)
        except RuntimeError as error:
            if self._agreement is not None or not is_out_of_memory(error):
                raise  # other processes do not stop here
            self._validation.stop()

    @outside_graphs()
    def _note_calls(self, key: Hashable, calls: list[int] | None) -> None:
        """Fill in the record: these block calls were computed, or (None) those of last time were left out."""
        row = self.stats.evaluations[-1]
        if calls is None:
            row.repeat(self._calls.get(key, []))
        else:
            self._calls[key] = calls
        if self.kind != "warmup":
            row.note_ratio(self._decision.ratio)

    @outside_graphs()
    def begin_call(self, keys: Sequence[Hashable], blocks: int, batch_dim: int = 0) -> BlockCall | None:
        """Begin one call of the model; None when its blocks are not to be touched, and all of them count as computed.

        Args:
            keys: Its streams, in the order of their rows along `batch_dim`; all have the same number of rows.
            blocks: Length of the stack.
            batch_dim: Dimension of the block tensors along which the streams are stacked.
        """
        with self.lock:
            if self._validation.active:
                return None
            call = None if self.kind == "plain" else self._policy.begin_call(keys, blocks, batch_dim)
            if call is None:
                self.stats.evaluations[-1].count_all(blocks, len(keys))
            return call

    @outside_graphs()
    def end_call(self, call: BlockCall) -> bool:
        """End a call; False when its result is unusable, so that the model has to be called once more."""
        with self.lock:
            self.note_bytes(call.held_bytes)
            return call.finish()

    def close(self, timed: bool = True, broken_off: bool = False) -> RunStats:
        """End the run: read back the last evaluation, drop everything stored, return what happened.

        Args:
            timed: Whether this moment is the end of the last evaluation; else its time is left unknown.
            broken_off: An interrupt or an error ends it. An evaluation that it has ended in the middle is none.
        """
        if not self._closed:
            self._began = self._began if timed else None
            self._closed = True
            self.read_back(None)
            if broken_off:
                self.stats.note_broken_off()
            self.kind = "plain"
            few = not self._schedule.is_warm or sum(e.kind != "plain" for e in self.stats.evaluations) < _FEW
            if not (self.stats.inactive or self._policy.has_measured or few):
                self.stats.inactive = APART
            self._policy.drop()
        return self.stats

    def read_back(
        self, level: torch.Tensor | float | None, latent: Tensors | None = None, trajectory: Hashable = None
    ) -> float | None:
        """The one device read of an evaluation.

        What the last one measured, and the level of the next, which is returned. A host that has to know the level
        before it begins the evaluation calls this with the latent, and `begin_evaluation` without. The first call of
        each evaluation also exchanges numbers with other processes, where these share the decisions.
        """
        if latent is not None and not self.stats.inactive:
            self._unless_out_of_memory(self._policy.check, trajectory, latent)
        level = self._read(level)
        alone = self._closed or self._agreement is None
        return level if alone or not self._agreement.is_due(self.evaluation + 1) else self._agree(level)

    def _read(self, level: torch.Tensor | float | None) -> float | None:
        measured, on_device = self._policy.measured() + self._validation.measured(), isinstance(level, torch.Tensor)
        if on_device:
            measured.append(level.detach().float().max().reshape(1))  # tokens that stay as they are have level 0
        values = torch.cat([part.to(measured[0].device) for part in measured]).tolist() if measured else []
        if self._began is not None:  # the read has waited for the device, so the time is that of the work
            self.stats.evaluations[-1].seconds = time.perf_counter() - self._began
            self._began = None
        level = values.pop() if on_device else level
        row = self.stats.evaluations[-1] if self.stats.evaluations else None
        self._policy.settle(self._validation.settle(values, row), row)
        return level

    # ---- other processes

    def _agreement_of(
        self, worst: Worst, levels: Sequence[float] | None, first_step: int | None, blend: Blend | None
    ) -> Agreement:
        settings = settings_of(self.stats.config, levels or ())
        told = blend.told_length if blend is not None else 0
        agreement = Agreement(worst, (settings, self.stats.steps, first_step), told)
        if self._tape is not None:
            self._tape.agreement = agreement
        if self.stats.inactive:
            agreement.give_up(self.stats.inactive)
        return agreement

    def _agree(self, level: float | None) -> float | None:
        """Tell the other processes what is known here, and go on with what holds for all: the level of all."""
        ours, computed = self._agreement, sum(e.kind != "reuse" for e in self.stats.evaluations)
        asked = not self.stats.inactive and ours.sees_level
        opinion = self._policy.opinion(level) if asked else ()
        joint = ours.exchange(self.evaluation + 1, computed, level, opinion, self._policy.told() if asked else ())
        if joint.untaped is not None and self._tape is not None:
            self._tape.give_up(joint.untaped)
        if joint.inactive is not None:
            self._end(self.stats.inactive or joint.inactive)
        elif not self.stats.inactive:
            self._policy.agree(joint.opinion, joint.told)
        return joint.level

    # ---- record

    def _compute_instead(self) -> None:
        """The evaluation under way was to be left out, and is computed after all."""
        self.kind = self.stats.evaluations[-1].kind = "full"

    @outside_graphs()
    def deactivate(self, reason: str, everywhere: bool = False, kind: float = OTHER) -> None:
        """Compute everything from here on and give all memory back; with other processes, once all of them do.

        Args:
            everywhere: All processes find this reason in the same evaluation, so that none has to wait.
            kind: What the others are told, `agreement.MEMORY` or `OTHER`.
        """
        if self._agreement is not None:
            self._agreement.give_up(reason, kind)
        if self._agreement is None or everywhere:
            self._end(reason)

    def _end(self, reason: str) -> None:
        self.stats.inactive, self.kind = reason, "plain"
        self._policy.drop()

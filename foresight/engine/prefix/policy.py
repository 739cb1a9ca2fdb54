"""The paper's method (arXiv 2506.00329, section 4): which evaluations reuse a prefix of the blocks, and its depth."""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from ..budget import Need
from ..config import Config, chosen, limited
from ..policy import Decision, Policy, policy_for
from ..schedule import AUTO_WARMUP, AUTO_WARMUP_MIN, Place
from ..stats import Evaluation
from . import formulas
from .call import Call, Plan
from .slot import Layout
from .stream import Group, Stream, stream_bytes

AUTO_INTERVAL = 2
CACHE_KINDS = ("output", "residual")


@dataclass(frozen=True)
class PaperConfig(Config):
    """Settings of the method "paper".

    `warmup_steps` 0 means 15 % of the run's steps, at least three. `threshold` is gamma, the scale on a block's
    reference change lambda. `reuse_interval` is R: every R-th evaluation after warmup is computed in full, beginning
    with the first; 0 means 2.

    Attributes:
        cache_kind: "output" hands out the stored hidden state, "residual" adds its change over the prefix to the input.
        sample_rows: About how many rows of a block's output are sampled to measure its change, never more than a third
            of them; 0 takes every row.
    """

    name: ClassVar[str] = "paper"
    unused: ClassVar[str] = "no block qualified"
    by_block: ClassVar[bool] = True

    cache_kind: str = chosen("output", CACHE_KINDS)
    sample_rows: int = limited(1024, 0, 1 << 20, 1)

    def automatic_warmup(self, steps: int | None) -> int | None:
        return None if steps is None else max(AUTO_WARMUP_MIN, math.ceil(AUTO_WARMUP * steps))

    @property
    def interval(self) -> int:
        """R."""
        return self.reuse_interval or AUTO_INTERVAL


@policy_for(PaperConfig)
class ReusedPrefix(Policy):
    """Streams, what they measured, and the plan of each call of the model."""

    def __init__(self, *args):
        super().__init__(*args)
        self._streams: dict[Hashable, Stream] = {}
        self._calls: list[Call] = []  # of the present evaluation
        self._together = 1  # most streams in one call
        self._evaluation = -1
        self._since_warmup: int | None = None
        self._reuses = False
        self.has_measured = False
        self._dropped = False

    @property
    def rest(self) -> str:
        return f"with reuse_interval {self.config.interval} the rest is computed in full"

    def why_never(self) -> str | None:
        if self.config.warmup_steps == 1:
            return "warmup_steps is 1, which leaves no change to measure; use 0 (automatic) or at least 2"
        return None

    def most_reuse(self, steps: int, warmup: int) -> int:
        return formulas.most_reuse_evaluations(steps, warmup, self.config.interval)

    # ---- once per evaluation

    def decide(self, place: Place) -> Decision:
        self._evaluation, self._dropped = place.evaluation, False
        self._since_warmup = place.since_warmup
        # Drop streams that missed an evaluation: they have no output to compare with, and moving context windows would
        # add new ones for ever.
        self._streams = {k: stream for k, stream in self._streams.items() if stream.last >= self._evaluation - 1}
        self._reuses = place.may_reuse and not self._is_full(0)
        return Decision(compute=not self._reuses)

    def _is_full(self, ahead: int) -> bool:
        """Whether the evaluation so many after this one is computed in full."""
        return self._since_warmup is None or formulas.is_full(self._since_warmup + ahead, 0, self.config.interval)

    def measured(self) -> list[torch.Tensor]:
        return [report for call in self._calls if (report := call.report()) is not None]

    def settle(self, values: list[float], evaluation: Evaluation | None) -> None:
        for call in self._calls:
            size = call.reported
            self.has_measured |= call.settle(values[:size], evaluation)
            del values[:size]
        self._calls = []

    # ---- once per call of the model

    def begin_call(self, keys: Sequence[Hashable], blocks: int, batch_dim: int) -> Call:
        """A call that measures its blocks and leaves out those of the reused prefix."""
        self._together = max(self._together, len(keys))
        call = Call(self, keys, blocks, batch_dim)
        self._calls.append(call)
        if self._reuses:
            known = [self._streams[key] for key in keys if key in self._streams]
            call.prefetch(list({id(s.group): s.group for s in known if s.depth >= 0}.values()))
        return call

    def plan(
        self, keys: Sequence[Hashable], blocks: int, batch_dim: int, signature: tuple, layout: Layout
    ) -> Plan | None:
        """What a call does, once its first block's input has been seen; None where that does not fit into memory.

        Args:
            keys: Its streams, in the order of their rows.
            signature: What entered the first block; with another one, everything stored is useless.
            layout: Layout of one stream's part of it.
        """
        with self.resources.lock:
            if self._dropped:  # by another thread, since this call began
                return None
            streams = [self._stream(key, signature) for key in keys]
            for stream in streams:
                if stream.signature is None:
                    stream.need = stream_bytes(layout, blocks, self.config.sample_rows)
                    if not self.resources.fit():
                        return None
                stream.signature = signature
            in_step = all(s.depth >= 0 and s.last == self._evaluation - 1 for s in streams)
            same = len({stream.depth for stream in streams}) == 1
            depth = streams[0].depth if self._reuses and in_step and same else -1
            group = self._group(streams, blocks, batch_dim, depth)
            for stream in streams:
                stream.begin(self._evaluation, self._is_warm(stream), self.config.threshold)
                if depth < 0:
                    stream.depth = -1  # a full evaluation starts over
            if depth < 0:
                group.clear()
            limits = [stream.limit for stream in streams]
            limit = None if any(x is None for x in limits) else sum(limits) / len(limits)
            keeps = limit is not None and self._since_warmup is not None and not self._is_full(1)
            return Plan(streams, group, depth, keeps, limit, self.config.cache_kind == "residual")

    def _stream(self, key: Hashable, signature: tuple) -> Stream:
        stream = self._streams.get(key)
        if stream is None or stream.signature not in (None, signature):
            stream = self._streams[key] = Stream()
        return stream

    def _group(self, streams: list[Stream], blocks: int, batch_dim: int, depth: int) -> Group:
        group = streams[0].group
        if group is None or not group.holds(streams):
            group = Group(len(streams), blocks, batch_dim, self.config.sample_rows, self.resources.offload)
            group.regroup(streams, depth)
        return group

    def _is_warm(self, stream: Stream) -> bool:
        """Whether a stream has measured enough; one that joins a run late warms up on its own."""
        return self._since_warmup is not None and stream.evaluations >= self._evaluation - self._since_warmup

    # ---- memory

    def planned_bytes(self, latent: tuple[int, ...], hidden: tuple, blocks: int, streams: int) -> int:
        if not hidden:
            return 0
        slot, samples = stream_bytes((hidden,), blocks, self.config.sample_rows)
        slots = 1 if self.config.cache_device == "cpu" else streams
        return slots * slot + streams * samples

    def need(self) -> Need:
        streams = list(self._streams.values())
        slots, samples = [stream.need[0] for stream in streams], sum(stream.need[1] for stream in streams)
        # slots of one call are written together, on the model's device
        beside = self._together * max(slots, default=0) + samples
        return Need(f"the stored features of {len(streams)} streams", sum(slots) + samples, beside, sum(slots))

    @property
    def held_bytes(self) -> int:
        groups = {id(stream.group): stream.group for stream in list(self._streams.values()) if stream.group is not None}
        return sum(group.nbytes for group in groups.values())

    def drop(self) -> None:
        self._streams.clear()
        self._dropped = True

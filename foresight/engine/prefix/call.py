"""One call of the model: which of its blocks run, and what is measured and stored on the way."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from ..compiler import outside_graphs
from ..policy import Resources
from ..stats import Evaluation
from ..tensors import Tensors, is_out_of_memory
from . import formulas
from .slot import Layout, layout_of
from .stream import Group, Stream


@dataclass(frozen=True)
class Plan:
    """What one call does.

    Attributes:
        streams: In the order of its rows.
        group: What is stored of them.
        depth: l* when a prefix is reused in this call, else -1.
        keeps: Whether computed outputs may go to the slot.
        limit: gamma * lambda of the call's rows together, (blocks,); None while a stream warms up.
        residual: The slot holds the change over the prefix, not the hidden state.
    """

    streams: Sequence[Stream]
    group: Group
    depth: int
    keeps: bool
    limit: torch.Tensor | None
    residual: bool


class MakesPlans(Protocol):
    """Who makes the plan of a call."""

    resources: Resources

    def plan(
        self, keys: Sequence[Hashable], blocks: int, batch_dim: int, signature: tuple, layout: Layout
    ) -> Plan | None:
        """See `ReusedPrefix.plan`."""


class Call:
    """One call of the model. All its rows share one decision: the same prefix is reused for all of them, or none."""

    def __init__(self, planner: MakesPlans, keys: Sequence[Hashable], blocks: int, batch_dim: int):
        self._planner, self._keys, self._blocks, self._batch_dim = planner, list(keys), blocks, batch_dim
        self._active = True
        self._plan: Plan | None = None
        self._depth = -1  # of the plan, once everything is there that handing over needs
        self._reused: dict[int, bool] = {}  # per block that was called
        self._repeated = False  # a block was called a second time
        self._base: Tensors | None = None  # x_0, the first block's input, for residual reuse
        self._limits: Sequence[torch.Tensor] = ()  # what a block's distance is compared with, 0-d each
        self._distances: dict[int, torch.Tensor] = {}  # of measured blocks: 0-d, or (streams,) in warmup
        self._flags: dict[int, torch.Tensor] = {}  # whether the block qualified, 0-d
        self.reported = 0  # numbers in `report`

    @property
    def held_bytes(self) -> int:
        """Bytes held for the length of the call, beside what the groups hold."""
        return sum(x.nbytes for x in self._base or ())

    def prefetch(self, groups: Sequence[Group]) -> None:
        """Begin to bring back what these groups store, so that it is there when the blocks are reached."""
        for group in groups:
            self._guarded(group.slot.prefetch)

    @outside_graphs()
    def finish(self) -> bool:
        """End the call; False when its result is unusable and the model has to be called again.

        That is so when blocks were left out but the stored hidden state was never handed over, because another pack's
        patch kept block l* from being called, or because memory for the copy ran out; and when a block ran twice.
        """
        self._base = None
        complete = self._depth < 0 or self._depth in self._reused and not self._repeated
        if self._plan is not None and self._active:
            self._guarded(self._note_changes)
            if self._plan.group.slot is not None:
                self._guarded(self._plan.group.slot.to_offload)
        if not complete:
            if self._active:
                self._stop(f"block {self._depth} was not called although it was before (another node replaces it?)")
            self._reused = {}
        return complete

    @outside_graphs(recursive=False)  # what it decides is in no graph; a block that it computes may be one
    def block(
        self,
        index: int,
        inputs: Tensors,
        compute: Callable[[], Tensors],
        join: Callable[[Tensors], Tensors] | None = None,
        in_place: bool = False,
    ) -> Tensors:
        """The output of block `index`: computed, or the stored one, or (inside a reused prefix) its unchanged input.

        Args:
            index: Position in the stack, from 0.
            inputs: The tensors that enter the block and leave it changed, (B, L, C) each.
            compute: Runs the block; returns tensors like `inputs`. It may change `inputs` in place.
            join: For a block whose layout differs from the first block's: the first block's input to this layout.
            in_place: `inputs` may be changed here too: the block would do so, and the model reads them no more.

        Returns:
            As many tensors as the block gives; none of them is kept here.
        """
        first = not self._reused
        if self._active and self._reused and index <= max(self._reused):
            self._repeated = True
            self._stop(f"block {index} ran after block {max(self._reused)} in one call of the model")
        if self._active and first:
            self._guarded(self._begin, index, inputs)
        if index < self._depth:
            self._reused[index] = True
            # the host may write to a block's output; the first block's input is its own and stays as it is
            return inputs if in_place or not first else tuple(x.clone() for x in inputs)
        if index == self._depth:
            stored = self._guarded(self._hand_over, index, inputs if in_place else None, join)
            if stored is not None:
                self._reused[index] = True
            return inputs if stored is None else stored  # the former is incomplete: the host tries again
        output = compute()
        self._reused[index] = False
        if self._active:
            self._guarded(self._observe, index, output, join)
        return output

    def _stop(self, reason: str) -> None:
        self._active = False
        self._planner.resources.deactivate(reason)

    @outside_graphs()
    def _guarded(self, step: Callable, *args) -> Tensors | None:
        """Run one of our own steps; when memory runs out the video matters more than the cache."""
        try:
            with torch.no_grad():
                return step(*args)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            self._stop("out of memory while storing or handing over features")
            return None

    def _begin(self, index: int, inputs: Tensors) -> None:
        """Ask for the plan when the first block's input is known."""
        count, dim = len(self._keys), self._batch_dim
        if any(x.shape[dim] % count for x in inputs):
            return self._stop(f"a batch of {inputs[0].shape[dim]} does not divide among {count} conds")
        rows = tuple(x.narrow(dim, 0, x.shape[dim] // count) for x in inputs)
        signature = (index, layout_of(rows), inputs[0].device)
        plan = self._planner.plan(self._keys, self._blocks, dim, signature, layout_of(rows))
        if plan is None:  # the run is inactive by now
            self._active = False
            return None
        if plan.residual and (plan.depth >= 0 or plan.keeps):
            self._base = tuple(x.clone() for x in inputs)
        if plan.limit is not None and plan.keeps:
            # in what `metric.distance` gives: the root of the sum of squares of all rows
            elements = plan.group.elements(inputs[0].device)
            self._limits = (plan.limit * elements * count).sqrt().unbind()
        self._plan, self._depth = plan, plan.depth

    def _base_at(self, join: Callable[[Tensors], Tensors] | None) -> Tensors | None:
        """x_0 in the layout of a block, None for output reuse."""
        return self._base if self._base is None or join is None else join(self._base)

    def _hand_over(self, index: int, into: Tensors | None, join: Callable[[Tensors], Tensors] | None) -> Tensors:
        """The slot's hidden state of block l*, fresh or in `into`; residual: the new input plus the stored change."""
        group, base = self._plan.group, self._base_at(join)
        layout = group.layouts[index]
        fits = into is not None and layout_of(into) == layout  # else another pack gives this block something else
        stored = group.slot.read(layout, into if fits else None)
        return stored if base is None else tuple(x.add_(b) for x, b in zip(stored, base, strict=True))

    def _observe(self, index: int, output: Tensors, join: Callable[[Tensors], Tensors] | None) -> None:
        """Measure a computed output and put it into the slot if it qualifies."""
        plan = self._plan
        distance = plan.group.refresh(index, output, by_stream=plan.limit is None)
        if distance is None:
            return
        if plan.keeps:
            flag = formulas.qualifies(distance, self._limits[index])
            plan.group.keep_where(flag, output, self._base_at(join))
            self._flags[index] = flag  # last: a block whose output could not be stored has not been measured
        self._distances[index] = distance

    # ---- after the call

    def _note_changes(self) -> None:
        """In warmup, file the changes of each stream."""
        if self._plan.limit is not None or not self._distances:
            return
        group, measured = self._plan.group, list(self._distances)
        squares = torch.stack(list(self._distances.values())).square()  # (measured blocks, streams)
        changes = squares.new_full((self._blocks, group.count), torch.nan)
        changes[measured] = squares / group.elements(squares.device)[measured, None]
        for stream, change in zip(self._plan.streams, changes.unbind(1), strict=True):
            stream.note(change)

    def report(self) -> torch.Tensor | None:
        """On the device: the distance and gamma * lambda of each measured block, then which qualified, if it matters.

        None in warmup.
        """
        if self._plan is None or self._plan.limit is None or not self._distances:
            return None
        everyone = len(self._distances) == self._blocks
        limits = self._plan.limit if everyone else self._plan.limit[list(self._distances)]
        parts = [torch.stack(list(self._distances.values())), limits]
        if self._flags:
            parts.append(torch.stack(list(self._flags.values())).float())
        report = torch.cat(parts)
        self.reported = report.numel()
        return report

    def settle(self, values: list[float], evaluation: Evaluation) -> bool:
        """Take back the values of `report`: set the streams' new l*, fill in the table.

        Returns whether anything was measured.
        """
        blocks = list(self._distances) if values else []
        distances, limits, flags = (values[i * len(blocks) : (i + 1) * len(blocks)] for i in range(3))
        ratios = {}
        for block, distance, limit in zip(blocks, distances, limits, strict=True):
            elements = sum(x.numel() for x in self._plan.group.samples[block])
            ratios[block] = _ratio(distance * distance / elements, limit)
        if flags:
            good = dict(zip(blocks, map(bool, flags), strict=True))
            deepest = formulas.prefix_depth([good.get(block, False) for block in range(self._blocks)])
            for stream in self._plan.streams:
                stream.depth = max(stream.depth, deepest)
        for block, reused in self._reused.items():
            evaluation.count(block, reused, len(self._keys), ratios.get(block))
        return any(ratio is not None for ratio in ratios.values())


def _ratio(delta: float, limit: float) -> float | None:
    """delta / (gamma * lambda) as JSON can carry it: None where either is not finite, 0 where both are 0."""
    if not (abs(delta) < float("inf") and abs(limit) < float("inf")):
        return None
    return 0.0 if delta == 0 else delta / limit if limit else None

"""One call of the model: which of its blocks run, and what is measured and stored on the way."""

from collections.abc import Callable, Hashable, Sequence
from typing import TYPE_CHECKING

import torch

from ..stats import Evaluation
from . import formulas as policy
from .metric import Tensors
from .slot import Parking, Store, is_out_of_memory, layout_of, stream_bytes

if TYPE_CHECKING:
    from ..run import Session


class Stream:
    """State of one stream (one cond in one place of the evaluation): what it stored and what it measured.

    Attributes:
        changes: Warmup's changes, oldest first, (blocks,) each; at most the three that lambda takes.
        deltas: The newest change of each block measured in the present evaluation, 0-d.
        limit: gamma * lambda, (blocks,), once warmup is over.
        evaluations: How many evaluations the stream took part in; `last` is the newest of them.
        signature: Layout of what entered its first block; another one makes everything stored useless.
        need: Bytes that it takes, for the slot and for the samples.
        depth: l* of what the slot holds, -1 for nothing.
    """

    def __init__(self, blocks: int, sample_rows: int, parking: Parking):
        self.store = Store(blocks, sample_rows, parking)
        self.blocks = blocks
        self.changes: list[torch.Tensor] = []
        self.deltas: dict[int, torch.Tensor] = {}
        self.limit: torch.Tensor | None = None
        self.evaluations = 0
        self.last = -1
        self.signature: tuple | None = None
        self.need = (0, 0)
        self.depth = -1

    def begin(self, evaluation: int, warm: bool, threshold: float) -> None:
        """Take part in an evaluation: file the last one's changes and, after warmup, fix gamma * lambda."""
        if self.limit is None and self.deltas:
            unknown = torch.full_like(next(iter(self.deltas.values())), torch.nan)
            self.changes.append(torch.stack([self.deltas.get(block, unknown) for block in range(self.blocks)]))
            self.changes = self.changes[-len(policy.LAMBDA_WEIGHTS) :]
            if warm:
                self.limit, self.changes = threshold * policy.block_lambda(self.changes), []
        self.deltas = {}
        self.last = evaluation
        self.evaluations += 1


class Call:
    """One call of the model. All its rows share one decision: the same prefix is reused for all of them, or none."""

    def __init__(self, session: "Session", keys: Sequence[Hashable], blocks: int, batch_dim: int):
        self._session, self._keys, self._blocks, self._batch_dim = session, list(keys), blocks, batch_dim
        self._active = session.kind != "plain"
        self._streams: list[Stream] = []
        self._depth = -1  # l* when a prefix is reused in this call
        self._keeps = False  # whether computed outputs may go to the slot
        self._reused: dict[int, bool] = {}  # per block that was called
        self._base: Tensors | None = None  # x_0, the first block's input, for residual reuse
        self._limit: torch.Tensor | None = None  # gamma * lambda of this call's rows together, (blocks,)
        self._deltas: dict[int, torch.Tensor] = {}  # delta of this call's rows together, 0-d
        self._flags: dict[int, torch.Tensor] = {}  # whether the block qualified, 0-d

    def prefetch(self, streams: Sequence[Stream]) -> None:
        """Begin to bring back what these streams stored, so that it is there when the blocks are reached."""
        for stream in streams:
            if stream.depth >= 0:
                self._guarded(stream.store.slot.prefetch)

    @torch.compiler.disable
    def finish(self) -> bool:
        """End the call; False when its result is unusable and `retry` has to take its place.

        That is so when blocks were left out but the stored hidden state was never handed over, because another pack's
        patch kept block l* from being called, or because memory for the copy ran out.
        """
        if self._active:
            self._session.note_bytes(sum(x.nbytes for x in self._base or ()))
            self._base = None
            for stream in self._streams:
                self._guarded(stream.store.park)
        return self._depth < 0 or self._depth in self._reused

    @torch.compiler.disable
    def retry(self) -> "Call":
        """A call in place of an unusable one, in which everything is computed."""
        if self._active:
            self._session.deactivate(
                f"block {self._depth} was not called although it was before (another node replaces it?)"
            )
        self._active, self._reused = False, {}
        return self._session.begin_call(self._keys, self._blocks, self._batch_dim)

    @torch.compiler.disable(recursive=False)  # what it decides is in no graph; a block that it computes may be one
    def block(
        self,
        index: int,
        inputs: Tensors,
        compute: Callable[[], Tensors],
        join: Callable[[Tensors], Tensors] | None = None,
    ) -> Tensors:
        """The output of block `index`: computed, or the stored one, or (inside a reused prefix) its unchanged input.

        Args:
            index: Position in the stack, from 0.
            inputs: The tensors that enter the block and leave it changed, (B, L, C) each.
            compute: Runs the block; returns tensors like `inputs`. It may change `inputs` in place.
            join: For a block whose layout differs from the first block's: the first block's input to this layout.

        Returns:
            As many tensors as the block gives; none of them is kept here.
        """
        first = not self._reused
        if self._active and self._reused and index <= max(self._reused):
            self._stop(f"block {index} ran after block {max(self._reused)} in one call of the model")
        if self._active and first:
            self._guarded(self._begin, index, inputs)
        if index < self._depth:
            self._reused[index] = True
            # the host may write to a block's output in place; the first block's input is its own and stays as it is
            return tuple(x.clone() for x in inputs) if first else inputs
        if index == self._depth:
            stored = self._guarded(self._hand_over, index, join)
            if stored is None:
                return inputs  # incomplete: the host tries again
            self._reused[index] = True
            return stored
        output = compute()
        self._reused[index] = False
        if self._active:
            self._guarded(self._observe, index, output, join)
        return output

    def _stop(self, reason: str) -> None:
        self._active = False
        self._session.deactivate(reason)

    @torch.compiler.disable
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

    def _rows(self, hidden_states: Tensors, stream: int) -> Tensors:
        """The rows of one stream, as views."""
        if len(self._keys) == 1:
            return hidden_states
        size = [x.shape[self._batch_dim] // len(self._keys) for x in hidden_states]
        return tuple(x.narrow(self._batch_dim, stream * n, n) for x, n in zip(hidden_states, size, strict=True))

    def _begin(self, index: int, inputs: Tensors) -> None:
        """On seeing the first block's input, decide whether this call reuses a prefix."""
        session = self._session
        if any(x.shape[self._batch_dim] % len(self._keys) for x in inputs):
            return self._stop(
                f"a batch of {inputs[0].shape[self._batch_dim]} does not divide among {len(self._keys)} conds"
            )
        for i, key in enumerate(self._keys):
            rows = self._rows(inputs, i)
            signature = (index, layout_of(rows), rows[0].device)
            stream = session.stream(key, self._blocks)
            if stream.signature not in (None, signature):
                stream = session.stream(key, self._blocks, renew=True)
            if stream.signature is None:
                stream.need = stream_bytes(layout_of(rows), self._blocks, session.config.sample_rows)
                if not session.fit():
                    return self._stop(session.stats.inactive)
            stream.signature = signature
            self._streams.append(stream)
        ready = session.kind == "reuse" and all(
            s.depth >= 0 and s.last == session.evaluation - 1 for s in self._streams
        )
        depth = self._streams[0].depth if ready and len({stream.depth for stream in self._streams}) == 1 else -1
        for stream in self._streams:
            stream.begin(session.evaluation, session.is_warm(stream), session.config.threshold)
            if depth < 0:
                stream.depth = -1  # a full evaluation starts over
                stream.store.clear()
        if all(stream.limit is not None for stream in self._streams):
            self._limit = sum(stream.limit for stream in self._streams) / len(self._streams)
            self._keeps = session.next_may_reuse()
        if session.config.cache_kind == "residual" and (depth >= 0 or self._keeps):
            self._base = tuple(x.clone() for x in inputs)
        self._depth = depth  # last: only now is everything there that handing over needs

    def _base_at(self, join: Callable[[Tensors], Tensors] | None) -> Tensors | None:
        """x_0 in the layout of a block, None for output reuse."""
        return self._base if self._base is None or join is None else join(self._base)

    def _hand_over(self, index: int, join: Callable[[Tensors], Tensors] | None) -> Tensors:
        """What the slots hold of block l*, for all rows, as fresh tensors: C_l*, or x_0 + (C_l* - x_0 of then)."""
        stored = [stream.store.slot.read(stream.store.layouts[index]) for stream in self._streams]
        joined = (
            stored[0] if len(stored) == 1 else tuple(torch.cat(x, self._batch_dim) for x in zip(*stored, strict=True))
        )
        base = self._base_at(join)
        return joined if base is None else tuple(x.add_(b) for x, b in zip(joined, base, strict=True))

    def _observe(self, index: int, output: Tensors, join: Callable[[Tensors], Tensors] | None) -> None:
        """Measure a computed output and put it into the slots if it qualifies."""
        changes = [stream.store.refresh(index, self._rows(output, i)) for i, stream in enumerate(self._streams)]
        if all(change is not None for change in changes):
            for stream, change in zip(self._streams, changes, strict=True):
                stream.deltas[index] = change
            if self._limit is not None:
                self._deltas[index] = sum(changes) / len(changes)
                self._flags[index] = flag = policy.qualifies(self._deltas[index], self._limit[index])
                if self._keeps:
                    base = self._base_at(join)
                    for i, stream in enumerate(self._streams):
                        stream.store.keep_where(
                            flag, self._rows(output, i), None if base is None else self._rows(base, i)
                        )

    # ---- after the call

    def report(self) -> torch.Tensor | None:
        """(3 x measured blocks,) on the device: which qualified, their deltas, their gamma * lambda. None in warmup."""
        if not self._deltas:
            return None
        flags, deltas = list(self._flags.values()), list(self._deltas.values())
        limits = [self._limit[block] for block in self._deltas]
        return torch.cat([torch.stack(flags).float(), torch.stack(deltas), torch.stack(limits)])

    def settle(self, values: list[float], evaluation: Evaluation) -> None:
        """Take back the values of `report`: set the streams' new l*, fill in the table."""
        count = len(self._deltas) if values else 0
        flags = dict(zip(self._deltas, values[:count], strict=False))
        ratios = {
            block: _ratio(delta, limit)
            for block, delta, limit in zip(self._deltas, values[count : 2 * count], values[2 * count :], strict=False)
        }
        if self._keeps:
            deepest = policy.prefix_depth([bool(flags.get(block)) for block in range(self._blocks)])
            for stream in self._streams:
                stream.depth = max(stream.depth, deepest)
        for block, reused in self._reused.items():
            evaluation.count(block, reused, len(self._keys), ratios.get(block))


def _ratio(delta: float, limit: float) -> float | None:
    """delta / (gamma * lambda) as JSON can carry it: None where either is not finite, 0 where both are 0."""
    if not (abs(delta) < float("inf") and abs(limit) < float("inf")):
        return None
    return 0.0 if delta == 0 else delta / limit if limit else None

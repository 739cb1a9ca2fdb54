"""The method once more: slow and plain, every output of every stream kept, Python numbers, blocks really replaced.

It shares the table of families (how to read a block's arguments) with the adapter, and nothing else.
"""

import math
from collections import Counter
from types import SimpleNamespace

import comfy.model_patcher
import comfy.patcher_extension
import torch

from foresight.hosts import blocks
from foresight.hosts.comfyui import families

WRAPPERS = comfy.patcher_extension.WrappersMP
KEY = "reference"


class _Probe(torch.nn.Module):
    """In the place of a block, with the block's other attributes."""

    def __init__(self, block, method, answer):
        super().__init__()
        self.__dict__["_block"] = block
        self.__dict__[method] = answer

    def __getattr__(self, name):
        return getattr(self._block, name)


class Reference:
    """`Reference(...)(patcher)` is a clone whose runs follow the method; `reused` counts block calls over all runs.

    Args:
        threshold: gamma.
        warmup: How many evaluations (not steps) warmup takes.
        reuse_interval: R.
    """

    def __init__(self, threshold: float, warmup: int, reuse_interval: int):
        self.threshold, self.warmup, self.interval = threshold, warmup, reuse_interval
        self.reused = 0

    def __call__(self, patcher):
        patched = patcher.clone()
        patched.add_wrapper_with_key(WRAPPERS.OUTER_SAMPLE, KEY, self._outer_sample)
        return patched

    def _outer_sample(self, executor, *args, **kwargs):
        guider = executor.class_obj
        self.evaluation, self.streams, self.calls = -1, {}, []
        found = guider.model_options
        guider.model_options = comfy.model_patcher.create_model_options_clone(found)
        for kind, wrapper in (
            (WRAPPERS.PREDICT_NOISE, self._predict_noise),
            (WRAPPERS.CALC_COND_BATCH, self._calc_cond_batch),
            (WRAPPERS.DIFFUSION_MODEL, self._diffusion_model),
        ):
            comfy.patcher_extension.add_wrapper_with_key(
                kind, KEY, wrapper, guider.model_options, is_model_options=True
            )
        try:
            return executor(*args, **kwargs)
        finally:
            guider.model_options = found

    def _predict_noise(self, executor, *args, **kwargs):
        for call in self.calls:
            self._settle(call)
        self.evaluation, self.calls, self.order = self.evaluation + 1, [], -1
        self.streams = {key: s for key, s in self.streams.items() if s.last >= self.evaluation - 1}
        return executor(*args, **kwargs)

    def _calc_cond_batch(self, executor, *args, **kwargs):
        self.order, self.seen = self.order + 1, Counter()
        return executor(*args, **kwargs)

    def _is_full(self, evaluation):
        return (evaluation - self.warmup) % self.interval == 0

    def _settle(self, call):
        """What an evaluation measured decides about the next one."""
        if self.evaluation < self.warmup or self._is_full(self.evaluation + 1) or not call.limits:
            return
        good = [block for block, change in call.changes.items() if change <= call.limits[block]]
        for stream in call.streams:
            stream.depth = max([stream.depth, *good])

    def _diffusion_model(self, executor, *args, **kwargs):
        model = executor.class_obj
        stack = blocks.family_of(model, families.FAMILIES).stack(model)
        options = next(v for v in (*reversed(args), kwargs.get("transformer_options")) if isinstance(v, dict))
        window = options.get("context_window")
        call = SimpleNamespace(streams=[], limits={}, changes={}, depth=-1)
        for cond in zip(options["cond_or_uncond"], options["uuids"], strict=True):
            key = (id(model), self.order, tuple(window.index_list) if window else None, cond, self.seen[cond])
            self.seen[cond] += 1
            fresh = SimpleNamespace(outputs={}, history=[], latest={}, limits=None, seen=0, last=-1, depth=-1)
            call.streams.append(self.streams.setdefault(key, fresh))
        self.calls.append(call)

        ready = [s.depth >= 0 and s.last == self.evaluation - 1 for s in call.streams]
        same = len({s.depth for s in call.streams}) == 1
        if self.evaluation >= self.warmup and not self._is_full(self.evaluation) and all(ready) and same:
            call.depth = call.streams[0].depth
        for stream in call.streams:
            if call.depth < 0:
                stream.depth = -1
            if stream.limits is None and stream.latest:
                stream.history.append(stream.latest)
                if self.evaluation >= self.warmup and stream.seen >= self.warmup:
                    last = stream.history[-1:-4:-1]
                    stream.limits = [
                        self.threshold
                        * sum(w * h.get(block, math.nan) for w, h in zip((1, 0.1, 0.01), last, strict=False))
                        for block in range(len(stack))
                    ]
            stream.latest, stream.last, stream.seen = {}, self.evaluation, stream.seen + 1
        if all(s.limits for s in call.streams):
            limits = zip(*(s.limits for s in call.streams), strict=True)
            call.limits = [sum(values) / len(values) for values in limits]

        lists = [m for m in model.modules() if isinstance(m, torch.nn.ModuleList)]
        index = {block: i for i, (block, _) in enumerate(stack)}
        places = [(m, key, index[child]) for m in lists for key, child in m._modules.items() if child in index]
        for container, key, i in places:
            block, section = stack[i]
            container._modules[key] = _Probe(block, section.method, self._answer(call, i, block, section))
        try:
            return executor(*args, **kwargs)
        finally:
            for container, key, i in places:
                container._modules[key] = stack[i][0]

    def _answer(self, call, i, block, section):
        count = len(call.streams)

        def answer(*args, **kwargs):
            if i <= call.depth:
                self.reused += count
                hidden = [x.clone() for x in section.read(args, kwargs)]
                if i == call.depth:
                    hidden = [torch.cat(rows) for rows in zip(*(s.outputs[i] for s in call.streams), strict=True)]
                return section.pack(hidden, args, kwargs)
            result = getattr(block, section.method)(*args, **kwargs)
            rows = [[x.clone() for x in x.chunk(count)] for x in section.unpack(result)]
            changes = []
            for n, stream in enumerate(call.streams):
                now, before = [x[n] for x in rows], stream.outputs.get(i)
                stream.outputs[i] = now
                if before is not None:
                    squares = sum(((a - b) ** 2).sum().item() for a, b in zip(now, before, strict=True))
                    stream.latest[i] = squares / sum(a.numel() for a in now)
                    changes.append(stream.latest[i])
            if len(changes) == count:
                call.changes[i] = sum(changes) / count
            return result

        return answer

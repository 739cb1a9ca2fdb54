"""What every supported model has to do, in either host: checked against a network whose blocks are really replaced."""

import itertools
import weakref
from collections import Counter

import torch

from foresight.engine import history

STEPS = 9
FORECAST_STEPS = 14  # the first and the last are always computed


def flat(x) -> list[torch.Tensor]:
    """The tensors in a tensor or in nested lists, tuples and diffusers outputs (which are dicts)."""
    if isinstance(x, torch.Tensor):
        return [x]
    x = list(x.values()) if isinstance(x, dict) else x
    return [t for entry in x for t in flat(entry)] if isinstance(x, (list, tuple)) else []


def form(x):
    """What one result has in common with the next: nesting, types, shapes, dtypes and devices."""
    if isinstance(x, torch.Tensor):
        return x.shape, x.dtype, x.device
    if isinstance(x, dict):
        return type(x), {name: form(entry) for name, entry in x.items()}
    return type(x), [form(entry) for entry in x] if isinstance(x, (list, tuple)) else None


def copied(x) -> list[torch.Tensor]:
    return [t.clone() for t in flat(x)]


def latent_at(shape, step: int) -> torch.Tensor:
    """The latents move less and less, so that later changes are below lambda."""
    g = torch.Generator().manual_seed(1)
    return torch.randn(shape, generator=g) + torch.randn(shape, generator=g) * (1 - 0.5**step)


class _Stub(torch.nn.Module):
    """Stands in a ModuleList for a block that is left out; its other attributes and methods are the block's own."""

    def __init__(self, block, section, give):
        super().__init__()
        self.__dict__.update(_block=block, _section=section, _give=give)
        self.__dict__[section.method] = self._answer

    def __getattr__(self, name):
        return getattr(self._block, name)

    def _answer(self, *args, **kwargs):
        return self._section.pack(self._give(self._section.read(args, kwargs), kwargs), args, kwargs)


def _reference(model, stack, call, depth, stored, base):
    """`call()` with stubs for the blocks up to `depth`: the last one gives `stored` (+ the first input - `base`).

    Returns its result, what left every block that ran, and what entered the first one.
    """
    seen, entered = {}, []
    index = {block: i for i, (block, _) in enumerate(stack)}
    lists = [m for m in model.modules() if isinstance(m, (torch.nn.ModuleList, torch.nn.ModuleDict))]
    places = [(m, key, index[child]) for m in lists for key, child in m._modules.items() if child in index]

    def give(i):
        def answer(hidden, kwargs):
            if i == 0:
                entered[:] = copied(hidden)
            if i < depth:
                return copied(hidden)
            if base is None:
                return copied(stored)
            now, then, join = tuple(entered), tuple(base), stack[i][1].join
            if join is not None:
                now, then = (join(b, hidden, kwargs) for b in (now, then))
            return [n + (s - t) for n, s, t in zip(now, stored, then, strict=True)]

        return answer

    def observe(i, block, section):
        original = getattr(block, section.method)

        def observed(*args, **kwargs):
            if i == 0:
                entered[:] = copied(section.read(args, kwargs))
            result = original(*args, **kwargs)
            seen[i] = copied(section.unpack(result))
            return result

        block.__dict__[section.method] = observed

    try:
        for container, key, i in places:
            block, section = stack[i]
            if i <= depth:
                container._modules[key] = _Stub(block, section, give(i))
            else:
                observe(i, block, section)
        return copied(call()), seen, list(entered)
    finally:
        for container, key, i in places:
            block, section = stack[i]
            container._modules[key] = block
            block.__dict__.pop(section.method, None)


def check_reuse(model, stack, plain, active, end, kind: str) -> None:
    """Compare a run with reuse, evaluation by evaluation, with the network with stubs.

    Args:
        plain: `plain(step)` is the model's output at a step without Foresight.
        active: The same within a run with Foresight, called for each step in turn.
        end: Ends that run and returns its RunStats.
        kind: `PaperConfig.cache_kind` of the run.
    """
    ran, handles, outputs = [[False] * len(stack) for _ in range(STEPS)], [], []
    step = 0
    for i, (block, _) in enumerate(stack):
        for child in itertools.islice(block.modules(), 1, None):
            handles.append(child.register_forward_pre_hook(lambda *_, i=i: ran[step].__setitem__(i, True)))
    for step in range(STEPS):
        outputs.append(copied(active(step)))
    stats = end()
    for handle in handles:
        handle.remove()

    depths = [sum(1 for reused in e.reused if reused) - 1 for e in stats.evaluations]
    assert max(depths) >= 0, stats.summary()
    two_branches = any(section.method != "forward" for _, section in stack)  # one of them goes on in any case
    newest = {}  # block -> what it gave when it last ran, and what entered the first block then
    for step, depth in enumerate(depths):
        stored, base = newest.get(depth, (None, None))
        base = base if kind == "residual" else None
        expected, seen, entered = _reference(model, stack, lambda step=step: plain(step), depth, stored, base)
        for got, want in zip(outputs[step], expected, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
        newest.update({i: (output, entered) for i, output in seen.items()})
        assert ran[step] == [i > depth or two_branches for i in range(len(stack))]
    assert not any(section.method in block.__dict__ for block, section in stack)


def check_measuring(stack, plain, active, end) -> None:
    """A run in which nothing qualifies is the plain one, bit for bit, and it did measure."""
    outputs = [copied(plain(step)) for step in range(STEPS)]
    for step, expected in enumerate(outputs):
        got = copied(active(step))
        assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
        assert all(torch.isfinite(t).all() for t in got)
    assert not all(torch.equal(a, b) for a, b in zip(outputs[0], outputs[1], strict=True))
    stats = end()
    assert stats.reused == 0 and stats.inactive is None
    ratios = [ratio for e in stats.evaluations for ratio in e.ratio if ratio is not None]
    assert len(ratios) >= (STEPS - 3) * len(stack) - 1 and min(ratios) > 1
    assert not any(section.method in block.__dict__ for block, section in stack)


def _observed(model, stack, run) -> tuple[list, list[list[torch.Tensor]], list[Counter]]:
    """Of each step of a run its result's form, the tensors in it, and how often what is inside `model` was called.

    The calls are those of a block and of everything in it, by its place in the stack, and (-1) of everything else.
    """
    forms, tensors, calls = [], [], []
    places = {module: i for i, (block, _) in enumerate(stack) for module in block.modules()}
    handles = []
    for module in itertools.islice(model.modules(), 1, None):
        place = places.get(module, -1)
        handles.append(module.register_forward_pre_hook(lambda *_, place=place: calls[-1].update([place])))
    try:
        for step in range(FORECAST_STEPS):
            calls.append(Counter())
            result = run(step)
            forms.append(form(result))
            tensors.append(copied(result))
    finally:
        for handle in handles:
            handle.remove()
    return forms, tensors, calls


def check_forecast(model, stack, plain, active, end, seen=None) -> None:
    """Compare a run with forecasts, evaluation by evaluation, with the plain one, whose inputs are the same.

    Args:
        plain: `plain(step)` is the model's whole result at a step without Foresight.
        active: The same within a run with the method "forecast", called for each step in turn.
        end: Ends that run and returns its RunStats.
        seen: What is forecast of the tensors of a result, `seen(tensors, step)`; the tensors themselves by default.
    """
    seen = seen or (lambda tensors, step: tensors)
    forms, outputs, calls = _observed(model, stack, plain)
    ours, given, ran = _observed(model, stack, active)
    stats = end()
    assert ours == forms and all(torch.isfinite(t).all() for tensors in given for t in tensors)
    assert stats.inactive is None and len(stats.evaluations) == FORECAST_STEPS
    assert stats.total == FORECAST_STEPS and 0 < stats.reused < stats.total
    computed, forecasts = [], 0
    for step, evaluation in enumerate(stats.evaluations):
        if evaluation.kind == "reuse":
            forecasts += 1
            assert not ran[step]
            assert (evaluation.computed, evaluation.reused) == ([0], [1])
            newest, before, far = computed[-1], computed[-2:][0], step - computed[-1]
            two = seen(outputs[newest], newest), seen(outputs[before], before)
            slopes = [(n - b) / max(newest - before, 1) for n, b in zip(*two, strict=True)]  # 0 after the first one
            for got, n, slope in zip(seen(given[step], step), two[0], slopes, strict=True):
                reach = far / (1 + far / (history.DAMPING * FORECAST_STEPS))
                torch.testing.assert_close(got, n + slope * reach, rtol=1e-4, atol=1e-4)
        else:
            assert ran[step] == calls[step] and ran[step][0]
            assert (evaluation.computed, evaluation.reused) == ([1], [0])
            if not step or step - 1 in computed:  # else it pays back what the forecasts before it left behind
                assert all(torch.equal(a, b) for a, b in zip(given[step], outputs[step], strict=True))
            computed.append(step)
    assert stats.reused == forecasts


_plain: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()  # of each model what a plain run does, once for all


def check_no_forecast(model, stack, plain, active, end) -> None:
    """A run with the method "forecast" in which nothing is left out is the plain one, bit for bit."""
    if model not in _plain:
        _plain[model] = _observed(model, stack, plain)
    forms, outputs, calls = _plain[model]
    ours, given, ran = _observed(model, stack, active)
    stats = end()
    assert ours == forms and ran == calls and all(count[0] for count in ran)
    for got, want in zip(given, outputs, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
    assert stats.reused == 0 and stats.total == FORECAST_STEPS
    assert bool(stats.peak_bytes) == (stats.inactive is None)
    return stats

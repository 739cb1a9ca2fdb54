import contextlib
import inspect
import logging

import pytest
import torch

pytest.importorskip("diffusers", reason="diffusers is not installed here")

import diffusers
import diffusers.hooks

from foresight import ForecastConfig, PaperConfig
from foresight.hosts import blocks
from foresight.hosts import diffusers as adapter
from foresight.hosts.diffusers import apply_foresight, families
from support.diffusers_models import STEPS, arguments, loop, seeded, stack, stats_streams
from support.left import no_tensor_left

NOTHING = PaperConfig(threshold=1e-12, warmup_steps=3)
MUCH = PaperConfig(threshold=2.0, warmup_steps=3, sample_rows=0)


@pytest.mark.parametrize("run", [{}, {"batch": 2}, {"cfg": False}, {"heun": True}], ids=str)
def test_off_and_nothing_that_qualifies_are_the_plain_result(transformers, name, applied, run):
    run = {"steps": 8, **run}
    plain = loop(transformers[name], name, **run)
    for config in (PaperConfig(threshold=0), PaperConfig(reuse_interval=1), NOTHING):
        handle = applied(config)
        assert torch.equal(loop(transformers[name], name, **run), plain), config
        stats = handle.stats
        assert stats.reused == 0 and stats.total == len(stats.evaluations) * stats_streams(name, run) * len(
            stack(transformers, name)
        )
        handle.remove()
    assert torch.equal(loop(transformers[name], name, **run), plain)


@pytest.mark.parametrize("interval", [2, 3])
@pytest.mark.parametrize("kind", ["output", "residual"])
@pytest.mark.parametrize("run", [{"cfg": False}, {"cfg": False, "batch": 2}], ids=str)
def test_a_reused_prefix_is_skipped_and_replaced_by_what_it_gave_before(
    transformers, name, applied, kind, interval, run
):
    blocks = stack(transformers, name)
    inner, inputs, outputs, handles = [], [], [], []

    def enter(block, args, kwargs):
        inner.append([0] * len(blocks))
        outputs.append({})
        hidden = args[:2] if name == "hunyuan" else args[:1] or [kwargs["hidden_states"]]
        if name == "cogvideox":
            hidden = [kwargs["hidden_states"], kwargs["encoder_hidden_states"]]
        inputs.append([x.clone() for x in hidden])

    def leave(i, out):
        outputs[-1][i] = [x.clone() for x in (out if isinstance(out, tuple) else (out,))]

    for i, block in enumerate(blocks):
        for child in block.modules():
            if child is not block:
                handles.append(
                    child.register_forward_pre_hook(lambda *_, i=i: inner[-1].__setitem__(i, inner[-1][i] + 1))
                )
        if i == 0:
            handles.append(block.register_forward_pre_hook(enter, with_kwargs=True))
        handles.append(block.register_forward_hook(lambda b, a, out, i=i: leave(i, out)))
    config = PaperConfig(threshold=2.0, warmup_steps=3, sample_rows=0, cache_kind=kind, reuse_interval=interval)
    handle = applied(config)
    loop(transformers[name], name, steps=16, **run)
    for hook in handles:
        hook.remove()
    stored, depths = {}, []
    for e, evaluation in enumerate(handle.stats.evaluations):
        depth = sum(evaluation.reused) - 1
        depths.append(depth)
        assert [count > 0 for count in inner[e]] == [block > depth for block in range(len(blocks))]
        if depth >= 0:
            before = stored[depth]
            expected = outputs[before][depth]
            if kind == "residual":
                now, then = inputs[e], inputs[before]
                if name == "latte" and depth % 2:  # a temporal block has tokens and frames the other way round
                    now, then = ([x[0].unflatten(0, (-1, 3)).transpose(1, 2).flatten(0, 1)] for x in (now, then))
                expected = [n + (x - t) for n, x, t in zip(now, expected, then, strict=True)]
            for got, want in zip(outputs[e][depth], expected, strict=True):
                torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5 if kind == "residual" else 0)
        stored.update(dict.fromkeys(range(depth + 1, len(blocks)), e))
    assert max(depths) >= 0


def test_two_runs_in_a_row_are_each_as_alone(transformers, name, applied):
    handle = applied(MUCH)
    first = loop(transformers[name], name, seed=1)
    stats = handle.stats
    assert stats.reused
    assert torch.equal(loop(transformers[name], name, seed=1), first)
    assert handle.stats is not stats and handle.stats.reused == stats.reused
    handle.remove()
    applied(MUCH)
    assert torch.equal(loop(transformers[name], name, seed=1), first)


def test_a_loop_that_never_resets_still_starts_a_new_run(transformers, name, applied):
    handle = applied(MUCH)
    first = loop(transformers[name], name)
    assert torch.equal(loop(transformers[name], name, reset=False), first)
    assert torch.equal(loop(transformers[name], name, reset=False), first)
    assert [e.kind for e in handle.stats.evaluations[:4]] == ["warmup"] * 3 + ["full"]


def test_an_interrupted_run_leaves_nothing_behind(transformers, name, applied, caplog):
    plain = loop(transformers[name], name)
    handle = applied(MUCH)
    reused = loop(transformers[name], name)
    with pytest.raises(KeyboardInterrupt):
        loop(transformers[name], name, fail_at=7)  # between the calls of the model
    assert torch.equal(loop(transformers[name], name), reused)

    def interrupt(*_):
        raise KeyboardInterrupt

    hook = next(m for m in stack(transformers, name)[-1].modules() if m is not stack(transformers, name)[-1])
    hook = hook.register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        loop(transformers[name], name)  # inside a block
    hook.remove()
    # the record is that of the run that was cut off, in its first evaluation
    assert handle.stats.broken_off and not handle.stats.evaluations and "could not read" not in caplog.text
    assert not [block for block in stack(transformers, name) if "forward" in block.__dict__]
    assert torch.equal(loop(transformers[name], name), reused)
    handle.remove()
    assert torch.equal(loop(transformers[name], name), plain)


@pytest.mark.parametrize("name", ["wan", "hunyuan"])
def test_cond_and_uncond_are_streams_of_their_own(transformers, name, applied):
    handle = applied(MUCH)
    loop(transformers[name], name)
    assert len(handle.stats.evaluations) == STEPS and handle.stats.total == STEPS * 2 * len(stack(transformers, name))


def test_heun_evaluates_twice_per_step(transformers, name, applied):
    handle = applied(MUCH)
    loop(transformers[name], name, heun=True)
    assert len(handle.stats.evaluations) == 2 * STEPS - 1


def test_remove_leaves_the_transformer_as_it_was(transformers, name):
    model = transformers[name]
    before = dict(model.__dict__)
    handle = apply_foresight(model, MUCH)
    assert "forward" in model.__dict__
    handle.remove()
    handle.remove()
    assert "forward" not in model.__dict__ and model.forward.__func__ is type(model).forward
    assert set(model.__dict__) - set(before) <= {"_diffusers_hook"} and not model._diffusers_hook.hooks
    assert handle.stats is None


def test_applying_twice_replaces_the_first(transformers, name, applied):
    first, second = applied(MUCH), applied(NOTHING)
    plain_run = loop(transformers[name], name)
    assert first.stats is None and second.stats.reused == 0
    first.remove()  # no longer there: takes nothing off
    assert torch.equal(loop(transformers[name], name), plain_run) and len(second.stats.evaluations) == STEPS


@pytest.mark.parametrize("name", ["wan"])
def test_another_hook_on_the_transformer_stays(transformers, name, applied):
    class Count(diffusers.hooks.ModelHook):
        calls = 0

        def pre_forward(self, module, *args, **kwargs):
            self.calls += 1
            return args, kwargs

    count = Count()
    registry = diffusers.hooks.HookRegistry.check_if_exists_or_initialize(transformers[name])
    handle = applied(MUCH)
    registry.register_hook(count, "count")
    loop(transformers[name], name)
    handle.remove()
    assert count.calls == 2 * STEPS
    loop(transformers[name], name)
    assert count.calls == 4 * STEPS
    registry.remove_hook("count", recurse=False)
    transformers[name].__dict__.pop("forward", None)


def test_automatic_warmup(transformers, name, applied):
    handle = applied(PaperConfig(threshold=2.0))
    loop(transformers[name], name, steps=30)
    kinds = [e.kind for e in handle.stats.evaluations]
    assert kinds[:5] == ["warmup"] * 5 and kinds[5] == "full"  # 15 % of an even grid of 30 is 4.5
    handle.remove()
    handle = applied(PaperConfig(threshold=2.0), steps=60)
    loop(transformers[name], name, steps=30)
    assert [e.kind for e in handle.stats.evaluations].index("full") == 9 and handle.stats.steps == 60


def test_one_line_per_run(transformers, name, applied, caplog):
    applied(MUCH)
    with caplog.at_level(logging.INFO, logger=adapter.__name__):
        loop(transformers[name], name)
    (line,) = [r.getMessage() for r in caplog.records if r.name == adapter.__name__]
    assert line.startswith("Foresight left out ")


def test_an_unsupported_model_is_refused_by_name():
    with pytest.raises(blocks.UnsupportedModel) as error:
        apply_foresight(torch.nn.Identity(), PaperConfig())
    text = str(error.value)
    assert "Identity" in text and all(family.name in text for family in families.FAMILIES)
    assert "Use ForecastConfig" in text
    with pytest.raises(
        blocks.UnsupportedModel, match="needs one of hidden_states, sample, x and one of timestep, .* it has input"
    ):
        apply_foresight(torch.nn.Identity())


@pytest.mark.parametrize("pipeline", ["wan", "hunyuan", "cogvideox", "ltx", "latte"])
def test_the_stock_pipelines_call_the_transformer_as_the_loop_here_does(pipeline):
    """What the adapter relies on: the context names, the keyword `timestep`, and the reset at the end."""
    cls = {
        "wan": diffusers.WanPipeline,
        "hunyuan": diffusers.HunyuanVideoPipeline,
        "cogvideox": diffusers.CogVideoXPipeline,
        "ltx": diffusers.LTXPipeline,
        "latte": diffusers.LattePipeline,
    }[pipeline]
    source = inspect.getsource(cls.__call__)
    assert "timestep=" in source and "maybe_free_model_hooks()" in source
    expected = {"wan": ['"cond"', '"uncond"'], "hunyuan": ['"cond"', '"uncond"'], "latte": []}.get(
        pipeline, ['"cond_uncond"']
    )
    assert all(f"cache_context({context}" in source for context in expected)


@pytest.mark.parametrize("config", [PaperConfig(threshold=2.0), ForecastConfig(threshold=2.0)], ids=lambda c: c.name)
def test_an_interrupted_run_keeps_its_record(transformers, name, applied, config):
    handle = applied(config, steps=20)
    loop(transformers[name], name, steps=20)
    whole, calls = handle.stats, [0]

    def interrupt(*_):
        calls[0] += 1
        if calls[0] == 4:
            raise KeyboardInterrupt

    hook = stack(transformers, name)[0].register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        loop(transformers[name], name, steps=20)
    hook.remove()
    stopped = handle.stats
    assert stopped is not whole and 0 < len(stopped.evaluations) < 20
    kinds = [e.kind for e in stopped.evaluations]
    assert kinds == [e.kind for e in whole.evaluations][: len(kinds)]


@pytest.mark.parametrize("config", [PaperConfig(threshold=2.0), ForecastConfig(threshold=2.0)], ids=lambda c: c.name)
@pytest.mark.parametrize("fails", [False, True])
def test_a_run_leaves_no_tensor_behind(transformers, name, config, fails):
    for again in range(2):  # what is made once and kept is there after the first
        with no_tensor_left() if again else contextlib.nullcontext():
            handle = apply_foresight(transformers[name], config, steps=20)
            with pytest.raises(KeyboardInterrupt) if fails else contextlib.nullcontext():
                loop(transformers[name], name, steps=20, fail_at=12 if fails else None)
            handle.remove()
            assert handle.stats.reused


def test_an_error_of_the_device_hides_no_error_of_the_host(transformers, name, applied, monkeypatch, caplog):
    handle = applied(MUCH)

    def broken(*_, **__):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    def fail(*_):
        monkeypatch.setattr(adapter.hook.Run, "close", broken)
        raise KeyboardInterrupt

    hook = stack(transformers, name)[0].register_forward_pre_hook(fail)
    with pytest.raises(KeyboardInterrupt):
        loop(transformers[name], name)
    hook.remove()
    monkeypatch.undo()
    assert len(handle.stats.evaluations) == 1 and "could not read its last measurements" in caplog.text


VERSIONS = [("0.35.2", True), ("0.41.0", True), ("0.42.1", False), ("1.0", False)]


@pytest.mark.parametrize(("version", "refused"), VERSIONS)
def test_a_diffusers_that_is_too_old_is_refused_by_name(transformers, monkeypatch, version, refused):
    monkeypatch.setattr(diffusers, "__version__", version)
    if refused:
        said = f"Foresight needs diffusers 0.42 or newer, this is {version}: pip install -U diffusers"
        with pytest.raises(ImportError, match=said):
            apply_foresight(transformers["wan"], MUCH)
        assert "forward" not in transformers["wan"].__dict__
    else:
        apply_foresight(transformers["wan"], MUCH).remove()


def test_a_first_level_of_0_is_no_division_by_zero(transformers, applied, name):
    """What a rank sees whose tokens are all of a kept first frame, with a timestep for each token."""
    for config in (PaperConfig(threshold=2.0), ForecastConfig(threshold=2.0)):
        handle = applied(config)
        with torch.no_grad():
            for _ in range(8):
                x = seeded(1, 4, 3, 8, 8, seed=3)
                transformers[name](**arguments(name, x, 0, seeded(1, 6, 16, seed=1)))
        assert len(handle.stats.evaluations) == 8

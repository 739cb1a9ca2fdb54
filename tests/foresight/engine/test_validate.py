"""With `validate`, what is left out is computed for the record alone: its error is known, and nothing else changes."""

import dataclasses
import json
import math

import pytest
import torch

from foresight import ForecastConfig, PaperConfig
from foresight.engine import Run
from foresight.engine.blend import Blend
from support.toy import Drifting, one_call

STEPS = 20


def bent(u: float) -> float:
    return 1 + 0.02 * u + 0.001 * u**2


def sampled(config, worst=1, blended=False):
    """Euler's steps with an output bent(u) that draws a random number each time; path, record, numbers drawn, given."""
    schedule = [1 - k / STEPS for k in range(STEPS + 1)]
    run = Run(config, schedule=schedule, noise=lambda sigma: sigma, blended=blended)
    x, path, drawn, given = torch.full((worst, 4), 5.0), [], {}, []
    torch.manual_seed(0)
    for k in range(STEPS):

        def compute(k=k):
            drawn.setdefault(k, []).append(torch.rand(()).item())
            return (torch.full((worst, 4), bent(k)),)

        run.begin_evaluation(schedule[k], (x,))
        (d,) = run.output("x", x.shape, compute, x.device, lambda out: (torch.full_like(out[0], 2.0),))
        given.append(d[0, 0].item())
        x = x + (schedule[k + 1] - schedule[k]) * (x - d) / schedule[k]
        path.append(x)
    return path, run.close(), drawn, given


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_the_same_run_with_the_real_error_of_what_was_left_out(gamma):
    config = ForecastConfig(threshold=gamma)
    plain, stats, drawn, _ = sampled(config)
    ours, validated, drawn_too, given = sampled(dataclasses.replace(config, validate=True))
    assert all(map(torch.equal, plain, ours))
    kinds = [e.kind for e in stats.evaluations]
    assert kinds == [e.kind for e in validated.evaluations] and kinds.count("reuse") >= 5
    assert (stats.reused, stats.total) == (validated.reused, validated.total)
    for k, (a, b) in enumerate(zip(stats.evaluations, validated.evaluations, strict=True)):
        assert (a.computed, a.reused, a.ratio, a.expected) == (b.computed, b.reused, b.ratio, b.expected)
        if a.kind == "reuse":
            assert a.missed is None and b.missed == pytest.approx(abs(given[k] - bent(k)) / 2, rel=1e-3, abs=1e-6)
        else:
            assert a.missed == b.missed and drawn[k] == drawn_too[k]  # the random numbers go on as without
    assert all(len(drawn_too[k]) == 1 for k in range(STEPS)) and len(drawn) == STEPS - kinds.count("reuse")


def test_a_computed_evaluation_says_what_its_forecast_would_have_missed():
    _, stats, _, _ = sampled(ForecastConfig(threshold=2.0))
    measured = [e.missed for e in stats.evaluations if e.kind == "full"]
    assert measured and all(missed is not None and missed > 0 for missed in measured)
    assert stats.evaluations[0].missed is None  # there was nothing to forecast it from


def test_the_speed_up_is_that_of_a_run_without():
    _, stats, _, _ = sampled(ForecastConfig(threshold=2.0, validate=True))
    computed = STEPS - stats.reused
    assert stats.estimated_speedup == pytest.approx(STEPS / computed) and stats.seconds_reuse is None
    off = max(stats.missed)
    assert f"{off:.2%} at most: without validate it would have been about {STEPS / computed:.2f}x" in stats.summary()


def test_reused_blocks_are_validated_too():
    """What the blocks would have given, against what a reused prefix gave; no count and no state moves."""

    def played(validate):
        net, blocks = Drifting(), range(5)
        run = Run(PaperConfig(threshold=2.0, warmup_steps=3, sample_rows=0, validate=validate), steps=12)
        given, plain = [], []
        for e in range(12):
            x = net.input(e, 1)

            def compute(x=x):
                left = one_call(run, (x,), [lambda y, b=b: (net.block(b, y[0]),) for b in blocks])
                return left[-1]

            run.begin_evaluation()
            given.append(run.output("x", "x", compute, x.device)[0])
            for b in blocks:
                x = net.block(b, x)
            plain.append(x)
        return given, plain, run.close()

    given, plain, stats = played(True)
    without, _, record = played(False)
    assert all(map(torch.equal, given, without)) and stats.reused == record.reused > 0
    for k, (a, b) in enumerate(zip(stats.evaluations, record.evaluations, strict=True)):
        assert (a.computed, a.reused, a.ratio) == (b.computed, b.reused, b.ratio) and b.missed is None
        if a.kind == "reuse":
            off = (given[k] - plain[k]).square().mean().sqrt() / plain[k].square().mean().sqrt()
            assert a.missed == pytest.approx(off.item(), rel=1e-4, abs=1e-8)
        else:
            assert a.missed is None


def test_where_the_sampler_takes_a_blend_its_error_counts():
    """Guidance 3: cond and uncond are off by opposite amounts, which the blend makes much more of."""
    g, schedule = 3.0, [1 - k / STEPS for k in range(STEPS + 1)]
    config = ForecastConfig(threshold=2.0, validate=True)
    run = Run(config, schedule=schedule, noise=lambda sigma: sigma, blended=True)
    noise = torch.randn(1, 64, generator=torch.Generator().manual_seed(0))
    shapes = torch.randn(2, 1, 64, generator=torch.Generator().manual_seed(1))
    x, off = noise, []
    for k in range(STEPS):
        run.begin_evaluation(schedule[k], (x,))
        real = [shapes[i] * bent(k) * (1 if i else -1) for i in range(2)]
        outs = [
            run.output(name, "x", lambda d=d: (d.clone(),), x.device, lambda out, x=x: (x - out[0],))[0]
            for name, d in zip(("uncond", "cond"), real, strict=True)
        ]
        blend, should = (u + g * (c - u) for u, c in (outs, real))
        off.append(((blend - should).norm() / (x - should).norm()).item())
        x = x + (schedule[k + 1] - schedule[k]) * (x - blend) / schedule[k]
    stats = run.close()
    left_out = [k for k, e in enumerate(stats.evaluations) if e.kind == "reuse"]
    assert len(left_out) > 5
    for k in left_out:
        assert stats.evaluations[k].missed == pytest.approx(off[k], rel=0.02, abs=1e-5), k


@pytest.mark.parametrize("blended", [False, True])
def test_an_output_that_is_not_finite_is_no_figure(blended):
    """A black image in fp16: the record stays what a browser can read."""
    schedule = [1 - k / STEPS for k in range(STEPS + 1)]
    config = ForecastConfig(threshold=2.0, validate=True)
    run, x = Run(config, schedule=schedule, noise=lambda sigma: sigma, blended=blended), torch.randn(1, 8)
    for k in range(STEPS):
        run.begin_evaluation(schedule[k], (x,))
        value = math.nan if k > 6 else 1 + 0.01 * k
        (d,) = run.output("x", "x", lambda v=value: (torch.full((1, 8), v),), x.device, lambda out, x=x: (x - out[0],))
        x = x + (schedule[k + 1] - schedule[k]) * (x - d) / schedule[k]
    stats = run.close()
    assert stats.reused and "nan" not in stats.summary()
    json.dumps(stats.to_dict(), allow_nan=False)


def test_the_blend_of_outputs_is_where_the_outputs_are():
    """What is compared from step to step may wait in RAM; what was left out is on the device (here meta)."""
    blend, x = Blend(flow=True), torch.randn(1, 16)
    cond, uncond = torch.randn(2, 1, 16)
    blend.begin(1.0, (x,), None)
    blend.note((cond,), None)
    blend.note((uncond,), None)
    following = x + (0.9 - 1.0) * (x - (uncond + 3 * (cond - uncond)))
    blend.judge(blend.measure((following,)).tolist(), 0.9)
    (found,) = blend.weighted([(cond,), (uncond,)])
    torch.testing.assert_close(found, -0.1 * (3 * cond - 2 * uncond), rtol=1e-3, atol=1e-4)
    assert blend.weighted([(cond.to("meta"),), (uncond.to("meta"),)])[0].device.type == "meta"


def test_without_memory_to_validate_the_run_goes_on_as_it_would_have():
    """A video is never lost to what is computed for the record alone."""
    schedule = [1 - k / STEPS for k in range(STEPS + 1)]

    def played(validate):
        run, x, calls = Run(ForecastConfig(threshold=2.0, validate=validate), schedule=schedule), torch.ones(1, 4), []
        for k in range(STEPS):

            def compute(k=k):
                calls.append(k)
                if run.kind == "reuse" and k > 8:
                    raise torch.OutOfMemoryError("out of memory")
                return (torch.full((1, 4), bent(k)),)

            run.begin_evaluation(schedule[k], (x,))
            (d,) = run.output("x", "x", compute, x.device)
            x = x + (schedule[k + 1] - schedule[k]) * (x - d) / schedule[k]
        return x, run.close(), calls

    (plain, without, _), (ours, stats, calls) = played(False), played(True)
    kinds = [e.kind for e in without.evaluations]
    assert torch.equal(ours, plain) and stats.inactive is None and [e.kind for e in stats.evaluations] == kinds
    left_out = [k for k, kind in enumerate(kinds) if kind == "reuse"]
    first = next(k for k in left_out if k > 8)  # the only one that was tried without memory
    assert [k for k in left_out if k in calls] == [k for k in left_out if k <= first] and left_out[-1] > first
    assert [stats.evaluations[k].missed is not None for k in left_out] == [k < first for k in left_out]

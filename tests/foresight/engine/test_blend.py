"""How much of each output the sampler takes, found on the latents alone."""

import itertools

import pytest
import torch

from foresight.engine import ForecastConfig, Run
from foresight.engine.blend import Blend
from foresight.engine.plan import MU

ITEMS, SIZE = 2, 4096


def seeded(seed, dtype=torch.float32):
    return torch.randn((ITEMS, SIZE), generator=torch.Generator().manual_seed(seed)).to(dtype)


def judged(outputs, missed, step, level=1.0, following=0.9, flow=True, x=None, dtype=torch.float32):
    """The move and the error after one evaluation whose step is `step` of the latent x."""
    x = seeded(0, dtype) if x is None else x
    blend = Blend(flow)
    blend.begin(level, (x,), None)
    for output, lost in zip(outputs, missed, strict=True):
        blend.note((output,), (lost,))
    after = (x.float() + step).to(dtype)
    sums = blend.measure((after,))
    return blend.judge(sums.tolist(), following), blend


def expected(missed, units, weights):
    m = sum(w * x for w, x in zip(weights, missed, strict=True))
    r = sum(w * x for w, x in zip(weights, units, strict=True))
    return float((m.square().sum(1) / r.square().sum(1)).sqrt().max())


@pytest.mark.parametrize("guidance", [1.5, 4.0, 7.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_guidance_of_cond_and_uncond(guidance, dtype):
    x = seeded(0, dtype)
    units = [seeded(1), seeded(1) + 0.2 * seeded(2)]
    missed = [0.05 * seeded(3), 0.05 * seeded(3) + 0.02 * seeded(4)]
    weights = [1 - guidance, guidance]
    step = -0.1 * sum(w * r for w, r in zip(weights, units, strict=True))
    move, blend = judged([x.float() - r for r in units], missed, step, x=x, dtype=dtype)
    assert blend.errors == [
        pytest.approx(expected(missed, units, weights), rel=0.05 if dtype == torch.bfloat16 else 1e-3)
    ]
    assert move.continues and move.euler and move.price == pytest.approx(1, abs=0.02)


def test_one_output_is_its_own_blend():
    unit, lost = seeded(1), 0.1 * seeded(2)
    _, blend = judged([seeded(0) - unit], [lost], -0.1 * unit)
    assert blend.errors == [pytest.approx(expected([lost], [unit], [1.0]), rel=1e-4)]


def test_two_outputs_that_are_the_same():
    unit, lost = seeded(1), 0.1 * seeded(2)
    move, blend = judged([seeded(0) - unit] * 2, [lost] * 2, -0.1 * unit)
    assert move.continues and blend.errors == [pytest.approx(expected([lost], [unit], [1.0]), rel=1e-3)]


@pytest.mark.parametrize("places", [0, 2, 64])
def test_one_output_is_without_guidance_unless_another_process_may_have_another(places):
    """64 processes are more than can tell one another of their outputs."""
    blend = Blend(flow=True, places=places)
    assert blend.guides  # nothing has been seen
    for outputs, guides in ((1, places > 0), (2, True), (0, True), (1, places > 0), (0, places > 0)):
        blend.begin(1.0, (seeded(0),), None)
        for seed in range(outputs):
            blend.note((seeded(1 + seed),), None)
        blend.begin(0.9, (seeded(0),), None)
        assert blend.guides is guides, outputs


@pytest.mark.parametrize("begins", [0, 4, 99])
def test_what_is_guided_from_some_step_on_is_planned_as_that_from_there_on(begins):
    """Euler's steps in a host that sees conds: twelve steps, of which those before `begins` have one."""
    steps, left_out = 12, []
    levels = [5 * t / (1 + 4 * t) for t in (1 - k / steps for k in range(steps + 1))]
    run, x = Run(ForecastConfig(), steps=steps, noise=lambda s: s, blended=True, first_step=0), seeded(0)
    for k, (level, following) in enumerate(itertools.pairwise(levels)):
        run.begin_evaluation(level, (x,))
        names, given = ["cond", "uncond"] if k >= begins else ["cond"], []
        for name in names:
            output = 0.1 * seeded(1) + (0.02 * k if name == "cond" else 0.0)
            given.append(run.output(name, 0, lambda d=output: (d,), x.device, lambda d, x=x: (x - d[0],))[0])
        denoised = given[0] if len(given) == 1 else given[1] + 4 * (given[0] - given[1])
        x = denoised + following / level * (x - denoised)
        left_out.append(run.kind == "reuse")
        counts = run._policy._mu / (MU * 0.5)
        # what an evaluation has shown counts in the next one; of the sampler, the second step tells the first thing
        guided = k < 2 or begins < k
        assert counts == pytest.approx(1 if guided else (16 / 12) ** 2, rel=0.01), k
    assert run.close().inactive is None and any(left_out)


def test_what_the_pipeline_holds_fixed_does_not_count():
    fixed = torch.arange(SIZE) < SIZE // 3
    units, missed = [seeded(1), seeded(1) + 0.2 * seeded(2)], [0.05 * seeded(3), 0.05 * seeded(4)]
    step = -0.1 * (units[0] + 3 * (units[1] - units[0])) * ~fixed
    move, blend = judged([seeded(0) - r for r in units], missed, step)
    free = [[x[:, ~fixed] for x in tensors] for tensors in (missed, units)]
    assert move.euler and blend.errors == [pytest.approx(expected(*free, [-2.0, 3.0]), rel=1e-3)]


def test_what_has_nothing_to_do_with_the_outputs_does_not_continue():
    move, _ = judged([seeded(0) - seeded(1)], [seeded(2)], seeded(3))
    assert not move.continues
    back, _ = judged([seeded(0) - seeded(1)], [seeded(2)], 0.1 * seeded(1))
    assert not back.continues


def test_noise_that_the_sampler_adds_has_its_price():
    unit = seeded(1)
    move, _ = judged([seeded(0) - unit], [0.1 * seeded(2)], -0.2 * unit + 0.2 * seeded(3))
    assert move.continues and not move.euler and move.price == pytest.approx(2, abs=0.2)


@pytest.mark.parametrize(("new", "noisy"), [(0.2, False), (0.4, True)])
@pytest.mark.parametrize("weights", [(1.0,), (-2.0, 3.0)])
def test_noise_that_is_renewed_is_seen_where_only_the_conds_are_known(new, noisy, weights):
    units = [seeded(1), seeded(1) + 0.2 * seeded(2)][: len(weights)]
    guided = sum(w * r for w, r in zip(weights, units, strict=True))
    noise = new * guided.square().mean().sqrt() * seeded(3)
    move, _ = judged([seeded(0) - r for r in units], [0.1 * seeded(4)] * len(units), -0.2 * guided + noise)
    assert move.continues and move.noisy == noisy and move.price == pytest.approx(2.0, abs=0.2)


def test_a_model_that_is_no_flow_model():
    x, units, missed = seeded(0), [seeded(1), seeded(1) + 0.2 * seeded(2)], [0.05 * seeded(3), 0.05 * seeded(4)]
    step = -0.02 * x + 0.1 * (units[0] + 3 * (units[1] - units[0]))
    move, blend = judged(units, missed, step, flow=False)
    assert move.euler and blend.errors == [pytest.approx(expected(missed, units, [-2.0, 3.0]), rel=1e-3)]


def test_weights_of_an_exact_step_outlast_those_of_multistep_ones():
    units, missed = [seeded(1), seeded(1) + 0.2 * seeded(2)], [0.05 * seeded(3), 0.05 * seeded(4)]
    x, blend = seeded(0), Blend(flow=True)
    guided = units[0] + 3 * (units[1] - units[0])
    for level, step in ((1.0, -0.1 * guided), (0.9, -0.1 * guided + 0.03 * (units[1] - units[0]) + 0.02 * seeded(5))):
        blend.begin(level, (x,), None)
        for unit, lost in zip(units, missed, strict=True):
            blend.note((x - unit,), (lost,))
        x = x + step
        blend.judge(blend.measure((x,)).tolist(), level * 0.9)
    assert blend.errors == [pytest.approx(expected(missed, units, [-2.0, 3.0]), rel=1e-3)]


def test_nothing_is_known_of_another_latent():
    blend = Blend(flow=True)
    assert blend.measure((seeded(0),)) is None
    blend.begin(1.0, (seeded(0),), None)
    blend.note((seeded(1),), None)
    assert blend.measure((seeded(0)[:1],)) is None and blend.nbytes == 2 * seeded(0).nbytes


@pytest.mark.parametrize("new", [0.0, 0.5])
def test_again_at_the_same_level_the_noise_is_as_renewed_as_in_the_last_step(new):
    x, unit, blend = seeded(0), seeded(1), Blend(flow=True)
    for level, step in ((1.0, -0.2 * unit + new * seeded(3)), (0.9, -1e-3 * unit)):
        blend.begin(level, (x,), None)
        blend.note((x - unit,), (0.1 * seeded(2),))
        x = x + step
        move = blend.judge(blend.measure((x,)).tolist(), 0.9)
        assert move.continues and move.noisy == (new > 0)


@pytest.mark.parametrize(("far", "near"), [(0.01, True), (1.0, False)])
def test_again_at_the_same_level_is_near_or_another_latent(far, near):
    x, unit, blend = seeded(0), seeded(1), Blend(flow=True)
    for level, step in ((1.0, -0.1 * unit), (0.9, far * 0.1 * seeded(2))):
        blend.begin(level, (x,), None)
        blend.note((x - unit,), None)
        x = x + step
        move = blend.judge(blend.measure((x,)).tolist(), 0.9)
    assert move.continues == near and not move.euler


def test_outputs_for_another_latent_say_nothing():
    blend = Blend(flow=True)
    blend.begin(1.0, (seeded(0),), None)
    for output in (seeded(1), seeded(1)[:, :9], seeded(1)):
        blend.note((output,), None)
    assert blend.measure((seeded(2),)) is None

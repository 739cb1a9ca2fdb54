"""How many steps a run has, from its first noise levels: all schedules of a kind, by hand."""

import math

import pytest
import torch

from foresight import ForecastConfig
from foresight.engine import Run
from foresight.engine.even import Even, even_of, linear_quadratic, shifted
from foresight.engine.schedule import Schedule

MOST = 1000


def flow(steps, shift, end=0.0):
    """Shares of noise before each step; `end` is the time left at the last one where that is none of the even ones."""
    each = (1 - end) / (steps - 1) if end else 1 / steps
    return [shifted(1 - k * each, shift) for k in range(steps)]


def stretched(levels, lowest=0.1):
    """As LTX-Video's, whose last level is 0.1."""
    return [1 - (1 - level) * (1 - lowest) / (1 - levels[-1]) for level in levels]


def found(levels, dtype=torch.float32, scale=1.0):
    """The number of steps that is told when each level has been seen."""
    seen = [float(torch.tensor(level * scale).to(dtype)) for level in levels]
    fits = [even_of(seen[: n + 1], lambda level: min(1.0, level / scale), MOST) for n in range(len(seen))]
    return [fit and fit.steps for fit in fits]


def test_three_levels_tell_all_of_an_even_schedule():
    # t = 1, 3/4, 1/2 and a shift of 3: sigma = 3 t / (1 + 2 t)
    fit = even_of([1.0, 2.25 / 2.5, 1.5 / 2], lambda level: level, MOST)
    assert (fit.first, fit.step, fit.shift) == pytest.approx((1.0, 0.25, 3.0)) and fit.steps == 4
    assert even_of([1.0, 0.9], lambda level: level, MOST) is None


@pytest.mark.parametrize("scale", [1.0, 1000.0])
@pytest.mark.parametrize("shift", [3.0, 7.7, 12.0])
@pytest.mark.parametrize("steps", [8, 20, 30, 50])
def test_the_number_of_steps_is_known_at_the_third_level(steps, shift, scale):
    """Within one, which is what the rounding of fifty levels near to 1 may leave open."""
    for levels in (flow(steps, shift), flow(steps, shift, end=shifted(0.001, shift)), stretched(flow(steps, shift))):
        told = found(levels, scale=scale)
        assert told[:2] == [None, None] and None not in told[2:]
        assert all(abs(n - steps) <= 1 for n in told[2:])


@pytest.mark.parametrize("steps", [8, 20, 30, 50])
def test_levels_that_look_rounded_are_known_a_little_later(steps):
    """Without a shift they are round numbers, as if something had rounded them."""
    for levels in (flow(steps, 1.0), flow(steps, 1.0, end=0.001)):
        known = [n for n in found(levels, scale=1000.0) if n]
        assert len(known) > steps / 2 and all(abs(n - steps) <= 1 + steps // 20 for n in known)


@pytest.mark.parametrize(("steps", "shift"), [(20, 3.0), (30, 5.0), (50, 7.7)])
def test_a_run_from_the_middle(steps, shift):
    told = found(flow(steps, shift)[steps // 2 :])
    assert told[2:] == [steps // 2] * (steps // 2 - 2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("steps", "shift"), [(12, 5.0), (20, 1.0), (28, 3.2), (50, 3.0), (50, 12.0)])
def test_rounded_levels_leave_it_open_until_they_do_not(steps, shift, dtype):
    told = found(flow(steps, shift), dtype, 1000.0)
    if dtype == torch.bfloat16 and shift > 1:
        assert told[2:4] == [None, None]
    known = [n for n in told if n]
    assert known and told[-len(known) :] == known  # what is known is not forgotten
    assert (
        known and all(abs(n - steps) <= 1 + 0.15 * steps for n in known) and abs(known[-1] - steps) <= 1 + steps // 20
    )


def test_whole_numbers_that_are_even_by_themselves():
    """Timesteps of DDIM and the like, as pipelines of older models have them."""
    leading, trailing, spread = range(951, 0, -50), range(999, 0, -50), [round(999 - k * 999 / 19) for k in range(20)]
    for levels in (leading, trailing, spread):
        told = [n for n in found([level / levels[0] for level in levels], scale=float(levels[0])) if n]
        assert told and all(abs(n - 20) <= 2 for n in told) and abs(told[-1] - 20) <= 1


@pytest.mark.parametrize("levels", [[1.0, 0.5, 0.5], [1.0, 0.9, 0.95], [1.0, 0.5, 0.0], [1.0, 0.9, -0.2], [1.0] * 5])
def test_what_is_no_schedule_tells_nothing(levels):
    assert even_of(levels, lambda level: level, MOST) is None


def karras(steps):
    return [(0.999 ** (1 / 7) + k / (steps - 1) * (0.004 ** (1 / 7) - 0.999 ** (1 / 7))) ** 7 for k in range(steps)]


def beta(steps):
    """The levels of a beta distribution of 0.6, near the two ends of the time; a parabola is like it."""
    return [0.5 + 0.5 * math.cos(math.pi * k / steps) for k in range(steps)]


@pytest.mark.parametrize("steps", [12, 20, 50])
@pytest.mark.parametrize("made", [karras, beta, lambda steps: [0.995 * 0.8**k for k in range(steps)]])
def test_of_steps_that_are_not_even_nothing_is_told(made, steps):
    """Three levels fit any; it shows at the fourth, of fifty at the sixth."""
    assert not any(found(made(steps))[3 if steps < 50 else 5 :])
    schedule = Schedule(ForecastConfig(), noise=lambda level: level)
    for level in made(steps)[:6]:
        schedule.place(level)
    assert schedule.length is None


def quadratic(steps):
    """As Mochi's and those of LTX's condition pipeline: half of the steps over 0.025 of the noise, the others grow."""
    half, gone = steps // 2, 0.025
    slope, rest = gone / half, steps - half
    bend = (1 - gone - slope * rest) / rest**2
    return [1 - (slope * k if k < half else gone + slope * (k - half) + bend * (k - half) ** 2) for k in range(steps)]


@pytest.mark.parametrize("scale", [1.0, 1000.0])
@pytest.mark.parametrize("steps", [8, 20, 30, 50, 64, 100])
def test_linear_quadratic_levels_are_not_the_first_of_hundreds(steps, scale):
    """The number stays known where the levels are no longer even, and what is planned ends where the run does."""
    schedule = Schedule(ForecastConfig(), noise=lambda level: min(1.0, level / scale))
    told = []
    for level in quadratic(steps):
        schedule.place(float(torch.tensor(level * scale)))
        told.append(schedule.length)
    assert told == [None, None] + [steps] * (steps - 2)
    assert len(schedule.outlook()) == steps + 1


@pytest.mark.parametrize("steps", [8, 12, 20, 30, 50, 100, 150])
def test_even_steps_are_not_taken_for_linear_quadratic_ones(steps):
    fp32 = [[float(torch.tensor(x)) for x in flow(steps, 1 + k / 20)[:3]] for k in range(400)]
    assert [linear_quadratic(levels, lambda level: level) for levels in fp32] == [None] * 400


def test_hundreds_of_even_steps_are_known_once_there_are_more_than_a_linear_quadratic_run_has():
    told, schedule = [], Schedule(ForecastConfig(), noise=lambda level: level)
    for level in flow(200, 1.0)[:12]:
        schedule.place(level)
        told.append(schedule.length)
    assert told[2:10] == [10] * 8 and told[10:] == [200, 200]


def lengths(levels, **known):
    """What is known of the length before the first level, and after each."""
    schedule = Schedule(ForecastConfig(), noise=lambda level: level, **known)
    told = [schedule.length]
    for level in levels:
        schedule.place(level)
        told.append(schedule.length)
    return told


CURVED = [0.995 * 0.8**k for k in range(20)]  # after three levels they could be even, after four not


def test_a_list_tells_the_length_as_long_as_the_levels_are_its():
    assert lengths(CURVED, listed=CURVED) == [20] * 21
    assert lengths(CURVED[10:], listed=CURVED[10:], first_step=10) == [20] * 11
    twice = [level for level in CURVED[:4] for _ in range(2)]  # Heun's: a step has two evaluations
    assert lengths(twice, listed=CURVED) == [20] * 9
    assert lengths(flow(20, 5.0), listed=[1.0, 0.9, 0.8]) == [3, 3, None, *[20] * 18]  # it was another list
    assert lengths(CURVED, listed=CURVED[:6])[5:] == [6, 6, *[None] * 14]  # it was no list of all


@pytest.mark.parametrize("scale", [1.0, None], ids=["flow", "other units"])
@pytest.mark.parametrize("levels", [karras(20), beta(20), CURVED, quadratic(20), stretched(flow(20, 5.0))])
def test_a_list_plans_a_run_as_if_the_host_had_told_its_levels(levels, scale):
    """Where every step will stand, and that the last one is the last and no other."""
    noise = scale and (lambda level: level)
    known = Schedule(ForecastConfig(), levels=[*levels, 0.0], noise=noise)
    listed = Schedule(ForecastConfig(), listed=levels, noise=noise)
    for one, other in zip(known.outlook(), listed.outlook(), strict=True):
        assert (one.noise, one.share) == pytest.approx((other.noise, other.share), abs=1e-6)
        assert one.tau == pytest.approx(other.tau) and one.position == other.position
    for k, level in enumerate(levels):
        one, other = known.place(level), listed.place(level)
        assert (one.noise, one.share, one.tau) == pytest.approx((other.noise, other.share, other.tau), abs=1e-6)
        assert other.last == (k == 19) and (noise is None or (one.a, one.b) == pytest.approx((other.a, other.b)))
        assert not listed.has_news or k <= 2


@pytest.mark.parametrize("noise", [lambda level: level, None], ids=["flow", "other units"])
@pytest.mark.parametrize("levels", [karras(20), flow(20, 5.0)])
def test_a_list_with_the_level_behind_the_last_step_ends_with_the_run(levels, noise):
    """The last evaluation is computed, whether anybody comes to that level or not."""
    schedule = Schedule(ForecastConfig(), listed=[*levels, 0.0], noise=noise)
    assert [schedule.place(level).last for level in levels] == [False] * 19 + [True]
    assert noise is None or len(schedule.outlook()) == 21


@pytest.mark.parametrize("levels", [[0.0, -0.1, -0.2], [0.25, 0.1, -0.1], [-1.0, -1.1, -1.2]])
def test_levels_that_are_no_shares_of_noise_are_no_error(levels):
    """The timesteps of EDM models are logarithms."""
    schedule = Schedule(ForecastConfig())
    for level in levels:
        schedule.place(level)
    assert schedule.length is None and schedule.outlook()


@pytest.mark.parametrize("steps", [12, 20, 50])
def test_a_run_whose_length_nobody_says_is_planned_as_if_it_was_said(steps):
    """From the third level on; it was planned as one of thirty steps whatever its levels were."""
    levels = flow(steps, 5.0)
    told, untold = (Schedule(ForecastConfig(), steps=n, noise=lambda level: level) for n in (steps, None))
    assert untold.length is None
    for level in levels[:3]:
        told.place(level)
        untold.place(level)
    assert untold.has_news and untold.length == steps
    for one, other in zip(told.outlook(), untold.outlook(), strict=True):
        assert (one.noise, one.tau, one.share) == pytest.approx((other.noise, other.tau, other.share), abs=1e-3)
    untold.place(levels[3])
    assert not untold.has_news


def test_who_plans_is_told_the_length_once_it_is_known():
    run, levels = Run(ForecastConfig(), noise=lambda level: level), flow(20, 5.0)
    for level, known in zip(levels, [None, None, 20, 20], strict=False):
        run.begin_evaluation(level, (torch.zeros(1, 4),))
        assert run._policy.steps == known
    assert run.stats.steps is None  # nobody has said it


def test_more_steps_than_were_told_are_a_run_whose_length_nobody_says():
    run, kinds = Run(ForecastConfig(), steps=12, noise=lambda level: level), []
    for level in flow(30, 5.0):
        x = torch.full((1, 4), level)
        run.begin_evaluation(level, (x,))
        run.output("cond", None, lambda x=x: (x * 0.5,), x.device)
        kinds.append(run.kind)
    assert "reuse" in kinds[12:] and "plain" not in kinds and kinds[-1] == "full"
    stats = run.close()
    assert stats.steps is None and stats.planned is None and stats.to_dict()["outlook"] is None
    assert "plan" not in stats.summary()


def test_steps_end_a_step_before_nothing_is_left():
    assert Even(1.0, 0.1, 1.0).steps == 10 and Even(1.0, 0.0999, 1.0).steps == 11 and Even(0.5, 0.1, 3.0).steps == 5

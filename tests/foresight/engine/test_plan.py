"""Plans whose best solution is known: by trying all of them, and where a reader can see it."""

import itertools
import math

import pytest
import torch

from foresight.engine import ForecastConfig, Run, plan
from foresight.engine.plan import Planner, bend, effective_gamma, ending, longest, protected
from foresight.engine.schedule import Schedule, whole_steps
from foresight.engine.tape import Tape
from foresight.engine.trajectory import HELD, NEWEST, Trajectory, _off


def places(levels):
    return Schedule(ForecastConfig(), levels).outlook()


def flow(steps, shift=3.0):
    times = [1 - k / steps for k in range(steps + 1)]
    return [shift * t / (1 + (shift - 1) * t) for t in times]


def planner(levels, most_in_a_row=float("inf"), last=1):
    steps = len(levels) - 1
    return Planner(places(levels), [k == 0 or k >= steps - last for k in range(steps)], most_in_a_row)


@pytest.mark.parametrize("mu", [1e-6, 0.003, 0.014, 0.05, 1.0])
@pytest.mark.parametrize("shift", [1.0, 5.0])
def test_no_other_set_of_steps_is_better(mu, shift):
    made, steps = planner(flow(10, shift)), 10

    def total(computed):
        ends = [0, *computed, steps]
        gaps = itertools.pairwise(ends)
        return sum(made.cost(n, m) for n, m in gaps) + mu * len(computed)

    tried = [
        (total([*middle, 9]), [*middle, 9])
        for count in range(9)
        for middle in itertools.combinations(range(1, 9), count)
        if all(m - n <= 3 for n, m in itertools.pairwise([0, *middle, 9]))  # 13 % of 10 steps are 2 in a row
    ]
    best, computed = min(tried)
    assert total(made.plan(0, 1.0, mu)) == pytest.approx(best)
    assert len(made.plan(0, 1.0, mu)) == len(computed)


def test_more_error_or_a_lower_price_computes_more():
    made = planner(flow(50))
    counts = [len(made.plan(0, 1.0, mu)) for mu in (1e-5, 0.001, 0.01, 0.1)]
    assert counts == sorted(counts, reverse=True) and counts[0] == 49
    counts = [len(made.plan(0, scale, 0.01)) for scale in (1.0, 4.0, 64.0, 1e6)]
    assert counts == sorted(counts) and counts[-1] == 49


@pytest.mark.parametrize("steps", [4, 20, 1000])
def test_what_a_gap_costs_is_the_sum_that_the_module_gives(steps):
    levels = flow(steps)
    where, made = places(levels), planner(levels)
    lam = [place.lam + k * plan.STILL for k, place in enumerate(where)]

    def alone(n, k, m):
        bend = 0.08 + 0.17 * math.exp(-((where[k].lam + 2.4) ** 2))
        share = max(where[k].share, plan.FLOOR)
        weight = share * (1 + 4 * share) / max(1 - where[k].noise, 0.005) ** plan.EARLY
        return bend * weight * (lam[k] - lam[n]) * (lam[m] - lam[n]) ** 0.5

    for n in range(0, steps, max(1, steps // 40)):
        assert made.cost(n, n + 1) == 0
        for m in range(n + 2, min(n + 9, steps) + 1):
            assert made.cost(n, m) == pytest.approx(sum(alone(n, k, m) for k in range(n + 1, m)), rel=1e-6)


def test_twice_the_scale_at_twice_the_price_is_the_same_plan():
    made = planner(flow(30))
    assert made.plan(3, 2.0, 0.02) == made.plan(3, 1.0, 0.01)


def test_what_must_be_computed_is_and_no_more_in_a_row_is_left_out():
    levels = flow(20)
    made = Planner(places(levels), [k in (0, 7, 18, 19) for k in range(20)], 2)
    plan = made.plan(0, 1.0, 1e9)  # as few as may be
    assert {7, 18, 19} <= set(plan)
    assert max(m - n for n, m in itertools.pairwise([0, *plan, 20])) == 3
    assert len(plan) == 8  # two up to 7, three up to 18 (10, 13 and 16, say), and what must be


@pytest.mark.parametrize(("gamma", "most"), [(0.1, 3), (1.0, 3), (1.5, 4), (8.0, 4)])
def test_a_higher_threshold_leaves_more_out_in_a_row(gamma, most):
    made = Planner(places(flow(20)), [k in (0, 19) for k in range(20)], math.inf, gamma=gamma)
    assert max(m - n for n, m in itertools.pairwise([0, *made.plan(0, 1.0, 1e9), 20])) == most + 1


@pytest.mark.parametrize("levels", [[1.0, 0.5, 0.5, 0.5, 0.0], [1.0, 0.9999999, 0.9999998, 0.5, 0.0]])
def test_a_step_that_changes_nothing_is_not_free(levels):
    made = planner(levels)
    assert made.plan(0, 1.0, 1e-12) == [1, 2, 3]


def test_the_end_of_a_noisy_run_may_be_left_out_where_nothing_says_otherwise():
    made = planner(flow(20)[:11], last=0)
    assert made.plan(0, 1.0, 0.05)[-1] < 9


@pytest.mark.parametrize(
    ("steps", "shift", "most"), [(20, 3.0, 11), (20, 5.0, 11), (20, 12.0, 11), (30, 5.0, 13), (50, 3.0, 15)]
)
def test_the_default_fires(steps, shift, most):
    run = Run(ForecastConfig(), schedule=flow(steps, shift), noise=lambda sigma: sigma)
    assert steps / 5 < run.stats.planned <= most


@pytest.mark.parametrize("steps", [20, 30, 50])
def test_the_presets_are_apart(steps):
    counts = [
        Run(ForecastConfig(threshold=gamma), schedule=flow(steps), noise=lambda sigma: sigma).stats.planned
        for gamma in (0.3, 0.5, 1.0, 2.0)
    ]
    assert all(more > fewer for more, fewer in itertools.pairwise(counts))
    assert counts[0] / counts[-1] > 1.7
    assert steps != 20 or 20 / 1.5 >= counts[0] and counts[-1] >= 20 / 3  # 1.5x to 3x


def test_a_run_that_begins_in_the_middle_is_planned_as_that_part():
    """20 steps at denoise 0.5 are the second half of 40: their outputs bend as those of 40 steps do there, and less."""
    whole = flow(40)
    over = lambda level: min(range(41), key=lambda k: abs(whole[k] - level)) / 40  # noqa: E731
    half = Run(ForecastConfig(), schedule=whole[20:], noise=lambda sigma: sigma, over=over)
    alone = Run(ForecastConfig(), schedule=whole[20:], noise=lambda sigma: sigma)
    from_noise = Run(ForecastConfig(), schedule=flow(20), noise=lambda sigma: sigma)
    assert half.stats.planned == alone.stats.planned < from_noise.stats.planned
    assert whole_steps(Schedule(ForecastConfig(), whole[20:], over=over).outlook()) == pytest.approx(40)
    assert whole_steps(places(whole[20:])) == 20
    assert whole_steps(Schedule(ForecastConfig(), whole, over=lambda level: 0.5).outlook()) == 1000  # whatever is told


@pytest.mark.parametrize(("noise", "lam"), [(1.0, -5.0), (0.75, -math.log(3)), (0.5, 0.0), (0.1, math.log(9)), (0, 5)])
def test_lambda_is_the_logarithm_of_the_signal_to_noise_ratio(noise, lam):
    place, *_ = Schedule(ForecastConfig(), [1.0, 0.0], noise=lambda _: noise).outlook()
    assert place.lam == pytest.approx(lam)


@pytest.mark.parametrize("shift", [1.0, 3.0, 5.0, 7.0])
def test_a_range_of_percents_that_lie_on_steps_begins_and_ends_with_these(shift):
    """Levels are fp32 and percents become levels in double, so that they differ by a rounding in either direction."""

    def level(t):
        return shift * t / (1 + (shift - 1) * t)

    levels = torch.tensor([level(1 - k / 20) for k in range(21)], dtype=torch.float32).tolist()
    for first, end in itertools.combinations(range(1, 20), 2):
        region = level(1 - first / 20), level(1 - end / 20)
        places = Schedule(ForecastConfig(warmup_steps=1), levels, region=region).outlook()
        assert [k for k, place in enumerate(places) if place.phase == "within"] == list(range(first, end))


def test_what_a_step_left_out_costs_worked_out_by_hand():
    """Ten even steps from noise 1 to 0: at step 5 lambda is 0, and a tenth of the noise is taken away."""
    made = planner([1 - k / 10 for k in range(11)])
    error = (0.08 + 0.17 * math.exp(-(2.4**2))) * math.log(0.6 / 0.4) * math.sqrt(2 * math.log(0.6 / 0.4))
    assert made.cost(4, 6) == pytest.approx(error * 0.1 * (1 + 4 * 0.1) / 0.5**0.6, rel=0.002)


def test_where_the_picture_takes_shape_more_is_computed_whatever_the_shift():
    """The share of computed steps is highest near noise 0.92: early where the shift is low, late where it is high."""
    for shift in (3.0, 5.0, 12.0):
        levels = flow(100, shift)
        computed = [0, *planner(levels).plan(0, 1.0, 0.0005)]
        lam = [place.lam for place in places(levels)]
        gaps = {(lam[n] + lam[m]) / 2: lam[m] - lam[n] for n, m in itertools.pairwise(computed) if -4 < lam[n] < 1}
        narrowest = min(gaps, key=gaps.get)
        assert -3.0 < narrowest < -1.5


def test_twice_as_far_a_line_is_off_by_the_power_of_one_and_a_half():
    near, far, farther = (_off(-1 - 1.5 * h, -1 - 0.5 * h, -1 + 0.5 * h) for h in (0.1, 0.2, 0.4))
    assert far / near == pytest.approx(2**1.5) and farther / far == pytest.approx(2**1.5)


def test_the_first_that_a_run_shows_is_all_there_is_and_what_comes_later_counts_a_third():
    trajectory = Trajectory()
    trajectory.begin_gap(0.0, -5.0)
    trajectory.begin_gap(5.0, -4.0)
    trajectory.learn([0.16], sloped=False)  # the first output given again, expected to be 0.08 off
    assert trajectory.scale == pytest.approx(2.0)
    trajectory.begin_gap(8.0, -3.0)
    trajectory.learn([8 * _off(-5.0, -4.0, -3.0)], sloped=True)
    assert trajectory.scale == pytest.approx(2 * 4**NEWEST)
    trajectory.begin_gap(9.0, -2.0)
    trajectory.learn([0.08 * 8 * 4**NEWEST], sloped=False)  # after a jump: there is something to go by
    assert trajectory.scale == pytest.approx(2 * 4 ** (2 * NEWEST))


@pytest.mark.parametrize(
    ("lams", "begins"), [((-2.5, -1.5), False), ((-2.5, -1.5), True), ((-5.0, -4.99, -4.0), False)]
)
def test_a_first_output_of_anything_but_noise_says_less(lams, begins):
    """Given again, the output of a noisy video (image to video, a second stage) is off as lines are at its level.

    The first of a whole run is off by less, also where a model's noisiest level is no pure noise (SDXL).
    """
    trajectory = Trajectory()
    trajectory.late = not begins
    for u, lam in enumerate(lams):
        trajectory.begin_gap(float(u), lam)
    expected = (HELD if begins else bend((lams[-2] + lams[-1]) / 2)) * (lams[-1] - lams[-2])
    trajectory.learn([2 * expected], sloped=False)
    assert trajectory.scale == pytest.approx(2**NEWEST)


@pytest.mark.parametrize(("gamma", "most"), [(0.5, 1), (1.0, 1), (2.0, 2), (3.0, 3), (8.0, 3)])
def test_a_high_threshold_leaves_more_out_in_a_row_in_a_run_of_few_steps_too(gamma, most):
    assert longest(gamma, 4) == most


@pytest.mark.parametrize(("gamma", "steps"), [(0.1, 3), (1.0, 3), (2.0, 2), (4.0, 1), (8.0, 1)])
def test_a_rough_video_takes_less_care_of_the_end(gamma, steps):
    assert ending(gamma, 3) == steps and ending(gamma, 1) == 1


@pytest.mark.parametrize(("steps", "times"), [(1, 4), (4, 4), (8, 4), (12, 16 / 9), (16, 1), (20, 1), (1000, 1)])
def test_a_threshold_counts_for_more_in_a_calm_run_of_few_steps(steps, times):
    assert effective_gamma(0.5, steps, calm=True) == pytest.approx(0.5 * times)
    assert effective_gamma(0.5, steps, calm=False) == 0.5 and effective_gamma(0.0, steps, calm=True) == 0


def few(steps, **given):
    """A run of few steps at the default, without guidance unless it is said."""
    given = {"schedule": flow(steps), "noise": lambda sigma: sigma, "guided": False, **given}
    return Run(ForecastConfig(), **given)


@pytest.mark.parametrize("steps", [8, 12])
def test_what_makes_a_run_calm(steps):
    """Euler's steps, no guidance, and no other process that may know better; a stage is as long as the whole."""
    assert few(steps).stats.planned < steps
    plain = few(steps, guided=True).stats.planned
    assert few(steps, tape=Tape()).stats.planned == few(steps, guided=True, tape=Tape()).stats.planned
    assert few(steps, tape=Tape(until=2.0)).stats.planned == few(steps).stats.planned  # it is Euler's, too
    assert few(steps, worst=AlwaysAlone()).stats.planned == plain
    assert few(steps, whole=20).stats.planned == few(steps, whole=20, guided=True).stats.planned


class AlwaysAlone:
    """Another process, as far as the plan before a run can tell."""

    size, places, place = 2, 2, 0

    def __call__(self, numbers):
        raise AssertionError("nothing has begun")


@pytest.mark.parametrize(("gamma", "last"), [(0.5, 1), (32.0, 1), (33.0, 0), (128.0, 0)])
def test_only_a_calm_run_comes_to_where_the_last_step_is_not_sure_to_be_computed(gamma, last):
    assert protected(places(flow(8)), 0.04, gamma, order=1, pays=True) == last
    assert protected(places(flow(50)), 0.04, gamma, order=1, pays=True) == 2  # 4 % of them
    noisy = places(flow(20)[:11])
    assert protected(noisy, 0.04, gamma, order=1, pays=True) == 2 and protected(noisy, 0.04, gamma, 3, pays=False) == 1


def test_what_is_near_to_the_computed_step_before_tells_nothing_of_how_the_rest_bends():
    """As at the beginning of many steps of a high shift, whose latents are noise and hardly anything else."""
    for lams, found in (((-5.0, -5.0, -4.99), False), ((-5.0, -4.9, -4.7), True)):
        trajectory = Trajectory()
        for u, lam in enumerate(lams):
            trajectory.begin_gap(float(u + 1), lam)
        trajectory.learn([0.009], sloped=True)
        assert (trajectory.found is not None) == found and (trajectory.scale != 1.0) == found


def test_where_levels_are_hidden_the_planner_and_the_evaluations_agree_on_the_noise():
    """A host that tells a level at a time: from noise, from the middle (Wan 2.2's second model), and without noise."""
    for first, noise in ((0, lambda level: level), (16, lambda level: level), (0, None)):
        schedule = Schedule(ForecastConfig(), steps=40, first_step=first, noise=noise)
        levels = flow(40, 12.0) if noise else [1 - k / 40 for k in range(41)]
        seen = [schedule.place(level) for level in levels[first : first + 3]]
        ahead = schedule.outlook()
        following = [schedule.place(level) for level in levels[first + 3 : -1]]
        for place in [*seen[1:], *following]:
            assert ahead[int(place.position)].lam == pytest.approx(place.lam, abs=0.01)


def test_a_video_that_has_become_calm_is_computed_less_again_however_near_the_steps_are():
    trajectory = Trajectory()
    for u in range(12):
        trajectory.begin_gap(float(u), -1.0 + 0.3 * u)
        if u > 1:
            trajectory.learn([0.5], sloped=True)
    hard = trajectory.scale
    for u in range(12, 24):
        trajectory.begin_gap(float(u), 2.3 + 0.05 * (u - 11))
        trajectory.learn([1e-4], sloped=True)
    assert trajectory.scale < hard / 4


def test_steps_that_are_all_noise_are_no_jump():
    trajectory = Trajectory()
    for u in range(3):
        trajectory.begin_gap(float(u), -5.0)
    history = trajectory.histories["x"] = type("Any", (), {"forget": lambda self: pytest.fail("a jump")})()
    trajectory.learn([0.012], sloped=True)
    assert trajectory.scale == 1.0 and history


def test_a_run_of_no_steps_is_no_error():
    assert Run(ForecastConfig(), steps=0, noise=lambda sigma: sigma).stats.inactive

"""The first of two runs of one video: nobody computes a step for the sake of an end from which another goes on."""

import math

import pytest

from foresight.engine import ForecastConfig, Run
from foresight.engine.tape import Tape

STEPS = 20
SAMPLERS = {"euler": lambda: None, "res_multistep": Tape, "uni_pc": lambda: Tape(order=3)}


def planned(sampler, shift, threshold, whole):
    """The steps that the first ten are planned to compute, of a run that ends noisy."""
    times = [1 - k / STEPS for k in range(11)]
    levels = [shift * t / (1 + (shift - 1) * t) for t in times]
    given = {"region": (math.inf, -math.inf), "tape": SAMPLERS[sampler](), "whole": whole}
    run = Run(ForecastConfig(threshold=threshold), schedule=levels, noise=lambda sigma: sigma, **given)
    return set(run._policy.planned)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_end_is_open_only_for_who_is_told(sampler):
    cases = [(sampler, shift, threshold) for shift in (1.0, 3.0, 5.0, 8.0, 12.0) for threshold in (0.25, 0.5, 1.0, 2.0)]
    alone, first = ([planned(*case, whole) for case in cases] for whole in (None, STEPS))
    assert all(9 in plan for plan in alone)
    if sampler == "euler":  # pays back before its last step, whose output others may use as it is
        assert all({8, 9} <= plan for plan in alone)
    opened = [9 not in plan for plan in first]
    assert sum(opened) >= 4 and not all(opened)  # where the step is worth computing, it is
    assert all(len(plan) <= len(other) for plan, other in zip(first, alone, strict=True))
    assert sum(map(len, first)) < sum(map(len, alone))


@pytest.mark.parametrize(("whole", "most"), [(None, 2), (STEPS, 3)])
def test_the_longest_gap_is_a_share_of_the_whole(whole, most):
    """13 % of ten steps are two, of twenty three."""
    plan = sorted(planned("euler", 12.0, 1.0, whole))
    assert max(b - a - 1 for a, b in zip(plan, [*plan[1:], 10], strict=True)) == most

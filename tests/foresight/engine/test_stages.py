"""The first of two runs of one video: nobody computes a step for the sake of an end from which another goes on."""

import itertools
import math

import pytest
import torch

from foresight.engine import ForecastConfig, Run
from foresight.engine.history import History
from foresight.engine.tape import Tape
from support.told import computes

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
    if sampler == "uni_pc":  # makes much of its last outputs, whoever goes on
        assert all(9 in plan for plan in first)
        return
    opened = [9 not in plan for plan in first]
    assert sum(opened) >= 4 and not all(opened)  # where the step is worth computing, it is
    assert all(len(plan) <= len(other) for plan, other in zip(first, alone, strict=True))
    assert sum(map(len, first)) < sum(map(len, alone))


@pytest.mark.parametrize(("whole", "most"), [(None, 2), (STEPS, 3)])
def test_the_longest_gap_is_a_share_of_the_whole(whole, most):
    """13 % of ten steps are two, of twenty three."""
    plan = sorted(planned("euler", 12.0, 1.0, whole))
    assert max(b - a - 1 for a, b in zip(plan, [*plan[1:], 10], strict=True)) == most


@pytest.mark.parametrize("whole", [None, STEPS])
def test_a_step_computed_at_an_open_end_pays_back_as_any_other(whole, monkeypatch):
    """Output 0 stands for 1 to 8 of ten, on a line; who ends noisy gives the last output as it is."""
    monkeypatch.setattr(History, "damping", 1e12)
    levels, ends = [1 - k / STEPS for k in range(11)], []
    for config in (ForecastConfig(threshold=1e-12), computes({0, 9})):
        given = {"region": (math.inf, -math.inf), "over": lambda level: 1 - level, "whole": whole}
        run, x = Run(config, schedule=levels, noise=lambda sigma: sigma, **given), torch.full((1, 2), 5.0)
        for k, (level, following) in enumerate(itertools.pairwise(levels)):
            run.begin_evaluation(level, (x,))
            output = torch.full((1, 2), 1 + 0.02 * k)
            (d,) = run.output("x", 1, lambda d=output: (d,), x.device, lambda d: (torch.ones_like(d[0]),))
            x = d + following / level * (x - d)
        ends.append(x[0, 0].item())
    assert abs(ends[0] - ends[1]) < 1e-4 if whole else abs(ends[0] - ends[1]) > 0.02

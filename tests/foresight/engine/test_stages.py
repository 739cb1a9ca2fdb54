"""Two runs of one video: a run of ten steps whose end is open, and ten more by another model, in numbers."""

import pytest
import torch

from foresight.engine import ForecastConfig, Run
from foresight.engine.history import History
from foresight.engine.stages import Stage
from foresight.engine.tape import Tape
from support.told import computes

LEVELS = [1 - k / 20 for k in range(21)]
FIRST, SECOND = slice(0, 11), slice(10, 21)


def over(level):
    return 1 - level


def sample(x, config, output, part, stage=None, **options):
    """Euler's steps over a part of the levels: the latent at the end, the run, the steps computed in the whole."""
    levels, computed = LEVELS[part], []
    run = Run(config, schedule=levels, noise=lambda sigma: sigma, over=over, stage=stage, **options)
    for k, (level, following) in enumerate(zip(levels, levels[1:], strict=False)):

        def compute(u=part.start + k, x=x):
            computed.append(u)
            return (torch.full_like(x, float(output(u))),)

        run.begin_evaluation(level, (x,))
        (given,) = run.output("x", part.start, compute, x.device, lambda out: (torch.ones_like(out[0]),))
        x = given + following / level * (x - given)
    run.close()
    return x, run, computed


@pytest.fixture(autouse=True)
def undamped(monkeypatch):
    monkeypatch.setattr(History, "damping", 1e12)


X = torch.full((1, 2), 5.0)


def line(u):
    return 1 + 0.02 * u


def test_a_debt_goes_to_the_next_stage_and_is_paid_there():
    """Output 0 stands for 1 to 9, a debt without a slope; the first step of the next stage pays it back."""
    plain = [sample(X, ForecastConfig(threshold=1e-12), line, slice(0, n))[0][0, 0].item() for n in (11, 13)]
    x, first, computed = sample(X, computes({0}), line, FIRST, Stage(goes_on=True, whole=20))
    assert computed == [0]
    # output k has missed 0.02 k: a step takes in 1 - sigma' / sigma of it, and 0.5 / sigma' of that is left at 0.5
    missed = sum(0.02 * k * 0.05 / (1 - 0.05 * k) * 0.5 / (0.95 - 0.05 * k) for k in range(1, 10))
    assert plain[0] - x[0, 0] == pytest.approx(missed, abs=1e-4)
    two = slice(10, 13)  # levels; the second step ends noisy, where nothing is paid back
    paid = sample(x, computes({0, 1}), line, two, Stage(before=first.left, whole=20))[0]
    assert paid[0, 0] == pytest.approx(plain[1], abs=1e-4)
    assert abs(sample(x, computes({0, 1}), line, two)[0][0, 0] - plain[1]) > 0.02


def test_the_slope_is_the_old_one_until_the_new_model_has_computed_two():
    """The second model's outputs lie 3 higher: its first one is the base, the slope stays 0.02 a step."""
    given = []

    class Seen(History):
        def forecast(self, place, device):
            given.append((place.position, super().forecast(place, device)[0][0, 0].item()))
            return (torch.full((1, 2), given[-1][1]),)

    x, first, _ = sample(X, computes({0, 4, 8}), line, FIRST, Stage(goes_on=True, whole=20))
    (history,) = first.left.histories.values()
    history.__class__ = Seen
    levels, base = LEVELS[SECOND], line(10) + 3
    run = Run(computes({0, 4}), schedule=levels, noise=lambda s: s, over=over, stage=Stage(before=first.left))
    for level, following in zip(levels[:4], levels[1:5], strict=True):
        run.begin_evaluation(level, (x,))
        # in a unit a thousand times as large, an error of 3 is no jump
        (d,) = run.output("x", 1, lambda: (torch.full((1, 2), base),), x.device, lambda out: (out[0] * 1000,))
        x = d + following / level * (x - d)
    assert given == [(h, pytest.approx(base + 0.02 * h, abs=1e-5)) for h in (1, 2, 3)]


def test_the_end_is_open_only_for_who_is_told():
    config, plans = ForecastConfig(threshold=1.0), {}
    for goes_on in (False, True):
        _, run, plans[goes_on] = sample(X, config, line, FIRST, Stage(goes_on=goes_on, whole=20))
        assert (run.left is not None) == goes_on
    assert plans[False][-2:] == [8, 9] and not {8, 9} <= set(plans[True])
    assert sample(X, config, line, FIRST, Stage(goes_on=True), tape=Tape())[2][-1] == 9  # not Euler's steps


def test_a_run_that_has_a_debt_to_pay_is_never_inactive():
    """At this threshold the plan computes all ten steps."""
    config = ForecastConfig(threshold=1e-9)
    _, first, _ = sample(X, computes({0}), line, FIRST, Stage(goes_on=True))
    assert "at most 0 of 10 steps" in sample(X, config, line, SECOND)[1].stats.inactive
    assert sample(X, config, line, SECOND, Stage(before=first.left))[1].stats.inactive is None


def test_what_is_not_taken_over_is_dropped():
    _, first, _ = sample(X, computes({0, 4, 8}), line, FIRST, Stage(goes_on=True))
    assert first.held_bytes == 0 and first.left.nbytes == 4 * 8  # two outputs, x' and D' of two fp32 numbers

"""The method "forecast" on outputs whose values are written down: D(u) at position u, sampled by Euler."""

import copy
import math

import pytest
import torch

from foresight.engine import ForecastConfig, Offload, Run, trajectory
from foresight.engine.history import History
from foresight.engine.plan import bend
from foresight.engine.tape import Tape
from support.told import computes


def euler(output, steps=20, gamma=1.0, heun=False, unit=1.0, config=None, watch=None, **settings):
    """Sample x from sigma 1 to 0; x and what it was at each step, the record, the positions that were computed.

    `output(u, x)` is the denoised value of x at position u, a float.
    """
    schedule = [1 - i / steps for i in range(steps + 1)]
    config = config or ForecastConfig(threshold=gamma, **settings)
    run = Run(config, schedule=schedule, noise=lambda sigma: sigma)
    x, path, computed = torch.full((1, 2), 5.0), [], []

    def denoised(x, i):
        def compute():
            computed.append(i)
            return (x * 0 + output(float(i), float(x[0, 0])),)

        run.begin_evaluation(schedule[i])
        if watch is not None:
            watch.append(copy.deepcopy(run._policy._now))
        return run.output("x", x.shape, compute, x.device, lambda out: (torch.full_like(out[0], unit),))[0]

    for i in range(steps):
        d = (x - denoised(x, i)) / schedule[i]
        following = x + (schedule[i + 1] - schedule[i]) * d
        if heun and i < steps - 1:
            d = (d + (following - denoised(following, i + 1)) / schedule[i + 1]) / 2
            following = x + (schedule[i + 1] - schedule[i]) * d
        x = following
        path.append(x[0, 0].item())
    return path, run.close(), computed


def undamped(monkeypatch):
    monkeypatch.setattr(History, "damping", 1e12)


def test_a_straight_line_is_forecast_exactly_once_there_is_a_slope(monkeypatch):
    undamped(monkeypatch)
    line = lambda u, x: 1 + 0.02 * u  # noqa: E731
    plain, _, all_of_them = euler(line, gamma=0)
    path, stats, computed = euler(line, config=computes({0, 2, 5, 9, 14, 19}))
    assert all_of_them == list(range(20)) and computed == [0, 2, 5, 9, 14, 19]
    assert path[0] == plain[0] and path[1] != plain[1]  # output 0 was given again
    assert path[2:] == pytest.approx(plain[2:], abs=1e-5)  # which output 2 has paid back
    assert (stats.reused, stats.total) == (14, 20)
    assert [e.kind for e in stats.evaluations[:4]] == ["warmup", "reuse", "full", "reuse"]


def test_the_plan_is_what_is_computed_and_less_where_outputs_hardly_bend(monkeypatch):
    plans = {}
    for gamma in (0.25, 0.5, 1.0, 2.0):
        _, straight, fewer = euler(lambda u, x: 1 + 1e-4 * u, gamma=gamma)
        with monkeypatch.context() as patch:
            patch.setattr(trajectory, "LEAST", 1.0)
            _, stats, computed = euler(lambda u, x: 1 + 1e-4 * u, gamma=gamma)
        assert stats.planned == len(computed) and {0, 19} <= set(computed)
        assert straight.planned == stats.planned and {0, 19} <= set(fewer)
        plans[gamma] = len(computed), len(fewer)
        assert plans[gamma][1] <= plans[gamma][0]
    assert plans[0.25] > plans[0.5] > plans[1.0] > plans[2.0] and plans[0.25][1] < plans[0.25][0]


@pytest.mark.parametrize("steps", [20, 30, 40])
def test_the_farther_a_forecast_goes_the_less_of_the_slope_it_takes(steps):
    run = Run(computes({0, 1, 2}), steps=steps)
    out = drive(run, [torch.full((1, 2), float(min(i, 2))) for i in range(6)])
    half = 0.2 * steps  # the slope is 1; r(h) = h / (1 + h / half): far is what is far for this run
    assert [x[0, 0].item() for x in out[3:]] == pytest.approx([2 + h / (1 + h / half) for h in (1, 2, 3)])


def test_a_short_run_whose_plan_leaves_nothing_out_does_where_outputs_prove_to_bend_little():
    """8 steps of a distilled model: by what is expected none is worth it, and by what was measured some are."""
    _, stats, computed = euler(lambda u, x: 1 + 1e-3 * u, steps=8, gamma=0.5)
    assert stats.planned == 8 and stats.inactive is None
    assert len(computed) < 8 and computed[:3] == [0, 1, 2]  # after two there is a slope, and the third has measured it
    wave = lambda u, x: math.sin(2 * u)  # noqa: E731
    _, stats, computed = euler(wave, steps=8, gamma=1.0)
    assert len(computed) == 8 and stats.inactive is None


def test_a_run_that_can_leave_nothing_out_whatever_is_measured_says_so():
    _, stats, computed = euler(lambda u, x: 1 + 1e-3 * u, steps=4, gamma=0.5)
    assert len(computed) == 4 and "at most 0 of 4 steps" in stats.inactive


def test_an_output_is_given_again_only_at_the_beginning_of_a_whole_run():
    outputs = [torch.full((1, 2), float(i)) for i in range(4)]
    levels = [0.9 - i / 10 for i in range(10)]
    for over, kinds in ((0.05, ["warmup", "reuse"]), (0.3, ["warmup", "full"])):
        run = Run(ForecastConfig(threshold=2.0), schedule=levels, noise=lambda s: s, over=lambda level, o=over: o)
        run._policy._next = lambda: 9
        drive(run, outputs[:2], levels=levels)
        assert [e.kind for e in run.stats.evaluations] == kinds


def test_what_a_parabola_bends_is_measured(monkeypatch):
    """A line through u_1 and u_2 is (u - u_1)(u - u_2) / 100 off; the computed ones after that have measured it."""
    undamped(monkeypatch)
    _, _, computed = euler(lambda u, x: u * u / 100, config=computes({0, 1, 2, 5, 9, 19}), watch=(watched := []))
    expected, lam = 0.0, lambda u: max(math.log(u / (20 - u)), -5.0) if u else -5.0  # at the noise 1 - u / 20
    for before, n, m in ((0, 1, 2), (1, 2, 5), (2, 5, 9)):
        off = (m - n) * (m - before) / 100
        usual = bend((lam(n) + lam(m)) / 2) * (lam(m) - lam(n)) * (lam(m) - lam(before)) ** 0.5
        expected += (math.log(off / usual) - expected) * 0.35
    assert watched[-1]._bent == pytest.approx(expected, rel=1e-3)


def test_what_the_forecasts_got_wrong_is_paid_back_in_the_next_computed_step():
    parabola = lambda u, x: 0.003 * u * u  # noqa: E731
    planned = {0, 2, 3, 6, 10, 15, 19}
    path, _, computed = euler(parabola, config=computes(planned))
    assert set(computed) == planned

    def known_better(u, x):  # on the line between the computed ones, as if that had been known
        n = max(c for c in computed if c <= u)
        m = min(c for c in computed if c >= u)
        return parabola(n, x) + (parabola(m, x) - parabola(n, x)) * ((u - n) / (m - n) if m > n else 0)

    better, _, _ = euler(known_better, gamma=0)
    for m in (2, 6, 10, 15):  # after the last step there is nothing to pay back to
        assert path[m] == pytest.approx(better[m], abs=1e-5)
        assert abs(path[m - 1] - better[m - 1]) > 1e-4  # before it was paid back


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_a_jump_forces_a_recompute_until_it_is_over(gamma):
    _, _, computed = euler(lambda u, x: 1e-3 * u if u < 10 else 1.0, steps=40, gamma=gamma)
    seen = next(i for i in computed if i >= 10)
    assert seen - 10 <= (6 if gamma == 0.5 else 8)  # 13 and 20 % of 40 steps
    assert seen + 1 in computed
    assert len(computed) < 40  # and then it goes on


def test_outputs_that_bend_more_than_expected_are_computed_more_often():
    wave = lambda u, x: 0.3 * torch.sin(torch.tensor(u / 2)).item()  # noqa: E731
    _, stats, computed = euler(wave, steps=50, gamma=0.5)
    assert len(computed) > stats.planned


def test_a_higher_threshold_never_computes_more():
    wave = lambda u, x: 0.03 * torch.sin(torch.tensor(u / 5)).item()  # noqa: E731
    counts = [len(euler(wave, steps=50, gamma=gamma)[2]) for gamma in (0.05, 0.1, 0.25, 0.5, 1.0, 2.0)]
    assert counts == sorted(counts, reverse=True) and counts[0] > counts[-1]


def test_the_same_run_twice_is_the_same():
    wave = lambda u, x: 0.3 * torch.sin(torch.tensor(u / 5)).item() + 0.01 * x  # noqa: E731
    first, second = euler(wave), euler(wave)
    assert first[0] == second[0] and first[2] == second[2]


@pytest.mark.parametrize(("sideways", "least"), [(0.0, 1), (0.5, 3)])
def test_where_nothing_corrects_a_sampler_of_other_steps_than_eulers_the_last_three_are_computed(sideways, least):
    """As UniPC in diffusers, which makes much of the last outputs."""
    levels = [1 - i / 20 for i in range(21)]
    run, x = Run(ForecastConfig(threshold=1.0), schedule=levels, noise=lambda sigma: sigma), torch.full((1, 2), 5.0)
    aside, unit = sideways * torch.tensor([[1.0, -1.0]]), torch.ones(1, 2)
    for i in range(20):
        run.begin_evaluation(levels[i], latent=(x,))
        given = torch.tensor([[1.0, 2.0]]) + 1e-3 * i
        (d,) = run.output("x", x.shape, lambda given=given: (given,), x.device, lambda out: (unit,))
        x = d + levels[i + 1] / levels[i] * (x - d) + (levels[i] - levels[i + 1]) * aside
    kinds = [e.kind for e in run.close().evaluations]
    assert "reuse" in kinds and kinds[::-1].index("reuse") == least
    assert set(range(20 - least, 20)) <= set(run._policy.planned)


@pytest.mark.parametrize("noise", [0.0, 0.2, 0.6])
def test_where_the_sampler_renews_the_noise_an_output_is_given_again_and_else_the_line_goes_on(noise):
    levels, numbers = [1 - i / 20 for i in range(21)], torch.Generator().manual_seed(1)
    run = Run(computes({0, 1, 4, 8, 12, 19}), schedule=levels, noise=lambda sigma: sigma)
    x, given = torch.randn((1, 64), generator=numbers), []
    for i in range(20):
        run.begin_evaluation(levels[i], latent=(x,))
        output, unit = torch.full((1, 64), 1 + 0.1 * i), torch.ones(1, 64)
        (d,) = run.output("x", x.shape, lambda out=output: (out,), x.device, lambda out, unit=unit: (unit,))
        given.append(d.mean().item())
        new = noise * (d - x).square().mean().sqrt() * torch.randn((1, 64), generator=numbers)
        x = d + levels[i + 1] / levels[i] * (x - d) + new
    assert [e.kind for e in run.close().evaluations[5:8]] == ["reuse"] * 3
    if noise > 0.3:
        assert given[5:8] == pytest.approx([1.4] * 3)
    else:
        assert 1.4 < given[5] < given[6] < given[7] < 1.7


@pytest.mark.parametrize(("order", "until", "last"), [(1, 20, 1), (3, 20, 3), (3, 10, 1)])
def test_a_sampler_that_goes_by_three_outputs_has_them_at_the_end_of_the_whole(order, until, last):
    levels = [1 - i / 20 for i in range(until + 1)]
    run = Run(ForecastConfig(threshold=1.0), schedule=levels, noise=lambda sigma: sigma, tape=Tape(order=order))
    row = "".join("C" if k in run._policy.planned else "." for k in range(until))
    assert row.endswith("." + "C" * last)


def test_heun_comes_to_the_same_noise_level_twice(monkeypatch):
    undamped(monkeypatch)
    line = lambda u, x: 1 + 0.02 * u  # noqa: E731
    plain, _, _ = euler(line, gamma=0, heun=True)
    path, stats, computed = euler(line, config=computes({0, 1, 4, 8, 13, 18, 19}), heun=True)
    assert path == pytest.approx(plain, abs=1e-4)
    assert len(stats.evaluations) == 39 and computed == [0, 1, 1, 4, 4, 8, 8, 13, 13, 18, 18, 19, 19]


def test_both_evaluations_of_a_step_are_left_out_or_neither():
    _, _, computed = euler(lambda u, x: 1 + 1e-4 * u, gamma=0.5, heun=True)
    assert computed[0] == 0 and all(computed[1::2][k] == computed[2::2][k] for k in range(len(computed) // 2))


def test_a_schedule_that_stands_still_is_no_division_by_zero():
    levels = [1.0, 0.8, 0.6, 0.6, 0.6, 0.0]
    run = Run(computes({0, 1, 3, 4}), schedule=levels, noise=lambda sigma: sigma)
    given = drive(run, [torch.full((1, 2), float(u)) for u in range(5)], levels=levels)
    assert all(torch.isfinite(x).all() for x in given)


def drive(run, outputs, signatures=None, levels=None):
    given = []
    for i, value in enumerate(outputs):
        run.begin_evaluation(levels[i] if levels else None)
        signature = signatures[i] if signatures else None
        given.append(run.output("x", signature, lambda value=value: (value,), torch.device("cpu"))[0])
    return given


def test_another_signature_is_computed():
    run = Run(computes({0, 1, 2, 7}), steps=20)
    outputs = [torch.full((1, 2), 1.0 + i) for i in range(9)]
    given = drive(run, outputs, ["a"] * 6 + ["b"] * 3)
    # 7, computed, gives the new one a slope
    assert [x is y for x, y in zip(given, outputs, strict=True)] == [True] * 3 + [False] * 3 + [True, True, False]


def test_the_worst_item_of_a_batch_counts():
    run = Run(computes({0, 1, 2}), steps=20)
    for u, value in enumerate((0.0, 0.1, 0.2)):
        batch = torch.tensor([[value], [value], [0.0 if u == 2 else value]])  # the last one turns round
        run.begin_evaluation()
        run.output("x", None, lambda batch=batch: (batch,), batch.device, lambda out: (torch.ones(3, 1),))
    assert run._policy.measured()[0].item() == pytest.approx(0.1 + 0.1 / 1.25)  # forecast 0.1 (1 + r(1)), it was 0


def test_nothing_that_the_host_holds_is_kept_or_handed_out():
    run = Run(computes({0, 1, 2, 3}), steps=20)
    outputs = [torch.full((1, 2), float(i)) for i in range(4)]
    given = []
    for value in outputs:
        given += drive(run, [value])
        value.fill_(77.0)  # the host writes to its tensors
        given[-1].fill_(77.0)
    assert drive(run, [torch.zeros(1, 2)])[0].tolist()[0] == pytest.approx([3 + 1 / 1.25] * 2)  # slope 1, r(1)
    assert run.stats.peak_bytes == run.held_bytes == 2 * 2 * 4
    run.close()
    assert run.held_bytes == 0


def test_after_an_output_that_is_not_finite_everything_begins_anew():
    run = Run(ForecastConfig(threshold=2.0), steps=20)
    run._policy._next = lambda: 4  # the plan would go on
    given = drive(run, [torch.full((1, 2), value) for value in (0.0, 1.0, 2.0, 3.0, float("nan"), 5.0, 6.0, 7.0)])
    assert [e.kind for e in run.stats.evaluations[5:7]] == ["full", "full"]
    assert all(torch.isfinite(x).all() for x in given[5:])


def test_when_memory_runs_out_the_output_is_the_computed_one(monkeypatch):
    run = Run(computes({0, 1, 2}), steps=20)

    def no_memory(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(History, "observe", no_memory)
    outputs = [torch.full((1, 2), float(i)) for i in range(6)]
    assert all(x is y for x, y in zip(drive(run, outputs), outputs, strict=True))
    assert "out of memory" in run.close().inactive


def test_outside_the_chosen_part_of_sampling_everything_is_computed(monkeypatch):
    undamped(monkeypatch)
    _, stats, computed = euler(lambda u, x: 1 + 2e-4 * u, gamma=2.0, start_percent=0.5, end_percent=0.75)
    assert 0 < len(computed) < 20 and {*range(10), *range(15, 20)} <= set(computed)
    assert [e.kind for e in stats.evaluations[15:]] == ["plain"] * 5


def test_a_run_whose_plan_leaves_nothing_out_says_so_and_what_to_do():
    assert Run(ForecastConfig(), steps=20).stats.inactive is None
    assert Run(ForecastConfig(), steps=4).stats.inactive == (
        "at most 0 of 4 steps can be reused: 1 is warmup, and at threshold 0.5 the plan computes the rest; a higher "
        "one may leave out more"
    )


@pytest.mark.parametrize(
    ("settings", "steps", "why"),
    [
        ({"threshold": 32.0}, 2, "1 is warmup, and at threshold 32 the plan computes the rest"),
        ({"threshold": 32.0, "warmup_steps": 100}, 20, "all of them are warmup"),
        ({"start_percent": 0.99}, 20, "1 is warmup, and start_percent and end_percent leave out the rest"),
        ({"end_percent": 0.01}, 20, "1 is warmup, and start_percent and end_percent leave out the rest"),
    ],
)
def test_a_run_in_which_no_threshold_helps_does_not_ask_for_a_higher_one(settings, steps, why):
    run = Run(ForecastConfig(**settings), schedule=[1 - i / steps for i in range(steps + 1)])
    assert run.stats.inactive == f"at most 0 of {steps} steps can be reused: {why}"


def test_it_can_wait_elsewhere():
    run = Run(computes({0, 1, 2}), steps=20, offload=Offload(torch.device("cpu")))
    assert drive(run, [torch.full((1, 2), float(i)) for i in range(4)])[-1][0, 0].item() == pytest.approx(2 + 1 / 1.25)


def test_outputs_over_the_budget_wait_in_ram_or_are_not_kept():
    values = [torch.full((1, 2), float(i)) for i in range(5)]
    run = Run(computes({0, 1, 2}), steps=20, offload=Offload(fallback=torch.device("cpu")))
    run.set_budget(15, 16)  # two outputs of two fp32 are 16 bytes
    drive(run, values)
    assert run.stats.in_ram and run.stats.evaluations[-1].kind == "reuse"
    for device, fallback, why in ((15, None, "on the device"), (15, torch.device("cpu"), "in RAM")):
        run = Run(computes({0, 1, 2}), steps=20, offload=Offload(fallback=fallback))
        run.set_budget(device, 15)
        given = drive(run, values)
        assert all(x is y for x, y in zip(given, values, strict=True)) and run.held_bytes == 0
        assert run.stats.inactive.startswith("the stored outputs need")
        assert ("in RAM" in run.stats.inactive) == (fallback is not None), why


def test_without_steps_or_schedule_the_rhythm_of_a_typical_run_goes_on():
    run = Run(ForecastConfig(threshold=1.0))
    assert run.stats.planned is None
    drive(run, [torch.full((1, 2), 1 + 1e-4 * i) for i in range(60)])
    row = "".join("." if e.kind == "reuse" else "C" for e in run.stats.evaluations)
    assert row.startswith("C.") and 1 < len(row) / row.count("C") < 6
    assert len(set(row[20:].strip(".").split("C"))) <= 3  # gaps of one length, and the ends


def test_a_device_without_anything_free_leaves_outputs_in_ram():
    """What is free beside torch's pool, less what ComfyUI reserves, may be less than nothing."""
    run = Run(computes({0, 1, 2}), steps=20, offload=Offload(fallback=torch.device("cpu")))
    run.set_budget(-(300 << 20), 10**9)
    drive(run, [torch.full((1, 2), float(i)) for i in range(5)])
    assert run.stats.inactive is None and run.stats.in_ram and run.stats.evaluations[-1].kind == "reuse"


@pytest.mark.parametrize(("interval", "in_a_row"), [(2, 1), (3, 2), (0, 4)])
def test_an_interval_limits_how_many_are_left_out_in_a_row(monkeypatch, interval, in_a_row):
    undamped(monkeypatch)
    _, stats, _ = euler(lambda u, x: 1 + 2e-4 * u, gamma=2.0, reuse_interval=interval)
    row = "".join("r" if e.kind == "reuse" else "c" for e in stats.evaluations)
    assert max(map(len, row.split("c"))) == in_a_row


def test_the_plan_of_a_sampler_that_is_known_to_take_more_of_an_output_computes_more_of_them():
    levels, planned = [1 - i / 20 for i in range(21)], []
    for most_taken in (math.inf, 2.0, 3.0):
        tape = Tape(most_taken=most_taken)
        run = Run(ForecastConfig(threshold=1.0), schedule=levels, noise=lambda sigma: sigma, tape=tape)
        planned.append(len(run._policy.planned))
    assert planned[0] < planned[1] < planned[2]

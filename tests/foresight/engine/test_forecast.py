"""The method "forecast" on outputs whose values are written down: D(u) at position u, sampled by Euler."""

import pytest
import torch

from foresight.engine import ForecastConfig, Offload, Run, forecast
from foresight.engine.history import History
from foresight.engine.policy import Resources
from foresight.engine.schedule import Place


def euler(output, steps=20, gamma=1.0, heun=False, unit=1.0, seed=None, **settings):
    """Sample x from sigma 1 to 0; x and what it was at each step, the record, the positions that were computed.

    `output(u, x)` is the denoised value of x at position u, a float.
    """
    schedule = [1 - i / steps for i in range(steps + 1)]
    run = Run(ForecastConfig(threshold=gamma, **settings), schedule=schedule, noise=lambda sigma: sigma)
    x, path, computed = torch.full((1, 2), 5.0), [], []

    def denoised(x, i):
        def compute():
            assert run.begin_call(["cond", "uncond"], 3) is None
            computed.append(i)
            return (x * 0 + output(float(i), float(x[0, 0])),)

        run.begin_evaluation(schedule[i])
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


def alone(gamma, steps=None):
    """The policy without a run around it."""
    return forecast.Forecast(ForecastConfig(threshold=gamma), steps, Resources(Offload(), lambda: True, None, None))


def at(u, computed, a=0.9):
    return Place(u, "warmup" if computed else "within", None, None, float(u), 0.5, 0.02, a, 1 - a)


def given(policy, output, unit=None):
    """What the policy gives the sampler where the model would give `output`."""
    unit = output if unit is None else unit
    return policy.output("x", None, lambda: (output,), torch.device("cpu"), lambda _: (unit,))[0]


def undamped(monkeypatch):
    monkeypatch.setattr(History, "damping", 1e12)


def test_a_straight_line_is_forecast_exactly_and_computed_only_where_it_must_be(monkeypatch):
    undamped(monkeypatch)
    line = lambda u, x: 1 + 2 * u  # noqa: E731
    plain, _, all_of_them = euler(line, gamma=0)
    path, stats, computed = euler(line)
    assert all_of_them == list(range(20))
    # three to warm up, one when the last is farther away than 16 % of the run, 3.2 and so 4 steps, 4 % at the end
    assert computed == [0, 1, 2, 7, 12, 17, 19]
    assert path == pytest.approx(plain, abs=1e-4)
    assert (stats.reused, stats.total) == (13 * 6, 20 * 6)  # three blocks, two conds
    assert [e.kind for e in stats.evaluations[:4]] == ["warmup"] * 3 + ["reuse"]


def test_the_farther_a_forecast_goes_the_less_of_the_slope_it_takes():
    run = Run(ForecastConfig(threshold=2.0), steps=40)
    out = drive(run, [torch.full((1, 2), float(min(i, 2))) for i in range(6)])
    # slope 1; r(h) = h / (1 + h / 8)
    assert [x[0, 0].item() for x in out[3:]] == pytest.approx([2 + 1 / 1.125, 2 + 2 / 1.25, 2 + 3 / 1.375])


def test_the_measured_error_of_a_parabola_is_h_times_h_plus_g(monkeypatch):
    undamped(monkeypatch)
    policy = alone(1.0)
    for u in (0, 1, 2, 5):  # gaps g: 1, 1; distances h: 1, 3
        policy.decide(at(u, computed=True))
        given(policy, torch.full((1, 2), float(u * u)), unit=torch.ones(1, 2))
        errors = [error.item() for error in policy.measured()]
        policy.settle(errors, None)
        assert errors == pytest.approx({0: [], 1: [], 2: [1 * 2], 5: [3 * 4]}[u])
    # per step of distance: 2 / 1, then 12 / 3, which is worse
    assert policy._now.rate == pytest.approx(4)


def test_what_the_forecasts_got_wrong_is_paid_back_in_the_next_computed_step():
    parabola = lambda u, x: 0.01 * u * u  # noqa: E731
    path, _, computed = euler(parabola, gamma=2.0, unit=1.0)
    gaps = [(n, m) for n, m in zip(computed, computed[1:], strict=False) if m - n > 1]
    gaps = [(n, m) for n, m in gaps if m < 19]  # after the last step there is nothing to pay back to
    assert gaps

    def known_better(u, x):  # on the line between the computed ones, as if that had been known
        n = max(c for c in computed if c <= u)
        m = min(c for c in computed if c >= u)
        return parabola(n, x) + (parabola(m, x) - parabola(n, x)) * ((u - n) / (m - n) if m > n else 0)

    better, _, _ = euler(known_better, gamma=0)
    for _, m in gaps:
        assert path[m] == pytest.approx(better[m], abs=1e-5)
        assert abs(path[m - 1] - better[m - 1]) > 1e-3  # before it was paid back


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_a_jump_forces_a_recompute_until_it_is_over(gamma):
    _, _, computed = euler(lambda u, x: 0.0 if u < 10 else 1.0, steps=40, gamma=gamma)
    seen = next(i for i in computed if i >= 10)
    assert seen - 10 <= 7  # 16 % of 40 steps
    assert seen + 1 in computed
    assert len(computed) < 40  # and then it goes on


def test_a_higher_threshold_never_computes_more():
    wave = lambda u, x: 0.3 * torch.sin(torch.tensor(u / 5)).item()  # noqa: E731
    counts = [len(euler(wave, steps=50, gamma=gamma)[2]) for gamma in (0.05, 0.1, 0.25, 0.5, 1.0, 2.0)]
    assert counts == sorted(counts, reverse=True) and counts[0] > counts[-1]


def test_the_same_run_twice_is_the_same():
    wave = lambda u, x: 0.3 * torch.sin(torch.tensor(u / 5)).item() + 0.01 * x  # noqa: E731
    first, second = euler(wave), euler(wave)
    assert first[0] == second[0] and first[2] == second[2]


def test_heun_comes_to_the_same_noise_level_twice(monkeypatch):
    undamped(monkeypatch)
    plain, _, _ = euler(lambda u, x: 1 + 2 * u, gamma=0, heun=True)
    path, stats, computed = euler(lambda u, x: 1 + 2 * u, heun=True)
    assert path == pytest.approx(plain, abs=1e-4)
    assert len(stats.evaluations) == 39 and len(computed) < 20
    assert all(e.kind == "warmup" for e in stats.evaluations[:6])  # three steps


def test_a_schedule_that_stands_still_is_no_division_by_zero():
    policy, out = alone(2.0, steps=40), None
    for u, a in enumerate((0.9, 0.9, 0.9, 0.9, 1.0)):  # the last step changes nothing
        assert policy.decide(at(u, computed=u != 3, a=a)).compute == (u != 3)
        out = given(policy, torch.full((1, 2), float(u)))
        policy.settle([0.01 for _ in policy.measured()], None)
    assert out.tolist() == [[4.0, 4.0]]


def drive(run, outputs, signatures=None):
    given = []
    for i, value in enumerate(outputs):
        run.begin_evaluation()
        signature = signatures[i] if signatures else None
        given.append(run.output("x", signature, lambda value=value: (value,), torch.device("cpu"))[0])
    return given


def test_another_signature_is_computed():
    run = Run(ForecastConfig(threshold=2.0), steps=20)
    outputs = [torch.full((1, 2), 1.0 + i) for i in range(9)]
    given = drive(run, outputs, ["a"] * 6 + ["b"] * 3)
    assert [x is y for x, y in zip(given, outputs, strict=True)] == [True] * 3 + [False] * 3 + [True] * 3


def test_the_worst_item_of_a_batch_counts():
    policy = alone(1.0)
    for u, value in enumerate((0.0, 1.0, 2.0)):
        policy.decide(at(u, computed=True))
        batch = torch.tensor([[value], [value], [0.0 if u == 2 else value]])  # the last one turns round
        given(policy, batch, unit=torch.ones(3, 1))
    assert policy.measured()[0].item() == pytest.approx(1 + 1 / 1.125)  # forecast 1 + r(1), it was 0


def test_nothing_that_the_host_holds_is_kept_or_handed_out():
    run = Run(ForecastConfig(threshold=2.0), steps=20)
    outputs = [torch.full((1, 2), float(i)) for i in range(4)]
    given = []
    for value in outputs:
        given += drive(run, [value])
        value.fill_(77.0)  # the host writes to its tensors
        given[-1].fill_(77.0)
    assert drive(run, [torch.zeros(1, 2)])[0].tolist()[0] == pytest.approx([2 + 2 / 1.25] * 2)  # slope 1, r(2)
    assert run.stats.peak_bytes == run.held_bytes == 2 * 2 * 4
    run.close()
    assert run.held_bytes == 0


def test_an_error_that_is_not_finite_is_computed_on():
    run = Run(ForecastConfig(threshold=2.0), steps=20)
    drive(run, [torch.full((1, 2), value) for value in (0.0, 1.0, float("nan"), 3.0, 4.0, 5.0)])
    assert not any(e.kind == "reuse" for e in run.stats.evaluations)


def test_when_memory_runs_out_the_output_is_the_computed_one(monkeypatch):
    run = Run(ForecastConfig(threshold=2.0), steps=20)

    def no_memory(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(History, "observe", no_memory)
    outputs = [torch.full((1, 2), float(i)) for i in range(6)]
    assert all(x is y for x, y in zip(drive(run, outputs), outputs, strict=True))
    assert "out of memory" in run.close().inactive


def test_outside_the_chosen_part_of_sampling_everything_is_computed(monkeypatch):
    undamped(monkeypatch)
    _, stats, computed = euler(lambda u, x: 1 + 2 * u, start_percent=0.5, end_percent=0.75)
    assert [i for i in range(20) if i not in computed] == [10, 11, 12, 13]  # 16 % of the run after the last computed
    assert [e.kind for e in stats.evaluations[15:]] == ["plain"] * 5


def test_a_run_that_is_too_short_says_so():
    assert Run(ForecastConfig(), steps=5).stats.inactive is None
    stats = Run(ForecastConfig(), steps=4).stats
    assert stats.inactive == (
        "at most 0 of 4 steps can be reused: 3 are warmup, and the rest is the end, which is always computed"
    )


def test_it_can_wait_elsewhere():
    run = Run(ForecastConfig(threshold=2.0), steps=20, offload=Offload(torch.device("cpu")))
    assert drive(run, [torch.full((1, 2), float(i)) for i in range(4)])[-1][0, 0].item() == pytest.approx(2 + 1 / 1.125)


def test_outputs_over_the_budget_wait_in_ram_or_are_not_kept():
    values = [torch.full((1, 2), float(i)) for i in range(5)]
    run = Run(ForecastConfig(threshold=2.0), steps=20, offload=Offload(fallback=torch.device("cpu")))
    run.set_budget(15, 16)  # two outputs of two fp32 are 16 bytes
    drive(run, values)
    assert run.stats.in_ram and run.stats.evaluations[-1].kind == "reuse"
    for device, fallback, why in ((15, None, "on the device"), (15, torch.device("cpu"), "in RAM")):
        run = Run(ForecastConfig(threshold=2.0), steps=20, offload=Offload(fallback=fallback))
        run.set_budget(device, 15)
        given = drive(run, values)
        assert all(x is y for x, y in zip(given, values, strict=True)) and run.held_bytes == 0
        assert run.stats.inactive.startswith("the stored outputs need")
        assert ("in RAM" in run.stats.inactive) == (fallback is not None), why


def test_without_steps_or_schedule_three_evaluations_are_warmup():
    run = Run(ForecastConfig(threshold=2.0))
    drive(run, [torch.full((1, 2), float(i)) for i in range(5)])
    assert [e.kind for e in run.stats.evaluations] == ["warmup"] * 3 + ["reuse"] * 2


def test_a_device_without_anything_free_leaves_outputs_in_ram():
    """What is free beside torch's pool, less what ComfyUI reserves, may be less than nothing."""
    run = Run(ForecastConfig(threshold=2.0), steps=20, offload=Offload(fallback=torch.device("cpu")))
    run.set_budget(-(300 << 20), 10**9)
    drive(run, [torch.full((1, 2), float(i)) for i in range(5)])
    assert run.stats.inactive is None and run.stats.in_ram and run.stats.evaluations[-1].kind == "reuse"


@pytest.mark.parametrize(("interval", "in_a_row"), [(2, 1), (3, 2), (0, 4)])
def test_an_interval_limits_how_many_are_left_out_in_a_row(monkeypatch, interval, in_a_row):
    undamped(monkeypatch)
    _, stats, _ = euler(lambda u, x: 1 + 2 * u, gamma=2.0, reuse_interval=interval)
    row = "".join("r" if e.kind == "reuse" else "c" for e in stats.evaluations)
    assert max(map(len, row.split("c"))) == in_a_row

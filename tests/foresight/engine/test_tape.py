"""Replay on samplers that are written down: a two-step multistep sampler by hand, and those that are no functions."""

import contextlib
import itertools

import pytest
import torch

from foresight.engine import ForecastConfig, Offload, Restart, Run
from foresight.engine.history import History
from foresight.engine.tape import OWN_NOISE, Tape
from foresight.engine.trajectory import Trajectory
from support.told import computes

STEPS = 12
LEVELS = [1 - k / STEPS for k in range(STEPS + 1)]
ANEW = object()


def multistep(model, x, levels):
    """x <- x + b (1.5 D_k - 0.5 D_(k-1) - x), and Euler's step at first."""
    before = None
    for level, following in itertools.pairwise(levels):
        output = model(x, level)
        taken = output if before is None else 1.5 * output - 0.5 * before
        x, before = x + (1 - following / level) * (taken - x), output
    return x


class Host:
    """Samples with a run, and starts the sampler again when it is asked to."""

    def __init__(self, config, output, sampler=multistep, offload=None, tape=ANEW):
        tape = Tape() if tape is ANEW else tape
        self.run = Run(config, schedule=LEVELS, noise=lambda sigma: sigma, tape=tape, offload=offload)
        self.output, self.sampler = output, sampler
        self.starts = self.computed = 0

    def model(self, x, level):
        level = torch.tensor(level)
        given = self.run.answer(level, (x,))
        if given is not None:
            return given[0]
        self.run.begin_evaluation(level, (x,))

        def compute():
            self.computed += 1
            return (self.output(x, float(level)),)

        (given,) = self.run.output("x", None, compute, x.device, lambda out: (torch.ones_like(x),))
        if self.run.may_restart:
            self.run.give((given,))
        return given.clone()

    def sample(self):
        while True:
            self.starts += 1
            try:
                return self.sampler(self.model, torch.full((1, 4), 2.0), LEVELS)
            except Restart:
                pass


def curve(x, level):
    return 0.2 * x + torch.tensor([0.1, 0.2, 0.3, 0.4]) * (1 - level) ** 2 - 1


COMPUTED = {0, 1, 2, 5, 8, 10, 11}


def test_a_multistep_sampler_goes_on_as_if_better_outputs_had_been_known(monkeypatch):
    monkeypatch.setattr(History, "damping", 1e12)
    host = Host(computes(COMPUTED), curve)
    got = host.sample()
    tape = {}  # by hand: step m is computed where the sampler comes with all that was known before, and kept

    def up_to(m):
        def model(x, level):
            k = round((1 - level) * STEPS)
            if k == m:
                tape[m] = curve(x, level)
            if k in tape:
                return tape[k]
            before, *after = sorted(c for c in tape if c < k)[-2:], *sorted(c for c in tape if c > k)
            if after:
                n = before[-1]
                return tape[n] + (tape[after[0]] - tape[n]) * (k - n) / (after[0] - n)
            first, n = before
            return tape[n] + (tape[n] - tape[first]) * (k - n) / (n - first)  # the forecast

        return model

    for m in sorted(COMPUTED):
        expected = multistep(up_to(m), torch.full((1, 4), 2.0), LEVELS[: m + 2])
    torch.testing.assert_close(got, expected)
    assert host.computed == len(COMPUTED)
    assert host.run.stats.restarts == 3 and host.starts == 1 + 1 + 3  # the first time, to check it, three gaps
    assert len(host.run.stats.evaluations) == STEPS


def test_where_the_plan_leaves_nothing_out_the_sampler_is_left_alone():
    host = Host(ForecastConfig(threshold=1e-12), curve)
    assert torch.equal(host.sample(), multistep(curve, torch.full((1, 4), 2.0), LEVELS))
    assert (host.starts, host.computed, host.run.stats.restarts) == (1, STEPS, 0) and host.run.stats.inactive


def test_the_check_changes_nothing():
    host = Host(computes(set(range(STEPS))), curve)
    assert torch.equal(host.sample(), multistep(curve, torch.full((1, 4), 2.0), LEVELS))
    assert (host.starts, host.computed, host.run.stats.restarts) == (2, STEPS, 0)


class Noisy:
    """Adds noise of its own from some step on, another in every start."""

    def __init__(self, first):
        self.first, self.start = first, 0

    def __call__(self, model, x, levels):
        self.start += 1
        for k, (level, following) in enumerate(itertools.pairwise(levels)):
            x = x + (1 - following / level) * (model(x, level) - x)
            x = x + (0.01 * self.start if k >= self.first else 0.0)
        return x


def test_a_sampler_with_noise_of_its_own_is_found_at_once_and_not_started_again():
    host = Host(computes(COMPUTED), curve, Noisy(0))
    host.sample()
    assert host.starts == 2 and host.run.stats.restarts == 0
    assert host.run.stats.uncorrected == OWN_NOISE and host.run.held_bytes < 6 * 16
    assert host.computed == len(COMPUTED)


def test_one_that_is_found_late_goes_on_with_the_model():
    host = Host(computes(COMPUTED), curve, Noisy(2))
    host.sample()  # noise before evaluation 3, which is left out: at the first restart it is another
    assert host.run.stats.uncorrected == OWN_NOISE and host.starts == 3
    assert host.computed > len(COMPUTED)  # what came after was of another latent


def test_one_that_takes_other_levels_than_before_goes_on_with_the_model():
    starts = []

    def restless(model, x, levels):
        starts.append(len(starts))
        levels = levels if len(starts) < 3 else [*levels[:4], *(0.999 * level for level in levels[4:])]
        return multistep(model, x, levels)

    host = Host(computes(COMPUTED), curve, restless)
    assert torch.isfinite(host.sample()).all()
    assert len(host.run.stats.evaluations) > STEPS  # 4 and 5 were asked for twice, at other levels


def test_the_outputs_of_a_run_that_find_no_room_are_not_kept():
    host = Host(computes(COMPUTED), curve)
    host.run.set_budget(4 * 16 + STEPS * 16 - 1, None)  # four latents of 16 bytes are needed, twelve wanted
    host.sample()
    assert host.run.stats.inactive is None and host.starts <= 2
    assert host.run.stats.uncorrected == "no memory to keep the outputs of the run"


def test_what_the_sampler_writes_into_what_it_was_given_changes_nothing():
    def careless(model, x, levels):
        before = None
        for level, following in itertools.pairwise(levels):
            output = model(x, level)
            kept = output.clone()
            output.fill_(77.0)
            taken = kept if before is None else 1.5 * kept - 0.5 * before
            x, before = x + (1 - following / level) * (taken - x), kept
        return x

    tidy, untidy = (Host(computes(COMPUTED), curve, sampler) for sampler in (multistep, careless))
    assert torch.equal(tidy.sample(), untidy.sample())


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("boom")])
def test_no_memory_for_the_tape_is_no_end_and_other_errors_are_not_hidden(monkeypatch, error):
    host = Host(computes(COMPUTED), curve)

    def fails(*_):
        raise error

    monkeypatch.setattr(host.run._tape, "note", fails)
    if "memory" in str(error):
        host.sample()
        assert host.run.stats.uncorrected == "out of memory while keeping the outputs of the run"
    else:
        with pytest.raises(RuntimeError, match="boom"):
            host.sample()


def test_a_gap_never_reaches_into_what_is_computed_in_full_at_the_end():
    """Behind end_percent nothing is mended, so the last step before it is computed."""
    levels = [1 - k / 40 for k in range(41)]
    run = Run(ForecastConfig(threshold=2.0, end_percent=0.6), schedule=levels, noise=lambda sigma: sigma)
    for level in levels[:-1]:
        run.begin_evaluation(level)
        run.output("x", None, lambda level=level: (torch.full((1, 2), 1e-3 * level),), torch.device("cpu"))
    kinds = [e.kind for e in run.stats.evaluations]
    first = kinds.index("plain")
    assert kinds[first - 1] == "full" and "reuse" in kinds


def test_what_the_tape_holds_is_counted_and_said_to_be_in_ram_where_it_is():
    host = Host(computes(COMPUTED), curve, offload=Offload(fallback=torch.device("cpu")))
    host.run.set_budget(5 * 16, 10**6)  # two outputs, x' and D' have room on the device, twelve outputs have not
    host.sample()
    assert host.run.stats.restarts == 3 and host.run.stats.uncorrected is None
    assert host.run.stats.in_ram and host.run.stats.peak_bytes >= STEPS * 16 + 2 * 16


def test_nothing_is_planned_on_the_device_for_what_waits_in_ram():
    for offload, on_device in ((None, 4 * (4 + STEPS) * 8), (Offload(torch.device("cpu")), 0)):
        host = Host(computes(COMPUTED), curve, offload=offload)
        assert host.run.planned_bytes((1, 8), (), 4, 2) == on_device


def test_behind_a_restart_the_way_goes_on_from_the_better_latent():
    """The sampler did not go there with the model, so that where it was has to be told."""
    moves = []

    class Watched(Host):
        def model(self, x, level):
            computed = self.run.evaluation
            output = super().model(x, level)
            if self.run.evaluation > computed:
                moves.append(self.run._policy._now.move)
            return output

    host = Watched(computes(COMPUTED), curve, euler)
    host.sample()
    assert host.run.stats.restarts == 3
    assert all(move.continues and move.euler and move.price == pytest.approx(1.0) for move in moves[1:])


# ---- taking back


def kink(at):
    """Outputs that stand still, and from this share of the run on go away along a line."""
    return lambda x, level: torch.tensor([0.5, -0.5, 1.0, 0.25]) * max(0.0, 1 - level - at) * 10 + 0 * x


def euler(model, x, levels):
    for level, following in itertools.pairwise(levels):
        x = x + (1 - following / level) * (model(x, level) - x)
    return x


@pytest.mark.parametrize("sampler", [multistep, euler])
def test_what_was_not_worth_leaving_out_is_done_again_and_the_record_says_so(sampler):
    host = Host(ForecastConfig(threshold=1.0), kink(0.4), sampler)
    host.sample()
    stats = host.run.stats
    assert [k for k, e in enumerate(stats.evaluations) if e.kind == "reuse"] == [3, 4]  # before, and then no more
    assert [e.level for e in stats.evaluations] == pytest.approx(LEVELS[:-1])
    assert stats.taken_back == 1 and host.computed == STEPS - 2 + 1
    assert stats.block_speedup == pytest.approx(STEPS / (STEPS - 1)) and stats.reuse_ratio == 2 / STEPS
    assert ", 1 computed again" in stats.summary()
    assert stats.estimated_speedup < 1.2


def test_a_run_that_takes_all_back_gives_the_plain_result():
    host = Host(ForecastConfig(threshold=1.0), kink(0.1))
    assert torch.equal(host.sample(), multistep(host.output, torch.full((1, 4), 2.0), LEVELS))
    stats = host.run.stats
    assert stats.planned < STEPS and stats.taken_back == 1 and not stats.reused and host.computed == STEPS + 1
    assert stats.summary().endswith(f"{STEPS} evaluations computed in full, 1 of them again")


def test_what_an_evaluation_has_shown_is_not_forgotten_when_it_is_taken_back():
    """Or the same would be left out again. What was shown before counts if it was more."""
    trajectory = Trajectory()
    for u, lam in ((0.0, -5.0), (1.0, -4.0), (2.0, -3.0)):
        trajectory.begin_gap(u, lam)
    trajectory.take_back(8.0)
    assert trajectory.scale == pytest.approx(8.0) and trajectory.u_n == 1.0
    trajectory.begin_gap(2.0, -3.0)
    trajectory.take_back(2.0)
    assert trajectory.scale == pytest.approx(8.0)


def test_smooth_outputs_are_never_taken_back():
    host = Host(ForecastConfig(threshold=1.0), curve)
    host.sample()
    assert host.run.stats.reused and host.run.stats.taken_back == 0


def test_a_tape_of_the_beginning_holds_no_more_and_corrects_nothing():
    """Euler's method is paid back what forecasts leave."""
    whole, beginning = (Host(computes(COMPUTED), curve, euler, tape=tape) for tape in (None, Tape(until=3)))
    assert torch.equal(whole.sample(), beginning.sample())
    stats = beginning.run.stats
    assert stats.restarts == 0 and stats.uncorrected is None and stats.reused
    assert stats.peak_bytes == (4 + 4) * 16 and beginning.run.planned_bytes((1, 4), (), 4, 2) == (4 + 4) * 16
    late = Host(ForecastConfig(threshold=1.0), kink(0.3), euler, tape=Tape(until=3))
    late.sample()
    assert late.run.stats.taken_back == 0 and late.run.stats.reused > 1


def test_two_ways_that_take_turns_are_not_taken_back():
    """What the other way knows would have to go as well."""

    def taken_back(ways, last=False):
        tape, level = Tape(), iter(LEVELS)

        def evaluation(u, name="a", left_out=False):
            at = next(level)
            with contextlib.suppress(Restart):  # the check, at the second
                tape.answer(torch.tensor(at), (torch.zeros(1, 1),))
            tape.note(name, u, left_out, (torch.zeros(1, 1),), None)
            tape._at = len(tape._entries)

        for name, u, left_out in (("a", 0.0, False), *ways, ("a", 2.0, last)):
            evaluation(u, name, left_out)
        tape.answer(torch.tensor(next(level)), (torch.zeros(1, 1),))
        return tape.take_back()

    assert taken_back([("a", 1.0, True)]) == 2
    assert taken_back([("a", 1.0, True), ("b", 1.0, False)]) == 0
    assert taken_back([]) == 0
    assert taken_back([("a", 1.0, True)], last=True) == 0  # what is left out shows nothing


def test_what_a_step_has_shown_is_asked_once():
    """A price that rises later, while steps are left out, must not take back what goes on from what is known."""
    host = Host(computes(COMPUTED), curve, tape=Tape())
    seen, take_back = [], host.run._policy._take_back

    def watched():
        before = host.run._policy._now.found
        take_back()
        seen.append((before, host.run._policy._now.found))

    host.run._policy._take_back = watched
    host.sample()
    assert any(before is not None for before, _ in seen) and all(after is None for _, after in seen)

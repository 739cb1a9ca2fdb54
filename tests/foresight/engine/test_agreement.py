"""Several processes that decide together; here each is a thread, and what they exchange is looked at."""

import threading

import pytest
import torch

from foresight import ForecastConfig, PaperConfig
from foresight.engine import Restart, Run
from foresight.engine.agreement import Agreement, Apart
from foresight.engine.tape import Tape

CPU = torch.device("cpu")
STEPS = 24
SIGMAS = torch.linspace(1, 0, STEPS + 1).tolist()
CONFIG = ForecastConfig(threshold=1.0)


class Together:
    """The exchange between threads: every one waits for all others."""

    def __init__(self, size):
        self.size, self.exchanges, self._given = size, 0, {}
        self._barrier = threading.Barrier(size, timeout=20)

    def of(self, rank):
        """What the run of one of them is given."""

        def worst(numbers):
            self._given[rank] = numbers
            self._barrier.wait()
            lengths = {len(x) for x in self._given.values()}
            found = torch.stack(list(self._given.values())).amax(0)
            if self._barrier.wait() == 0:
                self.exchanges += 1
                assert len(lengths) == 1 and numbers.dtype == torch.float32
            self._barrier.wait()
            return found

        worst.size = worst.places = self.size
        worst.place = rank
        return worst

    def all(self, work):
        """`work(rank, worst)` in each of them; results, and the errors that they ended with."""
        results, errors = [None] * self.size, [None] * self.size

        def one(rank):
            try:
                results[rank] = work(rank, self.of(rank))
            except Exception as error:
                errors[rank] = error
                if not isinstance(error, Apart):  # which the others raise as well, once they have left the barrier
                    self._barrier.abort()

        threads = [threading.Thread(target=one, args=(rank,)) for rank in range(self.size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return results, errors


def output_at(x, sigma, rough=0.0):
    """A denoised latent that bends slowly; `rough` makes it jump from one evaluation to the next."""
    target = torch.linspace(-1, 1, x.numel()).view_as(x)
    return target * (1 - 0.3 * sigma**2) + 0.1 * x + rough * (round(sigma * STEPS) % 2) * torch.ones_like(x)


def euler(worst=None, config=CONFIG, rough=0.0, at=None, levels=None, latent=None, **more):
    """Euler's sampler with one Run; `at(e, run)` is called in evaluation e, and `latent(e, x)` changes its latent."""
    run = Run(config, schedule=SIGMAS, noise=lambda sigma: sigma, worst=worst, **more)
    x, latents, computed = torch.linspace(2, -2, 12).view(1, 12), [], []
    for e, (sigma, following) in enumerate(zip(SIGMAS, SIGMAS[1:], strict=False)):
        x = x if latent is None else latent(e, x)
        run.begin_evaluation(torch.tensor([sigma if levels is None else levels(e, sigma)]), (x,))
        computed.append(False)

        def compute(x=x, sigma=sigma):
            computed[-1] = True
            return (output_at(x, sigma, rough),)

        if at is not None:
            at(e, run)
        (d,) = run.output("denoised", x.shape, compute, CPU, lambda output, x=x: (x - output[0],))
        x = d + (x - d) * (following / sigma)
        latents.append(x)
    return torch.stack(latents), computed, run.close()


def kinds(stats):
    return [e.kind for e in stats.evaluations]


def test_processes_that_see_the_same_do_what_one_does():
    alone, computed, stats = euler()
    together = Together(3)
    results, errors = together.all(lambda rank, worst: euler(worst))
    assert errors == [None] * 3 and not all(computed)
    for latents, same, record in results:
        assert torch.equal(latents, alone) and same == computed and kinds(record) == kinds(stats)
    assert together.exchanges == STEPS  # one for each evaluation, and none at the end


def test_the_worst_error_decides_for_all():
    """One process measures more than the other: both compute what it would, and more than without it."""
    rough, _, _ = euler(rough=0.3)
    (one, other), errors = Together(2).all(lambda rank, worst: euler(worst, rough=0.3 * rank))
    assert errors == [None, None] and one[1] == other[1]
    assert sum(one[1]) > sum(euler()[1]) and sum(one[1]) >= sum(euler(rough=0.3)[1]) - 1


def test_one_that_gives_up_ends_it_for_all_in_the_next_evaluation():
    def at(e, run):
        if e == 12:
            run.deactivate("no memory here")

    together = Together(2)
    (one, other), errors = together.all(lambda rank, worst: euler(worst, at=at if rank == 1 else None))
    assert errors == [None, None] and one[1] == other[1] and torch.equal(one[0], other[0])
    before = euler()[1]
    assert one[1][:13] == before[:13] and all(one[1][13:]) and not all(before[13:])
    assert other[2].inactive == "no memory here"
    assert one[2].inactive == "another process has given up, see its record"
    assert together.exchanges == 14  # none any more once all have given up


def test_a_budget_that_is_too_small_for_one_is_for_all():
    def at(e, run):
        if e == 5:
            run.set_budget(8, None)

    (one, other), errors = Together(2).all(lambda rank, worst: euler(worst, at=at if rank == 0 else None))
    assert errors == [None, None] and one[1] == other[1] and all(one[1][6:])
    assert "the stored outputs need" in one[2].inactive
    assert other[2].inactive == "another process has no memory for what has to be stored, see its record"


def test_a_process_that_never_leaves_anything_out_ends_it_for_all():
    """Its host knows why; it says so in the first evaluation."""
    results, errors = Together(2).all(
        lambda rank, worst: euler(worst, inactive="some of the blocks" if rank == 1 else None)
    )
    assert errors == [None, None] and all(results[0][1]) and all(results[1][1])
    assert results[1][2].inactive == "some of the blocks"
    assert results[0][2].inactive == "another process has given up, see its record"


def test_a_latent_that_does_not_go_on_in_one_process_counts_in_all():
    """One process comes with another latent to an evaluation that was to be left out: all forget what they know."""
    _, computed, _ = euler()
    at = computed.index(False, 8)

    def jump(e, x):
        return 2 * x if e == at else x  # away from the output

    (one, other), errors = Together(2).all(lambda rank, worst: euler(worst, latent=jump if rank == 1 else None))
    assert errors == [None, None] and one[1] == other[1] and one[1][:at] == computed[:at]
    assert one[1][at] and one[1][at + 1]  # there is no slope before two are computed


def test_levels_keep_their_digits():
    """Numbers are exchanged in fp32, in which 0.1 is another number."""
    run = Run(CONFIG, steps=10, worst=Together(1).of(0))
    levels = [1.0, 0.9, 0.1]
    for level in levels:
        run.begin_evaluation(level)
    assert [e.level for e in run.stats.evaluations] == levels


def test_what_is_not_a_number_is_the_worst():
    agreement = Agreement(Together(1).of(0), ())
    assert agreement.exchange(0, 0, 0.5, [float("nan"), 1.0]).opinion[:3] == [float("inf"), 1.0, -float("inf")]


def test_all_hear_what_each_tells():
    def exchanged(rank, worst, silent=None):
        agreement = Agreement(worst, (), 3)
        told = [] if rank == silent else [rank, -10.0 * rank, float(rank == 2)]
        return agreement.exchange(0, 0, 0.5, [float(rank)], told)

    results, errors = Together(3).all(exchanged)
    assert errors == [None] * 3
    for joint in results:
        assert joint.told.tolist() == [[0, 0, 0], [1, -10, 0], [2, -20, 1]] and joint.opinion[0] == 2
    results, _ = Together(3).all(lambda rank, worst: exchanged(rank, worst, silent=1))
    assert [joint.told for joint in results] == [None] * 3  # half of it would mislead
    assert Agreement(Together(1).of(0), ()).exchange(0, 0, 0.5, []).told is None


@pytest.mark.parametrize("level", [0.0, 0.01])
def test_a_process_whose_level_is_not_the_evaluations_has_no_opinion(level):
    """Its tokens are all of a kept first frame, so that it sees no noise: the others know better."""
    alone, computed, _ = euler()
    results, errors = Together(2).all(
        lambda rank, worst: euler(worst, levels=(lambda e, sigma: level) if rank == 1 else None)
    )
    assert errors == [None, None]
    for latents, same, record in results:
        assert [e.level for e in record.evaluations] == pytest.approx(SIGMAS[:-1]) and same == computed
        assert torch.equal(latents, alone)


OTHERS = {
    "threshold": dict(config=ForecastConfig(threshold=0.5)),
    "method": dict(config=PaperConfig(threshold=1.0)),
    "off": dict(config=ForecastConfig(threshold=0.0)),
}


@pytest.mark.parametrize("other", OTHERS)
def test_other_settings_are_the_same_error_in_all_at_once(other):
    begun = []

    def work(rank, worst):
        return euler(worst, at=lambda e, run: begun.append(e), **(OTHERS[other] if rank else {}))

    _, errors = Together(2).all(work)
    assert [type(error) for error in errors] == [Apart, Apart] and not begun
    assert "other settings, another schedule or another version: give all 2 processes the same" in str(errors[0])


def test_memory_settings_are_each_process_own():
    budgets = [ForecastConfig(threshold=1.0, cache_device="cpu"), ForecastConfig(threshold=1.0, cache_budget_gb=2.0)]
    results, errors = Together(2).all(lambda rank, worst: euler(worst, config=budgets[rank]))
    assert errors == [None, None] and results[0][1] == results[1][1]


def test_one_that_computes_what_the_other_leaves_out_is_an_error_of_both():
    def work(rank, worst):
        run = Run(CONFIG, schedule=SIGMAS, noise=lambda sigma: sigma, worst=worst)
        x = torch.linspace(2, -2, 12).view(1, 12)
        for e, sigma in enumerate(SIGMAS[:-1]):
            run.begin_evaluation(sigma, (x,))
            signature = "other" if rank == 1 and run.kind == "reuse" else "same"
            (d,) = run.output("denoised", signature, lambda x=x, s=sigma: (output_at(x, s),), CPU)
            x = d + (x - d) * (SIGMAS[e + 1] / sigma)

    _, errors = Together(2).all(work)
    assert [type(error) for error in errors] == [Apart, Apart]
    assert "the 2 processes have gone apart: this one is in evaluation" in str(errors[0])


def test_running_out_of_memory_is_an_error_where_others_go_on():
    def fail(*_):
        raise RuntimeError("can't allocate memory")

    alone = Run(CONFIG, schedule=SIGMAS)
    shared = Run(CONFIG, schedule=SIGMAS, worst=Together(1).of(0))
    for run in (alone, shared):
        run.begin_evaluation(1.0)
        run._policy.output = fail
    assert alone.output("d", 1, lambda: (torch.ones(1, 1),), CPU) and "out of memory" in alone.stats.inactive
    with pytest.raises(RuntimeError, match="allocate memory"):
        shared.output("d", 1, lambda: (torch.ones(1, 1),), CPU)


def test_and_so_it_is_while_the_outputs_are_kept():
    def fail(*_):
        raise RuntimeError("can't allocate memory")

    alone = Run(CONFIG, schedule=SIGMAS, tape=Tape())
    shared = Run(CONFIG, schedule=SIGMAS, tape=Tape(), worst=Together(1).of(0))
    for run in (alone, shared):
        run.begin_evaluation(1.0)
        run._policy.given = fail
    alone.give((torch.ones(1, 1),))
    assert alone.stats.uncorrected == "out of memory while keeping the outputs of the run"
    with pytest.raises(RuntimeError, match="allocate memory"):
        shared.give((torch.ones(1, 1),))


def test_a_method_that_cannot_decide_together_leaves_the_model_alone():
    run = Run(PaperConfig(threshold=2.0), steps=20, worst=Together(1).of(0))
    worst = Together(2).of(0)
    assert Run(PaperConfig(threshold=2.0), steps=20, worst=worst).stats.inactive == "blocks are spread over 2 processes"
    for _ in range(20):
        run.begin_evaluation()
        assert run.begin_call(["cond"], 4) is None
    assert run.close().reused == 0


# ---- samplers that are started again


def heun_like(worst, forget=lambda e: False, short=None):
    """A two-step method, started again as ComfyUI's host does. `forget(starts)` lets noise be other than before."""
    run = Run(CONFIG, schedule=SIGMAS, noise=lambda sigma: sigma, worst=worst, tape=Tape())
    starts = 0
    while True:
        x, before, starts = torch.linspace(2, -2, 12).view(1, 12), None, starts + 1
        try:
            for e, sigma in enumerate(SIGMAS[:-1]):
                level = torch.tensor([sigma])
                given = run.answer(level, (x,))
                if given is None:
                    run.begin_evaluation(level, (x,))
                    if short == e:
                        run.set_budget(400, None)
                    given = run.output("d", 1, lambda x=x, s=sigma: (output_at(x, s),), CPU, lambda d, x=x: (x - d[0],))
                    run.give(given)
                d = given[0]
                blend = d if before is None else 1.5 * d - 0.5 * before
                x, before = blend + (x - blend) * (SIGMAS[e + 1] / sigma), d
                x = x + 1e-3 if forget(starts) else x
            return x, run.close()
        except Restart:
            continue


def test_samplers_are_started_again_together():
    alone, stats = heun_like(None)
    assert stats.restarts > 1
    results, errors = Together(2).all(lambda rank, worst: heun_like(worst))
    assert errors == [None, None]
    for x, record in results:
        assert torch.equal(x, alone) and record.restarts == stats.restarts and kinds(record) == kinds(stats)


def test_noise_that_does_not_repeat_in_one_process_ends_restarts_in_all():
    results, errors = Together(2).all(
        lambda rank, worst: heun_like(worst, (lambda starts: starts == 2) if rank == 1 else (lambda starts: False))
    )
    assert errors == [None, None] and kinds(results[0][1]) == kinds(results[1][1])
    for _, record in results:
        assert record.restarts == 0 and record.uncorrected == "the sampler draws noise that no seed repeats"


def test_a_tape_that_has_no_room_in_one_process_ends_in_all():
    """400 bytes are room for two outputs of 12 numbers, x' and D', but not for all of a run."""
    results, errors = Together(2).all(lambda rank, worst: heun_like(worst, short=3 if rank == 1 else None))
    assert errors == [None, None] and kinds(results[0][1]) == kinds(results[1][1])
    assert torch.equal(results[0][0], results[1][0])
    assert results[1][1].uncorrected == "no memory to keep the outputs of the run"
    assert results[0][1].uncorrected == "another process has no memory to keep the outputs of the run"
    assert results[0][1].inactive is None and results[0][1].restarts == results[1][1].restarts

"""A latent of several parts (video and audio): the worst one's error decides, and the record has each one's."""

import math

import pytest
import torch

from foresight import ForecastConfig
from foresight.engine import Run
from foresight.engine.agreement import OPINIONS
from foresight.engine.blend import GUIDED, Blend
from foresight.engine.evidence import Evidence
from foresight.engine.guidance import cancels
from foresight.engine.history import LOUDEST, by_part, quieted
from foresight.engine.moves import Move
from foresight.engine.stats import Evaluation
from foresight.engine.trajectory import Trajectory

STEPS = 24
SIGMAS = [1 - k / STEPS for k in range(STEPS + 1)]
NAMES = "video", "audio"
CONFIG = ForecastConfig(threshold=1.0, validate=True)
VIDEO, AUDIO = (2, 6, 5), (2, 7)  # a batch of two


def denoised(part: int, sigma: float) -> torch.Tensor:
    """The video bends; the audio twelve times as much, and the second item of either more than the first."""
    shape, bends = (VIDEO, 1.0) if part == 0 else (AUDIO, 12.0)
    pattern = torch.linspace(-1, 1, math.prod(shape)).view(shape)
    of_item = torch.tensor([1.0, 1.5]).view(2, *[1] * (len(shape) - 1))
    return pattern * (1 + of_item * bends * (1 - sigma) ** 2)


def noise(part: int) -> torch.Tensor:
    return torch.randn(VIDEO if part == 0 else AUDIO, generator=torch.Generator().manual_seed(part))


def unit_of(x):
    return lambda outputs: tuple(part - output for part, output in zip(x, outputs, strict=True))


def rms(x: torch.Tensor) -> float:
    return float(x.double().square().mean().sqrt())


def off(given: torch.Tensor, real: torch.Tensor, x: torch.Tensor) -> float:
    """rms(given - real) / rms(x - real) of the worst item of the batch, straight from its definition."""
    return max(rms(g - r) / rms(y - r) for g, r, y in zip(given, real, x, strict=True))


def sampled(parts=NAMES, config=CONFIG, which=(0, 1), reads=None, worst=None):
    """Euler's sampler; its latents, the record, and by evaluation what each part of what was given is off."""
    run = Run(config, schedule=SIGMAS, noise=lambda sigma: sigma, parts=parts, worst=worst)
    x, path, seen = tuple(map(noise, which)), [], []
    for sigma, after in zip(SIGMAS, SIGMAS[1:], strict=False):
        if reads is not None:
            reads.append(0)
        run.begin_evaluation(torch.tensor([sigma]), x)
        real = tuple(denoised(part, sigma) for part in which)
        given = run.output("denoised", "x", lambda real=real: real, x[0].device, unit_of(x))
        seen.append([off(*of_part) for of_part in zip(given, real, x, strict=True)])
        x = tuple(y + (after / sigma - 1) * (y - d) for y, d in zip(x, given, strict=True))
        path.append(x)
    return path, run.close(), seen


def test_the_error_of_each_part_is_in_the_record():
    _, stats, seen = sampled()
    left_out = [k for k, e in enumerate(stats.evaluations) if e.kind == "reuse"]
    assert len(left_out) > 8 and stats.parts == NAMES
    for k in left_out:
        row = stats.evaluations[k]
        assert row.missed_parts == pytest.approx(seen[k], rel=1e-3, abs=1e-6)
        assert row.missed == max(row.missed_parts)
    video, audio = zip(*(stats.evaluations[k].missed_parts for k in left_out), strict=True)
    assert all(a > v > 0 for a, v in zip(audio, video, strict=True)) and sum(audio) > 2 * sum(video)
    assert stats.missed_parts == {"video": max(video), "audio": max(audio)}
    assert f"{max(audio):.2%} at most (video {max(video):.2%}, audio {max(audio):.2%}):" in stats.summary()


def test_what_was_computed_says_what_its_forecast_would_have_missed_in_each_part():
    """The second evaluation is forecast by giving the first output again."""
    _, stats, _ = sampled(config=ForecastConfig(threshold=1.0, warmup_steps=3))
    row = stats.evaluations[1]
    assert row.kind == "warmup"
    # one step of Euler leads from the noise x to x + (sigma' / sigma - 1)(x - D)
    first, second = [[denoised(part, sigma) for part in (0, 1)] for sigma in SIGMAS[:2]]
    x = [noise(part) + (SIGMAS[1] - 1) * (noise(part) - d) for part, d in zip((0, 1), first, strict=True)]
    assert row.missed_parts == pytest.approx([off(*p) for p in zip(first, second, x, strict=True)], rel=1e-3)
    assert not stats.evaluations[0].missed_parts  # there was nothing to forecast it from


def test_nothing_else_depends_on_whether_the_parts_are_told_apart():
    told, untold = sampled(), sampled(parts=())
    assert all(torch.equal(a, b) for x, y in zip(told[0], untold[0], strict=True) for a, b in zip(x, y, strict=True))
    rows = [record.to_dict()["evaluations"] for _, record, _ in (told, untold)]
    for a, b in zip(*rows, strict=True):
        assert b.pop("missed_parts") == [] and len(a.pop("missed_parts")) == 2 * (a["missed"] is not None)
        assert {**a, "seconds": 0} == {**b, "seconds": 0}
    assert untold[1].missed_parts == {} and "audio" not in untold[1].summary()


def test_the_worst_part_decides():
    """With the audio beside it, a video is computed as often as the audio needs it."""
    both, video, audio = (
        [e.kind for e in sampled(parts, which=which)[1].evaluations]
        for parts, which in ((NAMES, (0, 1)), ((), (0,)), ((), (1,)))
    )
    assert both == audio and both.count("reuse") < video.count("reuse")


def test_each_part_needs_no_further_read_of_the_device(monkeypatch):
    reads, found = [], torch.Tensor.tolist

    def tolist(self):
        reads[-1] += 1
        return found(self)

    monkeypatch.setattr(torch.Tensor, "tolist", tolist)
    for name in ("item", "__float__", "__bool__", "__int__"):
        monkeypatch.setattr(torch.Tensor, name, lambda self, name=name: pytest.fail(f"{name} reads the device"))
    monkeypatch.setitem(globals(), "off", lambda *_: 0.0)
    _, stats, _ = sampled(reads=reads)
    assert any(e.missed_parts for e in stats.evaluations)
    assert reads == [1] * (STEPS - 1) + [2]  # and one at the end of the run


def test_no_part_is_measured_in_more_than_the_noise():
    """One item of the audio is louder than the noise, which is 0.5; what is not stays as it is."""
    video, audio = torch.full((2, 4, 5), 0.59), torch.tensor([[0.1] * 8, [-30.0] * 8])
    quiet, loud = quieted((video, audio), [0.5, 0.5])
    assert torch.equal(quiet, video) and torch.equal(loud[0], audio[0])
    torch.testing.assert_close(loud[1], torch.full((8,), -1.2 * 0.5))
    nothing, without_noise = quieted((torch.zeros(1, 3), video), [0.5, 0.0])
    assert not nothing.any() and torch.equal(without_noise, video)  # at the very end there is no noise to compare with


# ---- what belongs to which part


def test_outputs_that_hold_every_part_several_times():
    # of one output: (video, audio), twice; of another: once
    assert by_part([[1.0, 4.0, 2.0, 3.0], [1.5, 0.5]], 2) == [2.0, 4.0]
    assert by_part([[1.0, 4.0]], 1) == [4.0]
    assert by_part([[1.0, 4.0], [5.0]], 2) == [5.0]  # an output without audio: which is which?


@pytest.mark.parametrize("outputs", [[[0.1, math.nan]], [[math.nan, 0.1]], [[0.1], [math.nan]]])
def test_an_error_that_is_no_number_is_not_lost_among_others(outputs):
    assert any(map(math.isnan, by_part(outputs, 2))) and math.isnan(by_part(outputs, 1)[0])
    row = Evaluation("full")
    row.note_missed(by_part(outputs, 2))
    assert row.missed is None and row.missed_parts == []


# ---- where the sampler is given a blend


def blended(fixed=False, noise=None, shapes=((2, 512), (2, 64)), several=True):
    """A blend of two conds, u + 3 (c - u), over these parts, and what each part of it is off."""
    g = torch.Generator().manual_seed(0)
    x = [torch.randn(shape, generator=g) for shape in shapes]
    units = [[torch.randn(t.shape, generator=g) for t in x] for _ in range(2)]
    missed = [[size * torch.randn(t.shape, generator=g) for t, size in zip(x, (0.01, 0.2), strict=False)] for _ in "uc"]
    blend = Blend(flow=True, several=several and len(x) > 1)
    blend.begin(1.0, tuple(x), None, noise)
    for unit, lost in zip(units, missed, strict=True):
        blend.note(tuple(y - r for y, r in zip(x, unit, strict=True)), tuple(lost))
    m, r = ([-2 * u + 3 * c for u, c in zip(*both, strict=True)] for both in (missed, units))
    after = [y - 0.1 * unit for y, unit in zip(x, r, strict=True)]
    if fixed:
        after[1] = x[1]
    blend.judge(blend.measure(tuple(after)).tolist(), 0.9)
    limit = LOUDEST * noise if noise is not None and several and len(x) > 1 else math.inf
    return blend, [float((norm(a) / norm(b).clamp_max(limit)).max()) for a, b in zip(m, r, strict=True)]


def norm(x):
    """Rms of each item."""
    return x.square().mean(1).sqrt()


def test_a_blend_has_an_error_for_each_part():
    blend, errors = blended()
    assert errors[1] > 5 * errors[0]
    assert blend.guided([1.0, 1.0], 2) == pytest.approx(errors, rel=1e-3)
    assert blend.guided([1.0], 2) == pytest.approx([errors[1]], rel=1e-3)  # nobody has told how many parts there are


@pytest.mark.parametrize("noise", [0.1, 1.0, 2.0, 10.0])
def test_a_blend_is_measured_in_no_more_than_the_noise(noise):
    """Its units are 3.6 of rms; a latent of one part is measured in its own size."""
    blend, errors = blended(noise=noise)
    assert blend.guided([1.0, 1.0], 2) == pytest.approx(errors, rel=1e-3)
    assert (errors[1] > 1.1 * blended()[1][1]) == (noise < 3)
    one, of_one = blended(noise=noise, shapes=((2, 512),))
    assert one.guided([1.0], 2) == pytest.approx(of_one, rel=1e-3) and of_one == blended(shapes=((2, 512),))[1]
    items, of_items = blended(noise=noise, several=False)  # a list of latents of different sizes, as Z-Image takes it
    assert items.guided([1.0, 1.0], 2) == pytest.approx(of_items, rel=1e-3) and of_items == blended()[1]


def test_a_run_knows_parts_from_the_items_of_a_list():
    blends = [
        Run(CONFIG, schedule=SIGMAS, noise=lambda sigma: sigma, blended=True, parts=parts)._policy.resources.blend
        for parts in (NAMES, ())
    ]
    for blend in blends:
        blend.begin(1.0, (noise(0), noise(1)), None, 0.5)
    parts, items = (blend.quieted((torch.full((1, 4), 9.0),) * 2) for blend in blends)
    assert parts[0].max() == pytest.approx(0.6) and items[0].max() == 9


def test_weights_that_cancel_say_nothing_of_a_blend():
    assert cancels(torch.zeros(2)) and cancels(torch.tensor([1.0, -1.0])) and not cancels(torch.tensor([-2.0, 3.0]))


def test_where_a_part_does_not_move_its_error_is_not_known():
    blend, errors = blended(fixed=True)
    assert blend.guided([1.0, 1.0], 2) == pytest.approx([errors[0]], rel=1e-3)


def test_while_a_blend_is_not_known_the_outputs_errors_stand_for_it():
    blend = Blend(flow=True)
    assert blend.guided([0.1, 0.2], 2) == [GUIDED * 0.1, GUIDED * 0.2] and blend.guided([0.1, 0.2], 1) == [0.1, 0.2]


# ---- several processes

GOES_ON = Move(True, True, 1.0, False)


def agreed(*of_processes, parts=2):
    """What the first process notes when each of them has measured these errors by part; None for nothing."""
    opinions, noted = [], []
    for errors in of_processes:
        evidence = Evidence(None, True, parts)
        evidence._found = lambda now, level, errors=errors: (GOES_ON, errors or [])
        evidence._errors, evidence._row = (errors or [], True, 1), Evaluation("full")
        opinions.append([*evidence.opinion(Trajectory(), 0.5)])
        noted.append(evidence)
    assert {len(opinion) for opinion in opinions} == {OPINIONS}
    row = noted[0]._row
    assert row.missed is None  # what this process alone has seen is nobody's error
    noted[0].agree([max(numbers) for numbers in zip(*opinions, strict=True)])
    noted[0].weigh(Trajectory(), 0.5)
    return row.missed, row.missed_parts


class Measured:
    """A history that has just measured an error."""

    error, sloped = torch.tensor([0.25]), True


@pytest.mark.parametrize("together", [False, True])
def test_an_error_is_learned_by_the_trajectory_that_it_was_measured_on(together):
    """FlowEdit goes by two in turn; the next evaluation is the other one's."""
    evidence, row, trajectories = Evidence(None, together), Evaluation("full"), (Trajectory(), Trajectory())
    learned = []
    for k, trajectory in enumerate(trajectories):
        trajectory.learn = lambda errors, sloped, k=k: learned.append((k, errors, sloped))
    trajectories[0].histories["out"] = Measured()
    evidence.settle([0.25], trajectories[:1], row)
    assert row.missed == (None if together else 0.25) and not learned
    if together:
        evidence.agree(evidence.opinion(trajectories[1], 0.5))
    evidence.weigh(trajectories[1], 0.5)
    evidence.weigh(trajectories[0], 0.4)
    assert row.missed == 0.25 and [(k, max(errors), sloped) for k, errors, sloped in learned] == [(0, 0.25, True)]


def test_errors_of_both_parts_go_through_the_exchange():
    def worst(numbers):  # the others know the same
        return numbers

    worst.size = 2
    config = ForecastConfig(threshold=1.0)
    alone, together = (sampled(config=config, worst=exchange)[1].evaluations for exchange in (None, worst))
    assert [e.missed_parts for e in together[:-1]] == [e.missed_parts for e in alone[:-1]]  # nobody asks for the last
    assert sum(len(e.missed_parts) == 2 for e in together) > 5


def test_noise_that_one_process_has_seen_renewed_holds_for_all():
    opinions = []
    for noisy in (False, True):
        evidence = Evidence(None, True)
        evidence._found = lambda now, level, noisy=noisy: (Move(euler=False, price=3.0, noisy=noisy), [])
        opinions.append(evidence.opinion(Trajectory(), 0.5))
    for mine, noisy in (([opinions[0]], False), (opinions, True)):
        now, evidence = Trajectory(), Evidence(None, True, most_taken=2.0)
        evidence.agree([max(numbers) for numbers in zip(*mine, strict=True)])
        evidence.weigh(now, 0.5)
        assert now.noisy == noisy and now.move.price == (2.0 if noisy else 3.0)


def test_over_several_processes_each_part_has_the_worst_of_them():
    assert agreed([0.25, 0.5], [0.375, 0.125]) == (0.5, [0.375, 0.5])
    assert agreed([0.25, 0.5], None) == (0.5, [0.25, 0.5])  # one has measured nothing
    assert agreed([0.25, 0.5], [0.375]) == (0.5, [])  # one can't tell them apart
    assert agreed([0.25], [0.5], parts=1) == (0.5, [])
    assert agreed([0.25, 0.5, 0.125], [0.25, 0.5, 0.75], parts=3) == (0.75, [])  # no room for three
    assert agreed([0.25, 0.5], [0.25, math.nan])[1] == []

"""A blend whose streams lie in several processes: from short sketches all of them find what one would that has all."""

import math

import pytest
import torch

from foresight.engine.blend import Blend
from foresight.engine.pooled import MOST_ITEMS, MOST_PLACES, NUMBERS, Pool
from foresight.engine.sketch import sketch

SIZE = 20000  # elements of an item, many times the numbers of a sketch
GUIDANCE = (4.0, -3.0)  # weights of cond and uncond


def seeded(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# ---- sketches


def deviations(size, alike):
    """How far products of sketches are off, in units of what is expected, over pairs of tensors."""
    off = []
    for seed in range(200):
        a = seeded(seed, 1, 1000 + seed)
        b = alike * a + seeded(1000 + seed, 1, 1000 + seed)
        s, t = sketch([a, b], size)[:, 0].double()
        a, b = a.double().flatten(), b.double().flatten()
        expected = ((a @ a) * (b @ b) + (a @ b) ** 2).div(size).sqrt()
        off.append(float((s @ t - a @ b) / expected))
    return torch.tensor(off)


@pytest.mark.parametrize("size", [16, 64, 256])
@pytest.mark.parametrize("alike", [0.0, 1.0, 20.0])
def test_products_of_sketches_are_off_by_what_is_expected(size, alike):
    off = deviations(size, alike)
    assert abs(off.mean()) < 3 / math.sqrt(len(off)) and 0.7 < off.std() < 1.2


def test_a_sketch_of_a_blend_is_the_blend_of_sketches():
    a, b = seeded(1, 3, 70, 30), seeded(2, 3, 70, 30)
    s, t, blend = sketch([a, b, 4 * a - 3 * b], 128)
    assert s.shape == (3, 128) and torch.allclose(4 * s - 3 * t, blend, atol=1e-3)
    assert not torch.allclose(s[0], sketch([a[1:]], 128)[0][0])  # each item has its own
    assert torch.equal(sketch([a[1:2]], 128)[0][0], s[1])


def test_what_is_no_longer_than_its_sketch_is_told_exactly():
    a = seeded(1, 2, 50)
    assert torch.equal(sketch([a], 64)[0, :, :50].abs(), a.abs())


# ---- processes


class Case:
    """A step along a blend of two streams, and what their forecasts have missed."""

    def __init__(self, flow=True, dtype=torch.float32, shapes=((1, SIZE),), noise=0.0, fixed=0, limit=None):
        self.flow, self.dtype, self.limit, n = flow, dtype, limit, len(shapes)
        self.x = [seeded(i, *shape).to(dtype) for i, shape in enumerate(shapes)]
        cond = [seeded(10 + i, *shape) for i, shape in enumerate(shapes)]
        self.units = cond, [c + 0.2 * seeded(20 + i, *s) for i, (c, s) in enumerate(zip(cond, shapes, strict=True))]
        lost = [0.05 * (1 + i) * seeded(30 + i, *shape) for i, shape in enumerate(shapes)]
        self.missed = lost, [m + 0.02 * seeded(40 + i, *s) for i, (m, s) in enumerate(zip(lost, shapes, strict=True))]
        steps = [sum(w * u[i] for w, u in zip(GUIDANCE, self.units, strict=True)) for i in range(n)]
        sign = -0.1 if flow else 0.1
        self.after = [
            (x.float() + sign * step + noise * seeded(50, *x.shape)).to(dtype)
            for x, step in zip(self.x, steps, strict=True)
        ]
        for x, after in zip(self.x, self.after, strict=True):
            after[:, :fixed] = x[:, :fixed]

    def blend(self, streams, places, missed=True):
        """What a process knows that has these streams, and the move that it sees."""
        blend = Blend(self.flow, places, several=len(self.x) > 1)
        blend.begin(1.0, tuple(self.x), None, self.limit)
        for k in streams:
            units = self.units[k]
            outputs = [x.float() - r for x, r in zip(self.x, units, strict=True)] if self.flow else units
            blend.note(tuple(outputs), tuple(self.missed[k]) if missed else None)
        return blend, blend.judge(blend.measure(tuple(self.after)).tolist(), 0.9)


def pooled(case, *streams, missed=True):
    """What each process finds from what all of them have told; each has some of the streams."""
    blends = [case.blend(of_one, len(streams), missed)[0] for of_one in streams]
    slots = torch.tensor([blend.told for blend in blends])
    assert slots.shape == (len(streams), blends[0].told_length)
    return [blend.judge_pooled(slots) for blend in blends]


CASES = {
    "one video": {},
    "in bf16": dict(dtype=torch.bfloat16),
    "no flow model": dict(flow=False),
    "a batch": dict(shapes=((2, SIZE),)),
    "video and audio": dict(shapes=((1, SIZE), (1, 3000))),
    "both larger than the noise": dict(shapes=((1, SIZE), (1, 3000)), limit=0.1),
    "noise is added": dict(noise=0.3),
    "some of it held fixed": dict(fixed=SIZE // 3),
}


@pytest.mark.parametrize("streams", [((0,), (1,)), ((0,), (0,), (1,), (1,)), ((0, 1), (1,))], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_together_they_find_what_one_process_finds_that_has_all_streams(case, streams):
    case = Case(**CASES[case])
    alone, move = case.blend((0, 1), 0)
    found = pooled(case, *streams)
    assert all(of_one == found[0] for of_one in found)  # the same in all of them, to the last bit
    together, errors = found[0]
    assert (together.continues, together.euler) == (move.continues, move.euler)
    assert together.price == pytest.approx(move.price, rel=0.1)
    few = len(streams) * sum(map(len, case.x))
    assert errors == pytest.approx(alone.errors, rel=3 / math.sqrt(NUMBERS / few))


def test_alone_each_of_them_sees_something_else():
    """So the test above could fail."""
    case = Case()
    alone, move = case.blend((0, 1), 0)
    for k in (0, 1):
        blend, seen = case.blend((k,), 2)
        assert move.euler and not seen.euler and blend.errors[0] < 0.8 * alone.errors[0]


def test_weights_are_known_before_errors_are():
    (move, errors), _ = pooled(Case(), (0,), (1,), missed=False)
    assert move.euler and errors == []
    case = Case()
    told = [case.blend((k,), 2, missed=k == 0)[0].told for k in (0, 1)]
    assert Pool(True, 2).judge(torch.tensor(told))[1] == []


def test_where_all_have_the_same_streams_each_goes_by_what_it_knows_itself():
    assert pooled(Case(), (0, 1), (0, 1)) == [None, None] and pooled(Case(), (0,), (0,)) == [None, None]


def test_other_videos_are_not_pooled():
    one, other = Case(), Case()
    other.after = [x + 0.001 * seeded(60, *x.shape) for x in other.after]
    told = [case.blend((k,), 2)[0].told for k, case in enumerate((one, other))]
    assert Pool(True, 2).judge(torch.tensor(told)) is None
    half = Case(shapes=((1, SIZE // 2),))
    told = [case.blend((k,), 2)[0].told for k, case in enumerate((one, half))]
    assert Pool(True, 2).judge(torch.tensor(told)) is None
    assert Pool(True, 2).judge(torch.tensor([told[0], [math.nan] * len(told[0])])) is None


def test_nothing_is_told_where_it_would_be_too_much():
    assert Case().blend((0, 1), MOST_PLACES + 1)[0].told_length == 0
    three, many = Case(), Case(shapes=((MOST_ITEMS + 1, 50),))
    assert three.blend((0, 1, 1), 2)[0].told == [] and many.blend((0,), 2)[0].told == []
    assert Case(shapes=((MOST_ITEMS, 50),)).blend((0,), 2)[0].told
    assert Case().blend((0, 1), 0)[0].told == []


def test_the_exchange_does_not_grow_with_the_processes():
    assert MOST_PLACES * Pool(True, MOST_PLACES).length < 1.1 * 2 * Pool(True, 2).length < 15000

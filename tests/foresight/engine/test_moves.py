"""How a sampler got from one evaluation to the next, on latents whose numbers a reader can check."""

import math

import pytest
import torch

from foresight.engine.moves import Move, Track


def move(x, level, before=0.0, given=1.0, level_before=1.0):
    """The move to a latent `x` from `before`, for which `given` was handed out."""
    track = Track()
    track.note(level_before, (torch.full((1, 4), before),), (torch.full((1, 4), given),), False, None)
    return track.judge(track.measure((torch.full((1, 4), x),)).tolist(), level)


def test_eulers_step_is_eulers_step():
    # from 0 toward 1 by b = 1 - 0.75 / 1 = 0.25
    assert move(0.25, 0.75) == Move(continues=True, euler=True, price=pytest.approx(1.0, abs=1e-3))


def test_a_sampler_that_takes_in_more_has_its_price():
    found = move(0.75, 0.75)  # three times what Euler takes
    assert found.continues and not found.euler and found.price == pytest.approx(3.0)


@pytest.mark.parametrize(("new", "noisy"), [(0.2, False), (0.3, True)])
def test_noise_that_is_renewed_is_seen_and_remembered_within_a_step(new, noisy):
    # three times Euler's step toward 1, and as long as `new` times v at right angles to it
    x = torch.tensor([[0.75 + new, 0.75 - new, 0.75 + new, 0.75 - new]])
    track = Track()
    track.note(1.0, (torch.zeros(1, 4),), (torch.ones(1, 4),), False, None)
    found = track.judge(track.measure((x,)).tolist(), 0.75)
    assert found == Move(True, False, pytest.approx(3.0), False, noisy)
    track.note(0.75, (x,), (x + 1,), False, None)  # a second evaluation at the same level is no step
    assert track.judge(track.measure((x + 0.01,)).tolist(), 0.75).noisy == noisy
    track.note(0.75, (x,), (x + 1,), False, None)
    assert not track.judge(track.measure((x + 1 / 3,)).tolist(), 0.5).noisy


@pytest.mark.parametrize(("x", "level"), [(-0.25, 0.75), (0.0, 0.75), (0.25, 1.1), (math.nan, 0.75)])
def test_what_goes_the_other_way_stands_still_or_rises_is_no_continuation(x, level):
    assert not move(x, level).continues


@pytest.mark.parametrize(("x", "near"), [(0.25 + 0.05, True), (0.25 + 0.07, False)])
def test_a_second_evaluation_at_the_same_level_has_to_be_nearer_than_a_third_of_the_last_step(x, near):
    track = Track()
    track.note(1.0, (torch.zeros(1, 4),), (torch.ones(1, 4),), False, None)
    after_step = torch.full((1, 4), 0.25)  # a step of 0.25, so that 0.3 x 0.25 x (1 - 0.25) = 0.056 is near
    assert track.judge(track.measure((after_step,)).tolist(), 0.75).continues
    track.note(0.75, (after_step,), (torch.ones(1, 4),), False, None)
    assert track.judge(track.measure((torch.full((1, 4), x),)).tolist(), 0.75).continues == near


def test_an_output_that_is_the_latent_itself_moves_nothing():
    assert move(0.0, 0.75, given=0.0) == Move(idle=True)  # CFG-Zero* at first
    assert not move(0.1, 0.75, given=0.0).continues


def test_the_worst_item_and_the_worst_part_decide():
    track = Track()
    video, sound = torch.zeros(2, 4), torch.zeros(2, 2)
    track.note(1.0, (video, sound), (video + 1, sound + 1), False, None)
    right = (video + 0.25, sound + 0.25)
    assert track.judge(track.measure(right).tolist(), 0.75).euler
    one_item, one_part = torch.tensor([[0.25] * 4, [-0.25] * 4]), torch.tensor([[0.25] * 2, [-1.0] * 2])
    for wrong in ((one_item, right[1]), (right[0], one_part)):
        assert not track.judge(track.measure(wrong).tolist(), 0.75).continues


def test_nothing_is_said_of_another_shape_or_without_a_last_evaluation():
    track = Track()
    assert track.measure((torch.zeros(1, 4),)) is None
    track.note(1.0, (torch.zeros(1, 4),), (torch.ones(1, 4),), False, None)
    assert track.measure((torch.zeros(1, 5),)) is None
    assert track.judge([], None) == Move()


def test_what_the_host_holds_is_copied_and_what_is_ours_is_not():
    x, given = torch.zeros(1, 4), torch.ones(1, 4)
    track = Track()
    track.note(1.0, (x,), (given,), False, None)
    x.fill_(7)
    given.fill_(7)
    assert track.judge(track.measure((torch.full((1, 4), 0.25),)).tolist(), 0.75).euler
    assert track.nbytes == 2 * 16
    track.note(1.0, (x,), (given,), True, None)
    assert track.nbytes == 16

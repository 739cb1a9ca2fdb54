import torch

from foresight.engine.prefix import formulas as policy


def test_lambda_weighs_the_last_three_changes_1_tenth_hundredth():
    changes = [
        torch.tensor([v, 2 * v]) for v in (900.0, 4.0, 3.0, 2.0)
    ]  # oldest first; 900 is the fourth and does not count
    # 1 * 2 + 0.1 * 3 + 0.01 * 4 = 2.34
    assert torch.allclose(policy.block_lambda(changes), torch.tensor([2.34, 4.68]))


def test_lambda_with_fewer_changes():
    assert policy.block_lambda([]) is None
    assert torch.equal(policy.block_lambda([torch.tensor([5.0])]), torch.tensor([5.0]))
    # 1 * 5 + 0.1 * 4
    assert torch.allclose(policy.block_lambda([torch.tensor([4.0]), torch.tensor([5.0])]), torch.tensor([5.4]))


def test_a_block_qualifies_up_to_and_including_its_limit():
    flags = policy.qualifies(
        torch.tensor([0.5, 0.51, 0.0, torch.nan, torch.inf]), torch.tensor([0.5, 0.5, 0.0, 0.5, 0.5])
    )
    assert flags.tolist() == [True, False, True, False, False]
    assert not policy.qualifies(torch.tensor(1.0), torch.tensor(torch.nan))


def test_every_rth_evaluation_after_warmup_is_full():
    def pattern(interval):
        return "".join("C" if policy.is_full(e, 2, interval) else "R" for e in range(2, 10))

    assert pattern(1) == "CCCCCCCC"
    assert pattern(2) == "CRCRCRCR"
    assert pattern(3) == "CRRCRRCR"
    assert pattern(4) == "CRRRCRRR"


def test_most_reuse_evaluations():
    assert policy.most_reuse_evaluations(50, 8, 2) == 21  # 42 after warmup, every other one: 50 / 29 = 1.72x at best
    assert policy.most_reuse_evaluations(50, 8, 3) == 28  # 50 / 22 = 2.27x
    assert policy.most_reuse_evaluations(4, 3, 2) == 0  # W W W C
    assert policy.most_reuse_evaluations(3, 8, 2) == 0


def test_the_prefix_reaches_to_the_deepest_block_that_qualifies():
    assert policy.prefix_depth([True, False, True, False]) == 2
    assert policy.prefix_depth([False, False]) == -1

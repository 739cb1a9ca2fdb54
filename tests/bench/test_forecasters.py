"""The peers that are written here, Spectrum and FSampler, by hand on trajectories of one number."""

from types import SimpleNamespace

import pytest
import torch

from bench import fsampler, spectrum
from bench.contenders import CONTENDERS

BY_NAME = {contender.name: contender for contender in CONTENDERS}


# ---- Spectrum


def test_chebyshev_polynomials_are_those_of_the_book():
    t = torch.tensor([-1.0, 0.0, 0.5])
    # T_2 = 2 t^2 - 1, T_3 = 4 t^3 - 3 t
    wanted = [[1, -1, 1, -1], [1, 0, -1, 0], [1, 0.5, -0.5, -1]]
    assert torch.allclose(spectrum.basis(t, 3), torch.tensor(wanted, dtype=torch.float64), atol=1e-7)


def forecast(weights: torch.Tensor, states: list[float]) -> float:
    return float(weights @ torch.tensor(states, dtype=weights.dtype))


def test_without_the_ridge_degree_1_is_exact_on_a_linear_trajectory_and_degree_2_on_a_parabola():
    times = [-1.0, -0.5, 0.0, 0.25]
    assert forecast(spectrum.ridge_weights(times, 0.5, 1, 0.0), [3 * t + 2 for t in times]) == pytest.approx(3.5)
    assert forecast(spectrum.ridge_weights(times, 1.0, 2, 0.0), [t * t for t in times]) == pytest.approx(1.0)


def test_the_ridge_pulls_a_constant_towards_zero():
    # degree 1 at t = -1 and 1, H = 1: Phi^T Phi = diag(2, 2), so the constant's coefficient is 2 / (2 + 0.1)
    assert forecast(spectrum.ridge_weights([-1.0, 1.0], 0.0, 1, 0.1), [1.0, 1.0]) == pytest.approx(2 / 2.1)


def test_the_line_goes_through_the_last_two_and_one_alone_is_repeated():
    assert spectrum.line_weights([0.0, 0.2, 0.3], 0.5).tolist() == pytest.approx([0.0, -2.0, 3.0])
    assert spectrum.line_weights([0.3], 0.5).tolist() == [1.0]


def test_the_second_pass_lies_between_the_neighbours_and_on_what_was_computed():
    assert spectrum.between_weights([-1.0, 0.0, 1.0], 0.25).tolist() == pytest.approx([0, 0.75, 0.25])
    assert spectrum.between_weights([1.0, 0.0, -1.0], 0.25).tolist() == pytest.approx([0.25, 0.75, 0])  # falling
    assert spectrum.between_weights([-1.0, 0.0, 1.0], 0.0).tolist() == pytest.approx([0, 1, 0])
    assert spectrum.between_weights([-1.0, 0.0, 1.0], -1.0).tolist() == pytest.approx([1, 0, 0])


def numbers(computed: list[bool]) -> list[int]:
    return [step for step, is_computed in enumerate(computed) if is_computed]


def test_the_papers_rhythm_computes_14_or_10_of_50():
    # the window grows from 2 by 0.75: gaps of 2 2 3 4 5 5 6 7 8
    assert numbers(spectrum.Rhythm(50).computed()) == [0, 1, 2, 3, 4, 6, 8, 11, 15, 20, 25, 31, 38, 46]
    assert numbers(spectrum.Rhythm(50, flex_window=3.0).computed()) == [0, 1, 2, 3, 4, 6, 11, 19, 30, 44]


def test_the_ports_rhythm_computes_11_of_20_and_12_with_its_tail_for_res_multistep():
    port = {"warmup": 1, "limit": 1, "hold_first": True}
    assert numbers(spectrum.Rhythm(20, tail=1, **port).computed()) == [*range(0, 20, 2), 19]
    assert numbers(spectrum.Rhythm(20, tail=3, **port).computed()) == [*range(0, 18, 2), 17, 18, 19]


class Block(torch.nn.Module):
    """Adds one to the hidden state, and counts."""

    ran = 0

    def forward(self, hidden_states, encoder_hidden_states, temb):
        self.ran += 1
        return hidden_states + 1


def test_the_blocks_run_in_computed_steps_only_and_each_cond_has_its_own_past():
    net = torch.nn.Module()
    net.blocks = torch.nn.ModuleList([Block(), Block()])
    blocks = list(net.blocks)
    denoiser = SimpleNamespace(
        net=net,
        sampler="euler",
        family="wan",
        evaluations=4,
        sigmas=torch.tensor([1.0, 0.75, 0.5, 0.25, 0.0]),
        index=-1,
    )
    spectrum.apply(denoiser, {"degree": 1, "blend": 0.0, "warmup": 2, "tail": 1})
    given = {"cond": [], "uncond": []}
    for denoiser.index in range(4):
        for denoiser.context, slope in (("cond", 10.0), ("uncond", -10.0)):
            x = torch.full((1, 1, 1), slope * denoiser.index)
            for module in net.blocks:
                x = module(x, None, None)
            given[denoiser.context].append(x.item())
    # computed are 0, 1 and 3: two blocks add 2; step 2 is the line through 2 and 12 (2 and -8)
    assert given == {"cond": [2, 12, 22, 32], "uncond": [2, -8, -18, -28]}
    assert [block.ran for block in blocks] == [6, 6]


def test_it_refuses_a_sampler_that_evaluates_twice_in_a_step():
    denoiser = SimpleNamespace(sampler="heun", evaluations=7, sigmas=torch.zeros(5))
    with pytest.raises(ValueError, match="heun evaluates more than once in a step"):
        spectrum.apply(denoiser, {})


# ---- FSampler


def play(trajectory, steps: int, sampler: str = "euler", **settings) -> tuple[list[float], list[int]]:
    """Run the rule on epsilons of one number: the epsilon used in each step, and which were computed."""
    computed = []
    levels = torch.linspace(1, 0, steps + 1)

    def guided(x):
        computed.append(denoiser.index)
        return torch.full((1,), -trajectory(denoiser.index)) / (denoiser.timestep / 1000)

    denoiser = SimpleNamespace(index=-1, evaluations=steps, sampler=sampler, sigmas=levels, guided=guided)
    fsampler.apply(denoiser, settings)
    used = []
    for denoiser.index in range(steps):
        denoiser.timestep = float(levels[denoiser.index]) * 1000
        used.append(float(-denoiser.guided(torch.zeros(1)) * levels[denoiser.index]))
    return used, computed


def test_h2_leaves_out_one_after_every_two_computed_ones_between_the_protected_ends():
    # 2 first and 3 last are protected; from 2 on: compute, compute, leave out
    used, computed = play(lambda e: 1.0, 20, calls=2)
    assert [e for e in range(20) if e not in computed] == [4, 7, 10, 13, 16]
    assert used == pytest.approx([1.0] * 20)


def test_h2_is_the_line_through_the_last_two_computed_ones_and_takes_their_distance_for_one_step():
    used, computed = play(lambda e: 10.0 + e, 8, calls=2)
    assert [e for e in range(8) if e not in computed] == [4]
    assert used[4] == pytest.approx(14.0, rel=1e-4)  # 2 x 13 - 12, over a learned ratio of nearly 1


def test_the_learned_ratio_is_that_of_the_line_to_the_newest_epsilon():
    # after 1, 1, 2 the line gives 3, 1.5 times the newest: 0.9999 x 1 + 0.0001 x 1.5
    skipper = fsampler.Skipper(SimpleNamespace(guided=None), calls=2)
    for value in (1.0, 1.0, 2.0):
        skipper._learn(torch.tensor([value]))
    assert skipper._ratio == pytest.approx(1.00005)


def test_adaptive_leaves_out_three_of_four_where_the_two_forecasts_agree():
    used, computed = play(lambda e: 1.0, 16, anchor=4)
    # 0 to 2 give the three it needs, then every fourth from the second on, and the last three
    assert computed == [0, 1, 2, 6, 10, 13, 14, 15]
    assert used == pytest.approx([1.0] * 16)


def test_adaptive_computes_where_they_differ():
    def wild(e):
        return (-1.0) ** e

    assert play(wild, 16, "res_multistep", anchor=4)[1] == list(range(16))


# ---- cache-dit's calibrators, which are its own


@pytest.mark.parametrize("name", ["DBCache+FoCa", "DBCache+DMD", "DBCache+TaylorSeer"])
def test_a_calibrator_shares_the_sweep_of_the_cache_it_is_added_to(name):
    assert BY_NAME[name].sweep == BY_NAME["DBCache"].sweep and BY_NAME[name].short == BY_NAME["DBCache"].short


@pytest.mark.parametrize(
    "config, computed, next_one",
    [
        ("FoCaCalibratorConfig", [5.0, 6.0, 7.0], 8.0),  # a line
        ("DMDCalibratorConfig", [16.0, 8.0, 4.0, 2.0], 1.0),  # halves in each step
    ],
)
def test_a_calibrator_is_exact_on_what_it_is_made_for(config, computed, next_one):
    cache_dit = pytest.importorskip("cache_dit")
    from cache_dit.caching.cache_contexts.calibrators import Calibrator

    calibrator = Calibrator(getattr(cache_dit, config)())
    for value in computed:
        calibrator.update(torch.full((1, 2, 3), value))
        calibrator.mark_step_begin()
    assert torch.allclose(calibrator.approximate(), torch.full((1, 2, 3), next_one))


def test_every_contenders_points_exist_and_its_default_is_among_them():
    for contender in CONTENDERS:
        everything = [contender.settings(index) for index in range(len(contender.sweep) + len(contender.short))]
        assert len({str(settings) for settings in everything}) == len(everything), contender.name
        for short in (False, True):
            points = contender.points(short, quick=False)
            assert set(contender.points(short, quick=True)) <= set(points)
            if contender.recommended:
                assert contender.recommended in [contender.settings(index) for index in points], contender.name

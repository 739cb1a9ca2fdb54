"""What changes in mid-run: nothing is forecast across it, and what only counts changes nothing."""

import functools
import types

import pytest
import torch

pytest.importorskip("comfy", reason="ComfyUI is not installed here")

import comfy.hooks
import comfy.model_patcher
import comfy.samplers
from comfy_extras.nodes_apg import APG
from comfy_extras.nodes_custom_sampler import CFGOverride
from comfy_extras.nodes_lt import LTXVSpatioTemporalGuidance
from comfy_extras.nodes_lumina2 import RenormCFG
from comfy_extras.nodes_slg import SkipLayerGuidanceDiT, SkipLayerGuidanceDiTSimple

from foresight import ForecastConfig
from foresight.hosts.comfyui import apply_foresight
from foresight.hosts.comfyui.changes import Edges, Kept, Numbers, kept_by
from support.comfy_models import noise, sample

STEPS = 24
CONFIG = ForecastConfig(threshold=1.0)
MIDDLE = 0.93  # a level between two of the run, with forecasts before it and behind it


@pytest.fixture(scope="module")
def model():
    from support import comfy_models

    return comfy_models.wan()


def level_in(kwargs):
    return float(kwargs["transformer_options"]["sigmas"][0])


def other(q, k, v, heads, **kwargs):
    """Attention that is quite another: every token is given the mean of all."""
    return v.mean(1, keepdim=True).expand_as(q).clone()


def window(sigma_start, sigma_end=0.0):
    """As core's sparse attention has it: an object with the levels, in the closure of the override."""
    patch = types.SimpleNamespace(sigma_start=sigma_start, sigma_end=sigma_end, tau=0.96)

    def override(func, *args, **kwargs):
        inside = patch.sigma_end <= level_in(kwargs) <= patch.sigma_start
        return (other if inside else func)(*args, **kwargs)

    return override


def by_another_name(switch):
    def override(func, *args, **kwargs):
        return (other if level_in(kwargs) <= switch else func)(*args, **kwargs)

    return override


def written_in(func, *args, **kwargs):
    return (other if level_in(kwargs) <= 0.93 else func)(*args, **kwargs)


class Callable:
    def __init__(self, level):
        self.sigma_start = level

    def __call__(self, func, *args, **kwargs):
        return (other if level_in(kwargs) <= self.sigma_start else func)(*args, **kwargs)

    method = __call__


def given(func, *args, sigma_start, **kwargs):
    return (other if level_in(kwargs) <= sigma_start else func)(*args, **kwargs)


class Holding:
    """As other packs' nodes hold it (IPAdapter's lists, PuLID's list of dicts): the bound is `found` in `held`."""

    def __init__(self, name, held, found):
        setattr(self, name, held)
        self.found = lambda: found(held)

    def __call__(self, func, *args, **kwargs):
        return (other if level_in(kwargs) <= self.found() else func)(*args, **kwargs)


def in_a_dict(settings):
    def override(func, *args, **kwargs):
        return (other if level_in(kwargs) <= settings["sigma_start"] else func)(*args, **kwargs)

    return override


def on_top(before):
    """A second override, which hands on to the one that was there."""

    def override(func, *args, **kwargs):
        return before(func, *args, **kwargs)

    return override


OVERRIDES = {
    "core's way": window(MIDDLE),
    "its end": window(2.0, MIDDLE),
    "another name": by_another_name(MIDDLE),
    "a tensor": by_another_name(torch.tensor(MIDDLE)),
    "in its code": written_in,
    "an object": Callable(MIDDLE),
    "a method": Callable(MIDDLE).method,
    "partial": functools.partial(given, sigma_start=MIDDLE),
    "under another": on_top(window(MIDDLE)),
    "a list of an object": Holding("sigma_starts", [MIDDLE, 0.0], lambda held: held[0]),
    "dicts of an object": Holding("kwargs", [{"sigma_start": MIDDLE}], lambda held: held[0]["sigma_start"]),
    "a dict": in_a_dict({"sigma_start": MIDDLE, "strength": 0.95}),
}


def with_override(model, override):
    patcher = model.patcher.clone()
    patcher.model_options["transformer_options"]["optimized_attention_override"] = override
    return patcher


@pytest.mark.parametrize("override", OVERRIDES.values(), ids=OVERRIDES)
def test_attention_that_changes_ends_what_is_forecast(model, runs, override):
    patcher = with_override(model, override)
    plain = sample(model, patcher, steps=STEPS)
    ours = sample(model, apply_foresight(patcher, CONFIG), steps=STEPS)
    (stats,) = runs
    levels = [e.level for e in stats.evaluations]
    edge = next(i for i, level in enumerate(levels) if level <= MIDDLE)
    left_out = [bool(sum(e.reused)) for e in stats.evaluations]
    assert any(left_out[:edge]) and any(left_out[edge:])
    assert not any(left_out[edge : edge + 2])  # an output and a slope
    assert ((ours - plain).norm() / plain.norm()).item() < 0.02


def test_an_override_that_does_not_change_costs_nothing(model, runs):
    def unchanged(sigma_start):
        return lambda func, *args, **kwargs: func(*args, **kwargs) if sigma_start else None

    for patcher in (model.patcher, *(with_override(model, unchanged(level)) for level in (1.0, 2.0))):
        sample(model, apply_foresight(patcher, CONFIG), steps=STEPS)
    assert len({str([e.reused for e in stats.evaluations]) for stats in runs}) == 1 and runs[0].reused


def test_guidance_that_ends_at_a_percent(model, runs):
    """By the names that ComfyUI's own nodes use in their functions."""

    def guide(sigma_start, sigma_end):
        def function(args):
            inside = sigma_end <= float(args["sigma"][0]) <= sigma_start
            return args["denoised"] * (0.5 if inside else 1.0)

        return function

    patcher = model.patcher.clone()
    patcher.set_model_sampler_post_cfg_function(guide(2.0, MIDDLE))
    sample(model, apply_foresight(patcher, CONFIG), steps=STEPS)
    (stats,) = runs
    edge = next(i for i, e in enumerate(stats.evaluations) if e.level < MIDDLE)
    assert all(sum(e.computed) for e in stats.evaluations[edge : edge + 2]) and stats.reused


CORE_NODES = {
    "CFGOverride": lambda m, start, end: CFGOverride.execute(m, 8.0, start, end),
    "RenormCFG": lambda m, start, end: RenormCFG.execute(m, level_at(m, end), 1.0),
    "SkipLayerGuidanceDiT": lambda m, start, end: SkipLayerGuidanceDiT.execute(m, 3.0, start, end, "0", "0", 0.5),
    "SkipLayerGuidanceDiTSimple": lambda m, start, end: SkipLayerGuidanceDiTSimple.execute(m, start, end, "0", "0"),
    "LTXVSpatioTemporalGuidance": lambda m, start, end: LTXVSpatioTemporalGuidance.execute(m, 1.0, "0", start, end),
}


def level_at(patcher, percent):
    return float(patcher.get_model_object("model_sampling").percent_to_sigma(percent))


@pytest.mark.parametrize("node", CORE_NODES)
def test_what_core_s_nodes_begin_and_end_is_seen(model, runs, node, monkeypatch):
    """Their functions keep the levels under names of their own."""
    start, end = 0.3, 0.7
    monkeypatch.setattr(model.patcher.model.diffusion_model, "in_channels", 4, raising=False)  # RenormCFG asks for it
    (patcher,) = CORE_NODES[node](model.patcher, start, end).result
    expected = [level_at(patcher, percent) for percent in ((end,) if node == "RenormCFG" else (start, end))]
    sample(model, apply_foresight(patcher, CONFIG), steps=STEPS)
    for place in expected:
        evaluations = runs[-1].evaluations
        edge = next(i for i, e in enumerate(evaluations) if e.level <= place)
        around = [bool(sum(e.reused)) for e in evaluations[edge : edge + 3]]
        assert not any(around[:2]) or not any(around[1:]), (place, edge)  # that level may be on either side


def test_a_guider_s_own_percents_are_shares_of_the_steps():
    levels = [1 - i / 20 for i in range(21)]
    guider = types.SimpleNamespace(start_percent=0.3, end_percent=0.61, cfg=0.5)
    seen = edges(levels)
    found = [seen.sides({}, level, guider) for level in levels]
    changes = [i for i in range(1, 21) if found[i] != found[i - 1]]
    assert changes == [6, 13]  # works in steps 6 to 12


@pytest.mark.parametrize(
    ("name", "ends"),
    [("sigma_lo", True), ("sigma_hi", False), ("max_percent", True), ("min_percent", False), ("sigma_to", True)],
)
def test_a_run_goes_down_its_levels_and_up_its_percents(name, ends):
    holder = functools.partial(lambda args, **bounds: args, **{name: 0.5})
    assert sides(edges(), 0.6, patches={"attn1_patch": [holder]})[1] == ((0.5, True),)
    assert sides(edges(), 0.5, patches={"attn1_patch": [holder]})[1] == ((0.5, ends),)


def test_a_node_that_keeps_timesteps_is_seen(model):
    """They are a thousand times the levels."""
    nodes = pytest.importorskip("comfy_extras.nodes_hidream_o1", reason="this ComfyUI has no HiDream O1")
    start, end = 0.3, 0.7
    settings = {"pattern": "single_shift", "passes": "2", "blend": "average", "strength": 1.0}
    patcher = nodes.HiDreamO1PatchSeamSmoothing.execute(
        model=model.patcher, start_percent=start, end_percent=end, **settings
    ).result[0]
    first, last = (level_at(model.patcher, percent) for percent in (start, end))
    seen = edges((1.0, 0.9, 0.5, 0.1, 0.0))
    found = [sides(seen, level, wrappers=patcher.wrappers) for level in (first + 0.01, first - 0.01, last - 0.01)]
    assert len(set(found)) == 3 and all(len(on) == 2 for _, on in found)
    by_sigma = functools.partial(lambda args, **bounds: args, start_t=0.5)
    assert sides(edges(), 0.6, patches={"attn1_patch": [by_sigma]})[1] == ((0.5, True),)


def edges(levels=(1.0, 0.5, 0.0)):
    return Edges(lambda percent: 1 - percent, levels, but="ours")


def sides(seen, level, **options):
    return seen.sides({"transformer_options": options}, level)


def test_sides_of_an_edge():
    begins, ends = window(0.5, -1.0), window(2.0, 0.5)
    for override, below in ((begins, (0.5, 0.4)), (ends, (0.4,))):
        seen = edges()
        found = [sides(seen, level, optimized_attention_override=override) for level in (0.6, 0.5, 0.4)]
        assert [x == found[-1] for x in found] == [level in below for level in (0.6, 0.5, 0.4)]
    assert sides(edges(), 0.4, ours=begins) == sides(edges(), 0.4)  # not under that key
    assert sides(edges(), None, optimized_attention_override=begins)[1] == ()


def test_a_level_that_is_an_edge_in_fp32_alone_is_on_neither_side():
    """A function may compare tensors, in fp32, or floats, in double."""
    edge = 0.6
    level = torch.tensor(edge).item()
    around = [sides(edges(), at, optimized_attention_override=window(edge, -1.0)) for at in (0.7, level, 0.5)]
    assert len(set(around)) == 3 and level != edge
    at_half = [sides(edges(), 0.5, optimized_attention_override=window(x, -1.0)) for x in (0.5, 0.5 + 1e-6)]
    assert [x[1][0][1] for x in at_half] == [False, False]


@pytest.mark.parametrize("by_tensor", [True, False])
def test_guidance_that_begins_on_a_step_is_not_forecast_across(model, runs, by_tensor):
    patcher, begins = model.patcher.clone(), level_at(model.patcher, 0.6)

    def guide(sigma_start):
        def function(args):
            sigma = args["sigma"][0]
            return args["denoised"] * (0.5 if (sigma if by_tensor else sigma.item()) <= sigma_start else 1.0)

        return function

    patcher.set_model_sampler_post_cfg_function(guide(begins))
    plain = sample(model, patcher, steps=20)
    ours = sample(model, apply_foresight(patcher, CONFIG), steps=20)
    edge, evaluations = 20 - 8, runs[0].evaluations  # a level of 0.6 of the run: step 12
    assert evaluations[edge].level == torch.tensor(begins) and evaluations[edge].level > begins
    assert not any(e.kind == "reuse" for e in evaluations[edge : edge + 2])
    assert runs[0].reused and ((ours - plain).norm() / plain.norm()).item() < 0.02


def hooked(model, cond, *keyframes):
    """A cond with its own weights in one block, as strong as keyframes (strength, percent) say."""
    generator, hook = torch.Generator().manual_seed(5), comfy.hooks.WeightHook(strength_model=1.0)
    names = [n for n, x in model.patcher.model.state_dict().items() if "blocks.1.ffn" in n and x.ndim == 2]
    shapes = {name: model.patcher.model.state_dict()[name].shape for name in names}
    hook.weights = {n: ("diff", (torch.randn(shape, generator=generator) * 0.02,)) for n, shape in shapes.items()}
    hook.need_weight_init = False
    group, frames = comfy.hooks.HookGroup(), comfy.hooks.HookKeyframeGroup()
    group.add(hook)
    for strength, percent, *lasts in keyframes:
        frames.add(comfy.hooks.HookKeyframe(strength, percent, *lasts))
    group.set_keyframes_on_hooks(frames)
    return comfy.hooks.set_hooks_for_conditioning(cond, group)


@pytest.mark.parametrize("sampler", ["euler", "res_multistep"])
@pytest.mark.parametrize(
    "keyframes, edges_at", [(((1.0, 0.0), (0.0, 0.6)), [12]), (((1.0, 0.0), (0.5, 0.3), (0.0, 0.3)), [6, 7])]
)
def test_a_hook_whose_strength_has_keyframes_is_forecast_between_them(
    model, runs, sampler, keyframes, edges_at, monkeypatch
):
    strengths, prepare = [], comfy.hooks.HookKeyframeGroup.prepare_current_keyframe

    def noted(self, curr_t, **options):
        changed = prepare(self, curr_t, **options)
        strengths[-1][float(curr_t)] = self.strength
        return changed

    monkeypatch.setattr(comfy.hooks.HookKeyframeGroup, "prepare_current_keyframe", noted)

    def sampled(patcher):
        strengths.append({})
        cond = hooked(model, model.text(1), *keyframes)
        return sample(model, patcher, positive=cond, steps=20, sampler=sampler)

    plain = sampled(model.patcher)
    ours, again = (sampled(apply_foresight(model.patcher, CONFIG)) for _ in range(2))
    assert strengths[1] == strengths[0] and len(strengths[0]) == 20  # in evaluations that are left out too
    assert torch.equal(ours, again) and ((ours - plain).norm() / plain.norm()).item() < 0.02
    left_out = [e.kind == "reuse" for e in runs[0].evaluations]
    assert any(left_out[: edges_at[0]]) and any(left_out[edges_at[-1] :]) and not any(left_out[at] for at in edges_at)


ALWAYS = {
    "thirty": [(1 - k / 30, k / 30) for k in range(30)],
    "one that lasts": [(1.0, 0.0), (0.7, 0.0, 8), (0.0, 0.0)],
}


@pytest.mark.parametrize("frames", ALWAYS.values(), ids=ALWAYS)
def test_a_strength_that_changes_all_the_time_is_the_reason_that_is_given(model, runs, frames):
    """So does one that lasts for so many evaluations, which are counted anew where some are done again."""
    cond = hooked(model, model.text(1), *frames)
    plain = sample(model, positive=cond, steps=20)
    cond = hooked(model, model.text(1), *frames)
    assert torch.equal(sample(model, apply_foresight(model.patcher, CONFIG), positive=cond, steps=20), plain)
    assert "a hook that always changes" in runs[0].inactive


@pytest.mark.parametrize("sampler, looks", [("euler", False), ("euler_cfg_pp", True)])
def test_ranges_of_a_cond_that_is_not_looked_at_cost_nothing(model, runs, sampler, looks):
    """The negative at a guidance of 1, which samplers of CFG++ go by all the same."""
    ranges = [model.text(2 + k, start_percent=k / 4, end_percent=(k + 1) / 4)[0] for k in range(4)]
    for negative in (model.text(2), ranges):
        patched = apply_foresight(model.patcher, CONFIG)
        sample(model, patched, negative=negative, steps=20, cfg=1.0, sampler=sampler)
    kinds = [[e.kind for e in stats.evaluations] for stats in runs]
    assert (kinds[0] != kinds[1]) == looks and runs[0].reused


def test_percents_become_levels_and_what_is_no_level_is_none():
    def patch(start_percent, end_percent, sigma_end, strength, start):
        return lambda args: (start_percent, end_percent, sigma_end, strength, start)

    def found(*values):
        return sides(edges(), 0.6, patches={"attn1_patch": [patch(*values)]})[1]

    assert found(0.25, 1.0, 0.0, 0.5, 0.5) == ((0.75, False),)  # 25 % of the run is level 0.75
    assert found(0.0, 0.5, 0.0, 0.5, 0.5) == ((0.5, True),)
    assert found(0.0, 1.0, 0.0, 0.5, 0.5) == ()


def test_a_closure_that_is_made_anew_is_the_same_attention_and_another_function_is_not():
    seen = edges()
    first, again = (sides(seen, 0.6, optimized_attention_override=window(2.0)) for _ in range(2))
    assert first == again != sides(seen, 0.6, optimized_attention_override=by_another_name(2.0))
    for _ in range(1000):
        sides(seen, 0.6, optimized_attention_override=window(0.5))
    assert len(seen._known) <= 256


def names(entries, name="n"):
    """What numbers say in each of some evaluations, each a level and a value, and how many edges there were."""
    numbers, before, found = Numbers(), None, []
    for level, value in entries:
        found.append(numbers.of({"transformer_options": {name: value, "word": "x", "flag": True}}, before))
        before = level
    return found, numbers.changes


LEVELS = [1 - i / 20 for i in range(20)]


def test_numbers_that_count_say_nothing():
    heun = [level for level in LEVELS for _ in range(2)][1:]
    for entries in (
        [(level, i) for i, level in enumerate(LEVELS)],  # evaluations
        [(level, i) for i, level in enumerate(heun)],
        [(level, i // 2) for i, level in enumerate(heun)],  # steps
        [(level, level) for level in heun],
        [(level, i % 2) for i, level in enumerate(LEVELS)],  # in turn, but never two at one level
        [(level, 7) for level in heun],
    ):
        assert names(entries) == ([()] * len(entries), 0)


def test_numbers_that_take_turns_at_a_level_name_trajectories():
    two = [(level, value) for level in LEVELS for value in (0, 3)]
    found, changes = names(two)
    assert found[:2] == [(), ()] and found[2:] == [(("n", value),) for _, value in two[2:]] and changes == 0


def test_a_number_that_stayed_and_changes_is_an_edge():
    assert names([(level, 0.0 if level > 0.5 else 1.0) for level in LEVELS])[1] == 1


def counting(model, x, sigmas, extra_args=None, callback=None, disable=None, entry=lambda i: i):
    """Euler, with a number in the options of each evaluation."""
    for i, (level, following) in enumerate(zip(sigmas[:-1], sigmas[1:], strict=True)):
        options = comfy.model_patcher.create_model_options_clone(extra_args["model_options"])
        options["transformer_options"]["count"] = entry(i)
        denoised = model(x, level * x.new_ones(1), **{**extra_args, "model_options": options})
        x = x + (x - denoised) / level * (following - level)
    return x


def test_a_number_that_changes_at_every_evaluation_costs_nothing(model, runs):
    def run(function):
        guider = comfy.samplers.CFGGuider(apply_foresight(model.patcher, CONFIG))
        guider.set_conds(model.text(1), model.text(2))
        sigmas = comfy.samplers.calculate_sigmas(model.patcher.get_model_object("model_sampling"), "simple", STEPS)
        with torch.inference_mode():
            x = noise(*model.latent().shape, seed=5)
            guider.sample(x, model.latent(), comfy.samplers.KSAMPLER(function), sigmas, seed=0, disable_pbar=True)

    run(functools.partial(counting, entry=lambda i: "same"))
    run(counting)
    run(functools.partial(counting, entry=lambda i: i / STEPS))
    run(functools.partial(counting, entry=lambda i: int(i >= STEPS // 2)))
    tables = [[sum(e.reused) for e in stats.evaluations] for stats in runs]
    assert tables[0] == tables[1] == tables[2] and sum(tables[0]) > sum(tables[3]) > 0
    assert not any(tables[3][STEPS // 2 : STEPS // 2 + 2])


@pytest.mark.parametrize(("momentum", "kept"), [(-0.5, True), (0.0, False)])
def test_guidance_that_goes_by_what_it_saw_before_is_left_alone(momentum, kept, model, runs):
    """It is another function of the same latent for each evaluation that it does not see."""
    patcher = APG.execute(model.patcher, 1.0, 5.0, momentum).args[0]
    plain = sample(model, patcher, steps=20)
    ours = sample(model, apply_foresight(patcher, ForecastConfig(threshold=2.0)), steps=20)
    assert torch.equal(ours, plain) == kept and bool(runs[0].reused) != kept
    assert not kept or runs[0].inactive == "a guidance node goes by what it saw before (APG with a momentum)"


def test_what_a_function_may_keep_without_remembering():
    def made(value):
        count = other = value

        def function(args):
            nonlocal count
            if args is None:
                count = other
            return count

        return function

    tensor = torch.zeros(2, 2)
    found = {"a number": made(3), "a 0-d tensor": made(tensor[0, 0]), "a tensor": made(tensor), "nothing": len}
    assert [name for name, f in found.items() if kept_by({"sampler_pre_cfg_function": [f]})] == ["a tensor"]
    assert kept_by({"sampler_cfg_function": made(tensor)}) and not kept_by({"other": made(tensor)})
    assert not kept_by({"sampler_cfg_function": lambda args: tensor})  # which it never sets


@pytest.mark.parametrize(
    ("then", "changes"),
    [
        (lambda k, kept, x: x + kept, [0, 1, 2, 3, 4, 5]),  # a mean of all so far, a new tensor each time
        (
            lambda k, kept, x: kept.mul_(0.5).add_(x),
            [0, 1, 2, 2, 2, 2],
        ),  # in place, which is looked at in the beginning
        (
            lambda k, kept, x: kept[:2] if k == 0 else kept,
            [0, 1, 1, 1, 1, 1],
        ),  # a mask that is cut to the latent's size
        (lambda k, kept, x: kept, [0, 0, 0, 0, 0, 0]),
        (lambda k, kept, x: kept if k < 3 else x + kept, [0, 0, 0, 0, 1, 2]),  # it begins in mid-run
    ],
)
@torch.inference_mode()
def test_what_is_set_once_is_no_memory(then, changes):
    kept = torch.ones(4, 4)

    def function(args):
        nonlocal kept
        kept = then(*args[:1], kept, args[1])

    seen, found = Kept(), []
    for k in range(6):  # an evaluation begins, and then calls the function
        seen.look({"sampler_cfg_function": function})
        found.append(seen.changes)
        function((k, torch.ones(4, 4)))
    assert found == changes


class Odd(dict):
    """As a configuration that lacks a value has it: whoever asks for all of them gets an error."""

    def items(self):
        raise KeyError("missing")

    __len__ = __iter__ = items


def test_containers_of_other_packs_are_not_asked():
    def override(func, *args, held=Odd(), **kwargs):  # noqa: B006, B008
        return func(*args, **kwargs) if odd is not None else None

    odd = Odd(sigma_start=0.5)
    assert sides(edges(), 0.6, optimized_attention_override=override)[1] == ()

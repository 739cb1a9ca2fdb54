"""Two stages of a video in ComfyUI: what the first hands over, when, and that nobody loses by it."""

import asyncio
import types

import pytest
import torch

pytest.importorskip("comfy", reason="ComfyUI is not installed here")

import comfy.samplers
from comfy_extras.nodes_model_advanced import ModelSamplingSD3

from foresight.engine import ForecastConfig
from foresight.hosts.comfyui import apply_foresight, handover
from support.two_stages import TwoStages, in_a_task

MUCH = ForecastConfig(threshold=1.0)


@pytest.fixture
def stages(models):
    return TwoStages(models["wan"])


@pytest.fixture
def seen(monkeypatch):
    """What every run was told of the others, and how much was kept when it had ended, in order."""
    found, stage, leave = [], handover.Video.stage, handover.Video.leave

    def told(self, *args):
        found.append([stage(self, *args)])
        return found[-1][0]

    def left(self, *args):
        leave(self, *args)
        found[-1].append(len(handover._left))

    monkeypatch.setattr(handover.Video, "stage", told)
    monkeypatch.setattr(handover.Video, "leave", left)
    return found


def pattern(stats):
    """C for a computed evaluation, a point for one that was left out."""
    return "".join("." if sum(e.reused) else "C" for e in stats.evaluations)


def error(out, plain):
    return float((out - plain).norm() / plain.norm())


def alone(stages, monkeypatch):
    """The result where each stage is planned alone."""
    with monkeypatch.context() as patch:
        patch.setattr(handover, "following", lambda nodes, sampler_id: None)
        return stages.execute()


def test_the_second_stage_goes_on_from_the_first(stages, runs, seen, monkeypatch):
    plain, out = stages.plain(), stages.execute()
    (first, kept), (second, none) = seen
    assert (first.before, first.goes_on, first.whole, kept) == (None, True, 20, 1)
    assert (second.before is not None, second.goes_on, second.whole, none) == (True, False, 20, 0)
    left, went_on = (pattern(stats) for stats in runs)
    assert left.endswith("C..")  # the end is open
    assert went_on.startswith("C.")  # computed by its own model; the slope is there already
    apart = alone(stages, monkeypatch)
    closed, again = (pattern(stats) for stats in runs[2:])
    assert closed.endswith("CC") and again.startswith("CC")
    assert (left + went_on).count("C") < (closed + again).count("C") and error(out, plain) < 2 * error(apart, plain)


def test_what_is_owed_is_paid_by_the_second_model(stages, monkeypatch):
    """Taken away, the debt would stay in the latent, farther from the plain one."""
    plain, out, owed, stage = stages.plain(), stages.execute(), [], handover.Video.stage

    def without_debt(self, *args):
        found = stage(self, *args)
        for history in found.before.histories.values() if found.before else ():
            owed.append(history._B)
            history._A = history._B = 0.0
        return found

    monkeypatch.setattr(handover.Video, "stage", without_debt)
    unpaid = stages.execute()
    assert owed[0] > 0 and error(out, plain) < error(unpaid, plain)


CHANGED = {
    "noise is added": ("2", {"add_noise": "enable"}),
    "no noise is left over": ("1", {"return_with_leftover_noise": "disable"}),
    "it begins elsewhere": ("2", {"start_at_step": 11}),
    "one step only": ("2", {"end_at_step": 11}),
    "other steps": ("2", {"steps": 24, "start_at_step": 10}),
    "another schedule": ("2", {"scheduler": "normal"}),
    "another guidance": ("2", {"cfg": 2.0}),
    "another sampler": ("2", {"sampler_name": "heun"}),
    "a sampler that is started again": ("both", {"sampler_name": "res_multistep"}),
    "other settings": ("low_foresight", {"threshold": 2.0}),
    "the other method": ("low_foresight", {"method": "paper"}),
    "no Foresight on the second model": ("2", {"model": ["low", 0]}),
    "no Foresight on the first model": ("1", {"model": ["high", 0]}),
}


@pytest.mark.parametrize("name", CHANGED)
def test_what_does_not_fit_is_two_runs(name, stages, seen, monkeypatch):
    node, inputs = CHANGED[name]
    for each in ("1", "2") if node == "both" else (node,):
        stages.prompt[each]["inputs"].update(inputs)
    out = stages.execute()
    assert all(stage.before is None for stage, *_ in seen) and not handover._left
    assert torch.equal(out, alone(stages, monkeypatch))


def test_a_latent_that_goes_through_another_node_is_two_runs(stages, seen, monkeypatch):
    stages.prompt["between"] = {"class_type": "TestLatent", "inputs": {"name": "same", "value": ["1", 0]}}
    stages.prompt["2"]["inputs"]["latent_image"] = ["between", 0]
    assert torch.equal(stages.execute(), alone(stages, monkeypatch))
    assert not any(stage.goes_on or stage.before for stage, *_ in seen)


def test_a_latent_that_somebody_else_sees_is_finished(stages, seen, monkeypatch):
    stages.prompt["preview"] = {"class_type": "TestEnd", "inputs": {"name": "same", "value": ["1", 0]}}
    assert torch.equal(stages.execute(), alone(stages, monkeypatch))
    assert not any(stage.goes_on or stage.before for stage, *_ in seen)


def test_another_level_is_noticed_when_it_comes(stages, seen):
    """The prompt does not say what a node on the way does to the levels."""
    stages.things["low"] = ModelSamplingSD3().patch(stages.things["low"], 2.0)[0]
    assert torch.isfinite(stages.execute()).all()
    (first, kept), (second, none) = seen
    assert first.goes_on and kept == 1 and second.before is None and none == 0


def test_nothing_is_kept_when_the_prompt_ends_in_between(stages, seen):
    def broken(latent):
        raise RuntimeError("the second stage never comes")

    stages.things["low"] = broken
    stages.prompt["low"]["inputs"]["value"] = ["1", 0]
    # the second model is made after the first stage, whose latent has then two users: only look at what is kept
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(handover, "following", lambda nodes, sampler_id: 20)
        with pytest.raises(AssertionError, match="the second stage never comes"):
            stages.execute()
    assert seen[0][1] == 1 and not handover._left


def test_nothing_is_kept_outside_of_a_prompt(models, monkeypatch):
    video = handover.Video(MUCH, object(), object(), masked=False)
    sigmas, latent = torch.tensor([1.0, 0.5]), torch.ones(1, 2)
    monkeypatch.setattr(handover, "following", lambda nodes, sampler_id: 20)
    assert not video.stage(latent, latent, sigmas).goes_on
    video.leave("known", latent, sigmas)
    assert not handover._left


LATENT = torch.linspace(1, 2, 8).reshape(1, 8)
FITS = {
    "as it was": (True, {}),
    "rounded": (True, {"latent": LATENT.bfloat16().float()}),
    "changed": (False, {"latent": LATENT * 1.01}),
    "another shape": (False, {"latent": LATENT.reshape(2, 4)}),
    "noise is added": (False, {"noise": torch.ones(1, 8)}),
    "another level": (False, {"sigmas": torch.tensor([0.6, 0.0])}),
    "other settings": (False, {"config": ForecastConfig(threshold=0.5)}),
    "another guidance": (False, {"cfg": 4.0}),
    "another sampler": (False, {"sampler": "heun"}),
    "a mask": (False, {"masked": True}),
}


@pytest.mark.parametrize("name", FITS)
def test_what_fits(name, monkeypatch):
    fits, changed = FITS[name]

    def video(config=MUCH, cfg=3.0, sampler="euler", masked=False, **rest):
        guider = types.SimpleNamespace(cfg=cfg)
        return handover.Video(config, guider, comfy.samplers.sampler_object(sampler), masked), rest

    def both():
        first, _ = video()
        assert first.stage(torch.ones(1, 8), LATENT * 0, torch.tensor([1.0, 0.5])).goes_on
        first.leave("known", LATENT, torch.tensor([1.0, 0.5]))
        second, rest = video(**changed)
        rest = {"noise": torch.zeros(1, 8), "latent": LATENT, "sigmas": torch.tensor([0.5, 0.0]), **rest}
        stages = [second.stage(**rest) for _ in range(2)]
        assert stages[1].before is None and not handover._left  # whether it fits or not, it is gone
        return stages[0].before

    monkeypatch.setattr(handover, "following", lambda nodes, sampler_id: 20)
    assert in_a_task(both) == ("known" if fits else None)


def test_the_task_of_a_prompt_says_when_it_is_over(monkeypatch):
    monkeypatch.setattr(handover, "following", lambda nodes, sampler_id: 20)

    async def prompt():
        video = handover.Video(MUCH, object(), object(), masked=False)
        video.stage(LATENT, LATENT, torch.tensor([1.0, 0.5]))
        video.leave("known", LATENT, torch.tensor([1.0, 0.5]))
        assert len(handover._left) == 1

    asyncio.run(prompt())
    assert not handover._left


def test_a_list_of_latents_is_sampled_first_stage_by_first_stage(monkeypatch):
    monkeypatch.setattr(handover, "following", lambda nodes, sampler_id: 20)

    def both():
        for n in (1, 2):
            first = handover.Video(MUCH, None, None, masked=False)
            assert first.stage(LATENT, LATENT * 0, torch.tensor([1.0, 0.5])).goes_on
            first.leave(f"known {n}", LATENT * n, torch.tensor([1.0, 0.5]))
        second = [handover.Video(MUCH, None, None, masked=False) for _ in range(2)]
        last = torch.tensor([0.5, 0.0])
        found = [video.stage(LATENT * 0, LATENT * n, last).before for n, video in enumerate(second, 1)]
        assert not handover._left
        return found

    assert in_a_task(both) == ["known 1", "known 2"]


def test_of_one_run_nothing_is_kept(models, seen):
    from support.comfy_models import sample

    in_a_task(lambda: sample(models["wan"], apply_foresight(models["wan"].patcher, MUCH)))
    assert [kept for _, kept in seen] == [0]


@pytest.mark.parametrize(
    "first", [{"validate": True}, {"validate": False}, {"end_percent": 1.0, "cache_device": "auto"}]
)
def test_settings_that_change_nothing_are_the_same_settings(stages, runs, seen, first):
    """Validating one stage, or a prompt that leaves a default out on one node, is no reason to plan them alone."""
    out = stages.execute()
    stages.prompt["high_foresight"]["inputs"] |= first
    assert torch.equal(stages.execute(), out)
    assert [told.goes_on or told.before is not None for told, _ in seen] == [True] * 4
    assert [pattern(stats) for stats in runs[:2]] == [pattern(stats) for stats in runs[2:]]

"""Two stages of a video in ComfyUI: the first leaves its end open where the prompt says that the second goes on."""

import copy

import pytest
import torch

pytest.importorskip("comfy", reason="ComfyUI is not installed here")

from comfy_execution.graph import DynamicPrompt
from comfy_extras.nodes_model_advanced import ModelSamplingSD3

from foresight.hosts.comfyui import stages as module
from support.comfy_models import wan
from support.two_stages import TwoStages


@pytest.fixture
def stages(models):
    return TwoStages(models["wan"])


@pytest.fixture
def seen(monkeypatch):
    """What every run was told of the one behind it, in order."""
    found, whole_of = [], module.whole_of

    def told(last):
        found.append(whole_of(last))
        return found[-1]

    monkeypatch.setattr(module, "whole_of", told)
    return found


def pattern(stats):
    """C for a computed evaluation, a point for one that was left out."""
    return "".join("." if sum(e.reused) else "C" for e in stats.evaluations)


def error(out, plain):
    return float((out - plain).norm() / plain.norm())


def alone(stages, monkeypatch):
    """The result where each stage is planned alone."""
    with monkeypatch.context() as patch:
        patch.setattr(module, "following", lambda nodes, sampler_id: None)
        return stages.execute()


@pytest.mark.parametrize("sampler", ["euler", "res_multistep", "uni_pc"])
def test_the_first_stage_leaves_its_end_open(sampler, stages, runs, seen, monkeypatch):
    for name in ("1", "2"):
        stages.prompt[name]["inputs"]["sampler_name"] = sampler
    plain, out = stages.plain(), stages.execute()
    assert seen == [20, None]
    left, went_on = (pattern(stats) for stats in runs)
    assert left.endswith("C" if sampler == "uni_pc" else ".")  # which makes much of its last outputs
    assert went_on.startswith("CC")  # of the second model nothing is known yet
    apart = alone(stages, monkeypatch)
    closed, again = (pattern(stats) for stats in runs[2:])
    assert closed.endswith("C") and again.startswith("CC")
    assert left.count("C") <= closed.count("C") - (sampler == "euler") and error(out, plain) < 1.5 * error(apart, plain)


CLOSED = {
    "noise is added": ("2", {"add_noise": "enable"}),
    "no noise is left over": ("1", {"return_with_leftover_noise": "disable"}),
    "it begins elsewhere": ("2", {"start_at_step": 11}),
    "one step only": ("2", {"end_at_step": 11}),
    "other steps": ("2", {"steps": 24, "start_at_step": 10}),
    "another schedule": ("2", {"scheduler": "normal"}),
    "another sampler": ("2", {"sampler_name": "uni_pc"}),  # its levels are others
}


@pytest.mark.parametrize("name", CLOSED)
def test_an_end_from_which_nobody_goes_on_is_finished(name, stages, seen, monkeypatch):
    node, inputs = CLOSED[name]
    stages.prompt[node]["inputs"].update(inputs)
    assert torch.equal(stages.execute(), alone(stages, monkeypatch))
    assert not any(seen)


OPEN = {
    "another guidance": ("2", {"cfg": 2.0}),
    "other settings": ("low_foresight", {"threshold": 2.0}),
    "the other method": ("low_foresight", {"method": "paper"}),
    "no Foresight on the second model": ("2", {"model": ["low", 0]}),
}


@pytest.mark.parametrize("name", OPEN)
def test_how_the_second_stage_goes_on_does_not_matter(name, stages, runs, seen):
    node, inputs = OPEN[name]
    stages.prompt[node]["inputs"].update(inputs)
    plain, out = stages.plain(), stages.execute()
    assert seen[0] == 20 and not any(seen[1:]) and pattern(runs[0]).endswith(".")
    assert error(out, plain) < 0.1, error(out, plain)


def test_other_levels_behind_the_end_do_no_harm(stages, runs, seen):
    """The prompt does not say what a node on the way does to the levels of the second stage."""
    stages.things["low"] = ModelSamplingSD3().patch(stages.things["low"], 2.0)[0]
    plain, out = stages.plain(), stages.execute()
    assert seen == [20, None] and error(out, plain) < 0.1


def test_the_second_model_may_be_another(models, seen, runs):
    second = wan()
    with torch.no_grad():
        for weights in second.patcher.model.parameters():
            weights.mul_(1.3)
    stages = TwoStages(models["wan"], second)
    plain, out = stages.plain(), stages.execute()
    assert seen == [20, None] and pattern(runs[0]).endswith(".")
    one_model = TwoStages(models["wan"]).plain()
    assert error(out, plain) < 0.1 * error(one_model, plain)


def test_what_a_mask_keeps_is_kept_behind_an_open_end(stages, seen, runs):
    kept, mask = torch.randn(stages.things["empty"]["samples"].shape), torch.zeros(1, 1, 4, 4)
    mask[..., :2] = 1  # these columns are made anew
    stages.things["empty"] = {"samples": kept, "noise_mask": mask}
    plain, out = stages.plain(), stages.execute()
    assert seen == [20, None] and pattern(runs[0]).endswith(".")
    assert torch.equal(out[..., 2:], plain[..., 2:]) and not torch.equal(out, plain)
    assert error(out, plain) < 0.1, error(out, plain)


def test_of_three_stages_two_leave_their_ends_open(stages, seen, runs):
    stages.prompt["3"] = copy.deepcopy(stages.prompt["2"])
    stages.prompt["3"]["inputs"] |= {"latent_image": ["2", 0], "start_at_step": 15}
    stages.prompt["2"]["inputs"] |= {"end_at_step": 15, "return_with_leftover_noise": "enable"}
    stages.prompt["end"]["inputs"]["value"] = ["3", 0]
    plain, out = stages.plain(), stages.execute()
    assert seen == [20, 20, None] and error(out, plain) < 0.1, error(out, plain)
    assert [pattern(stats)[-1] for stats in runs] == [".", ".", "C"]
    assert [len(stats.evaluations) for stats in runs] == [10, 5, 5]


def test_a_latent_that_goes_through_another_node_is_finished(stages, seen, monkeypatch):
    stages.prompt["between"] = {"class_type": "TestLatent", "inputs": {"name": "same", "value": ["1", 0]}}
    stages.prompt["2"]["inputs"]["latent_image"] = ["between", 0]
    assert torch.equal(stages.execute(), alone(stages, monkeypatch))
    assert not any(seen)


def test_a_latent_that_somebody_else_sees_is_finished(stages, seen, monkeypatch):
    stages.prompt["preview"] = {"class_type": "TestEnd", "inputs": {"name": "same", "value": ["1", 0]}}
    assert torch.equal(stages.execute(), alone(stages, monkeypatch))
    assert not any(seen)


def test_a_sampler_that_a_node_has_expanded_to_is_finished(stages):
    """What else takes its latent is in no node's inputs."""
    nodes = DynamicPrompt(stages.prompt)
    assert module.following(nodes, "1") == 20
    nodes.add_ephemeral_node("1.1", stages.prompt["1"], "1", "1")
    stages.prompt["2"]["inputs"]["latent_image"] = ["1.1", 0]
    assert module.following(nodes, "1.1") is None


def test_outside_of_a_prompt_nobody_goes_on():
    assert module.whole_of(0.5) is None

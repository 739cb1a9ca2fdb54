"""The node Comparison Picture: it shows what was measured, and says what was not."""

import re

import pytest
import torch

pytest.importorskip("comfy", reason="ComfyUI is not installed here")

from foresight import ForecastConfig
from foresight.hosts.comfyui import apply_foresight, runs_on, timer
from foresight.report.machine import card
from pack.nodes.demo import ForesightDemoModel
from pack.nodes.picture import ForesightPicture
from pack.nodes.timing import ForesightTimer
from support.node_calls import execute, sample

NODES = {"7": {"inputs": {}}, "3": {"inputs": {"model": ["7", 0]}}, "4": {"inputs": {"model": ["8", 0]}}}
NODES["8"] = NODES["9"] = {"inputs": {}}
VIDEOS = torch.zeros(2, 16, 16, 3), torch.full((2, 16, 16, 3), 0.1)  # 20 dB: ten times log10 of 1 / 0.1 ** 2


@pytest.fixture(scope="module")
def model():
    return ForesightDemoModel.execute().args[0]


def lines(model, settings=None, steps=(20, 20), videos=VIDEOS, name="", prompt_id="p"):
    """Time a plain run and one with Foresight (none without settings): the node's picture, its text by line, both."""
    plain = execute(ForesightTimer, model, node_id="7").args[0]
    line = apply_foresight(model, settings, "9") if settings else model
    fast = execute(ForesightTimer, line, node_id="8").args[0]
    sample(plain, "p", "3", steps[0])
    sample(fast, prompt_id, "4", steps[1])
    image, text = execute(ForesightPicture, *videos, plain, fast, name, 512, prompt=NODES, prompt_id=prompt_id).args
    return image, text.splitlines(), plain, fast


def test_the_picture_has_the_figures_of_both_timers_and_of_the_run(model):
    image, text, plain, fast = lines(model, ForecastConfig(threshold=1.0))
    assert image.shape[0] == 2 and image.shape[2:] == (512, 3) and image.dtype == torch.float32 and image.max() <= 1
    ((_, slow),), ((_, quick),) = timer.seconds_on(plain), timer.seconds_on(fast)
    (run,) = runs_on(fast)
    computed = sum(not sum(row["reused"]) for row in run["evaluations"])
    assert 0 < computed < 20 and text == [
        f"plain {slow:.2f} s, Foresight {quick:.2f} s",
        f"measured speed-up {slow / quick:.2f}x, PSNR 20.0 dB",
        f"DemoWan, 20 steps, {computed} of 20 evaluations computed in full (forecast, threshold 1)",
        f"seconds of sampling on {card(model.load_device)}, with ComfyUI-Foresight",
    ]


def test_a_model_can_be_called_by_its_name_and_equal_videos_are_said_to_be_equal(model):
    _, text, *_ = lines(model, ForecastConfig(), videos=(VIDEOS[0], VIDEOS[0]), name="My model 2B")
    assert text[1].endswith("x, equal, bit for bit") and text[2].startswith("My model 2B, 20 steps, ")


def test_lines_of_different_steps_are_told_as_such(model):
    assert ", 12 steps plain and 9 with Foresight, " in lines(model, ForecastConfig(), steps=(12, 9))[1][2]


def test_a_plain_time_of_an_earlier_prompt_is_told_as_such(model):
    text = lines(model, ForecastConfig(), prompt_id="q")[1]
    assert re.fullmatch(r"plain [\d.]+ s \(of an earlier prompt\), Foresight [\d.]+ s", text[0])


def test_without_foresight_on_the_line_the_picture_says_that_it_did_not_run(model):
    assert lines(model)[1][2] == "DemoWan, 20 steps, Foresight did not run"


def test_a_run_that_validated_says_so(model):
    assert lines(model, ForecastConfig(validate=True))[1][2].endswith("threshold 0.5, validated)")


def test_what_was_not_measured_is_told_and_no_speed_up_is_claimed(model):
    timed = execute(ForesightTimer, model, node_id="7").args[0]
    fast = execute(ForesightTimer, apply_foresight(model, ForecastConfig(), "9"), node_id="8").args[0]
    sample(timed, "p", "3", 6)
    for pair, said in {
        (model, timed): "plain: this model is not timed: put Foresight Timer on its line, before the sampler",
        (timed, fast): "Foresight: not sampled since it was timed. Connect",
    }.items():
        image, text = execute(ForesightPicture, *VIDEOS, *pair, "", 512, prompt=NODES).args
        first, second, third, _, why = text.splitlines()
        assert image.shape[0] == 2 and second == "no speed-up measured, PSNR 20.0 dB" and why.startswith(said)
        assert sum(bool(re.search(r"[\d.]+ s", part)) for part in first.split(", ")) == 1
        assert third == "DemoWan, 6 steps, Foresight did not run"


def test_a_plain_line_with_foresight_on_it_is_no_plain_line(model):
    fast = execute(ForesightTimer, apply_foresight(model, ForecastConfig(), "9"), node_id="8").args[0]
    sample(fast, "p", "4", 6)
    text = execute(ForesightPicture, *VIDEOS, fast, fast, "", 512, prompt=NODES).args[1]
    assert "no speed-up measured" in text
    assert text.endswith("plain: Foresight ran on this line too: take the MODEL from before it")


def test_videos_of_other_shapes_are_not_compared_and_end_no_prompt(model):
    image, text = execute(ForesightPicture, VIDEOS[0], VIDEOS[1][:, :8], model, model, "", 512).args
    assert text == "the plain video has 2 frames of 16x16, the other 2 frames of 16x8: " + text.partition(": ")[2]
    assert "both must have the same length and size" in text and image.ndim == 4 and image.shape[-1] == 3


def test_videos_with_alpha_and_a_single_image_are_taken(model):
    alpha = [torch.cat([video[:1], torch.rand(1, 16, 16, 1)], dim=-1) for video in VIDEOS]
    image, text = execute(ForesightPicture, *alpha, model, model, "", 512).args
    assert image.shape[0] == 1 and "PSNR 20.0 dB" in text

import asyncio
import json
import re
from pathlib import Path

import pytest
import torch

pytest.importorskip("comfy", reason="ComfyUI is not installed here")

import comfy.sample
import folder_paths

from foresight import ForecastConfig, PaperConfig
from foresight.hosts.comfyui import apply_foresight, live, timer
from pack.nodes import ForesightExtension, report
from pack.nodes.apply import ForesightApply
from pack.nodes.compare import ForesightCompare
from pack.nodes.demo import ForesightDemoLatent, ForesightDemoModel, ForesightDemoPrompt
from pack.nodes.picture import ForesightPicture
from pack.nodes.report import ForesightReport
from pack.nodes.timing import ForesightSpeedup, ForesightTimer
from support.node_calls import FAST, execute, sample


@pytest.fixture(scope="module")
def model():
    return ForesightDemoModel.execute().args[0]


@pytest.fixture(autouse=True)
def folders(tmp_path, monkeypatch):
    monkeypatch.setattr(folder_paths, "get_output_directory", lambda: str(tmp_path / "output"))
    monkeypatch.setattr(folder_paths, "get_temp_directory", lambda: str(tmp_path / "temp"))
    live._runs.clear()


def test_the_report_equals_the_run(model, tmp_path):
    patched = apply_foresight(model, FAST, "7")
    latent = sample(patched)
    output = execute(ForesightReport, patched, latent, "foresight/report", prompt={"3": {}})
    same, image, text, speedup, ratio, full, reuse, memory = output.args
    (run,) = live.runs()
    assert same is latent and image.ndim == 4 and image.shape[-1] == 3 and image.std() > 0.05
    assert (ratio, full, reuse) == (run["reuse_ratio"], run["seconds_full"], run["seconds_reuse"]) and ratio > 0
    assert speedup == pytest.approx(run["estimated_speedup"]) and memory * 2**30 == run["peak_bytes"]
    assert f"{run['reused']} of {run['total']}" in text
    assert output.ui["images"] and output.ui["text"] == [f"{text}\n\nsaved as foresight/report_00001_.json"]
    (saved,) = (tmp_path / "output" / "foresight").glob("*.json")
    report = json.loads(saved.read_text())
    run.pop("client_id")  # a file does not say whose page it was
    assert report["runs"] == [json.loads(json.dumps(run))] and report["totals"]["reuse_ratio"] == ratio


def test_a_list_of_latents_has_one_report(model, tmp_path):
    """ComfyUI executes the node once for each latent of a list, when all samplers have run."""
    patched = apply_foresight(model, FAST, "7")
    latents = [sample(patched, "p", "3") for _ in range(3)]
    outputs = [execute(ForesightReport, patched, x, "r", prompt={"3": {}}, prompt_id="p") for x in latents]
    assert [output.args[0] for output in outputs] == latents
    assert len({id(output.args[1]) for output in outputs}) == 1 and outputs[0].args[2].count("run 3")
    assert [path.name for path in (tmp_path / "output").glob("*.json")] == ["r_00001_.json"]
    sample(patched, "p", "3")  # another run, another report
    assert execute(ForesightReport, patched, latents[0], "r", prompt={"3": {}}, prompt_id="p").args[2].count("run 4")
    assert len(report._drawn) == 1  # pictures are kept for one prompt


def test_the_report_file_of_a_real_run_fits_the_schema(model, tmp_path):
    """Also of a run that left nothing out, of one that is inactive, and of one that computed more than a plain run."""
    jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed here")
    schema = json.loads((Path(__file__).parents[2] / "foresight" / "report" / "schema.json").read_text())
    runs = {
        "blocks": (FAST, "euler"),
        "nothing": (ForecastConfig(threshold=0.01), "euler"),
        "inactive": (ForecastConfig(), "dpm_adaptive"),
        "more": (ForecastConfig(threshold=1.0), "sa_solver"),
    }
    for name, (config, sampler) in runs.items():
        patched = apply_foresight(model, config, "7")
        execute(ForesightReport, patched, sample(patched, name, steps=20, sampler=sampler), name, prompt_id=name)
        jsonschema.validate(json.loads((tmp_path / "output" / f"{name}_00001_.json").read_text()), schema)
    blocks, nothing, inactive, more = live.runs()
    assert blocks["block_speedup"] > nothing["block_speedup"] == 1 > more["block_speedup"]
    assert inactive["inactive"] and more["taken_back"]


@pytest.mark.parametrize("sampler, restarted", [("euler", False), ("res_multistep", True)])
def test_the_report_of_a_forecast_says_the_plan_what_it_became_and_the_restarts(model, sampler, restarted):
    patched = apply_foresight(model, ForecastConfig(threshold=1.0), "7")
    text = execute(ForesightReport, patched, sample(patched, steps=20, sampler=sampler), "").args[2]
    (run,) = live.runs()
    rows = dict(re.split(r" {2,}", line) for line in text.splitlines()[1:])
    assert 0 < run["planned"] < 20 and rows["plan"].startswith(f"{run['planned']} of 20 steps computed, ")
    computed = sum(not sum(e["reused"]) for e in run["evaluations"])
    assert rows["computed in full"] == f"{computed} of 20 evaluations" and computed >= run["planned"]
    assert (run["restarts"] > 0, rows["sampler started again"] != "-") == (restarted, restarted)
    assert run["uncorrected"] is None


def test_two_stages_are_two_runs_and_a_cached_one_stands_for_itself(model):
    patched = apply_foresight(model, FAST, "7")
    sample(patched, "one", "3")
    latent = sample(patched, "one", "4")
    sample(patched.clone(), "two", "4", steps=8)  # 3 was cached; ComfyUI's nodes clone
    sample(apply_foresight(model, FAST, "8"), "two", "5")  # another Foresight
    foresight, three, four = {"inputs": {}}, {"inputs": {"model": ["7", 0]}}, {"inputs": {"model": ["7", 0]}}
    prompt = {"7": foresight, "3": three, "4": four}
    text = execute(ForesightReport, patched, latent, "", prompt=prompt, prompt_id="two").args[2]
    assert "sampler 3, run 1 (earlier prompt)" in text and "sampler 4, run 2\n" in text and "sampler 5" not in text
    assert "9 (3 warmup" in text and "8 (3 warmup" in text
    alone = execute(ForesightReport, patched, latent, "", prompt={"7": foresight, "3": three}, prompt_id="three")
    assert "9 (3 warmup" in alone.args[2] and "8 (3 warmup" not in alone.args[2]  # 4 was deleted


@pytest.mark.parametrize("patch", [lambda m: m, lambda m: apply_foresight(m, PaperConfig(threshold=0.0))])
def test_a_model_without_foresight_gives_a_note_and_no_file(model, tmp_path, patch):
    patched = patch(model)
    output = execute(ForesightReport, patched, sample(patched, steps=2), "foresight/report")
    assert "did not run on this model" in output.args[2] and output.args[3:] == (1.0, 0.0, 0.0, 0.0, 0.0)
    assert not (tmp_path / "output").exists()


def test_a_run_that_could_not_reuse_says_why(model):
    patched = apply_foresight(model, PaperConfig(), "7")
    output = execute(ForesightReport, patched, sample(patched, steps=4), "")
    assert "inactive: at most 0 of 4 steps" in output.args[2] and output.args[3] == 1.0


def test_the_timer_measures_sampling_and_changes_nothing(model):
    timed = execute(ForesightTimer, model).args[0]
    assert timed is not model and timer.KEY not in model.wrappers.get("outer_sample", {})
    assert torch.equal(sample(timed)["samples"], sample(model)["samples"])
    ((ran, seconds),) = timer.seconds_on(timed)
    assert 0 < seconds < 60 and ran[:2] == ("p", "3") and timer.steps_on(timed) == [9]
    again = execute(ForesightTimer, timed).args[0]
    assert timer.seconds_on(again) == []  # one timer, a new one


def test_the_first_evaluation_counts_as_long_as_the_second():
    assert timer.sampling_seconds([10.0, 15.0, 16.0, 20.0]) == 1 + 5
    assert timer.sampling_seconds([10.0, 15.0, 17.0]) == 4  # two evaluations
    assert timer.sampling_seconds([10.0, 15.0]) == 5  # one
    assert timer.sampling_seconds([10.0, 15.0, 16.0, 26.0]) == 12


@pytest.mark.parametrize("first", ["timer", "foresight"])
def test_the_timer_counts_what_is_computed_whichever_node_comes_first(model, first, monkeypatch):
    """With a clock that goes on by one in each call of the model, a run takes as many seconds as it has calls."""
    clock = [0]
    counting = model.model.diffusion_model.register_forward_pre_hook(lambda *_: clock.__setitem__(0, clock[0] + 1))
    monkeypatch.setattr(timer, "_now", lambda: float(clock[0]))
    config = ForecastConfig(threshold=8.0)
    if first == "timer":
        timed = apply_foresight(execute(ForesightTimer, model).args[0], config)
    else:
        timed = execute(ForesightTimer, apply_foresight(model, config)).args[0]
    sample(timed, steps=20)
    counting.remove()
    kinds = [bool(e["reused"][0]) for e in live.runs()[-1]["evaluations"]]
    assert any(kinds[1:3])  # of the first evaluations, one is left out
    ((_, seconds),) = timer.seconds_on(timed)
    assert seconds == clock[0] > 0


def test_the_speed_up_is_the_ratio_of_two_timers_on_foresight_too(model):
    plain = execute(ForesightTimer, model).args[0]
    fast = execute(ForesightTimer, apply_foresight(model, FAST, "7")).args[0]
    a, b = sample(plain, "p", "3"), sample(fast, "p", "4")
    prompt = {"3": {}, "4": {}}
    one, other, text, speedup = execute(ForesightSpeedup, plain, a, fast, b, prompt=prompt).args
    assert one is a and other is b
    ((_, slow),), ((_, quick),) = timer.seconds_on(plain), timer.seconds_on(fast)
    assert text == f"plain {slow:.2f} s, Foresight {quick:.2f} s: {speedup:.2f}x measured" and speedup == slow / quick
    assert live.runs()[-1]["reused"] > 0
    sample(plain, "p", "3", steps=1)  # a second run in the same prompt adds up, one in the next replaces
    assert len(timer.seconds_on(plain)) == 2
    sample(plain, "q", "3", steps=1)
    assert len(timer.seconds_on(plain)) == 1


def test_a_missing_timer_and_a_missing_run_are_told_and_the_latents_passed_on(model):
    timed, one, other = execute(ForesightTimer, model).args[0], {"samples": 1}, {"samples": 2}
    sample(timed)
    for lines, expected in {
        (model, timed): "plain: this model is not timed: put Foresight Timer on its line",
        (timed, execute(ForesightTimer, model).args[0]): "Foresight: not sampled since it was timed. Connect",
    }.items():
        output = execute(ForesightSpeedup, lines[0], one, lines[1], other)
        assert output.args[0] is one and output.args[1] is other and output.args[3] == 0.0
        assert output.args[2].startswith("no speed-up:\n") and expected in output.args[2]
        assert output.ui["text"] == [output.args[2]]


def test_two_lines_behind_one_timer_have_no_speed_up(model):
    """It counts both samplers, whichever line is asked: 1.00x, whatever Foresight has left out."""
    timed, one, other = execute(ForesightTimer, model).args[0], {"samples": 1}, {"samples": 2}
    fast = apply_foresight(timed, FAST, "7")
    sample(timed, "p", "3")
    sample(fast, "p", "4")
    for second in (fast, timed):
        *_, text, speedup = execute(ForesightSpeedup, timed, one, second, other).args
        assert speedup == 0.0 and text.count("it has the other line's Foresight Timer, which counts both") == 2
        video = torch.rand(1, 16, 16, 3)
        _, text = execute(ForesightPicture, video, video, timed, second, "", 512).args
        assert text.splitlines()[0] == "plain, Foresight" and "no speed-up measured" in text
        assert "put one on each line" in text
    both = execute(ForesightTimer, fast).args[0]
    sample(both, "q", "4")
    assert execute(ForesightSpeedup, timed, one, both, other).args[3] > 0  # a timer behind the timer is another


def test_an_interrupted_run_leaves_no_time(model):
    timed = execute(ForesightTimer, model).args[0]
    positive = ForesightDemoPrompt.execute("red ball").args[0]
    latent = ForesightDemoLatent.execute(16, 16, 1, 1).args[0]["samples"]

    def stop(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        comfy.sample.sample(
            timed, latent, 3, 4.0, "euler", "simple", positive, positive, latent, disable_pbar=True, callback=stop
        )
    assert timer.seconds_on(timed) == []


def test_compare_gives_figures_and_videos():
    g = torch.Generator().manual_seed(0)
    plain = torch.rand(5, 16, 24, 3, generator=g)
    other = plain.clone()
    other[3] += 0.1
    output = execute(ForesightCompare, plain, other, 4.0)
    side, difference, worst, chart, psnr, ssim, text = output.args
    assert torch.equal(side[:, :, :24], plain) and torch.equal(side[:, :, 24:], other)
    assert (difference[0] == 0.5).all() and difference[3].mean() == pytest.approx(0.7)
    assert worst.shape == (1, 16, 72, 3) and torch.equal(worst[0, :, 24:48], other[3])
    assert psnr == pytest.approx(-10 * torch.tensor(0.1**2 / 5).log10().item(), abs=1e-4) and 0.9 < ssim < 1
    assert "in frame 3" in text and chart.shape[-1] == 3 and output.ui["text"] == [text]


def test_compare_of_random_videos_gives_the_figures_of_scikit_image():
    metrics = pytest.importorskip("skimage.metrics", reason="scikit-image is not installed here")
    g = torch.Generator().manual_seed(5)
    plain, other = (torch.rand(3, 21, 33, 3, generator=g) for _ in range(2))
    output = execute(ForesightCompare, plain, other, 4.0)
    a, b = plain.double().numpy(), other.double().numpy()
    ssim = [metrics.structural_similarity(x, y, channel_axis=-1, data_range=1) for x, y in zip(a, b, strict=True)]
    psnr = [metrics.peak_signal_noise_ratio(x, y, data_range=1) for x, y in zip(a, b, strict=True)]
    assert output.args[4] == pytest.approx(metrics.peak_signal_noise_ratio(a, b, data_range=1), abs=1e-4)
    assert output.args[5] == pytest.approx(sum(ssim) / 3, abs=1e-4)
    worst = min(range(3), key=psnr.__getitem__)
    assert f"worst {psnr[worst]:.2f} dB in frame {worst}" in output.args[6]


def test_compare_of_equal_videos_says_so_and_takes_alpha():
    plain = torch.rand(2, 8, 8, 3)
    output = execute(ForesightCompare, plain, torch.cat([plain, torch.rand(2, 8, 8, 1)], dim=-1), 4.0)
    assert output.args[4] == float("inf") and output.args[5] == pytest.approx(1.0)
    assert output.args[6] == "all 2 frames are equal, bit for bit"
    assert execute(ForesightCompare, plain[:1], plain[:1], 4.0).args[6] == "1 frame is equal, bit for bit"
    one = execute(ForesightCompare, plain[:1], plain[1:], 4.0).args[6]
    assert " dB over 1 frame, worst " in one


def test_compare_says_that_videos_of_other_shapes_are_not_compared():
    output = execute(ForesightCompare, torch.rand(5, 16, 24, 3), torch.rand(5, 16, 16, 3), 4.0)
    assert "plain video has 5 frames of 24x16, the other 5 frames of 16x16" in output.args[6]
    assert output.args[4:6] == (0.0, 0.0) and output.ui["text"] == [output.args[6]]
    assert all(image.ndim == 4 and image.shape[-1] == 3 for image in output.args[:4])


def test_every_input_and_output_has_a_tooltip():
    for node in asyncio.run(ForesightExtension().get_node_list()):
        schema = node.GET_SCHEMA()
        for socket in (*schema.inputs, *schema.outputs):
            assert socket.tooltip, (schema.node_id, socket.id)
        assert schema.description and schema.search_aliases, schema.node_id


def test_people_who_look_for_another_cache_find_the_node():
    assert {"teacache", "easycache", "cache", "speed up video"} <= set(ForesightApply.GET_SCHEMA().search_aliases)


def tone(hertz: float, loud: float = 0.5, samples: int = 16000) -> dict:
    wave = loud * torch.sin(2 * torch.pi * hertz / 16000 * torch.arange(samples))
    return {"waveform": wave.expand(1, 2, -1), "sample_rate": 16000}


def test_sound_is_compared_where_both_are_connected():
    video = torch.rand(2, 16, 16, 3)

    def text(*audio):
        return execute(ForesightCompare, video, video, 4.0, *audio).args[-1]

    assert "sound" not in text() and "sound" not in text(tone(440))
    same, quieter, other = (text(tone(440), tone(hertz, loud)) for hertz, loud in ((440, 0.5), (440, 0.25), (880, 0.5)))
    assert same.endswith("sound: log-mel distance 0.00 dB, loudness 1.000 of the plain one")
    assert quieter.endswith("loudness 0.500 of the plain one")
    distances = [float(line.rpartition("distance ")[2].partition(" ")[0]) for line in (quieter, other)]
    assert 5 < distances[0] < 6.1 < distances[1]  # half as loud is 6 dB less, but where both are silent
    assert text(tone(440), tone(440, samples=900)).endswith("both must have the same length and channels")
    assert text(tone(440), {**tone(440), "sample_rate": 8000}).endswith(
        "16000 samples a second in the plain one, 8000 in the other"
    )
    assert text(*[tone(440, samples=900)] * 2).endswith("900 samples: a sound needs at least 1024 to be compared")

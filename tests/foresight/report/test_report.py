import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from foresight import ForecastConfig, PaperConfig
from foresight.engine.stats import FORMAT, Evaluation, RunStats, format_seconds
from foresight.report import figures, plot, quality, strip

SCHEMA = Path(__file__).resolve().parents[3] / "foresight" / "report" / "schema.json"


@pytest.fixture
def videos():
    g = torch.Generator().manual_seed(3)
    plain = torch.rand(4, 19, 26, 3, generator=g)
    return plain, (plain + 0.05 * torch.randn(plain.shape, generator=g)).clamp(0, 1)


def test_psnr_and_ssim_are_scikit_images(videos):
    metrics = pytest.importorskip("skimage.metrics", reason="scikit-image is not installed here")
    a, b = (video.double().numpy() for video in videos)
    psnr = [metrics.peak_signal_noise_ratio(x, y, data_range=1) for x, y in zip(a, b, strict=True)]
    ssim = [metrics.structural_similarity(x, y, channel_axis=-1, data_range=1) for x, y in zip(a, b, strict=True)]
    assert quality.psnr(*videos).tolist() == pytest.approx(psnr, abs=1e-4)
    assert quality.ssim(*videos).tolist() == pytest.approx(ssim, abs=1e-4)
    assert quality.mean_psnr(*videos) == pytest.approx(metrics.peak_signal_noise_ratio(a, b, data_range=1), abs=1e-4)


def test_equal_videos(videos):
    assert quality.psnr(videos[0], videos[0]).tolist() == [float("inf")] * 4
    assert quality.mean_psnr(videos[0], videos[0]) == float("inf")
    assert quality.ssim(videos[0], videos[0]).tolist() == pytest.approx([1.0] * 4)


def test_videos_that_cannot_be_compared_are_named_with_both_shapes(videos):
    with pytest.raises(ValueError, match="the plain video has 4 frames of 26x19, the other 3 frames of 26x19"):
        quality.psnr(videos[0], videos[1][:3])
    with pytest.raises(ValueError, match="frames of 26x6: SSIM needs 7 pixels each way"):
        quality.ssim(videos[0][:, :6], videos[1][:, :6])
    broken = [video.clone() for video in videos]
    broken[0][2, 3, 4, 0], broken[1][0] = float("nan"), float("inf")
    for pair, name in (((broken[0], videos[1]), "plain"), ((videos[0], broken[1]), "other"), (broken, "plain")):
        with pytest.raises(ValueError, match=f"the {name} video has pixels that are NaN or infinite"):
            quality.mean_psnr(*pair)


def run(reuse: bool = True, inactive: str | None = None) -> dict:
    stats = RunStats(PaperConfig(), 4, 3, peak_bytes=3 << 20, inactive=inactive)
    for index, kind in enumerate(("warmup", "full", "reuse")):
        evaluation = Evaluation(kind, 1.0 - 0.3 * index, 2.0 if kind != "reuse" else 1.0)
        for block, ratio in enumerate((None, 1.0, 5.0)):
            evaluation.count(block, reuse and kind == "reuse" and block < 2, 2, ratio if kind == "full" else None)
        stats.evaluations.append(evaluation)
    about = dict(run=1, node_id="7", workflow_id=None, prompt_id="p", sampler_id="3", done=True)
    return {**about, **json.loads(json.dumps(stats.to_dict()))}


def forecast_run(validate: bool = True, inactive: str | None = None, parts=()) -> dict:
    """A step computed, one left out, one computed, and two of the plan that the run did not come to.

    With two parts, the first one's error is half of the second's.
    """
    stats = RunStats(ForecastConfig(validate=validate), 5, 1, planned=3, inactive=inactive, parts=parts)
    stats.outlook = [{"level": 1 - k / 5, "share": 0.2, "computes": k % 2 == 0} for k in range(5)]
    for k, (kind, ratio, expected, missed) in enumerate(
        [("warmup", None, None, None), ("reuse", 0.5, 0.02, 0.03 if validate else None), ("full", 1.5, 0.04, 0.04)]
    ):
        row = Evaluation(kind, 1 - k / 5, 2.0, share=0.1 * (k + 1), expected=expected, missed=missed)
        row.missed_parts = [missed / 2, missed] if parts and missed else []
        row.count(0, kind == "reuse", 1, ratio)
        stats.evaluations.append(row)
    about = dict(run=1, node_id="7", workflow_id=None, prompt_id="p", sampler_id="3", done=True)
    return {**about, **json.loads(json.dumps(stats.to_dict()))}


def test_the_strip_of_a_forecast():
    columns = strip.columns(forecast_run())
    assert [column.left_out for column in columns] == [False, True, False, True, False]
    assert [column.reached for column in columns] == [True] * 3 + [False] * 2
    assert [column.height for column in columns] == pytest.approx([1 / 3, 2 / 3, 1, 2 / 3, 2 / 3])
    assert [column.predicted for column in columns] == [None, 0.5, 1.5, None, None]
    assert columns[1].real == pytest.approx(0.75) and columns[2].real == 1.5 and columns[0].real is None
    assert strip.columns(forecast_run(validate=False))[1].real is None
    assert len(strip.columns(forecast_run(inactive="no room"))) == 3  # what was planned will not come
    assert len(strip.columns({**forecast_run(), "evaluations": []})) == 5


def test_where_no_levels_are_told_the_steps_ahead_are_counted():
    run = forecast_run()
    for step in run["outlook"]:
        step["level"] = None  # as in diffusers
    assert [column.reached for column in strip.columns(run)] == [True] * 3 + [False] * 2
    assert plot.run_map({"one": run}, "title").size


def test_a_run_that_validates_says_what_it_would_have_been():
    rows = dict(re.split(r" {2,}", line) for line in figures.table({"run": forecast_run()}).splitlines()[1:])
    assert rows["left out"] == "1 of 3 outputs (33%)" and rows["speed-up, estimated"] == "1.50x without validate"
    assert rows["error of it, validated"] == "3.00% of the noise, 3.00% at most"
    assert rows["reuse evaluation, measured"] == "-"
    rows = dict(re.split(r" {2,}", line) for line in figures.table({"run": forecast_run(False)}).splitlines()[1:])
    assert rows["error of it, validated"] == "-" and "validate" not in rows["speed-up, estimated"]


def test_of_a_latent_with_several_parts_each_has_its_error():
    av = forecast_run(parts=("video", "audio"))
    rows = dict(re.split(r" {2,}", line) for line in figures.table({"run": av}).splitlines()[1:-1])
    assert rows["error of it, validated"] == "3.00% of the noise, 3.00% at most (video 1.50%, audio 3.00%)"
    said = "run: forecasts of what was computed missed at most: video 2.00%, audio 4.00% of the noise"
    assert figures.table({"run": av}).endswith(said)
    assert figures.table({"run": forecast_run(False, parts=("part 1", "part 2"))}).endswith(
        "run: forecasts of what was computed missed at most: part 1 2.00%, part 2 4.00% of the noise"
    )
    assert "missed at most" not in figures.table({"run": forecast_run()})
    av["evaluations"][1]["missed_parts"] = []  # of one that was left out the parts are not known
    assert "3.00% at most\n" in figures.table({"run": av}) and figures.table({"run": av}).endswith(said)


def test_totals_add_up():
    sums = figures.totals([run(), run()])
    assert (sums["reused"], sums["total"], sums["reuse_ratio"]) == (8, 36, 8 / 36)
    assert sums["estimated_speedup"] == pytest.approx(6 / 5) and sums["seconds"] == 10
    assert (sums["seconds_full"], sums["seconds_reuse"], sums["peak_bytes"]) == (2, 1, 3 << 20)
    nothing = figures.totals([])
    assert nothing["estimated_speedup"] == 1 and nothing["reuse_ratio"] == nothing["total"] == 0


def test_the_table_says_what_was_measured():
    text = figures.table({"run": run(), "off": run(False, "no room")})
    assert (
        "4 of 18 block calls (22%)" in text
        and "1.20x" in text
        and "3.0 MiB" in text
        and "paper, threshold 0.5, warmup 3" in text
    )
    assert text.endswith("off: inactive: no room")
    assert "2 of 3 evaluations" in text and "steps computed" not in text  # the method paper has no plan


def test_the_table_says_what_was_planned_and_what_became_of_it():
    planned = {**run(), "steps": 3, "planned": 2, "restarts": 1, "uncorrected": "no memory"}
    rows = dict(re.split(r" {2,}", line) for line in figures.table({"run": planned}).splitlines()[1:-1])
    assert rows["plan"] == "2 of 3 steps computed, 1.50x" and rows["computed in full"] == "2 of 3 evaluations"
    assert rows["sampler started again"] == "once"
    assert figures.table({"run": planned}).endswith("run: forecasts not corrected: no memory")


@pytest.mark.parametrize(
    "seconds, text",
    [(0.0000123, "0.012 ms"), (0.00031, "0.310 ms"), (0.0012, "0.0012 s"), (2.0, "2 s"), (99.96, "100 s")]
    + [(1234.5, "1234 s"), (12345.0, "12345 s")],
)
def test_no_time_has_an_exponent(seconds, text):
    assert figures._seconds(seconds) == format_seconds(seconds) == text


def test_a_run_of_another_format_is_refused_by_its_number():
    older = {key: value for key, value in run().items() if key not in ("planned", "restarts", "uncorrected")}
    for read in (lambda r: figures.totals([r]), lambda r: figures.table({"run": r})):
        with pytest.raises(ValueError, match="format=2 of a run: must be 4. Another version of Foresight made it"):
            read({**older, "format": 2})


def test_record_report_and_schema_have_one_format():
    schema = json.loads(SCHEMA.read_text())
    formats = schema["properties"]["format"]["const"], schema["$defs"]["run"]["properties"]["format"]["const"]
    assert formats == (FORMAT, FORMAT) and figures.FORMAT == FORMAT


def test_the_report_file_fits_its_schema_and_the_schema_refuses_another():
    jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed here")
    schema = json.loads(SCHEMA.read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    report = json.loads(
        json.dumps(figures.report_file([run(), run(False), forecast_run(), forecast_run(parts=("video", "audio"))]))
    )
    jsonschema.validate(report, schema)
    report["runs"][0]["evaluations"][0]["kind"] = "maybe"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(report, schema)


def test_cells_tell_the_four_kinds_apart():
    image = plot.cells(run()["evaluations"])
    assert image.shape == (3, 3, 3)
    assert (image[:, 0] == plot.WARMUP).all()
    assert (image[0, 1] == plot.COMPUTED).all() and (image[1, 1] == plot.CLOSE).all()  # not measured; qualifies
    assert (image[2, 1] == plot.COMPUTED).all()  # five times the limit
    assert (image[:2, 2] == plot.REUSED).all() and (image[2, 2] == plot.COMPUTED).all()


@pytest.fixture(params=["matplotlib", "Pillow"])
def library(request, monkeypatch):
    if request.param == "Pillow":
        monkeypatch.setitem(sys.modules, "matplotlib", None)
    else:
        pytest.importorskip("matplotlib", reason="matplotlib is not installed here")


def colours(image: np.ndarray) -> set[tuple[int, ...]]:
    return set(map(tuple, image.reshape(-1, 3).tolist()))


def test_the_map_shows_every_colour(library):
    image = plot.run_map({"one": run(), "two": run(False, "no room")}, "title")
    assert image.dtype == np.uint8 and image.shape[1] > 600
    assert {plot.REUSED, plot.COMPUTED, plot.CLOSE, plot.WARMUP} <= colours(image)


def test_the_map_of_a_forecast_is_a_strip(library):
    image = plot.run_map({"one": forecast_run()}, "title")
    assert {plot.REUSED, plot.COMPUTED, plot.CLOSE} <= colours(image) and plot.WARMUP not in colours(image)
    both = plot.run_map({"one": forecast_run(), "two": run()}, "title")
    assert {plot.REUSED, plot.COMPUTED, plot.CLOSE, plot.WARMUP} <= colours(both) and both.shape[0] > image.shape[0]


def test_a_long_reason_stays_in_the_picture(library):
    short, long = (plot.run_map({"one": run(False, reason)}, "title") for reason in ("no room", "no room, " * 40))
    assert (short != long).any() and (short[:, -12:] == long[:, -12:]).all()


def test_of_many_runs_the_newest_are_in_the_picture(library):
    runs = {f"run {n}": forecast_run() for n in range(3 * plot.MOST_RUNS)}
    few = dict(list(runs.items())[-plot.MOST_RUNS :])
    assert plot.run_map(runs, "map").shape == plot.run_map(few, "map").shape


def test_the_map_on_the_node_has_the_same_colours():
    style = (SCHEMA.parents[2] / "js" / "foresight.css").read_text()
    for name, colour in {"reused": plot.REUSED, "computed": plot.COMPUTED, "close": plot.CLOSE}.items():
        assert f"--foresight-{name}: #{bytes(colour).hex()};" in style
    assert f"--foresight-warmup: #{bytes(plot.WARMUP).hex()};" in style


def test_curves_leave_out_what_is_infinite(library):
    image = plot.curves({"PSNR": {"PSNR": [30.0, float("inf"), 31.0]}, "flat": {"SSIM": [float("inf")] * 3}}, "frame")
    assert image.dtype == np.uint8 and (27, 108, 168) in colours(image)


@pytest.mark.parametrize("count", [1, 2, 3, 40])
def test_frames_are_counted_in_whole_numbers(monkeypatch, count):
    axes = pytest.importorskip("matplotlib.axes", reason="matplotlib is not installed here")
    ticks, plotted = [], axes.Axes.set_title
    monkeypatch.setattr(axes.Axes, "set_title", lambda ax, *a, **kw: ticks.append(ax) or plotted(ax, *a, **kw))
    plot.curves({"PSNR": {"PSNR": [30.0] * count}, "equal": {"PSNR": [float("inf")] * count}}, "frame")
    shown = [tick for ax in ticks for tick in ax.get_xticks() if ax.get_xlim()[0] <= tick <= ax.get_xlim()[1]]
    assert shown and all(float(tick).is_integer() for tick in shown)


def test_a_note_has_room_for_its_text():
    short, long = plot.note("a"), plot.note("a\nlonger line of text")
    assert long.shape[0] > short.shape[0] and long.shape[1] > short.shape[1]
    assert (long[:8] == 255).all() and (long[:, -8:] == 255).all() and (long < 128).any()

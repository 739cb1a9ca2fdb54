"""Nodes that come after sampling: none ends a prompt whose video is finished, none tells an older run as new."""

import asyncio
import re

import pytest
import torch

pytest.importorskip("comfy", reason="ComfyUI is not installed here")

import folder_paths

from foresight.hosts.comfyui import apply_foresight, live, runs_on
from pack.nodes import ForesightExtension
from pack.nodes.compare import ForesightCompare
from pack.nodes.demo import ForesightDemoModel
from pack.nodes.report import ForesightReport
from pack.nodes.timing import ForesightSpeedup, ForesightTimer
from support.node_calls import FAST, execute, sample

NODE = {"inputs": {}}
NODES = {"7": NODE, "8": NODE, "3": {"inputs": {"model": ["7", 0]}}, "4": {"inputs": {"model": ["8", 0]}}}


@pytest.fixture(scope="module")
def model():
    return ForesightDemoModel.execute().args[0]


@pytest.fixture
def folders(tmp_path, monkeypatch):
    for name in ("output", "temp"):
        (tmp_path / name).mkdir()
        monkeypatch.setattr(folder_paths, f"get_{name}_directory", lambda name=name: str(tmp_path / name))
    return tmp_path


def a_file(path):
    path.rmdir()
    path.write_text("a file where a folder should be")


def full(path):
    path.rmdir()
    path.symlink_to("/dev/full")  # a folder that takes nothing


@pytest.mark.parametrize("break_folder", [a_file, full])
@pytest.mark.parametrize("name", ["output", "temp"])
def test_folders_that_take_nothing_cost_no_latent(model, folders, break_folder, name):
    patched = apply_foresight(model, FAST, "7")
    latent = sample(patched)
    break_folder(folders / name)
    output = execute(ForesightReport, patched, latent, "foresight/report", prompt=NODES)
    assert output.args[0] is latent and output.args[4] > 0 and "block calls (" in output.args[2]
    (text,) = output.ui["text"]
    said = "the report was not saved, the latent is passed on: " if name == "output" else "the picture is not shown: "
    assert text.startswith(output.args[2]) and re.search(said + ".*[a-z]", text)
    video = torch.rand(2, 16, 16, 3)
    compared = execute(ForesightCompare, video, video, 4.0)
    assert compared.args[4] == float("inf") and ("not shown" in compared.ui["text"][0]) == (name == "temp")


@pytest.mark.parametrize("prefix", ["../x", "a\0b", "x" * 300])
def test_a_prefix_that_cannot_be_written_is_told_and_writes_nothing(model, folders, prefix):
    patched = apply_foresight(model, FAST, "7")
    latent = sample(patched)
    output = execute(ForesightReport, patched, latent, prefix, prompt=NODES)
    assert output.args[0] is latent and "the report was not saved" in output.ui["text"][0]
    assert not list(folders.rglob("*.json"))


def test_half_a_report_is_removed(model, folders, monkeypatch):
    def short(self, text):
        with self.open("w") as file:
            file.write(text[:20])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_text", short)
    patched = apply_foresight(model, FAST, "7")
    output = execute(ForesightReport, patched, sample(patched), "r", prompt=NODES)
    assert "No space left on device" in output.ui["text"][0] and not list((folders / "output").iterdir())


def test_no_node_that_takes_a_result_raises_whatever_it_is_given(model, folders):
    """A model that never ran, that was never timed, videos that do not fit."""
    plain, other, timed = {"samples": 1}, {"samples": 2}, execute(ForesightTimer, model).args[0]
    given = {
        "ForesightReport": [(model, plain, "r"), (apply_foresight(model, FAST), plain, "r")],
        "ForesightSpeedup": [
            (model, plain, model, other),
            (timed, plain, model, other),
        ],
        "ForesightCompare": [(torch.rand(1, 16, 16, 3), torch.rand(2, 16, 16, 3), 4.0), (torch.rand(1, 4, 4, 3),) * 2]
        + [(torch.full((1, 16, 16, 3), float("nan")), torch.rand(1, 16, 16, 3))],
    }
    nodes = {node.GET_SCHEMA().node_id: node for node in asyncio.run(ForesightExtension().get_node_list())}
    assert given.keys() == {name for name, node in nodes.items() if node.GET_SCHEMA().is_output_node}
    for name, cases in given.items():
        for args in cases:
            output = execute(nodes[name], *args, *([4.0] if name == "ForesightCompare" and len(args) == 2 else []))
            assert output.ui["text"][0] and all(any(x is y for y in output.args) for x in args if x in (plain, other))


def test_seconds_of_an_earlier_prompt_are_told_as_such(model):
    plain = execute(ForesightTimer, model, node_id="7").args[0]
    fast = execute(ForesightTimer, apply_foresight(model, FAST, "9"), node_id="8").args[0]
    one, other = sample(plain, "p", "3"), sample(fast, "p", "4")
    sample(fast, "q", "4")  # a setting of Foresight changed: the plain sampler is cached
    text = execute(ForesightSpeedup, plain, one, fast, other, prompt=NODES, prompt_id="q").args[2]
    assert re.fullmatch(r"plain [\d.]+ s \(of an earlier prompt\), Foresight [\d.]+ s: [\d.]+x measured", text)
    sample(plain, "r", "3")
    text = execute(ForesightSpeedup, plain, one, fast, other, prompt=NODES, prompt_id="r").args[2]
    assert re.fullmatch(r"plain [\d.]+ s, Foresight [\d.]+ s \(of an earlier prompt\): [\d.]+x measured", text)


def test_a_cached_timer_forgets_a_sampler_that_went_to_the_other_line(model):
    plain, fast = (execute(ForesightTimer, model, node_id=node).args[0] for node in ("7", "8"))
    sample(plain, "p", "3")
    sample(plain, "q", "5")
    sample(fast, "q", "3")
    nodes = {**NODES, "3": NODES["4"], "5": {"inputs": {"model": ["7", 0]}}}
    text = execute(ForesightSpeedup, plain, {}, fast, {}, prompt=nodes, prompt_id="q").args[2]
    assert re.fullmatch(r"plain [\d.]+ s, Foresight [\d.]+ s: [\d.]+x measured", text)


def test_the_report_knows_more_runs_than_the_server_keeps(model):
    cached, tuned = apply_foresight(model, FAST, "7"), apply_foresight(model, FAST, "8")
    latent = sample(cached, "p", "3", steps=5)
    for n in range(live._runs.maxlen + 8):
        sample(tuned, "q", f"20.0.0.{n}", steps=1)
    assert len(runs_on(cached)) == 1 and len(runs_on(tuned)) == live._runs.maxlen + 8
    text = execute(ForesightReport, cached, latent, "", prompt=NODES, prompt_id="q").args[2]
    assert "run (earlier prompt)" in text and "did not run" not in text

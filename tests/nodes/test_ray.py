"""Foresight (Ray): with workers that are objects of this process, and with Ray's own where it is installed."""

import os
import sys
import types

import pytest
import torch

pytest.importorskip("comfy", reason="ComfyUI is not installed here")

import folder_paths

from foresight.engine import METHODS
from foresight.hosts.comfyui import KEY, in_worker, workers
from foresight.report import figures
from pack.nodes import report
from pack.nodes.apply import ForesightApply
from pack.nodes.demo import ForesightDemoModel
from pack.nodes.ray import ForesightRay
from pack.nodes.report import ForesightReport
from support import ray_actor
from support.node_calls import execute, sample


class Remote:
    """A method of an actor: `method.remote(...)` is the call."""

    def __init__(self, method):
        self.remote = method


class Worker:
    """What raylight's worker is to us."""

    def __init__(self, model):
        self.model = model
        self.model_function_runner, self.model_function_runner_get_values = Remote(self._run), Remote(self._get)

    def _run(self, function, *args):
        self.model = function(self.model, *args)

    def _get(self, function, *args):
        return function(self.model, *args)


@pytest.fixture
def by_value(monkeypatch):
    """A Ray of which only the parts that are used are there; what is registered for pickling by value."""
    registered = []
    pickle = types.SimpleNamespace(
        register_pickle_by_value=registered.append, unregister_pickle_by_value=registered.remove
    )
    monkeypatch.setitem(sys.modules, "ray", types.SimpleNamespace(get=list, cloudpickle=pickle))
    monkeypatch.setattr(sys, "path", list(sys.path))
    return registered


@pytest.fixture
def actors():
    model = ForesightDemoModel.execute().args[0]
    return {"workers": [Worker(model.clone()) for _ in range(2)]}


def config_of(worker):
    (wrappers,) = [by_key[KEY] for by_key in worker.model.wrappers.values() if KEY in by_key]
    return wrappers[0].config


def test_the_widgets_are_those_of_the_main_node():
    ours, its = ForesightRay.GET_SCHEMA().inputs, ForesightApply.GET_SCHEMA().inputs
    assert [i.as_dict() for i in ours[1:]] == [i.as_dict() for i in its[1:]]
    assert [i.id for i in ours] == ["ray_actors", *(i.id for i in its[1:])]
    assert ours[0].io_type == ForesightRay.GET_SCHEMA().outputs[0].io_type == "RAY_ACTORS"
    assert ForesightRay.validate_inputs(0.9, 0.1) == "start_percent=0.9: must be below end_percent=0.1"


def test_every_worker_has_the_settings(actors, by_value):
    given = execute(ForesightRay, actors, method="paper", threshold=1.0).args[0]
    assert given is actors and not by_value  # registered for the call only
    for worker in actors["workers"]:
        assert config_of(worker) == METHODS["paper"](threshold=1.0)
    execute(ForesightRay, actors, threshold=0.25)
    assert [config_of(worker) for worker in actors["workers"]] == 2 * [METHODS["forecast"](threshold=0.25)]


def test_the_code_goes_there_by_value(actors, by_value, monkeypatch):
    seen = []
    monkeypatch.setattr(Worker, "_run", lambda self, function, *_: seen.append((function, list(by_value))))
    for worker in actors["workers"]:
        worker.model_function_runner = Remote(worker._run)
    execute(ForesightRay, actors)
    assert seen == 2 * [(in_worker.apply, [in_worker])]


def test_the_report_shows_the_first_workers_newest_run(actors, by_value):
    execute(ForesightRay, actors, threshold=2.0)
    latent = None
    for steps in (9, 12):
        latent = sample(actors["workers"][0].model, prompt_id=None, node_id=None, steps=steps)
    result = execute(ForesightReport, actors, latent, "", prompt={}, prompt_id="p")
    text, ratio = result.args[2], result.args[4]
    assert "12 evaluations" in text or " of 12 " in text
    assert 0 < ratio < 1 and "earlier prompt" not in text
    nothing = execute(ForesightReport, {"workers": actors["workers"][1:]}, latent, "", prompt={}).args[2]
    assert "did not run" in nothing


@pytest.mark.parametrize(
    "found, said",
    [
        (lambda: [{"format": 3}], "format=3"),
        (lambda: workers.newest_run_in({"workers": [object()]}), "these are no workers of raylight"),
        (lambda: 1 / 0, "division by zero"),
        (lambda: [{"format": figures.FORMAT, "reused": 0, "total": 0}], "seconds_full"),
    ],
    ids=["another version", "no workers", "lost", "half a record"],
)
def test_a_report_that_has_no_figures_says_why_and_lets_the_video_through(actors, monkeypatch, tmp_path, found, said):
    monkeypatch.setattr(report, "newest_run_in", lambda actors: found())
    monkeypatch.setattr(folder_paths, "get_output_directory", lambda: str(tmp_path))
    latent = {"samples": torch.zeros(1)}
    given, image, text, speedup, *others = execute(ForesightReport, actors, latent, "r", prompt={}).args
    assert given is latent and image.std() > 0.01 and (speedup, *others) == (1.0, 0.0, 0.0, 0.0, 0.0)
    assert text.startswith("no figures, the latent is passed on: ") and said in text and not list(tmp_path.iterdir())


@pytest.mark.parametrize("other", [None, {}, {"workers": []}, {"workers": [object()]}, object()])
def test_what_is_not_raylights_is_refused_by_name(other, by_value):
    with pytest.raises(ValueError, match="these are no workers of raylight .*connect the RAY_ACTORS of its loader"):
        workers.apply_in_workers(other, "forecast", {})


def test_a_wrong_setting_is_said_before_any_worker_hears_it(actors, by_value):
    with pytest.raises(ValueError, match="threshold=99"):
        workers.apply_in_workers(actors, "forecast", {"threshold": 99})


def test_a_worker_without_the_pack_says_where_it_looked(monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setitem(sys.modules, "foresight.engine", None)
    with pytest.raises(ImportError, match="does not find Foresight in /nowhere: on each machine, install the pack"):
        in_worker.reach("/nowhere")
    monkeypatch.undo()
    others = [path for path in sys.path if path != workers.FOLDER]
    monkeypatch.setattr(sys, "path", list(others))
    for _ in range(2):  # once is enough
        in_worker.reach(workers.FOLDER)
        assert sys.path == [*others, workers.FOLDER]


# ---- Ray's own actors


def test_actors_of_ray_decide_together_and_report(tmp_path, monkeypatch):
    ray = pytest.importorskip("ray", reason="Ray is not installed here")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")  # else it writes a token to the home folder
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    ray.cloudpickle.register_pickle_by_value(ray_actor)
    try:
        started = ray.remote(num_cpus=1)(ray_actor.Actor)
        args = 2, str(tmp_path / "store"), os.environ["COMFYUI_PATH"], workers.FOLDER
        actors = {"workers": [started.remote(rank, *args) for rank in range(2)]}
        plain = ray.get([actor.sample.remote(20) for actor in actors["workers"]])
        workers.apply_in_workers(actors, "forecast", {"threshold": 1.0})
        videos = ray.get([actor.sample.remote(20) for actor in actors["workers"]])
        (run,) = workers.newest_run_in(actors)
        others = ray.get(actors["workers"][1].model_function_runner_get_values.remote(ray_actor.kinds))
    finally:
        ray.cloudpickle.unregister_pickle_by_value(ray_actor)
        ray.shutdown()
    assert torch.equal(*videos) and torch.equal(*plain) and not torch.equal(videos[0], plain[0])
    assert [e["kind"] for e in run["evaluations"]] == others and "reuse" in others and run["done"]

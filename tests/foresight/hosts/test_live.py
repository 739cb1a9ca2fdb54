"""The events of a run: every row once, in order, also when many fall into one interval."""

import json
import time

import pytest

pytest.importorskip("comfy", reason="ComfyUI is not installed here")

from foresight import ForecastConfig, PaperConfig
from foresight.hosts.comfyui import apply_foresight, live, runs_on
from support.comfy_models import sample

MUCH = PaperConfig(threshold=2.0, warmup_steps=3, sample_rows=0)


class Server:
    def __init__(self):
        self.messages = []

    def send_sync(self, event, message):
        assert event == "foresight.run"
        self.messages.append(json.loads(json.dumps(message)))


@pytest.fixture
def server(monkeypatch):
    server = Server()
    monkeypatch.setattr(live, "_server", lambda: server)
    live._runs.clear()
    return server


@pytest.mark.parametrize("interval", [0.0, 1e9])
def test_every_row_arrives_once(models, server, monkeypatch, interval):
    monkeypatch.setattr(live, "_INTERVAL", interval)
    model = models["wan"]
    sample(model, apply_foresight(model.patcher, MUCH, "7"))
    (record,) = live.runs()
    rows, messages = [], server.messages
    for message in messages:
        assert message["first"] == len(rows) and message["node_id"] == "7"
        rows += message["evaluations"]
    assert rows == record["evaluations"] and len(rows) == 14
    # at the first evaluation there is no row yet, but the node can say that a run has begun
    assert len(messages) == (2 if interval else 15)
    assert [m["done"] for m in messages] == [False] * (len(messages) - 1) + [True]
    assert messages[-1]["reuse_ratio"] == record["reuse_ratio"] > 0 and record["done"]


@pytest.mark.parametrize("quiet", [False, True])
def test_what_is_done_again_replaces_the_rows_that_were_shown(models, server, monkeypatch, quiet):
    """Also where, from then on, evaluations are so fast that nothing is sent before the end."""
    monkeypatch.setattr(live, "_INTERVAL", 0.0)
    update, lengths = live.Watcher.update, [0]

    def watched(self):
        lengths.append(len(self.stats.evaluations))
        if quiet and lengths[-1] < lengths[-2]:
            live._INTERVAL = 1e9
        update(self)

    monkeypatch.setattr(live.Watcher, "update", watched)
    model = models["wan"]
    sample(model, apply_foresight(model.patcher, ForecastConfig(), "7"), steps=20, sampler="sa_solver", cfg=8.0)
    (record,) = live.runs()
    assert record["taken_back"] == 1
    rows = []
    for message in server.messages:  # as js/runs.js merges them
        assert message["first"] <= len(rows), "rows before these are missing"
        rows = rows[: message["first"]] + message["evaluations"]
    assert rows == record["evaluations"] and len(rows) == 20


class Queue:
    def __init__(self, *extras):
        self.extras = extras

    def get_current_queue_volatile(self):
        return [(n, f"prompt {n}", {}, extra, []) for n, extra in enumerate(self.extras)], []


def test_a_run_is_of_the_workflow_and_the_page_that_queued_its_prompt(server):
    workflow = {"extra_pnginfo": {"workflow": {"id": "w"}}}
    server.prompt_queue = Queue(
        {**workflow, "client_id": "me"}, {"client_id": "me"}, workflow, {}, {"extra_pnginfo": 3}
    )
    found = [live._queued_by(f"prompt {n}") for n in range(6)]
    assert found == [("w", "me"), (None, "me"), ("w", None), (None, None), (None, None), (None, None)]
    assert live._queued_by(None) == (None, None)


def test_a_page_is_told_whose_a_run_is_and_nobody_else(models, server, monkeypatch):
    monkeypatch.setattr(live, "_queued_by", lambda prompt_id: ("w", "me"))
    model = models["wan"]
    patched = apply_foresight(model.patcher, MUCH, "7")
    sample(model, patched)
    assert {m["client_id"] for m in server.messages} == {run["client_id"] for run in live.runs()} == {"me"}
    assert all("client_id" not in run for run in runs_on(patched))


def test_a_run_without_a_node_sends_nothing_but_is_listed(models, server):
    model = models["wan"]
    sample(model, apply_foresight(model.patcher, MUCH))
    assert not server.messages and [run["reused"] > 0 for run in live.runs()] == [True]


def test_an_interrupted_run_is_shown_as_far_as_it_came(models, server):
    model = models["wan"]

    def stop(step, *_):
        if step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sample(model, apply_foresight(model.patcher, MUCH, "7"), callback=stop)
    (record,) = live.runs()
    assert record["done"] and 5 <= len(record["evaluations"]) <= 7
    assert server.messages[-1]["done"]


@pytest.mark.parametrize("config", [ForecastConfig(threshold=0.01), PaperConfig(threshold=1e-12)])
def test_a_run_that_left_nothing_out_says_why_as_the_log_does(models, server, config, caplog):
    """Once it is over: before that, the plan may yet be changed by what is measured."""
    model = models["wan"]
    with caplog.at_level("INFO"):
        sample(model, apply_foresight(model.patcher, config, "7"), sampler="dpmpp_sde", steps=12)
    (record,) = live.runs()
    assert not record["reused"] and record["inactive"] and server.messages[-1]["inactive"] == record["inactive"]
    assert f"inactive: {record['inactive']}" in caplog.text
    assert record["inactive"] != config.unused or all(m["inactive"] is None for m in server.messages[:-1])


def test_only_the_newest_runs_are_kept(models, server):
    model = models["wan"]
    patched = apply_foresight(model.patcher, PaperConfig(), "7")
    for _ in range(live._runs.maxlen + 2):
        sample(model, patched, steps=1)
    numbers = [run["run"] for run in live.runs()]
    assert len(numbers) == live._runs.maxlen and numbers == sorted(numbers)


def test_the_runs_of_a_server_started_later_have_higher_numbers(models, server):
    model = models["wan"]
    sample(model, apply_foresight(model.patcher, PaperConfig(), "7"), steps=1)
    assert 0 <= time.time() * 1000 - live.runs()[0]["run"] < 24 * 3600 * 1000

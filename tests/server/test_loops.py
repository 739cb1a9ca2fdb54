"""Loops and copies of workflows in the real thing: whose run it is, and that the figures are told."""

import json
import os
import re
from pathlib import Path

import pytest

pytest.importorskip("comfy", reason="ComfyUI is not installed here")

from tools import hosts

# Stands for the loop packs: both make copies of nodes while the prompt runs, one of samplers, one of Foresight too.
LOOPS = """
from comfy_execution.graph_utils import GraphBuilder


class TestLoop:
    CATEGORY, FUNCTION, RETURN_TYPES = "test", "go", ("LATENT",)
    foresight = None

    @classmethod
    def INPUT_TYPES(cls):
        kinds = {"model": "MODEL", "positive": "CONDITIONING", "negative": "CONDITIONING", "latent": "LATENT"}
        return {"required": {**{name: (kind,) for name, kind in kinds.items()}, "rounds": ("INT",)}}

    def go(self, model, positive, negative, latent, rounds):
        graph = GraphBuilder()
        if self.foresight:
            node = graph.node("ForesightApply", model=model, threshold=2.0)
            node.set_override_display_id(self.foresight)
            model = node.out(0)
        for seed in range(rounds):
            conds = {"positive": positive, "negative": negative, "latent_image": latent, "cfg": 4.0}
            settings = {"sampler_name": "euler", "scheduler": "simple", "denoise": 1.0, "steps": 12}
            latent = graph.node("KSampler", model=model, seed=seed, **conds, **settings).out(0)
        return {"result": (latent,), "expand": graph.finalize()}


class TestLoopAroundForesight(TestLoop):
    foresight = "f"


NODE_CLASS_MAPPINGS = {"TestLoop": TestLoop, "TestLoopAroundForesight": TestLoopAroundForesight}
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    base = tmp_path_factory.mktemp("comfyui")
    (base / "custom_nodes").mkdir()
    (base / "custom_nodes" / "loops.py").write_text(LOOPS)
    with hosts.ComfyUI(Path(os.environ["COMFYUI_PATH"]), base / "server.log", base) as host:
        yield host


def node(kind, **inputs):
    return {"class_type": kind, "inputs": inputs}


def prompt(rounds, kind="TestLoop", **more):
    """A loop on a plain line and one on Foresight's, timed, with both figures."""

    def loop(model):
        return node(kind, model=[model, 0], positive=["p", 0], negative=["q", 0], latent=["l", 0], rounds=rounds)

    return {
        "m": node("ForesightDemoModel"),
        "p": node("ForesightDemoPrompt", text="red ball moving right"),
        "q": node("ForesightDemoPrompt", text=""),
        "l": node("ForesightDemoLatent", width=16, height=16, length=2, batch_size=1),
        "f": node("ForesightApply", model=["m", 0], threshold=2.0),
        "t": node("ForesightTimer", model=["m", 0]),
        "u": node("ForesightTimer", model=["f", 0]),
        "a": loop("t"),
        "b": loop("u"),
        "r": node("ForesightReport", model=["u", 0], latent=["b", 0], filename_prefix=""),
        "s": node(
            "ForesightSpeedup",
            plain_model=["t", 0],
            plain_latent=["a", 0],
            foresight_model=["u", 0],
            foresight_latent=["b", 0],
        ),
        **more,
    }


def runs_of(server, entry):
    return [run for run in json.loads(server.get("/foresight/runs")) if run["prompt_id"] == entry["prompt_id"]]


def texts(entry):
    return [entry["outputs"][name]["text"][0] for name in ("r", "s")]


def test_samplers_in_a_loop_are_reported_and_measured(server):
    entry = server.run(prompt(2))
    report, speedup = texts(entry)
    runs = runs_of(server, entry)
    assert [run["sampler_id"] for run in runs] == ["b.0.0.1", "b.0.0.2"] and all(run["reused"] for run in runs)
    assert all(f"sampler {run['sampler_id']}, run {n}" in report for n, run in enumerate(runs, 1))
    assert "x measured" in speedup and "earlier" not in report + speedup


def test_rounds_that_the_loop_no_longer_makes_are_not_reported(server):
    server.run(prompt(3))
    report, speedup = texts(server.run(prompt(1)))
    assert report.splitlines()[0].strip() == "run" and "earlier" not in speedup


def test_a_loop_out_of_the_cache_stands_for_its_samplers_and_says_so(server):
    nodes = prompt(2, f=node("ForesightApply", model=["m", 0], threshold=1.0))
    server.run(nodes)
    nodes["f"]["inputs"]["threshold"] = 1.5  # the plain loop is cached
    report, speedup = texts(server.run(nodes))
    plain, foresight = speedup.split(", ")
    assert "of an earlier prompt" in plain and "earlier" not in foresight + report and "x measured" in speedup
    nodes["r"]["inputs"]["filename_prefix"] = "again"  # so are both, and the figures: the report alone is new
    report = server.run(nodes)["outputs"]["r"]["text"][0]
    assert all(f"sampler b.0.0.{n}, run {n} (earlier prompt)" in report for n in (1, 2))


def test_foresight_inside_a_loop_shows_on_the_node_that_it_is_a_copy_of(server):
    entry = server.run(prompt(1, "TestLoopAroundForesight"))
    assert {run["node_id"] for run in runs_of(server, entry) if run["sampler_id"].startswith("a.")} == {"f"}


def test_a_run_belongs_to_the_workflow_that_was_queued(server):
    """The copy that Save As makes has another id; ComfyUI takes the Foresight node from its cache."""
    ids = []
    for seed, extra in enumerate(({"workflow": {"id": "one"}}, {"workflow": {"id": "copy"}}, None, {"workflow": {}})):
        sampler = node("KSampler", model=["f", 0], positive=["p", 0], negative=["q", 0], latent_image=["l", 0])
        sampler["inputs"] |= {"seed": 40 + seed, "steps": 4, "cfg": 4.0, "sampler_name": "euler"}
        sampler["inputs"] |= {"scheduler": "simple", "denoise": 1.0}
        saved = node("SaveLatent", samples=["k", 0], filename_prefix="test")
        nodes = {name: value for name, value in prompt(1).items() if name in "mpqlf"}
        entry = server.run({**nodes, "k": sampler, "o": saved}, extra and {"extra_pnginfo": extra})
        ids += [run["workflow_id"] for run in runs_of(server, entry)]
    assert ids == ["one", "copy", None, None]


def test_two_of_our_nodes_with_the_same_inputs_stay_two(server):
    """As copy and paste makes them; and a node that gets another id, as in a subgraph, is not its former self."""

    def sampler(model, steps):
        conds = {"positive": ["p", 0], "negative": ["q", 0], "latent_image": ["l", 0], "cfg": 4.0, "denoise": 1.0}
        return node(
            "KSampler", model=[model, 0], seed=71, steps=steps, sampler_name="euler", scheduler="simple", **conds
        )

    def saved(latent):
        return node("SaveLatent", samples=[latent, 0], filename_prefix="test")

    def nodes(first, second):
        both = {name: node("ForesightApply", model=["m", 0], threshold=0.75) for name in (first, second)}
        timers = {f"{name}t": node("ForesightTimer", model=["m", 0]) for name in both}
        seconds = {"plain_model": [f"{first}t", 0], "foresight_model": [f"{second}t", 0]}
        latents = {"plain_latent": ["x", 0], "foresight_latent": ["y", 0]}
        return {
            **{name: value for name, value in prompt(1).items() if name in "mpql"}, **both, **timers,
            "x": sampler(f"{first}t", 24), "y": sampler(f"{second}t", 4),
            "v": sampler(first, 13), "w": sampler(second, 14),
            "s": node("ForesightSpeedup", **seconds, **latents), "sv": saved("v"), "sw": saved("w"),
        }  # fmt: skip

    for first, second in (("f1", "f2"), ("f3", "f4")):
        entry = server.run(nodes(first, second))
        ran = {run["sampler_id"]: run["node_id"] for run in runs_of(server, entry)}
        assert ran == {"v": first, "w": second}
        plain, foresight, *_ = re.findall(r"([\d.]+) s", entry["outputs"]["s"]["text"][0])
        assert float(plain) > 2 * float(foresight)  # of 24 steps and of 4, each its own

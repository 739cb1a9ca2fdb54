"""Which runs of a model are behind what a prompt shows: samplers in loops, cached, deleted and on another line."""

import weakref
from copy import deepcopy

import pytest

pytest.importorskip("comfy", reason="ComfyUI is not installed here")

import comfy_execution.progress as progress
from comfy_execution.graph import DynamicPrompt
from comfy_execution.utils import CurrentNodeContext

from foresight.hosts.comfyui.prompts import OUTSIDE, SAMPLERS, Newest, Present, Running, executing, signature

MODEL = {"inputs": {}}
NODES = {
    "7": MODEL,
    "8": MODEL,
    "3": {"inputs": {"model": ["7", 0]}},
    "20": {"inputs": {"model": ["7", 0], "n": [1, 2]}},
}


def present(prompt_id, copies=(), nodes=NODES):
    """A prompt in which these copies were made, as {id: maker}."""
    found = DynamicPrompt(nodes)
    for copy, maker in dict(copies).items():
        found.add_ephemeral_node(copy, {"inputs": {"model": ["7", 0]}}, maker, maker)
    return Present(found, prompt_id)


def left(runs, **options):
    """`Newest` of the node 7 after these runs (prompt, sampler), each of which left its place in the list."""
    newest = Newest("7", **options)
    for n, (prompt_id, sampler) in enumerate(runs):
        newest.add(Running(prompt_id, sampler), n)
    return newest


def items(newest, *args, **kwargs):
    return [item for _, item in newest.of(present(*args, **kwargs))]


def test_a_sampler_of_the_prompt_counts_and_one_that_was_deleted_does_not():
    assert items(left([("p", "3"), ("p", "4")]), "q") == [0]


def test_of_each_sampler_the_newest_prompt_counts_with_all_its_runs():
    assert items(left([("p", "3"), ("p", "20"), ("q", "3"), ("q", "3")]), "q") == [1, 2, 3]  # 20 was cached


def test_copies_that_a_loop_made_in_this_prompt_count():
    assert items(left([("p", "20.0.0.1"), ("p", "20.0.0.2")]), "p") == [0, 1]


def test_copies_whose_loop_was_cached_count_for_it():
    assert items(left([("p", "20.0.0.1"), ("p", "20.0.0.9.0.0.1")]), "q") == [0, 1]


def test_a_copy_that_the_loop_made_again_but_had_cached_counts_and_one_too_many_does_not():
    runs = [("p", "20.0.0.1"), ("p", "20.0.0.2"), ("p", "20.0.0.3"), ("q", "20.0.0.2")]
    newest = left(runs)  # in the prompt q the loop goes round twice, the first time out of the cache
    assert items(newest, "q", {"20.0.0.1": "20", "20.0.0.2": "20"}) == [0, 3]
    assert items(newest, "r") == [0, 3]  # all cached: the third one of p does not come back


def test_copies_of_a_loop_that_was_deleted_do_not_count():
    assert items(left([("p", "21.0.0.1")]), "q") == []


def test_a_sampler_that_went_to_another_line_does_not_count():
    nodes = {**NODES, "3": {"inputs": {"model": ["8", 0]}}}
    assert items(left([("p", "3"), ("p", "20")]), "q", nodes=nodes) == [1]
    assert items(left([("p", "3")]), "p", nodes=nodes) == [0]  # it did run on the model, in this prompt


def test_other_nodes_may_lie_between_the_model_and_its_sampler_and_links_may_go_round():
    nodes = {**NODES, "5": {"inputs": {"model": ["7", 0], "x": ["3", 0]}}, "3": {"inputs": {"a": "w", "m": ["5", 0]}}}
    assert items(left([("p", "3")]), "q", nodes=nodes) == [0]


def test_any_number_of_runs_of_a_prompt_is_kept():
    assert len(items(left([("p", f"20.0.0.{n}") for n in range(500)]), "p")) == 500
    assert len(items(left([("p", "3")] * 500), "p")) == 500


def test_prompts_with_node_ids_of_their_own_do_not_add_up_for_ever():
    """A program that makes each prompt anew, without a report node that would ask what is still of use."""
    newest = left([(f"prompt {n}", str(n)) for n in range(2 * SAMPLERS)])
    assert [item for _, item in newest.of(Present())] == list(range(SAMPLERS, 2 * SAMPLERS))


def test_outside_a_prompt_the_newest_are_kept():
    newest = left([(None, None)] * (OUTSIDE + 3))
    assert [item for _, item in newest.of(Present())] == list(range(3, OUTSIDE + 3))


def workflow(seed=0, steps=40, second=0):
    """Two samplers in a row, each with a node behind it that shows figures."""
    return {
        "1": {"class_type": "Load", "inputs": {"name": "a"}},
        "2": {"class_type": "Foresight", "inputs": {"model": ["1", 0]}},
        "3": {"class_type": "KSampler", "inputs": {"model": ["2", 0], "seed": seed, "steps": steps}},
        "4": {"class_type": "KSampler", "inputs": {"model": ["2", 0], "latent": ["3", 0], "seed": second}},
        "5": {"class_type": "Report", "inputs": {"latent": ["3", 0]}},
        "6": {"class_type": "Report", "inputs": {"latent": ["4", 0]}},
    }


class Server:
    """Prompts one after another, and what the samplers of one model left in each."""

    def __init__(self):
        self.newest, self.ran = Newest("2"), 0

    def prompt(self, nodes, samplers, prompt_id=None):
        self.ran += 1
        self.nodes, self.prompt_id = DynamicPrompt(nodes), prompt_id or f"prompt {self.ran}"
        for sampler in samplers:
            self.newest.add(Running(self.prompt_id, sampler, weakref.ref(self.nodes)), (self.ran, sampler))
        return self

    def shown(self, asking, strictly=False):
        return [item for _, item in self.newest.of(Present(self.nodes, self.prompt_id, asking, strictly))]


def test_an_older_result_that_the_cache_brings_back_has_its_own_figures():
    """`--cache-lru` and `--cache-ram` keep results that later prompts had no use for."""
    server = Server()
    server.prompt(workflow(steps=40), "3").prompt(workflow(steps=4), "3")
    assert server.shown("5") == [(2, "3")]
    assert server.prompt(workflow(steps=40), "").shown("5") == [(1, "3")]
    assert server.prompt(workflow(steps=4), "").shown("5") == [(2, "3")]
    assert server.prompt(workflow(steps=12), "").shown("5") == []  # made on another model, or forgotten
    assert server.prompt(workflow(steps=40), "3").shown("5") == [(6, "3")]
    assert server.prompt(workflow(steps=40), "").shown("5") == [(6, "3")]


def test_a_sampler_that_has_yet_to_run_is_not_behind_what_came_before_it():
    server = Server().prompt(workflow(), "34")
    assert server.prompt(workflow(), "").shown("5") == [(1, "3")]
    assert server.shown("6") == [(1, "3"), (1, "4")]
    assert server.prompt(workflow(seed=1), "3").shown("5") == [(3, "3")]
    assert server.shown("6") == [(3, "3")]
    assert server.prompt(workflow(seed=1, second=1), "4").shown("6") == [(3, "3"), (4, "4")]


def test_what_else_was_sampled_by_then_counts_unless_a_measurement_of_one_result_is_asked_for():
    """In which order two samplers and a node between them are executed is ComfyUI's to choose."""
    server = Server().prompt(workflow(), "34")
    assert server.shown("5") == server.shown("6", strictly=True) == [(1, "3"), (1, "4")]
    assert server.shown("5", strictly=True) == [(1, "3")]
    nodes = {"2": {"inputs": {}}, "20": {"inputs": {"model": ["2", 0]}}, "5": {"inputs": {"x": ["20", 0]}}}
    server = Server().prompt({**nodes, "6": {"inputs": {}}}, "")
    for copy_id in ("20.0.0.1", "20.0.0.1.0.0.2"):  # a loop's and one in it: their results are the loop's
        server.nodes.add_ephemeral_node(copy_id, {"inputs": {}}, copy_id.rpartition(".0.0.")[0], "20")
        server.newest.add(Running(server.prompt_id, copy_id, weakref.ref(server.nodes)), copy_id)
    assert len(server.shown("5", strictly=True)) == 2 and server.shown("6", strictly=True) == []


def test_an_id_that_a_program_sends_again_is_another_prompt():
    server = Server()
    for n in range(1, 4):
        assert server.prompt(workflow(), "33", "the same").shown("5") == [(n, "3"), (n, "3")]
    assert len(server.newest._left) == 1
    assert server.prompt(workflow(seed=1), "", "the same").shown("5") == []


def test_what_a_loop_made_comes_back_with_the_loop():
    def nodes(rounds):
        return {**workflow(), "20": {"class_type": "Loop", "inputs": {"n": rounds, "x": ["2", 0]}}}

    server, copies = Server(), {"20.0.0.1": ["20", 0], "20.0.0.2": ["20.0.0.1", 0]}
    for rounds in (2, 3):
        server.prompt(nodes(rounds), "")
        for copy_id, link in copies.items():
            server.nodes.add_ephemeral_node(copy_id, {"class_type": "KSampler", "inputs": {"x": link}}, "20", "20")
        for copy_id in copies:
            server.newest.add(Running(server.prompt_id, copy_id, weakref.ref(server.nodes)), (rounds, copy_id))
    for rounds in (2, 3):  # the loop's result is in the cache, so that nothing is made
        assert server.prompt(nodes(rounds), "").shown("20") == [(rounds, copy_id) for copy_id in copies]
    assert server.prompt(nodes(4), "").shown("20") == []


def test_a_signature_is_that_of_all_that_leads_to_a_node_whatever_the_ids():
    nodes = DynamicPrompt(workflow())
    renamed = {f"a{n}": deepcopy(node) for n, node in reversed(workflow().items())}
    for node in renamed.values():
        node["inputs"] = {k: [f"a{v[0]}", 0] if isinstance(v, list) else v for k, v in node["inputs"].items()}
    assert signature(nodes, "3") == signature(DynamicPrompt(renamed), "a3") != signature(nodes, "4")
    for changed in (workflow(seed=1), workflow(steps=4), {**workflow(), "1": {"class_type": "Load", "inputs": {}}}):
        assert signature(DynamicPrompt(changed), "3") != signature(nodes, "3")
    assert signature(DynamicPrompt(workflow(second=1)), "3") == signature(nodes, "3")  # it comes after
    assert signature(DynamicPrompt({"3": {**workflow()["3"], "class_type": "Other"}}), "3") != signature(
        DynamicPrompt({"3": workflow()["3"]}), "3"
    )
    odd = {"1": {"class_type": "A", "inputs": {"x": ["2", 0], "y": object(), "z": ["gone", 0]}},
           "2": {"class_type": "B", "inputs": {"x": ["1", 1], "n": float("nan")}}}  # fmt: skip
    assert signature(DynamicPrompt(odd), "1") == signature(DynamicPrompt(odd), "1") != signature(nodes, "1")


CIRCLE: list = [1]
CIRCLE.append(CIRCLE)


@pytest.mark.parametrize(
    "value", [{1: 2, "1": 3}, {("middle", 0): 1}, {b"a": None, None: [1]}, CIRCLE, {1, 2}, object(), "\udc80", 1e400]
)
def test_any_object_may_be_a_value(value):
    """Of what a loop's node has expanded to; none may end a run, and an address is no part of a signature."""
    prompts = [DynamicPrompt({"3": {"class_type": "K", "inputs": {"x": x, "y": 1}}}) for x in (value, value, "other")]
    first, again, other = (signature(prompt, "3") for prompt in prompts)
    assert first == again != other
    if type(value) is object:
        assert signature(DynamicPrompt({"3": {"class_type": "K", "inputs": {"x": object(), "y": 1}}}), "3") == first


def test_a_signature_takes_each_node_once_however_many_rounds_a_loop_has(monkeypatch):
    nodes, asked = DynamicPrompt(workflow()), []
    monkeypatch.setattr(nodes, "get_node", lambda node_id, get=nodes.get_node: asked.append(node_id) or get(node_id))
    newest, maker, before = Newest("2"), "20", ["3", 0]
    for _ in range(60):  # each round is made by the one before
        copy_id = f"{maker}.0.0.1"
        nodes.add_ephemeral_node(copy_id, {"class_type": "K", "inputs": {"x": before, "y": ["4", 0]}}, maker, "20")
        newest.add(Running("p", copy_id, weakref.ref(nodes)), copy_id)
        maker, before = copy_id, [copy_id, 0]
    assert len(asked) < 60 * 4 * 4  # the sampler, its makers' look, and those that lead to it, in each round


def test_the_newest_comes_last_and_what_a_loop_made_in_its_place_comes_back_no_more():
    server = Server().prompt(workflow(), "34").prompt(workflow(seed=1), "3").prompt(workflow(), "")
    assert server.shown("6") == [(1, "3"), (1, "4")]  # in the order in which they ran
    server.prompt(workflow(seed=1), "4")
    assert server.shown("6") == [(2, "3"), (4, "4")]

    def nodes(rounds):
        return {**workflow(), "20": {"class_type": "Loop", "inputs": {"n": rounds, "x": ["2", 0]}}}

    def made(count):
        for n in range(count):
            copy_id = f"20.0.0.{n}"
            server.nodes.add_ephemeral_node(copy_id, {"class_type": "K", "inputs": {"x": ["2", 0]}}, "20", "20")
            server.newest.add(Running(server.prompt_id, copy_id, weakref.ref(server.nodes)), (server.ran, n))

    server = Server().prompt(nodes(3), "")
    made(3)
    server.prompt(nodes(2), "")
    made(2)  # another loop's rounds: those of the first are in the cache still
    assert server.shown("20") == [(2, 0), (2, 1)]
    assert server.prompt(nodes(3), "").shown("20") == [(1, 0), (1, 1), (1, 2)]
    server.prompt(nodes(3), "")
    made(2)  # the same one, which ends earlier now
    assert server.shown("20") == [(4, 0), (4, 1)]
    assert server.prompt(nodes(3), "").shown("20") == [(4, 0), (4, 1)]


def test_what_is_executed_is_told_with_its_record_of_nodes(monkeypatch):
    monkeypatch.setattr(progress, "global_progress_registry", None)
    assert executing() == (None, None, None)
    nodes = DynamicPrompt(workflow())
    progress.reset_progress_state("p", nodes)
    with CurrentNodeContext("p", "3"):
        assert executing()[:2] == ("p", "3") and executing().nodes() is nodes
        assert executing() == executing()
    with CurrentNodeContext("another", "3"):
        assert executing() == ("another", "3", None)

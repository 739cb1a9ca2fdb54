"""Which runs of a model are behind what a prompt shows: samplers in loops, cached, deleted and on another line."""

import pytest

pytest.importorskip("comfy", reason="ComfyUI is not installed here")

from comfy_execution.graph import DynamicPrompt

from foresight.hosts.comfyui.prompts import OUTSIDE, SAMPLERS, Newest, Present, Running

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

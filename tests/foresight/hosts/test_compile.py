"""torch.compile with Foresight, in both node orders: the same results and no graph more than without.

Also one run after another without the compiler being reset between them: a graph that was made by a run of another kind
must not take anything away.
"""

import pytest
import torch

pytest.importorskip("comfy", reason="ComfyUI is not installed here")

import comfy.ldm.wan.model
from comfy.ldm.modules.attention import attention_pytorch, attention_sub_quad
from comfy_api.torch_helpers import set_torch_compile_wrapper

from foresight import ForecastConfig, PaperConfig
from foresight.hosts import blocks
from foresight.hosts.comfyui import apply_foresight
from support import comfy_models
from support.comfy_models import sample
from support.graphs import Graphs

pytestmark = pytest.mark.usefixtures("nothing_compiled")

MUCH = PaperConfig(threshold=2.0, warmup_steps=3, reuse_interval=3, sample_rows=0)
CONFIGS = {"plain": None, "forecast": ForecastConfig(threshold=1.0), "paper": MUCH}
WHOLE = ["diffusion_model"]
COUNT = 2  # of blocks; what the compiler takes is in proportion to it
BLOCKS = [f"diffusion_model.blocks.{i}" for i in range(COUNT)]


PLAIN: dict[tuple[str, ...], int] = {}  # graphs of a plain run, by what is compiled


@pytest.fixture(scope="module")
def model():
    return comfy_models.wan(COUNT)


@pytest.fixture
def one_graph(monkeypatch):
    """What ComfyUI uses on a GPU; its choice for a CPU breaks the graph in every block."""
    monkeypatch.setattr(comfy.ldm.wan.model, "optimized_attention", attention_pytorch)


@pytest.fixture
def graph_per_block(monkeypatch):
    """What ComfyUI uses on a processor breaks a whole model's graph in every block, as the method paper does too."""
    monkeypatch.setattr(comfy.ldm.wan.model, "optimized_attention", attention_sub_quad)


def transformer_options_are_not_guarded(entries):
    return ["transformer_options" not in entry.name for entry in entries]


def nothing_is_guarded(entries):
    return [False for _ in entries]


def compiled(patcher, keys, guard_filter=transformer_options_are_not_guarded, **more):
    """What TorchCompileModel does, with a backend that counts; `keys` as the nodes that compile block by block."""
    patcher, graphs = patcher.clone(), Graphs()
    set_torch_compile_wrapper(patcher, backend=graphs, options={"guard_filter_fn": guard_filter}, keys=keys, **more)
    return patcher, graphs


def sampled(model, patcher, config):
    return sample(model, patcher if config is None else apply_foresight(patcher, config), cfg=1.0)


def table(stats):
    """What a run did in each evaluation, block by block."""
    return [(e.kind, e.computed, e.reused) for e in stats.evaluations]


@pytest.mark.usefixtures("graph_per_block")
@pytest.mark.parametrize("keys", [WHOLE, BLOCKS], ids=["whole model", "by block"])
@pytest.mark.parametrize("first", ["foresight", "compile"])
def test_compiled_with_reuse(model, runs, keys, first):
    if tuple(keys) not in PLAIN:
        patcher, graphs = compiled(model.patcher, keys)
        sample(model, patcher, cfg=1.0, steps=4)
        PLAIN[tuple(keys)] = graphs.count
        torch._dynamo.reset()
    plain_graphs, expected = PLAIN[tuple(keys)], sample(model, apply_foresight(model.patcher, MUCH), cfg=1.0)
    if first == "foresight":
        patcher, graphs = compiled(apply_foresight(model.patcher, MUCH), keys)
    else:
        patcher, graphs = compiled(model.patcher, keys)
        patcher = apply_foresight(patcher, MUCH)
    out = sample(model, patcher, cfg=1.0)
    assert runs[0].reused == runs[1].reused > 0
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4)
    first_run = graphs.count
    assert plain_graphs > 0 and first_run <= plain_graphs + 2, (plain_graphs, first_run)
    assert torch.equal(sample(model, patcher, cfg=1.0), out)
    assert graphs.count == first_run  # decisions of a second run compile nothing


@pytest.fixture(scope="module")
def uncompiled(model):
    """Of each config a run without the compiler: its result and its record."""
    from foresight.hosts.comfyui import live

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comfy.ldm.wan.model, "optimized_attention", attention_pytorch)
        seen = []
        patch.setattr(live.Watcher, "finish", lambda self: seen.append(self.stats))
        results = {name: sampled(model, model.patcher, config) for name, config in CONFIGS.items()}
    assert all(stats.reused for stats in seen)
    tables = dict(zip(("forecast", "paper"), map(table, seen), strict=True))
    return {name: (result, tables.get(name)) for name, result in results.items()}


ORDERS = [
    ("plain", "forecast", "plain", "forecast"),
    ("plain", "paper", "plain", "paper"),
    ("paper", "plain", "paper"),
    ("forecast", "plain", "forecast"),
    ("forecast", "paper", "plain", "forecast", "paper"),
]


@pytest.mark.parametrize("order", ORDERS, ids=" ".join)
@pytest.mark.parametrize("keys", [WHOLE, BLOCKS], ids=["whole model", "by block"])
def test_runs_in_turn_are_what_they_are_alone(model, runs, one_graph, uncompiled, keys, order):
    patcher, graphs = compiled(model.patcher, keys)
    counts = []
    for name in order:
        runs.clear()
        result, expected = uncompiled[name]
        torch.testing.assert_close(sampled(model, patcher, CONFIGS[name]), result, rtol=1e-4, atol=1e-4)
        assert [table(stats) for stats in runs] == [expected] * len(runs) and len(runs) == (name != "plain")
        counts.append(graphs.count)
    again = [i for i, name in enumerate(order) if name in order[:i]]
    assert all(counts[i] == counts[i - 1] for i in again)  # what has run once compiles nothing more
    if "paper" not in order:
        assert len(set(counts)) == 1  # a forecast's computed evaluations are the plain graph


def test_a_graph_of_the_whole_model_without_breaks(model, runs, one_graph, uncompiled):
    patcher, _ = compiled(model.patcher, WHOLE, fullgraph=True)
    for name in ("plain", "forecast", "paper", "forecast"):
        expected = uncompiled["plain" if name == "paper" else name][0]
        torch.testing.assert_close(sampled(model, patcher, CONFIGS[name]), expected, rtol=1e-4, atol=1e-4)
    assert [stats.inactive for stats in runs] == [None, blocks.WHOLE, None]
    assert runs[1].total == 14 * len(model.stack) and not runs[1].reused
    assert table(runs[0]) == table(runs[2]) == uncompiled["forecast"][1]


def test_a_graph_that_is_never_made_anew(model, runs, one_graph, uncompiled):
    """Guards may be dropped altogether: then nothing gets between the blocks of a graph of the whole model."""
    patcher, _ = compiled(model.patcher, WHOLE, guard_filter=nothing_is_guarded)
    for name in ("plain", "forecast", "paper"):
        expected = uncompiled["plain" if name == "paper" else name][0]
        torch.testing.assert_close(sampled(model, patcher, CONFIGS[name]), expected, rtol=1e-4, atol=1e-4)
    assert [stats.inactive for stats in runs] == [None, "the whole model is compiled: compile it by block"]
    assert table(runs[0]) == uncompiled["forecast"][1]
    assert runs[1].total == 14 * len(model.stack) and not runs[1].reused


@pytest.mark.parametrize("way", ["in place", "its forward"])
def test_a_whole_model_that_is_compiled_in_another_way(model, runs, one_graph, uncompiled, monkeypatch, way):
    network, graphs = model.patcher.model.diffusion_model, Graphs()
    if way == "in place":
        monkeypatch.setattr(network, "_compiled_call_impl", torch.compile(network._call_impl, backend=graphs))
    else:
        monkeypatch.setattr(network, "forward", torch.compile(network.forward, backend=graphs))
    for name in ("plain", "forecast", "paper"):
        result = sampled(model, model.patcher, CONFIGS[name])
        torch.testing.assert_close(result, uncompiled[name][0], rtol=1e-4, atol=1e-4)
    assert graphs.count and [table(stats) for stats in runs] == [uncompiled[name][1] for name in ("forecast", "paper")]

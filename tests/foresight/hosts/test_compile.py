"""torch.compile with Foresight, in both node orders: the same results and no graph more than without."""

import pytest
import torch

pytest.importorskip("comfy", reason="ComfyUI is not installed here")

from comfy_api.torch_helpers import set_torch_compile_wrapper

from foresight import PaperConfig
from foresight.hosts.comfyui import apply_foresight
from support import comfy_models
from support.comfy_models import sample

MUCH = PaperConfig(threshold=2.0, warmup_steps=3, reuse_interval=3, sample_rows=0)
BLOCKS = [f"diffusion_model.blocks.{i}" for i in range(4)]


class Graphs:
    """A backend that runs each graph as it is and counts them."""

    def __init__(self):
        self.count = 0

    def __call__(self, graph, inputs):
        self.count += 1
        return graph.forward


@pytest.fixture(autouse=True)
def nothing_compiled():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture(scope="module")
def model():
    return comfy_models.wan()


def compiled(patcher, keys):
    """What TorchCompileModel does, with a backend that counts; `keys` as the nodes that compile block by block."""
    patcher, graphs = patcher.clone(), Graphs()

    def transformer_options_are_not_guarded(entries):
        return ["transformer_options" not in entry.name for entry in entries]

    set_torch_compile_wrapper(
        patcher, backend=graphs, options={"guard_filter_fn": transformer_options_are_not_guarded}, keys=keys
    )
    return patcher, graphs


@pytest.mark.parametrize("keys", [["diffusion_model"], BLOCKS], ids=["whole model", "by block"])
@pytest.mark.parametrize("first", ["foresight", "compile"])
def test_compiled_with_reuse(model, runs, keys, first):
    patcher, graphs = compiled(model.patcher, keys)
    sample(model, patcher, cfg=1.0, steps=4)
    plain_graphs = graphs.count
    torch._dynamo.reset()
    expected = sample(model, apply_foresight(model.patcher, MUCH), cfg=1.0)
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

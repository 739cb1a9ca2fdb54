"""torch.compile in diffusers: the whole transformer in one graph, in both orders and both spellings."""

import pytest
import torch

pytest.importorskip("diffusers", reason="diffusers is not installed here")

import diffusers

from foresight import ForecastConfig, PaperConfig
from foresight.hosts import blocks
from foresight.hosts.diffusers import apply_foresight
from support.diffusers_models import seeded
from support.diffusers_transformers import wan
from support.graphs import Graphs

pytestmark = pytest.mark.usefixtures("nothing_compiled")

FORECAST = ForecastConfig(threshold=1.0)
PAPER = PaperConfig(threshold=2.0, warmup_steps=3, sample_rows=0)
STEPS = 16


def sample(transformer, text=1):
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=5.0)
    pipe = diffusers.WanPipeline(None, None, None, scheduler, transformer)
    pipe.set_progress_bar_config(disable=True)
    return pipe(
        latents=seeded(1, 4, 3, 8, 8, seed=5), prompt_embeds=seeded(1, 6, 16, seed=text),
        negative_prompt_embeds=seeded(1, 6, 16, seed=2), num_inference_steps=STEPS, guidance_scale=4.0,
        output_type="latent", height=64, width=64, num_frames=9,
    ).frames  # fmt: skip


@pytest.fixture(scope="module")
def plain_graphs():
    net, graphs = wan().model, Graphs()
    torch._dynamo.reset()
    net.compile(backend=graphs)
    sample(net)
    torch._dynamo.reset()
    assert graphs.count
    return graphs.count


@pytest.mark.parametrize("first", ["compile", "foresight"])
@pytest.mark.parametrize("config", [FORECAST, PAPER], ids=lambda config: config.name)
def test_a_compiled_transformer_takes_few_graphs_and_none_in_the_next_run(config, first, plain_graphs):
    handle = apply_foresight(wan_ := wan().model, config)
    expected = sample(wan_)
    handle.remove()
    net, graphs = wan().model, Graphs()
    if first == "compile":
        net.compile(backend=graphs)
    handle = apply_foresight(net, config)
    if first == "foresight":
        net.compile(backend=graphs)
    ours = sample(net)
    assert handle.stats.reused
    torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-3)
    limit = 4 if config is FORECAST else 4 + len(net.blocks) * 2  # paper goes between the blocks: a graph each
    assert graphs.count <= plain_graphs + limit
    count = graphs.count
    sample(net, text=3)
    assert graphs.count == count


def test_what_torch_compile_returns_is_looked_into():
    net = wan().model
    handle = apply_foresight(net, FORECAST)
    expected = sample(net)
    handle.remove()
    graphs = Graphs()
    compiled = torch.compile(net, backend=graphs)
    handle = apply_foresight(compiled, FORECAST)
    ours = sample(compiled)
    assert handle.stats.reused and graphs.count
    torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-3)
    handle.remove()
    assert "forward" not in net.__dict__


def test_messages_speak_of_diffusers():
    for model in (torch.nn.Identity(), torch.compile(torch.nn.Identity(), backend="eager")):
        with pytest.raises(blocks.UnsupportedModel) as error:
            apply_foresight(model)
        said = str(error.value)
        assert "Identity" in said and "OptimizedModule" not in said and "node" not in said and "this model" in said

"""The pack's nodes called as ComfyUI calls them: in a prompt, with its id and that of the node."""

import comfy.sample
import torch
from comfy_execution.graph import DynamicPrompt
from comfy_execution.utils import CurrentNodeContext

from foresight import PaperConfig
from pack.nodes.demo import ForesightDemoLatent, ForesightDemoPrompt

FAST = PaperConfig(threshold=2.0, warmup_steps=3, sample_rows=0)


def sample(model, prompt_id="p", node_id="3", steps=9, sampler="euler"):
    latent = ForesightDemoLatent.execute(16, 16, 2, 1).args[0]
    noise = torch.randn(latent["samples"].shape, generator=torch.Generator().manual_seed(1))
    positive, negative = (ForesightDemoPrompt.execute(text).args[0] for text in ("red ball moving up", ""))
    with torch.inference_mode(), CurrentNodeContext(prompt_id, node_id):
        out = comfy.sample.sample(
            model, noise, steps, 4.0, sampler, "simple", positive, negative, latent["samples"], disable_pbar=True
        )
    return {"samples": out}


def execute(node, *args, prompt=None, prompt_id="p", node_id=None, **kwargs):
    """Execute a node in a prompt of these nodes."""

    class Hidden:
        unique_id, dynprompt = node_id, DynamicPrompt(prompt) if prompt else None
        extra_pnginfo = None

    Hidden.prompt = prompt

    class Node(node):
        hidden = Hidden

    with CurrentNodeContext(prompt_id, node_id):
        return Node.execute(*args, **kwargs)

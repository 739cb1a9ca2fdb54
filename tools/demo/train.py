"""Train the demo model: `python -m tools.demo.train` (on a GPU: `--device cuda --batch 128 --seconds 154`).

Needs diffusers. Writes the weight file of `models.demo.model` and `tools/demo/training.json`.
"""

import argparse
import json

import torch
from safetensors.torch import save_file

from models.demo import codec, model

from .evaluate import RECORD, evaluate
from .fit import Settings, add_options, fit, settings_of, wan_velocity


def start_near_identity(net: torch.nn.Module) -> None:
    """Initial weights of diffusers' Wan class: each block close to the identity, coordinates as loud as the noise."""
    for block in net.blocks:
        for last in (block.attn1.to_out[0], block.attn2.to_out[0], block.ffn.net[2]):
            torch.nn.init.zeros_(last.weight)
    torch.nn.init.zeros_(net.proj_out.weight)
    with torch.no_grad():  # three channels against the noise of twelve
        net.patch_embedding.weight[:, codec.CHANNELS :] *= 4


def train(settings: Settings, resume: bool = False) -> None:
    """Train the model and score it; `resume` starts from the weight file."""
    from diffusers import WanTransformer3DModel

    torch.manual_seed(settings.seed)
    if resume:
        net = model.load_diffusers().train().requires_grad_(True)
    else:
        net = WanTransformer3DModel(**model.DIFFUSERS_CONFIG)
        start_near_identity(net)
    fit(net, wan_velocity, save, settings)
    evaluate()


def save(ema: torch.nn.Module, log: list[dict], **facts) -> None:
    """Write the averaged weights (fp16, published key names) and what is known about the training so far."""
    weights = {key: value.half().contiguous().cpu() for key, value in model.published_state_dict(ema).items()}
    save_file(weights, model.WEIGHTS)
    RECORD.write_text(json.dumps({**facts, "log": log}, indent=1) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_options(parser)
    parser.add_argument("--resume", action="store_true", help="start from the weight file")
    args = parser.parse_args()
    train(settings_of(args, Settings()), args.resume)

"""More small trained models for the benchmarks, so that no policy is fitted to the bundled one.

`python -m bench.models` trains the two of other shapes with the demo's recipe, clips and codec, as long as one asks it
to; `python -m bench.models wan_high wan_low wan_distilled` the relatives of the bundled model (see `finetune`). Both
write `bench/weights/`. Needs diffusers.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from models.demo import codec, model
from models.demo.prompt import TEXT_DIM, TEXT_TOKENS
from tools.demo import fit, train
from tools.demo.clips import FRAMES, HEIGHT, WIDTH

from . import finetune

FOLDER = Path(__file__).with_name("weights")


@dataclass(frozen=True)
class Trained:
    """One model: its diffusers class and config, and how that class is called with a plain latent."""

    name: str
    class_name: str
    config: dict
    velocity: Callable[[torch.nn.Module, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
    settings: fit.Settings = fit.Settings(steps=800)

    @property
    def files(self) -> list[Path]:
        """The files that its weights are made of."""
        return [model.WEIGHTS if self.name == "wan" else self.path]

    @property
    def path(self) -> Path:
        """Its weight file, keys as in diffusers; the bundled model's has the published ones."""
        return FOLDER / f"{self.name}.safetensors"

    def build(self) -> torch.nn.Module:
        """The network with random weights."""
        import diffusers

        return getattr(diffusers, self.class_name)(**self.config)

    def load(self) -> torch.nn.Module:
        """The trained network in fp32 and eval mode.

        Raises:
            FileNotFoundError: it was not trained yet.
        """
        from safetensors.torch import load_file

        if self.name == "wan":
            return model.load_diffusers()
        if not self.path.is_file():
            raise FileNotFoundError(f"{self.path} is missing: make it with `python -m bench.models`")
        net = self.build()
        net.load_state_dict({key: value.float() for key, value in load_file(self.path).items()})
        return net.eval().requires_grad_(False)

    def train(self, settings: fit.Settings) -> None:
        """Train it and write its weights (fp16) and `<name>.json`."""
        torch.manual_seed(settings.seed)
        net = self.build()
        if self.class_name == "WanTransformer3DModel":
            train.start_near_identity(net)
        fit.fit(net, self.velocity, self.save, settings)

    def save(self, ema: torch.nn.Module, log: list[dict], **facts) -> None:
        """Write what `load` reads, and what is known about the training so far."""
        from safetensors.torch import save_file

        FOLDER.mkdir(exist_ok=True)
        weights = self.stored(ema)
        save_file({key: value.half().contiguous().cpu() for key, value in weights.items()}, self.path)
        self.path.with_suffix(".json").write_text(json.dumps({**facts, "log": log}, indent=1) + "\n")

    def stored(self, net: torch.nn.Module) -> dict[str, torch.Tensor]:
        """What of a network goes into the file."""
        return net.state_dict()


@dataclass(frozen=True)
class Relative(Trained):
    """The bundled model with a difference of low rank.

    Attributes:
        source: From a device to what `fit.fit` takes as its source.
    """

    source: Callable[[str], Callable[[int, torch.Generator], fit.Batch]] | None = None

    @property
    def files(self) -> list[Path]:
        return [model.WEIGHTS, self.path]

    def load(self) -> torch.nn.Module:
        if not self.path.is_file():
            raise FileNotFoundError(f"{self.path} is missing: make it with `python -m bench.models {self.name}`")
        return finetune.apply_differences(model.load_diffusers(), self.path)

    def train(self, settings: fit.Settings) -> None:
        source = self.source(settings.device)
        torch.manual_seed(settings.seed)
        net = finetune.add_differences(model.load_diffusers())
        fit.fit(net, self.velocity, self.save, settings, source)

    def stored(self, net: torch.nn.Module) -> dict[str, torch.Tensor]:
        return finetune.differences(net)


def _cogvideox(net: torch.nn.Module, noisy: torch.Tensor, timestep: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
    return net(noisy.transpose(1, 2), text, timestep, return_dict=False)[0].transpose(1, 2)


MODELS = {
    trained.name: trained
    for trained in (
        Trained("wan", "WanTransformer3DModel", model.DIFFUSERS_CONFIG, fit.wan_velocity),
        Trained(
            "wan_deep",  # more and narrower blocks
            "WanTransformer3DModel",
            {**model.DIFFUSERS_CONFIG, "attention_head_dim": 24, "ffn_dim": 288, "num_layers": 16},
            fit.wan_velocity,
            fit.Settings(steps=800, seed=7),
        ),
        Trained(
            "cogvideox",  # text and video in one sequence, sines for positions, two norms a block
            "CogVideoXTransformer3DModel",
            dict(
                num_attention_heads=4,
                attention_head_dim=28,
                in_channels=codec.CHANNELS,
                out_channels=codec.CHANNELS,
                time_embed_dim=64,
                text_embed_dim=TEXT_DIM,
                num_layers=10,
                sample_width=WIDTH // codec.FACTOR,
                sample_height=HEIGHT // codec.FACTOR,
                sample_frames=FRAMES,
                patch_size=2,
                temporal_compression_ratio=1,
                max_text_seq_length=TEXT_TOKENS,
                spatial_interpolation_scale=1.0,
            ),
            _cogvideox,
            fit.Settings(steps=800, seed=11),
        ),
    )
}


EVERYWHERE = tuple(MODELS)  # those that take part in every sampler setting, CFG 4
EXPERTS = ("wan_high", "wan_low")  # for the first and the second part of a run, CFG 4, shift 5
DISTILLED = "wan_distilled"  # for 8 and 4 steps, CFG 1, shift 5


def _relative(name: str, source: Callable, **settings) -> Relative:
    short = fit.Settings(batch=8, warmup=10, compile=False, **settings)
    return Relative(name, "WanTransformer3DModel", model.DIFFUSERS_CONFIG, fit.wan_velocity, short, source)


def _lessons(device: str) -> Callable:
    return finetune.distilled_batch(*finetune.lessons(48, device))


MODELS |= {
    relative.name: relative
    for relative in (
        _relative(
            "wan_high", lambda device: finetune.expert_batch(finetune.BOUNDARY, 1.0), steps=60, rate=0.12, seed=31
        ),
        _relative(
            "wan_low", lambda device: finetune.expert_batch(0.0, finetune.BOUNDARY), steps=60, rate=0.05, seed=37
        ),
        _relative("wan_distilled", _lessons, steps=120, rate=0.3, seed=41),
    )
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=[name for name in EVERYWHERE if name != "wan"])
    fit.add_options(parser)
    args = parser.parse_args()
    for name in args.names:
        if name == "wan" or name not in MODELS:
            parser.error(f"{name!r}: choose from {', '.join(n for n in MODELS if n != 'wan')}")
        MODELS[name].train(fit.settings_of(args, MODELS[name].settings))


if __name__ == "__main__":
    main()

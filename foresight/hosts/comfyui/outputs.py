"""What an evaluation gives beside its return value, and the parts that its latent has."""

import contextlib
import math
from collections.abc import Callable, Sequence

import torch

from ...engine.history import quieted
from ...engine.tensors import Tensors
from .wrappers import Wrapper

POST_CFG = "sampler_post_cfg_function"
_LATENTS = ("denoised", "cond_denoised", "uncond_denoised")


class Parts:
    """A latent that ComfyUI has packed into one tensor, as its parts: video and audio, say.

    Args:
        shapes: Of the parts, each with the batch first.
        audio_scale: By what ComfyUI has multiplied the audio: 4 for MiniMax H3, so that its audio has less noise than
            its video in the same step.
        mask: What of the latent is made, in its shape: above 0; None for all. What is kept stays as it is whatever the
            model gives for it, so that nothing is measured there.
    """

    def __init__(
        self,
        shapes: Sequence[Sequence[int]] | None,
        audio_scale: float = 1.0,
        mask: torch.Tensor | None = None,
    ):
        self._audio_scale = audio_scale
        made = mask > 0 if mask is not None else None
        self._made = None if made is None or bool(made.all()) else made
        self._sizes = [math.prod(shape[1:]) for shape in shapes or ()]
        self._dims = [len(shape) for shape in shapes or ()]

    @property
    def names(self) -> tuple[str, ...]:
        """What people call the parts; nothing where the latent is one."""
        if len(self._dims) == 2 and self._dims[0] == 5 > self._dims[1]:
            return "video", "audio"
        return tuple(f"part {i + 1}" for i in range(len(self._dims))) if len(self._dims) > 1 else ()

    def split(self, packed: torch.Tensor) -> Tensors:
        """The parts as views, one where the latent is not packed."""
        together = len(self._sizes) > 1 and packed.shape[-1] == sum(self._sizes)
        return packed.split(self._sizes, -1) if together else (packed,)

    def made(self, packed: torch.Tensor) -> Tensors:
        """The parts, with 0 where a mask keeps what is there."""
        return _only(self._masks(packed), self.split(packed))

    def _masks(self, packed: torch.Tensor) -> Tensors:
        """Of each part; nothing where all is made, or where a sampler has changed the latent's size."""
        fits = self._made is not None and self._made.shape == packed.shape
        return self.split(self._made.to(packed.device)) if fits else ()

    def unit(self, packed: torch.Tensor, size: float, share: float, outputs: Tensors) -> Tensors:
        """What errors in outputs are measured in: what each takes away from its part of the latent (see `quieted`).

        Args:
            packed: The sampler's latent.
            size: Of the latent, see `levels.Noise`.
            share: Rms of the noise in it, where its size is 1.
            outputs: One or several of each part, in turn.
        """
        latent = self.split(packed if size == 1.0 else packed / size)
        taken = tuple(latent[i % len(latent)] - output for i, output in enumerate(outputs))
        found = _only(self._masks(packed), taken)
        if len(latent) == 1:
            return found
        noise = [share * (self._audio_scale if name == "audio" else 1.0) for name in self.names]
        return quieted(found, [noise[i % len(latent)] for i in range(len(found))])

    def join(self, parts: Tensors) -> Tensors:
        """The packed latents that these are the parts of, in turn."""
        count = max(1, len(self._sizes))
        return tuple(
            torch.cat(parts[i : i + count], -1) if count > 1 else parts[i] for i in range(0, len(parts), count)
        )


def _only(masks: Tensors, tensors: Tensors) -> Tensors:
    """Tensors, one or several of each part in turn, with 0 where the part's mask says so."""
    return tuple(x.where(masks[i % len(masks)], 0.0) for i, x in enumerate(tensors)) if masks else tensors


class SamplerFunctions(Wrapper):
    """The post-CFG functions that a sampler brings for itself, as CFG++ does to learn the uncond.

    They are called in every evaluation. In one that is left out they are given forecasts.

    Attributes:
        given: What they were given in the newest evaluation, denoised first; empty where the sampler has none.
    """

    def __init__(self):
        self.given: Tensors = ()
        self._args: dict = {}  # what ComfyUI gave them last, but for the latents
        self._names: list[str] = []  # of the latents among it
        self._latents: Tensors = ()

    @staticmethod
    def among(model_options: dict, guider: object) -> list[Callable]:
        """The sampler's own functions, which stand behind those that the guider's model has."""
        return model_options.get(POST_CFG, [])[_of_model(guider) :]

    @contextlib.contextmanager
    def watched(self, model_options: dict, guider: object):
        """A function of ours stands before the sampler's own, and sees what these are given.

        The options stay the same ones: guidance nodes keep in them what they have seen.
        """
        if not self.among(model_options, guider):
            yield
            return
        found, has = model_options[POST_CFG], _of_model(guider)
        model_options[POST_CFG] = [*found[:has], self._see, *found[has:]]
        try:
            yield
        finally:
            model_options[POST_CFG] = found

    def _see(self, args: dict) -> torch.Tensor:
        self._names = [name for name in _LATENTS if isinstance(args.get(name), torch.Tensor)]
        self._latents = tuple(args[name] for name in self._names)
        self._args = {key: value for key, value in args.items() if key not in self._names}
        return args["denoised"]

    def take(self) -> Tensors:
        """What they were given in this evaluation: denoised first; empty where nobody has called them."""
        self.given, self._latents = self._latents, ()
        return self.given

    def call(self, functions: list[Callable], latents: Tensors, sigma: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Call them with these in place of what they would be given; the denoised latent that they leave."""
        self.given = latents
        args = {**self._args, **dict(zip(self._names, latents, strict=True)), "sigma": sigma, "input": x}
        for function in functions:
            args["denoised"] = function(args)
        return args["denoised"]


def _of_model(guider: object) -> int:
    return len(getattr(guider, "model_options", {}).get(POST_CFG, []))

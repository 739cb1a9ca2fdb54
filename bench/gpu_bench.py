"""One model on one device with ComfyUI's sampler around it: plain runs, forced ones, and the clock on each."""

import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from foresight import Config, PaperConfig
from foresight.engine.prefix.stream import stream_bytes
from foresight.hosts import blocks

from . import real_models
from .forced import Clock, depth_of, forced_forecast, forced_prefix


@dataclass
class Sampled:
    """One sampler run.

    Attributes:
        seconds: Of every evaluation but the last.
        wall: Seconds of the whole call of ComfyUI's sampler.
        peak_bytes: Most memory that tensors took on the GPU, None elsewhere.
        stats: `RunStats.to_dict()`, None without Foresight.
        latent: What came out, as ComfyUI's sampler returns it.
        clock: The clock that timed it.
    """

    seconds: list[float]
    wall: float
    peak_bytes: int | None
    stats: dict | None
    latent: torch.Tensor
    clock: Clock

    @property
    def finite(self) -> bool:
        """Whether the result is: the time of a NaN is not that of a number."""
        return bool(torch.isfinite(self.latent).all())

    def median(self, first: int) -> float:
        """Of the evaluations from `first` on."""
        return statistics.median(self.seconds[first:])

    def by(self, label, first: int) -> dict:
        """Seconds by label(evaluation of `stats`), from `first` on."""
        groups: dict = {}
        for evaluation, seconds in list(zip(self.stats["evaluations"], self.seconds, strict=False))[first:]:
            groups.setdefault(label(evaluation), []).append(seconds)
        return groups


class Bench:
    """One model with random weights on one device, and ComfyUI's sampler around it.

    Args:
        patcher: The model, where it is loaded already; by default it is made on the device.

    Raises:
        NotThere: this ComfyUI does not have the model.
    """

    def __init__(self, model: real_models.RealModel, device: torch.device, tiny: bool, patcher=None):
        import comfy.patcher_extension
        import comfy.sample

        self._sample = comfy.sample.sample
        self._wrapper = comfy.patcher_extension.WrappersMP.PREDICT_NOISE
        from foresight.hosts import comfyui  # once ComfyUI can be imported

        self._adapter = comfyui
        self.model, self.device = model, device
        self.patcher = patcher or real_models.build(model, device, tiny)
        self._latent = real_models.empty_latent(model, tiny)
        self._noise = torch.randn(self._latent.shape, generator=torch.Generator().manual_seed(0))
        self._texts = [real_models.conditioning(model, seed) for seed in (1, 2)]
        self.conds = 1 if math.isclose(model.cfg, 1.0) else 2
        self._stack = [] if model.smoke_only else self._blocks_of(self.patcher.model.diffusion_model)
        self.blocks = len(self._stack)

    @staticmethod
    def _blocks_of(diffusion_model: torch.nn.Module) -> list[tuple[torch.nn.Module, blocks.Section]]:
        from foresight.hosts.comfyui import families

        return blocks.family_of(diffusion_model, families.FAMILIES).stack(diffusion_model)

    def sample(self, steps: int, patcher=None, syncs: bool = False) -> Sampled:
        """Sample `steps` steps of euler, one evaluation each."""
        clock = Clock(self.device, syncs)
        timed = (patcher or self.patcher).clone()
        timed.add_wrapper_with_key(self._wrapper, "foresight_bench", clock)
        cuda = self.device.type == "cuda"
        if cuda:
            torch.cuda.reset_peak_memory_stats(self.device)
        begin = time.perf_counter()
        with clock, torch.inference_mode():
            out = self._sample(
                *(timed, self._noise, steps, self.model.cfg, "euler", "simple", *self._texts, self._latent),
                disable_pbar=True,
                seed=0,
            )
        wall = time.perf_counter() - begin
        peak = torch.cuda.max_memory_allocated(self.device) if cuda else None
        runs = self._adapter.runs_on(timed)
        return Sampled(clock.seconds(), wall, peak, runs[-1] if runs else None, out, clock)

    def foresight(self, config: Config, patcher=None):
        """The model with Foresight on it, or `patcher`, which is a form of it."""
        return self._adapter.apply_foresight(patcher or self.patcher, config)

    def forced(self, depths: Sequence[int], warmup: int, interval: int, syncs: bool = False) -> Sampled:
        """Sample with Foresight reusing up to block `depths[e]` in evaluation `e`.

        Raises:
            RuntimeError: the engine did something else.
        """
        settings = forced_prefix(depths, warmup_steps=warmup, reuse_interval=interval)
        run = self.sample(len(depths), self.foresight(settings), syncs)
        reached = [depth_of(evaluation) for evaluation in run.stats["evaluations"]]
        if reached != list(depths):
            why = run.stats["inactive"] or "no reason given"
            raise RuntimeError(f"Foresight reused up to blocks {reached}, {list(depths)} was asked for ({why})")
        return run

    def forecast(self, computed: Sequence[bool], syncs: bool = False) -> Sampled:
        """Sample with the method "forecast", which computes evaluation `e` where `computed[e]`.

        Raises:
            RuntimeError: the engine did something else.
        """
        settings = forced_forecast(computed)
        run = self.sample(len(computed), self.foresight(settings), syncs)
        did = [bool(sum(evaluation["computed"])) for evaluation in run.stats["evaluations"]]
        if did != list(computed):
            why = run.stats["inactive"] or "no reason given"
            raise RuntimeError(f"Foresight computed {did}, {list(computed)} was asked for ({why})")
        return run

    def easycache(self):
        """The model with ComfyUI core's EasyCache, active from the first evaluation, which never leaves one out."""
        from comfy_extras.nodes_easycache import EasyCacheNode

        return EasyCacheNode.execute(self.patcher, 0.0, 0.0, 1.0, False).args[0]

    def first_look(self) -> tuple[int, int, float]:
        """Warm up; bytes of the hidden states of all streams, of the samples that are kept of them, seconds of one."""
        block, section = self._stack[0]
        seen: list[tuple] = []

        def look(_, args: tuple, kwargs: dict) -> None:
            seen.append(tuple((x.shape, x.dtype) for x in section.read(args, kwargs)))

        handle = block.register_forward_pre_hook(look, with_kwargs=True)
        try:
            seconds = self.sample(3).median(1)
        finally:
            handle.remove()
        calls = len(seen) // 3  # in an evaluation
        together = self.conds // calls  # streams in a call
        layout = tuple((torch.Size((shape[0] // together, *shape[1:])), dtype) for shape, dtype in seen[-1])
        sizes = stream_bytes(layout, self.blocks, PaperConfig().sample_rows)
        return self.conds * sizes[0], self.conds * sizes[1], seconds

"""What is measured of one model: single evaluations, plain and with each cache, and whole runs."""

import gc
import math
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from foresight.engine import ForesightConfig
from foresight.engine.prefix.slot import stream_bytes
from foresight.hosts import families

from . import real_models
from .forced import LADDER_INTERVAL, Clock, Forced, ForcedForecast, all_blocks, depth_of, every, ladder, scaled

WARMUP = 2  # evaluations before reuse where only single evaluations are timed; lambda needs a change
SCHEDULES = ("n1r2", "recorded", "n2r3")
FORECASTS = {"forecast3": 3, "forecast4": 4}  # one evaluation of so many is computed


@dataclass
class Sampled:
    """One sampler run.

    Attributes:
        seconds: Of every evaluation but the last.
        wall: Seconds of the whole call of ComfyUI's sampler.
        peak_bytes: Most memory that tensors took on the GPU, None elsewhere.
        stats: `RunStats.to_dict()`, None without Foresight.
        finite: Whether the result is: the time of a NaN is not that of a number.
        clock: The clock that timed it.
    """

    seconds: list[float]
    wall: float
    peak_bytes: int | None
    stats: dict | None
    finite: bool
    clock: Clock

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

    Raises:
        NotThere: this ComfyUI does not have the model.
    """

    def __init__(self, model: real_models.RealModel, device: torch.device, tiny: bool):
        import comfy.patcher_extension
        import comfy.sample

        self._sample = comfy.sample.sample
        self._wrapper = comfy.patcher_extension.WrappersMP.PREDICT_NOISE
        from foresight.hosts import comfyui  # once ComfyUI can be imported

        self._adapter = comfyui
        self.model, self.device, self.patcher = model, device, real_models.build(model, device, tiny)
        self._latent = real_models.empty_latent(model, tiny)
        self._noise = torch.randn(self._latent.shape, generator=torch.Generator().manual_seed(0))
        self._texts = [real_models.conditioning(model, seed) for seed in (1, 2)]
        self.conds = 1 if math.isclose(model.cfg, 1.0) else 2
        diffusion_model = self.patcher.model.diffusion_model
        self._stack = families.family_of(diffusion_model, families.COMFYUI).stack(diffusion_model)
        self.blocks = len(self._stack)

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
        finite = bool(torch.isfinite(out).all())
        return Sampled(clock.seconds(), wall, peak, runs[-1] if runs else None, finite, clock)

    def forced(self, depths: Sequence[int], warmup: int, interval: int, syncs: bool = False) -> Sampled:
        """Sample with Foresight reusing up to block `depths[e]` in evaluation `e`.

        Raises:
            RuntimeError: the engine did something else.
        """
        settings = ForesightConfig(method="paper", threshold=1.0, warmup_steps=warmup, reuse_interval=interval)
        counter = Clock(torch.device("cpu"))  # only counts
        patcher = self._adapter.apply_foresight(self.patcher, settings)
        patcher.add_wrapper_with_key(self._wrapper, "foresight_bench_count", counter)
        with Forced(depths, lambda: counter.evaluation):
            run = self.sample(len(depths), patcher, syncs)
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
        settings = ForesightConfig(method="forecast", threshold=1.0)
        with ForcedForecast(computed):
            run = self.sample(len(computed), self._adapter.apply_foresight(self.patcher, settings), syncs)
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
        sizes = stream_bytes(layout, self.blocks, ForesightConfig().sample_rows)
        return self.conds * sizes[0], self.conds * sizes[1], seconds


def stage_evaluations(repeats: int) -> int:
    """About how many full evaluations `evaluate` takes after its first look."""
    plain, idle, easycache, rungs, syncs = 2 * (repeats + 2), 2 * repeats + 3, repeats + 3, 2.5 * repeats + 3, 18
    forecast = repeats + 4 + 4 + repeats
    return round(plain + idle + easycache + rungs + forecast + syncs)


def evaluate(bench: Bench, row: dict, repeats: int, deadline: float) -> None:
    """Single evaluations of every kind: fills `row` as it goes on, so that what was measured before a failure stays.

    Args:
        repeats: Evaluations behind each median.
        deadline: Of time.monotonic; what would end later is left out.
    """
    row["blocks"], row["conds"] = bench.blocks, bench.conds
    hidden, samples, rough = bench.first_look()
    count, left = stage_evaluations(repeats), deadline - time.monotonic()
    if count * rough > left:
        row["skipped"] = f"{count} evaluations of about {rough:.2f} s do not fit into the {max(0.0, left):.0f} s left"
        return

    before = bench.sample(repeats + 2)
    idle = bench.forced([-1] * (WARMUP + 2 * repeats + 1), WARMUP, 2)
    easycache = bench.sample(repeats + 3, bench.easycache())
    rungs = bench.forced(ladder(WARMUP, repeats, bench.blocks), WARMUP, LADDER_INTERVAL)
    waiting = bench.forecast([True] * (repeats + 4))
    leaving = bench.forecast(every(2 * repeats + 4, 2))
    after = bench.sample(repeats + 2)

    plain = statistics.median(before.seconds[1:] + after.seconds[1:])
    row["plain"] = {"seconds": plain, "drift": after.median(1) / before.median(1) - 1}
    row["finite"] = after.finite and rungs.finite
    kinds = {kind: statistics.median(times) for kind, times in idle.by(lambda e: e["kind"], WARMUP).items()}
    row["idle"] = {
        "full_seconds": kinds["full"],
        "reuse_seconds": kinds["reuse"],
        "overhead": (kinds["full"] + kinds["reuse"]) / 2 / plain - 1,
    }
    row["easycache"] = {"seconds": easycache.median(2), "overhead": easycache.median(2) / plain - 1}
    skipped = leaving.by(lambda e: bool(sum(e["computed"])), 3)[False]
    row["forecast"] = {
        "idle_seconds": waiting.median(3),
        "overhead": waiting.median(3) / plain - 1,
        "left_out_seconds": statistics.median(skipped),
        "left_out_of_plain": statistics.median(skipped) / plain,
        "held_bytes": waiting.stats["peak_bytes"],
    }
    row["by_depth"] = [
        {"blocks": depth + 1, "seconds": statistics.median(times), "of_plain": statistics.median(times) / plain}
        for depth, times in sorted(rungs.by(depth_of, WARMUP).items())
    ]
    row["memory"] = {"hidden_bytes": hidden, "samples_bytes": samples, "in_ram": rungs.stats["in_ram"]}
    if after.peak_bytes is not None:
        row["memory"] |= memory(after.peak_bytes, max(idle.peak_bytes, rungs.peak_bytes), hidden, samples)
    row["syncs"] = syncs(bench) if bench.device.type == "cuda" else None


def memory(plain: int, foresight: int, hidden: int, samples: int) -> dict:
    """Peaks in bytes, and what lies between them in hidden states of all streams, the samples taken off."""
    extra = (foresight - plain - samples) / hidden
    return {"plain_peak_bytes": plain, "foresight_peak_bytes": foresight, "extra_states": extra}


def syncs(bench: Bench) -> dict:
    """GPU syncs per evaluation: plain, and what Foresight and EasyCache add; places only where Foresight has more."""
    last = bench.blocks - 1
    plain = bench.sample(4, syncs=True).clock
    mine = bench.forced([-1, -1, -1, last, last, -1, last, last, -1], WARMUP, 3, syncs=True).clock
    easy = bench.sample(5, bench.easycache(), syncs=True).clock
    forecast = bench.forecast([True, True, True, False, True, False, True], syncs=True).clock
    usual = statistics.median(plain.syncs()[1:])
    share = {place: count / len(plain.syncs()) for place, count in plain.sync_places().items()}
    added = Counter(
        {
            place: round(count / len(mine.syncs()) - share.get(place, 0.0), 2)
            for place, count in mine.sync_places().items()
        }
    )
    return {
        "plain": usual,
        "foresight": statistics.median(mine.syncs()[WARMUP:]) - usual,
        "easycache": statistics.median(easy.syncs()[2:]) - usual,
        "forecast": max(forecast.syncs()[3:]) - usual,
        "places": {place: count for place, count in added.most_common() if count > 0},
    }


def whole_runs(bench: Bench, row: dict, shares: Sequence[float], deadline: float) -> None:
    """A plain run and the forced schedules, as many as end before `deadline` (of time.monotonic), into row["runs"].

    Args:
        shares: The recorded map: share of the blocks that each evaluation reused. Its length is the number of steps.
    """
    steps, runs = len(shares), row.setdefault("runs", {})
    warmup = ForesightConfig(method="paper").warmup_of(steps)
    schedules = {
        "n1r2": (2, all_blocks(steps, warmup, 2, bench.blocks)),
        "recorded": (2, scaled(shares, bench.blocks)),
        "n2r3": (3, all_blocks(steps, warmup, 3, bench.blocks)),
    }
    if not _fits(row, runs, "plain", steps, deadline):
        return
    bench.sample(2)
    plain = bench.sample(steps)
    runs["plain"] = {"seconds": plain.wall, "peak_bytes": plain.peak_bytes}
    for name in SCHEDULES:
        interval, depths = schedules[name]
        if not _fits(row, runs, name, sum(1 - (depth + 1) / bench.blocks for depth in depths), deadline):
            continue
        runs[name] = against(plain, bench.forced(depths, warmup, interval))
    for name, interval in FORECASTS.items():
        computed = every(steps, interval)
        if not _fits(row, runs, name, sum(computed), deadline):
            continue
        runs[name] = against(plain, bench.forecast(computed))


def against(plain: Sampled, run: Sampled) -> dict:
    """A whole run beside the plain one."""
    speedup, ideal = plain.wall / run.wall, run.stats["block_speedup"]
    return {
        **{"seconds": run.wall, "speedup": speedup, "block_speedup": ideal, "of_ideal": speedup / ideal},
        **{"peak_bytes": run.peak_bytes, "in_ram": run.stats["in_ram"]},
    }


def _fits(row: dict, runs: dict, name: str, evaluations: float, deadline: float) -> bool:
    seconds, left = evaluations * row["plain"]["seconds"], deadline - time.monotonic()
    if seconds <= left:
        return True
    runs[name] = {"skipped": f"{seconds:.0f} s, and {max(0.0, left):.0f} s were left"}
    return False


def attempt(model: real_models.RealModel, row: dict, device: torch.device, tiny: bool, action) -> None:
    """Build the model, do `action(bench)`, free everything; what does not work is noted in the row and is no error."""
    try:
        if device.type == "cuda":
            free = torch.cuda.mem_get_info(device)[0]
            if not tiny and model.weight_bytes > free:
                row["skipped"] = (
                    f"its weights take {model.weight_bytes / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free"
                )
                return
        action(Bench(model, device, tiny))
    except real_models.NotThere as error:
        row["skipped"] = str(error)
    except torch.OutOfMemoryError:
        row["skipped"] = f"out of GPU memory beside {model.weight_bytes / 2**30:.1f} GiB of weights"
    except Exception as error:  # the other models shall still be measured
        row["failed"] = f"{type(error).__name__}: {error}"
    finally:
        import comfy.model_management

        comfy.model_management.unload_all_models()
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()


def recorded_shares(steps: int) -> list[float]:
    """Share of the blocks that each evaluation of the bundled demo model reused, with default settings."""
    from .comfy import Demo

    demo = Demo()
    stats = demo.run("red ball moving right", 1, demo.config(method="paper"), steps).stats
    return [(depth_of(e) + 1) / len(e["computed"]) for e in stats["evaluations"]]

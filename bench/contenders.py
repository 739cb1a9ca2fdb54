"""The caches that are compared, as data: a record names one, its host, its sweep and how to apply it (`peers.py`)."""

from collections.abc import Callable
from dataclasses import dataclass

from . import peers


@dataclass(frozen=True)
class Contender:
    """One cache and its sweep.

    Attributes:
        host: "comfyui" or "diffusers".
        knob: What the sweep turns, for people.
        sweep: Settings, the keyword arguments of the cache's own configuration.
        recommended: Which of the sweep its authors give as default; None where they give none.
        few: Which of the sweep, by index, `--quick` and all sampler settings but the first take, to save time.
        calibrated: Whether it needs what `calibrate` measures.
    """

    name: str
    host: str
    knob: str
    sweep: tuple[dict, ...]
    apply: Callable
    recommended: dict | None = None
    few: tuple[int, ...] = ()
    calibrated: bool = False


# ---- the records


def _sweep(name: str, *values, **fixed) -> tuple[dict, ...]:
    return tuple({name: value, **fixed} for value in values)


def _foresight_grid(kind: str, intervals: tuple[int, ...]) -> tuple[dict, ...]:
    return tuple(
        {"method": "paper", "cache_kind": kind, "reuse_interval": interval, "threshold": gamma}
        for interval in intervals
        for gamma in (0.25, 0.5, 1.0, 2.0)
    )


# the authors' F8 leaves little of a network of 10 to 16 blocks to a cache
_DUAL_BLOCK = (
    {"Fn_compute_blocks": 8, "residual_diff_threshold": 0.08},
    *_sweep("residual_diff_threshold", 0.04, 0.08, 0.16, Fn_compute_blocks=1),
)
_LITE = {"use_lite_mode": True}
_PAB, _FASTER = "spatial_attention_block_skip_range", "unconditional_batch_skip_range"

CONTENDERS = (
    Contender("static reuse", "diffusers", "every", _sweep("every", 2, 3, 4), peers.static, few=(0, 2)),
    Contender(
        "Foresight forecast", "comfyui", "threshold", _sweep("threshold", 0.1, 0.25, 0.5, 1.0, 2.0, method="forecast"),
        peers.foresight, recommended={"threshold": 0.5, "method": "forecast"}, few=(1, 2, 3, 4),
    ),
    Contender(
        "Foresight paper", "comfyui", "R, gamma", _foresight_grid("output", (2, 3, 4)), peers.foresight,
        recommended={"method": "paper", "cache_kind": "output", "reuse_interval": 2, "threshold": 0.5},
        few=(1, 6, 7, 11),
    ),
    Contender(
        "Foresight paper, residual", "comfyui", "R, gamma", _foresight_grid("residual", (3,)), peers.foresight, few=(2,)
    ),
    Contender(
        "EasyCache", "comfyui", "reuse_threshold", _sweep("reuse_threshold", 0.01, 0.02, 0.05, 0.2),
        peers.core_node("EasyCacheNode"), recommended={"reuse_threshold": 0.2}, few=(0, 2, 3),
    ),
    Contender(
        "LazyCache", "comfyui", "reuse_threshold", _sweep("reuse_threshold", 0.05, 0.1, 0.2),
        peers.core_node("LazyCacheNode"), recommended={"reuse_threshold": 0.2}, few=(0, 2),
    ),
    Contender(
        "FirstBlockCache", "diffusers", "threshold", _sweep("threshold", 0.03, 0.05, 0.07, 0.1),
        peers.enable("FirstBlockCacheConfig"), recommended={"threshold": 0.05}, few=(0, 1),
    ),
    Contender(
        "MagCache", "diffusers", "threshold", _sweep("threshold", 0.01, 0.03, 0.06, 0.12), peers.mag_cache,
        recommended={"threshold": 0.06}, few=(0, 2), calibrated=True,
    ),
    Contender(
        "TaylorSeer", "diffusers", "cache_interval", _sweep("cache_interval", 3, 5), peers.taylorseer,
        recommended={"cache_interval": 5}, few=(1,),
    ),
    Contender(
        "TaylorSeer lite", "diffusers", "cache_interval", _sweep("cache_interval", 2, 3, 4, 5, **_LITE),
        peers.taylorseer, recommended={"cache_interval": 5, **_LITE}, few=(1, 3),
    ),
    Contender(
        "FasterCache", "diffusers", _FASTER,
        ({_FASTER: 5, "spatial_attention_timestep_skip_range": (-1, 300)}, {_FASTER: 5}),
        peers.attention_cache("FasterCacheConfig"), recommended={_FASTER: 5}, few=(1,),
    ),
    Contender(
        "PAB", "diffusers", _PAB,
        ({_PAB: 2, "spatial_attention_timestep_skip_range": (100, 400)}, {_PAB: 2}),
        peers.attention_cache("PyramidAttentionBroadcastConfig"), recommended={_PAB: 2}, few=(1,),
    ),
    Contender(
        "SeaCache", "diffusers", "threshold", _sweep("threshold", 0.15, 0.25, 0.5, 1.0), peers.sea_cache,
        recommended={"threshold": 0.25}, few=(1, 2),
    ),
    Contender(
        "DBCache", "diffusers", "residual_diff_threshold", _DUAL_BLOCK, peers.cache_dit("DBCacheConfig"),
        recommended=_DUAL_BLOCK[0], few=(0, 2, 3),
    ),
    Contender(
        "DBPrune", "diffusers", "residual_diff_threshold", _DUAL_BLOCK, peers.cache_dit("DBPruneConfig"),
        recommended=_DUAL_BLOCK[0], few=(0, 2),
    ),
    Contender(
        "DBCache+TaylorSeer", "diffusers", "residual_diff_threshold", _DUAL_BLOCK,
        peers.cache_dit("DBCacheConfig", taylor=True), recommended=_DUAL_BLOCK[0], few=(0, 2, 3),
    ),
)  # fmt: skip

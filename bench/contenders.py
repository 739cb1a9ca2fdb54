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
        few: Which of the sweep, by index, `--quick` takes.
        short: Settings that stages of at most `SHORT` steps take instead of the sweep, where its warmup leaves nothing
            to reuse there; the recommended one is taken as well.
        calibrated: Whether it needs what `calibrate` measures.
        file: The module in which it is applied.
    """

    name: str
    host: str
    knob: str
    sweep: tuple[dict, ...]
    apply: Callable
    recommended: dict | None = None
    few: tuple[int, ...] = ()
    short: tuple[dict, ...] = ()
    calibrated: bool = False
    file: str = "peers"

    @property
    def ours(self) -> bool:
        return self.name.startswith("Foresight")

    def settings(self, index: int) -> dict:
        """A point's settings, by its index in the sweep and then in the short ones."""
        return (*self.sweep, *self.short)[index]

    def points(self, short: bool, quick: bool) -> tuple[int, ...]:
        """The indices of the points to run."""
        if not short or not self.short:
            return self.few if quick else tuple(range(len(self.sweep)))
        own = tuple(range(len(self.sweep), len(self.sweep) + len(self.short)))
        return (self.sweep.index(self.recommended), *own) if self.recommended else own


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
    *_sweep("residual_diff_threshold", 0.04, 0.08, 0.16, 0.32, Fn_compute_blocks=1),
)
# its 8 steps of warmup are a whole short stage
_DUAL_BLOCK_SHORT = _sweep("residual_diff_threshold", 0.08, 0.16, 0.32, 0.64, Fn_compute_blocks=1, max_warmup_steps=2)
_LITE = {"use_lite_mode": True}
_EARLY = ({"cache_interval": 2, "disable_cache_before_step": 1}, {"cache_interval": 2, "disable_cache_before_step": 2},
          {"cache_interval": 3, "disable_cache_before_step": 2})  # fmt: skip
_PAB, _FASTER = "spatial_attention_block_skip_range", "unconditional_batch_skip_range"


def _dual_block(name: str, *how, **fixed) -> Contender:
    """cache-dit, with the sweep that its caches and calibrators share."""
    return Contender(
        name, "diffusers", "residual_diff_threshold", _DUAL_BLOCK, peers.cache_dit(*how, **fixed),
        recommended=_DUAL_BLOCK[0], few=(0, 2, 3), short=_DUAL_BLOCK_SHORT,
    )  # fmt: skip


CONTENDERS = (
    Contender("static reuse", "diffusers", "every", _sweep("every", 2, 3, 4), peers.static, few=(0, 1, 2)),
    Contender(
        "Foresight forecast", "comfyui", "threshold", _sweep("threshold", 0.1, 0.25, 0.5, 1.0, 2.0, method="forecast"),
        peers.foresight, recommended={"threshold": 0.5, "method": "forecast"}, few=(1, 2, 3, 4),
    ),
    Contender(
        "Foresight paper", "comfyui", "R, gamma",
        tuple(_foresight_grid("output", (2, 3, 4))[index] for index in (1, 2, 6, 7, 10, 11)), peers.foresight,
        recommended={"method": "paper", "cache_kind": "output", "reuse_interval": 2, "threshold": 0.5},
        few=(0, 2, 3, 5),
    ),
    Contender(
        "EasyCache", "comfyui", "reuse_threshold", _sweep("reuse_threshold", 0.01, 0.02, 0.05, 0.1, 0.2),
        peers.core_node("EasyCacheNode"), recommended={"reuse_threshold": 0.2}, few=(0, 2, 4),
    ),
    Contender(
        "LazyCache", "comfyui", "reuse_threshold", _sweep("reuse_threshold", 0.05, 0.1, 0.2),
        peers.core_node("LazyCacheNode"), recommended={"reuse_threshold": 0.2}, few=(0, 2),
    ),
    Contender(
        "FirstBlockCache", "diffusers", "threshold", _sweep("threshold", 0.03, 0.05, 0.07, 0.1, 0.16, 0.25),
        peers.enable("FirstBlockCacheConfig"), recommended={"threshold": 0.05}, few=(0, 1, 3),
    ),
    Contender(
        "MagCache", "diffusers", "threshold", _sweep("threshold", 0.01, 0.03, 0.06, 0.12, 0.24), peers.mag_cache,
        recommended={"threshold": 0.06}, few=(0, 2, 3), calibrated=True,
    ),
    Contender(
        "TaylorSeer", "diffusers", "cache_interval", _sweep("cache_interval", 2, 3, 5), peers.taylorseer,
        recommended={"cache_interval": 5}, few=(1, 2), short=_EARLY,
    ),
    Contender(
        "TaylorSeer lite", "diffusers", "cache_interval", _sweep("cache_interval", 2, 3, 4, 5, **_LITE),
        peers.taylorseer, recommended={"cache_interval": 5, **_LITE}, few=(0, 1, 3),
        short=tuple({**early, **_LITE} for early in _EARLY),
    ),
    Contender(
        "FasterCache", "diffusers", _FASTER,
        ({_FASTER: 5, "spatial_attention_timestep_skip_range": (-1, 300)}, {_FASTER: 5}),
        peers.attention_cache("FasterCacheConfig"), recommended={_FASTER: 5}, few=(0, 1),
    ),
    Contender(
        "PAB", "diffusers", _PAB,
        ({_PAB: 2, "spatial_attention_timestep_skip_range": (100, 400)}, {_PAB: 2}),
        peers.attention_cache("PyramidAttentionBroadcastConfig"), recommended={_PAB: 2}, few=(0, 1),
    ),
    Contender(
        "SeaCache", "diffusers", "threshold", _sweep("threshold", 0.1, 0.15, 0.25, 0.5, 1.0), peers.sea_cache,
        recommended={"threshold": 0.25}, few=(1, 2, 3),
    ),
    _dual_block("DBCache", "DBCacheConfig"),
    _dual_block("DBPrune", "DBPruneConfig"),
    _dual_block("DBCache+TaylorSeer", "DBCacheConfig", "TaylorSeerCalibratorConfig", taylorseer_order=1),
)  # fmt: skip

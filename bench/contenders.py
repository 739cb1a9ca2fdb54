"""The caches that are compared, as data: a record names one, its host, its sweep and how to apply it (`peers.py`)."""

from collections.abc import Callable
from dataclasses import dataclass

from . import fsampler, peers, spectrum


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
        own = tuple(range(len(self.sweep), len(self.sweep) + len(self.short)))[:: 2 if quick else 1]
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
    *_sweep("residual_diff_threshold", 0.04, 0.08, 0.16, Fn_compute_blocks=1),
)
# its 8 steps of warmup are a whole short stage
_DUAL_BLOCK_SHORT = _sweep("residual_diff_threshold", 0.08, 0.16, 0.32, Fn_compute_blocks=1, max_warmup_steps=2)
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


# degree 1: what a port for 20 steps does: half fit, half line, one forecast at a time, step 1 repeats step 0
_PORT = {"degree": 1, "blend": 0.5, "by_sigma": True, "kept": 8, "warmup": 1, "tail": 1, "res_tail": 3,
         "hold_first": True}  # fmt: skip
_SPECTRUM_1 = (
    *_sweep("limit", 1, 2, 3, None, **_PORT),
    *_sweep("limit", 1, 2, 3, None, second_pass=True, **_PORT),
    {**_PORT, "limit": 1, "warmup": 5, "hold_first": False},
)
# degree 4: the paper's (window 2, growing by 0.75, five steps of warmup); its authors later advised half of a line
_SPECTRUM_4 = (
    *_sweep("flex_window", 0.75, 0.0, 0.25, 3.0, degree=4),
    *_sweep("flex_window", 0.0, 0.75, degree=4, blend=0.5),
    {"flex_window": 0.75, "degree": 4, "blend": 0.5, "tail": 1},
)
_SPECTRUM_4_SHORT = (
    *_sweep("flex_window", 0.0, 0.75, degree=4, warmup=2),
    *_sweep("flex_window", 0.0, 0.75, degree=4, warmup=2, blend=0.5, tail=1),
)

CONTENDERS = (
    Contender("static reuse", "diffusers", "every", _sweep("every", 2, 3, 4), peers.static, few=(0, 1, 2)),
    Contender(
        "Foresight forecast", "comfyui", "threshold",
        _sweep("threshold", 0.05, 0.25, 0.3, 0.5, 1.0, 2.0, 4.0, 8.0, 32.0, method="forecast"),
        peers.foresight, recommended={"threshold": 0.5, "method": "forecast"}, few=(2, 3, 4, 5, 6),
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
    _dual_block("DBCache+FoCa", "DBCacheConfig", "FoCaCalibratorConfig"),
    _dual_block("DBCache+DMD", "DBCacheConfig", "DMDCalibratorConfig"),
    Contender(
        "Spectrum, degree 1", "diffusers", "limit", _SPECTRUM_1, spectrum.apply, recommended=_SPECTRUM_1[0],
        few=(0, 1, 4, 5, 6), file="spectrum",
    ),
    Contender(
        "Spectrum, degree 4", "diffusers", "flex_window", _SPECTRUM_4, spectrum.apply, recommended=_SPECTRUM_4[0],
        few=(0, 1, 3, 6), short=_SPECTRUM_4_SHORT, file="spectrum",
    ),
    Contender(
        "FSampler h2", "diffusers", "calls", _sweep("calls", 2, 3, 5), fsampler.apply, recommended={"calls": 2},
        few=(0, 1), short=_sweep("calls", 2, 3, first=2, last=1), file="fsampler",
    ),
    Contender(
        "FSampler adaptive", "diffusers", "anchor", _sweep("anchor", 4, 2, 3, 6), fsampler.apply,
        recommended={"anchor": 4}, few=(0, 1, 3), short=_sweep("anchor", 2, 4, first=2, last=1), file="fsampler",
    ),
)  # fmt: skip

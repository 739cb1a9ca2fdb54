"""The caches that are compared, as data: a record names one, its host, the settings of its sweep and how to apply one.

In ComfyUI `apply(demo, settings)` returns a model patcher; in diffusers `apply(denoiser, settings, calibration)`
changes the denoiser of one run and may return what undoes a change that outlives it. A cache that refuses raises.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass

import torch

from foresight.engine import METHODS

from .diffusers_host import Denoiser


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


# ---- ComfyUI


def _foresight(demo, settings: dict):
    own = dict(settings)
    return demo.apply(demo.model, METHODS[own.pop("method")](**own))


def _core_node(name: str):
    def apply(demo, settings: dict):
        node = getattr(importlib.import_module("comfy_extras.nodes_easycache"), name)
        defaults = {"reuse_threshold": 0.2, "start_percent": 0.15, "end_percent": 0.95, "verbose": False}
        return node.execute(demo.model, **{**defaults, **settings}).args[0]

    return apply


# ---- diffusers


def _enable(config_name: str, **fixed):
    """A cache of diffusers through `enable_cache`, as its documentation says."""

    def apply(denoiser: Denoiser, settings: dict, calibration=None) -> None:
        import diffusers.hooks

        denoiser.net.enable_cache(getattr(diffusers.hooks, config_name)(**fixed, **settings))

    return apply


def _mag_cache(denoiser: Denoiser, settings: dict, calibration: list[float]) -> None:
    length = {"num_inference_steps": denoiser.evaluations}
    _enable("MagCacheConfig", mag_ratios=calibration, **length)(denoiser, settings)


def _sea_cache(denoiser: Denoiser, settings: dict, calibration=None) -> None:
    def latents(module, args, kwargs) -> list[torch.Tensor]:  # (12, T, h, w) each, without the demo's coordinates
        x = kwargs["hidden_states"]
        return list((x[:, :12] if denoiser.family == "wan" else x.transpose(1, 2)).unbind())

    _enable("SeaCacheConfig", raw_vision_callback=latents)(denoiser, settings)


def _taylorseer(denoiser: Denoiser, settings: dict, calibration=None) -> None:
    # its default patterns match no module of these models: the attentions are called attn1 and attn2
    names = {"wan": r"blocks\.\d+\.(attn1|attn2|ffn)", "cogvideox": r"transformer_blocks\.\d+\.(attn1|ff)"}
    modules = {} if settings.get("use_lite_mode") else {"cache_identifiers": [names[denoiser.family]]}
    _enable("TaylorSeerCacheConfig", taylor_factors_dtype=torch.float32, **modules)(denoiser, settings)


def _attention_cache(config_name: str):
    """PAB and FasterCache: they know the timestep through a callback, and want cond and uncond in one call."""

    def apply(denoiser: Denoiser, settings: dict, calibration=None) -> None:
        denoiser.batched = True
        fixed = {"current_timestep_callback": lambda: denoiser.timestep}
        if config_name == "FasterCacheConfig":
            fixed["tensor_format"] = {"wan": "BCFHW", "cogvideox": "BFCHW"}[denoiser.family]
        _enable(config_name, **fixed)(denoiser, settings)

    return apply


def _cache_dit(config_name: str, taylor: bool = False):
    """cache-dit with a block adapter on the bare transformer; cond and uncond are told apart by turns."""

    def apply(denoiser: Denoiser, settings: dict, calibration=None):
        import cache_dit

        wan = denoiser.family == "wan"
        adapter = cache_dit.BlockAdapter(
            transformer=denoiser.net,
            blocks=denoiser.net.blocks if wan else denoiser.net.transformer_blocks,
            forward_pattern=cache_dit.ForwardPattern.Pattern_2 if wan else cache_dit.ForwardPattern.Pattern_0,
            has_separate_cfg=True,
        )
        config = getattr(cache_dit, config_name)(
            enable_separate_cfg=True, num_inference_steps=denoiser.evaluations, **settings
        )
        extra = {"calibrator_config": cache_dit.TaylorSeerCalibratorConfig(taylorseer_order=1)} if taylor else {}
        cache_dit.enable_cache(adapter, cache_config=config, **extra)
        return lambda: cache_dit.disable_cache(adapter)

    return apply


def _static(denoiser: Denoiser, settings: dict, calibration=None) -> None:
    """Every R-th evaluation is computed, those between repeat its velocity."""
    guided, kept, every = denoiser.guided, None, settings["every"]

    def repeat(x: torch.Tensor) -> torch.Tensor:
        nonlocal kept
        if denoiser.index % every == 0:
            kept = guided(x)
        return kept

    denoiser.guided = repeat


def calibrate(host, prompts, sampler: str, steps: int) -> list[float]:
    """MagCache's magnitude ratios, one per evaluation: its own calibration, mean over prompts, cond and uncond."""
    import diffusers.hooks

    runs = []

    def apply(denoiser: Denoiser):
        # one step more than there are: at the last one the hook would print the ratios and forget them
        config = diffusers.hooks.MagCacheConfig(calibrate=True, num_inference_steps=denoiser.evaluations + 1)
        denoiser.net.enable_cache(config)
        last = getattr(denoiser.net, "blocks", None) or denoiser.net.transformer_blocks
        states = last[-1]._diffusers_hook.get_hook("mag_cache_block_hook").state_manager._state_cache
        return lambda: runs.extend(state.calibration_ratios for state in states.values())

    for prompt, seed in prompts:
        host.measure(apply, prompt, seed, sampler, steps)
    return [sum(ratios) / len(ratios) for ratios in zip(*runs, strict=True)]


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
    Contender("static reuse", "diffusers", "every", _sweep("every", 2, 3, 4), _static, few=(0, 2)),
    Contender(
        "Foresight forecast", "comfyui", "threshold", _sweep("threshold", 0.1, 0.25, 0.5, 1.0, 2.0, method="forecast"),
        _foresight, recommended={"threshold": 0.5, "method": "forecast"}, few=(1, 2, 3, 4),
    ),
    Contender(
        "Foresight paper", "comfyui", "R, gamma", _foresight_grid("output", (2, 3, 4)), _foresight,
        recommended={"method": "paper", "cache_kind": "output", "reuse_interval": 2, "threshold": 0.5},
        few=(1, 6, 7, 11),
    ),
    Contender(
        "Foresight paper, residual", "comfyui", "R, gamma", _foresight_grid("residual", (3,)), _foresight, few=(2,)
    ),
    Contender(
        "EasyCache", "comfyui", "reuse_threshold", _sweep("reuse_threshold", 0.01, 0.02, 0.05, 0.2),
        _core_node("EasyCacheNode"), recommended={"reuse_threshold": 0.2}, few=(0, 2, 3),
    ),
    Contender(
        "LazyCache", "comfyui", "reuse_threshold", _sweep("reuse_threshold", 0.05, 0.1, 0.2),
        _core_node("LazyCacheNode"), recommended={"reuse_threshold": 0.2}, few=(0, 2),
    ),
    Contender(
        "FirstBlockCache", "diffusers", "threshold", _sweep("threshold", 0.03, 0.05, 0.07, 0.1),
        _enable("FirstBlockCacheConfig"), recommended={"threshold": 0.05}, few=(0, 1),
    ),
    Contender(
        "MagCache", "diffusers", "threshold", _sweep("threshold", 0.01, 0.03, 0.06, 0.12), _mag_cache,
        recommended={"threshold": 0.06}, few=(0, 2), calibrated=True,
    ),
    Contender(
        "TaylorSeer", "diffusers", "cache_interval", _sweep("cache_interval", 3, 5), _taylorseer,
        recommended={"cache_interval": 5}, few=(1,),
    ),
    Contender(
        "TaylorSeer lite", "diffusers", "cache_interval", _sweep("cache_interval", 2, 3, 4, 5, **_LITE), _taylorseer,
        recommended={"cache_interval": 5, **_LITE}, few=(1, 3),
    ),
    Contender(
        "FasterCache", "diffusers", _FASTER,
        ({_FASTER: 5, "spatial_attention_timestep_skip_range": (-1, 300)}, {_FASTER: 5}),
        _attention_cache("FasterCacheConfig"), recommended={_FASTER: 5}, few=(1,),
    ),
    Contender(
        "PAB", "diffusers", _PAB,
        ({_PAB: 2, "spatial_attention_timestep_skip_range": (100, 400)}, {_PAB: 2}),
        _attention_cache("PyramidAttentionBroadcastConfig"), recommended={_PAB: 2}, few=(1,),
    ),
    Contender(
        "SeaCache", "diffusers", "threshold", _sweep("threshold", 0.15, 0.25, 0.5, 1.0), _sea_cache,
        recommended={"threshold": 0.25}, few=(1, 2),
    ),
    Contender(
        "DBCache", "diffusers", "residual_diff_threshold", _DUAL_BLOCK, _cache_dit("DBCacheConfig"),
        recommended=_DUAL_BLOCK[0], few=(0, 2, 3),
    ),
    Contender(
        "DBPrune", "diffusers", "residual_diff_threshold", _DUAL_BLOCK, _cache_dit("DBPruneConfig"),
        recommended=_DUAL_BLOCK[0], few=(0, 2),
    ),
    Contender(
        "DBCache+TaylorSeer", "diffusers", "residual_diff_threshold", _DUAL_BLOCK,
        _cache_dit("DBCacheConfig", taylor=True), recommended=_DUAL_BLOCK[0], few=(0, 2, 3),
    ),
)  # fmt: skip

"""How each cache that is compared is switched on, as its own documentation says; `contenders.py` has the settings.

In ComfyUI `apply(demo, patcher, settings)` returns a patcher; in diffusers `apply(denoiser, settings, calibration)`
changes the denoiser of one stage and may return what undoes a change that outlives it. A cache that refuses raises.
"""

import importlib

import torch

from foresight.engine import METHODS

from .diffusers_host import Denoiser
from .workloads import Workload

# ---- ComfyUI


def foresight(demo, patcher, settings: dict):
    own = dict(settings)
    return demo.apply(patcher, METHODS[own.pop("method")](**own))


def core_node(name: str):
    def apply(demo, patcher, settings: dict):
        node = getattr(importlib.import_module("comfy_extras.nodes_easycache"), name)
        defaults = {"reuse_threshold": 0.2, "start_percent": 0.15, "end_percent": 0.95, "verbose": False}
        return node.execute(patcher, **{**defaults, **settings}).args[0]

    return apply


# ---- diffusers


def enable(config_name: str, **fixed):
    """A cache of diffusers through `enable_cache`, as its documentation says."""

    def apply(denoiser: Denoiser, settings: dict, calibration=None) -> None:
        import diffusers.hooks

        denoiser.net.enable_cache(getattr(diffusers.hooks, config_name)(**fixed, **settings))

    return apply


def mag_cache(denoiser: Denoiser, settings: dict, calibration: list[list[float]]) -> None:
    length = {"num_inference_steps": denoiser.evaluations}
    enable("MagCacheConfig", mag_ratios=calibration[denoiser.stage], **length)(denoiser, settings)


def sea_cache(denoiser: Denoiser, settings: dict, calibration=None) -> None:
    def latents(module, args, kwargs) -> list[torch.Tensor]:  # (12, T, h, w) each, without the demo's coordinates
        x = kwargs["hidden_states"]
        return list((x[:, :12] if denoiser.family == "wan" else x.transpose(1, 2)).unbind())

    enable("SeaCacheConfig", raw_vision_callback=latents)(denoiser, settings)


def taylorseer(denoiser: Denoiser, settings: dict, calibration=None) -> None:
    # its default patterns match no module of these models: the attentions are called attn1 and attn2
    names = {"wan": r"blocks\.\d+\.(attn1|attn2|ffn)", "cogvideox": r"transformer_blocks\.\d+\.(attn1|ff)"}
    modules = {} if settings.get("use_lite_mode") else {"cache_identifiers": [names[denoiser.family]]}
    enable("TaylorSeerCacheConfig", taylor_factors_dtype=torch.float32, **modules)(denoiser, settings)


def attention_cache(config_name: str):
    """PAB and FasterCache: they know the timestep through a callback, and want cond and uncond in one call."""

    def apply(denoiser: Denoiser, settings: dict, calibration=None) -> None:
        denoiser.batched = True
        fixed = {"current_timestep_callback": lambda: denoiser.timestep}
        if config_name == "FasterCacheConfig":
            fixed["tensor_format"] = {"wan": "BCFHW", "cogvideox": "BFCHW"}[denoiser.family]
        enable(config_name, **fixed)(denoiser, settings)

    return apply


def cache_dit(config_name: str, calibrator: str | None = None, **fixed):
    """cache-dit with a block adapter on the bare transformer; cond and uncond are told apart by turns.

    Args:
        calibrator: Name of its calibrator's config, with `fixed` as its fields.
    """

    def apply(denoiser: Denoiser, settings: dict, calibration=None):
        import cache_dit

        wan = denoiser.family == "wan"
        adapter = cache_dit.BlockAdapter(
            transformer=denoiser.net,
            blocks=denoiser.net.blocks if wan else denoiser.net.transformer_blocks,
            forward_pattern=cache_dit.ForwardPattern.Pattern_2 if wan else cache_dit.ForwardPattern.Pattern_0,
            has_separate_cfg=denoiser.cfg != 1,
        )
        config = getattr(cache_dit, config_name)(
            enable_separate_cfg=denoiser.cfg != 1, num_inference_steps=denoiser.evaluations, **settings
        )
        extra = {"calibrator_config": getattr(cache_dit, calibrator)(**fixed)} if calibrator else {}
        cache_dit.enable_cache(adapter, cache_config=config, **extra)
        return lambda: cache_dit.disable_cache(adapter)

    return apply


def static(denoiser: Denoiser, settings: dict, calibration=None) -> None:
    """Every R-th evaluation is computed, those between repeat its velocity."""
    guided, kept, every = denoiser.guided, None, settings["every"]

    def repeat(x: torch.Tensor) -> torch.Tensor:
        nonlocal kept
        if denoiser.index % every == 0:
            kept = guided(x)
        return kept

    denoiser.guided = repeat


def calibrate(host, prompts, workload: Workload) -> list[list[float]]:
    """MagCache's magnitude ratios, per stage one per evaluation: its own calibration, mean over prompts and conds."""
    import diffusers.hooks

    runs: list[list] = [[] for _ in workload.stages]

    def apply(denoiser: Denoiser):
        # one step more than there are: at the last one the hook would print the ratios and forget them
        config = diffusers.hooks.MagCacheConfig(calibrate=True, num_inference_steps=denoiser.evaluations + 1)
        denoiser.net.enable_cache(config)
        last = getattr(denoiser.net, "blocks", None) or denoiser.net.transformer_blocks
        states = last[-1]._diffusers_hook.get_hook("mag_cache_block_hook").state_manager._state_cache
        return lambda: runs[denoiser.stage].extend(state.calibration_ratios for state in states.values())

    for prompt, seed in prompts:
        host.sample(apply, prompt, seed, workload)
    return [[sum(ratios) / len(ratios) for ratios in zip(*stage, strict=True)] for stage in runs]

"""The conds of a run: which stream a row of a call belongs to, and which conds are active at a noise level."""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

import comfy.samplers
import torch
from comfy.patcher_extension import WrappersMP, get_all_wrappers

from .levels import fp32

_AROUND = WrappersMP.PREDICT_NOISE, WrappersMP.CALC_COND_BATCH


class StreamKeys:
    """Names the streams of an evaluation, in the order in which its calls come."""

    def __init__(self):
        self._trajectory: tuple = ()
        self._pass = -1  # CALC_COND_BATCH ordinal within the evaluation
        self._seen: Counter = Counter()  # what else makes a key, within the pass

    def begin_evaluation(self, trajectory: tuple) -> None:
        """The next evaluation of a trajectory begins."""
        self._trajectory, self._pass = trajectory, -1

    def begin_pass(self) -> None:
        """The next pass of an evaluation begins; extra passes repeat the conds."""
        self._pass += 1
        self._seen.clear()

    def of_call(self, model: torch.nn.Module, options: dict, device: torch.device) -> list[tuple]:
        """One key per cond of a call.

        A uuid alone repeats across cond and uncond, windows, extra passes and models.
        """
        window = options.get("context_window")
        frames = tuple(window.index_list) if window is not None else None
        keys = []
        for cond in zip(options["cond_or_uncond"], options["uuids"], strict=True):
            key = (id(model), device, self._trajectory, self._pass, frames, *cond)
            keys.append((*key, self._seen[key]))
            self._seen[key] += 1
        return keys


def active_conds(conds: Mapping[str, list[dict]], sigma: float) -> tuple:
    """Which conds are active at this sigma, which of their ControlNets, and how strong their hooks are.

    Bounds are compared as core does it with levels in fp32. Where a bound lies on a step, as percents often do, the
    level would be on either side of it in double. What has keyframes that last for several evaluations counts as
    changing all the time: ComfyUI would count those twice that are done again when the sampler is started again.
    """
    found = []
    for name, entries in conds.items():
        for cond in entries or ():
            strengths = [sigma if _lasts(group.keyframes) else group.strength for group in _keyframes(cond)]
            controls = _controls(cond.get("control"), sigma)
            found.append((name, cond.get("uuid"), _is_active(cond, sigma), *controls, *strengths))
    return tuple(found)


def _controls(control: object, sigma: float) -> Iterator[bool | float]:
    """Of a ControlNet and those before it: whether it is active, and at which of its keyframes it is.

    Keyframes of strength are Advanced-ControlNet's, which turns their percents into noise levels before the run.
    """
    while control is not None:
        start, end = getattr(control, "timestep_range", None) or (math.inf, -math.inf)
        yield fp32(end) <= sigma <= fp32(start)
        group = getattr(control, "timestep_keyframes", None)
        keyframes = getattr(group, "keyframes", group)
        keyframes = keyframes if isinstance(keyframes, (list, tuple)) else ()
        begun = sum(sigma <= fp32(getattr(keyframe, "start_t", math.inf)) for keyframe in keyframes)
        yield sigma if _lasts(keyframes) else begun
        control = getattr(control, "previous_controlnet", None)


def follow_keyframes(
    conds: Mapping[str, list[dict]], sigma: float, guider: object, timestep: torch.Tensor, model_options: dict
) -> None:
    """Bring the keyframes of hooks (a LoRA for some conds) to this evaluation, as core does in one that it computes.

    An evaluation that is left out counts too, because keyframes are counted in evaluations.
    """
    patcher = getattr(getattr(guider, "inner_model", None), "current_patcher", None)
    for cond in (cond for entries in conds.values() for cond in entries or ()):
        if patcher is not None and _keyframes(cond) and "default" not in cond and _is_active(cond, sigma):
            patcher.prepare_hook_patches_current_keyframe(timestep, cond["hooks"], model_options)


def _is_active(cond: dict, sigma: float) -> bool:
    return fp32(cond.get("timestep_end", -math.inf)) <= sigma <= fp32(cond.get("timestep_start", math.inf))


def _keyframes(cond: dict) -> list:
    """ComfyUI's groups of keyframes by which a cond's hooks change in mid-run."""
    groups = [getattr(hook, "hook_keyframe", None) for hook in getattr(cond.get("hooks"), "hooks", ())]
    return [group for group in groups if len(getattr(group, "keyframes", ())) > 1]


def _lasts(keyframes: Iterable) -> bool:
    return any(getattr(keyframe, "guarantee_steps", 1) > 1 for keyframe in keyframes)


def is_guided(guider: comfy.samplers.CFGGuider) -> bool:
    """Whether the output may be made of several conds: it is not known for sure that the guider gives one as it is."""
    core, options = comfy.samplers.CFGGuider, guider.model_options
    methods = ("predict_noise", "outer_predict_noise", "__call__")
    if not all(getattr(getattr(guider, name), "__func__", None) is getattr(core, name) for name in methods):
        return True  # another pack's, or one that guides by several numbers
    around = [wrapper for kind in _AROUND for wrapper in get_all_wrappers(kind, options, is_model_options=True)]
    changed = around or any(name.startswith("sampler_") for name in options)  # CFG Override, functions around CFG
    return bool(changed) or not math.isclose(guider.cfg, 1.0)


def transformer_options(args: tuple, kwargs: dict) -> dict | None:
    """The transformer options among a diffusion model's arguments; their position differs between models."""
    for value in (*reversed(args), kwargs.get("transformer_options")):
        if isinstance(value, dict) and "cond_or_uncond" in value and "uuids" in value:
            return value
    return None


def trajectory_of(model_options: dict) -> tuple:
    """What a sampler says by words about an evaluation, such as which of two latents it is for (FlowEdit).

    What numbers say there, `changes.Numbers` finds out.
    """
    options = model_options.get("transformer_options", {})
    return tuple(sorted((key, value) for key, value in options.items() if isinstance(value, (str, bool))))

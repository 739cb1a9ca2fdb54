"""The conds of a run: which stream a row of a call belongs to, and which conds are active at a noise level."""

import math
from collections import Counter

import comfy.samplers
import torch
from comfy.patcher_extension import WrappersMP, get_all_wrappers

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


def active_conds(conds: dict[str, list[dict]], sigma: float) -> tuple:
    """Which conds, and which of their ControlNets, are active at this sigma.

    A hook (a LoRA for some conds) whose strength has keyframes counts as changing all the time.
    """
    found = []
    for name, entries in conds.items():
        for cond in entries or ():
            inside = cond.get("timestep_end", -math.inf) <= sigma <= cond.get("timestep_start", math.inf)
            control, controls = cond.get("control"), []
            while control is not None:
                start, end = getattr(control, "timestep_range", None) or (math.inf, -math.inf)
                controls.append(end <= sigma <= start)
                control = getattr(control, "previous_controlnet", None)
            hooks = getattr(cond.get("hooks"), "hooks", ())
            keyed = any(len(getattr(getattr(hook, "hook_keyframe", None), "keyframes", ())) > 1 for hook in hooks)
            found.append((name, cond.get("uuid"), inside, *controls, sigma if keyed else None))
    return tuple(found)


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

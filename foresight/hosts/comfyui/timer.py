"""Measured seconds of a model's sampler runs in ComfyUI, with or without Foresight on it."""

import time

import comfy.model_management
import comfy.patcher_extension

from . import live

WrappersMP = comfy.patcher_extension.WrappersMP
KEY = "foresight.timer"


def apply_timer(model_patcher):
    """A clone of `model_patcher` whose sampler runs are timed, see `seconds_on`; a timer applied before is replaced."""
    patched = model_patcher.clone()
    patched.remove_wrappers_with_key(WrappersMP.OUTER_SAMPLE, KEY)
    patched.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, _Timer())
    return patched


def seconds_on(model_patcher, samplers=None) -> list[float]:
    """Seconds of the newest runs of a timed model, one per run; empty where it never ran.

    The time from the first evaluation of the model to the end of sampling. The first evaluation warms the device up
    (kernels, memory), which would be charged to the branch that runs first, so it counts as long as the second.

    Args:
        samplers: Ids of the nodes that count; None for all.

    Raises:
        ValueError: the model has no timer on it.
    """
    timers = model_patcher.wrappers.get(WrappersMP.OUTER_SAMPLE, {}).get(KEY)
    if not timers:
        raise ValueError("this model is not timed: put Foresight Timer on its line, before the sampler")
    newest = timers[-1].newest
    return [s for sampler, (_, runs) in newest.items() if samplers is None or sampler in samplers for s in runs]


class _Timer:
    """The OUTER_SAMPLE wrapper; keeps the seconds of each sampler's newest prompt."""

    def __init__(self):
        self.newest: dict[str | None, tuple[str | None, list[float]]] = {}

    def __call__(self, executor, *args, **kwargs):
        guider, marks = executor.class_obj, []

        def predict_noise(executor, *args, **kwargs):
            if len(marks) < 3:
                marks.append(_now())
            return executor(*args, **kwargs)

        found = guider.model_options
        guider.model_options = comfy.model_patcher.create_model_options_clone(found)
        comfy.patcher_extension.add_wrapper_with_key(
            WrappersMP.PREDICT_NOISE, KEY, predict_noise, guider.model_options, is_model_options=True
        )
        try:
            samples = executor(*args, **kwargs)
        finally:
            guider.model_options = found
        if marks:
            self._add(sampling_seconds([*marks, _now()]))
        return samples

    def _add(self, seconds: float) -> None:
        running = live.executing()
        sampler, prompt = (running.node_id, running.prompt_id) if running else (None, None)
        known, runs = self.newest.get(sampler, (prompt, []))
        self.newest[sampler] = (prompt, [*runs, seconds] if known == prompt else [seconds])


def sampling_seconds(marks: list[float]) -> float:
    """Seconds from the beginnings of the first three evaluations, as far as there are any, and the end of sampling."""
    if len(marks) <= 2:
        return marks[-1] - marks[0]
    return marks[-1] - marks[1] + (marks[2] - marks[1])


def _now() -> float:
    comfy.model_management.synchronize()
    return time.perf_counter()

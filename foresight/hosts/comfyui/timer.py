"""Measured seconds and steps of a model's sampler runs in ComfyUI, with or without Foresight on it."""

import time

import comfy.model_management
import comfy.patcher_extension

from .prompts import Newest, Present, Running, executing

WrappersMP = comfy.patcher_extension.WrappersMP
KEY = "foresight.timer"


def apply_timer(model_patcher, node_id: str | None = None):
    """A clone of `model_patcher` whose sampler runs are timed, see `seconds_on`; a timer applied before is replaced.

    Args:
        node_id: Of the node that applies it; None in a script.
    """
    patched = model_patcher.clone()
    patched.remove_wrappers_with_key(WrappersMP.OUTER_SAMPLE, KEY)
    patched.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, _Timer(node_id))
    return patched


def seconds_on(model_patcher, present: Present | None = None) -> list[tuple[Running, float]]:
    """Who ran and the seconds, of the newest runs of a timed model, oldest first; empty where it never ran.

    The time from the first evaluation of the model to the end of sampling. The first evaluation warms the device up
    (kernels, memory), which would be charged to the branch that runs first, so it counts as long as the second.

    Args:
        present: Leaves out what does not belong to its prompt.

    Raises:
        ValueError: the model has no timer on it.
    """
    return [(sampler, seconds) for sampler, (seconds, _) in _newest(model_patcher, present)]


def steps_on(model_patcher, present: Present | None = None) -> list[int]:
    """The steps of the same runs, as the sampler's noise levels have them.

    Raises:
        ValueError: the model has no timer on it.
    """
    return [steps for _, (_, steps) in _newest(model_patcher, present)]


def _newest(model_patcher, present: Present | None) -> list[tuple[Running, tuple[float, int]]]:
    timers = model_patcher.wrappers.get(WrappersMP.OUTER_SAMPLE, {}).get(KEY)
    if not timers:
        raise ValueError("this model is not timed: put Foresight Timer on its line, before the sampler")
    return timers[-1].newest.of(present or Present())


class _Timer:
    """The OUTER_SAMPLE wrapper."""

    def __init__(self, node_id: str | None):
        self.newest: Newest[tuple[float, int]] = Newest(node_id)  # seconds, steps

    def __call__(self, executor, noise, latent_image, sampler, sigmas, *args, **kwargs):
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
            samples = executor(noise, latent_image, sampler, sigmas, *args, **kwargs)
        finally:
            guider.model_options = found
        if marks:
            self.newest.add(executing(), (sampling_seconds([*marks, _now()]), len(sigmas) - 1))
        return samples


def sampling_seconds(marks: list[float]) -> float:
    """Seconds from the beginnings of the first three evaluations, as far as there are any, and the end of sampling."""
    if len(marks) <= 2:
        return marks[-1] - marks[0]
    return marks[-1] - marks[1] + (marks[2] - marks[1])


def _now() -> float:
    comfy.model_management.synchronize()
    return time.perf_counter()

"""Measured seconds and steps of a model's sampler runs in ComfyUI, with or without Foresight on it."""

import threading
import time

import comfy.model_management
import comfy.patcher_extension

from .prompts import Newest, Present, Running, executing
from .wrappers import Wrapper

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
    (kernels, memory), which would be charged to the branch that runs first, so it counts as long as the second that
    is computed.

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


def share_a_timer(one, other) -> bool:
    """Whether two models were timed before their lines parted: each one's seconds are then those of both."""
    timer = _timer_of(one)
    return timer is not None and timer is _timer_of(other)


def _timer_of(model_patcher) -> "_Timer | None":
    timers = model_patcher.wrappers.get(WrappersMP.OUTER_SAMPLE, {}).get(KEY)
    return timers[-1] if timers else None


def _newest(model_patcher, present: Present | None) -> list[tuple[Running, tuple[float, int]]]:
    timer = _timer_of(model_patcher)
    if timer is None:
        raise ValueError("this model is not timed: put Foresight Timer on its line, before the sampler")
    return timer.newest.of(present or Present())


class _Timer(Wrapper):
    """The OUTER_SAMPLE wrapper."""

    def __init__(self, node_id: str | None):
        self.newest: Newest[tuple[float, int]] = Newest(node_id)  # seconds, steps

    def __call__(self, executor, noise, latent_image, sampler, sigmas, *args, **kwargs):
        guider, found, marks = executor.class_obj, executor.class_obj.model_options, _Marks()
        guider.model_options = marks.installed(found)
        try:
            samples = executor(noise, latent_image, sampler, sigmas, *args, **kwargs)
        finally:
            guider.model_options = found
        if marks.times:
            self.newest.add(executing(), (sampling_seconds([*marks.times, _now()]), len(sigmas) - 1))
        return samples


class _Marks(Wrapper):
    """When the first three evaluations that call the model began; one that is left out does not, in any order."""

    def __init__(self):
        self.times: list[float] = []
        self._began = False
        self._lock = threading.Lock()

    def installed(self, model_options: dict) -> dict:
        """A clone of a guider's model options that notes them."""
        options = comfy.model_patcher.create_model_options_clone(model_options)
        wrappers = (WrappersMP.PREDICT_NOISE, self._predict_noise), (WrappersMP.APPLY_MODEL, self._apply_model)
        for kind, wrapper in wrappers:
            comfy.patcher_extension.add_wrapper_with_key(kind, KEY, wrapper, options, is_model_options=True)
        return options

    def _predict_noise(self, executor, *args, **kwargs):
        self._began = True
        return executor(*args, **kwargs)

    def _apply_model(self, executor, *args, **kwargs):
        with self._lock:  # several GPUs have a thread each
            if self._began and len(self.times) < 3:
                self.times.append(_now())
            self._began = False
        return executor(*args, **kwargs)


def sampling_seconds(marks: list[float]) -> float:
    """Seconds by when the first three computed evaluations began, as far as there are any, and when sampling ended."""
    if len(marks) <= 2:
        return marks[-1] - marks[0]
    return marks[-1] - marks[1] + (marks[2] - marks[1])


def _now() -> float:
    comfy.model_management.synchronize()
    return time.perf_counter()

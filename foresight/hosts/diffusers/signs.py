"""What says, without being asked, that a call is of another run than the call before."""

from collections.abc import Callable

import torch

from .levels import is_of_a_list


class Signs:
    """What the calls of a run have said; one that an error ended between two of them is not over for a model.

    Where a pipeline tells its steps, the step and the context of a call are enough. Others hand over a number of the
    list of timesteps that a scheduler makes anew for every run.
    """

    def __init__(self):
        self._told: tuple[int | None, int] = None, -1  # steps of the run and the newest one, as the pipeline says it
        self._asked: set[str | None] = set()  # the contexts of that one
        self._time: torch.Tensor | None = None  # the newest timestep, if it is one of a list, which it keeps alive
        self._listed = False  # two timesteps were of the same list
        self._copied = False  # two were not: each call has a list of its own, which says nothing

    def of_another_run(self, context: object | None, timestep: object, near: Callable[[], bool]) -> bool | None:
        """Whether a call is of another run than the last one; None where nothing says it.

        Args:
            context: diffusers' cache context of the call, None where there is none.
            timestep: Argument that says the noise level.
            near: Whether its latents could be those after the last evaluation; asking reads the device.
        """
        (steps, step), (steps_before, before) = _says(context), self._told
        name = getattr(context, "name", None)
        again = step == before >= 0 and name in self._asked
        other_pipeline = bool(self._asked) and (name is None) != (None in self._asked)
        if steps != steps_before or step < before or again or other_pipeline:
            return True
        if step >= 0:
            return False
        if self._time is None or self._copied or not is_of_a_list(timestep):
            return None
        if _shares(timestep, self._time):
            return False
        goes_on = timestep.storage_offset() == self._time.storage_offset() + 1
        return self._listed or (None if goes_on else not near())

    def note(self, context: object | None, timestep: object, begins: bool) -> None:
        """A call of this run; whether an evaluation begins with it."""
        if begins:
            self._asked, self._told = set(), _says(context)
        self._asked.add(getattr(context, "name", None))
        before, self._time = self._time, timestep if is_of_a_list(timestep) else None
        if before is not None and self._time is not None and before.data_ptr() != self._time.data_ptr():
            self._listed = _shares(before, self._time)
            self._copied |= not self._listed


def _says(context: object | None) -> tuple[int | None, int]:
    """Steps of the run and the present one."""
    step = getattr(context, "step_index", None)
    return getattr(context, "num_inference_steps", None), -1 if step is None else step


def _shares(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors lie in the same memory."""
    return a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()

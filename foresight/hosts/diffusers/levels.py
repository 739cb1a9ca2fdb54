"""All noise levels of a run before its first step: as its pipeline's scheduler has them, or as a call shows them."""

from collections.abc import Callable, Sequence

import torch

from ...engine.agreement import Worst

LEAST, MOST = 3, 2000  # entries of a list; the times of a batch or of cond and uncond are none
ROUNDED = 2.0**-7  # of a level, which a pipeline may round to bfloat16; and a thousandth of all, to a whole number


class Scheduled:
    """The levels of the run under way, as the scheduler has them from which its pipeline takes what it gives the model.

    That may be a rounded level (FLUX's in bfloat16), one of several that are rounded to the same, or a share of the
    scheduler's. A scheduler whose present level is not that of the call is that of another pipeline, and says nothing.

    Args:
        scheduler: Gives the pipeline's scheduler; None where nobody has told which pipeline it is.
    """

    def __init__(self, scheduler: Callable[[], object | None]):
        self._scheduler = scheduler
        self._timesteps: torch.Tensor | None = None  # a scheduler makes them anew for each run of a pipeline
        self._ended: torch.Tensor | None = None  # those of the last run
        self._entries: list[float] = []  # one for each evaluation of the model, in the units of the calls

    def begin(self, level: float | None, flow: bool, worst: Worst | None = None) -> tuple[list[float], int, int | None]:
        """A run begins: its levels from here on, its place in the list, and the steps of that; [], 0, None if unknown.

        The steps are None where a scheduler has levels between those of its steps, too (KDPM2).

        Args:
            level: As the model gets it.
            flow: It is a share of noise, or that times 1000, which a flow model's scheduler calls sigma.
            worst: Of a model that is spread over processes, of which one may have only tokens that stay as they are.
        """
        scheduler = self._scheduler()
        if worst is not None and scheduler is not None and level is not None:
            level = float(worst(torch.tensor([level]))[0])
        whole = scale_of(level)
        self._timesteps, self._entries = getattr(scheduler, "timesteps", None), []
        count = getattr(scheduler, "num_inference_steps", None)  # None: it has all that the model was trained for
        ended = self._timesteps is self._ended and not hasattr(scheduler, "step_index")  # it is another pipeline's run
        times = _numbers(self._timesteps) if count is not None and not ended else []
        sigmas = _numbers(getattr(scheduler, "sigmas", None))[: len(times)] if flow else []
        falling = [[sigma * whole for sigma in sigmas], times, [time / 1000 for time in times]]
        rising = [[whole - entry for entry in entries] for entries in falling] if flow else []  # what is no noise
        for entries in (*falling, *rising):
            steps = _steps_of(entries)
            levels = [entries[k] for k in steps]
            index = self._index(level, entries) if LEAST <= len(levels) <= MOST and _fall(levels) else None
            if index is not None:
                self._entries, place = entries, sum(k <= index for k in steps) - 1
                return levels[place:], place, len(levels) if len(levels) == count else None
        return [], 0, None

    def end(self) -> None:
        """The run is over."""
        self._ended = self._timesteps if self._entries else self._ended
        self._timesteps, self._entries = None, []

    def exact(self, level: float | None) -> float | None:
        """The scheduler's level for the one that the model gets, or this where it is another's."""
        index = self._index(level, self._entries)
        return level if index is None else self._entries[index]

    @property
    def is_over(self) -> bool:
        """Whether the scheduler has been set for another run since this one began."""
        return bool(self._entries) and getattr(self._scheduler(), "timesteps", None) is not self._timesteps

    def _index(self, level: float | None, entries: Sequence[float]) -> int | None:
        """Where the scheduler stands in a list of its levels, if that is this level."""
        if level is None or not entries:
            return None
        scheduler, near = self._scheduler(), ROUNDED * level + (0.001 if level <= 1 else 1.0)
        index = getattr(scheduler, "step_index", None)
        if index is None:
            index = getattr(scheduler, "begin_index", None)
        if index is None:  # it counts no steps, or begins with the one whose level it is given
            index = min(range(len(entries)), key=lambda k: abs(entries[k] - level))
        return index if 0 <= index < len(entries) and abs(entries[index] - level) <= near else None


def _numbers(tensor: object) -> list[float]:
    return tensor.float().tolist() if isinstance(tensor, torch.Tensor) and tensor.ndim == 1 else []


def _steps_of(entries: Sequence[float]) -> list[int]:
    """Where steps begin: Heun's list has all but the first level twice, and PNDM's one; these are evaluations."""
    return [k for k in range(len(entries)) if k == 0 or entries[k] != entries[k - 1]]


def _fall(levels: Sequence[float]) -> bool:
    return levels[-1] >= 0 and all(a > b for a, b in zip(levels, levels[1:], strict=False))


def is_of_a_list(timestep: object) -> bool:
    """Whether it is a number, repeated or not, that shares its memory with others."""
    if not isinstance(timestep, torch.Tensor) or timestep.numel() == 0:
        return False
    one = all(stride == 0 or size == 1 for stride, size in zip(timestep.stride(), timestep.shape, strict=True))
    return one and timestep.untyped_storage().nbytes() > timestep.element_size()


def levels_of(timestep: object, level: float | None, top: float | None, said: int | None) -> tuple[list[float], int]:
    """The levels of a run from this timestep on, and its place in their list; [], 0 where it is of none for sure.

    Args:
        timestep: As the model gets it.
        level: What is taken for its noise level.
        top: The level of timestep 0, where these rise; else None.
        said: Steps from here on, if somebody says it; a list of another length is not believed then.
    """
    count = timestep.untyped_storage().nbytes() // timestep.element_size() if is_of_a_list(timestep) else 0
    if not LEAST <= count <= MOST:
        return [], 0
    row = timestep.as_strided((count,), (1,), 0)
    entries = (row if top is None else top - row).float().tolist()
    steps = _steps_of(entries)
    if len(steps) < LEAST:
        return [], 0
    place = sum(k <= timestep.storage_offset() for k in steps) - 1
    levels = [entries[k] for k in steps[place:]]
    return (levels, place) if _fall(levels) and levels[0] == level and said in (None, len(levels)) else ([], 0)


def scale_of(level: float | None) -> float:
    """A model's noise levels over shares of noise, by its first level."""
    return 1000.0 if level is not None and level > 1 else 1.0

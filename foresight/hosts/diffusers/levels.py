"""The noise levels of a run, where a call of the model shows them all."""

import torch

LEAST, MOST = 3, 2000  # entries of a list; the times of a batch or of cond and uncond are none


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
    # Heun's has all but the first twice, and PNDM's one: these are evaluations
    kept = [0, *(k for k in range(1, count) if entries[k] != entries[k - 1])]
    if len(kept) < LEAST:
        return [], 0
    place = sum(k <= timestep.storage_offset() for k in kept) - 1
    levels = [entries[k] for k in kept[place:]]
    falls = levels[-1] >= 0 and all(a > b for a, b in zip(levels, levels[1:], strict=False))
    return (levels, place) if falls and levels[0] == level and said in (None, len(levels)) else ([], 0)

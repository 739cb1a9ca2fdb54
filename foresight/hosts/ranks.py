"""Which processes have to decide alike with this one, and how they exchange numbers.

Nothing is imported here that is not loaded, and no group is made: that would be a collective of all processes.
"""

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType

import torch
import torch.distributed as dist

from ..engine.agreement import Worst

log = logging.getLogger(__name__)

_XFUSER = "xfuser.core.distributed.parallel_state"
_SPLITS = ("sp", "cfg", "pp", "tp")  # xfuser's groups that make one video


class Largest:
    """The largest of each number over the processes of one or several groups, see `Worst`.

    The largest over several groups, in the same order everywhere, is the largest over all whom they connect.
    """

    def __init__(self, groups: Sequence["dist.ProcessGroup"]):
        self._groups = groups
        self.size = _reached(groups)
        self.places, self.place = 1, 0
        for group in groups:  # which one it is on each side of their grid
            self.place = self.place * dist.get_world_size(group) + dist.get_rank(group)
            self.places *= dist.get_world_size(group)
        if self.places > dist.get_world_size():  # the groups overlap
            self.places, self.place = dist.get_world_size(), dist.get_rank()

    def __call__(self, numbers: torch.Tensor) -> torch.Tensor:
        for group in self._groups:
            try:
                numbers = _largest(numbers, group)
            except RuntimeError as error:
                rank, size = dist.get_rank(group), dist.get_world_size(group)
                raise RuntimeError(
                    f"Foresight waited in vain for the other processes to decide (rank {rank} of {size}): one of them "
                    "stopped, or runs without Foresight or with other settings. Look at their logs, and apply "
                    "Foresight in all of them alike"
                ) from error
        return numbers


def _largest(numbers: torch.Tensor, group: "dist.ProcessGroup") -> torch.Tensor:
    found = numbers.to(_device_of(group), copy=True)
    dist.all_reduce(found, op=dist.ReduceOp.MAX, group=group)
    return found.cpu()


def _device_of(group: "dist.ProcessGroup") -> torch.device:
    """Where the group's numbers must lie. On the CPU, if it can, a failure is an error that can be caught."""
    kinds = [device.type for device in group._device_types]
    if "cpu" in kinds or not kinds:
        return torch.device("cpu")
    return torch.device(kinds[0], torch.accelerator.current_device_index())


def _reached(groups: Sequence["dist.ProcessGroup"]) -> int:
    """How many processes several groups connect where they are the sides of a grid; at most all there are."""
    count = 1
    for size in map(dist.get_world_size, groups):
        count *= size
    return min(count, dist.get_world_size())


@dataclass(frozen=True)
class Ranks:
    """What was found about the processes that decide alike.

    Attributes:
        words: It, for people; empty where this process decides alone.
        worst: What a run is given; None where this process decides alone.
        never: Why no run may leave anything out, or None.
        first: Whether this is the one among them that speaks for all in the log.
    """

    words: str = ""
    worst: Worst | None = None
    never: str | None = None
    first: bool = True


def ranks_of(model: torch.nn.Module, group: "dist.ProcessGroup | None" = None) -> Ranks:
    """Find the processes that have to decide alike about a model. Asked when a run begins: not all is known before.

    In this order: what the user says, xfuser's groups, what diffusers or cache-dit have written on the model, and who
    has the other parts of its weights. One line in the log says what was found.

    Args:
        model: The transformer.
        group: The user knows them: all apply Foresight alike, and call the transformer for the same evaluations.

    Raises:
        ValueError: `group` has not got this process in it.
    """
    if not dist.is_available() or not dist.is_initialized():
        if group is not None:
            raise ValueError("group= is given, but torch.distributed is not initialised: run the script with torchrun")
        return Ranks()
    if group is not None:
        if dist.get_rank(group) < 0:
            raise ValueError(f"group= does not have this process (rank {dist.get_rank()}) in it")
        return _together([group], "the group that was given")
    if dist.get_world_size() == 1:
        return Ranks()
    found = _of_xfuser() or _of_configs(model) or _of_weights(model)
    if found is None and getattr(model, "_cp_shard_fn", None) is not None:
        return Ranks(never="the tokens are split over processes, and nothing says which: say it with group=")
    return found or Ranks()


def _together(groups: Sequence["dist.ProcessGroup"], words: str) -> Ranks | None:
    groups = [group for group in groups if dist.get_world_size(group) > 1]
    if not groups:
        return Ranks() if words == "the group that was given" else None
    worst, first = Largest(groups), all(dist.get_rank(group) == 0 for group in groups)
    if first:
        log.info("Foresight decides together in %s processes (%s)", worst.size, words)
    return Ranks(f"{worst.size} processes ({words})", worst, first=first)


def _of_xfuser() -> Ranks | None:
    """What xfuser has set up, under raylight too."""
    state = sys.modules.get(_XFUSER)
    if state is None or not state.model_parallel_is_initialized():
        return None
    if state.get_pipeline_parallel_world_size() > 1:
        return Ranks(never="pipeline parallel: a process has some of the blocks only, and old keys and values")
    replica = getattr(state, "get_model_replica_group", None)
    coordinators = [replica()] if replica else [getattr(state, f"get_{split}_group")() for split in _SPLITS]
    coordinators += _sharded(state)
    return _together([c.cpu_group or c.device_group for c in coordinators], "xfuser's groups")


def _sharded(state: ModuleType) -> list:
    """The group over which xfuser has sharded the weights, where it is set up."""
    return [state._FS] if getattr(state, "_FS", None) is not None else []


def _of_configs(model: torch.nn.Module) -> Ranks | None:
    """What diffusers or cache-dit remember on the model. The names are private, and tested."""
    config = getattr(model, "_parallel_config", None)
    tokens, tensors = (getattr(config, f"{kind}_parallel_config", None) for kind in ("context", "tensor"))
    if tokens is not None:
        return _of_mesh(tokens._flattened_mesh, "diffusers' context parallelism")
    if tensors is not None:
        return _of_mesh(tensors._mesh, "diffusers' tensor parallelism")
    config = getattr(model, "_parallelism_config", None)
    if config is None:
        return None
    mesh = getattr(config, "_flat_mesh", None)
    return _together([dist.group.WORLD], "cache-dit") if mesh is None else _of_mesh(mesh, "cache-dit")


def _of_weights(model: torch.nn.Module) -> Ranks | None:
    """Who has the other parts of the weights: all of them wait for one another, also with different videos."""
    meshes = (getattr(weight, "device_mesh", None) for weight in model.parameters())
    mesh = next((mesh for mesh in meshes if mesh is not None), None)
    return None if mesh is None else _of_mesh(mesh, "weights that are sharded")


def _of_mesh(mesh, words: str) -> Ranks | None:
    return _together(mesh.get_all_groups(), words)

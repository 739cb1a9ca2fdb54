"""How a host gets between the blocks of a model: records of models, and the swap of the blocks' forwards for one call.

A family is matched by the full name of its class, so that nothing is imported to look it up and a subclass, whose
blocks may do more, is refused until it has a record of its own.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

from ..engine import Run
from ..engine.compiler import outside_graphs
from ..engine.policy import BlockCall
from ..engine.tensors import Tensors

WHOLE = "the whole model is compiled: compile it by block"

# (first block's input, this block's input, this block's keyword arguments) -> the first block's input in this block's
# layout
Join = Callable[[Tensors, Tensors, Mapping], Tensors]


class UnsupportedModel(ValueError):
    """The model has no record in the table of families."""


@dataclass(frozen=True)
class Section:
    """One block list of a model.

    Attributes:
        blocks: Attribute of the model that holds the list.
        inputs: The hidden-state parameters of a block, as (name, position), in the order in which it returns them.
        join: Needed when the hidden states have another layout here than at the first block of the stack.
        passed: Names of further keyword arguments that a block returns, unchanged, after its hidden states.
        paired: The one entry of `inputs` is a tuple of hidden states.
        method: The method of a block that computes its hidden states (Wan Animate-2: `forward_gen`).
        in_place: Its blocks change the tensors that enter them, which the model holds meanwhile and reads no more.
    """

    blocks: str
    inputs: tuple[tuple[str, int], ...]
    join: Join | None = None
    passed: tuple[str, ...] = ()
    paired: bool = False
    method: str = "forward"
    in_place: bool = False

    @outside_graphs()
    def read(self, args: tuple, kwargs: Mapping) -> Tensors:
        """The hidden states among the arguments of a block, without those that are None (a video without audio)."""
        return tuple(x for x in self._slots(args, kwargs) if x is not None)

    def _slots(self, args: tuple, kwargs: Mapping) -> tuple:
        found = tuple(args[position] if position < len(args) else kwargs[name] for name, position in self.inputs)
        return tuple(found[0]) if self.paired else found

    @property
    def _single(self) -> bool:
        return len(self.inputs) == 1 and not self.paired

    @outside_graphs()
    def unpack(self, result) -> Tensors:
        """The hidden states among what a block returned."""
        if self._single:
            return (result,)
        return tuple(x for x in result[: len(result) - len(self.passed)] if x is not None)

    @outside_graphs()
    def pack(self, hidden_states: Tensors, args: tuple, kwargs: Mapping):
        """What a block with these arguments would return with these hidden states."""
        if self._single:
            return hidden_states[0]
        rest = iter(hidden_states)
        slots = (None if x is None else next(rest) for x in self._slots(args, kwargs))
        return (*slots, *(kwargs[name] for name in self.passed))


@dataclass(frozen=True)
class Family:
    """A model class and its stack of blocks.

    Attributes:
        name: For people.
        model: Full name of the class.
        sections: Block lists in the order in which they run.
        interleaved: The lists take turns (block 0 of each, then block 1 of each) instead of following one another.
        batch_dim: Dimension of the hidden states along which conds are stacked; None where their tokens are mixed, so
            that all conds of a call are one stream.
        plain_with: If this transformer option (diffusers: argument) is set, every block must run: blocks update a KV
            cache.
        leaves_last: The last block always runs and is no part of the stack.
        also: Full names of subclasses that run the same blocks, on a share of the tokens (xfuser's).
    """

    name: str
    model: str
    sections: tuple[Section, ...]
    interleaved: bool = False
    batch_dim: int | None = 0
    plain_with: str | None = None
    leaves_last: bool = False
    also: tuple[str, ...] = ()

    def stack(self, model: torch.nn.Module) -> list[tuple[torch.nn.Module, Section]]:
        """All blocks in the order in which they run, each with its section."""
        lists = []
        for section in self.sections:
            blocks = getattr(model, section.blocks)
            blocks = blocks.values() if isinstance(blocks, torch.nn.ModuleDict) else blocks
            lists.append([(block, section) for block in blocks])
        if self.interleaved:
            lists = list(zip(*lists, strict=True))
        stack = [entry for blocks in lists for entry in blocks]
        return stack[:-1] if self.leaves_last else stack


AnyFamily = TypeVar("AnyFamily", bound=Family)


def family_of(
    model: object, table: Sequence[AnyFamily], advice: str = "Remove the node from this model's path."
) -> AnyFamily:
    """The record of a model.

    Args:
        advice: What the user can do about a model without one.

    Raises:
        UnsupportedModel: the table has none.
    """
    name = class_name(model)
    for family in table:
        if name in (family.model, *family.also):
            return family
    known = ", ".join(f"{family.name} ({family.model.rsplit('.', 1)[1]})" for family in table)
    raise UnsupportedModel(
        f"Foresight does not support {type(model).__qualname__} (from {type(model).__module__}). "
        f"Supported: {known}. {advice}"
    )


def class_name(model: object) -> str:
    """Full name of a model's own class."""
    cls = _own_class(type(model))
    return f"{cls.__module__}.{cls.__qualname__}"


def _own_class(cls: type) -> type:
    """The class that a model was made of, where torch's FSDP has put a class of its own before it."""
    bases = cls.__bases__
    fsdp = [base for base in bases if base.__name__ == "FSDPModule" and base.__module__.startswith("torch.distributed")]
    return next((base for base in bases if base not in fsdp), cls) if fsdp else cls


class Swapped:
    """Context manager: during one call of the model, every block's `forward` (or the like) asks `call` first.

    It replaces an instance attribute and puts back exactly what was there, another pack's attribute or nothing.

    Args:
        stack: From `Family.stack`.
        call: The engine's `BlockCall`.

    Attributes:
        reached: Whether a block was called.
    """

    def __init__(self, stack: list[tuple[torch.nn.Module, Section]], call: BlockCall):
        self._stack, self._call, self.reached = stack, call, False
        self._found: list[tuple[torch.nn.Module, str, object]] = []

    @outside_graphs()
    def __enter__(self) -> None:
        for index, (block, section) in enumerate(self._stack):
            name = section.method
            self._found.append((block, name, block.__dict__.get(name, self)))
            # nn.Module's own __setattr__ (and a compiled module's) would look for parameters first
            object.__setattr__(block, name, functools.partial(self._forward, index, section, getattr(block, name)))

    @outside_graphs()
    def __exit__(self, *_) -> None:
        for block, name, found in reversed(self._found):
            if found is self:
                block.__dict__.pop(name, None)
            else:
                object.__setattr__(block, name, found)
        self._found.clear()

    @outside_graphs(recursive=False)
    def _forward(self, index: int, section: Section, original: Callable, /, *args, **kwargs):
        self.reached = True
        inputs, computed = section.read(args, kwargs), _Computed(section, original, args, kwargs)
        join = section.join and functools.partial(section.join, inputs=inputs, kwargs=kwargs)
        hidden_states = self._call.block(index, inputs, computed.compute, join, section.in_place)
        return computed.results[0] if computed.results else section.pack(hidden_states, args, kwargs)


class _Computed:
    """A block with its arguments, which is computed if and when the engine asks for it."""

    def __init__(self, section: Section, original: Callable, args: tuple, kwargs: dict):
        self._section, self._original, self._args, self._kwargs = section, original, args, kwargs
        self.results: list = []  # what the block itself returned

    @outside_graphs(recursive=False)
    def compute(self) -> Tensors:
        self.results.append(self._original(*self._args, **self._kwargs))
        return self._section.unpack(self.results[0])


@outside_graphs(recursive=False)
def run_blocks(
    run: Run,
    stack: list[tuple[torch.nn.Module, Section]],
    keys: Sequence,
    forward: Callable[[], object],
    batch_dim: int = 0,
    whole: bool = False,
):
    """One call of the model, `forward`, whose blocks ask the run first; they stay untouched where it wants nothing.

    Call it through the module (`blocks.run_blocks`): `keep_out_of_graphs` replaces the module's attribute. Arguments
    are as in `Run.begin_call`; `whole` says that the model is compiled as a whole, so that a graph may not ask.
    """
    call = run.begin_call(keys, len(stack), batch_dim)
    if call is None:
        return forward()
    result, swapped = None, Swapped(stack, call)
    try:
        with swapped:
            result = forward()
    except Exception as error:
        if not whole or swapped.reached or not _is_of_compiler(error):
            raise
    if whole and not swapped.reached:
        run.deactivate(WHOLE)
    elif run.end_call(call):
        return result
    return run_blocks(run, stack, keys, forward, batch_dim)  # once more, plainly: the run is inactive now


def _is_of_compiler(error: Exception) -> bool:
    """Whether torch's compiler gave up: with `fullgraph` there must be nothing of ours between the blocks."""
    return type(error).__module__.startswith("torch._dynamo")

"""A model that is compiled as a whole: what runs inside of its graph is what ran when the graph was made.

A graph of a plain run has no wrapper in it. ComfyUI's node drops the guards on transformer options, so that the graph
also serves a run with wrappers, which are then not called. So ours stay outside.
"""

import torch


def is_compiled(model: torch.nn.Module) -> bool:
    """Whether a model's own call is a compiled one: wrapped by torch.compile, compiled in place, or by its forward."""
    if hasattr(model, "_orig_mod") or getattr(model, "_compiled_call_impl", None) is not None:
        return True
    return hasattr(model.forward, "_torchdynamo_orig_callable")


def without_wrappers(key: str, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    """The arguments of a call of the model whose transformer options have no wrapper with this key."""

    def without(value):
        if not isinstance(value, dict) or "wrappers" not in value:
            return value
        wrappers = {kind: {k: w for k, w in by_key.items() if k != key} for kind, by_key in value["wrappers"].items()}
        return {**value, "wrappers": {kind: by_key for kind, by_key in wrappers.items() if by_key}}

    return tuple(map(without, args)), {name: without(value) for name, value in kwargs.items()}

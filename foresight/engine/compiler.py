"""Keeps our own functions out of the graphs of torch's compiler, without importing it where nothing is compiled.

`torch.compiler.disable` imports the compiler when it decorates, which takes one to three seconds. So functions are only
marked here, and a run decorates them once the compiler is there because somebody else has brought it.
"""

import sys
from collections.abc import Callable

import torch

_marked: list[tuple[object, str, Callable, bool]] = []  # where it is, its name, itself, recursive


class _Method:
    """Stands for a marked method until its class is made."""

    def __init__(self, function: Callable, recursive: bool):
        self._function, self._recursive = function, recursive

    def __set_name__(self, owner: type, name: str) -> None:
        setattr(owner, name, self._function)
        _marked.append((owner, name, self._function, self._recursive))


def outside_graphs(recursive: bool = True) -> Callable:
    """Decorator of a method, or of a function that is called through its module.

    Args:
        recursive: Nothing that it calls is compiled either; False where it calls blocks of the model, which may be.
    """

    def mark(function: Callable):
        if "." in function.__qualname__:
            return _Method(function, recursive)
        _marked.append((sys.modules[function.__module__], function.__name__, function, recursive))
        return function

    return mark


def keep_out_of_graphs() -> None:
    """Decorate what is marked if the compiler is loaded; does nothing otherwise, and nothing the second time.

    What somebody else has put in the place of a marked function is left there.
    """
    if "torch._dynamo" in sys.modules:
        while _marked:
            owner, name, function, recursive = _marked.pop()
            if vars(owner).get(name) is function:
                setattr(owner, name, torch.compiler.disable(function, recursive=recursive))

"""What changes in mid-run: attention from some percent on, a patch that works up to a noise level, a number.

The functions that ComfyUI is given look at the noise level themselves, so that nothing in the options changes when they
do. They hold the levels between which they work under names like `sigma_start`, `end_percent`, `sigma_lo` (CFG
Override) or `cfg_trunc` (RenormCFG), also in lists and dicts (IPAdapter's), and there they are read. What is known of
an evaluation is the same on one side of such a level only.
"""

import dis
import functools
import math
import types
import weakref
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

import torch

from .levels import fp32

ATTENTION = "optimized_attention_override"
STAYS = 6  # evaluations; a number that has been the same for so long is no counter
FEW = 4  # values of a number that names trajectories
_BEGINS, _ENDS = {"hi", "high", "max", "from"}, {"lo", "low", "min", "to", "trunc"}  # as words of a name
_TIMES = "start_t", "end_t"  # of core's seam smoothing for HiDream O1
_EMPTY = types.CellType()
COMPARED = 3  # evaluations in which what a function keeps is compared value by value
MOST_HELD = 64  # entries of a list or dict that may hold levels
MOST_KNOWN = 256  # functions whose levels are remembered; some are made anew at each evaluation


class Edges:
    """The noise levels at which functions in the options change what they do.

    Args:
        percent_to_sigma: The model's.
        levels: Of the run.
        but: Functions under keys that begin so are not looked at.
    """

    def __init__(self, percent_to_sigma: Callable[[float], float], levels: Sequence[float], but: str):
        self._percent_to_sigma, self._but = percent_to_sigma, but
        self._levels, self._lowest, self._highest = levels, min(levels), max(levels)
        self._known: dict[int, tuple[object, list[tuple[float, bool]]]] = {}  # by id, each with the function itself
        self._begin: set[tuple[float, bool]] = set()

    def begin_at(self, percents: Iterable[float]) -> None:
        """Something begins at these shares of the run."""
        self._begin |= {(float(self._percent_to_sigma(percent)), False) for percent in percents}

    def sides(self, model_options: Mapping, level: float | None, guider: object = None) -> tuple:
        """Which function does the attention, and on which side of each edge the level lies."""
        attention = model_options.get("transformer_options", {}).get(ATTENTION)
        sides = {*self._of_guider(guider), *self._begin}
        for function in _functions(model_options, self._but):
            _, edges = self._known.get(id(function), (None, None))
            if edges is None:
                self._known = self._known if len(self._known) < MOST_KNOWN else {}
                edges = list(self._of(function, function is attention))
                self._known[id(function)] = function, edges
            sides.update(edges)
        found = {(edge, _side(edge, ends, level)) for edge, ends in sides if level is not None}
        return _code_of(attention), tuple(sorted(found))

    def _of(self, function: Callable, is_attention: bool) -> Iterator[tuple[float, bool]]:
        numbers = list(_numbers(function))
        named = [(name, x) for name, x in numbers if _bounds(name)]
        if is_attention and not named:  # under another name, or written into its code
            named = [("", x) for x in [*(x for _, x in numbers), *_written(function)] if isinstance(x, float)]
        for name, x in named:
            sigma = float(self._percent_to_sigma(x)) if "percent" in name else x
            sigma = x / 1000 if name in _TIMES and x > self._highest else sigma  # what the model is given for it
            if self._lowest < sigma < self._highest:
                yield sigma, _is_end(name)

    def _of_guider(self, guider: object) -> Iterator[tuple[float, bool]]:
        """A guider's own percents are shares of the run's steps (KJNodes' scheduled CFG)."""
        last = len(self._levels) - 1
        for name, x in _plain(getattr(guider, "__dict__", {}), depth=0):
            if _bounds(name) and "percent" in name and 0 < x < 1:
                step = math.floor(x * last + 1e-6) if _is_end(name) else math.ceil(x * last - 1e-6)
                yield self._levels[step], _is_end(name)


def _side(edge: float, ends: bool, level: float) -> bool | None:
    """Whether a level is before an edge; None where only the function knows.

    What begins at a level does so at the level itself, and what ends there still works at it. Levels are fp32: one may
    be the edge for a function that compares in fp32, as torch does, and none for one that compares in double.
    """
    if edge != level == fp32(edge):
        return None
    return level > edge or ends and level == edge


def _bounds(name: str) -> bool:
    """Whether a number of this name says where something begins or ends."""
    words = set(name.split("_"))
    level = "sigma" in name or "percent" in name
    return (
        "trunc" in words
        or name in _TIMES
        or level
        and ("start" in name or "end" in name or bool(words & (_BEGINS | _ENDS)))
    )


def _is_end(name: str) -> bool:
    """A run goes down its levels and up its percents."""
    ends = _BEGINS - {"from"} | {"to"} if "percent" in name else _ENDS
    return "end" in name or bool(set(name.split("_")) & ends)


def _functions(options: object, but: str) -> Iterator[Callable]:
    """All functions in nested options, and the objects that can be called."""
    if isinstance(options, Mapping):
        for key, value in options.items():
            if not str(key).startswith(but) and key != "callbacks":
                yield from _functions(value, but)
    elif isinstance(options, (list, tuple)):
        for value in options:
            yield from _functions(value, but)
    elif callable(options) and not isinstance(options, (type, torch.nn.Module)):
        yield options


def _numbers(function: object, depth: int = 3) -> Iterator[tuple[str, float]]:
    """The numbers that a function was made with, by name: of its closure, its object and the functions behind it."""
    function, held = getattr(function, "__func__", function), getattr(function, "__self__", None)
    cells = getattr(function, "__closure__", None) or ()
    names = function.__code__.co_freevars if cells else ()
    made_with = {name: _content(cell) for name, cell in zip(names, cells, strict=True)}
    behind = {"self": held, "func": getattr(function, "func", None), **made_with}
    if not hasattr(function, "__code__"):
        behind["self"] = function
    yield from _plain(made_with)
    yield from _plain(getattr(function, "keywords", {}))
    for value in behind.values():
        if callable(value) and hasattr(value, "__code__") and depth:
            yield from _numbers(value, depth - 1)
        elif not isinstance(value, (type, torch.nn.Module, torch.Tensor)):
            yield from _plain(getattr(value, "__dict__", {}))


def _plain(values: Mapping, depth: int = 2) -> Iterator[tuple[str, float]]:
    """Numbers by name, with the bounds that lie in short lists and dicts among them; a list's are called as it is."""
    for name, x in values.items():
        if isinstance(x, (int, float)) and not isinstance(x, bool):
            yield str(name).lower(), x
        elif isinstance(x, torch.Tensor) and x.numel() == 1 and x.device.type == "cpu":  # a device is not read here
            yield str(name).lower(), float(x)
        elif type(x) in (dict, list, tuple) and len(x) <= MOST_HELD and depth:  # others may do anything when asked
            inside = [x] if type(x) is dict else [{name: item} for item in x]
            yield from ((of, bound) for one in inside for of, bound in _plain(one, depth - 1) if _bounds(of))


def _content(cell: object) -> object:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return None


def _written(function: object) -> list:
    """What stands in the code of a function: its constants, and what globals it names."""
    function = getattr(function, "__func__", function)
    code = getattr(function, "__code__", None)
    return [] if code is None else [*code.co_consts, *(function.__globals__.get(name) for name in code.co_names)]


def _code_of(function: Callable | None) -> object:
    """The same for a closure that is made anew at each evaluation."""
    function = getattr(function, "func", function)
    return getattr(getattr(function, "__func__", function), "__code__", type(function))


class Numbers:
    """What numbers in the options say about an evaluation.

    A pack may count its evaluations or its steps there, which says nothing. A number names a trajectory where it has
    had two values at one noise level and comes back to one of its values. One that stayed and then changes is an edge.

    Attributes:
        changes: How many edges there were.
    """

    def __init__(self):
        self.changes = 0
        self._seen: dict[str, list[tuple[float | None, float]]] = {}  # by name, of each evaluation its level and value
        self._stayed: dict[str, int] = {}

    def of(self, model_options: Mapping, last_level: float | None) -> tuple:
        """What tells trajectories apart in the evaluation that begins.

        Args:
            last_level: Of the evaluation before; the level of this one has not been read yet.
        """
        names = []
        for name, value in model_options.get("transformer_options", {}).items():
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                continue
            seen = self._seen.setdefault(name, [])
            if seen:
                seen[-1] = last_level, seen[-1][1]
            if seen and seen[-1][1] != value:
                self.changes += self._stayed[name] >= STAYS
                self._stayed[name] = 0
            self._stayed[name] = self._stayed.get(name, 0) + 1
            seen.append((None, value))
            if _names(seen):
                names.append((name, value))
        return tuple(sorted(names))


def _names(seen: list[tuple[float | None, float]]) -> bool:
    values = [value for _, value in seen]
    turns = [value for before, value in zip([None, *values], values, strict=False) if value != before]
    if len(turns) == len(set(turns)) or len(set(turns)) > FEW:
        return False
    return any(a[0] is not None and a[0] == b[0] and a[1] != b[1] for a, b in zip(seen, seen[1:], strict=False))


class Kept:
    """What guidance functions keep from one evaluation to the next.

    One that keeps what it was given, as APG does with a momentum, gives something else for every evaluation that it
    does not see. Seen from outside: it sets a variable of the function that has made it, and another tensor lies there
    after every evaluation. What is set once, as a mask that is brought to the size of the latent, is no memory.

    Attributes:
        changes: How often there was another one. Nothing may be forecast across a change; from the second on, nothing.
    """

    def __init__(self):
        self.changes = self._looks = 0
        self._before: list[tuple[weakref.ref, torch.Tensor | None]] = []

    def look(self, model_options: Mapping) -> None:
        """An evaluation begins.

        Args:
            model_options: The guider's, without what a sampler brings for itself (see `outputs.SamplerFunctions`).
        """
        tensors = kept_by(model_options)
        pairs = zip(tensors, self._before, strict=False)
        same = len(tensors) == len(self._before) and all(_is_still(x, *before) for x, before in pairs)
        self.changes += self._looks > 0 and not same
        self._looks += 1
        # what is written in place is seen in the first evaluations; comparing reads the device
        self._before = [(weakref.ref(x), x.clone() if self._looks < COMPARED else None) for x in tensors]


def _is_still(x: torch.Tensor, before: weakref.ref, copy: torch.Tensor | None) -> bool:
    return before() is x and (copy is None or torch.equal(x, copy))


def kept_by(model_options: Mapping) -> list[torch.Tensor]:
    """The tensors in those variables that guidance functions set; see `Kept`."""
    found = (value for key, value in model_options.items() if key.startswith("sampler_"))
    functions = [f for value in found for f in (value if isinstance(value, list) else [value])]
    return [x for function in functions if getattr(function, "__closure__", None) for x in _tensors_set_by(function)]


def has_kept(model_options: Mapping, brought: Collection[str]) -> bool:
    """Whether guidance keeps something in the options: a tensor lies there under a name that was not there before.

    Args:
        brought: The names that were there when the run began.
    """
    return any(_has_tensor(value) for key, value in model_options.items() if key not in brought)


def _has_tensor(value: object, depth: int = 3) -> bool:
    if isinstance(value, torch.Tensor):
        return value.numel() > 1
    inside = value.values() if type(value) is dict else value if type(value) in (list, tuple) else ()
    return depth > 0 and any(_has_tensor(x, depth - 1) for x in inside)


def _tensors_set_by(function: Callable) -> list[torch.Tensor]:
    code = function.__code__
    cells = dict(zip(code.co_freevars, function.__closure__, strict=True))
    values = [cells[name].cell_contents for name in _set_by(code) if cells[name] != _EMPTY]
    return [value for value in values if isinstance(value, torch.Tensor) and value.numel() > 1]


@functools.cache
def _set_by(code: types.CodeType) -> tuple[str, ...]:
    """Names of the variables of an outer function that a function sets."""
    return tuple(
        sorted({i.argval for i in dis.get_instructions(code) if i.opname == "STORE_DEREF"} & {*code.co_freevars})
    )

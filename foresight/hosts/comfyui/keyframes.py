"""Keyframes that another pack keeps in the options and counts in the evaluations that it sees (AnimateDiff-Evolved)."""

from collections.abc import Iterator, Mapping, Sequence

import comfy.model_patcher
import torch

FEW = 4  # more are a curve, across which a forecast is as good as across a function of the noise level
DEPTH = 5  # objects in objects, down to a list of keyframes
MOST = 1000  # objects that are looked into
_THEIRS = "torch", "comfy", "builtins"  # modules of whose objects none is another pack's


def groups_in(options: Mapping, but: str) -> Iterator[Sequence]:
    """All lists of several keyframes in objects that say which one is current, in options and in objects there.

    A keyframe is an object with a `start_percent`. Where none is current, the level alone may say which one it is.

    Args:
        but: What lies under keys that begin so is not looked at.
    """
    waiting, seen = [(options, DEPTH)], set()
    while waiting and len(seen) < MOST:
        value, depth = waiting.pop(0)
        if id(value) in seen:
            continue
        seen.add(id(value))
        inside = value
        if isinstance(value, Mapping):
            inside = [x for key, x in value.items() if not str(key).startswith(but)]
        elif not isinstance(value, (list, tuple)):
            inside = vars(value).values()
            if any("current" in name for name in vars(value)):
                yield from filter(_are_keyframes, inside)
        waiting += [(x, depth - 1) for x in inside if depth and _may_hold(x)]


def last(keyframes: Sequence) -> bool:
    """Whether a keyframe lasts for a number of evaluations, of which its pack would see too few.

    One that lasts for one evaluation at least comes into force at a computed one. That is enough for a few, at which
    all is computed, and for the first, with which a run begins.
    """
    first, *others = (getattr(keyframe, "guarantee_steps", 0) for keyframe in keyframes)
    return first > 1 or max(others) > 1 or max(others) == 1 and len(keyframes) > FEW


def begin(keyframes: Sequence) -> list[float]:
    """Shares of the run at which keyframes begin, each of which is an edge; none of a curve."""
    return [float(keyframe.start_percent) for keyframe in keyframes] if len(keyframes) <= FEW else []


def _are_keyframes(value: object) -> bool:
    several = isinstance(value, (list, tuple)) and len(value) > 1
    return several and all(hasattr(item, "start_percent") for item in value)


def _may_hold(value: object) -> bool:
    return isinstance(value, (list, tuple, Mapping)) or _is_of_a_pack(value)


def _is_of_a_pack(value: object) -> bool:
    own = type(value).__module__.partition(".")[0] not in _THEIRS and hasattr(value, "__dict__")
    return (
        own and not isinstance(value, (type, torch.nn.Module, comfy.model_patcher.ModelPatcher)) and not callable(value)
    )

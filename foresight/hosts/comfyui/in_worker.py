"""What is executed in a worker process of raylight. It gets there as code, so nothing but Python is imported up here.

In ComfyUI's own process, the pack is a package whose name ComfyUI makes. A worker knows no such name; there the pack's
folder is put at the end of the path, and the library is called `foresight`.
"""

import sys


def reach(folder: str) -> None:
    """Let the library be imported from the pack's folder; behind all else, because ComfyUI has a `nodes` too.

    Raises:
        ImportError: it is not there, as on another machine without the pack.
    """
    if folder not in sys.path:
        sys.path.append(folder)
    try:
        import foresight.engine  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"a worker does not find Foresight in {folder}: on each machine, install the pack in the same folder"
        ) from error


def apply(model, folder: str, method: str, settings: dict):
    """The worker's model patcher with Foresight on it."""
    reach(folder)
    from foresight.engine import METHODS
    from foresight.hosts.comfyui import apply_foresight

    return apply_foresight(model, METHODS[method](**settings))


def runs(model, folder: str) -> list[dict]:
    """What the newest sampler runs of the worker's model did, see `runs_on`."""
    reach(folder)
    from foresight.hosts.comfyui import runs_on

    return runs_on(model)

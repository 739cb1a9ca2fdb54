"""ComfyUI-Foresight: video diffusion transformers compute only what cannot be foreseen (see arXiv 2506.00329)."""

import logging

WEB_DIRECTORY = "./js"
OLDEST_COMFYUI = (0, 11)


def _say_if_too_old() -> None:
    """One clear line where ComfyUI is too old, before whatever fails in it."""
    try:
        from comfyui_version import __version__ as version
    except ImportError:
        return
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST_COMFYUI:
        needed = ".".join(map(str, OLDEST_COMFYUI))
        log = logging.getLogger(__name__)
        log.warning("ComfyUI-Foresight needs ComfyUI %s or newer, this is %s: update ComfyUI", needed, version)


_say_if_too_old()


async def comfy_entrypoint():
    from .nodes import ForesightExtension

    return ForesightExtension()

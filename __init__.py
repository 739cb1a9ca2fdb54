"""ComfyUI-Foresight: adaptive block reuse for video diffusion transformers (Foresight, arXiv 2506.00329)."""

WEB_DIRECTORY = "./js"


async def comfy_entrypoint():
    from .nodes import ForesightExtension

    return ForesightExtension()

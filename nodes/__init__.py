"""The pack's nodes: schemas and a few lines each."""

from comfy_api.latest import ComfyExtension, io

from ..adapters import live
from .apply import ForesightApply
from .demo import ForesightDemoLatent, ForesightDemoModel, ForesightDemoPrompt


class ForesightExtension(ComfyExtension):
    async def on_load(self) -> None:
        live.add_routes()

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [ForesightApply, ForesightDemoModel, ForesightDemoPrompt, ForesightDemoLatent]

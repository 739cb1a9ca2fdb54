"""The pack's nodes: schemas and a few lines each."""

from comfy_api.latest import ComfyExtension, io

from ..foresight.hosts.comfyui import live
from .apply import ForesightApply
from .caption import ForesightVideoCaption
from .cogvideox import ForesightCogVideoXLoader
from .compare import ForesightCompare
from .demo import ForesightDemoLatent, ForesightDemoModel, ForesightDemoPrompt
from .latte import (
    ForesightEmptyLatteLatent,
    ForesightLatteConditioning,
    ForesightLatteLoader,
    ForesightLatteVAELoader,
)
from .open_sora import (
    ForesightEmptyOpenSoraLatent,
    ForesightModelSamplingOpenSora,
    ForesightOpenSoraConditioning,
    ForesightOpenSoraLoader,
    ForesightOpenSoraVAELoader,
)
from .picture import ForesightPicture
from .ray import ForesightRay
from .report import ForesightReport
from .timing import ForesightSpeedup, ForesightTimer


class ForesightExtension(ComfyExtension):
    async def on_load(self) -> None:
        live.add_routes()

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [
            ForesightApply,
            ForesightRay,
            ForesightReport,
            ForesightCompare,
            ForesightTimer,
            ForesightSpeedup,
            ForesightPicture,
            ForesightDemoModel,
            ForesightDemoPrompt,
            ForesightDemoLatent,
            ForesightLatteLoader,
            ForesightLatteVAELoader,
            ForesightLatteConditioning,
            ForesightEmptyLatteLatent,
            ForesightOpenSoraLoader,
            ForesightOpenSoraVAELoader,
            ForesightOpenSoraConditioning,
            ForesightModelSamplingOpenSora,
            ForesightEmptyOpenSoraLatent,
            ForesightVideoCaption,
            ForesightCogVideoXLoader,
        ]

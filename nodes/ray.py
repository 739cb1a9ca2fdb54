"""The main node for raylight, which samples on several GPUs in processes of their own."""

from comfy_api.latest import io

from ..foresight.engine import METHODS
from ..foresight.hosts.comfyui.workers import apply_in_workers
from .apply import ForesightApply
from .common import CATEGORY, RAY_ACTORS


class ForesightRay(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        _, *widgets = ForesightApply.define_schema().inputs
        return io.Schema(
            node_id="ForesightRay",
            display_name="Foresight (Ray)",
            category=CATEGORY,
            description="Foresight for raylight, which splits a model over several GPUs: all of its workers decide "
            "together. Put it between raylight's loader and its sampler. The method paper leaves a model that is split "
            "as it is.",
            search_aliases=["raylight", "multi gpu", "xdit", "usp", "cache"],
            is_experimental=True,
            inputs=[
                RAY_ACTORS.Input("ray_actors", tooltip="What comes out of raylight's Load Diffusion Model (Ray)."),
                *widgets,
            ],
            outputs=[RAY_ACTORS.Output(tooltip="The same workers, with Foresight in their sampler runs.")],
        )

    validate_inputs = ForesightApply.validate_inputs

    @classmethod
    def execute(cls, ray_actors, method: str = next(iter(METHODS)), **settings) -> io.NodeOutput:
        apply_in_workers(ray_actors, method, settings)
        return io.NodeOutput(ray_actors)

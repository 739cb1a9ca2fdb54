"""The main node."""

from comfy_api.latest import io

from ..foresight.engine import ForesightConfig
from ..foresight.engine.config import AUTO_WARMUP, AUTO_WARMUP_MIN
from ..foresight.hosts.comfyui import apply_foresight
from .common import CATEGORY

_WIDGETS = [  # saved workflows store widgets by position: only ever append
    (io.Int, "warmup_steps", False,
     f"Steps computed in full first. 0 = {AUTO_WARMUP_MIN}; with the method paper {AUTO_WARMUP:.0%} of the run, at "
     f"least {AUTO_WARMUP_MIN}."),
    (io.Float, "threshold", False,
     "Speed against quality: higher is faster and drifts more. 0 = off, the exact plain result. With the method paper, "
     "a block is reused while its change is at most this multiple of its change during warmup (gamma)."),
    (io.Int, "reuse_interval", False,
     "For the method paper: every n-th evaluation after warmup is computed in full (R); those between may reuse. "
     "Higher is faster. 1 = off, with either method; otherwise forecast chooses by itself."),
    (io.Float, "start_percent", True, "Before this share of sampling everything is computed."),
    (io.Float, "end_percent", True, "After this share of sampling everything is computed."),
    (io.Combo, "cache_device", True,
     "Where a stored hidden state waits between its evaluations: on the GPU, or in RAM. "
     "auto = GPU, RAM where the GPU is short of memory."),
    (io.Float, "cache_budget_gb", True,
     "Most memory (GiB) for stored features on the GPU; a run that needs more uses RAM (auto), and if that is not "
     "enough it is computed in full and says so. 0 = what the first evaluation leaves free."),
    (io.Combo, "method", True,
     "forecast leaves out whole evaluations and forecasts their result from the last two, by the error that it "
     "measures; it takes almost no memory. paper reuses single blocks' outputs, as in arXiv 2506.00329."),
]  # fmt: skip


class ForesightApply(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ForesightApply",
            display_name="Foresight",
            category=CATEGORY,
            description="Makes video models faster: work whose result barely changes or can be foreseen from one step "
            "to the next is reused, decided while the video is made. Put it between the model loader (after LoRAs) and "
            "the sampler. In workflows with two models (Wan 2.2), use one on each.",
            search_aliases=["cache", "teacache", "easycache", "magcache", "speed up video", "faster", "layer reuse"],
            is_experimental=True,
            inputs=[
                io.Model.Input("model", tooltip="The video model to make faster."),
                *(
                    kind.Input(name, tooltip=tooltip, advanced=advanced or None, **ForesightConfig.limits(name))
                    for kind, name, advanced, tooltip in _WIDGETS
                ),
            ],
            outputs=[io.Model.Output(tooltip="The model, with block reuse in its sampler runs.")],
            hidden=[io.Hidden.unique_id, io.Hidden.extra_pnginfo],
        )

    @classmethod
    def validate_inputs(cls, start_percent=None, end_percent=None) -> bool | str:
        if start_percent is None or end_percent is None:  # comes from a link: known at execution only
            return True
        try:
            ForesightConfig(start_percent=start_percent, end_percent=end_percent)
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def execute(cls, model, **settings) -> io.NodeOutput:
        workflow = (cls.hidden.extra_pnginfo or {}).get("workflow") or {}
        config = ForesightConfig(**settings)
        return io.NodeOutput(apply_foresight(model, config, cls.hidden.unique_id, workflow.get("id")))

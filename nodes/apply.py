"""The main node."""

from comfy_api.latest import io

from ..foresight.engine import METHODS, Config
from ..foresight.engine.prefix.policy import AUTO_INTERVAL
from ..foresight.engine.schedule import AUTO_WARMUP, AUTO_WARMUP_MIN
from ..foresight.hosts.comfyui import apply_foresight
from .common import CATEGORY

_WIDGETS = [  # saved workflows store widgets by position: only ever append
    (io.Float, "threshold", False,
     "Speed against quality: higher is faster and drifts more. 0.3 for a final video, 0.5 to begin with, 1 for "
     "looking around, 2 for drafts, up to 8 for rough ones. forecast: how large an error may be before a step is "
     "computed. 0 = off, the exact plain result."),
    (io.Int, "warmup_steps", False,
     "Steps at the beginning that are computed in full. 0 = automatic: with forecast the plan decides, and the first "
     f"step is always computed; with paper {AUTO_WARMUP:.0%} of the run, at least {AUTO_WARMUP_MIN}."),
    (io.Int, "reuse_interval", False,
     "The longest pause between two computations. forecast: at most n - 1 evaluations in a row are left out. paper: "
     "every n-th evaluation after warmup is computed in full. "
     f"0 = automatic: with forecast the plan decides, paper takes {AUTO_INTERVAL}. 1 = off."),
    (io.Float, "start_percent", True, "Before this share of sampling everything is computed."),
    (io.Float, "end_percent", True, "After this share of sampling everything is computed."),
    (io.Combo, "cache_device", True,
     "Where stored tensors wait between their uses: on the GPU, or in RAM. "
     "auto = GPU, RAM where the GPU is short of memory."),
    (io.Float, "cache_budget_gb", True,
     "Most memory (GiB) for stored tensors on the GPU; a run that needs more uses RAM (auto), and if that is not "
     "enough it is computed in full and says so. 0 = what the first evaluation leaves free."),
    (io.Boolean, "validate", True,
     "To see how good Foresight is on your model: what is left out is computed as well, for the report alone, which "
     "says how far off it was. The result is the same as without, the run takes its plain time or a little more."),
]  # fmt: skip


class ForesightApply(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ForesightApply",
            display_name="Foresight",
            category=CATEGORY,
            description="Makes any diffusion model faster; made for video. Work whose result can be foreseen, or "
            "barely changes, is left out. Put it between the model loader (after LoRAs) and the sampler. In workflows "
            "with two models (Wan 2.2), use one on each.",
            search_aliases=["cache", "teacache", "easycache", "magcache", "speed up video", "faster", "layer reuse"]
            + ["speed up image", "flux", "qwen image"],
            inputs=[
                io.Model.Input(
                    "model", tooltip="The model to make faster: any with forecast, with paper the known video models."
                ),
                io.Combo.Input(
                    "method",
                    optional=True,  # as are the others: prompts that a script sends keep working when one is added
                    options=list(METHODS),
                    default=next(iter(METHODS)),
                    tooltip="forecast leaves out whole evaluations of the model and forecasts their result from the "
                    "last two. Which ones are computed is planned before the run, and again with what is measured; it "
                    "takes little memory. paper leaves out the first blocks of an evaluation where they barely "
                    "change, as in arXiv 2506.00329; it takes the video models that it knows.",
                ),
                *(
                    kind.Input(name, optional=True, tooltip=tooltip, advanced=advanced or None, **Config.limits(name))
                    for kind, name, advanced, tooltip in _WIDGETS
                ),
            ],
            outputs=[io.Model.Output(tooltip="The model, with Foresight in its sampler runs.")],
            not_idempotent=True,  # else ComfyUI's cache gives it what a node like it gave, with that one's id
            hidden=[io.Hidden.unique_id, io.Hidden.dynprompt],
        )

    @classmethod
    def validate_inputs(
        cls,
        start_percent=Config.start_percent,
        end_percent=Config.end_percent,
        threshold=Config.threshold,
        cache_budget_gb=Config.cache_budget_gb,
    ) -> bool | str:
        """Refuse when queued what ComfyUI lets pass: a NaN, and a range that ends before it begins.

        ComfyUI compares with no limits what is named here, so that this does. What comes from a link is None.
        """
        given = {"threshold": threshold, "cache_budget_gb": cache_budget_gb}
        if None not in (start_percent, end_percent):  # else it shows at execution
            given.update(start_percent=start_percent, end_percent=end_percent)
        try:
            Config(**{name: value for name, value in given.items() if value is not None})
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def execute(cls, model, method: str = next(iter(METHODS)), **settings) -> io.NodeOutput:
        node_id, nodes = cls.hidden.unique_id, cls.hidden.dynprompt
        shown_id = nodes.get_display_node_id(node_id) if nodes else node_id
        return io.NodeOutput(apply_foresight(model, METHODS[method](**settings), node_id, shown_id))

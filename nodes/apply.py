"""The main node."""

from comfy_api.latest import io

from ..adapters.comfyui import apply_foresight
from ..foresight import ForesightConfig

CATEGORY = "model/patch/foresight"


def _widget(kind, name: str, tooltip: str, **options):
    """A widget whose default and limits are those of the setting of the same name."""
    return kind.Input(name, tooltip=tooltip, **ForesightConfig.limits(name), **options)


class ForesightApply(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ForesightApply",
            display_name="Foresight",
            category=CATEGORY,
            description="Makes video models faster: transformer blocks whose output barely changes between steps are reused, decided "
            "per block while the video is made. Put it between the model loader (after LoRAs) and the sampler. "
            "In workflows with two models (Wan 2.2), use one on each.",
            search_aliases=[
                "cache",
                "teacache",
                "easycache",
                "magcache",
                "speed up",
                "faster",
                "block reuse",
                "layer reuse",
            ],
            is_experimental=True,
            inputs=[  # saved workflows store widgets by position: only ever append
                io.Model.Input("model", tooltip="The video model to make faster."),
                _widget(
                    io.Int,
                    "warmup_steps",
                    "Steps computed in full first, while each block's usual change is measured. 0 = 15 % of the run, at least 3.",
                ),
                _widget(
                    io.Float,
                    "threshold",
                    "A block is reused while its change is at most this multiple of its change during warmup (gamma in the paper). "
                    "Higher is faster and drifts more. 0 = off, the exact plain result.",
                ),
                _widget(
                    io.Int,
                    "reuse_interval",
                    "Every n-th evaluation after warmup is computed in full (R in the paper); those between may reuse. "
                    "Higher is faster. 1 = off.",
                ),
                _widget(
                    io.Float, "start_percent", "Before this share of sampling everything is computed.", advanced=True
                ),
                _widget(io.Float, "end_percent", "After this share of sampling everything is computed.", advanced=True),
                _widget(
                    io.Combo,
                    "cache_device",
                    "Where a stored hidden state waits between its evaluations: on the GPU, or in RAM. auto = GPU.",
                    advanced=True,
                ),
                _widget(
                    io.Float,
                    "cache_budget_gb",
                    "Most memory (GiB) for stored features; a run that needs more is computed in full and says so. "
                    "0 = half of what is free once the model is loaded.",
                    advanced=True,
                ),
            ],
            outputs=[io.Model.Output(tooltip="The model, with block reuse in its sampler runs.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, start_percent, end_percent) -> bool | str:
        try:
            ForesightConfig(start_percent=start_percent, end_percent=end_percent)
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def execute(cls, model, **settings) -> io.NodeOutput:
        return io.NodeOutput(apply_foresight(model, ForesightConfig(**settings), cls.hidden.unique_id))

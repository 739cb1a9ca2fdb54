"""What Foresight did, as outputs: a plot, a table, figures, and a JSON file."""

import json
from pathlib import Path

import folder_paths
import torch
from comfy_api.latest import io, ui

from ..foresight.hosts.comfyui import runs_on
from ..foresight.hosts.comfyui.timer import apply_timer, seconds_on
from ..foresight.report import figures, plot
from .apply import CATEGORY

_NOTHING = (
    "Foresight did not run on this model: it is bypassed, off (threshold 0 or reuse_interval 1), or on another line."
)


def image_of(pixels) -> torch.Tensor:
    """A plot (H, W, 3), uint8, as an IMAGE (1, H, W, 3)."""
    return torch.from_numpy(pixels.copy()).float().div(255)[None]


def samplers_of(hidden) -> set[str] | None:
    """Ids of the prompt's nodes, so that figures leave out samplers that were deleted; None where they are unknown."""
    return set(hidden.prompt) if hidden.prompt else None


class ForesightReport(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ForesightReport",
            display_name="Foresight Report",
            category=CATEGORY,
            description="What Foresight did in the sampler runs of a model: a map of reused blocks, a table, "
            "the measured figures, and a JSON file in the output folder. The latent passes through, so that it runs "
            "after sampling.",
            search_aliases=["cache statistics", "reuse map", "speed-up", "benchmark"],
            is_experimental=True,
            is_output_node=True,
            inputs=[
                io.Model.Input("model", tooltip="The MODEL that comes out of Foresight and goes to the sampler."),
                io.Latent.Input("latent", tooltip="The sampler's result. With two samplers, the last one's."),
                io.String.Input(
                    "filename_prefix",
                    default="foresight/report",
                    tooltip="Of the JSON file, in the output folder. Empty writes none.",
                ),
            ],
            outputs=[
                io.Latent.Output(tooltip="The latent, unchanged."),
                io.Image.Output(
                    "map", tooltip="Blocks x evaluations: computed, reused, and how close a computed one was."
                ),
                io.String.Output("text", tooltip="The figures as a table."),
                io.Float.Output(
                    "speedup",
                    display_name="estimated speed-up",
                    tooltip="From the measured times of evaluations with and without reuse; 1 = none.",
                ),
                io.Float.Output("reuse_ratio", display_name="reuse ratio", tooltip="Reused share of all block calls."),
                io.Float.Output(
                    "seconds_full",
                    display_name="seconds full",
                    tooltip="Measured median of an evaluation without reuse.",
                ),
                io.Float.Output(
                    "seconds_reuse",
                    display_name="seconds reuse",
                    tooltip="Measured median of an evaluation with reuse; 0 = none.",
                ),
                io.Float.Output(
                    "memory_gb", display_name="memory GiB", tooltip="Most memory that stored features held."
                ),
            ],
            hidden=[io.Hidden.prompt],
        )

    @classmethod
    def execute(cls, model, latent, filename_prefix: str) -> io.NodeOutput:
        runs = runs_on(model, samplers_of(cls.hidden))
        named = {f"sampler {run['sampler_id'] or n}, run {n}": run for n, run in enumerate(runs, 1)}
        if len(runs) == 1:
            named = {"run": runs[0]}
        shown = {name: run for name, run in named.items() if run["total"]}
        if shown:
            map_image, text = image_of(plot.block_map(shown, "Foresight: reused blocks")), figures.table(named)
        else:
            text = figures.table(named) if runs else _NOTHING
            map_image = image_of(plot.note(text))
        sums = figures.totals(runs)
        saved = write(figures.report_file(runs), filename_prefix) if filename_prefix and runs else None
        message = text if saved is None else f"{text}\n\nsaved as {saved}"
        return io.NodeOutput(
            latent,
            map_image,
            text,
            sums["estimated_speedup"],
            sums["reuse_ratio"],
            sums["seconds_full"],
            sums["seconds_reuse"],
            sums["peak_bytes"] / 2**30,
            ui={**ui.PreviewImage(map_image, cls=cls).as_dict(), "text": [message]},
        )


def write(report: dict, prefix: str) -> str:
    """Save a report under the next free number; its path in the output folder."""
    root = folder_paths.get_output_directory()
    folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(prefix, root)
    path = Path(folder) / f"{name}_{counter:05}_.json"
    path.write_text(json.dumps(report, indent=1) + "\n")
    return (Path(subfolder) / path.name).as_posix()


class ForesightTimer(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ForesightTimer",
            display_name="Foresight Timer",
            category=CATEGORY,
            description="Measures how long the sampler runs of this model take. Put one on the plain line and one on "
            "the line with Foresight, and read both with Measured Speed-up.",
            search_aliases=["benchmark", "stopwatch", "sampling time", "measure"],
            is_experimental=True,
            inputs=[io.Model.Input("model", tooltip="Any model; with Foresight, after it.")],
            outputs=[io.Model.Output(tooltip="The same model, timed.")],
        )

    @classmethod
    def execute(cls, model) -> io.NodeOutput:
        return io.NodeOutput(apply_timer(model))


class ForesightSpeedup(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ForesightSpeedup",
            display_name="Measured Speed-up",
            category=CATEGORY,
            description="Measured sampling seconds of two timed models and their ratio, on this machine. The latents "
            "pass through, so that it runs after both samplers.",
            search_aliases=["benchmark", "compare speed", "timing"],
            is_experimental=True,
            is_output_node=True,
            inputs=[
                io.Model.Input("plain_model", tooltip="The plain line's MODEL, after its Foresight Timer."),
                io.Latent.Input("plain_latent", tooltip="The plain sampler's result."),
                io.Model.Input(
                    "foresight_model", tooltip="The other line's MODEL, after Foresight and its Foresight Timer."
                ),
                io.Latent.Input("foresight_latent", tooltip="The other sampler's result."),
            ],
            outputs=[
                io.Latent.Output("plain", tooltip="The plain latent, unchanged."),
                io.Latent.Output("foresight", tooltip="The other latent, unchanged."),
                io.String.Output("text", tooltip="Both times and the speed-up in one line."),
                io.Float.Output("speedup", display_name="measured speed-up", tooltip="Plain seconds over Foresight's."),
            ],
            hidden=[io.Hidden.prompt],
        )

    @classmethod
    def execute(cls, plain_model, plain_latent, foresight_model, foresight_latent) -> io.NodeOutput:
        samplers = samplers_of(cls.hidden)
        plain, fast = (sum(seconds_on(model, samplers)) for model in (plain_model, foresight_model))
        if not plain or not fast:
            raise ValueError(
                f"the {'plain' if not plain else 'other'} model has not been sampled since it was timed: connect the "
                "sampler to the Foresight Timer's MODEL, and its LATENT to this node"
            )
        text = f"plain {plain:.2f} s, Foresight {fast:.2f} s: {plain / fast:.2f}x measured"
        return io.NodeOutput(plain_latent, foresight_latent, text, plain / fast, ui={"text": [text]})

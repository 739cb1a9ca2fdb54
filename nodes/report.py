"""What Foresight did, as outputs: a plot, a table, figures, and a JSON file."""

import contextlib
import json
from pathlib import Path

import folder_paths
import torch
from comfy_api.latest import io

from ..foresight.hosts.comfyui import runs_on
from ..foresight.hosts.comfyui.prompts import Present
from ..foresight.hosts.comfyui.workers import newest_run_in
from ..foresight.report import figures, plot
from .common import CATEGORY, RAY_ACTORS, image_of, present_in, shown

_NOTHING = (
    "Foresight did not run on this model: it is bypassed, off (threshold 0 or reuse_interval 1), or on another line;\n"
    "or ComfyUI had the sampler's result in its cache, and another seed shows a run."
)

_OUTPUTS = [  # saved workflows store links by position: only ever append
    (io.Latent, None, None, "The latent, unchanged."),
    (io.Image, "map", None, "What was computed and what was left out, by evaluation; with paper also by block."),
    (io.String, "text", None, "The figures as a table."),
    (io.Float, "speedup", "estimated speed-up",
     "From the measured times of evaluations with and without reuse, with validate from their count; 1 = none."),
    (io.Float, "reuse_ratio", "reuse ratio",
     "The share that was left out: of the evaluations, with paper of the blocks."),
    (io.Float, "seconds_full", "seconds full", "Measured median of an evaluation without reuse."),
    (io.Float, "seconds_reuse", "seconds reuse", "Measured median of an evaluation with reuse; 0 = none."),
    (io.Float, "memory_gb", "memory GiB", "Most memory that stored tensors held."),
]  # fmt: skip


class ForesightReport(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ForesightReport",
            display_name="Foresight Report",
            category=CATEGORY,
            description="What Foresight did in the sampler runs of a model: a map of what was computed and what was "
            "left out, a table with the plan, the measured figures, and a JSON file in the output folder. The latent "
            "passes through, so that it runs after sampling.",
            search_aliases=["cache statistics", "reuse map", "speed-up", "benchmark"],
            is_output_node=True,
            inputs=[
                io.MultiType.Input(
                    "model",
                    [io.Model, RAY_ACTORS],
                    tooltip="The MODEL that comes out of Foresight and goes to the sampler. Of raylight's RAY_ACTORS "
                    "the first worker's newest run is shown.",
                ),
                io.Latent.Input("latent", tooltip="The sampler's result. With two samplers, the last one's."),
                io.String.Input(
                    "filename_prefix",
                    default="foresight/report",
                    tooltip="Of the JSON file, in the output folder. Empty writes none.",
                ),
            ],
            outputs=[
                kind.Output(name, display_name=display_name, tooltip=tooltip)
                for kind, name, display_name, tooltip in _OUTPUTS
            ],
            hidden=[io.Hidden.dynprompt],
        )

    @classmethod
    def execute(cls, model, latent, filename_prefix: str) -> io.NodeOutput:
        ray = isinstance(model, dict)
        present = Present() if ray else present_in(cls.hidden)
        try:
            runs = newest_run_in(model) if ray else runs_on(model, present)
            sums, (text, map_image, message) = figures.totals(runs), _once(present, runs, filename_prefix)
        except Exception as error:  # a worker is lost, say, or has another version: the video is there
            sums = figures.totals([])
            text, map_image, message = draw({}, "", f"no figures, the latent is passed on: {error}")
        return io.NodeOutput(
            latent,
            map_image,
            text,
            sums["estimated_speedup"],
            sums["reuse_ratio"],
            sums["seconds_full"],
            sums["seconds_reuse"],
            sums["peak_bytes"] / 2**30,
            ui=shown(map_image, message, cls),
        )


_drawn: dict[tuple, tuple[str, torch.Tensor, str]] = {}  # the newest of `draw`


def _once(present: Present, runs: list[dict], filename_prefix: str) -> tuple[str, torch.Tensor, str]:
    """`draw`, but once for all latents of a list: the node is executed for each, with the same runs behind them."""
    named = named_runs(runs, present)
    key = present.prompt_id, filename_prefix, *((name, run.get("run")) for name, run in named.items())
    if key not in _drawn or present.prompt_id is None:
        _drawn.clear()
        _drawn[key] = draw(named, filename_prefix)
    return _drawn[key]


def draw(named: dict[str, dict], filename_prefix: str, nothing: str = _NOTHING) -> tuple[str, torch.Tensor, str]:
    """The table, the map, and what the node shows: the table, and where the report was saved.

    Args:
        nothing: The text where there are no runs.
    """
    runs = list(named.values())
    plotted = {name: run for name, run in named.items() if run["total"]}
    text = figures.table(named) if runs else nothing
    map_image = image_of(
        plot.run_map(plotted, "Foresight: what was computed and what was left out") if plotted else plot.note(text)
    )
    message = f"{text}\n\n{write(figures.report_file(runs), filename_prefix)}" if filename_prefix and runs else text
    return text, map_image, message


def named_runs(runs: list[dict], present: Present) -> dict[str, dict]:
    """Runs by what they are called in the table; those that the cache spared the present prompt say so."""
    named = {}
    for n, run in enumerate(runs, 1):
        name = "run" if len(runs) == 1 else f"sampler {run['sampler_id'] or n}, run {n}"
        named[f"{name} (earlier prompt)" if present.earlier(run["prompt_id"]) else name] = run
    return named


def write(report: dict, prefix: str) -> str:
    """Save a report under the next free number, and say where, or why not: an error would end a finished prompt."""
    path, text = None, json.dumps(report, indent=1) + "\n"
    try:
        root = folder_paths.get_output_directory()
        folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(prefix, root)
        path = Path(folder) / f"{name}_{counter:05}_.json"
        path.write_text(text)
    except Exception as error:  # the disk is full, say, or the prefix leads out of the folder
        if path is not None:
            with contextlib.suppress(OSError, ValueError):
                path.unlink()  # half a report
        return f"the report was not saved, the latent is passed on: {error}"
    return f"saved as {(Path(subfolder) / path.name).as_posix()}"

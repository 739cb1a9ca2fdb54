"""Measured sampling seconds, and the speed-up between two models."""

from comfy_api.latest import io

from ..foresight.hosts.comfyui.prompts import Present
from ..foresight.hosts.comfyui.timer import apply_timer, seconds_on, share_a_timer
from .common import CATEGORY, present_in


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
            inputs=[io.Model.Input("model", tooltip="Any model; with Foresight, after it.")],
            outputs=[io.Model.Output(tooltip="The same model, timed.")],
            not_idempotent=True,  # else ComfyUI's cache gives it what a node like it gave, with that one's id
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, model) -> io.NodeOutput:
        return io.NodeOutput(apply_timer(model, cls.hidden.unique_id))


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
                io.String.Output("text", tooltip="Both times and the speed-up, or why there is none."),
                io.Float.Output(
                    "speedup",
                    display_name="measured speed-up",
                    tooltip="Plain seconds over Foresight's; 0 = not measured.",
                ),
            ],
            hidden=[io.Hidden.dynprompt],
        )

    @classmethod
    def execute(cls, plain_model, plain_latent, foresight_model, foresight_latent) -> io.NodeOutput:
        times, texts = zip(
            *measured_lines(plain_model, foresight_model, present_in(cls.hidden, strictly=True)), strict=True
        )
        speedup = times[0] / times[1] if all(times) else 0.0
        text = f"{', '.join(texts)}: {speedup:.2f}x measured" if speedup else "\n".join(("no speed-up:", *texts))
        return io.NodeOutput(plain_latent, foresight_latent, text, speedup, ui={"text": [text]})


def measured_lines(plain, other, present: Present) -> list[tuple[float, str]]:
    """Seconds of each of two lines, 0 where none were measured, and what there is to say."""
    if share_a_timer(plain, other):
        why = "it has the other line's Foresight Timer, which counts both: put one on each line, behind where they part"
        return [(0.0, f"{name}: {why}") for name in ("plain", "Foresight")]
    return [_measured(name, model, present) for name, model in (("plain", plain), ("Foresight", other))]


def _measured(name: str, model, present: Present) -> tuple[float, str]:
    """The same of one line; an error would end a finished prompt."""
    try:
        runs = seconds_on(model, present)
    except ValueError as error:  # no timer on it
        return 0.0, f"{name}: {error}"
    if not runs:
        return 0.0, (
            f"{name}: not sampled since it was timed. Connect the sampler to the Foresight Timer's MODEL, and its "
            "result to this node; if they are, ComfyUI had the result in its cache, and another seed gives a time"
        )
    seconds, earlier = sum(seconds for _, seconds in runs), [present.earlier(sampler.prompt_id) for sampler, _ in runs]
    when = f" ({'' if all(earlier) else 'partly '}of an earlier prompt)" if any(earlier) else ""
    return seconds, f"{name} {seconds:.2f} s{when}"

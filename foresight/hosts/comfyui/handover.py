"""What a sampler run hands over to the one that goes on from its latent: Wan 2.2 samples a video with two models.

Nobody loses by it. A run leaves its last steps open only where the prompt says that its latent goes to one place, which
is a KSamplerAdvanced that goes on from it with Foresight at the same settings (`following`). What it leaves is kept
here, with the latent to compare, until the next run with Foresight that does not leave its own end open, whether that
fits or not, and no longer than the prompt. ComfyUI executes each prompt in an asyncio task of its own, which says when
it is over.
"""

import asyncio
import dataclasses
from collections.abc import Hashable
from dataclasses import dataclass

import torch
from comfy_execution.graph_utils import is_link

from ...engine import METHODS, Config
from ...engine.stages import Stage
from .prompts import executing

SAMPLER, FORESIGHT = "KSamplerAdvanced", "ForesightApply"
ALIKE = "steps", "cfg", "sampler_name", "scheduler"
SAME_LEVEL = 1e-4  # relative
SAME_LATENT = 5e-3  # relative; a latent may be rounded to bf16 on its way
ENOUGH = 2  # steps that the next run has at least
_DEFAULTS = {f.name: f.default for f in dataclasses.fields(Config)}  # a prompt may leave them out


@dataclass(eq=False)
class _Left:
    """What a run has left: `engine.Run.left`, and where and under which settings it ended."""

    known: object
    latent: torch.Tensor
    level: float
    whole: int
    settings: Hashable


_left: dict[asyncio.Task, list[_Left]] = {}  # several only where a node samples a list of latents


class Video:
    """A run of a guider among those that sample the same video.

    Args:
        config: The user's settings.
        guider, sampler: ComfyUI's objects.
        masked: Only a part of the latent is sampled; then nothing is handed over.
    """

    def __init__(self, config: Config, guider: object, sampler: object, masked: bool):
        function, options = getattr(sampler, "sampler_function", sampler), getattr(sampler, "extra_options", {})
        config = dataclasses.replace(config, validate=False)  # which changes nothing of a run
        self._settings = config, type(guider), getattr(guider, "cfg", None), function, repr(options), masked
        self._masked, self._whole = masked, None

    def stage(self, noise: torch.Tensor, latent: torch.Tensor, sigmas: torch.Tensor) -> Stage:
        """What the prompt and the run before say of the one that begins, which takes away what is kept for it."""
        task = _task()
        kept = _left.pop(task, [])
        left = next((left for left in kept if self._fits(left, noise, latent, sigmas)), None)
        if task is not None and not self._masked and float(sigmas[-1]) > 0 and left is None:
            self._whole = following(_nodes(), executing().node_id)
        others = [other for other in kept if other is not left]
        if others and (left is not None or self._whole is not None):
            _left[task] = others
        if left is not None:
            return Stage(before=left.known, whole=left.whole)
        return Stage(goes_on=self._whole is not None, whole=self._whole)

    def _fits(self, left: _Left, noise: torch.Tensor, latent: torch.Tensor, sigmas: torch.Tensor) -> bool:
        if left.settings != self._settings or left.latent.shape != latent.shape or torch.count_nonzero(noise):
            return False
        if abs(float(sigmas[0]) - left.level) > SAME_LEVEL * left.level:
            return False
        before = left.latent.to(latent.device, latent.dtype)
        return bool((latent - before).norm() <= SAME_LATENT * before.norm())

    def leave(self, known: object, latent: torch.Tensor, sigmas: torch.Tensor) -> None:
        """Keep what the run that has ended knows for the next one of the same prompt."""
        task = _task()
        if known is not None and task is not None:
            task.add_done_callback(_drop)
            left = _Left(known, latent.detach().clone(), float(sigmas[-1]), self._whole, self._settings)
            _left[task] = [*_left.get(task, []), left]


def _drop(task: asyncio.Task) -> None:
    _left.pop(task, None)


def _task() -> asyncio.Task | None:
    """What executes the prompt; None in a script, where nobody would say when it is over."""
    try:
        return asyncio.current_task()
    except RuntimeError:
        return None


def _nodes():
    """ComfyUI's record of the nodes of the prompt that it executes (DYNPROMPT), None where there is none."""
    try:
        from comfy_execution.progress import get_progress_state
    except ImportError:
        return None
    state = get_progress_state()
    return state.dynprompt if state.prompt_id == executing().prompt_id else None


def following(nodes, sampler_id: str | None) -> int | None:
    """Steps of the whole, if a sampler's latent goes to a second stage with Foresight and nowhere else; else None."""
    if nodes is None or sampler_id is None or not nodes.has_node(sampler_id):
        return None
    users = [
        (name, nodes.get_node(node_id))
        for node_id in nodes.all_node_ids()
        for name, value in nodes.get_node(node_id).get("inputs", {}).items()
        if is_link(value) and value[0] == sampler_id
    ]
    this = nodes.get_node(sampler_id)
    if len(users) != 1 or users[0][0] != "latent_image" or not _goes_on(this, users[0][1]):
        return None
    settings = [_settings(nodes, sampler) for sampler in (this, users[0][1])]
    return this["inputs"]["steps"] if settings[0] is not None and settings[0] == settings[1] else None


def _goes_on(first: dict, second: dict) -> bool:
    """Whether the second sampler begins where the first ends, in the same way; links to numbers are not followed."""
    if {first.get("class_type"), second.get("class_type")} != {SAMPLER}:
        return False
    one, other = first["inputs"], second["inputs"]
    steps = one.get("steps"), one.get("end_at_step"), other.get("start_at_step"), other.get("end_at_step")
    if not all(isinstance(n, int) for n in steps) or any(one.get(name) != other.get(name) for name in ALIKE):
        return False
    whole, end, start, last = steps
    noise = one.get("return_with_leftover_noise"), other.get("add_noise")
    return noise == ("enable", "disable") and start == end <= min(whole, last) - ENOUGH


def _settings(nodes, sampler: dict) -> dict | None:
    """The settings of the Foresight on a sampler's model; None where there is none."""
    seen, node = set(), sampler
    while is_link(link := node.get("inputs", {}).get("model")) and link[0] not in seen and nodes.has_node(link[0]):
        seen.add(link[0])
        node = nodes.get_node(link[0])
        if node.get("class_type") == FORESIGHT:
            given = {name: value for name, value in node["inputs"].items() if name != "model"}
            return {"method": next(iter(METHODS)), **_DEFAULTS, **given, "validate": False}
    return None

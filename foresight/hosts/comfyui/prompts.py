"""What ComfyUI executes, and which runs of a model belong to it.

A loop's node makes copies of the nodes inside it while the prompt runs; their ids begin with that of their maker:
"20.0.0.1" and "20.0.0.1.0.0.5" were made by "20" and "20.0.0.1".
"""

from typing import Generic, NamedTuple, TypeVar

from comfy_execution.graph_utils import is_link
from comfy_execution.utils import get_executing_context

SAMPLERS = 256  # of earlier prompts, that one model remembers; a script may give each prompt node ids of its own
OUTSIDE = 32  # runs that are kept of a model which is sampled outside a prompt, in a script

T = TypeVar("T")


class Running(NamedTuple):
    """A prompt, and the node of it that is executed; both None outside a prompt."""

    prompt_id: str | None
    node_id: str | None


def executing() -> Running:
    """What ComfyUI executes now."""
    found = get_executing_context()
    return Running(found.prompt_id, found.node_id) if found else Running(None, None)


class Present:
    """The prompt of a node that shows figures: it says which runs are behind what the prompt has made.

    Args:
        nodes: ComfyUI's record of the prompt's nodes and their copies (DYNPROMPT); None where every run counts.
        prompt_id: Of that prompt.
    """

    def __init__(self, nodes=None, prompt_id: str | None = None):
        self._nodes, self.prompt_id = nodes, prompt_id
        makers = map(nodes.get_parent_node_id, nodes.all_node_ids()) if nodes else ()
        self._makers = {maker for maker in makers if maker is not None}

    def earlier(self, prompt_id: str | None) -> bool:
        """Whether a run of that prompt was not one of this prompt."""
        return prompt_id != self.prompt_id

    def counts(self, sampler: Running, source_id: str | None = None) -> bool:
        """Whether a run is the one behind its sampler's present result.

        A sampler that does not run in this prompt has its result from ComfyUI's cache: its last run counts as long as
        the sampler is there, or its maker, which has then made nothing anew, and as long as the model goes to it.

        Args:
            sampler: Which one ran, and in which prompt.
            source_id: The node that the model came from; None where that is unknown.
        """
        if self._nodes is None or sampler.node_id is None or not self.earlier(sampler.prompt_id):
            return True
        shown = sampler.node_id
        while shown and not self._nodes.has_node(shown):
            shown = shown.rpartition(".")[0]
        if not shown or (shown != sampler.node_id and shown in self._makers):
            return False
        return source_id is None or not self._nodes.has_node(source_id) or self._leads(source_id, shown)

    def _leads(self, source_id: str, node_id: str) -> bool:
        """Whether links lead from one node to another."""
        waiting, seen = [node_id], set()
        while waiting:
            node_id = waiting.pop()
            if node_id == source_id:
                return True
            if node_id not in seen and self._nodes.has_node(node_id):
                seen.add(node_id)
                inputs = self._nodes.get_node(node_id).get("inputs", {}).values()
                waiting += [value[0] for value in inputs if is_link(value)]
        return False


class Newest(Generic[T]):
    """What the runs of one model left: of each sampler that of its newest prompt. It lives as long as the model.

    Args:
        source_id: The node that the model comes from.
    """

    def __init__(self, source_id: str | None = None):
        self._source_id = source_id
        self._left: dict[str | None, tuple[Running, list[T]]] = {}

    def add(self, sampler: Running, item: T) -> None:
        """A run of this sampler left `item`."""
        known, items = self._left.get(sampler.node_id, (None, []))
        if known != sampler:
            self._left.pop(sampler.node_id, None)  # it comes last now
            items = []
        elif sampler.prompt_id is None:
            items = items[1 - OUTSIDE :]
        self._left[sampler.node_id] = sampler, [*items, item]
        oldest = next(iter(self._left))
        if len(self._left) > SAMPLERS and self._left[oldest][0].prompt_id != sampler.prompt_id:
            self._left.pop(oldest)

    def of(self, present: Present) -> list[tuple[Running, T]]:
        """What belongs to a prompt, oldest first. All else is dropped: no later prompt could show it."""
        self._left = {
            node_id: (sampler, items)
            for node_id, (sampler, items) in self._left.items()
            if present.counts(sampler, self._source_id)
        }
        return [(sampler, item) for sampler, items in self._left.values() for item in items]

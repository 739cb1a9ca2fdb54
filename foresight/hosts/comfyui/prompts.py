"""What ComfyUI executes, and which runs of a model belong to it.

A loop's node makes copies of the nodes inside it while the prompt runs; their ids begin with that of their maker:
"20.0.0.1" and "20.0.0.1.0.0.5" were made by "20" and "20.0.0.1".
"""

import hashlib
import sys
import weakref
from typing import Generic, NamedTuple, TypeVar

from comfy_execution.graph_utils import is_link
from comfy_execution.utils import get_executing_context

SAMPLERS = 256  # of earlier prompts, that one model remembers; a script may give each prompt node ids of its own
OUTSIDE = 32  # runs that are kept of a model which is sampled outside a prompt, in a script

T = TypeVar("T")


class Running(NamedTuple):
    """A prompt, and the node of it that is executed; both None outside a prompt.

    Attributes:
        nodes: ComfyUI's record of the prompt's nodes and their copies (DYNPROMPT), if there is one. It is made anew
            whenever a prompt is executed, which an id is not: a program may send the same one again.
    """

    prompt_id: str | None
    node_id: str | None
    nodes: weakref.ref | None = None


def executing() -> Running:
    """What ComfyUI executes now."""
    found = get_executing_context()
    if not found:
        return Running(None, None)
    progress = sys.modules.get("comfy_execution.progress")  # the server has it; importing it here would take long
    state = progress.get_progress_state() if progress is not None else None
    known = state is not None and state.prompt_id == found.prompt_id
    return Running(found.prompt_id, found.node_id, weakref.ref(state.dynprompt) if known else None)


def signature(nodes, node_id: str) -> str:
    """What a node's result goes by: its class and inputs, and those of all nodes that lead to it, whatever their ids.

    A result that comes from ComfyUI's cache was made under the same one.

    Args:
        nodes: DYNPROMPT.
    """
    known, opened, waiting = _known.setdefault(nodes, {}), set(), [node_id]
    while waiting:
        found = waiting[-1]
        if found in known:
            waiting.pop()
            continue
        node = nodes.get_node(found) if nodes.has_node(found) else {}
        inputs = sorted(node.get("inputs", {}).items())
        if found not in opened:  # those that lead to it first
            opened.add(found)
            waiting += [value[0] for _, value in inputs if is_link(value) and value[0] not in opened]
            continue
        rows = [
            (name, known.get(value[0]), value[1]) if is_link(value) else (name, _plain(value)) for name, value in inputs
        ]
        text = repr((node.get("class_type"), rows))
        known[waiting.pop()] = hashlib.blake2b(text.encode(errors="replace"), digest_size=16).hexdigest()
    return known[node_id]


_known: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()  # by DYNPROMPT and node; loops make many, one by one


def _plain(value: object, depth: int = 8) -> object:
    """A value in what has one representation: what a node has expanded to may have any object for one."""
    if isinstance(value, (list, tuple)) and depth:
        return [_plain(x, depth - 1) for x in value]
    if isinstance(value, dict) and depth:
        return sorted([(str(_plain(key, 1)), _plain(x, depth - 1)) for key, x in value.items()], key=lambda row: row[0])
    return value if isinstance(value, (str, bytes, int, float, bool, type(None))) else type(value).__name__


class Present:
    """The prompt of a node that shows figures: it says which runs are behind what the prompt has made.

    Args:
        nodes: ComfyUI's record of the prompt's nodes and their copies (DYNPROMPT); None where every run counts.
        prompt_id: Of that prompt.
        asking: Id of that node; of an earlier prompt only what leads to it counts. None: whatever counts for any.
        strictly: Of this prompt, too. Else what else has been sampled by then counts with it.
    """

    def __init__(self, nodes=None, prompt_id: str | None = None, asking: str | None = None, strictly: bool = False):
        self._nodes, self.prompt_id, self._asking, self._strictly = nodes, prompt_id, asking, strictly
        makers = map(nodes.get_parent_node_id, nodes.all_node_ids()) if nodes else ()
        self._makers = {maker for maker in makers if maker is not None}

    def earlier(self, prompt_id: str | None) -> bool:
        """Whether a run of that prompt was not one of this prompt."""
        return prompt_id != self.prompt_id

    def counts(self, sampler: Running, made_of: dict[str, str], source_id: str | None = None) -> bool:
        """Whether a run is the one behind its sampler's present result.

        A sampler that does not run in this prompt has its result from ComfyUI's cache: its last run with the same
        signature counts as long as the sampler is there, or its maker, which has then made nothing anew, and as long
        as the model goes to it, and its result to the node that asks.

        Args:
            sampler: Which one ran, and in which prompt.
            made_of: The signatures of the sampler and its makers when it ran, by their ids; empty where unknown.
            source_id: The node that the model came from; None where that is unknown.
        """
        if self._nodes is None or sampler.node_id is None:
            return True
        shown = self._shown(sampler)
        if self._is_of(sampler):
            return not self._strictly or self._is_behind(sampler.node_id)
        if not shown or self.was_replaced(sampler, made_of) or not self._is_same(shown, made_of):
            return False
        if not self._is_behind(shown):
            return False
        return source_id is None or not self._nodes.has_node(source_id) or self._leads(source_id, shown)

    def was_replaced(self, sampler: Running, made_of: dict[str, str]) -> bool:
        """Whether the maker of a sampler has made others in its place in this prompt, so that it comes back no more."""
        if self._nodes is None or sampler.node_id is None or self._is_of(sampler):
            return False
        shown = self._shown(sampler)
        return shown != sampler.node_id and shown in self._makers and self._is_same(shown, made_of)

    def _is_of(self, sampler: Running) -> bool:
        same = sampler.nodes is None or sampler.nodes() is self._nodes
        return same and not self.earlier(sampler.prompt_id)

    def _shown(self, sampler: Running) -> str:
        """The sampler, or of its makers the nearest that is there; empty where none is."""
        shown = sampler.node_id
        while shown and not self._nodes.has_node(shown):
            shown = shown.rpartition(".")[0]
        return shown

    def _is_same(self, node_id: str, made_of: dict[str, str]) -> bool:
        if node_id not in made_of:
            return not made_of
        return signature(self._nodes, node_id) == made_of[node_id]

    def _is_behind(self, node_id: str) -> bool:
        """Whether links lead from a node, or from one that has expanded to it, to the node that asks."""
        while node_id is not None and self._asking is not None and not self._leads(node_id, self._asking):
            node_id = self._nodes.get_parent_node_id(node_id)
        return node_id is not None

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
    """What the runs of one model left: of each sampler and signature that of its newest prompt.

    It lives as long as the model. ComfyUI's cache may bring back the result of any of them.

    Args:
        source_id: The node that the model comes from.
    """

    def __init__(self, source_id: str | None = None):
        self._source_id = source_id
        self._left: dict[tuple, tuple[Running, dict[str, str], list[T]]] = {}

    def add(self, sampler: Running, item: T) -> None:
        """A run of this sampler left `item`."""
        lineage, made_of = _made_of(sampler)
        key = sampler.node_id, lineage
        known, _, items = self._left.get(key, (None, {}, []))
        if known != sampler:
            self._left.pop(key, None)  # it comes last now
            items = []
        elif sampler.prompt_id is None:
            items = items[1 - OUTSIDE :]
        self._left[key] = sampler, made_of, [*items, item]
        oldest = next(iter(self._left))
        if len(self._left) > SAMPLERS and self._left[oldest][0].prompt_id != sampler.prompt_id:
            self._left.pop(oldest)

    def of(self, present: Present) -> list[tuple[Running, T]]:
        """What belongs to a prompt, oldest first."""
        self._left = {key: left for key, left in self._left.items() if not present.was_replaced(*left[:2])}
        newest: dict[str | None, tuple[Running, list[T]]] = {}
        for sampler, made_of, items in self._left.values():
            if present.counts(sampler, made_of, self._source_id):
                newest.pop(sampler.node_id, None)
                newest[sampler.node_id] = sampler, items
        return [(sampler, item) for sampler, items in newest.values() for item in items]


def _made_of(sampler: Running) -> tuple[int, dict[str, str]]:
    """One number for the signatures of a sampler and its makers, and these, among others, by ids.

    0 and empty where no record of the nodes is there.
    """
    nodes, node_id, found = sampler.nodes and sampler.nodes(), sampler.node_id, []
    while nodes is not None and node_id is not None and nodes.has_node(node_id):
        found.append(signature(nodes, node_id))
        node_id = nodes.get_parent_node_id(node_id)
    return (hash(tuple(found)), _known[nodes]) if found else (0, {})  # all runs of a prompt share the latter

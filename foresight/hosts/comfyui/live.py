"""What a run does, for people: events for the map on the node while it runs, and the newest runs over HTTP.

The only file that touches the server.
"""

import itertools
import logging
import math
import sys
import time
from collections import deque
from collections.abc import Container

from ...engine import RunStats

EVENT = "foresight.run"
_INTERVAL = 0.1  # seconds between two events of a run

log = logging.getLogger(__name__)

# from the clock, so that a page that outlives the server takes the new server's runs for the newer ones
_numbers = itertools.count(int(time.time() * 1000))


class Watcher:
    """Tells the node's map of one run: what is new, at most ten times a second. Never raises into the sampler.

    Args:
        stats: The record of the run, which the engine goes on filling in.
        node_id: The Foresight node; None where there is none (a script).
        workflow_id: Of the workflow in the browser, which shows runs of its own nodes only.
        owner: What was left on the model, by which `runs_of` finds the run.
    """

    def __init__(
        self, stats: RunStats, node_id: str | None = None, workflow_id: str | None = None, owner: object = None
    ):
        running = executing()
        self.stats, self.owner = stats, owner
        self.about = {
            "run": next(_numbers),
            "node_id": node_id,
            "workflow_id": workflow_id,
            "prompt_id": running and running.prompt_id,
            "sampler_id": running and running.node_id,
        }
        self._sent, self._last, self._done = 0, -math.inf, False

    def update(self) -> None:
        """An evaluation has begun, so that the row of the one before is complete."""
        if not self._sent and len(self.stats.evaluations) == 1:
            _runs.append(self)
        if time.monotonic() - self._last >= _INTERVAL:
            self._send(len(self.stats.evaluations) - 1)

    def finish(self) -> None:
        """The run is over, or was cut off."""
        self._done = True
        if self not in _runs:  # it ended before its first evaluation
            _runs.append(self)
        self._send(len(self.stats.evaluations))

    def record(self) -> dict:
        """Everything as JSON types: `RunStats.to_dict()` and whose run it is."""
        return {**self.about, **self.stats.to_dict(), "done": self._done}

    def _send(self, end: int) -> None:
        try:
            server = _server()
            if server is None or self.about["node_id"] is None:
                return
            record = self.stats.to_dict(self._sent, end)
            message = {**self.about, **record, "done": self._done, "first": self._sent}
            server.send_sync(EVENT, message)
            self._sent, self._last = end, time.monotonic()
        except Exception:
            log.warning("Foresight could not show what the run does", exc_info=True)


_runs: deque[Watcher] = deque(maxlen=32)  # figures only, no tensors


def executing():
    """The prompt and node that ComfyUI executes now (prompt_id, node_id), or None."""
    try:
        from comfy_execution.utils import get_executing_context
    except ImportError:
        return None
    return get_executing_context()


def _server():
    """The server, None where ComfyUI is used as a library: importing it here would cost the first run a second."""
    module = sys.modules.get("server")
    return getattr(getattr(module, "PromptServer", None), "instance", None)


def runs() -> list[dict]:
    """The newest runs, oldest first: each `Watcher.record()`."""
    return [watcher.record() for watcher in list(_runs)]


def runs_of(owner: object, samplers: Container[str] | None = None) -> list[dict]:
    """The newest runs of one applied Foresight, oldest first: of each sampler those of its newest prompt.

    A sampler whose result ComfyUI had cached has no run in the present prompt, so its last one stands for it.

    Args:
        owner: As given to `Watcher`.
        samplers: Ids of the nodes that count; None for all.
    """
    mine = [watcher for watcher in list(_runs) if watcher.owner is owner]
    newest = {watcher.about["sampler_id"]: watcher.about["prompt_id"] for watcher in mine}
    return [
        watcher.record()
        for watcher in mine
        if newest[watcher.about["sampler_id"]] == watcher.about["prompt_id"]
        and (samplers is None or watcher.about["sampler_id"] in samplers)
    ]


def add_routes() -> None:
    """`GET /foresight/runs`: what `runs` returns, as JSON."""
    server = _server()
    if server is None:
        return
    from aiohttp import web

    @server.routes.get("/foresight/runs")
    async def answer(request):
        return web.json_response(runs())

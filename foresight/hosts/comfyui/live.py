"""What a run does, for people: events for the map on the node while it runs, and the newest runs over HTTP.

The only file that touches the server.
"""

import itertools
import logging
import math
import sys
import time
from collections import deque
from collections.abc import Callable

from ...engine import RunStats
from .prompts import Running, executing

EVENT = "foresight.run"
_INTERVAL = 0.1  # seconds between two events of a run

log = logging.getLogger(__name__)

# from the clock, so that a page that outlives the server takes the new server's runs for the newer ones
_numbers = itertools.count(int(time.time() * 1000))


class Watcher:
    """Tells the node's map of one run: what is new, at most ten times a second. Never raises into the sampler.

    Args:
        stats: The record of the run, which the engine goes on filling in.
        node_id: The Foresight node on the screen; None where there is none (a script).
        kept: Takes the run when it has begun; `prompts.Newest.add`, say.
    """

    def __init__(self, stats: RunStats, node_id: str | None, kept: Callable[[Running, "Watcher"], None]):
        self.stats, self._kept, self._running = stats, kept, executing()
        workflow_id, self._client_id = self._queued_by()
        self.about = {
            "run": next(_numbers),
            "node_id": node_id,
            "workflow_id": workflow_id,
            "prompt_id": self._running.prompt_id,
            "sampler_id": self._running.node_id,
        }
        self._sent, self._last, self._listed, self._done = 0, -math.inf, False, False

    def _queued_by(self) -> tuple[str | None, str | None]:
        try:
            return _queued_by(self._running.prompt_id)
        except Exception:
            log.warning("Foresight could not find out which workflow it runs in", exc_info=True)
            return None, None

    def update(self) -> None:
        """An evaluation has begun, so that the row of the one before is complete."""
        self._list()
        self._sent = min(self._sent, len(self.stats.evaluations) - 1)  # some may be done again
        if time.monotonic() - self._last >= _INTERVAL:
            self._send(len(self.stats.evaluations) - 1)

    def finish(self) -> None:
        """The run is over, or was cut off."""
        self._done = True
        self._list()  # it may have ended before its first evaluation
        self._send(len(self.stats.evaluations))

    def record(self) -> dict:
        """Everything as JSON types: `RunStats.to_dict()` and whose run it is."""
        return self._of(self.stats.to_dict())

    def told(self) -> dict:
        """The same for pages, which are shown their own runs before those of others; no file says who it was."""
        return {**self.record(), "client_id": self._client_id}

    def _of(self, record: dict) -> dict:
        """With whose run it is, whether it is over, and then why nothing was left out, if nothing was."""
        why = self.stats.why_nothing if self._done else None
        return {**self.about, **record, "inactive": record["inactive"] or why, "done": self._done}

    def _list(self) -> None:
        if not self._listed:
            self._listed = True
            _runs.append(self)
            try:
                self._kept(self._running, self)
            except Exception:
                log.warning("Foresight could not keep the figures of the run for the report", exc_info=True)

    def _send(self, end: int) -> None:
        try:
            server = _server()
            if server is None or self.about["node_id"] is None:
                return
            more = {"first": self._sent, "client_id": self._client_id}
            server.send_sync(EVENT, {**self._of(self.stats.to_dict(self._sent, end)), **more})
            self._sent, self._last = end, time.monotonic()
        except Exception:
            log.warning("Foresight could not show what the run does", exc_info=True)


_runs: deque[Watcher] = deque(maxlen=32)  # figures only, no tensors


def _server():
    """The server, None where ComfyUI is used as a library: importing it here would cost the first run a second."""
    module = sys.modules.get("server")
    return getattr(getattr(module, "PromptServer", None), "instance", None)


def _queued_by(prompt_id: str | None) -> tuple[str | None, str | None]:
    """Ids of the workflow and of the page that a running prompt was queued from; None where it came from elsewhere.

    The queue knows it. A node may have its result from the cache, out of another workflow.
    """
    try:
        running, _ = _server().prompt_queue.get_current_queue_volatile()
        (extra,) = [item[3] for item in running if item[1] == prompt_id]
    except (AttributeError, IndexError, TypeError, ValueError):  # no server, or no such prompt
        return None, None
    try:
        workflow_id = extra["extra_pnginfo"]["workflow"]["id"]
    except (KeyError, TypeError):  # a program's
        workflow_id = None
    return workflow_id, extra.get("client_id")


def runs() -> list[dict]:
    """The newest runs, oldest first: each `Watcher.told()`."""
    return [watcher.told() for watcher in list(_runs)]


def add_routes() -> None:
    """`GET /foresight/runs`: what `runs` returns, as JSON."""
    server = _server()
    if server is None:
        return
    from aiohttp import web

    @server.routes.get("/foresight/runs")
    async def answer(request):
        return web.json_response(runs())

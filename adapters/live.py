"""What a run did, for people.

Text on the node, and the newest runs over HTTP. The only file that touches the server.
"""

import logging
from collections import deque

from ..foresight import RunStats

log = logging.getLogger(__name__)

_runs: deque[dict] = deque(maxlen=32)  # figures only, no tensors


def _server():
    try:
        from server import PromptServer
    except ImportError:  # ComfyUI as a library, or a test
        return None
    return getattr(PromptServer, "instance", None)


def publish(stats: RunStats, node_id: str | None) -> None:
    """Show the run on its node and keep it for `GET /foresight/runs`. Never raises: the video is finished by now."""
    try:
        from comfy_execution.utils import get_executing_context

        context = get_executing_context()
        _runs.append(
            {
                "prompt_id": context and context.prompt_id,
                "node_id": node_id,
                "sampler_id": context and context.node_id,
                **stats.to_dict(),
            }
        )
        server = _server()
        if server is not None and node_id is not None:
            server.send_progress_text(stats.summary(), node_id)
    except Exception:
        log.warning("Foresight could not show what the run did", exc_info=True)


def runs() -> list[dict]:
    """The newest runs, oldest first: each `RunStats.to_dict()` with prompt_id, node_id and sampler_id."""
    return list(_runs)


def add_routes() -> None:
    """`GET /foresight/runs`: what `runs` returns, as JSON."""
    server = _server()
    if server is None:
        return
    from aiohttp import web

    @server.routes.get("/foresight/runs")
    async def answer(request):
        return web.json_response(runs())

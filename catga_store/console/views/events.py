"""Server-sent events: what a page listens to while it is visible.

An event says only that something has changed; the page is read again. That is one exchange more, and
nothing is rendered twice.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from datetime import timedelta

import anyio
from starlette.requests import Request
from starlette.responses import Response
from starlette.responses import StreamingResponse

from catga_store.console.context import ConsoleContext
from catga_store.console.context import context_of
from catga_store.console.forms import number
from catga_store.errors import CatgaStoreError

__all__ = ["stream"]

_LISTING = 5.0
"""After how many seconds a page without a flow is read again."""
_BETWEEN = 0.5
"""The seconds between two events about a flow that is written often."""
_WATCHED = timedelta(seconds=10)
"""After how long a flow is read again although its version is the same: waits, logs and parts may have
changed."""


async def stream(request: Request) -> Response:
    """Send an event whenever the page should be read again; `id` and `after` name a flow and its version."""
    context = context_of(request)
    flow_id = request.query_params.get("id", "")
    events = (
        _of_flow(context, flow_id, number(request.query_params.get("after"), "after", default=0))
        if flow_id
        else _of_time()
    )
    return StreamingResponse(
        events, media_type="text/event-stream", headers={"X-Accel-Buffering": "no"}
    )


def _event(event: str, **facts: object) -> str:
    return f"event: {event}\ndata: {json.dumps(facts)}\n\n"


async def _of_time() -> AsyncIterator[str]:
    yield ": connected\n\n"
    while True:
        await anyio.sleep(_LISTING)
        yield _event("look")


async def _of_flow(context: ConsoleContext, flow_id: str, version: int) -> AsyncIterator[str]:
    yield ": connected\n\n"
    while True:
        try:
            flow = await context.store.watch(flow_id, after=version, timeout=_WATCHED)
        except CatgaStoreError as error:  # the page says what is wrong with it
            yield _event("trouble", error=type(error).__name__)
            await anyio.sleep(_LISTING)
            continue

        if flow is None:
            yield _event("look")
        else:
            version = flow.version
            yield _event("changed", version=version, status=flow.status.name)
            await anyio.sleep(_BETWEEN)

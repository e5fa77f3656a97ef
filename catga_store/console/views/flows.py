"""The page "Flows": a listing with filters, a page at a time."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from catga_store.console.context import context_of
from catga_store.console.forms import FlowQuery
from catga_store.console.forms import number
from catga_store.console.rendering import reply
from catga_store.console.views.bulk import OPERATIONS
from catga_store.model.documents import summary_document
from catga_store.model.flows import FlowStatus

__all__ = ["show"]

_SHOWN = 50


async def show(request: Request) -> Response:
    """List flows, newest first, or by id with `id_prefix`. Costs one round trip."""
    query = request.query_params
    asked = FlowQuery.of(query)
    limit = number(query.get("limit"), "limit", default=_SHOWN)
    cursor = query.get("cursor") or None
    page = await context_of(request).store.query_flows(
        limit=limit, cursor=cursor, **asked.filters()
    )
    document = {"flows": [summary_document(flow) for flow in page], "cursor": page.cursor}
    return reply(
        request,
        "flows.html",
        document,
        asked=asked,
        limit=limit,
        operations=OPERATIONS,
        is_first=cursor is None,
        statuses=list(FlowStatus),
    )

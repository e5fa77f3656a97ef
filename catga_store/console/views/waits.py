"""The page "Waits": wait conditions, and one of them with its children."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from catga_store.console.context import context_of
from catga_store.console.forms import member
from catga_store.console.forms import number
from catga_store.console.rendering import reply
from catga_store.console.views.flow import children_of
from catga_store.errors import WaitConditionNotFoundError
from catga_store.model.documents import wait_document
from catga_store.model.waits import WaitOutcome
from catga_store.protocol.masking import shown

__all__ = ["show", "show_one"]

_SHOWN = 50


async def show(request: Request) -> Response:
    """List wait conditions, newest first; with `overdue`, those past their deadline, oldest first."""
    query = request.query_params
    store = context_of(request).store
    limit = number(query.get("limit"), "limit", default=_SHOWN)
    cursor = query.get("cursor") or None
    asked = {
        name: query[name].strip() for name in ("outcome", "parent", "overdue") if query.get(name)
    }
    if "overdue" in asked:
        waits, next_cursor = await store.get_timed_out_wait_conditions(limit=limit), None
    else:
        page = await store.query_wait_conditions(
            outcome=member(WaitOutcome, asked.get("outcome", ""), "outcome"),
            parent_flow_id=asked.get("parent"),
            limit=limit,
            cursor=cursor,
        )
        waits, next_cursor = list(page), page.cursor

    document = {"wait_conditions": [wait_document(one) for one in waits], "cursor": next_cursor}
    return reply(
        request,
        "waits.html",
        document,
        asked=asked,
        is_first=cursor is None,
        limit=limit,
        outcomes=list(WaitOutcome),
    )


async def show_one(request: Request) -> Response:
    """Show a wait condition with the results of its children. Costs one round trip."""
    context = context_of(request)
    wait_id = request.query_params.get("id", "")
    wait = await context.store.get_wait_condition(wait_id)
    if wait is None:
        message = f"wait condition {shown(wait_id)} not found: it was never set, was cleared, or has expired"
        raise WaitConditionNotFoundError(message, correlation_id=wait_id, expected=None)

    document: dict[str, Any] = {
        "wait_condition": wait_document(wait),
        "children": children_of(context, wait),
    }
    return reply(request, "wait.html", document, note=request.query_params.get("note", ""))

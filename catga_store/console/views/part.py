"""The page of one part of a flow."""

from __future__ import annotations

from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from catga_store.console.context import context_of
from catga_store.console.rendering import reply
from catga_store.console.trees import tree
from catga_store.model.documents import part_document

__all__ = ["show"]


async def show(request: Request) -> Response:
    """Show a part with its body. Costs one round trip."""
    context = context_of(request)
    flow_id, name = request.query_params.get("id", ""), request.query_params.get("name", "")
    part = await context.store.get_part(flow_id, name)
    if part is None:
        raise HTTPException(404, "this flow has no such part")

    body = context.shown(part.type_name, part.body)
    document: dict[str, Any] = {"flow_id": flow_id, **part_document(part), "body": body}
    return reply(request, "part.html", document, tree=tree(body))

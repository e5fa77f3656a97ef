"""The tags of one flow: shown in a form, one a line, and written over the version that was shown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from catga_store.console.context import context_of
from catga_store.console.forms import number
from catga_store.console.forms import tags_of
from catga_store.console.rendering import is_json
from catga_store.console.rendering import page
from catga_store.console.views.actions import check_version
from catga_store.console.views.actions import done
from catga_store.console.views.flow import found
from catga_store.core.claim_plans import is_held
from catga_store.core.conflicts import claimed_error
from catga_store.errors import ConflictError
from catga_store.errors import UsageError
from catga_store.model import stored_state
from catga_store.model.documents import summary_document
from catga_store.model.flows import FlowSnapshot
from catga_store.model.times import to_ms
from catga_store.protocol.masking import shown

__all__ = ["edit", "show"]


async def show(request: Request) -> Response:
    """Show the tags of a flow in a form. Costs one round trip."""
    flow = await found(context_of(request), request.query_params.get("id", ""))
    return _form(request, flow, None, 200)


async def edit(request: Request, fields: dict[str, Any]) -> Response:
    """Write all tags of a flow: `id` in the query, `version` and `tags` are sent.

    They are written only over the version that was edited. For another one the form is shown again, with
    what was typed and what is stored, and nothing was written.
    """
    context = context_of(request)
    flow = await found(context, request.query_params.get("id", ""))
    expected = number(str(fields.get("version") or ""), "version")
    typed = fields.get("tags")
    if typed is None:
        message = (
            "tags: expected a JSON object with string values, or lines of the form KEY=VALUE, got "
            "nothing"
        )
        raise UsageError(message)

    try:
        tags = _tags(typed)
        check_version(flow, expected)
        _check_free(flow, to_ms(context.store.now()))
        flow.tags = tags
        await context.store.update(flow)
    except (ConflictError, UsageError) as error:
        if is_json(request) or not isinstance(typed, str):
            raise

        if isinstance(error, UsageError):
            return _form(request, flow, typed, 400, problem=str(error), version=expected)

        newest = await found(context, flow.flow_id)
        return _form(request, newest, typed, 409, problem=str(error), stored=newest.tags)

    return done(request, flow.flow_id, "tagged", summary_document(flow))


def _check_free(flow: FlowSnapshot[Any], now_ms: int) -> None:
    """Raise `FlowClaimedError` for a flow that a worker holds, which could not commit any more."""
    head = stored_state.head_of(flow)
    if head is not None and is_held(head, now_ms):
        advice = "try again after that time, or release the flow first"
        raise claimed_error(flow.flow_id, head, "nothing was written", advice)


def _tags(typed: object) -> dict[str, str]:
    tags = tags_of(typed)
    for key, value in tags.items():
        if "\n" in key + value:  # the form could not show it again
            message = (
                f"tags: the key or value of the tag {shown(key)} contains a line break, so the "
                "tag cannot be edited here"
            )
            raise UsageError(message)

    return tags


def _form(
    request: Request, flow: FlowSnapshot[Any], typed: str | None, status: int, **values: Any
) -> Response:
    text = _text(flow.tags) if typed is None else typed
    shown_values: dict[str, Any] = {
        "flow_id": flow.flow_id,
        "version": flow.version,
        "text": text,
        "problem": "",
        "stored": None,
        **values,
    }
    return page(request, "tags.html", code=status, **shown_values)


def _text(tags: Mapping[str, str]) -> str:
    """Tags as lines; `UsageError` for those that no line can be."""
    for key, value in tags.items():
        if "=" in key or {"\n", "\r"} & set(key + value) or not (key + value).strip():
            message = (
                f"the tag {shown(key)} cannot be edited here, because it cannot be written as a "
                "KEY=VALUE line; use the catga-store tag command"
            )
            raise UsageError(message)

    return "".join(f"{key}={value}\n" for key, value in tags.items())

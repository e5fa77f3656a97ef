"""Actions on one flow: cancel, retry, wake, release, edit the state, fork, complete a child.

Each is a POST to an address whose query names the record. It redirects to the page of the flow, or, for the
JSON twin of the address, returns what was done.
"""

from __future__ import annotations

import json
from typing import Any

from starlette.requests import Request
from starlette.responses import RedirectResponse
from starlette.responses import Response

from catga_store.console.context import ConsoleContext
from catga_store.console.context import context_of
from catga_store.console.forms import number
from catga_store.console.rendering import address
from catga_store.console.rendering import data
from catga_store.console.rendering import is_json
from catga_store.console.rendering import page
from catga_store.console.trees import MOST_LINES
from catga_store.console.trees import difference
from catga_store.console.trees import pretty
from catga_store.console.views.flow import found
from catga_store.errors import ConflictError
from catga_store.errors import StaleFlowError
from catga_store.errors import UsageError
from catga_store.model.documents import completion_document
from catga_store.model.documents import summary_document
from catga_store.model.flows import FlowSnapshot
from catga_store.model.waits import WaitOutcome
from catga_store.protocol.masking import shown

__all__ = [
    "cancel",
    "check_version",
    "complete",
    "done",
    "edit",
    "fork",
    "release",
    "retry",
    "show_editor",
    "wake",
]


def done(request: Request, flow_id: str, note: str, document: dict[str, Any]) -> Response:
    """Return to the page of a flow with a note, or return what was done."""
    if is_json(request):
        return data(document)

    base = request.scope.get("root_path", "")
    return RedirectResponse(base + address("/flow", id=flow_id, note=note), 303)


def _target(request: Request, fields: dict[str, Any]) -> tuple[str, int | None]:
    """The flow that an action is on, and the version that its caller has seen, if it says one."""
    sent = str(fields.get("version") or "")
    return request.query_params.get("id", ""), number(sent, "version") if sent else None


async def cancel(request: Request, fields: dict[str, Any]) -> Response:
    """Cancel a flow: `id` in the query; `reason` and, to be checked, `version` are sent."""
    flow_id, version = _target(request, fields)
    reason = str(fields.get("reason", "")).strip()
    if not reason:
        message = "reason: expected text, got nothing; the reason is stored as the flow's error"
        raise UsageError(message)

    flow = await context_of(request).store.cancel_flow(flow_id, reason, version=version)
    return done(request, flow_id, "cancelled", summary_document(flow))


async def retry(request: Request, fields: dict[str, Any]) -> Response:
    """Let a flow run again that has failed or was cancelled."""
    flow_id, version = _target(request, fields)
    flow = await context_of(request).store.retry_flow(flow_id, version=version)
    return done(request, flow_id, "retried", summary_document(flow))


async def wake(request: Request, fields: dict[str, Any]) -> Response:
    """Let a flow be due now."""
    flow_id, version = _target(request, fields)
    flow = await context_of(request).store.wake_flow(flow_id, version=version)
    return done(request, flow_id, "woken", summary_document(flow))


async def release(request: Request, fields: dict[str, Any]) -> Response:
    """Take a claim away from its owner."""
    flow_id, version = _target(request, fields)
    flow = await context_of(request).store.release_flow(flow_id, version=version)
    return done(request, flow_id, "released", summary_document(flow))


def _json_of(fields: dict[str, Any], name: str) -> Any:
    """The JSON value of a field; `UsageError` if it is not JSON. A JSON request sends it as it is."""
    value = fields.get(name)
    if not isinstance(value, str):
        return value

    if not value.strip():
        return None

    try:
        return json.loads(value, parse_constant=_refuse_constant)
    except ValueError as error:
        message = (
            f"{name}: expected JSON, got text that is not JSON ({error}); enclose a string in "
            'quotation marks, such as "text"'
        )
        raise UsageError(message) from error


def _refuse_constant(text: str) -> None:
    message = f"{text} is not JSON"
    raise ValueError(message)


async def complete(request: Request, fields: dict[str, Any]) -> Response:
    """Complete a child of a wait condition: `wait` and `child` in the query, `result` or `error` sent."""
    query = request.query_params
    wait_id, child = query.get("wait", ""), query.get("child", "")
    error = str(fields.get("error") or "").strip() or None
    has_failed = bool(error) or str(fields.get("failed", "")).lower() in ("1", "true", "on")
    completion = await context_of(request).store.complete_child(
        wait_id,
        child,
        success=not has_failed,
        result=_json_of(fields, "result"),
        error=error,
    )
    if not (completion.accepted or completion.duplicate):
        if completion.outcome is WaitOutcome.PENDING:
            message = (
                f"the completion was not recorded, because wait condition {shown(wait_id)} is not "
                f"waiting for {shown(child)}"
            )
        else:
            outcome = None if completion.outcome is None else completion.outcome.name
            message = (
                "the completion was not recorded, because the wait condition has already ended "
                f"({outcome})"
            )

        raise ConflictError(message)

    document = completion_document(completion)
    note = "duplicate" if completion.duplicate else "completed"
    flow_id = query.get("flow", "")
    if flow_id or is_json(request):
        return done(request, flow_id, note, document)

    base = request.scope.get("root_path", "")
    return RedirectResponse(base + address("/wait", id=wait_id, note=note), 303)


async def fork(request: Request, fields: dict[str, Any]) -> Response:
    """Fork a flow: `id` in the query; `new_id` and, for a former version, `version` are sent."""
    context = context_of(request)
    flow_id, version = _target(request, fields)
    new_id = str(fields.get("new_id", "")).strip()
    flow = await context.store.fork(flow_id, new_id, version=version)
    return done(request, new_id, "forked", summary_document(flow))


async def show_editor(request: Request) -> Response:
    """Show the state as JSON in a form. Costs one round trip."""
    context = context_of(request)
    flow = await found(context, request.query_params.get("id", ""))
    return _editor(request, context, flow, None, 200)


def _editor(
    request: Request,
    context: ConsoleContext,
    flow: FlowSnapshot[Any],
    typed: str | None,
    status: int,
    **values: Any,
) -> Response:
    text = pretty(_editable(context, flow))
    is_known = flow.type_name in context.types
    shown_values: dict[str, Any] = {
        "flow_id": flow.flow_id,
        "version": flow.version,
        "text": typed or text,
        "problem": "",
        "lines": None,
        "type_name": flow.type_name,
        "is_known": is_known,
        **values,
    }
    return page(request, "edit.html", code=status, **shown_values)


def _editable(context: ConsoleContext, flow: FlowSnapshot[Any]) -> Any:
    """The state of a flow; `UsageError` if it cannot be written back as it would be shown."""
    reason = ""
    if isinstance(flow.state, bytes):
        reason = "it is binary data"
    elif context.shown(flow.type_name, flow.state) != flow.state:
        reason = "some of its values are hidden"
    elif pretty(flow.state).count("\n") > MOST_LINES:
        reason = "it is too long"

    if reason:
        message = f"the state of flow {shown(flow.flow_id)} cannot be edited here: {reason}"
        raise UsageError(message)

    return flow.state


def check_version(flow: FlowSnapshot[Any], expected: int) -> None:
    """Raise `StaleFlowError` if a flow has another version than its editor has seen."""
    if flow.version != expected:
        message = (
            f"flow {shown(flow.flow_id)}: expected version {expected}, but the store holds "
            f"version {flow.version}, because another caller has written the flow; nothing was "
            "written"
        )
        raise StaleFlowError(message, flow_id=flow.flow_id, expected=expected, actual=flow.version)


async def edit(request: Request, fields: dict[str, Any]) -> Response:
    """Write a state that was edited: `id` in the query, `version` and `state` are sent.

    It is written only over the version that was edited. For another one the form is shown again with what
    differs, and nothing was written. Nor is a state that its class does not take, if the console knows that.
    """
    context = context_of(request)
    flow = await found(context, request.query_params.get("id", ""))
    before = _editable(context, flow)
    expected = number(str(fields.get("version") or ""), "version")
    typed = fields.get("state")
    if "state" not in fields or typed == "":
        message = "state: expected JSON, got nothing"
        raise UsageError(message)

    text = typed if isinstance(typed, str) else pretty(typed)
    try:
        state = _json_of(fields, "state")
        context.check_state(flow, state)
    except UsageError as error:
        if is_json(request):
            raise

        return _editor(request, context, flow, text, 400, problem=str(error), version=expected)

    try:
        check_version(flow, expected)
        flow.state = state
        await context.store.update(flow)
    except ConflictError as error:
        if is_json(request):
            raise

        newest = await found(context, flow.flow_id)
        lines = difference(newest.state if newest.version != flow.version else before, state)
        return _editor(request, context, newest, text, 409, problem=str(error), lines=lines)

    return done(request, flow.flow_id, "edited", summary_document(flow))

"""The page "Flow": one flow with all that belongs to it."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from attrs import define
from attrs import frozen
from starlette.requests import Request
from starlette.responses import Response

from catga_store.console.context import ConsoleContext
from catga_store.console.context import context_of
from catga_store.console.forms import number
from catga_store.console.rendering import reply
from catga_store.console.trees import difference
from catga_store.console.trees import tree
from catga_store.core.envelope import unreadable_wait
from catga_store.core.records import readable_progress
from catga_store.errors import CorruptRecordError
from catga_store.errors import FlowNotFoundError
from catga_store.errors import UsageError
from catga_store.model.documents import children_documents
from catga_store.model.documents import diagnosis_document
from catga_store.model.documents import flow_document
from catga_store.model.documents import part_document
from catga_store.model.documents import summary_document
from catga_store.model.documents import unreadable_document
from catga_store.model.documents import version_document
from catga_store.model.flows import FlowSnapshot
from catga_store.model.progress import ForEachProgress
from catga_store.model.waits import WaitCondition
from catga_store.protocol.masking import shown

__all__ = ["children_of", "found", "show"]

_VERSIONS = 50
_ENTRIES = 50
_PARTS = 50
_CHILDREN = 200
_LOGS = ("log", "errors")
"""The logs of the timeline: the default one, and that of a worker."""
_RUNS = 400
"""How many runs of items a bar shows."""


async def found(
    context: ConsoleContext, flow_id: str, version: int | None = None
) -> FlowSnapshot[Any]:
    """Return a flow; `FlowNotFoundError` if there is none, or not this version of it."""
    flow = await context.store.get(flow_id, version=version)
    if flow is None:
        which = "" if version is None else f", version {version}"
        message = f"flow {shown(flow_id)}{which} not found: it was never created, was deleted, or has expired"
        raise FlowNotFoundError(message, flow_id=flow_id, expected=version)

    return flow


async def show(request: Request) -> Response:
    """Show a flow. Costs about eight round trips, two more for a difference between versions."""
    context = context_of(request)
    query = request.query_params
    flow_id = query.get("id", "")
    try:
        flow = await found(context, flow_id)
    except CorruptRecordError as error:
        return await _unreadable(request, context, flow_id, str(error))

    wait = await _wait_of(context, flow)
    progress, unread = await context.store._run(  # noqa: SLF001  the public operation raises for one
        readable_progress(context.store._context, flow_id)  # noqa: SLF001  as above
    )
    parts = await context.store.list_parts(flow_id, after=query.get("after") or None, limit=_PARTS)
    before = query.get("before")
    moments = await _timeline(context, flow, number(before, "before") if before else None)
    diagnosis = await context.store.diagnose(flow_id)
    state = context.shown(flow.type_name, flow.state)
    document: dict[str, Any] = flow_document(flow, wait, progress)
    document["progress"] += [unreadable_document(step, error) for step, error in unread.items()]
    document["children"] = [] if wait is None else children_of(context, wait)
    document["timeline"] = [one.document for one in moments]
    document["parts"] = [part_document(part) for part in parts]
    document["more_parts"] = parts.cursor is not None
    document["findings"] = diagnosis_document(diagnosis)["findings"]
    document["state"] = state
    versions = [one.document["version"] for one in moments if one.kind == "version"]
    compared = await _compared(context, flow_id, query.get("from"), query.get("to"))
    return reply(
        request,
        "flow.html",
        document,
        bars=[_bar(step, one) for step, one in progress.items()],
        unread_steps={step: str(error) for step, error in unread.items()},
        compared=compared,
        ended=flow.status.is_terminal,
        entries_cut=_ENTRIES
        if any(one.document.get("sequence", 0) > _ENTRIES for one in moments)
        else 0,
        moments=moments,
        next_parts=parts.cursor,
        note=query.get("note", ""),
        tree=tree(state),
        older=versions[-1] if len(versions) == _VERSIONS and versions[-1] > 1 else None,
        versions=versions,
        wait=wait,
    )


async def _unreadable(
    request: Request, context: ConsoleContext, flow_id: str, reason: str
) -> Response:
    """Show what can be read of a flow whose state cannot."""
    diagnosis = await context.store.diagnose(flow_id)
    document: dict[str, Any] = {
        **({} if diagnosis.flow is None else summary_document(diagnosis.flow)),
        "flow_id": flow_id,
        "findings": diagnosis_document(diagnosis)["findings"],
        "unreadable": reason,
    }
    return reply(
        request,
        "unreadable.html",
        document,
        ended=diagnosis.flow is None or diagnosis.flow.status.is_terminal,
        has_head=diagnosis.flow is not None,
        note=request.query_params.get("note", ""),
    )


async def _wait_of(context: ConsoleContext, flow: FlowSnapshot[Any]) -> WaitCondition | None:
    """The wait condition of a flow as it is now; the flow's own copy once that is gone."""
    copy = flow.wait_condition
    if copy is None:
        return None

    try:
        return await context.store.get_wait_condition(copy.correlation_id) or copy
    except CorruptRecordError as error:
        return unreadable_wait(copy.correlation_id, error)


def children_of(context: ConsoleContext, wait: WaitCondition) -> list[dict[str, Any]]:
    """The first children of a wait condition, with what they have reported."""
    children: list[dict[str, Any]] = []
    for one in children_documents(wait, _CHILDREN):
        if one["completed"]:
            one["result"] = context.shown("", one["result"])

        children.append(one)

    return children


@frozen
class _Moment:
    """One line of the timeline."""

    at: datetime
    kind: str
    document: dict[str, Any]
    body: Any = None


async def _timeline(
    context: ConsoleContext, flow: FlowSnapshot[Any], before: int | None
) -> list[_Moment]:
    """What the versions of a flow were and what its logs say, the newest first."""
    versions = await context.store.list_versions(flow.flow_id, before=before, limit=_VERSIONS)
    moments = [_Moment(one.updated_at, "version", version_document(one)) for one in versions]
    for log in _LOGS:
        for entry in await context.store.read_log(flow.flow_id, log, limit=_ENTRIES, reverse=True):
            body = context.shown("", entry.body)
            document = {
                "log": log,
                "sequence": entry.sequence,
                "key": entry.key,
                "at": entry.at,
                "version": entry.version,
                "body": body,
            }
            moments.append(_Moment(entry.at, "entry", document, tree(body)))

    return sorted(moments, key=lambda one: one.at, reverse=True)


@define
class _Compared:
    """The difference between two versions of a state."""

    before: int
    after: int
    lines: Any


async def _compared(
    context: ConsoleContext, flow_id: str, before: str | None, after: str | None
) -> _Compared | None:
    if not (before and after):
        return None

    numbers = number(before, "from"), number(after, "to")
    if min(numbers) < 1:
        message = f"from, to: expected version numbers of at least 1, got {min(numbers)}"
        raise UsageError(message)

    states: list[Any] = []
    for one in numbers:
        flow = await found(context, flow_id, one)
        states.append(context.shown(flow.type_name, flow.state))

    return _Compared(*numbers, difference(*states))


@frozen
class _Run:
    """Items next to each other that are alike: where in the bar they are, in per mille."""

    kind: str
    start: float
    width: float
    first: int
    last: int


@frozen
class _Bar:
    """The ForEach progress of a step as a bar of runs."""

    step: int
    processed: int
    failed: int
    runs: list[_Run]
    left_out: int


def _bar(step: int, progress: ForEachProgress) -> _Bar:
    runs: list[tuple[str, int, int]] = []
    done, failed = progress.processed_indices, progress.failed_indices
    marked = [*(("done", one) for one in done), *(("failed", one) for one in failed)]
    for kind, index in sorted(marked, key=lambda one: one[1]):
        if runs and runs[-1][0] == kind and runs[-1][2] == index - 1:
            runs[-1] = (kind, runs[-1][1], index)
        else:
            runs.append((kind, index, index))

    length = runs[-1][2] + 1 if runs else 1
    shown_runs = [
        _Run(kind, first / length * 1000, (last - first + 1) / length * 1000, first, last)
        for kind, first, last in runs[:_RUNS]
    ]
    return _Bar(step, len(done), len(failed), shown_runs, max(0, len(runs) - _RUNS))

"""Commands that read flows: `ls`, `show`, `count`."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Annotated
from typing import Any

import typer

import catga_store as cs
from catga_store.cli.exit_codes import CORRUPT
from catga_store.cli.exit_codes import NO
from catga_store.cli.exit_codes import complain
from catga_store.cli.exit_codes import guarded
from catga_store.cli.exit_codes import leave
from catga_store.cli.filters import with_filters
from catga_store.cli.output import escaped
from catga_store.cli.output import print_json
from catga_store.cli.output import print_json_list
from catga_store.cli.output import print_rows
from catga_store.cli.output import relative
from catga_store.cli.output import say
from catga_store.cli.output import when
from catga_store.cli.store_options import AsJson
from catga_store.cli.store_options import StoreOption
from catga_store.cli.store_options import open_existing
from catga_store.core.records import readable_progress
from catga_store.model.documents import flow_document
from catga_store.model.documents import part_document
from catga_store.model.documents import summary_document
from catga_store.model.documents import unreadable_document
from catga_store.model.documents import version_document
from catga_store.model.documents import wait_document
from catga_store.protocol.conversation import ask
from catga_store.protocol.keys import check_id
from catga_store.protocol.keys import flow_key
from catga_store.protocol.masking import shown
from catga_store.protocol.requests import Read

__all__ = ["SHOWN", "count", "ls", "show"]

_PAGE = 500
SHOWN = 50


@guarded
@with_filters
def ls(
    *,
    store: StoreOption = None,
    filters: dict[str, Any],
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Maximum number of flows.")] = SHOWN,
    cursor: Annotated[
        str | None,
        typer.Option(help="Continue at the cursor of an earlier listing with the same filters."),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="List all flows.")] = False,
    as_json: AsJson = False,
) -> None:
    """List flows, newest first, without their states; with `--id-prefix`, sorted by id.

    `POS` is the position, `TRIES` the number of attempts, `AGE` the time since the flow was last written.
    `--owner`, `--error` and `--attempts` are checked flow by flow, so the store may read more flows than it lists.

    `--json`: `{"flows": [{"flow_id", "type", "status", "position", "version", "revision", "created_at",
    "updated_at", "due_at", "expires_at", "owner", "attempts", "error", "tags"}, …], "cursor": text or null}`;
    each flow also has `"unreadable"`: null, or the reason why the flow cannot be read; in that case, all other
    fields except `"flow_id"` are empty or null.
    """
    left: list[str | None] = [cursor]

    def pages(opened: cs.Store) -> Iterator[cs.FlowSummary]:
        while True:
            size = _PAGE if everything else limit
            page = opened.query_flows(**filters, limit=size, cursor=left[0])
            left[0] = page.cursor
            yield from page
            if left[0] is None or not everything:
                return

    with open_existing(store) as opened:
        if as_json:
            documents = map(summary_document, pages(opened))
            print_json_list("flows", documents, lambda: {"cursor": left[0]})
            return

        columns = (*("FLOW", "TYPE", "STATUS", "POS", "TRIES", "DUE", "AGE", "OWNER", "ERROR"),)
        print_rows(columns, map(_line, pages(opened)))

    if left[0] is not None:
        complain(f"More flows match the filters; to see them, pass --all or --cursor {left[0]}")


def _line(flow: cs.FlowSummary) -> tuple[str, ...]:
    if flow.unreadable is not None:
        return (flow.flow_id, "-", "UNREADABLE", *("-",) * 5, flow.unreadable)

    return (
        flow.flow_id,
        flow.type_name or "-",
        flow.status.name,
        str(flow.position),
        str(flow.attempts or "-"),
        relative(flow.due_at),
        relative(flow.updated_at).removesuffix(" ago"),
        flow.owner or "-",
        flow.error or "",
    )


@guarded
@with_filters
def count(
    *,
    store: StoreOption = None,
    filters: dict[str, Any],
    as_json: AsJson = False,
) -> None:
    """Print the number of flows.

    `--json`: `{"count": number}`.
    """
    with open_existing(store) as opened:
        number = opened.count_flows(**filters)

    if as_json:
        print_json({"count": number})
    else:
        say(number)


@guarded
def show(
    flow_id: Annotated[str, typer.Argument(metavar="FLOW_ID")],
    *,
    store: StoreOption = None,
    history: Annotated[
        bool, typer.Option("--history", help="Also list the stored versions.")
    ] = False,
    raw: Annotated[
        bool,
        typer.Option("--raw", help="Print the stored record without decoding it."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show one flow: its stored state, its wait condition, its ForEach progress and its parts.

    `--json`: the fields of `ls`, and `"type_version"`, `"state"`, `"reports_to"`, `"wait_condition"` (the
    fields of `waits`, and `"stored"`, which is false if the flow is suspended on a condition that was cleared
    or has expired; or null), `"progress": [{"step", "version", "processed", "failed", "last"}, …]`, `"parts":
    [{"name", "version", "type", "tag", "updated_at"}, …]` (the first 100), `"more_parts"` (whether there are
    more) and, with `--history`, `"versions": [{"version", "status", "position", "owner", "error", "updated_at",
    "size"}, …]`, the newest 100. A state of bytes is `{"base64": text}`. For a flow that cannot be decoded, for
    example because its key is missing: the fields of `ls`, the parts and the versions, and `"unreadable"` (the
    reason); the command exits with status 5. A wait condition, or the progress of a step, that cannot be read
    has `"unreadable"`, too. With `--raw`: `{"head": {…}, "body": text}`; control characters in the body are
    escaped. Exits with status 1 if there is no such flow.
    """
    if raw:
        _show_raw(flow_id, store)
        return

    with open_existing(store) as opened:
        try:
            document, state = _document_of(opened, flow_id)
        except cs.CorruptRecordError as error:
            document, state = _head_of(opened, flow_id, error), None

        parts = opened.list_parts(flow_id)
        versions = opened.list_versions(flow_id) if history else []

    document["parts"] = [part_document(part) for part in parts]
    document["more_parts"] = parts.cursor is not None
    if history:
        document["versions"] = [version_document(one) for one in versions]

    if as_json:
        print_json({**document, "state": state})
    else:
        _print_flow(document, state)

    parts_of = [document, document.get("wait_condition") or {}, *document.get("progress", ())]
    if any("unreadable" in one for one in parts_of):
        raise typer.Exit(CORRUPT)


def _document_of(store: cs.Store, flow_id: str) -> tuple[dict[str, Any], Any]:
    """What `show` prints of a flow, and its state."""
    flow = store.get(flow_id)
    if flow is None:
        leave(_not_found(flow_id), NO)

    progress, unread = store._run(readable_progress(store._context, flow_id))  # noqa: SLF001  the API raises
    document = flow_document(flow, None, progress)
    document["progress"] += [unreadable_document(step, error) for step, error in unread.items()]
    document["wait_condition"] = _wait_of(store, flow)
    return document, flow.state


def _head_of(store: cs.Store, flow_id: str, error: cs.CorruptRecordError) -> dict[str, Any]:
    """What can be read of a flow without any body, and why that cannot be; the error if there is nothing."""
    for flow in store.query_flows(id_prefix=flow_id, limit=1):
        if flow.flow_id == flow_id:
            return {**summary_document(flow), "unreadable": str(error)}

    raise error


def _print_flow(document: dict[str, Any], state: Any) -> None:
    for name, value in document.items():
        if value not in (None, [], {}, False):
            say(f"{name + ':':<16}{_shown(value)}")

    if "unreadable" not in document:
        say("state:")
        print_json(state)


def _not_found(flow_id: str) -> str:
    return f"flow {shown(flow_id)} not found: it was never created, was deleted, or has expired"


def _wait_of(store: cs.Store, flow: cs.FlowSnapshot[Any]) -> dict[str, Any] | None:
    """The condition of a flow as it is now; what the flow shows is how it was when it was written."""
    shown_wait = flow.wait_condition
    if shown_wait is None:
        return None

    waits = flow.status is cs.FlowStatus.SUSPENDED
    name = (shown_wait._suspended_on if waits else None) or shown_wait.correlation_id  # noqa: SLF001  nowhere public
    try:
        stored = store.get_wait_condition(name)
    except cs.CorruptRecordError as error:
        empty = dict.fromkeys(wait_document(shown_wait))
        return {**empty, "correlation_id": name, "unreadable": str(error), "stored": True}

    if stored is not None:
        return {**wait_document(stored), "stored": True}

    gone = {**wait_document(shown_wait), "correlation_id": name, "stored": False}
    return gone if not waits else {**gone, "outcome": None, "completed": None, "version": None}


def _show_raw(flow_id: str, url: str | None) -> None:
    """Print the head and the body of a flow as the store has them."""
    key = flow_key(check_id(flow_id, "a flow id"))
    with open_existing(url) as opened:
        now_ms = opened._context.settings.now_ms()  # noqa: SLF001  no public operation reads bodies
        try:
            (record,) = opened._run(ask(Read((key,), now_ms)))  # noqa: SLF001  as above
        except cs.CorruptRecordError as error:
            print_json({"head": _head_of(opened, flow_id, error), "body": None})
            return

    if record is None:
        leave(_not_found(flow_id), NO)

    body = record.body.decode("utf-8", "backslashreplace")
    print_json({"head": record.head._asdict(), "body": escaped(body)})


def _shown(value: Any) -> str:
    if value.__class__ is list:
        return "; ".join(map(_shown, value))

    if value.__class__ is dict:
        if value.get("stored") is False:
            return (
                f"{escaped(value['correlation_id'])}, which is not in the store, because it "
                "was cleared or has expired"
            )

        given = {name: one for name, one in value.items() if one is not None and name != "stored"}
        return ", ".join(f"{name} {_shown(one)}" for name, one in given.items())

    return when(value) if isinstance(value, datetime) else escaped(str(value))

"""Commands that read flows: `ls`, `show`, `count`."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Annotated
from typing import Any

import typer
from rich.pretty import pprint

import catga_store as cs
from catga_store.cli.exit_codes import CORRUPT
from catga_store.cli.exit_codes import NO
from catga_store.cli.exit_codes import complain
from catga_store.cli.exit_codes import guarded
from catga_store.cli.exit_codes import leave
from catga_store.cli.output import escaped
from catga_store.cli.output import print_json
from catga_store.cli.output import print_json_list
from catga_store.cli.output import print_rows
from catga_store.cli.output import say
from catga_store.cli.output import stdout
from catga_store.cli.output import when
from catga_store.cli.store_options import AsJson
from catga_store.cli.store_options import StoreOption
from catga_store.cli.store_options import moment
from catga_store.cli.store_options import one_of
from catga_store.cli.store_options import open_existing
from catga_store.model.documents import flow_document
from catga_store.model.documents import part_document
from catga_store.model.documents import summary_document
from catga_store.model.documents import version_document
from catga_store.protocol.masking import shown

__all__ = ["SHOWN", "Type", "count", "ls", "show"]

_PAGE = 500
SHOWN = 50

Status = Annotated[
    str | None,
    typer.Option(
        "--status",
        metavar="STATUS",
        help="Only flows with this status, as in running.",
        autocompletion=one_of(cs.FlowStatus),
    ),
]
Type = Annotated[
    str | None,
    typer.Option(
        "--type", metavar="NAME", help="Only flows whose state is stored under this name."
    ),
]
After = Annotated[
    str | None,
    typer.Option(
        "--created-after", metavar="TIME", help="As in 2030-01-31T12:00Z, or 2h: two hours ago."
    ),
]
Before = Annotated[
    str | None, typer.Option("--created-before", metavar="TIME", help="Like --created-after.")
]
Idle = Annotated[
    str | None,
    typer.Option(
        "--updated-before", metavar="TIME", help="Only flows that were not written since, as in 7d."
    ),
]
Prefix = Annotated[
    str | None,
    typer.Option(
        "--id-prefix", metavar="TEXT", help="Only flows whose id begins with this, ordered by id."
    ),
]


def _filters(  # noqa: PLR0917  one for each option, in their order
    status: str | None,
    kind: str | None,
    after: str | None,
    before: str | None,
    idle: str | None,
    prefix: str | None,
) -> dict[str, Any]:
    return {
        "status": None if status is None else _status(status),
        "state_type": kind,
        "created_after": moment(after),
        "created_before": moment(before),
        "updated_before": moment(idle),
        "id_prefix": prefix,
    }


def _status(text: str) -> cs.FlowStatus:
    try:
        return cs.FlowStatus[text.upper()]
    except KeyError:
        names = ", ".join(status.name.lower() for status in cs.FlowStatus)
        message = f"unknown status {shown(text)}: expected one of {names}"
        raise cs.UsageError(message) from None


@guarded
def ls(
    *,
    store: StoreOption = None,
    status: Status = None,
    kind: Type = None,
    created_after: After = None,
    created_before: Before = None,
    updated_before: Idle = None,
    id_prefix: Prefix = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Maximum number of flows.")] = SHOWN,
    cursor: Annotated[
        str | None, typer.Option(help="Continue a listing that had the same filters.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="List all flows.")] = False,
    as_json: AsJson = False,
) -> None:
    """List flows, newest first, without their states; with `--id-prefix` by id.

    `--json`: `{"flows": [{"flow_id", "type", "status", "position", "version", "revision",
    "created_at", "updated_at", "due_at", "expires_at", "owner", "attempts", "error"}, …], "cursor": text
    or null}`.
    """
    filters = _filters(status, kind, created_after, created_before, updated_before, id_prefix)
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

        columns = (
            "FLOW",
            "TYPE",
            "STATUS",
            "POSITION",
            "VERSION",
            "DUE",
            "OWNER",
            "UPDATED",
            "ERROR",
        )
        print_rows(columns, map(_line, pages(opened)))

    if left[0] is not None:
        complain(f"There are more: --all, or --cursor {left[0]}")


def _line(flow: cs.FlowSummary) -> tuple[str, ...]:
    return (
        flow.flow_id,
        flow.type_name or "-",
        flow.status.name,
        str(flow.position),
        str(flow.version),
        when(flow.due_at) or "-",
        flow.owner or "-",
        when(flow.updated_at),
        flow.error or "",
    )


@guarded
def count(
    *,
    store: StoreOption = None,
    status: Status = None,
    kind: Type = None,
    created_after: After = None,
    created_before: Before = None,
    updated_before: Idle = None,
    id_prefix: Prefix = None,
    as_json: AsJson = False,
) -> None:
    """Print how many flows there are.

    `--json`: `{"count": number}`.
    """
    filters = _filters(status, kind, created_after, created_before, updated_before, id_prefix)
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
        bool, typer.Option("--history", help="Also list the versions that are kept.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show one flow: its stored state, its wait condition, its ForEach progress and its parts.

    `--json`: the fields of `ls`, and `"type_version"`, `"state"`, `"reports_to"`, `"wait_condition"` (the
    fields of `waits`, or null), `"progress": [{"step", "version", "processed", "failed", "last"}, …]`, `"parts":
    [{"name", "version", "type", "tag", "updated_at"}, …]` (the first 100), `"more_parts"` (whether
    there are more) and, with `--history`, `"versions": [{"version", "status", "position", "owner",
    "error", "updated_at", "size"}, …]`, the newest 100. A state of bytes is `{"base64": text}`. Of a
    flow that cannot be decoded, because its key is missing, say, the fields of `ls`, parts and versions, and
    `"unreadable"`, which says why; exits with 5. Exits with 1 if there is no such flow.
    """
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

    if "unreadable" in document:
        raise typer.Exit(CORRUPT)


def _document_of(store: cs.Store, flow_id: str) -> tuple[dict[str, Any], Any]:
    """What `show` prints of a flow, and its state."""
    flow = store.get(flow_id)
    if flow is None:
        leave(
            f"flow {shown(flow_id)} not found: it was never created, was deleted, or has expired",
            NO,
        )

    waited = flow.wait_condition
    wait = None if waited is None else store.get_wait_condition(waited.correlation_id) or waited
    return flow_document(flow, wait, store.list_for_each_progress(flow_id)), flow.state


def _head_of(store: cs.Store, flow_id: str, error: cs.CorruptRecordError) -> dict[str, Any]:
    """What can be read of a flow without any body, and why that cannot be; the error if there is nothing."""
    for flow in store.query_flows(id_prefix=flow_id, limit=1):
        if flow.flow_id == flow_id:
            return {**summary_document(flow), "unreadable": str(error)}

    raise error


def _print_flow(document: dict[str, Any], state: Any) -> None:
    for name, value in document.items():
        if value not in (None, [], False):
            say(f"{name + ':':<16}{_shown(value)}")

    if "unreadable" in document:
        return

    say("state:")
    console = stdout()
    if console.is_terminal:
        pprint(state, console=console, expand_all=True)
    else:
        print_json(state)


def _shown(value: Any) -> str:
    if value.__class__ is list:
        return "; ".join(map(_shown, value))

    if value.__class__ is dict:
        return ", ".join(f"{name} {_shown(one)}" for name, one in value.items() if one is not None)

    return when(value) if isinstance(value, datetime) else escaped(str(value))

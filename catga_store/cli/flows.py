"""Commands on flows: `ls`, `show`, `count`, `due`, `rm`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from datetime import datetime
from datetime import timedelta
from typing import Annotated
from typing import Any

import typer
from rich.pretty import pprint

import catga_store as cs
from catga_store.cli.guard import NO
from catga_store.cli.guard import USAGE
from catga_store.cli.guard import complain
from catga_store.cli.guard import guarded
from catga_store.cli.guard import leave
from catga_store.cli.opening import AsJson
from catga_store.cli.opening import StoreOption
from catga_store.cli.opening import moment
from catga_store.cli.opening import open_existing
from catga_store.cli.output import escaped
from catga_store.cli.output import print_json
from catga_store.cli.output import print_json_list
from catga_store.cli.output import print_rows
from catga_store.cli.output import stdout
from catga_store.cli.output import when
from catga_store.cli.waits import wait_document
from catga_store.conversation import ask
from catga_store.keys import FLOW
from catga_store.model import from_ms
from catga_store.records import Due

__all__ = ["count", "due", "ls", "rm", "show"]

_PAGE = 500
_SHOWN = 50

Status = Annotated[
    str | None,
    typer.Option("--status", metavar="STATUS", help="Only flows of this status, as in running."),
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
        "--updated-before", metavar="TIME", help="Only flows not written since, as in 7d."
    ),
]


def summary_document(flow: cs.FlowSummary) -> dict[str, Any]:
    """What `ls --json` says of a flow."""
    return {
        "flow_id": flow.flow_id,
        "type": flow.type_name or None,
        "status": flow.status.name,
        "position": str(flow.position),
        "version": flow.version,
        "revision": flow.revision,
        "created_at": flow.created_at,
        "updated_at": flow.updated_at,
        "due_at": flow.due_at,
        "owner": flow.owner,
        "attempts": flow.attempts,
        "error": flow.error,
    }


def _filters(
    status: str | None, kind: str | None, after: str | None, before: str | None, idle: str | None
) -> dict[str, Any]:
    return {
        "status": None if status is None else _status(status),
        "state_type": kind,
        "created_after": moment(after),
        "created_before": moment(before),
        "updated_before": moment(idle),
    }


def _status(text: str) -> cs.FlowStatus:
    try:
        return cs.FlowStatus[text.upper()]
    except KeyError:
        names = ", ".join(status.name.lower() for status in cs.FlowStatus)
        message = f"no flow has the status {text!r}: write one of {names}"
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
    limit: Annotated[int, typer.Option(min=1, max=1000, help="At most so many.")] = _SHOWN,
    cursor: Annotated[
        str | None, typer.Option(help="Go on where a listing with the same filters ended.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="All of them.")] = False,
    as_json: AsJson = False,
) -> None:
    """List flows, newest first, without their states.

    `--json`: `{"flows": [{"flow_id", "type", "status", "position", "version", "revision",
    "created_at", "updated_at", "due_at", "owner", "attempts", "error"}, …], "cursor": text or null}`.
    """
    filters = _filters(status, kind, created_after, created_before, updated_before)
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
    as_json: AsJson = False,
) -> None:
    """Say how many flows there are.

    `--json`: `{"count": number}`.
    """
    filters = _filters(status, kind, created_after, created_before, updated_before)
    with open_existing(store) as opened:
        number = opened.count_flows(**filters)

    if as_json:
        print_json({"count": number})
    else:
        typer.echo(number)


@guarded
def show(
    flow_id: Annotated[str, typer.Argument(metavar="FLOW_ID")],
    *,
    store: StoreOption = None,
    as_json: AsJson = False,
) -> None:
    """Show one flow: its state as it is stored, what it waits for, its ForEach progress.

    `--json`: what `ls` says of it, and `"type_version"`, `"state"`, `"wait_condition"` (as `waits`
    says it, or null) and `"progress": [{"step", "version", "processed", "failed", "last"}, …]`. Exits
    with 1 if there is no such flow.
    """
    with open_existing(store) as opened:
        flow = opened.get(flow_id)
        if flow is None:
            leave(f"there is no flow {flow_id!r}: never was, deleted, or expired", NO)

        waited = flow.wait_condition
        wait = (
            None if waited is None else opened.get_wait_condition(waited.correlation_id) or waited
        )
        progress = opened.list_for_each_progress(flow_id)

    document = _flow_document(flow, wait, progress)
    if as_json:
        print_json(document)
        return

    state = document.pop("state")
    for name, value in document.items():
        if value not in (None, []):
            typer.echo(f"{name + ':':<16}{_shown(value)}")

    typer.echo("state:")
    console = stdout()
    if console.is_terminal:
        pprint(state, console=console, expand_all=True)
    else:
        print_json(state)


def _flow_document(
    flow: cs.FlowSnapshot[Any],
    wait: cs.WaitCondition | None,
    progress: dict[int, cs.ForEachProgress],
) -> dict[str, Any]:
    loaded = flow._loaded  # noqa: SLF001  the version of a type is nowhere public
    return {
        "flow_id": flow.flow_id,
        "type": flow.type_name or None,
        "type_version": loaded.head.type_version if loaded is not None and flow.type_name else None,
        "status": flow.status.name,
        "position": str(flow.position),
        "version": flow.version,
        "revision": flow.revision,
        "created_at": flow.created_at,
        "updated_at": flow.updated_at,
        "due_at": flow.due_at,
        "owner": flow.owner,
        "attempts": flow.attempts,
        "error": flow.error,
        "wait_condition": None if wait is None else wait_document(wait),
        "progress": [
            {
                "step": step,
                "version": one.version,
                "processed": len(one.processed_indices),
                "failed": len(one.failed_indices),
                "last": one.last_processed_index,
            }
            for step, one in progress.items()
        ],
        "state": flow.state,
    }


def _shown(value: Any) -> str:
    if value.__class__ is list:
        return "; ".join(map(_shown, value))

    if value.__class__ is dict:
        return ", ".join(f"{name} {_shown(one)}" for name, one in value.items() if one is not None)

    return when(value) if isinstance(value, datetime) else escaped(str(value))


@guarded
def due(
    *,
    store: StoreOption = None,
    kind: Type = None,
    within: Annotated[
        str, typer.Option(metavar="SPAN", help="Also what is due by then, as in 15m.")
    ] = "0s",
    limit: Annotated[int, typer.Option(min=1, max=500, help="At most so many.")] = _SHOWN,
    as_json: AsJson = False,
) -> None:
    """List what a worker would be given, nearly oldest first; nothing is claimed.

    A flow is due because its `due_at` has come, which may be the end of a claim (`OWNER`), or because
    what it waits for is over (`WAIT`).

    `--json`: `{"due": [{"flow_id", "correlation_id", "since", "type", "status", "owner",
    "attempts"}, …]}`; `correlation_id` is null unless a wait is over.
    """
    with open_existing(store) as opened:
        documents = list(_due(opened, kind, _span(within), limit))

    if as_json:
        print_json({"due": documents})
        return

    print_rows(
        ("FLOW", "SINCE", "WAIT", "TYPE", "STATUS", "ATTEMPTS", "OWNER"),
        [
            (
                one["flow_id"],
                when(one["since"]),
                one["correlation_id"] or "-",
                one["type"] or "-",
                one["status"],
                str(one["attempts"]),
                one["owner"] or "-",
            )
            for one in documents
        ],
    )


def _span(text: str) -> timedelta:
    reached = moment(text)
    now = moment("0s")
    assert reached is not None  # noqa: S101  text was given
    assert now is not None  # noqa: S101  as above
    return now - reached


def _due(
    store: cs.Store, kind: str | None, within: timedelta, limit: int
) -> Iterator[dict[str, Any]]:
    operations = store._operations  # noqa: SLF001  no public operation looks without claiming
    until_ms = operations.settings.now_ms() + within // timedelta(milliseconds=1)
    found = store._run(ask(Due(until_ms, limit, kind)))  # noqa: SLF001  as above
    told = {
        entry.key.id: store.get_wait_condition(entry.key.id)
        for entry in found
        if entry.key.kind != FLOW
    }
    parents = {name: wait.parent_flow_id for name, wait in told.items() if wait is not None}
    flows = store.get_many([parents.get(entry.key.id) or entry.key.id for entry in found])

    for entry in found[:limit]:
        is_flow = entry.key.kind == FLOW
        flow = flows.get(entry.key.id if is_flow else parents.get(entry.key.id) or "")
        if flow is not None and not flow.status.is_terminal:
            wait = None if is_flow else told[entry.key.id]
            yield {
                "flow_id": flow.flow_id,
                "correlation_id": None if wait is None else wait.correlation_id,
                "since": None if entry.head.due_ms is None else from_ms(entry.head.due_ms),
                "type": flow.type_name or None,
                "status": flow.status.name,
                "owner": flow.owner,
                "attempts": flow.attempts,
            }


@guarded
def rm(
    flow_ids: Annotated[list[str] | None, typer.Argument(metavar="[FLOW_ID]...")] = None,
    *,
    store: StoreOption = None,
    waits: Annotated[
        list[str] | None,
        typer.Option("--wait", metavar="ID", help="Clear this wait condition; may be repeated."),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: AsJson = False,
) -> None:
    """Delete flows with their progress, and clear wait conditions, whatever state they are in.

    Asks first; without a terminal, `--yes` is needed. Exits with 1 if any of them was not there;
    the others are gone.

    `--json`: `{"removed": [id, …], "absent": [id, …]}`.
    """
    named = [*(flow_ids or ()), *(waits or ())]
    if not named:
        leave("nothing to remove: name a flow, or a wait condition with --wait", USAGE)

    with open_existing(store) as opened:
        if not yes:
            _confirm(named)

        gone = [(one, opened.delete(one)) for one in flow_ids or ()]
        gone += [(one, opened.clear_wait_condition(one)) for one in waits or ()]

    absent = [one for one, was_there in gone if not was_there]
    if as_json:
        removed = [one for one, was_there in gone if was_there]
        print_json({"removed": removed, "absent": absent})
    else:
        for one, was_there in gone:
            typer.echo(f"{'removed' if was_there else 'was not there'}: {escaped(one)}")

    if absent:
        raise typer.Exit(NO)


def _confirm(named: list[str]) -> None:
    if not sys.stdin.isatty():
        leave("nothing was removed: without a terminal to ask on, --yes is needed", USAGE)

    typer.confirm(f"Remove {', '.join(map(escaped, named))}?", abort=True, err=True)

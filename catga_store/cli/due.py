"""The command `due`: the flows that a worker would claim now."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Annotated
from typing import Any

import typer

import catga_store as cs
from catga_store.cli.exit_codes import guarded
from catga_store.cli.filters import Type
from catga_store.cli.flows import SHOWN
from catga_store.cli.output import print_json
from catga_store.cli.output import print_rows
from catga_store.cli.output import when
from catga_store.cli.store_options import AsJson
from catga_store.cli.store_options import StoreOption
from catga_store.cli.store_options import open_existing
from catga_store.cli.store_options import span_of
from catga_store.core.context import read_what_can_be
from catga_store.model.times import from_ms
from catga_store.protocol.conversation import ask
from catga_store.protocol.keys import FLOW
from catga_store.protocol.keys import flow_key
from catga_store.protocol.requests import Due
from catga_store.protocol.requests import DueFilter
from catga_store.protocol.requests import ListDue

__all__ = ["due"]


@guarded
def due(
    *,
    store: StoreOption = None,
    kind: Type = None,
    within: Annotated[
        str,
        typer.Option(
            metavar="SPAN", help="Include flows that become due within this time, such as 15m."
        ),
    ] = "0s",
    limit: Annotated[int, typer.Option(min=1, max=500, help="Maximum number of flows.")] = SHOWN,
    as_json: AsJson = False,
) -> None:
    """List the flows that a worker would claim, roughly oldest first; nothing is claimed.

    A flow is due because its `due_at` has passed, which may be the end of a lease (`OWNER`), or
    because its wait has ended (`WAIT`).

    `--json`: `{"due": [{"flow_id", "correlation_id", "since", "type", "status", "owner",
    "attempts"}, …]}`; `correlation_id` is null unless a wait has ended; `status` is null if the flow cannot be
    read, in which case no worker claims it.
    """
    with open_existing(store) as opened:
        documents = list(_due(opened, kind, span_of("--within", within), limit))

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
                one["status"] or "unreadable",
                str(one["attempts"] or "-"),
                one["owner"] or "-",
            )
            for one in documents
        ],
    )


def _due(
    store: cs.Store, kind: str | None, within: timedelta, limit: int
) -> Iterator[dict[str, Any]]:
    context = store._context  # noqa: SLF001  no public operation looks without claiming
    names = None if kind is None else ("", kind)
    within_ms = within // timedelta(milliseconds=1)
    due = Due(context.settings.now_ms(), limit, names, within_ms=within_ms)
    found = store._run(ask(due))  # noqa: SLF001  as above
    # No claim takes what cannot be read, but it is work that waits.
    wanted = DueFilter(claimed=False, until_ms=due.until_ms, types=names)
    listed = store._run(ask(ListDue(wanted, None, limit, due.now_ms)))  # noqa: SLF001  as above
    unread = [entry for entry in listed if entry.error is not None]
    found = tuple(sorted([*found, *unread], key=lambda entry: entry.head.due_ms or 0))
    waits = [entry.key for entry in found if entry.key.kind != FLOW]
    ended, _ = store._run(read_what_can_be(context, waits))  # noqa: SLF001  as above
    parents = {
        key: record.terms.parent
        for key, record in ended.items()
        if record.terms is not None and record.terms.parent is not None
    }
    heads = {entry.key: entry.head for entry in found if entry.key.kind == FLOW}
    keys = [flow_key(parent) for parent in parents.values()]
    flows, corrupt = store._run(read_what_can_be(context, keys))  # noqa: SLF001  as above
    heads |= {key: record.head for key, record in flows.items()}

    for entry in found[:limit]:
        is_flow = entry.key.kind == FLOW
        key = entry.key if is_flow else flow_key(parents.get(entry.key, ""))
        head = heads.get(key) if entry.error is None else None
        if (
            entry.error is not None
            or key in corrupt
            or (head is not None and not cs.FlowStatus(head.status).is_terminal)
        ):
            yield {
                "flow_id": key.id,
                "correlation_id": None if is_flow else entry.key.id,
                "since": None if entry.head.due_ms is None else from_ms(entry.head.due_ms),
                "type": None if head is None else head.type or None,
                "status": None if head is None else cs.FlowStatus(head.status).name,
                "owner": None if head is None else head.owner,
                "attempts": None if head is None else head.attempts,
            }

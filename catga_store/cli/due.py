"""The command `due`: what a worker would be given."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Annotated
from typing import Any

import typer

import catga_store as cs
from catga_store.cli.flows import SHOWN
from catga_store.cli.flows import Type
from catga_store.cli.guard import guarded
from catga_store.cli.opening import AsJson
from catga_store.cli.opening import StoreOption
from catga_store.cli.opening import open_existing
from catga_store.cli.opening import span
from catga_store.cli.output import print_json
from catga_store.cli.output import print_rows
from catga_store.cli.output import when
from catga_store.model.times import from_ms
from catga_store.protocol.conversation import ask
from catga_store.protocol.keys import FLOW
from catga_store.protocol.masking import shown
from catga_store.protocol.requests import Due

__all__ = ["due"]


@guarded
def due(
    *,
    store: StoreOption = None,
    kind: Type = None,
    within: Annotated[
        str, typer.Option(metavar="SPAN", help="Also what is due by then, as in 15m.")
    ] = "0s",
    limit: Annotated[int, typer.Option(min=1, max=500, help="At most so many.")] = SHOWN,
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
    found = span(text)
    if found is None:
        message = f"--within takes a span, as in 30s, 15m, 2h or 7d, not {shown(text)}"
        raise cs.UsageError(message)

    return found


def _due(
    store: cs.Store, kind: str | None, within: timedelta, limit: int
) -> Iterator[dict[str, Any]]:
    context = store._context  # noqa: SLF001  no public operation looks without claiming
    until_ms = context.settings.now_ms() + within // timedelta(milliseconds=1)
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

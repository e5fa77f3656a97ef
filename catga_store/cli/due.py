"""The command `due`: the flows that a worker would claim now."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Annotated
from typing import Any

import typer

import catga_store as cs
from catga_store.cli.exit_codes import guarded
from catga_store.cli.flows import SHOWN
from catga_store.cli.flows import Type
from catga_store.cli.output import print_json
from catga_store.cli.output import print_rows
from catga_store.cli.output import when
from catga_store.cli.store_options import AsJson
from catga_store.cli.store_options import StoreOption
from catga_store.cli.store_options import open_existing
from catga_store.cli.store_options import span
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
        str,
        typer.Option(
            metavar="SPAN", help="Include flows that are due within this time, as in 15m."
        ),
    ] = "0s",
    limit: Annotated[int, typer.Option(min=1, max=500, help="Maximum number of flows.")] = SHOWN,
    as_json: AsJson = False,
) -> None:
    """List the flows that a worker would claim, roughly oldest first; nothing is claimed.

    A flow is due because its `due_at` has passed, which may be the end of a lease (`OWNER`), or
    because its wait has ended (`WAIT`).

    `--json`: `{"due": [{"flow_id", "correlation_id", "since", "type", "status", "owner",
    "attempts"}, …]}`; `correlation_id` is null unless a wait has ended.
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
        message = f"--within takes a length of time, as in 30s, 15m, 2h or 7d, not {shown(text)}"
        raise cs.UsageError(message)

    return found


def _due(
    store: cs.Store, kind: str | None, within: timedelta, limit: int
) -> Iterator[dict[str, Any]]:
    context = store._context  # noqa: SLF001  no public operation looks without claiming
    until_ms = context.settings.now_ms() + within // timedelta(milliseconds=1)
    found = store._run(ask(Due(until_ms, limit, None if kind is None else ("", kind))))  # noqa: SLF001  as above
    ended = {
        entry.key.id: store.get_wait_condition(entry.key.id)
        for entry in found
        if entry.key.kind != FLOW
    }
    parents = {name: wait.parent_flow_id for name, wait in ended.items() if wait is not None}
    flows = store.get_many([parents.get(entry.key.id) or entry.key.id for entry in found])

    for entry in found[:limit]:
        is_flow = entry.key.kind == FLOW
        flow = flows.get(entry.key.id if is_flow else parents.get(entry.key.id) or "")
        if flow is not None and not flow.status.is_terminal:
            wait = None if is_flow else ended[entry.key.id]
            yield {
                "flow_id": flow.flow_id,
                "correlation_id": None if wait is None else wait.correlation_id,
                "since": None if entry.head.due_ms is None else from_ms(entry.head.due_ms),
                "type": flow.type_name or None,
                "status": flow.status.name,
                "owner": flow.owner,
                "attempts": flow.attempts,
            }

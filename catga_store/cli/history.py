"""Commands that show what a flow was, and what it becomes: `history`, `watch`."""

from __future__ import annotations

import json
import sys
import time
from datetime import timedelta
from typing import Annotated
from typing import Any

import typer

import catga_store as cs
from catga_store.cli.exit_codes import NO
from catga_store.cli.exit_codes import guarded
from catga_store.cli.exit_codes import leave
from catga_store.cli.output import escaped
from catga_store.cli.output import print_json
from catga_store.cli.output import print_rows
from catga_store.cli.output import say
from catga_store.cli.output import when
from catga_store.cli.store_options import AsJson
from catga_store.cli.store_options import StoreOption
from catga_store.cli.store_options import open_existing
from catga_store.cli.store_options import span_of
from catga_store.model.documents import json_value
from catga_store.model.documents import summary_document
from catga_store.model.documents import version_document
from catga_store.protocol.masking import shown

__all__ = ["history", "watch"]


@guarded
def history(
    flow_id: Annotated[str, typer.Argument(metavar="FLOW_ID")],
    *,
    store: StoreOption = None,
    before: Annotated[
        int | None, typer.Option(min=1, help="Only versions before this version.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Maximum number of versions.")] = 50,
    as_json: AsJson = False,
) -> None:
    """List the stored versions of a flow, newest first.

    The `history` option of the stores that write the flow sets how many versions are kept; the current version
    is always listed. Exits with status 1 if there is no such flow.

    `--json`: `{"versions": [{"version", "status", "position", "owner", "error", "updated_at", "size"},
    …]}`.
    """
    with open_existing(store) as opened:
        versions = opened.list_versions(flow_id, before=before, limit=limit)

    if not versions:
        older = "" if before is None else f" before version {before}"
        leave(
            f"flow {shown(flow_id)} has no versions{older}: the flow was never created, was"
            " deleted, or has expired",
            NO,
        )

    if as_json:
        print_json({"versions": [version_document(one) for one in versions]})
        return

    columns = ("VERSION", "STATUS", "POSITION", "UPDATED", "SIZE", "OWNER", "ERROR")
    print_rows(columns, map(_line, versions))


def _line(one: cs.FlowVersion) -> tuple[str, ...]:
    return (
        str(one.version),
        one.status.name,
        str(one.position),
        when(one.updated_at),
        str(one.size),
        one.owner or "-",
        one.error or "",
    )


@guarded
def watch(
    flow_id: Annotated[str, typer.Argument(metavar="FLOW_ID")],
    *,
    store: StoreOption = None,
    timeout: Annotated[
        str, typer.Option(metavar="SPAN", help="How long to watch, such as 30s, 15m or 2h.")
    ] = "1h",
    as_json: AsJson = False,
) -> None:
    """Print a line for each new version of a flow, until the flow has ended.

    A version that is immediately followed by another may be skipped. Exits with status 0 when the flow has
    ended, and with status 1 if it has not ended when `--timeout` expires (also if it was deleted).

    `--json`: one object per line, with the fields of `ls`.
    """
    until = time.monotonic() + span_of("--timeout", timeout).total_seconds()
    version = 0
    with open_existing(store) as opened:
        while True:
            left = max(timedelta(seconds=until - time.monotonic()), timedelta(0))
            flow = opened.watch(flow_id, after=version, timeout=left)
            if flow is None:
                seen = (
                    f"the last version seen was {version}" if version else "the flow was not found"
                )
                leave(f"flow {shown(flow_id)} has not ended: {seen}", NO)

            version = flow.version
            document = summary_document(flow)
            say(json.dumps(document, default=json_value) if as_json else _described(flow))
            sys.stdout.flush()
            if flow.status.is_terminal:
                return


def _described(flow: cs.FlowSnapshot[Any]) -> str:
    words = [
        f"{when(flow.updated_at)}  version {flow.version}  {flow.status.name} at {flow.position}"
    ]
    words += [f"claimed by {escaped(flow.owner)}"] if flow.owner else []
    words += [f"error: {escaped(flow.error)}"] if flow.error else []
    return "  ".join(words)

"""The command `stats`: what a store holds, in numbers."""

from __future__ import annotations

import catga_store as cs
from catga_store.cli.exit_codes import guarded
from catga_store.cli.output import print_json
from catga_store.cli.output import print_rows
from catga_store.cli.output import say
from catga_store.cli.store_options import AsJson
from catga_store.cli.store_options import StoreOption
from catga_store.cli.store_options import open_existing
from catga_store.model.documents import stats_document
from catga_store.model.time_texts import length
from catga_store.model.times import MS

__all__ = ["stats"]


@guarded
def stats(*, store: StoreOption = None, as_json: AsJson = False) -> None:
    """Count flows by type and status, due and claimed flows, and wait conditions, from the indexes.

    `--json`: `{"at", "total", "flows": {type: {status: number, …}, …}, "due", "oldest_due_seconds",
    "claimed", "expired_leases", "waits_pending", "waits_overdue", "waits_due"}`; the type of plain data is
    the empty string.
    """
    with open_existing(store) as opened:
        found = opened.stats()

    if as_json:
        print_json(stats_document(found))
        return

    used = [
        status
        for status in cs.FlowStatus
        if any(by_status.get(status) for by_status in found.flows.values())
    ]
    rows = [
        (
            name or "-",
            *(str(by_status.get(status) or "-") for status in used),
            str(sum(by_status.values())),
        )
        for name, by_status in found.flows.items()
    ]
    print_rows(("TYPE", *(status.name for status in used), "ALL"), rows)
    age = found.oldest_due_age
    say(f"\nflows due: {found.due}{'' if age is None else f', the oldest for {length(age // MS)}'}")
    say(f"flows claimed: {found.claimed}; with an expired lease: {found.expired_leases}")
    if found.unreadable:
        say(f"flows with a status that cannot be read: {found.unreadable}")

    say(
        f"waits pending: {found.waits_pending}; past their deadline: {found.waits_overdue}; ready"
        f" to wake a flow: {found.waits_due}"
    )

"""The rules of the store protocol, as pure functions over `Tables`: what each request reads or writes.

A store that can run a function over its rows in one transaction needs nothing else. Memory and SQLite do
this; NATS runs the rules over rows that it has read, and lets the server verify them.

- A commit checks every record that it names before it writes the first record, so a refused commit has
  written nothing.
- The id of a commit is logged with its reply in the same transaction, so a commit that is sent again returns
  the first reply, and `Resolve` is exact.
- An expired record is absent. A write that encounters an expired record removes it.

Condition rows have two states that are not visible above the store protocol: completions that arrived before
their condition (`PENDING_COMPLETIONS`), and tombstones of cleared conditions (`TOMBSTONE`), which show
completions that arrive too late how the condition ended.
"""

from __future__ import annotations

from catga_store.protocol.rules.commits import apply
from catga_store.protocol.rules.commits import extend
from catga_store.protocol.rules.commits import resolve
from catga_store.protocol.rules.expiry import clear
from catga_store.protocol.rules.expiry import sweep
from catga_store.protocol.rules.parts import parts
from catga_store.protocol.rules.parts import remove_parts
from catga_store.protocol.rules.reading import count
from catga_store.protocol.rules.reading import count_due
from catga_store.protocol.rules.reading import due
from catga_store.protocol.rules.reading import due_waits
from catga_store.protocol.rules.reading import find
from catga_store.protocol.rules.reading import identify
from catga_store.protocol.rules.reading import list_due
from catga_store.protocol.rules.reading import overdue
from catga_store.protocol.rules.reading import ping
from catga_store.protocol.rules.reading import read
from catga_store.protocol.rules.reading import scan
from catga_store.protocol.rules.reading import stats
from catga_store.protocol.rules.reading import steps
from catga_store.protocol.rules.tables import PENDING_COMPLETIONS
from catga_store.protocol.rules.tables import TOMBSTONE
from catga_store.protocol.rules.tables import ItemRow
from catga_store.protocol.rules.tables import Tables
from catga_store.protocol.rules.tables import WaitRow

__all__ = [
    "PENDING_COMPLETIONS",
    "TOMBSTONE",
    "ItemRow",
    "Tables",
    "WaitRow",
    "apply",
    "clear",
    "count",
    "count_due",
    "due",
    "due_waits",
    "extend",
    "find",
    "identify",
    "list_due",
    "overdue",
    "parts",
    "ping",
    "read",
    "remove_parts",
    "resolve",
    "scan",
    "stats",
    "steps",
    "sweep",
]

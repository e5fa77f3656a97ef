"""The SQLite store: one file, many processes, every commit durable when it is acknowledged.

Tables: `catga_flows` and `catga_progress` (one row a record, keyed by id and step), `catga_waits`
and `catga_items` (a condition, and one row per child), `catga_commits` (replies of recent commits)
and `catga_layout`. Ids are BLOBs of UTF-8, so NUL and case stay what they are. Bodies are JSON:
`sqlite3 flows.db "select cast(id as text), version, body from catga_flows"` reads them.

WAL with `synchronous=FULL`: a commit is one transaction under `BEGIN IMMEDIATE` and one fsync.
Reads see a snapshot and never wait for writers. A writer waits up to 30 s for other processes.
A lost connection does not exist here; a failed `COMMIT` of unknown outcome is asked again under
the same commit id. A row that cannot be read raises `CorruptRecordError` where it is asked for, and
is passed over, with a warning in the log, where workers ask for what is due or has expired: each
time, because what cannot be read cannot be put off either.

The file must lie on a local disk: WAL needs shared memory. It belongs to this library alone. Copy
it with SQLite's own backup, not as a file: opening and closing it in a process that has a store on
it drops that process's locks. Its log, beside it, is part of it while anybody has it open.

`schema` lays a file out, `rows` reads and checks what it holds, `tables` has the statements, `transport`
the connections, transactions and failures.
"""

from __future__ import annotations

from catga_store.stores.embedded import EmbeddedProtocol
from catga_store.stores.sqlite.connection import SQLiteTransport
from catga_store.stores.sqlite.tables import SQLiteTables

__all__ = ["EmbeddedProtocol", "SQLiteTables", "SQLiteTransport"]

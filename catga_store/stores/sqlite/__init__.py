"""The SQLite store: one file, many processes, every commit durable when it is acknowledged.

Keys: tables `catga_flows` and `catga_progress` (one row for each record, by id and step),
`catga_waits` and `catga_items` (a condition, and one row for each child), `catga_commits` (the replies
of recent commits) and `catga_layout`. Ids are BLOBs of UTF-8, so NUL and case are kept. Bodies are
JSON: `sqlite3 flows.db "select cast(id as text), version, body from catga_flows"` reads them.

Atomic: a commit is one transaction under `BEGIN IMMEDIATE` and one fsync (WAL, `synchronous=FULL`).
Commits of threads that wait for each other share both: each has a savepoint, and an outcome of its own. A
read of one flow is one statement; any other read is one transaction with a snapshot.

Round trips: none to a server. A write makes two `stat` calls first, to see that the file and its log
are in their places. Readers never wait. A writer waits up to 30 s for other processes.

Lost connections: there are none. A `COMMIT` that failed with an I/O error has an unknown outcome; it is
sent again under its commit id. A file or a log that was removed or replaced refuses every write.

Expiry: an expired record is absent at once. A write that meets it removes it, one write in 16 removes
up to 8 others, and `sweep` removes the rest. The space is used again.

A row that cannot be read raises `CorruptRecordError` when it is asked for. Workers that ask for what is
due or has expired pass over it with a warning in the log.

The file must be on a local disk, because WAL needs shared memory, and it belongs to this library
alone. Back it up with SQLite's own backup: see `file_locks` for what opening the file does.

`schema` has the layout, `rows` reads and checks rows, `tables` has the statements, `connection` the
transactions, `writers` the threads that share one, `failures` what errors mean, `file_locks` and `forks` what
protects file and log, `doctor` what can be said of a file.
"""

from __future__ import annotations

from catga_store.stores.sqlite.connection import SQLiteTransport
from catga_store.stores.sqlite.tables import SQLiteTables
from catga_store.stores.sqlite.watching import shared_wakeups

__all__ = ["SQLiteTables", "SQLiteTransport", "shared_wakeups"]

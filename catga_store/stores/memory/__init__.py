"""The memory store: records of one process, for tests and for flows that may be lost.

Keys: dictionaries by `Key`, and sorted lists beside them for listings, due times and expiry.
Stores opened with one name share their tables inside the process; the empty name makes new ones.
Atomic: a request is one transaction under a lock; one that is interrupted is undone.
Round trips: none. An async driver runs the call in the event loop, because it takes microseconds.
Lost connections: there are none. Nothing survives the process; a forked child has a copy.
Expiry: an expired record is absent at once. A write that meets it removes it, one write in 16
removes up to 8 others, and `sweep` removes the rest.

`tables` has the rows and their indexes, `transport` the lock, `doctor` what can be said of it.
"""

from __future__ import annotations

from catga_store.stores.memory.tables import MemoryTables
from catga_store.stores.memory.transport import MemoryTransport
from catga_store.stores.memory.transport import shared_tables
from catga_store.stores.memory.transport import shared_wakeups

__all__ = ["MemoryTables", "MemoryTransport", "shared_tables", "shared_wakeups"]

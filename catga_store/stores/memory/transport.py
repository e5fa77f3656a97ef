"""Running the transactions of a memory store: one at a time, under the lock of its tables."""

from __future__ import annotations

import os
import threading
import weakref
from typing import Any

from catga_store.errors import UsageError
from catga_store.protocol.conversation import Call
from catga_store.protocol.masking import shown
from catga_store.protocol.wakeups import Wakeups
from catga_store.stores.memory.tables import MemoryTables

__all__ = ["MemoryTransport", "shared_tables", "shared_wakeups"]


class MemoryTransport:
    """Performs `Call` under the lock of the tables, also across `fork`."""

    threaded = False
    """An async driver may perform the call in the event loop: it takes microseconds."""

    def __init__(self, tables: MemoryTables) -> None:
        self._tables = tables
        _transports.add(self)

    def __call__(self, call: Call[Any]) -> Any:
        tables = self._tables
        with tables.lock:
            if call.writes:
                return tables.transact(call.function)

            if tables.undo:  # a call of `mend` for each read would be 1 % of it
                tables.mend()

            return call.function(tables)

    def close(self) -> None:
        """Nothing to close: named tables live as long as the process."""

    def __repr__(self) -> str:
        count = len(self._tables)
        return f"<MemoryTransport {count} record{'' if count == 1 else 's'}>"


_named: dict[str, MemoryTables] = {}
_waited_for: dict[str, Wakeups] = {}
_named_lock = threading.Lock()
_transports: weakref.WeakSet[MemoryTransport] = weakref.WeakSet()
_held: list[MemoryTables] = []


def shared_tables(name: object) -> MemoryTables:
    """The tables of that name in this process; the empty name makes new ones each time."""
    if not isinstance(name, str):
        message = f"memory store name: expected a str, got {shown(name)}"
        raise UsageError(message)

    if not name:
        return MemoryTables()

    with _named_lock:
        return _named.setdefault(name, MemoryTables())


def shared_wakeups(name: str) -> Wakeups:
    """Those who wait for the records of that name in this process."""
    if not name:
        return Wakeups()

    with _named_lock:
        return _waited_for.setdefault(name, Wakeups())


def _before_fork() -> None:
    # A child must not inherit tables in the middle of another thread's transaction.
    _named_lock.acquire()
    shared = {id(one._tables): one._tables for one in _transports}  # noqa: SLF001  of this module
    for tables in sorted(shared.items()):
        tables[1].lock.acquire()
        _held.append(tables[1])


def _after_fork() -> None:
    while _held:
        _held.pop().lock.release()

    _named_lock.release()


if hasattr(os, "register_at_fork"):  # pragma: no branch  Windows has no fork
    os.register_at_fork(
        before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork
    )

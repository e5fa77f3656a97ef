"""The counters of logs that are read in several steps, while others may append to them."""

from __future__ import annotations

from collections.abc import Iterable

from catga_store.protocol.keys import Key
from catga_store.protocol.keys import counter_key
from catga_store.protocol.keys import is_hidden
from catga_store.protocol.keys import is_version
from catga_store.protocol.keys import log_of
from catga_store.protocol.requests import Record

__all__ = ["CountersOfLogs"]


class CountersOfLogs:
    """The counters that were read, and the last entry that was read of each log.

    A counter comes before its entries, so it may be behind them: then it must be read again. A copy of
    a log whose counter is behind would write its next entry over one that is there.
    """

    def __init__(self) -> None:
        self.counters: dict[Key, Record] = {}
        self._last: dict[Key, int] = {}

    def note(self, found: Iterable[tuple[Key, Record | None]]) -> None:
        """Note parts that were read: counters, entries and others."""
        for key, record in found:
            logged = log_of(key)
            if logged is not None:
                at = counter_key(key.id, logged[0])
                self._last[at] = max(self._last.get(at, 0), logged[1])
            elif record is not None and is_hidden(key) and not is_version(key.name):
                self.counters[key] = record

    def behind(self) -> list[Key]:
        """Return the counters that are to be read again."""
        return [
            key
            for key, last in self._last.items()
            if key not in self.counters or self.counters[key].head.version < last
        ]

"""The calls that wait for one SQLite file in this process, and how they learn of other processes' commits.

Commits of this process publish their hints themselves. For those of other processes a thread reads the header
of the index of the log, which every commit changes, and asks SQLite whether the file has changed (`PRAGMA
data_version`, 40 µs) if the header has, once a second, and where it cannot be read. The thread runs only while
there are waiters, one for each file: every 4 ms after a change, less and less often without one, and 60 times
a second in the end. After a change it looks for all waiters at once, and wakes as many as there are flows that
have become due.

The operating system's notifications about the log are no use: some come before the commit can be read.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from typing import NamedTuple

from catga_store.errors import CatgaStoreError
from catga_store.errors import CorruptRecordError
from catga_store.protocol import rules
from catga_store.protocol.conversation import Call
from catga_store.protocol.conversation import NotSentError
from catga_store.protocol.conversation import ReplyLostError
from catga_store.protocol.keys import FLOW
from catga_store.protocol.keys import Key
from catga_store.protocol.keys import entry_key
from catga_store.protocol.keys import flow_key
from catga_store.protocol.requests import Due
from catga_store.protocol.requests import Parts
from catga_store.protocol.wakeups import WATCH
from catga_store.protocol.wakeups import Hint
from catga_store.protocol.wakeups import Waiter
from catga_store.protocol.wakeups import Wakeups
from catga_store.stores.sqlite.connection import SQLiteTransport
from catga_store.stores.sqlite.tables import SQLiteTables

__all__ = ["FileWatcher", "shared_wakeups"]

_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.004, 0.016
_CALMS_DOWN = 150
"""The pause grows to this part of the time since the last change."""
_ASKS_EVERY = 1.0
"""SQLite itself is asked that often, in seconds, even if the header of the index of the log has not changed."""
_AFTER_ERROR = 1.0
_LINGERS = 1.0
"""For how many seconds it continues without waiters: a worker often waits again."""
_MOST = 100


class _Version(NamedTuple):
    """What SQLite says of changes; it means something only beside another one of the same connection."""

    tables: SQLiteTables
    number: int


class FileWatcher:
    """Learns of changes to one file while there are waiters; see the module."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._stopped = threading.Event()
        self._due: dict[Key, int] = {}
        """What the last look found; it is not news for the next one."""

    def start(self, wakeups: Wakeups) -> None:
        """Begin to watch, unless the thread runs."""
        with self._lock:
            self._stopped.clear()
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._run, args=(wakeups,), name="catga-store-watcher", daemon=True
                )
                self._thread.start()

    def stop(self) -> None:
        """Let the thread end now if there are no waiters, and leave the file."""
        self._stopped.set()

    def forget(self) -> None:
        """In a forked child: the thread is the parent's."""
        self._lock = threading.Lock()
        self._thread = None
        self._stopped = threading.Event()

    def _run(self, wakeups: Wakeups) -> None:
        # A connection of its own: `data_version` counts the changes that others than it have made.
        transport = SQLiteTransport(self._path)
        seen: _Version | None = None
        known: bytes | None = None
        changed_at = waited_at = ask_at = time.monotonic()
        try:
            while True:
                now = time.monotonic()
                if wakeups.waiters:
                    waited_at = now
                elif self._ends(wakeups, now - waited_at):
                    return

                pause = min(max((now - changed_at) / _CALMS_DOWN, _SHORTEST_PAUSE), _LONGEST_PAUSE)
                try:
                    # First the header: a commit that comes after it makes the next one another.
                    header = _header_of(seen)
                    if header is None or header != known or now >= ask_at:
                        known, ask_at = header, now + _ASKS_EVERY
                        version = transport(_ASK_VERSION)
                        if version != seen:
                            changed_at = now
                            self._look(transport, wakeups)
                            seen = version
                except (CatgaStoreError, NotSentError, ReplyLostError):
                    wakeups.look_again()  # the waiters' own looks raise what is wrong
                    seen, pause = None, _AFTER_ERROR

                if wakeups.waiters:
                    time.sleep(pause)
                else:
                    self._stopped.wait(pause)
        finally:
            transport.close()

    def _ends(self, wakeups: Wakeups, alone: float) -> bool:
        with self._lock:
            if wakeups.waiters or (alone < _LINGERS and not self._stopped.is_set()):
                return False

            self._thread = None
            return True

    def _look(self, transport: SQLiteTransport, wakeups: Wakeups) -> None:
        """Publish what has become due, and which of the watched flows have been written."""
        waiters = wakeups.groups()
        number = min(len(wakeups.waiters), _MOST)

        def look(tables: SQLiteTables) -> tuple[dict[Key, Hint], list[Hint]]:
            return _due_in(tables, waiters, number), _written_in(tables, waiters)

        due, written = transport(Call(look, writes=False))
        news = [hint for key, hint in due.items() if self._due.get(key) != hint.due_ms]
        self._due = {key: hint.due_ms or 0 for key, hint in due.items()}
        wakeups.publish([*news, *written])


def _header_of(seen: _Version | None) -> bytes | None:
    """What every commit changes, `None` if SQLite is to be asked."""
    return None if seen is None else seen.tables.guard.header()


def _version_of(tables: SQLiteTables) -> _Version:
    return _Version(tables, tables.connection.execute("PRAGMA data_version").fetchone()[0])


_ASK_VERSION = Call(_version_of, writes=False, single=True)


def _due_in(tables: SQLiteTables, waiters: list[Waiter], number: int) -> dict[Key, Hint]:
    found: dict[Key, Hint] = {}
    for waiter in {waiter.types: waiter for waiter in waiters if waiter.what != WATCH}.values():
        within_ms = int(waiter.interval * 1000)
        due = Due(waiter.now_ms(), number, waiter.types, within_ms=within_ms)
        for entry in rules.due(tables, due):
            key, head = entry.key, entry.head
            if key.kind == FLOW:
                found[key] = Hint(head.due_ms, head.type, key.id, head.version, head.revision)
            else:
                found[key] = Hint(head.due_ms)

    return found


def _written_in(tables: SQLiteTables, waiters: list[Waiter]) -> list[Hint]:
    found: list[Hint] = []
    for waiter in waiters:
        if waiter.flow_id is not None:
            try:
                is_new = _is_there(tables, waiter.flow_id, waiter)
            except CorruptRecordError:
                is_new = True  # its own look raises that

            if is_new:
                found.append(Hint(flow_id=waiter.flow_id, log=waiter.log))

    return found


def _is_there(tables: SQLiteTables, flow_id: str, waiter: Waiter) -> bool:
    """Whether there is what a waiter watches for: a later version, or a later entry of a log."""
    if waiter.log is None:
        head = tables.head(flow_key(flow_id))
        return head is not None and head.version > waiter.after

    first = entry_key(flow_id, waiter.log, waiter.after).name
    entries = Parts(
        flow_id,
        f"{waiter.log}/",
        first,
        None,
        reverse=False,
        limit=1,
        bodies=False,
        now_ms=waiter.now_ms(),
        entries=True,
    )
    return bool(rules.parts(tables, entries))


_by_file: weakref.WeakValueDictionary[str, Wakeups] = weakref.WeakValueDictionary()
_lock = threading.RLock()


def shared_wakeups(path: str) -> Wakeups:
    """The calls that wait for the records of that file in this process."""
    file = os.path.realpath(path)
    with _lock:
        found = _by_file.get(file)
        if found is None:
            found = _by_file[file] = Wakeups(FileWatcher(file))

        return found

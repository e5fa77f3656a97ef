"""How a process that waits learns of the commits of others, and how seldom it asks SQLite for them."""

from __future__ import annotations

import sqlite3
import threading
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from waiting import until

import catga_store as cs
from catga_store.stores.sqlite import watching
from catga_store.stores.sqlite.file_locks import FileGuard

MINUTE = timedelta(minutes=1)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Name a file that is not there yet."""
    return tmp_path / "flows.db"


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """List the answers of SQLite to the watcher."""
    found: list[int] = []
    function = watching._version_of

    def version_of(tables: Any) -> Any:
        version = function(tables)
        found.append(version.number)
        return version

    monkeypatch.setattr(watching._ASK_VERSION, "function", version_of)
    return found


def commit_elsewhere(path: Path) -> None:
    """Write on a connection that the watcher knows nothing of."""
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        connection.execute("UPDATE catga_layout SET identity = hex(randomblob(16))")
    finally:
        connection.close()


def wait_for_work(store: cs.Store) -> threading.Thread:
    """Wait in a thread until the store is closed."""

    def wait() -> None:
        with suppress(cs.StoreClosedError):
            store.claim_due(wait=MINUTE)

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def headers(monkeypatch: pytest.MonkeyPatch) -> list[bytes | None]:
    """List the headers that are read from now on."""
    found: list[bytes | None] = []
    header = FileGuard.header

    def read(guard: FileGuard) -> bytes | None:
        found.append(header(guard))
        return found[-1]

    monkeypatch.setattr(FileGuard, "header", read)
    return found


def test_sqlite_is_asked_only_when_the_header_has_changed(
    path: Path, asked: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two hundred looks without a commit ask nothing; one after a commit does, and finds it."""
    monkeypatch.setattr(watching, "_ASKS_EVERY", 3600.0)
    monkeypatch.setattr(watching, "_LONGEST_PAUSE", watching._SHORTEST_PAUSE)
    with cs.SQLiteStore(path) as store:
        store.ping()
        waiting = wait_for_work(store)
        read = headers(monkeypatch)
        until(lambda: len(asked) > 1 and len(read) > 10)
        number, looks = len(asked), len(read)
        until(lambda: len(read) > looks + 200)
        assert len(asked) == number
        commit_elsewhere(path)
        until(lambda: len(asked) > number)
        assert asked[-1] != asked[0]
        store.close()
        waiting.join(60)


def test_sqlite_is_asked_where_no_header_can_be_read(
    path: Path, asked: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on systems without locks of an open file."""
    monkeypatch.setattr(watching, "_ASKS_EVERY", 3600.0)
    monkeypatch.setattr(FileGuard, "header", lambda _: None)
    with cs.SQLiteStore(path) as store:
        store.ping()
        waiting = wait_for_work(store)
        until(lambda: len(asked) > 20)
        store.close()
        waiting.join(60)


def test_each_commit_changes_the_header(path: Path) -> None:
    """Also one of another connection, one that cuts the log back, and the first one after that."""
    with cs.SQLiteStore(path) as store:
        store.ping()
        driver: Any = store._driver
        (tables,) = driver.transport._idle
        seen = {tables.guard.header()}
        for number in range(5):
            commit_elsewhere(path)
            seen.add(tables.guard.header())
            store.create(cs.FlowSnapshot(f"f-{number}", state=None))
            seen.add(tables.guard.header())
            tables.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    assert None not in seen
    assert len(seen) == 11


def test_a_guard_that_was_let_go_has_no_header(path: Path) -> None:
    """The watcher then asks SQLite, which says what is wrong."""
    assert FileGuard(str(path), str(path)).header() is None

"""Threads that write to one file: one of them commits for those who wait, each with an outcome of its own.

The first writer is held within its transaction until the others wait for it, so nothing depends on time.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable
from collections.abc import Iterator
from concurrent.futures import Future
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from waiting import until
from waiting import until_async

import catga_store as cs
from catga_store.protocol.conversation import Call
from catga_store.protocol.keys import flow_key
from catga_store.protocol.requests import Head
from catga_store.stores.sqlite import connection as sqlite_connection
from catga_store.stores.sqlite import writers
from catga_store.stores.sqlite.tables import SQLiteTables

LONG = 60
"""Seconds that only a test that fails would wait."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Name a file that is not there yet."""
    return tmp_path / "flows.db"


@pytest.fixture
def store(path: Path, plan: list[tuple[int, bool]]) -> Iterator[cs.SQLiteStore]:
    """Open a store on the file of this test, on connections that fail as planned."""
    with cs.SQLiteStore(path) as store:
        store.ping()
        yield store


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    """Make threads that write."""
    with ThreadPoolExecutor(40) as pool:
        yield pool


def transport_of(store: Any) -> Any:
    """Return what performs a store's calls."""
    return store._driver.transport


def new(flow_id: str) -> cs.FlowSnapshot[Any]:
    """Make a flow."""
    return cs.FlowSnapshot(flow_id, state={"n": 0})


def waiting(store: Any) -> int:
    """Return how many writers wait."""
    return len(transport_of(store)._waiting.queue)


@contextmanager
def written_first(
    store: Any, pool: ThreadPoolExecutor, others: int, error: BaseException | None = None
) -> Iterator[Future[Any]]:
    """Hold a first writer in its transaction while the block starts so many others."""
    inside = threading.Event()

    def write(_tables: SQLiteTables) -> str:
        inside.set()
        until(lambda: waiting(store) == others)
        if error is not None:
            raise error

        return "first"

    first = pool.submit(transport_of(store), Call(write, writes=True))
    assert inside.wait(LONG)
    yield first
    until(first.done)


@contextmanager
def statements(store: cs.SQLiteStore) -> Iterator[list[str]]:
    """List the first words of what the next writer executes on its connection."""
    found: list[str] = []
    (tables,) = transport_of(store)._idle
    tables.connection.set_trace_callback(lambda text: found.append(text.split()[0]))
    yield found
    tables.connection.set_trace_callback(None)


def insert(flow_id: str) -> Callable[[SQLiteTables], str]:
    """Make a function that writes a row."""

    def write(tables: SQLiteTables) -> str:
        head = Head(1, 0, 0, 0, revision="r", commits=("r",))
        tables.write(flow_key(flow_id), head, b"{}", None)
        return flow_id

    return write


def rows(path: Path) -> set[str]:
    """Return the ids of the flows in the file."""
    connection = sqlite3.connect(path)
    try:
        return {one for (one,) in connection.execute("SELECT cast(id AS text) FROM catga_flows")}
    finally:
        connection.close()


def submitted(
    store: Any, pool: ThreadPoolExecutor, *functions: Callable[[SQLiteTables], Any]
) -> list[Future[Any]]:
    """Start a writer for each of these behind a first one, in this order."""
    futures: list[Future[Any]] = []
    for function in functions:
        until(lambda: waiting(store) == len(futures))
        futures.append(pool.submit(transport_of(store), Call(function, writes=True)))

    return futures


def test_one_commit_is_for_all_that_wait(store: cs.SQLiteStore, pool: ThreadPoolExecutor) -> None:
    """Three creations behind a first writer: a savepoint each, and one COMMIT."""
    with statements(store) as found:
        with written_first(store, pool, 3) as first:
            others = [pool.submit(store.create, new(f"f-{n}")) for n in range(3)]

        for other in others:
            other.result(LONG)

    assert first.result(LONG) == "first"
    assert (found.count("SAVEPOINT"), found.count("RELEASE"), found.count("COMMIT")) == (3, 3, 1)
    assert store.count_flows() == 3


def test_a_writer_alone_uses_no_savepoint(store: cs.SQLiteStore) -> None:
    """It costs what it cost without others."""
    with statements(store) as found:
        store.create(new("f"))

    assert "SAVEPOINT" not in found
    assert found.count("COMMIT") == 1


def test_a_conflict_is_that_of_one_writer(store: cs.SQLiteStore, pool: ThreadPoolExecutor) -> None:
    """Two updates of one version and one of another flow, in one transaction: one of the two is refused."""
    store.create(new("f"))
    store.create(new("g"))
    same, again, other = store.get_one("f"), store.get_one("f"), store.get_one("g")
    for place, flow in enumerate((same, again, other), 1):
        flow.state["n"] = place

    with written_first(store, pool, 3):
        updates = [pool.submit(store.update, flow) for flow in (same, again, other)]

    errors = [update.exception(LONG) for update in updates]
    assert sum(isinstance(error, cs.StaleFlowError) for error in errors[:2]) == 1
    assert errors.count(None) == 2
    winner = 1 if errors[0] is None else 2
    assert store.get_one("f").state == {"n": winner}
    assert store.get_one("f").version == 2
    assert store.get_one("g").state == {"n": 3}


def test_what_a_failed_writer_wrote_is_rolled_back(
    path: Path, store: cs.SQLiteStore, pool: ThreadPoolExecutor
) -> None:
    """It alone gets its error."""

    def fail(tables: SQLiteTables) -> None:
        insert("bad")(tables)
        message = "this one"
        raise ValueError(message)

    with written_first(store, pool, 3):
        before, bad, after = submitted(store, pool, insert("before"), fail, insert("after"))

    assert (before.result(LONG), after.result(LONG)) == ("before", "after")
    with pytest.raises(ValueError, match="this one"):
        bad.result(LONG)

    assert rows(path) == {"before", "after"}


@pytest.mark.parametrize("code", [sqlite3.SQLITE_FULL, sqlite3.SQLITE_BUSY])
def test_a_commit_that_fails_has_failed_for_all(
    path: Path,
    store: cs.SQLiteStore,
    pool: ThreadPoolExecutor,
    plan: list[tuple[int, bool]],
    code: int,
) -> None:
    """A full disk, or a lock: each gets an error of its own, nothing is stored, and the next commit works."""
    store.create(new("there"))
    plan[:] = [(code, False)]
    with written_first(store, pool, 2) as first:
        others = [pool.submit(store.create, new(f"f-{n}")) for n in range(2)]

    errors = [other.exception(LONG) for other in others]
    assert all(isinstance(error, cs.StoreUnavailableError) for error in errors)
    assert all("nothing was written" in str(error) for error in errors)
    assert errors[0] is not errors[1]
    assert first.exception(LONG) is not None
    assert plan == []
    assert rows(path) == {"there"}
    store.create(new("later"))


@pytest.mark.parametrize("applied", [False, True])
def test_a_commit_of_unknown_outcome_is_settled_by_each(
    path: Path,
    store: cs.SQLiteStore,
    pool: ThreadPoolExecutor,
    plan: list[tuple[int, bool]],
    applied: bool,
) -> None:
    """Each asks again under its own id: stored once, whether the first COMMIT was applied or not."""
    flows = [new(f"f-{n}") for n in range(3)]
    for flow in flows:
        store.create(flow)
        flow.state["n"] = 1

    plan[:] = [(sqlite3.SQLITE_IOERR_FSYNC, applied)]
    with written_first(store, pool, 3):
        updates = [pool.submit(store.update, flow) for flow in flows]

    for update in updates:
        update.result(LONG)

    assert plan == []
    assert [(flow.version, store.get_one(flow.flow_id).version) for flow in flows] == [(2, 2)] * 3


def test_when_sqlite_fails_each_writes_by_itself(
    path: Path, store: cs.SQLiteStore, pool: ThreadPoolExecutor
) -> None:
    """A statement of one of them meets a full disk: only that one fails."""

    def full(tables: SQLiteTables) -> None:
        insert("bad")(tables)
        tables.connection.execute("ROLLBACK")  # as SQLite does
        error = sqlite3.OperationalError("database or disk is full")
        error.sqlite_errorcode = sqlite3.SQLITE_FULL
        raise error

    with written_first(store, pool, 3) as first:
        before, bad, after = submitted(store, pool, insert("before"), full, insert("after"))

    assert first.result(LONG) == "first"
    assert (before.result(LONG), after.result(LONG)) == ("before", "after")
    with pytest.raises(Exception, match="is full"):
        bad.result(LONG)

    assert rows(path) == {"before", "after"}


def test_an_interrupted_thread_leaves_the_others_to_write(
    path: Path, store: cs.SQLiteStore, pool: ThreadPoolExecutor
) -> None:
    """Ctrl-C reaches it while it runs the function of another: that one is run again, and the others, too."""
    transport = transport_of(store)
    runs = 0

    def interrupted(tables: SQLiteTables) -> str:
        nonlocal runs
        runs += 1
        insert("other")(tables)
        if runs == 1:
            raise KeyboardInterrupt

        return "other"

    with written_first(store, pool, 2) as first:
        before = pool.submit(transport, Call(insert("before"), writes=True))
        until(lambda: waiting(store) == 1)
        other = pool.submit(transport, Call(interrupted, writes=True))

    assert (before.result(LONG), other.result(LONG)) == ("before", "other")
    assert isinstance(first.exception(LONG), KeyboardInterrupt)
    assert runs == 2
    assert rows(path) == {"before", "other"}


def test_a_thread_interrupted_after_the_commit_tells_that_replies_are_lost(
    store: cs.SQLiteStore, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others ask again under their ids, and find what was stored."""
    ends: list[writers.Writer] = []

    def end(writer: writers.Writer) -> None:
        ends.append(writer)
        if len(ends) == 1:
            raise KeyboardInterrupt

        writer.is_over = True
        writer.call()

    monkeypatch.setattr(writers.Writer, "end", end)
    with written_first(store, pool, 2) as first:
        others = [pool.submit(store.create, new(f"f-{n}")) for n in range(2)]

    for other in others:
        other.result(LONG)

    assert isinstance(first.exception(LONG), KeyboardInterrupt)
    assert {flow.version for flow in store.get_many(["f-0", "f-1"]).values() if flow} == {1}


def test_a_failed_first_writer_leaves_the_others_to_write(
    store: cs.SQLiteStore, pool: ThreadPoolExecutor
) -> None:
    """What it wrote is rolled back before anything else is done in its transaction."""
    with written_first(store, pool, 2, ValueError("first")) as first:
        others = [pool.submit(store.create, new(f"f-{n}")) for n in range(2)]

    with pytest.raises(ValueError, match="first"):
        first.result(LONG)

    for other in others:
        other.result(LONG)

    assert store.count_flows() == 2


def test_a_writer_interrupted_while_it_waits_writes_nothing(
    store: cs.SQLiteStore, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It leaves the queue, and the one behind it is not kept waiting."""
    wait = writers.Writer.wait
    interrupts = threading.Semaphore(1)

    def interrupted(writer: writers.Writer, seconds: float) -> bool:
        if interrupts.acquire(blocking=False):
            raise KeyboardInterrupt

        return wait(writer, seconds)

    monkeypatch.setattr(writers.Writer, "wait", interrupted)
    with written_first(store, pool, 1):
        gone = pool.submit(store.create, new("gone"))
        assert isinstance(gone.exception(LONG), KeyboardInterrupt)
        kept = pool.submit(store.create, new("kept"))

    kept.result(LONG)
    assert [flow.flow_id for flow in store.iter_flows()] == ["kept"]


def test_what_an_interrupted_writer_wanted_is_not_written_later(
    store: cs.SQLiteStore, path: Path, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is interrupted while its function is run. SQLite fails then, and the others are run again without it."""
    begun, is_run, has_left = threading.Event(), threading.Event(), threading.Event()
    wait = writers.Writer.wait

    def write(tables: SQLiteTables) -> None:
        insert("left")(tables)
        is_run.set()
        assert has_left.wait(LONG)
        message = "the disk is full"
        raise sqlite3.OperationalError(message)

    def interrupted(writer: writers.Writer, seconds: float) -> bool:
        if writer.function is not write:
            return wait(writer, seconds)

        assert is_run.wait(LONG)
        raise KeyboardInterrupt

    def write_first(_tables: SQLiteTables) -> None:
        begun.set()
        if not has_left.is_set():
            until(lambda: waiting(store) == 1)

    monkeypatch.setattr(writers.Writer, "wait", interrupted)
    first = pool.submit(transport_of(store), Call(write_first, writes=True))
    assert begun.wait(LONG)
    other = pool.submit(transport_of(store), Call(write, writes=True))
    assert isinstance(other.exception(LONG), KeyboardInterrupt)
    has_left.set()
    first.result(LONG)
    assert waiting(store) == 0
    store.create(new("later"))
    assert rows(path) == {"later"}


def test_one_transaction_is_for_a_bounded_number(
    store: cs.SQLiteStore, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five wait, and two may join: three transactions."""
    monkeypatch.setattr(writers, "_MOST_TOGETHER", 2)
    commits = 0
    real = sqlite_connection.commit_for

    def counted(*arguments: Any) -> None:
        nonlocal commits
        commits += 1
        real(*arguments)

    monkeypatch.setattr(sqlite_connection, "commit_for", counted)
    with written_first(store, pool, 5):
        others = [pool.submit(store.create, new(f"f-{n}")) for n in range(5)]

    for other in others:
        other.result(LONG)

    assert store.count_flows() == 5
    assert (
        commits == 2
    )  # two join the first, two the third, and the last is alone or was one of these


@pytest.mark.parametrize("store_on", ["asyncio", "trio"])
def test_a_cancelled_caller_whose_write_waits_still_writes(
    path: Path, pool: ThreadPoolExecutor, store_on: str
) -> None:
    """As a write that has begun; its task ends when that is stored."""

    async def main() -> None:
        async with cs.AsyncSQLiteStore(path) as store:
            await store.ping()
            scope = anyio.CancelScope()

            async def create() -> None:
                with scope:
                    await store.create(new("f"))

            with written_first(store, pool, 2):
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(create)
                    await until_async(lambda: waiting(store) == 1)
                    scope.cancel()
                    other = pool.submit(transport_of(store), Call(insert("other"), writes=True))

            assert scope.cancel_called
            assert other.result(LONG) == "other"
            assert await store.get("f") is not None

    anyio.run(main, backend=store_on)


def test_a_forked_child_forgets_who_waits(store: cs.SQLiteStore) -> None:
    """Their threads are the parent's."""
    transport = transport_of(store)
    transport._waiting.add(writers.Writer(insert("parents")))
    transport.after_fork_in_child()
    store.create(new("childs"))
    assert [flow.flow_id for flow in store.iter_flows()] == ["childs"]


def test_every_commit_of_many_threads_is_stored_once(
    store: cs.SQLiteStore, pool: ThreadPoolExecutor
) -> None:
    """Eight threads, each with a flow of its own and one that they share."""
    store.create(new("shared"))

    def count(session: cs.Session) -> None:
        session.get_one("shared").state["n"] += 1

    def work(number: int) -> None:
        flow = new(f"own-{number}")
        store.create(flow)
        for _ in range(20):
            flow.state["n"] += 1
            store.update(flow)
            store.transact(count, attempts=1000)

    for done in [pool.submit(work, number) for number in range(8)]:
        done.result(LONG)

    assert store.get_one("shared").state == {"n": 160}
    assert [store.get_one(f"own-{number}").state["n"] for number in range(8)] == [20] * 8

"""What goes wrong with a SQLite file: each fault has its own error, and nothing is written.

Files that are not a database, damaged, full, locked, read-only, gone or another user's; commits whose
`COMMIT` fails; rows that were edited. After each the store works again as soon as the
fault is gone. The plans of the statements are checked here too.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import resource
import shutil
import sqlite3
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from contextlib import contextmanager
from datetime import UTC
from datetime import datetime
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from failing import Failing
from stuck import assert_a_row

import catga_store as cs
from catga_store.protocol import failures
from catga_store.protocol.conversation import Call
from catga_store.protocol.conversation import ask
from catga_store.protocol.keys import FLOW
from catga_store.protocol.keys import PROGRESS
from catga_store.protocol.keys import WAIT
from catga_store.protocol.keys import Key
from catga_store.protocol.keys import new_commit_id
from catga_store.protocol.requests import Commit
from catga_store.protocol.requests import Due
from catga_store.protocol.requests import DueFilter
from catga_store.protocol.requests import Filter
from catga_store.protocol.requests import Head
from catga_store.protocol.requests import Put
from catga_store.protocol.requests import Read
from catga_store.stores.sqlite import connection as sqlite_connection
from catga_store.stores.sqlite import file_locks
from catga_store.stores.sqlite import rows
from catga_store.stores.sqlite.forks import Traffic

LONG = 60
"""Seconds that only a test that fails would wait."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Name a file that is not there yet."""
    return tmp_path / "flows.db"


@pytest.fixture
def store(path: Path) -> Iterator[cs.SQLiteStore]:
    """Open a store on the file of this test."""
    with cs.SQLiteStore(path) as store:
        yield store


def wire_of(store: cs.Store) -> Any:
    """Return what performs a store's calls."""
    driver: Any = store._driver
    return driver.transport


def laid_out(path: Path, flows: int = 1) -> None:
    """Make a store of that many flows, `flow-0` onwards, and close it."""
    with cs.SQLiteStore(path) as store, store.begin() as session:
        for n in range(flows):
            session.add(cs.FlowSnapshot(f"flow-{n}", state={"n": n, "pad": "x" * 500}))


@contextmanager
def raw(path: Path) -> Iterator[sqlite3.Connection]:
    """Open the file as any program could."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        yield connection


OPERATIONS: list[Callable[[cs.Store], object]] = [
    lambda store: store.ping(),
    lambda store: store.get("flow-0"),
    lambda store: store.create(cs.FlowSnapshot("new", state=None)),
    lambda store: store.claim_due(),
    lambda store: list(store.iter_flows()),
    lambda store: store.complete_child("wait", "child"),
]


def assert_works(store: cs.Store) -> None:
    """Write something and read it back."""
    flow = cs.FlowSnapshot(f"works-{os.urandom(4).hex()}", state={"n": 1})
    store.create(flow)
    assert store.get_one(flow.flow_id).state == {"n": 1}


# --- the file itself ------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"no database\n" * 100, b"x", b"SQLite format 3\0" * 64])
def test_a_file_that_is_not_a_database_is_refused_and_kept(
    path: Path, store: cs.SQLiteStore, content: bytes
) -> None:
    """Every operation raises `CorruptRecordError` that names the file, and no byte changes."""
    path.write_bytes(content)
    for use in OPERATIONS:
        with pytest.raises(cs.CorruptRecordError, match="nothing was changed") as caught:
            use(store)

        assert str(path) in str(caught.value)
        assert caught.value.key is None

    assert path.read_bytes() == content
    path.unlink()
    assert_works(store)


@pytest.mark.parametrize("damage", ["garbled", "truncated"])
def test_a_damaged_file_is_refused_and_kept(path: Path, store: cs.SQLiteStore, damage: str) -> None:
    """What lies in broken pages raises `CorruptRecordError`; put back, the file works again."""
    laid_out(path, 100)
    good = path.read_bytes()
    if damage == "garbled":
        bad = good[:4096] + bytes(n % 251 for n in range(len(good) - 4096))
    else:
        bad = good[: len(good) // 2 // 4096 * 4096]

    path.write_bytes(bad)
    for use in (OPERATIONS[1], OPERATIONS[2], OPERATIONS[4]):
        with pytest.raises(cs.CorruptRecordError, match="restore the file from a backup"):
            use(store)

    assert path.read_bytes() == bad
    path.write_bytes(good)
    assert store.count_flows() == 100
    assert_works(store)


def test_an_empty_file_is_a_new_store(path: Path, store: cs.SQLiteStore) -> None:
    """A file of no bytes, as `touch` and `mkstemp` make it, is laid out."""
    path.touch()
    assert_works(store)


@pytest.mark.parametrize("mode", ["delete", "wal"])
def test_a_foreign_database_is_refused_and_kept(
    path: Path, store: cs.SQLiteStore, mode: str
) -> None:
    """A database with others' tables gets none of ours, and not another journal either."""
    with raw(path) as connection:
        connection.execute(f"PRAGMA journal_mode = {mode}")
        connection.execute("CREATE TABLE customers (name TEXT)")

    before = path.read_bytes()
    for use in OPERATIONS:
        with pytest.raises(
            cs.StoreConfigError, match="its 1 table was not created by this library"
        ):
            use(store)

    assert path.read_bytes() == before


def test_a_newer_layout_is_refused(path: Path, store: cs.SQLiteStore) -> None:
    """What a later release has laid out is not touched by this one."""
    laid_out(path)
    with raw(path) as connection:
        connection.execute("UPDATE catga_layout SET version = 3")

    for use in OPERATIONS:
        with pytest.raises(
            cs.StoreConfigError,
            match=r"layout version 3, but this release of catga_store supports only version 2",
        ):
            use(store)

    with raw(path) as connection:
        assert connection.execute("SELECT count(*) FROM catga_flows").fetchone() == (1,)
        connection.execute("UPDATE catga_layout SET version = 2")

    assert_works(store)


@pytest.mark.parametrize(
    "layout", ["DELETE FROM catga_layout", "UPDATE catga_layout SET version = 'x'"]
)
def test_an_unreadable_layout_is_refused(path: Path, store: cs.SQLiteStore, layout: str) -> None:
    """A layout that is gone or no number is damage, never a reason to lay out again."""
    laid_out(path)
    with raw(path) as connection:
        connection.execute(layout)

    with pytest.raises(cs.CorruptRecordError, match="layout"):
        store.get("flow-0")


def test_a_missing_table_is_a_config_error(path: Path, store: cs.SQLiteStore) -> None:
    """The error says which table there is not."""
    laid_out(path)
    with raw(path) as connection:
        connection.execute("DROP TABLE catga_waits")

    with pytest.raises(cs.StoreConfigError, match="no such table: catga_waits"):
        store.get_wait_condition("wait")


# --- places ---------------------------------------------------------------------------------------


def test_an_impossible_path_is_reported(tmp_path: Path) -> None:
    """The system's own reason stands in the error, whatever was asked of the store."""
    with cs.SQLiteStore(tmp_path / ("x" * 5000)) as store:
        for use in OPERATIONS:
            with pytest.raises(
                cs.StoreConfigError, match="the operating system reports: File name too long"
            ):
                use(store)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    """It is not made; once it is there the same store works."""
    folder = tmp_path / "missing"
    with cs.SQLiteStore(folder / "flows.db") as store:
        for use in OPERATIONS:
            with pytest.raises(
                cs.StoreConfigError, match="does not exist; create the directory"
            ) as caught:
                use(store)

            assert repr(str(folder)) in str(caught.value)

        assert not folder.exists()
        folder.mkdir()
        assert_works(store)


def test_a_folder_is_refused(tmp_path: Path) -> None:
    """The error says that the path is a folder."""
    with (
        cs.SQLiteStore(tmp_path) as store,
        pytest.raises(cs.StoreConfigError, match="is a directory or a device, not a regular file"),
    ):
        store.ping()


@pytest.mark.parametrize(
    "name", ["a b.db", "a?mode=ro.db", "a#b.db", "100%41.db", "größe.db", "a:b.db", "\udcff.db"]
)
def test_any_file_name_will_do(tmp_path: Path, name: str) -> None:
    """Nothing in a name is taken for a part of a URI."""
    with cs.SQLiteStore(tmp_path / name) as store:
        assert_works(store)

    assert [file.name for file in tmp_path.iterdir()] == [name]


UNPRIVILEGED = """
import json, os, sys
import catga_store as cs
import catga_store.stores.sqlite
if os.geteuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
answers = []
with cs.SQLiteStore(sys.argv[1]) as store:
    for use in (
        lambda: store.get_one("flow-0").state["n"],
        lambda: store.create(cs.FlowSnapshot("new", state=None)),
        lambda: store.get_one("flow-0").state["n"],
    ):
        try:
            answers.append(use())
        except cs.CatgaStoreError as error:
            answers.append([type(error).__name__, str(error)])
print(json.dumps(answers))
"""


@pytest.fixture
def shared() -> Iterator[Path]:
    """Make a folder that another user may enter, which those of tests are not."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    folder.chmod(0o755)
    shutil.rmtree(folder)


def as_nobody(path: Path) -> list[Any]:
    """Read, write and read the store as a user whom permissions bind; root's are dropped."""
    done = subprocess.run(
        [sys.executable, "-c", UNPRIVILEGED, str(path)],
        capture_output=True,
        text=True,
        timeout=LONG,
        check=True,
    )
    answers: list[Any] = json.loads(done.stdout)
    return answers


def test_a_read_only_file_can_be_read(shared: Path) -> None:
    """Reads answer; a write is `StoreConfigError`, and writes nothing."""
    path = shared / "flows.db"
    laid_out(path)
    path.chmod(0o444)
    shared.chmod(0o777)  # SQLite needs its log beside the file, for reading too
    before = path.read_bytes()

    first, (name, message), last = as_nobody(path)
    assert (first, name, last) == (0, "StoreConfigError", 0)
    assert "cannot be written" in message
    assert "nothing was written" in message
    assert path.read_bytes() == before

    for file in shared.iterdir():
        file.chmod(0o666)

    assert as_nobody(path) == [0, None, 0]


def test_a_read_only_folder_is_named(shared: Path) -> None:
    """Without the right to write the folder, neither its log nor a new file can be made."""
    path = shared / "flows.db"
    laid_out(path)
    path.chmod(0o666)
    shared.chmod(0o555)
    for name, message in as_nobody(path):
        assert name == "StoreConfigError"
        assert "nothing was written" in message

    for name, message in as_nobody(shared / "new.db"):
        assert name == "StoreConfigError"
        assert "needs read and write access to the file and its directory" in message

    assert [file.name for file in shared.iterdir()] == ["flows.db"]
    shared.chmod(0o777)
    assert as_nobody(path) == [0, None, 0]


@pytest.mark.parametrize("how", ["removed", "replaced"])
def test_a_file_that_is_taken_away_is_noticed(path: Path, store: cs.SQLiteStore, how: str) -> None:
    """A write never goes to a file that is found under no name; no new one is made in its place."""
    laid_out(path)
    assert_works(store)
    kept = path.rename(path.with_name("kept.db"))
    if how == "replaced":
        laid_out(path.with_name("new.db"), 3)
        path.with_name("new.db").rename(path)

    with pytest.raises(
        cs.StoreConfigError, match="has been removed or replaced since it was opened"
    ):
        store.create(cs.FlowSnapshot("lost", state=None))

    if how == "removed":
        with pytest.raises(cs.StoreConfigError, match="restore the file"):
            store.create(cs.FlowSnapshot("lost", state=None))

        assert not path.exists()
        kept.rename(path)

    assert store.get("lost") is None
    assert_works(store)


# --- full -----------------------------------------------------------------------------------------


def test_a_full_database_writes_nothing(path: Path, store: cs.SQLiteStore) -> None:
    """`StoreUnavailableError` that says so, all of the commit is absent, and room makes it work."""
    laid_out(path)
    store.ping()
    (tables,) = wire_of(store)._idle
    pages = tables.connection.execute("PRAGMA page_count").fetchone()[0]
    tables.connection.execute(f"PRAGMA max_page_count = {pages}")

    with store.session() as session:
        session.get_one("flow-0").state["n"] = 1
        session.add(cs.FlowSnapshot("big", state="x" * 100_000))
        with pytest.raises(cs.StoreUnavailableError, match=r"is full: .*; free up space; noth"):
            session.commit()

    assert store.get("big") is None
    assert store.get_one("flow-0").state["n"] == 0
    assert_works(store)


@pytest.mark.skipif(sys.platform != "linux", reason="mounts a small tmpfs")
def test_a_full_disk_writes_nothing(path: Path) -> None:
    """On a real file system of 1 MiB every commit is whole or refused, and room makes it work."""
    folder = path.with_name("small")
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False).returncode:
        pytest.skip("mounting needs root; `test_a_full_database_writes_nothing` needs none")

    try:
        with cs.SQLiteStore(folder / "flows.db") as store:
            made: list[int] = []

            def fill_up() -> None:
                for n in range(1000):
                    with store.begin() as session:
                        session.add(cs.FlowSnapshot(f"a-{n}", state="x" * 5000))
                        session.add(cs.FlowSnapshot(f"b-{n}", state="x" * 5000))

                    made.append(n)

            with pytest.raises(cs.StoreUnavailableError, match=r"the disk .* is full"):
                fill_up()

            expected = {f"{half}-{n}" for half in "ab" for n in made}
            assert made
            assert {flow.flow_id for flow in store.iter_flows()} == expected

            subprocess.run(["mount", "-o", "remount,size=8m", str(folder)], check=True)
            assert_works(store)
            assert store.count_flows() == len(expected) + 1
    finally:
        subprocess.run(["umount", str(folder)], check=True)


LIMITED = """
import json, resource, sys
import catga_store as cs
store = cs.SQLiteStore(sys.argv[1])
order = cs.FlowSnapshot("order", state={"n": 0})
store.create(order)
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
answers = []
for n in range(1, 40):
    # The log may grow by so little that commits fail at every frame of it.
    size = __import__("os").stat(sys.argv[1] + "-wal").st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 700 * n, hard))
    order.state = {"n": n, "pad": "x" * 9000}
    error = None
    try:
        store.update(order)
    except cs.CommitUncertainError as uncertain:
        error = uncertain
    except cs.StoreUnavailableError:
        answers.append("refused")
    else:
        answers.append("written")
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    if error is not None:
        receipt = store.resolve_commit(error)
        answers.append("resolved as " + ("nothing" if receipt is None else "written"))
    stored = store.get_one("order")
    if "written" in answers[-1]:
        assert stored.state["n"] == n
    else:
        assert stored.version == order.version and stored.state["n"] != n
    order = stored
print(json.dumps(answers))
"""


def test_a_log_that_cannot_grow_is_settled_truthfully(path: Path) -> None:
    """Where the system cuts a commit off (RLIMIT_FSIZE), what is answered is what is stored."""
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(path)],
        capture_output=True,
        text=True,
        timeout=LONG,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    answers = set(json.loads(done.stdout))
    assert "written" in answers
    assert answers & {"refused", "resolved as nothing"}
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY


# --- locked ---------------------------------------------------------------------------------------

LOCK = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
for statement in sys.argv[2:]:
    connection.execute(statement)
print("locked", flush=True)
sys.stdin.readline()
"""


@contextmanager
def locked(path: Path, *statements: str) -> Iterator[None]:
    """Let another process do this to the file and keep it open."""
    command = [sys.executable, "-c", LOCK, str(path), *statements]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "locked\n"
        yield
        process.communicate("\n", timeout=LONG)


def test_a_file_locked_for_writing_refuses_writes(
    path: Path, store: cs.SQLiteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the busy timeout: `StoreUnavailableError` that says how long; reads go on meanwhile."""
    laid_out(path)
    monkeypatch.setattr(sqlite_connection, "BUSY_SECONDS", 0.05)
    with locked(path, "BEGIN IMMEDIATE"):
        with pytest.raises(
            cs.StoreUnavailableError,
            match=r"stayed locked by another process for 0\.05 s: .*; nothing was written",
        ):
            store.create(cs.FlowSnapshot("new", state=None))

        assert store.get_one("flow-0").state["n"] == 0

    assert store.get("new") is None
    assert_works(store)


def test_a_file_locked_for_good_refuses_everything(
    path: Path, store: cs.SQLiteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that keeps the file to itself is named as the reason, not an empty store."""
    laid_out(path)
    monkeypatch.setattr(sqlite_connection, "BUSY_SECONDS", 0.05)
    with locked(path, "PRAGMA locking_mode = EXCLUSIVE", "BEGIN EXCLUSIVE"):
        for use in OPERATIONS:
            with pytest.raises(cs.StoreUnavailableError, match="locked by another process"):
                use(store)

    assert_works(store)


def test_a_write_waits_for_the_lock(
    path: Path, store: cs.SQLiteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within the busy timeout a writer waits for another process, and then writes."""
    laid_out(path)
    waits = threading.Event()

    class Clock:
        monotonic = staticmethod(time.monotonic)

        @staticmethod
        def sleep(seconds: float) -> None:
            waits.set()
            time.sleep(seconds)

    monkeypatch.setattr(sqlite_connection, "time", Clock)
    with locked(path, "BEGIN IMMEDIATE"):
        thread = threading.Thread(target=store.create, args=(cs.FlowSnapshot("new", state=None),))
        thread.start()
        while thread.is_alive() and not waits.wait(0.01):
            pass

    thread.join(LONG)
    assert waits.is_set()
    assert store.get("new") is not None


def test_threads_queue_for_no_longer_than_the_busy_timeout(
    path: Path, store: cs.SQLiteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A writer behind a thread that hangs gets an error that says so."""
    laid_out(path)
    store.ping()
    monkeypatch.setattr(sqlite_connection, "BUSY_SECONDS", 0.05)
    with ThreadPoolExecutor(1) as another:
        writing = wire_of(store)._writing
        another.submit(writing.acquire).result(LONG)
        with pytest.raises(cs.StoreUnavailableError, match="locked by another thread"):
            store.create(cs.FlowSnapshot("new", state=None))

        assert store.get("new") is None
        another.submit(writing.release).result(LONG)

    assert_works(store)


# --- a COMMIT that fails --------------------------------------------------------------------------


FSYNC = sqlite3.SQLITE_IOERR_FSYNC


@pytest.mark.parametrize("applied", [False, True])
def test_a_commit_that_fails_once_is_settled_by_itself(
    store: cs.SQLiteStore, plan: list[tuple[int, bool]], applied: bool
) -> None:
    """It is asked again under its id and returns what the first would have: version 2, written once."""
    flow = cs.FlowSnapshot("order", state={"n": 0})
    store.create(flow)
    plan[:] = [(FSYNC, applied)]
    flow.state["n"] = 1
    store.update(flow)
    assert plan == []
    stored = store.get_one("order")
    assert (flow.version, stored.version, stored.state) == (2, 2, {"n": 1})
    assert stored.revision == flow.revision


@pytest.mark.parametrize("applied", [False, True])
def test_a_commit_that_keeps_failing_is_uncertain(
    store: cs.SQLiteStore, plan: list[tuple[int, bool]], applied: bool
) -> None:
    """`CommitUncertainError` until `resolve_commit` says what is stored; then it stays so."""
    store.create(cs.FlowSnapshot("order", state={"n": 0}))
    session = store.session()
    flow = session.get_one("order")
    flow.state["n"] = 1
    session.add(cs.FlowSnapshot("other", state=None))
    plan[:] = [(FSYNC, applied), *[(FSYNC, False)] * 7]
    with pytest.raises(cs.CommitUncertainError) as caught:
        session.commit()

    assert set(caught.value.keys) == {("flow", "order", 0, ""), ("flow", "other", 0, "")}
    with pytest.raises(cs.SessionClosedError):
        session.get("order")

    assert flow.version == 1
    with pytest.raises(cs.CommitUncertainError):  # a resolution has to be written, too
        store.resolve_commit(caught.value)

    assert plan == []
    for _ in range(2):
        receipt = store.resolve_commit(caught.value)
        assert (receipt is not None) is applied
        if receipt is not None:
            assert receipt.versions == {("flow", "order", 0, ""): 2, ("flow", "other", 0, ""): 1}

        assert store.get_one("order").state == {"n": int(applied)}
        assert (store.get("other") is not None) is applied

    assert_works(store)


@pytest.mark.parametrize("applied", [False, True])
def test_transact_counts_an_uncertain_commit_once(
    store: cs.SQLiteStore, plan: list[tuple[int, bool]], applied: bool
) -> None:
    """Written or not, the function's change is there exactly once at the end."""
    store.create(cs.FlowSnapshot("counter", state={"n": 0}))

    def add(session: cs.Session) -> None:
        session.get_one("counter").state["n"] += 1

    plan[:] = [(FSYNC, applied), *[(FSYNC, False)] * 3]
    store.transact(add)
    assert plan == []
    assert store.get_one("counter").state == {"n": 1}


@pytest.mark.parametrize(
    ("code", "error", "message"),
    [
        (sqlite3.SQLITE_FULL, cs.StoreUnavailableError, "is full"),
        (sqlite3.SQLITE_BUSY, cs.StoreUnavailableError, "stayed locked"),
        (sqlite3.SQLITE_CORRUPT, cs.CorruptRecordError, "is damaged"),
        (sqlite3.SQLITE_READONLY, cs.StoreConfigError, "cannot be written"),
        (sqlite3.SQLITE_NOMEM, cs.StoreUnavailableError, "cannot use"),
    ],
)
def test_a_commit_that_is_refused_is_definite(
    store: cs.SQLiteStore,
    plan: list[tuple[int, bool]],
    code: int,
    error: type[Exception],
    message: str,
) -> None:
    """What SQLite says has not happened is reported as that, and the object is as it was."""
    flow = cs.FlowSnapshot("order", state={"n": 0})
    store.create(flow)
    plan[:] = [(code, False)]
    flow.state["n"] = 1
    with pytest.raises(error, match=message):
        store.update(flow)

    assert (flow.version, store.get_one("order").version) == (1, 1)
    store.update(flow)
    assert store.get_one("order").state == {"n": 1}


# --- rows that were edited ------------------------------------------------------------------------

PAST = datetime(2020, 1, 1, tzinfo=UTC)


def fill(store: cs.Store) -> None:
    """Store a record of every kind for `bad`, and the same for `good`."""
    for name in ("bad", "good"):
        with store.begin() as session:
            session.add(cs.FlowSnapshot(name, state={"n": 1}))
            parent = cs.FlowSnapshot(f"{name}-parent", state={"n": 1})
            session.add(parent)
            wait = cs.WaitCondition(f"{name}-wait", flow_ids=["child"])
            session.suspend(parent, wait)
            progress = cs.ForEachProgress()
            progress.mark(3)
            session.save_for_each_progress(name, 0, progress)
            session.complete_child(f"{name}-wait", "child", result=1)


EDITS = [
    ("flow", "UPDATE catga_flows SET {} WHERE id = x'626164'", edit)
    for edit in (
        "body = x'00ff'",
        "body = 'text'",
        "body = substr(body, 1, 40)",
        "body = CAST(replace(body, '\"n\":1', '\"n\":') AS BLOB)",
        "status = 99",
        "status = 'done'",
        "version = 'two'",
        "position = 'x'",
        "type_version = x'00'",
        "created_ms = 9223372036854775807",
        "updated_ms = -9223372036854775808",
        "owner = x'ff'",
        "commits = x'ff'",
    )
] + [
    ("progress", "UPDATE catga_progress SET {} WHERE id = x'626164'", edit)
    for edit in ("body = x'00ff'", "body = '[]'", "version = 'x'", "body = x'7b7d'")
]
WAIT_EDITS = [
    ("UPDATE catga_waits SET {} WHERE id = CAST('bad-wait' AS BLOB)", edit)
    for edit in (
        "terms = '{'",
        "terms = '[5, false, null, null]'",
        "terms = '[[1], false, null, null]'",
        "terms = x'00'",
        "status = 99",
        "version = 'x'",
        "created_ms = 9223372036854775807",
    )
] + [
    ("UPDATE catga_items SET {} WHERE wait = CAST('bad-wait' AS BLOB)", edit)
    for edit in (
        "payload = 'text'",
        "payload = x'00ff'",
        "payload = x'35'",
        "success = 'x'",
        "child = x'ff'",
    )
]


def dump(path: Path) -> list[tuple[Any, ...]]:
    """Everything of the flow `bad` and its relations that is stored, byte by byte."""
    with raw(path) as connection:
        return [
            row
            for table in ("flows", "progress", "waits", "items")
            for row in connection.execute(f"SELECT * FROM catga_{table}")
            if row[0].startswith(b"bad")
        ]


def read_bad(api: cs.Store | cs.Session, kind: str) -> object:
    """Ask for the flow `bad` or for its progress."""
    return api.get("bad") if kind == "flow" else api.get_for_each_progress("bad", 0)


@pytest.mark.parametrize(("kind", "statement", "edit"), EDITS, ids=[edit[2] for edit in EDITS])
def test_an_edited_record_is_named_and_kept(
    path: Path, store: cs.SQLiteStore, kind: str, statement: str, edit: str
) -> None:
    """`CorruptRecordError` with its key wherever it is asked for; its neighbours are as before."""
    fill(store)
    with raw(path) as connection:
        assert connection.execute(statement.format(edit)).rowcount == 1

    before = dump(path)
    key = (kind, "bad", 0, "")
    for api in (store, store.session(), store.session()):
        with pytest.raises(cs.CorruptRecordError, match="nothing was changed") as caught:
            read_bad(api, kind)

        assert caught.value.key == key

    good = store.get_one("good")
    good.state["n"] = 2
    store.update(good)
    assert store.get_for_each_progress("good", 0) is not None
    assert store.claim("good-parent").wait_condition is not None
    assert dump(path) == before


@pytest.mark.parametrize(
    "edit", [edit for kind, _, edit in EDITS if kind == "flow" and edit[:4] not in ("body", "posi")]
)
def test_an_edited_flow_is_not_written_over(path: Path, store: cs.SQLiteStore, edit: str) -> None:
    """Nor by the update of what was read before: `CorruptRecordError`, and the row as it was.

    What an update replaces whole, a body or a position, it does not read.
    """
    fill(store)
    held = store.get_one("bad")
    with raw(path) as connection:
        connection.execute(f"UPDATE catga_flows SET {edit} WHERE id = x'626164'")

    before = dump(path)
    held.state["n"] = 2
    with pytest.raises(cs.CorruptRecordError, match="nothing was changed") as caught:
        store.update(held)

    assert caught.value.key == ("flow", "bad", 0, "")
    assert dump(path) == before


def result_of(store: cs.Store, correlation_id: str) -> object:
    """Return what the child of a condition has sent."""
    wait = store.get_wait_condition(correlation_id)
    assert wait is not None
    return wait.results["child"].result


@pytest.mark.parametrize(("statement", "edit"), WAIT_EDITS, ids=[edit[1] for edit in WAIT_EDITS])
def test_an_edited_condition_is_named_and_kept(
    path: Path, store: cs.SQLiteStore, statement: str, edit: str
) -> None:
    """`CorruptRecordError` with its key; other conditions are as before."""
    fill(store)
    with raw(path) as connection:
        assert connection.execute(statement.format(edit)).rowcount == 1

    with pytest.raises(cs.CorruptRecordError, match="nothing was changed") as caught:
        result_of(store, "bad-wait")

    assert caught.value.key == ("wait", "bad-wait", 0, "")
    assert result_of(store, "good-wait") == 1


CLAIM_EDITS = [
    *((statement, edit) for kind, statement, edit in EDITS if kind == "flow"),
    *WAIT_EDITS,
    ("UPDATE catga_flows SET {} WHERE id = CAST('bad-parent' AS BLOB)", "status = 99"),
    ("UPDATE catga_flows SET {} WHERE id = CAST('bad-parent' AS BLOB)", "body = x'00'"),
    ("UPDATE catga_flows SET {} WHERE id = x'626164'", "id = x'ff'"),
]


@pytest.mark.parametrize(
    ("statement", "edit"), CLAIM_EDITS, ids=[f"{n}-{edit[1]}" for n, edit in enumerate(CLAIM_EDITS)]
)
@pytest.mark.parametrize("limit", [1, 10])
def test_claimers_pass_over_what_they_cannot_read(
    path: Path, caplog: pytest.LogCaptureFixture, statement: str, edit: str, limit: int
) -> None:
    """The others are claimed, once each; what is broken is logged and stays."""
    failures._warned.clear()
    claimed: list[str] = []
    with cs.SQLiteStore(path) as store, caplog.at_level(logging.WARNING, "catga_store"):
        fill(store)
        with raw(path) as connection:
            assert connection.execute(statement.format(edit)).rowcount == 1

        while flows := store.claim_due(limit=limit):
            claimed += [flow.flow_id for flow in flows]

    broken = "bad-parent" if "wait" in statement or "parent" in statement else "bad"
    if claimed.count(broken):  # an error in what it does not need to be claimed
        assert "payload" in edit or "success" in edit
        claimed.remove(broken)
    else:
        assert caplog.records

    whole = {"bad", "bad-parent", "good", "good-parent"} - {broken}
    assert sorted(claimed) == sorted(whole)
    with raw(path) as connection:
        assert connection.execute("SELECT count(*) FROM catga_flows").fetchone() == (4,)


@pytest.mark.parametrize("edit", ["version = 'x'", "body = x'00'", "position = 'x'"])
def test_very_many_that_cannot_be_read_do_not_hide_one_that_can(path: Path, edit: str) -> None:
    """Whether a row is passed over at every look or put off by a lease, others get their turn."""
    with cs.SQLiteStore(path) as store:
        with store.begin() as session:
            for number in range(150):
                session.add(cs.FlowSnapshot(f"bad-{number}", state={}))

        store.create(cs.FlowSnapshot("good", state={}))
        with raw(path) as connection:
            connection.execute(f"UPDATE catga_flows SET {edit}, due_ms = 1 WHERE id < x'67'")

        assert [flow.flow_id for flow in store.claim_due()] == ["good"]
        assert store.claim_due(limit=10) == []


@pytest.mark.parametrize(
    "edit",
    [
        "UPDATE catga_flows SET version = 'x' WHERE id = x'626164'",
        "UPDATE catga_progress SET version = 'x' WHERE id = x'626164'",
        "UPDATE catga_waits SET version = 'x'",
    ],
)
def test_an_edited_expired_record_stays_and_stops_no_sweep(
    path: Path, store: cs.SQLiteStore, edit: str
) -> None:
    """The sweeping that commits do passes it over, and so does `sweep`; nothing deletes it."""
    fill(store)
    with raw(path) as connection:
        connection.execute("UPDATE catga_flows SET expires_ms = 1, due_ms = NULL, status = 4")
        connection.execute("UPDATE catga_waits SET expires_ms = 1, due_ms = NULL")
        connection.execute(edit)

    for _ in range(40):
        assert_works(store)

    store.sweep()
    with raw(path) as connection:
        table = edit.split()[1]
        assert connection.execute(
            f"SELECT count(*) FROM {table} WHERE version = 'x'"
        ).fetchone() > (0,)


@pytest.mark.parametrize("edit", ["created_ms = 'x'", "attempts = 'x'", "revision = x'00'"])
def test_a_row_of_a_flow_that_cannot_be_read_is_listed(
    path: Path, store: cs.SQLiteStore, edit: str
) -> None:
    """In listings it says why; it hides no others."""
    for flow_id in ("a", "bad", "c"):
        store.create(cs.FlowSnapshot(flow_id, state=None))

    with raw(path) as connection:
        connection.execute(f"UPDATE catga_flows SET {edit} WHERE id = ?", (b"bad",))

    assert_a_row(store, "bad", {"a", "c"})


def test_workers_are_warned_of_each_row_and_little_is_remembered_of_it(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file of nothing but rows that cannot be read fills no memory."""
    monkeypatch.setattr(failures, "_warned", {})
    monkeypatch.setattr(failures, "_WARNED_MOST", 5)

    def read(row: tuple[str]) -> None:
        raise rows.corrupt(Key(FLOW, row[0]), "all of it")

    names = [(f"f{number}",) for number in range(20)]
    with caplog.at_level(logging.WARNING, "catga_store"):
        for _ in range(2):
            assert rows.readable(names[:3], 9, read) == []

        assert len(caplog.records) == 3
        assert rows.readable(names, 9, read) == []

    assert "flow 'f19' cannot be read" in caplog.text
    assert 0 < len(failures._warned) <= 6


@pytest.mark.parametrize(("record_id", "step"), [("text", 0), (7, 0), (b"\xff", 0), (b"f", "1")])
def test_an_id_that_no_record_can_have(record_id: object, step: object) -> None:
    """An id is bytes of UTF-8, a step a number: another row is named as well as can be."""
    with pytest.raises(
        cs.CorruptRecordError, match="contains an invalid id, which this library did not write"
    ):
        rows.read_key(PROGRESS, record_id, step)


@pytest.mark.parametrize("reply", ["[", "[1]", "[[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]]"])
def test_a_kept_reply_that_cannot_be_read(reply: str) -> None:
    """It is an error of the store, which names the commit."""
    with pytest.raises(
        cs.CorruptRecordError, match="the stored reply to commit c cannot be read"
    ) as got:
        rows.read_outcomes("c", reply)

    assert got.value.key is None


# --- connections and forks --------------------------------------------------------------------------


def test_a_place_without_a_write_ahead_log_is_refused(tmp_path: Path) -> None:
    """What SQLite offers instead is said, and nothing is written."""
    with (
        raw(Path(":memory:")) as connection,
        pytest.raises(cs.StoreConfigError, match="SQLite offers only 'memory'"),
    ):
        sqlite_connection._set_up(connection, str(tmp_path / "flows.db"))


def test_a_call_whose_store_is_closed_meanwhile_leaves_nothing_open(store: cs.SQLiteStore) -> None:
    """A call that is under way when its store is closed ends, and then its connection is closed."""
    held: list[sqlite3.Connection] = []

    def close_meanwhile(tables: Any) -> str:
        held.append(tables.connection)
        store.close()
        return "done"

    store.ping()
    ours = wire_of(store)
    assert ours(Call(close_meanwhile, writes=False, single=True)) == "done"
    assert ours._idle == []
    with pytest.raises(sqlite3.ProgrammingError):
        held[0].execute("SELECT 1")


def test_a_forked_child_leaves_what_its_parents_threads_had_open(
    store: cs.SQLiteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To close it would let go of the parent's locks; the child opens its own, and can write."""
    ours = wire_of(store)
    traffic = Traffic()
    traffic.admit(ours)
    store.ping()
    (tables,) = ours._idle
    # By threads that are not in the child:
    ours._writing.acquire()
    traffic.stopped = True
    monkeypatch.setattr(file_locks, "_guards", file_locks._guards.copy())
    traffic.after_fork_in_child()
    assert sqlite_connection._inherited.pop() is tables
    assert tables.connection.execute("SELECT 1").fetchone() == (1,)
    assert_works(store)
    assert tables not in ours._idle
    tables.connection.close()


def test_a_commit_of_another_id_than_ours_is_written_the_long_way(store: cs.SQLiteStore) -> None:
    """What a record remembers is cut off by the length of ids: another length is not cut into."""
    flow = cs.FlowSnapshot("f", state={})
    store.create(flow)
    first = flow.revision
    key = Key(FLOW, "f")
    for commit_id in ("short", "an-id-that-is-much-longer-than-those-of-this-library"):
        (record,) = store._run(ask(Read((key,), 1)))
        old = record.head
        put = Put(key, old._replace(version=old.version + 1), b"{}", old.revision, old)
        store._run(ask(Commit(commit_id, 1, (put,), None)))
        (record,) = store._run(ask(Read((key,), 1)))
        assert record.head.revision == commit_id
        assert record.head.commits[1:2] == (old.revision,)

    assert record.head.commits[2] == first


# --- settings and plans ---------------------------------------------------------------------------


def test_every_connection_is_durable(path: Path, store: cs.SQLiteStore) -> None:
    """Of all connections that threads have opened, each has WAL and `synchronous=FULL`."""
    laid_out(path)
    barrier = threading.Barrier(6)
    connections: list[sqlite3.Connection] = []

    def use(tables: Any) -> None:
        connections.append(tables.connection)
        barrier.wait(LONG)

    threads = [
        threading.Thread(target=wire_of(store), args=(Call(use, writes=False),)) for _ in range(6)
    ]
    for thread in threads:
        thread.start()

    for thread in threads:
        thread.join(LONG)

    assert len(set(map(id, connections))) == 6
    for connection in connections:
        pragmas = ("journal_mode", "synchronous", "fullfsync", "trusted_schema", "busy_timeout")
        values = [connection.execute(f"PRAGMA {name}").fetchone()[0] for name in pragmas]
        assert values == ["wal", 2, 1, 0, 0]


def test_the_log_is_cut_back_after_a_large_commit(path: Path, store: cs.SQLiteStore) -> None:
    """A record of 40 MiB does not leave a log of 40 MiB behind for good."""
    log = path.with_name("flows.db-wal")
    store.create(cs.FlowSnapshot("large", state="x" * 40 * 2**20))
    assert log.stat().st_size > 40 * 2**20
    for _ in range(3):
        assert_works(store)

    assert log.stat().st_size <= sqlite_connection.LARGEST_IDLE_LOG


def test_a_log_that_readers_keep_is_cut_back(
    path: Path, store: cs.SQLiteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A log that has grown while it was read is emptied between two readers, by waiting for one."""
    log = path.with_name("flows.db-wal")
    sizes: list[int] = []

    class Watched(Failing):
        def execute(self, statement: str, values: Any = ()) -> sqlite3.Cursor:
            if "wal_checkpoint" in statement:
                sizes.append(log.stat().st_size)
                threading.Thread(target=reader.execute, args=("ROLLBACK",)).start()

            cursor = super().execute(statement, values)
            if "busy_timeout = 0" in statement:
                sizes.append(log.stat().st_size)

            return cursor

    connect = sqlite_connection._connect
    monkeypatch.setattr(
        sqlite_connection, "_connect", lambda *a, **k: Watched(connect(*a, **k), [])
    )
    monkeypatch.setattr(sqlite_connection, "LARGEST_IDLE_LOG", 64 * 1024)
    laid_out(path)
    with closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM catga_flows").fetchone()
        while not sizes:
            store.create(cs.FlowSnapshot(f"new-{log.stat().st_size}", state="x" * 2000))

    before, after = sizes
    assert before > 2 * 64 * 1024
    assert after == 0
    assert_works(store)


def statements(store: cs.Store) -> dict[str, list[str]]:
    """Ask for everything in every form, and answer the plan of each statement."""
    seen: dict[str, list[str]] = {}
    store.ping()
    (tables,) = wire_of(store)._idle
    execute = tables.connection.execute

    def explain(statement: str, values: Any = ()) -> Any:
        if statement not in seen and not statement.startswith("PRAGMA"):
            plan = execute(f"EXPLAIN QUERY PLAN {statement}", values).fetchall()
            seen[statement] = [row[3] for row in plan]

        return execute(statement, values)

    tables._execute = explain
    afters = (None, (5, "x"))
    for status, kind, first, last, updated, prefix, after in itertools.product(
        (None, 1), (None, "T"), (None, 3), (None, 9), (None, 7), (None, "x"), afters
    ):
        wanted = Filter(FLOW, status, kind, None, first, last, updated, prefix)
        tables.find(wanted, after, 10, 1)
        tables.count(wanted, 1)

    for status, parent, after in itertools.product((None, 0), (None, "P"), afters):
        tables.find(Filter(WAIT, status, None, parent), after, 10, 1)
        tables.count(Filter(WAIT, status, None, parent), 1)

    tags: tuple[Any, ...] = ((), (("t", "1"),), (("t", "1"), ("u", "")))
    for kind, tagged in itertools.product((None, ("T",)), tags):
        tables.due_flows(Due(1, 5, kind, tagged))
        tables.due_waits(Due(1, 5, kind, tagged))
        for claimed, start, end, after in itertools.product(
            (True, False), (None, 1), (None, 9), afters
        ):
            due = DueFilter(claimed, start, end, kind, tagged)
            tables.list_due(due, after, 5, 1)
            tables.count_due(due, 1)

    for status, prefix, tagged, after in itertools.product(
        (None, 1), (None, "x"), tags[1:], afters
    ):
        wanted = Filter(FLOW, status, created_after_ms=3, id_prefix=prefix, tags=tagged)
        tables.find(wanted, after, 10, 1)
        tables.count(wanted, 1)

    tables.totals(1)

    for kind in (FLOW, PROGRESS, WAIT):
        tables.scan(kind, None, 5)
        tables.scan(kind, Key(kind, "a"), 5)
        tables.record(Key(kind, "wait" if kind == WAIT else "a"))

    tables.head(Key(FLOW, "a"))
    tables.replace(Key(FLOW, "a"), Head(2, 0, 0, 0), b"", Head(1, 0, 0, 0), new_commit_id())
    tables.steps("a")
    tables.wait(Key(WAIT, "wait"))
    tables.item(Key(WAIT, "wait"), "child")
    tables.set_members(Key(WAIT, "wait"), ["child"])
    tables.remove_items(Key(WAIT, "wait"))
    tables.overdue(1, None)
    tables.overdue(1, 5)
    tables.expired(1, 5)
    tables.logged("id")
    tables.forget_log(1, 5)
    return seen


def test_no_statement_reads_a_whole_table(store: cs.SQLiteStore) -> None:
    """Each begins at an entry of an index, or walks an index in the order of a page; none sorts."""
    store.complete_child("wait", "child")
    plans = statements(store)
    assert len(plans) > 100

    for statement, plan in plans.items():
        for step in plan:
            if step.startswith("SCAN") and step != "SCAN CONSTANT ROW":
                paged = "LIMIT" in statement or "count(*)" in statement or "counts" in statement
                assert paged, (statement, step)
                short = step in ("SCAN catga_commits", "SCAN catga_counts")
                assert " INDEX " in step or short, (statement, step)

            if statement.startswith("UPDATE catga_flows"):
                assert step.endswith(("(id=? AND step=?)", "SUBQUERY 1", "PRIMARY KEY (id=?)"))

            # Entries of one millisecond may be put in order of their ids; nothing more is sorted.
            assert "TEMP B-TREE" not in step or "RIGHT PART OF ORDER BY" in step, (statement, step)


def test_counting_all_flows_reads_no_row(store: cs.SQLiteStore) -> None:
    """An index alone gives how many flows there are, of a status, of a type, with an id prefix."""
    plans = statements(store)
    counted = [
        plan
        for statement, plan in plans.items()
        if "count(*)" in statement
        and "catga_flows" in statement
        and "updated_ms" not in statement
        and "due_ms" not in statement
        and "catga_tags" not in statement
        and ("id >= ?" not in statement or "WHERE 1 AND id >= ?" in statement)
    ]
    assert len(counted) == 17
    for plan in counted:
        assert any("USING COVERING INDEX" in step for step in plan), plan


def test_pages_of_one_millisecond_are_complete(store: cs.SQLiteStore) -> None:
    """Flows that share their `created_at` are listed by id, each once, however pages fall."""
    with store.begin() as session:
        for n in range(30):
            moment = PAST + timedelta(milliseconds=n // 10)
            session.add(cs.FlowSnapshot(f"f-{n:02}", state=None, created_at=moment))

    expected = [f"f-{n:02}" for n in [*range(20, 30), *range(10, 20), *range(10)]]
    for limit in (1, 3, 10, 30):
        listed: list[str] = []
        cursor = None
        while True:
            page = store.query_flows(limit=limit, cursor=cursor)
            listed += [flow.flow_id for flow in page]
            cursor = page.cursor
            if cursor is None:
                break

        assert listed == expected


# --- what is large or odd -------------------------------------------------------------------------


def test_a_record_at_the_limit_is_kept(store: cs.SQLiteStore) -> None:
    """A state of almost 64 MiB comes back; one byte over the limit is refused, nothing written."""
    text = "x" * (64 * 2**20 - 200)
    store.create(cs.FlowSnapshot("large", state=text))
    assert store.get_one("large").state == text
    with pytest.raises(cs.RecordTooLargeError):
        store.create(cs.FlowSnapshot("larger", state=f"{text}{'x' * 200}"))

    assert store.get("larger") is None


@pytest.mark.parametrize("odd", ["a\0b", "\0", "é" * 256, "A", "a ", "'; DROP TABLE", "😀", "\n"])
def test_odd_ids_and_texts_come_back(store: cs.SQLiteStore, odd: str) -> None:
    """NUL, case and length stay what they are in ids, owners, errors and results."""
    store.create(cs.FlowSnapshot("a", state=None))
    store.create(cs.FlowSnapshot(odd, state=odd, error=odd))
    flow = store.claim(odd, owner=odd)
    assert (flow.flow_id, flow.state, flow.error, flow.owner) == (odd, odd, odd, odd)
    store.set_wait_condition(cs.WaitCondition(odd, flow_ids=[odd], parent_flow_id=odd))
    store.complete_child(odd, odd, success=False, error=odd)
    (wait,) = store.iter_wait_conditions(parent_flow_id=odd)
    assert wait.results[odd].error == odd
    assert sorted(flow.flow_id for flow in store.iter_flows()) == sorted({"a", odd})


def test_the_file_mode_follows_the_umask(path: Path, store: cs.SQLiteStore) -> None:
    """The file has the mode that the process's umask gives, and so has its log."""
    assert_works(store)
    plain = path.with_name("plain")
    plain.touch()
    mode = stat.S_IMODE(plain.stat().st_mode) & 0o644
    for file in (path, path.with_name("flows.db-wal")):
        assert stat.S_IMODE(file.stat().st_mode) == mode

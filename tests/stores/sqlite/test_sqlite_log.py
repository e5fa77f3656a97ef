"""The log of a SQLite file that is deleted under the processes that use it, and locks that are dropped.

POSIX drops the locks of a process on a file when the process closes any descriptor of it. Without
the guards of the store, the next process that closes the file deletes the log that is still in use.
"""

from __future__ import annotations

import json
import select
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

import catga_store as cs
from catga_store.stores.sqlite import file_locks
from catga_store.stores.sqlite.forks import traffic
from tests.support.waiting import until

SECONDS = 60
"""The deadline of one reply of another process."""

WORKER = """
import json, sys
import catga_store as cs

store = cs.SQLiteStore(sys.argv[1])
for line in sys.stdin:
    verb, *words = json.loads(line)
    try:
        if verb == "claim":
            reply = [flow.flow_id for flow in store.claim_due(limit=9)]
        elif verb == "create":
            reply = store.create(cs.FlowSnapshot(words[0], state={}, due_at=None))
        elif verb == "version":
            flow = store.get(words[0])
            reply = flow and flow.version
        else:
            store.close()
            store = cs.SQLiteStore(sys.argv[1])
            reply = None
    except cs.CatgaStoreError as error:
        reply = f"{type(error).__name__}: {error}"

    print(json.dumps(reply), flush=True)
"""

Ask = Callable[..., Any]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the file of the store is."""
    return tmp_path / "flows.db"


@pytest.fixture
def store(path: Path) -> Iterator[cs.SQLiteStore]:
    """A store of this process with one flow that is due."""
    with cs.SQLiteStore(str(path)) as opened:
        opened.create(cs.FlowSnapshot("due", state={}))
        yield opened


@pytest.fixture
def other(path: Path, store: cs.SQLiteStore) -> Iterator[Ask]:
    """Ask a worker in another process, which has the file open."""
    assert store is not None
    with started(path) as ask:
        assert ask("version", "due") == 1
        yield ask


class started:  # noqa: N801  a context manager
    """A worker in another process."""

    def __init__(self, path: Path) -> None:
        self.worker = subprocess.Popen(
            [sys.executable, "-c", WORKER, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Ask:
        return self.ask

    def ask(self, *words: str) -> Any:
        """Return the reply to one request."""
        assert self.worker.stdin is not None
        assert self.worker.stdout is not None
        self.worker.stdin.write(json.dumps(words) + "\n")
        self.worker.stdin.flush()
        readable, _, _ = select.select([self.worker.stdout], [], [], SECONDS)
        assert readable, f"no reply in {SECONDS} s"
        return json.loads(self.worker.stdout.readline())

    def __exit__(self, *_: object) -> None:
        self.worker.communicate(timeout=SECONDS)


def assert_sound(path: Path) -> None:
    """SQLite finds nothing wrong with the file."""
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


@pytest.mark.skipif(sys.platform != "linux", reason="locks of open file descriptions are Linux's")
@pytest.mark.parametrize("ends", [("",), ("", "-wal", "-shm")], ids=["file", "all three"])
def test_reading_the_file_in_a_worker_does_not_lose_its_log(
    path: Path, store: cs.SQLiteStore, other: Ask, ends: tuple[str, ...]
) -> None:
    """A hash, a copy or an upload closes a descriptor; then another process closes the store."""
    for end in ends:
        path.with_name(path.name + end).read_bytes()

    assert other("close") is None
    assert path.with_name("flows.db-wal").exists()
    assert [flow.flow_id for flow in store.claim_due(limit=9)] == ["due"]
    assert other("claim") == []
    store.create(cs.FlowSnapshot("ours", state={}, due_at=None))
    assert other("version", "ours") == 1
    assert other("create", "theirs") is None
    assert store.get_one("theirs").version == 1
    store.close()
    other("close")
    assert not path.with_name("flows.db-wal").exists(), "the last one still folds the log in"
    assert_sound(path)


LOCKS = """
import fcntl, sys
for path, first in ((sys.argv[1], 0x40000002), (sys.argv[1] + "-shm", 128)):
    with open(path, "r+b") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, first)
            print("free")
        except OSError:
            print("locked")
"""
"""The bytes by which SQLite tells whether another process has a file, and its index, open."""


@pytest.mark.skipif(sys.platform != "linux", reason="locks of open file descriptions are Linux's")
def test_reading_the_files_leaves_them_locked(path: Path, store: cs.SQLiteStore) -> None:
    """A process that opens them afterwards must not begin another index."""
    store.ping()
    for end in ("", "-shm"):
        path.with_name(path.name + end).read_bytes()

    done = subprocess.run(
        [sys.executable, "-c", LOCKS, str(path)],
        capture_output=True,
        text=True,
        check=True,
        timeout=SECONDS,
    )
    assert done.stdout.split() == ["locked", "locked"]


def test_removed_log_refuses_writes_until_all_have_closed(
    path: Path, store: cs.SQLiteStore, other: Ask
) -> None:
    """No process writes on; what the log held is saved by the last one that closes."""
    path.with_name("flows.db-wal").unlink()
    with pytest.raises(cs.StoreConfigError, match=r"the log of the file .* was removed") as caught:
        store.create(cs.FlowSnapshot("lost", state={}))

    assert "nothing was written" in str(caught.value)
    assert other("create", "lost").startswith("StoreConfigError: the log of the file")
    store.create(cs.FlowSnapshot("ours", state={}, due_at=None))
    assert other("create", "theirs") is None
    assert other("claim") == ["due"]
    assert {flow.flow_id for flow in store.iter_flows()} == {"due", "theirs", "ours"}
    store.close()
    other("close")
    assert_sound(path)


def test_process_that_comes_after_the_log_was_removed_is_refused(
    path: Path, store: cs.SQLiteStore
) -> None:
    """It would begin another log, which could not be read with the index of the first one."""
    path.with_name("flows.db-wal").unlink()
    with started(path) as late:
        for verb in (("create", "lost"), ("version", "due"), ("claim",)):
            assert late(*verb).startswith("StoreConfigError: the log of the file"), verb

        store.close()
        assert late("create", "late") is None
        assert late("version", "due") == 1

    assert_sound(path)


def test_removed_log_and_index_refuse_the_process_for_good(
    path: Path, store: cs.SQLiteStore, other: Ask
) -> None:
    """Closing would fold the old log into a file for which others have begun another one."""
    for end in ("-wal", "-shm"):
        path.with_name(path.name + end).unlink()

    for _ in range(2):
        with pytest.raises(cs.StoreConfigError, match="removed or replaced while this process"):
            store.create(cs.FlowSnapshot("lost", state={}))

    with (
        cs.SQLiteStore(str(path)) as again,
        pytest.raises(cs.StoreConfigError, match="end this process"),
    ):
        again.ping()

    assert "StoreConfigError" in other("create", "lost")
    assert "end this process" in other("claim")


def test_removed_index_refuses_the_process_for_good(
    path: Path, store: cs.SQLiteStore, other: Ask
) -> None:
    """A process that comes later makes another one, and both would write over each other's commits."""
    path.with_name("flows.db-shm").unlink()
    with started(path) as late:
        assert late("create", "late") is None
        for _ in range(2):
            with pytest.raises(cs.StoreConfigError, match=r"the log index of .* was removed"):
                store.create(cs.FlowSnapshot("lost", state={}))

        assert other("create", "lost").startswith("StoreConfigError: the log index of")
        assert late("create", "later") is None
        assert late("version", "due") == 1

    store.close()
    assert_holds(path, {"due", "late", "later"})


def test_closing_after_the_index_was_removed_loses_nothing(
    path: Path, store: cs.SQLiteStore
) -> None:
    """A process that has the removed index does not fold the log in, which has grown since."""
    path.with_name("flows.db-shm").unlink()
    with started(path) as late:
        assert late("create", "late") is None

    store.close()
    assert_holds(path, {"due", "late"})


def rely_on_folders_after(nanoseconds: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Set for how long a folder must not have changed, on any file system."""
    for name in ("_SETTLED_NS", "_SETTLED_COARSE_NS"):
        monkeypatch.setattr(file_locks, name, nanoseconds)


def pass_timestamp_of(folder: Path) -> None:
    """Wait until the next change of a folder has another timestamp."""
    changed = folder.stat().st_ctime_ns
    until(lambda: time.time_ns() > changed + 50_000_000)


@pytest.mark.parametrize("how", ["removed", "renamed", "replaced"])
@pytest.mark.parametrize("end", ["", "-wal", "-shm"])
def test_a_folder_that_had_not_changed_for_long(
    path: Path, store: cs.SQLiteStore, monkeypatch: pytest.MonkeyPatch, end: str, how: str
) -> None:
    """A write looks only at the folder then; what happens to a file in it is noticed all the same."""
    rely_on_folders_after(0, monkeypatch)
    pass_timestamp_of(path.parent)
    store.create(cs.FlowSnapshot("before", state={}, due_at=None))
    with monkeypatch.context() as looking:
        looking.setattr(file_locks.FileGuard, "_is_whole", lambda _: pytest.fail("it looks again"))
        store.create(cs.FlowSnapshot("ours", state={}, due_at=None))

    file = path.with_name(path.name + end)
    if how == "removed":
        file.unlink()
    elif how == "renamed":
        file.rename(path.with_name("kept"))
    else:
        other = path.with_name("other")
        other.write_bytes(file.read_bytes())
        other.replace(file)

    with pytest.raises(cs.StoreConfigError, match="removed or replaced"):
        store.create(cs.FlowSnapshot("lost", state={}))


def test_a_folder_that_has_just_changed_is_not_relied_on(
    store: cs.SQLiteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its next change may have the same timestamp, so the files are looked at."""
    rely_on_folders_after(3_600_000_000_000, monkeypatch)
    looks: list[bool] = []
    is_whole = file_locks.FileGuard._is_whole

    def look(guard: file_locks.FileGuard) -> bool:
        looks.append(is_whole(guard))
        return looks[-1]

    monkeypatch.setattr(file_locks.FileGuard, "_is_whole", look)
    for number in range(3):
        store.create(cs.FlowSnapshot(f"flow-{number}", state={}))

    assert looks == [True] * 3


def test_a_folder_with_timestamps_of_whole_seconds(path: Path) -> None:
    """As on FAT: it is relied on only when the next change cannot have the same timestamp."""
    guard = file_locks.FileGuard(str(path), str(path))
    now = time.time_ns()
    second = now - now % 1_000_000_000
    assert not guard._shows((1, 2, second))
    assert guard._shows((1, 2, second - 3_000_000_000))
    assert not guard._shows((1, 2, now))
    assert guard._shows((1, 2, second - 499_999_999))


def assert_holds(path: Path, flows: set[str]) -> None:
    """A process that comes now reads these flows, and the file is sound."""
    with started(path) as late:
        for name in flows:
            assert late("version", name) == 1, name

        assert late("version", "lost") is None

    assert_sound(path)


def test_stores_on_one_file_share_its_locks(path: Path, store: cs.SQLiteStore) -> None:
    """Closing one store does not drop the locks of another in the same process."""
    link = path.with_name("link.db")
    link.symlink_to(path)
    for name in (path, link):
        with cs.SQLiteStore(str(name)) as second:
            assert second.get_one("due").version == 1

    with started(path) as late:
        assert late("version", "due") == 1
        assert late("close") is None

    assert path.with_name("flows.db-wal").exists(), "the log of a file that is open"
    store.create(cs.FlowSnapshot("ours", state={}))
    assert_sound(path)


def test_a_store_behind_a_link(path: Path) -> None:
    """Its log is beside the file; what happens to the link, the file and the log is noticed."""
    link = path.with_name("link.db")
    link.symlink_to(path)
    with cs.SQLiteStore(str(link)) as store:
        store.create(cs.FlowSnapshot("due", state={}))
        with started(path) as other:
            assert other("version", "due") == 1
            assert other("create", "theirs") is None

        assert store.get_one("theirs").version == 1
        link.unlink()
        link.symlink_to(path.with_name("other.db"))
        with cs.SQLiteStore(str(link)) as another:
            another.create(cs.FlowSnapshot("other", state={}))

        with pytest.raises(
            cs.StoreConfigError, match="has been removed or replaced since it was open"
        ):
            store.create(cs.FlowSnapshot("lost", state={}))

        assert store.get("lost") is None
        assert store.get_one("other").version == 1
        path.with_name("other.db-wal").unlink()
        with pytest.raises(cs.StoreConfigError, match=r"the log of the file .* was removed"):
            store.create(cs.FlowSnapshot("lost", state={}))

    assert_sound(path)


def test_a_link_in_another_folder(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That folder does not change with the files, so they are looked at."""
    rely_on_folders_after(0, monkeypatch)
    link = path.parent / "links" / "link.db"
    link.parent.mkdir()
    link.symlink_to(path)
    pass_timestamp_of(link.parent)
    with cs.SQLiteStore(str(link)) as store:
        store.create(cs.FlowSnapshot("before", state={}))
        path.with_name("flows.db-wal").unlink()
        with pytest.raises(cs.StoreConfigError, match=r"the log of the file .* was removed"):
            store.create(cs.FlowSnapshot("lost", state={}))

    assert_sound(path)


def test_no_connection_and_no_lock_crosses_a_fork(path: Path, store: cs.SQLiteStore) -> None:
    """Before a fork everything is closed: the log is folded in, as there is no other process."""
    driver: Any = store._driver
    assert driver.transport._idle
    traffic.before_fork()
    try:
        assert driver.transport._idle == []
        assert not path.with_name("flows.db-wal").exists()
    finally:
        traffic.after_fork_in_parent()

    store.create(cs.FlowSnapshot("after", state={}))

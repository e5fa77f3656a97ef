"""Ways to name a file that cannot be a store: each is an error of this library that says what to do."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

import catga_store as cs

SECONDS = 60


def laid_out(path: Path, partitions: int = 1) -> None:
    """Make a store that is right."""
    with cs.SQLiteStore(path, partitions=partitions) as store:
        store.ping()


def folder(path: Path) -> None:
    """A folder is where the file should be."""
    path.mkdir()


def folder_for_the_log(path: Path) -> None:
    """A folder is where the log should be."""
    laid_out(path)
    path.with_name(f"{path.name}-wal").mkdir()


def folder_for_the_index(path: Path) -> None:
    """A folder is where the index of the log should be."""
    laid_out(path)
    path.with_name(f"{path.name}-shm").mkdir()


def device(path: Path) -> None:
    """A device is where the file should be."""
    path.symlink_to("/dev/null")


def loop(path: Path) -> None:
    """The file is a link to itself."""
    path.symlink_to(path.name)


def dangling_link(path: Path) -> None:
    """The file is a link into a folder that does not exist."""
    path.symlink_to(path.parent / "nowhere" / "flows.db")


def text_file(path: Path) -> None:
    """The file is long enough for a database, and is not one."""
    path.write_text("hello " * 1000, encoding="utf-8")


def short_file(path: Path) -> None:
    """The file is too short for a database; SQLite would write over it."""
    path.write_text("hello", encoding="utf-8")


def other_database(path: Path) -> None:
    """The file belongs to another program."""
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE theirs (x)")


def other_layout(path: Path) -> None:
    """The store was written by another release."""
    laid_out(path)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE catga_layout SET version = 99")


def other_partitions(path: Path) -> None:
    """The store has another number of partitions."""
    laid_out(path, partitions=4)


Make = Callable[[Path], None]

WRONG: list[tuple[Make, type[cs.CatgaStoreError], str]] = [
    (folder, cs.StoreConfigError, "is a directory or a device, not a regular file"),
    (folder_for_the_log, cs.StoreConfigError, "flows.db-wal' is a directory or a device"),
    (folder_for_the_index, cs.StoreConfigError, "flows.db-shm' is a directory or a device"),
    (device, cs.StoreConfigError, "is a directory or a device"),
    (loop, cs.StoreConfigError, "symbolic links"),
    (dangling_link, cs.StoreConfigError, "nowhere' does not exist; create the directory"),
    (text_file, cs.CorruptRecordError, "is not a SQLite database"),
    (short_file, cs.CorruptRecordError, "is not a SQLite database"),
    (other_database, cs.StoreConfigError, "its 1 table was not created by this library"),
    (other_layout, cs.StoreConfigError, "the store has layout version 99"),
    (other_partitions, cs.PartitionCountError, "was created with 4 partitions but opened with 1"),
]


@pytest.mark.parametrize(
    ("make", "error", "said"), WRONG, ids=lambda one: getattr(one, "__name__", "")
)
def test_misconfigured_file_is_refused(
    tmp_path: Path, make: Make, error: type[cs.CatgaStoreError], said: str
) -> None:
    """Every operation raises the same error, says once that nothing was written, and writes nothing."""
    path = tmp_path / "flows.db"
    make(path)
    before = path.read_bytes() if path.is_file() else None
    with cs.SQLiteStore(path) as store:
        for use in (
            store.ping,
            lambda: store.create(cs.FlowSnapshot("x", state={})),
            lambda: store.get("x"),
            store.count_flows,
        ):
            with pytest.raises(error) as caught:
                use()

            assert said in str(caught.value)
            assert str(caught.value).count("nothing was written") <= 1

    assert (path.read_bytes() if path.is_file() else None) == before


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        (("missing", "flows.db"), "missing' does not exist; create the directory"),
        (("file", "flows.db"), "file' does not exist; create the directory"),
        (("x" * 300,), "File name too long"),
    ],
)
def test_path_that_no_file_can_have_is_refused(
    tmp_path: Path, parts: tuple[str, ...], said: str
) -> None:
    """The error says which folder is missing, or what the system says of the name."""
    (tmp_path / "file").touch()
    with (
        cs.SQLiteStore(tmp_path.joinpath(*parts)) as store,
        pytest.raises(cs.StoreConfigError, match=said) as caught,
    ):
        store.ping()

    assert str(caught.value).count("nothing was written") == 1


WITHOUT_DESCRIPTORS = """
import json, os, resource, sys
import catga_store as cs

left = int(sys.argv[2])
store = cs.SQLiteStore(sys.argv[1])
import catga_store.stores.sqlite.connection

resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
held = []
try:
    while True:
        held.append(os.open(os.devnull, os.O_RDONLY))
except OSError:
    for _ in range(left):
        os.close(held.pop())

replies = []
for use in (store.ping, lambda: store.create(cs.FlowSnapshot("x", state={}))):
    try:
        use()
        replies.append("done")
    except cs.CatgaStoreError as error:
        replies.append(f"{type(error).__name__}: {error}")

for descriptor in held:
    os.close(descriptor)

store.create(cs.FlowSnapshot("after", state={}))
print(json.dumps(replies))
"""


@pytest.mark.skipif(os.name != "posix", reason="a limit of descriptors is one of POSIX")
@pytest.mark.parametrize("left", range(5))
def test_missing_file_descriptors_are_named(tmp_path: Path, left: int) -> None:
    """A store needs five: with fewer it is unavailable, says so, and works when there are some."""
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_DESCRIPTORS, str(tmp_path / "flows.db"), str(left)],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=True,
    )
    replies = json.loads(done.stdout)
    for reply in replies:
        assert reply.startswith("StoreUnavailableError: "), reply
        assert "no file descriptors left" in reply
        assert reply.count("nothing was written") == 1

"""The doctor of SQLite stores: journal, disk, file system, integrity.

It looks through a connection that cannot write to the file.
"""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
import tempfile
from collections.abc import Generator
from collections.abc import Iterator
from contextlib import closing
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote
from urllib.parse import unquote
from urllib.parse import urlsplit

from catga_store.stores.findings import Finding
from catga_store.stores.findings import Scratch
from catga_store.stores.findings import no_store

__all__ = ["SQLiteDoctor", "file_system_of"]

_MIB = 1024 * 1024
_LARGE_LOG = 64 * _MIB
"""Four times what the store leaves of an idle log: then something keeps it from being checkpointed."""
_MOST_MINUTES = 5
"""A checkpoint writes the file after the log, but at once."""
_LITTLE_SPACE = 1024 * _MIB

_NETWORK = {
    "9p",
    "afs",
    "beegfs",
    "ceph",
    "cifs",
    "davfs",
    "fuse.glusterfs",
    "fuse.rclone",
    "fuse.s3fs",
    "fuse.sshfs",
    "glusterfs",
    "gpfs",
    "lustre",
    "ncpfs",
    "nfs",
    "nfs4",
    "orangefs",
    "smb3",
    "smbfs",
    "vboxsf",
    "virtiofs",
}
_VOLATILE = {"ramfs", "tmpfs"}


class SQLiteDoctor:
    """Looks at a SQLite file, its disk and its contents; see `Doctor`."""

    def absent(self, url: str) -> str | None:
        """Say why the file is not a store yet; None if it is one, or if opening it says more."""
        path = _path(url)
        if not path.exists():
            return f"there is no file {str(path)!r}"

        try:
            with closing(_look(path)) as connection:
                tables = connection.execute(
                    "SELECT count(*), total(name = 'catga_layout') FROM sqlite_master"
                ).fetchone()
        except sqlite3.Error:
            return None

        return (
            f"the file {str(path)!r} is empty, because no store has been created in it yet"
            if tables[0] == 0
            else None
        )

    def examine(self, url: str) -> Iterator[Finding]:
        """Look at the file, its disk and its contents."""
        missing = self.absent(url)
        if missing is not None:
            yield no_store(missing)
            return

        path = _path(url)
        size = path.stat().st_size
        yield Finding(
            "file", "info", f"{path}, {_mib(size)}", "the file holds every record of the store"
        )
        yield from _file_system(path)
        yield _space(path, size)
        yield _writable(path)

        yield _log(path)
        yield from _older_log(path)
        yield _synchronous()
        try:
            with closing(_look(path)) as connection:
                yield _journal(connection)
                yield _integrity(connection)
        except sqlite3.Error as error:
            yield Finding(
                "integrity",
                "problem",
                f"SQLite cannot read the file: {error}",
                "no flow can be read",
                (
                    "make sure that it is a SQLite database, that this user can read it, and "
                    "that it is not locked"
                ),
            )

        yield Finding(
            "SQLite",
            "info",
            sqlite3.sqlite_version,
            "this Python is linked with this release of SQLite",
        )

    @contextmanager
    def scratch(self, url: str) -> Generator[Scratch]:
        """Make a file in a new directory beside the store's, so that it is on the same disk."""
        parent = _path(url).parent
        with tempfile.TemporaryDirectory(prefix="catga-store-bench-", dir=parent) as folder:
            file = Path(folder) / "bench.db"
            yield Scratch(f"sqlite:///{quote(str(file))}", f"in the file {file}")


def _path(url: str) -> Path:
    return Path(unquote(urlsplit(url).path)[1:]).absolute()


def _look(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=5)


def _mib(size: int) -> str:
    return f"{size / _MIB:,.1f} MiB"


def file_system_of(path: Path, mounts: str) -> tuple[str, str] | None:
    """Return mount point and type of the file system of a path, from the text of Linux's `mountinfo`."""
    best: tuple[str, str] | None = None
    for line in mounts.splitlines():
        before, _, after = line.partition(" - ")
        fields = before.split()
        kind = after.split()[:1]
        if len(fields) < 5 or not kind:  # noqa: PLR2004  the mount point is the fifth
            continue

        point = re.sub(r"\\(\d{3})", lambda code: chr(int(code[1], 8)), fields[4])  # \040: a space
        covers = path == Path(point) or Path(point) in path.parents
        # Of two mounts on one point, the later one covers the other.
        if covers and (best is None or len(point) >= len(best[0])):
            best = point, kind[0]

    return best


def _file_system(path: Path) -> Iterator[Finding]:
    try:
        mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        mounts = ""

    found = file_system_of(path.resolve(), mounts)
    if found is None:
        yield Finding(
            "file system",
            "unknown",
            "this system does not report the file system type",
            "SQLite's locks do not work on a network share, so commits can be lost, or "
            "written only in part",
            "make sure that the file is on a local disk",
        )
        return

    point, kind = found
    seen = f"{kind}, mounted at {point}"
    if kind in _NETWORK:
        yield Finding(
            "file system",
            "problem",
            seen,
            "this is a network or shared file system: SQLite's locks and shared memory do "
            "not work between hosts, so two workers may claim the same flow, and the file "
            "may be damaged",
            "put the file on a local disk; to use several hosts, use a store on a server",
        )
    elif kind in _VOLATILE:
        yield Finding(
            "file system",
            "warning",
            seen,
            "this file system is in memory, so every flow is lost when the host restarts",
            "put the file on a disk",
        )
    elif kind == "overlay":
        yield Finding(
            "file system",
            "warning",
            seen,
            (
                "this is the writable layer of a container, so every flow is lost when the "
                "container is removed"
            ),
            "put the file on a volume",
        )
    else:
        yield Finding("file system", "ok", seen, "the file system type indicates a local disk")


def _space(path: Path, size: int) -> Finding:
    free = shutil.disk_usage(path.parent).free
    found = f"{_mib(free)} free"
    if free < max(_LITTLE_SPACE, size // 10):
        return Finding(
            "free space",
            "warning",
            found,
            "when the disk is full, every write fails with StoreUnavailableError; no stored "
            "record is lost, but no flow can continue",
            "free up or add disk space; to keep ended flows for a shorter time, use `Retention`",
        )

    return Finding("free space", "ok", found, "the store and its log have room to grow")


def _writable(path: Path) -> Finding:
    missing = [str(place) for place in (path, path.parent) if not os.access(place, os.W_OK)]
    if missing:
        return Finding(
            "permissions",
            "problem",
            f"this user has no write access to {' and '.join(missing)}",
            (
                "no flow can be written, because SQLite writes to the file and to its directory "
                "(for the log)"
            ),
            "run the worker as the file's owner, or change the owner of the file",
        )

    return Finding(
        "permissions",
        "ok",
        "this user can write to the file and its directory",
        "flows can be written",
    )


def _journal(connection: sqlite3.Connection) -> Finding:
    (mode,) = connection.execute("PRAGMA journal_mode").fetchone()
    if mode == "wal":
        return Finding(
            "journal mode", "ok", "wal", "readers and the writer do not block each other"
        )

    return Finding(
        "journal mode",
        "problem",
        str(mode),
        "another program has changed the mode; until a worker opens the store and sets the "
        "mode to wal again, readers and the writer block each other",
        "prevent other programs from changing the file's settings",
    )


def _synchronous() -> Finding:
    return Finding(
        "synchronous",
        "info",
        "this library sets FULL on each of its connections; the setting is not stored in the file",
        "an acknowledged commit is on the disk, if the disk keeps the data that it has synced",
        "other programs that write to the file must set FULL themselves",
    )


def _log(path: Path) -> Finding:
    try:
        size = Path(f"{path.resolve()}-wal").stat().st_size
    except FileNotFoundError:
        size = 0

    if size > _LARGE_LOG:
        return Finding(
            "log size",
            "warning",
            _mib(size),
            "SQLite cannot checkpoint the log into the file, so reads become slower, and the "
            "disk fills up",
            "look for a process that keeps a read transaction open, such as a backup or a shell",
        )

    return Finding(
        "log size", "ok", _mib(size), "SQLite checkpoints the log into the file as expected"
    )


def _older_log(path: Path) -> Iterator[Finding]:
    """Warn of a log that was last written long before the file."""
    try:
        log = Path(f"{path.resolve()}-wal").stat()
        minutes = (path.stat().st_mtime - log.st_mtime) / 60
    except FileNotFoundError:
        return

    if log.st_size and minutes > _MOST_MINUTES:
        yield Finding(
            "log age",
            "warning",
            f"the file was changed {minutes:,.0f} minutes after its log was last written",
            "if a backup has replaced the file, this log belongs to the previous file, and "
            "SQLite applies it to the backup, so the restore has no effect, or the file is "
            "damaged",
            "to restore, stop the workers, remove the file and the files that end in -wal "
            "and -shm, and copy the backup into place",
        )


def _integrity(connection: sqlite3.Connection) -> Finding:
    rows = [str(row[0]) for row in connection.execute("PRAGMA quick_check(5)")]
    problems = [line for row in rows for line in row.splitlines()]
    if problems == ["ok"]:
        return Finding("integrity", "ok", "quick_check: ok", "the file is intact")

    return Finding(
        "integrity",
        "problem",
        "; ".join(problems),
        "the file is damaged, so records may be unreadable or missing",
        (
            "stop the workers, and keep a copy of the file; then restore a backup, or try "
            "`sqlite3 FILE .recover`"
        ),
    )

"""Keep the log of a SQLite file with the file, while a process has both open.

POSIX drops all locks that a process has on a file when the process closes any descriptor of that
file. So hashing, copying or uploading `flows.db` inside a worker drops SQLite's locks. The next
process that closes the file then believes that it is the last one and deletes the log, into which
the worker still writes. A guard prevents that: it holds the same locks once more, as locks of an
open file description (Linux), which only the guard's own descriptors can drop. They block nothing
but "I am the last one".

A log can also be removed by hand. So a guard knows which log and which index of the log belong to
the connections of this process, and `trouble` says if they are not in their places any more. That
costs one `stat` of the folder for each write, which changes when a file in it is removed, renamed or
replaced; only then, the file, its log and its index are looked at.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import struct
import threading
import time
from importlib import import_module
from typing import Any

from catga_store.errors import StoreConfigError

fcntl: Any
try:
    fcntl = import_module("fcntl")
except ImportError:  # pragma: no cover  Windows, where locks do not go with another descriptor
    fcntl = None

__all__ = [
    "FileGuard",
    "enter",
    "forget_after_fork",
    "place_of",
    "resume_after_fork",
    "stop_for_fork",
]

_SHARED_BYTES = 0x40000002, 510
"""Of the file: which bytes SQLite locks while it has the file open."""

_INDEX_BYTES = 128, 1
"""Of the index of the log: the byte that SQLite locks while it has the index open."""

_HEADER = struct.Struct("=12xB1xHI28x")
"""Of the index, twice: whether it is ready, the page size, and how many frames the log has."""

_SETTLED_NS, _SETTLED_COARSE_NS = 100_000_000, 2_000_000_000
"""How long ago a folder must have changed, so that its next change has another timestamp for certain.

Kernels before 6.13 take timestamps from a clock that ticks every 1 to 10 ms; file systems like FAT keep whole
seconds, every other one.
"""

_guards: dict[str, FileGuard] = {}
_lock = threading.RLock()


def place_of(path: str) -> tuple[int, int] | None:
    """Return which file a path leads to, None if there is none."""
    try:
        found = os.stat(path)  # noqa: PTH116  asked before every write: a Path costs more than this
    except OSError:
        return None

    return found.st_dev, found.st_ino


def enter(path: str) -> FileGuard:
    """Return the guard of a file, before a connection to it is opened; `leave` must follow.

    Raises `StoreConfigError` if this process has lost the log of the file for good.
    """
    real = os.path.realpath(path)
    with _lock:
        while True:
            guard = _guards.get(real)
            if guard is None or (
                not guard.is_lost and guard.file not in (None, place_of(path))
            ):  # for another file in its place; connections to the old one keep theirs
                guard = _guards[real] = FileGuard(path, real)

            if guard.is_lost:
                raise StoreConfigError(guard.why_lost.format(path=path))

            guard.connections += 1
            if _guards.get(real) is guard:  # else a finalizer has closed the last one meanwhile
                return guard


def stop_for_fork() -> None:
    """Let no connection be opened or closed for good; `resume_after_fork` must follow."""
    _lock.acquire()


def resume_after_fork() -> None:
    """Let connections be opened and closed again, in the parent."""
    _lock.release()


def forget_after_fork() -> None:
    """Drop the guards of the parent in its child; the parent's locks stay."""
    global _lock  # noqa: PLW0603  another thread of the parent may have held it
    _lock = threading.RLock()
    for guard in _guards.values():
        guard.let_go()

    _guards.clear()


class FileGuard:
    """The locks on one file that all connections of this process share."""

    def __init__(self, path: str, real: str) -> None:
        self._path = path
        self._log_path = f"{real}-wal"  # SQLite puts it beside the file that a link leads to
        self._index_path = f"{real}-shm"
        self._real = real
        self._folder = os.path.dirname(path) or "."  # noqa: PTH120  for `stat`, as in `place_of`
        self._whole_folder: tuple[int, int, int] | None = None
        """The folder, and when it last changed, if all was in its place after that."""
        self._descriptors: list[int] = []
        self._names: list[tuple[bytes, bytes]] = []
        self._names_in = -1
        """The open folder of this process's descriptors; see `_watch`."""
        self.connections = 0
        self.is_abandoned = False
        """No connection is kept for another call."""
        self.is_lost = False
        """No connection may be closed any more, nor opened; see `abandon`."""
        self.why_lost = _LOST
        self.file: tuple[int, int] | None = None
        self._log: tuple[int, int] | None = None
        self._index: tuple[int, int] | None = None

    def hold(self) -> None:
        """Take the locks, once a first connection has opened the file, its log and the index.

        Raises `StoreConfigError` if the log is not the one that the index is of.
        """
        with _lock:
            if self.file is not None:
                return

            if fcntl is not None and hasattr(fcntl, "F_OFD_SETLK"):
                for path, bytes_ in (
                    (self._path, _SHARED_BYTES),
                    (self._index_path, _INDEX_BYTES),
                ):
                    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                    self._descriptors.append(descriptor)
                    _set_lock(descriptor, fcntl.F_RDLCK, bytes_)

                if self._is_log_cut():
                    raise StoreConfigError(_CUT.format(path=self._path))

            self._log = place_of(self._log_path)
            self._index = place_of(self._index_path)
            self._watch()
            self.file = place_of(self._path)

    def _watch(self) -> None:
        """Note by which names the kernel knows the open log and the open index, where it tells.

        A `stat` of a file that is written all the time makes the next write to it dearer: since Linux
        6.13 it then gets a timestamp of its own, which the file system has to store. Asking for a name
        does not; with `stat` an update took 207 µs, with names 174 (p50 of 6,000 updates). A name
        asked in bytes, and from the open folder, costs a third less than one asked by its path.
        """
        with contextlib.suppress(OSError):
            self._descriptors.append(os.open(self._log_path, os.O_RDONLY | os.O_CLOEXEC))
            numbers = [str(number).encode() for number in self._descriptors[1:]]
            self._names_in = os.open("/proc/self/fd", os.O_RDONLY | os.O_CLOEXEC)
            self._descriptors.append(self._names_in)
            self._names = [
                (number, os.readlink(number, dir_fd=self._names_in)) for number in numbers
            ]

    def _have_names(self) -> bool:
        """Whether the log and the index are still where they were opened, as far as names tell."""
        readlink, folder = os.readlink, self._names_in
        try:
            for number, name in self._names:
                if readlink(number, dir_fd=folder) != name:
                    return False
        except OSError:
            return False

        return bool(self._names)

    def _is_log_cut(self) -> bool:
        """Whether the index names frames that the log does not have: then another log is there."""
        while True:
            header = os.pread(self._descriptors[1], 2 * _HEADER.size, 0)
            if len(header) < 2 * _HEADER.size or header[: _HEADER.size] != header[_HEADER.size :]:
                return False  # nothing was written yet, or another process is writing right now

            is_ready, page_size, frames = _HEADER.unpack_from(header)
            if not is_ready or not frames:
                return False

            page_size = page_size if page_size != 1 else 65536
            size = 0
            with contextlib.suppress(OSError):
                size = os.stat(self._log_path).st_size  # noqa: PTH116  as above

            if size >= 32 + frames * (24 + page_size):
                return False

            # A checkpoint that cuts the log writes the header first.
            if os.pread(self._descriptors[1], 2 * _HEADER.size, 0) == header:
                return True

    def header(self) -> bytes | None:
        """Return what every commit changes: the header of the index of the log. `None` if it cannot be read.

        It is read without a transaction: 2 µs, where `PRAGMA data_version` takes 40.
        """
        try:
            return os.pread(self._descriptors[1], 2 * _HEADER.size, 0)
        except (IndexError, OSError):
            return None

    def trouble(self) -> str | None:
        """Return what happened to the file, its log or the index, None if all are in their places."""
        try:  # every write asks this, and looks at the folder alone as long as that has not changed
            found = os.stat(self._folder)  # noqa: PTH116  as in `place_of`
            folder = found.st_dev, found.st_ino, found.st_ctime_ns
            if folder == self._whole_folder:
                return None
        except OSError:
            folder = None

        if self._is_whole():
            self._whole_folder = folder if folder is not None and self._shows(folder) else None
            return None

        if place_of(self._path) != self.file:
            text = _MOVED
        elif place_of(self._log_path) != self._log:
            text = _LOG_GONE
        else:
            text = _INDEX_GONE

        return text.format(path=self._path)

    def _is_whole(self) -> bool:
        """Whether the file, its log and its index are in their places."""
        return place_of(self._path) == self.file and (
            self._have_names()
            or (place_of(self._log_path) == self._log and place_of(self._index_path) == self._index)
        )

    def _shows(self, folder: tuple[int, int, int]) -> bool:
        """Whether this folder will look different once one of the files is removed or replaced."""
        changed_ns = folder[2]
        age_ns = _SETTLED_NS if changed_ns % 1_000_000_000 else _SETTLED_COARSE_NS
        is_settled = changed_ns + age_ns < time.time_ns()
        return is_settled and not os.path.islink(self._path)  # noqa: PTH114  as in `place_of`

    def abandon(self) -> None:
        """After trouble: note whether the connections may still be closed.

        The last connection that is closed folds the log into the file. That saves what is in a log
        that was removed, but it would damage a file for which others have begun another log.
        """
        self.is_abandoned = True
        log, index = place_of(self._log_path), place_of(self._index_path)
        is_replaced = place_of(self._path) != self.file
        if index != self._index and not (is_replaced and log is None and index is None):
            self.is_lost = True
            self.why_lost = _INDEX_GONE if log == self._log else _LOST

    def leave(self, connection: sqlite3.Connection | None) -> None:
        """Close a connection. The last one gives the locks back first, and may delete the log."""
        if self.connections == 1 and self.file is not None and self.trouble() is not None:
            self.abandon()  # closing would fold what this process knows into what others have written

        if self.is_lost:
            _left_open.append(connection)
            return

        with _lock:
            self.connections -= 1
            if self.connections == 0:
                if _guards.get(self._real) is self:
                    del _guards[self._real]

                for descriptor, bytes_ in zip(
                    self._descriptors, (_SHARED_BYTES, _INDEX_BYTES), strict=False
                ):
                    _set_lock(descriptor, fcntl.F_UNLCK, bytes_)

                # Under the lock, so that no connection is opened meanwhile: `let_go` drops its locks.
                if connection is not None:
                    connection.close()

                self.let_go()
                return

        if connection is not None:
            connection.close()

    def let_go(self) -> None:
        """Close the guard's descriptors, when this process has no connection to the file."""
        self._names = []
        while self._descriptors:
            os.close(self._descriptors.pop())


_left_open: list[sqlite3.Connection | None] = []
"""Connections that must not be closed any more: see `FileGuard.abandon`."""


def _set_lock(descriptor: int, kind: int, bytes_: tuple[int, int]) -> None:
    fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, struct.pack("hhqqi", kind, os.SEEK_SET, *bytes_, 0))


_MOVED = (
    "the file {path!r} has been removed or replaced since it was opened, so its connections "
    "were closed and nothing was written; restore the file, or open the store again"
)
_LOG_GONE = (
    "the log of the file {path!r} ({path}-wal) was removed or replaced while this process "
    "had it open, so nothing was written; close the file in every process that uses it, or "
    "end those processes (the last process saves the part of the log that it has), then open "
    "the store again"
)
_CUT = (
    "the log of the file {path!r} ({path}-wal) was removed while other processes have it "
    "open, so nothing was written; close the file in every process that uses it, or end "
    "those processes (the last process saves the part of the log that it has), then open the "
    "store again"
)
_INDEX_GONE = (
    "the log index of the file {path!r} ({path}-shm) was removed or replaced while "
    "this process had it open, so nothing was written, but the log still holds earlier "
    "commits; end this process and every other process that has the file open, then open the "
    "store again"
)
_LOST = (
    "the log of the file {path!r} and its index ({path}-wal, {path}-shm) were removed or "
    "replaced while this process had them open, so nothing was written, and commits that "
    "were only in the old log are lost; end this process and every other process that has "
    "the file open"
)

"""What a failure of SQLite means to the caller, by its primary result code."""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
import stat
from pathlib import Path
from typing import Any
from typing import TypeAlias

from catga_store.errors import CorruptRecordError
from catga_store.errors import RecordTooLargeError
from catga_store.errors import StoreConfigError
from catga_store.protocol.conversation import NotSentError

__all__ = ["BUSY_SECONDS", "code_of", "translated", "unopened"]

_FILES = 5
"""Descriptors of a first connection: the file, its log and the index, and the two of the guard."""

_NO_DESCRIPTORS = (errno.EMFILE, errno.ENFILE)

BUSY_SECONDS: float = 30
"""How long a call waits for another's lock before the store counts as unavailable."""


def code_of(error: sqlite3.Error) -> int:
    """Return the primary result code; extended codes carry it in their low byte."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def translated(error: sqlite3.Error, path: str, *, seconds: float, was_there: bool) -> Exception:
    """Return what to raise for a failure of SQLite.

    `seconds` is how long a lock was waited for, `was_there` whether the file was open before.
    """
    code = code_of(error)
    if code in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_IOERR):  # SQLite does not say why
        odd = _not_a_file(path)
        if odd is not None:
            return StoreConfigError(_NOT_A_FILE.format(path=path, odd=odd))

        left = _no_descriptors_left() if code == sqlite3.SQLITE_CANTOPEN else None
        if left is not None:
            return unopened(left, path)

    kind, text, facts = _FAILURES.get(code, _UNKNOWN_FAILURE)
    why = _why_not(path, was_there=was_there) if kind is StoreConfigError else ""
    return kind(text.format(path=path, error=error, seconds=seconds, why=why), **facts)


def unopened(error: OSError, path: str) -> Exception:
    """Return what to raise for a failure of the system to open the file."""
    if error.errno in _NO_DESCRIPTORS:
        return NotSentError(_NO_MORE_FILES.format(path=path, error=error.strerror))

    odd = _not_a_file(path)
    if odd is not None:
        return StoreConfigError(_NOT_A_FILE.format(path=path, odd=odd))

    why = "the operating system reports no further reason"
    return StoreConfigError(_NO_ACCESS.format(path=path, error=error.strerror, why=why))


def _not_a_file(path: str) -> str | None:
    """Return which of the store's three files is there and is not a regular file."""
    real = os.path.realpath(path)
    for name in (path, f"{real}-wal", f"{real}-shm"):
        with contextlib.suppress(OSError):
            if not stat.S_ISREG(Path(name).stat().st_mode):
                return name

    return None


def _no_descriptors_left() -> OSError | None:
    """Return the error of the system if this process cannot open as many files as a store needs."""
    opened: list[int] = []
    try:
        for _ in range(_FILES):  # not the store's own: closing one would drop its locks
            opened.append(os.open(os.devnull, os.O_RDONLY))  # noqa: PERF401  closed if one fails
    except OSError as error:
        return error if error.errno in _NO_DESCRIPTORS else None
    finally:
        for descriptor in opened:
            os.close(descriptor)

    return None


def _why_not(path: str, *, was_there: bool) -> str:
    place = Path(path)
    try:
        place.stat()
    except (FileNotFoundError, NotADirectoryError):
        folder = Path(os.path.realpath(path)).parent
        if not folder.is_dir():
            return f"its directory {str(folder)!r} does not exist; create the directory"

        if was_there:
            return "it was removed after it was opened; restore the file"
    except OSError as error:
        return f"the operating system reports: {error.strerror}"

    return "this user needs read and write access to the file and its directory"


_Failure: TypeAlias = tuple[type[Exception], str, dict[str, Any]]

_DAMAGED = (
    "the file {path!r} is damaged or is not a SQLite database, so nothing was changed: {error};"
    " restore the file from a backup"
)
_FULL = "the disk that holds {path!r} is full: {error}; free up space"
_LOCKED = "the file {path!r} stayed locked by another process for {seconds} s: {error}"
_NO_MORE_FILES = (
    "the file {path!r} cannot be opened, because this process has no file descriptors left "
    "({error}); close files or connections, or raise the limit (ulimit -n)"
)
_NOT_A_FILE = (
    "the file {path!r} cannot be used, because {odd!r} is a directory or a device, not a "
    "regular file, so nothing was written; choose another path"
)
_READ_ONLY = (
    "the file {path!r} or its directory cannot be written, so nothing was written: {error}; "
    "grant this user write access to both"
)
_NO_ACCESS = "the file {path!r} cannot be opened, so nothing was written: {error}; {why}"
_TOO_BIG = "a record exceeds SQLite's limit of 1,000,000,000 bytes, so nothing was written: {error}"
_NOT_OURS = "the file {path!r} does not have this library's tables, so nothing was written: {error}"

_FAILURES: dict[int, _Failure] = {
    sqlite3.SQLITE_NOTADB: (CorruptRecordError, _DAMAGED, {"key": None}),
    sqlite3.SQLITE_CORRUPT: (CorruptRecordError, _DAMAGED, {"key": None}),
    sqlite3.SQLITE_FULL: (NotSentError, _FULL, {}),
    sqlite3.SQLITE_BUSY: (NotSentError, _LOCKED, {}),
    sqlite3.SQLITE_LOCKED: (NotSentError, _LOCKED, {}),
    sqlite3.SQLITE_PROTOCOL: (NotSentError, _LOCKED, {}),
    sqlite3.SQLITE_READONLY: (StoreConfigError, _READ_ONLY, {}),
    sqlite3.SQLITE_CANTOPEN: (StoreConfigError, _NO_ACCESS, {}),
    sqlite3.SQLITE_PERM: (StoreConfigError, _NO_ACCESS, {}),
    sqlite3.SQLITE_AUTH: (StoreConfigError, _NO_ACCESS, {}),
    sqlite3.SQLITE_TOOBIG: (RecordTooLargeError, _TOO_BIG, {"size": None, "limit": 10**9}),
    sqlite3.SQLITE_ERROR: (StoreConfigError, _NOT_OURS, {}),
}
"""What a primary result code means to the caller."""

_UNKNOWN_FAILURE: _Failure = (
    NotSentError,
    "SQLite cannot use the file {path!r} at the moment: {error}",
    {},
)

"""A connection to SQLite whose COMMITs fail as a test has planned."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import Any

from attrs import frozen

__all__ = ["Failing"]


@frozen
class _Cursor:
    """A cursor whose statements the connection executes, each with a cursor of its own."""

    _cursor: sqlite3.Cursor
    execute: Callable[..., sqlite3.Cursor]

    def close(self) -> None:
        self._cursor.close()


class Failing:
    """A connection whose next COMMITs fail as planned, after or without having committed."""

    def __init__(self, connection: sqlite3.Connection, plan: list[tuple[int, bool]]) -> None:
        self._connection = connection
        self._plan = plan

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    def cursor(self) -> _Cursor:
        return _Cursor(self._connection.cursor(), self.execute)

    def execute(self, statement: str, values: Any = ()) -> sqlite3.Cursor:
        if statement == "COMMIT" and self._plan:
            code, applied = self._plan.pop(0)
            self._connection.execute("COMMIT" if applied else "ROLLBACK")
            error = sqlite3.OperationalError("disk I/O error")
            error.sqlite_errorcode = code
            raise error

        return self._connection.execute(statement, values)

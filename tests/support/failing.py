"""A connection to SQLite whose COMMITs fail as a test has planned."""

from __future__ import annotations

import sqlite3
from typing import Any

__all__ = ["Failing"]


class Failing:
    """A connection whose next COMMITs fail as planned, after or without having committed."""

    def __init__(self, connection: sqlite3.Connection, plan: list[tuple[int, bool]]) -> None:
        self._connection = connection
        self._plan = plan

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    def execute(self, statement: str, values: Any = ()) -> sqlite3.Cursor:
        if statement == "COMMIT" and self._plan:
            code, applied = self._plan.pop(0)
            self._connection.execute("COMMIT" if applied else "ROLLBACK")
            error = sqlite3.OperationalError("disk I/O error")
            error.sqlite_errorcode = code
            raise error

        return self._connection.execute(statement, values)

"""What the tests of the SQLite store share: COMMITs that fail as planned."""

from __future__ import annotations

import pytest
from failing import Failing

from catga_store.stores.sqlite import connection as sqlite_connection


@pytest.fixture
def plan(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, bool]]:
    """List the COMMITs that are to fail: the result code, and whether it was applied all the same."""
    plan: list[tuple[int, bool]] = []
    connect = sqlite_connection._connect
    monkeypatch.setattr(
        sqlite_connection, "_connect", lambda *a, **k: Failing(connect(*a, **k), plan)
    )
    return plan

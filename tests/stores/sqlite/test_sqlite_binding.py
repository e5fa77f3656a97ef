"""Values as the SQLite store gives them to statements: without looking for an adapter, and the same when read."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from open_files import needs_proc
from open_files import open_files

import catga_store as cs
from catga_store.stores.sqlite.binding import as_blob
from catga_store.stores.sqlite.binding import without_nulls

EDGE = 16 * 1024
"""Up to this size a body is given as a `bytearray`."""


@pytest.fixture
def store(tmp_path: Path) -> Iterator[cs.SQLiteStore]:
    """Open a store on a new file."""
    with cs.SQLiteStore(tmp_path / "flows.db") as store:
        store.ping()
        yield store


def tables_of(store: Any) -> Any:
    """Return the tables of the one connection of a store."""
    (tables,) = store._driver.transport._idle
    return tables


@given(
    st.lists(st.none() | st.integers(-(2**63), 2**63 - 1) | st.text("ab") | st.binary(max_size=3))
)
def test_a_statement_without_nulls_means_the_same(values: list[object]) -> None:
    """`NULL` in the text is what `None` as a value is, in any place."""
    text = f"SELECT 0{', ?' * len(values)}"
    with closing(sqlite3.connect(":memory:")) as connection:
        row = without_nulls(connection.execute)(text, values).fetchone()

    assert row == (0, *values)


@pytest.mark.parametrize("size", [0, 1, EDGE - 1, EDGE, EDGE + 1, 10 * EDGE])
def test_bodies_of_any_size_are_read_as_they_were_written(store: cs.SQLiteStore, size: int) -> None:
    """As the state of a flow and as a part, when they are new and when they are written over."""
    first, second = os.urandom(size), os.urandom(size)
    flow = cs.FlowSnapshot("f", state=first)
    store.create(flow)
    part = cs.Part("f", "p", first)
    store.put_part(part)
    assert store.get_one("f").state == store.get_part("f", "p").body == first  # type: ignore[union-attr]

    flow.state = part.body = second
    store.update(flow)
    store.put_part(part)
    assert store.get_one("f").state == store.get_part("f", "p").body == second  # type: ignore[union-attr]
    assert type(as_blob(first)) is (bytearray if size <= EDGE else bytes)


IDS = [
    "\0a",
    "a",
    "a\0",
    "a\0b",
    "a\x7f",
    "a\x80",
    "aé",
    "a\U0010ffff",
    "b\x7f\x7f",
    "\x7f",
    "é",
    "éa",
    "中",
    "~",
    "a b/c",
]


@pytest.mark.parametrize(
    "prefix", sorted({one[:end] for one in IDS for end in range(len(one) + 1)})
)
def test_prefixes_end_where_they_end_as_bytes(store: cs.SQLiteStore, prefix: str) -> None:
    """Whatever the last character: NUL, ASCII, the last of ASCII, and characters of several bytes."""
    for name in IDS:
        store.put_part(cs.Part("f", name, b""))
        store.create(cs.FlowSnapshot(name, state=None))

    expected = sorted((one for one in IDS if one.startswith(prefix)), key=str.encode)
    assert [part.name for part in store.list_parts("f", prefix)] == expected
    assert all(store.get_one(one).flow_id == one for one in expected)


def test_common_operations_give_no_value_that_needs_an_adapter(store: cs.SQLiteStore) -> None:
    """They would take a tenth longer: `bytes` and `None` are what `sqlite3` looks an adapter up for."""
    tables = tables_of(store)
    seen: list[tuple[str, set[type]]] = []

    def recorded(execute: Any) -> Any:
        def record(text: str, values: Any = ()) -> Any:
            seen.append((text.split(maxsplit=1)[0], set(map(type, values))))
            return execute(text, values)

        return record

    tables._execute = tables._parts._execute = recorded(tables._execute)
    tables.run = tables._parts._run = recorded(tables._cursor.execute)
    tables.change = tables._parts._change = without_nulls(tables.run)

    flow = cs.FlowSnapshot("f", state={"n": 0}, due_at=None)
    store.create(flow)
    store.update(store.get_one("f"))
    with store.begin() as session:
        session.get_one("f").state["n"] = 1
        session.add_part(cs.Part("f", "p", b"body"))

    with store.begin() as session:
        session.add_part(cs.Part("f", "q", b"body"))

    store.list_parts("f", "p", bodies=True)
    assert {verb for verb, _ in seen} == {"BEGIN", "SELECT", "INSERT", "UPDATE", "COMMIT"}
    assert set().union(*(types for _, types in seen)) == {str, int, bytearray}


def test_a_file_with_another_encoding_is_refused(tmp_path: Path) -> None:
    """Ids are converted to the encoding of the file, which has to be UTF-8; nothing is written."""
    path = tmp_path / "other.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA encoding = 'UTF-16le'")
        connection.execute("CREATE TABLE gone (one)")
        connection.execute("DROP TABLE gone")

    before = path.read_bytes()
    with (
        cs.SQLiteStore(path) as store,
        pytest.raises(
            cs.StoreConfigError, match="stores text as UTF-16le, but a store needs UTF-8"
        ),
    ):
        store.get("f")

    assert path.read_bytes() == before


@needs_proc
def test_a_closed_store_whose_last_statement_failed_has_no_open_file(
    store: cs.SQLiteStore, tmp_path: Path
) -> None:
    """SQLite keeps a file open as long as a statement is there, and a cursor holds one that has failed."""
    tables = tables_of(store)
    with pytest.raises(sqlite3.IntegrityError):
        tables.run("INSERT INTO catga_counts VALUES (NULL, 0, 0)")

    store.close()
    assert open_files(tmp_path) == []
    assert tables.connection is not None  # and so is the cursor that has executed the statement

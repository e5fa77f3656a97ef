"""Commits of parts of one flow on SQLite: the short way of `Tables.admit` beside the general one."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

import catga_store as cs
from catga_store.protocol.conversation import ask
from catga_store.protocol.requests import Parts
from catga_store.stores.sqlite.parts import SQLiteParts
from catga_store.testing.clock import ManualClock

FLOW = "f"


class Sides:
    """Two files, one of which has no short way, and what both did."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.clock = ManualClock()
        self.stores = [
            cs.open_store(f"sqlite:///{folder / name}", clock=self.clock)
            for name in ("short.db", "general.db")
        ]
        self.admitted: list[bool] = []
        short = SQLiteParts.admit
        general = str(folder / "general.db")

        def admit(parts: Any, commit: Any, change: Any) -> bool:
            (row,) = parts._execute("PRAGMA database_list").fetchall()
            is_admitted = row[2] != general and short(parts, commit, change)
            if row[2] != general:
                self.admitted.append(is_admitted)

            return is_admitted

        monkeypatch.setattr(SQLiteParts, "admit", admit)

    def do(self, call: Callable[[cs.Store], object]) -> list[object]:
        """Call with both stores; what they say and hold must be the same."""
        said: list[object] = []
        for store in self.stores:
            try:
                result: Any = call(store)
            except cs.CatgaStoreError as error:
                said.append((type(error), str(error).partition(";")[0], self.held(store)))
            else:
                said.append((result, self.held(store)))

        assert said[0] == said[1]
        return said

    def held(self, store: cs.Store) -> object:
        """Return what is in a store; revisions are of its own."""
        parts = [
            (one.name, one.body, one.tag, one.version, one.created_at, one.updated_at)
            for one in store.list_parts(FLOW, bodies=True)
        ]
        transport: Any = store._driver.transport  # type: ignore[attr-defined]
        execute = transport._idle[-1].connection.execute
        rows = execute(
            "SELECT name, status, type, type_version, error, attempts, owner, claim, due_ms, log,"
            " length(commits) FROM catga_parts ORDER BY life, name"
        ).fetchall()
        lives = execute("SELECT life, id, expires_ms FROM catga_lives").fetchall()
        return parts, rows, lives


@pytest.fixture
def sides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sides:
    """Both files, each with a flow."""
    both = Sides(tmp_path, monkeypatch)
    for store in both.stores:
        store.create(cs.FlowSnapshot(FLOW, state={}, due_at=None))

    return both


def put(name: str, body: bytes, exists: Any = "refuse", tag: str = "") -> Callable[..., object]:
    """Return a call that writes a part, and returns its version."""

    def call(store: cs.Store) -> object:
        part = cs.Part(FLOW, name, body, tag=tag)
        store.put_part(part, exists=exists)
        return part.version

    return call


def test_both_ways_write_the_same(sides: Sides) -> None:
    """New parts, parts that are kept or replaced, versions, and conflicts."""
    expected = [
        (put("a", b"1", tag="t"), True),
        (put("a", b"2"), True),  # admitted, but there is one: refused on the general way
        (put("a", b"2", "keep"), True),
        (put("b", b"2", "keep"), True),
        (put("a", b"3", "overwrite"), True),
        (put("c/12", b"3", "overwrite", tag="n"), True),
    ]
    for call, is_admitted in expected:
        sides.clock.advance(timedelta(seconds=1))
        sides.do(call)
        assert sides.admitted.pop() == is_admitted

    assert not sides.admitted


def test_versions_of_a_part(sides: Sides) -> None:
    """A write of what was read replaces it and remembers eight commits; one of something else is refused."""
    sides.do(put("a", b"0"))
    read = {store: store.get_part(FLOW, "a") for store in sides.stores}
    stale = {store: store.get_part(FLOW, "a") for store in sides.stores}
    for number in range(1, 11):
        sides.clock.advance(timedelta(seconds=1))

        def write(store: cs.Store, number: int = number) -> object:
            part = read[store]
            assert part is not None
            part.body = b"%d" % number
            store.put_part(part)
            return part.version

        sides.do(write)

    def refused(store: cs.Store) -> None:
        part = stale[store]
        assert part is not None
        part.body = b"late"
        store.put_part(part)

    said: Any = sides.do(refused)
    assert said[0][0] is cs.StalePartError
    assert sides.admitted == [True] * 11 + [False]


def test_a_part_that_is_checked(sides: Sides) -> None:
    """A commit of other parts passes as long as that one is what was read, and is refused after that."""
    sides.do(put("a", b"1"))
    read = {store: store.get_part(FLOW, "a") for store in sides.stores}

    def check(store: cs.Store) -> int:
        part = read[store]
        assert part is not None
        with store.begin() as session:
            session.require_unchanged(part)
            session.add_part(cs.Part(FLOW, "beside", b"1"), exists="overwrite")

        assert session.receipt is not None
        return len(session.receipt.versions)

    sides.do(check)
    sides.do(put("a", b"2", "overwrite"))
    sides.admitted.clear()
    said: Any = sides.do(check)
    assert said[0][0] is cs.StalePartError
    assert sides.admitted == [False]


def test_what_the_short_way_leaves_to_the_general_one(sides: Sides) -> None:
    """A flow that is not there, or has expired; several parts that may be refused; a flow beside a part."""

    def orphan(store: cs.Store) -> object:
        store.put_part(cs.Part("other", "p", b"1"))
        return [one.name for one in store.list_parts("other")]

    def several(store: cs.Store) -> None:
        with store.begin() as session:
            session.add_part(cs.Part(FLOW, "x", b"1"))
            session.add_part(cs.Part(FLOW, "y", b"1"))

    def beside(store: cs.Store) -> None:
        with store.begin() as session:
            flow = session.get_one(FLOW)
            flow.status = cs.FlowStatus.COMPLETED
            flow.expires_at = sides.clock() + timedelta(seconds=5)
            session.add_part(cs.Part(FLOW, "z", b"1"))

    sides.do(orphan)
    assert sides.admitted == [False]
    sides.do(several)
    sides.do(beside)
    assert sides.admitted == [False]
    sides.do(put("z", b"2", "overwrite"))
    assert sides.admitted == [False, True]
    sides.clock.advance(timedelta(seconds=5))
    sides.do(put("z", b"3", "overwrite"))
    assert sides.admitted == [False, True, False]


@pytest.mark.parametrize(
    "edit",
    [
        *[f"{name} = 'x'" for name in ("version", "created_ms", "updated_ms", "type_version")],
        *[f"{name} = x'00'" for name in ("type", "position", "attempts", "revision", "commits")],
    ],
)
def test_a_damaged_row_is_not_written_over(sides: Sides, edit: str) -> None:
    """The general way says what is wrong with it, also if the commit only checks it."""
    sides.do(put("a", b"1"))
    read = {store: store.get_part(FLOW, "a") for store in sides.stores}
    for store in sides.stores:
        transport: Any = store._driver.transport  # type: ignore[attr-defined]
        transport._idle[-1].connection.execute(f"UPDATE catga_parts SET {edit}")

    for store in sides.stores:
        part = read[store]
        assert part is not None
        session = store.session()
        session.require_unchanged(part)
        session.add_part(cs.Part(FLOW, "b", b"1"), exists="overwrite")
        with pytest.raises(cs.CorruptRecordError, match="part 'a'"):
            session.commit()

        part.body = b"2"
        with pytest.raises(cs.CorruptRecordError, match="part 'a'"):
            store.put_part(part)

        with pytest.raises(cs.CorruptRecordError, match="part 'a'"):
            store.list_parts(FLOW, bodies=True)


@pytest.mark.parametrize(
    "edit", ["version = 'x'", "created_ms = 1e18", "position = x'00'", "body = 'x'"]
)
def test_a_damaged_row_is_an_error_of_a_list_in_brief(sides: Sides, edit: str) -> None:
    """Such a list reads four columns, and looks at each."""
    store = sides.stores[0]
    store.put_part(cs.Part(FLOW, "a", b"1"))
    transport: Any = store._driver.transport  # type: ignore[attr-defined]
    transport._idle[-1].connection.execute(f"UPDATE catga_parts SET {edit}")
    wanted = Parts(FLOW, "a", None, None, True, 9, True, 0, brief=True)
    with pytest.raises(cs.CorruptRecordError, match="part 'a'"):
        store._run(ask(wanted))


def test_statements_of_a_part(sides: Sides) -> None:
    """A part that is added costs one that admits it, itself, and the log of commits."""
    store = sides.stores[0]
    store.put_part(cs.Part(FLOW, "first", b"1"))
    part = cs.Part(FLOW, "p", b"1")
    transport: Any = store._driver.transport  # type: ignore[attr-defined]
    sent: list[str] = []
    transport._idle[-1].connection.set_trace_callback(
        lambda text: sent.append(text.split()[0]) if not text.startswith("PRAGMA") else None
    )
    store.put_part(part)
    assert sent == ["BEGIN", "SELECT", "INSERT", "INSERT", "COMMIT"]
    sent.clear()
    part.body = b"2"
    store.put_part(part)
    assert sent == ["BEGIN", "SELECT", "UPDATE", "INSERT", "COMMIT"]

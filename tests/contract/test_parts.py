"""Parts: further bodies under a flow, written with it, listed by name, and gone with it."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest
from marks import ONE_STORE

import catga_store as cs
from catga_store.testing.clock import ManualClock

NAMES = [
    "a",
    "a/1",
    "a/10",
    "a/2",
    "a.b",
    "a\x00",
    "a*>",
    "b",
    "b c\n",
    "é",
    "e\u0301",
    "\U0001f98a",
    "\uffff",
]
"""Names whose order by bytes differs from other orders, and that encodings of stores may confuse."""

DAY = timedelta(days=1)


@dataclass
class Step:
    """A typed body."""

    n: int
    note: str = ""


def body_of(store: cs.Store, flow_id: str, name: str) -> Any:
    """Return the stored body; None if there is no part."""
    part = store.get_part(flow_id, name)
    return None if part is None else part.body


def names_of(page: cs.Page[cs.Part[Any]]) -> list[str]:
    """Return the names on a page."""
    return [part.name for part in page]


@pytest.mark.parametrize(
    "body", [b"", b"\x00\xff*1 {", b"x" * 40_000, {"n": [1, None]}, [], "text", None, 7]
)
def test_a_body_comes_back(store: cs.Store, body: Any) -> None:
    """Bytes are bytes again, data is data, and everything else that was set is there."""
    part = cs.Part("f", "p/1", body, tag="note ü")
    assert store.put_part(part) is True
    read = store.get_part("f", "p/1")
    assert read is not None
    assert (read.flow_id, read.name, read.body, read.tag) == ("f", "p/1", body, "note ü")
    assert type(read.body) is type(body)
    assert (read.version, read.revision) == (1, part.revision)
    assert read.created_at == read.updated_at == part.created_at
    assert part.version == 1


def test_a_typed_body_comes_back(store: cs.Store) -> None:
    """As its type, or as raw data; another type is refused."""
    store.put_part(cs.Part("f", "p", Step(3)))
    assert store.get_part("f", "p", Step).body == Step(3)  # type: ignore[union-attr]
    read = store.get_part("f", "p")
    assert read is not None
    assert (read.body, read.type_name) == ({"n": 3, "note": ""}, "Step")
    with pytest.raises(cs.StateTypeError, match=r"'Step'.*'bytes'"):
        store.get_part("f", "p", bytes)

    store.put_part(cs.Part("f", "raw", b"1"))
    with pytest.raises(cs.StateTypeError, match=r"'bytes'.*'Step'"):
        store.get_part("f", "raw", Step)

    assert store.get_part("f", "raw", bytes).body == b"1"  # type: ignore[union-attr]


def test_a_raw_body_keeps_its_type_when_written_again(store: cs.Store) -> None:
    """What was read as raw data is still of its type afterwards."""
    store.put_part(cs.Part("f", "p", Step(3)))
    read = store.get_part("f", "p")
    assert read is not None
    read.body["n"] = 4
    assert store.put_part(read) is True
    assert store.get_part("f", "p", Step).body == Step(4)  # type: ignore[union-attr]


def test_bytes_as_the_state_of_a_flow(store: cs.Store) -> None:
    """Kept as they are, under the type name bytes, and read as such with or without the type."""
    data = bytes(range(256)) + b',"state":{}}'
    store.create(cs.FlowSnapshot("f", state=data))
    read = store.get_one("f")
    assert (read.state, read.type_name) == (data, "bytes")
    read.state = data[::-1]
    store.update(read)
    assert store.get_one("f", bytes).state == data[::-1]
    (claimed,) = store.claim_due(bytes)
    assert claimed.state == data[::-1]
    with pytest.raises(cs.StateTypeError):
        store.get("f", Step)

    claimed.state = {}  # type: ignore[assignment]
    with pytest.raises(cs.EncodingError):
        store.update(claimed)


def test_a_new_part_is_refused_where_there_is_one(store: cs.Store) -> None:
    """Nothing changes, and the error says what is there."""
    store.put_part(cs.Part("f", "p", 1))
    again = cs.Part("f", "p", 2)
    with pytest.raises(cs.PartExistsError, match="already exists at version 1") as caught:
        store.put_part(again)

    error = caught.value
    assert (error.flow_id, error.name, error.actual) == ("f", "p", 1)
    assert body_of(store, "f", "p") == 1
    assert again.version == 0


def test_a_kept_part_is_not_written(store: cs.Store) -> None:
    """The first one stays, its object is told; the second stays new."""
    first, second = cs.Part("f", "p", 1), cs.Part("f", "p", 2)
    assert store.put_part(first, exists="keep") is True
    assert store.put_part(second, exists="keep") is False
    assert (body_of(store, "f", "p"), first.version, second.version) == (1, 1, 0)


def test_an_overwritten_part_counts_on(store: cs.Store, clock: ManualClock) -> None:
    """Whatever is there is replaced, one version on; its creation stays."""
    first, second = cs.Part("f", "p", 1), cs.Part("f", "p", 2, tag="t")
    store.put_part(first, exists="overwrite")
    clock.advance(timedelta(seconds=1))
    store.put_part(second, exists="overwrite")
    read = store.get_part("f", "p")
    assert read is not None
    assert (read.body, read.tag, read.version) == (2, "t", 2)
    assert (second.version, second.created_at) == (2, first.created_at)
    assert read.updated_at == clock()


def test_a_loaded_part_is_checked(store: cs.Store) -> None:
    """The second of two writers is refused and sees both versions; unchanged is not written."""
    store.put_part(cs.Part("f", "p", {"n": 1}))
    mine, yours = store.get_part("f", "p"), store.get_part("f", "p")
    assert mine is not None
    assert yours is not None
    assert store.put_part(yours) is False
    yours.body["n"] = 2
    assert store.put_part(yours) is True
    mine.tag = "mine"
    with pytest.raises(cs.StalePartError) as caught:
        store.put_part(mine)

    error = caught.value
    assert (error.name, error.expected, error.actual) == ("p", 1, 2)
    store.delete_part("f", "p")
    yours.tag = "yours"
    with pytest.raises(cs.StalePartError) as caught:
        store.put_part(yours)

    assert caught.value.actual is None


def test_several_parts_are_read_at_once(store: cs.Store) -> None:
    """In the order asked for, `None` for what is absent, more than one request takes."""
    names = [f"p/{number}" for number in range(1100)]
    for start in range(0, 1100, 200):
        with store.begin() as session:
            for name in names[start : start + 200 : 2]:
                session.add_part(cs.Part("f", name, name))

    found = store.get_parts("f", names)
    assert list(found) == names
    assert [part and part.body for part in found.values()] == [
        name if number % 2 == 0 else None for number, name in enumerate(names)
    ]
    assert store.get_parts("f", []) == {}


def test_names_are_listed_by_their_bytes(store: cs.Store) -> None:
    """Forward and backward, with bounds that need not exist, and by any prefix."""
    for name in NAMES:
        store.put_part(cs.Part("{t}/f\n", name, name, tag=name[:4]))

    store.put_part(cs.Part("{t}/f", "other", 1))
    ordered = sorted(NAMES, key=str.encode)
    page = store.list_parts("{t}/f\n")
    assert names_of(page) == ordered
    assert page.cursor is None
    assert [part.tag for part in page] == [name[:4] for name in ordered]
    assert names_of(store.list_parts("{t}/f\n", reverse=True)) == ordered[::-1]
    for prefix in ("a", "a/", "a/1", "a\x00", "e", "é", "\U0001f98a", "\uffff", "zz"):
        wanted = [name for name in ordered if name.startswith(prefix)]
        assert names_of(store.list_parts("{t}/f\n", prefix)) == wanted
        assert names_of(store.list_parts("{t}/f\n", prefix, reverse=True)) == wanted[::-1]
        inner = [name for name in wanted if "a/" < name < "f"]
        found = store.list_parts("{t}/f\n", prefix, after="a/", before="f")
        assert names_of(found) == sorted(inner, key=str.encode)


def test_a_page_follows_the_one_before(store: cs.Store) -> None:
    """Parts that come and go meanwhile neither double nor hide the others."""
    for number in range(25):
        store.put_part(cs.Part("f", f"p/{number:02}", number))

    first = store.list_parts("f", "p/", limit=10)
    assert (names_of(first)[0], first.cursor) == ("p/00", "p/09")
    store.delete_part("f", "p/09")
    store.put_part(cs.Part("f", "p/091", 0))
    second = store.list_parts("f", "p/", limit=10, after=first.cursor)
    assert names_of(second) == ["p/091", *(f"p/{number}" for number in range(10, 19))]
    third = store.list_parts("f", "p/", limit=10, after=second.cursor)
    assert (names_of(third)[-1], third.cursor) == ("p/24", None)
    back = store.list_parts("f", "p/", limit=10, reverse=True)
    assert (names_of(back)[0], back.cursor) == ("p/24", "p/15")
    assert names_of(store.list_parts("f", limit=2, reverse=True, before=back.cursor)) == [
        "p/14",
        "p/13",
    ]


def test_bodies_are_listed_if_asked_for(store: cs.Store) -> None:
    """Else reading one is an error that says so; versions are there either way."""
    store.put_part(cs.Part("f", "raw", b"*1 x"))
    store.put_part(cs.Part("f", "typed", Step(1)))
    without = store.list_parts("f")
    assert [part.version for part in without] == [1, 1]
    for part in without:
        with pytest.raises(cs.UsageError, match="was not read; pass bodies=True"):
            _ = part.body

    assert [part.body for part in store.list_parts("f", bodies=True)] == [
        b"*1 x",
        {"n": 1, "note": ""},
    ]
    page = store.list_parts("f", "typed", bodies=True, body_type=Step)
    assert [part.body for part in page] == [Step(1)]


def test_a_part_without_its_body_is_written_over(store: cs.Store) -> None:
    """A body that is set on it is written, whatever it is; its tag alone cannot be changed."""
    store.put_part(cs.Part("f", "raw", b"*1 x"))
    store.put_part(cs.Part("f", "typed", Step(1)))
    raw, typed = store.list_parts("f")
    assert store.put_part(raw) is False
    raw.tag = "t"
    with pytest.raises(cs.UsageError, match="was not read"):
        store.put_part(raw)

    raw.body = b""
    assert store.put_part(raw) is True
    assert (body_of(store, "f", "raw"), raw.version) == (b"", 2)
    assert store.put_part(raw) is False
    typed.body = {"n": 2, "note": ""}
    with pytest.raises(cs.UsageError, match="type 'Step' that has not been read"):
        store.put_part(typed)

    typed.body = Step(2)
    assert store.put_part(typed) is True
    assert body_of(store, "f", "typed") == {"n": 2, "note": ""}


@ONE_STORE
def test_a_copy_of_a_part_without_its_body_has_none(store: cs.Store) -> None:
    """Also one that was pickled."""
    store.put_part(cs.Part("f", "p", b"1"))
    (part,) = store.list_parts("f")
    for copied in (copy.deepcopy(part), pickle.loads(pickle.dumps(part))):
        with pytest.raises(cs.UsageError, match="was not read"):
            _ = copied.body


@ONE_STORE
def test_a_listed_part_in_a_session(store: cs.Store) -> None:
    """The session returns it as it is, and reads it with `refresh`."""
    store.put_part(cs.Part("f", "p", b"1"))
    (part,) = store.list_parts("f")
    with store.session() as session:
        session.add_part(part)
        assert session.get_part("f", "p") is part
        with pytest.raises(cs.StateTypeError):
            session.get_part("f", "p", Step)

        session.refresh(part)
        assert part.body == b"1"


@pytest.mark.parametrize("exists", ["refuse", "keep", "overwrite"])
def test_a_new_part_that_is_deleted_again_is_forgotten(store: cs.Store, exists: Any) -> None:
    """What is stored under its name stays."""
    store.put_part(cs.Part("f", "p", b"theirs"))
    with store.begin() as session:
        part = cs.Part("f", "p", b"mine")
        session.add_part(part, exists=exists)
        session.delete_part(part)

    assert body_of(store, "f", "p") == b"theirs"


def test_parts_are_deleted_by_prefix(store: cs.Store) -> None:
    """However many there are; others stay."""
    for start in range(0, 1200, 200):
        with store.begin() as session:
            for number in range(start, start + 200):
                session.add_part(cs.Part("f", f"a/{number}", number))

    store.put_part(cs.Part("f", "b", 1))
    store.put_part(cs.Part("g", "a/1", 1))
    assert store.delete_parts("f", "a/") == 1200
    assert store.delete_parts("f", "a/") == 0
    assert names_of(store.list_parts("f")) == ["b"]
    assert store.delete_parts("f", "") == 1
    assert names_of(store.list_parts("g")) == ["a/1"]
    assert store.delete_part("g", "a/1") is True
    assert store.delete_part("g", "a/1") is False


def test_parts_are_not_flows(store: cs.Store) -> None:
    """No listing, count or claim of flows knows of them."""
    store.put_part(cs.Part("f", "p", 1))
    assert store.count_flows() == 0
    assert list(store.iter_flows()) == []
    assert store.claim_due() == []
    assert store.get("f") is None


def test_a_part_commits_with_its_flow(store: cs.Store) -> None:
    """All or nothing: a flow that is refused keeps the part out, and the other way round."""
    store.create(cs.FlowSnapshot("f", state={"n": 0}))
    with store.begin() as session:
        flow = session.get_one("f")
        flow.state["n"] = 1
        session.add_part(cs.Part("f", "step/1", b"done"))

    assert session.receipt is not None
    assert session.receipt.versions == {cs.Key("flow", "f"): 2, cs.Key("part", "f", 0, "step/1"): 1}
    stale = store.get_one("f")
    store.update(store.get_one("f"))
    stale.state["n"] = 9
    with store.session() as session:
        session.add(stale)
        session.add_part(cs.Part("f", "step/2", b"done"))
        with pytest.raises(cs.StaleFlowError):
            session.commit()

    assert body_of(store, "f", "step/2") is None
    with store.session() as session:
        session.get_one("f").state["n"] = 7
        session.add_part(cs.Part("f", "step/1", b"again"))
        with pytest.raises(cs.PartExistsError):
            session.commit()

    assert store.get_one("f").state == {"n": 1}


def test_a_session_tracks_parts(store: cs.Store) -> None:
    """One object for each name; what changed is written, once, and version-checked."""
    store.put_part(cs.Part("f", "p", {"n": 1}))
    with store.session() as session:
        part = session.get_part("f", "p")
        assert part is not None
        assert session.get_part("f", "p") is part
        assert session.get_parts("f", ["p", "q"]) == {"p": part, "q": None}
        assert session.commit().versions == {}
        part.body["n"] = 2
        assert session.dirty == (part,)
        session.commit()
        assert (part.version, session.dirty) == (2, ())
        store.put_part(cs.Part("f", "p", {"n": 5}), exists="overwrite")
        part.body["n"] = 3
        with pytest.raises(cs.StalePartError):
            session.commit()

        session.refresh(part)
        assert part.body == {"n": 5}
        session.delete_part(part)
        assert session.get_part("f", "p") is None
        session.commit()

    assert body_of(store, "f", "p") is None


def test_keep_in_a_session_is_never_a_conflict(store: cs.Store) -> None:
    """The receipt names what was there; its object leaves the session unwritten."""
    store.put_part(cs.Part("f", "a", 1))
    there, new = cs.Part("f", "a", 2), cs.Part("f", "b", 2)
    with store.begin() as session:
        session.add_part(there, exists="keep")
        session.add_part(new, exists="keep")

    assert session.receipt is not None
    assert session.receipt.kept == (there.key,)
    assert session.receipt.versions == {new.key: 1}
    assert (there.version, new.version) == (0, 1)
    assert (body_of(store, "f", "a"), body_of(store, "f", "b")) == (1, 2)


def test_a_deleted_part_is_replaced_in_one_commit(store: cs.Store) -> None:
    """The new one starts at version 1, if the old one is still what was read."""
    store.put_part(cs.Part("f", "p", 1))
    for stale in (False, True):
        with store.session() as session:
            part = session.get_part("f", "p")
            assert part is not None
            session.delete_part(part)
            session.add_part(cs.Part("f", "p", "new"))
            if stale:
                store.put_part(cs.Part("f", "p", "theirs"), exists="overwrite")
                with pytest.raises(cs.StalePartError):
                    session.commit()
            else:
                session.commit()

    read = store.get_part("f", "p")
    assert read is not None
    assert (read.body, read.version) == ("theirs", 2)


def test_a_checked_part_guards_a_commit(store: cs.Store) -> None:
    """`require_unchanged` refuses when the part was written or deleted since."""
    store.put_part(cs.Part("f", "p", 1))
    read = store.get_part("f", "p")
    assert read is not None
    with store.begin() as session:
        session.require_unchanged(read)
        session.add(cs.FlowSnapshot("f", state={}))

    store.put_part(cs.Part("f", "p", 2), exists="overwrite")
    with store.session() as session:
        session.require_unchanged(read)
        session.add(cs.FlowSnapshot("g", state={}))
        with pytest.raises(cs.StalePartError):
            session.commit()

    assert store.get("g") is None


def test_parts_go_with_their_flow(store: cs.Store) -> None:
    """Deleted, deleted by id, replaced: nothing of the old flow is left, and the new one has its own."""
    for way in ("delete", "id", "many", "replace"):
        store.create(cs.FlowSnapshot("f", state={}))
        for start in (0, 150):
            with store.begin() as session:
                for number in range(start, start + 150):
                    session.add_part(cs.Part("f", f"p/{number}", number))

        if way == "delete":
            store.delete(store.get_one("f"))
        elif way == "many":
            store.delete_many(["f"])
        else:
            with store.begin() as session:
                if way == "id":
                    session.delete_by_id("f")
                else:
                    session.delete(session.get_one("f"))
                    session.add(cs.FlowSnapshot("f", state={"new": True}))
                    session.add_part(cs.Part("f", "p/1", "new"))

        expected = ["p/1"] if way == "replace" else []
        assert names_of(store.list_parts("f")) == expected
        assert body_of(store, "f", "p/2") is None
        store.put_part(cs.Part("f", "p/2", "later"))
        assert names_of(store.list_parts("f")) == [*expected, "p/2"]
        store.delete_parts("f", "")
        store.delete("f")


def test_parts_of_an_expired_flow_are_absent(store: cs.Store, clock: ManualClock) -> None:
    """At once, for every read; and a new flow of that id starts without them."""
    with store.begin() as session:
        session.add(cs.FlowSnapshot("f", state={}, status=cs.FlowStatus.COMPLETED))
        session.add_part(cs.Part("f", "p", 1))

    clock.advance(timedelta(days=8))
    assert body_of(store, "f", "p") is None
    assert names_of(store.list_parts("f")) == []
    assert store.delete_parts("f", "") == 0
    store.create(cs.FlowSnapshot("f", state={}))
    assert names_of(store.list_parts("f", bodies=True)) == []


def test_orphaned_parts_are_swept(store: cs.Store, clock: ManualClock) -> None:
    """After the retention of waits from the last write, unless their flow has come."""
    for flow_id in ("orphan", "late", "written"):
        store.put_part(cs.Part(flow_id, "p", 1))

    clock.advance(DAY / 2)
    store.put_part(cs.Part("written", "q", 1))
    store.create(cs.FlowSnapshot("late", state={}))
    assert store.sweep() == 0
    clock.advance(DAY / 2)
    assert store.sweep() == 1
    assert [names_of(store.list_parts(each)) for each in ("orphan", "late", "written")] == [
        [],
        ["p"],
        ["p", "q"],
    ]
    clock.advance(DAY / 2)
    assert store.sweep() == 1
    assert names_of(store.list_parts("written")) == []
    assert names_of(store.list_parts("late")) == ["p"]


def test_parts_are_in_the_partition_of_their_flow(open_more: Callable[..., cs.Store]) -> None:
    """A part of another flow in another partition cannot join the commit."""
    store = open_more(partitions=16)
    with store.begin() as session:
        session.add(cs.FlowSnapshot("f", state={}))
        session.add_part(cs.Part("f", "p", 1))

    with store.session() as session:
        session.add_part(cs.Part("f", "q", 1))
        session.add_part(cs.Part("g", "q", 1))
        with pytest.raises(cs.CrossPartitionError):
            session.commit()

    assert names_of(store.list_parts("f")) == ["p"]


@pytest.mark.parametrize("size", [300_000, 1_500_000, 3_000_000])
def test_a_large_part(store: cs.Store, open_more: Callable[..., cs.Store], size: int) -> None:
    """Read, listed, replaced, kept by a change of its tag, and deleted, from another store too."""
    body = bytes(range(256)) * (size // 256)
    store.create(cs.FlowSnapshot("f", state={}))
    store.put_part(cs.Part("f", "p", body))
    other = open_more()
    read = other.get_part("f", "p")
    assert read is not None
    assert read.body == body
    (listed,) = other.list_parts("f", bodies=True)
    assert listed.body == body
    read.tag = "new"
    other.put_part(read)
    again = store.get_part("f", "p")
    assert again is not None
    assert (again.body, again.tag) == (body, "new")
    store.put_part(cs.Part("f", "p", b"small"), exists="overwrite")
    assert body_of(other, "f", "p") == b"small"
    store.put_part(cs.Part("f", "p", body[::-1]), exists="overwrite")
    store.delete("f")
    assert body_of(other, "f", "p") is None
    store.put_part(cs.Part("f", "p", b"new"))
    assert body_of(other, "f", "p") == b"new"


@ONE_STORE
@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("", "is empty"),
        ("x" * 513, "513 UTF-8 bytes"),
        ("a/", "ends with '/'"),
        ("log/000000000001", "is reserved for log entries"),
        ("\ud800", "lone surrogate"),
        (1, "of type int"),
    ],
)
def test_a_name_that_cannot_be(store: cs.Store, name: Any, says: str) -> None:
    """Refused by the part, before anything is sent."""
    with pytest.raises(cs.InvalidIdError, match=says):
        cs.Part("f", name, 1)

    assert names_of(store.list_parts("f")) == []


@ONE_STORE
def test_wrong_arguments_are_refused(open_more: Callable[..., cs.Store]) -> None:
    """By name, and nothing is written."""
    store = open_more(max_record_bytes=100)
    part = cs.Part("f", "p", 1)
    with pytest.raises(cs.UsageError, match="tag: expected at most 256 UTF-8 bytes"):
        cs.Part("f", "p", 1, tag="x" * 257)

    with pytest.raises(cs.UsageError, match="exists: expected"):
        store.put_part(part, exists="ignore")  # type: ignore[arg-type]

    with pytest.raises(cs.UsageError, match="expected a Part"):
        store.put_part(cs.FlowSnapshot("f", state={}))  # type: ignore[arg-type]

    with pytest.raises(cs.UsageError, match="names: expected a collection"):
        store.get_parts("f", "p")

    for limit in (0, 1001, True, None):
        with pytest.raises(cs.UsageError, match="limit: expected"):
            store.list_parts("f", limit=limit)  # type: ignore[arg-type]

    with pytest.raises(cs.RecordTooLargeError, match="is 101 bytes long"):
        store.put_part(cs.Part("f", "p", b"x" * 101))

    with pytest.raises(cs.EncodingError):
        store.put_part(cs.Part("f", "p", object()))

    store.put_part(part)
    with pytest.raises(cs.UsageError, match="is only for new parts"):
        store.put_part(part, exists="keep")

    assert names_of(store.list_parts("f")) == ["p"]


@pytest.mark.anyio
async def test_parts_under_an_event_loop(astore: cs.AsyncStore) -> None:
    """The same operations, awaited."""
    async with astore.begin() as session:
        session.add(cs.FlowSnapshot("f", state={}))
        session.add_part(cs.Part("f", "a", b"1"))
        session.add_part(cs.Part("f", "b", {"n": 2}))

    assert [part.name for part in await astore.list_parts("f", reverse=True)] == ["b", "a"]
    async with astore.begin() as session:
        part = await session.get_part("f", "b")
        assert part is not None
        part.body["n"] = 3

    found = await astore.get_parts("f", ["a", "b"])
    assert [part and part.body for part in found.values()] == [b"1", {"n": 3}]
    assert await astore.delete_parts("f", "") == 2


def test_deletion_beside_parts_of_another_flow(store: cs.Store) -> None:
    """In one commit a flow goes with its parts, and parts of others are written."""
    for name in ("a", "b", "c"):
        store.create(cs.FlowSnapshot(name, state={}))
        store.put_part(cs.Part(name, "p", b"old"))

    with store.begin() as session:
        for name in ("a", "c"):
            part = session.get_part(name, "p")
            assert part is not None
            part.body = b"new"
            session.add_part(cs.Part(name, "q", b"more"))

        session.delete(session.get_one("b"))

    for name, bodies in (("a", [b"new", b"more"]), ("b", []), ("c", [b"new", b"more"])):
        assert [part.body for part in store.list_parts(name, bodies=True)] == bodies

"""Logs of a flow: appends without conflicts, sequences without gaps, idempotent by key."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest
from marks import ONE_STORE

import catga_store as cs
from catga_store.protocol.conversation import ask
from catga_store.protocol.keys import counter_key
from catga_store.protocol.keys import entry_key
from catga_store.protocol.keys import new_commit_id
from catga_store.protocol.requests import ANY
from catga_store.protocol.requests import Commit
from catga_store.protocol.requests import Head
from catga_store.protocol.requests import Put
from catga_store.testing.clock import ManualClock


@dataclass
class Event:
    """A typed entry."""

    kind: str


def sequences(entries: list[cs.LogEntry]) -> list[int]:
    """Return the sequences of entries."""
    return [entry.sequence for entry in entries]


def test_an_append_says_its_sequence(store: cs.Store, clock: ManualClock) -> None:
    """From 1; the entry has its body, key and time, and no version without its flow."""
    first = store.append("f", {"event": "created"})
    clock.advance(timedelta(seconds=1))
    second = store.append("f", b"\x00\xff", key="k ü\n")
    assert first == cs.Appended("f", "log", 1)
    assert second == cs.Appended("f", "log", 2, "k ü\n")
    assert store.read_log("f") == [
        cs.LogEntry(1, {"event": "created"}, None, clock() - timedelta(seconds=1), None),
        cs.LogEntry(2, b"\x00\xff", "k ü\n", clock(), None),
    ]


def test_logs_are_apart(store: cs.Store) -> None:
    """Each log of each flow counts for itself, also where one name begins with the other."""
    for log in ("log", "log2", "log/inner", "é\x00"):
        for flow_id in ("f", "{t}/g"):
            assert store.append(flow_id, [log, flow_id], log=log).sequence == 1
            assert store.append(flow_id, 2, log=log).sequence == 2

    for log in ("log", "log2", "log/inner", "é\x00"):
        (first, second) = store.read_log("{t}/g", log)
        assert (first.body, second.body) == ([log, "{t}/g"], 2)


def test_parts_in_the_group_of_a_log_are_no_entries(store: cs.Store) -> None:
    """Neither read with it nor trimmed, whatever they are named."""
    names = ["log/0", "log/00000000000x", "log/0000000000011", "log/x", "log/000000000001/x"]
    for name in names:
        store.put_part(cs.Part("f", name, 0))

    for number in range(3):
        store.append("f", number)

    store.append("f", "inner", log="log/000000000002")
    assert [entry.body for entry in store.read_log("f")] == [0, 1, 2]
    assert [entry.body for entry in store.read_log("f", reverse=True, limit=2)] == [2, 1]
    assert store.trim_log("f", before=10**12 - 1) == 3
    left = [part.name for part in store.list_parts("f")]
    assert left == sorted([*names, "log/000000000002/000000000001"])


def test_the_same_key_is_written_once(store: cs.Store) -> None:
    """The duplicate has the sequence of the first; other logs and flows have their own keys."""
    assert store.append("f", 1, key="k").duplicate is False
    store.append("f", 2)
    again = store.append("f", 3, key="k")
    assert again == cs.Appended("f", "log", 1, "k", duplicate=True)
    assert store.append("f", 4, key="k", log="other").duplicate is False
    assert store.append("g", 4, key="k").duplicate is False
    assert store.append("f", 5, key="l") == cs.Appended("f", "log", 3, "l")
    assert [entry.body for entry in store.read_log("f")] == [1, 2, 5]


def test_an_entry_commits_with_its_flow(store: cs.Store) -> None:
    """The receipt says the sequences, the entry the version that its commit made."""
    with store.begin() as session:
        session.add(cs.FlowSnapshot("f", state={"n": 0}))
        session.append("f", Event("created"), key="a")
        session.append("f", Event("paid"))
        session.append("f", Event("created again"), key="a")
        session.append("f", "elsewhere", log="other")

    assert session.receipt is not None
    assert session.receipt.entries == (
        cs.Appended("f", "log", 1, "a"),
        cs.Appended("f", "log", 2),
        cs.Appended("f", "log", 1, "a", duplicate=True),
        cs.Appended("f", "other", 1),
    )
    with store.begin() as session:
        session.get_one("f").state["n"] = 1
        session.append("f", Event("shipped"))

    entries = store.read_log("f", body_type=Event)
    assert [(entry.sequence, entry.body.kind, entry.version) for entry in entries] == [
        (1, "created", 1),
        (2, "paid", 1),
        (3, "shipped", 2),
    ]


def test_a_refused_commit_appends_nothing(store: cs.Store) -> None:
    """No entry and no gap: the next append takes the sequence."""
    store.create(cs.FlowSnapshot("f", state={"n": 0}))
    store.append("f", 1)
    stale = store.get_one("f")
    store.update(store.get_one("f"))
    with store.session() as session:
        stale.state["n"] = 1
        session.add(stale)
        session.append("f", 2, key="k")
        with pytest.raises(cs.StaleFlowError):
            session.commit()

    assert store.append("f", 3, key="k") == cs.Appended("f", "log", 2, "k")


def test_a_log_is_read_in_pieces(store: cs.Store) -> None:
    """Forward and backward, between sequences that need not be there."""
    for start in range(0, 250, 50):
        with store.begin() as session:
            for number in range(start + 1, start + 51):
                session.append("f", number)

    assert sequences(store.read_log("f")) == list(range(1, 101))
    assert sequences(store.read_log("f", after=100, limit=1000)) == list(range(101, 251))
    assert sequences(store.read_log("f", reverse=True, limit=3)) == [250, 249, 248]
    assert sequences(store.read_log("f", reverse=True, before=3)) == [2, 1]
    assert sequences(store.read_log("f", after=9, before=12)) == [10, 11]
    assert store.read_log("f", after=250) == []
    assert store.read_log("absent") == []


def test_a_trimmed_log_counts_on(store: cs.Store) -> None:
    """Trimmed entries are gone with their keys; the others and the next keep their sequences."""
    for number in range(1, 11):
        store.append("f", number, key=f"k{number}")

    assert store.trim_log("f", before=6) == 5
    assert store.trim_log("f", before=6) == 0
    assert sequences(store.read_log("f")) == [6, 7, 8, 9, 10]
    assert store.append("f", 11, key="k7").duplicate is True
    assert store.append("f", 11, key="k2") == cs.Appended("f", "log", 11, "k2")
    assert store.trim_log("f", before=100) == 6
    assert store.append("f", 12).sequence == 12


def test_a_log_goes_with_its_flow(store: cs.Store) -> None:
    """A new flow of that id counts from 1, and knows no key."""
    for _ in range(2):
        with store.begin() as session:
            session.add(cs.FlowSnapshot("f", state={}))
            session.append("f", 1, key="k")

        assert session.receipt is not None
        assert session.receipt.entries == (cs.Appended("f", "log", 1, "k"),)
        store.delete("f")
        assert store.read_log("f") == []


def test_an_append_keeps_a_log_without_a_flow(store: cs.Store, clock: ManualClock) -> None:
    """For the retention of waits from then; an append that is not written because of its key does not."""
    store.append("f", 1, key="k")
    clock.advance(timedelta(hours=16))
    store.append("f", 2)
    clock.advance(timedelta(hours=16))
    assert store.append("f", 3, key="k").duplicate is True
    assert store.sweep() == 0
    clock.advance(timedelta(hours=8))
    assert store.sweep() == 1
    assert store.read_log("f") == []
    assert store.append("f", 4, key="k") == cs.Appended("f", "log", 1, "k")


def test_entries_are_parts(store: cs.Store) -> None:
    """Listed as such, by their names, without what the log counts with."""
    store.append("f", {"n": 1}, key="k")
    store.append("f", b"2")
    store.put_part(cs.Part("f", "p", 1))
    page = store.list_parts("f", bodies=True)
    assert [(part.name, part.tag, part.body) for part in page] == [
        ("log/000000000001", "k", {"n": 1}),
        ("log/000000000002", "", b"2"),
        ("p", "", 1),
    ]
    read = store.get_part("f", "log/000000000001")
    assert read is not None
    assert read.body == {"n": 1}
    assert store.delete_parts("f", "log/") == 2
    assert store.append("f", 3).sequence == 3
    assert store.delete_part("f", "log/000000000003") is True
    assert store.read_log("f") == []


def test_an_entry_stays_as_it_was_appended(store: cs.Store) -> None:
    """It is read as a part and can be deleted, but neither its body nor its key can be changed."""
    store.append("f", {"n": 1}, key="k")
    name = "log/000000000001"
    for change in ("body", "tag"):
        entry = store.get_part("f", name)
        assert entry is not None
        assert store.put_part(entry) is False
        setattr(entry, change, "other")
        with pytest.raises(cs.UsageError, match="cannot be changed"):
            store.put_part(entry)

        with store.session() as session:
            session.add_part(entry, exists="overwrite")
            with pytest.raises(cs.UsageError, match="cannot be changed"):
                session.commit()

    assert store.append("f", 2, key="k").duplicate is True
    with store.begin() as session:
        read = session.get_part("f", name)
        assert read is not None
        session.delete_part(read)

    assert store.read_log("f") == []


def test_appends_at_the_same_time(open_more: Callable[..., cs.Store]) -> None:
    """Eight writers, each append sent twice: every sequence once, and none is missing."""
    stores = [open_more() for _ in range(8)]
    stores[0].create(cs.FlowSnapshot("f", state={}))

    def work(number: int) -> list[tuple[int, bool]]:
        found = []
        for entry in range(10):
            for _ in range(2):
                done = stores[number].append("f", [number, entry], key=f"{number}/{entry}")
                found.append((done.sequence, done.duplicate))

        return found

    with ThreadPoolExecutor(8) as pool:
        results = [pair for found in pool.map(work, range(8)) for pair in found]

    assert sorted(number for number, duplicate in results if not duplicate) == list(range(1, 81))
    assert sorted(number for number, duplicate in results if duplicate) == list(range(1, 81))
    assert sequences(stores[0].read_log("f")) == list(range(1, 81))


def test_an_append_beside_writes_of_its_flow(open_more: Callable[..., cs.Store]) -> None:
    """Neither makes the other conflict."""
    one, two = open_more(), open_more()
    one.create(cs.FlowSnapshot("f", state={"n": 0}))
    flow = one.get_one("f")
    for number in range(5):
        assert two.append("f", number).sequence == 2 * number + 1
        flow.state["n"] = number + 1
        with one.begin() as session:
            session.add(flow)
            session.append("f", "mine")

    assert [entry.version for entry in one.read_log("f")] == [
        version for number in range(5) for version in (None, number + 2)
    ]


@ONE_STORE
def test_wrong_arguments_are_refused(open_more: Callable[..., cs.Store]) -> None:
    """Before anything is written."""
    store = open_more(max_record_bytes=100)
    for log in ("", "a/", "x" * 500, 1):
        with pytest.raises(cs.InvalidIdError):
            store.append("f", 1, log=log)  # type: ignore[arg-type]

    for key in ("", "x" * 513, 1):
        with pytest.raises(cs.InvalidIdError):
            store.append("f", 1, key=key)  # type: ignore[arg-type]

    for number in (-1, 10**12, True, None, 1.0):
        with pytest.raises(cs.UsageError, match="expected an int"):
            store.read_log("f", after=number)  # type: ignore[arg-type]

        with pytest.raises(cs.UsageError, match="expected an int"):
            store.trim_log("f", before=number)  # type: ignore[arg-type]

    with pytest.raises(cs.RecordTooLargeError):
        store.append("f", b"x" * 101)

    with pytest.raises(cs.EncodingError):
        store.append("f", object())

    assert store.read_log("f") == []


@pytest.mark.anyio
async def test_logs_under_an_event_loop(astore: cs.AsyncStore) -> None:
    """The same operations, awaited."""
    assert (await astore.append("f", 1, key="k")).sequence == 1
    async with astore.begin() as session:
        session.append("f", 2)

    entries: list[Any] = await astore.read_log("f")
    assert [entry.body for entry in entries] == [1, 2]
    assert await astore.trim_log("f", before=2) == 1


def test_a_log_is_copied_with_its_counter(store: cs.Store) -> None:
    """Bodies, keys, sequences, times; the copy counts on where the log was, trimmed or not."""
    store.create(cs.FlowSnapshot("f", state={}))
    for number in range(1, 4):
        store.append("f", number, key=f"k{number}")

    store.trim_log("f", before=3)
    store.put_part(cs.Part("f", "p", b"\x00", tag="t"))
    with cs.MemoryStore() as target:
        report = cs.copy(store, target)
        assert (report.flows, report.parts, report.skipped) == (1, 2, 0)
        assert target.read_log("f") == store.read_log("f")
        part = target.get_part("f", "p")
        assert part is not None
        assert (part.body, part.tag, part.version) == (b"\x00", "t", 1)
        assert target.append("f", 0, key="k3").sequence == 3
        assert target.append("f", 4).sequence == 4
        assert cs.copy(store, target).skipped == 3
        with cs.MemoryStore() as third:
            third.append("f", "other", key="k9")
            third.append("f", "other")
            assert cs.copy(store, third).parts == 2
            assert third.append("f", 0).sequence == 4
            assert [entry.sequence for entry in third.read_log("f")] == [1, 2, 3, 4]
            assert cs.copy(third, target, overwrite=True).parts == 5
            third.append("f", 0)
            cs.copy(target, third, overwrite=True)
            assert third.append("f", 0).sequence == 6


def test_a_log_that_is_copied_while_it_is_appended_to(store: cs.Store) -> None:
    """The copy has some of the new entries, and counts on after them."""
    with cs.MemoryStore() as source:
        for start in (0, 80):
            with source.begin() as session:
                for at in range(start, start + 80):
                    session.append("f", at)

        def append(_report: cs.CopyReport) -> None:
            if len(source.read_log("f", limit=1000)) < 165:
                source.append("f", 0)

        cs.copy(source, store, on_progress=append)

    before = store.read_log("f", limit=1000)
    assert len(before) > 160
    assert store.append("f", "next").sequence == len(before) + 1
    after = store.read_log("f", limit=1000)
    assert after[:-1] == before
    assert after[-1].body == "next"


@pytest.mark.parametrize("order", [(1, 2), (2, 1)])
def test_two_entries_of_one_key(store: cs.Store, order: tuple[int, int]) -> None:
    """Only a copy can bring them. The first has the key, and with that entry the key goes."""
    for sequence in order:
        entry, counter = entry_key("f", "log", sequence), counter_key("f", "log")
        head = Head(1, 0, 1, 1, "bytes", 1, "k")
        puts = Put(entry, head, b"copied", None), Put(counter, Head(2, 0, 1, 1), b"", ANY)
        store._run(ask(Commit(new_commit_id(), 1, puts, None)))

    assert store.append("f", b"again", key="k").sequence == 1
    assert store.trim_log("f", before=2) == 1
    assert sequences(store.read_log("f")) == [2]
    new = store.append("f", b"new", key="k")
    assert not new.duplicate
    assert store.append("f", b"again", key="k").sequence == new.sequence

"""Former versions of a flow: kept, listed, read, forked from, and gone with it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from marks import ONE_STORE

import catga_store as cs
from catga_store.core import history
from catga_store.protocol.conversation import Conversation
from catga_store.protocol.conversation import ask
from catga_store.protocol.conversation import through
from catga_store.protocol.rules import history as history_rules
from catga_store.testing.clock import ManualClock


@dataclass
class Order:
    """A typed state."""

    n: int


def wrote(store: cs.Store, flow: cs.FlowSnapshot[Any], count: int) -> None:
    """Write a flow so many more times; its state is its version then."""
    for _ in range(count):
        flow.state["n"] = flow.version + 1
        store.update(flow)


def versions(store: cs.Store, flow_id: str = "f", **options: Any) -> list[int]:
    """Return the versions that are kept."""
    return [one.version for one in store.list_versions(flow_id, **options)]


def test_the_last_versions_are_kept(open_more: Callable[..., cs.Store], clock: ManualClock) -> None:
    """As many as the option says, the current one included, each as it was."""
    store = open_more(history=3)
    flow = cs.FlowSnapshot("f", state={"n": 1}, due_at=None)
    store.create(flow)
    for number in range(2, 6):
        clock.advance(timedelta(seconds=1))
        flow.state["n"] = number
        flow.position = flow.position.advance()
        flow.error = f"error {number}"
        flow.status = cs.FlowStatus.RUNNING
        store.update(flow)

    found = store.list_versions("f")
    assert [(one.version, one.error, str(one.position)) for one in found] == [
        (5, "error 5", "4"),
        (4, "error 4", "3"),
        (3, "error 3", "2"),
    ]
    assert [clock() - one.updated_at for one in found] == [
        timedelta(seconds=number) for number in range(3)
    ]
    assert {one.status for one in found} == {cs.FlowStatus.RUNNING}
    read = store.get("f", version=3)
    assert read is not None
    assert (read.version, read.state, read.error) == (3, {"n": 3}, "error 3")
    assert store.get("f", version=5).state == {"n": 5}  # type: ignore[union-attr]
    assert store.get("f", version=2) is None
    assert store.get("f", version=6) is None
    assert found[0].size == found[2].size > 10


def test_without_the_option_only_the_current_version(store: cs.Store) -> None:
    """It is listed and read by its number."""
    flow = cs.FlowSnapshot("f", state={"n": 1}, due_at=None)
    store.create(flow)
    wrote(store, flow, 3)
    assert versions(store) == [4]
    assert store.get("f", version=3) is None
    assert store.get("f", version=4) is not None
    assert versions(store, "absent") == []
    assert store.get("absent", version=1) is None


class Sent:
    """Stands between a store and its transport, and keeps what is sent."""

    def __init__(self, store: cs.Store) -> None:
        self._protocol: Any = store._driver.protocol  # type: ignore[attr-defined]
        self.requests: list[Any] = []
        store._driver.protocol = self  # type: ignore[attr-defined]

    def converse(self, request: Any) -> Conversation[Any]:
        """Do what a request asks."""
        return through(self._protocol.converse(request), self._noted)

    def _noted(self, request: Any) -> Conversation[Any]:
        self.requests.append(request)
        return ask(request)

    def by(self, call: Callable[[], object]) -> list[Any]:
        """Return what a call sends."""
        self.requests.clear()
        call()
        return list(self.requests)


@pytest.mark.stores("sqlite", "redis-8.2", "nats")
def test_a_history_of_one_costs_nothing(open_more: Callable[..., cs.Store], store_url: str) -> None:
    """An update is one round trip: one statement and the log, one command, or one message."""
    sent: dict[int, Any] = {}
    kind = store_url.partition(":")[0]
    for history_kept in (1, 3):
        store = open_more(history=history_kept)
        flow = cs.FlowSnapshot(f"f{history_kept}", state={"n": 1}, due_at=None)
        store.create(flow)
        found = Sent(store)
        statements: list[str] = []
        if kind == "sqlite":
            transport: Any = store._driver.transport  # type: ignore[attr-defined]
            transport._idle[-1].connection.set_trace_callback(statements.append)

        flow.state["n"] = 2
        requests = found.by(lambda flow=flow, store=store: store.update(flow))
        asked = [one for one in requests if type(one).__name__ != "Tell"]  # which has no reply
        assert len(asked) == 1 or (history_kept, kind) == (3, "nats")
        request = asked[-1]

        if kind == "sqlite":
            sent[history_kept] = [text.split()[0] for text in statements]
        elif kind == "nats":
            sent[history_kept] = [len(request.messages), request.atomic]
        else:
            (command,) = request.commands
            sent[history_kept] = sum(len(str(arg)) for arg in command.args)

    if kind == "sqlite":
        assert sent[1] == ["BEGIN", "UPDATE", "INSERT", "COMMIT"]
        assert len(sent[3]) > len(sent[1])
    elif kind == "nats":
        assert sent[1] == [1, False]
        assert sent[3][1]
    else:
        assert sent[1] < sent[3]


@ONE_STORE
def test_a_history_of_one_calls_nothing(open_more: Callable[..., cs.Store]) -> None:
    """No function that keeps versions is called by a commit, and no part is written."""
    called: dict[int, set[str]] = {}
    for history_kept in (1, 3):
        store = open_more(history=history_kept)
        flow = cs.FlowSnapshot(f"f{history_kept}", state={"n": 1}, due_at=None)
        store.create(flow)
        files = called.setdefault(history_kept, set())

        def note(frame: FrameType, event: str, _arg: object, files: set[str] = files) -> None:
            if event == "call":
                files.add(Path(frame.f_code.co_filename).name)

        flow.state["n"] = 2
        before = sys.getprofile()
        sys.setprofile(note)
        try:
            store.update(flow)
        finally:
            sys.setprofile(before)

    assert Path(history_rules.__file__).name in called[3]
    assert Path(history_rules.__file__).name not in called[1]
    assert called[1] < called[3]


def test_versions_of_sessions_and_claims(open_more: Callable[..., cs.Store]) -> None:
    """Every write counts, by whatever way; an extension makes no version."""
    store = open_more(history=10, owner="w")
    with store.begin() as session:
        session.add(cs.FlowSnapshot("f", state={"n": 1}))
        session.add(cs.FlowSnapshot("g", state={"n": 1}))

    claimed, other = sorted(store.claim_due(limit=2), key=lambda flow: flow.flow_id)
    store.extend(claimed)
    with store.begin() as session:
        for flow in (claimed, other):
            session.add(flow)
            flow.state["n"] = 3

    store.release(claimed)
    found = store.list_versions("f")
    assert [(one.version, one.owner) for one in found] == [(4, None), (3, "w"), (2, "w"), (1, None)]
    assert versions(store, "g") == [3, 2, 1]


def test_versions_are_read_with_their_type(open_more: Callable[..., cs.Store]) -> None:
    """And a former one cannot be written."""
    store = open_more(history=5)
    flow = cs.FlowSnapshot("f", state=Order(1))
    store.create(flow)
    flow.state.n = 2
    store.update(flow)
    former = store.get("f", Order, version=1)
    assert former is not None
    assert former.state == Order(1)
    former.state.n = 9
    with pytest.raises(cs.StaleFlowError):
        store.update(former)

    assert store.get_one("f", Order).state == Order(2)


def test_versions_are_listed_in_pages(open_more: Callable[..., cs.Store]) -> None:
    """The newest first, each once."""
    store = open_more(history=30)
    flow = cs.FlowSnapshot("f", state={"n": 1}, due_at=None)
    store.create(flow)
    wrote(store, flow, 11)
    assert versions(store, limit=5) == [12, 11, 10, 9, 8]
    assert versions(store, limit=5, before=8) == [7, 6, 5, 4, 3]
    assert versions(store, limit=5, before=3) == [2, 1]
    assert versions(store, before=1) == []
    assert versions(store, limit=1) == [12]
    assert versions(store, before=100, limit=2) == [12, 11]


def test_a_shorter_history_forgets(open_more: Callable[..., cs.Store]) -> None:
    """Writes of a store with fewer versions remove what is too old."""
    long, short = open_more(history=20), open_more(history=2)
    flow = cs.FlowSnapshot("f", state={"n": 1}, due_at=None)
    long.create(flow)
    wrote(long, flow, 6)
    wrote(short, flow, 1)
    assert versions(long) == [8, 7]


def test_history_goes_with_its_flow(open_more: Callable[..., cs.Store]) -> None:
    """A new flow of that id has none of it; parts do not show it."""
    store = open_more(history=5)
    for way in ("delete", "replace"):
        flow = cs.FlowSnapshot("f", state={"n": 1}, due_at=None)
        store.create(flow)
        wrote(store, flow, 3)
        assert list(store.list_parts("f")) == []
        assert store.delete_parts("f", "") == 0
        if way == "delete":
            store.delete("f")
            assert versions(store) == []
            store.create(cs.FlowSnapshot("f", state={}))
        else:
            with store.begin() as session:
                session.delete(session.get_one("f"))
                session.add(cs.FlowSnapshot("f", state={}))

        assert versions(store) == [1]
        assert store.get("f", version=2) is None
        store.delete("f")


def test_large_states_in_history(open_more: Callable[..., cs.Store]) -> None:
    """Bodies over the limits of servers are kept as they were."""
    store = open_more(history=3)
    flow = cs.FlowSnapshot("f", state=b"1" * 1_500_000)
    store.create(flow)
    flow.state = b"2" * 100
    store.update(flow)
    flow.state = b"3" * 1_500_001
    store.update(flow)
    for number, size in ((1, 1_500_000), (2, 100), (3, 1_500_001)):
        read = store.get("f", version=number)
        assert read is not None
        assert read.state == str(number).encode() * size


def test_fork_of_the_current_version(store: cs.Store, clock: ManualClock) -> None:
    """State, position, progress, parts and logs; due at once, and independent of the first."""
    flow = cs.FlowSnapshot("{t}/f", state=Order(1), due_at=None, status=cs.FlowStatus.FAILED)
    flow.position = flow.position.advance(3)
    flow.error = "it broke"
    store.create(flow)
    store.save_for_each_progress("{t}/f", 2, cs.ForEachProgress([1, 2]))
    store.put_part(cs.Part("{t}/f", "p", b"\x00", tag="t"))
    for number in range(3):
        store.append("{t}/f", number, key=f"k{number}")

    store.trim_log("{t}/f", before=3)
    forked = store.fork("{t}/f", "{t}/g")
    read = store.get_one("{t}/g", Order)
    assert (read.version, read.state, str(read.position)) == (1, Order(1), "3")
    assert (read.status, read.error, read.due_at) == (cs.FlowStatus.RUNNING, None, clock())
    assert (forked.revision, forked.state) == (read.revision, {"n": 1})
    progress = store.get_for_each_progress("{t}/g", 2)
    assert progress is not None
    assert list(progress.processed_indices) == [1, 2]
    part = store.get_part("{t}/g", "p")
    assert part is not None
    assert (part.body, part.tag) == (b"\x00", "t")
    assert [(one.sequence, one.key) for one in store.read_log("{t}/g")] == [(3, "k2")]
    assert store.append("{t}/g", 0, key="k2").sequence == 3
    assert store.append("{t}/g", 4).sequence == 4
    assert [one.sequence for one in store.read_log("{t}/f")] == [3]
    assert store.get_one("{t}/f", Order).error == "it broke"


def test_fork_of_a_former_version(open_more: Callable[..., cs.Store]) -> None:
    """Its state, without what has no former versions; a suspended one runs, and waits for nothing."""
    store = open_more(history=5)
    flow = cs.FlowSnapshot("f", state={"n": 1})
    store.create(flow)
    with store.begin() as session:
        session.add(flow)
        flow.state["n"] = 2
        session.suspend(flow, cs.WaitCondition("w", flow_ids=["c"]))

    store.put_part(cs.Part("f", "p", 1))
    first, second = store.fork("f", "one", version=1), store.fork("f", "two", version=2)
    assert (first.state, first.status) == ({"n": 1}, cs.FlowStatus.CREATED)
    assert (second.state, second.status, second.wait_condition) == (
        {"n": 2},
        cs.FlowStatus.RUNNING,
        None,
    )
    assert list(store.list_parts("one")) == []
    assert [part.name for part in store.list_parts("two")] == ["p"]
    second.state["n"] = 3
    store.update(second)
    assert store.get_one("two").state == {"n": 3}


def test_fork_of_a_flow_with_many_parts(store: cs.Store) -> None:
    """More than fit into one commit."""
    store.create(cs.FlowSnapshot("f", state={}))
    for start in (0, 150, 300):
        with store.begin() as session:
            for number in range(start, start + 150):
                session.add_part(cs.Part("f", f"p/{number:03}", number))

    store.create(cs.FlowSnapshot("f2", state={}))
    store.put_part(cs.Part("f2", "other", 1))
    store.fork("f", "g")
    page = store.list_parts("g", limit=1000, bodies=True)
    assert [part.body for part in page] == list(range(450))


def interrupted(conversation: Conversation[Any], number: int, do: Callable[[], object]) -> Any:
    """Let something happen before the exchange of this number."""
    reply: Any = None
    while True:
        try:
            request = conversation.send(reply)
        except StopIteration as stop:
            return stop.value

        if number == 0:
            do()

        number -= 1
        reply = yield request


def forked(store: cs.Store, number: int, do: Callable[[], object]) -> cs.FlowSnapshot[Any]:
    """Fork the flow f to g; something happens before an exchange."""
    conversation = history.fork(store._context, "f", "g")
    flow: cs.FlowSnapshot[Any] = store._run(interrupted(conversation, number, do))
    return flow


@pytest.mark.parametrize("number", range(1, 5))
@pytest.mark.parametrize("count", [0, 320])
def test_a_fork_while_its_flow_is_written(store: cs.Store, number: int, count: int) -> None:
    """Its state, parts and logs are of one version."""
    store.create(cs.FlowSnapshot("f", state={"n": 0}))
    for start in range(0, count, 80):
        with store.begin() as session:
            for at in range(start, start + 80):
                session.append("f", at)

    def write() -> None:
        with store.begin() as session:
            flow = session.get_one("f")
            flow.state["n"] = 1
            session.add_part(cs.Part("f", "a", 1))
            session.append("f", count)
            session.add_part(cs.Part("f", "z", 1))

    forked(store, number, write)
    fork = store.get_one("g")
    entries = [entry.body for entry in store.read_log("g", limit=1000)]
    assert entries == list(range(count + fork.state["n"]))
    parts = [part.name for part in store.list_parts("g", limit=1000) if "/" not in part.name]
    assert parts == ["a", "z"][: 2 * fork.state["n"]]
    assert store.append("g", "next").sequence == len(entries) + 1


@pytest.mark.parametrize("number", [2, 3, 4])
def test_a_fork_while_a_log_is_appended_to(store: cs.Store, number: int) -> None:
    """Appends alone do not write the flow: the fork has some of them, and its log counts on."""
    store.create(cs.FlowSnapshot("f", state={}))
    for start in range(0, 160, 80):
        with store.begin() as session:
            for at in range(start, start + 80):
                session.append("f", at)

    def write() -> None:
        store.append("f", 160)
        store.append("f", 0, log="other")

    forked(store, number, write)
    for log in ("log", "other"):
        before = [(entry.sequence, entry.body) for entry in store.read_log("g", log, limit=1000)]
        assert store.append("g", "next", log=log).sequence == len(before) + 1
        after = [(entry.sequence, entry.body) for entry in store.read_log("g", log, limit=1000)]
        assert after == [*before, (len(before) + 1, "next")]


def test_a_fork_that_is_refused_leaves_nothing(store: cs.Store) -> None:
    """Neither parts nor counters, so that it can be made again; what others have written stays."""
    store.create(cs.FlowSnapshot("f", state={}))
    for start in range(0, 320, 80):
        with store.begin() as session:
            for at in range(start, start + 80):
                session.append("f", at)

    taken = cs.FlowSnapshot("g", state={"mine": True})
    with pytest.raises(cs.FlowExistsError):
        forked(store, 7, lambda: store.create(taken))

    assert store.get_one("g").state == {"mine": True}
    assert list(store.list_parts("g")) == []
    assert store.append("g", "first").sequence == 1
    store.delete(taken)
    assert len(store.list_parts(store.fork("f", "g").flow_id, limit=1000)) == 320


def test_a_fork_of_a_flow_that_goes(store: cs.Store) -> None:
    """Refused: it would be without its parts."""
    store.create(cs.FlowSnapshot("f", state={}))
    store.put_part(cs.Part("f", "p", 1))
    with pytest.raises(cs.FlowNotFoundError):
        forked(store, 1, lambda: store.delete(store.get_one("f")))

    assert store.get("g") is None


def test_a_fork_that_cannot_be(open_more: Callable[..., cs.Store]) -> None:
    """Refused by name; nothing is written."""
    store = open_more()
    store.create(cs.FlowSnapshot("f", state={"n": 1}))
    store.create(cs.FlowSnapshot("taken", state={"n": 2}))
    store.put_part(cs.Part("f", "p", 1))
    with pytest.raises(cs.FlowExistsError):
        store.fork("f", "taken")

    with pytest.raises(cs.FlowNotFoundError):
        store.fork("absent", "g")

    with pytest.raises(cs.FlowNotFoundError, match="version 7 of flow 'f' not found"):
        store.fork("f", "g", version=7)

    assert store.get("g") is None
    assert list(store.list_parts("taken")) == []


@ONE_STORE
def test_wrong_arguments_are_refused(open_more: Callable[..., cs.Store]) -> None:
    """Before anything is sent."""
    store = open_more(partitions=16)
    store.create(cs.FlowSnapshot("f", state={}))
    for version in (0, -1, True, "1"):
        with pytest.raises(cs.UsageError, match="version: expected an int"):
            store.get("f", version=version)  # type: ignore[call-overload]

    with pytest.raises(cs.UsageError, match="before: expected"):
        store.list_versions("f", before=0)

    with pytest.raises(cs.UsageError, match="limit: expected"):
        store.list_versions("f", limit=0)

    with pytest.raises(cs.UsageError, match="history: expected an int of at least 1"):
        cs.MemoryStore(history=0)

    with pytest.raises(cs.CrossPartitionError):
        store.fork("f", "g")


def test_history_is_copied(open_more: Callable[..., cs.Store]) -> None:
    """Each version, with owner and times as they were; the copies are not counted as parts."""
    store = open_more(history=5, owner="w")
    store.create(cs.FlowSnapshot("f", state={"n": 1}))
    (claimed,) = store.claim_due()
    wrote(store, claimed, 2)
    with cs.MemoryStore() as target:
        report = cs.copy(store, target)
        assert (report.flows, report.parts, report.skipped) == (1, 0, 0)
        assert target.list_versions("f")[1:] == store.list_versions("f")[1:]
        assert target.get("f", version=2).owner == "w"  # type: ignore[union-attr]


def test_a_copy_over_a_flow_brings_its_history(open_more: Callable[..., cs.Store]) -> None:
    """All of it, though the target keeps less; what the target had is no version of that flow."""
    target = open_more(history=2)
    flow = cs.FlowSnapshot("f", state={"n": "old"}, due_at=None)
    target.create(flow)
    for _ in range(4):
        target.update(flow)

    with cs.MemoryStore(history=5) as source:
        other = cs.FlowSnapshot("f", state={"n": 1}, due_at=None)
        source.create(other)
        wrote(source, other, 2)
        cs.copy(source, target, overwrite=True)

    assert versions(target) == [3, 2, 1]
    assert [target.get("f", version=one) for one in (4, 5)] == [None, None]
    assert target.get("f", version=1).state == {"n": 1}  # type: ignore[union-attr]
    wrote(target, target.get_one("f"), 2)
    assert versions(target) == [5, 4]
    assert target.get("f", version=4).state == {"n": 4}  # type: ignore[union-attr]


@pytest.mark.anyio
async def test_history_under_an_event_loop(open_more_async: Callable[..., cs.AsyncStore]) -> None:
    """The same operations, awaited."""
    store = open_more_async(history=2)
    flow = cs.FlowSnapshot("f", state={"n": 1}, due_at=None)
    await store.create(flow)
    flow.state["n"] = 2
    await store.update(flow)
    assert [one.version for one in await store.list_versions("f")] == [2, 1]
    former = await store.get("f", version=1)
    assert former is not None
    assert former.state == {"n": 1}
    assert (await store.fork("f", "g", version=1)).state == {"n": 1}

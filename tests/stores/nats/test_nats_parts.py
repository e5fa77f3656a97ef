"""Parts on NATS: lost replies, flows that go while their parts are written, and what is left of them."""

from __future__ import annotations

import json
import random
import shutil
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import anyio
import nats
import pytest
from waiting import until

import catga_store as cs
from catga_store.protocol import conversation
from catga_store.protocol.keys import new_commit_id
from catga_store.protocol.keys import part_key
from catga_store.protocol.requests import Parts
from catga_store.stores.nats import sweeping
from catga_store.stores.nats.transport import Message
from catga_store.stores.nats.transport import Publish
from catga_store.testing import Faults
from catga_store.testing import ManualClock
from catga_store.testing.hooks import conversation_runner
from catga_store.testing.servers import NatsServer

KINDS = ("nats", "nats-cluster")
SHORT = timedelta(seconds=3)
LONG = "n" * 480
"""Names of this length make a directory of some hundred parts three nodes deep."""


@pytest.fixture(params=KINDS)
def url(request: pytest.FixtureRequest, url_of: Callable[[str], str]) -> str:
    """Return an empty store on one server, and on three."""
    return url_of(request.param)


@pytest.fixture
def bucket() -> str:
    """Name a bucket that no other test uses."""
    return uuid.uuid4().hex


async def ask(url: str, subject: str, fields: object) -> dict[str, Any]:
    """Ask the server itself."""
    place, _, query = url.partition("?")
    first, *others = place.split(",")
    connect: Any = nats.connect
    client = await connect([first, *(f"nats://{other}" for other in others)])
    try:
        stream = dict(pair.split("=") for pair in query.split("&"))["bucket"]
        payload = json.dumps(fields).encode()
        answer = await client.request(f"$JS.API.STREAM.{subject}.KV_{stream}", payload, timeout=10)
        reply: dict[str, Any] = json.loads(answer.data)
        return reply
    finally:
        await client.close()


def subjects(url: str, what: str) -> list[str]:
    """Return what the stream holds under a filter, tombstones included."""
    bucket = dict(pair.split("=") for pair in url.partition("?")[2].split("&"))["bucket"]
    wanted = {"subjects_filter": f"catga.{bucket}.{what}"}
    reply = anyio.run(ask, url, "INFO", wanted)
    return list(reply["state"].get("subjects") or ())


def names(store: cs.Store, flow_id: str = "f", prefix: str = "") -> list[str]:
    """List all parts, page by page."""
    found: list[str] = []
    after = None
    while True:
        page = store.list_parts(flow_id, prefix, after=after, limit=1000)
        found += [part.name for part in page]
        if page.cursor is None:
            return found

        after = page.cursor


def fill(store: cs.Store, count: int, flow_id: str = "f", name: Callable[[int], str] = str) -> None:
    """Write many parts in commits of 200."""
    for start in range(0, count, 200):
        with store.begin() as session:
            for number in range(start, min(start + 200, count)):
                session.add_part(cs.Part(flow_id, name(number), b"x"), exists="overwrite")


# --- lost replies -----------------------------------------------------------------------------------


def appended(store: cs.Store, flow_id: str) -> None:
    """Append twice; the second key is there already."""
    assert store.append(flow_id, "mine", key="k") == cs.Appended(flow_id, "log", 2, "k")
    assert store.append(flow_id, "again", key="k").duplicate is True
    assert [entry.body for entry in store.read_log(flow_id)] == ["theirs", "mine"]


def kept(store: cs.Store, flow_id: str) -> None:
    """Write a part only if there is none, and once more."""
    assert store.put_part(cs.Part(flow_id, "kept", "mine"), exists="keep") is True
    assert store.put_part(cs.Part(flow_id, "kept", "other"), exists="keep") is False
    part = store.get_part(flow_id, "kept")
    assert part is not None
    assert (part.body, part.version) == ("mine", 1)


def removed(store: cs.Store, flow_id: str) -> None:
    """Remove parts by prefix, and one by name."""
    assert store.delete_parts(flow_id, "p/") == 3
    assert store.delete_parts(flow_id, "p/") == 0
    assert store.delete_part(flow_id, "q") is True
    assert store.delete_part(flow_id, "q") is False


def journaled(store: cs.Store, flow_id: str) -> None:
    """Write a flow, a part and entries in one commit."""
    with store.begin() as session:
        session.get_one(flow_id).state["n"] = 1
        session.add_part(cs.Part(flow_id, "result", b"\n\x00{"))
        session.append(flow_id, "a", key="a")
        session.append(flow_id, "b")

    assert session.receipt is not None
    assert [entry.sequence for entry in session.receipt.entries] == [2, 3]
    assert [entry.version for entry in store.read_log(flow_id)] == [None, 2, 2]


def deleted(store: cs.Store, flow_id: str) -> None:
    """Delete the flow with its parts."""
    store.delete(flow_id)
    assert names(store, flow_id) == []
    assert store.append(flow_id, "new").sequence == 1


@pytest.mark.parametrize("do", [appended, kept, removed, journaled, deleted])
@pytest.mark.parametrize("how", ["lost after applying", "lost before applying"])
def test_a_reply_that_is_lost(url: str, do: Callable[[cs.Store, str], None], how: Any) -> None:
    """Whichever request it belongs to, the caller sees what was done, and it was done once."""
    faults = Faults()
    with cs.open_store(url) as other, faults.attach(cs.open_store(url)) as store:
        store.ping()
        for number in range(1, 7):
            flow_id = f"f{number}"
            other.create(cs.FlowSnapshot(flow_id, state={"n": 0}))
            other.append(flow_id, "theirs")
            for name in ("p/1", "p/2", "p/3", "q"):
                other.put_part(cs.Part(flow_id, name, 0))

            faults.reset()
            faults.at_exchange(number, how)
            do(store, flow_id)


def test_an_append_whose_reply_never_comes(url: str) -> None:
    """It is uncertain, and settled: the sequence is found, and nothing is written twice."""
    faults = Faults()
    with faults.attach(cs.open_store(url)) as store:
        store.append("f", 1)
        faults.on_commit("unknown-applied")
        with pytest.raises(cs.CommitUncertainError) as caught:
            store.append("f", 2)

        receipt = store.resolve_commit(caught.value)
        assert receipt is not None
        faults.on_commit("unknown-not-applied")
        with pytest.raises(cs.CommitUncertainError) as caught:
            store.append("f", 3)

        assert store.resolve_commit(caught.value) is None
        assert [entry.body for entry in store.read_log("f")] == [1, 2]


# --- flows that go ----------------------------------------------------------------------------------


def test_parts_of_a_deleted_flow_are_purged(url: str) -> None:
    """3,000 of them go with one commit, and nothing of them is left in the stream."""
    with cs.open_store(url) as store:
        store.create(cs.FlowSnapshot("f", state={}))
        fill(store, 3000, name=lambda number: f"{number:05d}")
        store.append("f", 1, key="k")
        store.put_part(cs.Part("f", "large", bytes(2_500_000)))
        assert len(names(store)) == 3002
        store.delete("f")
        assert names(store) == []
        store.sweep()
        assert [subjects(url, f"{what}.>") for what in ("part", "piece", "due.dead")] == [
            [],
            [],
            [],
        ]


def test_parts_that_were_not_purged(url: str) -> None:
    """Nobody sees them, a new flow has its own, and a sweep finds them and leaves the new ones alone."""
    faults = Faults()
    with cs.open_store(url) as other, faults.attach(cs.open_store(url)) as store:
        store.create(cs.FlowSnapshot("f", state={}))
        fill(store, 300, name=lambda number: f"{number:05d}")
        store.append("f", 1, key="k")
        store.put_part(cs.Part("f", "large", bytes(2_500_000)))
        faults.reset()
        store.delete("f")
        count = len(faults.exchanges)
        store.create(cs.FlowSnapshot("f", state={}))
        fill(store, 300, name=lambda number: f"{number:05d}")
        store.append("f", 1, key="k")
        store.put_part(cs.Part("f", "large", bytes(2_500_000)))
        faults.reset()
        faults.at_exchange(count - 1, "not sent")  # the purge; the last one is a hint to waiters
        store.delete("f")
        assert len(faults.exchanges) == count
        assert len(subjects(url, "part.>")) > 300
        for reader in (store, other):
            assert names(reader) == []
            assert reader.get_part("f", "00001") is None
            assert reader.get_parts("f", ["00002", "large"]) == {"00002": None, "large": None}
            assert reader.read_log("f") == []

        store.create(cs.FlowSnapshot("f", state={}))
        assert other.append("f", "new", key="k") == cs.Appended("f", "log", 1, "k")
        other.put_part(cs.Part("f", "00001", "new"))
        other.put_part(cs.Part("f", "large", bytes(2_000_000)))
        assert store.sweep() == 0
        assert names(store) == ["00001", "large", "log/000000000001"]
        large = store.get_part("f", "large")
        assert large is not None
        assert len(large.body) == 2_000_000
        assert len(subjects(url, "part.>")) == 5  # these, the counter of the log, and the key
        assert len(subjects(url, "piece.>")) > 1
        assert subjects(url, "due.dead.>") == []


def test_parts_written_while_their_flow_is_deleted(url: str) -> None:
    """What was acknowledged after the last deletion is there, and nothing from before it."""
    written: dict[str, tuple[float, float]] = {}
    deletions: list[tuple[float, float]] = []
    done = threading.Event()
    lock = threading.Lock()

    def write(number: int) -> None:
        with cs.open_store(url) as store:
            count = 0
            while not done.is_set():
                count += 1
                name = f"{number}/{count}"
                began = time.monotonic()
                if count % 3:
                    store.put_part(cs.Part("f", name, name))
                else:
                    name = (
                        store.append("f", name, log=f"log{number}-{count}")
                        and f"log{number}-{count}"
                    )
                    name = f"{name}/000000000001"

                with lock:
                    written[name] = began, time.monotonic()

    def delete() -> None:
        with cs.open_store(url) as store:
            for _ in range(5):
                began = time.monotonic()
                with store.begin() as session:
                    session.delete_by_id("f")

                deletions.append((began, time.monotonic()))
                store.get_or_create(cs.FlowSnapshot("f", state={}))
                store.list_parts("f", bodies=True)

            store.put_part(cs.Part("f", "last", "last"))
            done.set()

    with cs.open_store(url) as store:
        store.create(cs.FlowSnapshot("f", state={}))
        with ThreadPoolExecutor(4) as pool:
            work = [pool.submit(write, number) for number in range(3)] + [pool.submit(delete)]
            for one in work:
                one.result()

        there = set(names(store))
        began, ended = deletions[-1]
        assert len(deletions) == 5
        assert "last" in there
        assert {name for name, (first, _) in written.items() if first > ended} <= there
        assert not there & {name for name, (_, last) in written.items() if last < began}
        assert there <= {*written, "last"}
        bodies = store.list_parts("f", bodies=True, limit=1000)
        assert all(part.body in part.name or part.name.startswith("log") for part in bodies)
        store.sweep()
        assert set(names(store)) == there


def test_a_first_part_and_the_deletion_of_its_flow(url: str) -> None:
    """A part that was written before its flow went goes with it: it is not left to the next one."""
    with cs.open_store(url) as one, cs.open_store(url) as two:
        for number in range(40):
            flow_id = f"f{number}"
            one.create(cs.FlowSnapshot(flow_id, state={}))
            gate = threading.Barrier(2)

            def put(flow_id: str = flow_id, gate: threading.Barrier = gate) -> None:
                gate.wait(10)
                one.put_part(cs.Part(flow_id, "p", 1))

            def delete(flow_id: str = flow_id, gate: threading.Barrier = gate) -> None:
                gate.wait(10)
                two.delete(flow_id)

            with ThreadPoolExecutor(2) as pool:
                for work in [pool.submit(put), pool.submit(delete)]:
                    work.result()

        # A part that came after is an orphan, and has its entry; else there is none.
        left = [f"f{number}" for number in range(40) if names(one, f"f{number}")]
        orphans = subjects(url, "due.expiry.>")
        assert sorted(left) == sorted(subject.rpartition(".")[2] for subject in orphans)


# --- directories --------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [700])
def test_a_deep_directory(url: str, count: int) -> None:
    """Two stores write at random places; all parts are listed in order, and the directory shrinks."""
    order = [f"{number:04d}{LONG}" for number in range(count)]
    shuffled = order[:]
    random.Random(1).shuffle(shuffled)
    with cs.open_store(url) as one, cs.open_store(url) as two:
        fill(one, count, name=shuffled.__getitem__)
        assert len(subjects(url, "part.*.directory.>")) > 30
        assert names(two) == order
        for store, name in ((one, "0000"), (two, "0350x"), (one, "9")):
            store.put_part(cs.Part("f", name, name))

        order = sorted([*order, "0000", "0350x", "9"])
        assert names(one) == names(two) == order
        page = two.list_parts("f", reverse=True, limit=7, before=order[500])
        assert [part.name for part in page] == order[499:492:-1]
        assert two.delete_parts("f", "03") == 101
        order = [name for name in order if not name.startswith("03")]
        assert names(one) == order
        page = one.list_parts("f", bodies=True, limit=400)
        assert [part.name for part in page] == order[:400]
        assert {part.body for part in page} == {b"x", "0000"}
        assert one.delete_parts("f", "") == len(order)
        assert two.list_parts("f").items == ()
        one.put_part(cs.Part("f", "new", 1))
        assert names(two) == ["new"]


def test_writers_of_one_directory(url: str) -> None:
    """No part is lost and none is refused, whatever is split meanwhile; a reader sees whole lists."""

    def write(number: int) -> list[str]:
        with cs.open_store(url) as store:
            written: list[str] = []
            for count in range(25):
                part = cs.Part("f", f"{count:03d}/{number}/{LONG}", number)
                store.put_part(part)
                written.append(part.name)

            return written

    with cs.open_store(url) as store, ThreadPoolExecutor(4) as pool:
        fill(store, 100, name=lambda number: f"s{number:04d}{LONG}")
        work = [pool.submit(write, number) for number in range(4)]
        while not all(one.done() for one in work):
            seen = names(store)
            assert len(seen) == len(set(seen))
            assert sum(name.startswith("s") for name in seen) == 100
            store.list_parts("f", bodies=True)

        written = [name for one in work for name in one.result()]
        assert names(store) == sorted(
            [*written, *(f"s{number:04d}{LONG}" for number in range(100))]
        )


def test_a_long_log(url: str) -> None:
    """Appended, read at both ends, and trimmed; the counter goes on."""
    with cs.open_store(url) as store:
        for start in range(0, 1000, 200):
            with store.begin() as session:
                for number in range(start, start + 200):
                    session.append("f", number, key=f"k{number}")

        assert [entry.body for entry in store.read_log("f", reverse=True, limit=3)] == [
            999,
            998,
            997,
        ]
        assert store.append("f", 0, key="k3").sequence == 4
        assert store.trim_log("f", before=991) == 990
        assert [entry.sequence for entry in store.read_log("f")] == list(range(991, 1001))
        assert store.append("f", 0, key="k3") == cs.Appended("f", "log", 1001, "k3")


def test_a_missing_node_is_named(url_of: Callable[[str], str]) -> None:
    """A directory whose node is gone is an error that says so, not an endless search."""
    url = url_of("nats")
    with cs.open_store(url) as store:
        fill(store, 200, name=lambda number: f"{number:04d}{LONG}")
        (gone, *_) = subjects(url, "part.*.directory.>")
        anyio.run(ask, url, "PURGE", {"filter": gone})
        with pytest.raises(cs.CorruptRecordError, match="is missing"):
            names(store)


# --- large bodies ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", ["1MB", "128KB", "64KB"])
def test_large_parts_where_messages_are_small(limit: str, bucket: str) -> None:
    """Read, listed, replaced by smaller ones, removed by prefix: no piece is left."""
    with NatsServer(f"max_payload: {limit}") as server:
        url = f"{server.url}?bucket={bucket}"
        with cs.open_store(url) as one, cs.open_store(url) as two:
            body = random.Random(1).randbytes(1_200_000) + b'\n{"layout":1}\n'
            one.create(cs.FlowSnapshot("f", state=body))
            assert two.get_one("f").state == body
            for name in ("a", "b", "c"):
                one.put_part(cs.Part("f", name, body + name.encode(), tag="\n" * 256))

            one.append("f", body)
            page = two.list_parts("f", bodies=True)
            assert [(part.name, part.body[-1:]) for part in page] == [
                ("a", b"a"),
                ("b", b"b"),
                ("c", b"c"),
                ("log/000000000001", b"\n"),
            ]
            read = two.get_part("f", "a")
            assert read is not None
            read.tag = "other"
            two.put_part(read)
            assert one.get_parts("f", ["a"])["a"].body == body + b"a"  # type: ignore[union-attr]
            assert one.delete_parts("f", "") == 4
            one.sweep()
            assert subjects(url, "piece.>") == []


def test_a_large_part_is_replaced_in_its_commit(url: str) -> None:
    """The pieces of the new body were there before the old ones went."""
    with cs.open_store(url) as store:
        store.put_part(cs.Part("f", "p", bytes(2_000_000)))
        with store.session() as session:
            part = session.get_part("f", "p")
            assert part is not None
            session.delete_part(part)
            session.add_part(cs.Part("f", "p", b"\x01" * 2_000_000))
            session.commit()

        read = store.get_part("f", "p")
        assert read is not None
        assert (read.version, read.body) == (1, b"\x01" * 2_000_000)
        store.create(cs.FlowSnapshot("f", state={}))
        with store.session() as session:
            session.delete(session.get_one("f"))
            session.add(cs.FlowSnapshot("f", state={}))
            session.add_part(cs.Part("f", "p", b"\x02" * 2_000_000))
            session.commit()

        read = store.get_part("f", "p")
        assert read is not None
        assert (read.version, read.body) == (1, b"\x02" * 2_000_000)


def test_old_pieces_without_a_part_are_swept(
    url_of: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a writer leaves them that dies before its commit; those of the body that is stored stay."""
    url = url_of("nats")
    with cs.open_store(url) as store:
        protocol, hold = conversation_runner(store)
        body = bytes(2_000_000)
        store.put_part(cs.Part("f", "p", body))
        (first, *_) = subjects(url, "piece.*.*.*.*.0")
        life = first.split(".")[4]
        strays = [
            protocol._layout.chunk(part_key("f", name), f"{life}.{new_commit_id()}", 0)
            for name in ("p", "never")
        ]
        hold(conversation.ask(Publish(tuple(Message(one, b"half", {}) for one in strays))))
        store.sweep()
        assert set(strays) < set(subjects(url, "piece.*.*.*.*.0"))
        monkeypatch.setattr(sweeping, "_CHUNK_SECONDS", -3600)
        store.sweep()
        until(lambda: subjects(url, "piece.*.*.*.*.0") == [first])
        read = store.get_part("f", "p")
        assert read is not None
        assert read.body == body


# --- time ----------------------------------------------------------------------------------------------


def test_orphans_and_expired_flows_are_swept(
    nats_server: NatsServer, bucket: str, clock: ManualClock
) -> None:
    """Their parts leave nothing behind, by the sweeps that commits make, too."""
    url = f"{nats_server.url}?bucket={bucket}"
    with cs.open_store(url, clock=clock) as store:
        fill(store, 250, "orphan")
        with store.begin() as session:
            session.add(cs.FlowSnapshot("done", state={}, status=cs.FlowStatus.COMPLETED))
            session.add_part(cs.Part("done", "p", 1))

        clock.advance(timedelta(days=30))
        assert store.list_parts("done").items == ()
        assert store.sweep() == 2
        assert names(store, "orphan") == []
        store.sweep()
        assert subjects(url, "part.>") == subjects(url, "due.>") == []


def test_a_stale_writer_after_a_rollback(bucket: str) -> None:
    """Of a part whose version and sequence came again: its revision is another one."""
    with NatsServer() as server:
        url = f"{server.url}?bucket={bucket}"
        with cs.open_store(url) as a, cs.open_store(url) as b:
            a.put_part(cs.Part("f", "p", {"n": 0}))
            a.append("f", 0)
            server.stop()
            kept: Path = server.directory.with_name(server.directory.name + "-kept")
            shutil.copytree(server.directory / "jetstream", kept)
            server.start()
            mine = a.get_part("f", "p")
            assert mine is not None
            mine.body["n"] = 1
            a.put_part(mine)
            assert a.append("f", "lost").sequence == 2
            server.kill()
            shutil.rmtree(server.directory / "jetstream")
            shutil.move(kept, server.directory / "jetstream")
            server.start()
            theirs = b.get_part("f", "p")
            assert theirs is not None
            assert theirs.body == {"n": 0}
            theirs.body["n"] = 2
            b.put_part(theirs)
            assert b.append("f", "theirs").sequence == 2
            mine.body["n"] = 3
            with pytest.raises(cs.StalePartError):
                a.put_part(mine)

            assert a.append("f", "mine").sequence == 3
            assert [entry.body for entry in a.read_log("f")] == [0, "theirs", "mine"]


def test_a_page_of_a_protocol_request(url: str, clock: ManualClock) -> None:
    """Heads of a listing are those of the parts, but for commits that are further back."""
    with cs.open_store(url, clock=clock) as store:
        for number in range(3):
            store.put_part(cs.Part("f", "p", number, tag=f"t{number}"), exists="overwrite")

        wanted = Parts("f", "", None, None, reverse=False, limit=9, bodies=False, now_ms=0)
        whole = Parts("f", "", None, None, reverse=False, limit=9, bodies=True, now_ms=0)

        (listed,) = store._run(conversation.ask(wanted))
        (read,) = store._run(conversation.ask(whole))
        assert listed.head == read.head._replace(commits=read.head.commits[:1])
        assert (read.head.version, read.head.position, len(read.head.commits)) == (3, "t2", 3)

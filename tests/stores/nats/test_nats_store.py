"""What only the NATS store has: what the server keeps, definite outcomes, refusals, the connection."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import threading
import time
import uuid
from collections.abc import Callable
from collections.abc import Generator
from collections.abc import Iterator
from contextlib import ExitStack
from contextlib import closing
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import nats
import pytest
from anyio.from_thread import start_blocking_portal
from nats.aio.client import Client
from proxy import Proxy
from proxy import Strike
from stuck import assert_a_row
from waiting import retried
from waiting import until

import catga_store as cs
from catga_store.drivers.cancellation import OwnTask
from catga_store.drivers.nats_asyncio import NatsLink
from catga_store.protocol.conversation import ReplyLostError
from catga_store.protocol.conversation import Request
from catga_store.protocol.conversation import ask
from catga_store.protocol.keys import PROGRESS
from catga_store.protocol.keys import Key
from catga_store.protocol.keys import new_commit_id
from catga_store.protocol.requests import Applied
from catga_store.protocol.requests import Commit
from catga_store.protocol.requests import Delete
from catga_store.protocol.requests import Head
from catga_store.protocol.requests import Put
from catga_store.protocol.requests import Read
from catga_store.protocol.requests import Refused
from catga_store.stores.nats.transport import Answer
from catga_store.stores.nats.transport import Asks
from catga_store.stores.nats.transport import Message
from catga_store.stores.nats.transport import Publish
from catga_store.stores.nats.transport import Tell
from catga_store.testing import ManualClock
from catga_store.testing.servers import NatsCluster
from catga_store.testing.servers import NatsServer

LONG = 30
"""Seconds that only a test that fails would wait."""


class Raw:
    """A connection of nats-py to the server itself, used by blocking, for one bucket."""

    def __init__(self, url: str, bucket: str) -> None:
        """Connect."""
        self.bucket = bucket
        self.stream = f"KV_{bucket}"
        self._stack = ExitStack()
        self.portal = self._stack.enter_context(start_blocking_portal())
        connect: Any = nats.connect
        self.client: Client = self.portal.call(connect, url)

    def api(self, verb: str, payload: dict[str, Any] | None = None) -> dict[str, Any]:
        """Ask the JetStream API about the stream."""
        data = json.dumps(payload or {}).encode()
        answer: dict[str, Any] = json.loads(
            self.request(f"$JS.API.STREAM.{verb}.{self.stream}", data).data
        )
        return answer

    def request(self, subject: str, data: bytes, headers: dict[str, str] | None = None) -> Any:
        """Send a message and answer its reply."""

        async def ask() -> Any:
            return await self.client.request(subject, data, timeout=LONG, headers=headers)

        return self.portal.call(ask)

    def publish(self, *messages: Message, atomic: bool = False) -> list[dict[str, Any]]:
        """Store messages; return their acknowledgements, or the one of a batch."""
        if not atomic:
            return [
                json.loads(self.request(one.subject, one.payload, one.headers or None).data)
                for one in messages
            ]

        name = uuid.uuid4().hex

        async def ask() -> Any:
            for number, one in enumerate(messages, start=1):
                headers = {
                    **one.headers,
                    "Nats-Batch-Id": name,
                    "Nats-Batch-Sequence": str(number),
                }
                if number < len(messages):
                    await self.client.publish(one.subject, one.payload, headers=headers)
                    continue

                headers["Nats-Batch-Commit"] = "1"
                return await self.client.request(
                    one.subject, one.payload, timeout=LONG, headers=headers
                )

            return None

        return [json.loads(self.portal.call(ask).data)]

    def subjects(self, wanted: str) -> list[str]:
        """Name what the stream holds under a filter; `{}` is the bucket."""
        payload = {"subjects_filter": wanted.format(self.bucket)}
        return sorted(self.api("INFO", payload)["state"].get("subjects") or {})

    def until_gone(self, wanted: str) -> None:
        """Wait until the stream holds nothing under a filter."""
        until = time.monotonic() + LONG
        while self.subjects(wanted):
            assert time.monotonic() < until

    def close(self) -> None:
        """Remove the stream and disconnect."""
        self.api("DELETE")
        self.portal.call(self.client.close)
        self._stack.close()


@pytest.fixture
def bucket() -> str:
    """Name records that no other test uses."""
    return uuid.uuid4().hex


@pytest.fixture
def raw(nats_server: NatsServer, bucket: str) -> Iterator[Raw]:
    """Connect to the server itself."""
    connection = Raw(nats_server.url, bucket)
    yield connection
    connection.close()


@pytest.fixture
def open_store(
    nats_server: NatsServer, bucket: str, clock: ManualClock
) -> Iterator[Callable[..., cs.NatsStore]]:
    """Open stores on one stream."""
    with ExitStack() as stack:

        def open_one(**options: Any) -> cs.NatsStore:
            options.setdefault("clock", clock)
            options.setdefault("servers", nats_server.url)
            return stack.enter_context(cs.NatsStore(bucket=bucket, **options))

        yield open_one


@pytest.fixture
def store(open_store: Callable[..., cs.NatsStore]) -> cs.NatsStore:
    """Open a store on a stream that is not there yet."""
    return open_store()


def patch_wire(patch: pytest.MonkeyPatch, perform: Callable[[NatsLink, Request[Any]], Any]) -> None:
    """Let every request go through this function, also without a task of its own, but hints."""
    original = NatsLink.perform

    async def through(link: NatsLink, request: Request[Any]) -> Any:
        return await (original if isinstance(request, Tell) else perform)(link, request)

    def start(link: NatsLink, request: Request[Any]) -> OwnTask:
        return OwnTask(asyncio.create_task(link.perform(request)))

    patch.setattr(NatsLink, "perform", through)
    patch.setattr(NatsLink, "start", start)


# --- what the server keeps ----------------------------------------------------------------------------


def test_concurrent_first_users_make_one_stream(open_store: Callable[..., cs.NatsStore]) -> None:
    """Eight stores that are used for the first time at once all work."""
    stores = [open_store() for _ in range(8)]
    errors: list[BaseException] = []

    def use(number: int) -> None:
        try:
            stores[number].create(cs.FlowSnapshot(f"f-{number}", state={}))
        except BaseException as error:  # noqa: BLE001  whatever it is, the test says it
            errors.append(error)

    threads = [threading.Thread(target=use, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()

    for thread in threads:
        thread.join()

    assert errors == []
    assert stores[0].count_flows() == 8


def test_recreated_stream_refuses_old_revisions(
    open_store: Callable[..., cs.NatsStore], raw: Raw
) -> None:
    """A flow read before the stream was removed and created again is stale in the new one."""
    old = cs.FlowSnapshot("f", state={"n": 1})
    open_store().create(old)
    raw.api("DELETE")
    anew = open_store()
    anew.create(cs.FlowSnapshot("f", state={"n": 2}))
    with pytest.raises(cs.StaleFlowError):
        anew.update(old)

    assert anew.get_one("f").state == {"n": 2}


def test_deleted_records_leave_only_what_expires(store: cs.NatsStore, raw: Raw) -> None:
    """After a delete no index entry is left, and the tombstones have a time to live."""
    flow = cs.FlowSnapshot("f", state={"bulk": "x" * 3_000_000})
    store.create(flow)
    progress = cs.ForEachProgress()
    progress.mark(0)
    store.save_for_each_progress("f", 0, progress)
    assert store.delete("f")
    for what in ("list", "due", "chunk"):
        raw.until_gone(f"catga.{{}}.{what}.>")

    left = raw.subjects("$KV.>")
    assert left == [f"$KV.{raw.bucket}.flow.f", f"$KV.{raw.bucket}.progress.f.0"]
    for subject in left:
        payload = json.dumps({"last_by_subj": subject}).encode()
        answer = raw.request(f"$JS.API.DIRECT.GET.{raw.stream}", payload)
        assert answer.headers["Nats-TTL"] == "21s"
        assert answer.headers["KV-Operation"] == "PURGE"


def test_update_without_index_change_is_one_publish(
    store: cs.NatsStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is sent for one flow is one message with the expected sequence, and no read."""
    flow = cs.FlowSnapshot("f", state={"n": 1}, due_at=None)
    store.create(flow)
    sent: list[Request[Any]] = []
    perform = NatsLink.perform

    async def watch(link: NatsLink, request: Request[Any]) -> Any:
        sent.append(request)
        return await perform(link, request)

    patch_wire(monkeypatch, watch)
    flow.state["n"] = 2
    store.update(flow)
    (publish,) = sent
    assert isinstance(publish, Publish)
    (message,) = publish.messages
    assert message.headers["Nats-Expected-Last-Subject-Sequence"].isdecimal()


def test_bodies_of_64_mebibytes(store: cs.NatsStore, raw: Raw) -> None:
    """The largest body that is allowed is read as it was written, and its chunks go when it shrinks."""
    state = {"bulk": "x" * (64 * 1024 * 1024 - 1000)}
    flow = cs.FlowSnapshot("f", state=state)
    store.create(flow)
    assert store.get_one("f").state == state
    flow.state = {"bulk": ""}
    store.update(flow)
    assert store.get_one("f").state == {"bulk": ""}
    raw.until_gone("catga.{}.chunk.>")


def test_chunks_go_with_the_update_of_another_process(
    open_store: Callable[..., cs.NatsStore], raw: Raw
) -> None:
    """A writer that shortens the body of another writer removes its chunks, without reading it again."""
    open_store().create(cs.FlowSnapshot("f", state={"bulk": "x" * 3_000_000}))
    store = open_store()
    flow = store.get_one("f")
    flow.state = {}
    store.update(flow)
    raw.until_gone("catga.{}.chunk.>")


def test_bucket_is_readable_by_every_client(store: cs.NatsStore, raw: Raw) -> None:
    """Clients open the bucket of flows by its name, and read what `nats kv get` would show."""
    store.create(cs.FlowSnapshot("order/1", state={"n": 1}))

    async def read() -> list[str]:
        bucket = await raw.client.jetstream().key_value(raw.bucket)
        entry = await bucket.get("flow.order=2F1")
        assert entry.value is not None
        return entry.value.decode().splitlines()

    head, body = raw.portal.call(read)
    assert json.loads(head)["version"] == 1
    assert json.loads(body)["state"] == {"n": 1}


def test_missing_chunks_are_corrupt(store: cs.NatsStore, raw: Raw) -> None:
    """A body that the server lost in part is not a shorter body: the record is corrupt."""
    store.create(cs.FlowSnapshot("f", state={"bulk": "x" * 3_000_000}))
    raw.api("PURGE", {"filter": raw.subjects("catga.{}.chunk.>")[1]})
    with pytest.raises(cs.CorruptRecordError, match="chunks of its body"):
        store.get("f")


def test_completions_that_do_not_fit_into_the_record(store: cs.NatsStore, raw: Raw) -> None:
    """Large results lie beside the condition and are all read; the last one satisfies it.

    They go with it.
    """
    children = [f"c-{number}" for number in range(12)]
    store.set_wait_condition(
        cs.WaitCondition("w", flow_ids=children, wait_type=cs.WaitType.WHEN_ALL)
    )
    for number, child in enumerate(children):
        result = str(number) * 100_000
        done = store.complete_child("w", child, result=result)
        assert done.accepted
        assert done.now_satisfied == (number == 11)
        assert store.complete_child("w", child, result=result).duplicate

    wait = store.get_wait_condition("w")
    assert wait is not None
    assert wait.outcome is cs.WaitOutcome.SATISFIED
    assert [wait.results[child].result for child in children] == [
        str(number) * 100_000 for number in range(12)
    ]
    assert raw.subjects("catga.{}.item.>") != []
    assert store.clear_wait_condition("w")
    raw.until_gone("catga.{}.item.>")


def test_completions_of_one_commit_that_do_not_fit_into_the_record(store: cs.NatsStore) -> None:
    """They are in the batch of their commit, beside the condition, and are counted."""
    children = [f"c-{number}" for number in range(8)]
    wait = cs.WaitCondition("w", flow_ids=children, wait_type=cs.WaitType.WHEN_ALL)
    store.set_wait_condition(wait)
    with store.begin() as session:
        for child in children:
            session.complete_child("w", child, result=child * 40_000)

    assert session.receipt is not None
    assert session.receipt.satisfied == ("w",)
    stored = store.get_wait_condition("w")
    assert stored is not None
    assert [stored.results[child].result for child in children] == [c * 40_000 for c in children]


def test_a_record_that_is_written_and_removed_in_one_commit(store: cs.NatsStore) -> None:
    """Progress of a flow that goes with it: nothing is left of either, and nothing was there before."""
    flow = cs.FlowSnapshot("f", state={})
    store.create(flow)
    progress = Key(PROGRESS, "f", 0)
    request = Commit(
        new_commit_id(),
        0,
        (Put(progress, Head(1, 0, 0, 0), b"{}", None), Delete(flow.key, None)),
        0,
    )
    assert isinstance(store._run(ask(request)), Applied)
    assert store._run(ask(Read((progress, flow.key), 0))) == (None, None)


def test_a_commit_that_does_not_say_what_it_replaces(store: cs.NatsStore) -> None:
    """The revision alone is enough: what it was is read."""
    flow = cs.FlowSnapshot("f", state={"n": 1})
    store.create(flow)
    (record,) = store._run(ask(Read((flow.key,), 0)))
    assert record is not None
    head = record.head._replace(version=2, commits=())
    put = Put(flow.key, head, record.body.replace(b'"n":1', b'"n":2'), record.head.revision)
    for expected in (Applied, Refused):
        assert isinstance(store._run(ask(Commit(new_commit_id(), 0, (put,), None))), expected)

    stored = store.get_one("f")
    assert (stored.version, stored.state) == (2, {"n": 2})


def test_stale_entries_are_swept(store: cs.NatsStore, raw: Raw) -> None:
    """An entry that matches no record is passed over, and stays while it may belong to a commit."""
    store.create(cs.FlowSnapshot("f", state={"n": 1}))
    (entry,) = raw.subjects("catga.{}.list.>")
    wrong = entry.replace(".list.flow.0.", ".list.flow.4.")
    raw.publish(Message(wrong, b"", {}))
    assert store.count_flows() == 1
    assert list(store.query_flows(status=cs.FlowStatus.COMPLETED)) == []
    store.sweep()
    assert raw.subjects("catga.{}.list.>") == [entry, wrong]


def test_unreadable_record_does_not_block_others(
    store: cs.NatsStore, raw: Raw, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Claims, commits and sweeps pass it over and log it; reading it raises, and it stays."""
    store.create(cs.FlowSnapshot("bad", state={}))
    store.create(cs.FlowSnapshot("old", state={}, status=cs.FlowStatus.COMPLETED))
    store.set_wait_condition(
        cs.WaitCondition("w", flow_ids=["a"], timeout=timedelta(0), parent_flow_id="bad")
    )
    names = [f"$KV.{raw.bucket}.flow.bad", f"$KV.{raw.bucket}.flow.old", f"$KV.{raw.bucket}_wait.w"]
    raw.publish(*(Message(name, b"garbage\n{}", {}) for name in names))
    clock.advance(timedelta(seconds=1))
    store.create(cs.FlowSnapshot("good", state={}))
    assert [flow.flow_id for flow in store.claim_due(limit=5)] == ["good"]
    (overdue,) = store.get_timed_out_wait_conditions()
    assert "'w'" in (overdue.unreadable or "")
    clock.advance(timedelta(days=9))
    for number in range(20):  # a few of them sweep
        store.create(cs.FlowSnapshot(f"f-{number}", state={}))

    assert store.sweep() == 0
    assert "skipped: flow 'bad' cannot be read" in caplog.text
    for what in (
        lambda: store.get("old"),
        lambda: store.get_wait_condition("w"),
    ):
        with pytest.raises(cs.CorruptRecordError):
            what()

    assert_a_row(store, "bad", {"good", "old", *(f"f-{number}" for number in range(20))})


# --- definite outcomes ----------------------------------------------------------------------------


@contextmanager
def lost_replies(*, applied: bool, times: int | None = 1) -> Generator[list[Publish]]:
    """Lose the replies to publishes; `applied`: after the server had them, else instead.

    Without `times` the server is silent from the first of them on.
    """
    perform = NatsLink.perform
    lost: list[Publish] = []

    async def lose(link: NatsLink, request: Request[Any]) -> Any:
        wanted = isinstance(request, Publish) and (times is None or len(lost) < times)
        if isinstance(request, Publish) and wanted:
            lost.append(request)
            if applied and (times or len(lost) == 1):
                await perform(link, request)

        if wanted or (times is None and lost and isinstance(request, Asks)):
            text = "lost by the test"
            raise ReplyLostError(text)

        return await perform(link, request)

    with pytest.MonkeyPatch.context() as patch:
        patch_wire(patch, lose)
        yield lost


def changes(store: cs.NatsStore, kind: str) -> Callable[[], object]:
    """Prepare something and answer the commit that is to lose its reply."""
    flow = cs.FlowSnapshot("f", state={"n": 1})
    if kind != "create":
        store.create(flow)

    store.set_wait_condition(cs.WaitCondition("w", flow_ids=["a"]))
    progress = cs.ForEachProgress()
    progress.mark(3)

    def update() -> object:
        flow.state = {"n": 2}
        store.update(flow)
        assert flow.version == 2
        return None

    def several() -> object:
        with store.begin() as session:
            session.add(cs.FlowSnapshot("g", state={}))
            session.complete_child("w", "a")

        assert session.receipt is not None
        return session.receipt.satisfied

    return {
        "create": lambda: store.create(flow),
        "update": update,
        "delete": lambda: store.delete("f"),
        "complete": lambda: store.complete_child("w", "a"),
        "early": lambda: store.complete_child("nobody", "a"),
        "set": lambda: store.set_wait_condition(cs.WaitCondition("v", flow_ids=["a"])),
        "clear": lambda: store.clear_wait_condition("w"),
        "progress": lambda: store.save_for_each_progress("f", 0, progress),
        "several": several,
    }[kind]


EXPECTED: dict[str, object] = {
    "create": None,
    "update": None,
    "delete": True,
    "complete": cs.Completion(
        accepted=True, duplicate=False, now_satisfied=True, outcome=cs.WaitOutcome.SATISFIED
    ),
    "early": cs.Completion(accepted=True, duplicate=False, now_satisfied=False, outcome=None),
    "set": False,
    "clear": True,
    "progress": None,
    "several": ("w",),
}


@pytest.mark.parametrize(("applied", "times"), [(True, 1), (False, 1), (False, 3)])
@pytest.mark.parametrize("kind", EXPECTED)
def test_lost_reply_is_recovered(store: cs.NatsStore, kind: str, applied: bool, times: int) -> None:
    """A commit whose reply was lost returns what the first would have, written once."""
    commit = changes(store, kind)
    with lost_replies(applied=applied, times=times) as lost:
        assert commit() == EXPECTED[kind]

    assert len(lost) == times


def settle(store: cs.NatsStore, error: cs.CommitUncertainError) -> cs.Receipt | None:
    """Ask until the store knows."""
    return retried(lambda: store.resolve_commit(error), cs.CommitUncertainError)


@pytest.mark.parametrize("applied", [True, False])
@pytest.mark.parametrize("kind", EXPECTED)
def test_an_uncertain_commit_is_settled(
    open_store: Callable[..., cs.NatsStore], raw: Raw, kind: str, applied: bool
) -> None:
    """When every reply is lost the commit is uncertain, and `resolve_commit` finds what became of it.

    One that did not arrive is fenced: it is refused when it arrives after all.
    """
    store = open_store(timeout=timedelta(milliseconds=300))
    store.ping()
    commit = changes(store, kind)
    with (
        lost_replies(applied=applied, times=None) as lost,
        pytest.raises(cs.CommitUncertainError) as caught,
    ):
        commit()

    receipt = settle(store, caught.value)
    assert (receipt is not None) == applied
    if receipt is not None:
        return

    # What the connection held back arrives now.
    before = raw.subjects("$KV.>")
    for publish in lost:
        acks = raw.publish(*publish.messages, atomic=publish.atomic)
        assert acks[-1].get("duplicate") or not acks[-1]["seq"], acks

    assert raw.subjects("$KV.>") == before


def claimed(store: cs.NatsStore) -> cs.FlowSnapshot[Any]:
    """Create a flow and claim it."""
    store.create(cs.FlowSnapshot("f", state={}))
    return store.claim("f", lease=timedelta(minutes=1))


@pytest.mark.parametrize(("applied", "times"), [(True, 1), (False, 1), (False, 3)])
def test_lost_reply_of_housekeeping_is_recovered(
    store: cs.NatsStore, clock: ManualClock, applied: bool, times: int
) -> None:
    """`extend` and `sweep` answer as the first time."""
    flow = claimed(store)
    with lost_replies(applied=applied, times=times) as lost:
        store.extend(flow, timedelta(minutes=5))

    assert len(lost) == times
    stored = store.get_one("f")
    assert (stored.due_at, stored.version) == (clock() + timedelta(minutes=5), flow.version)
    flow.status = cs.FlowStatus.COMPLETED
    store.update(flow)
    clock.advance(timedelta(days=8))
    with lost_replies(applied=applied, times=times):
        assert store.sweep() == 1

    assert store.sweep() == 0


@pytest.mark.parametrize("applied", [True, False])
def test_an_uncertain_extend_is_settled(
    open_store: Callable[..., cs.NatsStore], clock: ManualClock, applied: bool
) -> None:
    """The claim ends at one time or the other, and `resolve_commit` says at which."""
    store = open_store(timeout=timedelta(milliseconds=300))
    flow = claimed(store)
    with (
        lost_replies(applied=applied, times=None),
        pytest.raises(cs.CommitUncertainError, match="outcome is unknown") as caught,
    ):
        store.extend(flow, timedelta(minutes=5))

    assert (settle(store, caught.value) is not None) == applied
    minutes = 5 if applied else 1
    assert store.get_one("f").due_at == clock() + timedelta(minutes=minutes)
    store.extend(flow, timedelta(minutes=7))
    assert store.get_one("f").due_at == clock() + timedelta(minutes=7)


@pytest.mark.parametrize("applied", [True, False])
def test_an_uncertain_sweep_is_settled(
    open_store: Callable[..., cs.NatsStore], clock: ManualClock, applied: bool
) -> None:
    """The record is gone from the server or not yet; either way it has expired."""
    store = open_store(timeout=timedelta(milliseconds=300))
    flow = cs.FlowSnapshot("f", state={}, status=cs.FlowStatus.COMPLETED)
    store.create(flow)
    clock.advance(timedelta(days=8))
    with (
        lost_replies(applied=applied, times=None),
        pytest.raises(cs.CommitUncertainError) as caught,
    ):
        store.sweep()

    assert (settle(store, caught.value) is not None) == applied
    assert store.get("f") is None
    assert store.sweep() == (0 if applied else 1)


NO_ROOM = Answer(0, {}, b'{"error":{"err_code":10077,"description":"maximum bytes exceeded"}}')


@pytest.mark.parametrize("times", [1, None])
def test_entries_that_had_no_room_when_their_record_had(
    open_store: Callable[..., cs.NatsStore], monkeypatch: pytest.MonkeyPatch, times: int | None
) -> None:
    """The commit is not refused, and what is due is found once its commit is certain."""
    store = open_store(timeout=timedelta(milliseconds=300))
    store.ping()
    perform = NatsLink.perform
    refused = 0

    async def refuse(link: NatsLink, request: Request[Any]) -> Any:
        nonlocal refused
        if not isinstance(request, Publish) or (times is not None and refused >= times):
            return await perform(link, request)

        refused += 1
        kept = [one for one in request.messages if ".due." not in one.subject]
        stored = iter(await perform(link, Publish(tuple(kept))) if kept else ())
        return tuple([next(stored) if one in kept else NO_ROOM for one in request.messages])

    with monkeypatch.context() as patch:
        patch_wire(patch, refuse)
        flow = cs.FlowSnapshot("f", state={})
        if times is None:
            with pytest.raises(cs.CommitUncertainError) as caught:
                store.create(flow)
        else:
            store.create(flow)

    if times is None:
        assert store.resolve_commit(caught.value) is not None

    assert [one.flow_id for one in store.claim_due()] == ["f"]


def test_a_completion_that_was_counted_and_cleared_since(
    nats_server: NatsServer, store: cs.NatsStore, bucket: str, clock: ManualClock
) -> None:
    """Its reply was lost; when it looks, nothing of it is left but that the server had it."""
    store.set_wait_condition(
        cs.WaitCondition("w", flow_ids=["a", "b"], wait_type=cs.WaitType.WHEN_ALL)
    )
    perform = NatsLink.perform
    cleared: list[bool] = []

    async def lose(link: NatsLink, request: Request[Any]) -> Any:
        reply = await perform(link, request)
        if not isinstance(request, Publish) or cleared:
            return reply

        async with cs.AsyncNatsStore(nats_server.url, bucket=bucket, clock=clock) as other:
            cleared.append(True)
            assert await other.clear_wait_condition("w")

        text = "lost by the test"
        raise ReplyLostError(text)

    with pytest.MonkeyPatch.context() as patch:
        patch_wire(patch, lose)
        done = store.complete_child("w", "a")

    assert cleared
    assert (done.accepted, done.now_satisfied) == (True, False)
    assert store.get_wait_condition("w") is None


def is_purge(data: bytes) -> bool:
    """Whether a request is the purge of a whole stream."""
    return b"STREAM.PURGE" in data and b"filter" not in data


@pytest.mark.parametrize(
    ("strike", "applied"), [("drop the reply", True), ("drop the request", False)]
)
def test_clear_whose_reply_is_lost(
    nats_server: NatsServer,
    open_store: Callable[..., cs.NatsStore],
    strike: Strike,
    applied: bool,
) -> None:
    """The purge is sent again, which harms nothing, until it is done or the time is over."""
    with Proxy(nats_server.port) as proxy:
        url = f"nats://127.0.0.1:{proxy.port}"
        store = open_store(servers=url, timeout=timedelta(seconds=1))
        store.create(cs.FlowSnapshot("f", state={}))
        proxy.strike(strike, times=99, when=is_purge)
        if applied:
            store.clear()
            assert store.count_flows() == 0
        else:
            with pytest.raises(cs.CommitUncertainError) as caught:
                store.clear()

            assert settle(store, caught.value) is None
            assert store.count_flows() == 1

        assert proxy.struck >= 1


def test_clear_leaves_the_layout(store: cs.NatsStore, raw: Raw) -> None:
    """Nothing else is left of what the store held."""
    store.create(cs.FlowSnapshot("f", state={"bulk": "x" * 3_000_000}))
    store.complete_child("w", "a")
    store.clear()
    assert raw.subjects(">") == [f"catga.{raw.bucket}.layout"]


# --- the connection ---------------------------------------------------------------------------------


LOST: list[Strike] = ["drop the request", "drop the reply", "cut the reply"]


@pytest.mark.parametrize("strike", LOST)
def test_commits_and_reads_survive_a_lost_connection(
    nats_server: NatsServer, open_store: Callable[..., cs.NatsStore], raw: Raw, strike: Strike
) -> None:
    """Requests in flight when the connection broke are done once, on the next one."""
    with Proxy(nats_server.port) as proxy:
        store = open_store(servers=f"nats://127.0.0.1:{proxy.port}")
        flow = cs.FlowSnapshot("f", state={"n": 0})
        store.create(flow)
        store.set_wait_condition(cs.WaitCondition("w", flow_ids=["a"]))
        proxy.strike(strike, when=lambda data: b"PUB" in data)
        flow.state["n"] = 1
        store.update(flow)
        proxy.strike(strike, when=lambda data: b"Nats-Batch-Commit" in data)
        flow.state["n"] = 2
        with store.session() as session:
            session.add(flow)
            session.complete_child("w", "a")
            assert session.commit().satisfied == ("w",)

        proxy.strike(strike, when=lambda data: b"DIRECT.GET" in data)
        stored = store.get_one("f")
        assert (stored.version, stored.state) == (3, {"n": 2})
        assert proxy.struck == 3


def write_behind(store: cs.NatsStore) -> None:
    """Write something on the same connection: the server takes it after what came before."""
    until = time.monotonic() + LONG
    while True:
        try:
            store.get_or_create(cs.FlowSnapshot("behind", state={}))
        except (cs.StoreUnavailableError, cs.CommitUncertainError):
            assert time.monotonic() < until
        else:
            return


@pytest.mark.parametrize("strike", ["hold the request", "hold the reply"])
def test_a_commit_delayed_past_the_deadline_is_settled_for_good(
    nats_server: NatsServer, open_store: Callable[..., cs.NatsStore], raw: Raw, strike: Strike
) -> None:
    """A commit that was given up is not applied when it arrives; one that was applied is found."""
    direct = open_store()
    flow = cs.FlowSnapshot("f", state={"n": 0})
    direct.create(flow)
    with Proxy(nats_server.port) as proxy:
        store = open_store(
            servers=f"nats://127.0.0.1:{proxy.port}", timeout=timedelta(milliseconds=500)
        )
        flow = store.get_one("f")
        flow.state["n"] = 1
        proxy.strike(strike, when=lambda data: b"Nats-Msg-Id" in data)
        with pytest.raises(cs.CommitUncertainError) as caught:
            store.update(flow)

        assert proxy.struck == 1
        applied = settle(direct, caught.value) is not None
        assert applied == (strike == "hold the reply")
        proxy.release()
        write_behind(store)
        stored = direct.get_one("f")
        assert (stored.version, stored.state["n"]) == ((2, 1) if applied else (1, 0))


def test_a_store_that_is_closed_while_it_is_asked(
    nats_server: NatsServer, open_store: Callable[..., cs.NatsStore], raw: Raw
) -> None:
    """Callers get an error of ours, soon; the store stays closed."""
    with NatsServer() as server:
        store = cs.NatsStore(server.url, timeout=timedelta(seconds=4))
        flow = cs.FlowSnapshot("f", state={})
        store.create(flow)
        server.signal(signal.SIGSTOP)
        errors: list[BaseException] = []

        def use(work: Callable[[], object]) -> None:
            try:
                work()
            except BaseException as error:  # noqa: BLE001  the test looks at it
                errors.append(error)

        works = [lambda: store.get("f"), lambda: store.update(flow), lambda: store.get_many(["f"])]
        threads = [threading.Thread(target=use, args=(work,)) for work in works]
        for thread in threads:
            thread.start()

        driver: Any = store._driver
        until(lambda: "3 requests" in repr(driver._portal.units.link))
        store.close()
        for thread in threads:
            thread.join(LONG)

        server.signal(signal.SIGCONT)
        assert len(errors) == 3
        wanted = (cs.StoreClosedError, cs.StoreUnavailableError, cs.CommitUncertainError)
        assert all(isinstance(error, wanted) for error in errors), errors
        with pytest.raises(cs.StoreClosedError):
            store.get("f")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
def test_a_store_that_was_used_before_a_fork(store: cs.NatsStore) -> None:
    """Parent and child continue, each over a connection of its own."""
    store.create(cs.FlowSnapshot("f", state={"n": 0}))

    def add(session: cs.Session) -> None:
        session.get_one("f").state["n"] += 1

    child = os.fork()
    if child == 0:
        done = False
        try:
            for _ in range(20):
                store.transact(add)

            done = True
        finally:
            os._exit(0 if done else 1)

    for _ in range(20):
        store.transact(add)

    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert store.get_one("f").state["n"] == 40


@pytest.mark.anyio
async def test_a_client_of_another_loop_is_refused(
    anyio_backend: str, raw: Raw, bucket: str
) -> None:
    """A connection belongs to the loop that made it; the error says what to do instead."""
    async with cs.AsyncNatsStore(raw.client, bucket=bucket) as store:
        with pytest.raises(cs.UsageError, match="use different event loops"):
            await store.get("f")

    async with cs.AsyncNatsStore(Client(), bucket=bucket) as store:
        with pytest.raises(cs.UsageError, match="never been connected"):
            await store.get("f")


def test_a_client_of_the_same_loop_is_used_and_stays_open(
    nats_server: NatsServer, raw: Raw, bucket: str
) -> None:
    """The owner of a connection closes it."""

    async def use() -> None:
        connect: Any = nats.connect
        client: Client = await connect(nats_server.url)
        async with cs.AsyncNatsStore(client, bucket=bucket) as store:
            await store.create(cs.FlowSnapshot("f", state={}))
            assert await store.get("f") is not None

        assert client.is_connected
        await client.close()

    asyncio.run(use())


# --- replicas ---------------------------------------------------------------------------------------


def test_replicas_are_read_from_their_leader(nats_cluster: NatsCluster, bucket: str) -> None:
    """A replica may lack acknowledged commits: without `stale_reads` it must say how far it is."""
    url = nats_cluster.nodes[0].url
    raw = Raw(url, bucket)
    asked: list[str] = []

    async def note(message: Any) -> None:
        if f"catga.{bucket}.layout" not in json.loads(message.data).get("multi_last", ()):
            asked.append(message.subject)

    async def watch() -> None:
        await raw.client.subscribe("$JS.API.DIRECT.GET.>", cb=note)
        await raw.client.flush()

    def look(store: cs.NatsStore) -> list[str]:
        asked.clear()
        assert store.get("f") is not None
        assert store.get_many(["f", "g"])["g"] is None
        assert [one.flow_id for one in store.iter_flows()] == ["f"]
        assert len(store.claim_due(limit=2)) <= 1
        raw.portal.call(raw.client.flush)
        return [subject for subject in asked if bucket in subject]

    with closing(raw), cs.NatsStore(url, bucket=bucket, replicas=3) as store:
        raw.portal.call(watch)
        store.create(cs.FlowSnapshot("f", state={}))
        assert look(store) == []

        with cs.NatsStore(url, bucket=bucket, replicas=3, stale_reads=True) as other:
            assert look(other) != [], "what asks for a copy is seen here"


def test_closing_waits_for_requests_in_flight(
    nats_server: NatsServer, store: cs.NatsStore, bucket: str
) -> None:
    """What was sent before is answered; what was not is refused, and was not written."""
    for number in range(40):
        store.create(cs.FlowSnapshot(f"f-{number}", state={"n": 0}, due_at=None))

    async def close_under_way() -> list[BaseException | None]:
        astore = cs.AsyncNatsStore(nats_server.url, bucket=bucket)
        flows = [await astore.get_one(f"f-{number}") for number in range(40)]
        for flow in flows:
            flow.state["n"] = 1

        updates = [asyncio.ensure_future(astore.update(flow)) for flow in flows]
        await asyncio.sleep(0)
        await astore.close()
        return await asyncio.gather(*updates, return_exceptions=True)

    outcomes = asyncio.run(close_under_way())
    assert None in outcomes
    for number, answer in enumerate(outcomes):
        assert answer is None or isinstance(answer, cs.StoreClosedError | cs.StoreUnavailableError)
        assert store.get_one(f"f-{number}").state["n"] == (1 if answer is None else 0)


# --- together -----------------------------------------------------------------------------------------


def test_reads_together_each_get_their_reply(open_store: Callable[..., cs.NatsStore]) -> None:
    """Reads of many threads, of records that are there and of such as are not, get their own answer."""
    store = open_store()
    for number in range(50):
        store.create(cs.FlowSnapshot(f"f-{number}", state={"n": number}))

    wrong: list[object] = []

    def read(first: int) -> None:
        for number in range(first, first + 60):
            flow = store.get(f"f-{number}")
            if (None if number >= 50 else {"n": number}) != (None if flow is None else flow.state):
                wrong.append((number, flow))

    threads = [threading.Thread(target=read, args=(number,)) for number in range(40)]
    for thread in threads:
        thread.start()

    for thread in threads:
        thread.join()

    assert wrong == []


def test_batches_together_do_not_fail_each_other(open_store: Callable[..., cs.NatsStore]) -> None:
    """Commits of two flows each, sent at once: those that are stale are refused, all others written."""
    store = open_store()
    for number in range(24):
        for half in "lr":
            store.create(cs.FlowSnapshot(f"{half}-{number}", state={"n": 0}))

    pairs = [(store.get_one(f"l-{number}"), store.get_one(f"r-{number}")) for number in range(24)]
    for number in range(0, 24, 3):
        ahead = store.get_one(f"r-{number}")
        ahead.state["n"] = 100
        store.update(ahead)

    refused: set[int] = set()
    ready = threading.Barrier(24)

    def commit(number: int) -> None:
        ready.wait()
        try:
            with store.begin() as session:
                for flow in pairs[number]:
                    session.add(flow)
                    flow.state["n"] += 1
        except cs.StaleFlowError:
            refused.add(number)

    threads = [threading.Thread(target=commit, args=(number,)) for number in range(24)]
    for thread in threads:
        thread.start()

    for thread in threads:
        thread.join()

    assert refused == set(range(0, 24, 3))
    for number in range(24):
        expected = (0, 100) if number in refused else (1, 1)
        assert (
            store.get_one(f"l-{number}").state["n"],
            store.get_one(f"r-{number}").state["n"],
        ) == expected

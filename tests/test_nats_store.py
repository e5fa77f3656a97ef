"""The NATS store: the parity machine, faults, definite outcomes, and what only this store has.

The stores here run their conversations on an event loop in a thread of their own.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import threading
import time
from collections.abc import Callable
from collections.abc import Generator
from collections.abc import Iterator
from contextlib import ExitStack
from contextlib import contextmanager
from contextlib import suppress
from datetime import timedelta
from itertools import count
from typing import Any
from typing import TypeVar

import pytest
from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test

import catga_store as cs
from catga_store.conversation import Answer
from catga_store.conversation import Ask
from catga_store.conversation import Asks
from catga_store.conversation import Conversation
from catga_store.conversation import Invoke
from catga_store.conversation import Message
from catga_store.conversation import Pause
from catga_store.conversation import Publish
from catga_store.conversation import ReplyLostError
from catga_store.conversation import Request
from catga_store.conversation import arun
from catga_store.conversation import run
from catga_store.drivers.nats_asyncio import NatsLink
from catga_store.settings import Settings
from catga_store.store import Store
from catga_store.stores.nats import NatsWaist
from catga_store.testing import BlockingFace
from catga_store.testing import ManualClock
from catga_store.testing import machine_for
from catga_store.testing.servers import NatsCluster
from catga_store.testing.servers import NatsServer

T = TypeVar("T")

STREAM = "KV_dslflows"


class LoopDriver:
    """Runs conversations by blocking; their wire requests on a loop in a thread."""

    def __init__(self, waist: NatsWaist, link: NatsLink) -> None:
        """Start the thread."""
        self.waist = waist
        self.link = link
        self.perform: Callable[[Request[Any]], Any] = link.perform
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()

    def wait(self, awaitable: Any) -> Any:
        """Answer what a coroutine answers that runs on the loop."""
        return asyncio.run_coroutine_threadsafe(awaitable, self.loop).result()

    def run(self, conversation: Conversation[T]) -> T:
        """Run a conversation over waist requests."""

        def perform(request: Request[Any]) -> Any:
            if isinstance(request, Pause):
                return time.sleep(request.seconds)

            if isinstance(request, Invoke):
                return request.function()

            return self.wait(arun(self.waist.converse(request), self._wire))

        return run(conversation, perform)

    async def _wire(self, request: Request[Any]) -> Any:
        return await self.perform(request)

    def close(self) -> None:
        """Close the link and end the thread."""
        self.wait(self.link.close())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()


class NatsStore(Store):
    """A blocking NATS store for the tests of this file."""

    def __init__(
        self,
        servers: Any,
        *,
        bucket: str = "dslflows",
        replicas: int = 1,
        connect: dict[str, Any] | None = None,
        **options: Any,
    ) -> None:
        """Open it; it connects at first use."""
        chosen = Settings(**options)
        waist = NatsWaist(
            bucket=bucket,
            replicas=replicas,
            partitions=chosen.partitions,
            timeout=chosen.timeout,
        )
        link = NatsLink(servers, timeout=chosen.timeout, **(connect or {}))
        self.driver = LoopDriver(waist, link)
        super().__init__(self.driver, chosen)

    def asked(self, *asks: Ask) -> list[tuple[Answer, ...]]:
        """Ask the server itself."""
        return list(self.driver.wait(self.driver.link.perform(Asks(asks))))

    def published(self, *messages: Message, atomic: bool = False) -> list[dict[str, Any]]:
        """Publish to the server itself."""
        answers = self.driver.wait(self.driver.link.perform(Publish(messages, atomic)))
        return [json.loads(answer.data) for answer in answers]

    def subjects(self, wanted: str) -> list[str]:
        """Name what the stream holds under a filter."""
        payload = json.dumps({"subjects_filter": wanted}).encode()
        ((answer,),) = self.asked(Ask(f"$JS.API.STREAM.INFO.{STREAM}", payload))
        return sorted(json.loads(answer.data)["state"].get("subjects") or {})


@pytest.fixture(scope="module")
def server() -> Iterator[NatsServer]:
    """Start one server for the tests that do not kill it."""
    with NatsServer() as started:
        yield started


@pytest.fixture(scope="module")
def cluster() -> Iterator[NatsCluster]:
    """Start three servers for the tests that do not kill them."""
    with NatsCluster() as started:
        yield started


@pytest.fixture
def open_store(server: NatsServer, clock: ManualClock) -> Iterator[Callable[..., NatsStore]]:
    """Open stores on one empty stream."""
    with ExitStack() as stack:

        def open_one(**options: Any) -> NatsStore:
            options.setdefault("clock", clock)
            options.setdefault("servers", server.url)
            return stack.enter_context(NatsStore(**options))

        first = NatsStore(server.url)
        first.driver.wait(
            first.driver.link.perform(Asks((Ask(f"$JS.API.STREAM.DELETE.{STREAM}", b""),)))
        )
        first.close()
        yield open_one


@pytest.fixture
def store(open_store: Callable[..., NatsStore]) -> NatsStore:
    """Open a store on an empty stream."""
    return open_store()


# --- parity ---------------------------------------------------------------------------------------


def machine(url: str, share: int, **options: Any) -> None:
    """Run the parity machine on stores at `url`."""
    numbers = count()

    def open_face(clock: ManualClock, retention: cs.Retention, partitions: int) -> BlockingFace:
        bucket = f"{os.urandom(4).hex()}-{next(numbers)}"

        def make() -> NatsStore:
            return NatsStore(
                url,
                bucket=bucket,
                clock=clock,
                retention=retention,
                partitions=partitions,
                **options,
            )

        return BlockingFace(make, durable=True)

    examples = settings.default.max_examples if settings.default else 50
    run_state_machine_as_test(
        machine_for(open_face),
        settings=settings(max_examples=max(examples // share, 1), stateful_step_count=40),
    )


def test_a_server_does_what_the_model_says(server: NatsServer) -> None:
    """Whatever is done to a NATS store, what can be read of it is what the plain model says."""
    machine(server.url, 5)


def test_a_cluster_does_what_the_model_says(cluster: NatsCluster) -> None:
    """So it is with three replicas, where one leads."""
    machine(cluster.url, 10, replicas=3)


# --- what the server keeps ----------------------------------------------------------------------------


def test_concurrent_first_users_make_one_stream(open_store: Callable[..., NatsStore]) -> None:
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


def test_a_recreated_stream_takes_no_old_revision(store: NatsStore) -> None:
    """A flow read before the stream was removed and made again is stale in the new one."""
    old = cs.FlowSnapshot("f", state={"n": 1})
    store.create(old)
    store.asked(Ask(f"$JS.API.STREAM.DELETE.{STREAM}", b""))
    with NatsStore(store.driver.link._servers, clock=store._operations.settings.clock) as anew:
        anew.create(cs.FlowSnapshot("f", state={"n": 2}))
        with pytest.raises(cs.StaleFlowError):
            anew.update(old)

        assert anew.get_one("f").state == {"n": 2}


def test_deleted_records_leave_only_what_expires(store: NatsStore) -> None:
    """After a delete no index entry is left, and the tombstones have a time to live."""
    flow = cs.FlowSnapshot("f", state={"bulk": "x" * 3_000_000})
    store.create(flow)
    progress = cs.ForEachProgress()
    progress.mark(0)
    store.save_for_each_progress("f", 0, progress)
    assert store.delete("f")
    store.ping()

    until = time.monotonic() + 10
    while store.subjects("catga.dslflows.list.>") or store.subjects("catga.dslflows.chunk.>"):
        assert time.monotonic() < until

    left = store.subjects("$KV.>")
    assert left == ["$KV.dslflows.flow.f", "$KV.dslflows.progress.f.0"]
    for subject in left:
        payload = json.dumps({"last_by_subj": subject}).encode()
        ((answer,),) = store.asked(Ask(f"$JS.API.DIRECT.GET.{STREAM}", payload))
        assert answer.headers["Nats-TTL"] == "21s"
        assert answer.headers["KV-Operation"] == "PURGE"


def test_an_update_that_moves_no_entry_is_one_publish(store: NatsStore) -> None:
    """What is sent for one flow is one message with the expected sequence, and no read."""
    flow = cs.FlowSnapshot("f", state={"n": 1}, due_at=None)
    store.create(flow)
    sent: list[Request[Any]] = []
    perform = store.driver.link.perform

    async def watch(request: Request[Any]) -> Any:
        sent.append(request)
        return await perform(request)

    store.driver.perform = watch
    flow.state["n"] = 2
    store.update(flow)
    (publish,) = sent
    assert isinstance(publish, Publish)
    (message,) = publish.messages
    assert message.headers["Nats-Expected-Last-Subject-Sequence"].isdecimal()


def test_bodies_of_many_megabytes(store: NatsStore) -> None:
    """A state of 20 MB is read as it was written, and its chunks go when it shrinks."""
    state = {"bulk": os.urandom(10_000_000).hex()}
    flow = cs.FlowSnapshot("f", state=state)
    store.create(flow)
    assert store.get_one("f").state == state
    flow.state = {"bulk": ""}
    store.update(flow)
    assert store.get_one("f").state == {"bulk": ""}

    until = time.monotonic() + 10
    while store.subjects("catga.dslflows.chunk.>"):
        assert time.monotonic() < until


def test_completions_that_do_not_fit_into_the_record(store: NatsStore) -> None:
    """Large results lie beside the condition and are all read; the last one satisfies it."""
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


def test_stale_entries_are_swept(store: NatsStore) -> None:
    """An entry that no record bears out is passed over, and stays while it may be a commit's."""
    store.create(cs.FlowSnapshot("f", state={"n": 1}))
    (entry,) = store.subjects("catga.dslflows.list.>")
    wrong = entry.replace(".list.flow.0.", ".list.flow.4.")
    store.published(Message(wrong, b"", {}))
    assert store.count_flows() == 1
    assert list(store.query_flows(status=cs.FlowStatus.COMPLETED)) == []
    store.sweep()
    assert store.subjects("catga.dslflows.list.>") == [entry, wrong]


# --- definite outcomes ----------------------------------------------------------------------------


@contextmanager
def lost_replies(
    store: NatsStore, *, applied: bool, times: int | None = 1
) -> Generator[list[Publish]]:
    """Lose the replies to publishes; `applied`: after the server had them, else instead.

    Without `times` the server is silent from the first of them on.
    """
    perform = store.driver.link.perform
    lost: list[Publish] = []

    async def lose(request: Request[Any]) -> Any:
        wanted = isinstance(request, Publish) and (times is None or len(lost) < times)
        if isinstance(request, Publish) and wanted:
            lost.append(request)
            if applied and (times or len(lost) == 1):
                await perform(request)

        if wanted or (times is None and lost and isinstance(request, Asks)):
            text = "lost by the test"
            raise ReplyLostError(text)

        return await perform(request)

    store.driver.perform = lose
    try:
        yield lost
    finally:
        store.driver.perform = perform


def changes(store: NatsStore, kind: str) -> Callable[[], object]:
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
def test_a_lost_reply_is_found_again(
    store: NatsStore, kind: str, applied: bool, times: int
) -> None:
    """A commit whose reply was lost answers as the first time, written once."""
    commit = changes(store, kind)
    with lost_replies(store, applied=applied, times=times) as lost:
        assert commit() == EXPECTED[kind]

    assert len(lost) == times


@pytest.mark.parametrize("applied", [True, False])
@pytest.mark.parametrize("kind", EXPECTED)
def test_an_uncertain_commit_is_settled(
    open_store: Callable[..., NatsStore], kind: str, applied: bool
) -> None:
    """When every reply is lost the commit is uncertain, and `resolve_commit` finds what became of it.

    One that did not arrive is fenced: it is refused when it arrives after all.
    """
    store = open_store(timeout=timedelta(milliseconds=300))
    store.ping()
    commit = changes(store, kind)
    with (
        lost_replies(store, applied=applied, times=None) as lost,
        pytest.raises(cs.CommitUncertainError) as caught,
    ):
        commit()

    receipt = store.resolve_commit(caught.value)
    assert (receipt is not None) == applied
    if receipt is not None:
        return

    # What the connection held back arrives now.
    before = store.subjects("$KV.>")
    for publish in lost:
        acks = store.published(*publish.messages, atomic=publish.atomic)
        assert acks[-1].get("duplicate") or not acks[-1]["seq"], acks

    assert store.subjects("$KV.>") == before


# --- faults -----------------------------------------------------------------------------------------


class Load:
    """Threads that update flows and complete children until they are stopped."""

    def __init__(self, make: Callable[[], NatsStore], threads: int = 4) -> None:
        """Start them."""
        self.make = make
        self.stopping = threading.Event()
        self.acknowledged = [0] * threads
        self.unsure = [0] * threads
        self.wrong: list[str] = []
        self.threads = [
            threading.Thread(target=self._work, args=(number,)) for number in range(threads)
        ]
        for thread in self.threads:
            thread.start()

    def _work(self, number: int) -> None:
        with self.make() as store:
            while not self.stopping.is_set():
                try:
                    self._increment(store, number)
                except cs.StoreUnavailableError:
                    continue
                except cs.CommitUncertainError:
                    self.unsure[number] += 1
                except Exception as error:  # noqa: BLE001  the test says what it was
                    self.wrong.append(repr(error))
                    return

    def _increment(self, store: NatsStore, number: int) -> None:
        def both(session: cs.Session) -> None:
            left, right = session.get_one(f"l-{number}"), session.get_one(f"r-{number}")
            left.state["n"] += 1
            right.state["n"] += 1

        store.transact(both)
        self.acknowledged[number] += 1

    def stop(self) -> None:
        """Let them end."""
        self.stopping.set()
        for thread in self.threads:
            thread.join()


def check_load(store: NatsStore, load: Load) -> None:
    """Every acknowledged increment is there, in both flows of its transaction."""
    assert load.wrong == []
    for number, acknowledged in enumerate(load.acknowledged):
        left, right = (
            store.get_one(f"l-{number}").state["n"],
            store.get_one(f"r-{number}").state["n"],
        )
        assert left == right, "a commit was torn"
        assert acknowledged <= left <= acknowledged + load.unsure[number]
        assert acknowledged > 0


def make_flows(store: NatsStore, number: int = 4) -> None:
    """Create what the load works on."""
    for one in range(number):
        store.create(cs.FlowSnapshot(f"l-{one}", state={"n": 0}))
        store.create(cs.FlowSnapshot(f"r-{one}", state={"n": 0}))


def until_more(load: Load, times: int = 3) -> None:
    """Wait until every thread has committed some more."""
    wanted = [done + times for done in load.acknowledged]
    until = time.monotonic() + 60
    while any(done < want for done, want in zip(load.acknowledged, wanted, strict=True)):
        assert time.monotonic() < until, load.wrong or "no progress"
        assert not load.wrong, load.wrong
        time.sleep(0.01)


@pytest.mark.parametrize("kills", [2, pytest.param(20, marks=pytest.mark.soak)])
def test_a_killed_server_loses_nothing_acknowledged(kills: int) -> None:
    """SIGKILL under load: acknowledged commits are there, none torn, and the load goes on."""
    with NatsServer() as server, NatsStore(server.url) as store:
        make_flows(store)
        load = Load(lambda: NatsStore(server.url))
        try:
            for _ in range(kills):
                until_more(load)
                server.kill()
                server.start()

            until_more(load)
        finally:
            load.stop()

        check_load(store, load)


@pytest.mark.parametrize("kills", [1, pytest.param(10, marks=pytest.mark.soak)])
def test_a_killed_leader_loses_nothing_acknowledged(kills: int) -> None:
    """SIGKILL of the stream's leader: acknowledged commits are there, none torn."""
    with NatsCluster() as cluster, NatsStore(cluster.url, replicas=3) as store:
        make_flows(store)
        load = Load(lambda: NatsStore(cluster.url, replicas=3))
        try:
            for _ in range(kills):
                until_more(load)
                ((answer,),) = store.asked(Ask(f"$JS.API.STREAM.INFO.{STREAM}", b""))
                leader = json.loads(answer.data)["cluster"]["leader"]
                (node,) = [node for node in cluster.nodes if node.name == leader]
                node.kill()
                until_more(load)
                cluster.start()

            until_more(load)
        finally:
            load.stop()

        check_load(store, load)


# --- refusals ---------------------------------------------------------------------------------------


def test_nobody_listens() -> None:
    """A server that is down is an outage, told in time."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"nats://127.0.0.1:{free.getsockname()[1]}"
        with (
            NatsStore(url, timeout=timedelta(seconds=1)) as store,
            pytest.raises(cs.StoreUnavailableError, match="no NATS server can be used") as caught,
        ):
            store.get("f")

    assert isinstance(caught.value.__cause__, Exception)


def test_without_jetstream() -> None:
    """A server without JetStream is a mistake of the deployment."""
    with (
        NatsServer(jetstream=False) as server,
        NatsStore(server.url) as store,
        pytest.raises(cs.StoreConfigError, match="without JetStream"),
    ):
        store.get("f")


def test_wrong_credentials() -> None:
    """A wrong password is told as such."""
    with NatsServer("authorization { user: a, password: b }") as server:
        url = server.url.replace("//", "//a:wrong@")
        with (
            NatsStore(url, timeout=timedelta(seconds=1)) as store,
            pytest.raises(cs.StoreConfigError, match="refused user, password"),
        ):
            store.get("f")


def test_missing_permissions() -> None:
    """A user who may not publish what the store needs is told which subject it was."""
    allowed = '"$JS.API.>", "_INBOX.>"'
    user = f'{{ user: a, password: b, permissions: {{ publish: [{allowed}], subscribe: ["_INBOX.>"] }} }}'
    with NatsServer(f"authorization {{ users: [{user}] }}") as server:
        url = server.url.replace("//", "//a:b@")
        with (
            NatsStore(url, timeout=timedelta(seconds=2)) as store,
            pytest.raises(cs.StoreConfigError, match="does not let this user publish to"),
        ):
            store.create(cs.FlowSnapshot("f", state={}))


def test_other_settings_are_named(store: NatsStore) -> None:
    """A stream that is not as the store needs it is left alone, and the setting is named."""
    config = {"name": STREAM, "subjects": ["$KV.dslflows.>"], "storage": "file"}
    store.asked(Ask(f"$JS.API.STREAM.CREATE.{STREAM}", json.dumps(config).encode()))
    with pytest.raises(cs.StoreConfigError, match=r"'KV_dslflows' has \w+ = "):
        store.get("f")


def test_a_full_stream_is_an_outage(store: NatsStore) -> None:
    """Without room nothing is written, and the error says so."""
    store.create(cs.FlowSnapshot("f", state={}))
    ((answer,),) = store.asked(Ask(f"$JS.API.STREAM.INFO.{STREAM}", b""))
    config = json.loads(answer.data)["config"] | {"max_bytes": 2000}
    store.asked(Ask(f"$JS.API.STREAM.UPDATE.{STREAM}", json.dumps(config).encode()))
    with pytest.raises(cs.StoreUnavailableError, match="has no room"):
        store.create(cs.FlowSnapshot("g", state={"bulk": "x" * 10_000}))

    assert store.get("g") is None


def test_too_few_servers_for_the_replicas(open_store: Callable[..., NatsStore]) -> None:
    """More replicas than servers is a mistake of the deployment."""
    store = open_store(replicas=3, timeout=timedelta(seconds=2))
    with suppress(cs.StoreUnavailableError), pytest.raises(cs.StoreConfigError, match="replicas"):
        store.get("f")


@pytest.mark.parametrize(
    "options", [{"bucket": ""}, {"bucket": "a.b"}, {"bucket": "a_wait"}, {"replicas": 2}]
)
def test_options_that_cannot_be(options: dict[str, Any]) -> None:
    """A bucket or a number of replicas that NATS has no room for is refused before anything is sent."""
    with pytest.raises(cs.UsageError, match=next(iter(options))):
        NatsWaist(**options)


def test_reads_together_are_each_answered(open_store: Callable[..., NatsStore]) -> None:
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


def test_batches_together_do_not_fail_each_other(open_store: Callable[..., NatsStore]) -> None:
    """Commits of two flows each, sent at once: those that are stale are refused, all others written."""
    store = open_store()
    make_flows(store, 24)
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

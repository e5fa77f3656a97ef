"""Processes on one JetStream: chains, fan-in and claimers, and servers that are killed under load."""

from __future__ import annotations

import asyncio
import itertools
import json
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable
from collections.abc import Iterator
from datetime import UTC
from datetime import datetime
from datetime import timedelta
from typing import Any

import nats
import pytest
from competing import claim
from competing import complete
from competing import transact
from forks import together
from waiting import retried

import catga_store as cs
from catga_store.testing.servers import NatsCluster
from catga_store.testing.servers import NatsServer

FEW, MANY = 4, 16
"""Processes of the short and the long form of a test."""

LONG = 300
"""Seconds that only a test that fails would wait."""

soak = pytest.mark.soak

# --- what comes of it -----------------------------------------------------------------------------


@pytest.fixture
def url(nats_server: NatsServer) -> Iterator[str]:
    """Name records that no other test uses."""
    bucket = uuid.uuid4().hex
    yield f"{nats_server.url}?bucket={bucket}"
    ask(nats_server.url, f"$JS.API.STREAM.DELETE.KV_{bucket}")


def ask(url: str, subject: str) -> dict[str, Any]:
    """Ask a server itself, once."""

    async def once() -> dict[str, Any]:
        connect: Any = nats.connect
        first, *others = url.split(",")
        client = await connect([first, *(f"nats://{other}" for other in others)])
        try:
            answer = await client.request(subject, b"", timeout=LONG)
            reply: dict[str, Any] = json.loads(answer.data)
            return reply
        finally:
            await client.close()

    return asyncio.run(once())


@pytest.mark.parametrize(("processes", "times"), [(FEW, 40), pytest.param(MANY, 250, marks=soak)])
def test_transact_by_processes_makes_a_chain(url: str, processes: int, times: int) -> None:
    """Processes that add that many times each end at exactly the sum; no version was read twice."""
    with cs.open_store(url) as store:
        store.create(cs.FlowSnapshot("counter", state={"n": 0}))
        read = together(transact, *[(url, n, times) for n in range(processes)])
        total = processes * times
        assert sorted(map(tuple, itertools.chain(*read))) == [(n + 1, n) for n in range(total)]
        counter = store.get_one("counter")
        assert (counter.version, counter.state) == (total + 1, {"n": total})


@pytest.mark.parametrize(
    ("processes", "total"), [(FEW, 400), pytest.param(MANY, 5_000, marks=soak)]
)
def test_completions_by_processes_count_once(url: str, processes: int, total: int) -> None:
    """Each is sent twice, from different processes: each counts once, and one satisfies."""
    children = [f"child-{n}" for n in range(total)]
    with cs.open_store(url) as store:
        store.set_wait_condition(cs.WaitCondition("all", flow_ids=children))
        seen = sum(
            map(
                Counter, together(complete, *[(url, n, total, processes) for n in range(processes)])
            ),
            Counter[str](),
        )
        assert seen == Counter(accepted=total, duplicate=total, now_satisfied=1)
        wait = store.get_wait_condition("all")
        assert wait is not None
        assert (wait.outcome, wait.completed_count) == (cs.WaitOutcome.SATISFIED, total)
        assert {child: result.result for child, result in wait.results.items()} == {
            child: child for child in children
        }


@pytest.mark.parametrize(
    ("processes", "total"), [(FEW, 200), pytest.param(MANY, 1_000, marks=soak)]
)
def test_claimers_take_each_due_flow_once(url: str, processes: int, total: int) -> None:
    """Processes claim until nothing is due: each flow went to exactly one."""
    ids = [f"flow-{n:04}" for n in range(total)]
    with cs.open_store(url) as store:
        for start in range(0, total, 200):
            with store.begin() as session:
                for flow_id in ids[start : start + 200]:
                    session.add(cs.FlowSnapshot(flow_id, state={"n": 0}))

        taken = together(claim, *[(url, n, 5) for n in range(processes)])
        assert sorted(itertools.chain(*taken)) == ids
        for number, mine in enumerate(taken):
            assert {store.get_one(flow_id).owner for flow_id in mine[:3]} <= {f"worker-{number}"}


# --- servers that are killed ------------------------------------------------------------------------


class Writer(threading.Thread):
    """Writes one number after another, and remembers what became of each.

    Every number goes into two flows and a new condition with a deadline, in one commit, and then,
    by itself, into a third flow whose due time it moves.
    """

    def __init__(self, store: cs.Store, name: str) -> None:
        super().__init__()
        self.store = store
        self.name = name
        self.going = threading.Event()
        self.going.set()
        self.written = 0
        self.settled: Counter[str] = Counter()
        self.failure: BaseException | None = None
        for part in "abc":
            store.create(cs.FlowSnapshot(f"{name}-{part}", state={"n": 0}))

    def run(self) -> None:
        """Write until stopped; a number is written again only if it is known not to be there."""
        try:
            while self.going.is_set():
                number = self.written + 1
                self.surely(self.write_together, number)
                self.surely(self.write_alone, number)
                self.written = number
        except BaseException as error:  # noqa: BLE001  the test looks at it
            self.failure = error

    def surely(self, write: Callable[[int], None], number: int) -> None:
        """Write until it is written."""
        while True:
            try:
                write(number)
            except cs.StoreUnavailableError:
                self.settled["unavailable"] += 1
            except cs.CommitUncertainError as error:
                if self.settle(error):
                    return
            else:
                self.settled["acknowledged"] += 1
                return

    def write_together(self, number: int) -> None:
        """Write a number into both flows, which must both hold the one before, and set a deadline."""
        with self.store.session() as session:
            for part in "ab":
                flow = session.get_one(f"{self.name}-{part}")
                assert flow.state["n"] == number - 1, (flow, number)
                flow.state["n"] = number

            wait = cs.WaitCondition(
                f"{self.name}-{number}", flow_ids=["x"], timeout=timedelta(days=1)
            )
            session.add(wait)
            session.commit()

    def write_alone(self, number: int) -> None:
        """Write a number, and when to look next, into the third flow."""
        flow = self.store.get_one(f"{self.name}-c")
        assert flow.state["n"] == number - 1, (flow, number)
        flow.state["n"] = number
        flow.due_at = self.store.now() + timedelta(hours=1, milliseconds=number)
        self.store.update(flow)

    def settle(self, error: cs.CommitUncertainError) -> bool:
        """Ask until the store knows whether it was written."""
        unknown = cs.CommitUncertainError, cs.StoreUnavailableError
        written = retried(lambda: self.store.resolve_commit(error), *unknown) is not None
        self.settled[f"uncertain, {'written' if written else 'not written'}"] += 1
        return written


def keep_writing(writers: list[Writer], times: int) -> None:
    """Wait until each has written that many more."""
    wanted = [writer.written + times for writer in writers]
    until = time.monotonic() + LONG
    while any(writer.written < want for writer, want in zip(writers, wanted, strict=True)):
        assert time.monotonic() < until, [writer.failure for writer in writers]
        assert not any(writer.failure for writer in writers), [w.failure for w in writers]
        time.sleep(0.002)  # decides nothing: waits for commits


def check(url: str, replicas: int, writers: list[Writer]) -> None:
    """Stop the writers; what they have written is there, once, and nothing else is."""
    for writer in writers:
        writer.going.clear()

    for writer in writers:
        writer.join(LONG)
        assert writer.failure is None

    def later() -> datetime:
        return datetime.now(UTC) + timedelta(days=2)

    with cs.open_store(f"{url}?replicas={replicas}", clock=later) as store:
        for writer in writers:
            for part in "abc":
                flow = store.get_one(f"{writer.name}-{part}")
                assert (flow.state["n"], flow.version) == (writer.written, writer.written + 1)

        overdue = [wait.correlation_id for wait in store.get_timed_out_wait_conditions()]
        assert sorted(overdue) == sorted(
            f"{writer.name}-{number}"
            for writer in writers
            for number in range(1, writer.written + 1)
        )
        claimed: list[str] = []
        while flows := store.claim_due(limit=5):
            claimed += [flow.flow_id for flow in flows]

        names = [f"{writer.name}-{part}" for writer in writers for part in "abc"]
        assert sorted(claimed) == sorted(names)
        assert sorted(one.flow_id for one in store.iter_flows()) == sorted(names)


def start_writers(store: cs.Store) -> list[Writer]:
    """Start four."""
    writers = [Writer(store, f"w-{number}") for number in range(4)]
    for writer in writers:
        writer.start()

    return writers


@pytest.mark.parametrize("kills", [2, pytest.param(20, marks=soak)])
def test_killed_server_keeps_acknowledged_commits(kills: int) -> None:
    """SIGKILL under load: nothing acknowledged is lost, nothing torn, no deadline lost or doubled."""
    with NatsServer() as server, cs.open_store(server.url) as store:
        writers = start_writers(store)
        for _ in range(kills):
            keep_writing(writers, 10)
            server.kill()
            server.start()

        keep_writing(writers, 1)
        check(server.url, 1, writers)


@pytest.mark.nightly
@pytest.mark.parametrize("kills", [1, pytest.param(10, marks=soak)])
def test_three_servers_keep_acknowledged_commits(kills: int) -> None:
    """SIGKILL of the leader of the stream, under load: the other two continue without a gap in it."""
    with NatsCluster() as cluster, cs.open_store(f"{cluster.url}?replicas=3") as store:
        writers = start_writers(store)
        for _ in range(kills):
            keep_writing(writers, 10)
            reply = ask(cluster.url, "$JS.API.STREAM.INFO.KV_dslflows")
            (leader,) = [one for one in cluster.nodes if one.name == reply["cluster"]["leader"]]
            leader.kill()
            keep_writing(writers, 5)
            cluster.start()

        keep_writing(writers, 1)
        check(cluster.url, 3, writers)

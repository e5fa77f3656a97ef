"""Processes on one Redis: chains, fan-in, claims, and a server that is killed under load."""

from __future__ import annotations

import itertools
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable

import pytest
from competing import claim
from competing import complete
from competing import transact
from forks import together
from marks import REDIS_VERSIONS
from waiting import retried

import catga_store as cs
from catga_store.testing.servers import RedisServer

PROCESSES = 8
LONG = 300
"""Seconds that only a failing test would wait."""

soak = pytest.mark.soak

# --- what comes of it -----------------------------------------------------------------------------


@pytest.fixture(params=REDIS_VERSIONS)
def url(request: pytest.FixtureRequest, redis_server: Callable[[str], RedisServer]) -> str:
    """Name records that no other test uses, on a server of each version."""
    return f"{redis_server(request.param).url}?prefix={uuid.uuid4().hex}:"


@pytest.mark.parametrize("times", [25, pytest.param(250, marks=soak)])
def test_transact_in_processes_is_a_chain(url: str, times: int) -> None:
    """The counter is exactly the sum, and no version was read twice."""
    with cs.open_store(url) as store:
        store.create(cs.FlowSnapshot("counter", state={"n": 0}))
        read = together(transact, *[(url, n, times) for n in range(PROCESSES)])
        total = PROCESSES * times
        assert sorted(map(tuple, itertools.chain(*read))) == [(n + 1, n) for n in range(total)]
        counter = store.get_one("counter")
        assert (counter.version, counter.state) == (total + 1, {"n": total})


@pytest.mark.parametrize("total", [1_000, pytest.param(10_000, marks=soak)])
def test_completions_of_processes_count_once(url: str, total: int) -> None:
    """Each is sent twice, by different processes: each counts once, and one satisfies the condition."""
    children = [f"child-{n}" for n in range(total)]
    with cs.open_store(url) as store:
        store.set_wait_condition(cs.WaitCondition("all", flow_ids=children))
        seen = sum(
            map(
                Counter, together(complete, *[(url, n, total, PROCESSES) for n in range(PROCESSES)])
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


def test_each_due_flow_is_claimed_once(url: str) -> None:
    """Processes claim until nothing is due; each of 1,000 flows goes to exactly one."""
    ids = [f"flow-{n:04}" for n in range(1000)]
    with cs.open_store(url) as store:
        for start in range(0, len(ids), 200):
            with store.begin() as session:
                for flow_id in ids[start : start + 200]:
                    session.add(cs.FlowSnapshot(flow_id, state={"n": 0}))

        taken = together(claim, *[(url, n, 5) for n in range(PROCESSES)])
        assert sorted(itertools.chain(*taken)) == ids
        for number, mine in enumerate(taken):
            assert {store.get_one(flow_id).owner for flow_id in mine[:3]} <= {f"worker-{number}"}


# --- a server that is killed ------------------------------------------------------------------------


class Writer(threading.Thread):
    """Commits one number after another into two flows at once, and remembers each outcome."""

    def __init__(self, store: cs.Store, name: str) -> None:
        super().__init__()
        self.store = store
        self.name = name
        self.going = threading.Event()
        self.going.set()
        self.acknowledged = 0
        self.settled: Counter[str] = Counter()
        self.failure: BaseException | None = None
        for half in "ab":
            store.create(cs.FlowSnapshot(f"{name}-{half}", state={"n": 0}))

    def run(self) -> None:
        """Write until `going` is cleared; write a number again only if it is known not to be stored."""
        try:
            while self.going.is_set():
                self.write(self.acknowledged + 1)
        except BaseException as error:  # noqa: BLE001  the test looks at it
            self.failure = error

    def write(self, number: int) -> None:
        """Write a number into both flows, which must both hold the one before."""
        try:
            with self.store.session() as session:
                for half in "ab":
                    flow = session.get_one(f"{self.name}-{half}")
                    assert flow.state["n"] == number - 1, (flow, number)
                    flow.state["n"] = number

                session.commit()
        except cs.StoreUnavailableError:
            self.settled["unavailable"] += 1
            time.sleep(0.01)  # decides nothing: the server is away
        except cs.CommitUncertainError as error:
            if self.settle(error):
                self.acknowledged = number
        else:
            self.acknowledged = number
            self.settled["acknowledged"] += 1

    def settle(self, error: cs.CommitUncertainError) -> bool:
        """Ask until the store can tell whether it was written."""
        unknown = cs.CommitUncertainError, cs.StoreUnavailableError
        written = retried(lambda: self.store.resolve_commit(error), *unknown) is not None
        self.settled[f"uncertain, {'written' if written else 'not written'}"] += 1
        return written


@pytest.mark.parametrize("kills", [2, pytest.param(20, marks=soak)])
@pytest.mark.parametrize("version", REDIS_VERSIONS)
def test_killed_server_keeps_acknowledged_commits(version: str, kills: int) -> None:
    """Under load, with an append-only file, nothing acknowledged is lost and no commit is torn."""
    # With `everysec` a server whose disk is slow may die with what it has acknowledged unwritten.
    always = ("--appendfsync", "always")
    with RedisServer(version, *always) as server, cs.open_store(server.url) as store:
        writers = [Writer(store, f"w-{number}") for number in range(4)]
        for writer in writers:
            writer.start()

        for _ in range(kills):
            before = [writer.acknowledged for writer in writers]
            until = time.monotonic() + LONG
            while any(
                writer.acknowledged < seen + 20
                for writer, seen in zip(writers, before, strict=True)
            ):
                assert time.monotonic() < until, [writer.failure for writer in writers]
                time.sleep(0.002)  # decides nothing: waits for commits

            server.kill()
            server.start()

        for writer in writers:
            writer.going.clear()

        for writer in writers:
            writer.join(LONG)
            assert writer.failure is None
            for half in "ab":
                flow = store.get_one(f"{writer.name}-{half}")
                assert flow.state["n"] == writer.acknowledged
                assert flow.version == writer.acknowledged + 1

        counted = sum((writer.settled for writer in writers), Counter[str]())
        assert counted["acknowledged"] >= 20 * kills * len(writers), counted

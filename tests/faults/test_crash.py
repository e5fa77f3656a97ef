"""Processes that are killed with SIGKILL: in the middle of commits, and while they hold claims.

The file is also the program that is killed: `python test_crash.py write FLOWS.DB` prints what it
has done, line by line, and continues at a line on its stdin. Time is moved by the store's
clock; nothing sleeps until a lease ends.
"""

from __future__ import annotations

import itertools
import json
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from collections.abc import Iterator
from datetime import UTC
from datetime import datetime
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

import catga_store as cs
from catga_store.protocol.conversation import Call

LONG = 60
"""Seconds that only a test that fails would wait."""

START = datetime(2030, 1, 1, tzinfo=UTC)
LEASE = timedelta(seconds=30)

# --- the programs that are killed -------------------------------------------------------------------


def say(what: object) -> None:
    """Print a line for the test; it may kill this process as soon as it has read the line."""
    sys.stdout.write(f"{json.dumps(what)}\n")
    sys.stdout.flush()


def write(path: str) -> None:
    """Commit one number after another, each into four records at once, and acknowledge it."""
    store = cs.SQLiteStore(path)
    first = store.get_one("counter").state["n"] + 1
    say("ready")

    for n in itertools.count(first):
        with store.begin() as session:
            session.get_one("counter").state["n"] = n
            session.add(cs.WaitCondition(f"wait-{n}", flow_ids=[f"child-{n}"]))
            session.complete_child(f"wait-{n}", f"child-{n}", result=n)
            progress = session.get_for_each_progress("counter", 0)
            if progress is None:
                progress = cs.ForEachProgress()
                session.save_for_each_progress("counter", 0, progress)

            progress.mark(n)

        say(n)


def hold_the_lock(path: str) -> None:
    """Stand still in the middle of a transaction that has written already."""
    store: Any = cs.SQLiteStore(path)
    store.ping()

    def stand(tables: Any) -> None:
        tables.clear()
        say("inside")
        sys.stdin.readline()

    store._driver.transport(Call(stand, writes=True))


def hold_a_claim(path: str) -> None:
    """Claim what is due, say what it is and stand still; commit on command, and print what came."""
    store = cs.SQLiteStore(path, clock=lambda: START, owner="first")
    (flow,) = store.claim_due(lease=LEASE)
    wait = flow.wait_condition
    results = {} if wait is None else {c: r.result for c, r in wait.results.items()}
    say([flow.flow_id, flow.attempts, results])
    sys.stdin.readline()

    try:
        with store.begin() as session:
            session.add(flow)
            session.add(cs.FlowSnapshot("by the first", state=None, due_at=None))
            flow.state = {"by": "first"}
    except cs.ConflictError as error:
        say(type(error).__name__)
    else:
        say("committed")

    try:
        store.extend(flow)
    except cs.ConflictError as error:
        say(type(error).__name__)


PROGRAMS: dict[str, Callable[[str], None]] = {
    function.__name__: function for function in (write, hold_the_lock, hold_a_claim)
}


class Program:
    """A process of this file, to be talked to by lines."""

    def __init__(self, function: Callable[[str], None], path: Path) -> None:
        command = [sys.executable, __file__, function.__name__, str(path)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def hear(self) -> Any:
        """Return the next thing it says, `None` if it is gone."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        return json.loads(line) if line.endswith("\n") else None

    def go_on(self) -> None:
        """Let it take its next step."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()

    def kill(self) -> list[Any]:
        """End it where it stands; return what it had still printed."""
        self._process.send_signal(signal.SIGKILL)
        said = list(iter(self.hear, None))
        self._process.communicate(timeout=LONG)
        assert self._process.returncode == -signal.SIGKILL
        return said

    def close(self) -> None:
        """Leave no process behind, whatever the test did."""
        if self._process.poll() is None:
            self._process.kill()

        self._process.communicate(timeout=LONG)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[Callable[[str], None]], Program]]:
    """Start a program on the file of this test."""
    programs: list[Program] = []

    def start_one(function: Callable[[str], None]) -> Program:
        programs.append(Program(function, tmp_path / "flows.db"))
        return programs[-1]

    yield start_one

    for program in programs:
        program.close()


class Time:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def time() -> Time:
    """Stand still at the moment that the programs live in."""
    return Time()


@pytest.fixture
def store(tmp_path: Path, time: Time) -> Iterator[cs.Store]:
    """Open the store as the next process does."""
    with cs.SQLiteStore(tmp_path / "flows.db", clock=time, owner="second") as store:
        yield store


# --- commits --------------------------------------------------------------------------------------


def assert_whole(store: cs.Store, acknowledged: int) -> int:
    """All four records tell the same number: the last acknowledged one, or the one after it."""
    last: int = store.get_one("counter").state["n"]
    assert last in (acknowledged, acknowledged + 1)

    progress = store.get_for_each_progress("counter", 0)
    marked = set() if progress is None else set(progress.processed_indices)
    assert marked == set(range(1, last + 1))

    for n in range(max(1, last - 50), last + 1):
        wait = store.get_wait_condition(f"wait-{n}")
        assert wait is not None
        assert wait.outcome is cs.WaitOutcome.SATISFIED
        assert [result.result for result in wait.results.values()] == [n]

    assert store.get_wait_condition(f"wait-{last + 1}") is None
    assert store.complete_child(f"wait-{last}", f"child-{last}").duplicate or last == 0
    return last


@pytest.mark.parametrize("kills", [5, pytest.param(200, marks=pytest.mark.soak)])
def test_a_kill_leaves_all_of_a_commit_or_none(
    tmp_path: Path, start: Callable[[Callable[[str], None]], Program], kills: int
) -> None:
    """After each SIGKILL every acknowledged commit is there, none in part, at most one more."""
    draw = random.Random(kills)
    with cs.SQLiteStore(tmp_path / "flows.db") as store:
        store.create(cs.FlowSnapshot("counter", state={"n": 0}, due_at=None))

    acknowledged = 0
    for _ in range(kills):
        program = start(write)
        assert program.hear() == "ready"

        for _ in range(draw.randrange(1, 40)):
            acknowledged = program.hear()

        for _ in range(draw.randrange(50_000)):
            pass  # so that kills come at every point of a commit, not only after its line

        acknowledged = [acknowledged, *program.kill()][-1]

        with cs.SQLiteStore(tmp_path / "flows.db") as store:
            acknowledged = assert_whole(store, acknowledged)


def test_a_process_killed_inside_a_transaction_holds_no_lock(
    store: cs.Store, start: Callable[[Callable[[str], None]], Program]
) -> None:
    """What it had written inside is undone, and the next writer has the lock."""
    store.create(cs.FlowSnapshot("order", state={"n": 1}))
    program = start(hold_the_lock)
    assert program.hear() == "inside"
    assert store.get_one("order").state == {"n": 1}, "readers do not wait for writers"
    program.kill()

    order = store.get_one("order")
    order.state["n"] = 2
    store.update(order)
    assert store.get_one("order").state == {"n": 2}


# --- claims ---------------------------------------------------------------------------------------


def test_a_killed_claimers_flow_is_taken_when_its_lease_is_over(
    store: cs.Store, time: Time, start: Callable[[Callable[[str], None]], Program]
) -> None:
    """Until then no worker gets it; then another does, once, and sees that it is the second try."""
    store.create(cs.FlowSnapshot("order", state={"by": None}))
    program = start(hold_a_claim)
    assert program.hear() == ["order", 1, {}]
    program.kill()

    assert store.claim_due() == []
    with pytest.raises(cs.FlowClaimedError) as caught:
        store.claim("order")

    assert (caught.value.owner, caught.value.until) == ("first", START + LEASE)

    time.now += LEASE - timedelta(milliseconds=1)
    assert store.claim_due() == []
    time.now += timedelta(milliseconds=1)
    (order,) = store.claim_due()
    assert (order.flow_id, order.attempts, order.owner) == ("order", 2, "second")
    assert store.claim_due() == []
    order.state = {"by": "second"}
    store.update(order)


def test_a_former_owners_late_commit_is_refused_whole(
    store: cs.Store, time: Time, start: Callable[[Callable[[str], None]], Program]
) -> None:
    """`ClaimLostError`, though its own clock stands still; nothing of its commit is written."""
    store.create(cs.FlowSnapshot("order", state={"by": None}))
    program = start(hold_a_claim)
    assert program.hear() == ["order", 1, {}]

    time.now += LEASE
    (order,) = store.claim_due()
    program.go_on()
    assert program.hear() == "ClaimLostError"
    assert program.hear() == "ClaimLostError", "nor can it extend"
    assert store.get("by the first") is None

    order.state = {"by": "second"}
    store.update(order)
    assert store.get_one("order").state == {"by": "second"}


def test_an_expired_lease_alone_refuses_nothing(
    store: cs.Store, time: Time, start: Callable[[Callable[[str], None]], Program]
) -> None:
    """An owner that comes back late, before another has claimed its flow, commits."""
    store.create(cs.FlowSnapshot("order", state={"by": None}))
    program = start(hold_a_claim)
    assert program.hear() == ["order", 1, {}]

    time.now += 2 * LEASE
    program.go_on()
    assert program.hear() == "committed"
    assert store.get_one("order").state == {"by": "first"}
    assert store.get("by the first") is not None


def suspend(store: cs.Store, **options: Any) -> None:
    """Let the flow `order` wait for two children."""
    with store.begin() as session:
        order = cs.FlowSnapshot("order", state={"by": None})
        session.add(order)
        wait = cs.WaitCondition("ship", flow_ids=["s-1", "s-2"], **options)
        session.suspend(order, wait)


@pytest.mark.parametrize("ending", ["satisfied", "timed out"])
def test_a_parent_whose_resumer_is_killed_is_claimed_again(
    store: cs.Store,
    time: Time,
    start: Callable[[Callable[[str], None]], Program],
    ending: str,
) -> None:
    """The next worker gets the parent with the outcome and the results of its wait, as before."""
    timeout = None
    if ending == "timed out":
        time.now = START - timedelta(minutes=1)
        timeout = timedelta(minutes=1)

    suspend(store, timeout=timeout)
    results = {"s-1": {"parcels": 1}}
    store.complete_child("ship", "s-1", result=results["s-1"])
    outcome = cs.WaitOutcome.TIMED_OUT

    if ending == "satisfied":
        assert store.claim_due() == []
        outcome, results["s-2"] = cs.WaitOutcome.SATISFIED, {"parcels": 2}
        store.complete_child("ship", "s-2", result=results["s-2"])

    time.now = START
    program = start(hold_a_claim)
    assert program.hear() == ["order", 1, results]
    program.kill()
    assert store.claim_due() == []

    time.now += LEASE
    (order,) = store.claim_due()
    wait = order.wait_condition
    assert wait is not None
    assert (order.flow_id, order.attempts, order.status) == ("order", 2, cs.FlowStatus.SUSPENDED)
    assert (wait.correlation_id, wait.outcome) == ("ship", outcome)
    assert {child: result.result for child, result in wait.results.items()} == results

    order.status = cs.FlowStatus.COMPLETED
    store.update(order)
    time.now += LEASE
    assert store.claim_due() == []


if __name__ == "__main__":
    PROGRAMS[sys.argv[1]](sys.argv[2])

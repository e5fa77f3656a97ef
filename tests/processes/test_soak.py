"""The soak: processes that write, complete, time out and claim, killed with their servers, on a moved clock.

Every process writes down what it is about to do and what came of it. When all is over, what is left to
do is done, and the whole history is checked: every version of a flow has one writer, in the order of
time; no reader is behind what was acknowledged; no sum is torn; every step of every flow was recorded
once, by who held the flow; every completion counts once, one caller ends each wait, and no parent is
left behind.

The file is also the program that the processes run: `python test_soak.py write URL DIRECTORY SEED`
works until it is killed or finds the file `stop`. Of what is killed every few kilobytes of history
are decided, not moments, so a slow machine takes longer and does the same.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import struct
import subprocess
import sys
import time
from collections import Counter
from collections import defaultdict
from collections.abc import Callable
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from dataclasses import field
from datetime import UTC
from datetime import datetime
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import catga_store as cs
from catga_store.testing.servers import NatsCluster
from catga_store.testing.servers import NatsServer
from catga_store.testing.servers import RedisServer

LONG = 300
"""Seconds that only a test that fails would wait."""

START = datetime(2030, 1, 1, tzinfo=UTC)
LEASE = timedelta(seconds=20)
STEPS = 4
ACCOUNTS = [f"account-{n}" for n in range(6)]
PARENTS = 6
KEEP = cs.Retention(
    flows=None, failed=None, waits=None
)  # the end is compared with all that was done
CHILDREN = ("one", "two", "three")


class SharedClock:
    """A clock in a file, which the test moves for every process; `skew` is how far this one is off."""

    def __init__(self, directory: Path, skew: timedelta = timedelta(0)) -> None:
        self._file = os.open(directory / "clock", os.O_RDWR | os.O_CREAT)
        self._skew = skew

    def __call__(self) -> datetime:
        (ms,) = struct.unpack("<q", os.pread(self._file, 8, 0))
        return START + timedelta(milliseconds=ms) + self._skew

    def set(self, ms: int) -> None:
        os.pwrite(self._file, struct.pack("<q", ms), 0)


def open_store(url: str, directory: Path, **options: Any) -> cs.Store:
    """Open a store on the shared clock."""
    clock = SharedClock(directory, options.pop("skew", timedelta(0)))
    return cs.open_store(url, clock=clock, retention=KEEP, timeout=timedelta(seconds=5), **options)


# --- what the processes do --------------------------------------------------------------------------


class Worker:
    """One process: does one thing after another, and writes down each."""

    def __init__(self, url: str, directory: Path, seed: str) -> None:
        self.draw = random.Random(seed)
        skew = timedelta(milliseconds=self.draw.randrange(-2000, 2000))
        self.store = open_store(url, directory, owner=f"worker-{os.getpid()}", skew=skew)
        self.log = (directory / f"{os.getpid()}.jsonl").open("a", encoding="utf-8")
        self.numbers = itertools.count()

    def write_down(self, *line: Any) -> None:
        self.log.write(f"{json.dumps(line)}\n")
        self.log.flush()

    def attempt(
        self,
        name: str,
        given: Any,
        call: Callable[[], Any],
        reported: Callable[[cs.Receipt], Any] = lambda _: None,
    ) -> Any:
        """Do one thing; what it came to is its answer, or what the receipt says of it.

        Of several commits, those of `claim_due`, some may have been written when one fails.
        """
        number = next(self.numbers)
        self.write_down("call", number, time.monotonic_ns(), name, given)
        answer, whole = None, True
        try:
            answer = call()
        except cs.StoreUnavailableError:
            time.sleep(0.02)  # decides nothing: the server is away
            whole = False
        except cs.CommitUncertainError as error:
            receipt = self.resolve(error)
            answer, whole = None if receipt is None else reported(receipt), False
        except cs.ConflictError:
            pass

        self.write_down("done", number, time.monotonic_ns(), answer, whole or name != "claim")
        return answer

    def resolve(self, error: cs.CommitUncertainError) -> cs.Receipt | None:
        """Ask until the store can tell."""
        give_up = time.monotonic() + LONG
        while True:
            try:
                return self.store.resolve_commit(error)
            except (cs.CommitUncertainError, cs.StoreUnavailableError):
                if time.monotonic() > give_up:
                    raise

            time.sleep(0.02)  # decides nothing: the server is away

    # roles ------------------------------------------------------------------------------------------

    def write(self) -> None:
        """Move an amount from one account to another, count, or look."""
        chosen = self.draw.sample(ACCOUNTS, 2)
        kind = self.draw.choice(["move", "move", "add", "look"])
        if kind == "look":
            self.attempt("look", chosen, partial(self.look, chosen))
        elif kind == "move":
            self.attempt("move", chosen, partial(self.move, chosen), written)
        else:
            self.attempt("add", ["counter"], self.add, written)

    def look(self, ids: list[str]) -> dict[str, int]:
        return {name: flow.version for name, flow in self.store.get_many(ids).items()}

    def move(self, ids: list[str]) -> Any:
        with self.store.session() as session:
            giving, claim_plan = (session.get_one(name) for name in ids)
            giving.state["n"] -= 1
            claim_plan.state["n"] += 1
            return written(session.commit())

    def add(self) -> Any:
        def call(session: cs.Session) -> cs.FlowSnapshot[Any]:
            counter = session.get_one("counter")
            counter.state["n"] += 1
            return counter

        return [{"counter": self.store.transact(call).version}, []]

    def complete(self) -> None:
        """Complete a child of a wait that is pending, has ended, or is to come."""
        try:
            parents = self.store.query_flows(status=cs.FlowStatus.SUSPENDED, limit=20).items
        except cs.StoreUnavailableError:
            return

        if not parents:
            return

        parent = self.draw.choice(parents).flow_id
        at = self.draw.randrange(STEPS)
        for child in self.draw.sample(CHILDREN, 2):
            self.complete_one(wait_id(parent, at), child)

    def complete_one(self, name: str, child: str) -> None:
        ok = self.draw.random() < 0.8

        def call() -> Any:
            return completion(self.store.complete_child(name, child, success=ok, result=name))

        def reported(receipt: cs.Receipt) -> Any:
            return completion(receipt.completions[name, child])

        self.attempt("complete", [name, child, ok], call, reported)

    def time_out(self) -> None:
        """Close what is overdue, with its parent; sweep."""
        try:
            overdue = self.store.get_timed_out_wait_conditions(limit=5)
            self.store.sweep(100)
        except (cs.StoreUnavailableError, cs.CommitUncertainError):
            return

        for wait in overdue:
            given = [wait.correlation_id, wait.parent_flow_id]
            self.attempt("close", given, partial(self.close, wait.correlation_id), written)

    def close(self, name: str) -> Any:
        with self.store.session() as session:
            wait = session.get_wait_condition(name)
            if wait is None or wait.outcome is not cs.WaitOutcome.PENDING:
                return None

            assert wait.parent_flow_id is not None
            parent = session.get_one(wait.parent_flow_id)
            wait.outcome = cs.WaitOutcome.TIMED_OUT
            if parent.owner is None and parent.status is cs.FlowStatus.SUSPENDED:
                parent.status = cs.FlowStatus.RUNNING
                parent.due_at = self.store.now()

            return written(session.commit())

    def claim(self) -> None:
        """Take what is due one step on, or let go of it."""
        flows: list[cs.FlowSnapshot[Any]] = []

        def call() -> Any:
            flows.extend(self.store.claim_due(lease=LEASE, limit=self.draw.choice([1, 3])))
            return claimed(flows)

        self.attempt("claim", None, call, written)
        if not flows:
            time.sleep(0.005)  # decides nothing: a history of looks in vain would be long

        for flow in flows:
            self.work(flow)

    def work(self, flow: cs.FlowSnapshot[Any]) -> None:
        how = self.draw.random()
        if how < 0.1:
            return  # this worker is not heard of again, as far as the flow is concerned

        given = [flow.flow_id, flow.version]
        if how < 0.2:
            self.attempt("release", given, partial(self.release, flow), written)
            return

        if how < 0.5:
            self.attempt("extend", given, partial(self.extend, flow))

        self.attempt("step", given, partial(self.step, flow), written)

    def extend(self, flow: cs.FlowSnapshot[Any]) -> bool:
        self.store.extend(flow)
        return True

    def release(self, flow: cs.FlowSnapshot[Any]) -> Any:
        self.store.release(flow)
        return claimed([flow])

    def step(self, flow: cs.FlowSnapshot[Any], *, last: bool = False) -> Any:
        """Record how the wait ended, and wait for the next; in the end let another begin."""
        with self.store.session() as session:
            session.add(flow)
            at = len(flow.state["steps"])
            wait = flow.wait_condition
            ended = (
                [] if wait is None else [wait.correlation_id, wait.outcome.name, [*wait.results]]
            )
            flow.state["steps"].append(ended)
            progress = session.get_for_each_progress(flow.flow_id, 0)
            progress = cs.ForEachProgress() if progress is None else progress
            progress.mark(at)
            if progress not in session:
                session.save_for_each_progress(flow.flow_id, 0, progress)

            if at == STEPS:
                flow.status = cs.FlowStatus.COMPLETED
                if not last:
                    name, _, number = flow.flow_id.partition(".")
                    session.add(new_parent(f"{name}.{int(number) + 1}"))
            else:
                flow.position = flow.position.advance()
                session.suspend(flow, self.new_wait(flow.flow_id, at))

            return written(session.commit())

    def new_wait(self, parent: str, at: int) -> cs.WaitCondition:
        return cs.WaitCondition(
            wait_id(parent, at),
            flow_ids=CHILDREN,
            wait_type=self.draw.choice(list(cs.WaitType)),
            timeout=self.draw.choice([None, timedelta(seconds=5), timedelta(seconds=15)]),
        )


ROLES = ("write", "complete", "time_out", "claim")


def wait_id(parent: str, at: int) -> str:
    """Name the wait at the end of a step."""
    return f"{parent}/{at}"


def new_parent(flow_id: str) -> cs.FlowSnapshot[Any]:
    """Return a flow of `STEPS` steps, each of which ends with a wait."""
    return cs.FlowSnapshot(flow_id, state={"steps": []})


def written(receipt: cs.Receipt) -> Any:
    """Say which flows a commit wrote, at which version, and which waits it ended."""
    flows = {key.id: version for key, version in receipt.versions.items() if key.kind == "flow"}
    return [flows, list(receipt.satisfied)]


def claimed(flows: list[cs.FlowSnapshot[Any]]) -> Any:
    """Say the same of flows that were written one by one."""
    return [{flow.flow_id: flow.version for flow in flows}, []]


def completion(done: cs.Completion) -> list[Any]:
    """Write down what a completion returned."""
    return [done.accepted, done.duplicate, done.now_satisfied]


def main(role: str, url: str, directory: str, seed: str) -> None:
    """Do one thing after another until it is stopped."""
    place = Path(directory)
    worker = Worker(url, place, seed)
    with worker.store, worker.log:
        while not (place / "stop").exists():
            getattr(worker, role)()


# --- who starts and kills them ----------------------------------------------------------------------


_MOVES = 2


class Soak:
    """The processes on one store, and the clock that they go by."""

    def __init__(self, url: str, directory: Path, processes: int, seed: int) -> None:
        self.url = url
        self.directory = directory
        self.processes = processes
        self.draw = random.Random(seed)
        self.children: list[subprocess.Popen[str]] = []
        self.number = 0
        self.ms = 0
        self.clock = SharedClock(directory)
        self.clock.set(0)

    def begin(self) -> None:
        """Write what there is at first, and start a process for each role, in turn."""
        with open_store(self.url, self.directory) as store:
            for name in (*ACCOUNTS, "counter"):
                store.create(cs.FlowSnapshot(name, state={"n": 0}, due_at=None))

            for number in range(PARENTS):
                store.create(new_parent(f"parent-{number}.0"))

        for _ in range(self.processes):
            self.start()

    def start(self) -> None:
        role = ROLES[self.number % len(ROLES)]
        seed = f"{self.number} {self.draw.random()}"
        command = [sys.executable, __file__, role, self.url, str(self.directory), seed]
        errors = (self.directory / f"{self.number}.stderr").open("w")
        with errors:
            self.children.append(subprocess.Popen(command, stderr=errors, text=True))

        self.number += 1

    def log_of(self, child: subprocess.Popen[str]) -> Path:
        return self.directory / f"{child.pid}.jsonl"

    def size(self) -> int:
        return sum(file.stat().st_size for file in self.directory.glob("*.jsonl"))

    def go_on(self, size: int) -> None:
        """Move the clock while that many bytes of history are written, after every process has begun.

        At least twice, else nothing would end on a store that writes them in no time.
        """
        until = time.monotonic() + LONG
        while not all(self.log_of(child).exists() for child in self.children):
            self.look_after(until)
            time.sleep(0.02)  # decides nothing: one that begins late would find nothing left to do

        goal, moves = self.size() + size, 0
        while self.size() < goal or moves < _MOVES:
            self.look_after(until)
            time.sleep(0.02)  # decides nothing: the processes work
            if self.draw.random() < 0.2:
                moves += 1
                self.ms += self.draw.randrange(6_000)
                self.clock.set(self.ms)

    def look_after(self, until: float) -> None:
        for child in self.children:
            assert child.poll() is None, self.said()

        assert time.monotonic() < until, f"nothing continues: {self.said()}"

    def said(self) -> str:
        return "".join(file.read_text() for file in self.directory.glob("*.stderr"))

    def kill_one(self) -> None:
        """Kill a process; another of its role takes its place."""
        place = self.draw.randrange(len(self.children))
        child = self.children.pop(place)
        child.kill()
        child.wait()
        self.number += (place - self.number) % len(ROLES)
        self.start()
        self.children.insert(place, self.children.pop())

    def end(self) -> None:
        """Stop all, and wait."""
        (self.directory / "stop").touch()
        for child in self.children:
            assert child.wait(LONG) == 0, self.said()

        assert self.said() == ""

    def close(self) -> None:
        for child in self.children:
            child.kill()
            child.wait()


def finish(soak: Soak) -> None:
    """Do what is left: after the last lease everything that is not over is claimed, or completed."""
    worker = Worker(soak.url, soak.directory, "the last")
    with worker.store as store, worker.log:
        for _ in range(10 * (STEPS + 2)):
            soak.ms += 60_000
            soak.clock.set(soak.ms)
            for wait in list(store.iter_wait_conditions(outcome=cs.WaitOutcome.PENDING)):
                for child in CHILDREN:
                    worker.complete_one(wait.correlation_id, child)

            while True:
                flows = store.claim_due(lease=LEASE, limit=50)
                worker.attempt("claim", None, partial(claimed, flows))
                for flow in flows:
                    given = [flow.flow_id, flow.version]
                    worker.attempt("step", given, partial(worker.step, flow, last=True), written)

                if not flows:
                    break

            left = [
                one.flow_id
                for one in store.iter_flows()
                if one.flow_id.startswith("parent") and not one.status.is_terminal
            ]
            if not left:
                return

        pytest.fail(f"no worker gets {left}")


# --- the history ------------------------------------------------------------------------------------


WRITES = ("move", "add", "close", "claim", "release", "step")


@dataclass
class Deed:
    """One thing that was done: `answered` is `None` if its process was killed before the reply."""

    who: str
    called: int
    name: str
    given: Any
    answered: int | None = None
    answer: Any = None
    whole: bool = False

    @property
    def wrote(self) -> dict[str, int]:
        """Which flows it wrote, at which version."""
        return self.answer[0] if self.answer and self.name in WRITES else {}


@dataclass
class History:
    """All that was done, and who wrote which version of which flow."""

    deeds: list[Deed] = field(default_factory=list[Deed])
    writers: dict[str, dict[int, Deed]] = field(
        default_factory=lambda: defaultdict[str, "dict[int, Deed]"](dict)
    )

    @classmethod
    def read(cls, directory: Path) -> History:
        """Read what the processes have written down; each version is written by one of them."""
        history = cls()
        for file in sorted(directory.glob("*.jsonl")):
            history.deeds += deeds_of(file)

        for deed in history.deeds:
            for name, version in deed.wrote.items():
                other = history.writers[name].setdefault(version, deed)
                assert other is deed, f"{name} v{version} was written twice: {other}, {deed}"

        return history

    def named(self, *names: str) -> Iterator[Deed]:
        """Return the deeds of these names."""
        return (deed for deed in self.deeds if deed.name in names)

    def unknown(self, flow_id: str) -> int:
        """How many writes of a flow have no known outcome."""
        return sum(
            not deed.whole and (deed.name == "claim" or flow_id in (deed.given or ()))
            for deed in self.named(*WRITES)
        )


def deeds_of(file: Path) -> list[Deed]:
    """Read what one process has written down; its last line may be cut short."""
    deeds: dict[int, Deed] = {}
    lines = file.read_text(encoding="utf-8").split("\n")
    for line in lines[:-1]:
        kind, *rest = json.loads(line)
        if kind == "call":
            number, at, name, given = rest
            deeds[number] = Deed(file.stem, at, name, given)
        elif kind == "done":
            number, at, answer, whole = rest
            deed = deeds[number]
            deed.answered, deed.answer, deed.whole = at, answer, whole

    return list(deeds.values())


def check(store: cs.Store, history: History) -> Counter[str]:
    """Compare all that is stored with all that was done; return how much was done."""
    flows = {one.flow_id: store.get_one(one.flow_id) for one in store.iter_flows()}
    for name, flow in flows.items():
        check_chain(history, name, flow)

    check_readers(history)
    check_sums(history, flows)
    parents = {name: flow for name, flow in flows.items() if name.startswith("parent")}
    for name, flow in parents.items():
        check_steps(store, history, name, flow)

    waits = list(store.iter_wait_conditions())
    completions: dict[str, list[Deed]] = defaultdict(list)
    for deed in history.named("complete"):
        completions[deed.given[0]].append(deed)

    for deed in history.named("step"):
        for name in deed.answer[1] if deed.answer else ():
            completions[name].append(deed)

    unheard = {deed.given[0] for deed in history.named("step") if deed.answered is None}
    for wait in waits:
        by_its_set = wait.parent_flow_id in unheard
        check_wait(wait, completions[wait.correlation_id], perhaps_reported=by_its_set)

    done = Counter(deed.name for deed in history.deeds if deed.answer is not None)
    return done + Counter(parents=len(parents), waits=len(waits))


def check_chain(history: History, name: str, flow: cs.FlowSnapshot[Any]) -> None:
    """Versions follow each other, in the order of time; a killed process wrote those without a writer."""
    writers = history.writers[name]
    assert max(writers, default=1) <= flow.version, f"{name} has gone back to v{flow.version}"
    born = 1  # by the test, or by the last step of the flow before
    missing = set(range(born + 1, flow.version + 1)) - writers.keys()
    assert len(missing) <= history.unknown(name), f"no process has written {name} {missing}"
    latest = 0
    for version in sorted(writers):
        deed = writers[version]
        assert deed.answered is None or deed.answered > latest, f"{name} v{version} came too early"
        latest = max(latest, deed.called)


def check_readers(history: History) -> None:
    """No read is older than what was acknowledged, or newer than what was begun."""
    acknowledged = {
        name: sorted((deed.answered or 0, version) for version, deed in writers.items())
        for name, writers in history.writers.items()
    }
    for deed in history.named("look"):
        for name, version in (deed.answer or {}).items():
            before = [seen for at, seen in acknowledged.get(name, ()) if at < deed.called]
            assert version >= max(before, default=1), f"{deed} is behind {max(before)}"
            writer = history.writers[name].get(version)
            assert writer is None or writer.called < (deed.answered or 0), deed


def check_sums(history: History, flows: dict[str, cs.FlowSnapshot[Any]]) -> None:
    """No commit is half there, and no increment is lost or counted twice."""
    assert sum(flows[name].state["n"] for name in ACCOUNTS) == 0
    assert flows["counter"].state["n"] == flows["counter"].version - 1
    for name in ACCOUNTS:
        assert (flows[name].version - 1 - flows[name].state["n"]) % 2 == 0, (
            "each write is one up or down"
        )


def check_steps(store: cs.Store, history: History, name: str, flow: cs.FlowSnapshot[Any]) -> None:
    """Each step was recorded once, with its wait, by who held the flow."""
    steps = flow.state["steps"]
    assert flow.status is cs.FlowStatus.COMPLETED
    assert len(steps) == STEPS + 1
    assert steps[0] == []
    progress = store.get_for_each_progress(name, 0)
    assert progress is not None
    assert list(progress.processed_indices) == list(range(STEPS + 1))
    for at, (wait_name, outcome, children) in enumerate(steps[1:]):
        assert wait_name == wait_id(name, at)
        wait = store.get_wait_condition(wait_name)
        assert wait is not None
        assert wait.outcome.name == outcome != "PENDING"
        assert set(children) == set(wait.results), f"{wait_name} was claimed with {children}"

    claims = {version for version, deed in history.writers[name].items() if deed.name == "claim"}
    for version, deed in history.writers[name].items():
        if deed.name in ("step", "release") and deed.given[0] == name:
            between = [claim for claim in claims if deed.given[1] < claim < version]
            assert between == [], f"{deed} though others had claimed {name}: {between}"


def check_wait(wait: cs.WaitCondition, deeds: list[Deed], *, perhaps_reported: bool) -> None:
    """Each child counted once, all that were accepted did, and one was reported to end the wait.

    That is who completes the last child, or who sets the condition if all were early.
    """
    completions = [deed for deed in deeds if deed.name == "complete"]
    accepted = Counter(deed.given[1] for deed in completions if deed.answer and deed.answer[0])
    assert set(accepted.values()) <= {1}, f"{wait} took {accepted}"
    assert accepted.keys() <= wait.results.keys(), f"{wait} has lost {accepted.keys()}"
    unheard = {deed.given[1] for deed in completions if deed.answered is None}
    assert wait.results.keys() <= accepted.keys() | unheard, f"{wait} has what no child sent"
    assert all(result.result == wait.correlation_id for result in wait.results.values())

    well = any(result.success for result in wait.results.values())
    is_satisfied = len(wait.results) == len(CHILDREN) or (
        wait.wait_type is cs.WaitType.WHEN_ANY and well
    )
    assert is_satisfied is (wait.outcome is cs.WaitOutcome.SATISFIED), wait
    reported = sum(deed.name == "step" or bool(deed.answer and deed.answer[2]) for deed in deeds)
    assert reported <= is_satisfied, f"{reported} were reported to end {wait}"
    assert reported or not is_satisfied or unheard or perhaps_reported, (
        f"no completion ended {wait}"
    )


# --- the tests --------------------------------------------------------------------------------------

soak = pytest.mark.soak
BYTES = 12_000
"""Of history, between two kills."""


def run(url: str, directory: Path, rounds: int, interrupt: Callable[[], None]) -> Counter[str]:
    """Let the processes work; in each round one of them is killed, then the server; then check."""
    lasting = Soak(url, directory, 4, rounds)
    with ExitStack() as stack:
        stack.callback(lasting.close)
        lasting.begin()
        for _ in range(rounds):
            lasting.go_on(BYTES)
            lasting.kill_one()
            lasting.go_on(BYTES)
            interrupt()

        lasting.go_on(BYTES)
        lasting.end()
        finish(lasting)
        history = History.read(directory)
        with open_store(url, directory) as store:
            done = check(store, history)

    rare = set() if rounds > 1 else {"close", "release", "extend"}
    assert not {*WRITES, "look", "complete", "extend"} - done.keys() - rare, done
    return done


LONG_RUN = pytest.param(int(os.environ.get("CATGA_SOAK_ROUNDS", "40")), marks=soak)
ROUNDS = [1, LONG_RUN]
ROUNDS_ON_SERVERS = [pytest.param(1, marks=pytest.mark.nightly), LONG_RUN]
"""The quick run has other tests of servers that are killed: those in `test_*_processes.py`."""


@pytest.mark.parametrize("rounds", ROUNDS)
def test_a_file_keeps_its_history(tmp_path: Path, rounds: int) -> None:
    """Processes that are killed and started again, on one SQLite file."""
    print(run(f"sqlite:///{tmp_path / 'flows.db'}", tmp_path, rounds, lambda: None))  # noqa: T201


@pytest.mark.parametrize("rounds", ROUNDS_ON_SERVERS)
@pytest.mark.parametrize("version", [pytest.param("6.2", marks=soak), "8.2"])
def test_redis_keeps_its_history(tmp_path: Path, version: str, rounds: int) -> None:
    """Processes and their server, killed and started again; the server syncs each write."""
    with RedisServer(version, "--appendfsync", "always") as server:
        print(run(server.url, tmp_path, rounds, partial(restart, server)))  # noqa: T201  with -s


@pytest.mark.parametrize("rounds", ROUNDS_ON_SERVERS)
def test_nats_keeps_its_history(tmp_path: Path, rounds: int) -> None:
    """Processes and their server, killed and started again."""
    with NatsServer() as server:
        print(run(server.url, tmp_path, rounds, partial(restart, server)))  # noqa: T201  with -s


@soak
@pytest.mark.parametrize("rounds", ROUNDS[1:])
def test_three_nats_servers_keep_their_history(tmp_path: Path, rounds: int) -> None:
    """Processes and one of three servers at a time, killed and started again."""
    draw = random.Random(rounds)
    with NatsCluster() as cluster:

        def interrupt() -> None:
            draw.choice(cluster.nodes).kill()
            cluster.start()

        print(run(f"{cluster.url}?replicas=3", tmp_path, rounds, interrupt))  # noqa: T201  with -s


def restart(server: RedisServer | NatsServer) -> None:
    """Kill a server and start it again on its data."""
    server.kill()
    server.start()


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Processes on one SQLite file: chains, claimers, first openers, forks, and exits without `close()`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable
from collections.abc import Generator
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from competing import claim
from competing import transact
from forks import together
from marks import SHARED_STORES
from open_files import needs_proc
from open_files import open_files
from waiting import until

import catga_store as cs
from catga_store.protocol.conversation import Call
from catga_store.stores.sqlite.forks import traffic as sqlite_traffic

PROCESSES = 8
LONG = 120
"""Seconds that only a test that fails would wait."""

# --- what the processes do ------------------------------------------------------------------------


def complete(path: str, number: int, total: int) -> list[int]:
    """Complete every child of the condition, beginning elsewhere than the others."""
    children = [f"child-{n}" for n in range(total)]
    first = number * len(children) // PROCESSES
    with cs.SQLiteStore(path) as store:
        answers = [
            store.complete_child("all", child) for child in children[first:] + children[:first]
        ]

    return [
        sum(answer.accepted for answer in answers),
        sum(answer.duplicate for answer in answers),
        sum(answer.now_satisfied for answer in answers),
    ]


def append(url: str, number: int, times: int, keyed: bool) -> list[tuple[int, bool]]:
    """Append that many times, each twice under its key if it has one; return sequences and duplicates."""
    done: list[tuple[int, bool]] = []
    patient = timedelta(
        minutes=2
    )  # of eight writers on NATS one may lose for long on a busy machine
    with cs.open_store(url, timeout=patient) as store:
        for entry in range(times):
            for _ in range(2 if keyed else 1):
                key = f"{number}/{entry}" if keyed else None
                found = store.append("f", [number, entry], key=key)
                done.append((found.sequence, found.duplicate))

    return done


def open_first(path: str, number: int, partitions: int) -> str:
    """Open a file that may not be there yet, and write to it."""
    try:
        with cs.SQLiteStore(path, partitions=partitions) as store:
            store.create(cs.FlowSnapshot(f"by-{number}", state=None))
    except cs.PartitionCountError as error:
        return f"{type(error).__name__} {error.expected}"

    return "wrote"


# --- what comes of it -----------------------------------------------------------------------------


def test_transact_by_processes_makes_a_chain(tmp_path: Path) -> None:
    """8 processes that add 200 times each end at exactly 1,600, and no version was read twice."""
    path = tmp_path / "flows.db"
    with cs.SQLiteStore(path) as store:
        store.create(cs.FlowSnapshot("counter", state={"n": 0}))
        began = time.perf_counter()
        answers = together(transact, *[(f"sqlite:///{path}", n, 200) for n in range(PROCESSES)])
        print(f"1600 transactions took {time.perf_counter() - began:.1f} s")  # noqa: T201  with -s

        read = sorted(tuple(pair) for answer in answers for pair in answer)
        assert read == [(n + 1, n) for n in range(1600)]
        counter = store.get_one("counter")
        assert (counter.version, counter.state) == (1601, {"n": 1600})


@pytest.mark.parametrize("limit", [1, 10])
def test_claimers_in_processes_take_each_due_flow_once(tmp_path: Path, limit: int) -> None:
    """8 processes on 1,000 due flows have each exactly once, and the store names the one."""
    path = tmp_path / "flows.db"
    ids = [f"flow-{n:04}" for n in range(1000)]
    with cs.SQLiteStore(path) as store:
        for start in range(0, 1000, 200):
            with store.begin() as session:
                for flow_id in ids[start : start + 200]:
                    session.add(cs.FlowSnapshot(flow_id, state=None))

        taken = together(claim, *[(f"sqlite:///{path}", n, limit) for n in range(PROCESSES)])
        assert sorted(flow_id for mine in taken for flow_id in mine) == ids
        owners = {flow.flow_id: flow.owner for flow in store.iter_flows()}
        assert owners == {
            flow_id: f"worker-{number}" for number, mine in enumerate(taken) for flow_id in mine
        }


def test_completions_from_processes_count_once(tmp_path: Path) -> None:
    """8 processes that each complete all 100 children: 100 are accepted, one answer satisfies."""
    path = tmp_path / "flows.db"
    with cs.SQLiteStore(path) as store:
        children = [f"child-{n}" for n in range(100)]
        store.set_wait_condition(cs.WaitCondition("all", flow_ids=children))
        answers = together(complete, *[(str(path), n, 100) for n in range(PROCESSES)])
        assert [sum(column) for column in zip(*answers, strict=True)] == [100, 700, 1]
        wait = store.get_wait_condition("all")
        assert wait is not None
        assert (wait.outcome, wait.completed_count) == (cs.WaitOutcome.SATISFIED, 100)


@pytest.mark.parametrize("keyed", [False, True])
@pytest.mark.parametrize("total", [200, pytest.param(1000, marks=pytest.mark.soak)])
@SHARED_STORES
def test_appends_by_processes_have_no_gaps(store_url: str, total: int, keyed: bool) -> None:
    """8 processes append to one log: each sequence is given once, also if every append is sent twice."""
    times = total // PROCESSES
    with cs.open_store(store_url) as store:
        store.create(cs.FlowSnapshot("f", state={"n": 0}))
        found = together(append, *[(store_url, n, times, keyed) for n in range(PROCESSES)])
        answers = [(sequence, again) for each in found for sequence, again in each]
        wanted = list(range(1, total + 1))
        assert sorted(sequence for sequence, again in answers if not again) == wanted
        assert sorted(sequence for sequence, again in answers if again) == wanted * keyed

        entries = store.read_log("f", limit=1000)
        assert [entry.sequence for entry in entries] == wanted
        expected = [[number, entry] for number in range(PROCESSES) for entry in range(times)]
        assert sorted(entry.body for entry in entries) == expected
        for number in range(PROCESSES):  # each process's own are in the order in which it sent them
            mine = [entry.body[1] for entry in entries if entry.body[0] == number]
            assert mine == list(range(times))


def test_first_openers_all_succeed(tmp_path: Path) -> None:
    """20 processes that open a file which is not there yet have all written to it."""
    path = tmp_path / "flows.db"
    wrote = together(open_first, *[(str(path), n, 1) for n in range(20)])
    assert wrote == ["wrote"] * 20
    with cs.SQLiteStore(path) as store:
        assert store.count_flows() == 20


def test_first_openers_agree_on_one_number_of_partitions(tmp_path: Path) -> None:
    """Of processes that lay out a new file with 1 and 4 partitions, one kind is refused, whole."""
    path = tmp_path / "flows.db"
    answers = together(open_first, *[(str(path), n, (1, 4)[n % 2]) for n in range(8)])
    winner = 0 if answers[0] == "wrote" else 1
    number = (1, 4)[winner]
    assert answers[winner::2] == ["wrote"] * 4
    assert answers[1 - winner :: 2] == [f"PartitionCountError {number}"] * 4
    with cs.SQLiteStore(path, partitions=number) as store:
        assert store.count_flows() == 4


def test_a_store_with_other_partitions_is_refused_each_time(tmp_path: Path) -> None:
    """The error says both numbers, is of both kinds, and the store can be opened right afterwards."""
    with cs.SQLiteStore(tmp_path / "flows.db", partitions=4) as store:
        store.create(cs.FlowSnapshot("order", state=None))

    with cs.SQLiteStore(tmp_path / "flows.db", partitions=8) as store:
        for use in (store.ping, lambda: store.create(cs.FlowSnapshot("other", state=None))):
            with pytest.raises(cs.PartitionCountError, match="partitions=4") as caught:
                use()

            assert isinstance(caught.value, cs.UsageError)
            assert isinstance(caught.value, cs.StoreConfigError)
            assert (caught.value.expected, caught.value.actual) == (4, 8)

    with cs.SQLiteStore(tmp_path / "flows.db", partitions=4) as store:
        assert [flow.flow_id for flow in store.iter_flows()] == ["order"]


# --- exits without close --------------------------------------------------------------------------

USE = """
import catga_store as cs
store = cs.open_store({url!r})
store.get_or_create(cs.FlowSnapshot("order", state={{"n": 1}}))
assert store.get_one("order").state == {{"n": 1}}
{end}
"""
USE_ASYNC = """
import logging
import anyio, catga_store as cs
logging.getLogger("asyncio").setLevel("ERROR")  # no word of callbacks that a busy machine makes slow
async def main():
    store = cs.open_async_store({url!r})
    await store.get_or_create(cs.FlowSnapshot("order", state={{"n": 1}}))
    async with anyio.create_task_group() as group:
        for _ in range(4):
            group.start_soon(store.get_one, "order")
    {end}
anyio.run(main, backend={backend!r})
"""


def finish(code: str, *options: str) -> tuple[float, int, str]:
    """Run a program; return seconds, exit code and stderr."""
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", *options, "-c", code],
        capture_output=True,
        text=True,
        timeout=LONG,
        check=False,
    )
    return time.perf_counter() - began, done.returncode, done.stderr


def seconds_more(code: str) -> float:
    """Run a program, which must say nothing, and one that only imports what it does; return what it takes more.

    Up to three times: on a busy machine one of the two may have to wait for the other work.
    """
    least = float(LONG)

    for _ in range(3):
        bare, _, _ = finish("import anyio, trio, catga_store, sqlite3")
        seconds, exit_code, errors = finish(code)
        assert (exit_code, errors) == (0, "")
        least = min(least, seconds - bare)
        if least < 2:
            break

    return least


KEPT = "globals()['kept'] = store"
MEMORY = pytest.param("memory", marks=pytest.mark.nightly)
"""No thread and no file of a memory store could keep a process: one form is enough for each change."""


@pytest.fixture
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Name a store of the kind that the test names."""
    return "memory://" if request.param == "memory" else f"sqlite:///{tmp_path / 'flows.db'}"


@pytest.mark.parametrize(
    ("url", "end"),
    [
        ("memory", KEPT),
        pytest.param("memory", "pass", marks=pytest.mark.nightly),
        pytest.param("memory", "raise SystemExit(0)", marks=pytest.mark.nightly),
        ("sqlite", KEPT),
        ("sqlite", "pass"),
        ("sqlite", "raise SystemExit(0)"),
    ],
    indirect=["url"],
)
def test_a_program_that_forgets_close_ends(url: str, end: str) -> None:
    """It exits with code 0, within 2 s of one that uses no store, and says nothing."""
    assert seconds_more(USE.format(url=url, end=end)) < 2


@pytest.mark.parametrize("url", [MEMORY, "sqlite"], indirect=True)
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("end", [KEPT, pytest.param("pass", marks=pytest.mark.nightly)])
def test_an_async_program_that_forgets_close_ends(url: str, backend: str, end: str) -> None:
    """It exits with code 0, within 2 s of one that uses no store, and says nothing."""
    assert seconds_more(USE_ASYNC.format(url=url, backend=backend, end=end)) < 2


def test_a_program_that_ends_while_threads_write_loses_nothing(tmp_path: Path) -> None:
    """Daemon threads in the middle of commits keep no process alive, and what they did is there."""
    path = tmp_path / "flows.db"
    code = f"""
import threading, catga_store as cs
store = cs.SQLiteStore({str(path)!r})
acknowledged = [0] * 4
def write(thread):
    while True:
        store.create(cs.FlowSnapshot(f"{{thread}}-{{acknowledged[thread]}}", state=None))
        acknowledged[thread] += 1
for thread in range(4):
    threading.Thread(target=write, args=(thread,), daemon=True).start()
while min(acknowledged) < 5:
    pass
print(acknowledged)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=LONG, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    with cs.SQLiteStore(path) as store:
        ids = {flow.flow_id for flow in store.iter_flows()}

    for thread, number in enumerate(json.loads(done.stdout)):
        assert {f"{thread}-{n}" for n in range(number)} <= ids


# --- file descriptors -----------------------------------------------------------------------------


@needs_proc
def test_a_collected_store_leaves_no_file_open(tmp_path: Path) -> None:
    """When the last reference goes, so do all descriptors, of all threads' connections."""
    store = cs.SQLiteStore(tmp_path / "flows.db")
    store.create(cs.FlowSnapshot("order", state=None))
    threads = [threading.Thread(target=store.get, args=("order",)) for _ in range(4)]
    for thread in threads:
        thread.start()

    for thread in threads:
        thread.join()

    assert open_files(tmp_path)
    del store, threads, thread
    assert open_files(tmp_path) == []
    assert [file.name for file in tmp_path.iterdir()] == ["flows.db"]  # the log was put away too


@needs_proc
def test_a_closed_store_leaves_no_file_open(tmp_path: Path) -> None:
    """`close` may be called twice; afterwards nothing is open and every call is refused."""
    store = cs.SQLiteStore(tmp_path / "flows.db")
    store.create(cs.FlowSnapshot("order", state=None))
    store.close()
    store.close()
    assert open_files(tmp_path) == []
    with pytest.raises(cs.StoreClosedError):
        store.get("order")


def read_for_ever(store: cs.Store) -> None:
    """Read until the store refuses."""
    while True:
        store.get("order")


@needs_proc
def test_a_store_closed_while_threads_use_it_leaves_no_file_open(tmp_path: Path) -> None:
    """Threads in the middle of calls finish them or get an error, and close what they had."""
    store = cs.SQLiteStore(tmp_path / "flows.db")
    store.create(cs.FlowSnapshot("order", state={"n": 0}))
    started = threading.Barrier(5)

    def use() -> None:
        started.wait(LONG)
        with pytest.raises(cs.StoreClosedError):
            read_for_ever(store)

    threads = [threading.Thread(target=use) for _ in range(4)]
    for thread in threads:
        thread.start()

    started.wait(LONG)
    store.close()
    for thread in threads:
        thread.join(LONG)

    assert open_files(tmp_path) == []


# --- forks ----------------------------------------------------------------------------------------

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")


@contextmanager
def forked(work: Callable[[], object]) -> Iterator[Callable[[], None]]:
    """Run `work` in a forked child; the answer waits for it and fails if it did."""
    with warnings.catch_warnings():
        # Python 3.12 and later warn of threads, which are what some of these tests are about.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()

    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        except BaseException:  # noqa: BLE001  the child must end here, whatever happens
            import traceback  # noqa: PLC0415  in a child that has failed

            traceback.print_exc()
        finally:
            os._exit(code)

    def join() -> None:
        statuses: list[int] = []
        waiting = threading.Thread(target=lambda: statuses.append(os.waitpid(pid, 0)[1]))
        waiting.start()
        waiting.join(LONG)
        hangs = waiting.is_alive()
        if hangs:
            os.kill(pid, 9)
            waiting.join()

        assert not hangs, "the forked child hangs"
        assert os.waitstatus_to_exitcode(statuses[0]) == 0

    yield join


@needs_fork
def test_memory_copies_diverge_at_a_fork() -> None:
    """The child has what was there, and neither sees what the other writes later."""
    store = cs.MemoryStore()
    store.create(cs.FlowSnapshot("before", state=None))

    def child() -> None:
        assert store.get("before") is not None
        store.create(cs.FlowSnapshot("of the child", state=None))
        assert store.get("of the parent") is None

    with forked(child) as join:
        store.create(cs.FlowSnapshot("of the parent", state=None))
        join()

    assert store.get("of the child") is None


@needs_fork
def test_a_sqlite_store_used_before_a_fork_works_on_both_sides(tmp_path: Path) -> None:
    """Parent and child write to one file through one store; nothing of either is lost."""
    store = cs.SQLiteStore(tmp_path / "flows.db")
    store.create(cs.FlowSnapshot("before", state=None))
    owner = store.claim("before").owner

    def child() -> None:
        assert store.get("before") is not None
        for n in range(50):
            store.create(cs.FlowSnapshot(f"child-{n}", state=None))

        (mine,) = store.claim_due()
        assert mine.owner != owner, "a forked child is another owner"

    with forked(child) as join:
        for n in range(50):
            store.create(cs.FlowSnapshot(f"parent-{n}", state=None))

        join()

    assert store.count_flows() == 101


@needs_fork
def test_the_log_stays_when_the_parent_closes_first(tmp_path: Path) -> None:
    """A parent that closes the store does not take away the log that its child writes to."""
    store = cs.SQLiteStore(tmp_path / "flows.db")
    store.create(cs.FlowSnapshot("before", state=None))
    to_child, from_parent = os.pipe(), os.pipe()

    def child() -> None:
        store.create(cs.FlowSnapshot("child-0", state=None))
        os.write(from_parent[1], b"x")
        os.read(to_child[0], 1)
        for n in range(1, 20):
            store.create(cs.FlowSnapshot(f"child-{n}", state=None))

    with forked(child) as join:
        os.read(from_parent[0], 1)
        assert store.get("child-0") is not None
        store.close()
        os.write(to_child[1], b"x")
        join()

    for end in (*to_child, *from_parent):
        os.close(end)

    with cs.SQLiteStore(tmp_path / "flows.db") as after:
        assert after.count_flows() == 21


@needs_fork
@pytest.mark.parametrize("kind", ["memory", "sqlite"])
@pytest.mark.parametrize("forks", [8, pytest.param(100, marks=pytest.mark.soak)])
def test_forks_while_threads_commit(tmp_path: Path, kind: str, forks: int) -> None:
    """Whatever the parent's threads are in the middle of, every child can write, and theirs stays."""
    path = tmp_path / "flows.db"
    store = cs.MemoryStore() if kind == "memory" else cs.SQLiteStore(path)
    store.create(cs.FlowSnapshot("before", state=None))
    done = threading.Event()
    written = [0, 0, 0]

    def write(thread: int) -> None:
        while not done.is_set():
            store.create(cs.FlowSnapshot(f"thread-{thread}-{written[thread]}", state=None))
            written[thread] += 1

    threads = [threading.Thread(target=write, args=(thread,)) for thread in range(3)]
    for thread in threads:
        thread.start()

    try:
        for number in range(forks):

            def child(number: int = number) -> None:
                for n in range(3):
                    store.create(cs.FlowSnapshot(f"fork-{number}-{n}", state=None))
                    assert store.get(f"fork-{number}-{n}") is not None

            with forked(child) as join:
                join()
    finally:
        done.set()
        for thread in threads:
            thread.join(LONG)

    assert min(written) > 0
    assert store.count_flows() == 1 + sum(written) + (3 * forks if kind == "sqlite" else 0)
    store.close()


def test_a_store_is_not_opened_beside_a_fork(tmp_path: Path) -> None:
    """A fork stops the stores that there are; one that another thread opens meanwhile waits for it."""
    seen: list[str] = []

    def open_one() -> None:
        with cs.SQLiteStore(tmp_path / "flows.db") as store:
            seen.append("opened")
            store.create(cs.FlowSnapshot("new", state=None))

    with beside_a_fork(open_one, seen):
        seen.append("forked")

    assert seen == ["forked", "opened"]


@contextmanager
def beside_a_fork(work: Callable[[], object], seen: list[str]) -> Generator[None]:
    """A fork as far as a store sees it; inside, `work` waits for its end, or has said something."""
    traffic: Any = sqlite_traffic
    traffic.stop()
    try:
        thread = threading.Thread(target=work)
        thread.start()
        until(lambda: bool(traffic._gate._waiters or seen))
        yield
    finally:
        traffic.resume()

    thread.join(LONG)
    assert not thread.is_alive()


def test_a_read_that_begins_beside_a_fork_waits(tmp_path: Path) -> None:
    """SQLite's own locks must not be held by a thread that the child does not have."""
    seen: list[str] = []
    with cs.SQLiteStore(tmp_path / "flows.db") as store:
        store.create(cs.FlowSnapshot("f", state=None))

        def read() -> None:
            store.get_one("f")
            seen.append("read")

        with beside_a_fork(read, seen):
            seen.append("forked")

    assert seen == ["forked", "read"]


def test_a_fork_waits_for_a_read_that_is_under_way(tmp_path: Path) -> None:
    """And continues when that has ended."""
    seen: list[str] = []
    reading, go_on = threading.Event(), threading.Event()
    traffic: Any = sqlite_traffic

    def slowly(_: object) -> None:
        reading.set()
        assert go_on.wait(LONG)
        seen.append("read")

    def fork() -> None:
        traffic.stop()
        seen.append("forked")
        traffic.resume()

    with cs.SQLiteStore(tmp_path / "flows.db") as store:
        store.ping()
        driver: Any = store._driver
        call = Call(slowly, writes=False, single=True)
        threads = [threading.Thread(target=driver.transport, args=(call,))]
        threads[0].start()
        assert reading.wait(LONG)
        threads.append(threading.Thread(target=fork))
        threads[1].start()
        until(lambda: bool(traffic._gate._waiters))
        go_on.set()
        for thread in threads:
            thread.join(LONG)

    assert seen == ["read", "forked"]

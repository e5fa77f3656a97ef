"""Operations on many flows: what they change, what they skip and why, and how they continue.

What is decided here is decided above the stores; the parity machine runs the same on each.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

import catga_store as cs
from catga_store.core import actions
from catga_store.core import bulk
from catga_store.protocol.conversation import Pause
from catga_store.protocol.conversation import Request
from catga_store.protocol.conversation import ask
from catga_store.protocol.conversation import run
from catga_store.protocol.keys import flow_key
from catga_store.protocol.keys import wait_key
from catga_store.protocol.requests import Commit
from catga_store.protocol.requests import Read
from catga_store.testing.clock import ManualClock
from tests.support import stuck

FAILED, RUNNING = cs.FlowStatus.FAILED, cs.FlowStatus.RUNNING
AT_ONCE: dict[str, Any] = {"per_second": None}


@pytest.fixture
def store(clock: ManualClock) -> cs.Store:
    """An empty store."""
    return cs.MemoryStore(clock=clock)


def fill(store: cs.Store, number: int, prefix: str = "f", **given: Any) -> None:
    """Create flows."""
    for place in range(number):
        store.create(cs.FlowSnapshot(f"{prefix}{place}", state={"n": place}, **given))


def statuses(store: cs.Store) -> dict[str, int]:
    """How many flows have each status."""
    return {
        status.name: number
        for status in cs.FlowStatus
        if (number := store.count_flows(status=status))
    }


# --- which flows --------------------------------------------------------------------------------


def test_bulk_without_a_filter_is_refused(store: cs.Store) -> None:
    """Also if the filters restrict nothing; nothing is sent."""
    fill(store, 1)
    for selected in ({}, {"status": None}, {"findings": ()}):
        with pytest.raises(cs.UsageError, match="everything=True"):
            store.bulk(**selected)

    report = store.bulk(everything=True).cancel("all", **AT_ONCE)
    assert (report.matched, report.changed) == (1, 1)


@pytest.mark.parametrize(
    "wrong",
    [
        {"ids": ["f"], "status": FAILED},
        {"ids": ["f"], "everything": True},
        {"ids": "f"},
        {"findings": "overdue"},
        {"findings": ["overdo"]},
        {"everything": 1},
        {"owned_by": "w"},
    ],
)
def test_a_wrong_selection_is_refused(store: cs.Store, wrong: dict[str, Any]) -> None:
    """Before anything is sent."""
    with pytest.raises(cs.UsageError):
        store.bulk(**wrong)


@pytest.mark.parametrize(
    "wrong",
    [
        {"dry_run": 1},
        {"limit": 0},
        {"per_second": 0},
        {"per_second": "5"},
        {"cursor": "x"},
        {"speed": 5},
    ],
)
def test_a_wrong_option_is_refused(store: cs.Store, wrong: dict[str, Any]) -> None:
    """Nothing is changed."""
    fill(store, 1)
    for selected in ({"ids": ["f0"]}, {"id_prefix": "f"}):
        with pytest.raises(cs.UsageError):
            store.bulk(**selected).cancel("", **wrong)

    with pytest.raises(cs.UsageError):
        store.bulk(id_prefix="f").purge(live=1)  # type: ignore[arg-type]

    assert store.get_one("f0").version == 1


def test_a_filter_leaves_all_others_alone(store: cs.Store) -> None:
    """Filters are those of a listing."""
    fill(store, 3, "a", status=FAILED)
    fill(store, 3, "b", status=FAILED)
    fill(store, 3, "c")
    report = store.bulk(status=FAILED, id_prefix="a").retry(**AT_ONCE)
    assert report.first_changed == ("a0", "a1", "a2")
    assert statuses(store) == {"RUNNING": 3, "FAILED": 3, "CREATED": 3}
    assert all(one.version == 1 for one in store.query_flows() if one.flow_id[0] != "a")


def test_ids_say_which_flows(store: cs.Store) -> None:
    """Each once; one that does not exist is skipped."""
    fill(store, 3, due_at=None)
    report = store.bulk(ids=["f2", "f0", "f2", "x"]).wake(**AT_ONCE)
    assert report.first_changed == ("f2", "f0")
    assert report.first_skipped == {"does not exist": ("x",)}


def test_findings_say_which_flows(store: cs.Store, clock: ManualClock) -> None:
    """What `diagnose_all` finds, also with filters and other thresholds."""
    fill(store, 2, due_at=None)
    stuck.claimed(store, clock, "claimed")
    report = store.bulk(findings=["lease_expired"]).release(**AT_ONCE)
    assert (report.first_changed, report.matched) == (("claimed",), 1)
    report = store.bulk(findings=["never_due"], id_prefix="f1").wake(**AT_ONCE)
    assert report.first_changed == ("f1",)
    late: dict[str, Any] = {"late": timedelta(0)}
    report = store.bulk(findings=["overdue"], diagnosis=late).cancel("late", **AT_ONCE)
    assert set(report.first_changed) == {"claimed", "f1"}


def test_purge_clears_conditions_whose_parent_is_gone(store: cs.Store) -> None:
    """Other operations have nothing to do there."""
    for flow_id in ("f", "g"):
        stuck.suspended(store, flow_id, "child")
        store.delete(flow_id)

    gone = store.bulk(findings=["parent_gone"])
    assert gone.wake(**AT_ONCE).skipped == {"does not exist": 2}
    assert gone.purge(dry_run=True).changed == 2
    fill(store, 1, "f")
    store.create(cs.FlowSnapshot("g", state={}))
    report = store.bulk(findings=["parent_gone"]).purge(**AT_ONCE)
    assert report.first_changed == ("{f}/wait",)
    assert store.get_wait_condition("{g}/wait") is not None


# --- what is done -------------------------------------------------------------------------------


def test_each_operation_does_what_it_does_to_one_flow(store: cs.Store, clock: ManualClock) -> None:
    """And says why it skips a flow."""
    fill(store, 1, "failed", status=FAILED)
    fill(store, 1, "completed", status=cs.FlowStatus.COMPLETED)
    fill(store, 1, "parked", due_at=None)
    fill(store, 1, "held")
    store.claim("held0", lease=timedelta(hours=1))
    everything = store.bulk(everything=True)
    found = {
        name: getattr(everything, name)(dry_run=True)
        for name in ("retry", "wake", "release", "purge")
    }
    assert {name: sorted(one.first_changed) for name, one in found.items()} == {
        "retry": ["failed0", "parked0"],
        "wake": ["parked0"],
        "release": ["held0"],
        "purge": ["completed0", "failed0"],
    }
    assert found["retry"].skipped == {"is COMPLETED": 1, "is claimed": 1}
    assert found["wake"].skipped == {"is FAILED": 1, "is COMPLETED": 1, "is claimed": 1}
    assert found["purge"].skipped == {"is CREATED": 2}
    assert everything.purge(live=True, **AT_ONCE).skipped == {"is claimed": 1}
    assert [one.flow_id for one in store.query_flows()] == ["held0"]
    assert everything.cancel("no more", **AT_ONCE).changed == 1
    assert everything.cancel("no more", **AT_ONCE).skipped == {"is already CANCELLED": 1}


def test_a_dry_run_changes_nothing(store: cs.Store) -> None:
    """It counts what would be changed, and reads no bodies."""
    fill(store, 250, status=FAILED)
    report = store.bulk(status=FAILED).retry(dry_run=True)
    assert (report.matched, report.changed, report.dry_run) == (250, 250, True)
    assert len(report.first_changed) == 100
    assert statuses(store) == {"FAILED": 250}


def test_a_flow_that_cannot_be_read_can_be_cancelled_and_purged(store: cs.Store) -> None:
    """Its state is not looked at."""
    stuck.put_raw(store, "f", stuck.DAMAGED)
    assert store.bulk(findings=["unreadable"]).cancel("damaged", **AT_ONCE).changed == 1
    assert store.bulk(ids=["f"]).purge(**AT_ONCE).changed == 1


# --- continuing ---------------------------------------------------------------------------------


@pytest.mark.parametrize("selected", [{"status": FAILED}, {"ids": [f"f{n}" for n in range(250)]}])
def test_a_cursor_continues_where_a_report_ended(store: cs.Store, selected: dict[str, Any]) -> None:
    """`limit` flows at a time, every flow is changed once."""
    fill(store, 250, status=FAILED)
    cursor, matched = None, 0
    while True:
        report = store.bulk(**selected).retry(cursor=cursor, limit=70, **AT_ONCE)
        matched += report.matched
        cursor = report.cursor
        if cursor is None:
            break

        assert report.matched == 70

    assert matched == 250
    assert {one.version for one in store.iter_flows()} == {2}


def test_progress_is_told_after_each_page(store: cs.Store) -> None:
    """What it is given is enough to continue after the process has died."""
    fill(store, 250, status=FAILED)
    reports: list[cs.BulkReport] = []

    def progress(report: cs.BulkReport) -> None:
        reports.append(report)
        if report.matched == 200:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.bulk(status=FAILED).retry(progress=progress, **AT_ONCE)

    assert [report.matched for report in reports] == [100, 200]
    assert statuses(store) == {"RUNNING": 200, "FAILED": 50}
    rest = store.bulk(status=FAILED).retry(cursor=reports[-1].cursor, **AT_ONCE)
    assert (rest.changed, rest.cursor) == (50, None)


# --- other writers ------------------------------------------------------------------------------


def before_commits(
    store: cs.Store,
    selection: bulk.Selection,
    act: Callable[[int], object],
    action: actions.Action | None = None,
) -> cs.BulkReport:
    """Retry a selection, and do something before each commit."""
    number = 0

    def perform(request: Request[Any]) -> Any:
        nonlocal number
        if isinstance(request, Commit):
            number += 1
            act(number)

        return store._run(ask(request))

    conversation = bulk.run_bulk(
        store._context, selection, action or actions.RetryFlow(), {"per_second": None}
    )
    return run(conversation, perform)


def selection(**given: Any) -> bulk.Selection:
    """Select flows as `Store.bulk` does."""
    arguments: dict[str, Any] = {"ids": None, "findings": (), "everything": False}
    arguments |= {"diagnosis": None, "filters": {}}
    return bulk.select(**{**arguments, **given})


def test_a_flow_that_no_longer_matches_is_skipped(store: cs.Store) -> None:
    """Another writer has retried it after it was listed: it is not retried twice."""
    fill(store, 2, status=FAILED)
    chosen = selection(filters={"status": FAILED})
    report = before_commits(
        store, chosen, lambda number: store.retry_flow("f0") if number == 1 else None
    )
    assert (report.matched, report.changed) == (2, 1)
    assert report.first_skipped == {"was changed by another caller and no longer matches": ("f0",)}
    assert {one.version for one in store.iter_flows()} == {2}


@pytest.mark.parametrize(
    "given",
    [
        {"filters": {"status": FAILED}},
        {"ids": ["f0"]},
        {"findings": ["failed"], "filters": {"status": FAILED}},
    ],
)
def test_a_flow_that_still_matches_is_changed_as_it_is_then(
    store: cs.Store, given: dict[str, Any]
) -> None:
    """What the other writer wrote stays."""
    fill(store, 1, status=FAILED)

    def write(number: int) -> None:
        if number == 1:
            flow = store.get_one("f0")
            flow.state = "theirs"
            store.update(flow)

    report = before_commits(store, selection(**given), write)
    flow = store.get_one("f0")
    assert (report.changed, flow.version, flow.status, flow.state) == (1, 3, RUNNING, "theirs")


def test_a_flow_that_is_written_again_and_again_is_reported(store: cs.Store) -> None:
    """Not forever looked at again."""
    fill(store, 1, status=FAILED)

    def write(_number: int) -> None:
        flow = store.get_one("f0")
        flow.state["n"] += 1
        store.update(flow)

    report = before_commits(store, selection(filters={"status": FAILED}), write)
    assert report.skipped == {"was written by another caller during each attempt": 1}


def test_a_flow_that_is_deleted_meanwhile_is_reported(store: cs.Store) -> None:
    """It is not written again."""
    fill(store, 1, status=FAILED)
    report = before_commits(store, selection(ids=["f0"]), lambda _: store.delete("f0"))
    assert report.skipped == {"does not exist": 1}


def test_the_wait_of_a_flow_that_comes_meanwhile_is_not_cleared(store: cs.Store) -> None:
    """It is looked at again when its turn comes."""
    stuck.suspended(store, "f", "child")
    store.delete("f")
    key = wait_key("{f}/wait")

    def perform(request: Request[Any]) -> Any:
        if isinstance(request, Read) and request.keys == (key, flow_key("f")):
            store.create(cs.FlowSnapshot("f", state={}))

        return store._run(ask(request))

    gone = selection(findings=["parent_gone"])
    report = run(bulk.run_bulk(store._context, gone, actions.PurgeFlow(), {}), perform)
    assert report.skipped == {"was changed by another caller and no longer matches": 1}
    assert store.get_wait_condition("{f}/wait") is not None


def test_an_error_leaves_what_was_changed(store: cs.Store) -> None:
    """The call can be made again."""
    fill(store, 3, status=FAILED)

    def fail(number: int) -> None:
        if number == 2:
            message = "away"
            raise cs.StoreUnavailableError(message)

    with pytest.raises(cs.StoreUnavailableError):
        before_commits(store, selection(filters={"status": FAILED}), fail)

    assert statuses(store) == {"RUNNING": 1, "FAILED": 2}
    assert store.bulk(status=FAILED).retry(**AT_ONCE).changed == 2


def test_the_pace_is_bounded(store: cs.Store) -> None:
    """After each change there is a pause; skipped flows cost none."""
    fill(store, 3, status=FAILED)
    fill(store, 3, "live", due_at=None)
    pauses: list[float] = []

    def perform(request: Request[Any]) -> Any:
        if isinstance(request, Pause):
            pauses.append(request.seconds)
            return None

        return store._run(ask(request))

    everything = selection(everything=True)
    action = actions.WakeFlow()
    run(bulk.run_bulk(store._context, everything, action, {"per_second": 0.001}), perform)
    assert len(pauses) == 3
    assert 999 <= pauses[0] <= 1000
    assert pauses[2] > 2000

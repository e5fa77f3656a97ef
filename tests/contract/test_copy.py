"""`copy`: everything arrives as it was, and a copy that broke off can be called again."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING
from typing import Any

import attrs
import pytest

import catga_store as cs
from catga_store.copying import CopyDifference
from catga_store.copying import compare
from catga_store.protocol.conversation import Call
from catga_store.protocol.requests import Commit

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@attrs.define
class Order:
    """A typed state."""

    paid: bool = False


@pytest.fixture
def target(tmp_path: Path) -> Iterator[cs.Store]:
    """An empty store of another kind than the source."""
    with cs.SQLiteStore(tmp_path / "target.db") as store:
        yield store


@pytest.fixture
def source() -> Iterator[cs.Store]:
    """A store with one of everything."""
    with cs.MemoryStore() as store:
        order = cs.FlowSnapshot("order", state=Order())
        store.create(order)
        order.state.paid = True
        store.update(order)
        progress = cs.ForEachProgress()
        progress.mark(3)
        store.save_for_each_progress("order", 1, progress)
        store.create(cs.FlowSnapshot("waiting", state={}))
        with store.begin() as session:
            wait = cs.WaitCondition("wait", flow_ids=["a", "b"], timeout=timedelta(hours=1))
            session.suspend(session.get_one("waiting"), wait)

        store.complete_child("wait", "a", result=[1])
        store.set_wait_condition(cs.WaitCondition("ended", flow_ids=["a"]))
        store.complete_child("ended", "a")
        store.complete_child("early", "a", success=False, error="no")
        yield store


def test_every_record_arrives_with_version_type_and_times(
    source: cs.Store, target: cs.Store
) -> None:
    """A copied record differs from its original in its revision only."""
    report = cs.copy(source, target)
    assert report == cs.CopyReport(flows=2, wait_conditions=2, progress=1, completions=1)

    for before in source.iter_flows():
        (after,) = (flow for flow in target.iter_flows() if flow.flow_id == before.flow_id)
        assert attrs.evolve(after, revision=before.revision) == before

    assert target.get_one("order", Order).state == Order(paid=True)
    progress = target.get_for_each_progress("order", 1)
    assert progress is not None
    assert list(progress.processed_indices) == [3]


def test_copied_waits_continue(source: cs.Store, target: cs.Store) -> None:
    """Completions made before the copy count after it, and the parent is claimed."""
    cs.copy(source, target)
    ended = target.get_wait_condition("ended")
    assert ended is not None
    assert ended.outcome is cs.WaitOutcome.SATISFIED
    assert target.complete_child("wait", "a").duplicate
    assert target.complete_child("wait", "b").now_satisfied
    assert target.complete_child("early", "a").duplicate
    claimed = {flow.flow_id: flow for flow in target.claim_due(limit=10)}
    wait = claimed["waiting"].wait_condition
    assert wait is not None
    assert wait.results["a"].result == [1]


def test_what_was_claimed_is_due_in_the_target(source: cs.Store, target: cs.Store) -> None:
    """A claim is not copied: another worker is given the flow at once."""
    (claimed,) = source.claim_due(Order)
    cs.copy(source, target)
    (again,) = target.claim_due(Order)
    assert again.flow_id == claimed.flow_id


def test_a_second_copy_skips_what_is_there(source: cs.Store, target: cs.Store) -> None:
    """Without `overwrite` nothing in the target is replaced; with it, everything is."""
    cs.copy(source, target)
    order = target.get_one("order", Order)
    order.state.paid = False
    target.update(order)
    reports: list[cs.CopyReport] = []
    report = cs.copy(source, target, on_progress=reports.append)
    assert (report.flows, report.completions) == (0, 0)
    assert report.skipped == 6
    assert reports[-1] == report
    assert not target.get_one("order", Order).state.paid

    assert cs.copy(source, target, overwrite=True).flows == 2
    assert target.get_one("order", Order).state.paid
    assert target.get_one("order").version == 2


def test_a_store_is_not_copied_onto_itself(source: cs.Store) -> None:
    """Even with `overwrite`: nothing is written, and a claim stays a claim."""
    (claimed,) = source.claim_due(Order)
    assert cs.copy(source, source, overwrite=True) == cs.CopyReport(skipped=6)
    source.update(claimed)


def test_what_is_written_to_the_target_meanwhile_hides_nothing_else() -> None:
    """A record that another client has written first is skipped; the rest of its page is copied."""
    with cs.MemoryStore() as source, cs.MemoryStore() as target:
        for number in range(5):
            source.create(cs.FlowSnapshot(f"f-{number}", state={"n": number}))

        driver: Any = target._driver
        transport, written = driver.transport, iter(range(2))

        def before_a_write(call: Call[Any]) -> Any:
            if call.writes and next(written, None) == 1:  # the first one lays the store out
                driver.transport = transport
                target.create(cs.FlowSnapshot("f-3", state={"mine": True}))

            return transport(call)

        driver.transport = before_a_write
        report = cs.copy(source, target)
        assert (report.flows, report.skipped) == (4, 1)
        assert [target.get_one(f"f-{number}").state for number in (2, 3, 4)] == [
            {"n": 2},
            {"mine": True},
            {"n": 4},
        ]


def test_a_page_that_was_written_to_the_target_meanwhile_is_skipped() -> None:
    """If another client has written every record of a page first, nothing is written."""
    with cs.MemoryStore() as source, cs.MemoryStore() as target:
        source.create(cs.FlowSnapshot("f", state={"n": 1}))
        target.ping()
        driver: Any = target._driver
        transport = driver.transport

        def before_a_write(call: Call[Any]) -> Any:
            if call.writes:
                driver.transport = transport
                target.create(cs.FlowSnapshot("f", state={"mine": True}))

            return transport(call)

        driver.transport = before_a_write
        report = cs.copy(source, target)
        assert (report.flows, report.skipped) == (0, 1)
        assert target.get_one("f").state == {"mine": True}


def test_large_records_go_in_commits_of_their_own() -> None:
    """A page is as many commits as keep each below 4 MiB, whatever its records are."""
    text = "x" * (3 * 1024 * 1024)
    sizes: list[int] = []
    with cs.MemoryStore() as source, cs.MemoryStore() as target:
        for name in ("a", "b", "c"):
            source.create(cs.FlowSnapshot(name, state={"text": text if name != "c" else ""}))

        target.ping()
        driver: Any = target._driver
        transport = driver.transport

        def counting(call: Call[Any]) -> Any:
            if isinstance(call.request, Commit):
                sizes.append(len(call.request.changes))

            return transport(call)

        driver.transport = counting
        assert cs.copy(source, target).flows == 3
        driver.transport = transport
        assert list(compare(source, target)) == []

    assert sizes == [1, 2]


def test_many_records_cross_pages_and_partitions(tmp_path: Path) -> None:
    """A copy into a store with partitions holds exactly the flows of the source."""
    ids = [f"flow-{number}" for number in range(250)]
    with cs.MemoryStore() as source, cs.SQLiteStore(tmp_path / "t.db", partitions=4) as target:
        for flow_id in ids:
            source.create(cs.FlowSnapshot(flow_id, state={"id": flow_id}))

        assert cs.copy(source, target).flows == len(ids)
        found = target.get_many(ids)
        assert all(flow is not None and flow.state == {"id": key} for key, flow in found.items())


def test_a_copy_has_no_differences(source: cs.Store, target: cs.Store) -> None:
    """Comparing finds every record missing before the copy, and nothing after it."""
    before = list(compare(source, target))
    assert {one.key.kind for one in before} == {"flow", "wait", "progress"}
    assert sum(one.what == "missing" for one in before) == 5
    assert CopyDifference(cs.Key("wait", "early"), "completions") in before
    source.claim("order", cs.RAW, owner="w-1")
    cs.copy(source, target)
    assert list(compare(source, target)) == []


def test_every_difference_is_named(source: cs.Store, target: cs.Store) -> None:
    """What changes on either side afterwards is found, record by record."""
    cs.copy(source, target)
    flow = target.get_one("order")
    flow.state["paid"] = None
    target.update(flow)
    target.complete_child("wait", "b")
    source.complete_child("early", "b")
    source.clear_for_each_progress("order", 1)
    source.save_for_each_progress("order", 1, cs.ForEachProgress([7]))
    target.delete("waiting")
    ended = target.get_wait_condition("ended")
    assert ended is not None
    ended.timeout = timedelta(hours=1)
    target.update_wait_condition(ended)
    found = {one.key: one.what for one in compare(source, target)}
    assert found.keys() == {
        cs.Key("flow", "order"),
        cs.Key("flow", "waiting"),
        cs.Key("progress", "order", 1),
        cs.Key("wait", "early"),
        cs.Key("wait", "ended"),
        cs.Key("wait", "wait"),
    }
    assert found[cs.Key("flow", "waiting")] == "missing"
    assert {"version", "state"} <= set(found[cs.Key("flow", "order")].split(", "))
    assert "body" in found[cs.Key("progress", "order", 1)]
    assert "definition" in found[cs.Key("wait", "ended")]
    assert {"status", "completions"} <= set(found[cs.Key("wait", "wait")].split(", "))

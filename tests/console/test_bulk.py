"""Operations on many flows in the console: a dry run first, then what it has counted and no more."""

from __future__ import annotations

from typing import Any

import pytest
import stuck
from pages import TOKEN
from pages import Parsed
from pages import client_of
from pages import page_of
from pages import submit
from starlette.testclient import TestClient

import catga_store as cs
from catga_store import console
from catga_store.testing.clock import ManualClock


def failed(number: int) -> cs.Store:
    """Return a store with that many failed flows, and one that is well."""
    store = cs.MemoryStore()
    with store.begin() as session:
        session.add(cs.FlowSnapshot("well", state={}))
        for one in range(number):
            flow_id = f"failed-{one:04}"
            session.add(cs.FlowSnapshot(flow_id, state={}, status=cs.FlowStatus.FAILED))

    return store


def confirm(client: TestClient, shown: Any, **changed: str) -> Any:
    """Send the form of a page with a plan or a part of the work."""
    page = Parsed(shown.text)
    (form,) = [one for one in page.all("form") if one.get("method") == "post"]
    fields = {one["name"] or "": one.get("value") or "" for one in page.all("input")}
    return client.post(form["action"] or "", data=fields | changed)


def test_a_dry_run_then_the_work() -> None:
    """The dry run changes nothing; the work is on the same selection."""
    store = failed(30)
    with client_of(store, write=True) as client:
        plan = submit(client, "/flows?status=FAILED", "/bulk?status=FAILED", operation="retry")
        assert "30 of 30 flows would be changed" in Parsed(plan.text).text
        assert store.count_flows(status=cs.FlowStatus.FAILED) == 30
        done = confirm(client, plan)
        assert "30 flows were changed, 0 skipped" in Parsed(done.text).text

    assert store.count_flows(status=cs.FlowStatus.RUNNING) == 30
    assert store.get_one("well").version == 1


def test_no_more_than_the_dry_run_has_counted() -> None:
    """Flows that match only since then are left for another dry run."""
    store = failed(3)
    with client_of(store, write=True) as client:
        plan = submit(client, "/flows?status=FAILED", "/bulk?status=FAILED", operation="retry")
        for number in range(5):
            flow = cs.FlowSnapshot(f"new-{number}", state={}, status=cs.FlowStatus.FAILED)
            store.create(flow)

        confirm(client, plan)

    assert store.count_flows(status=cs.FlowStatus.FAILED) == 5


def test_large_operations_continue(monkeypatch: pytest.MonkeyPatch) -> None:
    """A request takes a part; the button continues, and the totals are of all parts."""
    monkeypatch.setattr("catga_store.console.views.bulk._AT_ONCE", 100)
    store = failed(150)
    with client_of(store, write=True) as client:
        address = "/bulk?id_prefix=failed"
        plan = submit(client, "/flows?id_prefix=failed", address, operation="purge")
        first = confirm(client, plan)
        assert "100 flows were changed" in Parsed(first.text).text
        assert "Up to 50 are left" in Parsed(first.text).text
        second = confirm(client, first)
        assert "150 flows were changed" in Parsed(second.text).text
        assert not [one for one in Parsed(second.text).all("form") if one.get("method") == "post"]

    assert store.count_flows() == 1


def test_what_is_skipped_has_its_reason() -> None:
    """With the ids of the flows."""
    store = failed(1)
    store.claim("well", owner="worker-1")
    with client_of(store, write=True) as client:
        plan = submit(client, "/flows?created_after=1h", "/bulk?created_after=1h", operation="wake")
        text = Parsed(plan.text).text
        assert "0 of 2 flows would be changed" in text
        assert "is claimed" in text
        assert "Do it" not in text


@pytest.mark.parametrize(
    ("address", "fields", "part"),
    [
        ("/bulk", {"operation": "retry"}, "bulk without a filter"),
        ("/bulk?status=FAILED", {"operation": "destroy"}, "operation: expected one of"),
        ("/bulk?status=FAILED", {"operation": "cancel"}, "reason: expected a text"),
        ("/bulk?finding=x", {"operation": "wake"}, "unknown finding"),
        ("/bulk/run?status=FAILED", {"operation": "retry"}, "left: expected"),
        ("/bulk/run?status=FAILED", {"operation": "retry", "left": "0"}, "left: expected"),
        ("/bulk/run", {"operation": "retry", "left": "9"}, "bulk without a filter"),
    ],
)
def test_wrong_orders(address: str, fields: dict[str, str], part: str) -> None:
    """An empty filter, an unknown operation, no dry run before: 400, and nothing is changed."""
    store = failed(2)
    with client_of(store, write=True) as client:
        refused = submit(client, "/flows?status=FAILED", address, **fields)
        assert refused.status_code == 400
        assert part in Parsed(refused.text).text

    assert store.count_flows(status=cs.FlowStatus.FAILED) == 2


def test_stuck_flows_are_mended_by_their_findings(clock: ManualClock) -> None:
    """From the page "Doctor": each kind by one operation, and no other flow is touched."""
    store = cs.MemoryStore(clock=clock)
    for number in range(3):
        store.create(cs.FlowSnapshot(f"parked-{number}", state={}, due_at=None))
        stuck.suspended(store, f"cleared-{number}", "child")
        store.clear_wait_condition(f"{{cleared-{number}}}/wait")
        stuck.claimed(store, clock, f"dead-{number}", times=6)
        stuck.put_raw(store, f"damaged-{number}", stuck.DAMAGED)

    for number in range(50):
        store.create(cs.FlowSnapshot(f"well-{number}", state={}, status=cs.FlowStatus.COMPLETED))

    with client_of(store, write=True) as client:
        found = client.get("/doctor.json").json()["flows"]
        assert len(found) == 12
        for finding, operation in (
            ("never_due", "wake"),
            ("wait_gone", "wake"),
            ("lease_expired", "release"),
            ("attempts_high", "retry"),
            ("unreadable", "cancel"),
        ):
            address = f"/doctor?finding={finding}"
            assert page_of(client, address)
            plan = submit(
                client, address, f"/bulk?finding={finding}", operation=operation, reason="damaged"
            )
            assert "3 of 3 flows would be changed" in Parsed(plan.text).text, finding
            confirm(client, plan)

        assert client.get("/doctor.json").json()["flows"] == []

    assert all(store.get_one(f"well-{number}").version == 1 for number in range(50))


def test_bulk_by_json() -> None:
    """The same two steps for programs."""
    store = failed(4)
    with TestClient(console.app(store, token=TOKEN, write=True)) as client:
        client.headers["Authorization"] = f"Bearer {TOKEN}"
        plan = client.post("/bulk.json?status=FAILED", json={"operation": "retry"}).json()
        assert (plan["dry_run"], plan["changed"]) == (True, 4)
        order = {"operation": "retry", "left": plan["matched"]}
        done = client.post("/bulk/run.json?status=FAILED", json=order).json()
        assert (done["dry_run"], done["changed"]) == (False, 4)

"""Operations on many flows in the console: a dry run first, then what it has counted and no more."""

from __future__ import annotations

import uuid
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
        assert "Apply" not in text


@pytest.mark.parametrize(
    ("address", "fields", "part"),
    [
        ("/bulk", {"operation": "retry"}, "bulk operation without a filter"),
        ("/bulk?status=FAILED", {"operation": "destroy"}, "operation: expected one of"),
        ("/bulk?status=FAILED", {"operation": "cancel"}, "reason: expected text"),
        ("/bulk?finding=x", {"operation": "wake"}, "unknown finding"),
        ("/bulk?status=FAILED&typ=order", {"operation": "wake"}, "unknown filter 'typ'"),
        ("/bulk/run?status=FAILED", {"operation": "retry"}, "left: expected"),
        ("/bulk/run?status=FAILED", {"operation": "retry", "left": "0"}, "left: expected"),
        ("/bulk/run", {"operation": "retry", "left": "9"}, "bulk operation without a filter"),
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


MENDING = (
    ("lease_expired", "release"),
    ("attempts_high", "retry"),
    ("wait_gone", "wake"),
    ("never_due", "wake"),
    ("no_deadline", "wake"),
    ("children_ended", "wake"),
    ("parent_gone", "purge"),
)
CANNOT_BE_MENDED = {"unreadable/0", "unreadable/1", "future_version/0"}


def found_by(client: TestClient) -> set[str]:
    """Return the flows on all pages of the page "Doctor"."""
    found: set[str] = set()
    address: str | None = "/doctor"
    while address:
        document = client.get(address.replace("/doctor", "/doctor.json")).json()
        found |= {one["flow_id"] for one in document["flows"]}
        links = page_of(client, address).all("a")
        address = next((one["href"] for one in links if one.get("rel") == "next"), None)

    return found


def test_stuck_flows_are_mended_by_their_findings() -> None:
    """Of 5,000 flows, the 30 that are stuck are found; 27 are mended by seven forms, and no other is touched."""
    url = f"memory://{uuid.uuid4().hex}"
    with cs.open_store(url) as store:
        every = stuck.seed(url, 4970)
        before = {flow.flow_id: flow.revision for flow in store.iter_flows()}
        with client_of(store, write=True) as client:
            assert found_by(client) == every
            for finding, operation in MENDING:
                form_on = f"/doctor?finding={finding}"
                action = f"/bulk?finding={finding}"
                confirm(client, submit(client, form_on, action, operation=operation))

            assert found_by(client) == CANNOT_BE_MENDED

        after = {flow.flow_id: flow.revision for flow in store.iter_flows()}
        assert after.keys() == before.keys()
        touched = {flow_id for flow_id, revision in after.items() if before[flow_id] != revision}
        mended = every - CANNOT_BE_MENDED
        assert touched == {one for one in mended if not one.startswith("parent_gone")}


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

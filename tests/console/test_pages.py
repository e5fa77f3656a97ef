"""The pages of the console and their JSON twins: what they show, and what their actions do."""

from __future__ import annotations

import json
from datetime import timedelta

import pytest
from pages import TOKEN
from pages import Parsed
from pages import client_of
from pages import page_of
from pages import submit
from starlette.testclient import TestClient

import catga_store as cs
from catga_store import console
from catga_store.console.trees import difference
from catga_store.console.trees import tree
from catga_store.testing.clock import ManualClock


@pytest.fixture
def flows(clock: ManualClock) -> cs.Store:
    """Return a store with an order that has everything that a flow can have."""
    store = cs.MemoryStore(clock=clock, history=10)
    order = cs.FlowSnapshot("order", state={"paid": False, "lines": [{"sku": "a"}]})
    store.create(order)
    clock.advance(timedelta(minutes=5))
    with store.begin() as session:
        order = session.get_one("order")
        order.state["paid"] = True
        order.error = "card declined"
        session.append("order", {"event": "asked the bank"}, key="ask")
        session.add_part(cs.Part("order", "invoice", b"%PDF", tag="application/pdf"))
        session.suspend(
            order, cs.WaitCondition("approval", flow_ids=["boss", "cfo"], timeout=timedelta(days=1))
        )

    progress = cs.ForEachProgress(range(100))
    progress.mark(150, ok=False)
    store.save_for_each_progress("order", 2, progress)
    return store


def test_listing_with_filters_and_pages(clock: ManualClock) -> None:
    """Each page leads to the next with the same filters; the JSON twin says the same."""
    store = cs.MemoryStore(clock=clock)
    for number in range(7):
        store.create(cs.FlowSnapshot(f"f-{number}", state={}, status=cs.FlowStatus(number % 2)))
        clock.advance(timedelta(minutes=1))

    with client_of(store) as client:
        seen: list[str] = []
        address: str | None = "/flows?status=created&limit=3"
        while address:
            document = client.get(address.replace("/flows?", "/flows.json?")).json()
            page = page_of(client, address)
            listed = [flow["flow_id"] for flow in document["flows"]]
            assert all(one in page.text for one in listed)
            seen += listed
            address = next((one["href"] for one in page.all("a") if one.get("rel") == "next"), None)

        assert seen == ["f-6", "f-4", "f-2", "f-0"]
        young = client.get("/flows.json?created_after=2030-01-01T00:05Z").json()["flows"]
        assert [flow["flow_id"] for flow in young] == ["f-6", "f-5"]
        assert "No flows match" in page_of(client, "/flows?id_prefix=x").text


@pytest.mark.parametrize(
    ("query", "part"),
    [
        ("status=dead", "expected one of CREATED"),
        ("limit=many", "limit: expected a whole number"),
        ("limit=5000", "limit"),
        ("created_after=yesterday", "is not a valid time or age"),
        ("cursor=q", "invalid cursor"),
        ("tag=tenant", "tag: expected KEY=VALUE"),
    ],
)
def test_wrong_filters(query: str, part: str) -> None:
    """They are said, in words, with 400."""
    with client_of(cs.MemoryStore()) as client:
        assert part in page_of(client, f"/flows?{query}", 400).text
        error = client.get(f"/flows.json?{query}").json()["error"]
        assert error["kind"] == "UsageError"
        assert part in error["message"]


def test_tags() -> None:
    """They are links to the flows that have them; a filter may have several; any text is one."""
    store = cs.MemoryStore()
    hostile = '"><b>&=#'
    store.create(cs.FlowSnapshot("a", state={}, tags={"tenant": "acme", "x": hostile}))
    store.create(cs.FlowSnapshot("b", state={}, tags={"tenant": "acme"}))
    store.create(cs.FlowSnapshot("c", state={}))
    with client_of(store) as client:

        def listed(page: Parsed) -> set[str]:
            links = [one["href"] or "" for one in page.all("a") if one.get("class") == "id"]
            return {one.removeprefix("/flow?id=") for one in links}

        page = page_of(client, "/flow?id=a")
        links = [one["href"] or "" for one in page.all("a") if one.get("class") == "tag"]
        assert listed(page_of(client, links[0])) == {"a", "b"}
        assert listed(page_of(client, links[1])) == {"a"}
        assert listed(page_of(client, f"{links[0]}&{links[1].partition('?')[2]}")) == {"a"}
        assert client.get("/flow.json?id=a").json()["tags"] == {"tenant": "acme", "x": hostile}


def test_a_flow_with_all_that_belongs_to_it(flows: cs.Store) -> None:
    """State, wait, progress, timeline, parts: on the page, and in its JSON twin."""
    flows.complete_child("approval", "boss", result={"ok": True})
    with client_of(flows) as client:
        page = page_of(client, "/flow?id=order")
        for part in (
            "card declined",
            "SUSPENDED",
            "asked the bank",
            "invoice",
            "all of 2, 1 completed",
            '{"ok": true}',
            "Step 2: 100 processed, 1 failed",
            "version 1",
        ):
            assert part in page.text

        document = client.get("/flow.json?id=order").json()
        assert document["state"] == {"paid": True, "lines": [{"sku": "a"}]}
        assert [one["child"] for one in document["children"] if one["completed"]] == ["boss"]
        assert len(document["timeline"]) == 3
        assert document["progress"][0]["failed"] == 1
        part = client.get("/part.json?id=order&name=invoice").json()
        assert part["body"] == {"base64": "JVBERg=="}
        assert "4 bytes: 25 50 44 46" in page_of(client, "/part?id=order&name=invoice").text
        assert page_of(client, "/part?id=order&name=x", 404)


def test_the_difference_between_versions(flows: cs.Store) -> None:
    """Line by line of their JSON."""
    with client_of(flows) as client:
        text = page_of(client, "/flow?id=order&from=1&to=2").text
        assert '- "paid": false' in text
        assert '+ "paid": true' in text
        assert "are identical" in page_of(client, "/flow?id=order&from=2&to=2").text
        assert page_of(client, "/flow?id=order&from=1&to=9", 404)
        assert page_of(client, "/flow?id=order&from=0&to=1", 400)


def test_a_long_history_is_paged(clock: ManualClock) -> None:
    """The newest versions and log entries first, with a link to earlier versions."""
    store = cs.MemoryStore(clock=clock, history=200)
    flow = cs.FlowSnapshot("f", state={"n": 0})
    store.create(flow)
    for number in range(1, 120):
        flow.state["n"] = number
        store.update(flow)
        store.append("f", number)

    with client_of(store) as client:
        address, seen = "/flow?id=f", []
        while address:
            seen += [
                one["version"]
                for one in client.get(address.replace("/flow?", "/flow.json?")).json()["timeline"]
                if "sequence" not in one
            ]
            page = page_of(client, address)
            assert "the last 50 entries" in page.text
            links = [
                one["href"] or ""
                for one in page.all("a")
                if "&before=" in (one["href"] or "") and ".json" not in (one["href"] or "")
            ]
            address = links[0].partition("#")[0] if links else ""

        assert seen == list(range(120, 0, -1))


def test_a_child_leads_to_its_parent() -> None:
    """By the wait condition that it reports its end to."""
    store = cs.MemoryStore()
    store.set_wait_condition(cs.WaitCondition("w", flow_ids=["child"], parent_flow_id="parent"))
    store.create(cs.FlowSnapshot("child", state={}, reports_to="w"))
    with client_of(store) as client:
        links = [one["href"] for one in page_of(client, "/flow?id=child").all("a")]
        assert "/wait?id=w" in links
        links = [one["href"] for one in page_of(client, "/wait?id=w").all("a")]
        assert {"/flow?id=parent", "/flow?id=child"} <= set(links)


def test_a_flow_that_is_not_there() -> None:
    """404, with the reasons that are possible."""
    with client_of(cs.MemoryStore()) as client:
        assert "never created" in page_of(client, "/flow?id=x", 404).text
        assert client.get("/flow.json?id=x").json()["error"]["kind"] == "FlowNotFoundError"
        assert client.get("/flow.json?id=").status_code == 400


def test_actions_on_one_flow(clock: ManualClock) -> None:
    """Each is offered where it can be done, and done to the version that was seen only."""
    store = cs.MemoryStore(clock=clock)
    store.create(cs.FlowSnapshot("f", state={}, due_at=None))

    def offered() -> set[str]:
        page = page_of(client, "/flow?id=f")
        actions = {(one["action"] or "").partition("?")[0] for one in page.all("form")}
        return {one.removeprefix("/flow/") for one in actions}

    with client_of(store, write=True) as client:
        assert offered() == {"retry", "wake", "cancel", "fork"}
        done = submit(client, "/flow?id=f", "/flow/wake?id=f", version="1")
        assert done.headers["location"] == "/flow?id=f&note=woken"
        store.claim("f", owner="w-1")
        assert offered() == {"release", "cancel", "fork"}
        stale = submit(client, "/flow?id=f", "/flow/cancel?id=f", version="2", reason="why")
        assert stale.status_code == 409
        assert submit(client, "/flow?id=f", "/flow/wake?id=f").status_code == 409
        submit(client, "/flow?id=f", "/flow/release?id=f")
        assert store.get_one("f").owner is None
        assert submit(client, "/flow?id=f", "/flow/cancel?id=f").status_code == 400
        submit(client, "/flow?id=f", "/flow/cancel?id=f", reason="ordered twice")
        assert offered() == {"retry", "fork"}
        assert "ordered twice" in page_of(client, "/flow?id=f").text
        submit(client, "/flow?id=f", "/flow/retry?id=f")

    assert store.get_one("f").status is cs.FlowStatus.RUNNING


def test_complete_a_child(flows: cs.Store) -> None:
    """By its form: once, then it is a duplicate; not for a child that is not waited for."""
    with client_of(flows, write=True) as client:
        action = "/wait/complete?wait=approval&child=boss&flow=order"
        done = submit(client, "/flow?id=order", action, result='{"ok": 1}')
        assert done.headers["location"] == "/flow?id=order&note=completed"
        again = submit(client, "/flow?id=order", action)
        assert again.headers["location"].endswith("note=duplicate")
        wrong = submit(client, "/flow?id=order", "/wait/complete?wait=approval&child=x")
        assert wrong.status_code == 409
        assert "is not waiting for &#39;x&#39;" in wrong.text
        bad = submit(client, "/flow?id=order", action.replace("boss", "cfo"), result="{")
        assert bad.status_code == 400
        failed = submit(client, "/flow?id=order", action.replace("boss", "cfo"), error="no money")
        assert failed.status_code == 303

    wait = flows.get_wait_condition("approval")
    assert wait is not None
    assert wait.results["boss"] == cs.ChildResult(success=True, result={"ok": 1})
    assert wait.results["cfo"] == cs.ChildResult(success=False, error="no money")


def test_waits(flows: cs.Store, clock: ManualClock) -> None:
    """The listing by outcome, parent and deadline; the page of one, where it can be completed."""
    clock.advance(timedelta(minutes=1))
    flows.set_wait_condition(cs.WaitCondition("webhook", flow_ids=["w"]))
    with client_of(flows, write=True) as client:
        assert "webhook" in page_of(client, "/waits").text

        def listed(query: str) -> list[str]:
            document = client.get(f"/waits.json?{query}").json()
            assert page_of(client, f"/waits?{query}")
            return [one["correlation_id"] for one in document["wait_conditions"]]

        assert listed("outcome=pending") == ["webhook", "approval"]
        assert listed("parent=order") == ["approval"]
        assert listed("overdue=1") == []
        clock.advance(timedelta(days=2))
        assert listed("overdue=1") == ["approval"]
        page = page_of(client, "/wait?id=webhook")
        (action,) = [one["action"] or "" for one in page.all("form")]
        done = submit(client, "/wait?id=webhook", action)
        assert done.headers["location"] == "/wait?id=webhook&note=completed"
        assert listed("outcome=satisfied") == ["webhook"]
        assert client.get("/wait.json?id=webhook").json()["children"][0]["success"] is True
        assert page_of(client, "/wait?id=x", 404)


def test_edit_with_a_conflict(flows: cs.Store) -> None:
    """A state that another caller has changed meanwhile is not overwritten; the form shows what differs."""
    with client_of(flows, write=True) as client:
        version = page_of(client, "/flow/edit?id=order").field("version")
        order = flows.get_one("order")
        order.state["total"] = 80
        flows.update(order)
        mine = json.dumps({"paid": "by me"})
        refused = submit(
            client, "/flow?id=order", "/flow/edit?id=order", version=version, state=mine
        )
        assert refused.status_code == 409
        assert "another caller has written the flow" in refused.text
        assert "by me" in refused.text
        assert flows.get_one("order").state["total"] == 80
        again = submit(client, "/flow?id=order", "/flow/edit?id=order", version="3", state=mine)
        assert again.status_code == 303

    assert flows.get_one("order").state == {"paid": "by me"}


@pytest.mark.parametrize("state", ["{", "", "NaN", "[1,]"])
def test_what_is_not_json_is_not_written(flows: cs.Store, state: str) -> None:
    """The text stays in the form."""
    with client_of(flows, write=True) as client:
        refused = submit(client, "/flow?id=order", "/flow/edit?id=order", version="2", state=state)
        assert refused.status_code == 400

    assert flows.get_one("order").version == 2


def test_an_edited_state_keeps_its_type() -> None:
    """The type of the state, and all but the state, stay as they are."""
    store = cs.MemoryStore()
    order = cs.FlowSnapshot("f", state={"n": 1}, state_type=None, status=cs.FlowStatus.FAILED)
    store.create(order)
    with client_of(store, write=True) as client:
        submit(
            client, "/flow?id=f", "/flow/edit?id=f", version="1", state="[1.5, null, 12345678901]"
        )

    flow = store.get_one("f")
    assert (flow.state, flow.status) == ([1.5, None, 12345678901], cs.FlowStatus.FAILED)


def test_fork_from_a_version(flows: cs.Store) -> None:
    """The fork has the state of that version; a taken id is a conflict."""
    with client_of(flows, write=True) as client:
        done = submit(client, "/flow?id=order", "/flow/fork?id=order", new_id="again", version="1")
        assert done.headers["location"] == "/flow?id=again&note=forked"
        taken = submit(client, "/flow?id=order", "/flow/fork?id=order", new_id="again")
        assert taken.status_code == 409

    assert flows.get_one("again").state["paid"] is False


def test_actions_by_json(flows: cs.Store) -> None:
    """With the token as `Bearer` and a JSON body, an action returns what it did."""
    with TestClient(console.app(flows, token=TOKEN, write=True)) as client:
        client.headers["Authorization"] = f"Bearer {TOKEN}"
        done = client.post(
            "/flow/edit.json?id=order", json={"version": 2, "state": {"paid": None}}
        ).json()
        assert done["version"] == 3
        stale = client.post("/flow/edit.json?id=order", json={"version": 2, "state": {}})
        assert (stale.status_code, stale.json()["error"]["kind"]) == (409, "StaleFlowError")
        done = client.post("/wait/complete.json?wait=approval&child=boss", json={"result": [1]})
        assert done.json()["accepted"] is True

    assert flows.get_one("order").state == {"paid": None}


def test_redacted_bodies(flows: cs.Store) -> None:
    """What `redact` hides is in no page and no JSON, and cannot be edited."""

    def redact(_type_name: str, body: object) -> object:
        if isinstance(body, dict):
            for key in {"paid", "ok", "event"} & body.keys():
                body[key] = "***"  # in place: the console passes a copy

        return "(bytes)" if isinstance(body, bytes) else body

    flows.complete_child("approval", "boss", result={"ok": "hunter2"})
    order = flows.get_one("order")
    order.state["paid"] = "hunter2"
    flows.update(order)
    flows.append("order", {"event": "hunter2"})
    with client_of(flows, write=True, redact=redact) as client:
        for address in (
            "/flow?id=order",
            "/flow.json?id=order",
            "/flow?id=order&from=2&to=3",
            "/part.json?id=order&name=invoice",
            "/flow/edit?id=order",
        ):
            assert "hunter2" not in client.get(address).text

        assert "cannot be edited here" in page_of(client, "/flow/edit?id=order", 400).text
        assert client.get("/part.json?id=order&name=invoice").json()["body"] == "(bytes)"


def test_a_redact_function_that_fails(flows: cs.Store, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing is shown then, and the log does not show it either."""

    def redact(_type_name: str, body: object) -> object:
        raise ValueError(body)

    with client_of(flows, redact=redact) as client:
        text = page_of(client, "/flow?id=order").text
        assert "(not shown, because the redact function failed)" in text
        assert "lines" not in text

    assert "redact function raised ValueError" in caplog.text
    assert "sku" not in caplog.text


def test_large_states_are_cut() -> None:
    """A page holds at most so many values, levels and characters of a state; its JSON holds all."""
    deep: object = "end"
    for _ in range(60):
        deep = [deep]

    state = {"many": list(range(100_000)), "deep": deep, "long": "x" * 100_000}
    store = cs.MemoryStore()
    store.create(cs.FlowSnapshot("f", state=state))
    with client_of(store) as client:
        text = client.get("/flow?id=f").text
        assert len(text) < 500_000
        assert "more are not shown" in text
        assert client.get("/flow.json?id=f").json()["state"] == state

    assert difference(list(range(30_000)), []) is None
    assert tree("x" * 3000).text.endswith("(3,002 characters)")


def test_the_status_of_an_error() -> None:
    """A store that is closed says so."""
    store = cs.MemoryStore()
    with client_of(store) as client:
        store.close()
        assert "has been closed" in page_of(client, "/flows", 400).text


@pytest.mark.anyio
async def test_an_async_store(anyio_backend: str) -> None:
    """The console awaits its operations, on its event loop."""
    import httpx2 as httpx  # noqa: PLC0415  the only test that speaks ASGI itself

    async with cs.AsyncMemoryStore() as store:
        await store.create(cs.FlowSnapshot("f", state={"n": 1}))
        transport = httpx.ASGITransport(console.app(store, token=TOKEN))
        headers = {"Authorization": f"Bearer {TOKEN}"}
        async with httpx.AsyncClient(
            transport=transport, base_url="http://c.test", headers=headers
        ) as client:
            assert (await client.get("/flow.json?id=f")).json()["state"] == {"n": 1}
            assert "CREATED" in (await client.get("/flow?id=f")).text

"""Tags in the console, of one flow and of many; edited states are checked against their classes."""

from __future__ import annotations

import json
from html import escape

import pytest
from attrs import define
from damaged import seed
from pages import TOKEN
from pages import client_of
from pages import page_of
from pages import submit
from starlette.testclient import TestClient

import catga_store as cs
from catga_store import console


@cs.flow_state("checked-order", version=2, upcasters={1: lambda data: {"total": 0, **data}})
@define
class Order:
    """A state."""

    total: int
    paid: bool = False


@pytest.fixture
def store() -> cs.Store:
    """Three flows, two of them of one team."""
    store = cs.MemoryStore()
    for number in range(3):
        tags = {"team": "a", "hold": ""} if number else {"team": "b"}
        store.create(cs.FlowSnapshot(f"f{number}", state={"n": number}, tags=tags))

    return store


# --- many flows -----------------------------------------------------------------------------------


def test_many_flows_are_tagged_after_a_dry_run(store: cs.Store) -> None:
    """Tags to set and keys to remove are lines; what the dry run has counted is changed."""
    fields = {"operation": "tag", "tags": "team=c d\r\nnote=\r\n", "remove": "hold\r\n"}
    with client_of(store, write=True) as client:
        plan = submit(client, "/flows?tag=team%3Da", "/bulk?tag=team%3Da", **fields)
        assert "2 of 2 flows would be changed" in plan.text
        assert "team=c d" in plan.text
        assert store.count_flows(tags={"team": "a"}) == 2
        done = submit(client, "/flows?tag=team%3Da", "/bulk/run?tag=team%3Da", **fields, left="2")
        assert "2 flows were changed" in done.text

    assert store.get_one("f1").tags == {"team": "c d", "note": ""}
    assert store.get_one("f0").tags == {"team": "b"}


def test_the_page_of_the_dry_run_sends_the_tags_again(store: cs.Store) -> None:
    """As they were typed, whatever is in them."""
    with client_of(store, write=True) as client:
        fields = {"operation": "tag", "tags": "team=<b>&\n", "remove": "</textarea>\n"}
        plan = submit(client, "/flows?tag=team%3Da", "/bulk?tag=team%3Da", **fields)
        assert "team=&lt;b&gt;&amp;\n" in plan.text
        assert "&lt;/textarea&gt;\n" in plan.text


def test_many_flows_are_tagged_by_json(store: cs.Store) -> None:
    """An object of what is set, and a list of what is removed."""
    with TestClient(console.app(store, token=TOKEN, write=True)) as client:
        client.headers["Authorization"] = f"Bearer {TOKEN}"
        order = {"operation": "tag", "tags": {"team": "c"}, "remove": ["hold"], "left": "9"}
        planned = client.post("/bulk.json?tag=team%3Da", json=order).json()
        assert (planned["changed"], planned["dry_run"]) == (2, True)
        assert client.post("/bulk/run.json?tag=team%3Da", json=order).json()["changed"] == 2

    assert store.get_one("f2").tags == {"team": "c"}


@pytest.mark.parametrize(
    ("fields", "part"),
    [
        ({}, "no tags given"),
        ({"tags": "team"}, "expected KEY=VALUE"),
        ({"tags": "team=c", "remove": "team"}, "cannot be both set and removed"),
    ],
)
def test_wrong_tags_are_refused(store: cs.Store, fields: dict[str, str], part: str) -> None:
    """Before anything is read."""
    with client_of(store, write=True) as client:
        refused = submit(
            client, "/flows?tag=team%3Da", "/bulk?tag=team%3Da", operation="tag", **fields
        )
        assert refused.status_code == 400
        assert part in refused.text


# --- one flow -------------------------------------------------------------------------------------


def test_the_tags_of_a_flow_are_edited(store: cs.Store) -> None:
    """The form has them one a line; what is not in it any more is removed. Only with `write`."""
    with client_of(store, write=True) as client:
        assert "/flow/tags?id=f1" in client.get("/flow?id=f1").text
        form = client.get("/flow/tags?id=f1").text
        assert "hold=\nteam=a\n" in form
        version = page_of(client, "/flow/tags?id=f1").field("version")
        done = submit(
            client, "/flow?id=f1", "/flow/tags?id=f1", version=version, tags="team=z\r\nx=1=2\r\n"
        )
        assert done.headers["location"] == "/flow?id=f1&note=tagged"

    flow = store.get_one("f1")
    assert (flow.tags, flow.state, flow.version) == ({"team": "z", "x": "1=2"}, {"n": 1}, 2)
    with client_of(store) as client:
        assert "/flow/tags" not in client.get("/flow?id=f1").text


def test_tags_that_others_have_changed_are_not_written_over(store: cs.Store) -> None:
    """The text stays, beside what is stored now; so it does for tags that no flow can have."""
    with client_of(store, write=True) as client:
        store.bulk(ids=["f1"]).tag({"team": "theirs"})
        refused = submit(client, "/flow?id=f1", "/flow/tags?id=f1", version="1", tags="team=mine\n")
        assert refused.status_code == 409
        assert "team=mine" in refused.text
        assert "team=theirs" in refused.text
        long = "k" * 65 + "=v"
        refused = submit(client, "/flow?id=f1", "/flow/tags?id=f1", version="2", tags=long)
        assert (refused.status_code, long in refused.text) == (400, True)
        store.claim("f1", owner="worker-1")
        refused = submit(client, "/flow?id=f1", "/flow/tags?id=f1", version="3", tags="team=mine\n")
        assert (refused.status_code, "team=mine" in refused.text) == (409, True)

    assert store.get_one("f1").tags["team"] == "theirs"


# --- states and their classes -----------------------------------------------------------------------


def test_an_edited_state_that_its_class_does_not_take_is_refused() -> None:
    """With the field; the text stays in the form. One that fits is written."""
    store = cs.MemoryStore()
    store.create(cs.FlowSnapshot("f", state=Order(5)))
    address = "/flow/edit?id=f"
    with client_of(store, write=True, types=[Order]) as client:
        assert "checked against the class" in client.get(address).text
        for state, field in (
            ({"total": "many", "paid": False}, "total"),
            ({"total": 5, "paid": "maybe"}, "paid"),
            ({"paid": True}, "total"),
            ({"total": 1, "paid": True, "colour": "red"}, "colour"),
        ):
            text = json.dumps(state)
            refused = submit(client, "/flow?id=f", address, version="1", state=text)
            assert refused.status_code == 400
            assert field in page_error(refused.text)
            assert escape(text).replace("&quot;", "&#34;") in refused.text

        assert store.get_one("f").version == 1
        done = submit(
            client, "/flow?id=f", address, version="1", state='{"total": 6, "paid": true}'
        )
        assert done.status_code == 303

    assert store.get_one("f", state_type=Order).state == Order(6, paid=True)


def page_error(text: str) -> str:
    """The alert of a page."""
    return text.partition('role="alert">')[2].partition("</p>")[0]


def test_a_state_whose_class_is_not_known_is_written_and_the_page_says_so() -> None:
    """As it was typed."""
    store = cs.MemoryStore()
    store.create(cs.FlowSnapshot("f", state=Order(5)))
    store.create(cs.FlowSnapshot("plain", state={"n": 1}))
    with client_of(store, write=True) as client:
        assert "does not know the class of" in client.get("/flow/edit?id=f").text
        assert "there is no class to check" in client.get("/flow/edit?id=plain").text
        done = submit(client, "/flow?id=f", "/flow/edit?id=f", version="1", state='{"total": "x"}')
        assert done.status_code == 303


def test_types_without_a_name_are_refused() -> None:
    """No state is stored under them."""
    for wrong in (5, None):
        with pytest.raises(cs.UsageError):
            console.app(cs.MemoryStore(), types=[wrong])


# --- records that cannot be read --------------------------------------------------------------------


def test_records_that_cannot_be_read_are_rows_of_pages(tmp_path: object) -> None:
    """Of flows, waits, the overview and a flow with such progress; as JSON, too."""
    url = f"sqlite:///{tmp_path}/flows.db"
    seed(url)
    with cs.open_store(url) as store, client_of(store) as client:
        for address, unread in (
            ("/waits", {"wait-head", "wait-status", "wait-children"}),
            ("/flows", {"flow-head", "flow-status"}),
        ):
            text = page_of(client, address).text
            assert text.count("UNREADABLE") == len(unread)
            document = client.get(f"{address}.json").json()
            (rows,) = [rows for name, rows in document.items() if name != "cursor"]
            named = {
                one.get("flow_id") or one["correlation_id"] for one in rows if "unreadable" in one
            }
            assert named == unread

        attention = page_of(client, "/").text
        assert all(one in attention for one in ("wait-head", "flow-status", "flow-body"))
        page = page_of(client, "/flow?id=step-head").text
        assert "Step 0 cannot be read:" in page
        steps = client.get("/flow.json?id=step-head").json()["progress"]
        assert {one["step"] for one in steps if "unreadable" in one} == {0}
        assert page_of(client, "/waits?overdue=1").text.count("UNREADABLE") == 2

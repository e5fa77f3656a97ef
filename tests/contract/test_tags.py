"""Tags of flows: what they may be, and that flows are found and claimed by them, on every store."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import attrs
import pytest
import redis
from marks import ONE_STORE
from paging import pages_of

import catga_store as cs
from catga_store.protocol.keys import partition_of
from catga_store.testing.clock import ManualClock

SECOND = timedelta(seconds=1)
STEP = timedelta(seconds=10)
ACME = {"tenant": "acme"}
ODD = {
    "tenant": "",
    ":": "1:a",
    "é\U0001f98a": "\x00\n'\"[]{}",
    "k" * 64: "v" * 256,
    "a.b*>": "=2E",
}

Opener = Callable[..., cs.Store]


@attrs.define
class Order:
    """A state."""

    n: int


def listed(store: cs.Store, **filters: Any) -> list[str]:
    """Return the ids that match, page by page of two; large pages and the count agree."""
    pages = pages_of(store.query_flows, limit=2, **filters)
    ids = [flow.flow_id for page in pages for flow in page]
    assert [flow.flow_id for flow in store.query_flows(limit=1000, **filters)] == ids
    assert store.count_flows(**filters) == len(ids)
    return ids


def due(store: cs.Store, **filters: Any) -> list[str]:
    """Return the ids of what is due or claimed, likewise."""
    pages = pages_of(store.query_due, limit=2, **filters)
    ids = [one.flow.flow_id for page in pages for one in page]
    assert store.count_due(**filters) == len(ids)
    return ids


def add(store: cs.Store, flow_id: str, tags: Mapping[str, str], **fields: Any) -> None:
    """Store a flow with tags."""
    store.create(cs.FlowSnapshot(flow_id, state={}, tags=tags, **fields))


def test_tags_come_back(open_more: Opener) -> None:
    """As an equal mapping, ordered by key, from every read; also after a change of something else."""
    store = open_more(history=3)
    add(store, "f", ODD)
    flow = store.get_one("f")
    assert flow.tags == ODD
    assert list(flow.tags) == sorted(ODD)
    assert flow.tags["tenant"] == ""
    flow.state = {"n": 1}
    store.update(flow)
    (summary,) = store.query_flows()
    assert summary.tags == ODD
    claimed = store.claim("f")
    assert claimed.tags == ODD
    claimed.tags = ACME
    store.update(claimed)
    assert store.get_one("f").tags == ACME
    former = store.get("f", version=2)
    assert former is not None
    assert former.tags == ODD
    store.create(cs.FlowSnapshot("plain", state={}))
    assert store.get_one("plain").tags == {}


def test_flows_are_found_by_their_tags(store: cs.Store, clock: ManualClock) -> None:
    """By one tag or several, newest first; every change of tags and status moves them."""
    for number in range(7):
        tags = {"tenant": "acme" if number % 2 else "other", "n": str(number % 3)}
        add(store, f"f-{number}", tags if number else {**tags, **ODD}, due_at=None)
        clock.advance(SECOND * (number % 3))

    assert listed(store, tags=ACME) == ["f-5", "f-3", "f-1"]
    assert listed(store, tags={"n": "0", "tenant": "other"}) == ["f-6"]
    assert listed(store, tags={"tenant": "", ":": "1:a"}) == ["f-0"]
    assert listed(store, tags={"tenant": "acm"}) == []
    assert listed(store, tags={"acme": "tenant"}) == []
    assert listed(store, tags={}) == listed(store)
    flow = store.get_one("f-3")
    flow.status = cs.FlowStatus.FAILED
    flow.tags = {**flow.tags, "new": "1"}
    store.update(flow)
    assert listed(store, tags=ACME, status=cs.FlowStatus.FAILED) == ["f-3"]
    assert listed(store, tags=ACME, status=cs.FlowStatus.CREATED) == ["f-5", "f-1"]
    assert listed(store, tags={"new": "1"}) == ["f-3"]
    flow.tags = {"new": "1"}
    store.update(flow)
    assert listed(store, tags=ACME) == ["f-5", "f-1"]
    assert listed(store, tags={"n": "0"}) == ["f-6", "f-0"]
    flow.tags = {}
    store.update(flow)
    assert listed(store, tags={"new": "1"}) == []
    assert store.delete_many(["f-5", "f-6"]) == 2
    assert listed(store, tags=ACME) == ["f-1"]
    assert listed(store, tags={"n": "0"}) == ["f-0"]


def test_tags_are_combined_with_other_filters(store: cs.Store, clock: ManualClock) -> None:
    """Type, times, a prefix of the id, owner and error restrict what a tag selects."""
    start = clock.now
    for number in range(6):
        state: Any = Order(number) if number % 2 else {}
        flow = cs.FlowSnapshot(f"{'ab'[number // 3]}-{number}", state=state, tags=ACME)
        store.create(flow)
        store.create(cs.FlowSnapshot(f"{'ab'[number // 3]}-x{number}", state=state))
        clock.advance(SECOND)

    assert listed(store, tags=ACME, state_type=Order) == ["b-5", "b-3", "a-1"]
    between = {"created_after": start + SECOND, "created_before": start + 4 * SECOND}
    assert listed(store, tags=ACME, **between) == ["b-3", "a-2", "a-1"]
    assert listed(store, tags=ACME, id_prefix="a-") == ["a-0", "a-1", "a-2"]
    store.claim("b-4", owner="w-1")
    assert listed(store, tags=ACME, owner="w-1") == ["b-4"]
    assert listed(store, tags=ACME, updated_after=clock.now) == ["b-4"]
    assert listed(store, tags={"no": "one"}, owner="w-1") == []


def test_claims_take_flows_with_these_tags(store: cs.Store, clock: ManualClock) -> None:
    """The oldest due come first; nothing else is claimed, and every write moves what is due."""
    for number in range(6):
        add(store, f"f-{number}", {"tenant": "acme" if number % 2 else "other"})
        clock.advance(SECOND)

    with store.begin() as session:
        for number in range(30):  # more than a claim looks at
            session.add(cs.FlowSnapshot(f"x-{number}", state={}, due_at=clock.now - STEP))

    both = {"tenant": "acme", "more": "1"}
    add(store, "both", both)
    assert due(store, tags=ACME) == ["f-1", "f-3", "f-5", "both"]
    assert [flow.flow_id for flow in store.claim_due(tags=both, limit=9)] == ["both"]
    assert store.claim_due(tags={"tenant": "nobody"}) == []
    claimed = store.claim_due(tags=ACME, limit=9, lease=STEP)
    assert sorted(flow.flow_id for flow in claimed) == ["f-1", "f-3", "f-5"]
    assert store.claim_due(tags=ACME) == []
    assert not store.wait_due(tags=ACME, timeout=timedelta(0))
    assert store.wait_due(tags={"tenant": "other"}, timeout=timedelta(0))
    assert due(store, tags=ACME, only="claimed") == ["f-1", "f-3", "f-5", "both"]
    flow = next(one for one in claimed if one.flow_id == "f-3")
    flow.tags = {"tenant": "other"}
    store.update(flow)
    clock.advance(STEP)
    assert due(store, tags=ACME, only="expired") == ["f-1", "f-5"]
    again = store.claim_due(tags=ACME, limit=9)
    assert sorted(one.flow_id for one in again) == ["f-1", "f-5"]
    others = store.claim_due(tags={"tenant": "other"}, limit=9)
    assert sorted(one.flow_id for one in others) == ["f-0", "f-2", "f-3", "f-4"]


def test_claims_by_tag_and_type(store: cs.Store) -> None:
    """Both are asked for."""
    store.create(cs.FlowSnapshot("order", state=Order(1), tags=ACME))
    store.create(cs.FlowSnapshot("plain", state={"n": 2}, tags=ACME))
    store.create(cs.FlowSnapshot("other", state=Order(3), tags={"tenant": "other"}))
    assert [flow.flow_id for flow in store.claim_due("Order", tags=ACME, limit=9)] == ["order"]
    assert [flow.flow_id for flow in store.claim_due(tags=ACME, limit=9)] == ["plain"]
    assert [flow.flow_id for flow in store.claim_due(cs.RAW, limit=9)] == ["other"]


def test_an_ended_wait_calls_for_a_claimer_with_its_tags(
    store: cs.Store, clock: ManualClock
) -> None:
    """A parent is claimed by who asks for its tags, and no claimer of other tags touches its wait."""
    others = [f"b-{number:02}" for number in range(20)]
    with store.begin() as session:
        for flow_id in (*others, "a"):
            tags = {"tenant": "acme" if flow_id == "a" else "other"}
            flow = cs.FlowSnapshot(flow_id, state={}, tags=tags)
            session.add(flow)
            session.suspend(flow, cs.WaitCondition(f"wait {flow_id}", flow_ids=["x"]))

    for flow_id in others:
        store.complete_child(f"wait {flow_id}", "x")

    clock.advance(SECOND)
    store.complete_child("wait a", "x")
    assert store.claim_due(tags={"tenant": "none"}) == []
    (flow,) = store.claim_due(tags=ACME)
    assert flow.flow_id == "a"
    assert flow.wait_condition is not None
    assert flow.wait_condition.outcome is cs.WaitOutcome.SATISFIED
    assert store.claim_due(tags=ACME, limit=9) == []
    assert len(store.claim_due(tags={"tenant": "other"}, limit=50)) == 20


def test_a_session_claims_by_tags(store: cs.Store) -> None:
    """As its store does; a commit may change the tags of several flows."""
    add(store, "a", ACME)
    add(store, "b", {})
    with store.begin() as session:
        (flow,) = session.claim_due(tags=ACME, limit=9)
        assert flow.flow_id == "a"
        flow.tags = {"tenant": "other"}
        other = session.get_one("b")
        other.tags = {"tenant": "other"}
        assert {one.flow_id for one in session.dirty} == {"a", "b"}

    assert listed(store, tags={"tenant": "other"}) == ["a", "b"]
    assert listed(store, tags=ACME) == []


def test_a_claim_waits_for_flows_with_these_tags(store: cs.Store) -> None:
    """A call that waits returns nothing when only others become due."""
    add(store, "b", {})
    assert store.claim_due(tags=ACME, wait=timedelta(milliseconds=5)) == []
    add(store, "a", ACME)
    (flow,) = store.claim_due(tags=ACME, wait=timedelta(seconds=30))
    assert flow.flow_id == "a"


def test_a_fork_has_the_tags_of_its_version(open_more: Opener) -> None:
    """And is found by them."""
    store = open_more(history=3)
    add(store, "f", ACME)
    flow = store.get_one("f")
    flow.tags = {"tenant": "other"}
    store.update(flow)
    assert store.fork("f", "now").tags == {"tenant": "other"}
    assert store.fork("f", "then", version=1).tags == ACME
    assert listed(store, tags=ACME) == ["then"]
    assert listed(store, tags={"tenant": "other"}) == ["f", "now"]


def test_a_copy_has_tags(store: cs.Store, tmp_path: Path, clock: ManualClock) -> None:
    """They are copied, and are a difference that is copied over."""
    add(store, "a", ACME)
    add(store, "b", ODD)
    with cs.SQLiteStore(tmp_path / "copy.db", clock=clock) as other:
        assert cs.copy(store, other).flows == 2
        assert listed(other, tags=ACME) == ["a"]
        assert other.get_one("b").tags == ODD
        flow = store.get_one("a")
        flow.tags = {"tenant": "other"}
        store.update(flow)
        cs.copy(store, other, overwrite=True)
        assert listed(other, tags=ACME) == []
        assert listed(other, tags={"tenant": "other"}) == ["a"]


def test_expired_flows_leave_no_tags(open_more: Opener, clock: ManualClock) -> None:
    """A flow that has expired is in no listing, swept or not, nor is it when its id comes again."""
    store = open_more(retention=cs.Retention(flows=SECOND, failed=None))
    add(store, "f", ACME, status=cs.FlowStatus.COMPLETED)
    add(store, "g", ACME, expires_at=clock.now + SECOND)
    add(store, "h", ACME, status=cs.FlowStatus.COMPLETED)
    assert listed(store, tags=ACME) == ["f", "g", "h"]
    clock.advance(SECOND)
    assert listed(store, tags=ACME) == []
    assert due(store, tags=ACME) == []
    assert store.claim_due(tags=ACME) == []
    add(store, "h", {"tenant": "other"})
    store.sweep()
    assert listed(store, tags=ACME) == []
    assert listed(store, tags={"tenant": "other"}) == ["h"]
    add(store, "f", {})
    assert listed(store, tags=ACME) == []


def test_tags_in_partitions(open_more: Opener) -> None:
    """Flows of one tag are found in all partitions, in order."""
    store = open_more(partitions=4)
    ids = [f"f-{number}" for number in range(20)]
    for flow_id in ids:
        add(store, flow_id, ACME)

    assert len({partition_of(flow_id, 4) for flow_id in ids}) > 1
    assert listed(store, tags=ACME) == sorted(ids)
    assert due(store, tags=ACME) == sorted(ids)
    assert len(store.claim_due(tags=ACME, limit=50)) == 20


def test_a_commit_of_200_flows_with_16_tags(store: cs.Store) -> None:
    """The most that a commit can change, with the most tags: more entries than a batch of NATS has."""
    tags = {f"key {number}": f"value {number}" for number in range(16)}
    with store.begin() as session:
        for number in range(200):
            session.add(cs.FlowSnapshot(f"f-{number:03}", state={}, tags=tags))

    ids = [f"f-{number:03}" for number in range(200)]
    assert [flow.flow_id for flow in store.iter_flows(tags={"key 7": "value 7"})] == ids
    assert len(store.claim_due(tags={"key 15": "value 15"}, limit=200)) == 200
    assert store.stats().claimed == 200
    assert store.delete_many(ids) == 200
    assert listed(store, tags={"key 0": "value 0"}) == []


WRONG: list[tuple[Any, str]] = [
    ("tenant", "tags: expected a mapping of str to str, got 'tenant'"),
    ([("a", "b")], "tags: expected a mapping"),
    (None, "tags: expected a mapping"),
    ({5: "x"}, "key in tags: expected a str, got 5"),
    ({"a": 5}, "tags['a']: expected a str, got 5"),
    ({"": "x"}, "key in tags: expected 1 to 64 UTF-8 bytes, got 0"),
    ({"ü" * 33: "x"}, "key in tags: expected 1 to 64 UTF-8 bytes, got 66"),
    ({"a": "ü" * 129}, "tags['a']: expected 0 to 256 UTF-8 bytes, got 258"),
    ({str(number): "" for number in range(17)}, "tags: expected at most 16 entries, got 17"),
    ({"a": "\ud800"}, "tags['a'] cannot be encoded"),
    ({"\udfff": "x"}, "key in tags cannot be encoded"),
]


@ONE_STORE
@pytest.mark.parametrize(("wrong", "says"), WRONG)
def test_wrong_tags_are_refused(store: cs.Store, wrong: Any, says: str) -> None:
    """When they are set, and in filters, where None is no filter; the flow keeps what it had."""
    with pytest.raises(cs.UsageError) as raised:
        cs.FlowSnapshot("f", state={}, tags=wrong)

    assert says in str(raised.value)
    flow = cs.FlowSnapshot("f", state={}, tags=ACME)
    with pytest.raises(cs.UsageError):
        flow.tags = wrong

    assert flow.tags == ACME
    if wrong is None:
        return

    for call in (store.query_flows, store.count_flows, store.query_due, store.claim_due):
        with pytest.raises(cs.UsageError) as raised:
            call(tags=wrong)

        assert says in str(raised.value)


@ONE_STORE
def test_tags_do_not_change_in_place(store: cs.Store) -> None:
    """They are a mapping without setters, so no change can be lost; copies are equal."""
    add(store, "f", {"b": "2", "a": "1"})
    flow = store.get_one("f")
    with pytest.raises(TypeError):
        flow.tags["a"] = "2"  # type: ignore[index]

    (summary,) = store.query_flows()
    assert hash(summary) == hash(next(iter(store.iter_flows())))
    for tags in (pickle.loads(pickle.dumps(flow)).tags, copy.deepcopy(flow).tags, summary.tags):
        assert tags == {"a": "1", "b": "2"}
        assert repr(tags) == "{'a': '1', 'b': '2'}"

    given = {"a": "1"}
    flow.tags = given
    given["a"] = "changed"
    assert flow.tags == {"a": "1"}


@ONE_STORE
def test_a_cursor_belongs_to_its_tags(store: cs.Store) -> None:
    """A page by tags has a cursor of its own."""
    add(store, "a", ACME)
    add(store, "b", ACME)
    cursor = store.query_flows(limit=1, tags=ACME).cursor
    assert cursor is not None
    assert [one.flow_id for one in store.query_flows(tags=ACME, cursor=cursor)] == ["b"]
    for tags in ({}, {"tenant": "other"}, None):
        with pytest.raises(cs.UsageError, match="listing with different filters"):
            store.query_flows(cursor=cursor, tags=tags)


@pytest.mark.stores("redis-8.2")
def test_a_sweep_removes_the_tags_of_what_the_server_has_removed(
    store: cs.Store, store_url: str, clock: ManualClock
) -> None:
    """An ended flow has a time to live on Redis, and its entries in the index have none."""
    add(store, "f", ODD, status=cs.FlowStatus.COMPLETED)
    add(store, "ff", ODD, status=cs.FlowStatus.COMPLETED)
    _, _, prefix = store_url.partition("prefix=")
    place = f"{{{prefix}0}}:"
    with redis.Redis.from_url(store_url.partition("?")[0]) as server:
        assert server.unlink(f"{place}flow:f") == 1
        clock.advance(timedelta(days=8))
        assert store.sweep() == 2
        assert server.zcard(f"{place}index") == 0

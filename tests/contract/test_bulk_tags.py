"""`bulk(…).tag(…)`: the indexes of every store follow."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

import catga_store as cs


def test_flows_are_tagged_and_found_by_their_tags(store: cs.Store) -> None:
    """Other tags stay, those to be removed go, and nothing else changes."""
    for number in range(3):
        flow = cs.FlowSnapshot(f"f{number}", state={"n": number}, tags={"team": "a", "old": "1"})
        store.create(flow)

    before = {one.flow_id: one for one in store.query_flows()}
    report = store.bulk(ids=["f0", "f1"]).tag({"team": "b"}, remove=["old"], per_second=None)
    assert (report.changed, report.skipped) == (2, {})
    assert {one.flow_id for one in store.query_flows(tags={"team": "b"})} == {"f0", "f1"}
    assert [one.flow_id for one in store.query_flows(tags={"old": "1"})] == ["f2"]
    for one in store.query_flows(tags={"team": "b"}):
        assert dict(one.tags) == {"team": "b"}
        assert (one.version, one.due_at) == (2, before[one.flow_id].due_at)

    assert {flow.flow_id for flow in store.claim_due(limit=5, tags={"team": "b"})} == {"f0", "f1"}


def test_a_flow_that_is_held_or_tagged_already_is_skipped(store: cs.Store) -> None:
    """Its worker keeps it."""
    store.create(cs.FlowSnapshot("held", state={}))
    store.create(cs.FlowSnapshot("has", state={}, tags={"team": "b"}, due_at=None))
    store.claim("held", lease=timedelta(hours=1))
    report = store.bulk(everything=True).tag({"team": "b"}, per_second=None)
    assert report.skipped == {"already has these tags": 1, "is claimed": 1}


@pytest.mark.stores("memory")
def test_wrong_tags_are_refused(store: cs.Store) -> None:
    """Before anything is sent."""
    with pytest.raises(cs.UsageError):
        store.bulk(everything=True).tag({"": "x"})

    with pytest.raises(cs.UsageError):
        store.bulk(everything=True).tag({}, remove="team")

    for key in ("", 1, "k" * 65):
        with pytest.raises(cs.UsageError, match="remove"):
            store.bulk(everything=True).tag(remove=[key])

    with pytest.raises(cs.UsageError, match="'team' cannot be both set and removed"):
        store.bulk(everything=True).tag({"team": "b"}, remove=["team"])


@pytest.mark.stores("memory")
def test_a_flow_that_would_have_too_many_tags_is_skipped(store: cs.Store) -> None:
    """In a dry run, too; the others are tagged, also one that has ended."""
    full = {f"k{number}": "" for number in range(16)}
    store.create(cs.FlowSnapshot("full", state={}, tags=full))
    failed = cs.FlowStatus.FAILED
    store.create(cs.FlowSnapshot("ended", state={}, status=failed, error="no", tags={"old": "1"}))
    everything = store.bulk(everything=True)
    for dry_run in (True, False):
        report = everything.tag({"new": "1"}, dry_run=dry_run, per_second=None)
        assert report.first_changed == ("ended",)
        assert report.first_skipped == {"would have more than 16 tags": ("full",)}

    ended = store.get_one("ended")
    assert (ended.status, ended.error, ended.version) == (failed, "no", 2)
    assert ended.tags == {"old": "1", "new": "1"}
    assert store.get_one("full").version == 1
    assert everything.tag({"new": "2"}, remove=["k0"], per_second=None).changed == 2
    del full["k0"]
    assert store.get_one("full").tags == {**full, "new": "2"}


@pytest.mark.stores("memory")
@pytest.mark.parametrize(
    "wrong",
    [
        {},
        "a",
        {"k": None},
        {"k": 1},
        {1: "v"},
        {"k": "v" * 257},
        dict.fromkeys(map(str, range(17)), ""),
    ],
)
def test_tags_that_no_flow_can_have_are_refused(store: cs.Store, wrong: Any) -> None:
    """Before anything is read: also where no flow matches."""
    with pytest.raises(cs.UsageError, match="tag"):
        store.bulk(everything=True).tag(wrong)

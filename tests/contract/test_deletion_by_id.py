"""Deletions by id: `delete_many` of a store and `delete_by_id` in a session."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

import catga_store as cs


def test_delete_many_counts_what_existed(store: cs.Store) -> None:
    """More ids than one commit takes, repeated and absent ones; progress goes with its flow."""
    with store.begin() as session:
        for number in range(100):
            session.add(cs.FlowSnapshot(f"f-{number}", state={}))

    store.create(cs.FlowSnapshot("kept", state={}))
    store.save_for_each_progress("f-7", 1, cs.ForEachProgress([1]))
    ids = [f"f-{number}" for number in range(450)]
    assert store.delete_many([*ids, "f-1"]) == 100
    assert store.delete_many(iter(ids)) == 0
    assert store.delete_many([]) == 0
    assert [flow.flow_id for flow in store.iter_flows()] == ["kept"]
    assert store.get_for_each_progress("f-7", 1) is None


def test_delete_many_in_partitions(open_more: Callable[..., cs.Store]) -> None:
    """Ids of any partitions; each commit stays in one."""
    store = open_more(partitions=16)
    ids = [f"f-{number}" for number in range(40)]
    for flow_id in ids[:20]:
        store.create(cs.FlowSnapshot(flow_id, state={}))

    assert store.delete_many(ids) == 20
    assert store.count_flows() == 0


def test_delete_many_of_a_claimed_flow(store: cs.Store) -> None:
    """Nothing is checked: the claim is lost with its flow."""
    store.create(cs.FlowSnapshot("f", state={}))
    (claimed,) = store.claim_due()
    assert store.delete_many(["f"]) == 1
    with pytest.raises(cs.FlowNotFoundError):
        store.update(claimed)


@pytest.mark.parametrize("ids", ["f", b"f", 1, [""], ["f", None], ["x" * 513]])
def test_delete_many_of_wrong_ids_is_refused(store: cs.Store, ids: Any) -> None:
    """Before anything is deleted."""
    store.create(cs.FlowSnapshot("f", state={}))
    with pytest.raises(cs.UsageError):
        store.delete_many(ids)

    assert store.get("f") is not None


def test_delete_by_id_is_never_a_conflict(store: cs.Store) -> None:
    """It deletes what is stored at the commit, with all the other changes."""
    store.create(cs.FlowSnapshot("f", state={}))
    store.save_for_each_progress("f", 1, cs.ForEachProgress([1]))
    with store.session() as session:
        session.delete_by_id("f")
        session.delete_by_id("nobody")
        session.add(cs.FlowSnapshot("g", state={}))
        store.update(store.get_one("f"))
        receipt = session.commit()

    assert receipt.versions == {
        cs.Key("flow", "f"): 0,
        cs.Key("flow", "nobody"): 0,
        cs.Key("flow", "g"): 1,
    }
    assert store.get("f") is None
    assert store.get_for_each_progress("f", 1) is None


def test_object_of_a_flow_deleted_by_id_leaves_the_session(store: cs.Store) -> None:
    """Its changes are not written, and its progress is absent."""
    store.create(cs.FlowSnapshot("f", state={"n": 1}))
    store.save_for_each_progress("f", 1, cs.ForEachProgress([1]))
    with store.session() as session:
        flow = session.get_one("f")
        flow.state["n"] = 2
        progress = session.get_for_each_progress("f", 1)
        session.delete_by_id("f")
        assert flow not in session
        assert progress not in session
        assert session.get("f") is None
        assert session.get_for_each_progress("f", 1) is None
        session.rollback()
        assert session.get_one("f").state == {"n": 1}


def test_new_flow_in_place_of_one_deleted_by_id_is_refused(store: cs.Store) -> None:
    """It could not tell what it replaces; after the commit it can be added."""
    store.create(cs.FlowSnapshot("f", state={}))
    with store.session() as session:
        session.delete_by_id("f")
        with pytest.raises(cs.UsageError, match=r"deletes flow .* by its id"):
            session.add(cs.FlowSnapshot("f", state={}))

        session.commit()
        session.add(cs.FlowSnapshot("f", state={}))
        assert session.commit().versions == {cs.Key("flow", "f"): 1}


def test_new_flow_that_is_deleted_by_id_is_not_written(store: cs.Store) -> None:
    """Nothing is left of it, nor of what was stored."""
    store.create(cs.FlowSnapshot("f", state={}))
    with store.begin() as session:
        session.add(cs.FlowSnapshot("f", state={"n": 1}))
        session.delete_by_id("f")

    assert store.get("f") is None


def test_check_of_a_flow_deleted_by_id_is_refused(store: cs.Store) -> None:
    """The deletion would not regard what was read."""
    store.create(cs.FlowSnapshot("f", state={}, due_at=store.now() + timedelta(days=1)))
    with store.session() as session:
        session.require_unchanged(session.get_one("f"))
        session.delete_by_id("f")
        with pytest.raises(cs.UsageError, match="written unconditionally"):
            session.commit()


def test_delete_by_id_of_an_invalid_id_is_refused(store: cs.Store) -> None:
    """The session stays as it was."""
    with store.session() as session:
        with pytest.raises(cs.InvalidIdError):
            session.delete_by_id("")

        assert session.commit().versions == {}

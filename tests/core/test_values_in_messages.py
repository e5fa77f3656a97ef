"""A value of the wrong type is refused with an error of this library, even if it cannot be printed.

Python prints no int of more than 4,300 digits, and the `repr` of an object may raise or hold a secret.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC
from datetime import datetime
from datetime import timedelta
from datetime import tzinfo
from typing import Any

import pytest
from marks import EVERY_STORE
from marks import ONE_STORE

import catga_store as cs
from catga_store.protocol.masking import shown

pytestmark = ONE_STORE


class Unprintable:
    """An object whose `repr` raises."""

    def __repr__(self) -> str:
        raise RuntimeError


class Telling:
    """An object whose `repr` holds a secret, as that of a client may."""

    def __repr__(self) -> str:
        return "<Client redis://user:hunter2@host>"


class Broken(tzinfo):
    """A time zone that raises."""

    def utcoffset(self, _moment: datetime | None) -> timedelta:
        raise RuntimeError


Use = Callable[[cs.Store, Any], object]


def setting(record: object, name: str) -> Callable[[Any], None]:
    """Return a function that sets a field."""
    return lambda value: setattr(record, name, value)


USES: dict[str, Use] = {
    "get": lambda store, bad: store.get(bad),
    "create": lambda store, bad: store.create(bad),
    "update": lambda store, bad: store.update(bad),
    "release": lambda store, bad: store.release(bad),
    "add": lambda store, bad: store.session().add(bad),
    "expunge": lambda store, bad: store.session().expunge(bad),
    "refresh": lambda store, bad: store.session().refresh(bad),
    "lease": lambda store, bad: store.claim_due(lease=bad),
    "claims": lambda store, bad: store.claim_due(limit=bad),
    "page": lambda store, bad: store.query_flows(limit=bad),
    "cursor": lambda store, bad: store.query_flows(cursor=bad),
    "status": lambda store, bad: store.query_flows(status=bad),
    "outcome": lambda store, bad: store.query_wait_conditions(outcome=bad),
    "created_after": lambda store, bad: store.count_flows(created_after=bad),
    "ended waits": lambda store, bad: store.get_timed_out_wait_conditions(limit=bad),
    "ended at": lambda store, bad: store.get_timed_out_wait_conditions(bad),
    "progress": lambda store, bad: store.save_for_each_progress("f", 0, bad),
    "overwrite": lambda store, bad: store.save_for_each_progress(
        "f", 0, cs.ForEachProgress(), overwrite=bad
    ),
    "wait": lambda store, bad: store.set_wait_condition(bad),
    "success": lambda store, bad: store.complete_child("w", "x", success=bad),
    "error": lambda store, bad: store.complete_child("w", "x", error=bad),
    "revision": lambda store, bad: store.delete("f", revision=bad),
    "function": lambda store, bad: store.transact(bad),
    "attempts": lambda store, bad: store.transact(lambda _session: None, attempts=bad),
    "resolve_commit": lambda store, bad: store.resolve_commit(bad),
    "sweep": lambda store, bad: store.sweep("x" if type(bad) is int else bad),
    "position": lambda _, bad: setting(cs.FlowSnapshot("f", state={}), "position")(bad),
    "path": lambda _, bad: cs.FlowPosition(bad),
    "advance": lambda _, bad: cs.FlowPosition().advance("x" if type(bad) is int else bad),
    "flow status": lambda _, bad: setting(cs.FlowSnapshot("f", state={}), "status")(bad),
    "flow error": lambda _, bad: setting(cs.FlowSnapshot("f", state={}), "error")(bad),
    "its wait": lambda _, bad: setting(cs.FlowSnapshot("f", state={}), "wait_condition")(bad),
    "due_at": lambda _, bad: setting(cs.FlowSnapshot("f", state={}), "due_at")(bad),
    "its attempts": lambda _, bad: setting(cs.FlowSnapshot("f", state={}), "attempts")(bad),
    "flow_ids": lambda _, bad: cs.WaitCondition("w", flow_ids=bad),
    "timeout": lambda _, bad: cs.WaitCondition("w", flow_ids=["x"], timeout=bad),
    "indices": lambda _, bad: cs.ForEachProgress(bad),
    "merge": lambda _, bad: cs.ForEachProgress().merge(bad),
    "version": lambda _, bad: cs.flow_state("x", version=-bad if type(bad) is int else bad),
    "name": lambda _, bad: cs.flow_state(bad, version=1),
    "upcaster": lambda _, bad: cs.flow_state("x", version=2, upcasters={1: bad}),
    "upcaster key": lambda _, bad: cs.flow_state("x", version=2, upcasters={bad: dict}),
    "replicas": lambda _, bad: cs.RedisStore(acknowledged_by=-bad if type(bad) is int else bad),
    "memory name": lambda _, bad: cs.MemoryStore(bad),
    "retention": lambda _, bad: cs.Retention(flows=bad),
}


@pytest.mark.parametrize("bad", [10**5000, Unprintable(), Telling()], ids=["int", "repr", "secret"])
@pytest.mark.parametrize("use", USES)
def test_value_that_must_not_be_printed_is_refused(store: cs.Store, use: str, bad: object) -> None:
    """The message names its class."""
    if use in {"ended waits", "claims", "page", "attempts"} and type(bad) is int:
        bad = -bad

    with pytest.raises(cs.UsageError) as caught:
        USES[use](store, bad)

    assert "hunter2" not in str(caught.value)


def test_time_zone_that_raises_is_refused(store: cs.Store) -> None:
    """Wherever a datetime is taken."""
    broken = datetime(2030, 1, 1, tzinfo=Broken())
    uses: list[Callable[[], object]] = [
        lambda: cs.FlowSnapshot("f", state={}, due_at=broken),
        lambda: store.count_flows(created_after=broken),
        lambda: store.get_timed_out_wait_conditions(broken),
    ]
    for use in uses:
        with pytest.raises(
            cs.UsageError, match="time zone of a datetime \\(of type Broken\\) cannot be used"
        ):
            use()


@EVERY_STORE
def test_limit_of_any_size_is_taken(store: cs.Store) -> None:
    """Also one that does not fit into 64 bits."""
    assert store.get_timed_out_wait_conditions(datetime(2030, 1, 1, tzinfo=UTC), 2**70) == []
    assert store.sweep(2**70) == 0


@pytest.mark.parametrize(
    "facts", [{}, {"commit_id": "a" * 31}, {"commit_id": "a" * 31, "keys": (5,)}, {"keys": ()}]
)
def test_uncertain_commit_without_facts_is_refused(
    store: cs.Store, facts: dict[str, object]
) -> None:
    """As of an error that did not come from a store."""
    with pytest.raises(cs.UsageError, match="does not identify its commit"):
        store.resolve_commit(cs.CommitUncertainError("lost", **facts))


def test_mark_with_an_undecided_truth_changes_nothing() -> None:
    """Such as that of an array of several elements."""

    class Undecided:
        def __bool__(self) -> bool:
            raise RuntimeError

    progress = cs.ForEachProgress()
    undecided: Any = Undecided()
    with pytest.raises(RuntimeError):
        progress.mark(3, ok=undecided)

    assert list(progress.pending(5)) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(("number", "said"), [(3, "[0, 1, 2]"), (4, "[0, 1, 2, …]")])
def test_long_list_is_cut(number: int, said: str) -> None:
    """With a mark of it, and only then."""
    assert shown(list(range(number))) == said

"""Index entries of the NATS store are hints: what they say counts only if the head says it too."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

import catga_store as cs
from catga_store.conversation import Message
from catga_store.conversation import Publish
from catga_store.conversation import ask
from catga_store.keys import new_commit_id
from catga_store.records import Due
from catga_store.records import Head
from catga_store.records import Read
from catga_store.records import Record
from catga_store.stores.nats import sweeping
from catga_store.stores.nats.layout import entries_of_flow
from catga_store.testing import ManualClock
from catga_store.testing.seams import talker


def an_hour_away(store: cs.Store) -> tuple[cs.FlowSnapshot[Any], Record]:
    """Create a flow that is due in an hour; answer it, and what is stored of it."""
    flow = cs.FlowSnapshot[Any]("order-1", state={}, due_at=store.now() + timedelta(hours=1))
    store.create(flow)
    (record,) = store._run(ask(Read((flow.key,), 0)))
    assert record is not None
    return flow, record


@pytest.mark.parametrize(
    "claimed", [{"status": cs.FlowStatus.FAILED.value}, {"due_ms": 0}, {"expires_ms": 1}]
)
def test_an_entry_that_the_head_does_not_bear_out_is_passed_over(
    claimed: dict[str, Any], url_of: Callable[[str], str], clock: ManualClock
) -> None:
    """As a writer leaves them that dies between an entry and its record."""
    with cs.open_store(url_of("nats"), clock=clock) as store:
        waist, hold = talker(store)
        flow, record = an_hour_away(store)
        head: Head = record.head._replace(**claimed)
        entries = entries_of_flow(waist._layout, flow.key, head)
        answers = hold(ask(Publish(tuple(Message(entry, b"", {}) for entry in sorted(entries)))))
        assert all(not answer.status for answer in answers)

        assert store.query_flows(status=cs.FlowStatus.FAILED).items == ()
        assert store.count_flows(status=cs.FlowStatus.FAILED) == 0
        assert [one.flow_id for one in store.iter_flows()] == ["order-1"]
        assert store._run(ask(Due(int(clock().timestamp() * 1000), 10))) == ()
        assert store.claim_due() == []
        store.sweep()
        assert store.get("order-1") is not None


def test_an_entry_that_was_passed_over_is_swept_once_it_is_old(
    url_of: Callable[[str], str], clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not before: its record may be on the way. What the head bears out stays."""
    with cs.open_store(url_of("nats"), clock=clock) as store:
        waist, hold = talker(store)
        flow, record = an_hour_away(store)
        right = entries_of_flow(waist._layout, flow.key, record.head)
        failed = record.head._replace(status=cs.FlowStatus.FAILED.value)
        wrong = entries_of_flow(waist._layout, flow.key, failed) - right
        assert wrong
        hold(ask(Publish(tuple(Message(entry, b"", {}) for entry in sorted(wrong)))))

        def there() -> set[str]:
            deadline = waist._exchange.deadline()
            found = hold(waist._exchange.fetch([*right, *wrong], deadline))
            return {subject for subject, stored in found.items() if stored.sequence}

        for seconds, left in ((600, right | wrong), (-600, right)):
            monkeypatch.setattr(sweeping, "_ENTRY_SECONDS", seconds)
            assert store.query_flows(status=cs.FlowStatus.FAILED).items == ()
            store.sweep()
            assert there() == left

        assert [one.flow_id for one in store.iter_flows()] == ["order-1"]


def test_parts_that_no_record_names_are_swept_once_they_are_old(
    url_of: Callable[[str], str], clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a writer leaves them that dies before its head; those of the body that is stored stay."""
    with cs.open_store(url_of("nats"), clock=clock) as store:
        waist, hold = talker(store)
        bulk = "x" * 2_000_000
        store.create(cs.FlowSnapshot("large", state={"bulk": bulk}))
        key = cs.FlowSnapshot("large", state={}).key
        stray = waist._layout.chunk(key, new_commit_id(), 0)
        hold(ask(Publish((Message(stray, b"half", {}),))))

        def is_there() -> bool:
            found = hold(waist._exchange.fetch([stray], waist._exchange.deadline()))
            return bool(found[stray].sequence)

        store.sweep()
        assert is_there()
        monkeypatch.setattr(sweeping, "_CHUNK_SECONDS", -3600)
        store.sweep()
        assert not is_there()
        assert store.get_one("large").state == {"bulk": bulk}

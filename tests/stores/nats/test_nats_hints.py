"""Index entries of the NATS store are hints: what they say counts only if the head says it too."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from waiting import until

import catga_store as cs
from catga_store.protocol.conversation import Conversation
from catga_store.protocol.conversation import Pause
from catga_store.protocol.conversation import ask
from catga_store.protocol.keys import FLOW
from catga_store.protocol.keys import WAIT
from catga_store.protocol.keys import Key
from catga_store.protocol.keys import new_commit_id
from catga_store.protocol.requests import Due
from catga_store.protocol.requests import Head
from catga_store.protocol.requests import Read
from catga_store.protocol.requests import Record
from catga_store.protocol.requests import Sweep
from catga_store.stores.nats import sweeping
from catga_store.stores.nats.layout import entries_of_flow
from catga_store.stores.nats.transport import Message
from catga_store.stores.nats.transport import Publish
from catga_store.testing import ManualClock
from catga_store.testing.hooks import conversation_runner

LONG = 60
"""Seconds that only a test that fails would wait."""


def an_hour_away(store: cs.Store) -> tuple[cs.FlowSnapshot[Any], Record]:
    """Create a flow that is due in an hour; return it, and what is stored of it."""
    flow = cs.FlowSnapshot[Any]("order-1", state={}, due_at=store.now() + timedelta(hours=1))
    store.create(flow)
    (record,) = store._run(ask(Read((flow.key,), 0)))
    assert record is not None
    return flow, record


@pytest.mark.parametrize(
    "claimed", [{"status": cs.FlowStatus.FAILED.value}, {"due_ms": 0}, {"expires_ms": 1}]
)
def test_entry_that_does_not_match_its_head_is_passed_over(
    claimed: dict[str, Any], url_of: Callable[[str], str], clock: ManualClock
) -> None:
    """As a writer leaves them that dies between an entry and its record."""
    with cs.open_store(url_of("nats"), clock=clock) as store:
        protocol, hold = conversation_runner(store)
        flow, record = an_hour_away(store)
        head: Head = record.head._replace(**claimed)
        entries = entries_of_flow(protocol._layout, flow.key, head)
        answers = hold(ask(Publish(tuple(Message(entry, b"", {}) for entry in sorted(entries)))))
        assert all(not answer.status for answer in answers)

        assert store.query_flows(status=cs.FlowStatus.FAILED).items == ()
        assert store.count_flows(status=cs.FlowStatus.FAILED) == 0
        assert [one.flow_id for one in store.iter_flows()] == ["order-1"]
        assert store._run(ask(Due(int(clock().timestamp() * 1000), 10))) == ()
        assert store.claim_due() == []
        store.sweep()
        assert store.get("order-1") is not None


def test_old_entry_that_was_passed_over_is_swept(
    url_of: Callable[[str], str], clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not before: its record may be in flight. An entry that matches the head stays."""
    with cs.open_store(url_of("nats"), clock=clock) as store:
        protocol, hold = conversation_runner(store)
        flow, record = an_hour_away(store)
        right = entries_of_flow(protocol._layout, flow.key, record.head)
        failed = record.head._replace(status=cs.FlowStatus.FAILED.value)
        wrong = entries_of_flow(protocol._layout, flow.key, failed) - right
        assert wrong
        hold(ask(Publish(tuple(Message(entry, b"", {}) for entry in sorted(wrong)))))

        def there() -> set[str]:
            deadline = protocol._exchange.deadline()
            found = hold(protocol._exchange.fetch([*right, *wrong], deadline))
            return {subject for subject, stored in found.items() if stored.sequence}

        for seconds, left in ((600, right | wrong), (-600, right)):
            monkeypatch.setattr(sweeping, "_ENTRY_SECONDS", seconds)
            assert store.query_flows(status=cs.FlowStatus.FAILED).items == ()
            store.sweep()
            assert there() == left

        assert [one.flow_id for one in store.iter_flows()] == ["order-1"]


def test_entry_of_an_unreadable_record_stays(
    url_of: Callable[[str], str], clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However old it is: what belongs to the record stays with it until it is mended."""
    monkeypatch.setattr(sweeping, "_ENTRY_SECONDS", -600)
    with cs.open_store(url_of("nats"), clock=clock) as store:
        protocol, hold = conversation_runner(store)
        flow, record = an_hour_away(store)
        failed = record.head._replace(status=cs.FlowStatus.FAILED.value)
        wrong = entries_of_flow(protocol._layout, flow.key, failed)
        hold(ask(Publish(tuple(Message(entry, b"", {}) for entry in sorted(wrong)))))
        assert store.query_flows(status=cs.FlowStatus.FAILED).items == ()
        subject = protocol._layout.subject(flow.key)
        hold(ask(Publish((Message(subject, b"garbage", {}),))))
        store.sweep()
        found = hold(protocol._exchange.fetch(wrong, protocol._exchange.deadline()))
        assert all(stored.sequence for stored in found.values())


def test_record_created_again_is_not_swept(
    url_of: Callable[[str], str], clock: ManualClock
) -> None:
    """It had expired when it was looked for, and was there again when it was to be removed."""
    with cs.open_store(url_of("nats"), clock=clock) as store:
        protocol, hold = conversation_runner(store)
        store.create(cs.FlowSnapshot("f", state={}, status=cs.FlowStatus.COMPLETED))
        clock.advance(timedelta(days=9))
        later = Sweep(int(clock().timestamp() * 1000), 10)
        expired = hold(protocol._sweeping._listings.expired(later.now_ms, later.limit))
        assert [key.id for key in expired] == ["f"]
        store.create(cs.FlowSnapshot("f", state={"n": 2}))

        def listed(now_ms: int, limit: int) -> Conversation[list[Key]]:
            yield Pause(0)
            return expired

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(protocol._sweeping._listings, "expired", listed)
            assert hold(protocol._sweeping.expired(later)) == 0

        assert store.get_one("f").state == {"n": 2}


def test_old_chunks_without_a_record_are_swept(
    url_of: Callable[[str], str], clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a writer leaves them that dies before its head; those of the body that is stored stay."""
    with cs.open_store(url_of("nats"), clock=clock) as store:
        protocol, hold = conversation_runner(store)
        bulk = "x" * 2_000_000
        store.create(cs.FlowSnapshot("large", state={"bulk": bulk}))
        key = cs.FlowSnapshot("large", state={}).key
        stray = protocol._layout.chunk(key, new_commit_id(), 0)
        hold(ask(Publish((Message(stray, b"half", {}),))))

        def is_there() -> bool:
            found = hold(protocol._exchange.fetch([stray], protocol._exchange.deadline()))
            return bool(found[stray].sequence)

        store.sweep()
        assert is_there()
        monkeypatch.setattr(sweeping, "_CHUNK_SECONDS", -3600)
        store.sweep()
        until(lambda: not is_there())
        assert store.get_one("large").state == {"bulk": bulk}


def test_young_chunks_stay_though_a_clock_is_wrong(
    url_of: Callable[[str], str], clock: ManualClock
) -> None:
    """Their writer, whose clock is two hours late, has yet to write the record that names them."""
    with cs.open_store(url_of("nats"), clock=clock) as store:
        store.ping()
        protocol, hold = conversation_runner(store)
        two_hours_ago = int((time.time() - 7200) * 1000)
        generation = f"{two_hours_ago:011x}{new_commit_id()[11:]}"
        chunk = protocol._layout.chunk(Key(FLOW, "coming"), generation, 0)
        hold(ask(Publish((Message(chunk, b"half", {}),))))
        store.sweep()
        found = hold(protocol._exchange.fetch([chunk], protocol._exchange.deadline()))
        assert found[chunk].text == b"half"


def test_chunks_of_conditions_and_unreadable_records_stay(
    url_of: Callable[[str], str], clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chunks of a condition are its children; those of an unreadable record may be named by it."""
    monkeypatch.setattr(sweeping, "_CHUNK_SECONDS", -3600)
    with cs.open_store(url_of("nats"), clock=clock) as store:
        protocol, hold = conversation_runner(store)
        children = [f"child-{number:04}" for number in range(1000)]
        keys = [Key(WAIT, name) for name in ("kept", "gone", "garbage")]
        for key in keys:
            store.set_wait_condition(cs.WaitCondition(key.id, flow_ids=children))

        def parts() -> list[str]:
            wanted = [protocol._layout.first_chunks()]
            (names,) = hold(protocol._exchange.names(wanted, protocol._exchange.deadline()))
            return sorted(protocol._layout.chunk_owner(name)[1].id for name in names)

        subject = protocol._layout.subject(keys[2])
        hold(ask(Publish((Message(subject, b"garbage", {}),))))
        assert parts() == ["garbage", "gone", "kept"]
        gone = protocol._layout.subject(keys[1])
        hold(ask(Publish((Message(gone, b"", {"KV-Operation": "PURGE"}),))))
        store.sweep()
        until(lambda: parts() == ["garbage", "kept"])
        wait = store.get_wait_condition("kept")
        assert wait is not None
        assert list(wait.flow_ids) == children

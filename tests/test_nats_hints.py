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
from catga_store.records import Due
from catga_store.records import Head
from catga_store.records import Read
from catga_store.stores.nats.layout import entries_of_flow
from catga_store.testing import ManualClock
from catga_store.testing.seams import talker


@pytest.mark.parametrize(
    "claimed", [{"status": cs.FlowStatus.FAILED.value}, {"due_ms": 0}, {"expires_ms": 1}]
)
def test_an_entry_that_the_head_does_not_bear_out_is_passed_over(
    claimed: dict[str, Any], url_of: Callable[[str], str], clock: ManualClock
) -> None:
    """As a writer leaves them that dies between an entry and its record."""
    with cs.open_store(url_of("nats"), clock=clock) as store:
        waist, hold = talker(store)
        flow = cs.FlowSnapshot("order-1", state={}, due_at=store.now() + timedelta(hours=1))
        store.create(flow)
        (record,) = store._run(ask(Read((flow.key,), 0)))
        assert record is not None
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

"""A reply is lost while a rival writes: the first writer still gets its own outcome, with its version."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import pytest

import catga_store as cs
from catga_store.protocol.conversation import Call
from catga_store.protocol.conversation import Conversation
from catga_store.protocol.conversation import ReplyLostError
from catga_store.protocol.conversation import Request
from catga_store.protocol.conversation import through
from catga_store.protocol.requests import Commit
from catga_store.protocol.store_protocol import StoreProtocol
from catga_store.stores.nats.transport import Publish
from catga_store.stores.redis.transport import Pipe
from catga_store.testing.faults import Faults
from catga_store.testing.hooks import wrap_protocol

Opener = Callable[..., cs.Store]
Act = Callable[[], object]


@attrs.define
class Overtaken:
    """A store protocol that loses the reply to its next write, after a rival has written too."""

    protocol: StoreProtocol
    rival: Act | None = None

    def converse(self, request: Request[Any]) -> Conversation[Any]:
        """Do what the request asks; a commit may be overtaken."""
        conversation = self.protocol.converse(request)
        return (
            through(conversation, self._exchange) if isinstance(request, Commit) else conversation
        )

    def _exchange(self, transport: Request[Any]) -> Conversation[Any]:
        reply = yield transport
        writes = isinstance(transport, Publish) or (
            isinstance(transport, Call | Pipe) and transport.writes
        )
        if writes and self.rival is not None:
            rival, self.rival = self.rival, None
            rival()
            message = "the reply was lost"
            raise ReplyLostError(message)

        return reply


@pytest.fixture
def rival(open_more: Opener) -> cs.Store:
    """Open the store of the rival that writes in between."""
    return open_more(owner="rival")


@pytest.fixture
def overtake(store: cs.Store) -> Callable[[Act], None]:
    """Return a function that says what the rival does after the next write of `store`."""
    made: list[Overtaken] = []

    def wrap(protocol: StoreProtocol) -> Any:
        made.append(Overtaken(protocol))
        return made[-1]

    wrap_protocol(store, wrap)
    # A server that does not know the scripts yet would refuse the first write.
    store.create(cs.FlowSnapshot("f", state={"n": 0}))
    store.update(store.get_one("f"))

    def say(act: Act) -> None:
        made[0].rival = act

    return say


def add_one(store: cs.Store, flow_id: str = "f") -> cs.FlowSnapshot[Any]:
    """Write the next number into a flow."""
    flow = store.get_one(flow_id)
    flow.state["n"] += 1
    store.update(flow)
    return flow


def test_update_overtaken_before_its_reply(
    store: cs.Store, rival: cs.Store, overtake: Callable[[Act], None]
) -> None:
    """The writer has its own version, and its next write is refused with the rival's."""
    overtake(lambda: add_one(rival))
    flow = add_one(store)
    assert (flow.version, rival.get_one("f").version) == (3, 4)
    assert rival.get_one("f").state == {"n": 2}
    with pytest.raises(cs.StaleFlowError) as caught:
        store.update(flow)

    assert (caught.value.expected, caught.value.actual) == (3, 4)


def test_refusal_overtaken_before_its_reply(
    store: cs.Store, rival: cs.Store, overtake: Callable[[Act], None]
) -> None:
    """A stale write stays refused, with a version that was stored while it was asked."""
    flow = store.get_one("f")
    add_one(rival)
    overtake(lambda: add_one(rival))
    with pytest.raises(cs.StaleFlowError) as caught:
        store.update(flow)

    assert caught.value.expected == 2
    assert caught.value.actual in {3, 4}
    assert store.get_one("f").state == {"n": 2}


def test_create_replaced_before_its_reply(
    store: cs.Store, rival: cs.Store, overtake: Callable[[Act], None]
) -> None:
    """Its flow was created, deleted and created by a rival: the writer holds the one that is gone."""

    def replace() -> None:
        rival.delete("new")
        rival.create(cs.FlowSnapshot("new", state={"n": 9}))

    overtake(replace)
    flow = cs.FlowSnapshot("new", state={"n": 1})
    store.create(flow)
    assert flow.version == 1
    assert flow.revision != rival.get_one("new").revision
    with pytest.raises(cs.ConflictError):
        store.update(flow)

    assert rival.get_one("new").state == {"n": 9}


def test_claim_taken_over_before_its_reply(
    store: cs.Store, rival: cs.Store, overtake: Callable[[Act], None]
) -> None:
    """A rival updates the flow in between: the claim was made, and is lost at its first write."""
    overtake(lambda: add_one(rival))
    flow = store.claim("f", owner="w-1")
    assert (flow.version, flow.owner) == (3, "w-1")
    with pytest.raises(cs.ClaimLostError):
        store.update(flow)

    assert rival.get_one("f").state == {"n": 1}


def test_completion_cleared_before_its_reply(
    store: cs.Store, rival: cs.Store, overtake: Callable[[Act], None]
) -> None:
    """The completion satisfied the wait, and is reported so, though the wait is gone by then."""
    store.set_wait_condition(cs.WaitCondition("w", flow_ids=["x"]))
    overtake(lambda: rival.clear_wait_condition("w"))
    completion = store.complete_child("w", "x", result=1)
    assert (completion.accepted, completion.now_satisfied) == (True, True)
    assert rival.get_wait_condition("w") is None


def test_uncertain_update_overtaken_before_it_is_resolved(store: cs.Store, rival: cs.Store) -> None:
    """The receipt has the version of the commit, not that of what a rival wrote on top."""
    store.create(cs.FlowSnapshot("f", state={"n": 0}))
    faults = Faults()
    faults.attach(store)
    faults.on_commit("unknown-applied")
    with pytest.raises(cs.CommitUncertainError) as caught:
        add_one(store)

    for _ in range(3):
        add_one(rival)

    receipt = store.resolve_commit(caught.value)
    assert receipt is not None
    assert receipt.versions == {cs.Key("flow", "f"): 2}
    assert store.get_one("f").version == 5


def test_uncertain_update_that_was_not_applied_is_refused_behind_a_rival(
    store: cs.Store, rival: cs.Store
) -> None:
    """It never happened, whatever versions a rival reached meanwhile."""
    store.create(cs.FlowSnapshot("f", state={"n": 0}))
    faults = Faults()
    faults.attach(store)
    faults.on_commit("unknown-not-applied")
    with pytest.raises(cs.CommitUncertainError) as caught:
        add_one(store)

    add_one(rival)
    assert store.resolve_commit(caught.value) is None
    assert store.get_one("f").state == {"n": 1}

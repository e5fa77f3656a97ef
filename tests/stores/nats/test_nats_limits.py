"""What is larger than one message of NATS: heads, bodies, results; also where messages are small."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

import pytest

import catga_store as cs
from catga_store.testing.servers import NatsServer

LIMITS = ("1MB", "128KB", "64KB")


@pytest.fixture(scope="module", params=LIMITS)
def server(request: pytest.FixtureRequest) -> Iterator[NatsServer]:
    """Start a server that takes messages up to a limit."""
    with NatsServer(f"max_payload: {request.param}") as one:
        yield one


@pytest.fixture
def stores(server: NatsServer) -> Iterator[tuple[cs.Store, cs.Store]]:
    """Open a store that writes, and one that knows nothing but what is stored."""
    bucket = uuid.uuid4().hex
    with (
        cs.NatsStore(server.url, bucket=bucket) as one,
        cs.NatsStore(server.url, bucket=bucket) as two,
    ):
        yield one, two


def with_everything(flow_id: str, **state: Any) -> cs.FlowSnapshot[Any]:
    """Make a flow whose head fits into no message."""
    flow = cs.FlowSnapshot(flow_id, state=state)
    flow.error = 'it "failed"\n' * 100_000
    flow.position = cs.FlowPosition(tuple(range(200_000)))
    return flow


def test_long_head(stores: tuple[cs.Store, cs.Store]) -> None:
    """Error and position are read as they were written, with the state, and in listings."""
    store, other = stores
    flow = with_everything("f", text="x" * 2_000_000)
    store.create(flow)
    found = other.get_one("f")
    assert (found.error, found.position, found.state) == (flow.error, flow.position, flow.state)
    (listed,) = other.query_flows()
    assert listed.flow_id == "f"
    flow.state["n"] = 1
    store.update(flow)
    found.state["n"] = 2
    with pytest.raises(cs.StaleFlowError):
        other.update(found)

    flow.error = "short"
    store.update(flow)
    assert other.get_one("f").error == "short"
    assert other.get_one("f").position == flow.position
    store.delete(flow)
    assert other.get("f") is None


def test_long_head_is_claimed_and_released(stores: tuple[cs.Store, cs.Store]) -> None:
    """What keeps the body keeps the long head."""
    store, other = stores
    flow = with_everything("f", n=1)
    store.create(flow)
    claimed = other.claim("f", owner="w")
    assert claimed.error == flow.error
    other.extend(claimed)
    other.release(claimed)
    found = store.get_one("f")
    assert (found.error, found.position, found.state) == (flow.error, flow.position, {"n": 1})


def test_session_of_long_heads(stores: tuple[cs.Store, cs.Store]) -> None:
    """Several are one commit."""
    store, other = stores
    session = store.session()
    for number in range(3):
        session.add(with_everything(f"f-{number}", n=number))

    session.commit()
    assert [other.get_one(f"f-{n}").error for n in range(3)] == ['it "failed"\n' * 100_000] * 3


def test_large_results(stores: tuple[cs.Store, cs.Store]) -> None:
    """A result up to the limit of all stores is kept, before and after its condition."""
    store, other = stores
    result = {"text": 'é"x' * 50_000}
    assert store.complete_child("w", "early", result=result).accepted
    store.set_wait_condition(cs.WaitCondition("w", flow_ids=["early", "a", "b"]))
    assert other.complete_child("w", "a", result=result).accepted
    assert other.complete_child("w", "a", result=result).duplicate
    assert store.complete_child("w", "b", result=result).now_satisfied
    condition = other.get_wait_condition("w")
    assert condition is not None
    assert [condition.results[name].result for name in ("early", "a", "b")] == [result] * 3
    assert store.clear_wait_condition("w")
    assert other.get_wait_condition("w") is None


def test_message_limit_below_the_least() -> None:
    """A server that takes less is refused before anything is written."""
    with (
        NatsServer("max_payload: 32KB") as server,
        cs.NatsStore(server.url) as store,
        pytest.raises(cs.StoreConfigError, match="at most 32768 bytes per message"),
    ):
        store.ping()

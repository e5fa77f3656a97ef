"""The numbers of a NATS store: counted by the server, and now and then by comparing names."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import anyio
import attrs
import pytest
from pages import client_of

import catga_store as cs
from catga_store.drivers.nats_asyncio import NatsLink
from catga_store.model.stats import StoreStats
from catga_store.protocol.requests import HIGHEST_STATUS
from catga_store.stores.nats import counting
from catga_store.stores.nats import exchange
from catga_store.stores.nats.counting import NatsCounter
from catga_store.stores.nats.exchange import NatsExchange
from catga_store.stores.nats.transport import Asks
from catga_store.testing import ManualClock

SECOND = timedelta(seconds=1)


@attrs.define
class Order:
    """A state."""

    n: int


@attrs.define
class Refund:
    """Another one."""

    n: int


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Collect what links are asked for, by all stores of the test."""
    seen: list[Any] = []

    def recorded(operation: Callable[[NatsLink, Any], Any]) -> Callable[[NatsLink, Any], Any]:
        def record(link: NatsLink, request: Any) -> Any:
            if not any(one is request for one in seen[-50:]):  # one operation uses the other
                seen.append(request)

            return operation(link, request)

        return record

    monkeypatch.setattr(NatsLink, "start", recorded(NatsLink.start))
    monkeypatch.setattr(NatsLink, "perform", recorded(NatsLink.perform))
    return seen


def by_names(store: cs.Store, monkeypatch: pytest.MonkeyPatch) -> StoreStats:
    """Return the numbers that comparing names gives."""
    with monkeypatch.context() as patched:
        patched.setattr(NatsCounter, "totals", _nothing)
        return store.stats()


def are_names_compared(seen: list[Any]) -> bool:
    """Whether the names of all flows were asked for."""
    asks = [one for request in seen if isinstance(request, Asks) for one in request.asks]
    return any(b"list.flow.>" in one.payload and b'"offset":0' in one.payload for one in asks)


def test_every_status_is_counted() -> None:
    """Stores know them by their numbers."""
    assert [status.value for status in cs.FlowStatus] == list(range(HIGHEST_STATUS + 1))


@pytest.mark.parametrize("case", [("nats", 1000), ("nats", 3), ("nats-cluster", 3)])
def test_counting_agrees_with_comparing_names(
    url_of: Callable[[str], str],
    clock: ManualClock,
    monkeypatch: pytest.MonkeyPatch,
    asked: list[Any],
    case: tuple[str, int],
) -> None:
    """Flows that are due, claimed, lapsed, expired and ended, and waits; few of each, or many."""
    kind, most = case
    with cs.open_store(url_of(kind), clock=clock) as store:
        for number in range(9):
            state = Order(number) if number % 2 else Refund(number)
            store.create(cs.FlowSnapshot(f"f-{number}", state=state))

        store.create(cs.FlowSnapshot("later", state={}, due_at=clock.now + 9 * SECOND))
        store.create(cs.FlowSnapshot("brief", state={}, expires_at=clock.now + SECOND))
        store.create(cs.FlowSnapshot("ended", state={}, status=cs.FlowStatus.FAILED))
        store.create(cs.FlowSnapshot("parent", state={}, due_at=None))
        for number in range(6):
            lease = (2 if number % 2 else 60) * SECOND
            store.claim(f"f-{number}", Order if number % 2 else Refund, owner="w", lease=lease)

        store.claim("brief", owner="w", lease=60 * SECOND)
        for name, parent in ("a", "parent"), ("b", None), ("c", "parent"):
            store.set_wait_condition(
                cs.WaitCondition(name, flow_ids=["x"], timeout=9 * SECOND, parent_flow_id=parent)
            )

        store.complete_child("c", "x")
        for _ in range(3):
            expected = by_names(store, monkeypatch)
            with monkeypatch.context() as patched:
                patched.setattr(counting, "_MOST_NAMED", most)
                patched.setattr(exchange, "_PAGE", most)
                asked.clear()
                assert store.stats() == expected
                assert not are_names_compared(asked)

            clock.advance(4 * SECOND)


def test_numbers_cost_two_flights_without_names(
    url_of: Callable[[str], str], asked: list[Any]
) -> None:
    """Once a process has compared names; another process writes meanwhile, also flows of a new type."""
    url = url_of("nats")
    with cs.open_store(url) as store, cs.open_store(url) as other:
        store.stats()
        for name in ("f", "g"):
            other.create(cs.FlowSnapshot(name, state=Order(1), due_at=None))

        asked.clear()
        assert store.stats().flows == {"Order": {cs.FlowStatus.CREATED: 2}}
        assert len(asked) == 3  # the head of one flow says what the type is
        assert not are_names_compared(asked)

        flow = other.get_one("f", Order)
        flow.status = cs.FlowStatus.COMPLETED
        other.update(flow)
        other.delete("g")
        asked.clear()
        assert store.stats().flows == {"Order": {cs.FlowStatus.COMPLETED: 1}}
        assert len(asked) == 2
        assert not are_names_compared(asked)


def test_an_entry_that_a_dead_process_left_is_known_once_names_were_compared(
    url_of: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is counted for a minute at most, and the flow is never shown as gone."""
    url = url_of("nats")
    with cs.open_store(url) as store, cs.open_store(url) as other:
        other.create(cs.FlowSnapshot("f", state={}, due_at=None))
        assert store.stats().flows == {"": {cs.FlowStatus.CREATED: 1}}
        flow = other.get_one("f")
        flow.status = cs.FlowStatus.RUNNING
        with monkeypatch.context() as patched:  # it dies before it removes the old entry
            patched.setattr(NatsExchange, "forget", _nothing)
            other.update(flow)

        assert store.stats().total == 2
        assert by_names(store, monkeypatch).flows == {"": {cs.FlowStatus.RUNNING: 1}}
        assert store.stats().flows == {"": {cs.FlowStatus.RUNNING: 1}}


def _nothing(*_arguments: object) -> Iterator[None]:
    """Ask for nothing and return nothing."""
    yield from ()


def test_an_open_overview_costs_at_most_two_transport_requests_a_second(
    url_of: Callable[[str], str], asked: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many readers it has, with live flows to look at: counted over two minutes of a moved clock."""
    with cs.open_store(url_of("nats")) as store:
        with store.begin() as session:
            for number in range(60):
                session.add(cs.FlowSnapshot(f"f-{number}", state={}))
                session.add(cs.FlowSnapshot(f"parked-{number}", state={}, due_at=None))

        store.claim("f-1", owner="w")
        seconds = 0.0
        monkeypatch.setattr(anyio, "current_time", lambda: seconds)
        with client_of(store) as client:
            asked.clear()
            for second in range(120):
                seconds = float(second)
                for _reader in range(2):
                    assert client.get("/overview.json").status_code == 200

        assert 0 < len(asked) <= 2 * 120

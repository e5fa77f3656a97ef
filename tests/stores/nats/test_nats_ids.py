"""Flows whose id begins with something: a process remembers ids, and asks for those that are new."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import catga_store as cs
from catga_store.drivers.nats_asyncio import NatsLink
from catga_store.stores.nats import exchange
from catga_store.stores.nats import ids
from catga_store.stores.nats import listings
from catga_store.stores.nats.transport import Asks


@pytest.fixture
def named(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Collect the requests for names of flows, by all stores of the test."""
    seen: list[bytes] = []
    perform = NatsLink.perform

    def performed(link: NatsLink, request: Any) -> Any:
        asks = request.asks if isinstance(request, Asks) else ()
        texts = [one.payload for one in asks]
        seen.extend(one for one in texts if b"subjects_filter" in one and b".flow." in one)
        return perform(link, request)

    monkeypatch.setattr(NatsLink, "perform", performed)
    return seen


def listed(store: cs.Store, prefix: str, **filters: Any) -> list[str]:
    """Return the ids of such flows; the count agrees."""
    found = [flow.flow_id for flow in store.query_flows(id_prefix=prefix, **filters)]
    assert store.count_flows(id_prefix=prefix, **filters) == len(found)
    return found


@pytest.mark.parametrize("at_once", [1000, 2])
def test_names_are_asked_for_once(
    url_of: Callable[[str], str],
    monkeypatch: pytest.MonkeyPatch,
    named: list[bytes],
    at_once: int,
) -> None:
    """What other processes create, change and delete is seen all the same."""
    monkeypatch.setattr(exchange, "_PAGE", at_once)
    url = url_of("nats")
    with cs.open_store(url) as store, cs.open_store(url) as other:
        for name in ("a-1", "b-1", "ü/1"):
            other.create(cs.FlowSnapshot(name, state={}))

        assert listed(store, "a") == ["a-1"]
        assert named
        named.clear()
        for name in ("a-3", "a-2", "a", "A", "ü/2"):
            other.create(cs.FlowSnapshot(name, state={}))

        assert listed(store, "a") == ["a", "a-1", "a-2", "a-3"]
        assert listed(store, "ü") == ["ü/1", "ü/2"]
        other.delete("a-1")
        flow = other.get_one("a-2")
        flow.status = cs.FlowStatus.FAILED
        other.update(flow)
        assert listed(store, "a") == ["a", "a-2", "a-3"]
        assert listed(store, "a", status=cs.FlowStatus.FAILED) == ["a-2"]
        other.create(cs.FlowSnapshot("a-1", state={}))
        assert listed(store, "a-1") == ["a-1"]
        assert not named


def test_very_many_new_flows(
    url_of: Callable[[str], str], monkeypatch: pytest.MonkeyPatch, named: list[bytes]
) -> None:
    """Then names are asked for again."""
    monkeypatch.setattr(exchange, "_PAGE", 2)
    monkeypatch.setattr(exchange, "_MOST_PAGES", 2)
    with cs.open_store(url_of("nats")) as store:
        assert listed(store, "f") == []
        named.clear()
        for number in range(9):
            store.create(cs.FlowSnapshot(f"f-{number}", state={}))

        assert listed(store, "f") == [f"f-{number}" for number in range(9)]
        assert named


def test_more_flows_than_are_kept(
    url_of: Callable[[str], str], monkeypatch: pytest.MonkeyPatch, named: list[bytes]
) -> None:
    """Names are asked for each time."""
    monkeypatch.setattr(ids, "_MOST_KEPT", 1)
    with cs.open_store(url_of("nats")) as store:
        for number in range(2, 4):
            store.create(cs.FlowSnapshot(f"f-{number}", state={}))
            store.create(cs.FlowSnapshot(f"g-{number}", state={}))
            named.clear()
            assert len(listed(store, "f")) == number - 1
            assert named


def test_many_flows_of_another_status(
    url_of: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of a status are chosen by names, before heads are read."""
    monkeypatch.setattr(listings, "_MOST_NAMED_BY_ID", 2)
    with cs.open_store(url_of("nats")) as store:
        for number in range(6):
            status = cs.FlowStatus.FAILED if number % 3 == 1 else cs.FlowStatus.CREATED
            store.create(cs.FlowSnapshot(f"f={number}", state={}, status=status))

        assert listed(store, "f", status=cs.FlowStatus.FAILED) == ["f=1", "f=4"]

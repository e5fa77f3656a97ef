"""`get_many` with a mapping: each flow as a type of its own, from the store and in a session."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

import catga_store as cs


@dataclass
class Order:
    """One type of state."""

    total: int


@dataclass
class Parcel:
    """Another type of state."""

    weight: int


@pytest.fixture
def mixed(store: cs.Store) -> cs.Store:
    """Return a store with flows of several types."""
    with store.begin() as session:
        session.add(cs.FlowSnapshot("o", state=Order(1)))
        session.add(cs.FlowSnapshot("p", state=Parcel(2)))
        session.add(cs.FlowSnapshot("raw", state={"n": 3}))

    return store


def test_each_flow_is_read_as_its_type(mixed: cs.Store) -> None:
    """The ids keep their order; `None` is raw data."""
    types = {"raw": None, "p": Parcel, "absent": Order, "o": Order}
    found = mixed.get_many(types)
    assert list(found) == list(types)
    states = {flow_id: flow and flow.state for flow_id, flow in found.items()}
    assert states == {"raw": {"n": 3}, "p": Parcel(2), "absent": None, "o": Order(1)}


def test_one_flow_of_another_type_refuses_all(mixed: cs.Store) -> None:
    """The error names the type that is stored."""
    with pytest.raises(cs.StateTypeError, match="Parcel"):
        mixed.get_many({"o": Order, "p": Order})


def test_session_tracks_each_flow_as_its_type(mixed: cs.Store) -> None:
    """Objects are the session's own; a flow that it has as another type is refused."""
    with mixed.session() as session:
        order = session.get("o", Order)
        found: dict[str, Any] = session.get_many({"o": Order, "p": Parcel, "absent": None})
        assert found["o"] is order
        found["p"].state.weight = 5
        assert session.commit().versions == {cs.Key("flow", "p"): 2}
        assert found["absent"] is None
        with pytest.raises(cs.StateTypeError):
            session.get_many({"o": Parcel})


@pytest.mark.parametrize(
    ("ids", "state_type"),
    [({"o": Order}, Order), ({"o": "Order"}, None), ({"o": 1}, None), ({"": Order}, None)],
)
def test_wrong_mappings_are_refused(mixed: cs.Store, ids: Any, state_type: Any) -> None:
    """A type beside a mapping, values that are not types, and invalid ids; nothing is sent."""
    with pytest.raises(cs.UsageError):
        mixed.get_many(ids, state_type)

    with mixed.session() as session, pytest.raises(cs.UsageError):
        session.get_many(ids, state_type)

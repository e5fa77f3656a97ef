"""State types that change: names, versions, upcasters, and what stays readable."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from dataclasses import make_dataclass
from datetime import timedelta
from typing import Any
from typing import Generic
from typing import TypedDict
from typing import TypeVar

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from marks import ONE_STORE

import catga_store as cs
from catga_store import codec

pytestmark = ONE_STORE

T = TypeVar("T")
Made = Any


def first_of(name: str = "order") -> Made:
    """Return the type as its first release had it."""

    @cs.flow_state(name)
    @attrs.define
    class Order:
        euros: float
        tag: str | None = None

    return Order


def to_cents(data: dict[str, Any]) -> dict[str, Any]:
    """Lift version 1: in place."""
    data["cents"] = round(data.pop("euros") * 100)
    return data


def to_tags(data: dict[str, Any]) -> dict[str, Any]:
    """Lift version 2: to a new document."""
    return {"cents": data["cents"], "tags": [] if data["tag"] is None else [data["tag"]]}


@cs.flow_state("order", version=3, upcasters={1: to_cents, 2: to_tags})
@attrs.define
class Order:
    """The type as it is today."""

    cents: int
    tags: list[str]


@pytest.fixture
def stored(store: cs.Store) -> cs.Store:
    """Hold flow `o` as the first release wrote it."""
    store.create(cs.FlowSnapshot("o", state=first_of()(19.9, "a")))
    return store


# --- reading --------------------------------------------------------------------------------------


def test_older_data_is_lifted_step_by_step(stored: cs.Store) -> None:
    """Every way to read a flow returns the state in its current form."""
    today = Order(1990, ["a"])
    assert stored.get_one("o", Order).state == today
    found = stored.get_many(["o"], Order)["o"]
    assert found is not None
    assert found.state == today
    assert stored.get_or_create(cs.FlowSnapshot("o", state=Order(1, [])))[0].state == today
    with stored.session() as session:
        assert session.get_one("o", Order).state == today

    (claimed,) = stored.claim_due(Order)
    assert claimed.state == today


@pytest.mark.anyio
async def test_older_data_is_lifted_for_async_code(astore: cs.AsyncStore) -> None:
    """The awaiting API reads it likewise."""
    await astore.create(cs.FlowSnapshot("o", state=first_of()(1.5)))
    assert (await astore.get_one("o", Order)).state == Order(150, [])
    (claimed,) = await astore.claim_due(Order)
    await astore.update(claimed)
    assert (await astore.get_one("o")).state == {"cents": 150, "tags": []}


def test_the_raw_document_stays_readable(stored: cs.Store) -> None:
    """Without a type the data is as it was written, and a write keeps its name and version."""
    raw = stored.get_one("o")
    assert (raw.state, raw.type_name) == ({"euros": 19.9, "tag": "a"}, "order")
    raw.state["euros"] = 1.0
    stored.update(raw)
    assert stored.get_one("o", Order).state == Order(100, ["a"])


def test_write_stores_the_current_version(stored: cs.Store) -> None:
    """Once it changes, a flow is stored as the type is now, and older code gets an error."""
    flow = stored.get_one("o", Order)
    stored.update(flow)
    assert stored.get_one("o").state == {"cents": 1990, "tags": ["a"]}
    with pytest.raises(cs.StateTypeError) as caught:
        stored.get_one("o", first_of())

    for part in ("flow 'o'", "version 3 of type 'order'", "supports version 1"):
        assert part in str(caught.value)

    facts = caught.value
    assert (facts.expected, facts.expected_version) == ("order", 1)
    assert (facts.actual, facts.actual_version) == ("order", 3)


def test_other_type_name_is_refused(stored: cs.Store) -> None:
    """A type reads nothing that was stored under another name, whatever its fields."""
    with pytest.raises(cs.StateTypeError, match="'order' but was requested as 'invoice'") as caught:
        stored.get_one("o", first_of("invoice"))

    assert (caught.value.expected, caught.value.actual) == ("invoice", "order")


def test_data_without_a_type_is_not_lifted(store: cs.Store) -> None:
    """Untyped data has no version: it is read as it is, and refused if it does not fit."""
    store.create(cs.FlowSnapshot("o", state={"cents": 5, "tags": []}))
    assert store.get_one("o", Order).state == Order(5, [])
    store.create(cs.FlowSnapshot("p", state={"euros": 5.0, "tag": None}))
    with pytest.raises(cs.StateTypeError, match="flow 'p' cannot be decoded: data does not fit"):
        store.get_one("p", Order)


def test_unnamed_type_is_version_one_of_its_qualname(store: cs.Store) -> None:
    """A class that was stored before it was named continues under that name."""

    @attrs.define
    class Plain:
        euros: float

    name = codec.type_name(Plain)
    store.create(cs.FlowSnapshot("o", state=Plain(2.0)))

    @cs.flow_state(name, version=2, upcasters={1: to_cents})
    @attrs.define
    class Moved:
        cents: int

    assert store.get_one("o", Moved).state == Moved(200)


def test_every_kind_of_state_type_is_lifted(store: cs.Store) -> None:
    """A dataclass, a TypedDict and a generic class evolve like an attrs class."""

    @cs.flow_state("order", version=2, upcasters={1: lambda data: {"total": data["euros"]}})
    @dataclass(slots=True)
    class Data:
        total: float

    class _Typed(TypedDict):
        total: float

    typed: Made = cs.flow_state(
        "order", version=2, upcasters={1: lambda data: {"total": data["euros"]}}
    )(_Typed)

    @cs.flow_state("order", version=2, upcasters={1: lambda data: {"total": data["euros"]}})
    @attrs.define
    class Box(Generic[T]):
        total: T

    store.create(cs.FlowSnapshot("o", state=first_of()(2.5)))
    assert store.get_one("o", Data).state == Data(2.5)
    assert store.get_one("o", typed).state == {"total": 2.5}
    assert store.get_one("o", Box[float]).state == Box(2.5)
    with pytest.raises(cs.StateTypeError, match=r"at \$.total expected int"):
        store.get_one("o", Box[int])


# --- claims and listings ----------------------------------------------------------------------------


def test_flows_are_found_and_claimed_by_name(stored: cs.Store) -> None:
    """Whatever version wrote them, the name finds them; another name does not."""
    stored.create(cs.FlowSnapshot("p", state=Order(1, [])))
    stored.create(cs.FlowSnapshot("q", state=first_of("invoice")(1.0)))
    for asked in (Order, first_of(), "order"):
        found = stored.query_flows(state_type=asked).items
        assert {flow.flow_id for flow in found} == {"o", "p"}

    assert stored.count_flows(state_type=Order) == 2
    assert {flow.flow_id for flow in stored.claim_due(Order, limit=10)} == {"o", "p"}


def test_claim_skips_flows_that_cannot_be_lifted(stored: cs.Store, clock: Any) -> None:
    """A flow whose upcaster fails is not claimed, is still there, and the others are claimed."""

    def broken(data: dict[str, Any]) -> dict[str, Any]:
        raise LookupError(data["euros"])

    @cs.flow_state("order", version=2, upcasters={1: broken})
    @attrs.define
    class Later:
        cents: int

    stored.create(cs.FlowSnapshot("p", state=Later(7)))
    assert [flow.flow_id for flow in stored.claim_due(Later, limit=10)] == ["p"]
    assert stored.get_one("o").version == 1
    assert stored.claim_due(Order, limit=10) == []
    clock.advance(timedelta(seconds=31))
    assert "o" in [flow.flow_id for flow in stored.claim_due(Order, limit=10)]


# --- dirty ------------------------------------------------------------------------------------------


def test_older_flow_is_clean_until_it_is_changed(stored: cs.Store) -> None:
    """Reading it changes nothing; changing it writes it, and so does only moving it."""
    with stored.session() as session:
        flow = session.get_one("o", Order)
        assert session.dirty == ()
        session.commit()
        assert stored.get_one("o").version == 1
        flow.state.tags.append("b")
        assert session.dirty == (flow,)
        flow.state.tags.pop()
        assert session.dirty == ()
        flow.position = flow.position.advance()
        session.commit()
        assert (flow.version, session.dirty) == (2, ())
        flow.state.tags.append("b")
        assert session.dirty == (flow,)
        flow.state.tags.pop()
        assert session.dirty == ()

    assert stored.get_one("o").state == {"cents": 1990, "tags": ["a"]}


Point = attrs.make_class("Point", {"x": attrs.field(type=int)})
WiderPoint = attrs.make_class(
    "Point", {"x": attrs.field(type=int), "y": attrs.field(type=int, default=0)}
)
BOXES: dict[str, Callable[[Any], Any]] = {
    "TypedDict": lambda point: TypedDict("Box", {"p": point}),
    "dataclass": lambda point: make_dataclass("Box", [("p", point)]),
    "attrs": lambda point: attrs.make_class("Box", {"p": attrs.field(type=point)}),
}


@pytest.mark.parametrize("kind", BOXES)
def test_field_of_a_type_that_has_grown_makes_nothing_dirty(store: cs.Store, kind: str) -> None:
    """It is encoded in another way since, but was not changed."""
    before, after = BOXES[kind](Point), BOXES[kind](WiderPoint)
    store.create(cs.FlowSnapshot("f", state=before(p=Point(1)), state_type=before))
    with store.session() as session:
        flow = session.get_one("f", after)
        assert session.dirty == ()
        point = flow.state["p"] if isinstance(flow.state, dict) else flow.state.p
        assert point == WiderPoint(1, 0)


def test_unstable_upcaster_makes_nothing_dirty(store: cs.Store) -> None:
    """What was loaded is compared, not what another read of it would be."""
    numbers = itertools.count()

    @cs.flow_state("order", version=2, upcasters={1: lambda _: {"cents": next(numbers)}})
    @attrs.define
    class Later:
        cents: int

    store.create(cs.FlowSnapshot("o", state=first_of()(2.5)))
    with store.session() as session:
        flow = session.get_one("o", Later)
        before = flow.state.cents
        assert session.dirty == ()
        session.refresh(flow)
        assert flow.state.cents != before
        assert session.dirty == ()


def test_a_claim_and_its_release_leave_older_bytes_alone(stored: cs.Store) -> None:
    """Neither writes the state; a claimed older flow is clean until it is changed."""
    (flow,) = stored.claim_due(Order)
    with stored.session() as session:
        session.add(flow)
        assert session.dirty == ()

    stored.release(flow)
    assert stored.get_one("o").state == {"euros": 19.9, "tag": "a"}
    assert stored.get_one("o", Order).state == Order(1990, ["a"])
    with stored.session() as session:
        session.add(flow)
        assert session.dirty == ()
        flow.state.cents = 1
        assert session.dirty == (flow,)
        session.commit()

    assert stored.get_one("o").state == {"cents": 1, "tags": ["a"]}


def test_a_suspended_older_flow_wakes_clean(stored: cs.Store) -> None:
    """The wait in its envelope changes, its state does not."""
    raw = stored.get_one("o")
    with stored.begin() as session:
        session.add(raw)
        session.suspend(raw, cs.WaitCondition("w", flow_ids=["c"]))

    assert stored.complete_child("w", "c").now_satisfied
    (flow,) = stored.claim_due(Order)
    assert flow.state == Order(1990, ["a"])
    with stored.session() as session:
        session.add(flow)
        assert session.dirty == ()
        flow.wait_condition = None
        assert session.dirty == (flow,)


# --- what cannot work -------------------------------------------------------------------------------


STEPS: list[tuple[Callable[[Any], Any], str]] = [
    (lambda data: data["nothing"], "failed with KeyError: 'nothing'"),
    (lambda data: data.clear(), "not None: is a return statement missing?"),
    (lambda data: [data], "must return a dict of JSON data, not <class 'list'>"),
    (lambda _: {"cents": {1, 2}}, r"must return JSON data: .* at \$.cents .* found set"),
    (lambda data: data, r"cannot be decoded: data does not fit the type order: at \$"),
]


@pytest.mark.parametrize(("step", "said"), STEPS)
def test_failing_upcaster_is_named(stored: cs.Store, step: Callable[[Any], Any], said: str) -> None:
    """The error names the flow and the step, and what is stored is left as it is."""

    @cs.flow_state("order", version=2, upcasters={1: step})
    @attrs.define
    class Later:
        cents: int

    with pytest.raises(cs.StateTypeError, match=said) as caught:
        stored.get_one("o", Later)

    assert "flow 'o'" in str(caught.value)
    assert "nothing was changed" in str(caught.value)
    assert (caught.value.expected_version, caught.value.actual_version) in [(2, 1), (None, 1)]
    assert stored.get_one("o").state == {"euros": 19.9, "tag": "a"}


def test_version_without_upcaster_is_refused(stored: cs.Store) -> None:
    """Data older than the first upcaster is not guessed at."""

    @cs.flow_state("order", version=3, upcasters={2: to_tags})
    @attrs.define
    class Later:
        cents: int

    with pytest.raises(cs.StateTypeError, match="'order' has no upcaster from version 1 to 2, so"):
        stored.get_one("o", Later)


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"name": ""}, "a non-empty str"),
    ({"name": 5}, "got 5"),
    ({"name": "\ud800"}, "surrogates not allowed"),
    ({"name": "n", "version": 0}, "got 0"),
    ({"name": "n", "version": True}, "got True"),
    (
        {"name": "n", "version": 2, "upcasters": {2: to_cents}},
        "less than its version, 2, as upcaster keys, got 2",
    ),
    ({"name": "n", "upcasters": {1: to_cents}}, "is at version 1, so it cannot have upcasters"),
    (
        {"name": "n", "version": 2, "upcasters": {0: to_cents}},
        "version, 2, as upcaster keys, got 0",
    ),
    (
        {"name": "n", "version": 2, "upcasters": {"1": to_cents}},
        "version, 2, as upcaster keys, got '1'",
    ),
    ({"name": "n", "version": 2, "upcasters": {1: "to_cents"}}, "expected a function"),
    ({"name": "n", "version": 4, "upcasters": {1: to_cents, 3: to_tags}}, "from version 2;"),
]


@pytest.mark.parametrize(("options", "said"), WRONG)
def test_invalid_declaration_is_refused(options: dict[str, Any], said: str) -> None:
    """It is a `UsageError` where the class is declared, not when old data is met."""
    with pytest.raises(cs.UsageError, match=said):
        cs.flow_state(**options)


def test_flow_state_below_the_class_decorator_is_refused() -> None:
    """A class that is not a state type yet is refused with the reason."""
    with pytest.raises(cs.UsageError, match="put @flow_state above"):

        @attrs.define
        @cs.flow_state("n")
        class Order:
            euros: float


def test_a_subclass_has_a_name_of_its_own() -> None:
    """Neither the name nor the upcasters are inherited."""

    @attrs.define
    class Heir(Order):
        more: int = 0

    assert codec.type_name(Heir) == Heir.__qualname__
    assert codec.type_version(Heir) == 1


# --- any chain of versions --------------------------------------------------------------------------


def version_of(number: int) -> Made:
    """Make the type at one version, able to read all older ones: version n has fields f0 to fn."""

    def step(data: dict[str, Any], *, to: int) -> dict[str, Any]:
        return {**{name: value + 1 for name, value in data.items()}, f"f{to}": 0}

    def adding(to: int) -> Callable[[Any], Any]:
        return lambda data: step(data, to=to)

    made = make_dataclass("Chain", [(f"f{field}", int) for field in range(number + 1)])
    return cs.flow_state(
        "chain", version=number, upcasters={old: adding(old + 1) for old in range(1, number)}
    )(made)


@given(data=st.data(), newest=st.integers(1, 6))
def test_any_older_version_is_read_as_any_newer_one(data: st.DataObject, newest: int) -> None:
    """Each field counts the steps it was lifted by; reading is clean; writing makes it today's."""
    versions = {number: version_of(number) for number in range(1, newest + 1)}
    written = data.draw(st.integers(1, newest))
    read = data.draw(st.integers(1, newest))
    values = data.draw(st.lists(st.integers(-5, 5), min_size=written + 1, max_size=written + 1))
    with cs.MemoryStore() as store:
        store.create(cs.FlowSnapshot("f", state=versions[written](*values)))
        if read < written:
            with pytest.raises(cs.StateTypeError, match=f"version {written} of type 'chain'"):
                store.get("f", versions[read])

            return

        lifted = [value + read - written for value in values]
        lifted += [read - number for number in range(written + 1, read + 1)]
        with store.session() as session:
            flow = session.get_one("f", versions[read])
            assert flow.state == versions[read](*lifted)
            assert session.dirty == ()
            flow.state.f0 += 1
            session.commit()
            assert flow.version == 2

        raw = store.get_one("f")
        assert raw.state == {f"f{n}": value + (n == 0) for n, value in enumerate(lifted)}
        assert store.get_one("f", versions[read]).state == flow.state

"""What type checkers say of stores and sessions: states are typed by what was asked for."""

from __future__ import annotations

from collections.abc import AsyncIterator
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from datetime import timedelta
from typing import Any
from typing import Generic
from typing import TypedDict
from typing import TypeVar
from typing import assert_type

import attrs

import catga_store as cs

T = TypeVar("T")


@attrs.define
class Order:
    """A state."""

    total: int


@dataclass
class Parcel:
    """A state."""

    weight: float


class Ticket(TypedDict):
    """A state that is a dict at run time."""

    seat: int


@attrs.define
class Box(Generic[T]):
    """A generic state."""

    content: T


def reads_are_typed(store: cs.Store) -> None:
    assert_type(store.get("o", Order), cs.FlowSnapshot[Order] | None)
    assert_type(store.get("o", Parcel), cs.FlowSnapshot[Parcel] | None)
    assert_type(store.get("o", Ticket), cs.FlowSnapshot[Ticket] | None)
    assert_type(store.get("o", Box[int]), cs.FlowSnapshot[Box[int]] | None)
    assert_type(store.get("o"), cs.FlowSnapshot[Any] | None)
    assert_type(store.get("o", None), cs.FlowSnapshot[Any] | None)
    assert_type(store.get("o", state_type=Order), cs.FlowSnapshot[Order] | None)
    assert_type(store.get_one("o", Order), cs.FlowSnapshot[Order])
    assert_type(store.get_one("o", Order).state.total, int)
    assert_type(store.get_one("o", Ticket).state["seat"], int)
    assert_type(store.get_one("o"), cs.FlowSnapshot[Any])
    assert_type(store.get_many(["o"], Order), dict[str, cs.FlowSnapshot[Order] | None])
    assert_type(
        store.get_many({"o": Order, "p": Parcel, "q": None}), dict[str, cs.FlowSnapshot[Any] | None]
    )


def writes_are_typed(store: cs.Store, flow: cs.FlowSnapshot[Order]) -> None:
    assert_type(store.get_or_create(flow), tuple[cs.FlowSnapshot[Order], bool])
    assert_type(cs.FlowSnapshot("o", state=Order(1)), cs.FlowSnapshot[Order])
    assert_type(cs.FlowSnapshot("o", state={"n": 1}), cs.FlowSnapshot[dict[str, int]])
    assert_type(
        cs.FlowSnapshot("t", state=Ticket(seat=1), state_type=Ticket), cs.FlowSnapshot[Ticket]
    )
    assert_type(flow.expires_at, datetime | None)
    flow.expires_at = None
    store.create(flow)
    store.update(flow)
    assert_type(cs.join_id("a", "b", tag="t"), str)
    assert_type(cs.split_id("a/b"), tuple[tuple[str, ...], str | None])
    assert_type(store.delete(flow), bool)
    assert_type(store.delete_many(["o"]), int)
    assert_type(store.delete("o", version=1), bool)
    assert_type(store.delete("o", revision=flow.revision), bool)


def wrong_states_are_seen(store: cs.Store, flow: cs.FlowSnapshot[Order]) -> None:
    flow.state.nothing  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]
    flow.state.total = "much"  # type: ignore[assignment]  # pyright: ignore[reportAttributeAccessIssue]
    store.get(5)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
    store.update("o")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    flow.expires_at = timedelta(1)  # type: ignore[assignment]  # pyright: ignore[reportAttributeAccessIssue]
    flow.version = 2  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]


def claims_are_typed(store: cs.Store) -> None:
    assert_type(store.claim_due(Order), list[cs.FlowSnapshot[Order]])
    assert_type(store.claim_due(Ticket, limit=5), list[cs.FlowSnapshot[Ticket]])
    assert_type(store.claim_due(), list[cs.FlowSnapshot[Any]])
    assert_type(store.claim_due(lease=timedelta(1)), list[cs.FlowSnapshot[Any]])
    assert_type(store.claim("o", Order), cs.FlowSnapshot[Order])
    assert_type(store.claim("o", Order, timeout=timedelta(1), owner="w"), cs.FlowSnapshot[Order])
    assert_type(store.claim("o"), cs.FlowSnapshot[Any])
    assert_type(store.claim("o", cs.RAW), cs.FlowSnapshot[Any])
    assert_type(store.claim_due((Order, Parcel)), list[cs.FlowSnapshot[Any]])
    assert_type(store.claim_due([Order, "Parcel"]), list[cs.FlowSnapshot[Any]])
    assert_type(store.claim_due("Order"), list[cs.FlowSnapshot[Any]])
    assert_type(store.claim_due(Order, wait=timedelta(1)), list[cs.FlowSnapshot[Order]])
    assert_type(store.watch_log("f", after=0, timeout=timedelta(1)), list[cs.LogEntry])
    assert_type(store.wait_due([Order, "Parcel"], timeout=timedelta(1)), bool)
    watched = store.watch("order-1", Order, after=1, timeout=timedelta(1))
    assert_type(watched, cs.FlowSnapshot[Order] | None)
    assert_type(store.watch("order-1", after=1, timeout=timedelta(1)), cs.FlowSnapshot[Any] | None)

    for job in store.claim_due(Order, lease=timedelta(seconds=30), limit=10):
        job.state.total += 1
        store.extend(job)
        store.release(job, due_at=None)


def fields_are_typed(flow: cs.FlowSnapshot[Order], wait: cs.WaitCondition) -> None:
    assert_type(flow.flow_id, str)
    assert_type(flow.position, cs.FlowPosition)
    assert_type(flow.status, cs.FlowStatus)
    assert_type(flow.error, str | None)
    assert_type(flow.wait_condition, cs.WaitCondition | None)
    assert_type(flow.due_at, datetime | None)
    assert_type(flow.attempts, int)
    assert_type(flow.created_at, datetime | None)
    assert_type(flow.updated_at, datetime | None)
    assert_type(flow.version, int)
    assert_type(flow.revision, str | None)
    assert_type(flow.owner, str | None)
    assert_type(flow.type_name, str)
    assert_type(wait.flow_ids, tuple[str, ...])
    assert_type(wait.outcome, cs.WaitOutcome)
    assert_type(wait.timeout, timedelta | None)
    assert_type(wait.results["a"], cs.ChildResult)
    flow.due_at = datetime.now().astimezone() + timedelta(1)
    flow.position = flow.position.advance()
    # attrs types an attribute by its converter for pyright, by its annotation for mypy.
    wait.flow_ids = ("a", "b")


def sessions_are_typed(store: cs.Store) -> None:
    with store.session() as session:
        assert_type(session, cs.Session)
        assert_type(session.get("o", Order), cs.FlowSnapshot[Order] | None)
        assert_type(session.get("o"), cs.FlowSnapshot[Any] | None)
        assert_type(session.get_one("o", Ticket).state, Ticket)
        session.guard(session.claim("o", Order))
        session.delete_by_id("p")
        assert_type(session.commit(resolve=True), cs.Receipt)
        assert_type(session.get_many(["o"], Order), dict[str, cs.FlowSnapshot[Order] | None])
        assert_type(session.get_wait_condition("w"), cs.WaitCondition | None)
        assert_type(session.get_for_each_progress("o", 0), cs.ForEachProgress | None)
        assert_type(session.claim_due(Order), list[cs.FlowSnapshot[Order]])
        assert_type(session.claim("o", Order), cs.FlowSnapshot[Order])
        assert_type(session.commit(), cs.Receipt)
        assert_type(session.receipt, cs.Receipt | None)

    with store.begin() as session:
        assert_type(session, cs.Session)


def transactions_are_typed(store: cs.Store) -> None:
    def add(session: cs.Session, amount: int) -> str:
        session.get_one("o", Order).state.total += amount
        return "done"

    assert_type(store.transact(add, 5), str)
    assert_type(store.transact(add, 5, attempts=3), str)
    assert_type(
        store.transact(lambda session: session.get("o", Order)), cs.FlowSnapshot[Order] | None
    )
    store.transact(add, "five")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def listings_are_typed(store: cs.Store) -> None:
    assert_type(store.query_flows(), cs.Page[cs.FlowSummary])
    assert_type(store.query_flows().items[0].expires_at, datetime | None)
    assert_type(store.query_flows(state_type=Order).items, tuple[cs.FlowSummary, ...])
    assert_type(store.query_flows(state_type="Order").cursor, str | None)
    assert_type(store.query_due(only="claimed"), cs.Page[cs.DueFlow])
    assert_type(store.count_due(state_type=Order), int)
    assert_type(store.stats().flows["Order"][cs.FlowStatus.FAILED], int)
    assert_type(store.query_flows(id_prefix="order-"), cs.Page[cs.FlowSummary])
    store.query_flows(id_prefix=b"order-")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    assert_type(store.count_flows(id_prefix=None), int)
    assert_type(store.iter_flows(), Iterator[cs.FlowSummary])
    assert_type(store.iter_wait_conditions(), Iterator[cs.WaitCondition])
    assert_type(store.complete_child("w", "a", result={"n": 1}), cs.Completion)
    assert_type(store.list_for_each_progress("o"), dict[int, cs.ForEachProgress])


async def the_async_face_is_typed(store: cs.AsyncStore) -> None:
    assert_type(await store.get("o", Order), cs.FlowSnapshot[Order] | None)
    assert_type(await store.get("o"), cs.FlowSnapshot[Any] | None)
    assert_type(await store.get_one("o", Ticket), cs.FlowSnapshot[Ticket])
    assert_type(await store.get_many(["o"], Order), dict[str, cs.FlowSnapshot[Order] | None])
    assert_type(await store.claim_due(Order), list[cs.FlowSnapshot[Order]])
    assert_type(await store.claim_due(), list[cs.FlowSnapshot[Any]])
    assert_type(await store.wait_due(timeout=timedelta(1)), bool)
    assert_type(await store.claim("o", Order), cs.FlowSnapshot[Order])
    assert_type(store.iter_flows(), AsyncIterator[cs.FlowSummary])
    assert_type(store.now(), datetime)

    async with store.session() as session:
        assert_type(session, cs.AsyncSession)
        assert_type(await session.get("o", Order), cs.FlowSnapshot[Order] | None)
        assert_type(await session.get_one("o"), cs.FlowSnapshot[Any])
        session.add(cs.FlowSnapshot("p", state=Order(1)))
        assert_type(await session.commit(), cs.Receipt)

    async with store.begin() as session:
        assert_type(session, cs.AsyncSession)

    async def add(session: cs.AsyncSession, amount: int) -> str:
        (await session.get_one("o", Order)).state.total += amount
        return "done"

    assert_type(await store.transact(add, 5), str)


def handlers_are_typed(store: cs.Store) -> None:
    worker = cs.Worker(store, retry=cs.Retry(attempts=3))

    def charge(amount: int, *, currency: str) -> str:
        return f"{amount} {currency}"

    @worker.handles(Order)
    def handle(run: cs.Run[Order]) -> None:
        assert_type(run.flow, cs.FlowSnapshot[Order])
        assert_type(run.session, cs.Session)
        assert_type(run.once("charge", charge, 5, currency="EUR"), str)
        run.once("charge", charge, "5")  # type: ignore[call-arg, arg-type]  # pyright: ignore[reportCallIssue, reportArgumentType]

    @worker.handles(Ticket, None, time_limit=timedelta(1))
    def several(run: cs.Run[Any]) -> None:
        run.complete()

    assert_type(worker.run_until_idle(), int)


def async_handlers_are_typed(store: cs.AsyncStore) -> None:
    worker = cs.AsyncWorker(store)

    async def charge(amount: int) -> str:
        return str(amount)

    @worker.handles(Order)
    async def handle(run: cs.AsyncRun[Order]) -> None:
        assert_type(run.flow, cs.FlowSnapshot[Order])
        assert_type(run.session, cs.AsyncSession)
        assert_type(await run.once("charge", charge, 5), str)
        assert_type(await run.once("number", int, "5"), int)


def named_states_keep_their_types(store: cs.Store) -> None:
    def lifted(data: dict[str, Any]) -> dict[str, Any]:
        return {**data, "colour": "red"}

    @cs.flow_state("car", version=2, upcasters={1: lifted})
    @attrs.define
    class Car:
        colour: str

    @cs.flow_state("seat")
    class Seat(TypedDict):
        row: int

    assert_type(Car("red").colour, str)
    assert_type(store.get_one("c", Car), cs.FlowSnapshot[Car])
    assert_type(store.get_one("s", Seat).state["row"], int)
    cs.flow_state("car", upcasters=[lifted])  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def stores_are_opened(url: str) -> None:
    assert_type(cs.open_store(url, owner="w", partitions=4), cs.Store)
    assert_type(cs.open_async_store(url, timeout=timedelta(1)), cs.AsyncStore)
    cs.open_store(url, nonsense=1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    with cs.MemoryStore("name") as store:
        assert_type(store, cs.MemoryStore)

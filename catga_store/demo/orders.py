"""An order flow: typed states, five steps, and the worker that runs them.

Each order is one flow. A step is a function that receives the run of a claimed order, does its work, and
commits the order at the next position, where the next worker continues, in any process. When a worker
dies in a step, another one claims the order after the lease has expired and runs the step again. Its
calls to other services repeat the same idempotency key, so each service acts once. A worker commits what a
handler has changed when it returns; the steps here commit before that, to report the version.

| position | step | commits |
|---|---|---|
| 0 | `pay` | the charge |
| 1 | `pack` | a ForEach: order and progress together, once per item |
| 2 | `ask` | the order suspended until the gift wrap is approved (WHEN_ANY, with a timeout) |
| 3 | `ship` | the shipments, and the order suspended until all are delivered (WHEN_ALL) |
| 4 | `close` | the order completed |
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence
from datetime import datetime
from datetime import timedelta
from decimal import Decimal

from attrs import Factory
from attrs import define
from attrs import frozen

import catga_store as cs

__all__ = [
    "APPROVAL_TIME",
    "LEASE",
    "STEPS",
    "Event",
    "Item",
    "Order",
    "Payment",
    "Shipment",
    "Worker",
    "ask",
    "close",
    "note_delivery",
    "pack",
    "part_of",
    "pay",
    "ship",
]

LEASE = timedelta(seconds=1)
"""When another worker takes over from a dead one. Real flows use 30 seconds."""

APPROVAL_TIME = timedelta(seconds=1)


# --- states: plain attrs classes, kept exactly ----------------------------------------------------


@frozen
class Item:
    """A line of an order."""

    name: str
    price: Decimal
    warehouse: str


@frozen
class Payment:
    """What was charged, and when."""

    amount: Decimal
    at: datetime


@cs.flow_state("catga-demo.Order")
@define
class Order:
    """The state of the flow. It is stored under the name in the decorator, so the class can move."""

    placed_at: datetime
    items: list[Item]
    payment: Payment | None = None
    packed: list[str] = Factory(list[str])
    gift_wrap: bool | None = None
    parcels: dict[str, int] = Factory(dict[str, int])
    closed_by: str | None = None

    @property
    def total(self) -> Decimal:
        """The sum of the prices."""
        return sum((item.price for item in self.items), Decimal(0))


@cs.flow_state("catga-demo.Shipment")
@define
class Shipment:
    """The state of a child flow: the items of one warehouse."""

    items: list[str]


def part_of(order_id: str, name: str) -> str:
    """Return an id in the same partition as the order: the part in braces decides."""
    return f"{{{order_id}}}/{name}"


# --- the worker -----------------------------------------------------------------------------------


@frozen
class Event:
    """What a worker did: a write that the store acknowledged (`version`), or a call (`key`)."""

    who: str
    flow_id: str
    text: str
    version: int | None = None
    position: str | None = None
    attempts: int | None = None
    key: str | None = None
    first: bool | None = None
    satisfied: bool | None = None


@frozen
class Worker:
    """A store to work on, the name of the worker, and a function that receives its events."""

    store: cs.Store
    name: str
    tell: Callable[[Event], None]

    def working_on(self, job: str) -> cs.Worker:
        """Return the worker that runs the steps of `orders`, or delivers `shipments`."""
        worker = cs.Worker(self.store, concurrency=1, lease=LEASE, owner=self.name)
        if job == "orders":
            worker.handles(Order)(self.run_step)
        else:
            worker.handles(Shipment)(self.deliver)

        return worker

    def run_step(self, run: cs.Run[Order]) -> None:
        """Run the next step of an order."""
        self.claimed(run.flow)
        STEPS[run.flow.position.current](self, run)

    def deliver(self, run: cs.Run[Shipment]) -> None:
        """Deliver a shipment; the commit that ends it completes what the order waits for."""
        run.complete({"parcels": len(run.flow.state.items)})
        receipt = run.session.commit()
        satisfied = any(done.now_satisfied for done in receipt.completions.values())
        text = "delivered, the last shipment of the order" if satisfied else "delivered"
        self.wrote(run.flow, text, satisfied=satisfied)

    def call_outside(self, order: cs.FlowSnapshot[Order], key: str, text: str) -> None:
        """Stand in for a payment or warehouse service that acts once for each idempotency key.

        This one keeps its records in the same store; the flow id is the idempotency key.
        """
        done = cs.FlowStatus.COMPLETED
        entry = cs.FlowSnapshot(f"outside/{key}", state={"did": text}, status=done)
        _, first = self.store.get_or_create(entry)
        text = f"requested: {text}" if first else f"requested again: {text}; was already done"
        self.tell(Event(self.name, order.flow_id, text, key=key, first=first))

    def claimed(self, order: cs.FlowSnapshot[Order]) -> None:
        """Report a claim, which is a write, and the wait that it ended."""
        wait = order.wait_condition
        text = f"claimed step {order.position}, attempt {order.attempts}"
        text += f": {wait.wait_type.name} {wait.outcome.name}" if wait is not None else ""
        self.wrote(order, text, attempts=order.attempts)

    def wrote(
        self,
        flow: cs.FlowSnapshot[Order] | cs.FlowSnapshot[Shipment],
        text: str,
        *,
        attempts: int | None = None,
        satisfied: bool | None = None,
    ) -> None:
        """Report a write that the store has acknowledged."""
        version, position = flow.version, str(flow.position)
        self.tell(
            Event(self.name, flow.flow_id, text, version, position, attempts, satisfied=satisfied)
        )


# --- the steps ------------------------------------------------------------------------------------


def pay(worker: Worker, run: cs.Run[Order]) -> None:
    """Charge the total once, and let the next step begin."""
    order, total = run.flow, run.flow.state.total
    worker.call_outside(order, f"{order.flow_id}/{order.position}", f"charge {total} EUR")
    order.state.payment = Payment(total, worker.store.now())
    run.next()  # ends the claim: any worker may take the next step
    run.session.commit()
    worker.wrote(order, f"paid {total} EUR")


def pack(worker: Worker, run: cs.Run[Order]) -> None:
    """Pack the items that are not packed yet, with a commit after each: a ForEach."""
    order, session = run.flow, run.session
    items, step = order.state.items, order.position.current
    progress = session.get_for_each_progress(order.flow_id, step)
    if progress is None:
        progress = cs.ForEachProgress()
        session.save_for_each_progress(order.flow_id, step, progress)

    for index in progress.pending(len(items)):
        name = items[index].name
        key = f"{order.flow_id}/{order.position.enter(index)}"
        worker.call_outside(order, key, f"pack the {name}")

        order.state.packed.append(name)
        progress.mark(index)
        session.commit()  # order and progress, or neither; renews the lease, too
        worker.wrote(order, f"packed the {name}, {progress.total_processed} of {len(items)}")

    run.next()
    session.commit()
    worker.wrote(order, "packed everything")


def ask(worker: Worker, run: cs.Run[Order]) -> None:
    """Suspend the order until the customer or a manager approves the gift wrap, or a timeout."""
    order = run.flow
    asked = [part_of(order.flow_id, who) for who in ("customer", "manager")]
    wait = cs.WaitCondition(
        part_of(order.flow_id, "gift-wrap"),
        flow_ids=asked,
        wait_type=cs.WaitType.WHEN_ANY,
        timeout=APPROVAL_TIME,
    )
    run.next()  # where to continue when the wait has ended
    run.suspend(wait)
    run.session.commit()
    worker.wrote(order, f"waiting for {' or '.join(asked)}, {APPROVAL_TIME.total_seconds():g} s")


def ship(worker: Worker, run: cs.Run[Order]) -> None:
    """Start one shipment for each warehouse, and suspend the order until all are delivered."""
    order = run.flow
    approval = order.wait_condition  # as it ended
    approved = approval is not None and approval.outcome is cs.WaitOutcome.SATISFIED
    order.state.gift_wrap = approved
    loads: dict[str, list[str]] = {}

    for item in order.state.items:
        loads.setdefault(part_of(order.flow_id, item.warehouse), []).append(item.name)

    shipments = [cs.FlowSnapshot(name, state=Shipment(items)) for name, items in loads.items()]
    run.spawn(*shipments, correlation_id=part_of(order.flow_id, "delivery"))
    run.session.commit()

    wrap = "gift wrap" if approved else "no gift wrap"
    worker.wrote(order, f"{wrap}; waiting for {len(loads)} shipments")


def close(worker: Worker, run: cs.Run[Order]) -> None:
    """Complete the order, which ends the claim."""
    note_delivery(worker, run.flow)
    run.session.commit()
    worker.wrote(run.flow, "completed")


def note_delivery(worker: Worker, order: cs.FlowSnapshot[Order]) -> None:
    """Note on an order what was delivered, and that it is completed."""
    delivery = order.wait_condition
    if delivery is not None:
        results = delivery.results.items()
        order.state.parcels = {child: result.result["parcels"] for child, result in results}

    order.state.closed_by = worker.name
    order.status = cs.FlowStatus.COMPLETED


STEPS: Sequence[Callable[[Worker, cs.Run[Order]], None]] = (pay, pack, ask, ship, close)

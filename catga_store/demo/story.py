"""What happens to one order: five acts, with real processes, on a real store."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from contextlib import suppress
from decimal import Decimal
from threading import Barrier
from typing import Protocol

import catga_store as cs
from catga_store.demo.orders import LEASE
from catga_store.demo.orders import Event
from catga_store.demo.orders import Item
from catga_store.demo.orders import Order
from catga_store.demo.orders import Shipment
from catga_store.demo.orders import Worker
from catga_store.demo.orders import note_delivery
from catga_store.demo.orders import part_of
from catga_store.demo.processes import WorkerProcess
from catga_store.demo.verdict import Account

__all__ = ["DemoError", "Narrator", "StoredRecord", "Story"]

_ITEMS = [
    Item("teapot", Decimal("34.50"), "leiden"),
    Item("kettle", Decimal("28.00"), "gouda"),
    Item("cups", Decimal("17.95"), "leiden"),
    Item("tray", Decimal("12.40"), "delft"),
    Item("tea", Decimal("6.10"), "gouda"),
]
_DIES_AT = 2
"""The item whose packing kills the first worker."""

_CLOSING = "4"
"""The position of an order that waits for its deliveries."""

StoredRecord = tuple[str, int, str]
"""Name, version and content of a record, as printed."""


class DemoError(Exception):
    """The demo could not continue; the message says where."""


class Narrator(Protocol):
    """Prints the story."""

    def act(self, title: str, text: str) -> None:
        """Print the title of an act."""
        ...

    def event(self, event: Event) -> None:
        """Print an event."""
        ...

    def stored(self, records: list[StoredRecord]) -> None:
        """Print the records that have changed since the last call."""
        ...


class Story:
    """One order on one store, which other processes can open by its URL as well."""

    def __init__(self, url: str, narrator: Narrator) -> None:
        self._url = url
        self._narrator = narrator
        self._store = cs.open_store(url)
        self._shown: set[StoredRecord] = set()
        self.order_id = f"order-{uuid.uuid4().hex[:12]}"
        state = Order(self._store.now(), list(_ITEMS))
        self.account = Account(cs.FlowSnapshot(self.order_id, state=state))

    def run(self) -> Account:
        """Play all acts. If one fails, cancel the order, so that no other worker takes it."""
        with self._store:
            self._store.ping()
            try:
                for act in (self._place, self._die, self._take_over, self._deliver, self._race):
                    act()
                    self._show_changes()

                self._read_account()
            except BaseException:
                self._cancel()
                raise

        return self.account

    # acts -----------------------------------------------------------------------------------------

    def _place(self) -> None:
        text = "A flow with a typed state, stored as version 1. It is due immediately: any worker may claim it."
        self._narrator.act("An order is placed", text)
        order = self.account.order
        self._store.create(order)
        total = f"{len(order.state.items)} items, {order.state.total} EUR"
        self._tell(Event("shop", self.order_id, f"placed {total}", order.version))

    def _die(self) -> None:
        key = self.account.keys_of_items()[_DIES_AT]
        text = (
            f"A worker process takes the payment and begins packing the order. At item {_DIES_AT} of "
            "the ForEach step, os._exit() ends the process: the warehouse has packed the item, but this "
            "has not been committed."
        )
        self._narrator.act("A worker dies in the middle", text)

        with WorkerProcess(self._url, "ada", "orders", crash_at=key) as ada:
            self._hear(ada)
            self.account.exit_code_of_the_killed = ada.wait()
            text = f"process {ada.pid} ended with exit code {ada.wait()}"
            self._tell(Event("ada", self.order_id, text))

    def _take_over(self) -> None:
        text = (
            f"Another process waits for work. When ada's lease of {LEASE.total_seconds():g} s has "
            "expired, this process claims the order and continues at the first unfinished item. "
            "The order then waits for an approval that does not arrive; the timeout wakes the "
            "order up."
        )
        self._narrator.act("Another process takes over", text)

        with WorkerProcess(self._url, "bob", "orders") as bob:
            self._hear(bob, until=lambda event: event.position == _CLOSING)
            bob.ask_to_stop()
            self._hear(bob)

        late = self._store.complete_child(
            part_of(self.order_id, "gift-wrap"), part_of(self.order_id, "customer")
        )
        self.account.late_approval = late
        outcome = None if late.outcome is None else late.outcome.name
        text = f"approves too late: accepted={late.accepted}, outcome={outcome}"
        self._tell(Event("customer", self.order_id, text))

    def _deliver(self) -> None:
        text = (
            "The shipments are separate flows. The commit that ends a shipment also reports to the"
            " order; exactly one of these commits learns that it was the last."
        )
        self._narrator.act("A courier delivers", text)

        with WorkerProcess(self._url, "cleo", "shipments") as cleo:
            self._hear(cleo, until=lambda event: event.satisfied is True)
            cleo.ask_to_stop()
            self._hear(cleo)

    def _race(self) -> None:
        text = (
            "The wait is over, so the order is due again. Two workers claim it at the same time, "
            "and one is refused. The winner overruns its lease, the other worker takes over, and "
            "the winner's late commit is refused as a whole."
        )
        self._narrator.act("Two workers want the same order", text)

        with ExitStack() as stack:
            eve, finn = (self._worker(name, stack) for name in ("eve", "finn"))
            late, other, order = self._claim_both(eve, finn)
            late.claimed(order)
            self._tell(Event(other.name, self.order_id, f"refused: {self.account.refused_claim}"))

            # Waits for the end of the other's claim, instead of being refused.
            taken = other.store.claim(self.order_id, Order, lease=LEASE, timeout=10 * LEASE)
            other.claimed(taken)

            self.account.refused_worker = late.name
            try:
                self._close(late, order)
            except cs.ConflictError as error:
                self.account.refused_commit = error
                text = f"{type(error).__name__}: {error}"
                self._tell(Event(late.name, self.order_id, text))

            self._close(other, taken)

    @staticmethod
    def _close(worker: Worker, order: cs.FlowSnapshot[Order]) -> None:
        note_delivery(worker, order)
        worker.store.update(order)
        worker.wrote(order, "completed")

    def _worker(self, name: str, stack: ExitStack) -> Worker:
        store = stack.enter_context(cs.open_store(self._url, owner=name))
        return Worker(store, name, self._tell)

    def _claim_both(
        self, eve: Worker, finn: Worker
    ) -> tuple[Worker, Worker, cs.FlowSnapshot[Order]]:
        """Claim from two threads at the same moment; return winner, loser and the order."""
        barrier = Barrier(2, timeout=10)

        def claim(worker: Worker) -> cs.FlowSnapshot[Order] | cs.FlowClaimedError:
            worker.store.ping()
            barrier.wait()
            try:
                return worker.store.claim(self.order_id, Order, lease=LEASE)
            except cs.FlowClaimedError as error:
                return error

        with ThreadPoolExecutor(2) as threads:
            replies = dict(zip((eve, finn), threads.map(claim, (eve, finn)), strict=True))

        match replies[eve], replies[finn]:
            case cs.FlowSnapshot() as order, cs.FlowClaimedError() as error:
                winner, loser = eve, finn
            case cs.FlowClaimedError() as error, cs.FlowSnapshot() as order:
                winner, loser = finn, eve
            case _:
                message = f"exactly one of two simultaneous claims must be refused: {replies}"
                raise DemoError(message)

        self.account.refused_claim = error
        return winner, loser, order

    # helpers --------------------------------------------------------------------------------------

    def _tell(self, event: Event) -> None:
        self.account.events.append(event)
        self._narrator.event(event)

    def _hear(self, process: WorkerProcess, until: Callable[[Event], bool] | None = None) -> None:
        """Pass on the events of this order, until one satisfies `until` or the process ends."""
        for event in process.events():
            if not event.flow_id.startswith((self.order_id, part_of(self.order_id, ""))):
                continue  # from an earlier demo in this store that was killed

            self._tell(event)
            if until is not None and until(event):
                return

        if until is not None:
            message = f"worker {process.name} ended too early, with exit code {process.wait()}"
            raise DemoError(message)

    def _show_changes(self) -> None:
        records = list(self._stored())
        self._narrator.stored([record for record in records if record not in self._shown])
        self._shown.update(records)

    def _stored(self) -> Iterator[StoredRecord]:
        """Yield the records of this order, as printed."""
        order = self._store.get_one(self.order_id, Order)
        state = order.state
        paid = "not paid" if state.payment is None else f"paid {state.payment.amount} EUR"
        text = f"{order.status.name} at {order.position}, attempts {order.attempts}; {paid}"
        text += f", packed {len(state.packed)} of {len(state.items)}"
        text += f"; claimed by {order.owner}" if order.owner else ""
        text += "" if order.due_at is None else f", due {order.due_at:%H:%M:%S.%f}"[:-3]
        yield order.flow_id, order.version, text

        for step, progress in self._store.list_for_each_progress(self.order_id).items():
            done = f"items {list(progress.processed_indices)} done"
            yield f"progress of step {step}", progress.version, done

        for wait in self._store.iter_wait_conditions(parent_flow_id=self.order_id):
            count = f"{wait.completed_count} of {len(wait.flow_ids)} completed"
            text = f"{wait.wait_type.name} {wait.outcome.name}, {count}"
            yield wait.correlation_id, wait.version, text

        for shipment_id, shipment in self._shipments().items():
            if shipment is not None:
                text = f"{shipment.status.name}: {', '.join(shipment.state.items)}"
                yield shipment_id, shipment.version, text

    def _shipments(self) -> dict[str, cs.FlowSnapshot[Shipment] | None]:
        warehouses = dict.fromkeys(item.warehouse for item in _ITEMS)
        ids = [part_of(self.order_id, warehouse) for warehouse in warehouses]
        return self._store.get_many(ids, Shipment)

    def _read_account(self) -> None:
        """Read the final records from the store, so that no check relies on an object in memory."""
        account, store = self.account, self._store
        account.order = store.get_one(self.order_id, Order)
        account.progress = store.list_for_each_progress(self.order_id)
        account.approval = store.get_wait_condition(part_of(self.order_id, "gift-wrap"))
        account.delivery = store.get_wait_condition(part_of(self.order_id, "delivery"))
        account.shipments = self._shipments()

    def _cancel(self) -> None:
        """Leave no work behind in a store that others use."""

        def cancel(session: cs.Session) -> None:
            ids = [self.order_id, *self._shipments()]
            for flow in session.get_many(ids).values():
                if flow is not None and not flow.status.is_terminal:
                    flow.status = cs.FlowStatus.CANCELLED

        with suppress(cs.CatgaStoreError):  # the first error is the one to report
            self._store.transact(cancel)
            for name in ("gift-wrap", "delivery"):
                self._store.clear_wait_condition(part_of(self.order_id, name))

"""The checks of the demo: pure functions of the stored records and the events of the workers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from collections.abc import Mapping

from attrs import Factory
from attrs import define
from attrs import frozen

import catga_store as cs
from catga_store.demo.orders import Event
from catga_store.demo.orders import Order
from catga_store.demo.orders import Shipment
from catga_store.demo.worker import CRASHED

__all__ = ["Account", "Verdict", "judge"]

_PAYING, _PACKING = cs.FlowPosition((0,)), cs.FlowPosition((1,))


@define
class Account:
    """What happened to one order: collected as it happened, and read from the store at the end."""

    order: cs.FlowSnapshot[Order]
    events: list[Event] = Factory(list[Event])
    exit_code_of_the_killed: int | None = None
    refused_claim: cs.FlowClaimedError | None = None
    refused_commit: cs.ConflictError | None = None
    refused_worker: str | None = None
    late_approval: cs.Completion | None = None
    progress: Mapping[int, cs.ForEachProgress] = Factory(dict[int, cs.ForEachProgress])
    approval: cs.WaitCondition | None = None
    delivery: cs.WaitCondition | None = None
    shipments: Mapping[str, cs.FlowSnapshot[Shipment] | None] = Factory(
        dict[str, cs.FlowSnapshot[Shipment] | None]
    )

    def keys_of_items(self) -> list[str]:
        """The idempotency keys of the ForEach, in order."""
        count = len(self.order.state.items)
        return [f"{self.order.flow_id}/{_PACKING.enter(index)}" for index in range(count)]

    def key_of_payment(self) -> str:
        """The idempotency key of the charge."""
        return f"{self.order.flow_id}/{_PAYING}"

    def done_outside(self, key: str) -> int:
        """How often a service has acted for this key."""
        return sum(event.key == key and event.first is True for event in self.events)

    def versions(self) -> list[int]:
        """Every version of the order whose write was acknowledged, ascending."""
        ours = (event for event in self.events if event.flow_id == self.order.flow_id)
        return sorted(event.version for event in ours if event.version is not None)


@frozen
class Verdict:
    """A claim, whether it holds, and what was found."""

    claim: str
    holds: bool
    found: str


def judge(account: Account) -> list[Verdict]:
    """Check every promise of the demo against the account."""
    return [*_work(account), *_waits(account), *_workers(account), *_end(account)]


def _work(account: Account) -> Iterator[Verdict]:
    state = account.order.state
    names = [item.name for item in state.items]
    done = [account.done_outside(key) for key in account.keys_of_items()]
    progress = account.progress.get(_PACKING.current, cs.ForEachProgress())
    marked = list(progress.processed_indices), list(progress.failed_indices)
    yield Verdict(
        "every item was packed exactly once",
        state.packed == names
        and done == [1] * len(names)
        and marked == (list(range(len(names))), []),
        f"{len(state.packed)} of {len(names)} in the order, {len(marked[0])} in the progress,"
        f" done outside: {', '.join(map(str, done))}",
    )

    paid = None if state.payment is None else state.payment.amount
    charged = account.done_outside(account.key_of_payment())
    yield Verdict(
        "the order was paid exactly once",
        paid == state.total and charged == 1,
        f"{paid} of {state.total} EUR, times charged: {charged}",
    )

    calls = Counter(event.key for event in account.events if event.key is not None)
    repeated = [key for key, count in calls.items() if count > 1]
    yield Verdict(
        "the interrupted step was requested twice under one key but done only once",
        len(repeated) == 1 and account.done_outside(repeated[0]) == 1,
        f"requested again: {', '.join(repeated) or 'nothing'}",
    )


def _waits(account: Account) -> Iterator[Verdict]:
    approval, delivery = account.approval, account.delivery
    late = account.late_approval
    yield Verdict(
        "WHEN_ANY timed out, and the late approval received that outcome",
        approval is not None
        and approval.outcome is cs.WaitOutcome.TIMED_OUT
        and account.order.state.gift_wrap is False
        and late is not None
        and not late.accepted
        and late.outcome is cs.WaitOutcome.TIMED_OUT,
        f"{_outcome(approval)}, late answer {'accepted' if late and late.accepted else 'refused'}",
    )

    last = [event.flow_id for event in account.events if event.satisfied]
    children = () if delivery is None else delivery.flow_ids
    yield Verdict(
        "WHEN_ALL was satisfied by exactly one of the deliveries",
        delivery is not None
        and delivery.outcome is cs.WaitOutcome.SATISFIED
        and set(delivery.results) == set(children)
        and len(last) == 1
        and sum(account.order.state.parcels.values()) == len(account.order.state.items),
        f"{_outcome(delivery)}, last: {', '.join(last) or 'no worker'}",
    )


def _outcome(wait: cs.WaitCondition | None) -> str:
    return "missing" if wait is None else wait.outcome.name


def _workers(account: Account) -> Iterator[Verdict]:
    second = 2
    ours = (event for event in account.events if event.position == str(_PACKING))
    again = [event.who for event in ours if event.attempts == second]
    code = account.exit_code_of_the_killed
    yield Verdict(
        "a worker died in the middle of a step, and another took over for the second attempt",
        code == CRASHED and len(again) == 1,
        f"exit code {code}, second attempt by {', '.join(again) or 'no worker'}",
    )

    claim, commit, late = account.refused_claim, account.refused_commit, account.refused_worker
    yield Verdict(
        "one of two workers was refused, and no part of the late commit was written",
        claim is not None
        and isinstance(commit, cs.ClaimLostError)
        and late is not None
        and account.order.state.closed_by not in (None, late),
        f"{type(claim).__name__}, {type(commit).__name__};"
        f" {late} was late, closed by {account.order.state.closed_by}",
    )


def _end(account: Account) -> Iterator[Verdict]:
    version, versions = account.order.version, account.versions()
    yield Verdict(
        "the versions form a chain: each was written exactly once",
        versions == list(range(1, version + 1)),
        f"1 to {version}" if versions == list(range(1, version + 1)) else f"{versions}",
    )

    flows: list[cs.FlowSnapshot[Order] | cs.FlowSnapshot[Shipment] | None] = [
        account.order,
        *account.shipments.values(),
    ]
    ended = [flow for flow in flows if flow and flow.status is cs.FlowStatus.COMPLETED]
    held = [flow for flow in flows if flow and (flow.owner or flow.due_at)]
    yield Verdict(
        "the order and its shipments are COMPLETED, and no worker holds or awaits any of them",
        len(ended) == len(flows) > 1 and not held,
        f"{len(ended)} of {len(flows)} completed, {len(held)} held or due",
    )

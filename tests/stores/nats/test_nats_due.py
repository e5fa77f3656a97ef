"""What is due on NATS is found in time that depends on how much is asked for, not on the backlog."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

import pytest

import catga_store as cs
from catga_store.drivers import nats_inbox
from catga_store.protocol.conversation import ask
from catga_store.protocol.requests import Due
from catga_store.stores.nats import listings
from catga_store.stores.nats import searching
from catga_store.testing import ManualClock

MANY = 1500
"""More than the server names in one answer."""

NEARBY = 16
"""How many more flows a claimer looks at than it wants."""


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Count the answers that come from the server."""
    seen: list[int] = []
    answer = nats_inbox._answer

    def counted(data: bytes, raw: bytes | None, epoch: int) -> nats_inbox.Answer:
        seen.append(1)
        return answer(data, raw, epoch)

    monkeypatch.setattr(nats_inbox, "_answer", counted)
    return seen


def fill(
    store: cs.Store, clock: ManualClock, apart: timedelta, number: int, state: object = None
) -> list[str]:
    """Store flows that are due so far apart, the last of them now; return their ids, oldest first."""
    names = [f"f-{place:04}" for place in range(number)]
    for start in range(0, number, 150):
        with store.begin() as session:
            for place in range(start, min(start + 150, number)):
                due_at = clock() - apart * (number - 1 - place)
                session.add(cs.FlowSnapshot(names[place], state=state or {}, due_at=due_at))

    return names


@pytest.mark.parametrize("apart", [timedelta(0), timedelta(milliseconds=1), timedelta(days=1)])
def test_a_backlog_is_claimed_from_its_old_end(
    url_of: Callable[[str], str], clock: ManualClock, apart: timedelta
) -> None:
    """Each flow is claimed once, those that are due longest first, however close together they are."""
    with cs.open_store(url_of("nats"), clock=clock) as store:
        names = fill(store, clock, apart, MANY)
        store.create(cs.FlowSnapshot("later", state={}, due_at=clock() + timedelta(milliseconds=1)))
        claimed: list[str] = []
        while some := store.claim_due(limit=100, lease=timedelta(hours=1)):
            claimed += [flow.flow_id for flow in some]
            if apart:
                assert set(claimed) <= set(names[: len(claimed) + NEARBY])

        assert sorted(claimed) == names


def test_a_claim_looks_at_few_of_a_backlog(
    url_of: Callable[[str], str], clock: ManualClock, answers: list[int]
) -> None:
    """Claiming one of 1,500 takes as few answers as it would of 150, once the place is known."""
    with cs.open_store(url_of("nats"), clock=clock) as store:
        fill(store, clock, timedelta(milliseconds=7), MANY)
        looked: list[int] = []
        for _ in range(20):
            answers.clear()
            assert len(store.claim_due()) == 1
            looked.append(len(answers))

        assert max(looked[1:]) < 200


@pytest.mark.parametrize("least", [1, 3])
def test_a_backlog_that_changes_while_it_is_claimed(
    url_of: Callable[[str], str],
    clock: ManualClock,
    monkeypatch: pytest.MonkeyPatch,
    least: int,
) -> None:
    """What becomes due before the place that was looked at last, or long after it, is found too."""
    monkeypatch.setattr(searching, "_LEAST_NAMED", least)
    with cs.open_store(url_of("nats"), clock=clock) as store:
        left = set(fill(store, clock, timedelta(seconds=3), 150))
        for step in range(12):
            left -= {flow.flow_id for flow in store.claim_due(limit=5, lease=timedelta(days=9))}
            due_at = clock() - timedelta(days=step + 1)
            store.create(cs.FlowSnapshot(f"old-{step}", state={}, due_at=due_at))
            first, *_ = store._run(ask(Due(int(clock().timestamp() * 1000), 1)))
            assert first.key.id == f"old-{step}"
            store.claim(first.key.id, lease=timedelta(days=9))
            clock.advance(timedelta(hours=step))
            left |= {f"new-{step}"}
            store.create(cs.FlowSnapshot(f"new-{step}", state={}))

        while some := store.claim_due(limit=9, lease=timedelta(days=9)):
            left -= {flow.flow_id for flow in some}

        assert left == set()


@dataclass
class Apple:
    """The state of most."""

    n: int = 0


@dataclass
class Pear:
    """The state of a few."""

    n: int = 0


def test_flows_of_another_type_do_not_slow_a_claim(
    url_of: Callable[[str], str], clock: ManualClock, answers: list[int]
) -> None:
    """A worker of one type of state is given those and the ones without a type, and looks at no others."""
    with cs.open_store(url_of("nats"), clock=clock) as store:
        fill(store, clock, timedelta(milliseconds=1), 600, Apple())
        clock.advance(timedelta(seconds=1))
        store.create(cs.FlowSnapshot("pear", state=Pear()))
        store.create(cs.FlowSnapshot("plain", state={}))
        answers.clear()
        found = store.claim_due(Pear, limit=1) + store.claim_due(limit=1, state_type=Pear)
        assert len(answers) < 60
        assert sorted(flow.flow_id for flow in found) == ["pear", "plain"]


def test_parent_of_another_type_is_not_claimed(
    url_of: Callable[[str], str], clock: ManualClock
) -> None:
    """A condition that has ended hands its parent to workers of the parent's type only."""
    with cs.open_store(url_of("nats"), clock=clock) as store:
        for state in (Apple(), Pear()):
            name = type(state).__name__
            store.create(cs.FlowSnapshot(name, state=state, due_at=None))
            wait = cs.WaitCondition(f"w-{name}", flow_ids=["a"], parent_flow_id=name)
            store.set_wait_condition(wait)
            assert store.complete_child(f"w-{name}", "a").now_satisfied

        now_ms = int(clock().timestamp() * 1000)
        found = store._run(
            ask(Due(now_ms, 10, types=("", store.get_one("Pear")._loaded.head.type)))
        )
        assert [one.key.id for one in found] == ["w-Pear"]
        assert [flow.flow_id for flow in store.claim_due(limit=5, state_type=Pear)] == ["Pear"]
        assert [flow.flow_id for flow in store.claim_due(limit=5, state_type=Apple)] == ["Apple"]


def test_overdue_at_one_time_is_ordered_by_id(
    url_of: Callable[[str], str], clock: ManualClock
) -> None:
    """Also if few are asked for, and again, from where the first had to look."""
    with cs.open_store(url_of("nats"), clock=clock) as store:
        for number in (5, 2, 7, 1, 6, 3, 4):
            wait = cs.WaitCondition(f"w-{number}", flow_ids=["a"], timeout=timedelta(0))
            store.set_wait_condition(wait)

        clock.advance(timedelta(seconds=1))
        for _ in range(2):
            found = store.get_timed_out_wait_conditions(limit=2)
            assert [one.correlation_id for one in found] == ["w-1", "w-2"]


def test_page_of_flows_created_later_than_now(
    url_of: Callable[[str], str], clock: ManualClock
) -> None:
    """Times that are given may be to come; pages have them first, and by themselves if asked."""
    with cs.open_store(url_of("nats"), clock=clock) as store:
        tomorrow = clock() + timedelta(days=1)
        store.create(cs.FlowSnapshot("now", state={}))
        store.create(cs.FlowSnapshot("then", state={}, created_at=tomorrow))
        names = [one.flow_id for one in store.query_flows().items]
        assert names == ["then", "now"]
        later = store.query_flows(created_after=clock() + timedelta(hours=1))
        assert [one.flow_id for one in later.items] == ["then"]


@pytest.mark.parametrize("apart", [timedelta(0), timedelta(milliseconds=1), timedelta(days=30)])
def test_pages_of_many(
    url_of: Callable[[str], str],
    clock: ManualClock,
    monkeypatch: pytest.MonkeyPatch,
    apart: timedelta,
) -> None:
    """Every flow is on one page, newest first and then by id, however close together they are."""
    monkeypatch.setattr(searching, "_LEAST_NAMED", 1)
    monkeypatch.setattr(listings, "_MOST_WANTED", 7)
    with cs.open_store(url_of("nats"), clock=clock) as store:
        for start in range(0, 120, 40):
            with store.begin() as session:
                for place in range(start, start + 40):
                    created_at = clock() - apart * (place // 3)
                    session.add(cs.FlowSnapshot(f"f-{place:03}", state={}, created_at=created_at))

        names = [f"f-{place:03}" for place in range(120)]
        for _ in range(2):  # and again, from where the first had to look
            assert [one.flow_id for one in store.iter_flows()] == names
            assert [one.flow_id for one in store.query_flows(limit=50).items] == names[:50]

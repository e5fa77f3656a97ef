"""Conversations that are interleaved, one exchange at a time: every history equals a serial order.

A stage is a store and what one of its exchanges is: a store protocol request, behind any API, or one trip to
the transport. A store joins by its line in `STAGES`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st

from catga_store import ConflictError
from catga_store import FlowSnapshot
from catga_store import Session
from catga_store import open_async_store
from catga_store import open_store
from catga_store.core import records
from catga_store.core import sessions
from catga_store.core.unit_of_work import UnitOfWork
from catga_store.protocol.conversation import Conversation
from catga_store.protocol.conversation import Pause
from catga_store.protocol.conversation import ReplyLostError
from catga_store.testing import AsyncAPI
from catga_store.testing import BlockingAPI
from catga_store.testing import ManualClock
from catga_store.testing import StoreAPI
from catga_store.testing.interleavings.acts import Act
from catga_store.testing.interleavings.histories import NEVER
from catga_store.testing.interleavings.histories import Event
from catga_store.testing.interleavings.play import VERBS
from catga_store.testing.interleavings.play import Hand
from catga_store.testing.interleavings.play import Part
from catga_store.testing.interleavings.play import Stage
from catga_store.testing.interleavings.play import play
from catga_store.testing.interleavings.scenarios import SCENARIOS
from catga_store.testing.interleavings.scenarios import SETUPS
from catga_store.testing.interleavings.scenarios import Scenario
from catga_store.testing.interleavings.scenarios import check_scenario


class Theatre:
    """A stage, the clock of its store, and how to empty it."""

    def __init__(self, stage: Stage, clock: ManualClock, clear: Callable[[], None]) -> None:
        self.stage = stage
        self.clock = clock
        self.clear = clear
        self.examples = settings().max_examples

    def check(self, scenario: Scenario, order: Any, **options: Any) -> list[Event]:
        """Play a scenario on an empty store."""
        self.clear()
        return check_scenario(self.stage, self.clock, scenario, order, **options)


Build = Callable[[str, ManualClock, ExitStack], Theatre]


def at_protocol(api: str) -> Build:
    """One exchange is one store protocol request, behind that API."""

    def build(url: str, clock: ManualClock, stack: ExitStack) -> Theatre:
        opened: StoreAPI = (
            BlockingAPI(lambda: open_store(url, clock=clock))
            if api == "blocking"
            else AsyncAPI(lambda: open_async_store(url, clock=clock), backend=api)
        )
        stack.enter_context(opened)
        return Theatre(Stage.at_protocol(opened), clock, opened.clear)

    return build


def below_protocol(url: str, clock: ManualClock, stack: ExitStack) -> Theatre:
    """One exchange is one request on the transport of the store."""
    store = stack.enter_context(open_store(url, clock=clock))
    return Theatre(Stage.below_protocol(store), clock, store.clear)


STAGES: dict[str, tuple[str, Build]] = {
    "memory": ("memory", at_protocol("blocking")),
    "memory transport": ("memory", below_protocol),
    "sqlite transport": ("sqlite", below_protocol),
    "memory asyncio": ("memory", at_protocol("asyncio")),
    "sqlite trio": ("sqlite", at_protocol("trio")),
    "redis-6.2 transport": ("redis-6.2", below_protocol),
    "redis-8.2 transport": ("redis-8.2", below_protocol),
    "redis-8.2 asyncio": ("redis-8.2", at_protocol("asyncio")),
    "nats transport": ("nats", below_protocol),
    "nats trio": ("nats", at_protocol("trio")),
    "redis-cluster transport": ("redis-cluster", below_protocol),
    "nats-cluster transport": ("nats-cluster", below_protocol),
}


def stages(ending: str = "") -> list[Any]:
    """Name the stages whose names end so; those on three servers are in the soak."""
    return [pytest.param(name, marks=left_to(name)) for name in STAGES if name.endswith(ending)]


def left_to(stage: str) -> list[pytest.MarkDecorator]:
    """Return the marks of a stage that the quick run leaves out."""
    if "cluster" in stage:
        return [pytest.mark.soak]

    return [pytest.mark.nightly] if "6.2" in stage else []


@pytest.fixture(params=stages())
def theatre(request: pytest.FixtureRequest, url_of: Callable[[str], str]) -> Iterator[Theatre]:
    """Open one stage after the other."""
    kind, build = STAGES[request.param]
    with ExitStack() as stack:
        theatre = build(url_of(kind), ManualClock(), stack)
        theatre.examples = examples_on(kind)
        yield theatre


def examples_on(kind: str) -> int:
    """How many examples are drawn: where a commit takes milliseconds, fewer in the same time."""
    share = {"nats": 4, "nats-cluster": 16}
    return max(settings().max_examples // share.get(kind, 1), 1)


@pytest.fixture
def memory() -> Iterator[Theatre]:
    """Open the quickest stage."""
    with ExitStack() as stack:
        yield at_protocol("blocking")("memory://", ManualClock(), stack)


orders = st.lists(st.integers(0, 5), max_size=30)


@pytest.mark.parametrize("name", SCENARIOS)
def test_every_order_of_the_first_exchanges_is_serial(memory: Theatre, name: str) -> None:
    """On the memory store: all orders of the first eight exchanges of two, the first five of three."""
    actors = len(SCENARIOS[name].actors)
    for order in itertools.product(range(actors), repeat={2: 8, 3: 5}[actors]):
        memory.check(SCENARIOS[name], order)


@pytest.mark.parametrize("theatre", stages(" transport"), indirect=True)
def test_a_claim_and_an_extension_meet_in_every_order(theatre: Theatre) -> None:
    """The first one wins: a claim sees an extension that came since it looked what is due."""
    for order in itertools.product((0, 1), repeat=6):
        theatre.check(SCENARIOS["claim against extend"], order)


def draw(theatre: Theatre, **strategies: Any) -> Callable[[Callable[..., object]], None]:
    """Run what is decorated with what is drawn, as often as the stage allows."""

    def run(check: Callable[..., object]) -> None:
        settings(max_examples=theatre.examples)(given(**strategies)(check))()

    return run


names = st.sampled_from(sorted(SCENARIOS))
parts = st.lists(st.sampled_from(VERBS), min_size=1, max_size=4)


def test_every_history_equals_some_serial_order(theatre: Theatre) -> None:
    """Whatever the order of the exchanges, the results are those of some order of the operations."""

    @draw(theatre, name=names, order=orders)
    def check(name: str, order: list[int]) -> None:
        theatre.check(SCENARIOS[name], order)


def test_whatever_actors_do_at_once_is_serial(theatre: Theatre) -> None:
    """Two or three actors with drawn parts."""

    @draw(
        theatre,
        before=st.sampled_from(SETUPS),
        actors=st.lists(parts, min_size=2, max_size=3),
        leases_end=st.booleans(),
        order=orders,
    )
    def check(
        before: list[str], actors: list[list[str]], leases_end: bool, order: list[int]
    ) -> None:
        theatre.check(Scenario(before, actors, leases_end), order)


def test_an_actor_that_dies_has_done_a_thing_or_has_not(theatre: Theatre) -> None:
    """An actor that stops forever in an exchange leaves what some serial order explains, with it or without."""

    @draw(
        theatre,
        name=names,
        order=orders,
        dies_after=st.lists(st.one_of(st.none(), st.integers(0, 5)), min_size=3, max_size=3),
    )
    def check(name: str, order: list[int], dies_after: list[int | None]) -> None:
        theatre.check(SCENARIOS[name], order, dies_after=dies_after)


@pytest.mark.parametrize("theatre", stages(" transport"), indirect=True)
def test_a_lost_reply_changes_no_result(theatre: Theatre) -> None:
    """A reply that is lost after it was applied: the next try returns what the first would have."""
    theatre.check(SCENARIOS["increments"], [0, 1, 2], lost={4, 5, 6})
    for at in range(3, 8):  # a completion whose condition is cleared, or set, before its reply
        theatre.check(SCENARIOS["clear against complete"], [3], lost={at})
        theatre.check(SCENARIOS["set against complete"], [1, 1, 1], lost={at})

    for at in range(1, 6):  # an update of a flow that is deleted before its reply
        theatre.check(SCENARIOS["delete and create"], [0, 0, 1, 1, 1, 1, 1], lost={at})

    @draw(
        theatre,
        name=names,
        order=orders,
        lost=st.sets(st.integers(0, 25), min_size=1, max_size=3),
    )
    def check(name: str, order: list[int], lost: set[int]) -> None:
        theatre.check(SCENARIOS[name], order, lost=lost)


@pytest.mark.parametrize("theatre", stages(" transport"), indirect=True)
def test_what_was_only_checked_is_still_so_when_the_commit_is_written(theatre: Theatre) -> None:
    """Two who each check what the other writes: never both, whatever the order (write skew)."""
    context = theatre.stage.context

    def writer(mine: str, other: str) -> Conversation[Any]:
        unit = UnitOfWork()
        session = Session(theatre.stage.run, context, unit)
        session.get_one(mine).state["on call"] = False
        session.check(session.get_one(other))
        return sessions.session_commit(context, unit)

    for order in itertools.product((0, 1), repeat=6):
        theatre.clear()
        for name in ("{t}ann", "{t}bob"):
            theatre.stage.run(
                records.create(context, FlowSnapshot(name, state={"on call": True}, due_at=None))
            )

        both = [writer("{t}ann", "{t}bob"), writer("{t}bob", "{t}ann")]
        outcomes = advance(theatre.stage, both, order)
        assert sorted(outcomes) in (["refused", "written"], ["refused", "refused"]), order


@pytest.mark.parametrize("theatre", stages(" transport"), indirect=True)
def test_an_update_whose_flow_is_deleted_before_its_reply_was_done(theatre: Theatre) -> None:
    """Its reply is lost and the record that remembered it is gone: it does not conflict with itself."""
    stage, context = theatre.stage, theatre.stage.context
    flow = FlowSnapshot("{t}flow", state={"n": 0})
    stage.run(records.create(context, flow))
    flow.state["n"] = 1
    conversation = stage.lower(records.update(context, flow))
    stage.perform(next(conversation))
    assert stage.run(records.delete(context, "{t}flow"))
    resume = partial(conversation.throw, ReplyLostError("the reply"))
    for _ in range(100):
        try:
            request = resume()
        except StopIteration:
            break

        resume = partial(conversation.send, stage.perform(request))

    assert flow.version == 2
    assert stage.run(records.get(context, "{t}flow")) is None


def advance(
    stage: Stage, conversations: list[Conversation[Any]], order: tuple[int, ...]
) -> list[str]:
    """Hold conversations an exchange at a time, then to their ends; whether each was written."""
    lowered = [stage.lower(one) for one in conversations]
    requests: list[Any] = [next(one) for one in lowered]
    outcomes = ["", ""]
    for turn in [*order, *[0] * 100, *[1] * 100]:
        if outcomes[turn]:
            continue

        try:
            requests[turn] = lowered[turn].send(stage.perform(requests[turn]))
        except StopIteration:
            outcomes[turn] = "written"
        except ConflictError:
            outcomes[turn] = "refused"

    return outcomes


# --- the driver -------------------------------------------------------------------------------------


def test_a_step_is_one_exchange_of_one_actor(memory: Theatre) -> None:
    """Operations overlap exactly as the order says; an operation ends with its last exchange."""
    history = play(memory.stage, [Part("ann", ["create"])], [])
    parts = [Part("ann", ["transact"]), Part("bob", ["transact"])]
    history = play(memory.stage, parts, [0, 1, 0, 1, 1, 1, 1], history=history)
    spans = [(event.actor, event.called, event.answered) for event in history]
    assert spans == [("ann", 0, 0), ("ann", 1, 3), ("bob", 2, 7)]
    assert [event.answer.n for event in history] == [0, 10, 20]


def test_an_actor_that_dies_gets_no_reply(memory: Theatre) -> None:
    """What was under way stands in the history as never answered; nothing follows it."""
    history = play(memory.stage, [Part("ann", ["create", "get"], dies_after=0)], [])
    assert [(event.name, event.answer) for event in history] == [("create", NEVER)]
    history = play(memory.stage, [Part("bob", ["get"])], [], history=history)
    assert history[-1].answer.n == 0, "it had been sent"


def test_a_verb_that_needs_what_was_not_read_is_left_out(memory: Theatre) -> None:
    """No actor writes, extends or closes what it does not hold."""
    verbs = ["update", "commit", "delete", "extend", "release", "close", "time_out", "suspend all"]
    assert play(memory.stage, [Part("ann", verbs)], []) == []


def test_a_sweeper_leaves_a_claimed_flow_alone(memory: Theatre) -> None:
    """Its owner continues with it; if no actor holds the flow, the sweeper ends the wait."""
    verbs = ["create", "suspend all", "claim", "get_wait", "time_out"]
    for left_out in (None, "claim"):
        memory.clear()
        part = Part("ann", [verb for verb in verbs if verb != left_out])
        names = [event.name for event in play(memory.stage, [part], [])]
        assert ("time_out" in names) is (left_out is not None)


@pytest.mark.parametrize("theatre", ["memory transport"], indirect=True)
def test_an_actor_that_never_hears_a_reply_has_none(theatre: Theatre) -> None:
    """A commit may have happened, and ends its actor; a read has not, and the actor continues."""
    theatre.clear()  # and lay the store out
    lost = range(10_000)
    history = play(theatre.stage, [Part("ann", ["create", "get"])], [], lost=lost)
    assert [(event.name, event.answer) for event in history] == [("create", NEVER)]
    history = play(theatre.stage, [Part("bob", ["get", "get"])], [], lost=lost)
    assert history == []


def test_an_operation_without_an_end_is_found_out(memory: Theatre) -> None:
    """An actor that never ends is named, and the run ends."""
    hand = Hand(memory.stage, "ann")

    def wait_for_ever() -> Conversation[Any]:
        while True:
            yield Pause(1)

    hand.get = lambda: Act("get", None, wait_for_ever(), lambda _: None)  # type: ignore[method-assign]
    with pytest.raises(AssertionError, match=r"an actor has still not finished: .*ann"):
        play(memory.stage, [Part("ann", ["get"])], [], hands={"ann": hand})

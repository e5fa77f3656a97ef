"""Interleavings: several conversations with one store, advanced one exchange at a time.

A `Stage` says how conversations with a store are run and what one exchange is: at the store protocol,
where every store replies to the same requests (`Stage.at_protocol`), or below it, where an exchange
is one trip to the transport (`Stage.below_protocol`). `play` lets actors run their parts, each step
being one exchange of one actor, in the given order, and returns the history. `sequential_model` says
which serial orders are right, `histories` whether there is one:

    history = play(stage, [Part("ann", ["get", "update"]), Part("bob", ["get", "update"])], order)
    require_serial(history, sequential_model.step, sequential_model.State())

An actor may die between two exchanges, and replies may be lost on the transport. Nothing is slept: a
pause is a step that does nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Collection
from collections.abc import Iterable
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from datetime import timedelta
from functools import partial
from typing import Any
from typing import NamedTuple

from catga_store.core import claims
from catga_store.core import parts
from catga_store.core import records
from catga_store.core import sessions
from catga_store.core.context import Context
from catga_store.core.receipts import Receipt
from catga_store.core.unit_of_work import UnitOfWork
from catga_store.errors import CatgaStoreError
from catga_store.errors import CommitUncertainError
from catga_store.errors import ConflictError
from catga_store.errors import StoreUnavailableError
from catga_store.model.flows import FlowSnapshot
from catga_store.model.flows import FlowStatus
from catga_store.model.parts import Part as StoredPart
from catga_store.model.waits import WaitCondition
from catga_store.model.waits import WaitOutcome
from catga_store.model.waits import WaitType
from catga_store.protocol.conversation import Conversation
from catga_store.protocol.conversation import Invoke
from catga_store.protocol.conversation import Pause
from catga_store.protocol.conversation import ReplyLostError
from catga_store.protocol.conversation import Request
from catga_store.protocol.conversation import ask
from catga_store.protocol.conversation import through
from catga_store.session import Session
from catga_store.testing.apis import StoreAPI
from catga_store.testing.hooks import conversation_runner
from catga_store.testing.interleavings import sequential_model
from catga_store.testing.interleavings.acts import Act
from catga_store.testing.interleavings.histories import NEVER
from catga_store.testing.interleavings.histories import Event
from catga_store.testing.interleavings.part_verbs import PART_VERBS
from catga_store.testing.interleavings.part_verbs import PartVerbs

__all__ = ["VERBS", "Hand", "Part", "Stage", "play"]

_LEASE = timedelta(seconds=30)


class Stage:
    """A store whose conversations are advanced step by step.

    `run` runs a conversation over store protocol requests to its end. `lower` turns such a conversation into
    a conversation over exchanges, and `perform` performs one exchange.
    """

    def __init__(
        self,
        context: Context,
        run: Callable[[Conversation[Any]], Any],
        perform: Callable[[Request[Any]], Any],
        lower: Callable[[Conversation[Any]], Conversation[Any]] = lambda same: same,
    ) -> None:
        self.context = context
        self.run = run
        self.lower = lower
        self._perform = perform

    @classmethod
    def at_protocol(cls, api: StoreAPI) -> Stage:
        """Return a stage for any store behind any API, on which one exchange is one store protocol request."""
        return cls(api.store._context, api.run, lambda request: api.run(ask(request)))

    @classmethod
    def below_protocol(cls, store: Any) -> Stage:
        """Return a stage for an unused blocking store, on which one exchange is one request on its transport."""
        protocol, hold = conversation_runner(store)

        def converse(request: Request[Any]) -> Conversation[Any]:
            return (
                ask(request) if isinstance(request, Pause | Invoke) else protocol.converse(request)
            )

        return cls(
            store._context,
            store._run,
            lambda request: hold(ask(request)),
            lambda conversation: through(conversation, converse),
        )

    def perform(self, request: Request[Any]) -> Any:
        """Do one exchange."""
        if isinstance(request, Pause):
            return None

        return request.function() if isinstance(request, Invoke) else self._perform(request)

    def now(self) -> datetime:
        """The store's clock."""
        return self.context.now()


class Part(NamedTuple):
    """What one actor does, as a sequence of verbs from `VERBS`.

    With `dies_after`, the actor receives this number of replies, makes one more exchange, and then stops for
    good.
    """

    actor: str
    verbs: Sequence[str]
    dies_after: int | None = None


class Hand(PartVerbs):
    """What one actor holds: the flow and the condition that it read last, and how it does things."""

    flow_id = "{t}flow"
    wait_id = "{t}wait"

    def __init__(self, stage: Stage, actor: str) -> None:
        super().__init__()
        self.stage = stage
        self.actor = actor
        self.flow: FlowSnapshot[Any] | None = None
        self.wait: WaitCondition | None = None

    # what was read, as the serial model knows it ----------------------------------------------------

    def seen(self, flow: FlowSnapshot[Any]) -> sequential_model.Seen:
        return sequential_model.seen_flow(flow, self.stage.now())

    def base(self, flow: FlowSnapshot[Any]) -> sequential_model.Base:
        claim = None if flow._claim is None else flow._claim.token
        seen = self.seen(flow)
        return sequential_model.Base(seen.revision, claim, seen.due)

    def took_flow(self, flow: FlowSnapshot[Any] | None) -> sequential_model.Seen | None:
        self.flow = flow
        return None if flow is None else self.seen(flow)

    def took_claim(self, flow: FlowSnapshot[Any]) -> sequential_model.Claimed:
        self.flow = flow
        token = None if flow._claim is None else flow._claim.token
        wait = flow.wait_condition
        if wait is None or wait.outcome is WaitOutcome.PENDING:
            return sequential_model.Claimed(self.seen(flow), token)

        return sequential_model.Claimed(
            self.seen(flow), token, wait.outcome.name, frozenset(wait.results)
        )

    def took_wait(self, wait: WaitCondition | None) -> sequential_model.WaitSeen | None:
        self.wait = wait
        return None if wait is None else sequential_model.seen_wait(wait)

    # flows ------------------------------------------------------------------------------------------

    def get(self) -> Act:
        return Act("get", None, records.get(self.stage.context, self.flow_id), self.took_flow)

    def create(self) -> Act:
        flow = FlowSnapshot(self.flow_id, state={"n": 0})
        return Act(
            "create", 0, records.create(self.stage.context, flow), lambda _: self.took_flow(flow)
        )

    def update(self) -> Act | None:
        flow = self.flow
        if flow is None:
            return None

        base = self.base(flow)
        flow.state["n"] += 1
        given = base, flow.state["n"]
        return Act(
            "update", given, records.update(self.stage.context, flow), lambda _: self.seen(flow)
        )

    def commit(self) -> Act | None:
        """`update`, through a session."""
        flow = self.flow
        if flow is None:
            return None

        unit = UnitOfWork()
        unit.add(flow)
        base = self.base(flow)
        flow.state["n"] += 1
        conversation = self.committed(unit)
        return Act("update", (base, flow.state["n"]), conversation, lambda _: self.seen(flow))

    def committed(self, unit: UnitOfWork) -> Conversation[Any]:
        try:
            return (yield from sessions.session_commit(self.stage.context, unit))
        finally:
            unit.close()

    def transact(self) -> Act:
        written: list[FlowSnapshot[Any]] = []

        def add_ten(unit: UnitOfWork) -> None:
            session = Session(self.stage.run, self.stage.context, unit)
            flow = session.get_one(self.flow_id)
            flow.state["n"] += 10
            written.append(flow)

        conversation = sessions.transact(self.stage.context, add_ten, 100)
        return Act("transact", 10, conversation, lambda _: self.seen(written[-1]))

    def delete(self) -> Act | None:
        flow = self.flow
        if flow is None:
            return None

        self.flow = None
        return Act(
            "delete", self.base(flow), records.delete(self.stage.context, flow), lambda there: there
        )

    # claims -----------------------------------------------------------------------------------------

    def claim(self) -> Act:
        conversation = claims.claim(
            self.stage.context, self.flow_id, lease=_LEASE, owner=self.actor
        )
        return Act("claim", self.actor, conversation, self.took_claim)

    def claim_due(self) -> Act:
        conversation = claims.claim_due(self.stage.context, lease=_LEASE, limit=1, owner=self.actor)
        return Act(
            "claim_due",
            self.actor,
            conversation,
            lambda flows: self.took_claim(flows[0]) if flows else None,
        )

    def extend(self) -> Act | None:
        flow = self.flow
        if flow is None or flow._claim is None:
            return None

        return Act(
            "extend", flow._claim.token, claims.extend(self.stage.context, flow), lambda _: None
        )

    def release(self) -> Act | None:
        flow = self.flow
        if flow is None or flow._claim is None:
            return None

        given = self.base(flow)
        return Act(
            "release", given, claims.release(self.stage.context, flow), lambda _: self.seen(flow)
        )

    # conditions -------------------------------------------------------------------------------------

    def new_wait(self, kind: str) -> tuple[WaitCondition, sequential_model.Terms]:
        """A condition on two children: `all` or `any`, perhaps `overdue` already, with the parent."""
        children, any_of, overdue = ("a", "b"), "any" in kind, "overdue" in kind
        parent = "parent" in kind
        wait = WaitCondition(
            self.wait_id,
            flow_ids=children,
            wait_type=WaitType.WHEN_ANY if any_of else WaitType.WHEN_ALL,
            timeout=timedelta(0) if overdue else None,
            parent_flow_id=self.flow_id if parent else None,
        )
        return wait, sequential_model.Terms(frozenset(children), any_of, overdue, parent)

    def set(self, kind: str) -> Act:
        wait, terms = self.new_wait(kind)
        conversation = records.set_wait_condition(self.stage.context, wait)
        return Act("set", terms, conversation, lambda now: (now, self.took_wait(wait)))

    def complete(self, child: str, *, ok: bool = True) -> Act:
        return Act(
            "complete",
            (child, ok),
            records.complete_child(self.stage.context, self.wait_id, child, success=ok),
            lambda done: (
                done.accepted,
                done.duplicate,
                done.now_satisfied,
                None if done.outcome is None else done.outcome.name,
            ),
        )

    def fail(self, child: str) -> Act:
        return self.complete(child, ok=False)

    def get_wait(self) -> Act:
        conversation = records.get_wait_condition(self.stage.context, self.wait_id)
        return Act("get_wait", None, conversation, self.took_wait)

    def close(self) -> Act | None:
        wait = self.wait
        if wait is None or wait.outcome is not WaitOutcome.PENDING or wait.version == 0:
            return None

        wait.outcome = WaitOutcome.TIMED_OUT
        conversation = records.update_wait_condition(self.stage.context, wait)
        self.wait = None
        return Act("close", wait.revision, conversation, lambda _: sequential_model.seen_wait(wait))

    def clear(self) -> Act:
        conversation = records.clear_wait_condition(self.stage.context, self.wait_id)
        return Act("clear", None, conversation, lambda there: there)

    # several in one commit -----------------------------------------------------------------------------

    def suspend(self, kind: str) -> Act | None:
        flow = self.flow
        if flow is None or flow.status is FlowStatus.SUSPENDED:
            return None

        wait, terms = self.new_wait(f"{kind} parent")
        base = self.base(flow)
        unit = UnitOfWork()
        sessions.suspend(self.stage.context, unit, flow, wait)
        return Act(
            "suspend",
            (base, terms),
            self.committed(unit),
            lambda _: (self.seen(flow), wait.outcome.name),
        )

    def journal(self, key: str | None = None) -> Act | None:
        """What a worker does at the end of a step: the flow, an entry, and a part unless there is one."""
        flow = self.flow
        if flow is None:
            return None

        unit = UnitOfWork()
        unit.add(flow)
        base = self.base(flow)
        flow.state["n"] += 1
        part = StoredPart(self.flow_id, "part", {"n": flow.state["n"]})
        unit.add_part(part, "keep")
        unit.append(parts.append_change(self.stage.context, self.flow_id, {}, key=key))
        given = base, flow.state["n"], key

        def answer(receipt: Receipt) -> tuple[Any, ...]:
            (entry,) = receipt.entries
            self.part = None if receipt.kept else part
            return self.seen(flow), entry.sequence, entry.duplicate, bool(receipt.kept)

        return Act("journal", given, self.committed(unit), answer)

    def time_out(self) -> Act | None:
        """A sweeper's commit: the condition that was read is over, and its parent continues."""
        flow, wait = self.flow, self.wait
        if flow is None or wait is None or wait.outcome is not WaitOutcome.PENDING:
            return None

        if flow._claim is not None:
            return None

        given = self.base(flow), wait.revision
        unit = UnitOfWork()
        unit.add(flow)
        unit.add(wait)
        wait.outcome = WaitOutcome.TIMED_OUT
        flow.status = FlowStatus.RUNNING
        flow.due_at = self.stage.now()
        self.flow = self.wait = None
        return Act("time_out", given, self.committed(unit), lambda _: self.seen(flow))


VERBS = (
    "get",
    "create",
    "update",
    "commit",
    "transact",
    "delete",
    "claim",
    "claim_due",
    "extend",
    "release",
    "set all",
    "set any",
    "set all overdue",
    "set all overdue parent",
    "complete a",
    "complete b",
    "fail a",
    "get_wait",
    "close",
    "clear",
    "suspend all",
    "suspend any",
    "suspend all overdue",
    "time_out",
    *PART_VERBS,
)
"""What an actor can do. One that needs what it has not read is left out when its turn comes."""


class _Actor:
    """One actor on the stage: its part, what it holds, and the exchange it is about to make."""

    def __init__(self, part: Part, hand: Hand, history: list[Event]) -> None:
        self._verbs = list(part.verbs)
        self._left = part.dies_after
        self._hand = hand
        self._history = history
        self._act: Act | None = None
        self._conversation: Conversation[Any] | None = None
        self._request: Request[Any] | None = None
        self._called = 0

    @property
    def is_done(self) -> bool:
        """Whether it has nothing left to do."""
        return self._act is None and not self._verbs

    def step(self, tick: int, *, lost: bool) -> None:
        """Make one exchange, beginning the next operation if none is under way."""
        if self._act is None and not self._begin(tick):
            return

        conversation, request = self._conversation, self._request
        assert conversation is not None, "a play must be inside a conversation"
        assert request is not None, "a play must have a pending request"
        if self._left == 0:
            with suppress(CatgaStoreError):  # the actor does not hear the error
                self._hand.stage.perform(request)

            self._die(tick)
            return

        self._left = None if self._left is None else self._left - 1
        try:
            reply = self._exchange(request, lost=lost)
        except Exception as error:  # noqa: BLE001  the conversation decides what it means
            self._go_on(tick, partial(conversation.throw, error))
        else:
            self._go_on(tick, partial(conversation.send, reply))

    def _begin(self, tick: int) -> bool:
        """Begin the next operation that is possible; whether there is one under way now."""
        while self._verbs:
            name, *rest = self._verbs.pop(0).split(" ", 1)
            act: Act | None = getattr(self._hand, name)(*rest)
            if act is None:
                continue

            self._act, self._called = act, tick
            conversation = self._hand.stage.lower(act.conversation)
            self._conversation = conversation
            self._go_on(tick, partial(conversation.send, None))
            return self._act is not None  # pyright: ignore[reportUnnecessaryComparison]  _go_on ends acts

        return False

    def _exchange(self, request: Request[Any], *, lost: bool) -> Any:
        reply = self._hand.stage.perform(request)
        if lost and not isinstance(request, Pause | Invoke):
            message = "injected fault: the reply was lost after the request was applied"
            raise ReplyLostError(message)

        return reply

    def _go_on(self, tick: int, resume: Callable[[], Request[Any]]) -> None:
        act = self._act
        assert act is not None
        try:
            self._request = resume()
        except StopIteration as stop:
            self._end(tick, act.answer(stop.value))
        except CommitUncertainError:
            self._die(tick)
        except StoreUnavailableError:
            self._end(tick, None, happened=False)
        except CatgaStoreError as error:
            self._end(tick, _refused(error))

    def _end(self, tick: int, answer: Any, *, happened: bool = True) -> None:
        act, self._act, self._request = self._act, None, None
        if act is not None and happened:
            event = Event(self._hand.actor, act.name, act.given, answer, self._called, tick)
            self._history.append(event)

    def _die(self, tick: int) -> None:
        """Stop forever; what is under way may have happened, and may not."""
        self._end(tick, NEVER)
        self._verbs.clear()
        assert self._conversation is not None, "a play must be inside a conversation"
        self._conversation.close()


def _refused(error: CatgaStoreError) -> sequential_model.Refused:
    errors = error.conflicts if isinstance(error, ConflictError) else (error,)
    names = tuple(sorted(type(each).__name__ for each in errors))
    return sequential_model.Refused(
        names, getattr(error, "actual", None) if len(names) == 1 else None
    )


def play(
    stage: Stage,
    parts: Sequence[Part],
    order: Iterable[int],
    *,
    lost: Collection[int] = (),
    hands: dict[str, Hand] | None = None,
    history: Sequence[Event] = (),
) -> list[Event]:
    """The history of actors that each make one exchange whenever `order` names them.

    A number of `order` counts among those that have something left to do; when it ends they continue
    in turn. The reply of the exchange at each step of `lost` is lost after it was applied. `history`
    is what was before, and `hands` what the actors hold since then; the result begins with it.
    """
    events = list(history)
    hands = {} if hands is None else hands
    actors = [
        _Actor(part, hands.setdefault(part.actor, Hand(stage, part.actor)), events)
        for part in parts
    ]
    tick = max((event.answered for event in events), default=-1)
    drawn = iter(order)

    for _ in range(10_000):
        active = [actor for actor in actors if not actor.is_done]
        if not active:
            return events

        tick += 1
        active[next(drawn, tick) % len(active)].step(tick, lost=tick in lost)

    message = f"after 10,000 exchanges, an actor has still not finished: {parts}"
    raise AssertionError(message)

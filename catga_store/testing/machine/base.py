"""What the rules of the parity machine share: drawn values, copies, and the comparison with the oracle.

A `Copy` is an object that a user holds, with the record of the oracle that it was read as. After every
rule, `everything_agrees` reads everything through the public API, and the wake-up times of conditions
through the store protocol, and compares it with the oracle. Over 400 lines: the values that rules draw
and the comparisons concern the same ids and states.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import asdict
from dataclasses import dataclass
from datetime import UTC
from datetime import datetime
from datetime import timedelta
from typing import Any
from typing import ClassVar
from typing import NamedTuple
from typing import TypeVar

from hypothesis import note
from hypothesis import register_random
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine
from hypothesis.stateful import initialize
from hypothesis.stateful import invariant

from catga_store.errors import CatgaStoreError
from catga_store.errors import ConflictError
from catga_store.model.flows import FlowPosition
from catga_store.model.flows import FlowSnapshot
from catga_store.model.flows import FlowStatus
from catga_store.model.listings import Retention
from catga_store.model.progress import ForEachProgress
from catga_store.model.waits import WaitCondition
from catga_store.model.waits import WaitOutcome
from catga_store.model.waits import WaitType
from catga_store.protocol.chance import choices
from catga_store.protocol.conversation import ask
from catga_store.protocol.keys import WAIT
from catga_store.protocol.requests import Due
from catga_store.testing.apis import StoreAPI
from catga_store.testing.clock import ManualClock
from catga_store.testing.machine import oracle

__all__ = [
    "CHILDREN",
    "DIFFERENCES",
    "EPOCH",
    "FLOW_IDS",
    "LARGE",
    "OWNERS",
    "STEPS",
    "TYPES",
    "WAIT_IDS",
    "Copy",
    "Difference",
    "MachineBase",
    "Order",
    "Parcel",
    "compare",
    "draft_of",
    "flow_changes",
    "ms_of",
    "new_flow",
    "offsets",
    "progress_of",
    "result_of",
    "shown_of",
    "spans",
    "states",
    "terms_of",
]

T = TypeVar("T")
M = TypeVar("M")

# So that a run which Hypothesis repeats claims the same flows.
register_random(choices)


class Difference(NamedTuple):
    """An unavoidable difference between stores: its name, its reason, and its documentation."""

    name: str
    reason: str
    link: str


DIFFERENCES: tuple[Difference, ...] = (
    Difference(
        "a deposed leader's reads",
        "a NATS leader that has been deposed but does not know it yet may return, for some "
        "seconds, data that was acknowledged earlier; the majority decides writes",
        "catga_store/stores/nats/__init__.py",
    ),
    Difference(
        "what a failed clear leaves",
        "on a server, `clear` removes records in several steps, so a failed call may have "
        "removed only some of them; call it again",
        "docs/how-to/own-store.md",
    ),
    Difference(
        "a NATS server that runs out of storage",
        "nats-server (2.15.1) keeps the first messages of an atomic batch in which it runs "
        "out of storage, so a commit of several records may be stored in part and raises "
        "`CommitUncertainError`; with `max_bytes`, the whole commit is refused",
        "docs/operations/nats.md",
    ),
)
"""Every known difference between stores. Any other is a bug."""


# --- what is drawn --------------------------------------------------------------------------------

# `{t}` ids share a partition. The last two differ in normalisation.
FLOW_IDS = (
    "{t}/order",
    "{t}:a b.*>\n\x00",
    "{u}🦊",
    "plain",
    "e\u0301",
    "\u00e9" + "x" * 510,
)
WAIT_IDS = ("{t}/ship", "{t}/order", "{u} w*.>\x00", "plain")
CHILDREN = ("s-1", "s 2\n", "{t}/order", "é\x00")
STEPS = (0, 7)
OWNERS = ("ann", "bob 🦊")


@dataclass
class Order:
    """A typed state."""

    n: int
    note: str = ""


@dataclass
class Parcel:
    """Another typed state, of the same shape."""

    n: int
    note: str = ""


TYPES: dict[str | None, type | None] = {None: None, "Order": Order, "Parcel": Parcel}

LARGE = "large " * 20_000

spans = st.sampled_from(
    [
        timedelta(milliseconds=1),
        timedelta(microseconds=1_500),
        timedelta(seconds=1),
        timedelta(seconds=20),
        timedelta(seconds=31),
        timedelta(seconds=70),
    ]
)
"""Leases, timeouts and steps of the clock: shorter and longer than the retention under test."""

states: st.SearchStrategy[Any] = st.one_of(
    st.fixed_dictionaries({"n": st.integers(0, 3), "note": st.just("")}),
    st.builds(Order, st.integers(0, 3)),
    st.builds(Parcel, st.integers(0, 3)),
    st.just({"n": "no number", "note": ""}),
)
offsets = st.sampled_from(
    [
        None,
        timedelta(seconds=-20),
        timedelta(0),
        timedelta(microseconds=1),
        timedelta(seconds=1),
        timedelta(seconds=31),
    ]
)
TAGS: tuple[dict[str, str], ...] = (
    {},
    {"a": "1"},
    {"a": "1", "b:": ""},
    {"b:": "", "a": "2"},
    {"\u00e9{": "1:\U0001f98a\x00"},
)
flow_changes = st.one_of(
    st.tuples(st.just("n"), st.integers(0, 9)),
    st.tuples(st.just("status"), st.sampled_from(FlowStatus)),
    st.tuples(st.just("position"), st.sampled_from([(0,), (1,), (1, 0), (2, 3, 4)])),
    st.tuples(st.just("due"), offsets),
    st.tuples(st.just("expires"), offsets),
    st.tuples(st.just("error"), st.sampled_from([None, "", "it broke: 🦊\x00"])),
    st.tuples(st.just("attempts"), st.sampled_from([0, 5])),
    st.tuples(st.just("tags"), st.sampled_from(TAGS)),
    st.tuples(st.just("large"), st.none()),
    st.tuples(st.just("nothing"), st.none()),
)


@st.composite
def new_flow(draw: st.DrawFn, ids: st.SearchStrategy[str]) -> dict[str, Any]:
    """Draw the arguments of a new `FlowSnapshot`; times are offsets from now."""
    arguments: dict[str, Any] = {"flow_id": draw(ids), "state": draw(states)}
    if draw(st.integers(0, 3)) == 3:  # noqa: PLR2004  most flows are plain ones
        arguments["status"] = draw(st.sampled_from(FlowStatus))
        arguments["due_at"] = draw(offsets)
        arguments["created_at"] = draw(offsets)
        arguments["attempts"] = draw(st.sampled_from([0, 3]))
        arguments["expires_at"] = draw(offsets)
        arguments["position"] = FlowPosition(draw(st.sampled_from([(0,), (4, 2)])))

    if draw(st.booleans()):
        arguments["tags"] = draw(st.sampled_from(TAGS))

    return arguments


# --- what users hold ------------------------------------------------------------------------------


@dataclass(eq=False)
class Copy:
    """An object in a user's hands; `base` is what the model says it was read or written as."""

    obj: Any
    key: Any
    base: Any = None
    lease: timedelta | None = None
    claim: int | None = None
    is_read: bool = True
    """Whether what is stored was read, or written through it: not so of a part listed without its body."""


def draft_of(flow: FlowSnapshot[Any], base: oracle.Flow | None = None) -> oracle.Draft:
    """What the user wants this flow to be."""
    state: Any = flow.state
    if isinstance(state, Order | Parcel):
        type_name, plain = type(state).__name__, asdict(state)
    else:
        type_name, plain = "" if base is None else base.type_name, {**state}

    return oracle.Draft(
        plain,
        type_name,
        flow.position.path,
        flow.status.name,
        flow.error,
        shown_of(flow.wait_condition),
        flow.due_at,
        flow.attempts,
        flow.created_at,
        flow.expires_at,
        tuple(sorted(flow.tags.items())),
    )


def shown_of(wait: WaitCondition | None) -> oracle.Shown | None:
    """The condition on a flow, as the model shows it."""
    if wait is None:
        return None

    t = terms_of(wait)
    name, beside = wait.correlation_id, wait._suspended_on
    return oracle.Shown(
        name, t.children, t.any_of, t.timeout, t.parent, wait.outcome.name, wait.created_at, beside
    )


def reopens(copy: Copy, outcome: WaitOutcome) -> bool:
    """Whether that outcome would open a condition again that has ended, which is refused."""
    ended = copy.base is not None and copy.base.outcome != "PENDING"
    return ended and outcome is WaitOutcome.PENDING


def terms_of(wait: WaitCondition) -> oracle.Terms:
    """A condition's definition, as the model keeps it."""
    any_of = wait.wait_type is WaitType.WHEN_ANY
    return oracle.Terms(wait.flow_ids, any_of, wait.timeout, wait.parent_flow_id)


def progress_of(progress: ForEachProgress) -> oracle.Progress:
    """A progress record as the model keeps it."""
    return oracle.Progress(
        frozenset(progress.processed_indices),
        frozenset(progress.failed_indices),
        progress.last_processed_index,
    )


def result_of(wait: WaitCondition) -> dict[str, oracle.Result]:
    """The completions that a condition was read with."""
    return {
        child: (result.success, result.result, result.error)
        for child, result in wait.results.items()
    }


# --- the machine's base ---------------------------------------------------------------------------

_HELD = 6
_EVERYTHING = 1000
_FAR = datetime(2100, 1, 1, tzinfo=UTC)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class MachineBase(RuleBasedStateMachine):
    """A store, its model, and what users hold of it."""

    partitions: ClassVar[tuple[int, ...]] = (1, 4)

    def open_api(self, clock: ManualClock, retention: Retention, partitions: int) -> StoreAPI:
        """Open the store under test, empty."""
        raise NotImplementedError

    @initialize(data=st.data(), keeps=st.sampled_from([True, True, True, False]))
    def start(self, data: st.DataObject, keeps: bool) -> None:
        """Open a store, which keeps what has ended for a minute or so, or forever."""
        partitions = data.draw(st.sampled_from(self.partitions), label="partitions")
        self.clock = ManualClock(datetime(2030, 1, 1, 0, 0, 0, 400, tzinfo=UTC))
        flows, failed, waits = (timedelta(seconds=s) if keeps else None for s in (60, 90, 45))
        self.retention = Retention(flows=flows, failed=failed, waits=waits)
        self.api = self.open_api(self.clock, self.retention, partitions)
        self.world = oracle.World(self.clock, flows, failed, waits, partitions=partitions)
        # What the store under test was opened with; 1: it keeps only the current version.
        self.world.history.length = self.api.store._context.settings.history
        self.listed_versions: dict[str, int] = {}
        self.flows: list[Copy] = []
        self.waits: list[Copy] = []
        self.progress: list[Copy] = []
        self.parts: list[Copy] = []
        self.sessions: list[Any] = []
        self.reading: list[dict[str, Any]] = []
        self.revisions: dict[Any, Any] = {}
        self.started = True
        for arguments in data.draw(st.lists(new_flow(st.sampled_from(FLOW_IDS)), max_size=4)):
            self.create_one(arguments)

    started = False

    def teardown(self) -> None:
        """Close the store."""
        if self.started:
            for opened in self.sessions:
                opened.real.close()

            self.api.close()

    # helpers --------------------------------------------------------------------------------------

    @property
    def now(self) -> datetime:
        """The store's time."""
        return self.world.now

    def pass_time(self, span: timedelta) -> None:
        """Move the clock, and sweep once parts without a flow may be removed: they are not absent by then.

        Any write may sweep as well, so until they are removed a store may have them or not.
        """
        self.clock.advance(span)
        if self.world.parts.due_orphans(self.now):
            self.world.forget_expired()
            self.world.sweep(self.api.sweep(_EVERYTHING), _EVERYTHING, self.see())

    def moment(self, offset: timedelta | None) -> datetime | None:
        """So much from now, to the microsecond."""
        return None if offset is None else self.clock.now + offset

    def create_one(self, arguments: dict[str, Any]) -> None:
        """Create a flow."""

    def flow_id(self, place: int) -> str:
        """Mostly the id of a flow that is there, once there is one."""
        return _one_of(sorted(self.world.flows), FLOW_IDS, place)

    def wait_id(self, place: int) -> str:
        """Mostly the id of a condition that is there, once there is one."""
        return _one_of(sorted(self.world.waits), WAIT_IDS, place)

    def pick(self, copies: list[Copy], which: int) -> Copy:
        """One of what is held, the newest for 0."""
        return copies[-1 - which % len(copies)]

    def keep(self, copies: list[Copy], copy: Copy) -> Copy:
        """Hold another object, and let go of the oldest."""
        copies.append(copy)
        del copies[:-_HELD]
        return copy

    def agree(self, real: Callable[[], T], modelled: Callable[[], M]) -> tuple[T, M] | None:
        """Do it to both; `None` if both refuse, for the same reason."""
        try:
            want = modelled()
        except oracle.Refusal as refusal:
            try:
                got = real()
            except CatgaStoreError as error:
                self._same_refusal(error, refusal)
                return None

            message = f"returned {got!r}, expected {refusal.names} {refusal.facts}"
            raise AssertionError(message) from None

        return real(), want

    def _same_refusal(self, error: CatgaStoreError, refusal: oracle.Refusal) -> None:
        errors = error.conflicts if isinstance(error, ConflictError) else (error,)
        names = sorted(type(each).__name__ for each in errors)
        assert names == sorted(refusal.names), (
            f"refused with {names}, expected {refusal.names}: {error}"
        )
        for name, value in refusal.facts.items():
            found = getattr(error, name)
            assert found == value, f"{name} is {found!r}, expected {value!r}: {error}"

    def new_snapshot(self, arguments: dict[str, Any]) -> FlowSnapshot[Any]:
        """A new flow; offsets become moments."""
        given = dict(arguments)
        for name in ("due_at", "created_at", "expires_at"):
            offset = given.get(name)
            if isinstance(offset, timedelta):
                given[name] = self.clock.now + offset

        given["state"] = deepcopy(given["state"])
        return FlowSnapshot(given.pop("flow_id"), **given)

    def change_flow(self, flow: FlowSnapshot[Any], change: tuple[str, Any]) -> None:
        """Change an object as a user would."""
        name, value = change
        typed = not isinstance(flow.state, dict)
        if name in ("n", "large"):
            field_name, new = ("n", value) if name == "n" else ("note", LARGE)
            if typed:
                setattr(flow.state, field_name, new)
            else:
                flow.state[field_name] = new
        elif name == "status":
            flow.status = value
        elif name == "position":
            flow.position = FlowPosition(value)
        elif name == "error":
            flow.error = value
        elif name == "attempts":
            flow.attempts = value
        elif name == "tags":
            flow.tags = value
        elif name == "due":
            due = self.moment(value)
            flow.due_at = due
            expected = None if due is None else oracle.ceil_ms(due)
            assert flow.due_at == expected, "due_at is rounded up to a millisecond"
        elif name == "expires":
            expires = self.moment(value)
            flow.expires_at = expires
            expected = None if expires is None else oracle.ceil_ms(expires)
            assert flow.expires_at == expected, "expires_at is rounded up to a millisecond"

    # comparisons ----------------------------------------------------------------------------------

    def _same_revision(self, key: tuple[str, Any], revision: str | None, stamp: int) -> None:
        """A revision names one write: neither two revisions for it, nor one for two."""
        known = self.revisions.setdefault((key, revision), stamp)
        assert known == stamp, f"{key} has the revision {revision} of another write"
        known = self.revisions.setdefault((key, stamp), revision)
        assert known == revision, f"{key} was written once but has two revisions"

    def same_flow(
        self, flow: FlowSnapshot[Any], want: oracle.Flow, what: str = "", *, former: bool = False
    ) -> None:
        """An object, just read or written, is what the model says; `former`: of a former version."""
        got = draft_of(flow, want)
        fields = {
            "state": (got.state, want.state),
            "position": (got.position, want.position),
            "status": (got.status, want.status),
            "error": (got.error, want.error),
            "wait_condition": (got.waits_for, want.waits_for),
            "due_at": (got.due, want.due),
            "expires_at": (got.expires, want.expires),
            "attempts": (got.attempts, want.attempts),
            "tags": (got.tags, want.tags),
            "created_at": (flow.created_at, want.created),
            "updated_at": (flow.updated_at, want.updated),
            "version": (flow.version, want.version),
            "owner": (flow.owner, want.owner),
            "type_name": (flow.type_name, want.type_name or got.type_name),
        }
        compare(f"{what or 'flow'} {flow.flow_id!r}", fields)
        if not former:
            self._same_revision(("flow", flow.flow_id), flow.revision, want.stamp)

    def same_wait(self, wait: WaitCondition, want: oracle.Wait, *, results: bool = True) -> None:
        """A condition, just read or written, is what the model says."""
        fields: dict[str, tuple[Any, Any]] = {
            "definition": (terms_of(wait), want.terms),
            "outcome": (wait.outcome.name, want.outcome),
            "created_at": (wait.created_at, want.created),
            "deadline": (wait.deadline, want.deadline),
            "version": (wait.version, want.version),
        }
        if results:
            fields["results"] = result_of(wait), want.results
            fields["completed_count"] = wait.completed_count, len(want.results)

        compare(f"wait condition {wait.correlation_id!r}", fields)
        self._same_revision(("wait", wait.correlation_id), wait.revision, want.stamp)

    def same_progress(
        self, key: tuple[str, int], progress: ForEachProgress, want: oracle.Progress
    ) -> None:
        """Check that a progress record, just read or written, is what the model says."""
        got = progress_of(progress)
        fields = {
            "processed": (got.processed, want.processed),
            "failed": (got.failed, want.failed),
            "last": (got.last, want.last),
            "version": (progress.version, want.version),
        }
        compare(f"progress {key}", fields)
        self._same_revision(("progress", key), progress.revision, want.stamp)

    def pages(self, query: Callable[..., Any], limit: int, **filters: Any) -> list[Any]:
        """A listing, page by page."""
        items: list[Any] = []
        cursor = None

        while True:
            page = query(limit=limit, cursor=cursor, **filters)
            assert len(page) <= limit, "the page is longer than the limit"
            items += page
            cursor = page.cursor
            if cursor is None:
                return items

    # the look at everything -----------------------------------------------------------------------

    def wakes(self) -> dict[str, datetime]:
        """When conditions call for their parents: what `claim_due` goes by, read without claiming."""
        found = self.api.run(ask(Due(ms_of(_FAR), 10_000)))
        return {
            entry.key.id: EPOCH + timedelta(milliseconds=entry.head.due_ms)
            for entry in found
            if entry.key.kind == WAIT and entry.head.due_ms is not None
        }

    def see(self) -> oracle.Seen:
        """What a reader finds where the store had a choice."""
        return oracle.Seen(
            {summary.flow_id: summary.due_at for summary in self.api.query_flows(limit=1000)},
            {w.correlation_id: w.version for w in self.api.query_wait_conditions(limit=1000)},
            self.wakes(),
        )

    @invariant()
    def everything_agrees(self) -> None:
        """All that can be read is what the model says."""
        if not self.started:
            return

        self.world.forget_expired()
        self.note_matching()
        self._flows_agree()
        self._waits_agree()
        self._progress_agrees()
        self.parts_agree()
        self.history_agrees()

    def parts_agree(self) -> None:
        """All parts and logs are what the model says."""

    def history_agrees(self) -> None:
        """The versions of flows are what the model says."""

    def note_matching(self) -> None:
        """Remember what has matched the listing that is being read since its first page."""

    def _flows_agree(self) -> None:
        world, api = self.world, self.api
        stored = api.get_many(FLOW_IDS)
        assert list(stored) == list(FLOW_IDS)
        for flow_id, flow in stored.items():
            want = world.flows.get(flow_id)
            if want is None or flow is None:
                assert want is flow, f"flow {flow_id!r}: found {flow!r}, expected {want}"
            else:
                self.same_flow(flow, want)

        page = self.pages(api.query_flows, 4)
        listed = [summary.flow_id for summary in page]
        compare("the listing of flows", {"order": (listed, world.list_flows())})
        for summary in page:
            self.same_summary(summary, world.flows[summary.flow_id])

        compare("flows", {"count": (api.count_flows(), len(world.flows))})
        for status in sorted({flow.status for flow in world.flows.values()}):
            page = api.query_flows(status=FlowStatus[status])
            listed = [summary.flow_id for summary in page]
            compare(
                f"flows that are {status}", {"order": (listed, world.list_flows(status=status))}
            )

    def same_summary(self, summary: Any, want: oracle.Flow) -> None:
        """A line of a listing is what the model says."""
        fields = {
            "type_name": (summary.type_name, want.type_name),
            "status": (summary.status.name, want.status),
            "position": (summary.position.path, want.position),
            "version": (summary.version, want.version),
            "created_at": (summary.created_at, want.created),
            "updated_at": (summary.updated_at, want.updated),
            "due_at": (summary.due_at, want.due),
            "expires_at": (summary.expires_at, want.expires),
            "attempts": (summary.attempts, want.attempts),
            "error": (summary.error, want.error),
            "tags": (tuple(summary.tags.items()), want.tags),
            "owner": (summary.owner, want.owner),
        }
        compare(f"the summary of {summary.flow_id!r}", fields)
        self._same_revision(("flow", summary.flow_id), summary.revision, want.stamp)

    def _waits_agree(self) -> None:
        world, api = self.world, self.api
        page = self.pages(api.query_wait_conditions, 3)
        listed = [wait.correlation_id for wait in page]
        compare("the listing of conditions", {"order": (listed, world.list_waits())})
        for wait in page:
            self.same_wait(wait, world.conditions()[wait.correlation_id])

        timed_out = [wait.correlation_id for wait in api.get_timed_out_wait_conditions()]
        compare("timed-out conditions", {"order": (timed_out, world.list_overdue(self.now))})
        wakes = {
            name: wait.deadline if wait.outcome == "PENDING" else wait.wake
            for name, wait in world.conditions().items()
            if wait.terms.parent is not None
        }
        want = {name: wake for name, wake in wakes.items() if wake is not None}
        compare("conditions that need to notify their parents", {"when": (self.wakes(), want)})

    def _progress_agrees(self) -> None:
        for flow_id in FLOW_IDS:
            want = {step: p for (i, step), p in self.world.progress.items() if i == flow_id}
            found = self.api.list_for_each_progress(flow_id)
            compare(f"progress of {flow_id!r}", {"steps": (list(found), sorted(want))})
            for step, progress in found.items():
                self.same_progress((flow_id, step), progress, want[step])


def compare(what: str, fields: dict[str, tuple[Any, Any]]) -> None:
    """Fail for each field that is not what is expected of it: `name: (found, expected)`."""
    wrong = {name: pair for name, pair in fields.items() if pair[0] != pair[1]}
    if wrong:
        found = "; ".join(f"{name} is {a!r}, expected {b!r}" for name, (a, b) in wrong.items())
        message = f"{what}: {found}"
        note(message[:2000])
        raise AssertionError(message[:2000])


def _one_of(there: list[str], all_ids: tuple[str, ...], place: int) -> str:
    chosen = place % (len(all_ids) * 4)
    ids = there if there and chosen >= len(all_ids) else all_ids
    return ids[chosen % len(ids)]


def ms_of(moment: datetime) -> int:
    """A moment in milliseconds since 1970."""
    return (moment - EPOCH) // timedelta(milliseconds=1)

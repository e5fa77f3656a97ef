"""The plain model: what the contract says, as dictionaries and ordinary Python.

`World` is what a correct store holds. It shares no code with the library: no stores, no encoded
records, none of the library's decisions. Where the contract leaves the store a choice (which of
the due flows a claimer is given) the model takes the store's choice, checks that it was
allowed, and continues from there.

The file is longer than others because it is read as one text, next to the contract.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from dataclasses import dataclass
from dataclasses import field
from dataclasses import replace
from datetime import UTC
from datetime import datetime
from datetime import timedelta
from itertools import count
from typing import Any
from typing import TypeAlias
from zlib import crc32

from catga_store.testing.machine.history_model import HistoryModel
from catga_store.testing.machine.parts_model import Append
from catga_store.testing.machine.parts_model import CheckPart
from catga_store.testing.machine.parts_model import DeletePart
from catga_store.testing.machine.parts_model import PartsModel
from catga_store.testing.machine.parts_model import PutPart

__all__ = [
    "AT_ONCE",
    "MODELLED",
    "TERMINAL",
    "Change",
    "CheckFlow",
    "CheckProgress",
    "CheckWait",
    "ClearProgress",
    "ClearWait",
    "Complete",
    "DeleteFlow",
    "Done",
    "Draft",
    "Flow",
    "Guard",
    "PendingCompletions",
    "Progress",
    "Refusal",
    "Renew",
    "SaveProgress",
    "Seen",
    "SetWait",
    "Shown",
    "Terms",
    "Tombstone",
    "UpdateWait",
    "Wait",
    "World",
    "WriteFlow",
    "ceil_ms",
    "floor_ms",
    "partition_of",
]

AT_ONCE = datetime(1970, 1, 1, tzinfo=UTC)
TERMINAL = ("COMPLETED", "FAILED", "CANCELLED")
_CONTINUED = ("CREATED", "RUNNING", "COMPENSATING")
"""The statuses that a fork keeps; any other becomes `RUNNING`."""

MODELLED = (
    "attempts_high",
    "due_disagrees",
    "failed",
    "lease_expired",
    "orphan_parts",
    "parent_gone",
)
"""The codes of findings that the model knows; of others the rules only compare one call with another."""

_MS = timedelta(milliseconds=1)


def floor_ms(moment: datetime) -> datetime:
    """The whole millisecond at or before a moment."""
    return moment - timedelta(microseconds=moment.microsecond % 1000)


def ceil_ms(moment: datetime) -> datetime:
    """The whole millisecond at or after a moment."""
    floor = floor_ms(moment)
    return floor if floor == moment else floor + _MS


def partition_of(any_id: str, partitions: int) -> int:
    """Where a record lives: by the hash of its `{tag}`, as in Redis Cluster, or of the whole id."""
    before, _, rest = any_id.partition("{")
    tag, closing, _ = rest.partition("}")
    tagged = before != any_id and closing and tag
    return crc32((tag if tagged else any_id).encode()) % partitions


# --- what is stored -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shown:
    """The wait condition on a flow."""

    correlation_id: str
    children: tuple[str, ...]
    any_of: bool
    timeout: timedelta | None
    parent: str | None
    outcome: str
    created: datetime | None
    suspended_on: str | None = None
    """The other condition that the flow is suspended on."""


@dataclass(frozen=True)
class Flow:
    """A stored flow. `stamp` numbers the write that made it so; two writes never share one."""

    state: Any
    type_name: str
    position: tuple[int, ...]
    status: str
    error: str | None
    waits_for: Shown | None
    due: datetime | None
    attempts: int
    created: datetime
    updated: datetime
    version: int
    stamp: int
    owner: str | None = None
    claim: int | None = None
    expires: datetime | None = None
    own_expiry: bool = False
    """Whether the user has set when it expires; else the retention did, or it never does."""
    tags: tuple[tuple[str, str], ...] = ()

    def is_held(self, now: datetime) -> bool:
        """Whether a claim on it has not ended."""
        return self.owner is not None and self.due is not None and self.due > now


@dataclass(frozen=True)
class Draft:
    """What a user wants a flow to be. `due` may be `AT_ONCE`."""

    state: Any
    type_name: str
    position: tuple[int, ...]
    status: str
    error: str | None
    waits_for: Shown | None
    due: datetime | None
    attempts: int
    created: datetime | None = None
    expires: datetime | None = None
    tags: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Terms:
    """The definition of a wait condition."""

    children: tuple[str, ...]
    any_of: bool
    timeout: timedelta | None
    parent: str | None


Result: TypeAlias = tuple[bool, Any, "str | None"]


@dataclass(frozen=True)
class Wait:
    """A stored condition. `wake` is since when its parent should be notified of its end."""

    terms: Terms
    created: datetime
    outcome: str
    version: int
    stamp: int
    completions: dict[str, Result]
    wake: datetime | None = None
    expires: datetime | None = None

    @property
    def deadline(self) -> datetime | None:
        """When it times out."""
        return None if self.terms.timeout is None else self.created + self.terms.timeout

    @property
    def results(self) -> dict[str, Result]:
        """The completions of its children; those of strangers wait for another definition."""
        members = self.terms.children
        return {child: result for child, result in self.completions.items() if child in members}

    def is_overdue(self, now: datetime) -> bool:
        """Whether its deadline has come and it is still open."""
        return self.outcome == "PENDING" and self.deadline is not None and self.deadline <= now

    def calls(self, now: datetime) -> bool:
        """Whether its parent, if any, should be notified now."""
        woken = self.wake is not None and self.wake <= now
        return self.is_overdue(now) or (self.outcome != "PENDING" and woken)


@dataclass(frozen=True)
class PendingCompletions:
    """Completions that came before their condition."""

    completions: dict[str, Result]
    expires: datetime | None


@dataclass(frozen=True)
class Tombstone:
    """What a cleared condition leaves behind."""

    outcome: str
    expires: datetime | None


@dataclass(frozen=True)
class Progress:
    """A stored ForEach progress."""

    processed: frozenset[int]
    failed: frozenset[int]
    last: int | None
    version: int = 0
    stamp: int = 0


# --- what is asked --------------------------------------------------------------------------------


@dataclass(frozen=True)
class WriteFlow:
    """Create (`base` is `None`) or update a flow; `instead`: in the place of another incarnation."""

    flow_id: str
    draft: Draft
    base: Flow | None = None
    lease: timedelta | None = None
    instead: Flow | None = None


@dataclass(frozen=True)
class DeleteFlow:
    """Delete a flow, if it is still the one that was read."""

    flow_id: str
    base: Flow | None = None
    claimed: bool = False


@dataclass(frozen=True)
class SetWait:
    """Set a condition; `suspends`: its parent suspends on it in the same commit."""

    correlation_id: str
    terms: Terms
    created: datetime | None = None
    suspends: bool = False
    instead: Wait | None = None


@dataclass(frozen=True)
class UpdateWait:
    """Write definition and outcome of a condition that was read."""

    correlation_id: str
    terms: Terms
    outcome: str
    base: Wait

    @property
    def opens_again(self) -> bool:
        """Whether it would open a condition again that has ended."""
        return self.outcome == "PENDING" and self.base.outcome != "PENDING"


@dataclass(frozen=True)
class ClearWait:
    """Clear a condition, if it is still the one that was read."""

    correlation_id: str
    base: Wait | None = None


@dataclass(frozen=True)
class SaveProgress:
    """Write a step's progress; `fresh`: the one before was cleared in the same commit."""

    flow_id: str
    step: int
    value: Progress
    base: Progress | None = None
    overwrite: bool = False
    fresh: bool = False


@dataclass(frozen=True)
class ClearProgress:
    """Remove a step's progress."""

    flow_id: str
    step: int
    base: Progress | None = None


@dataclass(frozen=True)
class Complete:
    """Record a child's completion."""

    correlation_id: str
    child: str
    result: Result


@dataclass(frozen=True)
class CheckFlow:
    """Refuse the commit unless the flow is still the one that was read."""

    flow_id: str
    base: Flow
    claimed: bool = False


@dataclass(frozen=True)
class CheckWait:
    """Refuse the commit unless the condition is still the one that was read."""

    correlation_id: str
    base: Wait


@dataclass(frozen=True)
class CheckProgress:
    """Refuse the commit unless the progress is still the one that was read."""

    flow_id: str
    step: int
    base: Progress


@dataclass(frozen=True)
class Renew:
    """Check a claim that the session holds, and renew its lease."""

    flow_id: str
    base: Flow
    lease: timedelta


@dataclass(frozen=True)
class Guard:
    """Check that a claim stands, even if the flow has been written since, and renew its lease."""

    flow_id: str
    base: Flow
    claim: int
    lease: timedelta


Change: TypeAlias = (
    WriteFlow
    | DeleteFlow
    | SetWait
    | UpdateWait
    | ClearWait
    | SaveProgress
    | ClearProgress
    | Complete
    | CheckFlow
    | CheckWait
    | CheckProgress
    | Renew
    | Guard
    | PutPart
    | DeletePart
    | CheckPart
    | Append
)


@dataclass(frozen=True)
class Done:
    """What one change did."""

    existed: bool = False
    accepted: bool = False
    duplicate: bool = False
    now_satisfied: bool = False
    outcome: str | None = None
    sequence: int = 0
    """Of the entry that was appended, or of the one with the same key."""


@dataclass(frozen=True)
class Seen:
    """What a reader finds after a claim: the model checks that the store was allowed to go there."""

    flow_due: Mapping[str, datetime | None]
    wait_version: Mapping[str, int]
    wait_wake: Mapping[str, datetime]


class Refusal(Exception):  # noqa: N818  the store's error is the error; this is the prediction of it
    """The contract says that an operation is refused; `names` are the errors, one per record."""

    def __init__(self, *names: str, **facts: Any) -> None:
        super().__init__(*names)
        self.names = names
        self.facts = facts


# --- the model ------------------------------------------------------------------------------------


@dataclass
class World:
    """What a correct store holds, and what it returns."""

    clock: Callable[[], datetime]
    keep_flows: timedelta | None
    keep_failed: timedelta | None
    keep_waits: timedelta | None
    partitions: int = 1
    flows: dict[str, Flow] = field(default_factory=dict[str, Flow])
    waits: dict[str, Wait | PendingCompletions | Tombstone] = field(
        default_factory=dict[str, "Wait | PendingCompletions | Tombstone"]
    )
    progress: dict[tuple[str, int], Progress] = field(
        default_factory=dict[tuple[str, int], Progress]
    )
    expired: int = 0
    """The most expired records that may still be there to be swept."""
    _stamps: count[int] = field(default_factory=lambda: count(1))
    parts: PartsModel = field(default_factory=PartsModel)
    history: HistoryModel = field(default_factory=HistoryModel)

    @property
    def now(self) -> datetime:
        """The time, in whole milliseconds."""
        return floor_ms(self.clock())

    def forget_expired(self) -> None:
        """What has expired is absent to every operation.

        Parts without a flow may stay until a sweep: what moves the clock past their time sweeps.
        """
        now = self.now
        gone = [i for i, flow in self.flows.items() if flow.expires and flow.expires <= now]
        for flow_id in gone:
            self._drop_flow(flow_id)

        lost = [
            correlation_id
            for correlation_id, wait in self.waits.items()
            if wait.expires is not None and wait.expires <= now
        ]
        for correlation_id in lost:
            del self.waits[correlation_id]

        orphans = self.parts.due_orphans(now)
        for flow_id in orphans:
            self.parts.drop(flow_id)

        self.expired += len(gone) + len(lost) + len(orphans)

    def _drop_flow(self, flow_id: str) -> bool:
        """Remove a flow and all that belongs to it; what belongs to no flow stays until there is one."""
        if flow_id not in self.flows:
            return False

        self.parts.drop(flow_id)
        self.history.drop(flow_id)
        for key in [key for key in self.progress if key[0] == flow_id]:
            del self.progress[key]

        del self.flows[flow_id]
        return True

    # reads ----------------------------------------------------------------------------------------

    def wait(self, correlation_id: str) -> Wait | None:
        """The condition that a reader finds."""
        found = self.waits.get(correlation_id)
        return found if isinstance(found, Wait) else None

    def conditions(self) -> dict[str, Wait]:
        """Every condition that a reader finds."""
        return {i: wait for i, wait in self.waits.items() if isinstance(wait, Wait)}

    def list_flows(
        self,
        *,
        status: str | None = None,
        type_name: str | None = None,
        created_after: datetime | None = None,
        created_before: datetime | None = None,
        updated_before: datetime | None = None,
        updated_after: datetime | None = None,
        owner: str | None = None,
        error_contains: str | None = None,
        attempts_at_least: int | None = None,
        tags: dict[str, str] | None = None,
        id_prefix: str | None = None,
    ) -> list[str]:
        """Ids of the flows that match, newest first, then by id; with a prefix, by id."""
        found = [
            (flow.created, flow_id)
            for flow_id, flow in self.flows.items()
            if (status is None or flow.status == status)
            and (type_name is None or flow.type_name == type_name)
            and (created_after is None or flow.created >= created_after)
            and (created_before is None or flow.created < created_before)
            and (updated_before is None or flow.updated < updated_before)
            and (updated_after is None or flow.updated >= updated_after)
            and (owner is None or flow.owner == owner)
            and (error_contains is None or error_contains in (flow.error or ""))
            and (attempts_at_least is None or flow.attempts >= attempts_at_least)
            and _has_tags(flow, tags)
        ]
        if id_prefix is not None:
            prefix = id_prefix.encode()
            ids = [(flow_id.encode(), flow_id) for _, flow_id in found]
            return [flow_id for data, flow_id in sorted(ids) if data.startswith(prefix)]

        return [flow_id for _, flow_id in _newest_first(found)]

    def list_waits(self, *, outcome: str | None = None, parent: str | None = None) -> list[str]:
        """Ids of the conditions that match, newest first, then by id."""
        found = [
            (wait.created, correlation_id)
            for correlation_id, wait in self.conditions().items()
            if (outcome is None or wait.outcome == outcome)
            and (parent is None or wait.terms.parent == parent)
        ]
        return [correlation_id for _, correlation_id in _newest_first(found)]

    def list_overdue(self, now: datetime) -> list[str]:
        """Ids of the conditions whose deadline has come, oldest deadline first, then by id."""
        found = [(w.deadline, i) for i, w in self.conditions().items() if w.is_overdue(now)]
        return [correlation_id for _, correlation_id in sorted(found, key=lambda pair: pair)]

    # commits --------------------------------------------------------------------------------------

    def commit(self, changes: Iterable[Change]) -> list[Done]:
        """All of the changes, or a `Refusal` and none."""
        self.forget_expired()
        todo = list(changes)
        if any(isinstance(change, UpdateWait) and change.opens_again for change in todo):
            raise Refusal("UsageError")

        self._check_partitions(todo)
        leaving = {
            change.flow_id
            for change in todo
            if isinstance(change, DeleteFlow)
            or (isinstance(change, WriteFlow) and change.instead is not None)
        }
        refusals = [
            refusal
            for c in todo
            if (refusal := self._parts_refusal(c, leaving) or self._refusal(c, leaving)) is not None
        ]
        if refusals:
            facts = refusals[0].facts if len(refusals) == 1 else {}
            raise Refusal(*(refusal.names[0] for refusal in refusals), **facts)

        wrote = {change.flow_id for change in todo if isinstance(change, WriteFlow)}
        return [
            self._change_parts(change, wrote)
            if isinstance(change, PutPart | DeletePart | CheckPart | Append)
            else self._apply(change)
            for change in todo
        ]

    def _change_parts(
        self, change: PutPart | DeletePart | CheckPart | Append, wrote: set[str]
    ) -> Done:
        """What a change of parts does; `wrote` are the flows that its commit has written by then."""
        flow_id = change.flow_id
        if isinstance(change, CheckPart):
            return Done()

        if isinstance(change, DeletePart):
            return Done(existed=self.parts.delete(flow_id, change.name))

        if isinstance(change, PutPart):
            done = Done(accepted=self.parts.put(change, self.now))
        else:
            version = self.flows[flow_id].version if flow_id in wrote else None
            sequence, again = self.parts.append(change, self.now, version)
            done = Done(accepted=not again, duplicate=again, sequence=sequence)

        if done.accepted:
            self.note_orphan(flow_id)

        return done

    def note_orphan(self, flow_id: str) -> None:
        """Parts of that flow were written: if it does not exist, they are kept for some time from now."""
        expires = self._wait_expiry()
        if flow_id not in self.flows and expires is not None:
            self.parts.orphans[flow_id] = expires

    def delete_parts(self, flow_id: str, names: list[str]) -> int:
        """Remove parts by name, whatever they hold; how many there were."""
        return sum(self.parts.delete(flow_id, name) for name in names)

    def _check_partitions(self, changes: list[Change]) -> None:
        named: set[str] = set()
        for change in changes:
            if isinstance(change, SetWait | UpdateWait):
                named |= {change.correlation_id, change.terms.parent or change.correlation_id}
            elif isinstance(change, Complete | ClearWait | CheckWait):
                named.add(change.correlation_id)
            else:
                named.add(change.flow_id)

        if len({partition_of(any_id, self.partitions) for any_id in named}) > 1:
            raise Refusal("CrossPartitionError")

    def _parts_refusal(self, change: Change, leaving: set[str]) -> Refusal | None:
        if not isinstance(change, PutPart | DeletePart | CheckPart | Append):
            return None

        refused = self.parts.refusal(change, leaving)
        return None if refused is None else Refusal(refused[0], **refused[1])

    def _refusal(  # noqa: PLR0911  one return for each kind of change
        self, change: Change, leaving: set[str]
    ) -> Refusal | None:
        if isinstance(change, WriteFlow | DeleteFlow | CheckFlow | Renew):
            return self._flow_refusal(change)

        if isinstance(change, UpdateWait | ClearWait | CheckWait | SetWait):
            return self._wait_refusal(change)

        if isinstance(change, Guard):
            guarded = self.flows.get(change.flow_id)
            if guarded is None:
                return Refusal("FlowNotFoundError", expected=change.base.version)

            lost = guarded.claim != change.claim
            return _stale("ClaimLostError", change.base, guarded) if lost else None

        if isinstance(change, SaveProgress | ClearProgress | CheckProgress):
            there = self.progress.get((change.flow_id, change.step))
            if change.flow_id in leaving and not isinstance(change, CheckProgress):
                there = None

            if isinstance(change, SaveProgress) and change.overwrite:
                return None

            if isinstance(change, ClearProgress) and change.base is None:
                return None

            if _same(there, change.base):
                return None

            return _stale("StaleProgressError", change.base, there)

        return None

    def _flow_refusal(self, change: WriteFlow | DeleteFlow | CheckFlow | Renew) -> Refusal | None:
        there = self.flows.get(change.flow_id)
        base, claimed = change.base, isinstance(change, Renew)

        if isinstance(change, WriteFlow):
            base = change.base or change.instead
            claimed = change.lease is not None
            if base is None:
                return None if there is None else Refusal("FlowExistsError", actual=there.version)
        elif isinstance(change, DeleteFlow | CheckFlow):
            claimed = change.claimed

        if base is None or _same(there, base):
            return None

        if there is None:
            return Refusal("FlowNotFoundError", expected=base.version)

        return _stale("ClaimLostError" if claimed else "StaleFlowError", base, there)

    def _wait_refusal(self, change: UpdateWait | ClearWait | CheckWait | SetWait) -> Refusal | None:
        base = change.instead if isinstance(change, SetWait) else change.base
        there = self.wait(change.correlation_id)
        if base is None or _same(there, base):
            return None

        if there is None:
            return Refusal("WaitConditionNotFoundError", expected=base.version)

        return _stale("StaleWaitConditionError", base, there)

    def _apply(self, change: Change) -> Done:  # noqa: PLR0911  one return for each kind of change
        if isinstance(change, WriteFlow):
            return self._write_flow(change)

        if isinstance(change, DeleteFlow):
            return Done(existed=self._drop_flow(change.flow_id))

        if isinstance(change, SetWait):
            return self._set_wait(change)

        if isinstance(change, UpdateWait):
            return self._update_wait(change)

        if isinstance(change, ClearWait):
            return self._clear_wait(change)

        if isinstance(change, Complete):
            return self._complete(change)

        if isinstance(change, SaveProgress):
            key = change.flow_id, change.step
            there = None if change.fresh else self.progress.get(key)
            version = 1 if there is None else there.version + 1
            self.progress[key] = replace(change.value, version=version, stamp=next(self._stamps))
        elif isinstance(change, ClearProgress):
            return Done(existed=self.progress.pop((change.flow_id, change.step), None) is not None)
        elif isinstance(change, Renew | Guard):
            flow = self.flows[change.flow_id]
            self.flows[change.flow_id] = replace(flow, due=self.now + change.lease)

        return Done()

    # flows ----------------------------------------------------------------------------------------

    def _write_flow(self, change: WriteFlow) -> Done:
        draft, base, now = change.draft, change.base, self.now
        if change.instead is not None:
            self._drop_flow(change.flow_id)

        if base is not None:
            self.history.keep(change.flow_id, self.flows[change.flow_id])

        self.parts.orphans.pop(change.flow_id, None)
        due, owner, claim = self._due(change)
        own = self._own_expiry(draft, base)
        moved = base is not None and (base.position, base.status) != (draft.position, draft.status)
        set_by_hand = base is not None and base.attempts != draft.attempts
        created = base.created if base is not None else draft.created or now
        self.flows[change.flow_id] = Flow(
            state=draft.state,
            type_name=draft.type_name,
            position=draft.position,
            status=draft.status,
            error=draft.error,
            waits_for=draft.waits_for,
            due=due,
            attempts=0 if moved and not set_by_hand else draft.attempts,
            created=created,
            updated=now,
            version=1 if base is None else base.version + 1,
            stamp=next(self._stamps),
            owner=owner,
            claim=claim,
            expires=self._flow_expiry(draft.status) if own is None else own,
            own_expiry=own is not None,
            tags=draft.tags,
        )
        return Done()

    def _own_expiry(self, draft: Draft, base: Flow | None) -> datetime | None:
        """The expiry that was set by hand, with this write or before."""
        if base is None or draft.expires != base.expires or base.own_expiry:
            return draft.expires

        return None

    def _due(self, change: WriteFlow) -> tuple[datetime | None, str | None, int | None]:
        """When the flow is due after a write, and whose claim on it is left."""
        draft, base = change.draft, change.base
        if draft.status in TERMINAL:
            return None, None, None

        if base is None:
            at_once = None if draft.status == "SUSPENDED" else self.now
            return at_once if draft.due == AT_ONCE else draft.due, None, None

        if draft.due != base.due:
            return draft.due, None, None

        if draft.status == "SUSPENDED" and base.status != "SUSPENDED":
            return None, None, None

        if draft.status != "SUSPENDED" and base.status in TERMINAL and draft.due is None:
            return self.now, None, None

        due = draft.due if change.lease is None else self.now + change.lease
        return due, base.owner, base.claim

    def _flow_expiry(self, status: str) -> datetime | None:
        kept = self.keep_failed if status == "FAILED" else self.keep_flows
        return self.now + kept if status in TERMINAL and kept is not None else None

    # history --------------------------------------------------------------------------------------

    def version(self, flow_id: str, version: int) -> Flow | None:
        """A version of a flow that a reader finds, the current one or a former one."""
        current = self.flows.get(flow_id)
        if current is None or current.version == version:
            return current

        return self.history.get(flow_id, version)

    def fork(self, flow_id: str, new_id: str, version: int | None) -> Flow:
        """A new flow of a version of another one; with the current version goes what belongs to it."""
        self.forget_expired()
        if partition_of(flow_id, self.partitions) != partition_of(new_id, self.partitions):
            raise Refusal("CrossPartitionError")

        taken, current = self.flows.get(new_id), self.flows.get(flow_id)
        if taken is not None:
            raise Refusal("FlowExistsError", actual=taken.version)

        if current is None:
            raise Refusal("FlowNotFoundError")

        old = current if version is None else self.version(flow_id, version)
        if old is None:
            raise Refusal("FlowNotFoundError", expected=version)

        if old is current:
            self._copy_belongings(flow_id, new_id)

        self.parts.orphans.pop(new_id, None)
        status = old.status if old.status in _CONTINUED else "RUNNING"
        now = self.now
        new = Flow(
            state=old.state,
            type_name=old.type_name,
            position=old.position,
            status=status,
            error=None,
            waits_for=None,
            due=now,
            attempts=0,
            created=now,
            updated=now,
            version=1,
            stamp=next(self._stamps),
            tags=old.tags,
        )
        self.flows[new_id] = new
        return new

    def _copy_belongings(self, flow_id: str, new_id: str) -> None:
        """Progress, parts and counters of logs, as new records; refused where there are some."""
        steps = {step: one for (each, step), one in self.progress.items() if each == flow_id}
        for step in sorted(steps):
            there = self.progress.get((new_id, step))
            if there is not None:
                raise Refusal("StaleProgressError", expected=0, actual=there.version)

        if self.parts.has_some_of(flow_id, new_id):
            raise Refusal("PartExistsError")

        for step, one in steps.items():
            self.progress[new_id, step] = replace(one, stamp=next(self._stamps))

        self.parts.copy(flow_id, new_id)

    # wait conditions ------------------------------------------------------------------------------

    def _wait_expiry(self) -> datetime | None:
        return None if self.keep_waits is None else self.now + self.keep_waits

    def _set_wait(self, change: SetWait) -> Done:
        key, terms = change.correlation_id, change.terms
        there = self.waits.get(key)
        if change.instead is not None:
            there = None

        if isinstance(there, Wait) and there.outcome != "PENDING":
            if change.suspends:
                self.waits[key] = self._taken_over(there, terms.parent)

            return Done(outcome=there.outcome)

        pending = there if isinstance(there, Wait) else None
        wait = Wait(
            terms=terms,
            created=pending.created if pending is not None else change.created or self.now,
            outcome="PENDING",
            version=1 if pending is None else pending.version + 1,
            stamp=next(self._stamps),
            completions=dict(there.completions)
            if isinstance(there, Wait | PendingCompletions)
            else {},
        )
        return self._counted(key, wait, accepted=True)

    def _taken_over(self, wait: Wait, parent: str | None) -> Wait:
        """An ended condition that a flow suspends on: that flow is to be notified at once."""
        wait = replace(wait, wake=self.now, expires=None)
        if wait.terms.parent == parent:
            return wait

        terms = replace(wait.terms, parent=parent)
        return replace(wait, terms=terms, version=wait.version + 1, stamp=next(self._stamps))

    def _counted(self, key: str, wait: Wait, *, accepted: bool) -> Done:
        """Close a pending condition if its completions satisfy it, and store it."""
        satisfied = wait.outcome == "PENDING" and _is_satisfied(wait)
        if satisfied:
            wait = self._closed(wait, "SATISFIED")

        self.waits[key] = wait
        return Done(accepted=accepted, now_satisfied=satisfied, outcome=wait.outcome)

    def _closed(self, wait: Wait, outcome: str) -> Wait:
        if wait.terms.parent is not None:
            return replace(wait, outcome=outcome, wake=self.now, expires=None)

        return replace(wait, outcome=outcome, wake=None, expires=self._wait_expiry())

    def _update_wait(self, change: UpdateWait) -> Done:
        key = change.correlation_id
        there = self.wait(key)
        assert there is not None, "checked before"
        was_notified = there.outcome != "PENDING" and there.wake is None
        wait = replace(
            there,
            terms=change.terms,
            outcome=change.outcome,
            version=there.version + 1,
            stamp=next(self._stamps),
        )
        if change.outcome == "PENDING":
            wait = replace(wait, wake=None, expires=None)
        elif not was_notified or (there.terms.parent is None and change.terms.parent is not None):
            wait = self._closed(wait, change.outcome)

        return self._counted(key, wait, accepted=True)

    def _clear_wait(self, change: ClearWait) -> Done:
        there = self.wait(change.correlation_id)
        if there is None:
            return Done()

        outcome = "CANCELLED" if there.outcome == "PENDING" else there.outcome
        self.waits[change.correlation_id] = Tombstone(outcome, self._wait_expiry())
        return Done(existed=True, outcome=outcome)

    def _complete(self, change: Complete) -> Done:
        key, child, there = (
            change.correlation_id,
            change.child,
            self.waits.get(change.correlation_id),
        )
        if isinstance(there, Tombstone):
            return Done(outcome=there.outcome)

        known = {} if there is None else there.completions
        outcome = there.outcome if isinstance(there, Wait) else None
        if child in known:
            return Done(duplicate=True, outcome=outcome)

        completions = {**known, child: change.result}
        if not isinstance(there, Wait):
            self.waits[key] = PendingCompletions(completions, self._wait_expiry())
            return Done(accepted=True)

        if outcome != "PENDING" or child not in there.terms.children:
            return Done(outcome=outcome)

        wait = replace(there, completions=completions)
        if _is_satisfied(wait):
            wait = replace(wait, version=wait.version + 1, stamp=next(self._stamps))

        return self._counted(key, wait, accepted=True)

    # claims ---------------------------------------------------------------------------------------

    def extend(self, flow_id: str, claim: int, lease: timedelta) -> None:
        """Move the end of a claim, if it is still there, even if the flow has been written since."""
        self.forget_expired()
        flow = self.flows.get(flow_id)
        if flow is None or flow.claim != claim:
            raise Refusal("ClaimLostError")

        self.flows[flow_id] = replace(flow, due=self.now + lease)

    def release(
        self, flow_id: str, base: Flow, due: datetime | None, *, changed: bool = False
    ) -> None:
        """Give a claim back: what was read is written again, without owner; not if it was changed."""
        self.forget_expired()
        if changed:
            raise Refusal("UsageError")

        there = self.flows.get(flow_id)
        if there is None:
            raise Refusal("FlowNotFoundError", expected=base.version)

        if not _same(there, base):
            raise _stale("ClaimLostError", base, there)

        self.history.keep(flow_id, there)
        self.flows[flow_id] = replace(
            base,
            version=base.version + 1,
            stamp=next(self._stamps),
            updated=self.now,
            owner=None,
            claim=None,
            due=self.now if due == AT_ONCE else due,
        )

    def act(self, flow_id: str, action: str, version: int | None, reason: str) -> Flow:
        """What an operator does to a flow: `cancel`, `retry`, `wake` or `release` it."""
        self.forget_expired()
        there = self.flows.get(flow_id)
        if there is None:
            raise Refusal("FlowNotFoundError")

        if version not in (None, there.version):
            raise Refusal("StaleFlowError", expected=version, actual=there.version)

        ended, held = there.status in TERMINAL, there.is_held(self.now)
        if action == "cancel" and there.status == "CANCELLED":
            return there

        if ended if action != "retry" else there.status == "COMPLETED":
            raise Refusal("FlowStatusError", status=there.status, actual=there.version)

        if action in ("retry", "wake") and held:
            raise Refusal("FlowClaimedError", owner=there.owner, until=there.due)

        is_due = there.due is not None and there.due <= self.now
        if (
            (action == "wake" and is_due)
            or (action == "release" and there.owner is None)
            or (action == "retry" and not ended and is_due and not there.attempts)
        ):
            return there

        self.history.keep(flow_id, there)
        flow = replace(
            there,
            version=there.version + 1,
            stamp=next(self._stamps),
            updated=self.now,
            owner=None,
            claim=None,
            due=self.now,
        )
        if action == "retry":
            expires = there.expires if there.own_expiry else None
            status = "RUNNING" if ended else there.status
            flow = replace(flow, status=status, error=None, attempts=0, expires=expires)
        elif action == "cancel":
            expires = there.expires if there.own_expiry else self._flow_expiry("CANCELLED")
            flow = replace(
                flow, status="CANCELLED", error=reason, attempts=0, due=None, expires=expires
            )

        self.flows[flow_id] = flow
        return flow

    def purge(self, flow_id: str, *, live: bool, dry_run: bool) -> bool:
        """Delete a flow that has ended, or, with `live`, any that is not held; whether it would."""
        there = self.flows[flow_id]
        if there.status not in TERMINAL and (not live or there.is_held(self.now)):
            return False

        if not dry_run:
            self._drop_flow(flow_id)

        return True

    def tag(self, flow_id: str, tags: dict[str, str], remove: set[str]) -> bool:
        """Set and remove tags of a flow that is not held, ended or not; whether that changes it."""
        there = self.flows[flow_id]
        kept = {key: text for key, text in there.tags if key not in remove}
        after = tuple(sorted((kept | tags).items()))
        if after == there.tags or there.is_held(self.now):
            return False

        self.history.keep(flow_id, there)
        self.flows[flow_id] = replace(
            there,
            version=there.version + 1,
            stamp=next(self._stamps),
            updated=self.now,
            tags=after,
        )
        return True

    def findings(self, flow_id: str, attempts: int) -> set[str]:
        """What is wrong with a flow, of what the model knows."""
        self.forget_expired()
        flow = self.flows.get(flow_id)
        conditions = self.conditions().items()
        if flow is None:
            pending = any(
                wait.terms.parent == flow_id and wait.outcome == "PENDING" for _, wait in conditions
            )
            found = {"parent_gone"} if pending else set[str]()
            if self.parts.names(flow_id):
                found.add("orphan_parts")

            if not found:
                raise Refusal("FlowNotFoundError")

            return found

        if flow.status in TERMINAL:
            return {"failed"} if flow.status == "FAILED" else set()

        found = set[str]()
        if flow.attempts >= attempts:
            found.add("attempts_high")

        if flow.due is not None and flow.due <= self.now and flow.owner is not None:
            found.add("lease_expired")

        return found

    def claim(
        self,
        flow_id: str,
        owner: str,
        lease: timedelta,
        reads: Callable[[Flow], bool] = lambda _flow: True,
    ) -> bool:
        """Claim one flow; `False` if it has ended, and is only read."""
        self.forget_expired()
        flow = self.flows.get(flow_id)
        if flow is None:
            raise Refusal("FlowNotFoundError")

        if flow.status not in TERMINAL and flow.is_held(self.now):
            raise Refusal("FlowClaimedError", owner=flow.owner, until=flow.due)

        if not reads(flow):
            raise Refusal("StateTypeError")

        if flow.status in TERMINAL:
            return False

        calling = {
            name: wait for name, wait in self.calling().items() if wait.terms.parent == flow_id
        }
        newest = _newest_first([(wait.created, name) for name, wait in calling.items()])
        awaited, showed = self._awaited_end(flow_id), self._showed(flow_id)
        ended = [*([] if awaited is None else [awaited]), *(name for _, name in newest)]
        ended += [] if showed is None else [showed]
        self._take(flow_id, self._as_shown(ended[0], flow_id) if ended else None, owner, lease)
        for name in dict.fromkeys(ended):
            self._notify(name, flow_id)

        return True

    def _awaited_end(self, flow_id: str) -> str | None:
        """The condition that a suspended flow waits for, if it has ended or is overdue."""
        name = self._suspended_on(flow_id)
        return None if name is None else self._end(name, flow_id)

    def _suspended_on(self, flow_id: str) -> str | None:
        flow = self.flows[flow_id]
        if flow.status != "SUSPENDED" or flow.waits_for is None:
            return None

        return flow.waits_for.suspended_on or flow.waits_for.correlation_id

    def _showed(self, flow_id: str) -> str | None:
        """The ended condition that a flow was last shown instead of the one it is suspended on."""
        flow = self.flows[flow_id]
        if flow.status != "SUSPENDED" or flow.waits_for is None:
            return None

        shown = flow.waits_for
        return None if shown.suspended_on is None else self._end(shown.correlation_id, flow_id)

    def _end(self, name: str, flow_id: str) -> str | None:
        wait = self.wait(name)
        if wait is None or (wait.outcome == "PENDING" and not wait.is_overdue(self.now)):
            return None

        ours = wait.terms.parent in (None, flow_id)
        return name if ours or wait.outcome != "PENDING" else None

    def _notify(self, correlation_id: str, flow_id: str) -> None:
        """This flow is given to a worker: its overdue condition is closed, its ended one may go."""
        wait = self.waits[correlation_id]
        if isinstance(wait, Wait) and wait.terms.parent in (None, flow_id):
            self.waits[correlation_id] = self._notified(wait)

    def _notified(self, wait: Wait) -> Wait:
        if wait.outcome != "PENDING" and wait.wake is None:
            return wait

        return replace(
            wait,
            outcome="TIMED_OUT" if wait.outcome == "PENDING" else wait.outcome,
            version=wait.version + 1,
            stamp=next(self._stamps),
            wake=None,
            expires=self._wait_expiry(),
        )

    def _put_off(self, wait: Wait, until: datetime) -> Wait:
        """The parent cannot be notified before then; an overdue condition is closed all the same."""
        if wait.outcome != "PENDING":
            return replace(wait, wake=until)

        stamp = next(self._stamps)
        return replace(wait, outcome="TIMED_OUT", version=wait.version + 1, stamp=stamp, wake=until)

    def _as_shown(self, correlation_id: str, flow_id: str) -> Shown:
        """A condition as the flow shows it that is claimed because it has ended."""
        own = self._suspended_on(flow_id)
        wait = self.conditions()[correlation_id]
        outcome = "TIMED_OUT" if wait.outcome == "PENDING" else wait.outcome
        t = wait.terms
        beside = None if own == correlation_id else own
        return Shown(
            correlation_id, t.children, t.any_of, t.timeout, t.parent, outcome, wait.created, beside
        )

    def _take(self, flow_id: str, shown: Shown | None, owner: str, lease: timedelta) -> None:
        flow = self.flows[flow_id]
        stamp = next(self._stamps)
        self.history.keep(flow_id, flow)
        self.flows[flow_id] = replace(
            flow,
            waits_for=flow.waits_for if shown is None else shown,
            version=flow.version + 1,
            stamp=stamp,
            updated=self.now,
            attempts=flow.attempts + 1,
            owner=owner,
            claim=stamp,
            due=self.now + lease,
        )

    def calling(
        self, type_name: str | None = None, tags: dict[str, str] | None = None
    ) -> dict[str, Wait]:
        """Conditions whose parent should be notified now, by a claimer of flows of that type."""
        found: dict[str, Wait] = {}
        for correlation_id, wait in self.conditions().items():
            parent = self.flows.get(wait.terms.parent or "")
            heard = parent is None or _is_of(parent, type_name, tags)
            if wait.terms.parent is not None and wait.calls(self.now) and heard:
                found[correlation_id] = wait

        return found

    def due_flows(
        self, type_name: str | None = None, tags: dict[str, str] | None = None
    ) -> set[str]:
        """Flows whose own due time has come, for a claimer of flows of that type."""
        now = self.now
        return {
            flow_id
            for flow_id, flow in self.flows.items()
            if flow.due is not None and flow.due <= now and _is_of(flow, type_name, tags)
        }

    def claim_due(
        self,
        given: list[tuple[str, Shown | None]],
        seen: Seen,
        *,
        type_name: str | None,
        tags: dict[str, str] | None,
        lease: timedelta,
        limit: int,
        owner: str,
        reads: Callable[[Flow], bool] = lambda _flow: True,
    ) -> None:
        """Check what a claimer was given and what became of the conditions, and continue from there.

        The store chooses among what is due, and may find conditions whose parent
        cannot be notified now, or is gone. `reads` says whether a state can be decoded
        as what the claimer asked for.
        """
        due, calling = self.due_flows(type_name, tags), self.calling(type_name, tags)
        wanted = due | {
            parent
            for wait in calling.values()
            if (parent := wait.terms.parent) is not None and self._is_free(parent)
        }
        unreadable = {flow_id for flow_id in wanted if not reads(self.flows[flow_id])}
        ids = [flow_id for flow_id, _ in given]
        claimable = wanted - unreadable
        assert len(ids) == len(set(ids)), f"claim_due returned a flow twice: {ids}"
        assert set(ids) <= claimable, (
            f"{set(ids) - claimable} were claimed, but only {claimable} are due"
        )
        number = min(limit, len(claimable))
        assert len(ids) == number, f"{ids} were claimed of {claimable}, limit {limit}"

        must = len(due) + len(calling) <= limit or len(ids) < limit
        self._put_off_flows(due & unreadable, seen, lease, must=must)
        awaited_ends = [self._awaited_end(flow_id) for flow_id in ids]
        outcomes = {
            name: self._fates(name, wait, ids, unreadable, lease, must=must)
            for name, wait in calling.items()
        }
        shows = [self._possible_shows(flow_id, calling) for flow_id, _ in given]
        for (flow_id, shown), possible in zip(given, shows, strict=True):
            assert shown in possible, (
                f"{flow_id!r} was claimed with {shown}, expected one of {possible}"
            )
            self._take(flow_id, shown, owner, lease)

        for name, possible_waits in outcomes.items():
            self.waits[name] = _matching(name, possible_waits, seen)

        for awaited, flow_id in zip(awaited_ends, ids, strict=True):
            if awaited is not None and awaited not in outcomes:
                self._notify(awaited, flow_id)

    def _is_free(self, flow_id: str) -> bool:
        flow = self.flows.get(flow_id)
        return flow is not None and flow.status not in TERMINAL and not flow.is_held(self.now)

    def _put_off_flows(
        self, flow_ids: set[str], seen: Seen, lease: timedelta, *, must: bool
    ) -> None:
        until = self.now + lease
        for flow_id in flow_ids:
            flow = self.flows[flow_id]
            found = seen.flow_due.get(flow_id)
            if found != flow.due or must:
                assert found == until, f"unreadable {flow_id!r} is due at {found}, not {until}"
                self.flows[flow_id] = replace(flow, due=until)

    def _fates(
        self,
        name: str,
        wait: Wait,
        ids: list[str],
        unreadable: set[str],
        lease: timedelta,
        *,
        must: bool,
    ) -> list[Wait]:
        """What may become of a condition that calls for its parent while `ids` are claimed."""
        parent = wait.terms.parent or ""
        flow = self.flows.get(parent)
        until = self.now + lease
        untouched = [] if must else [wait]

        if flow is None or flow.status in TERMINAL:
            return [self._notified(wait), *untouched]

        if flow.is_held(self.now) and flow.due is not None:
            left = flow.due - self.now
            soon = max(timedelta(seconds=1), floor_ms(self.now + left / 4) - self.now)
            return [self._put_off(wait, self.now + min(left, soon)), *untouched]

        if parent in unreadable:
            return [self._put_off(wait, until), *untouched]

        if parent not in ids:
            assert not must, f"{name!r} has ended, but no claimer was given {parent!r}"
            return [wait]

        return [self._notified(wait)]

    def _possible_shows(self, flow_id: str, calling: dict[str, Wait]) -> list[Shown | None]:
        """Which condition a claimed flow may show."""
        awaited = self._awaited_end(flow_id)
        if awaited is not None:
            return [self._as_shown(awaited, flow_id)]

        bearing = [name for name, wait in calling.items() if wait.terms.parent == flow_id]
        showed = self._showed(flow_id)
        if not bearing and showed is not None:
            bearing = [showed]

        possible: list[Shown | None] = [self._as_shown(name, flow_id) for name in bearing]
        return possible or [self.flows[flow_id].waits_for]

    # the store ------------------------------------------------------------------------------------

    def sweep(self, removed: int, limit: int, seen: Seen) -> None:
        """Check what a sweep returned; the ended conditions of parents that are gone may now go."""
        self.forget_expired()
        calling = self.calling()
        for name, wait in calling.items():
            parent = self.flows.get(wait.terms.parent or "")
            if parent is None or parent.status in TERMINAL:
                untouched = [] if len(calling) <= limit else [wait]
                self.waits[name] = _matching(name, [self._notified(wait), *untouched], seen)

        assert 0 <= removed <= min(limit, self.expired), (
            f"sweep({limit}) removed {removed} records, but only {self.expired} had expired"
        )
        self.expired -= removed
        if removed < limit:
            self.expired = 0

    def copied(self, *, over: bool) -> None:
        """Everything was copied to another store and back, over what is there or into emptiness.

        Claims are gone, and what was claimed is due. Of a cleared condition nothing is copied.
        """
        for flow_id, flow in self.flows.items():
            new = replace(flow, stamp=next(self._stamps), owner=None, claim=None)
            self.flows[flow_id] = new if flow.owner is None else replace(new, due=self.now)

        for key, progress in self.progress.items():
            self.progress[key] = replace(progress, stamp=next(self._stamps))

        # Over what is there, the counters of logs stand, and are not written again.
        self.parts.copied()
        written = {flow_id for flow_id, rows in self.parts.rows.items() if rows}
        for flow_id in written if over else written | {key[0] for key in self.parts.counters}:
            self.note_orphan(flow_id)

        for name, wait in list(self.waits.items()):
            if isinstance(wait, Wait):
                self.waits[name] = self._copied_wait(wait, over=over)
            elif not over and isinstance(wait, PendingCompletions):
                self.waits[name] = replace(wait, expires=self._wait_expiry())
            elif not over:
                del self.waits[name]

    def _copied_wait(self, wait: Wait, *, over: bool) -> Wait:
        new = replace(wait, stamp=next(self._stamps))
        if wait.outcome == "PENDING" or wait.wake is not None or over:
            return new

        return replace(new, expires=self._wait_expiry())

    def clear(self) -> None:
        """Everything is gone."""
        self.flows.clear()
        self.waits.clear()
        self.progress.clear()
        self.parts.clear()
        self.history.rows.clear()
        self.expired = 0


# --- small things -----------------------------------------------------------------------------------


def _same(there: Flow | Wait | Progress | None, base: Flow | Wait | Progress | None) -> bool:
    """Whether the store still holds the write that was read."""
    return (there and there.stamp) == (base and base.stamp)


def _stale(
    name: str, base: Flow | Wait | Progress | None, there: Flow | Wait | Progress | None
) -> Refusal:
    return Refusal(
        name,
        expected=0 if base is None else base.version,
        actual=None if there is None else there.version,
    )


def _has_tags(flow: Flow, tags: dict[str, str] | None) -> bool:
    return tags is None or tags.items() <= dict(flow.tags).items()


def _is_of(flow: Flow, type_name: str | None, tags: dict[str, str] | None = None) -> bool:
    return _has_tags(flow, tags) and (type_name is None or flow.type_name in ("", type_name))


def _is_satisfied(wait: Wait) -> bool:
    results = wait.results
    all_done = len(results) == len(wait.terms.children)
    return all_done or (wait.terms.any_of and any(success for success, _, _ in results.values()))


def _newest_first(found: list[tuple[datetime, str]]) -> list[tuple[datetime, str]]:
    return sorted(sorted(found, key=lambda pair: pair[1]), key=lambda pair: pair[0], reverse=True)


def _matching(name: str, possible: list[Wait], seen: Seen) -> Wait:
    """The one of the possible conditions that a reader finds."""
    found = seen.wait_version.get(name), seen.wait_wake.get(name)
    for wait in possible:
        wake = wait.deadline if wait.outcome == "PENDING" else wait.wake
        if found == (wait.version, wake):
            return wait

    message = f"wait condition {name!r} is at {found}, expected one of {possible}"
    raise AssertionError(message)

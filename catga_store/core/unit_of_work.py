"""The unit of work: identity map, plan, settle. Pure: nothing here does I/O or reads a clock.

`UnitOfWork` holds what a session has loaded and queued. `plan` turns that into the changes of one commit,
and can be called and compared in a test; `settle` is the one place where objects take over what the
store returned.

What becomes of one record is in `entries`. This file is over 400 lines because the verbs of a session
share one map, and each is read beside the others.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from itertools import zip_longest
from typing import Any

from attrs import define
from attrs import field

from catga_store.core.conflicts import conflict_error
from catga_store.core.conflicts import conflict_of
from catga_store.core.entries import Entry
from catga_store.core.entries import Intent
from catga_store.core.entries import again
from catga_store.core.entries import is_dirty
from catga_store.core.entries import plan_entry
from catga_store.core.entries import renewal
from catga_store.core.receipts import Receipt
from catga_store.core.receipts import receipt_of
from catga_store.core.reports import missing_reports
from catga_store.core.writes import Limits
from catga_store.core.writes import check_flag
from catga_store.core.writes import check_partition
from catga_store.core.writes import settle_part
from catga_store.core.writes import settle_progress
from catga_store.core.writes import settle_wait
from catga_store.errors import CommitTooLargeError
from catga_store.errors import ConflictError
from catga_store.errors import SessionClosedError
from catga_store.errors import UsageError
from catga_store.model import stored_state
from catga_store.model.flows import Claim
from catga_store.model.flows import FlowSnapshot
from catga_store.model.parts import Part
from catga_store.model.progress import ForEachProgress
from catga_store.model.stored_state import AnyRecord
from catga_store.model.stored_state import head_of
from catga_store.model.stored_state import key_of
from catga_store.model.waits import WaitCondition
from catga_store.protocol.keys import FLOW
from catga_store.protocol.keys import PART
from catga_store.protocol.keys import PROGRESS
from catga_store.protocol.keys import WAIT
from catga_store.protocol.keys import Key
from catga_store.protocol.keys import flow_key
from catga_store.protocol.masking import shown
from catga_store.protocol.requests import ANY
from catga_store.protocol.requests import IF_ABSENT
from catga_store.protocol.requests import MAX_CHANGES
from catga_store.protocol.requests import Append
from catga_store.protocol.requests import Change
from catga_store.protocol.requests import Check
from catga_store.protocol.requests import Complete
from catga_store.protocol.requests import Conflict
from catga_store.protocol.requests import Delete
from catga_store.protocol.requests import Head
from catga_store.protocol.requests import Outcome
from catga_store.protocol.requests import Put
from catga_store.protocol.requests import SetWait

__all__ = ["CommitPlan", "UnitOfWork", "check_exists"]


_log = logging.getLogger(__name__)


@define  # not `frozen`, which makes one take twice as long, in every commit
class CommitPlan:
    """The changes of one commit, each with its entry, if it has one."""

    changes: tuple[Change, ...]
    entries: tuple[Entry | None, ...]


@define(eq=False)
class _Queued:
    """What the next commit does besides writing records, each until that commit."""

    completions: dict[tuple[Key, str], Complete] = field(factory=dict[tuple[Key, str], Complete])
    appends: list[Append] = field(factory=list[Append])
    checks: dict[Key, AnyRecord] = field(factory=dict[Key, AnyRecord])
    guards: dict[Key, tuple[FlowSnapshot[Any], Claim]] = field(
        factory=dict[Key, tuple[FlowSnapshot[Any], Claim]]
    )


_NOTHING = CommitPlan((), ())

_LIFECYCLE = {
    ("open", "use"): "open",
    ("open", "commit"): "committing",
    ("open", "rollback"): "open",
    ("open", "close"): "closed",
    ("closed", "close"): "closed",
    ("closed", "rollback"): "closed",
    ("committing", "settle"): "open",
    ("committing", "refuse"): "open",
    ("committing", "lose"): "closed",
    ("committing", "close"): "closed",
    ("closed", "settle"): "closed",
    ("closed", "refuse"): "closed",
    ("closed", "lose"): "closed",
}
"""What may be done to a session in which state, and where that leads; anything else is an error."""


def _no_session() -> None:
    """Stand for a session in copies of its records."""


class UnitOfWork:
    """What one session has loaded and queued."""

    # What most sessions do not change stands in the class: one is made for each session.
    why_closed = "it was closed"
    receipt: Receipt | None = None
    refusal: BaseException | None = None
    """The error of the last commit that was refused or lost."""
    has_written = False
    ended_waits: tuple[WaitCondition, ...] = ()
    """Conditions that the last commit has set and that had ended: their results are not read yet."""
    _lost: tuple[CommitPlan, int] | None = None
    """What was sent when the last commit was lost, and when."""

    def __init__(self) -> None:
        self.state = "open"
        self._map: dict[Key, Entry] = {}
        self._queued: _Queued | None = None

    def __reduce__(self) -> tuple[Callable[[], None], tuple[()]]:
        """A copy of a record, also one that was pickled, is in no session."""
        return _no_session, ()

    def step(self, verb: str) -> None:
        """Go where the lifecycle leads; raises by name what it has no way for."""
        try:
            self.state = _LIFECYCLE[self.state, verb]
        except KeyError:
            if self.state == "closed":
                message = f"this session cannot be used: {self.why_closed}; open a new session"
                raise SessionClosedError(message) from None

            message = "another task is committing this session; use a separate session in each task"
            raise UsageError(message) from None

    def lose(self, error: BaseException, plan: CommitPlan, now_ms: int) -> None:
        """Close after a commit whose sending failed; what was sent may turn out to be applied."""
        self.step("lose")
        self._lost = plan, now_ms
        self.why_closed = f"its commit failed with {type(error).__name__}: {error}"
        self.refusal = error
        self._stop_watching()
        self.forget()

    def close(self, limits: Limits | None = None) -> None:
        """Forget everything for good; with `limits`, warn of changes to claimed flows."""
        if limits is not None and self.state == "open":
            self._warn_of_unwritten(limits)
        else:
            self._stop_watching()

        self.step("close")
        self.forget()

    def _warn_of_unwritten(self, limits: Limits) -> None:
        """Log each claimed flow that leaves the session with changes that were not written.

        A worker that forgets to commit loses its work without an error, and only that.
        """
        for entry in self._map.values():
            record = entry.record
            if (
                isinstance(record, FlowSnapshot)
                and record._claim is not None
                and entry.intent is Intent.LOADED
                and is_dirty(entry, limits)
            ):
                _log.warning(
                    "%s was claimed and changed, but its session was closed without a "
                    "commit, so the changes were not written; to keep such changes, commit; "
                    "to discard them without this warning, roll back before closing",
                    entry.key,
                )
                stored_state.stop_watching(record)  # once is enough

    def _stop_watching(self) -> None:
        """Let claimed flows be dropped without a warning: their changes are dropped on purpose."""
        for entry in self._map.values():
            stored_state.stop_watching(entry.record)

    def rollback(self) -> None:
        """Forget everything that was loaded and queued."""
        self.step("rollback")
        self._stop_watching()
        self.forget()

    # the identity map -----------------------------------------------------------------------------

    def find(self, key: Key) -> Entry | None:
        """What the session knows of a key."""
        if self.state != "open":  # every read passes here, twice
            self.step("use")

        return self._map.get(key)

    def track(self, key: Key, record: AnyRecord, intent: Intent = Intent.LOADED) -> Entry:
        """Take a record into the map; what it takes the place of is its holder's again."""
        before = self._map.get(key)
        if before is not None and before.record is not None:
            stored_state.attach(before.record, None)

        entry = Entry(key, record, intent)
        self._map[key] = entry
        stored_state.attach(record, self)
        return entry

    def present(self, key: Key) -> AnyRecord | None:
        """The session's object under a key, unless the session deletes it."""
        entry = self.find(key)
        return None if entry is None or entry.intent is Intent.DELETED else entry.record

    def leaves(self, flow_id: str) -> bool:
        """Whether the session deletes or replaces a flow, and with it all that belongs to it."""
        flow = self.find(flow_key(flow_id))
        return flow is not None and (flow.instead is not None or flow.intent is Intent.DELETED)

    def keys(self) -> frozenset[Key]:
        """The keys that the session knows something of."""
        return frozenset(self._map)

    def track_claimed(self, flow: FlowSnapshot[Any]) -> None:
        """Track a flow that was just claimed, unless the session was used otherwise meanwhile.

        The claim is written, so its object goes to the caller in any case.
        """
        if self.state == "open" and flow.key not in self._map:
            self.track(flow.key, flow)

    def add(self, record: object) -> Entry:
        """Queue a record: a new one is created or set, one with a revision is updated if it changes."""
        checked, key, entry = self.check_addable(record)
        if entry is not None and entry.record is checked:
            if entry.intent is Intent.DELETED:
                self._map[key] = entry = again(key, checked)

            return entry

        if head_of(checked) is not None:
            return self.track(key, checked)

        instead = None if entry is None else entry.instead
        entry = self.track(key, checked, Intent.SET if key.kind == WAIT else Intent.NEW)
        entry.instead = instead
        return entry

    def check_addable(self, record: object) -> tuple[AnyRecord, Key, Entry | None]:
        """The record, its key, and what is known of that; `UsageError` if `add` would raise it."""
        self.step("use")
        checked = _any_record(record)
        key = key_of(checked)
        entry = self._map.get(key)
        if entry is None or entry.record is not checked:
            self._check_free(checked)
            if entry is not None and entry.intent is not Intent.DELETED:
                message = (
                    f"another object for {key} is already in this session; change that object "
                    "instead"
                )
                raise UsageError(message)

            if entry is not None and head_of(checked) is not None:
                message = (
                    f"{key} was deleted in this session, so an object that was loaded before "
                    "cannot be added again; add a new record in its place"
                )
                raise UsageError(message)

            if entry is not None and key.kind == FLOW and entry.instead is None:
                message = (
                    f"this session deletes {key} by its id, so the same commit cannot add a new "
                    "record in its place; load the record and delete the object, or add the new "
                    "record in another commit"
                )
                raise UsageError(message)

        return checked, key, entry

    def _check_free(self, record: AnyRecord) -> None:
        other = record._session
        if isinstance(other, UnitOfWork) and other is not self and record in other:
            message = f"{record!r} is in another open session; expunge it from that session first"
            raise UsageError(message)

    def save_progress(self, key: Key, progress: ForEachProgress, *, overwrite: bool) -> None:
        """Queue a ForEach progress under its step."""
        self.step("use")
        check_flag(overwrite, "overwrite")
        if type(progress) is not ForEachProgress:
            message = f"progress: expected a ForEachProgress, got {shown(progress)}"
            raise UsageError(message)

        own_key = progress._key
        if own_key is not None and own_key != key:
            message = (
                f"this ForEachProgress already belongs to {own_key}; create a new one for {key}"
            )
            raise UsageError(message)

        entry = self._map.get(key)
        if entry is not None and entry.record is progress:
            if entry.intent is Intent.DELETED:
                self._map[key] = entry = again(key, progress)

            if overwrite:
                entry.intent = Intent.OVERWRITE

            return

        self._check_free(progress)
        if entry is not None and entry.intent is not Intent.DELETED:
            message = (
                f"another object for {key} is already in this session; change that object instead"
            )
            raise UsageError(message)

        fresh = Intent.NEW if head_of(progress) is None else Intent.LOADED
        replaced = entry is not None
        stored_state.set_progress_key(progress, key)
        self.track(
            key, progress, Intent.OVERWRITE if overwrite or replaced else fresh
        ).fresh = replaced

    def clear_progress(self, key: Key) -> None:
        """Queue the removal of a ForEach progress, whatever it holds."""
        self.step("use")
        self._delete_unchecked(key)

    def delete_by_id(self, key: Key) -> None:
        """Queue the deletion of a flow, whatever is stored."""
        self.step("use")
        self._delete_unchecked(key)
        self._forget_progress(key.id)

    def _delete_unchecked(self, key: Key) -> None:
        entry = self._map.get(key)
        if entry is not None and entry.record is not None:
            stored_state.detach(entry.record)

        self._map[key] = Entry(key, None, Intent.DELETED)

    def delete(self, record: object) -> None:
        """Queue the deletion of a loaded record; a new one is only forgotten."""
        self.step("use")
        checked = _any_record(record)
        key = key_of(checked)
        entry = self._map.get(key)

        if entry is not None and entry.record is not checked:
            message = (
                f"another object for {key} is already in this session; delete that object instead"
            )
            raise UsageError(message)

        if entry is None:
            self._check_free(checked)
            if head_of(checked) is None:
                message = f"{key} has never been stored, so it cannot be deleted"
                raise UsageError(message)

        head = head_of(checked)
        if entry is not None and head is None and (entry.intent in _CREATES or key.kind == PART):
            self.expunge(checked)
            return

        self.track(key, checked, Intent.DELETED).instead = head
        if key.kind == FLOW:
            self._forget_progress(key.id)

    def _forget_progress(self, flow_id: str) -> None:
        for key in [key for key in self._map if key.kind in _BELONGING and key.id == flow_id]:
            gone = self._map.pop(key).record
            if gone is not None:
                stored_state.detach(gone)

    def complete(self, change: Complete) -> None:
        """Queue a completion; the first of a child counts."""
        self.step("use")
        self._queue().completions.setdefault((change.key, change.child), change)

    def append(self, change: Append) -> None:
        """Queue an entry of a log; its times, and the version of its flow, come with the plan."""
        self.step("use")
        self._queue().appends.append(change)

    def add_part(self, record: object, exists: str) -> None:
        """Queue a part: a new one to be written unless, or whether or not, there is one."""
        part = check_exists(record, exists)
        before = self._map.get(part.key)
        entry = self.add(part)
        if exists == "overwrite":
            entry.intent = Intent.OVERWRITE
        elif exists == "keep":
            entry.intent = Intent.KEEP
        elif before is not None and entry is before and head_of(part) is None:
            entry.intent = Intent.NEW

    def check(self, record: object) -> None:
        """Queue a check: commit only if this is still what was read."""
        self.step("use")
        checked = _any_record(record)
        head = head_of(checked)
        if head is None:
            message = f"{checked!r} has never been stored, so it cannot be checked"
            raise UsageError(message)

        key = key_of(checked)
        before = head_of(self._queue().checks.setdefault(key, checked))
        if before is not None and before.revision != head.revision:
            message = (
                f"cannot check {key} at version {head.version}, because this session already "
                f"checks version {before.version}: the record changed between two reads in "
                "this session; start again in a new session"
            )
            raise UsageError(message)

    def guard(self, flow: FlowSnapshot[Any], claim: Claim) -> None:
        """Queue a check of a claim, which is renewed."""
        self.step("use")
        before = self._queue().guards.setdefault(flow.key, (flow, claim))[1]
        if before.token != claim.token:
            message = (
                f"this session already guards {flow.key} with another claim, and only the "
                "newest claim can be valid; guard the flow with the newest claim in a new session"
            )
            raise UsageError(message)

    def expunge(self, record: object) -> None:
        """Stop tracking a record and drop its change; if it was to replace a deletion, that stays."""
        self.step("use")
        checked = _any_record(record)
        key = key_of(checked)
        entry = self._map.get(key)
        if entry is None or entry.record is not checked:
            message = f"{checked!r} is not in this session, so it cannot be expunged"
            raise UsageError(message)

        del self._map[key]
        if self._queued is not None:
            self._queued.checks.pop(key, None)

        stored_state.detach(checked)
        stored_state.stop_watching(checked)
        if entry.fresh or (entry.instead is not None and entry.intent is not Intent.DELETED):
            self._map[key] = Entry(key, None, Intent.DELETED, entry.instead)

    def forget(self) -> None:
        """Forget everything; objects stay as they are and belong to their holders."""
        for entry in self._map.values():
            if entry.record is not None:
                stored_state.detach(entry.record)

        self._map.clear()
        self._queued = None

    def _queue(self) -> _Queued:
        if self._queued is None:
            self._queued = _Queued()

        return self._queued

    def __contains__(self, record: object) -> bool:
        return any(
            entry.record is record and entry.intent is not Intent.DELETED
            for entry in self._map.values()
        )

    # what is pending ------------------------------------------------------------------------------

    def records(self, *intents: Intent) -> tuple[AnyRecord, ...]:
        """The records with one of these intents, in the order they came."""
        return tuple(
            entry.record
            for entry in self._map.values()
            if entry.record is not None and entry.intent in intents
        )

    def dirty(self, limits: Limits) -> tuple[AnyRecord, ...]:
        """Loaded records that the next commit would write, or that it would refuse to encode."""
        return tuple(
            entry.record
            for entry in self._map.values()
            if entry.record is not None
            and entry.intent is Intent.LOADED
            and is_dirty(entry, limits)
        )

    # plan and settle ------------------------------------------------------------------------------

    def plan(self, now_ms: int, limits: Limits) -> CommitPlan:
        """The changes of one commit; raises before anything is sent."""
        tracked = self._map.values()
        changes: list[Change] = []
        entries: list[Entry | None] = []  # of the changes; at the end, `None` for the last ones
        idle: list[Entry] = []

        for entry in sorted(tracked, key=_rank) if len(tracked) > 1 else tracked:
            change = plan_entry(entry, now_ms, limits)
            if change is not None:
                changes.append(change)
                entries.append(entry)
            elif isinstance(entry.record, FlowSnapshot) and entry.record._claim is not None:
                idle.append(entry)

        queued = self._queued
        if queued is not None:
            changes += queued.completions.values()

        changes += missing_reports(changes)  # the receipt says what they did
        if queued is not None and queued.appends:
            written = {one.key: one.head.version for one in changes if type(one) is Put}
            changes += [_dated(change, now_ms, written) for change in queued.appends]

        if not changes and (queued is None or not (queued.checks or queued.guards)):
            return _NOTHING

        if idle:
            entries += [None] * (len(changes) - len(entries))
            changes += [renewal(entry, now_ms) for entry in idle]
            entries += idle

        if queued is not None:
            changes += _unplanned_checks(queued, changes)
            changes += _unplanned_guards(queued, changes, entries, now_ms)

        size = len(changes)
        if size > MAX_CHANGES:
            message = (
                f"this commit contains {size} records, but the limit is {MAX_CHANGES}, so nothing "
                "was sent; split it into several commits"
            )
            raise CommitTooLargeError(message, size=size, limit=MAX_CHANGES)

        entries += [None] * (size - len(entries))
        check_partition(changes, limits)
        return CommitPlan(tuple(changes), tuple(entries))

    def settle(
        self, commit_id: str, plan: CommitPlan, outcomes: tuple[Outcome, ...], now_ms: int
    ) -> Receipt:
        """Every object takes what the store returned; from here on they are clean."""
        self.step("settle")
        self.has_written = True
        self.ended_waits = ()
        self.receipt = self._take_over(commit_id, plan, outcomes, now_ms)
        self._queued = None
        return self.receipt

    def settle_unread(self, commit_id: str, plan: CommitPlan, now_ms: int) -> Receipt:
        """Close after a commit that was applied, although nothing else is known of it.

        The objects stay what was read, so the session cannot use them on. The versions of the
        receipt are the planned ones.
        """
        self.step("lose")
        self._lost = plan, now_ms
        self.has_written = True
        self.why_closed = (
            f"commit {commit_id} was applied, but the versions that it wrote are unknown"
        )
        self.receipt = receipt_of(commit_id, plan.changes, ())
        self.forget()
        return self.receipt

    @property
    def lost_changes(self) -> tuple[Change, ...]:
        """The changes of the last commit that was lost."""
        return () if self._lost is None else self._lost[0].changes

    def recover(self, commit_id: str, outcomes: tuple[Outcome, ...]) -> None:
        """The objects of a lost commit that was applied after all, and whose outcomes are known.

        The session stays closed; the objects are the caller's, and what is stored.
        """
        if self._lost is not None and outcomes:
            plan, now_ms = self._lost
            self.receipt = self._take_over(commit_id, plan, outcomes, now_ms)

    def _take_over(
        self, commit_id: str, plan: CommitPlan, outcomes: tuple[Outcome, ...], now_ms: int
    ) -> Receipt:
        for change, entry, outcome in zip(plan.changes, plan.entries, outcomes, strict=True):
            if entry is not None:
                self._settle_entry(entry, change, outcome, now_ms)
            elif outcome.satisfied:  # a completion
                self._settle_satisfied(change.key, outcome)

        return receipt_of(commit_id, plan.changes, outcomes)

    def _settle_entry(self, entry: Entry, change: Change, outcome: Outcome, now_ms: int) -> None:
        record = entry.record

        if type(change) is Put:
            assert record is not None, "a Put must come from a record"
            if isinstance(record, FlowSnapshot):
                stored_state.set_written(
                    record, change.head, change.body, outcome.revision, record._claim
                )
            elif isinstance(record, WaitCondition):
                settle_wait(record, change, outcome, now_ms)
            elif isinstance(record, Part):
                if change.expected == IF_ABSENT and not outcome.accepted:
                    self._drop(entry)  # it is not what is stored
                    return

                settle_part(record, change, outcome)
            else:
                settle_progress(record, change, outcome)
        elif isinstance(change, SetWait):
            assert isinstance(record, WaitCondition), "a SetWait must come from a WaitCondition"
            settle_wait(record, change, outcome, now_ms)
            if not (change.renotify or outcome.accepted):
                self.ended_waits += (record,)  # a parent that suspends on one is claimed with it
        elif isinstance(change, Check):
            assert isinstance(record, FlowSnapshot), "a renewed claim must come from a FlowSnapshot"
            _settle_renewal(record, change)
            return
        else:
            self._drop(entry)
            return

        entry.intent, entry.instead = Intent.LOADED, None
        entry.renotify = entry.fresh = False

    def _drop(self, entry: Entry) -> None:
        self._map.pop(entry.key, None)  # not there if the session was closed meanwhile
        if entry.record is not None:
            stored_state.detach(entry.record)
            stored_state.stop_watching(entry.record)

    def _settle_satisfied(self, key: Key, outcome: Outcome) -> None:
        entry = self._map.get(key)
        if entry is None or not isinstance(entry.record, WaitCondition):
            return

        wait, loaded = entry.record, entry.record._loaded
        if loaded is None or loaded.head.revision not in (outcome.revision, outcome.replaced):
            # Changed by others since it was read: it stays what was read, and a later write of it
            # is refused as stale.
            return

        stored_state.set_satisfied(wait, outcome.version, outcome.revision, outcome.status or 0)

    def refused(self, plan: CommitPlan, conflicts: tuple[Conflict, ...]) -> ConflictError:
        """The error of a refused commit; everything is still pending."""
        self.step("refuse")
        error = conflict_of(
            [
                conflict_error(
                    plan.changes[conflict.place], conflict, self._record_of(plan, conflict.place)
                )
                for conflict in conflicts
            ]
        )
        self.refusal = error
        return error

    def _record_of(self, plan: CommitPlan, index: int) -> AnyRecord | None:
        entry = plan.entries[index]
        if entry is not None:
            return entry.record

        change, queued = plan.changes[index], self._queued
        if queued is None:
            return None

        if isinstance(change, Check) and change.claim is not None:
            return queued.guards[change.key][0]

        return queued.checks.get(change.key)

    def __repr__(self) -> str:
        if self.state == "closed":
            return "closed"

        counts = {
            name: sum(entry.intent in intents for entry in self._map.values())
            for name, intents in _COUNTED.items()
        }
        return ", ".join(f"{count} {name}" for name, count in counts.items())


_CREATES = (Intent.NEW, Intent.SET)

_BELONGING = (PROGRESS, PART)
"""What goes with a flow."""

_COUNTED = {
    "loaded": (Intent.LOADED,),
    "new": (Intent.NEW, Intent.SET, Intent.OVERWRITE, Intent.KEEP),
    "deleted": (Intent.DELETED,),
}


_ORDER = {FLOW: 0, WAIT: 1, PROGRESS: 2, PART: 3}


def _rank(entry: Entry) -> int:
    return _ORDER[entry.key.kind]


def _any_record(record: Any) -> AnyRecord:
    if isinstance(record, FlowSnapshot | WaitCondition | ForEachProgress | Part):
        return record  # pyright: ignore[reportUnknownVariableType]  # of any state

    message = (
        "record: expected a FlowSnapshot, WaitCondition, ForEachProgress or Part, got "
        f"{shown(record)}"
    )
    raise UsageError(message)


def check_exists(record: object, exists: object) -> Part[Any]:
    """Return the part, if it can be written that way: `refuse`, `keep` or `overwrite`."""
    if not isinstance(record, Part):
        message = f"part: expected a Part, got {shown(record)}"
        raise UsageError(message)

    if exists not in ("refuse", "keep", "overwrite"):
        message = f"exists: expected 'refuse', 'keep' or 'overwrite', got {shown(exists)}"
        raise UsageError(message)

    part: Part[Any] = record  # pyright: ignore[reportUnknownVariableType]  # of any body
    if exists == "keep" and head_of(part) is not None:
        message = (
            f"exists='keep' is only for new parts, but {part.key} has already been stored or read"
        )
        raise UsageError(message)

    return part


def _unplanned_checks(queued: _Queued, changes: Iterable[Change]) -> list[Check]:
    """The checks of records that are not written; `UsageError` for one that a write contradicts."""
    if not queued.checks:
        return []

    planned = {one.key: one for one in changes if not isinstance(one, Complete | Append)}
    found: list[Check] = []
    for key, record in queued.checks.items():
        head, change = head_of(record), planned.get(key)
        assert head is not None, "a checked record must have been read"
        if change is None:
            found.append(Check(key, head.revision))
        elif isinstance(change, SetWait) or change.expected != head.revision:
            message = (
                f"{key} is checked at version {head.version} but written unconditionally, "
                "so nothing was sent; change or delete the record that was read"
            )
            raise UsageError(message)

    return found


def _unplanned_guards(
    queued: _Queued, changes: Iterable[Change], entries: Iterable[Entry | None], now_ms: int
) -> list[Check]:
    """The checks of claims on flows that nothing else checks.

    What was read under the claim and is unchanged is under it still, so a write or a check of
    that needs no other check; `UsageError` for a write that may be under no claim.
    """
    if not queued.guards:
        return []

    planned = {
        change.key: _read_before(queued, change, entry)
        for change, entry in zip_longest(changes, entries)
        if change.key in queued.guards
    }
    found: list[Check] = []
    for key, (_, claim) in queued.guards.items():
        if key not in planned:
            found.append(Check(key, ANY, now_ms + claim.lease_ms, claim.token))
            continue

        read = planned[key]
        if read is None or read.claim != claim.token:
            message = (
                f"{key} is guarded by a claim but is written or checked through another "
                "record, so nothing was sent; use the record that was read under the claim"
            )
            raise UsageError(message)

    return found


def _read_before(queued: _Queued, change: Change, entry: Entry | None) -> Head | None:
    """What a planned change expects to find: what was read, or nothing."""
    if isinstance(change, Put | Delete):
        return change.replaces

    record = queued.checks.get(change.key) if entry is None else entry.record
    return None if record is None else head_of(record)


def _dated(change: Append, now_ms: int, written: Mapping[Key, int]) -> Append:
    """The change at the time of its commit, with the version that this makes of its flow."""
    version = written.get(flow_key(change.key.id), 0)
    head = change.head._replace(created_ms=now_ms, updated_ms=now_ms, attempts=version)
    return change._replace(head=head)


def _settle_renewal(flow: FlowSnapshot[Any], change: Check) -> None:
    loaded = flow._loaded
    assert loaded is not None
    head = loaded.head._replace(due_ms=change.due_ms)
    stored_state.set_written(flow, head, loaded.body, head.revision, flow._claim)

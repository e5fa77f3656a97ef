"""Actions on many flows: which they are, and one version-checked commit for each.

A page of flows is listed, their records are read in one request, and each is changed by a commit of its
own. A flow that another writer has changed since it was listed is looked at again: it is changed only if
it still matches.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from collections.abc import Iterable
from typing import cast

from attrs import field
from attrs import frozen

from catga_store.core import commits
from catga_store.core import examining
from catga_store.core import listings
from catga_store.core.actions import ATTEMPTS
from catga_store.core.actions import Action
from catga_store.core.actions import PurgeFlow
from catga_store.core.actions import act
from catga_store.core.arguments import check_limit_or_none
from catga_store.core.arguments import check_names
from catga_store.core.arguments import unique_ids
from catga_store.core.context import Context
from catga_store.core.context import read_what_can_be
from catga_store.core.diagnosis import CODES
from catga_store.core.options import BulkOptions
from catga_store.core.options import DiagnosisOptions
from catga_store.core.options import FlowFilters
from catga_store.core.writes import check_flag
from catga_store.errors import ConflictError
from catga_store.errors import CorruptRecordError
from catga_store.errors import FlowNotFoundError
from catga_store.errors import UsageError
from catga_store.model.bulk import BulkReport
from catga_store.protocol.conversation import Conversation
from catga_store.protocol.conversation import Pause
from catga_store.protocol.keys import Key
from catga_store.protocol.keys import flow_key
from catga_store.protocol.keys import new_commit_id
from catga_store.protocol.keys import wait_key
from catga_store.protocol.masking import shown
from catga_store.protocol.requests import PENDING
from catga_store.protocol.requests import Delete
from catga_store.protocol.requests import Head
from catga_store.protocol.requests import Record
from catga_store.protocol.requests import Refused

__all__ = ["PER_SECOND", "Selection", "run_bulk", "select"]

_PAGE = 100
_FIRST = 100
PER_SECOND = 1000.0
"""How many flows are changed in a second at most, unless the caller says otherwise."""

_GONE = "does not exist"
_CORRUPT = "cannot be read"
_CHANGED = "was changed by another caller and no longer matches"
_CONTESTED = "was written by another caller during each attempt"


@frozen
class Selection:
    """Which flows an operation is for: these ids, or those that match, perhaps with a finding."""

    ids: tuple[str, ...] | None
    findings: frozenset[str]
    filters: FlowFilters
    diagnosis: DiagnosisOptions

    def matches(self, codes: Iterable[str]) -> bool:
        """Whether one of these findings is wanted."""
        return not self.findings.isdisjoint(codes)


@frozen
class _Target:
    """One flow that matched, or a wait condition whose parent does not exist."""

    key: Key
    revision: str | None
    """At which it matched; `None` if any will do."""
    head: Head | None = None
    parent: str | None = None
    """The flow that does not exist, of a condition."""
    is_unreadable: bool = False
    """Whether it is a condition that cannot be read."""


def select(
    *,
    ids: Iterable[str] | None,
    findings: Iterable[str],
    everything: object,
    diagnosis: DiagnosisOptions | None,
    filters: FlowFilters,
) -> Selection:
    """Check what was asked for; `UsageError` if that is every flow, unless it was said."""
    check_flag(everything, "everything")
    check_names("bulk", "filter", filters, FlowFilters.__annotations__)
    given = {name: value for name, value in filters.items() if value is not None}
    codes = _checked_codes(findings)
    if ids is not None and (given or codes or everything):
        message = (
            "ids cannot be combined with filters, findings or everything=True, because the ids "
            "already select the flows; omit one or the other"
        )
        raise UsageError(message)

    if ids is None and not given and not codes and not everything:
        message = (
            "a bulk operation without a filter would act on every flow in the store, so nothing "
            "was sent; pass a filter, or everything=True"
        )
        raise UsageError(message)

    return Selection(
        None if ids is None else tuple(unique_ids(ids)),
        codes,
        cast("FlowFilters", given),
        diagnosis or {},
    )


def _checked_codes(findings: Iterable[str]) -> frozenset[str]:
    if isinstance(findings, str):
        message = f"findings: expected a collection of codes, got {shown(findings)}"
        raise UsageError(message)

    codes = frozenset(findings)
    wrong = codes.difference(CODES)
    if wrong:
        message = (
            f"unknown finding {shown(min(map(str, wrong)))}: expected one of {', '.join(CODES)}"
        )
        raise UsageError(message)

    return codes


# --- running it ---------------------------------------------------------------------------------


def run_bulk(
    context: Context, selection: Selection, action: Action, options: BulkOptions
) -> Conversation[BulkReport]:
    """Act on each flow of a selection, and say what came of it."""
    check_names("bulk", "option", options, BulkOptions.__annotations__)
    dry_run, limit = options.get("dry_run", False), options.get("limit")
    check_flag(dry_run, "dry_run")
    check_limit_or_none(limit)
    tally = _Tally(dry_run=dry_run)
    pace = _Pace.of(options.get("per_second", PER_SECOND))
    progress: Callable[[BulkReport], object] | None = options.get("progress")
    cursor = options.get("cursor")
    while True:
        size = _PAGE if limit is None else min(_PAGE, limit - tally.matched)
        targets, cursor = yield from _page(context, selection, cursor, size)
        records = yield from _records_of(context, action, targets, dry_run=dry_run)
        for target in targets:
            if dry_run:
                reason = _reason(context, action, target, records.get(target.key))
            else:
                reason = yield from _act_on(
                    context, selection, action, target, records.get(target.key)
                )

            tally.note(target, reason)
            if reason is None and not dry_run:
                yield from pace.keep()

        report = tally.report(cursor)
        if progress is not None and targets:
            progress(report)

        if cursor is None or tally.matched == limit:
            return report


def _page(
    context: Context, selection: Selection, cursor: str | None, size: int
) -> Conversation[tuple[list[_Target], str | None]]:
    """The next flows of a selection."""
    if selection.ids is not None:
        return _page_of_ids(selection.ids, cursor, size)

    if not selection.findings:
        found, following = yield from listings.find_flows(
            context, "bulk", size, cursor, selection.filters
        )
        targets = [
            _Target(one.key, one.head.revision, one.head)
            if one.error is None
            else _Target(one.key, None)
            for one in found
        ]
        return targets, following

    page = yield from examining.diagnose_all(
        context,
        limit=size,
        cursor=cursor,
        severity="info",
        options=selection.diagnosis,
        filters=selection.filters,
    )
    targets = [
        _Target(flow_key(one.flow_id), one.flow.revision)
        if one.flow is not None
        else _Target(
            wait_key(one.correlation_id or ""),
            None,
            None,
            one.flow_id,
            is_unreadable="unreadable" in one.codes,
        )
        for one in page
        if selection.matches(one.codes)
    ]
    return targets, page.cursor


def _page_of_ids(
    ids: tuple[str, ...], cursor: str | None, size: int
) -> tuple[list[_Target], str | None]:
    start = 0
    if cursor is not None:
        if not cursor.isdecimal() or len(cursor) > len(str(len(ids))):
            message = (
                f"invalid cursor {shown(cursor)}; pass a cursor exactly as a report returned it"
            )
            raise UsageError(message)

        start = int(cursor)

    stop = start + size
    targets = [_Target(flow_key(one), None) for one in ids[start:stop]]
    return targets, str(stop) if stop < len(ids) else None


# --- one flow of many ---------------------------------------------------------------------------


def _records_of(
    context: Context, action: Action, targets: list[_Target], *, dry_run: bool
) -> Conversation[dict[Key, Record | CorruptRecordError]]:
    """Read what the action needs: no flow that is skipped by its head, and no body that goes."""
    now_ms = context.settings.now_ms()
    found: dict[Key, Record | CorruptRecordError] = {}
    keys: list[Key] = []
    for target in targets:
        key, head = target.key, target.head
        if target.parent is not None:
            continue

        if head is None:
            keys.append(key)
        elif dry_run or isinstance(action, PurgeFlow) or action.skip(key, head, now_ms) is not None:
            found[key] = Record(head, b"")
        else:
            keys.append(key)

    records, corrupt = yield from read_what_can_be(context, keys)
    return {**found, **records, **corrupt}


def _reason(
    context: Context, action: Action, target: _Target, record: Record | CorruptRecordError | None
) -> str | None:
    """Why a flow would be skipped; `None` if it would be changed."""
    if target.is_unreadable:
        return _CORRUPT

    if target.parent is not None:
        return None if isinstance(action, PurgeFlow) else _GONE

    if record is None:
        return _GONE

    if isinstance(record, CorruptRecordError):
        return _CORRUPT

    skip = action.skip(target.key, record.head, context.settings.now_ms())
    return None if skip is None else skip.reason


def _act_on(
    context: Context,
    selection: Selection,
    action: Action,
    target: _Target,
    record: Record | CorruptRecordError | None,
) -> Conversation[str | None]:
    """Act on a flow as long as it matches; returns why it was skipped."""
    key, matched = target.key, target.revision
    if target.is_unreadable:
        return _CORRUPT

    if target.parent is not None:
        return (yield from _clear(context, target)) if isinstance(action, PurgeFlow) else _GONE

    for _ in range(ATTEMPTS):
        if not isinstance(record, Record):
            return _GONE if record is None else _CORRUPT

        if matched is not None and record.head.revision != matched:
            matched = yield from _match_again(context, selection, key.id)
            if matched is None:
                return _CHANGED
        else:
            stopped, _ = yield from act(context, action, key, record)
            if not isinstance(stopped, ConflictError):
                return None if stopped is None else stopped.reason

            # Whatever was written since is looked at as another flow would be.
            matched = "" if selection.ids is None else None

        records, corrupt = yield from read_what_can_be(context, [key])
        record = records.get(key) or corrupt.get(key)

    return _CONTESTED


def _match_again(context: Context, selection: Selection, flow_id: str) -> Conversation[str | None]:
    """The revision of a flow that still matches; `None` if it does not."""
    if selection.filters or not selection.findings:
        # Of all ids that begin with this one it is the first.
        filters = cast("FlowFilters", {**selection.filters, "id_prefix": flow_id})
        found, _ = yield from listings.find_flows(context, "bulk", 1, None, filters)
        if not found or found[0].key.id != flow_id:
            return None

        if not selection.findings:
            return found[0].head.revision

    try:
        diagnosis = yield from examining.diagnose(context, flow_id, **selection.diagnosis)
    except FlowNotFoundError:
        return None

    is_wanted = diagnosis.flow is not None and selection.matches(diagnosis.codes)
    return diagnosis.flow.revision if is_wanted and diagnosis.flow else None


def _clear(context: Context, target: _Target) -> Conversation[str | None]:
    """Clear a pending condition whose parent still does not exist."""
    parent = flow_key(target.parent or "")
    records, corrupt = yield from read_what_can_be(context, [target.key, parent])
    wait = records.get(target.key)
    if wait is None:
        return _GONE

    if parent in records or parent in corrupt or wait.head.status != PENDING:
        return _CHANGED

    delete = Delete(target.key, wait.head.revision, wait.head)
    now_ms = context.settings.now_ms()
    reply = yield from commits.send(context, new_commit_id(), now_ms, (delete,))
    return _CHANGED if isinstance(reply, Refused) else None


# --- what came of it ----------------------------------------------------------------------------


@frozen
class _Tally:
    """Counts what was changed and skipped."""

    dry_run: bool
    _changed: list[str] = field(factory=list[str])
    _counts: dict[str, int] = field(factory=dict[str, int])
    _skipped: dict[str, list[str]] = field(factory=dict[str, list[str]])

    @property
    def matched(self) -> int:
        return sum(self._counts.values())

    def note(self, target: _Target, reason: str | None) -> None:
        """Count one flow; of the first ones the ids are kept."""
        self._counts[reason or ""] = self._counts.get(reason or "", 0) + 1
        ids = self._changed if reason is None else self._skipped.setdefault(reason, [])
        if len(ids) < _FIRST:
            ids.append(target.key.id)

    def report(self, cursor: str | None) -> BulkReport:
        skipped = {reason: tuple(ids) for reason, ids in self._skipped.items()}
        return BulkReport(
            matched=self.matched,
            changed=self._counts.get("", 0),
            skipped={reason: self._counts[reason] for reason in skipped},
            first_changed=tuple(self._changed),
            first_skipped=skipped,
            cursor=cursor,
            dry_run=self.dry_run,
        )


class _Pace:
    """Spreads changes over time: each second as many as it may."""

    def __init__(self, per_second: float | None) -> None:
        self._pause = 0.0 if per_second is None else 1 / per_second
        self._next = time.monotonic()

    @classmethod
    def of(cls, per_second: object) -> _Pace:
        """Check the argument."""
        if per_second is None:
            return cls(None)

        if not isinstance(per_second, int | float) or not per_second > 0:
            message = f"per_second: expected None or a number above 0, got {shown(per_second)}"
            raise UsageError(message)

        return cls(per_second)

    def keep(self) -> Conversation[None]:
        """Pause until the next change may be made. A slow store is not caught up with by a burst."""
        now = time.monotonic()
        self._next = max(self._next + self._pause, now)
        if self._next > now:
            yield Pause(self._next - now)

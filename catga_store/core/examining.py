"""Reading what the findings about flows depend on: `diagnose` and `diagnose_all`.

A page of flows costs one request for their records, one for their wait conditions, up to two for the
children of these, and one more for each flow that seems never to be due.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Unpack
from typing import cast

from attrs import frozen

from catga_store import codec
from catga_store.core import envelope
from catga_store.core import listings
from catga_store.core.arguments import check_limit
from catga_store.core.arguments import check_number
from catga_store.core.arguments import not_found
from catga_store.core.claim_plans import is_terminal
from catga_store.core.context import Context
from catga_store.core.context import read_what_can_be
from catga_store.core.cursors import invalid_cursor
from catga_store.core.cursors import packed
from catga_store.core.cursors import unpacked
from catga_store.core.diagnosis import Case
from catga_store.core.diagnosis import Thresholds
from catga_store.core.diagnosis import findings_of
from catga_store.core.diagnosis import orphan_parts
from catga_store.core.diagnosis import parent_gone
from catga_store.core.options import DiagnosisOptions
from catga_store.core.options import FlowFilters
from catga_store.errors import CorruptRecordError
from catga_store.errors import StateTypeError
from catga_store.errors import UsageError
from catga_store.model.diagnosis import SEVERITIES
from catga_store.model.diagnosis import Diagnosis
from catga_store.model.diagnosis import FlowFinding
from catga_store.model.diagnosis import Severity
from catga_store.model.flows import FlowStatus
from catga_store.model.listings import Page
from catga_store.model.times import span_ms
from catga_store.protocol.conversation import Conversation
from catga_store.protocol.conversation import ask
from catga_store.protocol.keys import FLOW
from catga_store.protocol.keys import WAIT
from catga_store.protocol.keys import Key
from catga_store.protocol.keys import check_id
from catga_store.protocol.keys import flow_key
from catga_store.protocol.keys import wait_key
from catga_store.protocol.masking import shown
from catga_store.protocol.requests import NO_STATUS
from catga_store.protocol.requests import PENDING
from catga_store.protocol.requests import Due
from catga_store.protocol.requests import Filter
from catga_store.protocol.requests import Find
from catga_store.protocol.requests import Found
from catga_store.protocol.requests import Head
from catga_store.protocol.requests import Parts
from catga_store.protocol.requests import Record

__all__ = ["ATTEMPTS", "IDLE", "LATE", "MOST", "diagnose", "diagnose_all"]

LATE, IDLE, ATTEMPTS = timedelta(minutes=5), timedelta(days=1), 5
MOST = 10_000
"""How many flows a page of `diagnose_all` looks at, unless the caller says otherwise."""

_PAGE = 200
_FEW_CHILDREN, _MOST_CHILDREN = 20, 500
"""Mostly the first few children show that one of them lives."""
_STATUSES = range(len(FlowStatus))
_LIVE = (
    FlowStatus.RUNNING,
    FlowStatus.SUSPENDED,
    FlowStatus.CREATED,
    FlowStatus.COMPENSATING,
)


# --- one flow -----------------------------------------------------------------------------------


def diagnose(
    context: Context, flow_id: str, **options: Unpack[DiagnosisOptions]
) -> Conversation[Diagnosis]:
    """What is wrong with one flow, or with what is left of it."""
    key = flow_key(check_id(flow_id, "a flow id"))
    thresholds = _thresholds(options)
    records, corrupt = yield from read_what_can_be(context, [key])
    record, error = records.get(key), corrupt.get(key)
    if record is not None:
        (case,) = yield from _examine(context, [_case(key, record.head, record)])
        return _diagnosis(case, context.settings.now_ms(), thresholds)

    if error is not None:
        head = yield from _head_of(context, key)
        if head is None:
            return Diagnosis(flow_id, None, (_unread(error),))

        case = _case(key, head, None, error)
        return _diagnosis(case, context.settings.now_ms(), thresholds)

    return (yield from _left_of(context, flow_id))


def _unread(error: CorruptRecordError) -> FlowFinding:
    """A record that not even its head can be read of."""
    text = f"cannot be read: {error}"
    return FlowFinding("unreadable", "problem", text, "restore it from a backup")


def _head_of(context: Context, key: Key) -> Conversation[Head | None]:
    """The head of a flow whose body cannot be read, if a listing has it."""
    wanted = Find(Filter(FLOW, id_prefix=key.id), None, 1, context.settings.now_ms())
    try:
        found = yield from ask(wanted)
    except CorruptRecordError:
        return None

    is_known = bool(found) and found[0].key == key and found[0].error is None
    return found[0].head if is_known else None


def _left_of(context: Context, flow_id: str) -> Conversation[Diagnosis]:
    """What is left of a flow that does not exist; `FlowNotFoundError` if nothing is."""
    now_ms = context.settings.now_ms()
    pending = Find(Filter(WAIT, status=PENDING, parent=flow_id), None, _PAGE, now_ms)
    waits = yield from ask(pending)
    listing = Parts(
        flow_id,
        "",
        after=None,
        before=None,
        reverse=False,
        limit=2,
        bodies=False,
        now_ms=now_ms,
    )
    parts = yield from ask(listing)
    findings = [_of_wait(entry) for entry in waits]
    findings += [orphan_parts(len(parts))] if parts else []
    if not findings:
        raise not_found(flow_id)

    return Diagnosis(flow_id, None, tuple(findings), waits[0].key.id if waits else None)


def _of_wait(entry: Found) -> FlowFinding:
    return parent_gone(entry.key.id) if entry.error is None else _unread(entry.error)


# --- all flows ----------------------------------------------------------------------------------


def diagnose_all(
    context: Context,
    *,
    limit: int = 100,
    cursor: str | None = None,
    most: int = MOST,
    severity: Severity = "warning",
    options: DiagnosisOptions,
    filters: FlowFilters,
) -> Conversation[Page[Diagnosis]]:
    """Look at live flows, page by page, until `limit` with such findings are found."""
    check_limit(limit)
    check_number("most", most, 1)
    if severity not in SEVERITIES:
        message = f"severity: expected one of {', '.join(SEVERITIES)}, got {shown(severity)}"
        raise UsageError(message)

    thresholds = _thresholds(options)
    wanted = SEVERITIES[SEVERITIES.index(severity) :]
    steps = _steps(filters)
    place = _read_cursor(cursor, len(steps))
    found: list[Diagnosis] = []
    looked_at = 0

    while place.step < len(steps):
        step = steps[place.step]
        diagnoses, following = yield from _page(
            context, step, place.cursor, filters, thresholds, size=min(_PAGE, most)
        )
        for each in _after(diagnoses, place.last):
            looked_at += 1
            if each.severity in wanted:
                found.append(each)

            if len(found) == limit or looked_at == most:
                place = _Place(place.step, place.cursor, _name_of(each))
                return Page(tuple(found), _write_cursor(place))

        is_last = following is None
        place = _Place(place.step + is_last, following, None)

    return Page(tuple(found), None)


@frozen
class _Place:
    """Where a listing continues: in which step, on which page of it, after what."""

    step: int = 0
    cursor: str | None = None
    last: str | None = None


_ENDED, _DAMAGED, _WAITS, _DAMAGED_WAITS = "ended", "damaged", "waits", "damaged waits"


def _steps(filters: FlowFilters) -> tuple[FlowStatus | str | None, ...]:
    """What is looked at, in order: live flows by status, then what no listing of live flows has."""
    given = {name for name, value in filters.items() if value is not None}
    if "status" in given:
        return (None,)

    live = (_DAMAGED, *_LIVE)
    return live if given else (_ENDED, *live, _WAITS, _DAMAGED_WAITS)


def _page(
    context: Context,
    step: FlowStatus | str | None,
    cursor: str | None,
    filters: FlowFilters,
    thresholds: Thresholds,
    *,
    size: int,
) -> Conversation[tuple[list[Diagnosis], str | None]]:
    """Look at one page of a step."""
    if step in (_WAITS, _DAMAGED_WAITS):
        status = PENDING if step == _WAITS else NO_STATUS
        return (yield from _waits_without_parent(context, status, cursor, size))

    following: str | None = None
    if step == _ENDED:
        due = yield from ask(Due(context.settings.now_ms(), _PAGE))
        found = [one for one in due if one.key.kind == FLOW and is_terminal(one.head)]
    elif step == _DAMAGED:
        page, following = yield from listings.find_damaged(context, size, cursor, filters)
        found = list(page)
    else:
        wanted = filters if step is None else cast("FlowFilters", {**filters, "status": step})
        page, following = yield from listings.find_flows(
            context, "diagnose_all", size, cursor, wanted
        )
        found = list(page)

    records, corrupt = yield from read_what_can_be(context, [one.key for one in found])
    cases = [
        _case(one.key, one.head, records.get(one.key), corrupt.get(one.key) or one.error)
        for one in found
        if one.key in records or one.key in corrupt or one.error is not None
    ]
    yield from _examine(context, cases)
    now_ms = context.settings.now_ms()
    return [_diagnosis(case, now_ms, thresholds) for case in cases], following


def _waits_without_parent(
    context: Context, status: int, cursor: str | None, size: int
) -> Conversation[tuple[list[Diagnosis], str | None]]:
    """One page of conditions that cannot be read, or are pending and have a parent that does not exist."""
    found, following = yield from listings.find_waits(context, status, size, cursor)
    keys = [one.key for one in found if one.error is None]
    waits, unread = yield from read_what_can_be(context, keys)
    parents = {
        key: record.terms.parent
        for key, record in waits.items()
        if record.terms is not None and record.terms.parent is not None
    }
    keys = [flow_key(parent) for parent in dict.fromkeys(parents.values())]
    flows, corrupt = yield from read_what_can_be(context, keys)
    diagnoses: list[Diagnosis] = []
    for entry in found:
        key = entry.key
        error, parent = entry.error or unread.get(key), parents.get(key)
        if error is not None:
            # No flow is known to be its parent: it is named by the condition.
            diagnoses.append(Diagnosis(key.id, None, (_unread(error),), key.id))
        elif parent is None or flow_key(parent) in flows or flow_key(parent) in corrupt:
            diagnoses.append(Diagnosis(parent or "", None, (), key.id))
        else:
            diagnoses.append(Diagnosis(parent, None, (parent_gone(key.id),), key.id))

    return diagnoses, following


def _after(diagnoses: list[Diagnosis], last: str | None) -> list[Diagnosis]:
    """What comes after the last one that was returned, if that is still there."""
    names = [_name_of(one) for one in diagnoses]
    return diagnoses[names.index(last) + 1 :] if last in names else diagnoses


def _name_of(diagnosis: Diagnosis) -> str:
    """Identify a diagnosis on its page."""
    return diagnosis.flow_id if diagnosis.flow is not None else diagnosis.correlation_id or ""


def _diagnosis(case: Case, now_ms: int, thresholds: Thresholds) -> Diagnosis:
    unread = None if case.head.version else case.error
    summary = envelope.summary_of(Found(case.key, case.head, unread))
    return Diagnosis(case.key.id, summary, findings_of(case, now_ms, thresholds), case.awaits)


# --- reading what findings depend on ------------------------------------------------------------


def _case(
    key: Key, head: Head, record: Record | None, error: CorruptRecordError | None = None
) -> Case:
    """A flow as it was read; what is wrong with its body is found here."""
    case = Case(key, head if record is None else record.head, record, error)
    if record is not None:
        try:
            case.wait = envelope.decode_flow(key, record, None).wait_condition
        except CorruptRecordError as wrong:
            case.error = wrong
        except StateTypeError as wrong:
            case.error = CorruptRecordError(str(wrong), key=tuple(key))

    return case


def _examine(context: Context, cases: Sequence[Case]) -> Conversation[Sequence[Case]]:
    """Read the wait conditions of suspended flows, their children, and what else may wake a flow."""
    names = [case.awaits for case in cases]
    keys = list(dict.fromkeys(wait_key(name) for name in names if name is not None))
    records, corrupt = yield from read_what_can_be(context, keys)
    for case, name in zip(cases, names, strict=True):
        if name is not None:
            case.awaited = records.get(wait_key(name))
            case.error = case.error or corrupt.get(wait_key(name))

    waiting = [case for case in cases if case.is_pending]
    yield from _read_children(context, waiting, _FEW_CHILDREN)
    undecided = [case for case in waiting if not case.are_all_children and not _has_live(case)]
    yield from _read_children(context, undecided, _MOST_CHILDREN)
    for case in cases:
        if case.is_parked and case.error is None:
            case.may_be_notified = yield from _may_be_notified(context, case.key.id)

    return cases


def _read_children(context: Context, cases: Sequence[Case], most: int) -> Conversation[None]:
    """Read the flows that are children of conditions and have not completed, up to `most` of each."""
    wanted: dict[Key, list[Key]] = {}
    for case in cases:
        record = case.awaited
        assert record is not None, "a pending wait condition must have a record"
        assert record.terms is not None, "a wait condition must have terms"
        done = {item.child for item in record.items}
        left = [flow_key(child) for child in record.terms.children if child not in done]
        case.are_all_children = len(left) <= most
        wanted[case.key] = left[:most]

    keys = list(dict.fromkeys(key for some in wanted.values() for key in some))
    records, corrupt = yield from read_what_can_be(context, keys)
    for case in cases:
        case.children = {
            key.id: None if key not in records else records[key].head
            for key in wanted[case.key]
            if key not in corrupt
        }


def _has_live(case: Case) -> bool:
    return any(
        head is not None and not is_terminal(head) for head in (case.children or {}).values()
    )


def _may_be_notified(context: Context, flow_id: str) -> Conversation[bool]:
    """Whether a condition that has this flow as its parent will wake it, or one that cannot be read may."""
    now_ms = context.settings.now_ms()
    found = yield from ask(Find(Filter(WAIT, parent=flow_id), None, _PAGE, now_ms))
    return any(
        one.error is not None or one.head.status == PENDING or one.head.due_ms is not None
        for one in found
    )


# --- arguments ----------------------------------------------------------------------------------


def _thresholds(options: DiagnosisOptions) -> Thresholds:
    attempts: object = options.get("attempts", ATTEMPTS)
    check_number("attempts", attempts, 1)
    versions: dict[str, int] = {}
    for each in options.get("types", ()):
        codec.check_state_type(each)
        naming = codec.naming(each)
        if naming.name:
            versions[naming.name] = naming.version

    return Thresholds(
        span_ms(options.get("late", LATE), "late"),
        span_ms(options.get("idle", IDLE), "idle"),
        options.get("attempts", ATTEMPTS),
        versions,
    )


def _write_cursor(place: _Place) -> str:
    return packed((place.step, place.cursor, place.last))


def _read_cursor(cursor: str | None, steps: int) -> _Place:
    if cursor is None:
        return _Place()

    try:
        step, inner, last = unpacked(cursor)
        if type(step) is int and 0 <= step < steps and {type(inner), type(last)} <= _TEXTS:
            return _Place(step, inner, last)
    except (ValueError, TypeError, RecursionError):
        pass

    raise invalid_cursor(cursor)


_TEXTS = {str, type(None)}

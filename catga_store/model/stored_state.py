"""What a record holds of what is stored, and the one module that writes it.

Users change the public attributes of a record. Everything else it holds is written here: the
stored record that it was loaded from or last written as (`_loaded`), its claim, the session that
tracks it, the results of its children. Code in `core/` decides what that should be and calls these
functions; no other module sets such an attribute.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING
from typing import Any
from typing import SupportsIndex
from typing import TypeAlias

from catga_store.errors import CorruptRecordError
from catga_store.errors import UsageError
from catga_store.model.flows import Claim
from catga_store.model.flows import FlowPosition
from catga_store.model.flows import FlowSnapshot
from catga_store.model.flows import FlowStatus
from catga_store.model.parts import UNREAD
from catga_store.model.parts import Part
from catga_store.model.progress import ForEachProgress
from catga_store.model.tags import NO_TAGS
from catga_store.model.tags import Tags
from catga_store.model.times import from_ms
from catga_store.model.waits import Results
from catga_store.model.waits import UnreadResults
from catga_store.model.waits import WaitCondition
from catga_store.model.waits import WaitOutcome
from catga_store.model.waits import WaitType
from catga_store.protocol.keys import Key
from catga_store.protocol.requests import Head
from catga_store.protocol.requests import Record
from catga_store.protocol.requests import Terms
from catga_store.protocol.requests import head_from
from catga_store.protocol.requests import record_with_body

if TYPE_CHECKING:
    from pyroaring import BitMap64

__all__ = [
    "FLOW_CLASSES",
    "AnyRecord",
    "attach",
    "detach",
    "head_of",
    "keep_results",
    "key_of",
    "listed_part",
    "load_flow",
    "load_part",
    "load_progress",
    "load_results",
    "load_wait",
    "loaded_flow",
    "loaded_part",
    "set_attempts",
    "set_created_at_unknown",
    "set_end",
    "set_part_written",
    "set_progress_head",
    "set_progress_key",
    "set_satisfied",
    "set_suspended_on",
    "set_terms",
    "set_unread_results",
    "set_unreadable",
    "set_written",
    "show_wait",
    "stop_watching",
]

AnyRecord: TypeAlias = FlowSnapshot[Any] | WaitCondition | ForEachProgress | Part[Any]

_STATUSES = tuple(FlowStatus)
_OUTCOMES = tuple(WaitOutcome)
_set = object.__setattr__

# The descriptors of the five attributes that every write of a flow sets: half of what `_set` costs.
_set_due_at, _set_expires_at, _set_attempts, _set_loaded, _set_claim = (
    vars(FlowSnapshot)[name].__set__
    for name in ("due_at", "expires_at", "attempts", "_loaded", "_claim")
)


def head_of(record: AnyRecord) -> Head | None:
    """The head that a record was loaded with or last written as; `None` if it was never stored."""
    loaded = record._loaded
    return None if loaded is None else loaded.head


def key_of(record: AnyRecord) -> Key:
    """The key that a record is stored under; `UsageError` for progress that has no step yet."""
    if not isinstance(record, ForEachProgress):
        return record.key

    key = record._key
    if key is None:
        message = (
            "a new ForEachProgress has no step until it is saved; call "
            "save_for_each_progress(flow_id, step, …)"
        )
        raise UsageError(message)

    return key


# --- sessions -----------------------------------------------------------------------------------


def attach(record: AnyRecord, session: object) -> None:
    """Let a session track the record."""
    _set(record, "_session", session)


def detach(record: AnyRecord) -> None:
    """Take the record out of its session; progress that was never stored may go to any step."""
    _set(record, "_session", None)
    if isinstance(record, ForEachProgress) and record._loaded is None:
        _set(record, "_key", None)


# --- flows --------------------------------------------------------------------------------------


class _Unguarded(FlowSnapshot[Any]):
    """A snapshot in the making: its attributes are set as they are, without converters and checks."""

    __slots__ = ()
    __setattr__ = object.__setattr__


def loaded_flow(  # noqa: PLR0917  named, its arguments cost every reading 600 instructions
    key: Key,
    state_type: Any | None,
    record: Record,
    state: Any,
    position: FlowPosition,
    wait: WaitCondition | None,
    baseline: bytes | None,
) -> FlowSnapshot[Any]:
    """Return a new snapshot of what is stored."""
    head = record.head
    # Setting attributes of this class and then changing it costs a sixth of `_set` for each.
    flow = object.__new__(_Unguarded)
    flow.flow_id = key.id
    flow.state = state
    flow.position = position
    flow.status = _STATUSES[head.status]
    flow.error = head.error
    flow.wait_condition = wait
    flow.due_at = None if head.due_ms is None else from_ms(head.due_ms)
    flow.expires_at = None if head.expires_ms is None else from_ms(head.expires_ms)
    flow.attempts = head.attempts
    flow._created_at = None
    flow.state_type = state_type
    flow.reports_to = head.reports_to
    flow.tags = Tags.of(head.tags) if head.tags else NO_TAGS
    flow._key = key
    flow._loaded = record
    flow._baseline = baseline
    flow._claim = None
    flow._session = None
    flow.__class__ = FlowSnapshot  # type: ignore[assignment]  # of the same layout
    return flow


class _ClaimedFlow(FlowSnapshot[Any]):
    """A snapshot that holds a claim: it says when the interpreter frees it.

    A snapshot gets this class with its claim and loses it with that, so only claimed ones pay for a
    finalizer. Its copies, also pickled ones, are plain snapshots: only the object that was claimed
    is expected to be written.
    """

    __slots__ = ()

    def __del__(self) -> None:
        # Of an object that could not be made, the attribute is missing.
        claim: Claim | None = getattr(self, "_claim", None)
        if claim is not None:
            claim.dropped(self)

    def __reduce_ex__(self, protocol: SupportsIndex, /) -> tuple[Any, ...]:
        return object.__new__, (FlowSnapshot,), self.__getstate__()


FLOW_CLASSES = (FlowSnapshot, _ClaimedFlow)
"""What the class of a flow may be."""


def stop_watching(record: object) -> None:
    """Let a claimed flow be dropped without a warning: its caller knows, or meant to."""
    if record.__class__ is _ClaimedFlow:
        _set(record, "__class__", FlowSnapshot)


def load_flow(
    flow: FlowSnapshot[Any],
    record: Record,
    state: Any,
    *,
    position: FlowPosition,
    wait: WaitCondition | None,
    baseline: bytes | None,
) -> None:
    """Give a snapshot everything that is stored; its claim stays."""
    head = record.head
    _set(flow, "state", state)
    _set(flow, "position", position)
    _set(flow, "status", _STATUSES[head.status])
    _set(flow, "error", head.error)
    _set(flow, "wait_condition", wait)
    _set(flow, "_baseline", baseline)
    _set(flow, "reports_to", head.reports_to)
    _set(flow, "tags", Tags.of(head.tags))
    _set_due_at(flow, None if head.due_ms is None else from_ms(head.due_ms))
    _set_expires_at(flow, None if head.expires_ms is None else from_ms(head.expires_ms))
    _set_attempts(flow, head.attempts)
    _set_loaded(flow, record)


def set_written(
    flow: FlowSnapshot[Any], head: Head, body: bytes, revision: str, claim: Claim | None
) -> None:
    """Let a flow be what was written: this head and body, under `claim` if the head has one."""
    due_ms, expires_ms, attempts = head.due_ms, head.expires_ms, head.attempts
    # Most writes change none of these; to look at one costs a tenth of setting it.
    if due_ms is not None or flow.due_at is not None:
        _set_due_at(flow, None if due_ms is None else from_ms(due_ms))

    if expires_ms is not None or flow.expires_at is not None:
        _set_expires_at(flow, None if expires_ms is None else from_ms(expires_ms))

    if flow.attempts != attempts:
        _set_attempts(flow, attempts)

    _set_loaded(flow, record_with_body(head_from((*head[:-2], revision, ())), body))
    if head.claim is None or claim is None:
        if flow._claim is not None:
            _set_claim(flow, None)

        if flow.__class__ is not FlowSnapshot:
            _set(flow, "__class__", FlowSnapshot)
    else:
        _set_claim(flow, claim)
        _set(flow, "__class__", _ClaimedFlow)


def set_attempts(flow: FlowSnapshot[Any], attempts: int) -> None:
    """Keep what the user counted, beside what is stored."""
    _set_attempts(flow, attempts)


def set_reports_to(flow: FlowSnapshot[Any], correlation_id: str) -> None:
    """Let a new flow report its end to a condition."""
    _set(flow, "reports_to", correlation_id)


def show_wait(flow: FlowSnapshot[Any], wait: WaitCondition) -> None:
    """Show the condition that a claimed flow was woken by."""
    _set(flow, "wait_condition", wait)


# --- wait conditions ----------------------------------------------------------------------------


def load_wait(wait: WaitCondition, record: Record, terms: Terms) -> None:
    """Give a condition everything that is stored."""
    set_terms(wait, terms, record.head)
    load_results(wait, record)
    _set(wait, "_loaded", record)


def set_terms(wait: WaitCondition, terms: Terms, head: Head) -> None:
    """Give a condition its definition and outcome."""
    timeout = None if terms.timeout_ms is None else timedelta(milliseconds=terms.timeout_ms)
    _set(wait, "flow_ids", terms.children)
    _set(wait, "wait_type", WaitType.WHEN_ANY if terms.any else WaitType.WHEN_ALL)
    _set(wait, "timeout", timeout)
    _set(wait, "parent_flow_id", terms.parent)
    _set(wait, "created_at", from_ms(head.created_ms))
    _set(wait, "outcome", _OUTCOMES[head.status])


def load_results(wait: WaitCondition, record: Record) -> None:
    """Give a condition the completions of its children; its definition stays."""
    completed = {item.child: item for item in record.items}
    items = tuple(completed[child] for child in wait.flow_ids if child in completed)
    _set(wait, "_results", Results(items, wait.key))


def keep_results(wait: WaitCondition, results: Results) -> None:
    """Give a condition back the results it had."""
    _set(wait, "_results", results)


def set_unread_results(wait: WaitCondition, error: BaseException) -> None:
    """Let looking at the results of a condition raise that they could not be read."""
    _set(wait, "_results", UnreadResults(wait.key, error))


def set_unreadable(wait: WaitCondition, error: CorruptRecordError) -> None:
    """Let a condition be no more than its id, and the reason why the rest cannot be read."""
    _set(wait, "flow_ids", ())
    _set(wait, "unreadable", str(error))
    set_unread_results(wait, error)


def set_suspended_on(wait: WaitCondition, correlation_id: str) -> None:
    """Note on a condition that a flow shows which other one the flow is suspended on."""
    _set(wait, "_suspended_on", correlation_id)


def set_created_at_unknown(wait: WaitCondition) -> None:
    """A copy that was made before its condition was stored."""
    _set(wait, "created_at", None)


def set_end(wait: WaitCondition, version: int, revision: str) -> None:
    """Give the copy on a claimed flow the write that marked its parent as notified."""
    loaded = wait._loaded
    assert loaded is not None, "the record must have been read"
    head = loaded.head._replace(version=version, revision=revision)
    _set(wait, "_loaded", loaded._replace(head=head))


def set_satisfied(wait: WaitCondition, version: int, revision: str, status: int) -> None:
    """Give a condition the write by which a completion has ended it.

    The outcome changes too, unless the user has changed it.
    """
    loaded = wait._loaded
    assert loaded is not None, "the record must have been read"
    head = loaded.head._replace(version=version, revision=revision, status=status)
    if wait.outcome.value == loaded.head.status:
        _set(wait, "outcome", WaitOutcome(status))

    _set(wait, "_loaded", loaded._replace(head=head))


# --- parts --------------------------------------------------------------------------------------


class _UnguardedPart(Part[Any]):
    """A part in the making; see `_Unguarded`."""

    __slots__ = ()
    __setattr__ = object.__setattr__


def listed_part(key: Key, record: Record, body_type: Any | None = None) -> Part[Any]:
    """Return a part without its body."""
    return loaded_part(key, record, body_type, UNREAD, None)


def loaded_part(
    key: Key, record: Record, body_type: Any | None, body: Any, baseline: bytes | None
) -> Part[Any]:
    """Return a new part of what is stored."""
    part = object.__new__(_UnguardedPart)
    part.flow_id = key.id
    part.name = key.name  # not checked: it may be that of an entry of a log
    part._body = body
    part.tag = record.head.position
    part.body_type = body_type
    part._key = key
    part._loaded = record
    part._baseline = baseline
    part._session = None
    part._is_read = body is not UNREAD
    part.__class__ = Part  # type: ignore[assignment]  # of the same layout
    return part


def load_part(part: Part[Any], record: Record, body: Any, baseline: bytes | None) -> None:
    """Give a part everything that is stored."""
    _set(part, "_body", body)
    _set(part, "tag", record.head.position)
    _set(part, "_loaded", record)
    _set(part, "_baseline", baseline)
    _set(part, "_is_read", True)  # noqa: FBT003  the value of the attribute


def set_part_written(part: Part[Any], head: Head, body: bytes) -> None:
    """Let a part be what was written."""
    _set(part, "_loaded", Record(head, body))
    _set(part, "_is_read", True)  # noqa: FBT003  the value of the attribute


# --- ForEach progress ---------------------------------------------------------------------------


def load_progress(
    progress: ForEachProgress,
    key: Key,
    record: Record,
    *,
    marked: BitMap64,
    failed: BitMap64,
    last: int | None,
) -> None:
    """Give a progress object everything that is stored."""
    _set(progress, "_marked", marked)
    _set(progress, "_failed", failed)
    _set(progress, "last_processed_index", last)
    set_progress_head(progress, key, record)


def set_progress_key(progress: ForEachProgress, key: Key) -> None:
    """Bind a progress object to a step."""
    _set(progress, "_key", key)


def set_progress_head(progress: ForEachProgress, key: Key, record: Record) -> None:
    """Let a progress object be what was written."""
    _set(progress, "_key", key)
    _set(progress, "_loaded", record)

"""The records that users hold: flow snapshots, wait conditions, ForEach progress.

They are plain mutable objects. What a store keeps beside them (version, revision, owner) is
read-only, and comes from the record they were loaded from or last written as. Instants are kept in
whole milliseconds, in UTC: `created_at` is rounded down, `due_at` and `timeout` up, at the moment
they are set.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from datetime import UTC
from datetime import datetime
from datetime import timedelta
from functools import lru_cache
from typing import Any
from typing import Generic
from typing import TypeVar
from typing import cast

from attrs import Attribute
from attrs import Factory
from attrs import define
from attrs import field
from attrs import frozen
from attrs import setters

from catga_store import codec
from catga_store.errors import CorruptRecordError
from catga_store.errors import EncodingError
from catga_store.errors import StoreUnavailableError
from catga_store.errors import UsageError
from catga_store.indices import IndexSet
from catga_store.keys import Key
from catga_store.keys import check_id
from catga_store.keys import flow_key
from catga_store.keys import show_int
from catga_store.keys import wait_key
from catga_store.records import Head
from catga_store.records import Item
from catga_store.records import Record

__all__ = [
    "AT_ONCE",
    "ChildResult",
    "Claim",
    "Completion",
    "FlowPosition",
    "FlowSnapshot",
    "FlowStatus",
    "FlowSummary",
    "ForEachProgress",
    "Page",
    "Retention",
    "WaitCondition",
    "WaitOutcome",
    "WaitType",
    "from_ms",
    "loaded_flow",
    "moment_up",
    "span_ms",
    "to_ms",
    "to_ms_up",
]

S = TypeVar("S")
T = TypeVar("T")

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MS = timedelta(milliseconds=1)
_LONGEST = timedelta(days=36_500)
_LAST_INDEX = 2**63 - 1

AT_ONCE = _EPOCH
"""The `due_at` of a flow that says nothing about it: due as soon as it is stored."""


# --- time ---------------------------------------------------------------------------------------


def to_ms(moment: object) -> int:
    """Milliseconds since 1970, rounded down; `UsageError` unless it is an aware datetime."""
    if not isinstance(moment, datetime):
        message = f"{moment!r} is no datetime"
        raise UsageError(message)

    if moment.tzinfo is None or moment.utcoffset() is None:
        message = (
            f"{moment!r} has no time zone; pass an aware datetime, such as one with tzinfo=UTC"
        )
        raise UsageError(message)

    return (moment - _EPOCH) // _MS


def to_ms_up(moment: datetime) -> int:
    """Milliseconds since 1970, rounded up; `UsageError` unless it is an aware datetime."""
    milliseconds = to_ms(moment)
    return milliseconds if milliseconds * _MS == moment - _EPOCH else milliseconds + 1


@lru_cache(maxsize=4096)
def from_ms(milliseconds: int) -> datetime:
    """The moment, in UTC."""
    return _EPOCH + timedelta(milliseconds=milliseconds)


def span_ms(span: object, what: str) -> int:
    """Milliseconds, rounded up; `UsageError` unless it is a span of 0 to 100 years."""
    if not isinstance(span, timedelta):
        message = f"{what} must be a timedelta, not {span!r}"
        raise UsageError(message)

    if not timedelta(0) <= span <= _LONGEST:
        message = f"{what} must be between 0 and 36,500 days, not {span!r}"
        raise UsageError(message)

    return -(-span // _MS)


def _moment(value: datetime | None) -> datetime | None:
    return None if value is None else _in_utc(value, to_ms(value))


def moment_up(value: datetime | None) -> datetime | None:
    """A moment as it is kept: in UTC, in whole milliseconds, rounded up."""
    if value is None or value is AT_ONCE:
        return value

    return _in_utc(value, to_ms_up(value))


def _in_utc(value: datetime, milliseconds: int) -> datetime:
    try:
        return from_ms(milliseconds)
    except OverflowError:
        message = f"{value!r} cannot be kept: in UTC it is no year from 1 to 9999"
        raise UsageError(message) from None


def _span(value: timedelta | None) -> timedelta | None:
    return None if value is None else span_ms(value, "a timeout") * _MS


# --- validators ---------------------------------------------------------------------------------


def _is(wanted: type, *, or_none: bool = False) -> Any:
    def validate(_instance: object, attribute: Attribute[Any], value: object) -> None:
        if type(value) is not wanted and not (or_none and value is None):
            message = f"{attribute.name} must be a {wanted.__name__}, not {value!r}"
            raise UsageError(message)

    return validate


def _error_text(_instance: object, attribute: Attribute[Any], value: object) -> None:
    if value is None:
        return

    if type(value) is not str:
        message = f"{attribute.name} must be text or None, not {value!r}"
        raise UsageError(message)

    try:
        value.encode()
    except UnicodeEncodeError as error:
        message = f"the error text cannot be kept: {error}"
        raise EncodingError(message, path="error") from error


def _last_index(value: int | None) -> int | None:
    return None if value is None else next(iter(IndexSet([value])))


def _index_set(value: Iterable[int]) -> IndexSet:
    if isinstance(value, str | bytes) or not isinstance(value, Iterable):
        message = f"the indices of a progress must be a collection of ints, not {value!r}"
        raise UsageError(message)

    return IndexSet(value)


def _count(_instance: object, attribute: Attribute[Any], value: object) -> None:
    if type(value) is not int or not 0 <= value < 2**31:
        message = f"{attribute.name} must be an int from 0 to 2**31 - 1, not {value!r}"
        raise UsageError(message)


def _path(_instance: object, _attribute: Attribute[Any], value: Any) -> None:
    if type(value) is not tuple or not value:
        message = f"a position is a non-empty tuple of ints, not {value!r}"
        raise UsageError(message)

    for index in cast("tuple[object, ...]", value):
        if type(index) is not int or not 0 <= index <= _LAST_INDEX:
            message = f"an index of a position is an int from 0 to 2**63 - 1, not {show_int(index)}"
            raise UsageError(message)


def _flow_id(value: str) -> str:
    return check_id(value, "a flow id")


def _correlation_id(value: str) -> str:
    return check_id(value, "a correlation id")


def _parent_id(value: str | None) -> str | None:
    return None if value is None else check_id(value, "a parent's flow id")


def _wait_or_none(_instance: object, _attribute: Attribute[Any], value: object) -> None:
    if value is not None and type(value) is not WaitCondition:
        message = f"wait_condition must be a WaitCondition or None, not {value!r}"
        raise UsageError(message)


# --- enums --------------------------------------------------------------------------------------


class FlowStatus(enum.Enum):
    """Where a flow is in its life. The store enforces no transitions."""

    CREATED = 0
    RUNNING = 1
    SUSPENDED = 2
    COMPENSATING = 3
    COMPLETED = 4
    FAILED = 5
    CANCELLED = 6

    @property
    def is_terminal(self) -> bool:
        """Whether the flow has ended: never due, owned by nobody, and kept for its retention."""
        return self._value_ >= 4  # noqa: PLR2004  COMPLETED; `.value` costs ten times as much


class WaitType(enum.Enum):
    """What satisfies a wait condition."""

    WHEN_ALL = 0
    """Every child has completed, failed ones too."""
    WHEN_ANY = 1
    """The first child has succeeded, or all have completed."""


class WaitOutcome(enum.Enum):
    """How a wait condition ended, if it has."""

    PENDING = 0
    SATISFIED = 1
    TIMED_OUT = 2
    CANCELLED = 3


# --- flows --------------------------------------------------------------------------------------


@frozen
class FlowPosition:
    """Where in its steps a flow is: a path of step indices, outermost first.

    >>> position = FlowPosition().advance().enter(3)
    >>> str(position), position.current, position.depth
    ('1/3', 3, 2)
    >>> str(position.exit().advance(2))
    '3'
    """

    path: tuple[int, ...] = field(default=(0,), validator=_path)

    @property
    def current(self) -> int:
        """The index of the step at the innermost level."""
        return self.path[-1]

    @property
    def depth(self) -> int:
        """How many levels deep the position is; 1 at the top."""
        return len(self.path)

    def advance(self, by: int = 1) -> FlowPosition:
        """The position `by` steps on, at the same level."""
        if type(by) is not int:
            message = f"a position advances by an int, not by {by!r}"
            raise UsageError(message)

        return FlowPosition((*self.path[:-1], self.path[-1] + by))

    def enter(self, index: int) -> FlowPosition:
        """The position of step `index` one level deeper."""
        return FlowPosition((*self.path, index))

    def exit(self) -> FlowPosition:
        """The position one level up; `UsageError` at the top."""
        if len(self.path) == 1:
            message = f"position {self} is at the top level: there is nothing to exit to"
            raise UsageError(message)

        return FlowPosition(self.path[:-1])

    def __str__(self) -> str:
        return _path_text(self.path)


@lru_cache(maxsize=4096)
def _path_text(path: tuple[int, ...]) -> str:
    return "/".join(map(str, path))


@frozen
class Claim:
    """A lease on a flow: `token` is the id of the commit that took it."""

    token: str
    lease_ms: int


_START = FlowPosition()


def _flow_key_of(flow: FlowSnapshot[Any]) -> Key:
    return flow_key(flow.flow_id)


@define(eq=False, repr=False)
class FlowSnapshot(Generic[S]):
    """One flow: its state and where it is.

    `state` is an attrs class, a dataclass, a TypedDict (name it as `state_type`) or plain JSON
    data. `due_at` is when a worker should next look at the flow, `None` if nobody needs to; a new
    flow that is neither suspended nor terminal is due at once. `attempts` is how often the flow
    was claimed since its position or status last changed.

    Two snapshots are equal if they are the same object.

    >>> order = FlowSnapshot("order-1", state={"paid": False})
    >>> order.version, order.revision, order.status.name, str(order.position)
    (0, None, 'CREATED', '0')
    """

    flow_id: str = field(converter=_flow_id, on_setattr=setters.frozen)
    state: S = field(kw_only=True)
    position: FlowPosition = field(default=_START, validator=_is(FlowPosition), kw_only=True)
    status: FlowStatus = field(default=FlowStatus.CREATED, validator=_is(FlowStatus), kw_only=True)
    error: str | None = field(default=None, validator=_error_text, kw_only=True)
    wait_condition: WaitCondition | None = field(
        default=None, validator=_wait_or_none, kw_only=True
    )
    due_at: datetime | None = field(default=AT_ONCE, converter=moment_up, kw_only=True)
    attempts: int = field(default=0, validator=_count, kw_only=True)
    _created_at: datetime | None = field(default=None, converter=_moment, kw_only=True)
    state_type: Any | None = field(default=None, kw_only=True, on_setattr=setters.frozen)
    _key: Key = field(init=False, default=Factory(_flow_key_of, takes_self=True))
    _loaded: Record | None = field(default=None, init=False)
    _baseline: bytes | None = field(default=None, init=False)
    """What the state was encoded to when it was read, if not by the type as it is today."""
    _claim: Claim | None = field(default=None, init=False)
    _session: object | None = field(default=None, init=False)

    @property
    def version(self) -> int:
        """0 before the first write, then 1, 2, 3 and so on."""
        return 0 if self._loaded is None else self._loaded.head.version

    @property
    def revision(self) -> str | None:
        """Names this write of this record for ever; `None` before the first. Good as an ETag."""
        return None if self._loaded is None else self._loaded.head.revision

    @property
    def created_at(self) -> datetime | None:
        """When the flow was first written, or what was given instead; never changes afterwards."""
        return self._created_at if self._loaded is None else from_ms(self._loaded.head.created_ms)

    @property
    def updated_at(self) -> datetime | None:
        """When the store last wrote the flow; `None` before the first write."""
        return None if self._loaded is None else from_ms(self._loaded.head.updated_ms)

    @property
    def owner(self) -> str | None:
        """Who has claimed the flow, as of when it was read or written."""
        return None if self._loaded is None else self._loaded.head.owner

    @property
    def type_name(self) -> str:
        """The name the state is stored under; empty for plain JSON data."""
        if self._loaded is not None and self._loaded.head.type:
            return self._loaded.head.type

        return codec.type_name(codec.type_of(self.state, self.state_type))

    @property
    def key(self) -> Key:
        """What the store keeps the flow under."""
        return self._key

    def __repr__(self) -> str:
        claimed = f" claimed by {self.owner}" if self.owner else ""
        return (
            f"<FlowSnapshot {self.flow_id!r} v{self.version} {self.status.name}"
            f" at {self.position}{claimed}>"
        )


class _Unguarded(FlowSnapshot[Any]):
    """A snapshot in the making: its attributes are set as they are, without converters and checks."""

    __slots__ = ()
    __setattr__ = object.__setattr__


def loaded_flow(
    key: Key,
    state_type: Any | None,
    record: Record,
    state: Any,
    *,
    position: FlowPosition,
    status: FlowStatus,
    wait: WaitCondition | None,
    baseline: bytes | None,
) -> FlowSnapshot[Any]:
    """A new snapshot of what is stored."""
    head = record.head
    # This, and then making it what it is, costs a sixth of `object.__setattr__` for each.
    flow = object.__new__(_Unguarded)
    flow.flow_id = key.id
    flow.state = state
    flow.position = position
    flow.status = status
    flow.error = head.error
    flow.wait_condition = wait
    flow.due_at = None if head.due_ms is None else from_ms(head.due_ms)
    flow.attempts = head.attempts
    flow._created_at = None
    flow.state_type = state_type
    flow._key = key
    flow._loaded = record
    flow._baseline = baseline
    flow._claim = None
    flow._session = None
    flow.__class__ = FlowSnapshot  # type: ignore[assignment]  # of the same layout
    return flow


@frozen
class FlowSummary:
    """One line of a listing: what is known of a flow without reading its state."""

    flow_id: str
    type_name: str
    status: FlowStatus
    position: FlowPosition
    version: int
    revision: str
    created_at: datetime
    updated_at: datetime
    due_at: datetime | None
    attempts: int
    error: str | None
    owner: str | None


# --- wait conditions ------------------------------------------------------------------------------


@frozen
class ChildResult:
    """How one child completed. `result` is plain JSON data; `None` is a result like any other."""

    success: bool
    result: Any = None
    error: str | None = None


@frozen
class Completion:
    """What `complete_child` did; see there."""

    accepted: bool
    duplicate: bool
    now_satisfied: bool
    outcome: WaitOutcome | None


class Results(Mapping[str, ChildResult]):
    """Completions by child, decoded when they are looked at."""

    def __init__(self, items: tuple[Item, ...], key: Key | None = None) -> None:
        self._items = {item.child: item for item in items}
        self._key = key

    def __getitem__(self, child: str) -> ChildResult:
        item = self._items[child]
        try:
            body: dict[str, Any] = codec.decode_json(item.payload) if item.payload else {}
            return ChildResult(item.success, body.get("result"), body.get("error"))
        except (CorruptRecordError, AttributeError) as error:
            message = (
                f"the completion of {child!r} in {self._key} cannot be read: {error};"
                " it is left as it is"
            )
            key = None if self._key is None else tuple(self._key)
            raise CorruptRecordError(message, key=key) from error

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __repr__(self) -> str:
        return repr(dict(self))


class UnreadResults(Results):
    """Stands for completions that could not be read: to look at them is an error, not emptiness."""

    def __init__(self, key: Key, error: BaseException) -> None:
        super().__init__((), key)
        self._error = error

    def _refusal(self) -> StoreUnavailableError:
        message = (
            f"what the children of {self._key} answered could not be read: {self._error};"
            " get the condition again"
        )
        return StoreUnavailableError(message)

    def __getitem__(self, child: str) -> ChildResult:
        raise self._refusal() from self._error

    def __iter__(self) -> Iterator[str]:
        raise self._refusal() from self._error

    def __len__(self) -> int:
        raise self._refusal() from self._error

    def __repr__(self) -> str:
        return f"<not read: {self._error}>"


_NO_RESULTS = Results(())


def _children(value: Iterable[str]) -> tuple[str, ...]:
    if isinstance(value, str | bytes) or not isinstance(value, Iterable):
        message = f"flow_ids must be a collection of ids, not {value!r}"
        raise UsageError(message)

    children = tuple(dict.fromkeys(check_id(child, "a child's id") for child in value))
    if not children:
        message = "a wait condition needs at least one child in flow_ids"
        raise UsageError(message)

    return children


@define(eq=False, repr=False)
class WaitCondition:
    """A parent flow waits for children: for all of them, or for the first that succeeds.

    A child is any id: an approval or a webhook is completed like a flow. Completions are kept
    beside the definition: they do not change `version`, except the one that ends the wait.

    >>> wait = WaitCondition("order-1/ship", flow_ids=["s-1", "s-2"])
    >>> wait.wait_type.name, wait.outcome.name, wait.completed_count
    ('WHEN_ALL', 'PENDING', 0)
    """

    correlation_id: str = field(converter=_correlation_id, on_setattr=setters.frozen)
    flow_ids: tuple[str, ...] = field(converter=_children, kw_only=True)
    wait_type: WaitType = field(default=WaitType.WHEN_ALL, validator=_is(WaitType), kw_only=True)
    timeout: timedelta | None = field(default=None, converter=_span, kw_only=True)
    parent_flow_id: str | None = field(default=None, converter=_parent_id, kw_only=True)
    created_at: datetime | None = field(
        default=None, converter=_moment, on_setattr=setters.frozen, kw_only=True
    )
    outcome: WaitOutcome = field(
        default=WaitOutcome.PENDING, validator=_is(WaitOutcome), kw_only=True
    )
    _loaded: Record | None = field(default=None, init=False)
    _session: object | None = field(default=None, init=False)
    _results: Results = field(default=_NO_RESULTS, init=False)
    _suspended_on: str | None = field(default=None, init=False)
    """On a copy that a flow shows: the other condition that the flow is still suspended on."""

    @property
    def version(self) -> int:
        """0 before the first write, then 1, 2, 3 and so on."""
        return 0 if self._loaded is None else self._loaded.head.version

    @property
    def revision(self) -> str | None:
        """Names this write of this record for ever; `None` before the first."""
        return None if self._loaded is None else self._loaded.head.revision

    @property
    def deadline(self) -> datetime | None:
        """When the wait times out; `None` before the first write, and if that is never.

        Never is without a timeout, and after the year 9999.
        """
        if self.created_at is None or self.timeout is None:
            return None

        try:
            return self.created_at + self.timeout
        except OverflowError:
            return None

    @property
    def completed_count(self) -> int:
        """How many children had completed when the condition was read."""
        return len(self._results)

    @property
    def results(self) -> Mapping[str, ChildResult]:
        """How children had completed when the condition was read, by child.

        To look into it raises `StoreUnavailableError` where a commit has ended the condition, and the
        store could not be asked afterwards what had come until then.
        """
        return self._results

    @property
    def key(self) -> Key:
        """What the store keeps the condition under."""
        return wait_key(self.correlation_id)

    def __repr__(self) -> str:
        count = "?" if isinstance(self._results, UnreadResults) else len(self._results)
        return (
            f"<WaitCondition {self.correlation_id!r} v{self.version} {self.wait_type.name}"
            f" {self.outcome.name}: {count} of {len(self.flow_ids)}>"
        )


# --- ForEach progress -------------------------------------------------------------------------------


_OTHERS = {"processed_indices": "failed_indices", "failed_indices": "processed_indices"}


def _disjoint(progress: ForEachProgress, attribute: Attribute[Any], value: IndexSet) -> None:
    if value & getattr(progress, _OTHERS[attribute.name]):
        message = "an index cannot be both processed and failed"
        raise UsageError(message)


@define(eq=False, repr=False)
class ForEachProgress:
    """Which items of a ForEach step are done, kept as runs: in order, a million cost one.

    >>> progress = ForEachProgress()
    >>> for index in range(5):
    ...     progress.mark(index, ok=index != 3)
    >>> progress.total_processed, list(progress.failed_indices), list(progress.pending(7))
    (5, [3], [5, 6])
    """

    processed_indices: AbstractSet[int] = field(
        factory=IndexSet, converter=_index_set, validator=_disjoint
    )
    failed_indices: AbstractSet[int] = field(
        factory=IndexSet, converter=_index_set, validator=_disjoint
    )
    last_processed_index: int | None = field(default=None, converter=_last_index, kw_only=True)
    _loaded: Record | None = field(default=None, init=False)
    _session: object | None = field(default=None, init=False)
    _key: Key | None = field(default=None, init=False)

    @property
    def version(self) -> int:
        """0 before the first write, then 1, 2, 3 and so on."""
        return 0 if self._loaded is None else self._loaded.head.version

    @property
    def revision(self) -> str | None:
        """Names this write of this record for ever; `None` before the first."""
        return None if self._loaded is None else self._loaded.head.revision

    @property
    def total_processed(self) -> int:
        """How many items were marked, processed and failed together."""
        return len(self.processed_indices) + len(self.failed_indices)

    def mark(self, index: int, ok: bool = True) -> None:  # noqa: FBT001, FBT002  the contract's signature
        """Put item `index` (from 0) among the processed, or the failed, and not among the others.

        Costs O(log runs).
        """
        to, out_of = self._sets() if ok else self._sets()[::-1]
        to.add(index)
        out_of.discard(index)
        self.last_processed_index = index

    def pending(self, total: int) -> Iterator[int]:
        """The indices below `total` that are in neither set, ascending."""
        processed, failed = self._sets()
        return processed.missing(total, failed)

    def merge(self, other: ForEachProgress) -> ForEachProgress:
        """Take in what `other` has marked; answers this object.

        An item that failed here and was processed there is processed: somebody tried again.
        """
        processed, failed = self._sets()
        if type(other) is not ForEachProgress:
            message = f"a ForEachProgress is merged with another one, not with {other!r}"
            raise UsageError(message)

        processed.update(other.processed_indices)
        failed.update(other.failed_indices)
        self.failed_indices = failed - processed

        if other.last_processed_index is not None:
            self.last_processed_index = other.last_processed_index

        return self

    def _sets(self) -> tuple[IndexSet, IndexSet]:
        processed, failed = self.processed_indices, self.failed_indices
        assert isinstance(processed, IndexSet), "whatever is set is made one"
        assert isinstance(failed, IndexSet), "as above"
        return processed, failed

    def __repr__(self) -> str:
        return (
            f"<ForEachProgress v{self.version}: {len(self.processed_indices)} processed,"
            f" {len(self.failed_indices)} failed>"
        )


# --- the rest -----------------------------------------------------------------------------------


@frozen
class Page(Generic[T]):
    """A part of a listing; `cursor` leads on, `None` at the end."""

    items: tuple[T, ...]
    cursor: str | None

    def __iter__(self) -> Iterator[T]:
        return iter(self.items)

    def __len__(self) -> int:
        return len(self.items)


def _kept(value: timedelta | None) -> timedelta | None:
    return None if value is None else span_ms(value, "a retention") * _MS


@frozen(kw_only=True)
class Retention:
    """How long what has ended is kept; `None`: for ever. Nothing live ever expires.

    `flows` counts for completed and cancelled flows, `failed` for failed ones, from their last
    write; `waits` for conditions, from when they ended and their parent was given to a worker, and
    for completions that no condition awaited, from the latest of them.
    """

    flows: timedelta | None = field(default=timedelta(days=7), converter=_kept)
    failed: timedelta | None = field(default=timedelta(days=30), converter=_kept)
    waits: timedelta | None = field(default=timedelta(days=1), converter=_kept)


def head_of(record: FlowSnapshot[Any] | WaitCondition | ForEachProgress) -> Head | None:
    """The head a record was loaded with, or last written as."""
    loaded = record._loaded
    return None if loaded is None else loaded.head

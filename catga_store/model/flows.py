"""Flow snapshots: the state of a flow and where it is.

They are plain mutable objects. Their version, revision and owner are read-only: they come from the
record that a snapshot was loaded from or last written as. Instants are in UTC and whole
milliseconds: they are rounded when they are set, `created_at` down, `due_at`, `expires_at` and `timeout`
up.
"""

from __future__ import annotations

import enum
import os
from collections.abc import Callable
from collections.abc import Mapping
from datetime import datetime
from functools import lru_cache
from typing import Any
from typing import Generic
from typing import TypeVar

from attrs import Attribute
from attrs import Factory
from attrs import converters
from attrs import define
from attrs import field
from attrs import frozen
from attrs import setters

from catga_store import codec
from catga_store.errors import UsageError
from catga_store.model.tags import NO_TAGS
from catga_store.model.tags import as_tags
from catga_store.model.times import NOW
from catga_store.model.times import from_ms
from catga_store.model.times import moment_down
from catga_store.model.times import moment_up
from catga_store.model.validators import as_correlation_id
from catga_store.model.validators import as_flow_id
from catga_store.model.validators import check_count
from catga_store.model.validators import check_error_text
from catga_store.model.validators import check_path
from catga_store.model.validators import exactly
from catga_store.model.waits import WaitCondition
from catga_store.protocol.keys import Key
from catga_store.protocol.keys import flow_key
from catga_store.protocol.masking import shown
from catga_store.protocol.requests import Record

S = TypeVar("S")


def _wait_or_none(_instance: object, _attribute: Attribute[Any], value: object) -> None:
    if value is not None and type(value) is not WaitCondition:
        message = f"wait_condition: expected a WaitCondition or None, got {shown(value)}"
        raise UsageError(message)


class FlowStatus(enum.Enum):
    """The status of a flow; `COMPLETED`, `FAILED` and `CANCELLED` are terminal. The store allows any transition."""

    CREATED = 0
    RUNNING = 1
    SUSPENDED = 2
    COMPENSATING = 3
    COMPLETED = 4
    FAILED = 5
    CANCELLED = 6

    @property
    def is_terminal(self) -> bool:
        """Whether the flow has ended: it is never due, has no owner, and is kept for its retention time."""
        return self._value_ >= 4  # noqa: PLR2004  COMPLETED; `.value` costs ten times as much


@frozen
class FlowPosition:
    """The position of a flow in its steps: a path of step indices, outermost first.

    >>> position = FlowPosition().advance().enter(3)
    >>> str(position), position.current, position.depth
    ('1/3', 3, 2)
    >>> str(position.exit().advance(2))
    '3'
    """

    path: tuple[int, ...] = field(default=(0,), validator=check_path)

    @property
    def current(self) -> int:
        """The index of the step at the innermost level."""
        return self.path[-1]

    @property
    def depth(self) -> int:
        """The number of levels in the position; 1 at the top level."""
        return len(self.path)

    def advance(self, by: int = 1) -> FlowPosition:
        """Return the position `by` steps further on, at the same level."""
        if type(by) is not int:
            message = f"advance: expected an int, got {shown(by)}"
            raise UsageError(message)

        return FlowPosition((*self.path[:-1], self.path[-1] + by))

    def enter(self, index: int) -> FlowPosition:
        """Return the position of step `index` one level deeper."""
        return FlowPosition((*self.path, index))

    def exit(self) -> FlowPosition:
        """Return the position one level up; raise `UsageError` at the top level."""
        if len(self.path) == 1:
            message = (
                f"position {self} is at the top level, so there is no enclosing level to exit to"
            )
            raise UsageError(message)

        return FlowPosition(self.path[:-1])

    def __str__(self) -> str:
        return path_text(self.path)


@lru_cache(maxsize=4096)
def path_text(path: tuple[int, ...]) -> str:
    """Return a position as text."""
    return "/".join(map(str, path))


@frozen
class Claim:
    """A lease on a flow; `token` is the id of the commit that made the claim."""

    token: str
    lease_ms: int
    dropped: Callable[[FlowSnapshot[Any]], None] = field(eq=False, repr=False)
    """Called with the flow when the interpreter frees it while it holds this claim."""
    process: int = field(factory=os.getpid, eq=False, repr=False)
    """Where the claim was made: a forked process has a flow of its parent's."""


_START = FlowPosition()


def _flow_key_of(flow: FlowSnapshot[Any]) -> Key:
    return flow_key(flow.flow_id)


@define(eq=False, repr=False)
class FlowSnapshot(Generic[S]):
    """A flow, with its state and its position in its steps.

    `state` is an instance of an attrs class or a dataclass, a TypedDict (pass its type as `state_type`), or
    plain JSON data. `due_at` is the time at which a worker should next claim the flow; `None` means never.
    The default is `NOW`: the flow is due at once, unless it is suspended or terminal. `attempts` is the
    number of times that the flow has been claimed since its position or status last changed.

    `expires_at` is the time at which the flow expires, whatever its status is. An expiry that you set is kept
    until you set a different one, even when the flow ends. If you do not set one, a live flow never expires,
    and each write of a flow that has ended sets the expiry according to the store's `Retention`.

    `reports_to` is the correlation id of a wait condition that has this flow as a child. The commit that sets
    a terminal status or deletes the flow also completes the child, no matter which client makes this commit.
    The completion is a success if the status is `COMPLETED`; otherwise, it contains the flow's `error`. Such
    a flow must be in the partition of the condition, and must not expire before it has ended; otherwise,
    writing it raises `UsageError`.

    `tags` are up to 16 key-value pairs that are used to find and claim flows. A key is 1 to 64 bytes of
    UTF-8, and a value is 0 to 256 bytes. Tags cannot be changed in place; assign a new mapping instead.
    `fork` and `run.spawn` copy the tags.

    Two snapshots are equal only if they are the same object.

    >>> order = FlowSnapshot("order-1", state={"paid": False})
    >>> order.version, order.revision, order.status.name, str(order.position)
    (0, None, 'CREATED', '0')
    """

    flow_id: str = field(converter=as_flow_id, on_setattr=setters.frozen)
    state: S = field(kw_only=True)
    position: FlowPosition = field(default=_START, validator=exactly(FlowPosition), kw_only=True)
    status: FlowStatus = field(
        default=FlowStatus.CREATED, validator=exactly(FlowStatus), kw_only=True
    )
    error: str | None = field(default=None, validator=check_error_text, kw_only=True)
    wait_condition: WaitCondition | None = field(
        default=None, validator=_wait_or_none, kw_only=True
    )
    due_at: datetime | None = field(default=NOW, converter=moment_up, kw_only=True)
    expires_at: datetime | None = field(default=None, converter=moment_up, kw_only=True)
    attempts: int = field(default=0, validator=check_count, kw_only=True)
    _created_at: datetime | None = field(default=None, converter=moment_down, kw_only=True)
    state_type: Any | None = field(default=None, kw_only=True, on_setattr=setters.frozen)
    reports_to: str | None = field(
        default=None,
        converter=converters.optional(as_correlation_id),
        kw_only=True,
        on_setattr=setters.frozen,
    )
    tags: Mapping[str, str] = field(default=NO_TAGS, converter=as_tags, kw_only=True)
    _key: Key = field(init=False, default=Factory(_flow_key_of, takes_self=True))
    _loaded: Record | None = field(default=None, init=False)
    _baseline: bytes | None = field(default=None, init=False)
    """The loaded state as its type encodes it today, if its type has changed since it was written."""
    _claim: Claim | None = field(default=None, init=False)
    _session: object | None = field(default=None, init=False)

    @property
    def version(self) -> int:
        """The version of the flow: 0 before the first write, then 1, 2, 3 and so on."""
        return 0 if self._loaded is None else self._loaded.head.version

    @property
    def revision(self) -> str | None:
        """A string that identifies one write of this flow; `None` before the first write.

        A revision is never used again, so you can use it as an ETag.
        """
        return None if self._loaded is None else self._loaded.head.revision

    @property
    def created_at(self) -> datetime | None:
        """The time of the first write, unless you passed a different time; it never changes."""
        return self._created_at if self._loaded is None else from_ms(self._loaded.head.created_ms)

    @property
    def updated_at(self) -> datetime | None:
        """The time of the last write; `None` before the first write."""
        return None if self._loaded is None else from_ms(self._loaded.head.updated_ms)

    @property
    def owner(self) -> str | None:
        """The owner of the claim when the flow was read or written; `None` if the flow was not claimed."""
        return None if self._loaded is None else self._loaded.head.owner

    @property
    def type_name(self) -> str:
        """The type name under which the state is stored; empty for plain JSON data."""
        if self._loaded is not None and self._loaded.head.type:
            return self._loaded.head.type

        return codec.type_name(codec.type_of(self.state, self.state_type))

    @property
    def key(self) -> Key:
        """The key under which the flow is stored."""
        return self._key

    def __repr__(self) -> str:
        claimed = f" claimed by {self.owner}" if self.owner else ""
        return (
            f"<FlowSnapshot {self.flow_id!r} v{self.version} {self.status.name}"
            f" at {self.position}{claimed}>"
        )


@frozen
class FlowSummary:
    """A flow in a listing: all its data except its state. The fields are those of `FlowSnapshot`."""

    flow_id: str
    type_name: str
    status: FlowStatus
    position: FlowPosition
    version: int
    revision: str
    created_at: datetime
    updated_at: datetime
    due_at: datetime | None
    expires_at: datetime | None
    attempts: int
    error: str | None
    owner: str | None
    tags: Mapping[str, str] = NO_TAGS
    unreadable: str | None = None
    """Why the store cannot read this flow; `None` if it can. This happens if another program has written the
    flow. Then only its id is known, and the other fields are meaningless."""


@frozen
class FlowVersion:
    """A version in the history of a flow, without its state. The fields are those of `FlowSnapshot`."""

    version: int
    status: FlowStatus
    position: FlowPosition
    error: str | None
    owner: str | None
    updated_at: datetime
    size: int
    """The size in bytes of the state and of the data that is stored with it."""

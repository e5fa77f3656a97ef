"""Wait conditions: what a parent flow waits for, and what its children have reported."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from datetime import datetime
from datetime import timedelta
from typing import Any

from attrs import define
from attrs import field
from attrs import frozen
from attrs import setters

from catga_store import codec
from catga_store.codec.bodies.frames import not_readable
from catga_store.errors import CatgaStoreError
from catga_store.errors import CorruptRecordError
from catga_store.errors import StoreUnavailableError
from catga_store.errors import UsageError
from catga_store.model.times import moment_down
from catga_store.model.times import span_up
from catga_store.model.validators import as_correlation_id
from catga_store.model.validators import as_parent_id
from catga_store.model.validators import exactly
from catga_store.protocol.keys import Key
from catga_store.protocol.keys import check_id
from catga_store.protocol.keys import wait_key
from catga_store.protocol.masking import shown
from catga_store.protocol.requests import Item
from catga_store.protocol.requests import Record


class WaitType(enum.Enum):
    """Which completions satisfy a wait condition."""

    WHEN_ALL = 0
    """All children have completed, whether or not they succeeded."""
    WHEN_ANY = 1
    """One child has succeeded, or all children have completed."""


class WaitOutcome(enum.Enum):
    """Whether a wait condition has ended, and how."""

    PENDING = 0
    SATISFIED = 1
    TIMED_OUT = 2
    CANCELLED = 3


@frozen
class ChildResult:
    """How a child completed. `result` is plain JSON data, which can be `None`."""

    success: bool
    result: Any = None
    error: str | None = None


@frozen
class Completion:
    """The result of `complete_child`. For the meaning of the fields, see that method."""

    accepted: bool
    duplicate: bool
    now_satisfied: bool
    outcome: WaitOutcome | None


class Results(Mapping[str, ChildResult]):
    """Completions by child, decoded on access."""

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
                " nothing was changed"
            )
            key = self._key or wait_key("?")
            refusal = not_readable(key, item.payload)
            if refusal is not None:
                raise refusal from None

            raise CorruptRecordError(message, key=self._key and tuple(self._key)) from error

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __repr__(self) -> str:
        return repr(dict(self))


class UnreadResults(Results):
    """Completions that could not be read: any access raises, so they are not mistaken for none."""

    def __init__(self, key: Key, error: BaseException) -> None:
        super().__init__((), key)
        self._error = error

    def _refusal(self) -> CatgaStoreError:
        if isinstance(self._error, CorruptRecordError):
            return CorruptRecordError(str(self._error), key=self._error.key)

        message = (
            f"the completions of {self._key} could not be read: {self._error}; read the wait "
            "condition again"
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
        message = f"flow_ids: expected a collection of ids, got {shown(value)}"
        raise UsageError(message)

    children = tuple(dict.fromkeys(check_id(child, "a child's id") for child in value))
    if not children:
        message = "flow_ids: expected at least one child, got none"
        raise UsageError(message)

    return children


@define(eq=False, repr=False)
class WaitCondition:
    """What a parent flow waits for: all of its children, or the first of them that succeeds.

    A wait for the first also ends when all children have completed and none has succeeded.

    A child is identified by any id: an approval or a webhook is completed in the same way as a flow.
    Completions are stored beside the condition. A completion does not change the condition's `version`,
    unless it ends the wait.

    >>> wait = WaitCondition("order-1/ship", flow_ids=["s-1", "s-2"])
    >>> wait.wait_type.name, wait.outcome.name, wait.completed_count
    ('WHEN_ALL', 'PENDING', 0)
    """

    correlation_id: str = field(converter=as_correlation_id, on_setattr=setters.frozen)
    flow_ids: tuple[str, ...] = field(converter=_children, kw_only=True)
    wait_type: WaitType = field(
        default=WaitType.WHEN_ALL, validator=exactly(WaitType), kw_only=True
    )
    timeout: timedelta | None = field(default=None, converter=span_up, kw_only=True)
    parent_flow_id: str | None = field(default=None, converter=as_parent_id, kw_only=True)
    created_at: datetime | None = field(
        default=None, converter=moment_down, on_setattr=setters.frozen, kw_only=True
    )
    outcome: WaitOutcome = field(
        default=WaitOutcome.PENDING, validator=exactly(WaitOutcome), kw_only=True
    )
    _loaded: Record | None = field(default=None, init=False)
    _session: object | None = field(default=None, init=False)
    _results: Results = field(default=_NO_RESULTS, init=False)
    unreadable: str | None = field(default=None, init=False, on_setattr=setters.frozen)
    """In a listing, why the store cannot read this condition; `None` if it can. This happens if another program
    has written the condition. Then only its id is known, and it cannot be written."""
    _suspended_on: str | None = field(default=None, init=False)
    """On the copy in a flow, the other condition on which the flow is still suspended."""

    @property
    def version(self) -> int:
        """The version of the condition: 0 before the first write, then 1, 2, 3 and so on."""
        return 0 if self._loaded is None else self._loaded.head.version

    @property
    def revision(self) -> str | None:
        """A string that identifies one write of this condition; `None` before the first write.

        A revision is never used again.
        """
        return None if self._loaded is None else self._loaded.head.revision

    @property
    def deadline(self) -> datetime | None:
        """The time at which the wait times out; `None` before the first write, or if the wait never times out.

        A wait never times out if it has no timeout or if its deadline would be after the year 9999.
        """
        if self.created_at is None or self.timeout is None:
            return None

        try:
            return self.created_at + self.timeout
        except OverflowError:
            return None

    @property
    def completed_count(self) -> int:
        """The number of children that had completed when the condition was read."""
        return 0 if self.unreadable is not None else len(self._results)

    @property
    def results(self) -> Mapping[str, ChildResult]:
        """The completions of the children when the condition was read, by the id of the child.

        Any access to the mapping raises `StoreUnavailableError` if a commit has ended the condition but the
        completions could not be read afterwards, and `CorruptRecordError` if the condition is `unreadable`.
        """
        return self._results

    @property
    def key(self) -> Key:
        """The key under which the condition is stored."""
        return wait_key(self.correlation_id)

    def __repr__(self) -> str:
        if self.unreadable is not None:
            return f"<WaitCondition {self.correlation_id!r} unreadable>"

        count = "?" if isinstance(self._results, UnreadResults) else len(self._results)
        return (
            f"<WaitCondition {self.correlation_id!r} v{self.version} {self.wait_type.name}"
            f" {self.outcome.name}: {count} of {len(self.flow_ids)}>"
        )

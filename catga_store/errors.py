"""All errors of the library, grouped by what the caller should do next.

::

    CatgaStoreError
    ├── UsageError                       fix the code; nothing was sent
    │   ├── InvalidIdError
    │   ├── StateTypeError
    │   ├── EncodingError                has `.path`, the place inside the state
    │   ├── RecordTooLargeError
    │   ├── CommitTooLargeError
    │   ├── CrossPartitionError
    │   ├── SessionClosedError
    │   ├── StoreClosedError
    │   └── NotSupportedError
    ├── StoreConfigError                 fix the deployment; nothing was written
    ├── ConflictError                    reload and decide again; nothing was written
    │   ├── FlowExistsError
    │   ├── StaleFlowError
    │   │   └── ClaimLostError
    │   ├── FlowClaimedError
    │   ├── FlowNotFoundError
    │   ├── FlowStatusError
    │   ├── StaleWaitConditionError
    │   ├── WaitConditionNotFoundError
    │   ├── StaleProgressError
    │   ├── PartExistsError
    │   └── StalePartError
    ├── StoreUnavailableError            try again later; nothing was written
    ├── CommitUncertainError             find out what happened: `Store.resolve_commit`
    └── CorruptRecordError               stored data cannot be read; it is never deleted
        └── CodecMissingError            a codec or a key is missing

`PartitionCountError` is both a `UsageError` and a `StoreConfigError`, because either the code or the
deployment may be wrong.

The facts that a message states are also attributes of the error. Every error can be pickled, together with
these attributes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from typing import Any

if TYPE_CHECKING:
    from datetime import datetime

__all__ = [
    "CatgaStoreError",
    "ClaimLostError",
    "CodecMissingError",
    "CommitTooLargeError",
    "CommitUncertainError",
    "ConflictError",
    "CorruptRecordError",
    "CrossPartitionError",
    "EncodingError",
    "FlowClaimedError",
    "FlowExistsError",
    "FlowNotFoundError",
    "FlowStatusError",
    "InvalidIdError",
    "NotSupportedError",
    "PartExistsError",
    "PartitionCountError",
    "RecordTooLargeError",
    "SessionClosedError",
    "StaleFlowError",
    "StalePartError",
    "StaleProgressError",
    "StaleWaitConditionError",
    "StateTypeError",
    "StoreClosedError",
    "StoreConfigError",
    "StoreUnavailableError",
    "UsageError",
    "WaitConditionNotFoundError",
]


class CatgaStoreError(Exception):
    """The base class of all errors of this library.

    The facts that the message states are passed as keyword arguments and become attributes. They must be
    picklable.
    """

    def __init__(self, message: str, **facts: Any) -> None:
        super().__init__(message)
        self.__dict__.update(facts)


# --- fix the code -------------------------------------------------------------------------------


class UsageError(CatgaStoreError):
    """The call can never succeed as written. Nothing was sent, and nothing was changed."""


class InvalidIdError(UsageError):
    """An id is empty, longer than 512 bytes of UTF-8, not a string, or not encodable as UTF-8."""


class StateTypeError(UsageError):
    """The stored state has a different type name or version than the requested type, or does not match it."""

    expected: str | None
    actual: str | None
    expected_version: int | None = None
    actual_version: int | None = None


class EncodingError(UsageError):
    """A value cannot be stored exactly. `path` is its place in the state, such as `$.items[2]`."""

    path: str


class RecordTooLargeError(UsageError):
    """A record is larger than the store's `max_record_bytes`, or a completion's result is larger than 256 KiB."""

    size: int
    limit: int


class CommitTooLargeError(UsageError):
    """A commit contains more than 200 records, or replaces a flow with more progress records than NATS allows."""

    size: int
    limit: int


class CrossPartitionError(UsageError):
    """A commit contains records of several partitions. Records with the same `{tag}` share a partition."""

    partitions: dict[str, int]


class SessionClosedError(UsageError):
    """The session was closed, or it closed itself because the outcome of a commit was lost."""


class StoreClosedError(UsageError):
    """The store was closed."""


class NotSupportedError(UsageError):
    """The operation is not supported here; the message says what is needed."""


# --- fix the deployment -------------------------------------------------------------------------


class StoreConfigError(CatgaStoreError):
    """The store cannot work with this server, file or configuration; the message says what to change."""


class PartitionCountError(UsageError, StoreConfigError):
    """The store was created with a different number of partitions than it was opened with."""

    expected: int
    actual: int


# --- reload and decide again ----------------------------------------------------------------------


class ConflictError(CatgaStoreError):
    """Another caller wrote first. Nothing in the commit was written.

    `conflicts` contains one error for each record that was refused. For a single record, it contains only the
    error itself.
    """

    _conflicts: tuple[ConflictError, ...] = ()

    @property
    def conflicts(self) -> tuple[ConflictError, ...]:
        """The refusals, one per record, each with the expected version and the version that the store has."""
        return self._conflicts or (self,)


class FlowExistsError(ConflictError):
    """The id of a new flow is already taken by a flow with the version `actual`."""

    flow_id: str
    actual: int


class StaleFlowError(ConflictError):
    """The store no longer has the revision of the flow that was read."""

    flow_id: str
    expected: int
    actual: int | None


class ClaimLostError(StaleFlowError):
    """The caller had claimed the flow, but has lost the claim.

    Another caller has written or claimed the flow in the meantime, or the lease ended before `claim`
    returned.
    """


class FlowClaimedError(ConflictError):
    """Another owner has claimed the flow, and the claim has not ended."""

    flow_id: str
    owner: str
    until: datetime


class FlowNotFoundError(ConflictError):
    """The flow does not exist: it was never created, was deleted, or has expired."""

    flow_id: str
    expected: int | None


class FlowStatusError(ConflictError):
    """The flow's status does not allow the operation: for example, a completed flow cannot be cancelled."""

    flow_id: str
    status: str
    actual: int


class StaleWaitConditionError(ConflictError):
    """The store no longer has the revision of the wait condition that was read."""

    correlation_id: str
    expected: int
    actual: int | None


class WaitConditionNotFoundError(ConflictError):
    """The wait condition does not exist: it was never set, was cleared, or has expired."""

    correlation_id: str
    expected: int | None


class StaleProgressError(ConflictError):
    """The stored progress has changed since it was read: load it again and `merge` yours into it."""

    flow_id: str
    step_index: int
    expected: int
    actual: int | None


class PartExistsError(ConflictError):
    """A stored part already has the name of the new part: get the stored part, or pass `exists=`."""

    flow_id: str
    name: str
    actual: int


class StalePartError(ConflictError):
    """The stored part has changed since it was read, or no longer exists: get the part and decide again."""

    flow_id: str
    name: str
    expected: int
    actual: int | None


# --- try again later, look before you act, ask an operator --------------------------------------------


class StoreUnavailableError(CatgaStoreError):
    """The store cannot be reached, or refuses to work at the moment. Nothing was written."""


class CommitUncertainError(CatgaStoreError):
    """A commit was sent, but its outcome could not be determined within the store's timeout.

    `Store.resolve_commit(error)` determines the outcome: it returns the receipt, or `None` if the commit will
    never be applied. `extend`, `sweep` and `clear` are commits, too: resolve their errors in the same way, or
    call the method again, which does no harm.
    """

    commit_id: str
    keys: tuple[tuple[str, str, int, str], ...]
    changes: tuple[Any, ...] | None = None
    """What was sent, without bodies; `None` if it is not known. `resolve_commit` uses this attribute."""
    kept_seconds: float | None = None
    """The number of seconds for which the store keeps the reply, infinite if it keeps it until it is not needed
    any more; `None` if it is not known."""
    sent_at: float | None = None
    """When the commit was first sent, according to the monotonic clock of the process that sent it."""

    def __reduce__(self) -> tuple[Any, ...]:
        # The monotonic clock of one process means nothing in another.
        facts = {name: None if name == "sent_at" else fact for name, fact in vars(self).items()}
        return type(self), self.args, facts


class CorruptRecordError(CatgaStoreError):
    """A stored record cannot be read. `key` identifies the record, which is left as it is."""

    key: tuple[str, str, int, str] | None


class CodecMissingError(CorruptRecordError):
    """A body was stored with a codec or a key that this store was opened without.

    Open the store with this codec or key and read again. A key that was destroyed cannot be replaced.
    """

    codec: str
    label: str
    """For encryption, the id of the key."""


for _name in __all__:
    globals()[_name].__module__ = "catga_store"

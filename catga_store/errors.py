"""Every error of the library, sorted by what the caller does next.

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
    ├── CommitUncertainError             look before you act: `Store.resolve_commit`
    └── CorruptRecordError               what is stored cannot be read; it is never deleted
        └── CodecMissingError            a codec or a key is missing

`PartitionCountError` is both a `UsageError` and a `StoreConfigError`: only the reader of the
message knows whether the code or the deployment is wrong.

The facts in a message are attributes too, and every error pickles with them.
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
    """The root of all errors of this library.

    Keyword arguments become attributes: the facts that the message states. They must pickle.
    """

    def __init__(self, message: str, **facts: Any) -> None:
        super().__init__(message)
        self.__dict__.update(facts)


# --- fix the code -------------------------------------------------------------------------------


class UsageError(CatgaStoreError):
    """The call can never work as written. Nothing was sent, nothing was changed."""


class InvalidIdError(UsageError):
    """An id is empty, longer than 512 UTF-8 bytes, not text, or not encodable as UTF-8."""


class StateTypeError(UsageError):
    """The stored state has another type name or version than the requested type, or does not fit it."""

    expected: str | None
    actual: str | None
    expected_version: int | None = None
    actual_version: int | None = None


class EncodingError(UsageError):
    """A value cannot be stored exactly. `path` is its place in the state, as in `$.items[2]`."""

    path: str


class RecordTooLargeError(UsageError):
    """A record is over the store's `max_record_bytes`, or a completion's result over 256 KiB."""

    size: int
    limit: int


class CommitTooLargeError(UsageError):
    """A commit names more than 200 records, or replaces a flow with more progress than NATS can."""

    size: int
    limit: int


class CrossPartitionError(UsageError):
    """One commit names records of several partitions. Records that share a `{tag}` share one."""

    partitions: dict[str, int]


class SessionClosedError(UsageError):
    """The session was closed, or closed itself when the outcome of a commit was lost."""


class StoreClosedError(UsageError):
    """The store was closed."""


class NotSupportedError(UsageError):
    """This store cannot do what was asked; the message says what can."""


# --- fix the deployment -------------------------------------------------------------------------


class StoreConfigError(CatgaStoreError):
    """The server, file or its settings do not let the store work; the message says what to change."""


class PartitionCountError(UsageError, StoreConfigError):
    """The store was laid out with another number of partitions than it was opened with."""

    expected: int
    actual: int


# --- reload and decide again ----------------------------------------------------------------------


class ConflictError(CatgaStoreError):
    """Another caller wrote first. Nothing of the commit was written.

    `conflicts` holds one error per record that was refused; an error that stands alone is its own
    only conflict.
    """

    _conflicts: tuple[ConflictError, ...] = ()

    @property
    def conflicts(self) -> tuple[ConflictError, ...]:
        """The refusals, one per record, each with what was expected and what the store holds."""
        return self._conflicts or (self,)


class FlowExistsError(ConflictError):
    """The id of a new flow is taken, by a flow at version `actual`."""

    flow_id: str
    actual: int


class StaleFlowError(ConflictError):
    """The store no longer holds the revision that was read."""

    flow_id: str
    expected: int
    actual: int | None


class ClaimLostError(StaleFlowError):
    """The flow was claimed by its caller, and the claim is lost.

    Another caller has written or claimed the flow since, or the lease was over before `claim` returned.
    """


class FlowClaimedError(ConflictError):
    """Another owner's claim on the flow has not ended."""

    flow_id: str
    owner: str
    until: datetime


class FlowNotFoundError(ConflictError):
    """There is no such flow: it was never created, was deleted, or has expired."""

    flow_id: str
    expected: int | None


class FlowStatusError(ConflictError):
    """The flow has a status that does not allow this: one that has ended cannot be cancelled, say."""

    flow_id: str
    status: str
    actual: int


class StaleWaitConditionError(ConflictError):
    """The store no longer holds the revision of the condition that was read."""

    correlation_id: str
    expected: int
    actual: int | None


class WaitConditionNotFoundError(ConflictError):
    """There is no such wait condition: it was never set, was cleared, or has expired."""

    correlation_id: str
    expected: int | None


class StaleProgressError(ConflictError):
    """The stored progress is not the one that was read: load it and `merge`."""

    flow_id: str
    step_index: int
    expected: int
    actual: int | None


class PartExistsError(ConflictError):
    """A new part has the name of one that is stored: get that one, or pass `exists=`."""

    flow_id: str
    name: str
    actual: int


class StalePartError(ConflictError):
    """The stored part is not the one that was read, or is gone: get it again and decide again."""

    flow_id: str
    name: str
    expected: int
    actual: int | None


# --- try again later, look before you act, ask an operator --------------------------------------------


class StoreUnavailableError(CatgaStoreError):
    """The store cannot be reached or refuses to work for now. Nothing was written."""


class CommitUncertainError(CatgaStoreError):
    """A commit was sent and its outcome could not be learnt within the store's timeout.

    `Store.resolve_commit(error)` settles it: the receipt, or `None` and then it never will be applied.
    `extend`, `sweep` and `clear` are commits in this: settle them likewise, or call them again, which
    does no harm.
    """

    commit_id: str
    keys: tuple[tuple[str, str, int, str], ...]
    changes: tuple[Any, ...] | None = None
    """What was sent, without bodies; `None` if that is not known. For `resolve_commit`."""
    kept_seconds: float | None = None
    """How long the store keeps the reply; `None` if it is not known."""
    sent_at: float | None = None
    """When it was first sent, by the monotonic clock of the process that sent it."""

    def __reduce__(self) -> tuple[Any, ...]:
        # The monotonic clock of one process means nothing in another.
        facts = {name: None if name == "sent_at" else fact for name, fact in vars(self).items()}
        return type(self), self.args, facts


class CorruptRecordError(CatgaStoreError):
    """What is stored cannot be read. `key` names it; it is left as it is."""

    key: tuple[str, str, int, str] | None


class CodecMissingError(CorruptRecordError):
    """A body was stored through a codec, or under a key, that this store was opened without.

    Give the store that codec or key and read again. A key that was destroyed cannot be replaced.
    """

    codec: str
    label: str
    """For an encryption, the id of the key."""


for _name in __all__:
    globals()[_name].__module__ = "catga_store"

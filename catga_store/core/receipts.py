"""Receipts: what a commit did, built from its changes and their outcomes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from attrs import field
from attrs import frozen

from catga_store.errors import UsageError
from catga_store.model.parts import Appended
from catga_store.model.stored_state import AnyRecord
from catga_store.model.stored_state import key_of
from catga_store.model.waits import Completion
from catga_store.model.waits import WaitOutcome
from catga_store.protocol.keys import Key
from catga_store.protocol.requests import IF_ABSENT
from catga_store.protocol.requests import Append
from catga_store.protocol.requests import Change
from catga_store.protocol.requests import Check
from catga_store.protocol.requests import Complete
from catga_store.protocol.requests import Outcome
from catga_store.protocol.requests import Put
from catga_store.protocol.requests import SetWait

__all__ = ["Receipt", "appended_of", "completion_of", "receipt_of"]


@frozen
class Receipt:
    """The result of a commit. `versions` maps the key of each written record to its new version.

    In `versions`, a deleted record has version 0. If a session had nothing to write, its receipt is empty,
    and `commit_id` is `None`.

    >>> from catga_store import FlowSnapshot, MemoryStore
    >>> store, order = MemoryStore(), FlowSnapshot("order-1", state={"paid": False})
    >>> with store.begin() as session:
    ...     session.add(order)
    >>> session.receipt.version_of(order)
    1
    """

    commit_id: str | None = None
    versions: dict[Key, int] = field(factory=dict[Key, int])
    completions: dict[tuple[str, str], Completion] = field(
        factory=dict[tuple[str, str], Completion]
    )
    satisfied: tuple[str, ...] = ()
    """The ids of the wait conditions that this commit satisfied, either by completions or by setting them."""
    entries: tuple[Appended, ...] = ()
    """The results of the commit's appends to logs, in the order of the appends; empty if they are not known."""
    kept: tuple[Key, ...] = ()
    """The keys of parts that were added with `exists="keep"` but already existed, and so were not written."""

    def version_of(self, record: AnyRecord) -> int:
        """Return the version of a record that the commit wrote, or 0 if the commit deleted it.

        Raises `UsageError` if the commit did not write the record.
        """
        key = key_of(record)
        if key not in self.versions:
            message = f"commit {self.commit_id} did not write {key}"
            raise UsageError(message)

        return self.versions[key]


def completion_of(outcome: Outcome) -> Completion:
    """What a completion did."""
    status = outcome.status
    return Completion(
        accepted=outcome.accepted,
        duplicate=outcome.duplicate,
        now_satisfied=outcome.satisfied,
        outcome=None if status is None else WaitOutcome(status),
    )


def receipt_of(  # noqa: C901  one branch for each kind of change
    commit_id: str, changes: Sequence[Change], outcomes: Sequence[Outcome | None]
) -> Receipt:
    """The receipt of a commit of these changes.

    `outcomes` may be empty when a commit is settled long after it was sent: then the versions are
    the planned ones, and what its completions did is not known.
    """
    versions: dict[Key, int] = {}
    completions: dict[tuple[str, str], Completion] = {}
    # Most commits have none of these, and make nothing for them.
    satisfied: tuple[str, ...] = ()
    entries: tuple[Appended, ...] = ()
    kept: tuple[Key, ...] = ()

    for change, outcome in zip(changes, outcomes or (None,) * len(changes), strict=True):
        key = change.key
        if type(change) is Put:  # what most changes are
            if outcome is None:
                versions[key] = change.head.version
            elif change.expected == IF_ABSENT and not outcome.accepted:
                kept += (key,)
            else:
                versions[key] = outcome.version
        elif isinstance(change, Append):
            entries += () if outcome is None else (appended_of(change, outcome),)
        elif isinstance(change, Complete):
            if outcome is not None:
                completions[key.id, change.child] = completion_of(outcome)
                if outcome.satisfied and key in versions:
                    versions[key] = outcome.version
        elif isinstance(change, SetWait):
            versions[key] = 1 if outcome is None else outcome.version
        elif not isinstance(change, Check):
            versions[key] = 0

        if outcome is not None and outcome.satisfied:
            satisfied += (key.id,)

    # To set the fields of this class and then change it costs two thirds of `Receipt(…)`.
    receipt: Any = object.__new__(_Unguarded)
    receipt.commit_id = commit_id
    receipt.versions = versions
    receipt.completions = completions
    receipt.satisfied = satisfied
    receipt.entries = entries
    receipt.kept = kept
    receipt.__class__ = Receipt  # of the same layout
    made: Receipt = receipt
    return made


class _Unguarded(Receipt):
    """A receipt in the making: its fields can be set."""

    __slots__ = ()
    __setattr__ = object.__setattr__
    __delattr__ = object.__delattr__  # else CPython looks both up for each field


def appended_of(change: Append, outcome: Outcome) -> Appended:
    """What an append did."""
    key = change.key
    entry_key = change.head.position or None
    return Appended(key.id, key.name, outcome.version, entry_key, outcome.duplicate)

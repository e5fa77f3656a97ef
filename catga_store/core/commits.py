"""Sending commits, and settling those whose outcome was lost."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Sequence
from datetime import datetime

from catga_store.core import writes
from catga_store.core.settings import Settings
from catga_store.core.settings import default_owner
from catga_store.core.writes import Limits
from catga_store.core.writes import Receipt
from catga_store.errors import CommitUncertainError
from catga_store.errors import UsageError
from catga_store.model.times import from_ms
from catga_store.model.times import span_ms
from catga_store.protocol.conversation import Conversation
from catga_store.protocol.conversation import ask
from catga_store.protocol.keys import WAIT
from catga_store.protocol.keys import Key
from catga_store.protocol.keys import began_s
from catga_store.protocol.keys import new_commit_id
from catga_store.protocol.requests import REMEMBERED_COMMITS
from catga_store.protocol.requests import Applied
from catga_store.protocol.requests import Change
from catga_store.protocol.requests import Commit
from catga_store.protocol.requests import Outcome
from catga_store.protocol.requests import Read
from catga_store.protocol.requests import Record
from catga_store.protocol.requests import Refused
from catga_store.protocol.requests import Resolve

__all__ = ["Commits"]

_log = logging.getLogger(__name__)

_READ_MANY = 500


class Commits:
    """The operations of one store, as conversations over store protocol requests."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.limits = Limits(settings.retention, settings.max_record_bytes, settings.partitions)
        self._owner = settings.owner
        self._owner_pid = os.getpid()
        waits = settings.retention.waits
        self._retain_ms = None if waits is None else span_ms(waits, "a retention")

    @property
    def owner(self) -> str:
        """Who claims, unless told otherwise; a forked child is somebody else."""
        if self._owner is None or (self.settings.owner is None and os.getpid() != self._owner_pid):
            self._owner, self._owner_pid = default_owner(), os.getpid()

        return self._owner

    def now(self) -> datetime:
        """The store's clock, in whole milliseconds."""
        return from_ms(self.settings.now_ms())

    # commits --------------------------------------------------------------------------------------

    def commit(
        self, changes: tuple[Change, ...], now_ms: int, commit_id: str | None = None
    ) -> Conversation[tuple[str, Applied | Refused]]:
        commit_id = commit_id or new_commit_id()
        try:
            reply = yield Commit(commit_id, now_ms, changes, self._retain_ms)
        except CommitUncertainError as error:
            self._note(error, changes)
            raise

        return commit_id, reply

    def _commit_one(
        self, change: Change, now_ms: int, record: writes.AnyRecord | None = None
    ) -> Conversation[Outcome]:
        """A commit of one change; raises its conflict."""
        changes = (change,)
        writes.check_partition(changes, self.limits)
        try:
            reply = yield Commit(new_commit_id(), now_ms, changes, self._retain_ms)
        except CommitUncertainError as error:
            self._note(error, changes)
            raise

        if isinstance(reply, Refused):
            raise writes.conflict_error(change, reply.conflicts[0], record)

        outcome: Outcome = reply.outcomes[0]
        return outcome

    def _note(self, error: CommitUncertainError, changes: tuple[Change, ...]) -> None:
        """Keep with the error what `resolve_commit` answers from."""
        kept_until = began_s(error.commit_id) + 2 * self.settings.timeout
        error.parts = writes.parts_of(changes)  # type: ignore[attr-defined]  # for resolve
        error.kept_until = kept_until  # type: ignore[attr-defined]  # as above
        _log.warning("%s", error)

    def resolve_commit(self, error: object) -> Conversation[Receipt | None]:
        if not isinstance(error, CommitUncertainError):
            message = f"resolve_commit settles a CommitUncertainError, not {error!r}"
            raise UsageError(message)

        outcomes = yield from self._resolve(error)
        if outcomes is None:
            return None

        return writes.receipt_of(error.commit_id, _parts_of(error), outcomes)

    def _resolve(self, error: CommitUncertainError) -> Conversation[tuple[Outcome, ...] | None]:
        """What the changes of a commit did, `()` if only that it was applied is known; or `None`."""
        keys = tuple(Key(*key) for key in error.keys)
        parts = _parts_of(error)
        try:
            applied = yield from ask(Resolve(error.commit_id, keys))
        except CommitUncertainError as again:
            raise error from again  # the one that knows what was in the commit

        if applied is None:
            yield from self._check_forgotten(error, parts)
            return None

        outcomes: tuple[Outcome, ...] = applied.outcomes
        return outcomes if len(outcomes) == len(parts) else ()

    def _check_forgotten(
        self, error: CommitUncertainError, parts: Sequence[tuple[Key, str | None, int]]
    ) -> Conversation[None]:
        """Raise the error again if the commit may have been applied, and forgotten since.

        Its reply is kept for twice the timeout. Later only the records tell, which remember their
        last commits: it is not among those of a record that has not been written so often since.
        """
        if time.time() < getattr(error, "kept_until", math.inf):
            return

        puts = [(key, version) for key, _, version in parts if version > 0 and key.kind != WAIT]
        records = yield from self._read([key for key, _ in puts])
        for (_, version), record in zip(puts, records, strict=True):
            if record is None or record.head.version < version + REMEMBERED_COMMITS:
                return

        if puts:
            message = (
                f"commit {error.commit_id} cannot be settled any more: its reply was kept for twice"
                f" the timeout, and {puts[0][0]} was written so often since that it does not"
                " remember; look at what is stored before you act"
            )
            raise CommitUncertainError(message, **error.__dict__)

    def _read(self, keys: Sequence[Key]) -> Conversation[list[Record | None]]:
        """Read any number of records, 500 in one request."""
        now_ms = self.settings.now_ms()
        records: list[Record | None] = []

        for start in range(0, len(keys), _READ_MANY):
            records += yield Read(tuple(keys[start : start + _READ_MANY]), now_ms)

        return records


def _parts_of(error: CommitUncertainError) -> tuple[tuple[Key, str | None, int], ...]:
    """What was in a commit; of an error that does not know it, the keys alone."""
    keys = (Key(*key) for key in error.keys)
    parts: tuple[tuple[Key, str | None, int], ...] | None = getattr(error, "parts", None)
    return tuple((key, None, -1) for key in keys) if parts is None else parts

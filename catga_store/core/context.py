"""What every operation of one store shares, and the reading of any number of records.

Operations are plain functions: each takes the `Context` of its store first and returns a
conversation, as in `records.update(context, flow)`. The two APIs run the same functions.

How a conversation asks: `reply = yield request` where the reply goes straight into code that does
not depend on its type, `reply = yield from ask(request)` where the type checker should know the
type of the reply. `ask` costs a generator, so the operations that most programs repeat (`get`,
`update`, `commit`, `claim_due`) use the first form and annotate the reply.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from datetime import datetime

from attrs import field
from attrs import frozen

from catga_store.core.open_waiters import OpenWaiters
from catga_store.core.settings import Settings
from catga_store.core.writes import Limits
from catga_store.errors import CorruptRecordError
from catga_store.model.times import from_ms
from catga_store.model.times import span_ms
from catga_store.protocol.conversation import Conversation
from catga_store.protocol.keys import Key
from catga_store.protocol.requests import Read
from catga_store.protocol.requests import Record

__all__ = ["Context", "read_all", "read_what_can_be"]

_READ_MANY = 500
"""The most keys in one request."""
_MOST_CORRUPT = 8
"""Up to this many records that cannot be read cost one more request of all others each."""


def _random_text() -> str:
    return os.urandom(4).hex()


@frozen(eq=False)
class Context:
    """The settings of one store, and what follows from them."""

    settings: Settings
    limits: Limits
    retain_ms: int | None
    """How long ended wait conditions are kept; `None`: forever."""
    store: str = ""
    """Which store it is, for the `repr` of its sessions."""
    _random: str = field(factory=_random_text)
    waiters: OpenWaiters = field(factory=OpenWaiters)
    """The calls that wait, which closing the store ends."""

    @classmethod
    def of(cls, settings: Settings, store: str = "") -> Context:
        """The context of a store with these settings."""
        waits = settings.retention.waits
        return cls(
            settings,
            Limits(settings.retention, settings.max_record_bytes, settings.partitions),
            None if waits is None else span_ms(waits, "retention"),
            store,
        )

    @property
    def owner(self) -> str:
        """The owner of claims: the setting, or host, process and a random part.

        Computed for each claim, because a forked child is another owner.
        """
        owner = self.settings.owner
        return owner or f"{socket.gethostname()}-{os.getpid()}-{self._random}"

    def now(self) -> datetime:
        """The store's clock, in whole milliseconds."""
        return from_ms(self.settings.now_ms())


def read_all(context: Context, keys: Sequence[Key]) -> Conversation[list[Record | None]]:
    """Read any number of records, 500 in one request."""
    now_ms = context.settings.now_ms()
    records: list[Record | None] = []

    for start in range(0, len(keys), _READ_MANY):
        records += yield Read(tuple(keys[start : start + _READ_MANY]), now_ms)

    return records


def read_what_can_be(
    context: Context, keys: Sequence[Key]
) -> Conversation[tuple[dict[Key, Record], dict[Key, CorruptRecordError]]]:
    """Return the records that can be read, and an error for each that cannot.

    One more request for each of the first few that cannot; after these, one for each record.
    """
    if not keys:
        return {}, {}

    found: dict[Key, Record] = {}
    corrupt: dict[Key, CorruptRecordError] = {}
    left = list(keys)

    while len(corrupt) < _MOST_CORRUPT:
        try:
            records = yield from read_all(context, left)
        except CorruptRecordError as error:
            if error.key is None:
                raise  # not a record but all of the store

            key = Key(*error.key)
            if key not in left:
                break

            corrupt[key] = error
            left.remove(key)
        else:
            pairs = zip(left, records, strict=True)
            return {key: record for key, record in pairs if record is not None}, corrupt

    for key in left:
        try:
            (one,) = yield from read_all(context, [key])
        except CorruptRecordError as error:
            corrupt[key] = error
        else:
            found |= {} if one is None else {key: one}

    return found, corrupt

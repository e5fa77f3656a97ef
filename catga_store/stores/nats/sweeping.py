"""How the NATS store removes what has expired and what nothing points to.

An index entry that does not match its record may belong to a commit in flight. It is removed
when it is ten minutes old, and only if it was not written again. Chunks that no record names go
after an hour. What is left of dropped parts was purged when they were dropped; it is purged again here,
and then the entry goes that says so. How old something is the server's clock decides: that of this
process, or of the one that wrote it, may be wrong by hours.
"""

from __future__ import annotations

import logging
import time
from datetime import datetime
from typing import Any

from catga_store.errors import CatgaStoreError
from catga_store.errors import CommitUncertainError
from catga_store.errors import CorruptRecordError
from catga_store.errors import StoreUnavailableError
from catga_store.protocol.conversation import Conversation
from catga_store.protocol.keys import WAIT
from catga_store.protocol.keys import Key
from catga_store.protocol.keys import began_s
from catga_store.protocol.keys import part_key
from catga_store.protocol.requests import Sweep
from catga_store.stores.nats.answers import Deadline
from catga_store.stores.nats.changes import NatsChanges
from catga_store.stores.nats.listings import NatsListings
from catga_store.stores.nats.part_text import decode_part
from catga_store.stores.nats.reading import NatsReader
from catga_store.stores.nats.record_text import Stored
from catga_store.stores.nats.tables import NatsTables

__all__ = ["NatsSweeper"]

_log = logging.getLogger(__name__)

_ENTRY_SECONDS = 600
_CHUNK_SECONDS = 3600
_STAMP = len("2026-01-01T00:00:00")


class NatsSweeper:
    """Removes what is in the way."""

    def __init__(self, reader: NatsReader, changes: NatsChanges, listings: NatsListings) -> None:
        self._reader = reader
        self._changes = changes
        self._listings = listings
        self._layout = reader.layout
        self._exchange = reader.exchange

    def sweep(self, request: Sweep) -> Conversation[int]:
        """`Sweep`."""
        removed = yield from self.expired(request)
        yield from self._dead()
        yield from self._entries()
        yield from self._chunks()
        yield from self._pieces()
        return removed

    def _dead(self) -> Conversation[None]:
        """Purge what is left of parts that were dropped."""
        deadline = self._exchange.deadline()
        entries = f"{self._layout.due('dead')}>"
        (names,) = yield from self._exchange.names([entries], deadline)
        stored = yield from self._exchange.fetch(names, deadline)
        for name in names:
            sequence = stored[name].sequence
            if not sequence:
                continue  # another sweep was first

            flow_id, life = self._layout.dead_life(name)
            yield from self._exchange.purged(self._layout.parts_of(flow_id), sequence, deadline)
            yield from self._exchange.purged(self._layout.pieces_of(flow_id, life), None, deadline)
            yield from self._exchange.forget([(name, sequence + 1)])

    def _pieces(self) -> Conversation[None]:
        """Remove pieces of bodies of parts that no part names."""
        deadline = self._exchange.deadline()
        (names,) = yield from self._exchange.names([self._layout.first_pieces()], deadline)
        before = time.time() - _CHUNK_SECONDS
        aged = {
            name: (generation, part)
            for name, (_, generation, part) in zip(
                names, map(self._layout.piece_owner, names), strict=True
            )
            if began_s(generation.rpartition(".")[2]) < before
        }
        if not aged:
            return

        stored = yield from self._exchange.fetch(
            [*aged, *(part for _, part in aged.values())], deadline
        )
        before = (yield from self._server_time(deadline)) - _CHUNK_SECONDS
        yield from self._exchange.forget(
            (f"{name.rpartition('.')[0]}.*", None)
            for name, (generation, part) in aged.items()
            if stored[name].sequence
            and _moment(stored[name].stamp) < before
            and _generation_of_part(stored[part]) not in (generation, None)
        )

    def expired(self, request: Sweep) -> Conversation[int]:
        """Remove expired records, each with all that belongs to it; return how many."""
        keys = yield from self._listings.expired(request.now_ms, request.limit)
        removed = 0

        for key in keys:
            try:
                removed += yield from self._changes.remove_expired(key, request)
            except (StoreUnavailableError, CommitUncertainError):
                raise
            except CatgaStoreError as error:  # the others are removed all the same
                _log.warning(
                    "%s has expired but could not be removed; a later sweep tries again: %s",
                    key,
                    error,
                )

        return removed

    def _entries(self) -> Conversation[None]:
        """Remove entries that were met and did not match their record, if they still do not."""
        doubted, self._listings.doubted = self._listings.doubted, {}
        if not doubted:
            return

        deadline = self._exchange.deadline()
        stored = yield from self._exchange.fetch(doubted, deadline)
        before = (yield from self._server_time(deadline)) - _ENTRY_SECONDS
        old = {
            subject: doubted[subject]
            for subject, entry in stored.items()
            if entry.sequence and _moment(entry.stamp) < before
        }

        def wrong(tables: NatsTables) -> list[str]:
            return [one for one, key in old.items() if self._is_wrong(tables, key, one)]

        subjects = [self._layout.subject(key) for key in old.values()]
        gone, _ = yield from self._reader.decide(wrong, subjects, deadline)
        yield from self._exchange.forget((one, stored[one].sequence + 1) for one in gone)

    def _is_wrong(self, tables: NatsTables, key: Key, entry: str) -> bool:
        try:
            return entry not in self._reader.entries_of(tables, key)
        except CorruptRecordError:
            return False  # what belongs to it stays, too

    def _chunks(self) -> Conversation[None]:
        deadline = self._exchange.deadline()
        (names,) = yield from self._exchange.names([self._layout.first_chunks()], deadline)
        before = time.time() - _CHUNK_SECONDS
        aged = [
            (generation, key)
            for generation, key in map(self._layout.chunk_owner, names)
            if began_s(generation) < before
        ]
        if not aged:
            return

        def unnamed(tables: NatsTables) -> list[tuple[str, Key]]:
            return [
                (generation, key)
                for generation, key in aged
                if _generation_of(tables, key) not in (generation, None)
            ]

        subjects = [self._layout.subject(key) for _, key in aged]
        unused, _ = yield from self._reader.decide(unnamed, subjects, deadline)
        if not unused:
            return

        firsts = [self._layout.chunk(key, generation, 0) for generation, key in unused]
        stored = yield from self._exchange.fetch(firsts, deadline)
        before = (yield from self._server_time(deadline)) - _CHUNK_SECONDS
        yield from self._exchange.forget(
            (self._layout.chunks(key, generation), None)
            for (generation, key), first in zip(unused, firsts, strict=True)
            if stored[first].sequence and _moment(stored[first].stamp) < before
        )

    def _server_time(self, deadline: Deadline) -> Conversation[float]:
        info = yield from self._exchange.call("INFO", {}, deadline)
        return _moment(info["ts"])


def _generation_of(tables: NatsTables, key: Key) -> str | None:
    """The chunks that a record names; `None` if it cannot be read."""
    try:
        if key.kind == WAIT:
            wait = tables.wait_record(key)
            return "" if wait is None else wait.terms.generation

        found: Any = tables.plain(key)
    except CorruptRecordError:
        return None

    return "" if found is None else found[1].generation


def _generation_of_part(stored: Stored) -> str | None:
    """The pieces that a part names, of whichever life; `None` if it cannot be read."""
    if stored.text is None:
        return ""

    try:
        return decode_part(part_key("", ""), stored.text).body.generation
    except CorruptRecordError:
        return None


def _moment(stamp: str) -> float:
    """The server's time, in seconds; its nanoseconds do not matter."""
    return datetime.fromisoformat(f"{stamp[:_STAMP]}+00:00").timestamp()

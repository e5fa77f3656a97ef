"""How the NATS store reads: a rule runs over what was read, and again with what it missed."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterable
from typing import NamedTuple
from typing import TypeVar

from catga_store.errors import CorruptRecordError
from catga_store.protocol.conversation import Conversation
from catga_store.protocol.keys import PART
from catga_store.protocol.keys import WAIT
from catga_store.protocol.keys import Key
from catga_store.stores.nats.answers import Deadline
from catga_store.stores.nats.exchange import NatsExchange
from catga_store.stores.nats.layout import NatsLayout
from catga_store.stores.nats.layout import entries_of_flow
from catga_store.stores.nats.layout import entries_of_root
from catga_store.stores.nats.layout import entries_of_wait
from catga_store.stores.nats.layout import root_of
from catga_store.stores.nats.record_text import Body
from catga_store.stores.nats.record_text import decode_record
from catga_store.stores.nats.tables import NatsTables
from catga_store.stores.nats.tables import Snapshot
from catga_store.stores.nats.tables import UnreadError

__all__ = ["UNKNOWN", "Known", "NatsReader", "keep"]

K = TypeVar("K")
T = TypeVar("T")

_CHUNKS_AT_ONCE = 16
_KEPT = 10_000
_TRUSTED = 50_000
_KEPT_TERMS = 64


class Known(NamedTuple):
    """What this process knows of a record that it wrote, or whose chunks it read, by revision."""

    commits: tuple[str, ...]
    generation: str


UNKNOWN = Known((), "")


class NatsReader:
    """Runs rules over records of the stream, and remembers what saves reading them again."""

    def __init__(self, layout: NatsLayout, exchange: NatsExchange) -> None:
        self.layout = layout
        self.exchange = exchange
        self._known: dict[str, Known] = {}
        self._terms: dict[tuple[Key, str], bytes] = {}
        self._trusted: dict[str, int] = {}
        """Revisions of flows that were read or written, and the exchange's `trust` of then."""

    def decide(
        self,
        rule: Callable[[NatsTables], T],
        subjects: Iterable[str],
        deadline: Deadline,
        commit_id: str = "",
    ) -> Conversation[tuple[T, NatsTables]]:
        """Run a rule over what it needs, read as it asks for it."""
        trust, epoch = self.exchange.trust, self.exchange.epoch
        snapshot = Snapshot(bodies=dict(self._terms))
        snapshot.stored |= yield from self.exchange.fetch(subjects, deadline)

        while True:
            tables = NatsTables(self.layout, snapshot, commit_id, epoch)
            try:
                result = rule(tables)
            except UnreadError as unread:
                missing = unread
            else:
                if trust == self.exchange.trust:  # else something may have come in between
                    for revision in tables.revisions:
                        if self._trusted.get(revision) != trust:
                            keep(self._trusted, revision, trust, _TRUSTED)

                return result, tables

            yield from self._fill(snapshot, missing, deadline)

    def _fill(
        self, snapshot: Snapshot, missing: UnreadError, deadline: Deadline
    ) -> Conversation[None]:
        snapshot.stored |= yield from self.exchange.fetch(missing.subjects, deadline)
        if missing.filters:
            found = yield from self.exchange.names(missing.filters, deadline)
            snapshot.listed |= dict(zip(missing.filters, found, strict=True))

        if missing.body is not None:
            yield from self._fill_body(snapshot, *missing.body, deadline)

    def _fill_body(
        self, snapshot: Snapshot, key: Key, body: Body, deadline: Deadline
    ) -> Conversation[None]:
        chunks = [self.layout.chunk(key, body.generation, number) for number in range(body.count)]
        parts: list[bytes] = []

        for start in range(0, len(chunks), _CHUNKS_AT_ONCE):
            some = chunks[start : start + _CHUNKS_AT_ONCE]
            found = yield from self.exchange.fetch(some, deadline)
            parts += [found[chunk].text or b"" for chunk in some]

        text = b"".join(parts)
        if len(text) == body.size:
            snapshot.bodies[key, body.generation] = text
            record = snapshot.stored[self.layout.subject(key)]
            if key.kind == PART:
                return

            if key.kind == WAIT:
                keep(self._terms, (key, body.generation), text, _KEPT_TERMS)
            else:
                plain = decode_record(key, record)
                assert plain is not None  # noqa: S101  for the type checker: it named the chunks
                self.remember(plain[0].revision, Known(plain[0].commits, body.generation))

            return

        # Chunks go only after what named them, or its root: if that is still there, they are lost.
        subjects = [self.layout.subject(key)]
        if key.kind == PART:
            subjects.append(self.layout.subject(root_of(key.id)))

        before = [snapshot.stored[subject].sequence for subject in subjects]
        snapshot.stored |= yield from self.exchange.fetch(subjects, deadline)
        if [snapshot.stored[subject].sequence for subject in subjects] == before:
            message = (
                f"{key} cannot be read, because chunks of its body are missing; nothing was changed"
            )
            raise CorruptRecordError(message, key=tuple(key))

    def entries_of(self, tables: NatsTables, key: Key) -> frozenset[str]:
        """The index entries that the record of a flow or condition verifies, or the root of parts."""
        if key.kind == PART:
            expires_ms = tables.parts_of_flows.expires_ms(key.id)
            return entries_of_root(self.layout, key.id, expires_ms)

        if key.kind == WAIT:
            row = tables.wait(key)
            return frozenset() if row is None else entries_of_wait(self.layout, key, row)

        head = tables.head(key)
        return frozenset() if head is None else entries_of_flow(self.layout, key, head)

    # what is remembered ---------------------------------------------------------------------------

    def trusted(self, revision: str) -> Known | None:
        """Return what is known of a record, if the stream has not gone back since; else `None`."""
        exchange = self.exchange
        if not exchange.is_near or self._trusted.get(revision) != exchange.trust:
            return None

        return self._known.get(revision, UNKNOWN)

    def remember(self, revision: str, known: Known, trust: int | None = None) -> None:
        """Keep what is known of the record that has this revision.

        `trust` is that of the exchange before the record was written, if it is to be relied upon.
        """
        kept = self._known
        kept[revision] = known
        if len(kept) > _KEPT:
            del kept[next(iter(kept))]

        if trust is not None:
            trusted = self._trusted
            trusted[revision] = trust
            if len(trusted) > _TRUSTED:
                del trusted[next(iter(trusted))]


def keep(kept: dict[K, T], name: K, value: T, most: int) -> None:
    """Remember something, and forget what was remembered first."""
    kept[name] = value
    if len(kept) > most:
        del kept[next(iter(kept))]

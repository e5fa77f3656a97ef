"""How the NATS store finds records: by the names of index entries, verified against heads.

An entry is a hint: what it says of a record is believed only when the record's head says so too.
"""

from __future__ import annotations

import logging
import sys
from bisect import bisect_right
from collections import ChainMap
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sized
from functools import partial
from itertools import islice
from typing import TypeVar

from catga_store.errors import CorruptRecordError
from catga_store.protocol import rules
from catga_store.protocol.conversation import Conversation
from catga_store.protocol.failures import warn_passed_over
from catga_store.protocol.keys import FLOW
from catga_store.protocol.keys import PART
from catga_store.protocol.keys import PROGRESS
from catga_store.protocol.keys import WAIT
from catga_store.protocol.keys import Key
from catga_store.protocol.keys import flow_key
from catga_store.protocol.requests import PENDING
from catga_store.protocol.requests import Count
from catga_store.protocol.requests import Due
from catga_store.protocol.requests import DueWaits
from catga_store.protocol.requests import Filter
from catga_store.protocol.requests import Find
from catga_store.protocol.requests import Found
from catga_store.protocol.requests import Head
from catga_store.protocol.requests import Overdue
from catga_store.protocol.requests import Scan
from catga_store.protocol.requests import Scanned
from catga_store.protocol.rules import WaitRow
from catga_store.protocol.rules.expiry import has_expired
from catga_store.stores.nats.answers import Deadline
from catga_store.stores.nats.ids import NatsIds
from catga_store.stores.nats.layout import LAST_TIME
from catga_store.stores.nats.layout import SLOTTED
from catga_store.stores.nats.layout import TIMES
from catga_store.stores.nats.layout import NatsIndexEntry
from catga_store.stores.nats.layout import NatsLayout
from catga_store.stores.nats.layout import between
from catga_store.stores.nats.layout import entries_of_flow
from catga_store.stores.nats.layout import entries_of_root
from catga_store.stores.nats.layout import entries_of_wait
from catga_store.stores.nats.layout import first_slot
from catga_store.stores.nats.layout import last_slot
from catga_store.stores.nats.layout import place_of
from catga_store.stores.nats.layout import root_of
from catga_store.stores.nats.layout import slot_of
from catga_store.stores.nats.reading import NatsReader
from catga_store.stores.nats.reading import keep
from catga_store.stores.nats.searching import Search
from catga_store.stores.nats.searching import nearest
from catga_store.stores.nats.searching import next_reach
from catga_store.stores.nats.searching import span
from catga_store.stores.nats.tables import NatsTables

__all__ = ["NatsListings", "due_first", "look_at", "unread_due"]

T = TypeVar("T")

_log = logging.getLogger(__name__)

_OWNED = (PROGRESS, PART)
_PAGE = 100
_LEAST_ENTRIES = 16
_MOST_DOUBTED = 1000
_MOST_WANTED = 400
"""The most entries that are looked for at once; the server names no more than 1,024 in one answer."""
_MOST_NAMED_BY_ID = 2000
"""Of more flows with a prefix, those of a status or type are chosen by names before heads are read."""
_A_SECOND_OF_SLOTS = 1_000_000
_A_MINUTE_OF_SLOTS = 60 * _A_SECOND_OF_SLOTS
_SECONDS_10 = 10_000
_KEPT_REACHES = 1000


class NatsListings:
    """Finds records of one store."""

    def __init__(self, reader: NatsReader) -> None:
        self._reader = reader
        self._layout = reader.layout
        self._exchange = reader.exchange
        self._reach: dict[tuple[str, ...], int] = {}
        """By what entries begin with: how far one must look to see more than were wanted last time."""
        self._newest: dict[tuple[str, ...], int] = {}
        """Likewise, down to which place a listing looked that began with the newest."""
        self._ids = NatsIds(reader)
        self.doubted: dict[str, Key] = {}
        """Entries that did not match their records when they were met."""

    # what is due ----------------------------------------------------------------------------------

    def _named(
        self, prefixes: Iterable[str], covering: list[str], most: int, deadline: Deadline
    ) -> Conversation[tuple[list[NatsIndexEntry], int]]:
        filters = [f"{prefix}{one}" for prefix in prefixes for one in covering]
        if not most:
            found = yield from self._exchange.names(filters, deadline)
            return [self._layout.entry(name) for some in found for name in some], 0

        names, more = yield from self._exchange.names_at_once(filters, deadline, most)
        return list(map(self._layout.entry, names)), more

    def oldest_pages(  # noqa: PLR0917  it is the loop of three callers
        self,
        prefixes: tuple[str, ...],
        now_ms: int,
        limit: int,
        look: Callable[[list[NatsIndexEntry]], Conversation[None]],
        found: Sized,
        deadline: Deadline,
        *,
        whole_ms: bool = False,
        begin_ms: int | None = None,
    ) -> Conversation[None]:
        """Look at entries whose time has come, oldest first, until enough prove right, or all.

        `begin_ms`: only at those of that time and later.
        """
        last = last_slot(now_ms)
        start, first = 0, self._reach.get(prefixes, last)
        if begin_ms is not None:
            start, first = first_slot(begin_ms), _A_MINUTE_OF_SLOTS
        while start <= last and len(found) < limit:
            low = start

            def until(
                reach: int, most: int, low: int = low
            ) -> Conversation[tuple[list[NatsIndexEntry], int]]:
                covering = between(low, low + reach, SLOTTED)
                return (yield from self._named(prefixes, covering, most, deadline))

            def distance(entry: NatsIndexEntry, low: int = low) -> int:
                return slot_of(entry) - low

            wanted = max(min(limit - len(found), _MOST_WANTED), 1)
            search = Search(
                first,
                last - low,
                _A_SECOND_OF_SLOTS,
                distance,
                oldest_first=True,
                start=low,
                whole_ms=whole_ms,
            )
            entries, reach = yield from nearest(until, search, wanted)
            if begin_ms is None and not start:
                reached = next_reach(search, entries, reach, wanted)
                keep(self._reach, prefixes, reached, _KEPT_REACHES)

            first = span(search, entries)
            yield from look_at(entries, limit, look, found)
            start += reach + 1

    def due(self, request: Due) -> Conversation[tuple[Found, ...]]:
        """`Due`."""
        deadline = self._exchange.deadline()
        now_ms, until_ms, limit = request.now_ms, request.until_ms, request.limit
        flows: dict[Key, Found] = {}
        waits: dict[Key, Found] = {}

        def flows_of(entries: list[NatsIndexEntry]) -> Conversation[None]:
            read = yield from self._found(entries, _short_record, _entries_of_record, deadline)
            for key, (head, body) in read.items():
                if _is_due(head, until_ms, now_ms) and request.wants(head):
                    flows[key] = Found(key, head, body=body)

        def waits_of(entries: list[NatsIndexEntry]) -> Conversation[None]:
            rows = yield from self.waits(entries, deadline)
            ready = _notifying(rows, until_ms)
            for key in (yield from self._with_parent_of(ready, request, deadline)):
                waits[key] = Found(key, ready[key].head)

        def any_of(entries: list[NatsIndexEntry]) -> Conversation[None]:
            if of_flows := _of_kind(FLOW, entries):
                yield from flows_of(of_flows)

            if of_waits := _of_kind(WAIT, entries):
                yield from waits_of(of_waits)

        prefixes = self._layout.due_of(request.types, request.tags)
        child = (self._layout.due("child"),)
        # One search, which finds all where little is due; where it is full, there may be more of either.
        both: Sized = ChainMap(flows, waits)
        yield from self.oldest_pages(prefixes + child, until_ms, limit, any_of, both, deadline)
        if 1 < limit <= len(both):
            yield from self.oldest_pages(prefixes, until_ms, limit, flows_of, flows, deadline)
            yield from self.oldest_pages(child, until_ms, limit, waits_of, waits, deadline)

        found = sorted(flows.values(), key=due_first)[:limit]
        picked = request.picks(len(found))
        found = [
            one._replace(picked=True) if place in picked else one._replace(body=None)
            for place, one in enumerate(found)
        ]
        found += sorted(waits.values(), key=due_first)[:limit]
        return tuple(sorted(found, key=lambda one: one.head.due_ms or 0))

    def _with_parent_of(
        self, rows: dict[Key, WaitRow], request: Due, deadline: Deadline
    ) -> Conversation[list[Key]]:
        if (request.types is None and not request.tags) or not rows:
            return list(rows)

        now_ms = request.now_ms

        parents = yield from self.flows(
            [NatsIndexEntry(0, flow_key(row.parent or "")) for row in rows.values()], deadline
        )
        kept: list[Key] = []
        for key, row in rows.items():
            parent = parents.get(flow_key(row.parent or ""))
            gone = parent is None or has_expired(parent, now_ms)
            if gone or (parent is not None and request.wants(parent)):
                kept.append(key)

        return kept

    def due_waits(self, request: DueWaits) -> Conversation[tuple[tuple[Found, ...], ...]]:
        """`DueWaits`."""
        deadline = self._exchange.deadline()
        now_ms = request.now_ms
        found: dict[str | None, list[Found]] = {parent: [] for parent in request.parents}
        prefixes = [self._layout.listing(Filter(WAIT, parent=parent)) for parent in request.parents]
        entries, more = yield from self._named(prefixes, [">"], _MOST_WANTED, deadline)
        if more:
            entries, _ = yield from self._named(prefixes, [">"], 0, deadline)

        entries = list({entry.key: entry for entry in entries}.values())
        for page in _pages(entries, len(entries)):
            rows = yield from self.waits(page, deadline, strict=True)
            for key, row in rows.items():
                head = row.head
                if row.parent in found and head.status >= 0 and _is_due(head, now_ms, now_ms):
                    found[row.parent].append(Found(key, head))

        for some in found.values():
            some.sort(key=lambda one: (-one.head.created_ms, one.key.id))

        return tuple(tuple(some[: request.limit]) for some in found.values())

    def overdue(self, request: Overdue) -> Conversation[tuple[Found, ...]]:
        """`Overdue`."""
        deadline = self._exchange.deadline()
        prefixes = (self._layout.due("child"), self._layout.due("lone"))
        now_ms, limit = request.now_ms, request.limit
        found: dict[Key, Found] = {}

        def look(entries: list[NatsIndexEntry]) -> Conversation[None]:
            unreadable: dict[Key, CorruptRecordError] = {}
            rows = yield from self.waits(entries, deadline, unreadable=unreadable)
            for key, row in rows.items():
                due_ms = row.head.due_ms
                if row.head.status == PENDING and due_ms is not None and due_ms <= now_ms:
                    found[key] = Found(key, row.head)

            found.update(unread_due(entries, unreadable))

        most = sys.maxsize if limit is None else limit
        yield from self.oldest_pages(prefixes, now_ms, most, look, found, deadline, whole_ms=True)

        return tuple(sorted(found.values(), key=due_first)[:limit])

    def expired(self, now_ms: int, limit: int) -> Conversation[list[Key]]:
        """Flows and conditions that have expired, and parts whose flow never came."""
        deadline = self._exchange.deadline()
        found: dict[Key, None] = {}

        def look(entries: list[NatsIndexEntry]) -> Conversation[None]:
            flows = yield from self.flows(_of_kind(FLOW, entries), deadline)
            waits = yield from self.waits(_of_kind(WAIT, entries), deadline)
            heads = flows | {key: row.head for key, row in waits.items()}
            times = {key: head.expires_ms for key, head in heads.items()}
            times |= yield from self._orphans(_of_kind(PART, entries), deadline)
            for key, expires_ms in times.items():
                if expires_ms is not None and expires_ms <= now_ms:
                    found[key] = None

        prefixes = (self._layout.due("expiry"),)
        yield from self.oldest_pages(prefixes, now_ms, limit, look, found, deadline)
        return list(found)[:limit]

    def _orphans(
        self, entries: list[NatsIndexEntry], deadline: Deadline
    ) -> Conversation[dict[Key, int | None]]:
        """When parts expire whose flow never came."""
        keys = list(dict.fromkeys(entry.key for entry in entries))

        def look_at(tables: NatsTables, key: Key) -> int | None:
            try:
                return tables.parts_of_flows.expires_ms(key.id)
            except CorruptRecordError as error:
                warn_passed_over(_log, error)
                return None

        times, _ = yield from self._reader.decide(
            lambda tables: [look_at(tables, key) for key in keys],
            [self._layout.subject(root_of(key.id)) for key in keys],
            deadline,
        )
        found = dict(zip(keys, times, strict=True))
        verified = {
            key: entries_of_root(self._layout, key.id, expires_ms)
            for key, expires_ms in found.items()
        }
        self._doubt(entries, verified)
        return found

    # heads ----------------------------------------------------------------------------------------

    def flows(
        self,
        entries: Iterable[NatsIndexEntry],
        deadline: Deadline,
        *,
        unreadable: dict[Key, CorruptRecordError] | None = None,
    ) -> Conversation[dict[Key, Head]]:
        """The heads of flows. What cannot be read is put into `unreadable`, or is logged and passed over."""
        return (
            yield from self._found(
                entries, NatsTables.head, entries_of_flow, deadline, unreadable=unreadable
            )
        )

    def waits(
        self,
        entries: Iterable[NatsIndexEntry],
        deadline: Deadline,
        *,
        strict: bool = False,
        unreadable: dict[Key, CorruptRecordError] | None = None,
    ) -> Conversation[dict[Key, WaitRow]]:
        """The rows of conditions. What cannot be read is handled as above, or raises if this is `strict`."""
        return (
            yield from self._found(
                entries,
                NatsTables.wait,
                entries_of_wait,
                deadline,
                strict=strict,
                unreadable=unreadable,
            )
        )

    def _found(
        self,
        entries: Iterable[NatsIndexEntry],
        look: Callable[[NatsTables, Key], T | None],
        entries_of: Callable[[NatsLayout, Key, T], frozenset[str]],
        deadline: Deadline,
        *,
        strict: bool = False,
        unreadable: dict[Key, CorruptRecordError] | None = None,
    ) -> Conversation[dict[Key, T]]:
        entries = list(entries)
        keys = list(dict.fromkeys(entry.key for entry in entries))

        def look_at(tables: NatsTables, key: Key) -> T | CorruptRecordError | None:
            try:
                return look(tables, key)
            except CorruptRecordError as error:
                if strict:
                    raise

                return error

        heads, _ = yield from self._reader.decide(
            lambda tables: [look_at(tables, key) for key in keys],
            [self._layout.subject(key) for key in keys],
            deadline,
        )
        found: dict[Key, T] = {}
        for key, head in zip(keys, heads, strict=True):
            if isinstance(head, CorruptRecordError):
                if unreadable is None:
                    warn_passed_over(_log, head)
                else:
                    unreadable[key] = head

                entries = [entry for entry in entries if entry.key != key]
            elif head is not None:
                found[key] = head

        verified = {key: entries_of(self._layout, key, head) for key, head in found.items()}
        self._doubt(entries, verified)
        return found

    def _doubt(self, entries: list[NatsIndexEntry], verified: dict[Key, frozenset[str]]) -> None:
        for entry in entries:
            if (
                entry.subject
                and entry.subject not in verified.get(entry.key, ())
                and len(self.doubted) < _MOST_DOUBTED
            ):
                self.doubted[entry.subject] = entry.key

    # listings -------------------------------------------------------------------------------------

    def find(self, request: Find) -> Conversation[tuple[Found, ...]]:
        """`Find`: windows of time, latest first, until the page is full; or by id, see `_find_by_id`."""
        deadline = self._exchange.deadline()
        wanted = request.filter
        if wanted.id_prefix is not None:
            return (yield from self._find_by_id(request, wanted.id_prefix, deadline))

        prefixes = (self._layout.listing(wanted),)
        found: list[Found] = []

        lowest = 0
        if wanted.created_after_ms is not None:
            lowest = place_of(wanted.created_after_ms)

        high: int = _upper_of(request)
        # What was made later than now comes with the first that was not.
        base: int = min(high, max(place_of(request.now_ms), lowest))
        seen = 0
        while base >= lowest and len(found) < request.limit:
            top, start = high, base

            def until(
                reach: int, most: int, top: int = top, start: int = start
            ) -> Conversation[tuple[list[NatsIndexEntry], int]]:
                covering = between(start - reach, top, TIMES)
                return (yield from self._named(prefixes, covering, most, deadline))

            def distance(entry: NatsIndexEntry, start: int = start) -> int:
                return max(start - place_of(entry.ms), 0)

            # Where few flows match, the windows grow.
            number = max(min(max(request.limit - len(found), seen), _MOST_WANTED), 1)
            farthest = base - lowest
            first, stride = self._first_reach(request, base, farthest), _SECONDS_10
            search = Search(first, farthest, stride, distance)
            entries, reach = yield from nearest(until, search, number)
            self._keep_reach(request, base, next_reach(search, entries, reach, number))
            seen += len(entries)
            yield from self._fill(found, entries, request, deadline)
            base -= reach + 1
            high = base

        return tuple(found[: request.limit])

    def _first_reach(self, request: Find, base: int, farthest: int) -> int:
        """How far a listing looks first: to the same place as last time, or as far."""
        if request.filter.parent is not None:  # those of one parent are few
            return farthest

        prefixes = (self._layout.listing(request.filter),)
        if request.after is None and prefixes in self._newest:
            return max(base - self._newest[prefixes], 0)

        return self._reach.get(prefixes, _SECONDS_10)

    def _keep_reach(self, request: Find, base: int, reach: int) -> None:
        prefixes = (self._layout.listing(request.filter),)
        if request.filter.parent is not None:
            return

        if request.after is None:
            keep(self._newest, prefixes, base - reach, _KEPT_REACHES)
        else:
            keep(self._reach, prefixes, reach, _KEPT_REACHES)

    def _fill(
        self,
        found: list[Found],
        entries: Iterable[NatsIndexEntry],
        request: Find,
        deadline: Deadline,
    ) -> Conversation[None]:
        """Add to a page what proves right of these entries, until it is full."""
        # Several may name one record, while it changes: its head decides, once.
        ordered = sorted({(-entry.ms, entry.key.id): entry for entry in entries}.items())
        left = (entry for _, entry in ordered if _is_wanted(entry, request.filter, request.after))
        seen = 0
        while len(found) < request.limit:
            # Where few flows match, the pages grow.
            size = max(request.limit - len(found), min(seen, _PAGE * 5), _LEAST_ENTRIES)
            page = list(islice(left, size))
            seen += len(page)
            if not page:
                return

            found += yield from self._matching(page, request.filter, request.now_ms, deadline)

    def _matching(
        self, entries: list[NatsIndexEntry], wanted: Filter, now_ms: int, deadline: Deadline
    ) -> Conversation[list[Found]]:
        parents: dict[Key, str | None] = {}
        unreadable: dict[Key, CorruptRecordError] = {}
        if wanted.kind == FLOW:
            heads = yield from self.flows(entries, deadline, unreadable=unreadable)
        else:
            rows = yield from self.waits(entries, deadline, unreadable=unreadable)
            heads = {key: row.head for key, row in rows.items()}
            parents = {key: row.parent for key, row in rows.items()}

        found: dict[Key, Found] = {}
        for entry in entries:
            head = heads.get(entry.key)
            if (
                head is not None
                and entry.key not in found
                and head.status >= 0
                and head.created_ms == entry.ms
                and wanted.parent in (None, parents.get(entry.key))
                and _is_in_listing(head, wanted, now_ms)
            ):
                found[entry.key] = Found(entry.key, head)
            elif entry.key in unreadable:
                error = unreadable[entry.key]
                found.setdefault(entry.key, Found.unreadable(entry.key, entry.ms, error))

        return list(found.values())

    def _named_by_id(
        self, wanted: Filter, prefix: str, deadline: Deadline
    ) -> Conversation[list[Key]]:
        """The flows whose id begins with a prefix, by id; those with another status or type may be among them."""
        ids = yield from self._ids.beginning_with(prefix, deadline)
        if len(ids) > _MOST_NAMED_BY_ID and (
            wanted.status is not None or wanted.type or wanted.tags
        ):
            names = yield from self._exchange.names([f"{self._layout.listing(wanted)}>"], deadline)
            listed = {self._layout.entry(name).key.id for some in names for name in some}
            ids = [one for one in ids if one in listed]

        return list(map(flow_key, ids))

    def _find_by_id(
        self, request: Find, prefix: str, deadline: Deadline
    ) -> Conversation[tuple[Found, ...]]:
        keys = yield from self._named_by_id(request.filter, prefix, deadline)
        if request.after is not None:
            keys = keys[bisect_right(keys, flow_key(request.after[1])) :]

        found: list[Found] = []
        entries = [NatsIndexEntry(0, key) for key in keys]
        for page in _pages(entries, request.limit):
            found += yield from self._matching_by_id(page, request.filter, request.now_ms, deadline)
            if len(found) >= request.limit:
                break

        return tuple(found[: request.limit])

    def _matching_by_id(
        self, entries: list[NatsIndexEntry], wanted: Filter, now_ms: int, deadline: Deadline
    ) -> Conversation[list[Found]]:
        unreadable: dict[Key, CorruptRecordError] = {}
        heads = yield from self.flows(entries, deadline, unreadable=unreadable)
        found: list[Found] = []
        for _, key, _ in entries:
            if key in unreadable:
                found.append(Found.unreadable(key, 0, unreadable[key]))
            elif key in heads and _is_in_listing(heads[key], wanted, now_ms):
                found.append(Found(key, heads[key]))

        return found

    def count(self, request: Count) -> Conversation[int]:
        """`Count`: heads are read, because entries are hints."""
        deadline = self._exchange.deadline()
        wanted = request.filter
        if wanted.id_prefix is not None:
            keys = yield from self._named_by_id(wanted, wanted.id_prefix, deadline)
            total = 0
            for page in _pages([NatsIndexEntry(0, key) for key in keys], len(keys)):
                total += len(
                    (yield from self._matching_by_id(page, wanted, request.now_ms, deadline))
                )

            return total

        (names,) = yield from self._exchange.names([f"{self._layout.listing(wanted)}>"], deadline)
        entries = [
            entry
            for entry in sorted({self._layout.entry(name) for name in names})
            if _is_wanted(entry, wanted, None)
        ]
        total = 0

        for page in _pages(entries, len(entries)):
            total += len((yield from self._matching(page, wanted, request.now_ms, deadline)))

        return total

    def scan(self, request: Scan) -> Conversation[tuple[Scanned, ...]]:
        """`Scan`."""
        deadline = self._exchange.deadline()
        if request.kind == PART:
            return (yield from self._scan_parts(request, deadline))

        (names,) = yield from self._exchange.names([self._layout.all_of(request.kind)], deadline)
        keys = sorted(map(self._layout.key, names))
        keys = [key for key in keys if request.after is None or key > request.after]

        for start in range(0, len(keys), request.limit):
            page = keys[start : start + request.limit]
            found = yield from self._scanned(page, request.now_ms, deadline)
            if found:
                return tuple(found)

        return ()

    def _scan_parts(self, request: Scan, deadline: Deadline) -> Conversation[tuple[Scanned, ...]]:
        (names,) = yield from self._exchange.names([self._layout.roots()], deadline)
        after = request.after
        owners = sorted(map(self._layout.root_owner, names))
        for flow_id in owners:
            name = after.name if after is not None and after.id == flow_id else ""
            if after is not None and flow_id < after.id:
                continue

            while True:
                keys, _ = yield from self._reader.decide(
                    partial(_scanned_parts, flow_id, name, request.limit),
                    [self._layout.subject(root_of(flow_id))],
                    deadline,
                )
                if not keys:
                    break

                found = yield from self._scanned(keys, request.now_ms, deadline)
                if found:
                    return tuple(found)

                name = keys[-1].name

        return ()

    def _scanned(
        self, keys: list[Key], now_ms: int, deadline: Deadline
    ) -> Conversation[list[Scanned]]:
        subjects = [self._layout.subject(key) for key in keys]
        subjects += [self._layout.subject(flow_key(k.id)) for k in keys if k.kind in _OWNED]
        subjects += [self._layout.subject(root_of(k.id)) for k in keys if k.kind == PART]

        def look(tables: NatsTables) -> list[Scanned]:
            found: list[Scanned] = []
            for key in keys:
                try:
                    record = tables.record(key)
                except CorruptRecordError as error:
                    found.append(Scanned.unreadable(key, error))
                    continue

                if record is None or record.head.status <= rules.TOMBSTONE:
                    continue

                head = record.head if key.kind not in _OWNED else _head_of_owner(tables, key)
                if head is None or not has_expired(head, now_ms):
                    found.append(Scanned(key, record))

            return found

        found, _ = yield from self._reader.decide(look, subjects, deadline)
        return found


def _head_of_owner(tables: NatsTables, key: Key) -> Head | None:
    """The head of the flow of a record, if there is one that can be read: else it has not expired."""
    try:
        return tables.head(flow_key(key.id))
    except CorruptRecordError:
        return None


def _scanned_parts(flow_id: str, after: str, limit: int, tables: NatsTables) -> list[Key]:
    return tables.parts_of_flows.scanned(flow_id, after, limit)


def unread_due(
    entries: Iterable[NatsIndexEntry], unreadable: Mapping[Key, CorruptRecordError]
) -> dict[Key, Found]:
    """Entries of a listing by due time for records that cannot be read: due when the index says so."""
    return {
        one.key: Found.unreadable(one.key, one.ms, unreadable[one.key], one.ms)
        for one in entries
        if one.key in unreadable
    }


def due_first(found: Found) -> tuple[int, Key]:
    """What is due first comes first."""
    return found.head.due_ms or 0, found.key


def _upper_of(request: Find) -> int:
    """The latest place that a listing looks at."""
    upper = LAST_TIME
    if request.after is not None:
        upper = min(upper, place_of(request.after[0]))

    if request.filter.created_before_ms is not None:
        upper = min(upper, place_of(request.filter.created_before_ms - 1))

    return upper


def look_at(
    entries: list[NatsIndexEntry],
    limit: int,
    look: Callable[[list[NatsIndexEntry]], Conversation[None]],
    found: Sized,
) -> Conversation[None]:
    """Look at entries, oldest first, until enough prove right; several may name one record."""
    for page in _pages(sorted(entries), limit - len(found)):
        yield from look(page)
        if len(found) >= limit:
            return


def _is_wanted(entry: NatsIndexEntry, wanted: Filter, after: tuple[int, str] | None) -> bool:
    return _is_in_time(entry.ms, wanted) and (
        after is None or (-entry.ms, entry.key.id) > (-after[0], after[1])
    )


def _is_in_time(created_ms: int, wanted: Filter) -> bool:
    first, before = wanted.created_after_ms, wanted.created_before_ms
    return (first is None or created_ms >= first) and (before is None or created_ms < before)


def _is_in_listing(head: Head, wanted: Filter, now_ms: int) -> bool:
    """Whether a head has what is wanted, and has not expired."""
    return wanted.includes(head) and not has_expired(head, now_ms)


def _pages(entries: list[NatsIndexEntry], limit: int) -> Iterator[list[NatsIndexEntry]]:
    """Slices of what is wanted and a few more: some entries may prove wrong."""
    size = min(max(limit, _LEAST_ENTRIES), _PAGE * 5)
    for start in range(0, len(entries), size):
        yield entries[start : start + size]


def _is_due(head: Head, until_ms: int, now_ms: int) -> bool:
    return head.due_ms is not None and head.due_ms <= until_ms and not has_expired(head, now_ms)


def _of_kind(kind: str, entries: list[NatsIndexEntry]) -> list[NatsIndexEntry]:
    return [entry for entry in entries if entry.key.kind == kind]


def _notifying(rows: dict[Key, WaitRow], until_ms: int) -> dict[Key, WaitRow]:
    """The conditions of which a parent is to be notified."""
    return {
        key: row
        for key, row in rows.items()
        if row.parent is not None and row.head.due_ms is not None and row.head.due_ms <= until_ms
    }


def _short_record(tables: NatsTables, key: Key) -> tuple[Head, bytes | None] | None:
    """The head of a flow, and its body if that is in the same message."""
    found = tables.plain(key)
    return None if found is None else (found[0], None if found[1].count else found[1].text)


def _entries_of_record(
    layout: NatsLayout, key: Key, record: tuple[Head, bytes | None]
) -> frozenset[str]:
    return entries_of_flow(layout, key, record[0])

"""What is due, pages, counts and scans: the index names candidates, their heads decide."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from collections.abc import Container
from collections.abc import Sequence
from typing import Any

from catga_store.errors import CorruptRecordError
from catga_store.protocol.conversation import Conversation
from catga_store.protocol.failures import warn_passed_over
from catga_store.protocol.keys import FLOW
from catga_store.protocol.keys import PROGRESS
from catga_store.protocol.keys import WAIT
from catga_store.protocol.keys import Key
from catga_store.protocol.requests import PENDING
from catga_store.protocol.requests import Count
from catga_store.protocol.requests import Due
from catga_store.protocol.requests import DueWaits
from catga_store.protocol.requests import Filter
from catga_store.protocol.requests import Find
from catga_store.protocol.requests import Found
from catga_store.protocol.requests import Head
from catga_store.protocol.requests import Overdue
from catga_store.protocol.requests import Read
from catga_store.protocol.requests import Scan
from catga_store.protocol.requests import Scanned
from catga_store.protocol.rules.expiry import has_expired
from catga_store.stores.redis.index import DIGITS
from catga_store.stores.redis.index import NOTIFIED
from catga_store.stores.redis.index import PAGE
from catga_store.stores.redis.index import Range
from catga_store.stores.redis.index import RedisIndexEntry
from catga_store.stores.redis.index import begins_of_due
from catga_store.stores.redis.index import bounds_of
from catga_store.stores.redis.index import created_at
from catga_store.stores.redis.index import is_listed
from catga_store.stores.redis.index import listing_of
from catga_store.stores.redis.index import merged
from catga_store.stores.redis.index import ranges_of
from catga_store.stores.redis.index import stamp_of
from catga_store.stores.redis.index import stamp_of_creation
from catga_store.stores.redis.index import stamp_of_due
from catga_store.stores.redis.index import time_of
from catga_store.stores.redis.layout import TOMBSTONE
from catga_store.stores.redis.layout import RedisLayout
from catga_store.stores.redis.layout import id_of
from catga_store.stores.redis.layout import read_head
from catga_store.stores.redis.layout import read_wait
from catga_store.stores.redis.lost_replies import RedisExchange
from catga_store.stores.redis.reads import IN_CHUNKS
from catga_store.stores.redis.reads import RedisReads
from catga_store.stores.redis.reads import scan_steps
from catga_store.stores.redis.refusals import check
from catga_store.stores.redis.refusals import raise_for
from catga_store.stores.redis.scripts import READ_WAIT
from catga_store.stores.redis.scripts import STEPS
from catga_store.stores.redis.scripts import call
from catga_store.stores.redis.sweeping import RedisSweeping
from catga_store.stores.redis.transport import Command

__all__ = ["RedisListings", "unread_due"]


class RedisListings:
    """`Due`, `Overdue`, `Find`, `Count` and `Scan`."""

    def __init__(
        self,
        layout: RedisLayout,
        exchange: RedisExchange,
        reads: RedisReads,
        sweeping: RedisSweeping,
    ) -> None:
        self._layout = layout
        self._exchange = exchange
        self._reads = reads
        self._sweeping = sweeping

    def due(self, request: Due) -> Conversation[tuple[Found, ...]]:
        now_ms, limit, types = request.now_ms, request.limit, request.types
        within_ms = request.within_ms
        upto = stamp_of(now_ms + within_ms + 1)

        def flow(head: Head, _parent: Head | None) -> bool:
            return _is_due(head, now_ms, within_ms) and request.wants(head)

        def wait(head: Head, parent: Head | None) -> bool:
            is_ours = parent is None or has_expired(parent, now_ms) or request.wants(parent)
            return is_ours and _is_due(head, now_ms, within_ms)

        begins = begins_of_due(types, request.tags)
        flows = [(begin, b"[" + begin, b"(" + begin + upto) for begin in begins]
        notified = [(NOTIFIED, b"[" + NOTIFIED, b"(" + NOTIFIED + upto)]
        # The first pages of both are asked for together: mostly that is all there is.
        page = min(limit, PAGE)
        ranges = self._ranges(flows) + self._ranges(notified)
        first = yield from self._exchange.ask([self._range_command(one, page) for one in ranges])
        check(first)
        number = len(flows) * self._layout.partitions
        found = yield from self.gather(
            FLOW, flows, limit, flow, stamp_of_due, first=first[:number], picks=request.picks
        )
        found += yield from self.gather(
            WAIT,
            notified,
            limit,
            wait,
            stamp_of_due,
            parents=types is not None or bool(request.tags),
            first=first[number:],
        )
        found.sort(key=lambda entry: entry.head.due_ms or 0)
        return tuple(found)

    def due_waits(self, request: DueWaits) -> Conversation[tuple[tuple[Found, ...], ...]]:
        now_ms = request.now_ms
        found: dict[str, list[Found]] = {parent: [] for parent in request.parents}
        left: list[tuple[str, Range]] = []
        for parent in found:
            wanted = Filter(WAIT, parent=parent)
            begin, bounds = listing_of(wanted), bounds_of(wanted, None)
            left += [
                (parent, Range(number, begin, *bounds)) for number in range(self._layout.partitions)
            ]

        def is_due(head: Head, _parent: Head | None) -> bool:
            return _is_due(head, now_ms)

        while left:
            replies = yield from self._exchange.ask(
                [self._range_command(one, PAGE) for _, one in left]
            )
            check(replies)
            listed = [
                (parent, entry)
                for (parent, one), reply in zip(left, replies, strict=True)
                for entry in merged([one], [reply], PAGE)
            ]
            texts = yield from self._heads(WAIT, [entry for _, entry in listed], parents=False)
            for (parent, (_, entry)), (*text, _) in zip(listed, texts, strict=True):
                one = _found(WAIT, entry, text, is_due, stamp_of_creation)
                if one is not None:
                    found[parent].append(one)

            left = [
                (parent, one)
                for parent, one in left
                if not one.is_done and len(found[parent]) < request.limit
            ]

        return tuple(tuple(some[: request.limit]) for some in found.values())

    def overdue(self, request: Overdue) -> Conversation[tuple[Found, ...]]:
        now_ms = request.now_ms

        def is_overdue(head: Head, _parent: Head | None) -> bool:
            return head.status == PENDING and _is_due(head, now_ms)

        deadlines = (b"wd", b"[wd", b"(wd" + stamp_of(now_ms + 1))
        return tuple(
            (
                yield from self.gather(
                    WAIT, [deadlines], request.limit, is_overdue, stamp_of_due, unread=unread_due
                )
            )
        )

    def find(self, request: Find) -> Conversation[tuple[Found, ...]]:
        wanted, now_ms = request.filter, request.now_ms

        def matches(head: Head, _parent: Head | None) -> bool:
            return wanted.includes(head) and not has_expired(head, now_ms)

        return tuple(
            (
                yield from self.gather(
                    wanted.kind,
                    ranges_of(wanted, request.after),
                    request.limit,
                    matches,
                    stamp_of_creation if wanted.id_prefix is None else None,
                    unread=_unread_listed if wanted.id_prefix is None else _unread_named,
                )
            )
        )

    def gather(
        self,
        kind: str,
        bounds: Sequence[tuple[bytes, bytes, bytes]],
        limit: int | None,
        matches: Callable[[Head, Head | None], bool],
        stamp: Callable[[Head], bytes] | None,
        *,
        parents: bool = False,
        unread: Callable[[Key, bytes, CorruptRecordError], Found] | None = None,
        first: Sequence[Any] | None = None,
        picks: Callable[[int], Container[int]] | None = None,
    ) -> Conversation[list[Found]]:
        """Return the first records in these ranges of the index, merged over all partitions.

        A page of the index and the heads of its entries are two round trips; more where many
        entries do not match. An entry counts only if its record still has the `stamp` of the entry;
        entries that say nothing but an id have none.
        A record that cannot be read is passed over with a warning, or is what `unread` makes of its key, the
        place of its entry, and the error.
        `first` are the first pages, if they are there already. `picks` draws which entries
        of those are picked, by their places, and come with their bodies.
        """
        ranges: list[Range] = self._ranges(bounds)
        found: list[Found] = []
        most = math.inf if limit is None else limit
        seen: int = 0

        while ranges and len(found) < most:
            # Where few entries match, the pages grow.
            page = int(min(max(most - len(found), seen), PAGE))
            replies, first = first, None
            if replies is None:
                replies = yield from self._exchange.ask(
                    [self._range_command(one, page) for one in ranges]
                )
                check(replies)

            listed: list[tuple[int, RedisIndexEntry]] = merged(ranges, replies, page)
            seen += len(listed)
            ranges = [one for one in ranges if not one.is_done]
            picked = () if picks is None else picks(len(listed))
            picks = None
            heads = yield from self._heads(kind, listed, picked, parents=parents)

            for place, ((_, entry), (*texts, body)) in enumerate(zip(listed, heads, strict=True)):
                try:
                    one = _found(kind, entry, texts, matches, stamp)
                    if one is not None and place in picked:
                        is_here = body is not None and body[:1] != IN_CHUNKS
                        one = one._replace(picked=True, body=body if is_here else None)
                except CorruptRecordError as error:
                    if unread is None:
                        warn_passed_over(_log, error)
                        continue

                    one = unread(Key(kind, id_of(kind, entry.id)), entry.place, error)

                if one is not None:
                    found.append(one)

        return found[:limit]

    def _ranges(self, bounds: Sequence[tuple[bytes, bytes, bytes]]) -> list[Range]:
        return [
            Range(number, *bound) for number in range(self._layout.partitions) for bound in bounds
        ]

    def _range_command(self, one: Range, page: int) -> Command:
        index = self._layout.index[one.number]
        args = b"ZRANGEBYLEX", index, one.first, one.last, b"LIMIT", 0, page
        return Command(args, index)

    def _heads(
        self,
        kind: str,
        listed: Sequence[tuple[int, RedisIndexEntry]],
        picked: Container[int] = (),
        *,
        parents: bool,
    ) -> Conversation[list[tuple[Any, Any, Any]]]:
        """Return the stored heads of entries, each with that of its parent if `parents`.

        And the bodies of those that are `picked`, if they are there.
        """
        keys = self._layout.flow if kind == FLOW else self._layout.wait
        commands = [
            _record_command(keys[number] + entry.id)
            if place in picked
            else _head_command(keys[number] + entry.id)
            for place, (number, entry) in enumerate(listed)
        ]
        if parents:
            commands += [
                _head_command(self._layout.flow[number] + entry.parent) for number, entry in listed
            ]

        replies = (yield from self._exchange.ask(commands)) if commands else []
        of_parents = replies[len(listed) :] if parents else [None] * len(listed)
        return [
            (reply[0], parent, reply[1]) if type(reply) is list else (reply, parent, None)
            for reply, parent in zip(replies[: len(listed)], of_parents, strict=True)
        ]

    def count(self, request: Count) -> Conversation[int]:
        wanted, now_ms = request.filter, request.now_ms
        prefix = wanted.id_prefix
        if (
            wanted.reads_heads
            or wanted.tags
            or (prefix is not None and wanted != Filter(FLOW, id_prefix=prefix))
        ):
            return (yield from self._count_by_heads(request))

        first, last = bounds_of(wanted, None)
        replies = yield from self._exchange.ask(
            [
                command
                for number, index in enumerate(self._layout.index)
                for command in (
                    self._sweeping.expired(number, now_ms, PAGE),
                    Command((b"ZLEXCOUNT", index, first, last), index),
                )
            ]
        )
        check(replies)
        total: int = sum(replies[1::2])

        for number, page in enumerate(replies[::2]):
            members: list[bytes] = page
            while members:
                total -= sum(is_listed(wanted, member) for member in members)
                if len(members) < PAGE:
                    break

                command = self._sweeping.expired(number, now_ms, PAGE, after=members[-1])
                (members,) = yield from self._exchange.ask([command])
                check([members])

        return total

    def _count_by_heads(self, request: Count) -> Conversation[int]:
        """Count page by page, for a filter that the index does not know."""
        total, after = 0, None

        while True:
            find = Find(request.filter, after, PAGE, request.now_ms)
            found = yield from self.find(find)
            total += len(found)
            if len(found) < PAGE:
                return total

            after = found[-1].head.created_ms, found[-1].key.id

    def scan(self, request: Scan) -> Conversation[tuple[Scanned, ...]]:
        """Perform `Scan`; pending completions are records with a negative status, without terms.

        Parts are scanned by `RedisParts`.
        """
        kind, after = request.kind, request.after
        begin = {FLOW: b"fi", PROGRESS: b"pi", WAIT: b"wi"}[kind]
        first, last = b"[" + begin, b"(" + begin[:1] + b"j"
        if after is not None:
            # The flow whose progress was returned last may have more of it.
            first = (b"[" if kind == PROGRESS else b"(") + begin + after.id.encode()

        ranges = [Range(number, begin, first, last) for number in range(self._layout.partitions)]

        while ranges:
            page = min(request.limit, PAGE)
            replies = yield from self._exchange.ask(
                [self._range_command(one, page) for one in ranges]
            )
            check(replies)
            listed = merged(ranges, replies, page)
            ranges = [one for one in ranges if not one.is_done]
            ids = [id_of(kind, entry.id) for _, entry in listed]
            if kind == PROGRESS:
                found = yield from self._scan_progress(ids, request)
            else:
                found = yield from self._scan_records(kind, ids, request.now_ms)

            if found:
                return tuple(found)

        return ()

    def _scan_records(
        self, kind: str, ids: Sequence[str], now_ms: int
    ) -> Conversation[list[Scanned]]:
        keys = [Key(kind, one) for one in ids]
        if kind == FLOW:
            return (yield from self._scan_flows(keys, now_ms))

        commands = [call(READ_WAIT, self._layout.keys(key), ()) for key in keys]
        replies = (yield from self._exchange.ask(commands)) if commands else []
        found: list[Scanned] = []

        for key, reply in zip(keys, replies, strict=True):
            try:
                if isinstance(reply, Exception):
                    raise_for(key, reply)

                record = None if reply is None else read_wait(key, reply)
            except CorruptRecordError as error:
                found.append(Scanned.unreadable(key, error))
                continue

            if (
                record is not None
                and record.head.status > TOMBSTONE
                and not has_expired(record.head, now_ms)
            ):
                found.append(Scanned(key, record))

        return found

    def _scan_flows(self, keys: Sequence[Key], now_ms: int) -> Conversation[list[Scanned]]:
        """Return flows as they are read together, or one by one if one of them cannot be read."""
        try:
            records = yield from self._reads.read(Read(tuple(keys), now_ms))
        except CorruptRecordError as error:
            if len(keys) == 1:
                return [Scanned.unreadable(keys[0], error)]

            found: list[Scanned] = []
            for key in keys:
                found += yield from self._scan_flows([key], now_ms)

            return found

        return [
            Scanned(key, record)
            for key, record in zip(keys, records, strict=True)
            if record is not None
        ]

    def _scan_progress(self, ids: Sequence[str], request: Scan) -> Conversation[list[Scanned]]:
        """Return the steps of as many flows as needed; one flow has few."""
        after, found = request.after, list[Scanned]()

        for flow_id in ids:
            if len(found) >= request.limit:
                break

            keys = self._layout.keys(Key(FLOW, flow_id))
            (reply,) = yield from self._exchange.ask([call(STEPS, keys, ("1",))])
            found += [
                one
                for one in scan_steps(flow_id, reply, request.now_ms)
                if after is None or one.key > after
            ]

        return found[: request.limit]


def _found(
    kind: str,
    entry: RedisIndexEntry,
    texts: Sequence[Any],
    matches: Callable[[Head, Head | None], bool],
    stamp: Callable[[Head], bytes] | None,
) -> Found | None:
    """Return the record of an entry, if it is there and the entry is still right."""
    text, parent_text = texts
    key = Key(kind, id_of(kind, entry.id))
    for reply in texts:
        if isinstance(reply, Exception):
            raise_for(key, reply)

    if text is None:
        return None

    head = read_head(key, text)
    parent = None
    if parent_text is not None:
        parent = read_head(Key(FLOW, id_of(FLOW, entry.parent)), parent_text)

    is_current = stamp is None or stamp(head) == entry.place[:DIGITS]
    is_there = is_current and head.status >= 0
    return Found(key, head) if is_there and matches(head, parent) else None


def unread_due(key: Key, place: bytes, error: CorruptRecordError) -> Found:
    """Return an entry of a listing by due time whose head cannot be read."""
    due_ms = time_of(place)
    return Found.unreadable(key, due_ms, error, due_ms)


def _unread_listed(key: Key, place: bytes, error: CorruptRecordError) -> Found:
    return Found.unreadable(key, created_at(place), error)


def _unread_named(key: Key, _place: bytes, error: CorruptRecordError) -> Found:
    return Found.unreadable(key, 0, error)


def _is_due(head: Head, now_ms: int, within_ms: int = 0) -> bool:
    is_due = head.due_ms is not None and head.due_ms <= now_ms + within_ms
    return is_due and not has_expired(head, now_ms)


def _head_command(key: bytes) -> Command:
    return Command((b"HGET", key, b"head"), key)


def _record_command(key: bytes) -> Command:
    return Command((b"HMGET", key, b"head", b"body"), key)


_log = logging.getLogger(__name__)

"""What is due or claimed, and how much there is: counted in the index, by ranges of it."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable
from typing import Any

from catga_store.errors import CorruptRecordError
from catga_store.protocol.conversation import Conversation
from catga_store.protocol.failures import warn_passed_over
from catga_store.protocol.keys import FLOW
from catga_store.protocol.keys import WAIT
from catga_store.protocol.keys import Key
from catga_store.protocol.requests import PENDING
from catga_store.protocol.requests import CountDue
from catga_store.protocol.requests import DueFilter
from catga_store.protocol.requests import Filter
from catga_store.protocol.requests import Found
from catga_store.protocol.requests import Head
from catga_store.protocol.requests import ListDue
from catga_store.protocol.requests import Stats
from catga_store.protocol.requests import Totals
from catga_store.protocol.rules.expiry import has_expired
from catga_store.stores.redis.index import DUE
from catga_store.stores.redis.index import NOTIFIED
from catga_store.stores.redis.index import PAGE
from catga_store.stores.redis.index import bounds_of
from catga_store.stores.redis.index import bounds_of_due
from catga_store.stores.redis.index import read_expiring
from catga_store.stores.redis.index import stamp_of
from catga_store.stores.redis.index import stamp_of_due
from catga_store.stores.redis.index import time_of
from catga_store.stores.redis.layout import RedisLayout
from catga_store.stores.redis.layout import id_of
from catga_store.stores.redis.layout import read_head
from catga_store.stores.redis.listings import RedisListings
from catga_store.stores.redis.listings import unread_due
from catga_store.stores.redis.lost_replies import RedisExchange
from catga_store.stores.redis.refusals import check
from catga_store.stores.redis.scripts import TOTALS
from catga_store.stores.redis.scripts import call
from catga_store.stores.redis.sweeping import RedisSweeping
from catga_store.stores.redis.transport import Command

__all__ = ["RedisNumbers"]

_log = logging.getLogger(__name__)

_PAIRS = 500
"""Pairs of status and type that are counted in one script at most, so that others do not wait for long."""
_MOST = 2**31 - 1
_ENDED = b"4"
"""The least status of a flow that has ended."""


class RedisNumbers:
    """`ListDue`, `CountDue` and `Stats`."""

    def __init__(
        self,
        layout: RedisLayout,
        exchange: RedisExchange,
        listings: RedisListings,
        sweeping: RedisSweeping,
    ) -> None:
        self._layout = layout
        self._exchange = exchange
        self._listings = listings
        self._sweeping = sweeping

    def list_due(self, request: ListDue) -> Conversation[tuple[Found, ...]]:
        """`ListDue`: a page of the index and the heads of its entries."""
        wanted, now_ms = request.filter, request.now_ms

        def matches(head: Head, _parent: Head | None) -> bool:
            return wanted.includes(head) and not has_expired(head, now_ms)

        bounds = bounds_of_due(wanted, request.after)
        return tuple(
            (
                yield from self._listings.gather(
                    FLOW, bounds, request.limit, matches, stamp_of_due, unread=unread_due
                )
            )
        )

    def count_due(self, request: CountDue) -> Conversation[int]:
        """`CountDue`: from the index alone, but for claimed flows of some types, and for tags."""
        wanted, now_ms = request.filter, request.now_ms
        if wanted.tags or (wanted.claimed and wanted.types is not None):
            every = ListDue(wanted, None, _MOST, now_ms)
            return len((yield from self.list_due(every)))

        bounds = bounds_of_due(wanted)
        asked = [
            self._counted(index, first, last)
            for index in self._layout.index
            for _, first, last in bounds
        ]
        pages = self._expired_pages(now_ms)
        replies = yield from self._exchange.ask([*pages, *asked])
        check(replies)
        _, heads = yield from self._expired(now_ms, replies[: len(pages)])
        gone = sum(wanted.includes(head) for _, head in heads)
        total: int = sum(replies[len(pages) :])
        return total - gone

    def stats(self, request: Stats) -> Conversation[Totals]:
        """`Stats`: two round trips, one unless a flow has expired before it ended."""
        now_ms = request.now_ms
        past = DueFilter(claimed=False, until_ms=now_ms)
        wanted = past, DueFilter(claimed=True, after_ms=now_ms), past._replace(claimed=True)
        upto = stamp_of(now_ms + 1)
        ranges = [bounds_of_due(one)[0][1:] for one in wanted]
        ranges += [bounds_of(Filter(WAIT, status=PENDING), None)]
        ranges += [(b"[" + begin, b"(" + begin + upto) for begin in (b"wd", NOTIFIED)]
        pages = self._expired_pages(now_ms)
        commands = list(pages)
        for index in self._layout.index:
            commands += [call(TOTALS, (index,), (b"[fb", _PAIRS)), self._first_due(index, now_ms)]
            commands += [self._counted(index, *one) for one in ranges]

        replies = yield from self._exchange.ask(commands)
        check(replies)
        expired, heads = yield from self._expired(now_ms, replies[: len(pages)])
        flows: Counter[tuple[str, int]] = Counter()
        firsts: list[bytes] = []
        numbers = [0] * len(ranges)
        size = 2 + len(ranges)
        for number, index in enumerate(self._layout.index):
            start = len(pages) + number * size
            pairs, first, *counted = replies[start : start + size]
            flows += yield from self._pairs(index, pairs)
            firsts += first
            numbers = [a + b for a, b in zip(numbers, counted, strict=True)]

        flows.subtract(expired)
        for place, one in enumerate(wanted):
            numbers[place] -= sum(one.includes(head) for _, head in heads)

        gone = {DUE + stamp_of_due(head) + flow_id for flow_id, head in heads}
        if not gone.isdisjoint(firsts):
            firsts = yield from self._firsts_but(gone, now_ms)

        oldest = min(firsts, default=None)
        return Totals(
            tuple((*pair, number) for pair, number in flows.items() if number > 0),
            numbers[0],
            None if oldest is None else time_of(oldest[len(DUE) :]),
            *numbers[1:],
        )

    def _pairs(self, index: bytes, reply: list[Any]) -> Conversation[Counter[tuple[str, int]]]:
        """Return the numbers of flows in one partition, by type and status."""
        flows: Counter[tuple[str, int]] = Counter()
        while True:
            following, *found = reply
            for status, kind, number in zip(found[::3], found[1::3], found[2::3], strict=True):
                flows[kind.decode(errors="replace"), int(status)] += number

            if not following:
                return flows

            replies = yield from self._exchange.ask([call(TOTALS, (index,), (following, _PAIRS))])
            check(replies)
            (reply,) = replies

    def _expired_pages(self, now_ms: int) -> list[Command]:
        return [
            self._sweeping.expired(number, now_ms, PAGE)
            for number in range(self._layout.partitions)
        ]

    def _expired(
        self, now_ms: int, pages: Iterable[list[bytes]]
    ) -> Conversation[tuple[Counter[tuple[str, int]], list[tuple[bytes, Head]]]]:
        """Return what the index has of flows that have expired, which are absent.

        Their number by type and status, and the heads of those that had not ended: they may be due.
        """
        flows: Counter[tuple[str, int]] = Counter()
        live: list[tuple[int, bytes]] = []
        for number, page in enumerate(pages):
            members = page
            while members:
                for one in filter(None, map(read_expiring, members)):
                    if one.kind == FLOW:
                        flows[one.of.decode(errors="replace"), int(one.status)] += 1
                        if one.status < _ENDED:
                            live.append((number, one.id))

                if len(members) < PAGE:
                    break

                command = self._sweeping.expired(number, now_ms, PAGE, after=members[-1])
                (members,) = yield from self._exchange.ask([command])
                check([members])

        return flows, (yield from self._heads_of(live))

    def _heads_of(self, flows: list[tuple[int, bytes]]) -> Conversation[list[tuple[bytes, Head]]]:
        """Return the heads of flows by their ids, as far as there are some that can be read."""
        if not flows:
            return []

        keys = [self._layout.flow[number] + flow_id for number, flow_id in flows]
        texts = yield from self._exchange.ask(
            [Command((b"HGET", key, b"head"), key) for key in keys]
        )
        check(texts)
        heads: list[tuple[bytes, Head]] = []
        for (_, flow_id), text in zip(flows, texts, strict=True):
            try:
                if text is not None:
                    heads.append((flow_id, read_head(Key(FLOW, id_of(FLOW, flow_id)), text)))
            except CorruptRecordError as error:
                warn_passed_over(_log, error)

        return heads

    def _firsts_but(self, gone: set[bytes], now_ms: int) -> Conversation[list[bytes]]:
        """Return what is due first in each partition, but for flows that have expired."""
        asked = [self._first_due(index, now_ms, len(gone) + 1) for index in self._layout.index]
        replies = yield from self._exchange.ask(asked)
        check(replies)
        return [
            member
            for members in replies
            for member in [one for one in members if one not in gone][:1]
        ]

    def _first_due(self, index: bytes, now_ms: int, limit: int = 1) -> Command:
        first, last = b"[" + DUE, b"(" + DUE + stamp_of(now_ms + 1)
        return Command((b"ZRANGEBYLEX", index, first, last, b"LIMIT", 0, limit), index)

    def _counted(self, index: bytes, first: bytes, last: bytes) -> Command:
        return Command((b"ZLEXCOUNT", index, first, last), index)

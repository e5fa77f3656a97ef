"""How far the index must be looked at for enough entries, and not many more.

The server names at most 1,024 subjects in one answer. A search asks for the entries up to a distance,
and widens or narrows it by what came.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import NamedTuple

from catga_store.protocol.conversation import Conversation
from catga_store.stores.nats.layout import NatsIndexEntry
from catga_store.stores.nats.layout import last_slot_of

__all__ = ["Search", "nearest", "next_reach", "span"]

_LEAST_NAMED = 128
_FASTER = 16


class Search(NamedTuple):
    """How far a search goes, in places."""

    first: int
    """To where it looks first."""
    farthest: int
    stride: int
    """How much farther it looks when there is too little."""
    distance: Callable[[NatsIndexEntry], int]
    oldest_first: bool = False
    start: int = 0
    whole_ms: bool = False
    """What is due at one time is asked for together: it comes by its ids."""

    def rounded(self, end: int) -> int:
        """The same distance, or as far as the millisecond goes."""
        return last_slot_of(self.start + end) - self.start if self.whole_ms else end

    def between(
        self, few: int, many: int, some: list[NatsIndexEntry], number: int, *, sure: bool
    ) -> int:
        """A distance with enough entries, as some of those there are show; -1 for a guess.

        The server names first what was written first, which is often what is due first, and seldom
        what a listing begins with.
        """
        if not (self.oldest_first or sure):
            return -1

        for end in sorted(map(self.distance, some))[number - 1 : number]:
            for reach in (self.rounded(end), end):
                if few < reach < many:
                    return reach

        return (few + many) // 2 if sure else -1


def nearest(
    until: Callable[[int, int], Conversation[tuple[list[NatsIndexEntry], int]]],
    search: Search,
    number: int,
) -> Conversation[tuple[list[NatsIndexEntry], int]]:
    """Entries up to some distance, `number` of them or more unless it is the farthest, and it.

    `until` returns entries up to a distance, no more than its limit unless that is 0, and how many
    more there are. However many there are, only about as many are looked at as are wanted: up to the
    distance that is known from the last time, or one that is found by going where there are enough
    and not too many.
    """
    most = max(2 * number, _LEAST_NAMED)
    # Up to `few` there are too few, up to `many` too many for one request.
    few, many = -1, -1
    before, total = 0, 0  # how many there are up to those
    some: list[NatsIndexEntry] = []
    reach, stride = min(search.first, search.farthest), 1
    while True:
        entries, more = yield from until(reach, most)
        if not more and (len(entries) >= number or reach == search.farthest):
            return entries, reach

        if more:
            many, total, some = reach, len(entries) + more, entries
        else:
            few, before = reach, len(entries)

        gap = many - few
        if many < 0:
            stride = max(stride, 2 * span(search, entries))
            reach = min(reach + stride, search.farthest)
            stride *= _FASTER
        elif gap <= 1:  # they are all at one place
            entries, _ = yield from until(many, 0)
            return entries, many
        elif total >= sys.maxsize:  # nothing is known but that they are many
            reach = few + max(gap // 10, 1) if more else many - max(gap // 10, 1)
        else:
            reach = search.between(few, many, some, number, sure=not more)
            if reach < 0:  # as if they were spread evenly
                part = gap * (3 * number // 2 - before) // (total - before)
                reach = few + min(max(part, 1), gap - 1)


def next_reach(search: Search, entries: list[NatsIndexEntry], reach: int, wanted: int) -> int:
    """How far to look next time: for some more than were wanted this time."""
    if not entries or (reach == search.farthest and len(entries) <= 2 * wanted):
        return sys.maxsize

    return search.rounded(sorted(map(search.distance, entries))[: 2 * wanted][-1])


def span(search: Search, entries: list[NatsIndexEntry]) -> int:
    """How far apart the first and the last of these are."""
    distances = list(map(search.distance, entries))
    return max(distances) - min(distances) + 1 if len(distances) > 1 else search.stride

"""Which flows have an id that begins with something.

An id is one token of a subject, of which wildcards match the whole only. So the server names all flows,
100,000 in one reply, and those that are wanted are chosen here. Another index entry for each flow, with a
token for each byte, would make every creation and removal dearer by a publish.

A process keeps the names for ten minutes, and asks only for the entries of listings that were written
since: there is one for each new flow, before the flow or in its commit. So no flow is missing, and a flow that
was deleted meanwhile is found out by its head, which is read in any case.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from bisect import bisect_right
from collections.abc import Iterable
from threading import Lock

from catga_store.protocol.conversation import Conversation
from catga_store.protocol.keys import FLOW
from catga_store.protocol.keys import decode_token
from catga_store.stores.nats.answers import Deadline
from catga_store.stores.nats.reading import NatsReader

__all__ = ["NatsIds"]

_KEPT_SECONDS = 600.0
_MOST_KEPT = 500_000
"""Some 40 MB. Of more flows the names are asked for each time."""


class NatsIds:
    """The ids of the flows of one store, as this process knows them."""

    def __init__(self, reader: NatsReader) -> None:
        self._layout = reader.layout
        self._exchange = reader.exchange
        self._lock = Lock()
        self._ids: list[str] = []
        """In order; replaced, never changed."""
        self._seen = 0
        """No flow is missing that was made up to this sequence."""
        self._until = float("-inf")
        self._trust = -1

    def beginning_with(self, prefix: str, deadline: Deadline) -> Conversation[list[str]]:
        """The ids in order, and perhaps some of flows that do not exist any more.

        One flight as a rule; two in a process that does not know them yet, of which one has all names.
        """
        is_known = yield from self._renew(deadline)
        ids = self._ids if is_known else (yield from self._all(deadline))
        first = bisect_left(ids, prefix)
        return ids[first : bisect_right(ids, prefix, key=lambda one: one[: len(prefix)])]

    def _all(self, deadline: Deadline) -> Conversation[list[str]]:
        """Ask for all names, and keep them if they can be kept."""
        last = yield from self._exchange.last_sequence(deadline)
        trust = self._exchange.trust
        (names,) = yield from self._exchange.names([self._layout.all_of(FLOW)], deadline)
        ids = _sorted_ids(name[len(self._layout.flows) :] for name in names)
        if len(ids) <= _MOST_KEPT:
            with self._lock:
                self._ids, self._seen, self._trust = ids, last, trust
                self._until = time.monotonic() + _KEPT_SECONDS

        return ids

    def _renew(self, deadline: Deadline) -> Conversation[bool]:
        """Learn of the flows that are new; whether all are known."""
        exchange = self._exchange
        if (
            time.monotonic() > self._until
            or self._trust != exchange.trust
            or not exchange.is_near  # sequences may have come again
            or exchange.leader  # a replica may not have the newest
        ):
            return False

        begun = self._seen
        news = yield from exchange.written_since(f"{self._layout.listed(FLOW)}>", begun, deadline)
        if news is None:
            return False

        names, seen = news
        new = {name.rpartition(".")[2] for name in names}
        with self._lock:
            if self._trust != exchange.trust:
                return False

            ids = self._ids
            missing = [one for one in _sorted_ids(new) if not _is_in(ids, one)]
            if missing:
                self._ids = sorted([*ids, *missing])

            if begun <= self._seen:  # else another call has asked for all names, of an earlier time
                self._seen = max(self._seen, seen)

        return True


def _sorted_ids(tokens: Iterable[str]) -> list[str]:
    """The order of tokens is not that of ids."""
    return sorted(decode_token(one) if "=" in one else one for one in tokens)


def _is_in(ids: list[str], one: str) -> bool:
    place = bisect_left(ids, one)
    return place < len(ids) and ids[place] == one

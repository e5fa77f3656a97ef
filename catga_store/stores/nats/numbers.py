"""How the NATS store counts: by the names of index entries, or by how many of them there are.

A name is believed if it is the only one of its record, and this process has not written or removed it
lately. Where that is in doubt the head of the record decides. So the numbers are right but for entries
that other processes are removing, or have written before a record that was refused. The server needs half a
second for the names of 100,000 flows, so `Stats` compares them once a minute at most, and counts in between
(`counting`): then an entry that a process left when it died is counted until names are compared again.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from typing import TypeVar

from catga_store.errors import CorruptRecordError
from catga_store.protocol.conversation import Conversation
from catga_store.protocol.keys import FLOW
from catga_store.protocol.keys import WAIT
from catga_store.protocol.keys import Key
from catga_store.protocol.keys import decode_token
from catga_store.protocol.requests import PENDING
from catga_store.protocol.requests import CountDue
from catga_store.protocol.requests import Found
from catga_store.protocol.requests import ListDue
from catga_store.protocol.requests import Stats
from catga_store.protocol.requests import Totals
from catga_store.protocol.rules.expiry import has_expired
from catga_store.stores.nats.answers import Deadline
from catga_store.stores.nats.counting import NatsCounter
from catga_store.stores.nats.layout import HELD
from catga_store.stores.nats.layout import SLOTTED
from catga_store.stores.nats.layout import NatsIndexEntry
from catga_store.stores.nats.layout import NatsLayout
from catga_store.stores.nats.layout import between
from catga_store.stores.nats.layout import entries_of_flow
from catga_store.stores.nats.layout import entries_of_wait
from catga_store.stores.nats.layout import hash_of_type
from catga_store.stores.nats.layout import last_slot
from catga_store.stores.nats.listings import NatsListings
from catga_store.stores.nats.listings import due_first
from catga_store.stores.nats.listings import look_at
from catga_store.stores.nats.listings import unread_due
from catga_store.stores.nats.reading import NatsReader

__all__ = ["NatsNumbers"]

T = TypeVar("T")

_COMPARED_SECONDS, _MOST_OF_TIME = 60.0, 0.01
"""Names are compared once in a minute, or less often: for a hundredth of the time at most."""
_MOST_EXPIRED = 1000
_MOST_TRIED = 500
_HASH = 16
"""The length of the hash of a type in the name of an entry."""
_PLACE = 2 * SLOTTED - 1
_AFTER_DIGITS = ":"
_NEVER_MS = 2**60
_MOST = 2**31 - 1


class NatsNumbers:
    """`ListDue`, `CountDue` and `Stats` of one store."""

    def __init__(self, reader: NatsReader, listings: NatsListings) -> None:
        self._layout = reader.layout
        self._exchange = reader.exchange
        self._listings = listings
        self._types: dict[str, str] = {hash_of_type(""): ""}
        """The names of types by their tokens in entries, which say no more."""
        self._counter = NatsCounter(reader, listings, self._types)
        self._wrong: set[str] = set()
        """Entries that names have shown to be wrong."""
        self._compare_at = float("-inf")

    def list_due(self, request: ListDue) -> Conversation[tuple[Found, ...]]:
        """`ListDue`."""
        deadline = self._exchange.deadline()
        wanted, now_ms, limit = request.filter, request.now_ms, request.limit
        after = request.after
        found: dict[Key, Found] = {}

        def look(entries: list[NatsIndexEntry]) -> Conversation[None]:
            unreadable: dict[Key, CorruptRecordError] = {}
            heads = yield from self._listings.flows(entries, deadline, unreadable=unreadable)
            listed = unread_due(entries, unreadable)
            for key, head in heads.items():
                if wanted.includes(head) and not has_expired(head, now_ms):
                    listed[key] = Found(key, head)

            found.update(
                (key, one)
                for key, one in listed.items()
                if after is None or (one.head.due_ms or 0, key.id) > after
            )

        kinds = (None,) if wanted.types is None else wanted.types
        first_ms = None if wanted.after_ms is None else wanted.after_ms + 1
        if after is not None:
            first_ms = after[0] if first_ms is None else max(first_ms, after[0])

        if wanted.claimed:
            names = yield from self._exchange.names(list(map(self._layout.claims, kinds)), deadline)
            entries = [self._layout.entry(name) for some in names for name in some]
            left = sorted(one for one in entries if first_ms is None or one.ms >= first_ms)
            yield from look_at(left, limit, look, found)
        else:
            prefixes = self._layout.due_of(wanted.types, wanted.tags)
            until_ms = _NEVER_MS if wanted.until_ms is None else wanted.until_ms
            yield from self._listings.oldest_pages(
                prefixes, until_ms, limit, look, found, deadline, whole_ms=True, begin_ms=first_ms
            )

        return tuple(sorted(found.values(), key=due_first)[:limit])

    def count_due(self, request: CountDue) -> Conversation[int]:
        """`CountDue`: all names of what is due at any time, or of what is claimed; heads for tags."""
        deadline = self._exchange.deadline()
        wanted = request.filter
        if wanted.tags:
            every = ListDue(wanted, None, _MOST, request.now_ms)
            return len((yield from self.list_due(every)))

        kinds = (None,) if wanted.types is None else wanted.types
        named = self._layout.claims if wanted.claimed else self._all_due
        names = yield from self._exchange.names(list(map(named, kinds)), deadline)
        expired = yield from self._expired(request.now_ms, deadline)
        dues, expired = yield from self._settled_flows(
            {self._layout.due("flow"): _joined(names), self._layout.due("expiry"): expired},
            deadline,
        )
        gone = self._gone(expired, request.now_ms)
        types = None if wanted.types is None else set(map(hash_of_type, wanted.types))
        place = _Places(self._layout)
        first = "" if wanted.after_ms is None else place.text(wanted.after_ms)
        last = _AFTER_DIGITS if wanted.until_ms is None else place.text(wanted.until_ms)
        return sum(
            1
            for name in dues
            if first < place.of(name) <= last
            and (not wanted.claimed or place.is_held(name))
            and (types is None or place.type(name) in types)
            and _token(name) not in gone
        )

    def stats(self, request: Stats) -> Conversation[Totals]:
        """`Stats`: numbers of entries; once a minute, and where they do not add up, the names of all."""
        deadline = self._exchange.deadline()
        begun = time.monotonic()
        if begun < self._compare_at:
            totals = yield from self._counter.totals(request.now_ms, self._wrong, deadline)
            if totals is not None:
                return totals

        last = yield from self._exchange.last_sequence(deadline)
        self._wrong.clear()
        totals = yield from self._by_names(request.now_ms, deadline)
        self._counter.knows_types_up_to(last)
        now = time.monotonic()
        self._compare_at = now + max(_COMPARED_SECONDS, (now - begun) / _MOST_OF_TIME)
        return totals

    def _by_names(self, now_ms: int, deadline: Deadline) -> Conversation[Totals]:
        """The names of all entries, and the head of one flow of each new type."""
        layout = self._layout
        flows, dues, waits, children, lone = (
            layout.listed(FLOW),
            layout.due("flow"),
            layout.listed(WAIT),
            layout.due("child"),
            layout.due("lone"),
        )
        begins = flows, dues, waits, children, lone
        names = yield from self._exchange.names([f"{begin}>" for begin in begins], deadline)
        named = dict(zip(begins, names, strict=True))
        expired = yield from self._expired(now_ms, deadline)
        named_flows = {flows: named[flows], dues: named[dues], layout.due("expiry"): expired}
        listed, due, expired = yield from self._settled_flows(named_flows, deadline)
        gone = self._gone(expired, now_ms)
        place = _Places(layout)
        now = place.text(now_ms)
        if gone:
            listed = [name for name in listed if _token(name) not in gone]
            due = [name for name in due if _token(name) not in gone]

        past = [name for name in due if place.of(name) <= now]
        held = sum(map(place.is_held, due))
        lapsed = sum(map(place.is_held, past))
        conditions, notified, timed = yield from self._settled(
            WAIT,
            {begin: named[begin] for begin in (waits, children, lone)},
            lambda entries: self._listings.waits(entries, deadline),
            entries_of_wait,
        )
        pending = {_token(name) for name in conditions if name.startswith(f"{waits}{PENDING}.")}
        calling = [name for name in notified if place.of(name, children) <= now]
        ended = [*calling, *(name for name in timed if place.of(name, lone) <= now)]
        return Totals(
            (yield from self._by_type(listed, flows, deadline)),
            len(past),
            layout.entry(min(past, key=place.of)).ms if past else None,
            held - lapsed,
            lapsed,
            len(pending),
            sum(_token(name) in pending for name in ended),
            len(calling),
        )

    def _by_type(
        self, names: list[str], begin: str, deadline: Deadline
    ) -> Conversation[tuple[tuple[str, int, int], ...]]:
        """The number of entries of each type and status."""
        start = len(begin)
        stop = start + len("0.") + _HASH
        counted = Counter(name[start:stop] for name in names)
        for most in 1, _MOST_TRIED:
            unknown = {pair[2:] for pair in counted}.difference(self._types)
            if not unknown:
                break

            some: Counter[str] = Counter()
            entries: list[NatsIndexEntry] = []
            for name in names:
                hashed = name[start + 2 : stop]
                if hashed in unknown and some[hashed] < most:
                    some[hashed] += 1
                    entries.append(self._layout.entry(name))

            heads = yield from self._listings.flows(entries, deadline)
            self._types |= {hash_of_type(head.type): head.type for head in heads.values()}

        return tuple(
            (self._types[pair[2:]], int(pair[0]), number)
            for pair, number in counted.items()
            if pair[2:] in self._types
        )

    def _expired(self, now_ms: int, deadline: Deadline) -> Conversation[list[str]]:
        """The entries of what has expired, or of all that will, if those are very many."""
        begin = self._layout.due("expiry")
        filters = [f"{begin}{end}" for end in between(0, last_slot(now_ms), SLOTTED)]
        names, more = yield from self._exchange.names_at_once(filters, deadline, _MOST_EXPIRED)
        if more:
            (names,) = yield from self._exchange.names([f"{begin}>"], deadline)

        return names

    def _gone(self, expired: Iterable[str], now_ms: int) -> set[str]:
        """The tokens of flows that have expired."""
        place, begin = _Places(self._layout), self._layout.due("expiry")
        now = place.text(now_ms)
        return {
            _token(name)
            for name in expired
            if place.of(name, begin) <= now and name.rsplit(".", 2)[1] == FLOW
        }

    def _all_due(self, kind: str | None) -> str:
        return f"{self._layout.due_flows(kind)}>"

    def _settled_flows(
        self, named: dict[str, list[str]], deadline: Deadline
    ) -> Conversation[list[list[str]]]:
        return (
            yield from self._settled(
                FLOW,
                named,
                lambda entries: self._listings.flows(entries, deadline),
                entries_of_flow,
            )
        )

    def _settled(
        self,
        kind: str,
        named: dict[str, list[str]],
        look: Callable[[list[NatsIndexEntry]], Conversation[dict[Key, T]]],
        entries_of: Callable[[NatsLayout, Key, T], frozenset[str]],
    ) -> Conversation[list[list[str]]]:
        """Names by what they begin with, as the records say where they are in doubt."""
        doubtful: set[str] = set()
        for names in named.values():
            doubtful.update(self._doubtful(names))

        if not doubtful:
            return list(named.values())

        entries = [NatsIndexEntry(0, Key(kind, decode_token(one))) for one in sorted(doubtful)]
        found = yield from look(entries)
        right = {name for key, one in found.items() for name in entries_of(self._layout, key, one)}
        self._wrong.update(
            name
            for names in named.values()
            for name in names
            if _token(name) in doubtful and name not in right
        )
        return [
            [
                *(name for name in names if _token(name) not in doubtful),
                *(name for name in right if name.startswith(begin)),
            ]
            for begin, names in named.items()
        ]

    def _doubtful(self, names: list[str]) -> Iterator[str]:
        """The tokens of records that have several of these entries, or one that may be wrong."""
        tokens = list(map(_token, names))
        if len(set(tokens)) < len(tokens):
            yield from (one for one, number in Counter(tokens).items() if number > 1)

        yield from map(_token, self._exchange.unsure.keys() & set(names))


class _Places:
    """What is where in the name of an entry that says when something is due."""

    def __init__(self, layout: NatsLayout) -> None:
        self._start = len(layout.due("flow"))
        self._digits = self._start + _HASH + 1

    def text(self, ms: int) -> str:
        """The last place of a time."""
        return ".".join(f"{last_slot(ms):0{SLOTTED}d}")

    def of(self, name: str, begin: str = "") -> str:
        """The place of an entry: that of a flow, or of another one that begins so."""
        start = len(begin) or self._digits
        return name[start : start + _PLACE]

    def type(self, name: str) -> str:
        """The hash of the type of a flow."""
        return name[self._start : self._start + _HASH]

    def is_held(self, name: str) -> bool:
        """Whether a flow is under a claim."""
        return name.startswith(HELD, self._digits + _PLACE + 1)


def _token(name: str) -> str:
    return name.rpartition(".")[2]


def _joined(names: Iterable[list[str]]) -> list[str]:
    return [name for some in names for name in some]

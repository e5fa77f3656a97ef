"""How the NATS store counts without names: the server says how many subjects there are under a filter.

So the numbers of a store cost the same with 1,000 flows and with 1,000,000. But an entry that a commit
has made wrong is counted until it is purged, which is at once, and for good if the process died in between.
Names show that, as two entries of one record. So `NatsNumbers` compares all names once in a while, and tells
what was found wrong; what this process itself is not sure of is looked up each time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from collections.abc import Iterable
from collections.abc import Mapping
from typing import NamedTuple

from catga_store.protocol.conversation import Conversation
from catga_store.protocol.keys import FLOW
from catga_store.protocol.keys import WAIT
from catga_store.protocol.keys import Key
from catga_store.protocol.requests import HIGHEST_STATUS
from catga_store.protocol.requests import PENDING
from catga_store.protocol.requests import Head
from catga_store.protocol.requests import Totals
from catga_store.protocol.rules import WaitRow
from catga_store.protocol.rules.expiry import has_expired
from catga_store.stores.nats.answers import Deadline
from catga_store.stores.nats.exchange import Named
from catga_store.stores.nats.layout import HELD
from catga_store.stores.nats.layout import SLOTTED
from catga_store.stores.nats.layout import NatsIndexEntry
from catga_store.stores.nats.layout import between
from catga_store.stores.nats.layout import entries_of_flow
from catga_store.stores.nats.layout import entries_of_wait
from catga_store.stores.nats.layout import hash_of_type
from catga_store.stores.nats.layout import last_slot
from catga_store.stores.nats.listings import NatsListings
from catga_store.stores.nats.reading import NatsReader

__all__ = ["NatsCounter"]

_MOST_NAMED = 1000
"""Names in one reply; the server sends no more than 1,024."""
_MOST_DOUBTED = 500
_MOST_PAIRS = 210
"""Pairs of type and status that are counted: as many requests in one flight."""
_LOOKS = 3


class _Counted(NamedTuple):
    """What the server has said, and which of it is wrong."""

    numbers: Mapping[tuple[str, int], int]
    """How many flows there are, by hash of the type and status."""
    pending: int
    past: Named
    claims: Named
    expired: Named
    timed: Named
    """Conditions whose time has come."""
    wrong: frozenset[str]
    """Entries that are counted, and that their records do not verify."""


class NatsCounter:
    """`Stats` of one store, by numbers of subjects.

    `types` are the names of types by their hashes; it is added to.
    """

    def __init__(self, reader: NatsReader, listings: NatsListings, types: dict[str, str]) -> None:
        self._layout = layout = reader.layout
        self._exchange = reader.exchange
        self._listings = listings
        self._types = types
        self._flows = layout.listed(FLOW)
        self._pending = f"{layout.listed(WAIT)}{PENDING}."
        self._child, self._lone = layout.due("child"), layout.due("lone")
        self._dues, self._expiry = layout.due("flow"), layout.due("expiry")
        self._seen = 0
        """Up to this sequence the types of all flows are known."""
        self._trust = -1

    def knows_types_up_to(self, sequence: int) -> None:
        """Take note that `types` has the types of all flows up to this sequence."""
        self._seen, self._trust = sequence, self._exchange.trust

    def totals(
        self, now_ms: int, wrong: Collection[str], deadline: Deadline
    ) -> Conversation[Totals | None]:
        """Count; `None` if only names can tell: many entries are in doubt, or a type is not known.

        `wrong`: entries that were found wrong before. Two flights, and one more for each of these that there
        are: flows of new types, waits whose time has come, flows that have expired, more than 1,000 flows
        that are due; three for entries in doubt.
        """
        if not (yield from self._learn(deadline)):
            return None

        counted = yield from self._counted(now_ms, wrong, deadline)
        if counted is None or counted.expired.more or counted.timed.more:
            return None

        gone = yield from self._gone(counted.expired.names, now_ms, deadline)
        flows = Counter(counted.numbers)
        flows.subtract(map(self._pair_of, filter(self._is_listed, counted.wrong)))
        flows.subtract((hash_of_type(head.type), head.status) for head in gone.values())
        due, oldest_ms = yield from self._due(counted, now_ms, gone, deadline)
        held, lapsed = yield from self._claims(counted, now_ms, gone, deadline)
        rows = yield from self._waits(counted.timed.names, deadline)
        ended = [row for row in rows.values() if _is_past(row.head, now_ms)]
        pending = counted.pending
        pending -= sum(name.startswith(self._pending) for name in counted.wrong)
        return Totals(
            tuple(
                (self._types[kind], status, number)
                for (kind, status), number in flows.items()
                if number > 0
            ),
            due,
            oldest_ms,
            held - lapsed,
            lapsed,
            pending,
            sum(row.head.status == PENDING for row in ended),
            sum(row.parent is not None for row in ended),
        )

    def _learn(self, deadline: Deadline) -> Conversation[bool]:
        """Look for new types in what was written since the last time; whether all are known now."""
        if self._trust != self._exchange.trust or not self._exchange.is_near:
            return False  # sequences may have come again

        if self._exchange.leader:  # see `_counted`
            return True

        news = yield from self._exchange.written_since(f"{self._flows}>", self._seen, deadline)
        if news is None:
            return False

        names, seen = news
        new = {kind: name for name in names if (kind := self._pair_of(name)[0]) not in self._types}
        if new:
            heads = yield from self._listings.flows(map(self._layout.entry, new.values()), deadline)
            self._types |= {hash_of_type(head.type): head.type for head in heads.values()}

        are_known = all(kind in self._types for kind in new)
        self._seen = max(self._seen, seen) if are_known else self._seen
        return are_known

    def _counted(
        self, now_ms: int, wrong: Collection[str], deadline: Deadline
    ) -> Conversation[_Counted | None]:
        """Ask for all numbers, until nothing that is in doubt came or went meanwhile."""
        pairs = [(kind, status) for kind in self._types for status in range(HIGHEST_STATUS + 1)]
        doubted = [*filter(self._is_counted, {*wrong, *self._exchange.unsure})]
        if len(pairs) > _MOST_PAIRS or len(doubted) > _MOST_DOUBTED:
            return None

        asked = [
            f"{self._pending}>",
            *(f"{self._flows}{status}.{kind}.>" for kind, status in pairs),
        ]
        if self._exchange.leader:  # whether all types are known the sum says
            asked.append(f"{self._flows}>")

        until = between(0, last_slot(now_ms), SLOTTED)
        named = [
            [f"{self._layout.due_flows(None)}{end}" for end in until],
            [self._layout.claims(None)],
            [f"{self._expiry}{end}" for end in until],
            [f"{begin}{end}" for begin in (self._child, self._lone) for end in until],
        ]
        before = yield from self._there(doubted, deadline)
        for _ in range(_LOOKS):
            counts, names = yield from self._exchange.survey(asked, named, _MOST_NAMED, deadline)
            after = yield from self._there(doubted, deadline)
            pending, *numbers = counts[: 1 + len(pairs)]
            if before == after and counts[1 + len(pairs) :] in ([], [sum(numbers)]):
                past, claims, expired, timed = names
                both = {*past.names, *claims.names}
                wrong = yield from self._wrong(after | _twice(both), deadline)
                found = dict(zip(pairs, numbers, strict=True))
                return _Counted(found, pending, past, claims, expired, timed, wrong)

            before = after

        return None

    def _there(self, names: Collection[str], deadline: Deadline) -> Conversation[frozenset[str]]:
        """Which of these entries there are."""
        if not names:
            return frozenset()

        stored = yield from self._exchange.fetch(names, deadline)
        return frozenset(name for name, one in stored.items() if one.sequence)

    def _wrong(self, names: frozenset[str], deadline: Deadline) -> Conversation[frozenset[str]]:
        """Which of these entries their records do not verify."""
        if not names:
            return names

        entries = [self._layout.entry(name) for name in names]
        flows = yield from self._listings.flows(
            (one for one in entries if one.key.kind == FLOW), deadline
        )
        waits = yield from self._listings.waits(
            (one for one in entries if one.key.kind == WAIT), deadline
        )
        right = {
            name for key, head in flows.items() for name in entries_of_flow(self._layout, key, head)
        }
        right |= {
            name for key, row in waits.items() for name in entries_of_wait(self._layout, key, row)
        }
        return names - right

    def _gone(
        self, names: Iterable[str], now_ms: int, deadline: Deadline
    ) -> Conversation[dict[Key, Head]]:
        """The flows that have expired, which are absent."""
        entries = [one for one in map(self._layout.entry, names) if one.key.kind == FLOW]
        if not entries:
            return {}

        heads = yield from self._listings.flows(entries, deadline)
        return {key: head for key, head in heads.items() if has_expired(head, now_ms)}

    def _waits(
        self, names: Collection[str], deadline: Deadline
    ) -> Conversation[dict[Key, WaitRow]]:
        if not names:
            return {}

        return (yield from self._listings.waits(map(self._layout.entry, names), deadline))

    def _due(
        self, counted: _Counted, now_ms: int, gone: Mapping[Key, Head], deadline: Deadline
    ) -> Conversation[tuple[int, int | None]]:
        """How many flows are due, and since when the first of them is."""
        if not counted.past.more:
            left = [one for one in self._right(counted.past, counted) if one.key not in gone]
            return len(left), min((one.ms for one in left), default=None)

        begin = self._layout.due_flows(None)
        until = between(0, last_slot(now_ms), SLOTTED)
        asked = [f"{begin}{end}" for end in until]
        counts, _ = yield from self._exchange.survey(asked, [], 0, deadline)
        first: list[int] = []

        def look(entries: list[NatsIndexEntry]) -> Conversation[None]:
            for key, head in (yield from self._listings.flows(entries, deadline)).items():
                if key not in gone and head.due_ms is not None:
                    first.append(head.due_ms)

        yield from self._listings.oldest_pages((begin,), now_ms, 1, look, first, deadline)
        wrong = sum(one.ms <= now_ms for one in self._wrong_dues(counted))
        past = sum(_is_past(head, now_ms) for head in gone.values())
        return sum(counts) - wrong - past, min(first, default=None)

    def _claims(
        self, counted: _Counted, now_ms: int, gone: Mapping[Key, Head], deadline: Deadline
    ) -> Conversation[tuple[int, int]]:
        """How many flows are under a claim, and how many of these claims have ended."""
        if not counted.claims.more:
            left = [one for one in self._right(counted.claims, counted) if one.key not in gone]
            return len(left), sum(one.ms <= now_ms for one in left)

        every = self._layout.claims(None)
        begin = self._layout.due_flows(None)
        asked = [every, *(f"{begin}{_held(e)}" for e in between(0, last_slot(now_ms), SLOTTED))]
        (held, *lapsed), _ = yield from self._exchange.survey(asked, [], 0, deadline)
        wrong = [one for one in self._wrong_dues(counted) if _is_held(one)]
        claimed = [head for head in gone.values() if head.claim is not None]
        return (
            held - len(wrong) - sum(head.due_ms is not None for head in claimed),
            sum(lapsed)
            - sum(one.ms <= now_ms for one in wrong)
            - sum(_is_past(head, now_ms) for head in claimed),
        )

    def _right(self, named: Named, counted: _Counted) -> list[NatsIndexEntry]:
        return list(map(self._layout.entry, set(named.names) - counted.wrong))

    def _wrong_dues(self, counted: _Counted) -> list[NatsIndexEntry]:
        return [self._layout.entry(one) for one in counted.wrong if one.startswith(self._dues)]

    def _is_listed(self, name: str) -> bool:
        return name.startswith(self._flows)

    def _is_counted(self, name: str) -> bool:
        """Whether this is an entry, and one that is counted."""
        begins = (self._flows, self._dues, self._pending, self._child, self._lone)
        return name.startswith(begins) and not name.endswith((">", "*"))

    def _pair_of(self, name: str) -> tuple[str, int]:
        status, kind, _ = name[len(self._flows) :].split(".", 2)
        return kind, int(status)


def _held(end: str) -> str:
    """The same places, of entries of claimed flows only."""
    digits = [token for token in end.split(".") if token.isdigit()]
    return ".".join([*digits, *("*" * (SLOTTED - len(digits))), HELD, "*"])


def _twice(names: Iterable[str]) -> frozenset[str]:
    """Those that name a record which another one names, too."""
    by_token: dict[str, list[str]] = {}
    for name in names:
        by_token.setdefault(name.rpartition(".")[2], []).append(name)

    return frozenset(name for some in by_token.values() if len(some) > 1 for name in some)


def _is_held(entry: NatsIndexEntry) -> bool:
    return entry.subject.rsplit(".", 2)[1] == HELD


def _is_past(head: Head, now_ms: int) -> bool:
    return head.due_ms is not None and head.due_ms <= now_ms

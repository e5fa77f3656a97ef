"""How the NATS store finds records: by the names of index entries, verified against heads.

An entry is a hint: what it says of a record is believed only when the record's head says so too.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Iterator
from itertools import islice

from catga_store.conversation import Conversation
from catga_store.keys import FLOW
from catga_store.keys import PROGRESS
from catga_store.keys import WAIT
from catga_store.keys import Key
from catga_store.keys import flow_key
from catga_store.records import PENDING
from catga_store.records import Count
from catga_store.records import Due
from catga_store.records import Filter
from catga_store.records import Find
from catga_store.records import Found
from catga_store.records import Head
from catga_store.records import Overdue
from catga_store.records import Scan
from catga_store.records import Scanned
from catga_store.stores import embedded
from catga_store.stores.embedded import WaitRow
from catga_store.stores.nats.commits import Commits
from catga_store.stores.nats.layout import Entry
from catga_store.stores.nats.layout import entries_of_flow
from catga_store.stores.nats.layout import entries_of_wait
from catga_store.stores.nats.layout import prefixes_from
from catga_store.stores.nats.layout import prefixes_until
from catga_store.stores.nats.tables import NatsTables
from catga_store.stores.nats.wire import Deadline

__all__ = ["Listings"]

_PAGE = 100
_LEAST_ENTRIES = 16
_WINDOW = 10
_MOST_DOUBTED = 1000


class Listings:
    """Finds records of one store."""

    def __init__(self, commits: Commits) -> None:
        self._commits = commits
        self._layout = commits.layout
        self._exchange = commits.exchange
        self.doubted: dict[str, Key] = {}
        """Entries that their records did not bear out when they were met."""

    # what is due ----------------------------------------------------------------------------------

    def _until(self, what: str, now_ms: int, deadline: Deadline) -> Conversation[list[Entry]]:
        """The entries of one kind whose time has come, oldest first."""
        prefix = self._layout.due(what)
        if self._exchange.is_small:
            (names,) = yield from self._exchange.names([f"{prefix}>"], deadline)
            return sorted(one for one in set(map(self._layout.entry, names)) if one.ms <= now_ms)

        filters = [
            f"{prefix}{one}.*.*" if not one.endswith(">") else f"{prefix}{one}"
            for group in prefixes_until(now_ms)
            for one in group
        ]
        some = yield from self._exchange.names_at_once(filters, deadline)
        if some is None:
            found = yield from self._exchange.names(filters, deadline)
            some = [name for each in found for name in each]

        return sorted({self._layout.entry(name) for name in some})  # several may name one record

    def due(self, request: Due) -> Conversation[tuple[Found, ...]]:
        """`Due`."""
        deadline = self._exchange.deadline()
        now_ms, wanted = request.now_ms, request.type
        flows = yield from self._until(FLOW, now_ms, deadline)
        waits = yield from self._until("child", now_ms, deadline)
        found: list[Found] = []

        for entries in _pages(flows, request.limit):
            for key, head in (yield from self._flows(entries, deadline)).items():
                if (
                    head.due_ms is not None
                    and head.due_ms <= now_ms
                    and (head.expires_ms is None or head.expires_ms > now_ms)
                    and (wanted is None or head.type in ("", wanted))
                ):
                    found.append(Found(key, head))

            if len(found) >= request.limit:
                break

        found.sort(key=_due_first)
        del found[request.limit :]
        told: list[Found] = []

        for entries in _pages(waits, request.limit):
            rows = yield from self._waits(entries, deadline)
            ready = {
                key: row
                for key, row in rows.items()
                if row.parent is not None
                and row.head.due_ms is not None
                and row.head.due_ms <= now_ms
            }
            kept = yield from self._with_parent_of(ready, wanted, now_ms, deadline)
            told += [Found(key, ready[key].head) for key in kept]
            if len(told) >= request.limit:
                break

        told.sort(key=_due_first)
        return tuple(sorted(found + told[: request.limit], key=lambda one: one.head.due_ms or 0))

    def _with_parent_of(
        self, rows: dict[Key, WaitRow], wanted: str | None, now_ms: int, deadline: Deadline
    ) -> Conversation[list[Key]]:
        if wanted is None or not rows:
            return list(rows)

        parents = yield from self._flows(
            [Entry(0, flow_key(row.parent or "")) for row in rows.values()], deadline
        )
        kept: list[Key] = []
        for key, row in rows.items():
            parent = parents.get(flow_key(row.parent or ""))
            gone = parent is None or (parent.expires_ms is not None and parent.expires_ms <= now_ms)
            if gone or (parent is not None and parent.type in ("", wanted)):
                kept.append(key)

        return kept

    def overdue(self, request: Overdue) -> Conversation[tuple[Found, ...]]:
        """`Overdue`."""
        deadline = self._exchange.deadline()
        entries = yield from self._until("child", request.now_ms, deadline)
        entries += yield from self._until("lone", request.now_ms, deadline)
        found: list[Found] = []

        for page in _pages(sorted(entries), request.limit or _PAGE):
            for key, row in (yield from self._waits(page, deadline)).items():
                due_ms = row.head.due_ms
                if row.head.status == PENDING and due_ms is not None and due_ms <= request.now_ms:
                    found.append(Found(key, row.head))

            if request.limit is not None and len(found) >= request.limit:
                break

        found.sort(key=_due_first)
        return tuple(found[: request.limit])

    def expired(self, now_ms: int, limit: int) -> Conversation[list[Key]]:
        """Flows and conditions that have expired."""
        deadline = self._exchange.deadline()
        entries = yield from self._until("expiry", now_ms, deadline)
        found: dict[Key, None] = {}

        for page in _pages(entries, limit):
            flows = yield from self._flows([e for e in page if e.key.kind == FLOW], deadline)
            waits = yield from self._waits([e for e in page if e.key.kind == WAIT], deadline)
            heads = flows | {key: row.head for key, row in waits.items()}
            for key, head in heads.items():
                if head.expires_ms is not None and head.expires_ms <= now_ms:
                    found[key] = None

            if len(found) >= limit:
                break

        return list(found)[:limit]

    # heads ----------------------------------------------------------------------------------------

    def _flows(self, entries: Iterable[Entry], deadline: Deadline) -> Conversation[dict[Key, Head]]:
        entries = list(entries)
        keys = list(dict.fromkeys(entry.key for entry in entries))
        heads, _ = yield from self._commits.decide(
            lambda tables: [tables.head(key) for key in keys],
            [self._layout.subject(key) for key in keys],
            deadline,
        )
        found = {key: head for key, head in zip(keys, heads, strict=True) if head is not None}
        borne_out = {key: entries_of_flow(self._layout, key, head) for key, head in found.items()}
        self._doubt(entries, borne_out)
        return found

    def _waits(
        self, entries: Iterable[Entry], deadline: Deadline
    ) -> Conversation[dict[Key, WaitRow]]:
        entries = list(entries)
        keys = list(dict.fromkeys(entry.key for entry in entries))
        rows, _ = yield from self._commits.decide(
            lambda tables: [tables.wait(key) for key in keys],
            [self._layout.subject(key) for key in keys],
            deadline,
        )
        found = {key: row for key, row in zip(keys, rows, strict=True) if row is not None}
        borne_out = {key: entries_of_wait(self._layout, key, row) for key, row in found.items()}
        self._doubt(entries, borne_out)
        return found

    def _doubt(self, entries: list[Entry], borne_out: dict[Key, frozenset[str]]) -> None:
        for entry in entries:
            if (
                entry.subject
                and entry.subject not in borne_out.get(entry.key, ())
                and len(self.doubted) < _MOST_DOUBTED
            ):
                self.doubted[entry.subject] = entry.key

    # listings -------------------------------------------------------------------------------------

    def find(self, request: Find) -> Conversation[tuple[Found, ...]]:
        """`Find`: windows of time, latest first, until the page is full."""
        deadline = self._exchange.deadline()
        wanted = request.filter
        listing = self._layout.listing(wanted)
        found: list[Found] = []

        for group in [[">"]] if self._exchange.is_small else _windows(request):
            filters = [
                f"{listing}{one}" if one.endswith(">") else f"{listing}{one}.*.*" for one in group
            ]
            some = None
            if len(filters) > _WINDOW:  # many windows that should hold little
                some = yield from self._exchange.names_at_once(filters, deadline)

            if some is None:
                names = yield from self._exchange.names(filters, deadline)
            else:
                names = [some]

            entries = self._latest_first(names)
            wanted_entries = (one for one in entries if _is_wanted(one, wanted, request.after))
            while page := list(
                islice(wanted_entries, max(request.limit - len(found), _LEAST_ENTRIES))
            ):
                found += yield from self._matching(page, wanted, request.now_ms, deadline)
                if len(found) >= request.limit:
                    return tuple(found[: request.limit])

        return tuple(found)

    def _latest_first(self, names: list[list[str]]) -> Iterator[Entry]:
        """Entries in the order of a listing; `names` are those of windows, latest first."""
        for some in names:
            for together in self._layout.latest_first(some):
                # Several may name one record, while it changes: its head decides, once.
                entries = {entry.key: entry for entry in map(self._layout.entry, together)}
                yield from sorted(entries.values(), key=_by_id)

    def _matching(
        self, entries: list[Entry], wanted: Filter, now_ms: int, deadline: Deadline
    ) -> Conversation[list[Found]]:
        parents: dict[Key, str | None] = {}
        if wanted.kind == FLOW:
            heads = yield from self._flows(entries, deadline)
        else:
            rows = yield from self._waits(entries, deadline)
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
                and wanted.status in (None, head.status)
                and wanted.type in (None, head.type)
                and wanted.parent in (None, parents.get(entry.key))
                and (head.expires_ms is None or head.expires_ms > now_ms)
                and (wanted.updated_before_ms is None or head.updated_ms < wanted.updated_before_ms)
            ):
                found[entry.key] = Found(entry.key, head)

        return list(found.values())

    def count(self, request: Count) -> Conversation[int]:
        """`Count`: heads are read, because entries are hints."""
        deadline = self._exchange.deadline()
        wanted = request.filter
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
        (names,) = yield from self._exchange.names([self._layout.all_of(request.kind)], deadline)
        keys = sorted(map(self._layout.key, names))
        keys = [key for key in keys if request.after is None or key > request.after]

        for start in range(0, len(keys), request.limit):
            page = keys[start : start + request.limit]
            found = yield from self._scanned(page, request.now_ms, deadline)
            if found:
                return tuple(found)

        return ()

    def _scanned(
        self, keys: list[Key], now_ms: int, deadline: Deadline
    ) -> Conversation[list[Scanned]]:
        subjects = [self._layout.subject(key) for key in keys]
        subjects += [self._layout.subject(flow_key(k.id)) for k in keys if k.kind == PROGRESS]

        def look(tables: NatsTables) -> list[Scanned]:
            found: list[Scanned] = []
            for key in keys:
                owner = tables.head(flow_key(key.id)) if key.kind == PROGRESS else None
                record = tables.record(key)
                if record is None or record.head.status <= embedded.MARKER:
                    continue

                head = record.head if key.kind != PROGRESS else owner
                if head is None or head.expires_ms is None or head.expires_ms > now_ms:
                    found.append(Scanned(key, record))

            return found

        found, _ = yield from self._commits.decide(look, subjects, deadline)
        return found


def _by_id(entry: Entry) -> str:
    return entry.key.id


def _due_first(found: Found) -> tuple[int, Key]:
    return found.head.due_ms or 0, found.key


def _windows(request: Find) -> Iterator[list[str]]:
    """What covers the times of a listing, latest first: windows that widen with the distance."""
    upper = request.after[0] if request.after is not None else None
    before = request.filter.created_before_ms
    if before is not None:
        upper = before - 1 if upper is None else min(upper, before - 1)

    if upper is None:
        # Nothing bounds it: what was made later than now comes first, if there is any.
        yield [one for group in prefixes_from(request.now_ms) for one in group]
        upper = request.now_ms

    yield from prefixes_until(upper)


def _is_wanted(entry: Entry, wanted: Filter, after: tuple[int, str] | None) -> bool:
    first, before = wanted.created_after_ms, wanted.created_before_ms
    return (
        (first is None or entry.ms >= first)
        and (before is None or entry.ms < before)
        and (after is None or (-entry.ms, entry.key.id) > (-after[0], after[1]))
    )


def _pages(entries: list[Entry], limit: int) -> Iterator[list[Entry]]:
    """Slices of what is wanted and a few more: some entries may prove wrong."""
    size = min(max(limit, _LEAST_ENTRIES), _PAGE * 5)
    for start in range(0, len(entries), size):
        yield entries[start : start + size]

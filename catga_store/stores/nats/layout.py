"""Where the NATS store keeps what: the subjects of records and of index entries."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from collections.abc import Sequence
from typing import NamedTuple
from zlib import crc32

from catga_store.protocol.keys import FLOW
from catga_store.protocol.keys import PART
from catga_store.protocol.keys import PROGRESS
from catga_store.protocol.keys import WAIT
from catga_store.protocol.keys import Key
from catga_store.protocol.keys import decode_token
from catga_store.protocol.keys import encode_token
from catga_store.protocol.requests import Filter
from catga_store.protocol.requests import Head
from catga_store.protocol.rules import WaitRow
from catga_store.stores.nats.record_text import Completed

__all__ = [
    "ENTRY",
    "HELD",
    "LAST_TIME",
    "NODE",
    "ROOT",
    "SLOTTED",
    "TIMES",
    "NatsIndexEntry",
    "NatsLayout",
    "between",
    "entries_of_flow",
    "entries_of_root",
    "entries_of_wait",
    "entry_of",
    "first_slot",
    "hash_of",
    "hash_of_type",
    "last_slot",
    "last_slot_of",
    "node_of",
    "place_of",
    "root_of",
    "slot_of",
]


ROOT, NODE, ENTRY = "parts", "directory", "entry"
"""Kinds of keys of messages that belong to the parts of a flow: the root of their directory, another node
of it, and the sequence of the entry of a log that has a key."""

HELD = "held"
"""In place of `flow` in the entry that says when a flow is due: it is under a claim until then."""

_YEAR_ONE_MS = 62_135_596_800_000
_DIGITS = 15
_DIGITS_LENGTH = 2 * _DIGITS - 1  # and the dots between them
_LAST: int = 10**_DIGITS - 1
_SLOT_DIGITS = 3
_SLOTS: int = 10**_SLOT_DIGITS
_SLOT_LENGTH = 2 * _SLOT_DIGITS


def root_of(flow_id: str) -> Key:
    """Name the root of the parts of a flow."""
    return Key(ROOT, flow_id)


def node_of(flow_id: str, node: str) -> Key:
    """Name a node of the directory of the parts of a flow; the root is the node without a name."""
    return Key(NODE, flow_id, 0, node) if node else root_of(flow_id)


def entry_of(flow_id: str, log: str, key: str) -> Key:
    """Name what remembers the key of an entry of a log."""
    return Key(ENTRY, flow_id, 0, hash_of(f"{log}/", key))


def hash_of(*texts: str) -> str:
    """A name of any length as one token: two names of one flow have the same token never, in practice."""
    hashed = hashlib.blake2b(digest_size=16)
    for text in texts:
        data = text.encode()
        hashed.update(b"%d:" % len(data) + data)

    return hashed.hexdigest()


class NatsIndexEntry(NamedTuple):
    """What the subject of an index entry says: a record, and a time."""

    ms: int
    key: Key
    subject: str = ""


# --- subjects -------------------------------------------------------------------------------------


class NatsLayout:
    """The subjects of one bucket."""

    def __init__(self, bucket: str, domain: str | None = None) -> None:
        self.api = "$JS.API" if domain is None else f"$JS.{domain}.API"
        """What the subjects of the JetStream API begin with."""
        self.stream = f"KV_{bucket}"
        self.flows = f"$KV.{bucket}.flow."
        self.progress = f"$KV.{bucket}.progress."
        self.waits = f"$KV.{bucket}_wait."
        self.rest = f"catga.{bucket}."
        self.layout = f"{self.rest}layout"
        self.entries = f"{self.rest}list.", f"{self.rest}due."
        self.subjects = [f"$KV.{bucket}.>", f"$KV.{bucket}_wait.>", f"{self.rest}>"]

    def subject(self, key: Key) -> str:
        token = encode_token(key.id)
        if key.kind == FLOW:
            return f"{self.flows}{token}"

        if key.kind == WAIT:
            return f"{self.waits}{token}"

        if key.kind == PROGRESS:
            return f"{self.progress}{token}.{key.step}"

        if key.kind == ROOT:
            return f"{self.rest}parts.{token}"

        name = hash_of(key.name) if key.kind == PART else key.name
        return f"{self.rest}part.{token}.{key.kind}.{name}"

    def all_of(self, kind: str) -> str:
        if kind == PROGRESS:
            return f"{self.progress}*.*"

        return f"{self.flows if kind == FLOW else self.waits}*"

    def steps(self, flow_id: str) -> str:
        return f"{self.progress}{encode_token(flow_id)}.*"

    def key(self, subject: str) -> Key:
        if subject.startswith(self.flows):
            return Key(FLOW, decode_token(subject[len(self.flows) :]))

        if subject.startswith(self.waits):
            return Key(WAIT, decode_token(subject[len(self.waits) :]))

        token, _, step = subject[len(self.progress) :].partition(".")
        return Key(PROGRESS, decode_token(token), int(step))

    # parts --------------------------------------------------------------------------------------

    def roots(self) -> str:
        """The roots of the parts of all flows."""
        return f"{self.rest}parts.*"

    def root_owner(self, subject: str) -> str:
        """The flow whose parts have their root there."""
        return decode_token(subject.rpartition(".")[2])

    def parts_of(self, flow_id: str) -> str:
        """Everything of the parts of a flow, of all their lives, but the root and pieces of bodies."""
        return f"{self.rest}part.{encode_token(flow_id)}.>"

    def belongs_to_parts(self, subject: str) -> bool:
        """Whether a message is purged when the parts of its flow are dropped."""
        return subject.startswith("part.", len(self.rest))

    def root_beside(self, subject: str) -> str:
        """The root of the parts that such a message belongs to."""
        token, _, _ = subject[len(self.rest) + len("part.") :].split(".")
        return f"{self.rest}parts.{token}"

    def pieces_of(self, flow_id: str, life: str) -> str:
        """The pieces of bodies of parts of one life."""
        return f"{self.rest}piece.{encode_token(flow_id)}.{life}.>"

    def all_pieces(self, key: Key, life: str) -> str:
        """The pieces of all bodies of one part."""
        return f"{self.rest}piece.{encode_token(key.id)}.{life}.*.{hash_of(key.name)}.*"

    def first_pieces(self) -> str:
        """The first piece of every body of every part."""
        return f"{self.rest}piece.*.*.*.*.0"

    def piece_owner(self, subject: str) -> tuple[str, str, str]:
        """The flow of a piece, its generation, and the subject of its part."""
        token, life, commit, name, _ = subject[len(self.rest) + len("piece.") :].split(".")
        return decode_token(token), f"{life}.{commit}", f"{self.rest}part.{token}.{PART}.{name}"

    def dead(self, flow_id: str, life: str) -> str:
        """Says that parts of a flow were dropped and what is left of them must be purged."""
        return f"{self.due('dead')}{life}.{encode_token(flow_id)}"

    def dead_life(self, subject: str) -> tuple[str, str]:
        """The flow and the life that an entry says are dropped."""
        life, token = subject[len(self.due("dead")) :].split(".")
        return decode_token(token), life

    # conditions ---------------------------------------------------------------------------------

    def item(self, key: Key, life: str, child: str) -> str:
        return f"{self.rest}item.{encode_token(key.id)}.{life}.{encode_token(child)}"

    def items(self, key: Key, life: str) -> str:
        return f"{self.rest}item.{encode_token(key.id)}.{life}.*"

    def items_and_parts(self, key: Key, life: str) -> str:
        return f"{self.rest}item.{encode_token(key.id)}.{life}.>"

    def item_parts(self, key: Key, life: str, child: str, item: Completed) -> list[str]:
        """Where the payload of a completion lies; its commit is in it, so that none overwrites another."""
        before = f"{self.item(key, life, child)}.{item.commit}"
        return [f"{before}.{number}" for number in range(item.parts)]

    def child(self, subject: str) -> str:
        return decode_token(subject.rpartition(".")[2])

    def chunk(self, key: Key, generation: str, number: int) -> str:
        return f"{self.chunks(key, generation)[:-1]}{number}"

    def first_chunks(self) -> str:
        """The first chunk of every generation of every record."""
        return f"{self.rest}chunk.*.*.*.*.0"

    def chunk_owner(self, subject: str) -> tuple[str, Key]:
        """The generation of a chunk, and whose body it is."""
        generation, kind, token, step, _ = subject[len(self.rest) + len("chunk.") :].split(".")
        return generation, Key(kind, decode_token(token), int(step))

    def chunks(self, key: Key, generation: str) -> str:
        """The chunks of a body; the generation of that of a part is its life and its commit."""
        if key.kind == PART:
            return f"{self.rest}piece.{encode_token(key.id)}.{generation}.{hash_of(key.name)}.*"

        owner = f"{key.kind}.{encode_token(key.id)}.{key.step}"
        return f"{self.rest}chunk.{generation}.{owner}.*"

    def log(self, commit_id: str) -> str:
        return f"{self.rest}log.{commit_id}"

    def check(self, commit_id: str, number: int) -> str:
        return f"{self.rest}check.{commit_id}.{number}"

    # index entries ------------------------------------------------------------------------------

    def listed(self, kind: str) -> str:
        """What the entries begin with that list all flows, or all conditions."""
        return f"{self.rest}list.{kind}."

    def listing(self, wanted: Filter) -> str:
        """What the entries begin with that a listing looks at, wildcards included."""
        status = "*" if wanted.status is None else str(wanted.status)
        if wanted.tags:
            return f"{self.rest}list.tag.{hash_of_tag(wanted.tags[0])}.{status}."

        of = wanted.type if wanted.kind == FLOW else wanted.parent
        return f"{self.listed(wanted.kind)}{status}.{_hashed(of)}."

    def due(self, what: str) -> str:
        """`what`: `child` (conditions with a parent), `lone` (those without), `expiry` or `dead`."""
        return f"{self.rest}due.{what}."

    def due_tagged(self, pair: tuple[str, str]) -> str:
        """What the due entries of flows with a tag begin with."""
        return f"{self.rest}due.tag.{hash_of_tag(pair)}."

    def due_of(
        self, types: Iterable[str] | None, tags: Sequence[tuple[str, str]]
    ) -> tuple[str, ...]:
        """What the due entries of such flows begin with; their heads say the rest."""
        if tags:
            return (self.due_tagged(tags[0]),)

        kinds = (None,) if types is None else dict.fromkeys(types)
        return tuple(map(self.due_flows, kinds))

    def claims(self, kind: str | None) -> str:
        """The due entries of claimed flows of one type; `None`: of any."""
        return f"{self.due_flows(kind)}{'*.' * SLOTTED}{HELD}.*"

    def due_flows(self, kind: str | None) -> str:
        """What the due entries of flows of one type begin with; `None`: of any, as a wildcard."""
        return f"{self.rest}due.flow.{_hashed(kind)}."

    def entry(self, subject: str) -> NatsIndexEntry:
        """What an entry's subject says; its last tokens are digits, kind and id."""
        before, kind, token = subject.rsplit(".", 2)
        if subject.startswith("due.", len(self.rest)):
            before = before[:-_SLOT_LENGTH]

        kind = FLOW if kind == HELD else kind
        ms = int(before[-_DIGITS_LENGTH:].replace(".", "")) - _YEAR_ONE_MS
        # Entries are written here only: one without an escape is the id.
        return NatsIndexEntry(
            ms, Key(kind, decode_token(token) if "=" in token else token), subject
        )


def _digits(ms: int) -> str:
    """A time as one token for each of its 15 digits; their order is that of the times."""
    return ".".join(f"{place_of(ms):015d}")


# Entries are looked for between two places. In listings these are times; of what is due there are
# 1,000 to each millisecond, so that those that are due at one time are separate.

TIMES = _DIGITS
"""The digits of a place in listings."""

SLOTTED = _DIGITS + _SLOT_DIGITS
"""The digits of a place of what is due."""

LAST_TIME = _LAST


def place_of(ms: int) -> int:
    """The place of a time in listings."""
    return min(max(ms + _YEAR_ONE_MS, 0), _LAST)


def first_slot(ms: int) -> int:
    """The first place of what is due at a time."""
    return place_of(ms) * _SLOTS


def last_slot(ms: int) -> int:
    """The last place of what is due at a time."""
    return place_of(ms) * _SLOTS + _SLOTS - 1


def last_slot_of(place: int) -> int:
    """The last place of the time of a place."""
    return place // _SLOTS * _SLOTS + _SLOTS - 1


def slot_of(entry: NatsIndexEntry) -> int:
    """The place of an entry of what is due."""
    before, _, _ = entry.subject.rsplit(".", 2)
    return int(before[-2 * SLOTTED + 1 :].replace(".", ""))


def between(low: int, high: int, width: int) -> list[str]:
    """The ends of subjects that cover just the places from `low` to `high`: few, of any lengths."""
    found: list[str] = []
    if not low:  # what is asked most often, in less steps
        before = ""
        for place, token in enumerate(f"{high:0{width}d}", start=1):
            end = ".>" if place < width else ".*.*"
            found += [f"{before}{digit}{end}" for digit in range(int(token))]
            before += f"{token}."

        found.append(f"{before}*.*")
        return found

    while low <= high:
        size = 1
        cut = 0
        while cut < width and low % (size * 10) == 0 and low + size * 10 - 1 <= high:
            size *= 10
            cut += 1

        digits = ".".join(f"{low:0{width}d}"[: width - cut])
        found.append(f"{digits}.*.*" if not cut else f"{digits}.>" if digits else ">")
        low += size

    return found


def hash_of_tag(pair: tuple[str, str]) -> str:
    """The token of a tag in index entries."""
    key, value = pair
    return _hashed(f"{len(key)}:{key}{value}")


def hash_of_type(name: str) -> str:
    """The token of a type in index entries."""
    return _hashed(name)


def _hashed(text: str | None) -> str:
    """Types and parents in index entries: any text as one short token; the head has the last word."""
    return "*" if text is None else hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _at(ms: int, kind: str, any_id: str) -> str:
    return f"{_digits(ms)}.{kind}.{encode_token(any_id)}"


def _due_at(ms: int, kind: str, any_id: str) -> str:
    token = encode_token(any_id)
    slot = f"{crc32(token.encode()) % _SLOTS:0{_SLOT_DIGITS}d}"
    return f"{_digits(ms)}.{'.'.join(slot)}.{kind}.{token}"


def entries_of_flow(layout: NatsLayout, key: Key, head: Head) -> frozenset[str]:
    """The index entries that a flow with this head has."""
    listing = f"{layout.listed(FLOW)}{head.status}.{_hashed(head.type)}."
    made = _at(head.created_ms, FLOW, key.id)
    entries = [listing + made]
    entries += [
        f"{layout.rest}list.tag.{hash_of_tag(pair)}.{head.status}.{made}" for pair in head.tags
    ]
    if head.due_ms is not None:
        kind = FLOW if head.claim is None else HELD
        due = _due_at(head.due_ms, kind, key.id)
        entries.append(layout.due_flows(head.type) + due)
        entries += [layout.due_tagged(pair) + due for pair in head.tags]

    if head.expires_ms is not None:
        entries.append(layout.due("expiry") + _due_at(head.expires_ms, FLOW, key.id))

    return frozenset(entries)


def entries_of_wait(layout: NatsLayout, key: Key, row: WaitRow) -> frozenset[str]:
    """The index entries that a condition has; tombstones and pending completions only expire."""
    head = row.head
    entries: list[str] = []
    if head.status >= 0:
        listing = f"{layout.listed(WAIT)}{head.status}.{_hashed(row.parent or '')}."
        entries.append(listing + _at(head.created_ms, WAIT, key.id))

    if head.due_ms is not None:
        what = "lone" if row.parent is None else "child"
        entries.append(layout.due(what) + _due_at(head.due_ms, WAIT, key.id))

    if head.expires_ms is not None:
        entries.append(layout.due("expiry") + _due_at(head.expires_ms, WAIT, key.id))

    return frozenset(entries)


def entries_of_root(layout: NatsLayout, flow_id: str, expires_ms: int | None) -> frozenset[str]:
    """The index entry of the parts of a flow that may not come: when they may be removed."""
    if expires_ms is None:
        return frozenset()

    return frozenset((layout.due("expiry") + _due_at(expires_ms, PART, flow_id),))

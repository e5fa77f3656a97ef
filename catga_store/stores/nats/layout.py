"""Where the NATS store keeps what: subjects, the text of records, and index entries.

A record is one line of JSON, its head, and after it the body as it is. The contract is told in
`nats`. Nothing here asks anything.
"""

from __future__ import annotations

import hashlib
import json
from functools import lru_cache
from operator import itemgetter
from typing import Any
from typing import NamedTuple
from zlib import crc32

import msgspec
from attrs import define
from attrs import field

from catga_store.errors import CorruptRecordError
from catga_store.protocol.keys import FLOW
from catga_store.protocol.keys import PROGRESS
from catga_store.protocol.keys import WAIT
from catga_store.protocol.keys import Key
from catga_store.protocol.keys import decode_token
from catga_store.protocol.keys import encode_token
from catga_store.protocol.requests import Filter
from catga_store.protocol.requests import Head
from catga_store.protocol.rules import WaitRow

__all__ = [
    "LAST_TIME",
    "NOTHING",
    "SLOTTED",
    "TIMES",
    "Body",
    "Completed",
    "Entry",
    "NatsLayout",
    "Stored",
    "WaitRecord",
    "between",
    "children_of",
    "decode_item",
    "decode_record",
    "decode_wait",
    "encode_item",
    "encode_record",
    "encode_terms",
    "encode_wait",
    "entries_of_flow",
    "entries_of_wait",
    "last_slot",
    "last_slot_of",
    "long_fields",
    "place_of",
    "revision_at",
    "sequence_of",
    "slot_of",
    "with_long_fields",
]

VERSION = 1

_YEAR_ONE_MS = 62_135_596_800_000
_DIGITS = 15
_DIGITS_LENGTH = 2 * _DIGITS - 1  # and the dots between them
_LAST: int = 10**_DIGITS - 1
_SLOT_DIGITS = 3
_SLOTS: int = 10**_SLOT_DIGITS
_SLOT_LENGTH = 2 * _SLOT_DIGITS

_HEAD_FIELDS = (
    "version",
    "status",
    "created_ms",
    "updated_ms",
    "type",
    "type_version",
    "position",
    "error",
    "attempts",
    "owner",
    "claim",
    "due_ms",
    "expires_ms",
)


class Stored(NamedTuple):
    """What a subject holds: the sequence of its last message, and its text, or that there is none.

    `removed_by` is the commit that removed the record, as long as the server still knows.
    """

    sequence: int
    text: bytes | None
    removed_by: str = ""
    stamp: str = ""


NOTHING = Stored(0, None)


@define
class Body:
    """A body, or where its chunks are if `count` is not 0."""

    text: bytes = b""
    generation: str = ""
    count: int = 0
    size: int = 0
    long: int = 0
    """So many bytes of the chunks are not the body, but fields of the head that are too long for it."""


class Completed(NamedTuple):
    """One child's completion, and the commit that brought it."""

    success: bool
    payload: bytes
    commit: str
    early: bool = False
    """It came before its condition."""
    parts: int = 0
    """Its payload lies in so many messages of its own, if it is not 0."""


@define
class WaitRecord:
    """A condition as it is stored: its row, terms, and completions."""

    row: WaitRow
    life: str
    """Names this incarnation: spilled completions lie under it."""
    terms: Body = field(factory=Body)
    timeout_ms: int | None = None
    items: dict[str, Completed] = field(factory=dict[str, Completed])
    spilled: int = 0
    """So many completions lie in messages of their own."""
    satisfied_by: str = ""
    """The commit that satisfied it."""


class Entry(NamedTuple):
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

        return f"{self.progress}{token}.{key.step}"

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
        owner = f"{key.kind}.{encode_token(key.id)}.{key.step}"
        return f"{self.rest}chunk.{generation}.{owner}.*"

    def log(self, commit_id: str) -> str:
        return f"{self.rest}log.{commit_id}"

    def check(self, commit_id: str, number: int) -> str:
        return f"{self.rest}check.{commit_id}.{number}"

    # index entries ------------------------------------------------------------------------------

    def listing(self, wanted: Filter) -> str:
        """What the entries begin with that a listing looks at, wildcards included."""
        status = "*" if wanted.status is None else str(wanted.status)
        if wanted.kind == FLOW:
            return f"{self.rest}list.flow.{status}.{_hashed(wanted.type)}."

        return f"{self.rest}list.wait.{status}.{_hashed(wanted.parent)}."

    def due(self, what: str) -> str:
        """`what`: `child` (conditions with a parent), `lone` (those without) or `expiry`."""
        return f"{self.rest}due.{what}."

    def due_flows(self, kind: str | None) -> str:
        """What the due entries of flows of one type begin with; `None`: of any, as a wildcard."""
        return f"{self.rest}due.flow.{_hashed(kind)}."

    def entry(self, subject: str) -> Entry:
        """What an entry's subject says; its last tokens are digits, kind and id."""
        before, kind, token = subject.rsplit(".", 2)
        if subject.startswith("due.", len(self.rest)):
            before = before[:-_SLOT_LENGTH]

        ms = int(before[-_DIGITS_LENGTH:].replace(".", "")) - _YEAR_ONE_MS
        # Entries are written here only: one without an escape is the id.
        return Entry(ms, Key(kind, decode_token(token) if "=" in token else token), subject)


def _digits(ms: int) -> str:
    """A time as one token for each of its 15 digits; their order is that of the times."""
    return ".".join(f"{place_of(ms):015d}")


# Entries are looked for between two places. In listings these are times; of what is due there are
# 1,000 to each millisecond, so that many that are due at one time can be told apart.

TIMES = _DIGITS
"""The digits of a place in listings."""

SLOTTED = _DIGITS + _SLOT_DIGITS
"""The digits of a place of what is due."""

LAST_TIME = _LAST


def place_of(ms: int) -> int:
    """The place of a time in listings."""
    return min(max(ms + _YEAR_ONE_MS, 0), _LAST)


def last_slot(ms: int) -> int:
    """The last place of what is due at a time."""
    return place_of(ms) * _SLOTS + _SLOTS - 1


def last_slot_of(place: int) -> int:
    """The last place of the time of a place."""
    return place // _SLOTS * _SLOTS + _SLOTS - 1


def slot_of(entry: Entry) -> int:
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
    listing = f"{layout.rest}list.flow.{head.status}.{_hashed(head.type)}."
    entries = [listing + _at(head.created_ms, FLOW, key.id)]
    if head.due_ms is not None:
        entries.append(layout.due_flows(head.type) + _due_at(head.due_ms, FLOW, key.id))

    if head.expires_ms is not None:
        entries.append(layout.due("expiry") + _due_at(head.expires_ms, FLOW, key.id))

    return frozenset(entries)


def entries_of_wait(layout: NatsLayout, key: Key, row: WaitRow) -> frozenset[str]:
    """The index entries that a condition has; markers and early completions only expire."""
    head = row.head
    entries: list[str] = []
    if head.status >= 0:
        listing = f"{layout.rest}list.wait.{head.status}.{_hashed(row.parent or '')}."
        entries.append(listing + _at(head.created_ms, WAIT, key.id))

    if head.due_ms is not None:
        what = "lone" if row.parent is None else "child"
        entries.append(layout.due(what) + _due_at(head.due_ms, WAIT, key.id))

    if head.expires_ms is not None:
        entries.append(layout.due("expiry") + _due_at(head.expires_ms, WAIT, key.id))

    return frozenset(entries)


# --- revisions ------------------------------------------------------------------------------------


def revision_at(commit_id: str, sequence: int) -> str:
    """The revision of a flow or progress record: who wrote it, and where it stood in the stream."""
    return f"{commit_id}@{sequence}"


def sequence_of(revision: str) -> int | None:
    """Where a record stood when it was written; `None` if the revision does not say."""
    _, _, sequence = revision.partition("@")
    return int(sequence) if sequence.isdecimal() else None


# --- text -----------------------------------------------------------------------------------------


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode
_encode_all = json.JSONEncoder(separators=(",", ":")).encode


def _dump(fields: dict[str, Any]) -> bytes:
    try:
        return _encode(fields)
    except UnicodeEncodeError:  # bytes that are no text, written as lone surrogates
        return _encode_all(fields).encode()


def _load(key: Key, text: bytes) -> tuple[dict[str, Any], bytes]:
    line, _, rest = text.partition(b"\n")
    try:
        fields: dict[str, Any]
        try:
            fields = _decode(line)
        except msgspec.DecodeError:  # lone surrogates, or what is no JSON at all
            fields = json.loads(line)

        layout = fields["layout"]
    except (ValueError, KeyError, TypeError) as error:
        message = f"what is stored as {key} cannot be read: {error}; it is left as it is"
        raise CorruptRecordError(message, key=tuple(key)) from error

    if layout != VERSION:
        message = (
            f"{key} is stored in layout {layout!r}, this catga_store knows {VERSION}; read it with"
            " the release that wrote it; it is left as it is"
        )
        raise CorruptRecordError(message, key=tuple(key))

    return fields, rest


def _head_fields(head: Head) -> dict[str, Any]:
    return {
        "layout": VERSION,
        **dict(zip(_HEAD_FIELDS, head, strict=False)),
        "commits": head.commits,
    }


_head_of = itemgetter(*_HEAD_FIELDS)


def _with_body(fields: dict[str, Any], body: Body) -> bytes:
    if body.count:
        fields["chunks"] = [body.generation, body.count, body.size, body.long]

    return _dump(fields) + b"\n" + body.text


def _body_of(fields: dict[str, Any], rest: bytes) -> Body:
    chunks = fields.get("chunks")
    return Body(rest) if chunks is None else Body(b"", *chunks)


_NO_LONG_FIELDS = {"position": "", "error": None}


def long_fields(head: Head, most: int) -> bytes:
    """The fields of a head that have no limit, as bytes before its body, if they are too long for it."""
    if len(head.position) + len(head.error or "") <= most // 6:  # as JSON it is no longer than that
        return b""

    fields = _dump({"position": head.position, "error": head.error})
    return fields + b"\n" if len(fields) > most else b""


def with_long_fields(key: Key, head: Head, text: bytes) -> Head:
    """A head with the fields that were read from before its body; `CorruptRecordError`."""
    try:
        fields = json.loads(text)
        return head._replace(position=fields["position"], error=fields["error"])
    except (ValueError, KeyError, TypeError) as error:
        message = f"the head of {key} cannot be read: {error!r}; it is left as it is"
        raise CorruptRecordError(message, key=tuple(key)) from error


def encode_record(head: Head, body: Body, *, moved: bool) -> bytes:
    """A flow or progress record. `moved`: it keeps the revision that it had elsewhere."""
    fields = _head_fields(head)
    if body.long:
        fields |= _NO_LONG_FIELDS

    if moved:
        fields["revision"] = head.revision

    return _with_body(fields, body)


def decode_record(key: Key, stored: Stored) -> tuple[Head, Body] | None:
    """A flow or progress record as it is stored; `CorruptRecordError`."""
    if stored.text is None:
        return None

    fields, rest = _load(key, stored.text)
    try:
        commits = tuple(fields["commits"])
        revision = fields.get("revision") or revision_at(commits[0], stored.sequence)
        head = Head.of((*_head_of(fields), revision, commits))
        return head, _body_of(fields, rest)
    except (KeyError, IndexError, TypeError) as error:
        message = f"the head of {key} cannot be read: {error!r}; it is left as it is"
        raise CorruptRecordError(message, key=tuple(key)) from error


def encode_wait(record: WaitRecord) -> bytes:
    """A condition record."""
    row = record.row
    fields = _head_fields(row.head) | {
        "revision": row.head.revision,
        "any": row.any,
        "parent": row.parent,
        "timeout_ms": record.timeout_ms,
        "expected": row.expected,
        "done": row.done,
        "life": record.life,
        "satisfied_by": record.satisfied_by,
        "spilled": record.spilled,
        "items": [
            [
                child,
                item.success,
                item.payload.decode("utf-8", "surrogateescape"),
                item.commit,
                item.early,
                item.parts,
            ]
            for child, item in record.items.items()
        ],
    }
    return _with_body(fields, record.terms)


def decode_wait(key: Key, stored: Stored) -> WaitRecord | None:
    """A condition record as it is stored; `CorruptRecordError`."""
    if stored.text is None:
        return None

    fields, rest = _load(key, stored.text)
    try:
        head = Head.of(
            (
                *(fields[name] for name in _HEAD_FIELDS),
                fields["revision"],
                tuple(fields["commits"]),
            )
        )
        row = WaitRow(head, fields["any"], fields["parent"], fields["expected"], fields["done"])
        items = {
            child: Completed(
                success, payload.encode("utf-8", "surrogateescape"), commit, early, *parts
            )
            for child, success, payload, commit, early, *parts in fields["items"]
        }
        return WaitRecord(
            row,
            fields["life"],
            _body_of(fields, rest),
            fields["timeout_ms"],
            items,
            fields["spilled"],
            fields["satisfied_by"],
        )
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        message = f"the head of {key} cannot be read: {error!r}; it is left as it is"
        raise CorruptRecordError(message, key=tuple(key)) from error


def encode_item(item: Completed) -> bytes:
    """A completion in a message of its own."""
    payload = item.payload.decode("utf-8", "surrogateescape")
    return _dump(
        {
            "layout": VERSION,
            "success": item.success,
            "result": payload,
            "commit": item.commit,
            "early": item.early,
            "parts": item.parts,
        }
    )


def decode_item(key: Key, text: bytes) -> Completed:
    """A completion that was spilled; `CorruptRecordError`."""
    fields, _ = _load(key, text)
    try:
        payload = fields["result"].encode("utf-8", "surrogateescape")
        parts = fields.get("parts", 0)
        return Completed(fields["success"], payload, fields["commit"], fields["early"], parts)
    except (KeyError, AttributeError, ValueError) as error:
        message = f"a completion of {key} cannot be read: {error!r}; it is left as it is"
        raise CorruptRecordError(message, key=tuple(key)) from error


def encode_terms(children: tuple[str, ...]) -> bytes:
    """The children of a condition, as its body."""
    return _dump({"layout": VERSION, "children": list(children)})


class Children(NamedTuple):
    """The children of a condition, in their order and to look one up."""

    ordered: tuple[str, ...]
    members: frozenset[str]


def children_of(key: Key, text: bytes) -> Children:
    """The children of a condition; `text` is its body, read."""
    try:
        return _children(text)
    except (ValueError, KeyError, TypeError) as error:
        message = f"the children of {key} cannot be read: {error!r}; they are left as they are"
        raise CorruptRecordError(message, key=tuple(key)) from error


@lru_cache(maxsize=64)
def _children(text: bytes) -> Children:
    children = tuple(json.loads(text)["children"])
    return Children(children, frozenset(children))

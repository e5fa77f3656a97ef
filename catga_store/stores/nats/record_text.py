"""Records of the NATS store as text: a head as one line of JSON, and after it the body as it is.

What is read from a subject, what a record is made of, and how one becomes the other.
"""

from __future__ import annotations

import json
from functools import lru_cache
from itertools import product
from operator import itemgetter
from typing import Any
from typing import NamedTuple

import msgspec
from attrs import define
from attrs import field

from catga_store.errors import CorruptRecordError
from catga_store.protocol.keys import Key
from catga_store.protocol.requests import CANCELLED
from catga_store.protocol.requests import FIRST_MS
from catga_store.protocol.requests import HIGHEST_STATUS
from catga_store.protocol.requests import LAST_MS
from catga_store.protocol.requests import LOWEST_STATUS
from catga_store.protocol.requests import Head
from catga_store.protocol.requests import head_from
from catga_store.protocol.rules import WaitRow

__all__ = [
    "HEAD_FIELDS",
    "NOTHING",
    "NO_LONG_FIELDS",
    "VERSION",
    "Body",
    "Children",
    "Completed",
    "Stored",
    "WaitRecord",
    "body_of",
    "children_of",
    "decode_item",
    "decode_record",
    "decode_wait",
    "dump_fields",
    "encode_item",
    "encode_record",
    "encode_terms",
    "encode_wait",
    "head_fields",
    "load_fields",
    "long_fields",
    "revision_at",
    "sequence_of",
    "tags_of",
    "with_body",
    "with_long_fields",
]


VERSION = 1

HEAD_FIELDS = (
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
    "reports_to",
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
    """How many bytes of the chunks are not the body, but fields of the head that are too long for it."""


class Completed(NamedTuple):
    """One child's completion, and the commit that brought it."""

    success: bool
    payload: bytes
    commit: str
    early: bool = False
    """It came before its condition."""
    parts: int = 0
    """In how many messages of its own its payload lies; 0 if it lies here."""


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
    """How many completions lie in messages of their own."""
    satisfied_by: str = ""
    """The commit that satisfied it."""


# --- revisions ------------------------------------------------------------------------------------


def revision_at(commit_id: str, sequence: int) -> str:
    """The revision of a flow or progress record: the commit that wrote it, and its place in the stream."""
    return f"{commit_id}@{sequence}"


def sequence_of(revision: str) -> int | None:
    """Where a record stood when it was written; `None` if the revision does not say."""
    _, _, sequence = revision.partition("@")
    return int(sequence) if sequence.isdecimal() else None


# --- text -----------------------------------------------------------------------------------------


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode
_encode_all = json.JSONEncoder(separators=(",", ":")).encode


def dump_fields(fields: dict[str, Any]) -> bytes:
    """Write fields as JSON without a line break."""
    try:
        return _encode(fields)
    except UnicodeEncodeError:  # bytes that are not text, written as lone surrogates
        return _encode_all(fields).encode()


def load_fields(key: Key, text: bytes) -> tuple[dict[str, Any], bytes]:
    """Read the fields of a record, and what follows them; `CorruptRecordError`."""
    line, _, rest = text.partition(b"\n")
    try:
        fields: dict[str, Any]
        try:
            fields = _decode(line)
        except msgspec.DecodeError:  # lone surrogates, or what is not JSON at all
            fields = json.loads(line)

        layout = fields["layout"]
    except (ValueError, KeyError, TypeError) as error:
        message = f"{key} cannot be read: {error}; nothing was changed"
        raise CorruptRecordError(message, key=tuple(key)) from error

    if layout != VERSION:
        message = (
            f"{key} has layout {layout!r}, but this release of catga_store supports only layout "
            f"{VERSION}; nothing was changed; read the record with the release that wrote it"
        )
        raise CorruptRecordError(message, key=tuple(key))

    return fields, rest


def head_fields(head: Head) -> dict[str, Any]:
    """Return a head as fields; the tags only if there are some."""
    fields = {
        "layout": VERSION,
        **dict(zip(HEAD_FIELDS, head, strict=False)),
        "commits": head.commits,
    }
    if head.tags:
        fields["tags"] = head.tags

    return fields


def tags_of(fields: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    """Return the tags of a head."""
    return tuple((key, value) for key, value in fields.get("tags", ()))


_head_of = itemgetter(*HEAD_FIELDS)


_INT, _TEXT = (int,), (str,)
_INT_OR_NONE, _TEXT_OR_NONE = (int, type(None)), (str, type(None))
_HEADS = frozenset(
    product(
        *(_INT, _INT, _INT, _INT, _TEXT, _INT, _TEXT, _TEXT_OR_NONE, _INT),
        *(_TEXT_OR_NONE, _TEXT_OR_NONE, _INT_OR_NONE, _INT_OR_NONE, _TEXT_OR_NONE),
    )
)


def _checked_head(fields: dict[str, Any], lowest: int) -> tuple[Any, ...]:
    """What is stored of a head; `ValueError` for what this library does not write.

    `lowest` is the lowest status of such a record.
    """
    head: tuple[Any, ...] = _head_of(fields)
    highest = CANCELLED if lowest else HIGHEST_STATUS
    if (
        tuple(map(type, head)) not in _HEADS
        or not lowest <= head[1] <= highest
        or not FIRST_MS <= head[2] <= LAST_MS
        or not FIRST_MS <= head[3] <= LAST_MS
    ):
        message = f"found {head!r}"
        raise ValueError(message[:200])

    return head


def with_body(fields: dict[str, Any], body: Body) -> bytes:
    """Write a record: its fields, then the body, if it lies here."""
    if body.count:
        fields["chunks"] = [body.generation, body.count, body.size, body.long]

    return dump_fields(fields) + b"\n" + body.text


def body_of(fields: dict[str, Any], rest: bytes) -> Body:
    """Return the body of a record that was read, or where it lies."""
    chunks = fields.get("chunks")
    return Body(rest) if chunks is None else Body(b"", *chunks)


NO_LONG_FIELDS = {"position": "", "error": None}


def long_fields(head: Head, most: int) -> bytes:
    """The fields of a head that have no limit, as bytes before its body, if they are too long for it."""
    if len(head.position) + len(head.error or "") <= most // 6:  # as JSON it is no longer than that
        return b""

    fields = dump_fields({"position": head.position, "error": head.error})
    return fields + b"\n" if len(fields) > most else b""


def with_long_fields(key: Key, head: Head, text: bytes) -> Head:
    """A head with the fields that were read from before its body; `CorruptRecordError`."""
    try:
        fields = json.loads(text)
        return head._replace(position=fields["position"], error=fields["error"])
    except (ValueError, KeyError, TypeError) as error:
        message = f"the head of {key} cannot be read: {error!r}; nothing was changed"
        raise CorruptRecordError(message, key=tuple(key)) from error


def encode_record(head: Head, body: Body, *, moved: bool) -> bytes:
    """A flow or progress record. `moved`: it keeps the revision that it had elsewhere."""
    fields = head_fields(head)
    if body.long:
        fields |= NO_LONG_FIELDS

    if moved:
        fields["revision"] = head.revision

    return with_body(fields, body)


def decode_record(key: Key, stored: Stored) -> tuple[Head, Body] | None:
    """A flow or progress record as it is stored; `CorruptRecordError`."""
    if stored.text is None:
        return None

    fields, rest = load_fields(key, stored.text)
    try:
        commits = tuple(fields["commits"])
        revision = fields.get("revision") or revision_at(commits[0], stored.sequence)
        head = head_from((*_checked_head(fields, 0), tags_of(fields), revision, commits))
        return head, body_of(fields, rest)
    except (KeyError, IndexError, TypeError, ValueError) as error:
        message = f"the head of {key} cannot be read: {error!r}; nothing was changed"
        raise CorruptRecordError(message, key=tuple(key)) from error


def encode_wait(record: WaitRecord) -> bytes:
    """A condition record."""
    row = record.row
    fields = head_fields(row.head) | {
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
    return with_body(fields, record.terms)


def decode_wait(key: Key, stored: Stored) -> WaitRecord | None:
    """A condition record as it is stored; `CorruptRecordError`."""
    if stored.text is None:
        return None

    fields, rest = load_fields(key, stored.text)
    try:
        head = head_from(
            (
                *_checked_head(fields, LOWEST_STATUS),
                (),
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
            body_of(fields, rest),
            fields["timeout_ms"],
            items,
            fields["spilled"],
            fields["satisfied_by"],
        )
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        message = f"the head of {key} cannot be read: {error!r}; nothing was changed"
        raise CorruptRecordError(message, key=tuple(key)) from error


def encode_item(item: Completed) -> bytes:
    """A completion in a message of its own."""
    payload = item.payload.decode("utf-8", "surrogateescape")
    return dump_fields(
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
    fields, _ = load_fields(key, text)
    try:
        payload = fields["result"].encode("utf-8", "surrogateescape")
        parts = fields.get("parts", 0)
        return Completed(fields["success"], payload, fields["commit"], fields["early"], parts)
    except (KeyError, AttributeError, ValueError) as error:
        message = f"a completion of {key} cannot be read: {error!r}; nothing was changed"
        raise CorruptRecordError(message, key=tuple(key)) from error


def encode_terms(children: tuple[str, ...]) -> bytes:
    """The children of a condition, as its body."""
    return dump_fields({"layout": VERSION, "children": list(children)})


class Children(NamedTuple):
    """The children of a condition, in their order and to look one up."""

    ordered: tuple[str, ...]
    members: frozenset[str]


def children_of(key: Key, text: bytes) -> Children:
    """The children of a condition; `text` is its body, read."""
    try:
        return _children(text)
    except (ValueError, KeyError, TypeError) as error:
        message = f"the children of {key} cannot be read: {error!r}; nothing was changed"
        raise CorruptRecordError(message, key=tuple(key)) from error


@lru_cache(maxsize=64)
def _children(text: bytes) -> Children:
    children = tuple(json.loads(text)["children"])
    return Children(children, frozenset(children))

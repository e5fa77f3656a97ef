"""The messages of parts as text: a part, the nodes of a directory, and what remembers the key of an entry.

Each says to which life of its flow's parts it belongs, as far as that may be in doubt: what is left of a
life that has ended is absent.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from operator import itemgetter
from typing import Any
from typing import NamedTuple
from typing import TypeVar

from attrs import define
from attrs import field

from catga_store.errors import CorruptRecordError
from catga_store.protocol.keys import Key
from catga_store.protocol.requests import Head
from catga_store.protocol.requests import head_from
from catga_store.stores.nats.record_text import HEAD_FIELDS
from catga_store.stores.nats.record_text import NO_LONG_FIELDS
from catga_store.stores.nats.record_text import VERSION
from catga_store.stores.nats.record_text import Body
from catga_store.stores.nats.record_text import body_of
from catga_store.stores.nats.record_text import dump_fields
from catga_store.stores.nats.record_text import head_fields
from catga_store.stores.nats.record_text import load_fields
from catga_store.stores.nats.record_text import tags_of
from catga_store.stores.nats.record_text import with_body

__all__ = [
    "Child",
    "Node",
    "Root",
    "Row",
    "StoredPart",
    "decode_entry",
    "decode_node",
    "decode_part",
    "decode_root",
    "encode_entry",
    "encode_node",
    "encode_part",
    "encode_root",
    "size_of",
]

T = TypeVar("T")

_HAS_NO_ROWS = b'"rows":[],'
_BEGINNING = 40
_KEPT = 32
"""Inner nodes that are kept as they were decoded: two MiB."""


class StoredPart(NamedTuple):
    """A part as it is stored, whichever life it is of."""

    life: str
    name: str
    head: Head
    body: Body


class Row(NamedTuple):
    """What a directory says of a part: its name and head, but for all commits except the last."""

    name: str
    version: int
    status: int
    created_ms: int
    updated_ms: int
    type: str
    type_version: int
    position: str
    attempts: int
    commit: str
    size: int
    """Bytes of the body."""

    def head(self) -> Head:
        """Return the head of the part, as listings show it."""
        return Head(
            self.version,
            self.status,
            self.created_ms,
            self.updated_ms,
            self.type,
            self.type_version,
            self.position,
            attempts=self.attempts,
            revision=self.commit,
            commits=(self.commit,),
        )


class Child(NamedTuple):
    """A node below another one: the name from which on its names are, and its own."""

    low: str
    node: str


@define
class Node:
    """One node of a directory: rows by name, or the nodes below it, which are then not empty."""

    rows: list[Row] = field(factory=list[Row])
    children: list[Child] = field(factory=list[Child])


@define
class Root:
    """What all parts of a flow hang on: their life, when they expire, and the first node."""

    life: str
    expires_ms: int | None
    node: Node


def size_of(node: Node) -> int:
    """How many bytes a node takes."""
    return len(dump_fields(_fields_of(node)))


# --- text -----------------------------------------------------------------------------------------


def _decoded(key: Key, text: bytes, read: Callable[[dict[str, Any], bytes], T]) -> T:
    fields, rest = load_fields(key, text)
    try:
        return read(fields, rest)
    except (KeyError, IndexError, TypeError, ValueError) as error:
        message = f"{key} cannot be read: {error!r}; nothing was changed"
        raise CorruptRecordError(message, key=tuple(key)) from error


_head_of = itemgetter(*HEAD_FIELDS)


def encode_part(life: str, name: str, head: Head, body: Body) -> bytes:
    """A part. The former version of a flow keeps the revision that this had."""
    fields = head_fields(head) | {"life": life, "name": name}
    if body.long:
        fields |= NO_LONG_FIELDS

    if head.revision != head.commits[0]:
        fields["revision"] = head.revision

    return with_body(fields, body)


def decode_part(key: Key, text: bytes) -> StoredPart:
    """A part as it is stored; `CorruptRecordError`. Its revision is that of the last commit that wrote it."""

    def read(fields: dict[str, Any], rest: bytes) -> StoredPart:
        commits = tuple(fields["commits"])
        revision = fields.get("revision") or commits[0]
        head = head_from((*_head_of(fields), tags_of(fields), revision, commits))
        return StoredPart(fields["life"], fields["name"], head, body_of(fields, rest))

    return _decoded(key, text, read)


def _fields_of(node: Node) -> dict[str, Any]:
    return {"rows": node.rows, "children": node.children}


def _node_of(fields: dict[str, Any]) -> Node:
    return Node([Row(*row) for row in fields["rows"]], [Child(*one) for one in fields["children"]])


def encode_node(node: Node) -> bytes:
    """A node of a directory."""
    return dump_fields({"layout": VERSION, **_fields_of(node)})


def decode_node(key: Key, text: bytes) -> Node:
    """A node as it is stored; `CorruptRecordError`.

    An inner one is seldom another than the last time, and decoding its names would take a tenth of a listing.
    """
    if _HAS_NO_ROWS not in text[:_BEGINNING]:
        return _decoded_node(key, text)

    node = _decoded_inner(key, text)
    return Node(list(node.rows), list(node.children))  # it may be changed


def _decoded_node(key: Key, text: bytes) -> Node:
    return _decoded(key, text, lambda fields, _: _node_of(fields))


_decoded_inner = lru_cache(_KEPT)(_decoded_node)


def encode_root(root: Root) -> bytes:
    """The root of the parts of a flow."""
    fields = {"layout": VERSION, "life": root.life, "expires_ms": root.expires_ms}
    return dump_fields(fields | _fields_of(root.node))


def decode_root(key: Key, text: bytes) -> Root:
    """A root as it is stored; `CorruptRecordError`."""
    return _decoded(
        key, text, lambda fields, _: Root(fields["life"], fields["expires_ms"], _node_of(fields))
    )


def encode_entry(life: str, sequence: int) -> bytes:
    """What remembers the key of an entry of a log."""
    return dump_fields({"layout": VERSION, "life": life, "sequence": sequence})


def decode_entry(key: Key, text: bytes) -> tuple[str, int]:
    """The life and the sequence of the entry that has a key; `CorruptRecordError`."""
    return _decoded(key, text, lambda fields, _: (fields["life"], fields["sequence"]))

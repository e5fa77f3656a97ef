"""The layout of a Redis store: the keys of its records, and the formats of heads and conditions."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from catga_store.errors import CorruptRecordError
from catga_store.errors import UsageError
from catga_store.protocol.keys import PART
from catga_store.protocol.keys import PROGRESS
from catga_store.protocol.keys import WAIT
from catga_store.protocol.keys import Key
from catga_store.protocol.keys import partition_of
from catga_store.protocol.masking import shown
from catga_store.protocol.requests import FIRST_MS
from catga_store.protocol.requests import HIGHEST_STATUS
from catga_store.protocol.requests import LAST_MS
from catga_store.protocol.requests import LOWEST_STATUS
from catga_store.protocol.requests import Head
from catga_store.protocol.requests import Item
from catga_store.protocol.requests import Record
from catga_store.protocol.requests import Terms
from catga_store.protocol.requests import head_from
from catga_store.protocol.rules.expiry import has_expired

__all__ = [
    "LAYOUT",
    "TOMBSTONE",
    "RedisLayout",
    "check_prefix",
    "corrupt",
    "encode",
    "id_of",
    "read_head",
    "read_record",
    "read_wait",
    "write_head",
]

LAYOUT = 2
"""The version of the layout."""
TOMBSTONE = -2


class _StoredHead(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    """The JSON of a head; only flows have tags, and only if there are some."""

    commits: str
    version: int
    status: int
    created_ms: int
    updated_ms: int
    due_ms: int | None
    expires_ms: int | None
    type: str
    type_version: int
    position: str
    error: str | None
    attempts: int
    reports_to: str | None
    owner: str | None
    claim: str | None
    tags: tuple[str, ...] = ()


_heads: msgspec.json.Decoder[_StoredHead] = msgspec.json.Decoder(_StoredHead)
_fields_of = msgspec.structs.astuple
_terms: msgspec.json.Decoder[tuple[Any, ...]] = msgspec.json.Decoder(
    tuple[tuple[str, ...], bool, int | None, str | None]
)
encode = msgspec.json.Encoder().encode


class RedisLayout:
    """The keys of a store's records, by partition; see the package."""

    def __init__(self, prefix: str, partitions: int) -> None:
        self.prefix = check_prefix(prefix)
        self.partitions = partitions
        self.tags = tags = [f"{{{prefix}{n}}}:".encode() for n in range(partitions)]
        self.layout = tags[0] + b"layout"
        self.flow = [tag + b"flow:" for tag in tags]
        self.steps = [tag + b"steps:" for tag in tags]
        self.chunks = [tag + b"chunks:" for tag in tags]
        self.parts = [tag + b"parts:" for tag in tags]
        self.names = [tag + b"names:" for tag in tags]
        self.upload = [tag + b"upload:" for tag in tags]
        self.wait = [tag + b"wait:" for tag in tags]
        self.items = [tag + b"items:" for tag in tags]
        self.log = [tag + b"commit:" for tag in tags]
        self.index = [tag + b"index" for tag in tags]
        self.hints = tuple(tag + b"hints" for tag in tags)
        """The channels on which the scripts publish what they have done."""

    def partition(self, any_id: str) -> int:
        """Return the partition of a record, by its id."""
        return 0 if self.partitions == 1 else partition_of(any_id, self.partitions)

    def keys(self, key: Key) -> tuple[bytes, bytes]:
        """Return the two keys of a record: flow and steps, or condition and items."""
        number, data = self.partition(key.id), key.id.encode()
        if key.kind == WAIT:
            return self.wait[number] + data, self.items[number] + data

        return self.flow[number] + data, self.steps[number] + data

    def written(self, key: Key) -> tuple[bytes, ...]:
        """Return every key that is written with a record, which are five for whatever is of a flow."""
        number, data = self.partition(key.id), key.id.encode()
        if key.kind == WAIT:
            return self.wait[number] + data, self.items[number] + data

        flow, steps, chunks = self.flow[number], self.steps[number], self.chunks[number]
        parts, names = self.parts[number], self.names[number]
        return flow + data, steps + data, chunks + data, parts + data, names + data

    def begins(self, kind: str) -> tuple[list[bytes], ...]:
        """Return what the keys of a record begin with, by partition."""
        if kind == WAIT:
            return self.wait, self.items

        return self.flow, self.steps, self.chunks, self.parts, self.names

    def head_of(self, key: Key) -> tuple[bytes, bytes]:
        """Return where the head of a record is: a hash and its field."""
        number, data = self.partition(key.id), key.id.encode()
        if key.kind == PROGRESS:
            return self.steps[number] + data, b"h%d" % key.step

        if key.kind == PART:
            return self.parts[number] + data, b"h" + key.name.encode()

        return (self.wait if key.kind == WAIT else self.flow)[number] + data, b"head"

    def chunks_of(self, flow_id: str) -> bytes:
        """Return the key of the chunks of a flow's large body."""
        return self.chunks[self.partition(flow_id)] + flow_id.encode()

    def parts_of(self, flow_id: str) -> tuple[bytes, bytes, bytes]:
        """Return the keys of a flow, its parts and their names."""
        number, data = self.partition(flow_id), flow_id.encode()
        return self.flow[number] + data, self.parts[number] + data, self.names[number] + data

    def upload_of(self, flow_id: str, name: bytes) -> bytes:
        """Return the key of an upload, which is that of a part's large body after its commit."""
        return self.upload[self.partition(flow_id)] + name


def check_prefix(prefix: object) -> str:
    """Return the prefix if keys can begin with it, else raise `UsageError`."""
    if (
        isinstance(prefix, str)
        and prefix
        and prefix.isprintable()
        and not re.search(r"[{}]|\d\Z", prefix)
        and len(prefix.encode()) <= 64  # noqa: PLR2004  the message says it
    ):
        return prefix

    message = (
        "prefix: expected 1 to 64 bytes of printable text that has no braces and does not end "
        f"with a digit, such as 'dslflow:', got {shown(prefix)}; nothing was sent"
    )
    raise UsageError(message)


def write_head(head: Head) -> bytes:
    """Return a head as it is stored, without its commits, which the script adds."""
    version, status, created, updated, kind, kind_version, position, error, attempts = head[:9]
    owner, claim, due, expires, reports_to, tags = head[9:15]
    fields = (
        *("", version, status, created, updated, due, expires),
        *(kind, kind_version, position, error, attempts, reports_to, owner, claim),
    )
    return encode((*fields, [text for pair in tags for text in pair]) if tags else fields)


def read_head(key: Key, text: Any) -> Head:
    """Return a stored head; `CorruptRecordError` if it cannot be read."""
    try:
        fields = _fields_of(_heads.decode(text))
    except (msgspec.DecodeError, TypeError) as error:
        raise corrupt(key, text) from error

    if (
        not LOWEST_STATUS <= fields[2] <= HIGHEST_STATUS
        or not FIRST_MS <= fields[3] <= LAST_MS
        or not FIRST_MS <= fields[4] <= LAST_MS
    ):
        raise corrupt(key, text)

    commits = tuple(fields[0].split())
    revision = commits[0] if commits else ""
    reports_to, owner, claim, texts = fields[12:]
    tags = tuple(zip(texts[::2], texts[1::2], strict=False)) if texts else ()
    plain = (*fields[1:5], *fields[7:12], owner, claim, *fields[5:7], reports_to)
    return head_from((*plain, tags, revision, commits))


def corrupt(key: Key, found: object) -> CorruptRecordError:
    """Return the error of a record that cannot be read."""
    what = found if isinstance(found, str) else repr(found)
    message = (
        f"{key} cannot be read, because it contains {what[:100]}, which this library did not "
        "write; nothing was changed; restore the record from a backup"
    )
    return CorruptRecordError(message, key=tuple(key))


def _text(key: Key, data: Any) -> str:
    try:
        text: str = data.decode()
    except (AttributeError, UnicodeDecodeError) as error:
        raise corrupt(key, data) from error

    return text


def id_of(kind: str, data: bytes) -> str:
    """Return the id at the end of a key or member; `CorruptRecordError` if it is not text."""
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise corrupt(Key(kind, repr(data)[:100]), "an invalid id") from error


def _read_terms(key: Key, data: Any) -> Terms:
    try:
        return Terms(*_terms.decode(data))
    except (msgspec.DecodeError, TypeError) as error:
        raise corrupt(key, data) from error


def read_record(key: Key, head: Any, body: Any, now_ms: int) -> Record | None:
    """Return a flow or progress record; `None` if there is none or it has expired."""
    if head is None and body is None:
        return None

    read = read_head(key, head)
    if body is None:
        raise corrupt(key, body)

    return None if has_expired(read, now_ms) else Record(read, body)


def read_wait(key: Key, reply: Any) -> Record:
    """Return a condition in any state."""
    head, terms, flat = reply
    read = read_head(key, head)
    hidden = read.status < 0
    items: list[Item] = []

    for child, value in zip(flat[::2], flat[1::2], strict=True):
        member, done, success = value[:1], value[1:2], value[2:3]
        if done == b"1" and (hidden or member == b"1"):
            items.append(Item(_text(key, child), success == b"1", value[3:]))
        elif done not in (b"0", b"1"):
            raise corrupt(key, value)

    return Record(read, b"", _read_terms(key, terms), tuple(items))

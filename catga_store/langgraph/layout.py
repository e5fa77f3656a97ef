"""What is stored of a thread, and what a run has seen of it. Pure: nothing here does I/O.

A thread is one flow, which is never due; all else are its parts, so deleting the flow deletes the
thread. Each checkpoint namespace has a prefix, `=` and its quoted name; under that are

| part | body | tag |
|---|---|---|
| `<prefix>/<checkpoint id>/c` | the checkpoint, as LangGraph's serializer writes it | parent, metadata |
| `<prefix>/<checkpoint id>/w/<task>/<number of writes>` | the ordinary writes of one `put_writes` | |
| `<prefix>/<checkpoint id>/w/<task>/<negative index>` | one write of a special channel | |
| `<prefix>/~` | the name of the namespace | the run that wrote last, the newest checkpoint |

The last one is the head. It sorts after all checkpoints, and the writes of a checkpoint after it, so a
listing from the end until the first `c` returns the head and the newest checkpoint with its writes.
Every `put` writes the head, version-checked, and every `put_writes` checks it: the store decides, in the
same commit, whether the thread is still where the run has seen it.
The newest checkpoint is the one that was written last, whatever the clocks of the writers say.

What a run has seen is in the config that it passes back under `SEEN`: `get_tuple` and `list` add it to
the configs that they return, and `get_tuple` to a config for which it finds nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from collections.abc import Sequence
from functools import lru_cache
from hashlib import blake2b
from typing import Any
from typing import Final
from typing import NamedTuple
from urllib.parse import quote

import msgspec
from attrs import define
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import WRITES_IDX_MAP
from langgraph.checkpoint.base import CheckpointMetadata
from langgraph.checkpoint.base import PendingWrite
from langgraph.checkpoint.base import writes_sort_key
from langgraph.checkpoint.serde.base import SerializerProtocol

import catga_store as cs
from catga_store.core.raw_parts import body_of
from catga_store.protocol.keys import Key
from catga_store.protocol.keys import part_key
from catga_store.protocol.requests import Head
from catga_store.protocol.requests import ListedPart

__all__ = [
    "CHECKPOINT",
    "SEEN",
    "THREAD_TYPE",
    "GraphThread",
    "Group",
    "Place",
    "Seen",
    "StaleThreadError",
    "asked_by",
    "checkpoint_text",
    "config_of",
    "id_in",
    "marker_of",
    "newest_of",
    "place_of",
    "run_of",
    "seen_in",
    "tag_of_head",
    "thread_flow",
    "told_by",
    "unframed",
    "writes_of",
    "writes_texts",
]

SEEN: Final = "__catga_seen"
"""The key in `configurable` of what a run has seen. It begins with `__`, because LangGraph copies other
keys into the metadata of checkpoints."""

THREAD_TYPE: Final = "langgraph.thread"
CHECKPOINT: Final = "/c"
"""What the name of a checkpoint's part ends with, and no other."""
_TAG_BYTES = 256
_NAMESPACE_BYTES = 240
_OWN_TAG = re.compile(r"\{([^}]+)\}")
_PLACES = 1024
"""Namespaces and checkpoints whose names are kept."""
_UNQUOTED = re.compile(r"[A-Za-z0-9_.-]+").fullmatch
_encode = json.JSONEncoder(separators=(",", ":")).encode
_encode_plain = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode
_NOTHING: dict[str, Any] = {}


class StaleThreadError(cs.ConflictError):
    """The thread has changed since this run read it, or was deleted. Nothing was written.

    `expected` is the checkpoint from which the run continues, and `actual` is the newest checkpoint in the
    namespace; each is `None` if there is no such checkpoint.
    """

    thread_id: str
    checkpoint_ns: str
    expected: str | None
    actual: str | None


@cs.flow_state(THREAD_TYPE)
@define
class GraphThread:
    """The state of a thread's flow."""

    thread_id: str


class Seen(NamedTuple):
    """What a run has seen of a namespace: the checkpoint it got, and which one was the newest then."""

    run: str
    got: str | None
    newest: str | None


class Place(NamedTuple):
    """A namespace of a thread."""

    thread_id: str
    ns: str
    flow_id: str
    prefix: str
    head: Key
    """The key of the head."""

    def at(self, prefix: str, ns: str = "") -> Place:
        """Return another namespace of the same thread."""
        key = part_key(self.flow_id, f"{prefix}~")
        return Place(self.thread_id, ns, self.flow_id, prefix, key)

    def group(self, checkpoint_id: str) -> str:
        """What the names of a checkpoint and of its writes begin with."""
        return f"{self.prefix}{_quoted(checkpoint_id)}/"


@lru_cache(_PLACES)
def _quoted(checkpoint_id: str) -> str:
    if _UNQUOTED(checkpoint_id):  # as every id that LangGraph makes
        return checkpoint_id

    return quote(checkpoint_id, safe="").replace("~", "%7E")  # so that it sorts before the head


class Group(NamedTuple):
    """A checkpoint and its writes, as they are stored, with or without their bodies."""

    flow_id: str
    prefix: str
    checkpoint_id: str
    checkpoint: ListedPart
    writes: Sequence[ListedPart]

    @property
    def parent(self) -> str | None:
        """The id of the checkpoint that this one continues from."""
        return told_by(self.checkpoint.head.position)[0]

    def body(self, part: ListedPart) -> tuple[Any, bytes]:
        """Return the header and the bytes of the body of one of them."""
        return unframed(body_of(self.flow_id, part))

    @property
    def parts(self) -> list[ListedPart]:
        """All of it."""
        return [self.checkpoint, *self.writes]


def thread_flow(thread_id: str) -> str:
    """Return the id of a thread's flow.

    It has a tag, so that the flow shares a partition with the flow whose id is the thread's, and with
    whatever shares the tag of the thread's id, if that has one.

    >>> thread_flow("order-1"), thread_flow("{order-1}/chat")
    ('{order-1}/langgraph/order-1', '{order-1}/langgraph/%7Border-1}%2Fchat')
    """
    own = _OWN_TAG.search(thread_id)
    tag = own[1] if own else thread_id if thread_id and "}" not in thread_id else None
    return cs.join_id("langgraph", thread_id, tag=tag)


def place_of(config: RunnableConfig) -> Place:
    """Return the namespace that a config names."""
    return asked_by(config)[0]


def asked_by(config: RunnableConfig) -> tuple[Place, str | None, str | None]:
    """Return the namespace that a config names, the checkpoint if it names one, and its marker."""
    configurable = config.get("configurable", _NOTHING)
    if "thread_id" not in configurable:
        message = (
            "the config does not name a thread, so nothing was sent; pass "
            "config={'configurable': {'thread_id': ...}}"
        )
        raise cs.UsageError(message)

    get = configurable.get
    place = _place_of(str(configurable["thread_id"]), get("checkpoint_ns") or "")
    return place, get("checkpoint_id") or None, get(SEEN)


@lru_cache(_PLACES)
def _place_of(thread_id: str, ns: str) -> Place:
    flow_id, prefix = thread_flow(thread_id), _prefix(ns)
    return Place(thread_id, ns, flow_id, prefix, part_key(flow_id, f"{prefix}~"))


def _prefix(ns: str) -> str:
    quoted = f"={quote(ns, safe=':|')}/"
    if len(quoted) <= _NAMESPACE_BYTES:
        return quoted

    return f"#{blake2b(ns.encode(), digest_size=24).hexdigest()}/"


def id_in(config: RunnableConfig) -> str | None:
    """Return the checkpoint that a config names."""
    return config.get("configurable", _NOTHING).get("checkpoint_id") or None


def config_of(place: Place, checkpoint_id: str, run: str, newest: str | None) -> RunnableConfig:
    """Return the config of a checkpoint for this run, which has got that and seen the newest one."""
    thread_id, ns = place.thread_id, place.ns
    return {
        "configurable": {
            "thread_id": thread_id,
            "checkpoint_ns": ns,
            "checkpoint_id": checkpoint_id,
            SEEN: _encode_plain((thread_id, ns, run, checkpoint_id, newest)).decode(),
        }
    }


def marker_of(place: Place, seen: Seen) -> str:
    """Return what a run has seen of a namespace, as text."""
    return _encode_plain((place.thread_id, place.ns, *seen)).decode()


def seen_in(marker: str | None, place: Place) -> Seen | None:
    """Return what the run with this marker has seen of this namespace; `None` if it has not looked."""
    if marker is None:
        return None

    thread_id, ns, run, got, newest = _decode(marker)
    return Seen(run, got, newest) if (thread_id, ns) == place[:2] else None


def tag_of_head(run: str, newest: str) -> str:
    """Return the tag of the head: which run has written the newest checkpoint."""
    return f"{run} {newest}"


def newest_of(head: Head | None) -> str | None:
    """Return the newest checkpoint by the head of its namespace."""
    return None if head is None else head.position.partition(" ")[2]


def run_of(head: Head) -> str:
    """Return which run has written the newest checkpoint."""
    return head.position.partition(" ")[0]


def _framed(header: object, blobs: Iterable[bytes]) -> bytes:
    """Return a body: a line of JSON, and whatever bytes."""
    return b"".join((_encode(header).encode(), b"\n", *blobs))


def _decoded(text: str | bytes) -> Any:
    """Return what JSON says. Metadata may have a NaN, which only the standard library reads."""
    try:
        return _decode(text)
    except msgspec.DecodeError:
        return json.loads(text)


def unframed(body: bytes) -> tuple[Any, bytes]:
    """Return the header of a body, and its bytes."""
    header, _, blob = body.partition(b"\n")
    try:
        return _decode(header), blob
    except msgspec.DecodeError:
        return _decoded(header), blob


def checkpoint_text(
    parent: str | None, metadata: CheckpointMetadata, typed: tuple[str, bytes]
) -> tuple[str, bytes]:
    """Return tag and body of a checkpoint. Metadata that do not fit into the tag are in the body."""
    kind, blob = typed
    tag = _encode([parent, metadata])
    if len(tag) <= _TAG_BYTES:
        return tag, _header_of(kind) + blob

    return _encode([parent]), _framed([kind, metadata], (blob,))


@lru_cache(16)
def _header_of(kind: str) -> bytes:
    """Return the header of a checkpoint whose metadata are in its tag."""
    return _framed([kind], ())


def told_by(tag: str) -> tuple[str | None, CheckpointMetadata | None]:
    """Return what the tag of a checkpoint says: its parent; its metadata, `None` if the body has them."""
    try:
        said = _decode(tag)
    except msgspec.DecodeError:
        said = _decoded(tag)

    return said[0], said[1] if len(said) > 1 else None


def writes_texts(
    group: str,
    writes: Sequence[tuple[str, Any]],
    task: tuple[str, str],
    serde: SerializerProtocol,
) -> list[tuple[str, bytes, bool]]:
    """Return the parts of one `put_writes`: one for all ordinary writes, one for each special one.

    Each is a name, a body, and whether it is a special one. `group` is that of the checkpoint. The names
    say which replace others: of ordinary writes the first ones stay, and special ones replace what the
    task has written to that channel before.
    """
    task_id = task[0]
    name = f"{group}w/{task_id if _UNQUOTED(task_id) else quote(task_id, safe='')}"
    texts: list[tuple[str, bytes, bool]] = []
    entries: list[tuple[int, str, str, int]] = []
    blobs: list[bytes] = []
    for place_in_list, (channel, value) in enumerate(writes):
        index = WRITES_IDX_MAP.get(channel, place_in_list)
        kind, blob = serde.dumps_typed(value)
        entry = index, channel, kind, len(blob)
        if index < 0:
            texts.append((f"{name}/{index}", _of_task(task, [entry], [blob]), True))
        else:
            entries.append(entry)
            blobs.append(blob)

    if entries:
        texts.append((f"{name}/{len(writes)}", _of_task(task, entries, blobs), False))

    return texts


def _of_task(
    task: tuple[str, str], entries: Sequence[tuple[int, str, str, int]], blobs: Iterable[bytes]
) -> bytes:
    """Return the body of writes: what they are, and their bytes."""
    header = *task, entries
    try:
        text = _encode_plain(header)  # a fifth of what `_encode` takes
    except UnicodeEncodeError:  # a lone surrogate, which that one keeps
        return _framed(header, blobs)

    return b"".join((text, b"\n", *blobs))


def writes_of(group: Group, serde: SerializerProtocol) -> list[PendingWrite]:
    """Return the writes of a checkpoint in `writes_sort_key` order; the first of an index counts.

    Of two calls of one task in the same millisecond, that counts which wrote less.
    """
    found: dict[tuple[str, int], tuple[tuple[str, str, int], str, str, bytes]] = {}
    parts = group.writes
    for part in sorted(parts, key=_age_of) if len(parts) > 1 else parts:
        (task, path, entries), blob = group.body(part)
        start = 0
        for index, channel, kind, size in entries:
            data, start = blob[start : start + size], start + size
            found.setdefault(
                (task, index), (writes_sort_key(path, task, index), channel, kind, data)
            )

    return [
        (task, channel, serde.loads_typed((kind, data)))
        for (task, _), (_, channel, kind, data) in sorted(found.items(), key=_in_order)
    ]


def _in_order(
    one: tuple[object, tuple[tuple[str, str, int], str, str, bytes]],
) -> tuple[str, str, int]:
    return one[1][0]


def _age_of(part: ListedPart) -> tuple[int, int]:
    return part.head.created_ms, int(part.name.rpartition("/")[2])

"""What is stored of a thread, and what a run has seen of it. Pure: nothing here does I/O.

A thread is one flow, which is never due; all else are its parts, so deleting the flow deletes the
thread. Each checkpoint namespace has a prefix, `=` and its quoted name; under that are

| part | body | tag |
|---|---|---|
| `<prefix>/<checkpoint id>/c` | the checkpoint, as LangGraph's serializer writes it | parent, metadata |
| `<prefix>/<checkpoint id>/w/<task>/<number of writes>` | the ordinary writes of one `put_writes` | |
| `<prefix>/<checkpoint id>/w/<task>/<negative index>` | one write of a special channel | |
| `<prefix>/~` | the name of the namespace | the run that wrote last, the newest checkpoint |

The last one is the head. It sorts after all checkpoints, so a listing from the end returns it and the
newest checkpoint in one round trip. Every `put` writes the head, version-checked, and every `put_writes`
checks it: the store decides, in the same commit, whether the thread is still where the run has seen it.
The newest checkpoint is the one that was written last, whatever the clocks of the writers say.

What a run has seen is in the config that it passes back under `SEEN`: `get_tuple` and `list` add it to
the configs that they return, and `get_tuple` to a config for which it finds nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from collections.abc import Sequence
from datetime import datetime
from hashlib import blake2b
from typing import Any
from typing import Final
from typing import NamedTuple
from urllib.parse import quote

from attrs import define
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import WRITES_IDX_MAP
from langgraph.checkpoint.base import CheckpointMetadata
from langgraph.checkpoint.base import PendingWrite
from langgraph.checkpoint.base import writes_sort_key
from langgraph.checkpoint.serde.base import SerializerProtocol

import catga_store as cs

__all__ = [
    "SEEN",
    "THREAD_TYPE",
    "GraphThread",
    "Group",
    "Place",
    "Seen",
    "StaleThreadError",
    "checkpoint_part",
    "config_of",
    "id_in",
    "metadata_of",
    "newest_of",
    "place_of",
    "run_of",
    "seen_in",
    "thread_flow",
    "unframed",
    "writes_of",
    "writes_parts",
]

SEEN: Final = "__catga_seen"
"""The key in `configurable` of what a run has seen. It begins with `__`, because LangGraph copies other
keys into the metadata of checkpoints."""

THREAD_TYPE: Final = "langgraph.thread"
_TAG_BYTES = 256
_NAMESPACE_BYTES = 240
_OWN_TAG = re.compile(r"\{([^}]+)\}")


class StaleThreadError(cs.ConflictError):
    """The thread has moved on since this run read it, or was deleted. Nothing was written.

    `expected` is the checkpoint that the run continues from, `actual` the newest one of the namespace;
    each is `None` where there is none.
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

    @property
    def head(self) -> str:
        """The name of the head."""
        return f"{self.prefix}~"

    def group(self, checkpoint_id: str) -> str:
        """What the names of a checkpoint and of its writes begin with."""
        return (
            f"{self.prefix}{quote(checkpoint_id, safe='').replace('~', '%7E')}/"  # before the head
        )

    def marker(self, seen: Seen) -> str:
        """What a run has seen here, as text."""
        return json.dumps([self.thread_id, self.ns, *seen])


class Group(NamedTuple):
    """A checkpoint and its writes, as they are stored, with or without their bodies."""

    prefix: str
    checkpoint_id: str
    checkpoint: cs.Part[bytes]
    writes: Sequence[cs.Part[bytes]]

    @property
    def parent(self) -> str | None:
        """The id of the checkpoint that this one continues from."""
        parent: str | None = json.loads(self.checkpoint.tag)[0]
        return parent

    @property
    def parts(self) -> list[cs.Part[bytes]]:
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
    configurable = config.get("configurable", {})
    if "thread_id" not in configurable:
        message = (
            "the config names no thread; nothing was sent; pass"
            " config={'configurable': {'thread_id': ...}}"
        )
        raise cs.UsageError(message)

    thread_id, ns = str(configurable["thread_id"]), configurable.get("checkpoint_ns") or ""
    return Place(thread_id, ns, thread_flow(thread_id), _prefix(ns))


def _prefix(ns: str) -> str:
    quoted = f"={quote(ns, safe=':|')}/"
    if len(quoted) <= _NAMESPACE_BYTES:
        return quoted

    return f"#{blake2b(ns.encode(), digest_size=24).hexdigest()}/"


def id_in(config: RunnableConfig) -> str | None:
    """Return the checkpoint that a config names."""
    return config.get("configurable", {}).get("checkpoint_id") or None


def config_of(place: Place, checkpoint_id: str, seen: Seen) -> RunnableConfig:
    """Return the config of a checkpoint for one that has seen this."""
    return {
        "configurable": {
            "thread_id": place.thread_id,
            "checkpoint_ns": place.ns,
            "checkpoint_id": checkpoint_id,
            SEEN: place.marker(seen._replace(got=checkpoint_id)),
        }
    }


def seen_in(config: RunnableConfig, place: Place) -> Seen | None:
    """Return what the run of this config has seen of this namespace; `None` if it has not looked."""
    marker = config.get("configurable", {}).get(SEEN)
    if marker is None:
        return None

    thread_id, ns, *seen = json.loads(marker)
    return Seen(*seen) if (thread_id, ns) == (place.thread_id, place.ns) else None


def newest_of(head: cs.Part[bytes] | None) -> str | None:
    """Return the newest checkpoint by the head of its namespace."""
    return None if head is None else head.tag.partition(" ")[2]


def run_of(head: cs.Part[bytes]) -> str:
    """Return which run has written the newest checkpoint."""
    return head.tag.partition(" ")[0]


def _framed(header: object, blobs: Iterable[bytes]) -> bytes:
    """Return a body: a line of JSON, and whatever bytes."""
    return b"\n".join((json.dumps(header, separators=(",", ":")).encode(), b"".join(blobs)))


def unframed(body: bytes) -> tuple[Any, bytes]:
    """Return the header of a body, and its bytes."""
    header, _, blob = body.partition(b"\n")
    return json.loads(header), blob


def checkpoint_part(
    place: Place,
    checkpoint_id: str,
    parent: str | None,
    metadata: CheckpointMetadata,
    typed: tuple[str, bytes],
) -> cs.Part[bytes]:
    """Return a checkpoint's part. Metadata that do not fit into the tag are in the body."""
    kind, blob = typed
    tag = json.dumps([parent, metadata], separators=(",", ":"))
    header: list[object] = [kind]
    if len(tag) > _TAG_BYTES:
        tag, header = json.dumps([parent]), [kind, metadata]

    return cs.Part(
        place.flow_id, f"{place.group(checkpoint_id)}c", _framed(header, (blob,)), tag=tag
    )


def metadata_of(checkpoint: cs.Part[bytes]) -> CheckpointMetadata | None:
    """Return the metadata in the tag; `None` if they are in the body."""
    stored: list[Any] = json.loads(checkpoint.tag)
    found: CheckpointMetadata | None = stored[1] if len(stored) > 1 else None
    return found


def writes_parts(
    place: Place,
    checkpoint_id: str,
    writes: Sequence[tuple[str, Any]],
    task: tuple[str, str],
    serde: SerializerProtocol,
) -> list[cs.Part[bytes]]:
    """Return the parts of one `put_writes`: one for all ordinary writes, one for each special one.

    The names say which replace others: of ordinary writes the first ones stay, and special ones replace
    what the task has written to that channel before.
    """
    ordinary: list[tuple[int, str, str, bytes]] = []
    special: list[tuple[int, str, str, bytes]] = []
    for place_in_list, (channel, value) in enumerate(writes):
        index = WRITES_IDX_MAP.get(channel, place_in_list)
        one = index, channel, *serde.dumps_typed(value)
        (ordinary if index >= 0 else special).append(one)

    name = f"{place.group(checkpoint_id)}w/{quote(task[0], safe='')}"
    named = [(f"{name}/{write[0]}", [write]) for write in special]
    if ordinary:
        named.append((f"{name}/{len(writes)}", ordinary))

    return [
        cs.Part(
            place.flow_id,
            one,
            _framed(
                [
                    *task,
                    [(index, channel, kind, len(blob)) for index, channel, kind, blob in several],
                ],
                [blob for *_, blob in several],
            ),
        )
        for one, several in named
    ]


def writes_of(group: Group, serde: SerializerProtocol) -> list[PendingWrite]:
    """Return the writes of a checkpoint in `writes_sort_key` order; the first of an index counts.

    Of two calls of one task in the same millisecond, that counts which wrote less.
    """
    found: dict[tuple[str, int], tuple[tuple[str, str, int], str, str, bytes]] = {}
    for part in sorted(group.writes, key=_age_of):
        (task, path, entries), blob = unframed(part.body)
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


def _age_of(part: cs.Part[bytes]) -> tuple[datetime | None, int]:
    return part.created_at, int(part.name.rpartition("/")[2])

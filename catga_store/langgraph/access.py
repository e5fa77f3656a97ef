"""What the operations of a saver share: the store's context, the heads that were seen, and how all are read.

Every operation is a conversation, as in `catga_store.core`: blocking and async savers run the same ones.
Those that find many things are generators which yield requests and results, mixed; `next_of` runs one to
its next result.
"""

from __future__ import annotations

from collections.abc import Collection
from collections.abc import Generator
from collections.abc import Iterable
from collections.abc import Iterator
from itertools import islice
from typing import Any
from typing import TypeAlias
from typing import TypeVar

from attrs import define

import catga_store as cs
from catga_store.core.context import Context
from catga_store.core.envelope import stored_bytes
from catga_store.langgraph.layout import Group
from catga_store.langgraph.layout import Place
from catga_store.langgraph.layout import told_by
from catga_store.langgraph.layout import unframed
from catga_store.protocol.conversation import Conversation
from catga_store.protocol.conversation import Request
from catga_store.protocol.keys import part_key
from catga_store.protocol.requests import Head
from catga_store.protocol.requests import ListedPart
from catga_store.protocol.requests import Parts
from catga_store.protocol.requests import Read

__all__ = [
    "PAGE",
    "Access",
    "Heads",
    "Mixed",
    "in_batches",
    "keep",
    "metadata_in",
    "next_of",
    "page_of",
    "read_group",
    "read_head",
]

T = TypeVar("T")

PAGE = 100
_HEADS = 1024
"""Heads that a saver keeps; one that it has dropped is read again."""

Mixed: TypeAlias = Generator[Request[Any] | T, Any, None]
"""Yields requests, whose replies it is sent, and results."""

Heads: TypeAlias = dict[tuple[str, str], Head | None]
"""By flow and prefix of the namespace, as last read or written here: what a run needs to write next."""


@define(eq=False)
class Access:
    """One saver's way to its store."""

    context: Context
    heads: Heads
    claimed: cs.FlowSnapshot[Any] | None = None
    """All is written under this claim."""


def next_of(found: Mixed[T]) -> Conversation[T | None]:
    """Run a generator to its next result; `None` at its end."""
    try:
        item = next(found)
        while isinstance(item, Request):
            try:
                reply = yield item
            except Exception as error:  # noqa: BLE001  it goes where the request came from
                item = found.throw(error)
            else:
                item = found.send(reply)
    except StopIteration:
        return None

    return item


def keep(to: Access, place: Place, head: Head | None) -> None:
    """Keep the head of a namespace as it was just read or written."""
    heads, key = to.heads, (place.flow_id, place.prefix)
    heads.pop(key, None)
    heads[key] = head
    if len(heads) > _HEADS:
        for old in list(heads)[: _HEADS // 2]:
            heads.pop(old, None)


def read_head(to: Access, place: Place) -> Conversation[Head | None]:
    """Read the head of a namespace."""
    (record,) = yield Read((place.head,), to.context.settings.now_ms())
    head: Head | None = None if record is None else record.head
    keep(to, place, head)
    return head


def page_of(
    to: Access,
    flow_id: str,
    prefix: str,
    *,
    after: str | None = None,
    before: str | None = None,
    reverse: bool = False,
    limit: int = PAGE,
    bodies: bool = True,
    until: str = "",
) -> Conversation[tuple[ListedPart, ...]]:
    """Read some parts of a thread; as many as `limit` if there are more."""
    now_ms = to.context.settings.now_ms()
    page: tuple[ListedPart, ...] = yield Parts(
        flow_id, prefix, after, before, reverse, limit, bodies, now_ms, until=until
    )
    return page


def read_group(to: Access, place: Place, checkpoint_id: str) -> Conversation[Group | None]:
    """Read a checkpoint with its writes."""
    prefix = place.group(checkpoint_id)
    parts: list[ListedPart] = []
    after = None
    while True:
        page = yield from page_of(to, place.flow_id, prefix, after=after)
        parts += page
        if len(page) < PAGE:
            break

        after = page[-1].name

    writes = [part for part in parts if part.name != f"{prefix}c"]
    if len(parts) == len(writes):
        return None

    (checkpoint,) = (part for part in parts if part.name == f"{prefix}c")
    return Group(place.flow_id, place.prefix, checkpoint_id, checkpoint, writes)


def metadata_in(to: Access, flow_id: str, group: Group) -> Conversation[dict[str, Any]]:
    """Return metadata of a checkpoint that was listed without its body, reading that if it has them."""
    _, found = told_by(group.checkpoint.head.position)
    if found is None:
        key = part_key(flow_id, group.checkpoint.name)
        (record,) = yield Read((key,), to.context.settings.now_ms())
        found = {} if record is None else unframed(stored_bytes(key, record.body))[0][1]

    return dict(found)


def in_batches(parts: Iterable[T], size: int) -> Iterator[Collection[T]]:
    """Divide into lists of up to `size` each."""
    left = iter(parts)
    while batch := list(islice(left, size)):
        yield batch

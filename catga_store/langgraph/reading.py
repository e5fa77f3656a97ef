"""Reading checkpoints: one, the newest, many, and what delta channels are made of."""

from __future__ import annotations

import os
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any
from urllib.parse import unquote

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import CheckpointTuple
from langgraph.checkpoint.base import DeltaChannelHistory
from langgraph.checkpoint.base import PendingWrite
from langgraph.checkpoint.serde.base import SerializerProtocol

import catga_store as cs
from catga_store.core import listings
from catga_store.core.envelope import stored_bytes
from catga_store.langgraph.access import PAGE
from catga_store.langgraph.access import Access
from catga_store.langgraph.access import Mixed
from catga_store.langgraph.access import keep
from catga_store.langgraph.access import metadata_in
from catga_store.langgraph.access import next_of
from catga_store.langgraph.access import page_of
from catga_store.langgraph.access import read_group
from catga_store.langgraph.access import read_head
from catga_store.langgraph.layout import CHECKPOINT
from catga_store.langgraph.layout import SEEN
from catga_store.langgraph.layout import THREAD_TYPE
from catga_store.langgraph.layout import Group
from catga_store.langgraph.layout import Place
from catga_store.langgraph.layout import Seen
from catga_store.langgraph.layout import asked_by
from catga_store.langgraph.layout import config_of
from catga_store.langgraph.layout import id_in
from catga_store.langgraph.layout import marker_of
from catga_store.langgraph.layout import newest_of
from catga_store.langgraph.layout import place_of
from catga_store.langgraph.layout import told_by
from catga_store.langgraph.layout import writes_of
from catga_store.protocol.conversation import Conversation
from catga_store.protocol.requests import ListedPart
from catga_store.protocol.requests import Parts
from catga_store.protocol.requests import Read

__all__ = [
    "ancestors",
    "get_tuple",
    "groups",
    "history",
    "list_tuples",
    "new_run",
    "threads",
    "values_of",
]


def new_run() -> str:
    """Return a name for a run, which no other has."""
    return os.urandom(8).hex()


# one checkpoint -----------------------------------------------------------------------------------


def get_tuple(
    to: Access, serde: SerializerProtocol, config: RunnableConfig
) -> Conversation[CheckpointTuple | None]:
    """Return the checkpoint that a config names, else the newest one."""
    place, wanted, _ = asked_by(config)
    group: Group | None
    if wanted is None:
        page: Sequence[ListedPart] = yield _latest(to, place)
        head = page[0].head if page and page[0].name == place.head.name else None
        keep(to, place, head)
        newest = newest_of(head) or None
        group = None if newest is None else _newest_in(page, place, newest)
        if group is None and newest is not None:
            # It has many writes, or the clock of its writer was behind.
            group = yield from read_group(to, place, newest)
    else:
        head = yield from read_head(to, place)
        newest = newest_of(head)
        group = yield from read_group(to, place, wanted)

    run = new_run()
    if group is None:
        # The run that finds nothing passes this config on: its first `put` expects to find nothing.
        config["configurable"][SEEN] = marker_of(place, Seen(run, wanted, newest))
        return None

    return _tuple(serde, place, group, run, newest)


def _latest(to: Access, place: Place) -> Parts:
    """Return what reads the head of a namespace, and the last checkpoint by name with its writes."""
    now_ms = to.context.settings.now_ms()
    return Parts(
        place.flow_id,
        place.prefix,
        None,
        None,
        reverse=True,
        limit=PAGE,
        bodies=True,
        now_ms=now_ms,
        until=CHECKPOINT,
        brief=True,
    )


def _newest_in(page: Sequence[ListedPart], place: Place, newest: str) -> Group | None:
    """Return the newest checkpoint, unless another one is the last by name, or not all of it is in the page."""
    prefix, last = place.group(newest), page[-1]
    if last.name != f"{prefix}c":
        return None

    writes: Sequence[ListedPart] = ()
    if len(page) > 2:  # noqa: PLR2004  the head and the checkpoint
        writes = [part for part in page[1:-1] if part.name.startswith(prefix)]

    return Group(place.flow_id, place.prefix, newest, last, writes)


def _tuple(
    serde: SerializerProtocol, place: Place, group: Group, run: str, newest: str | None
) -> CheckpointTuple:
    (kind, *rest), blob = group.body(group.checkpoint)
    parent, metadata = told_by(group.checkpoint.head.position)
    return CheckpointTuple(
        config_of(place, group.checkpoint_id, run, newest),
        serde.loads_typed((kind, blob)),
        rest[0] if rest else metadata or {},
        None if parent is None else config_of(place, parent, run, newest),
        writes_of(group, serde) if group.writes else [],
    )


# many ---------------------------------------------------------------------------------------------


def groups(
    to: Access,
    flow_id: str,
    prefix: str,
    *,
    before: str | None = None,
    bodies: bool = False,
    size: int = PAGE,
) -> Mixed[Group]:
    """Yield the checkpoints of a thread, the last names first."""
    writes: list[ListedPart] = []
    while True:
        page = yield from page_of(
            to, flow_id, prefix, before=before, reverse=True, limit=size, bodies=bodies
        )
        yield from _groups_in(flow_id, page, writes)
        if len(page) < size:
            return

        before = page[-1].name
        size = min(2 * size, PAGE)


def _groups_in(
    flow_id: str, page: Sequence[ListedPart], writes: list[ListedPart]
) -> Iterator[Group]:
    """Yield the checkpoints of a page; `writes` are those that came before, and those that are left."""
    for part in page:
        namespace, _, rest = part.name.partition("/")
        quoted, _, kind = rest.partition("/")
        if kind.startswith("w/"):
            writes.append(part)
        elif kind == "c":
            own = [write for write in writes if write.name.startswith(part.name[:-1])]
            writes.clear()
            yield Group(flow_id, f"{namespace}/", unquote(quoted), part, own)


def threads(to: Access, config: RunnableConfig | None = None) -> Mixed[Place]:
    """Yield the threads that a config means: one, or all."""
    if config is not None:
        yield place_of(config)
        return

    cursor = None
    while True:
        page = yield from listings.query_flows(to.context, state_type=THREAD_TYPE, cursor=cursor)
        for flow in page:
            thread_id = cs.split_id(flow.flow_id)[0][-1]
            yield place_of({"configurable": {"thread_id": thread_id}})

        cursor = page.cursor
        if cursor is None:
            return


def list_tuples(
    to: Access,
    serde: SerializerProtocol,
    config: RunnableConfig | None,
    *,
    wanted: Mapping[str, Any] | None,
    before: RunnableConfig | None,
    limit: int | None,
) -> Mixed[CheckpointTuple]:
    """Yield the checkpoints of a listing; `wanted` is what their metadata must have."""
    last = None if before is None else id_in(before)
    left = limit
    every = threads(to, config)
    while (thread := (yield from next_of(every))) is not None:
        known: dict[str, tuple[Place, str, str | None] | None] = {}
        found = _listed(to, config, thread, last, left, bodies=not wanted)
        while (group := (yield from next_of(found))) is not None:
            if left is not None and left <= 0:
                return

            if last is not None and group.checkpoint_id >= last:
                continue

            if wanted:
                metadata = yield from metadata_in(to, thread.flow_id, group)
                if not _matches(metadata, wanted):
                    continue

            if group.prefix not in known:
                known[group.prefix] = yield from _newest_now(to, thread, group.prefix)

            at = known[group.prefix]
            whole: Group | None = group
            if wanted and at is not None:
                whole = yield from read_group(to, at[0], group.checkpoint_id)

            # Without a head, it is in a copy that is not complete.
            if at is not None and whole is not None:
                left = None if left is None else left - 1
                place, run, newest = at
                yield _tuple(serde, place, whole, run, newest)


def _listed(
    to: Access,
    config: RunnableConfig | None,
    place: Place,
    last: str | None,
    limit: int | None,
    *,
    bodies: bool,
) -> Mixed[Group]:
    """Yield what a listing looks at in one thread."""
    size = PAGE if limit is None or not bodies else max(2, min(2 * limit, PAGE))
    configurable = {} if config is None else config["configurable"]
    if configurable.get("checkpoint_ns") is None:
        return groups(to, place.flow_id, "", bodies=bodies, size=size)

    one = configurable.get("checkpoint_id")
    prefix = place.group(one) if one else place.prefix
    until = place.group(last) if last else None
    return groups(to, place.flow_id, prefix, before=until, bodies=bodies, size=size)


def _newest_now(
    to: Access, thread: Place, prefix: str
) -> Conversation[tuple[Place, str, str | None] | None]:
    """Return a namespace by its prefix, a name for a run that begins now, and the newest checkpoint."""
    key = thread.at(prefix).head
    (record,) = yield Read((key,), to.context.settings.now_ms())
    if record is None:
        return None

    place = thread.at(prefix, stored_bytes(key, record.body).decode())
    return place, new_run(), newest_of(record.head)


def _matches(metadata: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    return all(key in metadata and metadata[key] == value for key, value in wanted.items())


# what delta channels are made of --------------------------------------------------------------------


def history(
    to: Access, serde: SerializerProtocol, config: RunnableConfig, channels: Sequence[str]
) -> Conversation[Mapping[str, DeltaChannelHistory]]:
    """Return the writes of channels since their values were last stored whole, and those values."""
    place, target = place_of(config), id_in(config)
    if channels and target is None:
        head = yield from read_head(to, place)
        target = newest_of(head)

    open_channels = set(channels) if target is not None else set()
    writes: dict[str, list[PendingWrite]] = {channel: [] for channel in channels}
    seeds: dict[str, Any] = {}
    parents = ancestors(to, place, target or "")
    while open_channels and (group := (yield from next_of(parents))) is not None:
        for write in reversed(writes_of(group, serde)):
            if write[1] in open_channels:
                writes[write[1]].append(write)

        values = values_of(group, serde)
        seeds |= {channel: values[channel] for channel in open_channels if channel in values}
        open_channels -= values.keys()

    found: dict[str, DeltaChannelHistory] = {}
    for channel in channels:
        found[channel] = {"writes": writes[channel][::-1]}
        if channel in seeds:
            found[channel]["seed"] = seeds[channel]

    return found


def values_of(group: Group, serde: SerializerProtocol) -> Mapping[str, Any]:
    """Return the values of the channels that a checkpoint has."""
    (kind, *_), blob = group.body(group.checkpoint)
    values: Mapping[str, Any] = serde.loads_typed((kind, blob))["channel_values"]
    return values


def ancestors(to: Access, place: Place, checkpoint_id: str) -> Mixed[Group]:
    """Yield the parents of a checkpoint, nearest first.

    Ids have the order of time, so parents are mostly found on the way down; where they are not, each is
    read for itself.
    """
    wanted: str | None = checkpoint_id
    until = f"{place.group(checkpoint_id)}d"  # the checkpoint itself, without its writes
    found = groups(to, place.flow_id, place.prefix, before=until, bodies=True, size=8)
    while (group := (yield from next_of(found))) is not None:
        if wanted is None or group.checkpoint_id < wanted:
            break

        if group.checkpoint_id == wanted:
            wanted = group.parent
            if group.checkpoint_id != checkpoint_id:
                yield group

    while wanted is not None and (one := (yield from read_group(to, place, wanted))) is not None:
        wanted = one.parent
        if one.checkpoint_id != checkpoint_id:
            yield one

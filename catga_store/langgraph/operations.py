"""Every method of the saver once, as a coroutine: on a blocking store it never waits.

What a method reads may be old when it writes, so each write is decided by the store: a commit has the
head of the namespace in it, written or checked at the version that was read. If that is refused, the head
is read again, and decides whether the run is stale or the commit is tried again.

This file is over 400 lines because the methods share a few ways to read, and each is read beside them.
"""

from __future__ import annotations

import copy
import secrets
from collections.abc import AsyncGenerator
from collections.abc import Awaitable
from collections.abc import Callable
from collections.abc import Collection
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from contextlib import aclosing
from functools import partial
from itertools import islice
from typing import Any
from urllib.parse import unquote

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.base import Checkpoint
from langgraph.checkpoint.base import CheckpointMetadata
from langgraph.checkpoint.base import CheckpointTuple
from langgraph.checkpoint.base import DeltaChannelHistory
from langgraph.checkpoint.base import PendingWrite
from langgraph.checkpoint.base import get_checkpoint_metadata

import catga_store as cs
from catga_store.langgraph.layout import SEEN
from catga_store.langgraph.layout import THREAD_TYPE
from catga_store.langgraph.layout import GraphThread
from catga_store.langgraph.layout import Group
from catga_store.langgraph.layout import Place
from catga_store.langgraph.layout import Seen
from catga_store.langgraph.layout import StaleThreadError
from catga_store.langgraph.layout import checkpoint_part
from catga_store.langgraph.layout import config_of
from catga_store.langgraph.layout import id_in
from catga_store.langgraph.layout import metadata_of
from catga_store.langgraph.layout import newest_of
from catga_store.langgraph.layout import place_of
from catga_store.langgraph.layout import run_of
from catga_store.langgraph.layout import seen_in
from catga_store.langgraph.layout import thread_flow
from catga_store.langgraph.layout import unframed
from catga_store.langgraph.layout import writes_of
from catga_store.langgraph.layout import writes_parts

__all__ = ["ThreadOperations"]

_AT_ONCE = 190
"""Parts that one commit deletes; a commit names at most 200 records."""
_COPIED_AT_ONCE = 50
_PAGE = 100
_HEADS = 1024
"""Heads that a saver keeps; one that it has dropped is read again."""
_ATTEMPTS = 100

_Head = cs.Part[bytes] | None
_Fill = Callable[[Any], None]


async def _settled(result: Any) -> Any:
    """Return the result of a store's method, blocking or async."""
    return await result if isinstance(result, Awaitable) else result


class ThreadOperations(BaseCheckpointSaver[str]):
    """What a saver does on either kind of store."""

    store: Any
    _claimed: cs.FlowSnapshot[Any] | None
    _heads: dict[tuple[str, str], _Head]
    """Heads as they were last read or written here: what a run needs for its next write."""

    # reading --------------------------------------------------------------------------------------

    async def _get_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        place, wanted = place_of(config), id_in(config)
        if wanted is None:
            head, group = await self._latest(place)
        else:
            head, group = await self._read_head(place), await self._group(place, wanted)

        seen = Seen(secrets.token_hex(8), wanted, newest_of(head))
        if group is None:
            # The run that finds nothing passes this config on: its first `put` expects to find nothing.
            config["configurable"][SEEN] = place.marker(seen)
            return None

        return self._tuple(place, group, seen)

    async def _latest(self, place: Place) -> tuple[_Head, Group | None]:
        """Read the head of a namespace, and its newest checkpoint."""
        page = await _settled(
            self.store.list_parts(place.flow_id, place.prefix, reverse=True, limit=2, bodies=True)
        )
        found: dict[str, cs.Part[bytes]] = {part.name: part for part in page}
        head = found.get(place.head)
        self._keep(place, head)
        newest = newest_of(head)
        if newest is None:
            return None, None

        checkpoint = found.get(f"{place.group(newest)}c")
        if checkpoint is not None:  # it has no writes, or one of them would be here in its place
            return head, Group(place.prefix, newest, checkpoint, [])

        return head, await self._group(place, newest)

    async def _read_head(self, place: Place) -> _Head:
        head: _Head = await _settled(self.store.get_part(place.flow_id, place.head))
        self._keep(place, head)
        return head

    def _keep(self, place: Place, head: _Head) -> None:
        self._heads.pop((place.flow_id, place.prefix), None)
        self._heads[place.flow_id, place.prefix] = head
        if len(self._heads) > _HEADS:
            for key in list(self._heads)[: _HEADS // 2]:
                self._heads.pop(key, None)

    async def _group(self, place: Place, checkpoint_id: str) -> Group | None:
        prefix = place.group(checkpoint_id)
        parts = [part async for part in self._parts(place.flow_id, prefix)]
        writes = [part for part in parts if part.name != f"{prefix}c"]
        if len(parts) == len(writes):
            return None

        (checkpoint,) = (part for part in parts if part.name == f"{prefix}c")
        return Group(place.prefix, checkpoint_id, checkpoint, writes)

    async def _parts(self, flow_id: str, prefix: str) -> AsyncGenerator[cs.Part[bytes], None]:
        after = None
        while True:
            page = await _settled(
                self.store.list_parts(flow_id, prefix, after=after, limit=_PAGE, bodies=True)
            )
            for part in page:
                yield part

            after = page.cursor
            if after is None:
                return

    async def _groups(
        self,
        flow_id: str,
        prefix: str,
        *,
        before: str | None = None,
        bodies: bool = False,
        size: int = _PAGE,
    ) -> AsyncGenerator[Group, None]:
        """Iterate over the checkpoints of a thread, the last names first."""
        writes: list[cs.Part[bytes]] = []
        while True:
            page = await _settled(
                self.store.list_parts(
                    flow_id, prefix, before=before, reverse=True, limit=size, bodies=bodies
                )
            )
            for part in page:
                namespace, _, rest = part.name.partition("/")
                quoted, _, kind = rest.partition("/")
                if kind.startswith("w/"):
                    writes.append(part)
                elif kind == "c":
                    own = [write for write in writes if write.name.startswith(part.name[:-1])]
                    writes.clear()
                    yield Group(f"{namespace}/", unquote(quoted), part, own)

            before = page.cursor
            if before is None:
                return

            size = min(2 * size, _PAGE)

    def _tuple(self, place: Place, group: Group, seen: Seen) -> CheckpointTuple:
        (kind, *rest), blob = unframed(group.checkpoint.body)
        parent = group.parent
        return CheckpointTuple(
            config_of(place, group.checkpoint_id, seen),
            self.serde.loads_typed((kind, blob)),
            rest[0] if rest else metadata_of(group.checkpoint) or {},
            None if parent is None else config_of(place, parent, seen),
            writes_of(group, self.serde),
        )

    async def _metadata(self, group: Group) -> Mapping[str, Any]:
        """Read metadata of a checkpoint that was listed without its body."""
        found = metadata_of(group.checkpoint)
        if found is None:
            whole = group.checkpoint
            whole = await _settled(self.store.get_part(whole.flow_id, whole.name))
            found = {} if whole is None else unframed(whole.body)[0][1]

        return found

    async def _list(
        self,
        config: RunnableConfig | None,
        wanted: Mapping[str, Any] | None,
        before: RunnableConfig | None,
        limit: int | None,
    ) -> AsyncGenerator[CheckpointTuple, None]:
        last = None if before is None else id_in(before)
        left = limit
        async for thread in self._threads(config):
            known: dict[str, tuple[Place, Seen] | None] = {}
            async with aclosing(
                self._listed(config, thread, last, left, bodies=not wanted)
            ) as groups:
                async for group in groups:
                    if left is not None and left <= 0:
                        return

                    if last is not None and group.checkpoint_id >= last:
                        continue

                    if wanted and not _matches(await self._metadata(group), wanted):
                        continue

                    if group.prefix not in known:
                        known[group.prefix] = await self._seen_now(thread, group.prefix)

                    at = known[group.prefix]
                    # Without a head, it is in a copy that is not complete.
                    whole = (
                        await self._group(at[0], group.checkpoint_id) if wanted and at else group
                    )
                    if at is not None and whole is not None:
                        left = None if left is None else left - 1
                        yield self._tuple(at[0], whole, at[1])

    async def _threads(self, config: RunnableConfig | None) -> AsyncGenerator[Place, None]:
        """Iterate over the threads that a config means: one, or all."""
        if config is not None:
            yield place_of(config)
            return

        cursor = None
        while True:
            page = await _settled(self.store.query_flows(state_type=THREAD_TYPE, cursor=cursor))
            for flow in page:
                thread_id = cs.split_id(flow.flow_id)[0][-1]
                yield place_of({"configurable": {"thread_id": thread_id}})

            cursor = page.cursor
            if cursor is None:
                return

    def _listed(
        self,
        config: RunnableConfig | None,
        place: Place,
        last: str | None,
        limit: int | None,
        *,
        bodies: bool,
    ) -> AsyncGenerator[Group, None]:
        """Iterate over what a listing looks at in one thread."""
        size = _PAGE if limit is None or not bodies else max(2, min(2 * limit, _PAGE))
        configurable = {} if config is None else config["configurable"]
        if configurable.get("checkpoint_ns") is None:
            return self._groups(place.flow_id, "", bodies=bodies, size=size)

        one = configurable.get("checkpoint_id")
        prefix = place.group(one) if one else place.prefix
        until = place.group(last) if last else None
        return self._groups(place.flow_id, prefix, before=until, bodies=bodies, size=size)

    async def _seen_now(self, thread: Place, prefix: str) -> tuple[Place, Seen] | None:
        """Return a namespace by its prefix, with what one sees who looks now."""
        head: _Head = await _settled(self.store.get_part(thread.flow_id, f"{prefix}~"))
        if head is None:
            return None

        place = thread._replace(ns=head.body.decode(), prefix=prefix)
        return place, Seen(secrets.token_hex(8), None, newest_of(head))

    async def _history(
        self, config: RunnableConfig, channels: Sequence[str]
    ) -> Mapping[str, DeltaChannelHistory]:
        place, target = place_of(config), id_in(config)
        if channels and target is None:
            target = newest_of(await self._read_head(place))

        open_channels = set(channels) if target is not None else set()
        writes: dict[str, list[PendingWrite]] = {channel: [] for channel in channels}
        seeds: dict[str, Any] = {}
        async with aclosing(self._ancestors(place, target or "")) as ancestors:
            while open_channels and (group := await anext(ancestors, None)) is not None:
                for write in reversed(writes_of(group, self.serde)):
                    if write[1] in open_channels:
                        writes[write[1]].append(write)

                values = self._values(group)
                seeds |= {
                    channel: values[channel] for channel in open_channels if channel in values
                }
                open_channels -= values.keys()

        history: dict[str, DeltaChannelHistory] = {}
        for channel in channels:
            history[channel] = {"writes": writes[channel][::-1]}
            if channel in seeds:
                history[channel]["seed"] = seeds[channel]

        return history

    def _values(self, group: Group) -> Mapping[str, Any]:
        (kind, *_), blob = unframed(group.checkpoint.body)
        values: Mapping[str, Any] = self.serde.loads_typed((kind, blob))["channel_values"]
        return values

    async def _ancestors(self, place: Place, checkpoint_id: str) -> AsyncGenerator[Group, None]:
        """Iterate over the parents of a checkpoint, nearest first.

        Ids have the order of time, so parents are mostly found on the way down; where they are not,
        each is read for itself.
        """
        wanted: str | None = checkpoint_id
        until = f"{place.group(checkpoint_id)}d"  # the checkpoint itself, without its writes
        groups = self._groups(place.flow_id, place.prefix, before=until, bodies=True, size=8)
        async with aclosing(groups):
            async for group in groups:
                if wanted is None or group.checkpoint_id < wanted:
                    break

                if group.checkpoint_id == wanted:
                    wanted = group.parent
                    if group.checkpoint_id != checkpoint_id:
                        yield group

        while wanted is not None and (found := await self._group(place, wanted)) is not None:
            wanted = found.parent
            if found.checkpoint_id != checkpoint_id:
                yield found

    # writing --------------------------------------------------------------------------------------

    async def _put(
        self, config: RunnableConfig, checkpoint: Checkpoint, metadata: CheckpointMetadata
    ) -> RunnableConfig:
        place, parent = place_of(config), id_in(config)
        seen = seen_in(config, place)
        new = checkpoint["id"]
        run = secrets.token_hex(8) if seen is None else seen.run
        part = checkpoint_part(
            place,
            new,
            parent,
            get_checkpoint_metadata(config, metadata),
            self.serde.dumps_typed(checkpoint),
        )

        def continues(newest: str | None, _head: _Head) -> bool:
            if newest in (parent, new) and newest is not None:
                return True

            if seen is None:
                return parent is None

            return newest == seen.newest and parent in (seen.got, None)

        async def write(head: _Head) -> None:
            # A copy, so that a commit that is refused leaves the kept one as it was read.
            moved = (
                cs.Part(place.flow_id, place.head, place.ns.encode())
                if head is None
                else copy.copy(head)
            )
            moved.tag = f"{run} {new}"
            flow = await _settled(self.store.get(place.flow_id)) if head is None else None

            def fill(session: Any) -> None:
                if flow is not None:
                    session.check(flow)
                elif head is None:
                    thread = GraphThread(place.thread_id)
                    session.add(cs.FlowSnapshot(place.flow_id, state=thread, due_at=None))
                else:
                    session.check(head)

                session.add_part(moved)
                session.add_part(part, exists="overwrite")

            await self._commit(fill)
            self._keep(place, moved)

        await self._fenced(place, parent, continues, write)
        return config_of(place, new, Seen(run, new, new))

    async def _put_writes(
        self,
        config: RunnableConfig,
        writes: Sequence[tuple[str, Any]],
        task_id: str,
        task_path: str,
    ) -> None:
        place, checkpoint_id = place_of(config), id_in(config)
        if checkpoint_id is None:
            message = "the config names no checkpoint for these writes; nothing was sent; pass what put returned"
            raise cs.UsageError(message)

        seen = seen_in(config, place)
        parts = writes_parts(place, checkpoint_id, writes, (task_id, task_path), self.serde)

        def continues(newest: str | None, head: _Head) -> bool:
            if newest == checkpoint_id:
                return True

            # LangGraph saves in the background: writes may come before the checkpoint that they are
            # for, and after the next one of the same run.
            return seen is not None and (
                newest == seen.newest or (head is not None and run_of(head) == seen.run)
            )

        async def write(head: _Head) -> None:
            def fill(session: Any) -> None:
                if head is not None:
                    session.check(head)

                for part in parts:
                    index = int(part.name.rpartition("/")[2])
                    session.add_part(part, exists="overwrite" if index < 0 else "keep")

            await self._commit(fill)

        if parts:
            await self._fenced(place, checkpoint_id, continues, write)

    async def _fenced(
        self,
        place: Place,
        expected: str | None,
        continues: Callable[[str | None, _Head], bool],
        write: Callable[[_Head], Awaitable[None]],
    ) -> None:
        """Write at the head that this saver has, else at the one that is stored; or refuse."""
        key = place.flow_id, place.prefix
        is_read = key not in self._heads
        head = await self._read_head(place) if is_read else self._heads.get(key)
        for attempt in range(_ATTEMPTS):
            if continues(newest_of(head), head):
                try:
                    await write(head)
                except cs.ConflictError as error:
                    if attempt == _ATTEMPTS - 1 or not _is_of(error, place.flow_id):
                        raise
                else:
                    return
            elif is_read:
                raise _stale(place, expected, newest_of(head))

            head, is_read = await self._read_head(place), True

    async def _commit(self, fill: _Fill) -> None:
        session = self.store.session()
        try:
            if self._claimed is not None:
                session.guard(self._claimed)

            fill(session)
            await _settled(session.commit(resolve=True))
        finally:
            session.close()

    # whole threads ----------------------------------------------------------------------------------

    async def _delete_thread(self, thread_id: str) -> None:
        flow_id = thread_flow(str(thread_id))
        await self._commit(lambda session: session.delete_by_id(flow_id))

    async def _delete_for_runs(self, run_ids: Collection[str]) -> None:
        if not run_ids:
            return

        wanted = frozenset(map(str, run_ids))
        async for thread in self._threads(None):
            await self._until_settled(thread, partial(self._delete_runs_of, thread, wanted))

    async def _delete_runs_of(self, thread: Place, run_ids: frozenset[str]) -> None:
        """Delete checkpoints of one thread; where a newest one goes, the last that stays takes its place."""
        gone: dict[str, list[Group]] = {}
        stays: dict[str, str] = {}
        async for group in self._groups(thread.flow_id, ""):
            if (await self._metadata(group)).get("run_id") in run_ids:
                gone.setdefault(group.prefix, []).append(group)
            else:
                stays.setdefault(group.prefix, group.checkpoint_id)

        for prefix, groups in gone.items():
            place = thread._replace(prefix=prefix)
            head = await self._read_head(place)
            if head is not None and newest_of(head) in {group.checkpoint_id for group in groups}:
                await self._commit(_move_or_remove(copy.copy(head), stays.get(prefix)))
                self._heads.pop((place.flow_id, prefix), None)

            await self._delete_parts(part for group in groups for part in group.parts)

    async def _prune(self, thread_ids: Iterable[str], strategy: str) -> None:
        if strategy == "delete":
            for thread_id in thread_ids:
                await self._delete_thread(thread_id)

            return

        if strategy != "keep_latest":
            message = f"unknown strategy {strategy!r}: expected 'keep_latest' or 'delete'; nothing was sent"
            raise cs.UsageError(message)

        for thread_id in thread_ids:
            thread = place_of({"configurable": {"thread_id": thread_id}})
            await self._until_settled(thread, partial(self._keep_latest, thread))

    async def _keep_latest(self, thread: Place) -> None:
        kept: dict[str, set[str]] = {}
        gone: list[Group] = []
        async for group in self._groups(thread.flow_id, ""):
            if group.prefix not in kept:
                place = thread._replace(prefix=group.prefix)
                kept[group.prefix] = {one async for one in self._needed(place)}

            # What came after the head was read is newer than all that was listed.
            if kept[group.prefix] and group.checkpoint_id not in kept[group.prefix]:
                gone.append(group)

        await self._delete_parts(part for group in gone for part in group.parts)

    async def _needed(self, place: Place) -> AsyncGenerator[str, None]:
        """Iterate over the newest checkpoint, and the parents that its delta channels are made of.

        A delta channel has a counter in the metadata until its value is stored whole.
        """
        newest = newest_of(await self._read_head(place))
        group = None if newest is None else await self._group(place, newest)
        if newest is None or group is None:
            return

        yield newest
        metadata = await self._metadata(group)
        missing = (
            set(metadata.get("counters_since_delta_snapshot") or ()) - self._values(group).keys()
        )
        async with aclosing(self._ancestors(place, newest)) as ancestors:
            while missing and (parent := await anext(ancestors, None)) is not None:
                yield parent.checkpoint_id
                missing -= self._values(parent).keys()

    async def _delete_parts(self, parts: Iterable[cs.Part[bytes]]) -> None:
        for several in _in_batches(parts, _AT_ONCE):

            def fill(session: Any, several: list[cs.Part[bytes]] = several) -> None:
                for part in several:
                    session.delete_part(part)

            await self._commit(fill)

    async def _until_settled(self, thread: Place, work: Callable[[], Awaitable[None]]) -> None:
        """List and delete again when something that was listed has changed meanwhile."""
        for attempt in range(_ATTEMPTS):
            try:
                return await work()
            except cs.ConflictError as error:
                if attempt == _ATTEMPTS - 1 or not _is_of(error, thread.flow_id):
                    raise

        return None

    async def _copy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        source, target = thread_flow(str(source_thread_id)), str(target_thread_id)
        if await _settled(self.store.get(source)) is None:
            return

        flow = cs.FlowSnapshot(thread_flow(target), state=GraphThread(target), due_at=None)
        await self._commit(lambda session: session.add(flow))
        heads: list[cs.Part[bytes]] = []
        several: list[cs.Part[bytes]] = []
        async with aclosing(self._parts(source, "")) as parts:
            async for part in parts:
                copied = cs.Part(flow.flow_id, part.name, part.body, tag=part.tag)
                (heads if part.name.endswith("/~") else several).append(copied)
                if len(several) == _COPIED_AT_ONCE:
                    await self._write_copies(several)
                    several = []

        await self._write_copies(several)
        await self._write_copies(heads)

    async def _write_copies(self, parts: Iterable[cs.Part[bytes]]) -> None:
        for several in _in_batches(parts, _COPIED_AT_ONCE):

            def fill(session: Any, several: list[cs.Part[bytes]] = several) -> None:
                for part in several:
                    session.add_part(part, exists="overwrite")

            await self._commit(fill)


def _in_batches(parts: Iterable[cs.Part[bytes]], size: int) -> Iterator[list[cs.Part[bytes]]]:
    left = iter(parts)
    while batch := list(islice(left, size)):
        yield batch


def _matches(metadata: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    return all(key in metadata and metadata[key] == value for key, value in wanted.items())


def _move_or_remove(head: cs.Part[bytes], newest: str | None) -> _Fill:
    def fill(session: Any) -> None:
        if newest is None:
            session.delete_part(head)
        else:
            head.tag = f"{secrets.token_hex(8)} {newest}"
            session.add_part(head)

    return fill


def _is_of(error: cs.ConflictError, flow_id: str) -> bool:
    """Return whether all that was refused is of this thread; a claim that was lost is not."""
    return all(vars(one).get("flow_id") == flow_id for one in error.conflicts)


def _stale(place: Place, expected: str | None, actual: str | None) -> StaleThreadError:
    message = (
        f"thread {place.thread_id!r} was not written: this run continues from checkpoint"
        f" {expected or 'none'}, but the newest of namespace {place.ns!r} is {actual or 'none'}; another"
        " run has written since, or the thread was deleted; invoke the graph again"
    )
    return StaleThreadError(
        message,
        thread_id=place.thread_id,
        checkpoint_ns=place.ns,
        expected=expected,
        actual=actual,
    )

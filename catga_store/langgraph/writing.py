"""Writing checkpoints and writes of tasks, fenced.

What a run has read may be old when it writes, so the store decides: a commit has the head of the
namespace in it, written or checked at the version that was read. If that is refused, the head is read
again, and decides whether the run is stale or the commit is tried again.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence
from typing import Any
from typing import TypeVar

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import Checkpoint
from langgraph.checkpoint.base import CheckpointMetadata
from langgraph.checkpoint.base import get_checkpoint_metadata
from langgraph.checkpoint.serde.base import SerializerProtocol

import catga_store as cs
from catga_store.core import raw_parts
from catga_store.core import writes as plans
from catga_store.langgraph.access import Access
from catga_store.langgraph.access import keep
from catga_store.langgraph.access import read_head
from catga_store.langgraph.layout import GraphThread
from catga_store.langgraph.layout import Place
from catga_store.langgraph.layout import StaleThreadError
from catga_store.langgraph.layout import asked_by
from catga_store.langgraph.layout import checkpoint_text
from catga_store.langgraph.layout import config_of
from catga_store.langgraph.layout import newest_of
from catga_store.langgraph.layout import run_of
from catga_store.langgraph.layout import seen_in
from catga_store.langgraph.layout import tag_of_head
from catga_store.langgraph.layout import writes_texts
from catga_store.langgraph.reading import new_run
from catga_store.protocol.conversation import Conversation
from catga_store.protocol.keys import flow_key
from catga_store.protocol.requests import ANY
from catga_store.protocol.requests import IF_ABSENT
from catga_store.protocol.requests import Change
from catga_store.protocol.requests import Check
from catga_store.protocol.requests import Head
from catga_store.protocol.requests import Outcome
from catga_store.protocol.requests import Put
from catga_store.protocol.requests import Read

__all__ = ["ATTEMPTS", "is_of", "put", "put_writes"]

C = TypeVar("C", bound=Sequence[Change])

ATTEMPTS = 100
"""How often a commit is tried while others write."""


def put(
    to: Access,
    serde: SerializerProtocol,
    config: RunnableConfig,
    checkpoint: Checkpoint,
    metadata: CheckpointMetadata,
) -> Conversation[RunnableConfig]:
    """Write a checkpoint, and the head of its namespace."""
    place, parent, marker = asked_by(config)
    seen, new = seen_in(marker, place), checkpoint["id"]
    run = new_run() if seen is None else seen.run
    tag, body = checkpoint_text(
        parent, get_checkpoint_metadata(config, metadata), serde.dumps_typed(checkpoint)
    )
    context, flow_id = to.context, place.flow_id

    def continues(head: Head | None) -> bool:
        newest = newest_of(head)
        if newest in (parent, new) and newest is not None:
            return True

        if seen is None:
            return parent is None

        return newest == seen.newest and parent in (seen.got, None)

    def plan(head: Head | None, now_ms: int) -> tuple[Put, Put]:
        moved = raw_parts.plan_bytes(
            context,
            flow_id,
            place.head.name,
            place.ns.encode(),
            tag=tag_of_head(run, new),
            old=head,
            now_ms=now_ms,
        )
        name = f"{place.group(new)}c"
        whole = raw_parts.plan_bytes(
            context, flow_id, name, body, tag=tag, expected=ANY, now_ms=now_ms
        )
        return moved, whole

    (moved, _), outcomes = yield from _fenced(to, place, parent, continues, plan, makes_thread=True)
    if outcomes:
        keep(to, place, raw_parts.written_head(moved, outcomes[-2]))
    else:
        to.heads.pop((flow_id, place.prefix), None)

    return config_of(place, new, run, new)


def _thread(to: Access, place: Place, now_ms: int) -> Conversation[Change]:
    """Return what the first checkpoint of a namespace needs: the flow of its thread, new or as it is."""
    key = flow_key(place.flow_id)
    (record,) = yield Read((key,), now_ms)
    if record is not None:
        return Check(key, record.head.revision)

    flow = cs.FlowSnapshot(place.flow_id, state=GraphThread(place.thread_id), due_at=None)
    return plans.plan_flow(flow, now_ms, to.context.limits)


def put_writes(
    to: Access,
    serde: SerializerProtocol,
    config: RunnableConfig,
    writes: Sequence[tuple[str, Any]],
    task: tuple[str, str],
) -> Conversation[None]:
    """Write what a task has written, if the thread is where its run has seen it."""
    place, checkpoint_id, marker = asked_by(config)
    if checkpoint_id is None:
        message = (
            "the config does not name a checkpoint for these writes, so nothing was sent; pass "
            "the config that put() returned"
        )
        raise cs.UsageError(message)

    flow_id, context = place.flow_id, to.context
    texts = writes_texts(place.group(checkpoint_id), writes, task, serde)

    def continues(head: Head | None) -> bool:
        newest = newest_of(head)
        if newest == checkpoint_id:
            return True

        # LangGraph saves in the background: writes may come before the checkpoint that they are for,
        # and after the next one of the same run.
        seen = seen_in(marker, place)
        return seen is not None and (
            newest == seen.newest or (head is not None and run_of(head) == seen.run)
        )

    def plan(head: Head | None, now_ms: int) -> list[Change]:
        changes: list[Change] = [
            raw_parts.plan_bytes(
                context,
                flow_id,
                name,
                body,
                expected=ANY if is_special else IF_ABSENT,
                now_ms=now_ms,
            )
            for name, body, is_special in texts
        ]
        if head is not None:
            changes.append(Check(place.head, head.revision))

        return changes

    if texts:
        yield from _fenced(to, place, checkpoint_id, continues, plan)


def _fenced(
    to: Access,
    place: Place,
    expected: str | None,
    continues: Callable[[Head | None], bool],
    plan: Callable[[Head | None, int], C],
    *,
    makes_thread: bool = False,
) -> Conversation[tuple[C, tuple[Outcome, ...]]]:
    """Write what is planned at the head that this saver has, else at the one that is stored; or refuse.

    Return what was written, and its outcomes, which are empty if they are not known. With `makes_thread`,
    the flow of the thread is written before that if there is no head.
    """
    context, key = to.context, (place.flow_id, place.prefix)
    is_read = key not in to.heads
    head = (yield from read_head(to, place)) if is_read else to.heads.get(key)
    attempt = 0
    while True:
        attempt += 1
        if continues(head):
            now_ms = context.settings.now_ms()
            planned = plan(head, now_ms)
            thread = ()
            if head is None and makes_thread:
                thread = ((yield from _thread(to, place, now_ms)),)

            try:
                outcomes = yield from raw_parts.commit(
                    context, (*thread, *planned), now_ms, to.claimed
                )
            except cs.ConflictError as error:
                if attempt == ATTEMPTS or not is_of(error, place.flow_id):
                    raise
            else:
                return planned, outcomes
        elif is_read:
            raise _stale(place, expected, newest_of(head))

        head = yield from read_head(to, place)
        is_read = True


def is_of(error: cs.ConflictError, flow_id: str) -> bool:
    """Return whether all that was refused is of this thread; a claim that was lost is not."""
    return all(vars(one).get("flow_id") == flow_id for one in error.conflicts)


def _stale(place: Place, expected: str | None, actual: str | None) -> StaleThreadError:
    message = (
        f"thread {place.thread_id!r} was not written: this run continues from checkpoint "
        f"{expected or 'none'}, but the newest checkpoint in namespace {place.ns!r} is "
        f"{actual or 'none'}, because another run has written to the thread, or the thread "
        "was deleted; invoke the graph again"
    )
    return StaleThreadError(
        message,
        thread_id=place.thread_id,
        checkpoint_ns=place.ns,
        expected=expected,
        actual=actual,
    )

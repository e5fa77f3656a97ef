"""Waiting for work, and for the next version of a flow, without polling.

Each of these subscribes (`Listen`), looks, and waits (`Await`) until something wakes it or it is time to
look again. What it does is decided by its look, never by what has woken it: see `protocol.wakeups`.

A look that claims nothing also asks for what is due before the next one. So a waiter costs one request for
each poll interval, and is on time for pauses, deadlines and ends of leases that it has seen coming.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Container
from collections.abc import Generator
from collections.abc import Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from catga_store import codec
from catga_store.core import claims
from catga_store.core import envelope
from catga_store.core import parts
from catga_store.core.claims import DEFAULT_LEASE
from catga_store.core.context import Context
from catga_store.core.state_types import wanted_of
from catga_store.errors import StoreClosedError
from catga_store.errors import UsageError
from catga_store.model.flows import FlowSnapshot
from catga_store.model.parts import LogEntry
from catga_store.model.tags import Pairs
from catga_store.model.tags import wanted_tags
from catga_store.model.times import span_ms
from catga_store.protocol.conversation import Await
from catga_store.protocol.conversation import Conversation
from catga_store.protocol.keys import FLOW
from catga_store.protocol.keys import Key
from catga_store.protocol.keys import check_id
from catga_store.protocol.keys import flow_key
from catga_store.protocol.masking import shown
from catga_store.protocol.requests import Due
from catga_store.protocol.requests import Found
from catga_store.protocol.requests import Read
from catga_store.protocol.wakeups import CLAIM
from catga_store.protocol.wakeups import LOOK
from catga_store.protocol.wakeups import WATCH
from catga_store.protocol.wakeups import Listen
from catga_store.protocol.wakeups import Waiter

__all__ = ["NO_WAIT", "claim_due", "claim_when_due", "wait_due", "watch", "watch_log"]

NO_WAIT = timedelta(0)

_SHORTEST_REST = 0.02
_RESTS = 8
"""After how many vain attempts at what is due a claimer does not rest longer."""


def claim_due(
    context: Context,
    state_type: Any | None = None,
    *,
    lease: timedelta = DEFAULT_LEASE,
    limit: int = 1,
    owner: str | None = None,
    tags: Mapping[str, str] | None = None,
    wait: timedelta = NO_WAIT,
    skip: Container[Key] = (),
) -> Conversation[list[FlowSnapshot[Any]]]:
    """Claim what is due, and if that is nothing, wait for it."""
    wait_ms = 0 if wait is NO_WAIT else span_ms(wait, "wait")
    if not wait_ms:
        return claims.claim_due(
            context, state_type, lease=lease, limit=limit, owner=owner, tags=tags, skip=skip
        )

    return claim_when_due(
        context,
        state_type,
        lease=lease,
        limit=limit,
        owner=owner,
        tags=tags,
        seconds=wait_ms / 1000,
        skip=skip,
    )


def claim_when_due(
    context: Context,
    state_type: Any | None,
    *,
    lease: timedelta,
    limit: int,
    owner: str | None,
    seconds: float,
    tags: Mapping[str, str] | None = None,
    skip: Container[Key] = (),
    begun: Callable[[Waiter], object] | None = None,
) -> Conversation[list[FlowSnapshot[Any]]]:
    """Claim what is due as soon as there is something; nothing after `seconds`.

    `begun` is called with the waiter before it first looks: `Waiter.end` then ends the wait early.
    """
    names, pairs = wanted_of(state_type).names, wanted_tags(tags)
    vain = 0
    with _waiting(context, CLAIM, seconds, types=names, tags=pairs) as waiter:
        if begun is not None:
            begun(waiter)

        yield Listen(waiter)
        while True:
            claimed = yield from claims.claim_due(
                context, state_type, lease=lease, limit=limit, owner=owner, tags=tags, skip=skip
            )
            waiter.has_looked(is_more=len(claimed) >= limit)
            if claimed:
                return claimed

            prompted = yield from _until_due(context, waiter, vain)
            if prompted is None:
                return []

            vain = min(vain + 1, _RESTS) if prompted == _SEEN else 0


def wait_due(
    context: Context,
    state_type: Any | None = None,
    *,
    tags: Mapping[str, str] | None = None,
    timeout: timedelta,
) -> Conversation[bool]:
    """Wait until something may be due."""
    names, pairs = wanted_of(state_type).names, wanted_tags(tags)
    timeout_ms = span_ms(timeout, "timeout")
    if not timeout_ms:
        found: tuple[Found, ...] = yield Due(context.settings.now_ms(), 1, names, pairs)
        return bool(found)

    with _waiting(context, LOOK, timeout_ms / 1000, types=names, tags=pairs) as waiter:
        yield Listen(waiter)
        while True:
            prompted = yield from _until_due(context, waiter)
            is_due = prompted is not None
            if pairs and prompted == _WOKEN:  # perhaps by a flow with other tags
                found = yield Due(context.settings.now_ms(), 1, names, pairs)
                is_due = bool(found)

            waiter.has_looked()
            if is_due or prompted is None:
                return is_due


def watch(
    context: Context,
    flow_id: str,
    state_type: Any | None = None,
    *,
    after: int,
    timeout: timedelta,
) -> Conversation[FlowSnapshot[Any] | None]:
    """Wait for a version of a flow after this one."""
    key = flow_key(check_id(flow_id, "a flow id"))
    if type(after) is not int or after < 0:
        message = f"after: expected a version (an int of at least 0), got {shown(after)}"
        raise UsageError(message)

    codec.check_state_type(state_type)
    seconds = span_ms(timeout, "timeout") / 1000
    with _waiting(context, WATCH, seconds, flow_id=flow_id, after=after) as waiter:
        while True:
            if seconds:
                yield Listen(waiter)

            (record,) = yield Read((key,), context.settings.now_ms())
            if record is not None and record.head.version > after:
                return envelope.decode_flow(key, record, state_type)

            if waiter.is_over:
                return None

            waiter.looked()
            yield from _sleep(waiter)


def watch_log(
    context: Context,
    flow_id: str,
    log: str = "log",
    *,
    after: int,
    timeout: timedelta,
    limit: int = 100,
    body_type: Any | None = None,
) -> Conversation[list[LogEntry]]:
    """Wait for entries of a log after this one."""
    seconds = span_ms(timeout, "timeout") / 1000
    with _waiting(context, WATCH, seconds, flow_id=flow_id, log=log, after=after) as waiter:
        while True:
            if seconds:
                yield Listen(waiter)

            entries = yield from parts.read_log(
                context, flow_id, log, after=after, limit=limit, body_type=body_type
            )
            if entries or waiter.is_over:
                return entries

            waiter.looked()
            yield from _sleep(waiter)


_SEEN, _WOKEN = "seen", "woken"


def _until_due(context: Context, waiter: Waiter, vain: int = 0) -> Conversation[str | None]:
    """Wait until something may be due: `_SEEN` or `_WOKEN`, or None when the time is up.

    After `vain` attempts at what was seen to be due, which claimed nothing, it waits before the next.
    """
    while True:
        found: tuple[Found, ...] = ()
        now_ms = context.settings.now_ms()
        if not waiter.is_woken:
            # What is due later than the next look is found by that.
            within_ms = int(waiter.interval * 1000)
            found = yield Due(now_ms, 1, waiter.types, waiter.tags, within_ms)

        is_due = any(_due_of(entry) <= now_ms for entry in found)
        if is_due and not vain:
            return _SEEN

        if is_due:
            waiter.rest(min(waiter.interval, _SHORTEST_REST * 2**vain))
        elif not waiter.is_woken:
            waiter.looked()
            for entry in found:
                waiter.expect(_due_of(entry), entry.head.type if entry.key.kind == FLOW else None)

        if (yield from _sleep(waiter)):
            return _WOKEN

        if waiter.is_over:
            return None

        if is_due:
            return _SEEN

        yield Listen(waiter)


def _sleep(waiter: Waiter) -> Conversation[bool]:
    """Sleep until it is woken, or to its next look, or to its end; return whether it was woken."""
    yield Await(waiter)
    if waiter.is_closed:
        message = (
            "the store was closed while this call was waiting, so the call claimed and "
            "changed nothing"
        )
        raise StoreClosedError(message)

    return waiter.rested()


def _due_of(entry: Found) -> int:
    due_ms = entry.head.due_ms
    return 0 if due_ms is None else due_ms


@contextmanager
def _waiting(
    context: Context,
    what: str,
    seconds: float,
    *,
    types: tuple[str, ...] | None = None,
    tags: Pairs = (),
    flow_id: str | None = None,
    log: str | None = None,
    after: int = 0,
) -> Generator[Waiter]:
    """A waiter for as long as the block runs."""
    settings = context.settings
    waiter = Waiter(
        what,
        now_ms=settings.now_ms,
        seconds=seconds,
        interval=settings.poll_interval,
        types=types,
        tags=tags,
        flow_id=flow_id,
        log=log,
        after=after,
    )
    # A clock that a test moves has a set of what is to be called after that.
    listeners: set[Any] | None = getattr(settings.clock, "listeners", None)
    if listeners is not None:
        listeners.add(waiter.look_now)

    context.waiters.add(waiter)
    try:
        yield waiter
    finally:
        waiter.leave()
        context.waiters.remove(waiter)
        if listeners is not None:
            listeners.discard(waiter.look_now)

"""Operations on a store as a whole."""

from __future__ import annotations

from catga_store.core.arguments import check_number
from catga_store.core.claims import release_dead_waits
from catga_store.core.commits import ask_once
from catga_store.core.context import Context
from catga_store.protocol.conversation import Conversation
from catga_store.protocol.requests import Clear
from catga_store.protocol.requests import Ping
from catga_store.protocol.requests import Sweep

__all__ = ["clear", "ping", "sweep"]


def sweep(context: Context, limit: int = 1000) -> Conversation[int]:
    """Remove up to `limit` expired records; see `Store.sweep`."""
    check_number("limit", limit, 1)
    now_ms = context.settings.now_ms()
    yield from release_dead_waits(context, limit, now_ms)
    return (yield from ask_once(context, Sweep(now_ms, limit)))


def ping() -> Conversation[None]:
    """Do nothing if the store works."""
    yield Ping()


def clear(context: Context) -> Conversation[None]:
    """Remove every record of the store."""
    yield from ask_once(context, Clear())

"""The seam between a store's store protocol and whoever drives it: what stands there sees every exchange.

A store protocol turns a request into a conversation with the transport, whatever the transport is: a function in this
process, a Redis connection, NATS. So what stands before the store protocol can count exchanges, keep one from
the transport, or lose its reply, on every store and behind every API alike.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from attrs import define

from catga_store.aio import AsyncStore
from catga_store.errors import NotSupportedError
from catga_store.protocol.conversation import Conversation
from catga_store.protocol.conversation import Request
from catga_store.protocol.conversation import ask
from catga_store.protocol.requests import StoreProtocol
from catga_store.store import Store

__all__ = ["Talk", "talker", "wrap_protocol"]


def wrap_protocol(store: Any, wrap: Callable[[StoreProtocol], StoreProtocol]) -> None:
    """Put what `wrap` makes of a store's store protocol in its place; best before the store is used.

    `NotSupportedError` for a store whose driver is none of this library's.
    """
    driver: Any = store._driver if isinstance(store, Store | AsyncStore) else None
    if not hasattr(driver, "protocol"):
        message = f"nothing can stand between {store!r} and its transport: it is not a store of this library's kind"
        raise NotSupportedError(message)

    driver.protocol = wrap(driver.protocol)


@define
class Talk(Request[Any]):
    """Asks what stands at the seam to hold this conversation with the transport."""

    conversation: Conversation[Any]


class _Talker:
    """A store protocol that also holds whatever conversation it is given."""

    def __init__(self, protocol: StoreProtocol) -> None:
        self.protocol = protocol

    def converse(self, request: Request[object]) -> Conversation[object]:
        """The conversation of a `Talk`, else the store's own."""
        return (
            request.conversation if isinstance(request, Talk) else self.protocol.converse(request)
        )


def talker(store: Store) -> tuple[Any, Callable[[Conversation[Any]], Any]]:
    """The store protocol of a blocking store, and a function that holds conversations with its transport."""
    found: list[StoreProtocol] = []

    def wrap(protocol: StoreProtocol) -> StoreProtocol:
        found.append(protocol)
        return _Talker(protocol)

    wrap_protocol(store, wrap)

    def hold(conversation: Conversation[Any]) -> Any:
        return store._run(ask(Talk(conversation)))

    return found[0], hold

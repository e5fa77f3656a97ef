"""Hooks between a driver and its store protocol, which see every exchange with the transport.

A store protocol turns a request into a conversation with a transport: a function in this process, a
Redis connection, or NATS. A wrapper of the store protocol can count exchanges, withhold one, or lose
its reply, on every store and behind every API.
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
from catga_store.protocol.masking import shown
from catga_store.protocol.store_protocol import StoreProtocol
from catga_store.store import Store

__all__ = ["RunConversation", "conversation_runner", "wrap_protocol"]


def wrap_protocol(store: Any, wrap: Callable[[StoreProtocol], StoreProtocol]) -> None:
    """Replace the store protocol of a store by `wrap(protocol)`. Call it before first use.

    Raises `NotSupportedError` for a store whose driver is not one of this library's.
    """
    driver: Any = store._driver if isinstance(store, Store | AsyncStore) else None
    if not hasattr(driver, "protocol"):
        message = (
            "store: expected a Store or an AsyncStore that uses a driver of this library, got "
            f"{shown(store)}"
        )
        raise NotSupportedError(message)

    driver.protocol = wrap(driver.protocol)


@define
class RunConversation(Request[Any]):
    """Asks the wrapped store protocol to run this conversation with the transport."""

    conversation: Conversation[Any]


class _ConversationProtocol:
    """A store protocol that also runs any conversation it is given."""

    def __init__(self, protocol: StoreProtocol) -> None:
        self.protocol = protocol

    def converse(self, request: Request[object]) -> Conversation[object]:
        """Return the conversation of a `RunConversation`, else that of the store."""
        return (
            request.conversation
            if isinstance(request, RunConversation)
            else self.protocol.converse(request)
        )


def conversation_runner(store: Store) -> tuple[Any, Callable[[Conversation[Any]], Any]]:
    """Return the store protocol of a blocking store, and a function that runs conversations on it."""
    found: list[StoreProtocol] = []

    def wrap(protocol: StoreProtocol) -> StoreProtocol:
        found.append(protocol)
        return _ConversationProtocol(protocol)

    wrap_protocol(store, wrap)

    def run(conversation: Conversation[Any]) -> Any:
        return store._run(ask(RunConversation(conversation)))

    return found[0], run

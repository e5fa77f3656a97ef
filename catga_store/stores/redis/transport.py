"""The transport requests of Redis stores, performed by the Redis drivers."""

from __future__ import annotations

from typing import NamedTuple
from typing import Protocol

from attrs import define

from catga_store.protocol.conversation import NotSentError
from catga_store.protocol.conversation import Request

__all__ = ["Command", "Listener", "MisconfiguredError", "Pipe", "Subscribe"]


class MisconfiguredError(NotSentError):
    """Raised by a link that cannot connect until the client or the server is set up otherwise."""


class Command(NamedTuple):
    """One Redis command: its name and arguments, and a key of the slot that it belongs to."""

    args: tuple[bytes | str | int, ...]
    key: bytes


@define
class Pipe(Request[tuple[object, ...]]):
    """Transport request of Redis: send these commands together, return their replies in order.

    Replies are raw bytes. An error reply is a value: the exception that redis-py makes of it.
    `NotSentError` and `ReplyLostError` are raised. In a cluster each command goes to the node that
    holds its key.
    """

    commands: tuple[Command, ...]
    writes: bool
    exclusive: bool = False
    """Not on a connection that others share: for bodies over 1 MiB, and for commands that block."""


class Listener(Protocol):
    """Takes what a subscription receives; called from any thread."""

    @property
    def is_needed(self) -> bool:
        """Whether there are calls that wait; without them a subscription ends after a second."""
        ...

    def receive(self, message: object, /) -> None:
        """Take a message; it raises nothing."""
        ...

    def missed(self) -> None:
        """Messages may have been lost, and from now on they come again."""
        ...


@define
class Subscribe(Request[None]):
    """Transport request of Redis: begin the one subscription of the link, unless it runs.

    It ends when the server has confirmed that, or when it is known that it does not for now; then
    the link continues to try. It fails never.
    """

    channels: tuple[bytes, ...]
    listener: Listener

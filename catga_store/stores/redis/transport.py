"""The transport requests of Redis stores, performed by the Redis drivers."""

from __future__ import annotations

from typing import NamedTuple

from attrs import define

from catga_store.protocol.conversation import NotSentError
from catga_store.protocol.conversation import Request

__all__ = ["Command", "MisconfiguredError", "Pipe"]


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

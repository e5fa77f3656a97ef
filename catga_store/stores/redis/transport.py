"""The transport requests of Redis stores, performed by the Redis drivers."""

from __future__ import annotations

from typing import NamedTuple

from attrs import define

from catga_store.protocol.conversation import Request

__all__ = ["Command", "Pipe"]


class Command(NamedTuple):
    """One Redis command: its arguments, and a key of the slot that it belongs to."""

    args: tuple[bytes | str | int, ...]
    key: bytes


@define
class Pipe(Request[tuple[object, ...]]):
    """Transport request of Redis: send these commands as one flight; answers their replies in order.

    Replies are raw bytes. An error that the server replies is a value, as the exception that the
    client library makes of it; raised are `NotSentError` and `ReplyLostError`. In a cluster each
    command goes to the node that holds its key.
    """

    commands: tuple[Command, ...]
    writes: bool
    exclusive: bool = False
    """Bodies over 1 MiB go this way: not on a connection that others share."""

"""The transport requests of NATS stores, performed by the NATS drivers."""

from __future__ import annotations

from typing import NamedTuple
from typing import Protocol

from attrs import define

from catga_store.protocol.conversation import Request

__all__ = [
    "MOVED",
    "Answer",
    "Ask",
    "Asks",
    "Greet",
    "Greeting",
    "HintReceiver",
    "Message",
    "Publish",
    "SubscribeToHints",
    "Tell",
]

MOVED = 412
"""Status of a publish that the link did not send: the connection is not the one that it names."""


class Message(NamedTuple):
    """One NATS message to be stored in a stream."""

    subject: str
    payload: bytes
    headers: dict[str, str]


class Answer(NamedTuple):
    """One NATS message that came back; `status` is 0 unless the server sent one (404, 503).

    `epoch` is the connection that it came over; no two connections of a process have the same.
    """

    status: int
    headers: dict[str, str]
    data: bytes
    epoch: int = 0


class Ask(NamedTuple):
    """One NATS request. `many`: its answers end with one that has a status. `silent`: it has none.

    `last`: it is a Direct Get of the last message of that subject, which a link may ask for
    together with others.
    """

    subject: str
    payload: bytes
    many: bool = False
    silent: bool = False
    last: str = ""


@define
class Asks(Request[tuple[tuple[Answer, ...], ...]]):
    """Transport request of NATS: requests that change no record, as one flight; the answers to each.

    What the server refuses is an answer; raised are `NotSentError` and `ReplyLostError`.
    """

    asks: tuple[Ask, ...]


@define
class Publish(Request[tuple[Answer, ...]]):
    """Transport request of NATS: store messages; their acknowledgements in order.

    `atomic`: all or none of them, as one batch, which has one acknowledgement: the sequences end
    with the one it names. Otherwise each stands alone and they are stored in their order.

    `epoch`: send only over this connection (`Answer.epoch`); over another one the answers are
    `MOVED`, and nothing was sent. 0 is any connection.
    """

    messages: tuple[Message, ...]
    atomic: bool = False
    epoch: int = 0


class Greeting(NamedTuple):
    """What a NATS server says of itself when it is connected to."""

    version: str
    jetstream: bool
    max_payload: int
    epoch: int = 0
    """The connection; see `Answer.epoch`."""
    server: str = ""
    """The name of the server."""


@define
class Greet(Request[Greeting]):
    """Transport request of NATS: connect, unless that was done, and return what the server has said.

    A message on one of the `watched` subjects counts as a new connection: see `Answer.epoch`.
    """

    watched: tuple[str, ...] = ()


@define
class Tell(Request[None]):
    """Transport request of NATS: publish a message that no stream keeps, if there is a connection now.

    It ends at once, and fails never.
    """

    subject: str
    payload: bytes


class HintReceiver(Protocol):
    """Takes what a subscription receives; called on the loop of the link."""

    @property
    def is_needed(self) -> bool:
        """Whether there are calls that wait; without them a subscription ends after a second."""
        ...

    def receive(self, message: bytes, /) -> None:
        """Take a message; it raises nothing."""
        ...

    def missed(self) -> None:
        """Messages may have been lost, and from now on they come again."""
        ...


@define
class SubscribeToHints(Request[None]):
    """Transport request of NATS: begin the one subscription of the link, unless it runs.

    It ends when the server has confirmed that, or when it is known that it does not for now; then
    the link continues to try. It fails never.
    """

    subject: str
    listener: HintReceiver

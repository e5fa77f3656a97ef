"""Conversations: logic as generators that yield requests and are sent replies.

A conversation does no I/O and never waits. Whoever runs it performs each request and sends the
reply back, or throws the failure in. The same conversation is therefore run by blocking code
(`run`) and by async code (`arun`); a test can stop it, reorder it or fail it at every request.
"""

from __future__ import annotations

from collections.abc import Awaitable
from collections.abc import Callable
from collections.abc import Generator
from typing import Any
from typing import Generic
from typing import NamedTuple
from typing import Protocol
from typing import TypeAlias
from typing import TypeVar

from attrs import define

__all__ = [
    "UNTRUSTED",
    "Answer",
    "Ask",
    "Asks",
    "Call",
    "Command",
    "Conversation",
    "Finished",
    "Greet",
    "Greeting",
    "Invoke",
    "Message",
    "NotSentError",
    "Pause",
    "Pipe",
    "Publish",
    "ReplyLostError",
    "Request",
    "Watch",
    "arun",
    "ask",
    "is_untrusted",
    "run",
    "through",
]

T = TypeVar("T")
R = TypeVar("R")


class Request(Generic[R]):
    """Something a conversation asks its driver to do; `R` is the type of the reply."""

    __slots__ = ()


Conversation: TypeAlias = Generator[Request[Any], Any, T]
"""A generator that yields requests, is sent their replies, and returns a `T`."""


class Watch(Protocol):
    """Stands between a store's operations and its driver, if anybody asked for it."""

    def __call__(self, store: object, conversation: Conversation[T], /) -> Conversation[T]:
        """The same conversation, watched: it yields and answers what the other would."""
        ...


def ask(request: Request[R]) -> Conversation[R]:
    """Yield one request; what it answers has the type of the reply."""
    reply: R = yield request
    return reply


@define
class Call(Request[R]):
    """Wire request of embedded stores: run `function(tables)` as one transaction."""

    function: Callable[[Any], R]
    writes: bool
    single: bool = False
    """The function reads one row: it needs no snapshot."""
    request: object = None
    """The waist request it is a try at, for those who watch or replace a wire; it decides nothing."""


class Command(NamedTuple):
    """One Redis command: its words, and a key of the slot that it belongs to."""

    words: tuple[bytes | str | int, ...]
    key: bytes


@define
class Pipe(Request[tuple[object, ...]]):
    """Wire request of Redis: send these commands as one flight; answers their replies in order.

    Replies are raw bytes. An error that the server replies is a value, as the exception that the
    client library makes of it; raised are `NotSentError` and `ReplyLostError`. In a cluster each
    command goes to the node that holds its key.
    """

    commands: tuple[Command, ...]
    writes: bool
    large: bool = False
    """Bodies over 1 MiB go this way: not on a connection that others share."""


class Message(NamedTuple):
    """One NATS message to be stored in a stream."""

    subject: str
    payload: bytes
    headers: dict[str, str]


class Answer(NamedTuple):
    """One NATS message that came back; `status` is 0 unless the server sent one (404, 503)."""

    status: int
    headers: dict[str, str]
    data: bytes


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
    """Wire request of NATS: requests that change no record, as one flight; the answers to each.

    What the server refuses is an answer; raised are `NotSentError` and `ReplyLostError`.
    """

    asks: tuple[Ask, ...]


@define
class Publish(Request[tuple[Answer, ...]]):
    """Wire request of NATS: store messages; their acknowledgements in order.

    `atomic`: all or none of them, as one batch, which has one acknowledgement: the sequences end
    with the one it names. Otherwise each stands alone and they are stored in their order.
    """

    messages: tuple[Message, ...]
    atomic: bool = False


class Greeting(NamedTuple):
    """What a NATS server says of itself when it is connected to."""

    version: str
    jetstream: bool
    max_payload: int


@define
class Greet(Request[Greeting]):
    """Wire request of NATS: connect, unless that was done, and tell what the server has said."""


@define
class Pause(Request[None]):
    """Wait for so many seconds. The only way a conversation waits."""

    seconds: float


@define
class Invoke(Request[Any]):
    """Call a function of the user's: a blocking one, or one to be awaited, as the driver is."""

    function: Callable[[], Any]


class NotSentError(Exception):
    """Raised by a wire: the request did not reach the store and never will."""


class ReplyLostError(Exception):
    """Raised by a wire: the request may have been applied, or may not have been."""


UNTRUSTED = (
    "the server's certificate is not trusted, and nothing was sent: trust the authority that issued"
    " it (SSL_CERT_FILE, or the TLS options of the client), and connect by the name it is issued for"
)
"""What to tell of a server that a client does not trust."""


def is_untrusted(error: BaseException | None) -> bool:
    """Whether a request did not reach the store because its server's certificate is not trusted."""
    while error is not None:
        if type(error).__name__ == "SSLCertVerificationError":  # whoever raises it has imported ssl
            return True

        error = error.__cause__ or error.__context__

    return False


class Finished(BaseException):
    """Raised by an async driver that was cancelled while it saw a request through to its end.

    Carries the reply or the failure of the request, and the cancellation that must go on once the
    conversation has settled.
    """

    def __init__(
        self, cancelled: BaseException, reply: object, error: BaseException | None
    ) -> None:
        super().__init__()
        self.cancelled = cancelled
        self.reply = reply
        self.error = error


def through(
    conversation: Conversation[T], converse: Callable[[Request[Any]], Conversation[Any]]
) -> Conversation[T]:
    """The same conversation one level down: each request is itself held as a conversation."""
    send = conversation.send
    try:
        request = send(None)

        while True:
            try:
                reply = yield from converse(request)
            except GeneratorExit:
                conversation.close()
                raise
            except BaseException as error:
                request = conversation.throw(error)
            else:
                request = send(reply)
    except StopIteration as stop:
        result: T = stop.value
        return result


def run(conversation: Conversation[T], perform: Callable[[Request[Any]], Any]) -> T:
    """Run a conversation to its end, performing each request by blocking."""
    send = conversation.send
    try:
        request = send(None)

        while True:
            try:
                reply = perform(request)
            except BaseException as error:
                request = conversation.throw(error)
            else:
                request = send(reply)
    except StopIteration as stop:
        result: T = stop.value
        return result


async def arun(
    conversation: Conversation[T], perform: Callable[[Request[Any]], Awaitable[Any]]
) -> T:
    """Run a conversation to its end, awaiting each request.

    A cancellation is thrown in at the request it interrupts. One that came while a request was
    seen through (`Finished`) goes on after the conversation has had the reply; what it would ask
    next is not asked.
    """
    send = conversation.send
    try:
        request = send(None)

        while True:
            try:
                reply = await perform(request)
            except Finished as finished:
                _settle(conversation, finished)
                raise finished.cancelled from None
            except BaseException as error:
                request = conversation.throw(error)
            else:
                request = send(reply)
    except StopIteration as stop:
        result: T = stop.value
        return result


def _settle(conversation: Conversation[Any], finished: Finished) -> None:
    try:
        if finished.error is None:
            conversation.send(finished.reply)
        else:
            conversation.throw(finished.error)
    except StopIteration:
        return
    except Exception:
        return

    conversation.close()

"""Conversations: logic in the form of generators that yield requests and are sent the replies.

A conversation does no I/O and never waits. A driver performs each request and sends the reply to the
conversation, or throws the failure into it. The same conversation can therefore be run by blocking code
(`run`) and by async code (`arun`), and a test can stop it, reorder it or make it fail at any request.
"""

from __future__ import annotations

from collections.abc import Awaitable
from collections.abc import Callable
from collections.abc import Generator
from typing import Any
from typing import Generic
from typing import Protocol
from typing import TypeAlias
from typing import TypeVar

from attrs import define

from catga_store.protocol.outages import OUTAGES
from catga_store.protocol.outages import without_internal_frames

__all__ = [
    "DRIVERS_OWN",
    "Await",
    "Call",
    "Conversation",
    "Finished",
    "Invoke",
    "NotSentError",
    "Pause",
    "ReplyLostError",
    "Request",
    "Sleeper",
    "Watch",
    "arun",
    "ask",
    "run",
    "through",
]

T = TypeVar("T")
R = TypeVar("R")


class Request(Generic[R]):
    """A request from a conversation to its driver; `R` is the type of the reply."""

    __slots__ = ()


Conversation: TypeAlias = Generator[Request[Any], Any, T]
"""A generator that yields requests, is sent their replies, and returns a `T`."""


class Watch(Protocol):
    """Wraps the conversations of a store before its driver runs them, for metrics and traces."""

    def __call__(self, store: object, conversation: Conversation[T], /) -> Conversation[T]:
        """Return a conversation with the same requests and the same result."""
        ...


def ask(request: Request[R]) -> Conversation[R]:
    """Yield one request and return its reply, with the type that the request declares."""
    reply: R = yield request
    return reply


@define
class Call(Request[R]):
    """The transport request of embedded stores: run `function(tables)` as one transaction."""

    function: Callable[[Any], R]
    writes: bool
    single: bool = False
    """Whether the function reads with a single statement, so that it needs no snapshot."""
    request: object = None
    """The store protocol request to which the call belongs, for code that replaces a transport."""


@define
class Pause(Request[None]):
    """Wait for a number of seconds."""

    seconds: float


class Sleeper(Protocol):
    """An object that waits to be woken."""

    notify: Callable[[], object] | None
    """The driver sets this attribute before it calls `seconds_left`. It is called, in any thread, when the
    result of `seconds_left` changes."""

    def seconds_left(self) -> float:
        """Return how many seconds to sleep from now on; 0 means not at all."""
        ...


@define
class Await(Request[None]):
    """Wait until the sleeper's `seconds_left` is 0. No request is sent to the store in the meantime."""

    sleeper: Sleeper


@define
class Invoke(Request[Any]):
    """Call a function of the user. It may be an async function if the driver is async."""

    function: Callable[[], Any]


DRIVERS_OWN = frozenset({Pause, Invoke, Await})
"""What a driver does by itself, on any store."""


class NotSentError(Exception):
    """Raised by a transport if the request did not reach the store and never will."""


class ReplyLostError(Exception):
    """Raised by a transport if the request may or may not have been applied."""


class Finished(BaseException):
    """Raised by an async driver that was cancelled while it waited for a write to end.

    It carries the reply or the failure of the request, and the cancellation, which is raised again
    once the conversation has taken the reply over.
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
    """Return a conversation in which each request is replaced by the requests of its own conversation."""
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

    A cancellation is thrown in at the request that it interrupts. One that came while a write was
    waited for (`Finished`) is raised after the conversation has taken the reply over; the next
    request of the conversation is not performed.
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
    except OUTAGES as error:
        raise without_internal_frames(error)  # noqa: B904  its cause stays
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

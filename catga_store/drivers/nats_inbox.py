"""One inbox on a connection of nats-py, past the client library's queues.

nats-py makes the connection, and makes it again when it breaks. What is sent here goes to the socket
in the same turn of the loop, and into no buffer of the client library: that would send it after the
next connect, when its failure was reported long ago. What comes for the inbox is taken where the
client library has parsed it, without a queue and a task in between, which is most of what a request
costs.

nats-py has no public names for that (`Client._transport`, `Client._process_msg`); where it sends
otherwise than over a socket, it is left to do so.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from collections.abc import Sequence
from typing import TYPE_CHECKING
from typing import Any
from typing import TypeAlias

from nats import errors as nats_errors
from nats.aio.transport import TcpTransport

from catga_store.drivers.in_flight import InFlight
from catga_store.protocol.conversation import NotSentError
from catga_store.protocol.conversation import ReplyLostError
from catga_store.stores.nats.transport import Answer
from catga_store.stores.nats.transport import Message

if TYPE_CHECKING:
    from nats.aio.client import Client

__all__ = ["Asked", "Inbox"]

_AROUND_HEADERS = len("NATS/1.0\r\n\r\n")

_VERSION_LENGTH = len("NATS/1.0")

_Receive: TypeAlias = Callable[[bytes, bytes, bytes | None], None]
"""Takes the subject, payload and headers of a message."""


class Asked(InFlight):
    """A request on an inbox, with the answers that came so far."""

    __slots__ = ("answers", "first", "flat", "left", "many", "subjects")

    def __init__(self, ended: asyncio.Future[Any], subjects: Sequence[str]) -> None:
        super().__init__(ended)
        self.subjects = subjects
        """What is published to: a refusal names one of them."""
        self.answers: list[list[Answer]] = []
        self.left = 0
        self.many: Sequence[bool] = ()
        self.flat = False
        self.first = 0


class Inbox:
    """Requests on one connection, each with one answer or a stream of them.

    `timeout`, in seconds, is what a flight may take until its last answer. Whatever is on its way
    then, or when the connection breaks, has lost its reply.
    """

    def __init__(self, client: Client, timeout: float) -> None:
        self.prefix = f"{client.new_inbox()}."
        self._client: Any = client
        self._timeout = timeout
        self._loop = asyncio.get_running_loop()
        self._number = 0
        self._expected: dict[int, Asked] = {}
        self._flying: dict[Asked, None] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._gathered: list[bytes] | None = None
        self._subscription: Any = None
        self._landed: asyncio.Future[None] | None = None
        self._drains: set[asyncio.Task[None]] = set()

    @property
    def flying(self) -> int:
        """How many requests are in flight."""
        return len(self._flying)

    async def open(self) -> None:
        """Listen to the inbox; errors of nats-py pass."""
        self._subscription = await self._client.subscribe(f"{self.prefix}*")
        _routes_of(self._client)[self._subscription._id] = self._receive  # noqa: SLF001  see above
        # What is written here would overtake it, as long as the client library has not sent it.
        await self._client.flush()

    async def close(self) -> None:
        """Wait for what is on its way, no longer than a flight may take, and listen no more."""
        if self._flying and self._client.is_connected:
            self._landed = self._loop.create_future()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._timeout):
                    await self._landed

        self.fail_all(ReplyLostError("the store was closed"))
        if self._subscription is None:
            return

        _routes_of(self._client).pop(self._subscription._id, None)  # noqa: SLF001  see above
        if self._client.is_connected:
            with contextlib.suppress(nats_errors.Error):
                await self._subscription.unsubscribe()

    # sending ----------------------------------------------------------------------------------------

    def ask(
        self, messages: Sequence[Message], *, many: Sequence[bool] = (), flat: bool = False
    ) -> Asked:
        """Send messages; each is answered by one message, those of `many` until one has a status.

        The reply is the answers to each; with `flat` the one to each. `NotSentError`, `ReplyLostError`.
        """
        flight = self._flight([message.subject for message in messages], len(messages), many)
        flight.flat = flat
        token = flight.first
        data: list[bytes] = []
        longest = 0
        for message in messages:
            longest = max(longest, _pack(data, message, f"{self.prefix}{token}", message.headers))
            token += 1

        self._send(flight, data, longest)
        return flight

    def ask_batch(self, messages: Sequence[Message], name: str) -> Asked:
        """Send messages as one atomic batch, which has one answer."""
        flight = self._flight([message.subject for message in messages], 1, ())
        data: list[bytes] = []
        longest = 0
        for number, message in enumerate(messages, start=1):
            headers = {
                **message.headers,
                "Nats-Batch-Id": name,
                "Nats-Batch-Sequence": str(number),
            }
            reply = ""
            if number == len(messages):
                headers["Nats-Batch-Commit"] = "1"
                reply = f"{self.prefix}{flight.first}"

            longest = max(longest, _pack(data, message, reply, headers))

        self._send(flight, data, longest)
        return flight

    def tell(self, messages: Sequence[Message]) -> Asked:
        """Send messages that nobody answers, or lose them; the reply is empty, at once."""
        flight = Asked(self._loop.create_future(), ())
        flight.settle(())
        if self._client.is_connected:
            data: list[bytes] = []
            for message in messages:
                _pack(data, message, "", message.headers)

            self._write(data)

        return flight

    def _flight(self, subjects: Sequence[str], number: int, many: Sequence[bool]) -> Asked:
        flight = Asked(self._loop.create_future(), subjects)
        flight.answers = [[]] if number == 1 else [[] for _ in range(number)]
        flight.left = number
        flight.many = many
        flight.first = self._number
        flight.deadline = self._loop.time() + self._timeout
        self._number += number
        return flight

    def _send(self, flight: Asked, data: list[bytes], longest: int) -> None:
        if not self._client.is_connected:
            flight.fail(NotSentError("the connection to NATS is lost"))
            return

        most = self._client.max_payload
        if longest > most:
            flight.fail(
                NotSentError(f"a message is larger than the {most} bytes that the server takes")
            )
            return

        self._flying[flight] = None
        for token in range(flight.first, flight.first + flight.left):
            self._expected[token] = flight

        if self._timer is None:
            self._timer = self._loop.call_at(flight.deadline, self._expire)

        self._write(data)

    def _write(self, data: list[bytes]) -> None:
        """Write; while there are others, together with what comes in the same turn of the loop."""
        if self._gathered is not None:
            self._gathered += data
        elif len(self._flying) > 1:
            self._gathered = data
            self._loop.call_soon(self._write_gathered)
        else:
            self._hand_over(data)

    def _write_gathered(self) -> None:
        data, self._gathered = self._gathered, None
        # A connection that broke meanwhile has failed these flights: they must not go out later.
        if data and self._client.is_connected:
            self._hand_over(data)

    def _hand_over(self, data: list[bytes]) -> None:
        transport = self._client._transport  # noqa: SLF001  see above
        try:
            transport.write(b"".join(data))
        except (
            OSError,
            RuntimeError,
        ) as error:  # it was closed under us, and nobody has said so yet
            self.fail_all(ReplyLostError(f"the connection to NATS broke: {error}"))
            return

        if not isinstance(
            transport, TcpTransport
        ):  # a web socket sends what was written when told to
            self._drains.add(drain := self._loop.create_task(transport.drain()))
            drain.add_done_callback(self._drains.discard)

    # receiving --------------------------------------------------------------------------------------

    def _receive(self, subject: bytes, data: bytes, headers: bytes | None) -> None:
        try:
            token = int(subject[len(self.prefix) :])
        except ValueError:
            return  # nobody asked for it

        flight = self._expected.get(token)
        if flight is None:
            return

        answer = _answer(data, headers)
        place = token - flight.first
        flight.answers[place].append(answer)
        if answer.status or not (flight.many and flight.many[place]):
            del self._expected[token]
            flight.left -= 1
            if not flight.left:
                self._land(flight)
                flight.settle(
                    tuple([one[0] for one in flight.answers])
                    if flight.flat
                    else tuple(map(tuple, flight.answers))
                )

    def _land(self, flight: Asked) -> None:
        del self._flying[flight]
        if self._landed is not None and not self._flying and not self._landed.done():
            self._landed.set_result(None)

    def _expire(self) -> None:
        """Give up what is too old. All have the same time, so they are due in the order they came."""
        self._timer = None
        now = self._loop.time()
        for flight in list(self._flying):
            if flight.deadline > now:
                self._timer = self._loop.call_at(flight.deadline, self._expire)
                return

            self._fail(flight, ReplyLostError(f"NATS did not answer in {self._timeout:g} s"))

    def _fail(self, flight: Asked, error: Exception) -> None:
        for token in range(flight.first, flight.first + len(flight.answers)):
            self._expected.pop(token, None)

        self._land(flight)
        flight.fail(error)

    def fail_all(self, error: Exception) -> None:
        """Nothing that is on its way will be answered."""
        self._gathered = None if self._gathered is None else []  # its turn comes still
        for flight in list(self._flying):
            self._fail(flight, error)

    def fail_those_to(
        self, is_meant: Callable[[str], bool], error_of: Callable[[str], Exception]
    ) -> bool:
        """Fail what is on its way to such a subject; whether anything was."""
        known = False
        for flight in list(self._flying):
            subject = next(filter(is_meant, flight.subjects), None)
            if subject is not None:
                self._fail(flight, error_of(subject))
                known = True

        return known


class _Router:
    """Stands where nats-py hands on what it has parsed; keeps back what is for an inbox."""

    def __init__(self, process: Callable[..., Any]) -> None:
        self.routes: dict[int, _Receive] = {}
        self._process = process

    async def __call__(
        self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes | None
    ) -> None:
        receive = self.routes.get(sid)
        if receive is None:
            await self._process(sid, subject, reply, data, headers)
        else:
            receive(subject, data, headers)


def _routes_of(client: Any) -> dict[int, _Receive]:
    """Who takes what on this connection, by the number of the subscription."""
    router = client._process_msg  # noqa: SLF001  see above
    if not isinstance(router, _Router):
        client._process_msg = router = _Router(router)  # noqa: SLF001  see above

    return router.routes


def _pack(data: list[bytes], message: Message, reply: str, headers: dict[str, str]) -> int:
    """Append what the protocol of NATS makes of a message; about its size, and no less."""
    subject, payload, _ = message
    size = len(payload)
    if headers:
        lines = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
        before = len(lines) + _AROUND_HEADERS
        line = f"HPUB {subject} {reply} {before} {before + size}\r\nNATS/1.0\r\n{lines}\r\n"
    else:
        line = f"PUB {subject} {reply} {size}\r\n"

    data += line.encode("ascii"), payload, b"\r\n"
    return len(line) + size


def _answer(data: bytes, raw: bytes | None) -> Answer:
    """A message that came: `NATS/1.0 404 No Results` is a status and its description."""
    if not raw:
        return Answer(0, {}, data)

    first, *lines = raw.decode("utf-8", "replace").split("\r\n")
    try:
        headers = dict([line.split(": ", 1) for line in lines if line])
    except ValueError:  # whoever wrote this message left out the space
        pairs = [line.partition(":") for line in lines if line]
        headers = {name: value.strip() for name, _, value in pairs}

    if len(first) == _VERSION_LENGTH:
        return Answer(0, headers, data)

    _, _, rest = first.partition(" ")
    status, _, description = rest.strip().partition(" ")
    if not status.isdecimal():
        return Answer(0, headers, data)

    headers["Description"] = description
    return Answer(int(status), headers, data)

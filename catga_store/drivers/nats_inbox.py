"""One inbox on a connection of nats-py, past the client library's queues.

nats-py makes the connection, and makes it again when it breaks. What is sent here goes to the socket
in the same turn of the loop, and into no buffer of the client library: that would send it after the
next connect, when its failure was reported long ago. What comes for the inbox is taken where the
client library has parsed it, without a queue and a task in between, which is most of what a request
costs.

nats-py has no public names for that (`Client._transport`, `Client._process_msg`); where it sends
otherwise than over a socket, it is left to do so.

Over 400 lines, because all of that is kept in one place.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
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
from catga_store.stores.nats.transport import MOVED
from catga_store.stores.nats.transport import Answer
from catga_store.stores.nats.transport import Message

if TYPE_CHECKING:
    from nats.aio.client import Client

__all__ = ["Asked", "Inbox"]

_AROUND_HEADERS = len("NATS/1.0\r\n\r\n")

_VERSION_LENGTH = len("NATS/1.0")

_epochs = itertools.count(1)
"""Numbers of connections. A forked child counts on from its parent's, so it never meets one again."""

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

    `timeout`, in seconds, is what a request may take until its last answer. Whatever is in flight
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
        self._watched: dict[str, Any] = {}
        self._heard: dict[str, Any] = {}
        self._info: Any = None
        self._epoch = 0

    @property
    def flying(self) -> int:
        """How many requests are in flight."""
        return len(self._flying)

    @property
    def epoch(self) -> int:
        """The number of the connection that is there now: another one after each reconnect."""
        # Each connection begins with an INFO of its own; that it has come is known before any use.
        info = self._client._server_info  # noqa: SLF001  see above
        if info is not self._info:
            self._info, self._epoch = info, next(_epochs)

        return self._epoch

    async def open(self) -> None:
        """Listen to the inbox; errors of nats-py pass."""
        self._subscription = await self._client.subscribe(f"{self.prefix}*")
        _routes_of(self._client)[self._subscription._id] = self._receive  # noqa: SLF001  see above
        # What is written here would overtake it, as long as the client library has not sent it.
        await self._client.flush()

    async def watch(self, subjects: Sequence[str]) -> None:
        """Count a message on one of these subjects as a new connection; errors of nats-py pass."""
        for subject in subjects:
            if subject not in self._watched:
                self._watched[subject] = one = await self._client.subscribe(subject)
                _routes_of(self._client)[one._id] = self._notice  # noqa: SLF001  see above

    async def listen(self, subject: str, receive: Callable[[bytes], None]) -> None:
        """Pass on each message on this subject, once the server has confirmed that; errors of nats-py pass."""
        if subject not in self._heard:
            self._heard[subject] = one = await self._client.subscribe(subject)
            _routes_of(self._client)[one._id] = lambda _subject, data, _headers: receive(data)  # noqa: SLF001  see above

        await self._client.flush()

    async def silence(self, subject: str) -> None:
        """End that."""
        one = self._heard.pop(subject, None)
        if one is not None:
            _routes_of(self._client).pop(one._id, None)  # noqa: SLF001  see above
            if self._client.is_connected:
                await one.unsubscribe()

    def tell(self, message: Message) -> None:
        """Send a message to any that listen, or lose it."""
        if self._client.is_connected:
            data: list[bytes] = []
            if _pack(data, message, "", message.headers) <= self._client.max_payload:
                self._write(data)

    def _notice(self, *_message: object) -> None:
        self._epoch = next(_epochs)

    async def close(self) -> None:
        """Wait for requests in flight, no longer than one may take, then unsubscribe."""
        if self._flying and self._client.is_connected:
            self._landed = self._loop.create_future()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._timeout):
                    await self._landed

        self.fail_all(ReplyLostError("the store was closed"))
        if self._subscription is None:
            return

        for subscription in (self._subscription, *self._watched.values(), *self._heard.values()):
            _routes_of(self._client).pop(subscription._id, None)  # noqa: SLF001  see above
            if self._client.is_connected:
                with contextlib.suppress(nats_errors.Error):
                    await subscription.unsubscribe()

    # sending ----------------------------------------------------------------------------------------

    def ask(
        self,
        messages: Sequence[Message],
        *,
        many: Sequence[bool] = (),
        flat: bool = False,
        epoch: int = 0,
    ) -> Asked:
        """Send messages; each is answered by one message, those of `many` until one has a status.

        The reply is the answers to each; with `flat` the one to each. `NotSentError`, `ReplyLostError`.
        """
        asked = self._ask([message.subject for message in messages], len(messages), many)
        asked.flat = flat
        same = self._client._server_info is self._info  # noqa: SLF001  as in `epoch`
        if epoch and epoch != (self._epoch if same else self.epoch):
            asked.settle(tuple(self.moved() for _ in messages))
            return asked

        token = asked.first
        data: list[bytes] = []
        longest = 0
        for message in messages:
            longest = max(longest, _pack(data, message, f"{self.prefix}{token}", message.headers))
            token += 1

        self._send(asked, data, longest)
        return asked

    def moved(self) -> Answer:
        """The answer to a publish that names another connection than the one that is there."""
        return Answer(
            MOVED,
            {"Description": "the connection to NATS was lost and established again"},
            b"",
            self.epoch,
        )

    def ask_batch(self, messages: Sequence[Message], name: str) -> Asked:
        """Send messages as one atomic batch, which has one answer."""
        asked = self._ask([message.subject for message in messages], 1, ())
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
                reply = f"{self.prefix}{asked.first}"

            longest = max(longest, _pack(data, message, reply, headers))

        self._send(asked, data, longest)
        return asked

    def send_silent(self, messages: Sequence[Message]) -> Asked:
        """Send messages that have no answer, or lose them; the reply is empty, at once."""
        asked = Asked(self._loop.create_future(), ())
        asked.settle(())
        if self._client.is_connected:
            data: list[bytes] = []
            for message in messages:
                _pack(data, message, "", message.headers)

            self._write(data)

        return asked

    def _ask(self, subjects: Sequence[str], number: int, many: Sequence[bool]) -> Asked:
        asked = Asked(self._loop.create_future(), subjects)
        asked.answers = [[]] if number == 1 else [[] for _ in range(number)]
        asked.left = number
        asked.many = many
        asked.first = self._number
        asked.deadline = self._loop.time() + self._timeout
        self._number += number
        return asked

    def _send(self, asked: Asked, data: list[bytes], longest: int) -> None:
        if not self._client.is_connected:
            asked.fail(NotSentError("the connection to NATS was lost"))
            return

        most = self._client.max_payload
        if longest > most:
            asked.fail(NotSentError(f"a message is larger than the server's limit of {most} bytes"))
            return

        self._flying[asked] = None
        for token in range(asked.first, asked.first + asked.left):
            self._expected[token] = asked

        if self._timer is None:
            self._timer = self._loop.call_at(asked.deadline, self._expire)

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
        ) as error:  # it was closed, and the client library has not noticed yet
            self.fail_all(ReplyLostError(f"the connection to NATS was lost: {error}"))
            return

        if not isinstance(
            transport, TcpTransport
        ):  # a web socket sends what was written when it is drained
            self._drains.add(drain := self._loop.create_task(transport.drain()))
            drain.add_done_callback(self._drains.discard)

    # receiving --------------------------------------------------------------------------------------

    def _receive(self, subject: bytes, data: bytes, headers: bytes | None) -> None:
        try:
            token = int(subject[len(self.prefix) :])
        except ValueError:
            return  # it belongs to no request

        asked = self._expected.get(token)
        if asked is None:
            return

        same = self._client._server_info is self._info  # noqa: SLF001  as in `epoch`
        answer = _answer(data, headers, self._epoch if same else self.epoch)
        place = token - asked.first
        asked.answers[place].append(answer)
        if answer.status or not (asked.many and asked.many[place]):
            del self._expected[token]
            asked.left -= 1
            if not asked.left:
                self._land(asked)
                asked.settle(
                    tuple([one[0] for one in asked.answers])
                    if asked.flat
                    else tuple(map(tuple, asked.answers))
                )

    def _land(self, asked: Asked) -> None:
        del self._flying[asked]
        if self._landed is not None and not self._flying and not self._landed.done():
            self._landed.set_result(None)

    def _expire(self) -> None:
        """Give up what is too old. All have the same time, so they are due in the order they came."""
        self._timer = None
        now = self._loop.time()
        for asked in list(self._flying):
            if asked.deadline > now:
                self._timer = self._loop.call_at(asked.deadline, self._expire)
                return

            self._fail(asked, ReplyLostError(f"NATS did not respond within {self._timeout:g} s"))

    def _fail(self, asked: Asked, error: Exception) -> None:
        for token in range(asked.first, asked.first + len(asked.answers)):
            self._expected.pop(token, None)

        self._land(asked)
        asked.fail(error)

    def fail_all(self, error: Exception) -> None:
        """Fail every request in flight."""
        self._gathered = None if self._gathered is None else []  # its turn comes still
        for asked in list(self._flying):
            self._fail(asked, error)

    def fail_those_to(
        self, is_meant: Callable[[str], bool], error_of: Callable[[str], Exception]
    ) -> bool:
        """Fail requests in flight to such a subject; return whether there were any."""
        known = False
        for asked in list(self._flying):
            subject = next(filter(is_meant, asked.subjects), None)
            if subject is not None:
                self._fail(asked, error_of(subject))
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
    """The receivers on this connection, by the number of the subscription."""
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


def _answer(data: bytes, raw: bytes | None, epoch: int = 0) -> Answer:
    """A message that came: `NATS/1.0 404 No Results` is a status and its description."""
    if not raw:
        return Answer(0, {}, data, epoch)

    first, *lines = raw.decode("utf-8", "replace").split("\r\n")
    try:
        headers = dict([line.split(": ", 1) for line in lines if line])
    except ValueError:  # the author of this message left out the space
        pairs = [line.partition(":") for line in lines if line]
        headers = {name: value.strip() for name, _, value in pairs}

    if len(first) == _VERSION_LENGTH:
        return Answer(0, headers, data, epoch)

    _, _, rest = first.partition(" ")
    status, _, description = rest.strip().partition(" ")
    if not status.isdecimal():
        return Answer(0, headers, data, epoch)

    headers["Description"] = description
    return Answer(int(status), headers, data, epoch)

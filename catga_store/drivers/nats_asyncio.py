"""NATS on asyncio: a link over one connection of nats-py.

Answers come to an inbox of the link's own, so that any number of requests is outstanding, each for
one answer or for a stream of them. Nothing is handed to nats-py while it is not connected: what it
would buffer it might deliver after the failure was reported. What it held when a connection broke
it may still deliver after it reconnects, so a request that was handed over and not answered is
always a `ReplyLostError`, and the store fences it before it says what became of it.

Records that are asked for one by one while others are on their way are asked for together. Atomic
batches that are asked for while another is on its way go together as one (group commit),
up to 1,000 messages. A refused group is tried again in halves, so that a conflict of one refuses
no other.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import logging
import os
import re
from collections.abc import Awaitable
from collections.abc import Callable
from collections.abc import Sequence
from typing import TYPE_CHECKING
from typing import Any
from typing import NamedTuple

import nats
from nats import errors as nats_errors

from catga_store.conversation import UNTRUSTED
from catga_store.conversation import Answer
from catga_store.conversation import Ask
from catga_store.conversation import Asks
from catga_store.conversation import Greet
from catga_store.conversation import Greeting
from catga_store.conversation import Message
from catga_store.conversation import NotSentError
from catga_store.conversation import Pause
from catga_store.conversation import Publish
from catga_store.conversation import ReplyLostError
from catga_store.conversation import Request
from catga_store.conversation import is_untrusted
from catga_store.errors import StoreConfigError
from catga_store.errors import UsageError

if TYPE_CHECKING:
    from nats.aio.client import Client
    from nats.aio.msg import Msg

__all__ = ["NatsLink"]

_log = logging.getLogger(__name__)

_BATCH_MOST = 1000
_READS, _READ_TOGETHER = 2, 64
_END, _NOT_FOUND, _BUSY = 204, 404, 503
_TRIES_OF_A_TIMEOUT = 4
_TRIES_OF_A_CONNECTION = 5
_POLL_SECONDS = 0.02


class _Waiting(NamedTuple):
    """A request on its way."""

    token: str
    subjects: frozenset[str]
    future: asyncio.Future[tuple[Answer, ...]]
    many: bool
    answers: list[Answer]


class _Batch(NamedTuple):
    """An atomic batch that waits to be sent."""

    messages: tuple[Message, ...]
    future: asyncio.Future[Answer]


class NatsLink:
    """Performs wire requests on one asyncio loop, for any number of its tasks.

    `servers` are URLs, or a connection of the user's on this loop, which stays open. `timeout`, in
    seconds, is what an operation may take; one exchange is given up after a quarter of it.
    `options` go to `nats.connect`.
    """

    def __init__(
        self,
        servers: list[str] | Client,
        *,
        timeout: float,
        **options: Any,
    ) -> None:
        self._servers = servers
        self._options = options
        self._timeout = timeout / _TRIES_OF_A_TIMEOUT
        self._client: Client | None = None
        self._connecting = asyncio.Lock()
        self._owned = False
        self._closed = False
        self._error: Exception | None = None
        self._opening: asyncio.Timeout | None = None
        self._refused: StoreConfigError | None = None
        self._waiting: dict[str, _Waiting] = {}
        self._numbers = itertools.count()
        self._prefix = ""
        self._inbox: Any = None
        self._queue: list[_Batch] = []
        self._reads: list[tuple[Ask, asyncio.Future[Answer]]] = []
        self._reading = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._sender: asyncio.Task[None] | None = None
        self._performers: dict[type, Callable[[Any], Awaitable[Any]]] = {
            Asks: self._asks,
            Publish: self._publish,
            Greet: self._greet,
            Pause: lambda pause: asyncio.sleep(pause.seconds),
        }

    def __repr__(self) -> str:
        client = self._client
        state = "not connected" if client is None or not client.is_connected else "connected"
        return f"<NatsLink {state}, {len(self._waiting)} requests on their way>"

    async def perform(self, request: Request[Any]) -> Any:
        """The reply. Cancelled while it waits, the request may have been sent and applied."""
        return await self._performers[type(request)](request)

    async def close(self) -> None:
        """Let what is on its way end, then close the connection if the link opened it."""
        self._closed = True
        client, self._client = self._client, None
        if client is None:
            return

        sender = self._sender
        if sender is not None:
            await asyncio.wait([sender])

        if self._owned:
            await client.close()
        elif client.is_connected:
            await self._inbox.unsubscribe()

        self._fail_all(ReplyLostError("the store was closed"))

    # the connection ---------------------------------------------------------------------------------

    async def _connected(self) -> Client:
        """The connection, once it works; `NotSentError` if it does not come back in time."""
        client = self._client
        if client is None or client.is_closed:
            async with self._connecting:
                client = await self._renewed()

        now = asyncio.get_running_loop().time
        until = now() + self._timeout * _TRIES_OF_A_TIMEOUT
        while not client.is_connected:
            if client.is_closed or now() > until:
                message = f"the connection to NATS is lost: {client.last_error!r}"
                raise NotSentError(message) from client.last_error

            await asyncio.sleep(_POLL_SECONDS)

        if self._refused is not None:
            raise self._refused

        return client

    async def _renewed(self) -> Client:
        """A connection where there is none yet, or where the server has closed ours for good."""
        client = self._client
        if client is None or (client.is_closed and self._owned):
            return await self._connect()

        return client

    async def _connect(self) -> Client:
        servers = self._servers
        self._error = None
        if isinstance(servers, list):
            client = await self._open(servers)
            self._owned = True
        else:
            client = servers
            _check_loop(client)

        self._refused = None
        self._prefix = f"{client.new_inbox()}."
        subscribe: Any = client.subscribe  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]  typed in part
        try:
            self._inbox = await subscribe(f"{self._prefix}*", cb=self._receive)
        except nats_errors.Error as error:
            message = f"the connection to NATS is lost: {error!r}"
            raise NotSentError(message) from error

        self._client = client
        if self._closed:  # while it was opened
            await self.close()
            message = "the store was closed"
            raise NotSentError(message)

        return client

    async def _open(self, servers: list[str]) -> Client:
        options: dict[str, Any] = {
            "servers": servers,
            "connect_timeout": max(self._timeout, 0.1),
            "reconnect_time_wait": 0.1,
            "pending_size": 0,
            "name": "catga_store",
            **self._options,
            "max_reconnect_attempts": 1,  # a first connection is not tried for ever
            "error_cb": self._on_error,
            "disconnected_cb": self._on_disconnect,
        }
        try:
            async with asyncio.timeout(self._timeout * _TRIES_OF_A_TIMEOUT) as self._opening:
                client = await self._open_with(options)
        except (nats_errors.Error, OSError, TimeoutError) as error:
            if is_untrusted(self._error):
                raise StoreConfigError(UNTRUSTED) from self._error

            if "authorization" in repr(error).lower() or "credentials" in repr(error).lower():
                message = "NATS refused user, password, token or credentials; mend the URL or them"
                raise StoreConfigError(message) from error

            why = str(error) or "no answer"  # a TimeoutError says nothing
            message = f"no NATS server can be used at {_without_password(servers)}: {why}"
            raise NotSentError(message) from error
        finally:
            self._opening = None

        client.options["max_reconnect_attempts"] = -1
        return client

    async def _open_with(self, options: dict[str, Any]) -> Client:
        tries = _TRIES_OF_A_CONNECTION
        while True:
            tries -= 1
            try:
                connect: Any = nats.connect  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]  typed in part
                client: Client = await connect(**options)
            except (nats_errors.Error, OSError) as raised:
                error: Exception = raised
                if isinstance(raised, nats_errors.NoServersError) and self._error is not None:
                    error = self._error  # what the last server said

                # A server that refuses a user closes at once: its reason may be lost with that.
                if tries and isinstance(error, ConnectionResetError | BrokenPipeError):
                    continue

                if error is raised:
                    raise

                raise error from raised
            else:
                return client

    async def _on_disconnect(self) -> None:
        self._fail_all(ReplyLostError("the connection to NATS broke before the reply"))

    async def _on_error(self, error: Exception) -> None:
        self._error = error
        alone = isinstance(self._servers, list) and len(self._servers) == 1
        if alone and self._opening is not None and is_untrusted(error):
            self._opening.reschedule(asyncio.get_running_loop().time())  # no try will be better

        text = str(error).lower()
        if "permissions violation" not in text:
            return

        if "subscription" in text:
            if self._prefix.lower() in text:
                self._refused = refusal = _refusal("subscribe to", f"{self._prefix}*", error)
                self._fail_all(refusal)

            return

        known = False
        for token, waiting in list(self._waiting.items()):
            for subject in waiting.subjects:
                if f'"{subject.lower()}"' in text and not waiting.future.done():
                    waiting.future.set_exception(_refusal("publish to", subject, error))
                    del self._waiting[token]
                    known = True
                    break

        if not known:  # of what nobody waits for: old index entries stay where they are
            _log.warning("NATS refused something that the store asked for: %s", error)

    def _fail_all(self, error: Exception) -> None:
        for waiting in self._waiting.values():
            if not waiting.future.done():
                waiting.future.set_exception(error)

        self._waiting.clear()

    async def _receive(self, msg: Msg) -> None:
        token = msg.subject[len(self._prefix) :]
        waiting = self._waiting.get(token)
        if waiting is None or waiting.future.done():
            return

        headers = msg.headers or {}
        status = headers.get("Status")
        answer = Answer(int(status) if status is not None else 0, headers, msg.data)
        waiting.answers.append(answer)
        if answer.status or not waiting.many:
            del self._waiting[token]
            waiting.future.set_result(tuple(waiting.answers))

    # what is asked ----------------------------------------------------------------------------------

    async def _greet(self, _request: Greet) -> Greeting:
        client = await self._connected()
        # Public names tell the version only; the rest of INFO has none.
        info: dict[str, Any] = client._server_info  # noqa: SLF001  see above
        return Greeting(
            str(info["version"]), bool(info.get("jetstream", False)), int(client.max_payload)
        )

    async def _asks(self, request: Asks) -> tuple[tuple[Answer, ...], ...]:
        first = request.asks[0]
        if first.last and len(request.asks) == 1:
            return (((await self._last(first)),),)

        return await self._ask_all(request)

    async def _ask_all(self, request: Asks) -> tuple[tuple[Answer, ...], ...]:
        client = await self._connected()
        waits: list[_Waiting] = []
        for ask in request.asks:
            if ask.silent:
                with contextlib.suppress(nats_errors.Error):  # nobody waits for it: it may be lost
                    await client.publish(ask.subject, ask.payload)
            else:
                waits.append(self._expect(ask.subject, many=ask.many))
                await self._send(client, Message(ask.subject, ask.payload, {}), waits)

        return await self._answers(waits)

    async def _publish(self, request: Publish) -> tuple[Answer, ...]:
        if request.atomic:
            return (await self._join(request.messages),)

        client = await self._connected()
        waits: list[_Waiting] = []
        for message in request.messages:
            waits.append(self._expect(message.subject))
            await self._send(client, message, waits)

        return tuple([answers[0] for answers in await self._answers(waits)])

    def _expect(self, *subjects: str, many: bool = False) -> _Waiting:
        token = str(next(self._numbers))
        future: asyncio.Future[tuple[Answer, ...]] = asyncio.get_running_loop().create_future()
        waiting = _Waiting(token, frozenset(subjects), future, many, [])
        self._waiting[token] = waiting
        return waiting

    async def _send(self, client: Client, message: Message, waits: list[_Waiting]) -> None:
        """Hand the message that the last of `waits` waits for over to nats-py, or raise."""
        try:
            if not client.is_connected:
                raise nats_errors.ConnectionReconnectingError  # noqa: TRY301  one way out

            await client.publish(
                message.subject,
                message.payload,
                f"{self._prefix}{waits[-1].token}",
                message.headers or None,
            )
        except (nats_errors.Error, OSError) as error:
            self._give_up(waits)
            text = f"{message.subject} could not be sent: {error!r}"
            if len(waits) == 1 and not isinstance(error, OSError):
                raise NotSentError(text) from error

            raise ReplyLostError(text) from error
        except BaseException:
            self._give_up(waits)
            raise

    async def _answers(self, waits: Sequence[_Waiting]) -> tuple[tuple[Answer, ...], ...]:
        try:
            async with asyncio.timeout(self._timeout):
                return tuple([await wait.future for wait in waits])
        except TimeoutError as error:
            message = f"NATS did not answer in {self._timeout:g} s"
            raise ReplyLostError(message) from error
        finally:
            self._give_up(waits)

    def _give_up(self, waits: Sequence[_Waiting]) -> None:
        for wait in waits:
            self._waiting.pop(wait.token, None)
            if wait.future.done() and not wait.future.cancelled():
                wait.future.exception()  # seen, though another one is raised

    # reads together -----------------------------------------------------------------------------------

    async def _last(self, ask: Ask) -> Answer:
        """The last message of a subject: alone, or with others while reads are on their way."""
        if self._reading < _READS:
            self._reading += 1
            try:
                ((answer,),) = await self._ask_all(Asks((ask,)))
                return answer
            finally:
                self._reading -= 1
                self._read_queued()

        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._reads.append((ask, future))
        return await future

    def _read_queued(self) -> None:
        """Ask for what has gathered, in a task: whoever gathered it may be cancelled."""
        self._reads = [(ask, future) for ask, future in self._reads if not future.done()]
        if self._reads and self._reading < _READS:
            some, self._reads = self._reads[:_READ_TOGETHER], self._reads[_READ_TOGETHER:]
            self._reading += 1
            task = asyncio.create_task(self._read_together(some))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _read_together(self, some: list[tuple[Ask, asyncio.Future[Answer]]]) -> None:
        try:
            subjects = list(dict.fromkeys(ask.last for ask, _ in some))
            payload = json.dumps({"multi_last": subjects}).encode()
            (answers,) = await self._ask_all(Asks((Ask(some[0][0].subject, payload, many=True),)))
            end = answers[-1]
            found = {answer.headers["Nats-Subject"]: answer for answer in answers[:-1]}
            # A refusal is everybody's, and so is a reply that became too long and was cut off.
            absent = end if end.status not in (_END, _NOT_FOUND) else Answer(_NOT_FOUND, {}, b"")
            if int(end.headers.get("Nats-Num-Pending", "0")):
                absent = Answer(_BUSY, {}, b"")

            for ask, future in some:
                _settle(future, found.get(ask.last, absent))
        except (NotSentError, ReplyLostError, StoreConfigError) as error:
            for _, future in some:
                _settle(future, error)
        finally:
            self._reading -= 1
            self._read_queued()

    # atomic batches -----------------------------------------------------------------------------------

    async def _join(self, messages: tuple[Message, ...]) -> Answer:
        """Send a batch with others that come while one is on its way."""
        batch = _Batch(messages, asyncio.get_running_loop().create_future())
        self._queue.append(batch)
        if self._sender is None:
            self._sender = asyncio.create_task(self._send_batches())

        # A caller that is cancelled leaves its batch to the sender: others may be in its group.
        return await asyncio.shield(batch.future)

    async def _send_batches(self) -> None:
        try:
            while self._queue:
                group: list[_Batch] = [self._queue.pop(0)]
                size = len(group[0].messages)
                while self._queue and size + len(self._queue[0].messages) <= _BATCH_MOST:
                    group.append(self._queue.pop(0))
                    size += len(group[-1].messages)

                await self._send_group(group)
        finally:
            self._sender = None

    async def _send_group(self, group: list[_Batch]) -> None:
        try:
            answer = await self._send_batch([m for batch in group for m in batch.messages])
        except (NotSentError, ReplyLostError, StoreConfigError) as error:
            for batch in group:
                _settle(batch.future, error)

            return

        ack: dict[str, Any] = json.loads(answer.data) if answer.data else {}
        stored = bool(ack.get("seq"))  # a refusal says 0
        if len(group) > 1 and not stored:
            half = len(group) // 2
            await self._send_group(group[:half])
            await self._send_group(group[half:])
            return

        last = ack.get("seq", 0)
        for batch in reversed(group):
            if stored:
                answer = Answer(0, {}, json.dumps({"seq": last}).encode())
                last -= len(batch.messages)

            _settle(batch.future, answer)

    async def _send_batch(self, messages: list[Message]) -> Answer:
        client = await self._connected()
        name = os.urandom(11).hex()
        waiting = self._expect(*[message.subject for message in messages])
        handed_over = False
        try:
            for number, message in enumerate(messages, start=1):
                if not client.is_connected:
                    raise nats_errors.ConnectionReconnectingError

                headers = {
                    **message.headers,
                    "Nats-Batch-Id": name,
                    "Nats-Batch-Sequence": str(number),
                }
                reply = ""
                if number == len(messages):
                    headers["Nats-Batch-Commit"] = "1"
                    reply = f"{self._prefix}{waiting.token}"
                    handed_over = True

                await client.publish(message.subject, message.payload, reply, headers)
        except (nats_errors.Error, OSError) as error:
            self._give_up([waiting])
            text = f"the batch could not be sent: {error!r}"
            # Without its last message a batch is never applied.
            raise (ReplyLostError if handed_over else NotSentError)(text) from error

        return (await self._answers([waiting]))[0][0]


def _settle(future: asyncio.Future[Answer], result: Answer | Exception) -> None:
    if future.done():
        return

    if isinstance(result, Exception):
        future.set_exception(result)
    else:
        future.set_result(result)


def _check_loop(client: Client) -> None:
    """`UsageError` unless a connection of the user's was made on the loop that runs."""
    # No public name tells the loop; a client that was never connected reads nothing.
    private: Any = client
    task: asyncio.Task[None] | None = private._reading_task  # noqa: SLF001  see above
    if task is None:
        message = "the NATS client was never connected; connect it before it is given to the store"
        raise UsageError(message)

    if task.get_loop() is not asyncio.get_running_loop():
        message = (
            "the NATS client belongs to another event loop than the store's; connect it on the loop"
            " that uses the store, or give the store the URLs of the servers (under trio always)"
        )
        raise UsageError(message)


def _refusal(verb: str, subject: str, error: Exception) -> StoreConfigError:
    message = (
        f"NATS does not let this user {verb} {subject!r}; allow it, as the documentation of the"
        " store lists; nothing of this request was written"
    )
    refusal = StoreConfigError(message)
    refusal.__cause__ = error
    return refusal


def _without_password(servers: Sequence[str]) -> str:
    return re.sub(r"//[^@/,]*@", "//…@", ", ".join(servers))

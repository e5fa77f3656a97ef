"""NATS on asyncio: a link over one connection of nats-py.

Any number of requests is outstanding, each for one answer or for a stream of them (`nats_inbox`).
Nothing is kept for a connection that is not there: a request that was handed over and not answered is
a `ReplyLostError`, and the store fences it before it says what became of it.

Records that are asked for one by one while others are in flight are asked for together. Atomic
batches that are asked for while another is in flight go together as one (group commit),
up to 1,000 messages. A refused group is tried again in halves, so that a conflict of one refuses
no other.
"""

from __future__ import annotations

import asyncio
import logging
import os
from typing import TYPE_CHECKING
from typing import Any
from typing import NamedTuple

from msgspec import json
from nats import errors as nats_errors

from catga_store.drivers.cancellation import OwnTask
from catga_store.drivers.nats_connecting import check_encryption
from catga_store.drivers.nats_connecting import is_hopeless
from catga_store.drivers.nats_connecting import meaning_of
from catga_store.drivers.nats_connecting import open_client
from catga_store.drivers.nats_hints import HintSubscription
from catga_store.drivers.nats_inbox import Asked
from catga_store.drivers.nats_inbox import Inbox
from catga_store.errors import StoreConfigError
from catga_store.errors import UsageError
from catga_store.protocol.conversation import NotSentError
from catga_store.protocol.conversation import ReplyLostError
from catga_store.protocol.conversation import Request
from catga_store.stores.nats.transport import Answer
from catga_store.stores.nats.transport import Ask
from catga_store.stores.nats.transport import Asks
from catga_store.stores.nats.transport import Greet
from catga_store.stores.nats.transport import Greeting
from catga_store.stores.nats.transport import Message
from catga_store.stores.nats.transport import Publish
from catga_store.stores.nats.transport import SubscribeToHints
from catga_store.stores.nats.transport import Tell

if TYPE_CHECKING:
    from nats.aio.client import Client

    from catga_store.drivers.links import Started

__all__ = ["NatsLink"]

_log = logging.getLogger(__name__)

_BATCH_MOST = 1000
_OUT_OF_STORAGE = 10023  # a batch so refused may be stored in part: it is not sent again
_BATCH_BYTES = 8 * 1024 * 1024
_READS, _READ_TOGETHER = 2, 64
_END, _NOT_FOUND, _BUSY = 204, 404, 503
_TRIES_OF_A_TIMEOUT = 4
_POLL_SECONDS = 0.02
_CLOSED = "the store was closed"


class _Batch(NamedTuple):
    """An atomic batch that waits to be sent."""

    messages: tuple[Message, ...]
    epoch: int
    """The connection that it must go over, or 0."""
    asked: Asked


class NatsLink:
    """Performs transport requests on one asyncio loop, for any number of its tasks.

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
        self._inbox: Inbox | None = None
        self._watched: tuple[str, ...] = ()
        self._queue: list[_Batch] = []
        self._reads: list[tuple[Ask, asyncio.Future[Answer]]] = []
        self._reading = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._sender: asyncio.Task[None] | None = None
        self._hints = HintSubscription(self._usable, self._timeout)
        self._hints_refused: set[str] = set()

    def __repr__(self) -> str:
        client, inbox = self._client, self._inbox
        state = "not connected" if client is None or not client.is_connected else "connected"
        number = 0 if inbox is None else inbox.flying
        return f"<NatsLink {state}, {number} {'request' if number == 1 else 'requests'} in flight>"

    def start(self, request: Request[Any], /) -> Started:
        """Begin a request; it is sent and runs to its reply even if no caller waits for it."""
        inbox = self._usable()
        if inbox is not None:
            if isinstance(request, Publish):
                return self._begin(inbox, request)

            if isinstance(request, Asks):
                return _ask_all(inbox, request)

        if isinstance(request, Tell):
            return self._tell(inbox, request)

        return OwnTask(asyncio.create_task(self.perform(request)))

    async def perform(self, request: Request[Any], /) -> Any:
        """The reply. Cancelled while it waits, the request may have been sent and applied."""
        if isinstance(request, Tell | SubscribeToHints):
            return await self._perform_for_hints(request)

        inbox = self._usable() or await self._connected()
        if isinstance(request, Greet):
            self._watched = request.watched
            await inbox.watch(request.watched)
            return self._greeting(inbox)

        if isinstance(request, Publish):
            return await self._begin(inbox, request).ended

        assert isinstance(request, Asks), request  # noqa: S101  there are no others
        first = request.asks[0]
        if not first.last or len(request.asks) != 1:
            return await _ask_all(inbox, request).ended

        # The last message of a subject: alone, or with others while reads are in flight.
        if self._reading < _READS:
            self._reading += 1
            try:
                return await _ask_all(inbox, request).ended
            finally:
                self._reading -= 1
                if self._reads:
                    self._read_queued()

        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._reads.append((first, future))
        return ((await future,),)

    async def close(self) -> None:
        """Let what is in flight end, then close the connection if the link opened it."""
        self._closed = True
        await self._hints.close()
        client, self._client = self._client, None
        inbox, self._inbox = self._inbox, None
        if client is None:
            return

        sender = self._sender
        if sender is not None:
            await asyncio.wait([sender])

        if inbox is not None:
            await inbox.close()

        if self._owned:
            await self._shut(client)

    async def _shut(self, client: Client) -> None:
        # While it is being connected again, nats-py may cancel what closes it.
        closing = asyncio.create_task(client.close())
        self._tasks.add(closing)
        closing.add_done_callback(self._tasks.discard)
        await asyncio.wait([closing])
        if not closing.cancelled() and (error := closing.exception()) is not None:
            _log.debug("the connection to NATS was closed because of an error: %r", error)

    # the connection ---------------------------------------------------------------------------------

    def _usable(self) -> Inbox | None:
        """The connection, if it works now."""
        client = self._client
        works = client is not None and client.is_connected and self._refused is None
        return self._inbox if works else None

    async def _connected(self) -> Inbox:
        """The connection, once it works; `NotSentError` if it does not come back in time."""
        if self._closed:  # batches that are queued then must not open another connection
            raise NotSentError(_CLOSED)

        client = self._client
        if client is None or client.is_closed:
            async with self._connecting:
                client = await self._renewed()

        now = asyncio.get_running_loop().time
        until = now() + self._timeout * _TRIES_OF_A_TIMEOUT
        while not client.is_connected:
            if client.is_closed or now() > until:
                why = "" if client.last_error is None else f": {client.last_error!r}"
                raise NotSentError(f"the connection to NATS was lost{why}") from client.last_error

            await asyncio.sleep(_POLL_SECONDS)

        if self._refused is not None:
            raise self._refused

        inbox = self._inbox
        if inbox is None or self._client is not client:
            raise NotSentError(_CLOSED)

        return inbox

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
            check_encryption(client)

        self._refused = None
        inbox = self._inbox = Inbox(client, self._timeout)
        try:
            await inbox.open()
            await inbox.watch(self._watched)
        except BaseException as error:
            self._inbox = None
            if self._owned:  # no other code knows it, also when a cancellation stops us here
                await self._shut(client)

            if not isinstance(error, nats_errors.Error):
                raise

            message = f"the connection to NATS was lost: {error!r}"
            raise NotSentError(message) from error

        if self._closed:  # while it was opened
            self._inbox = None
            await inbox.close()
            if self._owned:
                await self._shut(client)

            raise NotSentError(_CLOSED)

        self._client, self._inbox = client, inbox
        return client

    async def _open(self, servers: list[str]) -> Client:
        options: dict[str, Any] = {
            "connect_timeout": max(self._timeout, 0.1),
            "reconnect_time_wait": 0.1,
            "pending_size": 0,
            "name": "catga_store",
            **self._options,
            "max_reconnect_attempts": 1,  # a first connection is not tried forever
            "error_cb": self._on_error,
            "disconnected_cb": self._on_disconnect,
        }
        try:
            async with asyncio.timeout(self._timeout * _TRIES_OF_A_TIMEOUT) as self._opening:
                client = await open_client(servers, options)
        except StoreConfigError:
            raise
        except Exception as error:  # noqa: BLE001  no foreign exception passes the driver
            cause = self._error if self._error is not None and is_hopeless(self._error) else error
            raise meaning_of(cause, servers) from cause
        finally:
            self._opening = None

        client.options["max_reconnect_attempts"] = -1
        return client

    async def _on_disconnect(self) -> None:
        if self._inbox is not None:
            self._inbox.fail_all(
                ReplyLostError("the connection to NATS was lost before the reply arrived")
            )

    async def _on_error(self, error: Exception) -> None:
        self._error = error
        alone = isinstance(self._servers, list) and len(self._servers) == 1
        if alone and self._opening is not None and is_hopeless(error):
            self._opening.reschedule(asyncio.get_running_loop().time())  # no try will be better

        text = str(error).lower()
        inbox = self._inbox
        if "permissions violation" not in text or inbox is None:
            return

        if '"catga_hints.' in text:
            self._refuse_hints("subscribe" if "subscription" in text else "publish", error)
            return

        if "subscription" in text:
            if inbox.prefix.lower() in text:
                self._refused = refusal = _refusal("subscribe to", f"{inbox.prefix}*", error)
                inbox.fail_all(refusal)

            return

        known = inbox.fail_those_to(
            lambda subject: f'"{subject.lower()}"' in text,
            lambda subject: _refusal("publish to", subject, error),
        )
        if not known:  # no caller waits for it: old index entries stay where they are
            _log.warning("NATS refused a request from the store: %s", error)

    def _refuse_hints(self, what: str, error: Exception) -> None:
        if what not in self._hints_refused:
            self._hints_refused.add(what)
            _log.warning(
                "NATS refuses the store's hints: %s; waiting calls now check the store "
                "once per poll interval; allow this user to %s catga_hints.<bucket>",
                error,
                what,
            )

    # what is asked ----------------------------------------------------------------------------------

    def _greeting(self, inbox: Inbox) -> Greeting:
        client: Any = self._client
        # Only the version has a public name; the rest of INFO has none.
        info: dict[str, Any] = client._server_info  # noqa: SLF001  see above
        return Greeting(
            str(info["version"]),
            bool(info.get("jetstream", False)),
            int(client.max_payload),
            inbox.epoch,
            str(info.get("server_name", "")),
        )

    def _tell(self, inbox: Inbox | None, request: Tell) -> Asked:
        if inbox is not None and "publish" not in self._hints_refused:
            inbox.tell(Message(request.subject, request.payload, {}))

        done = Asked(asyncio.get_running_loop().create_future(), ())
        done.settle(())
        return done

    async def _perform_for_hints(self, request: Tell | SubscribeToHints) -> None:
        if isinstance(request, SubscribeToHints):
            await self._hints.begin(request)
        else:
            await self._tell(self._usable(), request).ended

    def _begin(self, inbox: Inbox, request: Publish) -> Asked:
        return (
            self._join(request)
            if request.atomic
            else inbox.ask(request.messages, flat=True, epoch=request.epoch)
        )

    # reads together -----------------------------------------------------------------------------------

    def _read_queued(self) -> None:
        """Ask for what has gathered, in a task: the callers that gathered it may be cancelled."""
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
            payload = json.encode({"multi_last": subjects})
            inbox = await self._connected()
            together = Asks((Ask(some[0][0].subject, payload, many=True),))
            (answers,) = await _ask_all(inbox, together).ended
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

    def _join(self, request: Publish) -> Asked:
        """Send a batch with others that come while one is in flight."""
        subjects = [message.subject for message in request.messages]
        asked = Asked(asyncio.get_running_loop().create_future(), subjects)
        batch = _Batch(request.messages, request.epoch, asked)
        self._queue.append(batch)
        if self._sender is None:
            self._sender = asyncio.create_task(self._send_batches())

        return batch.asked

    async def _send_batches(self) -> None:
        try:
            while self._queue:
                group: list[_Batch] = [self._queue.pop(0)]
                number, size = len(group[0].messages), _size(group[0])
                subjects = set(group[0].asked.subjects)
                while self._queue:
                    batch = self._queue[0]
                    number += len(batch.messages)
                    size += _size(batch)
                    # Of two that write the same record one is refused, and all that go with it.
                    apart = subjects.isdisjoint(batch.asked.subjects)
                    if number > _BATCH_MOST or size > _BATCH_BYTES or not apart:
                        break

                    subjects.update(batch.asked.subjects)
                    group.append(self._queue.pop(0))

                await self._send_group(group)
        finally:
            self._sender = None

    async def _send_group(self, group: list[_Batch]) -> None:
        try:
            inbox = await self._connected()
            group = _of_connection(group, inbox)
            if not group:
                return

            messages = [message for batch in group for message in batch.messages]
            ((answer,),) = await inbox.ask_batch(messages, os.urandom(11).hex()).ended
        except (NotSentError, ReplyLostError, StoreConfigError) as error:
            for batch in group:
                batch.asked.fail(error)

            return
        except BaseException as error:
            for batch in group:
                batch.asked.fail(
                    ReplyLostError(f"the batch was abandoned because of an error: {error!r}")
                )

            raise

        ack: dict[str, Any] = json.decode(answer.data) if answer.data else {}
        stored = bool(ack.get("seq"))  # a refusal says 0
        in_part = ack.get("error", {}).get("err_code") == _OUT_OF_STORAGE
        if len(group) > 1 and not stored and not in_part:
            half = len(group) // 2
            await self._send_group(group[:half])
            await self._send_group(group[half:])
            return

        last = ack.get("seq", 0)
        for batch in reversed(group):
            if stored:
                answer = Answer(0, {}, json.encode({"seq": last}), answer.epoch)
                last -= len(batch.messages)

            batch.asked.settle((answer,))


def _of_connection(group: list[_Batch], inbox: Inbox) -> list[_Batch]:
    """The batches that may go over this connection; the others get their answer here."""
    fitting: list[_Batch] = []
    for batch in group:
        if batch.epoch in {0, inbox.epoch}:
            fitting.append(batch)
        else:
            batch.asked.settle((inbox.moved(),))

    return fitting


def _ask_all(inbox: Inbox, request: Asks) -> Asked:
    messages = [Message(ask.subject, ask.payload, {}) for ask in request.asks]
    if request.asks[0].silent:
        return inbox.send_silent(messages)  # no reply is expected: it may be lost

    return inbox.ask(messages, many=[ask.many for ask in request.asks])


def _size(batch: _Batch) -> int:
    return sum([len(message.payload) for message in batch.messages])


def _settle(future: asyncio.Future[Answer], result: Answer | Exception) -> None:
    if future.done():
        return

    if isinstance(result, Exception):
        future.set_exception(result)
    else:
        future.set_result(result)


def _check_loop(client: Client) -> None:
    """`UsageError` unless a connection of the user's was made on the loop that runs."""
    # The loop has no public name; a client that was never connected reads nothing.
    private: Any = client
    task: asyncio.Task[None] | None = private._reading_task  # noqa: SLF001  see above
    if task is None:
        message = (
            "the NATS client has never been connected; connect it before you pass it to the store"
        )
        raise UsageError(message)

    if task.get_loop() is not asyncio.get_running_loop():
        message = (
            "the NATS client and the store use different event loops; connect the client on the "
            "store's event loop, or pass the server URLs to the store (with trio, the store "
            "accepts only URLs)"
        )
        raise UsageError(message)


def _refusal(verb: str, subject: str, error: Exception) -> StoreConfigError:
    message = (
        f"NATS does not permit this user to {verb} {subject!r}, so this request had no "
        "effect; grant the permission (the documentation of the NATS store lists all "
        "required permissions)"
    )
    refusal = StoreConfigError(message)
    refusal.__cause__ = error
    return refusal

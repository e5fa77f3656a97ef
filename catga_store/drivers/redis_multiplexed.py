"""A multiplexed connection: one Redis connection that any number of tasks share.

Commands that tasks send in the same turn of the loop go out in few writes, in order; further writes do
not wait for the replies to earlier ones. One task reads the replies and assigns them in that order, so
a caller that was cancelled costs its replies and nothing else. Each call has one deadline, from the
call to its last reply. The first deadline that is missed breaks the connection: calls that were sent
have lost their replies; calls that were not sent go out on the next connection while their own
deadlines last.

The connections come from the pool of the client library's client, with its parser.
"""

from __future__ import annotations

import asyncio
import codecs
import math
from collections import deque
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Sequence
from functools import partial
from typing import Any
from typing import Protocol
from typing import TypeAlias

from redis.exceptions import AuthenticationError
from redis.exceptions import AuthorizationError
from redis.exceptions import BusyLoadingError
from redis.exceptions import RedisError
from redis.exceptions import ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from catga_store.drivers.in_flight import InFlight
from catga_store.drivers.redis_packing import pack
from catga_store.protocol.conversation import NotSentError
from catga_store.protocol.conversation import ReplyLostError
from catga_store.stores.redis.transport import Command

__all__ = [
    "Arguments",
    "CommandsInFlight",
    "Connections",
    "MultiplexedConnection",
    "MultiplexedConnections",
]

Arguments: TypeAlias = tuple[bytes | str | int, ...]

_TOGETHER = 8
"""Whenever that many callers wait, their commands are written without waiting for the turn of the loop to end.

The server works on these while the others are prepared: a worker on asyncio runs 5,900 steps a second that
way, and 4,500 where each turn has one write (32 at a time, two cores; 16: 5,560).
"""
_REPLIED_ERRORS = (ResponseError, AuthenticationError, AuthorizationError, BusyLoadingError)
"""The exceptions that redis-py raises for error replies; the last three look like lost connections."""


class Connections(Protocol):
    """The source of the connection that is shared."""

    hint: str
    """What may be the reason if no connection comes in time; begins with "; " unless empty."""

    def failure(self, error: BaseException) -> NotSentError:
        """Return what it means that `take` has failed."""
        ...

    async def take(self) -> Any:
        """Return a connection of `redis.asyncio`, connected, for this caller alone."""
        ...

    async def give_back(self, connection: Any) -> None:
        """Take a connection back: connected with no reply outstanding, or disconnected."""
        ...


class CommandsInFlight(InFlight):
    """Commands of one caller that stay together, and the replies that have come so far.

    One that is `kept` is sent, and its outcome remembered, even if no caller waits for it any more.
    """

    __slots__ = ("commands", "kept", "replies")

    def __init__(
        self,
        commands: Sequence[Arguments],
        ended: asyncio.Future[tuple[Any, ...]],
        deadline: float,
        *,
        kept: bool,
    ) -> None:
        super().__init__(ended, deadline)
        self.commands = commands
        self.kept = kept
        self.replies: list[Any] = []


class MultiplexedConnection:
    """Sends commands on one connection of `connections`, opened when there is something to send."""

    def __init__(self, connections: Connections, timeout: float) -> None:
        self.writes = 0
        """The number of writes so far; each carries the commands of one turn of the loop, or of some callers."""
        self._connections = connections
        self._timeout = timeout
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[CommandsInFlight] = deque()
        self._sent: deque[CommandsInFlight] = deque()
        self._task: asyncio.Task[None] | None = None
        self._idle: asyncio.Future[None] | None = None
        """What the task that writes waits for; done once it is roused, until it runs. Nothing is written then."""
        self._timer: asyncio.TimerHandle | None = None
        self._connection: Any = None
        self._given_up = False
        """A deadline was missed: no reply that still comes on this connection is used."""
        self._closed = False

    def put(self, commands: Sequence[Arguments]) -> asyncio.Future[tuple[Any, ...]]:
        """Send commands with the next write; cancelled before that, they are never sent.

        The future's result is the replies, error replies as values; or it fails with `NotSentError`
        or `ReplyLostError`.
        """
        return self.start(commands, kept=False).ended

    def start(self, commands: Sequence[Arguments], *, kept: bool = True) -> CommandsInFlight:
        """Do the same, but send the commands even if the caller stops waiting."""
        ended: asyncio.Future[tuple[Any, ...]] = self._loop.create_future()
        request = CommandsInFlight(commands, ended, self._loop.time() + self._timeout, kept=kept)
        if self._closed:
            request.fail(NotSentError("the store was closed"))
            return request

        self._waiting.append(request)
        if self._timer is None:
            self._timer = self._loop.call_at(request.deadline, self._expire)

        if self._task is None:
            self._task = self._loop.create_task(self._work())
        else:
            self._rouse()
            if len(self._waiting) >= _TOGETHER and self._idle is not None:
                self._write_now()

        return request

    def end(self, ended: Callable[[], object]) -> None:
        """Fail what is in flight, give the connection back, then call `ended`; does not wait."""
        self._closed = True
        task = self._task
        if task is None:
            ended()
        else:
            task.cancel()
            task.add_done_callback(lambda _: ended())

    async def close(self) -> None:
        """Fail what is in flight, and give the connection back."""
        task = self._task
        # A task that was cancelled before its first step has settled nothing.
        self.end(self._settle)
        if task is not None:
            await asyncio.wait([task])

    # deadlines ------------------------------------------------------------------------------------

    def _expire(self) -> None:
        """Fail the calls whose deadline has passed.

        All have the same timeout, so the oldest are due first.
        """
        self._timer = None
        now = self._loop.time()
        if self._sent and self._sent[0].deadline <= now:
            # Before the calls fail: a write that is still in a buffer must not go out later.
            self._given_up = True
            self._abort()
            self._lose(f"no reply arrived within {self._timeout:g} s")

        while self._waiting and self._waiting[0].deadline <= now:
            message = f"timed out after {self._timeout:g} s waiting for a Redis connection"
            message += self._connections.hint
            self._waiting.popleft().fail(NotSentError(message))

        oldest = self._sent or self._waiting
        if oldest:
            self._timer = self._loop.call_at(oldest[0].deadline, self._expire)

    def _abort(self) -> None:
        # `disconnect` would let the transport write the rest of its buffer.
        writer = None if self._connection is None else self._connection._writer  # noqa: SLF001  no public way
        if writer is not None:
            writer.transport.abort()

    def _lose(self, message: str, cause: BaseException | None = None) -> None:
        sent = self._sent
        while sent:
            error = ReplyLostError(message)
            error.__cause__ = cause
            sent.popleft().fail(error)

    def _refuse(self, failure: Callable[[], NotSentError]) -> None:
        waiting = self._waiting
        while waiting:
            waiting.popleft().fail(failure())

    def _reply_to_all(self, error: Exception) -> None:
        """The server refused the connection with this error, so it is the reply to every command."""
        waiting = self._waiting
        while waiting:
            request = waiting.popleft()
            request.replies += [error] * len(request.commands)
            request.settle(tuple(request.replies))

    # the task that writes and reads -----------------------------------------------------------------

    def _rouse(self, _: object = None) -> None:
        idle = self._idle
        if idle is not None and not idle.done():
            idle.set_result(None)

    def _settle(self) -> None:
        self._task = None
        message = self._why_ended()
        self._lose(message)
        self._refuse(lambda: NotSentError(message))
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _why_ended(self) -> str:
        return "the store was closed" if self._closed else "the event loop is being closed"

    async def _work(self) -> None:
        try:
            while self._waiting:
                connection: Any
                try:
                    async with asyncio.timeout(self._timeout):
                        connection = await self._connections.take()
                except (TimeoutError, RedisTimeoutError):
                    # Calls that came late have time for another try; the others have failed.
                    continue
                except _REPLIED_ERRORS as error:
                    self._reply_to_all(error)
                    continue
                except Exception as error:  # noqa: BLE001  also what a credential provider raises
                    self._refuse(partial(self._connections.failure, error))
                    continue

                try:
                    await self._use(connection)
                finally:
                    await self._connections.give_back(connection)
        finally:
            self._settle()

    async def _use(self, connection: Any) -> None:
        """Write and read until the connection breaks or this task is cancelled."""
        self._connection, self._given_up = connection, False
        reader = self._loop.create_task(self._read(connection))
        reader.add_done_callback(self._rouse)
        broken: BaseException | None = None
        try:
            await self._write(connection, reader)
        except Exception as error:  # noqa: BLE001  whatever the client library raises
            broken = error
        finally:
            reader.cancel()
            await asyncio.wait([reader])
            if not reader.cancelled():
                broken = reader.exception() or broken

            if broken is not None or self._given_up or self._sent or not connection.is_connected:
                self._abort()
                await connection.disconnect(nowait=True)

            self._connection = None
            lost = f"the connection was lost: {broken}"
            self._lose(self._why_ended() if broken is None else lost, broken)

    async def _write(self, connection: Any, reader: asyncio.Future[None]) -> None:
        while not (self._given_up or reader.done()):
            commands = self._next_commands()
            if commands:
                await connection.send_packed_command(pack(connection, commands), check_health=False)
                continue

            self._idle = self._loop.create_future()
            try:
                await self._idle
            finally:
                self._idle = None

    def _next_commands(self) -> list[Arguments]:
        """Take what waits as sent, but for calls that were cancelled."""
        waiting, sent = self._waiting, self._sent
        commands: list[Arguments] = []
        while waiting:
            request = waiting.popleft()
            if request.kept or not request.ended.done():
                sent.append(request)
                commands += request.commands

        self.writes += bool(commands)
        return commands

    def _write_now(self) -> None:
        """Write what waits into the buffer of the connection; the task that writes finds nothing more to do."""
        connection = self._connection
        writer = None if connection is None or self._given_up else connection._writer  # noqa: SLF001  as in `_abort`
        if writer is None or writer.transport.is_closing():
            return

        if not writer.transport.get_write_buffer_size():  # else the task waits until there is room
            writer.writelines(pack(connection, self._next_commands()))

    async def _read(self, connection: Any) -> None:
        sent = self._sent
        read = connection.read_response

        while True:
            try:
                reply = await read(
                    disable_decoding=True, timeout=math.inf, disconnect_on_error=False
                )
            except _REPLIED_ERRORS as error:
                reply = error

            if self._given_up or not sent:
                message = "the server sent a reply that does not match any request"
                raise RedisError(message)

            request = sent[0]
            request.replies.append(reply)
            if len(request.replies) == len(request.commands):
                sent.popleft()
                request.settle(tuple(request.replies))


class MultiplexedConnections:
    """The connections of one link: the shared ones, by name, and those for one request alone."""

    def __init__(self, client: Any, timeout: float) -> None:
        self._client = client
        self._timeout = timeout
        self._utf8 = codecs.lookup(client.get_encoder().encoding).name == "utf-8"
        self._shared: dict[str, MultiplexedConnection] = {}
        self._apart: set[MultiplexedConnection] = set()

    @property
    def writes(self) -> int:
        """The number of writes on shared connections so far."""
        return sum(one.writes for one in self._shared.values())

    def arguments_of(self, commands: Iterable[Command]) -> list[Arguments]:
        """Return what to send: text as UTF-8, whatever encoding the user's client has."""
        if self._utf8:
            return [command.args for command in commands]

        return [
            tuple(arg.encode() if isinstance(arg, str) else arg for arg in command.args)
            for command in commands
        ]

    def shared(self, name: str, connections: Callable[[], Connections]) -> MultiplexedConnection:
        """Return the shared connection of this name."""
        connection = self._shared.get(name)
        if connection is None:
            connection = self._shared[name] = MultiplexedConnection(connections(), self._timeout)

        return connection

    def put_apart(
        self, connections: Callable[[], Connections], commands: Sequence[Arguments]
    ) -> asyncio.Future[tuple[Any, ...]]:
        """Send commands on a connection for them alone; cancelled, it breaks that connection."""
        connection = MultiplexedConnection(connections(), self._timeout)
        self._apart.add(connection)
        ended = connection.put(commands)
        ended.add_done_callback(lambda _: connection.end(partial(self._apart.discard, connection)))
        return ended

    async def close(self) -> None:
        """Fail what is in flight, and give every connection back."""
        for connection in (*self._shared.values(), *self._apart):
            await connection.close()

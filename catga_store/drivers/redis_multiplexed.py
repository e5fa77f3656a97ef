"""A lane: one Redis connection that any number of tasks share.

What tasks ask in the same turn of the loop goes out as one write, in the order they asked; further
writes do not wait for the replies to earlier ones. One task reads the replies and hands them out in
that order, so a caller that has gone away costs its replies and nothing else. There is one deadline
per call, from asking to the last reply. The first that is missed breaks the connection: what was
sent has lost its replies, what was not sent goes out on the next connection while its own deadline
lasts.

The connections are the client library's, from the pool of its client, with its parsing.
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

from catga_store.drivers.redis_packing import pack
from catga_store.protocol.conversation import NotSentError
from catga_store.protocol.conversation import ReplyLostError
from catga_store.stores.redis.transport import Command

__all__ = ["Connections", "Flight", "MultiplexedConnection", "MultiplexedConnections", "Words"]

Words: TypeAlias = tuple[bytes | str | int, ...]

_REPLIED_ERRORS = (ResponseError, AuthenticationError, AuthorizationError, BusyLoadingError)
"""What the client library makes of error replies; the last three look like lost connections."""


class Connections(Protocol):
    """Where a lane has its connection from."""

    async def take(self) -> Any:
        """A connection of `redis.asyncio`, connected, for this lane alone."""
        ...

    async def give_back(self, connection: Any) -> None:
        """Take it back, connected and with nothing outstanding, or disconnected."""
        ...


class Flight:
    """What one caller asked: commands that stay together, and what came of them so far.

    See `remote.Started`. One that is `kept` is sent, and its outcome remembered, when nobody waits.
    """

    __slots__ = ("_error", "_outcome", "commands", "deadline", "ended", "kept", "replies")

    def __init__(
        self,
        commands: Sequence[Words],
        deadline: float,
        ended: asyncio.Future[tuple[Any, ...]],
        *,
        kept: bool,
    ) -> None:
        self.commands = commands
        self.deadline = deadline
        self.ended = ended
        self.kept = kept
        self.replies: list[Any] = []
        self._outcome: tuple[Any, ...] | None = None
        self._error: Exception | None = None

    def answer(self) -> None:
        """All replies are there."""
        if self.ended.done():
            self._outcome = tuple(self.replies)
        else:
            self.ended.set_result(tuple(self.replies))

    def fail(self, error: Exception) -> None:
        """There will be no more replies."""
        if self.ended.done():
            self._error = error
        else:
            self.ended.set_exception(error)

    def again(self) -> asyncio.Future[tuple[Any, ...]]:
        """Another future for the outcome, once `ended` was cancelled."""
        self.ended = self.ended.get_loop().create_future()
        if self._outcome is not None:
            self.ended.set_result(self._outcome)
        elif self._error is not None:
            self.ended.set_exception(self._error)

        return self.ended


class MultiplexedConnection:
    """Sends commands on one connection of `connections`, opened when there is something to send."""

    def __init__(self, connections: Connections, timeout: float) -> None:
        self.writes = 0
        """How many writes there were; each carries what was asked together."""
        self._connections = connections
        self._timeout = timeout
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[Flight] = deque()
        self._flying: deque[Flight] = deque()
        self._task: asyncio.Task[None] | None = None
        self._idle: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._connection: Any = None
        self._given_up = False
        """A deadline was missed: whatever still comes on this connection is nobody's."""
        self._closed = False

    def put(self, commands: Sequence[Words]) -> asyncio.Future[tuple[Any, ...]]:
        """Let commands go out with the next write; cancelled before that, they never do.

        Answers the replies, error replies as values, or `NotSentError` or `ReplyLostError`.
        """
        return self.start(commands, kept=False).ended

    def start(self, commands: Sequence[Words], *, kept: bool = True) -> Flight:
        """The same, but they go out whatever becomes of who waits."""
        ended: asyncio.Future[tuple[Any, ...]] = self._loop.create_future()
        flight = Flight(commands, self._loop.time() + self._timeout, ended, kept=kept)
        if self._closed:
            flight.fail(NotSentError("the store was closed"))
            return flight

        self._waiting.append(flight)
        if self._timer is None:
            self._timer = self._loop.call_at(flight.deadline, self._expire)

        if self._task is None:
            self._task = self._loop.create_task(self._work())
        else:
            self._rouse()

        return flight

    def end(self, ended: Callable[[], object]) -> None:
        """Fail what is under way, give the connection back, then call `ended`; does not wait."""
        self._closed = True
        task = self._task
        if task is None:
            ended()
        else:
            task.cancel()
            task.add_done_callback(lambda _: ended())

    async def close(self) -> None:
        """Fail what is under way, and give the connection back."""
        task = self._task
        self.end(self._settle)  # a task that was cancelled before it began has not settled anything
        if task is not None:
            await asyncio.wait([task])

    # deadlines ------------------------------------------------------------------------------------

    def _expire(self) -> None:
        """Look at the oldest call. All have the same time, so they are due in the order they came."""
        self._timer = None
        now = self._loop.time()
        if self._flying and self._flying[0].deadline <= now:
            # Before the calls are told: a write that is still in a buffer must not go out later.
            self._given_up = True
            self._abort()
            self._lose(f"no reply came within {self._timeout:g} s")

        while self._waiting and self._waiting[0].deadline <= now:
            message = f"no connection could be had, or none took it, within {self._timeout:g} s"
            self._waiting.popleft().fail(NotSentError(message))

        oldest = self._flying or self._waiting
        if oldest:
            self._timer = self._loop.call_at(oldest[0].deadline, self._expire)

    def _abort(self) -> None:
        # `disconnect` would let the transport write what is left in its buffer.
        writer = None if self._connection is None else self._connection._writer  # noqa: SLF001  no public way
        if writer is not None:
            writer.transport.abort()

    def _lose(self, message: str, cause: BaseException | None = None) -> None:
        flying = self._flying
        while flying:
            error = ReplyLostError(message)
            error.__cause__ = cause
            flying.popleft().fail(error)

    def _refuse(self, message: str, cause: BaseException | None = None) -> None:
        waiting = self._waiting
        while waiting:
            error = NotSentError(message)
            error.__cause__ = cause
            waiting.popleft().fail(error)

    def _answer_all(self, error: Exception) -> None:
        """The server has said this to who connected, so it is its answer to every command."""
        waiting = self._waiting
        while waiting:
            flight = waiting.popleft()
            flight.replies += [error] * len(flight.commands)
            flight.answer()

    # the working task -----------------------------------------------------------------------------

    def _rouse(self, _: object = None) -> None:
        idle = self._idle
        if idle is not None and not idle.done():
            idle.set_result(None)

    def _settle(self) -> None:
        self._task = None
        message = self._why_ended()
        self._lose(message)
        self._refuse(message)
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
                    continue  # those who came late have time for another try, the others are told
                except _REPLIED_ERRORS as error:
                    self._answer_all(error)
                    continue
                except Exception as error:  # noqa: BLE001  whatever the client library raises
                    self._refuse(f"the server cannot be reached: {error}", error)
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

            if broken is not None or self._given_up or self._flying or not connection.is_connected:
                self._abort()
                await connection.disconnect(nowait=True)

            self._connection = None
            lost = f"the connection was lost: {broken}"
            self._lose(self._why_ended() if broken is None else lost, broken)

    async def _write(self, connection: Any, reader: asyncio.Future[None]) -> None:
        waiting, flying = self._waiting, self._flying

        while not (self._given_up or reader.done()):
            words: list[Words] = []

            while waiting:
                flight = waiting.popleft()
                if flight.kept or not flight.ended.done():
                    flying.append(flight)
                    words += flight.commands

            if words:
                self.writes += 1
                await connection.send_packed_command(pack(connection, words), check_health=False)
            else:
                self._idle = self._loop.create_future()
                await self._idle

    async def _read(self, connection: Any) -> None:
        flying = self._flying
        read = connection.read_response

        while True:
            try:
                reply = await read(
                    disable_decoding=True, timeout=math.inf, disconnect_on_error=False
                )
            except _REPLIED_ERRORS as error:
                reply = error

            if self._given_up or not flying:
                message = "the server sent a reply that nobody waits for"
                raise RedisError(message)

            flight = flying[0]
            flight.replies.append(reply)
            if len(flight.replies) == len(flight.commands):
                flying.popleft()
                flight.answer()


class MultiplexedConnections:
    """The lanes of one link: those that are shared, by name, and those for one request alone."""

    def __init__(self, client: Any, timeout: float) -> None:
        self._client = client
        self._timeout = timeout
        self._utf8 = codecs.lookup(client.get_encoder().encoding).name == "utf-8"
        self._shared: dict[str, MultiplexedConnection] = {}
        self._apart: set[MultiplexedConnection] = set()

    @property
    def writes(self) -> int:
        """How many writes there were on shared connections."""
        return sum(lane.writes for lane in self._shared.values())

    def words_of(self, commands: Iterable[Command]) -> list[Words]:
        """The words to send: text as UTF-8, whatever the encoding of a client that was given."""
        if self._utf8:
            return [command.words for command in commands]

        return [
            tuple(word.encode() if isinstance(word, str) else word for word in command.words)
            for command in commands
        ]

    def shared(self, name: str, connections: Callable[[], Connections]) -> MultiplexedConnection:
        """The lane of this name."""
        lane = self._shared.get(name)
        if lane is None:
            lane = self._shared[name] = MultiplexedConnection(connections(), self._timeout)

        return lane

    def put_apart(
        self, connections: Callable[[], Connections], commands: Sequence[Words]
    ) -> asyncio.Future[tuple[Any, ...]]:
        """See `Lane.put`, on a lane for these commands alone; cancelled, it breaks its connection."""
        lane = MultiplexedConnection(connections(), self._timeout)
        self._apart.add(lane)
        ended = lane.put(commands)
        ended.add_done_callback(lambda _: lane.end(partial(self._apart.discard, lane)))
        return ended

    async def close(self) -> None:
        """Fail what is under way, and give every connection back."""
        for lane in (*self._shared.values(), *self._apart):
            await lane.close()

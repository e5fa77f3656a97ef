"""The asyncio link to a Redis Cluster: one shared connection per node.

A pipe is divided by the slots of its commands' keys; commands for one node stay together and in
order. A node that does not hold a slot (any more) refuses the command and names the node that does:
the command is sent there, and the map of the slots is read again before the next request. The map
is also read again after every failure of a node.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

from redis.crc import key_slot
from redis.exceptions import AskError
from redis.exceptions import MovedError
from redis.exceptions import RedisClusterException
from redis.exceptions import TryAgainError

from catga_store.drivers.cancellation import OwnTask
from catga_store.drivers.links import Started
from catga_store.drivers.redis_failures import not_sent
from catga_store.drivers.redis_multiplexed import Arguments
from catga_store.drivers.redis_multiplexed import MultiplexedConnections
from catga_store.drivers.redis_subscribing_asyncio import AsyncSubscription
from catga_store.protocol.chance import pick
from catga_store.protocol.conversation import NotSentError
from catga_store.protocol.conversation import ReplyLostError
from catga_store.protocol.conversation import Request
from catga_store.stores.redis.transport import Pipe
from catga_store.stores.redis.transport import Subscribe

__all__ = ["RedisClusterAsyncLink"]

_MOST_ROUNDS = 16
"""How often, at most, a command follows a redirection."""
_MOVING_SECONDS = 0.01
"""The pause before a command whose keys are being moved is sent again."""
_REDIRECTIONS = (AskError, TryAgainError)  # MovedError is an AskError


class _Round:
    """A pipe in flight: the replies so far, and the commands that are left."""

    def __init__(self, request: Pipe, arguments: list[Arguments]) -> None:
        self.keys = [command.key for command in request.commands]
        self.arguments = arguments
        self.exclusive = request.exclusive
        self.replies: list[Any] = [None] * len(arguments)
        self.left = list(range(len(arguments)))

    @property
    def untouched(self) -> bool:
        """Whether nothing of the pipe was run."""
        return len(self.left) == len(self.arguments)

    def take(self, places: list[int], replies: tuple[Any, ...]) -> None:
        """Keep the replies to the commands at these places."""
        for place, reply in zip(places, replies, strict=True):
            self.replies[place] = reply

    def keep_redirected(self) -> None:
        """Keep the commands that were redirected for the next round."""
        self.left = [place for place in self.left if self.redirection(place)]

    def redirection(self, place: int) -> AskError | TryAgainError | None:
        """Return how a command was redirected; `None` if it was not sent yet, or was run."""
        reply = self.replies[place]
        return reply if isinstance(reply, _REDIRECTIONS) else None


class RedisClusterAsyncLink:
    """Performs `Pipe` requests on the nodes of a cluster; see `links.StartingLink`."""

    def __init__(self, client: Any, timeout: float, *, owned: bool = False) -> None:
        self._client = client
        self._timeout = timeout
        self._owned = owned
        self._multiplexed = MultiplexedConnections(client, timeout)
        self._subscription = AsyncSubscription(self._connection_apart, timeout)
        self._finding = asyncio.Lock()
        self._found = False
        """The map of the slots was read, and nothing since says that it is wrong."""

    @property
    def writes(self) -> int:
        """The number of writes on shared connections so far."""
        return self._multiplexed.writes

    def start(self, request: Request[Any], /) -> Started:
        """Start a request. It fails with `NotSentError` or `ReplyLostError`."""
        return OwnTask(asyncio.create_task(self.perform(request)))

    async def perform(self, request: Request[Any], /) -> tuple[Any, ...]:
        """Return the replies in the order of the commands. `NotSentError`, `ReplyLostError`."""
        if isinstance(request, Subscribe):
            await self._subscription.begin(request)
            return ()

        assert isinstance(request, Pipe), request  # noqa: S101  there are no others
        asked = _Round(request, self._multiplexed.arguments_of(request.commands))
        until = asyncio.get_running_loop().time() + self._timeout

        for _ in range(_MOST_ROUNDS):
            try:
                await self._ask(asked)
            except NotSentError as error:
                if asked.untouched:
                    raise

                message = (
                    f"some of the commands were sent, but the others could not be sent: {error}"
                )
                raise ReplyLostError(message) from error

            asked.keep_redirected()
            if not asked.left:
                return tuple(asked.replies)

            refused = [asked.redirection(place) for place in asked.left]
            if any(isinstance(reply, MovedError) for reply in refused):
                self._found = False

            if asyncio.get_running_loop().time() > until:
                break

            if any(isinstance(reply, TryAgainError) for reply in refused):
                await asyncio.sleep(_MOVING_SECONDS)

        # A redirected command was not run: the caller may send it again later.
        for place in asked.left:
            message = f"too many cluster redirections; the last reply was: {asked.replies[place]}"
            asked.replies[place] = TryAgainError(message)

        return tuple(asked.replies)

    async def close(self) -> None:
        """Fail what is in flight; close the client if it is owned."""
        await self._subscription.close()
        await self._multiplexed.close()
        if self._owned:
            await self._client.aclose()

    async def _connection_apart(self) -> Any:
        """Return a new connection to any primary: each has the messages of all."""
        if not self._found:
            await self._find_nodes()

        node: Any = pick(self._client.get_primaries())
        return node.connection_class(**node.connection_kwargs)

    async def _ask(self, asked: _Round) -> None:
        """Send the commands that are left to their nodes, all at the same time; keep the replies."""
        if not self._found:
            await self._find_nodes()

        nodes: dict[str, Any] = {}  # by name: the nodes of redis 5 have no hash
        parts: dict[tuple[str, bool], list[int]] = {}
        for place in asked.left:
            refused: Any = asked.redirection(place)
            node = self._node(asked.keys[place], refused)
            nodes[node.name] = node
            parts.setdefault((node.name, type(refused) is AskError), []).append(place)

        answers = [
            self._send(asked, nodes[name], places, asking=asking)
            for (name, asking), places in parts.items()
        ]
        errors: list[Exception] = []
        try:
            for (part, places), answer in zip(parts.items(), answers, strict=True):
                try:
                    replies = await answer
                except (NotSentError, ReplyLostError) as error:
                    errors.append(error)
                else:
                    _, asking = part
                    asked.take(places, replies[1::2] if asking else replies)
        finally:
            for answer in answers:
                answer.cancel()

        if errors:
            self._found = False
            lost = [error for error in errors if isinstance(error, ReplyLostError)]
            if lost or len(errors) == len(answers):
                raise (lost or errors)[0]

            message = f"one node replied, but another could not be reached: {errors[0]}"
            raise ReplyLostError(message) from errors[0]

    def _send(
        self, asked: _Round, node: Any, places: list[int], *, asking: bool
    ) -> asyncio.Future[tuple[Any, ...]]:
        arguments: list[Arguments] = []

        for place in places:
            if asking:  # it allows the next command on this connection, and no other
                arguments.append(("ASKING",))

            arguments.append(asked.arguments[place])

        connections = partial(_Node, node)
        if asked.exclusive:
            return self._multiplexed.put_apart(connections, arguments)

        return self._multiplexed.shared(node.name, connections).put(arguments)

    def _node(self, key: bytes, refused: Any) -> Any:
        """Return the node to send to: the one that a redirection names, else the holder of the slot."""
        nodes = self._client.nodes_manager
        node: Any = None
        if isinstance(refused, AskError) and refused.host:  # pyright: ignore[reportUnknownMemberType]  untyped there
            named: Any = refused
            node = nodes.get_node(host=named.host, port=named.port)

        if node is None:
            try:
                node = nodes.get_node_from_slot(key_slot(key))
            except (KeyError, RedisClusterException) as error:
                self._found = False
                message = f"no cluster node currently serves the slot of {key!r}"
                raise NotSentError(message) from error

        return node

    async def _find_nodes(self) -> None:
        """Read the map of the slots. `NotSentError` if no node returns it."""
        async with self._finding:
            if self._found:
                return

            try:
                async with asyncio.timeout(self._timeout):
                    await self._client.initialize()
                    await self._client.nodes_manager.initialize()
            except TimeoutError as error:
                message = (
                    f"no cluster node returned the map of hash slots within {self._timeout:g} s"
                )
                raise NotSentError(message) from error
            except Exception as error:  # also what a credential provider of the user's raises
                raise not_sent(error) from error

            self._found = True

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._client!r}>"


class _Node:
    """The connections of a cluster's client to one node."""

    hint = ""

    def __init__(self, node: Any) -> None:
        self._node = node

    def failure(self, error: BaseException) -> NotSentError:
        return not_sent(error, self._node)

    async def take(self) -> Any:
        connection = self._node.acquire_connection()
        try:
            # A connection that was used before may be dead: unlike a pool, a node does not check.
            await connection.disconnect()
            await connection.connect()
        except BaseException:
            self._node.release(connection)
            raise

        return connection

    async def give_back(self, connection: Any) -> None:
        self._node.release(connection)

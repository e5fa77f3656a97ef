"""The blocking link to a Redis Cluster: each command goes to the node that holds its key.

A node that redirects a command (MOVED, ASK) has not run it; the command is sent where it belongs.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

from redis import exceptions

from catga_store.drivers.redis_blocking import RedisLink
from catga_store.drivers.redis_blocking import connection_of
from catga_store.drivers.redis_blocking import talk
from catga_store.drivers.redis_failures import not_sent
from catga_store.protocol.chance import pick
from catga_store.protocol.conversation import NotSentError
from catga_store.protocol.conversation import ReplyLostError
from catga_store.stores.redis.transport import Command

__all__ = ["RedisClusterLink"]

_REDIRECTIONS = 5


class RedisClusterLink(RedisLink):
    """Performs `Pipe` on a cluster: one exchange with each node that is concerned."""

    def close(self) -> None:
        """Close the client if the link has opened it, and the pools of its nodes, which it leaves open."""
        client = self._client if self._owned else None
        super().close()
        nodes: list[Any] = [] if client is None else client.get_nodes()
        for node in nodes:
            if node.redis_connection is not None:
                node.redis_connection.connection_pool.disconnect()

    def _perform(self, commands: Sequence[Command]) -> tuple[object, ...]:
        client = self._connected()
        replies: list[object] = [None] * len(commands)
        left = list(range(len(commands)))

        for _ in range(_REDIRECTIONS):
            by_node: dict[str, tuple[Any, list[int]]] = {}
            for place in left:
                node = self._node(client, commands[place].key)
                by_node.setdefault(node.name, (node, []))[1].append(place)

            has_run = len(left) < len(commands)  # in an earlier round, on other nodes
            self._send(client, by_node, commands, replies, has_run=has_run)
            left = [
                place for place in left if self._is_redirected(client, commands, replies, place)
            ]
            if not left:
                break

        for place in left:
            message = f"too many cluster redirections; the last reply was: {replies[place]}"
            replies[place] = exceptions.TryAgainError(message)

        return tuple(replies)

    def _connection_apart(self) -> Any:
        """Return a new connection to any primary: each has the messages of all."""
        client = self.client()
        node = pick(client.get_primaries())
        return connection_of(client.get_redis_connection(node).connection_pool)

    def _connected(self) -> Any:
        try:
            return self.client()
        except Exception as error:  # also what a credential provider of the user's raises
            raise not_sent(error) from error

    def _node(self, client: Any, key: bytes) -> Any:
        try:
            return client.nodes_manager.get_node_from_slot(client.keyslot(key))
        except exceptions.SlotNotCoveredError as error:
            self._read_slots(client)
            message = f"no cluster node currently serves this partition: {error}"
            raise NotSentError(message) from error

    def _send(
        self,
        client: Any,
        by_node: Mapping[str, tuple[Any, list[int]]],
        commands: Sequence[Command],
        replies: list[object],
        *,
        has_run: bool,
    ) -> None:
        for node, places in by_node.values():
            pool = client.get_redis_connection(node).connection_pool
            try:
                args = [commands[place].args for place in places]
                answers = talk(pool, args, self._timeout)
            except NotSentError as error:
                # Other nodes have run their commands: the pipe may have been done in part.
                self._read_slots(client)
                if has_run:
                    raise ReplyLostError(str(error)) from error

                raise
            except ReplyLostError:
                self._read_slots(client)
                raise

            has_run = True
            for place, answer in zip(places, answers, strict=True):
                replies[place] = answer

    def _is_redirected(
        self, client: Any, commands: Sequence[Command], replies: list[object], place: int
    ) -> bool:
        """Return whether a command must be sent again elsewhere; after ASK it is sent at once."""
        reply = replies[place]
        if isinstance(reply, exceptions.MovedError):
            self._read_slots(client)
            return True

        if isinstance(reply, exceptions.AskError):
            asked: Any = reply
            node = client.get_node(host=asked.host, port=asked.port)
            if node is None:
                # Read the slots now: later commands of this pipe must not overtake this one.
                self._read_slots(client)
                node = client.get_node(host=asked.host, port=asked.port)
                if node is None:
                    return True

            pool = client.get_redis_connection(node).connection_pool
            args = [(b"ASKING",), commands[place].args]
            replies[place] = talk(pool, args, self._timeout)[1]

        return False

    @staticmethod
    def _read_slots(client: Any) -> None:
        """Read the map of the slots again; if no node replies, leave it to the next try."""
        try:
            client.nodes_manager.initialize()
        except (exceptions.RedisError, exceptions.RedisClusterException, OSError):
            return

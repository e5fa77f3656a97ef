"""Removing what has expired, and everything if that is wanted."""

from __future__ import annotations

import logging
import re
from collections.abc import Collection
from collections.abc import Iterable
from collections.abc import Sequence

from catga_store.errors import StoreUnavailableError
from catga_store.protocol.conversation import Conversation
from catga_store.protocol.conversation import NotSentError
from catga_store.protocol.conversation import ReplyLostError
from catga_store.protocol.failures import given_up
from catga_store.protocol.failures import uncertain
from catga_store.protocol.keys import FLOW
from catga_store.protocol.keys import PART
from catga_store.protocol.keys import WAIT
from catga_store.protocol.keys import new_commit_id
from catga_store.protocol.requests import Clear
from catga_store.protocol.requests import Sweep
from catga_store.stores.redis.commit_args import read_outcomes
from catga_store.stores.redis.index import UPLOAD
from catga_store.stores.redis.index import read_expiring
from catga_store.stores.redis.index import stamp_of
from catga_store.stores.redis.layout import RedisLayout
from catga_store.stores.redis.lost_replies import RedisExchange
from catga_store.stores.redis.refusals import check
from catga_store.stores.redis.scripts import CLEAR
from catga_store.stores.redis.scripts import SWEEP
from catga_store.stores.redis.scripts import call
from catga_store.stores.redis.transport import Command

__all__ = ["LEFT", "RedisSweeping", "glob", "partition_named"]

LEFT = b"\n"
"""The end of a script's reply that left large bodies of parts to be removed; JSON ignores it."""
_SWEEP_PAGE = 100
_CLEAR_PAGE = 500


class RedisSweeping:
    """`Sweep` and `Clear`, and the few expired records that a commit removes on the way."""

    def __init__(self, layout: RedisLayout, exchange: RedisExchange) -> None:
        self._layout = layout
        self._exchange = exchange

    def expired(self, number: int, now_ms: int, limit: int, after: bytes | None = None) -> Command:
        """Return the command that lists index entries of expired records."""
        index = self._layout.index[number]
        first = b"[x" if after is None else b"(" + after
        last = b"(x" + stamp_of(now_ms + 1)
        return Command((b"ZRANGEBYLEX", index, first, last, b"LIMIT", 0, limit), index)

    def tidy(self, number: int, now_ms: int, members: Sequence[bytes]) -> Conversation[None]:
        """Remove a few expired records after a commit. A failure is logged: the commit is done."""
        command = self._sweep_command(number, now_ms, members, _name(number))
        try:
            (reply,) = yield from self._exchange.send_once((command,), writes=True)
        except (NotSentError, ReplyLostError) as error:
            reply = error

        if isinstance(reply, Exception):
            _log.warning(
                "the commit was applied, but the sweep after it failed (%s); a later sweep will"
                " remove the expired records",
                reply,
            )

    def remove_left(self, number: int, now_ms: int) -> Conversation[None]:
        """Remove large bodies of parts that a commit has left, and what else has expired."""
        command = self.expired(number, now_ms, _SWEEP_PAGE)
        try:
            (found,) = yield from self._exchange.send_once((command,), writes=False)
        except (NotSentError, ReplyLostError) as error:
            found = error

        if not isinstance(found, Exception) and found:
            yield from self.tidy(number, now_ms, found)

    def remove_uploads(self, uploads: Collection[bytes]) -> Conversation[None]:
        """Remove what a commit has uploaded and not taken over; the server would do it an hour later."""
        if not uploads:
            return

        commands = tuple(Command((b"UNLINK", key), key) for key in uploads)
        try:
            yield from self._exchange.send_once(commands, writes=True)
        except (NotSentError, ReplyLostError):
            _log.debug(
                "the uploaded bodies of a refused commit could not be removed and expire in an hour"
            )

    def sweep(self, request: Sweep) -> Conversation[int]:
        """Remove expired records, a page at a time; each page is a commit."""
        removed = 0

        for number in range(self._layout.partitions):
            after: bytes | None = None

            while removed < request.limit:
                commit_id = _name(number)
                page = min(request.limit - removed, _SWEEP_PAGE)
                try:
                    members = yield from self._page(number, request.now_ms, page, after)
                    if not members:
                        break

                    after = members[-1]
                    command = self._sweep_command(number, request.now_ms, members, commit_id)
                    reply = yield from self._send(command, commit_id)
                except StoreUnavailableError as error:
                    if not removed:
                        raise

                    raise uncertain(commit_id, (), error) from error

                removed += read_outcomes(commit_id, reply)[0].version

        return removed

    def clear(self, _request: Clear) -> Conversation[None]:
        """Remove everything but the layout and the replies of recent commits, a page at a time.

        One commit: if it is settled as never applied before its last page, it stops there.
        """
        name, last = new_commit_id(), self._layout.partitions - 1
        has_begun = False

        for number, tag in enumerate(self._layout.tags):
            commit_id = f"{name}{_OF}{number}"
            cursor, pattern = b"0", glob(tag) + b"*"
            is_done = False

            while not is_done:
                args = b"SCAN", cursor, b"MATCH", pattern, b"COUNT", _CLEAR_PAGE
                try:
                    (reply,) = yield from self._exchange.ask([Command(args, tag)])
                    check([reply])
                    cursor, found = reply
                    is_done = int(cursor) == 0
                    records, others = self._sorted(number, found)
                    if records or others or is_done:
                        log = self._layout.log[number] + commit_id.encode()
                        is_last = is_done and number == last
                        command = self._clear_command(
                            number, log, records, others, is_done=is_done, is_last=is_last
                        )
                        yield from self._send(command, commit_id)
                        has_begun = True
                except StoreUnavailableError as error:
                    if not has_begun:
                        raise

                    raise uncertain(commit_id, (), error) from error

    def _sorted(
        self, number: int, keys: Sequence[bytes]
    ) -> tuple[set[tuple[str, bytes]], list[bytes]]:
        """Return what to remove of some keys: records, by kind and id, and other keys."""
        layout = self._layout
        # Without its reply or its fence, a commit that is sent again would be applied again.
        stays = layout.log[number], layout.index[number], layout.layout
        begins = {begin[number]: kind for kind in (FLOW, WAIT) for begin in layout.begins(kind)}
        records: set[tuple[str, bytes]] = set()
        others: list[bytes] = []

        for key in keys:
            for begin, kind in begins.items():
                if key.startswith(begin):
                    records.add((kind, key[len(begin) :]))
                    break
            else:
                if key not in stays and not key.startswith(layout.log[number]):
                    others.append(key)

        return records, others

    def _clear_command(
        self,
        number: int,
        log: bytes,
        records: Iterable[tuple[str, bytes]],
        others: Iterable[bytes],
        *,
        is_done: bool,
        is_last: bool,
    ) -> Command:
        flags = [b"1" if one else b"" for one in (is_last, is_done)]
        args: list[bytes | str | int] = [self._exchange.keep_ms, *flags]
        keys = [log, self._layout.index[number]]
        for kind, record_id in records:
            args += (b"F" if kind == FLOW else b"W", record_id)
            keys += [begin[number] + record_id for begin in self._layout.begins(kind)]

        return call(CLEAR, [*keys, *others], args)

    def _page(
        self, number: int, now_ms: int, limit: int, after: bytes | None
    ) -> Conversation[list[bytes]]:
        command = self.expired(number, now_ms, limit, after)
        replies = yield from self._exchange.ask([command])
        check(replies)
        members: list[bytes] = replies[0]
        return members

    def _sweep_command(
        self, number: int, now_ms: int, members: Sequence[bytes], commit_id: str
    ) -> Command:
        keys = [self._layout.log[number] + commit_id.encode(), self._layout.index[number]]
        entries = [entry for entry in map(read_expiring, members) if entry is not None]
        for expiring in entries:
            keys += [begin[number] + expiring.id for begin in self._removed(expiring.kind)]

        members_read = (entry.member for entry in entries)
        return call(SWEEP, keys, (self._exchange.keep_ms, now_ms, *members_read))

    def _removed(self, kind: str) -> tuple[list[bytes], ...]:
        """Return what the keys that an entry of the index removes begin with, by partition."""
        layout = self._layout
        if kind == UPLOAD:
            return (layout.upload,)

        return (layout.flow, layout.parts, layout.names) if kind == PART else layout.begins(kind)

    def _send(self, command: Command, commit_id: str) -> Conversation[bytes]:
        reply = yield from self._exchange.send(command, commit_id, ())
        check([reply])
        if reply == 0:
            raise given_up(commit_id)

        stored: bytes = reply
        return stored


_OF = "~"
"""Separates the partition in the id of a commit that names no record."""


def _name(number: int) -> str:
    return f"{new_commit_id()}{_OF}{number}"


def partition_named(commit_id: str) -> int:
    """Return the partition of a commit that names no record."""
    number = commit_id.partition(_OF)[2]
    return int(number) if number.isdecimal() else 0


def glob(text: bytes) -> bytes:
    """Return the SCAN pattern that matches this text and nothing else."""
    return re.sub(rb"([*?\[\]\\^-])", rb"\\\1", text)


_log = logging.getLogger(__name__)

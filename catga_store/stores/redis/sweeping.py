"""Housekeeping: what has expired goes, and everything if that is asked for."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence

from catga_store.conversation import Command
from catga_store.conversation import Conversation
from catga_store.conversation import NotSentError
from catga_store.conversation import ReplyLostError
from catga_store.keys import FLOW
from catga_store.records import Clear
from catga_store.records import Sweep
from catga_store.stores.redis.index import PAGE
from catga_store.stores.redis.index import read_expiring
from catga_store.stores.redis.index import stamp_of
from catga_store.stores.redis.layout import Layout
from catga_store.stores.redis.refusals import check
from catga_store.stores.redis.scripts import SWEEP
from catga_store.stores.redis.scripts import call
from catga_store.stores.redis.wire import Exchange

__all__ = ["Sweeping"]

_SWEEP_PAGE = 100


class Sweeping:
    """`Sweep` and `Clear`, and the few that a commit sweeps along."""

    def __init__(self, layout: Layout, exchange: Exchange) -> None:
        self._layout = layout
        self._exchange = exchange

    def expired(self, number: int, now_ms: int, limit: int, after: bytes | None = None) -> Command:
        index = self._layout.index[number]
        first = b"[x" if after is None else b"(" + after
        last = b"(x" + stamp_of(now_ms + 1)
        return Command((b"ZRANGEBYLEX", index, first, last, b"LIMIT", 0, limit), index)

    def sweep_command(self, number: int, now_ms: int, members: Sequence[bytes]) -> Command:
        keys = [self._layout.index[number]]
        entries = [entry for entry in map(read_expiring, members) if entry is not None]
        for expiring in entries:
            pair = (
                (self._layout.flow, self._layout.steps)
                if expiring.kind == FLOW
                else (self._layout.wait, self._layout.items)
            )
            keys += [begin[number] + expiring.id for begin in pair]

        return call(SWEEP, keys, (now_ms, *(entry.member for entry in entries)))

    def tidy(self, number: int, now_ms: int, members: Sequence[bytes]) -> Conversation[None]:
        """Remove a few expired records after a commit, which is done whatever comes of it."""
        try:
            yield from self._exchange.fly(
                (self.sweep_command(number, now_ms, members),), writes=True
            )
        except (NotSentError, ReplyLostError):
            _log.debug("the sweep after a commit was lost; another will follow")

    def sweep(self, request: Sweep) -> Conversation[int]:
        now_ms, limit = request.now_ms, request.limit
        removed = 0

        for number in range(self._layout.partitions):
            after: bytes | None = None

            while removed < limit:
                page = min(limit - removed, _SWEEP_PAGE)
                (members,) = yield from self._exchange.ask(
                    [self.expired(number, now_ms, page, after)]
                )
                check([members])
                if not members:
                    break

                after = members[-1]
                command = self.sweep_command(number, now_ms, members)
                (count,) = yield from self._exchange.ask([command], writes=True)
                check([count])
                removed += count

        return removed

    def clear(self, _request: Clear) -> Conversation[None]:
        """Remove everything but the layout, a batch at a time, on the node that has it."""
        for tag in self._layout.tags:
            cursor, pattern = b"0", _glob(tag) + b"*"

            while True:
                words = b"SCAN", cursor, b"MATCH", pattern, b"COUNT", PAGE
                (reply,) = yield from self._exchange.ask([Command(words, tag)])
                check([reply])
                cursor, keys = reply
                commands = [
                    Command((b"UNLINK", key), key) for key in keys if key != self._layout.layout
                ]
                if commands:
                    check((yield from self._exchange.ask(commands, writes=True)))

                if int(cursor) == 0:
                    break


def _glob(text: bytes) -> bytes:
    """A pattern of SCAN that matches this and nothing else."""
    return re.sub(rb"([*?\[\]\\^-])", rb"\\\1", text)


_log = logging.getLogger(__name__)

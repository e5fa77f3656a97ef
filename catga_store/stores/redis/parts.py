"""Parts of flows: pages of them by name, their removal by name, and the scan of all of them."""

from __future__ import annotations

from typing import Any
from typing import NamedTuple

from catga_store.errors import CorruptRecordError
from catga_store.protocol.conversation import Conversation
from catga_store.protocol.failures import given_up
from catga_store.protocol.keys import FLOW
from catga_store.protocol.keys import PART
from catga_store.protocol.keys import Key
from catga_store.protocol.keys import is_version
from catga_store.protocol.keys import new_commit_id
from catga_store.protocol.keys import part_key
from catga_store.protocol.requests import ListedPart
from catga_store.protocol.requests import Parts
from catga_store.protocol.requests import RemoveParts
from catga_store.protocol.requests import Scan
from catga_store.protocol.requests import Scanned
from catga_store.protocol.rules.expiry import has_expired
from catga_store.stores.redis.commit_args import LARGE
from catga_store.stores.redis.commit_args import read_outcomes
from catga_store.stores.redis.index import PAGE
from catga_store.stores.redis.index import Range
from catga_store.stores.redis.index import merged
from catga_store.stores.redis.layout import RedisLayout
from catga_store.stores.redis.layout import corrupt
from catga_store.stores.redis.layout import id_of
from catga_store.stores.redis.layout import read_head
from catga_store.stores.redis.lost_replies import RedisExchange
from catga_store.stores.redis.reads import RedisReads
from catga_store.stores.redis.refusals import check
from catga_store.stores.redis.refusals import raise_for
from catga_store.stores.redis.scripts import PARTS
from catga_store.stores.redis.scripts import REMOVE_PARTS
from catga_store.stores.redis.scripts import call
from catga_store.stores.redis.sweeping import LEFT
from catga_store.stores.redis.sweeping import RedisSweeping
from catga_store.stores.redis.transport import Command

__all__ = ["COUNTER", "NAME", "RedisParts"]

NAME, COUNTER = b"n", b"c"
"""What the members of a flow's names begin with: those of parts, and those of what no listing of parts
shows, which are counters of logs and former versions of the flow."""


class _Bounds(NamedTuple):
    """A range of a flow's names, as ZRANGEBYLEX takes it."""

    first: bytes
    last: bytes
    cut: bytes | int
    """From which place on a name must be the digits of a sequence, and nothing else; empty: it need not."""


class _Page(NamedTuple):
    """A page of parts: name, head, body, and where a large body is."""

    rows: list[tuple[bytes, Any, Any, Any]]
    is_last: bool


class RedisParts:
    """`Parts`, `RemoveParts`, and `Scan` of parts."""

    def __init__(
        self,
        layout: RedisLayout,
        exchange: RedisExchange,
        reads: RedisReads,
        sweeping: RedisSweeping,
    ) -> None:
        self._layout = layout
        self._exchange = exchange
        self._reads = reads
        self._sweeping = sweeping

    def parts(self, request: Parts) -> Conversation[tuple[ListedPart, ...]]:
        """Perform `Parts`: one round trip for a page, or for each MiB of its bodies."""
        flow_id, now_ms, limit = request.flow_id, request.now_ms, request.limit
        bounds = _bounds(request)
        found: list[ListedPart] = []

        while len(found) < limit:
            page = yield from self._page(
                flow_id,
                bounds,
                limit - len(found),
                now_ms,
                reverse=request.reverse,
                bodies=request.bodies,
                until=request.until,
            )
            for name, *row in page.rows:
                key = part_key(flow_id, id_of(PART, name))
                if request.versions and not is_version(key.name):
                    continue  # the counter of a log with such a name

                if not request.bodies:
                    found.append(ListedPart(key.name, read_head(key, row[0]), None))
                    continue

                if row[0] is None:
                    raise corrupt(key, None)

                record = yield from self._reads.part_of(key, row)
                if record is not None:  # else it was removed while its large body was read
                    found.append(ListedPart(key.name, record.head, record.body))

            if page.is_last:
                break

            seen = b"(" + _kind_of(request) + page.rows[-1][0]
            bounds = bounds._replace(**{"last" if request.reverse else "first": seen})

        return tuple(found)

    def _page(
        self,
        flow_id: str,
        bounds: _Bounds,
        limit: int,
        now_ms: int,
        *,
        reverse: bool = False,
        bodies: bool,
        until: str = "",
        scans: bool = False,
    ) -> Conversation[_Page]:
        """Return the parts of a flow between two bounds: none if it has expired.

        `scans`: also if the flow cannot be read; such a flow has not expired.
        """
        most = LARGE if bodies else b""
        order, ending = b"1" if reverse else b"", until.encode()
        args = bounds.first, bounds.last, order, limit, bounds.cut, most, ending
        command = call(PARTS, self._layout.parts_of(flow_id), args)
        (reply,) = yield from self._exchange.ask([command])
        key = Key(FLOW, flow_id)
        if isinstance(reply, Exception):
            raise_for(key, reply)

        head, is_cut, *flat = reply
        try:
            if head is not None and has_expired(read_head(key, head), now_ms):
                return _Page([], is_last=True)
        except CorruptRecordError:
            if not scans:
                raise

        rows = list(zip(flat[::4], flat[1::4], flat[2::4], flat[3::4], strict=True))
        ended = bool(ending) and bool(rows) and rows[-1][0].endswith(ending)
        return _Page(rows, is_last=ended or (not is_cut and len(rows) < limit))

    def remove_parts(self, request: RemoveParts) -> Conversation[int]:
        """Perform `RemoveParts`: a commit of its own, whose reply is kept like that of any other."""
        flow_id, commit_id = request.flow_id, new_commit_id()
        number, key = self._layout.partition(flow_id), part_key(flow_id, request.prefix)
        log = self._layout.log[number] + commit_id.encode()
        keys = log, self._layout.index[number], *self._layout.parts_of(flow_id)
        args = self._exchange.keep_ms, request.now_ms, flow_id.encode()
        command = call(REMOVE_PARTS, keys, (*args, *_removed(request)))
        reply = yield from self._exchange.send(command, commit_id, [key])
        if isinstance(reply, Exception):
            raise_for(Key(FLOW, flow_id), reply)

        if reply == 0:
            raise given_up(commit_id)

        if reply.endswith(LEFT):
            yield from self._sweeping.remove_left(number, request.now_ms)

        return read_outcomes(commit_id, reply)[0].version

    def scan(self, request: Scan) -> Conversation[tuple[Scanned, ...]]:
        """Perform `Scan` of parts: those of as many flows as needed."""
        after, limit = request.after, min(request.limit, PAGE)
        # The flow whose parts were returned last may have more of them.
        first = b"[ni" + (b"" if after is None else after.id.encode())
        ranges = [Range(number, b"ni", first, b"(nj") for number in range(self._layout.partitions)]
        found: list[Scanned] = []

        while ranges and len(found) < limit:
            commands: list[Command] = []
            for one in ranges:
                index = self._layout.index[one.number]
                args = b"ZRANGEBYLEX", index, one.first, one.last, b"LIMIT", 0, _FLOWS
                commands.append(Command(args, index))

            replies = yield from self._exchange.ask(commands)
            check(replies)
            listed = merged(ranges, replies, _FLOWS)
            ranges = [one for one in ranges if not one.is_done]
            for _, entry in listed:
                if len(found) >= limit:
                    break

                flow_id = id_of(PART, entry.id)
                last = after.name if after is not None and after.id == flow_id else ""
                found += yield from self._scan_flow(
                    flow_id, last, limit - len(found), request.now_ms
                )

        return tuple(found)

    def _scan_flow(
        self, flow_id: str, after: str, limit: int, now_ms: int
    ) -> Conversation[list[Scanned]]:
        """Return the first parts and counters of a flow after a name, in one order."""
        found: list[Scanned] = []
        for kind in (NAME, COUNTER):
            first, left = b"(" + kind + after.encode(), limit
            while left > 0:
                bounds = _Bounds(first, _after_all(kind), b"")
                page = yield from self._page(flow_id, bounds, left, now_ms, bodies=True, scans=True)
                for name, *row in page.rows:
                    key = part_key(flow_id, id_of(PART, name))
                    try:
                        record = yield from self._reads.part_of(key, row)
                    except CorruptRecordError as error:
                        found.append(Scanned.unreadable(key, error))
                        left -= 1
                    else:
                        if record is not None:
                            found.append(Scanned(key, record))
                            left -= 1

                if page.is_last:
                    break

                first = b"(" + kind + page.rows[-1][0]

        found.sort(key=_by_name)
        return found[:limit]


_FLOWS = 100
"""Flows with parts that a scan lists at once."""


def _by_name(entry: Scanned) -> bytes:
    return entry.key.name.encode()


def _bounds(wanted: Parts | RemoveParts) -> _Bounds:
    kind = _kind_of(wanted)
    prefix = kind + wanted.prefix.encode()
    first, last = b"[" + prefix, _after_all(prefix)
    cut: bytes | int = b""
    if wanted.entries:
        first, last, cut = first + b"0", b"(" + prefix + b":", len(prefix)

    after = wanted.after if isinstance(wanted, Parts) else None
    if after is not None and kind + after.encode() >= first[1:]:
        first = b"(" + kind + after.encode()

    if wanted.before is not None:
        last = min(last, b"(" + kind + wanted.before.encode())

    return _Bounds(first, last, cut)


def _kind_of(wanted: Parts | RemoveParts) -> bytes:
    return COUNTER if isinstance(wanted, Parts) and wanted.versions else NAME


def _removed(wanted: RemoveParts) -> tuple[bytes | int, ...]:
    bounds = _bounds(wanted)
    return bounds.first, bounds.last, wanted.limit, bounds.cut


def _after_all(begin: bytes) -> bytes:
    """Return the end of the range of what begins so; UTF-8 has no byte 255."""
    return b"(" + begin[:-1] + bytes((begin[-1] + 1,))

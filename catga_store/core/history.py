"""Former versions of flows: reading and listing them, and new flows made of one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from catga_store import codec
from catga_store.codec.bodies.frames import MAGIC
from catga_store.codec.bodies.frames import not_readable
from catga_store.core import commits
from catga_store.core import envelope
from catga_store.core import writes
from catga_store.core.arguments import check_limit
from catga_store.core.arguments import check_number
from catga_store.core.arguments import not_found
from catga_store.core.conflicts import conflict_error
from catga_store.core.context import Context
from catga_store.core.context import read_all
from catga_store.core.counters import CountersOfLogs
from catga_store.errors import FlowNotFoundError
from catga_store.errors import UsageError
from catga_store.model.flows import FlowSnapshot
from catga_store.model.flows import FlowStatus
from catga_store.model.flows import FlowVersion
from catga_store.protocol.conversation import Conversation
from catga_store.protocol.conversation import ask
from catga_store.protocol.keys import PART
from catga_store.protocol.keys import VERSIONS
from catga_store.protocol.keys import Key
from catga_store.protocol.keys import check_id
from catga_store.protocol.keys import flow_key
from catga_store.protocol.keys import is_hidden
from catga_store.protocol.keys import new_commit_id
from catga_store.protocol.keys import part_key
from catga_store.protocol.keys import version_key
from catga_store.protocol.masking import shown
from catga_store.protocol.requests import ANY
from catga_store.protocol.requests import EXISTS
from catga_store.protocol.requests import MAX_CHANGES
from catga_store.protocol.requests import Change
from catga_store.protocol.requests import Check
from catga_store.protocol.requests import Conflict
from catga_store.protocol.requests import Delete
from catga_store.protocol.requests import Head
from catga_store.protocol.requests import Parts
from catga_store.protocol.requests import Put
from catga_store.protocol.requests import Read
from catga_store.protocol.requests import Record
from catga_store.protocol.requests import Refused
from catga_store.protocol.requests import Scan
from catga_store.protocol.requests import Steps

__all__ = ["fork", "get_version", "list_versions"]

_LAST = 10**12 - 1
_PAGE = 100


def get_version(
    context: Context, flow_id: str, state_type: Any | None, version: int
) -> Conversation[FlowSnapshot[Any] | None]:
    """Read one version of a flow, as a new object."""
    key = flow_key(check_id(flow_id, "a flow id"))
    record = yield from _read_version(context, key, version)
    if record is None:
        codec.check_state_type(state_type)
        return None

    return envelope.decode_flow(key, record, state_type)


def _read_version(context: Context, key: Key, version: int) -> Conversation[Record | None]:
    """The record of a version of a flow, whether it is the current one or a former one."""
    check_number("version", version, 1, _LAST)
    keys = (key, version_key(key.id, version))
    current, former = yield from ask(Read(keys, context.settings.now_ms()))
    if current is None or version > current.head.version:
        return None  # a copy over a flow leaves what it had kept of later versions

    return current if current.head.version == version else former


def list_versions(
    context: Context, flow_id: str, *, before: int | None = None, limit: int = 100
) -> Conversation[list[FlowVersion]]:
    """Read what the versions of a flow were, the newest first."""
    key = flow_key(check_id(flow_id, "a flow id"))
    if before is not None and (type(before) is not int or not 1 <= before <= _LAST):
        message = f"before: expected None or an int from 1 to {_LAST}, got {shown(before)}"
        raise UsageError(message)

    check_limit(limit)
    now_ms = context.settings.now_ms()
    (current,) = yield from ask(Read((key,), now_ms))
    if current is None:
        return []

    newest = current.head.version
    last = newest if before is None else min(before, newest)
    records = [current] if before is None or newest < before else []
    if limit > len(records):
        wanted = Parts(
            flow_id,
            VERSIONS,
            after=None,
            before=version_key(flow_id, last).name,
            reverse=True,
            limit=limit - len(records),
            bodies=True,
            now_ms=now_ms,
            versions=True,
        )
        found = yield from ask(wanted)
        records += [Record(one.head, one.body or b"") for one in found]

    return [envelope.version_of(key, record) for record in records]


def fork(
    context: Context, flow_id: str, new_id: str, *, version: int | None = None
) -> Conversation[FlowSnapshot[Any]]:
    """Make a new flow of a version of another one."""
    key, new = flow_key(check_id(flow_id, "a flow id")), flow_key(check_id(new_id, "a flow id"))
    writes.check_partition((Check(key, ANY), Check(new, ANY)), context.limits)
    attempt = 0
    while True:
        attempt += 1
        record, is_current = yield from _source_of(context, key, new, version)
        copying = _Copying(context, key.id, new.id)
        belongings: list[Change] = []
        if is_current:
            # They are read after the flow, which must not have been written meanwhile.
            belongings = [Check(key, record.head.revision), *(yield from copying.read_all())]

        now_ms = context.settings.now_ms()
        put = _forked(key, new, record, now_ms)
        changes = (put, *belongings)
        reply = yield from commits.send(context, new_commit_id(), now_ms, changes)
        if not isinstance(reply, Refused):
            revision = reply.outcomes[0].revision
            written = Record(put.head.stamped(revision, (revision,)), put.body)
            return envelope.decode_flow(new, written, None)

        yield from copying.undo()
        conflict = reply.conflicts[0]
        if changes[conflict.place].key != key or attempt == _ATTEMPTS:
            raise conflict_error(changes[conflict.place], conflict, None)


_ATTEMPTS = 10


def _source_of(
    context: Context, key: Key, new: Key, version: int | None
) -> Conversation[tuple[Record, bool]]:
    """Read the version of a flow that is forked, and whether it is the current one."""
    current, there = yield from ask(Read((key, new), context.settings.now_ms()))
    if there is not None:
        raise conflict_error(Put(new, there.head, b"", None), Conflict(0, EXISTS, there.head), None)

    if current is None:
        raise not_found(key.id)

    record: Record | None = current
    if version is not None:
        record = yield from _read_version(context, key, version)

    if record is None:
        message = (
            f"version {version} of {key} not found: the store never kept this version, or no "
            "longer keeps it"
        )
        raise FlowNotFoundError(message, flow_id=key.id, expected=version)

    return record, record.head.version == current.head.version


def _forked(key: Key, new: Key, record: Record, now_ms: int) -> Put:
    """The first write of a flow that continues where a version of another one was."""
    old = record.head
    status = old.status if old.status in _CONTINUED else FlowStatus.RUNNING.value
    head = Head(1, status, now_ms, now_ms, old.type, old.type_version, old.position, due_ms=now_ms)
    head = head._replace(tags=old.tags)
    return Put(new, head, envelope.body_without_wait(key, old, record.body), None)


_CONTINUED = FlowStatus.CREATED.value, FlowStatus.RUNNING.value, FlowStatus.COMPENSATING.value


class _Copying:
    """Copies of the ForEach progress and the parts of a flow, counters of logs included.

    As many as fit into one commit beside the flow are returned; the others, which come before, are
    written here, while the new flow is not there yet.
    """

    def __init__(self, context: Context, flow_id: str, new_id: str) -> None:
        self._context = context
        self._id = flow_id
        self._new_id = new_id
        self._copies: list[Change] = []
        self._written: list[Delete] = []
        """What undoes what was written."""

    def read_all(self) -> Conversation[list[Change]]:
        """Copy everything, and return what is to be written with the flow."""
        now_ms = self._context.settings.now_ms()
        steps = yield from ask(Steps(self._id, now_ms))
        keys = tuple(step.key for step in steps)
        records = yield from ask(Read(keys, now_ms)) if keys else ask(Read((), now_ms))
        self._copy(zip(keys, records, strict=True))
        yield from self._parts(now_ms)
        return self._copies

    def _parts(self, now_ms: int) -> Conversation[None]:
        logs = CountersOfLogs()
        after = part_key(self._id, "")
        while True:
            found = yield from ask(Scan(PART, after, _PAGE, now_ms))
            mine = [(one.key, one.record) for one in found if one.key.id == self._id]
            logs.note(mine)
            self._copy(pair for pair in mine if not is_hidden(pair[0]))
            yield from self._write_most(now_ms)
            if len(mine) < len(found) or not found:
                break

            after = mine[-1][0]

        behind = logs.behind()
        if behind:
            fresh = yield from read_all(self._context, behind)
            logs.note(zip(behind, fresh, strict=True))

        self._copy(logs.counters.items())
        yield from self._write_most(now_ms)

    def _copy(self, found: Iterable[tuple[Key, Record | None]]) -> None:
        for key, record in found:
            if record is not None:
                if record.body[:3] == MAGIC:
                    _check_decoded(key, record.body)

                copied = key._replace(id=self._new_id)
                self._copies.append(Put(copied, record.head, record.body, None))

    def _write_most(self, now_ms: int) -> Conversation[None]:
        """Write all but what fits into one commit with a flow and the check of the other one."""
        while len(self._copies) > MAX_CHANGES - 2:
            some, self._copies = tuple(self._copies[:_PAGE]), self._copies[_PAGE:]
            reply = yield from commits.send(self._context, new_commit_id(), now_ms, some)
            if isinstance(reply, Refused):
                yield from self.undo()
                conflict = reply.conflicts[0]
                raise conflict_error(some[conflict.place], conflict, None)

            self._written += [
                Delete(change.key, outcome.revision)
                for change, outcome in zip(some, reply.outcomes, strict=True)
            ]

    def undo(self) -> Conversation[None]:
        """Remove what was written, so that the fork can be tried again; what was changed since stays."""
        while self._written:
            some, self._written = tuple(self._written[:_PAGE]), self._written[_PAGE:]
            now_ms = self._context.settings.now_ms()
            yield from commits.send(self._context, new_commit_id(), now_ms, some)


def _check_decoded(key: Key, body: bytes) -> None:
    """Raise unless these are bytes that only look like a body that went through codecs."""
    refusal = not_readable(key, body)
    if refusal is not None:
        raise refusal

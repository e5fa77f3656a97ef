"""Operations on parts of flows and on logs, outside a session and in one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from catga_store import codec
from catga_store.core import commits
from catga_store.core import envelope
from catga_store.core import writes
from catga_store.core.arguments import check_limit
from catga_store.core.arguments import check_number
from catga_store.core.context import Context
from catga_store.core.context import read_all
from catga_store.core.receipts import appended_of
from catga_store.core.unit_of_work import UnitOfWork
from catga_store.core.unit_of_work import check_exists
from catga_store.errors import StateTypeError
from catga_store.errors import UsageError
from catga_store.model import stored_state
from catga_store.model.listings import Page
from catga_store.model.parts import UNREAD
from catga_store.model.parts import Appended
from catga_store.model.parts import LogEntry
from catga_store.model.parts import Part
from catga_store.protocol.conversation import Conversation
from catga_store.protocol.conversation import ask
from catga_store.protocol.keys import Key
from catga_store.protocol.keys import check_id
from catga_store.protocol.keys import check_log
from catga_store.protocol.keys import check_part_name
from catga_store.protocol.keys import entry_key
from catga_store.protocol.keys import part_key
from catga_store.protocol.masking import shown
from catga_store.protocol.requests import ANY
from catga_store.protocol.requests import IF_ABSENT
from catga_store.protocol.requests import Append
from catga_store.protocol.requests import Delete
from catga_store.protocol.requests import Head
from catga_store.protocol.requests import ListedPart
from catga_store.protocol.requests import Parts
from catga_store.protocol.requests import Read
from catga_store.protocol.requests import Record
from catga_store.protocol.requests import RemoveParts

__all__ = [
    "append",
    "append_change",
    "delete_part",
    "delete_parts",
    "get_part",
    "get_parts",
    "list_parts",
    "put_part",
    "read_log",
    "session_get_part",
    "session_get_parts",
    "trim_log",
]

_REMOVED_AT_ONCE = 500
"""Parts in one commit of `delete_parts`: some milliseconds of SQLite's write lock."""
_LAST = 10**12 - 1

# parts --------------------------------------------------------------------------------------------


def put_part(context: Context, part: Part[Any], *, exists: str = "refuse") -> Conversation[bool]:
    """Write a part; return whether it was written."""
    checked = check_exists(part, exists)
    now_ms = context.settings.now_ms()
    expected = {"overwrite": ANY, "keep": IF_ABSENT}.get(exists)
    put = writes.plan_part(checked, now_ms, context.limits, expected)
    if put is None:
        return False

    outcome = yield from commits.commit_one(context, put, now_ms, checked)
    if expected == IF_ABSENT and not outcome.accepted:
        return False

    writes.settle_part(checked, put, outcome)
    return True


def get_part(
    context: Context, flow_id: str, name: str, body_type: Any | None = None
) -> Conversation[Part[Any] | None]:
    """Read a part."""
    key = part_key(check_id(flow_id, "a flow id"), _readable_name(name))
    codec.check_state_type(body_type)
    (record,) = yield Read((key,), context.settings.now_ms())
    return None if record is None else envelope.decode_part(key, record, body_type)


def get_parts(
    context: Context, flow_id: str, names: Iterable[str], body_type: Any | None = None
) -> Conversation[dict[str, Part[Any] | None]]:
    """Read parts by their names."""
    keys = _keys_of(flow_id, names)
    codec.check_state_type(body_type)
    records = yield from read_all(context, keys)
    return {
        key.name: None if record is None else envelope.decode_part(key, record, body_type)
        for key, record in zip(keys, records, strict=True)
    }


def _keys_of(flow_id: str, names: Iterable[str]) -> list[Key]:
    checked = check_id(flow_id, "a flow id")
    if isinstance(names, str | bytes) or not isinstance(names, Iterable):
        message = f"names: expected a collection of part names, got {shown(names)}"
        raise UsageError(message)

    return [part_key(checked, _readable_name(name)) for name in dict.fromkeys(names)]


def _readable_name(name: object) -> str:
    """Return the name of a part that can be read, which may be an entry of a log."""
    checked = check_id(name, "part name")
    return checked if not checked.endswith("/") else check_part_name(checked)


def list_parts(
    context: Context,
    flow_id: str,
    prefix: str = "",
    *,
    after: str | None = None,
    before: str | None = None,
    reverse: bool = False,
    limit: int = 100,
    bodies: bool = False,
    body_type: Any | None = None,
) -> Conversation[Page[Part[Any]]]:
    """Read one page of parts."""
    flow_id = check_id(flow_id, "a flow id")
    for name, value in (("prefix", prefix or None), ("after", after), ("before", before)):
        if value is not None:
            check_id(value, name)

    writes.check_flag(reverse, "reverse")
    writes.check_flag(bodies, "bodies")
    check_limit(limit)
    codec.check_state_type(body_type)
    now_ms = context.settings.now_ms()
    wanted = Parts(flow_id, prefix, after, before, reverse, limit + 1, bodies, now_ms)
    found = yield from ask(wanted)
    page = [_listed(flow_id, one, body_type) for one in found[:limit]]
    return Page(tuple(page), page[-1].name if len(found) > limit else None)


def _listed(flow_id: str, found: ListedPart, body_type: Any | None) -> Part[Any]:
    key = part_key(flow_id, found.name)
    if found.body is None:
        return stored_state.listed_part(key, Record(found.head, b""), body_type)

    return envelope.decode_part(key, Record(found.head, found.body), body_type)


def delete_part(context: Context, flow_id: str, name: str) -> Conversation[bool]:
    """Remove a part, whatever it holds."""
    (key,) = _keys_of(flow_id, (name,))
    outcome = yield from commits.commit_one(context, Delete(key, None), context.settings.now_ms())
    return outcome.accepted


def delete_parts(context: Context, flow_id: str, prefix: str) -> Conversation[int]:
    """Remove the parts whose names begin with a prefix, in as many commits as that takes."""
    flow_id = check_id(flow_id, "a flow id")
    if prefix != "":
        check_id(prefix, "prefix")

    return (yield from _remove(context, flow_id, prefix))


def _remove(
    context: Context, flow_id: str, prefix: str, before: str | None = None, *, entries: bool = False
) -> Conversation[int]:
    removed = 0
    while True:
        now_ms = context.settings.now_ms()
        request = RemoveParts(flow_id, prefix, before, _REMOVED_AT_ONCE, now_ms, entries)
        count = yield from commits.ask_once(context, request)
        removed += count
        if count < _REMOVED_AT_ONCE:
            return removed


# logs ---------------------------------------------------------------------------------------------


def append_change(
    context: Context, flow_id: str, body: object, *, log: str = "log", key: str | None = None
) -> Append:
    """The change that appends to a log, checked and encoded; not dated yet."""
    at = part_key(check_id(flow_id, "a flow id"), check_log(log))
    if key is not None:
        check_id(key, "key of an entry")

    name, version, data = envelope.encode_entry(body)
    writes.check_size(at, len(data), context.limits)
    return Append(at, Head(1, 0, 0, 0, name, version, key or ""), data)


def append(
    context: Context, flow_id: str, body: object, *, log: str = "log", key: str | None = None
) -> Conversation[Appended]:
    """Add an entry to a log."""
    change = append_change(context, flow_id, body, log=log, key=key)
    now_ms = context.settings.now_ms()
    dated = change._replace(head=change.head._replace(created_ms=now_ms, updated_ms=now_ms))
    outcome = yield from commits.commit_one(context, dated, now_ms)
    return appended_of(dated, outcome)


def read_log(
    context: Context,
    flow_id: str,
    log: str = "log",
    *,
    after: int = 0,
    before: int | None = None,
    limit: int = 100,
    reverse: bool = False,
    body_type: Any | None = None,
) -> Conversation[list[LogEntry]]:
    """Read entries of a log by their sequences."""
    flow_id, log = check_id(flow_id, "a flow id"), check_log(log)
    writes.check_flag(reverse, "reverse")
    check_limit(limit)
    codec.check_state_type(body_type)
    first = entry_key(flow_id, log, _sequence(after, "after")).name
    last = None if before is None else entry_key(flow_id, log, _sequence(before, "before")).name
    now_ms = context.settings.now_ms()
    found = yield from ask(
        Parts(
            flow_id,
            f"{log}/",
            first,
            last,
            reverse,
            limit,
            bodies=True,
            now_ms=now_ms,
            entries=True,
        )
    )
    return [
        envelope.decode_entry(part_key(flow_id, one.name), one.head, one.body or b"", body_type)
        for one in found
    ]


def trim_log(context: Context, flow_id: str, log: str = "log", *, before: int) -> Conversation[int]:
    """Remove the entries of a log before a sequence."""
    flow_id, log = check_id(flow_id, "a flow id"), check_log(log)
    last = entry_key(flow_id, log, _sequence(before, "before")).name
    return (yield from _remove(context, flow_id, f"{log}/", last, entries=True))


def _sequence(value: int, what: str) -> int:
    check_number(what, value, 0, _LAST)
    return value


# in a session -------------------------------------------------------------------------------------


def session_get_part(
    context: Context, unit: UnitOfWork, flow_id: str, name: str, body_type: Any | None = None
) -> Conversation[Part[Any] | None]:
    """Return the session's object for a part, reading it if it has none."""
    found = yield from session_get_parts(context, unit, flow_id, (name,), body_type)
    (part,) = found.values()
    return part


def session_get_parts(
    context: Context,
    unit: UnitOfWork,
    flow_id: str,
    names: Iterable[str],
    body_type: Any | None = None,
) -> Conversation[dict[str, Part[Any] | None]]:
    """Return the session's objects for parts, reading those that it does not have."""
    keys = _keys_of(flow_id, names)
    unknown = [key.name for key in keys if unit.find(key) is None]
    read: dict[str, Part[Any] | None] = {}
    if unknown and not unit.leaves(flow_id):
        read = yield from get_parts(context, flow_id, unknown, body_type)

    found: dict[str, Part[Any] | None] = {}
    for key in keys:
        if unit.find(key) is None:
            part = read.get(key.name)
            if part is not None:
                unit.track(key, part)

            found[key.name] = part
        else:
            found[key.name] = _tracked(unit, key, body_type)

    return found


def _tracked(unit: UnitOfWork, key: Key, body_type: Any | None) -> Part[Any] | None:
    part = unit.present(key)
    if not isinstance(part, Part):
        return None

    if body_type is None:
        return part

    has = part.body_type
    if has is None and part._body is not UNREAD:
        has = codec.type_of(part.body)

    if has != body_type:
        name, wanted = codec.type_name(has) or part.type_name, codec.type_name(body_type)
        message = (
            f"{key} is loaded in this session as {shown(name) if name else 'raw data'} but was "
            f"requested as {wanted!r}; request it with the same type, or expunge it first"
        )
        raise StateTypeError(message, expected=wanted, actual=name)

    return part

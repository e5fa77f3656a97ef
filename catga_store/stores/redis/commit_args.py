"""The arguments of commit.lua for a commit, and its replies as outcomes and conflicts."""

from __future__ import annotations

from typing import Any

import msgspec

from catga_store.errors import CorruptRecordError
from catga_store.protocol.keys import FLOW
from catga_store.protocol.keys import PART
from catga_store.protocol.keys import PROGRESS
from catga_store.protocol.keys import WAIT
from catga_store.protocol.keys import Key
from catga_store.protocol.requests import IF_ABSENT
from catga_store.protocol.requests import Append
from catga_store.protocol.requests import Change
from catga_store.protocol.requests import Check
from catga_store.protocol.requests import Commit
from catga_store.protocol.requests import Complete
from catga_store.protocol.requests import Conflict
from catga_store.protocol.requests import Delete
from catga_store.protocol.requests import Outcome
from catga_store.protocol.requests import Put
from catga_store.protocol.requests import Refused
from catga_store.protocol.requests import SetWait
from catga_store.protocol.requests import Terms
from catga_store.stores.redis.layout import encode
from catga_store.stores.redis.layout import read_head
from catga_store.stores.redis.layout import write_head

__all__ = [
    "LARGE",
    "add_change",
    "body_sent",
    "chunks_in",
    "flags_of",
    "is_unused",
    "large_body",
    "planned",
    "read_conflicts",
    "read_outcomes",
]

_outcomes: msgspec.json.Decoder[list[list[Any]]] = msgspec.json.Decoder(list[list[Any]])
LARGE = 1024 * 1024
"""In bytes. A larger commit does not share a connection; a larger body is uploaded in chunks."""

_LETTER = {FLOW: b"F", PROGRESS: b"G", PART: b"N", WAIT: b"W"}


def add_change(
    args: list[bytes | str | int],
    change: Change,
    *,
    leaves: bool,
    history: int,
    upload: str = "",
) -> None:
    """Append the arguments of one change; commit.lua has their order.

    `leaves` says that the flow of a progress record or part is removed in the same commit. `upload`
    names the chunks of a body that was uploaded. `history` is that of the commit.
    """
    key = change.key
    letter, record_id = _LETTER[key.kind], key.id.encode()
    place: bytes | int = key.name.encode() if key.kind == PART else key.step

    if isinstance(change, Complete):
        success = b"1" if change.success else b"0"
        args += (b"C", letter, record_id, change.child.encode(), success, change.payload)
    elif isinstance(change, SetWait):
        renotify = b"1" if change.renotify else b""
        args += (b"S", letter, record_id, encode(change.terms), change.created_ms, renotify)
    elif isinstance(change, Put):
        flags = flags_of(change, leaves=leaves, history=history)
        _add_put(args, change, letter, record_id, place, flags=flags, upload=upload)
    elif isinstance(change, Delete):
        expected = b"" if change.expected is None else change.expected
        args += (b"D", letter, record_id, place, expected, b"l" if leaves else b"")
    elif isinstance(change, Check):
        due = b"" if change.due_ms is None else change.due_ms
        flags = b"l" if leaves else b"o" if change.claim is not None else b""
        expected = change.expected if change.claim is None else change.claim
        args += (b"K", letter, record_id, place, expected, flags, due)
    else:
        entry_key, head = change.head.position.encode(), change.head._replace(version=1)
        args += (b"A", letter, record_id, place, entry_key, b"p" if upload else b"")
        args += (write_head(head), _in_chunks(upload, change.body) if upload else change.body)


def _add_put(
    args: list[bytes | str | int],
    change: Put,
    letter: bytes,
    record_id: bytes,
    place: bytes | int,
    *,
    flags: bytes,
    upload: str,
) -> None:
    expected = b"" if change.expected is None else change.expected
    head = write_head(change.head)

    if letter == b"W":
        assert change.terms is not None, "a wait condition must have terms"  # noqa: S101  a broken rule, not bad input
        terms = encode(change.terms)
        args += (b"P", letter, record_id, expected, flags, head, terms, len(change.items))
        for item in change.items:
            args += (item.child.encode(), b"1" if item.success else b"0", item.payload)
    elif upload:
        stored = _in_chunks(upload, change.body)
        if change.key.kind == FLOW:
            stored = b"*" + stored

        args += (b"P", letter, record_id, place, expected, flags + b"p", head, stored)
    else:
        args += (b"P", letter, record_id, place, expected, flags, head, body_sent(change))


def flags_of(change: Put, *, leaves: bool, history: int) -> bytes:
    """Return the flags of a put; see commit.lua."""
    flags = b"f" if change.fresh else b""
    if history > 1 and change.key.kind == FLOW:
        flags += b"h%d" % history

    if change.claiming:
        flags += b"c"

    if change.keeps_body:
        flags += b"k"

    if leaves:
        flags += b"l"

    if change.key.kind == FLOW and change.expected is not None and _moves_in_index(change):
        flags += b"i"

    if change.notified:
        flags += b"g"

    return flags


def _moves_in_index(change: Put) -> bool:
    """Whether a flow has other entries in the index, as far as put.lua does not see it itself."""
    old, new = change.replaces, change.head
    return old is None or old.tags != new.tags or (old.claim is None) != (new.claim is None)


def body_sent(change: Put) -> bytes:
    """Return the body to send with a put; empty if the stored body, which must be there, stays."""
    return b"" if change.keeps_body and change.expected is not None else change.body


def large_body(change: Change) -> bytes | None:
    """Return the body that must be uploaded in chunks; `None` if it goes with the commit."""
    if type(change) is Append:
        body = change.body
    elif type(change) is Put and change.key.kind in (FLOW, PART):
        body = body_sent(change)
    else:
        return None

    return body if len(body) > LARGE else None


def _in_chunks(name: str, body: bytes) -> bytes:
    """Return what is stored in place of a body that is in chunks of this name; a flow has a `*` first."""
    return b"%d %b" % (-(-len(body) // LARGE), name.encode())


def chunks_in(stored: bytes) -> tuple[int, bytes]:
    """Return the number and the name of the chunks, from what is stored in place of the body."""
    count, _, name = stored.removeprefix(b"*").partition(b" ")
    return int(count) if count.isdigit() else 0, name


def is_unused(change: Change, outcome: Outcome) -> bool:
    """Return whether a change of an applied commit has written nothing: its part was there before."""
    if isinstance(change, Append):
        return outcome.duplicate

    return isinstance(change, Put) and change.expected == IF_ABSENT and not outcome.accepted


def planned(commit: Commit) -> bytes:
    """Return the reply to a commit of one flow that was applied as planned, as nearly all are.

    Comparing bytes makes 1 call, decoding the reply 7.
    """
    put: Any = commit.changes[0]
    head = put.head
    return b"[[%d,null,%d,%d]]" % (head.version, head.status, head.created_ms)


def read_outcomes(commit_id: str, reply: bytes) -> tuple[Outcome, ...]:
    """Return the outcomes of a commit that was applied, from its reply."""
    outcomes: list[Outcome] = []
    try:
        for fields in _outcomes.decode(reply):
            if len(fields) > 1 and fields[1] is None:
                fields[1] = commit_id

            if len(fields) > 7 and fields[7] is not None:  # noqa: PLR2004  the terms' place
                children, any_of, timeout_ms, parent = fields[7]
                fields[7] = Terms(tuple(children), any_of, timeout_ms, parent)

            outcomes.append(Outcome(*fields))
    except (msgspec.DecodeError, TypeError, ValueError) as error:
        message = f"the reply to commit {commit_id} cannot be read: {error}; nothing was changed"
        raise CorruptRecordError(message, key=None) from error

    return tuple(outcomes)


def read_conflicts(commit: Commit, reply: list[Any]) -> Refused:
    """Return the conflicts of a commit that was refused, from its reply."""
    conflicts: list[Conflict] = []

    for start in range(0, len(reply), 3):
        place, reason, text = reply[start : start + 3]
        key: Key = commit.changes[int(place)].key
        head = read_head(key, text) if text else None
        conflicts.append(Conflict(place, reason.decode(), head))

    return Refused(tuple(conflicts))

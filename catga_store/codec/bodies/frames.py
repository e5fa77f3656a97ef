"""What is stored in place of a body that went through codecs, and what is read of one that is stored.

A frame names what was done to a body, so that it can be undone years later:

    0xf5 "cs" KIND  LENGTH  TRAIL  DATA

`KIND` is one byte that says how the body was written: 1, as a numbered version; 2, as a version or a
result that has no number when it is written; 3, appended to a log; 0, through no codec, see below.
`LENGTH` is that of the trail, two bytes, most significant first. The trail is ASCII text that names the
codecs in the order of writing, each perhaps with a label, as in `zstd,aes256gcm=2026-11`: the label of an
encryption is the id of its key. The byte 0xf5 is in no text of UTF-8, so no body that is JSON begins like
a frame. A body of bytes that does is stored in a frame of kind 0, which has no length and no trail, by
stores with codecs and without.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple
from typing import Self

from catga_store.errors import CodecMissingError
from catga_store.errors import CorruptRecordError
from catga_store.protocol.keys import Key
from catga_store.protocol.requests import Record

__all__ = [
    "APPENDED",
    "MAGIC",
    "NUMBERED",
    "UNNUMBERED",
    "ConcealedBody",
    "Frame",
    "Packed",
    "UnreadableBody",
    "check_readable",
    "framed",
    "header_of",
    "is_unreadable",
    "not_readable",
    "parse",
    "set_apart",
    "trail_of",
    "without_mark",
]

MAGIC = b"\xf5cs"
APART, NUMBERED, UNNUMBERED, APPENDED = range(4)
_TRAIL = re.compile(rb"[!-~]*")
_SET_APART = MAGIC + bytes([APART])
_SIZE = 2
_START = len(MAGIC) + 1 + _SIZE


class Frame(NamedTuple):
    """A stored body, taken apart."""

    kind: int
    trail: tuple[tuple[str, str], ...]
    """Name and label of each codec, in the order of writing."""
    data: bytes


class Packed(NamedTuple):
    """A body as it was before it was bound to its place: compressed, say."""

    trail: tuple[tuple[str, str], ...]
    data: bytes


class ConcealedBody(bytes):
    """A body that its store keeps encrypted: no message shows anything of it."""

    packed: Packed | None = None


class UnreadableBody(bytes):
    """Stands for a body that could not be decoded. It is not valid JSON, so nothing reads it by mistake."""

    stored: bytes
    error: CorruptRecordError

    def __new__(cls, stored: bytes, error: CorruptRecordError) -> Self:
        """Note what is stored, and what reading it raises."""
        body = super().__new__(cls, MAGIC)
        body.stored = stored
        body.error = error
        return body

    def refusal(self) -> CorruptRecordError:
        """Return what to raise: a new error each time, whose traceback is that of the reader."""
        return type(self.error)(str(self.error), **vars(self.error))


def is_unreadable(record: Record) -> bool:
    """Return whether a body of a record was not decoded: its own, or the result of a child.

    It could not be, or the store was opened without codecs and returns it as it is stored.
    """
    bodies = (record.body, *(item.payload for item in record.items))
    return any(isinstance(body, UnreadableBody) or trail_of(body) is not None for body in bodies)


def check_readable(body: bytes) -> None:
    """Raise the error of a body that could not be decoded."""
    if isinstance(body, UnreadableBody):
        raise body.refusal()


def framed(kind: int, trail: str, data: bytes) -> bytes:
    """Return a frame."""
    names = trail.encode("ascii")
    return b"".join((MAGIC, bytes([kind]), len(names).to_bytes(_SIZE, "big"), names, data))


def parse(stored: bytes) -> Frame | None:
    """Take a stored body apart; `None` if it went through no codec, `ValueError` if it is damaged."""
    kind = stored[len(MAGIC) : len(MAGIC) + 1]
    if not stored.startswith(MAGIC) or kind == bytes([APART]):
        return None

    size = int.from_bytes(stored[_START - _SIZE : _START], "big")
    names, data = stored[_START : _START + size], stored[_START + size :]
    if not kind or kind[0] not in (NUMBERED, UNNUMBERED, APPENDED) or len(names) < size:
        message = "the body is marked as encoded by codecs, but its header is invalid"
        raise ValueError(message)

    return Frame(kind[0], _trail_in(names), data)


def header_of(stored: bytes) -> bytes:
    """Return all of a frame before its data; `b""` for a body that is in none.

    Bodies with the same header were written through the same codecs, and differ in their data only.
    """
    if stored[: len(MAGIC)] != MAGIC or stored[: len(_SET_APART)] == _SET_APART:
        return b""

    return stored[: _START + int.from_bytes(stored[_START - _SIZE : _START], "big")]


@lru_cache(maxsize=256)
def _trail_in(names: bytes) -> tuple[tuple[str, str], ...]:
    """The trail of a frame, taken apart; a store has few."""
    if not _TRAIL.fullmatch(names):
        message = "the body's header contains an invalid list of codecs"
        raise ValueError(message)

    trail: list[tuple[str, str]] = []
    for name in names.decode("ascii").split(",") if names else ():
        codec, _, label = name.partition("=")
        trail.append((codec, label))

    return tuple(trail)


def trail_of(stored: bytes) -> str | None:
    """Return the codecs of a stored body as they stand in it; `None` if it went through none."""
    try:
        frame = parse(stored)
    except ValueError:
        return "?"

    if frame is None:
        return None

    return ",".join(f"{name}={label}" if label else name for name, label in frame.trail)


def not_readable(key: Key, body: bytes) -> CorruptRecordError | None:
    """Return what reading a body raises that its store could not decode, or that went through codecs.

    `None` if neither is the reason why it cannot be read.
    """
    if isinstance(body, UnreadableBody):
        return body.refusal()

    trail = trail_of(body)
    if trail is None:
        return None

    codecs = f"with codecs that this store does not have ({trail})" if trail else "by a codec"
    message = (
        f"the body of {key} cannot be read, because it was encoded {codecs}; nothing was changed; "
        "open the store with the codecs that were used to write the body"
    )
    name, _, label = trail.rpartition(",")[2].partition("=")
    return CodecMissingError(message, key=tuple(key), codec=name, label=label)


def set_apart(body: bytes) -> bytes:
    """Return what is stored of bytes that begin like a frame; other bytes are stored as they are."""
    return _SET_APART + body if body[: len(MAGIC)] == MAGIC else body


def without_mark(body: bytes) -> bytes:
    """Return the bytes that `set_apart` was given."""
    return body.removeprefix(_SET_APART)

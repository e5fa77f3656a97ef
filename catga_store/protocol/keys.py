"""Names of records: kinds, keys, ids, and the two forms of an id outside this process.

An id is any non-empty text of at most 512 UTF-8 bytes. It is kept unchanged: it is not normalised, and
no character is forbidden. Every id comes through `check_id`; other code need not check it again.
"""

from __future__ import annotations

import os
import time
from typing import Any
from typing import Final
from typing import NamedTuple
from zlib import crc32

from catga_store.errors import InvalidIdError
from catga_store.errors import UsageError

__all__ = [
    "FLOW",
    "MAX_ID_BYTES",
    "MAX_STEP",
    "PART",
    "PROGRESS",
    "SEQUENCE_DIGITS",
    "VERSIONS",
    "WAIT",
    "Key",
    "began_s",
    "check_id",
    "check_log",
    "check_part_name",
    "check_step",
    "counter_key",
    "decode_token",
    "encode_token",
    "entry_key",
    "flow_key",
    "is_entry",
    "is_hidden",
    "is_version",
    "log_of",
    "new_commit_id",
    "part_key",
    "partition_of",
    "progress_key",
    "show_int",
    "version_key",
    "wait_key",
]

FLOW: Final = "flow"
PART: Final = "part"
PROGRESS: Final = "progress"
WAIT: Final = "wait"

MAX_ID_BYTES: Final = 512
MAX_STEP: Final = 2**31 - 1
VERSIONS: Final = "//"
"""What the names of former versions of a flow begin with."""
SEQUENCE_DIGITS: Final = 12
"""The number of an entry in its name has as many digits, so that names have the order of numbers."""

_SHOWN_BITS = 128
_SHOWN = 40  # characters of an id that does not fit, enough to find it in a log


class Key(NamedTuple):
    """The name of a record. A key is a plain tuple, so it can be pickled and sorted.

    `id` is the flow's id (for the kinds `flow`, `progress` and `part`) or the correlation id (for `wait`).
    `step` is 0 unless the kind is `progress`, and `name` is empty unless the kind is `part`. The constructor
    does not check its arguments.

    >>> from catga_store import Key
    >>> print(Key("flow", "order-1"), Key("progress", "order-1", 2), Key("wait", "x"), sep="; ")
    flow 'order-1'; progress 'order-1' step 2; wait condition 'x'
    """

    kind: str
    """`flow`, `progress`, `wait` or `part`."""
    id: str
    """The id of the flow, or the correlation id of a wait condition."""
    step: int = 0
    """The index of a ForEach step."""
    name: str = ""
    """The name of a part."""

    def __repr__(self) -> str:
        """Leave out a name that is empty, as it is of most keys."""
        name = f", name={self.name!r}" if self.name else ""
        return f"Key(kind={self.kind!r}, id={self.id!r}, step={self.step!r}{name})"

    def __str__(self) -> str:
        """Name the record as error messages do."""
        if self.kind == PART:
            return f"part {self.name!r} of flow {self.id!r}"

        if self.kind == PROGRESS:
            return f"progress {self.id!r} step {self.step}"

        if self.kind == WAIT:
            return f"wait condition {self.id!r}"

        return f"{self.kind} {self.id!r}"


_new: Any = tuple.__new__  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]  typeshed's generic


def flow_key(flow_id: str) -> Key:
    """Return the key of a flow."""
    key: Key = _new(Key, (FLOW, flow_id, 0, ""))  # half of what `Key(…)` costs, in every operation
    return key


def progress_key(flow_id: str, step: int) -> Key:
    """Return the key of the progress of a ForEach step of a flow, whether or not the flow exists."""
    return Key(PROGRESS, flow_id, step)


def part_key(flow_id: str, name: str) -> Key:
    """Return the key of a part of a flow, whether or not the flow exists."""
    key: Key = _new(Key, (PART, flow_id, 0, name))  # as above
    return key


def entry_key(flow_id: str, log: str, sequence: int) -> Key:
    """Return the key of an entry of a log. The entry is a part.

    >>> print(entry_key("order-1", "log", 7))
    part 'log/000000000007' of flow 'order-1'
    """
    return Key(PART, flow_id, 0, f"{log}/{sequence:0{SEQUENCE_DIGITS}d}")


def counter_key(flow_id: str, log: str) -> Key:
    """Return the key of the hidden part whose version is the sequence of the last entry of a log."""
    return Key(PART, flow_id, 0, f"{log}/")


def version_key(flow_id: str, version: int) -> Key:
    """Return the key of the hidden part that contains an earlier version of a flow.

    No counter has such a name, because the name of a log cannot end with a slash.
    """
    return Key(PART, flow_id, 0, f"{VERSIONS}{version:0{SEQUENCE_DIGITS}d}//")


def is_version(name: str) -> bool:
    """Return whether the part with this name is an earlier version of its flow."""
    return name.startswith(VERSIONS) and name.endswith("//")


def is_hidden(key: Key) -> bool:
    """Return whether a part is the counter of a log or an earlier version, which ordinary listings do not show."""
    return key.name.endswith("/")


def log_of(key: Key) -> tuple[str, int] | None:
    """Return the log and the sequence of a part that is an entry of a log; otherwise, return None."""
    log, _, digits = key.name.rpartition("/")
    return (log, int(digits)) if log and _is_sequence(digits) else None


def is_entry(name: str, prefix: str) -> bool:
    """Return whether a name consists of the prefix, which is the name of a log and a slash, and a sequence.

    >>> is_entry("log/000000000007", "log/"), is_entry("log/inner/000000000007", "log/")
    (True, False)
    """
    return name.startswith(prefix) and _is_sequence(name[len(prefix) :])


def _is_sequence(text: str) -> bool:
    return len(text) == SEQUENCE_DIGITS and text.isascii() and text.isdigit()


def wait_key(correlation_id: str) -> Key:
    """Return the key of a wait condition."""
    return Key(WAIT, correlation_id)


def check_id(value: object, what: str) -> str:
    """Return `value` if it is a valid id, or raise `InvalidIdError`. `what` describes the id, such as `"flow id"`.

    An instance of a subclass of `str`, such as a member of a `StrEnum`, is returned as a plain string.

    >>> check_id("order 1/ü", "flow id")
    'order 1/ü'
    >>> check_id("", "flow id")
    Traceback (most recent call last):
    ...
    catga_store.InvalidIdError: flow id is empty, but an id must be a str of 1 to 512 UTF-8 bytes; nothing was sent
    """
    # An ASCII id has as many bytes as characters. This line is the cost of every ordinary call.
    if type(value) is str and value and value.isascii() and len(value) <= MAX_ID_BYTES:
        return value

    if not isinstance(value, str):
        found = f"is {_type_name(value)}"
        raise InvalidIdError(_refusal(what, found), what=what)

    text = str.__str__(value)

    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:
        found = (
            f"{_shown(text)} has a lone surrogate, {text[error.start]!r}, at index {error.start}"
        )
        raise InvalidIdError(_refusal(what, found), what=what, value=text) from None

    if not text:
        raise InvalidIdError(_refusal(what, "is empty"), what=what, value=text, size=0)

    if size > MAX_ID_BYTES:
        found = f"{_shown(text)} is {size} UTF-8 bytes long"
        raise InvalidIdError(_refusal(what, found), what=what, value=text, size=size)

    return text


def check_part_name(value: object) -> str:
    """Return `value` if it can be the name of a part, or raise `InvalidIdError`.

    >>> check_part_name("steps/")
    Traceback (most recent call last):
    ...
    catga_store.InvalidIdError: part name 'steps/' ends with '/', but a name must follow the '/'; nothing was sent
    """
    # This line is the cost of most names: those of groups and of entries end with one of these.
    if (
        type(value) is str
        and value.isascii()
        and 0 < len(value) <= MAX_ID_BYTES
        and value[-1] not in "/0123456789"
    ):
        return value

    name = check_id(value, "part name")
    group, _, last = name.rpartition("/")
    if not last:
        message = (
            f"part name {_shown(name)} ends with '/', but a name must follow the '/'; nothing "
            "was sent"
        )
        raise InvalidIdError(message, what="part name", value=name)

    if group and _is_sequence(last):
        message = (
            f"part name {_shown(name)} is reserved for log entries, so nothing was sent; use "
            "append() to write a log entry"
        )
        raise InvalidIdError(message, what="part name", value=name)

    return name


def check_log(value: object) -> str:
    """Return `value` if it can be the name of a log, or raise `InvalidIdError`."""
    name = check_id(value, "log name")
    most = MAX_ID_BYTES - SEQUENCE_DIGITS - 1
    if len(name.encode()) > most or name.endswith("/"):
        message = (
            f"log name {_shown(name)} must not end with '/' or be longer than {most} UTF-8 bytes;"
            " nothing was sent"
        )
        raise InvalidIdError(message, what="log name", value=name)

    return name


def check_step(value: object) -> int:
    """Return `value` if it is a valid step index: an int from 0 to 2**31 - 1.

    >>> check_step(-1)
    Traceback (most recent call last):
    ...
    catga_store.UsageError: step index: expected an int from 0 to 2147483647, got -1; nothing was sent
    """
    if type(value) is int and 0 <= value <= MAX_STEP:
        return value

    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_STEP:
        return int(value)

    found = show_int(value)
    message = f"step index: expected an int from 0 to {MAX_STEP}, got {found}; nothing was sent"
    raise UsageError(message)


def show_int(value: object) -> str:
    """Describe, for an error message, a value that is not an int or is out of range."""
    if not isinstance(value, int) or isinstance(value, bool):
        return _type_name(value)

    # Python refuses to print ints of more than 4,300 digits, and they are of no use in a message.
    return format(value, "d") if value.bit_length() <= _SHOWN_BITS else "far out of range"


def partition_of(any_id: str, partitions: int) -> int:
    """Return the partition of a record with this id, from 0 to `partitions - 1`.

    If the id contains text in braces, only this text is hashed, by the rule of Redis Cluster: the text
    between the first `{` and the next `}`, if it is not empty. Otherwise, the whole id is hashed. The hash
    (CRC-32 of the UTF-8 bytes) is part of the stored layout, so it can never change.

    >>> partition_of("{order-42}/ship", 16) == partition_of("order-42", 16)
    True
    """
    if partitions == 1:
        return 0

    opened = any_id.find("{")

    if opened >= 0:
        closed = any_id.find("}", opened + 1)

        if closed > opened + 1:
            any_id = any_id[opened + 1 : closed]

    return crc32(any_id.encode()) % partitions


def encode_token(any_id: str) -> str:
    """Return an id as one NATS subject token: `[A-Za-z0-9_-]` are kept, and any other byte becomes `=XX`.

    Different ids have different tokens. `decode_token` returns the id again.

    >>> encode_token("order.1 ü")
    'order=2E1=20=C3=BC'
    """
    if any_id.isascii():
        return any_id.translate(_TOKENS)

    return "".join([_TOKENS[byte] for byte in any_id.encode()])


def decode_token(token: str) -> str:
    """Return the id that `encode_token` encodes as `token`; raise `ValueError` for any other text.

    >>> decode_token("order=2E1=20=C3=BC")
    'order.1 ü'
    >>> decode_token("order=2e1")
    Traceback (most recent call last):
    ...
    ValueError: 'order=2e1' is not an encoded id
    """
    plain, *escaped = token.split("=")

    try:
        data = plain.encode() + b"".join(
            [bytes.fromhex(part[:2]) + part[2:].encode() for part in escaped]
        )
        any_id = data.decode()
    except ValueError:
        any_id = ""

    # Encoding it again is the check: what was decoded too leniently comes out different.
    if not any_id or encode_token(any_id) != token:
        message = f"{token!r} is not an encoded id"
        raise ValueError(message)

    return any_id


_KEPT = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-")
_TOKENS = tuple(chr(byte) if byte in _KEPT else f"={byte:02X}" for byte in range(256))


def _refusal(what: str, found: str) -> str:
    return (
        f"{what} {found}, but an id must be a str of 1 to {MAX_ID_BYTES} UTF-8 bytes; nothing "
        "was sent"
    )


def _shown(text: str) -> str:
    return repr(text) if len(text) <= _SHOWN else f"{text[:_SHOWN]!r}…"


def _type_name(value: object) -> str:
    return "None" if value is None else f"of type {type(value).__name__}"


def new_commit_id() -> str:
    """Return an id that is unique forever and sorts by time: 44 bits of milliseconds, 80 random bits."""
    return f"{time.time_ns() // 1_000_000:011x}{os.urandom(10).hex()}"


def began_s(commit_id: str) -> float:
    """Return when a commit began, in seconds since 1970, by its id and the clock of its process."""
    return int(commit_id[:11], 16) / 1000

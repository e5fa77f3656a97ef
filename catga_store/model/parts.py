"""Parts: further bodies under a flow, by name; and the entries of its logs."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from typing import Final
from typing import Generic
from typing import TypeVar
from typing import final

from attrs import Factory
from attrs import define
from attrs import field
from attrs import frozen
from attrs import setters

from catga_store import codec
from catga_store.errors import UsageError
from catga_store.model.times import from_ms
from catga_store.model.validators import as_flow_id
from catga_store.model.validators import as_part_name
from catga_store.model.validators import check_tag
from catga_store.protocol.keys import Key
from catga_store.protocol.keys import part_key
from catga_store.protocol.requests import Record

__all__ = ["UNREAD", "Appended", "LogEntry", "Part"]

S = TypeVar("S")


@final
class _Unread:
    """Stands for a body that was not read."""

    def __repr__(self) -> str:
        return "<not read>"

    def __reduce__(self) -> str:
        """A copy, also one that was pickled, is the same object."""
        return "UNREAD"


UNREAD: Final[Any] = _Unread()


def _key_of_part(part: Part[Any]) -> Key:
    return part_key(part.flow_id, part.name)


@define(eq=False, repr=False)
class Part(Generic[S]):
    """A named body that is stored under a flow: a step's result, a chunk of data, another program's record.

    `name` is 1 to 512 bytes of UTF-8 and does not end with `/`. Parts are listed in the byte order of their
    names; by convention, `/` groups them. `body` is `bytes`, which are stored as they are, or anything that
    the state of a flow can be; `body_type` works like the `state_type` of a flow. `tag` is a string of up to
    256 bytes of UTF-8 that listings return without the body.

    A part is in the partition of its flow, can be written in the same commit as the flow, and is deleted with
    it. You can write a part before its flow exists. Two parts are equal only if they are the same object.

    >>> part = Part("order-1", "step/3", b"...", tag="image/png")
    >>> part.version, part
    (0, <Part 'step/3' of 'order-1' v0>)
    """

    flow_id: str = field(converter=as_flow_id, on_setattr=setters.frozen)
    name: str = field(converter=as_part_name, on_setattr=setters.frozen)
    _body: S = field()
    tag: str = field(default="", validator=check_tag, kw_only=True)
    body_type: Any | None = field(default=None, kw_only=True, on_setattr=setters.frozen)
    _key: Key = field(init=False, default=Factory(_key_of_part, takes_self=True))
    _loaded: Record | None = field(default=None, init=False)
    _baseline: bytes | None = field(default=None, init=False)
    """As on a flow."""
    _session: object | None = field(default=None, init=False)
    _is_read: bool = field(default=True, init=False)
    """Whether `_loaded` has the body; not so on a part from a listing without bodies."""

    @property
    def body(self) -> S:
        """The body; reading it raises `UsageError` if the part came from a listing without bodies."""
        if self._body is UNREAD:
            message = (
                f"the body of {self._key} was not read; pass bodies=True to the listing, or "
                "read the part"
            )
            raise UsageError(message)

        return self._body

    @body.setter
    def body(self, value: S) -> None:
        self._body = value

    @property
    def version(self) -> int:
        """The version of the part: 0 before the first write, then 1, 2, 3 and so on."""
        return 0 if self._loaded is None else self._loaded.head.version

    @property
    def revision(self) -> str | None:
        """A string that identifies one write of this part; `None` before the first write.

        A revision is never used again.
        """
        return None if self._loaded is None else self._loaded.head.revision

    @property
    def created_at(self) -> datetime | None:
        """The time of the first write; `None` before the first write."""
        return None if self._loaded is None else from_ms(self._loaded.head.created_ms)

    @property
    def updated_at(self) -> datetime | None:
        """The time of the last write; `None` before the first write."""
        return None if self._loaded is None else from_ms(self._loaded.head.updated_ms)

    @property
    def type_name(self) -> str:
        """The type name under which the body is stored: `bytes`, the name of its type, or empty for JSON data."""
        if self._loaded is not None:
            stored = self._loaded.head.type
            if self._body is UNREAD or stored not in ("", "bytes"):
                return stored

        return codec.type_name(codec.type_of(self._body, self.body_type))

    @property
    def key(self) -> Key:
        """The key under which the part is stored."""
        return self._key

    def __repr__(self) -> str:
        return f"<Part {self.name!r} of {self.flow_id!r} v{self.version}>"


@frozen
class Appended:
    """The result of an append: the `sequence` of its entry. Sequences in a log start at 1 and have no gaps.

    If `duplicate` is true, the log already had an entry with the same key, so nothing was written, and
    `sequence` is the sequence of that entry.
    """

    flow_id: str
    log: str
    sequence: int
    key: str | None = None
    duplicate: bool = False


@frozen
class LogEntry:
    """An entry of a log: its body, when it was written, and with which version of the flow."""

    sequence: int
    body: Any
    key: str | None
    at: datetime
    version: int | None
    """The version of the flow that the same commit wrote; `None` if the commit did not write the flow."""

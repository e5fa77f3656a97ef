"""What a codec of bodies is, and how it is given the place of a body."""

from __future__ import annotations

from functools import lru_cache
from typing import Any
from typing import NamedTuple
from typing import Protocol
from typing import runtime_checkable

__all__ = ["BodyCodec", "BodyPlace"]

_FORMAT = b"catga_store body 1"
_new: Any = tuple.__new__  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]  typeshed's generic


def _field(text: str) -> bytes:
    data = text.encode()
    return len(data).to_bytes(4, "big") + data


# What comes again and again is kept: making it for each body takes as long as decrypting 8 KiB.


@lru_cache(maxsize=4096)
def _fields(*texts: str) -> bytes:
    return b"".join([_field(text) for text in texts])


@lru_cache(maxsize=4096)
def _name_and_number(step: int, name: str, version: int | None) -> bytes:
    return _fields(str(step), name, "" if version is None else str(version))


@lru_cache(maxsize=4096)
def _child_and_codecs(child: str, success: bool | None, inner: tuple[str, ...]) -> bytes:  # noqa: FBT001  as it stands in the place
    return _fields(child, "" if success is None else str(success), *inner)


class BodyPlace(NamedTuple):
    """The place of a body: the record that it belongs to, and which of the record's bodies it is.

    `kind` is `flow`, `part`, `progress` or `wait`; an earlier version of a flow has the kind `flow`, too. The
    bodies of a `wait` are the results of its children, and its `flow_id` is the correlation id.
    """

    store: str
    """The kind and place of the store, such as `redis:dslflow:`. It does not change if a server or file is moved."""
    kind: str
    """`flow`, `part`, `progress` or `wait`."""
    flow_id: str
    """The id of the flow, or the correlation id of a `wait`."""
    step: int = 0
    """The step index of a `progress`."""
    name: str = ""
    """The name of a part."""
    version: int | None = None
    """`None` if the store counts the versions: for an overwritten part or progress, and for a result."""
    commit_id: str = ""
    """The id of the commit that wrote this version of the record; empty for a result."""
    child: str = ""
    """For a result, the id of its child."""
    success: bool | None = None
    """For a result, whether its child succeeded."""
    inner: tuple[str, ...] = ()
    """The names of the codecs that were applied before this one."""

    def associated_data(self) -> bytes:
        """Return the whole place as bytes. The bytes of any two places are different."""
        store, kind, flow_id, step, name, version, commit_id, child, success, inner = self
        return b"".join(
            (
                _FORMAT,
                _fields(store, kind),
                _field(flow_id),
                _name_and_number(step, name, version),
                _field(commit_id),
                _child_and_codecs(child, success, inner),
            )
        )

    def after(self, name: str) -> BodyPlace:
        """Return the place of the same body for the next codec."""
        return self.within((*self.inner, name))

    def within(self, inner: tuple[str, ...]) -> BodyPlace:
        """Return the place of the same body for a codec that follows the codecs `inner`."""
        place: BodyPlace = _new(BodyPlace, (*self[:-1], inner))  # half of what `_replace` costs
        return place


@runtime_checkable
class BodyCodec(Protocol):
    """The interface of a codec, which transforms bodies when they are written and read.

    A codec is an object that has these members. A subclass of this class has to define only `name`, `encode`
    and `decode`. The store calls `encode` and `decode` in the caller's thread or on the caller's event loop.
    They must not block, and several threads may call them at the same time.

    >>> import catga_store as cs
    >>> class Upside(cs.BodyCodec):
    ...     name = "upside"
    ...     def encode(self, data, place):
    ...         return "", data[::-1]
    ...     def decode(self, label, data, place):
    ...         return data[::-1]
    >>> store = cs.MemoryStore(codecs=[Upside()])
    >>> store.create(cs.FlowSnapshot("order-1", state={"paid": True}))
    >>> store.get_one("order-1").state
    {'paid': True}
    """

    name: str
    """1 to 32 characters from `a-z`, `0-9`, `_` and `-`. The name is stored with each body, so it must never change."""
    required: bool = False
    """Whether bodies that were written without this codec are refused."""
    binds: bool = False
    """Whether the encoding depends on the place, so that the body is written with every write of its record."""
    conceals: bool = False
    """Whether messages must not show any part of a body."""
    hides_error: bool = False
    """Whether the error of a flow, which is stored in the head, also goes through the codecs."""

    def encode(self, data: bytes, place: BodyPlace) -> tuple[str, bytes] | None:
        """Return `(label, encoded body)`, or `None` to leave the body as it is.

        The label is a string of up to 64 ASCII characters without `,` and `=`.
        """
        ...

    def decode(self, label: str, data: bytes, place: BodyPlace) -> bytes:
        """Return the body that was encoded; raise any exception if this is not possible."""
        ...

    def is_current(self, label: str, place: BodyPlace) -> bool:
        """Return whether a body with this label would be encoded in the same way now; `rewrap` calls this method."""
        del label, place
        return True

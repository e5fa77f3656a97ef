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
    """Which body of which record a codec is given.

    `kind` is `flow`, `part`, `progress` or `wait`; a former version of a flow is what it was, a `flow`. Of a
    `wait` the bodies are the results of its children, and `flow_id` is its correlation id.
    """

    store: str
    """Kind and place of the store, as in `redis:dslflow:`; it stays when a server or a file is moved."""
    kind: str
    flow_id: str
    step: int = 0
    name: str = ""
    """The name of a part."""
    version: int | None = None
    """`None` where the store counts it: an overwritten part or progress, and a result."""
    commit_id: str = ""
    """The commit that wrote the record in this version; empty for a result."""
    child: str = ""
    success: bool | None = None
    """How the child has ended whose result this is."""
    inner: tuple[str, ...] = ()
    """The codecs that were applied before, by name."""

    def associated_data(self) -> bytes:
        """Return all of it as bytes, those of two places never the same."""
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
        """Return the same for the next codec."""
        return self.within((*self.inner, name))

    def within(self, inner: tuple[str, ...]) -> BodyPlace:
        """Return the same for a codec that others were applied before."""
        place: BodyPlace = _new(BodyPlace, (*self[:-1], inner))  # half of what `_replace` costs
        return place


@runtime_checkable
class BodyCodec(Protocol):
    """What changes bodies on their way to a store and back: a class of yours that has these members.

    A subclass of this class needs only `name`, `encode` and `decode`. Both functions are called in the
    thread or on the event loop of the caller, must not block, and may be called by several threads at once.

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
    """1 to 32 of `a-z`, `0-9`, `_` and `-`; it is stored with each body, so it never changes."""
    required: bool = False
    """A body that was written without this codec is refused."""
    binds: bool = False
    """The encoding depends on the place, so the body is written with every write of its record."""
    conceals: bool = False
    """No message shows anything of a body."""
    hides_error: bool = False
    """The error of a flow, which is in its head, goes through the codecs, too."""

    def encode(self, data: bytes, place: BodyPlace) -> tuple[str, bytes] | None:
        """Return a label (ASCII, up to 64 characters, without `,` and `=`) and the encoded body.

        `None` leaves this body as it is.
        """
        ...

    def decode(self, label: str, data: bytes, place: BodyPlace) -> bytes:
        """Return what was encoded; raise any exception if that cannot be."""
        ...

    def is_current(self, label: str, place: BodyPlace) -> bool:
        """Return whether a body with this label would be encoded likewise now; `rewrap` asks."""
        del label, place
        return True

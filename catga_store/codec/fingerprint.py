"""A fingerprint of a state type: whether its declaration has changed since bytes were written.

A session compares the bytes of a state as it is now with the bytes that were loaded, to tell whether
it has changed. That only works if the type encodes as it did then: a type that has gained a field
makes other bytes of the same state. So each write stores the fingerprint of the type, and a flow
that is loaded under another one is encoded once more at once (`FlowSnapshot._baseline`), to have
something to compare with. Without this, every flow that is read after a deployment would count as
changed and be written by the next commit.

The fingerprint has no part in how a state is read. If it misses a difference, one unneeded write
follows, never a lost one.
"""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import typing
from typing import Any

import attrs

__all__ = ["fingerprint_of"]


def fingerprint_of(state_type: Any | None) -> str:
    """Eight hex digits that change with the fields of a type, at any depth; empty for no type."""
    if state_type is None:
        return ""

    described = _describe(state_type, set())
    return hashlib.blake2b(described.encode(errors="backslashreplace"), digest_size=4).hexdigest()


def _describe(kind: Any, seen: set[Any]) -> str:
    arguments = typing.get_args(kind)
    origin = typing.get_origin(kind)
    inner = ",".join(_describe(argument, seen) for argument in arguments)

    if origin is not None:
        return f"{_describe(origin, seen)}[{inner}]"

    if not isinstance(kind, type) or kind in seen:
        return repr(kind)

    seen.add(kind)
    described: Any = kind
    name: str = described.__qualname__
    if issubclass(described, enum.Enum):
        return f"{name}{[(member.name, member.value) for member in described]!r}"

    hints = _hints(described)
    fields = ",".join(
        f"{field}:{_describe(hints.get(field), seen)}" for field in _fields(described, hints)
    )
    return f"{name}({fields})" if fields else name


def _hints(kind: Any) -> dict[str, Any]:
    try:
        return typing.get_type_hints(kind)
    except (NameError, TypeError, AttributeError):
        return dict(getattr(kind, "__annotations__", {}))


def _fields(kind: Any, hints: dict[str, Any]) -> list[str]:
    if attrs.has(kind):
        return [field.name for field in attrs.fields(kind)]

    if dataclasses.is_dataclass(kind):
        return [field.name for field in dataclasses.fields(kind)]

    return sorted(hints) if typing.is_typeddict(kind) or hasattr(kind, "_fields") else []

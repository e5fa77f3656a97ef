"""A fingerprint of a state type: whether bytes were written by the type as it is today.

It says nothing about how a state is read. It only spares work: bytes that were written under the
same fingerprint are what their state encodes to today, so bytes that differ mean a change. A
fingerprint that misses a difference costs a write that was not needed, never a lost one.
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

"""What is stored about the type of a state: its name, version, arguments and fingerprint."""

from __future__ import annotations

import types
import typing
from typing import Any
from typing import NamedTuple

from catga_store.codec.fingerprint import fingerprint_of
from catga_store.codec.hooks import is_alias
from catga_store.codec.hooks import named_by_itself
from catga_store.codec.hooks import origin_of
from catga_store.codec.hooks import union_members

__all__ = ["Naming", "new_naming", "type_name", "type_version"]


class Naming(NamedTuple):
    """What is stored about the type of a state.

    `arguments` are those of a generic class, as in `[str]`; empty for any other type.
    """

    name: str
    version: int
    arguments: str
    fingerprint: str


def new_naming(state_type: Any | None) -> Naming:
    """Work out the naming of a state type; of no type, it is empty and version 1."""
    arguments = typing.get_args(state_type)
    return Naming(
        type_name(state_type),
        type_version(state_type),
        f"[{', '.join(map(_argument, arguments))}]" if arguments else "",
        fingerprint_of(state_type),
    )


def type_name(state_type: Any | None) -> str:
    """Return the name a type is stored under: `""` for plain JSON data.

    It is the class's `__qualname__`, or what `flow_state` has named it: the first of the pair in
    its own `__flow_type__`, which a subclass does not inherit. The arguments of a generic class
    are not part of it.
    """
    if state_type is None:
        return ""

    cls = origin_of(state_type)
    named = named_by_itself(cls)
    return str(named[0]) if named else str(cls.__qualname__)


def type_version(state_type: Any | None) -> int:
    """Return the version of a type: 1, or the second of the pair in its own `__flow_type__`."""
    if state_type is None:
        return 1

    named = named_by_itself(origin_of(state_type))
    return int(named[1]) if named else 1


def _argument(declared: Any) -> str:
    """Name an argument, so that the name stays when a module moves or a union is put in order."""
    origin = typing.get_origin(declared)
    if origin is typing.Annotated or isinstance(declared, typing.NewType) or is_alias(declared):
        return _argument(next(iter(union_members(declared))))

    if origin in (typing.Union, types.UnionType):
        return " | ".join(sorted(map(_argument, union_members(declared))))

    if declared in (None, types.NoneType):
        return "None"

    if origin is None or origin is typing.Literal:
        is_class = isinstance(declared, type)
        return type_name(declared) if is_class else repr(declared).removeprefix("typing.")

    inner = typing.get_args(declared)
    return f"{type_name(declared)}[{', '.join(map(_argument, inner))}]"

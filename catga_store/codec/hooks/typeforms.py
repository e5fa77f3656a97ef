"""What declarations mean: which class they name, what they wrap, what their type variables stand for.

Nothing here knows values or JSON.
"""

from __future__ import annotations

import dataclasses
import inspect
import sys
import types
import typing
from collections.abc import Iterator
from typing import Any

from catga_store.codec.hooks.base import NONE
from catga_store.codec.hooks.base import Unkept
from catga_store.codec.hooks.base import name_part

__all__ = [
    "alias_value",
    "declaring_typeddict",
    "is_alias",
    "is_attrs",
    "is_dataclass",
    "is_namedtuple",
    "is_typeddict",
    "label_of",
    "marked",
    "named_by_itself",
    "origin_of",
    "own_annotations",
    "resolve",
    "substitute",
    "union_members",
    "variables_by_class",
]


def is_attrs(cls: object) -> bool:
    """Whether this is an attrs class; attrs need not be imported to tell."""
    return isinstance(cls, type) and isinstance(getattr(cls, "__attrs_attrs__", None), tuple)


def is_dataclass(cls: object) -> bool:
    """Whether this is a dataclass, not an instance of one."""
    return isinstance(cls, type) and dataclasses.is_dataclass(cls)


def is_typeddict(cls: Any) -> bool:
    """Whether this is a TypedDict, also one of `typing_extensions`."""
    return _is_subclass(cls, dict) and hasattr(cls, "__required_keys__")


def is_namedtuple(cls: Any) -> bool:
    """Whether this is a NamedTuple, or a `collections.namedtuple`."""
    return _is_subclass(cls, tuple) and hasattr(cls, "_fields")


def is_alias(declared: object) -> bool:
    """Whether this is what a `type` statement makes, also with arguments."""
    return type(origin_of(declared)).__name__ == "TypeAliasType"


def _is_subclass(cls: Any, base: type) -> bool:
    return isinstance(cls, type) and issubclass(cls, base)


def origin_of(declared: Any) -> Any:
    """Return the class of a generic alias, and anything else as it is."""
    return typing.get_origin(declared) or declared


def label_of(declared: Any) -> str:
    """Name a declared type as its author would."""
    if typing.get_origin(declared) is None and isinstance(declared, type):
        return declared.__qualname__

    return str(declared).replace("typing.", "")


def named_by_itself(cls: Any) -> tuple[Any, ...] | None:
    """Return a class's own `__flow_type__`; a subclass does not inherit it."""
    named: tuple[Any, ...] | None = cls.__dict__.get("__flow_type__")
    return named


# --- what stands for something else ---------------------------------------------------------------


def alias_value(declared: Any) -> Any:
    """Return what an alias stands for, with its arguments in place."""
    alias = origin_of(declared)
    variables = dict(zip(alias.__type_params__, typing.get_args(declared), strict=False))
    return substitute(alias.__value__, variables)


def union_members(declared: Any) -> Iterator[Any]:
    """List the members of a union, those of unions inside it too, all literals as one."""
    literals: list[Any] = []
    plain: list[Any] = []
    for member in _flat(declared):
        if typing.get_origin(member) is typing.Literal:
            literals += typing.get_args(member)
        else:
            yield member
            plain.append(member)

    if None in plain or NONE in plain:  # `Literal["a", None] | None`
        literals = [value for value in literals if value is not None]

    if literals:
        yield typing.Literal[tuple(literals)]


def _flat(declared: Any) -> Iterator[Any]:
    if isinstance(declared, typing.NewType):
        yield from _flat(declared.__supertype__)
    elif is_alias(declared):
        yield from _flat(alias_value(declared))
    elif typing.get_origin(declared) is typing.Annotated:
        yield from _flat(typing.get_args(declared)[0])
    elif typing.get_origin(declared) in (typing.Union, types.UnionType):
        for member in typing.get_args(declared):
            yield from _flat(member)
    else:
        yield declared


def marked(hint: Any, *, required: bool) -> tuple[Any, bool]:
    """Return the type of a key of a TypedDict without its markers, and whether it is required.

    `required` is what `__required_keys__` says, which misses markers in postponed annotations.
    """
    while True:
        marker = typing.get_origin(hint)
        if marker in (typing.Required, typing.NotRequired):
            required = marker is typing.Required
        elif getattr(marker, "__name__", getattr(marker, "_name", "")) != "ReadOnly":
            return hint, required

        hint = typing.get_args(hint)[0]


# --- variables and annotations --------------------------------------------------------------------


def substitute(declared: Any, variables: dict[Any, Any]) -> Any:
    """Replace the type variables of a generic class by its arguments."""
    if isinstance(declared, typing.TypeVar):
        return variables.get(declared, declared)

    parameters: tuple[Any, ...] = getattr(declared, "__parameters__", ())
    if not parameters or isinstance(declared, type):
        return declared

    return declared[tuple(variables.get(p, p) for p in parameters)]


def variables_by_class(declared: Any) -> dict[Any, dict[Any, Any]]:
    """For a class and each of its bases: what its own type variables stand for."""
    cls = origin_of(declared)
    variables = dict(
        zip(getattr(cls, "__parameters__", ()), typing.get_args(declared), strict=False)
    )
    found = {cls: variables}
    for base in cls.__dict__.get("__orig_bases__", cls.__bases__):
        if typing.get_origin(base) not in (typing.Generic, typing.Protocol) and (
            isinstance(origin_of(base), type)
        ):
            found |= variables_by_class(substitute(base, variables))

    return found


def declaring_typeddict(cls: Any, name: str) -> Any:
    """Find the TypedDict that declares a key: those of its bases are copied into every one."""
    bases: tuple[Any, ...] = cls.__dict__.get("__orig_bases__", ())
    for base in map(origin_of, bases):
        if is_typeddict(base) and name in base.__annotations__:
            return declaring_typeddict(base, name)

    return cls


def own_annotations(cls: type) -> dict[str, Any]:
    """Return the annotations of a class itself, not of its bases, without evaluating strings."""
    if sys.version_info >= (3, 14):  # pragma: no cover  measured on an older Python
        import annotationlib

        return annotationlib.get_annotations(cls, format=annotationlib.Format.FORWARDREF)

    return inspect.get_annotations(cls)


def resolve(owner: type, name: str, raw: Any) -> Any:
    """Evaluate one annotation in the scope in which it was written.

    A local class only knows the names of its module, its own, and those of classes inside it.
    """
    holder = type("_", (), {"__annotations__": {name: raw}, "__module__": owner.__module__})
    inside = {key: value for key, value in vars(owner).items() if isinstance(value, type)}
    try:
        return typing.get_type_hints(
            holder, localns=inside | {owner.__name__: owner}, include_extras=True
        )[name]
    except Exception as error:
        why = (
            f"the annotation cannot be evaluated ({type(error).__name__}: {error}); use only "
            "names that are defined in the module or in the class itself"
        )
        raise Unkept(raw, why, name_part(name)) from error

"""What all hooks share: what a hook is, the two ways it fails, and how errors describe values.

A value that does not fit its declared type is a `Misfit`; a declared type whose values can never be
kept is an `Unkept`. Neither leaves the package: they become an `EncodingError` or a `StateTypeError`.
"""

from __future__ import annotations

import enum
import functools
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from datetime import datetime
from datetime import time
from datetime import timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

__all__ = [
    "INTEGER",
    "LIST",
    "MAX_LEVELS",
    "NONE",
    "OBJECT",
    "TEXT",
    "Dec",
    "Enc",
    "Hooks",
    "Kind",
    "Misfit",
    "Unkept",
    "advice_for",
    "at",
    "describe",
    "json_errors",
    "json_functions",
    "key_part",
    "kind_of",
    "name_part",
]

MAX_LEVELS = 100
"""How deep data may be nested. One level is one list or object of the JSON."""

NONE = type(None)

Kind = type[Any]
"""The class of a JSON value: str, int, float, bool, NoneType, list or dict."""

TEXT: frozenset[Kind] = frozenset((str,))
INTEGER: frozenset[Kind] = frozenset((int,))
LIST: frozenset[Kind] = frozenset((list,))
OBJECT: frozenset[Kind] = frozenset((dict,))

Enc = Callable[[Any], Any]
Dec = Callable[[Any, Any], Any]
"""It takes the second argument that cattrs gives to hooks, and does not use it."""


@dataclass(frozen=True, slots=True)
class Hooks:
    """What is known about one type.

    `enc` may return an object whose JSON msgspec writes faster than Python does; `text` returns
    the same as text, for keys and for sorting. `distinct`: values that differ are certain to differ
    when they are read back, so that they may be elements of a set, or keys, without a check.
    """

    label: str
    classes: frozenset[type]  # of the values it takes; none: whatever JSON has
    kinds: frozenset[Kind]  # of the JSON values it makes
    enc: Enc
    dec: Dec
    text: Callable[[Any], str] | None = None  # None: what `enc` returns is it
    distinct: bool = False


class Misfit(Exception):  # noqa: N818  no user sees it: it becomes one of the package's errors
    """A value does not fit its declared type; `parts` is the path, innermost first."""

    def __init__(self, expected: str, found: str, why: str = "") -> None:
        super().__init__(expected, found, why)
        self.expected = expected
        self.found = found
        self.why = why
        self.parts: list[str] = []

    @property
    def path(self) -> str:
        """Where it is, as in `$.items[2].price`."""
        return "$" + "".join(reversed(self.parts))


class Unkept(Exception):  # noqa: N818  as above
    """Values of a declared type can never be kept; `part` is the step of the path where it is."""

    def __init__(self, declared: Any, why: str, part: str = "") -> None:
        super().__init__(declared, why, part)
        self.declared = declared
        self.why = why
        self.part = part


@functools.cache
def json_functions() -> tuple[Callable[[Any], bytes], Callable[[Any], Any]]:
    """Return msgspec's JSON encoder and decoder, imported on first use."""
    import msgspec.json

    return msgspec.json.encode, msgspec.json.decode


@functools.cache
def json_errors() -> tuple[type[Exception], ...]:
    """Return what the decoder raises for bytes that are not JSON."""
    import msgspec

    return ValueError, msgspec.MsgspecError  # which was no ValueError in 0.19


# --- words --------------------------------------------------------------------------------------

_KINDS: dict[Kind, str] = {
    dict: "an object",
    list: "a list",
    str: "a string",
    int: "an integer",
    float: "a float",
    bool: "a bool",
    NONE: "null",
}

_LONG = 10**20  # integers from here on are not shown: Python refuses to write the longest
_ADVICE = {
    (
        "pydantic",
        "BaseModel",
    ): "pydantic models are not supported; store model.model_dump(mode='json')"
    " as plain data and read it with Model.model_validate, or make the class a dataclass",
    (
        "msgspec",
        "Struct",
    ): "msgspec.Struct is not supported; store msgspec.to_builtins(state) as plain"
    " data and read it with msgspec.convert, or make the class a dataclass",
}

# Keys of these classes are shown in a path: they are short, and tell keys apart.
_SHOWN = {NONE, bool, int, float, str, bytes, datetime, date, time, timedelta, Decimal, UUID}


def describe(value: Any) -> str:
    """Name the class of a value, and the value itself if it is a number: text may be a secret."""
    cls = value.__class__
    if value is None:
        return "None"

    if cls is bool or cls is float or (cls is int and abs(value) < _LONG):
        return f"{cls.__name__} {value!r}"

    return _class_name(cls)


def advice_for(cls: Any) -> str:
    """Say what to do with a class of a library that has its own encoding; empty for any other."""
    if hasattr(cls, "__is_pydantic_dataclass__"):
        return "pydantic dataclasses are not supported; use a dataclass from the standard library"

    for base in getattr(cls, "__mro__", ()):
        advice = _ADVICE.get((base.__module__.partition(".")[0], base.__qualname__))
        if advice:
            return advice

    return ""


def kind_of(value: Any) -> str:
    """Name the kind of a JSON value the way JSON does."""
    return _KINDS.get(value.__class__) or _class_name(value.__class__)


def name_part(name: str) -> str:
    """Return a name as a step of a path."""
    return f".{name}" if name.isidentifier() else f"[{name!r}]"


def key_part(key: Any) -> str:
    """Return a key of a dict as a step of a path; of a key that is not a scalar, only its class."""
    if isinstance(key, enum.Enum):
        return f"[{key.__class__.__name__}.{key.name}]"

    if isinstance(key, str):
        return name_part(str.__str__(key))

    if key.__class__ not in _SHOWN or (isinstance(key, int) and abs(key) >= _LONG):
        return f"[<{_class_name(key.__class__)}>]"

    return f"[{key!r}]"


def at(error: Exception, part: str) -> Exception:
    """Return an error as a `Misfit`, with one more step in front of its path."""
    if isinstance(error, RecursionError):
        return error

    if not isinstance(error, Misfit):
        cause = error
        error = Misfit("a value that its type accepts", f"{type(cause).__name__}: {cause}")
        error.__cause__ = cause

    error.parts.append(part)
    return error


def _class_name(cls: type) -> str:
    name = cls.__qualname__
    return name if cls.__module__ == "builtins" else f"{cls.__module__}.{name}"

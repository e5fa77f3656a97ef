"""Hooks between the values of a declared type and JSON data, strict in both directions.

`build(state_type)` answers a `Codec`. Its functions for attrs classes and dataclasses are the ones
cattrs generates, over fields whose types were resolved here and whose hooks are all ours: those of
cattrs convert (`int("3")`, `list((1, 2))`), and ours must refuse. Every hook checks the class of
what it is given by identity, so that a bool is no int and a subclass is not its base.

Nobody pays for errors that do not happen: generated functions do not know where they are, so when
one fails the same type is built again in *explaining* form, whose class functions are plain loops
that track the path, and the value is walked a second time.

This file is over 400 lines because the hooks of all supported types refer to each other and to
one builder; a reader looks up one type at a time.
"""

# Whatever a value's own code raises becomes an error with its path: BLE001. It is the same error,
# one step longer, at every level: B904. The length of a list so far is the index of an error, and
# errors are raised where the path is put together: PERF401, TRY301.

from __future__ import annotations

import base64
import binascii
import dataclasses
import enum
import functools
import inspect
import math
import sys
import types
import typing
from collections import abc
from datetime import UTC
from datetime import date
from datetime import datetime
from datetime import time
from datetime import timedelta
from decimal import Decimal
from typing import TYPE_CHECKING
from typing import Any
from uuid import UUID

from catga_store.errors import EncodingError

if TYPE_CHECKING:
    from collections.abc import Callable
    from collections.abc import Iterable
    from collections.abc import Iterator

__all__ = ["MAX_LEVELS", "Codec", "Misfit", "build", "check_json", "json_functions", "kind_of"]

MAX_LEVELS = 100
"""How deep data may be nested. One level is one list or object of the JSON."""

_TOO_HIGH = 10**4300  # Python reads and writes no longer integers unless its limit is raised
_TOO_LOW = -_TOO_HIGH

_TAG = "$type"
_VALUE = "value"
_NONE = type(None)
_MISSING: Any = object()

_HARMLESS = frozenset((str, bool, _NONE))
_PLAIN = _HARMLESS | {int, float}

Kind = type  # the class of a JSON value: str, int, float, bool, NoneType, list or dict


class Misfit(Exception):
    """A value and its declared type do not go together; `parts` is the path, innermost first."""

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


@dataclasses.dataclass(frozen=True, slots=True)
class Hooks:
    """What the builder knows about one type.

    `enc` may answer an object whose JSON msgspec writes faster than Python does. `text` answers
    the same as text, for keys and for putting in order. `dec` takes the second argument that
    cattrs gives to hooks, and does not use it.
    """

    label: str
    classes: frozenset[type]  # of the values it takes
    kinds: frozenset[Kind]  # of the JSON values it makes
    enc: Callable[[Any], Any]
    dec: Callable[[Any, Any], Any]
    text: Callable[[Any], str] | None = None  # None: what `enc` answers is it


@dataclasses.dataclass(frozen=True, slots=True)
class Codec:
    """The two functions of one type. `unbounded`: the type does not limit how deep values go."""

    enc: Callable[[Any], Any]
    dec: Callable[[Any, Any], Any]
    unbounded: bool


@dataclasses.dataclass(frozen=True, slots=True)
class _Field:
    """A field as cattrs' generators read it; `default` is `NOTHING` or anything else."""

    name: str
    alias: str
    type: Any
    default: Any
    init: bool
    kw_only: bool = True
    converter: None = None


@functools.cache
def json_functions() -> tuple[Callable[[Any], bytes], Callable[[Any], Any]]:
    """Answer msgspec's JSON encoder and decoder, imported on first use."""
    import msgspec.json

    return msgspec.json.encode, msgspec.json.decode


# --- what errors say ----------------------------------------------------------------------------


def describe(value: object) -> str:
    """Name the class of a value, and the value itself if it is a number: texts may be secrets."""
    cls = value.__class__
    if value is None:
        return "None"

    if cls is bool or cls is float or (cls is int and abs(value) < 10**20):  # type: ignore[arg-type]  # mypy: no narrowing by `is`
        return f"{cls.__name__} {value!r}"

    return _class_name(cls)


def kind_of(value: object) -> str:
    """Name the kind of a JSON value the way JSON does."""
    names = {dict: "an object", list: "a list", str: "a text", bool: "a bool", _NONE: "null"}
    names |= {int: "an integer", float: "a float"}
    return names.get(value.__class__, _class_name(value.__class__))


def _class_name(cls: type) -> str:
    return (
        cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"
    )


def _name_part(name: str) -> str:
    return f".{name}" if name.isidentifier() else f"[{name!r}]"


def _key_part(key: object) -> str:
    """Write a key of a dict as a step of a path; of a key that is no scalar, only its class."""
    if isinstance(key, str) and not isinstance(key, enum.Enum):
        return _name_part(str.__str__(key))

    if key.__class__ in _SCALARS:
        return f"[{key!r}]"

    if isinstance(key, enum.Enum):
        return f"[{key.__class__.__name__}.{key.name}]"

    return f"[<{_class_name(key.__class__)}>]"


def _at(error: Exception, part: str) -> Exception:
    """Put one more step in front of the path of an error, making it a `Misfit` first."""
    if isinstance(error, RecursionError):
        return error

    if not isinstance(error, Misfit):
        cause = error
        error = Misfit("a value its type takes", f"{type(cause).__name__}: {cause}")
        error.__cause__ = cause

    error.parts.append(part)
    return error


# --- plain JSON data ----------------------------------------------------------------------------


def check_json(value: object, active: set[int], explain: bool) -> None:
    """Raise `Misfit` unless `value` is plain JSON data. `active` holds the containers around it.

    Texts that UTF-8 cannot carry are left to the encoder, unless their place is asked for.
    """
    cls = value.__class__
    if cls is int and _TOO_LOW < value < _TOO_HIGH:  # type: ignore[operator]  # mypy: `cls is int` does not narrow
        return

    if cls is list:
        _enter(value, active)
        index = 0
        try:
            for item in value:  # type: ignore[attr-defined]  # mypy: `cls is list` does not narrow
                if explain or item.__class__ not in _HARMLESS:
                    check_json(item, active, explain)

                index += 1
        except Exception as error:
            raise _at(error, f"[{index}]")

        active.discard(id(value))
    elif cls is dict:
        _enter(value, active)
        key: object = None
        try:
            for key, item in value.items():  # type: ignore[attr-defined]  # mypy: as above
                if key.__class__ is not str:
                    raise Misfit("a key that is a str", describe(key), "JSON would make it a text")

                if explain:
                    _check_text(key)
                    check_json(item, active, explain)
                elif item.__class__ not in _HARMLESS:
                    check_json(item, active, explain)
        except Exception as error:
            raise _at(error, _key_part(key))

        active.discard(id(value))
    elif cls is int:
        _check_int(value)
    elif cls is float:
        _check_float(value)
    elif cls is str:
        if explain:
            _check_text(value)
    elif cls is not bool and value is not None:
        expected = "plain JSON data (None, bool, int, float, str, list, dict with str keys)"
        raise Misfit(
            expected, describe(value), "it would come back as something else or not at all"
        )


def _enter(value: object, active: set[int]) -> None:
    if id(value) in active:
        raise Misfit("data without cycles", f"a {type(value).__name__} that contains itself")

    if len(active) >= MAX_LEVELS:
        raise Misfit(f"at most {MAX_LEVELS} levels of nesting", "more")

    active.add(id(value))


def _check_int(value: Any) -> Any:
    if not _TOO_LOW < value < _TOO_HIGH:
        raise Misfit(
            "an int of at most 4300 digits", "a longer one", "Python would not read it back"
        )

    return value


def _check_float(value: Any) -> None:
    if not math.isfinite(value):
        raise Misfit("a finite float", repr(value), "JSON has no such number")


def _check_text(value: Any) -> None:
    try:
        value.encode()
    except UnicodeEncodeError as error:
        found = f"a lone surrogate at index {error.start}"
        raise Misfit("text that UTF-8 can carry", found) from None


# --- single values ------------------------------------------------------------------------------


def _leaf(cls: type, kind: Kind, to: Callable[[Any], Any], back: Callable[[Any], Any]) -> Hooks:
    """Make the hooks of a class whose values become single JSON values of one kind."""
    label = cls.__qualname__

    def enc(value: Any) -> Any:
        if value.__class__ is not cls:
            raise Misfit(label, describe(value))

        return to(value)

    def dec(value: Any, _: Any) -> Any:
        if value.__class__ is not kind:
            raise Misfit(label, kind_of(value))

        try:
            return back(value)
        except Exception as error:
            raise Misfit(label, f"{kind_of(value)} that is none") from error

    return Hooks(label, frozenset((cls,)), frozenset((kind,)), enc, dec)


def _native(hooks: Hooks) -> Hooks:
    """Leave the values of a class to msgspec, which writes the same text."""
    (cls,) = hooks.classes
    label = hooks.label

    def enc(value: Any) -> Any:
        if value.__class__ is not cls:
            raise Misfit(label, describe(value))

        return value

    return dataclasses.replace(hooks, enc=enc, text=hooks.enc)


def _same(cls: type) -> Hooks:
    """Make the hooks of a class that JSON has too."""
    label = "None" if cls is _NONE else cls.__name__

    def plain(value: Any, _: Any = None) -> Any:
        if value.__class__ is not cls:
            raise Misfit(label, describe(value))

        return value

    kinds = frozenset((cls,))
    return Hooks(label, kinds, kinds, plain, plain)


def _checked(cls: type, check: Callable[[Any], None]) -> Hooks:
    """Make the hooks of a class that JSON has too, but not all of its values."""
    hooks = _same(cls)

    def enc(value: Any) -> Any:
        if value.__class__ is not cls:
            raise Misfit(hooks.label, describe(value))

        check(value)
        return value

    return dataclasses.replace(hooks, enc=enc)


def _encode_int(value: Any) -> Any:
    if value.__class__ is int and _TOO_LOW < value < _TOO_HIGH:
        return value

    if value.__class__ is not int:
        raise Misfit("int", describe(value))

    return _check_int(value)


def _encode_bytes(value: bytes) -> str:
    return binascii.b2a_base64(value, newline=False).decode("ascii")


def _decode_bytes(text: str) -> bytes:
    return base64.b64decode(text, validate=True)


_FOLD = " fold=1"


def _encode_datetime(value: Any) -> Any:
    if value.__class__ is not datetime:
        raise Misfit("datetime", describe(value))

    tz = value.tzinfo
    if tz is UTC or (tz is None and not value.fold):
        return value  # msgspec writes these as below, and much faster

    return _datetime_text(value)


def _datetime_text(value: Any) -> str:
    if value.__class__ is not datetime:
        raise Misfit("datetime", describe(value))

    text: str = value.isoformat()
    if value.tzinfo is None:
        return text + _FOLD if value.fold else text

    _check_offset("datetime", value.utcoffset())
    return text.removesuffix("+00:00") + "Z" if text.endswith("+00:00") else text


def _decode_datetime(value: Any, _: Any) -> Any:
    if value.__class__ is not str:
        raise Misfit("datetime", kind_of(value))

    try:
        if value[10] == "T":  # else it is a date, which `fromisoformat` takes for midnight
            return datetime.fromisoformat(value)
    except (ValueError, IndexError):
        if value.endswith(_FOLD):
            return _decode_datetime(value.removesuffix(_FOLD), None).replace(fold=1)

    raise Misfit("datetime", "a text that is none")


def _encode_time(value: time) -> str:
    if value.tzinfo is None:
        return value.isoformat() + _FOLD if value.fold else value.isoformat()

    _check_offset("time", value.utcoffset())
    return value.isoformat()


def _check_offset(label: str, offset: timedelta | None) -> None:
    if offset is None:
        raise Misfit(label, "one whose tzinfo answers no offset", "it would come back naive")

    if offset and abs(offset) < timedelta(seconds=1):  # as CPython 3.11 does
        raise Misfit(label, "an offset below a second", "`fromisoformat` would read it as UTC")


def _decode_time(text: str) -> time:
    if text.endswith(_FOLD):
        return time.fromisoformat(text.removesuffix(_FOLD)).replace(fold=1)

    return time.fromisoformat(text)


def _encode_timedelta(value: timedelta) -> int:
    return (value.days * 86_400 + value.seconds) * 1_000_000 + value.microseconds


def _decode_timedelta(microseconds: int) -> timedelta:
    days, rest = divmod(microseconds, 86_400_000_000)
    return timedelta(days=days, microseconds=rest)


def _decode_decimal(value: Any, _: Any) -> Any:
    if value.__class__ is not str:
        raise Misfit("Decimal", kind_of(value))

    try:
        number = Decimal(value)
    except ArithmeticError:
        raise Misfit("Decimal", "a text that is none") from None

    if number.is_nan() and "NaN" not in value:  # where InvalidOperation is not trapped
        raise Misfit("Decimal", "a text that is none")

    return number


_TEXT: frozenset[type] = frozenset((str,))
_INTEGER: frozenset[type] = frozenset((int,))
_LEAVES: dict[Any, Hooks] = {
    _NONE: _same(_NONE),
    bool: _same(bool),
    int: dataclasses.replace(_same(int), enc=_encode_int),
    float: _checked(float, _check_float),
    str: _same(str),
    bytes: _leaf(bytes, str, _encode_bytes, _decode_bytes),
    datetime: Hooks(
        "datetime",
        frozenset((datetime,)),
        _TEXT,
        _encode_datetime,
        _decode_datetime,
        _datetime_text,
    ),
    date: _leaf(date, str, date.isoformat, date.fromisoformat),
    time: _leaf(time, str, _encode_time, _decode_time),
    timedelta: _leaf(timedelta, int, _encode_timedelta, _decode_timedelta),
    Decimal: dataclasses.replace(_native(_leaf(Decimal, str, str, str)), dec=_decode_decimal),
    UUID: _native(_leaf(UUID, str, str, UUID)),
}
_SCALARS = frozenset(_LEAVES)
_EXPLAINED_STR = _checked(str, _check_text)

_LISTS = (list, abc.Sequence, abc.MutableSequence, abc.Collection, abc.Iterable, abc.Container)
_DICTS = (dict, abc.Mapping, abc.MutableMapping)
_SETS = (set, abc.Set, abc.MutableSet)


def _decode_any(value: Any, _: Any) -> Any:
    return value


# --- types --------------------------------------------------------------------------------------


def is_attrs(cls: object) -> bool:
    """Say whether this is an attrs class; attrs itself need not be imported for that."""
    return isinstance(cls, type) and isinstance(getattr(cls, "__attrs_attrs__", None), tuple)


def is_dataclass(cls: object) -> bool:
    """Say whether this is a dataclass, not an instance of one."""
    return isinstance(cls, type) and dataclasses.is_dataclass(cls)


def is_typeddict(cls: object) -> bool:
    """Say whether this is a TypedDict, also one of `typing_extensions`."""
    return isinstance(cls, type) and issubclass(cls, dict) and hasattr(cls, "__required_keys__")


def origin_of(declared: Any) -> Any:
    """Answer the class of a generic alias, anything else as it is."""
    return typing.get_origin(declared) or declared


def _is_namedtuple(cls: object) -> bool:
    return isinstance(cls, type) and issubclass(cls, tuple) and hasattr(cls, "_fields")


def _label(declared: Any) -> str:
    if declared is _NONE:
        return "None"

    if typing.get_origin(declared) is None and isinstance(declared, type):
        return declared.__qualname__

    return str(declared).replace("typing.", "")


def _substitute(declared: Any, variables: dict[Any, Any]) -> Any:
    """Put the arguments of a generic class in the place of its type variables."""
    if isinstance(declared, typing.TypeVar):
        return variables.get(declared, declared)

    parameters = getattr(declared, "__parameters__", ())
    if not parameters or isinstance(declared, type):
        return declared

    return declared[tuple(variables.get(p, p) for p in parameters)]


def _variables_by_class(declared: Any) -> dict[type, dict[Any, Any]]:
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
            found |= _variables_by_class(_substitute(base, variables))

    return found


def _typeddict_owner(cls: Any, name: str) -> Any:
    """Find the TypedDict that declares a key: those of its bases are copied into every one."""
    for base in map(origin_of, vars(cls).get("__orig_bases__", ())):
        if is_typeddict(base) and name in base.__annotations__:
            return _typeddict_owner(base, name)

    return cls


def _own_annotations(cls: type) -> dict[str, Any]:
    if sys.version_info >= (3, 14):
        import annotationlib

        return annotationlib.get_annotations(cls, format=annotationlib.Format.FORWARDREF)

    return inspect.get_annotations(cls)


# --- the builder --------------------------------------------------------------------------------


def build(state_type: Any, *, explain: bool = False) -> Codec:
    """Make the functions of a type; `EncodingError` names the field that can never be kept.

    With `explain` they are slow, track the path and cycles, and serve one call.
    """
    builder = _Builder(explain=explain)
    try:
        hooks = builder.hooks(state_type)
    except EncodingError:
        raise
    except RecursionError:
        raise builder.refuse(state_type, "it has no end, or the call stack is too deep") from None
    except Exception as error:
        raise builder.refuse(state_type, f"{type(error).__name__}: {error}") from error

    return Codec(hooks.enc, hooks.dec, builder.unbounded)


class _Builder:
    """One building of one type. Nothing is shared between two, so equal names never meet."""

    def __init__(self, *, explain: bool) -> None:
        self.explain = explain
        self.unbounded = False
        self._path: list[str] = []
        self._known: dict[Any, Hooks] = {}
        self._unfinished: set[Any] = set()
        self._active: set[int] = set()

    def refuse(self, declared: Any, why: str) -> EncodingError:
        path = "$" + "".join(self._path[:20])  # where it stopped: `under` leaves it there
        message = f"{path} is declared {_label(declared)}, which cannot be kept: {why}; nothing was encoded or decoded"
        return EncodingError(message, path=path)

    def under(self, part: str, declared: Any) -> Hooks:
        self._path.append(part)
        hooks = self.hooks(declared)
        self._path.pop()
        return hooks

    def hooks(self, declared: Any) -> Hooks:
        """Find out what a declared type is and make its hooks."""
        if declared is None:
            declared = _NONE

        if declared is str and self.explain:
            return _EXPLAINED_STR

        if isinstance(declared, type) and declared in _LEAVES:
            return _LEAVES[declared]

        if declared is Any or declared is object:
            return self._any()

        if isinstance(declared, typing.TypeVar):
            return self._type_variable(declared)

        if isinstance(declared, typing.NewType):
            return self.hooks(declared.__supertype__)

        origin = typing.get_origin(declared)
        if origin in (typing.Annotated, typing.Final, typing.Required, typing.NotRequired):
            return self.hooks(typing.get_args(declared)[0])

        if type(origin or declared).__name__ == "TypeAliasType":
            return self._once(declared, self._alias)

        if origin is typing.Literal:
            return self._literal(declared)

        if origin in (typing.Union, types.UnionType):
            return self._union(declared)

        cls = origin or declared
        arguments = typing.get_args(declared)
        if cls in _LISTS:
            return self._guarded(self._list(*arguments or (Any,)))

        if cls is tuple:
            return self._guarded(self._tuple(declared, arguments))

        if cls in _SETS or cls is frozenset:
            return self._guarded(
                self._set(frozenset if cls is frozenset else set, *arguments or (Any,))
            )

        if cls in _DICTS:
            return self._guarded(self._dict(*arguments or (str, Any)))

        if isinstance(cls, type) and issubclass(cls, enum.Enum):
            return self._flag(cls) if issubclass(cls, enum.Flag) else self._enum(cls)

        if is_typeddict(cls):
            return self._once(declared, self._typeddict)

        if is_attrs(cls) or is_dataclass(cls):
            return self._once(declared, self._class)

        if _is_namedtuple(cls):
            return self._once(declared, self._namedtuple)

        why = "it is none of the types whose values come back exactly"
        if isinstance(declared, str | typing.ForwardRef):
            why = "the name could not be resolved"

        raise self.refuse(declared, why)

    # -- recursion

    def _once(self, declared: Any, make: Callable[[Any], Hooks]) -> Hooks:
        """Make hooks once per type and building; a type inside itself gets hooks that look them up."""
        try:
            known = self._known.get(declared)
        except TypeError:  # an argument that does not hash, such as metadata of Annotated
            return self._guarded(make(declared))

        if known is not None:
            self.unbounded = self.unbounded or declared in self._unfinished
            return known

        cls = origin_of(declared)
        self._known[declared] = Hooks(
            _label(declared),
            frozenset((dict if is_typeddict(cls) else cls,)),
            frozenset((dict,)),
            lambda value: self._known[declared].enc(value),
            lambda value, _: self._known[declared].dec(value, None),
        )
        self._unfinished.add(declared)
        self._known[declared] = hooks = self._guarded(make(declared))
        self._unfinished.discard(declared)
        return hooks

    def _guarded(self, hooks: Hooks) -> Hooks:
        """When explaining: watch for values inside themselves and for too many levels."""
        if not self.explain:
            return hooks

        active = self._active

        def enc(value: Any) -> Any:
            _enter(value, active)
            try:
                return hooks.enc(value)
            finally:
                active.discard(id(value))

        return dataclasses.replace(hooks, enc=enc)

    # -- plain data, variables, aliases

    def _any(self) -> Hooks:
        explain = self.explain
        around = self._active
        self.unbounded = True

        def enc(value: Any) -> Any:
            check_json(value, set(around), explain)
            return value

        return Hooks("plain JSON data", frozenset(), frozenset(), enc, _decode_any)

    def _type_variable(self, variable: Any) -> Hooks:
        if variable.__constraints__:
            return self.hooks(typing.Union[variable.__constraints__])

        return self.hooks(Any if variable.__bound__ is None else variable.__bound__)

    def _alias(self, declared: Any) -> Hooks:
        alias = typing.get_origin(declared) or declared
        variables = dict(zip(alias.__type_params__, typing.get_args(declared), strict=False))
        return self.hooks(_substitute(alias.__value__, variables))

    # -- containers

    def _list(self, element: Any) -> Hooks:
        hooks = self.under("[*]", element)
        inner_enc, inner_dec = hooks.enc, hooks.dec
        label = f"list[{hooks.label}]"

        def enc(value: Any) -> Any:
            if value.__class__ is not list:
                raise Misfit(label, describe(value))

            out: list[Any] = []
            try:
                for item in value:
                    out.append(inner_enc(item))
            except Exception as error:
                raise _at(error, f"[{len(out)}]")

            return out

        def dec(value: Any, _: Any) -> Any:
            if value.__class__ is not list:
                raise Misfit(label, kind_of(value))

            out: list[Any] = []
            try:
                for item in value:
                    out.append(inner_dec(item, None))
            except Exception as error:
                raise _at(error, f"[{len(out)}]")

            return out

        return Hooks(label, frozenset((list,)), frozenset((list,)), enc, dec)

    def _tuple(self, declared: Any, arguments: tuple[Any, ...]) -> Hooks:
        if not arguments and declared is not tuple and declared is not typing.Tuple:
            arguments = ()
        elif not arguments:
            arguments = (Any, ...)

        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return self._variadic(self._list(arguments[0]), arguments[0])

        if any(
            typing.get_origin(a) is typing.Unpack
            or getattr(a, "__typing_is_unpacked_typevartuple__", False)
            for a in arguments
        ):
            raise self.refuse(declared, "a tuple with an unpacked part is not supported")

        each = [self.under(f"[{i}]", argument) for i, argument in enumerate(arguments)]
        encs = [hooks.enc for hooks in each]
        decs = [hooks.dec for hooks in each]
        label = f"tuple[{', '.join(hooks.label for hooks in each) or '()'}]"

        def enc(value: Any) -> Any:
            if value.__class__ is not tuple:
                raise Misfit(label, describe(value))

            if len(value) != len(encs):
                raise Misfit(label, f"a tuple of {len(value)}")

            out: list[Any] = []
            try:
                for inner, item in zip(encs, value, strict=True):
                    out.append(inner(item))
            except Exception as error:
                raise _at(error, f"[{len(out)}]")

            return out

        def dec(value: Any, _: Any) -> Any:
            if value.__class__ is not list:
                raise Misfit(label, kind_of(value))

            if len(value) != len(decs):
                raise Misfit(label, f"a list of {len(value)}")

            out: list[Any] = []
            try:
                for inner, item in zip(decs, value, strict=True):
                    out.append(inner(item, None))
            except Exception as error:
                raise _at(error, f"[{len(out)}]")

            return tuple(out)

        return Hooks(label, frozenset((tuple,)), frozenset((list,)), enc, dec)

    def _variadic(self, as_list: Hooks, element: Any) -> Hooks:
        label = f"tuple[{_label(element)}, ...]"

        def enc(value: Any) -> Any:
            if value.__class__ is not tuple:
                raise Misfit(label, describe(value))

            return as_list.enc(list(value))

        def dec(value: Any, _: Any) -> Any:
            return tuple(as_list.dec(value, None))

        return Hooks(label, frozenset((tuple,)), frozenset((list,)), enc, dec)

    def _set(self, cls: Any, element: Any) -> Hooks:
        hooks = self.under("[*]", element)
        inner_dec = hooks.dec
        label = f"{cls.__name__}[{hooks.label}]"
        # One kind of scalar has a natural order; anything else is put in the order of its bytes.
        natural = hooks.kinds in (_TEXT, _INTEGER)
        order = None if natural else json_functions()[0]
        inner_enc = hooks.text or hooks.enc

        def enc(value: Any) -> Any:
            if value.__class__ is not cls:
                raise Misfit(label, describe(value))

            try:
                out = [inner_enc(item) for item in value]
            except Exception as error:
                raise _at(error, "[*]")

            out.sort(key=order)
            return out

        def dec(value: Any, _: Any) -> Any:
            if value.__class__ is not list:
                raise Misfit(label, kind_of(value))

            try:
                out = cls([inner_dec(item, None) for item in value])
            except Exception as error:
                raise _at(error, "[*]")

            if len(out) != len(value):
                raise Misfit(label, "a list with an element twice")

            return out

        return Hooks(label, frozenset((cls,)), frozenset((list,)), enc, dec)

    def _dict(self, key_type: Any, value_type: Any) -> Hooks:
        keys = self.under("[key]", key_type)
        values = self.under("[*]", value_type)
        label = f"dict[{keys.label}, {values.label}]"
        if keys.kinds == _TEXT:
            return self._object(label, keys.text or keys.enc, keys.dec, values)

        if keys.kinds == _INTEGER:

            def key_enc(key: Any) -> str:
                return str(keys.enc(key))

            def key_dec(text: str, _: Any) -> Any:
                number = int(text)
                if str(number) != text:
                    raise Misfit(keys.label, "a text that is none")

                return keys.dec(number, None)

            return self._object(label, key_enc, key_dec, values)

        return self._pairs(label, keys, values)

    def _object(
        self,
        label: str,
        key_enc: Callable[[Any], str],
        key_dec: Callable[[Any, Any], Any],
        values: Hooks,
    ) -> Hooks:
        """Make the hooks of a dict whose keys are texts in JSON: it becomes an object."""
        value_enc, value_dec = values.enc, values.dec

        def enc(value: Any) -> Any:
            if value.__class__ is not dict:
                raise Misfit(label, describe(value))

            out: dict[str, Any] = {}
            key: Any = None
            try:
                for key, item in value.items():
                    out[key_enc(key)] = value_enc(item)
            except Exception as error:
                raise _at(error, _key_part(key))

            return out

        def dec(value: Any, _: Any) -> Any:
            if value.__class__ is not dict:
                raise Misfit(label, kind_of(value))

            out: dict[Any, Any] = {}
            key: Any = None
            try:
                for key, item in value.items():
                    out[key_dec(key, None)] = value_dec(item, None)
            except Exception as error:
                raise _at(error, _key_part(key))

            if len(out) != len(value):
                raise Misfit(label, "an object with a key in two spellings")

            return out

        return Hooks(label, frozenset((dict,)), frozenset((dict,)), enc, dec)

    def _pairs(self, label: str, keys: Hooks, values: Hooks) -> Hooks:
        """Make the hooks of a dict with other keys: it becomes a list of pairs."""

        def enc(value: Any) -> Any:
            if value.__class__ is not dict:
                raise Misfit(label, describe(value))

            out: list[Any] = []
            key: Any = None
            try:
                for key, item in value.items():
                    out.append([keys.enc(key), values.enc(item)])
            except Exception as error:
                raise _at(error, _key_part(key))

            return out

        def dec(value: Any, _: Any) -> Any:
            if value.__class__ is not list:
                raise Misfit(label, f"{kind_of(value)} where a list of pairs is kept")

            out: dict[Any, Any] = {}
            try:
                for pair in value:
                    if pair.__class__ is not list or len(pair) != 2:
                        raise Misfit("a pair", kind_of(pair))

                    out[keys.dec(pair[0], None)] = values.dec(pair[1], None)
            except Exception as error:
                raise _at(error, f"[{len(out)}]")

            if len(out) != len(value):
                raise Misfit(label, "a key twice")

            return out

        return Hooks(label, frozenset((dict,)), frozenset((list,)), enc, dec)

    # -- one of several

    def _enum(self, cls: type[enum.Enum]) -> Hooks:
        members = list(cls.__members__.values())
        by_value = all(member.value.__class__ in (str, int) for member in members)
        wire = {member: member.value if by_value else member.name for member in members}
        return self._choice(cls.__qualname__, cls, list(wire.items()))

    def _literal(self, declared: Any) -> Hooks:
        choices = []
        for value in typing.get_args(declared):
            hooks = self.hooks(value.__class__)
            choices.append((value, hooks.enc(value)))

        return self._choice(_label(declared), None, choices)

    def _choice(self, label: str, cls: type | None, choices: list[tuple[Any, Any]]) -> Hooks:
        """Make the hooks of finitely many values, each with its JSON value."""
        encs = {(value.__class__, value): wire for value, wire in choices}
        decs = {(wire.__class__, wire): value for value, wire in choices}
        if len(encs) != len(decs):
            raise self.refuse(label, "two of its values look the same in JSON")

        def enc(value: Any) -> Any:
            try:
                return encs[value.__class__, value]
            except (KeyError, TypeError):
                raise Misfit(label, describe(value)) from None

        def dec(value: Any, _: Any) -> Any:
            try:
                return decs[value.__class__, value]
            except (KeyError, TypeError):
                raise Misfit(label, f"{kind_of(value)} that is none of its values") from None

        classes = frozenset(c for c, _ in encs) if cls is None else frozenset((cls,))
        return Hooks(label, classes, frozenset(k for k, _ in decs), enc, dec)

    def _flag(self, cls: type[enum.Flag]) -> Hooks:
        def back(number: int) -> Any:
            value = cls(number)
            if value.__class__ is not cls or value.value != number:
                raise Misfit(cls.__qualname__, "an integer that is none")

            return value

        return _leaf(cls, int, lambda value: _LEAVES[int].enc(value.value), back)

    def _union(self, declared: Any) -> Hooks:
        members = [self.hooks(member) for member in self._members(declared)]
        if len(members) == 1:
            return members[0]

        label = " | ".join(hooks.label for hooks in members)
        by_class: dict[type, Hooks] = {}
        for hooks in members:
            if not hooks.classes:  # Any: it takes what JSON has, so only that may stand beside it
                if all(other.classes <= _PLAIN for other in members):
                    return hooks

                raise self.refuse(declared, "plain JSON data and its other members look alike")

            for cls in hooks.classes:
                if cls in by_class:
                    why = f"values of {by_class[cls].label} and {hooks.label} cannot be told apart"
                    raise self.refuse(declared, why)

                by_class[cls] = hooks

        kinds = [kind for hooks in members for kind in hooks.kinds]
        shared = {kind for kind in kinds if kinds.count(kind) > 1}
        if shared:
            return self._tagged(declared, label, members, shared | {dict})

        encs = {cls: hooks.enc for cls, hooks in by_class.items()}
        decs = {kind: hooks.dec for hooks in members for kind in hooks.kinds}

        def enc(value: Any) -> Any:
            inner = encs.get(value.__class__)
            if inner is None:
                raise Misfit(label, describe(value))

            return inner(value)

        def dec(value: Any, _: Any) -> Any:
            inner = decs.get(value.__class__)
            if inner is None:
                raise Misfit(label, kind_of(value))

            return inner(value, None)

        return Hooks(label, frozenset(by_class), frozenset(kinds), enc, dec)

    def _members(self, declared: Any) -> Iterator[Any]:
        """List the members of a union, those of unions inside it too, all literals as one."""
        literals: list[Any] = []
        plain: list[Any] = []
        for member in self._flat(declared):
            if typing.get_origin(member) is typing.Literal:
                literals += typing.get_args(member)
            else:
                yield member
                plain.append(member)

        if None in plain or _NONE in plain:  # `Literal["a", None] | None`
            literals = [value for value in literals if value is not None]

        if literals:
            yield typing.Literal[tuple(literals)]

    def _flat(self, declared: Any) -> Iterator[Any]:
        while (
            isinstance(declared, typing.NewType) or typing.get_origin(declared) is typing.Annotated
        ):
            new = isinstance(declared, typing.NewType)
            declared = declared.__supertype__ if new else typing.get_args(declared)[0]

        if typing.get_origin(declared) in (typing.Union, types.UnionType):
            for member in typing.get_args(declared):
                yield from self._flat(member)
        elif type(declared).__name__ == "TypeAliasType" and typing.get_origin(
            declared.__value__
        ) in (
            typing.Union,
            types.UnionType,
        ):
            yield from self._flat(declared.__value__)
        else:
            yield declared

    def _tagged(self, declared: Any, label: str, members: list[Hooks], tagged: set[Kind]) -> Hooks:
        """Make the hooks of a union whose members look alike in JSON.

        Members with a kind of JSON value in `tagged` are written `{"$type": tag, "value": …}`,
        whatever the order of the union: `typing` takes `A | B` and `B | A` for the same.
        """
        encs: dict[type, Callable[[Any], Any]] = {}
        by_tag: dict[str, Hooks] = {}
        bare: dict[Kind, Callable[[Any, Any], Any]] = {}
        for hooks in members:
            if not hooks.kinds & tagged:
                encs |= dict.fromkeys(hooks.classes, hooks.enc)
                bare |= dict.fromkeys(hooks.kinds, hooks.dec)
                continue

            tag = _tag_of(hooks)
            if tag in by_tag:
                raise self.refuse(declared, f"two of its members are named {tag}")

            by_tag[tag] = hooks
            encs |= dict.fromkeys(hooks.classes, _tagging(tag, hooks.enc))

        def enc(value: Any) -> Any:
            inner = encs.get(value.__class__)
            if inner is None:
                raise Misfit(label, describe(value))

            return inner(value)

        def dec(value: Any, _: Any) -> Any:
            if value.__class__ is dict and len(value) == 2 and _TAG in value and _VALUE in value:
                named = value[_TAG]
                hooks = by_tag.get(named) if named.__class__ is str else None
                if hooks is None:
                    raise Misfit(label, f"an object tagged with something else than {list(by_tag)}")

                return hooks.dec(value[_VALUE], None)

            inner = bare.get(value.__class__)
            if inner is not None:
                return inner(value, None)

            return _only_fit(value, label, by_tag.values())

        classes = frozenset(encs)
        return Hooks(label, classes, frozenset(bare) | {dict}, enc, dec)

    # -- records

    def _typeddict(self, declared: Any) -> Hooks:
        cls = origin_of(declared)
        label = _label(declared)
        required = set(cls.__required_keys__)
        fields: dict[str, Hooks] = {}
        variables = _variables_by_class(declared)
        for name, raw in cls.__annotations__.items():
            hint = self._resolve(cls, name, raw)
            while True:  # postponed annotations hide these from `__required_keys__`
                marker = typing.get_origin(hint)
                if marker is typing.Required:
                    required.add(name)
                elif marker is typing.NotRequired:
                    required.discard(name)
                elif getattr(marker, "__name__", getattr(marker, "_name", "")) != "ReadOnly":
                    break

                hint = typing.get_args(hint)[0]

            hint = _substitute(hint, variables.get(_typeddict_owner(cls, name), {}))
            fields[name] = self.under(_name_part(name), hint)

        encs = {name: hooks.enc for name, hooks in fields.items()}
        decs = {name: hooks.dec for name, hooks in fields.items()}

        def enc(value: Any) -> Any:
            if value.__class__ is not dict:
                raise Misfit(label, describe(value))

            out: dict[str, Any] = {}
            key: Any = None
            try:
                for key, item in value.items():
                    if key.__class__ is not str or key not in encs:
                        raise Misfit(
                            f"one of the keys of {label}", "a key that it does not declare"
                        )

                    out[key] = encs[key](item)
            except Exception as error:
                raise _at(error, _key_part(key))

            if not required <= out.keys():
                raise _missing(label, required - out.keys())

            return out

        def dec(value: Any, _: Any) -> Any:
            if value.__class__ is not dict:
                raise Misfit(label, kind_of(value))

            out: dict[str, Any] = {}
            key: Any = None
            try:
                for key, item in value.items():
                    if key not in decs:
                        raise _unknown(label)

                    out[key] = decs[key](item, None)
            except Exception as error:
                raise _at(error, _key_part(key))

            if not required <= out.keys():
                raise _missing(label, required - out.keys())

            return out

        return Hooks(label, frozenset((dict,)), frozenset((dict,)), enc, dec)

    def _namedtuple(self, declared: Any) -> Hooks:
        cls = origin_of(declared)
        label = _label(declared)
        variables = _variables_by_class(declared)
        fields: dict[str, Hooks] = {}
        owner = next((k for k in cls.__mro__ if "_fields" in vars(k)), cls)
        raw = getattr(owner, "__annotations__", {})
        for name in cls._fields:
            hint = self._resolve(owner, name, raw.get(name, Any))
            hint = _substitute(hint, variables.get(owner, {}))
            fields[name] = self.under(_name_part(name), hint)

        defaults = cls._field_defaults

        def enc(value: Any) -> Any:
            if value.__class__ is not cls:
                raise Misfit(label, describe(value))

            out: dict[str, Any] = {}
            name = ""
            try:
                for (name, hooks), item in zip(fields.items(), value, strict=True):
                    out[name] = hooks.enc(item)
            except Exception as error:
                raise _at(error, _name_part(name))

            return out

        def dec(value: Any, _: Any) -> Any:
            _check_keys(label, value, fields, [name for name in fields if name not in defaults])
            out: list[Any] = []
            name = ""
            try:
                for name, hooks in fields.items():
                    out.append(hooks.dec(value[name], None) if name in value else defaults[name])
            except Exception as error:
                raise _at(error, _name_part(name))

            return tuple.__new__(cls, out)

        return Hooks(label, frozenset((cls,)), frozenset((dict,)), enc, dec)

    def _class(self, declared: Any) -> Hooks:
        """Make the hooks of an attrs class or a dataclass; cattrs writes the functions."""
        from attrs import NOTHING

        cls = origin_of(declared)
        label = _label(declared)
        variables = _variables_by_class(declared)
        fields: list[_Field] = []
        hooks: dict[str, Hooks] = {}
        for name, alias, raw, default, init in _fields_of(cls, NOTHING):
            owner = next((k for k in cls.__mro__ if name in _own_annotations(k)), cls)
            hint = Any if raw is None else self._resolve(owner, name, raw)
            hint = _substitute(hint, variables.get(owner, {}))
            hooks[name] = self.under(_name_part(name), hint)
            fields.append(_Field(name, alias, hint, default, init))

        self._check_class(cls, fields)
        if self.explain:
            to_dict, from_dict = _looping(cls, label, fields, hooks, NOTHING)
        else:
            to_dict, from_dict = _generated(cls, label, fields, hooks)

        extras = _extras_check(cls, label, fields)

        def enc(value: Any) -> Any:
            if value.__class__ is not cls:
                raise Misfit(label, describe(value))

            if extras is not None:
                extras(value)

            return to_dict(value)

        return Hooks(label, frozenset((cls,)), frozenset((dict,)), enc, from_dict)

    def _check_class(self, cls: Any, fields: list[_Field]) -> None:
        """Refuse classes that could be written but not made again."""
        if not cls.__name__.isidentifier():
            raise self.refuse(cls, "the name of the class is no identifier")

        marker = "__attrs_attrs__" if is_attrs(cls) else "__dataclass_fields__"
        for base in cls.__mro__:
            if marker in vars(base):
                break

            own = [k for k, v in _own_annotations(base).items() if "ClassVar" not in str(v)]
            if own:
                raise self.refuse(
                    cls,
                    f"{base.__qualname__}.{own[0]} is no field: the class is not decorated, only its base is",
                )

        initial = {field.alias for field in fields if field.init}
        try:
            parameters = list(inspect.signature(cls.__init__).parameters.values())[1:]
        except (TypeError, ValueError) as error:
            raise self.refuse(cls, "its __init__ has no readable signature") from error

        taken = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
        if taken != initial or len(taken) != len(parameters):
            odd = sorted(taken ^ initial) or [p.name for p in parameters if p.name not in taken]
            raise self.refuse(
                cls,
                f"its __init__ does not take exactly its fields: {odd[0]} (an InitVar or an __init__ of its own)",
            )

    def _resolve(self, owner: type, name: str, raw: Any) -> Any:
        """Evaluate one annotation where it was written; a local class knows only itself and what is inside it."""
        holder = type("_", (), {"__annotations__": {name: raw}, "__module__": owner.__module__})
        inside = {key: value for key, value in vars(owner).items() if isinstance(value, type)}
        try:
            return typing.get_type_hints(
                holder, localns=inside | {owner.__name__: owner}, include_extras=True
            )[name]
        except Exception as error:
            self._path.append(_name_part(name))
            raise self.refuse(
                raw,
                f"the annotation does not evaluate ({type(error).__name__}: {error}); "
                "its names must be those of the module, or of the class itself",
            ) from error


# --- records ------------------------------------------------------------------------------------


def _fields_of(cls: type, nothing: Any) -> Iterator[tuple[str, str, Any, Any, bool]]:
    """List name, alias, annotation, default (or `nothing`) and init of every field."""
    if is_attrs(cls):
        for a in cls.__attrs_attrs__:  # type: ignore[attr-defined]  # what makes it an attrs class
            yield a.name, a.alias, a.type, a.default, a.init
    else:
        for f in dataclasses.fields(cls):
            missing = f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
            yield f.name, f.name, f.type, nothing if missing else None, f.init


def _generated(
    cls: type, label: str, fields: list[_Field], hooks: dict[str, Hooks]
) -> tuple[Callable[[Any], Any], Callable[[Any, Any], Any]]:
    """Have cattrs generate the functions of a class from our hooks."""
    from cattrs import Converter
    from cattrs.gen import make_dict_structure_fn_from_attrs
    from cattrs.gen import make_dict_unstructure_fn_from_attrs
    from cattrs.gen import override

    converter = Converter(detailed_validation=False, forbid_extra_keys=True)
    # Overrides travel in Annotated because as keyword arguments a field named `cl` would collide.
    ready: list[Any] = [
        dataclasses.replace(
            field,
            type=typing.Annotated[
                Any,
                override(unstruct_hook=hooks[field.name].enc, struct_hook=hooks[field.name].dec),
            ],
        )
        for field in fields
    ]
    variables = {p.__name__: Any for p in getattr(cls, "__parameters__", ())}
    to_dict: Callable[[Any], Any] = make_dict_unstructure_fn_from_attrs(
        ready,
        cls,
        converter,
        variables,
        _cattrs_use_linecache=False,
        _cattrs_include_init_false=True,
    )
    from_dict: Callable[[Any, Any], Any] = make_dict_structure_fn_from_attrs(
        [field for field in ready if field.init],
        cls,
        converter,
        variables,
        _cattrs_use_linecache=False,
    )
    late = [field for field in fields if not field.init]
    if not late:
        return to_dict, from_dict

    names = {field.name for field in late}

    def from_dict_late(value: Any, _: Any) -> Any:
        instance = from_dict({k: v for k, v in value.items() if k not in names}, None)
        _set_late(instance, value, late, hooks, label)
        return instance

    return to_dict, from_dict_late


def _looping(
    cls: type, label: str, fields: list[_Field], hooks: dict[str, Hooks], nothing: Any
) -> tuple[Callable[[Any], Any], Callable[[Any, Any], Any]]:
    """Make the functions of a class as loops that know which field they are at."""

    def to_dict(value: Any) -> Any:
        out: dict[str, Any] = {}
        for field in fields:
            try:
                item = getattr(value, field.name)
            except AttributeError:
                raise _at(
                    Misfit(f"a value of {label}", "a field without one"), _name_part(field.name)
                ) from None

            try:
                out[field.name] = hooks[field.name].enc(item)
            except Exception as error:
                raise _at(error, _name_part(field.name))

        return out

    needed = [field.name for field in fields if field.init and field.default is nothing]

    def from_dict(value: Any, _: Any) -> Any:
        _check_keys(label, value, hooks, needed)
        arguments: dict[str, Any] = {}
        for field in fields:
            if field.init and field.name in value:
                try:
                    arguments[field.alias] = hooks[field.name].dec(value[field.name], None)
                except Exception as error:
                    raise _at(error, _name_part(field.name))

        try:
            instance = cls(**arguments)
        except Exception as error:
            raise Misfit(
                label, f"values that it refuses ({type(error).__name__}: {error})"
            ) from error

        _set_late(instance, value, [field for field in fields if not field.init], hooks, label)
        return instance

    return to_dict, from_dict


def _set_late(
    instance: Any, value: Any, late: list[_Field], hooks: dict[str, Hooks], label: str
) -> None:
    """Set the fields that `__init__` does not take, past validators and frozenness."""
    for field in late:
        if field.name in value:
            try:
                item = hooks[field.name].dec(value[field.name], None)
            except Exception as error:
                raise _at(error, _name_part(field.name))

            object.__setattr__(instance, field.name, item)
        elif not hasattr(instance, field.name):
            raise _missing(label, {field.name})


def _extras_check(cls: type, label: str, fields: list[_Field]) -> Callable[[Any], None] | None:
    """Make the check that an instance has no attribute that would be lost; None: it cannot have."""
    if not any("__dict__" in vars(base) for base in cls.__mro__):
        return None

    names = {field.name for field in fields}
    kept = {n for n in names if not isinstance(getattr(cls, n, None), types.MemberDescriptorType)}
    expected = len(kept)

    def check(value: Any) -> None:
        if len(value.__dict__) == expected:
            return

        for name in value.__dict__:
            if name in names or name == "_attrs_cached_hash" or name.startswith("__"):
                continue

            if not isinstance(inspect.getattr_static(cls, name, None), functools.cached_property):
                found = "an attribute that is none, and would be lost"
                raise _at(Misfit(f"only fields of {label}", found), _name_part(name))

    return check


def _check_keys(label: str, value: Any, fields: Iterable[str], needed: Iterable[str]) -> None:
    if value.__class__ is not dict:
        raise Misfit(label, kind_of(value))

    for key in value:
        if key not in fields:
            raise _at(_unknown(label), _key_part(key))

    if missing := {name for name in needed if name not in value}:
        raise _missing(label, missing)


def _unknown(label: str) -> Misfit:
    why = "reading it would lose it with the next write; was it written by newer code?"
    return Misfit(f"a field of {label}", "a field that it does not have", why)


def _missing(label: str, names: set[str]) -> Misfit:
    return Misfit(label, f"no value for {', '.join(sorted(names))}, which has no default")


def _tag_of(hooks: Hooks) -> str:
    """Name a member of a union: its `__flow_type__` name, or the name of its class."""
    if len(hooks.classes) > 1:
        return "Literal"

    (cls,) = hooks.classes
    named = vars(cls).get("__flow_type__")
    return typing.cast("str", named[0]) if named else cls.__name__


def _tagging(tag: str, inner: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def enc(value: Any) -> Any:
        return {_TAG: tag, _VALUE: inner(value)}

    return enc


def _only_fit(value: Any, label: str, members: Iterable[Hooks]) -> Any:
    """Read a value written before its type became a union, if exactly one member takes it."""
    fits = []
    for hooks in members:
        try:
            fits.append(hooks.dec(value, None))
        except RecursionError:
            raise
        except Exception:
            continue

    if len(fits) != 1:
        raise Misfit(label, f"{kind_of(value)} without a tag that {len(fits)} of them take")

    return fits[0]

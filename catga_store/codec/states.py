"""States to bytes and back, exactly.

A state is an attrs class, a dataclass, a TypedDict (named explicitly), plain JSON data, or `bytes`,
which are kept as they are, under the type name `bytes`. The bytes of any other state
are one JSON document in UTF-8: compact, an object for each class with its fields by name, and the
same bytes for the same value. What is read back is equal in value *and* in type; anything else is
an error when it is written.

| declared | kept as |
|---|---|
| str, bool, None, finite float, int (up to 4300 digits, or 4299 and a sign) | itself |
| bytes inside a state | base64 text |
| datetime, time | ISO 8601 text: microseconds, offset to the microsecond, ` fold=1` if naive and folded |
| date, Decimal, UUID | its text; a Decimal with every digit, exponent, NaN and infinity |
| timedelta | whole microseconds |
| Enum, IntEnum, StrEnum | its value if all values are str or int, else its name; a Flag its integer |
| list, also declared as Sequence or Iterable; tuple; NamedTuple | a list; a NamedTuple an object |
| set, frozenset, also declared as Set | a list in sorted order |
| dict, also declared as Mapping | an object if keys are text or ints in JSON, else a list of pairs; the order is kept |
| attrs class, dataclass, TypedDict, generic ones too | an object |
| Optional, Union | its member; `{"$type": name, "value": …}` where members look alike in JSON |
| Literal, NewType, Annotated, Final, bound TypeVar | what it stands for |
| Any, object, an unbound TypeVar | plain JSON data |

**Datetimes keep their instant and their offset.** A `zoneinfo` zone is read back as a fixed
`datetime.timezone`. Elements of a set and keys of a dict that would become equal by that are
refused, as are any that have the same JSON: one of the two would be lost. Of a UUID its 128 bits
are kept.

**Classes are compared by identity**: a bool is not an int, a subclass is not its base, a tuple is
not a list. `deque`, `OrderedDict`, `Path`, callables and all classes not named above are refused.

**Objects are made by `__init__`**, so converters, validators and `__post_init__` run at each read:

| of a class | when it is read |
|---|---|
| fields with `init=True` | passed to `__init__` |
| fields with `init=False` | set after `__init__`, past validators and frozenness |
| what a converter or `__post_init__` makes of fields | made again; a write that this would change is refused |
| a value that was changed in place, and a validator refuses | written, and read only without a type (see below) |
| attributes that are not fields | refused when written; those of a `cached_property` are not kept |
| a class whose `__init__` does not take exactly its fields (an `InitVar`, its own `__init__`) | refused |

A state whose type has a converter, a `__post_init__`, or an `__init__` or access of its own, at any
depth, is read back at each write: it is refused if its class would refuse or change it. That costs a
decoding and a second encoding; other types pay nothing.

**Reading is strict**, as other versions of the code may have written: an unknown field is refused,
because the next write would lose it; a missing field takes its default. So adding a field with a
default is a compatible change for code deployed later; code deployed earlier gets an error that
says so. Turning `A` into `A | B` is compatible if what is stored fits only one of them. Nothing is
ever imported by a name found in the data.

Data is nested at most 100 levels deep.
"""

from __future__ import annotations

import functools
from typing import Any

from catga_store.codec.hooks import MAX_LEVELS
from catga_store.codec.hooks import Codec
from catga_store.codec.hooks import Misfit
from catga_store.codec.hooks import advice_for
from catga_store.codec.hooks import build
from catga_store.codec.hooks import describe
from catga_store.codec.hooks import is_attrs
from catga_store.codec.hooks import is_dataclass
from catga_store.codec.hooks import is_typeddict
from catga_store.codec.hooks import json_functions
from catga_store.codec.hooks import name_part
from catga_store.codec.hooks import origin_of
from catga_store.codec.json_data import decode_json
from catga_store.codec.json_data import encode_json
from catga_store.codec.naming import Naming
from catga_store.codec.naming import new_naming
from catga_store.codec.naming import type_name
from catga_store.codec.refusals import encoding_error
from catga_store.codec.refusals import explained
from catga_store.codec.refusals import sentence
from catga_store.errors import EncodingError
from catga_store.errors import StateTypeError

__all__ = [
    "check_state_type",
    "class_of",
    "decode_state",
    "encode_state",
    "fit",
    "is_state_type",
    "naming",
    "type_of",
]

_KINDS = "an attrs class, a dataclass, a TypedDict or bytes"


def type_of(state: object, declared: Any | None = None) -> Any | None:
    """Return the type a state is kept as; `None` means plain JSON data.

    This is `declared`, if given: the state must be of exactly that class (a dict for a TypedDict),
    else `EncodingError` at `$`. A declared type that is not an attrs class, a dataclass, a TypedDict
    or a generic alias of one is a `StateTypeError`. Only the outermost class is looked at.
    """
    if declared is None:
        cls = state.__class__
        return cls if is_attrs(cls) or is_dataclass(cls) or cls is bytes else None

    if state.__class__ is declared and (
        is_attrs(declared) or is_dataclass(declared) or declared is bytes
    ):
        return declared  # what it nearly always is, without asking `typing`

    cls = class_of(declared)
    wanted = dict if is_typeddict(cls) else cls
    if state.__class__ is not wanted:
        name = type_name(declared)
        message = (
            f"the state cannot be stored as {name}: expected {_expected(cls)}, "
            f"found {describe(state)}; nothing was encoded"
        )
        raise EncodingError(message, path="$")

    return declared


def naming(state_type: Any | None) -> Naming:
    """Return what is stored about a type; raises what `check_state_type` raises."""
    try:
        return _kept_naming(state_type)
    except TypeError:  # it does not hash: metadata of an Annotated argument, say
        return _new_naming(state_type)


def _new_naming(state_type: Any | None) -> Naming:
    check_state_type(state_type)
    return new_naming(state_type)


_kept_naming = functools.lru_cache(maxsize=1024)(_new_naming)


def check_state_type(state_type: Any | None) -> None:
    """Raise what the first use of a type would raise: `StateTypeError` or `EncodingError`.

    `EncodingError` names the field whose type can never be kept. Costs nothing the second time.
    """
    if state_type is not None and state_type is not bytes:
        _codec(state_type)


def encode_state(state: object, state_type: Any | None) -> bytes:
    """Encode a state as `state_type` declares, or as plain JSON data if that is `None`.

    `EncodingError` for anything that would not be read back exactly; its `path` says where it is.
    """
    if state_type is None:
        return encode_json(state)

    if state_type is bytes:
        assert isinstance(state, bytes), "a state of type bytes must be bytes"  # noqa: S101  a broken rule, not bad input
        return state

    try:  # `_codec`, written out, as in `fit`: every write and read pass there
        codec = _kept_codec(state_type)
    except TypeError:
        codec = _new_codec(state_type)

    try:
        transport = codec.enc(state)
        if codec.unbounded:
            _check_depth(transport)

        data = json_functions()[0](transport)
        return _read_back(data, state_type, codec) if codec.converts else data
    except Exception as error:
        refusal = _not_kept(state, state_type, error)
        raise refusal from refusal.__cause__


def decode_state(data: bytes | memoryview, state_type: Any | None) -> Any:
    """Decode a state into fresh objects.

    Bytes that are not JSON raise `CorruptRecordError`; JSON that does not fit the type raises
    `StateTypeError`, and so does a class that refuses the values; a type that can never be kept
    raises `EncodingError`. A call stack with no room left for the data is a `RecursionError`.
    """
    if state_type is bytes:
        return bytes(data)

    value = decode_json(data)
    return value if state_type is None else fit(value, state_type)


def fit(value: Any, state_type: Any) -> Any:
    """Make fresh objects of JSON data; raises what `decode_state` raises."""
    try:
        codec = _kept_codec(state_type)
    except TypeError:
        codec = _new_codec(state_type)

    try:
        return codec.dec(value, None)
    except (EncodingError, StateTypeError, RecursionError):
        raise
    except Exception as error:
        refusal = _not_fitting(value, state_type, error)
        raise refusal from refusal.__cause__


def _codec(state_type: Any) -> Codec:
    try:
        return _kept_codec(state_type)
    except TypeError:  # it does not hash: metadata of an Annotated argument, say
        return _new_codec(state_type)


def _new_codec(state_type: Any) -> Codec:
    class_of(state_type)
    return build(state_type)


# Bounded, so that classes made in functions are not kept forever; classes are told apart by
# identity, whatever their names.
_kept_codec = functools.lru_cache(maxsize=1024)(_new_codec)


def is_state_type(cls: Any) -> bool:
    """Whether a class is of a kind that states can be."""
    return is_attrs(cls) or is_dataclass(cls) or is_typeddict(cls)


def class_of(state_type: Any) -> Any:
    """Return the class of a type, which may be generic; `StateTypeError` if states cannot be of it."""
    cls = origin_of(state_type)
    if is_state_type(cls) or cls is bytes:
        return cls

    actual = getattr(state_type, "__qualname__", None) or describe(state_type)
    advice = advice_for(cls)
    message = (
        f"state type: expected {_KINDS}, got {actual}{f' ({advice})' if advice else ''}; nothing "
        "was encoded or decoded"
    )
    raise StateTypeError(message, expected=_KINDS, actual=actual)


def _expected(cls: Any) -> str:
    return f"a dict ({cls.__qualname__} is a TypedDict)" if is_typeddict(cls) else cls.__qualname__


def _check_depth(transport: Any) -> None:
    """Refuse data that a reader with less stack could not read."""
    level: list[Any] = [transport]
    for _ in range(MAX_LEVELS):
        level = [
            item
            for outer in level
            for item in (outer.values() if outer.__class__ is dict else outer)
            if item.__class__ is list or item.__class__ is dict
        ]
        if not level:
            return

    raise Misfit(f"at most {MAX_LEVELS} levels of nesting", "more")


def _read_back(data: bytes, state_type: Any, codec: Codec) -> bytes:
    """Return the bytes of a state, and refuse one that its own class would refuse or change when it is read."""
    before = decode_json(data)
    try:
        read = codec.dec(before, None)
    except RecursionError:
        raise
    except Exception as error:
        misfit = explained(lambda: build(state_type, explain=True).dec(before, None), error)
        misfit.why = misfit.why or "reading the state would fail"
        raise misfit from misfit.__cause__

    # It may be equal all the same, if its class says so: what counts is what would be written.
    again = json_functions()[0](codec.enc(read))
    if again != data:
        misfit = Misfit(
            "a value that does not change when it is read back",
            "a value that changes",
            "converters and __post_init__ run again at each read, so they must leave their own"
            " results unchanged",
        )
        misfit.parts += _difference(before, decode_json(again))
        raise misfit

    return data


def _difference(before: Any, after: Any) -> list[str]:
    """The path of the first difference of two JSON values, innermost part first."""
    if before.__class__ is dict and after.__class__ is dict and before.keys() == after.keys():
        steps = [(name_part(key), before[key], after[key]) for key in before]
    elif before.__class__ is list and after.__class__ is list and len(before) == len(after):
        steps = [(f"[{i}]", *pair) for i, pair in enumerate(zip(before, after, strict=True))]
    else:
        return []

    for part, one, other in steps:
        if one != other:
            return [*_difference(one, other), part]

    return []


def _not_kept(state: object, state_type: Any, error: Exception) -> EncodingError:
    misfit = explained(lambda: build(state_type, explain=True).enc(state), error)
    return encoding_error(f"state of type {type_name(state_type)} cannot be stored", misfit)


def _not_fitting(value: object, state_type: Any, error: Exception) -> StateTypeError:
    misfit = explained(lambda: build(state_type, explain=True).dec(value, None), error)
    name = type_name(state_type)
    message = sentence(f"data does not fit the type {name}", misfit, "decoded")
    refusal = StateTypeError(message, expected=name, actual=None)
    refusal.__cause__ = misfit.__cause__
    return refusal

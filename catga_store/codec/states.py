"""State to bytes and back, exactly.

A state is an attrs class, a dataclass, a TypedDict (named explicitly) or plain JSON data. Its bytes
are one JSON document in UTF-8: compact, an object per class with its fields by name, the same
bytes for the same value. What comes back is equal in value *and* in type, or an error was raised.

| declared | kept as |
|---|---|
| str, bool, None, int (to 4300 digits), finite float | itself |
| bytes | base64 text |
| datetime, time | ISO 8601 text: microseconds, offset to the microsecond, ` fold=1` if naive and folded |
| date, Decimal, UUID | its text; a Decimal with every digit, exponent, NaN and infinity |
| timedelta | whole microseconds |
| Enum, IntEnum, StrEnum | its value if all are str or int, else its name; a Flag its integer |
| list, also declared as Sequence or Iterable; tuple; NamedTuple | a list; a NamedTuple an object |
| set, frozenset, also declared as Set | a list in sorted order |
| dict, also declared as Mapping | an object if keys are texts or ints in JSON, else a list of pairs; order kept |
| attrs class, dataclass, TypedDict, generic ones too | an object |
| Optional, Union | its member; `{"$type": name, "value": …}` where members look alike in JSON |
| Literal, NewType, Annotated, Final, bound TypeVar | what it stands for |
| Any, object, an unbound TypeVar | plain JSON data |

**What is kept of an aware datetime is its instant and its offset.** A `zoneinfo` zone comes back as
a fixed `datetime.timezone`. What is kept of a UUID is its 128 bits.

**Classes are compared by identity**: a bool is no int, a subclass is not its base, a tuple is no
list. Fields with `init=False` are kept and set past `__init__`; fields with it go through
`__init__`, converters and validators included: a converter must take its own answer for what it is,
and a value that was changed in place into one that a validator refuses is kept, but is read only
without a type. An attribute that is no field is refused, unless it belongs to a `cached_property`:
it would be lost. A class whose `__init__` does not take exactly its fields (an `InitVar`, an
`__init__` of its own) is refused, as are `deque`, `OrderedDict`, `Path`, callables and any other
class.

**Reading is strict**, as other code may have written: an unknown field is refused, because the
next write would lose it; a missing field takes its default. So adding a field with a default is a
compatible change for code deployed later, and for code deployed earlier an error that says so.
Turning `A` into `A | B` is compatible if what is stored fits only one of them. Nothing is ever
imported by a name found in the data.

Data is nested at most 100 levels deep. Of two equal keys of one JSON object, which this module
never writes, the last counts.
"""

from __future__ import annotations

import functools
import re
import typing
from typing import Any

from catga_store.codec.hooks import MAX_LEVELS
from catga_store.codec.hooks import Codec
from catga_store.codec.hooks import Misfit
from catga_store.codec.hooks import build
from catga_store.codec.hooks import check_json
from catga_store.codec.hooks import describe
from catga_store.codec.hooks import is_attrs
from catga_store.codec.hooks import is_dataclass
from catga_store.codec.hooks import is_typeddict
from catga_store.codec.hooks import json_errors
from catga_store.codec.hooks import json_functions
from catga_store.codec.hooks import named_by_itself
from catga_store.codec.hooks import origin_of
from catga_store.errors import CorruptRecordError
from catga_store.errors import EncodingError
from catga_store.errors import StateTypeError

__all__ = [
    "check_json_data",
    "check_state_type",
    "class_of",
    "decode_json",
    "decode_state",
    "encode_json",
    "encode_state",
    "fit",
    "is_state_type",
    "type_name",
    "type_of",
    "type_version",
]

_KINDS = "an attrs class, a dataclass or a TypedDict"


def type_of(state: object, declared: Any | None = None) -> Any | None:
    """Answer the type a state is kept as; `None` is plain JSON data.

    `declared` if given: the state must be of exactly that class (a dict for a TypedDict), else
    `EncodingError` at `$`. A declared type that is no attrs class, dataclass, TypedDict or generic
    alias of one is a `StateTypeError`. Only the outermost class is looked at, not what is inside.
    """
    if declared is None:
        cls = state.__class__
        return cls if is_attrs(cls) or is_dataclass(cls) else None

    if state.__class__ is declared and (is_attrs(declared) or is_dataclass(declared)):
        return declared  # what it nearly always is, without asking `typing`

    cls = class_of(declared)
    wanted = dict if is_typeddict(cls) else cls
    if state.__class__ is not wanted:
        name = type_name(declared)
        message = (
            f"state of type {name} cannot be kept: at $ expected {_expected(cls)}, "
            f"found {describe(state)}; nothing was encoded"
        )
        raise EncodingError(message, path="$")

    return declared


def type_name(state_type: Any | None) -> str:
    """Answer the name a type is stored under: `""` for plain JSON data.

    It is the class's `__qualname__`, or what `flow_state` has named it: the first of the pair in
    its own `__flow_type__`, which a subclass does not inherit.
    """
    if state_type is None:
        return ""

    cls = origin_of(state_type)
    named = named_by_itself(cls)
    return str(named[0]) if named else str(cls.__qualname__)


def type_version(state_type: Any | None) -> int:
    """Answer the version of a type: 1, or the second of the pair in its own `__flow_type__`."""
    if state_type is None:
        return 1

    named = named_by_itself(origin_of(state_type))
    return int(named[1]) if named else 1


def check_state_type(state_type: Any | None) -> None:
    """Raise what the first use of a type would raise: `StateTypeError` or `EncodingError`.

    `EncodingError` names the field whose type can never be kept. Costs nothing the second time.
    """
    if state_type is not None:
        _codec(state_type)


def encode_state(state: object, state_type: Any | None) -> bytes:
    """Encode a state as `state_type` says, or as plain JSON data if it is `None`.

    What would not come back exactly raises `EncodingError`, whose `path` says where it stands.
    """
    if state_type is None:
        return encode_json(state)

    codec = _codec(state_type)
    try:
        transport = codec.enc(state)
        if codec.unbounded:
            _check_depth(transport)

        return _dumps()(transport)
    except Exception as error:
        refusal = _not_kept(state, state_type, error)
        raise refusal from refusal.__cause__


def decode_state(data: bytes | memoryview, state_type: Any | None) -> Any:
    """Decode a state into fresh objects.

    Bytes that are no JSON raise `CorruptRecordError`; JSON that does not fit the type raises
    `StateTypeError`, and so does a class that refuses the values; `EncodingError` is a type that
    can never be kept. A call stack with no room left for the data is a `RecursionError`.
    """
    value = decode_json(data)
    return value if state_type is None else fit(value, state_type)


def fit(value: Any, state_type: Any) -> Any:
    """Make fresh objects of JSON data; raises what `decode_state` does of a type."""
    try:
        return _codec(state_type).dec(value, None)
    except (EncodingError, StateTypeError, RecursionError):
        raise
    except Exception as error:
        refusal = _not_fitting(value, state_type, error)
        raise refusal from refusal.__cause__


def encode_json(value: object) -> bytes:
    """Encode plain JSON data: None, bool, int, float, str, list, and dict with str keys.

    Anything else, subclasses of these included, raises `EncodingError`: JSON would change it.

    >>> encode_json({"paid": True, "items": [1, 2.0]})
    b'{"paid":true,"items":[1,2.0]}'
    >>> encode_json({"items": (1, 2)})
    Traceback (most recent call last):
    ...
    catga_store.EncodingError: data cannot be kept: at $.items expected plain JSON data (None, bool, \
int, float, str, list, dict with str keys), found tuple (it would come back as something else or \
not at all); nothing was encoded
    """
    try:
        check_json(value)
        return _dumps()(value)
    except Exception as error:
        refusal = _not_plain(value, error)
        raise refusal from refusal.__cause__


def check_json_data(value: object) -> None:
    """Raise the `EncodingError` that `encode_json` would raise."""
    try:
        check_json(value)
    except Exception as error:
        refusal = _not_plain(value, error)
        raise refusal from refusal.__cause__


def decode_json(data: bytes | memoryview) -> Any:
    """Decode plain JSON data into fresh objects; `CorruptRecordError` if the bytes are none."""
    try:
        return json_functions()[1](data)
    except RecursionError:
        if not _is_too_deep(data):
            raise  # the data is fine: the caller's stack is nearly full

        raise CorruptRecordError(
            f"expected JSON nested at most {MAX_LEVELS} levels deep, found more at $; "
            "nothing was decoded",
            key=None,
        ) from None
    except json_errors() as error:
        message = f"expected JSON at $, found {len(data)} bytes that are none ({error}); nothing was decoded"
        raise CorruptRecordError(message, key=None) from error


def _is_too_deep(data: bytes | memoryview) -> bool:
    """Say whether JSON is nested deeper than this module writes it."""
    level = 0
    for bracket in re.findall(rb"[\[\]{}]", re.sub(rb'"(?:[^"\\]|\\.)*"', b"", data)):
        level += 1 if bracket in b"[{" else -1
        if level > MAX_LEVELS:
            return True

    return False


def _dumps() -> typing.Callable[[Any], bytes]:
    return json_functions()[0]


def _codec(state_type: Any) -> Codec:
    try:
        return _kept_codec(state_type)
    except TypeError:  # it does not hash: metadata of an Annotated argument, say
        return _new_codec(state_type)


def _new_codec(state_type: Any) -> Codec:
    class_of(state_type)
    return build(state_type)


# Bounded, so that classes made in functions are not kept for ever; classes are told apart by
# identity, whatever their names.
_kept_codec = functools.lru_cache(maxsize=1024)(_new_codec)


def is_state_type(cls: Any) -> bool:
    """Say whether a class is of a kind that states can be."""
    return is_attrs(cls) or is_dataclass(cls) or is_typeddict(cls)


def class_of(state_type: Any) -> Any:
    """Answer the class of a type, which may be generic; `StateTypeError` if it is no state type."""
    cls = origin_of(state_type)
    if is_state_type(cls):
        return cls

    actual = getattr(state_type, "__qualname__", None) or describe(state_type)
    message = f"a state type must be {_KINDS}, found {actual}; nothing was encoded or decoded"
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


def _misfit(error: Exception) -> Misfit:
    """Make the best of an error whose place is not known."""
    if isinstance(error, Misfit):
        return error

    if isinstance(error, RecursionError):
        return Misfit(f"at most {MAX_LEVELS} levels of nesting", "more, or too deep a call stack")

    return Misfit("a value its type takes", f"{type(error).__name__}: {error}")


def _explained(call: typing.Callable[[], object], error: Exception) -> Misfit:
    """Do the work again in the form that tracks the path, and answer what it says."""
    try:
        call()
    except Exception as explained:
        return _misfit(explained)

    return _misfit(error)


def _not_plain(value: object, error: Exception) -> EncodingError:
    misfit = _explained(lambda: check_json(value, explain=True), error)
    return _refusal("data cannot be kept", misfit)


def _not_kept(state: object, state_type: Any, error: Exception) -> EncodingError:
    misfit = _explained(lambda: build(state_type, explain=True).enc(state), error)
    return _refusal(f"state of type {type_name(state_type)} cannot be kept", misfit)


def _refusal(subject: str, misfit: Misfit) -> EncodingError:
    error = EncodingError(_sentence(subject, misfit, "encoded"), path=misfit.path)
    error.__cause__ = misfit.__cause__
    return error


def _not_fitting(value: object, state_type: Any, error: Exception) -> StateTypeError:
    misfit = _explained(lambda: build(state_type, explain=True).dec(value, None), error)
    name = type_name(state_type)
    message = _sentence(f"data does not fit the type {name}", misfit, "decoded")
    refusal = StateTypeError(message, expected=name, actual=None)
    refusal.__cause__ = misfit.__cause__
    return refusal


def _sentence(subject: str, misfit: Misfit, verb: str) -> str:
    why = f" ({misfit.why})" if misfit.why else ""
    return (
        f"{subject}: at {misfit.path} expected {misfit.expected}, "
        f"found {misfit.found}{why}; nothing was {verb}"
    )

"""State to bytes and back: values of drawn types, drawn values of every type."""

# The value drawn decides whether there is an error to look at: PT017.
# ruff: noqa: PT017

from __future__ import annotations

import dataclasses
import math
import struct
import typing
from datetime import date
from datetime import datetime
from datetime import time
from datetime import timedelta
from datetime import timezone
from decimal import Decimal
from enum import Enum
from enum import Flag
from enum import IntEnum
from enum import IntFlag
from enum import StrEnum
from typing import Any
from typing import Generic
from typing import Literal
from typing import NamedTuple
from typing import NotRequired
from typing import TypedDict
from typing import TypeVar
from uuid import UUID
from zoneinfo import ZoneInfo

import attrs
import pytest
from hypothesis import HealthCheck
from hypothesis import assume
from hypothesis import example
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st

from catga_store.codec import decode_json
from catga_store.codec import encode_json
from catga_store.codec.states import decode_state
from catga_store.codec.states import encode_state
from catga_store.codec.states import type_of
from catga_store.errors import CorruptRecordError
from catga_store.errors import EncodingError
from catga_store.errors import StateTypeError

T = TypeVar("T")


class Colour(Enum):
    """Values that JSON has."""

    RED = "red"
    GREEN = 2


class Odd(Enum):
    """Values that JSON has not."""

    PAIR = (1, 2)
    HALF = 0.5


class Rank(IntEnum):
    """Also an int."""

    LOW = 1
    HIGH = 2


class Mode(StrEnum):
    """Also a str."""

    FAST = "fast"
    SLOW = "slow"


class Right(Flag):
    """Members that combine."""

    READ = 1
    WRITE = 2
    RUN = 4


class Bit(IntFlag):
    """Members that combine, also ints, unknown bits included."""

    ONE = 1
    TWO = 2


class Point(NamedTuple):
    """A tuple with names."""

    x: int
    label: str = "p"


@attrs.define
class Money:
    """An attrs class with slots."""

    amount: Decimal
    currency: str = "EUR"


@dataclasses.dataclass
class Inbox:
    """A dataclass that holds itself."""

    sku: str
    price: Money | None = None
    parts: list[Inbox] = dataclasses.field(default_factory=list)


@attrs.frozen
class Box(Generic[T]):
    """A generic attrs class that hashes if its content does."""

    content: T


class Address(TypedDict):
    """A TypedDict with a key that may be absent."""

    street: str
    floor: NotRequired[int]


def same(left: Any, right: Any) -> bool:  # noqa: C901, PLR0911  one line per kind of value
    """Equal in value and in type, all the way down; -0.0 is not 0.0 and 1 is not True."""
    if left.__class__ is not right.__class__:
        return False

    if isinstance(left, float):
        return struct.pack("d", left) == struct.pack("d", right)

    if isinstance(left, Decimal):
        return bool(left.as_tuple() == right.as_tuple())

    if isinstance(left, datetime | time):
        naive = left.tzinfo is None
        if naive != (right.tzinfo is None) or left.utcoffset() != right.utcoffset():
            return False

        plain = left.replace(tzinfo=None) == right.replace(tzinfo=None)
        return plain and (not naive or left.fold == right.fold)

    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))

    if isinstance(left, set | frozenset):
        return len(left) == len(right) and all(any(same(a, b) for b in right) for a in left)

    if isinstance(left, dict):
        return same(list(left.items()), list(right.items()))

    if attrs.has(left.__class__):
        names = [field.name for field in attrs.fields(left.__class__)]
        return all(same(getattr(left, n), getattr(right, n)) for n in names)

    if dataclasses.is_dataclass(left):
        return all(
            same(getattr(left, f.name), getattr(right, f.name)) for f in dataclasses.fields(left)
        )

    return bool(left == right)


# Offsets below a second are refused: `fromisoformat` reads them as UTC.
offsets = (
    st.timedeltas(timedelta(hours=-23), timedelta(hours=23))
    .filter(lambda offset: not offset or abs(offset) >= timedelta(seconds=1))
    .map(timezone)
)
zones: Any = st.none() | offsets | st.sampled_from([timezone.utc, ZoneInfo("Europe/Berlin")])  # noqa: UP017  the way people write it
datetimes = st.datetimes(datetime(2, 1, 1), datetime(9998, 1, 1), timezones=zones)  # noqa: DTZ001  naive ones too
moneys = st.builds(Money, st.decimals(), st.text())
lines = st.recursive(
    st.builds(Inbox, st.text(), st.none() | moneys, st.just([])),
    lambda inner: st.builds(Inbox, st.text(), st.none() | moneys, st.lists(inner, max_size=3)),
    max_leaves=5,
)
addresses = st.fixed_dictionaries({"street": st.text()}, optional={"floor": st.integers()})
huge = st.integers() | st.integers(-(2**300), 2**300) | st.sampled_from([2**63, -(2**63) - 1])
leaf_json = st.none() | st.booleans() | huge | st.floats(allow_nan=False, allow_infinity=False)
plain_json = st.recursive(
    leaf_json | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)

LEAVES: list[tuple[Any, st.SearchStrategy[Any]]] = [
    (str, st.text()),
    (int, huge),
    (float, st.floats(allow_nan=False, allow_infinity=False)),
    (bool, st.booleans()),
    (None, st.none()),
    (bytes, st.binary()),
    (datetime, datetimes | datetimes.map(lambda d: d.replace(fold=1))),
    (date, st.dates()),
    (time, st.times(timezones=st.none() | offsets) | st.times().map(lambda t: t.replace(fold=1))),
    (timedelta, st.timedeltas() | st.sampled_from([timedelta.min, timedelta.max])),
    (Decimal, st.decimals() | st.sampled_from([Decimal("-0E+9"), Decimal("sNaN12")])),
    (UUID, st.uuids()),
    (Colour, st.sampled_from(Colour)),
    (Odd, st.sampled_from(Odd)),
    (Rank, st.sampled_from(Rank)),
    (Mode, st.sampled_from(Mode)),
    (Right, st.integers(0, 7).map(Right)),
    (Bit, st.integers(0, 15).map(Bit)),
    (Literal["a", 1, True, None, b"x"], st.sampled_from(["a", 1, True, None, b"x"])),  # noqa: PYI061  `None` among others
]
RECORDS: list[tuple[Any, st.SearchStrategy[Any]]] = [
    (Point, st.builds(Point, st.integers(), st.text())),
    (Money, moneys),
    (Inbox, lines),
    (Address, addresses),
    (Any, plain_json),
    (object, plain_json),
]


def hashable(value: Any) -> bool:
    """Whether a value can be in a set, and equals itself there."""
    try:
        return bool(hash(value) == hash(value) and value == value)  # noqa: PLR0124  NaN
    except (TypeError, ArithmeticError):
        return False


# By these names type checkers do not take `list[of]` for a type.
LIST: Any = list
SEQUENCE: Any = typing.Sequence
TUPLE: Any = tuple
DICT: Any = dict
OPTIONAL: Any = typing.Optional
BOX: Any = Box


def containers(
    inner: st.SearchStrategy[tuple[Any, st.SearchStrategy[Any]]],
) -> st.SearchStrategy[tuple[Any, st.SearchStrategy[Any]]]:
    """Draw a container type around drawn types, with the strategy of its values."""

    @st.composite
    def one(draw: st.DrawFn) -> tuple[Any, st.SearchStrategy[Any]]:  # noqa: PLR0911  one per kind
        kind = draw(
            st.sampled_from(
                [
                    "list",
                    "sequence",
                    "tuple",
                    "fixed",
                    "set",
                    "frozenset",
                    "dict",
                    "optional",
                    "box",
                ]
            )
        )
        of, values = draw(inner)
        if kind == "list":
            return LIST[of], st.lists(values, max_size=4)

        if kind == "sequence":
            return SEQUENCE[of], st.lists(values, max_size=4)

        if kind == "tuple":
            return TUPLE[of, ...], st.lists(values, max_size=4).map(tuple)

        if kind == "fixed":
            second, others = draw(inner)
            return TUPLE[of, second], st.tuples(values, others)

        if kind in ("set", "frozenset"):
            elements = st.lists(values.filter(hashable), max_size=4)
            maker: Any = set if kind == "set" else frozenset
            return maker[of], elements.map(maker)

        if kind == "dict":
            second, others = draw(inner)
            return DICT[of, second], st.dictionaries(values.filter(hashable), others, max_size=4)

        if kind == "optional":
            return OPTIONAL[of], st.none() | values

        return BOX[of], values.map(Box)

    return one()


HASHED = [*LEAVES, RECORDS[0]]
types_and_values = st.recursive(st.sampled_from(HASHED + RECORDS), containers, max_leaves=4)


def fits(kind: Any) -> bool:
    """Leave out sets and dict keys of what never hashes: filtering their values finds none."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (set, frozenset, dict) and never_hashes(arguments[0]):
        return False

    return all(fits(a) for a in arguments if a is not Ellipsis)


def never_hashes(kind: Any) -> bool:
    """Whether most values of a type have no hash."""
    if kind in (Money, Inbox, Address, Any, object):
        return True

    origin = typing.get_origin(kind)
    return origin in (list, set, dict, typing.get_origin(typing.Sequence[int])) or any(
        never_hashes(a)
        for a in typing.get_args(kind)
        if a is not Ellipsis and origin is not Literal
    )


@st.composite
def typed_states(draw: st.DrawFn) -> tuple[Any, Any]:
    """Draw a class with one field of a drawn type, and an instance: attrs, dataclass, TypedDict."""
    pair = draw(types_and_values.filter(lambda pair: fits(pair[0])))
    kind, values = pair
    value = draw(values)
    form = draw(st.sampled_from(["define", "dict", "dataclass", "typeddict"]))
    if form == "typeddict":
        return TypedDict("Held", {"field": kind}), {"field": value}  # type: ignore[operator]

    cls: Any
    if form == "dataclass":
        cls = dataclasses.make_dataclass("Held", [("field", kind)])
    else:
        cls = attrs.make_class("Held", {"field": attrs.field(type=kind)}, slots=form == "define")

    return cls, cls(value)


@given(typed_states())
@settings(max_examples=400, suppress_health_check=list(HealthCheck), deadline=None)
def test_a_state_of_any_supported_type_comes_back_equal_in_value_and_type(
    drawn: tuple[Any, Any],
) -> None:
    """Decoding gives an equal value of equal types, and encoding that gives the same bytes."""
    state_type, state = drawn
    data = encode_state(state, type_of(state, state_type))
    back = decode_state(memoryview(data), state_type)
    assert same(back, state), (back, state)
    assert encode_state(back, state_type) == data
    assert back is not state


@pytest.mark.parametrize(
    ("kind", "values"), [pytest.param(*pair, id=str(pair[0])) for pair in LEAVES + RECORDS]
)
def test_every_type_alone_and_as_element_and_key(kind: Any, values: st.SearchStrategy[Any]) -> None:
    """Values of each type come back exactly as field, list element, set element, key and member."""
    keys = st.nothing() if never_hashes(kind) else values.filter(hashable)
    held = attrs.make_class(
        "Held",
        {
            "alone": attrs.field(type=kind),
            "several": attrs.field(type=list[kind]),
            "either": attrs.field(
                type=kind | list[Inbox] if kind not in (Any, object, None) else Any
            ),
            "unique": attrs.field(type=Any if never_hashes(kind) else frozenset[kind]),
            "by_key": attrs.field(type=Any if never_hashes(kind) else dict[kind, int]),
        },
    )

    @given(
        st.tuples(
            values,
            st.lists(values, max_size=3),
            values if kind in (Any, object, None) else values | st.lists(lines, max_size=2),
            st.none() if never_hashes(kind) else st.frozensets(keys, max_size=3),
            st.none() if never_hashes(kind) else st.dictionaries(keys, huge, max_size=3),
        )
    )
    @settings(max_examples=30, suppress_health_check=list(HealthCheck), deadline=None)
    def round_trip(parts: Any) -> None:
        state = held(*parts)
        data = encode_state(state, held)
        back = decode_state(data, held)
        assert same(back, state), (back, state)
        assert encode_state(back, held) == data

    round_trip()


@given(plain_json)
@example(2**64)
@example("\x00\x7f\u2028\U0001f600")
@example({"": {"$type": "A", "value": 1}})
@example([5e-324, -0.0, 1e22, 1.7976931348623157e308])
def test_plain_data_comes_back_equal_in_value_and_type(value: Any) -> None:
    """Any JSON data comes back exactly, without a type and as the field of an `Any`."""
    data = encode_json(value)
    assert same(decode_json(data), value)
    assert encode_json(decode_json(data)) == data
    assert encode_state(value, None) == data
    assert same(decode_state(data, None), value)


@given(
    st.recursive(
        st.text(st.characters()) | st.floats() | st.tuples() | st.binary() | st.integers(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters()) | huge, inner),
        max_leaves=6,
    )
)
@example("\ud800")
@example({"\udfff": 1})
@example(math.nan)
def test_any_value_comes_back_equal_or_is_refused(value: Any) -> None:
    """No value is ever changed: it is equal after the round trip, or it was an `EncodingError`."""
    try:
        data = encode_json(value)
    except EncodingError as error:
        assert error.path.startswith("$")
    else:
        assert same(decode_json(data), value)


ANYTHING = st.one_of(*(values for _, values in LEAVES + RECORDS))


@given(st.sampled_from(LEAVES + RECORDS), ANYTHING)
@settings(max_examples=600, deadline=None)
def test_a_value_of_another_class_is_never_changed(
    pair: tuple[Any, st.SearchStrategy[Any]], value: Any
) -> None:
    """Under any declared type a value of any class comes back exactly, or is refused at `$.field`."""
    held: Any = attrs.make_class("Held", {"field": attrs.field(type=pair[0])})
    try:
        data = encode_state(held(value), held)
    except EncodingError as error:
        assert error.path.startswith("$.field")
    else:
        assert same(decode_state(data, held).field, value)


@given(st.sampled_from(LEAVES + RECORDS), plain_json)
@settings(max_examples=400, deadline=None)
def test_data_of_another_shape_never_makes_a_value_of_another_class(
    pair: tuple[Any, st.SearchStrategy[Any]], value: Any
) -> None:
    """Any JSON read as any type is a value that can be written again, or a `StateTypeError`."""
    held: Any = attrs.make_class("Held", {"field": attrs.field(type=pair[0])})
    try:
        state = decode_state(encode_json({"field": value}), held)
    except StateTypeError as error:
        assert "$.field" in str(error)
        assert error.expected == "Held"
    else:
        assert same(decode_state(encode_state(state, held), held), state)


@given(
    st.binary() | plain_json.map(encode_json).flatmap(lambda b: st.just(b[:-1]) | st.just(b"[" + b))
)
@example(b"")
@example(b"NaN")
@example(b"1e400")
@example(b'"\\ud800"')
@example(b'"\xed\xa0\x80"')
@example(b"\xef\xbb\xbf1")
@example(b"[1] x")
@example(b"[" * 100_000)
@example(b"9" * 5000)
def test_data_that_is_not_json_is_corrupt(data: bytes) -> None:
    """Any bytes are read as JSON data that is written again, or are a `CorruptRecordError`."""
    try:
        value = decode_json(data)
    except CorruptRecordError as error:
        assert error.key is None
        assert str(error).startswith("expected JSON")
    else:
        assert same(decode_json(encode_json(value)), value)


@attrs.define
class Tags:
    """Sets of what has a natural order and of what has not."""

    names: set[str]
    mixed: frozenset[int | str | None]
    times: set[datetime]


@given(
    st.lists(st.text(), unique=True),
    st.lists(st.integers() | st.text() | st.none(), unique=True),
    st.lists(st.datetimes(), unique=True),
    st.randoms(use_true_random=False),
)
def test_equal_sets_have_equal_bytes(
    names: list[str], mixed: list[Any], times: list[datetime], random: Any
) -> None:
    """The order in which a set was filled does not show in its bytes."""
    state = Tags(set(names), frozenset(mixed), set(times))
    data = encode_state(state, Tags)
    for each in (names, mixed, times):
        random.shuffle(each)

    assert encode_state(Tags(set(names), frozenset(mixed), set(times)), Tags) == data


@given(st.dictionaries(st.text(), st.integers()))
def test_the_order_of_a_dict_is_kept(value: dict[str, int]) -> None:
    """A dict comes back in the order in which it was filled."""
    assume(len(value) > 1)
    assert list(decode_json(encode_json(value)).items()) == list(value.items())

"""Values that would be lost or changed by being stored are refused when they are written."""

# The value drawn decides whether there is an error to look at: PT017.
# ruff: noqa: PT017

from __future__ import annotations

import copy
import dataclasses
import enum
import functools
import pickle
import typing
from collections.abc import Callable
from datetime import UTC
from datetime import date
from datetime import datetime
from datetime import time
from datetime import timedelta
from datetime import timezone
from decimal import Decimal
from typing import Any
from typing import Generic
from typing import Literal
from typing import NamedTuple
from typing import TypeVar
from uuid import UUID
from zoneinfo import ZoneInfo

import attrs
import msgspec
import pytest
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st

import catga_store as cs
from catga_store import codec

T = TypeVar("T")

BERLIN = ZoneInfo("Europe/Berlin")
REPEATED = datetime(2024, 10, 27, 2, 30, tzinfo=BERLIN)  # twice that night
SAME = REPEATED.astimezone(timezone(timedelta(hours=2)))  # the same instant and offset
NAN, ANOTHER_NAN = Decimal("NaN"), Decimal("NaN")
DIGITS = 10**4300 - 1


class Entry(NamedTuple):
    """A tuple with names."""

    when: datetime
    what: str


@attrs.frozen
class Folded:
    """Two that differ may be equal when they are read."""

    text: str = attrs.field(converter=str.casefold)


@attrs.frozen(eq=False)
class Alike:
    """Two are never equal."""

    number: int


class Colour(enum.Enum):
    """With two names for one member."""

    RED = 1
    CRIMSON = 1  # noqa: PIE796  an alias is what is meant
    BLUE = "1"


def held(kind: Any, **options: Any) -> Any:
    """Make a class with one field of a type."""
    return attrs.make_class("Held", {"field": attrs.field(type=kind, **options)})


@functools.lru_cache
def held_once(kind: Any) -> Any:
    """Make a class once, as compiling it takes longer than all else."""
    return held(kind)


def encode(kind: Any, value: Any) -> bytes:
    """Encode a value as the field of a class."""
    cls = held_once(kind)
    return codec.encode_state(cls(value), cls)


# --- elements and keys that meet ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "value", "path"),
    [
        (set[datetime], {REPEATED, SAME}, "$.field[*]"),
        (set[datetime], {REPEATED, REPEATED.astimezone(UTC)}, "$.field[*]"),
        (frozenset[datetime | None], frozenset({REPEATED, SAME, None}), "$.field[*]"),
        (dict[datetime, int], {REPEATED: 1, SAME: 2}, f"$.field[{SAME!r}]"),
        (dict[datetime | int, int], {REPEATED: 1, SAME: 2}, f"$.field[{SAME!r}]"),
        (dict[tuple[datetime, int], int], {(REPEATED, 1): 1, (SAME, 1): 2}, "$.field[<tuple>]"),
        (set[Entry], {Entry(REPEATED, "a"), Entry(SAME, "a")}, "$.field[*]"),
        (set[frozenset[datetime]], {frozenset({REPEATED}), frozenset({SAME})}, "$.field[*]"),
        (list[set[datetime]], [set(), {REPEATED, SAME}], "$.field[1][*]"),
        (dict[Decimal, int], {NAN: 1, ANOTHER_NAN: 2}, "$.field[Decimal('NaN')]"),
        (set[Decimal], {NAN, ANOTHER_NAN}, "$.field[*]"),
        (set[tuple[Decimal, ...]], {(NAN,), (ANOTHER_NAN,)}, "$.field[*]"),
        (dict[tuple[Decimal, int], int], {(NAN, 1): 1, (ANOTHER_NAN, 1): 2}, "$.field[<tuple>]"),
        (dict[Decimal | int, int], {NAN: 1, ANOTHER_NAN: 2}, "$.field[Decimal('NaN')]"),
        (set[Alike], {Alike(1), Alike(1)}, "$.field[*]"),
    ],
)
def test_elements_that_meet_are_refused(kind: Any, value: Any, path: str) -> None:
    """Equal JSON, or equal values once they are read: one of the two would be lost."""
    with pytest.raises(cs.EncodingError, match="still differ when read back") as caught:
        encode(kind, value)

    assert caught.value.path == path


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (set[datetime], {REPEATED, REPEATED + timedelta(days=1)}),
        (dict[Decimal, int], {Decimal("1.0"): 1, Decimal("NaN"): 2}),
        (dict[Decimal, int], {Decimal("1.00"): 1, Decimal(1): 2, Decimal("-0"): 3}),
        (dict[float, int], dict.fromkeys([0.0, -0.0, 1.0], 1)),
        (dict[int | float | bool | None, int], dict.fromkeys([1, True, 2.0, None], 1)),
        (dict[Literal[1, "1"], int], {1: 1, "1": 2}),
        (dict[Colour, int], {Colour.RED: 1, Colour.CRIMSON: 2, Colour.BLUE: 3}),
        (
            dict[str, int],
            {"e\N{COMBINING ACUTE ACCENT}": 1, "\N{LATIN SMALL LETTER E WITH ACUTE}": 2},
        ),
        (dict[bytes, int], {b"": 1, b"\0": 2, b"\0\0": 3}),
        (dict[UUID, int], {UUID(int=1): 1, UUID(int=2): 2}),
        (set[time], {time(1), time(1, tzinfo=UTC), time(2, fold=1)}),
        (set[Alike], {Alike(1), Alike(2)}),
        (dict[int, int], {DIGITS: 1, -(DIGITS // 10): 2}),
    ],
)
def test_elements_that_do_not_meet_come_back(kind: Any, value: Any) -> None:
    """As many as there were, and as the same JSON."""
    data = encode(kind, value)
    read = codec.decode_state(data, held(kind)).field
    assert len(read) == len(value)
    assert encode(kind, read) == data


SCALARS: dict[Any, st.SearchStrategy[Any]] = {
    str: st.text(st.characters(exclude_categories=["Cs"]), max_size=2),
    int: st.integers(-2, 2) | st.sampled_from([DIGITS, -DIGITS]),
    bool: st.booleans(),
    None: st.none(),
    float: st.sampled_from([0.0, -0.0, 1.0, 5e-324, 2.0**70]),
    bytes: st.binary(max_size=2),
    Decimal: st.sampled_from(
        [*map(Decimal, ("1", "1.0", "-0", "0", "Infinity")), NAN, ANOTHER_NAN]
    ),
    datetime: st.sampled_from(
        [
            REPEATED,
            REPEATED.replace(fold=1),
            SAME,
            SAME.astimezone(UTC),
            SAME.replace(tzinfo=None),
            SAME.replace(tzinfo=None, fold=1),
            SAME + timedelta(microseconds=1),
        ]
    ),
    date: st.dates(date(2024, 1, 1), date(2024, 1, 3)),
    time: st.sampled_from([time(1), time(1, fold=1), time(1, tzinfo=UTC), time(0, tzinfo=UTC)]),
    timedelta: st.integers(-1, 1).map(lambda n: timedelta(microseconds=n)),
    UUID: st.integers(0, 2).map(lambda n: UUID(int=n)),
    Colour: st.sampled_from(Colour),
    Folded: st.builds(Folded, st.sampled_from(["a", "A", "ß", "ss"])),
    Alike: st.builds(Alike, st.integers(0, 1)),
}


@st.composite
def elements(draw: Callable[..., Any]) -> tuple[Any, list[Any]]:
    """A type whose values may be keys, and some of its values."""
    kind = draw(st.sampled_from([*SCALARS]))
    other = draw(st.sampled_from([each for each in SCALARS if each is not kind]))
    one, another = SCALARS[kind], SCALARS[other]
    form = draw(st.sampled_from(["alone", "union", "pair", "many", "set"]))
    if form == "union":
        kind, one = kind | other if kind is not None else other | None, one | another
    elif form == "pair":
        kind, one = tuple[kind, other], st.tuples(one, another)
    elif form == "many":
        kind, one = tuple[kind, ...], st.lists(one, max_size=2).map(tuple)
    elif form == "set":
        kind, one = frozenset[kind], st.frozensets(one, max_size=3)

    return kind, draw(st.lists(one, max_size=4))


@given(elements())
@settings(max_examples=400, deadline=None)
def test_sets_and_dicts_come_back_whole_or_are_refused(drawn: tuple[Any, list[Any]]) -> None:
    """With as many elements and keys, which are equal wherever they could be told apart."""
    kind, values = drawn
    for form, value in ((set[kind], set(values)), (dict[kind, int], dict.fromkeys(values, 0))):
        try:
            data = encode(form, value)
        except cs.EncodingError as error:
            assert error.path.startswith("$.field")
            continue

        read = codec.decode_state(data, held_once(form)).field
        assert len(read) == len(value)
        assert encode(form, read) == data


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (int, -DIGITS),
        pytest.param(int, DIGITS + 1, id="long"),
        (Any, [-DIGITS]),
        (set[int], {-DIGITS}),
        (dict[int, int], {-DIGITS: 1}),
        pytest.param(dict[int, int], {10**5000: 1}, id="huge"),
        (dict[int | None, int], {-DIGITS: 1}),
    ],
)
def test_an_int_that_could_not_be_read_is_refused(kind: Any, value: Any) -> None:
    """One digit less if there is a sign; the message does not try to show it."""
    with pytest.raises(cs.EncodingError, match="an int of at most 4300 digits") as caught:
        encode(kind, value)

    assert len(str(caught.value)) < 300


# --- classes that change what they are made of --------------------------------------------------


@dataclasses.dataclass
class Growing:
    """Its list is longer after each reading."""

    items: list[int]

    def __post_init__(self) -> None:
        self.items = [*self.items, 0]


@attrs.define
class Shouting:
    """Its text is longer after each reading."""

    text: str = attrs.field(converter=lambda text: text + "!")


@attrs.define
class Counting:
    """What `__attrs_post_init__` counts is kept."""

    number: int

    def __attrs_post_init__(self) -> None:
        self.number += 1


@dataclasses.dataclass
class Setting:
    """A `__setattr__` of its own."""

    number: int

    def __setattr__(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value + 1)


@attrs.define(slots=False)
class SettingAttrs:
    """A `__setattr__` of its own, of an attrs class."""

    number: int

    def __setattr__(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value + 1)


@dataclasses.dataclass
class Doubling:
    """An `__init__` of its own that takes its fields."""

    number: int

    def __init__(self, number: int) -> None:
        self.number = number * 2


@attrs.define(init=False)
class DoublingAttrs:
    """The same of an attrs class."""

    number: int

    def __init__(self, number: int) -> None:
        self.number = number * 2


@dataclasses.dataclass
class Reading:
    """Its fields are read in its own way."""

    number: int

    def __getattribute__(self, name: str) -> Any:
        value = object.__getattribute__(self, name)
        return value + 1 if name == "number" else value


class Meta(type):
    """Makes instances in its own way."""

    def __call__(cls, number: int) -> Any:
        return super().__call__(number + 1)


@dataclasses.dataclass
class Called(metaclass=Meta):
    """Its metaclass changes what it is made of."""

    number: int


class Counter:
    """A descriptor that counts up what is set."""

    def __get__(self, instance: Any, _owner: object = None) -> int:
        return 0 if instance is None else instance.__dict__["number"]

    def __set__(self, instance: Any, value: int) -> None:
        instance.__dict__["number"] = value + 1


@dataclasses.dataclass
class Described:
    """Its field is a descriptor, which looks like a default of the class."""

    number: int = Counter()  # type: ignore[assignment]  as the documentation of dataclasses does


@dataclasses.dataclass
class Tidy:
    """Its `__post_init__` leaves alone what it has made."""

    names: list[str]
    first: str = dataclasses.field(init=False, default="")

    def __post_init__(self) -> None:
        self.names = sorted(self.names)
        self.first = self.names[0]


@pytest.mark.parametrize(
    ("kind", "value", "path"),
    [
        (Growing, Growing([1]), "$.field.items"),
        (list[Shouting], [Shouting("a")], "$.field[0].text"),
        (dict[str, Counting], {"a b": Counting(1)}, "$.field['a b'].number"),
        (Setting | None, Setting(1), "$.field.number"),
        (SettingAttrs, SettingAttrs(1), "$.field.number"),
        (Doubling, Doubling(1), "$.field.number"),
        (DoublingAttrs, DoublingAttrs(1), "$.field.number"),
        (Reading, Reading(1), "$.field.number"),
        (Called, Called(1), "$.field.number"),
        (Described, Described(1), "$.field.number"),
    ],
)
def test_a_value_that_reading_changes_is_refused(kind: Any, value: Any, path: str) -> None:
    """It would be another state after each read, wherever in the state it stands."""
    with pytest.raises(
        cs.EncodingError, match="value that does not change when it is read back"
    ) as caught:
        encode(kind, value)

    assert caught.value.path == path


def test_a_value_that_reading_leaves_alone_is_kept() -> None:
    """Converters and `__post_init__` are fine when they leave alone what they have made."""
    state = Tidy(["b", "a"])
    read = codec.decode_state(codec.encode_state(state, Tidy), Tidy)
    assert (read, read.first) == (state, "a")
    assert encode(Folded, Folded("A")) == b'{"field":{"text":"a"}}'


def test_a_value_that_its_class_would_refuse_is_refused() -> None:
    """If the class converts, so that its states are read back; the error says what it said."""
    cls = held(list[int], converter=list, validator=attrs.validators.max_len(2))
    state = cls([1])
    state.field.extend([2, 3])
    with pytest.raises(cs.EncodingError, match=r"must be <= 2: 3\) \(reading .* fail") as caught:
        codec.encode_state(state, cls)

    assert isinstance(caught.value.__cause__, ValueError)


# --- classes of other libraries -----------------------------------------------------------------


class Struct(msgspec.Struct):
    """A struct."""

    number: int


class BaseModel:
    """What pydantic's looks like from outside."""

    __module__ = "pydantic.main"


class Model(BaseModel):
    """A model."""


@dataclasses.dataclass
class PydanticDataclass:
    """What one looks like from outside."""

    number: int
    __is_pydantic_dataclass__ = True


@pytest.mark.parametrize(
    ("value", "advice"),
    [
        (Struct(1), "msgspec.to_builtins"),
        (Model(), "model.model_dump"),
        (PydanticDataclass(1), "a dataclass from the standard library"),
    ],
)
def test_classes_of_other_libraries_are_refused_with_advice(value: Any, advice: str) -> None:
    """As a state, as its type, and anywhere inside it."""
    store, kind = cs.MemoryStore(), value.__class__
    for act in (
        lambda: store.create(cs.FlowSnapshot("f", state=value)),
        lambda: store.create(cs.FlowSnapshot("f", state=value, state_type=kind)),
        lambda: store.get("f", kind),
        lambda: encode(kind, value),
        lambda: encode(list[kind], [value]),
    ):
        with pytest.raises((cs.EncodingError, cs.StateTypeError), match=advice):
            act()

    if not dataclasses.is_dataclass(kind):
        with pytest.raises(cs.EncodingError, match=advice):
            codec.encode_json([value])


# --- arguments of generic types -----------------------------------------------------------------


@attrs.define
class Box(Generic[T]):
    """Holds a value of any type."""

    value: T


def test_another_argument_is_another_type() -> None:
    """Text that looks like a number is not read as one, in a store or in a session."""
    store = cs.MemoryStore()
    flow = cs.FlowSnapshot("f", state=Box("12.5"), state_type=Box[str])
    store.create(flow)
    assert store.get_one("f", Box[str]).state == Box("12.5")
    for kind in (Box[Decimal], Box[str | None], Box[Any]):
        with pytest.raises(
            cs.StateTypeError, match=r"of type Box\[str\] but was requested"
        ) as caught:
            store.get_one("f", kind)

        assert caught.value.actual == "Box[str]"
        with store.session() as session, pytest.raises(cs.StateTypeError):
            session.get_one("f", kind)

    assert store.get_one("f").state == {"value": "12.5"}
    raw = store.get_one("f")
    raw.state["value"] = "13"
    store.update(raw)
    with pytest.raises(cs.StateTypeError):
        store.get_one("f", Box[Decimal])

    with store.session() as session:
        found = session.get_one("f", Box[str])
        assert session.dirty == ()
        found.state.value = "14"
        session.commit()

    assert store.get_one("f", Box[str]).state == Box("14")


def test_arguments_are_compared_as_they_are_meant() -> None:
    """Not by order of a union, nor by what merely stands for something else."""
    name = codec.naming(Box[list[int | None]]).arguments
    assert name == "[list[None | int]]"
    assert codec.naming(Box[list[typing.Union[None, int]]]).arguments == name  # noqa: UP007, RUF036
    assert codec.naming(Box[Box[Colour]]).arguments == "[Box[Colour]]"
    assert codec.naming(Box[Literal["a", 1]]).arguments == "[Literal['a', 1]]"
    assert codec.naming(Box).arguments == codec.naming(None).arguments == ""


# --- due at once, and moments of other libraries ------------------------------------------------


def test_a_new_flow_is_due_now() -> None:
    """`NOW` prints as what it is, stays itself when copied, and becomes the time of the write."""
    store, flow = cs.MemoryStore(), cs.FlowSnapshot("f", state={})
    assert (str(flow.due_at), repr(flow.due_at)) == ("now", "NOW")
    assert flow.due_at is cs.NOW
    assert copy.deepcopy(cs.NOW) is cs.NOW is pickle.loads(pickle.dumps(cs.NOW))
    store.create(flow)
    assert flow.due_at == flow.created_at
    flow.due_at = None
    store.update(flow)
    flow.due_at = cs.NOW
    store.update(flow)
    assert flow.due_at == flow.updated_at


class Moment(datetime):
    """A datetime with operators of its own, as those of pendulum are."""

    def __sub__(self, other: Any) -> Any:
        """Return a value that is not a timedelta."""
        return NotImplemented

    __rsub__ = __lt__ = __le__ = __sub__


class Span(timedelta):
    """A timedelta with operators of its own."""

    def __floordiv__(self, other: Any) -> Any:
        """Fail, as pendulum's does."""
        raise AttributeError

    __neg__ = __le__ = __ge__ = __lt__ = __floordiv__  # type: ignore[assignment]


def test_subclasses_of_datetime_and_timedelta_are_taken_by_value() -> None:
    """Whatever operators they have; inside a state they are refused by name, as any subclass is."""
    moment = Moment(2030, 1, 1, 1, tzinfo=timezone(timedelta(hours=1)))
    store = cs.MemoryStore()
    flow = cs.FlowSnapshot("f", state={}, due_at=moment, created_at=moment)
    assert flow.due_at == flow.created_at == datetime(2030, 1, 1, tzinfo=UTC)
    wait = cs.WaitCondition("w", flow_ids=["c"], timeout=Span(minutes=5))
    assert type(wait.timeout) is timedelta
    assert wait.timeout == timedelta(minutes=5)
    store.create(cs.FlowSnapshot("g", state={}))
    (claimed,) = store.claim_due(lease=Span(seconds=5))
    store.release(claimed, due_at=moment)
    assert store.get_one("g").due_at == datetime(2030, 1, 1, tzinfo=UTC)
    with pytest.raises(cs.EncodingError, match=r"expected datetime, found .*Moment"):
        encode(datetime, moment)

    with pytest.raises(cs.EncodingError, match=r"expected timedelta, found .*Span"):
        encode(timedelta, Span(1))

"""State to bytes and back: the named cases, every refusal with its path, and what is cached."""

from __future__ import annotations

import dataclasses
import enum
import subprocess
import sys
import threading
import typing
from collections import OrderedDict
from collections import deque
from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from datetime import date
from datetime import datetime
from datetime import time
from datetime import timedelta
from datetime import timezone
from datetime import tzinfo
from decimal import Decimal
from decimal import localcontext
from functools import cached_property
from pathlib import Path
from typing import Annotated
from typing import Any
from typing import ClassVar
from typing import Final
from typing import Generic
from typing import Literal
from typing import NamedTuple
from typing import NewType
from typing import NotRequired
from typing import Required
from typing import TypedDict
from typing import TypeVar
from uuid import UUID
from zoneinfo import ZoneInfo

import attrs
import pytest
from typing_extensions import ReadOnly
from typing_extensions import TypeAliasType

from catga_store import codec
from catga_store.codec import decode_json
from catga_store.codec import encode_json
from catga_store.codec import type_name
from catga_store.codec import type_version
from catga_store.codec.states import check_state_type
from catga_store.codec.states import decode_state
from catga_store.codec.states import encode_state
from catga_store.codec.states import type_of
from catga_store.errors import CorruptRecordError
from catga_store.errors import EncodingError
from catga_store.errors import StateTypeError

T = TypeVar("T")
Bounded = TypeVar("Bounded", bound=Decimal)
Either = TypeVar("Either", int, str)
Sku = NewType("Sku", str)


class Text(str):
    """A subclass of a JSON type."""

    __slots__ = ()


class Whole(int):
    """Another."""


class Colour(enum.Enum):
    """An enum."""

    RED = "red"
    BLUE = "blue"


class Rank(enum.IntEnum):
    """An enum of ints."""

    LOW = 1


@attrs.define
class Item:
    """One line of an order."""

    sku: str
    price: float = 1.0


@attrs.define
class SpecialItem(Item):
    """A subclass that a field of type `Item` does not take."""

    note: str = ""


class Pair(NamedTuple):
    """A tuple with names."""

    left: int
    right: Item


class Address(TypedDict, total=False):
    """Postponed annotations hide `Required` from `__required_keys__`."""

    street: Required[str]
    floor: int


class Visit(Address):
    """Another totality than its base."""

    at: datetime
    note: NotRequired[str]


@attrs.define
class Order:
    """A state with something of everything."""

    items: list[Item] = attrs.field(factory=list)
    by_id: dict[str, Item] = attrs.field(factory=dict)
    by_number: dict[int, Item] = attrs.field(factory=dict)
    by_uuid: dict[UUID, int] = attrs.field(factory=dict)
    by_flag: dict[bool, int] = attrs.field(factory=dict)
    count: int = 0
    name: str = ""
    total: Decimal = Decimal(0)
    when: datetime | None = None
    clock: time | None = None
    pair: tuple[int, str] = (1, "a")
    many: tuple[int, ...] = ()
    tags: set[str] = attrs.field(factory=set)
    frozen: frozenset[int] = frozenset()
    colour: Colour = Colour.RED
    rank: Rank = Rank.LOW
    choice: Literal["a", 1] = "a"
    data: bytes = b""
    extra: Any = None
    named: Pair | None = None
    address: Address = attrs.field(factory=lambda: Address(street="s"))
    sequence: Sequence[int] = attrs.field(factory=list)
    mapping: Mapping[str, int] = attrs.field(factory=dict)
    day: date | None = None
    either: int | str = 0


@dataclasses.dataclass
class Node:
    """A type inside itself."""

    name: str = ""
    next: Node | None = None
    others: list[Node] = dataclasses.field(default_factory=list)


def round_trip(state: Any, state_type: Any = None) -> Any:
    """Encode and decode, checking that a second encoding gives the same bytes."""
    state_type = type_of(state, state_type)
    data = encode_state(state, state_type)
    back = decode_state(data, state_type)
    assert encode_state(back, state_type) == data
    return back


def holding(kind: Any, **options: Any) -> Any:
    """Make an attrs class with one field of a type."""
    return attrs.make_class("Held", {"field": attrs.field(type=kind, **options)})


# --- refusals, each with its path ---------------------------------------------------------------


class NoOffset(tzinfo):
    """A time zone that does not know."""

    def utcoffset(self, dt: datetime | None, /) -> None:
        """Return None."""

    def dst(self, dt: datetime | None, /) -> None:
        """Return None."""

    def tzname(self, _: datetime | None, /) -> str:
        """Return a name."""
        return "?"


UNSET = Item("x")
del UNSET.price

REFUSED: list[tuple[str, Any]] = [
    ("$.items[2].price", {"items": [Item("a"), Item("b"), Item("c", True)]}),
    ("$.items[0].price", {"items": [Item("a", 1)]}),
    ("$.items[0].price", {"items": [Item("a", float("nan"))]}),
    ("$.items[0].price", {"items": [Item("a", float("-inf"))]}),
    ("$.items[0].price", {"items": [UNSET]}),
    ("$.items[1]", {"items": [Item("a"), SpecialItem("b")]}),
    ("$.items[0]", {"items": [{"sku": "a", "price": 1.0}]}),
    ("$.items", {"items": (Item("a"),)}),
    ("$.by_id['a b']", {"by_id": {"a b": None}}),
    ("$.by_id.a.sku", {"by_id": {"a": Item(1)}}),  # type: ignore[arg-type]
    ("$.by_id[1]", {"by_id": {1: Item("a")}}),
    ("$.by_id.a", {"by_id": {Text("a"): Item("a")}}),
    ("$.by_id", {"by_id": OrderedDict(a=Item("a"))}),
    ("$.by_number.a", {"by_number": {"a": Item("a")}}),
    ("$.by_number[True]", {"by_number": {True: Item("a")}}),
    ("$.by_number[1].sku", {"by_number": {1: Item(None)}}),  # type: ignore[arg-type]
    ("$.by_uuid[UUID('00000000-0000-0000-0000-000000000001')]", {"by_uuid": {UUID(int=1): "a"}}),
    ("$.by_flag[1]", {"by_flag": {1: 1}}),
    ("$.by_flag", {"by_flag": OrderedDict()}),
    ("$.count", {"count": True}),
    ("$.count", {"count": 1.0}),
    ("$.count", {"count": Whole(1)}),
    ("$.count", {"count": Rank.LOW}),
    ("$.count", {"count": 10**4300}),
    ("$.count", {"count": None}),
    ("$.name", {"name": Text("a")}),
    ("$.name", {"name": "a\ud800"}),
    ("$.name", {"name": b"a"}),
    ("$.total", {"total": 1}),
    ("$.when", {"when": date(2024, 1, 1)}),
    ("$.when", {"when": "2024-01-01T00:00:00"}),
    ("$.when", {"when": datetime(2024, 1, 1, tzinfo=NoOffset())}),
    ("$.when", {"when": datetime(2024, 1, 1, tzinfo=timezone(timedelta(microseconds=-1)))}),
    ("$.clock", {"clock": time(1, tzinfo=timezone(timedelta(microseconds=1)))}),
    ("$.clock", {"clock": time(1, tzinfo=ZoneInfo("Europe/Berlin"))}),
    ("$.day", {"day": datetime(2024, 1, 1)}),  # noqa: DTZ001  naive on purpose
    ("$.pair", {"pair": [1, "a"]}),
    ("$.pair", {"pair": (1, "a", 2)}),
    ("$.pair[1]", {"pair": (1, 2)}),
    ("$.many", {"many": [1]}),
    ("$.many[1]", {"many": (1, "a")}),
    ("$.tags", {"tags": frozenset()}),
    ("$.tags[*]", {"tags": {1}}),
    ("$.tags[*]", {"tags": {"\udcff"}}),
    ("$.frozen", {"frozen": set()}),
    ("$.colour", {"colour": "red"}),
    ("$.rank", {"rank": 1}),
    ("$.choice", {"choice": "b"}),
    ("$.choice", {"choice": True}),
    ("$.choice", {"choice": []}),
    ("$.data", {"data": bytearray(b"a")}),
    ("$.extra.when", {"extra": {"when": timedelta(1)}}),
    ("$.extra[1]", {"extra": [1, (2,)]}),
    ("$.extra", {"extra": Item("a")}),
    ("$.extra[2]", {"extra": {2: 1}}),
    ("$.extra[0]['\\ud800']", {"extra": [{"\ud800": 1}]}),
    ("$.named", {"named": (1, Item("a"))}),
    ("$.named.right.sku", {"named": Pair(1, Item(1))}),  # type: ignore[arg-type]
    ("$.address", {"address": {}}),
    ("$.address.city", {"address": {"street": "s", "city": "c"}}),
    ("$.address.floor", {"address": {"street": "s", "floor": "1"}}),
    ("$.address", {"address": OrderedDict(street="s")}),
    ("$.sequence", {"sequence": (1,)}),
    ("$.sequence", {"sequence": range(3)}),
    ("$.mapping", {"mapping": OrderedDict()}),
    ("$.either", {"either": None}),
    ("$.either", {"either": True}),
]


def at(path: str) -> str:
    """Say where in a state a value is; nothing for the whole state."""
    return "" if path == "$" else f"at {path} "


@pytest.mark.parametrize(("path", "values"), REFUSED)
def test_unsupported_value_is_refused_with_its_path(path: str, values: Any) -> None:
    """The error has the path, says it, what was expected, what was found and what it means."""
    with pytest.raises(EncodingError) as caught:
        encode_state(Order(**values), Order)

    assert caught.value.path == path
    message = str(caught.value)
    assert message.startswith(f"state of type Order cannot be stored: {at(path)}expected ")
    assert ", found " in message
    assert message.endswith("; nothing was encoded")


PLAIN: list[Any] = [
    ("$", ()),
    ("$", {1}),
    ("$", Item("a")),
    ("$", Item),
    ("$", object()),
    ("$", Text("a")),
    ("$", Rank.LOW),
    ("$", OrderedDict()),
    ("$", float("inf")),
    pytest.param("$", -(10**4300), id="huge"),
    pytest.param("$.a", {"a": 10**4300}, id="huge in a dict"),
    pytest.param("$[1]", [0, 10**4300], id="huge in a list"),
    ("$", "\udc00"),
    ("$[1]", [1, b"a"]),
    ("$.a[0]", {"a": [Decimal(1)]}),
    ("$[1]", {1: 2}),
    ("$[None]", {None: 2}),
    ("$.a", {Text("a"): 2}),
    ("$['a b'].c", {"a b": {"c": datetime(2024, 1, 1)}}),  # noqa: DTZ001  as above
    ("$[<tuple>]", {(1, 2): 3}),
    ("$[Rank.LOW]", {Rank.LOW: 3}),
]


@pytest.mark.parametrize(("path", "value"), PLAIN)
def test_plain_data_that_json_would_change_is_refused(path: str, value: Any) -> None:
    """Tuples, sets, subclasses, other keys and other classes are refused with their path."""
    with pytest.raises(EncodingError) as caught:
        encode_json(value)

    assert caught.value.path == path
    with pytest.raises(EncodingError, match=r"data cannot be stored: (at .*)?expected "):
        encode_state(value, None)


def test_messages_show_no_text_of_the_state() -> None:
    """The value of a text that is in the wrong place is not part of the message."""
    with pytest.raises(EncodingError) as caught:
        encode_state(Order(count="secret"), Order)  # type: ignore[arg-type]

    assert "secret" not in str(caught.value)
    assert "found str" in str(caught.value)


def test_cycle_is_refused_with_its_path() -> None:
    """A cycle is an `EncodingError` that says so, in plain data and in objects."""
    loop: list[Any] = []
    loop.append({"a": loop})
    with pytest.raises(EncodingError, match=r"at \$\[0\]\.a expected .* contains itself"):
        encode_json(loop)

    ring: dict[str, Any] = {}
    ring["a"] = ring
    with pytest.raises(EncodingError, match=r"at \$\.a expected .* a dict that contains itself"):
        encode_json(ring)

    with pytest.raises(EncodingError, match=r"at \$\.extra\[0\]\.a expected .* contains itself"):
        encode_state(Order(extra=loop), Order)

    node = Node(next=Node())
    node.next.others.append(node)  # type: ignore[union-attr]
    with pytest.raises(
        EncodingError, match=r"at \$\.next\.others\[0\] .* Node that contains itself"
    ):
        encode_state(node, Node)


def test_shared_value_is_not_a_cycle() -> None:
    """The same object at two places is kept twice."""
    item = Item("a")
    shared = [1]
    back = round_trip(Order(items=[item, item], extra=[shared, {"a": shared}]))
    assert back.items == [item, item]
    assert back.items[0] is not back.items[1]
    assert back.extra == [[1], {"a": [1]}]


def chain(length: int) -> Node:
    """Make nodes inside nodes."""
    node = Node()
    for _ in range(length - 1):
        node = Node(next=node)

    return node


def test_nesting_limit_is_the_same_for_writing_and_reading() -> None:
    """100 levels come back; 101, and a hundred thousand, are an `EncodingError`."""
    lists: Any = []
    for _ in range(99):
        lists = [lists]

    assert decode_json(encode_json(lists)) == lists
    with pytest.raises(EncodingError, match="100 levels"):
        encode_json([lists])

    assert round_trip(chain(50)) == chain(50)  # a node is an object and a list inside it
    for length in (101, 5_000):
        with pytest.raises(EncodingError, match="100 levels"):
            encode_state(chain(length), Node)

    for _ in range(100_000):
        lists = [lists]

    with pytest.raises(EncodingError, match="100 levels"):
        encode_json(lists)


def at_depth(frames: int, call: Callable[[], Any]) -> Any:
    """Call from that many frames further down."""
    return at_depth(frames - 1, call) if frames else call()


def test_full_call_stack_is_not_an_encoding_error() -> None:
    """Near the recursion limit writing is an `EncodingError`, reading a `RecursionError`."""
    state = chain(50)
    data = encode_state(state, Node)
    check_state_type(Node)
    seen = set()
    for frames in range(0, sys.getrecursionlimit(), 10):
        try:
            assert at_depth(frames, lambda: encode_state(state, Node)) == data
            assert at_depth(frames, lambda: decode_state(data, Node)) == state
        except (EncodingError, RecursionError) as error:
            seen.add(error.__class__)

    assert seen == {EncodingError, RecursionError}
    with pytest.raises(CorruptRecordError, match="100 levels"):
        decode_json(b'["[[",' + b"[" * 200_000 + b"]" * 200_001)


def test_full_call_stack_is_not_a_corrupt_record() -> None:
    """What was written can be read, or there was no room for it: a `RecursionError`."""
    data = b"[" * 99 + b"]" * 99
    value = decode_json(data)
    seen = set()
    for frames in range(0, sys.getrecursionlimit(), 10):
        try:
            assert at_depth(frames, lambda: decode_json(data)) == value
        except RecursionError as error:
            seen.add(error.__class__)

    assert seen == {RecursionError}


# --- types ----------------------------------------------------------------------------------------


def test_set_is_written_sorted() -> None:
    """However it came about, a set of the same elements is the same bytes: nothing has changed."""

    @attrs.define
    class Lot:
        numbers: set[int]

    # Multiples of 8 fall into one place of a small table, in the order in which they come.
    one, other = [0, 8, 16], [16, 8, 0]
    assert list(set(one)) != list(set(other)), "else this shows nothing"
    assert encode_state(Lot(set(one)), Lot) == encode_state(Lot(set(other)), Lot)


def test_aware_datetime_keeps_its_offset() -> None:
    """Instant and offset are kept, also in the fold; the name of the zone is not."""
    berlin = ZoneInfo("Europe/Berlin")
    for fold in (0, 1):
        when = datetime(2024, 10, 27, 2, 30, 0, 5, tzinfo=berlin, fold=fold)
        back = round_trip(Order(when=when)).when
        assert back.utcoffset() == when.utcoffset() == timedelta(hours=2 - fold)
        assert back.astimezone(timezone.utc) == when.astimezone(timezone.utc)  # noqa: UP017  as people write it
        assert back.tzinfo.__class__ is timezone

    odd = datetime(1, 1, 1, tzinfo=timezone(timedelta(seconds=-3601, microseconds=7)))
    assert round_trip(Order(when=odd)).when == odd
    assert round_trip(Order(when=odd)).when.utcoffset() == odd.utcoffset()


def test_utc_has_one_spelling() -> None:
    """UTC by any name gives the same bytes, so that reading it makes nothing dirty."""
    utc, zone = (datetime(2024, 1, 1, tzinfo=tz) for tz in (timezone.utc, ZoneInfo("UTC")))  # noqa: UP017  as above
    assert encode_state(Order(when=utc), Order) == encode_state(Order(when=zone), Order)


def test_text_of_a_date_is_not_a_datetime() -> None:
    """`fromisoformat` takes a date for midnight; a datetime read from it is a `StateTypeError`."""
    with pytest.raises(StateTypeError, match=r"at \$\.when expected .* found"):
        decode_state(b'{"when":"2024-01-01"}', Order)


def test_a_key_that_is_a_datetime_is_written_as_its_text() -> None:
    """Offset and all; a key of another class is refused at its place."""
    held = holding(dict[datetime, int])
    when = datetime(2024, 1, 1, tzinfo=timezone(timedelta(hours=1)))
    (back,) = round_trip(held({when: 1})).field
    assert (back, back.utcoffset()) == (when, timedelta(hours=1))
    with pytest.raises(EncodingError, match=r"at \$\.field\.a expected datetime, found str"):
        encode_state(held({"a": 1}), held)


def test_a_decimal_is_read_exactly_in_any_context() -> None:
    """Precision and traps of the caller's context change neither digits nor the refusal."""
    long = Decimal("1." + "1" * 60 + "E-77")
    with localcontext() as context:
        context.prec = 3
        context.clear_traps()
        assert round_trip(Order(total=long)).total.as_tuple() == long.as_tuple()
        with pytest.raises(StateTypeError, match=r"\$\.total"):
            decode_state(b'{"total":"abc"}', Order)


def test_abstract_bases_are_read_as_the_builtin_type() -> None:
    """What is declared Sequence or Mapping holds a list or a dict, and comes back as one."""
    back = round_trip(Order(sequence=[1], mapping={"a": 1}))
    assert back.sequence.__class__ is list
    assert back.mapping.__class__ is dict


def test_typed_dict_keeps_absent_keys_absent() -> None:
    """Absent keys stay absent, order is kept, inherited totality and `Required` count."""
    visit: Visit = {"floor": 1, "at": datetime(2024, 1, 1), "street": "s"}  # noqa: DTZ001  naive
    back = round_trip(visit, Visit)
    assert back == visit
    assert list(back) == list(visit)
    for missing in ("at", "street"):
        with pytest.raises(EncodingError, match=f"no value for {missing}"):
            encode_state({k: v for k, v in visit.items() if k != missing}, Visit)

    with pytest.raises(StateTypeError, match="no value for at"):
        decode_state(b'{"street":"s"}', Visit)

    with pytest.raises(StateTypeError, match=r"at \$\.city"):
        decode_state(b'{"street":"s","city":"c"}', Visit)


@attrs.define
class Cat:
    """A member of a union."""

    name: str


@attrs.define
class Dog:
    """Another, that looks the same in JSON."""

    name: str


def test_members_of_a_union_that_look_alike_are_tagged() -> None:
    """Classes, texts and dates of one union come back as the member they were."""
    kind = Cat | Dog | str | datetime | int | dict[str, int] | None
    held = holding(list[kind])
    values = [Cat("a"), Dog("a"), "2024-01-01T00:00:00", datetime(2024, 1, 1), 1, {"a": 1}, None]  # noqa: DTZ001  naive
    back = round_trip(held(values))
    assert back.field == values
    assert [v.__class__ for v in back.field] == [v.__class__ for v in values]
    assert b'{"$type":"Dog","value":{"name":"a"}}' in encode_state(held(values), held)
    tricky = [{"$type": 1, "value": 2}]
    assert round_trip(held(tricky)).field == tricky


def test_the_order_of_a_union_does_not_matter() -> None:
    """`A | B` reads what `B | A` wrote: typing takes them for the same."""
    one, other = holding(Cat | Dog), holding(Dog | Cat)
    assert decode_state(encode_state(one(Dog("a")), one), other).field == Dog("a")


def test_union_reads_untagged_data_that_fits_one_member() -> None:
    """Untagged data of an earlier type is read as the one member that takes it, or refused."""
    held = holding(Item | Cat)
    assert decode_state(b'{"field":{"sku":"a"}}', held).field == Item("a")
    with pytest.raises(StateTypeError, match="which matches 2 members instead of one"):
        decode_state(b'{"field":{"name":"a"}}', holding(Cat | Dog))

    with pytest.raises(StateTypeError, match="which matches 0 members instead of one"):
        decode_state(b'{"field":{}}', held)

    with pytest.raises(StateTypeError, match="tag is not one of"):
        decode_state(b'{"field":{"$type":"os.system","value":{}}}', held)


def test_a_literal_of_a_union_may_be_tagged() -> None:
    """Texts and numbers of one literal beside dates, which are texts too, come back as they were."""
    held = holding(list[Literal["a", 1] | date])
    values = ["a", 1, date(2024, 1, 1)]
    assert round_trip(held(values)).field == values
    assert b'{"$type":"Literal","value":"a"}' in encode_state(held(values), held)
    with pytest.raises(EncodingError, match=r"at \$\.field\[0\] expected Literal"):
        encode_state(held(["b"]), held)


def test_union_of_aliases_is_the_union_of_their_members() -> None:
    """A NewType and an Annotated count as the type that they stand for."""
    held = holding(list[Sku | Annotated[int | None, "a note"]])
    assert round_trip(held(["a", 1, None])).field == ["a", 1, None]
    with pytest.raises(EncodingError, match=r"at \$\.field\[0\] expected str \| int \| None"):
        encode_state(held([1.0]), held)


def test_full_call_stack_in_a_union_member_is_raised() -> None:
    """A `RecursionError` of a converter comes out; else another member would be taken instead."""

    def dive(_: object) -> str:
        return dive(_)

    @attrs.define
    class Deep:
        name: str = attrs.field(converter=dive)

    with pytest.raises(RecursionError):
        decode_state(b'{"field":{"name":"a"}}', holding(Deep | Cat))


class Shade(enum.Flag, boundary=enum.CONFORM):
    """A flag that makes the best of any integer."""

    DARK = 1
    WARM = 2


class Right(enum.IntFlag, boundary=enum.EJECT):
    """A flag that returns an int for a value that is not its own."""

    READ = 1


def test_a_flag_takes_the_integers_that_it_would_write() -> None:
    """Others are refused, also where the class would answer another flag, or an int."""
    held = holding(Shade | None)
    assert round_trip(held(Shade.DARK | Shade.WARM)).field == Shade.DARK | Shade.WARM
    assert round_trip(holding(Right)(Right.READ)).field is Right.READ
    for kind in (Shade, Right):
        with pytest.raises(StateTypeError, match=rf"at \$\.field expected {kind.__name__}, found"):
            decode_state(b'{"field":9}', holding(kind))


@attrs.define
class Base(Generic[T]):
    """A generic class."""

    first: T


@attrs.define
class Derived(Base[int], Generic[T]):
    """The same variable means something else in the base."""

    second: list[T]


class Reply(TypedDict, Generic[T]):
    """A generic TypedDict."""

    body: T


class Replies(Reply[int], Generic[T]):
    """The same variable means something else in the base."""

    more: list[T]


@dataclasses.dataclass
class Endless(Generic[T]):
    """Every level is of another type."""

    inner: Endless[list[T]] | None = None


@dataclasses.dataclass
class Tree(Generic[T]):
    """Generic and inside itself."""

    value: T
    children: list[Tree[T]] = dataclasses.field(default_factory=list)


@attrs.define
class Variables(Generic[Bounded, Either]):
    """Variables with a bound and with constraints."""

    bounded: Bounded
    either: Either


def test_type_variables_are_resolved_per_class() -> None:
    """Arguments reach inherited, nested and recursive fields; without them JSON data is meant."""
    state = Derived(1, [Decimal("1.0")])
    assert round_trip(state, Derived[Decimal]) == state
    with pytest.raises(EncodingError, match=r"\$\.first"):
        encode_state(Derived("a", []), Derived[str])  # type: ignore[arg-type]

    replies: Replies[Decimal] = {"body": 1, "more": [Decimal(1)]}
    assert round_trip(replies, Replies[Decimal]) == replies
    with pytest.raises(EncodingError, match=r"at \$\.body"):
        encode_state({"body": "a", "more": []}, Replies[str])

    tree = Tree(date(2024, 1, 1), [Tree(date(2024, 1, 2))])
    assert round_trip(tree, Tree[date]) == tree
    wrong: Any = Tree("a")
    with pytest.raises(EncodingError, match=r"\$\.children\[0\]\.value"):
        encode_state(Tree(date(2024, 1, 1), [wrong]), Tree[date])

    with pytest.raises(EncodingError, match=r"\$\.value"):
        encode_state(tree, Tree)

    mixed: Tree[Any] = Tree([1, "a"])
    assert round_trip(mixed) == mixed
    assert round_trip(Variables(Decimal(1), "a")) == Variables(Decimal(1), "a")
    with pytest.raises(EncodingError, match=r"\$\.either"):
        encode_state(Variables(Decimal(1), 1.0), Variables)  # type: ignore[type-var]


Numbers = TypeAliasType("Numbers", list[int])
Maybe = TypeAliasType("Maybe", T | None, type_params=(T,))
Left = TypeAliasType("Left", Literal["left"])


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (Numbers, [1, 2]),
        (Maybe[Numbers] | str, [1]),
        (Maybe[Numbers] | str, None),
        (Maybe[Numbers] | str, "text"),
        (Left | Literal["right"], "left"),
        (Left | Literal["right"], "right"),
    ],
)
def test_an_alias_is_what_it_stands_for(kind: Any, value: Any) -> None:
    """Aliases are looked through, with their arguments; those of unions and literals are joined."""
    state = holding(kind)(value)
    assert round_trip(state) == state


def test_a_misfit_in_an_alias_has_its_path() -> None:
    """An alias is not a step of the path; the type it stands for is expected."""
    state = holding(Numbers)([1, "text"])
    with pytest.raises(EncodingError, match="expected int, found str") as caught:
        encode_state(state, state.__class__)

    assert caught.value.path == "$.field[1]"


# Python 3.11 cannot read it.
RECURSIVE = """
type Tree = list[Tree | int]
type Nested[T] = T | list[Nested[T]]
type Data = dict[str, Data] | list[Data] | str | None
type Loop = Loop
"""


@pytest.mark.skipif(sys.version_info < (3, 12), reason="only a `type` statement can name itself")
def test_an_alias_may_be_inside_itself() -> None:
    """Values of such a type are kept, with paths; one that is nothing but itself is refused."""
    names: dict[str, Any] = {}
    exec(RECURSIVE, names)
    for kind, value in [
        (names["Tree"], [1, [2, []]]),
        (names["Nested"][int], [1, [2, [3]]]),
        (names["Data"], {"a": [None, {"b": "c"}]}),
    ]:
        state = holding(kind)(value)
        assert round_trip(state) == state

    state = holding(names["Tree"])([1, ["text"]])
    with pytest.raises(EncodingError) as caught:
        encode_state(state, state.__class__)

    assert caught.value.path == "$.field[1][0]"
    with pytest.raises(EncodingError, match="no end"):
        check_state_type(holding(names["Loop"]))


@pytest.mark.parametrize("kind", [typing.Union, Literal, Final, Annotated])
def test_form_without_arguments_is_refused(kind: Any) -> None:
    """What needs arguments and has none is refused in words, not by an accident inside."""
    with pytest.raises(EncodingError, match="supports only types whose values"):
        check_state_type(holding(kind))


def test_wrapped_types_are_what_they_wrap() -> None:
    """NewType, Annotated and Final are looked through; a literal joins `None` beside it."""

    @attrs.define
    class Wrapped:
        sku: Sku
        note: Annotated[str | None, "a note"]
        fixed: Final[int]
        choice: Literal["a", None] | None  # noqa: PYI061  that is the point

    state = Wrapped(Sku("a"), None, 1, None)
    assert round_trip(state) == state


def test_metadata_of_annotated_may_be_unhashable() -> None:
    """A container of an annotated type is kept, whatever the annotation is."""
    held = holding(list[Annotated[int, ["a note"]]])
    assert round_trip(held([1])).field == [1]
    with pytest.raises(EncodingError, match=r"at \$\.field\[0\] expected int"):
        encode_state(held(["a"]), held)


class Fixed(TypedDict):
    """A key that type checkers do not let a program write."""

    name: ReadOnly[str]
    note: ReadOnly[NotRequired[str]]


def test_a_read_only_key_is_kept_like_any_other() -> None:
    """`ReadOnly` says nothing of what is stored, and does not hide `NotRequired`."""
    assert round_trip({"name": "a"}, Fixed) == {"name": "a"}
    with pytest.raises(EncodingError, match="no value for name"):
        encode_state({"note": "a"}, Fixed)


def test_tuples_may_be_empty_or_bare() -> None:
    """`tuple[()]` takes only the empty one; a bare container takes JSON data."""
    assert round_trip(holding(tuple[()])(())).field == ()
    assert round_trip(holding(tuple)((1, "a"))).field == (1, "a")
    assert round_trip(holding(dict)({"a": [1]})).field == {"a": [1]}
    held = holding(tuple[()])
    with pytest.raises(EncodingError, match=r"\$\.field"):
        encode_state(held((1,)), held)


# --- classes --------------------------------------------------------------------------------------


@attrs.define
class Private:
    """Fields whose argument is named otherwise."""

    _secret: int
    aliased: str = attrs.field(alias="other")
    cl: int = attrs.field(default=1, kw_only=True)
    attrs: int = attrs.field(default=2, kw_only=True)
    instance: int = 3
    o: int = 4
    res: int = 5


def test_private_and_aliased_fields_are_kept_by_their_own_name() -> None:
    """`_x` and aliases are stored as the attribute is named; no field name is special."""
    state = Private(1, "a", cl=3, attrs=4, instance=5, o=6, res=7)
    assert round_trip(state) == state
    assert encode_state(state, Private).startswith(b'{"_secret":1,"aliased":"a",')


def test_fields_that_init_does_not_take_are_kept() -> None:
    """`init=False` fields come back as they were, also on frozen classes and past validators."""

    @attrs.frozen
    class Frozen:
        a: int
        b: list[Decimal] = attrs.field(init=False)
        c: int = attrs.field(init=False, default=7, validator=attrs.validators.gt(5))

        def __attrs_post_init__(self) -> None:
            object.__setattr__(self, "b", [])

    state = Frozen(1)
    state.b.append(Decimal(2))
    object.__setattr__(state, "c", 3)
    back = round_trip(state)
    assert (back.b, back.c) == ([Decimal(2)], 3)
    assert decode_state(b'{"a":1}', Frozen) == Frozen(1)
    with pytest.raises(StateTypeError, match=r"\$\.b\[0\]"):
        decode_state(b'{"a":1,"b":[1]}', Frozen)

    with pytest.raises(StateTypeError, match=r"\$\.d "):
        decode_state(b'{"a":1,"d":[1]}', Frozen)

    @dataclasses.dataclass(frozen=True)
    class Counted:
        a: int
        b: int = dataclasses.field(init=False, default=0)

    counted = Counted(1)
    object.__setattr__(counted, "b", 5)
    assert round_trip(counted) == counted

    @attrs.define
    class Later:
        a: int
        b: int = attrs.field(init=False)

    with pytest.raises(StateTypeError, match="no value for b, which has no default"):
        decode_state(b'{"a":1}', Later)


def test_converters_and_validators_run_when_reading() -> None:
    """Reading goes through `__init__`; what a validator refuses is a `StateTypeError`."""

    def to_upper(text: str) -> str:
        return text.upper()

    @attrs.define
    class Checked:
        upper: str = attrs.field(converter=to_upper)
        small: int = attrs.field(default=1, validator=attrs.validators.lt(10))

    assert decode_state(b'{"upper":"a"}', Checked).upper == "A"
    with pytest.raises(
        StateTypeError, match=r": expected .*Checked, found values that the class rejects"
    ) as caught:
        decode_state(b'{"upper":"a","small":10}', Checked)

    assert isinstance(caught.value.__cause__, ValueError)


def test_error_that_is_raised_only_once_is_reported() -> None:
    """The path is found by reading again; if that succeeds, the first error is reported."""
    refusals = [ValueError("not yet")]

    def check(*_: object) -> None:
        if refusals:
            raise refusals.pop()

    @attrs.define
    class Moody:
        a: int = attrs.field(validator=check)

    with pytest.raises(StateTypeError, match=r"at .* found .*not yet"):
        decode_state(b'{"a":1}', Moody)

    assert decode_state(b'{"a":1}', Moody) == Moody(1)


def test_other_kinds_of_classes_work_too() -> None:
    """Old-style attrs, slotted and keyword-only dataclasses, unannotated fields, class variables."""

    @attr_s()
    class Old:
        x = attrs.field(type=int)
        y = attrs.field(default=None)

    @dataclasses.dataclass(slots=True, kw_only=True)
    class Slotted:
        kind: ClassVar[str] = "k"
        a: int
        b: tuple[int, ...] = ()

    @attrs.define
    class Empty:
        pass

    old: Any = Old
    assert round_trip(old(1, [2])) == old(1, [2])
    assert round_trip(Slotted(a=1, b=(2,))) == Slotted(a=1, b=(2,))
    assert round_trip(Empty()) == Empty()
    with pytest.raises(StateTypeError):
        decode_state(b"[]", Empty)


def attr_s() -> Any:
    """Return the decorator of classic attrs."""
    import attr  # noqa: PLC0415  only here

    return attr.s


def test_attribute_that_is_not_a_field_is_refused() -> None:
    """It would be lost; what a cached property keeps is made again, and so may be lost."""

    @dataclasses.dataclass
    class Loose:
        a: int

        @cached_property
        def double(self) -> int:
            return self.a * 2

    state = Loose(1)
    assert state.double == 2
    assert round_trip(state) == state
    state.b = 1  # type: ignore[attr-defined]
    with pytest.raises(EncodingError) as caught:
        encode_state(state, Loose)

    assert caught.value.path == "$.b"
    assert encode_state(Base[int](1), Base)  # typing leaves an attribute of its own


def test_undecorated_subclass_is_a_type_of_its_own() -> None:
    """Without annotations of its own it is kept as itself; with them it is refused."""

    class Same(Item):
        pass

    class More(Item):
        more: int = 1

    assert round_trip(Same("a")).__class__ is Same
    with pytest.raises(EncodingError, match="decorate this class as well"):
        check_state_type(More)


@dataclasses.dataclass
class WithInitVar:
    """Its `__init__` takes a parameter that is not a field."""

    a: int
    b: dataclasses.InitVar[int] = 1


@attrs.define(init=False)
class OwnInit:
    """Its `__init__` takes what it likes."""

    a: int

    def __init__(self, b: int) -> None:
        self.a = b


@attrs.define(init=False)
class BuiltinInit:
    """Its `__init__` is written in C, and does not tell what it takes."""

    a: int
    __init__ = dict.update  # type: ignore[assignment]


class Plain:
    """No kind of record."""


@attrs.define
class Nowhere:
    """A name that does not exist."""

    fine: int
    lost: list[DoesNotExist]  # type: ignore[name-defined]  # noqa: F821  that is the point


HOPELESS: list[tuple[str, Any]] = [
    ("$", WithInitVar),
    ("$", OwnInit),
    ("$", BuiltinInit),
    ("$", attrs.make_class("no identifier", {"a": attrs.field(type=int)})),
    ("$.lost", Nowhere),
    ("$.field", holding(Plain)),
    ("$.field[*]", holding(list[Plain])),
    ("$.field[*]", holding(dict[str, Plain])),
    ("$.field[key]", holding(dict[Plain, str])),
    ("$.field[1]", holding(tuple[int, Plain])),
    ("$.field", holding(Callable[[], int])),
    ("$.field", holding(type[int])),
    ("$.field", holding(deque[int])),
    ("$.field", holding(OrderedDict[str, int])),
    ("$.field", holding(Path)),
    ("$.field", holding(complex)),
    ("$.field", holding(bytearray)),
    ("$.field", holding(Text)),
    ("$.field", holding(list[int] | list[str])),
    ("$.field", holding(dict[str, int] | Address)),
    ("$.field", holding(Base[int] | Base[str])),
    ("$.field", holding(holding(int) | holding(str))),
    ("$.field", holding(Literal["red", Colour.RED])),
    ("$.field", holding(int | Plain)),
    ("$.field", holding(typing.Optional[Any] | Item)),  # noqa: UP045  Any takes no `|`
    ("$.field", holding(tuple[int, *tuple[str, ...]])),
    ("$.field", holding(list[int, str])),  # type: ignore[misc]
    ("$" + ".inner" * 20, Endless),
]


@pytest.mark.parametrize(("path", "kind"), HOPELESS)
def test_unsupported_type_is_refused_at_first_use(path: str, kind: Any) -> None:
    """Checking, writing and reading all raise an `EncodingError` with the path of the field."""
    for use in (
        lambda: check_state_type(kind),
        lambda: decode_state(b"{}", kind),
        lambda: encode_state(None, kind),
    ):
        with pytest.raises(EncodingError, match="cannot be stored: ") as caught:
            use()

        assert caught.value.path == path


def test_annotations_of_local_classes() -> None:
    """Postponed annotations of a local class may name it, a nested class, and the module's names."""

    @attrs.define
    class Local:
        @attrs.define
        class Inner:
            a: int

        inner: Inner
        item: Item | None = None
        again: Local | None = None
        more: list[Local] = attrs.field(factory=list)

    state = Local(Local.Inner(1), Item("a"), Local(Local.Inner(2)), [Local(Local.Inner(3))])
    assert round_trip(state) == state


def test_classes_of_the_same_name_do_not_meet() -> None:
    """Two local classes with one qualified name are each read as themselves."""
    one, other = holding(int), holding(str)
    assert one.__qualname__ == other.__qualname__
    for _ in range(2):
        assert round_trip(one(1)).__class__ is one
        assert round_trip(other("a")).__class__ is other
        with pytest.raises(EncodingError):
            encode_state(other(1), other)

        with pytest.raises(EncodingError, match=r": expected"):
            encode_state(one(1), other)


def test_many_threads_may_use_a_type_first() -> None:
    """Threads that meet a type at the same time all write the same bytes and read them."""
    held = holding(Order)
    state = held(Order(items=[Item("a")]))
    results: list[Any] = []
    barrier = threading.Barrier(8)

    def work() -> None:
        barrier.wait()
        data = encode_state(state, held)
        results.append((data, decode_state(data, held) == state))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()

    for thread in threads:
        thread.join()

    assert len(results) == 8
    assert set(results) == {(encode_state(state, held), True)}


# --- names and kinds of types ---------------------------------------------------------------------


def test_the_type_of_a_state() -> None:
    """The class of records, `None` for anything else, and what is declared when it fits."""
    assert type_of(Item("a")) is Item
    assert type_of(Node()) is Node
    others: list[Any] = [{}, [], 1, None, "a", Pair(1, Item("a")), Item, Plain()]
    for plain in others:
        assert type_of(plain) is None

    address: Address = {"street": "s"}
    assert type_of(address, Address) is Address
    assert type_of(Base(1), Base[int]) == Base[int]


@pytest.mark.parametrize(
    ("state", "declared"),
    [
        (SpecialItem("a"), Item),
        ({"sku": "a"}, Item),
        (OrderedDict(street="s"), Address),
        (Item("a"), Address),
        (Item("a"), Base[int]),
    ],
)
def test_a_state_of_another_class_than_declared_is_refused(state: Any, declared: Any) -> None:
    """An instance whose class is not exactly the declared one is an `EncodingError` at `$`."""
    for use in (type_of, encode_state):
        with pytest.raises(EncodingError, match=r"cannot be stored.*: expected") as caught:
            use(state, declared)

        assert caught.value.path == "$"


@pytest.mark.parametrize(
    "declared", [int, list[int], Any, Plain, Item | None, "Item", Pair, Colour]
)
def test_only_records_are_state_types(declared: Any) -> None:
    """Declaring anything else is a `StateTypeError` wherever it is used."""
    for use in (
        lambda: type_of(1, declared),
        lambda: encode_state(1, declared),
        lambda: decode_state(b"1", declared),
        lambda: check_state_type(declared),
    ):
        with pytest.raises(StateTypeError, match="state type: expected"):
            use()


def test_names_and_versions_of_types() -> None:
    """The qualified name and 1, unless the class itself says otherwise; nothing is inherited."""

    class Named(Item):
        __flow_type__ = ("order/v", 3)

    class Heir(Named):
        pass

    assert (type_name(None), type_version(None)) == ("", 1)
    assert (type_name(Item), type_version(Item)) == ("Item", 1)
    assert type_name(Base[int]) == "Base"
    assert (type_name(Named), type_version(Named)) == ("order/v", 3)
    assert type_name(Heir) == Heir.__qualname__
    assert type_version(Heir) == 1


# --- reading --------------------------------------------------------------------------------------


def test_a_new_field_with_a_default_may_be_missing() -> None:
    """Data from before a field was added takes its default; a field without one is required."""
    assert decode_state(b'{"sku":"a"}', Item) == Item("a")
    with pytest.raises(StateTypeError, match=r": expected .* no value for sku"):
        decode_state(b"{}", Item)


MISFITS: list[tuple[str, bytes]] = [
    ("$.unknown", b'{"unknown":1}'),
    ("$.items[1].sku", b'{"items":[{"sku":"a"},{"sku":1}]}'),
    ("$.items[0]['a b']", b'{"items":[{"sku":"a","a b":1}]}'),
    ("$.items[0].price", b'{"items":[{"sku":"a","price":1}]}'),
    ("$.items[0]", b'{"items":[[]]}'),
    ("$.items", b'{"items":{}}'),
    ("$.by_id", b'{"by_id":[]}'),
    ("$.by_number['01']", b'{"by_number":{"01":{"sku":"a"}}}'),
    ("$.by_number.x", b'{"by_number":{"x":{"sku":"a"}}}'),
    ("$.by_uuid.x", b'{"by_uuid":{"x":1}}'),
    ("$.by_uuid", b'{"by_uuid":{"%s":1,"%s":1}}' % (b"a" * 32, b"A" * 32)),
    ("$.by_flag[0]", b'{"by_flag":[[true]]}'),
    ("$.by_flag", b'{"by_flag":[[true,1],[true,2]]}'),
    ("$.by_flag", b'{"by_flag":{"true":1}}'),
    ("$.count", b'{"count":true}'),
    ("$.count", b'{"count":1.0}'),
    ("$.total", b'{"total":1}'),
    ("$.total", b'{"total":"abc"}'),
    ("$.when", b'{"when":"2024-13-01T00:00:00"}'),
    ("$.when", b'{"when":"2024-01-01 00:00:00"}'),
    ("$.when", b'{"when":""}'),
    ("$.pair", b'{"pair":[1]}'),
    ("$.pair", b'{"pair":{}}'),
    ("$.pair[0]", b'{"pair":["a","a"]}'),
    ("$.many", b'{"many":"a"}'),
    ("$.tags", b'{"tags":["a","a"]}'),
    ("$.tags", b'{"tags":{"a":1}}'),
    ("$.tags[*]", b'{"tags":[1]}'),
    ("$.colour", b'{"colour":"green"}'),
    ("$.rank", b'{"rank":true}'),
    ("$.rank", b'{"rank":1.0}'),
    ("$.choice", b'{"choice":[]}'),
    ("$.data", b'{"data":"a"}'),
    ("$.data", b'{"data":"*"}'),
    ("$.named", b'{"named":{"left":1}}'),
    ("$.named.more", b'{"named":{"left":1,"more":2}}'),
    ("$.named.right.sku", b'{"named":{"left":1,"right":{"sku":1}}}'),
    ("$.address", b'{"address":{}}'),
    ("$.address.floor", b'{"address":{"street":"s","floor":"1"}}'),
    ("$.either", b'{"either":null}'),
    ("$", b"[]"),
    ("$", b"null"),
    ("$", b'"items"'),
]


@pytest.mark.parametrize(("path", "data"), MISFITS)
def test_data_that_does_not_fit_is_refused_with_its_path(path: str, data: bytes) -> None:
    """The `StateTypeError` names the type and the path, and says what was found."""
    with pytest.raises(StateTypeError) as caught:
        decode_state(data, Order)

    assert (caught.value.expected, caught.value.actual) == ("Order", None)
    message = str(caught.value)
    assert message.startswith(f"data does not fit the type Order: {at(path)}expected ")
    assert message.endswith("; nothing was decoded")


def test_reading_returns_fresh_objects() -> None:
    """Two readings of the same bytes share nothing that can be changed."""
    data = encode_state(Order(items=[Item("a")], extra=[[1]]), Order)
    one, other = (decode_state(memoryview(data), Order) for _ in range(2))
    one.items[0].sku = "b"
    one.extra[0].append(2)
    assert other == decode_state(data, Order)
    plain: Any = decode_json(memoryview(b"[[1]]"))
    plain[0].append(2)
    assert decode_json(memoryview(b"[[1]]")) == [[1]]


def test_last_of_two_equal_keys_counts() -> None:
    """Duplicate keys, which are never written, are read like most readers do."""
    assert decode_json(b'{"a":1,"a":2}') == {"a": 2}


def test_state_that_is_not_json_is_corrupt() -> None:
    """Truncated bytes of a state are a `CorruptRecordError` without a key."""
    with pytest.raises(CorruptRecordError, match=r"are not valid JSON") as caught:
        decode_state(b'{"items":[', Order)

    assert caught.value.key is None


def test_importing_the_codec_imports_neither_library() -> None:
    """The first use imports cattrs and msgspec, the module itself does not."""
    code = (
        "import sys, catga_store.codec\n"
        "print([m for m in ('cattrs', 'msgspec') if m in sys.modules])"
    )
    root = Path(codec.__file__).parents[1]
    out = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, check=True)
    assert out.stdout.strip() == b"[]"

"""From a declared type to its hooks: `build` returns a `Codec`.

Each kind of type has one function here, which looks at what is inside the type and makes its hooks;
the tables at the end say which. A `_Building` tracks the path, for the error if a type can never be
kept, and the types that it is inside of, for types that contain themselves.

A codec that is built with `explain` is slow and is used for one call: it tracks the path of the
values, and finds values that contain themselves.

Over 400 lines, a seventh of them imports: the functions call each other through `_Building.hooks`,
and the tables at the end are the list of what is supported.
"""

from __future__ import annotations

import dataclasses
import enum
import types
import typing
from collections import abc
from collections.abc import Callable
from typing import Any

from catga_store.codec.hooks.base import LIST
from catga_store.codec.hooks.base import NONE
from catga_store.codec.hooks.base import OBJECT
from catga_store.codec.hooks.base import Dec
from catga_store.codec.hooks.base import Enc
from catga_store.codec.hooks.base import Hooks
from catga_store.codec.hooks.base import Kind
from catga_store.codec.hooks.base import Unkept
from catga_store.codec.hooks.base import advice_for
from catga_store.codec.hooks.base import name_part
from catga_store.codec.hooks.choices import enum_hooks
from catga_store.codec.hooks.choices import flag_hooks
from catga_store.codec.hooks.choices import literal_hooks
from catga_store.codec.hooks.choices import union_hooks
from catga_store.codec.hooks.classes import check_class
from catga_store.codec.hooks.classes import class_hooks
from catga_store.codec.hooks.classes import converts
from catga_store.codec.hooks.classes import fields_of
from catga_store.codec.hooks.containers import dict_hooks
from catga_store.codec.hooks.containers import dict_kinds
from catga_store.codec.hooks.containers import list_hooks
from catga_store.codec.hooks.containers import set_hooks
from catga_store.codec.hooks.containers import tuple_hooks
from catga_store.codec.hooks.containers import variadic_hooks
from catga_store.codec.hooks.leaves import EXPLAINED_STR
from catga_store.codec.hooks.leaves import LEAVES
from catga_store.codec.hooks.plain import check_json
from catga_store.codec.hooks.plain import enter
from catga_store.codec.hooks.records import namedtuple_hooks
from catga_store.codec.hooks.records import typeddict_hooks
from catga_store.codec.hooks.typeforms import alias_value
from catga_store.codec.hooks.typeforms import declaring_typeddict
from catga_store.codec.hooks.typeforms import is_alias
from catga_store.codec.hooks.typeforms import is_attrs
from catga_store.codec.hooks.typeforms import is_dataclass
from catga_store.codec.hooks.typeforms import is_namedtuple
from catga_store.codec.hooks.typeforms import is_typeddict
from catga_store.codec.hooks.typeforms import label_of
from catga_store.codec.hooks.typeforms import marked
from catga_store.codec.hooks.typeforms import origin_of
from catga_store.codec.hooks.typeforms import own_annotations
from catga_store.codec.hooks.typeforms import resolve
from catga_store.codec.hooks.typeforms import substitute
from catga_store.codec.hooks.typeforms import union_members
from catga_store.codec.hooks.typeforms import variables_by_class
from catga_store.errors import EncodingError

__all__ = ["Codec", "build"]


@dataclasses.dataclass(frozen=True, slots=True)
class Codec:
    """The two functions of one type.

    `unbounded`: the type does not limit how deep values are nested. `converts`: a class in it has
    converters or a `__post_init__`, so that reading may change values.
    """

    enc: Enc
    dec: Dec
    unbounded: bool
    converts: bool


def build(state_type: Any, *, explain: bool = False) -> Codec:
    """Make the functions of a type; `EncodingError` names the field that can never be kept.

    With `explain` they are slow, track the path and cycles, and serve one call.
    """
    building = _Building(explain=explain)
    try:
        hooks = building.hooks(state_type)
    except Unkept as error:
        refusal = building.refusal(error.declared, error.why, error.part)
        raise refusal from error.__cause__
    except RecursionError:
        why = "it refers to itself without end, or the call stack is too deep"
        raise building.refusal(state_type, why) from None
    except Exception as error:
        raise building.refusal(state_type, f"{type(error).__name__}: {error}") from error

    return Codec(hooks.enc, hooks.dec, building.unbounded, building.converts)


class _Building:
    """The building of one codec. Nothing is shared between two, so equal names never meet."""

    def __init__(self, *, explain: bool) -> None:
        self.explain = explain
        self.unbounded = False
        self.converts = False
        self.active: set[int] = set()  # when explaining: the containers around a value
        self._path: list[str] = []
        self._known: dict[Any, Hooks] = {}
        self._unfinished: set[Any] = set()

    def refusal(self, declared: Any, why: str, part: str = "") -> EncodingError:
        """Return the error for a type that cannot be kept, at the path that `under` has reached."""
        path = "$" + "".join([*self._path, part][:20])
        message = (
            f"{path} is declared as {label_of(declared)}, which cannot be stored: {why}; nothing "
            "was encoded or decoded"
        )
        return EncodingError(message, path=path)

    def under(self, part: str, declared: Any) -> Hooks:
        """Return the hooks of a type one step further down."""
        self._path.append(part)
        hooks = self.hooks(declared)
        self._path.pop()
        return hooks

    def hooks(self, declared: Any) -> Hooks:
        """Return the hooks of a declared type."""
        if declared is None:
            declared = NONE

        if declared is str and self.explain:
            return EXPLAINED_STR

        cls = origin_of(declared)
        if isinstance(cls, abc.Hashable) and cls in LEAVES:
            return LEAVES[cls]

        make = _maker_of(cls) or _BY_FORM.get(typing.get_origin(declared))
        if make is not None:
            return make(self, declared)

        named = isinstance(declared, str | typing.ForwardRef)
        unknown = (
            advice_for(cls)
            or "the library supports only types whose values it can read back unchanged"
        )
        raise Unkept(declared, "the name could not be resolved" if named else unknown)

    def once(
        self, declared: Any, cls: type, kinds: frozenset[Kind], make: Callable[[], Hooks]
    ) -> Hooks:
        """Make the hooks of a container once; inside itself, it gets hooks that look them up."""
        known = self._known
        try:
            found = known.get(declared)
        except TypeError:  # an argument that does not hash, such as metadata of Annotated
            return self._guarded(make())

        if found is not None:
            self.unbounded = self.unbounded or declared in self._unfinished
            return found

        def enc(value: Any) -> Any:
            return known[declared].enc(value)

        def dec(value: Any, _: Any) -> Any:
            return known[declared].dec(value, None)

        known[declared] = Hooks(label_of(declared), frozenset((cls,)), kinds, enc, dec)
        self._unfinished.add(declared)
        known[declared] = hooks = self._guarded(make())
        self._unfinished.discard(declared)
        return hooks

    def _guarded(self, hooks: Hooks) -> Hooks:
        """When explaining, refuse values that contain themselves and too many levels."""
        if not self.explain:
            return hooks

        def enc(value: Any) -> Any:
            enter(value, self.active)
            try:
                return hooks.enc(value)
            finally:
                self.active.discard(id(value))

        return dataclasses.replace(hooks, enc=enc)


# --- what stands for something else ---------------------------------------------------------------


def _plain(building: _Building, _: Any) -> Hooks:
    building.unbounded = True

    def enc(value: Any) -> Any:
        check_json(value, building.active, explain=building.explain)
        return value

    def dec(value: Any, _: Any) -> Any:
        return value

    return Hooks("plain JSON data", frozenset(), frozenset(), enc, dec, distinct=True)


def _wrapped(building: _Building, declared: Any) -> Hooks:
    return building.hooks(typing.get_args(declared)[0])


def _new_type(building: _Building, declared: Any) -> Hooks:
    return building.hooks(declared.__supertype__)


def _alias(building: _Building, declared: Any) -> Hooks:
    return building.hooks(alias_value(declared))


def _variable(building: _Building, variable: Any) -> Hooks:
    if variable.__constraints__:
        return building.hooks(typing.Union[variable.__constraints__])  # noqa: UP007  made at run time

    return building.hooks(Any if variable.__bound__ is None else variable.__bound__)


# --- choices --------------------------------------------------------------------------------------


def _literal(building: _Building, declared: Any) -> Hooks:
    values = typing.get_args(declared)
    return literal_hooks(
        declared, [(value, building.hooks(value.__class__).enc(value)) for value in values]
    )


def _union(building: _Building, declared: Any) -> Hooks:
    return union_hooks(declared, [building.hooks(member) for member in union_members(declared)])


def _enum(_: _Building, cls: type[enum.Enum]) -> Hooks:
    return flag_hooks(cls) if issubclass(cls, enum.Flag) else enum_hooks(cls)


# --- containers -----------------------------------------------------------------------------------


def _list(building: _Building, declared: Any) -> Hooks:
    (element,) = typing.get_args(declared) or (Any,)
    return building.once(declared, list, LIST, lambda: list_hooks(building.under("[*]", element)))


def _tuple(building: _Building, declared: Any) -> Hooks:
    arguments = typing.get_args(declared)
    if not hasattr(declared, "__args__"):  # a bare one; `tuple[()]` has arguments, but none
        arguments = (Any, ...)

    if any(
        typing.get_origin(a) is typing.Unpack
        or getattr(a, "__typing_is_unpacked_typevartuple__", False)
        for a in arguments
    ):
        raise Unkept(declared, "a tuple with an unpacked element, such as *Ts, is not supported")

    def make() -> Hooks:
        if arguments[1:] == (...,):
            return variadic_hooks(building.under("[*]", arguments[0]))

        return tuple_hooks([building.under(f"[{i}]", a) for i, a in enumerate(arguments)])

    return building.once(declared, tuple, LIST, make)


def _set(building: _Building, declared: Any) -> Hooks:
    cls = frozenset if origin_of(declared) is frozenset else set
    (element,) = typing.get_args(declared) or (Any,)
    return building.once(
        declared, cls, LIST, lambda: set_hooks(cls, building.under("[*]", element))
    )


def _dict(building: _Building, declared: Any) -> Hooks:
    key, value = typing.get_args(declared) or (str, Any)
    keys = building.under("[key]", key)
    return building.once(
        declared, dict, dict_kinds(keys), lambda: dict_hooks(keys, building.under("[*]", value))
    )


# --- records --------------------------------------------------------------------------------------


def _typeddict(building: _Building, declared: Any) -> Hooks:
    def make() -> Hooks:
        cls = origin_of(declared)
        variables = variables_by_class(declared)
        required: set[str] = set()
        fields: dict[str, Hooks] = {}
        for name, raw in cls.__annotations__.items():
            hint, needed = marked(resolve(cls, name, raw), required=name in cls.__required_keys__)
            hint = substitute(hint, variables.get(declaring_typeddict(cls, name), {}))
            fields[name] = building.under(name_part(name), hint)
            if needed:
                required.add(name)

        return typeddict_hooks(label_of(declared), fields, required)

    return building.once(declared, dict, OBJECT, make)


def _namedtuple(building: _Building, declared: Any) -> Hooks:
    cls = origin_of(declared)

    def make() -> Hooks:
        variables = variables_by_class(declared)
        owner = next((base for base in cls.__mro__ if "_fields" in vars(base)), cls)
        raw = getattr(owner, "__annotations__", {})
        fields: dict[str, Hooks] = {}
        for name in cls._fields:
            hint = resolve(owner, name, raw.get(name, Any))
            hint = substitute(hint, variables.get(owner, {}))
            fields[name] = building.under(name_part(name), hint)

        return namedtuple_hooks(cls, label_of(declared), fields)

    return building.once(declared, cls, OBJECT, make)


def _class(building: _Building, declared: Any) -> Hooks:
    cls = origin_of(declared)

    def make() -> Hooks:
        variables = variables_by_class(declared)
        fields = list(fields_of(cls))
        hooks: dict[str, Hooks] = {}
        for field in fields:
            name, raw = field.name, field.raw
            owner = next((base for base in cls.__mro__ if name in own_annotations(base)), cls)
            hint = Any if raw is None else resolve(owner, name, raw)
            hint = substitute(hint, variables.get(owner, {}))
            hooks[name] = building.under(name_part(name), hint)

        check_class(cls, fields)
        building.converts = building.converts or converts(cls, fields)
        return class_hooks(cls, label_of(declared), fields, hooks, explain=building.explain)

    return building.once(declared, cls, OBJECT, make)


# --- which is which -------------------------------------------------------------------------------

_Make = Callable[[_Building, Any], Hooks]

_BY_FORM: dict[Any, _Make] = {
    typing.Annotated: _wrapped,
    typing.Final: _wrapped,
    typing.Required: _wrapped,
    typing.NotRequired: _wrapped,
    typing.Literal: _literal,
    typing.Union: _union,
    types.UnionType: _union,
}
_BY_CLASS: dict[Any, _Make] = {
    Any: _plain,
    object: _plain,
    list: _list,
    abc.Sequence: _list,
    abc.MutableSequence: _list,
    abc.Collection: _list,
    abc.Iterable: _list,
    abc.Container: _list,
    tuple: _tuple,
    set: _set,
    frozenset: _set,
    abc.Set: _set,
    abc.MutableSet: _set,
    dict: _dict,
    abc.Mapping: _dict,
    abc.MutableMapping: _dict,
}


def _is(cls: type) -> Callable[[Any], bool]:
    return lambda origin: isinstance(origin, cls)


def _is_enum(cls: Any) -> bool:
    return isinstance(cls, type) and issubclass(cls, enum.Enum)


_BY_TEST: list[tuple[Callable[[Any], bool], _Make]] = [
    (_is(typing.TypeVar), _variable),
    (_is(typing.NewType), _new_type),
    (is_alias, _alias),
    (_is_enum, _enum),
    (is_typeddict, _typeddict),
    (is_attrs, _class),
    (is_dataclass, _class),
    (is_namedtuple, _namedtuple),
]


def _maker_of(cls: Any) -> _Make | None:
    """Return the function that makes the hooks of a class, if there is one."""
    if isinstance(cls, abc.Hashable) and cls in _BY_CLASS:
        return _BY_CLASS[cls]

    return next((make for test, make in _BY_TEST if test(cls)), None)

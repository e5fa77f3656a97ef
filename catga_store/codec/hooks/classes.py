"""The hooks of attrs classes and dataclasses.

cattrs generates the functions, with our hooks for the fields: the hooks of cattrs convert values
(`int("3")`, `list((1, 2))`), and ours must refuse them. Generated functions do not know which field
they are at, so errors that do not happen cost nothing. When one happens, the functions are made once
more as plain loops that track the path, and the value is walked a second time.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import types
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
from itertools import takewhile
from typing import Annotated
from typing import Any

from catga_store.codec.hooks.base import OBJECT
from catga_store.codec.hooks.base import Dec
from catga_store.codec.hooks.base import Enc
from catga_store.codec.hooks.base import Hooks
from catga_store.codec.hooks.base import Misfit
from catga_store.codec.hooks.base import Unkept
from catga_store.codec.hooks.base import advice_for
from catga_store.codec.hooks.base import at
from catga_store.codec.hooks.base import describe
from catga_store.codec.hooks.base import name_part
from catga_store.codec.hooks.records import check_keys
from catga_store.codec.hooks.records import missing
from catga_store.codec.hooks.typeforms import is_attrs
from catga_store.codec.hooks.typeforms import own_annotations

__all__ = ["Field", "check_class", "class_hooks", "converts", "fields_of"]


@dataclasses.dataclass(frozen=True, slots=True)
class Field:
    """A field of an attrs class or a dataclass; `raw` is its annotation, `None` without one."""

    name: str
    alias: str
    raw: Any
    has_default: bool
    init: bool
    converter: Any = None


def fields_of(cls: Any) -> Iterator[Field]:
    """List the fields, those of bases included, in the order of the class."""
    if is_attrs(cls):
        from attrs import NOTHING

        for a in cls.__attrs_attrs__:
            has_default = a.default is not NOTHING
            yield Field(a.name, a.alias, a.type, has_default, a.init, a.converter)
    else:
        for f in dataclasses.fields(cls):
            defaults = (f.default, f.default_factory)
            has_default = any(default is not dataclasses.MISSING for default in defaults)
            yield Field(f.name, f.name, f.type, has_default, f.init)


def class_hooks(
    cls: type, label: str, fields: Sequence[Field], hooks: dict[str, Hooks], *, explain: bool
) -> Hooks:
    """Make the hooks of a class; `hooks` are those of its fields."""
    to_dict, from_dict = (_looping if explain else _generated)(cls, label, fields, hooks)
    check_extras = _extras_check(cls, label, fields)

    def enc(value: Any) -> Any:
        if value.__class__ is not cls:
            raise Misfit(label, describe(value))

        if check_extras is not None:
            check_extras(value)

        return to_dict(value)

    return Hooks(label, frozenset((cls,)), OBJECT, enc, from_dict)


# --- checks ---------------------------------------------------------------------------------------


def check_class(cls: Any, fields: Sequence[Field]) -> None:
    """Refuse classes that could be written but not made again."""
    advice = advice_for(cls)
    if advice:
        raise Unkept(cls, advice)

    if not cls.__name__.isidentifier():
        raise Unkept(cls, "the name of the class is not an identifier")

    marker = "__attrs_attrs__" if is_attrs(cls) else "__dataclass_fields__"
    for base in takewhile(lambda base: marker not in vars(base), cls.__mro__):
        own = [k for k, v in own_annotations(base).items() if "ClassVar" not in str(v)]
        if own:
            name = f"{base.__qualname__}.{own[0]}"
            why = (
                f"{name} is not a field, because only the base class is decorated; decorate "
                "this class as well"
            )
            raise Unkept(cls, why)

    initial = {field.alias for field in fields if field.init}
    try:
        parameters = list(inspect.signature(cls.__init__).parameters.values())[1:]
    except (TypeError, ValueError) as error:
        raise Unkept(cls, "the signature of its __init__ cannot be read") from error

    taken = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    if taken != initial or len(taken) != len(parameters):
        odd = sorted(taken ^ initial) or [p.name for p in parameters if p.name not in taken]
        why = (
            "the parameters of its __init__ must be exactly its fields, without an InitVar "
            f"or a custom __init__: {odd[0]} is not both a field and a parameter"
        )
        raise Unkept(cls, why)


def converts(cls: Any, fields: Sequence[Field]) -> bool:
    """Whether making an instance, or reading its fields, may change the values that it is made of."""
    if (
        cls.__new__ is not object.__new__
        or cls.__getattribute__ is not object.__getattribute__
        or type(cls).__call__ is not type.__call__
    ):
        return True

    if is_attrs(cls):
        return (
            hasattr(cls, "__attrs_post_init__")
            or hasattr(cls, "__attrs_init__")  # there is an `__init__` of its own
            or _sets_in_its_own_way(cls)
            or any(field.init and field.converter is not None for field in fields)
        )

    code = getattr(cls.__init__, "__code__", None)
    is_own = code is None or "__create_fn__" not in code.co_qualname
    descriptors = (inspect.getattr_static(cls, field.name, None) for field in fields)
    return (
        is_own
        or _sets_in_its_own_way(cls)
        or hasattr(cls, "__post_init__")
        or any(
            hasattr(d, "__set__") and not isinstance(d, types.MemberDescriptorType)
            for d in descriptors
        )
    )


def _sets_in_its_own_way(cls: Any) -> bool:
    """Whether there is a `__setattr__` that neither attrs nor dataclasses has made."""
    setter = cls.__setattr__
    if setter is object.__setattr__ or getattr(cls, "__attrs_own_setattr__", False):
        return False

    if is_attrs(cls):
        return str(getattr(setter, "__module__", "")) != "attr._make"  # that of frozen classes

    params: Any = cls.__dataclass_params__
    return not params.frozen


def _extras_check(cls: type, label: str, fields: Sequence[Field]) -> Callable[[Any], None] | None:
    """Return a check that an instance has no attribute that would be lost; None if it cannot have any."""
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
                found = "another attribute, which would be lost"
                raise at(Misfit(f"only fields of {label}", found), name_part(name))

    return check


# --- the two forms of the functions ---------------------------------------------------------------


def _generated(
    cls: Any, label: str, fields: Sequence[Field], hooks: dict[str, Hooks]
) -> tuple[Enc, Dec]:
    """Generate the functions of a class from our hooks, by cattrs."""
    import cattrs.gen
    from attrs import NOTHING

    def for_cattrs(field: Field) -> Any:
        # Overrides travel in Annotated: as keyword arguments, a field named `cl` would collide.
        own = hooks[field.name]
        override = cattrs.gen.override(unstruct_hook=own.enc, struct_hook=own.dec)
        return types.SimpleNamespace(
            name=field.name,
            alias=field.alias,
            type=Annotated[Any, override],
            default=None if field.has_default else NOTHING,
            init=field.init,
            kw_only=True,
            converter=None,
        )

    generators: Any = cattrs.gen
    converter = cattrs.Converter(detailed_validation=False, forbid_extra_keys=True)
    variables = {p.__name__: Any for p in getattr(cls, "__parameters__", ())}
    to_dict: Enc = generators.make_dict_unstructure_fn_from_attrs(
        [for_cattrs(field) for field in fields],
        cls,
        converter,
        variables,
        _cattrs_use_linecache=False,
        _cattrs_include_init_false=True,
    )
    from_dict: Dec = generators.make_dict_structure_fn_from_attrs(
        [for_cattrs(field) for field in fields if field.init],
        cls,
        converter,
        variables,
        _cattrs_use_linecache=False,
    )
    late = [field.name for field in fields if not field.init]
    if not late:
        return to_dict, from_dict

    def from_dict_late(value: Any, _: Any) -> Any:
        instance = from_dict({k: v for k, v in value.items() if k not in late}, None)
        _set_late(instance, value, late, hooks, label)
        return instance

    return to_dict, from_dict_late


def _looping(
    cls: Any, label: str, fields: Sequence[Field], hooks: dict[str, Hooks]
) -> tuple[Enc, Dec]:
    """Make the functions of a class as loops that know which field they are at."""

    def to_dict(value: Any) -> Any:
        out: dict[str, Any] = {}
        for name, own in hooks.items():
            try:
                out[name] = own.enc(_value_of(value, name, label))
            except Exception as error:
                raise at(error, name_part(name))

        return out

    initial = [field for field in fields if field.init]
    needed = {field.name for field in initial if not field.has_default}
    late = [field.name for field in fields if not field.init]

    def from_dict(value: Any, _: Any) -> Any:
        check_keys(label, value, hooks, needed)
        arguments: dict[str, Any] = {}
        for field in initial:
            if field.name in value:
                try:
                    arguments[field.alias] = hooks[field.name].dec(value[field.name], None)
                except Exception as error:
                    raise at(error, name_part(field.name))

        try:
            instance = cls(**arguments)
        except Exception as error:
            found = f"values that the class rejects ({type(error).__name__}: {error})"
            raise Misfit(label, found) from error

        _set_late(instance, value, late, hooks, label)
        return instance

    return to_dict, from_dict


def _value_of(instance: Any, name: str, label: str) -> Any:
    try:
        return getattr(instance, name)
    except AttributeError:
        raise Misfit(f"a value for each field of {label}", "a field that is not set") from None


def _set_late(
    instance: Any, value: Any, late: Sequence[str], hooks: dict[str, Hooks], label: str
) -> None:
    """Set the fields that `__init__` does not take, past validators and frozenness."""
    for name in late:
        if name in value:
            try:
                item = hooks[name].dec(value[name], None)
            except Exception as error:
                raise at(error, name_part(name))

            object.__setattr__(instance, name, item)
        elif not hasattr(instance, name):
            raise missing(label, {name})

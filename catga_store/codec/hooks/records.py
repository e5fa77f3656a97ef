"""The hooks of TypedDicts and NamedTuples, and the checks of fields that all records share."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from typing import Any
from typing import NoReturn
from typing import cast

from catga_store.codec.hooks.base import OBJECT
from catga_store.codec.hooks.base import Hooks
from catga_store.codec.hooks.base import Misfit
from catga_store.codec.hooks.base import at
from catga_store.codec.hooks.base import describe
from catga_store.codec.hooks.base import key_part
from catga_store.codec.hooks.base import kind_of
from catga_store.codec.hooks.base import name_part

__all__ = ["check_keys", "missing", "namedtuple_hooks", "typeddict_hooks"]


def typeddict_hooks(label: str, fields: Mapping[str, Hooks], required: AbstractSet[str]) -> Hooks:
    """Make the hooks of a TypedDict: keys that are absent stay absent, and order is kept."""
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
                    _refuse_key(label)

                out[key] = encs[key](item)
        except Exception as error:
            raise at(error, key_part(key))

        if not required <= out.keys():
            raise missing(label, required - out.keys())

        return out

    def dec(value: Any, _: Any) -> Any:
        check_keys(label, value, decs, required)
        out: dict[str, Any] = {}
        key = ""
        try:
            for key, item in value.items():
                out[key] = decs[key](item, None)
        except Exception as error:
            raise at(error, key_part(key))

        return out

    return Hooks(label, frozenset((dict,)), OBJECT, enc, dec)


def namedtuple_hooks(cls: Any, label: str, fields: Mapping[str, Hooks]) -> Hooks:
    """Make the hooks of a NamedTuple: an object, so that fields may be added."""
    defaults: Mapping[str, Any] = cls._field_defaults
    new = cast("Any", tuple).__new__  # past a `__new__` of its own
    needed = fields.keys() - defaults.keys()

    def enc(value: Any) -> Any:
        if value.__class__ is not cls:
            raise Misfit(label, describe(value))

        out: dict[str, Any] = {}
        name = ""
        try:
            for (name, hooks), item in zip(fields.items(), value, strict=True):
                out[name] = hooks.enc(item)
        except Exception as error:
            raise at(error, name_part(name))

        return out

    def dec(value: Any, _: Any) -> Any:
        check_keys(label, value, fields, needed)
        out: list[Any] = []
        name = ""
        try:
            for name, hooks in fields.items():
                out.append(hooks.dec(value[name], None) if name in value else defaults[name])
        except Exception as error:
            raise at(error, name_part(name))

        return new(cls, out)

    base = cast("Any", tuple)
    as_tuples = cls.__eq__ is base.__eq__ and cls.__hash__ is base.__hash__
    distinct = as_tuples and all(hooks.distinct for hooks in fields.values())
    return Hooks(label, frozenset((cls,)), OBJECT, enc, dec, distinct=distinct)


def check_keys(label: str, value: Any, fields: Mapping[str, Any], needed: AbstractSet[str]) -> None:
    """Refuse anything but an object with these keys."""
    if value.__class__ is not dict:
        raise Misfit(label, kind_of(value))

    if not value.keys() <= fields.keys():
        why = "the next write would lose this key; newer code may have written the state"
        unknown = Misfit(f"a field of {label}", "a key that is not a field", why)
        raise at(unknown, key_part(next(key for key in value if key not in fields)))

    if not needed <= value.keys():
        raise missing(label, needed - value.keys())


def missing(label: str, names: AbstractSet[str]) -> Misfit:
    """Return the error for fields without a value."""
    return Misfit(label, f"no value for {', '.join(sorted(names))}, which has no default")


def _refuse_key(label: str) -> NoReturn:
    raise Misfit(f"one of the keys of {label}", "a key that the type does not declare")

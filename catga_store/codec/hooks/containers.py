"""The hooks of lists, tuples, sets and dicts, made of the hooks of what is in them.

Each writes into a new list or dict. The loops are written out because they run for every element;
how far they have come is the path of an error.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence
from typing import Any

from catga_store.codec.hooks.base import INTEGER
from catga_store.codec.hooks.base import LIST
from catga_store.codec.hooks.base import OBJECT
from catga_store.codec.hooks.base import TEXT
from catga_store.codec.hooks.base import Dec
from catga_store.codec.hooks.base import Enc
from catga_store.codec.hooks.base import Hooks
from catga_store.codec.hooks.base import Kind
from catga_store.codec.hooks.base import Misfit
from catga_store.codec.hooks.base import at
from catga_store.codec.hooks.base import describe
from catga_store.codec.hooks.base import json_functions
from catga_store.codec.hooks.base import key_part
from catga_store.codec.hooks.base import kind_of

__all__ = ["dict_hooks", "dict_kinds", "list_hooks", "set_hooks", "tuple_hooks", "variadic_hooks"]


def list_hooks(element: Hooks) -> Hooks:
    """Make the hooks of a list."""
    inner_enc, inner_dec = element.enc, element.dec
    label = f"list[{element.label}]"

    def enc(value: Any) -> Any:
        if value.__class__ is not list:
            raise Misfit(label, describe(value))

        out: list[Any] = []
        try:
            for item in value:
                out.append(inner_enc(item))  # noqa: PERF401  its length is the place of an error
        except Exception as error:
            raise at(error, f"[{len(out)}]")

        return out

    def dec(value: Any, _: Any) -> Any:
        if value.__class__ is not list:
            raise Misfit(label, kind_of(value))

        out: list[Any] = []
        try:
            for item in value:
                out.append(inner_dec(item, None))  # noqa: PERF401  as above
        except Exception as error:
            raise at(error, f"[{len(out)}]")

        return out

    return Hooks(label, frozenset((list,)), LIST, enc, dec)


def variadic_hooks(element: Hooks) -> Hooks:
    """Make the hooks of a tuple of any length: those of a list, and the class."""
    as_list = list_hooks(element)
    label = f"tuple[{element.label}, ...]"

    def enc(value: Any) -> Any:
        if value.__class__ is not tuple:
            raise Misfit(label, describe(value))

        return as_list.enc(list(value))

    def dec(value: Any, _: Any) -> Any:
        if value.__class__ is not list:
            raise Misfit(label, kind_of(value))

        return tuple(as_list.dec(value, None))

    return Hooks(label, frozenset((tuple,)), LIST, enc, dec, distinct=element.distinct)


def tuple_hooks(each: Sequence[Hooks]) -> Hooks:
    """Make the hooks of a tuple with a type for each of its items."""
    label = f"tuple[{', '.join(hooks.label for hooks in each) or '()'}]"
    enc = _tuple_enc(label, [hooks.enc for hooks in each])
    dec = _tuple_dec(label, [hooks.dec for hooks in each])
    distinct = all(hooks.distinct for hooks in each)
    return Hooks(label, frozenset((tuple,)), LIST, enc, dec, distinct=distinct)


def _tuple_enc(label: str, encs: Sequence[Enc]) -> Enc:
    def enc(value: Any) -> Any:
        if value.__class__ is not tuple:
            raise Misfit(label, describe(value))

        if len(value) != len(encs):
            raise Misfit(label, f"a tuple of length {len(value)}")

        out: list[Any] = []
        try:
            for inner, item in zip(encs, value, strict=True):
                out.append(inner(item))
        except Exception as error:
            raise at(error, f"[{len(out)}]")

        return out

    return enc


def _tuple_dec(label: str, decs: Sequence[Dec]) -> Dec:
    def dec(value: Any, _: Any) -> Any:
        if value.__class__ is not list:
            raise Misfit(label, kind_of(value))

        if len(value) != len(decs):
            raise Misfit(label, f"a list of length {len(value)}")

        out: list[Any] = []
        try:
            for inner, item in zip(decs, value, strict=True):
                out.append(inner(item, None))
        except Exception as error:
            raise at(error, f"[{len(out)}]")

        return tuple(out)

    return dec


def set_hooks(cls: type[Any], element: Hooks) -> Hooks:
    """Make the hooks of a set or frozenset: a sorted list."""
    inner_dec = element.dec
    label = f"{cls.__name__}[{element.label}]"
    # Text and integers have a natural order; anything else is sorted by its bytes.
    order = None if element.kinds in (TEXT, INTEGER) else json_functions()[0]
    inner_enc = element.text or element.enc

    def enc(value: Any) -> Any:
        if value.__class__ is not cls:
            raise Misfit(label, describe(value))

        try:
            out = [inner_enc(item) for item in value]
            if not element.distinct:
                _check_distinct("elements", value, out, inner_dec)
        except Exception as error:
            raise at(error, "[*]")

        out.sort(key=order)
        return out

    def dec(value: Any, _: Any) -> Any:
        if value.__class__ is not list:
            raise Misfit(label, kind_of(value))

        try:
            out = cls([inner_dec(item, None) for item in value])
        except Exception as error:
            raise at(error, "[*]")

        if len(out) != len(value):
            raise Misfit(label, "a list that contains an element twice")

        return out

    return Hooks(label, frozenset((cls,)), LIST, enc, dec, distinct=element.distinct)


def _check_distinct(
    what: str,
    values: Iterable[Any],
    encoded: Sequence[Any],
    dec: Dec,
) -> None:
    """Refuse elements or keys that are written alike, or equal once read back: one would be lost."""
    dumps, loads = json_functions()
    written: set[bytes] = set()
    found: set[Any] = set()
    for value, one in zip(values, encoded, strict=True):
        text = dumps(one)
        read = dec(loads(text), None)
        if text in written or read in found:
            misfit = Misfit(
                f"{what} that still differ when read back",
                "two that would become equal when read back",
            )
            raise at(misfit, key_part(value)) if what == "keys" else misfit

        found.add(read)
        written.add(text)


# --- dicts ----------------------------------------------------------------------------------------


def dict_kinds(keys: Hooks) -> frozenset[Kind]:
    """What a dict becomes: an object if its keys are text or integers in JSON, else a list."""
    return OBJECT if keys.kinds in (TEXT, INTEGER) else LIST


def dict_hooks(keys: Hooks, values: Hooks) -> Hooks:
    """Make the hooks of a dict."""
    label = f"dict[{keys.label}, {values.label}]"
    if keys.kinds == TEXT:
        return _object(label, keys.text or keys.enc, keys.dec, values, distinct=keys.distinct)

    if keys.kinds == INTEGER:
        return _object(label, *_integer_keys(keys), values, distinct=keys.distinct)

    return _pairs(label, keys, values)


def _integer_keys(keys: Hooks) -> tuple[Enc, Dec]:
    def key_enc(key: Any) -> str:
        return str(keys.enc(key))

    def key_dec(text: str, _: Any) -> Any:
        number = int(text)
        if str(number) != text:
            raise Misfit(keys.label, "a string that is not an integer")

        return keys.dec(number, None)

    return key_enc, key_dec


def _object(label: str, key_enc: Enc, key_dec: Dec, values: Hooks, *, distinct: bool) -> Hooks:
    """Make the hooks of a dict whose keys are text in JSON: it becomes an object."""
    enc = _object_enc(label, key_enc, values.enc)
    dec = _object_dec(label, key_dec, values.dec)

    def checked(value: Any) -> Any:
        out = enc(value)
        _check_distinct("keys", value, [key_enc(key) for key in value], key_dec)
        return out

    return Hooks(label, frozenset((dict,)), OBJECT, enc if distinct else checked, dec)


def _object_enc(label: str, key_enc: Enc, value_enc: Enc) -> Enc:
    def enc(value: Any) -> Any:
        if value.__class__ is not dict:
            raise Misfit(label, describe(value))

        out: dict[str, Any] = {}
        key: Any = None
        try:
            for key, item in value.items():
                out[key_enc(key)] = value_enc(item)
        except Exception as error:
            raise at(error, key_part(key))

        return out

    return enc


def _object_dec(label: str, key_dec: Dec, value_dec: Dec) -> Dec:
    def dec(value: Any, _: Any) -> Any:
        if value.__class__ is not dict:
            raise Misfit(label, kind_of(value))

        out: dict[Any, Any] = {}
        key: Any = None
        try:
            for key, item in value.items():
                out[key_dec(key, None)] = value_dec(item, None)
        except Exception as error:
            raise at(error, key_part(key))

        if len(out) != len(value):
            raise Misfit(label, "an object that contains a key in two spellings")

        return out

    return dec


def _pairs(label: str, keys: Hooks, values: Hooks) -> Hooks:
    """Make the hooks of a dict with other keys: it becomes a list of pairs."""
    enc = _pairs_enc(label, keys.enc, values.enc)
    dec = _pairs_dec(label, keys.dec, values.dec)

    def checked(value: Any) -> Any:
        out = enc(value)
        _check_distinct("keys", value, [pair[0] for pair in out], keys.dec)
        return out

    return Hooks(label, frozenset((dict,)), LIST, enc if keys.distinct else checked, dec)


def _pairs_enc(label: str, key_enc: Enc, value_enc: Enc) -> Enc:
    def enc(value: Any) -> Any:
        if value.__class__ is not dict:
            raise Misfit(label, describe(value))

        out: list[Any] = []
        key: Any = None
        try:
            for key, item in value.items():
                out.append([key_enc(key), value_enc(item)])
        except Exception as error:
            raise at(error, key_part(key))

        return out

    return enc


def _pairs_dec(label: str, key_dec: Dec, value_dec: Dec) -> Dec:
    def dec(value: Any, _: Any) -> Any:
        if value.__class__ is not list:
            raise Misfit(label, f"{kind_of(value)} instead of a list of pairs")

        out: dict[Any, Any] = {}
        index = 0
        try:
            for pair in value:
                key, item = _pair(pair)
                out[key_dec(key, None)] = value_dec(item, None)
                index += 1
        except Exception as error:
            raise at(error, f"[{index}]")

        if len(out) != len(value):
            raise Misfit(label, "the same key twice")

        return out

    return dec


def _pair(value: Any) -> Any:
    match value:
        case [_, _]:
            return value
        case _:
            raise Misfit("a pair of key and value", kind_of(value))

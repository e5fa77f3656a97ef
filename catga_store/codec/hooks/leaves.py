"""The hooks of single values: each becomes one text or number, and is read back exactly.

`LEAVES` has them by class. The class of a value is compared by identity: a bool is not an int.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from datetime import datetime
from datetime import time
from datetime import timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

from catga_store.codec.hooks.base import NONE
from catga_store.codec.hooks.base import TEXT
from catga_store.codec.hooks.base import Dec
from catga_store.codec.hooks.base import Hooks
from catga_store.codec.hooks.base import Kind
from catga_store.codec.hooks.base import Misfit
from catga_store.codec.hooks.base import describe
from catga_store.codec.hooks.base import kind_of
from catga_store.codec.hooks.dates_and_times import datetime_text
from catga_store.codec.hooks.dates_and_times import decode_datetime
from catga_store.codec.hooks.dates_and_times import decode_time
from catga_store.codec.hooks.dates_and_times import decode_timedelta
from catga_store.codec.hooks.dates_and_times import encode_datetime
from catga_store.codec.hooks.dates_and_times import encode_time
from catga_store.codec.hooks.dates_and_times import encode_timedelta
from catga_store.codec.hooks.plain import TOO_HIGH
from catga_store.codec.hooks.plain import TOO_LOW
from catga_store.codec.hooks.plain import check_float
from catga_store.codec.hooks.plain import check_text
from catga_store.codec.hooks.plain import too_long

__all__ = ["EXPLAINED_STR", "LEAVES", "leaf"]


def leaf(
    cls: type,
    kind: Kind,
    to: Callable[[Any], Any],
    back: Callable[[Any], Any],
) -> Hooks:
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
            raise Misfit(label, f"{kind_of(value)} that is not a valid {label}") from error

    return Hooks(label, frozenset((cls,)), frozenset((kind,)), enc, dec, distinct=True)


def _native(cls: type, dec: Dec | None = None) -> Hooks:
    """Make the hooks of a class whose values msgspec writes as `str` does, but faster."""
    hooks = leaf(cls, str, str, cls)
    label = hooks.label

    # Not the function of `_same`: one that sees str and other classes in turn loses CPython's caches.
    def enc(value: Any) -> Any:
        if value.__class__ is not cls:
            raise Misfit(label, describe(value))

        return value

    return replace(hooks, enc=enc, dec=dec or hooks.dec, text=hooks.enc)


def _same(cls: type) -> Hooks:
    """Make the hooks of a class that JSON has as well."""
    label = "None" if cls is NONE else cls.__name__

    def enc(value: Any) -> Any:
        if value.__class__ is not cls:
            raise Misfit(label, describe(value))

        return value

    def dec(value: Any, _: Any) -> Any:
        if value.__class__ is not cls:
            raise Misfit(label, describe(value))

        return value

    return Hooks(label, frozenset((cls,)), frozenset((cls,)), enc, dec, distinct=True)


def _checked(cls: type, check: Callable[[Any], None]) -> Hooks:
    """Make the hooks of a class that JSON has as well, but not with all of its values."""
    hooks = _same(cls)
    label = hooks.label

    def enc(value: Any) -> Any:
        if value.__class__ is not cls:
            raise Misfit(label, describe(value))

        check(value)
        return value

    return replace(hooks, enc=enc)


# --- bytes ----------------------------------------------------------------------------------------


def _encode_bytes(value: bytes) -> str:
    return binascii.b2a_base64(value, newline=False).decode("ascii")


def _decode_bytes(text: str) -> bytes:
    return base64.b64decode(text, validate=True)


# --- numbers --------------------------------------------------------------------------------------


def _encode_int(value: Any) -> Any:
    if value.__class__ is int and TOO_LOW < value < TOO_HIGH:
        return value

    if value.__class__ is not int:
        raise Misfit("int", describe(value))

    raise too_long()


def _decode_decimal(value: Any, _: Any) -> Any:
    if value.__class__ is not str:
        raise Misfit("Decimal", kind_of(value))

    try:
        number = Decimal(value)
    except ArithmeticError:
        raise Misfit("Decimal", "a string that is not a valid Decimal") from None

    if number.is_nan() and "NaN" not in value:  # where InvalidOperation is not trapped
        raise Misfit("Decimal", "a string that is not a valid Decimal")

    return number


LEAVES: dict[Any, Hooks] = {
    NONE: _same(NONE),
    bool: _same(bool),
    int: replace(_same(int), enc=_encode_int),
    float: _checked(float, check_float),
    str: _same(str),
    bytes: leaf(bytes, str, _encode_bytes, _decode_bytes),
    # Not distinct: in an hour that is repeated, a time of a zone equals no other, but the instant
    # and offset that are kept of it may equal another's.
    datetime: Hooks(
        "datetime",
        frozenset((datetime,)),
        TEXT,
        encode_datetime,
        decode_datetime,
        datetime_text,
    ),
    date: leaf(date, str, date.isoformat, date.fromisoformat),
    time: replace(leaf(time, str, encode_time, decode_time), distinct=False),  # as of a datetime
    timedelta: leaf(timedelta, int, encode_timedelta, decode_timedelta),
    Decimal: replace(_native(Decimal, _decode_decimal), distinct=False),  # a NaN equals no other
    UUID: _native(UUID),
}
EXPLAINED_STR = _checked(str, check_text)
"""The hooks of str that find text that UTF-8 cannot encode, to say where it is."""

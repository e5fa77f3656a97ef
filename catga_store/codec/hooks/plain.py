"""The check that data is plain JSON data, which JSON returns as it was.

The limits of JSON values are here too; the hooks of declared types share them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from collections.abc import Iterable
from typing import Any
from typing import NoReturn

from catga_store.codec.hooks.base import MAX_LEVELS
from catga_store.codec.hooks.base import NONE
from catga_store.codec.hooks.base import Kind
from catga_store.codec.hooks.base import Misfit
from catga_store.codec.hooks.base import advice_for
from catga_store.codec.hooks.base import at
from catga_store.codec.hooks.base import describe
from catga_store.codec.hooks.base import key_part

__all__ = [
    "TOO_HIGH",
    "TOO_LOW",
    "check_float",
    "check_json",
    "check_text",
    "enter",
    "too_long",
]

TOO_HIGH = 10**4300  # Python reads and writes no longer integers unless its limit is raised
TOO_LOW = -(10**4299)  # msgspec counts the sign as a digit when it reads

# Values of these classes need no check. Text that UTF-8 cannot encode is left to the encoder, except
# when the place of an error is looked for.
_HARMLESS: frozenset[Kind] = frozenset((str, bool, NONE))
_HARMLESS_EXPLAINED = _HARMLESS - {str}


def check_json(value: Any, around: Iterable[int] = (), *, explain: bool = False) -> None:
    """Raise `Misfit` unless `value` is plain JSON data.

    `around` has the ids of the containers around it. Text is only looked at with `explain`.
    """
    harmless = _HARMLESS_EXPLAINED if explain else _HARMLESS
    if value.__class__ not in harmless:
        _CHECKS.get(value.__class__, _refuse)(value, set(around), harmless)


def enter(value: Any, active: set[int]) -> None:
    """Add a container to the active ones, unless it is inside itself or nested too deep.

    The caller removes it when it leaves the container.
    """
    if id(value) in active:
        raise Misfit("data without cycles", f"a {type(value).__name__} that contains itself")

    if len(active) >= MAX_LEVELS:
        raise Misfit(f"at most {MAX_LEVELS} levels of nesting", "more")

    active.add(id(value))


def too_long() -> Misfit:
    """Return the error for integers that could not be read back."""
    expected = "an int of at most 4300 digits, or of 4299 digits and a sign"
    return Misfit(expected, "a longer int", "it is too long to be read back")


def check_float(value: float) -> None:
    """Refuse floats that JSON does not have."""
    if not math.isfinite(value):
        raise Misfit("a finite float", repr(value), "JSON cannot represent this number")


def check_text(value: str) -> None:
    """Refuse text that UTF-8 cannot encode."""
    try:
        value.encode()
    except UnicodeEncodeError as error:
        found = f"a lone surrogate at index {error.start}"
        raise Misfit("a string that UTF-8 can encode", found) from None


# --- one function per class of JSON value ---------------------------------------------------------


def _check_list(value: list[Any], active: set[int], harmless: frozenset[Kind]) -> None:
    # Every value of a plain state passes here or below, so the most common case is written out.
    own = id(value)
    if own in active or len(active) >= MAX_LEVELS:
        enter(value, active)

    active.add(own)
    index = 0
    try:
        for item in value:
            kind = item.__class__
            if kind is int:
                if not TOO_LOW < item < TOO_HIGH:
                    raise too_long()  # noqa: TRY301  the place is added below
            elif kind not in harmless:
                _CHECKS.get(kind, _refuse)(item, active, harmless)

            index += 1
    except Exception as error:
        raise at(error, f"[{index}]")

    active.discard(own)


def _check_dict(value: dict[Any, Any], active: set[int], harmless: frozenset[Kind]) -> None:
    own = id(value)
    if own in active or len(active) >= MAX_LEVELS:
        enter(value, active)

    active.add(own)
    texts = str not in harmless
    key: Any = None
    try:
        for key, item in value.items():
            if key.__class__ is not str:
                _refuse_key(key)

            if texts:
                check_text(key)

            kind = item.__class__
            if kind is int:
                if not TOO_LOW < item < TOO_HIGH:
                    raise too_long()  # noqa: TRY301  the place is added below
            elif kind not in harmless:
                _CHECKS.get(kind, _refuse)(item, active, harmless)
    except Exception as error:
        raise at(error, key_part(key))

    active.discard(own)


def _check_int(value: int, _: set[int], __: frozenset[Kind]) -> None:
    if not TOO_LOW < value < TOO_HIGH:
        raise too_long()


def _check_float(value: float, _: set[int], __: frozenset[Kind]) -> None:
    if not math.isfinite(value):
        check_float(value)


def _check_text(value: str, _: set[int], __: frozenset[Kind]) -> None:
    check_text(value)


def _refuse(value: Any, _: set[int], __: frozenset[Kind]) -> NoReturn:
    expected = "plain JSON data (None, bool, int, float, str, list, dict with str keys)"
    why = advice_for(value.__class__) or "it could not be read back unchanged"
    raise Misfit(expected, describe(value), why)


def _refuse_key(key: object) -> NoReturn:
    raise Misfit("a key that is a str", describe(key), "JSON would convert the key to a string")


_CHECKS: dict[Kind, Callable[[Any, set[int], frozenset[Kind]], None]] = {
    list: _check_list,
    dict: _check_dict,
    int: _check_int,
    float: _check_float,
    str: _check_text,
}

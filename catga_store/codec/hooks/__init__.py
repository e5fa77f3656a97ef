"""Hooks between the values of a declared type and JSON data, strict in both directions.

A private part of `codec`. `build(state_type)` in `compiler` returns a `Codec`: two functions made of
the hooks of all the types inside. What kind of type is handled where:

| module | types |
|---|---|
| `leaves` | str, int, float, bytes, datetime, Decimal, UUID and other single values |
| `containers` | list, tuple, set, dict |
| `choices` | Enum, Flag, Literal, Union |
| `records` | TypedDict, NamedTuple |
| `classes` | attrs classes and dataclasses |
| `plain` | JSON data without a declared type |
| `typeforms` | what a declaration means: aliases, type variables, annotations |
| `base` | what all of them share: `Hooks`, `Misfit`, paths |

Every hook compares the class of a value by identity: a bool is not an int, and a subclass is not its
base.
"""

from __future__ import annotations

from catga_store.codec.hooks.base import MAX_LEVELS
from catga_store.codec.hooks.base import Misfit
from catga_store.codec.hooks.base import advice_for
from catga_store.codec.hooks.base import describe
from catga_store.codec.hooks.base import json_errors
from catga_store.codec.hooks.base import json_functions
from catga_store.codec.hooks.base import name_part
from catga_store.codec.hooks.compiler import Codec
from catga_store.codec.hooks.compiler import build
from catga_store.codec.hooks.plain import check_json
from catga_store.codec.hooks.typeforms import is_alias
from catga_store.codec.hooks.typeforms import is_attrs
from catga_store.codec.hooks.typeforms import is_dataclass
from catga_store.codec.hooks.typeforms import is_typeddict
from catga_store.codec.hooks.typeforms import named_by_itself
from catga_store.codec.hooks.typeforms import origin_of
from catga_store.codec.hooks.typeforms import union_members

__all__ = [
    "MAX_LEVELS",
    "Codec",
    "Misfit",
    "advice_for",
    "build",
    "check_json",
    "describe",
    "is_alias",
    "is_attrs",
    "is_dataclass",
    "is_typeddict",
    "json_errors",
    "json_functions",
    "name_part",
    "named_by_itself",
    "origin_of",
    "union_members",
]

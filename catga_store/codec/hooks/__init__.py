"""Hooks between the values of a declared type and JSON data, strict in both directions.

A private part of `codec`. `build(state_type)` answers a `Codec`, its functions made of the hooks
of all the types inside: single values (`leaves`), containers, choices, records and classes, put
together by `compiler`. `plain` checks data that has no declared type. Every hook checks the class
of what it is given by identity, so that a bool is no int and a subclass is not its base.
"""

from __future__ import annotations

from catga_store.codec.hooks.base import MAX_LEVELS
from catga_store.codec.hooks.base import Misfit
from catga_store.codec.hooks.base import describe
from catga_store.codec.hooks.base import json_errors
from catga_store.codec.hooks.base import json_functions
from catga_store.codec.hooks.compiler import Codec
from catga_store.codec.hooks.compiler import build
from catga_store.codec.hooks.plain import check_json
from catga_store.codec.hooks.typeforms import is_attrs
from catga_store.codec.hooks.typeforms import is_dataclass
from catga_store.codec.hooks.typeforms import is_typeddict
from catga_store.codec.hooks.typeforms import named_by_itself
from catga_store.codec.hooks.typeforms import origin_of

__all__ = [
    "MAX_LEVELS",
    "Codec",
    "Misfit",
    "build",
    "check_json",
    "describe",
    "is_attrs",
    "is_dataclass",
    "is_typeddict",
    "json_errors",
    "json_functions",
    "named_by_itself",
    "origin_of",
]

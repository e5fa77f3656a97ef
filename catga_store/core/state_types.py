"""Which flows a claim wants by their type, and as what it decodes each.

| `state_type` | flows that are claimed | their state |
|---|---|---|
| none | untyped ones | raw JSON data |
| a type | of this type, and untyped ones | this type |
| several types or names | of these | the type of each, raw data for a name |
| a stored name | of this name | raw JSON data |
| `RAW` | all | raw JSON data |
"""

from __future__ import annotations

import enum
from collections.abc import Collection
from typing import Any
from typing import Final
from typing import TypeAlias
from typing import cast

from attrs import frozen

from catga_store import codec
from catga_store.errors import StateTypeError
from catga_store.errors import UsageError
from catga_store.protocol.keys import Key
from catga_store.protocol.masking import shown
from catga_store.protocol.requests import Record

__all__ = ["RAW", "ManyTypes", "Raw", "Wanted", "wanted_of"]


class Raw(enum.Enum):
    """As the `state_type` of a claim, `RAW` selects flows of any type and returns their states as raw JSON data."""

    RAW = "raw"
    """Claim flows of any type, with raw JSON data as their states."""

    def __repr__(self) -> str:
        return "RAW"


RAW: Final = Raw.RAW

ManyTypes: TypeAlias = (
    str
    | Raw
    | tuple[type[Any] | str, ...]
    | list[type[Any] | str]
    | set[type[Any] | str]
    | frozenset[type[Any] | str]
)
"""What a claim takes in place of one type."""


@frozen
class Wanted:
    """The names that a claim wants, `None` for all, and the type that each is decoded as."""

    names: tuple[str, ...] | None
    types: dict[str, Any]

    def type_of(self, key: Key, record: Record) -> Any | None:
        """The type to decode a flow as, `None` for raw data; `StateTypeError` if it is not wanted."""
        name = record.head.type
        if self.names is None or name in self.names:
            return self.types.get(name)

        if not self.names[0] and len(self.names) > 1:
            return self.types[""]  # decoding says what does not fit

        wanted = ", ".join(map(repr, filter(None, self.names)))
        message = (
            f"{key} is stored with a state of type {name!r} but was claimed "
            f"{f'as {wanted}' if wanted else 'without a type'}; pass the stored type or its name, "
            "or RAW to get raw data"
        )
        raise StateTypeError(message, expected=wanted or None, actual=name)


def wanted_of(state_type: Any | None) -> Wanted:
    """What a claim with this argument wants; `UsageError` for what is not a type."""
    if state_type is None:
        return Wanted(("",), {})

    if state_type is RAW:
        return Wanted(None, {})

    if isinstance(state_type, str):
        return Wanted((_checked_name(state_type),), {})

    if isinstance(state_type, tuple | list | set | frozenset):
        return _wanted_of_many(cast("Collection[Any]", state_type))

    codec.check_state_type(state_type)
    name = codec.type_name(state_type)
    return Wanted(("", name), {"": state_type, name: state_type})


def _wanted_of_many(several: Collection[Any]) -> Wanted:
    types: dict[str, Any] = {}
    for one in several:
        if isinstance(one, str):
            types.setdefault(_checked_name(one), None)
        else:
            codec.check_state_type(one)
            types[codec.type_name(one)] = one

    if not types:
        message = "a claim needs at least one type; pass RAW to claim flows of any type"
        raise UsageError(message)

    return Wanted(tuple(types), types)


def _checked_name(name: str) -> str:
    try:
        name.encode()
    except UnicodeEncodeError as error:
        message = f"invalid state type name {shown(name)}: {error}"
        raise UsageError(message) from error

    return name

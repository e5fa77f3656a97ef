"""Converters and validators of the records' attributes."""

from __future__ import annotations

from typing import Any
from typing import cast

from attrs import Attribute

from catga_store.errors import EncodingError
from catga_store.errors import UsageError
from catga_store.protocol.keys import check_id
from catga_store.protocol.keys import check_part_name
from catga_store.protocol.keys import show_int
from catga_store.protocol.masking import shown

LAST_INDEX = 2**63 - 1


def exactly(wanted: type, *, or_none: bool = False) -> Any:
    """Return a validator for values of exactly this class."""

    def validate(_instance: object, attribute: Attribute[Any], value: object) -> None:
        if type(value) is not wanted and not (or_none and value is None):
            message = f"{attribute.name}: expected a {wanted.__name__}, got {shown(value)}"
            raise UsageError(message)

    return validate


def check_error_text(_instance: object, attribute: Attribute[Any], value: object) -> None:
    """Validate an error: text that UTF-8 can encode, or None."""
    if value is None:
        return

    if type(value) is not str:
        message = f"{attribute.name}: expected a str or None, got {shown(value)}"
        raise UsageError(message)

    try:
        value.encode()
    except UnicodeEncodeError as error:
        message = f"the error text cannot be encoded: {error}"
        raise EncodingError(message, path="error") from error


def check_count(_instance: object, attribute: Attribute[Any], value: object) -> None:
    """Validate a count: an int from 0 to 2**31 - 1."""
    if type(value) is not int or not 0 <= value < 2**31:
        message = f"{attribute.name}: expected an int from 0 to 2**31 - 1, got {shown(value)}"
        raise UsageError(message)


def check_path(_instance: object, _attribute: Attribute[Any], value: Any) -> None:
    """Validate the path of a position."""
    if type(value) is not tuple or not value:
        message = (
            f"position: expected a non-empty tuple of ints, got {shown(cast('object', value))}"
        )
        raise UsageError(message)

    for index in cast("tuple[object, ...]", value):
        if type(index) is not int or not 0 <= index <= LAST_INDEX:
            message = f"step index: expected an int from 0 to 2**63 - 1, got {show_int(index)}"
            raise UsageError(message)


def as_flow_id(value: str) -> str:
    """Return a valid flow id."""
    return check_id(value, "a flow id")


def as_part_name(value: str) -> str:
    """Return a valid name of a part."""
    return check_part_name(value)


_TAG_BYTES = 256


def check_tag(_instance: object, attribute: Attribute[Any], value: object) -> None:
    """Validate a tag."""
    check_tag_text(value, attribute.name)


def check_tag_text(value: object, name: str) -> None:
    """Raise an error unless it is text of at most 256 UTF-8 bytes."""
    if type(value) is str and value.isascii() and len(value) <= _TAG_BYTES:
        return

    if type(value) is not str:
        message = f"{name}: expected a str, got {shown(value)}"
        raise UsageError(message)

    try:
        size = len(value.encode())
    except UnicodeEncodeError as error:
        message = f"{name} cannot be encoded: {error}"
        raise EncodingError(message, path=name) from error

    if size > _TAG_BYTES:
        message = f"{name}: expected at most {_TAG_BYTES} UTF-8 bytes, got {size}"
        raise UsageError(message)


def as_correlation_id(value: str) -> str:
    """Return a valid correlation id."""
    return check_id(value, "a correlation id")


def as_parent_id(value: str | None) -> str | None:
    """Return the valid flow id of a parent, or None."""
    return None if value is None else check_id(value, "a parent's flow id")

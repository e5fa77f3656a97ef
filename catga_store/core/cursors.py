"""Cursors: where a page of a listing ended, as text, with the filters that it is of."""

from __future__ import annotations

import base64
import json
import operator
from collections.abc import Sequence
from typing import Any

from catga_store.errors import InvalidIdError
from catga_store.errors import UsageError
from catga_store.model.times import from_ms
from catga_store.protocol.keys import check_id
from catga_store.protocol.masking import shown

__all__ = ["invalid_cursor", "packed", "read_cursor", "unpacked", "write_cursor"]


def write_cursor(filters: Sequence[object], last: tuple[int, str]) -> str:
    """Return the cursor after an entry: its time in ms, and its id."""
    return packed((list(filters), *last))


def read_cursor(cursor: str, filters: Sequence[object]) -> tuple[int, str]:
    """Return the entry that a cursor names; `UsageError` if it is of other filters, or no cursor."""
    try:
        fields, ms, record_id = unpacked(cursor)
        after = operator.index(ms), check_id(record_id, "the id in a cursor")
        from_ms(after[0])
    except (ValueError, TypeError, OverflowError, RecursionError, InvalidIdError) as error:
        raise invalid_cursor(cursor) from error

    if fields != json.loads(json.dumps(list(filters))):
        message = (
            "this cursor belongs to a listing with different filters; pass it with the same "
            "filters as the page that returned it"
        )
        raise UsageError(message)

    return after


def packed(fields: Sequence[object]) -> str:
    """Return fields of plain JSON data as the text of a cursor."""
    return base64.urlsafe_b64encode(json.dumps(fields).encode()).decode()


def unpacked(cursor: str) -> Any:
    """Return what `packed` has made text; `ValueError`, `TypeError` or `RecursionError` of another text."""
    return json.loads(base64.urlsafe_b64decode(cursor))


def invalid_cursor(cursor: object) -> UsageError:
    """Return the error of a text that is not a cursor."""
    message = f"invalid cursor {shown(cursor)}; pass a cursor exactly as a page returned it"
    return UsageError(message)

"""Plain JSON data to bytes and back: what needs no declared type.

The bytes are compact JSON in UTF-8. Data is nested at most 100 levels deep. If a JSON object has
the same key twice, which this module never writes, the last one counts.
"""

from __future__ import annotations

import re
from typing import Any

from catga_store.codec.hooks import MAX_LEVELS
from catga_store.codec.hooks import check_json
from catga_store.codec.hooks import json_errors
from catga_store.codec.hooks import json_functions
from catga_store.codec.refusals import encoding_error
from catga_store.codec.refusals import explained
from catga_store.errors import CorruptRecordError
from catga_store.errors import EncodingError

__all__ = ["check_json_data", "decode_json", "encode_json"]


def encode_json(value: object) -> bytes:
    """Encode plain JSON data: None, bool, int, float, str, list, and dict with str keys.

    Anything else, subclasses of these included, raises `EncodingError`: JSON would change it.

    >>> encode_json({"paid": True, "items": [1, 2.0]})
    b'{"paid":true,"items":[1,2.0]}'
    >>> encode_json({"items": (1, 2)})
    Traceback (most recent call last):
    ...
    catga_store.EncodingError: data cannot be stored: at $.items expected plain JSON data (None, bool, \
int, float, str, list, dict with str keys), found tuple (it could not be read back \
unchanged); nothing was encoded
    """
    try:
        check_json(value)
        return json_functions()[0](value)
    except Exception as error:
        refusal = _not_plain(value, error)
        raise refusal from refusal.__cause__


def check_json_data(value: object) -> None:
    """Raise the `EncodingError` that `encode_json` would raise."""
    try:
        check_json(value)
    except Exception as error:
        refusal = _not_plain(value, error)
        raise refusal from refusal.__cause__


def decode_json(data: bytes | memoryview) -> Any:
    """Decode plain JSON data into fresh objects; `CorruptRecordError` for bytes that are not JSON."""
    try:
        return json_functions()[1](data)
    except RecursionError:
        if not _is_too_deep(data):
            raise  # the data is fine: the caller's stack is nearly full

        raise CorruptRecordError(
            f"expected JSON with at most {MAX_LEVELS} levels of nesting, found deeper nesting; "
            "nothing was decoded",
            key=None,
        ) from None
    except json_errors() as error:
        message = (
            f"expected JSON, found {len(data)} bytes that are not valid JSON ({error}); nothing "
            "was decoded"
        )
        raise CorruptRecordError(message, key=None) from error


def _not_plain(value: object, error: Exception) -> EncodingError:
    misfit = explained(lambda: check_json(value, explain=True), error)
    return encoding_error("data cannot be stored", misfit)


def _is_too_deep(data: bytes | memoryview) -> bool:
    """Whether JSON is nested deeper than this module writes it."""
    level = 0
    for bracket in re.findall(rb"[\[\]{}]", re.sub(rb'"(?:[^"\\]|\\.)*"', b"", data)):
        level += 1 if bracket in b"[{" else -1
        if level > MAX_LEVELS:
            return True

    return False

"""How values are given to statements, so that `sqlite3` does not look for an adapter of each.

CPython takes an `int`, `float`, `str` or `bytearray` as it is. For any other value, also for `None` and
`bytes`, it first looks for an adapter that a program may have registered, which takes longer than binding
it: 3,300 instructions each (counted with callgrind, CPython 3.11), and a tenth of an update, which has eleven
of them. Therefore

| value | is given as |
|---|---|
| an id or a name, which the file keeps as a BLOB | text, in `CAST(? AS BLOB)` |
| a body | a `bytearray`, if it is not large |
| `None` | `NULL` in the text of the statement |

Statements that few operations need give `None` and `bytes` as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence
from functools import lru_cache
from itertools import compress
from typing import Any
from typing import TypeVar

__all__ = ["BLOB", "as_blob", "without_nulls"]

R = TypeVar("R")

BLOB = "CAST(? AS BLOB)"
"""A parameter for text that the file keeps as bytes. The file has UTF-8, which `connection` checks.

SQLite does not define what expressions make of text with a NUL; this cast keeps all of it, which tests assert.
"""

_LARGE = 16 * 1024
"""Above this size, copying takes longer than looking for an adapter."""
_NONE = type(None)


def as_blob(body: bytes | None) -> bytes | bytearray | None:
    """Return a body, or none, as a value for a statement."""
    return body if body is None or len(body) > _LARGE else bytearray(body)


def without_nulls(run: Callable[[str, Sequence[Any]], R]) -> Callable[[str, Sequence[Any]], R]:
    """Return what executes a statement with `NULL` in the place of each parameter whose value is `None`.

    >>> without_nulls(print)("UPDATE t SET a = ?, b = ? WHERE c IS ?", (1, None, None))
    UPDATE t SET a = ?, b = NULL WHERE c IS NULL [1]
    """

    def change(text: str, values: Sequence[Any]) -> R:
        text, given = _for_types(text, tuple(map(type, values)))
        return run(text, list(compress(values, given)))

    return change


@lru_cache(256)  # as many statements as a connection keeps
def _for_types(text: str, types: tuple[type, ...]) -> tuple[str, tuple[bool, ...]]:
    first, *rest = text.split("?")
    given = tuple([one is not _NONE for one in types])
    marks = ["?" if one else "NULL" for one in given]
    return first + "".join(map("".join, zip(marks, rest, strict=True))), given

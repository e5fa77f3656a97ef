"""The pages of a listing, one after the other."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator
from typing import Any
from typing import TypeVar

import catga_store as cs

T = TypeVar("T")

MOST = 10_000
"""More pages than any test has: a cursor that does not go on fails."""


def pages_of(listing: Callable[..., cs.Page[T]], **arguments: Any) -> Iterator[cs.Page[T]]:
    """Ask for each page with the cursor of the one before it."""
    cursor: str | None = None
    for _ in range(MOST):
        page = listing(cursor=cursor, **arguments)
        yield page
        cursor = page.cursor
        if cursor is None:
            return

    message = f"the listing has more than {MOST} pages"
    raise AssertionError(message)

"""Waits with a deadline, for what can only be asked for again and again."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

import anyio

T = TypeVar("T")

LONG = 60.0
"""Seconds; far more than anything here takes, so that only a failure takes so long."""


def until(
    condition: Callable[[], T],
    seconds: float = LONG,
    *,
    pause: float = 0.002,
    otherwise: str = "not so",
) -> T:
    """Return what the condition returns once that is true; fail after that many seconds, and say so."""
    give_up = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < give_up, f"{otherwise} within {seconds} s: {found!r}"
        time.sleep(pause)

    return found


async def until_async(
    condition: Callable[[], T], seconds: float = LONG, *, pause: float = 0.002
) -> T:
    """Do the same on an event loop, which continues meanwhile; a pause of 0 is one turn of it."""
    give_up = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < give_up, f"not so within {seconds} s: {found!r}"
        await anyio.sleep(pause)

    return found


def retried(call: Callable[[], T], *errors: type[Exception], seconds: float = LONG) -> T:
    """Return what the call returns once it raises none of these errors; the last is raised in the end."""
    give_up = time.monotonic() + seconds
    while True:
        try:
            return call()
        except errors:
            if time.monotonic() > give_up:
                raise

        time.sleep(0.01)

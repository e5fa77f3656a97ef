"""The seam between a store's waist and whoever drives it: what stands there sees every exchange.

A waist turns a request into a conversation with the wire, whatever the wire is: a function in this
process, a Redis connection, NATS. So what stands before the waist can count exchanges, keep one from
the wire, or lose its reply, on every store and behind every face alike.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from attrs import define

from catga_store.aio import AsyncStore
from catga_store.conversation import Conversation
from catga_store.conversation import Request
from catga_store.conversation import ask
from catga_store.errors import NotSupportedError
from catga_store.records import Waist
from catga_store.store import Store

__all__ = ["Talk", "stand_before", "talker"]


def stand_before(store: Any, wrap: Callable[[Waist], Waist]) -> None:
    """Put what `wrap` makes of a store's waist in its place; best before the store is used.

    `NotSupportedError` for a store whose driver is none of this library's.
    """
    driver = store._driver if isinstance(store, Store | AsyncStore) else None
    if not _replace(driver, wrap):
        message = f"nothing can stand between {store!r} and its wire: it is no store of this library's kind"
        raise NotSupportedError(message)


def _replace(driver: Any, wrap: Callable[[Waist], Waist]) -> bool:
    """Replace the waist wherever the driver keeps it; whether there was one."""
    if hasattr(driver, "waist"):  # embedded stores, blocking Redis, the units of an event loop
        driver.waist = wrap(driver.waist)
        return True

    if hasattr(driver, "_make_units"):  # a portal, which makes its units at the first request
        make = driver._make_units
        waist = wrap(make.args[0])
        driver._make_units = partial(make.func, waist, *make.args[1:])
        if driver._portal is not None:
            driver._portal._units.waist = waist

        return True

    if hasattr(driver, "_parts"):  # whose loop is found out at the first request
        waist = wrap(driver._parts[0])
        driver._parts = (waist, *driver._parts[1:])
        if driver._driver is not None:
            _replace(driver._driver, lambda _: waist)

        return True

    return hasattr(driver, "_units") and _replace(driver._units, wrap)


@define
class Talk(Request[Any]):
    """Asks what stands at the seam to hold this conversation with the wire."""

    conversation: Conversation[Any]


class _Talker:
    """A waist that also holds whatever conversation it is given."""

    def __init__(self, waist: Waist) -> None:
        self.waist = waist

    def converse(self, request: Request[object]) -> Conversation[object]:
        """The conversation of a `Talk`, else the store's own."""
        return request.conversation if isinstance(request, Talk) else self.waist.converse(request)


def talker(store: Store) -> tuple[Any, Callable[[Conversation[Any]], Any]]:
    """The waist of a blocking store, and a function that holds conversations with its wire."""
    found: list[Waist] = []

    def wrap(waist: Waist) -> Waist:
        found.append(waist)
        return _Talker(waist)

    stand_before(store, wrap)

    def hold(conversation: Conversation[Any]) -> Any:
        return store._run(ask(Talk(conversation)))

    return found[0], hold

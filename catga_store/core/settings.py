"""The options of every store, checked."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from datetime import datetime
from datetime import timedelta
from typing import Any

from attrs import Attribute
from attrs import field
from attrs import frozen

from catga_store.codec.bodies import BodyCodec
from catga_store.codec.bodies import Chain
from catga_store.core.arguments import check_names
from catga_store.core.options import StoreOptions
from catga_store.errors import UsageError
from catga_store.model.listings import Retention
from catga_store.model.times import clock_ms
from catga_store.model.times import span_ms
from catga_store.protocol.keys import check_id
from catga_store.protocol.masking import shown

__all__ = ["Settings"]


_TIMEOUT: Any = timedelta(seconds=10)
_POLL_INTERVAL: Any = timedelta(seconds=5)


def _from_one(_instance: object, attribute: Attribute[Any], value: object) -> None:
    if type(value) is not int or value < 1:
        message = f"{attribute.name}: expected an int of at least 1, got {shown(value)}"
        raise UsageError(message)


def _callable(_instance: object, attribute: Attribute[Any], value: object) -> None:
    if value is not None and not callable(value):
        message = f"{attribute.name}: expected a function that returns the time, got {shown(value)}"
        raise UsageError(message)


def _seconds(value: object) -> float:
    if isinstance(value, timedelta):
        seconds = span_ms(value, "timeout") / 1000
        if seconds:
            return seconds

        message = (
            "timeout: expected a duration longer than 0, got 0; with 0, no reply could arrive in "
            "time"
        )
        raise UsageError(message)

    message = f"timeout: expected a timedelta, got {shown(value)}"
    raise UsageError(message)


def _interval(value: object) -> float:
    seconds = span_ms(value, "poll_interval") / 1000
    if seconds:
        return seconds

    message = (
        "poll_interval: expected a duration longer than 0, got 0; with 0, a waiting call would "
        "poll without a pause"
    )
    raise UsageError(message)


def _checked_retention(value: object) -> Retention:
    if isinstance(value, Retention):
        return value

    message = f"retention: expected a Retention, got {shown(value)}"
    raise UsageError(message)


def _checked_owner(value: str | None) -> str | None:
    return None if value is None else check_id(value, "an owner")


def _chain(value: Iterable[BodyCodec] | None) -> Chain | None:
    chain = None if value is None else Chain(value)
    return chain if chain is not None and chain.codecs else None


@frozen(kw_only=True)
class Settings:
    """The options of every store; `timeout` and `poll_interval` become seconds."""

    clock: Callable[[], datetime] | None = field(default=None, validator=_callable)
    owner: str | None = field(default=None, converter=_checked_owner)
    timeout: float = field(default=_TIMEOUT, converter=_seconds)
    poll_interval: float = field(default=_POLL_INTERVAL, converter=_interval)
    retention: Retention = field(factory=Retention, converter=_checked_retention)
    partitions: int = field(default=1, validator=_from_one)
    history: int = field(default=1, validator=_from_one)
    max_record_bytes: int = field(default=64 * 1024 * 1024, validator=_from_one)
    codecs: Chain | None = field(default=None, converter=_chain)

    @classmethod
    def of(cls, store: type, options: Mapping[str, Any]) -> Settings:
        """The settings in keywords of a store; an unknown one is refused in the name of the store."""
        known = StoreOptions.__annotations__.keys()
        if not options.keys() <= known:
            own = inspect.signature(store).parameters.keys() - {"options"}
            check_names(store.__name__, "option", options, known | own)

        return cls(**options)

    def now_ms(self) -> int:
        """The store's time, in milliseconds, rounded down."""
        if self.clock is None:
            return time.time_ns() // 1_000_000

        try:
            now = self.clock()
        except Exception as error:
            message = (
                f"the clock raised {type(error).__name__} instead of returning an aware datetime"
            )
            raise UsageError(message) from error

        return clock_ms(now)

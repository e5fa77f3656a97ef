"""Gauges of what a store holds: the numbers of `Store.stats`, when metrics are collected."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from collections.abc import Generator
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from operator import attrgetter
from time import monotonic
from typing import TYPE_CHECKING
from typing import NoReturn
from typing import TypeAlias
from weakref import WeakKeyDictionary

from attrs import define
from attrs import field
from attrs import frozen

from catga_store.errors import CatgaStoreError
from catga_store.errors import UsageError
from catga_store.model.flows import FlowStatus
from catga_store.model.stats import StoreStats
from catga_store.model.times import span_ms
from catga_store.protocol.masking import shown
from catga_store.store import Store
from catga_store.telemetry.operations import missing_extra

if TYPE_CHECKING:
    from opentelemetry.metrics import CallbackOptions
    from opentelemetry.metrics import MeterProvider
    from opentelemetry.metrics import Observation

    from catga_store.aio import AsyncStore

__all__ = ["observe_stats", "observe_stats_async"]

Attributes: TypeAlias = Mapping[str, str | int | float | bool]
Numbers: TypeAlias = Iterable[tuple[float, Attributes]]

_log = logging.getLogger(__name__)

_INTERVAL = timedelta(seconds=15)
_FRESH = 3
"""For how many intervals a number of an async store is reported after it was read."""


@contextmanager
def observe_stats(
    store: Store,
    *,
    meter_provider: MeterProvider | None = None,
    min_interval: timedelta = _INTERVAL,
    attributes: Attributes | None = None,
) -> Generator[None]:
    """Report the numbers of `store.stats` as gauges while the block runs; close the store only after the block.

    The thread that collects the metrics calls `store.stats`, once for all gauges, and does not call it again
    within `min_interval`: until then, the same numbers are reported. A collection waits for the store, during
    an outage for up to the store's `timeout`. After that, nothing is reported until the store replies again.
    A warning is logged when the outage begins, and no exception reaches the exporter. At its end, the block
    waits for a request that is in flight.

    `attributes` are added to each measurement. If a program observes several stores of the same class, the
    attributes distinguish these stores. Raises `UsageError` if another observed store of the class has the
    same attributes, if the store is not a blocking store, or if the interval is not positive. Without a
    provider, the global provider is used. Raises `NotSupportedError` if `opentelemetry-api` is not installed.
    """
    _check_kind(store, "observe_stats", is_blocking=True)
    seconds = _seconds(min_interval, "min_interval")
    source = _Asked(_about(store, attributes), seconds, ask=store.stats)
    with _reporting(source, meter_provider):
        yield


async def observe_stats_async(
    store: AsyncStore,
    *,
    meter_provider: MeterProvider | None = None,
    interval: timedelta = _INTERVAL,
    attributes: Attributes | None = None,
) -> NoReturn:
    """Report the numbers of `store.stats` as gauges until the task is cancelled; run it in a separate task.

    OpenTelemetry reads gauges in a thread of the exporter, which cannot await. This function therefore calls
    `store.stats` after each `interval`, whether or not metrics are collected, and each collection reports the
    last reply. If the last reply is older than three intervals, for example because the event loop hangs,
    nothing is reported. During an outage, nothing is reported either, and the task continues. In all other
    respects, this function works like `observe_stats`.
    """
    import anyio  # noqa: PLC0415  not by programs without an async store

    _check_kind(store, "observe_stats_async", is_blocking=False)
    seconds = _seconds(interval, "interval")
    source = _Kept(_about(store, attributes), seconds)
    with _reporting(source, meter_provider):
        while True:
            try:
                source.keep(await store.stats())
            except CatgaStoreError as error:
                source.keep(None)
                source.failed(error)

            await anyio.sleep(seconds)


def _check_kind(store: object, function: str, *, is_blocking: bool) -> None:
    if isinstance(store, Store) is not is_blocking:
        kind = "a blocking" if is_blocking else "an async"
        message = f"{function}: expected {kind} store, got {shown(store)}"
        raise UsageError(message)


def _about(store: object, attributes: Attributes | None) -> Attributes:
    return {"catga_store.store": type(store).__name__, **(attributes or {})}


def _seconds(interval: timedelta, what: str) -> float:
    if span_ms(interval, what) == 0:
        message = f"{what}: expected a duration longer than 0, got 0"
        raise UsageError(message)

    return interval.total_seconds()


# --- the stores -------------------------------------------------------------------------------------


@define(eq=False)
class _Source:
    """A store whose numbers are reported."""

    about: Attributes
    interval: float
    _is_out: bool = field(default=False, init=False)

    def reading(self, gauge: str) -> StoreStats | None:
        """Return what this gauge is to report; `None` if that is not known."""
        raise NotImplementedError

    def end(self) -> None:
        """Report nothing from now on."""
        raise NotImplementedError

    def failed(self, error: CatgaStoreError) -> None:
        """Log the first failure in a row."""
        if not self._is_out:
            _log.warning(
                "the gauges of %s are not reported until it responds again: %s", self._name, error
            )

        self._is_out = True

    def replied(self) -> None:
        """Log the end of an outage."""
        if self._is_out:
            _log.info("%s responds again, so its gauges are reported again", self._name)

        self._is_out = False

    @property
    def _name(self) -> str:
        return ", ".join(f"{name}={value}" for name, value in self.about.items())


@define(eq=False)
class _Asked(_Source):
    """A blocking store, asked by the thread that collects.

    A callback does not learn which collection it is called for. A gauge that comes for the second time
    begins another one, and only such a gauge asks the store again: so a collection reports numbers of
    one reading, also if the interval ends while it runs.
    """

    ask: Callable[[], StoreStats] = field(kw_only=True)
    _lock: threading.Lock = field(factory=threading.Lock, init=False)
    _read_at: float | None = field(default=None, init=False)
    _served: set[str] = field(factory=set[str], init=False)
    _last: StoreStats | None = field(default=None, init=False)
    _is_over: bool = field(default=False, init=False)

    def reading(self, gauge: str) -> StoreStats | None:
        with self._lock:
            if self._is_over:
                return None

            if self._read_at is None or (
                gauge in self._served and monotonic() - self._read_at >= self.interval
            ):
                self._read()

            self._served.add(gauge)
            return self._last

    def _read(self) -> None:
        self._served.clear()
        try:
            self._last = self.ask()
        except CatgaStoreError as error:
            self._last = None
            self.failed(error)
        else:
            self.replied()

        self._read_at = monotonic()

    def end(self) -> None:
        with self._lock:
            self._is_over = True


@define(eq=False)
class _Kept(_Source):
    """An async store, asked by a task; collections report the last reply."""

    _last: tuple[float, StoreStats] | None = field(default=None, init=False)

    def keep(self, stats: StoreStats | None) -> None:
        """Remember a reply."""
        if stats is None:
            self._last = None
            return

        self._last = (monotonic(), stats)
        self.replied()

    def reading(self, gauge: str) -> StoreStats | None:
        del gauge
        if self._last is None:
            return None

        read_at, stats = self._last
        return stats if monotonic() - read_at < _FRESH * self.interval else None

    def end(self) -> None:
        self._last = None


# --- the gauges -------------------------------------------------------------------------------------


def _by_status(stats: StoreStats) -> Numbers:
    for kind, numbers in stats.flows.items():
        for status in FlowStatus:
            about = {"catga_store.flow.type": kind, "catga_store.flow.status": status.name.lower()}
            yield numbers.get(status, 0), about


def _oldest(stats: StoreStats) -> Numbers:
    age = stats.oldest_due_age
    yield 0.0 if age is None else age.total_seconds(), {}


def _only(name: str) -> Callable[[StoreStats], Numbers]:
    number = attrgetter(name)
    return lambda stats: [(number(stats), {})]


@frozen
class _Gauge:
    name: str
    unit: str
    described: str
    numbers: Callable[[StoreStats], Numbers]


_GAUGES = (
    _Gauge("flow.count", "{flow}", "Flows by type and status", _by_status),
    _Gauge("flow.due", "{flow}", "Flows that are due", _only("due")),
    _Gauge("flow.oldest_due_age", "s", "Time since the oldest due flow became due", _oldest),
    _Gauge("flow.claimed", "{flow}", "Flows that are claimed", _only("claimed")),
    _Gauge(
        "flow.expired_leases",
        "{flow}",
        "Flows whose lease has expired",
        _only("expired_leases"),
    ),
    _Gauge(
        "wait.pending", "{condition}", "Wait conditions that have not ended", _only("waits_pending")
    ),
    _Gauge(
        "wait.overdue",
        "{condition}",
        "Pending wait conditions whose deadline has passed",
        _only("waits_overdue"),
    ),
    _Gauge(
        "wait.due",
        "{condition}",
        "Wait conditions that the next claim_due will act on",
        _only("waits_due"),
    ),
)

# A provider returns an instrument of a known name as it is, and drops the callback that comes with it.
# So each provider gets one set of gauges, whose callbacks report all its stores.
_lock = threading.Lock()


class _Global:
    """Stands for the global provider, which a program may set after it has begun to report."""


_GLOBAL = _Global()
_observed: WeakKeyDictionary[MeterProvider | _Global, list[_Source]] = WeakKeyDictionary()


@contextmanager
def _reporting(source: _Source, provider: MeterProvider | None) -> Generator[None]:
    with _lock:
        sources = _sources(provider)
        if any(other.about == source.about for other in sources):
            message = (
                f"a store with the attributes {dict(source.about)} is already being observed; "
                "pass different attributes"
            )
            raise UsageError(message)

        sources.append(source)

    try:
        yield
    finally:
        with _lock:
            sources.remove(source)

        source.end()


def _sources(provider: MeterProvider | None) -> list[_Source]:
    """Return the observed stores of a provider, with gauges that report them."""
    try:
        from opentelemetry import metrics  # noqa: PLC0415  by those who ask for it
    except ModuleNotFoundError as error:
        raise missing_extra(error) from error

    is_global = provider is None or provider is metrics.get_meter_provider()
    key = _GLOBAL if provider is None or is_global else provider
    found = _observed.get(key)
    if found is not None:
        return found

    sources: list[_Source] = []
    meter = metrics.get_meter("catga_store", meter_provider=None if is_global else provider)
    for gauge in _GAUGES:
        callback = partial(_measure, metrics.Observation, gauge, sources)
        name = f"catga_store.{gauge.name}"
        meter.create_observable_gauge(name, [callback], gauge.unit, gauge.described)

    _observed[key] = sources
    return sources


def _measure(
    observation: type[Observation], gauge: _Gauge, sources: list[_Source], _: CallbackOptions
) -> Iterator[Observation]:
    for source in tuple(sources):
        stats = source.reading(gauge.name)
        if stats is not None:
            for number, about in gauge.numbers(stats):
                yield observation(number, {**source.about, **about})

"""Spans and metrics of the operations of stores."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING
from typing import Any
from typing import TypeVar

from attrs import define
from attrs import field

from catga_store.errors import CommitUncertainError
from catga_store.errors import ConflictError
from catga_store.errors import CorruptRecordError
from catga_store.errors import NotSupportedError
from catga_store.errors import StoreConfigError
from catga_store.errors import StoreUnavailableError
from catga_store.errors import UsageError
from catga_store.protocol.conversation import Conversation
from catga_store.protocol.conversation import Request
from catga_store.protocol.conversation import through
from catga_store.protocol.keys import WAIT
from catga_store.protocol.keys import Key
from catga_store.protocol.requests import Applied
from catga_store.protocol.requests import Commit
from catga_store.protocol.requests import Extend
from catga_store.protocol.requests import Find
from catga_store.protocol.requests import Put
from catga_store.protocol.requests import Read
from catga_store.protocol.requests import Refused
from catga_store.protocol.requests import Scan
from catga_store.store import Store

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.metrics import MeterProvider
    from opentelemetry.trace import TracerProvider

    from catga_store.aio import AsyncStore

__all__ = ["instrument", "missing_extra", "uninstrument"]

T = TypeVar("T")
AnyStore = TypeVar("AnyStore", "Store", "AsyncStore")

_OUTCOMES: tuple[tuple[type[Exception], str], ...] = (
    (ConflictError, "conflict"),
    (CommitUncertainError, "uncertain"),
    (StoreUnavailableError, "unavailable"),
    (UsageError, "usage"),
    (StoreConfigError, "config"),
    (CorruptRecordError, "corrupt"),
    (Exception, "error"),
)
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Bounds of the histogram's buckets; those of the SDK are for milliseconds."""
_EXPECTED = ("ok", "conflict", "cancelled")


def instrument(
    store: AnyStore,
    *,
    tracer_provider: TracerProvider | None = None,
    meter_provider: MeterProvider | None = None,
) -> AnyStore:
    """Report every operation of a store from now on, and return the store.

    This includes the operations of sessions that are already open. Without providers, the global providers
    are used. A further call replaces the providers. Raises `NotSupportedError` if `opentelemetry-api` is not
    installed.
    """
    store._watch = _watch(tracer_provider, meter_provider)  # noqa: SLF001  the attribute made for it
    return store


def uninstrument(store: AnyStore) -> AnyStore:
    """Stop reporting the operations of a store, and return the store."""
    store._watch = None  # noqa: SLF001  the attribute made for it
    return store


def _watch(tracers: TracerProvider | None, meters: MeterProvider | None) -> _Telemetry:
    try:
        return _Telemetry(tracers, meters)
    except ModuleNotFoundError as error:
        raise missing_extra(error) from error


def missing_extra(error: ModuleNotFoundError) -> NotSupportedError:
    """Return the error that says what to install."""
    return NotSupportedError(
        f"telemetry needs {error.name}, which is not installed; run pip install 'catga_store[otel]'"
    )


@define
class _Tally:
    """What one operation has sent and received."""

    records: int = 0
    keys: set[Key] = field(factory=set[Key])
    conflicts: int = 0
    retries: int = 0
    uncertain: int = 0
    claimed: int = 0
    notified: int = 0

    def seen(self, request: Request[Any]) -> Conversation[Any]:
        """Pass a request on, and count it and its reply."""
        if isinstance(request, Commit):
            return self._committed(request)

        return self._asked(request)

    def _asked(self, request: Request[Any]) -> Conversation[Any]:
        if isinstance(request, Read):
            self._named(request.keys)
        elif isinstance(request, Extend):
            self._named((request.key,))

        reply = yield request
        if isinstance(request, Find | Scan):
            self.records += len(reply)

        return reply

    def _committed(self, request: Commit) -> Conversation[Any]:
        self._named(tuple(change.key for change in request.changes))
        self.retries += self.conflicts > 0
        try:
            reply = yield request
        except CommitUncertainError:
            self.uncertain += 1
            raise

        if isinstance(reply, Refused):
            self.conflicts += len(reply.conflicts)
        elif isinstance(reply, Applied):
            puts = [change for change in request.changes if isinstance(change, Put)]
            claimed = sum(put.claiming for put in puts)
            self.claimed += claimed
            if claimed:
                self.notified += sum(put.notified and put.key.kind == WAIT for put in puts)

        return reply

    def _named(self, keys: tuple[Key, ...]) -> None:
        self.records += len(keys)
        self.keys.update(keys)


class _Telemetry:
    """Watches the conversations of stores; see `conversation.Watch`."""

    def __init__(self, tracers: TracerProvider | None, meters: MeterProvider | None) -> None:
        from opentelemetry import context  # noqa: PLC0415  by those who ask for it
        from opentelemetry import metrics  # noqa: PLC0415  as above
        from opentelemetry import trace  # noqa: PLC0415  as above

        self._context = context
        self._trace = trace
        self._tracer = trace.get_tracer("catga_store", tracer_provider=tracers)
        meter = metrics.get_meter("catga_store", meter_provider=meters)
        self._duration = meter.create_histogram(
            "catga_store.operation.duration",
            "s",
            "Duration of operations",
            explicit_bucket_boundaries_advisory=_SECONDS,
        )
        self._counters = {
            counted: meter.create_counter(f"catga_store.{name}", unit, described)
            for counted, name, unit, described in (
                ("conflicts", "conflicts", "{change}", "Changes that a store has refused"),
                ("retries", "retries", "{commit}", "Commits that were sent again after a refusal"),
                ("uncertain", "uncertain_commits", "{commit}", "Commits whose outcome is unknown"),
                ("claimed", "claimed_flows", "{flow}", "Flows that workers have claimed"),
                (
                    "notified",
                    "due_conditions",
                    "{condition}",
                    "Ended wait conditions whose parent was notified",
                ),
            )
        }

    def __call__(self, store: object, conversation: Conversation[T]) -> Conversation[T]:
        """Return the conversation, reported as a span that is a child of the caller's."""
        # Now, and not when it runs: a driver may run it in another thread.
        return self._watched(store, conversation, self._context.get_current())

    def _watched(
        self, store: object, conversation: Conversation[T], parent: Context
    ) -> Conversation[T]:
        operation: str = getattr(conversation, "__name__", "operation")
        about: dict[str, str | int] = {
            "catga_store.operation": operation,
            "catga_store.store": type(store).__name__,
            "catga_store.api": "blocking" if isinstance(store, Store) else "async",
        }
        kind = self._trace.SpanKind.CLIENT
        name = f"catga_store.{operation}"
        span = self._tracer.start_span(name, parent, kind, about)
        token = self._context.attach(self._trace.set_span_in_context(span, parent))
        tally, start = _Tally(), time.perf_counter()
        failure: BaseException | None = None

        try:
            return (yield from through(conversation, tally.seen))
        except BaseException as error:
            failure = error
            raise
        finally:
            # A conversation that is collected unfinished may end in another context, to whose
            # variables this token does not belong.
            if not isinstance(failure, GeneratorExit):
                self._context.detach(token)

            outcome = _outcome(failure)
            seconds = time.perf_counter() - start
            span.set_attribute("catga_store.records", tally.records)
            span.set_attribute("catga_store.outcome", outcome)
            if len(tally.keys) == 1:
                span.set_attribute("catga_store.key", str(*tally.keys))

            if failure is not None and outcome not in _EXPECTED:
                span.record_exception(failure)
                span.set_status(self._trace.StatusCode.ERROR, str(failure))

            span.end()
            self._count(tally, about)
            self._duration.record(seconds, {**about, "catga_store.outcome": outcome})

    def _count(self, tally: _Tally, about: Mapping[str, str | int]) -> None:
        for name, counter in self._counters.items():
            number = getattr(tally, name)
            if number:
                counter.add(number, about)


def _outcome(error: BaseException | None) -> str:
    if error is None:
        return "ok"

    return next((name for kind, name in _OUTCOMES if isinstance(error, kind)), "cancelled")

"""Logging is quiet, and OpenTelemetry tells what operations did, on both APIs."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import anyio
import pytest
from attrs import frozen
from marks import ONE_STORE
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

import catga_store as cs
from catga_store.telemetry import instrument
from catga_store.telemetry import uninstrument
from catga_store.testing.clock import ManualClock
from catga_store.testing.faults import Faults


@frozen
class Seen:
    """What a program's providers have received."""

    spans: InMemorySpanExporter
    metrics: InMemoryMetricReader
    tracer_provider: TracerProvider
    meter_provider: MeterProvider

    def watch(self, store: Any) -> Any:
        """Let a store report here."""
        return instrument(
            store, tracer_provider=self.tracer_provider, meter_provider=self.meter_provider
        )

    def named(self, operation: str) -> list[Mapping[str, Any]]:
        """Return the attributes of the spans of an operation, without their prefix."""
        return [
            {
                name.removeprefix("catga_store."): value
                for name, value in (span.attributes or {}).items()
            }
            for span in self.spans.get_finished_spans()
            if span.name == f"catga_store.{operation}"
        ]

    def span(self, operation: str) -> ReadableSpan:
        """Return the only span of an operation."""
        (span,) = [
            span
            for span in self.spans.get_finished_spans()
            if span.name == f"catga_store.{operation}"
        ]
        return span

    def count(self, metric: str, **about: str) -> float:
        """Return the sum of a metric, a histogram's number of values."""
        data = self.metrics.get_metrics_data()
        return sum(
            getattr(point, "value", getattr(point, "count", 0))
            for resource in (data.resource_metrics if data is not None else ())
            for scope in resource.scope_metrics
            for one in scope.metrics
            if one.name == f"catga_store.{metric}"
            for point in one.data.data_points
            if {f"catga_store.{name}": value for name, value in about.items()}.items()
            <= dict(point.attributes or {}).items()
        )


@pytest.fixture
def seen() -> Iterator[Seen]:
    """Set up providers that keep what they receive."""
    spans, metrics = InMemorySpanExporter(), InMemoryMetricReader()
    tracers, meters = TracerProvider(), MeterProvider([metrics])
    tracers.add_span_processor(SimpleSpanProcessor(spans))
    yield Seen(spans, metrics, tracers, meters)
    tracers.shutdown()
    meters.shutdown()


# --- spans ------------------------------------------------------------------------------------------


def test_every_operation_is_one_span(store: cs.Store, seen: Seen) -> None:
    """It names the operation, the store, the API, the record and the outcome."""
    assert seen.watch(store) is store
    flow = cs.FlowSnapshot("f", state={})
    store.create(flow)
    store.update(flow)
    store.get_many(["f", "g", "h"])
    (create,) = seen.named("create")
    assert create == {
        "operation": "create",
        "store": type(store).__name__,
        "api": "blocking",
        "records": 1,
        "key": "flow 'f'",
        "outcome": "ok",
    }
    (many,) = seen.named("get_many")
    assert (many["records"], "key" in many) == (3, False)
    assert seen.span("update").status.status_code is StatusCode.UNSET
    assert seen.count("operation.duration") == 3
    assert seen.count("operation.duration", operation="update", outcome="ok") == 1


@ONE_STORE
@pytest.mark.anyio
async def test_the_async_face_reports_likewise(astore: cs.AsyncStore, seen: Seen) -> None:
    """The same spans; those of concurrent tasks are children of their own tasks' spans."""
    seen.watch(astore)
    tracer = seen.tracer_provider.get_tracer("test")

    async def work(name: str) -> None:
        with tracer.start_as_current_span(name):
            await astore.create(cs.FlowSnapshot(name, state={}))
            async with astore.begin() as session:
                (await session.get_one(name)).state["n"] = 1

    async with anyio.create_task_group() as tasks:
        for number in range(5):
            tasks.start_soon(work, f"f-{number}")

    spans = seen.spans.get_finished_spans()
    ids = {span.context.span_id: span.name for span in spans if span.context is not None}
    commits = [span for span in spans if span.name == "catga_store.session_commit"]
    assert len(commits) == 5
    for commit in commits:
        assert commit.parent is not None
        assert commit.attributes is not None
        assert commit.attributes["catga_store.key"] == f"flow {ids[commit.parent.span_id]!r}"
        assert commit.attributes["catga_store.api"] == "async"


@ONE_STORE
def test_a_transaction_is_the_parent_of_what_its_function_does(store: cs.Store, seen: Seen) -> None:
    """And the span that was current before is current again afterwards."""
    store.create(cs.FlowSnapshot("f", state={"n": 0}))
    seen.watch(store)
    tracer = seen.tracer_provider.get_tracer("test")
    with tracer.start_as_current_span("mine"):
        store.transact(lambda session: session.get_one("f").state.update(n=1))
        store.get("f")

    transact, read, get = seen.span("transact"), seen.span("session_get_one"), seen.span("get")
    assert read.parent is not None
    assert transact.context is not None
    assert read.parent.span_id == transact.context.span_id
    assert get.parent == transact.parent
    assert get.parent is not None


def _conflict(store: cs.Store) -> None:
    store.create(cs.FlowSnapshot("f", state={}))


def _usage(store: cs.Store) -> None:
    store.update(cs.FlowSnapshot("f", state={}))


def _bug(store: cs.Store) -> None:
    store.transact(lambda _: 1 / 0)


@ONE_STORE
@pytest.mark.parametrize(
    ("act", "reported", "kind"),
    [
        (_conflict, ("create", "conflict"), cs.FlowExistsError),
        (_usage, ("update", "usage"), cs.UsageError),
        (_bug, ("transact", "error"), ZeroDivisionError),
    ],
)
def test_a_failure_is_an_outcome(
    store: cs.Store,
    seen: Seen,
    act: Callable[[cs.Store], None],
    reported: tuple[str, str],
    kind: type[Exception],
) -> None:
    """The error is raised as it was; only an unexpected one marks the span as failed."""
    operation, outcome = reported
    store.create(cs.FlowSnapshot("f", state={}))
    seen.watch(store)
    with pytest.raises(kind):
        act(store)

    span = seen.span(operation)
    (about,) = seen.named(operation)
    assert about["outcome"] == outcome
    expected = StatusCode.UNSET if outcome == "conflict" else StatusCode.ERROR
    assert span.status.status_code is expected
    assert len(span.events) == (outcome != "conflict")


@ONE_STORE
@pytest.mark.anyio
async def test_a_cancelled_read_is_cancelled(astore: cs.AsyncStore, seen: Seen) -> None:
    """The span ends, and the cancellation continues; what never began has no span."""
    seen.watch(astore)
    with anyio.CancelScope() as scope:
        scope.cancel()
        await astore.get("f")

    assert scope.cancelled_caught
    began = not isinstance(astore, cs.AsyncMemoryStore)  # which looks for a cancellation first
    assert [about["outcome"] for about in seen.named("get")] == ["cancelled"] * began
    await astore.get("f")
    assert seen.named("get")[-1]["outcome"] == "ok"


# --- counters ---------------------------------------------------------------------------------------


@ONE_STORE
def test_conflicts_and_retries_are_counted(store: cs.Store, seen: Seen) -> None:
    """A refused attempt of a transaction counts as both, and the transaction is ok."""
    store.create(cs.FlowSnapshot("f", state={"n": 0}))
    seen.watch(store)
    attempts: list[int] = []

    def add(session: cs.Session) -> None:
        flow = session.get_one("f")
        if len(attempts) < 2:
            store.update(store.get_one("f"))

        attempts.append(1)
        flow.state["n"] += 1

    store.transact(add)
    assert len(attempts) == 3
    assert seen.count("conflicts", operation="transact") == 2
    assert seen.count("retries", operation="transact") == 2
    assert seen.count("conflicts") == 2
    (about,) = seen.named("transact")
    assert about["outcome"] == "ok"


@pytest.mark.stores("memory", "sqlite")  # as for `Faults`
def test_uncertain_commits_are_counted(store: cs.Store, seen: Seen) -> None:
    """A commit whose outcome is not known counts once, though the error is raised."""
    faults = Faults()
    seen.watch(faults.attach(store))
    faults.on_commit("unknown-applied")
    with pytest.raises(cs.CommitUncertainError):
        store.create(cs.FlowSnapshot("f", state={}))

    assert seen.count("uncertain_commits", operation="create") == 1
    assert seen.named("create")[0]["outcome"] == "uncertain"


def test_claims_and_waits_that_are_over_are_counted(
    store: cs.Store, seen: Seen, clock: ManualClock
) -> None:
    """A parent that is given to a worker counts as a claim, and each of its waits once."""
    seen.watch(store)
    store.create(cs.FlowSnapshot("p", state={}))
    store.create(cs.FlowSnapshot("q", state={}))
    for name in ("p", "q"):
        flow = store.claim(name)
        with store.begin() as session:
            session.add(flow)
            wait = cs.WaitCondition(f"w-{name}", flow_ids=["c"], timeout=timedelta(minutes=1))
            session.suspend(flow, wait)

    store.complete_child("w-p", "c")
    assert seen.count("due_conditions") == 0
    assert len(store.claim_due(limit=10)) == 1
    clock.advance(timedelta(minutes=2))
    assert {flow.flow_id for flow in store.claim_due(limit=10)} == {"p", "q"}
    assert seen.count("due_conditions", operation="claim_due") == 2
    assert seen.count("claimed_flows", operation="claim") == 2
    assert seen.count("claimed_flows", operation="claim_due") == 3


# --- off and on ---------------------------------------------------------------------------------------


@ONE_STORE
def test_nothing_is_reported_until_asked_for(store: cs.Store, seen: Seen) -> None:
    """One store reports and another does not; it can be stopped."""
    with cs.MemoryStore() as other:
        seen.watch(other)
        store.get("f")
        other.get("f")
        assert len(seen.spans.get_finished_spans()) == 1
        assert uninstrument(other) is other
        other.get("f")
        assert len(seen.spans.get_finished_spans()) == 1


def test_without_the_extra_it_says_what_to_install() -> None:
    """The library works without it, and `instrument` and `observe_stats` name the extra."""
    code = """
import sys
sys.modules["opentelemetry"] = None
import catga_store as cs
from catga_store.telemetry import instrument, observe_stats
store = cs.MemoryStore()
store.create(cs.FlowSnapshot("f", state={}))
for call in (instrument, lambda store: observe_stats(store).__enter__()):
    try:
        call(store)
    except cs.NotSupportedError as error:
        print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.count("pip install 'catga_store[otel]'") == 2


# --- logging ------------------------------------------------------------------------------------------


def test_a_program_without_logging_sees_nothing() -> None:
    """Warnings of the library do not reach stderr by Python's handler of last resort."""
    code = """
import logging
import catga_store
logging.getLogger("catga_store.core.claims").warning("seen by nobody")
"""
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60
    )
    assert (done.stdout, done.stderr) == ("", "")


@pytest.mark.stores("memory", "sqlite")  # as for `Faults`
def test_what_is_logged_where(store: cs.Store, caplog: pytest.LogCaptureFixture) -> None:
    """An uncertain commit is a warning of `commits`, an attempt that conflicts a detail."""
    caplog.set_level(logging.DEBUG, "catga_store")
    faults = Faults()
    faults.attach(store)
    store.create(cs.FlowSnapshot("f", state={"n": 0}))
    faults.on_commit("conflict")
    store.transact(lambda session: session.get_one("f").state.update(n=1))
    faults.on_commit("unknown-applied")
    with pytest.raises(cs.CommitUncertainError) as caught:
        store.create(cs.FlowSnapshot("g", state={}))

    said = [(record.name, record.levelname) for record in caplog.records]
    assert said == [("catga_store.core.sessions", "DEBUG"), ("catga_store.core.commits", "WARNING")]
    assert caught.value.commit_id in caplog.records[1].getMessage()

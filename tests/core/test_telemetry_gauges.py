"""Gauges report what `stats` says, and ask the store no more often than they may."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import anyio
import pytest
from attrs import frozen
from marks import ONE_STORE
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from waiting import until_async

import catga_store as cs
from catga_store.telemetry import observe_stats
from catga_store.telemetry import observe_stats_async
from catga_store.testing.clock import ManualClock
from catga_store.testing.faults import Faults

pytestmark = ONE_STORE

AT_ONCE = timedelta(microseconds=1)
LONG = timedelta(hours=1)
OUT = 10**6
"""More exchanges than a test makes."""


@frozen
class Collector:
    """A provider of metrics, and what it collects."""

    provider: MeterProvider
    reader: InMemoryMetricReader

    def collect(self) -> dict[str, list[tuple[dict[str, Any], float]]]:
        """Return the measurements of one collection by the name of the metric."""
        data = self.reader.get_metrics_data()
        return {
            metric.name.removeprefix("catga_store."): [
                (
                    {
                        name.removeprefix("catga_store."): value
                        for name, value in (point.attributes or {}).items()
                    },
                    point.value,
                )
                for point in metric.data.data_points
            ]
            for resource in (data.resource_metrics if data is not None else ())
            for scope in resource.scope_metrics
            for metric in scope.metrics
        }

    def values(self) -> dict[str, float]:
        """Return those of them that have one measurement."""
        return {name: found[0][1] for name, found in self.collect().items() if len(found) == 1}


@pytest.fixture
def collector() -> Iterator[Collector]:
    """Set up a provider that collects when it is asked to."""
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    yield Collector(provider, reader)
    provider.shutdown()


def test_gauges_report_stats(store: cs.Store, collector: Collector, clock: ManualClock) -> None:
    """Every number of `stats`, with zeros for the statuses that no flow of a type has."""
    for name in ("a", "b", "c"):
        store.create(cs.FlowSnapshot(name, state={}))

    store.claim("a", lease=timedelta(seconds=5))
    store.claim("b")
    parent = store.get_one("c")
    with store.begin() as session:
        session.add(parent)
        wait = cs.WaitCondition("w", flow_ids=["child"], timeout=timedelta(seconds=3))
        session.suspend(parent, wait)

    clock.advance(timedelta(seconds=8))
    with observe_stats(store, meter_provider=collector.provider, attributes={"shard": "eu"}):
        found = collector.collect()

    (about, _), *_ = found["flow.due"]
    assert about == {"store": type(store).__name__, "shard": "eu"}
    statuses = {about["flow.status"]: value for about, value in found.pop("flow.count")}
    assert set(statuses) == {status.name.lower() for status in cs.FlowStatus}
    assert {name: number for name, number in statuses.items() if number} == {
        "created": 2,
        "suspended": 1,
    }
    assert {name: value for name, [(_, value)] in found.items()} == {
        "flow.due": 1,
        "flow.oldest_due_age": 3,
        "flow.claimed": 1,
        "flow.expired_leases": 1,
        "wait.pending": 1,
        "wait.overdue": 1,
        "wait.due": 1,
    }
    assert collector.collect() == {}


@pytest.mark.parametrize(("interval", "readings"), [(AT_ONCE, 3), (LONG, 1)])
def test_a_collection_reads_once_at_most(
    store: cs.Store, collector: Collector, interval: timedelta, readings: int
) -> None:
    """However short the interval is, and not at all within it."""
    faults = Faults()
    faults.attach(store)
    with observe_stats(store, meter_provider=collector.provider, min_interval=interval):
        assert faults.exchanges == []
        for _ in range(3):
            assert collector.values()["flow.due"] == 0

    assert faults.exchanges.count("Stats") == readings


def test_an_outage_is_logged_once_and_reports_nothing(
    store: cs.Store, collector: Collector, caplog: pytest.LogCaptureFixture
) -> None:
    """The exporter sees no exception, and the numbers are there again after it."""
    caplog.set_level(logging.INFO)
    faults = Faults()
    faults.attach(store)
    with observe_stats(store, meter_provider=collector.provider, min_interval=AT_ONCE):
        assert collector.values()["flow.due"] == 0
        faults.at_exchange(1, "not sent", times=OUT)
        assert collector.collect() == {}
        assert collector.collect() == {}
        faults.reset()
        assert collector.values()["flow.due"] == 0

    said = [(record.name, record.levelname) for record in caplog.records]
    here = "catga_store.telemetry.gauges"
    assert said == [(here, "WARNING"), (here, "INFO")]


def test_several_stores_report_to_one_provider(store: cs.Store, collector: Collector) -> None:
    """Each by attributes of its own; the same ones are refused while the other is observed."""
    with cs.MemoryStore() as other:
        other.create(cs.FlowSnapshot("f", state={}))
        with observe_stats(store, meter_provider=collector.provider):
            with (
                pytest.raises(cs.UsageError, match="is already being observed"),
                observe_stats(other, meter_provider=collector.provider),
            ):
                pass

            with observe_stats(
                other, meter_provider=collector.provider, attributes={"shard": "other"}
            ):
                due = collector.collect()["flow.due"]

        assert [(about.get("shard"), number) for about, number in due] == [(None, 0), ("other", 1)]
        with observe_stats(other, meter_provider=collector.provider):
            assert collector.values()["flow.due"] == 1


def test_the_global_provider_may_be_set_late() -> None:
    """Stores that were observed before and after, without the provider or with it, all report."""
    code = """
from contextlib import ExitStack
import catga_store as cs
from catga_store.telemetry import observe_stats
from opentelemetry import metrics
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
reader = InMemoryMetricReader()
with ExitStack() as stack:
    def observe(n, **provider):
        store = stack.enter_context(cs.MemoryStore())
        stack.enter_context(observe_stats(store, attributes={"n": n}, **provider))

    observe(1)
    metrics.set_meter_provider(MeterProvider([reader]))
    observe(2)
    observe(3, meter_provider=metrics.get_meter_provider())
    [resource] = reader.get_metrics_data().resource_metrics
    [due] = [one for one in resource.scope_metrics[0].metrics if one.name == "catga_store.flow.due"]
    print(sorted(point.attributes["n"] for point in due.data.data_points))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60
    )
    assert (done.stdout, done.stderr) == ("[1, 2, 3]\n", "")


@pytest.mark.anyio
async def test_an_async_store_is_read_by_its_task(
    astore: cs.AsyncStore, collector: Collector, caplog: pytest.LogCaptureFixture
) -> None:
    """A collection in another thread reports the last reply; after the task, nothing."""
    faults = Faults()
    faults.attach(astore)
    await astore.create(cs.FlowSnapshot("f", state={}))

    def due_is(number: float | None) -> bool:
        return collector.values().get("flow.due") == number

    async def observe() -> None:
        await observe_stats_async(
            astore, meter_provider=collector.provider, interval=timedelta(milliseconds=50)
        )

    with anyio.fail_after(30):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(observe)
            await until_async(lambda: due_is(1))
            assert await anyio.to_thread.run_sync(due_is, 1)
            faults.at_exchange(1, "not sent", times=OUT)
            await until_async(lambda: due_is(None))
            faults.reset()
            await until_async(lambda: due_is(1))
            tasks.cancel_scope.cancel()

    assert collector.collect() == {}
    assert [record.levelname for record in caplog.records] == ["WARNING"]


@pytest.mark.anyio
async def test_an_old_reply_is_not_reported(
    astore: cs.AsyncStore, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A task that asks no more, as in an event loop that hangs, ends the gauges after a while."""
    now = 1000.0
    monkeypatch.setattr("catga_store.telemetry.gauges.monotonic", lambda: now)

    async def observe() -> None:
        await observe_stats_async(astore, meter_provider=collector.provider, interval=LONG)

    with anyio.fail_after(30):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(observe)
            await until_async(collector.collect, pause=0)
            now += 3 * LONG.total_seconds() - 1
            assert collector.values()["flow.due"] == 0
            now += 1
            assert collector.collect() == {}
            tasks.cancel_scope.cancel()


@pytest.mark.anyio
async def test_bad_arguments_are_refused(store: cs.Store, astore: cs.AsyncStore) -> None:
    """A store of the other API, and an interval that bounds nothing."""
    wrong: Any = astore
    with pytest.raises(cs.UsageError, match="expected a blocking store"), observe_stats(wrong):
        pass

    with (
        pytest.raises(cs.UsageError, match="longer than 0"),
        observe_stats(store, min_interval=timedelta(0)),
    ):
        pass

    wrong = store
    with pytest.raises(cs.UsageError, match="expected an async store"):
        await observe_stats_async(wrong)

"""The dashboard for Grafana asks for metrics and labels that a program and a worker print for Prometheus."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import MeterProvider
from prometheus_client import REGISTRY
from prometheus_client import CollectorRegistry
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

import catga_store as cs
from catga_store.cli.worker_health import WorkerMetrics
from catga_store.core import waiting
from catga_store.telemetry import instrument
from catga_store.telemetry import observe_stats
from catga_store.testing.faults import Faults

DASHBOARD = Path(__file__).parents[2] / "docs" / "operations" / "grafana.json"
WORDS = {"by", "without", "on", "ignoring", "and", "or", "unless", "offset", "bool"}
OF_PROMETHEUS = {"instance", "job"}
"""The labels that Prometheus adds to what it scrapes."""
SHARED = ("catga_store_", "catga_worker_")


def metrics_in(expression: str) -> tuple[set[str], set[str]]:
    """Return the metrics and the labels that an expression of PromQL names."""
    plain = re.sub(r'"[^"]*"', "", expression)
    labels = {
        label
        for names in re.findall(r"\b(?:by|without|on|ignoring) *\(([^)]*)\)", plain)
        for label in re.findall(r"\w+", names)
    }
    labels |= {
        label
        for matchers in re.findall(r"\{([^}]*)\}", plain)
        for label in re.findall(r"(\w+) *[=!]", matchers)
    }
    plain = re.sub(r"\b(by|without|on|ignoring) *\([^)]*\)|\{[^}]*\}|\[[^]]*\]", " ", plain)
    names = re.findall(r"(?<![\w.$])([a-zA-Z_:][\w:]*)\b(?! *\()", plain)
    return set(names) - WORDS, labels


def expressions() -> Iterator[str]:
    """Yield every expression of the dashboard."""
    for panel in json.loads(DASHBOARD.read_text("utf-8"))["panels"]:
        for target in panel.get("targets", ()):
            yield target["expr"]


def work(store: cs.Store) -> cs.Worker:
    """Let a store do what each counter counts, and return a worker that has run."""
    for name in ("good", "bad", "parent"):
        store.create(cs.FlowSnapshot(name, state={}))

    parent = store.claim("parent")
    with store.begin() as session:
        session.add(parent)
        session.suspend(parent, cs.WaitCondition("w", flow_ids=["child"]))

    store.complete_child("w", "child")
    worker = cs.Worker(store)

    @worker.handles(None)
    def handle(run: Any) -> None:
        if run.flow.flow_id == "bad":
            raise ZeroDivisionError

        run.complete()

    worker.run_until_idle()
    attempts: list[int] = []

    def touch(session: cs.Session) -> None:
        flow = session.get_one("good")
        if not attempts:
            store.update(store.get_one("good"))

        attempts.append(1)
        flow.state["n"] = 1

    store.transact(touch)
    return worker


@pytest.fixture
def exposition() -> Iterator[str]:
    """What Prometheus would scrape from a program with telemetry and from a worker."""
    reader = PrometheusMetricReader()
    provider = MeterProvider([reader])
    registry = CollectorRegistry()
    faults = Faults()
    with cs.MemoryStore() as store, observe_stats(store, meter_provider=provider):
        instrument(faults.attach(store), meter_provider=provider)
        registry.register(WorkerMetrics(work(store)))
        faults.on_commit("unknown-applied")
        with pytest.raises(cs.CommitUncertainError):
            store.create(cs.FlowSnapshot("uncertain", state={}))

        yield generate_latest(REGISTRY).decode() + generate_latest(registry).decode()

    provider.shutdown()


def test_the_dashboard_asks_for_what_is_printed(exposition: str) -> None:
    """Each metric and label of its expressions is there, and each metric of ours is on a panel."""
    samples = [
        sample for family in text_string_to_metric_families(exposition) for sample in family.samples
    ]
    labels_of = {
        name: {label for sample in samples if sample.name == name for label in sample.labels}
        for name in {sample.name for sample in samples}
    }
    asked: set[str] = set()
    for expression in expressions():
        names, labels = metrics_in(expression)
        assert names, expression
        asked |= names
        for name in names:
            assert name in labels_of, f"{expression}: no metric {name}"
            assert labels <= labels_of[name] | OF_PROMETHEUS, expression

    unseen = {name for name in labels_of if name.startswith(SHARED)} - asked
    assert {name for name in unseen if not name.endswith(("_sum", "_created"))} == set()


def values_in(expression: str) -> Iterator[tuple[str, str]]:
    """Yield the values that an expression compares labels with, each with its label."""
    for label, texts in re.findall(r'(\w+) *(?:=~|!~|!=|=) *"([^"]*)"', expression):
        for text in texts.split("|"):
            yield label, text


def test_the_dashboard_compares_with_values_that_there_are(exposition: str) -> None:
    """A status in capitals, say, would match nothing, and the panel would be empty for ever."""
    there: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(exposition):
        for sample in family.samples:
            for label, value in sample.labels.items():
                there.setdefault(label, set()).add(value)

    # What this program does not do: its worker waits for work, async code is cancelled, a commit is refused at last.
    there["catga_store_operation"] |= {"claim_when_due", "wait_due", "watch"} & vars(waiting).keys()
    there["catga_store_outcome"] |= {"cancelled", "conflict"}
    there["catga_store_flow_status"] |= {one.name.lower() for one in cs.FlowStatus}
    assert {"completed", "failed"} <= there["catga_store_flow_status"]
    compared = {pair for expression in expressions() for pair in values_in(expression)}
    assert ("catga_store_flow_status", "failed") in compared
    assert {(label, value) for label, value in compared if value not in there[label]} == set()


def test_legends_name_labels_that_are_left() -> None:
    """An expression keeps the labels that it groups by, and no others."""
    for panel in json.loads(DASHBOARD.read_text("utf-8"))["panels"]:
        for target in panel.get("targets", ()):
            named = set(re.findall(r"\{\{ *(\w+) *\}\}", target.get("legendFormat") or ""))
            grouped = re.search(r"\b(?:sum|max|min|avg) by \(([^)]*)\)", target["expr"])
            kept = set() if grouped is None else set(re.findall(r"\w+", grouped[1]))
            assert named <= kept, target["expr"]


def test_the_panels_have_places_of_their_own() -> None:
    """Grafana tells panels apart by their ids, and moves those that overlap."""
    panels = json.loads(DASHBOARD.read_text("utf-8"))["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in panels)
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24


def test_names_in_expressions_are_found() -> None:
    """Metrics and labels, but no functions, ranges, values or variables."""
    expression = (
        'histogram_quantile(0.99, sum by (le, b) (rate(x_bucket{a!~"c|d"}[$__rate_interval]))) / y'
    )
    assert metrics_in(expression) == ({"x_bucket", "y"}, {"a", "b", "le"})

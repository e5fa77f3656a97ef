"""How an operator sees a worker: `/healthz` and `/metrics` over HTTP, in a thread of their own."""

from __future__ import annotations

import threading
from collections.abc import Generator
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from http.server import ThreadingHTTPServer
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client import generate_latest
from prometheus_client.core import CounterMetricFamily
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

import catga_store as cs
from catga_store.protocol.conversation import ask
from catga_store.protocol.requests import Due
from catga_store.worker.base import BaseWorker

__all__ = ["WorkerMetrics", "serving"]

_MOST_DUE = 500
_CONTENT = "text/plain; version=0.0.4; charset=utf-8"


class WorkerMetrics(Collector):
    """What a worker has counted, and what is due on its store, whenever it is asked for."""

    def __init__(self, worker: BaseWorker) -> None:
        self._worker = worker

    def collect(self) -> Iterator[Metric]:
        """Yield each metric as it is now."""
        worker, tally = self._worker, self._worker.tally
        runs = CounterMetricFamily(
            "catga_worker_runs", "Runs of handlers, by how the run ended.", labels=["outcome"]
        )
        for outcome, number in dict(tally.runs).items():
            runs.add_metric([outcome], number)

        yield runs
        errors = CounterMetricFamily(
            "catga_worker_errors", "Failed attempts, by the class of the error.", labels=["type"]
        )
        for kind, number in dict(tally.errors).items():
            errors.add_metric([kind], number)

        yield errors
        yield CounterMetricFamily(
            "catga_worker_run_seconds", "Total time that handlers have run.", value=tally.seconds
        )
        yield GaugeMetricFamily(
            "catga_worker_claimed", "Flows that are currently claimed.", value=worker.in_flight
        )
        yield GaugeMetricFamily(
            "catga_worker_healthy", "Whether the claim loop is running.", value=worker.healthy
        )
        if isinstance(worker.store, cs.Store):  # an async store belongs to its event loop
            yield from self._due(worker.store)

    def _due(self, store: cs.Store) -> Iterator[Metric]:
        context = store._context  # noqa: SLF001  no public operation looks without claiming
        now_ms = context.settings.now_ms()
        try:
            found = store._run(ask(Due(now_ms, _MOST_DUE, self._worker.names)))  # noqa: SLF001  as above
        except cs.CatgaStoreError:
            return

        times = [entry.head.due_ms for entry in found if entry.head.due_ms is not None]
        yield GaugeMetricFamily(
            "catga_worker_due",
            f"Flows that are due, up to {_MOST_DUE}.",
            value=len(found),
        )
        yield GaugeMetricFamily(
            "catga_worker_oldest_due_seconds",
            "Time since the oldest due flow became due.",
            value=(now_ms - min(times)) / 1000 if times else 0,
        )


@contextmanager
def serving(worker: BaseWorker, host: str, port: int) -> Generator[int]:
    """Serve the health of a worker while the block runs; yields the port, which is chosen if it is 0."""
    registry = CollectorRegistry()
    registry.register(WorkerMetrics(worker))

    class Handler(BaseHTTPRequestHandler):
        """Serves two pages."""

        def do_GET(self) -> None:
            """Reply to a request."""
            if self.path == "/healthz":
                healthy = worker.healthy
                self._send(200 if healthy else 503, b"ok\n" if healthy else b"the worker hangs\n")
            elif self.path == "/metrics":
                self._send(200, generate_latest(registry))
            else:
                self._send(404, b"expected /healthz or /metrics\n")

        def _send(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", _CONTENT)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  as in http.server
            """Log nothing: a probe comes every few seconds."""

    server = ThreadingHTTPServer((host, port), Handler)
    thread = threading.Thread(target=server.serve_forever, name="catga-store-health", daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

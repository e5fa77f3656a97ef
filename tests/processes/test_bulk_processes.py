"""An operation on 10,000 flows is killed again and again while workers run, and continued."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack

import pytest

import catga_store as cs

FLOWS = 10_000
SECONDS = 600
POLL_SECONDS = 1.0
"""Rather seldom: the numbers of a NATS store cost its server as much as some hundred commits."""

WORKER = """
import sys, catga_store as cs
from datetime import timedelta
with cs.open_store(sys.argv[1]) as store:
    while True:
        with store.session() as session:
            for flow in session.claim_due(limit=50, wait=timedelta(seconds=1)):
                flow.state["runs"] += 1
                flow.status = cs.FlowStatus.COMPLETED
            session.commit()
"""
RETRY = """
import sys, catga_store as cs
def say(report):
    print(report.changed, report.matched - report.changed, flush=True)
with cs.open_store(sys.argv[1]) as store:
    store.bulk(status=cs.FlowStatus.FAILED).retry(per_second=5000, progress=say)
"""


def start(code: str, url: str, stdout: int = subprocess.PIPE) -> subprocess.Popen[str]:
    """Run a program on the store."""
    return subprocess.Popen([sys.executable, "-c", code, url], stdout=stdout, text=True)


def retried(url: str, until: int) -> tuple[int, int]:
    """Run the operation until it has changed so many flows, then kill it; returns what it changed and skipped."""
    changed, skipped = 0, 0
    with start(RETRY, url) as program:
        # Else a program that hangs would be waited for forever.
        overdue = threading.Timer(SECONDS, program.kill)
        overdue.start()
        assert program.stdout is not None
        for line in program.stdout:
            changed, skipped = map(int, line.split())
            if changed >= until:
                program.kill()
                break

        overdue.cancel()

    return changed, skipped


def completed(store: cs.Store) -> int:
    """How many flows have completed."""
    return store.stats().flows[""].get(cs.FlowStatus.COMPLETED, 0)


@pytest.mark.nightly
@pytest.mark.timeout(2 * SECONDS)
@pytest.mark.parametrize("kind", ["sqlite", "redis-8.2", "nats"])
def test_a_bulk_operation_that_is_killed_is_continued(
    kind: str, url_of: Callable[[str], str]
) -> None:
    """Every flow is retried exactly once, and run exactly once, whenever the operation was killed."""
    url = url_of(kind)
    began = time.monotonic()
    with ExitStack() as stack:
        store = stack.enter_context(cs.open_store(url))
        for first in range(0, FLOWS, 200):
            with store.begin() as session:
                for number in range(first, first + 200):
                    flow = cs.FlowSnapshot(f"f{number}", state={"runs": 0})
                    flow.status = cs.FlowStatus.FAILED
                    session.add(flow)

        for _ in range(2):
            worker = start(WORKER, url, subprocess.DEVNULL)
            stack.callback(worker.wait)
            stack.callback(worker.kill)

        for until in (2000, 3000, 3000):
            changed, _ = retried(url, until)
            assert changed >= until

        changed, skipped = retried(url, FLOWS)
        assert 0 < changed <= 2000
        assert skipped == 0
        while completed(store) < FLOWS:
            assert time.monotonic() - began < SECONDS
            time.sleep(POLL_SECONDS)

        # Created, retried, claimed, completed: one write each.
        assert Counter(flow.version for flow in store.iter_flows()) == {4: FLOWS}
        ids = [f"f{number}" for number in range(FLOWS)]
        flows = store.get_many(ids)
        assert all(flow is not None and flow.state == {"runs": 1} for flow in flows.values())

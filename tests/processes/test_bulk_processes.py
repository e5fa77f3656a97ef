"""An operation on 10,000 flows is killed again and again while workers run, and continued."""

from __future__ import annotations

import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack

import pytest

import catga_store as cs

FLOWS = 10_000
SECONDS = 300

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
with cs.open_store(sys.argv[1]) as store:
    report = store.bulk(status=cs.FlowStatus.FAILED).retry(per_second=5000)
    print(report.changed, report.matched - report.changed)
"""


def start(code: str, url: str, stdout: int = subprocess.PIPE) -> subprocess.Popen[str]:
    """Run a program on the store."""
    return subprocess.Popen([sys.executable, "-c", code, url], stdout=stdout, text=True)


def count(store: cs.Store, status: cs.FlowStatus) -> int:
    """How many flows have this status."""
    return store.count_flows(status=status)


@pytest.mark.nightly
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

        for left in (8000, 5000, 2000):
            killed = start(RETRY, url)
            while count(store, cs.FlowStatus.FAILED) > left:
                assert time.monotonic() - began < SECONDS
                time.sleep(0.01)

            killed.kill()
            killed.communicate()

        last, _ = start(RETRY, url).communicate(timeout=SECONDS)
        changed, skipped = map(int, last.split())
        assert 0 < changed <= 2000
        assert skipped == 0
        while count(store, cs.FlowStatus.COMPLETED) < FLOWS:
            assert time.monotonic() - began < SECONDS
            time.sleep(0.1)

        # Created, retried, claimed, completed: one write each.
        assert Counter(flow.version for flow in store.iter_flows()) == {4: FLOWS}
        ids = [f"f{number}" for number in range(FLOWS)]
        flows = store.get_many(ids)
        assert all(flow is not None and flow.state == {"runs": 1} for flow in flows.values())

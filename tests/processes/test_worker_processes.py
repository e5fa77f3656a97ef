"""Worker processes that are killed, terminated, and killed by their own flows."""

from __future__ import annotations

import random
import signal
from contextlib import ExitStack
from pathlib import Path

import pytest
from waiting import LONG
from waiting import until
from worked import Task
from worked import Working
from worked import create
from worked import effects

import catga_store as cs

DONE = cs.FlowStatus.COMPLETED
TASKS = 24
STORES = pytest.mark.stores("sqlite")


@STORES
def test_every_flow_ends_whenever_a_worker_is_killed(store_url: str, tmp_path: Path) -> None:
    """Each step of each flow happens, and its effect at most once more than there were kills."""
    log = tmp_path / "effects"
    draw = random.Random(5)
    kills = 0
    with cs.open_store(store_url) as store, ExitStack() as stack:
        names = create(store, 40, seconds=0.02)
        working = [stack.enter_context(Working(store_url, log)) for _ in range(2)]
        while kills < 4:
            seen = sum(effects(log).values())
            working[0].wait_for_effects(min(seen + 10, 3 * len(names)))
            place = draw.randrange(2)
            working[place].process.kill()
            working[place].process.wait()
            kills += 1
            working[place] = stack.enter_context(Working(store_url, log))

        until(lambda: store.count_flows(status=DONE) == len(names), pause=0.05)

    counted = effects(log)
    assert set(counted) == {f"{name} {step}" for name in names for step in range(3)}
    assert max(counted.values()) <= kills + 1


@STORES
@pytest.mark.parametrize("times", [3, pytest.param(50, marks=pytest.mark.nightly)])
def test_a_terminated_worker_loses_nothing(store_url: str, tmp_path: Path, times: int) -> None:
    """It exits with 0; no attempt counts, no flow is left claimed, and no effect happens twice."""
    log = tmp_path / "effects"
    with cs.open_store(store_url) as store:
        for _ in range(times):
            names = create(store, TASKS, seconds=0.01)
            log.write_text("")
            with Working(store_url, log, lease_ms=60_000) as working:
                working.wait_for_effects(20)
                working.process.send_signal(signal.SIGTERM)
                assert working.process.wait(LONG) == 0

            flows = [store.get_one(name, Task) for name in names]
            assert any(flow.status is not DONE for flow in flows)
            assert [flow for flow in flows if flow.owner is not None or flow.attempts] == []

            with Working(store_url, log, lease_ms=60_000):
                until(lambda: store.count_flows(status=DONE) == TASKS, pause=0.02)

            assert set(effects(log).values()) == {1}
            for name in names:
                store.delete(name)


@STORES
def test_a_flow_that_kills_its_process_fails(store_url: str, tmp_path: Path) -> None:
    """It has one attempt beside others, which does not count, and one alone; its neighbours lose none."""
    log = tmp_path / "effects"
    failed = cs.FlowStatus.FAILED
    with cs.open_store(store_url) as store:
        names = create(store, 5, seconds=0.02)
        store.create(cs.FlowSnapshot("poison", state=Task(["exit"])))
        deaths = 0

        def is_over() -> bool:
            is_failed = store.get_one("poison").status is failed
            return is_failed and store.count_flows(status=DONE) == len(names)

        while not is_over():
            with Working(store_url, log, lease_ms=300, attempts=1) as working:

                def has_ended(working: Working = working) -> bool:
                    return working.process.poll() is not None or is_over()

                until(has_ended, pause=0.02)
                deaths += working.process.poll() is not None

            assert deaths <= 2

        poison = store.get_one("poison")
        assert deaths == 2
        assert poison.error is not None
        assert poison.error.startswith(
            "the flow was not run again, because 1 of 1 attempts at 0 ended without a result"
        )
        assert len(store.read_log("poison", "errors")) == 1

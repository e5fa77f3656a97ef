"""A claimed flow that is dropped with changes that were not written is a logged warning."""

from __future__ import annotations

import copy
import gc
import logging
import os
import pickle
import subprocess
import sys
import textwrap
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC
from datetime import datetime
from datetime import timedelta
from typing import Any

import attrs
import pytest

import catga_store as cs
from catga_store.testing import ManualClock

LOGGER = "catga_store.core.dropped"
Flow = cs.FlowSnapshot[Any]


@attrs.define
class Job:
    """A state."""

    n: int = 0


@pytest.fixture(autouse=True)
def few_objects() -> None:
    """Leave to `gc.collect` what a test makes: to look at all objects of the run takes a third of a second."""
    gc.freeze()


def change(flow: Flow) -> None:
    """Do a step of the work."""
    flow.state.n += 1


def claimed(store: cs.Store, flow_id: str = "job") -> Flow:
    """Claim a new flow."""
    store.create(cs.FlowSnapshot(flow_id, state=Job()))
    return store.claim(flow_id, Job)


def warnings_of(caplog: pytest.LogCaptureFixture, logger: str = LOGGER) -> list[str]:
    """What was logged of flows that are gone by now."""
    gc.collect()
    return [record.getMessage() for record in caplog.records if record.name.startswith(logger)]


CHANGES: dict[str, Callable[[Flow], object]] = {
    "state": change,
    "position": lambda flow: setattr(flow, "position", flow.position.advance()),
    "status": lambda flow: setattr(flow, "status", cs.FlowStatus.COMPLETED),
    "error": lambda flow: setattr(flow, "error", "late"),
    "attempts": lambda flow: setattr(flow, "attempts", 7),
    "due_at": lambda flow: setattr(flow, "due_at", datetime(2040, 1, 1, tzinfo=UTC)),
}


@pytest.mark.parametrize("name", CHANGES)
def test_drop_after_a_change_is_warned_of_once(caplog: pytest.LogCaptureFixture, name: str) -> None:
    """It names the flow and what was changed."""
    with cs.MemoryStore() as store:
        flow = claimed(store)
        CHANGES[name](flow)
        del flow
        (warning,) = warnings_of(caplog)

    assert warning.startswith("flow 'job' was claimed and changed (")
    assert name in warning.partition("(")[2].partition(")")[0].split(", ")


def test_state_that_cannot_be_encoded_is_a_change(caplog: pytest.LogCaptureFixture) -> None:
    """Its update would have said why."""
    with cs.MemoryStore() as store:
        flow = claimed(store)
        flow.state = object()
        del flow
        assert len(warnings_of(caplog)) == 1


def test_drop_in_a_reference_cycle_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    """As of a flow in the traceback of an error."""
    with cs.MemoryStore() as store:
        flow = claimed(store)
        change(flow)
        cycle: list[object] = [flow]
        cycle.append(cycle)
        del flow, cycle
        assert len(warnings_of(caplog)) == 1


def test_change_after_a_written_one_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    """An update keeps the claim."""
    with cs.MemoryStore() as store:
        flow = claimed(store)
        change(flow)
        store.update(flow)
        change(flow)
        del flow
        assert len(warnings_of(caplog)) == 1


def test_flow_of_claim_due_is_watched(caplog: pytest.LogCaptureFixture) -> None:
    """As that of `claim`."""
    with cs.MemoryStore() as store:
        store.create(cs.FlowSnapshot("job", state=Job()))
        (flow,) = store.claim_due(Job)
        change(flow)
        del flow
        assert len(warnings_of(caplog)) == 1


def nothing(store: cs.Store, flow: Flow) -> None:
    """Leave the flow to the next worker."""
    del store, flow


def changed_and_changed_back(store: cs.Store, flow: Flow) -> None:
    """Leave nothing to write."""
    del store
    change(flow)
    flow.state.n -= 1


def updated(store: cs.Store, flow: Flow) -> None:
    """Write it, which keeps the claim."""
    change(flow)
    store.update(flow)


def completed(store: cs.Store, flow: Flow) -> None:
    """End it, and change the object of the flow that nobody claims any longer."""
    flow.status = cs.FlowStatus.COMPLETED
    store.update(flow)
    change(flow)


def released(store: cs.Store, flow: Flow) -> None:
    """Give the claim back."""
    store.release(flow)
    change(flow)


def put_off(store: cs.Store, flow: Flow) -> None:
    """Give the claim back with the changes."""
    change(flow)
    flow.due_at = None
    store.update(flow)
    change(flow)


def suspended(store: cs.Store, flow: Flow) -> None:
    """End the claim by waiting."""
    with store.begin() as session:
        session.suspend(flow, cs.WaitCondition("w", flow_ids=["c"]))

    change(flow)


def deleted(store: cs.Store, flow: Flow) -> None:
    """Delete a changed flow."""
    change(flow)
    store.delete(flow)


def lost(store: cs.Store, flow: Flow) -> None:
    """Try to write what another caller has written; the error says that it is not."""
    store.update(store.get_one("job", Job))
    other = store.get_one("job", Job)
    other.error = "by hand"
    store.update(other)
    change(flow)
    with pytest.raises(cs.ClaimLostError):
        store.update(flow)


def committed(store: cs.Store, flow: Flow) -> None:
    """Write it by a session."""
    with store.begin() as session:
        session.add(flow)
        change(flow)


def rolled_back(store: cs.Store, flow: Flow) -> None:
    """Drop the changes on purpose."""
    with store.session() as session:
        session.add(flow)
        change(flow)
        session.rollback()


def left_by_an_exception(store: cs.Store, flow: Flow) -> None:
    """Leave the block of a session by an error, which drops the changes."""
    session = store.session()
    with suppress(KeyError), session:
        session.add(flow)
        change(flow)
        raise KeyError


@pytest.mark.parametrize(
    "use",
    [
        nothing,
        changed_and_changed_back,
        updated,
        completed,
        released,
        put_off,
        suspended,
        deleted,
        lost,
        committed,
        rolled_back,
        left_by_an_exception,
    ],
    ids=lambda use: use.__name__,
)
def test_no_warning(
    caplog: pytest.LogCaptureFixture, use: Callable[[cs.Store, Flow], None]
) -> None:
    """Nothing is lost, the claim has ended, or the caller knows."""
    with cs.MemoryStore() as store:
        flow = claimed(store)
        use(store, flow)
        del flow
        assert warnings_of(caplog, "catga_store") == []


def test_session_that_warned_is_the_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    """The flow that it had does not warn again."""
    with cs.MemoryStore() as store:
        flow = claimed(store)
        with store.session() as session:
            session.add(flow)
            change(flow)

        del flow, session
        (warning,) = warnings_of(caplog, "catga_store")
        assert "its session was closed without a commit" in warning


def test_change_after_a_session_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    """The flow is still claimed, and nothing will write it."""
    with cs.MemoryStore() as store:
        store.create(cs.FlowSnapshot("job", state=Job()))
        with store.begin() as session:
            flow = session.claim("job", Job)

        change(flow)
        del flow, session
        assert len(warnings_of(caplog)) == 1


def test_handler_that_raises_is_not_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    """A finalizer has no caller; an error there would be printed (and fail this test)."""
    logger = logging.getLogger(LOGGER)

    def refuse(_record: logging.LogRecord) -> bool:
        raise KeyError

    monkeypatch.setattr(logger, "filters", [refuse])
    with cs.MemoryStore() as store:
        flow = claimed(store)
        change(flow)
        del flow
        gc.collect()


def pickled(protocol: int) -> Callable[[Flow], Flow]:
    """A function that sends a flow through `pickle`."""

    def copied(flow: Flow) -> Flow:
        back: Flow = pickle.loads(pickle.dumps(flow, protocol))
        return back

    return copied


COPIES: list[Callable[[Flow], Flow]] = [
    copy.copy,
    copy.deepcopy,
    *map(pickled, range(pickle.HIGHEST_PROTOCOL + 1)),
]


@pytest.mark.parametrize("copied", COPIES)
def test_copy_is_a_plain_snapshot(
    caplog: pytest.LogCaptureFixture, copied: Callable[[Flow], Flow]
) -> None:
    """It holds what its original held, also the claim, and is not watched before it is written."""
    with cs.MemoryStore() as store:
        flow = claimed(store)
        other = copied(flow)
        assert type(other) is cs.FlowSnapshot
        assert (other.flow_id, other.version, other.state) == (
            flow.flow_id,
            flow.version,
            flow.state,
        )
        assert other._claim == flow._claim
        assert repr(other) == repr(flow)
        other.error = "a copy"
        del other
        assert warnings_of(caplog) == []
        other = copied(flow)
        other.error = "by a copy"
        store.update(other)
        assert store.get_one("job", Job).error == "by a copy"
        del flow, other
        assert warnings_of(caplog) == []


def test_evolved_flow_is_a_new_one() -> None:
    """Made of a claimed flow, it can be created, and nothing is said of it."""
    with cs.MemoryStore() as store:
        flow = attrs.evolve(claimed(store), flow_id="other")
        store.create(flow)
        assert store.get_one("other", Job).version == 1


def test_class_is_the_plain_one_after_the_claim() -> None:
    """Only a claimed flow pays for a finalizer; it is a `FlowSnapshot` all the time."""
    with cs.MemoryStore() as store:
        flow = claimed(store)
        assert isinstance(flow, cs.FlowSnapshot)
        assert repr(flow).startswith("<FlowSnapshot 'job' v2 ")
        assert not hasattr(cs.FlowSnapshot, "__del__")
        store.release(flow)
        assert type(flow) is cs.FlowSnapshot
        assert type(store.get_one("job", Job)) is cs.FlowSnapshot


def test_extension_of_a_lost_claim_is_not_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    """Its error has said that the claim is gone."""
    clock = ManualClock()
    with cs.MemoryStore(clock=clock) as store:
        flow = claimed(store)
        clock.advance(timedelta(hours=1))
        store.claim("job", Job)
        change(flow)
        with pytest.raises(cs.ClaimLostError):
            store.extend(flow)

        del flow
        assert warnings_of(caplog) == []


def run(code: str) -> str:
    """What a program prints on stderr, where Python logs what is not set up otherwise."""
    begin = """
        import logging
        import os
        import catga_store as cs
        logging.basicConfig(level="WARNING")
        store = cs.MemoryStore()
        store.create(cs.FlowSnapshot("job", state={"n": 0}))
        flow = store.claim("job", cs.RAW)
        flow.state["n"] = 1
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(begin) + textwrap.dedent(code)],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return done.stderr


def test_end_of_the_program_is_silent() -> None:
    """What is alive then is not dropped by a mistake of this kind."""
    assert not run("kept = [flow]; kept.append(kept)")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the platform has no fork")
def test_forked_process_is_silent() -> None:
    """The flow is its parent's, which may still write it."""
    child = """
        pid = os.fork()
        if pid == 0:
            del flow
            os._exit(0)
        os.waitpid(pid, 0)
    """
    assert not run(textwrap.dedent(child) + "store.update(flow)")
    assert run(textwrap.dedent(child) + "del flow").count("flow 'job' was claimed and changed") == 1

"""`commit(resolve=True)`: a commit whose reply was lost is settled by the commit itself."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

import catga_store as cs
from catga_store.core import commits
from catga_store.testing.faults import Faults

Opener = Callable[..., cs.Store]


@pytest.fixture
def faults() -> Faults:
    """Return what loses the replies of this test."""
    return Faults()


@pytest.fixture
def faulty(open_more: Opener, faults: Faults) -> cs.Store:
    """Open a store whose commits can be lost."""
    store: cs.Store = faults.attach(open_more(timeout=timedelta(seconds=1)))
    store.create(cs.FlowSnapshot("f", state={"n": 0}))
    store.create(cs.FlowSnapshot("gone", state={}))
    store.set_wait_condition(cs.WaitCondition("w", flow_ids=["a", "b"]))
    return store


def change_one(session: cs.Session) -> None:
    """Write one flow."""
    session.get_one("f").state["n"] = 1


def change_many(session: cs.Session) -> None:
    """Write, create, delete, set, complete and save."""
    change_one(session)
    session.add(cs.FlowSnapshot("new", state={}))
    session.delete(session.get_one("gone"))
    session.add(cs.WaitCondition("v", flow_ids=["x"]))
    session.complete_child("w", "a")
    session.save_for_each_progress("f", 1, cs.ForEachProgress([1]))


@pytest.mark.parametrize("change", [change_one, change_many])
def test_applied_commit_is_taken_over(
    faulty: cs.Store, faults: Faults, change: Callable[[cs.Session], None]
) -> None:
    """The receipt is that of the commit, the objects have their versions, the session continues."""
    with faulty.session() as session:
        change(session)
        flow = session.get_one("f")
        faults.on_commit("unknown-applied")
        receipt = session.commit(resolve=True)
        assert receipt is session.receipt
        assert receipt.version_of(flow) == flow.version == 2
        assert not session.dirty
        flow.state["n"] = 5
        assert session.commit().versions == {cs.Key("flow", "f"): 3}

    assert faulty.get_one("f").state == {"n": 5}
    if change is change_many:
        assert receipt.completions["w", "a"].accepted
        assert faulty.get("gone") is None


@pytest.mark.parametrize("change", [change_one, change_many])
def test_commit_that_was_not_applied_is_an_outage(
    faulty: cs.Store, faults: Faults, change: Callable[[cs.Session], None]
) -> None:
    """Nothing is written, now or later, and the session is closed as after any outage."""
    session = faulty.session()
    change(session)
    flow = session.get_one("f")
    faults.on_commit("unknown-not-applied")
    with pytest.raises(cs.StoreUnavailableError, match="will never be applied") as caught:
        session.commit(resolve=True)

    assert isinstance(caught.value.__cause__, cs.CommitUncertainError)
    assert flow.version == 1
    assert faulty.get_one("f").version == 1
    with pytest.raises(cs.SessionClosedError):
        session.commit()


@pytest.mark.stores("memory", "sqlite")
def test_commit_that_cannot_be_settled_stays_uncertain(
    open_more: Opener, faults: Faults, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is asked for again until the timeout; then the first error is raised."""
    store: cs.Store = faults.attach(open_more(timeout=timedelta(seconds=1)))
    store.create(cs.FlowSnapshot("f", state={"n": 0}))
    session = store.session()
    change_one(session)
    faults.on_commit("unknown-applied")
    asked: list[Any] = []

    def cannot_tell(_context: Any, error: cs.CommitUncertainError) -> Any:
        asked.append(error)
        raise error
        yield

    monkeypatch.setattr(commits, "resolve", cannot_tell)
    with pytest.raises(cs.CommitUncertainError) as caught:
        session.commit(resolve=True)

    assert len(asked) > 5
    assert set(map(id, asked)) == {id(caught.value)}
    monkeypatch.undo()
    receipt = store.resolve_commit(caught.value)
    assert receipt is not None
    assert receipt.versions == {cs.Key("flow", "f"): 2}


@pytest.mark.stores("memory", "sqlite")
def test_commit_of_which_no_more_is_known_closes_the_session(
    faulty: cs.Store, faults: Faults, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without outcomes the objects stay what was read; the receipt has the planned versions."""
    session = faulty.session()
    change_many(session)
    flow = session.get_one("f")
    faults.on_commit("unknown-applied")
    resolve = commits.resolve

    def knows_little(context: Any, error: cs.CommitUncertainError) -> Any:
        assert (yield from resolve(context, error))
        return ()

    monkeypatch.setattr(commits, "resolve", knows_little)
    receipt = session.commit(resolve=True)
    assert receipt.versions[cs.Key("flow", "f")] == 2
    assert flow.version == 1
    with pytest.raises(cs.SessionClosedError, match="the versions that it wrote are unknown"):
        session.get("f")


def test_refused_commit_stays_a_conflict(faulty: cs.Store) -> None:
    """`resolve` changes nothing where the outcome is known."""
    with faulty.session() as session:
        change_one(session)
        faulty.update(faulty.get_one("f"))
        with pytest.raises(cs.StaleFlowError):
            session.commit(resolve=True)

        assert session.dirty


def test_resolve_must_be_a_flag(faulty: cs.Store) -> None:
    """Anything else is a usage error, and the session can be used on."""
    with faulty.session() as session:
        change_one(session)
        wrong: Any = 1
        with pytest.raises(cs.UsageError, match="resolve"):
            session.commit(resolve=wrong)

        assert session.commit(resolve=True).versions == {cs.Key("flow", "f"): 2}

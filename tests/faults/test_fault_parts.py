"""Faults of commits with parts and entries: what is reported is what was written, sequences included."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator
from itertools import product
from typing import Any
from typing import get_args

import pytest

import catga_store as cs
from catga_store.testing import Faults
from catga_store.testing.clock import ManualClock
from catga_store.testing.faults import ExchangeFault

LOST = ["reply-lost", "unknown-applied", "unknown-not-applied"]
IN_THE_PROCESS = pytest.mark.stores("memory", "sqlite")
"""A server is asked until the timeout has passed; `test_faults` does that at every exchange."""

FOR_GOOD = 10_000
"""More tries than any operation makes."""


@pytest.fixture
def faults() -> Faults:
    """Inject nothing until asked to."""
    return Faults()


@pytest.fixture
def store(store_url: str, clock: ManualClock, faults: Faults) -> Iterator[cs.Store]:
    """A store with a flow, a part and a log of one entry, and the faults attached."""
    with faults.attach(cs.open_store(store_url, clock=clock)) as opened:
        prepare(opened)
        yield opened


def prepare(store: cs.Store) -> None:
    """Store what the tests work on, in an empty store."""
    store.clear()
    store.create(cs.FlowSnapshot("f", state={"n": 0}))
    store.put_part(cs.Part("f", "there", {"n": 0}))
    store.append("f", "first", key="k")


def fill(session: cs.Session) -> cs.Part[Any]:
    """Change the flow and a part; add a part, one that is there already, and three entries."""
    session.get_one("f").state["n"] += 1
    part = session.get_part("f", "there")
    assert part is not None
    part.body["n"] += 1
    new = cs.Part("f", "new", b"new")
    session.add_part(new, exists="keep")
    session.add_part(cs.Part("f", "there too", b""), exists="keep")
    session.append("f", "again", key="k")
    session.append("f", "second")
    session.append("f", "elsewhere", log="other")
    return new


DONE = (
    cs.Appended("f", "log", 1, "k", duplicate=True),
    cs.Appended("f", "log", 2),
    cs.Appended("f", "other", 1),
)
VERSIONS = {
    cs.Key("flow", "f"): 2,
    cs.Key("part", "f", 0, "there"): 2,
    cs.Key("part", "f", 0, "new"): 1,
}
KEPT = (cs.Key("part", "f", 0, "there too"),)


def check(store: cs.Store, times: int) -> None:
    """What is stored after the changes were made that many times: 0 or 1."""
    assert store.get_one("f").state == {"n": times}
    found = store.get_parts("f", ["there", "new", "there too"])
    bodies = [part and part.body for part in found.values()]
    assert bodies == [{"n": times}, b"new" if times else None, b"theirs"]
    log = [(one.sequence, one.body, one.version) for one in store.read_log("f")]
    assert log == [(1, "first", None), (2, "second", 2)][: times + 1]
    assert len(store.read_log("f", "other")) == times
    assert store.append("f", "next").sequence == times + 2
    assert store.append("f", "next", log="other").sequence == times + 1


@pytest.mark.parametrize("kind", LOST)
def test_an_append_whose_reply_is_lost(store: cs.Store, faults: Faults, kind: Any) -> None:
    """It is written once, under its sequence, or never."""
    faults.on_commit(kind)
    if kind == "reply-lost":
        assert store.append("f", "second") == cs.Appended("f", "log", 2)
        assert store.append("f", "third").sequence == 3
        return

    with pytest.raises(cs.CommitUncertainError) as caught:
        store.append("f", "second", key="l")

    receipt = store.resolve_commit(caught.value)
    assert (receipt is None) is (kind == "unknown-not-applied")
    if receipt is not None:
        assert receipt.entries == (cs.Appended("f", "log", 2, "l"),)

    again = store.append("f", "second", key="l")
    assert again == cs.Appended("f", "log", 2, "l", duplicate=receipt is not None)
    assert [entry.sequence for entry in store.read_log("f")] == [1, 2]


@pytest.mark.parametrize("kind", LOST)
@pytest.mark.parametrize("there", [False, True])
def test_a_kept_part_whose_reply_is_lost(
    store: cs.Store, faults: Faults, kind: Any, there: bool
) -> None:
    """The caller learns whether it was written; if it was not, `resolve_commit` may say either."""
    part = cs.Part("f", "there" if there else "new", b"mine")
    faults.on_commit(kind)
    if kind == "reply-lost":
        assert store.put_part(part, exists="keep") is not there
        assert part.version == (0 if there else 1)
        return

    with pytest.raises(cs.CommitUncertainError) as caught:
        store.put_part(part, exists="keep")

    receipt = store.resolve_commit(caught.value)
    assert there or (receipt is None) is (kind == "unknown-not-applied")
    if receipt is not None:
        assert receipt.kept == ((part.key,) if there else ())
        assert receipt.versions == ({} if there else {part.key: 1})


@pytest.mark.parametrize("kind", [*LOST, "unavailable"])
def test_a_commit_that_settles_itself(store: cs.Store, faults: Faults, kind: Any) -> None:
    """With `resolve` the receipt has the sequences and what was kept, and the session is used on."""
    store.put_part(cs.Part("f", "there too", b"theirs"))
    with store.session() as session:
        new = fill(session)
        faults.on_commit(kind)
        if kind in ("unknown-not-applied", "unavailable"):
            with pytest.raises(cs.StoreUnavailableError):
                session.commit(resolve=True)
        else:
            receipt = session.commit(resolve=True)
            assert (receipt.entries, receipt.versions, receipt.kept) == (DONE, VERSIONS, KEPT)
            assert (new.version, session.dirty, session.new) == (1, (), ())
            assert session.get_part("f", "new") is new
            assert session.commit().versions == {}

    check(store, 0 if kind in ("unknown-not-applied", "unavailable") else 1)


@pytest.mark.parametrize("kind", [*LOST, "conflict"])
@pytest.mark.parametrize("times", [1, 3])
def test_transact_appends_once(store: cs.Store, faults: Faults, kind: Any, times: int) -> None:
    """Whatever becomes of its first commits, what its function queues is written once."""
    store.put_part(cs.Part("f", "there too", b"theirs"))
    faults.on_commit(kind, times=1 if kind == "unknown-applied" else times)
    store.transact(fill)
    faults.reset()
    check(store, 1)


def test_appends_and_kept_parts_pass_an_armed_conflict(store: cs.Store, faults: Faults) -> None:
    """They never conflict, so the fault waits for a commit that can."""
    faults.on_commit("conflict")
    assert store.append("f", "second").sequence == 2
    assert store.put_part(cs.Part("f", "there", b"no"), exists="keep") is False
    assert store.put_part(cs.Part("f", "there", b"yes"), exists="overwrite") is True
    with pytest.raises(cs.PartExistsError):
        store.put_part(cs.Part("f", "new", b"1"))

    assert store.put_part(cs.Part("f", "new", b"1")) is True


@IN_THE_PROCESS
def test_a_resolving_commit_at_every_exchange(store: cs.Store, faults: Faults) -> None:
    """Each exchange fails in each way, once and for good: the receipt is right, or nothing was written."""
    store.put_part(cs.Part("f", "there too", b"theirs"))
    faults.reset()
    store.transact(fill)
    exchanges = len(faults.exchanges)
    seen = set()
    for number, how, times in product(
        range(1, exchanges + 1), get_args(ExchangeFault), (1, FOR_GOOD)
    ):
        faults.reset()
        prepare(store)
        store.put_part(cs.Part("f", "there too", b"theirs"))
        faults.reset()
        faults.at_exchange(number, how, times)
        outcome, receipt = "done", None
        lost: cs.CommitUncertainError | None = None
        with store.session() as session:
            try:
                fill(session)
                receipt = session.commit(resolve=True)
            except cs.StoreUnavailableError:
                outcome = "not done"
            except cs.CommitUncertainError as error:
                lost = error

        faults.reset()
        if lost is not None:
            receipt = store.resolve_commit(lost)
            outcome = "not done" if receipt is None else "done"

        if receipt is not None:
            assert (receipt.entries, receipt.versions, receipt.kept) == (DONE, VERSIONS, KEPT)

        check(store, 1 if outcome == "done" else 0)
        seen.add((outcome, lost is None))

    assert {("done", True), ("not done", True)} <= seen


@IN_THE_PROCESS
def test_parts_that_are_removed_in_steps_can_be_removed_again(
    open_more: Callable[..., cs.Store], faults: Faults
) -> None:
    """A step whose reply is lost ends the call; called again it removes the rest, and counts what it did."""
    store = open_more()
    for start in range(0, 1200, 200):
        with store.begin() as session:
            for number in range(start, start + 200):
                session.append("f", number)

    other = faults.attach(open_more())
    other.ping()
    faults.reset()
    faults.at_exchange(2, "not sent", FOR_GOOD)
    with pytest.raises(cs.StoreUnavailableError):
        other.trim_log("f", before=1101)

    faults.reset()
    assert other.trim_log("f", before=1101) == 600
    assert [entry.sequence for entry in store.read_log("f", limit=2)] == [1101, 1102]
    assert store.append("f", 0).sequence == 1201

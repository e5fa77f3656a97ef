"""`rewrap`: a key is rotated, and what was stored plain is encrypted, while others use the store."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from marks import ONE_STORE
from tampered import stored_bodies

import catga_store as cs
from catga_store.codec.bodies.frames import trail_of
from catga_store.copying import compare
from catga_store.protocol.keys import Key
from catga_store.testing.clock import ManualClock
from catga_store.testing.faults import Faults

OLD = cs.Encrypt({"old": b"o" * 32})
NEW = cs.Encrypt({"new": b"n" * 32, "old": b"o" * 32}, current="new")
ONLY_NEW = cs.Encrypt({"new": b"n" * 32})


def trails(store: cs.Store) -> set[str | None]:
    """Return how the bodies of a store are stored."""
    return {trail_of(body) for body in stored_bodies(store).values()}


def fill(store: cs.Store) -> None:
    """Write records of every kind; the history of the flow has former versions."""
    flow = cs.FlowSnapshot("f", state={"n": 0}, due_at=None)
    store.create(flow)
    for number in range(1, 3):
        flow.state["n"] = number
        store.update(flow)

    store.create(cs.FlowSnapshot("ended", state={"n": 1}, status=cs.FlowStatus.COMPLETED))
    store.put_part(cs.Part("f", "p", b"bytes", tag="t"))
    store.put_part(cs.Part("f", "q", {"n": 1}), exists="overwrite")
    store.append("f", {"n": 1}, key="k1")
    store.append("f", b"2")
    store.save_for_each_progress("f", 1, cs.ForEachProgress([1, 2], [3]))
    store.set_wait_condition(cs.WaitCondition("{f}/w", flow_ids=["c1", "c2"], parent_flow_id="f"))
    store.complete_child("{f}/w", "c1", result={"n": 1})


def read(store: cs.Store) -> list[Any]:
    """Return all that is in the store but versions and revisions of what has such."""
    wait, progress = store.get_wait_condition("{f}/w"), store.get_for_each_progress("f", 1)
    first = store.get("f", version=1)
    assert wait is not None
    assert progress is not None
    assert first is not None
    parts = [store.get_part("f", name) for name in ("p", "q")]
    return [
        (first.state, first.version),
        [(flow.state, flow.status, flow.updated_at) for flow in map(store.get_one, ("f", "ended"))],
        [(part.body, part.tag) for part in parts if part is not None],
        list(store.read_log("f")),
        (progress.processed_indices, progress.failed_indices),
        (dict(wait.results), wait.outcome, wait.flow_ids),
        {flow.flow_id: (flow.status, flow.created_at, flow.due_at) for flow in store.iter_flows()},
    ]


def test_a_key_is_rotated(open_more: Callable[..., cs.Store], clock: ManualClock) -> None:
    """Everything is written once under the new key; nothing needs the old one any more, nothing else changes."""
    old = open_more(codecs=[OLD], history=3)
    fill(old)
    before = read(old)
    clock.advance(timedelta(seconds=5))
    store = open_more(codecs=[NEW], history=3)
    seen: list[cs.RewrapReport] = []
    report = cs.rewrap(store, on_progress=seen.append)
    bodies = len(stored_bodies(store))
    assert (report.rewritten, report.current, report.left) == (bodies, bodies, 0)
    assert seen[-1] == report
    assert trails(store) == {"aes256gcm=new"}
    assert read(open_more(codecs=[ONLY_NEW], history=3)) == before
    assert store.get_one("f").version == 4
    again = cs.rewrap(store)
    assert (again.rewritten, again.current) == (0, bodies)

    # What was written goes on as before.
    assert store.append("f", b"3").sequence == 3
    assert store.append("f", b"again", key="k1").sequence == 1
    assert store.complete_child("{f}/w", "c2").now_satisfied is True
    assert [flow.flow_id for flow in store.claim_due()] == ["f"]


def test_rotation_under_load(open_more: Callable[..., cs.Store]) -> None:
    """Workers claim, read, write and append meanwhile: none fails to read, and no body keeps the old key."""
    old = open_more(codecs=[OLD], clock=None)
    for number in range(20):
        old.create(cs.FlowSnapshot(f"f{number}", state={"n": 0}))
        old.append(f"f{number}", b"0")

    stop = threading.Event()
    failures: list[Exception] = []
    written = [0, 0]

    def work(which: int) -> None:
        store = open_more(codecs=[NEW], clock=None, owner=f"w{which}")
        try:
            while not stop.is_set():
                for flow in store.claim_due(limit=5, lease=timedelta(seconds=20)):
                    flow.state["n"] += 1
                    flow.due_at = cs.NOW
                    store.update(flow)
                    store.append(flow.flow_id, b"more")
                    store.read_log(flow.flow_id)
                    written[which] += 1
        except Exception as error:  # noqa: BLE001  shown by the test
            failures.append(error)

    workers = [threading.Thread(target=work, args=(which,)) for which in range(2)]
    for worker in workers:
        worker.start()

    store = open_more(codecs=[NEW], clock=None)
    try:
        deadline = time.monotonic() + 60
        while min(written) < 5 and not failures and time.monotonic() < deadline:
            cs.rewrap(store)
    finally:
        stop.set()
        for worker in workers:
            worker.join(60)

    assert not failures
    assert cs.rewrap(store).left == 0
    assert trails(store) == {"aes256gcm=new"}
    states = [store.get_one(f"f{number}").state["n"] for number in range(20)]
    assert sum(states) == sum(written)
    assert sum(len(store.read_log(f"f{number}", limit=1000)) for number in range(20)) == (
        20 + sum(written)
    )


@pytest.mark.parametrize("partitions", [1, 4])
@ONE_STORE
def test_what_was_plain_is_encrypted(open_more: Callable[..., cs.Store], partitions: int) -> None:
    """With `accept_plain`, a store that had no codecs; afterwards without."""
    plain = open_more(partitions=partitions, history=3)
    fill(plain)
    before = read(plain)
    both = [cs.Zstd(), cs.Encrypt({"k": b"k" * 32}, accept_plain=True)]
    assert cs.rewrap(open_more(codecs=both, partitions=partitions, history=3)).left == 0
    strict = open_more(codecs=[cs.Encrypt({"k": b"k" * 32})], partitions=partitions, history=3)
    assert trails(strict) == {"aes256gcm=k"}
    assert read(strict) == before


@ONE_STORE
def test_what_is_left_is_counted(open_more: Callable[..., cs.Store], clock: ManualClock) -> None:
    """Claimed flows, results without a condition, and what no key opens; each is as it was."""
    lost = open_more(codecs=[cs.Encrypt({"lost": b"l" * 32})])
    lost.create(cs.FlowSnapshot("lost", state={}, due_at=None))
    old = open_more(codecs=[OLD])
    old.create(cs.FlowSnapshot("claimed", state={"n": 1}))
    old.complete_child("later", "c", result=1)
    (claimed,) = old.claim_due(lease=timedelta(seconds=10))
    before = stored_bodies(old)
    store = open_more(codecs=[NEW])
    report = cs.rewrap(store)
    assert (report.rewritten, report.unreadable, report.claimed, report.pending) == (0, 1, 1, 1)
    assert report.left == 3
    assert stored_bodies(store) == before
    claimed.state["n"] = 2
    old.update(claimed)
    clock.advance(timedelta(minutes=1))
    store.set_wait_condition(cs.WaitCondition("later", flow_ids=["c", "d"]))
    report = cs.rewrap(store)
    assert (report.rewritten, report.left) == (2, 1)
    assert store.get_one("claimed").state == {"n": 2}


@ONE_STORE
def test_errors_are_hidden_and_shown_again(open_more: Callable[..., cs.Store]) -> None:
    """`rewrap` also writes flows of which only the error is not stored as it would be now."""
    plain = open_more(codecs=[OLD])
    for number in range(3):
        plain.create(cs.FlowSnapshot(f"f{number}", state={}, error="why" if number else None))

    hiding = open_more(codecs=[cs.Encrypt({"old": b"o" * 32}, hide_error=True)])
    report = cs.rewrap(hiding)
    assert (report.rewritten, report.current, report.left) == (2, 3, 0)
    assert [flow.error for flow in hiding.iter_flows(id_prefix="f")] == [None, "why", "why"]
    hidden = [flow.error or "" for flow in plain.iter_flows(id_prefix="f")]
    assert [error[:9] for error in hidden] == ["", "encrypted", "encrypted"]


@ONE_STORE
def test_an_interrupted_rewrap_goes_on(open_more: Callable[..., cs.Store]) -> None:
    """Every commit of it may fail or be lost: what was written stays, and the next call does the rest."""
    old = open_more(codecs=[OLD], history=3)
    fill(old)
    before = read(old)
    faults = Faults()
    store = faults.attach(open_more(codecs=[NEW], history=3))
    for kind in ("unavailable", "unknown-applied", "unknown-not-applied", "reply-lost"):
        faults.on_commit(kind)
        try:
            cs.rewrap(store)
        except (cs.StoreUnavailableError, cs.CommitUncertainError):
            continue

    faults.reset()
    assert cs.rewrap(store).left == 0
    assert trails(store) == {"aes256gcm=new"}
    assert read(store) == before


@ONE_STORE
def test_a_conflict_leaves_what_others_wrote(open_more: Callable[..., cs.Store]) -> None:
    """A record that was written between its reading and its writing is looked at again."""
    old = open_more(codecs=[OLD])
    for name in ("a", "b"):
        old.create(cs.FlowSnapshot(name, state={"n": 0}, due_at=None))

    faults = Faults()
    store = faults.attach(open_more(codecs=[NEW]))
    faults.on_commit("conflict")
    report = cs.rewrap(store)
    assert (report.rewritten, report.left, report.conflicts) == (2, 0, 0)


@ONE_STORE
def test_rewrap_wants_a_blocking_store_with_codecs(store: cs.Store) -> None:
    """Anything else is refused, and nothing is written."""
    for wrong in (store, cs.AsyncMemoryStore(codecs=[NEW]), None):
        with pytest.raises(cs.UsageError, match="rewrap: expected a blocking Store with codecs"):
            cs.rewrap(wrong)  # type: ignore[arg-type]

    with pytest.raises(cs.UsageError, match="on_progress"):
        cs.rewrap(cs.MemoryStore(codecs=[NEW]), on_progress=1)  # type: ignore[arg-type]


# copies -------------------------------------------------------------------------------------------


def test_a_copy_between_stores_with_other_keys(open_more: Callable[..., cs.Store]) -> None:
    """From one key to another and to none; each target is compared with its source."""
    source = open_more(codecs=[cs.Zstd(), OLD], history=3)
    fill(source)
    other = cs.MemoryStore(codecs=[ONLY_NEW], history=3, clock=source.now)
    plain = cs.MemoryStore(history=3, clock=source.now)
    assert cs.copy(source, other).unreadable == 0
    assert cs.copy(other, plain).flows == 2
    assert read(other) == read(plain) == read(source)
    assert trails(other) == {"aes256gcm=new"}
    assert trails(plain) == {None}
    assert not list(compare(source, plain))


@ONE_STORE
def test_a_copy_leaves_out_what_it_cannot_decode(open_more: Callable[..., cs.Store]) -> None:
    """And counts it; everything else is copied."""
    fill(open_more(codecs=[OLD], history=3))
    source = open_more(codecs=[cs.Encrypt({"new": b"n" * 32, "old": b"x" * 32}, current="new")])
    source.create(cs.FlowSnapshot("mine", state={}))
    target = cs.MemoryStore(uuid.uuid4().hex)
    report = cs.copy(source, target)
    assert (report.flows, report.parts, report.progress) == (1, 0, 0)
    assert report.unreadable == len(stored_bodies(source)) - 1
    assert [flow.flow_id for flow in target.iter_flows()] == ["mine"]
    assert {Key(*key).id for key, _ in stored_bodies(target)} == {"mine"}


@ONE_STORE
def test_encrypted_bodies_are_not_copied_as_they_are(open_more: Callable[..., cs.Store]) -> None:
    """Without its codecs a store can neither copy nor fork them: they would be bound to the wrong place."""
    fill(open_more(codecs=[OLD], history=3))
    source = open_more(history=3)
    odd = cs.Part("odd", "p", b"\xf5cs\1 looks like a stored body")
    source.put_part(odd)
    target = cs.MemoryStore(uuid.uuid4().hex)
    report = cs.copy(source, target)
    assert (report.flows, report.parts, report.unreadable) == (0, 1, len(stored_bodies(source)) - 1)
    copied = target.get_part("odd", "p")
    assert copied is not None
    assert copied.body == odd.body
    with pytest.raises(cs.CodecMissingError, match="of progress 'f' step 1"):
        source.fork("f", "other")

    source.create(cs.FlowSnapshot("plain", state={}))
    open_more(codecs=[OLD]).put_part(cs.Part("plain", "p", b"secret"))
    with pytest.raises(cs.CodecMissingError, match="part 'p' of flow 'plain'"):
        source.fork("plain", "other")

    assert source.get("other") is None


@ONE_STORE
def test_a_key_that_cannot_be_fetched_stops_only_its_records(
    open_more: Callable[..., cs.Store],
) -> None:
    """`rewrap` counts what `key_for` has no key for, or fails for, and writes the others."""

    def key_for(flow_id: str) -> cs.Keys | None:
        if flow_id == "broken":
            raise OSError

        return None if flow_id == "gone" else cs.Keys({"new": b"n" * 32, "old": b"o" * 32}, "new")

    old = open_more(codecs=[OLD])
    for name in ("broken", "gone", "mine"):
        old.create(cs.FlowSnapshot(name, state={}, due_at=None))

    report = cs.rewrap(open_more(codecs=[cs.Encrypt(key_for=key_for)]))
    assert (report.rewritten, report.unreadable, report.left) == (1, 2, 2)

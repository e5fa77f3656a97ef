"""Stale runs: what they may not write, and what they still may."""

from __future__ import annotations

import pickle
from datetime import timedelta
from typing import Any

import pytest
from graphs import config_of
from graphs import ids
from graphs import newest
from graphs import put
from marks import EVERY_STORE

import catga_store as cs
from catga_store.langgraph import CatgaSaver
from catga_store.langgraph import StaleThreadError
from catga_store.testing.clock import ManualClock

pytestmark = EVERY_STORE

A, B, C, D = "1f000000-a", "1f000000-b", "1f000000-c", "1f000000-d"


def read(saver: CatgaSaver, checkpoint_id: str | None = None) -> Any:
    """Return the config that a run of the thread `t` continues with."""
    found = saver.get_tuple(config_of("t", checkpoint_id=checkpoint_id))
    assert found is not None
    return found.config


def test_a_child_of_the_newest_checkpoint_is_written(saver: CatgaSaver) -> None:
    """Each checkpoint continues from the one before."""
    config = put(saver, config_of("t"), A)
    config = put(saver, config, B)
    put(saver, read(saver), C)
    assert ids(saver, config_of("t")) == [C, B, A]
    assert saver.get_tuple(config_of("t")).parent_config["configurable"]["checkpoint_id"] == B  # type: ignore[union-attr, index]


def test_a_second_child_is_refused(saver: CatgaSaver) -> None:
    """Two runs read the same checkpoint; the second to write is stale, and nothing of it is kept."""
    put(saver, config_of("t"), A)
    ours, theirs = read(saver), read(saver)
    put(saver, theirs, B)
    with pytest.raises(StaleThreadError, match="another run has written to the thread") as caught:
        put(saver, ours, C)

    error = caught.value
    assert (error.thread_id, error.checkpoint_ns, error.expected, error.actual) == ("t", "", A, B)
    assert vars(pickle.loads(pickle.dumps(error))) == vars(error)
    assert ids(saver, config_of("t")) == [B, A]


def test_a_second_child_is_refused_by_another_saver(saver: CatgaSaver, store_url: str) -> None:
    """What a saver remembers of a thread is checked by the store."""
    put(saver, config_of("t"), A)
    ours = read(saver)
    if not store_url.startswith("memory"):
        with cs.open_store(store_url) as store:
            other = CatgaSaver(store)
            put(other, read(other), B)
    else:
        other = CatgaSaver(saver.store)
        put(other, read(other), B)

    with pytest.raises(StaleThreadError):
        put(saver, ours, C)

    assert newest(saver, config_of("t")) == B


def test_of_two_first_checkpoints_one_is_refused(saver: CatgaSaver) -> None:
    """Two runs that have found nothing cannot both begin the thread."""
    ours, theirs = config_of("t"), config_of("t")
    assert saver.get_tuple(ours) is None
    assert saver.get_tuple(theirs) is None
    put(saver, theirs, A)
    with pytest.raises(StaleThreadError) as caught:
        put(saver, ours, B)

    assert (caught.value.expected, caught.value.actual) == (None, A)


def test_a_first_checkpoint_that_nothing_was_read_for_is_written(saver: CatgaSaver) -> None:
    """A config without a parent that was never passed to `get_tuple` says nothing that could be checked."""
    put(saver, config_of("t"), A)
    put(saver, config_of("t"), B)
    assert newest(saver, config_of("t")) == B


def test_a_run_continues_from_an_older_checkpoint(saver: CatgaSaver) -> None:
    """A config that names an older checkpoint is meant, and the run continues on its new branch."""
    config = put(saver, config_of("t"), A)
    put(saver, config, B)
    config = put(saver, read(saver, A), C)
    assert newest(saver, config_of("t")) == C
    put(saver, config, D)
    assert newest(saver, config_of("t")) == D


def test_an_older_checkpoint_of_a_listing_can_be_continued_from(saver: CatgaSaver) -> None:
    """A replay takes the checkpoint of a subgraph from a listing."""
    config = put(saver, config_of("t", "sub"), A)
    put(saver, config, B)
    (old,) = saver.list(config_of("t", "sub"), before=config_of("t", "sub", B), limit=1)
    put(saver, old.config, C)
    assert newest(saver, config_of("t", "sub")) == C


def test_a_run_from_an_older_checkpoint_is_refused_when_the_thread_has_moved(
    saver: CatgaSaver,
) -> None:
    """What was the newest when the older one was read must be so still."""
    put(saver, put(saver, config_of("t"), A), B)
    back = read(saver, A)
    put(saver, read(saver), C)
    with pytest.raises(StaleThreadError):
        put(saver, back, D)


def test_writes_of_a_stale_run_are_refused(saver: CatgaSaver) -> None:
    """The other run has put a checkpoint since."""
    put(saver, config_of("t"), A)
    ours, theirs = read(saver), read(saver)
    saver.put_writes(ours, [("n", 1)], "task-1")
    put(saver, theirs, B)
    with pytest.raises(StaleThreadError):
        saver.put_writes(ours, [("n", 2)], "task-2")

    assert saver.get_tuple(config_of("t", checkpoint_id=A)).pending_writes == [("task-1", "n", 1)]  # type: ignore[union-attr]


def test_writes_may_come_after_the_next_checkpoint_of_their_run(saver: CatgaSaver) -> None:
    """LangGraph saves in the background, so a task's writes may come late."""
    put(saver, config_of("t"), A)
    ours = read(saver)
    put(saver, ours, B)
    saver.put_writes(ours, [("n", 1)], "task-1")
    assert saver.get_tuple(config_of("t", checkpoint_id=A)).pending_writes == [("task-1", "n", 1)]  # type: ignore[union-attr]


def test_writes_may_come_before_their_checkpoint(saver: CatgaSaver) -> None:
    """They may also come before the checkpoint that they belong to, the first one included."""
    config = config_of("t")
    assert saver.get_tuple(config) is None
    for parent, new in ((None, A), (A, B)):
        ours = {"configurable": config["configurable"] | {"checkpoint_id": new}}
        saver.put_writes(ours, [("n", new)], "task-1")
        put(saver, {"configurable": config["configurable"] | {"checkpoint_id": parent}}, new)
        assert saver.get_tuple(config_of("t")).pending_writes == [("task-1", "n", new)]  # type: ignore[union-attr]


def test_a_deleted_thread_is_not_written(saver: CatgaSaver) -> None:
    """A run that began before the deletion does not bring the thread back."""
    first = config_of("t")
    assert saver.get_tuple(first) is None
    ours = {"configurable": first["configurable"] | put(saver, first, A)["configurable"]}
    saver.delete_thread("t")
    for config in (ours, {"configurable": first["configurable"] | {"checkpoint_id": A}}):
        with pytest.raises(StaleThreadError):
            put(saver, config, B)

    with pytest.raises(StaleThreadError):
        saver.put_writes(config_of("t", checkpoint_id=A), [("n", 1)], "task-1")

    assert newest(saver, config_of("t")) is None
    put(saver, config_of("t"), C)
    assert ids(saver, config_of("t")) == [C]


def test_the_newest_is_what_was_written_last(saver: CatgaSaver) -> None:
    """A process whose clock is behind makes a smaller id; its checkpoint is the newest nevertheless."""
    put(saver, put(saver, config_of("t"), B), A)
    assert newest(saver, config_of("t")) == A
    assert ids(saver, config_of("t")) == [B, A]
    put(saver, read(saver), C)
    history = saver.get_delta_channel_history(config=config_of("t"), channels=["n"])
    assert history == {"n": {"writes": []}}


def test_the_same_checkpoint_can_be_put_again(saver: CatgaSaver) -> None:
    """A caller that does not know whether its put was done repeats it."""
    config = put(saver, config_of("t"), A)
    put(saver, config, B, n=1)
    put(saver, config, B, n=1)
    assert ids(saver, config_of("t")) == [B, A]


def test_namespaces_are_apart(saver: CatgaSaver) -> None:
    """What one subgraph writes does not make another stale."""
    put(saver, config_of("t"), A)
    ours = read(saver)
    put(saver, config_of("t", "sub:1"), B)
    put(saver, config_of("t", "sub:2"), B)
    put(saver, ours, C)
    assert ids(saver, config_of("t")) == [C, A]
    assert ids(saver, config_of("t", "sub:1")) == [B]


def test_a_lost_claim_cannot_write(store: cs.Store, clock: ManualClock) -> None:
    """`under` ties each write to the claim of a flow: once another owner has it, nothing is written."""
    saver = CatgaSaver(store)
    store.create(cs.FlowSnapshot("t", state={}))
    flow = store.claim("t", owner="one")
    ours = saver.under(flow)
    config = put(ours, config_of("t"), A)
    ours.put_writes(config, [("n", 1)], "task-1")
    assert flow.version == store.get_one("t").version

    clock.advance(timedelta(minutes=10))
    theirs = saver.under(store.claim("t", owner="two"))
    for call in (
        lambda: put(ours, config, B),
        lambda: ours.put_writes(config, [("n", 1)], "task-2"),
        lambda: ours.delete_thread("t"),
    ):
        with pytest.raises(cs.ClaimLostError):
            call()

    assert ids(saver, config_of("t")) == [A]
    put(theirs, config, B)


def test_a_thread_shares_a_partition_with_the_flow_of_its_name(store_url: str) -> None:
    """So `under` works with partitions, too."""
    with cs.open_store(store_url, partitions=7) as store:
        for name, thread in (("t", "t"), ("{order-1}/work", "{order-1}/chat"), ("ü", "ü")):
            store.create(cs.FlowSnapshot(name, state={}))
            saver = CatgaSaver(store).under(store.claim(name))
            put(saver, config_of(thread), A)
            assert newest(saver, config_of(thread)) == A

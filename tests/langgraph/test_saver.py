"""What the kit of LangGraph leaves open: order, sizes, ids, costs."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from graphs import config_of
from graphs import ids
from graphs import newest
from graphs import put
from langgraph.checkpoint.serde.types import ERROR
from langgraph.checkpoint.serde.types import INTERRUPT
from marks import EVERY_STORE
from marks import ONE_STORE

import catga_store as cs
from catga_store.langgraph import CatgaSaver
from catga_store.testing.clock import ManualClock
from catga_store.testing.faults import Faults

pytestmark = ONE_STORE

A, B, C, D = "1f000000-a", "1f000000-b", "1f000000-c", "1f000000-d"


def pending(saver: CatgaSaver) -> Any:
    """Return the writes of the newest checkpoint of the thread `t`."""
    found = saver.get_tuple(config_of("t"))
    assert found is not None
    return found.pending_writes


def test_writes_have_the_order_of_their_tasks(saver: CatgaSaver) -> None:
    """By path, then by task, then by index, whatever came first."""
    config = put(saver, config_of("t"), A)
    saver.put_writes(config, [("n", 3), ("n", 4)], "a", "~2")
    saver.put_writes(config, [("n", 2)], "z", "~1")
    saver.put_writes(config, [("n", 1)], "b", "~1")
    assert pending(saver) == [("b", "n", 1), ("z", "n", 2), ("a", "n", 3), ("a", "n", 4)]


def test_the_first_write_of_an_index_stays(store: cs.Store, clock: ManualClock) -> None:
    """A task that runs again does not change what it has written, but may add to it."""
    saver = CatgaSaver(store)
    config = put(saver, config_of("t"), A)
    for writes in ([("n", 1), ("n", 2)], [("n", 7)], [("n", 8), ("n", 9), ("n", 3)]):
        saver.put_writes(config, writes, "a")
        clock.advance(timedelta(milliseconds=1))

    assert pending(saver) == [("a", "n", 1), ("a", "n", 2), ("a", "n", 3)]


def test_the_last_write_of_a_special_channel_stays(saver: CatgaSaver) -> None:
    """An error is replaced by the next one."""
    config = put(saver, config_of("t"), A)
    saver.put_writes(config, [(ERROR, "one"), ("n", 1)], "a")
    saver.put_writes(config, [(ERROR, "two"), (INTERRUPT, "wait")], "a")
    assert pending(saver) == [("a", INTERRUPT, "wait"), ("a", ERROR, "two"), ("a", "n", 1)]


def test_channels_of_any_name(saver: CatgaSaver) -> None:
    """Also a line break, and a lone surrogate, which is not valid text."""
    config = put(saver, config_of("t"), A)
    writes = [("a\nb", 1), ("ü\u2028", 2), ("\ud800", 3)]
    saver.put_writes(config, writes, "a")
    assert pending(saver) == [("a", *write) for write in writes]


def test_no_writes_are_nothing(saver: CatgaSaver) -> None:
    """An empty list costs nothing, and nothing is stored."""
    config = put(saver, config_of("t"), A)
    saver.put_writes(config, [], "a")
    assert pending(saver) == []


@EVERY_STORE
@pytest.mark.parametrize(
    ("thread", "ns", "checkpoint"),
    [
        ("a/b", "x/y|z:1", "1/2"),
        ("50%", "=", "~"),
        ("{tag}", "", "ü"),
        ("}", "~", "~/c"),
        ("t", "node:1f000000-0000-0000-0000-000000000000|" * 12, A),
    ],
)
def test_any_names(saver: CatgaSaver, thread: str, ns: str, checkpoint: str) -> None:
    """Names of any characters, and long namespaces, are kept apart and come back."""
    put(saver, config_of("other"), A)
    config = put(saver, config_of(thread, ns), checkpoint)
    saver.put_writes(config, [("n", 1)], "task/1")
    found = saver.get_tuple(config_of(thread, ns))
    assert found is not None
    assert found.config["configurable"]["checkpoint_id"] == checkpoint
    assert found.pending_writes == [("task/1", "n", 1)]
    assert [
        one.config["configurable"]["checkpoint_ns"]
        for one in saver.list({"configurable": {"thread_id": thread}})
    ] == [ns]
    assert sorted(one.config["configurable"]["thread_id"] for one in saver.list(None)) == sorted(
        ["other", thread]
    )
    saver.delete_thread(thread)
    assert newest(saver, config_of(thread, ns)) is None


def test_ids_that_begin_alike(saver: CatgaSaver) -> None:
    """The writes of checkpoint 10 are not those of checkpoint 1."""
    config = put(saver, config_of("t"), "1")
    config = put(saver, config, "10")
    saver.put_writes(config, [("n", 1)], "a")
    found = saver.get_tuple(config_of("t", checkpoint_id="1"))
    assert found is not None
    assert found.pending_writes == []


@pytest.mark.parametrize("size", [1, 10_000])
def test_metadata_of_any_size(saver: CatgaSaver, size: int) -> None:
    """Metadata that do not fit beside the listing are found by a filter nevertheless."""
    config = config_of("t")
    for number, new in enumerate((A, B, C)):
        config["metadata"] = {"text": "ü" * size, "number": number}
        config = put(saver, config, new)

    assert ids(saver, config_of("t"), filter={"number": 1}) == [B]
    assert ids(saver, config_of("t"), filter={"text": "ü" * size}) == [C, B, A]
    assert ids(saver, config_of("t"), filter={"missing": None}) == []
    found = saver.get_tuple(config_of("t", checkpoint_id=B))
    assert found is not None
    assert found.metadata == {"source": "loop", "step": 1, "text": "ü" * size, "number": 1}


def test_what_a_run_has_seen_is_not_metadata(saver: CatgaSaver) -> None:
    """The key that the saver adds to configs is in no checkpoint."""
    put(saver, put(saver, config_of("t"), A), B)
    found = saver.get_tuple(config_of("t"))
    assert found is not None
    assert found.metadata == {"source": "loop", "step": 1}


def test_listing_of_all_namespaces_with_limit_and_before(saver: CatgaSaver) -> None:
    """Without a namespace, the namespaces come one after the other; limit and before hold for all."""
    for ns in ("", "sub"):
        put(saver, put(saver, put(saver, config_of("t", ns), A), B), C)

    whole = {"configurable": {"thread_id": "t"}}
    assert ids(saver, whole) == [C, B, A, C, B, A]
    assert ids(saver, whole, before=config_of("t", "", C)) == [B, A, B, A]
    assert ids(saver, whole, limit=4) == [C, B, A, C]
    assert ids(saver, whole, limit=0) == []
    assert ids(saver, whole, filter={"step": 1}, limit=2) == [C, B]
    assert ids(saver, config_of("t", "sub", B)) == [B]
    assert ids(saver, None) == [C, B, A, C, B, A]


@EVERY_STORE
def test_more_than_one_page(saver: CatgaSaver) -> None:
    """Checkpoints, and writes of one, beyond the size of a page."""
    config = config_of("t")
    names = [f"1f000000-{number:03}" for number in range(130)]
    for name in names:
        config = put(saver, config, name)

    for number in range(120):
        saver.put_writes(config, [("n", number)], f"{number:03}")

    assert ids(saver, config_of("t")) == names[::-1]
    assert ids(saver, config_of("t"), filter={"step": 1}) == names[::-1]
    assert [value for _, _, value in pending(saver)] == list(range(120))
    saver.copy_thread("t", "u")
    assert ids(saver, config_of("u")) == names[::-1]
    saver.prune(["t"])
    assert ids(saver, config_of("t")) == names[-1:]
    assert [value for _, _, value in pending(saver)] == list(range(120))
    saver.delete_for_runs(["no such run"])
    assert ids(saver, config_of("t")) == names[-1:]


def test_deleting_a_run_at_the_end_makes_the_one_before_the_newest(saver: CatgaSaver) -> None:
    """The thread can be continued from there; a run that has seen what is gone is stale."""
    config = config_of("t")
    for new, run in ((A, "one"), (B, "two"), (C, "two")):
        config["metadata"] = {"run_id": run}
        config = put(saver, config, new)

    saver.delete_for_runs(["two"])
    assert newest(saver, config_of("t")) == A
    with pytest.raises(cs.ConflictError):
        put(saver, config, D)

    found = saver.get_tuple(config_of("t"))
    assert found is not None
    put(saver, found.config, D)
    saver.delete_for_runs(["one", "two"])
    assert newest(saver, config_of("t")) == D


def test_a_copy_to_a_thread_that_exists_is_refused(saver: CatgaSaver) -> None:
    """Nothing of the target is changed."""
    put(saver, config_of("t"), A)
    put(saver, config_of("u"), B)
    with pytest.raises(cs.FlowExistsError):
        saver.copy_thread("t", "u")

    assert ids(saver, config_of("u")) == [B]


def test_a_copy_that_is_not_complete_has_no_newest_checkpoint(store_url: str) -> None:
    """A failure on the way leaves what neither `get_tuple` nor a listing shows."""
    faults = Faults()
    with cs.open_store(store_url) as store:
        saver = CatgaSaver(faults.attach(store))
        put(saver, config_of("t"), A)
        faults.on_commit("unavailable", after=2)
        with pytest.raises(cs.StoreUnavailableError):
            saver.copy_thread("t", "u")

        assert newest(saver, config_of("u")) is None
        assert ids(saver, config_of("u")) == []
        saver.delete_thread("u")
        saver.copy_thread("t", "u")
        assert ids(saver, config_of("u")) == [A]


def test_unknown_strategy(saver: CatgaSaver) -> None:
    """A misspelled strategy deletes nothing."""
    put(saver, config_of("t"), A)
    with pytest.raises(cs.UsageError, match="unknown strategy 'keep_last'"):
        saver.prune(["t"], strategy="keep_last")

    assert newest(saver, config_of("t")) == A


def test_configs_that_name_nothing(saver: CatgaSaver) -> None:
    """A config without a thread, and writes without a checkpoint, are refused."""
    with pytest.raises(cs.UsageError, match="does not name a thread"):
        saver.get_tuple({"configurable": {}})

    with pytest.raises(cs.UsageError, match="does not name a checkpoint"):
        saver.put_writes(config_of("t"), [("n", 1)], "a")


def test_blocking_calls_on_an_async_store_are_refused() -> None:
    """They could only block the event loop."""

    async def run() -> None:
        async with cs.open_async_store("memory://") as store:
            saver = CatgaSaver(store)
            with pytest.raises(cs.UsageError, match="await its async methods"):
                saver.get_tuple(config_of("t"))

    asyncio.run(run())


@pytest.mark.stores("memory", "sqlite", "redis-8.2")
def test_what_calls_cost(store_url: str) -> None:
    """Exchanges with the store, counted; on NATS a listing asks for the names first."""
    faults = Faults()

    def exchanges(call: Any) -> int:
        faults.exchanges.clear()
        call()
        return len(faults.exchanges)

    with cs.open_store(store_url) as store:
        saver = CatgaSaver(faults.attach(store))
        config = put(saver, put(saver, config_of("t"), A), B)
        assert exchanges(lambda: saver.get_tuple(config_of("t"))) == 1
        assert exchanges(lambda: put(saver, config, C)) == 1
        config = config_of("t", checkpoint_id=C)
        assert exchanges(lambda: saver.put_writes(config, [("n", 1), ("m", 2)], "a")) == 1
        assert exchanges(lambda: saver.get_tuple(config_of("t"))) == 1
        assert exchanges(lambda: saver.get_tuple(config)) == 2
        assert exchanges(lambda: ids(saver, config_of("t"))) == 2
        assert exchanges(lambda: saver.delete_thread("t")) == 1


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
def test_checkpoints_go_through_codecs(kind: str, tmp_path: Path) -> None:
    """What a store compresses or encrypts, it does to checkpoints and writes, too."""
    key = b"k" * 32
    sealed = cs.Encrypt({"1": key}, current="1")
    url = "memory://shared-by-two" if kind == "memory" else f"sqlite:///{tmp_path / 'one.db'}"
    with cs.open_store(url, codecs=[sealed]) as store:
        saver = CatgaSaver(store)
        config = put(saver, config_of("t"), A)
        saver.put_writes(config, [("n", "secret")], "a")
        found = CatgaSaver(store).get_tuple(config_of("t"))
        assert found is not None
        assert found.pending_writes == [("a", "n", "secret")]

    with cs.open_store(url) as plain, pytest.raises(cs.CatgaStoreError):
        CatgaSaver(plain).get_tuple(config_of("t"))

"""ForEach progress: marks, merges, and version-checked saving."""

from __future__ import annotations

import enum
from datetime import timedelta

import pytest

import catga_store as cs
from catga_store.testing.clock import ManualClock


def marks(progress: cs.ForEachProgress | None) -> tuple[list[int], list[int], int | None]:
    """Return the processed and the failed indices, and the last one."""
    assert progress is not None
    return (
        list(progress.processed_indices),
        list(progress.failed_indices),
        progress.last_processed_index,
    )


def test_mark_moves_an_item_between_the_sets() -> None:
    """An item is in one set at most, wherever it was marked last."""
    progress = cs.ForEachProgress()
    assert (progress.total_processed, progress.last_processed_index) == (0, None)
    progress.mark(3)
    progress.mark(1, ok=False)
    progress.mark(2, False)
    assert marks(progress) == ([3], [1, 2], 2)
    progress.mark(1)
    assert marks(progress) == ([1, 3], [2], 1)
    progress.mark(3, ok=False)
    assert marks(progress) == ([1], [2, 3], 3)
    assert progress.total_processed == 3


@pytest.mark.parametrize("index", [-1, 1.0, "1", True, None])
def test_only_indices_are_marked(index: object) -> None:
    """What can be no index is a usage error that changes nothing."""
    progress = cs.ForEachProgress([1])
    with pytest.raises(cs.UsageError):
        progress.mark(index)  # type: ignore[arg-type]

    assert marks(progress) == ([1], [], None)


def test_pending_returns_unmarked_items() -> None:
    """The indices below the total that are in neither set, ascending."""
    progress = cs.ForEachProgress([0, 2], [4])
    assert list(progress.pending(7)) == [1, 3, 5, 6]
    assert list(progress.pending(1)) == []
    assert list(progress.pending(0)) == []


def test_marking_while_iterating_over_pending() -> None:
    """A loop over what is pending sees each item once though it marks them."""
    progress = cs.ForEachProgress([1])
    seen = []
    for index in progress.pending(5):
        progress.mark(index)
        seen.append(index)

    assert seen == [0, 2, 3, 4]
    assert list(progress.pending(5)) == []


def test_merge_is_the_union() -> None:
    """Both sets are taken in; what was processed on either side is processed."""
    mine, yours = cs.ForEachProgress([0, 1], [5, 6]), cs.ForEachProgress([2, 5], [1, 7])
    yours.mark(9)
    assert mine.merge(yours) is mine
    assert marks(mine) == ([0, 1, 2, 5, 9], [6, 7], 9)
    assert marks(yours) == ([2, 5, 9], [1, 7], 9)


def test_a_new_progress_has_disjoint_sets() -> None:
    """An index cannot be both processed and failed."""
    with pytest.raises(cs.UsageError, match="both processed and failed"):
        cs.ForEachProgress([1, 2], [2])

    progress = cs.ForEachProgress([1, 2], [3])
    for name in ("processed_indices", "failed_indices"):
        with pytest.raises(cs.UsageError, match="both processed and failed"):
            setattr(progress, name, [2, 3])

    assert marks(progress) == ([1, 2], [3], None)


def test_a_step_without_progress_returns_none(store: cs.Store) -> None:
    """`get` returns `None`, `list` nothing and `clear` `False`."""
    assert store.get_for_each_progress("f", 0) is None
    assert store.list_for_each_progress("f") == {}
    assert store.clear_for_each_progress("f", 0) is False


def test_progress_comes_back(store: cs.Store) -> None:
    """Sets, last index and version are what was saved, before the flow is there."""
    progress = cs.ForEachProgress([0, 1, 2, 9], [4])
    progress.mark(5, ok=False)
    assert store.save_for_each_progress("f", 3, progress) is None
    read = store.get_for_each_progress("f", 3)
    assert read is not None
    assert marks(read) == ([0, 1, 2, 9], [4, 5], 5)
    assert (read.version, read.revision) == (1, progress.revision)
    assert progress.version == 1
    store.create(cs.FlowSnapshot("f", state={}))
    assert marks(store.get_for_each_progress("f", 3)) == ([0, 1, 2, 9], [4, 5], 5)


def test_loaded_progress_is_the_callers(store: cs.Store) -> None:
    """Marking what was saved or loaded changes nothing that is stored."""
    progress = cs.ForEachProgress([1])
    store.save_for_each_progress("f", 0, progress)
    progress.mark(2)
    read = store.get_for_each_progress("f", 0)
    assert marks(read) == ([1], [], None)
    assert read is not None
    read.mark(3)
    assert marks(store.get_for_each_progress("f", 0)) == ([1], [], None)


def test_saving_counts_versions(store: cs.Store) -> None:
    """What was loaded or saved may be saved again, one version on."""
    progress = cs.ForEachProgress()
    for version in range(1, 5):
        progress.mark(version)
        store.save_for_each_progress("f", 0, progress)
        assert progress.version == version

    read = store.get_for_each_progress("f", 0)
    assert read is not None
    read.mark(9)
    store.save_for_each_progress("f", 0, read)
    assert read.version == 5
    with pytest.raises(cs.StaleProgressError) as caught:
        store.save_for_each_progress("f", 0, progress)

    error = caught.value
    assert (error.flow_id, error.step_index, error.expected, error.actual) == ("f", 0, 4, 5)
    assert (
        "progress 'f' step 0 was read at version 4, but the store holds version 5, so nothing"
        in str(error)
    )
    assert progress.version == 4


def test_fresh_progress_expects_none(store: cs.Store) -> None:
    """A new object does not overwrite; load, `merge` and save is the way."""
    store.save_for_each_progress("f", 0, cs.ForEachProgress([1]))
    fresh = cs.ForEachProgress([2])
    with pytest.raises(cs.StaleProgressError) as caught:
        store.save_for_each_progress("f", 0, fresh)

    assert (caught.value.expected, caught.value.actual) == (0, 1)
    assert "step 0 was saved as new but already exists at version 1, so nothing" in str(
        caught.value
    )
    assert (fresh.version, marks(fresh)[0]) == (0, [2])
    stored = store.get_for_each_progress("f", 0)
    assert stored is not None
    store.save_for_each_progress("f", 0, stored.merge(fresh))
    assert marks(store.get_for_each_progress("f", 0))[0] == [1, 2]


def test_overwrite_replaces_any_version(store: cs.Store) -> None:
    """The version continues from what is stored, or begins at 1."""
    first = cs.ForEachProgress([1])
    store.save_for_each_progress("f", 0, first, overwrite=True)
    assert first.version == 1
    store.save_for_each_progress("f", 0, first)
    second = cs.ForEachProgress([2])
    store.save_for_each_progress("f", 0, second, overwrite=True)
    assert second.version == 3
    second.mark(3)
    store.save_for_each_progress("f", 0, second)
    assert marks(store.get_for_each_progress("f", 0))[0] == [2, 3]


def test_cleared_progress_is_gone(store: cs.Store) -> None:
    """A save of what was loaded before is stale, at no version; a fresh one starts at 1."""
    progress = cs.ForEachProgress([1])
    store.save_for_each_progress("f", 0, progress)
    store.save_for_each_progress("f", 1, cs.ForEachProgress([1]))
    assert store.clear_for_each_progress("f", 0) is True
    assert store.clear_for_each_progress("f", 0) is False
    with pytest.raises(cs.StaleProgressError, match="the store no longer holds it") as caught:
        store.save_for_each_progress("f", 0, progress)

    assert (caught.value.expected, caught.value.actual) == (1, None)
    fresh = cs.ForEachProgress([2])
    store.save_for_each_progress("f", 0, fresh)
    assert fresh.version == 1
    assert list(store.list_for_each_progress("f")) == [0, 1]


def test_recreated_progress_is_another_record(store: cs.Store) -> None:
    """Progress that was cleared and saved again is another one at the same version."""
    old = cs.ForEachProgress([1])
    store.save_for_each_progress("f", 0, old)
    store.clear_for_each_progress("f", 0)
    store.save_for_each_progress("f", 0, cs.ForEachProgress([2]))
    with pytest.raises(cs.StaleProgressError) as caught:
        store.save_for_each_progress("f", 0, old)

    assert (caught.value.expected, caught.value.actual) == (1, 1)


def test_progress_is_listed_by_step(store: cs.Store) -> None:
    """Ascending steps of this flow only, each with its own progress."""
    for step in (10, 2, 2**31 - 1, 0):
        store.save_for_each_progress("f", step, cs.ForEachProgress([step % 100]))

    store.save_for_each_progress("g", 1, cs.ForEachProgress())
    store.save_for_each_progress("f ", 1, cs.ForEachProgress())
    found = store.list_for_each_progress("f")
    assert list(found) == [0, 2, 10, 2**31 - 1]
    assert marks(found[10])[0] == [10]
    found[10].mark(11)
    store.save_for_each_progress("f", 10, found[10])
    assert found[10].version == 2


def test_progress_belongs_to_its_step(store: cs.Store) -> None:
    """A loaded progress cannot be saved as that of another step."""
    progress = cs.ForEachProgress([1])
    store.save_for_each_progress("f", 0, progress)
    with pytest.raises(cs.UsageError, match="belongs to progress 'f' step 0"):
        store.save_for_each_progress("f", 1, progress)

    assert list(store.list_for_each_progress("f")) == [0]


def test_million_items_in_order_fit_in_500_bytes(open_more: object) -> None:
    """A million items in order fit in a record of a few hundred bytes."""
    assert callable(open_more)
    store = open_more(max_record_bytes=500)
    progress = cs.ForEachProgress(range(1_000_000))
    progress.mark(1_000_000)
    store.save_for_each_progress("f", 0, progress)
    read = store.get_for_each_progress("f", 0)
    assert read.total_processed == 1_000_001
    assert list(read.pending(1_000_003)) == [1_000_001, 1_000_002]


def test_progress_of_a_live_flow_never_expires(store: cs.Store, clock: ManualClock) -> None:
    """Progress lives as long as its flow, and as long as it has none."""
    store.create(cs.FlowSnapshot("f", state={}))
    store.save_for_each_progress("f", 0, cs.ForEachProgress([1]))
    store.save_for_each_progress("orphan", 0, cs.ForEachProgress([1]))
    clock.advance(timedelta(days=4_000))
    store.sweep()
    assert store.get_for_each_progress("f", 0) is not None
    assert store.get_for_each_progress("orphan", 0) is not None


def test_an_index_is_kept_as_a_plain_int(store: cs.Store) -> None:
    """A subclass of int, such as a member of an IntEnum, may be marked, and is stored as its value."""
    item = enum.IntEnum("Item", {"LAST": 3})
    progress = cs.ForEachProgress()
    progress.mark(item["LAST"])
    store.save_for_each_progress("f", 0, progress)
    found = store.get_for_each_progress("f", 0)
    assert found is not None
    assert found.last_processed_index == 3
    assert list(found.processed_indices) == [3]


def test_progress_that_was_made_with_its_flow(store: cs.Store) -> None:
    """Both have the revision of that commit; saved alone later, the progress leaves the flow as it is."""
    with store.begin() as session:
        session.add(cs.FlowSnapshot("f", state={"n": 0}, due_at=None))
        session.save_for_each_progress("f", 1, cs.ForEachProgress([0]))

    progress = store.get_for_each_progress("f", 1)
    assert progress is not None
    progress.mark(1)
    store.save_for_each_progress("f", 1, progress)
    assert marks(store.get_for_each_progress("f", 1)) == ([0, 1], [], 1)
    flow = store.get_one("f")
    assert (flow.version, flow.state) == (1, {"n": 0})

"""Indices as ForEach progress shows them and keeps them, against the built-in set."""

from __future__ import annotations

import copy
import operator
import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine
from hypothesis.stateful import invariant
from hypothesis.stateful import rule
from pyroaring import BitMap64

import catga_store as cs
from catga_store.codec.bitmaps import decode_bitmap
from catga_store.codec.bitmaps import encode_bitmap
from catga_store.core import envelope
from catga_store.model.index_set import IndexSet
from catga_store.model.index_set import bitmap_of
from catga_store.model.index_set import missing
from catga_store.protocol.keys import Key
from catga_store.protocol.requests import Head
from catga_store.protocol.requests import Record

KEY = Key("progress", "f", 0)
HUGE = pytest.param(10**5000, id="huge")  # Python refuses to print it

small = st.integers(0, 30)  # dense, so that runs join and split
around = st.integers(65_500, 65_600)  # the end of a container of a bitmap, and the next
sets = st.sets(small | around | st.integers(0, 2**63 - 2))


def indices(members: Any = ()) -> IndexSet:
    """Return a view of a new set."""
    return IndexSet(bitmap_of(members))


class AgainstSet(RuleBasedStateMachine):
    """Every change is made to a progress and to two sets; they must stay the same."""

    def __init__(self) -> None:
        super().__init__()
        self.real = cs.ForEachProgress()
        self.processed: set[int] = set()
        self.failed: set[int] = set()

    @rule(index=small, ok=st.booleans())
    def mark(self, index: int, ok: bool) -> None:
        self.real.mark(index, ok)
        to, out_of = (self.processed, self.failed) if ok else (self.failed, self.processed)
        to.add(index)
        out_of.discard(index)

    @rule(members=st.sets(small), how=st.sampled_from([indices, set, list, frozenset]))
    def replace_processed(self, members: set[int], how: Any) -> None:
        self.processed = members - self.failed
        self.real.processed_indices = how(self.processed)

    @rule(members=st.sets(small), how=st.sampled_from([indices, set, list, frozenset]))
    def replace_failed(self, members: set[int], how: Any) -> None:
        self.failed = members - self.processed
        self.real.failed_indices = how(self.failed)

    @rule(members=st.sets(small), failed=st.sets(small))
    def merge(self, members: set[int], failed: set[int]) -> None:
        other = cs.ForEachProgress(members, failed - members)
        assert self.real.merge(other) is self.real
        self.processed |= members
        self.failed = (self.failed | failed) - self.processed

    @rule(total=st.integers(0, 40))
    def look(self, total: int) -> None:
        left = set(range(total)) - self.processed - self.failed
        assert list(self.real.pending(total)) == sorted(left)
        assert self.real.remaining(total) == len(left)
        assert self.real.fraction(total) == (1 - len(left) / total if total else 1)

    @invariant()
    def same_members(self) -> None:
        for ours, theirs in (
            (self.real.processed_indices, self.processed),
            (self.real.failed_indices, self.failed),
        ):
            assert list(ours) == sorted(theirs)
            assert len(ours) == len(theirs)
            assert ours == theirs
            assert {index for index in range(-1, 33) if index in ours} == theirs

        assert self.real.total_processed == len(self.processed | self.failed)


TestAgainstSet = AgainstSet.TestCase


@given(sets, sets)
def test_operators_agree_with_those_of_set(left: set[int], right: set[int]) -> None:
    """Union, intersection, difference and the comparisons, with the view on either side."""
    for other in (indices(right), right):
        ours = indices(left)
        assert ours | other == left | right
        assert ours & other == left & right
        assert ours - other == left - right
        assert ours ^ other == left ^ right
        assert (ours == other) == (left == right)
        assert (ours <= other) == (left <= right)
        assert (ours > other) == (left > right)
        assert ours.isdisjoint(other) == left.isdisjoint(right)
        assert ours == left

    assert left | indices(right) == left | right
    assert left & indices(right) == left & right
    assert left - indices(right) == left - right


@given(sets)
def test_an_encoded_bitmap_decodes_to_the_same_set(members: set[int]) -> None:
    """So do copies and pickles; a bitmap is not changed by being encoded."""
    ours = bitmap_of(members)
    assert set(decode_bitmap(encode_bitmap(ours))) == members == set(ours)
    assert pickle.loads(pickle.dumps(indices(members))) == members
    assert copy.deepcopy(indices(members)) == members


@given(st.binary(max_size=80))
def test_bytes_that_are_not_a_bitmap_are_corrupt(data: bytes) -> None:
    """Whatever they are; what does decode is sorted, and encodes to a bitmap that is equal."""
    check_decoding(data)


@given(
    sets | st.integers(0, 200_000).map(range),
    st.lists(st.tuples(st.integers(0, 2**20), st.integers(0, 255)), min_size=1, max_size=3),
    st.none() | st.integers(0, 2**20),
)
def test_a_damaged_bitmap_is_corrupt_or_another_bitmap(
    members: Any, damage: list[tuple[int, int]], end: int | None
) -> None:
    """Bytes changed and cut never crash the process, nor make a set that is out of order."""
    data = bytearray(encode_bitmap(bitmap_of(members)))
    for at, byte in damage:
        data[at % len(data)] = byte

    check_decoding(bytes(data[: None if end is None else end % len(data)]))


def check_decoding(data: bytes) -> None:
    """Decode data that may be no bitmap, and use what it decodes to."""
    try:
        decoded = decode_bitmap(data)
    except cs.CorruptRecordError:
        return

    first = BitMap64(list(decoded)[:1000]) if len(decoded) < 10**6 else decoded
    assert list(first) == sorted(set(first))
    assert decode_bitmap(encode_bitmap(decoded)) == decoded
    assert first <= decoded
    decoded.add(7)
    decoded.discard(8)


@given(st.lists(st.tuples(st.integers(0, 2**20), st.integers(0, 255)), min_size=1, max_size=3))
def test_a_damaged_record_is_corrupt_or_another_progress(damage: list[tuple[int, int]]) -> None:
    """Whatever bytes of its body are changed, no other error is raised and the sets are disjoint."""
    body = bytearray(envelope.encode_progress(cs.ForEachProgress(range(300), [301, 305])))
    for at, byte in damage:
        body[at % len(body)] = byte

    try:
        found = envelope.decode_progress(KEY, Record(Head(1, 0, 0, 0), bytes(body)))
    except cs.CorruptRecordError:
        return

    assert found.processed_indices.isdisjoint(found.failed_indices)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}\n",
        b"[]\n",
        b'{"layout":2,"last":0,"processed":0,"failed":0,"sizes":[8,8]}\n' + bytes(16),
        b'{"layout":1,"last":-1,"processed":0,"failed":0,"sizes":[8,8]}\n' + bytes(16),
        b'{"layout":1,"last":0,"processed":1,"failed":0,"sizes":[8,8]}\n' + bytes(16),
        b'{"layout":1,"last":0,"processed":0,"failed":0,"sizes":[8,9]}\n' + bytes(17),
        b'{"layout":1,"last":0,"processed":0,"failed":0,"sizes":[8]}\n' + bytes(8),
        b'{"layout":1,"last":0,"processed":0,"failed":0,"sizes":["a",{}]}\n' + bytes(16),
        b'{"layout":1,"last":0,"processed":-1,"failed":1,"sizes":[8,26]}\n'
        + bytes(8)
        + encode_bitmap(bitmap_of([1])),
        b'{"layout":1,"last":0,"processed":1,"failed":0,"sizes":[30,8]}\n'
        + encode_bitmap(BitMap64([2**64 - 1]))
        + bytes(8),
    ],
    ids=[
        "empty",
        "no fields",
        "a list",
        "layout",
        "last",
        "counts",
        "rest",
        "one size",
        "sizes",
        "failed only",
        "index",
    ],
)
def test_malformed_record_is_corrupt(body: bytes) -> None:
    """Of another layout, with other counts or sizes than it says, or with an index that cannot be."""
    with pytest.raises(cs.CorruptRecordError, match="progress 'f' step 0 cannot be read"):
        envelope.decode_progress(KEY, Record(Head(1, 0, 0, 0), body))


def test_equal_sets_are_not_a_change() -> None:
    """Three neighbours that were marked one by one are the three that were assigned as a range."""
    store = cs.MemoryStore()
    progress = cs.ForEachProgress(range(3), last_processed_index=2)
    store.save_for_each_progress("f", 0, progress)
    with store.begin() as session:
        found = session.get_for_each_progress("f", 0)
        assert found is not None
        found.processed_indices = ()
        for index in range(3):
            found.mark(index)

        assert session.dirty == ()
        found.mark(0, ok=False)
        assert session.dirty == (found,)


@pytest.mark.parametrize("bad", [True, -1, 2**63 - 1, HUGE, 1.0, "1", None])
def test_what_cannot_be_an_index_is_refused_and_changes_nothing(bad: Any) -> None:
    """Every way in refuses it with a `UsageError`, and the sets stay as they were."""
    ours = cs.ForEachProgress([1, 5], [7])

    for attempt in (
        lambda: ours.mark(bad),
        lambda: ours.mark(bad, ok=False),
        lambda: ours.pending(bad),
        lambda: ours.remaining(bad),
        lambda: ours.fraction(bad),
        lambda: setattr(ours, "processed_indices", [2, bad]),
        lambda: setattr(ours, "failed_indices", [2, bad]),
        lambda: setattr(ours, "last_processed_index", [bad]),
        lambda: cs.ForEachProgress([bad]),
        lambda: cs.ForEachProgress((), [bad]),
        lambda: ours.processed_indices | {bad},
    ):
        with pytest.raises(cs.UsageError, match="expected an int from 0"):
            attempt()

    assert bad not in ours.processed_indices
    assert (list(ours.processed_indices), list(ours.failed_indices)) == ([1, 5], [7])
    assert ours.last_processed_index is None


@pytest.mark.parametrize(
    "bad", [range(-1, 3), range(2**63 - 5, 2**63 + 5), range(2**62), range(0, 2**62, 2)]
)
def test_a_range_that_does_not_fit_is_refused(bad: range) -> None:
    """Below 0, beyond the limit, or so long that its bitmap would fill the memory."""
    with pytest.raises(cs.UsageError):
        cs.ForEachProgress(bad)


def test_large_sets_cost_little() -> None:
    """The first of many billions is found without the others, and a billion are a few kilobytes."""
    ours = cs.ForEachProgress(range(10**9))
    assert next(iter(ours.processed_indices)) == 0
    assert next(ours.pending(2**60)) == 10**9
    assert ours.remaining(10**9 + 5) == 5
    assert len(encode_bitmap(bitmap_of(range(10**9)))) < 250_000
    assert next(missing(bitmap_of([0]), 2**62)) == 1


@pytest.mark.parametrize("name", ["processed_indices", "failed_indices"])
def test_a_set_of_a_progress_cannot_be_changed(name: str) -> None:
    """It has nothing to change it with, and it is not a key; it shows what is marked later."""
    ours = cs.ForEachProgress([1], [2])
    view = getattr(ours, name)
    for method in ("add", "discard", "remove", "pop", "clear", "update", "__ior__"):
        assert not hasattr(view, method)

    with pytest.raises(TypeError):
        hash(view)

    ours.mark(9, ok=name == "processed_indices")
    assert 9 in view


def test_marking_while_iterating_over_a_set() -> None:
    """The iteration sees the indices that were there when it began."""
    ours = cs.ForEachProgress(range(5))
    seen = []
    for index in ours.processed_indices:
        seen.append(index)
        ours.mark(index, ok=False)
        ours.mark(index + 100_000)

    assert seen == [0, 1, 2, 3, 4]
    assert list(ours.failed_indices) == [0, 1, 2, 3, 4]


def test_an_assigned_set_is_copied() -> None:
    """Marking one progress does not change another that was made of its sets."""
    ours = cs.ForEachProgress([1], [2])
    other = cs.ForEachProgress(ours.processed_indices, ours.failed_indices)
    ours.mark(3)
    ours.mark(4, ok=False)
    assert (list(other.processed_indices), list(other.failed_indices)) == ([1], [2])


def test_repr_is_short() -> None:
    """One line with the first few indices and how many there are."""
    assert repr(indices()) == "<IndexSet of 0>"
    assert repr(indices([3, 4])) == "<IndexSet of 2: 3, 4>"
    assert len(repr(indices(range(0, 2_000, 2)))) < 100
    assert repr(cs.ForEachProgress([1], [2])) == "<ForEachProgress v0: 1 processed, 1 failed>"


@pytest.mark.parametrize("name", ["or_", "and_", "sub", "xor"])
def test_operators_need_a_set(name: str) -> None:
    """An operand that is not a set is a `TypeError`, as with the built-in set."""
    with pytest.raises(TypeError, match="unsupported operand"):
        getattr(operator, name)(indices([1]), 1)

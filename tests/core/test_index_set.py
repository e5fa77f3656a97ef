"""`IndexSet` against the built-in set."""

from __future__ import annotations

import copy
import operator
import pickle
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine
from hypothesis.stateful import invariant
from hypothesis.stateful import rule

from catga_store.errors import UsageError
from catga_store.model.index_set import IndexSet

HUGE = pytest.param(10**5000, id="huge")  # Python refuses to print it

small = st.integers(0, 30)  # dense, so that runs join and split
sets = st.sets(small | st.integers(0, 2**63 - 2))


class AgainstSet(RuleBasedStateMachine):
    """Every change is made to an `IndexSet` and to a `set`; both must stay the same."""

    def __init__(self) -> None:
        super().__init__()
        self.real = IndexSet()
        self.model: set[int] = set()

    @rule(index=small)
    def add(self, index: int) -> None:
        self.real.add(index)
        self.model.add(index)

    @rule(index=small)
    def discard(self, index: int) -> None:
        self.real.discard(index)
        self.model.discard(index)

    @rule(others=st.lists(st.sets(small), max_size=3), how=st.sampled_from([IndexSet, set, list]))
    def update(self, others: list[set[int]], how: Any) -> None:
        self.real.update(*map(how, others))
        self.model.update(*others)

    @rule(other=st.sets(small), name=st.sampled_from(["ior", "iand", "isub", "ixor"]))
    def in_place(self, other: set[int], name: str) -> None:
        operation = f"__{name}__"
        same = getattr(self.real, operation)(IndexSet(other))
        assert same is self.real
        getattr(self.model, operation)(other)

    @rule()
    def pop(self) -> None:
        if self.model:
            self.model.remove(self.real.pop())

    @rule()
    def clear(self) -> None:
        self.real.clear()
        self.model.clear()

    @rule(total=small, other=st.sets(small), another=st.sets(small))
    def missing(self, total: int, other: set[int], another: set[int]) -> None:
        answer = list(self.real.missing(total, IndexSet(other), IndexSet(another)))
        assert answer == sorted(set(range(total)) - self.model - other - another)

    @invariant()
    def same_members(self) -> None:
        assert list(self.real) == sorted(self.model)
        assert len(self.real) == len(self.model)
        assert self.real == self.model
        assert [index in self.real for index in range(-1, 33)] == [
            index in self.model for index in range(-1, 33)
        ]

    @invariant()
    def runs_are_as_few_as_can_be(self) -> None:
        runs = list(self.real.runs())
        assert all(start < stop for start, stop in runs)
        assert all(left[1] < right[0] for left, right in pairwise(runs))


TestAgainstSet = AgainstSet.TestCase


@given(sets, sets)
def test_operators_answer_what_set_answers(left: set[int], right: set[int]) -> None:
    """Union, intersection, difference and the comparisons agree with `set`, on either side."""
    for other in (IndexSet(right), right):
        ours = IndexSet(left)
        assert ours | other == left | right
        assert ours & other == left & right
        assert ours - other == left - right
        assert ours ^ other == left ^ right
        assert (ours == other) == (left == right)
        assert (ours <= other) == (left <= right)
        assert (ours > other) == (left > right)
        assert ours.isdisjoint(other) == left.isdisjoint(right)
        assert ours == left

    assert left | IndexSet(right) == left | right
    assert left & IndexSet(right) == left & right
    assert left - IndexSet(right) == left - right


@given(sets)
def test_runs_rebuild_the_same_set(indices: set[int]) -> None:
    """`from_runs(runs())` equals the set, and so do its copies and its pickle."""
    ours = IndexSet(indices)
    assert IndexSet.from_runs(ours.runs()) == ours
    assert pickle.loads(pickle.dumps(ours)) == ours
    assert copy.deepcopy(ours) == ours


@pytest.mark.parametrize("make", [IndexSet.copy, copy.copy, IndexSet])
def test_a_copy_is_independent(make: Any) -> None:
    """Changing a copy leaves the original as it was."""
    ours = IndexSet([1, 2, 3])
    other = make(ours)
    other.discard(2)
    other.add(9)
    assert ours == {1, 2, 3}


@pytest.mark.parametrize(
    "runs",
    [
        [(0, 0)],
        [(2, 1)],
        [(0, 1), (1, 2)],
        [(0, 5), (3, 9)],
        [(5, 6), (0, 1)],
        [(-1, 3)],
        [(0, 2**63)],
        [(0, True)],
        [(False, 2)],
        [(0, 2.0)],
        [("0", 2)],
    ],
)
def test_runs_of_another_form_are_refused(runs: Any) -> None:
    """Runs that are empty, overlap, touch, descend, leave the range or are no ints make no set."""
    with pytest.raises(UsageError):
        IndexSet.from_runs(runs)


@pytest.mark.parametrize("bad", [True, -1, 2**63 - 1, HUGE, 1.0, "1", None])
def test_what_can_be_no_index_is_refused_and_changes_nothing(bad: Any) -> None:
    """Every way in refuses it with a `UsageError`, and the set stays as it was."""
    ours = IndexSet([1, 5])

    for attempt in (
        lambda: ours.add(bad),
        lambda: ours.discard(bad),
        lambda: ours.update([2, 3], [4, bad]),
        lambda: ours.missing(bad),
        lambda: IndexSet([bad]),
    ):
        with pytest.raises(UsageError, match="must be an int from 0"):
            attempt()

    assert bad not in ours
    assert list(ours) == [1, 5]


def test_ranges_outside_the_indices_are_refused() -> None:
    """A range below 0 or beyond the limit makes no set, though it is never walked through."""
    for bad in (range(-1, 3), range(2**63 - 5, 2**63 + 5)):
        with pytest.raises(UsageError):
            IndexSet(bad)


def test_the_largest_set_has_a_length() -> None:
    """All indices there can be are one run, and `len` can say how many they are."""
    everything = IndexSet(range(2**63 - 1))
    assert len(everything) == 2**63 - 1
    assert list(everything.missing(2**63 - 2)) == []


def test_a_million_indices_in_order_are_one_run() -> None:
    """However many indices are added in order, there is one run."""
    ours = IndexSet()

    for index in range(1_000_000):
        ours.add(index)

    assert list(ours.runs()) == [(0, 1_000_000)]
    assert len(ours) == 1_000_000


def test_missing_and_iteration_are_lazy() -> None:
    """The first answer out of many trillions comes without the others."""
    ours = IndexSet(range(2**40))
    assert next(iter(ours)) == 0
    assert next(ours.missing(2**60)) == 2**40


def test_a_set_may_change_while_it_is_iterated() -> None:
    """Marking what `missing` answers, as a worker does, neither skips nor repeats an index."""
    ours = IndexSet([3])
    seen = []

    for index in ours.missing(6):
        seen.append(index)
        ours.add(index)

    assert seen == [0, 1, 2, 4, 5]

    for index in ours:
        ours.discard(index)

    assert not ours


def test_repr_is_short() -> None:
    """`repr` shows runs with both ends included, and stays one line however many there are."""
    assert repr(IndexSet()) == "IndexSet()"
    assert repr(IndexSet([*range(1_000_000), 1_000_005])) == "IndexSet(0..999999, 1000005)"
    assert repr(IndexSet([3, 4])) == "IndexSet(3..4)"
    assert len(repr(IndexSet(range(0, 2_000, 2)))) < 100
    assert repr(IndexSet(range(0, 2_000, 2))).endswith("… 1000 indices in 1000 runs)")


def test_an_index_set_has_no_hash() -> None:
    """It is mutable, so it can be no key."""
    with pytest.raises(TypeError):
        hash(IndexSet())


@pytest.mark.parametrize("name", ["or_", "and_", "sub", "xor"])
def test_operators_want_a_set(name: str) -> None:
    """An operand that is no set is a `TypeError`, as with the built-in set."""
    with pytest.raises(TypeError, match="unsupported operand"):
        getattr(operator, name)(IndexSet([1]), 1)


def test_what_is_made_of_nothing_is_empty() -> None:
    """No index, an empty range and no runs make the same empty set."""
    assert IndexSet() == IndexSet(range(5, 5)) == IndexSet.from_runs([]) == set()

"""`IndexSet`: a set of ints that costs as much as it has runs, not as much as it has members."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import MutableSet
from collections.abc import Set as AbstractSet
from typing import Any
from typing import Self

from catga_store.errors import UsageError
from catga_store.protocol.keys import show_int

__all__ = ["IndexSet"]

_LIMIT = 2**63 - 1  # indices stay below it, so that `len` of any set fits what Python allows
_SHOWN_RUNS = 8


class IndexSet(MutableSet[int]):
    """A mutable set of ints from 0 up, kept as ascending runs of neighbours.

    A million indices added in order are one run. `add`, `discard` and `in` take O(log runs), `len`
    O(1), union, intersection and difference with another `IndexSet` O(runs). It may be changed
    while it is iterated: the iterator answers what was there when it was made. What can be no
    index (a bool, a negative int, 2**63 - 1 or more, not an int) is a `UsageError` and changes
    nothing.

    >>> done = IndexSet(range(1_000_000))
    >>> done.add(1_000_005)
    >>> done
    IndexSet(0..999999, 1000005)
    >>> list(done.runs())
    [(0, 1000000), (1000005, 1000006)]
    """

    __hash__ = None  # type: ignore[assignment]  # a mutable set is no key; typeshed has no word for it
    __slots__ = ("_ends", "_size", "_starts")

    # Run k holds _starts[k] <= index < _ends[k]. Runs ascend and never touch:
    # _ends[k] < _starts[k + 1]. Equal sets therefore have equal lists.
    _starts: list[int]
    _ends: list[int]
    _size: int

    def __init__(self, indices: Iterable[int] = ()) -> None:
        """Hold `indices`, in whatever order and however often they come."""
        self._starts = []
        self._ends = []
        self._size = 0

        if isinstance(indices, IndexSet):
            self._take(indices.runs())
        elif isinstance(indices, range) and indices.step == 1:
            if indices:
                _check(indices[0])
                _check(indices[-1])
                self._take([(indices.start, indices.stop)])
        else:
            for index in indices:
                self.add(index)

    @classmethod
    def from_runs(cls, runs: Iterable[tuple[int, int]]) -> IndexSet:
        """Build a set of what `runs` answered: pairs of first index and index after the last.

        The runs must ascend, be non-empty and not touch, so that a set has one form only; else
        `UsageError`.

        >>> IndexSet.from_runs([(0, 3), (7, 8)])
        IndexSet(0..2, 7)
        """
        result = cls()
        free = 0

        for first, after in runs:
            start, stop = _check(first), _check(after, top=_LIMIT)

            if start < free or start >= stop:
                message = (
                    f"run ({start}, {stop}) does not fit: a run starts at {free} or later and ends "
                    "after its start; no set was made"
                )
                raise UsageError(message)

            result._starts.append(start)
            result._ends.append(stop)
            result._size += stop - start
            free = stop + 1

        return result

    def runs(self) -> Iterator[tuple[int, int]]:
        """Answer the runs as of now, ascending: (first index, index after the last)."""
        return zip(self._starts.copy(), self._ends.copy(), strict=True)

    def copy(self) -> IndexSet:
        """Answer another set with the same indices."""
        return IndexSet(self)

    __copy__ = copy  # the default would share the lists

    # --- one index -------------------------------------------------------------------------------

    def add(self, value: int) -> None:
        """Put an index in; if it is there already, do nothing."""
        if type(value) is not int or not 0 <= value < _LIMIT:
            value = _check(value)

        starts, ends = self._starts, self._ends

        if ends and ends[-1] == value:  # in order, by far the most frequent
            ends[-1] = value + 1
            self._size += 1
            return

        at = bisect_right(starts, value)  # the first run that starts after `value`

        if at and value < ends[at - 1]:
            return

        joins_left = at > 0 and ends[at - 1] == value
        joins_right = at < len(starts) and starts[at] == value + 1

        if joins_left and joins_right:
            ends[at - 1] = ends[at]
            del starts[at], ends[at]
        elif joins_left:
            ends[at - 1] = value + 1
        elif joins_right:
            starts[at] = value
        else:
            starts.insert(at, value)
            ends.insert(at, value + 1)

        self._size += 1

    def discard(self, value: int) -> None:
        """Take an index out; if it is not there, do nothing."""
        value = _check(value)
        starts, ends = self._starts, self._ends
        at = bisect_right(starts, value) - 1

        if at < 0 or value >= ends[at]:
            return

        start, end = starts[at], ends[at]

        if start == value and end == value + 1:
            del starts[at], ends[at]
        elif start == value:
            starts[at] = value + 1
        elif end == value + 1:
            ends[at] = value
        else:
            ends[at] = value
            starts.insert(at + 1, value + 1)
            ends.insert(at + 1, end)

        self._size -= 1

    def __contains__(self, value: object) -> bool:
        """Say whether an index is in the set; what can be no index never is."""
        if not isinstance(value, int) or isinstance(value, bool):
            return False

        at = bisect_right(self._starts, value)
        return at > 0 and value < self._ends[at - 1]

    # --- all of them -----------------------------------------------------------------------------

    def __len__(self) -> int:
        """Count the indices, in O(1)."""
        return self._size

    def __iter__(self) -> Iterator[int]:
        """Answer the indices as of now, ascending, one at a time."""
        return _spread(self.runs())

    def missing(self, total: int, *others: IndexSet) -> Iterator[int]:
        """Answer the indices below `total` in neither this set nor `others`, as of now, ascending.

        Lazy, O(runs + answers). What is answered may be added to any of the sets meanwhile.

        >>> list(IndexSet([0, 1, 4]).missing(7, IndexSet([5])))
        [2, 3, 6]
        """
        total = _check(total, "total")
        taken = sorted(run for each in (self, *others) for run in each.runs())
        return _spread(_gaps(taken, total))

    def update(self, *others: Iterable[int]) -> None:
        """Put all indices of `others` in: all of them, or none if one can be no index."""
        for other in [each if isinstance(each, IndexSet) else IndexSet(each) for each in others]:
            self._take([*self.runs(), *other.runs()])

    def clear(self) -> None:
        """Take every index out."""
        self._take([])

    def __or__(self, other: AbstractSet[Any]) -> IndexSet:
        """Answer the union, in O(runs)."""
        if not isinstance(other, AbstractSet):
            return NotImplemented

        result = self.copy()
        result.update(other)
        return result

    __ror__ = __or__

    def __ior__(self, other: AbstractSet[Any]) -> Self:
        """Put all of `other` in; see `update`."""
        self.update(other)
        return self

    def __and__(self, other: AbstractSet[Any]) -> IndexSet:
        """Answer the intersection, in O(runs) when both are index sets."""
        if isinstance(other, IndexSet):
            return IndexSet.from_runs(_common(self.runs(), other.runs()))

        if isinstance(other, AbstractSet):
            return IndexSet(index for index in other if index in self)

        return NotImplemented

    __rand__ = __and__

    def __sub__(self, other: AbstractSet[Any]) -> IndexSet:
        """Answer what is here and not in `other`, in O(runs) when both are index sets."""
        if isinstance(other, IndexSet):
            return IndexSet.from_runs(_common(self.runs(), _gaps(other.runs(), _LIMIT)))

        if isinstance(other, AbstractSet):
            return IndexSet(index for index in self if index not in other)

        return NotImplemented

    def __eq__(self, other: object) -> bool:
        """Say whether `other` is a set of any kind with the same members."""
        if isinstance(other, IndexSet):
            return self._starts == other._starts and self._ends == other._ends

        return super().__eq__(other)

    def __repr__(self) -> str:
        """Show the first few runs, the last index of each included, and how much there is."""
        shown = [
            f"{start}" if end == start + 1 else f"{start}..{end - 1}"
            for start, end in zip(self._starts[:_SHOWN_RUNS], self._ends, strict=False)
        ]

        if len(self._starts) > _SHOWN_RUNS:
            shown.append(f"… {self._size} indices in {len(self._starts)} runs")

        return f"IndexSet({', '.join(shown)})"

    def _take(self, runs: Iterable[tuple[int, int]]) -> None:
        """Hold exactly what `runs` cover; they may overlap, touch and come in any order."""
        starts: list[int] = []
        ends: list[int] = []

        for start, end in sorted(runs):  # linear when it is a few sorted lists one after the other
            if ends and start <= ends[-1]:
                ends[-1] = max(ends[-1], end)
            else:
                starts.append(start)
                ends.append(end)

        self._starts = starts
        self._ends = ends
        self._size = sum(ends) - sum(starts)


def _spread(runs: Iterable[tuple[int, int]]) -> Iterator[int]:
    for start, end in runs:
        yield from range(start, end)


def _gaps(runs: Iterable[tuple[int, int]], stop: int) -> Iterator[tuple[int, int]]:
    """Answer what sorted `runs`, which may overlap, leave free below `stop`."""
    free = 0

    for start, end in runs:
        if start >= stop:
            break

        if start > free:
            yield free, start

        free = max(free, end)

    if free < stop:
        yield free, stop


def _common(
    ours: Iterator[tuple[int, int]], theirs: Iterator[tuple[int, int]]
) -> Iterator[tuple[int, int]]:
    """Answer what both lists of ascending runs cover."""
    ended = (_LIMIT, _LIMIT)
    our, their = next(ours, ended), next(theirs, ended)

    while our is not ended and their is not ended:
        start, end = max(our[0], their[0]), min(our[1], their[1])

        if start < end:
            yield start, end

        if our[1] <= their[1]:
            our = next(ours, ended)
        else:
            their = next(theirs, ended)


def _check(value: object, what: str = "index", top: int = _LIMIT - 1) -> int:
    """Answer `value` as a plain int if it is one from 0 to `top`."""
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= top:
        return int(value)

    found = show_int(value)
    message = f"{what} is {found}; it must be an int from 0 to 2**63 - 2; nothing was changed"
    raise UsageError(message)

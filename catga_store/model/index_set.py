"""Sets of item indices: bitmaps inside, and what users see of them.

The bitmaps are those of pyroaring, imported on first use. An index is an int from 0 to 2**63 - 2,
so that `len` of any set fits what Python allows.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from itertools import islice
from typing import TYPE_CHECKING
from typing import Any

from catga_store.errors import UsageError
from catga_store.protocol.keys import show_int

if TYPE_CHECKING:
    from pyroaring import BitMap64

__all__ = ["LAST_INDEX", "IndexSet", "bitmap_of", "check_index", "missing"]

LAST_INDEX = 2**63 - 2

_LONGEST_RANGE = 2**36  # a single `range` of this length takes 200 MB of memory
_WINDOW = 2**20
_SHOWN = 8


class IndexSet(AbstractSet[int]):
    """A read-only view of a set of indices; it shows what is in the set now, in ascending order.

    `in` and `len` cost less than a microsecond. Iterating shows the set as it was when the
    iteration began. Operators return new sets; with another `IndexSet` they work on bitmaps, not
    on members.

    >>> import catga_store as cs
    >>> progress = cs.ForEachProgress(range(1_000_000))
    >>> progress.processed_indices
    <IndexSet of 1000000: 0, 1, 2, 3, 4, 5, 6, 7, …>
    >>> list(progress.processed_indices & {7, 3, 5_000_000})
    [3, 7]
    """

    __hash__ = None  # type: ignore[assignment]  # it may change; typeshed has no word for it
    __slots__ = ("_bitmap", "_without")

    def __init__(self, bitmap: BitMap64, without: BitMap64 | None = None) -> None:
        """Show `bitmap`, except what is in `without`, a part of it; neither is copied."""
        self._bitmap = bitmap
        self._without = without

    @classmethod
    def _from_iterable(cls, it: Iterable[Any]) -> IndexSet:  # type: ignore[override]  # for the operators of `Set`
        return cls(bitmap_of(it))

    def to_bitmap(self) -> BitMap64:
        """Return a new bitmap of what is in the set now."""
        return self._bitmap.copy() if self._without is None else self._bitmap - self._without

    def __contains__(self, value: object) -> bool:
        """Whether an index is in the set; what cannot be an index never is."""
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= LAST_INDEX:
            return False

        return value in self._bitmap and (self._without is None or value not in self._without)

    def __iter__(self) -> Iterator[int]:
        """Iterate over the indices as of now."""
        return iter(self.to_bitmap())  # a bitmap that changes under its iterator is a crash

    def __len__(self) -> int:
        """How many indices there are."""
        return len(self._bitmap) - (0 if self._without is None else len(self._without))

    def __eq__(self, other: object) -> bool:
        """Whether `other` is a set of any kind with the same members."""
        if isinstance(other, IndexSet):
            return self.to_bitmap() == other.to_bitmap()

        return super().__eq__(other)

    def __and__(self, other: AbstractSet[Any]) -> IndexSet:
        """Return the intersection."""
        if isinstance(other, IndexSet):
            return IndexSet(self.to_bitmap() & other.to_bitmap())

        if isinstance(other, AbstractSet):
            return self._from_iterable(index for index in other if index in self)

        return NotImplemented

    __rand__ = __and__

    def __or__(self, other: AbstractSet[Any]) -> IndexSet:
        """Return the union; `UsageError` if a member of `other` cannot be an index."""
        if isinstance(other, AbstractSet):
            return IndexSet(self.to_bitmap() | bitmap_of(other))

        return NotImplemented

    __ror__ = __or__

    def __sub__(self, other: AbstractSet[Any]) -> IndexSet:
        """Return the indices that are not in `other`."""
        if isinstance(other, AbstractSet):
            return IndexSet(self.to_bitmap() - (self & other).to_bitmap())

        return NotImplemented

    def __repr__(self) -> str:
        shown = [str(index) for index in islice(self, _SHOWN)]
        if len(self) > _SHOWN:
            shown.append("…")

        return f"<IndexSet of {len(self)}: {', '.join(shown)}>" if shown else "<IndexSet of 0>"


def bitmap_of(indices: Iterable[int]) -> BitMap64:
    """Return a new bitmap of `indices`; `UsageError` if one of them cannot be an index."""
    from pyroaring import BitMap64

    if isinstance(indices, IndexSet):
        return indices.to_bitmap()

    if isinstance(indices, range) and indices:
        check_index(indices[0])
        check_index(indices[-1])
        if len(indices) > _LONGEST_RANGE:
            message = (
                f"{indices!r} has {len(indices)} indices, but at most 2**36 are allowed at "
                "once; nothing was changed"
            )
            raise UsageError(message)

        if indices.step == 1:
            return BitMap64(indices)

    return BitMap64([check_index(index) for index in indices])


def missing(bitmap: BitMap64, total: int) -> Iterator[int]:
    """Iterate over the indices below `total` that are not in `bitmap`, ascending and lazily.

    The bitmap is consumed: pass one that is not used elsewhere.
    """
    from pyroaring import BitMap64

    for start in range(0, total, _WINDOW):
        stop = min(start + _WINDOW, total)
        if not bitmap.contains_range(start, stop):
            yield from BitMap64(range(start, stop)) - bitmap
            bitmap.remove_range(0, stop)  # else each difference would pass over it again


def check_index(value: object, what: str = "index") -> int:
    """Return `value` as a plain int if it is one from 0 to 2**63 - 2, else raise `UsageError`."""
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= LAST_INDEX:
        return int(value)

    message = (
        f"{what}: expected an int from 0 to 2**63 - 2, got {show_int(value)}; nothing was changed"
    )
    raise UsageError(message)

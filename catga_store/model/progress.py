"""ForEach progress: which items of a step are done."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from datetime import datetime
from typing import TYPE_CHECKING

from attrs import define
from attrs import field

from catga_store.errors import UsageError
from catga_store.model.index_set import LAST_INDEX
from catga_store.model.index_set import IndexSet
from catga_store.model.index_set import bitmap_of
from catga_store.model.index_set import check_index
from catga_store.model.index_set import missing
from catga_store.model.times import from_ms
from catga_store.protocol.keys import Key
from catga_store.protocol.masking import shown
from catga_store.protocol.requests import Record

if TYPE_CHECKING:
    from pyroaring import BitMap64


def _last_index(value: int | None) -> int | None:
    return None if value is None else check_index(value)


def _bitmap(indices: Iterable[int]) -> BitMap64:
    if isinstance(indices, str | bytes) or not isinstance(indices, Iterable):
        message = f"ForEachProgress: expected a collection of ints as indices, got {shown(indices)}"
        raise UsageError(message)

    return bitmap_of(indices)


def _check_disjoint(one: BitMap64, other: BitMap64) -> None:
    if not one.isdisjoint(other):
        message = f"index {(one & other).min()} cannot be both processed and failed"
        raise UsageError(message)


@define(eq=False, repr=False, init=False)
class ForEachProgress:
    """A record of which items of a ForEach step have been processed or have failed, stored as bitmaps.

    `last_processed_index` is the index of the item that was marked last. The record of a million items takes
    0.4 KiB if the items were marked in order and none failed, and 125 KiB if a random tenth of them failed.
    Marking an item takes less than a microsecond, but saving writes the whole record, so mark many items
    before you save.

    >>> progress = ForEachProgress()
    >>> for index in range(5):
    ...     progress.mark(index, ok=index != 3)
    >>> progress.total_processed, list(progress.failed_indices), list(progress.pending(7))
    (5, [3], [5, 6])
    """

    _marked: BitMap64  # what was marked, failed items included: a few runs, if marked in order
    _failed: BitMap64  # a part of it
    last_processed_index: int | None = field(converter=_last_index)
    _loaded: Record | None
    _session: object | None
    _key: Key | None

    def __init__(
        self,
        processed_indices: Iterable[int] = (),
        failed_indices: Iterable[int] = (),
        *,
        last_processed_index: int | None = None,
    ) -> None:
        """Start with the items that were already marked, if any; an index must not be in both collections."""
        processed, failed = _bitmap(processed_indices), _bitmap(failed_indices)
        _check_disjoint(processed, failed)
        self._marked, self._failed = processed | failed, failed
        self.last_processed_index = last_processed_index
        self._loaded = None
        self._session = None
        self._key = None

    @property
    def processed_indices(self) -> AbstractSet[int]:
        """The indices of the items that succeeded, as a read-only view; assign a collection to replace them."""
        return IndexSet(self._marked, self._failed)

    @processed_indices.setter
    def processed_indices(self, indices: Iterable[int]) -> None:
        processed = _bitmap(indices)
        _check_disjoint(processed, self._failed)
        self._marked = processed | self._failed

    @property
    def failed_indices(self) -> AbstractSet[int]:
        """The indices of the items that failed, as a read-only view; assign a collection to replace them."""
        return IndexSet(self._failed)

    @failed_indices.setter
    def failed_indices(self, indices: Iterable[int]) -> None:
        failed, processed = _bitmap(indices), self._marked - self._failed
        _check_disjoint(failed, processed)
        self._marked, self._failed = processed | failed, failed

    @property
    def version(self) -> int:
        """The version of the progress: 0 before the first write, then 1, 2, 3 and so on."""
        return 0 if self._loaded is None else self._loaded.head.version

    @property
    def revision(self) -> str | None:
        """A string that identifies one write of this progress; `None` before the first write.

        A revision is never used again.
        """
        return None if self._loaded is None else self._loaded.head.revision

    @property
    def created_at(self) -> datetime | None:
        """The time of the first write; `None` before the first write."""
        return None if self._loaded is None else from_ms(self._loaded.head.created_ms)

    @property
    def updated_at(self) -> datetime | None:
        """The time of the last write; `None` before the first write."""
        return None if self._loaded is None else from_ms(self._loaded.head.updated_ms)

    @property
    def total_processed(self) -> int:
        """The number of items that were marked, whether as processed or as failed."""
        return len(self._marked)

    def mark(self, index: int, ok: bool = True) -> None:  # noqa: FBT001, FBT002  the contract's signature
        """Mark item `index` (from 0) as processed, or as failed if `ok` is `False`; a new mark replaces an earlier one.

        Takes less than a microsecond, however many items are marked.
        """
        if type(index) is not int or not 0 <= index <= LAST_INDEX:
            index = check_index(index)

        if ok:  # first, because it may raise
            self._failed.discard(index)
        else:
            self._failed.add(index)

        self._marked.add(index)
        object.__setattr__(self, "last_processed_index", index)  # checked above

    def pending(self, total: int) -> Iterator[int]:
        """Iterate, in ascending order, over the indices below `total` that are not marked at the time of the call."""
        return missing(self._marked.copy(), check_index(total, "total"))

    def remaining(self, total: int) -> int:
        """Return the number of items, out of `total`, that are not marked yet."""
        total = check_index(total, "total")
        return total - self._marked.range_cardinality(0, total)

    def fraction(self, total: int) -> float:
        """Return the fraction of `total` items that are marked, from 0.0 to 1.0; 1.0 if `total` is 0.

        >>> progress = ForEachProgress(range(30), [31])
        >>> progress.remaining(40), progress.fraction(40)
        (9, 0.775)
        """
        left = self.remaining(total)
        return 1.0 - left / total if total else 1.0

    def merge(self, other: ForEachProgress) -> ForEachProgress:
        """Add the items that `other` has marked, and return this object.

        An item that failed in one object and was processed in the other counts as processed, because it was
        tried again.
        """
        if type(other) is not ForEachProgress:
            message = f"merge: expected a ForEachProgress, got {shown(other)}"
            raise UsageError(message)

        processed = (self._marked - self._failed) | (other._marked - other._failed)
        self._marked = self._marked | other._marked
        self._failed = self._marked - processed
        if other.last_processed_index is not None:
            self.last_processed_index = other.last_processed_index

        return self

    def __repr__(self) -> str:
        return (
            f"<ForEachProgress v{self.version}: {len(self.processed_indices)} processed,"
            f" {len(self._failed)} failed>"
        )

"""ForEach progress: which items of a step are done."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from typing import Any

from attrs import Attribute
from attrs import define
from attrs import field

from catga_store.errors import UsageError
from catga_store.model.index_set import IndexSet
from catga_store.protocol.keys import Key
from catga_store.protocol.requests import Record


def _last_index(value: int | None) -> int | None:
    return None if value is None else next(iter(IndexSet([value])))


def _index_set(value: Iterable[int]) -> IndexSet:
    if isinstance(value, str | bytes) or not isinstance(value, Iterable):
        message = f"the indices of a progress must be a collection of ints, not {value!r}"
        raise UsageError(message)

    return IndexSet(value)


_OTHERS = {"processed_indices": "failed_indices", "failed_indices": "processed_indices"}


def _disjoint(progress: ForEachProgress, attribute: Attribute[Any], value: IndexSet) -> None:
    if value & getattr(progress, _OTHERS[attribute.name]):
        message = "an index cannot be both processed and failed"
        raise UsageError(message)


@define(eq=False, repr=False)
class ForEachProgress:
    """Which items of a ForEach step are done, kept as runs: in order, a million cost one.

    >>> progress = ForEachProgress()
    >>> for index in range(5):
    ...     progress.mark(index, ok=index != 3)
    >>> progress.total_processed, list(progress.failed_indices), list(progress.pending(7))
    (5, [3], [5, 6])
    """

    processed_indices: AbstractSet[int] = field(
        factory=IndexSet, converter=_index_set, validator=_disjoint
    )
    failed_indices: AbstractSet[int] = field(
        factory=IndexSet, converter=_index_set, validator=_disjoint
    )
    last_processed_index: int | None = field(default=None, converter=_last_index, kw_only=True)
    _loaded: Record | None = field(default=None, init=False)
    _session: object | None = field(default=None, init=False)
    _key: Key | None = field(default=None, init=False)

    @property
    def version(self) -> int:
        """0 before the first write, then 1, 2, 3 and so on."""
        return 0 if self._loaded is None else self._loaded.head.version

    @property
    def revision(self) -> str | None:
        """Names this write of this record for ever; `None` before the first."""
        return None if self._loaded is None else self._loaded.head.revision

    @property
    def total_processed(self) -> int:
        """How many items were marked, processed and failed together."""
        return len(self.processed_indices) + len(self.failed_indices)

    def mark(self, index: int, ok: bool = True) -> None:  # noqa: FBT001, FBT002  the contract's signature
        """Put item `index` (from 0) among the processed, or the failed, and not among the others.

        Costs O(log runs).
        """
        to, out_of = self._sets() if ok else self._sets()[::-1]
        to.add(index)
        out_of.discard(index)
        self.last_processed_index = index

    def pending(self, total: int) -> Iterator[int]:
        """The indices below `total` that are in neither set, ascending."""
        processed, failed = self._sets()
        return processed.missing(total, failed)

    def merge(self, other: ForEachProgress) -> ForEachProgress:
        """Take in what `other` has marked; answers this object.

        An item that failed here and was processed there is processed: somebody tried again.
        """
        processed, failed = self._sets()
        if type(other) is not ForEachProgress:
            message = f"a ForEachProgress is merged with another one, not with {other!r}"
            raise UsageError(message)

        processed.update(other.processed_indices)
        failed.update(other.failed_indices)
        self.failed_indices = failed - processed

        if other.last_processed_index is not None:
            self.last_processed_index = other.last_processed_index

        return self

    def _sets(self) -> tuple[IndexSet, IndexSet]:
        processed, failed = self.processed_indices, self.failed_indices
        assert isinstance(processed, IndexSet), "whatever is set is made one"
        assert isinstance(failed, IndexSet), "as above"
        return processed, failed

    def __repr__(self) -> str:
        return (
            f"<ForEachProgress v{self.version}: {len(self.processed_indices)} processed,"
            f" {len(self.failed_indices)} failed>"
        )

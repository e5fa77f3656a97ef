"""Pages of listings, and how long ended records are kept."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Generic
from typing import TypeVar

from attrs import field
from attrs import frozen

from catga_store.model.times import MS
from catga_store.model.times import span_ms

T = TypeVar("T")


@frozen
class Page(Generic[T]):
    """One page of a listing. Pass its `cursor` to get the next page; on the last page, the cursor is `None`."""

    items: tuple[T, ...]
    cursor: str | None

    def __iter__(self) -> Iterator[T]:
        return iter(self.items)

    def __len__(self) -> int:
        return len(self.items)


def _kept(value: timedelta | None) -> timedelta | None:
    return None if value is None else span_ms(value, "retention") * MS


@frozen(kw_only=True)
class Retention:
    """How long records that have ended are kept; `None` means forever. Live records do not expire by themselves.

    `flows` applies to completed and cancelled flows, and `failed` applies to failed flows. Both count from
    the last write (not from a write by `tag` or `rewrap`), and neither applies to a flow whose `expires_at`
    was set. `waits` applies to wait conditions that have ended, from the time when they ended and a worker
    has claimed their parent. It also applies to completions whose condition has not been set, from the time
    of the latest of these completions.
    """

    flows: timedelta | None = field(default=timedelta(days=7), converter=_kept)
    failed: timedelta | None = field(default=timedelta(days=30), converter=_kept)
    waits: timedelta | None = field(default=timedelta(days=1), converter=_kept)

"""`rewrap`: what a store keeps, written again through its codecs and under its current key."""

from __future__ import annotations

from collections.abc import Callable

from attrs import evolve
from attrs import frozen

from catga_store.core import rewrapping
from catga_store.core.bodies import Bodies
from catga_store.errors import UsageError
from catga_store.protocol.keys import FLOW
from catga_store.protocol.keys import PART
from catga_store.protocol.keys import PROGRESS
from catga_store.protocol.keys import WAIT
from catga_store.protocol.masking import shown
from catga_store.store import Store

__all__ = ["RewrapReport", "count_bodies", "rewrap"]

_KINDS = (FLOW, PART, PROGRESS, WAIT)
_MOST_PASSES = 8
_COUNTED, _COUNTED_BYTES = 10_000, 64 * 1024 * 1024


@frozen
class RewrapReport:
    """What `rewrap` has written, and what its last pass over the store has found."""

    rewritten: int = 0
    """The number of records that were written."""
    current: int = 0
    """The number of records that the last pass found to be current: they are stored as they would be written now."""
    unreadable: int = 0
    """The number of records that could not be decoded: their key or codec is missing, or they were altered."""
    claimed: int = 0
    """The number of flows that are claimed and were left to their owners, which write them when they continue."""
    pending: int = 0
    """The number of results whose condition has not been set yet; they are not written until it is set."""
    conflicts: int = 0
    """The number of records that another client has written in the meantime."""

    @property
    def left(self) -> int:
        """The number of records that are not stored as they would be written now."""
        return self.unreadable + self.claimed + self.pending + self.conflicts


def rewrap(
    store: Store, *, on_progress: Callable[[RewrapReport], object] | None = None
) -> RewrapReport:
    """Write every body again that is not stored with the codecs and the current key of the store.

    Use this function to rotate a key, or to compress or encrypt data that is already stored (with
    `accept_plain=True`). Bodies that are current are only read, so after an error, you can call the function
    again to continue. Each page of 100 records takes at least one commit. `on_progress` is called after each
    page with the report so far.

    Other clients can use the store in the meantime. The records that they write are left alone. Each record
    that this function writes gets a new version, with the same content and times, so a client that has read
    the record before may get a conflict when it writes the record. Claimed flows are left to their owners.
    Log entries and earlier versions of flows keep their versions. When a flow is written again, the version
    that is replaced is not added to its history.

    The function makes up to eight passes over the store, until a pass finds nothing to write. If every body
    is then current, the report's `left` is 0.

    Raises `UsageError` if `store` is not a blocking store with codecs, and all errors that the operations of
    the store raise.

    >>> from catga_store import FlowSnapshot, MemoryStore, Zstd
    >>> before = MemoryStore("rewrapped")
    >>> before.create(FlowSnapshot("order-1", state={"text": "paid " * 1000}))
    >>> rewrap(MemoryStore("rewrapped", codecs=[Zstd()])).rewritten
    1
    """
    bodies = _bodies_of(store)
    given: object = on_progress
    if given is not None and not callable(given):
        message = f"on_progress: expected a function or None, got {shown(given)}"
        raise UsageError(message)

    report = RewrapReport()
    for _ in range(_MOST_PASSES):
        before = report.rewritten
        report = _pass(store, bodies, RewrapReport(rewritten=before), on_progress)
        if report.rewritten == before and not report.conflicts:
            break

    return report


def _bodies_of(store: Store) -> Bodies:
    given: object = store
    bodies = store._bodies if isinstance(given, Store) else None  # noqa: SLF001  both APIs' own
    if bodies is None:
        message = f"rewrap: expected a blocking Store with codecs, got {shown(given)}; nothing was written"
        raise UsageError(message)

    return bodies


def _pass(
    store: Store,
    bodies: Bodies,
    report: RewrapReport,
    on_progress: Callable[[RewrapReport], object] | None,
) -> RewrapReport:
    for kind in _KINDS:
        after = None
        while True:
            conversation = rewrapping.rewrap_page(store._context, bodies, kind, after)  # noqa: SLF001  as above
            page = store._run(conversation)  # noqa: SLF001  as above
            if page.last is None:
                break

            after = page.last
            report = evolve(
                report,
                rewritten=report.rewritten + page.rewritten,
                current=report.current + page.current,
                unreadable=report.unreadable + page.unreadable,
                claimed=report.claimed + page.claimed,
                pending=report.pending + page.pending,
                conflicts=report.conflicts + page.conflicts,
            )
            if on_progress is not None:
                on_progress(report)

    return report


def count_bodies(store: Store) -> tuple[dict[str | None, int], bool]:
    """Count stored bodies by their codecs and keys, as in `zstd,aes256gcm=2026-11`; `None`: as they are.

    Reads up to 10,000 bodies, or 64 MiB; also returns whether those were all.
    """
    counts: dict[str | None, int] = {}
    size = 0
    through = store._bodies is not None  # noqa: SLF001  as above
    for kind in _KINDS:
        after = None
        while True:
            conversation = rewrapping.count_page(store._context, kind, after, through=through)  # noqa: SLF001  as above
            after, more, read = store._run(conversation)  # noqa: SLF001  as above
            if after is None:
                break

            for trail, number in more.items():
                counts[trail] = counts.get(trail, 0) + number

            size += read
            if sum(counts.values()) >= _COUNTED or size >= _COUNTED_BYTES:
                return counts, False

    return counts, True

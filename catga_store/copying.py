"""`copy`: every record of one store to another.

Wait conditions are written first and flows last, so that a flow appears in the target only when the
records that belong to it are there.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Generator
from collections.abc import Iterator
from collections.abc import Sequence
from itertools import islice
from typing import Any
from typing import TypeAlias
from typing import TypeVar

from attrs import evolve
from attrs import frozen

from catga_store.codec.bodies.frames import is_unreadable
from catga_store.core import commits
from catga_store.core import writes
from catga_store.core.context import Context
from catga_store.core.context import read_what_can_be
from catga_store.core.counters import CountersOfLogs
from catga_store.errors import UsageError
from catga_store.protocol.conversation import Conversation
from catga_store.protocol.conversation import Request
from catga_store.protocol.conversation import ask
from catga_store.protocol.keys import FLOW
from catga_store.protocol.keys import PART
from catga_store.protocol.keys import PROGRESS
from catga_store.protocol.keys import WAIT
from catga_store.protocol.keys import Key
from catga_store.protocol.keys import is_hidden
from catga_store.protocol.keys import is_version
from catga_store.protocol.keys import new_commit_id
from catga_store.protocol.masking import shown
from catga_store.protocol.requests import PENDING
from catga_store.protocol.requests import Change
from catga_store.protocol.requests import Complete
from catga_store.protocol.requests import Put
from catga_store.protocol.requests import Read
from catga_store.protocol.requests import Record
from catga_store.protocol.requests import Refused
from catga_store.protocol.requests import Scan
from catga_store.protocol.requests import Scanned
from catga_store.store import Store

__all__ = ["CopyDifference", "CopyReport", "compare", "copy"]

T = TypeVar("T")

_PAGE = 100


@frozen
class CopyReport:
    """The number of records that were copied, and the number that were not."""

    flows: int = 0
    """The number of flows that were copied."""
    wait_conditions: int = 0
    """The number of wait conditions that were copied."""
    progress: int = 0
    """The number of ForEach progress records that were copied."""
    parts: int = 0
    """The number of parts that were copied, including the entries of logs."""
    completions: int = 0
    """The number of pending completions that were copied. Their condition has not been set yet."""
    skipped: int = 0
    """The number of records that were not copied because the target already had them."""
    unreadable: int = 0
    """The number of records that the source or the target could not read, for example because a key is missing
    or another program has damaged them. They were not copied."""


@frozen
class CopyDifference:
    """A record that is missing from the target, or differs from the source's record."""

    key: Key
    what: str
    """`missing`, `unreadable` (in one of the stores), or the names of the fields that differ, such as `version,
    state`."""


_Steps: TypeAlias = Generator[tuple[Context, Conversation[Any]], Any, CopyReport]
_FIELDS = {WAIT: "wait_conditions", PROGRESS: "progress", PART: "parts", FLOW: "flows"}


def copy(
    source: Store,
    target: Store,
    *,
    overwrite: bool = False,
    on_progress: Callable[[CopyReport], object] | None = None,
) -> CopyReport:
    """Copy every record to another store, and return how many records were copied.

    The call copies flows, wait conditions that are pending or have ended, ForEach progress, parts and pending
    completions, with their versions, type names and times. Claims are not copied: a claimed flow is due in
    the target. A record that the target already has is skipped, or replaced with `overwrite`. Identical
    records are never written, so copying a store onto itself changes nothing.

    The copy as a whole is not atomic. Each page of 100 records is written in as few commits as possible;
    after an error, call `copy` again to continue. `on_progress` is called after each page with the report so
    far.

    Stop the workers of the source first, because records that are written during the copy may be missed. If
    entries are appended to a log during the copy, the target's next sequence for this log still follows the
    copied entries. A record that is written to the target during the copy is kept and counted as skipped. A
    record that the source or the target cannot read does not end the copy: it is left as it is and counted as
    `unreadable`.

    The two stores can have different codecs, or none: bodies are decoded and encoded again. Both must be
    blocking stores. In async code, open the same stores with `open_store` and run the copy in a thread.

    The tombstones of cleared wait conditions are not copied: if a child of a cleared condition completes in
    the target later, its completion is kept as a pending completion.

    Raises `UsageError` if `source` or `target` is not a blocking store, and all errors that the operations of
    the two stores raise.

    >>> from catga_store import FlowSnapshot, MemoryStore
    >>> source, target = MemoryStore(), MemoryStore()
    >>> source.create(FlowSnapshot("order-1", state={"paid": True}))
    >>> copy(source, target).flows
    1
    """
    _check_store(source)
    _check_store(target)
    writes.check_flag(overwrite, "overwrite")
    _check_function(on_progress)
    asking, writing = source._context, target._context  # noqa: SLF001  both APIs' own
    steps = _copying(asking, writing, overwrite=overwrite, on_progress=on_progress)
    reply: Any = None

    while True:
        try:
            context, conversation = steps.send(reply)
        except StopIteration as stop:
            report: CopyReport = stop.value
            return report

        store = source if context is asking else target
        reply = store._run(conversation)  # noqa: SLF001  as above


def _check_store(store: object) -> None:
    if not isinstance(store, Store):
        message = (
            f"copy: expected a blocking Store, got {shown(store)}, so nothing was copied; to "
            "copy an AsyncStore, open the same store with open_store and run copy in a "
            "thread with anyio.to_thread.run_sync"
        )
        raise UsageError(message)


def _check_function(function: object) -> None:
    if function is not None and not callable(function):
        message = f"on_progress: expected a function or None, got {shown(function)}"
        raise UsageError(message)


def _copying(
    source: Context,
    target: Context,
    *,
    overwrite: bool,
    on_progress: Callable[[CopyReport], object] | None,
) -> _Steps:
    report = CopyReport()

    for kind in (WAIT, PROGRESS, PART, FLOW):
        after = None

        while True:
            scan = Scan(kind, after, _PAGE, source.settings.now_ms())
            page: Sequence[Scanned] = yield source, ask(scan)
            if not page:
                break

            after = page[-1].key
            if kind == PART:
                page = yield from _with_counters(source, page)

            unreadable = [entry for entry in page if _is_unreadable(entry)]
            page = [entry for entry in page if not _is_unreadable(entry)]
            pending = [entry for entry in page if entry.record.head.status < PENDING]
            kept = [entry for entry in page if entry.record.head.status >= PENDING]
            now_ms = target.settings.now_ms()
            there, corrupt = yield target, read_what_can_be(target, [one.key for one in kept])
            unreadable += [entry for entry in kept if entry.key in corrupt]
            kept = [entry for entry in kept if entry.key not in corrupt]
            puts: list[Put] = []
            for entry in kept:
                stored = there.get(entry.key)
                if stored is None or _is_replaced(entry, stored, overwrite=overwrite):
                    puts.append(_put(entry, stored, now_ms))

            written: list[Change] = []
            for changes in commits.in_commits(puts, target.settings.partitions):
                writes.check_partition(changes, target.limits)
                written += yield from _written(target, changes, now_ms)

            completions = [
                _complete(entry, item) for entry in pending for item in entry.record.items
            ]
            accepted = 0
            for changes in commits.in_commits(completions, target.settings.partitions):
                accepted += yield from _completed(target, changes, now_ms)

            copied = sum(not is_hidden(change.key) for change in written)
            counted = sum(not is_hidden(entry.key) for entry in kept)

            report = evolve(
                report,
                **{_FIELDS[kind]: getattr(report, _FIELDS[kind]) + copied},
                completions=report.completions + accepted,
                unreadable=report.unreadable + len(unreadable),
                skipped=report.skipped + counted - copied + len(completions) - accepted,
            )
            if on_progress is not None:
                on_progress(report)

    return report


def _with_counters(
    source: Context, page: Sequence[Scanned]
) -> Generator[tuple[Context, Conversation[Any]], Any, Sequence[Scanned]]:
    """Add the counters of logs of which the page has entries, unless they are in it already.

    They were read before the entries, and another program may have appended since.
    """
    logs = CountersOfLogs()
    logs.note((entry.key, entry.record) for entry in page if entry.error is None)
    behind = logs.behind()
    if not behind:
        return page

    read = yield source, ask(Read(tuple(behind), source.settings.now_ms()))
    fresh = {key: record for key, record in zip(behind, read, strict=True) if record is not None}
    return [
        *(entry for entry in page if entry.key not in fresh),
        *(Scanned(key, record) for key, record in fresh.items()),
    ]


def _is_unreadable(entry: Scanned) -> bool:
    return entry.error is not None or is_unreadable(entry.record)


def _is_replaced(entry: Scanned, stored: Record, *, overwrite: bool) -> bool:
    """Whether a record of the target is written over.

    The counter of a log never goes back: an append must not meet the sequence of another entry.
    """
    if is_hidden(entry.key) and not is_version(entry.key.name):
        return entry.record.head.version > stored.head.version

    return overwrite and not _is_same(entry.record, stored)


def _is_same(record: Record, stored: Record) -> bool:
    """Whether both are one write: the same store under two names, or a copied file."""
    return (
        record.head.revision == stored.head.revision and record.head.commits == stored.head.commits
    )


def _completed(
    target: Context, changes: tuple[Change, ...], now_ms: int
) -> Generator[tuple[Context, Conversation[Any]], Any, int]:
    """Write completions, which are never refused; return how many the target did not have."""
    reply = yield target, commits.send(target, new_commit_id(), now_ms, changes)
    return sum(outcome.accepted for outcome in reply.outcomes)


def _written(
    target: Context, changes: tuple[Change, ...], now_ms: int
) -> Generator[tuple[Context, Conversation[Any]], Any, tuple[Change, ...]]:
    """Write all changes but those that the target refuses: it may have changed since it was read.

    A flow that is written over has the history of the source; what it was is not a version of that.
    """
    while changes:
        commit = commits.send(target, new_commit_id(), now_ms, changes, keeps_history=False)
        answer = yield target, commit
        if not isinstance(answer, Refused):
            return changes

        refused = {conflict.place for conflict in answer.conflicts}
        changes = tuple(c for place, c in enumerate(changes) if place not in refused)

    return ()


def compare(
    source: Store, target: Store, *, on_page: Callable[[int], object] | None = None
) -> Iterator[CopyDifference]:
    """Yield each record of the source that is missing in the target, or differs there.

    Reads every record of the source, and those of the same keys in the target. Records that only the
    target has are not differences, and claims are not compared, because they are not copied. Both
    stores must be idle meanwhile. `on_page` is called with the number of records of each page.

    >>> from catga_store import FlowSnapshot, MemoryStore
    >>> source, target = MemoryStore(), MemoryStore()
    >>> source.create(FlowSnapshot("order-1", state={"paid": True}))
    >>> list(compare(source, target))
    [CopyDifference(key=Key(kind='flow', id='order-1', step=0), what='missing')]
    """
    pending = {
        (entry.key, item)
        for entry in _scanned(target, WAIT)
        if entry.record.head.status < PENDING
        for item in entry.record.items
    }
    for kind in (WAIT, PROGRESS, PART, FLOW):
        for page in _paged(_scanned(source, kind)):
            kept = [
                entry
                for entry in page
                if entry.error is None and entry.record.head.status >= PENDING
            ]
            keys = [entry.key for entry in kept]
            there, corrupt = target._run(read_what_can_be(target._context, keys))  # noqa: SLF001  both stores' own
            for entry in page:
                if entry.error is not None or entry.key in corrupt:
                    yield CopyDifference(entry.key, "unreadable")

            for entry in kept:
                what = _differences(entry, there.get(entry.key))
                if what and entry.key not in corrupt:
                    yield CopyDifference(entry.key, ", ".join(what))

            for entry in page:
                awaited = entry.record.head.status >= PENDING
                if not awaited and any(
                    (entry.key, item) not in pending for item in entry.record.items
                ):
                    yield CopyDifference(entry.key, "completions")

            if on_page is not None:
                on_page(len(kept))


def _scanned(store: Store, kind: str) -> Iterator[Scanned]:
    after = None
    while True:
        page: tuple[Scanned, ...] = _ask(store, Scan(kind, after, _PAGE, _now_ms(store)))
        if not page:
            return

        yield from page
        after = page[-1].key


def _paged(entries: Iterator[Scanned]) -> Iterator[list[Scanned]]:
    while page := list(islice(entries, _PAGE)):
        yield page


def _ask(store: Store, request: Request[T]) -> T:
    return store._run(ask(request))  # noqa: SLF001  both stores' own, as above


def _now_ms(store: Store) -> int:
    return store._context.settings.now_ms()  # noqa: SLF001  as above


_COMPARED = (
    "version",
    "status",
    "created_ms",
    "updated_ms",
    "type",
    "type_version",
    "position",
    "error",
    "attempts",
    "tags",
)


def _differences(entry: Scanned, stored: Record | None) -> list[str]:
    if stored is None:
        return ["missing"]

    record = entry.record
    head, other = record.head, stored.head
    what = [name for name in _COMPARED if getattr(head, name) != getattr(other, name)]
    if entry.key.kind == FLOW and head.owner is None and head.due_ms != other.due_ms:
        what.append("due_ms")

    if entry.key.kind == FLOW and head.expires_ms != other.expires_ms:
        what.append("expires_ms")

    if is_unreadable(record) or is_unreadable(stored):
        what.append("unreadable")
    elif record.body != stored.body:
        what.append("state" if entry.key.kind == FLOW else "body")

    if record.terms != stored.terms:
        what.append("definition")

    if set(record.items) != set(stored.items):
        what.append("completions")

    return what


def _put(entry: Scanned, stored: Record | None, now_ms: int) -> Put:
    record = entry.record
    head = record.head
    if head.owner is not None and entry.key.kind == FLOW:
        head = head._replace(owner=None, claim=None, due_ms=now_ms)

    old = None if stored is None else stored.head
    notified = entry.key.kind == WAIT and head.status > PENDING and head.due_ms is None
    return Put(
        entry.key,
        head,
        record.body,
        None if old is None else old.revision,
        old,
        terms=record.terms,
        notified=notified,
        items=record.items,
    )


def _complete(entry: Scanned, item: Any) -> Complete:
    return Complete(entry.key, item.child, item.success, item.payload)

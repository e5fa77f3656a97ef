"""What the embedded stores share: the rules of the store protocol over locked tables.

The memory and the SQLite store differ in how they keep rows (`Tables`), not in what they decide.
Every store protocol request is one transport request, a `Call` that runs as one transaction:

- a commit looks at every record it names before it writes the first, so a refused commit has
  written nothing;
- its id is logged with its reply in the same transaction and kept for twice the store's timeout,
  so a commit that is sent again answers as the first time, and `Resolve` is exact; `Extend`,
  `Sweep` and `Clear` are logged likewise, under ids of the store's own;
- whatever has expired is absent, and is removed when a write meets it.

Condition rows have two states that nobody above the store protocol sees: `PENDING_COMPLETIONS`
(completions that no condition awaits yet) and tombstones of cleared conditions, which tell
latecomers how the condition ended.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from collections.abc import Iterable
from typing import Any
from typing import NamedTuple
from typing import Protocol

from catga_store.errors import CommitUncertainError
from catga_store.errors import PartitionCountError
from catga_store.errors import StoreConfigError
from catga_store.errors import StoreUnavailableError
from catga_store.protocol.conversation import Call
from catga_store.protocol.conversation import Conversation
from catga_store.protocol.conversation import NotSentError
from catga_store.protocol.conversation import Pause
from catga_store.protocol.conversation import ReplyLostError
from catga_store.protocol.conversation import Request
from catga_store.protocol.keys import FLOW
from catga_store.protocol.keys import PROGRESS
from catga_store.protocol.keys import WAIT
from catga_store.protocol.keys import Key
from catga_store.protocol.keys import flow_key
from catga_store.protocol.keys import new_commit_id
from catga_store.protocol.requests import ANY
from catga_store.protocol.requests import CANCELLED
from catga_store.protocol.requests import CLAIMED
from catga_store.protocol.requests import EXISTS
from catga_store.protocol.requests import MISSING
from catga_store.protocol.requests import PENDING
from catga_store.protocol.requests import REMEMBERED_COMMITS
from catga_store.protocol.requests import SATISFIED
from catga_store.protocol.requests import STALE
from catga_store.protocol.requests import Applied
from catga_store.protocol.requests import Change
from catga_store.protocol.requests import Check
from catga_store.protocol.requests import Clear
from catga_store.protocol.requests import Commit
from catga_store.protocol.requests import Complete
from catga_store.protocol.requests import Conflict
from catga_store.protocol.requests import Count
from catga_store.protocol.requests import Delete
from catga_store.protocol.requests import Due
from catga_store.protocol.requests import Extend
from catga_store.protocol.requests import Filter
from catga_store.protocol.requests import Find
from catga_store.protocol.requests import Found
from catga_store.protocol.requests import Head
from catga_store.protocol.requests import Outcome
from catga_store.protocol.requests import Overdue
from catga_store.protocol.requests import Ping
from catga_store.protocol.requests import Put
from catga_store.protocol.requests import Read
from catga_store.protocol.requests import Record
from catga_store.protocol.requests import Refused
from catga_store.protocol.requests import Reply
from catga_store.protocol.requests import Resolve
from catga_store.protocol.requests import Scan
from catga_store.protocol.requests import Scanned
from catga_store.protocol.requests import SetWait
from catga_store.protocol.requests import Steps
from catga_store.protocol.requests import Sweep
from catga_store.protocol.requests import Terms

__all__ = ["EmbeddedProtocol", "ItemRow", "Tables", "WaitRow"]

LAYOUT = 1
"""The version of what a store keeps, and where."""

PENDING_COMPLETIONS = -1
"""Status of a condition row that only holds completions which came before their condition."""

TOMBSTONE = -2
"""Status of a cleared condition's marker is `TOMBSTONE - outcome`."""

_TRIES = 4
_PAUSE_SECONDS = 0.01
_SWEEP_EVERY = 16
_SWEEP_A_FEW = 8


class WaitRow(NamedTuple):
    """A condition row; `done` counts the children that have completed, so a completion costs O(1)."""

    head: Head
    any: bool = False
    parent: str | None = None
    expected: int = 0
    done: int = 0


class ItemRow(NamedTuple):
    """One child of a condition, or one completion, or both."""

    member: bool
    done: bool
    success: bool = False


class Tables(Protocol):
    """Rows of an embedded store, inside one transaction. Nothing here decides anything."""

    def layout(self) -> tuple[int, int] | None:
        """Layout version and partitions, if anybody has used the store yet."""
        ...

    def lay_out(self, version: int, partitions: int) -> None:
        """Set layout version and partitions."""
        ...

    def head(self, key: Key) -> Head | None:
        """The head of a flow or progress record."""
        ...

    def record(self, key: Key) -> Record | None:
        """Any record, whole; a condition with the completions of its children."""
        ...

    def write(self, key: Key, head: Head, body: bytes | None, old: Head | None) -> None:
        """Insert (`old` is `None`) or replace a flow or progress record; no body keeps the body."""
        ...

    def replace(self, key: Key, head: Head, body: bytes | None, old: Head, commit_id: str) -> bool:
        """Replace a flow whose head is still `old`, but for the commits it remembers.

        It is stored with this commit as its revision, and remembers it. `False`: nothing was
        written, as the head is another one or cannot be read, or the commit is logged already.
        """
        ...

    def remove(self, key: Key, old: Head) -> None:
        """Remove a flow or progress record."""
        ...

    def steps(self, flow_id: str) -> list[Found]:
        """The progress records of a flow, by step."""
        ...

    def wait(self, key: Key) -> WaitRow | None:
        """A condition row in any state."""
        ...

    def write_wait(
        self, key: Key, row: WaitRow, old: WaitRow | None, terms: Terms | None = None
    ) -> None:
        """Insert or replace a condition row; no terms keep the terms."""
        ...

    def remove_wait(self, key: Key, old: WaitRow) -> None:
        """Remove a condition row and all its items."""
        ...

    def item(self, key: Key, child: str) -> ItemRow | None:
        """One item of a condition."""
        ...

    def write_item(self, key: Key, child: str, row: ItemRow, payload: bytes) -> None:
        """Insert or replace one item of a condition."""
        ...

    def set_members(self, key: Key, children: Iterable[str]) -> tuple[int, int]:
        """Make exactly these the children; answers how many have completed, and how many well."""
        ...

    def remove_items(self, key: Key) -> None:
        """Remove every item of a condition."""
        ...

    def due_flows(self, now_ms: int, limit: int, wanted: str | None) -> list[Found]:
        """Flows with `due_ms` at or before now, oldest first, without the expired."""
        ...

    def due_waits(self, now_ms: int, limit: int, wanted: str | None) -> list[Found]:
        """Conditions with a parent and `due_ms` at or before now, oldest first."""
        ...

    def overdue(self, now_ms: int, limit: int | None) -> list[Found]:
        """Pending conditions with `due_ms` at or before now, oldest first, then by id."""
        ...

    def find(
        self, wanted: Filter, after: tuple[int, str] | None, limit: int, now_ms: int
    ) -> list[Found]:
        """A page of a listing."""
        ...

    def count(self, wanted: Filter, now_ms: int) -> int:
        """The length of a listing."""
        ...

    def scan(self, kind: str, after: Key | None, limit: int) -> list[Key]:
        """Keys of one kind in order, whatever their state."""
        ...

    def expired(self, now_ms: int, limit: int) -> list[Key]:
        """Flows and condition rows that have expired."""
        ...

    def logged(self, commit_id: str) -> tuple[Outcome, ...] | None:
        """The reply of a commit, `()` if it was fenced, `None` if it is not known."""
        ...

    def log(self, commit_id: str, at_ms: int, outcomes: tuple[Outcome, ...]) -> None:
        """Remember a commit's reply."""
        ...

    def forget_log(self, before_ms: int, limit: int) -> None:
        """Forget replies older than that."""
        ...

    def clear(self) -> None:
        """Remove everything but the layout."""
        ...


class EmbeddedProtocol:
    """The store protocol of a store whose transport runs functions over `Tables` as transactions.

    `partitions` and the layout version are stored at first use and checked by whoever opens the
    store later; `timeout` is in seconds.
    """

    def __init__(self, *, partitions: int, timeout: float) -> None:
        self._partitions = partitions
        self._log_for_ms = int(timeout * 2000)
        self._prepared = False
        self._tidies = itertools.cycle([False] * (_SWEEP_EVERY - 1) + [True])
        """Whether a write is one of those that tidy up, write by write."""
        self._calls: dict[type, Callable[[Any], Call[Any]]] = {
            Read: self._read,
            Commit: self._commit,
        }
        self._handlers: dict[type, Callable[[Any], Conversation[Any]]] = {
            Read: self._at_once,
            Commit: self._at_once,
            Resolve: self._resolve,
            Extend: self._writing(extend),
            Sweep: self._writing(sweep),
            Clear: self._writing(clear),
            Steps: self._reading(steps),
            Due: self._reading(due),
            Overdue: self._reading(overdue),
            Find: self._reading(find),
            Count: self._reading(count),
            Scan: self._reading(scan),
            Ping: self._reading(ping),
        }

    def converse(self, request: Request[object]) -> Conversation[object]:
        """Do what a store protocol request asks and return its reply."""
        handler = self._handlers[type(request)]
        return handler(request) if self._prepared else self._first(handler, request)

    # reads and commits: one call, and only if that fails a conversation ---------------------------

    def first_call(self, request: Request[object]) -> Call[Any] | None:
        """The call that a request is, its reply being the request's; `None`: it takes more."""
        make = self._calls.get(type(request))
        return make(request) if make is not None and self._prepared else None

    def go_on(
        self, request: Request[object], call: Call[Any], error: NotSentError | ReplyLostError
    ) -> Conversation[Any]:
        """What is left of the conversation after the first call has failed."""
        try:
            return (yield from self._go_on(call, error))
        except ReplyLostError as lost:
            assert isinstance(request, Commit), request  # noqa: S101  what reads may be read again
            raise _uncertain(request.id, (change.key for change in request.changes)) from lost

    def _at_once(self, request: Request[object]) -> Conversation[Any]:
        call = self._calls[type(request)](request)
        try:
            return (yield call)
        except (NotSentError, ReplyLostError) as error:
            return (yield from self.go_on(request, call, error))

    def _read(self, request: Read) -> Call[tuple[Record | None, ...]]:
        keys, now_ms = request.keys, request.now_ms
        if len(keys) != 1 or keys[0].kind != FLOW:
            return Call(lambda tables: read(tables, request), writes=False, request=request)

        (key,) = keys
        return Call(
            lambda tables: (_read_flow(tables, key, now_ms),),
            writes=False,
            single=True,
            request=request,
        )

    def _commit(self, request: Commit) -> Call[Reply]:
        at_ms = time.time_ns() // 1_000_000
        tidies = next(self._tidies)

        def transaction(tables: Tables) -> Reply:
            if tidies:
                sweep(tables, Sweep(request.now_ms, _SWEEP_A_FEW))
                tables.forget_log(at_ms - self._log_for_ms, 2 * _SWEEP_EVERY)

            return apply(tables, request, at_ms)

        return Call(transaction, writes=True, request=request)

    # one handler per request ----------------------------------------------------------------------

    def _resolve(self, request: Resolve) -> Conversation[Applied | None]:
        at_ms = time.time_ns() // 1_000_000
        call = Call[Applied | None](
            lambda tables: resolve(tables, request, at_ms), writes=True, request=request
        )
        try:
            applied: Applied | None = yield from self._send(call)
        except (ReplyLostError, StoreUnavailableError) as error:
            raise _uncertain(request.id, request.keys) from error

        return applied

    def _reading(
        self, function: Callable[[Tables, Any], Any]
    ) -> Callable[[Any], Conversation[Any]]:
        def handler(request: Any) -> Conversation[Any]:
            return (
                yield from self._send(
                    Call(lambda tables: function(tables, request), writes=False, request=request)
                )
            )

        return handler

    def _writing(
        self, function: Callable[[Tables, Any], Any]
    ) -> Callable[[Any], Conversation[Any]]:
        """For requests without a commit id: they get one, and with it a definite outcome."""

        def handler(request: Any) -> Conversation[Any]:
            commit_id, at_ms = new_commit_id(), time.time_ns() // 1_000_000
            tidies = next(self._tidies)
            result: Any = None

            def transaction(tables: Tables) -> bool:
                nonlocal result
                logged = tables.logged(commit_id)
                if logged is not None:
                    return bool(logged)  # an earlier try was applied, and its result is known

                if tidies:
                    tables.forget_log(at_ms - self._log_for_ms, 2 * _SWEEP_EVERY)

                result = function(tables, request)
                tables.log(commit_id, at_ms, (Outcome(),))
                return True

            try:
                done = yield from self._send(Call(transaction, writes=True, request=request))
            except ReplyLostError as error:
                raise _uncertain(
                    commit_id, (request.key,) if isinstance(request, Extend) else ()
                ) from error

            if not done:
                raise _given_up(commit_id)

            return result

        return handler

    def _send(self, call: Call[Any]) -> Conversation[Any]:
        """Send one call, again when its reply was lost: every call here may be sent twice."""
        try:
            return (yield call)
        except (NotSentError, ReplyLostError) as error:
            return (yield from self._go_on(call, error))

    def _go_on(self, call: Call[Any], error: NotSentError | ReplyLostError) -> Conversation[Any]:
        """After a first failure: send a call again as long as only its reply was lost.

        What was lost once stays lost when a later try cannot be sent: it may have been applied.
        """
        lost: ReplyLostError | None = None

        for attempt in range(1, _TRIES):
            if isinstance(error, NotSentError):
                break

            lost = error
            yield Pause(_PAUSE_SECONDS * attempt)
            try:
                return (yield call)
            except (NotSentError, ReplyLostError) as again:
                error = again

        if lost is not None and call.writes:
            raise lost

        message = f"{error}; nothing was {'written' if call.writes else 'asked to be written'}"
        raise StoreUnavailableError(message) from error

    def _first(
        self, handler: Callable[[Any], Conversation[Any]], request: Request[object]
    ) -> Conversation[object]:
        """See that the store is laid out as it was opened, before anything else is asked of it."""
        try:
            layout = yield from self._send(Call(lambda tables: tables.layout(), writes=False))
            if layout is None:
                layout = yield from self._send(
                    Call(lambda tables: lay_out(tables, self._partitions), writes=True)
                )
        except ReplyLostError as error:
            message = f"{error}; the store was not used yet"
            raise StoreUnavailableError(message) from error

        _check_layout(layout, self._partitions)
        self._prepared = True
        return (yield from handler(request))


def _check_layout(layout: tuple[int, int], partitions: int) -> None:
    version, stored = layout
    if version != LAYOUT:
        message = (
            f"the store is laid out in version {version}, this catga_store knows {LAYOUT};"
            " use the release that wrote it, or copy it to a new store"
        )
        raise StoreConfigError(message)

    if stored != partitions:
        message = (
            f"the store was laid out with {stored} partitions and opened with {partitions};"
            f" open it with partitions={stored}; nothing was read or written"
        )
        raise PartitionCountError(message, expected=stored, actual=partitions)


def _given_up(commit_id: str) -> StoreUnavailableError:
    message = (
        f"commit {commit_id} was given up by resolve_commit before it arrived;"
        " nothing of it was written"
    )
    return StoreUnavailableError(message)


def _uncertain(commit_id: str, keys: Iterable[Key]) -> CommitUncertainError:
    named = tuple(dict.fromkeys(keys))
    message = (
        f"commit {commit_id} was sent and its outcome is not known;"
        " resolve_commit(error) settles whether it was written"
    )
    return CommitUncertainError(message, commit_id=commit_id, keys=named)


# --- transactions that read ---------------------------------------------------------------------


def _has_expired(head: Head, now_ms: int) -> bool:
    return head.expires_ms is not None and head.expires_ms <= now_ms


def _read_flow(tables: Tables, key: Key, now_ms: int) -> Record | None:
    """What most reads are: one flow."""
    record = tables.record(key)
    if record is None:
        return None

    expires_ms = record.head.expires_ms
    return None if expires_ms is not None and expires_ms <= now_ms else record


def read(tables: Tables, request: Read) -> tuple[Record | None, ...]:
    """`Read`."""
    now_ms = request.now_ms
    answer: list[Record | None] = []

    for key in request.keys:
        record = tables.record(key)

        if record is None:
            pass
        elif key.kind == PROGRESS:
            flow = tables.head(flow_key(key.id))
            if flow is not None and _has_expired(flow, now_ms):
                record = None
        elif record.head.status < 0 or _has_expired(record.head, now_ms):
            record = None

        answer.append(record)

    return tuple(answer)


def steps(tables: Tables, request: Steps) -> tuple[Found, ...]:
    """`Steps`."""
    flow = tables.head(flow_key(request.flow_id))
    if flow is not None and _has_expired(flow, request.now_ms):
        return ()

    return tuple(tables.steps(request.flow_id))


def due(tables: Tables, request: Due) -> tuple[Found, ...]:
    """`Due`."""
    found = tables.due_flows(request.now_ms, request.limit, request.type)
    found += tables.due_waits(request.now_ms, request.limit, request.type)
    found.sort(key=lambda entry: entry.head.due_ms or 0)
    return tuple(found)


def overdue(tables: Tables, request: Overdue) -> tuple[Found, ...]:
    """`Overdue`."""
    return tuple(tables.overdue(request.now_ms, request.limit))


def find(tables: Tables, request: Find) -> tuple[Found, ...]:
    """`Find`."""
    return tuple(tables.find(request.filter, request.after, request.limit, request.now_ms))


def count(tables: Tables, request: Count) -> int:
    """`Count`."""
    return tables.count(request.filter, request.now_ms)


def scan(tables: Tables, request: Scan) -> tuple[Scanned, ...]:
    """`Scan`; early completions come as a record whose status is negative and whose terms are empty.

    An entry that has expired in between is left out, so a page may be shorter than asked for; an
    empty page is the end.
    """
    after = request.after

    while True:
        keys = tables.scan(request.kind, after, request.limit)
        found: list[Scanned] = []

        for key in keys:
            record = tables.record(key)
            if (
                record is None
                or record.head.status <= TOMBSTONE
                or _gone(tables, key, record, request.now_ms)
            ):
                continue

            found.append(Scanned(key, record))

        if found or not keys:
            return tuple(found)

        after = keys[-1]


def _gone(tables: Tables, key: Key, record: Record, now_ms: int) -> bool:
    if key.kind != PROGRESS:
        return _has_expired(record.head, now_ms)

    flow = tables.head(flow_key(key.id))
    return flow is not None and _has_expired(flow, now_ms)


def ping(tables: Tables, _request: Ping) -> None:
    """`Ping`."""
    tables.layout()


# --- transactions that write --------------------------------------------------------------------


def lay_out(tables: Tables, partitions: int) -> tuple[int, int]:
    """Set the layout unless somebody else has; answers what it is."""
    layout = tables.layout()
    if layout is None:
        layout = LAYOUT, partitions
        tables.lay_out(*layout)

    return layout


def extend(tables: Tables, request: Extend) -> Head | None:
    """`Extend`."""
    head = _live(tables, request.key, request.now_ms)
    if head is None or head.claim != request.claim:
        return None

    extended = head._replace(due_ms=request.due_ms)
    tables.write(request.key, extended, None, head)
    return extended


def sweep(tables: Tables, request: Sweep) -> int:
    """`Sweep`."""
    keys = tables.expired(request.now_ms, request.limit)

    for key in keys:
        _remove(tables, key)

    return len(keys)


def clear(tables: Tables, _request: Clear) -> None:
    """`Clear`."""
    tables.clear()


def resolve(tables: Tables, request: Resolve, at_ms: int) -> Applied | None:
    """`Resolve`: look in the log, then at what the records remember; else fence the commit."""
    outcomes = tables.logged(request.id)
    if outcomes is not None:
        return Applied(outcomes) if outcomes else None

    for key in request.keys:
        row = tables.wait(key) if key.kind == WAIT else None
        head = tables.head(key) if key.kind != WAIT else row.head if row else None

        if head is not None and request.id in head.commits:
            return Applied(())

    tables.log(request.id, at_ms, ())
    return None


def apply(tables: Tables, commit: Commit, at_ms: int) -> Reply:
    """`Commit`: every change or none; `StoreUnavailableError` if the commit was fenced."""
    change = commit.changes[0] if len(commit.changes) == 1 else None
    if type(change) is Put:
        outcome = _replace(tables, commit, change)
        if outcome is not None:
            tables.log(commit.id, at_ms, (outcome,))
            return Applied((outcome,))

    logged = tables.logged(commit.id)
    if logged is not None:
        if not logged:
            raise _given_up(commit.id)

        return Applied(logged)

    if type(change) is Put and change.key.kind != WAIT:
        return _apply_put(tables, commit, change, at_ms)

    conflicts = _conflicts(tables, commit)
    if conflicts:
        return Refused(conflicts)

    outcomes = tuple([_apply(tables, commit, change) for change in commit.changes])
    tables.log(commit.id, at_ms, outcomes)
    return Applied(outcomes)


def _replace(tables: Tables, commit: Commit, change: Put) -> Outcome | None:
    """What most commits are: a flow that nobody has written since it was read.

    Then the store holds the head that was read, and what would be decided of the one is decided of
    the other. `None`: it may be otherwise, and nothing was written.
    """
    key, head, body, expected, old = change[:5]
    if (
        old is None
        or old.revision != expected
        or key.kind != FLOW
        or change.fresh
        or (old.expires_ms is not None and old.expires_ms <= commit.now_ms)
        or (change.claiming and _refusal(change, old, commit.now_ms) is not None)
        or not tables.replace(key, head, None if change.keeps_body else body, old, commit.id)
    ):
        return None

    return Outcome(head.version, commit.id, head.status, head.created_ms)


def _apply_put(tables: Tables, commit: Commit, change: Put, at_ms: int) -> Reply:
    """One flow or progress. Its head is read once."""
    head = _live(tables, change.key, commit.now_ms)
    reason = _refusal(change, head, commit.now_ms)
    if reason is not None:
        return Refused((Conflict(0, reason, head),))

    outcomes = (_put(tables, commit, change, head),)
    tables.log(commit.id, at_ms, outcomes)
    return Applied(outcomes)


def _conflicts(tables: Tables, commit: Commit) -> tuple[Conflict, ...]:
    now_ms = commit.now_ms
    leaving: set[str] = set()
    if len(commit.changes) > 1:
        leaving = {
            change.key.id
            for change in commit.changes
            if change.key.kind == FLOW
            and (isinstance(change, Delete) or (isinstance(change, Put) and change.fresh))
        }

    found: list[Conflict] = []

    for index, change in enumerate(commit.changes):
        key = change.key
        head = _live(tables, key, now_ms)
        goes = key.kind == PROGRESS and key.id in leaving and not isinstance(change, Check)
        if goes or (head is not None and head.status < 0):
            head = None

        reason = _refusal(change, head, now_ms)
        if reason is not None:
            found.append(Conflict(index, reason, head))

    return tuple(found)


def _refusal(  # noqa: PLR0911  one return for each rule
    change: Change, head: Head | None, now_ms: int
) -> str | None:
    """Why the store, holding `head`, refuses a change; the whole of optimistic locking."""
    if isinstance(change, Complete | SetWait):
        return None

    expected = change.expected
    if expected is None:
        return EXISTS if isinstance(change, Put) and head is not None else None

    if expected == ANY:
        return None

    if head is None:
        return MISSING

    if head.revision != expected:
        return STALE

    if (
        isinstance(change, Put)
        and change.claiming
        and head.owner is not None
        and head.due_ms is not None
        and head.due_ms > now_ms
    ):
        return CLAIMED

    return None


def _apply(tables: Tables, commit: Commit, change: Change) -> Outcome:
    if isinstance(change, Put):
        if change.key.kind == WAIT:
            return _put_wait(tables, commit, change)

        return _put(tables, commit, change, tables.head(change.key))

    if isinstance(change, Complete):
        return _complete(tables, commit, change)

    if isinstance(change, SetWait):
        return _set_wait(tables, commit, change)

    if isinstance(change, Delete):
        return _delete(tables, commit, change)

    return _check(tables, change)


def _put(tables: Tables, commit: Commit, change: Put, old: Head | None) -> Outcome:
    if old is not None and change.fresh:
        _remove(tables, change.key)
        old = None

    head = _written(change.head, commit.id, old)
    if change.expected == ANY and old is None:
        head = head._replace(version=1, created_ms=commit.now_ms)
    elif change.expected == ANY and old is not None:
        head = head._replace(version=old.version + 1, created_ms=old.created_ms)

    tables.write(
        change.key, head, None if change.keeps_body and old is not None else change.body, old
    )
    return Outcome(head.version, head.revision, head.status, head.created_ms)


def _delete(tables: Tables, commit: Commit, change: Delete) -> Outcome:
    if change.key.kind != WAIT:
        return Outcome(accepted=_remove(tables, change.key))

    row = tables.wait(change.key)
    if row is None or row.head.status < 0:
        return Outcome()

    tables.remove_items(change.key)
    outcome = CANCELLED if row.head.status == PENDING else row.head.status
    head = Head(
        row.head.version,
        TOMBSTONE - outcome,
        row.head.created_ms,
        commit.now_ms,
        expires_ms=_after(commit.now_ms, commit.retain_ms),
        revision=commit.id,
        commits=(commit.id,),
    )
    tables.write_wait(change.key, WaitRow(head), row, Terms((), any=False))
    return Outcome(accepted=True, status=outcome)


def _check(tables: Tables, change: Check) -> Outcome:
    if change.due_ms is not None:
        if change.key.kind == WAIT:
            row = tables.wait(change.key)
            assert row is not None, "checked before"  # noqa: S101  a broken rule, not bad input
            moved = row._replace(head=row.head._replace(due_ms=change.due_ms))
            tables.write_wait(change.key, moved, row)
        else:
            head = tables.head(change.key)
            assert head is not None, "checked before"  # noqa: S101  a broken rule, not bad input
            tables.write(change.key, head._replace(due_ms=change.due_ms), None, head)

    return Outcome()


def _set_wait(tables: Tables, commit: Commit, change: SetWait) -> Outcome:
    key, terms = change.key, change.terms
    old = tables.wait(key)
    status = old.head.status if old is not None else TOMBSTONE

    if old is not None and status > PENDING:
        record = tables.record(key)
        stored = record.terms if record is not None else None
        head = old.head
        if change.rearm and stored is not None:
            head, stored = _rearm(tables, commit, change, old, stored)

        return Outcome(head.version, head.revision, status, head.created_ms, terms=stored)

    done, well = tables.set_members(key, terms.children)
    if old is not None and status == PENDING:
        created_ms, version, commits = old.head.created_ms, old.head.version + 1, old.head.commits
    else:
        created_ms, version, commits = change.created_ms, 1, ()

    satisfied = _is_satisfied(done, len(terms.children), well, any_of=terms.any)
    head = Head(
        version,
        SATISFIED if satisfied else PENDING,
        created_ms,
        commit.now_ms,
        revision=commit.id,
        commits=(commit.id, *commits[: REMEMBERED_COMMITS - 1]),
    )
    head = _schedule(head, terms.timeout_ms, terms.parent, commit)
    row = WaitRow(head, terms.any, terms.parent, len(terms.children), done)
    tables.write_wait(key, row, old, terms)
    return Outcome(
        version, head.revision, head.status, created_ms, satisfied=satisfied, accepted=True
    )


def _rearm(
    tables: Tables, commit: Commit, change: SetWait, old: WaitRow, stored: Terms
) -> tuple[Head, Terms]:
    """A flow suspends on a condition that has ended: it becomes its parent, and is told at once."""
    head = old.head._replace(due_ms=commit.now_ms, expires_ms=None)
    parent = change.terms.parent

    if parent != old.parent:
        stored = stored._replace(parent=parent)
        head = _written(
            head._replace(version=head.version + 1, updated_ms=commit.now_ms), commit.id, old.head
        )

    tables.write_wait(change.key, old._replace(head=head, parent=parent), old, stored)
    return head, stored


def _put_wait(tables: Tables, commit: Commit, change: Put) -> Outcome:
    key, terms = change.key, change.terms
    assert terms is not None, "conditions have terms"  # noqa: S101  a broken rule, not bad input
    old = tables.wait(key)
    if old is not None and change.fresh:
        tables.remove_wait(key, old)
        old = None

    for item in change.items:
        tables.write_item(
            key, item.child, ItemRow(member=False, done=True, success=item.success), item.payload
        )

    done, well = tables.set_members(key, terms.children)
    satisfied = change.head.status == PENDING and _is_satisfied(
        done, len(terms.children), well, any_of=terms.any
    )
    head = _written(change.head, commit.id, old.head if old is not None else None)
    if satisfied:
        head = head._replace(status=SATISFIED)

    # Nobody was told of what had no parent: one that it is given now is still to be.
    was_given = (
        old is not None
        and old.head.status > PENDING
        and old.head.due_ms is None
        and (old.parent is not None or terms.parent is None)
    )
    if head.status > PENDING and was_given and old is not None:
        head = head._replace(due_ms=None, expires_ms=old.head.expires_ms)
    elif head.status > PENDING and change.given:
        head = head._replace(due_ms=None, expires_ms=_after(commit.now_ms, commit.retain_ms))
    else:
        head = _schedule(head, terms.timeout_ms, terms.parent, commit)

    row = WaitRow(head, terms.any, terms.parent, len(terms.children), done)
    tables.write_wait(key, row, old, terms)
    return Outcome(head.version, head.revision, head.status, head.created_ms, satisfied=satisfied)


def _complete(tables: Tables, commit: Commit, change: Complete) -> Outcome:
    key, child = change.key, change.child
    row = tables.wait(key)
    status = row.head.status if row is not None else PENDING_COMPLETIONS
    item = tables.item(key, child)

    if status <= TOMBSTONE:
        return Outcome(status=TOMBSTONE - status)

    if item is not None and item.done:
        return Outcome(status=None if status == PENDING_COMPLETIONS else status, duplicate=True)

    if row is None or status == PENDING_COMPLETIONS:
        return _complete_early(tables, commit, change, row)

    if status != PENDING or item is None or not item.member:
        return Outcome(status=status)

    tables.write_item(
        key, child, ItemRow(member=True, done=True, success=change.success), change.payload
    )
    done = row.done + 1
    satisfied = _is_satisfied(done, row.expected, int(change.success), any_of=row.any)
    head = row.head

    if satisfied:
        head = _written(
            head._replace(
                version=head.version + 1, status=SATISFIED, updated_ms=commit.now_ms, due_ms=None
            ),
            commit.id,
            head,
        )
        head = _schedule(head, None, row.parent, commit)

    tables.write_wait(key, row._replace(head=head, done=done), row)
    return Outcome(
        head.version,
        head.revision,
        head.status,
        head.created_ms,
        satisfied=satisfied,
        accepted=True,
        replaced=row.head.revision if satisfied else "",
    )


def _complete_early(
    tables: Tables, commit: Commit, change: Complete, row: WaitRow | None
) -> Outcome:
    kept = ItemRow(member=False, done=True, success=change.success)
    tables.write_item(change.key, change.child, kept, change.payload)
    expires_ms = _after(commit.now_ms, commit.retain_ms)
    head = Head(0, PENDING_COMPLETIONS, commit.now_ms, commit.now_ms, expires_ms=expires_ms)
    tables.write_wait(change.key, WaitRow(head), row, Terms((), any=False))
    return Outcome(accepted=True)


# --- rules --------------------------------------------------------------------------------------


def _after(now_ms: int, retain_ms: int | None) -> int | None:
    return None if retain_ms is None else now_ms + retain_ms


def _is_satisfied(done: int, expected: int, well: int, *, any_of: bool) -> bool:
    return done == expected or (any_of and well > 0)


def _written(head: Head, commit_id: str, old: Head | None) -> Head:
    """Stamp a head with its new revision and the commits it remembers."""
    before = old.commits[: REMEMBERED_COMMITS - 1] if old is not None else ()
    return head.stamped(commit_id, (commit_id, *before))


def _schedule(head: Head, timeout_ms: int | None, parent: str | None, commit: Commit) -> Head:
    """When a condition is looked at next, and when it goes.

    Pending: at its deadline, and it stays. Ended: at once if there is a parent to be told (or when
    the head says), and it stays until that is done; without a parent it goes when its time is up.
    """
    if head.status == PENDING:
        due_ms = None if timeout_ms is None else head.created_ms + timeout_ms
        return head._replace(due_ms=due_ms, expires_ms=None)

    if parent is not None:
        due_ms = commit.now_ms if head.due_ms is None else head.due_ms
        return head._replace(due_ms=due_ms, expires_ms=None)

    return head._replace(due_ms=None, expires_ms=_after(commit.now_ms, commit.retain_ms))


def _live(tables: Tables, key: Key, now_ms: int) -> Head | None:
    """The head under a key; what has expired is removed on the way."""
    if key.kind == PROGRESS:
        flow = tables.head(flow_key(key.id))
        if flow is not None and _has_expired(flow, now_ms):
            _remove(tables, flow_key(key.id))
            return None

        return tables.head(key)

    if key.kind == WAIT:
        row = tables.wait(key)
        head = row.head if row is not None else None
    else:
        head = tables.head(key)

    if head is not None and _has_expired(head, now_ms):
        _remove(tables, key)
        return None

    return head


def _remove(tables: Tables, key: Key) -> bool:
    """Remove a record and all that belongs to it; whether there was one."""
    if key.kind == WAIT:
        row = tables.wait(key)
        if row is not None:
            tables.remove_wait(key, row)

        return row is not None

    head = tables.head(key)
    if head is None:
        return False

    if key.kind == FLOW:
        for step in tables.steps(key.id):
            tables.remove(step.key, step.head)

    tables.remove(key, head)
    return True

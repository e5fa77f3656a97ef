"""The store protocol of stores that live in this process: memory, SQLite, and stores of your own.

They differ in how they keep rows (`Tables`), not in what they decide: that is in `protocol.rules`.
Every request is one `Call`, which the store's transport runs as one transaction. A call whose reply
was lost is sent again. A commit is logged with its reply under its id, so it is applied once;
`Extend`, `Sweep` and `Clear` are logged likewise, under ids that are made here. The log is kept
for twice the store's timeout.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from collections.abc import Iterable
from typing import Any

from catga_store.errors import StoreUnavailableError
from catga_store.protocol import rules
from catga_store.protocol.conversation import Call
from catga_store.protocol.conversation import Conversation
from catga_store.protocol.conversation import NotSentError
from catga_store.protocol.conversation import Pause
from catga_store.protocol.conversation import ReplyLostError
from catga_store.protocol.conversation import Request
from catga_store.protocol.failures import check_layout
from catga_store.protocol.failures import given_up
from catga_store.protocol.failures import uncertain
from catga_store.protocol.hints import hints_of_commit
from catga_store.protocol.hints import hints_of_extension
from catga_store.protocol.keys import FLOW
from catga_store.protocol.keys import PART
from catga_store.protocol.keys import Key
from catga_store.protocol.keys import new_commit_id
from catga_store.protocol.keys import part_key
from catga_store.protocol.requests import SWEEP_EVERY
from catga_store.protocol.requests import SWEPT_AT_ONCE
from catga_store.protocol.requests import Applied
from catga_store.protocol.requests import Clear
from catga_store.protocol.requests import Commit
from catga_store.protocol.requests import Count
from catga_store.protocol.requests import CountDue
from catga_store.protocol.requests import Due
from catga_store.protocol.requests import DueWaits
from catga_store.protocol.requests import Extend
from catga_store.protocol.requests import Find
from catga_store.protocol.requests import Identify
from catga_store.protocol.requests import ListDue
from catga_store.protocol.requests import Outcome
from catga_store.protocol.requests import Overdue
from catga_store.protocol.requests import Parts
from catga_store.protocol.requests import Ping
from catga_store.protocol.requests import Read
from catga_store.protocol.requests import RemoveParts
from catga_store.protocol.requests import Reply
from catga_store.protocol.requests import Resolve
from catga_store.protocol.requests import Scan
from catga_store.protocol.requests import Stats
from catga_store.protocol.requests import Steps
from catga_store.protocol.requests import Sweep
from catga_store.protocol.rules import Tables
from catga_store.protocol.wakeups import Listen
from catga_store.protocol.wakeups import Wakeups

__all__ = ["EmbeddedProtocol"]

LAYOUT = 2
"""The version of what a store keeps, and where."""

_BY_ONE = FLOW, PART
"""Kinds of records that stores read with one statement each."""
_TRIES = 4
_PAUSE_SECONDS = 0.01


class EmbeddedProtocol:
    """The store protocol of a store whose transport runs functions over `Tables` as transactions.

    `partitions` and the layout version are stored at first use and checked whenever the store is
    opened later; `timeout` is in seconds. `wakeups` has those who wait for these records in this
    process; stores that share records share it.
    """

    def __init__(self, *, partitions: int, timeout: float, wakeups: Wakeups | None = None) -> None:
        self._wakeups = Wakeups() if wakeups is None else wakeups
        self._partitions = partitions
        self._log_for_ms = int(timeout * 2000)
        self._is_prepared = False
        self._tidies = itertools.cycle([False] * (SWEEP_EVERY - 1) + [True])
        """Whether the next write also removes a few expired records and old log entries."""
        self._handlers: dict[type, Callable[[Any], Conversation[Any]]] = {
            Read: self._read,
            Commit: self._commit,
            Resolve: self._resolve,
            Extend: self._writing(rules.extend),
            Sweep: self._writing(rules.sweep),
            Clear: self._writing(rules.clear),
            RemoveParts: self._writing(rules.remove_parts),
            Steps: self._reading(rules.steps),
            Parts: self._reading(rules.parts, single=True),
            Due: self._reading(rules.due),
            DueWaits: self._reading(rules.due_waits),
            Overdue: self._reading(rules.overdue),
            Find: self._reading(rules.find),
            Count: self._reading(rules.count),
            ListDue: self._reading(rules.list_due),
            CountDue: self._reading(rules.count_due),
            Stats: self._reading(rules.stats),
            Scan: self._reading(rules.scan),
            Ping: self._reading(rules.ping),
            Identify: self._reading(rules.identify),
            Listen: self._listen,
        }

    def converse(self, request: Request[object]) -> Conversation[object]:
        """Do what a store protocol request asks and return its reply."""
        handler = self._handlers[type(request)]
        return handler(request) if self._is_prepared else self._prepare(handler, request)

    # one handler per request ----------------------------------------------------------------------

    def _read(self, request: Read) -> Conversation[Any]:
        keys = request.keys
        single = len(keys) == 1 and keys[0].kind in _BY_ONE
        call = Call(lambda tables: rules.read(tables, request), False, single, request)  # noqa: FBT003  as below
        try:
            return (yield call)
        except (NotSentError, ReplyLostError) as error:
            return (yield from _send_again(call, error))

    def _commit(self, request: Commit) -> Conversation[Reply]:
        at_ms = time.time_ns() // 1_000_000
        tidies = next(self._tidies)

        def transaction(tables: Tables) -> Reply:
            if tidies:
                rules.sweep(tables, Sweep(request.now_ms, SWEPT_AT_ONCE))
                tables.forget_log(at_ms - self._log_for_ms, 2 * SWEEP_EVERY)

            return rules.apply(tables, request, at_ms)

        call: Call[Reply] = Call(transaction, True, False, request)  # noqa: FBT003  as above
        reply: Reply
        try:
            reply = yield call
        except (NotSentError, ReplyLostError) as error:
            keys = [change.key for change in request.changes]
            reply = yield from _send_again(call, error, request.id, keys)

        if self._wakeups.waiters and isinstance(reply, Applied):
            self._wakeups.publish(hints_of_commit(request, reply))

        return reply

    def _resolve(self, request: Resolve) -> Conversation[Applied | None]:
        at_ms = _now_ms()
        call = Call(
            lambda tables: rules.resolve(tables, request, at_ms), writes=True, request=request
        )
        try:
            applied: Applied | None = yield from _send(call, request.id, request.keys)
        except StoreUnavailableError as error:
            raise uncertain(request.id, request.keys, error) from error

        return applied

    def _reading(
        self, function: Callable[[Tables, Any], Any], *, single: bool = False
    ) -> Callable[[Any], Conversation[Any]]:
        def handler(request: Any) -> Conversation[Any]:
            call = Call(lambda tables: function(tables, request), False, single, request)  # noqa: FBT003  half of what the names cost
            try:
                return (yield call)
            except (NotSentError, ReplyLostError) as error:
                return (yield from _send_again(call, error))

        return handler

    def _writing(
        self, function: Callable[[Tables, Any], Any]
    ) -> Callable[[Any], Conversation[Any]]:
        """Handle requests without a commit id: they get one, and with it a definite outcome."""

        def handler(request: Any) -> Conversation[Any]:
            commit_id, at_ms = new_commit_id(), _now_ms()
            tidies = next(self._tidies)
            result: Any = None

            def transaction(tables: Tables) -> bool:
                nonlocal result
                logged = tables.logged(commit_id)
                if logged is not None:
                    return bool(logged)  # an earlier try was applied, and its result is known

                if tidies:
                    tables.forget_log(at_ms - self._log_for_ms, 2 * SWEEP_EVERY)

                result = function(tables, request)
                tables.log(commit_id, at_ms, (Outcome(),))
                return True

            keys: tuple[Key, ...] = ()
            if isinstance(request, Extend):
                keys = (request.key,)
            elif isinstance(request, RemoveParts):
                keys = (part_key(request.flow_id, request.prefix),)

            call = Call(transaction, writes=True, request=request)
            if not (yield from _send(call, commit_id, keys)):
                raise given_up(commit_id)

            if self._wakeups.waiters and isinstance(request, Extend) and result is not None:
                self._wakeups.publish(hints_of_extension(result))

            return result

        return handler

    def _listen(self, request: Listen) -> Conversation[None]:
        request.waiter.join(self._wakeups)
        yield from ()

    def _prepare(
        self, handler: Callable[[Any], Conversation[Any]], request: Request[object]
    ) -> Conversation[object]:
        """Store the layout, or check what is stored, before the first request."""
        layout = yield from _send(Call(lambda tables: tables.layout(), writes=False))
        if layout is None:
            lay_out = Call(lambda tables: _lay_out(tables, self._partitions), writes=True)
            try:
                layout = yield from _send(lay_out)
            except ReplyLostError as error:
                message = (
                    f"{error}; the store may have been created, but no record was read or written"
                )
                raise StoreUnavailableError(message) from error

        check_layout(*layout, known=LAYOUT, partitions=self._partitions)
        self._is_prepared = True
        return (yield from handler(request))


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _lay_out(tables: Tables, partitions: int) -> tuple[int, int]:
    """Set the layout unless another process has; return what it is."""
    layout = tables.layout()
    if layout is None:
        layout = LAYOUT, partitions
        tables.lay_out(*layout)

    return layout


def _send(call: Call[Any], commit_id: str = "", keys: Iterable[Key] = ()) -> Conversation[Any]:
    """Send a call, and again when its reply was lost."""
    try:
        return (yield call)
    except (NotSentError, ReplyLostError) as error:
        return (yield from _send_again(call, error, commit_id, keys))


def _send_again(
    call: Call[Any],
    error: NotSentError | ReplyLostError,
    commit_id: str = "",
    keys: Iterable[Key] = (),
) -> Conversation[Any]:
    """Send a call again as long as only its reply was lost: every call here may be sent twice.

    A write whose reply was lost is uncertain even if a later try could not be sent, because the
    first may have been applied. Without a commit id that is a `ReplyLostError`.
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
        raise uncertain(commit_id, keys, lost) if commit_id else lost

    message = f"{error}; nothing was written"
    raise StoreUnavailableError(message) from error

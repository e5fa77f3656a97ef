"""Faults on the wire of an embedded store: replies that are lost, stores that are away.

A `Faults` stands between a store and its wire. Nothing is slept: while it is attached, pauses
before another try take no time.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any
from typing import Literal
from typing import TypeAlias
from typing import get_args

from attrs import define

from catga_store.aio import AsyncStore
from catga_store.conversation import Call
from catga_store.conversation import NotSentError
from catga_store.conversation import ReplyLostError
from catga_store.drivers.local import LocalDriver
from catga_store.drivers.local import Wire
from catga_store.drivers.local_async import AsyncLocalDriver
from catga_store.errors import NotSupportedError
from catga_store.errors import UsageError
from catga_store.records import ANY
from catga_store.records import EXISTS
from catga_store.records import STALE
from catga_store.records import Check
from catga_store.records import Commit
from catga_store.records import Conflict
from catga_store.records import Delete
from catga_store.records import Head
from catga_store.records import Put
from catga_store.records import Refused
from catga_store.store import Store

__all__ = ["CommitFault", "ExchangeFault", "Faults"]

CommitFault: TypeAlias = Literal[
    "reply-lost", "unknown-applied", "unknown-not-applied", "unavailable", "conflict"
]
ExchangeFault: TypeAlias = Literal["not sent", "lost before applying", "lost after applying"]


@define
class _Armed:
    kind: CommitFault
    after: int
    times: int


@define
class _AtExchange:
    number: int
    how: ExchangeFault
    times: int


class Faults:
    """Faults for the stores it is attached to: memory and SQLite, blocking and async.

    >>> from catga_store import CommitUncertainError, FlowSnapshot, MemoryStore
    >>> faults = Faults()
    >>> store = faults.attach(MemoryStore())
    >>> faults.on_commit("unknown-applied")
    >>> try:
    ...     store.create(FlowSnapshot("order-1", state={}))
    ... except CommitUncertainError as error:
    ...     receipt = store.resolve_commit(error)
    >>> receipt.versions
    {Key(kind='flow', id='order-1', step=0): 1}
    """

    def __init__(self) -> None:
        self.exchanges: list[str] = []
        """The name of the waist request behind each exchange since the start, or `reset`."""
        self.pauses: list[float] = []
        """The pauses that were swallowed, in seconds."""
        self._armed: list[_Armed] = []
        self._at: list[_AtExchange] = []
        self._struck: dict[str, CommitFault] = {}
        self._passed: set[str] = set()
        self._lock = threading.Lock()

    def attach(self, store: Any) -> Any:
        """Stand between a store and its wire; answers the store.

        `NotSupportedError` for a store that is not embedded.
        """
        driver = store._driver if isinstance(store, Store | AsyncStore) else None
        if isinstance(driver, LocalDriver):
            driver.sleep = self.pauses.append
        elif isinstance(driver, AsyncLocalDriver):
            driver.sleep = self._pause
        else:
            message = f"faults are injected into memory and SQLite stores, not into {store!r}"
            raise NotSupportedError(message)

        driver.wire = _FaultyWire(driver.wire, self)
        return store

    async def _pause(self, seconds: float) -> None:
        self.pauses.append(seconds)

    # arming ---------------------------------------------------------------------------------------

    def on_commit(self, kind: CommitFault, after: int = 0, times: int = 1) -> None:
        """Let `times` commits fail, after `after` others have passed.

        - `"reply-lost"`: applied; the first reply is lost, the next try finds it. The caller sees
          success.
        - `"unknown-applied"`: applied, and no reply ever comes: `CommitUncertainError`, and
          `resolve_commit` answers the receipt.
        - `"unknown-not-applied"`: never applied, and no reply ever comes: `CommitUncertainError`,
          and `resolve_commit` answers `None`.
        - `"unavailable"`: not sent: `StoreUnavailableError`.
        - `"conflict"`: refused, as if somebody else had written first: the `ConflictError` of the
          first record that can have one. A commit of nothing but completions passes.
        """
        if kind not in get_args(CommitFault):
            message = f"no fault is called {kind!r}; there are {', '.join(get_args(CommitFault))}"
            raise UsageError(message)

        with self._lock:
            self._armed.append(_Armed(kind, after, times))

    def at_exchange(self, number: int, how: ExchangeFault, times: int = 1) -> None:
        """Let `times` exchanges fail, from exchange `number` on, counted from 1 since `reset`."""
        if how not in get_args(ExchangeFault):
            message = f"no fault is called {how!r}; there are {', '.join(get_args(ExchangeFault))}"
            raise UsageError(message)

        with self._lock:
            self._at.append(_AtExchange(number, how, times))

    def reset(self) -> None:
        """Disarm everything, and count exchanges from the start."""
        with self._lock:
            self._armed.clear()
            self._at.clear()
            self._struck.clear()
            self._passed.clear()
            self.exchanges.clear()
            self.pauses.clear()

    # on the wire ----------------------------------------------------------------------------------

    def perform(self, wire: Callable[[Call[Any]], Any], call: Call[Any]) -> Any:
        """Perform one exchange, or let it fail."""
        request = call.request

        with self._lock:
            self.exchanges.append("Layout" if request is None else type(request).__name__)
            at = self._strikes_at(len(self.exchanges))
            kind, again = self._strikes(request)

        if at is not None:
            return _fail(at, wire, call)

        if kind is None:
            return wire(call)

        return _fail_commit(kind, wire, call, again=again)

    def _strikes_at(self, number: int) -> ExchangeFault | None:
        for at in self._at:
            if at.number <= number < at.number + at.times:
                return at.how

        return None

    def _strikes(self, request: object) -> tuple[CommitFault | None, bool]:
        """The fault of a commit, and whether this is another try; a commit is counted once."""
        if not isinstance(request, Commit) or request.id in self._passed:
            return None, False

        if request.id in self._struck:
            return self._struck[request.id], True

        kind = self._next(request)
        if kind is None:
            self._passed.add(request.id)
        else:
            self._struck[request.id] = kind

        return kind, False

    def _next(self, commit: Commit) -> CommitFault | None:
        while self._armed and not self._armed[0].times:
            del self._armed[0]

        if not self._armed:
            return None

        armed = self._armed[0]
        if armed.kind == "conflict" and _conflict_of(commit) is None:
            return None

        if armed.after:
            armed.after -= 1
            return None

        armed.times -= 1
        return armed.kind

    def __repr__(self) -> str:
        return f"<Faults armed: {len(self._armed) + len(self._at)}>"


def _fail(how: ExchangeFault, wire: Callable[[Call[Any]], Any], call: Call[Any]) -> Any:
    if how == "not sent":
        message = "a fault: the request was not sent"
        raise NotSentError(message)

    if how == "lost after applying":
        wire(call)

    message = f"a fault: the reply was {how}"
    raise ReplyLostError(message)


def _fail_commit(
    kind: CommitFault, wire: Callable[[Call[Any]], Any], call: Call[Any], *, again: bool
) -> Any:
    if kind == "unavailable":
        return _fail("not sent", wire, call)

    if kind == "unknown-not-applied" or (kind == "unknown-applied" and again):
        return _fail("lost before applying", wire, call)

    if kind == "reply-lost" and again:
        return wire(call)

    if kind == "conflict":
        assert isinstance(call.request, Commit)
        conflict = _conflict_of(call.request)
        return Refused(() if conflict is None else (conflict,))

    return _fail("lost after applying", wire, call)


def _conflict_of(commit: Commit) -> Conflict | None:
    """What a rival's write would have been reported as; `None` if nothing here can conflict."""
    for place, change in enumerate(commit.changes):
        if isinstance(change, Put) and change.expected == ANY:
            continue

        if isinstance(change, Put | Delete) and change.replaces is not None:
            old = change.replaces
            return Conflict(
                place, STALE, old._replace(version=old.version + 1, revision="a rival's")
            )

        if isinstance(change, Put | Check):
            reason = EXISTS if change.expected is None else STALE
            head = Head(1, 0, commit.now_ms, commit.now_ms, revision="a rival's")
            return Conflict(place, reason, head)

    return None


class _FaultyWire:
    """A wire that asks before each exchange whether it is to fail."""

    def __init__(self, wire: Wire, faults: Faults) -> None:
        self.wire = wire
        self.threaded = wire.threaded
        self._faults = faults

    def __call__(self, call: Call[Any]) -> Any:
        return self._faults.perform(self.wire, call)

    def close(self) -> None:
        """Close the wire below."""
        self.wire.close()

    def __repr__(self) -> str:
        return f"<{self._faults!r} on {self.wire!r}>"

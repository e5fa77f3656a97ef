"""Faults between a store and its transport: lost replies and unavailable stores.

A `Faults` wraps the store protocol of any store (`hooks`). On memory and SQLite the pauses before a
retry take no time while it is attached. On a server they do, because the store retries until its
`timeout` has passed.
"""

from __future__ import annotations

import threading
from typing import Any
from typing import Literal
from typing import TypeAlias
from typing import get_args

from attrs import define

from catga_store.aio import AsyncStore
from catga_store.errors import CommitUncertainError
from catga_store.errors import StoreUnavailableError
from catga_store.errors import UsageError
from catga_store.protocol.conversation import Call
from catga_store.protocol.conversation import Conversation
from catga_store.protocol.conversation import Invoke
from catga_store.protocol.conversation import NotSentError
from catga_store.protocol.conversation import Pause
from catga_store.protocol.conversation import ReplyLostError
from catga_store.protocol.conversation import Request
from catga_store.protocol.conversation import through
from catga_store.protocol.requests import ANY
from catga_store.protocol.requests import EXISTS
from catga_store.protocol.requests import IF_ABSENT
from catga_store.protocol.requests import STALE
from catga_store.protocol.requests import Check
from catga_store.protocol.requests import Commit
from catga_store.protocol.requests import Conflict
from catga_store.protocol.requests import Delete
from catga_store.protocol.requests import Head
from catga_store.protocol.requests import Ping
from catga_store.protocol.requests import Put
from catga_store.protocol.requests import Refused
from catga_store.protocol.store_protocol import StoreProtocol
from catga_store.stores.embedded import EmbeddedProtocol
from catga_store.stores.nats.transport import Publish
from catga_store.stores.redis.transport import Pipe
from catga_store.testing.hooks import wrap_protocol

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
    """Injects faults into stores of any kind, blocking or async. Attach it to each store that should fail.

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
        """The name of the store protocol request of each exchange, from the start or since `reset`."""
        self.pauses: list[float] = []
        """The pauses that were skipped, in seconds."""
        self._armed: list[_Armed] = []
        self._at: list[_AtExchange] = []
        self._lock = threading.Lock()

    def attach(self, store: Any) -> Any:
        """Inject the faults between a store and its transport, and return the store.

        Call this method before the store is first used. Raises `NotSupportedError` if the store is not one of
        this library's stores.
        """
        embedded: list[bool] = []

        def wrap(protocol: StoreProtocol) -> StoreProtocol:
            embedded.append(isinstance(protocol, EmbeddedProtocol))
            return _FaultyProtocol(protocol, self)

        wrap_protocol(store, wrap)
        if any(embedded):
            is_async = isinstance(store, AsyncStore)
            store._driver.sleep = self._pause if is_async else self.pauses.append

        return store

    async def _pause(self, seconds: float) -> None:
        self.pauses.append(seconds)

    # arming ---------------------------------------------------------------------------------------

    def on_commit(self, kind: CommitFault, after: int = 0, times: int = 1) -> None:
        """Make `times` commits fail, after `after` other commits have been let through.

        - `"reply-lost"`: the commit is applied; the first reply is lost, and the next attempt finds it. The
          caller sees a success.
        - `"unknown-applied"`: the commit is applied, but no reply ever arrives. The call raises
          `CommitUncertainError`, and `resolve_commit` returns the receipt. A commit that the store refuses is
          still refused.
        - `"unknown-not-applied"`: the commit is never applied, and no reply ever arrives. The call raises
          `CommitUncertainError`, and `resolve_commit` returns `None`.
        - `"unavailable"`: the commit is not sent. The call raises `StoreUnavailableError`.
        - `"conflict"`: the commit is refused, as if another client had written first. The call raises the
          `ConflictError` of the first record that can have one. Commits that contain only completions,
          appends, and parts that are kept or overwritten are let through.
        """
        if kind not in get_args(CommitFault):
            message = f"unknown fault {kind!r}: expected one of {', '.join(get_args(CommitFault))}"
            raise UsageError(message)

        with self._lock:
            self._armed.append(_Armed(kind, after, times))

    def at_exchange(self, number: int, how: ExchangeFault, times: int = 1) -> None:
        """Make `times` exchanges fail, starting with exchange `number`, which is counted from 1 since `reset`."""
        if how not in get_args(ExchangeFault):
            message = f"unknown fault {how!r}: expected one of {', '.join(get_args(ExchangeFault))}"
            raise UsageError(message)

        with self._lock:
            self._at.append(_AtExchange(number, how, times))

    def reset(self) -> None:
        """Remove all faults, and start counting exchanges again."""
        with self._lock:
            self._armed.clear()
            self._at.clear()
            self.exchanges.clear()
            self.pauses.clear()

    # between a store and its transport -------------------------------------------------------------------

    def next_exchange(self, name: str) -> ExchangeFault | None:
        """Count one exchange, and return how it should fail."""
        with self._lock:
            self.exchanges.append(name)
            number = len(self.exchanges)
            for at in self._at:
                if at.number <= number < at.number + at.times:
                    return at.how

        return None

    def next_commit(self, commit: Commit) -> CommitFault | None:
        """Return how the next commit should fail; each fault is counted once."""
        with self._lock:
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


def _conflict_of(commit: Commit) -> Conflict | None:
    """Return the conflict that a write of another client would cause; `None` if there is none."""
    for place, change in enumerate(commit.changes):
        if isinstance(change, Put) and change.expected in (ANY, IF_ABSENT):
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


class _FaultyProtocol:
    """A store protocol whose exchanges with the transport fail as `Faults` says."""

    def __init__(self, protocol: StoreProtocol, faults: Faults) -> None:
        self.protocol: Any = protocol
        self._faults = faults

    def converse(self, request: Request[Any]) -> Conversation[Any]:
        """Perform the request, or fail."""
        kind = self._faults.next_commit(request) if isinstance(request, Commit) else None
        if kind is None:
            conversation = self.protocol.converse(request)
            return through(conversation, lambda transport: self._exchange(request, transport))

        assert isinstance(request, Commit)
        return self._fail(kind, request)

    def _exchange(self, request: Request[Any], transport: Request[Any]) -> Conversation[Any]:
        if isinstance(transport, Pause | Invoke):
            return (yield transport)

        is_layout = isinstance(transport, Call) and transport.request is None
        how = self._faults.next_exchange("Layout" if is_layout else type(request).__name__)
        if how is None:
            return (yield transport)

        if how == "not sent":
            message = "injected fault: the request was not sent"
            raise NotSentError(message)

        if how == "lost after applying":
            yield transport

        message = f"injected fault: the reply was {how}"
        raise ReplyLostError(message)

    def _fail(self, kind: CommitFault, commit: Commit) -> Conversation[Any]:
        if kind == "conflict":
            conflict = _conflict_of(commit)
            return Refused(() if conflict is None else (conflict,))

        if kind == "unavailable":
            message = "injected fault: the store is unavailable; nothing was written"
            raise StoreUnavailableError(message)

        if kind == "reply-lost":
            yield from self.protocol.converse(
                Ping()
            )  # so that what is lost is not a first greeting
            lost = _Once()
            return (yield from through(self.protocol.converse(commit), lost.exchange))

        if kind == "unknown-applied":
            applied: Conversation[Any] = self.protocol.converse(commit)
            reply = yield from applied
            if isinstance(reply, Refused):
                return reply  # nothing was applied that could be found later

        keys = tuple(change.key for change in commit.changes)
        message = f"injected fault: the outcome of commit {commit.id} is unknown"
        raise CommitUncertainError(message, commit_id=commit.id, keys=keys)


class _Once:
    """Loses the reply to the first exchange that writes."""

    def __init__(self) -> None:
        self._is_lost = False

    def exchange(self, transport: Request[Any]) -> Conversation[Any]:
        """Do one exchange."""
        reply = yield transport
        writes = isinstance(transport, Publish) or (
            isinstance(transport, Call | Pipe) and transport.writes
        )
        # A server that does not know the script yet has applied nothing.
        refused = isinstance(transport, Pipe) and any(isinstance(one, Exception) for one in reply)
        if writes and not refused and not self._is_lost:
            self._is_lost = True
            message = "injected fault: the reply was lost"
            raise ReplyLostError(message)

        return reply

"""The NATS JetStream store."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

from catga_store.conversation import Conversation
from catga_store.conversation import Request
from catga_store.errors import StoreUnavailableError
from catga_store.keys import FLOW
from catga_store.keys import PROGRESS
from catga_store.keys import WAIT
from catga_store.keys import flow_key
from catga_store.records import Clear
from catga_store.records import Commit
from catga_store.records import Count
from catga_store.records import Due
from catga_store.records import Extend
from catga_store.records import Find
from catga_store.records import Found
from catga_store.records import Head
from catga_store.records import Overdue
from catga_store.records import Ping
from catga_store.records import Read
from catga_store.records import Record
from catga_store.records import Reply
from catga_store.records import Resolve
from catga_store.records import Scan
from catga_store.records import Steps
from catga_store.records import Sweep
from catga_store.stores import embedded
from catga_store.stores.nats_commits import Commits
from catga_store.stores.nats_layout import Layout
from catga_store.stores.nats_listings import Listings
from catga_store.stores.nats_setup import prepare
from catga_store.stores.nats_sweeping import Sweeping
from catga_store.stores.nats_sweeping import new_name
from catga_store.stores.nats_wire import Exchange

__all__ = ["NatsWaist"]

_SWEEP_EVERY = 16
_SWEEP_A_FEW = 8


class NatsWaist:
    """The waist of a NATS store; its wire requests are `Greet`, `Asks`, `Publish` and `Pause`."""

    def __init__(
        self,
        *,
        bucket: str = "dslflows",
        replicas: int = 1,
        stale_reads: bool = False,
        partitions: int = 1,
        timeout: float = 10.0,
    ) -> None:
        self._layout = Layout(bucket)
        self._exchange = Exchange(self._layout.stream, timeout)
        self._commits = Commits(self._layout, self._exchange)
        listings = Listings(self._commits)
        self._sweeping = Sweeping(self._commits, listings)
        self._committed = 0
        self._prepare = partial(
            prepare,
            self._exchange,
            self._layout,
            partitions=partitions,
            replicas=replicas,
            stale_reads=stale_reads,
        )
        self._prepared = False
        self._handlers: dict[type, Callable[[Any], Conversation[Any]]] = {
            Read: self._read,
            Steps: self._steps,
            Commit: self._commit,
            Resolve: self._commits.resolve,
            Extend: self._extend,
            Due: listings.due,
            Overdue: listings.overdue,
            Find: listings.find,
            Count: listings.count,
            Scan: listings.scan,
            Sweep: self._sweeping.sweep,
            Clear: self._clear,
            Ping: self._ping,
        }

    def converse(self, request: Request[object]) -> Conversation[object]:
        """Do what a waist request asks and return its reply."""
        handler = self._handlers[type(request)]
        return handler(request) if self._prepared else self._first(handler, request)

    def _first(
        self, handler: Callable[[Any], Conversation[Any]], request: Request[object]
    ) -> Conversation[object]:
        """See that the store can be used before anything else is asked of it."""
        yield from self._prepare()
        self._prepared = True
        return (yield from handler(request))

    # one handler per request ----------------------------------------------------------------------

    def _read(self, request: Read) -> Conversation[tuple[Record | None, ...]]:
        subjects = [self._layout.subject(key) for key in request.keys]
        subjects += [
            self._layout.subject(flow_key(key.id)) for key in request.keys if key.kind == PROGRESS
        ]
        records, _ = yield from self._commits.decide(
            lambda tables: embedded.read(tables, request), subjects, self._exchange.deadline()
        )
        return records

    def _commit(self, request: Commit) -> Conversation[Reply]:
        self._committed += 1
        if self._committed % _SWEEP_EVERY == 0:
            with suppress(StoreUnavailableError):  # the commit itself will say so
                yield from self._sweeping.expired(Sweep(request.now_ms, _SWEEP_A_FEW))

        return (yield from self._commits.commit(request))

    def _steps(self, request: Steps) -> Conversation[tuple[Found, ...]]:
        found, _ = yield from self._commits.decide(
            lambda tables: embedded.steps(tables, request),
            [self._layout.subject(flow_key(request.flow_id))],
            self._exchange.deadline(),
        )
        return found

    def _extend(self, request: Extend) -> Conversation[Head | None]:
        return (
            yield from self._commits.change(
                lambda tables: embedded.extend(tables, request), [request.key], new_name()
            )
        )

    def _clear(self, _request: Clear) -> Conversation[None]:
        deadline = self._exchange.deadline()
        kinds = [self._layout.all_of(kind) for kind in (FLOW, PROGRESS, WAIT)]
        rest = [f"{self._layout.rest}{what}.>" for what in ("list", "due", "item", "chunk")]
        for wanted in (*kinds, *rest):
            yield from self._exchange.api("PURGE", {"filter": wanted}, deadline)

    def _ping(self, _request: Ping) -> Conversation[None]:
        yield from self._exchange.fetch([self._layout.layout], self._exchange.deadline())

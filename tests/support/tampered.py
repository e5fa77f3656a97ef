"""Stores of which somebody has changed what is stored, behind their back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import catga_store as cs
from catga_store.protocol.conversation import Conversation
from catga_store.protocol.conversation import Request
from catga_store.protocol.conversation import ask
from catga_store.protocol.keys import FLOW
from catga_store.protocol.keys import PART
from catga_store.protocol.keys import PROGRESS
from catga_store.protocol.keys import WAIT
from catga_store.protocol.keys import Key
from catga_store.protocol.keys import part_key
from catga_store.protocol.requests import Due
from catga_store.protocol.requests import Parts
from catga_store.protocol.requests import Read
from catga_store.protocol.requests import Record
from catga_store.protocol.requests import Scan
from catga_store.protocol.requests import Scanned
from catga_store.protocol.store_protocol import StoreProtocol
from catga_store.testing.hooks import wrap_protocol

Place = tuple[Key, str]
"""The key of a record, and the child whose result is meant, or nothing."""


def stored_bodies(store: cs.Store) -> dict[Place, bytes]:
    """Return every body of a store as it is stored."""
    bodies: dict[Place, bytes] = {}
    now_ms = store._context.settings.now_ms()
    for kind in (FLOW, PART, PROGRESS, WAIT):
        for key, record, *_ in _scanned(store, kind, now_ms):
            if record.body:
                bodies[key, ""] = record.body

            bodies |= {(key, item.child): item.payload for item in record.items}

    return bodies


def _scanned(store: cs.Store, kind: str, now_ms: int) -> Iterator[Scanned]:
    after = None
    while found := store._driver.run(ask(Scan(kind, after, 100, now_ms))):
        yield from found
        after = found[-1].key


class Tampered:
    """The store protocol of a store that returns other bodies than are stored."""

    def __init__(self, store: Any) -> None:
        self.bodies: dict[Place, bytes] = {}
        """What is returned in their place."""
        self._protocol: StoreProtocol
        wrap_protocol(store, self._wrap)

    def _wrap(self, protocol: StoreProtocol) -> Tampered:
        self._protocol = protocol
        return self

    def converse(self, request: Request[Any]) -> Conversation[Any]:
        """Perform a request, and exchange the bodies in its reply."""
        reply: Any = yield from self._protocol.converse(request)
        if isinstance(request, Read):
            pairs = zip(request.keys, reply, strict=True)
            return tuple(record and self._changed(key, record) for key, record in pairs)

        if isinstance(request, Due):
            return tuple(
                one
                if one.body is None
                else one._replace(body=self.bodies.get((one.key, ""), one.body))
                for one in reply
            )

        if isinstance(request, Scan):
            return tuple(one._replace(record=self._changed(one.key, one.record)) for one in reply)

        if isinstance(request, Parts) and request.bodies:
            keys = [(part_key(request.flow_id, one.name), "") for one in reply]
            return tuple(
                one._replace(body=self.bodies.get(place, one.body))
                for place, one in zip(keys, reply, strict=True)
            )

        return reply

    def _changed(self, key: Key, record: Record) -> Record:
        items = tuple(
            item._replace(payload=self.bodies.get((key, item.child), item.payload))
            for item in record.items
        )
        return record._replace(body=self.bodies.get((key, ""), record.body), items=items)

"""Which nodes of a directory a listing will need, as far as this process has seen: it asks for them with the root.

A directory of several levels is read from its root down, one request for each level. A listing therefore
keeps the inner nodes that it has read, and the next one names with its first request what those lead to.
They decide nothing: the listing goes the same way over what it has read now, reads what was not
foreseen, and does without what was foreseen in vain.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence
from contextlib import suppress

from catga_store.protocol.requests import Parts
from catga_store.stores.nats.part_directory import Directory
from catga_store.stores.nats.part_tables import bounds
from catga_store.stores.nats.part_text import Node
from catga_store.stores.nats.reading import keep

__all__ = ["KnownNodes"]

_KEPT = 64
"""Inner nodes of all flows: of some 300 names each, so two MiB."""


class KnownNodes:
    """Inner nodes of the directories of flows, as they were read last."""

    def __init__(self) -> None:
        self._nodes: dict[tuple[str, str], Node] = {}

    def foresee(self, wanted: Parts) -> list[str]:
        """Return the nodes that a listing would probably read, without the root."""
        flow_id = wanted.flow_id
        root = self._nodes.get((flow_id, ""))
        if root is None:
            return []

        first, last = bounds(wanted)
        if last is not None and last <= first:
            return []

        foreseen: list[str] = []

        def load(_path: Sequence[str], some: Sequence[str]) -> Node:
            known = self._nodes.get((flow_id, some[0]))
            if known is None:
                foreseen.extend(some)
                raise _UnknownError

            foreseen.append(some[0])
            return known

        with suppress(_UnknownError):
            list(Directory(root, load, str).rows(first, last, wanted.limit, reverse=wanted.reverse))

        return foreseen

    def learn(self, flow_id: str, inner: Mapping[str, Node]) -> None:
        """Keep the inner nodes that a listing has read; without any, the flow has a root only."""
        if not inner:
            self._nodes.pop((flow_id, ""), None)

        for name, node in inner.items():
            self._nodes.pop((flow_id, name), None)  # what was used last is forgotten last
            keep(self._nodes, (flow_id, name), node, _KEPT)


class _UnknownError(Exception):
    """Below this node nothing is known."""

"""What the NATS doctor sees of parts: their roots, the nodes that these name, and what was dropped."""

from __future__ import annotations

import json
from collections.abc import Awaitable
from collections.abc import Callable
from collections.abc import Sequence

from attrs import frozen

from catga_store.errors import CorruptRecordError
from catga_store.stores.findings import Finding
from catga_store.stores.nats.layout import NatsLayout
from catga_store.stores.nats.layout import node_of
from catga_store.stores.nats.layout import root_of
from catga_store.stores.nats.part_text import decode_root
from catga_store.stores.nats.transport import Answer
from catga_store.stores.nats.transport import Ask

__all__ = ["PartsSeen", "look_at_parts", "parts_finding"]

_MOST_ROOTS = 1000
_TOGETHER = 100


@frozen
class PartsSeen:
    """What there is of parts."""

    roots: int = 0
    looked_at: int = 0
    broken: tuple[str, ...] = ()
    """Flows whose directory cannot be read, or names nodes that are not there."""
    dropped: int = 0
    """Lives that have ended, and that a sweep has not purged yet."""


async def look_at_parts(
    layout: NatsLayout,
    names: Callable[[str], Awaitable[Sequence[str]]],
    ask: Callable[[Ask], Awaitable[Sequence[Answer]]],
) -> PartsSeen:
    """Look at some roots, and at the nodes that they name."""
    roots = await names(layout.roots())
    dropped = await names(f"{layout.due('dead')}>")
    broken: list[str] = []
    some = roots[:_MOST_ROOTS]
    gone = 0

    for start in range(0, len(some), _TOGETHER):
        found, tombstones = await _broken(layout, some[start : start + _TOGETHER], ask)
        broken += found
        gone += tombstones

    if broken:  # a commit may have come between the two reads of one
        again = [layout.subject(root_of(name)) for name in broken[:_TOGETHER]]
        broken, _ = await _broken(layout, again, ask)

    return PartsSeen(len(roots) - gone, len(some) - gone, tuple(broken), len(dropped))


async def _broken(
    layout: NatsLayout,
    page: Sequence[str],
    ask: Callable[[Ask], Awaitable[Sequence[Answer]]],
) -> tuple[list[str], int]:
    """Flows whose directory is broken, and how many of these roots are tombstones."""
    nodes: dict[str, str] = {}
    broken: list[str] = []
    gone = 0
    for answer in await _last(layout, page, ask):
        if answer.headers.get("KV-Operation"):
            gone += 1
            continue

        flow_id = layout.root_owner(answer.headers["Nats-Subject"])
        try:
            root = decode_root(root_of(flow_id), answer.data)
        except CorruptRecordError:
            broken.append(flow_id)
            continue

        for child in root.node.children[:_TOGETHER]:
            nodes[layout.subject(node_of(flow_id, child.node))] = flow_id

    there: set[str] = set()
    wanted = list(nodes)
    for start in range(0, len(wanted), _TOGETHER):
        answers = await _last(layout, wanted[start : start + _TOGETHER], ask)
        there |= {
            answer.headers["Nats-Subject"]
            for answer in answers
            if not answer.headers.get("KV-Operation")
        }

    broken += [flow_id for subject, flow_id in nodes.items() if subject not in there]
    return list(dict.fromkeys(broken)), gone


async def _last(
    layout: NatsLayout,
    subjects: Sequence[str],
    ask: Callable[[Ask], Awaitable[Sequence[Answer]]],
) -> Sequence[Answer]:
    if not subjects:
        return ()

    payload = json.dumps({"multi_last": list(subjects)}).encode()
    answers = await ask(Ask(f"{layout.api}.DIRECT.GET.{layout.stream}", payload, many=True))
    return [answer for answer in answers if "Nats-Subject" in answer.headers]


def parts_finding(seen: PartsSeen) -> Finding:
    """Say what there is of parts."""
    found = f"{seen.roots:,} flows have parts"
    if seen.broken:
        shown = ", ".join(repr(name[:100]) for name in seen.broken[:3])
        return Finding(
            "parts",
            "problem",
            (
                f"{found}; {len(seen.broken):,} of {seen.looked_at:,} directories of parts cannot "
                f"be read: {shown}"
            ),
            (
                "the parts in these directories cannot be listed or written; the flows "
                "themselves are not affected"
            ),
            "restore the stream from a backup, or delete these flows and their parts",
        )

    if seen.dropped:
        return Finding(
            "parts",
            "info",
            f"{found}; the remains of {seen.dropped:,} deleted sets of parts may still have "
            "to be purged",
            "readers treat these parts as absent, but the parts take up space",
            "no action is needed: a sweep purges them",
        )

    return Finding("parts", "ok", found, "every node that the directories of parts name exists")

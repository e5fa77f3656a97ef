"""What processes do that work on one store at the same time; `forks.together` runs them."""

from __future__ import annotations

import random
from collections import Counter
from datetime import timedelta

import catga_store as cs


def transact(url: str, number: int, times: int) -> list[tuple[int, int]]:
    """Add to the counter that many times; return the version and the value each commit had read."""
    with cs.open_store(url, owner=f"worker-{number}") as store:

        def add(session: cs.Session) -> tuple[int, int]:
            flow = session.get_one("counter")
            flow.state["n"] += 1
            return flow.version, flow.state["n"] - 1

        return [store.transact(add, attempts=1000) for _ in range(times)]


def claim(url: str, number: int, limit: int) -> list[str]:
    """Claim until nothing is due; return what was claimed."""
    taken: list[str] = []
    with cs.open_store(url, owner=f"worker-{number}") as store:
        while flows := store.claim_due(limit=limit, lease=timedelta(hours=1)):
            taken += [flow.flow_id for flow in flows]

    return taken


def complete(url: str, number: int, total: int, processes: int) -> dict[str, int]:
    """Send this process's part of the completions and its neighbour's, so that each is sent twice."""
    seen: Counter[str] = Counter()
    sent = [
        f"child-{child}"
        for part in (number, number + 1)
        for child in range(part % processes, total, processes)
    ]
    random.Random(number).shuffle(sent)
    with cs.open_store(url) as store:
        for child in sent:
            answer = store.complete_child("all", child, result=child)
            seen.update(
                accepted=answer.accepted,
                duplicate=answer.duplicate,
                now_satisfied=answer.now_satisfied,
            )

    return dict(seen)

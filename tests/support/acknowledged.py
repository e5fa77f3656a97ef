"""A program that writes to a store and logs what was acknowledged, and the check of what is left.

`python acknowledged.py URL LOG SEED` writes until it is killed: flows alone, pairs of flows in one
commit, new flows, claims, completions. It logs a commit after the store has acknowledged it, with the
monotonic time. `check` holds a store against such logs: what was acknowledged is there, nothing is
torn, and every listing says what the records say.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any
from typing import NamedTuple

import catga_store as cs

FLOWS = 12
PAIRS = 4
START_SECONDS = 60.0
SETTLE_SECONDS = 20.0
"""Four times the timeout of the store; its replies are kept for twice that."""


class Writer:
    """One process that writes, and the log of what was acknowledged to it."""

    def __init__(self, url: str, folder: Path, seed: int) -> None:
        self.log = folder / f"acknowledged-{seed}.jsonl"
        self.log.touch()
        command = [sys.executable, __file__, url, str(self.log), str(seed)]
        self.errors = folder / f"errors-{seed}"
        with self.errors.open("ab") as errors:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=errors)

    def wait_for(self, number: int) -> None:
        """Wait until that many commits were acknowledged."""
        deadline = time.monotonic() + START_SECONDS
        while self.log.read_bytes().count(b"\n") < number:
            assert self.process.poll() is None, self.errors.read_text()
            assert time.monotonic() < deadline, f"no progress: {self.errors.read_text()}"
            time.sleep(0.002)

    def kill(self) -> None:
        """Kill the process, as a power failure does."""
        self.process.kill()
        self.process.wait()


class Acknowledged(NamedTuple):
    """What logs say: the newest acknowledged version of each flow, and how many commits that were."""

    versions: dict[str, int]
    commits: int


def read_logs(logs: Iterable[Path], before: float) -> Acknowledged:
    """Read what was acknowledged before that monotonic time, by incarnation of the store."""
    versions: dict[str, int] = {}
    commits = 0
    for log in logs:
        for line in log.read_text().splitlines(keepends=True):
            if not line.endswith("\n"):
                continue

            entry = json.loads(line)
            if entry["at"] < before:
                commits += 1
                for flow_id, version in entry["versions"].items():
                    versions[flow_id] = max(version, versions.get(flow_id, 0))

    return Acknowledged(versions, commits)


def lost(store: cs.Store, known: Acknowledged) -> list[str]:
    """Return the flows whose newest acknowledged version is not in the store."""
    flows = store.get_many(list(known.versions))
    return [
        flow_id
        for flow_id, version in known.versions.items()
        if (flow := flows[flow_id]) is None or flow.version < version
    ]


def torn(store: cs.Store) -> list[str]:
    """Return the pairs whose two flows were written by different commits, and unreadable flows."""
    found: list[str] = []
    for pair in range(PAIRS):
        try:
            left, right = (store.get(f"pair-{pair}-{side}") for side in ("left", "right"))
        except cs.CorruptRecordError as error:
            found.append(str(error))
            continue

        numbers = [flow and flow.state["n"] for flow in (left, right)]
        if numbers[0] != numbers[1]:
            found.append(f"pair {pair}: {numbers}")

    return found


def lost_updates(store: cs.Store) -> list[str]:
    """Return the flows whose count is not their version: a write was accepted over one it had not read."""
    ids = [summary.flow_id for summary in store.iter_flows()]
    flows = [flow for flow in store.get_many(ids).values() if flow is not None]
    return [
        f"{flow.flow_id}: {flow.state}, v{flow.version}"
        for flow in flows
        if flow.state["n"] != flow.version
    ]


def wrong_listings(store: cs.Store) -> list[str]:
    """Return where a listing, a count or what is due differs from the records themselves."""
    listed = {summary.flow_id: summary for summary in store.iter_flows()}
    flows = store.get_many(list(listed))
    found = [f"{flow_id} is listed and is not there" for flow_id in listed if not flows[flow_id]]
    if store.count_flows() != len(listed):
        found.append(f"{store.count_flows()} counted, {len(listed)} listed")

    known = [*(f"flow-{n}" for n in range(FLOWS))]
    known += [f"pair-{n}-{side}" for n in range(PAIRS) for side in ("left", "right")]
    unlisted = [name for name, flow in store.get_many(known).items() if flow and name not in listed]
    found += [f"{name} is there and not listed" for name in unlisted]
    for status in cs.FlowStatus:
        there = {flow.flow_id for flow in flows.values() if flow and flow.status is status}
        by_status = {summary.flow_id for summary in store.iter_flows(status=status)}
        if there != by_status:
            found.append(f"{status.name}: listed {sorted(by_status ^ there)} wrongly")

    return found


def wrong_claims(store: cs.Store) -> list[str]:
    """Claim all that is due: return what is due and not claimed, or claimed twice."""
    due = {flow.flow_id for flow in store.iter_flows() if flow.due_at and not flow.owner}
    claimed: list[str] = []
    while batch := store.claim_due(lease=timedelta(hours=1), limit=100):
        claimed += [flow.flow_id for flow in batch]

    twice = {flow_id for flow_id in claimed if claimed.count(flow_id) > 1}
    found = [f"{flow_id} was claimed twice" for flow_id in sorted(twice)]
    return found + [f"{flow_id} is due and not found" for flow_id in sorted(due - {*claimed})]


# --- the program ------------------------------------------------------------------------------------


def open_store(url: str) -> cs.Store:
    """Open the store at a URL; `sentinel://a:1,b:2/name?acknowledged_by=1` asks Sentinels for Redis."""
    timeout = timedelta(seconds=5)
    scheme, _, rest = url.partition("://")
    if scheme != "sentinel":
        return cs.open_store(url, timeout=timeout)

    from redis.backoff import NoBackoff  # noqa: PLC0415  of the tests that have Sentinels only
    from redis.retry import Retry  # noqa: PLC0415  as above
    from redis.sentinel import Sentinel  # noqa: PLC0415  as above

    places, _, named = rest.partition("/")
    name, _, query = named.partition("?")
    addresses = [tuple(place.split(":")) for place in places.split(",")]
    once: dict[str, Any] = {
        "socket_connect_timeout": 1.0,
        "socket_timeout": 2.0,
        "retry": Retry(NoBackoff(), 0),
    }
    sentinel = Sentinel(addresses, sentinel_kwargs=once, **once)
    options = {
        key: int(value) for key, value in (pair.split("=") for pair in query.split("&") if pair)
    }
    return cs.RedisStore(sentinel.master_for(name), timeout=timeout, **options)


def main(url: str, log: str, seed: int) -> None:
    """Write until killed; what becomes of a commit whose reply was lost is found out first."""
    draw = random.Random(seed)
    number = 0
    with open_store(url) as store, Path(log).open("a", encoding="utf-8") as out:
        while True:
            number += 1
            versions = _outcome(store, _drawn_ids(draw, seed, number))
            if versions:
                entry = {"at": time.monotonic(), "versions": versions}
                out.write(json.dumps(entry) + "\n")
                out.flush()


def _outcome(store: cs.Store, ids: list[str]) -> dict[str, int] | None:
    """Write flows; returns their versions if that was acknowledged, or settled as applied."""
    try:
        return _write(store, ids)
    except (cs.ConflictError, cs.StoreUnavailableError):
        return None
    except cs.CommitUncertainError as error:
        # A fault may outlast the time for which the store can tell. Then nothing was acknowledged.
        give_up = time.monotonic() + SETTLE_SECONDS
        while time.monotonic() < give_up:
            with suppress(cs.CommitUncertainError, cs.StoreUnavailableError):
                receipt = store.resolve_commit(error)
                return None if receipt is None else _versions(receipt)

        return None


def _versions(receipt: cs.Receipt) -> dict[str, int]:
    return {key.id: version for key, version in receipt.versions.items()}


def _drawn_ids(draw: random.Random, seed: int, number: int) -> list[str]:
    kind = draw.choice(["flow", "flow", "pair", "pair", "new"])
    if kind == "flow":
        return [f"flow-{draw.randrange(FLOWS)}"]

    if kind == "new":
        return [f"new-{seed}-{number}"]

    pair = draw.randrange(PAIRS)
    return [f"pair-{pair}-left", f"pair-{pair}-right"]


def _write(store: cs.Store, ids: list[str]) -> dict[str, int]:
    with store.session() as session:
        for flow_id in ids:
            flow = session.get(flow_id)
            if flow is None:
                session.add(cs.FlowSnapshot(flow_id, state={"n": 1}))
            else:
                flow.state["n"] += 1
                flow.status = cs.FlowStatus(flow.state["n"] % 2)

        return _versions(session.commit())


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))

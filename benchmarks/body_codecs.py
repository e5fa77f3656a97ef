"""What compression and encryption of bodies cost: a state of 32 KiB, beside the same store without codecs.

    python benchmarks/body_codecs.py [--version 8.2] [--calls N] [--rounds N]

On SQLite and Redis: `get` as a typed state and as raw data, `update`, and a claim with its release, which
write the body only if it is bound. Round trips and stored bytes are asserted: with codecs as many round trips,
and with both fewer bytes.
Times are reported, not asserted, as multiples of what took turns with them in the same run. Starts a server of
its own. Needs `catga_store[cli,encryption,redis,test,zstd]`.
"""

from __future__ import annotations

import argparse
import itertools
import random
import tempfile
from collections.abc import Callable
from collections.abc import Iterable
from contextlib import ExitStack
from datetime import UTC
from datetime import datetime
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

from attrs import define
from rich.console import Console
from rich.table import Table
from subject import exchanges
from timing import interleaved

import catga_store as cs
from catga_store.protocol.conversation import ask
from catga_store.protocol.keys import flow_key
from catga_store.protocol.requests import Read
from catga_store.testing.servers import RedisServer

KEY = cs.Keys({"2026-11": bytes(range(32))})
CHAINS: dict[str, Callable[[], list[cs.BodyCodec]]] = {
    "plain": list,
    "Zstd": lambda: [cs.Zstd()],
    "Encrypt": lambda: [cs.Encrypt(KEY)],
    "both": lambda: [cs.Zstd(), cs.Encrypt(KEY)],
}
ROUND_TRIPS = {
    "SQLite": {"get": 1, "get, raw": 1, "update": 1, "claim and release": 4},
    "Redis": {"get": 1, "get, raw": 1, "update": 1, "claim and release": 4},
}
BAR = 1.5
"""At most so many times the plain operation, with both codecs."""


@define
class Event:
    """Something that happened."""

    id: str
    at: datetime
    amount: int
    note: str


@define
class History:
    """The state."""

    step: int
    events: list[Event]


def make_state() -> History:
    """Make a state of 32 KiB encoded: events with ids, times, amounts and some text, as states have them."""
    drawn = random.Random(32)
    words = [
        "order",
        "parcel",
        "paid",
        "shipped",
        "returned",
        "refund",
        "carrier",
        "delayed",
        "customer",
        "invoice",
    ]
    start = datetime(2026, 11, 1, tzinfo=UTC)
    events = [
        Event(
            f"{drawn.getrandbits(64):016x}",
            start + timedelta(seconds=drawn.randrange(2_000_000)),
            drawn.randrange(10_000),
            " ".join(drawn.choices(words, k=8)),
        )
        for _ in range(226)
    ]
    return History(0, events)


class Case:
    """One store with one chain of codecs, and a flow in it."""

    def __init__(self, store: cs.Store) -> None:
        self.store = store
        self.flow = cs.FlowSnapshot("f", state=make_state(), due_at=None)
        store.create(self.flow)
        self.numbers = itertools.count()

    def get(self) -> None:
        """Read the flow as its type."""
        self.store.get("f", History)

    def get_raw(self) -> None:
        """Read the flow as raw data, the cheapest reading there is."""
        self.store.get("f")

    def update(self) -> None:
        """Change the flow and write it."""
        self.flow.state.step = next(self.numbers)
        self.store.update(self.flow)

    def claim(self) -> None:
        """Claim the flow and give it back."""
        held = self.store.claim("f", History, lease=timedelta(seconds=60))
        self.store.release(held, due_at=None)
        self.flow = held

    def stored_bytes(self) -> int:
        """Return how many bytes the store keeps of the body."""
        found: Any = self.store._driver.run(ask(Read((flow_key("f"),), 0)))  # noqa: SLF001  as it is stored
        return len(found[0].body)


def measure(kind: str, cases: dict[str, Case], table: Table, options: argparse.Namespace) -> None:
    """Assert round trips and bytes of one store, and time its operations."""
    calls = {
        "get": Case.get,
        "get, raw": Case.get_raw,
        "update": Case.update,
        "claim and release": Case.claim,
    }
    for name, call in calls.items():
        counted = {
            chain: exchanges(case.store, partial(call, case)) for chain, case in cases.items()
        }
        wanted = ROUND_TRIPS[kind][name]
        assert set(counted.values()) == {wanted}, f"{kind} {name}: round trips are {counted}"

    sizes = {chain: case.stored_bytes() for chain, case in cases.items()}
    assert sizes["both"] < sizes["plain"], sizes
    assert sizes["Encrypt"] < sizes["plain"] + 100, sizes
    table.add_row(f"{kind}: bytes stored", *(f"{sizes[chain]:,}" for chain in CHAINS))
    for name, call in calls.items():
        times = interleaved(
            {chain: partial(call, case) for chain, case in cases.items()},
            calls=options.calls,
            rounds=options.rounds,
        )
        cells = [
            f"{times[chain].p50:,.0f} us" + _times(times[chain].over(times["plain"]), chain)
            for chain in CHAINS
        ]
        table.add_row(f"{kind}: {name}, {ROUND_TRIPS[kind][name]} round trips", *cells)


def _times(ratio: float, chain: str) -> str:
    if chain == "plain":
        return ""

    if chain != "both":
        return f", {ratio:.2f} x"

    return f", [{'green' if ratio <= BAR else 'red'}]{ratio:.2f} x[/]"


def opened(
    stack: ExitStack, make: Callable[[str, Any], cs.Store], names: Iterable[str]
) -> dict[str, Case]:
    """Open a store of its own for each chain."""
    return {name: Case(stack.enter_context(make(name, CHAINS[name]()))) for name in names}


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--version", default="8.2")
    parser.add_argument("--calls", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    table = Table("", *CHAINS, title="A state of 32 KiB through codecs")
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        server = stack.enter_context(RedisServer(options.version))

        def sqlite(name: str, codecs: Any) -> cs.Store:
            return cs.SQLiteStore(directory / f"{name}.db", codecs=codecs)

        def redis(name: str, codecs: Any) -> cs.Store:
            return cs.RedisStore.from_url(server.url, prefix=f"{name}:", codecs=codecs)

        measure("SQLite", opened(stack, sqlite, CHAINS), table, options)
        measure("Redis", opened(stack, redis, CHAINS), table, options)

    Console().print(table)


if __name__ == "__main__":
    main()

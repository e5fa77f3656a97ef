"""The NATS store beside bare nats-py, in one run on one server: ratios, group commit, growth.

    python benchmarks/nats_store.py [records]

A real server is started from its wheel. "bare" is nats-py with the same subject, headers and bytes;
the codec is measured alone and added to it.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Awaitable
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import Any
from typing import TypeVar

import nats

import catga_store as cs
from catga_store import envelope
from catga_store.aio import AsyncStore
from catga_store.conversation import Conversation
from catga_store.conversation import Invoke
from catga_store.conversation import Publish
from catga_store.conversation import Request
from catga_store.conversation import arun
from catga_store.conversation import ask
from catga_store.conversation import through
from catga_store.drivers.nats_asyncio import NatsLink
from catga_store.records import Record
from catga_store.settings import Settings
from catga_store.stores.nats import NatsWaist
from catga_store.testing.servers import NatsServer

T = TypeVar("T")

STATE = {"items": [{"sku": f"sku-{number}", "amount": number} for number in range(12)]}
ROUNDS, TIMES, TASKS = 7, 100, 100
OLD = "Nats-Expected-Last-Subject-Sequence"


class Driver:
    """Runs conversations on the loop it is called in."""

    def __init__(self, waist: NatsWaist, link: NatsLink) -> None:
        """Take both."""
        self.waist, self.link = waist, link
        self.seen: Callable[[Request[Any]], None] | None = None

    async def run(self, conversation: Conversation[T]) -> T:
        """Run a conversation over waist requests."""
        return await arun(through(conversation, self._converse), self._perform)

    def _converse(self, request: Request[Any]) -> Conversation[Any]:
        return ask(request) if isinstance(request, Invoke) else self.waist.converse(request)

    async def _perform(self, request: Request[Any]) -> Any:
        if self.seen is not None:
            self.seen(request)

        if isinstance(request, Invoke):
            return await request.function()

        return await self.link.perform(request)

    async def close(self) -> None:
        """Close the link."""
        await self.link.close()


def open_store(url: str) -> AsyncStore:
    """An async store at `url`."""
    settings = Settings(timeout=timedelta(seconds=60))
    waist = NatsWaist(timeout=settings.timeout)
    return AsyncStore(Driver(waist, NatsLink(url, timeout=settings.timeout)), settings)


async def best(call: Callable[[], Awaitable[object]], times: int = TIMES) -> float:
    """Microseconds of one call: the best of several rounds."""
    found = float("inf")
    for _ in range(ROUNDS):
        start = time.perf_counter()
        for _ in range(times):
            await call()

        found = min(found, (time.perf_counter() - start) / times)

    return found * 1e6


async def at_once(call: Callable[[int], Awaitable[object]], each: int = 10) -> float:
    """Operations per second of 100 tasks."""

    async def some(number: int) -> None:
        for _ in range(each):
            await call(number)

    found = 0.0
    for _ in range(3):
        start = time.perf_counter()
        await asyncio.gather(*(some(number) for number in range(TASKS)))
        found = max(found, TASKS * each / (time.perf_counter() - start))

    return found


def codec_us(flow: cs.FlowSnapshot[Any]) -> tuple[float, float]:
    """Microseconds to encode and to decode this flow."""
    record = flow._loaded  # noqa: SLF001  what a store would hand over
    assert isinstance(record, Record)
    start = time.perf_counter()
    for _ in range(1000):
        envelope.encode_flow(flow)

    middle = time.perf_counter()
    for _ in range(1000):
        envelope.decode_flow("f", record, None)

    return (middle - start) * 1000, (time.perf_counter() - middle) * 1000


async def single(store: AsyncStore, nc: Any) -> None:
    """One flow: read and written."""
    flow = cs.FlowSnapshot("f", state=dict(STATE), due_at=None)
    await store.create(flow)
    driver: Any = store._driver  # noqa: SLF001  the wire is what is measured
    sent: list[Publish] = []
    driver.seen = lambda request: sent.append(request) if isinstance(request, Publish) else None
    flow.state["n"] = 0
    await store.update(flow)
    driver.seen = None
    message = sent[-1].messages[0]
    encode, decode = codec_us(flow)
    headers = {**message.headers}
    nc.sequence = int(flow.revision.partition("@")[2])
    number = 0

    async def bare_get() -> None:
        payload = json.dumps({"last_by_subj": message.subject}).encode()
        await nc.request("$JS.API.DIRECT.GET.KV_dslflows", payload)

    async def bare_update() -> None:
        nonlocal number
        number += 1
        headers["Nats-Msg-Id"] = f"bare-{number}"
        headers[OLD] = str(nc.bare)
        reply = await nc.request("$KV.dslflows.bare", message.payload, headers=headers)
        nc.bare = json.loads(reply.data)["seq"]

    async def update() -> None:
        flow.state["n"] += 1
        await store.update(flow)

    nc.bare = 0
    bare, ours = await best(bare_get), await best(lambda: store.get("f"))
    print(
        f"get                     {ours:7.0f} us, bare {bare:.0f} + {decode:.0f} us: {ours / (bare + decode):.2f}"
    )
    bare, ours = await best(bare_update), await best(update)
    print(
        f"update                  {ours:7.0f} us, bare {bare:.0f} + {encode:.0f} us: {ours / (bare + encode):.2f}"
    )

    bare = await at_once(lambda _: bare_get())
    ours = await at_once(lambda _: store.get("f"))
    print(f"100 tasks get           {ours:7.0f} /s, bare {bare:.0f} /s: {ours / bare:.2f}")
    flows = [cs.FlowSnapshot(f"t-{one}", state=dict(STATE), due_at=None) for one in range(TASKS)]
    for one in flows:
        await store.create(one)

    async def put(one: int) -> None:
        flows[one].state["n"] = time.perf_counter_ns()
        await store.update(flows[one])

    async def bare_put(one: int) -> None:
        nonlocal number
        number += 1
        plain = {"Nats-Msg-Id": f"put-{number}"}
        await nc.request(f"$KV.dslflows.bare.{one}", message.payload, headers=plain)

    bare, ours = await at_once(bare_put), await at_once(put)
    print(f"100 tasks update        {ours:7.0f} /s, bare {bare:.0f} /s: {ours / bare:.2f}")


async def batches(store: AsyncStore, nc: Any) -> None:
    """Commits of three records."""
    flows = [
        [cs.FlowSnapshot(f"b-{one}-{two}", state=dict(STATE), due_at=None) for two in range(3)]
        for one in range(TASKS)
    ]
    for one in flows:
        async with store.begin() as session:
            for flow in one:
                session.add(flow)

    async def three(one: int) -> None:
        async with store.begin() as session:
            for flow in flows[one]:
                flow.state["n"] = time.perf_counter_ns()
                session.add(flow)

    driver: Any = store._driver  # noqa: SLF001  the wire is what is measured
    sent: list[Publish] = []
    driver.seen = lambda request: sent.append(request) if isinstance(request, Publish) else None
    await three(0)
    driver.seen = None
    payloads = [message.payload for message in sent[-1].messages]
    number = 0

    async def bare() -> None:
        nonlocal number
        number += 1
        for place, payload in enumerate(payloads, start=1):
            headers = {"Nats-Batch-Id": f"bare-{number}", "Nats-Batch-Sequence": str(place)}
            subject = f"$KV.dslflows.batch.{place}"
            if place < len(payloads):
                await nc.publish(subject, payload, headers=headers)
            else:
                await nc.request(subject, payload, headers=headers | {"Nats-Batch-Commit": "1"})

    plain, ours = await best(bare, 20), await best(lambda: three(0), 20)
    print(f"commit of three         {ours:7.0f} us, bare batch {plain:.0f} us: {ours / plain:.2f}")
    together = await at_once(three, 3)
    print(
        f"100 tasks, three each   {together:7.0f} /s, one batch each {1e6 / plain:.0f} /s: {together * plain / 1e6:.1f}"
    )


async def growth(store: AsyncStore, records: int) -> None:
    """What a page, a due scan, a read and a write cost among many flows."""
    made = 0
    for wanted in (1000, records):
        while made < wanted:
            some = range(made, min(made + 500, wanted))
            await asyncio.gather(
                *(
                    store.create(
                        cs.FlowSnapshot(
                            f"g-{one}",
                            state={"n": one},
                            due_at=store.now() + timedelta(days=1, seconds=one),
                        )
                    )
                    for one in some
                )
            )
            made = some.stop

        flow = cs.FlowSnapshot(f"probe-{wanted}", state={"n": 0}, due_at=None)
        await store.create(flow)

        async def update(flow: cs.FlowSnapshot[Any] = flow) -> None:
            flow.state["n"] += 1
            await store.update(flow)

        get_us = await best(lambda: store.get("g-1"))
        put_us = await best(update)
        page = await best(store.query_flows, 5)
        second = (await store.query_flows()).cursor
        later = await best(partial(store.query_flows, cursor=second), 5)
        none = await best(store.get_timed_out_wait_conditions, 5)
        print(
            f"among {wanted:7}: get {get_us:.0f} us, update {put_us:.0f} us, page {page / 1000:.1f} ms,"
            f" next page {later / 1000:.1f} ms, nothing due {none / 1000:.1f} ms"
        )


async def main(url: str, records: int) -> None:
    """Print the table."""
    store = open_store(url)
    await store.ping()
    nc: Any = await nats.connect(url)
    await single(store, nc)
    await batches(store, nc)
    await growth(store, records)
    await nc.close()
    await store.close()


if __name__ == "__main__":
    with NatsServer() as server:
        asyncio.run(main(server.url, int(sys.argv[1]) if len(sys.argv) > 1 else 20_000))

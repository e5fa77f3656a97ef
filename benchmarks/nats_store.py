"""The NATS store beside bare nats-py, in one run on one server: ratios, group commit, growth.

    python benchmarks/nats_store.py [--records 100000] [single tasks batches growth backlog due blocking]

A real server is started from its wheel. "bare" is nats-py with the same subject, headers and bytes;
the codec is measured alone and added to it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import time
from collections.abc import Awaitable
from collections.abc import Callable
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from typing import Any

import nats

import catga_store as cs
from catga_store.aio import AsyncStore
from catga_store.core import envelope
from catga_store.drivers.nats_asyncio import NatsLink
from catga_store.protocol.keys import flow_key
from catga_store.protocol.keys import new_commit_id
from catga_store.protocol.requests import Commit
from catga_store.protocol.requests import Put
from catga_store.protocol.requests import Read
from catga_store.protocol.requests import Record
from catga_store.stores.nats.transport import Publish
from catga_store.testing.servers import NatsServer

STATE = {"items": [{"sku": f"sku-{number}", "amount": number} for number in range(12)]}
ROUNDS, TIMES, TASKS = 7, 100, 100
OLD = "Nats-Expected-Last-Subject-Sequence"


@contextmanager
def watched() -> Generator[list[Publish]]:
    """What is published meanwhile."""
    sent: list[Publish] = []
    begin = NatsLink._begin  # noqa: SLF001  what every publish comes through

    def watch(link: NatsLink, line: Any, request: Publish) -> Any:
        sent.append(request)
        return begin(link, line, request)

    setattr(NatsLink, "_begin", watch)  # noqa: B010  type checkers refuse the assignment of a method
    try:
        yield sent
    finally:
        setattr(NatsLink, "_begin", begin)  # noqa: B010  see above


async def best(*calls: Callable[[], Awaitable[object]], times: int = TIMES) -> list[float]:
    """Microseconds of one call, for each: the best of several rounds, in which they alternate."""
    found = [float("inf")] * len(calls)
    for _ in range(ROUNDS):
        for place, call in enumerate(calls):
            start = time.perf_counter()
            for _ in range(times):
                await call()

            found[place] = min(found[place], (time.perf_counter() - start) / times * 1e6)

    return found


async def at_once(*calls: Callable[[int], Awaitable[object]], each: int = 10) -> list[float]:
    """Operations per second of 100 tasks, for each call, likewise."""

    async def some(call: Callable[[int], Awaitable[object]], number: int) -> None:
        for _ in range(each):
            await call(number)

    found = [0.0] * len(calls)
    for _ in range(ROUNDS):
        for place, call in enumerate(calls):
            start = time.perf_counter()
            await asyncio.gather(*(some(call, number) for number in range(TASKS)))
            found[place] = max(found[place], TASKS * each / (time.perf_counter() - start))

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
        envelope.decode_flow(flow_key("f"), record, None)

    return (middle - start) * 1000, (time.perf_counter() - middle) * 1000


async def single(store: AsyncStore, nc: Any) -> dict[str, float]:
    """One flow: read and written."""
    flow = cs.FlowSnapshot("f", state=dict(STATE), due_at=None)
    await store.create(flow)
    flow.state["n"] = 0
    with watched() as sent:
        await store.update(flow)

    message = sent[-1].messages[0]
    encode, decode = codec_us(flow)
    headers = {**message.headers}
    nc.sequence = int(flow.revision.partition("@")[2])
    number = 0

    async def bare_get() -> None:
        payload = json.dumps({"last_by_subj": message.subject}).encode()
        await nc.request("$JS.api.DIRECT.GET.KV_dslflows", payload)

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
    bare, ours = await best(bare_get, lambda: store.get("f"))
    bare_times = {"get": bare + decode}
    print(
        f"get                     {ours:7.0f} us, bare {bare:.0f} + {decode:.0f} us: {ours / (bare + decode):.2f}"
    )
    bare, ours = await best(bare_update, update)
    bare_times["update"] = bare + encode
    print(
        f"update                  {ours:7.0f} us, bare {bare:.0f} + {encode:.0f} us: {ours / (bare + encode):.2f}"
    )

    return bare_times


async def tasks(store: AsyncStore, nc: Any) -> None:
    """100 tasks: reads, commits of ready-made bytes, and updates."""
    flow = cs.FlowSnapshot("r", state=dict(STATE), due_at=None)
    await store.create(flow)
    with watched() as sent:
        await store.update(flow)

    message = sent[-1].messages[0]
    wanted = json.dumps({"last_by_subj": message.subject}).encode()
    number = 0

    async def bare_get(_: int) -> None:
        await nc.request("$JS.api.DIRECT.GET.KV_dslflows", wanted)

    bare, ours = await at_once(bare_get, lambda _: store.get("r"))
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

    driver: Any = store._driver  # noqa: SLF001  a benchmark looks under the store protocol
    now_ms = int(store.now().timestamp() * 1000)
    puts: list[Put] = []
    keys = tuple(one.key for one in flows)
    for key, record in zip(keys, await driver.ask(Read(keys, now_ms)), strict=True):
        puts.append(Put(key, record.head, record.body, record.head.revision, record.head))

    async def at_the_waist(one: int) -> None:
        reply = await driver.ask(Commit(new_commit_id(), now_ms, (puts[one],), None))
        revision = reply.outcomes[0].revision
        old = puts[one].head.stamped(revision, ())
        puts[one] = puts[one]._replace(expected=revision, replaces=old)

    bare, protocol = await at_once(bare_put, at_the_waist)
    print(
        f"100 tasks at the store protocol  {protocol:7.0f} /s, bare {bare:.0f} /s: {protocol / bare:.2f}"
    )
    flows = [await store.get_one(one.flow_id) for one in flows]
    bucket = await nc.jetstream().key_value("dslflows")
    last = [0] * TASKS

    async def key_value(one: int) -> None:
        last[one] = await bucket.update(f"kv.{one}", message.payload, last=last[one])

    bare, known, ours = await at_once(bare_put, key_value, put)
    print(f"100 tasks update        {ours:7.0f} /s, bare {bare:.0f} /s: {ours / bare:.2f}")
    print(f"  kv.update of nats-py  {known:7.0f} /s, ready-made bytes: {ours / known:.2f}")


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

    with watched() as sent:
        await three(0)

    # The same messages as the store sends, with sequences of their own.
    messages = sent[-1].messages
    last = [0] * len(messages)
    number = 0

    async def bare() -> None:
        nonlocal number
        number += 1
        for place, message in enumerate(messages):
            headers = {
                **message.headers,
                "Nats-Batch-Id": f"bare-{number}",
                "Nats-Batch-Sequence": str(place + 1),
            }
            subject = f"$KV.dslflows.bare.{place}"
            if "Nats-Msg-Id" in headers:  # the log, of a new name each time
                headers["Nats-Msg-Id"] = f"bare-{number}"
                subject = f"catga.dslflows.log.bare-{number}"
            else:
                headers[OLD] = str(last[place])

            if place + 1 < len(messages):
                await nc.publish(subject, message.payload, headers=headers)
                continue

            headers["Nats-Batch-Commit"] = "1"
            reply = await nc.request(subject, message.payload, headers=headers)
            seq = json.loads(reply.data)["seq"]
            last[:] = range(seq - place, seq + 1)

    plain, ours = await best(bare, lambda: three(0), times=20)
    print(f"commit of three         {ours:7.0f} us, bare batch {plain:.0f} us: {ours / plain:.2f}")
    (together,) = await at_once(three, each=3)
    print(
        f"100 tasks, three each   {together:7.0f} /s, one batch each {1e6 / plain:.0f} /s: {together * plain / 1e6:.1f}"
    )


async def store_all(store: AsyncStore, records: list[Any]) -> None:
    """Store records, in commits of 200."""

    async def some(start: int) -> None:
        async with store.begin() as session:
            for record in records[start : start + 200]:
                session.add(record)

    for start in range(0, len(records), 2000):
        await asyncio.gather(*(some(at) for at in range(start, start + 2000, 200)))


async def growth(store: AsyncStore, records: int) -> None:
    """What a page, a due scan, a read and a write cost among many flows."""
    made = 0
    for wanted in sorted({1000, records}):
        now = store.now()
        flows = [
            cs.FlowSnapshot(
                f"g-{one}",
                state={"n": one},
                due_at=now + timedelta(days=1, seconds=one),
                created_at=now - timedelta(milliseconds=7 * one),
            )
            for one in range(made, wanted)
        ]
        await store_all(store, flows)
        made = wanted
        flow = cs.FlowSnapshot(f"probe-{wanted}", state={"n": 0}, due_at=None)
        await store.create(flow)

        async def update(flow: cs.FlowSnapshot[Any] = flow) -> None:
            flow.state["n"] += 1
            await store.update(flow)

        get_us, put_us = await best(lambda: store.get("g-1"), update)
        second = (await store.query_flows()).cursor
        page, later, by_id, none = await best(
            store.query_flows,
            partial(store.query_flows, cursor=second),
            partial(store.query_flows, id_prefix="g-9"),
            store.get_timed_out_wait_conditions,
            times=5,
        )
        print(
            f"among {wanted:7}: get {get_us:.0f} us, update {put_us:.0f} us, page {page / 1000:.1f} ms,"
            f" next page {later / 1000:.1f} ms, page by id prefix {by_id / 1000:.1f} ms,"
            f" nothing due {none / 1000:.1f} ms"
        )


async def backlog(store: AsyncStore, records: int) -> None:
    """What it costs to claim from that many flows that are due."""
    now = store.now()
    for name, apart in (("at once", 0), ("1 ms apart", 1)):
        flows = [
            cs.FlowSnapshot(
                f"{name}-{one}", state={}, due_at=now - apart * timedelta(milliseconds=one)
            )
            for one in range(records)
        ]
        await store_all(store, flows)
        start = time.perf_counter()
        await store.claim_due()
        first = (time.perf_counter() - start) * 1000
        one, ten = await best(store.claim_due, partial(store.claim_due, limit=10), times=10)
        print(
            f"{records:7} due {name}: claim 1 {one / 1000:.1f} ms, 10 {ten / 1000:.1f} ms,"
            f" the first of a process {first:.0f} ms"
        )
        await store.clear()


async def due(store: AsyncStore, records: int) -> None:
    """What it costs to find 100 conditions past their deadline among that many pending ones."""
    now = store.now()
    waits = [
        cs.WaitCondition(
            f"w-{one}",
            flow_ids=["a"],
            created_at=now,
            timeout=timedelta(seconds=1 if one < 100 else 3600 + one),
        )
        for one in range(records)
    ]
    await store_all(store, waits)
    later = now + timedelta(minutes=1)
    assert len(await store.get_timed_out_wait_conditions(later)) == 100
    (took,) = await best(lambda: store.get_timed_out_wait_conditions(later), times=5)
    print(f"100 due of {records} pending conditions: {took / 1000:.1f} ms")


def blocking(url: str, bare_us: dict[str, float]) -> None:
    """What the blocking API costs, one call and then the calls of 16 threads."""
    with cs.NatsStore(url, timeout=timedelta(seconds=60)) as store:
        flow = cs.FlowSnapshot("blocking", state=dict(STATE), due_at=None)
        store.create(flow)

        def update() -> None:
            flow.state["n"] = time.perf_counter_ns()
            store.update(flow)

        for name, call in (("get", lambda: store.get("blocking")), ("update", update)):
            found = float("inf")
            for _ in range(ROUNDS):
                start = time.perf_counter()
                for _ in range(TIMES):
                    call()

                found = min(found, (time.perf_counter() - start) / TIMES * 1e6)

            bare = bare_us[name]
            print(
                f"blocking {name:<15}{found:7.0f} us, bare asyncio {bare:.0f} us: {found / bare:.2f}"
            )

        start = time.perf_counter()
        with ThreadPoolExecutor(16) as pool:
            for done in [pool.submit(store.get, "blocking") for _ in range(4000)]:
                done.result()

        print(f"16 threads get          {4000 / (time.perf_counter() - start):7.0f} /s")


async def main(url: str, records: int, parts: list[str]) -> dict[str, float]:
    """Print the tables; return the times of the bare calls."""
    bare = {"get": math.nan, "update": math.nan}
    async with cs.AsyncNatsStore(url, timeout=timedelta(seconds=60)) as store:
        nc: Any = await nats.connect(url)
        if "single" in parts or "blocking" in parts:
            bare = await single(store, nc)

        if "tasks" in parts:
            await tasks(store, nc)

        if "batches" in parts:
            await batches(store, nc)

        for part, measure in (("growth", growth), ("backlog", backlog), ("due", due)):
            if part in parts:
                await store.clear()
                await measure(store, records)

        await nc.close()
        return bare


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*")
    parser.add_argument("--records", type=int, default=20_000)
    arguments = parser.parse_args()
    wanted = arguments.parts or [
        "single",
        "tasks",
        "batches",
        "growth",
        "backlog",
        "due",
        "blocking",
    ]
    with NatsServer() as server:
        bare_us = asyncio.run(main(server.url, arguments.records, wanted))
        if "blocking" in wanted:
            blocking(server.url, bare_us)

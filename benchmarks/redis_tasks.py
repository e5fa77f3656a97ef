"""Commits by many tasks at a time, beside `redis.asyncio` sending the same script."""

from __future__ import annotations

import asyncio
import copy
import gc
import itertools
import time
import uuid
from collections.abc import Awaitable
from collections.abc import Callable
from typing import Any

import redis.asyncio
from state import Order
from subject import make_flows

import catga_store as cs
from catga_store.protocol.keys import flow_key
from catga_store.protocol.requests import Applied
from catga_store.protocol.requests import Commit
from catga_store.protocol.requests import Put
from catga_store.protocol.requests import Read

__all__ = ["rates_of_tasks"]


class Tasks:
    """A flow for each task, and the three ways to write it; who writes knows the last commit."""

    def __init__(self, store: cs.AsyncStore, client: Any, prefix: str, words: list[Any]) -> None:
        self.store = store
        self.client = client
        self.words = words
        self._begin = f"{{{prefix}0}}:".encode()
        self._driver: Any = store._driver  # noqa: SLF001  a benchmark looks under the store protocol
        self._commits: list[Commit] = []
        self._last: list[str] = []
        self._flows: list[cs.FlowSnapshot[Any]] = []
        self._turns = itertools.count()

    async def prepare(self, tasks: int) -> None:
        """Store the flows, and make the commits that write them again."""
        state = make_flows("x")[0].state
        for number in range(tasks):
            flow = cs.FlowSnapshot(f"flow-{number}", state=copy.deepcopy(state), due_at=None)
            await self.store.create(flow)

        now_ms = int(self.store.now().timestamp() * 1000)
        keys = tuple(flow_key(f"flow-{number}") for number in range(tasks))
        for key, record in zip(keys, await self._driver.ask(Read(keys, now_ms)), strict=True):
            self._commits.append(
                Commit("", now_ms, (Put(key, record.head, record.body, ""),), None)
            )

    async def look(self, tasks: int) -> None:
        """Read the flows, which the other ways have written."""
        names = [f"flow-{number}" for number in range(tasks)]
        found = await self.store.get_many(names, Order)
        self._flows = [flow for flow in found.values() if flow is not None]
        assert len(self._flows) == tasks
        self._last = [flow.revision for flow in self._flows]

    async def alone(self, number: int) -> None:
        """EVALSHA by redis-py: words as the store sends them, ready but for what they replace."""
        words, keys = self.words, self.words[2]
        first = 3 + keys
        flow_id, commit_id = f"flow-{number}".encode(), f"{next(self._turns):031x}"
        begin = self._begin
        mine = [
            begin + b"commit:" + commit_id.encode(),
            begin + b"index",
            *(begin + kind + flow_id for kind in (b"flow:", b"steps:", b"parts:")),
            *words[first:],
        ]
        mine[keys] = commit_id
        mine[keys + 6] = flow_id
        mine[keys + 8] = self._last[number]
        self._last[number] = commit_id
        assert type(await self.client.evalsha(words[1], keys, *mine)) is bytes

    async def at_the_waist(self, number: int) -> None:
        """A commit of ready-made bytes."""
        commit_id, commit = f"{next(self._turns):031x}", self._commits[number]
        put: Any = commit.changes[0]
        change = put._replace(expected=self._last[number])
        request = Commit(commit_id, commit.now_ms, (change,), commit.retain_ms)
        assert isinstance(await self._driver.ask(request), Applied)
        self._last[number] = commit_id

    async def update(self, number: int) -> None:
        """`update` of the benchmark's state."""
        flow = self._flows[number]
        flow.state.retries = (flow.state.retries + 1) % 10
        await self.store.update(flow)


async def rates_of_tasks(
    server: str, words: list[Any], tasks: int, calls: int, rounds: int
) -> dict[str, list[float]]:
    """Operations per second, round by round, of that many tasks with that many calls each.

    `words` are those of an `update`, as the store sends them.
    """
    prefix = f"{uuid.uuid4().hex[:8]}:"
    client: Any = redis.asyncio.Redis.from_url(server)
    async with cs.open_async_store(f"{server}?prefix={prefix}") as store:
        subject = Tasks(store, client, prefix, words)
        await subject.prepare(tasks)
        cases = {
            "EVALSHA": subject.alone,
            "commit at the store protocol": subject.at_the_waist,
            "update": subject.update,
        }
        rates: dict[str, list[float]] = {name: [] for name in cases}
        for _ in range(rounds):
            for name, case in cases.items():
                await subject.look(tasks)
                rates[name].append(await _rate(case, tasks, calls))

    await client.aclose()
    return rates


async def _rate(case: Callable[[int], Awaitable[None]], tasks: int, calls: int) -> float:
    async def work(number: int) -> None:
        for _ in range(calls):
            await case(number)

    gc.collect()
    start = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for number in range(tasks):
            group.create_task(work(number))

    return tasks * calls / (time.perf_counter() - start)

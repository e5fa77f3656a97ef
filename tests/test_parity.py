"""The parity machine on every store, through every face that it has."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test

from catga_store import AsyncMemoryStore
from catga_store import AsyncNatsStore
from catga_store import AsyncRedisStore
from catga_store import AsyncSQLiteStore
from catga_store import MemoryStore
from catga_store import NatsStore
from catga_store import RedisStore
from catga_store import Retention
from catga_store import SQLiteStore
from catga_store.stores.nats import wire
from catga_store.testing import AsyncFace
from catga_store.testing import BlockingFace
from catga_store.testing import Face
from catga_store.testing import ManualClock
from catga_store.testing import machine_for
from catga_store.testing.servers import NatsCluster
from catga_store.testing.servers import NatsServer
from catga_store.testing.servers import RedisServer

FACES = ["blocking", "asyncio", "trio"]


def open_face(kind: str, face: str, directory: Path) -> Callable[..., Face]:
    """Answer how to open an empty store of that kind behind that face."""
    numbers = count()
    blocking: dict[str, Any] = {"memory": MemoryStore, "sqlite": SQLiteStore}
    awaiting: dict[str, Any] = {"memory": AsyncMemoryStore, "sqlite": AsyncSQLiteStore}

    def open_one(clock: ManualClock, retention: Retention, partitions: int) -> Face:
        options = {"clock": clock, "retention": retention, "partitions": partitions}
        place = () if kind == "memory" else (directory / f"{next(numbers)}.db",)
        durable = kind == "sqlite"
        if face == "blocking":
            return BlockingFace(lambda: blocking[kind](*place, **options), durable=durable)

        make = awaiting[kind]
        return AsyncFace(lambda: make(*place, **options), backend=face, durable=durable)

    return open_one


# What crosses a thread or reaches a disk costs more: the same time buys fewer examples.
SHARE = {"blocking": 4, "asyncio": 2, "trio": 2}


@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize("kind", ["memory", "sqlite"])
def test_a_store_does_what_the_model_says(kind: str, face: str, tmp_path: Path) -> None:
    """Whatever is done to a store, what can be read of it is what the plain model says."""
    examples = settings.default.max_examples if settings.default else 50
    run_state_machine_as_test(
        machine_for(open_face(kind, face, tmp_path)),
        settings=settings(
            max_examples=examples * SHARE[face] // (1 if kind == "memory" else 2),
            stateful_step_count=40,
        ),
    )


@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize("kind", ["6.2", "8.2", "cluster"])
def test_redis_does_what_the_model_says(
    kind: str,
    face: str,
    redis_server: Callable[[str], RedisServer],
    request: pytest.FixtureRequest,
) -> None:
    """The same on servers; each example has a prefix of its own, and a cluster has many slots."""
    server = request.getfixturevalue("redis_cluster") if kind == "cluster" else redis_server(kind)

    def open_face(clock: ManualClock, retention: Retention, partitions: int) -> Face:
        prefix = f"{uuid.uuid4().hex}:"
        options: dict[str, Any] = {"clock": clock, "retention": retention, "prefix": prefix}
        options["partitions"] = partitions
        if face == "blocking":
            return BlockingFace(lambda: RedisStore.from_url(server.url, **options), durable=True)

        return AsyncFace(
            lambda: AsyncRedisStore.from_url(server.url, **options), backend=face, durable=True
        )

    machine = machine_for(open_face)
    if kind == "cluster":
        machine.partitions = (2, 5)

    examples = settings.default.max_examples if settings.default else 50
    run_state_machine_as_test(
        machine,
        settings=settings(max_examples=examples * SHARE[face] // 8, stateful_step_count=40),
    )


@pytest.fixture(scope="module")
def nats_cluster() -> Iterator[NatsCluster]:
    """Start three servers with one JetStream."""
    with NatsCluster() as cluster:
        yield cluster


# One of so many: what crosses a network and, with replicas, two more servers costs more.
NATS_SHARE = {"one server": 5, "three servers": 10, "windows": 8}


@pytest.mark.parametrize(
    ("kind", "face"),
    [
        *((kind, face) for kind in ("one server", "three servers") for face in FACES),
        ("windows", "blocking"),
    ],
)
def test_nats_does_what_the_model_says(
    kind: str, face: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same on JetStream, emptied before each example; `windows` lists as in a large store."""
    replicas = 3 if kind == "three servers" else 1
    name = "nats_cluster" if replicas > 1 else "nats_server"
    server: NatsServer | NatsCluster = request.getfixturevalue(name)
    if kind == "windows":
        monkeypatch.setattr(wire, "FEW_SUBJECTS", -1)

    bucket = uuid.uuid4().hex

    def open_face(clock: ManualClock, retention: Retention, partitions: int) -> Face:
        options: dict[str, Any] = {"clock": clock, "retention": retention, "replicas": replicas}
        options |= {"partitions": partitions, "bucket": f"{bucket}-{partitions}"}
        opened: Face
        if face == "blocking":
            opened = BlockingFace(lambda: NatsStore(server.url, **options), durable=True)
        else:
            opened = AsyncFace(
                lambda: AsyncNatsStore(server.url, **options), backend=face, durable=True
            )

        opened.clear()
        return opened

    examples = settings.default.max_examples if settings.default else 50
    run_state_machine_as_test(
        machine_for(open_face),
        settings=settings(max_examples=examples // NATS_SHARE[kind], stateful_step_count=40),
    )

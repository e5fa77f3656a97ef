"""The parity machine on every store, through every API of it."""

from __future__ import annotations

import inspect
import uuid
from collections.abc import Callable
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from hypothesis import seed
from hypothesis import settings
from hypothesis.stateful import invariant
from hypothesis.stateful import run_state_machine_as_test

from catga_store import AsyncMemoryStore
from catga_store import AsyncNatsStore
from catga_store import AsyncRedisStore
from catga_store import AsyncSession
from catga_store import AsyncSQLiteStore
from catga_store import AsyncStore
from catga_store import Encrypt
from catga_store import MemoryStore
from catga_store import NatsStore
from catga_store import RedisStore
from catga_store import Retention
from catga_store import Session
from catga_store import SQLiteStore
from catga_store import Store
from catga_store import Zstd
from catga_store.stores.nats import listings
from catga_store.stores.nats import searching
from catga_store.testing import AsyncAPI
from catga_store.testing import BlockingAPI
from catga_store.testing import ManualClock
from catga_store.testing import StoreAPI
from catga_store.testing import StoreMachine
from catga_store.testing import machine_for
from catga_store.testing.servers import NatsCluster
from catga_store.testing.servers import NatsServer
from catga_store.testing.servers import RedisServer

QUICK = 50
"""`max_examples` of the quick profile: the numbers below are for it, others go with theirs."""

ROUND = 25
"""Examples that are drawn from one seed at most."""

HISTORY = 3
"""Versions of each flow that the stores keep."""

WATCHED = ("memory", "blocking")

CODECS = [Zstd(min_bytes=64), Encrypt({"k": b"k" * 32})]


def open_api(kind: str, api: str, directory: Path, seen: set[str]) -> Callable[..., StoreAPI]:
    """Return how to open an empty store of that kind behind that API; `seen` gets what is called."""
    numbers = count()
    blocking: dict[str, Any] = {"memory": MemoryStore, "sqlite": SQLiteStore, "codecs": SQLiteStore}
    awaiting: dict[str, Any] = {"memory": AsyncMemoryStore, "sqlite": AsyncSQLiteStore}

    def open_one(clock: ManualClock, retention: Retention, partitions: int) -> StoreAPI:
        options: dict[str, Any] = {"clock": clock, "retention": retention}
        options |= {"partitions": partitions, "history": HISTORY}
        place = () if kind == "memory" else (directory / f"{next(numbers)}.db",)
        durable = kind != "memory"
        if kind == "codecs":
            options["codecs"] = CODECS

        if (kind, api) == WATCHED:
            return RecordedAPI(lambda: MemoryStore(**options), seen)

        if api == "blocking":
            return BlockingAPI(lambda: blocking[kind](*place, **options), durable=durable)

        make = awaiting[kind]
        return AsyncAPI(lambda: make(*place, **options), backend=api, durable=durable)

    return open_one


# --- what the machine does --------------------------------------------------------------------------


class Recorder:
    """An object that notes each call of its public methods, with the parameters given."""

    def __init__(self, watched: Any, seen: set[str]) -> None:
        self._watched = watched
        self._seen = seen

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._watched, name)
        label = f"{type(self._watched).__name__}.{name}"
        self._seen.add(label)
        if not callable(found):
            return found

        def call(*args: Any, **kwargs: Any) -> Any:
            given = inspect.signature(found).bind(*args, **kwargs).arguments
            self._seen.update(f"{label}({parameter})" for parameter in given)
            return found(*args, **kwargs)

        return call

    def __contains__(self, record: object) -> bool:
        return record in self._watched


class RecordedAPI(BlockingAPI):
    """An API whose store and sessions are watched."""

    def __init__(self, make: Callable[[], MemoryStore], seen: set[str]) -> None:
        super().__init__(make)
        self._seen = seen
        self._recorder = Recorder(self.store, seen)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._recorder, name)

    def session(self) -> Any:
        return Recorder(self._recorder.session(), self._seen)

    @contextmanager
    def begin(self) -> Iterator[Any]:
        with self._recorder.begin() as session:
            yield Recorder(session, self._seen)

    def transact_one(
        self, flow_id: str, change: Callable[[Any], Any], *, attempts: int = 100
    ) -> Any:
        def call(session: Session) -> Any:
            return change(session.get_one(flow_id))

        return self._recorder.transact(call, attempts=attempts)

    def close(self) -> None:
        self._recorder.close()


def public_operations(kind: type, shown: str) -> set[str]:
    """Name every public method and property of a class, and every parameter of each."""
    names: set[str] = set()
    for name, member in inspect.getmembers(kind):
        if not name.startswith("_"):
            names.add(f"{shown}.{name}")
            if callable(member):
                parameters = list(inspect.signature(member).parameters.values())[1:]
                names |= {
                    f"{shown}.{name}({one.name})"
                    for one in parameters
                    if one.kind is not inspect.Parameter.VAR_POSITIONAL
                }

    return names


def never_called(seen: set[str]) -> set[str]:
    """Name the public operations and their parameters that are not among what was called."""
    every = public_operations(Store, "MemoryStore") | public_operations(Session, "Session")
    return every - seen


def test_both_apis_have_the_same_operations() -> None:
    """What the rules call on a blocking store is there on an async one, with the same parameters."""
    for blocking, awaiting in ((Store, AsyncStore), (Session, AsyncSession)):
        assert public_operations(blocking, "") == public_operations(awaiting, "")


# --- on every store ---------------------------------------------------------------------------------

STEPS = 40
"""Operations in one example."""

# How many examples the quick profile has on each API: what crosses a thread, reaches a disk or
# crosses a network costs more, so the same time buys fewer. `codecs` is SQLite with compression and
# encryption, which are above what stores decide. On `windows` NATS lists as in a large
# store, which is below the APIs.
EXAMPLES = {
    "memory": {"blocking": 80, "asyncio": 100, "trio": 100},
    "sqlite": {"blocking": 40, "asyncio": 25, "trio": 25},
    "codecs": {"blocking": 10},
    "6.2": {"blocking": 25, "asyncio": 12, "trio": 12},
    "8.2": {"blocking": 20, "asyncio": 8, "trio": 8},
    "cluster": {"blocking": 25, "asyncio": 12, "trio": 12},
    "one server": {"blocking": 8, "asyncio": 3, "trio": 3},
    "windows": {"blocking": 6},
    "three servers": {"blocking": 5, "asyncio": 5, "trio": 5},
}

MOST_AGAIN = 5
"""How often a watched run draws again until it has called everything."""

Run = Callable[[type[StoreMachine], str, str], None]


@pytest.fixture
def run_machine(
    request: pytest.FixtureRequest, record_property: Callable[[str, object], None]
) -> Run:
    """Run the machine on a kind of store behind an API: other examples on each, from one seed."""

    def run(machine: type[StoreMachine], kind: str, api: str) -> None:
        steps = count()

        class Counted(machine):  # type: ignore[misc,valid-type]
            begun = False

            @invariant()
            def took_a_step(self) -> None:
                if self.begun:
                    next(steps)

                self.begun = True

        profile = settings()
        examples = EXAMPLES[kind][api.split(maxsplit=1)[0]] * profile.max_examples // QUICK
        drawn = request.config.getoption("hypothesis_seed")
        try:
            # Most examples of one run are like others of it, so there are several runs.
            for begun in range(0, examples, ROUND):
                size = min(ROUND, examples - begun)
                run_state_machine_as_test(
                    seed(f"{drawn} {kind} {api} {begun}")(Counted),
                    settings=settings(profile, max_examples=size, stateful_step_count=STEPS),
                )
        finally:
            record_property("steps", next(steps))

    return run


def test_the_deep_profile_is_200_000_steps() -> None:
    """`tox -e deep` draws them; how many were run is printed at the end."""
    examples = sum(sum(apis.values()) for apis in EXAMPLES.values())
    deep = settings.get_profile("deep").max_examples
    assert settings.get_profile("quick").max_examples == QUICK
    assert examples * deep // QUICK * STEPS >= 200_000


LEFT_OUT = {("memory", "asyncio"), ("memory", "trio"), ("sqlite", "asyncio"), ("sqlite", "trio")}


def cells(*kinds: str) -> list[Any]:
    """Pair each kind with its APIs.

    The quick run takes every API of Redis 8.2 and of one NATS server, and the blocking one of the
    embedded stores. It leaves clusters and the oldest Redis to the nightly run.
    """
    nightly = ("6.2", "cluster", "three servers")
    return [
        pytest.param(kind, api, marks=pytest.mark.nightly)
        if kind in nightly or (kind, api) in LEFT_OUT
        else (kind, api)
        for kind in kinds
        for api in EXAMPLES[kind]
    ]


@pytest.mark.parametrize(("kind", "api"), cells("memory", "sqlite", "codecs"))
def test_a_store_does_what_the_model_says(
    kind: str, api: str, tmp_path: Path, run_machine: Run
) -> None:
    """Whatever is done to a store, what can be read of it is what the plain model says.

    One run is watched: it has called every public method of stores and sessions, and has given each
    of their parameters. What few examples draw may need more of them.
    """
    seen: set[str] = set()
    machine = machine_for(open_api(kind, api, tmp_path, seen))
    run_machine(machine, kind, api)
    if (kind, api) == WATCHED:
        for more in range(MOST_AGAIN):
            if never_called(seen):
                run_machine(machine, kind, f"{api} {more}")

        assert never_called(seen) == set()


@pytest.mark.parametrize(("kind", "api"), cells("6.2", "8.2", "cluster"))
def test_redis_does_what_the_model_says(
    kind: str,
    api: str,
    redis_server: Callable[[str], RedisServer],
    request: pytest.FixtureRequest,
    run_machine: Run,
) -> None:
    """The same on servers; each example has a prefix of its own, and a cluster has many slots."""
    server = request.getfixturevalue("redis_cluster") if kind == "cluster" else redis_server(kind)

    def open_api(clock: ManualClock, retention: Retention, partitions: int) -> StoreAPI:
        prefix = f"{uuid.uuid4().hex}:"
        options: dict[str, Any] = {"clock": clock, "retention": retention, "prefix": prefix}
        options |= {"partitions": partitions, "history": HISTORY}
        if api == "blocking":
            return BlockingAPI(lambda: RedisStore.from_url(server.url, **options), durable=True)

        return AsyncAPI(
            lambda: AsyncRedisStore.from_url(server.url, **options), backend=api, durable=True
        )

    machine = machine_for(open_api)
    if kind == "cluster":
        machine.partitions = (2, 5)

    run_machine(machine, kind, api)


@pytest.mark.parametrize(("kind", "api"), cells("one server", "windows", "three servers"))
def test_nats_does_what_the_model_says(
    kind: str,
    api: str,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    run_machine: Run,
) -> None:
    """The same on JetStream, emptied before each example; `windows` lists as in a large store."""
    replicas = 3 if kind == "three servers" else 1
    name = "nats_cluster" if replicas > 1 else "nats_server"
    server: NatsServer | NatsCluster = request.getfixturevalue(name)
    if kind == "windows":
        monkeypatch.setattr(searching, "_LEAST_NAMED", 1)
        monkeypatch.setattr(listings, "_MOST_WANTED", 2)

    bucket = uuid.uuid4().hex

    def open_api(clock: ManualClock, retention: Retention, partitions: int) -> StoreAPI:
        options: dict[str, Any] = {"clock": clock, "retention": retention, "replicas": replicas}
        options |= {"partitions": partitions, "bucket": f"{bucket}-{partitions}"}
        options["history"] = HISTORY
        opened: StoreAPI
        if api == "blocking":
            opened = BlockingAPI(lambda: NatsStore(server.url, **options), durable=True)
        else:
            opened = AsyncAPI(
                lambda: AsyncNatsStore(server.url, **options), backend=api, durable=True
            )

        opened.clear()
        return opened

    run_machine(machine_for(open_api), kind, api)

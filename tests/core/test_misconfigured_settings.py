"""A list of ways to be misconfigured, by constructors, URLs and the environment; see also tests/stores.

Each is an error of this library that says what was expected. No exception of Python or of a client
library comes through.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC
from datetime import datetime
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from forks import run_command

import catga_store as cs

STORES: dict[str, Callable[..., Any]] = {
    "memory": cs.MemoryStore,
    "async memory": cs.AsyncMemoryStore,
    "sqlite": lambda **options: cs.SQLiteStore("flows.db", **options),
    "async sqlite": lambda **options: cs.AsyncSQLiteStore("flows.db", **options),
    "redis": cs.RedisStore,
    "async redis": cs.AsyncRedisStore,
    "nats": cs.NatsStore,
    "async nats": cs.AsyncNatsStore,
    "url of memory": lambda **options: cs.open_store("memory://", **options),
    "url of sqlite": lambda **options: cs.open_store("sqlite:///flows.db", **options),
    "url of redis": lambda **options: cs.open_store("redis://localhost", **options),
    "url of nats": lambda **options: cs.open_store("nats://localhost", **options),
}
OPTIONS: list[tuple[dict[str, Any], str]] = [
    ({"timeout": timedelta(0)}, "timeout"),
    ({"timeout": timedelta(seconds=-1)}, "timeout"),
    ({"timeout": timedelta.max}, "timeout"),
    ({"timeout": 5}, "timeout"),
    ({"timeout": "5s"}, "timeout"),
    ({"timeout": None}, "timeout"),
    ({"retention": timedelta(days=1)}, "retention"),
    ({"retention": {"flows": 1}}, "retention"),
    ({"retention": None}, "retention"),
    ({"partitions": 0}, "partitions"),
    ({"partitions": -1}, "partitions"),
    ({"partitions": True}, "partitions"),
    ({"partitions": 1.0}, "partitions"),
    ({"partitions": "4"}, "partitions"),
    ({"owner": ""}, "owner"),
    ({"owner": "x" * 513}, "owner"),
    ({"owner": 5}, "owner"),
    ({"owner": "\ud800"}, "owner"),
    ({"clock": 5}, "clock"),
    ({"clock": datetime.now(UTC)}, "clock"),
    ({"max_record_bytes": 0}, "max_record_bytes"),
    ({"max_record_bytes": "64MB"}, "max_record_bytes"),
]


@pytest.mark.parametrize("name", STORES)
@pytest.mark.parametrize("number", range(len(OPTIONS)))
def test_wrong_option_is_a_usage_error(
    name: str, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the store is opened, by every kind of store, and nothing is created."""
    monkeypatch.chdir(tmp_path)
    options, said = OPTIONS[number]
    with pytest.raises(cs.UsageError, match=said) as caught:
        STORES[name](**options)

    assert len(str(caught.value)) < 1000
    assert not list(tmp_path.iterdir())


def broken() -> datetime:
    """Raise, as a clock that asks a server may."""
    message = "no time today"
    raise OSError(message)


CLOCKS: list[tuple[str, Callable[[], Any]]] = [
    ("naive", lambda: datetime(2030, 1, 1)),  # noqa: DTZ001  that is the point
    ("a number", lambda: 5),
    ("none", lambda: None),
    ("text", lambda: "2030-01-01"),
    ("before 1970", lambda: datetime(1, 1, 1, tzinfo=UTC)),
    ("the end of time", lambda: datetime.max.replace(tzinfo=UTC)),
    ("raises", broken),
]


@pytest.mark.parametrize("clock", [clock for _, clock in CLOCKS], ids=[name for name, _ in CLOCKS])
@pytest.mark.parametrize(
    "use",
    [
        lambda store: store.now(),
        lambda store: store.create(cs.FlowSnapshot("f", state={})),
        lambda store: store.claim_due("order"),
        lambda store: store.query_flows(),
        lambda store: store.sweep(),
        lambda store: store.set_wait_condition(
            cs.WaitCondition("w", flow_ids=["a"], timeout=timedelta(days=1))
        ),
        lambda store: store.ping(),
    ],
    ids=["now", "create", "claim_due", "query_flows", "sweep", "set_wait_condition", "ping"],
)
def test_wrong_clock_is_an_error_of_the_library(
    clock: Callable[[], Any], use: Callable[[Any], Any]
) -> None:
    """Or the operation works, as one that does not ask the time; no other exception comes through."""
    said = ""
    with cs.MemoryStore(clock=clock) as store:
        try:
            use(store)
        except cs.UsageError as error:
            said = str(error)

    assert clock is not broken or not said or "the clock raised OSError" in said


ENVIRONMENT: list[tuple[str, int, str]] = [
    ("", 2, "no store given"),
    (" ", 2, "space"),
    ("flows.db", 2, "is not a store URL"),
    ("sqlite:flows.db", 2, "write sqlite:///flows.db"),
    ("redis://localhost/abc", 2, "not a number"),
    ("redis://localhost?prefx=a:", 2, "did you mean prefix"),
    ("nats://localhost?replicas=two", 2, "replicas"),
    ("nats://localhost?replicas=2", 2, "replicas"),
    ("redis://127.0.0.1:1", 3, "doctor"),
]


@pytest.mark.parametrize(("url", "code", "said"), ENVIRONMENT)
def test_wrong_url_in_the_environment_is_one_line(url: str, code: int, said: str) -> None:
    """`CATGA_STORE_URL` is checked like an argument."""
    done = run_command("ls", url=url)
    assert (done.returncode, done.stdout) == (code, "")
    (line,) = done.stderr.splitlines()
    assert said in line

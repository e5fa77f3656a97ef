"""`open_store` and `open_async_store`: what a URL opens, and what it must not say."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio

import catga_store as cs

OPENERS: list[Callable[..., Any]] = [cs.open_store, cs.open_async_store]


def flow() -> cs.FlowSnapshot[Any]:
    """Make a flow."""
    return cs.FlowSnapshot("f", state={"n": 1})


def test_each_scheme_opens_its_store(tmp_path: Path) -> None:
    """`memory://` and `sqlite:///` answer the class of that store, blocking or async."""
    assert type(cs.open_store("memory://")) is cs.MemoryStore
    assert type(cs.open_async_store("memory://name-1")) is cs.AsyncMemoryStore
    assert type(cs.open_store(f"sqlite:///{tmp_path}/a.db")) is cs.SQLiteStore
    assert type(cs.open_async_store(f"sqlite:///{tmp_path}/a.db")) is cs.AsyncSQLiteStore


def test_opening_connects_to_nothing(tmp_path: Path) -> None:
    """A store is opened at once; its file appears at the first use."""
    path = tmp_path / "flows.db"
    with cs.open_store(f"sqlite:///{path}") as store:
        assert not path.exists()
        store.ping()
        assert path.exists()

    nowhere = cs.open_store(f"sqlite:///{tmp_path}/no/such/folder/flows.db")
    with pytest.raises(cs.StoreConfigError, match="cannot be opened"):
        nowhere.get("f")


def test_a_named_memory_store_is_shared() -> None:
    """The same name is the same records; without a name every store has its own."""
    with cs.open_store("memory://shared-by-urls") as one, cs.MemoryStore("shared-by-urls") as other:
        one.create(flow())
        assert other.get("f") is not None

    with cs.open_store("memory://shared-by-urls") as again:
        assert again.get("f") is not None
        again.clear()

    one, other = cs.open_store("memory://"), cs.open_store("memory://")
    one.create(flow())
    assert other.get("f") is None


@pytest.mark.parametrize("url", ["memory://", "memory:///"])
def test_a_nameless_memory_url_has_two_forms(url: str) -> None:
    """A slash at the end names nothing."""
    assert cs.open_store(url).get("f") is None


def test_three_slashes_are_relative_and_four_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A relative path is taken from where the process stood when the store was opened."""
    monkeypatch.chdir(tmp_path)
    with cs.open_store("sqlite:///relative.db") as store:
        (tmp_path / "deeper").mkdir()
        os.chdir(tmp_path / "deeper")
        store.create(flow())

    assert (tmp_path / "relative.db").exists()
    with cs.open_store(f"sqlite:///{tmp_path}/relative.db") as store:
        assert store.get("f") is not None


@pytest.mark.parametrize("name", ["a b.db", "a?b.db", "a#b.db", "ü.db", "100%.db"])
def test_a_path_may_be_escaped(tmp_path: Path, name: str) -> None:
    """Percent escapes name any file."""
    from urllib.parse import quote  # noqa: PLC0415  one use

    with cs.open_store(f"sqlite:///{quote(str(tmp_path / name))}") as store:
        store.create(flow())

    assert (tmp_path / name).exists()
    with cs.SQLiteStore(tmp_path / name) as store:
        assert store.get("f") is not None


@pytest.mark.parametrize("opener", OPENERS)
@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("", "is not a store URL"),
        ("flows.db", "is not a store URL"),
        ("mysql://host/db", "is not a store URL"),
        ("sqlite://", "has no file path"),
        ("sqlite:///", "has no file path"),
        ("sqlite://host/flows.db", "wrong number of slashes"),
        ("sqlite://flows.db", "wrong number of slashes"),
        ("sqlite:///:memory:", "expected the path of a file"),
        ("sqlite:///a%00b", "expected the path of a file"),
        ("memory://name/deeper", "is not a memory store URL"),
        ("memory:", "is not a memory store URL; write memory://"),
        ("memory:name", "is not a memory store URL"),
        ("memory:/name", "is not a memory store URL"),
        ("sqlite:flows.db", "wrong number of slashes .* write sqlite:///flows.db"),
        ("sqlite:./flows.db", r"wrong number of slashes .* write sqlite:///\./flows.db"),
        ("sqlite:/flows.db", "sqlite:////flows.db for an absolute path"),
        ("sqlite:////data/", "specifies a directory"),
        ("sqlite:///a%FFb.db", "percent escape that is not UTF-8"),
        ("sqlite:///a\nb.db", "control character"),
        ("redis://host\n", "control character"),
        ("nats://host\t:4222", "control character"),
        (" memory://", "begins or ends with a space"),
        ("memory://?partitions=4", "pass partitions as a keyword of open_store or MemoryStore"),
        ("sqlite:///flows.db?timeout=5", "pass timeout as a keyword of open_store or SQLiteStore"),
        ("sqlite:///flows.db?mode=ro", "accepts only the options"),
        ("sqlite:///flows.db#x", "has a fragment"),
        ("memory://[", "is not a URL"),
        ("reddis://host", "did you mean redis://"),
        (None, "expected a str"),
        (5, "expected a str"),
        (Path("flows.db"), "expected a str"),
    ],
)
def test_an_invalid_url_is_refused(opener: Callable[..., Any], url: Any, said: str) -> None:
    """A URL of the wrong shape is a `UsageError` that says what was probably meant."""
    with pytest.raises(cs.UsageError, match=said) as caught:
        opener(url)

    assert not isinstance(caught.value, cs.NotSupportedError)


@pytest.mark.parametrize("opener", OPENERS)
def test_options_are_passed_on(opener: Callable[..., Any]) -> None:
    """Options are keywords of every store, checked when it is opened."""
    opener("memory://", owner="w", partitions=4, retention=cs.Retention(), max_record_bytes=10)
    with pytest.raises(cs.UsageError, match="partitions: expected an int of at least 1"):
        opener("memory://", partitions=0)

    with pytest.raises(cs.UsageError, match=r"MemoryStore has no option 'nonsense'; it accepts"):
        opener("memory://", nonsense=1)

    with pytest.raises(cs.UsageError, match=r"'onwer' \(did you mean 'owner'\?\)"):
        opener("memory://", onwer="w")


@pytest.mark.parametrize("bad", ["", ":memory:", "a\0b", b"flows.db", 5, None])
@pytest.mark.parametrize("kind", [cs.SQLiteStore, cs.AsyncSQLiteStore])
def test_a_sqlite_store_needs_the_path_of_a_file(kind: Callable[..., Any], bad: Any) -> None:
    """What names no file is refused before anything is opened."""
    with pytest.raises(cs.UsageError, match="expected the path of a file"):
        kind(bad)


@pytest.mark.parametrize("kind", [cs.MemoryStore, cs.AsyncMemoryStore])
def test_a_memory_store_needs_text_as_its_name(kind: Callable[..., Any]) -> None:
    """Two programs that name a store by something else would not know whether they share it."""
    with pytest.raises(cs.UsageError, match="expected a str"):
        kind(5)


@pytest.mark.parametrize(
    "url",
    [
        "nats://localhost",
        "nats://user:secret@a:4222,b:4222?bucket=orders&replicas=3&stale_reads=true&max_bytes=1000",
        "nats://secret@localhost?name=worker-7",
        "tls://a,b,c?user_credentials=/etc/flows.creds",
    ],
)
def test_urls_of_nats_open_its_store_and_connect_to_nothing(url: str) -> None:
    """Every form returns a `NatsStore` at once, whose `repr` shows no password."""
    with cs.open_store(url) as store:
        assert type(store) is cs.NatsStore
        assert "secret" not in repr(store)

    assert type(cs.open_async_store(url)) is cs.AsyncNatsStore


@pytest.mark.parametrize(
    ("url", "match"),
    [
        ("nats://", "has no host name"),
        ("nats://a,,b", "has no host name"),
        ("nats://a/flows", "has a path, which NATS does not use"),
        ("nats:a", "has a path, which NATS does not use"),
        ("nats://a:0", "port that is not a number from 1 to 65535"),
        ("nats://a,b:99999", "has a port that is not a number from 1 to 65535"),
        ("nats://user:pw@a,user:pw@b", "comma before the @"),
        ("nats://a?replicas=two", "invalid value for replicas: expected a number"),
        ("nats://a?stale_reads=perhaps", "stale_reads: expected true or false"),
        ("nats://a?prefix=x", "unknown option prefix"),
        ("nats://a?buket=x", r"unknown option buket \(did you mean bucket\?\); the URL"),
        ("nats://a?timeout=5", "pass it as a keyword"),
        ("nats://a?name=", "name: expected a non-empty string"),
        ("nats://a?bucket=a.b", "bucket: expected"),
        ("nats://a?replicas=2", "replicas: expected 1, 3 or 5"),
        ("nats://a?max_bytes=0", "max_bytes: expected None or an int of at least 1"),
        ("nats://a?max_bytes=10GB", "max_bytes: expected a number of bytes"),
        ("nats://a?bucket=b&bucket=c", "option bucket twice"),
        ("nats://a#x", "has a fragment"),
    ],
)
def test_urls_of_nats_that_say_nothing_are_refused(url: str, match: str) -> None:
    """Nothing that stands in a URL is passed over."""
    with pytest.raises(cs.UsageError, match=match):
        cs.open_store(url)


@pytest.mark.parametrize(
    "url",
    [
        "redis://localhost",
        "redis://user:secret@localhost:6380/3?prefix=a:&socket_timeout=2",
        "rediss://localhost",
        "redis+cluster://localhost:7000",
        "unix:///run/redis.sock?db=1",
    ],
)
def test_urls_of_redis_open_its_store_and_connect_to_nothing(url: str) -> None:
    """Every form returns a `RedisStore` at once, whose `repr` has the place but no password."""
    with cs.open_store(url) as store:
        assert type(store) is cs.RedisStore
        assert url.partition("://")[0] in repr(store)
        assert "secret" not in repr(store)

    assert type(cs.open_async_store(url)) is cs.AsyncRedisStore


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("redis://", "has no host name"),
        ("redis:host", "has no host name"),
        ("redis://host/0#x", "has a fragment"),
        ("redis://host:port", "has a port that is not a number from 1 to 65535"),
        ("redis://host/abc", "database that is not a number"),
        ("redis://host/1/2", "database that is not a number"),
        ("redis://host/1?db=2", "specifies the database twice"),
        ("redis+cluster://host/1", "a cluster has only database 0"),
        ("redis://user:a/b@host", "write / as %2F"),
        ("redis://user:a?b@host", "write / as %2F"),
        ("redis://user:a#b@host", "write %23"),
        ("redis://user:%FF@host", "percent escape that is not UTF-8"),
        ("unix://run/redis.sock", "has no socket path"),
        ("unix:/run/redis.sock", "has no socket path"),
        ("redis://host?db=first", "invalid value for db: expected a number"),
        ("redis://host?protocol=4", "protocol: expected 2 or 3"),
        (
            "redis://host?socket_timeout=soon",
            "socket_timeout: expected a number of seconds above 0",
        ),
        ("redis://host?nonsense=1", "unknown option nonsense"),
        ("redis://host?prefx=a:", r"unknown option prefx \(did you mean prefix\?\); the URL"),
        ("redis://host?partitions=4", "pass it as a keyword"),
        ("redis://host?prefix", "prefix: expected .* got ''"),
        ("redis://host?hunter2", "option without a name"),
        ("redis://host?ssl_ca_certs=/ca.pem", "ssl_ca_certs, which requires rediss://"),
        ("rediss://host?ssl_cert_reqs=CERT_NONE", "expected required, optional or none"),
        ("redis://host?prefix=", "prefix: expected .* got ''"),
        ("redis://host?prefix=a{b", "that has no braces"),
        ("redis://host?prefix=app1", "does not end with a digit"),
        (f"redis://host?prefix={'x' * 65}", "1 to 64 bytes"),
    ],
)
def test_an_invalid_redis_url_is_refused(url: str, said: str) -> None:
    """Options that redis-py does not know, and prefixes that keys cannot begin with, are refused."""
    with pytest.raises(cs.UsageError, match=said):
        cs.open_store(url)


@pytest.mark.parametrize("client", ["redis://localhost", 5, redis.asyncio.Redis()])
def test_a_redis_store_needs_a_client_of_redis(client: Any) -> None:
    """An object that is not a blocking client of redis-py is refused before anything is sent."""
    with pytest.raises(cs.UsageError, match=r"redis\.Redis or redis\.RedisCluster"):
        cs.RedisStore(client)


def test_without_redis_py_the_error_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """`NotSupportedError` with the command that helps."""
    monkeypatch.setattr("catga_store.opening.blocking.find_spec", lambda _name: None)
    with pytest.raises(cs.NotSupportedError, match=r"pip install 'catga_store\[redis\]'"):
        cs.open_store("redis://localhost")


def test_a_store_shows_what_it_is(tmp_path: Path) -> None:
    """`repr` has the class and where the records are, and says when it was closed."""
    store = cs.open_store(f"sqlite:///{tmp_path}/flows.db")
    assert repr(store).startswith("<SQLiteStore ")
    assert "flows.db" in repr(store)
    store.close()
    assert repr(store).endswith(" closed>")


@pytest.mark.parametrize("kind", [cs.RedisStore, cs.AsyncRedisStore])
def test_from_url_takes_what_open_store_takes(kind: Any) -> None:
    """A prefix in the URL counts there too, and other stores' URLs are refused."""
    with pytest.raises(cs.UsageError, match="does not end with a digit"):
        kind.from_url("redis://localhost?prefix=app1")

    with pytest.raises(cs.UsageError, match="is not a Redis URL"):
        kind.from_url("nats://localhost")

    with pytest.raises(cs.UsageError, match="unknown option prefx"):
        kind.from_url("redis://localhost?prefx=a:")


@pytest.mark.parametrize("kind", [cs.NatsStore, cs.AsyncNatsStore])
@pytest.mark.parametrize(
    ("servers", "said"),
    [
        ("nats://a?bucket=b", "options.*; pass them in connect="),
        (["nats://a", "redis://b"], "is not a NATS URL"),
        ("a\nb", "control character"),
        ([], "expected URLs such as"),
        (["nats://a", 5], "expected URLs such as"),
    ],
)
def test_nats_servers_of_the_wrong_shape_are_refused(kind: Any, servers: Any, said: str) -> None:
    """What nats-py would pass over is refused before anything is sent."""
    with pytest.raises(cs.UsageError, match=said):
        kind(servers)


@pytest.mark.parametrize(
    "kind", [cs.MemoryStore, cs.AsyncMemoryStore, cs.SQLiteStore, cs.AsyncSQLiteStore]
)
def test_a_url_is_not_a_path_or_a_name(kind: Any) -> None:
    """It would become a file or a name that was not meant, with a password in it."""
    with pytest.raises(cs.UsageError, match="to open a store by its URL, use open_store") as caught:
        kind("redis://user:hunter2@host")

    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("kind", [cs.RedisStore, cs.AsyncRedisStore])
def test_a_redis_url_is_text(kind: Any) -> None:
    """Anything else is a usage error, like any URL that names nothing."""
    with pytest.raises(cs.UsageError, match="Redis URL: expected a str, got 5"):
        kind.from_url(5)

"""The commands on Redis: findings of the doctor, a stopped server, a missing library."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from collections.abc import Iterator

import pytest
import redis
from commands import failed
from commands import findings
from commands import run_changed
from forks import run_command
from marks import REDIS_VERSIONS

import catga_store as cs
from catga_store.testing.servers import RedisCluster
from catga_store.testing.servers import RedisServer
from catga_store.testing.servers import free_ports


def lay_out(url: str) -> None:
    """Make an empty store."""
    with cs.open_store(url) as store:
        store.ping()


@pytest.fixture(params=REDIS_VERSIONS)
def version(request: pytest.FixtureRequest) -> str:
    """Every version that there is a server of."""
    answer: str = request.param
    return answer


@pytest.fixture
def server(version: str, redis_server: Callable[[str], RedisServer]) -> RedisServer:
    """A server that other tests use too."""
    return redis_server(version)


@pytest.fixture
def start(version: str) -> Iterator[Callable[..., RedisServer]]:
    """Start a server of its own for the test, with options."""
    started: list[RedisServer] = []

    def start_one(*options: str) -> RedisServer:
        started.append(RedisServer(version, *options))
        return started[-1].start()

    yield start_one
    for one in started:
        one.close()


@pytest.fixture
def url(server: RedisServer) -> str:
    """The URL of a store with two flows and a condition."""
    url = f"{server.url}?prefix={uuid.uuid4().hex}:"
    with cs.open_store(url) as store:
        store.create(cs.FlowSnapshot("order", state={}))
        store.create(cs.FlowSnapshot("other", state={}, due_at=None))
        store.set_wait_condition(cs.WaitCondition("wait", flow_ids=["a"]))

    return url


def tag_of(url: str) -> str:
    """Return the tag of the keys of a store."""
    return f"{{{url.rpartition('=')[2]}0}}:"


def test_doctor_of_a_healthy_server(url: str, version: str) -> None:
    """Every check has a sentence, and nothing is written."""
    with redis.Redis.from_url(url.partition("?")[0]) as client:
        before = {key: client.type(key) for key in client.keys(f"{tag_of(url)}*")}
        found = findings(url)
        assert {key: client.type(key) for key in client.keys(f"{tag_of(url)}*")} == before

    assert found["version"]["found"].startswith(f"Redis {version}")
    assert found["eviction"]["level"] == "ok"
    assert found["durability"]["level"] == "info"
    assert "appendfsync everysec" in found["durability"]["found"]
    assert found["replicas"]["level"] == "info"
    assert found["index"]["level"] == "ok"
    assert found["index"]["found"].startswith("4 entries")
    assert found["flows"]["found"].startswith("2 flows")
    assert found["store"]["found"].endswith("holds 2 flows")
    text = run_command("doctor", url).stdout
    assert all(check in text for check in found)


@pytest.mark.parametrize(
    ("options", "check", "level", "said"),
    [
        (("--maxmemory-policy", "allkeys-lru"), "eviction", "problem", "noeviction"),
        (("--maxmemory-policy", "volatile-ttl"), "eviction", "warning", "noeviction"),
        (("--maxmemory", "500kb"), "memory", "warning", "maxmemory"),
        (("--appendonly", "no", "--save", ""), "durability", "problem", "appendonly yes"),
        (("--appendfsync", "no"), "durability", "warning", "appendfsync everysec"),
        (("--min-replicas-to-write", "1"), "replicas", "problem", "reconnect the replicas"),
    ],
)
def test_doctor_reports_harmful_settings(
    start: Callable[..., RedisServer], options: tuple[str, ...], check: str, level: str, said: str
) -> None:
    """Each is a finding that says how to change it."""
    found = findings(start(*options).url, 1)
    assert found[check]["level"] == level
    assert said in found[check]["change"]


def test_doctor_of_snapshots_without_a_log(start: Callable[..., RedisServer]) -> None:
    """A restart loses the commits since the last snapshot."""
    server = start("--appendonly", "no")
    with redis.Redis(port=server.port) as client:
        client.config_set("save", "900 1")

    found = findings(server.url, 1)["durability"]
    assert (found["level"], found["found"]) == ("warning", "appendonly no, save 900 1")


def test_doctor_of_good_settings(start: Callable[..., RedisServer]) -> None:
    """A high memory limit and fsync at every commit are fine."""
    server = start("--maxmemory", "1gb", "--appendfsync", "always")
    lay_out(server.url)
    found = findings(server.url)
    assert found["memory"]["level"] == found["durability"]["level"] == "ok"


def test_doctor_of_replicas(start: Callable[..., RedisServer]) -> None:
    """A replica refuses commits; a primary whose replica may lag loses some at a failover."""
    primary = start()
    with cs.open_store(primary.url) as store:
        store.create(cs.FlowSnapshot("order", state={}))

    replica = start("--replicaof", primary.host, str(primary.port))
    replica.wait_until(lambda: b"master_link_status:up" in replica.ask(b"INFO replication\r\n"))
    assert findings(replica.url, 1)["replicas"]["level"] == "problem"
    primary.wait_until(lambda: b"state=online" in primary.ask(b"INFO replication\r\n"))
    found = findings(primary.url, 1)
    assert found["replicas"]["level"] == "warning"
    assert "min-replicas-to-write 1" in found["replicas"]["change"]
    with redis.Redis(port=primary.port) as client:
        client.config_set("min-replicas-to-write", "1")

    found = findings(primary.url)
    assert found["replicas"]["level"] == "ok"
    assert "add a replica" in found["replicas"]["change"]
    assert found["failover"]["level"] == "info"
    assert "acknowledged_by=1" in found["failover"]["change"]


def test_doctor_of_acknowledged_by(start: Callable[..., RedisServer]) -> None:
    """The doctor compares the option in the URL with the replicas that are there."""
    primary = start("--repl-diskless-sync-delay", "0")
    with cs.open_store(primary.url) as store:
        store.create(cs.FlowSnapshot("order", state={}))

    found = findings(f"{primary.url}?acknowledged_by=1", 1)["failover"]
    assert (found["level"], found["found"]) == ("problem", "acknowledged_by=1, 0 connected")
    replica = start("--replicaof", primary.host, str(primary.port))
    primary.wait_until(lambda: b"state=online" in primary.ask(b"INFO replication\r\n"))
    assert replica.pid is not None
    found = findings(f"{primary.url}?acknowledged_by=1", 1)["failover"]
    assert found["level"] == "ok"
    assert "add a replica" in found["change"]


def test_hidden_settings_are_unknown(start: Callable[..., RedisServer]) -> None:
    """A setting that the user may not read is never reported as fine."""
    server = start()
    with redis.Redis(port=server.port) as client:
        client.execute_command(
            "ACL", "SETUSER", "app", "on", ">pw", "~*", "+@all", "-config", "-time"
        )

    lay_out(server.url)
    url = f"redis://app:pw@{server.host}:{server.port}"
    found = findings(url)
    assert found["durability"]["level"] == found["clock"]["level"] == "unknown"
    assert "pw@" not in run_command("doctor", url, "--json").stdout


def test_doctor_of_a_cluster(redis_cluster: RedisCluster) -> None:
    """Every primary is examined; a node is not a single server."""
    url = f"{redis_cluster.url}?prefix={uuid.uuid4().hex}:"
    with cs.open_store(url, partitions=8) as store:
        for number in range(10):
            store.create(cs.FlowSnapshot(f"flow-{number}", state={}))

    found = findings(url)
    assert sum(check.startswith("version of ") for check in found) == 3
    assert found["layout"]["found"] == "8 partitions"
    assert found["layout"]["change"] == ""
    assert found["flows"]["found"].startswith("10 flows")
    assert found["store"]["level"] == "ok"
    few = f"{redis_cluster.url}?prefix={uuid.uuid4().hex}:"
    lay_out(few)
    assert "--partitions" in findings(few)["layout"]["change"]
    found = findings(redis_cluster.nodes[0].url, 1)
    assert "redis+cluster://" in found["cluster"]["change"]


def test_doctor_of_entries_without_records(url: str, server: RedisServer) -> None:
    """An entry without its record is a warning; a flow without its entries, a problem."""
    tag = tag_of(url)
    with redis.Redis(port=server.port) as client:
        client.unlink(f"{tag}flow:other")
        found = findings(url, 1)
        assert found["index"]["level"] == "warning"
        assert "'other'" in found["index"]["found"]
        assert found["flows"]["level"] == "ok"
        due = client.zrangebylex(f"{tag}index", "[fd", "(fe")
        assert isinstance(due, list)
        client.zrem(f"{tag}index", *due)

    found = findings(url, 1)
    assert found["flows"]["level"] == "problem"
    assert "'order'" in found["flows"]["found"]


@pytest.mark.parametrize("command", ["ls", "complete w c"])
def test_empty_server(server: RedisServer, command: str) -> None:
    """The command says that there is no store under the prefix, and creates none."""
    prefix = f"{uuid.uuid4().hex}:"
    place = f"{server.url}?prefix={prefix}"
    failed(run_command(*command.split(), "-s", place), 1, f"no store under the prefix '{prefix}'")
    assert findings(place, 1)["store"]["level"] == "problem"
    with redis.Redis(port=server.port) as client:
        assert client.keys(f"{{{prefix}*") == []


CLOCK = "import time; real = time.time; time.time = lambda: real() - {seconds}"


def test_doctor_of_different_clocks(url: str) -> None:
    """The doctor says by how much, and what it means; half a second is ignored."""
    assert findings(url)["clock"]["level"] == "ok"
    done = run_changed(CLOCK.format(seconds=90), "doctor", url, "--json")
    (clock,) = [one for one in json.loads(done.stdout)["findings"] if one["check"] == "clock"]
    assert (done.returncode, clock["level"]) == (1, "warning")
    assert "90.0 s ahead of" in clock["found"]
    assert "NTP" in clock["change"]


def test_bench_removes_its_keys(start: Callable[..., RedisServer]) -> None:
    """It names its prefix, and every key is removed."""
    server = start()
    done = run_command("bench", server.url, "--calls", "10")
    assert (done.returncode, done.stderr) == (0, "")
    assert "under the prefix catga-store-bench-" in done.stdout
    with redis.Redis(port=server.port) as client:
        assert client.keys() == []


READING = ["ls", "count", "show f", "waits", "due", "complete w c", "rm f --yes", "bench"]


@pytest.mark.parametrize("command", READING)
def test_command_on_a_stopped_server(command: str) -> None:
    """One line, and the exit code of a store that cannot be reached."""
    (port,) = free_ports(1)
    place = f"redis://me:secret@127.0.0.1:{port}"
    name, *rest = command.split()
    named = [place] if name == "bench" else ["-s", place]
    done = run_command(name, *rest, *named)
    failed(done, 3, "cannot be reached", str(port))
    assert "secret" not in done.stderr


def test_doctor_of_a_stopped_server() -> None:
    """It is a finding like others."""
    (port,) = free_ports(1)
    for scheme in ("redis", "redis+cluster"):
        found = findings(f"{scheme}://127.0.0.1:{port}", 1)
        assert found["server"]["level"] == "problem"


def test_server_with_a_password(start: Callable[..., RedisServer]) -> None:
    """The command prints one line, the doctor a problem."""
    server = start("--requirepass", "secret")
    failed(run_command("ls", "-s", server.url), 3, "user or password")
    assert findings(server.url, 1)["server"]["level"] == "problem"
    with_password = f"redis://:secret@{server.host}:{server.port}"
    lay_out(with_password)
    assert findings(with_password)["store"]["level"] == "ok"


@pytest.mark.parametrize("command", ["ls", "doctor"])
def test_without_redis_py(command: str) -> None:
    """One line says what to install."""
    place = "redis://127.0.0.1:6379"
    named = [place] if command == "doctor" else ["-s", place]
    done = run_changed("import sys; sys.modules['redis'] = None", command, *named)
    failed(done, 2, "pip install 'catga_store[redis]'")

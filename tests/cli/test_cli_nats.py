"""The commands on NATS: what the doctor finds, a server that is down, a library that is missing."""

from __future__ import annotations

import asyncio
import json
import socket
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nats
import pytest
from commands import failed
from commands import findings
from commands import run_changed
from forks import run_command
from proxy import Proxy

import catga_store as cs
from catga_store.testing.servers import NatsCluster
from catga_store.testing.servers import NatsServer
from catga_store.testing.servers import free_ports


def ask(url: str, subject: str, payload: object = None) -> dict[str, Any]:
    """Ask a server itself, once; an answer to what no API asks is its acknowledgement."""

    async def once() -> dict[str, Any]:
        connect: Any = nats.connect
        first, *others = url.partition("?")[0].split(",")
        client = await connect([first, *(f"nats://{other}" for other in others)])
        try:
            data = b"" if payload is None else json.dumps(payload).encode()
            answer = await client.request(subject, data, timeout=10)
            reply: dict[str, Any] = json.loads(answer.data)
            return reply
        finally:
            await client.close()

    return asyncio.run(once())


@pytest.fixture
def bucket() -> str:
    """Name records that no other test uses."""
    return uuid.uuid4().hex


@pytest.fixture
def url(nats_server: NatsServer, bucket: str) -> Iterator[str]:
    """Name a store with two flows and a condition."""
    url = f"{nats_server.url}?bucket={bucket}"
    fill(url)
    yield url
    ask(url, f"$JS.API.STREAM.DELETE.KV_{bucket}")


def fill(url: str) -> None:
    """Store two flows and a condition, in a stream that has its storage for itself."""
    with cs.open_store(f"{url}{'&' if '?' in url else '?'}max_bytes=100000000") as store:
        store.create(cs.FlowSnapshot("order", state={}))
        store.create(cs.FlowSnapshot("other", state={}, due_at=None))
        store.set_wait_condition(cs.WaitCondition("wait", flow_ids=["a"]))


def test_healthy_server(url: str, bucket: str) -> None:
    """Everything is said in words, and nothing is written."""
    before = ask(url, f"$JS.API.STREAM.INFO.KV_{bucket}")["state"]["last_seq"]
    found = findings(url)
    assert ask(url, f"$JS.API.STREAM.INFO.KV_{bucket}")["state"]["last_seq"] == before
    levels = {check: finding["level"] for check, finding in found.items()}
    assert levels == {
        "version": "ok",
        "JetStream": "ok",
        "max_payload": "ok",
        "room": "ok",
        "sync_interval": "unknown",
        "stream": "info",
        "settings": "ok",
        "max_bytes": "ok",
        "replicas": "info",
        "index": "ok",
        "parts": "ok",
        "clock": "ok",
        "store": "ok",
        "stuck": "info",
    }
    assert "duplicate window 600 s" in found["settings"]["found"]
    assert found["index"]["found"].startswith("4 entries")
    assert f"KV_{bucket}" in found["stream"]["found"]
    assert found["store"]["found"].endswith("holds 2 flows")
    text = run_command("doctor", url).stdout
    assert all(check in text for check in found)


def test_parts_and_their_directories(url: str, bucket: str) -> None:
    """How many flows have parts; a directory that names what is not there is a problem."""
    with cs.open_store(f"{url}&max_bytes=100000000") as store:
        store.put_part(cs.Part("order", "p", 1))
        for flow_id in ("deep", "gone"):
            with store.begin() as session:
                for number in range(60):
                    session.add_part(cs.Part(flow_id, f"{number:03d}{'n' * 480}", 1))

        store.create(cs.FlowSnapshot("gone", state={}))
        store.delete("gone")
        found = findings(url)
        assert found["index"]["level"] == "ok"
        assert found["parts"]["level"] == "info"
        assert found["parts"]["found"].startswith("2 flows have parts; the remains of 1 ")
        store.sweep()
        assert findings(url)["parts"]["level"] == "ok"
        gone = {"filter": f"catga.{bucket}.part.deep.directory.>"}
        ask(url, f"$JS.API.STREAM.PURGE.KV_{bucket}", gone)

    found = findings(url, 1)
    assert found["parts"]["level"] == "problem"
    assert found["parts"]["found"].endswith("of 2 directories of parts cannot be read: 'deep'")


def test_storage_that_is_not_reserved(nats_server: NatsServer, bucket: str) -> None:
    """A warning: what a full server does to a commit of several records, and the command against it."""
    place = f"{nats_server.url}?bucket={bucket}"
    with cs.open_store(place) as store:
        store.ping()

    found = findings(place, code=1)["max_bytes"]
    assert found["level"] == "warning"
    assert f"nats stream edit KV_{bucket} --max-bytes" in found["change"]
    ask(place, f"$JS.API.STREAM.DELETE.KV_{bucket}")


@pytest.mark.parametrize("command", ["ls", "complete w c"])
def test_unused_bucket(nats_server: NatsServer, bucket: str, command: str) -> None:
    """Commands that read say that there are no flows, and create no stream."""
    place = f"{nats_server.url}?bucket={bucket}"
    failed(run_command(*command.split(), "-s", place), 1, f"no stream KV_{bucket}")
    assert findings(place, 1)["store"]["level"] == "problem"
    assert "error" in ask(nats_server.url, f"$JS.API.STREAM.INFO.KV_{bucket}")


def test_clocks_that_differ(url: str) -> None:
    """The doctor says by how much, and what it means."""
    slow = "import time; real = time.time; time.time = lambda: real() + 90"
    done = run_changed(slow, "doctor", url, "--json")
    (clock,) = [one for one in json.loads(done.stdout)["findings"] if one["check"] == "clock"]
    assert (done.returncode, clock["level"]) == (1, "warning")
    assert "90.0 s behind" in clock["found"]


def test_settings_that_lose_flows(url: str, bucket: str) -> None:
    """Each that differs is named, with what the store needs."""
    config = ask(url, f"$JS.API.STREAM.INFO.KV_{bucket}")["config"]
    changed = {"max_age": 3600 * 10**9, "duplicate_window": 60 * 10**9}
    ask(url, f"$JS.API.STREAM.UPDATE.KV_{bucket}", config | changed)
    done = run_command("doctor", url)
    assert done.returncode == 1
    assert "max_age is 3600000000000, not 0" in done.stdout
    assert "duplicate_window is 60000000000, not 600000000000" in done.stdout
    assert findings(url, 1)["settings"]["change"].startswith(
        f"correct the setting with nats stream edit KV_{bucket}"
    )


def test_entries_that_match_no_record(url: str, bucket: str) -> None:
    """They are counted, and are no reason to worry."""
    wanted = {"subjects_filter": f"catga.{bucket}.list.flow.>"}
    state = ask(url, f"$JS.API.STREAM.INFO.KV_{bucket}", wanted)["state"]
    entry = next(iter(state["subjects"]))
    ask(url, entry.replace(".list.flow.0.", ".list.flow.4."))
    found = findings(url)["index"]
    assert (found["level"], found["found"].split(" entries")[0]) == ("info", "1 of 5")


def test_a_server_that_is_too_old(nats_server: NatsServer, url: str) -> None:
    """It is a problem, by what it says of itself."""
    version = ask_version(nats_server)
    with Proxy(nats_server.port) as proxy:
        proxy.rewrite(
            f'"version":"{version}"'.encode(), f'"version":"{"2.12.2":<{len(version)}}"'.encode()
        )
        place = url.replace(str(nats_server.port), str(proxy.port))
        assert findings(place, 1)["version"]["level"] == "problem"


def ask_version(server: NatsServer) -> str:
    """Return the version that the server sends to clients."""
    with socket.create_connection((server.host, server.port)) as connection:
        info = connection.makefile("rb").readline()

    version: str = json.loads(info.removeprefix(b"INFO "))["version"]
    return version


def test_without_jetstream() -> None:
    """Nothing can be kept there."""
    with NatsServer(jetstream=False) as server:
        assert findings(server.url, 1)["JetStream"]["level"] == "problem"


def test_little_room_and_little_messages(tmp_path: Path) -> None:
    """An account that is nearly full, and messages that are small, are warned of."""
    limits = "jetstream { max_file: 1000000 }"
    accounts = f"accounts {{ A {{ {limits}, users: [{{user: a, password: b}}] }} }}"
    settings = (accounts, "max_payload: 65536")
    with NatsServer(*settings) as server:
        url = server.url.replace("//", "//a:b@")
        with cs.open_store(url) as store:
            for number in range(18):
                store.create(cs.FlowSnapshot(f"f-{number}", state={"bulk": "x" * 52_000}))

        found = findings(url, 1)
        assert (found["room"]["level"], found["max_payload"]["level"]) == ("warning", "warning")


@pytest.mark.nightly
def test_replicas() -> None:
    """Three are shown, and one that is away; the URL must say how many there are."""
    with NatsCluster() as cluster:
        url = f"{cluster.url}?replicas=3"
        fill(url)
        assert findings(url)["replicas"]["level"] == "ok"
        assert "num_replicas is 3, not 1" in findings(cluster.url, 1)["settings"]["found"]
        leader = ask(cluster.url, "$JS.API.STREAM.INFO.KV_dslflows")["cluster"]["leader"]
        gone = next(node for node in cluster.nodes if node.name != leader)
        gone.kill()
        found: dict[str, Any] = {}
        until = time.monotonic() + 60
        while found.get("replicas", {}).get("level") != "warning":
            assert time.monotonic() < until, found
            done = run_command("doctor", url, "--json")
            found = {one["check"]: one for one in json.loads(done.stdout)["findings"]}

        assert gone.name in found["replicas"]["found"]


def test_bench_leaves_nothing(nats_server: NatsServer, url: str) -> None:
    """It says where it was, and the stream is gone."""
    done = run_command("bench", url, "--calls", "10")
    assert (done.returncode, done.stderr) == (0, "")
    assert "in the bucket catga-store-bench-" in done.stdout
    streams = ask(nats_server.url, "$JS.API.STREAM.NAMES")["streams"]
    assert not [name for name in streams if "bench" in name]


READING = ["ls", "count", "show f", "waits", "due", "complete w c", "rm f --yes", "bench"]


@pytest.mark.parametrize("command", READING)
def test_a_server_that_is_down(command: str) -> None:
    """One line, and the exit code of a store that cannot be reached."""
    (port,) = free_ports(1)
    place = f"nats://me:secret@127.0.0.1:{port}"
    name, *rest = command.split()
    named = [place] if name == "bench" else ["-s", place]
    done = run_command(name, *rest, *named)
    failed(done, 3, "no NATS server can be reached", str(port))
    assert "secret" not in done.stderr


def test_the_doctor_of_a_server_that_is_down() -> None:
    """It is a problem like others."""
    (port,) = free_ports(1)
    assert findings(f"nats://127.0.0.1:{port}", 1)["server"]["level"] == "problem"


def test_a_server_that_wants_a_password() -> None:
    """The command says so in one line, the doctor as a problem."""
    with NatsServer("authorization { user: me, password: secret }") as server:
        failed(run_command("ls", "-s", server.url), 3, "refused the user, password")
        assert findings(server.url, 1)["server"]["level"] == "problem"
        with_password = server.url.replace("//", "//me:secret@")
        fill(with_password)
        assert findings(with_password)["store"]["level"] == "ok"


@pytest.mark.parametrize("command", ["ls", "doctor"])
def test_without_nats_py(command: str) -> None:
    """One line says what to install."""
    place = "nats://127.0.0.1:4222"
    named = [place] if command == "doctor" else ["-s", place]
    done = run_changed("import sys; sys.modules['nats'] = None", command, *named)
    failed(done, 2, "pip install 'catga_store[nats]'")

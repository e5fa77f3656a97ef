"""What the doctor makes of what it sees, and how tables are printed: in this process, piece by piece.

`test_cli` and its like run whole commands. Here is what a whole command seldom meets: a file system
that is not a local disk, a server of another age, a record that goes while it is looked at.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import sqlite3
import uuid
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import redis
from rich.console import Console

import catga_store as cs
from catga_store.cli import copy as copy_command
from catga_store.cli import output
from catga_store.cli.doctor import _findings
from catga_store.cli.doctor import known_doctor
from catga_store.cli.doctor_by_scheme import doctor_of
from catga_store.copying import CopyDifference
from catga_store.drivers.redis_blocking import RedisLink
from catga_store.drivers.redis_clients import link_to_url
from catga_store.protocol.conversation import NotSentError
from catga_store.protocol.keys import flow_key
from catga_store.protocol.keys import wait_key
from catga_store.stores.findings import Finding
from catga_store.stores.nats import doctor as nats_doctor
from catga_store.stores.nats.layout import NatsLayout
from catga_store.stores.nats.setup import _wanted
from catga_store.stores.nats.transport import Answer
from catga_store.stores.nats.transport import Asks
from catga_store.stores.redis import doctor as redis_doctor
from catga_store.stores.redis import index_check
from catga_store.stores.redis.layout import RedisLayout
from catga_store.stores.sqlite import doctor as sqlite_doctor
from catga_store.testing.servers import RedisServer
from catga_store.testing.servers import free_ports


def by_check(findings: Iterable[Finding]) -> dict[str, Finding]:
    """Return findings by what was looked at, each of which says what it means."""
    found = {finding.check: finding for finding in findings}
    assert all(finding.means for finding in found.values())
    return found


def test_store_without_a_doctor_is_refused_by_doctor() -> None:
    """The commands that look around a store say that they cannot, without the URL's password."""
    with pytest.raises(
        cs.NotSupportedError, match="doctor does not support this kind of store"
    ) as caught:
        known_doctor("postgres://me:secret@host/db", "doctor")

    assert "secret" not in str(caught.value)


# --- SQLite -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "level", "said"),
    [
        ("ext4", "ok", ""),
        ("nfs4", "problem", "local disk"),
        ("tmpfs", "warning", "put the file on a disk"),
        ("overlay", "warning", "volume"),
        (None, "unknown", "local disk"),
    ],
)
def test_file_systems(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str | None,
    level: str,
    said: str,
) -> None:
    """Where locks do not hold is a problem, where files do not stay a warning; unknown is not well."""
    answer = None if kind is None else ("/mnt", kind)
    monkeypatch.setattr(sqlite_doctor, "file_system_of", lambda _path, _mounts: answer)
    (finding,) = sqlite_doctor._file_system(tmp_path)
    assert (finding.check, finding.level) == ("file system", level)
    assert said in finding.change
    assert (kind or "does not report") in finding.found


def test_a_system_without_a_list_of_mounts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only Linux has one: elsewhere the file system is unknown."""

    def missing(*_: object, **__: object) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", missing)
    (finding,) = sqlite_doctor._file_system(tmp_path)
    assert finding.level == "unknown"


def test_a_disk_that_is_nearly_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Less than a GiB, or than a tenth of the file, is little."""
    usage = shutil.disk_usage(tmp_path)
    mib = 1024 * 1024
    for free, size, level in [
        (2048 * mib, 0, "ok"),
        (1023 * mib, 0, "warning"),
        (2048 * mib, 30_000 * mib, "warning"),
    ]:
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: usage._replace(free=free))
        finding = sqlite_doctor._space(tmp_path / "flows.db", size)
        assert (finding.level, finding.found) == (level, f"{free / mib:,.1f} MiB free")


def test_a_file_that_may_not_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """File and directory are named, whichever it is."""
    file = tmp_path / "flows.db"
    file.touch()
    assert sqlite_doctor._writable(file).level == "ok"
    monkeypatch.setattr("os.access", lambda place, _mode: place == file)
    finding = sqlite_doctor._writable(file)
    assert (finding.level, finding.found) == (
        "problem",
        f"this user has no write access to {tmp_path}",
    )


def test_log_that_is_older_than_its_file_is_a_warning(tmp_path: Path) -> None:
    """A backup may have been restored over a file whose log was still there."""
    file, log = tmp_path / "flows.db", tmp_path / "flows.db-wal"
    file.touch()
    assert list(sqlite_doctor._older_log(file)) == [], "no log"
    log.touch()
    os.utime(log, (0, 0))
    assert list(sqlite_doctor._older_log(file)) == [], "an empty log"
    log.write_bytes(b"frames")
    assert list(sqlite_doctor._older_log(file)) == [], "a log that was just written"
    os.utime(log, (0, 0))
    (finding,) = sqlite_doctor._older_log(file)
    assert (finding.check, finding.level) == ("log age", "warning")
    assert "remove the file and the files that end in -wal and -shm" in finding.change


def test_a_log_that_is_not_folded_in(tmp_path: Path) -> None:
    """A log that stays large says that a reader keeps it so."""
    file = tmp_path / "flows.db"
    assert sqlite_doctor._log(file).level == "ok"
    with (tmp_path / "flows.db-wal").open("wb") as log:
        log.truncate(sqlite_doctor._LARGE_LOG + 1)  # a hole: it takes no room

    finding = sqlite_doctor._log(file)
    assert (finding.level, finding.found) == ("warning", "64.0 MiB")


def test_a_file_in_which_sqlite_finds_mistakes() -> None:
    """What its own check says is passed on, with what to do."""
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.execute("CREATE TABLE kept (a)")
        assert sqlite_doctor._integrity(connection).level == "ok"
        connection.execute("INSERT INTO kept VALUES (NULL)")
        connection.execute("PRAGMA writable_schema = ON")
        connection.execute("UPDATE sqlite_master SET sql = 'CREATE TABLE kept (a NOT NULL)'")
        connection.execute("PRAGMA writable_schema = RESET")
        finding = sqlite_doctor._integrity(connection)

    assert (finding.level, finding.found) == ("problem", "NULL value in kept.a")


# --- Redis ------------------------------------------------------------------------------------------


@pytest.fixture
def server(redis_server: Callable[[str], RedisServer]) -> RedisServer:
    """Return a server that others use too."""
    return redis_server("8.2")


@pytest.fixture
def client(server: RedisServer) -> Iterator[redis.Redis]:
    """Return a client of it."""
    with redis.Redis(port=server.port) as opened:
        yield opened


@pytest.fixture
def guest(server: RedisServer, client: redis.Redis) -> Iterator[Callable[..., redis.Redis]]:
    """Return a client of a user who may do everything except the named commands."""
    opened: list[redis.Redis] = []
    name = uuid.uuid4().hex

    def without(*rules: str) -> redis.Redis:
        client.execute_command("ACL", "SETUSER", name, "on", ">pw", "~*", "+@all", *rules)
        opened.append(redis.Redis(port=server.port, username=name, password="pw"))
        return opened[-1]

    yield without
    for one in opened:
        one.close()

    client.execute_command("ACL", "DELUSER", name)


@pytest.fixture
def url(server: RedisServer) -> str:
    """Name a store with five flows and a condition."""
    url = f"{server.url}?prefix={uuid.uuid4().hex}:"
    with cs.open_store(url) as store:
        for number in range(5):
            store.create(cs.FlowSnapshot(f"f{number}", state={}))

        store.set_wait_condition(cs.WaitCondition("wait", flow_ids=["a"]))

    return url


@pytest.fixture
def layout(url: str) -> RedisLayout:
    """Say where the store's keys are."""
    return RedisLayout(redis_doctor._split(url, "")[1], 1)


@pytest.fixture
def link(url: str) -> Iterator[RedisLink]:
    """Return the doctor's own link to the store's server."""
    with closing(link_to_url(url.partition("?")[0], 5)) as opened:
        yield opened


def test_servers_of_other_ages_and_names() -> None:
    """One that is too old is a problem; Valkey is called by its name."""
    old = redis_doctor._version({"redis_version": "6.0.16"}, "")
    assert (old.level, old.found) == ("problem", "Redis 6.0.16")
    assert "6.2" in old.change
    valkey = {"redis_version": "7.2.4", "server_name": "valkey", "valkey_version": "8.1.1"}
    assert redis_doctor._version(valkey, "").found == "Valkey 8.1.1"


def test_what_a_managed_server_keeps_to_itself(
    client: redis.Redis, guest: Callable[..., redis.Redis]
) -> None:
    """A policy, snapshots or replicas that cannot be read are not called well."""
    found = by_check(redis_doctor._memory({"used_memory": 1, "maxmemory": 0}, ""))
    assert found["eviction"].level == "unknown"
    assert redis_doctor._setting(client, "no-such-setting") is None

    node = guest("-config")
    info = {"aof_enabled": 0, "role": "master", "connected_slaves": 1}
    assert by_check(redis_doctor._persistence(node, info, ""))["durability"].level == "warning"
    assert by_check(redis_doctor._replication(node, info, ""))["replicas"].level == "unknown"


def test_a_disk_that_could_not_be_written(client: redis.Redis) -> None:
    """Which of the files failed is said, and that commits are refused."""
    info = {"aof_enabled": 1, "aof_last_write_status": "err", "rdb_last_bgsave_status": "err"}
    found = by_check(redis_doctor._persistence(client, info, " of n"))
    assert found["disk of n"].level == "problem"
    assert (
        found["disk of n"].found == "these writes failed: the append-only file, the last snapshot"
    )


def test_a_cluster_whose_slots_are_not_served() -> None:
    """It says how many are, and what cannot be reached."""
    (bus,) = free_ports(1)
    options = "--cluster-enabled", "yes", "--cluster-port", str(bus)
    with (
        RedisServer("8.2", *options) as server,
        closing(redis.Redis(port=server.port)) as node,
    ):
        info = node.info("everything")
        found = by_check(redis_doctor._cluster(node, info, "", "redis+cluster://host"))

    assert (found["cluster"].level, found["cluster"].found) == (
        "problem",
        "only 0 of 16384 slots are served",
    )


@pytest.mark.parametrize("scheme", ["redis", "nats"])
def test_what_bench_could_not_remove_is_named(scheme: str) -> None:
    """A server that has gone meanwhile: the place is said; an error of the benchmark's own comes first."""
    (port,) = free_ports(1)
    url = f"{scheme}://127.0.0.1:{port}"
    store_doctor = doctor_of(url)
    assert store_doctor is not None

    def use(error: Exception | None) -> None:
        with store_doctor.scratch(url) as place:
            assert "catga-store-bench-" in place.url
            if error is not None:
                raise error

    with pytest.raises(
        cs.StoreUnavailableError, match=r"catga-store-bench-.* could not be removed: "
    ):
        use(None)

    with pytest.raises(ValueError, match="of the benchmark"):
        use(ValueError("of the benchmark"))


def test_opening_reports_an_invalid_layout(
    url: str, layout: RedisLayout, client: redis.Redis
) -> None:
    """The records are not looked at; opening the store says what is wrong with it."""
    client.hset(layout.layout.decode(), "partitions", "many")
    store_doctor = doctor_of(url)
    assert store_doctor is not None
    found = by_check(_findings(url, store_doctor))
    assert "index" not in found
    assert found["store"].level == "problem"
    assert "layout" in found["store"].found


def test_an_index_is_read_page_by_page_up_to_a_limit(
    link: RedisLink, layout: RedisLayout, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every entry is compared, whatever a page holds; of a large store, only a part."""
    monkeypatch.setattr(index_check, "_PAGE", 2)
    found = by_check(index_check.examine_index(link, layout))
    assert (found["index"].level, found["flows"].level) == ("ok", "ok")
    assert found["index"].found.startswith("11 entries")
    assert found["flows"].found.startswith("5 flows")
    monkeypatch.setattr(index_check, "_MOST_ENTRIES", 3)
    found = by_check(index_check.examine_index(link, layout))
    assert int(found["index"].found.split()[0]) < 11


def test_an_unreadable_flow_is_not_reported_as_lost(
    link: RedisLink, layout: RedisLayout, client: redis.Redis
) -> None:
    """None of its entries match it; reading it says that it is damaged."""
    client.hset(layout.flow[0].decode() + "f1", "head", "[]")
    found = by_check(index_check.examine_index(link, layout))
    assert (found["index"].level, found["flows"].level) == ("warning", "ok")
    assert "'f1'" in found["index"].found


def test_an_entry_removed_during_the_check_is_not_a_mistake(
    link: RedisLink, layout: RedisLayout, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker removes a flow between its entry and its head: the entry has gone too, and is asked for."""
    index = layout.index[0]
    (member,) = client.zrangebylex(index, "[fd", "(fe", 0, 1)  # type: ignore[misc]
    client.unlink(layout.flow[0].decode() + "f0")
    perform = link.perform

    def remove_then(request: Any) -> Any:
        if any(command.args[0] == b"ZSCORE" for command in request.commands):
            client.zrem(index, member)

        return perform(request)

    monkeypatch.setattr(link, "perform", remove_then)
    assert list(index_check.unverified(link, layout, 0, b"fd", [member])) == []


def test_a_user_who_may_not_list_the_keys(
    guest: Callable[..., redis.Redis], layout: RedisLayout, server: RedisServer
) -> None:
    """The error of the server comes out: nothing is said of flows that were not looked at."""
    user = guest("-scan").connection_pool.connection_kwargs
    place = f"redis://{user['username']}:pw@{server.host}:{server.port}"
    with (
        closing(link_to_url(place, 5)) as link,
        pytest.raises(redis.exceptions.NoPermissionError),
    ):
        list(index_check.flows_of(link, layout, 0))


# --- NATS -------------------------------------------------------------------------------------------


def test_a_stream_that_takes_in_others() -> None:
    """A mirror or sources bring records that no commit has checked."""
    layout = NatsLayout("flows")
    config = {**_wanted(layout, 1), "sources": [{"name": "other"}]}
    found = [one for one in nats_doctor._settings(config, layout, 1) if "sources" in one.found]
    assert [(one.level, one.found) for one in found] == [("problem", "the stream has sources")]


@pytest.mark.anyio
async def test_a_stream_that_the_server_does_not_show() -> None:
    """An error that is not its absence is one: there may be flows in it."""
    error = {"code": 503, "err_code": 10008, "description": "temporarily unavailable"}

    class Link:
        async def perform(self, _: Asks) -> tuple[tuple[Answer, ...], ...]:
            return ((Answer(0, {}, json.dumps({"error": error}).encode()),),)

    link: Any = Link()
    with pytest.raises(NotSentError, match=r"'KV_flows': temporarily unavailable \(10008\)"):
        await nats_doctor._info(link, NatsLayout("flows"), ">")


def test_a_stream_without_a_leader() -> None:
    """Until a majority is back nothing can be read or written."""
    replicas = [{"name": "b", "offline": True}, {"name": "c", "offline": True}]
    stream = {"config": {"num_replicas": 3}, "cluster": {"replicas": replicas}}
    (finding,) = nats_doctor._replicas(stream)
    assert (finding.level, finding.found) == ("problem", "no server leads the stream")


def test_an_unreadable_record_matches_no_entry() -> None:
    """Its entries are reported as entries without a record."""
    layout = NatsLayout("flows")
    answer = Answer(0, {"Nats-Sequence": "7"}, b"\xff")
    for key in (flow_key("f"), wait_key("w")):
        assert nats_doctor._verified(layout, key, answer) == frozenset()


# --- copies ------------------------------------------------------------------------------------------


def test_a_copy_that_differs_in_very_much(capsys: pytest.CaptureFixture[str]) -> None:
    """Twenty differences are named, and how many more there are."""
    differences = [CopyDifference(flow_key(f"f{number:02}"), "missing") for number in range(25)]
    copy_command._print_report(cs.CopyReport(), differences, "memory://", verified=False)
    shown = capsys.readouterr()
    lines = shown.err.splitlines()
    assert sum("differs from the source: missing" in line for line in lines) == 20
    assert "and 5 more" in lines[20]
    assert "--overwrite" in lines[21]
    assert "Verified" not in shown.out


# --- tables -----------------------------------------------------------------------------------------


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Print a table on a terminal of a width, and answer what is seen."""

    def show(columns: list[str], rows: list[list[str]], width: int = 60) -> str:
        file = io.StringIO()
        console = Console(file=file, force_terminal=True, width=width, color_system=None)
        monkeypatch.setattr(output, "stdout", lambda: console)
        output.print_rows(columns, rows)
        lines = [line.rstrip() for line in file.getvalue().splitlines()]
        return "\n".join(lines).strip("\n")

    return show


def test_a_table_on_a_terminal(screen: Callable[..., str]) -> None:
    """Columns that say nothing are left out, and rows that do not fit become paragraphs."""
    columns, rows = ["FLOW", "OWNER", "ERROR"], [["a", "", "no"], ["b", "-", ""]]
    assert screen(columns, rows) == "FLOW  ERROR\na     no\nb"
    assert (
        screen(["FLOW", "TYPE"], [["a" * 9, "b" * 9]], 12)
        == "FLOW aaaaaaa\n     aa\nTYPE bbbbbbb\n     bb"
    )


def test_a_table_of_nothing_has_its_headings(screen: Callable[..., str]) -> None:
    """Without rows, or with rows that say nothing, every column is shown."""
    assert screen(["FLOW", "OWNER"], []) == "FLOW  OWNER"
    assert screen(["FLOW", "OWNER"], [["", "-"]]) == "FLOW  OWNER\n      -"


def test_what_json_does_not_know_is_an_error() -> None:
    """Nothing is printed as what it is not."""
    with pytest.raises(TypeError):
        output.print_json({"a": object()})


def test_refused_question_of_the_index_check_is_raised() -> None:
    """It is not taken for what the index holds."""

    class Refusing:
        """A link to a server that refuses all commands."""

        def perform(self, request: Any, /) -> tuple[object, ...]:
            """Refuse."""
            return tuple(redis.ResponseError("NOPERM") for _ in request.commands)

    with pytest.raises(redis.ResponseError, match="NOPERM"):
        index_check.ask(Refusing(), [("ZCARD", "key")])

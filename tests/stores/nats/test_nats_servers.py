"""NATS servers that will not serve: each is a clear error of ours, with the client's as its cause."""

from __future__ import annotations

import json
import socket
import time
import uuid
from collections.abc import Generator
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import anyio
import nats
import pytest
from anyio.from_thread import start_blocking_portal
from proxy import Proxy

import catga_store as cs
from catga_store.testing.servers import NatsServer

SHORT = timedelta(seconds=2)
LONG = 30
"""Seconds that only a test that fails would wait."""


def flow(flow_id: str = "f", **state: Any) -> cs.FlowSnapshot[Any]:
    """Make a flow."""
    return cs.FlowSnapshot(flow_id, state=state)


def ask(url: str, subject: str, payload: object) -> dict[str, Any]:
    """Ask a server itself, once."""

    async def once() -> dict[str, Any]:
        connect: Any = nats.connect
        client = await connect(url)
        try:
            answer = await client.request(subject, json.dumps(payload).encode(), timeout=10)
            reply: dict[str, Any] = json.loads(answer.data)
            return reply
        finally:
            await client.close()

    with start_blocking_portal() as portal:
        return portal.call(once)


@pytest.fixture
def bucket(nats_server: NatsServer) -> Iterator[str]:
    """Name records that no other test uses."""
    name = uuid.uuid4().hex
    yield name
    ask(nats_server.url, f"$JS.API.STREAM.DELETE.KV_{name}", {})


def test_server_that_is_not_there() -> None:
    """A server that is not there is an outage, reported in time."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"nats://127.0.0.1:{free.getsockname()[1]}"
        with (
            cs.NatsStore(url, timeout=timedelta(seconds=1)) as store,
            pytest.raises(
                cs.StoreUnavailableError, match="no NATS server can be reached"
            ) as caught,
        ):
            store.get("f")

    assert isinstance(caught.value.__cause__, Exception)


def test_server_that_goes_down() -> None:
    """Reads and writes say so and write nothing; they work again when it is back."""
    with NatsServer() as server, cs.NatsStore(server.url, timeout=SHORT) as store:
        store.create(flow())
        server.stop()
        for use in (lambda: store.get("f"), lambda: store.create(flow("g"))):
            with pytest.raises(cs.StoreUnavailableError, match="connection to NATS") as caught:
                use()

            assert isinstance(caught.value.__cause__, Exception)

        server.start()
        assert store.get("f") is not None
        assert store.get("g") is None


def test_without_jetstream() -> None:
    """A server without JetStream is a mistake of the deployment."""
    with (
        NatsServer(jetstream=False) as server,
        cs.NatsStore(server.url) as store,
        pytest.raises(cs.StoreConfigError, match="without JetStream"),
    ):
        store.get("f")


def test_an_account_without_jetstream() -> None:
    """A server may have JetStream, and this account not."""
    with_it = "A { jetstream: enabled, users: [{user: x, password: y}] }"
    accounts = f"accounts {{ {with_it}, B {{ users: [{{user: a, password: b}}] }} }}"
    with (
        NatsServer(accounts) as server,
        cs.NatsStore(server.url.replace("//", "//a:b@"), timeout=SHORT) as store,
        pytest.raises(cs.CatgaStoreError, match="JetStream") as caught,
    ):
        store.get("f")

    assert isinstance(caught.value, cs.StoreConfigError | cs.StoreUnavailableError)


def test_a_server_that_is_too_old(nats_server: NatsServer) -> None:
    """What says it is older than 2.12.3 is refused before anything is written."""
    version = ask_version(nats_server)
    with Proxy(nats_server.port) as proxy:
        proxy.rewrite(
            f'"version":"{version}"'.encode(), f'"version":"{"2.12.2":<{len(version)}}"'.encode()
        )
        with (
            cs.NatsStore(f"nats://127.0.0.1:{proxy.port}") as store,
            pytest.raises(cs.StoreConfigError, match=r"is NATS 2\.12\.2,.*needs NATS 2\.12\.3"),
        ):
            store.create(flow())


def ask_version(server: NatsServer) -> str:
    """Return what the server says when it is connected to."""
    with socket.create_connection((server.host, server.port)) as connection:
        info = connection.makefile("rb").readline()

    version: str = json.loads(info.removeprefix(b"INFO "))["version"]
    return version


@pytest.mark.parametrize(
    ("settings", "user"),
    [
        ("authorization { user: a, password: b }", "a:wrong@"),
        ("authorization { user: a, password: b }", ""),
        ("authorization { token: t }", "wrong@"),
    ],
)
def test_wrong_credentials(settings: str, user: str) -> None:
    """A wrong password or token, or none, is a configuration error, and is never shown."""
    with NatsServer(settings) as server:
        url = server.url.replace("//", f"//{user}")
        with (
            cs.open_store(url, timeout=SHORT) as store,
            pytest.raises(cs.StoreConfigError, match="refused the user, password") as caught,
        ):
            store.get("f")

    assert "wrong" not in str(caught.value)
    assert isinstance(caught.value.__cause__, Exception)


@contextmanager
def limited(publish: str, subscribe: str = "_INBOX.>") -> Generator[str]:
    """Start a server that lets its user publish and subscribe to so little; return its URL."""
    allowed = f'{{ publish: [{publish}], subscribe: ["{subscribe}"] }}'
    user = f"{{ user: a, password: b, permissions: {allowed} }}"
    with NatsServer(f"authorization {{ users: [{user}] }}") as server:
        yield server.url.replace("//", "//a:b@")


@pytest.mark.parametrize(
    ("publish", "missing"),
    [
        ('"$JS.API.>"', "catga.dslflows.layout"),
        ('"$JS.API.>", "catga.dslflows.layout"', "catga.dslflows."),
        ('"$JS.API.>", "catga.dslflows.>"', "$KV.dslflows.flow.f"),
        ('"catga.>", "$KV.>"', "$JS.API.STREAM.INFO"),
    ],
)
def test_missing_permissions(publish: str, missing: str) -> None:
    """The error of a missing permission names the subject."""
    with (
        limited(publish) as url,
        cs.NatsStore(url, timeout=SHORT) as store,
        pytest.raises(
            cs.StoreConfigError, match="does not permit this user to publish to"
        ) as caught,
    ):
        store.create(flow())

    assert missing in str(caught.value)
    assert isinstance(caught.value.__cause__, Exception)


def test_entries_that_may_not_be_written() -> None:
    """The record may be written alone then: the error does not say that it was not."""
    allowed = '"$JS.API.>", "catga.dslflows.layout", "$KV.>"'
    with limited(allowed) as url, cs.NatsStore(url, timeout=SHORT) as store:
        with pytest.raises(
            cs.StoreConfigError, match="may have been written, but without its index"
        ):
            store.create(flow())

        until = time.monotonic() + LONG
        while store.get("f") is None:  # the error comes before the record is there
            assert time.monotonic() < until


def test_a_missing_permission_inside_a_batch() -> None:
    """It is named for any message of a batch, and nothing of the batch was written."""
    allowed = '"$JS.API.>", "catga.>", "$KV.dslflows.flow.f"'
    with limited(allowed) as url, cs.NatsStore(url, timeout=SHORT) as store:
        with store.session() as session:
            session.add(flow())
            session.add(flow("g"))
            with pytest.raises(cs.StoreConfigError, match=r"publish to '\$KV\.dslflows\.flow\.g'"):
                session.commit()

        assert store.get("f") is None


def test_no_permission_for_replies() -> None:
    """Without an inbox no reply comes; the error says what to allow."""
    with limited('">"', "elsewhere.>") as url, cs.NatsStore(url, timeout=SHORT) as store:
        for _ in range(2):  # and is refused again, without another try
            with pytest.raises(cs.StoreConfigError, match=r"subscribe to '_INBOX\."):
                store.get("f")


def test_permissions_that_suffice() -> None:
    """What the documentation lists is enough for every operation."""
    api = [
        f"$JS.API.{what}.KV_dslflows"
        for what in ("STREAM.INFO", "STREAM.CREATE", "STREAM.PURGE", "STREAM.MSG.GET", "DIRECT.GET")
    ]
    subjects = [*api, "$KV.dslflows.>", "$KV.dslflows_wait.>", "catga.dslflows.>"]
    with limited(json.dumps(subjects)[1:-1]) as url, cs.NatsStore(url, timeout=SHORT) as store:
        with store.begin() as session:
            session.add(flow(bulk="x" * 2_000_000))
            session.complete_child("w", "a")

        (job,) = store.claim_due()
        store.extend(job)
        assert store.count_flows() == 1
        assert store.delete(job)
        store.sweep()
        store.clear()


def test_other_settings_are_named(nats_server: NatsServer, bucket: str) -> None:
    """A stream that is not as the store needs it is left alone, and the setting is named."""
    config = {"name": f"KV_{bucket}", "subjects": [f"$KV.{bucket}.>"], "storage": "file"}
    ask(nats_server.url, f"$JS.API.STREAM.CREATE.KV_{bucket}", config)
    with (
        cs.NatsStore(nats_server.url, bucket=bucket) as store,
        pytest.raises(cs.StoreConfigError, match=rf"'KV_{bucket}' has \w+ = .*nats stream edit"),
    ):
        store.get("f")

    left = ask(nats_server.url, f"$JS.API.STREAM.INFO.KV_{bucket}", {})
    assert left["config"]["subjects"] == config["subjects"]


def test_a_full_stream_is_an_outage(nats_server: NatsServer, bucket: str) -> None:
    """Without room nothing is written, and the error says so; reads continue."""
    with cs.NatsStore(nats_server.url, bucket=bucket) as store:
        store.create(flow())
        config = ask(nats_server.url, f"$JS.API.STREAM.INFO.KV_{bucket}", {})["config"]
        config["max_bytes"] = 2000
        ask(nats_server.url, f"$JS.API.STREAM.UPDATE.KV_{bucket}", config)
        with pytest.raises(cs.StoreUnavailableError, match="is out of space"):
            store.create(flow("g", bulk="x" * 10_000))

        assert store.get("g") is None


def test_subjects_that_another_stream_has(nats_server: NatsServer, bucket: str) -> None:
    """A bucket whose subjects lie in another program's stream is refused; that stream stays as it is."""
    other = {"name": f"other-{bucket}", "subjects": [f"$KV.{bucket}.>"]}
    ask(nats_server.url, f"$JS.API.STREAM.CREATE.{other['name']}", other)
    with (
        cs.NatsStore(nats_server.url, bucket=bucket) as store,
        pytest.raises(cs.StoreConfigError, match=r"belong to another stream.*another bucket"),
    ):
        store.ping()

    ask(nats_server.url, f"$JS.API.STREAM.DELETE.{other['name']}", {})


def test_another_number_of_replicas(nats_server: NatsServer, bucket: str) -> None:
    """The error names both numbers and both ways out."""
    with cs.NatsStore(nats_server.url, bucket=bucket) as store:
        store.ping()

    said = r"has 1 replicas, but .* with 3, so nothing was written; open it with replicas=1, or run nats stream edit"
    with (
        cs.NatsStore(nats_server.url, bucket=bucket, replicas=3) as store,
        pytest.raises(cs.StoreConfigError, match=said),
    ):
        store.ping()


def test_more_replicas_than_servers(nats_server: NatsServer, bucket: str) -> None:
    """One server cannot keep three replicas: it is said when the stream is to be made."""
    with (
        cs.NatsStore(nats_server.url, bucket=bucket, replicas=3) as store,
        pytest.raises(
            cs.StoreConfigError, match=r"cannot keep 3 replicas.*open the store with fewer"
        ),
    ):
        store.ping()


def test_an_account_that_may_not_use_jetstream() -> None:
    """A server may have JetStream, and an account on it may not: the message names the account."""
    accounts = "accounts { A { users: [ { user: u, password: p } ] } }"
    with (
        NatsServer(accounts) as server,
        cs.open_store(f"nats://u:p@{server.host}:{server.port}", timeout=SHORT) as store,
        pytest.raises(cs.StoreConfigError, match=r"this (NATS )?account is not allowed to use"),
    ):
        store.ping()


def test_a_store_of_another_layout(nats_server: NatsServer, bucket: str) -> None:
    """What a release wrote that this one does not know is left alone, and both versions are named."""
    with cs.NatsStore(nats_server.url, bucket=bucket) as store:
        store.ping()

    ask(nats_server.url, f"catga.{bucket}.layout", {"layout": 99, "partitions": 1})
    with (
        cs.NatsStore(nats_server.url, bucket=bucket) as store,
        pytest.raises(cs.StoreConfigError, match="has layout version 99"),
    ):
        store.ping()


def commits_until_it_is_full(store: cs.Store, together: int, bulk: int) -> str:
    """Commit that many flows at once until that is refused; every outcome must be true."""
    for number in range(200):
        ids = [f"{number}-{part}" for part in range(together)]
        refusal: cs.CatgaStoreError | None = None
        try:
            with store.begin() as session:
                for flow_id in ids:
                    session.add(flow(flow_id, bulk="x" * bulk))
        except (cs.StoreUnavailableError, cs.CommitUncertainError) as error:
            refusal = error

        there = sum(one is not None for one in store.get_many(ids).values())
        if refusal is None:
            assert there == together
            continue

        assert store.get("0-0") is not None, "what is stored stays readable"
        if isinstance(refusal, cs.CommitUncertainError):
            assert 0 < there < together
            assert "was stored only in part" in str(refusal.__cause__ or refusal)
            assert [key[1] for key in refusal.keys] == ids
            with pytest.raises(cs.CommitUncertainError):
                store.resolve_commit(refusal)

            return "a part"

        assert there == 0
        assert "NATS is out of space" in str(refusal)
        assert "raise the limits" in str(refusal)
        return "nothing"

    pytest.fail("it was never full")


def test_full_server_keeps_part_of_a_batch(tmp_path: Path) -> None:
    """Nothing of a commit of one record; of several perhaps a part, which is uncertain, never all or none.

    Which it is depends on where the storage ends: some of these sizes end it between two records.
    """
    outcomes: set[str] = set()
    for place, (together, bulk) in enumerate([(1, 20_000), (2, 20_000), (2, 34_002), (2, 48_004)]):
        room = f'jetstream {{ store_dir: "{tmp_path / str(place)}", max_file: 1000000 }}'
        with (
            NatsServer(room, jetstream=False) as server,
            cs.NatsStore(server.url, timeout=SHORT) as store,
        ):
            outcomes.add(commits_until_it_is_full(store, together, bulk))

    assert outcomes == {"nothing", "a part"}


@pytest.mark.anyio
@pytest.mark.parametrize("bulk", [20_000, 34_002])
async def test_grouped_commits_on_a_full_server(tmp_path: Path, bulk: int) -> None:
    """What was acknowledged is there, what was refused is not; the others are uncertain.

    A batch that others share may be cut off without a reply, and nothing can be fenced without room.
    """
    room = f'jetstream {{ store_dir: "{tmp_path}", max_file: 3000000 }}'
    outcomes: dict[int, str] = {}
    with NatsServer(room, jetstream=False) as server:
        async with cs.open_async_store(server.url, timeout=SHORT) as store:

            async def commit(number: int) -> None:
                try:
                    async with store.begin() as session:
                        for part in "ab":
                            session.add(flow(f"{number}-{part}", bulk="x" * bulk))
                except cs.StoreUnavailableError:
                    outcomes[number] = "nothing"
                except cs.CommitUncertainError:
                    outcomes[number] = "uncertain"
                else:
                    outcomes[number] = "done"

            for start in range(0, 100, 10):
                async with anyio.create_task_group() as group:
                    for number in range(start, start + 10):
                        group.start_soon(commit, number)

            for number, what in outcomes.items():
                found = await store.get_many([f"{number}-a", f"{number}-b"])
                there = sum(one is not None for one in found.values())
                expected = {"done": (2,), "nothing": (0,), "uncertain": (0, 1, 2)}
                assert there in expected[what], f"{number}: {what}, and there are {there}"

    assert {"done", "nothing"} <= set(outcomes.values())


@pytest.mark.parametrize("bulk", [20_000, 34_002, 48_004])
def test_stream_with_max_bytes_refuses_commits_whole(nats_server: NatsServer, bulk: int) -> None:
    """With `max_bytes` no commit is ever stored in part; workers that do not name it use the stream."""
    url = f"{nats_server.url}?bucket={uuid.uuid4().hex}"
    with cs.open_store(f"{url}&max_bytes=1000000") as store:
        assert commits_until_it_is_full(store, 2, bulk) == "nothing"

    with cs.open_store(url) as other:
        assert other.count_flows() > 0


def test_too_many_open_batches(tmp_path: Path) -> None:
    """While others hold all the batches that the server allows, the error says that it is busy."""
    room = f'jetstream {{ store_dir: "{tmp_path}", limits {{ batch {{ max_inflight_per_stream: 1 }} }} }}'
    with (
        NatsServer(room, jetstream=False) as server,
        cs.NatsStore(server.url, timeout=SHORT) as store,
    ):
        store.ping()
        ask_open_batch(server.url)
        with store.session() as session:
            session.add(flow("f"))
            session.add(flow("g"))
            with pytest.raises(cs.StoreUnavailableError, match=r"NATS was busy.*batch"):
                session.commit()

        assert store.get_many(["f", "g"]) == {"f": None, "g": None}


def ask_open_batch(url: str) -> None:
    """Begin a batch and leave it open."""

    async def once() -> None:
        connect: Any = nats.connect
        client = await connect(url)
        headers = {"Nats-Batch-Id": "open", "Nats-Batch-Sequence": "1"}
        await client.request("catga.dslflows.check.x.0", b"", timeout=10, headers=headers)
        await client.close()

    with start_blocking_portal() as portal:
        portal.call(once)


def test_too_few_servers_for_the_replicas(nats_server: NatsServer) -> None:
    """More replicas than servers is a mistake of the deployment."""
    with (
        cs.NatsStore(nats_server.url, bucket=uuid.uuid4().hex, replicas=3, timeout=SHORT) as store,
        pytest.raises(cs.StoreConfigError, match="replicas"),
    ):
        store.get("f")


@pytest.mark.parametrize(
    "options",
    [
        {"bucket": ""},
        {"bucket": "a.b"},
        {"bucket": "a_wait"},
        {"replicas": 2},
        {"stale_reads": 1},
        {"connect": 5},
        {"connect": {"timeout": 5}},
        {"connect": {"servers": "nats://b"}},
        {"connect": {5: "b"}},
        {"servers": 5},
    ],
)
@pytest.mark.parametrize("kind", [cs.NatsStore, cs.AsyncNatsStore])
def test_options_that_cannot_be(kind: Any, options: dict[str, Any]) -> None:
    """What NATS has no room for, or its client does not take, is refused before anything is sent."""
    with pytest.raises(cs.UsageError, match=next(iter(options))):
        kind(**options)


def test_several_servers_in_one_url(nats_server: NatsServer, bucket: str) -> None:
    """The constructor takes what `open_store` takes: the first that replies is used."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = f"127.0.0.1:{free.getsockname()[1]}"
        url = f"nats://{nobody},{nats_server.host}:{nats_server.port}"
        with cs.NatsStore(url, bucket=bucket) as store:
            store.create(flow())
            assert store.get("f") is not None


HOSTILE = [
    *(
        "*",
        ">",
        ".",
        "a.b",
        "a.*",
        "$KV.x",
        "=",
        "=20",
        " ",
        "a b",
        "\n",
        "\r\nPUB x 0\r\n",
        "\0",
        "\t",
    ),
    *("\u1f600", "\U0001f600", "ä", "{a}", "a/b", "..", "_INBOX.1", "x" * 512, "é" * 256, "\x7f"),
]


def test_hostile_ids(nats_server: NatsServer, bucket: str) -> None:
    """Any text is an id of its own, for flows, conditions, children and parents alike."""
    with cs.NatsStore(nats_server.url, bucket=bucket) as store:
        for number, name in enumerate(HOSTILE):
            store.create(flow(name, n=number))
            wait = cs.WaitCondition(name, flow_ids=HOSTILE, parent_flow_id=name)
            assert store.set_wait_condition(wait) is False
            progress = cs.ForEachProgress()
            progress.mark(number)
            store.save_for_each_progress(name, 0, progress)

        assert {one.flow_id for one in store.iter_flows()} == set(HOSTILE)
        for number, name in enumerate(HOSTILE):
            assert store.get_one(name).state == {"n": number}
            assert store.complete_child("*", name).now_satisfied == (number == len(HOSTILE) - 1)
            assert [
                one.correlation_id for one in store.iter_wait_conditions(parent_flow_id=name)
            ] == [name]
            stored = store.get_for_each_progress(name, 0)
            assert stored is not None
            assert list(stored.processed_indices) == [number]
            assert store.delete(name)
            assert store.get(name) is None

        assert store.count_flows() == 0


def test_domain_is_named(tmp_path: Path) -> None:
    """A store in a JetStream domain is used by its name; one that is not there is an outage."""
    settings = f'jetstream {{ domain: hub, store_dir: "{tmp_path}" }}'
    with NatsServer(settings, jetstream=False) as server:
        with cs.open_store(f"{server.url}?domain=hub") as store:
            store.create(flow(n=1))
            found = store.get_one("f")
            found.state["n"] = 2
            store.update(found)
            store.clear()
            assert store.count_flows() == 0

        with (
            cs.open_store(f"{server.url}?domain=elsewhere", timeout=SHORT) as store,
            pytest.raises(cs.StoreUnavailableError, match="JetStream does not respond"),
        ):
            store.get("f")


def test_close_beside_commits_ends_them_all(nats_server: NatsServer, bucket: str) -> None:
    """Also batches that wait behind one in flight; what was not written is said to be so."""

    async def use() -> None:
        for rest in range(8):
            store = cs.AsyncNatsStore(nats_server.url, bucket=bucket)
            await store.ping()
            told: dict[str, str] = {}
            async with anyio.create_task_group() as tasks:
                for number in range(30):
                    tasks.start_soon(commit, store, f"{{{rest}-{number}}}", told)

                await anyio.sleep(rest / 1000)
                with anyio.fail_after(30):
                    await store.close()

                tasks.cancel_scope.deadline = anyio.current_time() + 30

            assert len(told) == 30
            async with cs.AsyncNatsStore(nats_server.url, bucket=bucket) as other:
                for name, outcome in told.items():
                    is_there = await other.get(f"{name}-a") is not None
                    assert outcome == "may be" or is_there == (outcome == "written"), name

    async def commit(store: cs.AsyncStore, name: str, told: dict[str, str]) -> None:
        try:
            async with store.begin() as session:
                session.add(cs.FlowSnapshot(f"{name}-a", state={}))
                session.add(cs.FlowSnapshot(f"{name}-b", state={}))
        except cs.CommitUncertainError:
            told[name] = "may be"
        except (cs.StoreUnavailableError, cs.StoreClosedError):
            told[name] = "not written"
        else:
            told[name] = "written"

    anyio.run(use)

"""The pytest plugin, as its users meet it: in a pytest run of its own, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from textwrap import dedent

import pytest
from forks import UNMEASURED

import catga_store as cs
from catga_store.testing import scratch_url
from catga_store.testing.servers import NatsServer
from catga_store.testing.servers import RedisServer

MODULE = "catga_store.testing.plugin"
# Where the package is installed, pytest finds the plugin by itself; elsewhere it is named.
FOUND = any(point.value == MODULE for point in entry_points(group="pytest11"))
LOADED = [] if FOUND else ["-p", MODULE]


def run(
    directory: Path, test: str, *options: str, ini: str = "", measured: bool = True
) -> tuple[int, str]:
    """Run a file of tests; return the exit code and what was printed."""
    (directory / "test_it.py").write_text(dedent(test), encoding="utf-8")
    (directory / "pytest.ini").write_text(f"[pytest]\n{ini}\n", encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *LOADED, "-q", "-p", "no:cacheprovider", *options],
        cwd=directory,
        env=os.environ if measured else UNMEASURED,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def test_the_fixtures_work_together(tmp_path: Path) -> None:
    """A store, its clock and its faults, in blocking and async tests, without further set-up."""
    code, said = run(
        tmp_path,
        """
        from datetime import timedelta
        import pytest, catga_store as cs

        def test_time_moves_by_hand(flow_store, flow_clock):
            before = flow_store.now()
            flow_clock.advance(timedelta(hours=1))
            assert flow_store.now() - before == timedelta(hours=1)
            flow_store.create(cs.FlowSnapshot("a", state={}))

        def test_each_test_has_an_empty_store(flow_store):
            assert flow_store.get("a") is None

        def test_faults_strike(flow_store, flow_faults):
            flow_faults.on_commit("unavailable")
            with pytest.raises(cs.StoreUnavailableError):
                flow_store.create(cs.FlowSnapshot("a", state={}))

        @pytest.mark.anyio
        async def test_async(async_flow_store, flow_faults, flow_clock):
            await async_flow_store.create(cs.FlowSnapshot("a", state={}))
            flow_faults.on_commit("conflict")
            with pytest.raises(cs.ConflictError):
                await async_flow_store.update(await async_flow_store.get("a"))

        @pytest.mark.anyio
        async def test_both_see_the_same_records(flow_store, async_flow_store):
            flow_store.create(cs.FlowSnapshot("a", state={}))
            assert await async_flow_store.get("a") is not None

        @pytest.mark.flow_store("sqlite", owner="w-1")
        def test_a_marker_chooses(flow_store):
            assert isinstance(flow_store, cs.SQLiteStore)
            flow_store.create(cs.FlowSnapshot("a", state={}))
            assert flow_store.claim("a").owner == "w-1"
        """,
        "-W",
        "error",
        "-p",
        "no:asyncio",
        "--strict-markers",
    )
    assert code == 0, said
    assert "8 passed" in said, "the async tests run on both event loops"


def test_pytest_asyncio_is_installed() -> None:
    """The tests below start pytest with it."""
    assert find_spec("pytest_asyncio") is not None, "pip install pytest-asyncio"


ASYNCIO = """
    import pytest, catga_store as cs

    {mark}
    async def test_one(async_flow_store, flow_faults, flow_clock):
        before = async_flow_store.now()
        await async_flow_store.create(cs.FlowSnapshot("a", state={{}}))
        assert flow_clock.now == before
        flow_faults.on_commit("conflict")
        with pytest.raises(cs.ConflictError):
            await async_flow_store.update(await async_flow_store.get("a"))

    {mark}
    async def test_two(flow_store, async_flow_store):
        assert await async_flow_store.get("a") is None
        flow_store.create(cs.FlowSnapshot("a", state={{}}))
        assert await async_flow_store.get("a") is not None

    @pytest.mark.flow_store("sqlite", owner="w-1")
    {mark}
    async def test_three(async_flow_store):
        assert type(async_flow_store) is cs.AsyncSQLiteStore

    def test_blocking_beside_it(flow_store):
        flow_store.create(cs.FlowSnapshot("a", state={{}}))
"""
ANYIO = """
    @pytest.mark.anyio
    async def test_anyio_beside_it(async_flow_store):
        await async_flow_store.create(cs.FlowSnapshot("a", state={{}}))
"""


@pytest.mark.parametrize(
    ("mark", "ini", "passed"),
    [
        ("@pytest.mark.asyncio", "asyncio_mode = strict", 6),
        pytest.param(
            '@pytest.mark.asyncio(loop_scope="module")',
            "asyncio_mode = strict",
            6,
            marks=pytest.mark.nightly,
        ),
        pytest.param(
            "@pytest.mark.asyncio",
            "asyncio_mode = strict\nasyncio_default_test_loop_scope = session",
            6,
            marks=pytest.mark.nightly,
        ),
        ("", "asyncio_mode = auto", 4),
    ],
)
def test_async_fixtures_under_pytest_asyncio(
    tmp_path: Path, mark: str, ini: str, passed: int
) -> None:
    """In strict mode on a loop of any scope, with anyio's tests beside them; and in auto mode."""
    test = ASYNCIO + (ANYIO if mark else "")  # the auto mode takes over every async test
    ini = f"{ini}\nasyncio_default_fixture_loop_scope = function"
    code, said = run(tmp_path, test.format(mark=mark), "-W", "error", ini=ini)
    assert code == 0, said
    assert f"{passed} passed" in said, said


@pytest.mark.nightly
@pytest.mark.parametrize("server", [RedisServer, NatsServer])
def test_async_fixtures_on_a_server_under_pytest_asyncio(
    tmp_path: Path, server: type[RedisServer | NatsServer]
) -> None:
    """Connections are opened and closed on the loop of the test."""
    with server() as running:
        code, said = run(
            tmp_path,
            """
            import pytest, catga_store as cs

            @pytest.mark.asyncio(loop_scope="module")
            async def test_it(async_flow_store):
                await async_flow_store.create(cs.FlowSnapshot("a", state={}))
            """,
            "-W",
            "error",
            "--flow-store-url",
            running.url,
            ini="asyncio_mode = strict\nasyncio_default_fixture_loop_scope = function",
        )

    assert code == 0, said
    assert "1 passed" in said


@pytest.mark.parametrize("how", ["option", "setting"])
def test_the_store_is_chosen_for_a_whole_run(tmp_path: Path, how: str) -> None:
    """By option or by setting; the file that is named is not touched, and nothing is left beside."""
    named = tmp_path / "mine.db"
    code, said = run(
        tmp_path,
        """
        import catga_store as cs

        def test_it(flow_store):
            assert isinstance(flow_store, cs.SQLiteStore)
            flow_store.create(cs.FlowSnapshot("a", state={}))
        """,
        *(["--flow-store-url", f"sqlite:///{named}"] if how == "option" else []),
        ini="" if how == "option" else f"flow_store_url = sqlite:///{named}",
    )
    assert code == 0, said
    assert not list(tmp_path.glob("*.db*"))


def test_a_run_that_does_not_use_it_imports_nothing_of_it(tmp_path: Path) -> None:
    """No store, no Hypothesis, no server, no event loop."""
    code, said = run(
        tmp_path,
        """
        import sys

        def test_it():
            kit = [name for name in sys.modules if name.startswith("catga_store.testing.")]
            assert kit == ["catga_store.testing.plugin"]
            assert not {"redis", "nats", "trio", "sqlite3", "cattrs"} & sys.modules.keys()
        """,
        "-p",
        "no:hypothesispytest",
        "-p",
        "no:anyio",
        "-p",
        "no:asyncio",
        measured=False,
    )
    assert code == 0, said


def test_a_marker_with_two_urls_is_wrong(tmp_path: Path) -> None:
    """It is an error that says what the marker takes."""
    code, said = run(
        tmp_path,
        """
        import pytest

        @pytest.mark.flow_store("sqlite", "memory://")
        def test_it(flow_store):
            pass
        """,
    )
    assert code == 1
    assert "flow_store marker: expected at most one URL, and options as keyword arguments" in said


def test_a_missing_server_fails(tmp_path: Path) -> None:
    """Without the wheel the fixture is an error that names it, and no skip."""
    code, said = run(
        tmp_path,
        """
        import importlib.util

        def test_it(monkeypatch, request):
            monkeypatch.setattr(importlib.util, "find_spec", lambda *_: None)
            request.getfixturevalue("redis_server")
        """,
    )
    assert code == 1
    assert "install" in said
    assert "skipped" not in said


def test_servers_run(tmp_path: Path) -> None:
    """Both servers answer for a whole session."""
    code, said = run(
        tmp_path,
        """
        def test_it(redis_server, nats_server):
            assert redis_server.is_ready() and nats_server.is_ready()
            assert redis_server.url.startswith("redis://")
            assert nats_server.url.startswith("nats://")
        """,
    )
    assert code == 0, said


def test_a_scratch_namespace_is_separate_and_removed(tmp_path: Path) -> None:
    """A file of its own that is deleted, the named one untouched; another prefix; another bucket."""
    mine = f"sqlite:///{tmp_path}/mine.db"
    with cs.open_store(mine) as store:
        store.create(cs.FlowSnapshot("a", state={}))

    with scratch_url(mine) as url:
        assert url != mine
        with cs.open_store(url) as store:
            assert store.get("a") is None
            store.create(cs.FlowSnapshot("b", state={}))

    assert {path.name for path in tmp_path.iterdir()} <= {"mine.db", "mine.db-wal", "mine.db-shm"}

    cleared: list[str] = []
    for named, option in (
        ("redis://h:1/2?prefix=a:&x=1", "prefix"),
        ("nats://a,b?bucket=c", "bucket"),
    ):
        with scratch_url(named, cleared.append) as url:
            assert f"{option}=scratch-" in url
            assert url.partition("?")[0] == named.partition("?")[0]

        assert cleared.pop() == url

    with pytest.raises(cs.UsageError), scratch_url("http://h"):
        pass

"""`catga-store verify`: what it says of a store that is right, and of one that is wrong."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import nats
import pytest
import redis
from hypothesis import Phase
from typer.testing import CliRunner

import catga_store as cs
from catga_store.cli.app import app
from catga_store.protocol.rules import commits
from catga_store.protocol.rules import version_checks
from catga_store.testing import verify as kit
from catga_store.testing.interleavings.scenarios import SCENARIOS
from catga_store.testing.verify import verify


def run(*words: str) -> Any:
    """Run the command in this process."""
    return CliRunner().invoke(app, ["verify", *words])


def test_a_right_store_holds_and_is_left_as_it_was(tmp_path: Path) -> None:
    """Every check through every API; the user's records stay, nothing else does."""
    url = f"sqlite:///{tmp_path}/mine.db"
    with cs.open_store(url) as store:
        store.create(cs.FlowSnapshot("mine", state={"n": 1}))

    done = run(url, "--examples", "1", "--json")
    assert done.exit_code == 0, done.output
    report = json.loads(done.output)
    assert report["holds"] is True
    assert {check["api"] for check in report["checks"]} == {"blocking", "asyncio", "trio"}
    assert len(report["checks"]) == 3 + 4 * len(SCENARIOS), "replies are lost below the APIs"

    with cs.open_store(url) as store:
        assert [flow.flow_id for flow in store.iter_flows()] == ["mine"]

    assert {path.name for path in tmp_path.iterdir()} <= {"mine.db", "mine.db-wal", "mine.db-shm"}


def test_a_wrong_store_is_off_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit code 1, and the history that does not match any serial order."""
    right = version_checks.refusal

    def wrong(change: Any, head: Any, now_ms: int) -> str | None:
        reason = right(change, head, now_ms)
        return None if reason == "stale" else reason

    for module in (version_checks, commits):
        monkeypatch.setattr(module, "refusal", wrong)

    monkeypatch.setattr(kit, "_PHASES", (Phase.generate,))  # the shortest example takes minutes
    findings = verify("memory://", examples=20, apis=("blocking",))
    off = {finding.claim: finding.found for finding in findings if not finding.holds}
    assert "every operation behaves as the model specifies" in off
    writers = off["interleaved requests are equivalent to a serial order: writers"]
    assert "does not match any serial order" in writers
    assert "update" in writers


def test_the_table_shows_what_was_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """One line for each check and a last one for all."""
    done = run("memory://", "--examples", "1")
    assert done.exit_code == 0, done.output
    assert "every operation behaves as the model specifies" in " ".join(done.output.split())
    assert "All checks passed." in done.output


def test_a_url_of_no_store_is_wrong_usage() -> None:
    """Exit code 2 and one line."""
    done = run("http://nowhere")
    assert done.exit_code == 2
    assert "is not a store URL" in done.output


@pytest.mark.nightly
@pytest.mark.stores("redis-8.2", "nats")
def test_a_server_is_left_as_it_was(store_url: str) -> None:
    """A prefix, or a bucket, beside the user's; afterwards the server knows of neither."""
    with cs.open_store(store_url) as store:
        store.create(cs.FlowSnapshot("mine", state={"n": 1}))

    before = names_on(store_url)
    done = run(store_url, "--examples", "1", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.output)["holds"] is True
    # Not `==`: what other tests have left on the server may expire meanwhile.
    assert names_on(store_url) - before == set()
    with cs.open_store(store_url) as store:
        assert [flow.flow_id for flow in store.iter_flows()] == ["mine"]


def names_on(url: str) -> set[str]:
    """Name every key on the Redis server, or every stream on the NATS server."""
    if url.startswith("redis"):
        with redis.Redis.from_url(url.partition("?")[0]) as client:
            return {key.decode(errors="replace") for key in client.scan_iter()}

    async def streams() -> set[str]:
        client = await nats.connect(url.partition("?")[0])
        try:
            return {one.config.name or "" for one in await client.jetstream().streams_info()}
        finally:
            await client.close()

    return asyncio.run(streams())

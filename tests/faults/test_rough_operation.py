"""Restores, full disks and stopped processes under load: what was acknowledged, and what must be refused.

The rounds are drawn from a fixed seed; `CATGA_ROUGH_ROUNDS` says how many (5).
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from acknowledged import Writer
from acknowledged import lost
from acknowledged import lost_updates
from acknowledged import read_logs
from acknowledged import torn
from acknowledged import wrong_claims
from acknowledged import wrong_listings
from sites import Site
from sites import machines

import catga_store as cs

pytestmark = pytest.mark.soak

ROUNDS = int(os.environ.get("CATGA_ROUGH_ROUNDS", "5"))
KINDS = ["sqlite", "redis-always", "nats-1-always"]
NEED_A_RESTART = {"redis-always", "nats-1-always"}
"""After a full disk."""
DISK_MEGABYTES = 48
WRITERS = 2


@pytest.fixture(params=KINDS)
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    """Run a store on folders of this test."""
    folders = [tmp_path / f"machine-{n}" for n in range(machines(request.param))]
    for folder in folders:
        folder.mkdir()

    made = Site(request.param, folders)
    with ExitStack() as stack:
        stack.callback(made.kill)
        made.start()
        yield made


def test_stale_writers_after_a_restore(site: Site, tmp_path: Path) -> None:
    """A writer that read a version that a restore took away is refused, though its number comes again."""
    folder = site.folders[0]
    backup = tmp_path / "backup"
    with cs.open_store(site.url) as first:
        for number in range(20):
            first.create(cs.FlowSnapshot(f"flow-{number}", state={"by": "first"}))

    site.kill()
    shutil.copytree(folder, backup)
    site.start()
    reader = cs.open_store(site.url)
    with reader:
        for flow in reader.get_many([f"flow-{n}" for n in range(20)]).values():
            assert flow is not None
            flow.state = {"by": "lost"}
            reader.update(flow)

        held = reader.get_many([f"flow-{n}" for n in range(20)])
        if not site.servers:
            reader.close()

        site.kill()
        shutil.rmtree(folder)
        shutil.copytree(backup, folder)
        site.start()
        if not site.servers:
            reader = cs.open_store(site.url)

        with cs.open_store(site.url) as other:
            for flow in other.get_many(list(held)).values():
                assert flow is not None
                flow.state = {"by": "other"}
                other.update(flow)

            for flow_id, mine in held.items():
                assert mine is not None
                mine.state = {"by": "stale"}
                with pytest.raises(cs.StaleFlowError):
                    reader.update(mine)

                assert other.get_one(flow_id).state == {"by": "other"}

    reader.close()


def test_acknowledged_commits_after_pauses(site: Site, tmp_path: Path) -> None:
    """Processes and servers that stand still, also for longer than the timeout, lose and double nothing."""
    draw = random.Random(2030)
    writers = [Writer(site.url, tmp_path, n) for n in range(WRITERS)]
    for _ in range(ROUNDS):
        stopped = [one.process for one in writers] if draw.random() < 0.5 else []
        pids = [one.pid for one in stopped] or [server.pid for server in site.servers]
        for pid in pids or [writers[0].process.pid]:
            os.kill(pid, signal.SIGSTOP)

        time.sleep(draw.choice([0.2, 2.0, 6.0]))  # decides nothing: how long it stands still
        for pid in pids or [writers[0].process.pid]:
            os.kill(pid, signal.SIGCONT)

        counts = [writer.log.read_bytes().count(b"\n") for writer in writers]
        for writer, count in zip(writers, counts, strict=True):
            writer.wait_for(count + 20)

    _check(site, writers)


@pytest.mark.skipif(os.geteuid() != 0, reason="a full disk needs root: a small tmpfs is mounted")
@pytest.mark.parametrize("kind", [*KINDS, "redis-everysec"])
def test_acknowledged_commits_after_a_full_disk(kind: str, tmp_path: Path) -> None:
    """A disk that fills up and is freed again loses nothing.

    Redis with `appendfsync always` ends itself when its log cannot be written, and NATS leaves
    JetStream off: both need a restart, SQLite and Redis with `everysec` do not.
    """
    folder = tmp_path / "machine"
    folder.mkdir()
    size = f"size={DISK_MEGABYTES}m"
    with ExitStack() as stack:
        subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(folder)], check=True)
        stack.callback(subprocess.run, ["umount", "-l", str(folder)], check=True)
        site = Site(kind, [folder])
        stack.callback(site.kill)
        site.start()
        writers: list[Writer] = []
        stack.callback(lambda: [writer.kill() for writer in writers])
        for number in range(ROUNDS):
            latest = [Writer(site.url, tmp_path, 100 * number + n) for n in range(WRITERS)]
            writers += latest
            for writer in latest:
                writer.wait_for(20)

            filler = folder / "filler"
            _fill(filler)
            time.sleep(1.0)  # decides nothing: how long the writers meet a full disk
            filler.unlink()
            if kind in NEED_A_RESTART:
                site.kill()
                site.start()

            for writer in latest:
                writer.wait_for(writer.log.read_bytes().count(b"\n") + 20)
                writer.kill()

        _check(site, writers)


def _fill(file: Path) -> None:
    with file.open("wb", buffering=0) as filler:
        for size in (1 << 20, 1 << 12):
            try:
                while True:
                    filler.write(b"\0" * size)
            except OSError:
                continue


def _check(site: Site, writers: list[Writer]) -> None:
    for writer in writers:
        writer.kill()

    known = read_logs([writer.log for writer in writers], time.monotonic())
    with cs.open_store(site.url) as store:
        assert lost(store, known) == []
        assert torn(store) == []
        assert lost_updates(store) == []
        assert wrong_listings(store) == []
        assert wrong_claims(store) == []

    print(f"{site.url.partition(':')[0]}: {known.commits} acknowledged, none lost")  # noqa: T201

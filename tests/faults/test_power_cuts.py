"""Power cuts: what was acknowledged is there when the machine boots again, and nothing is torn.

The disk is `volatile_disk`: a cut is atomic, and a sector that was not flushed survives with a drawn
probability. `CATGA_POWER_CUTS` says how many cuts each durable setting has to survive (15), and
`CATGA_LOSSY_CUTS` how many the others (5).
"""

from __future__ import annotations

import os
import random
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
from sites import NotReadyError
from sites import Site
from sites import machines
from sites import wait_until_ready
from volatile_disk import VolatileDisk
from volatile_disk import why_not

import catga_store as cs
from catga_store.testing.servers import ServerStartError

REASON = why_not()
pytestmark = [
    pytest.mark.soak,
    pytest.mark.skipif(REASON is not None, reason=REASON or ""),
]

CUTS = int(os.environ.get("CATGA_POWER_CUTS", "15"))
LOSSY_CUTS = int(os.environ.get("CATGA_LOSSY_CUTS", "5"))
SURVIVE = (0.0, 0.5, 1.0)
WRITERS = 2
AWAY = (NotReadyError, ServerStartError, cs.StoreUnavailableError, cs.CommitUncertainError)


class Machines:
    """Machines with a volatile disk each, and the store on them."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.disks = [VolatileDisk(folder / f"machine-{n}") for n in range(machines(kind))]
        self.site = Site(kind, [disk.path for disk in self.disks])

    def cut(self, survive: float, seed: int) -> float:
        """Cut the power of all machines; returns a time at which it was still on."""
        before = time.monotonic()
        for number, disk in enumerate(self.disks):
            disk.cut(survive, seed + number)

        self.site.kill()
        return before

    def restore(self) -> None:
        """Boot again from what has survived."""
        for disk in self.disks:
            disk.restore()

        self.site.start()


@pytest.fixture
def cluster(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Machines]:
    """The machines of the kind of store that the test names, running."""
    made = Machines(request.param, tmp_path)
    with ExitStack() as stack:
        for disk in made.disks:
            stack.enter_context(disk)

        stack.callback(made.site.kill)
        made.site.start()
        yield made


@pytest.mark.parametrize(
    "cluster",
    ["sqlite", "redis-always", "nats-1-always", "nats-3-always"],
    indirect=True,
)
def test_acknowledged_commits_after_power_cuts(cluster: Machines, tmp_path: Path) -> None:
    """With durable settings nothing acknowledged is lost or torn, and listings equal records."""
    url = cluster.site.url
    draw = random.Random(2030)
    logs: list[Path] = []
    total = 0
    for number in range(CUTS):
        writers = [Writer(url, tmp_path, 100 * number + n) for n in range(WRITERS)]
        for writer in writers:
            writer.wait_for(draw.randrange(1, 150))

        before = cluster.cut(draw.choice(SURVIVE), number)
        for writer in writers:
            writer.kill()

        cluster.restore()
        logs += [writer.log for writer in writers]
        known = read_logs(logs, before)
        total = known.commits
        with cs.open_store(url) as store:
            wait_until_ready(store)
            assert lost(store, known) == [], f"after cut {number}"
            assert torn(store) == []
            assert lost_updates(store) == []
            assert wrong_listings(store) == []

    print(f"{url.partition(':')[0]}: {CUTS} cuts, {total} acknowledged, none lost")  # noqa: T201
    with cs.open_store(url) as store:
        assert wrong_claims(store) == []


@pytest.mark.parametrize("number", range(LOSSY_CUTS))
@pytest.mark.parametrize(
    "cluster", ["redis-everysec", "nats-1-default", "nats-3-default"], indirect=True
)
def test_stale_writers_after_lossy_power_cuts(
    cluster: Machines, number: int, tmp_path: Path
) -> None:
    """With lossy settings commits may be lost, but a writer that read a lost version is refused.

    With its default `sync_interval` NATS may lose the whole stream, or keep three replicas that
    never agree again: docs/operations/nats.md says so, and the round ends there.
    """
    url = cluster.site.url
    draw = random.Random(2031 + number)
    writers = [Writer(url, tmp_path, n) for n in range(WRITERS)]
    for writer in writers:
        writer.wait_for(draw.randrange(50, 150))

    for disk in cluster.disks:
        disk.sync()  # a NATS stream whose own description is not on the disk is dropped

    for writer in writers:
        writer.wait_for(draw.randrange(200, 400))

    with cs.open_store(url) as reader:
        held = {one.flow_id: reader.get_one(one.flow_id) for one in reader.iter_flows()}
        before = cluster.cut(draw.choice(SURVIVE), number)
        for writer in writers:
            writer.kill()

        known = read_logs([writer.log for writer in writers], before)
        try:
            cluster.restore()
            with cs.open_store(url) as other:
                wait_until_ready(other)
                gone = len(lost(other, known))
                refused = _check_stale_writers(reader, other, held)
        except AWAY as error:
            if not cluster.site.may_be_lost:
                raise

            print(f"{cluster.site.kind}: the store did not come back: {error!s:.200}")  # noqa: T201
            return

    print(  # noqa: T201
        f"{cluster.site.kind}: {gone} of {len(known.versions)} flows lost their newest version,"
        f" {refused} stale writers refused"
    )


def _check_stale_writers(
    reader: cs.Store, other: cs.Store, held: dict[str, cs.FlowSnapshot[object]]
) -> int:
    """Let another store write every flow up to the version that `reader` holds; then that one writes."""
    refused = 0
    for flow_id, mine in held.items():
        theirs = other.get(flow_id)
        if theirs is not None and theirs.revision == mine.revision:
            continue

        if theirs is None:
            theirs = cs.FlowSnapshot(flow_id, state={"n": -1})
            other.create(theirs)

        while theirs.version < mine.version:
            theirs.state = {"n": -1}
            other.update(theirs)

        with pytest.raises((cs.StaleFlowError, cs.FlowNotFoundError)):
            reader.update(mine)

        assert other.get_one(flow_id).state == theirs.state
        refused += 1

    return refused


def test_a_cut_loses_what_was_not_synced_and_keeps_what_was(tmp_path: Path) -> None:
    """The disk does what it is there for: else the tests above would prove nothing."""
    with VolatileDisk(tmp_path) as disk:
        for name in ("synced", "unsynced"):
            (disk.path / name).write_bytes(b"")

        _sync(disk.path)
        for name in ("synced", "unsynced"):
            with (disk.path / name).open("wb") as file:
                file.write(name.encode() * 1000)
                if name == "synced":
                    file.flush()
                    os.fsync(file.fileno())

        disk.cut(0.0, 1)
        disk.restore()
        assert (disk.path / "synced").read_bytes() == b"synced" * 1000
        assert (disk.path / "unsynced").read_bytes() != b"unsynced" * 1000


def _sync(folder: Path) -> None:
    number = os.open(folder, os.O_RDONLY)
    os.fsync(number)
    os.close(number)

"""Power cuts: what was acknowledged is there when the machine boots again, and nothing is torn.

The disk is `volatile_disk`: a cut is atomic, and a sector that was not flushed survives with a drawn
probability. `CATGA_POWER_CUTS` says how many cuts each durable setting has to survive (15), and
`CATGA_LOSSY_CUTS` how many the others (5).
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from acknowledged import Writer
from acknowledged import lost
from acknowledged import read_logs
from acknowledged import torn
from acknowledged import wrong_claims
from acknowledged import wrong_listings
from volatile_disk import VolatileDisk
from volatile_disk import why_not

import catga_store as cs
from catga_store.testing.servers import NatsCluster
from catga_store.testing.servers import NatsServer
from catga_store.testing.servers import RedisServer
from catga_store.testing.servers import Server

REASON = why_not()
pytestmark = [
    pytest.mark.soak,
    pytest.mark.skipif(REASON is not None, reason=REASON or ""),
]

CUTS = int(os.environ.get("CATGA_POWER_CUTS", "15"))
LOSSY_CUTS = int(os.environ.get("CATGA_LOSSY_CUTS", "5"))
SURVIVE = (0.0, 0.5, 1.0)
WRITERS = 2


class Machine:
    """Machines with a volatile disk each, and the servers on them, if the store has servers."""

    def __init__(self, folder: Path, servers: list[Server], start: Callable[[], object]) -> None:
        count = max(1, len(servers))
        self.disks = [VolatileDisk(folder / f"machine-{n}") for n in range(count)]
        self.servers = servers
        self._start = start

    def boot(self) -> None:
        """Start the servers on what the disks hold."""
        for server, disk in zip(self.servers, self.disks, strict=len(self.servers) > 0):
            server.directory = disk.path / "data"
            server.directory.mkdir(exist_ok=True)

        self._start()

    def cut(self, survive: float, seed: int) -> float:
        """Cut the power of all machines; returns the time before which it was on."""
        before = time.monotonic()
        for number, disk in enumerate(self.disks):
            disk.cut(survive, seed + number)

        for server in self.servers:
            server.kill()

        return before

    def restore(self) -> None:
        """Boot again from what has survived."""
        for disk in self.disks:
            disk.restore()

        self.boot()


@pytest.fixture
def machine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Machine, str]]:
    """Machines of the kind that the test names, running, and the URL of the store on them."""
    kind: str = request.param
    with ExitStack() as stack:
        made = _machine(kind, tmp_path)
        for server in made.servers:
            stack.callback(server.kill)

        for disk in made.disks:
            stack.enter_context(disk)

        stack.callback(lambda: [server.kill() for server in made.servers])
        made.boot()
        yield made, _url(kind, made)


def _machine(kind: str, folder: Path) -> Machine:
    if kind == "sqlite":
        return Machine(folder, [], lambda: None)

    if kind.startswith("redis"):
        fsync = kind.partition("-")[2]
        server = RedisServer("8.2", "--appendfsync", fsync)
        return Machine(folder, [server], server.start)

    replicas, sync = kind.split("-")[1:]
    settings = 'sync_interval: "always"' if sync == "always" else 'sync_interval: "2m"'
    if replicas == "1":
        one = _SyncingNats(settings)
        return Machine(folder, [one], one.start)

    cluster = NatsCluster()
    for node in cluster.nodes:
        node.jetstream_settings = settings

    return Machine(folder, [*cluster.nodes], cluster.start)


class _SyncingNats(NatsServer):
    def __init__(self, settings: str) -> None:
        super().__init__()
        self.jetstream_settings = settings


def _url(kind: str, machine: Machine) -> str:
    if kind == "sqlite":
        return f"sqlite:///{machine.disks[0].path / 'flows.db'}"

    if kind.startswith("nats-3"):
        nodes = ",".join(f"{server.host}:{server.port}" for server in machine.servers)
        return f"nats://{nodes}?replicas=3"

    return machine.servers[0].url


@pytest.mark.parametrize(
    "machine",
    ["sqlite", "redis-always", "nats-1-always", "nats-3-always"],
    indirect=True,
)
def test_acknowledged_commits_after_power_cuts(
    machine: tuple[Machine, str], tmp_path: Path
) -> None:
    """With durable settings nothing acknowledged is lost or torn, and listings equal records."""
    machines, url = machine
    draw = random.Random(2030)
    logs: list[Path] = []
    total = 0
    for number in range(CUTS):
        writers = [Writer(url, tmp_path, 100 * number + n) for n in range(WRITERS)]
        for writer in writers:
            writer.wait_for(draw.randrange(1, 150))

        before = machines.cut(draw.choice(SURVIVE), number)
        for writer in writers:
            writer.kill()

        machines.restore()
        logs += [writer.log for writer in writers]
        known = read_logs(logs, before)
        total = known.commits
        with cs.open_store(url) as store:
            assert lost(store, known) == [], f"after cut {number}"
            assert torn(store) == []
            assert wrong_listings(store) == []

    print(f"{url.partition(':')[0]}: {CUTS} cuts, {total} acknowledged, none lost")  # noqa: T201
    with cs.open_store(url) as store:
        assert wrong_claims(store) == []


@pytest.mark.parametrize(
    "machine", ["redis-everysec", "nats-1-default", "nats-3-default"], indirect=True
)
def test_stale_writers_after_lossy_power_cuts(machine: tuple[Machine, str], tmp_path: Path) -> None:
    """With lossy settings commits may be lost, but whoever read a lost version is refused."""
    machines, url = machine
    draw = random.Random(2031)
    total = gone = refused = 0
    for number in range(LOSSY_CUTS):
        writers = [Writer(url, tmp_path, 100 * number + n) for n in range(WRITERS)]
        for writer in writers:
            writer.wait_for(draw.randrange(50, 150))

        for disk in machines.disks:
            disk.sync()  # a NATS stream whose own description is not on the disk is dropped

        for writer in writers:
            writer.wait_for(draw.randrange(200, 400))

        with cs.open_store(url) as reader:
            held = {one.flow_id: reader.get_one(one.flow_id) for one in reader.iter_flows()}
            before = machines.cut(draw.choice(SURVIVE), number)
            for writer in writers:
                writer.kill()

            machines.restore()
            known = read_logs([writer.log for writer in writers], before)
            with cs.open_store(url) as other:
                gone += len(lost(other, known))
                total += len(known.versions)
                refused += _check_stale_writers(reader, other, held)
                other.clear()

    print(  # noqa: T201
        f"{url.partition(':')[0]}: {LOSSY_CUTS} cuts, {gone} of {total} flows lost their newest"
        f" version, {refused} stale writers refused"
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

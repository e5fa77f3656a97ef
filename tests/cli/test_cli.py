"""The commands of `catga-store` other than `demo`, run as a user runs them: in a process of their own."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from datetime import timedelta
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import attrs
import pytest
import typer
from commands import failed
from commands import run_changed
from forks import run_command

import catga_store as cs
from catga_store.cli import main
from catga_store.cli.app import run
from catga_store.cli.exit_codes import guarded
from catga_store.stores.sqlite.doctor import file_system_of

COMMAND = [sys.executable, "-m", "catga_store"]
ODD = "we\nird \x1b[31m id"


@cs.flow_state("order", version=2, upcasters={1: lambda data: data})
@attrs.define
class Order:
    """A typed state."""

    paid: bool = False


@pytest.fixture
def url(tmp_path: Path) -> str:
    """Name a SQLite store with one of everything."""
    url = f"sqlite:///{tmp_path / 'flows.db'}"
    with cs.open_store(url) as store:
        store.create(cs.FlowSnapshot("order", state=Order()))
        store.create(cs.FlowSnapshot("failed", state={}, status=cs.FlowStatus.FAILED, error="boom"))
        store.create(cs.FlowSnapshot(ODD, state={"n": 1}, due_at=store.now() + timedelta(days=1)))
        store.create(cs.FlowSnapshot("waiting", state=[1, {"a": None}], due_at=None))
        with store.begin() as session:
            wait = cs.WaitCondition("wait", flow_ids=["a", "b"], timeout=timedelta(hours=1))
            session.suspend(session.get_one("waiting"), wait)

        store.save_for_each_progress("waiting", 2, cs.ForEachProgress([0, 1], [3]))
        store.complete_child("wait", "a", result={"parcels": 2})
        store.complete_child("early", "x", success=False, error="no")

    return url


def answer(*arguments: str, url: str, code: int = 0) -> Any:
    """Run a command with `--json` and read what it prints, which is all that it prints."""
    done = run_command(*arguments, "--json", url=url)
    assert (done.returncode, done.stderr) == (code, "")
    return json.loads(done.stdout)


# --- reading ----------------------------------------------------------------------------------------


def test_ls_lists_flows_in_plain_columns(url: str) -> None:
    """One line a flow, nothing cut off, control characters escaped, no colours in a pipe."""
    done = run_command("ls", url=url)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0].split()[:4] == ["FLOW", "TYPE", "STATUS", "POS"]
    assert len(lines) == 5
    assert "\x1b" not in done.stdout
    assert r"we\nird \x1b[31m id" in done.stdout


def test_ls_json_has_the_documented_shape(url: str) -> None:
    """Every field of a summary, exact ids, times with their offset, and the cursor."""
    document = answer("ls", url=url)
    assert document["cursor"] is None
    flows = {flow["flow_id"]: flow for flow in document["flows"]}
    assert flows.keys() == {"order", "failed", "waiting", ODD}
    order = flows["order"]
    assert list(order) == [
        "flow_id",
        "type",
        "status",
        "position",
        "version",
        "revision",
        "created_at",
        "updated_at",
        "due_at",
        "expires_at",
        "owner",
        "attempts",
        "error",
        "tags",
    ]
    assert (order["type"], order["status"], order["version"]) == ("order", "CREATED", 1)
    assert order["created_at"].endswith("+00:00")
    assert flows["failed"]["error"] == "boom"
    assert flows["failed"]["type"] is None


@pytest.mark.parametrize(
    ("filters", "names"),
    [
        (["--status", "failed"], {"failed"}),
        (["--status", "SUSPENDED"], {"waiting"}),
        (["--type", "order"], {"order"}),
        (["--type", "nothing"], set[str]()),
        (["--created-after", "2h"], {"order", "failed", "waiting", ODD}),
        (["--created-before", "2020-01-01T00:00Z"], set[str]()),
        (["--updated-before", "1d"], set[str]()),
        (["--id-prefix", "f"], {"failed"}),
        (["--id-prefix", "f", "--status", "created"], set[str]()),
    ],
)
def test_ls_and_count_take_the_same_filters(url: str, filters: list[str], names: set[str]) -> None:
    """The listing and the number agree, and an empty listing is one."""
    flows = answer("ls", *filters, url=url)["flows"]
    assert {flow["flow_id"] for flow in flows} == names
    assert answer("count", *filters, url=url) == {"count": len(names)}
    assert run_command("count", *filters, url=url).stdout == f"{len(names)}\n"


def test_ls_continues_at_a_cursor(url: str) -> None:
    """Pages cover everything once; people see that there is more; `--all` needs no cursor."""
    first = answer("ls", "--limit", "3", url=url)
    second = answer("ls", "--limit", "3", "--cursor", first["cursor"], url=url)
    ids = [flow["flow_id"] for flow in first["flows"] + second["flows"]]
    assert (len(ids), len(set(ids)), second["cursor"]) == (4, 4, None)
    done = run_command("ls", "--limit", "3", url=url)
    assert "More flows match the filters; to see them, pass --all" in done.stderr
    assert len(answer("ls", "--limit", "1", "--all", url=url)["flows"]) == 4


def test_show_prints_everything_about_a_flow(url: str) -> None:
    """State as it is stored, the condition it waits for as it is now, and its progress."""
    flow = answer("show", "waiting", url=url)
    assert flow["state"] == [1, {"a": None}]
    assert flow["wait_condition"]["completed"] == 1
    assert flow["wait_condition"]["parent_flow_id"] == "waiting"
    assert flow["progress"] == [
        {"step": 2, "version": 1, "processed": 2, "failed": 1, "last": None}
    ]
    assert (flow["parts"], flow["more_parts"]) == ([], False)
    order = answer("show", "order", url=url)
    assert (order["type"], order["type_version"], order["state"]) == ("order", 2, {"paid": False})
    assert answer("show", ODD, url=url)["state"] == {"n": 1}
    text = run_command("show", "waiting", url=url).stdout
    assert "SUSPENDED" in text
    assert "processed 2" in text
    failed(run_command("show", "nobody", url=url), 1, "flow 'nobody' not found")


def test_show_lists_parts_and_versions(url: str) -> None:
    """The first hundred parts, entries of logs among them, and with `--history` what is kept."""
    with cs.open_store(url, history=5) as store:
        flow = cs.FlowSnapshot("f", state=b"\x00\xff", due_at=None)
        store.create(flow)
        flow.error = "boom"
        store.update(flow)
        store.append("f", {"event": 1}, key="first")
        for number in range(100):
            store.put_part(cs.Part("f", f"p/{number:03}", b"", tag="t"))

    shown = answer("show", "f", "--history", url=url)
    assert shown["state"] == {"base64": "AP8="}
    assert (len(shown["parts"]), shown["more_parts"]) == (100, True)
    assert shown["parts"][0]["name"] == "log/000000000001"
    assert (shown["parts"][1]["name"], shown["parts"][1]["tag"]) == ("p/000", "t")
    assert [(one["version"], one["error"]) for one in shown["versions"]] == [(2, "boom"), (1, None)]
    assert "versions" not in answer("show", "f", url=url)
    text = run_command("show", "f", "--history", url=url).stdout
    assert "name p/000" in text
    assert "version 1, status CREATED" in text


def test_waits_lists_conditions_and_shows_one(url: str) -> None:
    """The listing by outcome and parent, and one with what its children answered."""
    (wait,) = answer("waits", url=url)["wait_conditions"]
    assert wait["correlation_id"] == "wait"
    assert (wait["outcome"], wait["children"], wait["completed"]) == ("PENDING", 2, 1)
    assert answer("waits", "--outcome", "satisfied", url=url)["wait_conditions"] == []
    assert answer("waits", "--parent", "order", url=url)["wait_conditions"] == []
    assert answer("waits", "--overdue", url=url)["wait_conditions"] == []
    one = answer("waits", "wait", url=url)
    assert one["results"] == [
        {
            "child": "a",
            "completed": True,
            "success": True,
            "result": {"parcels": 2},
            "error": None,
        },
        {"child": "b", "completed": False, "success": None, "result": None, "error": None},
    ]
    assert "1/2" in run_command("waits", url=url).stdout
    assert '{"parcels": 2}' in run_command("waits", "wait", url=url).stdout
    failed(run_command("waits", "nobody", url=url), 1, "wait condition 'nobody' not found")


def test_due_lists_work_and_claims_nothing(url: str) -> None:
    """Flows that are due, a claim that ends in time, and parents whose wait is over."""
    assert [one["flow_id"] for one in answer("due", url=url)["due"]] == ["order"]
    with cs.open_store(url) as store:
        store.claim("order", cs.RAW, owner="w-1")
        assert store.complete_child("wait", "b").now_satisfied

    (parent,) = answer("due", url=url)["due"]
    assert (parent["flow_id"], parent["correlation_id"]) == ("waiting", "wait")
    assert parent["since"].endswith("+00:00")
    later = answer("due", "--within", "5m", url=url)["due"]
    assert {one["flow_id"]: one["owner"] for one in later} == {"order": "w-1", "waiting": None}
    assert "waiting" in run_command("due", url=url).stdout
    with cs.open_store(url) as store:
        assert [flow.flow_id for flow in store.claim_due(cs.RAW, limit=10)] == ["waiting"]


def test_a_store_of_many_partitions_is_opened_as_it_is(tmp_path: Path) -> None:
    """No caller needs to know the number; `copy` can choose another one."""
    url, other = f"sqlite:///{tmp_path / 'a.db'}", f"sqlite:///{tmp_path / 'b.db'}"
    with cs.open_store(url, partitions=4) as store:
        for number in range(20):
            store.create(cs.FlowSnapshot(f"f-{number}", state={}))

    assert answer("count", url=url) == {"count": 20}
    assert answer("copy", url, other, "--partitions", "2", url=url)["verified"] is True
    with cs.open_store(other, partitions=2) as store:
        assert store.count_flows() == 20

    failed(run_command("copy", url, other, "--partitions", "3"), 2, "2 partitions", "opened with 3")


# --- writing ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ("wait b", 0, "recorded: the wait condition has ended"),
        ("wait a", 0, "already recorded"),
        ("wait stranger", 1, "not recorded: the wait condition is not waiting for this child"),
        ("new x", 0, "recorded: the wait condition has not been set yet"),
        ("early y", 0, "recorded: the wait condition has not been set yet"),
    ],
)
def test_complete_says_what_became_of_it(url: str, words: str, code: int, said: str) -> None:
    """One line for a person, whatever the answer is; 1 if nothing was recorded."""
    done = run_command("complete", *words.split(), url=url)
    assert (done.returncode, done.stderr) == (code, "")
    (line,) = done.stdout.splitlines()
    assert line.startswith(said)


def test_complete_records_a_completion_once(url: str) -> None:
    """The answer says what it did, and the exit code whether it counts."""
    done = {"accepted": True, "duplicate": False, "now_satisfied": True, "outcome": "SATISFIED"}
    assert answer("complete", "wait", "b", "--result", '{"ok": true}', url=url) == done
    assert answer("complete", "wait", "b", url=url)["duplicate"] is True
    assert answer("complete", "wait", "stranger", url=url, code=1)["accepted"] is False
    assert answer("complete", "new", "x", "--error", "no", url=url)["outcome"] is None
    with cs.open_store(url) as store:
        wait = store.get_wait_condition("wait")
        assert wait is not None
        assert wait.results["b"] == cs.ChildResult(success=True, result={"ok": True})
        store.set_wait_condition(new := cs.WaitCondition("new", flow_ids=["x"]))
        assert store.get_wait_condition("new") is not None
        assert new.outcome is cs.WaitOutcome.SATISFIED

    failed(
        run_command("complete", "wait", "b", "--result", "{", url=url), 2, "--result: expected JSON"
    )


def test_rm_removes_what_is_named(url: str) -> None:
    """Flows with their progress, and conditions; 1 if one was not there, and the others are gone."""
    removed = answer("rm", "waiting", "nobody", "--wait", "wait", "--yes", url=url, code=1)
    assert removed == {"removed": ["waiting", "wait"], "absent": ["nobody"]}
    with cs.open_store(url) as store:
        assert store.get("waiting") is None
        assert store.list_for_each_progress("waiting") == {}
        assert store.get_wait_condition("wait") is None

    done = run_command("rm", ODD, "-y", url=url)
    assert (done.returncode, done.stdout) == (0, "removed: we\\nird \\x1b[31m id\n")


def test_rm_without_a_terminal_needs_yes(url: str) -> None:
    """Nothing is removed by a script that did not mean to."""
    failed(run_command("rm", "order", url=url), 2, "nothing was removed", "--yes")
    failed(run_command("rm", "--yes", url=url), 2, "nothing to remove")
    assert answer("count", url=url) == {"count": 4}


# --- copy -------------------------------------------------------------------------------------------


def test_copy_brings_everything_and_verifies_it(url: str, tmp_path: Path) -> None:
    """Every record arrives with its version; a second copy finds all of it there."""
    target = f"sqlite:///{tmp_path / 'new.db'}"
    done = run_command("copy", url, target)
    assert (done.returncode, done.stderr) == (0, "")
    assert (
        "4 flows, 1 wait condition, 1 ForEach progress record, 1 pending completion;" in done.stdout
    )
    assert "Verified" in done.stdout
    again = answer("copy", url, target, url=url)
    assert (again["flows"], again["skipped"], again["verified"]) == (0, 7, True)
    assert again["differences"] == []
    assert answer("ls", "-s", target, url=url)["flows"][0]["version"] >= 1


def test_copy_continues_where_it_broke_off(tmp_path: Path) -> None:
    """What the first attempt brought is skipped, the rest is copied, and all of it is verified."""
    source, target = (f"sqlite:///{tmp_path / name}" for name in ("a.db", "b.db"))

    def stop(report: cs.CopyReport) -> None:
        if report.flows:
            raise InterruptedError

    with cs.open_store(source) as one, cs.open_store(target) as other:
        for number in range(250):
            one.create(cs.FlowSnapshot(f"f-{number:03}", state={"n": number}))

        with pytest.raises(InterruptedError):
            cs.copy(one, other, on_progress=stop)

    document = answer("copy", source, target, url=source)
    assert (document["flows"], document["skipped"], document["verified"]) == (150, 100, True)


@pytest.mark.parametrize(
    ("breaking", "code", "said"),
    [
        ("os.kill(os.getpid(), signal.SIGINT)", 130, "interrupted"),
        ("raise cs.StoreUnavailableError('gone')", 3, "gone"),
        ("raise cs.CommitUncertainError('no reply', commit_id='c', keys=())", 4, "no reply"),
    ],
)
def test_a_copy_that_breaks_off_continues(
    breaking: str, code: int, said: str, tmp_path: Path
) -> None:
    """Ctrl-C, an outage or a lost reply, after some pages is one line that says how; the same command does."""
    source, target = (f"sqlite:///{tmp_path / name}" for name in ("a.db", "b.db"))
    with cs.open_store(source) as store:
        for number in range(350):
            store.create(cs.FlowSnapshot(f"f-{number:03}", state={"n": number}))

    source_code = f"""
import os, signal, sys
import catga_store as cs
whole = cs.copy
def copy(source, target, *, on_progress, **options):
    def advance(report):
        on_progress(report)
        if report.flows >= 200:
            {breaking}
    return whole(source, target, on_progress=advance, **options)
cs.copy = copy
"""
    broken = run_changed(source_code, "copy", source, target)
    failed(broken, code, said, "to continue")
    document = answer("copy", source, target, url=source)
    assert (document["flows"], document["skipped"], document["verified"]) == (150, 200, True)


def test_a_store_under_two_names_is_not_copied_onto_itself(url: str) -> None:
    """`--overwrite` finds that each record is the very same and writes none of them."""
    other = url.replace("flows.db", "../" + Path(url).parent.name + "/flows.db")
    before = answer("ls", url=url)
    document = answer("copy", url, other, "--overwrite", url=url)
    assert (document["flows"], document["skipped"], document["verified"]) == (0, 7, True)
    assert answer("ls", url=url) == before


def test_copy_finds_what_differs(url: str, tmp_path: Path) -> None:
    """A record that the target had already in another form is named; `--overwrite` replaces it."""
    target = f"sqlite:///{tmp_path / 'new.db'}"
    with cs.open_store(target) as store:
        store.create(cs.FlowSnapshot("order", state={"other": 1}))

    document = answer("copy", url, target, url=url, code=1)
    assert document["verified"] is False
    (one,) = document["differences"]
    assert (one["kind"], one["id"], one["step"], one["name"]) == ("flow", "order", 0, "")
    assert "state" in one["what"]
    assert "type" in one["what"]
    done = run_command("copy", url, target)
    assert done.returncode == 1
    assert "flow 'order' differs from the source" in done.stderr
    assert answer("copy", url, target, "--no-verify", url=url)["verified"] is None
    assert answer("copy", url, target, "--overwrite", url=url)["verified"] is True


def test_copy_refuses_what_makes_no_sense(url: str, tmp_path: Path) -> None:
    """Onto itself, into memory that no process sees, from a store that does not exist; nothing is created."""
    failed(run_command("copy", url, url), 2, "same store")
    failed(run_command("copy", url, "memory://"), 2, "when this command ends")
    absent = tmp_path / "absent.db"
    failed(run_command("copy", f"sqlite:///{absent}", url), 1, "no file", "nothing was created")
    assert not absent.exists()


# --- doctor and bench -------------------------------------------------------------------------------


def findings(url: str, code: int) -> dict[str, dict[str, str]]:
    """Return what the doctor finds, by check."""
    document = answer("doctor", url, url=url, code=code)
    assert document["healthy"] is (code == 0)
    assert all(finding["means"] for finding in document["findings"])
    return {finding["check"]: finding for finding in document["findings"]}


def test_doctor_examines_a_sqlite_store(url: str) -> None:
    """Journal, sync, file system, space, permissions, log and integrity, and it changes nothing."""
    path = Path(url.removeprefix("sqlite:///"))
    before = path.read_bytes()
    done = run_command("doctor", url)
    code = done.returncode  # the file system of the tests may be one that is warned of
    found = findings(url, code)
    assert found["journal mode"]["found"] == "wal"
    assert found["integrity"]["level"] == "ok"
    assert found["permissions"]["level"] == "ok"
    assert found["store"]["found"].endswith("holds 4 flows")
    levels = {found[name]["level"] for name in ("file system", "free space")}
    assert (code == 0) is levels.isdisjoint({"warning", "problem"})
    for name in found:
        assert name in done.stdout

    assert path.read_bytes() == before


def test_doctor_finds_damage(url: str) -> None:
    """A page that was overwritten is a problem, and the doctor leaves the file alone."""
    path = Path(url.removeprefix("sqlite:///"))
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        (root,) = connection.execute(
            "SELECT rootpage FROM sqlite_master WHERE name = 'catga_flows'"
        ).fetchone()
        (size,) = connection.execute("PRAGMA page_size").fetchone()

    with path.open("r+b") as file:
        file.seek((root - 1) * size)
        file.write(b"\xff" * size)

    found = findings(url, 1)
    assert found["integrity"]["level"] == "problem"
    assert "store" not in found


def test_doctor_finds_another_journal_mode(url: str) -> None:
    """It is a problem, and still there after the doctor has looked."""
    path = Path(url.removeprefix("sqlite:///"))
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode = DELETE")

    assert findings(url, 1)["journal mode"]["level"] == "problem"
    assert findings(url, 1)["journal mode"]["found"] == "delete"


def test_doctor_says_what_memory_loses() -> None:
    """A warning, because no other process sees it."""
    found = findings("memory://", 1)
    assert found["durability"]["level"] == "warning"
    assert "lost when the process ends" in found["durability"]["means"]


MOUNTS = r"""22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
40 22 0:35 / /srv/my\040share rw shared:20 - nfs4 server:/export rw
41 22 0:36 / /srv/over rw - ext4 /dev/sdb1 rw
42 22 0:37 / /srv/over rw - tmpfs tmpfs rw
43 22 0:38 / /srv/ovërlay rw - overlay overlay rw
nonsense"""


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("/var/lib/flows.db", ("/", "ext4")),
        ("/srv/my share/flows.db", ("/srv/my share", "nfs4")),
        ("/srv/my shared/flows.db", ("/", "ext4")),
        ("/srv/over/flows.db", ("/srv/over", "tmpfs")),
        ("/srv/ovërlay/a/flows.db", ("/srv/ovërlay", "overlay")),
    ],
)
def test_the_file_system_of_a_path_is_that_of_its_nearest_mount(
    path: str, found: tuple[str, str]
) -> None:
    """The longest mount point decides, the later one of two, and escapes are read."""
    assert file_system_of(Path(path), MOUNTS) == found
    assert file_system_of(Path(path), "") is None


def test_bench_measures_and_leaves_nothing(url: str, tmp_path: Path) -> None:
    """It says what it did and where; neither the store nor its directory is changed."""
    before = sorted(tmp_path.iterdir())
    document = answer("bench", url, "--calls", "10", url=url)
    assert document["calls"] == 10
    assert str(tmp_path) in document["place"]
    operations = {one["operation"]: one for one in document["operations"]}
    assert operations.keys() >= {"get", "update", "claim_due of 1"}
    assert all(0 < one["p50_us"] <= one["p99_us"] for one in document["operations"])
    text = run_command("bench", "memory://", "--calls", "10").stdout
    assert "in the memory of this process. The scratch namespace has been removed" in text
    assert sorted(tmp_path.iterdir()) == before
    assert answer("count", url=url) == {"count": 4}


# --- what goes wrong --------------------------------------------------------------------------------

READING = ["ls", "count", "show f", "waits", "waits w", "due", "complete w c", "rm f --yes"]


@pytest.mark.parametrize("command", READING)
def test_a_store_that_is_not_there_is_not_made(command: str, tmp_path: Path) -> None:
    """Only a demo, a benchmark and the target of a copy may create a store."""
    path = tmp_path / "absent.db"
    done = run_command(*shlex.split(command), "-s", f"sqlite:///{path}")
    failed(done, 1, "no file", str(path), "nothing was created")
    assert list(tmp_path.iterdir()) == []


def test_an_empty_file_is_not_a_store(tmp_path: Path) -> None:
    """A command that only reads creates nothing in it."""
    path = tmp_path / "empty.db"
    path.touch()
    failed(run_command("ls", "-s", f"sqlite:///{path}"), 1, "is empty", "nothing was created")
    assert path.stat().st_size == 0
    document = answer("doctor", f"sqlite:///{path}", url="", code=1)
    assert document["findings"][0]["level"] == "problem"


WRONG_URLS: list[tuple[str, int, str]] = [
    ("flows.db", 2, "is not a store URL"),
    ("sqlite://flows.db", 2, "wrong number of slashes"),
    ("mysql://host/flows", 2, "is not a store URL"),
    ("memory://", 1, "belongs to one process"),
]


@pytest.mark.parametrize(("url", "code", "said"), WRONG_URLS)
def test_a_wrong_url_is_one_line(url: str, code: int, said: str) -> None:
    """Whatever the command, the line says what to write instead."""
    failed(run_command("ls", "-s", url), code, said)
    failed(run_command("ls", url=url), code, said)
    if code != 1:
        failed(run_command("doctor", url), code, said)
        failed(run_command("bench", url), code, said)


def test_no_url_at_all_is_wrong_usage() -> None:
    """What to write is named as this command takes it, and the variable."""
    for command in ("ls", "show f"):
        failed(
            run_command(*shlex.split(command)), 2, "no store given", "--store", "CATGA_STORE_URL"
        )

    for command in ("doctor", "bench", "verify"):
        failed(run_command(command), 2, f"catga-store {command} sqlite:///", "CATGA_STORE_URL")

    failed(run_command("ls", url=""), 2, "no store given")


def test_a_place_that_cannot_be_used_is_unavailable(tmp_path: Path) -> None:
    """A directory, another program's database: 3. Not a database: 5. All are left alone."""
    failed(run_command("ls", "-s", f"sqlite:///{tmp_path}"), 3, str(tmp_path))
    foreign = tmp_path / "foreign.db"
    with closing(sqlite3.connect(foreign)) as connection:
        connection.execute("CREATE TABLE theirs (n)")

    failed(run_command("ls", "-s", f"sqlite:///{foreign}"), 3, "another program")
    rubbish = tmp_path / "rubbish.db"
    rubbish.write_bytes(b"no database " * 500)
    failed(run_command("ls", "-s", f"sqlite:///{rubbish}"), 5, str(rubbish))
    assert rubbish.read_bytes() == b"no database " * 500


@pytest.mark.parametrize(
    "arguments",
    [
        ["ls", "--status", "lost"],
        ["waits", "--outcome", "lost"],
        ["ls", "--created-after", "yesterday"],
        ["ls", "--created-after", "2030-01-01"],
        ["ls", "--cursor", "nonsense"],
        ["due", "--within", "soon"],
        ["show", ""],
    ],
)
def test_a_wrong_argument_is_one_line(url: str, arguments: list[str]) -> None:
    """Nothing is printed but what is wrong with it."""
    failed(run_command(*arguments, url=url), 2)


def test_a_missing_library_is_named_with_its_extra(capsys: pytest.CaptureFixture[str]) -> None:
    """One line that says what to install; another missing module is a bug and stays one."""

    @guarded
    def command(name: str) -> None:
        raise ModuleNotFoundError(name=name)

    with pytest.raises(typer.Exit) as caught:
        command("redis.asyncio")

    assert caught.value.exit_code == 2
    assert "pip install 'catga_store[redis]'" in capsys.readouterr().err
    with pytest.raises(ModuleNotFoundError):
        command("catga_store.nothing")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (cs.StoreUnavailableError("away"), 3),
        (cs.StoreConfigError("no"), 3),
        (cs.StaleFlowError("stale"), 4),
        (cs.CommitUncertainError("who knows"), 4),
        (cs.CorruptRecordError("what"), 5),
        (cs.UsageError("no"), 2),
        (KeyboardInterrupt(), 130),
    ],
)
def test_every_error_has_its_exit_code(
    error: BaseException, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """The table of `guard` is what happens."""

    @guarded
    def command() -> None:
        raise error

    with pytest.raises(typer.Exit) as caught:
        command()

    assert caught.value.exit_code == code
    assert len(capsys.readouterr().err.splitlines()) == 1


# --- pipes and terminals ----------------------------------------------------------------------------


@pytest.fixture
def many(tmp_path: Path) -> str:
    """Name a store whose listing does not fit into a pipe."""
    url = f"sqlite:///{tmp_path / 'many.db'}"
    with cs.open_store(url) as store:
        for start in range(0, 1000, 200):
            with store.begin() as session:
                for number in range(start, start + 200):
                    session.add(cs.FlowSnapshot(f"{'f' * 200}-{number}", state={}))

    return url


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_a_reader_that_leaves_is_not_an_error(many: str, form: list[str]) -> None:
    """`| head -1` gets its line; nothing is said on stderr, and the exit code tells."""
    with subprocess.Popen(
        [*COMMAND, "ls", "--all", "-s", many, *form],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(60) == 141


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the full device is Linux's")
@pytest.mark.parametrize("form", [[], ["--json"]])
def test_output_that_cannot_be_written_is_one_line(many: str, form: list[str]) -> None:
    """As on a full disk: exit code 1, and no traceback."""
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run(
            [*COMMAND, "ls", "--all", "-s", many, *form],
            stdout=full,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            timeout=60,
            check=False,
        )

    assert ended.returncode == 1
    assert ended.stderr == "the output could not be written: No space left on device\n"


@pytest.mark.skipif(os.name != "posix", reason="a POSIX shell closes the streams")
@pytest.mark.parametrize("closed", [">&-", "<&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_are_no_error(many: str, closed: str) -> None:
    """What would be printed there is dropped; the store's file does not take the stream's place."""
    words = shlex.join([*COMMAND, "ls", "-s", many])
    ended = subprocess.run(
        f"{words} {closed}",
        shell=True,
        capture_output=True,
        encoding="utf-8",
        timeout=60,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert "Traceback" not in ended.stderr
    with cs.open_store(many) as store:
        assert store.count_flows() == 1000


def test_json_is_read_by_a_json_reader(many: str) -> None:
    """`--json | python -m json.tool`, with as many flows as there are."""
    listing = run_command("ls", "--all", "--json", url=many)
    tool = subprocess.run(
        [sys.executable, "-m", "json.tool"],
        input=listing.stdout,
        check=True,
        capture_output=True,
        encoding="utf-8",
        timeout=60,
    )
    assert len(json.loads(tool.stdout)["flows"]) == 1000


on_terminals = pytest.mark.skipif(os.name != "posix", reason="pseudo-terminals are POSIX")


def at_terminal(
    stream: str, *arguments: str, typed: bytes = b"", **environment: str
) -> tuple[int, str]:
    """Run a command with one of its streams on a terminal; its exit code and what it shows."""
    import pty  # noqa: PLC0415  there is none on Windows

    ours, theirs = pty.openpty()
    streams: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stderr": subprocess.STDOUT}
    with subprocess.Popen(
        [*COMMAND, *arguments],
        **{"stdout": subprocess.PIPE, **streams, stream: theirs},
        env={**os.environ, "TERM": "xterm", **environment},
    ) as process:
        os.write(ours, typed)
        os.close(theirs)
        shown = process.stdout.read() if process.stdout is not None else b""
        while True:
            try:
                chunk = os.read(ours, 65536)
            except OSError:  # the other end is closed
                break

            if not chunk:
                break

            shown += chunk

        code = process.wait(60)

    os.close(ours)
    return code, shown.decode()


@on_terminals
def test_rm_asks_on_a_terminal(url: str) -> None:
    """What is not confirmed is not removed."""
    code, shown = at_terminal("stdin", "rm", "order", "-s", url, typed=b"n\n")
    assert (code, "Remove order?" in shown) == (1, True)
    assert answer("count", url=url) == {"count": 4}
    code, shown = at_terminal("stdin", "rm", "order", "-s", url, typed=b"y\n")
    assert (code, "removed: order" in shown) == (0, True)
    assert answer("count", url=url) == {"count": 3}


@on_terminals
def test_copy_shows_its_progress_on_a_terminal(url: str, tmp_path: Path) -> None:
    """A bar that ends at the number of records, on stderr."""
    code, shown = at_terminal("stderr", "copy", url, f"sqlite:///{tmp_path / 'new.db'}")
    assert code == 0
    assert "copying" in shown
    assert "5/5" in shown
    assert "verifying" in shown
    assert "6/6" in shown
    assert "Verified" in shown


@on_terminals
def test_colours_are_for_terminals(url: str) -> None:
    """The same command prints escapes on a terminal and none in a pipe."""
    code, text = at_terminal("stdout", "ls", "-s", url)
    assert code == 0
    assert "\x1b[" in text
    assert "\x1b[31m id" not in text, "an id sends no escapes"


@on_terminals
def test_no_color_is_obeyed(url: str) -> None:
    """`NO_COLOR` leaves bold and dim, and no colours."""
    code, text = at_terminal("stdout", "ls", "-s", url, NO_COLOR="1")
    assert code == 0
    assert "FAILED" in text
    assert "\x1b[31m" not in text
    assert "\x1b[1;31m" not in text


@on_terminals
@pytest.mark.parametrize("columns", [30, 100])
def test_a_narrow_terminal_breaks_no_word(url: str, columns: int) -> None:
    """What does not fit is shown below each other; ids, statuses and times stay whole."""
    code, text = at_terminal("stdout", "ls", "-s", url, COLUMNS=str(columns), NO_COLOR="1")
    assert code == 0
    for word in ("order", "waiting", "COMPLETED", "SUSPENDED", "POS", "boom"):
        assert (word in text) is (word != "COMPLETED")

    assert "OWNER" not in text, "a column that says nothing"
    assert len(re.findall(r"\d+ m?s ", text)) >= 4
    lines = [re.sub(r"\x1b\[[0-9;]*m", "", line).rstrip() for line in text.splitlines()]
    assert max(map(len, lines)) <= columns


@on_terminals
def test_the_doctor_keeps_its_margin(url: str) -> None:
    """What happens below is shown beside the levels, not under them."""
    code, text = at_terminal("stdout", "doctor", url, COLUMNS="50")
    assert code == 0
    lines = [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in text.splitlines()]
    assert len(lines) > 20
    assert all(line[:9].strip() in ("ok", "info", "") for line in lines[:-1])


# --- help and installation --------------------------------------------------------------------------

COMMANDS = [
    "bench",
    "complete",
    "copy",
    "count",
    "demo",
    "doctor",
    "due",
    "ls",
    "rm",
    "show",
    "verify",
    "waits",
]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_examples(command: str) -> None:
    """Each command explains itself, with an example; its `--json` shape stands there."""
    done = run_command(command, "--help", COLUMNS="200", TERM="dumb")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"catga-store {command}" in done.stdout.split("Usage", 1)[1].split("\n", 1)[1]
    assert ("--json:" in done.stdout) is (command != "demo")


def test_the_exit_codes_are_documented() -> None:
    """`--help` lists the codes and every command."""
    text = run_command("--help", COLUMNS="200").stdout
    for code in ("0 (done", "1 (a negative result", "2 (an error", "3 (the store", "130", "141"):
        assert code in text

    for command in COMMANDS:
        assert f" {command} " in text


@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        ("do", ["doctor"]),
        ("ls --status co", ["compensating", "completed"]),
        ("waits --outcome t", ["timed_out"]),
        ("copy --over", ["--overwrite"]),
    ],
)
def test_the_shell_completes(typed: str, completed: list[str]) -> None:
    """What `--install-completion` sets up completes commands, options, statuses and outcomes."""
    done = run_command(
        _CATGA_STORE_COMPLETE="complete_bash",
        COMP_WORDS=f"catga-store {typed}",
        COMP_CWORD=str(len(typed.split())),
    )
    assert done.stdout.split() == completed


def test_the_console_script_is_this_command() -> None:
    """The script that installation makes calls the same function as `python -m catga_store`."""
    (script,) = entry_points(group="console_scripts", name="catga-store")
    assert script.load() is main


@pytest.mark.parametrize(
    "rest", ["bogus://me:secret@host", "redis://me:secret@", "nats://me:secret@"]
)
def test_a_wrong_url_is_shown_without_its_password(rest: str) -> None:
    """Whatever is wrong with it, and also where it names nothing at all."""
    done = run_command("ls", "-s", rest)
    failed(done, 2, "***@")
    assert "secret" not in done.stderr


# --- encodings --------------------------------------------------------------------------------------

STRANGE = "ünï-日本-😀"
SAID_IN_ANY_ENCODING: list[tuple[str, int]] = [
    ("ls", 0),
    ("ls --json", 0),
    (f"show {STRANGE}", 0),
    (f"show {STRANGE} --json", 0),
    ("show none-日", 1),
    ("count", 0),
    ("waits", 0),
    ("waits wait-日", 0),
    ("waits wait-日 --json", 0),
    ("due", 0),
    ("complete wait-日 ч --error ошибка", 0),
    ("complete wait-日 none-日", 1),
    ("rm none-日 --yes", 1),
    ("stats", 0),
    ("stuck --late 0s", 1),
    ("stuck --late 0s --json", 1),
    (f"why {STRANGE} --late 0s", 1),
    (f"history {STRANGE}", 0),
    (f"watch {STRANGE} --timeout 0s", 1),
    ("wake pärent-日 none-日", 1),
    ("retry --finding overdue --dry-run", 1),
    ("copy URL sqlite:///copied-日.db", 0),
    ("doctor URL", 1),
    ("doctor URL --json", 1),
    ("bench URL --calls 10", 0),
    ("bogus-日", 2),
    ("ls --status none-日", 2),
    ("ls --help", 0),
    ("doctor --help", 0),
    ("--help", 0),
]


@pytest.mark.parametrize("encoding", ["cp1252", "latin-1", "ascii", "utf-8"])
def test_every_command_writes_in_any_encoding(
    tmp_path: Path, encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the encoding cannot show is escaped; exit codes are as documented, and JSON is ASCII."""
    url = f"sqlite:///{tmp_path / 'flows.db'}"
    with cs.open_store(url) as store:
        store.create(cs.FlowSnapshot(STRANGE, state={"t": "日"}, error="né 日 💥"))
        with store.begin() as session:
            parent = cs.FlowSnapshot("pärent-日", state={})
            session.add(parent)
            session.suspend(parent, cs.WaitCondition("wait-日", flow_ids=["ч"]))

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CATGA_STORE_URL", url)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    for command, code in SAID_IN_ANY_ENCODING:
        words = [url if word == "URL" else word for word in command.split()]
        out, err = (io.TextIOWrapper(io.BytesIO(), encoding=encoding) for _ in range(2))
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", ["catga-store", *words])
            patch.setattr(sys, "stdout", out)
            patch.setattr(sys, "stderr", err)
            with pytest.raises(SystemExit) as ended:
                run()

        out.flush()
        output = out.buffer.getvalue().decode(encoding)  # type: ignore[attr-defined]
        assert (ended.value.code or 0) == code or command.startswith("doctor"), (command, output)
        if "--json" in command:
            assert output.isascii()
            json.loads(output)

        if command == "ls" and encoding != "utf-8":
            assert r"\u65e5\u672c-\U0001f600" in output


def test_command_under_an_ascii_terminal(url: str) -> None:
    """The process says so by its environment, as `PYTHONIOENCODING` or a locale."""
    done = subprocess.run(
        [*COMMAND, "bench", url, "--calls", "10"],
        check=False,
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"P50 us" in done.stdout

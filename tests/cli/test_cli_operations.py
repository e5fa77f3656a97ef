"""The commands that find and mend flows that are stuck, run in this process."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import catga_store as cs
from tests.support import stuck as seeds
from tests.support.in_process import Ended
from tests.support.in_process import run_here

HOSTILE = "\x1b]0;owned\x07 \u202e id"


Call = Callable[..., Ended]


@pytest.fixture
def url(tmp_path: Path) -> str:
    """Name a SQLite store in which nothing is."""
    url = f"sqlite:///{tmp_path / 'flows.db'}"
    with cs.open_store(url) as store:
        store.ping()

    return url


@pytest.fixture
def call(url: str, monkeypatch: pytest.MonkeyPatch) -> Call:
    """Run commands on the store."""
    return partial(run_here, monkeypatch, url)


@pytest.fixture
def store(url: str) -> Any:
    """The store, with what the tests need in it."""
    with cs.open_store(url, history=5) as opened:
        yield opened


def fill(store: cs.Store, number: int, prefix: str = "f", **given: Any) -> None:
    """Create flows."""
    for place in range(number):
        store.create(cs.FlowSnapshot(f"{prefix}{place}", state={"n": place}, **given))


# --- stuck and why ------------------------------------------------------------------------------


def test_stuck_says_that_no_flow_is(call: Call, store: cs.Store) -> None:
    """The exit code says so, too."""
    fill(store, 2)
    done = call("stuck")
    assert (done.code, done.out, done.err) == (0, "", "No flow is stuck.\n")
    assert call("stuck --json").json == {"stuck": [], "count": 0}


def test_stuck_names_each_flow_with_its_reason(call: Call, store: cs.Store) -> None:
    """One line for each finding; damaged flows are rows, and hide no others."""
    fill(store, 2, due_at=None)
    seeds.put_raw(store, "damaged", seeds.DAMAGED)
    done = call("stuck")
    assert (done.code, done.err) == (1, "3 flows stuck\n")
    lines = [line.split(maxsplit=3) for line in done.out.splitlines()]
    assert lines[0] == ["FLOW", "SEVERITY", "FINDING", "REASON"]
    assert ["f0", "warning", "never_due", "is CREATED but is never due"] in lines
    assert [line[:3] for line in lines].count(["damaged", "problem", "unreadable"]) == 1
    assert call("stuck --ids --finding unreadable").out == "damaged\n"
    assert call("stuck --id-prefix f --json").json["count"] == 2
    one = call("stuck --finding unreadable --json").json["stuck"][0]
    assert list(one) == ["flow_id", "correlation_id", "severity", "findings", "flow"]
    assert one["flow"]["status"] == "RUNNING"


def test_thresholds_say_what_is_stuck(call: Call, store: cs.Store) -> None:
    """Also for the commands that take a finding."""
    fill(store, 1)
    assert call("stuck --late 0s").code == 1
    assert call("stuck --tries 1").code == 0
    assert call("cancel --finding overdue --yes").code == 1
    assert call("cancel --finding overdue --late 0s --yes").code == 0
    assert call("stuck --idle x").code == 2
    assert call("stuck --finding overdo").code == 2


def test_types_of_a_module_are_known(
    call: Call, store: cs.Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Flows of later versions of them are found."""
    (tmp_path / "shop_types.py").write_text(
        "import catga_store as cs\nfrom attrs import define\n"
        "@cs.flow_state('order', version=1)\n@define\nclass Order:\n    n: int = 0\n"
    )
    monkeypatch.chdir(tmp_path)
    body = b'{"layout":1,"type":"order","type_version":2,"schema":"","wait":null,"state":{}}'
    seeds.put_raw(store, "f", body, type="order", type_version=2)
    assert call("stuck").code == 0
    done = call("stuck --types shop_types")
    assert "has version 2 of type 'order', but this program supports version 1" in done.out
    assert call("stuck --types shop_nothing").code == 2


def test_why_says_what_to_do(call: Call, store: cs.Store) -> None:
    """What the flow is, what is wrong with it, and what can be done."""
    seeds.suspended(store, "f", "child")
    store.clear_wait_condition("{f}/wait")
    done = call("why f")
    assert done.code == 1
    assert "flow 'f' is SUSPENDED at 0, version 1, not due, suspended on '{f}/wait'" in done.out
    assert "it is suspended on wait condition '{f}/wait', which was cleared" in done.out
    assert "wake the flow, or cancel it" in done.out
    assert call("why f --json").json["findings"][0]["code"] == "wait_gone"
    assert call("why nobody").code == 1
    store.wake_flow("f")
    done = call("why f")
    assert (done.code, done.out.splitlines()[1]) == (
        0,
        "The command found no problem with this flow.",
    )


def test_doctor_looks_at_flows(call: Call, store: cs.Store, url: str) -> None:
    """It says which findings there are, and how to go on."""

    def finding() -> tuple[str, str]:
        done = call(f"doctor {url} --json")
        (found,) = [one for one in done.json["findings"] if one["check"] == "stuck"]
        return found["level"], found["found"]

    fill(store, 2, due_at=None)
    assert finding() == ("info", "2 flows stuck: 2 never_due")
    flow = cs.FlowSnapshot("unheard", state={})
    store.create(flow)
    with store.begin() as session:
        session.add(flow)
        session.suspend(flow, cs.WaitCondition("{unheard}/w", flow_ids=["a"]))

    store.clear_wait_condition("{unheard}/w")
    assert finding() == ("warning", "3 flows stuck: 2 never_due, 1 wait_gone")
    store.bulk(everything=True).wake(per_second=None)
    assert finding()[0] == "ok"


# --- changing flows -----------------------------------------------------------------------------


def test_named_flows_are_changed_without_a_question(call: Call, store: cs.Store) -> None:
    """Each command does what it says; 1 if one of the named was not changed."""
    fill(store, 3, due_at=None)
    assert call("wake f0 f1").out == "changed 2 flows: f0, f1\n"
    done = call("wake f1 f2 nobody")
    assert done.code == 1
    assert done.out.splitlines() == [
        "changed 1 flow: f2",
        "skipped 1 flow: is already due: f1",
        "skipped 1 flow: does not exist: nobody",
    ]
    store.claim("f0", owner="hangs")
    assert call("retry f0").out.splitlines()[1] == "skipped 1 flow: is claimed: f0"
    assert call("release f0").code == 0
    assert call("cancel f0 --reason twice").code == 0
    assert store.get_one("f0").error == "twice"
    assert call("retry f0").code == 0
    assert store.get_one("f0").status is cs.FlowStatus.RUNNING
    assert call("purge f0 --yes").code == 1
    assert call("purge f0 --live --yes").code == 0
    assert store.get("f0") is None


def test_flows_are_tagged(call: Call, store: cs.Store) -> None:
    """Flows are named with `--id`, because the arguments are tags; an empty value is one."""
    fill(store, 2, tags={"hold": "yes"})
    done = call("tag queue=fast note= --remove hold --id f0 --dry-run")
    assert done.out == "would change 1 flow: f0\n"
    assert call("tag queue=fast note= --remove hold --id f0").out == "changed 1 flow: f0\n"
    assert store.get_one("f0").tags == {"queue": "fast", "note": ""}
    assert call("tag queue=fast --tag hold=yes --yes").out == "changed 1 flow: f1\n"
    done = call("tag queue=fast --id f1")
    assert done.code == 1
    assert done.out.splitlines()[1] == "skipped 1 flow: already has these tags: f1"
    for wrong in ("", "queue", "queue=a --remove queue"):
        assert call(f"tag {wrong} --id f0").code == 2

    assert store.get_one("f0").version == 2


def test_filters_ask_first(call: Call, store: cs.Store) -> None:
    """Without a terminal, `--yes` is required; a dry run needs none."""
    fill(store, 3, status=cs.FlowStatus.FAILED)
    done = call("retry --status failed")
    assert (done.code, done.out) == (2, "")
    assert (
        "the command would change 3 flows, but it cannot ask for confirmation without a terminal"
        in done.err
    )
    assert (
        call("retry --status failed --id-prefix f --dry-run").out
        == "would change 3 flows: f0, f1, f2\n"
    )
    assert store.count_flows(status=cs.FlowStatus.FAILED) == 3
    report = call("retry --status failed --id-prefix f --yes --json").json
    assert report == {
        "matched": 3,
        "changed": 3,
        "skipped": {},
        "first_changed": ["f0", "f1", "f2"],
        "first_skipped": {},
        "cursor": None,
        "dry_run": False,
    }
    assert call("retry --status failed --yes").code == 1


@pytest.mark.parametrize(
    "line",
    [
        "retry",
        "retry f --status failed",
        "retry f --everything",
        "retry f g --version 1",
        "retry --version 1 --everything",
    ],
)
def test_a_selection_that_makes_no_sense_is_refused(call: Call, store: cs.Store, line: str) -> None:
    """Nothing is changed."""
    fill(store, 1, "f", status=cs.FlowStatus.FAILED)
    assert call(line).code == 2
    assert store.count_flows(status=cs.FlowStatus.FAILED) == 1


def test_a_version_is_checked(call: Call, store: cs.Store) -> None:
    """4 if another writer was first, as for all writes."""
    fill(store, 1, due_at=None)
    done = call("wake f0 --version 2")
    assert done.code == 4
    assert "expected version 2, but the store holds version 1" in done.err
    assert call("wake f0 --version 1").code == 0
    assert call("wake f0 --version 2").out.splitlines()[1].startswith("skipped 1 flow: needs no")
    assert call("purge f0 --version 1 --yes").code == 4
    assert call("purge f0 --version 2 --yes").code == 0


def test_a_limit_leaves_a_cursor(call: Call, store: cs.Store) -> None:
    """It is printed where it can be copied."""
    fill(store, 5, status=cs.FlowStatus.FAILED)
    done = call("retry --id-prefix f --limit 2 --yes")
    assert done.out == "changed 2 flows: f0, f1\n"
    cursor = done.err.split("--cursor ")[1].strip()
    assert call(f"retry --id-prefix f --cursor {cursor} --yes").out.startswith("changed 3 flows")


# --- looking ------------------------------------------------------------------------------------


def test_stats_is_a_grid(call: Call, store: cs.Store) -> None:
    """Types by statuses, and what is due, claimed and waited for."""
    fill(store, 3)
    fill(store, 2, "g", status=cs.FlowStatus.FAILED)
    store.claim("f0")
    lines = call("stats").out.splitlines()
    assert lines[0].split() == ["TYPE", "CREATED", "FAILED", "ALL"]
    assert lines[1].split() == ["-", "3", "2", "5"]
    assert lines[3].startswith("flows due: 2, the oldest for ")
    assert lines[4] == "flows claimed: 1; with an expired lease: 0"
    assert call("stats --json").json["flows"] == {"": {"CREATED": 3, "FAILED": 2}}


def test_history_lists_what_is_kept(call: Call, store: cs.Store) -> None:
    """The newest first."""
    fill(store, 1, due_at=None)
    store.wake_flow("f0")
    store.cancel_flow("f0", "no more")
    lines = [line.split() for line in call("history f0").out.splitlines()]
    assert [line[:2] for line in lines[1:]] == [
        ["3", "CANCELLED"],
        ["2", "CREATED"],
        ["1", "CREATED"],
    ]
    assert [one["version"] for one in call("history f0 --before 3 --json").json["versions"]] == [
        2,
        1,
    ]
    assert call("history nobody").code == 1


def test_watch_ends_with_the_flow(call: Call, store: cs.Store) -> None:
    """0 when it has ended, 1 when it has not in time."""
    fill(store, 1)
    done = call("watch f0 --timeout 0s")
    assert (done.code, done.err) == (1, "flow 'f0' has not ended: the last version seen was 1\n")
    assert "version 1  CREATED at 0" in done.out
    assert call("watch nobody --timeout 0s").code == 1
    store.cancel_flow("f0", "no more")
    done = call("watch f0 --json")
    assert (done.code, done.json["status"]) == (0, "CANCELLED")


def test_show_reads_the_wait_as_it_is_now(call: Call, store: cs.Store) -> None:
    """What the flow shows is how it was when it was written."""
    seeds.suspended(store, "f", "child")
    assert call("show f --json").json["wait_condition"]["outcome"] == "PENDING"
    store.clear_wait_condition("{f}/wait")
    document = call("show f --json").json["wait_condition"]
    assert (document["outcome"], document["stored"]) == (None, False)
    assert (
        "{f}/wait, which is not in the store, because it was cleared or has expired"
        in call("show f").out
    )


def test_show_raw_prints_what_cannot_be_read(call: Call, store: cs.Store, url: str) -> None:
    """Without `--raw` it is an error with its own exit code."""
    seeds.put_raw(store, "f", seeds.DAMAGED)
    assert call("show f").code == 5
    document = call("show f --raw").json
    assert document["head"]["version"] == 1
    assert document["body"] == seeds.DAMAGED.decode()
    assert call("show nobody --raw").code == 1


def test_a_damaged_flow_hides_no_work(call: Call, store: cs.Store) -> None:
    """`due` lists it, and all others."""
    fill(store, 3)
    seeds.put_raw(store, "damaged", seeds.DAMAGED)
    assert {one["flow_id"] for one in call("due --json").json["due"]} == {
        "f0",
        "f1",
        "f2",
        "damaged",
    }
    assert call("ls").out.count("\n") == 5


@pytest.mark.parametrize(
    "line",
    [
        "ls",
        "due",
        "stuck --late 0s",
        "why ID",
        "show ID",
        "history ID",
        "wake ID",
        "show ID --raw",
        "watch ID --timeout 0s",
    ],
)
def test_no_command_writes_control_characters(call: Call, store: cs.Store, line: str) -> None:
    """An id, an owner, an error or a state cannot take over the terminal."""
    body = json.dumps({"layout": 1, "wait": None, "state": {"s": HOSTILE}}, ensure_ascii=False)
    seeds.put_raw(
        store,
        HOSTILE,
        body.replace(": ", ":").replace(", ", ",").encode(),
        owner=HOSTILE,
        claim="x",
        error=HOSTILE,
        attempts=9,
    )
    done = call(line.replace("ID", shlex.quote(HOSTILE)))
    for text in (done.out, done.err):
        assert not {"\x1b", "\x07", "\u202e"} & set(text), text


def test_ls_fits_80_columns(call: Call, store: cs.Store) -> None:
    """Attempts and ages are there; nothing that is empty takes room on a terminal."""
    fill(store, 2, "order-2026-", attempts=3)
    done = call("ls")
    assert done.out.splitlines()[0].split() == [
        *("FLOW", "TYPE", "STATUS", "POS", "TRIES", "DUE", "AGE", "OWNER", "ERROR"),
    ]
    assert max(map(len, done.out.splitlines())) <= 80


# --- edit ---------------------------------------------------------------------------------------


def editor(tmp_path: Path, program: str) -> str:
    """Make an editor: a program that changes the text `t` and the document `d`."""
    file = tmp_path / "editor.py"
    file.write_text(
        "import json, sys, pathlib\np = pathlib.Path(sys.argv[1])\nt = p.read_text('utf-8')\n"
        f"d = json.loads(t)\n{program}\n"
        "p.write_text(t if isinstance(t, str) else json.dumps(d), 'utf-8')\n"
    )
    return shlex.join([sys.executable, str(file)])


def test_edit_writes_what_was_changed(call: Call, store: cs.Store, tmp_path: Path) -> None:
    """State, status, position, error and due time; `--json` prints what it is then."""
    fill(store, 1, status=cs.FlowStatus.FAILED, error="boom")
    change = "d['state']['n'] = 7; d.update(status='RUNNING', position='2', error=None); t = d"
    done = call("edit f0 --json", EDITOR=editor(tmp_path, change))
    assert (done.code, done.json["version"]) == (0, 2)
    flow = store.get_one("f0")
    assert (flow.state, flow.status, str(flow.position), flow.error) == (
        {"n": 7},
        cs.FlowStatus.RUNNING,
        "2",
        None,
    )
    assert flow.due_at is not None
    assert call("edit f0", EDITOR=editor(tmp_path, "")).out == "not changed\n"
    assert store.get_one("f0").version == 2


def test_edit_is_refused_if_the_flow_was_written_meanwhile(
    call: Call, store: cs.Store, tmp_path: Path, url: str
) -> None:
    """The text is kept, and the command says where."""
    fill(store, 1)
    meddle = (
        f"import catga_store as cs\nwith cs.open_store({url!r}) as s:\n"
        "    f = s.get_one('f0'); f.state = 'theirs'; s.update(f)\nd['state'] = 'mine'; t = d"
    )
    done = call("edit f0", EDITOR=editor(tmp_path, meddle))
    assert done.code == 4
    kept = Path(done.err.rsplit("your text is in ", 1)[1].strip())
    assert json.loads(kept.read_text("utf-8"))["state"] == "mine"
    kept.unlink()
    assert store.get_one("f0").state == "theirs"


@pytest.mark.parametrize(
    ("program", "code"),
    [
        ("t = '{'", 2),
        ("d['status'] = 'LOST'; t = d", 2),
        ("d['position'] = 'x'; t = d", 2),
        ("d['due_at'] = 'soon'; t = d", 2),
        ("del d['state']; t = d", 2),
        ("sys.exit(3)", 1),
    ],
)
def test_edit_refuses_what_is_not_a_flow(
    call: Call, store: cs.Store, tmp_path: Path, program: str, code: int
) -> None:
    """Nothing is written, and the text is kept."""
    fill(store, 1)
    done = call("edit f0", EDITOR=editor(tmp_path, program))
    assert done.code == code
    kept = Path(done.err.strip().rsplit(" ", 1)[1])
    assert kept.exists()
    kept.unlink()
    assert store.get_one("f0").version == 1


def test_edit_needs_an_editor_and_a_flow_that_nobody_holds(
    call: Call, store: cs.Store, tmp_path: Path
) -> None:
    """`--force` takes the flow from its worker."""
    fill(store, 1)
    assert call("edit f0", EDITOR="", VISUAL="").code == 2
    assert call("edit f0", EDITOR="/nowhere/vi", VISUAL="").code == 2
    assert call("edit nobody", EDITOR="true").code == 1
    claimed = store.claim("f0", owner="w")
    change = editor(tmp_path, "d['state'] = 'mine'; t = d")
    assert call("edit f0", EDITOR=change).code == 1
    assert call("edit f0 --force", EDITOR=change).code == 0
    with pytest.raises(cs.ClaimLostError):
        store.update(claimed)

"""`catga-store demo`: what it does, how it judges itself, and what it leaves behind."""

from __future__ import annotations

import copy
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from contextlib import suppress
from decimal import Decimal
from io import StringIO
from pathlib import Path
from typing import Any

import attrs
import pytest
from rich.console import Console

import catga_store as cs
from catga_store.cli.demo_report import Report
from catga_store.demo.orders import STEPS
from catga_store.demo.orders import Event
from catga_store.demo.orders import Item
from catga_store.demo.orders import Order
from catga_store.demo.orders import Payment
from catga_store.demo.orders import Worker
from catga_store.demo.orders import part_of
from catga_store.demo.processes import WorkerProcess
from catga_store.demo.story import DemoError
from catga_store.demo.story import StoredRecord
from catga_store.demo.story import Story
from catga_store.demo.verdict import Account
from catga_store.demo.verdict import Verdict
from catga_store.demo.verdict import judge
from catga_store.testing.clock import ManualClock

DEMO = [sys.executable, "-m", "catga_store", "demo"]
CHECKS = 9
NOTHING_OFF = "All checks passed."


class Notes:
    """A narrator that keeps what it receives, and stops the story at an act if asked to."""

    def __init__(self, stop_at: str | None = None) -> None:
        self.stop_at = stop_at
        self.titles: list[str] = []
        self.events: list[Event] = []
        self.records: list[StoredRecord] = []

    def act(self, title: str, text: str) -> None:
        """Keep the title."""
        assert text
        self.titles.append(title)
        if title == self.stop_at:
            raise KeyboardInterrupt

    def event(self, event: Event) -> None:
        """Keep the event."""
        self.events.append(event)

    def stored(self, records: list[StoredRecord]) -> None:
        """Keep the records."""
        self.records += records


@pytest.fixture(scope="module")
def notes() -> Notes:
    """Return what the narrator of `played` received."""
    return Notes()


@pytest.fixture(scope="module")
def played(notes: Notes, tmp_path_factory: pytest.TempPathFactory) -> Account:
    """Return the account of one order, played to its end."""
    path = tmp_path_factory.mktemp("demo") / "a b.db"
    return Story(f"sqlite:///{path}", notes).run()


@pytest.fixture
def account(played: Account) -> Account:
    """Return a copy of that account, to doctor."""
    state = copy.deepcopy(played.order.state)
    order = copy.copy(played.order)
    order.state = state
    return attrs.evolve(
        played,
        order=order,
        events=list(played.events),
        approval=copy.copy(played.approval),
        delivery=copy.copy(played.delivery),
        shipments=dict(played.shipments),
    )


def run(
    *arguments: str, code: str | None = None, folder: Path, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run the demo, or some code, with its temporary files in a folder, and wait for its end."""
    command = DEMO if code is None else [sys.executable, "-c", code]
    return subprocess.run(
        [*command, *arguments],
        check=False,
        capture_output=True,
        cwd=folder,
        encoding="utf-8",
        env={**os.environ, "TMPDIR": str(folder), **environment},
        timeout=120,
    )


def processes_about(folder: Path) -> list[str]:
    """Return the processes that were started to work in a folder and are still there."""
    commands: list[str] = []

    if Path("/proc/self/cmdline").exists():
        for file in Path("/proc").glob("[0-9]*/cmdline"):
            with suppress(OSError):  # it has ended in the meantime
                commands.append(file.read_text(errors="replace"))
    else:
        listing = subprocess.run(["ps", "-A", "-o", "args="], check=True, capture_output=True)
        commands += listing.stdout.decode(errors="replace").splitlines()

    return [command for command in commands if str(folder) in command]


# --- the command ----------------------------------------------------------------------------------


def test_the_demo_succeeds_and_leaves_nothing_behind(tmp_path: Path) -> None:
    """It exits with 0, every check is ok, and neither file nor process remains."""
    done = run(folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[-1] == NOTHING_OFF
    assert sum(line.split()[:1] == ["ok"] for line in lines) == CHECKS
    assert "\x1b" not in done.stdout, "colours without a terminal"
    assert list(tmp_path.iterdir()) == []
    assert processes_about(tmp_path) == []


@pytest.mark.nightly
def test_on_a_named_store_it_touches_nothing_of_the_user(tmp_path: Path) -> None:
    """The user's flows stay as they are; the finished order stays, and no work with it."""
    url = f"sqlite:///{tmp_path / 'mine.db'}"
    with cs.open_store(url) as store:
        store.create(cs.FlowSnapshot("order-1", state=1, due_at=None))
        before = list(store.iter_flows())

    done = run("--store", url, folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")

    with cs.open_store(url) as store:
        assert [flow for flow in store.iter_flows() if flow in before] == before
        orders = list(store.iter_flows(state_type=Order))
        assert [order.status for order in orders] == [cs.FlowStatus.COMPLETED]
        assert [flow for flow in store.iter_flows() if not flow.status.is_terminal] == before


@pytest.mark.skipif(os.name != "posix", reason="signals to other processes are POSIX")
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["Ctrl-C", "terminated"]
)
@pytest.mark.parametrize("when", ["ada", pytest.param("bob", marks=pytest.mark.nightly)])
def test_an_interrupted_demo_leaves_nothing_behind(
    when: str, number: signal.Signals, code: int, tmp_path: Path
) -> None:
    """Ctrl-C or a termination while a worker works: no traceback, no file, no process."""
    with subprocess.Popen(
        DEMO,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=tmp_path,
        encoding="utf-8",
        env={**os.environ, "TMPDIR": str(tmp_path)},
    ) as process:
        assert process.stdout is not None
        assert any(f" {when} " in line for line in process.stdout)
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)

    assert process.returncode == code
    assert errors == ("interrupted\n" if number is signal.SIGINT else "")
    assert list(tmp_path.iterdir()) == []
    assert processes_about(tmp_path) == []


def test_a_demo_without_a_reader_leaves_nothing_behind(tmp_path: Path) -> None:
    """`| head -1` ends it with 141, in silence; its worker and its file go, too."""
    with subprocess.Popen(
        DEMO,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=tmp_path,
        encoding="utf-8",
        env={**os.environ, "TMPDIR": str(tmp_path)},
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(60) == 141

    assert list(tmp_path.iterdir()) == []
    assert processes_about(tmp_path) == []


@pytest.mark.parametrize(
    ("url", "code", "message"),
    [
        ("memory://", 2, "several"),
        ("memory://name", 2, "several"),
        ("nonsense", 2, "'nonsense'"),
        ("sqlite://", 2, "has no file path"),
        ("redis://127.0.0.1:1", 3, "cannot be reached"),
        ("sqlite:///no/such/folder/flows.db", 3, "folder"),
    ],
)
def test_a_store_that_cannot_serve_is_refused_in_one_line(
    url: str, code: int, message: str, tmp_path: Path
) -> None:
    """The exit code is of the table, and the one line says what is wrong; nothing was begun."""
    done = run("--store", url, folder=tmp_path)
    assert (done.returncode, done.stdout) == (code, "")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("absent", ["typer", "rich"])
def test_without_the_extra_it_says_what_to_install(absent: str, tmp_path: Path) -> None:
    """A missing library is one line with the command that installs it, and exit code 2."""
    code = f"""
import sys

sys.modules[{absent!r}] = None  # an import of it now says that there is none
sys.argv = ["catga-store", "demo"]
from catga_store.cli import main
main()
"""
    done = run(code=code, folder=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert (
        done.stderr
        == f"catga-store needs {absent}, which is not installed; run pip install 'catga_store[cli]'\n"
    )


def test_a_library_that_is_broken_is_not_called_missing(tmp_path: Path) -> None:
    """What else cannot be imported shows its own traceback."""
    code = """
import sys

sys.modules["catga_store.demo.story"] = None
from catga_store.cli import main
main()
"""
    done = run(code=code, folder=tmp_path)
    assert done.returncode == 1
    assert "pip install" not in done.stderr


def test_help_and_version(tmp_path: Path) -> None:
    """Both answer and exit with 0; the help has examples."""
    shown = run("--help", folder=tmp_path, COLUMNS="100")
    assert shown.returncode == 0
    assert "catga-store demo --store sqlite:///flows.db" in shown.stdout

    main = "import sys; sys.argv = ['x', '--version']; import catga_store.cli as c; c.main()"
    version = run(code=main, folder=tmp_path)
    assert version.returncode == 0
    assert version.stdout.startswith("catga-store ")


def test_anything_off_is_said_and_makes_the_exit_code_1(tmp_path: Path) -> None:
    """A story that came out wrong ends with what is off, and not with success."""
    code = f"""
import sys

from catga_store.demo.story import Story
from catga_store.demo.worker import CRASHED

play = Story.run

def run(self):
    account = play(self)
    account.exit_code_of_the_killed = CRASHED + 1
    return account

Story.run = run
sys.argv = ["catga-store", "demo", "--store", "sqlite:///{tmp_path}/flows.db"]
from catga_store.cli import main
main()
"""
    done = run(code=code, folder=tmp_path)
    assert (done.returncode, done.stderr) == (1, "")
    assert [line.split()[0] for line in done.stdout.splitlines() if "exit code 71" in line] == [
        "FAILED"
    ]
    assert done.stdout.endswith(f"1 of {CHECKS} checks failed\n")


# --- the story ------------------------------------------------------------------------------------


def test_the_story_shows_what_it_is_about(played: Account, notes: Notes) -> None:
    """A second attempt, a repeated key, both refusals and both outcomes are shown, in five acts."""
    assert len(notes.titles) == len(set(notes.titles)) == 5
    shown = "\n".join(f"{event.text} {event.key or ''}" for event in notes.events)

    for fact in (
        "claimed step 1, attempt 2",
        f"requested again: pack the cups; was already done {played.order.flow_id}/1/2",
        "is claimed by",
        "ClaimLostError",
        "WHEN_ANY TIMED_OUT",
        "WHEN_ALL SATISFIED",
    ):
        assert fact in shown

    assert len(notes.records) == len(set(notes.records)), "the same record was shown twice"


def test_a_story_that_is_stopped_leaves_no_work_in_the_store(tmp_path: Path) -> None:
    """The order of a broken story is cancelled, with its shipments and its waits."""
    url = f"sqlite:///{tmp_path / 'flows.db'}"
    story = Story(url, Notes(stop_at="A courier delivers"))
    with pytest.raises(KeyboardInterrupt):
        story.run()

    with cs.open_store(url) as store:
        assert store.get_one(story.order_id).status is cs.FlowStatus.CANCELLED
        assert all(flow.status.is_terminal for flow in store.iter_flows())
        assert list(store.iter_wait_conditions()) == []
        assert store.claim_due(cs.RAW) == []


def test_a_worker_that_fails_is_an_error_and_not_a_silence(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A worker process that ends before its time stops the story, and its own error is shown."""
    story = Story(f"sqlite:///{tmp_path / 'flows.db'}", Notes())
    with (
        WorkerProcess("nonsense", "zoe", "orders") as zoe,
        pytest.raises(DemoError, match="worker zoe ended too early, with exit code 1"),
    ):
        story._hear(zoe, until=lambda _event: True)

    assert "is not a store URL" in capfd.readouterr().err


def test_a_worker_ends_when_its_input_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker whose parent is gone is gone too; what lies in its directory is not its library."""
    tmp_path.joinpath("attrs.py").write_text("raise SystemExit('the wrong attrs')")
    monkeypatch.chdir(tmp_path)

    with WorkerProcess("sqlite:///flows.db", "zoe", "orders") as zoe:
        stdin = zoe._process.stdin
        assert stdin is not None
        stdin.write("this is no end\n")
        stdin.flush()
        zoe.ask_to_stop()
        assert zoe.wait() == 0


def test_one_worker_takes_every_step(clock: ManualClock) -> None:
    """In one process and without a fault: paid, packed, wrapped as approved, shipped and closed."""
    shown: list[Event] = []
    items = [Item(name, Decimal(3), "north" if name < "c" else "south") for name in "abc"]
    with cs.MemoryStore(clock=clock) as store:
        worker = Worker(store, "w", shown.append)
        store.create(cs.FlowSnapshot("o", state=Order(store.now(), items)))
        orders = worker.working_on("orders")
        assert orders.run_until_idle(until=clock.now) == len(("pay", "pack", "ask"))
        assert store.claim_due(cs.RAW) == []
        store.complete_child(part_of("o", "gift-wrap"), part_of("o", "manager"))
        orders.run_until_idle(until=clock.now)
        worker.working_on("shipments").run_until_idle(until=clock.now)
        orders.run_until_idle(until=clock.now)
        order = store.get_one("o", Order)

    assert order.status is cs.FlowStatus.COMPLETED
    assert order.state.payment == Payment(Decimal(9), clock.now)
    assert (order.state.packed, order.state.gift_wrap) == (["a", "b", "c"], True)
    assert order.state.parcels == {part_of("o", "north"): 2, part_of("o", "south"): 1}
    assert all(event.first for event in shown if event.key is not None)
    assert [event.position for event in shown if event.text.startswith("claimed")] == [*"01234"]


def test_an_order_that_nothing_was_shipped_for_is_closed(clock: ManualClock) -> None:
    """The last step needs no delivery: then there are no parcels to note."""
    with cs.MemoryStore(clock=clock) as store:
        last = cs.FlowPosition((len(STEPS) - 1,))
        store.create(cs.FlowSnapshot("o", state=Order(store.now(), []), position=last))
        Worker(store, "w", lambda _event: None).working_on("orders").run_until_idle()
        order = store.get_one("o", Order)

    assert (order.status, order.state.parcels) == (cs.FlowStatus.COMPLETED, {})
    assert order.state.closed_by == "w"


def test_two_refused_claims_stop_the_story(tmp_path: Path) -> None:
    """Who tells of two workers must have seen exactly one of them refused."""
    url = f"sqlite:///{tmp_path / 'flows.db'}"
    story = Story(url, Notes())
    with ExitStack() as stack:
        store = stack.enter_context(cs.open_store(url, owner="somebody"))
        store.create(story.account.order)
        store.claim(story.order_id, Order)
        eve, finn = (story._worker(name, stack) for name in ("eve", "finn"))
        with pytest.raises(DemoError, match="exactly one of two simultaneous claims"):
            story._claim_both(eve, finn)

    story._store.close()


def test_events_of_another_demo_are_not_shown() -> None:
    """On a named store there may be what an earlier one has left."""
    heard = Notes()
    story = Story("memory://", heard)
    mine = Event("w", story.order_id, "mine")

    class Process:
        """A worker that met both orders."""

        def events(self) -> list[Event]:
            """Return what it did."""
            return [Event("w", "order-0", "theirs"), mine]

    process: Any = Process()
    story._hear(process)
    assert heard.events == [mine]
    story._store.close()


# --- the judgement --------------------------------------------------------------------------------


def test_a_good_account_is_found_good(played: Account) -> None:
    """Of an order that went as it should every claim holds."""
    verdicts = judge(played)
    assert len(verdicts) == CHECKS
    assert [verdict for verdict in verdicts if not verdict.holds] == []


def set_state(name: str, value: object) -> Callable[[Account], None]:
    """Return what sets a field of the order's state."""
    return lambda account: setattr(account.order.state, name, value)


def set_fact(name: str, value: object) -> Callable[[Account], None]:
    """Return what sets a field of the account."""
    return lambda account: setattr(account, name, value)


def set_outcome(name: str, outcome: cs.WaitOutcome) -> Callable[[Account], None]:
    """Return what sets the outcome of a wait of the account."""
    return lambda account: setattr(getattr(account, name), "outcome", outcome)


def repeat(matches: Callable[[Event], object]) -> Callable[[Account], None]:
    """Return what tells the first such event twice."""
    return lambda account: account.events.append(next(filter(matches, account.events)))


def drop(matches: Callable[[Event], object]) -> Callable[[Account], None]:
    """Return what leaves out the first such event."""
    return lambda account: account.events.remove(next(filter(matches, account.events)))


def drop_a_shipment(account: Account) -> None:
    """Lose one of the children."""
    account.shipments = {**account.shipments, next(iter(account.shipments)): None}


def fail_the_order(account: Account) -> None:
    """End the order otherwise."""
    account.order.status = cs.FlowStatus.FAILED


def pack_twice(account: Account) -> None:
    """Do an item twice, outside as well as in the order."""
    account.order.state.packed.append(account.order.state.packed[0])


@pytest.mark.parametrize(
    ("doctor", "claim"),
    [
        (pack_twice, "every item"),
        (set_state("packed", []), "every item"),
        (set_fact("progress", {}), "every item"),
        (set_fact("progress", {1: cs.ForEachProgress([0, 1, 2], [3, 4])}), "every item"),
        (repeat(lambda event: event.first and "pack" in event.text), "every item"),
        (set_state("payment", None), "paid"),
        (repeat(lambda event: event.first and "charge" in event.text), "paid"),
        (drop(lambda event: event.first is False), "requested twice"),
        (set_fact("approval", None), "WHEN_ANY"),
        (set_outcome("approval", cs.WaitOutcome.SATISFIED), "WHEN_ANY"),
        (set_state("gift_wrap", True), "WHEN_ANY"),
        (set_fact("late_approval", None), "WHEN_ANY"),
        (set_fact("late_approval", cs.Completion(True, False, True, None)), "WHEN_ANY"),
        (set_outcome("delivery", cs.WaitOutcome.TIMED_OUT), "WHEN_ALL"),
        (repeat(lambda event: event.satisfied), "WHEN_ALL"),
        (drop(lambda event: event.satisfied), "WHEN_ALL"),
        (set_state("parcels", {}), "WHEN_ALL"),
        (set_fact("exit_code_of_the_killed", 0), "died"),
        (drop(lambda event: event.attempts == 2), "died"),
        (set_fact("refused_claim", None), "refused"),
        (set_fact("refused_commit", None), "refused"),
        (set_state("closed_by", None), "refused"),
        (lambda account: set_state("closed_by", account.refused_worker)(account), "refused"),
        (drop(lambda event: event.version == 7), "chain"),
        (repeat(lambda event: event.version == 7 and event.position), "chain"),
        (fail_the_order, "COMPLETED"),
        (drop_a_shipment, "COMPLETED"),
        (set_fact("shipments", {}), "COMPLETED"),
    ],
)
def test_whatever_is_off_is_found(
    doctor: Callable[[Account], None], claim: str, account: Account
) -> None:
    """Each thing that could have gone wrong turns the claim about it, and says what was found."""
    doctor(account)
    off = [verdict for verdict in judge(account) if not verdict.holds]
    assert any(claim in verdict.claim for verdict in off), off
    assert all(verdict.found for verdict in off)


def test_a_held_order_is_found(account: Account, tmp_path: Path) -> None:
    """An order that a worker still holds is not finished, whatever its other fields say."""
    with cs.open_store(f"sqlite:///{tmp_path / 'flows.db'}") as store:
        store.create(cs.FlowSnapshot(account.order.flow_id, state=account.order.state))
        (account.order,) = store.claim_due(Order)

    off = [verdict.claim for verdict in judge(account) if not verdict.holds]
    assert any("no worker holds" in claim for claim in off)


def test_the_account_on_a_terminal() -> None:
    """Panels and a table, and the checks that are off stand out; the words are those of a pipe."""
    console = Console(file=StringIO(), force_terminal=True, width=100, color_system="standard")
    report = Report(console)
    report.opening("sqlite:///flows.db")
    report.act("The order", "Ada takes it.")
    report.event(Event("ada", "order", "took the payment", version=3, key="order/1"))
    report.stored([("flow 'order'", 3, "[bold]paid[/]")])
    report.verdicts([Verdict("every item is packed once", True, "3"), Verdict("no", False, "4")])
    assert isinstance(console.file, StringIO)
    shown = console.file.getvalue()
    assert "\x1b[" in shown
    plain = " ".join(re.sub(r"\x1b\[[0-9;]*m", "", shown).split())
    for words in (
        "The store is sqlite:///flows.db",
        "1. The order",
        "Ada takes it.",
        "v3 ada took the payment [key order/1]",
        "changed in the store",
        "[bold]paid[/]",
        "ok every item is packed once (3)",
        "FAILED no (4)",
        "1 of 2 checks failed",
    ):
        assert words in plain

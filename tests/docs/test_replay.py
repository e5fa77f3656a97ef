"""`benchmarks/replay.py`: what several processes write is the log, and nothing else passes for it."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st

import catga_store as cs

pytestmark = pytest.mark.nightly

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "replay.py"
HEADER = ("case:concept:name", "concept:name", "time:timestamp")

Row = tuple[str, ...]


def write_log(path: Path, rows: list[Row], header: Row = HEADER) -> Path:
    """Write a CSV file."""
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *rows])

    return path


def replay(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the command."""
    return subprocess.run(
        [sys.executable, SCRIPT, *map(str, arguments)],
        check=False,
        capture_output=True,
        encoding="utf-8",
        env={**os.environ, "PYTHONIOENCODING": "utf-8", "COLUMNS": "120"},
        timeout=120,
    )


def small_log() -> list[Row]:
    """Twelve interleaved cases of one to six events; two events of a case may be alike."""
    return [
        (f"case {case}", f"step {place // 2}", f"2026-11-02 09:{place:02}:00+01:00")
        for place in range(6)
        for case in range(12)
        if place <= case % 6
    ]


def histories(store: cs.Store) -> dict[str, list[Row]]:
    """Read the events of every flow, without the replay's own code."""
    flows = [store.get_one(summary.flow_id) for summary in store.iter_flows()]
    return {
        flow.flow_id: [(event["activity"], event["timestamp"]) for event in flow.state["history"]]
        for flow in flows
    }


def expected(rows: list[Row]) -> dict[str, list[Row]]:
    """Return what `histories` must be."""
    cases: dict[str, list[Row]] = {}
    for case, *event in rows:
        cases.setdefault(case, []).append(tuple(event))

    return cases


@pytest.fixture
def url(tmp_path: Path) -> str:
    """A SQLite file that does not exist yet."""
    return f"sqlite:///{tmp_path}/replay.db"


def test_every_history_is_the_logs(tmp_path: Path, url: str) -> None:
    """After a replay by three processes the flows are exactly the cases, all of them completed."""
    rows = small_log()
    done = replay(write_log(tmp_path / "log.csv", rows), "--store", url, "--workers", 3)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"all 12 cases and {len(rows)} events are exactly as in the log" in done.stdout

    with cs.open_store(url) as store:
        assert histories(store) == expected(rows)
        assert {flow.status for flow in store.iter_flows()} == {cs.FlowStatus.COMPLETED}


def test_an_unfinished_replay_continues(tmp_path: Path, url: str) -> None:
    """Events that are there are not written again, and what is missing is."""
    rows = small_log()
    first = [row for row in rows if row[0] != "case 5"][:-3]
    assert replay(write_log(tmp_path / "first.csv", first), "--store", url).returncode == 0

    with cs.open_store(url) as store:
        for summary in store.iter_flows():  # what is longer in the whole log is not complete
            flow = store.get_one(summary.flow_id)
            if len(flow.state["history"]) < len(expected(rows)[flow.flow_id]):
                flow.status, flow.due_at = cs.FlowStatus.RUNNING, store.now()
                store.update(flow)

    done = replay(write_log(tmp_path / "log.csv", rows), "--store", url, "--workers", 2)
    assert done.returncode == 0, done.stdout + done.stderr

    with cs.open_store(url) as store:
        assert histories(store) == expected(rows)


def swap(store: cs.Store) -> None:
    """Put two events of a case the other way round."""
    flow = store.get_one("case 5")
    history: list[Any] = flow.state["history"]
    history[0], history[-1] = history[-1], history[0]
    store.update(flow)


def reopen(store: cs.Store) -> None:
    """Give a completed case another status."""
    flow = store.get_one("case 5")
    flow.status = cs.FlowStatus.FAILED
    store.update(flow)


@pytest.mark.parametrize(
    ("doctor", "says"),
    [
        (swap, "case 'case 5': event 0 is"),
        (reopen, "case 'case 5' is FAILED"),
        (lambda store: store.delete("case 5"), "case 'case 5' is not in the store"),
        (
            lambda store: store.create(cs.FlowSnapshot("case 99", state={})),
            "the store holds 13 flows, the log has 12 cases",
        ),
    ],
    ids=["events swapped", "status changed", "flow gone", "flow too many"],
)
def test_a_doctored_store_is_reported(tmp_path: Path, url: str, doctor: Any, says: str) -> None:
    """A store that says anything else than the log is named as different, with exit code 1."""
    log = write_log(tmp_path / "log.csv", small_log())
    assert replay(log, "--store", url, "--workers", 2).returncode == 0
    assert replay(log, "--store", url, "--check").returncode == 0

    with cs.open_store(url) as store:
        doctor(store)

    done = replay(log, "--store", url, "--check")
    assert done.returncode == 1
    assert says in done.stdout
    assert "not as in the log: 1\n" in done.stdout


def test_a_store_with_other_flows_is_refused(tmp_path: Path, url: str) -> None:
    """A store with other flows in it is not touched: its due flows would be claimed."""
    with cs.open_store(url) as store:
        store.create(cs.FlowSnapshot("somebody's", state={"n": 1}))

    done = replay(write_log(tmp_path / "log.csv", small_log()), "--store", url)
    assert done.returncode == 2
    assert "the store holds flows that are not of this log (1)" in done.stderr

    with cs.open_store(url) as store:
        assert [(flow.flow_id, flow.version) for flow in store.iter_flows()] == [("somebody's", 1)]


@pytest.mark.parametrize(
    ("header", "rows", "options", "says"),
    [
        (("a", "b", "c"), [("1", "2", "3")], [], "no column that is usually the case"),
        (HEADER[:2], [("1", "2")], [], "no column that is usually the timestamp"),
        (HEADER, [("1", "2", "3")], ["--case", "id"], "no column 'id'"),
        (HEADER, [("1", "2", "3"), ("1", "2")], [], "row 3 has 2 fields, the header has 3"),
        (HEADER, [("", "2", "3")], [], "row 2 has no usable case id"),
        (HEADER, [], [], "has a header and no events"),
        ((), [], [], "is empty"),
        (HEADER, [("1", "2", "3")], ["--workers", "0"], "--workers must be from 1 to 64"),
        (HEADER, [("1", "2", "3")], ["--store", "memory://"], "lives in one process"),
        (HEADER, [("1", "2", "3")], ["--check"], "--check compares a store with the log"),
    ],
)
def test_a_bad_log_is_one_clear_line(
    tmp_path: Path, header: Row, rows: list[Row], options: list[str], says: str
) -> None:
    """What cannot be replayed is named in one line on stderr, with exit code 2."""
    done = replay(write_log(tmp_path / "log.csv", rows, header), *options)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert says in done.stderr


def test_columns_can_be_named(tmp_path: Path, url: str) -> None:
    """Columns with unusual names are found when they are named, wherever they stand."""
    log = write_log(tmp_path / "log.csv", [("10:00", "x", "paid", "7")], ("t", "other", "a", "id"))
    options = ("--case", "id", "--activity", "a", "--timestamp", "t", "--workers", 1)
    assert replay(log, "--store", url, *options).returncode == 0

    with cs.open_store(url) as store:
        assert histories(store) == {"7": [("paid", "10:00")]}


text = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8)


@settings(max_examples=4)
@given(st.lists(st.tuples(text.filter(bool), text, text), min_size=1, max_size=12))
def test_any_text_is_replayed(rows: list[Row]) -> None:
    """Ids and events of any text come back exactly, in order: nothing is trimmed or normalised."""
    with tempfile.TemporaryDirectory() as directory:
        url = f"sqlite:///{directory}/replay.db"
        log = write_log(Path(directory) / "log.csv", rows)
        done = replay(log, "--store", url, "--workers", 2)
        assert done.returncode == 0, done.stdout + done.stderr

        with cs.open_store(url) as store:
            assert histories(store) == expected(rows)

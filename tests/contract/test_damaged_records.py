"""One record that cannot be read is a row of each listing that has it, and never the end of a listing."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from damaged import DAMAGES
from damaged import FLOWS
from damaged import WAITS
from damaged import seed
from paging import pages_of

import catga_store as cs
from catga_store.copying import compare
from catga_store.copying import copy
from tests.support.in_process import Ended
from tests.support.in_process import run_here

UNREAD_FLOWS = {"flow-head", "flow-status"}
"""Flows of which not even the head can be read."""
UNREAD_WAITS = {"wait-head", "wait-status", "wait-children"}
NAMED = {"flow-head", "flow-status", "flow-body", *UNREAD_WAITS}


SQLITE_QUICKLY = [
    "sqlite",
    *(pytest.param(kind, marks=pytest.mark.nightly) for kind in ("redis-8.2", "nats")),
]
"""What commands print is decided above the stores."""


@pytest.fixture(params=["sqlite", "redis-8.2", "nats"])
def url(request: pytest.FixtureRequest, url_of: Callable[[str], str]) -> str:
    """The URL of a store of which another program has damaged records in all ways."""
    url = url_of(request.param)
    seed(url)
    return url


@pytest.fixture
def store(url: str) -> Iterator[cs.Store]:
    """That store."""
    with cs.open_store(url) as store:
        yield store


def unreadable(rows: list[Any]) -> set[str]:
    """The ids of the rows that say that they cannot be read, and name their record."""
    named = {getattr(one, "flow_id", None) or one.correlation_id: one.unreadable for one in rows}
    assert all(text is None or one in text for one, text in named.items())
    return {one for one, text in named.items() if text is not None}


def test_every_listing_has_a_row_for_it(store: cs.Store) -> None:
    """However pages fall: all records are listed, once, and those that cannot be read say so."""
    for limit in (1, 2, 100):
        assert_listed(store, limit)


def assert_listed(store: cs.Store, limit: int) -> None:
    """Every listing of pages of this size has everything."""
    flows = [one for page in pages_of(store.query_flows, limit=limit) for one in page]
    assert sorted(one.flow_id for one in flows) == sorted(FLOWS)
    assert unreadable(flows) == UNREAD_FLOWS

    due = [one.flow for page in pages_of(store.query_due, limit=limit) for one in page]
    assert sorted(one.flow_id for one in due) == sorted(FLOWS)
    assert unreadable(due) == UNREAD_FLOWS

    for filters in ({}, {"parent_flow_id": "parent"}):
        pages = pages_of(store.query_wait_conditions, limit=limit, **filters)
        waits = [one for page in pages for one in page]
        assert sorted(one.correlation_id for one in waits) == sorted(WAITS)
        assert unreadable(waits) == UNREAD_WAITS

    found = [one for page in pages_of(store.diagnose_all, limit=limit) for one in page]
    assert sorted(one.flow_id for one in found if "unreadable" in one.codes) == sorted(NAMED)


def test_a_condition_that_cannot_be_read_is_known_by_its_id_alone(store: cs.Store) -> None:
    """It is overdue where the index says so; it cannot be written, and its results are not taken for none."""
    overdue = {one.correlation_id: one for one in store.get_timed_out_wait_conditions()}
    # A file has no index beside the rows: it does not know of this one that it was pending.
    assert overdue.keys() | {"wait-status"} == WAITS
    row = overdue["wait-head"]
    assert (row.flow_ids, row.completed_count, row.version) == ((), 0, 0)
    assert repr(row) == "<WaitCondition 'wait-head' unreadable>"
    for refused in (
        lambda: store.set_wait_condition(row),
        lambda: row.results["child"],
        lambda: store.get_wait_condition("wait-head"),
    ):
        with pytest.raises(cs.CorruptRecordError, match="wait-head"):
            refused()


def test_numbers_operations_and_copies_pass_it(store: cs.Store) -> None:
    """It is counted, skipped with its reason, or left out, and all others are done."""
    stats = store.stats()
    assert (stats.total, stats.due) == (len(FLOWS), len(FLOWS))
    report = store.bulk(everything=True).cancel("over", dry_run=True)
    assert report.skipped == {"cannot be read": len(UNREAD_FLOWS)}
    assert report.changed == len(FLOWS) - len(UNREAD_FLOWS)
    found = store.bulk(findings=["unreadable"]).purge(dry_run=True)
    assert found.skipped["cannot be read"] == len(UNREAD_FLOWS | UNREAD_WAITS)
    with cs.MemoryStore() as other:
        copied = copy(store, other)
        assert copied.flows == len(FLOWS) - len(UNREAD_FLOWS)
        assert copied.wait_conditions >= len(WAITS) - len(UNREAD_WAITS)
        # That of a step whose head is damaged, too.
        assert copied.unreadable == len(UNREAD_FLOWS | UNREAD_WAITS) + 1
        assert copied.progress == 2 * len(FLOWS) - 1
        different = {one.key.id for one in compare(store, other) if one.what == "unreadable"}
        assert different == UNREAD_FLOWS | UNREAD_WAITS | {"step-head"}
        assert copy(other, store).unreadable >= 0  # into a store that has such records


def test_workers_pass_it(store: cs.Store) -> None:
    """They claim what can be read."""
    claimed = {flow.flow_id for flow in store.claim_due(limit=100)}
    assert claimed >= FLOWS - UNREAD_FLOWS - {"flow-body", "parent"}
    assert not claimed & {*UNREAD_FLOWS, "flow-body"}
    store.sweep()


@pytest.mark.parametrize("url", SQLITE_QUICKLY, indirect=True)
def test_commands_print_a_row_for_it(
    url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As a table and as JSON."""

    def call(line: str) -> Ended:
        return run_here(monkeypatch, url, line)

    for line, name, key, ids in (
        ("ls", "flows", "flow_id", UNREAD_FLOWS),
        ("waits", "wait_conditions", "correlation_id", UNREAD_WAITS),
        ("waits --overdue", "wait_conditions", "correlation_id", UNREAD_WAITS - {"wait-status"}),
    ):
        done = call(line)
        assert (done.code, done.err) == (0, "")
        rows = {one.split()[0]: one for one in done.out.splitlines()}
        assert all("UNREADABLE" in rows[one] and f"{one!r}" in rows[one] for one in ids), line
        listed = call(f"{line} --json").json[name]
        assert {one[key] for one in listed if "unreadable" in one} >= ids
        for one in listed:
            if "unreadable" in one:
                others = {k: v for k, v in one.items() if k not in (key, "unreadable", "tags")}
                assert set(others.values()) == {None}

    due = {one["flow_id"]: one["status"] for one in call("due --json").json["due"]}
    assert {one for one, status in due.items() if status is None} == UNREAD_FLOWS
    stuck = call("stuck --json")
    assert stuck.code == 1
    assert {one["flow_id"] for one in stuck.json["stuck"]} >= NAMED
    assert f"flow {'flow-status'!r} cannot be read" in call("why flow-status").out
    assert call("stats").code == 0
    copied = call(f"copy {url} sqlite:///{tmp_path / 'copy.db'} --json")
    assert (copied.code, copied.json["unreadable"]) == (1, len(UNREAD_FLOWS | UNREAD_WAITS) + 1)


@pytest.mark.parametrize("url", SQLITE_QUICKLY, indirect=True)
def test_what_belongs_to_a_flow_is_a_row_of_it(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The state and the other steps are shown; the exit code says that something is not."""
    for flow_id in ("step-head", "step-body"):
        assert DAMAGES[flow_id].startswith("progress")
        done = run_here(monkeypatch, url, f"show {flow_id} --json")
        assert done.code == 5
        assert done.json["state"] == {"n": 1}
        steps = {one["step"]: one.get("unreadable") for one in done.json["progress"]}
        assert steps[1] is None
        assert flow_id in steps[0]
        shown = run_here(monkeypatch, url, f"show {flow_id}")
        assert "unreadable" in shown.out

    done = run_here(monkeypatch, url, "waits wait-result --json")
    if done.code == 0:  # a store that reads results with their condition has it as a whole
        assert "unreadable" in done.json["results"][0]

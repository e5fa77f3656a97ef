"""The pages "Overview" and "Doctor", and the page of a flow that cannot be read."""

from __future__ import annotations

from datetime import UTC
from datetime import datetime
from datetime import timedelta
from typing import Any

import anyio
import pytest
import stuck
from pages import client_of
from pages import page_of
from pages import submit

import catga_store as cs
from catga_store.console.views import overview
from catga_store.console.views.overview import _SAMPLES
from catga_store.console.views.overview import _Looks
from catga_store.console.views.overview import _Sample
from catga_store.console.views.overview import chart_of
from catga_store.stores.findings import Finding
from catga_store.testing.clock import ManualClock


@pytest.fixture
def store(clock: ManualClock) -> cs.Store:
    """Return a store with flows that are well and flows that are stuck."""
    store = cs.MemoryStore(clock=clock)
    stuck.suspended(store, "approval", "boss", timeout=timedelta(minutes=1))
    store.create(cs.FlowSnapshot("typed", state={}, status=cs.FlowStatus.COMPLETED))
    stuck.claimed(store, clock, "slow", times=6)
    stuck.put_raw(store, "<damaged>", stuck.DAMAGED)
    store.create(cs.FlowSnapshot("held", state={}))
    store.claim("held", owner="worker <1>")
    return store


def test_overview(store: cs.Store) -> None:
    """Numbers with links, owners with their leases, and what needs attention, in words."""
    with client_of(store) as client:
        page = page_of(client, "/")
        document = client.get("/overview.json").json()
        assert (document["total"], document["claimed"], document["waits_overdue"]) == (5, 1, 1)
        assert document["flows"][""]["COMPLETED"] == 1
        assert document["owners"][0]["owner"] == "worker <1>"
        assert {one["flow_id"] for one in document["attention"]} >= {"<damaged>", "slow"}
        assert "worker <1>" in page.text
        assert "cannot be read" in page.text
        assert "/flows?status=SUSPENDED" in [one["href"] for one in page.all("a")]

    with client_of(cs.MemoryStore()) as client:
        assert "The store has no flows" in page_of(client, "/").text


def test_a_console_looks_at_the_store_before_it_has_readers(
    store: cs.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first reader gets the numbers of the start, and asks the store nothing."""
    monkeypatch.setattr(overview, "_FRESH", 600.0)
    with client_of(store) as client:
        store.create(cs.FlowSnapshot("since", state={}))
        assert client.get("/overview.json").json()["total"] == 5


def test_a_console_starts_while_its_store_is_down(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then its first reader is told why."""
    store = cs.MemoryStore()

    def stats() -> cs.StoreStats:
        message = "the server is down"
        raise cs.StoreUnavailableError(message)

    monkeypatch.setattr(store, "stats", stats)
    with client_of(store) as client:
        assert "the server is down" in page_of(client, "/", 503).text


def test_doctor(store: cs.Store) -> None:
    """Findings about flows, a page at a time, and about what keeps them."""

    def doctors() -> list[Finding]:
        return [
            Finding("fsync", "ok", "is on", "nothing is lost"),
            Finding("disk", "problem", "is <full>", "nothing can be written", "free some space"),
        ]

    with client_of(store, doctors=doctors) as client:
        text = page_of(client, "/doctor").text
        assert "disk: is <full>" in text
        assert text.index("disk:") < text.index("fsync:")
        document = client.get("/doctor.json").json()
        found = {one["flow_id"]: [f["code"] for f in one["findings"]] for one in document["flows"]}
        assert found["<damaged>"] == ["unreadable"]
        assert "attempts_high" in found["slow"]
        only = client.get("/doctor.json?id_prefix=slow").json()
        assert [one["flow_id"] for one in only["flows"]] == ["slow"]
        assert only["store"] == []

    with client_of(cs.MemoryStore()) as client:
        assert "No findings." in page_of(client, "/doctor").text


def test_a_flow_that_cannot_be_read(store: cs.Store) -> None:
    """Its head, the reason and what can be done are shown; it can be cancelled, and not edited."""
    with client_of(store, write=True) as client:
        page = page_of(client, "/flow?id=<damaged>")
        assert "cannot be read" in page.text
        assert "Edit the state" not in page.text
        document = client.get("/flow.json?id=<damaged>").json()
        assert document["findings"][0]["code"] == "unreadable"
        assert document["version"] == 1
        assert client.get("/flow/edit?id=<damaged>").status_code == 500
        done = submit(client, "/flow?id=<damaged>", "/flow/cancel?id=<damaged>", reason="damaged")
        assert done.status_code == 303
        assert "CANCELLED" in page_of(client, "/flow?id=<damaged>").text


def test_findings_on_the_page_of_a_flow(store: cs.Store) -> None:
    """They stand at its beginning, with what can be done."""
    with client_of(store) as client:
        text = page_of(client, "/flow?id=slow").text
        assert "whose lease ended" in text
        assert client.get("/flow.json?id=held").json()["findings"] == []


def test_an_open_overview_costs_at_most_two_requests_a_second(
    store: cs.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many readers it has: counted over three minutes of a clock that the test moves."""
    for number in range(100):
        store.create(cs.FlowSnapshot(f"parked-{number}", state={}, due_at=None))

    requests = 0
    run = store._driver.run

    def counted(conversation: Any) -> Any:
        def counting() -> Any:
            nonlocal requests
            reply: Any = None
            while True:
                try:
                    request = conversation.send(reply)
                except StopIteration as end:
                    return end.value

                requests += 1
                reply = yield request

        return run(counting())

    monkeypatch.setattr(store._driver, "run", counted)
    seconds = 0.0
    monkeypatch.setattr(anyio, "current_time", lambda: seconds)
    with client_of(store) as client:
        for second in range(180):
            seconds = float(second)
            for _reader in range(2):
                assert client.get("/overview.json").status_code == 200

        document = client.get("/overview.json").json()
        assert document["attention_found"] >= 60

    assert 0 < requests <= 2 * 180


def test_the_chart_counts_what_has_ended() -> None:
    """Differences between looks; what retention has removed is not counted below zero."""
    at = datetime(2030, 1, 1, tzinfo=UTC)
    numbers = [(5, 0), (8, 1), (2, 1), (2, 3)]
    chart = chart_of([_Sample(at, *one) for one in numbers])
    assert (chart.completed, chart.failed) == (3, 3)
    assert [one.place for one in chart.columns] == [_SAMPLES - 3, _SAMPLES - 2, _SAMPLES - 1]
    assert (chart.columns[0].good, chart.columns[0].bad) == (75, 25)
    assert chart_of([]).columns == []


def test_what_is_mended_needs_no_attention(
    clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A round looks at all live flows, a part at a time; what it does not find again is no longer shown."""
    seconds = 0.0
    monkeypatch.setattr(anyio, "current_time", lambda: seconds)
    store = cs.MemoryStore(clock=clock)
    for number in range(300):
        due_at = None if number == 0 else clock.now + timedelta(days=1)
        store.create(cs.FlowSnapshot(f"f-{number}", state={}, due_at=due_at))

    with client_of(store) as client:
        shown = []
        for step in range(12):
            seconds = step * 10.0
            document = client.get("/overview.json").json()
            shown.append((document["attention_found"], document["attention_complete"]))
            if step == 5:
                store.wake_flow("f-0")

        assert shown[0][1] is False
        assert (1, True) in shown
        assert shown[-1] == (0, True)


@pytest.mark.anyio
async def test_readers_at_the_same_time_look_once(anyio_backend: str) -> None:
    """The second one waits for the look of the first."""
    looks = _Looks()
    async with cs.AsyncMemoryStore() as store, anyio.create_task_group() as group:
        for _ in range(20):
            group.start_soon(looks.look, store)

    assert len(looks.samples) == 1


def test_a_slow_look_keeps_no_reader_waiting(
    store: cs.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last look is shown, with its time, and the next one begins behind the page, once for all readers."""
    seconds = 0.0
    monkeypatch.setattr(anyio, "current_time", lambda: seconds)
    monkeypatch.setattr(overview, "_SLOW", -1.0)
    with client_of(store) as client:
        first = client.get("/overview.json").json()
        store.create(cs.FlowSnapshot("more", state={}))
        seconds = 10.0
        shown = page_of(client, "/").text
        assert "As of 2030-01-01" in shown
        assert f"Flows {first['total']} " in shown
        assert client.get("/overview.json").json()["total"] == first["total"] + 1
        store.create(cs.FlowSnapshot("even-more", state={}))
        seconds = 50.0  # too old
        assert client.get("/overview.json").json()["total"] == first["total"] + 2


def test_a_failed_look_is_shown(store: cs.Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers from before an outage are not shown as if there were none."""
    seconds = 0.0
    monkeypatch.setattr(anyio, "current_time", lambda: seconds)
    monkeypatch.setattr(overview, "_SLOW", -1.0)

    def out(*_: object) -> None:
        raise cs.StoreUnavailableError("it is out")

    with client_of(store) as client:
        total = client.get("/overview.json").json()["total"]
        seconds = 10.0
        with monkeypatch.context() as patched:
            patched.setattr(store, "stats", out)
            assert client.get("/overview.json").status_code == 200  # nobody knows yet
            assert client.get("/overview.json").status_code == 503
            assert "it is out" in page_of(client, "/", status=503).text

        assert client.get("/overview.json").json()["total"] == total

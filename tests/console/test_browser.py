"""The console in a real browser: what people do with it, by mouse, by keyboard, on a phone.

`tox -e browser` runs them. Each test fails, too, if a page reports an error or asks another host for anything.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC
from datetime import datetime
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING
from typing import Any

import pytest
import stuck
from waiting import until

import catga_store as cs
from catga_store.testing.clock import ManualClock

if TYPE_CHECKING:
    from playwright.sync_api import Page

    Open = Callable[..., Page]

pytestmark = pytest.mark.browser

PHONE = {"width": 390, "height": 800}
LATER = datetime(2030, 2, 1, tzinfo=UTC)


def orders() -> cs.Store:
    """Return a store with orders in every state that the pages show."""
    store = cs.MemoryStore(history=10)
    fill(store)
    return store


def fill(store: cs.Store) -> None:
    """Create the orders."""
    for number in range(60):
        status = cs.FlowStatus.COMPLETED if number % 3 else cs.FlowStatus.RUNNING
        state = {"customer": f"c-{number}", "lines": [{"sku": "a", "count": number}]}
        store.create(cs.FlowSnapshot(f"order-{number:02}", state=state, status=status))

    failed = cs.FlowSnapshot("failed", state={"card": "declined"}, error="card declined")
    store.create(failed)
    failed.status = cs.FlowStatus.FAILED
    failed.state["tries"] = 3
    store.update(failed)
    store.append("failed", {"event": "charged"}, key="charge")
    progress = cs.ForEachProgress(range(40))
    progress.mark(55, ok=False)
    store.save_for_each_progress("failed", 1, progress)
    with store.begin() as session:
        waiting = cs.FlowSnapshot("waiting", state={"amount": 900}, due_at=None)
        session.add(waiting)
        wait = cs.WaitCondition(
            "{waiting}/approval", flow_ids=["boss", "cfo"], timeout=timedelta(days=1)
        )
        session.suspend(waiting, wait)

    store.claim("order-00", owner="worker-1")


def heading(page: Page) -> str:
    """Return the heading of a page."""
    return page.locator("h1").inner_text()


def is_live(page: Page) -> None:
    """Wait until a page listens to events."""
    page.locator("html[data-live]").wait_for(state="attached")


def test_open_filter_page_and_open_a_flow(open_console: Open) -> None:
    """From the address that was printed to one flow, by links and filters."""
    page = open_console(orders(), write=False)
    assert heading(page) == "Overview"
    assert "token" not in page.url
    page.get_by_role("link", name="Flows", exact=True).click()
    page.get_by_label("Status").select_option("COMPLETED")
    page.get_by_label("Id begins with").fill("order-")
    page.get_by_role("button", name="Filter").click()
    until(lambda: page.locator("tbody tr").count() == 40)
    page.get_by_role("link", name="All flows").click()
    until(lambda: page.locator("tbody tr").count() == 50)
    page.get_by_role("link", name="Next page").click()
    until(lambda: page.locator("tbody tr").count() == 12)
    link = page.locator("tbody a", has_text="order-").last
    flow_id = link.inner_text()
    link.click()
    page.wait_for_url("**/flow?id=*")
    assert heading(page).startswith(flow_id)
    page.get_by_text("lines").click()
    assert page.get_by_role("button", name="Retry").count() == 0  # read-only


def test_a_flow_is_seen_to_change(open_console: Open) -> None:
    """Without a reload; what was unfolded stays so; the change is announced; a hidden tab asks for nothing."""
    store = orders()
    page = open_console(store)
    page.goto("flow?id=failed")
    is_live(page)
    page.evaluate("window.sameDocument = true")
    page.locator("#state + .tree summary").click()  # folds the state
    flow = store.get_one("failed")
    flow.state["card"] = "accepted"
    flow.error = None
    store.update(flow)
    page.get_by_role("status").filter(has_text="Changed: version 3, FAILED").wait_for()
    page.locator("#timeline + ol").get_by_text("version 3").wait_for()
    assert page.evaluate("window.sameDocument") is True
    assert page.get_by_text("Error:").count() == 0
    assert page.locator("#state + .tree > details").get_attribute("open") is None

    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    hide(page, is_hidden=True)
    assert page.locator("html[data-live]").count() == 0
    for _ in range(3):
        store.update(store.get_one("failed"))
        flow = store.get_one("failed")
        flow.attempts += 1
        store.update(flow)

    assert asked == []
    hide(page, is_hidden=False)
    page.locator("dd").get_by_text("9", exact=True).first.wait_for()
    is_live(page)


def hide(page: Page, *, is_hidden: bool) -> None:
    """Let the page believe that its tab is hidden, or visible again."""
    page.evaluate(
        """hidden => {
            Object.defineProperty(document, "hidden", {value: hidden, configurable: true});
            document.dispatchEvent(new Event("visibilitychange"));
        }""",
        is_hidden,
    )


def test_what_is_typed_survives_a_change(open_console: Open) -> None:
    """A form in the part of a page that is replaced keeps text and focus."""
    store = orders()
    page = open_console(store)
    page.goto("flow?id=waiting")
    is_live(page)
    page.get_by_label("Result (JSON)").first.press_sequentially('{"ok"')
    flow = store.get_one("waiting")
    flow.attempts = 7
    store.update(flow)
    page.locator("dd").get_by_text("7", exact=True).wait_for()
    page.keyboard.type(": true}")
    assert page.get_by_label("Result (JSON)").first.input_value() == '{"ok": true}'


def test_retry(open_console: Open) -> None:
    """A failed flow runs again."""
    store = orders()
    page = open_console(store)
    page.goto("flow?id=failed")
    page.get_by_role("button", name="Retry").click()
    page.get_by_text("The flow will run again").wait_for()
    assert heading(page) == "failed RUNNING"
    assert store.get_one("failed").status is cs.FlowStatus.RUNNING


def test_cancel(open_console: Open) -> None:
    """With a reason, which is the error of the flow then."""
    store = orders()
    page = open_console(store)
    page.goto("flow?id=order-03")
    page.locator("summary", has_text="Cancel").click()
    page.get_by_label("Reason").fill("ordered twice")
    page.get_by_role("button", name="Cancel the flow").click()
    page.get_by_text("Error: ordered twice").wait_for()
    assert store.get_one("order-03").status is cs.FlowStatus.CANCELLED


def test_bulk_cancel_after_its_dry_run(open_console: Open) -> None:
    """Filtered, counted, looked at, done: what matches is cancelled, and nothing else."""
    store = orders()
    page = open_console(store)
    page.get_by_role("link", name="Flows", exact=True).click()
    page.get_by_label("Status").select_option("RUNNING")
    page.get_by_role("button", name="Filter").click()
    page.get_by_text("Change all matching flows").click()
    page.get_by_label("Operation").select_option("cancel")
    page.get_by_label("Reason").fill("closing the shop")
    page.get_by_role("button", name="Preview").click()
    page.get_by_text("Dry run: 20 of 20 flows would be changed.").wait_for()
    assert serious_findings(page) == []
    assert store.count_flows(status=cs.FlowStatus.CANCELLED) == 0
    page.get_by_role("button", name="Apply").click()
    page.get_by_text("20 flows were changed, 0 skipped.").wait_for()
    assert store.count_flows(status=cs.FlowStatus.CANCELLED) == 20
    assert store.count_flows(status=cs.FlowStatus.COMPLETED) == 40
    assert store.get_one("order-03").error == "closing the shop"


def test_complete_an_approval(open_console: Open) -> None:
    """Found among the waits, completed with a result; the page shows it."""
    store = orders()
    page = open_console(store)
    page.get_by_role("link", name="Waits", exact=True).click()
    page.get_by_role("link", name="{waiting}/approval").click()
    row = page.get_by_role("row").filter(has_text="boss")
    row.get_by_label("Result (JSON)").fill('{"by": "Ada"}')
    row.get_by_role("button", name="Complete").click()
    page.get_by_text("The completion was recorded.").wait_for()
    assert '{"by": "Ada"}' in page.get_by_role("row").filter(has_text="boss").inner_text()
    wait = store.get_wait_condition("{waiting}/approval")
    assert wait is not None
    assert wait.results["boss"].result == {"by": "Ada"}


def test_edit_with_a_conflict(open_console: Open) -> None:
    """Another writer was first: nothing is lost, the difference is shown, and then it is written."""
    store = orders()
    page = open_console(store, expected="409 (Conflict)")
    page.goto("flow?id=failed")
    page.get_by_role("link", name="Edit the state").click()
    page.get_by_label("State of version 2").fill('{"card": "accepted"}')
    flow = store.get_one("failed")
    flow.state["tries"] = 4
    store.update(flow)
    page.get_by_role("button", name="Save").click()
    assert "another caller has written the flow" in page.get_by_role("alert").inner_text()
    assert '-   "tries": 4' in page.locator(".diff").inner_text()
    assert store.get_one("failed").state["tries"] == 4
    page.get_by_role("button", name="Save").click()
    page.get_by_text("The state was saved.").wait_for()
    assert store.get_one("failed").state == {"card": "accepted"}


def test_fork_from_a_version(open_console: Open) -> None:
    """The page of the fork is shown, with the state of that version."""
    store = orders()
    page = open_console(store)
    page.goto("flow?id=failed")
    page.get_by_label("Id of the new flow").fill("failed-again")
    page.get_by_label("From version").select_option("1")
    page.get_by_role("button", name="Fork").click()
    page.get_by_text("This flow was created as a fork.").wait_for()
    assert store.get_one("failed-again").state == {"card": "declined"}


def test_by_keyboard_only(open_console: Open) -> None:
    """From the skip link to a retry, without a pointer; the focus can be seen."""
    store = orders()
    page = open_console(store)
    page.keyboard.press("Tab")
    assert focused(page) == "Skip to content"
    page.keyboard.press("Enter")
    page.goto("flows?status=failed")
    reach(page, "failed")
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.keyboard.press("Enter")
    page.wait_for_url("**/flow?id=failed")
    reach(page, "Retry")
    page.keyboard.press("Enter")
    page.get_by_text("The flow will run again").wait_for()
    reach(page, "4 fields", "3 fields", "2 fields")
    page.keyboard.press("Enter")
    assert page.locator("#state + .tree > details").get_attribute("open") is None


def serious_findings(page: Page) -> list[tuple[str, str]]:
    """Return what axe finds on a page that keeps people out."""
    from axe_playwright_python.sync_playwright import Axe  # noqa: PLC0415  not in the quick tests

    found: Any = Axe().run(page).response["violations"]
    return [
        (one["id"], one["nodes"][0]["html"])
        for one in found
        if one["impact"] in ("serious", "critical")
    ]


def focused(page: Page) -> str:
    """Return the text of what has the focus."""
    text: str = page.evaluate("document.activeElement.innerText ?? ''")
    return text.strip()


def reach(page: Page, *texts: str) -> None:
    """Press Tab until something with one of these texts has the focus."""
    for _ in range(100):
        page.keyboard.press("Tab")
        if focused(page) in texts:
            return

    pytest.fail(f"{texts} cannot be reached by Tab")


def test_without_scripts(open_console: Open) -> None:
    """The same pages and actions, only not live."""
    store = orders()
    page = open_console(store, java_script_enabled=False)
    page.goto("flow?id=failed")
    page.get_by_role("button", name="Retry").click()
    page.get_by_text("The flow will run again").wait_for()


PAGES = {
    "overview": "",
    "flows": "flows",
    "flow": "flow?id=failed&from=1&to=2",
    "wait": "flow?id=waiting",
    "edit": "flow/edit?id=failed",
    "waits": "waits",
    "doctor": "doctor",
}


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_page_is_accessible_and_fits_a_phone(open_console: Open, scheme: str) -> None:
    """No serious finding of axe, light and dark, wide and narrow; nothing is wider than a phone."""
    page = open_console(orders(), color_scheme=scheme)
    for name, address in PAGES.items():
        page.goto(address)
        for viewport in ({"width": 1100, "height": 800}, PHONE):
            page.set_viewport_size(viewport)
            assert serious_findings(page) == [], name
            assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]

        dark = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 28)"
        assert dark is (scheme == "dark")


@cs.flow_state("order")
@dataclass
class Order:
    """The state of an order in a picture."""

    customer: str
    lines: list[dict[str, Any]]
    paid: bool = False


def for_pictures() -> cs.Store:
    """Return a store with orders and shipments, some of which are stuck."""
    clock = ManualClock(datetime(2030, 1, 31, 9, tzinfo=UTC))
    store = cs.MemoryStore(clock=clock, history=20, partitions=1)
    for number in range(400):
        status = cs.FlowStatus.RUNNING if number % 9 == 0 else cs.FlowStatus.COMPLETED
        flow_id = f"order-{1000 + number}"
        state = Order(f"customer-{number}", [{"sku": "tea", "count": number % 5}], paid=True)
        store.create(cs.FlowSnapshot(flow_id, state=state, status=status, due_at=LATER))

    stuck.claimed(store, clock, "shipment-17", times=6)
    stuck.put_raw(store, "shipment-21", stuck.DAMAGED)
    order = cs.FlowSnapshot("order-1400", state=Order("Ada", [{"sku": "tea", "count": 2}]))
    store.create(order)
    clock.advance(timedelta(minutes=4))
    order.state.paid = True
    order.position = order.position.advance()
    store.update(order)
    store.append("order-1400", {"event": "charged", "amount": 18}, key="charge")
    progress = cs.ForEachProgress(range(40))
    progress.mark(55, ok=False)
    store.save_for_each_progress("order-1400", 1, progress)
    clock.advance(timedelta(minutes=2))
    with store.begin() as session:
        order = session.get_one("order-1400", Order)
        wait = cs.WaitCondition(
            "{order-1400}/approval", flow_ids=["boss", "cfo"], timeout=timedelta(hours=8)
        )
        session.suspend(order, wait)

    store.complete_child("{order-1400}/approval", "boss", result={"ok": True})
    for number in range(3):
        store.create(cs.FlowSnapshot(f"shipment-{30 + number}", state={"parcel": number}))
        store.claim(f"shipment-{30 + number}", owner=f"worker-{number % 2 + 1}")

    clock.advance(timedelta(seconds=20))
    return store


def test_pictures(open_console: Open, tmp_path: Path) -> None:
    """The pictures of the documentation; `CATGA_PICTURES=docs/pictures` keeps them."""
    folder = Path(os.environ.get("CATGA_PICTURES", tmp_path))
    store = for_pictures()
    page = open_console(store)
    is_live(page)
    page.screenshot(path=folder / "console-overview.png")
    page.goto("flow?id=order-1400")
    page.screenshot(path=folder / "console-flow.png")
    phone = open_console(store, color_scheme="dark", viewport=PHONE)
    phone.goto("flow?id=order-1400")
    phone.evaluate("document.getElementById('wait').scrollIntoView()")
    phone.screenshot(path=folder / "console-phone.png")
    for name in ("overview", "flow", "phone"):
        assert (folder / f"console-{name}.png").stat().st_size < 200_000


@pytest.mark.nightly
@pytest.mark.stores("all")
def test_on_every_store(open_console: Open, store_url: str) -> None:
    """Overview, a flow that changes live, a retry and a fork: by what each store does."""
    with cs.open_store(store_url, history=10) as store:
        fill(store)
        page = open_console(store)
        page.goto("flow?id=failed")
        is_live(page)
        flow = store.get_one("failed")
        flow.attempts = 7
        store.update(flow)
        page.locator("dd").get_by_text("7", exact=True).wait_for()
        page.get_by_role("button", name="Retry").click()
        page.get_by_text("The flow will run again").wait_for()
        page.goto("doctor")
        assert heading(page) == "Doctor"
        page.goto("about:blank")  # the store is closed before the tab
        assert store.get_one("failed").status is cs.FlowStatus.RUNNING

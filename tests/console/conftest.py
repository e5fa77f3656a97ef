"""One Chromium and one server for all browser tests of a process; each test has a console under a path of its own.

Every test fails if its pages report an error or ask another host for anything.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from collections.abc import Iterator
from typing import TYPE_CHECKING
from typing import Any

import pytest
from pages import TOKEN
from waiting import LONG
from waiting import until

import catga_store as cs
from catga_store import console

if TYPE_CHECKING:
    from playwright.sync_api import Browser
    from playwright.sync_api import Page


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Start the browser; that there is none is a failure."""
    from chromium import ARGUMENTS  # noqa: PLC0415  only browser tests need it
    from chromium import chromium  # noqa: PLC0415  as above
    from playwright.sync_api import sync_playwright  # noqa: PLC0415  as above

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=chromium(), args=ARGUMENTS)
        yield started

        started.close()


@pytest.fixture(scope="session")
def mount() -> Iterator[Callable[[console.Console], str]]:
    """Serve consoles, each under a path of its own: `mount(application)` returns its address."""
    import uvicorn  # noqa: PLC0415  only browser tests need it
    from starlette.applications import Starlette  # noqa: PLC0415  as above

    outside = Starlette()
    numbers = itertools.count()
    config = uvicorn.Config(
        outside, port=0, lifespan="off", log_level="warning", timeout_graceful_shutdown=1
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, name="console of the tests")
    thread.start()
    until(lambda: server.started)
    port = server.servers[0].sockets[0].getsockname()[1]

    def mounted(application: console.Console) -> str:
        path = f"/console-{next(numbers)}"
        outside.mount(path, application)
        return f"http://127.0.0.1:{port}{path}"

    yield mounted

    server.should_exit = True
    thread.join(LONG)
    assert not thread.is_alive()


@pytest.fixture
def watched(browser: Browser) -> Iterator[Callable[..., Page]]:
    """Open tabs whose errors and foreign requests fail the test: `watched(color_scheme="dark")`.

    `expected` is part of an error that is not one.
    """
    wrong: list[str] = []
    contexts: list[Any] = []

    def opened(expected: str | None = None, **options: Any) -> Page:
        options.setdefault("viewport", {"width": 1100, "height": 800})
        context = browser.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(LONG * 1000)
        page.on("pageerror", lambda error: wrong.append(f"error: {error}"))
        page.on(
            "console",
            lambda message: (
                None
                if message.type == "log" or (expected is not None and expected in message.text)
                else wrong.append(message.text)
            ),
        )
        page.on(
            "request",
            lambda request: (
                None if request.url.startswith("http://127.0.0.1:") else wrong.append(request.url)
            ),
        )
        return page

    yield opened

    for context in contexts:
        context.close()

    assert wrong == []


@pytest.fixture
def open_console(
    mount: Callable[[console.Console], str], watched: Callable[..., Page]
) -> Callable[..., Page]:
    """Serve the console of a store, and open it by the address with its token."""

    def opened(store: cs.Store, *, write: bool = True, **options: Any) -> Page:
        place = mount(console.app(store, token=TOKEN, write=write))
        page = watched(base_url=place + "/", **options)
        page.goto(f"{place}/?token={TOKEN}")
        return page

    return opened

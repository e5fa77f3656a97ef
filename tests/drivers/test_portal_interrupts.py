"""Ctrl-C at every instant at which a blocking caller hands a request over to a portal and waits for it."""

from __future__ import annotations

import dis
import gc
import re
import sys
import threading
from collections.abc import Callable
from collections.abc import Iterator
from functools import partial
from types import FrameType
from typing import Any

import pytest
from waiting import until

import catga_store as cs
from catga_store.drivers.links import AsyncLink
from catga_store.drivers.portal import PortalDriver
from catga_store.protocol.conversation import Conversation
from catga_store.protocol.conversation import Request
from catga_store.protocol.conversation import ask
from catga_store.protocol.requests import Ping
from catga_store.protocol.requests import Resolve

SECONDS = 20.0
MOST = 1000
"""More than there are instants."""
INSIDE = re.compile(r"catga_store/drivers/portal\.py$|asyncio/(base|selector|unix)_events\.py$")
NOT_THERE = ("run", "<lambda>")
"""They call functions of Python only, and Python does not look for signals when those return."""
LOOKS = re.compile(r"CALL|RESUME|JUMP_BACKWARD")
"""The instructions after which Python runs the handlers of signals that have come."""

Trace = Callable[[FrameType, str, object], object]


class CountingStore:
    """A store protocol that counts how often each request was performed."""

    def __init__(self) -> None:
        self.performed: list[Request[Any]] = []

    def converse(self, request: Request[Any]) -> Conversation[Any]:
        """Count the request; return the count."""
        self.performed.append(request)
        return self.performed.count(request)
        yield


class NoLink:
    """A link to nothing: `CountingStore` asks nothing of it."""

    async def perform(self, request: Request[Any], /) -> Any:
        """Fail: no request comes this far."""
        raise AssertionError(request)

    async def close(self) -> None:
        """Close nothing."""


class Interrupting:
    """Traces a thread; presses Ctrl-C at one instant, counted from 1, or never (0)."""

    def __init__(self, at: int) -> None:
        self.left = at
        self._last: dict[FrameType, int] = {}

    def __call__(self, frame: FrameType, event: str, _argument: object) -> Any:
        """Look at what comes next, and raise if that is the instant."""
        code = frame.f_code
        if code.co_name in NOT_THERE or not INSIDE.search(code.co_filename.replace("\\", "/")):
            return self

        frame.f_trace_opcodes = True
        if event == "opcode":
            last, self._last[frame] = self._last.get(frame), frame.f_lasti
            if last is not None and LOOKS.match(dis.opname[code.co_code[last]]):
                self.left -= 1
                if not self.left:
                    raise KeyboardInterrupt

        return self


def make_link() -> AsyncLink:
    """Make a link to nothing."""
    return NoLink()


@pytest.fixture
def store() -> CountingStore:
    """Make a store."""
    return CountingStore()


@pytest.fixture
def driver(store: CountingStore) -> Iterator[PortalDriver]:
    """Open a driver whose portal runs."""
    driver = PortalDriver(store, make_link, SECONDS)
    driver.ask(Ping())
    yield driver
    driver.close()


def interrupted(at: int, work: Callable[[], object]) -> BaseException | None:
    """Work in a thread with an interrupt at one instant; return what is raised; never wait forever."""
    raised: list[BaseException] = []

    def traced() -> None:
        sys.settrace(Interrupting(at))
        try:
            work()
        except BaseException as error:  # noqa: BLE001  it is asserted what it is
            raised.append(error)
        finally:
            sys.settrace(None)

    gc.disable()  # what others have forgotten is not to be collected in this thread
    try:
        thread = threading.Thread(target=traced, daemon=True)
        thread.start()
        thread.join(SECONDS)
    finally:
        gc.enable()

    assert not thread.is_alive(), f"interrupted at instant {at}, it waits forever"
    return raised[0] if raised else None


def test_an_interrupted_write(driver: PortalDriver, store: CountingStore) -> None:
    """It is performed and its conversation has the reply, or it is never performed."""
    seen_through = never_sent = 0
    for at in range(1, MOST):
        request, settled = Resolve(f"r{at}", ()), list[int]()
        raised = interrupted(at, partial(driver.run, settling(request, settled)))
        driver.ask(Ping())  # what the portal was asked to do before that has begun
        if raised is None:
            break

        assert isinstance(raised, KeyboardInterrupt)
        assert settled == [1] * store.performed.count(request), f"interrupted at instant {at}"
        seen_through += len(settled)
        never_sent += not settled

    assert raised is None
    assert seen_through > 5
    assert never_sent > 5
    until(lambda: not in_flight(driver))


def test_an_interrupted_read(driver: PortalDriver, store: CountingStore) -> None:
    """The portal keeps nothing of it, and serves the next request."""
    for at in range(1, MOST):
        raised = interrupted(at, partial(driver.ask, Ping()))
        if raised is None:
            break

        assert isinstance(raised, KeyboardInterrupt)
        assert driver.ask(Ping()) == store.performed.count(Ping())

    assert raised is None
    assert at > 10
    until(lambda: not in_flight(driver))


def test_a_write_to_a_closed_portal_is_interrupted(
    driver: PortalDriver, store: CountingStore
) -> None:
    """Its loop is closed: the caller comes to an end at every instant, and nothing is performed."""
    driver.close()
    for at in range(1, MOST):
        raised = interrupted(at, partial(driver.ask, Resolve("r", ())))
        if isinstance(raised, cs.StoreClosedError):
            break

        assert isinstance(raised, KeyboardInterrupt)

    assert isinstance(raised, cs.StoreClosedError)
    assert Resolve("r", ()) not in store.performed


def settling(request: Request[int], settled: list[int]) -> Conversation[None]:
    """Make one request and keep its reply."""
    settled.append((yield from ask(request)))


def in_flight(driver: PortalDriver) -> object:
    """Return what the portal still holds."""
    assert driver._portal is not None
    return driver._portal._crossings

"""Verify a store of one's own: the parity machine and the interleavings, in a scratch namespace.

`verify(url)` runs on a real server what the tests of this library run on theirs, beside the records
that are there and without touching them, and removes what it wrote. `catga-store verify URL` prints
its findings.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from collections.abc import Generator
from contextlib import ExitStack
from contextlib import contextmanager
from typing import Any
from typing import NamedTuple
from urllib.parse import urlsplit

from hypothesis import HealthCheck
from hypothesis import Phase
from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test

from catga_store.model import Retention
from catga_store.testing.clock import ManualClock
from catga_store.testing.faces import AsyncFace
from catga_store.testing.faces import BlockingFace
from catga_store.testing.faces import Face
from catga_store.testing.interleaving import Stage
from catga_store.testing.machine import machine_for
from catga_store.testing.scenarios import SCENARIOS
from catga_store.testing.scenarios import check_scenario
from catga_store.testing.scratch import scratch_url
from catga_store.urls import open_async_store
from catga_store.urls import open_store

__all__ = ["FACES", "Finding", "verify"]

FACES = ("blocking", "asyncio", "trio")
"""The faces of a store."""

_STEPS = 40
_ORDER = 40
_SHOWN = 4000


class Finding(NamedTuple):
    """One thing that was checked: how often, and what was found if it does not hold."""

    claim: str
    face: str
    times: int
    found: str
    seconds: float

    @property
    def holds(self) -> bool:
        """Whether nothing was found."""
        return not self.found


def verify(
    url: str,
    *,
    examples: int = 20,
    seed: int = 0,
    faces: tuple[str, ...] = FACES,
    on_finding: Callable[[Finding], None] = lambda _: None,
) -> list[Finding]:
    """Check a store through each face; answers what was found, also told one by one.

    `examples` is how many sequences of 40 drawn operations the machine tries for each face, and how
    many orders each interleaving is played in; `seed` draws the orders. Whatever a check raises is a
    finding; that the store cannot be opened is raised.
    """
    findings: list[Finding] = []

    def check(claim: str, face: str, times: int, function: Callable[[], None]) -> None:
        start = time.monotonic()
        try:
            function()
        except Exception as error:  # noqa: BLE001  whatever it is, it is what was found
            found = "\n".join(
                [f"{type(error).__name__}: {error}", *getattr(error, "__notes__", [])]
            )
        else:
            found = ""

        findings.append(Finding(claim, face, times, found[:_SHOWN], time.monotonic() - start))
        on_finding(findings[-1])

    with ExitStack() as stack:
        # The number of partitions is a namespace's for good.
        places = {count: stack.enter_context(scratch_url(url)) for count in (1, 4)}
        with open_store(places[1]) as store:
            store.ping()

        for face in faces:
            check(
                "every operation does what the model says",
                face,
                examples,
                lambda face=face: _run_machine(places, face, examples),  # type: ignore[misc]
            )
            for name in SCENARIOS:
                check(
                    f"interleaved exchanges equal a serial order: {name}",
                    face,
                    examples,
                    lambda face=face, name=name: _interleave(  # type: ignore[misc]
                        places[1],
                        face,
                        name,
                        examples,
                        random.Random(f"{seed} {name}"),  # noqa: S311  orders, no secrets
                    ),
                )

    return findings


def _run_machine(places: dict[int, str], face: str, examples: int) -> None:
    def open_empty(clock: ManualClock, retention: Retention, partitions: int) -> Face:
        opened = _open(places[partitions], face, clock, retention=retention, partitions=partitions)
        opened.clear()
        return opened

    run_state_machine_as_test(
        machine_for(open_empty),
        settings=settings(
            max_examples=examples,
            stateful_step_count=_STEPS,
            deadline=None,
            database=None,
            phases=[Phase.generate, Phase.shrink],
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
        ),
    )


def _interleave(url: str, face: str, name: str, examples: int, draw: random.Random) -> None:
    for _ in range(examples):
        clock = ManualClock()
        with _cleared(_open(url, face, clock)) as opened:
            order = [draw.randrange(6) for _ in range(_ORDER)]
            check_scenario(Stage.at_waist(opened), clock, SCENARIOS[name], order)


@contextmanager
def _cleared(opened: Face) -> Generator[Face]:
    with opened:
        opened.clear()
        yield opened


def _open(url: str, face: str, clock: ManualClock, **options: Any) -> Face:
    durable = urlsplit(url).scheme != "memory"
    if face == "blocking":
        return BlockingFace(lambda: open_store(url, clock=clock, **options), durable=durable)

    return AsyncFace(
        lambda: open_async_store(url, clock=clock, **options), backend=face, durable=durable
    )

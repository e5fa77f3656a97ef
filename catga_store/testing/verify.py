"""Verify a store of one's own: the parity machine, interleavings and lost replies.

`verify(url)` runs on a real server what the tests of this library run on theirs, beside the records
that are there and without touching them, and removes what it wrote. `catga-store verify URL` prints
its findings. `verify(open_empty)` does the same to a store that somebody else has written.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any
from typing import NamedTuple
from typing import TypeAlias
from urllib.parse import urlsplit

from hypothesis import HealthCheck
from hypothesis import Phase
from hypothesis import seed
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

__all__ = ["FACES", "Finding", "OpenEmpty", "verify"]

OpenEmpty: TypeAlias = Callable[[str, ManualClock, Retention, int], Face]
"""Opens an empty store behind a face, with this clock, retention and number of partitions."""

FACES = ("blocking", "asyncio", "trio")
"""The faces of a store."""

_PHASES = (Phase.generate, Phase.shrink)
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
    store: str | OpenEmpty,
    *,
    examples: int = 20,
    seed: int = 0,
    faces: tuple[str, ...] = FACES,
    on_finding: Callable[[Finding], None] = lambda _: None,
) -> list[Finding]:
    """Check a store through each face; answers what was found, also told one by one.

    `store` is a URL, beside whose records everything happens in a scratch namespace; or, for a store
    of your own, a function that opens an empty one behind a face: `open_empty(face, clock, retention,
    partitions)`. `examples` is how many sequences of 40 drawn operations the machine tries for each
    face, and how many orders each interleaving is played in; `seed` draws them. Whatever a check
    raises is a finding; that the store cannot be opened is raised.
    """
    with ExitStack() as stack:
        open_empty = _open_in_scratch(stack, store) if isinstance(store, str) else store
        open_empty(faces[0], ManualClock(), Retention(), 1).close()

        findings: list[Finding] = []
        for face in faces:
            for claim, check in _checks(open_empty, face, examples, seed):
                findings.append(_find(claim, face, examples, check))
                on_finding(findings[-1])

    return findings


def _checks(
    open_empty: OpenEmpty, face: str, examples: int, seed: int
) -> Iterator[tuple[str, Callable[[], None]]]:
    yield (
        "every operation does what the model says",
        partial(_run_machine, partial(open_empty, face), examples, seed),
    )
    for name in SCENARIOS:
        yield (
            f"interleaved exchanges equal a serial order: {name}",
            partial(_interleave, open_empty, face, name, examples, seed),
        )

    if face == "blocking":  # below the waist all faces are one
        for name in SCENARIOS:
            yield (
                f"a lost reply changes no answer: {name}",
                partial(_lose, open_empty, name, examples, seed),
            )


def _find(claim: str, face: str, times: int, check: Callable[[], None]) -> Finding:
    start = time.monotonic()
    try:
        check()
    except Exception as error:  # noqa: BLE001  whatever it is, it is what was found
        found = "\n".join([f"{type(error).__name__}: {error}", *getattr(error, "__notes__", [])])
    else:
        found = ""

    return Finding(claim, face, times, found[:_SHOWN], time.monotonic() - start)


def _run_machine(
    open_face: Callable[[ManualClock, Retention, int], Face], examples: int, drawn: int
) -> None:
    machine = seed(drawn)(machine_for(open_face))
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=_STEPS,
            deadline=None,
            database=None,
            phases=_PHASES,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
        ),
    )


def _orders(name: str, examples: int, seed: int) -> Iterator[tuple[list[int], set[int]]]:
    """Orders of exchanges, and which replies are lost."""
    draw = random.Random(f"{seed} {name}")  # noqa: S311  no secrets
    for _ in range(examples):
        yield [draw.randrange(6) for _ in range(_ORDER)], {draw.randrange(25) for _ in range(2)}


def _interleave(open_empty: OpenEmpty, face: str, name: str, examples: int, seed: int) -> None:
    clock = ManualClock()
    with open_empty(face, clock, Retention(), 1) as opened:
        stage = Stage.at_waist(opened)
        for order, _ in _orders(name, examples, seed):
            opened.clear()
            check_scenario(stage, clock, SCENARIOS[name], order)


def _lose(open_empty: OpenEmpty, name: str, examples: int, seed: int) -> None:
    clock = ManualClock()
    with open_empty("blocking", clock, Retention(), 1) as opened:
        stage = Stage.below_waist(opened.store)
        for order, lost in _orders(name, examples, seed):
            opened.clear()
            check_scenario(stage, clock, SCENARIOS[name], order, lost=lost)


def _open_in_scratch(stack: ExitStack, url: str) -> OpenEmpty:
    """Open stores beside that of a URL, in namespaces that are removed when the stack ends."""
    # The number of partitions is a namespace's for good.
    places = {count: stack.enter_context(scratch_url(url)) for count in (1, 4)}
    durable = urlsplit(url).scheme != "memory"

    def open_empty(face: str, clock: ManualClock, retention: Retention, partitions: int) -> Face:
        options: Any = {"clock": clock, "retention": retention, "partitions": partitions}
        place = places[partitions]
        opened: Face = (
            BlockingFace(lambda: open_store(place, **options), durable=durable)
            if face == "blocking"
            else AsyncFace(
                lambda: open_async_store(place, **options), backend=face, durable=durable
            )
        )
        try:
            opened.clear()
        except BaseException:
            opened.close()
            raise

        return opened

    return open_empty

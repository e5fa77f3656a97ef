"""`verify`: run the parity machine, interleavings and lost replies against a store.

`verify(url)` runs the tests of this library against your server, in a scratch namespace that it removes
afterwards; your records are not touched. The `catga-store verify URL` command prints the findings.
`verify(open_empty)` tests a store that you have written.
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

from catga_store.model.listings import Retention
from catga_store.opening.urls import open_async_store
from catga_store.opening.urls import open_store
from catga_store.testing.apis import AsyncAPI
from catga_store.testing.apis import BlockingAPI
from catga_store.testing.apis import StoreAPI
from catga_store.testing.clock import ManualClock
from catga_store.testing.interleavings.play import Stage
from catga_store.testing.interleavings.scenarios import SCENARIOS
from catga_store.testing.interleavings.scenarios import check_scenario
from catga_store.testing.machine import machine_for
from catga_store.testing.scratch import scratch_url

__all__ = ["APIS", "CheckResult", "OpenEmpty", "verify"]

OpenEmpty: TypeAlias = Callable[[str, ManualClock, Retention, int], StoreAPI]
"""Opens an empty store behind an API, with this clock, retention and number of partitions."""

APIS = ("blocking", "asyncio", "trio")
"""The APIs of a store."""

_PHASES = (Phase.generate, Phase.shrink)
_STEPS = 40
_ORDER = 40
_SHOWN = 4000


class CheckResult(NamedTuple):
    """The result of one check: how many times it ran, and what was found if it failed."""

    claim: str
    api: str
    times: int
    found: str
    seconds: float

    @property
    def holds(self) -> bool:
        """Whether the check passed."""
        return not self.found


def verify(
    store: str | OpenEmpty,
    *,
    examples: int = 20,
    seed: int = 0,
    apis: tuple[str, ...] = APIS,
    on_finding: Callable[[CheckResult], None] = lambda _: None,
) -> list[CheckResult]:
    """Check a store through each API, and return the findings.

    `store` is either a URL or, for a store that you have written, a function `open_empty(api, clock,
    retention, partitions)` that opens an empty store behind an API. With a URL, the checks run in a scratch
    namespace beside the store's records. `examples` is the number of random sequences of 40 operations for
    each API, and the number of orders for each interleaving; `seed` is the seed for both. `on_finding` is
    called after each check. An exception in a check is a finding; an error that occurs when the store is
    opened is raised.
    """
    with ExitStack() as stack:
        open_empty = _open_in_scratch(stack, store) if isinstance(store, str) else store
        open_empty(apis[0], ManualClock(), Retention(), 1).close()

        findings: list[CheckResult] = []
        for api in apis:
            for claim, check in _checks(open_empty, api, examples, seed):
                findings.append(_find(claim, api, examples, check))
                on_finding(findings[-1])

    return findings


def _checks(
    open_empty: OpenEmpty, api: str, examples: int, seed: int
) -> Iterator[tuple[str, Callable[[], None]]]:
    yield (
        "every operation behaves as the model specifies",
        partial(_run_machine, partial(open_empty, api), examples, seed),
    )
    for name in SCENARIOS:
        yield (
            f"interleaved requests are equivalent to a serial order: {name}",
            partial(_interleave, open_empty, api, name, examples, seed),
        )

    if api == "blocking":  # all APIs share what is below the store protocol
        for name in SCENARIOS:
            yield (
                f"a lost reply does not change the result: {name}",
                partial(_lose, open_empty, name, examples, seed),
            )


def _find(claim: str, api: str, times: int, check: Callable[[], None]) -> CheckResult:
    start = time.monotonic()
    try:
        check()
    except Exception as error:  # noqa: BLE001  any exception is the finding
        found = "\n".join([f"{type(error).__name__}: {error}", *getattr(error, "__notes__", [])])
    else:
        found = ""

    return CheckResult(claim, api, times, found[:_SHOWN], time.monotonic() - start)


def _run_machine(
    open_api: Callable[[ManualClock, Retention, int], StoreAPI], examples: int, drawn: int
) -> None:
    machine = seed(drawn)(machine_for(open_api))
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


def _interleave(open_empty: OpenEmpty, api: str, name: str, examples: int, seed: int) -> None:
    clock = ManualClock()
    with open_empty(api, clock, Retention(), 1) as opened:
        stage = Stage.at_protocol(opened)
        for order, _ in _orders(name, examples, seed):
            opened.clear()
            check_scenario(stage, clock, SCENARIOS[name], order)


def _lose(open_empty: OpenEmpty, name: str, examples: int, seed: int) -> None:
    clock = ManualClock()
    with open_empty("blocking", clock, Retention(), 1) as opened:
        stage = Stage.below_protocol(opened.store)
        for order, lost in _orders(name, examples, seed):
            opened.clear()
            check_scenario(stage, clock, SCENARIOS[name], order, lost=lost)


def _open_in_scratch(stack: ExitStack, url: str) -> OpenEmpty:
    """Open stores beside that of a URL, in namespaces that are removed when the stack ends."""
    # A namespace keeps its number of partitions forever.
    places = {count: stack.enter_context(scratch_url(url)) for count in (1, 4)}
    durable = urlsplit(url).scheme != "memory"

    def open_empty(api: str, clock: ManualClock, retention: Retention, partitions: int) -> StoreAPI:
        options: Any = {"clock": clock, "retention": retention, "partitions": partitions}
        options["history"] = 3
        place = places[partitions]
        opened: StoreAPI = (
            BlockingAPI(lambda: open_store(place, **options), durable=durable)
            if api == "blocking"
            else AsyncAPI(lambda: open_async_store(place, **options), backend=api, durable=durable)
        )
        try:
            opened.clear()
        except BaseException:
            opened.close()
            raise

        return opened

    return open_empty

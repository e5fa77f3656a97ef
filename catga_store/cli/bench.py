"""The command `bench`: how long operations take on a store like yours, from this machine."""

from __future__ import annotations

import time
from collections.abc import Callable
from collections.abc import Iterator
from typing import Annotated
from typing import Any

import typer
from attrs import frozen

import catga_store as cs
from catga_store.cli.doctor import known_doctor
from catga_store.cli.exit_codes import guarded
from catga_store.cli.output import print_json
from catga_store.cli.output import print_rows
from catga_store.cli.output import say
from catga_store.cli.store_options import AsJson
from catga_store.cli.store_options import StoreArgument
from catga_store.cli.store_options import checked
from catga_store.opening.url_codecs import bare
from catga_store.protocol.masking import mask_url

__all__ = ["bench"]

_FLOWS = 100
_STATE = {"note": "x" * 1000}


@frozen
class _Times:
    operation: str
    nanoseconds: list[int]

    def percentile(self, percent: int) -> float:
        """In microseconds."""
        ordered = sorted(self.nanoseconds)
        return ordered[min(len(ordered) - 1, len(ordered) * percent // 100)] / 1000

    @property
    def per_second(self) -> float:
        return len(self.nanoseconds) / (sum(self.nanoseconds) / 1e9)


@guarded
def bench(
    store: StoreArgument = None,
    *,
    calls: Annotated[
        int,
        typer.Option(
            min=10,
            max=100_000,
            help="Number of calls of each operation, in addition to 20 warm-up calls.",
        ),
    ] = 500,
    as_json: AsJson = False,
) -> None:
    """Measure operations in a scratch namespace beside the store; the namespace is removed at the end.

    Measures one blocking caller, one call at a time, on flows with 1 KiB of state. The times apply to this
    machine, this network and the current load. Your records are neither read nor written.

    `--json`: `{"url", "place", "calls", "state_bytes", "operations": [{"operation", "p50_us", "p99_us",
    "per_second"}, …]}`.
    """
    url = checked(store, "catga-store bench sqlite:///flows.db")
    store_doctor = known_doctor(url, "bench")
    with store_doctor.scratch(bare(url)) as scratch:
        with cs.open_store(scratch.url) as opened:
            try:
                measured = list(_measured(opened, calls))
            finally:
                opened.clear()

        place = scratch.place

    if as_json:
        print_json(
            {
                "url": mask_url(url),
                "place": place,
                "calls": calls,
                "state_bytes": len(_STATE["note"]) + len('{"note":""}'),
                "operations": [
                    {
                        "operation": one.operation,
                        "p50_us": round(one.percentile(50), 1),
                        "p99_us": round(one.percentile(99), 1),
                        "per_second": round(one.per_second, 1),
                    }
                    for one in measured
                ],
            }
        )
        return

    rows = [
        (
            one.operation,
            f"{one.percentile(50):,.0f}",
            f"{one.percentile(99):,.0f}",
            f"{one.per_second:,.0f}",
        )
        for one in measured
    ]
    print_rows(("OPERATION", "P50 µs", "P99 µs", "PER SECOND"), rows)
    say(
        f"\n{calls} calls of each operation, one at a time, by one blocking caller, on flows "
        f"with 1 KiB\nof state, {place}. The scratch namespace has been removed; your records "
        "were not changed."
    )


def _measured(store: cs.Store, calls: int) -> Iterator[_Times]:
    flows = [cs.FlowSnapshot(f"bench-{n}", state=dict(_STATE), due_at=None) for n in range(_FLOWS)]
    for flow in flows:
        store.create(flow)

    def update(number: int) -> None:
        store.update(flows[number % _FLOWS])

    def commit(number: int) -> None:
        with store.begin() as session:
            flow: Any = session.get_one(f"bench-{number % _FLOWS}")
            flow.state["number"] = number

    def complete(number: int) -> None:
        store.complete_child("bench", f"child-{number}")

    def claim(_number: int) -> None:
        store.claim_due()

    yield _timed("get", lambda number: store.get(f"bench-{number % _FLOWS}"), calls)
    yield _timed("update", update, calls)
    yield _timed("session: get, change, commit", commit, calls)
    yield _timed("complete_child", complete, calls)
    for number in range(calls + _WARM_UP):
        store.create(cs.FlowSnapshot(f"due-{number}", state=dict(_STATE)))

    yield _timed("claim_due of 1", claim, calls)


_WARM_UP = 20


def _timed(name: str, call: Callable[[int], object], calls: int) -> _Times:
    clock = time.perf_counter_ns
    times: list[int] = []
    for number in range(calls + _WARM_UP):
        start = clock()
        call(number)
        times.append(clock() - start)

    return _Times(name, times[_WARM_UP:])

"""What cannot work is refused by an error of its own that says why, and nothing is written.

One file, and long: most of it is tables of what is refused.
"""

from __future__ import annotations

import asyncio
import base64
import json
import math
import sqlite3
from collections.abc import Callable
from collections.abc import Iterable
from datetime import UTC
from datetime import date
from datetime import datetime
from datetime import timedelta
from pathlib import Path
from typing import Any

import attrs
import nats
import pytest
from marks import EVERY_STORE
from marks import ONE_STORE
from redis import Redis

import catga_store as cs
from catga_store.protocol.keys import flow_key
from catga_store.testing.clock import ManualClock

pytestmark = ONE_STORE

Opener = Callable[..., cs.Store]

NAIVE = datetime(2030, 1, 1)  # noqa: DTZ001  what is refused
LAST = datetime.max.replace(tzinfo=UTC)
KIB = 1024


@attrs.define
class Order:
    """A state."""

    total: int


@attrs.define
class Other:
    """Another state."""

    text: str


class Text(str):
    """Text of a class of its own."""

    __slots__ = ()


def everything(store: cs.Store) -> list[object]:
    """Read all that a store holds."""
    flows = list(store.iter_flows())
    return [
        flows,
        [flow.state for flow in store.get_many([flow.flow_id for flow in flows]).values() if flow],
        [
            (wait.correlation_id, wait.version, wait.outcome, dict(wait.results))
            for wait in store.iter_wait_conditions()
        ],
        [
            (step, progress.version, list(progress.processed_indices))
            for flow_id in ("f", "g", "x")
            for step, progress in store.list_for_each_progress(flow_id).items()
        ],
    ]


@pytest.fixture
def filled(store: cs.Store) -> cs.Store:
    """Fill a store with a record of each kind."""
    store.create(cs.FlowSnapshot("f", state={"n": 1}, due_at=None))
    store.create(cs.FlowSnapshot("o", state=Order(1), due_at=None))
    store.set_wait_condition(cs.WaitCondition("w", flow_ids=["a", "b"]))
    store.complete_child("w", "a", result=1)
    store.save_for_each_progress("f", 0, cs.ForEachProgress([1, 2]))
    return store


# --- ids ----------------------------------------------------------------------------------------

BAD_IDS: list[tuple[Any, str]] = [
    ("", "is empty"),
    ("x" * 513, "513 UTF-8 bytes"),
    ("ü" * 257, "514 UTF-8 bytes"),
    ("a\ud800", "lone surrogate"),
    (5, "is of type int"),
    (None, "is None"),
    (b"f", "is of type bytes"),
    (["f"], "is of type list"),
]

ID_USES: dict[str, Callable[[cs.Store, Any], object]] = {
    "FlowSnapshot": lambda _store, bad: cs.FlowSnapshot(bad, state={}),
    "WaitCondition": lambda _store, bad: cs.WaitCondition(bad, flow_ids=["a"]),
    "a child": lambda _store, bad: cs.WaitCondition("w", flow_ids=["a", bad]),
    "get": lambda store, bad: store.get(bad),
    "get_one": lambda store, bad: store.get_one(bad),
    "get_many": lambda store, bad: store.get_many(["f", bad]),
    "delete": lambda store, bad: store.delete(bad),
    "claim": lambda store, bad: store.claim(bad),
    "get_wait_condition": lambda store, bad: store.get_wait_condition(bad),
    "clear_wait_condition": lambda store, bad: store.clear_wait_condition(bad),
    "complete_child's wait": lambda store, bad: store.complete_child(bad, "b"),
    "complete_child's child": lambda store, bad: store.complete_child("w", bad),
    "get progress": lambda store, bad: store.get_for_each_progress(bad, 0),
    "save progress": lambda store, bad: store.save_for_each_progress(bad, 0, cs.ForEachProgress()),
    "clear progress": lambda store, bad: store.clear_for_each_progress(bad, 0),
    "list progress": lambda store, bad: store.list_for_each_progress(bad),
    "session.get": lambda store, bad: store.session().get(bad),
    "session.get_many": lambda store, bad: store.session().get_many([bad]),
    "session.get_wait_condition": lambda store, bad: store.session().get_wait_condition(bad),
    "session.complete_child": lambda store, bad: store.session().complete_child(bad, "b"),
    "session progress": lambda store, bad: store.session().get_for_each_progress(bad, 0),
    "session save": lambda store, bad: store.session().save_for_each_progress(
        bad, 0, cs.ForEachProgress()
    ),
    "session clear": lambda store, bad: store.session().clear_for_each_progress(bad, 0),
}
MAY_BE_NONE: dict[str, Callable[[cs.Store, Any], object]] = {
    "parent": lambda _store, bad: cs.WaitCondition("w", flow_ids=["a"], parent_flow_id=bad),
    "query's parent": lambda store, bad: store.query_wait_conditions(parent_flow_id=bad),
    "claim's owner": lambda store, bad: store.claim("f", owner=bad),
    "claim_due's owner": lambda store, bad: store.claim_due(owner=bad),
    "store's owner": lambda _store, bad: cs.open_store("memory://", owner=bad),
}


@pytest.mark.parametrize("use", ID_USES)
def test_bad_ids_are_refused(filled: cs.Store, use: str) -> None:
    """Every parameter that is an id refuses what can be none, by `InvalidIdError`."""
    before = everything(filled)
    for bad, said in BAD_IDS:
        with pytest.raises(cs.InvalidIdError, match=said) as caught:
            ID_USES[use](filled, bad)

        assert "an id must be a str of 1 to 512 UTF-8 bytes; nothing was sent" in str(caught.value)

    assert everything(filled) == before


@pytest.mark.parametrize("use", MAY_BE_NONE)
def test_bad_optional_ids_are_refused(filled: cs.Store, use: str) -> None:
    """A parameter that may be `None` refuses everything else that can be no id."""
    before = everything(filled)
    for bad, said in BAD_IDS:
        if bad is not None:
            with pytest.raises(cs.InvalidIdError, match=said):
                MAY_BE_NONE[use](filled, bad)

    assert everything(filled) == before


@EVERY_STORE
@pytest.mark.parametrize(
    "good",
    [
        "x" * 512,
        "ü" * 256,
        " ",
        "a b.c*>{}:/\\'\"",
        "\n\r\t\0",
        "\U0001f600",
        "{",
        "}{",
        "é",  # composed
        "e\u0301",  # the same to the eye, another id
        Text("text"),
    ],
)
def test_any_other_text_is_an_id(store: cs.Store, good: str) -> None:
    """Every id is kept as it is, by every kind of record, and found again in listings."""
    store.create(cs.FlowSnapshot("neighbour", state={}))
    store.create(cs.FlowSnapshot(good, state={"n": 1}))
    store.set_wait_condition(cs.WaitCondition(good, flow_ids=[good], parent_flow_id=good))
    store.save_for_each_progress(good, 0, cs.ForEachProgress([1]))
    assert store.get_one(good).state == {"n": 1}
    assert {flow.flow_id for flow in store.iter_flows()} == {good, "neighbour"}
    assert store.complete_child(good, good).now_satisfied
    (wait,) = store.iter_wait_conditions(parent_flow_id=good)
    assert (wait.correlation_id, wait.flow_ids, wait.parent_flow_id) == (good, (good,), good)
    assert list(wait.results) == [good]
    assert list(store.list_for_each_progress(good)) == [0]
    assert {flow.flow_id for flow in store.claim_due(limit=5)} == {good, "neighbour"}
    assert store.delete(good) is True


@EVERY_STORE
def test_ids_are_not_normalised(store: cs.Store) -> None:
    """Ids that differ in case, spaces or composition are different ids."""
    for name in ("a", "A", " a", "a ", "é", "e\u0301", "a\0", "a\n"):
        store.create(cs.FlowSnapshot(name, state={}))

    assert store.count_flows() == 8


# --- arguments ----------------------------------------------------------------------------------


def flow(**fields: Any) -> cs.FlowSnapshot[Any]:
    """Make a flow with these fields."""
    return cs.FlowSnapshot("x", state={}, **fields)


def wait(**fields: Any) -> cs.WaitCondition:
    """Make a condition with these fields."""
    return cs.WaitCondition("x", **{"flow_ids": ["a"], **fields})


def opened(**options: Any) -> cs.Store:
    """Open a store with these options."""
    return cs.open_store("memory://", **options)


SPANS = (-timedelta(microseconds=1), timedelta(days=36_501), timedelta.max)
NO_SPANS = (5, 1.5, "1h")
NO_MOMENTS = ("2030", 5, date(2030, 1, 1))
NO_STEPS = (-1, 2**31, 1.0, "0", None, True)
NO_IDS = (5, 1.5, "abc", b"abc")
NO_RECORDS = ({}, None, "f", 5)
NO_TYPES = (5, "Order", int, dict, [], {})
NO_CLAIMS = (5, int, dict, {}, (Order, int), ["Order", 5])
NO_JSON = (object(), {1, 2}, (1,), NAIVE, {1: 2}, float("nan"), float("inf"), b"x", "\ud800")
NO_COUNTS = (0, -1, 1.5, "1", True)
NO_FLAGS = ("no", 1, None)
NO_STORES = (5, None, cs.AsyncMemoryStore())

Check = tuple[Callable[[cs.Store, Any], object], Iterable[object], str]


# What is called, with what it must refuse, and what the error says. In most of the library a
# `UsageError`; state types and values have errors of their own.
async def awaits_nothing(_session: object) -> None:
    """Stand for a function of an async store's `transact`."""


ARGUMENTS: list[Check] = [
    (lambda _, bad: flow(status=bad), ("RUNNING", 1, None), "status: expected a FlowStatus"),
    (lambda _, bad: flow(position=bad), ((0,), "0", None), "position: expected a FlowPosition"),
    (lambda _, bad: flow(attempts=bad), (-1, True, 2**31, 1.0, None), "attempts: expected an int"),
    (lambda _, bad: flow(error=bad), (5, b"x", ValueError("x")), "error: expected a str or None"),
    (lambda _, bad: flow(wait_condition=bad), ("w", 5), "expected a WaitCondition or None"),
    (lambda _, bad: flow(due_at=bad), NO_MOMENTS, "expected a datetime"),
    (lambda _, bad: flow(due_at=bad), (NAIVE,), "no time zone"),
    (lambda _, bad: flow(due_at=bad), (LAST,), "out of range: the year in UTC"),
    (lambda _, bad: flow(created_at=bad), NO_MOMENTS, "expected a datetime"),
    (lambda _, bad: flow(created_at=bad), (NAIVE,), "no time zone"),
    (
        lambda _, bad: cs.FlowPosition(bad),
        ([0], (), "0", None),
        "position: expected a non-empty tuple of ints, got",
    ),
    (
        lambda _, bad: cs.FlowPosition(bad),
        ((-1,), (True,), (1.0,), (0, 2**63), (10**5000,)),
        r"step index: expected an int from 0 to 2\*\*63 - 1, got",
    ),
    (
        lambda _, bad: cs.FlowPosition().advance(bad),
        ("1", 1.0, None),
        "advance: expected an int",
    ),
    (lambda _, bad: wait(outcome=bad), ("SATISFIED", 1, None), "outcome: expected a WaitOutcome"),
    (lambda _, bad: wait(wait_type=bad), ("WHEN_ALL", 0, None), "wait_type: expected a WaitType"),
    (lambda _, bad: wait(flow_ids=bad), (*NO_IDS, None), "expected a collection of ids"),
    (lambda _, bad: wait(flow_ids=bad), ([], (), set[str]()), "at least one child"),
    (lambda _, bad: wait(timeout=bad), SPANS, "timeout: expected a timedelta of 0 to 36,500 days"),
    (lambda _, bad: wait(timeout=bad), NO_SPANS, "timeout: expected a timedelta"),
    (lambda _, bad: wait(created_at=bad), NO_MOMENTS, "expected a datetime"),
    (lambda _, bad: wait(created_at=bad), (NAIVE,), "no time zone"),
    (lambda _, bad: cs.ForEachProgress([bad]), (-1, "x", True, None), "index: expected"),
    (lambda _, bad: cs.ForEachProgress(bad), (5, None, "0"), "expected a collection of ints"),
    (
        lambda _, bad: cs.ForEachProgress(last_processed_index=bad),
        (-1, "x", True),
        "index: expected",
    ),
    (
        lambda _, bad: cs.ForEachProgress().merge(bad),
        NO_RECORDS,
        "merge: expected a ForEachProgress",
    ),
    (lambda _, bad: cs.Retention(flows=bad), SPANS, "retention: expected a timedelta of 0"),
    (lambda _, bad: cs.Retention(waits=bad), NO_SPANS, "retention: expected a timedelta"),
    # how a store is opened
    (lambda _, bad: opened(timeout=bad), (*NO_SPANS, None), "timeout: expected a timedelta"),
    (lambda _, bad: opened(timeout=bad), SPANS, "timeout: expected a timedelta of 0"),
    (lambda _, bad: opened(partitions=bad), NO_COUNTS, "partitions: expected an int of at least 1"),
    (lambda _, bad: opened(max_record_bytes=bad), NO_COUNTS, "max_record_bytes: expected an int"),
    (lambda _, bad: opened(retention=bad), (5, None, timedelta(1)), "expected a Retention"),
    (lambda _, bad: opened(clock=bad), (5, "now", LAST), "clock: expected a function"),
    (lambda _, bad: opened(clock=lambda: bad).get("f"), NO_MOMENTS, "expected a datetime"),
    (lambda _, bad: opened(clock=lambda: bad).get("f"), (NAIVE,), "no time zone"),
    (lambda _, bad: opened(clock=lambda: bad).get("f"), (LAST,), "the year must be before 9900"),
    # single operations
    (lambda store, bad: store.create(bad), NO_RECORDS, "expected a FlowSnapshot, got"),
    (
        lambda store, bad: store.transact(bad),
        (awaits_nothing,),
        "expected a plain function, got an async function",
    ),
    (lambda store, bad: store.update(bad), NO_RECORDS, "expected a FlowSnapshot, got"),
    (lambda store, bad: store.get_or_create(bad), NO_RECORDS, "expected a FlowSnapshot, got"),
    (lambda store, bad: store.extend(bad), NO_RECORDS, "expected a FlowSnapshot, got"),
    (lambda store, bad: store.release(bad), NO_RECORDS, "expected a FlowSnapshot, got"),
    (lambda store, bad: store.set_wait_condition(bad), NO_RECORDS, "expected a WaitCondition, got"),
    (
        lambda store, bad: store.update_wait_condition(bad),
        NO_RECORDS,
        "expected a WaitCondition, got",
    ),
    (lambda store, bad: store.get_many(bad), (*NO_IDS, None), "expected a collection of ids"),
    (
        lambda store, bad: store.delete("f", version=bad),
        ("1", True, 1.0),
        "version: expected an int",
    ),
    (lambda store, bad: store.delete("f", revision=bad), (5, b"x"), "revision: expected a str"),
    (
        lambda store, bad: store.complete_child("w", "b", success=bad),
        (1, "yes", None),
        "success: expected True or False",
    ),
    (
        lambda store, bad: store.complete_child("w", "b", error=bad),
        (5, b"x", ValueError("x")),
        "error: expected a str or None",
    ),
    (lambda store, bad: store.get_for_each_progress("f", bad), NO_STEPS, "an int from 0 to 21474"),
    (lambda store, bad: store.clear_for_each_progress("f", bad), NO_STEPS, "an int from 0 to 2147"),
    (
        lambda store, bad: store.save_for_each_progress("f", bad, cs.ForEachProgress()),
        NO_STEPS,
        "an int from 0 to 2147483647",
    ),
    (
        lambda store, bad: store.save_for_each_progress("f", 0, bad),
        NO_RECORDS,
        "expected a ForEachProgress",
    ),
    (
        lambda store, bad: store.save_for_each_progress(
            "f", 0, cs.ForEachProgress(), overwrite=bad
        ),
        NO_FLAGS,
        "overwrite: expected True or False",
    ),
    (lambda store, bad: cs.copy(bad, store), NO_STORES, "blocking Store.*open_store"),
    (cs.copy, NO_STORES, "blocking Store.*open_store"),
    (
        lambda store, bad: cs.copy(store, cs.MemoryStore(), overwrite=bad),
        NO_FLAGS,
        "overwrite: expected True or False",
    ),
    (
        lambda store, bad: cs.copy(store, cs.MemoryStore(), on_progress=bad),
        (5, "print"),
        "on_progress: expected a function",
    ),
    (lambda store, bad: store.claim("f", timeout=bad), SPANS, "timeout: expected a timedelta of 0"),
    (lambda store, bad: store.claim("f", timeout=bad), NO_SPANS, "timeout: expected a timedelta"),
    (lambda store, bad: store.claim("f", lease=bad), SPANS, "lease: expected a timedelta of 0"),
    (lambda store, bad: store.claim("f", lease=bad), NO_SPANS, "lease: expected a timedelta"),
    (
        lambda store, bad: store.claim("f", lease=bad),
        (timedelta(0),),
        "lease: expected a duration longer than 0",
    ),
    (lambda store, bad: store.claim_due(lease=bad), SPANS, "lease: expected a timedelta of 0"),
    (lambda store, bad: store.claim_due(lease=bad), NO_SPANS, "lease: expected a timedelta"),
    (
        lambda store, bad: store.claim_due(lease=bad),
        (timedelta(0),),
        "lease: expected a duration longer than 0",
    ),
    (lambda store, bad: store.sweep(bad), NO_COUNTS, "limit: expected an int of at least 1"),
    (lambda store, bad: store.transact(bad), ("x", None, 5), "transact: expected a function"),
    # listings
    (lambda store, bad: store.query_flows(status=bad), ("RUNNING", 1), "expected a FlowStatus"),
    (lambda store, bad: store.count_flows(status=bad), ("RUNNING", 1), "expected a FlowStatus"),
    (lambda store, bad: store.query_flows(created_after=bad), NO_MOMENTS, "expected a datetime"),
    (lambda store, bad: store.query_flows(created_before=bad), NO_MOMENTS, "expected a datetime"),
    (lambda store, bad: store.query_flows(updated_before=bad), NO_MOMENTS, "expected a datetime"),
    (lambda store, bad: store.query_flows(updated_after=bad), NO_MOMENTS, "expected a datetime"),
    (lambda store, bad: store.query_flows(owner=bad), (5, "", "x" * 513), "an owner"),
    (
        lambda store, bad: store.query_flows(error_contains=bad),
        (5, "", b"x", "\ud800"),
        "a non-empty str",
    ),
    (
        lambda store, bad: store.count_flows(attempts_at_least=bad),
        (-1, 2**63, 1.5, True, "1"),
        "attempts_at_least: expected None or an int from 0",
    ),
    (lambda store, bad: store.count_flows(created_after=bad), (NAIVE,), "no time zone"),
    (lambda store, bad: store.query_flows(created_before=bad), (NAIVE,), "no time zone"),
    (lambda store, bad: store.query_flows(updated_before=bad), (NAIVE,), "no time zone"),
    (lambda store, bad: next(store.iter_flows(status=bad)), (1,), "expected a FlowStatus"),
    (
        lambda store, bad: store.query_wait_conditions(outcome=bad),
        (1, "x"),
        "expected a WaitOutcome",
    ),
    (
        lambda store, bad: store.get_timed_out_wait_conditions(bad),
        NO_MOMENTS,
        "expected a datetime",
    ),
    (lambda store, bad: store.get_timed_out_wait_conditions(bad), (NAIVE,), "no time zone"),
    (
        lambda store, bad: store.get_timed_out_wait_conditions(None, bad),
        NO_COUNTS,
        "limit: expected None or an int of at least 1",
    ),
    # sessions
    (lambda store, bad: store.session().get_many(bad), (*NO_IDS, None), "a collection of ids"),
    (
        lambda store, bad: store.session().suspend(bad, wait()),
        NO_RECORDS,
        "expected a FlowSnapshot, got",
    ),
    (
        lambda store, bad: store.session().suspend(flow(), bad),
        NO_RECORDS,
        "expected a WaitCondition, got",
    ),
    (
        lambda store, bad: store.session().complete_child("w", "b", success=bad),
        (1, "yes", None),
        "success: expected True or False",
    ),
    (
        lambda store, bad: store.session().save_for_each_progress(
            "f", 0, cs.ForEachProgress(), overwrite=bad
        ),
        NO_FLAGS,
        "overwrite: expected True or False",
    ),
    (
        lambda store, bad: store.session().save_for_each_progress("f", bad, cs.ForEachProgress()),
        NO_STEPS,
        "an int from 0 to 2147483647",
    ),
    (
        lambda store, bad: store.session().save_for_each_progress("f", 0, bad),
        NO_RECORDS,
        "expected a ForEachProgress",
    ),
    (lambda store, bad: store.session().get_for_each_progress("f", bad), NO_STEPS, "an int from 0"),
    (
        lambda store, bad: store.session().clear_for_each_progress("f", bad),
        NO_STEPS,
        "int from 0 to",
    ),
]

STATE_TYPES: list[Check] = [
    (lambda store, bad: store.get("o", bad), NO_TYPES, "state type: expected"),
    (lambda store, bad: store.get("absent", bad), NO_TYPES, "state type: expected"),
    (lambda store, bad: store.session().get("absent", bad), NO_TYPES, "state type: expected"),
    (lambda store, bad: store.get_many(["o"], bad), NO_TYPES, "state type: expected"),
    (lambda store, bad: store.get_many(["absent"], bad), NO_TYPES, "state type: expected"),
    (lambda store, bad: store.claim("o", bad), NO_CLAIMS, "state type: expected"),
    (lambda store, bad: store.claim_due(bad), NO_CLAIMS, "state type: expected"),
    (lambda store, bad: store.query_flows(state_type=bad), (5, int, []), "state type: expected"),
    (lambda store, bad: store.create(flow(state_type=bad)), NO_TYPES, "state type: expected"),
    (lambda store, bad: store.get("o", bad), (Other,), r"'Order'.*'Other'"),
    (lambda store, bad: store.get("f", bad), (Order,), r"does not fit the type Order: at \$"),
]

VALUES: list[Check] = [
    (lambda store, bad: store.complete_child("w", "b", result=bad), NO_JSON, r"at \$\.result"),
    (
        lambda store, bad: store.session().complete_child("w", "b", result=bad),
        NO_JSON,
        r"at \$\.result",
    ),
    (
        lambda store, bad: store.create(cs.FlowSnapshot("x", state={"a": [0, bad]})),
        NO_JSON,
        r"at \$\.a\[1\]",
    ),
    (lambda store, bad: store.create(flow(error=bad)), ("\ud800",), "error text cannot be encoded"),
    (lambda store, bad: store.complete_child("w", "b", error=bad), ("\ud800",), r"at \$\.error"),
]


@pytest.mark.parametrize(
    ("checks", "error"),
    [
        (ARGUMENTS, cs.UsageError),
        (STATE_TYPES, cs.StateTypeError),
        (VALUES, cs.EncodingError),
    ],
    ids=["arguments", "state types", "values"],
)
def test_every_argument_is_checked(
    filled: cs.Store, checks: list[Check], error: type[cs.UsageError]
) -> None:
    """What is of the wrong type or out of range is refused, and nothing is written."""
    before = everything(filled)
    failed: list[str] = []

    for act, refused, said in checks:
        for bad in refused:
            try:
                with pytest.raises(error, match=said):
                    act(filled, bad)
            except (Exception, pytest.fail.Exception) as wrong:  # noqa: BLE001  all are reported at once
                failed.append(f"{said!r} with {bad!r}: {type(wrong).__name__}: {wrong}")

    assert failed == []
    assert everything(filled) == before


def test_a_claimed_flows_arguments_are_checked(filled: cs.Store) -> None:
    """`extend` and `release` check theirs before they touch the claim."""
    claimed = filled.claim("f", owner="w-1")
    before = everything(filled)
    for lease in (5, timedelta(0), -timedelta(1)):
        with pytest.raises(cs.UsageError, match="lease: expected"):
            filled.extend(claimed, lease)  # type: ignore[arg-type]

    for due_at in (NAIVE, "now", 5, LAST):
        with pytest.raises(cs.UsageError):
            filled.release(claimed, due_at=due_at)  # type: ignore[arg-type]

    assert everything(filled) == before
    assert claimed.owner == "w-1"


def test_setting_a_bad_field_leaves_the_old_one() -> None:
    """Fields are checked when they are assigned, and keep what they had."""
    made = flow(attempts=2, error="x")
    for name, bad in (
        ("status", 1),
        ("position", "0"),
        ("attempts", -1),
        ("error", 5),
        ("due_at", NAIVE),
        ("expires_at", NAIVE),
        ("wait_condition", 5),
    ):
        before = getattr(made, name)
        with pytest.raises(cs.UsageError):
            setattr(made, name, bad)

        assert getattr(made, name) == before

    awaited = wait()
    for name, bad in (("flow_ids", []), ("timeout", -timedelta(1)), ("parent_flow_id", "")):
        with pytest.raises(cs.UsageError):
            setattr(awaited, name, bad)

    assert (awaited.flow_ids, awaited.timeout, awaited.parent_flow_id) == (("a",), None, None)


@pytest.mark.parametrize(
    "forged",
    [
        [["flow", None], 1, "f"],
        [1, 2],
        {"a": 1},
        [None, None, None],
        [[], "x", "y"],
        [["flow", *[None] * 6], "x", "y"],
        [["flow", *[None] * 6], "1", "y"],
        [["flow", *[None] * 6], 1.5, "y"],
        [["flow", *[None] * 6], math.inf, "y"],
        [["flow", *[None] * 6], 10**20, "y"],
        [["flow", *[None] * 6], 1, ""],
        [["flow", *[None] * 6], 1, 5],
        [["flow", *[None] * 6], 1, "\ud800"],
        "[" * 100_000,
    ],
)
def test_forged_cursors_are_refused(filled: cs.Store, forged: object) -> None:
    """Data that no page gave is a usage error, well-formed or not."""
    text = forged if isinstance(forged, str) else json.dumps(forged)
    cursor = base64.urlsafe_b64encode(text.encode()).decode()
    with pytest.raises(cs.UsageError):
        filled.query_flows(cursor=cursor)


# --- states, sizes, partitions ------------------------------------------------------------------


def test_a_state_that_cannot_be_kept_is_refused(filled: cs.Store) -> None:
    """`EncodingError` has the path inside the state, typed or not, and nothing is written."""
    before = everything(filled)
    typed = filled.get_one("o", Order)
    typed.state.total = "much"  # type: ignore[assignment]
    with pytest.raises(cs.EncodingError, match=r"at \$\.total expected int, found str") as caught:
        filled.update(typed)

    assert caught.value.path == "$.total"
    with pytest.raises(cs.EncodingError) as caught:
        filled.create(cs.FlowSnapshot("x", state={"items": [{"price": object()}]}))

    assert caught.value.path == "$.items[0].price"
    assert everything(filled) == before


@EVERY_STORE
def test_a_record_over_the_limit_is_refused(open_more: Opener) -> None:
    """`RecordTooLargeError` has size and limit, of flows, progress and conditions alike."""
    store = open_more(max_record_bytes=KIB)
    store.create(cs.FlowSnapshot("fits", state={"text": "x" * 900}))
    before = everything(store)
    progress = cs.ForEachProgress(range(0, 2000, 2))
    for act in (
        lambda: store.create(cs.FlowSnapshot("x", state={"text": "x" * KIB})),
        lambda: store.create(cs.FlowSnapshot("x", state={}, error="x" * KIB)),
        lambda: store.save_for_each_progress("x", 0, progress),
        lambda: store.set_wait_condition(wait(flow_ids=[f"child-{n:06}" for n in range(100)])),
    ):
        with pytest.raises(
            cs.RecordTooLargeError, match="bytes long, but the store's limit is 1024"
        ) as caught:
            act()

        assert caught.value.size > caught.value.limit == KIB
        assert "'x'" in str(caught.value)
        assert "nothing was written" in str(caught.value)

    with store.session() as session:
        session.add(cs.FlowSnapshot("y", state={}))
        session.add(cs.FlowSnapshot("x", state={"text": "x" * KIB}))
        with pytest.raises(cs.RecordTooLargeError):
            session.commit()

    assert everything(store) == before


def test_record_size_includes_every_part(open_more: Opener) -> None:
    """Bytes are counted, not characters, and error text, position and children with the state."""
    store = open_more(max_record_bytes=1000)
    flow, wide = cs.FlowSnapshot("f", state={}), "\U0001f600"
    store.create(flow)
    for name, value in (("error", wide * 250), ("position", cs.FlowPosition((0,) * 500))):
        setattr(flow, name, value)
        with pytest.raises(cs.RecordTooLargeError):
            store.update(flow)

        setattr(flow, name, None if name == "error" else cs.FlowPosition())

    store.update(flow)
    with pytest.raises(cs.RecordTooLargeError):
        store.set_wait_condition(
            cs.WaitCondition("w", flow_ids=[wide * 100, wide * 128, wide * 30])
        )

    assert store.get_wait_condition("w") is None


@EVERY_STORE
def test_a_large_record_works(store: cs.Store) -> None:
    """Below the limit, which is 64 MiB by default, any size works."""
    text = "x" * (3 * KIB * KIB)
    store.create(cs.FlowSnapshot("x", state={"text": text}))
    assert store.get_one("x").state == {"text": text}


@EVERY_STORE
def test_a_result_over_256_kib_is_refused(filled: cs.Store) -> None:
    """A completion is not recorded, and the condition waits on."""
    before = everything(filled)
    for act in (filled.complete_child, filled.session().complete_child):
        with pytest.raises(cs.RecordTooLargeError, match=r"'w' .* limit is 262144") as caught:
            act("w", "b", result="x" * (256 * KIB - 1))

        assert caught.value.size == 256 * KIB + 1
        assert caught.value.limit == 256 * KIB

    assert everything(filled) == before
    result = "x" * (256 * KIB - 2)  # in JSON it has two quotes
    assert filled.complete_child("w", "b", result=result).now_satisfied
    wait = filled.get_wait_condition("w")
    assert wait is not None
    assert wait.results["b"].result == result


@EVERY_STORE
def test_a_commit_across_partitions_is_refused(open_more: Opener) -> None:
    """On every store alike, before anything is sent; a shared `{tag}` makes it one partition."""
    store = open_more(partitions=16)
    store.create(cs.FlowSnapshot("a", state={}))
    before = everything(store)
    with store.session() as session:
        for number in range(20):
            session.add(cs.FlowSnapshot(f"f-{number}", state={}))

        with pytest.raises(cs.CrossPartitionError, match=r"give ids .* the same {tag}") as caught:
            session.commit()

        assert set(caught.value.partitions) == {f"f-{number}" for number in range(20)}
        assert len(set(caught.value.partitions.values())) > 1

    elsewhere = next(
        f"w-{number}"
        for number in range(100)
        if _partition(store, f"w-{number}") != _partition(store, "a")
    )
    with store.session() as session:
        session.suspend(session.get_one("a"), cs.WaitCondition(elsewhere, flow_ids=["c"]))
        with pytest.raises(cs.CrossPartitionError):
            session.commit()

    with pytest.raises(cs.CrossPartitionError):
        store.set_wait_condition(cs.WaitCondition(elsewhere, flow_ids=["c"], parent_flow_id="a"))

    assert everything(store) == before
    with store.begin() as session:
        parent = cs.FlowSnapshot("{p}", state={})
        session.add(parent)
        session.add(cs.FlowSnapshot("child {p}", state={}))
        session.suspend(parent, cs.WaitCondition("{p}/wait", flow_ids=["elsewhere"]))
        session.save_for_each_progress("{p}", 1, cs.ForEachProgress([1]))
        session.complete_child("{p}/wait", "elsewhere")

    assert store.get_one("{p}").status is cs.FlowStatus.SUSPENDED


def _partition(store: cs.Store, any_id: str) -> int:
    from catga_store.protocol.keys import partition_of  # noqa: PLC0415  one use

    return partition_of(any_id, store._context.settings.partitions)


@EVERY_STORE
def test_progress_lives_with_its_flow(open_more: Opener) -> None:
    """With partitions a flow and all its steps go in one commit."""
    store = open_more(partitions=16)
    with store.begin() as session:
        session.add(cs.FlowSnapshot("f", state={}))
        for step in range(50):
            session.save_for_each_progress("f", step, cs.ForEachProgress([step]))

    assert len(store.list_for_each_progress("f")) == 50


@EVERY_STORE
def test_the_number_of_partitions_is_kept(open_more: Opener) -> None:
    """Opened with another number a store refuses everything, and says which it has."""
    open_more(partitions=4).create(cs.FlowSnapshot("f", state={}))
    wrong = open_more(partitions=8)
    for act in (lambda: wrong.get("f"), lambda: wrong.create(flow()), wrong.ping):
        with pytest.raises(
            cs.UsageError, match="created with 4 partitions but opened with 8"
        ) as caught:
            act()

        assert isinstance(caught.value, cs.PartitionCountError)
        assert (caught.value.expected, caught.value.actual) == (4, 8)

    assert open_more(partitions=4).count_flows() == 1


# --- what was closed ----------------------------------------------------------------------------

CLOSED_USES: list[Callable[[cs.Store], object]] = [
    lambda store: store.create(flow()),
    lambda store: store.get("f"),
    lambda store: store.get_one("f"),
    lambda store: store.get_or_create(flow()),
    lambda store: store.delete("f"),
    lambda store: store.get_many(["f"]),
    lambda store: store.query_flows(),
    lambda store: list(store.iter_flows()),
    lambda store: store.count_flows(),
    lambda store: store.set_wait_condition(wait()),
    lambda store: store.get_wait_condition("w"),
    lambda store: store.clear_wait_condition("w"),
    lambda store: store.get_timed_out_wait_conditions(),
    lambda store: store.query_wait_conditions(),
    lambda store: list(store.iter_wait_conditions()),
    lambda store: store.complete_child("w", "b"),
    lambda store: store.save_for_each_progress("f", 1, cs.ForEachProgress()),
    lambda store: store.get_for_each_progress("f", 0),
    lambda store: store.clear_for_each_progress("f", 0),
    lambda store: store.list_for_each_progress("f"),
    lambda store: store.claim_due(),
    lambda store: store.claim("f"),
    lambda store: store.session().get("f"),
    lambda store: store.session().commit(),
    lambda store: store.transact(lambda _session: None),
    lambda store: store.sweep(),
    lambda store: store.ping(),
    lambda store: store.clear(),
]


@EVERY_STORE
def test_a_closed_store_is_refused(filled: cs.Store, open_more: Opener) -> None:
    """Everything raises `StoreClosedError`; closing again does nothing; the records are there."""
    before = everything(filled)
    open_session = filled.session()
    filled.close()
    filled.close()
    assert repr(filled).endswith(" closed>")
    for use in CLOSED_USES:
        with pytest.raises(
            cs.StoreClosedError, match="has been closed and cannot be used; open the store again"
        ):
            use(filled)

    with pytest.raises(cs.StoreClosedError):
        open_session.get("f")

    assert everything(open_more()) == before


# --- stored bytes that cannot be read -----------------------------------------------------------

PLAIN = b'{"layout":1,"type":"","type_version":1,"wait":%s,"state":%s}'
WAIT = (
    b'{"id":"w","flow_ids":["a"],"any":false,"timeout_ms":null,"parent":null,"outcome":%s,'
    b'"created_ms":null,"version":0,"revision":null}'
)
CORRUPT_BODIES = [
    b"",
    b"garbage",
    b"{}",
    PLAIN % (b"null", b""),
    PLAIN % (b"null", b'{"n":'),
    PLAIN % (b"null", b"\xff"),
    PLAIN % (b"5", b"{}"),
    PLAIN % (b"{}", b"{}"),
    PLAIN % (WAIT % b"9", b"{}"),
    PLAIN % (WAIT % b'"x"', b"{}"),
    (PLAIN % (b"null", b"{}")).replace(b'"layout":1', b'"layout":99'),
    (PLAIN % (b"null", b"{}"))[:-10],
]


def damage(store: cs.Store, store_url: str, flow_id: str, body: bytes) -> None:
    """Write other bytes over a flow's body, behind the store's back."""
    if store_url.startswith("memory"):
        transport: Any = store._driver.transport  # type: ignore[attr-defined]
        transport._tables._bodies[flow_key(flow_id)] = body
    elif store_url.startswith("redis"):
        server, _, prefix = store_url.partition("?prefix=")
        with Redis.from_url(server) as client:
            key = f"{{{prefix}0}}:flow:{flow_id}"
            assert client.hexists(key, "body")
            client.hset(key, "body", body)  # type: ignore[arg-type]  bytes will do
    elif store_url.startswith("nats"):
        asyncio.run(damage_message(store_url, flow_id, body))
    else:
        edit(store_url, "UPDATE catga_flows SET body = ? WHERE id = ?", body, flow_id.encode())


async def damage_message(store_url: str, flow_id: str, body: bytes) -> None:
    """Publish a flow's message again with its own head and other bytes behind it."""
    server, _, bucket = store_url.partition("?bucket=")
    client = await nats.connect(server)
    try:
        kv = await client.jetstream().key_value(bucket)
        value = (await kv.get(f"flow.{flow_id}")).value
        assert value is not None
        head, _, _ = value.partition(b"\n")
        await kv.put(f"flow.{flow_id}", head + b"\n" + body)
    finally:
        await client.close()


def edit(store_url: str, statement: str, *values: object) -> None:
    """Change the file of a SQLite store by hand."""
    connection = sqlite3.connect(Path(store_url.removeprefix("sqlite:///")))
    with connection:
        assert connection.execute(statement, values).rowcount == 1

    connection.close()


@EVERY_STORE
@pytest.mark.parametrize("body", CORRUPT_BODIES)
def test_corrupt_body_is_reported_and_kept(store: cs.Store, store_url: str, body: bytes) -> None:
    """`CorruptRecordError` names the key; nothing deletes, claims or overwrites what it holds."""
    store.create(cs.FlowSnapshot("bad", state={"n": 1}))
    store.create(cs.FlowSnapshot("good", state={"n": 1}))
    damage(store, store_url, "bad", body)
    session = store.session()
    for read in (
        lambda: store.get("bad"),
        lambda: store.get_one("bad"),
        lambda: store.get_many(["good", "bad"]),
        lambda: store.claim("bad"),
        lambda: store.get_or_create(cs.FlowSnapshot("bad", state={})),
        lambda: session.get("bad"),
    ):
        with pytest.raises(
            cs.CorruptRecordError, match=r"flow 'bad'.*nothing was changed"
        ) as caught:
            read()

        assert tuple(caught.value.key or ()) == ("flow", "bad", 0, "")

    assert [flow.flow_id for flow in store.claim_due(limit=5)] == ["good"]
    assert {flow.flow_id for flow in store.iter_flows()} == {"bad", "good"}
    assert store.get_one("good").owner is not None
    with pytest.raises(cs.CorruptRecordError):
        store.get("bad")

    assert store.delete("bad") is True


@pytest.mark.parametrize(
    ("column", "value"),
    [("status", 99), ("status", -1), ("position", "x"), ("position", "-1"), ("position", "")],
)
@pytest.mark.stores("sqlite")
def test_corrupt_head_is_reported_and_kept(
    store: cs.Store, store_url: str, column: str, value: object
) -> None:
    """A damaged column makes that flow unreadable, and keeps no other from being claimed."""
    store.create(cs.FlowSnapshot("bad", state={}))
    store.create(cs.FlowSnapshot("good", state={}))
    edit(store_url, f"UPDATE catga_flows SET {column} = ? WHERE id = ?", value, b"bad")
    with pytest.raises(cs.CorruptRecordError, match="'bad'"):
        store.get("bad")

    with pytest.raises(cs.CorruptRecordError, match="'bad'"):
        store.claim("bad")

    assert [flow.flow_id for flow in store.claim_due(limit=5)] == ["good"]


@pytest.mark.stores("sqlite")
@pytest.mark.parametrize("body", [b"", b"{}", b'{"processed":[[2,1]],"failed":[],"last":null}'])
def test_corrupt_progress_is_reported_and_kept(
    store: cs.Store, store_url: str, body: bytes
) -> None:
    """Progress that cannot be read names its flow and step."""
    store.save_for_each_progress("f", 3, cs.ForEachProgress([1]))
    edit(store_url, "UPDATE catga_progress SET body = ?", body)
    with pytest.raises(cs.CorruptRecordError, match="progress 'f' step 3") as caught:
        store.get_for_each_progress("f", 3)

    assert tuple(caught.value.key or ()) == ("progress", "f", 3, "")
    with pytest.raises(cs.CorruptRecordError):
        store.list_for_each_progress("f")


@pytest.mark.stores("sqlite")
@pytest.mark.parametrize(
    "terms", ["", "{}", "[]", "[[], false, null, null]", "[5, false, null, null]"]
)
def test_corrupt_condition_is_reported_and_kept(
    store: cs.Store, store_url: str, terms: str
) -> None:
    """A condition that cannot be read names its correlation id."""
    store.set_wait_condition(cs.WaitCondition("w", flow_ids=["a"]))
    edit(store_url, "UPDATE catga_waits SET terms = ?", terms)
    with pytest.raises(cs.CorruptRecordError, match="wait condition 'w'") as caught:
        store.get_wait_condition("w")

    assert tuple(caught.value.key or ()) == ("wait", "w", 0, "")


@EVERY_STORE
def test_moved_clock_loses_nothing(store: cs.Store, clock: ManualClock) -> None:
    """A clock far in the future or past leaves live records readable and writable."""
    store.create(cs.FlowSnapshot("f", state={}, due_at=None))
    for days in (40_000, -80_000):
        clock.advance(timedelta(days=days))
        kept = store.get_one("f")
        store.update(kept)
        assert kept.updated_at == clock.now

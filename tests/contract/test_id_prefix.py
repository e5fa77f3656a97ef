"""Listings and counts of the flows whose id begins with some text: order, pages, other filters."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterable
from datetime import timedelta
from typing import Any

import attrs
import pytest
from marks import ONE_STORE

import catga_store as cs
from catga_store.protocol.keys import partition_of
from catga_store.testing.clock import ManualClock

SECOND = timedelta(seconds=1)

Opener = Callable[..., cs.Store]


@attrs.define
class Order:
    """A state."""

    n: int


def add(store: cs.Store, ids: Iterable[str], **fields: Any) -> None:
    """Store flows of one partition in commits of 200."""
    todo = list(ids)
    for start in range(0, len(todo), 200):
        with store.begin() as session:
            for flow_id in todo[start : start + 200]:
                session.add(cs.FlowSnapshot(flow_id, state={}, due_at=None, **fields))


def listed(store: cs.Store, limit: int = 2, **filters: Any) -> list[str]:
    """Return the ids that match, read page by page; one large page, iteration and count agree."""
    names: list[str] = []
    cursor: str | None = None
    while True:
        page = store.query_flows(limit=limit, cursor=cursor, **filters)
        names += [flow.flow_id for flow in page]
        cursor = page.cursor
        if cursor is None:
            break

    assert [flow.flow_id for flow in store.query_flows(limit=1000, **filters)] == names[:1000]
    assert [flow.flow_id for flow in store.iter_flows(**filters)] == names
    assert store.count_flows(**filters) == len(names)
    return names


IDS = (
    *(
        "a",
        "a.b",
        "a.c",
        "a*",
        "a%",
        "a_",
        "a>",
        "a b",
        "a\nb",
        "a\x00",
        "a\x00b",
        "a=",
        "a=2E",
        "A",
    ),
    *("ab", "aé", "aéa", "ae\u0301", "aß", "a\u20ac", "a\U0001f98a", "a\U0001f98ab", "a\uffff"),
    *(
        "a\U0010ffff",
        "a\x7f",
        "a\x80",
        "b",
        "a[",
        "a{t}",
        "a'",
        'a"',
        "a\\",
        "%",
        "_",
        "a/1",
        "a/10",
    ),
)
PREFIXES = (
    *("a", "a.", "a*", "a%", "a_", "a>", "a\n", "a\x00", "aé", "ae", "a\u20ac", "a\U0001f98a", "A"),
    *("a\uffff", "a\U0010ffff", "a\x7f", "a\x80", "%", "_", "a[", "a{", "a'", 'a"', "a\\", "a/1"),
    *("b", "nothing", ".", "*", "=", "a=", "a=2", "\x00", "\U0010ffff", "é", "x" * 512, "a\x80b"),
)


def test_prefix_is_compared_by_bytes(store: cs.Store) -> None:
    """Any text is a prefix, wildcards of a server too; the order is that of the UTF-8 bytes."""
    add(store, IDS)

    def wanted(prefix: str) -> list[str]:
        return sorted((one for one in IDS if one.startswith(prefix)), key=str.encode)

    # Prefixes, not listings, are compared: a difference between two listings takes minutes to show.
    wrong = [prefix for prefix in PREFIXES if listed(store, id_prefix=prefix) != wanted(prefix)]
    assert wrong == []


def test_prefix_as_long_as_an_id(store: cs.Store) -> None:
    """An id has itself as a prefix, up to the longest."""
    longest = "é" * 256
    add(store, [longest, longest[:-1]])
    assert listed(store, id_prefix=longest) == [longest]
    assert listed(store, id_prefix=longest[:-1]) == [longest[:-1], longest]


def test_order_is_by_id_whatever_the_time_of_creation(store: cs.Store, clock: ManualClock) -> None:
    """The cursor of such a listing continues after the id, not after the time."""
    for name in ("p-c", "q", "p-a", "p-d", "p-b"):
        add(store, [name])
        clock.advance(SECOND)

    assert listed(store, 1, id_prefix="p-") == ["p-a", "p-b", "p-c", "p-d"]
    store.update(store.get_one("p-b"))
    assert listed(store, 3, id_prefix="p-") == ["p-a", "p-b", "p-c", "p-d"]


def test_prefix_combines_with_every_other_filter(store: cs.Store, clock: ManualClock) -> None:
    """Status, type and times restrict what has the prefix; so does each pair of them."""
    start = clock.now
    for number in range(12):
        store.create(
            cs.FlowSnapshot(
                f"{'pq'[number % 2]}-{number:02}",
                state=Order(number) if number % 3 else {},
                status=(cs.FlowStatus.RUNNING, cs.FlowStatus.SUSPENDED)[number // 2 % 2],
                due_at=None,
            )
        )
        clock.advance(SECOND)

    stored = [store.get_one(flow.flow_id) for flow in store.iter_flows()]
    filters: dict[str, tuple[Any, Callable[[cs.FlowSnapshot[Any]], bool]]] = {
        "status": (cs.FlowStatus.RUNNING, lambda flow: flow.status is cs.FlowStatus.RUNNING),
        "state_type": ("Order", lambda flow: flow.type_name == "Order"),
        "created_after": (
            start + 3 * SECOND,
            lambda flow: flow.created_at >= start + 3 * SECOND,  # type: ignore[operator]
        ),
        "created_before": (
            start + 9 * SECOND,
            lambda flow: flow.created_at < start + 9 * SECOND,  # type: ignore[operator]
        ),
        "updated_before": (
            start + 7 * SECOND,
            lambda flow: flow.updated_at < start + 7 * SECOND,  # type: ignore[operator]
        ),
    }
    for first in filters:
        for second in filters:
            chosen = {name: filters[name] for name in (first, second)}
            wanted = sorted(
                flow.flow_id
                for flow in stored
                if flow.flow_id.startswith("p-") and all(test(flow) for _, test in chosen.values())
            )
            assert wanted
            given = {name: value for name, (value, _) in chosen.items()}
            assert listed(store, id_prefix="p-", **given) == wanted, given


def test_expired_flows_are_not_under_a_prefix(open_more: Opener, clock: ManualClock) -> None:
    """Neither listed nor counted, swept or not."""
    store = open_more(retention=cs.Retention(flows=SECOND))
    add(store, ["p-1", "p-3"], status=cs.FlowStatus.COMPLETED)
    add(store, ["p-2", "p-4", "o"])
    add(store, ["n"], status=cs.FlowStatus.COMPLETED)
    assert listed(store, id_prefix="p-") == ["p-1", "p-2", "p-3", "p-4"]
    clock.advance(SECOND)
    assert listed(store, id_prefix="p-") == ["p-2", "p-4"]
    assert listed(store, id_prefix="p-", status=cs.FlowStatus.COMPLETED) == []
    assert listed(store, id_prefix="n") == []
    store.sweep()
    assert listed(store, id_prefix="p-") == ["p-2", "p-4"]


def test_deleted_and_created_flows_under_a_prefix(store: cs.Store) -> None:
    """A flow that is deleted leaves the listing, one of its id comes into it again."""
    add(store, ["p-1", "p-2", "p-3"])
    store.save_for_each_progress("p-9", 1, cs.ForEachProgress([1]))
    store.set_wait_condition(cs.WaitCondition("p-8", flow_ids=["x"]))
    store.delete("p-2")
    assert listed(store, id_prefix="p-") == ["p-1", "p-3"]
    add(store, ["p-2"])
    assert listed(store, id_prefix="p-") == ["p-1", "p-2", "p-3"]


def test_pages_hold_together_while_flows_come_and_go(store: cs.Store) -> None:
    """What matches throughout comes once, also when the last flow of a page is deleted after it."""
    names = [f"p-{number:02}" for number in range(20)]
    add(store, names[::2])
    seen: list[str] = []
    cursor: str | None = None
    while True:
        page = store.query_flows(id_prefix="p-", limit=3, cursor=cursor)
        seen += [flow.flow_id for flow in page]
        cursor = page.cursor
        if cursor is None:
            break

        store.delete(seen[-1])
        before, after = names[names.index(seen[-1]) - 1], names[names.index(seen[-1]) + 1]
        add(store, [before, after])

    assert seen == sorted(set(seen))
    assert set(names[::2]) <= set(seen)
    # What was created before the cursor has been passed over, what came after it has not.
    assert [name for name in names[1::2] if name in seen] == ["p-05", "p-09", "p-13", "p-17"]


def test_cursor_of_another_prefix_is_refused(store: cs.Store) -> None:
    """Also one of a listing without a prefix, and the other way round."""
    add(store, ["p-1", "p-2", "q-1", "q-2"])
    plain = store.query_flows(limit=1).cursor
    prefixed = store.query_flows(limit=1, id_prefix="p-").cursor
    for cursor, prefix in ((plain, "p-"), (prefixed, "q-"), (prefixed, None)):
        with pytest.raises(cs.UsageError, match="listing with different filters"):
            store.query_flows(limit=1, cursor=cursor, id_prefix=prefix)


@pytest.mark.parametrize("partitions", [1, 4])
def test_twelve_hundred_flows_by_hundreds(open_more: Opener, partitions: int) -> None:
    """Twelve full pages and their end, among as many others; partitions are merged in order."""
    store = open_more(partitions=partitions)
    names = [f"p/{number:04}" for number in range(1200)]
    others = [f"{'oq'[number % 2]}/{number}" for number in range(300)]
    for number in range(partitions):
        part = [one for one in (*names, *others) if partition_of(one, partitions) == number]
        add(store, part)

    assert listed(store, 100, id_prefix="p/") == names
    assert listed(store, 100, id_prefix="p/01") == names[100:200]


@ONE_STORE
@pytest.mark.parametrize("prefix", ["", "x" * 513, "é" * 257, "\ud800", 5, b"p", ["p"]])
def test_bad_prefix_is_refused(store: cs.Store, prefix: Any) -> None:
    """An empty one too: it would restrict nothing, and is seldom what was meant."""
    for call in (store.query_flows, store.count_flows, lambda **f: list(store.iter_flows(**f))):
        with pytest.raises(
            cs.UsageError, match="id_prefix: expected None or a str of 1 to 512 UTF-8 bytes"
        ):
            call(id_prefix=prefix)


@ONE_STORE
def test_no_prefix_restricts_nothing(store: cs.Store, clock: ManualClock) -> None:
    """`None` is like leaving it out: the newest come first."""
    add(store, ["a"])
    clock.advance(SECOND)
    add(store, ["b"])
    assert listed(store, id_prefix=None) == ["b", "a"]

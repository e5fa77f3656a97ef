"""What parts cost on NATS, counted: requests that read, and publishes with the messages of each."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator
from typing import Any

import pytest
from interposed import Interposed

import catga_store as cs
from catga_store.protocol.conversation import Conversation
from catga_store.protocol.conversation import Request
from catga_store.stores.nats.transport import Asks
from catga_store.stores.nats.transport import Publish
from catga_store.testing.hooks import wrap_protocol

LONG = "n" * 480


class Counter(Interposed):
    """Stands between a store and its link, and counts."""

    def __init__(self) -> None:
        self.reads = 0
        self.received = 0
        """Bytes of the answers to them."""
        self.batches: list[int] = []
        """Messages of each publish; 0 for one that is not a batch."""

    def _exchange(self, transport: Request[Any]) -> Conversation[Any]:
        if isinstance(transport, Publish):
            self.batches.append(len(transport.messages) if transport.atomic else 0)
        elif isinstance(transport, Asks) and not all(one.silent for one in transport.asks):
            self.reads += 1

        answer = yield transport
        if isinstance(transport, Asks):
            self.received += sum(len(one.data) for some in answer for one in some)

        return answer

    def count(self, do: Callable[[], object]) -> tuple[int, list[int]]:
        """Count what an operation costs."""
        self.reads, self.received, self.batches = 0, 0, []
        do()
        return self.reads, self.batches


@pytest.fixture
def counter() -> Counter:
    """Make a counter."""
    return Counter()


@pytest.fixture
def url(url_of: Callable[[str], str]) -> str:
    """Return an empty store."""
    return url_of("nats")


@pytest.fixture
def store(url: str, counter: Counter) -> Iterator[cs.Store]:
    """Open a store that was used before, whose costs are counted."""
    with cs.open_store(url) as opened:
        wrap_protocol(opened, counter.attach)
        opened.ping()
        yield opened


def in_a_session(store: cs.Store, flow: cs.FlowSnapshot[Any], name: str) -> None:
    """Commit a flow and a part of it."""
    with store.begin() as session:
        session.add(flow)
        flow.state["n"] += 1
        session.add_part(cs.Part(flow.flow_id, name, b"1"))


def test_flows_without_parts(store: cs.Store, counter: Counter) -> None:
    """Cost what they did before there were parts."""
    flow = cs.FlowSnapshot("f", state={"n": 0})
    assert counter.count(lambda: store.create(flow)) == (0, [0])
    assert counter.count(lambda: store.get("f")) == (1, [])
    flow.state["n"] = 1
    assert counter.count(lambda: store.update(flow)) == (0, [0])
    assert counter.count(lambda: store.delete(flow)) == (2, [0])


def test_one_part(store: cs.Store, counter: Counter) -> None:
    """One request to read, also of many; a read and a batch to write, alone or with its flow."""
    flow = cs.FlowSnapshot("f", state={"n": 0})
    store.create(flow)
    log, part, root, record = 1, 1, 1, 1
    assert counter.count(lambda: in_a_session(store, flow, "a")) == (
        1,
        [log + part + root + record],
    )
    assert counter.count(lambda: in_a_session(store, flow, "b")) == (
        1,
        [log + part + root + record],
    )
    assert counter.count(lambda: store.put_part(cs.Part("f", "c", 1))) == (1, [log + part + root])
    assert counter.count(lambda: store.get_part("f", "a")) == (1, [])
    assert counter.count(lambda: store.get_parts("f", map(str, range(500)))) == (1, [])
    assert counter.count(lambda: store.list_parts("f")) == (1, [])
    assert counter.count(lambda: store.list_parts("f", bodies=True)) == (2, [])
    assert counter.count(lambda: store.delete_part("f", "a")) == (1, [log + part + root])
    assert counter.count(lambda: store.delete_parts("f", "")) == (1, [log + 2 * part + root])
    entry = 1
    assert counter.count(lambda: store.delete("f")) == (2, [log + record + root + entry])


def test_an_append(store: cs.Store, counter: Counter) -> None:
    """A read and a batch, with a key too, and however long the log is; a duplicate is one read."""
    store.create(cs.FlowSnapshot("f", state={"n": 0}))
    store.append("f", 0)
    log, number, entry, root, key, check, node = 1, 1, 1, 1, 1, 1, 1
    assert counter.count(lambda: store.append("f", 1)) == (1, [log + number + entry + root])
    assert counter.count(lambda: store.append("f", 1, key="k")) == (
        1,
        [log + number + entry + root + key],
    )
    assert counter.count(lambda: store.append("f", 1, key="k")) == (1, [])
    for _ in range(3):
        with store.begin() as session:
            for _ in range(200):
                session.append("f", 2)

    store.append("f", 3)
    assert counter.count(lambda: store.append("f", 4)) == (
        1,
        [log + check + number + entry + node],
    )
    root, nodes, bodies = 1, 1, 1
    assert counter.count(lambda: store.read_log("f", after=300)) == (root + nodes + bodies, [])
    assert counter.count(lambda: store.read_log("f", after=300)) == (nodes + bodies, [])
    assert counter.count(lambda: store.list_parts("f", reverse=True)) == (nodes, [])


NODE = 16 * 1024
WIDE = 1200
"""Parts with names of this length make a directory of three levels, 25 of them to a node."""


def fill(store: cs.Store, flow_id: str, begin: int, end: int) -> None:
    """Write parts whose names differ at the end, which makes inner nodes large, too."""
    for start in range(begin, end, 200):
        with store.begin() as session:
            for number in range(start, min(start + 200, end)):
                session.add_part(cs.Part(flow_id, f"{LONG}{number:06d}", b"1"))


def numbers(parts: list[Any]) -> list[int]:
    """Return the numbers of some parts."""
    return [int(part.name[-6:]) for part in parts]


def test_a_page_among_many(store: cs.Store, counter: Counter, url: str) -> None:
    """One request once the flow has been listed, wherever the page is; only the first goes level by level."""
    fill(store, "f", 0, WIDE)
    root, inner, leaf = 1, 1, 1
    with cs.open_store(url) as other:
        wrap_protocol(other, counter.attach)
        other.ping()
        assert counter.count(lambda: other.list_parts("f", limit=20)) == (root + inner + leaf, [])
        after = None
        for start in range(0, 100, 20):
            counter.reads = counter.received = 0
            page = other.list_parts("f", after=after, limit=20)
            assert numbers(page) == list(range(start, start + 20))
            assert counter.reads == 1
            assert counter.received < 4 * NODE  # the root, an inner node, and two more at most
            after = page.cursor

        counter.reads = 0
        for _ in range(2):  # the end is below another inner node, which is read the first time
            page = other.list_parts("f", limit=20, reverse=True)
            assert numbers(page) == list(range(WIDE - 1, WIDE - 21, -1))

        assert counter.reads == inner + leaf + 1
        assert counter.count(lambda: other.list_parts("f", before=f"{LONG}000001", limit=20)) == (
            1,
            [],
        )
        assert counter.count(lambda: other.list_parts("f", LONG[:3], before="n", limit=20)) == (
            1,
            [],
        )
        assert counter.count(lambda: other.list_parts("other", limit=20)) == (1, [])


def test_a_directory_that_has_changed_since_it_was_listed(
    store: cs.Store, counter: Counter, url: str
) -> None:
    """What another store wrote is listed: the nodes that were known are read again, or are gone."""
    fill(store, "f", 0, WIDE)
    with cs.open_store(url) as other:
        other.ping()
        assert numbers(other.list_parts("f", limit=1000)) == list(range(1000))
        store.delete_parts("f", f"{LONG}0000")
        assert numbers(other.list_parts("f", limit=1000)) == list(range(100, 1100))
        fill(store, "f", 50, 100)
        assert numbers(other.list_parts("f", limit=1000)) == list(range(50, 1050))
        store.delete_parts("f", "")
        assert numbers(other.list_parts("f", limit=1000)) == []
        fill(store, "f", 0, 10)
        assert numbers(other.list_parts("f", limit=1000)) == list(range(10))
        wrap_protocol(other, counter.attach)
        assert counter.count(lambda: other.list_parts("f")) == (1, [])

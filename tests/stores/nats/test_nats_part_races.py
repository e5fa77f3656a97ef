"""Parts on NATS while something comes in between: after one request of an operation, before its next."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator
from typing import Any

import pytest
from interposed import Interposed
from late import Late

import catga_store as cs
from catga_store.protocol.conversation import Conversation
from catga_store.protocol.conversation import Request
from catga_store.stores.nats.transport import Asks
from catga_store.stores.nats.transport import Publish
from catga_store.testing.hooks import wrap_protocol

LONG = "n" * 480
"""Names of this length make a directory of a hundred parts more than its root."""


class Between(Interposed):
    """Stands between a store and its link, and lets something happen once, before a request."""

    def __init__(self) -> None:
        self._kind: type = Publish
        self._left = 0
        self._do: Callable[[], object] | None = None
        self.purges = True
        """Whether what is asked without a reply arrives."""

    def before(self, kind: type, number: int, do: Callable[[], object]) -> None:
        """Do this before the next publish or request, or before one that comes later."""
        self._kind, self._left, self._do = kind, number, do

    @property
    def is_done(self) -> bool:
        """Whether it happened."""
        return self._do is None

    def _exchange(self, transport: Request[Any]) -> Conversation[Any]:
        if isinstance(transport, self._kind) and self._do is not None:
            self._left -= 1
            if not self._left:
                do, self._do = self._do, None
                do()

        if (
            not self.purges
            and isinstance(transport, Asks)
            and all(one.silent for one in transport.asks)
        ):
            return tuple(() for _ in transport.asks)

        return (yield transport)


@pytest.fixture(params=["nats", "nats-cluster"])
def url(request: pytest.FixtureRequest, url_of: Callable[[str], str]) -> str:
    """Return an empty store on one server, and on three."""
    return url_of(request.param)


@pytest.fixture
def between() -> Between:
    """Make what lets something happen."""
    return Between()


@pytest.fixture
def store(url: str, between: Between) -> Iterator[cs.Store]:
    """Open the store between whose requests something happens."""
    with cs.open_store(url) as opened:
        wrap_protocol(opened, between.attach)
        opened.ping()
        yield opened


@pytest.fixture
def other(url: str, store: cs.Store) -> Iterator[cs.Store]:
    """Open the store that comes in between."""
    with cs.open_store(url) as opened:
        opened.ping()
        yield opened


AFTER = range(6)
"""Requests: more than an operation makes after the one whose reply was lost."""


@pytest.fixture
def late(url: str) -> Iterator[tuple[cs.Store, Late]]:
    """Open a store whose batches may arrive late."""
    with cs.open_store(url) as opened:
        late = Late()
        wrap_protocol(opened, late.attach)
        opened.ping()
        yield opened, late


@pytest.mark.parametrize("after", AFTER)
def test_an_append_that_arrives_late_is_no_duplicate(
    late: tuple[cs.Store, Late], after: int
) -> None:
    """What the next attempt reads may be its own entry, written between two of its requests."""
    store, between = late
    store.create(cs.FlowSnapshot("f", state={}))
    between.delay(after)
    appended = store.append("f", b"x", key="k")
    assert appended == cs.Appended("f", "log", 1, "k", False)
    assert len(store.read_log("f")) == 1
    assert store.append("f", b"x", key="k").duplicate


@pytest.mark.parametrize("after", AFTER)
def test_a_commit_that_arrives_late_says_what_it_did(
    late: tuple[cs.Store, Late], after: int
) -> None:
    """Its new flow is not one that was there before, nor is its part, and what it deleted was there."""
    store, between = late
    store.create(cs.FlowSnapshot("f", state={}))
    gone = cs.Part("f", "gone", b"x")
    store.put_part(gone)
    between.delay(after)
    with store.begin() as session:
        session.add(cs.FlowSnapshot("g", state={}))
        session.add_part(cs.Part("f", "kept", b"x"), exists="keep")
        session.delete_part(gone)
        session.append("f", b"x", key="k")

    receipt = session.receipt
    assert receipt is not None
    assert receipt.kept == ()
    assert [one.duplicate for one in receipt.entries] == [False]
    assert store.get_one("g").version == 1
    assert names(store) == ["kept", "log/"]


@pytest.mark.parametrize("after", AFTER)
def test_a_removal_that_arrives_late_says_how_many(late: tuple[cs.Store, Late], after: int) -> None:
    """Its next attempt finds no part."""
    store, between = late
    with store.begin() as session:
        for number in range(150):
            session.add_part(cs.Part("f", f"{number:04d}{LONG}", b"x"))

    between.delay(after)
    assert store.delete_parts("f", "0") == 150
    assert names(store) == []


def fill(store: cs.Store, count: int) -> None:
    """Write parts with long names."""
    with store.begin() as session:
        for number in range(count):
            session.add_part(cs.Part("f", f"{number:04d}{LONG}", b"x"))


def names(store: cs.Store) -> list[str]:
    """List the parts."""
    return [part.name[:4] for part in store.list_parts("f", limit=1000)]


@pytest.mark.parametrize("count", [3, 150])
@pytest.mark.parametrize("again", [False, True])
def test_a_flow_that_is_deleted_before_its_part_is_written(
    store: cs.Store, other: cs.Store, between: Between, count: int, *, again: bool
) -> None:
    """The part comes after the deletion: it is there, and nothing else is."""
    store.create(cs.FlowSnapshot("f", state={}))
    fill(store, count)

    def delete() -> None:
        other.delete("f")
        if again:
            other.create(cs.FlowSnapshot("f", state={}))
            fill(other, 1)

    between.before(Publish, 1, delete)
    store.put_part(cs.Part("f", "new", b"new"))
    assert between.is_done
    assert names(other) == names(store) == [*(["0000"] if again else []), "new"]
    part = other.get_part("f", "new")
    assert part is not None
    assert part.version == 1
    between.before(Publish, 1, lambda: other.delete_parts("f", ""))
    assert store.append("f", 1).sequence == 1
    assert [entry.body for entry in other.read_log("f")] == [1]


def test_a_flow_that_is_deleted_and_not_purged_yet(
    url: str, store: cs.Store, between: Between
) -> None:
    """No message says so but the root: the part is written into the next life all the same."""
    deaf = Between()
    deaf.purges = False
    with cs.open_store(url) as other:
        wrap_protocol(other, deaf.attach)
        store.create(cs.FlowSnapshot("f", state={}))
        fill(store, 150)
        between.before(Publish, 1, lambda: other.delete("f"))
        store.put_part(cs.Part("f", "new", b"new"))
        assert between.is_done
        assert names(other) == names(store) == ["new"]
        store.sweep()
        assert names(other) == ["new"]


def test_the_first_part_before_its_flow_is_deleted(
    store: cs.Store, other: cs.Store, between: Between
) -> None:
    """The deletion has seen that there are no parts; they go all the same."""
    store.create(cs.FlowSnapshot("f", state={"n": 1}))
    held = other.get_one("f")
    between.before(Publish, 1, lambda: other.put_part(cs.Part("f", "p", 1)))
    store.delete("f")
    assert between.is_done
    assert names(other) == []
    assert other.get_part("f", "p") is None
    store.create(cs.FlowSnapshot("f", state={"n": 2}))
    assert other.get_part("f", "p") is None
    with pytest.raises(cs.ConflictError):
        other.update(held)


def test_the_first_part_leaves_its_flow_as_it_is(store: cs.Store, other: cs.Store) -> None:
    """Version and revision stay, so whoever holds the flow can write it."""
    held = cs.FlowSnapshot("f", state={"n": 1})
    store.create(held)
    other.put_part(cs.Part("f", "p", 1))
    assert other.get_one("f").revision == held.revision
    held.state = {"n": 2}
    store.update(held)
    assert held.version == 2


def test_an_orphan_whose_flow_comes_before_it_is_swept(url: str, between: Between) -> None:
    """It belongs to the flow."""
    short = cs.Retention(waits=cs.Retention().waits / 10**9)
    with cs.open_store(url, retention=short) as store, cs.open_store(url) as other:
        wrap_protocol(store, between.attach)
        store.put_part(cs.Part("f", "p", 1))
        between.before(Publish, 1, lambda: other.create(cs.FlowSnapshot("f", state={})))
        store.sweep()
        assert between.is_done
        assert names(other) == ["p"]
        other.delete("f")
        assert names(store) == []


def test_two_appends_at_one_time(store: cs.Store, other: cs.Store, between: Between) -> None:
    """The second one counts on; with the same key it is the duplicate."""
    for key in (None, "k"):
        between.before(Publish, 1, lambda key=key: other.append("f", "theirs", key=key))
        mine = store.append("f", "mine", key=key)
        assert between.is_done
        assert (mine.sequence, mine.duplicate) == ((2, False) if key is None else (3, True))

    assert [entry.body for entry in store.read_log("f")] == ["theirs", "mine", "theirs"]


def test_a_part_that_is_guarded_when_its_flow_goes(
    store: cs.Store, other: cs.Store, between: Between
) -> None:
    """Its message is there still, perhaps; the commit that relies on it is refused."""
    store.create(cs.FlowSnapshot("f", state={}))
    store.put_part(cs.Part("f", "p", 1))
    read = store.get_part("f", "p")
    assert read is not None
    between.before(Publish, 1, lambda: other.delete("f"))
    with store.session() as session:
        session.require_unchanged(read)
        session.add(cs.FlowSnapshot("g", state={}))
        with pytest.raises(cs.StalePartError):
            session.commit()

    assert between.is_done
    assert store.get("g") is None


@pytest.mark.parametrize("number", [1, 2, 3])
@pytest.mark.parametrize("bodies", [False, True])
def test_a_directory_that_changes_while_it_is_read(
    store: cs.Store, other: cs.Store, between: Between, number: int, *, bodies: bool
) -> None:
    """What stays is listed once, whether nodes are split or removed before they are read."""
    fill(store, 150)

    def split() -> None:
        with other.begin() as session:
            for one in range(150):
                session.add_part(cs.Part("f", f"{one:04d}{LONG[1:]}", b"x"))

    between.before(Asks, number, split)
    found = store.list_parts("f", limit=1000, bodies=bodies)
    seen = [part.name for part in found]
    stays = [f"{one:04d}{LONG}" for one in range(150)]
    assert seen == sorted(set(seen))
    assert set(stays) <= set(seen)
    between.before(Asks, number, lambda: other.delete_parts("f", "00"))
    seen = [part.name for part in store.list_parts("f", limit=1000, bodies=bodies)]
    assert {name for name in stays if name.startswith("01")} <= set(seen)
    assert seen == sorted(set(seen))


def test_a_known_directory_that_changes_while_it_is_read(
    store: cs.Store, other: cs.Store, between: Between
) -> None:
    """What was known leads to nodes that are right or gone, also if that changes again: what stays is listed."""
    fill(store, 150)
    stays = [f"{one:04d}" for one in range(150)]
    assert names(store) == stays

    def split() -> None:
        with other.begin() as session:
            for one in range(150):
                session.add_part(cs.Part("f", f"{one:04d}{LONG[1:]}", b"x"))

        between.before(Asks, 1, lambda: other.delete_parts("f", "00"))

    between.before(Asks, 1, split)
    seen = names(store)
    assert between.is_done  # the new nodes were asked for, and have changed before that
    assert seen == sorted(seen)
    assert set(stays[100:]) <= set(seen) <= set(stays)
    assert names(store) == sorted(2 * stays[100:])

    def again() -> None:
        other.delete_parts("f", "")
        fill(other, 150)

    between.before(Asks, 1, again)
    assert names(store) == stays
    assert between.is_done

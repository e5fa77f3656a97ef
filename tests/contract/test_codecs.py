"""Stores with codecs: what they keep is what they would keep without, and nobody can exchange it."""

from __future__ import annotations

import logging
import sys
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest
from tampered import Place
from tampered import Tampered
from tampered import stored_bodies

import catga_store as cs
from catga_store.codec.bodies.frames import trail_of
from catga_store.protocol.conversation import ask
from catga_store.protocol.keys import Key
from catga_store.protocol.keys import entry_key
from catga_store.protocol.keys import flow_key
from catga_store.protocol.keys import part_key
from catga_store.protocol.keys import progress_key
from catga_store.protocol.keys import version_key
from catga_store.protocol.keys import wait_key
from catga_store.protocol.requests import Identify
from catga_store.testing.clock import ManualClock

KEYS = cs.Keys({"new": b"n" * 32, "old": b"o" * 32}, current="new")
SECRET = "4111-1111"
BOTH = [cs.Zstd(min_bytes=64), cs.Encrypt(KEYS)]


@dataclass
class Card:
    """A typed state."""

    number: str
    cents: int = 0


def fill(store: cs.Store) -> None:
    """Write a record of every kind, most of them twice."""
    for name in ("f", "g"):
        flow = cs.FlowSnapshot(name, state=Card(f"{SECRET} of {name} " * 9), due_at=None)
        store.create(flow)
        for cents in (1, 2):
            flow.state.cents = cents
            store.update(flow)

        store.put_part(cs.Part(name, "p", f"{SECRET} bytes".encode()))
        store.save_for_each_progress(name, 1, cs.ForEachProgress([1, 2], [3]))
        store.append(name, {"card": SECRET}, key="k1")

    store.put_part(cs.Part("f", "q", {"card": SECRET}))
    store.put_part(cs.Part("f", "q", {"card": SECRET + "!"}), exists="overwrite")
    store.append("f", {"card": SECRET}, key="k2")
    store.save_for_each_progress("f", 2, cs.ForEachProgress([1]))
    store.set_wait_condition(cs.WaitCondition("w", flow_ids=["c1", "c2"]))
    store.complete_child("w", "c1", result={"card": SECRET})
    store.complete_child("w", "c2", success=False, error=f"no {SECRET}")
    store.complete_child("pending", "c1", result=SECRET)


READERS: dict[Place, Callable[[cs.Store], object]] = {
    (flow_key("f"), ""): lambda store: store.get_one("f", Card).state,
    (flow_key("g"), ""): lambda store: store.get_one("g").state,
    (version_key("f", 1), ""): lambda store: _version(store, 1),
    (version_key("f", 2), ""): lambda store: _version(store, 2),
    (part_key("f", "p"), ""): lambda store: _part(store, "f", "p"),
    (part_key("g", "p"), ""): lambda store: _part(store, "g", "p"),
    (part_key("f", "q"), ""): lambda store: _part(store, "f", "q"),
    (entry_key("f", "log", 1), ""): lambda store: store.read_log("f", limit=1)[0].body,
    (entry_key("f", "log", 2), ""): lambda store: store.read_log("f", after=1)[0].body,
    (entry_key("g", "log", 1), ""): lambda store: store.read_log("g")[0].body,
    (progress_key("f", 1), ""): lambda store: _progress(store, "f", 1),
    (progress_key("f", 2), ""): lambda store: _progress(store, "f", 2),
    (progress_key("g", 1), ""): lambda store: _progress(store, "g", 1),
    (wait_key("w"), "c1"): lambda store: _results(store)["c1"],
    (wait_key("w"), "c2"): lambda store: _results(store)["c2"],
}


def _version(store: cs.Store, version: int) -> object:
    flow = store.get("f", Card, version=version)
    assert flow is not None
    return flow.state


def _part(store: cs.Store, flow_id: str, name: str) -> object:
    part = store.get_part(flow_id, name)
    assert part is not None
    return part.body


def _progress(store: cs.Store, flow_id: str, step: int) -> object:
    progress = store.get_for_each_progress(flow_id, step)
    assert progress is not None
    return progress.processed_indices, progress.failed_indices


def _results(store: cs.Store) -> Any:
    wait = store.get_wait_condition("w")
    assert wait is not None
    return wait.results


def all_read(store: cs.Store) -> dict[Place, object]:
    """Read everything that `fill` has written."""
    return {place: read(store) for place, read in READERS.items()}


# what a store decides -----------------------------------------------------------------------------


def test_everything_is_stored_through_codecs(open_more: Callable[..., cs.Store]) -> None:
    """Every kind of body is read as it was written, and lies encrypted in the store."""
    store = open_more(codecs=BOTH, history=3)
    fill(store)
    read = all_read(store)
    assert read[flow_key("f"), ""] == Card(f"{SECRET} of f " * 9, 2)
    assert read[version_key("f", 1), ""] == Card(f"{SECRET} of f " * 9, 0)
    assert read[part_key("f", "p"), ""] == f"{SECRET} bytes".encode()
    assert type(read[part_key("f", "p"), ""]) is bytes
    assert read[part_key("f", "q"), ""] == {"card": SECRET + "!"}
    assert read[entry_key("f", "log", 2), ""] == {"card": SECRET}
    assert read[progress_key("f", 1), ""] == ({1, 2}, {3})
    assert read[wait_key("w"), "c2"] == cs.ChildResult(success=False, error=f"no {SECRET}")
    stored = stored_bodies(store)
    assert stored.keys() >= READERS.keys()
    assert {trail_of(body) for body in stored.values()} == {"aes256gcm=new", "zstd,aes256gcm=new"}
    assert not [place for place, body in stored.items() if SECRET.encode() in body]

    # Without the codecs nothing is read, and what needs no body still is.
    other = open_more(history=3)
    for reader in READERS.values():
        with pytest.raises(cs.CodecMissingError, match="aes256gcm=new"):
            reader(other)

    assert other.count_flows() == 2
    assert [flow.version for flow in other.query_flows()] == [3, 3]
    assert [part.name for part in other.list_parts("f", "p")] == ["p"]


def test_a_body_stays_readable_when_only_its_head_is_written(
    open_more: Callable[..., cs.Store], clock: ManualClock
) -> None:
    """Claims, releases, extensions and postponed flows: the body is bound to the version it then has."""
    store = open_more(codecs=BOTH, history=2)
    store.create(cs.FlowSnapshot("f", state=Card(SECRET)))
    (flow,) = store.claim_due(Card, lease=timedelta(seconds=10))
    store.extend(flow, timedelta(seconds=20))
    assert store.get_one("f", Card).state == Card(SECRET)
    flow.state.cents = 7
    store.update(flow)
    store.release(flow)
    clock.advance(timedelta(seconds=1))
    (flow,) = store.claim_due(Card, lease=timedelta(seconds=10))
    assert (flow.state.cents, flow.version) == (7, 5)
    assert store.get("f", Card, version=4).state.cents == 7  # type: ignore[union-attr]
    session = store.session()
    mine = session.get_one("f", Card)
    session.suspend(mine, cs.WaitCondition("f/w", flow_ids=["c"]))
    session.commit()
    store.complete_child("f/w", "c", result=SECRET)
    (flow,) = store.claim_due(Card)
    assert flow.wait_condition is not None
    assert flow.wait_condition.results["c"].result == SECRET
    assert store.fork("f", "fork").state == {"number": SECRET, "cents": 7}
    assert store.get_one("fork", Card).state.cents == 7


def test_bodies_are_bound_to_one_store_of_a_kind(
    open_more: Callable[..., cs.Store],
    store_url: str,
    url_of: Callable[[str], str],
    request: pytest.FixtureRequest,
) -> None:
    """Two files, prefixes or buckets bind differently; the same one, opened again, binds alike."""
    kind: str = request.node.callspec.params["store_url"]
    url = store_url.replace("flows.db", "other.db") if kind == "sqlite" else url_of(kind)
    first, again = open_more(codecs=BOTH), open_more(codecs=BOTH)
    with cs.open_store(url, codecs=BOTH) as other:
        texts = [store._driver.run(ask(Identify())) for store in (first, again, other)]

    assert texts[0] == texts[1] != texts[2]
    assert all(texts)


@pytest.mark.anyio
async def test_async_stores_have_codecs(open_more_async: Callable[..., cs.AsyncStore]) -> None:
    """They read and write what blocking stores do, and refuse the same."""
    store, plain = open_more_async(codecs=BOTH), open_more_async()
    await store.create(cs.FlowSnapshot("f", state=Card(SECRET * 50)))
    async with store.begin() as session:
        (await session.get_one("f", Card)).state.cents = 5
        session.append("f", SECRET.encode())

    assert (await store.get_one("f", Card)).state.cents == 5
    assert (await store.read_log("f"))[0].body == SECRET.encode()
    with pytest.raises(cs.CodecMissingError):
        await plain.get("f")


@pytest.mark.parametrize("large", [False, True])
def test_a_session_knows_what_has_changed(
    open_more: Callable[..., cs.Store], *, large: bool
) -> None:
    """Each encryption makes other bytes, and yet what is only read is not written."""
    store = open_more(codecs=BOTH)
    state = {"data": uuid.uuid4().hex * 60_000 if large else SECRET}
    store.create(cs.FlowSnapshot("f", state=state))
    store.put_part(cs.Part("f", "p", state))
    with store.session() as session:
        flow, part = session.get_one("f"), session.get_part("f", "p")
        assert part is not None
        assert not session.dirty
        session.commit()
        flow.state["more"] = 1
        part.body["more"] = 1
        session.commit()

    assert store.get_one("f").version == 2
    assert store.get_one("f").state == {**state, "more": 1}


# what codecs decide -------------------------------------------------------------------------------


def opened(name: str, **options: Any) -> cs.Store:
    """Open a memory store of this name with both codecs."""
    options.setdefault("codecs", BOTH)
    return cs.MemoryStore(name, history=3, **options)


@pytest.fixture
def name() -> str:
    """Return a name for memory stores that share records."""
    return uuid.uuid4().hex


@pytest.fixture(scope="module")
def filled() -> str:
    """Return the name of a store that nobody writes to any more."""
    name = uuid.uuid4().hex
    fill(opened(name))
    _filled.append(opened(name))  # keeps the records
    return name


_filled: list[cs.Store] = []


@pytest.mark.parametrize("place", READERS, ids=str)
def test_no_body_passes_for_another(filled: str, place: Place) -> None:
    """Bodies of other flows, versions, parts, entries, steps, results and kinds are refused by name."""
    store = opened(filled)
    bodies = stored_bodies(store)
    attack = Tampered(store)
    own = READERS[place](store)
    for other, body in bodies.items():
        attack.bodies = {place: body}
        if other == place:
            assert READERS[place](store) == own
            continue

        refusal = "cannot be decrypted with the key|as a child's result"
        with pytest.raises(cs.CorruptRecordError, match=refusal) as caught:
            READERS[place](store)

        key = flow_key("f") if place[0].name.startswith("//") else place[0]
        assert caught.value.key is not None
        assert Key(*caught.value.key) in (key, place[0])


@pytest.mark.parametrize("place", READERS, ids=str)
def test_a_damaged_body_is_refused_by_name(filled: str, place: Place) -> None:
    """Cut at its beginning, its middle and its end, or one byte changed there; every other is read."""
    store = opened(filled)
    body = stored_bodies(store)[place]
    attack = Tampered(store)
    for at in (0, 3, len(body) // 2, len(body) - 1):
        changed = body[:at] + bytes([body[at] ^ 1]) + body[at + 1 :]
        for damaged in (body[:at], changed):
            attack.bodies = {place: damaged}
            for other, read in READERS.items():
                if (other[0].id, other[0].kind) != (place[0].id, place[0].kind):
                    read(store)

            with pytest.raises(cs.CorruptRecordError, match="cannot be read") as caught:
                READERS[place](store)

            assert place[0].id in str(caught.value)


def test_a_claim_passes_over_a_damaged_body(name: str, clock: ManualClock) -> None:
    """Listings show its flow; the flows beside it are claimed."""
    store = opened(name, clock=clock)
    for flow_id in ("bad", "good"):
        store.create(cs.FlowSnapshot(flow_id, state={"card": SECRET}))

    place = flow_key("bad"), ""
    body = stored_bodies(store)[place]
    attack = Tampered(store)
    attack.bodies = {place: body[:-1] + bytes([body[-1] ^ 1])}
    clock.advance(timedelta(seconds=1))
    assert [flow.flow_id for flow in store.claim_due(limit=5)] == ["good"]
    assert {flow.flow_id for flow in store.query_flows()} == {"bad", "good"}
    attack.bodies = {}
    assert store.get_one("bad").state == {"card": SECRET}


def test_no_body_of_another_store_passes(filled: str, name: str) -> None:
    """The same records under the same ids and keys are not exchanged between stores."""
    other = opened(name)
    fill(other)
    store = opened(filled)
    attack = Tampered(store)
    attack.bodies = stored_bodies(other)
    for reader in READERS.values():
        with pytest.raises(cs.CorruptRecordError):
            reader(store)


def test_an_older_version_under_the_current_head_is_refused(name: str) -> None:
    """Also of an incarnation that was deleted, and of a part that is overwritten."""
    store = opened(name)
    store.create(cs.FlowSnapshot("f", state={"n": 1}))
    part = cs.Part("f", "p", b"1")
    store.put_part(part, exists="overwrite")
    first = stored_bodies(store)
    store.delete("f")
    store.create(cs.FlowSnapshot("f", state={"n": 1}))
    store.put_part(cs.Part("f", "p", b"2"), exists="overwrite")
    attack = Tampered(store)
    attack.bodies = first
    for read in (lambda: store.get("f"), lambda: store.get_part("f", "p")):
        with pytest.raises(cs.CorruptRecordError):
            read()


def test_what_cannot_be_read_stops_nothing_else(
    name: str, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Claims pass over it and listings show it; once its key is back it is as it was."""
    store = opened(name, clock=clock)
    old = opened(name, clock=clock, codecs=[cs.Encrypt({"lost": b"l" * 32})])
    old.create(cs.FlowSnapshot("bad", state={"card": SECRET}))
    old.put_part(cs.Part("bad", "p", b"x"))
    clock.advance(timedelta(seconds=1))
    store.create(cs.FlowSnapshot("good", state={}))
    clock.advance(timedelta(seconds=1))
    with caplog.at_level(logging.WARNING):
        assert [flow.flow_id for flow in store.claim_due(limit=5)] == ["good"]

    assert "'lost'" in caplog.text
    assert SECRET not in caplog.text
    assert {flow.flow_id for flow in store.iter_flows()} == {"bad", "good"}
    assert [part.name for part in store.list_parts("bad")] == ["p"]
    assert [version.version for version in store.list_versions("bad")] == [1]
    assert store.list_versions("bad")[0].size > 50
    for call in (
        lambda: store.get("bad"),
        lambda: store.claim("bad"),
        lambda: store.fork("bad", "x"),
        lambda: store.list_parts("bad", bodies=True),
        lambda: store.cancel_flow("bad", "no"),
    ):
        with pytest.raises(cs.CodecMissingError, match="'lost'"):
            call()

    assert store.get("x") is None
    assert store.delete("good") is True
    clock.advance(timedelta(minutes=1))
    (flow,) = old.claim_due()
    assert flow.state == {"card": SECRET}
    assert store.delete("bad") is True


def test_a_tenant_whose_key_is_destroyed(name: str) -> None:
    """Nothing of it can be read or written any more, heads excepted; other tenants do not notice."""
    kept = {"a": cs.Keys({"a": b"a" * 32}), "b": cs.Keys({"b": b"b" * 32})}
    store = opened(
        name, codecs=[cs.Encrypt(key_for=lambda flow_id: kept.get(flow_id.partition("/")[0]))]
    )
    for tenant in ("a", "b"):
        store.create(cs.FlowSnapshot(f"{tenant}/1", state={"card": SECRET}, due_at=None))
        store.append(f"{tenant}/1", SECRET.encode())

    flow = store.get_one("a/1")
    del kept["a"]
    for call in (lambda: store.get("a/1"), lambda: store.read_log("a/1")):
        with pytest.raises(cs.CodecMissingError, match="destroyed"):
            call()

    flow.state = {}
    with pytest.raises(cs.StoreConfigError, match=r"flow 'a/1'.*nothing was sent"):
        store.update(flow)

    assert store.get_one("b/1").state == {"card": SECRET}
    assert {one.flow_id for one in store.query_flows()} == {"a/1", "b/1"}
    assert store.delete("a/1") is True


def test_plain_bodies_are_read_only_while_they_are_accepted(name: str) -> None:
    """A store that was not encrypted is opened with `accept_plain`; what is written then is encrypted."""
    plain = opened(name, codecs=None)
    fill(plain)
    store = opened(name)
    for reader in READERS.values():
        with pytest.raises(cs.CorruptRecordError, match="accept_plain"):
            reader(store)

    migrating = opened(name, codecs=[cs.Zstd(), cs.Encrypt(KEYS, accept_plain=True)])
    assert all_read(migrating) == all_read(plain)
    flow = migrating.get_one("f", Card)
    flow.state.cents = 9
    migrating.update(flow)
    assert store.get_one("f", Card).state.cents == 9


def test_compression_alone_reads_what_was_stored_before(name: str) -> None:
    """And a claim does not write the body again, because nothing is bound to the version."""
    fill(opened(name, codecs=None))
    store = opened(name, codecs=[cs.Zstd(min_bytes=10)])
    assert all_read(store) == all_read(opened(name, codecs=None))
    store.create(cs.FlowSnapshot("due", state={"text": "x" * 5000}))
    before = stored_bodies(store)[flow_key("due"), ""]
    assert len(before) < 200
    assert [flow.flow_id for flow in store.claim_due()] == ["due"]
    assert stored_bodies(store)[flow_key("due"), ""] is before


@pytest.mark.parametrize("codecs", [None, BOTH], ids=["plain", "both"])
def test_bytes_that_look_like_a_stored_body_are_kept(name: str, codecs: Any) -> None:
    """Whatever bytes a part or an entry has, they come back: also those of a body that is stored."""
    store = opened(name, codecs=codecs)
    odd = [
        b"\xf5cs",
        b"\xf5cs\0",
        b"\xf5cs\0\xf5cs\0x",
        b"\xf5cs\1\0\4zstdx",
        b"\xf5cs\1\0\0{}",
        b"",
    ]
    for number, data in enumerate(odd, 1):
        store.put_part(cs.Part("f", f"p{number}", data))
        store.append("f", data)
        part = store.get_part("f", f"p{number}")
        assert part is not None
        assert part.body == data
        assert store.put_part(part) is False
        part.body += b"!"
        assert store.put_part(part) is True
        assert _part(store, "f", f"p{number}") == data + b"!"

    assert [entry.body for entry in store.read_log("f")] == odd
    accepting = opened(name, codecs=[cs.Zstd(), cs.Encrypt(KEYS, accept_plain=True)])
    assert [entry.body for entry in accepting.read_log("f")] == odd


def test_no_message_shows_a_value(name: str, caplog: pytest.LogCaptureFixture) -> None:
    """What does not fit, or cannot be kept, is named without its place and its value."""
    store = opened(name)
    store.create(cs.FlowSnapshot("f", state={"number": {"alice": 4111}, "cents": 4111}))
    calls: list[Callable[[], object]] = [
        lambda: store.get("f", Card),
        lambda: store.create(cs.FlowSnapshot("g", state={"alice": {1: 4111}})),
        lambda: store.put_part(cs.Part("f", "p", {"alice": (4111,)})),
        lambda: store.append("f", {"alice": {4111}}),
        lambda: store.complete_child("w", "c", result={"alice": {4111: 1}}),
        lambda: store.session().append("f", {"alice": {4111: 1}}),
        lambda: store.session().complete_child("w", "c", result={"alice": {4111: 1}}),
    ]
    for call in calls:
        with caplog.at_level(logging.DEBUG), pytest.raises(cs.UsageError) as caught:
            call()

        error: BaseException | None = caught.value
        assert "encrypts" in str(error)
        while error is not None:
            assert "4111" not in f"{error} {vars(error)}"
            assert "alice" not in f"{error} {vars(error)}"
            error = error.__cause__ or error.__context__

    store.claim_due(Card)
    assert "4111" not in caplog.text
    assert "alice" not in caplog.text


def test_without_codecs_nothing_of_them_is_called() -> None:
    """A store that has none runs as if there were none."""
    called: set[str] = set()

    def note(frame: Any, _event: str, _argument: object) -> None:
        called.add(f"{frame.f_globals.get('__name__')}.{frame.f_code.co_name}")

    with cs.MemoryStore(history=3) as store:
        sys.setprofile(note)
        try:
            fill(store)
            all_read(store)
            store.claim_due()
            store.fork("f", "h")
        finally:
            sys.setprofile(None)

    ours = ("catga_store.core.bodies", "catga_store.codec.bodies")
    assert not [one for one in called if one.startswith(ours)]
    assert "catga_store.core.records.update" in called


def test_the_error_of_a_flow_can_be_hidden(
    open_more: Callable[..., cs.Store], clock: ManualClock
) -> None:
    """It is read with its flow, its versions and in listings, and lies encrypted in the store."""
    hiding = [cs.Encrypt(KEYS, hide_error=True)]
    store = open_more(codecs=hiding, history=2)
    flow = cs.FlowSnapshot("f", state={"n": 1}, error=f"declined: {SECRET}")
    store.create(flow)
    with store.begin() as session:
        session.get_one("f").state["n"] = 2

    clock.advance(timedelta(seconds=1))
    (flow,) = store.claim_due(lease=timedelta(seconds=5))
    assert flow.error == f"declined: {SECRET}"
    flow.state["n"] = 3
    store.update(flow)
    store.release(flow)
    (listed,) = store.iter_flows()
    assert listed.error == flow.error == store.get_one("f").error
    assert {one.error for one in store.list_versions("f")} == {flow.error}
    with pytest.raises(cs.NotSupportedError, match="error_contains"):
        store.query_flows(error_contains="declined")

    plain = open_more(codecs=[cs.Encrypt(KEYS)], history=2)
    for error in (plain.get_one("f").error, next(plain.iter_flows()).error):
        assert error is not None
        assert error.startswith("encrypted error: ")
        assert SECRET not in error

    lost = open_more(codecs=[cs.Encrypt({"x": b"x" * 32}, hide_error=True)])
    assert next(lost.iter_flows()).error == "an encrypted error that cannot be read"
    flow = store.get_one("f")
    flow.error = None
    store.update(flow)
    assert next(lost.iter_flows()).error is None
    assert store.get_one("f").version == 6


def test_a_claim_compresses_nothing_again(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what binds the body is done again, and the next write compresses as before."""
    calls: list[int] = []
    encode = cs.Zstd.encode

    def counted(self: cs.Zstd, data: bytes, place: cs.BodyPlace) -> tuple[str, bytes] | None:
        calls.append(len(data))
        return encode(self, data, place)

    monkeypatch.setattr(cs.Zstd, "encode", counted)
    store = opened(name)
    store.create(cs.FlowSnapshot("f", state={"text": "x" * 500}))
    store.create(cs.FlowSnapshot("short", state={}))
    del calls[:]
    for _ in range(2):
        for flow in store.claim_due(limit=2):
            store.release(flow)

    assert not calls
    stored = stored_bodies(store)
    assert trail_of(stored[flow_key("f"), ""]) == "zstd,aes256gcm=new"
    assert trail_of(stored[flow_key("short"), ""]) == "aes256gcm=new"
    (flow,) = [one for one in store.claim_due(limit=2) if one.flow_id == "f"]
    assert flow.state == {"text": "x" * 500}
    flow.state["text"] = "y" * 500
    store.update(flow)
    assert len(calls) == 1
    only = opened(name, codecs=[cs.Encrypt(KEYS)])
    only.release(flow)
    assert trail_of(stored_bodies(store)[flow_key("f"), ""]) == "aes256gcm=new"
    assert store.get_one("f").state == {"text": "y" * 500}
    assert store.get_one("short").state == {}

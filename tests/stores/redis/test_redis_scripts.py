"""The scripts of the Redis store: what they leave in the server after drawn commits.

Each run of commits is played on two stores of one server. On one of them the script of a commit has
no short way (put.lua): both must end with the same bytes. After every step the index must be what
the stored heads say, no entry more and none less, and what has a time to live must be what expires.
"""

from __future__ import annotations

import itertools
import json
import random
import uuid
from collections.abc import Callable
from collections.abc import Iterator
from datetime import timedelta
from functools import partial
from typing import Any

import pytest
import redis
from marks import REDIS_VERSIONS

import catga_store as cs
from catga_store.core import claims
from catga_store.core import commits
from catga_store.core import records
from catga_store.core import sessions
from catga_store.protocol import chance
from catga_store.stores.redis import commit_args
from catga_store.stores.redis import commits as scripted
from catga_store.stores.redis import scripts
from catga_store.stores.redis.index import named
from catga_store.stores.redis.index import newest_first
from catga_store.stores.redis.index import stamp_of
from catga_store.testing.clock import ManualClock
from catga_store.testing.servers import RedisServer

LONG_WAY = scripts._script("records", "commit")
FLOWS = ["f", "g\x00", 'h"\\\n é', "{t}:x"]
TAGS: list[dict[str, str]] = [{}, {}, {"a": "1"}, {"a": "1", "b]": "]]"}, {"\u00e9": ""}]
WAITS = ["w", 'v\x00"\\']
CHILDREN = ["a", "b\x00", 'c"/é']
PARTS = ["p", "p/1", "q\x00é"]
LARGE = 3000
"""In bytes, for these tests: bodies of parts are sent in chunks above, and those of flows are below."""
BESIDE = b"steps:", b"chunks:", b"parts:", b"names:"
MINUTE = timedelta(minutes=1)


@pytest.fixture(params=REDIS_VERSIONS)
def server(
    request: pytest.FixtureRequest, redis_server: Callable[[str], RedisServer]
) -> RedisServer:
    """A server of each version."""
    return redis_server(request.param)


class Player:
    """One store, and steps drawn from a seed; the same seed plays the same steps on another store."""

    def __init__(self, server: RedisServer, client: redis.Redis) -> None:
        prefix = f"{uuid.uuid4().hex}:"
        self.client = client
        self.tag = f"{{{prefix}0}}:".encode()
        self.clock = ManualClock()
        self.store = cs.open_store(
            f"{server.url}?prefix={prefix}",
            clock=self.clock,
            owner="me",
            retention=cs.Retention(flows=120 * MINUTE, failed=None, waits=60 * MINUTE),
        )

    def step(self, draw: random.Random) -> None:
        """Do one thing, which the store may refuse."""
        what = draw.random()
        try:
            if what < 0.15:
                self.clock.advance(draw.choice([1, 30, 70, 200]) * MINUTE)
            elif what < 0.25:
                for flow in self.store.claim_due():
                    self.store.extend(flow, draw.randrange(1, 90) * MINUTE)
            elif what < 0.3:
                self.store.sweep(draw.choice([1, 3, 1000]))
            else:
                with self.store.begin() as session:
                    for _ in range(draw.choice([1, 1, 2, 3])):
                        what = draw.choice([self.flow, self.progress, self.part, self.wait])
                        what(session, draw)
        except (cs.ConflictError, cs.UsageError):
            return

    def flow(self, session: cs.Session, draw: random.Random) -> None:
        """Make, change, suspend or delete a flow."""
        flow_id, when = draw.choice(FLOWS), draw.choice([None, self.clock() + 5 * MINUTE])
        flow, what = session.get(flow_id), draw.random()
        if flow is None:
            tags = draw.choice(TAGS)
            session.add(cs.FlowSnapshot(flow_id, state={"n": 0}, due_at=when, tags=tags))
        elif what < 0.5:
            flow.state["n"] += 1
            flow.error = draw.choice([None, "it failed, said 'a b c'"])
            flow.tags = draw.choice([flow.tags, flow.tags, *TAGS])
        elif what < 0.65:
            flow.status = draw.choice(list(cs.FlowStatus))
        elif what < 0.75:
            flow.due_at = when
        elif what < 0.85:
            session.suspend(flow, cs.WaitCondition(draw.choice(WAITS), flow_ids=CHILDREN[:2]))
        else:
            session.delete(flow)
            if what < 0.93:
                session.add(cs.FlowSnapshot(flow_id, state={"n": 9}))

    def progress(self, session: cs.Session, draw: random.Random) -> None:
        """Mark an item, or clear the step."""
        flow_id, step = draw.choice(FLOWS), draw.choice([0, 7])
        progress = session.get_for_each_progress(flow_id, step)
        if progress is None:
            session.save_for_each_progress(flow_id, step, cs.ForEachProgress([3]))
        elif draw.random() < 0.7:
            progress.mark(draw.randrange(50))
        else:
            session.clear_for_each_progress(flow_id, step)

    def part(self, session: cs.Session, draw: random.Random) -> None:
        """Write, keep, change or delete a part, append to a log, or remove some of them."""
        flow_id, name, what = draw.choice(FLOWS), draw.choice(PARTS), draw.random()
        size = draw.choice([1, 10, LARGE + 1])
        if what < 0.3:
            key = draw.choice([None, *CHILDREN])
            log = draw.choice(["log", "log/\x00"])
            session.append(flow_id, b"x" * size, log=log, key=key)
        elif what < 0.4:
            self.store.delete_parts(flow_id, name)
        elif what < 0.45:
            self.store.trim_log(flow_id, before=draw.randrange(5))
        elif what < 0.6:
            exists = draw.choice(["keep", "overwrite"])
            session.add_part(cs.Part(flow_id, name, b"y" * size, tag="t"), exists=exists)
        elif (part := session.get_part(flow_id, name)) is None:
            session.add_part(cs.Part(flow_id, name, b"z" * size))
        elif what < 0.7:
            session.delete_part(part)
        elif what < 0.9:
            part.body += b"z"
        else:
            part.tag = draw.choice(CHILDREN)

    def wait(self, session: cs.Session, draw: random.Random) -> None:
        """Set, change or delete a condition, or complete a child."""
        wait_id, what = draw.choice(WAITS), draw.random()
        children = draw.sample(CHILDREN, draw.randrange(1, 4))
        parent = draw.choice([None, *FLOWS])
        if what < 0.4:
            session.complete_child(wait_id, children[0], success=what < 0.3, result="r\x00")
        elif (wait := session.get_wait_condition(wait_id)) is None or what < 0.6:
            timeout = draw.choice([None, 10 * MINUTE])
            session.add(
                cs.WaitCondition(wait_id, flow_ids=children, timeout=timeout, parent_flow_id=parent)
            )
        elif what < 0.8:
            wait.outcome = draw.choice(list(cs.WaitOutcome))
        elif what < 0.9:
            wait.flow_ids = tuple(children)
        else:
            session.delete(wait)

    def stored(self) -> dict[bytes, Any]:
        """What is in the server but for the replies of commits, without the prefix."""
        found: dict[bytes, Any] = {}
        for key in self.client.scan_iter(match=self.tag + b"*", count=10_000):
            name = key.removeprefix(self.tag)
            if name == b"index":
                found[name] = self.client.zrange(key, 0, -1)
            elif name.startswith(b"names:"):
                found[name] = self.client.zrange(key, 0, -1), self.client.pttl(key) > 0
            elif not name.startswith(b"commit:"):
                found[name] = self.client.hgetall(key), self.client.pttl(key) > 0

        return found

    def check(self) -> None:
        """Compare the index, and what has a time to live, with what the heads say."""
        stored = self.stored()
        wanted: set[bytes] = set()
        uploads: set[bytes] = set()

        for name, found in stored.items():
            kind, _, record = name.partition(b":")
            if kind in (b"flow", b"wait"):
                fields, is_ending = found
                wanted.update(entries(kind, record, fields))
                assert is_ending == (json.loads(fields[b"head"])[6] is not None), name
                for beside in BESIDE if kind == b"flow" else (b"items:",):
                    if beside + record in stored:
                        assert stored[beside + record][1] == is_ending, beside + record
            elif kind == b"steps":
                wanted.add(b"pi" + record)
            elif kind == b"parts":
                names = stored.get(b"names:" + record, ([], False))[0]
                wanted.update(entries_of_parts(record, found[0], names))

                uploads.update(uploads_of(found[0]))

        index = set(stored.get(b"index", ()))
        assert index >= wanted
        for entry in index - wanted:
            # Orphaned parts whose flow came and was deleted, or a large body that a sweep has left: both
            # stay until the next sweep.
            assert entry[:1] == b"x", entry
            assert entry[16:17] in (b"n", b"u"), entry
            if entry[16:17] == b"u":
                uploads.add(b"upload:" + entry[17:])

        assert {name for name in stored if name.startswith(b"upload:")} == uploads


def entries(kind: bytes, record: bytes, fields: dict[bytes, bytes]) -> Iterator[bytes]:
    """Return the index members of a flow or a condition, by its head."""
    head = json.loads(fields[b"head"])
    _, _, status_number, created, _, due, expires, type_name = head[:8]
    parent = fields.get(b"parent")
    letter = kind[:1]
    of = named(type_name) if letter == b"f" else named((parent or b"").decode())
    status = b"-" if status_number < 0 else b"%d" % status_number
    place = newest_first(created) + record
    yield letter + b"i" + record
    if expires is not None:
        yield b"x" + stamp_of(expires) + letter + status + newest_first(created) + of + record

    if status == b"-":
        return

    yield letter + b"a" + place
    yield letter + b"s" + status + place
    if letter == b"f" or parent is not None:
        yield letter + (b"t" if letter == b"f" else b"p") + of + place
        yield letter + b"b" + status + of + place

    if letter == b"f":
        yield from entries_of_claim_and_tags(head, record, status + place)

    if due is None:
        return

    if letter == b"f":
        yield b"fd" + stamp_of(due) + record
        yield b"fe" + of + stamp_of(due) + record
    elif status_number == 0:
        yield b"wd" + stamp_of(due) + record

    if parent is not None:
        yield b"wt" + stamp_of(due) + of + record


def entries_of_claim_and_tags(head: list[Any], record: bytes, place: bytes) -> Iterator[bytes]:
    """Return the index members that a flow has because of its claim and its tags."""
    due = b"" if head[5] is None else stamp_of(head[5]) + record
    if due and head[14] is not None:
        yield b"fc" + due

    texts = [named(text) for text in head[15]] if len(head) > 15 else []
    if texts:
        yield b"fj" + named(record.decode()) + b"".join(texts)

    for key, value in zip(texts[::2], texts[1::2], strict=True):
        yield b"fg" + key + value + place
        if due:
            yield b"fh" + key + value + due


def entries_of_parts(
    record: bytes, fields: dict[bytes, bytes], names: list[bytes]
) -> Iterator[bytes]:
    """Return the index members of a flow's parts; check that their names and fields agree."""
    yield b"ni" + record
    heads = {field[1:] for field in fields if field.startswith(b"h")}
    assert {(b"c" if name.endswith(b"/") else b"n") + name for name in heads} == set(names)
    bodies = {field[1:] for field in fields if field[:1] in (b"b", b"l")}
    assert heads == bodies
    keys = {}
    for name in sorted(heads, reverse=True):
        log, _, digits = name.rpartition(b"/")
        key = json.loads(fields[b"h" + name])[9]
        if key and len(digits) == 12:
            keys[b"k%d:%b%b" % (len(log), log, key.encode())] = b"%d" % int(digits)

        assert (b"b" + name in fields) != (b"l" + name in fields)

    for upload in uploads_of(fields):
        yield b"nl" + named(record.decode()) + upload.removeprefix(b"upload:")

    assert {field: fields[field] for field in fields if field.startswith(b"k")} == keys
    if b"x" in fields:
        yield b"x" + fields[b"x"] + b"n" + record


def uploads_of(fields: dict[bytes, bytes]) -> list[bytes]:
    """Return the keys of the large bodies of a flow's parts."""
    return [
        b"upload:" + value.partition(b" ")[2]
        for field, value in fields.items()
        if field.startswith(b"l")
    ]


def counted(numbers: Iterator[int]) -> str:
    """Return the id of a commit; the same at the same place of both runs."""
    return f"{next(numbers):031x}"


@pytest.mark.parametrize(
    "seeds", [range(4, 8), pytest.param(range(8, 200), marks=pytest.mark.soak)], ids=["few", "many"]
)
def test_fast_path_and_index(
    seeds: range, server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fast path stores the same bytes; index and expiry agree with the heads."""
    monkeypatch.setitem(scripts._SOURCES, LONG_WAY.sha, LONG_WAY.source)
    for module in (commit_args, scripted):
        monkeypatch.setattr(module, "LARGE", LARGE)

    with redis.Redis(port=server.port) as client:
        for seed in seeds:
            ended: list[dict[bytes, Any]] = []
            for script in (scripts.COMMIT, LONG_WAY):
                make_id = partial(counted, itertools.count())
                monkeypatch.setattr(scripted, "COMMIT", script)
                for module in (claims, commits, records, sessions, scripted):
                    monkeypatch.setattr(module, "new_commit_id", make_id)

                chance.choices.seed(seed)  # which of the due flows is claimed first
                draw, player = random.Random(seed), Player(server, client)
                for _ in range(60):
                    player.step(draw)
                    if script is scripts.COMMIT:
                        player.check()

                player.store.close()
                ended.append(player.stored())

            assert ended[0] == ended[1], seed

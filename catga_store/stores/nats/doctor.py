"""Stores on NATS: version, the stream and its settings, replicas, room, and the index.

Some settings, such as how often the server syncs to disk, are not visible to an account: unknown.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable
from collections.abc import Generator
from collections.abc import Iterator
from contextlib import contextmanager
from contextlib import suppress
from datetime import datetime
from functools import partial
from typing import Any
from typing import Protocol
from urllib.parse import parse_qsl
from urllib.parse import urlencode

import anyio
from attrs import frozen

from catga_store.errors import CorruptRecordError
from catga_store.errors import StoreConfigError
from catga_store.errors import StoreUnavailableError
from catga_store.protocol.conversation import NotSentError
from catga_store.protocol.conversation import ReplyLostError
from catga_store.protocol.keys import FLOW
from catga_store.protocol.keys import PART
from catga_store.protocol.keys import Key
from catga_store.stores.findings import Finding
from catga_store.stores.findings import Scratch
from catga_store.stores.findings import clock_difference
from catga_store.stores.findings import no_store
from catga_store.stores.nats.answers import api_error
from catga_store.stores.nats.doctor_parts import PartsSeen
from catga_store.stores.nats.doctor_parts import look_at_parts
from catga_store.stores.nats.doctor_parts import parts_finding
from catga_store.stores.nats.layout import NatsLayout
from catga_store.stores.nats.layout import entries_of_flow
from catga_store.stores.nats.layout import entries_of_root
from catga_store.stores.nats.layout import entries_of_wait
from catga_store.stores.nats.layout import root_of
from catga_store.stores.nats.part_text import decode_root
from catga_store.stores.nats.record_text import Stored
from catga_store.stores.nats.record_text import decode_record
from catga_store.stores.nats.record_text import decode_wait
from catga_store.stores.nats.setup import OLDEST
from catga_store.stores.nats.setup import differing
from catga_store.stores.nats.setup import is_too_old
from catga_store.stores.nats.transport import Answer
from catga_store.stores.nats.transport import Ask
from catga_store.stores.nats.transport import Asks
from catga_store.stores.nats.transport import Greet
from catga_store.stores.nats.transport import Greeting

__all__ = ["NatsDoctor"]

_SECONDS = 5.0
_MIB = 1024 * 1024
_LITTLE_PAYLOAD = 256 * 1024
_NEARLY_FULL = 0.9
_TOGETHER = 500
_MOST_ENTRIES = 50_000
"""The most entries of an index that are compared with their records: a doctor must not take hours."""

_NO_STREAM = 10059
_FAILURES = (NotSentError, ReplyLostError, StoreConfigError)


@frozen
class _Seen:
    """What the server said."""

    greeting: Greeting
    account: dict[str, Any]
    stream: dict[str, Any]
    """Empty if there is none."""
    wrong: list[str]
    """Entries that do not match their record."""
    looked_at: int
    parts: PartsSeen | None = None
    clock: tuple[Finding, ...] = ()


class NatsServerLink(Protocol):
    """What the doctor needs of a link to the servers."""

    async def perform(self, request: Any, /) -> Any:
        """Return the reply to one request of the transport."""
        ...

    async def close(self) -> None:
        """Close the connection."""
        ...


@frozen
class NatsDoctor:
    """Looks at NATS servers, at the stream of a store and at its index; see `Doctor`.

    `open_link` opens a URL with a timeout in seconds; `options_of` returns the store's own options
    in a URL.
    """

    open_link: Callable[[str, float], NatsServerLink]
    options_of: Callable[[str], dict[str, Any]]
    default_bucket: str

    def absent(self, url: str) -> str | None:
        """Say that there is no stream; `None` if there is one, or the server does not say."""
        _, layout = self._place(url)
        try:
            there = anyio.run(self._is_there, url, layout)
        except _FAILURES:
            return None

        return None if there else _nothing(layout)

    def examine(self, url: str) -> Iterator[Finding]:
        """Look at the server, at the stream and at the index."""
        own, layout = self._place(url)
        try:
            seen = anyio.run(self._look, url, layout)
        except _FAILURES as error:
            yield Finding(
                "server",
                "problem",
                str(error),
                "no worker can read or write a flow",
                "check that the server is running, that the URL is correct, and that the user has"
                " access to the server",
            )
            return

        yield _version(seen.greeting)
        yield _jetstream(seen)
        yield _payload(seen.greeting)
        if not seen.account:
            return

        yield _room(seen.account)
        yield _sync()
        if not seen.stream:
            yield no_store(_nothing(layout))
            return

        yield _size(seen.stream, layout)
        yield from _settings(seen.stream["config"], layout, own.get("replicas", 1))
        yield from _replicas(seen.stream)
        yield _entries(seen)
        if seen.parts is not None:
            yield parts_finding(seen.parts)

        yield from seen.clock

    @contextmanager
    def scratch(self, url: str) -> Generator[Scratch]:
        """Use a bucket of its own on the same servers, and remove its stream."""
        place, _, text = url.partition("?")
        bucket = f"catga-store-bench-{uuid.uuid4().hex}"
        query = [(name, value) for name, value in parse_qsl(text) if name != "bucket"]
        named = f"{place}?{urlencode([*query, ('bucket', bucket)])}"
        try:
            yield Scratch(named, f"in the bucket {bucket} there")
        except BaseException:
            with suppress(*_FAILURES):
                anyio.run(self._remove, named)

            raise

        try:
            anyio.run(self._remove, named)
        except _FAILURES as error:
            message = f"the stream KV_{bucket} could not be removed: {error}"
            raise StoreUnavailableError(message) from error

    def _place(self, url: str) -> tuple[dict[str, Any], NatsLayout]:
        own = self.options_of(url)
        return own, NatsLayout(own.get("bucket", self.default_bucket), own.get("domain"))

    async def _remove(self, url: str) -> None:
        _, layout = self._place(url)
        link = self.open_link(url, _SECONDS)
        try:
            await link.perform(Asks((Ask(f"{layout.api}.STREAM.DELETE.{layout.stream}", b""),)))
        finally:
            await link.close()

    async def _is_there(self, url: str, layout: NatsLayout) -> bool:
        link = self.open_link(url, _SECONDS)
        try:
            return bool(await _info(link, layout, f"{layout.rest}layout"))
        finally:
            await link.close()

    async def _look(self, url: str, layout: NatsLayout) -> _Seen:
        link = self.open_link(url, _SECONDS)
        try:
            greeting: Greeting = await link.perform(Greet())
            (answer,) = await _ask(link, Ask(f"{layout.api}.INFO", b""))
            account = _read(answer)
            if account is None:
                return _Seen(greeting, {}, {}, [], 0)

            before = time.time()
            stream = await _info(link, layout, f"{layout.rest}layout")
            clock = clock_difference(_seconds(stream.get("ts")), before, time.time())
            wrong: list[str] = []
            names: list[str] = []
            parts: PartsSeen | None = None
            if stream:
                names = await _names(link, layout)
                wrong = await _wrong(link, layout, names)
                parts = await look_at_parts(
                    layout, partial(_named, link, layout), partial(_ask, link)
                )

            return _Seen(greeting, account, stream, wrong, len(names), parts, (clock,))
        finally:
            await link.close()


def _nothing(layout: NatsLayout) -> str:
    return f"there is no stream {layout.stream} on this server"


# --- asking -----------------------------------------------------------------------------------------


async def _ask(link: NatsServerLink, ask: Ask) -> tuple[Answer, ...]:
    (answers,) = await link.perform(Asks((ask,)))
    return tuple(answers)


def _read(answer: Answer) -> dict[str, Any] | None:
    """What the API answered; `None` if it is an error."""
    if api_error(answer)[0]:
        return None

    reply: dict[str, Any] = json.loads(answer.data)
    return reply


async def _info(link: NatsServerLink, layout: NatsLayout, wanted: str) -> dict[str, Any]:
    payload = json.dumps({"subjects_filter": wanted}).encode()
    (answer,) = await _ask(link, Ask(f"{layout.api}.STREAM.INFO.{layout.stream}", payload))
    code, text = api_error(answer)
    if code == _NO_STREAM:
        return {}

    if code:
        message = (
            f"NATS returned an error instead of a description of the stream {layout.stream!r}: "
            f"{text} ({code})"
        )
        raise NotSentError(message)

    return _read(answer) or {}


async def _names(link: NatsServerLink, layout: NatsLayout) -> list[str]:
    """The index entries, as many as are looked at."""
    found: list[str] = []
    for what in ("list", "due"):
        found += await _named(link, layout, f"{layout.rest}{what}.>")

    dropped = layout.due("dead")
    return [name for name in found if not name.startswith(dropped)][:_MOST_ENTRIES]


async def _named(link: NatsServerLink, layout: NatsLayout, wanted: str) -> list[str]:
    """The subjects under a filter, as many as the server names at once."""
    reply = await _info(link, layout, wanted)
    return list(reply["state"].get("subjects") or ())


async def _wrong(link: NatsServerLink, layout: NatsLayout, names: list[str]) -> list[str]:
    """Entries that do not match their record now."""
    wrong: list[str] = []
    for start in range(0, len(names), _TOGETHER):
        entries = [layout.entry(name) for name in names[start : start + _TOGETHER]]
        wanted = {_owner_of(layout, entry.key): entry.key for entry in entries}
        payload = json.dumps({"multi_last": list(wanted)}).encode()
        ask = Ask(f"{layout.api}.DIRECT.GET.{layout.stream}", payload, many=True)
        *answers, _ = await _ask(link, ask)
        verified: set[str] = set()
        for answer in answers:
            verified |= _verified(layout, wanted[answer.headers["Nats-Subject"]], answer)

        wrong += [entry.subject for entry in entries if entry.subject not in verified]

    return wrong


def _owner_of(layout: NatsLayout, key: Key) -> str:
    """The subject of what verifies an entry: the record, or the root of parts."""
    return layout.subject(root_of(key.id) if key.kind == PART else key)


def _verified(layout: NatsLayout, key: Key, answer: Answer) -> frozenset[str]:
    gone = answer.headers.get("KV-Operation") is not None
    stored = Stored(int(answer.headers["Nats-Sequence"]), None if gone else answer.data)
    try:
        if key.kind == PART:
            root = None if stored.text is None else decode_root(key, stored.text)
            return frozenset() if root is None else entries_of_root(layout, key.id, root.expires_ms)

        if key.kind == FLOW:
            flow = decode_record(key, stored)
            return frozenset() if flow is None else entries_of_flow(layout, key, flow[0])

        wait = decode_wait(key, stored)
        return frozenset() if wait is None else entries_of_wait(layout, key, wait.row)
    except CorruptRecordError:
        return frozenset()


# --- judging ----------------------------------------------------------------------------------------


def _version(greeting: Greeting) -> Finding:
    if is_too_old(greeting.version):
        return Finding(
            "version",
            "problem",
            f"nats-server {greeting.version}",
            "no worker can use this version, because its atomic batches are too small for a commit",
            f"update the server to {OLDEST} or later",
        )

    return Finding(
        "version",
        "ok",
        f"nats-server {greeting.version}",
        "this version has every feature that the store uses",
    )


def _jetstream(seen: _Seen) -> Finding:
    if not seen.account:
        return Finding(
            "JetStream",
            "problem",
            "JetStream is not enabled on the server, or this account is not allowed to use it",
            "no worker can use the store, because it keeps its records in JetStream",
            "enable JetStream with nats-server -js, or with `jetstream: enabled` for the account",
        )

    level = seen.account.get("api", {}).get("level", "?")
    return Finding(
        "JetStream", "ok", f"enabled, API level {level}", "the store keeps its records in JetStream"
    )


def _payload(greeting: Greeting) -> Finding:
    found = f"messages of up to {greeting.max_payload / 1024:,.0f} KiB"
    if greeting.max_payload < _LITTLE_PAYLOAD:
        return Finding(
            "max_payload",
            "warning",
            found,
            "even small states are split into chunks, each of which costs a write; large "
            "wait conditions may not fit at all",
            "raise max_payload; its default is 1 MiB",
        )

    return Finding("max_payload", "ok", found, "larger bodies are kept in chunks of 512 KiB")


def _room(account: dict[str, Any]) -> Finding:
    tiers: dict[str, Any] = account.get("tiers", {"": account})
    full = 0.0
    tiers_found: list[str] = []
    for name, tier in tiers.items():
        used, most = tier.get("storage", 0), tier.get("limits", {}).get("max_storage", -1)
        share = used / most if most > 0 else 0.0
        full = max(full, share)
        limit = f" of {_mib(most)}" if most > 0 else ", no limit for the account"
        tiers_found.append(f"{f'{name}: ' if name else ''}{_mib(used)}{limit}")

    found = "; ".join(tiers_found)
    if full > _NEARLY_FULL:
        return Finding(
            "room",
            "warning",
            found,
            "when the storage is full, every commit fails with StoreUnavailableError; no "
            "stored record is lost, but no flow can continue",
            "raise the account's limit, or keep ended flows for a shorter time with `Retention`",
        )

    return Finding("room", "ok", found, "when the storage is full, commits are refused")


def _sync() -> Finding:
    return Finding(
        "sync_interval",
        "unknown",
        "the server does not show this setting to this account",
        "the server writes an acknowledged commit immediately but syncs it to disk only once "
        "per sync_interval (two minutes by default); a power failure of the only server, or "
        "of two servers out of three, can lose far more than the commits since the last "
        "sync, because the server removes older, synced versions before it syncs their "
        "successors",
        "set `sync_interval: always` in the jetstream block of every server;"
        " http://HOST:8222/jsz?config=1 shows the current setting",
    )


def _size(stream: dict[str, Any], layout: NatsLayout) -> Finding:
    state = stream["state"]
    found = (
        f"{layout.stream}, {_mib(state.get('bytes', 0))} in {state.get('messages', 0):,} messages"
    )
    return Finding(
        "stream", "info", found, "the stream holds every record of the store and its index"
    )


def _settings(config: dict[str, Any], layout: NatsLayout, replicas: int) -> Iterator[Finding]:
    wrong = differing(config, layout, replicas)
    foreign = [name for name in ("mirror", "sources") if config.get(name)]
    for name, found, wanted in wrong:
        yield Finding(
            "settings",
            "problem",
            f"{name} is {found!r}, not {wanted!r}",
            "no worker can use the store, because other settings can lose records, or write "
            "commits only in part",
            f"correct the setting with nats stream edit {layout.stream}; if only the number "
            "of replicas differs, you can set replicas=… in the URL instead",
        )

    for name in foreign:
        yield Finding(
            "settings",
            "problem",
            f"the stream has {name}",
            "records can enter the stream without the checks of a commit",
            "remove this setting; to copy a store, use `catga-store copy`",
        )

    if not wrong and not foreign:
        seconds = config.get("duplicate_window", 0) // 10**9
        found = (
            f"the settings are those that the store sets: {config.get('storage')} storage, "
            f"duplicate window {seconds} s"
        )
        means = "no record is discarded, and a commit that is sent twice is applied once"
        yield Finding("settings", "ok", found, means)
        yield _reserve(config, layout)


def _reserve(config: dict[str, Any], layout: NatsLayout) -> Finding:
    reserved = config.get("max_bytes", -1)
    if reserved > 0:
        found = f"{_mib(reserved)} of storage are reserved"
        means = (
            "a full stream refuses whole commits, and no other stream can use the reserved storage"
        )
        if config.get("num_replicas", 1) > 1:
            return Finding(
                "max_bytes",
                "info",
                found,
                f"{means}; the logs of the replicas are not included, so a disk can still "
                "fill up, after which JetStream stays off on that server until it is "
                "restarted",
                "keep at least the same amount of additional space free on each disk, and "
                "monitor the free space",
            )

        return Finding("max_bytes", "ok", found, means)

    return Finding(
        "max_bytes",
        "warning",
        "no storage is reserved for the stream",
        "if the server runs out of storage during a commit of several records, it keeps only "
        "part of the commit, and the commit raises a CommitUncertainError that says so; "
        "after a full disk, JetStream stays off until the server is restarted",
        (
            f"run nats stream edit {layout.stream} --max-bytes=10GB; for a new store, set "
            "max_bytes= in its URL"
        ),
    )


def _replicas(stream: dict[str, Any]) -> Iterator[Finding]:
    cluster: dict[str, Any] = stream.get("cluster", {})
    others: list[dict[str, Any]] = cluster.get("replicas", [])
    count = stream["config"].get("num_replicas", 1)
    if count == 1:
        yield Finding(
            "replicas",
            "info",
            "only one server keeps the records",
            "no flow can continue while that server is down, and every flow is lost if its "
            "disk is lost",
            "use three servers and replicas=3, so that the store keeps working if one server fails",
        )
        return

    behind = [
        f"{one['name']} ({'offline' if one.get('offline') else 'behind'})"
        for one in others
        if one.get("offline") or not one.get("current")
    ]
    if not cluster.get("leader"):
        yield Finding(
            "replicas",
            "problem",
            "no server leads the stream",
            "no flow can be read or written until a majority of the replicas is available again",
            "start the servers that are down",
        )
    elif behind:
        yield Finding(
            "replicas",
            "warning",
            f"{cluster['leader']} leads; these replicas are not up to date: {', '.join(behind)}",
            "if one more server fails, every flow may stop until these replicas are up to date",
            "start these servers, and check their disks and the network",
        )
    else:
        yield Finding(
            "replicas",
            "ok",
            f"{cluster['leader']} leads, and {len(others)} replicas are up to date",
            "the store keeps working if one of three servers fails, or two of five; if two "
            "of three servers lose power at the same time, acknowledged commits may be lost "
            "unless sync_interval is always",
        )


def _entries(seen: _Seen) -> Finding:
    if seen.wrong:
        return Finding(
            "index",
            "info",
            f"{len(seen.wrong):,} of {seen.looked_at:,} entries do not match their records",
            "the entries belong to commits in flight, to refused commits, or to commits "
            "whose worker died; readers check each entry and skip these",
            "no action is needed: when a reader finds such an entry that is ten minutes old, "
            "a sweep removes it",
        )

    found = f"{seen.looked_at:,} entries were checked, and each matches its record"
    return Finding(
        "index", "ok", found, "the store uses the index to find due flows and to list flows"
    )


def _seconds(stamp: str | None) -> float | None:
    """The time in an answer of the API."""
    return None if stamp is None else datetime.fromisoformat(stamp).timestamp()


def _mib(size: int) -> str:
    return f"{size / _MIB:,.1f} MiB"

"""The first use of a NATS store: is the server new enough, is the stream there and as it must be."""

from __future__ import annotations

import json
import re
import time
from functools import partial
from typing import Any
from typing import NamedTuple

from catga_store.errors import StoreConfigError
from catga_store.errors import StoreUnavailableError
from catga_store.protocol.conversation import Conversation
from catga_store.protocol.conversation import NotSentError
from catga_store.protocol.conversation import ReplyLostError
from catga_store.protocol.failures import check_layout
from catga_store.protocol.keys import new_commit_id
from catga_store.stores.nats.answers import Deadline
from catga_store.stores.nats.answers import api_error
from catga_store.stores.nats.exchange import NatsExchange
from catga_store.stores.nats.layout import NatsLayout
from catga_store.stores.nats.record_text import VERSION
from catga_store.stores.nats.transport import Ask
from catga_store.stores.nats.transport import Greet
from catga_store.stores.nats.transport import Greeting
from catga_store.stores.nats.transport import Message

__all__ = ["OLDEST", "Setting", "differing", "is_too_old", "lay_out", "prepare"]

OLDEST = "2.12.3"
"""The first release whose atomic batches hold what the store puts into them."""

LEAST_PAYLOAD = 64 * 1024
"""The least `max_payload` of a server: what is longer than a message is kept in several."""

_DUPLICATES_SECONDS = 600
_EVENTS = ("DELETED", "RESTORE_COMPLETE", "LEADER_ELECTED")
"""What the server announces when a stream may have gone back, to a user that may subscribe to it."""
_NO_STREAM, _NAME_TAKEN, _SUBJECTS_TAKEN = 10059, 10058, 10065
_NOT_ENABLED, _NO_REPLICAS = 10039, 10074


def prepare(
    exchange: NatsExchange,
    layout: NatsLayout,
    *,
    partitions: int,
    replicas: int,
    max_bytes: int,
    stale_reads: bool,
    create: bool = True,
) -> Conversation[None]:
    """Check that the store can be used; make its stream if it is absent and `create` is true.

    From then on the store is verified over each new connection: see `NatsExchange`.
    """
    deadline = exchange.deadline()
    greeting = yield from _greet(layout, deadline)
    _check_server(greeting)
    if layout.api == "$JS.API":  # another domain is on other servers
        _check_jetstream(greeting)

    exchange.greeted(greeting)

    settings = yield from _settings(exchange, deadline)
    while settings is None:
        if not create:
            message = (
                f"no store found: the stream {layout.stream!r} does not exist, and "
                "create=False was passed; check the server, the account and the bucket, or "
                "open the store without create=False"
            )
            raise StoreConfigError(message)

        yield from _create(exchange, layout, replicas, max_bytes, deadline)
        settings = yield from _settings(exchange, deadline)
        if settings is None and deadline.has_passed():
            message = (
                f"the stream {layout.stream!r} was created but is not available yet, so "
                "nothing was written; open the store again"
            )
            raise StoreUnavailableError(message)

        if settings is None:  # of several that create it at once, some hear of it before its leader
            yield deadline.pause()

    _check_settings(settings, layout, replicas)
    exchange.leader = int(settings.get("num_replicas", 1)) > 1 and not stale_reads
    identity = yield from lay_out(exchange, layout, partitions, deadline, create=create)
    exchange.trusted_from(greeting.epoch)
    exchange.verify = partial(_verify, exchange, layout, identity)


def _verify(
    exchange: NatsExchange, layout: NatsLayout, identity: str, deadline: Deadline
) -> Conversation[None]:
    """See that the store is still there; `StoreConfigError`."""
    exchange.greeted((yield from _greet(layout, deadline)))
    if (yield from _settings(exchange, deadline)) is None:
        raise exchange.refusal(_NO_STREAM, "")

    found = (yield from exchange.fetch([layout.layout], deadline))[layout.layout].text
    if found is None or json.loads(found).get("store") != identity:
        now = "is empty" if found is None else "holds another store"
        message = (
            f"the stream {layout.stream!r} {now}, because the original stream was removed, or was "
            "lost in a power failure, and then created again; nothing was written; restore the "
            "stream from a backup, or open the store again to use the current stream"
        )
        raise StoreConfigError(message)


def _greet(layout: NatsLayout, deadline: Deadline) -> Conversation[Greeting]:
    watched = tuple(f"$JS.EVENT.ADVISORY.STREAM.{event}.{layout.stream}" for event in _EVENTS)
    while True:
        try:
            greeting: Greeting = yield Greet(watched)
        except NotSentError as error:
            message = f"{error}; nothing was read or written"
            raise StoreUnavailableError(message) from error
        except ReplyLostError as error:
            if deadline.has_passed():
                message = f"{error}; nothing was read or written"
                raise StoreUnavailableError(message) from error
        else:
            return greeting

        yield deadline.pause()


def _check_server(greeting: Greeting) -> None:
    if is_too_old(greeting.version):
        message = (
            f"the server is NATS {greeting.version}, but the store needs NATS {OLDEST} or later "
            "for atomic batches, so nothing was written; upgrade the server"
        )
        raise StoreConfigError(message)

    if greeting.max_payload < LEAST_PAYLOAD:
        message = (
            f"the NATS server accepts at most {greeting.max_payload} bytes per message "
            f"(max_payload), but the store needs {LEAST_PAYLOAD}, so nothing was written; raise "
            "max_payload on the server"
        )
        raise StoreConfigError(message)


def _check_jetstream(greeting: Greeting) -> None:
    if not greeting.jetstream:
        message = (
            "the NATS server runs without JetStream, or this account is not allowed to use "
            "it, so nothing was written; enable JetStream (nats-server -js, or jetstream in "
            "the configuration)"
        )
        raise StoreConfigError(message)


def is_too_old(version: str) -> bool:
    """Whether a server of this version cannot keep a store."""
    return _numbers(version) < _numbers(OLDEST)


def _numbers(version: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", version)[:3]]


def _wanted(layout: NatsLayout, replicas: int) -> dict[str, Any]:
    return {
        "name": layout.stream,
        "subjects": layout.subjects,
        "retention": "limits",
        "storage": "file",
        "discard": "new",
        "max_msgs_per_subject": 1,
        "max_msgs": -1,
        "max_bytes": -1,
        "max_age": 0,
        "num_replicas": replicas,
        "duplicate_window": _DUPLICATES_SECONDS * 10**9,
        "allow_direct": True,
        "allow_rollup_hdrs": True,
        "allow_msg_ttl": True,
        "allow_atomic": True,
        "deny_delete": True,
        "deny_purge": False,
    }


def _settings(exchange: NatsExchange, deadline: Deadline) -> Conversation[dict[str, Any] | None]:
    while True:
        ask = Ask(exchange.api_subject("STREAM.INFO"), b"")
        ((answer,),) = yield from exchange.ask((ask,), deadline)
        code, text = api_error(answer)
        if not code:
            info: dict[str, Any] = json.loads(answer.data)
            exchange.heed(info)
            settings: dict[str, Any] = info["config"]
            return settings

        if code == _NO_STREAM:
            return None

        if code == _NOT_ENABLED:
            message = (
                f"this NATS account is not allowed to use JetStream ({text}); enable JetStream "
                "for the account"
            )
            raise StoreConfigError(message)

        if deadline.has_passed():
            raise exchange.refusal(code, text)

        yield deadline.pause()


def _create(
    exchange: NatsExchange, layout: NatsLayout, replicas: int, max_bytes: int, deadline: Deadline
) -> Conversation[None]:
    # Sequences begin with the time, in microseconds: a stream that is made again has none of the
    # old one's, so no revision that a caller still holds becomes valid again.
    config = _wanted(layout, replicas)
    config |= {"first_seq": time.time_ns() // 1000, "max_bytes": max_bytes}

    while True:
        ask = Ask(exchange.api_subject("STREAM.CREATE"), json.dumps(config).encode())
        ((answer,),) = yield from exchange.ask((ask,), deadline)
        code, text = api_error(answer)
        if not code or code == _NAME_TAKEN:
            return  # made, now or by another client; the caller checks next whether it is as it must be

        if code == _SUBJECTS_TAKEN:
            message = (
                f"this store's subjects already belong to another stream ({text}); choose another "
                "bucket, or remove that stream"
            )
            raise StoreConfigError(message)

        if code == _NO_REPLICAS:
            message = (
                f"NATS cannot keep {replicas} replicas ({text}); open the store with fewer "
                "replicas, or run a cluster of at least that many servers"
            )
            raise StoreConfigError(message)

        if deadline.has_passed():
            raise exchange.refusal(code, text)

        yield deadline.pause()


def differing(settings: dict[str, Any], layout: NatsLayout, replicas: int) -> list[Setting]:
    """The settings of a stream that are not as the store needs them."""
    return [
        setting
        for name, wanted in _wanted(layout, replicas).items()
        if not (setting := Setting(name, _found(settings, name, wanted), wanted)).is_good()
    ]


def _found(settings: dict[str, Any], name: str, wanted: object) -> Any:
    # What is 0 or false the server leaves out.
    return settings.get(name, wanted if wanted in (False, 0, -1) else None)


class Setting(NamedTuple):
    """What a stream has, and what it needs."""

    name: str
    found: Any
    wanted: Any

    def is_good(self) -> bool:
        """Whether it is as it must be; the order of subjects does not matter."""
        if self.name == "subjects":
            return sorted(str(one) for one in self.found or ()) == sorted(self.wanted)

        if self.name == "max_bytes":  # with `discard: new` a limit throws nothing away
            return bool(self.found == self.wanted or self.found > 0)

        if self.name == "duplicate_window":
            return int(self.found or 0) >= int(self.wanted)

        return bool(self.found == self.wanted)


def _check_settings(settings: dict[str, Any], layout: NatsLayout, replicas: int) -> None:
    for name, found, wanted in differing(settings, layout, replicas):
        message = (
            f"the stream {layout.stream!r} has {name} = {found!r}, but the store needs "
            f"{wanted!r}, so nothing was written; correct the setting with nats stream edit "
            f"{layout.stream}, or choose another bucket"
        )
        if name == "num_replicas":
            message = (
                f"the stream {layout.stream!r} has {found} replicas, but the store was opened "
                f"with {wanted}, so nothing was written; open it with replicas={found}, or "
                f"run nats stream edit {layout.stream} --replicas={wanted}"
            )

        raise StoreConfigError(message)


def lay_out(
    exchange: NatsExchange,
    layout: NatsLayout,
    partitions: int,
    deadline: Deadline,
    *,
    create: bool = True,
) -> Conversation[str]:
    """Store layout version, partitions and an identity, unless they are there, and check them.

    Returns the identity: a store that is made again under the same name has another one.
    """
    fields = {"layout": VERSION, "partitions": partitions, "store": new_commit_id()}
    wanted = json.dumps(fields).encode()

    while True:
        found = (yield from exchange.fetch([layout.layout], deadline))[layout.layout].text
        if found is not None:
            break

        if not create:
            text = (
                f"no store found: the stream {layout.stream!r} is empty, and create=False was "
                "passed; restore a backup, or open the store without create=False to start "
                "with an empty store"
            )
            raise StoreConfigError(text)

        message = Message(layout.layout, wanted, {"Nats-Expected-Last-Subject-Sequence": "0"})
        try:
            yield from exchange.publish([message], atomic=False)
        except (NotSentError, ReplyLostError) as error:
            if deadline.has_passed():
                text = (
                    f"{error}; the store may have been created, but no record was read or written"
                )
                raise StoreUnavailableError(text) from error

        yield deadline.pause()

    stored = json.loads(found)
    check_layout(stored["layout"], stored["partitions"], known=VERSION, partitions=partitions)
    return str(stored.get("store", ""))

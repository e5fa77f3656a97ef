"""No secret of a URL is shown: not in messages, reprs, tracebacks, log lines or the command line's output."""

from __future__ import annotations

import asyncio
import logging
import traceback
from collections.abc import Callable
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

import hypothesis.strategies as st
import pytest
import redis
import redis.asyncio
from hypothesis import assume
from hypothesis import given
from hypothesis import settings
from typer.testing import CliRunner

import catga_store as cs
from catga_store.cli.app import app
from catga_store.opening.url_grammar import NatsURL
from catga_store.opening.url_grammar import RedisURL
from catga_store.opening.url_grammar import parse_url
from catga_store.protocol.masking import mask_url
from catga_store.protocol.masking import shown
from catga_store.testing.servers import NatsServer
from catga_store.testing.servers import RedisServer
from catga_store.testing.servers import Server

START, END = "s3kRt", "Z9qQx"
"""What a drawn secret begins and ends with: neither may appear, so no part of it does."""

QUICK = timedelta(milliseconds=200)
SERVERS = ("redis", "rediss", "redis+cluster", "rediss+cluster", "nats", "tls")
NOBODY = "127.0.0.1:1"
PLACES = [
    f"{{scheme}}://user:{{secret}}@{NOBODY}",
    f"{{scheme}}://:{{secret}}@{NOBODY}",
    f"{{scheme}}://{{secret}}@{NOBODY}",
    f"{{scheme}}://{{secret}}@{NOBODY}/abc?prefx=x",
    f"{{scheme}}://{NOBODY}?password={{secret}}",
    f"{{scheme}}://{NOBODY}?token={{secret}}",
    f"{{scheme}}://{NOBODY}?tokem={{secret}}",
    f"{{scheme}}://{NOBODY}?ssl_password={{secret}}&db=x",
    f"{{scheme}}://{NOBODY}?{{secret}}",
    f"{{scheme}}://{NOBODY}?{{secret}}=1",
    f"{{scheme}}://{NOBODY}#{{secret}}",
    "{scheme}://user:{secret}@",
    "{scheme}:user:{secret}@host",
    f"{{scheme}}://user:{{secret}}@{NOBODY},user:{{secret}}@{NOBODY}",
]
OTHERS = [
    "bogus://user:{secret}@host",
    "user:{secret}@host",
    "memory://user:{secret}@host",
    "memory://name?password={secret}",
    "sqlite://user:{secret}@host/flows.db",
    "sqlite:///flows.db?key={secret}",
    "unix://user:{secret}@/nowhere/redis.sock",
    "unix:///nowhere/redis.sock?password={secret}",
    "unix:///nowhere/redis.sock?passwort={secret}",
]

secrets = st.builds(
    lambda middle: f"{START}{middle}{END}",
    st.text("aZ0/?#@:%,;[]&=+ '\"\\\nü\x1b", max_size=8),
)


@st.composite
def urls(draw: st.DrawFn) -> str:
    """Draw a URL with a secret somewhere, escaped or not."""
    secret = draw(secrets)
    template = draw(
        st.one_of(
            st.builds(
                lambda place, scheme: place.replace("{scheme}", scheme),
                st.sampled_from(PLACES),
                st.sampled_from(SERVERS),
            ),
            st.sampled_from(OTHERS),
        )
    )
    return template.replace("{secret}", quote(secret, safe="") if draw(st.booleans()) else secret)


class Heard(logging.Handler):
    """Keeps everything that is logged, with its traceback."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.setFormatter(logging.Formatter())
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Format as a program's handler would."""
        self.lines.append(self.format(record))


@contextmanager
def heard() -> Iterator[Heard]:
    """Listen to every logger."""
    handler, root = Heard(), logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    try:
        yield handler
    finally:
        root.removeHandler(handler)
        root.setLevel(level)


def texts_of(error: BaseException | None) -> Iterator[str]:
    """Everything that an error and those behind it say, also the suppressed ones."""
    while error is not None:
        yield from (str(error), repr(error), *traceback.format_exception(error))
        error = error.__cause__ or error.__context__


def said_by(call: Callable[[], Any]) -> Iterator[str]:
    """What a call returns, raises and logs, as text; only errors of this library are raised."""
    with heard() as log:
        try:
            yield repr(call())
        except cs.CatgaStoreError as error:
            yield from texts_of(error)

    yield from log.lines


def check(texts: Iterator[str]) -> None:
    """Fail if a part of a secret is in any text."""
    for text in texts:
        assert START not in text, text
        assert END not in text, text


def used(url: str) -> str:
    """Open a store on a server that is down, and use it."""
    with cs.open_store(url, timeout=QUICK) as store:
        try:
            store.ping()
        finally:
            assert START not in repr(store)
            assert START not in repr(store._driver)

    return "used"


async def used_by_async(url: str) -> str:
    """Do the same from async code."""
    async with cs.open_async_store(url, timeout=QUICK) as store:
        try:
            await store.ping()
        finally:
            assert START not in repr(store)
            assert START not in repr(store._driver)

    return "used"


@given(url=urls())
@settings(max_examples=300, deadline=None)
def test_masked_url_has_no_secret(url: str) -> None:
    """Wherever the secret stands, escaped or not."""
    check(iter([mask_url(url), shown(url), shown([url]), shown(url.encode())]))


@given(url=urls())
@settings(max_examples=300, deadline=None)
def test_url_that_is_refused_or_opened_shows_no_secret(url: str) -> None:
    """Neither the store nor the error, its causes and tracebacks."""
    check(said_by(lambda: cs.open_store(url)))
    check(said_by(lambda: cs.open_async_store(url)))


@pytest.mark.parametrize("scheme", [*SERVERS, "unix"])
def test_server_that_is_down_shows_no_secret(scheme: str) -> None:
    """Also in what the libraries below log and raise."""
    secret = quote(f"{START}/?@{END}", safe="")
    forms = [
        f"{scheme}://user:{secret}@{NOBODY}",
        f"{scheme}://{secret}@{NOBODY}",
        f"{scheme}://{NOBODY}?{'token' if scheme in ('nats', 'tls') else 'password'}={secret}",
    ]
    for url in forms if scheme != "unix" else [f"unix:///nowhere.sock?password={secret}"]:
        check(said_by(lambda url=url: used(url)))  # type: ignore[misc]
        check(said_by(lambda url=url: asyncio.run(used_by_async(url))))  # type: ignore[misc]


URL = f"redis://user:{START}{END}@{NOBODY}/0"
MEMORY = cs.MemoryStore()
WRONG: list[Callable[[], object]] = [
    lambda: cs.RedisStore(URL),  # type: ignore[arg-type]
    lambda: cs.AsyncRedisStore(URL),  # type: ignore[arg-type]
    lambda: cs.RedisStore(redis.asyncio.Redis(password=START)),  # type: ignore[arg-type]
    lambda: cs.AsyncRedisStore(redis.Redis(password=START)),  # type: ignore[arg-type]
    lambda: cs.RedisStore(prefix=URL),
    lambda: cs.MemoryStore(URL),
    lambda: cs.SQLiteStore(URL),
    lambda: cs.SQLiteStore(Path(f"x\0{URL}")),
    lambda: cs.SQLiteStore(redis.Redis(password=START)),  # type: ignore[arg-type]
    lambda: cs.NatsStore(URL),
    lambda: cs.NatsStore([URL]),
    lambda: cs.NatsStore(bucket=URL),
    lambda: cs.NatsStore(connect=URL),  # type: ignore[arg-type]
    lambda: cs.NatsStore(connect={URL: 1}),
    lambda: cs.NatsStore(replicas=URL),  # type: ignore[arg-type]
    lambda: cs.NatsStore(max_bytes=URL),  # type: ignore[arg-type]
    lambda: cs.NatsStore(stale_reads=URL),  # type: ignore[arg-type]
    lambda: cs.MemoryStore(clock=URL),  # type: ignore[arg-type]
    lambda: cs.MemoryStore(timeout=URL),  # type: ignore[arg-type]
    lambda: cs.MemoryStore(retention=URL),  # type: ignore[arg-type]
    lambda: cs.MemoryStore(partitions=URL),  # type: ignore[arg-type]
    lambda: cs.MemoryStore(max_record_bytes=URL),  # type: ignore[arg-type]
    lambda: cs.open_store(redis.Redis.from_url(URL)),  # type: ignore[arg-type]
    lambda: cs.open_store([URL]),  # type: ignore[arg-type]
    lambda: cs.copy(URL, MEMORY),  # type: ignore[arg-type]
    lambda: cs.copy(MEMORY, redis.Redis.from_url(URL)),  # type: ignore[arg-type]
    lambda: cs.copy(MEMORY, MEMORY, on_progress=URL),  # type: ignore[arg-type]
    lambda: cs.RedisStore(acknowledged_by=URL),  # type: ignore[arg-type]
    lambda: cs.flow_state(URL.encode()),  # type: ignore[arg-type]
    lambda: cs.flow_state("job", version=URL),  # type: ignore[arg-type]
    lambda: cs.flow_state("job", version=2, upcasters={1: URL}),  # type: ignore[dict-item]
    lambda: cs.flow_state("job", version=2, upcasters={URL: dict}),  # type: ignore[dict-item]
    lambda: cs.split_id(f"%{URL}"),
    lambda: cs.join_id("job", tag=f"}}{URL}"),
    lambda: cs.FlowPosition(URL),  # type: ignore[arg-type]
    lambda: cs.FlowPosition().advance(URL),  # type: ignore[arg-type]
    lambda: cs.FlowSnapshot(URL.encode(), state={}),  # type: ignore[arg-type]
    lambda: cs.FlowSnapshot("job", state={}, position=URL),  # type: ignore[arg-type]
    lambda: cs.FlowSnapshot("job", state={}, status=URL),  # type: ignore[arg-type]
    lambda: cs.FlowSnapshot("job", state={}, error=URL.encode()),  # type: ignore[arg-type]
    lambda: cs.FlowSnapshot("job", state={}, wait_condition=URL),  # type: ignore[arg-type]
    lambda: cs.FlowSnapshot("job", state={}, due_at=URL),  # type: ignore[arg-type]
    lambda: cs.FlowSnapshot("job", state={}, attempts=URL),  # type: ignore[arg-type]
    lambda: cs.WaitCondition("wait", flow_ids=URL),
    lambda: cs.WaitCondition("wait", flow_ids=["job"], timeout=URL),  # type: ignore[arg-type]
    lambda: cs.ForEachProgress(URL),  # type: ignore[arg-type]
    lambda: cs.ForEachProgress().merge(URL),  # type: ignore[arg-type]
    lambda: cs.Retention(flows=URL),  # type: ignore[arg-type]
    lambda: MEMORY.get(URL.encode()),  # type: ignore[call-overload]
    lambda: MEMORY.get("job", URL),  # type: ignore[call-overload]
    lambda: MEMORY.get_many(URL),
    lambda: MEMORY.update(URL),  # type: ignore[arg-type]
    lambda: MEMORY.delete("job", version=URL),  # type: ignore[arg-type]
    lambda: MEMORY.claim_due(lease=URL),  # type: ignore[call-overload]
    lambda: MEMORY.claim_due(limit=URL),  # type: ignore[call-overload]
    lambda: MEMORY.claim("job", timeout=URL),  # type: ignore[call-overload]
    lambda: MEMORY.query_flows(limit=URL),  # type: ignore[arg-type]
    lambda: MEMORY.query_flows(cursor=URL),
    lambda: MEMORY.query_flows(status=URL),  # type: ignore[arg-type]
    lambda: MEMORY.count_flows(created_after=URL),  # type: ignore[arg-type]
    lambda: MEMORY.set_wait_condition(URL),  # type: ignore[arg-type]
    lambda: MEMORY.complete_child("wait", "job", success=URL),  # type: ignore[arg-type]
    lambda: MEMORY.save_for_each_progress("job", 0, URL),  # type: ignore[arg-type]
    lambda: MEMORY.sweep(URL),  # type: ignore[arg-type]
    lambda: MEMORY.transact(URL),  # type: ignore[arg-type]
    lambda: MEMORY.resolve_commit(redis.Redis.from_url(URL)),  # type: ignore[arg-type]
    lambda: MEMORY.session().add(redis.Redis.from_url(URL)),  # type: ignore[arg-type]
]


@pytest.mark.parametrize("number", range(len(WRONG)))
def test_url_or_client_in_the_wrong_place_is_not_shown(number: int) -> None:
    """A `UsageError` that says what is needed, not what it was given."""
    with pytest.raises(cs.UsageError) as caught:
        WRONG[number]()

    check(texts_of(caught.value))


COMMANDS = [
    ("ls", "-s"),
    ("ls",),
    ("show", "x", "-s"),
    ("doctor", "--json"),
    ("doctor",),
    ("bench",),
    ("verify",),
    ("verify", "--seed"),
    ("demo", "--store"),
    ("demo",),
    (),
    ("copy",),
    ("copy", "memory://"),
    ("complete", "a", "b", "--result"),
    ("waits", "-s"),
    ("due", "--within"),
]


def check_command(arguments: list[str]) -> None:
    """Run a command in this process, and look at all that it says."""
    with heard() as log:
        done = CliRunner().invoke(app, arguments)

    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    check(iter([done.output, done.stderr, *log.lines]))


def names_a_server(url: str) -> bool:
    """Whether a command would connect, and wait for the server that is down."""
    try:
        return isinstance(parse_url(url), RedisURL | NatsURL)
    except cs.UsageError:
        return False


@given(url=urls(), command=st.sampled_from(COMMANDS), json=st.booleans())
@settings(max_examples=100, deadline=None)
def test_command_shows_no_secret(url: str, command: tuple[str, ...], *, json: bool) -> None:
    """On stdout, on stderr and as JSON, wherever among the arguments the URL stands."""
    assume(not names_a_server(url))
    arguments = [*command, url, *(["memory://"] if command == ("copy",) else [])]
    if json and "--json" not in command and command not in ((), ("demo",), ("demo", "--store")):
        arguments.append("--json")

    check_command(arguments)


@pytest.mark.parametrize("scheme", ["redis", "redis+cluster", "nats"])
@pytest.mark.parametrize("command", ["doctor URL --json", "ls -s URL", "copy URL memory://x"])
def test_command_on_a_server_that_is_down_shows_no_secret(scheme: str, command: str) -> None:
    """Neither in a finding of the doctor nor in the line that says that there is no server."""
    url = f"{scheme}://user:{quote(f'{START}/@{END}', safe='')}@{NOBODY}"
    check_command([url if word == "URL" else word for word in command.split()])


@pytest.fixture(scope="module", params=["redis", "nats"])
def locked(request: pytest.FixtureRequest) -> Iterator[Server]:
    """Run a server that asks for a password."""
    servers = {
        "redis": lambda: RedisServer("8.2", "--requirepass", f"{START}{END}"),
        "nats": lambda: NatsServer(f'authorization {{ user: me, password: "{START}{END}" }}'),
    }
    with servers[request.param]() as server:
        yield server


@pytest.mark.parametrize("command", ["doctor URL --json", "ls -s URL", "bench URL --calls 10"])
@pytest.mark.parametrize("password", [f"{START}{END}", f"{START}wrong{END}"])
def test_command_on_a_server_with_a_password_shows_no_secret(
    locked: Server, command: str, password: str
) -> None:
    """Whether the password is right or not."""
    scheme, _, place = locked.url.partition("://")  # type: ignore[attr-defined]
    user = "me" if scheme == "nats" else ""
    check_command(
        [f"{scheme}://{user}:{password}@{place}" if w == "URL" else w for w in command.split()]
    )

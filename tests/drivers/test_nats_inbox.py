"""The inbox on a NATS connection, and the link over it: requests when the connection breaks or ends.

Each test has a connection of its own to a server that all share. What is sent to `SILENT` arrives, and
gets no reply.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from collections.abc import Awaitable
from collections.abc import Callable
from contextlib import asynccontextmanager
from typing import Any

import nats
import pytest
from nats import errors as nats_errors
from nats.aio.client import Client
from nats.aio.transport import Transport
from proxy import Proxy
from waiting import until_async

from catga_store.drivers import nats_connecting
from catga_store.drivers.nats_asyncio import NatsLink
from catga_store.drivers.nats_inbox import Asked
from catga_store.drivers.nats_inbox import Inbox
from catga_store.protocol.conversation import NotSentError
from catga_store.protocol.conversation import ReplyLostError
from catga_store.stores.nats.transport import Answer
from catga_store.stores.nats.transport import Ask
from catga_store.stores.nats.transport import Asks
from catga_store.stores.nats.transport import Greet
from catga_store.stores.nats.transport import Message
from catga_store.stores.nats.transport import Publish
from catga_store.testing.servers import NatsServer

LONG, SHORT = 30.0, 0.2
"""Seconds that only a test that fails would wait, and what every test that waits for it can."""

SILENT = "silent"
TO_NOBODY = Message("nobody", b"", {})
TO_SILENT = Message(SILENT, b"", {})
LOST = ReplyLostError("the line broke")


@asynccontextmanager
async def connected(url: str, **options: Any) -> AsyncIterator[Client]:
    """Connect, and listen to `SILENT`."""
    connect: Any = nats.connect
    client: Client = await connect(url, **options)
    try:
        await listen(client, SILENT)
        yield client
    finally:
        await client.close()


async def listen(client: Client, subject: str, **options: Any) -> Any:
    """Subscribe, and wait until the server has it."""
    subscription = await client.subscribe(subject, **options)
    for _ in range(2):  # nats-py sends the PING of a flush before what it has gathered
        await client.flush()

    return subscription


@asynccontextmanager
async def lined(url: str, seconds: float = LONG) -> AsyncIterator[tuple[Client, Inbox]]:
    """Open an inbox on a connection."""
    async with connected(url) as client:
        line = Inbox(client, seconds)
        await line.open()
        yield client, line
        await line.close()


@asynccontextmanager
async def linked(url: str, seconds: float = LONG, **options: Any) -> AsyncIterator[NatsLink]:
    """Open a link, while a subscriber listens to `SILENT` on another connection."""
    async with connected(url):
        link = NatsLink([url], timeout=seconds, **options)
        await link.perform(Greet())
        yield link
        await link.close()


def run(test: Callable[[], Awaitable[None]]) -> None:
    """Run on asyncio: an inbox works on no other loop."""

    async def in_time() -> None:
        async with asyncio.timeout(LONG):
            await test()

    asyncio.run(in_time())


async def error_of(flight: Asked) -> BaseException:
    """Wait for the failure of a flight."""
    (failure,) = await asyncio.gather(flight.ended, return_exceptions=True)
    assert isinstance(failure, Exception)
    return failure


# --- the inbox ----------------------------------------------------------------------------------------


def test_outcome_is_available_again(nats_server: NatsServer) -> None:
    """A caller that stopped waiting before the outcome came can ask for it later."""

    async def test() -> None:
        async with lined(nats_server.url, SHORT) as (client, line):
            answered, silent = line.ask([TO_NOBODY]), line.ask([TO_SILENT])
            for flight in (answered, silent):
                flight.ended.cancel()

            before = answered.again()
            await until_async(lambda: not line.flying)
            assert (await before)[0][0].status == 503
            for _ in range(2):
                with pytest.raises(ReplyLostError, match=r"did not respond within 0\.2 s"):
                    await silent.again()

            answered.ended.cancel()
            late = line.ask([TO_NOBODY])
            late.ended.cancel()
            await client.flush()
            assert (await late.again())[0][0].status == 503

    run(test)


def test_a_message_larger_than_the_server_takes_is_not_sent(nats_server: NatsServer) -> None:
    """Nothing else of its flight is sent either: the server would close the connection."""

    async def test() -> None:
        async with lined(nats_server.url) as (client, line):
            heard = await listen(client, "heard")
            large = Message("heard", bytes(client.max_payload), {})
            failure = await error_of(line.ask([Message("heard", b"", {}), large]))
            assert isinstance(failure, NotSentError)
            assert "larger than the server's limit of 1048576 bytes" in str(failure)
            assert (await line.ask([TO_NOBODY]).ended)[0][0].status == 503
            assert heard.pending_msgs == 0

    run(test)


def test_inbox_without_a_connection_sends_nothing(nats_server: NatsServer) -> None:
    """Requests were not sent; messages without an answer are lost silently."""

    async def test() -> None:
        async with connected(nats_server.url) as client:
            line = Inbox(client, LONG)
            await line.open()
            await client.close()
            assert isinstance(await error_of(line.ask([TO_NOBODY])), NotSentError)
            assert await line.send_silent([TO_NOBODY]).ended == ()
            assert line.flying == 0

    run(test)


def test_connection_closed_during_a_write(nats_server: NatsServer) -> None:
    """It takes no more before nats-py has noticed: what was given to it has lost its reply."""

    async def test() -> None:
        again = asyncio.Event()

        async def note() -> None:
            again.set()

        async with connected(nats_server.url, reconnected_cb=note) as client:
            line = Inbox(client, LONG)
            await line.open()
            transport: Any = client._transport
            transport._io_writer.write_eof()
            assert client.is_connected
            failure = await error_of(line.ask([TO_NOBODY]))
            assert isinstance(failure, ReplyLostError)
            assert "the connection to NATS was lost" in str(failure)
            assert line.flying == 0
            await again.wait()  # only so is the old connection closed

    run(test)


def test_gathered_requests_are_not_sent_after_a_break(nats_server: NatsServer) -> None:
    """It has failed: it must not be sent later, on this connection or the next."""

    async def test() -> None:
        async with lined(nats_server.url) as (client, line):
            heard = await listen(client, "heard")
            flights = [line.ask([TO_SILENT]), line.ask([Message("heard", b"", {})])]
            line.fail_all(LOST)
            assert [await error_of(one) for one in flights] == [LOST, LOST]
            await client.flush()
            assert heard.pending_msgs == 0
            flights = [line.ask([TO_SILENT]), line.ask([TO_SILENT])]
            await client.close()
            line.fail_all(LOST)
            assert [await error_of(one) for one in flights] == [LOST, LOST]

    run(test)


def test_refused_subject_fails_only_its_requests(nats_server: NatsServer) -> None:
    """A permission that is missing for one subject does not fail the others."""

    async def test() -> None:
        async with lined(nats_server.url) as (_, line):
            silent, other = line.ask([TO_SILENT]), line.ask([TO_NOBODY])
            assert line.fail_those_to(SILENT.__eq__, lambda _: LOST)
            assert not line.fail_those_to("elsewhere".__eq__, lambda _: LOST)
            assert await error_of(silent) is LOST
            assert (await other.ended)[0][0].status == 503

    run(test)


def test_unexpected_messages_are_ignored(nats_server: NatsServer) -> None:
    """What comes to the inbox and matches no request is passed over; the user's own gets to the user."""

    async def test() -> None:
        async with lined(nats_server.url) as (client, line):
            mine = await listen(client, "mine")
            await client.publish(f"{line.prefix}no-number", b"")
            await client.publish(f"{line.prefix}12345", b"")
            await client.publish("mine", b"hello")
            assert (await mine.next_msg(LONG)).data == b"hello"
            assert (await line.ask([TO_NOBODY]).ended)[0][0].status == 503

    run(test)


@pytest.mark.parametrize(
    ("raw", "answer"),
    [
        (b"NATS/1.0\r\nA:b\r\nC: d:e\r\n\r\n", Answer(0, {"A": "b", "C": "d:e"}, b"x")),
        (b"NATS/1.0 odd words\r\nA: b\r\n\r\n", Answer(0, {"A": "b"}, b"x")),
        (
            b"NATS/1.0   404   Not Found\r\n\r\n",
            Answer(404, {"Description": "  Not Found"}, b"x"),
        ),
    ],
)
def test_headers_that_others_wrote(nats_server: NatsServer, raw: bytes, answer: Answer) -> None:
    """They are read without the usual spaces, or with other words in place of a status."""

    async def test() -> None:
        async with lined(nats_server.url) as (client, line):

            async def reply(request: Any) -> None:
                size, whole = len(raw), len(raw) + 1
                head = f"HPUB {request.reply} {size} {whole}\r\n".encode()
                client._transport.write(head + raw + b"x\r\n")

            await listen(client, "odd", cb=reply)
            ((found,),) = await line.ask([Message("odd", b"", {})]).ended
            assert found._replace(epoch=0) == answer

    run(test)


class Frames(Transport):
    """A transport that sends what was written when it is drained, as that of web sockets does."""

    def __init__(self, transport: Transport) -> None:
        """Send over another."""
        self.waiting: list[bytes] = []
        for name in (
            "connect",
            "connect_tls",
            "read",
            "readline",
            "wait_closed",
            "close",
            "at_eof",
        ):
            setattr(self, name, getattr(transport, name))

        self._transport = transport

    def write(self, payload: bytes) -> None:
        """Keep it."""
        self.waiting.append(payload)

    def writelines(self, payload: list[bytes]) -> None:
        """Keep them."""
        self.waiting += payload

    async def drain(self) -> None:
        """Send what was kept."""
        waiting, self.waiting = self.waiting, []
        self._transport.writelines(waiting)
        await self._transport.drain()

    def __bool__(self) -> bool:
        return bool(self._transport)


Frames.__abstractmethods__ = frozenset()  # the others are those of the other transport


def test_transport_that_sends_when_drained(nats_server: NatsServer) -> None:
    """Web sockets keep what is written; it is sent without another request."""

    async def test() -> None:
        async with lined(nats_server.url) as (client, line):
            client._transport = Frames(client._transport)
            for _ in range(2):
                assert (await line.ask([TO_NOBODY]).ended)[0][0].status == 503

            assert client._transport.waiting == []

    run(test)


# --- the link -----------------------------------------------------------------------------------------


def test_closing_waits_for_a_batch_in_flight(nats_server: NatsServer) -> None:
    """No longer than a flight may take: its reply is lost then."""

    async def test() -> None:
        async with linked(nats_server.url, 4 * SHORT) as link:
            batch = link.start(Publish((TO_SILENT, TO_SILENT), atomic=True))
            await asyncio.sleep(0)
            await link.close()
            with pytest.raises(ReplyLostError, match="did not respond"):
                await batch.ended

    run(test)


def test_a_batch_whose_sender_is_cancelled(nats_server: NatsServer) -> None:
    """As when the loop ends: the caller learns that it may have been stored."""

    async def test() -> None:
        async with linked(nats_server.url) as link:
            batch = link.start(Publish((TO_SILENT, TO_SILENT), atomic=True))
            await until_async(lambda: "1 request " in repr(link), pause=0)
            assert link._sender is not None
            link._sender.cancel()
            with pytest.raises(
                ReplyLostError, match="the batch was abandoned because of an error: CancelledError"
            ):
                await batch.ended

            link._inbox.fail_all(LOST)  # type: ignore[union-attr]  it is connected

    run(test)


def test_reads_that_are_asked_for_together_fail_together(nats_server: NatsServer) -> None:
    """Each reader gets the error, except one that has left meanwhile."""

    async def test() -> None:
        async with linked(nats_server.url, 4 * SHORT) as link:
            reads = [
                asyncio.create_task(link.perform(Asks((Ask(SILENT, b"", last=f"s-{number}"),))))
                for number in range(5)
            ]
            await until_async(lambda: link._tasks)
            reads[3].cancel()
            failures = await asyncio.gather(*reads, return_exceptions=True)
            kinds = [type(one) for one in failures]
            assert kinds == [ReplyLostError] * 3 + [asyncio.CancelledError, ReplyLostError]
            assert link._reading == 0

    run(test)


def test_reads_together_whose_reply_is_cut_off(nats_server: NatsServer) -> None:
    """What the server had no room for is not taken for absent: it is busy, and is asked again."""

    async def test() -> None:
        async with linked(nats_server.url) as link, connected(nats_server.url) as client:

            async def reply(request: Any) -> None:
                many = json.loads(request.data or b"{}").get("multi_last")
                if many is None:
                    await client.publish(request.reply, b"alone")
                    return

                there = {"Nats-Subject": many[0]}
                await client.publish(request.reply, b"together", headers=there)
                cut = b"NATS/1.0 204 EOB\r\nNats-Num-Pending: 1\r\n\r\n"
                head = f"HPUB {request.reply} {len(cut)} {len(cut)}\r\n".encode()
                await client.flush()
                client._transport.write(head + cut + b"\r\n")

            await listen(client, "cut", cb=reply)
            answers = await asyncio.gather(
                *[link.perform(Asks((Ask("cut", b"", last=f"s-{place}"),))) for place in range(4)]
            )
            found = [(answer.status, answer.data) for ((answer,),) in answers]
            assert found == [(0, b"alone"), (0, b"alone"), (0, b"together"), (503, b"")]

    run(test)


def test_a_link_that_is_closed_while_it_connects(nats_server: NatsServer) -> None:
    """Callers that wait for the connection are refused, and it is not left open."""

    async def test() -> None:
        async with connected(nats_server.url) as mine:
            for servers in ([nats_server.url], mine):
                link = NatsLink(servers, timeout=LONG)
                waiting = asyncio.create_task(link.perform(Greet()))
                await asyncio.sleep(0)
                await link.close()
                with pytest.raises(NotSentError, match="the store was closed"):
                    await waiting

                assert repr(link) == "<NatsLink not connected, 0 requests in flight>"

            assert mine.is_connected
            assert len(mine._subs) == 1, "nothing is left on a connection that is not ours"

    run(test)


class Halting(nats_connecting.CheckedClient):
    """A client that says when an inbox begins to be opened on it, and waits there."""

    halts_at = place = ""
    made: list[Halting]

    def __init__(self, *, encrypted: bool) -> None:
        """Keep count."""
        super().__init__(encrypted=encrypted)
        self.made.append(self)
        self.halted, self.may_go_on = asyncio.Event(), asyncio.Event()

    async def subscribe(self, *args: Any, **options: Any) -> Any:
        """Wait before."""
        await self._halt("subscribe")
        return await super().subscribe(*args, **options)

    async def flush(self, *args: Any) -> None:
        """Wait before."""
        await self._halt("flush")
        await super().flush(*args)

    async def _halt(self, place: str) -> None:
        if place == self.halts_at:
            self.halted.set()
            await self.may_go_on.wait()


@pytest.fixture(params=["subscribe", "flush"])
def halting(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> type[Halting]:
    """Let links connect by clients that halt at one place or another, on request."""
    kind = type("Halting", (Halting,), {"made": [], "place": request.param})
    monkeypatch.setattr(nats_connecting, "CheckedClient", kind)
    return kind


async def halted(kind: type[Halting], link: NatsLink) -> tuple[Halting, asyncio.Task[Any]]:
    """Ask something, and return when its client halts."""
    kind.halts_at = kind.place
    asking = asyncio.create_task(link.perform(Greet()))
    number = len(kind.made)
    await until_async(lambda: len(kind.made) > number)
    client = kind.made[-1]
    await client.halted.wait()
    kind.halts_at = ""
    return client, asking


async def lose_for_good(link: NatsLink) -> None:
    """Close the connection of a link as nats-py does when the server will have no more of it."""
    assert link._client is not None
    await link._client.close()


@pytest.mark.parametrize("again", [False, True])
def test_a_reader_that_is_cancelled_while_it_connects(
    nats_server: NatsServer, halting: type[Halting], again: bool
) -> None:
    """The connection that it had made is closed; the next request makes another, or none is left."""

    async def test() -> None:
        link = NatsLink([nats_server.url], timeout=LONG)
        if again:
            await link.perform(Greet())
            await lose_for_good(link)

        client, reading = await halted(halting, link)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading

        assert client.is_closed
        if not again:
            assert (await link.perform(Greet())).jetstream

        await link.close()
        assert all(one.is_closed for one in halting.made)

    run(test)


def test_a_link_that_is_closed_while_it_makes_another_connection(
    nats_server: NatsServer, halting: type[Halting]
) -> None:
    """Callers that wait for it are refused, and it is not left open."""

    async def test() -> None:
        link = NatsLink([nats_server.url], timeout=LONG)
        await link.perform(Greet())
        await lose_for_good(link)
        client, waiting = await halted(halting, link)
        await link.close()
        client.may_go_on.set()
        with pytest.raises(NotSentError, match="the store was closed"):
            await waiting

        assert len(halting.made) == 2
        assert all(one.is_closed for one in halting.made)

    run(test)


def test_a_closed_user_connection_is_not_replaced(nats_server: NatsServer) -> None:
    """Before it is used or later, nothing was sent, and the link makes none in its place."""

    async def test() -> None:
        async with connected(nats_server.url) as mine:
            used = NatsLink(mine, timeout=LONG)
            await used.perform(Greet())
            await mine.close()
            for link in (used, NatsLink(mine, timeout=LONG)):
                with pytest.raises(NotSentError, match="the connection to NATS was lost"):
                    await link.perform(Greet())

                await link.close()

    run(test)


def test_link_closed_while_it_reconnects(nats_server: NatsServer) -> None:
    """Callers that wait for a connection of the user's to come back are refused when it is closed."""

    async def test() -> None:
        broken = asyncio.Event()

        async def note() -> None:
            broken.set()

        with Proxy(nats_server.port) as proxy:
            url = f"nats://127.0.0.1:{proxy.port}"
            async with connected(url, disconnected_cb=note, reconnect_time_wait=0.05) as mine:
                link = NatsLink(mine, timeout=LONG)
                await link.perform(Greet())
                proxy.cut()
                await broken.wait()
                waiting = asyncio.create_task(link.perform(Greet()))
                await asyncio.sleep(0)
                await link.close()
                with pytest.raises(NotSentError, match="the store was closed"):
                    await waiting

                assert mine.is_connected

    run(test)


def test_connection_that_fails_to_close(
    nats_server: NatsServer, caplog: pytest.LogCaptureFixture
) -> None:
    """What the user's own callback raises is logged, and the link is closed."""

    async def test() -> None:
        async def fail() -> None:
            raise nats_errors.Error("as it wishes")

        with caplog.at_level("DEBUG", "catga_store"):
            async with linked(nats_server.url, closed_cb=fail) as link:
                pass

        assert "not connected" in repr(link)
        assert "closed because of an error: Error('as it wishes')" in caplog.text

    run(test)


def test_a_url_that_the_client_cannot_use() -> None:
    """The error says why, and no server was connected to."""

    async def test() -> None:
        link = NatsLink(["nats://127.0.0.1:4222", "ws://127.0.0.1:4223"], timeout=LONG)
        with pytest.raises(NotSentError, match=r"no NATS server can be reached at .*websocket"):
            await link.perform(Greet())

    run(test)


def test_a_permission_that_others_lack(nats_server: NatsServer) -> None:
    """An error about another subscription does not fail requests of the inbox."""

    async def test() -> None:
        async with linked(nats_server.url) as link:
            text = 'nats: permissions violation for subscription to "elsewhere"'
            await link._on_error(nats_errors.Error(text))
            assert (await link.perform(Greet())).jetstream

    run(test)


def test_the_first_connection_of_a_process_has_an_epoch_of_its_own() -> None:
    """Zero means any connection: a commit would be sent on another one than it was read from."""
    code = "from catga_store.drivers import nats_inbox; print(next(nats_inbox._epochs))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=LONG
    )
    assert int(done.stdout) > 0

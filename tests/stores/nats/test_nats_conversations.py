"""The conversations of the NATS store, held by hand: what it makes of whatever a server may answer.

No server is needed to say what is asked or returned next: each answer is one that servers give.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any

import pytest

import catga_store as cs
from catga_store.protocol.conversation import Conversation
from catga_store.protocol.conversation import NotSentError
from catga_store.protocol.conversation import Pause
from catga_store.protocol.conversation import ReplyLostError
from catga_store.protocol.conversation import Request
from catga_store.protocol.keys import FLOW
from catga_store.protocol.keys import WAIT
from catga_store.protocol.keys import Key
from catga_store.protocol.keys import new_commit_id
from catga_store.protocol.requests import Applied
from catga_store.protocol.requests import Clear
from catga_store.protocol.requests import Commit
from catga_store.protocol.requests import Delete
from catga_store.protocol.requests import Extend
from catga_store.protocol.requests import Head
from catga_store.protocol.requests import Outcome
from catga_store.protocol.requests import Put
from catga_store.protocol.requests import Read
from catga_store.protocol.requests import Record
from catga_store.protocol.requests import Refused
from catga_store.protocol.requests import Resolve
from catga_store.protocol.rules import WaitRow
from catga_store.stores.nats import NatsProtocol
from catga_store.stores.nats import reading
from catga_store.stores.nats.exchange import NatsExchange
from catga_store.stores.nats.layout import NatsLayout
from catga_store.stores.nats.record_text import NOTHING
from catga_store.stores.nats.record_text import Body
from catga_store.stores.nats.record_text import Completed
from catga_store.stores.nats.record_text import Stored
from catga_store.stores.nats.record_text import WaitRecord
from catga_store.stores.nats.record_text import children_of
from catga_store.stores.nats.record_text import decode_item
from catga_store.stores.nats.record_text import decode_record
from catga_store.stores.nats.record_text import decode_wait
from catga_store.stores.nats.record_text import encode_item
from catga_store.stores.nats.record_text import encode_record
from catga_store.stores.nats.record_text import encode_terms
from catga_store.stores.nats.record_text import encode_wait
from catga_store.stores.nats.searching import Search
from catga_store.stores.nats.setup import lay_out
from catga_store.stores.nats.setup import prepare
from catga_store.stores.nats.tables import NatsTables
from catga_store.stores.nats.tables import Snapshot
from catga_store.stores.nats.transport import Answer
from catga_store.stores.nats.transport import Asks
from catga_store.stores.nats.transport import Greeting
from catga_store.stores.nats.transport import Message
from catga_store.stores.nats.transport import Publish
from catga_store.stores.nats.transport import Tell

LATER, NOW = 60.0, 0.0
"""Seconds of a deadline that does not pass here, and of one that has."""

LAYOUT = NatsLayout("b")
F = Key(FLOW, "f")
W = Key(WAIT, "w")
LOST = ReplyLostError("the line broke")
NOT_SENT = NotSentError("nobody listens")
NOBODY = Answer(503, {}, b"")
NOT_FOUND = Answer(404, {"Description": "Message Not Found"}, b"")
END = Answer(204, {"Description": "EOB"}, b"")
BUSY, RACED, FULL, ODD = 10008, 10071, 10023, 10013
"""Codes of JetStream: it is busy, the sequence is another one, there is no room, another refusal."""


def hold(conversation: Conversation[Any], *answers: Any) -> tuple[Any, list[Request[Any]]]:
    """Hold a conversation with a server that gives these answers; what it returns, and what it asked.

    Errors are raised to it, pauses and hints are not waited for, and every answer must be asked for.
    """
    left = list(answers)
    asked: list[Request[Any]] = []
    request = next(conversation)
    while True:
        try:
            if isinstance(request, Pause | Tell):
                request = conversation.send(None)
                continue

            asked.append(request)
            answer = left.pop(0)
            go_on = conversation.throw if isinstance(answer, Exception) else conversation.send
            request = go_on(answer)
        except StopIteration as stop:
            assert left == []
            return stop.value, asked


def exchange(seconds: float = LATER, *, leader: bool = False) -> NatsExchange:
    """Make what asks, for operations that may take so long."""
    made = NatsExchange(LAYOUT.stream, seconds, LAYOUT.layout)
    made.leader = leader
    return made


def protocol(seconds: float = LATER) -> NatsProtocol:
    """Make a store that has been prepared."""
    made = NatsProtocol(bucket="b", timeout=seconds)
    made._prepared = True
    made._exchange.heed({})
    return made


def said(fields: object) -> Answer:
    """Answer in JSON, as JetStream does."""
    return Answer(0, {}, json.dumps(fields).encode())


def error(code: int) -> Answer:
    """Refuse, as JetStream does."""
    return said({"error": {"code": 500, "err_code": code, "description": "as it wishes"}})


def stored(subject: str, text: bytes, sequence: int = 1, **headers: str) -> Answer:
    """Answer a Direct Get with a message."""
    more = {name.replace("_", "-"): value for name, value in headers.items()}
    return Answer(0, {"Nats-Subject": subject, "Nats-Sequence": str(sequence), **more}, text)


def payloads(asked: list[Request[Any]]) -> list[Any]:
    """Read what each request asked for, if it did."""
    return [
        json.loads(one.payload or b"null")
        for request in asked
        if isinstance(request, Asks)
        for one in request.asks
    ]


def head(**fields: Any) -> Head:
    """Make the head of a flow, written by the commit "before"."""
    return Head(1, 0, 0, 0, commits=("before",))._replace(**fields)


def flow(sequence: int = 7, body: bytes | Body = b"{}", **fields: Any) -> Answer:
    """Answer a Direct Get with a flow."""
    kept = body if isinstance(body, Body) else Body(body)
    return stored(LAYOUT.subject(F), encode_record(head(**fields), kept, moved=False), sequence)


def put(key: Key = F, **fields: Any) -> Put:
    """Plan a new flow."""
    return Put(key, head(commits=(), **fields), b"{}", None)


def commit(*changes: Any) -> Commit:
    """Make a commit that has just begun."""
    return Commit(new_commit_id(), 0, changes, None)


# --- asking -------------------------------------------------------------------------------------------


def test_unsent_read_is_an_outage() -> None:
    """A request that never left is not asked again: the link has waited for the server already."""
    asks = exchange()
    with pytest.raises(cs.StoreUnavailableError, match="nobody listens; nothing was read"):
        hold(asks.fetch(["a"], asks.deadline()), NOT_SENT)


def test_no_responders() -> None:
    """A stream without a leader is asked again until the deadline, and then said to have none."""
    asks = exchange()
    found, asked = hold(asks.fetch(["a"], asks.deadline()), ((NOBODY,),), ((NOT_FOUND,),))
    assert found == {"a": NOTHING}
    assert len(asked) == 2
    asks = exchange(NOW)
    with pytest.raises(
        cs.StoreUnavailableError, match=r"has no leader or does not exist; .*nothing was read"
    ):
        hold(asks.fetch(["a"], asks.deadline()), ((NOBODY,),))


def test_busy_api_is_asked_again() -> None:
    """A busy API is asked again until the deadline; any other refusal is an error at once."""
    asks = exchange()
    deleted = hold(
        asks.call("DELETE", {}, asks.deadline()), ((error(BUSY),),), ((said({"success": True}),),)
    )
    assert deleted[0] == {"success": True}
    with pytest.raises(
        cs.StoreUnavailableError,
        match=r"refused the request, so nothing was written: as it wishes \(10013\)",
    ):
        hold(asks.call("DELETE", {}, asks.deadline()), ((error(ODD),),))

    asks = exchange(NOW)
    with pytest.raises(cs.StoreUnavailableError, match=r"as it wishes \(10008\)"):
        hold(asks.call("DELETE", {}, asks.deadline()), ((error(BUSY),),))


def test_removed_stream_has_an_error_of_its_own() -> None:
    """It is not an outage: it does not come back by itself."""
    asks = exchange()
    with pytest.raises(
        cs.StoreConfigError, match="'KV_b' no longer exists; opening the store again"
    ):
        hold(asks.call("INFO", {}, asks.deadline()), ((error(10059),),))


@pytest.mark.parametrize("subjects", [["a"], ["a", "b"]])
def test_refused_direct_get(subjects: list[str]) -> None:
    """Neither one record nor many are taken for absent because the server would not look."""
    asks = exchange()
    refused = Answer(408, {"Description": "Bad Request"}, b"")
    with pytest.raises(
        cs.StoreUnavailableError,
        match=r"refused the request, so nothing was written: Bad Request \(408\)",
    ):
        hold(asks.fetch(subjects, asks.deadline()), ((refused,),))


def test_reply_cut_off_is_completed() -> None:
    """What did not fit into the first reply is asked for by itself."""
    asks = exchange()
    cut = Answer(204, {"Nats-Num-Pending": "1"}, b"")
    found, asked = hold(
        asks.fetch(["a", "b", "c"], asks.deadline()),
        ((stored("a", b"1"), stored("b", b"2"), cut),),
        ((stored("c", b"3"), END),),
    )
    assert [one.text for one in found.values()] == [b"1", b"2", b"3"]
    assert payloads(asked) == [{"multi_last": ["a", "b", "c"]}, {"multi_last": ["c"]}]


# --- replicas -----------------------------------------------------------------------------------------


def leads(sequence: int) -> tuple[Answer]:
    """Answer as the leader how far the stream goes."""
    return (said({"state": {"last_seq": sequence}}),)


def up_to(sequence: int, *answers: Answer) -> tuple[Answer, ...]:
    """Answer as a replica that has come so far."""
    end = Answer(204, {"Nats-UpTo-Sequence": str(sequence)}, b"")
    return (*answers, stored(LAYOUT.layout, b"{}"), end)


NINE = [f"s-{number}" for number in range(9)]
"""More than the leader is asked for one by one."""


def test_replica_behind_is_not_used() -> None:
    """It is asked again, as is a leader that does not say how far it has come."""
    asks = exchange(leader=True)
    found, asked = hold(
        asks.fetch(NINE, asks.deadline()),
        (leads(5), up_to(4)),
        ((error(BUSY),), up_to(5)),
        (leads(5), up_to(5, stored("s-3", b"new"))),
    )
    assert found["s-3"].text == b"new"
    assert len(asked) == 3


def test_replicas_that_stay_behind_are_not_asked_again() -> None:
    """After some looks the leader is asked for each record, and for names as well."""
    asks = exchange(leader=True)
    behind = [(leads(5), up_to(4))] * 6
    message = {"subject": "s-0", "seq": 5, "data": base64.b64encode(b"text").decode()}
    there, absent = (said({"message": message}),), (error(10037),)
    found, _ = hold(asks.fetch(NINE, asks.deadline()), *behind, (there, *[absent] * 8))
    assert found == {"s-0": Stored(5, b"text"), **dict.fromkeys(NINE[1:], NOTHING)}
    named = said({"state": {"subjects": {"x.2": 1, "x.1": 1}}, "total": 2})
    names, asked = hold(asks.names_at_once(["x.*"], asks.deadline(), 10), *behind, ((named,),))
    assert names == (["x.1", "x.2"], 0)
    assert payloads(asked)[1] == {"multi_last": ["x.*", LAYOUT.layout], "batch": 11}


def test_busy_leader_is_asked_for_the_rest() -> None:
    """Only for that; a refusal, or a deadline that has passed, is an outage."""
    asks = exchange(leader=True)
    absent = (error(10037),)
    found, asked = hold(
        asks.fetch(["a", "b"], asks.deadline()), (absent, (error(BUSY),)), (absent,)
    )
    assert found == {"a": NOTHING, "b": NOTHING}
    assert payloads(asked)[2:] == [{"last_by_subj": "b"}]
    with pytest.raises(cs.StoreUnavailableError, match="10013"):
        hold(asks.fetch(["a"], asks.deadline()), ((error(ODD),),))

    asks = exchange(NOW, leader=True)
    with pytest.raises(cs.StoreUnavailableError, match="10008"):
        hold(asks.fetch(["a"], asks.deadline()), ((error(BUSY),),))


# --- names --------------------------------------------------------------------------------------------


def page(total: int, *names: str) -> tuple[tuple[Answer]]:
    """Name some of the subjects that there are."""
    return ((said({"state": {"subjects": dict.fromkeys(names, 1)}, "total": total}),),)


def test_names_from_a_busy_leader() -> None:
    """The same page is asked for again; a refusal is not an empty list."""
    asks = exchange()
    names, asked = hold(asks.names(["x.*"], asks.deadline()), ((error(BUSY),),), page(1, "x.1"))
    assert names == [["x.1"]]
    assert [one["offset"] for one in payloads(asked)] == [0, 0]
    with pytest.raises(cs.StoreUnavailableError, match="10013"):
        hold(asks.names(["x.*"], asks.deadline()), ((error(ODD),),))


def test_names_removed_between_pages() -> None:
    """A page that begins after the end of the one before is asked for from further ahead."""
    asks = exchange()
    every = [f"x.{number:05}" for number in range(3000)]
    names, asked = hold(
        asks.names(["x.*"], asks.deadline()),
        page(3000, *every[:2000]),
        page(1800, *every[2200:]),  # 1,200 of the first are gone
        page(1800, *every[1200:]),
    )
    assert names == [every]
    assert [one["offset"] for one in payloads(asked)] == [0, 1000, 0]


# --- publishing ---------------------------------------------------------------------------------------


def test_repeatable_publish_is_sent_until_stored() -> None:
    """Only what was not acknowledged, after a lost reply everything."""
    asks = exchange()
    messages = [Message("a", b"", {}), Message("b", b"", {})]
    sequences, asked = hold(
        asks.surely(messages, asks.deadline()),
        LOST,
        (said({"seq": 1}), error(BUSY)),
        (NOBODY,),
        (said({"seq": 2}),),
    )
    assert sequences == [1, 2]
    assert [len(one.messages) for one in asked if isinstance(one, Publish)] == [2, 2, 1, 1]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (NOT_SENT, "nobody listens; nothing was written"),
        (LOST, "the line broke; no record was written"),
        ((NOBODY,), "no server leads the stream; .*no record was written"),
        ((error(BUSY),), "as it wishes .10008.; no record was written"),
        ((error(FULL),), "is out of space, so nothing was written: as it wishes"),
    ],
)
def test_repeatable_publish_past_the_deadline(answer: Any, message: str) -> None:
    """The error says what the server had said."""
    asks = exchange(NOW)
    with pytest.raises(cs.StoreUnavailableError, match=message):
        hold(asks.surely([Message("a", b"", {})], asks.deadline()), answer)


def test_purge_is_sent_until_accepted() -> None:
    """A refusal has removed nothing; what was not sent neither."""
    asks = exchange()
    _, asked = hold(
        asks.purge(7, asks.deadline()), ((NOBODY,),), ((error(BUSY),),), ((said({"purged": 5}),),)
    )
    assert len(asked) == 3
    with pytest.raises(cs.StoreUnavailableError, match="10013"):
        hold(asks.purge(7, asks.deadline()), ((error(ODD),),))

    with pytest.raises(cs.StoreUnavailableError, match="nobody listens; nothing was removed"):
        hold(asks.purge(7, asks.deadline()), NOT_SENT)


# --- the first use ------------------------------------------------------------------------------------


def first_use(seconds: float) -> Conversation[None]:
    """Begin to use a store."""
    return prepare(
        exchange(seconds),
        LAYOUT,
        partitions=1,
        replicas=1,
        max_bytes=-1,
        stale_reads=False,
    )


HELLO = Greeting("2.12.3", True, 1 << 20)


def test_lost_greeting_is_asked_for_again() -> None:
    """Until the deadline; what was not sent is an outage at once."""
    with pytest.raises(cs.StoreUnavailableError, match="nobody listens; nothing was read"):
        hold(first_use(LATER), LOST, NOT_SENT)

    with pytest.raises(cs.StoreUnavailableError, match="the line broke; nothing was read"):
        hold(first_use(NOW), LOST)


def test_set_up_waits_for_the_created_stream() -> None:
    """Set-up continues until its deadline: of several clients, some hear of the stream later."""
    gone, made = ((error(10059),),), ((said({}),),)
    hold_until_laid_out(gone, made, gone, ((error(10058),),), gone, made)
    with pytest.raises(
        cs.StoreUnavailableError, match="is not available yet, so nothing was written"
    ):
        hold(first_use(NOW), HELLO, gone, made, gone)


def test_stream_settings_from_a_busy_server() -> None:
    """It is asked again until the deadline."""
    hold_until_laid_out(((error(BUSY),),), ((error(10059),),), ((said({}),),))
    with pytest.raises(cs.StoreUnavailableError, match=r"as it wishes \(10008\)"):
        hold(first_use(NOW), HELLO, ((error(BUSY),),))


def test_stream_creation_on_a_busy_server() -> None:
    """It is asked again until the deadline; a stream that others have made meanwhile is as good."""
    gone = ((error(10059),),)
    _, asked = hold_until_laid_out(gone, ((error(BUSY),),), ((error(10058),),))
    assert sum("CREATE" in one.asks[0].subject for one in asked if isinstance(one, Asks)) == 2
    with pytest.raises(cs.StoreUnavailableError, match=r"as it wishes \(10008\)"):
        hold(first_use(NOW), HELLO, gone, ((error(BUSY),),))


def hold_until_laid_out(*answers: Any) -> tuple[Any, list[Request[Any]]]:
    """Begin to use a store whose stream turns out to be as it must, and laid out."""
    config = {
        "subjects": LAYOUT.subjects,
        "retention": "limits",
        "storage": "file",
        "discard": "new",
        "max_msgs_per_subject": 1,
        "num_replicas": 1,
        "duplicate_window": 600 * 10**9,
        **dict.fromkeys(
            (
                "allow_direct",
                "allow_rollup_hdrs",
                "allow_msg_ttl",
                "allow_atomic",
                "deny_delete",
            ),
            True,
        ),
        "name": LAYOUT.stream,
    }
    laid_out = stored(LAYOUT.layout, b'{"layout":1,"partitions":1}')
    return hold(first_use(LATER), HELLO, *answers, ((said({"config": config}),),), ((laid_out,),))


def test_layout_whose_reply_is_lost() -> None:
    """It may have been stored; with the deadline behind it the store was not used yet."""
    laid_out = stored(LAYOUT.layout, b'{"layout":1,"partitions":1}')
    asks = exchange()
    hold(lay_out(asks, LAYOUT, 1, asks.deadline()), ((NOT_FOUND,),), LOST, ((laid_out,),))
    asks = exchange(NOW)
    for failure in (LOST, NOT_SENT):
        with pytest.raises(
            cs.StoreUnavailableError, match="; the store may have been created, but"
        ):
            hold(lay_out(asks, LAYOUT, 1, asks.deadline()), ((NOT_FOUND,),), failure)


# --- commits ------------------------------------------------------------------------------------------


def test_chunked_flow_written_while_it_is_read() -> None:
    """The chunks of the old body are gone, and the new one is answered."""
    chunked = Body(b"", "g", 2, 6)
    (record,), _ = hold(
        protocol().converse(Read((F,), 0)),
        ((flow(body=chunked),),),
        ((stored(LAYOUT.chunk(F, "g", 0), b"abc"), END),),
        ((flow(8, b"new"),),),
    )
    assert isinstance(record, Record)
    assert record.body == b"new"


def test_head_larger_than_a_message_is_refused() -> None:
    """Before anything is sent; a body, an error or a position would be kept in several messages."""
    store = protocol()
    store._exchange.max_payload = 4096
    request = commit(put(owner="o" * 3000))
    with pytest.raises(
        cs.RecordTooLargeError, match="the server accepts at most 4096 bytes in one message"
    ):
        hold(store.converse(request))


def test_commit_larger_than_a_batch_is_refused() -> None:
    """It is refused as a whole before anything is sent."""
    request = commit(*(put(Key(FLOW, f"f-{number}")) for number in range(1000)))
    with pytest.raises(cs.CommitTooLargeError, match=r"needs 1001 messages.*split it into"):
        hold(protocol().converse(request))


def test_write_that_always_loses_the_race() -> None:
    """An extension that is not written in time has not been, and says what the server said last."""
    claimed = flow(claim="c", due_ms=5)
    with pytest.raises(
        cs.StoreUnavailableError, match=r"'as it wishes \(10071\)'\), so nothing was"
    ):
        hold(protocol(NOW).converse(Extend(F, "c", 9, 0)), ((claimed,),), (error(RACED),))


def test_extension_that_lost_a_race_is_read_again() -> None:
    """The winner of the race has ended the claim."""
    answer, _ = hold(
        protocol().converse(Extend(F, "c", 9, 0)),
        ((flow(claim="c", due_ms=5),),),
        (error(RACED),),
        ((flow(8, claim="other"),),),
    )
    assert answer is None


def test_removal_that_nothing_remembers_was_done() -> None:
    """Its reply was lost and its tombstone has expired; the server knows the id."""
    revision = "before@7"
    request = commit(Delete(F, revision))
    reply, _ = hold(
        protocol().converse(request),
        ((flow(), END),),  # with the root of its parts, of which there is none
        ((said({"state": {}}),),),  # the steps of the flow: there are none
        LOST,
        ((NOT_FOUND,),),  # the record
        ((NOT_FOUND,),),  # the log
        (said({"seq": 9, "duplicate": True}),),  # the fence
        ((NOT_FOUND,),),  # the log
        ((NOT_FOUND,),),  # the record again: no entries are missing
    )
    assert reply == Applied((Outcome(accepted=True),))


def test_batch_stored_in_spite_of_no_room() -> None:
    """Its last record is there, and so is everything before it: it was written."""
    request = commit(put(), put(Key(FLOW, "g")))
    seen: list[Publish] = []

    def conversation() -> Conversation[Any]:
        talk = protocol().converse(request)
        publish = next(talk)
        assert isinstance(publish, Publish)
        seen.append(publish)
        yield talk.send((error(FULL),))
        last = publish.messages[-1]
        try:
            assert isinstance(talk.send(((stored(last.subject, last.payload, 40), END),)), Tell)
            talk.send(None)
        except StopIteration as stop:
            return stop.value

    reply, _ = hold(conversation(), None)
    assert [one.revision for one in reply.outcomes] == [f"{request.id}@39", f"{request.id}@40"]


def test_batch_of_unknown_extent_is_uncertain() -> None:
    """There was no room in the middle of it, and then no answer: it is uncertain."""
    request = commit(put(), put(Key(FLOW, "g")))
    with pytest.raises(cs.CommitUncertainError):
        hold(protocol(NOW).converse(request), (error(FULL),), ((NOBODY,),), ((NOBODY,),))


def fenced(request: Resolve) -> Answer:
    """Return what an earlier `resolve` of the same commit has left."""
    return stored(LAYOUT.log(request.id), b'{"layout":1,"fenced":true}', 50)


def test_fence_whose_reply_is_lost() -> None:
    """It may be there; if it is not, it is sent again, as when the server is busy."""
    request = Resolve(new_commit_id(), (F,))
    applied, asked = hold(
        protocol().converse(request),
        ((NOT_FOUND,),),
        LOST,
        ((NOT_FOUND,),),
        (error(BUSY),),
        ((fenced(request),),),
        ((NOT_FOUND,),),  # the record
    )
    assert applied is None
    assert sum(isinstance(one, Publish) for one in asked) == 2


@pytest.mark.parametrize("answer", [LOST, (error(BUSY),), NOT_SENT])
def test_commit_not_fenced_in_time_stays_uncertain(answer: Any) -> None:
    """It may still arrive."""
    request = Resolve(new_commit_id(), (F,))
    with pytest.raises(
        cs.CommitUncertainError, match="to determine whether the commit was applied"
    ) as caught:
        hold(protocol(NOW).converse(request), ((NOT_FOUND,),), answer)

    assert caught.value.commit_id == request.id


def test_removal_before_the_fence_shows_in_the_tombstone() -> None:
    """The record says who removed it, as long as the server keeps what is left of it."""
    request = Resolve(new_commit_id(), (F,))
    tombstone = stored(LAYOUT.subject(F), request.id.encode(), 40, KV_Operation="PURGE")
    applied, _ = hold(
        protocol().converse(request),
        ((fenced(request),),),
        ((tombstone,),),
        ((tombstone,),),  # whether entries are missing
    )
    assert applied == Applied(())


def test_clear_whose_sign_is_gone_was_done() -> None:
    """Its reply was lost; while the sign is there it is not certain, and without an answer neither."""
    sign = stored("sign", b'{"clearing":true}')
    laid_out = stored(LAYOUT.layout, b'{"layout":1,"partitions":1}')
    begun = ((laid_out,),), (said({"seq": 1}), said({"seq": 2}))
    purged = ((said({"purged": 1}),),)
    for rest in ((((NOT_FOUND,),),), (((sign,),), purged)):
        answer, _ = hold(protocol().converse(Clear()), *begun, LOST, *rest)
        assert answer is None

    for then in ((), (NOT_SENT,)):
        with pytest.raises(cs.CommitUncertainError) as caught:
            hold(protocol(LATER if then else NOW).converse(Clear()), *begun, LOST, *then)

        request = Resolve(caught.value.commit_id, ())
        assert hold(protocol().converse(request), ((NOT_FOUND,),))[0] == Applied(())
        with pytest.raises(cs.CommitUncertainError):  # it may still arrive
            hold(protocol().converse(request), ((sign,),))


def test_memory_of_revisions_is_limited() -> None:
    """What was remembered first is forgotten first."""
    kept: dict[int, int] = {}
    for number in range(5):
        reading.keep(kept, number, number, 3)

    assert list(kept) == [2, 3, 4]


def test_refusal_after_a_lost_reply() -> None:
    """After a lost reply a refusal is believed once the commit is fenced."""
    request = commit(put())
    reply, _ = hold(
        protocol().converse(request),
        LOST,
        ((flow(8),),),  # another client has made it
        ((NOT_FOUND,),),  # the log
        (said({"seq": 9}),),  # the fence
        ((fenced(Resolve(request.id, ())),),),
        ((flow(8),),),  # the record
    )
    assert isinstance(reply, Refused)


# --- conditions ---------------------------------------------------------------------------------------


def condition(**fields: Any) -> WaitRecord:
    """Make a pending condition of "a" and "b", with completions beside it."""
    made = WaitRecord(WaitRow(head(revision="r"), expected=2), "life")
    made.terms = Body(encode_terms(("a", "b")))
    made.spilled = 2
    for name, value in fields.items():
        setattr(made, name, value)

    return made


def test_completions_removed_while_they_are_read() -> None:
    """The condition was cleared between two reads: what is left of it is answered."""
    names = [LAYOUT.item(W, "life", child) for child in "ab"]
    there = stored(names[0], encode_item(Completed(True, b"1", "c")))
    (record,), _ = hold(
        protocol().converse(Read((W,), 0)),
        ((stored(LAYOUT.subject(W), encode_wait(condition())),),),
        page(2, *names),
        ((there, END),),
    )
    assert [(item.child, item.payload) for item in record.items] == [("a", b"1")]


def tables(key: Key, text: bytes) -> NatsTables:
    """Make what the rules work on, of one record that was read."""
    return NatsTables(LAYOUT, Snapshot({LAYOUT.subject(key): Stored(7, text)}), "c")


def test_tables_do_not_stand_for_the_server() -> None:
    """Rules that list or clear ask the server: what was read is not all there is."""
    made = tables(F, b"")
    for ask in (made.find, made.count, made.clear, made.due_flows):
        with pytest.raises(AssertionError, match="this method needs the server"):
            ask()


def test_spilled_completions_go_with_their_condition() -> None:
    """Removing the condition removes them, and its next life sees none of them."""
    made = tables(W, encode_wait(condition()))
    row = made.wait(W)
    assert row is not None
    made.remove_wait(W, row)
    assert made.dropped == [LAYOUT.items_and_parts(W, "life")]
    assert made.wait(W) is None
    assert [write.wait for write in made.writes()] == [None]


# --- what cannot be read ------------------------------------------------------------------------------


def record_without(*names: str) -> bytes:
    """Make a flow whose head lacks something."""
    fields = json.loads(encode_record(head(), Body(), moved=False).partition(b"\n")[0])
    return json.dumps({k: v for k, v in fields.items() if k not in names}).encode() + b"\n"


UNREADABLE: list[tuple[Callable[[], object], str]] = [
    (lambda: decode_record(F, Stored(1, b"garbage")), "flow 'f' cannot be read"),
    (lambda: decode_record(F, Stored(1, b"[]")), "flow 'f' cannot be read"),
    (
        lambda: decode_record(F, Stored(1, b'{"layout":2}')),
        "layout 2, but this release of catga_store supports only layout 1",
    ),
    (lambda: decode_record(F, Stored(1, record_without("version"))), "the head of .*'version'"),
    (lambda: decode_record(F, Stored(1, record_without("commits"))), "the head of .*'commits'"),
    (lambda: decode_wait(W, Stored(1, record_without())), "the head of .*'revision'"),
    (lambda: children_of(W, b'{"layout":1}'), "the children of .*'children'"),
    (lambda: children_of(W, b"garbage"), "the children of"),
    (lambda: decode_item(W, b'{"layout":1,"result":"1"}'), "a completion of .*'success'"),
    (lambda: decode_item(W, b'{"layout":1,"result":1}'), "a completion of .*encode"),
]


@pytest.mark.parametrize(("read", "message"), UNREADABLE)
def test_unreadable_text_is_corrupt(read: Callable[[], object], message: str) -> None:
    """Records, conditions, children and completions alike: the error names the key and says why."""
    with pytest.raises(
        cs.CorruptRecordError, match=f"{message}.*(nothing was changed|supports 1)"
    ) as caught:
        read()

    assert caught.value.key in (tuple(F), tuple(W))


def test_completion_of_bytes_that_are_not_text() -> None:
    """Lone surrogates stand for them, which not every writer of JSON takes."""
    item = Completed(True, b"\xff\x00", "c")
    assert decode_item(W, encode_item(item)) == item


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ([(error(ODD),)], "NATS refused the request"),
        ([NOT_SENT], "nobody listens; nothing was written"),
    ],
)
def test_update_refused_by_the_server(answers: list[Any], message: str) -> None:
    """What most commits are, one record without index entries, has the errors of all others."""
    old = head(commits=(), revision="c@5")
    change = Put(F, old, b"{}", old.revision, old)
    used = protocol()
    used._exchange.is_near = True
    used._reader.remember(old.revision, reading.UNKNOWN, used._exchange.trust)
    with pytest.raises(cs.StoreUnavailableError, match=message):
        hold(used.converse(commit(change)), *answers)


SEEN = {
    "created": "2030-01-01T00:00:00Z",
    "cluster": {"leader": "n1", "leader_since": "2030-01-02T00:00:00Z"},
    "state": {"last_seq": 10},
}


@pytest.mark.parametrize(
    ("now", "is_trusted"),
    [
        (SEEN, True),
        (SEEN | {"state": {"last_seq": 12}}, True),
        (SEEN | {"state": {"last_seq": 9}}, False),
        (SEEN | {"created": "2030-01-03T00:00:00Z", "state": {"last_seq": 12}}, False),
        (SEEN | {"cluster": {"leader": "n2", "leader_since": "2030-01-02T00:00:00Z"}}, False),
        (SEEN | {"cluster": {"leader": "n1", "leader_since": "2030-01-03T00:00:00Z"}}, False),
    ],
)
def test_what_was_read_is_trusted_while_the_stream_only_goes_on(
    now: dict[str, Any], is_trusted: bool
) -> None:
    """Another stream, another leader or an older state may lack what was read."""
    store = protocol()
    store._exchange.heed(SEEN)
    before = store._exchange.trust
    store._exchange.heed(now, 10)
    assert (store._exchange.trust == before) is is_trusted


@pytest.mark.parametrize(("number", "is_known"), [(1, False), (2, True)])
def test_refused_index_entries_of_a_single_record_leave_it_unknown(
    number: int, is_known: bool
) -> None:
    """It is sent together with its entries; the records of a larger commit go with theirs or not at all."""
    puts = [put(Key(FLOW, f"f{place}")) for place in range(number)]
    refusal = cs.StoreConfigError(
        f"no right to publish to '{LAYOUT.entries[0]}x'; nothing was written"
    )
    store = protocol()
    told = store._commits._refused(commit(*puts), [], store._exchange.deadline(), refusal)
    assert (told is refusal) is is_known
    assert is_known or "may have been written" in str(told)


def test_completion_of_an_older_version_is_in_no_parts() -> None:
    """It was written before completions could be."""
    item = decode_item(W, encode_item(Completed(True, b"1", "c", True, 3)))
    assert (item.payload, item.parts) == (b"1", 3)
    text = json.loads(encode_item(Completed(True, b"1", "c", True, 3)))
    del text["parts"]
    assert decode_item(W, json.dumps(text).encode()).parts == 0


def test_a_search_that_knows_no_better_takes_the_middle() -> None:
    """Of what is too near and what is too far; unless it may as well go on by strides."""
    search = Search(first=10, farthest=1000, stride=10, distance=lambda _: 0)
    assert search.between(100, 300, [], 5, sure=True) == 200
    assert search.between(100, 300, [], 5, sure=False) < 0

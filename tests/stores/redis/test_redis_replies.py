"""Replies that a server seldom sends: conversations of the Redis store, played by hand.

No server is asked. A test says what the transport replies to each request, as the server would have:
errors as values, lost replies and requests that were never sent as what a link raises.
"""

from __future__ import annotations

import logging
import re
from typing import Any

import pytest
from redis import exceptions

import catga_store as cs
from catga_store.protocol import failures
from catga_store.protocol.conversation import NotSentError
from catga_store.protocol.conversation import Pause
from catga_store.protocol.conversation import ReplyLostError
from catga_store.protocol.conversation import run
from catga_store.protocol.keys import FLOW
from catga_store.protocol.keys import PART
from catga_store.protocol.keys import PROGRESS
from catga_store.protocol.keys import WAIT
from catga_store.protocol.keys import Key
from catga_store.protocol.requests import Applied
from catga_store.protocol.requests import Clear
from catga_store.protocol.requests import Commit
from catga_store.protocol.requests import Count
from catga_store.protocol.requests import Delete
from catga_store.protocol.requests import Due
from catga_store.protocol.requests import Extend
from catga_store.protocol.requests import Filter
from catga_store.protocol.requests import Find
from catga_store.protocol.requests import Head
from catga_store.protocol.requests import Parts
from catga_store.protocol.requests import Ping
from catga_store.protocol.requests import Put
from catga_store.protocol.requests import Read
from catga_store.protocol.requests import Refused
from catga_store.protocol.requests import RemoveParts
from catga_store.protocol.requests import Scan
from catga_store.protocol.requests import Steps
from catga_store.protocol.requests import Sweep
from catga_store.stores.redis import RedisProtocol
from catga_store.stores.redis.commit_args import LARGE
from catga_store.stores.redis.index import PAGE
from catga_store.stores.redis.index import newest_first
from catga_store.stores.redis.index import stamp_of
from catga_store.stores.redis.layout import encode
from catga_store.stores.redis.layout import write_head
from catga_store.stores.redis.transport import Pipe

NOW = 1_893_456_000_000
F, G, W = Key(FLOW, "f"), Key(FLOW, "g"), Key(WAIT, "w")
STEP = Key(PROGRESS, "f", 3)
HEAD = Head(1, 0, NOW, NOW)
HEAD_TEXT = write_head(HEAD)
TERMS_TEXT = encode((("a",), False, None, None))
WRONG_TYPE = exceptions.ResponseError("WRONGTYPE Operation against a key of the wrong kind")
MOVING = exceptions.TryAgainError("Multiple keys request during rehashing of slot")
NOT_SENT, LOST = NotSentError("cannot be reached"), ReplyLostError("no reply in time")
PLANNED = b"[[1,null,0,%d]]" % NOW
REMOVE = RemoveParts("f", "p/", None, 500, NOW)


class Transport:
    """Gives each request the next of its replies, and keeps the requests."""

    def __init__(self, *answers: tuple[Any, ...] | Exception) -> None:
        self._answers = iter(answers)
        self.asked: list[Pipe] = []
        self.pauses = 0

    def __call__(self, request: Any) -> Any:
        if isinstance(request, Pause):
            self.pauses += 1
            return None

        self.asked.append(request)
        answer = next(self._answers)
        if isinstance(answer, Exception):
            raise answer

        assert len(answer) == len(request.commands)
        return answer

    def ends(self) -> bool:
        """Whether every answer was asked for."""
        return next(self._answers, None) is None


def protocol(*, timeout: float = 10, prepared: bool = True) -> RedisProtocol:
    """Make a protocol that has done its first use, unless it is not `prepared`."""
    made = RedisProtocol(prefix="t:", partitions=1, timeout=timeout)
    made._prepared = prepared
    return made


def asked(request: Any, *answers: tuple[Any, ...] | Exception, **options: Any) -> Any:
    """Return the reply to a request when the transport returns exactly these replies."""
    transport = Transport(*answers)
    try:
        return run(protocol(**options).converse(request), transport)
    finally:
        assert transport.ends()


def put(flow_id: str = "f", body: bytes = b"{}") -> Put:
    """A new flow."""
    return Put(Key(FLOW, flow_id), HEAD, body, None)


def commit(*changes: Any, commit_id: str = "c" * 32) -> Commit:
    """A commit of changes."""
    return Commit(commit_id, NOW, changes, None)


# --- the first use --------------------------------------------------------------------------------


def test_user_without_the_right_to_info() -> None:
    """If the ACL refuses INFO, the version is not checked and the layout decides."""
    denied = exceptions.NoPermissionError("this user has no permissions to run 'info'")
    asked(Ping(), (denied,), ([b"2", b"1"],), (1,), prepared=False)


@pytest.mark.parametrize(
    ("layout", "error", "said"),
    [
        ([b"one", b"1"], cs.CorruptRecordError, "store's layout cannot be read"),
        ([b"1"], cs.CorruptRecordError, "store's layout cannot be read"),
        ([b"1", None], cs.CorruptRecordError, "store's layout cannot be read"),
        (
            [b"1", b"1"],
            cs.StoreConfigError,
            "layout version 1, but this release of catga_store supports only version 2",
        ),
        ([b"2", b"3"], cs.PartitionCountError, "created with 3 partitions"),
    ],
)
def test_layout_other_than_opened_is_refused(layout: list[Any], error: Any, said: str) -> None:
    """It is refused before any record is read, and the error says what it is."""
    with pytest.raises(error, match=said):
        asked(Ping(), (b"redis_version:8.2.0",), (layout,), prepared=False)


def test_lost_layout_reply_is_not_reported_as_unwritten() -> None:
    """After a lost reply, a retry that cannot be sent does not mean that nothing was written."""
    info = (b"redis_version:8.2.0",)
    with pytest.raises(cs.StoreUnavailableError, match="an earlier attempt may have taken effect"):
        asked(Ping(), info, LOST, NOT_SENT, prepared=False)

    with pytest.raises(cs.StoreUnavailableError, match="nothing was written"):
        asked(Ping(), info, NOT_SENT, prepared=False)


def test_repr_names_the_prefix() -> None:
    """The prefix says which store it is."""
    assert repr(protocol()) == "<RedisProtocol 't:'>"


# --- a server that is busy, or refuses ------------------------------------------------------------


def test_moving_partition_is_asked_again() -> None:
    """Until it replies, or until the timeout, which is a `StoreUnavailableError`."""
    transport = Transport((MOVING,), (MOVING,), ([None],))
    assert run(protocol().converse(Steps("f", NOW)), transport) == ()
    assert (len(transport.asked), transport.pauses) == (3, 2)
    with pytest.raises(cs.StoreUnavailableError, match="moving this partition") as caught:
        asked(Steps("f", NOW), (MOVING,), timeout=0)

    assert caught.value.__cause__ is MOVING


@pytest.mark.parametrize(
    ("answer", "error", "said"),
    [
        (
            exceptions.ConnectionError("max number of clients reached"),
            cs.StoreUnavailableError,
            "the server refused the connection, so nothing was written: max number of clients reached",
        ),
        (
            exceptions.ResponseError("ERR wrong number of arguments"),
            cs.StoreConfigError,
            "the server refused a request from the store, so nothing was written: ERR wrong number of arguments",
        ),
    ],
)
def test_unknown_refusal_is_quoted(answer: Exception, error: Any, said: str) -> None:
    """A refused connection may be tried again; a refused command may not."""
    with pytest.raises(error, match=said) as caught:
        asked(Ping(), (answer,))

    assert caught.value.__cause__ is answer


# --- reading --------------------------------------------------------------------------------------

WAIT_ERROR = "wait condition 'w' cannot be read"
FLOW_ERROR = "flow 'f' cannot be read"


@pytest.mark.parametrize(
    ("request_", "said", "answers"),
    [
        (Read((F,), NOW), FLOW_ERROR, [([HEAD_TEXT, None],)]),
        (Read((F, G), NOW), FLOW_ERROR, [(WRONG_TYPE, [HEAD_TEXT, b"{}"])]),
        (Read((STEP,), NOW), "progress 'f' step 3 cannot be read", [([HEAD_TEXT], WRONG_TYPE)]),
        (Steps("f", NOW), FLOW_ERROR, [(WRONG_TYPE,)]),
        (Steps("f", NOW), FLOW_ERROR, [([None, b"three", HEAD_TEXT, b"{}"],)]),
        (Read((W,), NOW), WAIT_ERROR, [([HEAD_TEXT, b"[1]", []],)]),
        (Read((W,), NOW), WAIT_ERROR, [([HEAD_TEXT, None, []],)]),
        (Read((W,), NOW), WAIT_ERROR, [([HEAD_TEXT, TERMS_TEXT, [b"\xff", b"111{}"]],)]),
        (Read((W,), NOW), WAIT_ERROR, [([HEAD_TEXT, TERMS_TEXT, [b"a", b"1?1"]],)]),
        (Extend(F, "claim", NOW, NOW), FLOW_ERROR, [(WRONG_TYPE,)]),
        # A body that lies in parts, of which one cannot be read, or which is not there.
        (Read((F,), NOW), FLOW_ERROR, [([HEAD_TEXT, b"*1 n"],), (WRONG_TYPE,)]),
        (Read((F,), NOW), FLOW_ERROR, [([HEAD_TEXT, b"*1 n"],), ([None, None],), (WRONG_TYPE,)]),
    ],
)
def test_unreadable_reply_is_a_corrupt_record(request_: Any, said: str, answers: list[Any]) -> None:
    """Any unreadable part of a record is an error with its key."""
    with pytest.raises(cs.CorruptRecordError, match=said) as caught:
        asked(request_, *answers)

    assert caught.value.key is not None


def test_large_body_written_meanwhile_is_read_again() -> None:
    """If the parts have another name than in the head, the head is read again."""
    before, after = [HEAD_TEXT, b"*2 one"], [write_head(HEAD._replace(version=2)), b"*1 two"]
    (record,) = asked(
        Read((F,), NOW),
        (before,),
        ([b"one", b"a"], [b"two", b"b"]),
        (after,),
        ([b"two", b"new"],),
    )
    assert (record.head.version, record.body) == (2, b"new")


# --- listing --------------------------------------------------------------------------------------


def member(begin: bytes, stamp: bytes, name: str) -> bytes:
    """A member of the index."""
    return begin + stamp + name.encode()


def test_unreadable_head_is_a_line_of_a_listing() -> None:
    """It names the record, says why it cannot be read, and hides no other."""
    entries = [member(b"fa", newest_first(NOW), name) for name in "fg"]
    replies = (entries,), (WRONG_TYPE, write_head(HEAD))
    first, second = asked(Find(Filter(FLOW), None, 10, NOW), *replies)
    assert (first.key.id, second.key.id, second.error) == ("f", "g", None)
    assert re.search(FLOW_ERROR, str(first.error))


def test_page_after_an_entry_before_its_bounds_begins_at_the_bound() -> None:
    """A cursor before the listing's first entry does not make it begin earlier."""
    wanted = Filter(FLOW, created_before_ms=NOW)
    for after, first in [
        (None, b"[fa" + newest_first(NOW - 1)),
        ((NOW + 5, "f"), b"[fa" + newest_first(NOW - 1)),
        ((NOW - 5, "f"), b"(fa" + newest_first(NOW - 5) + b"f"),
    ]:
        transport = Transport(([],))
        assert run(protocol().converse(Find(wanted, after, 10, NOW)), transport) == ()
        assert transport.asked[0].commands[0].args[2] == first


def test_many_expired_records_are_not_counted() -> None:
    """The expired entries to subtract are read page by page."""
    expired = [
        b"x%bf0%b0:%d" % (stamp_of(NOW - 1), newest_first(NOW - 2), number)
        for number in range(PAGE + 2)
    ]
    count = Count(Filter(FLOW), NOW)
    assert asked(count, (expired[:PAGE], PAGE + 9), (expired[PAGE:],)) == 7
    with pytest.raises(cs.StoreUnavailableError):
        asked(count, (expired[:PAGE], PAGE + 9), NOT_SENT)


def test_count_by_last_update_reads_every_head() -> None:
    """It continues after a full page."""
    names = [f"{number:05d}" for number in range(PAGE + 1)]
    entries = [member(b"fa", newest_first(NOW), name) for name in names]
    old, new = HEAD_TEXT, write_head(HEAD._replace(updated_ms=NOW + 9))
    heads = [old] * PAGE + [new]
    wanted = Filter(FLOW, updated_before_ms=NOW + 1)
    pages = (entries[:PAGE],), tuple(heads[:PAGE]), (entries[PAGE:],), tuple(heads[PAGE:])
    assert asked(Count(wanted, NOW), *pages) == PAGE


def test_scan_skips_removed_records_and_names_unreadable_ones() -> None:
    """Conditions that were removed meanwhile, and tombstones, are left out; one that cannot be read is not."""
    names = [f"wi{name}".encode() for name in "abcd"]
    there = [HEAD_TEXT, TERMS_TEXT, []]
    tombstone = [write_head(HEAD._replace(status=-2)), TERMS_TEXT, []]
    expired = [write_head(HEAD._replace(expires_ms=NOW)), TERMS_TEXT, []]
    scan = Scan(WAIT, None, 10, NOW)
    (one,) = asked(scan, (names,), (None, tombstone, there, expired))
    assert one.key == Key(WAIT, "c")
    unread, one = asked(scan, (names,), (WRONG_TYPE, None, there, None))
    assert (unread.key, one.key) == (Key(WAIT, "a"), Key(WAIT, "c"))
    assert "wait condition 'a' cannot be read" in str(unread.error)


def test_scan_of_progress_reads_no_more_flows_than_needed() -> None:
    """A page that is full with the steps of one flow leaves the next flow for later."""
    steps = [None, b"1", HEAD_TEXT, b"{}", b"2", HEAD_TEXT, b"{}"]
    found = asked(Scan(PROGRESS, None, 2, NOW), ([b"pif", b"pig"],), (steps,))
    assert [one.key for one in found] == [Key(PROGRESS, "f", 1), Key(PROGRESS, "f", 2)]


def test_unreadable_due_records_are_logged_once_each(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such records are skipped; many of them do not fill the memory of the log filter."""
    monkeypatch.setattr(failures, "_warned", {})
    names = [f"{number:05d}" for number in range(2 * PAGE)]
    entries = [member(b"fd", stamp_of(NOW - 1), name) for name in names]
    heads = [(WRONG_TYPE,) * PAGE] * 2
    due = Due(NOW, 2 * PAGE)
    with caplog.at_level(logging.WARNING):
        pages = (entries[:PAGE], []), heads[0], (entries[PAGE:],), heads[1], ([],)
        assert asked(due, *pages) == ()

    assert len(caplog.records) == 2 * PAGE
    assert "flow '01999' cannot be read" in caplog.text
    assert 0 < len(failures._warned) <= failures._WARNED_MOST + 1


# --- writing --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "failure", [LOST, NOT_SENT, exceptions.ResponseError("the disk is full")], ids=repr
)
def test_failed_sweep_on_the_way_is_logged_and_not_raised(
    failure: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    """Every sixteenth commit removes a few expired records afterwards; it is done even if that fails."""
    expired = b"x%bf0%b0:old" % (stamp_of(NOW - 1), newest_first(NOW - 2))
    sweeps: list[Pipe] = []

    def transport(request: Any) -> Any:
        words = [command.args for command in request.commands]
        if len(words) == 2:
            return PLANNED, [expired]

        if b"{t:0}:flow:old" in words[0]:
            sweeps.append(request)
            if isinstance(failure, exceptions.ResponseError):
                return (failure,)

            raise failure

        return (PLANNED,)

    one = protocol()
    for number in range(16):
        answer = run(
            one.converse(commit(put(f"flow {number}"), commit_id=f"{number:032}")), transport
        )
        assert isinstance(answer, Applied)

    assert len(sweeps) == 1
    assert "the sweep after it failed" in caplog.text


def test_refused_commit_removes_its_uploads() -> None:
    """If that is lost, the server removes them an hour later."""
    big = commit(put("f", b"x" * (LARGE + 1)), put("g"))
    transport = Transport(("OK",) * 5, ([0, b"exists", HEAD_TEXT],), LOST)
    answer = run(protocol().converse(big), transport)
    assert isinstance(answer, Refused)
    assert answer.conflicts[0].reason == "exists"
    assert [words[0] for words, _ in transport.asked[-1].commands] == [b"UNLINK"]


def test_a_removal_of_parts_is_sent_again_under_its_id() -> None:
    """Its reply may be lost, and the server may not know the script; an unreadable flow is named."""
    unknown = exceptions.NoScriptError("No matching script")
    transport = Transport(LOST, (unknown,), (b"[[3]]",))
    assert run(protocol().converse(REMOVE), transport) == 3
    logs = {request.commands[0].args[3] for request in transport.asked}
    assert len(logs) == 1
    with pytest.raises(cs.CorruptRecordError, match="flow 'f' cannot be read"):
        asked(REMOVE, (exceptions.ResponseError("CORRUPT 0"),))

    with pytest.raises(cs.CommitUncertainError) as got:
        asked(REMOVE, LOST, timeout=0)

    assert got.value.keys == (Key(PART, "f", 0, "p/"),)


def test_what_a_removal_has_left_is_swept() -> None:
    """A failure of that is not one of the removal: a later sweep does its work."""
    left = b"x%buc.0" % stamp_of(NOW)
    for answers in [([left],), (b"[[0]]",)], [([left],), LOST], [([],)], [LOST], [(WRONG_TYPE,)]:
        assert asked(REMOVE, (b"[[3]]\n",), *answers) == 3


def test_a_part_whose_large_body_was_replaced_while_it_was_read() -> None:
    """It is read again, until there is a body that belongs to its head, or no part."""
    key = Key(PART, "f", 0, "p")
    large, gone = [HEAD_TEXT, None, b"1 c.0"], ([None, None],)
    read = Read((key,), NOW)
    for after, body in (
        ([HEAD_TEXT, b"small", None], b"small"),
        ([None, None, None], None),
    ):
        (record,) = asked(read, (None, large), gone, (after,))
        assert (record and record.body) == body

    (record,) = asked(
        read, (None, large), gone, ([HEAD_TEXT, None, b"1 d.0"],), ([b"d.0", b"new"],)
    )
    assert record.body == b"new"
    page = Parts("f", "", None, None, reverse=False, limit=3, bodies=True, now_ms=NOW)
    rows = [None, 0, b"p", *large, b"q", HEAD_TEXT, b"2", None]
    found = asked(page, (rows,), gone, ([None, None, None],))
    assert [(one.name, one.body) for one in found] == [("q", b"2")]
    with pytest.raises(cs.CorruptRecordError, match="part 'p' of flow 'f'"):
        asked(read, (None, large), gone, (large,), gone)

    with pytest.raises(cs.CorruptRecordError, match="part 'p' of flow 'f'"):
        asked(read, (None, [HEAD_TEXT, None, None]))


def test_refused_reads_of_parts() -> None:
    """Of the flow, of the part, of its chunks, of a page: each is the server's error, or names the record."""
    read = Read((Key(PART, "f", 0, "p"),), NOW)
    large = [HEAD_TEXT, None, b"1 c.0"]
    page = Parts("f", "", None, None, reverse=False, limit=3, bodies=False, now_ms=NOW)
    for request, answers in [
        (read, [(WRONG_TYPE, large)]),
        (read, [(None, WRONG_TYPE)]),
        (read, [(None, large), (WRONG_TYPE,)]),
        (read, [(None, large), ([None, None],), (WRONG_TYPE,)]),
        (page, [(WRONG_TYPE,)]),
        (page, [([None, 0, b"\xff", HEAD_TEXT, None, None],)]),
    ]:
        with pytest.raises(cs.CorruptRecordError):
            asked(request, *answers)


def test_unreadable_stored_reply_is_a_corrupt_store() -> None:
    """An unreadable stored reply is a `CorruptRecordError` without a key."""
    for reply in (b"[1]", b"[[0,null,0,0,0,0,0,[]]]", b"oops"):
        with pytest.raises(
            cs.CorruptRecordError, match=r"reply to commit .* cannot be read"
        ) as got:
            asked(commit(Delete(F, "r")), (reply,))

        assert got.value.key is None


def test_fenced_extend_and_sweep_say_so() -> None:
    """They arrive after they were settled as never done."""
    for request, answers in [
        (Extend(F, "claim", NOW, NOW), [(0,)]),
        (Sweep(NOW, 10), [([b"x"],), (0,)]),
        (REMOVE, [(0,)]),
    ]:
        with pytest.raises(cs.StoreUnavailableError, match="had declared it lost"):
            asked(request, *answers)


def test_interrupted_sweep_is_uncertain_after_its_first_page() -> None:
    """Before its first page it is a `StoreUnavailableError`."""
    with pytest.raises(cs.StoreUnavailableError):
        asked(Sweep(NOW, 1000), NOT_SENT)

    with pytest.raises(cs.CommitUncertainError):
        asked(Sweep(NOW, 1000), ([b"x"],), (b"[[1]]",), NOT_SENT)


def test_clear_removes_uploads_and_keeps_layout_and_replies() -> None:
    """Uploads are removed too; the layout, the index and replies of recent commits stay."""
    tag = b"{t:0}:"
    found = [b"flow:f", b"upload:c.0", b"layout", b"index", b"commit:c", b"wait:w"]
    transport = Transport(([b"0", [tag + name for name in found]],), (b"[[0]]",))
    run(protocol().converse(Clear()), transport)
    words = transport.asked[1].commands[0].args
    assert tag + b"upload:c.0" in words
    assert {tag + b"flow:f", tag + b"wait:w"} < set(words)
    assert {tag + b"layout", tag + b"commit:c"}.isdisjoint(words)

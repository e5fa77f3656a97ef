"""What the NATS store asks of its link, with the retries that are harmless.

`NatsExchange` reads records, lists subjects and publishes. Reads are asked again until the deadline
when their reply was lost or no server answered; publishes are sent once, and what became of them is
an `Ack`. Longer than 400 lines: it is the one interface between the store and its link.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

from msgspec import json

from catga_store.errors import StoreConfigError
from catga_store.errors import StoreUnavailableError
from catga_store.protocol.conversation import Conversation
from catga_store.protocol.conversation import NotSentError
from catga_store.protocol.conversation import ReplyLostError
from catga_store.stores.nats.answers import AFTER_FULL_DISK
from catga_store.stores.nats.answers import BUSY
from catga_store.stores.nats.answers import END
from catga_store.stores.nats.answers import NO_MESSAGE
from catga_store.stores.nats.answers import NO_RESPONDERS
from catga_store.stores.nats.answers import NOT_FOUND
from catga_store.stores.nats.answers import TOO_MANY
from catga_store.stores.nats.answers import Ack
from catga_store.stores.nats.answers import Deadline
from catga_store.stores.nats.answers import ack_of
from catga_store.stores.nats.answers import api_error
from catga_store.stores.nats.answers import refusal_of
from catga_store.stores.nats.answers import stored_by_leader
from catga_store.stores.nats.answers import stored_of
from catga_store.stores.nats.record_text import NOTHING
from catga_store.stores.nats.record_text import Stored
from catga_store.stores.nats.transport import Answer
from catga_store.stores.nats.transport import Ask
from catga_store.stores.nats.transport import Asks
from catga_store.stores.nats.transport import Greeting
from catga_store.stores.nats.transport import Message
from catga_store.stores.nats.transport import Publish

__all__ = ["Named", "NatsExchange", "Survey"]

_MOST_SUBJECTS = 510  # 500 records and what they belong to
_MOST_BYTES = 256 * 1024  # of subjects in one request
_FEW = 8
"""Up to this many records the leader is asked for one by one."""
_LOOKS = 6
_OVERLAP = 1000
"""The server counts pages of names again each time: they overlap, because names may go."""
_ASKS_AT_ONCE = 256
_LOOK_SECONDS = 1.0
"""How long what the leader said of the stream is relied upon: less than any election takes."""

_MOST_UNSURE = 10_000
_API = "$JS.API"
_UP_TO = "Nats-UpTo-Sequence"
_PENDING = "Nats-Num-Pending"
_PAGE, _MOST_PAGES = 1000, 10
"""Of what was written since a sequence; for more pages it is better to ask for all names."""
_BEYOND = 2**31
"""A page of names behind all of them: the server says how many there are, and names none."""


class Named(NamedTuple):
    """Some of the subjects that hold something, and how many more there are, or `sys.maxsize` for many."""

    names: list[str]
    more: int


class Survey(NamedTuple):
    """How many subjects hold something under filters, and some of their names."""

    counts: list[int]
    named: list[Named]


class NatsExchange:
    """Reads and publishes of one stream; `leader`: reads must see what its leader has acknowledged.

    `mark` is a subject that always holds a message.

    **When the stream may have gone back.** A restore, or a power failure of a server that had not
    synced, takes back acknowledged messages, and their sequences are used again. A sequence that was
    read is therefore valid only while that cannot have happened. `trust` is a number for that time.
    It changes with the connection (`epoch`), when the stream was created again, when it has a new
    leader, and when it ends before a sequence that was seen. The server announces most of that, which
    counts as a new connection; `look` asks the leader, at most once a second. Every publish names the
    connection that it may be sent over. The first answer over another connection makes the store
    verify its identity (`verify`) before it is used.

    A stream with one replica that another server keeps than the one connected to, in a cluster or
    behind a leaf node, can go back without any of these signs. Its sequences are never relied upon
    (`is_near`), so each write reads first.
    """

    def __init__(self, stream: str, timeout: float, mark: str, api: str = _API) -> None:
        self.api = api
        self.stream = stream
        self.mark = mark
        self.timeout = timeout
        self.leader = False
        self.max_payload = 1024 * 1024
        self.epoch = 0
        """The connection over which the store was verified last."""
        self.trust = 0
        self.verify: Callable[[Deadline], Conversation[None]] | None = None
        """Verifies that the store is still there; set at the first use."""
        self._verifying = False
        self._server = ""
        self.unsure: dict[str, None] = {}
        """Index entries that this process has asked to be removed, or written before a record that was
        refused: whether they are there, and right, is not known."""
        self.is_near = False
        """Whether the stream cannot go back unnoticed: see above."""
        self._stream: tuple[object, ...] = ()
        self._last = 0
        self._looked = 0.0

    def api_subject(self, verb: str) -> str:
        """The subject of a request of the JetStream API about the stream, in its domain."""
        return f"{self.api}.{verb}.{self.stream}"

    def deadline(self) -> Deadline:
        return Deadline(self.timeout)

    # asking ---------------------------------------------------------------------------------------

    def ask(
        self, asks: Sequence[Ask], deadline: Deadline
    ) -> Conversation[tuple[tuple[Answer, ...], ...]]:
        """The answers; asked again while no server answers. `StoreUnavailableError` in the end."""
        answers: list[tuple[Answer, ...]] = []

        for start in range(0, len(asks), _ASKS_AT_ONCE):
            answers += yield from self._ask(tuple(asks[start : start + _ASKS_AT_ONCE]), deadline)

        return tuple(answers)

    def _ask(
        self, asks: tuple[Ask, ...], deadline: Deadline
    ) -> Conversation[tuple[tuple[Answer, ...], ...]]:
        while True:
            try:
                answers: tuple[tuple[Answer, ...], ...] = yield Asks(asks)
            except NotSentError as error:
                message = f"{error}; nothing was read or written"
                raise StoreUnavailableError(message) from error
            except ReplyLostError as error:
                why: Exception | None = error
                text = str(error)
            else:
                if all(one and one[0].status != NO_RESPONDERS for one in answers):
                    if (
                        answers
                        and answers[0][0].epoch != self.epoch
                        and self.verify is not None
                        and not self._verifying
                    ):
                        yield from self._met(self.verify, answers[0][0].epoch, deadline)

                    return answers

                why = None
                text = (
                    "JetStream does not respond, because it is not enabled, or because the "
                    f"stream {self.stream!r} has no leader or does not exist; check the "
                    f"server ({AFTER_FULL_DISK})"
                )

            if deadline.has_passed():
                raise StoreUnavailableError(f"{text}; nothing was read or written") from why

            yield deadline.pause()

    # the stream of now ----------------------------------------------------------------------------

    def _met(
        self, verify: Callable[[Deadline], Conversation[None]], epoch: int, deadline: Deadline
    ) -> Conversation[None]:
        """Verify the store: an answer came over a new connection."""
        self._verifying = True
        try:
            yield from verify(deadline)
        finally:
            self._verifying = False

        self.trusted_from(epoch)

    def greeted(self, greeting: Greeting) -> None:
        """Take note of the server that the link is connected to."""
        self._server = greeting.server
        self.max_payload = greeting.max_payload

    def trusted_from(self, epoch: int) -> None:
        """Rely on what is read from now on, over this connection."""
        self.epoch = epoch
        self.trust += 1

    def settle(self, deadline: Deadline) -> Conversation[None]:
        """Verify the store if the connection is a new one."""
        yield from self.fetch([self.mark], deadline)

    def must_look(self) -> bool:
        """Whether the leader was not asked for some time."""
        return time.monotonic() - self._looked > _LOOK_SECONDS

    def look(self, deadline: Deadline) -> Conversation[None]:
        """Ask the leader whether the stream is the one that it was, and went only on."""
        last = self._last
        self.heed((yield from self.call("INFO", {}, deadline)), last)

    def heed(self, info: dict[str, Any], last: int = 0) -> None:
        """Take note of what the leader said; `last` is the highest sequence seen when it was asked."""
        cluster: dict[str, Any] = info.get("cluster") or {}
        stream = info.get("created"), cluster.get("leader"), cluster.get("leader_since")
        now = int(info.get("state", {}).get("last_seq", 0))
        replicas = int(info.get("config", {}).get("num_replicas", 1))
        self.is_near = replicas > 1 or cluster.get("leader") == self._server
        if stream != self._stream or now < last:
            self._stream = stream
            self._last = now
            self.trust += 1

        self._last = max(self._last, now)
        self._looked = time.monotonic()

    def call(
        self, verb: str, payload: dict[str, Any], deadline: Deadline
    ) -> Conversation[dict[str, Any]]:
        """One request to the JetStream API about the stream; its answer, without an error."""
        ask = Ask(self.api_subject(f"STREAM.{verb}"), json.encode(payload))

        while True:
            ((answer,),) = yield from self.ask((ask,), deadline)
            code, text = api_error(answer)
            if not code:
                reply: dict[str, Any] = json.decode(answer.data)
                return reply

            if code not in BUSY or deadline.has_passed():
                raise self.refusal(code, text)

            yield deadline.pause()

    def refusal(self, code: int, text: str) -> StoreUnavailableError | StoreConfigError:
        """Return the error for something that JetStream refused."""
        return refusal_of(self.stream, code, text)

    # reading --------------------------------------------------------------------------------------

    def fetch(self, subjects: Iterable[str], deadline: Deadline) -> Conversation[dict[str, Stored]]:
        """What these subjects hold."""
        wanted = list(dict.fromkeys(subjects))
        if not wanted:
            return {}

        if self.leader and len(wanted) <= _FEW:
            return (yield from self._fetch_from_leader(wanted, deadline))

        found: dict[str, Stored] = dict.fromkeys(wanted, NOTHING)
        if len(wanted) == 1:
            subject = self.api_subject("DIRECT.GET")
            payload = json.encode({"last_by_subj": wanted[0]})
            ask = Ask(subject, payload, last=wanted[0])
            ((answer,),) = yield from self.ask((ask,), deadline)
            if answer.status == 0:
                found[wanted[0]] = stored_of(answer)
            elif answer.status != NOT_FOUND:
                raise self.refusal(*api_error(answer))

            return found

        for part in _parts(wanted, min(_MOST_BYTES, self.max_payload // 4)):
            left = part
            while left:
                answers = yield from self._many({"multi_last": left}, deadline)
                if answers is None:
                    found |= yield from self._fetch_from_leader(left, deadline)
                    break

                for answer in answers[:-1]:
                    found[answer.headers["Nats-Subject"]] = stored_of(answer)

                # A reply that became too long is cut off; what is missing is asked for again.
                pending = int(answers[-1].headers.get("Nats-Num-Pending", "0"))
                left = [one for one in left if found[one] is NOTHING] if pending else []

        return {subject: found[subject] for subject in wanted}

    def _many(
        self, payload: dict[str, Any], deadline: Deadline
    ) -> Conversation[tuple[Answer, ...] | None]:
        """The answers to a Direct Get of many subjects, or `None` if none was new enough.

        With replicas any of them may answer. So it is also asked for a message that is always there,
        because then it says up to which sequence it has looked; the leader says how far that must be.
        """
        subject = self.api_subject("DIRECT.GET")
        if not self.leader:
            ask = Ask(subject, json.encode(payload), many=True)
            (answers,) = yield from self.ask((ask,), deadline)
            return self._unless_refused(answers)

        payload = payload | {"multi_last": [*payload["multi_last"], self.mark]}
        if "batch" in payload:
            payload["batch"] += 1

        looks = (
            Ask(self.api_subject("STREAM.INFO"), b""),
            Ask(subject, json.encode(payload), many=True),
        )
        for _ in range(_LOOKS):
            (info,), answers = yield from self.ask(looks, deadline)
            if not api_error(info)[0]:
                needed = int(json.decode(info.data)["state"]["last_seq"])
                end = self._unless_refused(answers)[-1]
                if end.status == TOO_MANY or int(end.headers.get(_UP_TO, "0")) >= needed:
                    return tuple(
                        [one for one in answers if one.headers.get("Nats-Subject") != self.mark]
                    )

            yield deadline.pause()

        return None

    def _unless_refused(self, answers: tuple[Answer, ...]) -> tuple[Answer, ...]:
        if answers[-1].status not in (END, NOT_FOUND, TOO_MANY):
            raise self.refusal(*api_error(answers[-1]))

        return answers

    def _fetch_from_leader(
        self, subjects: list[str], deadline: Deadline
    ) -> Conversation[dict[str, Stored]]:
        api = self.api_subject("STREAM.MSG.GET")
        found: dict[str, Stored] = {}

        while subjects:
            asks = [Ask(api, json.encode({"last_by_subj": one})) for one in subjects]
            answers = yield from self.ask(asks, deadline)
            again: list[str] = []

            for subject, (answer,) in zip(subjects, answers, strict=True):
                code, text = api_error(answer)
                if not code:
                    found[subject] = stored_by_leader(json.decode(answer.data)["message"])
                elif code == NO_MESSAGE:
                    found[subject] = NOTHING
                elif code in BUSY and not deadline.has_passed():
                    again.append(subject)
                else:
                    raise self.refusal(code, text)

            subjects = again
            if again:
                yield deadline.pause()

        return found

    def names(self, filters: Sequence[str], deadline: Deadline) -> Conversation[list[list[str]]]:
        """The subjects that hold something, for each filter, in no order; answered by the leader."""
        api = self.api_subject("STREAM.INFO")
        found: list[dict[str, None]] = [{} for _ in filters]
        left = [(place, 0) for place in range(len(filters))]

        while left:
            asks = [
                Ask(api, json.encode({"subjects_filter": filters[place], "offset": at}))
                for place, at in left
            ]
            answers = yield from self.ask(asks, deadline)
            again: list[tuple[int, int]] = []

            for (place, at), (answer,) in zip(left, answers, strict=True):
                code, text = api_error(answer)
                if code in BUSY and not deadline.has_passed():
                    again.append((place, at))
                    continue

                if code:
                    raise self.refusal(code, text)

                reply = json.decode(answer.data)
                names: list[str] = sorted(reply["state"].get("subjects") or ())
                last = next(reversed(found[place]), "")
                if at and names and names[0] > last:
                    # Entries were removed meanwhile: this page begins after the end of the one before.
                    again.append((place, max(at - 10 * _OVERLAP, 0)))
                    continue

                found[place] |= dict.fromkeys(names)
                if names and at + len(names) < reply.get("total", 0):
                    again.append((place, max(at + len(names) - _OVERLAP, at + 1)))

            left = again

        return [list(some) for some in found]

    def names_at_once(
        self, filters: Sequence[str], deadline: Deadline, most: int
    ) -> Conversation[Named]:
        """The subjects that hold something, up to `most` of them, and how many more there are.

        Of more than 1,024 the server names none, and does not say how many.
        """
        payload = {"multi_last": list(filters), "batch": most}
        answers = yield from self._many(payload, deadline)
        if answers is None:
            found = yield from self.names(filters, deadline)
            return Named([name for some in found for name in some], 0)

        return _named_by(answers)

    def survey(
        self,
        counted: Sequence[str],
        named: Sequence[Sequence[str]],
        most: int,
        deadline: Deadline,
    ) -> Conversation[Survey]:
        """How many subjects there are under each filter, and up to `most` names under some; one flight.

        What is written meanwhile may be in one number and not in another.
        """
        if self.leader:  # a replica does not say up to which sequence it has counted
            counts = yield from self._counts_of_leader(counted, deadline)
            names: list[Named] = []
            for filters in named:
                some = yield from self.names_at_once(filters, deadline, most)
                names.append(some)

            return Survey(counts, names)

        api = self.api_subject("DIRECT.GET")
        asks = [
            Ask(api, json.encode({"next_by_subj": one, "batch": 1}), many=True) for one in counted
        ]
        asks += [
            Ask(api, json.encode({"multi_last": filters, "batch": most}), many=True)
            for filters in named
        ]
        answered = [self._unless_refused(one) for one in (yield from self.ask(asks, deadline))]
        return Survey(
            [_number_of(answers) for answers in answered[: len(counted)]],
            [_named_by(answers) for answers in answered[len(counted) :]],
        )

    def written_since(
        self, wanted: str, sequence: int, deadline: Deadline
    ) -> Conversation[tuple[list[str], int] | None]:
        """The subjects under a filter that were written after a sequence, and up to which one.

        `None` if there are more than ten pages of 1,000. With replicas the one that is asked may not
        have the newest.
        """
        names: list[str] = []
        for _ in range(_MOST_PAGES):
            payload = {"seq": sequence + 1, "next_by_subj": wanted, "batch": _PAGE}
            ask = Ask(self.api_subject("DIRECT.GET"), json.encode(payload), many=True)
            (answers,) = yield from self.ask((ask,), deadline)
            some = _named_by(self._unless_refused(answers))
            if some.names:
                names += some.names
                sequence = int(answers[-2].headers["Nats-Sequence"])

            if not some.more:
                return names, sequence

        return None

    def last_sequence(self, deadline: Deadline) -> Conversation[int]:
        """The last sequence of the stream, or a higher one that this process has seen."""
        yield from self.look(deadline)
        return self._last

    def _counts_of_leader(
        self, filters: Sequence[str], deadline: Deadline
    ) -> Conversation[list[int]]:
        api = self.api_subject("STREAM.INFO")
        asks = [
            Ask(api, json.encode({"subjects_filter": one, "offset": _BEYOND})) for one in filters
        ]
        while True:
            answers = [one for (one,) in (yield from self.ask(asks, deadline))]
            code, text = max(map(api_error, answers), default=(0, ""))
            if not code:
                return [int(json.decode(one.data).get("total", 0)) for one in answers]

            if code not in BUSY or deadline.has_passed():
                raise self.refusal(code, text)

            yield deadline.pause()

    # writing --------------------------------------------------------------------------------------

    def publish(self, messages: Sequence[Message], *, atomic: bool) -> Conversation[list[Ack]]:
        """Send messages once. `NotSentError` and `ReplyLostError` pass, a refusal is raised."""
        acks = yield from self.publish_apart(messages, atomic=atomic, epoch=self.epoch)
        for ack in acks:
            if ack.refusal is not None:
                raise ack.refusal

        return acks

    def publish_apart(
        self, messages: Sequence[Message], *, atomic: bool, epoch: int
    ) -> Conversation[list[Ack]]:
        """The same, but a refusal comes with the message it is of: others may have been stored.

        `epoch`: the connection that was used when the expected sequences were read.
        """
        sent = tuple(map(self.addressed, messages))
        answers: tuple[Answer, ...] = yield Publish(sent, atomic, epoch)
        return [self.ack(answer) for answer in answers]

    def addressed(self, message: Message) -> Message:
        """Return the message for the domain: leaf nodes pass `$KV` on under the prefix of the API only."""
        if self.api == _API or not message.subject.startswith("$KV."):
            return message

        return message._replace(subject=f"{self.api}.{message.subject}")

    def ack(self, answer: Answer) -> Ack:
        """Return what a server says of a publish."""
        if not answer.status:
            reply: dict[str, Any] = json.decode(answer.data)
            if "error" not in reply:
                sequence = int(reply["seq"])
                self._last = max(self._last, sequence)
                return Ack(sequence, bool(reply.get("duplicate")))

        return ack_of(self.stream, answer)

    def surely(self, messages: Sequence[Message], deadline: Deadline) -> Conversation[list[int]]:
        """Publish what may be stored twice, until each is acknowledged; their sequences."""
        left = list(enumerate(messages))
        sequences = [0] * len(messages)

        while True:
            why: Exception | None = None
            text = ""
            try:
                acks = yield from self.publish([message for _, message in left], atomic=False)
            except NotSentError as error:
                raise StoreUnavailableError(f"{error}; nothing was written") from error
            except ReplyLostError as error:
                why, text = error, str(error)
            else:
                for (place, _), ack in zip(left, acks, strict=True):
                    sequences[place] = ack.sequence
                    text = text or ack.text

                left = [entry for entry, ack in zip(left, acks, strict=True) if not ack.sequence]
                if not left:
                    return sequences

                if any(ack.moved for ack in acks):
                    yield from self.settle(deadline)

            if deadline.has_passed():
                raise StoreUnavailableError(f"{text}; no record was written") from why

            yield deadline.pause()

    def purged(self, wanted: str, before: int | None, deadline: Deadline) -> Conversation[None]:
        """Remove what lies under a filter, before a sequence if one is given, and know that it is gone."""
        ask = Ask(self.api_subject("STREAM.PURGE"), _purge(wanted, before))
        while True:
            ((answer,),) = yield from self.ask((ask,), deadline)
            code, text = api_error(answer)
            if not code:
                return

            if code not in BUSY or deadline.has_passed():
                raise self.refusal(code, text)

            yield deadline.pause()

    def purge(self, before: int, deadline: Deadline) -> Conversation[None]:
        """Remove everything before a sequence. `ReplyLostError` passes."""
        ask = Ask(self.api_subject("STREAM.PURGE"), json.encode({"seq": before}))

        while True:
            try:
                ((answer,),) = yield Asks((ask,))
            except NotSentError as error:
                raise StoreUnavailableError(f"{error}; nothing was removed") from error

            code, text = api_error(answer)
            if not code:
                return

            if code not in (*BUSY, NO_RESPONDERS) or deadline.has_passed():
                raise self.refusal(code, text)

            yield deadline.pause()

    def doubt(self, entries: Iterable[str]) -> None:
        """Remember that these entries may be there although they should not."""
        for entry in entries:
            self.unsure[entry] = None
            if len(self.unsure) > _MOST_UNSURE:
                del self.unsure[next(iter(self.unsure))]

    def forget(self, purges: Iterable[tuple[str, int | None]]) -> Conversation[None]:
        """Ask for the removal of what lies under filters, before a sequence if one is given.

        No reply is expected and it may be lost: what is removed is only in the way.
        """
        purges = tuple(purges)
        if not purges:
            return

        self.doubt(wanted for wanted, _ in purges)
        asks = tuple(
            [
                Ask(self.api_subject("STREAM.PURGE"), _purge(wanted, before), silent=True)
                for wanted, before in purges
            ]
        )

        try:
            yield Asks(asks)
        except (NotSentError, ReplyLostError):
            return


def _named_by(answers: tuple[Answer, ...]) -> Named:
    """The names in the answers to a Direct Get of many subjects."""
    end = answers[-1]
    if end.status == TOO_MANY:
        return Named([], sys.maxsize)

    names = [answer.headers["Nats-Subject"] for answer in answers[:-1]]
    return Named(names, int(end.headers.get(_PENDING, "0")))


def _number_of(answers: tuple[Answer, ...]) -> int:
    """How many messages there are, by the first one: it says how many follow."""
    return int(answers[0].headers[_PENDING]) + 1 if len(answers) > 1 else 0


def _parts(subjects: list[str], most: int) -> Iterator[list[str]]:
    """Subjects in parts that one request can name."""
    part: list[str] = []
    size = 0
    for subject in subjects:
        if len(part) == _MOST_SUBJECTS or size > most:
            yield part
            part, size = [], 0

        part.append(subject)
        size += len(subject)

    yield part


def _purge(wanted: str, before: int | None) -> bytes:
    payload: dict[str, Any] = {"filter": wanted}
    if before is not None:
        payload["seq"] = before

    return json.encode(payload)

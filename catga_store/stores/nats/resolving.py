"""How the outcome of a commit is found whose reply was lost; and `Clear`, which leaves no record of itself."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable
from typing import Any

from catga_store.errors import CommitUncertainError
from catga_store.errors import StoreUnavailableError
from catga_store.protocol.conversation import Conversation
from catga_store.protocol.conversation import NotSentError
from catga_store.protocol.conversation import ReplyLostError
from catga_store.protocol.failures import uncertain
from catga_store.protocol.keys import PART
from catga_store.protocol.keys import PROGRESS
from catga_store.protocol.keys import Key
from catga_store.protocol.keys import began_s
from catga_store.protocol.keys import new_commit_id
from catga_store.protocol.requests import Applied
from catga_store.protocol.requests import Resolve
from catga_store.stores.nats.answers import Deadline
from catga_store.stores.nats.messages import EXPECTED
from catga_store.stores.nats.outcomes import partly_stored
from catga_store.stores.nats.outcomes import reply_of
from catga_store.stores.nats.outcomes import wrote
from catga_store.stores.nats.reading import NatsReader
from catga_store.stores.nats.record_text import VERSION
from catga_store.stores.nats.record_text import Stored
from catga_store.stores.nats.transport import Message

__all__ = ["NatsResolver"]

_FENCE_SECONDS = 660  # longer than the server remembers the id
_CLEARING = "clear-"


class NatsResolver:
    """Settles commits by their log, and by what records remember."""

    def __init__(self, reader: NatsReader) -> None:
        self._reader = reader
        self.layout = reader.layout
        self.exchange = reader.exchange

    def resolve(self, request: Resolve) -> Conversation[Applied | None]:
        """`Resolve`: the log; else take the commit's id, so that it can come no more, and look."""
        deadline = self.exchange.deadline()
        try:
            if request.id.startswith(_CLEARING):
                return (yield from self._resolve_clear(request, deadline))

            applied = yield from self._resolve(request, deadline)
            if applied is not None and len(request.keys) == 1:
                yield from self.complete_index(request.keys, deadline)
        except (NotSentError, StoreUnavailableError) as error:
            raise uncertain(request.id, request.keys, error) from error
        else:
            return applied

    def _resolve(self, request: Resolve, deadline: Deadline) -> Conversation[Applied | None]:
        log = self.layout.log(request.id)
        fence = Message(
            log,
            json.dumps({"layout": VERSION, "fenced": True}).encode(),
            {EXPECTED: "0", "Nats-Msg-Id": request.id, "Nats-TTL": f"{_FENCE_SECONDS}s"},
        )
        taken = False

        while True:
            found = yield from self.exchange.fetch([log], deadline)
            if found[log].text is not None:
                logged = yield from self.logged(request.id, request.keys, found[log], deadline)
                # The fence is in the stream: what came before it shows in the records.
                return logged or (yield from self._look(request, deadline))

            if taken:
                return Applied(())  # the id was taken, and not by a fence: the commit is there

            try:
                (ack,) = yield from self.exchange.publish([fence], atomic=False)
            except ReplyLostError as error:
                if deadline.has_passed():
                    raise uncertain(request.id, request.keys, error) from error
            else:
                if ack.moved:
                    yield from self.exchange.settle(deadline)

                taken = ack.duplicate
                if taken or ack.sequence:
                    continue

                if deadline.has_passed():
                    raise uncertain(request.id, request.keys, deadline.reason)

            yield deadline.pause()

    def _look(self, request: Resolve, deadline: Deadline) -> Conversation[Applied | None]:
        subjects = [self.layout.subject(key) for key in request.keys]
        seen, _ = yield from self._reader.decide(
            lambda tables: [wrote(tables, key, request.id) for key in request.keys],
            subjects,
            deadline,
        )
        return Applied(()) if any(seen) else None

    def complete_index(self, keys: Iterable[Key], deadline: Deadline) -> Conversation[None]:
        """Add the index entries of records whose commit has lost its reply, and theirs perhaps."""
        wanted = [key for key in dict.fromkeys(keys) if key.kind not in (PART, PROGRESS)]
        subjects = [self.layout.subject(key) for key in wanted]
        entries, _ = yield from self._reader.decide(
            lambda tables: [
                entry for key in wanted for entry in self._reader.entries_of(tables, key)
            ],
            subjects,
            deadline,
        )
        there = yield from self.exchange.fetch(entries, deadline)
        missing = [Message(one, b"", {}) for one in entries if not there[one].sequence]
        if missing:
            yield from self.exchange.surely(missing, deadline)

    def logged(
        self, commit_id: str, keys: Iterable[Key], log: Stored, deadline: Deadline
    ) -> Conversation[Applied | None]:
        """Return the reply that is in a log, `None` if it is a fence; raise if the rest is not there."""
        fields: dict[str, Any] = json.loads(log.text or b"")
        if fields.get("fenced"):
            return None

        if "removed" in fields:  # parts by their prefix: only their number was to be known
            return Applied(())

        last: str = fields["last"]
        found = yield from self.exchange.fetch([last], deadline)
        if not found[last].sequence and self.layout.belongs_to_parts(last):
            # It was purged with the other parts of its flow: then something wrote their root since.
            last = self.layout.root_beside(last)
            found = yield from self.exchange.fetch([last], deadline)

        if found[last].sequence < log.sequence + fields["length"] - 1:
            age = time.time() - began_s(commit_id)
            is_forgotten = not found[last].sequence and age > 2 * self.exchange.timeout
            if is_forgotten:
                raise uncertain(
                    commit_id, keys, "the records that the commit wrote no longer exist"
                )

            raise partly_stored(commit_id, keys)

        return reply_of(commit_id, log.sequence, fields)

    # clear ----------------------------------------------------------------------------------------

    def clear(self) -> Conversation[None]:
        """Write the layout again, and purge what lies before it: the stream is never without one.

        A message that says so is stored before: the purge was done when it is gone. What others write
        after the layout stays, however late a purge comes, so it may be sent again.
        """
        deadline = self.exchange.deadline()
        commit_id = _CLEARING + new_commit_id()
        sign = Message(self.layout.log(commit_id), b'{"clearing":true}', {})
        found = yield from self.exchange.fetch([self.layout.layout], deadline)
        kept = Message(self.layout.layout, found[self.layout.layout].text or b"", {})
        _, before = yield from self.exchange.surely([sign, kept], deadline)
        lost: ReplyLostError | None = None
        try:
            while lost is None or (yield from self._is_there(sign.subject, deadline)):
                try:
                    yield from self.exchange.purge(before, deadline)
                except ReplyLostError as error:
                    lost = error
                else:
                    return

                if deadline.has_passed():
                    raise _not_purged(commit_id, lost) from lost

                yield deadline.pause()
        except StoreUnavailableError as error:
            if lost is None:
                raise

            raise _not_purged(commit_id, lost) from error

    def _resolve_clear(self, request: Resolve, deadline: Deadline) -> Conversation[Applied | None]:
        sign = self.layout.log(request.id)
        if not (yield from self._is_there(sign, deadline)):
            return Applied(())

        # Nothing fences a purge. One that did not come in twice the timeout never left.
        began = began_s(request.id.removeprefix(_CLEARING))
        if time.time() < began + 2 * self.exchange.timeout:
            why = "the request to clear the store may still be in progress"
            raise _not_purged(request.id, why)

        return None

    def _is_there(self, subject: str, deadline: Deadline) -> Conversation[bool]:
        found = yield from self.exchange.fetch([subject], deadline)
        return found[subject].text is not None


def _not_purged(commit_id: str, why: BaseException | str) -> CommitUncertainError:
    """Return the error of a `Clear` whose purge may be under way; its sign says so as long as there is one."""
    error = uncertain(commit_id, (), why)
    error.kept_seconds = math.inf
    return error

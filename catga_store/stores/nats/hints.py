"""What is published of a commit once it is acknowledged, as hints for the calls that wait; see `protocol.wakeups`.

It is a plain message on `catga_hints.<bucket>`, which no stream keeps, an array of
`[due_ms, type, id, version, log]`. It comes after the commit can be read, unlike the messages of the commit
themselves, which a subscriber has before they are stored, and also if they are refused. It is lost if the
process ends between the two.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import msgspec

from catga_store.protocol.conversation import Conversation
from catga_store.protocol.conversation import NotSentError
from catga_store.protocol.conversation import ReplyLostError
from catga_store.protocol.wakeups import Hint
from catga_store.protocol.wakeups import Listen
from catga_store.protocol.wakeups import Wakeups
from catga_store.stores.nats.transport import SubscribeToHints
from catga_store.stores.nats.transport import Tell

__all__ = ["NatsHints"]

_encode = msgspec.json.Encoder().encode
_messages: msgspec.json.Decoder[list[list[Any]]] = msgspec.json.Decoder(list[list[Any]])

_MOST_BYTES = 32 * 1024
_ANYTHING = b"[]"
"""What is sent in place of hints that would be too long: those who wait look."""


class NatsHints:
    """Performs `Listen`, sends hints, and takes what the subscription of the store receives."""

    def __init__(self, bucket: str) -> None:
        self._subject = f"catga_hints.{bucket}"
        self._wakeups = Wakeups()

    def listen(self, request: Listen) -> Conversation[None]:
        request.waiter.join(self._wakeups)
        yield SubscribeToHints(self._subject, self)

    def send(self, hints: Iterable[Hint]) -> Conversation[None]:
        """Publish hints; it waits for nothing and fails never."""
        entries = [(one.due_ms, one.type, one.flow_id, one.version, one.log) for one in hints]
        if entries:
            message = _encode(entries)
            # The commit is acknowledged: a store that is being closed meanwhile must not fail it.
            with suppress(NotSentError, ReplyLostError):
                yield Tell(self._subject, message if len(message) <= _MOST_BYTES else _ANYTHING)

    @property
    def is_needed(self) -> bool:
        """Whether a call waits."""
        return bool(self._wakeups.waiters)

    def receive(self, message: bytes, /) -> None:
        """Wake those who wait for what a message says."""
        try:
            hints = [_hint_of(*entry) for entry in _messages.decode(message)]
        except (msgspec.DecodeError, TypeError):
            hints = []  # of a later version of this library, or of a stranger: a look tells

        if hints:
            self._wakeups.publish(hints)
        else:
            self._wakeups.look_again()

    def missed(self) -> None:
        """Let those who wait look."""
        self._wakeups.look_again()


def _hint_of(
    due_ms: int | None, type_name: str | None, flow_id: str | None, version: int, log: str | None
) -> Hint:
    return Hint(due_ms, type_name, flow_id, version, log=log)

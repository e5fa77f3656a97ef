"""What the scripts publish of a commit, as hints for the calls that wait; see `protocol.wakeups`."""

from __future__ import annotations

from typing import Any

import msgspec

from catga_store.protocol.conversation import Conversation
from catga_store.protocol.wakeups import Hint
from catga_store.protocol.wakeups import Listen
from catga_store.protocol.wakeups import Wakeups
from catga_store.stores.redis.layout import RedisLayout
from catga_store.stores.redis.transport import Subscribe

__all__ = ["RedisHints"]

_messages: msgspec.json.Decoder[list[list[Any]]] = msgspec.json.Decoder(list[list[Any]])


class RedisHints:
    """Performs `Listen`, and takes what the subscription of the store receives."""

    def __init__(self, layout: RedisLayout) -> None:
        self._layout = layout
        self._wakeups = Wakeups()

    def listen(self, request: Listen) -> Conversation[None]:
        request.waiter.join(self._wakeups)
        yield Subscribe(self._layout.hints, self)

    @property
    def is_needed(self) -> bool:
        """Whether a call waits."""
        return bool(self._wakeups.waiters)

    def receive(self, message: object, /) -> None:
        """Wake those who wait for what a message says; see records.lua for its form."""
        try:
            hints = [_hint_of(*entry) for entry in _messages.decode(message)]  # type: ignore[arg-type]
        except (msgspec.DecodeError, TypeError):
            # Of a later version of this library, or of a stranger: a look tells.
            self._wakeups.look_again()
        else:
            self._wakeups.publish(hints)

    def missed(self) -> None:
        """Let those who wait look."""
        self._wakeups.look_again()


def _hint_of(
    due_ms: int | None,
    type_name: str | None,
    flow_id: str | None = None,
    version: int = 0,
    log: str | None = None,
) -> Hint:
    return Hint(due_ms, type_name, flow_id, version, log=log)

"""What the Redis store asks of its link, with the retries that are harmless."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from typing import Any

from redis import exceptions

from catga_store.conversation import Command
from catga_store.conversation import Conversation
from catga_store.conversation import NotSentError
from catga_store.conversation import Pause
from catga_store.conversation import Pipe
from catga_store.conversation import ReplyLostError
from catga_store.errors import StoreUnavailableError
from catga_store.stores.redis.refusals import raise_refusal
from catga_store.stores.redis.refusals import unavailable
from catga_store.stores.redis.scripts import with_source

__all__ = ["LONGEST_PAUSE", "PAUSE_SECONDS", "Exchange"]

PAUSE_SECONDS = 0.02
LONGEST_PAUSE = 0.5


class Exchange:
    """Asks a server, within `timeout` seconds an operation."""

    def __init__(self, timeout: float) -> None:
        self.timeout = timeout

    def fly(
        self, commands: tuple[Command, ...], *, writes: bool, large: bool = False
    ) -> Conversation[list[Any]]:
        """Send commands once; scripts that the server does not know are sent whole."""
        replies: list[Any] = list((yield Pipe(commands, writes, large)))
        unknown = [
            place
            for place, reply in enumerate(replies)
            if isinstance(reply, exceptions.NoScriptError)
        ]
        if unknown:
            again = tuple(with_source(commands[place]) for place in unknown)
            answers: tuple[Any, ...] = yield Pipe(again, writes, large)
            for place, answer in zip(unknown, answers, strict=True):
                replies[place] = answer

        return replies

    def ask(self, commands: Sequence[Command], *, writes: bool = False) -> Conversation[list[Any]]:
        """Send commands that may be sent twice, until they are answered or the time is up.

        Errors among the replies are the caller's to look at, but for those that pass by themselves.
        """
        sent = tuple(commands)
        until = time.monotonic() + self.timeout
        pause = PAUSE_SECONDS

        while True:
            try:
                replies = yield from self.fly(sent, writes=writes)
            except NotSentError as error:
                raise unavailable(error) from error
            except ReplyLostError as error:
                failure: Exception = error
            else:
                moving = [reply for reply in replies if isinstance(reply, exceptions.TryAgainError)]
                if not moving:
                    return replies

                failure = moving[0]

            if time.monotonic() + pause > until:
                if isinstance(failure, exceptions.RedisError):
                    raise_refusal(failure)

                message = f"{failure}; ask again"
                raise StoreUnavailableError(message) from failure

            yield Pause(pause * random.uniform(0.5, 1))  # noqa: S311  jitter
            pause = min(2 * pause, LONGEST_PAUSE)

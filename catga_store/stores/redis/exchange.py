"""What the Redis store asks of its link, with the retries that are harmless."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

from redis import exceptions

from catga_store.errors import StoreUnavailableError
from catga_store.protocol.conversation import Conversation
from catga_store.protocol.conversation import NotSentError
from catga_store.protocol.conversation import Pause
from catga_store.protocol.conversation import ReplyLostError
from catga_store.protocol.keys import Key
from catga_store.stores.redis.refusals import cause_of
from catga_store.stores.redis.refusals import raise_refusal
from catga_store.stores.redis.refusals import raise_unavailable
from catga_store.stores.redis.refusals import uncertain
from catga_store.stores.redis.scripts import with_source
from catga_store.stores.redis.transport import Command
from catga_store.stores.redis.transport import Pipe

__all__ = ["RedisExchange", "Sent"]

_PAUSE_SECONDS = 0.02
_LONGEST_PAUSE = 0.5


class Sent(NamedTuple):
    """A commit that was sent: its id, what it concerns, and until when it is sent again."""

    id: str
    keys: Sequence[Key]
    until: float


class RedisExchange:
    """Asks a server, and asks again for up to `timeout` seconds.

    `keep_ms` is how long the reply of a commit is kept: twice as long as it may be sent again.
    """

    def __init__(self, timeout: float) -> None:
        self.timeout = timeout
        self.keep_ms = max(int(timeout * 2000), 1)

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

    def ask(
        self, commands: Sequence[Command], *, writes: bool = False, large: bool = False
    ) -> Conversation[list[Any]]:
        """Send commands that may be sent twice, until they are answered or the time is up.

        Errors among the replies are the caller's to look at, but for those that pass by themselves.
        """
        sent = tuple(commands)
        until = time.monotonic() + self.timeout
        pause = _PAUSE_SECONDS
        is_lost = False

        while True:
            try:
                replies = yield from self.fly(sent, writes=writes, large=large)
            except NotSentError as error:
                if is_lost and writes:
                    message = f"an earlier try may have been applied, and now {error}; ask again"
                    raise StoreUnavailableError(message) from cause_of(error)

                raise_unavailable(error)
            except ReplyLostError as error:
                is_lost = True
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
                raise StoreUnavailableError(message) from cause_of(failure)

            yield Pause(pause * random.uniform(0.5, 1))  # noqa: S311  jitter
            pause = min(2 * pause, _LONGEST_PAUSE)

    def send(self, command: Command, commit_id: str, keys: Sequence[Key]) -> Conversation[Any]:
        """Send a script that keeps its reply under its commit id; see `send_again`."""
        sent = Sent(commit_id, keys, time.monotonic() + self.timeout)
        try:
            (reply,) = yield Pipe((command,), writes=True)
        except (NotSentError, ReplyLostError) as error:
            return (yield from self.send_again(command, error, sent))

        if isinstance(reply, exceptions.RedisError):
            return (yield from self.send_again(command, reply, sent))

        return reply

    def send_again(
        self, command: Command, failure: Exception, sent: Sent, *, large: bool = False
    ) -> Conversation[Any]:
        """After a first failure: go on for as long as a reply is missing and there is time.

        Answers the reply, which may be a refusal. That is final unless an earlier try, whose reply
        was lost, may have been applied: then only the reply of the commit itself settles it.
        `StoreUnavailableError` if it was never sent, `CommitUncertainError`.
        """
        pause = _PAUSE_SECONDS
        is_lost = False

        while True:
            is_lost = is_lost or isinstance(failure, ReplyLostError)
            if isinstance(failure, exceptions.NoScriptError):
                command = with_source(command)
            else:
                is_final = not (is_lost or isinstance(failure, exceptions.TryAgainError))
                if is_final or time.monotonic() + pause > sent.until:
                    return _given(failure, sent, is_lost=is_lost)

                yield Pause(pause * random.uniform(0.5, 1))  # noqa: S311  jitter
                pause = min(2 * pause, _LONGEST_PAUSE)

            try:
                (reply,) = yield Pipe((command,), writes=True, large=large)
            except (NotSentError, ReplyLostError) as error:
                failure = error
                continue

            if not isinstance(reply, exceptions.RedisError):
                return reply

            failure = reply


def _given(failure: Exception, sent: Sent, *, is_lost: bool) -> Exception:
    """The refusal that a commit has come to, else raise what became of it."""
    if is_lost:
        raise uncertain(sent.id, sent.keys, failure) from cause_of(failure)

    if isinstance(failure, NotSentError):
        raise_unavailable(failure)

    return failure

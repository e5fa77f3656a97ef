"""Sending requests to Redis, and sending them again when a reply is lost.

A read may be sent again at any time. A commit is sent again under its id, because the server keeps
its reply. Neither is sent for the first time after `timeout`.

With `acknowledged_by=n`, every write is followed by `WAIT n` in the same pipe. `WAIT` counts the
replicas that have the last write of its own connection. So each script also writes when it only
returns a reply that is stored, and the two commands are never sent apart.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

from redis import exceptions

from catga_store.errors import StoreUnavailableError
from catga_store.protocol.chance import jittered
from catga_store.protocol.conversation import Conversation
from catga_store.protocol.conversation import NotSentError
from catga_store.protocol.conversation import Pause
from catga_store.protocol.conversation import ReplyLostError
from catga_store.protocol.failures import uncertain
from catga_store.protocol.keys import Key
from catga_store.stores.redis.refusals import cause_of
from catga_store.stores.redis.refusals import raise_refusal
from catga_store.stores.redis.refusals import raise_unavailable
from catga_store.stores.redis.refusals import unconfirmed
from catga_store.stores.redis.scripts import with_source
from catga_store.stores.redis.transport import Command
from catga_store.stores.redis.transport import Pipe

__all__ = ["RedisExchange", "Sent"]

_PAUSE_SECONDS = 0.02
_LONGEST_PAUSE = 0.5
_WAIT_PART = 0.75
"""The part of the timeout that replicas have: the reply of WAIT must come before a link gives up."""


class Sent(NamedTuple):
    """A commit that was sent: its id, the keys it concerns, and until when it is sent again."""

    id: str
    keys: Sequence[Key]
    until: float


class RedisExchange:
    """Sends commands, and sends them again for up to `timeout` seconds.

    `keep_ms` is how long the reply of a commit is kept: twice as long as it may be sent again.
    `acknowledged_by` is the number of replicas that must have each write; see the module.
    """

    def __init__(self, timeout: float, acknowledged_by: int = 0) -> None:
        self.timeout = timeout
        self.keep_ms = max(int(timeout * 2000), 1)
        self.acknowledged_by = acknowledged_by
        wait_ms = max(int(timeout * 1000 * _WAIT_PART), 1)
        wait = Command((b"WAIT", acknowledged_by, wait_ms), b"")
        self.confirmation: tuple[Command, ...] = (wait,) if acknowledged_by else ()
        """What follows each write in its pipe."""

    def check_confirmed(self, commit_id: str, keys: Sequence[Key], replicas: Any) -> None:
        """Raise `CommitUncertainError` unless enough replicas have confirmed a write."""
        if type(replicas) is not int or replicas < self.acknowledged_by:
            seconds = self.timeout * _WAIT_PART
            raise unconfirmed(commit_id, keys, replicas, self.acknowledged_by, seconds)

    def send_once(
        self, commands: tuple[Command, ...], *, writes: bool, exclusive: bool = False
    ) -> Conversation[list[Any]]:
        """Send commands once; a script that the server does not know is sent with its source."""
        replies: list[Any] = list((yield Pipe(commands, writes, exclusive)))
        unknown = [
            place
            for place, reply in enumerate(replies)
            if isinstance(reply, exceptions.NoScriptError)
        ]
        if unknown:
            again = [with_source(commands[place]) for place in unknown]
            if commands[-1:] == self.confirmation:  # it has counted before there was a write
                unknown.append(len(commands) - 1)
                again += self.confirmation

            answers: tuple[Any, ...] = yield Pipe(tuple(again), writes, exclusive)
            for place, answer in zip(unknown, answers, strict=True):
                replies[place] = answer

        return replies

    def ask(
        self,
        commands: Sequence[Command],
        *,
        writes: bool = False,
        exclusive: bool = False,
        prepares: bool = False,
    ) -> Conversation[list[Any]]:
        """Send commands that may be sent twice, until there are replies or the time is up.

        Errors among the replies are left to the caller, except those that pass by themselves. What
        only `prepares` a commit changes nothing by itself, so an error may say so.
        """
        sent = tuple(commands)
        until = time.monotonic() + self.timeout
        pause = _PAUSE_SECONDS
        is_lost = False

        while True:
            try:
                replies = yield from self.send_once(sent, writes=writes, exclusive=exclusive)
            except NotSentError as error:
                if is_lost and writes and not prepares:
                    message = (
                        f"the last attempt failed ({error}), but an earlier attempt may have "
                        "taken effect; try again"
                    )
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

                message = f"{failure}; {'nothing was written' if prepares else 'try again'}"
                raise StoreUnavailableError(message) from cause_of(failure)

            yield Pause(jittered(pause))
            pause = min(2 * pause, _LONGEST_PAUSE)

    def send(self, command: Command, commit_id: str, keys: Sequence[Key]) -> Conversation[Any]:
        """Send a script that keeps its reply under its commit id; see `send_again`."""
        # Counted from before the first try: the reply is kept for twice as long.
        sent = Sent(commit_id, keys, time.monotonic() + self.timeout)
        commands = (command, *self.confirmation)
        try:
            replies: Any = yield Pipe(commands, writes=True, exclusive=bool(self.confirmation))
        except (NotSentError, ReplyLostError) as error:
            return (yield from self.send_again(command, error, sent))

        reply = replies[0]
        if isinstance(reply, exceptions.RedisError):
            return (yield from self.send_again(command, reply, sent))

        if self.confirmation and type(reply) is bytes:
            self.check_confirmed(commit_id, keys, replies[1])

        return reply

    def send_again(
        self, command: Command, failure: Exception, sent: Sent, *, exclusive: bool = False
    ) -> Conversation[Any]:
        """After a first failure: send again for as long as the reply is missing and there is time.

        Return the reply, which may be a refusal. A refusal is final unless an earlier try, whose
        reply was lost, may have been applied: then only the reply of the commit itself settles it.
        Raises `StoreUnavailableError` if it was never sent, `CommitUncertainError` if its reply is
        lost or too few replicas have confirmed it.
        """
        exclusive = exclusive or bool(self.confirmation)
        pause = _PAUSE_SECONDS
        is_lost = False

        while True:
            is_lost = is_lost or isinstance(failure, ReplyLostError)
            if isinstance(failure, exceptions.NoScriptError):
                command = with_source(command)
            else:
                is_final = not (is_lost or isinstance(failure, exceptions.TryAgainError))
                if is_final or time.monotonic() + pause > sent.until:
                    return _final(failure, sent, is_lost=is_lost)

                yield Pause(jittered(pause))
                pause = min(2 * pause, _LONGEST_PAUSE)

            try:
                replies: Any = yield Pipe(
                    (command, *self.confirmation), writes=True, exclusive=exclusive
                )
            except (NotSentError, ReplyLostError) as error:
                failure = error
                continue

            reply = replies[0]
            if not isinstance(reply, exceptions.RedisError):
                if self.confirmation and type(reply) is bytes:
                    self.check_confirmed(sent.id, sent.keys, replies[1])

                return reply

            failure = reply


def _final(failure: Exception, sent: Sent, *, is_lost: bool) -> Exception:
    """Return the refusal that settles a commit, or raise what its failure means."""
    if is_lost:
        raise uncertain(sent.id, sent.keys, failure) from cause_of(failure)

    if isinstance(failure, NotSentError):
        raise_unavailable(failure)

    return failure

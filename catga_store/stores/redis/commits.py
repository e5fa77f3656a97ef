"""Commit, Resolve and Extend as scripts.

`lost_replies` sends a commit again when its reply is lost.
"""

from __future__ import annotations

import time
from typing import Any
from typing import NoReturn

from redis import exceptions

from catga_store.errors import StoreConfigError
from catga_store.errors import StoreUnavailableError
from catga_store.protocol.conversation import Conversation
from catga_store.protocol.conversation import NotSentError
from catga_store.protocol.conversation import ReplyLostError
from catga_store.protocol.failures import given_up
from catga_store.protocol.failures import uncertain
from catga_store.protocol.keys import FLOW
from catga_store.protocol.keys import PART
from catga_store.protocol.keys import PROGRESS
from catga_store.protocol.keys import Key
from catga_store.protocol.keys import new_commit_id
from catga_store.protocol.requests import SWEEP_EVERY
from catga_store.protocol.requests import SWEPT_AT_ONCE
from catga_store.protocol.requests import Append
from catga_store.protocol.requests import Applied
from catga_store.protocol.requests import Check
from catga_store.protocol.requests import Commit
from catga_store.protocol.requests import Extend
from catga_store.protocol.requests import Head
from catga_store.protocol.requests import Outcome
from catga_store.protocol.requests import Put
from catga_store.protocol.requests import Reply
from catga_store.protocol.requests import Resolve
from catga_store.stores.redis.commit_args import LARGE
from catga_store.stores.redis.commit_args import add_change
from catga_store.stores.redis.commit_args import body_sent
from catga_store.stores.redis.commit_args import flags_of
from catga_store.stores.redis.commit_args import is_unused
from catga_store.stores.redis.commit_args import large_body
from catga_store.stores.redis.commit_args import planned
from catga_store.stores.redis.commit_args import read_conflicts
from catga_store.stores.redis.commit_args import read_outcomes
from catga_store.stores.redis.layout import RedisLayout
from catga_store.stores.redis.layout import corrupt
from catga_store.stores.redis.layout import read_head
from catga_store.stores.redis.layout import write_head
from catga_store.stores.redis.lost_replies import RedisExchange
from catga_store.stores.redis.lost_replies import Sent
from catga_store.stores.redis.refusals import check
from catga_store.stores.redis.refusals import raise_for
from catga_store.stores.redis.refusals import raise_refusal
from catga_store.stores.redis.scripts import COMMIT
from catga_store.stores.redis.scripts import EXTEND
from catga_store.stores.redis.scripts import RESOLVE
from catga_store.stores.redis.scripts import call
from catga_store.stores.redis.sweeping import LEFT
from catga_store.stores.redis.sweeping import RedisSweeping
from catga_store.stores.redis.sweeping import partition_named
from catga_store.stores.redis.transport import Command
from catga_store.stores.redis.transport import Pipe

__all__ = ["RedisCommits"]

_UPLOAD_MS = 3_600_000
_REFUSED: Any = list  # of conflicts


class RedisCommits:
    """`Commit`, `Resolve` and `Extend`."""

    def __init__(
        self, layout: RedisLayout, exchange: RedisExchange, sweeping: RedisSweeping
    ) -> None:
        self._layout = layout
        self._exchange = exchange
        self._sweeping = sweeping
        self._commits = 0

    def commit(self, commit: Commit) -> Conversation[Reply]:
        change: Any = commit.changes[0]
        number = self._layout.partition(change.key.id)
        uploads: dict[int, bytes] = {}
        if (
            len(commit.changes) == 1
            and type(change) is Put
            and change.key.kind == FLOW
            and len(change.body) <= LARGE
        ):
            command = self._put_command(commit, number)
            reply = yield from self._send(commit, command, number, exclusive=False)
            if reply == planned(commit):
                head = change.head
                return Applied((Outcome(head.version, commit.id, head.status, head.created_ms),))
        else:
            try:
                yield from self._upload(commit, number, uploads)
                command, exclusive = self._commit_command(commit, number)
                reply = yield from self._send(commit, command, number, exclusive=exclusive)
            except (StoreConfigError, StoreUnavailableError) as error:
                if isinstance(error.__cause__, exceptions.ResponseError):  # the server has replied
                    yield from self._sweeping.remove_uploads(uploads.values())

                raise

            if isinstance(reply, _REFUSED):
                yield from self._sweeping.remove_uploads(uploads.values())

        if type(reply) is bytes:
            applied = Applied(read_outcomes(commit.id, reply))
            if uploads or reply[-1:] == LEFT:
                yield from self._tidy_up(commit, number, uploads, applied, reply)

            return applied

        if reply == 0:
            raise given_up(commit.id)

        return read_conflicts(commit, reply)

    def _tidy_up(
        self,
        commit: Commit,
        number: int,
        uploads: dict[int, bytes],
        applied: Applied,
        reply: bytes,
    ) -> Conversation[None]:
        """Remove uploads that the commit has not taken over, and large bodies that it has left."""
        unused = [
            key
            for place, key in uploads.items()
            if is_unused(commit.changes[place], applied.outcomes[place])
        ]
        yield from self._sweeping.remove_uploads(unused)
        if reply[-1:] == LEFT:
            yield from self._sweeping.remove_left(number, commit.now_ms)

    def _send(
        self, commit: Commit, command: Command, number: int, *, exclusive: bool
    ) -> Conversation[Any]:
        """Send the script until there is a reply; every 16th time, sweep a few expired records."""
        exchange = self._exchange
        confirmation = exchange.confirmation
        commands: tuple[Command, ...] = (command, *confirmation)
        if confirmation:
            exclusive = True

        self._commits += 1
        sweeps = self._commits % SWEEP_EVERY == 0
        if sweeps:
            commands += (self._sweeping.expired(number, commit.now_ms, SWEPT_AT_ONCE),)

        # Counted from before the first try: the reply is kept for twice as long.
        until = time.monotonic() + exchange.timeout
        replies: Any = ()
        reply: Any = None
        failure: Exception | None = None
        try:
            replies = yield Pipe(commands, writes=True, exclusive=exclusive)
            reply = replies[0]
        except (NotSentError, ReplyLostError) as error:
            failure = error

        if failure is None and isinstance(reply, exceptions.RedisError):
            failure = reply

        if failure is not None:
            keys = [change.key for change in commit.changes]
            reply = yield from exchange.send_again(
                command, failure, Sent(commit.id, keys, until), exclusive=exclusive
            )
            if isinstance(reply, exceptions.RedisError):
                _raise_for_commit(commit, reply)
        elif confirmation and type(reply) is bytes:
            keys = [change.key for change in commit.changes]
            exchange.check_confirmed(commit.id, keys, replies[1])

        if sweeps and replies and type(replies[-1]) is list and replies[-1]:
            yield from self._sweeping.tidy(number, commit.now_ms, replies[-1])

        return reply

    def _upload(self, commit: Commit, number: int, uploads: dict[int, bytes]) -> Conversation[None]:
        """Upload large bodies in chunks, so that no other caller waits for a whole one; note their keys.

        The server removes an upload after an hour unless the commit takes it over.
        """
        for place, change in enumerate(commit.changes):
            body = large_body(change)
            if body is None:
                continue

            name = _upload_name(commit, place)
            key = self._layout.upload[number] + name.encode()
            uploads[place] = key
            expires = Command((b"PEXPIRE", key, _UPLOAD_MS), key)
            commands = [Command((b"HSET", key, b"g", name), key), expires]
            for chunk, start in enumerate(range(0, len(body), LARGE)):
                args = b"HSET", key, b"%d" % chunk, body[start : start + LARGE]
                commands.append(Command(args, key))

            commands.append(expires)  # a full server may have refused only the first
            ask = self._exchange.ask(commands, writes=True, exclusive=True, prepares=True)
            check((yield from ask))

    def _put_command(self, commit: Commit, number: int) -> Command:
        """Return the command of the most frequent commit, of one flow.

        The arguments are those of `_commit_command`; this makes 9 calls instead of 31.
        """
        put: Any = commit.changes[0]
        data = put.key.id.encode()
        log = self._layout.log[number] + commit.id.encode()
        retain_ms = commit.retain_ms
        parts: tuple[bytes, ...] = ()
        if (
            put.expected is None
            or commit.history > 1
            or put.fresh
            or put.head.expires_ms is not None
            or put.replaces is None
            or put.replaces.expires_ms is not None
        ):
            # They are removed with what was there before, get its time to live, or get a version.
            parts = self._layout.parts[number] + data, self._layout.names[number] + data

        args = (
            *(b"EVALSHA", COMMIT.sha, 7 if parts else 5, log, self._layout.index[number]),
            *(self._layout.flow[number] + data, self._layout.steps[number] + data),
            *(self._layout.chunks[number] + data, *parts),
            *(
                commit.id,
                commit.now_ms,
                b"" if retain_ms is None else retain_ms,
                self._exchange.keep_ms,
            ),
            *(b"P", b"F", data, 0, b"" if put.expected is None else put.expected),
            *(
                flags_of(put, leaves=False, history=commit.history),
                write_head(put.head),
                body_sent(put),
            ),
        )
        return Command(args, log)

    def _commit_command(self, commit: Commit, number: int) -> tuple[Command, bool]:
        now_ms, retain_ms = commit.now_ms, commit.retain_ms
        log = self._layout.log[number] + commit.id.encode()
        keys: list[bytes] = [log, self._layout.index[number]]
        retain = b"" if retain_ms is None else retain_ms
        args: list[bytes | str | int] = [commit.id, now_ms, retain, self._exchange.keep_ms]
        leaving = commit.leaving_flows()
        size = 0

        for place, change in enumerate(commit.changes):
            key, upload = change.key, ""
            keys += self._layout.written(key)
            if large_body(change) is not None:
                upload = _upload_name(commit, place)
                keys.append(self._layout.upload[number] + upload.encode())
            elif type(change) is Put:
                size += len(body_sent(change))
            elif type(change) is Append:
                size += len(change.body)

            goes = key.kind in (PROGRESS, PART) and key.id in leaving
            leaves = goes and not isinstance(change, Check)
            add_change(args, change, leaves=leaves, upload=upload, history=commit.history)

        args[:0] = (b"EVALSHA", COMMIT.sha, len(keys), *keys)
        return Command(tuple(args), log), size > LARGE

    def resolve(self, request: Resolve) -> Conversation[Applied | None]:
        keys = [Key(*key) for key in request.keys]
        number = self._layout.partition(keys[0].id) if keys else partition_named(request.id)
        log = self._layout.log[number] + request.id.encode()
        heads = [self._layout.head_of(key) for key in keys]
        places, fields = [one[0] for one in heads], [one[1] for one in heads]
        command = call(RESOLVE, (log, *places), (request.id, self._exchange.keep_ms, *fields))
        reply = yield from self._settle(command, request.id, keys)
        if type(reply) is bytes:
            return Applied(read_outcomes(request.id, reply))

        return Applied(()) if reply else None

    def _settle(self, command: Command, commit_id: str, keys: list[Key]) -> Conversation[Any]:
        """Send the script that settles a commit; what it settles must be confirmed like a commit."""
        exchange, confirmation = self._exchange, self._exchange.confirmation
        commands = (command, *confirmation)
        try:
            replies = yield from exchange.ask(commands, writes=True, exclusive=bool(confirmation))
            check(replies[:1])
        except StoreUnavailableError as error:
            raise uncertain(commit_id, keys, error) from error

        if confirmation:
            exchange.check_confirmed(commit_id, keys, replies[1])

        return replies[0]

    def extend(self, request: Extend) -> Conversation[Head | None]:
        key, commit_id = request.key, new_commit_id()
        number = self._layout.partition(key.id)
        log = self._layout.log[number] + commit_id.encode()
        keys = log, self._layout.index[number], self._layout.keys(key)[0]
        args = self._exchange.keep_ms, key.id.encode(), request.claim, request.due_ms
        command = call(EXTEND, keys, (*args, request.now_ms))
        reply = yield from self._exchange.send(command, commit_id, [key])
        if isinstance(reply, Exception):
            raise_for(key, reply)

        if reply == 0:
            raise given_up(commit_id)

        return None if reply is None else read_head(key, reply)


def _upload_name(commit: Commit, place: int) -> str:
    return f"{commit.id}.{place}"


def _raise_for_commit(commit: Commit, error: Exception) -> NoReturn:
    said = str(error)
    if said.startswith("CORRUPT"):
        key = commit.changes[int(said.split()[1])].key
        raise corrupt(key, "an invalid head") from error

    raise_refusal(error)

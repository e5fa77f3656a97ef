"""Who waits for what in this process, and how a commit wakes one of them.

A notification is latency, never truth. A waiter subscribes (`Listen`), then looks, then waits
(`Await`); whatever a hint misses is found by its next look, after the poll interval at the latest.

- A **`Waiter`** is one call that waits: for flows that are due (`CLAIM`, `LOOK`), or for the next version
  of one flow, or the next entry of a log of it (`WATCH`).
- A **`Wakeups`** has the waiters of one store in one process: of one name in memory, of one SQLite file,
  of one store object on a server. It also has the times at which something is due soon.
- A **`Hint`** is what is known of a commit: something is due at a time, a flow was written. `publish` takes
  hints: the store protocol calls it after its own commits, a subscription for those of other processes.
  A hint may be lost, doubled, early or late.

One hint wakes one waiter of each kind, not all. A waiter that is woken and leaves without having looked
passes that on, and one that was woken by what may concern several flows (a time, a subscription that
does not say what was written) wakes another one when it has claimed as many as it may. One sleeping waiter, the
timekeeper, sleeps no longer than to the next time that is known; the others sleep until they are woken.

A store on a server publishes what its subscription receives: `converse(Listen(waiter))` joins the waiter and
starts the subscription if there is none, which calls `publish(hints)` for each message and `look_again()`
whenever messages may have been lost, as after a reconnection. It ends when `waiters` is empty.

Every method may be called from any thread.
"""

from __future__ import annotations

import heapq
import os
import threading
import time
import weakref
from collections.abc import Callable
from collections.abc import Iterable
from typing import NamedTuple
from typing import Protocol

from attrs import define

from catga_store.errors import CatgaStoreError
from catga_store.protocol.chance import uniform
from catga_store.protocol.conversation import Request

__all__ = ["CLAIM", "LOOK", "WATCH", "Hint", "HintSource", "Listen", "Waiter", "Wakeups"]

CLAIM, LOOK, WATCH = "claim", "look", "watch"
"""What a waiter does when it is woken: claims, says that something may be due, reads its flow."""

_LEAST_SHARE = 0.8
"""A look comes after this much of the poll interval at the earliest: so looks of many spread."""
_MOST_EXPECTED = 1000
"""How many times are remembered; one that is forgotten is found by the next look."""
_MOST_PUBLISHED = 1000
"""How many hints are remembered, so that they wake no second waiter."""


class Hint(NamedTuple):
    """What a waiter may want to know of a commit."""

    due_ms: int | None = None
    """When something is due; None: this is not about something due."""
    type: str | None = None
    """The type of the flow that is due; None if it is not known."""
    flow_id: str | None = None
    """The flow that was written, or is due."""
    version: int = 0
    """Its version; 0 if it is not known."""
    revision: str = ""
    """Its revision, where a hint may come by two ways: then it wakes once."""
    log: str | None = None
    """The log of the flow that has a new entry; then the flow itself was not written by this change."""


class HintSource(Protocol):
    """Learns of the commits of other processes while there are waiters."""

    def start(self, wakeups: Wakeups, /) -> None:
        """Begin unless it has begun; called under no lock, whenever a waiter joins."""
        ...

    def stop(self) -> None:
        """End at once if there are no waiters: the store was closed."""
        ...

    def forget(self) -> None:
        """Forget what only the parent of this forked process has."""
        ...


class Waiter:
    """One call that waits. Times: `give_up` by the monotonic clock, `now_ms` by the store's.

    `types` are names, None for all; `tags` are those that a flow must have, of which hints say nothing.
    `flow_id`, `log` and `after`, a version or a sequence, are of a `WATCH`.
    """

    def __init__(
        self,
        what: str,
        *,
        now_ms: Callable[[], int],
        seconds: float,
        interval: float,
        types: tuple[str, ...] | None = None,
        tags: tuple[tuple[str, str], ...] = (),
        flow_id: str | None = None,
        log: str | None = None,
        after: int = 0,
    ) -> None:
        self.what = what
        self.types = types
        self.tags = tags
        self.flow_id = flow_id
        self.log = log
        self.after = after
        self.now_ms = now_ms
        self.interval = interval
        self.group = what, types, tags, flow_id, log, after
        """Those of one group are interchangeable: a look of one is a look of all."""
        self.give_up = time.monotonic() + seconds
        self.look_at = 0.0
        """When it looks again even if nothing wakes it."""
        self.is_woken = False
        self.is_closed = False
        """The store was closed."""
        self.is_looking = False
        """It was woken, and what it was woken for is not done."""
        self.passes_on = False
        """What has woken it may concern several flows."""
        self.notify: Callable[[], object] | None = None
        """Set by the driver while the waiter sleeps: it then asks `seconds_left` again."""
        self.share = 1.0
        """After how much of the interval it looks."""
        self._wakeups: Wakeups | None = None
        self.rest(interval)

    def join(self, wakeups: Wakeups) -> None:
        """Subscribe; does nothing if it has."""
        self._wakeups = wakeups
        wakeups.add(self)

    def leave(self) -> None:
        """Unsubscribe, and pass on what has woken it, unless it has looked since, to the end."""
        if self._wakeups is not None:
            self._wakeups.remove(self)

    def wants(self, type_name: str | None) -> bool:
        """Whether it waits for flows of this type."""
        return self.types is None or type_name is None or type_name in self.types

    @property
    def is_over(self) -> bool:
        """Whether it has waited for as long as it may."""
        return time.monotonic() >= self.give_up

    def rest(self, seconds: float) -> None:
        """Look again after about this time, whatever happens."""
        self.share = uniform(_LEAST_SHARE, 1)
        self.look_at = time.monotonic() + seconds * self.share

    def look_now(self) -> None:
        """Look, because the clock of the store was moved: anything may be due."""
        self.look_at = 0.0
        self.poke()

    def looked(self) -> None:
        """Note that nothing was due just now: the others of this group need not look for an interval."""
        self.rest(self.interval)
        if self._wakeups is not None:
            self._wakeups.looked(self)

    def expect(self, due_ms: int, type_name: str | None) -> None:
        """Have this waiter or another one woken when something is due then."""
        if self._wakeups is not None:
            self._wakeups.publish((Hint(due_ms, type_name),))

    def has_looked(self, *, is_more: bool = False) -> None:
        """Note that its look has come to an end. If there may be more than it has claimed, wake another."""
        self.is_looking = False
        if is_more and self.passes_on and self._wakeups is not None:
            self._wakeups.pass_on(self)

    def seconds_left(self) -> float:
        """For how long it sleeps unless it is woken; 0: it is to look, or it is over."""
        if self.is_woken or self.is_closed or not self.look_at:
            return 0.0

        left = min(self.give_up, self.look_at) - time.monotonic()
        return max(left if self._wakeups is None else self._wakeups.sleeps(self, left), 0.0)

    def rested(self) -> bool:
        """End a sleep; return whether it was woken. What wakes it from now on is for the next look."""
        if self._wakeups is not None:
            self._wakeups.release_keeper(self)

        if self.is_woken:
            self.is_woken = False
            self.is_looking = True
            return True

        self.passes_on = True  # it looks by itself, and may find anything
        return False

    def wake(self, *, passes_on: bool) -> None:
        """Let it look now."""
        self.passes_on = passes_on
        self.is_woken = True
        self.poke()

    def end(self) -> None:
        """Let it end after the look that is under way, as if its time had passed. For any thread."""
        self.give_up = 0.0
        self.poke()

    def close(self) -> None:
        """Let it end, because its store was closed."""
        self.is_closed = True
        self.poke()

    def poke(self) -> None:
        """Let its driver compute again for how long it sleeps, as after a clock was moved."""
        notify = self.notify
        if notify is not None:
            notify()

    def __repr__(self) -> str:
        return f"<Waiter {self.what} {self.flow_id or self.types or 'any type'}>"


class Wakeups:
    """The waiters of one store in this process; see the module."""

    def __init__(self, source: HintSource | None = None) -> None:
        self.waiters: list[Waiter] = []
        """Empty as long as no call waits: a store publishes nothing then."""
        self._source = source
        self._expected: list[tuple[int, str]] = []
        """When something is due, soonest first, with its type; see `_ANY`."""
        self._keeper: Waiter | None = None
        self._looks: dict[object, float] = {}
        self._horizon_ms = 0
        self._published: dict[Hint, None] = {}
        # Reentrant: a signal handler may commit while its thread holds it.
        self._lock = threading.RLock()
        _all.add(self)

    # for waiters ----------------------------------------------------------------------------------

    def add(self, waiter: Waiter) -> None:
        """Add a waiter unless it is there, and start the source."""
        with self._lock:
            if waiter not in self.waiters:
                self.waiters.append(waiter)

            self._horizon_ms = max(self._horizon_ms, int(waiter.interval * 1000))

        if self._source is not None:
            self._source.start(self)

    def remove(self, waiter: Waiter) -> None:
        """Remove a waiter; what has woken it and was not looked at wakes another one."""
        with self._lock:
            if waiter in self.waiters:
                self.waiters.remove(waiter)

            self.release_keeper(waiter)
            if all(other.group != waiter.group for other in self.waiters):
                self._looks.pop(waiter.group, None)

            if not self.waiters:
                self._expected.clear()
                self._published.clear()
                if self._source is not None and waiter.is_closed:
                    self._source.stop()
            elif waiter.is_woken or waiter.is_looking:
                waiter.is_woken = waiter.is_looking = False
                self.pass_on(waiter)

    def pass_on(self, waiter: Waiter) -> None:
        """Wake another waiter that does the same for one of the same types."""
        with self._lock:
            others = [
                other
                for other in self.waiters
                if other is not waiter
                and other.what == waiter.what
                and other.tags == waiter.tags
                and not other.is_woken
                and _overlap(other, waiter)
            ]
            if others and waiter.what != WATCH:
                _first(others).wake(passes_on=waiter.passes_on)

    def looked(self, waiter: Waiter) -> None:
        """Note that a waiter has looked."""
        with self._lock:
            self._looks[waiter.group] = time.monotonic()

    def sleeps(self, waiter: Waiter, left: float) -> float:
        """For how long a waiter sleeps that would sleep for `left` by itself."""
        with self._lock:
            last = self._looks.get(waiter.group)
            if last is not None:
                now = time.monotonic()
                shared = last + waiter.interval * waiter.share
                left = max(left, min(waiter.give_up, shared) - now)

            if self._keeper is None or self._keeper is waiter:
                self._keeper = waiter
                now_ms = _time_of(waiter)
                self._wake_expected(now_ms)
                if waiter.is_woken:
                    return 0.0

                if self._expected:
                    left = min(left, (self._expected[0][0] - now_ms) / 1000)

            return left

    def release_keeper(self, waiter: Waiter) -> None:
        """Make another waiter the keeper of the times, if this one was."""
        with self._lock:
            if self._keeper is not waiter:
                return

            self._keeper = None
            if self._expected:
                self._poke_keeper(waiter)

    # for those who learn of commits ---------------------------------------------------------------

    def publish(self, hints: Iterable[Hint]) -> None:
        """Wake one waiter of each kind for each hint that is due, and all who watch what was written."""
        with self._lock:
            if not self.waiters:
                return

            now_ms = _time_of(self.waiters[0])
            for hint in hints:
                due_ms, type_name, flow_id, version, revision, log = hint
                if flow_id is not None:
                    self._wake_watchers(flow_id, version, log)

                if due_ms is None or due_ms > now_ms + self._horizon_ms:
                    continue  # every waiter looks before that anyway

                if due_ms > now_ms:
                    self._expect(due_ms, type_name)
                elif not (revision and self._is_known(hint)):
                    self._wake(type_name, passes_on=False)

    def look_again(self) -> None:
        """Wake one waiter of each group, and all who watch: anything may have been written."""
        with self._lock:
            self._wake(None, passes_on=True)
            for waiter in self.waiters:
                if waiter.what == WATCH:
                    waiter.wake(passes_on=False)

    def groups(self) -> list[Waiter]:
        """One waiter of each group, for a source that looks on behalf of all."""
        with self._lock:
            return list({waiter.group: waiter for waiter in self.waiters}.values())

    # under the lock -------------------------------------------------------------------------------

    def _wake(self, type_name: str | None, *, passes_on: bool) -> None:
        """Wake one waiter of each kind and tags that wants this type; of each group if it is not known."""
        chosen: dict[object, Waiter] = {}
        for waiter in self.waiters:
            if waiter.what == WATCH or not waiter.wants(type_name):
                continue

            kind = (waiter.what, waiter.tags) if type_name is not None else waiter.group
            if waiter.is_woken:
                if passes_on:
                    chosen[kind] = waiter  # it has not looked since: one is enough
            elif kind not in chosen or (chosen[kind].notify is None and not chosen[kind].is_woken):
                chosen[kind] = waiter

        for waiter in chosen.values():
            if not waiter.is_woken:
                waiter.wake(passes_on=passes_on or type_name is None)

    def _wake_watchers(self, flow_id: str, version: int, log: str | None) -> None:
        for waiter in self.waiters:
            if waiter.flow_id == flow_id and waiter.log == log and not 0 < version <= waiter.after:
                waiter.wake(passes_on=False)

    def _is_known(self, hint: Hint) -> bool:
        """Note a hint; return whether it has come before."""
        if hint in self._published:
            return True

        if len(self._published) == _MOST_PUBLISHED:
            del self._published[next(iter(self._published))]

        self._published[hint] = None
        return False

    def _expect(self, due_ms: int, type_name: str | None) -> None:
        entry = due_ms, _ANY if type_name is None else type_name
        if entry in self._expected or len(self._expected) >= _MOST_EXPECTED:
            return

        heapq.heappush(self._expected, entry)
        if self._expected[0] == entry:
            self._poke_keeper(None)

    def _wake_expected(self, now_ms: int) -> None:
        while self._expected and self._expected[0][0] <= now_ms:
            _, name = heapq.heappop(self._expected)
            self._wake(None if name == _ANY else name, passes_on=True)

    def _poke_keeper(self, leaving: Waiter | None) -> None:
        keeper = self._keeper
        if keeper is None:
            keeper = next(
                (one for one in self.waiters if one.notify is not None and one is not leaving), None
            )

        if keeper is not None:
            keeper.poke()

    def after_fork(self) -> None:
        """In a forked child: no call waits, and no thread holds the lock."""
        self._lock = threading.RLock()
        self.waiters = []
        self._expected = []
        self._keeper = None
        self._looks = {}
        self._published = {}
        if self._source is not None:
            self._source.forget()

    def __repr__(self) -> str:
        return f"<Wakeups waiters: {len(self.waiters)} expected: {len(self._expected)}>"


@define
class Listen(Request[None]):
    """Let a waiter know of commits from now on: join it to the waiters of the store.

    The reply comes when hints of every later commit are sent to this process, as far as hints are sent.
    Asked again by a waiter that has looked by itself; then it renews a subscription that has ended.
    """

    waiter: Waiter


_ANY = "\ud800"
"""In place of a type that is not known. No type has this name, which cannot be encoded."""

_all: weakref.WeakSet[Wakeups] = weakref.WeakSet()


def _first(waiters: list[Waiter]) -> Waiter:
    """The one that has waited longest, of those that sleep if one does."""
    return next((one for one in waiters if one.notify is not None), waiters[0])


def _overlap(one: Waiter, other: Waiter) -> bool:
    """Whether some flow is wanted by both."""
    if one.types is None or other.types is None:
        return True

    return not set(one.types).isdisjoint(other.types)


def _time_of(waiter: Waiter) -> int:
    """The time by a waiter's store. Its clock may be wrong, and a commit must not fail because of that."""
    try:
        return waiter.now_ms()
    except CatgaStoreError:
        return 0


def _after_fork() -> None:
    for wakeups in list(_all):
        wakeups.after_fork()


if hasattr(os, "register_at_fork"):  # pragma: no branch  Windows has no fork
    os.register_at_fork(after_in_child=_after_fork)

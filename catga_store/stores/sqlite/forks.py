"""Forks of a process that has SQLite files open: no lock and no connection crosses one."""

from __future__ import annotations

import os
import threading
import weakref
from threading import get_ident
from typing import Protocol

from catga_store.stores.sqlite.failures import BUSY_SECONDS
from catga_store.stores.sqlite.file_locks import forget_after_fork
from catga_store.stores.sqlite.file_locks import resume_after_fork
from catga_store.stores.sqlite.file_locks import stop_for_fork

__all__ = ["Traffic", "traffic"]


class Forkable(Protocol):
    """What a fork stops; a `SQLiteTransport`."""

    def before_fork(self) -> None:
        """Let no write begin, and close every idle connection."""
        ...

    def after_fork_in_parent(self) -> None:
        """Let writes continue."""
        ...

    def after_fork_in_child(self) -> None:
        """Forget what threads of the parent have left behind."""
        ...


class Traffic:
    """The reads under way in this process. A fork waits until there are none, and lets none begin.

    Otherwise SQLite's mutexes and locks, held by another thread in the middle of a call, would stay
    held in the child forever. Writes are stopped by the lock that they take anyway.
    """

    def __init__(self) -> None:
        self._gate = threading.Condition()
        self._forkables: weakref.WeakSet[Forkable] = weakref.WeakSet()
        self.under_way: list[int] = []
        self.stopped = False

    def admit(self, forkable: Forkable) -> None:
        """Add a transport to those that a fork stops; wait while a fork is being made."""
        with self._gate:
            self._gate.wait_for(lambda: not self.stopped, timeout=BUSY_SECONDS + 1)
            self._forkables.add(forkable)

    def wait(self, own: int) -> None:
        """Wait until reads may continue; meanwhile this read does not count as under way."""
        while self.stopped:
            self.under_way.remove(own)
            try:
                self.notify()
                with self._gate:
                    self._gate.wait_for(lambda: not self.stopped)
            finally:
                self.under_way.append(own)

    def notify(self) -> None:
        """Say that a read has ended, if a fork waits for that."""
        with self._gate:
            self._gate.notify_all()

    def stop(self) -> None:
        """Let no read begin, and wait for those under way except this thread's own."""
        own = get_ident()
        with self._gate:
            self._gate.wait_for(lambda: not self.stopped)
            self.stopped = True
            self._gate.wait_for(
                lambda: all(ident == own for ident in tuple(self.under_way)),
                timeout=BUSY_SECONDS + 1,
            )

    def resume(self) -> None:
        """Let reads begin again."""
        with self._gate:
            self.stopped = False
            self._gate.notify_all()

    def before_fork(self) -> None:
        """Stop reads and writes."""
        self.stop()
        for forkable in list(self._forkables):
            forkable.before_fork()

        stop_for_fork()

    def after_fork_in_parent(self) -> None:
        """Let writes and reads continue."""
        resume_after_fork()
        for forkable in list(self._forkables):
            forkable.after_fork_in_parent()

        self.resume()

    def after_fork_in_child(self) -> None:
        """Start again without the parent's other threads, which may have held the gate."""
        own = get_ident()
        self._gate = threading.Condition()
        self.under_way = [ident for ident in self.under_way if ident == own]
        self.stopped = False
        forget_after_fork()
        for forkable in list(self._forkables):
            forkable.after_fork_in_child()


traffic = Traffic()

if hasattr(os, "register_at_fork"):  # pragma: no branch  Windows has no fork
    os.register_at_fork(
        before=traffic.before_fork,
        after_in_parent=traffic.after_fork_in_parent,
        after_in_child=traffic.after_fork_in_child,
    )

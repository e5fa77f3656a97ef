"""The calls of one store that wait now: closing the store ends them."""

from __future__ import annotations

import os
import threading
import weakref

from catga_store.protocol.wakeups import Waiter

__all__ = ["OpenWaiters"]


class OpenWaiters:
    """The waiters of one store, also of its sessions, and whether the store was closed."""

    def __init__(self) -> None:
        self._waiters: set[Waiter] = set()
        self._is_closed = False
        # Reentrant: a signal handler may close the store.
        self._lock = threading.RLock()
        _all.add(self)

    def add(self, waiter: Waiter) -> None:
        """Note that a call waits; if the store was closed meanwhile, end it at once."""
        with self._lock:
            self._waiters.add(waiter)
            if self._is_closed:
                waiter.close()

    def remove(self, waiter: Waiter) -> None:
        """Note that a call waits no longer."""
        with self._lock:
            self._waiters.discard(waiter)

    def close(self) -> None:
        """End every call that waits."""
        with self._lock:
            self._is_closed = True
            for waiter in self._waiters:
                waiter.close()

    def after_fork(self) -> None:
        """In a forked child: the calls of other threads do not exist, and none holds the lock."""
        self._lock = threading.RLock()
        self._waiters = set()


_all: weakref.WeakSet[OpenWaiters] = weakref.WeakSet()


def _after_fork() -> None:
    for one in list(_all):
        one.after_fork()


if hasattr(os, "register_at_fork"):  # pragma: no branch  Windows has no fork
    os.register_at_fork(after_in_child=_after_fork)

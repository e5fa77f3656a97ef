"""Those who wait for one SQLite file in this process, and how they learn of commits of other processes."""

from __future__ import annotations

import os
import threading
import weakref

from catga_store.protocol.wakeups import Wakeups

__all__ = ["shared_wakeups"]

_by_file: weakref.WeakValueDictionary[str, Wakeups] = weakref.WeakValueDictionary()
_lock = threading.Lock()


def shared_wakeups(path: str) -> Wakeups:
    """Those who wait for the records of that file in this process."""
    file = os.path.realpath(path)
    with _lock:
        found = _by_file.get(file)
        if found is None:
            found = _by_file[file] = Wakeups()

        return found

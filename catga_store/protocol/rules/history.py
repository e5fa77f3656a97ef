"""Former versions of flows: hidden parts, which so go with their flow."""

from __future__ import annotations

from catga_store.protocol.keys import VERSIONS
from catga_store.protocol.keys import Key
from catga_store.protocol.keys import part_key
from catga_store.protocol.keys import version_key
from catga_store.protocol.requests import Commit
from catga_store.protocol.requests import Head
from catga_store.protocol.requests import Parts
from catga_store.protocol.rules.tables import Tables

__all__ = ["keep_version"]

_REMOVED_AT_ONCE = 10
"""More than one is too old only after a program with a longer history wrote the flow."""


def keep_version(tables: Tables, commit: Commit, key: Key, old: Head, version: int) -> None:
    """Keep the version of a flow that a commit replaces by `version`, and remove what is too old."""
    record = tables.record(key)
    assert record is not None, "a record that has a head must exist"  # noqa: S101  a broken rule, not bad input
    at = version_key(key.id, old.version)
    tables.write(at, old, record.body, tables.head(at))
    oldest = version_key(key.id, max(version - commit.history + 1, 0))
    wanted = Parts(
        key.id,
        VERSIONS,
        after=None,
        before=oldest.name,
        reverse=False,
        limit=_REMOVED_AT_ONCE,
        bodies=False,
        now_ms=commit.now_ms,
        versions=True,
    )
    for part in tables.parts(wanted):
        tables.remove(part_key(key.id, part.name), part.head)

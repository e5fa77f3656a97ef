"""Rows that say which flows have a tag, and the parts of queries that look there."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence
from typing import Any

from catga_store.protocol.keys import FLOW
from catga_store.protocol.keys import Key
from catga_store.protocol.requests import Head

__all__ = ["TAGGED", "SQLiteTags", "has_others", "parent_has_tags", "row_of"]

TAGGED = "catga_tags INDEXED BY {index} CROSS JOIN catga_flows ON id = flow AND step = 0"
"""Flows in the order of an index of tags: SQLite takes the tables of a cross join in their order."""

_HAS_TAG = (
    "EXISTS (SELECT 1 FROM catga_tags AS other WHERE other.tag = ? AND other.in_status = status"
    " AND other.made_ms = created_ms AND other.flow = id)"
)


def row_of(pair: tuple[str, str]) -> bytes:
    """A tag as it is stored."""
    key, value = (text.encode() for text in pair)
    return b"%d:%b%b" % (len(key), key, value)


class SQLiteTags:
    """The rows of `catga_tags`: one for each tag of a flow."""

    def __init__(self, execute: Callable[..., Any]) -> None:
        self._execute = execute

    def write(self, key: Key, head: Head | None, old: Head | None) -> None:
        """Follow the write of a flow, or its removal."""
        if key.kind != FLOW or not ((head and head.tags) or (old and old.tags)):
            return

        before, after = _rows(key, old), _rows(key, head)
        for row, at_ms in before.items():
            if row not in after or after[row] != at_ms:
                self._execute(
                    "DELETE FROM catga_tags"
                    " WHERE tag = ? AND in_status = ? AND made_ms = ? AND flow = ?",
                    row,
                )

        for row, at_ms in after.items():
            if row not in before or before[row] != at_ms:
                self._execute(
                    "INSERT OR REPLACE INTO catga_tags (tag, in_status, made_ms, flow, at_ms)"
                    " VALUES (?, ?, ?, ?, ?)",
                    (*row, at_ms),
                )


def _rows(key: Key, head: Head | None) -> dict[tuple[bytes, int, int, bytes], int | None]:
    if head is None:
        return {}

    flow_id = key.id.encode()
    return {
        (row_of(pair), head.status, head.created_ms, flow_id): head.due_ms for pair in head.tags
    }


def has_others(tags: Sequence[tuple[str, str]]) -> tuple[str, list[bytes]]:
    """The condition that a flow has all these tags, and its parameters."""
    return f" AND {_HAS_TAG}" * len(tags), list(map(row_of, tags))


def parent_has_tags(tags: Sequence[tuple[str, str]], now_ms: int) -> tuple[str, list[Any]]:
    """The condition that the parent of a condition has these tags, or is gone; and its parameters."""
    if not tags:
        return "", []

    others, rows = has_others(tags)
    there = "SELECT 1 FROM catga_flows WHERE id = parent AND step = 0"
    live = f"{there} AND (expires_ms IS NULL OR expires_ms > ?)"
    return f" AND (NOT EXISTS ({live}) OR EXISTS ({there}{others}))", [now_ms, *rows]

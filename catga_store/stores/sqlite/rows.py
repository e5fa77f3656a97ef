"""Rows of a SQLite file to records and back. Each is checked, because a user may have edited it."""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Sequence
from typing import Any
from typing import TypeVar

from catga_store.errors import CorruptRecordError
from catga_store.protocol.failures import warn_passed_over
from catga_store.protocol.keys import FLOW
from catga_store.protocol.keys import WAIT
from catga_store.protocol.keys import Key
from catga_store.protocol.keys import new_commit_id
from catga_store.protocol.requests import CANCELLED
from catga_store.protocol.requests import FIRST_MS
from catga_store.protocol.requests import HIGHEST_STATUS
from catga_store.protocol.requests import LAST_MS
from catga_store.protocol.requests import LOWEST_STATUS
from catga_store.protocol.requests import REMEMBERED_COMMITS
from catga_store.protocol.requests import Found
from catga_store.protocol.requests import Head
from catga_store.protocol.requests import Item
from catga_store.protocol.requests import Outcome
from catga_store.protocol.requests import Terms
from catga_store.protocol.requests import head_from

__all__ = [
    "AFTER_HEAD",
    "AFTER_PART_HEAD",
    "AFTER_WAIT_HEAD",
    "HEAD",
    "ID_LENGTH",
    "ONE_MORE_COMMIT",
    "PART_HEAD",
    "TAGS",
    "WAIT_HEAD",
    "columns_of",
    "corrupt",
    "due_found",
    "flow_due",
    "flow_found",
    "flow_listed",
    "head_of_part",
    "head_of_row",
    "read_head",
    "read_item",
    "read_key",
    "read_outcomes",
    "read_terms",
    "read_wait_head",
    "readable",
    "shown_row",
    "text_of_tags",
    "wait_found",
    "wait_listed",
    "write_terms",
]

T = TypeVar("T")

HEAD = (
    "version, status, created_ms, updated_ms, type, type_version, position, error, attempts,"
    " owner, claim, due_ms, expires_ms, reports_to, tags, revision, commits"
)
PART_HEAD = (
    "version, created_ms, updated_ms, type, type_version, position, attempts, revision, commits"
)
"""What a part has of a head; only a former version of a flow has more."""
WAIT_HEAD = "version, status, created_ms, updated_ms, due_ms, expires_ms, revision, commits"

ID_LENGTH = len(new_commit_id())
ONE_MORE_COMMIT = f"substr(? || ' ' || commits, 1, {REMEMBERED_COMMITS * (ID_LENGTH + 1) - 1})"
"""The commits that a row remembers and one more, which must have an id of that length: so have all."""

TAGS = Head._fields.index("tags")
"""The place of the tags among the columns of `HEAD`."""
AFTER_HEAD, AFTER_PART_HEAD, AFTER_WAIT_HEAD = (
    names.count(",") + 1 for names in (HEAD, PART_HEAD, WAIT_HEAD)
)
"""The place of the first column that a statement selects after those of a head."""

_NONE = type(None)
_INT, _TEXT, _BYTES = (int,), (str,), (bytes,)
_INT_OR_NONE, _TEXT_OR_NONE, _BYTES_OR_NONE = (int, _NONE), (str, _NONE), (bytes, _NONE)


def _shapes(*columns: tuple[type, ...]) -> frozenset[tuple[type, ...]]:
    return frozenset(itertools.product(*columns))


_HEAD_COLUMNS = (
    *(_INT, _INT, _INT, _INT, _TEXT, _INT, _TEXT, _TEXT_OR_NONE, _INT),
    *(_TEXT_OR_NONE, _TEXT_OR_NONE, _INT_OR_NONE, _INT_OR_NONE, _TEXT_OR_NONE, _TEXT_OR_NONE),
    *(_TEXT, _TEXT),
)
_HEADS = (
    _shapes(*_HEAD_COLUMNS) | _shapes(*_HEAD_COLUMNS, _BYTES) | _shapes(*_HEAD_COLUMNS, _INT)
)  # alone, with the body or the id, with the step

_WAIT_COLUMNS = (_INT, _INT, _INT, _INT, _INT_OR_NONE, _INT_OR_NONE, _TEXT, _TEXT)
_WAITS = (
    _shapes(*_WAIT_COLUMNS, _INT, _BYTES_OR_NONE, _INT, _INT)
    | _shapes(*_WAIT_COLUMNS, _TEXT)
    | _shapes(*_WAIT_COLUMNS, _BYTES)
    | _shapes(*_WAIT_COLUMNS, _BYTES, _BYTES, _TEXT)
)  # with what decides it, with the terms, with the id, with id, parent and terms


def read_head(key: Key, row: Sequence[Any]) -> Head:
    """A head from the columns of `HEAD`, and what else `_HEADS` lists."""
    head = head_of_row(row)
    if head is None:
        raise corrupt(key, f"the row {shown_row(row)}")

    return head


def head_of_row(row: Sequence[Any]) -> Head | None:
    """The same, or `None` if it cannot be read."""
    if (
        tuple(map(type, row)) not in _HEADS
        or not 0 <= row[1] <= HIGHEST_STATUS
        or not FIRST_MS <= row[2] <= LAST_MS
        or not FIRST_MS <= row[3] <= LAST_MS
    ):
        return None

    tags = () if row[TAGS] is None else _read_tags(row[TAGS])
    return None if tags is None else head_from((*row[:TAGS], tags, row[15], tuple(row[16].split())))


def columns_of(head: Head) -> tuple[object, ...]:
    """The columns of `HEAD`."""
    return *head[:TAGS], text_of_tags(head.tags), head.revision, " ".join(head.commits)


def text_of_tags(tags: tuple[tuple[str, str], ...]) -> str | None:
    """Return tags as they are stored."""
    return json.dumps(tags) if tags else None


def _read_tags(text: str) -> tuple[tuple[str, str], ...] | None:
    try:
        tags = tuple((name, value) for name, value in json.loads(text))
    except (ValueError, TypeError):
        return None

    return tags if all(type(one) is str for pair in tags for one in pair) else None


def head_of_part(row: Sequence[Any]) -> Head | None:
    """A head from the columns of `PART_HEAD`, whatever comes after them; `None` if it cannot be read."""
    version, created_ms, updated_ms, type_, type_version, tag, attempts, revision, commits = row[:9]
    # Written out: looking the types up, as of other rows, takes half as long again for each part of a page.
    if (
        type(version) is type(created_ms) is type(updated_ms) is int
        and type(type_version) is type(attempts) is int
        and type(type_) is type(tag) is type(revision) is type(commits) is str
        and FIRST_MS <= created_ms <= LAST_MS
        and FIRST_MS <= updated_ms <= LAST_MS
    ):
        own = version, 0, created_ms, updated_ms, type_, type_version, tag, None, attempts
        return head_from((*own, *_OF_FLOWS_ONLY, revision, tuple(commits.split())))

    return None


_OF_FLOWS_ONLY = (*(None,) * (TAGS - Head._fields.index("owner")), ())


def read_wait_head(key: Key, row: Sequence[Any]) -> Head:
    """A head from the columns of `WAIT_HEAD`, and what else `_WAITS` lists."""
    if (
        tuple(map(type, row)) not in _WAITS
        or not LOWEST_STATUS <= row[1] <= CANCELLED
        or not FIRST_MS <= row[2] <= LAST_MS
        or not FIRST_MS <= row[3] <= LAST_MS
    ):
        raise corrupt(key, f"the row {shown_row(row)}")

    columns = row[:AFTER_WAIT_HEAD]
    version, status, created_ms, updated_ms, due_ms, expires_ms, revision, commits = columns
    return Head(
        version,
        status,
        created_ms,
        updated_ms,
        due_ms=due_ms,
        expires_ms=expires_ms,
        revision=revision,
        commits=tuple(commits.split()),
    )


def shown_row(row: Sequence[Any]) -> str:
    """The start of each column, for a message."""
    return ", ".join(repr(value)[:40] for value in row)


def corrupt(key: Key, what: str) -> CorruptRecordError:
    """Return the error of a row that this library has not written."""
    message = (
        f"{key} cannot be read, because it contains {what}, which this library did not write; "
        "nothing was changed; restore the record from a backup"
    )
    return CorruptRecordError(message, key=tuple(key))


def read_key(kind: str, record_id: object, step: object = 0) -> Key:
    """The key of a row; `CorruptRecordError` for one that no record can have."""
    if type(record_id) is bytes and type(step) is int:
        with contextlib.suppress(UnicodeDecodeError):
            return Key(kind, record_id.decode(), step)

    raise corrupt(Key(kind, repr(record_id)[:100]), "an invalid id")


def flow_found(row: Sequence[Any]) -> Found:
    """An entry from `HEAD` and the id."""
    key = read_key(FLOW, row[AFTER_HEAD])
    return Found(key, read_head(key, row))


def flow_listed(row: Sequence[Any]) -> Found:
    """An entry of a listing, also of a row that cannot be read, if its id can be."""
    key = read_key(FLOW, row[-1])
    try:
        return Found(key, read_head(key, row))
    except CorruptRecordError as error:
        return Found.unreadable(key, _created_ms(row), error)


def wait_listed(row: Sequence[Any]) -> Found:
    """Likewise, of a condition."""
    key = read_key(WAIT, row[-1])
    try:
        return Found(key, read_wait_head(key, row))
    except CorruptRecordError as error:
        return Found.unreadable(key, _created_ms(row), error)


def _created_ms(row: Sequence[Any]) -> int:
    # What is not a number comes first in the order of creation, the latest first.
    is_time = type(row[2]) is int and FIRST_MS <= row[2] <= LAST_MS
    return row[2] if is_time else LAST_MS


def flow_due(row: Sequence[Any]) -> Found:
    """An entry of a listing by due time, also of a row that cannot be read, if its id and due time can be."""
    key = read_key(FLOW, row[-1])
    try:
        return Found(key, read_head(key, row))
    except CorruptRecordError as error:
        due_ms = row[_DUE]
        if (
            type(due_ms) is not int
        ):  # such a row comes last, and no page could be continued after it
            raise

        return Found.unreadable(key, due_ms, error, due_ms)


_DUE = Head._fields.index("due_ms")


def due_found(row: Sequence[Any]) -> Found:
    """An entry from `HEAD`, the id and the type of the body."""
    found, kind = flow_found(row[:-1]), row[-1]
    if kind != "blob":
        raise corrupt(found.key, f"a body of type {kind}")

    return found


def wait_found(row: Sequence[Any]) -> Found:
    """An entry from `WAIT_HEAD` and the id."""
    key = read_key(WAIT, row[AFTER_WAIT_HEAD])
    return Found(key, read_wait_head(key, row))


def readable(
    rows: Iterable[Sequence[Any]], limit: int, read: Callable[[Sequence[Any]], T]
) -> list[T]:
    """Return the first `limit` rows that can be read; others are logged and passed over."""
    found: list[T] = []

    for row in rows:
        if len(found) == limit:
            break

        try:
            found.append(read(row))
        except CorruptRecordError as error:
            warn_passed_over(_log, error)

    return found


_log = logging.getLogger(__name__)


def read_item(key: Key, row: Sequence[Any]) -> Item:
    """A completion from child, success and payload."""
    child, success, payload = row
    if type(child) is bytes and type(payload) is bytes and type(success) is int:
        with contextlib.suppress(UnicodeDecodeError):
            return Item(child.decode(), bool(success), payload)

    raise corrupt(key, f"the completion {shown_row(row)}")


def write_terms(terms: Terms) -> str:
    """Return the terms of a condition as they are stored."""
    return json.dumps(terms)


def read_terms(key: Key, text: str) -> Terms:
    """Return the terms of a condition."""
    try:
        fields: list[Any] = json.loads(text)
        children, any_of, timeout_ms, parent = fields
        if (
            type(children) is list
            and all(type(child) is str for child in fields[0])
            and (type(any_of), type(timeout_ms), type(parent)) in _TERMS
        ):
            return Terms(tuple(fields[0]), any_of, timeout_ms, parent)
    except (ValueError, TypeError) as error:
        raise corrupt(key, f"the definition {text[:100]!r}") from error

    raise corrupt(key, f"the definition {text[:100]!r}")


_TERMS = _shapes((bool,), _INT_OR_NONE, _TEXT_OR_NONE)


def read_outcomes(commit_id: str, text: str) -> tuple[Outcome, ...]:
    """The reply of a commit from the log."""
    outcomes: list[Outcome] = []
    try:
        for fields in json.loads(text):
            outcome = Outcome(*fields)
            if outcome.terms is not None:
                children, any_of, timeout_ms, parent = outcome.terms
                outcome = outcome._replace(terms=Terms(tuple(children), any_of, timeout_ms, parent))

            outcomes.append(outcome)
    except (ValueError, TypeError) as error:
        message = (
            f"the stored reply to commit {commit_id} cannot be read: {error}; nothing was changed"
        )
        raise CorruptRecordError(message, key=None) from error

    return tuple(outcomes)

"""The plain model of parts and logs: what the contract says of them, as dictionaries.

It is a part of the `oracle`, which asks it about the parts of a flow and tells it when a flow goes.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Mapping
from dataclasses import dataclass
from dataclasses import field
from dataclasses import replace
from datetime import datetime
from itertools import count
from typing import Any
from typing import TypeAlias

__all__ = [
    "Append",
    "CheckPart",
    "DeletePart",
    "PartChange",
    "PartDraft",
    "PartRow",
    "PartsModel",
    "PutPart",
    "entry_of",
    "name_of_entry",
]

_DIGITS = 12


def name_of_entry(log: str, sequence: int) -> str:
    """The name of an entry of a log, which is a part."""
    return f"{log}/{sequence:0{_DIGITS}d}"


def entry_of(name: str) -> tuple[str, int] | None:
    """The log and the sequence of a name of an entry; `None` for any other name."""
    log, _, digits = name.rpartition("/")
    is_number = len(digits) == _DIGITS and all("0" <= digit <= "9" for digit in digits)
    return (log, int(digits)) if log and is_number else None


@dataclass(frozen=True)
class PartDraft:
    """What a user wants a part to be: its body as bytes or plain data, and its type's name."""

    body: Any
    type_name: str
    tag: str = ""


@dataclass(frozen=True)
class PartRow:
    """A stored part; the tag of an entry is its key, `flow_version` the one its commit made."""

    draft: PartDraft
    created: datetime
    updated: datetime
    version: int
    stamp: int
    flow_version: int | None = None


@dataclass(frozen=True)
class PutPart:
    """Write a part; `exists` as in `put_part`; `instead`: in the place of one that was read."""

    flow_id: str
    name: str
    draft: PartDraft
    base: PartRow | None = None
    exists: str = "refuse"
    instead: PartRow | None = None

    @property
    def expects(self) -> PartRow | None:
        """What must be there; nothing says that anything may be, or that nothing may."""
        return None if self.is_free else self.base or self.instead

    @property
    def is_free(self) -> bool:
        """Whether it is written, or not, whatever is there."""
        return self.exists != "refuse" and self.instead is None


@dataclass(frozen=True)
class DeletePart:
    """Delete a part, if it is still the one that was read."""

    flow_id: str
    name: str
    base: PartRow | None = None


@dataclass(frozen=True)
class CheckPart:
    """Refuse the commit unless the part is still the one that was read."""

    flow_id: str
    name: str
    base: PartRow


@dataclass(frozen=True)
class Append:
    """Add the next entry to a log; the tag of the draft is its key."""

    flow_id: str
    log: str
    draft: PartDraft


PartChange: TypeAlias = PutPart | DeletePart | CheckPart | Append


@dataclass
class PartsModel:
    """The parts of all flows, by flow and name, and what its logs have counted to."""

    stamps: Iterator[int] = field(default_factory=lambda: count(1))
    rows: dict[str, dict[str, PartRow]] = field(default_factory=dict[str, "dict[str, PartRow]"])
    counters: dict[tuple[str, str], int] = field(default_factory=dict[tuple[str, str], int])
    orphans: dict[str, datetime] = field(default_factory=dict[str, datetime])
    """When the parts of flows that do not exist may be removed."""

    # reads ----------------------------------------------------------------------------------------

    def get(self, flow_id: str, name: str) -> PartRow | None:
        """The part that a reader finds."""
        return self.rows.get(flow_id, {}).get(name)

    def at(self, key: tuple[str, str]) -> PartRow | None:
        """Likewise, by both names."""
        return self.get(*key)

    def names(
        self,
        flow_id: str,
        prefix: str = "",
        *,
        after: str | None = None,
        before: str | None = None,
        reverse: bool = False,
    ) -> list[str]:
        """The names that begin with a prefix and lie between two others, by their bytes."""
        found = [
            name
            for name in self.rows.get(flow_id, {})
            if name.startswith(prefix)
            and (after is None or name.encode() > after.encode())
            and (before is None or name.encode() < before.encode())
        ]
        return sorted(found, key=str.encode, reverse=reverse)

    def log(self, flow_id: str, log: str) -> dict[int, PartRow]:
        """The entries of a log by their sequences, in order."""
        found = {
            sequence[1]: row
            for name, row in self.rows.get(flow_id, {}).items()
            if (sequence := entry_of(name)) is not None and sequence[0] == log
        }
        return dict(sorted(found.items()))

    # changes --------------------------------------------------------------------------------------

    def refusal(
        self, change: PartChange, leaving: set[str]
    ) -> tuple[str, Mapping[str, int | None]] | None:
        """The error of a change that is refused, and its facts."""
        if isinstance(change, Append):
            return None

        there = self.get(change.flow_id, change.name)
        if change.flow_id in leaving and not isinstance(change, CheckPart):
            there = None

        if isinstance(change, PutPart):
            if change.is_free:
                return None

            base = change.expects
            if base is None:
                taken = there is not None
                return ("PartExistsError", {"actual": there.version}) if taken and there else None
        else:
            base = change.base

        if base is None or (there is not None and there.stamp == base.stamp):
            return None

        actual = None if there is None else there.version
        return "StalePartError", {"expected": base.version, "actual": actual}

    def put(self, change: PutPart, now: datetime) -> bool:
        """Write a part; whether it was written."""
        there = None if change.instead is not None else self.get(change.flow_id, change.name)
        if there is not None and change.exists == "keep":
            return False

        created = now if there is None else there.created
        version = 1 if there is None else there.version + 1
        row = PartRow(change.draft, created, now, version, next(self.stamps))
        self.rows.setdefault(change.flow_id, {})[change.name] = row
        return True

    def delete(self, flow_id: str, name: str) -> bool:
        """Remove a part; whether there was one."""
        return self.rows.get(flow_id, {}).pop(name, None) is not None

    def append(self, change: Append, now: datetime, version: int | None) -> tuple[int, bool]:
        """Add an entry; its sequence, and whether the log had one with its key."""
        flow_id, log, key = change.flow_id, change.log, change.draft.tag
        if key:
            for sequence, row in self.log(flow_id, log).items():
                if row.draft.tag == key:
                    return sequence, True

        sequence = self.counters.get((flow_id, log), 0) + 1
        self.counters[flow_id, log] = sequence
        row = PartRow(change.draft, now, now, 1, next(self.stamps), version)
        self.rows.setdefault(flow_id, {})[name_of_entry(log, sequence)] = row
        return sequence, False

    def has_some_of(self, flow_id: str, other_id: str) -> bool:
        """Whether the second flow has a part or a log of the first, by its name."""
        parts = self.rows.get(flow_id, {}).keys() & self.rows.get(other_id, {}).keys()
        logs = {log for one, log in self.counters if one == flow_id}
        return bool(parts) or any((other_id, log) in self.counters for log in logs)

    def copy(self, flow_id: str, other_id: str) -> None:
        """Give another flow the parts of this one, as they are, and what its logs have counted to."""
        rows = self.rows.setdefault(other_id, {})
        for name, row in self.rows.get(flow_id, {}).items():
            rows[name] = replace(row, stamp=next(self.stamps))

        for (one, log), number in list(self.counters.items()):
            if one == flow_id:
                self.counters[other_id, log] = number

    # what goes by itself ------------------------------------------------------------------------------

    def drop(self, flow_id: str) -> None:
        """All parts of a flow are gone, and its logs begin again."""
        self.rows.pop(flow_id, None)
        self.orphans.pop(flow_id, None)
        for key in [key for key in self.counters if key[0] == flow_id]:
            del self.counters[key]

    def due_orphans(self, now: datetime) -> list[str]:
        """Flows that do not exist and whose parts may be removed now."""
        return [flow_id for flow_id, expires in self.orphans.items() if expires <= now]

    def clear(self) -> None:
        """Everything is gone."""
        self.rows.clear()
        self.counters.clear()
        self.orphans.clear()

    def copied(self) -> None:
        """Everything was written again as it was."""
        for rows in self.rows.values():
            for name, row in rows.items():
                rows[name] = replace(row, stamp=next(self.stamps))

    def count(self) -> int:
        """How many parts there are, entries of logs included."""
        return sum(map(len, self.rows.values()))

"""The model of a session: what it has loaded and queued, and the changes that it would commit.

The rules keep it beside a real session (`rules_sessions`); it knows nothing of stores.
"""

from __future__ import annotations

from dataclasses import dataclass
from dataclasses import field
from datetime import timedelta
from typing import Any
from typing import TypeAlias

from catga_store.testing.machine import base
from catga_store.testing.machine import oracle
from catga_store.testing.machine import parts_model
from catga_store.testing.machine.base import Copy
from catga_store.testing.machine.part_draws import is_same_part
from catga_store.testing.machine.part_draws import written_part

__all__ = [
    "Open",
    "Planned",
    "SessionEntry",
    "changed_something",
    "claim_expected_by",
    "expected_by",
    "is_dirty",
    "key_of",
    "planned_changes",
]

_ORDER = {"flow": 0, "wait": 1, "progress": 2, "part": 3}
_FIELDS = (
    "state",
    "position",
    "status",
    "error",
    "waits_for",
    "due",
    "attempts",
    "expires",
    "tags",
)


@dataclass(eq=False)
class SessionEntry:
    """One record in a session: `intent` is loaded, new, set, keep, overwrite or deleted."""

    copy: Copy | None
    intent: str = "loaded"
    instead: Any = None
    suspends: bool = False
    fresh: bool = False


@dataclass(eq=False)
class Open:
    """An open session: the real one, and what it knows."""

    real: Any
    entries: dict[tuple[str, Any], SessionEntry] = field(
        default_factory=dict[tuple[str, Any], SessionEntry]
    )
    completions: dict[tuple[str, str], oracle.Complete] = field(
        default_factory=dict[tuple[str, str], oracle.Complete]
    )
    appends: list[parts_model.Append] = field(default_factory=list[parts_model.Append])
    checks: dict[tuple[str, Any], Copy] = field(default_factory=dict[tuple[str, Any], Copy])

    guards: dict[str, tuple[Copy, int, timedelta]] = field(
        default_factory=dict[str, tuple[Copy, int, timedelta]]
    )
    """The copies whose claim the next commit checks, with the claim and its lease."""

    def forget(self) -> None:
        """What rollback, close and a lost commit leave."""
        self.guards.clear()
        self.entries.clear()
        self.completions.clear()
        self.appends.clear()
        self.checks.clear()

    def live(self, kind: str) -> list[Copy]:
        """The records of one kind that it holds and does not delete."""
        return [
            entry.copy
            for (of, _), entry in self.entries.items()
            if of == kind and entry.copy is not None and entry.intent != "deleted"
        ]

    def leaves(self, flow_id: str) -> bool:
        """Whether it deletes or replaces a flow, and with it all that belongs to it."""
        flow = self.entries.get(("flow", flow_id))
        return flow is not None and (flow.instead is not None or flow.intent == "deleted")

    def forget_what_belongs_to(self, flow_id: str) -> None:
        """What it has of a flow that it deletes, beside the flow, leaves it."""
        for kind, key in list(self.entries):
            if kind in ("progress", "part") and key[0] == flow_id:
                del self.entries[kind, key]

    def holds(self, copy: Copy) -> bool:
        """Whether an object is in its map."""
        return any(entry.copy is copy for entry in self.entries.values())


def is_dirty(kind: str, copy: Copy) -> bool:
    """Whether an object differs from what it was read as."""
    if kind == "flow":
        draft = base.draft_of(copy.obj, copy.base)
        return any(getattr(draft, name) != getattr(copy.base, name) for name in _FIELDS)

    if kind == "wait":
        wait = base.terms_of(copy.obj), copy.obj.outcome.name
        changed: bool = wait != (copy.base.terms, copy.base.outcome)
        return changed

    if kind == "part":
        return not is_same_part(copy)

    now = base.progress_of(copy.obj)
    return (now.processed, now.failed, now.last) != (
        copy.base.processed,
        copy.base.failed,
        copy.base.last,
    )


Planned: TypeAlias = tuple[oracle.Change, str, SessionEntry | None]
"""A change, the kind of its record, and the entry that it is made from."""


def planned_changes(opened: Open) -> list[Planned]:
    """The changes of a commit; nothing if nothing is to be written."""
    planned: list[Planned] = []
    idle: list[Planned] = []
    entries = sorted(opened.entries.items(), key=lambda item: _ORDER[item[0][0]])
    for (kind, key), entry in entries:
        copy = entry.copy
        change = _change_of(kind, key, entry)
        if change is not None:
            planned.append((change, kind, entry))
        elif kind == "flow" and copy is not None and copy.lease is not None:
            idle.append((oracle.Renew(key, copy.base, copy.lease), kind, entry))

    planned += [(change, "completion", None) for change in opened.completions.values()]
    planned += [(change, "entry", None) for change in opened.appends]
    if not planned and not opened.checks and not opened.guards:
        return []

    planned += idle
    unchecked = oracle.Complete | parts_model.Append
    keys = {key_of(change) for change, _, _ in planned if not isinstance(change, unchecked)}
    for (kind, key), copy in opened.checks.items():
        if (kind, key) not in keys:
            planned.append((_check_of(kind, key, copy), "check", None))

    regarded = {key_of(change) for change, _, _ in planned}
    for key, (copy, claim, lease) in opened.guards.items():
        if ("flow", key) not in regarded:
            planned.append((oracle.Guard(key, copy.base, claim, lease), "check", None))

    return planned


def _check_of(kind: str, key: Any, copy: Copy) -> oracle.Change:
    if kind == "part":
        return parts_model.CheckPart(key[0], key[1], copy.base)

    if kind == "wait":
        return oracle.CheckWait(key, copy.base)

    return oracle.CheckFlow(key, copy.base, copy.lease is not None)


def _change_of(  # noqa: PLR0911  one return for each kind of change
    kind: str, key: Any, entry: SessionEntry
) -> oracle.Change | None:
    """What becomes of one entry at commit."""
    copy, intent = entry.copy, entry.intent
    if intent == "deleted" or copy is None:
        if kind == "flow":
            return oracle.DeleteFlow(
                key, entry.instead, copy is not None and copy.lease is not None
            )

        if kind == "wait":
            return oracle.ClearWait(key, entry.instead)

        if kind == "part":
            return parts_model.DeletePart(key[0], key[1], entry.instead)

        return oracle.ClearProgress(key[0], key[1], entry.instead)

    if intent == "loaded" and not is_dirty(kind, copy):
        return None

    if kind == "flow":
        read = copy.base if intent == "loaded" else None
        draft = base.draft_of(copy.obj, read)
        return oracle.WriteFlow(key, draft, read, copy.lease, entry.instead)

    if kind == "part":
        exists = intent if intent in ("keep", "overwrite") else "refuse"
        return written_part(copy, exists, entry.instead)

    if kind == "wait":
        terms = base.terms_of(copy.obj)
        if intent == "set":
            created = copy.obj.created_at
            return oracle.SetWait(key, terms, created, entry.suspends, entry.instead)

        return oracle.UpdateWait(key, terms, copy.obj.outcome.name, copy.base)

    return oracle.SaveProgress(
        key[0],
        key[1],
        base.progress_of(copy.obj),
        copy.base,
        overwrite=intent == "overwrite",
        fresh=entry.fresh,
    )


def changed_something(change: oracle.Change, done: oracle.Done) -> bool:
    """Whether a commit has left a trace of one of its changes."""
    if isinstance(
        change,
        oracle.DeleteFlow | oracle.ClearWait | oracle.ClearProgress | parts_model.DeletePart,
    ):
        return done.existed

    if isinstance(
        change, oracle.Complete | oracle.SetWait | parts_model.PutPart | parts_model.Append
    ):
        return done.accepted

    return not isinstance(
        change,
        oracle.CheckFlow
        | oracle.CheckWait
        | oracle.CheckProgress
        | oracle.Guard
        | parts_model.CheckPart,
    )


def claim_expected_by(change: oracle.Change) -> int | None:
    """The claim that a change of a flow expects by what was read; `None` if nothing was."""
    if isinstance(change, oracle.Guard):
        return change.claim

    base: oracle.Flow | None = None
    if isinstance(change, oracle.WriteFlow):
        base = change.base or change.instead
    elif isinstance(change, oracle.DeleteFlow | oracle.CheckFlow | oracle.Renew):
        base = change.base

    return None if base is None else base.claim


def expected_by(change: oracle.Change) -> Any:
    """The write that a change expects to find; `None` if it takes what is there, or nothing."""
    if isinstance(change, parts_model.PutPart):
        return change.expects and change.expects.stamp

    base = (
        None
        if isinstance(change, oracle.SetWait | oracle.Complete | parts_model.Append)
        else change.base
    )
    if base is None and isinstance(change, oracle.WriteFlow | oracle.SetWait):
        base = change.instead

    return base and base.stamp


def key_of(change: oracle.Change) -> tuple[str, Any]:
    """Return the kind and the key of the record that a change is about."""
    if isinstance(change, oracle.SaveProgress | oracle.ClearProgress | oracle.CheckProgress):
        return "progress", (change.flow_id, change.step)

    if isinstance(change, parts_model.PutPart | parts_model.DeletePart | parts_model.CheckPart):
        return "part", (change.flow_id, change.name)

    if isinstance(change, parts_model.Append):
        return "entry", (change.flow_id, change.log)

    if isinstance(
        change,
        oracle.SetWait | oracle.UpdateWait | oracle.ClearWait | oracle.CheckWait | oracle.Complete,
    ):
        return "wait", change.correlation_id

    return "flow", change.flow_id

"""One record of a session: what the session will do with it, and the change that does it. Pure."""

from __future__ import annotations

import enum
from typing import Any

from attrs import define

from catga_store.core import envelope
from catga_store.core.writes import Limits
from catga_store.core.writes import changes_of
from catga_store.core.writes import plan_flow
from catga_store.core.writes import plan_part
from catga_store.core.writes import plan_progress
from catga_store.core.writes import plan_set_wait
from catga_store.core.writes import plan_update_wait
from catga_store.errors import UsageError
from catga_store.model.flows import FlowSnapshot
from catga_store.model.parts import Part
from catga_store.model.stored_state import AnyRecord
from catga_store.model.stored_state import head_of
from catga_store.model.waits import WaitCondition
from catga_store.protocol.keys import Key
from catga_store.protocol.requests import ANY
from catga_store.protocol.requests import IF_ABSENT
from catga_store.protocol.requests import Change
from catga_store.protocol.requests import Check
from catga_store.protocol.requests import Delete
from catga_store.protocol.requests import Head
from catga_store.protocol.requests import Put

__all__ = ["Entry", "Intent", "again", "is_dirty", "plan_entry", "renewal"]


class Intent(enum.Enum):
    """What a session will do with a record at commit."""

    LOADED = "write it if it has changed"
    NEW = "create it"
    SET = "set it"
    OVERWRITE = "write it even if a record exists"
    KEEP = "write it if no record exists"
    DELETED = "delete it"


@define(eq=False)
class Entry:
    """One record of the identity map."""

    key: Key
    record: AnyRecord | None
    intent: Intent
    instead: Head | None = None
    """The incarnation that a new record replaces, or that a deletion expects."""
    fresh: bool = False
    """A new progress takes the place of one that was cleared in this session."""
    renotify: bool = False
    """The condition's parent suspends on it in this session."""


def again(key: Key, record: AnyRecord) -> Entry:
    """Undo a deletion: the entry of a record that was deleted in this session and added again."""
    if head_of(record) is None:  # progress that was to overwrite what is there, which is deleted
        return Entry(key, record, Intent.OVERWRITE, fresh=True)

    return Entry(key, record, Intent.LOADED)


def is_dirty(entry: Entry, limits: Limits) -> bool:
    """Whether a commit would write a loaded record, or refuse to encode it."""
    try:
        return plan_entry(entry, 0, limits) is not None
    except UsageError:
        return True  # its commit will say why it cannot be kept


def plan_entry(  # noqa: PLR0911  one return for each kind of record
    entry: Entry, now_ms: int, limits: Limits
) -> Change | None:
    """The change that the session makes to a record; `None` if it is as it was loaded."""
    record, intent = entry.record, entry.intent

    if intent is Intent.DELETED or record is None:
        instead = entry.instead
        return Delete(entry.key, None if instead is None else instead.revision, instead)

    if isinstance(record, FlowSnapshot):
        return _plan_flow_entry(entry, record, now_ms, limits)

    if isinstance(record, WaitCondition):
        if intent is Intent.SET:
            return plan_set_wait(
                record, now_ms, limits, renotify=entry.renotify, instead=entry.instead
            )

        return plan_update_wait(record, now_ms, limits) if _wait_has_changed(record) else None

    if isinstance(record, Part):
        return _plan_part_entry(entry, record, now_ms, limits)

    overwrite = intent is Intent.OVERWRITE
    put = plan_progress(record, entry.key, now_ms, limits, overwrite=overwrite)
    loaded = record._loaded
    if intent is Intent.LOADED and loaded is not None and put.body == loaded.body:
        return None

    return put._replace(fresh=entry.fresh)


_EXPECTED = {Intent.OVERWRITE: ANY, Intent.KEEP: IF_ABSENT}


def _plan_part_entry(entry: Entry, part: Part[Any], now_ms: int, limits: Limits) -> Put | None:
    put = plan_part(part, now_ms, limits, _EXPECTED.get(entry.intent))
    instead = entry.instead
    if put is None or instead is None:
        return put

    return put._replace(expected=instead.revision, replaces=instead, fresh=True)


def _plan_flow_entry(
    entry: Entry, flow: FlowSnapshot[Any], now_ms: int, limits: Limits
) -> Put | None:
    """The write of a flow, or nothing: decided on the one encoding that would be written."""
    put = plan_flow(flow, now_ms, limits, instead=entry.instead)
    if entry.intent is not Intent.LOADED:
        return put

    # Most that is loaded to be changed has another state; then nothing else needs to be compared.
    return put if not envelope.is_same_state(flow, put.body) or changes_of(flow, put) else None


def _wait_has_changed(wait: WaitCondition) -> bool:
    loaded = wait._loaded
    assert loaded is not None, "a loaded wait condition must have a stored form"
    return envelope.terms_of(wait) != loaded.terms or wait.outcome.value != loaded.head.status


def renewal(entry: Entry, now_ms: int) -> Check:
    """The check that renews the claim on a flow that is not written."""
    record = entry.record
    assert isinstance(record, FlowSnapshot)
    head, claim = head_of(record), record._claim
    assert head is not None
    assert claim is not None
    return Check(entry.key, head.revision, now_ms + claim.lease_ms)

"""Records read from NATS as the tables that the rules of the store protocol work on.

A `Snapshot` holds what was read, a `NatsTables` the changes on top of it. Nothing here asks: where
the rules need what was not read yet, `UnreadError` says what, and they are run again with it. The
rules themselves are those of `protocol.rules`; that they hold when the changes are written is
what the expected sequence of every message sees to.

It is over 400 lines because it is the rules' view of every kind of record.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence
from typing import Any
from typing import NamedTuple
from typing import NoReturn

from attrs import define
from attrs import field

from catga_store.errors import CorruptRecordError
from catga_store.protocol.keys import FLOW
from catga_store.protocol.keys import PART
from catga_store.protocol.keys import PROGRESS
from catga_store.protocol.keys import WAIT
from catga_store.protocol.keys import Key
from catga_store.protocol.keys import flow_key
from catga_store.protocol.keys import part_key
from catga_store.protocol.requests import Check
from catga_store.protocol.requests import Commit
from catga_store.protocol.requests import Found
from catga_store.protocol.requests import Head
from catga_store.protocol.requests import Item
from catga_store.protocol.requests import ListedPart
from catga_store.protocol.requests import Outcome
from catga_store.protocol.requests import Parts
from catga_store.protocol.requests import Put
from catga_store.protocol.requests import Record
from catga_store.protocol.requests import Terms
from catga_store.protocol.rules import PENDING_COMPLETIONS
from catga_store.protocol.rules import ItemRow
from catga_store.protocol.rules import WaitRow
from catga_store.protocol.rules.expiry import has_expired
from catga_store.stores.nats.layout import NatsLayout
from catga_store.stores.nats.part_tables import NatsParts
from catga_store.stores.nats.part_tables import PartMessage
from catga_store.stores.nats.part_tables import Source
from catga_store.stores.nats.part_text import decode_part
from catga_store.stores.nats.record_text import Body
from catga_store.stores.nats.record_text import Children
from catga_store.stores.nats.record_text import Completed
from catga_store.stores.nats.record_text import Stored
from catga_store.stores.nats.record_text import WaitRecord
from catga_store.stores.nats.record_text import children_of
from catga_store.stores.nats.record_text import decode_item
from catga_store.stores.nats.record_text import decode_record
from catga_store.stores.nats.record_text import decode_wait
from catga_store.stores.nats.record_text import encode_terms
from catga_store.stores.nats.record_text import with_long_fields

__all__ = ["UNCHECKED", "NatsTables", "Snapshot", "UnreadError", "Write"]


class UnreadError(Exception):
    """Something must be read first: subjects, the names under filters, or the chunks of a body."""

    def __init__(
        self,
        subjects: Iterable[str] = (),
        filters: Iterable[str] = (),
        body: tuple[Key, Body] | None = None,
    ) -> None:
        super().__init__()
        self.subjects = tuple(subjects)
        self.filters = tuple(filters)
        self.body = body


@define
class Snapshot:
    """What was read."""

    stored: dict[str, Stored] = field(factory=dict[str, Stored])
    listed: dict[str, list[str]] = field(factory=dict[str, list[str]])
    bodies: dict[tuple[Key, str], bytes] = field(factory=dict[tuple[Key, str], bytes])
    """Chunked bodies by record and generation: the records of one commit have the same generation."""
    stale: dict[str, tuple[int, ...]] = field(factory=dict[str, "tuple[int, ...]"])
    """What was missing, and the sequences of what said that it is there."""


UNCHECKED = Stored(-1, None)
"""What a part's message holds that was not read: its directory is verified, which changes with it."""


class Write(NamedTuple):
    """One record to be written, or removed if it has none of plain, wait and raw."""

    key: Key
    stored: Stored
    before: tuple[Head, Body] | WaitRecord | None
    plain: tuple[Head, Body] | None = None
    wait: WaitRecord | None = None
    moved: bool = False
    life: str = ""
    """Of a part."""
    raw: PartMessage | None = None


class NatsTables:
    """What the rules of `protocol.rules` work on, for one commit; implements `Tables` as far as they ask."""

    def __init__(
        self, layout: NatsLayout, snapshot: Snapshot, commit_id: str = "", epoch: int = 0
    ) -> None:
        self._layout = layout
        self._snapshot = snapshot
        self._commit = commit_id
        self._plain: dict[Key, tuple[Head, Body] | None] = {}
        self._waits: dict[Key, WaitRecord | None] = {}
        self._changed: dict[Key, None] = {}
        self._moved: set[Key] = set()
        self.epoch = epoch
        """The connection that was used when the reading began."""
        self.revisions: list[str] = []
        """Those of the flows that were looked at."""
        self.dropped: list[str] = []
        """Filters of completions whose condition is gone."""
        source = Source(self.stored, self.read_all, self._is_read, self._stale)
        self.parts_of_flows = NatsParts(layout, source, commit_id)

    # what was read --------------------------------------------------------------------------------

    def stored(self, key: Key) -> Stored:
        """What the subject of a record holds."""
        return self._subject(self._layout.subject(key))

    def _subject(self, subject: str) -> Stored:
        found = self._snapshot.stored.get(subject)
        if found is None:
            raise UnreadError([subject])

        return found

    def _names(self, wanted: str) -> list[str]:
        names = self._snapshot.listed.get(wanted)
        if names is None:
            raise UnreadError(filters=[wanted])

        return names

    def _text(self, key: Key, body: Body) -> bytes:
        if not body.count:
            return body.text

        text = self._snapshot.bodies.get((key, body.generation))
        if text is None:
            raise UnreadError(body=(key, body))

        return text

    # flows and progress ---------------------------------------------------------------------------

    def plain(self, key: Key) -> tuple[Head, Body] | None:
        if key in self._plain:
            return self._plain[key]

        found = self._decoded(key)
        if found is None:
            return None

        head, body = found
        if body.long:
            head = with_long_fields(key, head, self._text(key, body)[: body.long])

        if key.kind == FLOW:
            self.revisions.append(head.revision)

        return head, body

    def _decoded(self, key: Key) -> tuple[Head, Body] | None:
        if key.kind == PART:
            return self.parts_of_flows.part(key)

        return decode_record(key, self.stored(key))

    def head(self, key: Key) -> Head | None:
        found = self.plain(key)
        return None if found is None else found[0]

    def record(self, key: Key) -> Record | None:
        if key.kind != WAIT:
            found = self.plain(key)
            if found is None:
                return None

            head, body = found
            return Record(head, self._text(key, body)[body.long :])

        wait = self._wait(key)
        if wait is None:
            return None

        children, members = self._children(key, wait)
        row = wait.row
        terms = Terms(children, any=row.any, timeout_ms=wait.timeout_ms, parent=row.parent)
        items = (
            Item(child, item.success, self._payload(key, wait.life, child, item))
            for child, item in self._all_items(key, wait).items()
            if wait.row.head.status < 0 or child in members
        )
        return Record(wait.row.head, b"", terms, tuple(items))

    def write(self, key: Key, head: Head, body: bytes | None, old: Head | None) -> None:
        if body is not None:
            self._plain[key] = head, Body(body)
        else:
            kept = self.plain(key)
            assert kept is not None, "the body to keep must exist"  # noqa: S101  a broken rule, not bad input
            before, kept_body = kept
            same = (head.position, head.error) == (before.position, before.error)
            if kept_body.count and not same:  # they may lie with the body
                kept_body = Body(self._text(key, kept_body)[kept_body.long :])

            self._plain[key] = head, kept_body

        self._changed[key] = None
        if key.kind == PART:
            size = -1 if body is None else len(body)
            if self.parts_of_flows.write(key, head, size, is_new=old is None):
                self._touch(flow_key(key.id))
        elif old is not None and old.revision == head.revision:
            self._moved.add(key)
        else:
            self._moved.discard(key)

    def _touch(self, key: Key) -> None:
        """Write a flow again as it is: who deletes it now must see that it has parts."""
        head = self.head(key)
        if head is not None and key not in self._changed:
            self.write(key, head, None, head)

    def replace(
        self,
        key: Key,  # noqa: ARG002  the rules name them
        head: Head,  # noqa: ARG002
        body: bytes | None,  # noqa: ARG002
        old: Head,  # noqa: ARG002
        commit_id: str,  # noqa: ARG002
    ) -> bool:
        return False  # the head was read before the rules are asked: there is nothing to spare

    def admit(self, commit: Commit, change: Put | Check | None) -> bool:  # noqa: ARG002  likewise
        return False

    def add_part(self, key: Key, head: Head, body: bytes) -> bool:  # noqa: ARG002
        return False

    def remove(self, key: Key, old: Head) -> None:
        if key.kind == PART:
            self.parts_of_flows.remove(key, old)

        self._plain[key] = None
        self._changed[key] = None
        self._moved.discard(key)

    def steps(self, flow_id: str) -> list[Found]:
        keys = {self._layout.key(name) for name in self._names(self._layout.steps(flow_id))}
        keys |= {key for key in self._plain if key.kind == PROGRESS and key.id == flow_id}
        self.read_all(keys)
        found = [(key, self.head(key)) for key in sorted(keys)]
        return [Found(key, head) for key, head in found if head is not None]

    # parts ----------------------------------------------------------------------------------------

    def part(self, key: Key, now_ms: int) -> Record | None:
        return None if self._has_left(key.id, now_ms) else self.record(key)

    def _has_left(self, flow_id: str, now_ms: int) -> bool:
        flow = self.head(flow_key(flow_id))
        return flow is not None and has_expired(flow, now_ms)

    def parts(self, wanted: Parts) -> list[ListedPart]:
        if self._has_left(wanted.flow_id, wanted.now_ms):
            return []

        rows = self.parts_of_flows.listed(wanted)
        if not wanted.bodies:
            return [ListedPart(row.name, row.head(), None) for row in rows]

        keys = [part_key(wanted.flow_id, row.name) for row in rows]
        self.read_all(keys)
        found: list[ListedPart] = []
        for key in keys:
            record = self.record(key)
            if record is None:
                self._stale(key, self.parts_of_flows.nodes(key))

            found.append(ListedPart(key.name, record.head, record.body))

        return found

    def entry(self, flow_id: str, log: str, key: str) -> int | None:
        return self.parts_of_flows.entry(flow_id, log, key)

    def drop_parts(self, flow_id: str) -> None:
        """Make all parts of a flow absent: what is left of them is purged afterwards."""
        self.parts_of_flows.drop(flow_id)
        for key in [key for key in self._plain if key.kind == PART and key.id == flow_id]:
            del self._plain[key]
            self._changed.pop(key, None)

    def reclaim(self, limit: int) -> None:
        """Do nothing: the server purges what was dropped."""

    def orphan(self, flow_id: str, expires_ms: int | None) -> None:
        self.parts_of_flows.orphan(flow_id, expires_ms)

    def _stale(self, key: Key, above: Sequence[Key]) -> NoReturn:
        """Have something read again, with what says that it is there: they were not of one time.

        If that has not changed meanwhile, it should have been there.
        """
        subject = self._layout.subject(key)
        nodes = [self._layout.subject(one) for one in above]
        seen = tuple([self._snapshot.stored[one].sequence for one in nodes])
        if self._snapshot.stale.get(subject) == seen:
            message = f"{key} is missing, although the part directory lists it; nothing was changed"
            raise CorruptRecordError(message, key=tuple(key))

        self._snapshot.stale[subject] = seen
        raise UnreadError([*nodes, subject])

    def _is_read(self, key: Key) -> bool:
        return self._layout.subject(key) in self._snapshot.stored

    def read_all(self, keys: Iterable[Key]) -> None:
        """Have records read, unless all of them were."""
        subjects = [self._layout.subject(key) for key in keys]
        unread = [subject for subject in subjects if subject not in self._snapshot.stored]
        if unread:
            raise UnreadError(unread)

    # conditions -----------------------------------------------------------------------------------

    def _wait(self, key: Key) -> WaitRecord | None:
        if key not in self._waits:
            self._waits[key] = decode_wait(key, self.stored(key))

        return self._waits[key]

    def _children(self, key: Key, wait: WaitRecord) -> Children:
        return children_of(key, self._text(key, wait.terms))

    def wait(self, key: Key) -> WaitRow | None:
        wait = self._wait(key)
        return None if wait is None else wait.row

    def wait_record(self, key: Key) -> WaitRecord | None:
        return self._wait(key)

    def write_wait(
        self,
        key: Key,
        row: WaitRow,
        old: WaitRow | None,  # noqa: ARG002  the rules name it
        terms: Terms | None = None,
    ) -> None:
        wait = self._made(key)
        wait.row = row
        if terms is not None:
            wait.terms = Body(encode_terms(terms.children))
            wait.timeout_ms = terms.timeout_ms

        self._changed[key] = None

    def _made(self, key: Key) -> WaitRecord:
        wait = self._wait(key)
        if wait is None:
            # Its row comes with `write_wait`; completions may be written before.
            wait = self._waits[key] = WaitRecord(WaitRow(Head(0, 0, 0, 0)), self._commit)
            wait.terms = Body(encode_terms(()))
            self._changed[key] = None

        return wait

    def remove_wait(self, key: Key, old: WaitRow) -> None:  # noqa: ARG002  the rules name it
        self.remove_items(key)
        self._waits[key] = None
        self._changed[key] = None

    def item(self, key: Key, child: str) -> ItemRow | None:
        wait = self._wait(key)
        if wait is None:
            return None

        found = self.completed(key, wait, child)
        member = child in self._children(key, wait).members
        if found is None:
            return ItemRow(member=True, done=False) if member else None

        return ItemRow(member=member, done=True, success=found.success)

    def completed(self, key: Key, wait: WaitRecord, child: str) -> Completed | None:
        """A child's completion on a condition."""
        if child in wait.items or not wait.spilled:
            return wait.items.get(child)

        stored = self._subject(self._layout.item(key, wait.life, child))
        return None if stored.text is None else decode_item(key, stored.text)

    def _all_items(self, key: Key, wait: WaitRecord) -> dict[str, Completed]:
        if not wait.spilled:
            return wait.items

        names = self._names(self._layout.items(key, wait.life))
        unread = [name for name in names if name not in self._snapshot.stored]
        if unread:
            raise UnreadError(unread)

        found: dict[str, Completed] = {}
        for name in names:
            text = self._snapshot.stored[name].text
            if text is not None:
                found[self._layout.child(name)] = decode_item(key, text)

        return found | wait.items

    def _payload(self, key: Key, life: str, child: str, item: Completed) -> bytes:
        parts = self._layout.item_parts(key, life, child, item)
        unread = [part for part in parts if part not in self._snapshot.stored]
        if unread:
            raise UnreadError(unread)

        texts = [self._snapshot.stored[part].text for part in parts]
        if None in texts:
            message = (
                f"the completion of child {child!r} in {key} cannot be read, because some of its "
                "messages are missing; nothing was changed; restore the stream from a backup"
            )
            raise CorruptRecordError(message, key=tuple(key))

        return item.payload + b"".join(text for text in texts if text is not None)

    def write_item(self, key: Key, child: str, row: ItemRow, payload: bytes) -> None:
        wait = self._wait(key)
        early = wait is None or wait.row.head.status == PENDING_COMPLETIONS
        self._made(key).items[child] = Completed(row.success, payload, self._commit, early)
        self._changed[key] = None

    def set_members(self, key: Key, children: Iterable[str]) -> tuple[int, int]:
        wait = self._made(key)
        items = self._all_items(key, wait)
        done = [items[child] for child in children if child in items]
        return len(done), sum(item.success for item in done)

    def remove_items(self, key: Key) -> None:
        wait = self._made(key)
        if wait.spilled or any(item.parts for item in wait.items.values()):
            self.dropped.append(self._layout.items_and_parts(key, wait.life))

        wait.items, wait.spilled, wait.life = {}, 0, self._commit
        self._changed[key] = None

    # what there is to be written --------------------------------------------------------------------

    def satisfied(self, key: Key) -> None:
        """The commit satisfied this condition."""
        self._made(key).satisfied_by = self._commit

    def writes(self) -> list[Write]:
        """What changed, in the order it did."""
        raw = [Write(one.key, one.stored, None, raw=one) for one in self.parts_of_flows.messages()]
        return [write for write in map(self._write_of, self._changed) if write is not None] + raw

    def _write_of(self, key: Key) -> Write | None:
        if key.kind == PART:
            return self._write_of_part(key)

        stored = self.stored(key)
        if key.kind == WAIT:
            wait, read = self._waits[key], decode_wait(key, stored)  # the one is changed by now
            return Write(key, stored, read, wait=wait) if wait or read else None

        plain, before = self._plain[key], decode_record(key, stored)
        if plain is None and before is None:
            return None

        return Write(key, stored, before, plain=plain, moved=key in self._moved)

    def _write_of_part(self, key: Key) -> Write | None:
        stored = self._snapshot.stored.get(self._layout.subject(key), UNCHECKED)
        plain = self._plain[key]
        if plain is None and stored is not UNCHECKED and stored.text is None:
            return None

        before = None if stored.text is None else decode_part(key, stored.text)
        return Write(
            key,
            stored,
            None if before is None else (before.head, before.body),
            plain=plain,
            life=self.parts_of_flows.life(key.id),
        )

    # what the rules of single transactions do not ask -------------------------------------------------

    def logged(self, commit_id: str) -> tuple[Outcome, ...] | None:  # noqa: ARG002  the rules name it
        return None

    def log(
        self,
        commit_id: str,
        at_ms: int,
        outcomes: tuple[Outcome, ...],
    ) -> None:
        """The log is written with the commit."""

    def _elsewhere(self, *_arguments: Any) -> NoReturn:
        message = (
            "this method needs the server; call the corresponding request instead of using the "
            "records that were read"
        )
        raise AssertionError(message)

    layout: Any = _elsewhere
    lay_out: Any = _elsewhere
    identity: Any = _elsewhere
    due_flows: Any = _elsewhere
    due_waits: Any = _elsewhere
    overdue: Any = _elsewhere
    find: Any = _elsewhere
    count: Any = _elsewhere
    list_due: Any = _elsewhere
    count_due: Any = _elsewhere
    totals: Any = _elsewhere
    scan: Any = _elsewhere
    forget_log: Any = _elsewhere
    clear: Any = _elsewhere
    expiring: tuple[Key, ...] = ()

    def expired(self, now_ms: int, limit: int) -> list[Key]:  # noqa: ARG002  the rules name it
        """The keys that `sweep` is to remove."""
        return list(self.expiring)

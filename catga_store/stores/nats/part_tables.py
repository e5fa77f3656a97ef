"""The parts of flows as the rules see them, over what was read; what there is to be written and checked.

All parts of a flow are of one life, which their root names. What is read and is of another life is
absent: it is left of a flow that is gone. So dropping all parts is one message, the removal of the root.
Each commit that writes a part verifies the root in the same batch, so none is written into a life that has
ended. One that creates the root writes the flow again, if there is one: its deletion may have seen that
there is no root, and must look again. One that drops parts whose flow never came verifies that.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Sequence
from typing import NamedTuple
from typing import NoReturn

from attrs import define

from catga_store.protocol.keys import Key
from catga_store.protocol.keys import flow_key
from catga_store.protocol.keys import is_entry
from catga_store.protocol.keys import is_hidden
from catga_store.protocol.keys import is_version
from catga_store.protocol.keys import log_of
from catga_store.protocol.keys import part_key
from catga_store.protocol.requests import Head
from catga_store.protocol.requests import Parts
from catga_store.stores.nats.layout import NatsLayout
from catga_store.stores.nats.layout import entries_of_root
from catga_store.stores.nats.layout import entry_of
from catga_store.stores.nats.layout import node_of
from catga_store.stores.nats.layout import root_of
from catga_store.stores.nats.part_directory import Directory
from catga_store.stores.nats.part_text import Node
from catga_store.stores.nats.part_text import Root
from catga_store.stores.nats.part_text import Row
from catga_store.stores.nats.part_text import decode_entry
from catga_store.stores.nats.part_text import decode_node
from catga_store.stores.nats.part_text import decode_part
from catga_store.stores.nats.part_text import decode_root
from catga_store.stores.nats.part_text import encode_entry
from catga_store.stores.nats.part_text import encode_node
from catga_store.stores.nats.part_text import encode_root
from catga_store.stores.nats.record_text import NOTHING
from catga_store.stores.nats.record_text import Body
from catga_store.stores.nats.record_text import Stored

__all__ = ["NatsParts", "PartMessage", "Source", "bounds"]


class Source(NamedTuple):
    """Where the text of parts comes from; all but `is_read` raise an error that says what must be read."""

    stored: Callable[[Key], Stored]
    read: Callable[[Sequence[Key]], None]
    """Have some messages read, of which some were not."""
    is_read: Callable[[Key], bool]
    stale: Callable[[Key, Sequence[Key]], NoReturn]
    """Have a message that is missing read again with others that say it is there."""


class PartMessage(NamedTuple):
    """A message of the directory, or of the key of an entry, to be written; to be removed without text."""

    key: Key
    stored: Stored
    text: bytes | None
    before: frozenset[str] = frozenset()
    after: frozenset[str] = frozenset()
    """Its index entries, as they were and as they will be."""


@define
class _Flow:
    """The parts of one flow, in their life."""

    life: str
    expires_ms: int | None
    directory: Directory


class NatsParts:
    """The parts of flows for one commit."""

    def __init__(self, layout: NatsLayout, source: Source, commit_id: str) -> None:
        self._layout = layout
        self._source = source
        self._commit = commit_id
        self._flows: dict[str, _Flow | None] = {}
        self._written: dict[str, None] = {}
        """Flows whose root is to be written."""
        self._keys: dict[Key, int | None] = {}
        self._relied: dict[Key, None] = {}
        self._names = 0
        self.dropped: dict[str, str] = {}
        """Flows whose parts are gone, and the life that has ended."""
        self.large: dict[Key, tuple[int, str]] = {}
        """Sizes of bodies of removed parts, and where they lie if they are not with their part."""

    # what was read ----------------------------------------------------------------------------------

    def _root(self, flow_id: str) -> Root | None:
        key = root_of(flow_id)
        text = self._source.stored(key).text
        return None if text is None else decode_root(key, text)

    def _flow(self, flow_id: str) -> _Flow | None:
        if flow_id not in self._flows:
            root = self._root(flow_id)
            flow = None if root is None else self._opened(flow_id, root)
            self._flows[flow_id] = flow

        return self._flows[flow_id]

    def _opened(self, flow_id: str, root: Root) -> _Flow:
        def load(path: Sequence[str], wanted: Sequence[str]) -> Node:
            keys = [node_of(flow_id, name) for name in wanted]
            if not self._source.is_read(keys[0]):  # the others may not be needed after all
                self._source.read(keys)

            text = self._source.stored(keys[0]).text
            if text is None:
                self._source.stale(keys[0], [node_of(flow_id, name) for name in path])

            return decode_node(keys[0], text)

        return _Flow(root.life, root.expires_ms, Directory(root.node, load, self._new_name))

    def _new_name(self) -> str:
        self._names += 1
        return f"{self._commit}-{self._names}"

    def read_nodes(self, keys: Iterable[Key]) -> None:
        """Have the nodes read where these parts are or would be, those of all in one request."""
        unread: list[Key] = []
        for key in keys:
            flow = self._flow(key.id)
            if flow is None:
                continue

            def is_read(name: str, flow_id: str = key.id) -> bool:
                return self._source.is_read(node_of(flow_id, name))

            node = flow.directory.unread(key.name, is_read)
            if node is not None:
                unread.append(node_of(key.id, node))

        if unread:
            self._source.read(list(dict.fromkeys(unread)))

    def paths(self) -> dict[str, list[Key]]:
        """Return the nodes above the last change, by flow, without the root: the next is often there."""
        return {
            flow_id: [node_of(flow_id, name) for name in flow.directory.last_path()]
            for flow_id, flow in self._flows.items()
            if flow is not None
        }

    def life(self, flow_id: str) -> str:
        """Return the life of the parts of a flow; empty if it has none."""
        flow = self._flow(flow_id)
        return "" if flow is None else flow.life

    def expires_ms(self, flow_id: str) -> int | None:
        """Return when the parts of a flow that does not exist may be removed."""
        flow = self._flow(flow_id)
        return None if flow is None else flow.expires_ms

    def part(self, key: Key) -> tuple[Head, Body] | None:
        """Return a part as it is stored."""
        flow = self._flow(key.id)
        if flow is None:
            return None

        text = self._source.stored(key).text
        found = None if text is None else decode_part(key, text)
        if found is None or (found.life, found.name) != (flow.life, key.name):
            return None

        return found.head, found.body

    # changes ----------------------------------------------------------------------------------------

    def write(self, key: Key, head: Head, size: int, *, is_new: bool) -> bool:
        """Note a part that is written; `size` of its body, -1 for that which it has.

        Returns whether it is the first of its flow, so that a root is created.
        """
        flow = self._flow(key.id)
        is_first = flow is None
        if flow is None:
            root = Root(self._commit, None, Node())
            flow = self._flows[key.id] = self._opened(key.id, root)
            self._written[key.id] = None

        self.large.pop(key, None)  # pieces of the new body are there already
        listed = head._replace(position="") if is_version(key.name) else head  # which has no limit
        if (
            is_new or listed is not head or not is_hidden(key)
        ):  # the head of a counter is not listed
            row = Row(key.name, *listed[:7], head.attempts, head.commits[0], size)
            flow.directory.put(row)

        logged = log_of(key) if head.position and is_new else None
        if logged is not None:
            first = self.entry(key.id, logged[0], head.position)
            if first is None or first > logged[1]:
                self._keys[entry_of(key.id, logged[0], head.position)] = logged[1]

        return is_first

    def remove(self, key: Key, old: Head) -> None:
        """Note a part that is removed."""
        flow = self._flow(key.id)
        assert flow is not None, "a part must belong to a flow"  # noqa: S101  a broken rule, not bad input
        row = flow.directory.remove(key.name)
        if row is not None:
            self.large[key] = row.size, self._layout.all_pieces(key, flow.life)

        logged = log_of(key) if old.position else None
        if logged is not None and self.entry(key.id, logged[0], old.position) == logged[1]:
            self._keys[entry_of(key.id, logged[0], old.position)] = None

    def entry(self, flow_id: str, log: str, key: str) -> int | None:
        """Return the sequence of the entry of a log that has this key."""
        at = entry_of(flow_id, log, key)
        flow = self._flow(flow_id)
        if flow is None or at in self._keys:
            return self._keys.get(at)

        self._relied[at] = None
        text = self._source.stored(at).text
        life, sequence = ("", 0) if text is None else decode_entry(at, text)
        return sequence if life == flow.life else None

    def drop(self, flow_id: str) -> None:
        """Make all parts of a flow absent."""
        if self._flow(flow_id) is None:
            return

        root = self._root(flow_id)
        if root is not None:
            self.dropped[flow_id] = root.life

        self._flows[flow_id] = None
        self._written[flow_id] = None
        self._keys = {key: value for key, value in self._keys.items() if key.id != flow_id}

    def orphan(self, flow_id: str, expires_ms: int | None) -> None:
        """Set when the parts of a flow that does not exist may be removed."""
        flow = self._flow(flow_id)
        if flow is not None and flow.expires_ms != expires_ms:
            flow.expires_ms = expires_ms
            self._written[flow_id] = None

    # listings ---------------------------------------------------------------------------------------

    def listed(self, wanted: Parts) -> list[Row]:
        """Return a page of parts."""
        found: list[Row] = []
        for row in self._between(wanted):
            if len(found) == wanted.limit:
                break

            if _is_shown(row.name, wanted):
                found.append(row)
                if wanted.until and row.name.endswith(wanted.until):
                    break

        return found

    def _between(self, wanted: Parts) -> Iterator[Row]:
        flow = self._flow(wanted.flow_id)
        if flow is None:
            return

        first, last = bounds(wanted)
        if last is None or first < last:
            yield from flow.directory.rows(first, last, wanted.limit, reverse=wanted.reverse)

    def scanned(self, flow_id: str, after: str, limit: int) -> list[Key]:
        """Return keys of parts in order, those of counters included."""
        flow = self._flow(flow_id)
        if flow is None:
            return []

        rows = flow.directory.rows(f"{after}\x00" if after else "", None, limit, reverse=False)
        return [part_key(flow_id, row.name) for row, _ in zip(rows, range(limit), strict=False)]

    def nodes(self, key: Key) -> list[Key]:
        """Return the nodes that say that a part is there."""
        flow = self._flow(key.id)
        return (
            []
            if flow is None
            else [node_of(key.id, name) for name in flow.directory.path(key.name)]
        )

    def inner_nodes(self, flow_id: str) -> dict[str, Node]:
        """Return the nodes that lead to others, as far as they were looked at."""
        flow = self._flows.get(flow_id)
        return {} if flow is None else flow.directory.inner_nodes()

    # what there is to be written ----------------------------------------------------------------------

    def messages(self) -> list[PartMessage]:
        """Return what is to be written beside the parts themselves."""
        found: list[PartMessage] = []
        for at, sequence in self._keys.items():
            stored = self._source.stored(at)
            flow = self._flow(at.id)
            if sequence is not None and flow is not None:
                found.append(PartMessage(at, stored, encode_entry(flow.life, sequence)))
            elif stored.text is not None:
                found.append(PartMessage(at, stored, None))

        for flow_id, flow in self._flows.items():
            if flow is not None:
                found += self._nodes(flow_id, flow)

            if flow_id in self._written or (flow is not None and "" in flow.directory.changed):
                found += self._changed_root(flow_id, flow)

        return found

    def _nodes(self, flow_id: str, flow: _Flow) -> Iterator[PartMessage]:
        for name in flow.directory.removed:
            stored = self._kept(node_of(flow_id, name))
            if stored.text is not None:
                yield PartMessage(node_of(flow_id, name), stored, None)

        for name in flow.directory.changed:
            if name:
                key = node_of(flow_id, name)
                yield PartMessage(key, self._kept(key), encode_node(flow.directory.node(name)))

    def _kept(self, key: Key) -> Stored:
        """What was read of a node; one that this commit has made was not there."""
        return NOTHING if key.name.startswith(f"{self._commit}-") else self._source.stored(key)

    def _changed_root(self, flow_id: str, flow: _Flow | None) -> Iterator[PartMessage]:
        key = root_of(flow_id)
        stored, root = self._source.stored(key), self._root(flow_id)
        before = entries_of_root(self._layout, flow_id, None if root is None else root.expires_ms)
        if flow is not None:
            text = encode_root(Root(flow.life, flow.expires_ms, flow.directory.node("")))
            after = entries_of_root(self._layout, flow_id, flow.expires_ms)
            yield PartMessage(key, stored, text, before, after)
        elif root is not None:
            yield PartMessage(key, stored, None, before)

    def checks(self, flow: Callable[[Key], Stored]) -> dict[Key, int]:
        """Return what the changes depend on, and its sequence: checked unless it is written.

        `flow` returns what a flow's subject holds.
        """
        found: dict[Key, int] = {}
        for flow_id in self._flows:
            root = self._source.stored(root_of(flow_id))
            owner = flow(flow_key(flow_id))
            if root.text is not None:
                found[root_of(flow_id)] = root.sequence
                if self._flows[flow_id] is None and owner.text is None:
                    found[flow_key(flow_id)] = owner.sequence

        for key in self._relied:
            stored = self._source.stored(key)
            if stored.text is not None:
                found[key] = stored.sequence

        return found


def bounds(wanted: Parts) -> tuple[str, str | None]:
    """The first name that a listing may return, and the first one after it that it may not."""
    first, last = wanted.prefix, wanted.before
    if wanted.after is not None:
        first = max(first, f"{wanted.after}\x00")  # the first name after it

    end = _after_all(wanted.prefix)
    if end is not None and (last is None or end < last):
        last = end

    return first, last


def _is_shown(name: str, wanted: Parts) -> bool:
    if wanted.entries:
        return is_entry(name, wanted.prefix)

    return is_version(name) if wanted.versions else not is_hidden(part_key(wanted.flow_id, name))


def _after_all(prefix: str) -> str | None:
    """The first text after all that begin with this one; None if there is none."""
    kept = prefix.rstrip(chr(0x10FFFF))
    if not kept:
        return None

    code = ord(kept[-1]) + 1
    first_surrogate, after_surrogates = 0xD800, 0xE000
    return kept[:-1] + chr(after_surrogates if code == first_surrogate else code)

"""Where bodies go through the codecs of a store: between the logic and the store protocol, at this one point.

`Bodies.through` wraps a conversation: it encodes the bodies in its commits, and decodes those in the replies
to its reads. Above it everything is plain, so change detection, copies and forks know nothing of codecs;
below it stores keep bytes that they do not look at. A store without codecs has no `Bodies`.

A body that cannot be decoded does not fail the request, which may be for many: an `UnreadableBody` stands
in its place, and raises when the record is decoded. A codec that binds is given the place of a
body, which has the version and the commit of the write. So a head that is written without its body, as by a
claim, is written with it then. `Extend`, and a `Check` that moves a due time, change neither.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any
from typing import TypeVar

from attrs import define
from attrs import evolve

from catga_store.codec.bodies import BodyPlace
from catga_store.codec.bodies import Chain
from catga_store.codec.bodies import UnreadableBody
from catga_store.codec.bodies.frames import APPENDED
from catga_store.codec.bodies.frames import NUMBERED
from catga_store.codec.bodies.frames import UNNUMBERED
from catga_store.codec.bodies.frames import check_readable
from catga_store.core.hidden_errors import hidden
from catga_store.core.hidden_errors import is_current as is_error_current
from catga_store.core.hidden_errors import shown_error
from catga_store.errors import CatgaStoreError
from catga_store.errors import CodecMissingError
from catga_store.errors import CorruptRecordError
from catga_store.errors import EncodingError
from catga_store.errors import NotSupportedError
from catga_store.errors import StateTypeError
from catga_store.errors import StoreConfigError
from catga_store.protocol.conversation import Conversation
from catga_store.protocol.conversation import Request
from catga_store.protocol.conversation import ask
from catga_store.protocol.conversation import through
from catga_store.protocol.keys import FLOW
from catga_store.protocol.keys import PART
from catga_store.protocol.keys import WAIT
from catga_store.protocol.keys import Key
from catga_store.protocol.keys import is_hidden
from catga_store.protocol.keys import is_version
from catga_store.protocol.keys import part_key
from catga_store.protocol.requests import ANY
from catga_store.protocol.requests import Append
from catga_store.protocol.requests import Change
from catga_store.protocol.requests import Commit
from catga_store.protocol.requests import Complete
from catga_store.protocol.requests import Count
from catga_store.protocol.requests import Due
from catga_store.protocol.requests import Find
from catga_store.protocol.requests import Found
from catga_store.protocol.requests import Head
from catga_store.protocol.requests import Identify
from catga_store.protocol.requests import Item
from catga_store.protocol.requests import ListDue
from catga_store.protocol.requests import ListedPart
from catga_store.protocol.requests import Parts
from catga_store.protocol.requests import Put
from catga_store.protocol.requests import Read
from catga_store.protocol.requests import Record
from catga_store.protocol.requests import Reply
from catga_store.protocol.requests import Scan
from catga_store.protocol.requests import Scanned
from catga_store.protocol.requests import record_with_body

__all__ = ["AsStored", "Bodies", "as_shown", "commit_of", "has_body", "place_of", "place_of_item"]

T = TypeVar("T")

_new: Any = tuple.__new__  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]  typeshed's generic

_NOT_SHOWN = (
    "the state or body contains a value that cannot be stored exactly, so nothing was sent; the "
    "value is not shown because this store encrypts bodies (to locate the value, store the same "
    "data in a MemoryStore without codecs)"
)


@define
class AsStored(Request[T]):
    """Asks the store what the request asks, and leaves the bodies in its reply as they are stored."""

    request: Request[T]


def has_body(key: Key) -> bool:
    """Return whether the record of a key has a body: the counter of a log and a wait condition have none."""
    return key.kind != WAIT and not (
        key.kind == PART and is_hidden(key) and not is_version(key.name)
    )


def place_of(store: str, key: Key, head: Head, commit_id: str, kind: int) -> BodyPlace:
    """Return the place of the body of a record that a commit wrote.

    A former version of a flow has the place that it had as the flow. What the store counts is not known at
    writing: the version of a record that is overwritten, and the sequence of an entry that is appended;
    in place of that there are the name of the log and the key of the entry.
    """
    record_kind, record_id, step, name = key
    if record_kind == PART and is_version(name):
        record_kind, name = FLOW, ""

    version = None if kind == UNNUMBERED else head.version
    if kind == APPENDED:
        name, version = f"{name.rpartition('/')[0]}/{head.position}", 1

    place: BodyPlace = _new(
        BodyPlace,
        (store, record_kind, record_id, step, name, version, commit_id, "", None, ()),
    )
    return place


def place_of_item(store: str, key: Key, child: str, *, success: bool) -> BodyPlace:
    """Return the place of the result of a child."""
    return BodyPlace(store, key.kind, key.id, child=child, success=success)


def as_shown(chain: Chain | None, error: EncodingError) -> EncodingError:
    """Return what to raise for a value that cannot be encoded; its place is data, and so may be the value."""
    if chain is None or not chain.conceals:
        return error

    return EncodingError(_NOT_SHOWN, path="$")


def commit_of(head: Head) -> str:
    """Return the commit that wrote a record in the version it has; on NATS more follows in the revision."""
    return head.revision.partition("@")[0]


class Bodies:
    """The codecs of one open store, and the text that names it once that is known."""

    def __init__(self, chain: Chain) -> None:
        self.chain = chain
        self._store = ""
        self._with_bodies: dict[type, Callable[[Any], Conversation[Any]]] = {
            Commit: self._commit,
            Due: self._due,
            Parts: self._parts,
            Read: self._read,
            Scan: self._scan,
        }

    def through(self, conversation: Conversation[T]) -> Conversation[T]:
        """Return the conversation, with the bodies of its requests encoded and those of its replies decoded."""
        refusal: CatgaStoreError
        try:
            return (yield from through(conversation, self.converse))
        except StateTypeError as error:
            if not self.chain.conceals:
                raise

            refusal = StateTypeError(str(error), **vars(error))
        except EncodingError as error:
            if not self.chain.conceals:
                raise

            refusal = as_shown(self.chain, error)

        raise refusal  # here, where it has no cause: that would show a place in the state, and numbers

    def converse(self, request: Request[Any]) -> Conversation[Any]:
        """Ask the store what the request asks."""
        if isinstance(request, AsStored):
            return ask(request.request)

        perform = self._with_bodies.get(type(request))
        if perform is not None:
            return perform(request)

        return self._listing(request) if self.chain.hides_error else ask(request)

    def identify(self) -> Conversation[str]:
        """Return the text that the bodies of this store are bound to."""
        if not self._store and self.chain.binds:
            self._store = yield Identify()

        return self._store

    # writing --------------------------------------------------------------------------------------

    def _commit(self, request: Commit) -> Conversation[Reply]:
        store = self._store or (yield from self.identify())
        changes = tuple([self._encoded(store, change, request.id) for change in request.changes])
        reply: Reply = yield evolve(request, changes=changes)
        return reply

    def _encoded(self, store: str, change: Change, commit_id: str) -> Change:
        key = change.key
        if type(change) is Put:
            if key.kind == WAIT:
                items = [self._encoded_item(store, key, item) for item in change.items]
                return change._replace(items=tuple(items)) if items else change

            if not has_body(key) or (change.keeps_body and not self.chain.binds):
                return change

            kind = UNNUMBERED if change.expected == ANY else NUMBERED
            place = place_of(store, key, change.head, commit_id, kind)
            body = self._encode(key, change.body, place, kind, keeps=change.keeps_body)
            head = change.head
            if self.chain.hides_error and head.error is not None:
                head = head._replace(error=hidden(self.chain, head.error, place))

            return change._replace(head=head, body=body, keeps_body=False)

        if type(change) is Append:
            entry = key._replace(name=f"{key.name}/")
            place = place_of(store, entry, change.head, commit_id, APPENDED)
            return change._replace(body=self._encode(key, change.body, place, APPENDED))

        if type(change) is Complete:
            place = place_of_item(store, key, change.child, success=change.success)
            return change._replace(payload=self._encode(key, change.payload, place, UNNUMBERED))

        return change

    def _encoded_item(self, store: str, key: Key, item: Item) -> Item:
        place = place_of_item(store, key, item.child, success=item.success)
        return item._replace(payload=self._encode(key, item.payload, place, UNNUMBERED))

    def _encode(
        self, key: Key, body: bytes, place: BodyPlace, kind: int, *, keeps: bool = False
    ) -> bytes:
        check_readable(body)
        try:
            return self.chain.encode(body, place, kind, keeps=keeps)
        except (StoreConfigError, CodecMissingError) as error:
            message = f"the body of {key} cannot be encoded: {error}; nothing was sent"
            raise StoreConfigError(message) from error.__cause__

    # reading --------------------------------------------------------------------------------------

    def _read(self, request: Read) -> Conversation[tuple[Record | None, ...]]:
        records: tuple[Record | None, ...] = yield request
        store = self._store or (yield from self.identify())
        decoded = self.decoded
        # Every operation that reads passes here.
        return tuple(
            [
                None if record is None else decoded(store, key, record)
                for key, record in zip(request.keys, records, strict=True)
            ]
        )

    def _due(self, request: Due) -> Conversation[tuple[Found, ...]]:
        found: tuple[Found, ...] = yield request
        if all(one.body is None for one in found):
            return found

        store = self._store or (yield from self.identify())
        return tuple([one if one.body is None else self._due_entry(store, one) for one in found])

    def _due_entry(self, store: str, found: Found) -> Found:
        """An entry as a `Read` would return it; one that cannot be decoded has no body: a read says why."""
        try:
            head, body = self.decoded(store, found.key, Record(found.head, found.body or b""))[:2]
        except CatgaStoreError:
            return found._replace(body=None)

        return found._replace(head=head, body=body)

    def _scan(self, request: Scan) -> Conversation[tuple[Scanned, ...]]:
        found = yield from ask(request)
        store = yield from self.identify()
        return tuple(
            [
                one if one.error else Scanned(one.key, self.decoded(store, one.key, one.record))
                for one in found
            ]
        )

    def _parts(self, request: Parts) -> Conversation[tuple[ListedPart, ...]]:
        found = yield from ask(request)
        store = yield from self.identify()
        listed: list[ListedPart] = []
        for name, head, stored in found:
            key = part_key(request.flow_id, name)
            body = self._plain(store, key, head, stored)
            listed.append(ListedPart(name, self._head(store, key, head), body))

        return tuple(listed)

    def _listing(self, request: Request[Any]) -> Conversation[Any]:
        """A listing of flows, whose errors are encrypted."""
        if isinstance(request, Find | Count) and request.filter.error_contains is not None:
            message = (
                "error_contains: this store encrypts flow errors, so it cannot search them; omit "
                "error_contains"
            )
            raise NotSupportedError(message)

        if not isinstance(request, Find | ListDue):
            return (yield from ask(request))

        found: tuple[Found, ...] = yield request
        store = yield from self.identify()
        return tuple([one._replace(head=self._head(store, one.key, one.head)) for one in found])

    def _head(self, store: str, key: Key, head: Head) -> Head:
        """The head with its error as it was before it was stored."""
        if not self.chain.hides_error or head.error is None:
            return head

        place = _placed(store, key, head)(NUMBERED)
        return head._replace(error=shown_error(self.chain, head.error, place))

    def decoded(self, store: str, key: Key, record: Record) -> Record:
        """Return a record with its body and the results of its children decoded."""
        if not has_body(key):
            items = [self._decoded_item(store, key, item) for item in record.items]
            return record._replace(items=tuple(items)) if items else record

        head, stored, _, _ = record
        body = self._decode(key, stored, _placed(store, key, head))
        if self.chain.hides_error and head.error is not None:
            head = self._head(store, key, head)

        return record_with_body(head, body)

    def is_current(self, store: str, key: Key, record: Record) -> bool:
        """Return whether all bodies of a stored record are as they would be stored now."""
        if has_body(key) and not self.chain.is_current(
            record.body, _placed(store, key, record.head)
        ):
            return False

        error = record.head.error
        if self.chain.hides_error and error is not None:
            place = _placed(store, key, record.head)(NUMBERED)
            if not is_error_current(self.chain, error, place):
                return False

        for item in record.items:
            place = place_of_item(store, key, item.child, success=item.success)
            if not self.chain.is_current(item.payload, partial(_always, place)):
                return False

        return True

    def _plain(self, store: str, key: Key, head: Head, stored: bytes | None) -> bytes | None:
        if stored is None or not has_body(key):
            return stored

        return self._decode(key, stored, _placed(store, key, head))

    def _decoded_item(self, store: str, key: Key, item: Item) -> Item:
        placed = _placed_item(store, key, item)
        return item._replace(payload=self._decode(key, item.payload, placed))

    def _decode(self, key: Key, stored: bytes, place: Callable[[int], BodyPlace]) -> bytes:
        try:
            return self.chain.decode(stored, place)
        except CorruptRecordError as error:
            return UnreadableBody(stored, _named(key, error))


def _always(place: BodyPlace, _kind: int) -> BodyPlace:
    return place


def _placed(store: str, key: Key, head: Head) -> Callable[[int], BodyPlace]:
    """Where a stored body is, for each way in which it may have been written."""
    return partial(place_of, store, key, head, commit_of(head))


def _placed_item(store: str, key: Key, item: Item) -> Callable[[int], BodyPlace]:
    def place(kind: int) -> BodyPlace:
        if kind != UNNUMBERED:  # the place does not depend on it, so no codec would notice
            message = "the header does not mark the body as a child's result"
            raise CorruptRecordError(message, key=None)

        return place_of_item(store, key, item.child, success=item.success)

    return place


def _named(key: Key, error: CorruptRecordError) -> CorruptRecordError:
    message = f"the body of {key} cannot be read: {error}; nothing was changed"
    facts = {**vars(error), "key": tuple(key)}
    kind = CodecMissingError if isinstance(error, CodecMissingError) else CorruptRecordError
    return kind(message, **facts)

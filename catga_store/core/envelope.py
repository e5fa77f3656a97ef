"""Between what users hold and what stores keep: records to heads and bodies, and back.

A flow's body is one JSON object whose last member is the state, so that a body is written around
encoded states and read back without decoding them:

    {"layout":1,"type":"Order","type_version":1,"schema":"5f0c1d2e","wait":null,"state":{…}}

`"own_expiry":true` before `wait`: the flow has ended, and its expiry was set by the user, not by the
retention. A state of `bytes` stands there as it is. `wait` is the condition that the flow shows; if that
is another one than the flow is suspended on, its `suspended_on` names that. A part has the same body,
without a condition, or, if its body is `bytes`, just these.

`layout` is this format's version, `type` and `type_version` the state's
(`flow_state`), `schema` a fingerprint of its fields, `arguments` (`"[str]"`), if there are any, those
of a generic type. A progress record's body is one JSON object,
a newline, and two bitmaps (`codec.bitmaps`):

    {"layout":1,"last":999999,"processed":999999,"failed":1,"sizes":[242,26]}

`last` is the item marked last. The first bitmap has all items that were marked, which is short if
that was in order; the second has those that failed. A completion's payload is
`{"result":…,"error":…}`.

The file is over 400 lines because it is the whole format: what is written is read beside it.
"""

from __future__ import annotations

from contextlib import suppress
from functools import lru_cache
from typing import TYPE_CHECKING
from typing import Any

from catga_store import codec
from catga_store.codec.bitmaps import decode_bitmap
from catga_store.codec.bitmaps import encode_bitmap
from catga_store.codec.bodies.frames import MAGIC
from catga_store.codec.bodies.frames import ConcealedBody
from catga_store.codec.bodies.frames import UnreadableBody
from catga_store.codec.bodies.frames import not_readable
from catga_store.codec.bodies.frames import set_apart
from catga_store.codec.bodies.frames import without_mark
from catga_store.codec.evolution import lift
from catga_store.errors import CorruptRecordError
from catga_store.errors import EncodingError
from catga_store.errors import RecordTooLargeError
from catga_store.errors import StateTypeError
from catga_store.errors import UsageError
from catga_store.model import stored_state
from catga_store.model.flows import FlowPosition
from catga_store.model.flows import FlowSnapshot
from catga_store.model.flows import FlowStatus
from catga_store.model.flows import FlowSummary
from catga_store.model.flows import FlowVersion
from catga_store.model.index_set import check_index
from catga_store.model.parts import LogEntry
from catga_store.model.parts import Part
from catga_store.model.progress import ForEachProgress
from catga_store.model.tags import Tags
from catga_store.model.times import from_ms
from catga_store.model.times import span_ms
from catga_store.model.times import to_ms
from catga_store.model.waits import WaitCondition
from catga_store.model.waits import WaitType
from catga_store.protocol.keys import FLOW
from catga_store.protocol.keys import Key
from catga_store.protocol.keys import check_id
from catga_store.protocol.keys import log_of
from catga_store.protocol.masking import shown
from catga_store.protocol.requests import Found
from catga_store.protocol.requests import Head
from catga_store.protocol.requests import Record
from catga_store.protocol.requests import Terms

if TYPE_CHECKING:
    from pyroaring import BitMap64

__all__ = [
    "LAYOUT",
    "MAX_RESULT_BYTES",
    "body_with_own_expiry",
    "body_with_wait",
    "body_without_wait",
    "decode_entry",
    "decode_flow",
    "decode_part",
    "decode_progress",
    "decode_wait",
    "encode_completion",
    "encode_entry",
    "encode_flow",
    "encode_part",
    "encode_progress",
    "has_own_expiry",
    "is_same_part",
    "is_same_state",
    "layout_in",
    "load_flow",
    "load_part",
    "load_progress",
    "load_wait",
    "summary_of",
    "terms_of",
    "version_of",
    "wait_in",
]

LAYOUT = 1
BYTES = "bytes"
"""The type name of bytes that are kept as they are."""

MAX_RESULT_BYTES = 256 * 1024
"""The most that the result and the error text of a child take together, encoded."""

_NOT_SHOWN = (
    "the state does not fit its type; the location is not shown because this store encrypts bodies"
)

_BARE_COMPLETION = len(b'{"result":,"error":null}')

_STATE = b',"state":'
_STATE_SIZE = len(_STATE)
_OWN_EXPIRY = b',"own_expiry":true,'
_SIZES = b',"sizes":'
_BITMAPS = b"\n"
_NAMING = "type", "type_version", "schema", "arguments"
_STATUSES = tuple(FlowStatus)

_START = FlowPosition()
_positions: dict[str, FlowPosition] = {}
_MOST_POSITIONS = 10_000
"""A bound on memory, not a tuned figure."""


# --- flows --------------------------------------------------------------------------------------


def encode_flow(snapshot: FlowSnapshot[Any], *, own_expiry: bool = False) -> tuple[str, int, bytes]:
    """Type name, type version and body of a flow as it is now; `own_expiry` is kept with it.

    A flow that was read as raw data keeps the type it was stored under. `EncodingError` says where
    in the state something stands that cannot be kept.
    """
    state_type = codec.type_of(snapshot.state, snapshot.state_type)
    loaded = snapshot._loaded

    naming, plain = _naming_of(state_type)
    if state_type is None and loaded is not None:
        if loaded.head.type == BYTES:
            message = (
                f"the state of {snapshot.key} cannot be encoded: expected bytes (the state was "
                f"read as bytes), found {shown(snapshot.state)}; nothing was encoded"
            )
            raise EncodingError(message, path="$")

        naming = _naming_in(loaded.head, loaded.body[: loaded.body.index(_STATE)])
        plain = _plain_prefix(naming)

    state = codec.encode_state(snapshot.state, state_type)
    wait = snapshot.wait_condition
    if wait is None and not own_expiry:
        prefix = plain
    else:
        condition = None if wait is None else _wait_to_json(wait)
        prefix = _prefix_with(naming, condition, own_expiry=own_expiry)

    return naming.name, naming.version, b"".join((prefix, _STATE, state, b"}"))


def _naming_in(head: Head, prefix: bytes) -> codec.Naming:
    """What is stored about the type of a state."""
    envelope = _envelope(prefix)
    return codec.Naming(
        head.type, head.type_version, envelope.get("arguments", ""), envelope.get("schema", "")
    )


def _prefix_with(
    naming: codec.Naming, wait: dict[str, Any] | None, *, own_expiry: bool = False
) -> bytes:
    fields: dict[str, Any] = {
        "layout": LAYOUT,
        "type": naming.name,
        "type_version": naming.version,
        "schema": naming.fingerprint,
    }
    if naming.arguments:
        fields["arguments"] = naming.arguments

    if own_expiry:
        fields["own_expiry"] = True

    fields["wait"] = wait
    return codec.encode_json(fields)[:-1]


@lru_cache(maxsize=1024)
def _plain_prefix(naming: codec.Naming) -> bytes:
    """The prefix of a flow that waits for nothing."""
    return _prefix_with(naming, None)


def _naming_of(state_type: Any | None) -> tuple[codec.Naming, bytes]:
    """What is stored about a type, and the prefix of a flow with such a state that waits for nothing."""
    try:
        return _kept_naming(state_type)
    except TypeError:  # it does not hash
        return _new_naming(state_type)


def _new_naming(state_type: Any | None) -> tuple[codec.Naming, bytes]:
    naming = codec.naming(state_type)
    return naming, _plain_prefix(naming)


_kept_naming = lru_cache(maxsize=1024)(_new_naming)


@lru_cache(maxsize=1024)
def _envelope(prefix: bytes) -> dict[str, Any]:
    """A prefix, decoded; do not change what it returns."""
    envelope: dict[str, Any] = codec.decode_json(prefix + b"}")
    return envelope


def layout_in(body: bytes) -> int | None:
    """The layout that a body says it has; `None` if it says none."""
    with suppress(CorruptRecordError, KeyError, TypeError, ValueError):
        layout = _envelope(body[: max(body.find(_STATE), 0)])["layout"]
        return layout if type(layout) is int else None

    return None


def has_own_expiry(body: bytes) -> bool:
    """Whether a stored flow that has ended expires when its user has said."""
    return _OWN_EXPIRY in body[: body.find(_STATE)]


def body_with_wait(head: Head, body: bytes, wait: WaitCondition) -> bytes:
    """The same body of a live flow with another wait condition in it; the state is not decoded."""
    at = body.index(_STATE)
    return _prefix_with(_naming_in(head, body[:at]), _wait_to_json(wait)) + body[at:]


def body_without_wait(key: Key, head: Head, body: bytes) -> bytes:
    """The same body of this flow, waiting for nothing; the state is not decoded."""
    at = body.find(_STATE)
    if at < 0 or body[:3] == MAGIC:
        raise not_readable(key, body) or _without_state(key)

    return _plain_prefix(_naming_in(head, body[:at])) + body[at:]


def _without_state(key: Key) -> CorruptRecordError:
    message = f"the body of {key} contains no state; nothing was changed"
    return CorruptRecordError(message, key=tuple(key))


def body_with_own_expiry(key: Key, head: Head, body: bytes, *, own_expiry: bool) -> bytes:
    """The same body, which says whether the flow has ended and expires when its user has said."""
    at = body.find(_STATE)
    if at < 0:
        raise not_readable(key, body) or _without_state(key)

    wait = _read_wait(key, body[:at])
    condition = None if wait is None else _wait_to_json(wait)
    naming = _naming_in(head, body[:at])
    return _prefix_with(naming, condition, own_expiry=own_expiry) + body[at:]


def version_of(key: Key, record: Record) -> FlowVersion:
    """A line of the history of a flow."""
    head, body = record.head, record.body
    return FlowVersion(
        version=head.version,
        status=_STATUSES[head.status],
        position=_positions.get(head.position) or _position(key, head.position),
        error=head.error,
        owner=head.owner,
        updated_at=from_ms(head.updated_ms),
        size=len(body.stored if type(body) is UnreadableBody else body),
    )


def decode_flow(key: Key, record: Record, state_type: Any | None) -> FlowSnapshot[Any]:
    """A new snapshot of what is stored, its state as `state_type`, or as raw data if `None`.

    `StateTypeError` if it was stored as another named type or does not fit, `CorruptRecordError`
    if it cannot be read at all.
    """
    state, position, wait, baseline = _read_flow(key, record, state_type)
    return stored_state.loaded_flow(key, state_type, record, state, position, wait, baseline)


def load_flow(snapshot: FlowSnapshot[Any], record: Record, state_type: Any | None = None) -> None:
    """Give a snapshot everything that is stored; on an error it is as it was.

    `state_type` is what its state is read as if the snapshot declares no type itself.
    """
    if snapshot.state_type is not None:
        state_type = snapshot.state_type

    state, position, wait, baseline = _read_flow(snapshot.key, record, state_type)
    stored_state.load_flow(snapshot, record, state, position=position, wait=wait, baseline=baseline)


def _read_flow(
    key: Key, record: Record, state_type: Any | None
) -> tuple[Any, FlowPosition, WaitCondition | None, bytes | None]:
    """State, position and wait of a flow, and what the state is encoded to if not as of today."""
    head, body = record.head, record.body
    at = body.find(_STATE)
    if at < 0:
        raise not_readable(key, body) or _without_state(key)

    prefix = body[:at]
    naming, plain = (None, None) if state_type is None else _naming_of(state_type)
    is_of_today, is_older, wait = True, False, None
    if naming is None or prefix != plain:  # what most are
        wait = _read_wait(key, prefix)
        if naming is not None:
            stored = _naming_in(head, prefix)
            is_older = _is_older(key, head, stored, naming)
            # Else the type has changed, and the same state may make other bytes.
            is_of_today = stored == naming

    position = _START
    if key.kind == FLOW:
        position = _positions.get(head.position) or _position(key, head.position)

    if state_type is None and head.type == BYTES:
        state_type = bytes

    data = body[at + _STATE_SIZE : -1]

    try:
        if is_older:
            lifted = lift(codec.decode_json(data), state_type, head.type_version)
            state = codec.fit(lifted, state_type)
        else:
            state = codec.decode_state(data, state_type)
    except CorruptRecordError as error:
        message = f"the state of {key} cannot be read: {error}; nothing was changed"
        raise CorruptRecordError(message, key=tuple(key)) from error
    except StateTypeError as error:
        why = _NOT_SHOWN if isinstance(body, ConcealedBody) else error
        message = f"the state of {key} cannot be decoded: {why}; nothing was changed"
        raise _refusal(message, head, error.expected, error.expected_version) from error

    baseline = None
    if not is_of_today:
        with suppress(EncodingError):  # then it cannot be written either, and the write will say so
            baseline = codec.encode_state(state, state_type)

    return state, position, wait, baseline


def _is_older(key: Key, head: Head, stored: codec.Naming, asked: codec.Naming) -> bool:
    """Whether an older version of the type wrote the state; `StateTypeError` if another type did."""
    if not head.type:
        return False  # data without a type has no version: it fits or it does not

    name, version = asked.name, asked.version
    if name != head.type:
        message = (
            f"{key} is stored with a state of type {head.type!r} but was requested as "
            f"{name!r}; request it with its stored type, or without a type to get its raw data"
        )
        raise _refusal(message, head, name, version)

    if head.type_version > version:
        message = (
            f"{key} is stored with version {head.type_version} of type {name!r}, but this program "
            f"supports version {version}; update the program, or request the flow without a type "
            "to get its raw data"
        )
        raise _refusal(message, head, name, version)

    if head.type_version < version:
        return True

    # Text would be read as a Decimal, and a number as seconds, if only it looks like one. A class
    # that was not generic when it was written, or is not now, has no arguments to compare.
    if stored.arguments and asked.arguments and stored.arguments != asked.arguments:
        has, wanted = f"{name}{stored.arguments}", f"{name}{asked.arguments}"
        message = (
            f"{key} is stored with a state of type {has} but was requested as {wanted}; "
            "request it with its stored type, request it without a type to get its raw data, "
            "or give the class a new version with an upcaster"
        )
        raise _refusal(message, head, wanted, version, has)

    return False


def _refusal(
    message: str, head: Head, expected: str | None, version: int | None, actual: str | None = None
) -> StateTypeError:
    return StateTypeError(
        message,
        expected=expected,
        actual=head.type if actual is None else actual,
        expected_version=version,
        actual_version=head.type_version,
    )


def _position(key: Key, text: str) -> FlowPosition:
    known = _positions.get(text)
    if known is not None:
        return known

    try:
        position = FlowPosition(tuple(int(index) for index in text.split("/")))
    except (ValueError, UsageError) as error:
        message = f"the position of {key} cannot be read: {text!r}; nothing was changed"
        raise CorruptRecordError(message, key=tuple(key)) from error

    if len(_positions) < _MOST_POSITIONS:
        _positions[text] = position

    return position


def wait_in(key: Key, record: Record) -> WaitCondition | None:
    """The condition in a flow's body; the state is not decoded."""
    return _read_wait(key, record.body[: record.body.find(_STATE)])


def is_same_state(snapshot: FlowSnapshot[Any] | Part[Any], body: bytes) -> bool:
    """Whether `body`, the snapshot's encoding now, says what was loaded.

    Bytes decide if they were written by the type as it is today. Else its type has another version
    or other fields since, and what was loaded was encoded again when it was (`_baseline`).
    """
    loaded = snapshot._loaded
    if loaded is None:
        return False

    if loaded.body == body:
        return True

    at = body.index(_STATE)
    if snapshot._baseline is None or loaded.body.startswith(body[:at]):
        return False  # the same type, waiting for the same: the states differ

    before = _envelope(loaded.body[: loaded.body.index(_STATE)])
    now = _envelope(body[:at])
    if before["wait"] != now["wait"] or all(before.get(name) == now.get(name) for name in _NAMING):
        return False  # or written since by the type as it is today

    return snapshot._baseline == body[at + _STATE_SIZE : -1]


def summary_of(found: Found) -> FlowSummary:
    """A line of a listing, also of a flow whose head cannot be read."""
    head, error, position = found.head, found.error, _START
    try:
        if error is None:
            position = _position(found.key, head.position)
    except CorruptRecordError as wrong:
        error = wrong

    return FlowSummary(
        flow_id=found.key.id,
        type_name=head.type,
        status=_STATUSES[head.status],
        position=position,
        version=head.version,
        revision=head.revision,
        created_at=from_ms(head.created_ms),
        updated_at=from_ms(head.updated_ms),
        due_at=None if head.due_ms is None else from_ms(head.due_ms),
        expires_at=None if head.expires_ms is None else from_ms(head.expires_ms),
        attempts=head.attempts,
        error=head.error,
        owner=head.owner,
        tags=Tags.of(head.tags),
        unreadable=None if error is None else str(error),
    )


# --- parts --------------------------------------------------------------------------------------


def encode_part(part: Part[Any]) -> tuple[str, int, bytes]:
    """Type name, type version and body of a part as it is now: bytes as they are, else like a flow."""
    body, loaded = part.body, part._loaded
    body_type = codec.type_of(body, part.body_type)
    if body_type is bytes:
        data = codec.encode_state(body, bytes)
        return BYTES, 1, bytes_to_store(data)

    naming = codec.naming(body_type)
    if body_type is None and loaded is not None and loaded.head.type not in ("", BYTES):
        if not part._is_read:
            message = (
                f"{part.key} holds a body of type {loaded.head.type!r} that has not been "
                "read, so it cannot be replaced with untyped data, and nothing was sent; "
                "read the part first, or set a typed body"
            )
            raise UsageError(message)

        naming = _naming_in(loaded.head, loaded.body[: loaded.body.index(_STATE)])

    state = codec.encode_state(body, body_type)
    return naming.name, naming.version, b"".join((_plain_prefix(naming), _STATE, state, b"}"))


def encode_entry(body: object) -> tuple[str, int, bytes]:
    """Likewise for an entry of a log."""
    body_type = codec.type_of(body)
    naming, data = codec.naming(body_type), codec.encode_state(body, body_type)
    if body_type is bytes:
        return BYTES, 1, bytes_to_store(data)

    return naming.name, naming.version, b"".join((_plain_prefix(naming), _STATE, data, b"}"))


def decode_part(key: Key, record: Record, body_type: Any | None) -> Part[Any]:
    """A new part of what is stored, its body as `body_type`, or as raw data; errors as of a flow."""
    body, baseline = _read_part(key, record, body_type)
    return stored_state.loaded_part(key, record, body_type, body, baseline)


def load_part(part: Part[Any], record: Record) -> None:
    """Give a part everything that is stored; on an error it is as it was."""
    body, baseline = _read_part(part.key, record, part.body_type)
    stored_state.load_part(part, record, body, baseline)


def _read_part(key: Key, record: Record, body_type: Any | None) -> tuple[Any, bytes | None]:
    head = record.head
    if head.type == BYTES and body_type in (None, bytes):
        return stored_bytes(key, record.body), None

    if BYTES in (head.type, codec.type_name(body_type)):
        asked = codec.type_name(body_type)
        message = (
            f"{key} is stored with a body of type {head.type!r} but was requested as {asked!r};"
            " request it with its stored type, or without a type"
        )
        raise _refusal(message, head, asked, None)

    body, _, _, baseline = _read_flow(key, record, body_type)
    return body, baseline


def bytes_to_store(data: bytes) -> bytes:
    """What is stored of a body of bytes: they themselves, set apart from what goes through codecs."""
    return data if data[:3] != MAGIC else set_apart(data)


def stored_bytes(key: Key, body: bytes) -> bytes:
    """Return a body of bytes from what is stored; an error if its codecs cannot be undone."""
    data = body[:]  # of the class `bytes`
    return data if data[:3] != MAGIC else _marked(key, body)


def _marked(key: Key, body: bytes) -> bytes:
    """The bytes of a body that begins like one that went through codecs."""
    refusal = not_readable(key, body)
    if refusal is not None:
        raise refusal

    return without_mark(body[:])


def decode_entry(key: Key, head: Head, body: bytes, body_type: Any | None) -> LogEntry:
    """An entry of a log."""
    read, _ = _read_part(key, Record(head, body), body_type)
    logged = log_of(key)
    assert logged is not None, "the key of a log entry must name a log"
    at, version = from_ms(head.created_ms), head.attempts or None
    return LogEntry(logged[1], read, head.position or None, at, version)


def is_same_part(part: Part[Any], type_name: str, body: bytes) -> bool:
    """Whether a part is what was loaded; `type_name` and `body` are its encoding now."""
    loaded = part._loaded
    if loaded is None or not part._is_read or part.tag != loaded.head.position:
        return False

    if BYTES in (type_name, loaded.head.type):
        return type_name == loaded.head.type and body == loaded.body

    return is_same_state(part, body)


# --- wait conditions ----------------------------------------------------------------------------


def terms_of(wait: WaitCondition) -> Terms:
    """The definition that a store must understand."""
    if wait.unreadable is not None:
        message = f"{wait.key} cannot be written, because it could not be read: {wait.unreadable}"
        raise CorruptRecordError(message, key=tuple(wait.key))

    return Terms(
        wait.flow_ids,
        any=wait.wait_type is WaitType.WHEN_ANY,
        timeout_ms=None if wait.timeout is None else span_ms(wait.timeout, "timeout"),
        parent=wait.parent_flow_id,
    )


def decode_wait(correlation_id: str, record: Record) -> WaitCondition:
    """A new condition as it is stored, with the completions of its children."""
    wait = WaitCondition(correlation_id, flow_ids=("?",))
    load_wait(wait, record)
    return wait


def unreadable_wait(correlation_id: str, error: CorruptRecordError) -> WaitCondition:
    """A line of a listing for a condition that cannot be read."""
    wait = WaitCondition(correlation_id, flow_ids=("?",))
    stored_state.set_unreadable(wait, error)
    return wait


def load_wait(wait: WaitCondition, record: Record) -> None:
    """Give a condition everything that is stored."""
    terms = record.terms
    if terms is None or not terms.children:
        message = (
            f"{wait.key} cannot be read, because its list of children is missing; nothing was "
            "changed"
        )
        raise CorruptRecordError(message, key=tuple(wait.key))

    stored_state.load_wait(wait, record, terms)


def _wait_to_json(wait: WaitCondition) -> dict[str, Any]:
    # No version and no revision: the write that ends the wait is the one that stores this copy.
    terms = terms_of(wait)
    fields: dict[str, Any] = {
        "id": wait.correlation_id,
        "flow_ids": list(terms.children),
        "any": terms.any,
        "timeout_ms": terms.timeout_ms,
        "parent": terms.parent,
        "outcome": wait.outcome.value,
        "created_ms": None if wait.created_at is None else to_ms(wait.created_at),
    }
    if wait._suspended_on is not None:
        fields["suspended_on"] = wait._suspended_on

    return fields


def _read_wait(key: Key, prefix: bytes) -> WaitCondition | None:
    try:
        envelope = _envelope(prefix)
        layout, fields = envelope["layout"], envelope["wait"]
        if layout == LAYOUT:
            return None if fields is None else _wait_from_json(fields)
    except (IndexError, KeyError, TypeError, ValueError, UsageError, CorruptRecordError) as error:
        message = f"the body of {key} cannot be read: {error}; nothing was changed"
        raise not_readable(key, prefix) or CorruptRecordError(message, key=tuple(key)) from error

    message = (
        f"the body of {key} has layout {layout!r}, but this release of catga_store supports only "
        f"layout {LAYOUT}; nothing was changed; read the record with the release that wrote it"
    )
    raise CorruptRecordError(message, key=tuple(key))


def _wait_from_json(fields: dict[str, Any]) -> WaitCondition:
    wait = WaitCondition(fields["id"], flow_ids=fields["flow_ids"])
    terms = Terms(tuple(fields["flow_ids"]), fields["any"], fields["timeout_ms"], fields["parent"])
    created_ms = fields["created_ms"]
    stored_state.set_terms(wait, terms, Head(0, fields["outcome"], created_ms or 0, 0))
    if created_ms is None:
        stored_state.set_created_at_unknown(wait)

    suspended_on = fields.get("suspended_on")
    if suspended_on is not None:
        stored_state.set_suspended_on(wait, check_id(suspended_on, "a correlation id"))

    return wait


# --- ForEach progress and completions ---------------------------------------------------------------


def encode_progress(progress: ForEachProgress) -> bytes:
    """The body of a progress record as it is now: the loaded one, byte for byte, if it is equal."""
    marked, failed = encode_bitmap(progress._marked), encode_bitmap(progress._failed)
    failures = len(progress._failed)
    head = codec.encode_json(
        {
            "layout": LAYOUT,
            "last": progress.last_processed_index,
            "processed": len(progress._marked) - failures,
            "failed": failures,
            "sizes": [len(marked), len(failed)],
        }
    )
    body = b"".join((head, _BITMAPS, marked, failed))
    loaded = progress._loaded
    if loaded is None or loaded.body == body or not _may_be_equal(loaded.body, body):
        return body

    _, *bitmaps = _read_progress(loaded.body)
    return loaded.body if bitmaps == [progress._marked, progress._failed] else body


def _may_be_equal(body: bytes, other: bytes) -> bool:
    """Whether two bodies say the same but for their bitmaps; equal ones may differ in their bytes."""
    return body.partition(_SIZES)[0] == other.partition(_SIZES)[0]


def _read_progress(body: bytes) -> tuple[int | None, BitMap64, BitMap64]:
    """The last index of a body, and the bitmaps of all marked and of the failed indices."""
    head, _, bitmaps = body.partition(_BITMAPS)
    fields = codec.decode_json(head)
    if fields["layout"] != LAYOUT:
        message = (
            f"the body has layout {fields['layout']!r}, but this release of catga_store supports "
            f"only layout {LAYOUT}"
        )
        raise CorruptRecordError(message, key=None)

    at, _ = fields["sizes"]
    marked, failed = decode_bitmap(bitmaps[:at]), decode_bitmap(bitmaps[at:])
    counts = fields["processed"], fields["failed"]
    if counts != (len(marked) - len(failed), len(failed)) or not failed <= marked:
        message = (
            f"the header lists {counts[0]} processed and {counts[1]} failed indices, but the "
            f"bitmaps contain {len(marked - failed)} and {len(failed)}"
        )
        raise CorruptRecordError(message, key=None)

    if marked:
        check_index(marked.max())

    last = fields["last"]
    return None if last is None else check_index(last), marked, failed


def decode_progress(key: Key, record: Record) -> ForEachProgress:
    """A new progress object as it is stored."""
    progress = ForEachProgress()
    load_progress(progress, key, record)
    return progress


def load_progress(progress: ForEachProgress, key: Key, record: Record) -> None:
    """Give a progress object everything that is stored."""
    try:
        last, marked, failed = _read_progress(record.body)
    except (KeyError, TypeError, ValueError, UsageError, CorruptRecordError) as error:
        message = f"the body of {key} cannot be read: {error}; nothing was changed"
        raise not_readable(key, record.body) or CorruptRecordError(
            message, key=tuple(key)
        ) from error

    stored_state.load_progress(progress, key, record, marked=marked, failed=failed, last=last)


def encode_completion(correlation_id: str, result: object, error: str | None) -> bytes:
    """The payload of a completion; `RecordTooLargeError` for a result above 256 KiB."""
    payload = codec.encode_json({"result": result, "error": error})
    size = len(payload) - _BARE_COMPLETION
    if size > MAX_RESULT_BYTES:
        message = (
            f"the child's result for wait condition {correlation_id!r} is {size} bytes long, but "
            f"the limit is {MAX_RESULT_BYTES}; store the data elsewhere, and pass a reference to "
            "it as the result"
        )
        raise RecordTooLargeError(message, size=size, limit=MAX_RESULT_BYTES)

    return payload

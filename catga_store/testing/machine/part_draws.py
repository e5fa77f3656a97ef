"""What the rules of parts and logs draw, and how a user's part is compared with the model's."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import asdict
from dataclasses import replace
from typing import Any
from typing import Literal

from hypothesis import strategies as st

from catga_store.errors import UsageError
from catga_store.testing.machine import base
from catga_store.testing.machine import oracle
from catga_store.testing.machine import parts_model
from catga_store.testing.machine.base import TYPES
from catga_store.testing.machine.base import Copy
from catga_store.testing.machine.base import Order
from catga_store.testing.machine.base import Parcel
from catga_store.testing.machine.parts_model import PartDraft
from catga_store.testing.machine.parts_model import PartRow

__all__ = [
    "BODY_TYPES",
    "PART_NAMES",
    "PREFIXES",
    "bodies",
    "body_types",
    "bounds",
    "change_part",
    "draft_of",
    "exists_how",
    "is_same_part",
    "part_changes",
    "part_names",
    "plain_of",
    "reads_part_as",
    "some_names",
    "tags",
    "written_part",
]

# In the order of their bytes, but for the last: `a0` comes after all of `a/`, and U+1F98A after U+FFFF.
PART_NAMES = (
    *("a", "a\x00*>", "a/1", "a/10", "a0", "e\u0301 \n", "\u00e9", "\uffff", "\U0001f98a"),
    *("log", "log/x"),
)
_ENTRIES = ("log/000000000001", "log/000000000002", "a/1/000000000001")
PREFIXES = ("", "a", "a/", "a/1", "e", "log", "log/", "\uffff", "\U0001f98a", "zz")
_LARGE = b"\x00large" * 20_000

BODY_TYPES: dict[str | None, Any] = {**TYPES, "bytes": bytes}


def _in_full(body: bytes) -> bytes:
    """The body; in place of its name, a large one, which no strategy should show.

    Hypothesis makes one text of all rules and their strategies at most draws of a rule. With the large
    body in it, that took half of the machine's time.
    """
    return _LARGE if body == b"large" else body


bodies: st.SearchStrategy[Any] = st.one_of(
    base.states,
    st.sampled_from([b"", b"\x00\xff*1 {", b"\xe2", b"text", b"[]", b"large"]).map(_in_full),
    st.sampled_from([[1, None, "🦊\x00"], "text", None, 7]),
)
body_types = st.sampled_from([None, None, None, "Order", "Parcel", "bytes"])
part_names = st.sampled_from(PART_NAMES)
some_names = st.sampled_from((*PART_NAMES, *_ENTRIES))
bounds = st.one_of(st.none(), st.sampled_from((*PART_NAMES, *_ENTRIES, "a/", "b", "zz")))
tags = st.sampled_from(["", "", "t", "tag \n🦊\x00"])
exists_how: st.SearchStrategy[Literal["refuse", "keep", "overwrite"]] = st.sampled_from(
    ["refuse", "refuse", "keep", "overwrite"]
)
part_changes = st.one_of(
    st.tuples(st.just("n"), st.integers(0, 9)),
    st.tuples(st.just("bytes"), st.sampled_from([b"", b"\x00other"])),
    st.tuples(st.just("tag"), tags),
    st.tuples(st.just("nothing"), st.none()),
)


def draft_of(copy: Copy) -> PartDraft | None:
    """What the user wants a part to be; `None` if its body was not read."""
    try:
        body: Any = copy.obj.body
    except UsageError:
        return None

    return PartDraft(*plain_of(body, copy.base), copy.obj.tag)


def has_type(body: Any) -> bool:
    """Whether a body is of one of the types of the machine."""
    return isinstance(body, Order | Parcel)


def plain_of(body: Any, row: PartRow | None = None) -> tuple[Any, str]:
    """A body as the model has it, and the name of its type: raw data keeps the type it was read of."""
    if isinstance(body, bytes):
        return body, "bytes"

    if has_type(body):
        return asdict(body), type(body).__name__

    kept = "" if row is None or row.draft.type_name == "bytes" else row.draft.type_name
    return deepcopy(body), kept


def reads_part_as(row: PartRow, type_name: str | None) -> bool:
    """Whether a body can be read as that type: it is of it, or untyped and fits."""
    if type_name is None or row.draft.type_name == type_name:
        return True

    body = row.draft.body
    fits = isinstance(body, dict) and isinstance(body["n"], int)  # pyright: ignore[reportUnknownArgumentType]  of any data
    return not row.draft.type_name and type_name != "bytes" and fits


def change_part(copy: Copy, change: tuple[str, Any]) -> None:
    """Change a part as a user would."""
    part, (what, value) = copy.obj, change
    draft = draft_of(copy)
    if what == "tag":
        part.tag = value
    elif what == "bytes" and part.body_type in (None, bytes):
        part.body = value
    elif what == "n" and part.body_type is not bytes:
        stored = copy.base.draft.type_name if draft is None else draft.type_name
        if draft is not None and isinstance(draft.body, dict) and not has_type(part.body):
            part.body["n"] = value
        elif draft is not None and has_type(part.body):
            part.body.n = value
        else:
            kind = TYPES.get(stored) or part.body_type
            new: dict[str, Any] = {"n": value, "note": ""}
            part.body = new if kind is None else kind(**new)


def is_same_part(copy: Copy) -> bool:
    """Whether a part that was read is as it was."""
    draft, row = draft_of(copy), copy.base
    if draft is None:
        same: bool = copy.obj.tag == row.draft.tag
        return same

    if copy.obj.body_type in (Order, Parcel) and not row.draft.type_name:
        draft = replace(draft, type_name="")  # reading a body without a type as one changes nothing

    return copy.is_read and draft == row.draft


def written_part(copy: Copy, exists: str, instead: PartRow | None = None) -> parts_model.PutPart:
    """The write of a part; refused by the contract if its body was not read, or of a log's entry."""
    draft, (flow_id, name) = draft_of(copy), copy.key
    if draft is None or parts_model.entry_of(name) is not None:
        raise oracle.Refusal("UsageError")

    return parts_model.PutPart(flow_id, name, draft, copy.base, exists, instead)

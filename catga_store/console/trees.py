"""States as trees that a page can hold: cut where they are too large, with what was left out."""

from __future__ import annotations

import difflib
import json
from typing import Any
from typing import cast

from attrs import define
from attrs import field

from catga_store.model.documents import json_value
from catga_store.protocol.masking import escaped

__all__ = ["Line", "TreeNode", "difference", "pretty", "tree"]

MOST_NODES = 2000
MOST_TEXT = 2000
MOST_DEPTH = 40
MOST_LINES = 20_000
_CONTEXT_LINES = 3


@define
class TreeNode:
    """One value of a state: a leaf has a text, others have children."""

    name: str
    kind: str
    text: str
    children: list[TreeNode] = field(factory=list["TreeNode"])
    left_out: int = 0
    """How many children are not shown."""


def tree(value: Any) -> TreeNode:
    """Return a state as a tree of at most 2,000 nodes, 40 levels deep, each text cut at 2,000 characters."""
    left = [MOST_NODES]
    return _node("", value, left, 0)


def _node(name: str, value: Any, left: list[int], depth: int) -> TreeNode:
    left[0] -= 1
    if isinstance(value, dict):
        fields = cast("dict[object, Any]", value)
        items = [(str(key), one) for key, one in fields.items()]
        return _parent(
            TreeNode(escaped(name), "object", _counted(len(items), "field")), items, left, depth
        )

    if isinstance(value, list | tuple):
        listed = list(enumerate(cast("list[Any]", value)))
        items = [(str(index), one) for index, one in listed]
        return _parent(
            TreeNode(escaped(name), "list", _counted(len(items), "item")), items, left, depth
        )

    if isinstance(value, bytes):
        more = "…" if len(value) > MOST_TEXT // 2 else ""
        text = f"{_counted(len(value), 'byte')}: {value[: MOST_TEXT // 2].hex(' ')}{more}"
        return TreeNode(escaped(name), "bytes", text)

    if isinstance(value, str):
        return TreeNode(escaped(name), "text", _cut(json.dumps(value, ensure_ascii=False)))

    text = json.dumps(value, default=lambda one: json.dumps(json_value(one)))
    return TreeNode(escaped(name), "value", _cut(text))


def _parent(node: TreeNode, items: list[tuple[str, Any]], left: list[int], depth: int) -> TreeNode:
    for key, one in items:
        if left[0] <= 0 or depth >= MOST_DEPTH:
            break

        node.children.append(_node(key, one, left, depth + 1))

    node.left_out = len(items) - len(node.children)
    return node


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _cut(text: str) -> str:
    shown = "".join(one if one == "\n" else escaped(one) for one in text[:MOST_TEXT])
    return shown if len(text) <= MOST_TEXT else f"{shown}… ({len(text):,} characters)"


def pretty(value: Any) -> str:
    """Return a state as indented JSON; keys keep their order, and bytes are base64."""
    return json.dumps(value, indent=2, ensure_ascii=False, default=json_value)


@define
class Line:
    """One line of a difference: its mark is `+`, `-`, `@` or a space."""

    mark: str
    text: str


def difference(before: Any, after: Any) -> list[Line] | None:
    """Return what differs between two states, line by line of their JSON; `None` if they are too long."""
    one, other = (pretty(value).splitlines() for value in (before, after))
    if len(one) + len(other) > MOST_LINES:
        return None

    found = list(difflib.unified_diff(one, other, n=_CONTEXT_LINES, lineterm=""))[2:]
    return [Line(line[:1], _cut(line[1:] if line[:1] != "@" else line)) for line in found]

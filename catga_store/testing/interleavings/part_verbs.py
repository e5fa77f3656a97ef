"""What one actor does with one part and one log of the flow."""

from __future__ import annotations

from typing import TYPE_CHECKING
from typing import Any

from catga_store.core import parts
from catga_store.model.parts import Part
from catga_store.testing.interleavings.acts import Act
from catga_store.testing.interleavings.sequential_parts import Entry
from catga_store.testing.interleavings.sequential_parts import PartSeen
from catga_store.testing.interleavings.sequential_parts import seen_part

if TYPE_CHECKING:
    from catga_store.testing.interleavings.play import Stage

__all__ = ["PART_VERBS", "PartVerbs"]

PART_VERBS = (
    "append",
    "append k",
    "append l",
    "trim 2",
    "trim 3",
    "read_log",
    "put_part 1",
    "put_part 2",
    "keep_part 3",
    "keep_part 4",
    "overwrite_part 5",
    "update_part",
    "get_part",
    "delete_part",
    "journal",
    "journal k",
)
"""Verbs that need parts."""


class PartVerbs:
    """The operations of an actor on parts; it holds the part that it read or wrote last."""

    stage: Stage
    flow_id = "{t}flow"

    def __init__(self) -> None:
        self.part: Part[Any] | None = None

    def took_part(self, part: Part[Any] | None) -> PartSeen | None:
        self.part = part
        return None if part is None else seen_part(part)

    def append(self, key: str | None = None) -> Act:
        conversation = parts.append(self.stage.context, self.flow_id, {}, key=key)
        return Act("append", key, conversation, lambda done: (done.sequence, done.duplicate))

    def trim(self, before: str) -> Act:
        first = int(before)
        conversation = parts.trim_log(self.stage.context, self.flow_id, before=first)
        return Act("trim", first, conversation, lambda count: count)

    def read_log(self) -> Act:
        conversation = parts.read_log(self.stage.context, self.flow_id)
        return Act(
            "read_log",
            None,
            conversation,
            lambda found: tuple(Entry(one.sequence, one.key, one.version) for one in found),
        )

    def get_part(self) -> Act:
        conversation = parts.get_part(self.stage.context, self.flow_id, "part")
        return Act("get_part", None, conversation, self.took_part)

    def put_part(self, n: str, exists: str = "refuse", name: str = "put_part") -> Act:
        part = Part(self.flow_id, "part", {"n": int(n)})
        conversation = parts.put_part(self.stage.context, part, exists=exists)
        return Act(
            name, int(n), conversation, lambda wrote: self.took_part(part) if wrote else None
        )

    def keep_part(self, n: str) -> Act:
        return self.put_part(n, "keep", "keep_part")

    def overwrite_part(self, n: str) -> Act:
        return self.put_part(n, "overwrite", "overwrite_part")

    def update_part(self) -> Act | None:
        part = self.part
        if part is None or part.revision is None:
            return None

        part.body["n"] += 10
        given = part.revision, part.body["n"]
        conversation = parts.put_part(self.stage.context, part)
        return Act("update_part", given, conversation, lambda _: seen_part(part))

    def delete_part(self) -> Act:
        conversation = parts.delete_part(self.stage.context, self.flow_id, "part")
        return Act("delete_part", None, conversation, lambda there: there)

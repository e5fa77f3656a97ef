"""One operation that an actor begins."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from attrs import frozen

from catga_store.protocol.conversation import Conversation

__all__ = ["Act"]


@frozen
class Act:
    """One operation that an actor begins: its conversation, and what to make of the answer."""

    name: str
    given: Any
    conversation: Conversation[Any]
    answer: Callable[[Any], Any]

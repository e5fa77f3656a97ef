"""The head of any record."""

from __future__ import annotations

from typing import Any

from catga_store.model.flows import FlowSnapshot
from catga_store.model.progress import ForEachProgress
from catga_store.model.waits import WaitCondition
from catga_store.protocol.requests import Head


def head_of(record: FlowSnapshot[Any] | WaitCondition | ForEachProgress) -> Head | None:
    """The head a record was loaded with, or last written as."""
    loaded = record._loaded
    return None if loaded is None else loaded.head

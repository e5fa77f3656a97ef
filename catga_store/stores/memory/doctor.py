"""The doctor of memory stores: it says what they lose."""

from __future__ import annotations

import uuid
from collections.abc import Generator
from collections.abc import Iterator
from contextlib import contextmanager

from catga_store.protocol.masking import mask_url
from catga_store.stores.findings import Finding
from catga_store.stores.findings import Scratch

__all__ = ["MemoryDoctor"]


class MemoryDoctor:
    """Says what a memory store is not for."""

    def absent(self, url: str) -> str | None:
        """Say that there is nothing: this process has just begun."""
        return (
            f"{mask_url(url)} is empty, because a memory store belongs to one process, and "
            "this process has just started"
        )

    def examine(self, url: str) -> Iterator[Finding]:
        """Say what a memory store is not for."""
        yield Finding(
            "durability",
            "warning",
            f"{mask_url(url)} keeps records in the memory of one process",
            "every flow is lost when the process ends, and no other process can see the "
            "store, so no other worker can take over a flow",
            "if flows must outlive the process, use sqlite:///flows.db",
        )
        yield Finding(
            "guarantees",
            "info",
            "version checks, claims and commits work across the threads and tasks of the process",
            "use this store for tests, and for flows that may be lost",
        )

    @contextmanager
    def scratch(self, url: str) -> Generator[Scratch]:
        """Name a store that has no other user; it ends with this process."""
        _ = url
        yield Scratch(f"memory://bench-{uuid.uuid4().hex}", "in the memory of this process")

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
        return f"{mask_url(url)} holds nothing: a memory store is of one process, and this one has just begun"

    def examine(self, url: str) -> Iterator[Finding]:
        """Say what a memory store is not for."""
        yield Finding(
            "durability",
            "warning",
            f"{mask_url(url)} keeps records in the memory of one process",
            "every flow is lost when the process ends, and no other process sees it: no worker can"
            " take over",
            "use sqlite:///flows.db where flows must outlive the process",
        )
        yield Finding(
            "guarantees",
            "info",
            "version checks, claims and commits hold among the threads and tasks of the process",
            "good for tests, and for flows that may be lost",
        )

    @contextmanager
    def scratch(self, url: str) -> Generator[Scratch]:
        """Name a store that has no other user; it ends with this process."""
        _ = url
        yield Scratch(f"memory://bench-{uuid.uuid4().hex}", "in the memory of this process")

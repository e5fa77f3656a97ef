"""Which stores a test runs on, and when: what several test files share."""

from __future__ import annotations

from typing import Any

import pytest

ONE_STORE = pytest.mark.stores("memory")
"""For what is decided above the store protocol: one store shows it, and the parity machine runs the
same operations on all of them."""

EVERY_STORE = pytest.mark.stores("all")
"""For a test on every store in a module that is marked `ONE_STORE`."""


def stores_named(*names: str) -> list[Any]:
    """Return these stores as parameters of a test; the oldest Redis is left to the nightly run."""
    return [
        pytest.param(name, marks=pytest.mark.nightly) if name.endswith("6.2") else name
        for name in names
    ]


STORES = stores_named("memory", "sqlite", "redis-6.2", "redis-8.2", "nats")
"""Every kind of store."""

REDIS_VERSIONS = stores_named("6.2", "8.2")
"""The oldest Redis that is supported, and the newest."""

SHARED_STORES = pytest.mark.stores("sqlite", "redis-6.2", "redis-8.2", "nats")
"""Those that several processes can use."""

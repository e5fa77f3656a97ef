"""The doctor of each kind of store, by the scheme of a URL.

To add one, write it in the store's package (see `catga_store.stores.findings.Doctor`) and add its
schemes here. Commands that only read and write records work on every store, with a doctor or without.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from catga_store.stores.findings import Doctor

__all__ = ["doctor_of"]


def doctor_of(url: str) -> Doctor | None:
    """Return the doctor for the scheme of a URL, or None if there is none."""
    make = _DOCTORS.get(urlsplit(url).scheme)
    return None if make is None else make()


def _memory() -> Doctor:
    from catga_store.stores.memory.doctor import MemoryDoctor

    return MemoryDoctor()


def _sqlite() -> Doctor:
    from catga_store.stores.sqlite.doctor import SQLiteDoctor

    return SQLiteDoctor()


def _redis() -> Doctor:
    from catga_store.drivers.redis_clients import link_to_url
    from catga_store.opening.blocking import DEFAULT_PREFIX
    from catga_store.stores.redis.doctor import RedisDoctor

    return RedisDoctor(link_to_url, DEFAULT_PREFIX)


def _nats() -> Doctor:
    from catga_store.drivers.nats_asyncio import NatsLink
    from catga_store.opening.blocking import DEFAULT_BUCKET
    from catga_store.opening.urls import nats_place
    from catga_store.stores.nats.doctor import NatsDoctor

    def open_link(url: str, timeout: float) -> NatsLink:
        servers, connect, _ = nats_place(url)
        return NatsLink(servers, timeout=timeout, **connect)

    def options_of(url: str) -> dict[str, Any]:
        return nats_place(url)[2]

    return NatsDoctor(open_link, options_of, DEFAULT_BUCKET)


_DOCTORS: dict[str, Callable[[], Doctor]] = {
    "memory": _memory,
    "nats": _nats,
    "redis": _redis,
    "redis+cluster": _redis,
    "rediss": _redis,
    "rediss+cluster": _redis,
    "sqlite": _sqlite,
    "tls": _nats,
    "unix": _redis,
}

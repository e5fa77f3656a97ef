"""The first use of a store: the server's version, the rights of the user, and the layout."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from redis import exceptions

from catga_store.errors import CorruptRecordError
from catga_store.errors import StoreConfigError
from catga_store.protocol.conversation import Conversation
from catga_store.protocol.failures import check_layout
from catga_store.stores.redis.layout import LAYOUT
from catga_store.stores.redis.layout import RedisLayout
from catga_store.stores.redis.lost_replies import RedisExchange
from catga_store.stores.redis.refusals import check
from catga_store.stores.redis.refusals import raise_refusal
from catga_store.stores.redis.refusals import refusal
from catga_store.stores.redis.scripts import LAY_OUT
from catga_store.stores.redis.scripts import call
from catga_store.stores.redis.transport import Command

__all__ = ["OLDEST", "prepare"]

OLDEST = 6, 2
"""The oldest version of Redis that works."""


def prepare(layout: RedisLayout, exchange: RedisExchange) -> Conversation[None]:
    """Check that the server is new enough and allows what is needed, and that the layout fits."""
    key = layout.layout
    (info,) = yield from exchange.ask([Command((b"INFO", b"server"), key)])
    if isinstance(info, Exception):
        if not isinstance(refusal(info), StoreConfigError) or isinstance(
            info, exceptions.AuthenticationError
        ):
            raise_refusal(info)
    else:
        _check_version(info)

    if exchange.acknowledged_by:
        check((yield from exchange.ask([Command((b"WAIT", 0, 1), key)])))

    keys = key, key.removesuffix(b"layout") + b"probe"
    lay_out = call(LAY_OUT, keys, (LAYOUT, layout.partitions))
    (stored,) = yield from exchange.ask([lay_out], writes=True)
    if isinstance(stored, Exception):
        raise_refusal(stored)

    _check_layout(stored, layout.partitions)


def _check_version(info: bytes) -> None:
    found = re.search(rb"^redis_version:(\d+)\.(\d+)", info, re.MULTILINE)
    if found is not None and (int(found[1]), int(found[2])) < OLDEST:
        message = (
            f"the server is Redis {int(found[1])}.{int(found[2])}, but the store needs Redis "
            f"{OLDEST[0]}.{OLDEST[1]} or later, or Valkey, so nothing was written; upgrade the "
            "server"
        )
        raise StoreConfigError(message)


def _check_layout(layout: Sequence[Any], partitions: int) -> None:
    try:
        version, stored = map(int, layout)
    except (TypeError, ValueError) as error:
        message = (
            "the store's layout cannot be read: expected a version and a number of partitions, "
            f"found {layout!r}; nothing was changed"
        )
        raise CorruptRecordError(message, key=None) from error

    check_layout(version, stored, known=LAYOUT, partitions=partitions)

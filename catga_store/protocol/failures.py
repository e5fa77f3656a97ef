"""Errors and warnings that every store raises in the same words."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterable

from catga_store.errors import CommitUncertainError
from catga_store.errors import CorruptRecordError
from catga_store.errors import PartitionCountError
from catga_store.errors import StoreConfigError
from catga_store.errors import StoreUnavailableError
from catga_store.protocol.keys import Key

__all__ = [
    "UNTRUSTED",
    "check_layout",
    "given_up",
    "is_untrusted",
    "uncertain",
    "warn_passed_over",
]

UNTRUSTED = (
    "the server's certificate is not trusted, so nothing was sent; trust the authority "
    "that issued it (SSL_CERT_FILE, or the TLS options of the client), and connect with a "
    "host name that the certificate contains"
)
"""The message for a server that the client does not trust."""

_WARN_AGAIN_SECONDS = 30
_WARNED_MOST = 1000
_warned: dict[object, float] = {}


def uncertain(
    commit_id: str, keys: Iterable[Key], why: BaseException | str
) -> CommitUncertainError:
    """Return the error for a commit that was sent but whose reply did not arrive; `why` gives the reason."""
    message = (
        f"commit {commit_id} was sent, but its outcome is unknown ({why}); call "
        "resolve_commit(error) to determine whether the commit was applied"
    )
    return CommitUncertainError(message, commit_id=commit_id, keys=tuple(dict.fromkeys(keys)))


def given_up(commit_id: str) -> StoreUnavailableError:
    """Return the error for a commit that arrives after `Resolve` has determined that it will never be applied."""
    message = (
        f"commit {commit_id} arrived after resolve_commit had declared it lost, so nothing "
        "was written"
    )
    return StoreUnavailableError(message)


def check_layout(version: int, stored: int, *, known: int, partitions: int) -> None:
    """Compare the layout version and the number of partitions of a store with those with which it was opened.

    Raises `StoreConfigError` if the layout version is not `known`, and `PartitionCountError` if the number of
    partitions is different.
    """
    if version != known:
        message = (
            f"the store has layout version {version}, but this release of catga_store supports "
            f"only version {known}; nothing was changed; open the store with the release that "
            "created it"
        )
        raise StoreConfigError(message)

    if stored != partitions:
        message = (
            f"the store was created with {stored} partition{'' if stored == 1 else 's'} but "
            f"opened with {partitions}, so nothing was read or written; open it with "
            f"partitions={stored}"
        )
        raise PartitionCountError(message, expected=stored, actual=partitions)


def warn_passed_over(log: logging.Logger, error: CorruptRecordError) -> None:
    """Log that a record was skipped, at most once in 30 seconds for each record, because workers poll."""
    now = time.monotonic()
    if now - _warned.get((log.name, error.key), -math.inf) > _WARN_AGAIN_SECONDS:
        if len(_warned) > _WARNED_MOST:
            _warned.clear()

        _warned[log.name, error.key] = now
        log.warning("skipped: %s", error)


def is_untrusted(error: BaseException | None) -> bool:
    """Whether a request did not reach the store because its server's certificate is not trusted."""
    while error is not None:
        if type(error).__name__ == "SSLCertVerificationError":  # by name: ssl need not be imported
            return True

        error = error.__cause__ or error.__context__

    return False

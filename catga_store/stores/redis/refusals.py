"""Error replies of the server as errors of this library that say what to do: one table."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any
from typing import NoReturn

from redis import exceptions

from catga_store.errors import CatgaStoreError
from catga_store.errors import CommitUncertainError
from catga_store.errors import StoreConfigError
from catga_store.errors import StoreUnavailableError
from catga_store.protocol.keys import Key
from catga_store.stores.redis.layout import corrupt
from catga_store.stores.redis.transport import MisconfiguredError

__all__ = [
    "cause_of",
    "check",
    "raise_for",
    "raise_refusal",
    "raise_unavailable",
    "refusal",
    "unconfirmed",
]

_UNWRITTEN = "; nothing was written"

_REFUSALS: tuple[
    tuple[type[Exception] | None, tuple[str, ...], type[CatgaStoreError], str], ...
] = (
    (
        exceptions.AuthenticationError,
        ("NOAUTH", "WRONGPASS", "invalid username-password"),
        StoreConfigError,
        (
            "the server expects a different user or password, so nothing was written; set the "
            "user and the password in the URL or on the client"
        ),
    ),
    (
        exceptions.NoPermissionError,
        ("NOPERM", "ACL failure", "executing the script can't"),
        StoreConfigError,
        (
            "the server's ACL refuses a command or key that the store needs, so nothing was "
            "written; allow it for this user"
        ),
    ),
    (
        exceptions.OutOfMemoryError,
        ("OOM command",),
        StoreUnavailableError,
        (
            "the server is out of memory, so nothing was written; free memory, or raise "
            "maxmemory, then try again"
        ),
    ),
    (
        exceptions.ReadOnlyError,
        ("READONLY",),
        StoreUnavailableError,
        (
            "the server is a read-only replica, so nothing was written; connect to the "
            "primary, or wait until the failover has finished"
        ),
    ),
    (
        exceptions.BusyLoadingError,
        ("LOADING",),
        StoreUnavailableError,
        "the server is still loading its data, so nothing was written; try again later",
    ),
    (
        exceptions.MasterDownError,
        ("MASTERDOWN",),
        StoreUnavailableError,
        (
            "the server is a replica that has lost its primary, so nothing was written; wait "
            "until the failover has finished"
        ),
    ),
    (
        exceptions.ClusterDownError,
        ("CLUSTERDOWN",),
        StoreUnavailableError,
        (
            "no cluster node currently serves this partition, so nothing was written; "
            "start the missing node, or wait for the failover"
        ),
    ),
    (
        exceptions.AskError,
        ("MOVED",),
        StoreConfigError,
        (
            "the server is a node of a cluster, so nothing was written; open it with "
            "redis+cluster://, or with a RedisCluster client"
        ),
    ),
    (
        exceptions.TryAgainError,
        ("TRYAGAIN",),
        StoreUnavailableError,
        "the cluster is moving this partition to another node, so nothing was written; try again",
    ),
    (
        None,
        ("MISCONF",),
        StoreUnavailableError,
        (
            "the server cannot save to its disk and refuses writes, so nothing was written; fix "
            "the cause, then try again"
        ),
    ),
    (
        None,
        ("CHUNKS ",),
        StoreUnavailableError,
        (
            "the server removed an uploaded large body before its commit arrived, so nothing was "
            "written; try again"
        ),
    ),
    (
        None,
        ("NOREPLICAS",),
        StoreUnavailableError,
        (
            "too few replicas are connected for the server to accept writes, so nothing was "
            "written; reconnect the replicas"
        ),
    ),
    (
        None,
        ("BUSY ",),
        StoreUnavailableError,
        (
            "the server is busy with a long script, so nothing was written; try again, or end "
            "the script with SCRIPT KILL"
        ),
    ),
    (
        None,
        ("WRONGTYPE",),
        StoreConfigError,
        (
            "another program has written a key of this store, so nothing was written; use "
            "another prefix, or remove the key"
        ),
    ),
    (
        None,
        ("unknown command", "Unknown Redis command", "CROSSSLOT"),
        StoreConfigError,
        (
            "the store does not support this server, so nothing was written; use Redis 6.2 or "
            "later, or Valkey"
        ),
    ),
)


def refusal(error: Exception) -> CatgaStoreError:
    """Return the error of this library for an error reply."""
    said = str(error)

    for kind, texts, error_type, advice in _REFUSALS:
        if (kind is not None and isinstance(error, kind)) or any(text in said for text in texts):
            return error_type(f"{advice} (the server replied: {said})")

    if isinstance(error, exceptions.ConnectionError):
        return StoreUnavailableError(
            f"the server refused the connection, so nothing was written: {said}"
        )

    return StoreConfigError(
        f"the server refused a request from the store, so nothing was written: {said}"
    )


def raise_refusal(error: Exception) -> NoReturn:
    """Raise the error of this library for an error reply."""
    raise refusal(error) from error


def check(replies: Iterable[object]) -> None:
    """Raise the first error among replies."""
    for reply in replies:
        if isinstance(reply, Exception):
            raise_refusal(reply)


def unconfirmed(
    commit_id: str, keys: Iterable[Key], replicas: Any, wanted: int, seconds: float
) -> CommitUncertainError:
    """Return the error of a write that the primary has made and too few replicas have confirmed.

    `replicas` is the reply of `WAIT`: their number, or why they could not be counted.
    """
    found = f"only {replicas} of {wanted} replicas confirmed the commit within {seconds:g} s"
    if type(replicas) is not int:
        found = (
            f"the server did not report how many of {wanted} replicas have the commit (it replied "
            f"{replicas})"
        )

    message = (
        f"the primary wrote commit {commit_id}, but {found}, so a failover may lose the "
        "commit; call resolve_commit(error) to determine whether the commit is safe"
    )
    named = tuple(dict.fromkeys(keys))
    return CommitUncertainError(message, commit_id=commit_id, keys=named)


def raise_unavailable(error: Exception) -> NoReturn:
    """Raise the error of a request that was never sent; what the server said when connecting counts."""
    cause = error.__cause__
    while cause is not None:
        if isinstance(cause, _SAID):
            raise_refusal(cause)

        cause = cause.__cause__

    if isinstance(error, MisconfiguredError):
        raise StoreConfigError(f"{error}{_UNWRITTEN}") from cause_of(error)

    raise StoreUnavailableError(f"{error}{_UNWRITTEN}") from cause_of(error)


def cause_of(error: Exception) -> BaseException:
    """Return redis-py's exception behind a failure of the link, if there is one."""
    return error.__cause__ or error


_SAID = (
    exceptions.AuthenticationError,
    exceptions.AuthorizationError,
    exceptions.BusyLoadingError,
    exceptions.NoPermissionError,
)
"""Error replies to a client that connects."""


def raise_for(key: Key, error: Any) -> NoReturn:
    """Raise the error for a record whose read was refused."""
    said = str(error)
    if "WRONGTYPE" in said or said.startswith("CORRUPT"):
        raise corrupt(key, f"the error {said!r}") from error

    raise_refusal(error)

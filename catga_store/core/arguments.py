"""Checks of arguments, each before anything is sent."""

from __future__ import annotations

from collections.abc import Awaitable
from collections.abc import Coroutine
from collections.abc import Iterable
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any
from typing import TypeVar
from typing import cast

from catga_store import codec
from catga_store.core import envelope
from catga_store.errors import FlowNotFoundError
from catga_store.errors import UsageError
from catga_store.model.stored_state import FLOW_CLASSES
from catga_store.model.waits import WaitCondition
from catga_store.protocol.keys import Key
from catga_store.protocol.keys import check_id
from catga_store.protocol.keys import check_step
from catga_store.protocol.keys import progress_key
from catga_store.protocol.keys import wait_key
from catga_store.protocol.masking import shown
from catga_store.protocol.requests import Complete

__all__ = [
    "check_awaitable",
    "check_blocking",
    "check_flow",
    "check_function",
    "check_limit",
    "check_limit_or_none",
    "check_names",
    "check_number",
    "check_version",
    "check_wait",
    "completion_change",
    "not_found",
    "step_key",
    "typed_ids",
    "unique_ids",
]

R = TypeVar("R")


def completion_change(
    correlation_id: str,
    child_flow_id: str,
    *,
    success: object,
    result: object,
    error: object,
) -> Complete:
    """The change that records a completion, checked and encoded."""
    key = wait_key(check_id(correlation_id, "a correlation id"))
    child = check_id(child_flow_id, "a child's id")
    if type(success) is not bool:
        message = f"success: expected True or False, got {shown(success)}"
        raise UsageError(message)

    if error is not None and type(error) is not str:
        message = f"error: expected a str or None, got {shown(error)}"
        raise UsageError(message)

    return Complete(key, child, success, envelope.encode_completion(correlation_id, result, error))


def check_flow(flow: object) -> None:
    """Raise `UsageError` unless it is a flow."""
    if type(flow) not in FLOW_CLASSES:
        message = f"flow: expected a FlowSnapshot, got {shown(flow)}"
        raise UsageError(message)


def check_function(function: object) -> None:
    """Raise `UsageError` unless it can be called."""
    if not callable(function):
        message = f"transact: expected a function that takes a session, got {shown(function)}"
        raise UsageError(message)


def check_blocking(result: R) -> R:
    """Return the result of a function; `UsageError` if it is a coroutine, which has not run."""
    if isinstance(result, Coroutine):
        result.close()
        message = (
            "Store.transact: expected a plain function, got an async function, so nothing was "
            "committed; pass a plain function, or use an AsyncStore"
        )
        raise UsageError(message)

    return result


def check_awaitable(result: Awaitable[R]) -> Awaitable[R]:
    """Return what calling an async function returned; `UsageError` if it cannot be awaited."""
    returned: object = result
    if not isinstance(returned, Awaitable):
        message = (
            "AsyncStore.transact: expected an async function, got a function that returned "
            f"{result!r}, so nothing was committed; pass an async function"
        )
        raise UsageError(message)

    return result


_PAGE_MOST = 1000
"""How many records a page of a listing has at most, and how many flows one claim takes."""


def check_limit(limit: object) -> None:
    """Raise `UsageError` unless it is a size of a page."""
    check_number("limit", limit, 1, _PAGE_MOST)


def check_limit_or_none(limit: object) -> None:
    """Raise `UsageError` unless it is a limit, or `None` for no limit."""
    if limit is not None and (type(limit) is not int or limit < 1):
        message = f"limit: expected None or an int of at least 1, got {shown(limit)}"
        raise UsageError(message)


def check_number(name: str, number: object, least: int, most: int | None = None) -> None:
    """Raise `UsageError` unless it is an int within these bounds."""
    if type(number) is not int or number < least or (most is not None and number > most):
        bounds = f"of at least {least}" if most is None else f"from {least} to {most}"
        message = f"{name}: expected an int {bounds}, got {shown(number)}"
        raise UsageError(message)


def check_version(version: object) -> None:
    """Raise `UsageError` unless it is a version that is expected, or `None` for any."""
    if version is not None and type(version) is not int:
        message = f"version: expected an int or None, got {shown(version)}"
        raise UsageError(message)


def check_wait(wait: object) -> None:
    """Raise `UsageError` unless it is a wait condition."""
    if type(wait) is not WaitCondition:
        message = f"wait: expected a WaitCondition, got {shown(wait)}"
        raise UsageError(message)


def check_names(what: str, kind: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Raise `UsageError` for a keyword argument that is not known, saying what it may have meant."""
    names = sorted(known)
    for name in given:
        if name not in names:
            close = get_close_matches(name, names, 1)
            meant = f" (did you mean {close[0]!r}?)" if close else ""
            message = f"{what} has no {kind} {name!r}{meant}; it accepts {', '.join(names)}"
            raise UsageError(message)


def step_key(flow_id: str, step_index: int) -> Key:
    """The key of a step's progress, checked."""
    return progress_key(check_id(flow_id, "a flow id"), check_step(step_index))


def unique_ids(flow_ids: Iterable[str]) -> list[str]:
    """The ids, checked, each once, in their order."""
    if isinstance(flow_ids, str | bytes) or not isinstance(flow_ids, Iterable):
        message = f"flow_ids: expected a collection of ids, got {shown(flow_ids)}"
        raise UsageError(message)

    return list(dict.fromkeys(check_id(flow_id, "a flow id") for flow_id in flow_ids))


def typed_ids(flow_ids: Iterable[str], state_type: Any | None) -> dict[str, Any | None]:
    """The ids, checked, each once, in their order, with the type that each is to be read as."""
    ids = unique_ids(flow_ids)
    if not isinstance(flow_ids, Mapping):
        codec.check_state_type(state_type)
        return dict.fromkeys(ids, state_type)

    if state_type is not None:
        message = (
            "state_type cannot be combined with flow_ids that already map each id to a type; omit "
            "state_type"
        )
        raise UsageError(message)

    given = cast("Mapping[str, Any]", flow_ids)
    types = dict(zip(ids, given.values(), strict=True))
    for each in types.values():
        codec.check_state_type(each)

    return types


def not_found(flow_id: str) -> FlowNotFoundError:
    """The error for a flow that does not exist."""
    message = f"flow {flow_id!r} not found: it was never created, was deleted, or has expired"
    return FlowNotFoundError(message, flow_id=flow_id, expected=None)

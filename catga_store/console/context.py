"""What every page needs: the store, what may be done with it, and what may be shown of it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from collections.abc import Iterable
from copy import deepcopy
from typing import Any
from typing import TypeAlias
from typing import cast

from attrs import field
from attrs import frozen
from starlette.requests import Request

from catga_store.aio import AsyncStore
from catga_store.console.safety import Guard
from catga_store.stores.findings import Finding

__all__ = ["REDACTED", "ConsoleContext", "Doctors", "Redact", "context_of"]

_log = logging.getLogger(__name__)

Redact: TypeAlias = Callable[[str, Any], Any]
"""Called with the name that a body is stored under and the body; returns what may be shown of it."""

Doctors: TypeAlias = Callable[[], Iterable[Finding]]
"""Looks at a store from the outside, as `catga-store doctor` does."""

REDACTED = "(not shown: the redact function failed)"


@frozen
class ConsoleContext:
    """The store of a console, and its options."""

    store: AsyncStore
    place: str
    write: bool
    guard: Guard
    redact: Redact | None
    doctors: Doctors | None
    kept: dict[str, Any] = field(factory=dict[str, Any])
    """What pages keep of their last look, so that many readers cost the store as much as one."""

    def shown(self, type_name: str, body: Any) -> Any:
        """Return what may be shown of a body; of one that cannot be redacted, nothing."""
        if self.redact is None:
            return body

        try:
            # A copy: what is edited is compared with the body, which must not have changed.
            return self.redact(type_name, deepcopy(body))
        except Exception as error:  # noqa: BLE001  a function of the user may raise anything
            # Not the error itself: its text may hold what was to be hidden.
            _log.error("redact raised %s; the body is not shown", type(error).__name__)
            return REDACTED


def context_of(request: Request) -> ConsoleContext:
    """Return the console that a request has come to."""
    return cast("ConsoleContext", request.app.state.console)

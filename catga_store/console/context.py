"""What every page needs: the store, what may be done with it, and what may be shown of it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from copy import deepcopy
from typing import Any
from typing import TypeAlias
from typing import cast

from attrs import field
from attrs import frozen
from starlette.requests import Request

from catga_store import codec
from catga_store.aio import AsyncStore
from catga_store.codec.evolution import lift
from catga_store.console.safety import Guard
from catga_store.errors import UsageError
from catga_store.model.flows import FlowSnapshot
from catga_store.protocol.masking import shown
from catga_store.stores.findings import Finding

__all__ = ["REDACTED", "ConsoleContext", "Doctors", "Redact", "context_of", "types_by_name"]

_log = logging.getLogger(__name__)

Redact: TypeAlias = Callable[[str, Any], Any]
"""Called with the name that a body is stored under and the body; returns what may be shown of it."""

Doctors: TypeAlias = Callable[[], Iterable[Finding]]
"""Looks at a store from the outside, as `catga-store doctor` does."""

REDACTED = "(not shown, because the redact function failed)"


@frozen
class ConsoleContext:
    """The store of a console, and its options."""

    store: AsyncStore
    place: str
    write: bool
    guard: Guard
    redact: Redact | None
    doctors: Doctors | None
    types: Mapping[str, Any] = field(factory=dict[str, Any])
    """The classes of states that the console knows, by the names they are stored under."""
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
            _log.error(
                "the redact function raised %s, so the body is not shown", type(error).__name__
            )
            return REDACTED

    def check_state(self, flow: FlowSnapshot[Any], state: Any) -> None:
        """Raise `StateTypeError`, with the field, for a state that the class of this flow does not take.

        Where the class is not known, nothing is checked.
        """
        known = self.types.get(flow.type_name)
        if known is None:
            return

        loaded = flow._loaded  # noqa: SLF001  the API reads no versions of types
        stored = codec.naming(known).version if loaded is None else loaded.head.type_version
        codec.fit(lift(state, known, stored), known)


def types_by_name(types: Iterable[Any]) -> dict[str, Any]:
    """Return classes by the names that states are stored under; `UsageError` for what has none."""
    named: dict[str, Any] = {}
    for one in types:
        codec.check_state_type(one)
        name = codec.naming(one).name
        if not name:
            message = (
                f"types: {shown(one)} has no stored type name; give the "
                "type a name with @flow_state"
            )
            raise UsageError(message)

        named[name] = one

    return named


def context_of(request: Request) -> ConsoleContext:
    """Return the console that a request has come to."""
    return cast("ConsoleContext", request.app.state.console)

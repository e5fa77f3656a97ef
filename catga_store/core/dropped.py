"""The warning for a claimed flow that is dropped with changes that were not written.

A worker that forgets to write loses its work without an error: another worker claims the flow after the
lease and does the work again. Such a flow calls `warn_of_dropped` when the interpreter frees it.
"""

from __future__ import annotations

import logging
import os
import sys
from typing import Any

from catga_store.core.writes import Limits
from catga_store.core.writes import changes_of
from catga_store.core.writes import plan_flow
from catga_store.model.flows import FlowSnapshot
from catga_store.model.listings import Retention

__all__ = ["warn_of_dropped"]

_log = logging.getLogger(__name__)

# Nothing is written, so no limit of a store matters.
_NO_LIMITS = Limits(Retention(), sys.maxsize, 1)


def warn_of_dropped(flow: FlowSnapshot[Any]) -> None:
    """Log what of a claimed flow was changed and not written.

    Runs when the interpreter frees the flow, so at any place and in any thread. It raises nothing, and
    is silent while the interpreter ends and in a forked child, where the flow is its parent's.
    """
    claim = flow._claim
    if claim is None or sys.is_finalizing() or claim.process != os.getpid():
        return

    try:
        changed = _changes_of(flow)
        if changed:
            _log.warning(
                "%s was claimed and changed (%s), but its object was garbage-collected, so "
                "the changes were not written; the flow is due again when its lease ends; to "
                "keep such changes, call update(), or add the flow to a session and commit",
                flow.key,
                ", ".join(changed),
            )
    except Exception:  # noqa: BLE001  a handler of the program's may raise anything, and no caller is here
        return


def _changes_of(flow: FlowSnapshot[Any]) -> tuple[str, ...]:
    try:
        return changes_of(flow, plan_flow(flow, 0, _NO_LIMITS))
    except Exception:  # noqa: BLE001  what is stored can be encoded, so this state is another one
        return ("state",)

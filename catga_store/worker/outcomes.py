"""What is written when a run ends. Pure: nothing here does I/O.

| how a run ends | what is written |
|---|---|
| the handler returns | its changes; `attempts` 0; due as the handler said, or now |
| it returns without having moved the flow | as for an exception |
| it raises | nothing of its changes; `error`, and `due_at` by the retry policy |
| it raises on the last attempt, or `GiveUp` | `FAILED`, `error`, an entry in the log `errors` |
| it is stopped, or the store cannot be reached | one attempt less; due now, or a little later |
| its claim is lost | nothing |
| its process dies with others | at the next claim: one attempt less, and the flow runs alone |
"""

from __future__ import annotations

import re
import traceback
from datetime import datetime
from datetime import timedelta
from pathlib import Path
from typing import Any

from attrs import frozen

from catga_store.model.flows import FlowPosition
from catga_store.model.flows import FlowSnapshot
from catga_store.model.flows import FlowStatus
from catga_store.model.stored_state import head_of
from catga_store.model.times import NOW
from catga_store.worker.policy import GiveUp
from catga_store.worker.policy import Retry

__all__ = [
    "ERRORS",
    "Began",
    "FlowNotMovedError",
    "attempt_of",
    "begin",
    "discount",
    "end_in_order",
    "error_entry",
    "error_text",
    "fail",
    "fail_where_it_failed",
    "hand_back",
    "is_last",
    "let_go",
    "note_alone",
    "poison_error",
    "retry_later",
    "unbegin",
]

ERRORS = "errors"
"""The log of a flow that says why it failed."""

_LONGEST_TEXT = 2000
_LONGEST_TRACEBACK = 20_000
_PACKAGE = str(Path(__file__).parent.parent)
_OWN_ERROR = re.compile(r"attempt (\d+) of \d+ at [\d/]+: ")
_ALONE = ": it runs alone, because its process died or its claim was lost while other flows ran beside it"
_KEEPS_ERROR = (FlowStatus.FAILED, FlowStatus.COMPENSATING)
"""Where the error is why the flow is there; elsewhere that of an attempt is gone with the next step."""
_BEGINS_TO_RUN = (FlowStatus.CREATED, FlowStatus.SUSPENDED)


class FlowNotMovedError(Exception):
    """A handler returned and had changed neither position, nor status, nor due time of its flow."""


@frozen
class Began:
    """Where a flow was when its handler was called."""

    position: FlowPosition
    status: FlowStatus
    error: str | None
    stored_status: FlowStatus


def begin(flow: FlowSnapshot[Any]) -> Began:
    """Set a flow that was created or suspended running, and note where it is."""
    stored = flow.status
    if stored in _BEGINS_TO_RUN:
        flow.status = FlowStatus.RUNNING

    return Began(flow.position, flow.status, flow.error, stored)


def unbegin(flow: FlowSnapshot[Any], began: Began) -> None:
    """Undo `begin` for a step that is attempted again: a store counts attempts again from a new status."""
    if flow.status is began.status and flow.position == began.position:
        flow.status = began.stored_status


def end_in_order(flow: FlowSnapshot[Any], began: Began, *, is_tracked: bool) -> None:
    """Prepare the commit after a handler has returned; `FlowNotMovedError` if it did not move the flow.

    `is_tracked`: its session would write it; it does not if the handler has deleted the flow.
    """
    if not is_tracked or not _holds_claim(flow):
        return  # the handler has ended the claim itself, by a commit

    if not flow.status.is_terminal and _is_due_as_claimed(flow):
        if flow.position == began.position and flow.status is began.status:
            message = (
                "the handler returned without changing the position, the status or the due time "
                "of its flow, so the flow would run again immediately; call run.next(), "
                "run.sleep(), run.suspend(), run.complete(), run.fail() or run.retry()"
            )
            raise FlowNotMovedError(message)

        let_go(flow)

    flow.attempts = 0
    if flow.status in _KEEPS_ERROR or flow.error is None:
        return

    if flow.error == began.error and _OWN_ERROR.match(flow.error):
        flow.error = None


def let_go(flow: FlowSnapshot[Any]) -> None:
    """End the claim by the next commit: due now, or not at all if the flow is suspended."""
    if not flow.status.is_terminal and _is_due_as_claimed(flow):
        flow.due_at = None if flow.status is FlowStatus.SUSPENDED else NOW


def _holds_claim(flow: FlowSnapshot[Any]) -> bool:
    head = head_of(flow)
    return head is not None and head.owner is not None


def _is_due_as_claimed(flow: FlowSnapshot[Any]) -> bool:
    """Whether `due_at` still is the end of the lease."""
    head = head_of(flow)
    if head is None or head.due_ms is None or flow.due_at is None or flow.due_at is NOW:
        return False

    return flow.due_at.timestamp() * 1000 == head.due_ms


def attempt_of(flow: FlowSnapshot[Any]) -> int:
    """Which attempt at its step ends now. A commit that moved the flow has begun a new step: the first."""
    return max(flow.attempts, 1)


def is_last(attempt: int, retry: Retry) -> bool:
    """Whether there is no attempt after this one."""
    return attempt >= retry.attempts


def discount(flow: FlowSnapshot[Any]) -> bool:
    """Take back attempts of which nothing says how they ended; whether the flow is to run alone.

    An attempt that raised, or that ran alone, is noted in the error. Of any other the process has died with
    several flows, or the claim was lost.
    """
    noted = _OWN_ERROR.match(flow.error or "")
    number = 0 if noted is None else int(noted[1])
    if flow.attempts > number + 1:
        flow.attempts = number + 1
        return True

    return noted is not None and _ALONE in noted.string


def note_alone(flow: FlowSnapshot[Any], retry: Retry) -> None:
    """Note that an attempt runs alone, before it does: if its process dies, it is counted."""
    before = "" if flow.error is None else f"; the previous error was: {flow.error}"
    text = f"attempt {flow.attempts} of {retry.attempts} at {flow.position}{_ALONE}"
    flow.error = (text + before)[:_LONGEST_TEXT]


def retry_later(
    flow: FlowSnapshot[Any],
    error: BaseException,
    retry: Retry,
    now: datetime,
    after: timedelta | None = None,
) -> None:
    """Let a step be attempted again, after `after` or by the policy."""
    attempt = attempt_of(flow)
    flow.error = error_text(error, attempt, retry, flow.position)
    flow.attempts = attempt
    flow.due_at = now + (retry.delay(attempt) if after is None else after)


def fail(flow: FlowSnapshot[Any], error: BaseException, retry: Retry) -> None:
    """Fail a flow for good."""
    if isinstance(error, GiveUp):
        flow.error = str(error)[:_LONGEST_TEXT] or "the handler raised GiveUp"
    else:
        flow.error = error_text(error, attempt_of(flow), retry, flow.position)

    flow.status = FlowStatus.FAILED


def fail_where_it_failed(
    flow: FlowSnapshot[Any], position: FlowPosition, status: FlowStatus
) -> bool:
    """Fail a flow that its `on_failure` handler sets going where it has failed; whether it was so.

    It would run again at once, and fail again, forever: its attempts are used up.
    """
    if flow.position != position or flow.status is not status or not _is_due_as_claimed(flow):
        return False

    flow.status = FlowStatus.FAILED
    return True


def hand_back(flow: FlowSnapshot[Any], due_at: datetime = NOW) -> None:
    """End the claim of a run that does not count."""
    flow.attempts = max(flow.attempts - 1, 0)
    flow.due_at = due_at


def poison_error(flow: FlowSnapshot[Any], retry: Retry) -> GiveUp:
    """The error of a flow whose attempts are used up before it runs: workers have died in it."""
    message = (
        f"the flow was not run again, because {flow.attempts - 1} of {retry.attempts} attempts at "
        f"{flow.position} ended without a result: the worker process died, or its claim was lost"
    )
    if flow.error is not None:
        message += f"; the previous error was: {flow.error}"

    return GiveUp(message)


def error_text(error: BaseException, attempt: int, retry: Retry, position: FlowPosition) -> str:
    """What `flow.error` says of a failed attempt: which, what, and where."""
    what = f"{type(error).__name__}: {error}".removesuffix(": ")
    place = _place_of(error)
    text = f"attempt {attempt} of {retry.attempts} at {position}: {what}"
    return text[:_LONGEST_TEXT] + (f" ({place})" if place else "")


def _place_of(error: BaseException) -> str:
    """File, line and function in which an error was raised, outside of this package if it can be."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith(_PACKAGE)]
    if not own:
        return ""

    frame = own[-1]
    return f"{Path(frame.filename).name}:{frame.lineno} in {frame.name}"


def error_entry(flow: FlowSnapshot[Any], error: BaseException) -> dict[str, Any]:
    """The log entry of a flow that has failed."""
    text = "".join(traceback.format_exception(error))
    return {
        "position": str(flow.position),
        "attempt": attempt_of(flow),
        "type": type(error).__name__,
        "error": flow.error,
        "traceback": text[-_LONGEST_TRACEBACK:],
    }

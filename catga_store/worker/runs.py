"""What a handler is given: a claimed flow in a session, and how the run is to end."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Awaitable
from collections.abc import Callable
from collections.abc import Generator
from datetime import timedelta
from typing import TYPE_CHECKING
from typing import Any
from typing import Generic
from typing import ParamSpec
from typing import TypeVar
from typing import cast
from typing import overload

from attrs import frozen

from catga_store import codec
from catga_store.errors import UsageError
from catga_store.model.flows import FlowSnapshot
from catga_store.model.flows import FlowStatus
from catga_store.model.parts import Part
from catga_store.model.stored_state import set_reports_to
from catga_store.model.times import NOW
from catga_store.model.times import span_ms
from catga_store.model.validators import as_part_name
from catga_store.model.waits import WaitCondition
from catga_store.model.waits import WaitType
from catga_store.protocol.masking import shown
from catga_store.worker.driving import drive
from catga_store.worker.driving import drive_async
from catga_store.worker.recurring import ONCE
from catga_store.worker.recurring import Schedule
from catga_store.worker.recurring import by_cron
from catga_store.worker.recurring import by_interval

if TYPE_CHECKING:
    from catga_store.aio import AsyncSession
    from catga_store.session import Session

__all__ = ["AsyncRun", "BaseRun", "RetryWish", "Run"]

S = TypeVar("S")
R = TypeVar("R")
P = ParamSpec("P")


class RetryRequestedError(Exception):
    """What `flow.error` says after `run.retry()`."""


@frozen
class RetryWish:
    """What a handler has asked for with `run.retry`."""

    after: timedelta | None
    reason: str

    @property
    def error(self) -> RetryRequestedError:
        """The error of the attempt."""
        return RetryRequestedError(self.reason)


class BaseRun(Generic[S]):
    """One run of a handler: everything that does no I/O."""

    flow: FlowSnapshot[S]
    """The claimed flow, which is tracked by the session of the run."""

    def __init__(self, store: Any, flow: FlowSnapshot[S], session: Any) -> None:
        self.flow = flow
        self._store = store
        self._session = session
        self._position = flow.position
        self._is_lost = False
        self._retry: RetryWish | None = None
        self._schedule: Schedule | None = None

    @property
    def attempt(self) -> int:
        """The number of this attempt at the step, starting at 1."""
        return max(self.flow.attempts, 1)

    @property
    def lost(self) -> bool:
        """Whether the run must stop, because another worker may have the flow or this worker has given up the run.

        Whatever the handler does afterwards is not committed. A blocking handler that performs a long step
        should check this property from time to time; an async handler is cancelled.
        """
        return self._is_lost

    def next(self, by: int = 1, *, after: timedelta | None = None) -> None:
        """Go to the next step: advance the position, and make the flow due now or `after` a pause."""
        self.flow.position = self.flow.position.advance(by)
        self.flow.due_at = NOW if after is None else self._store.now() + _span(after)

    def sleep(self, span: timedelta) -> None:
        """Make the flow due again after a pause, at the same position."""
        self.flow.due_at = self._store.now() + _span(span)

    def complete(self, result: object = None) -> None:
        """End the flow as `COMPLETED`.

        If another flow waits for this flow (`reports_to`), the other flow finds `result` in its
        `wait_condition.results`; otherwise, the result is not kept. `result` is JSON data of at most 256 KiB.
        """
        self.flow.status = FlowStatus.COMPLETED
        if result is not None and self.flow.reports_to is not None:
            self._session.complete_child(self.flow.reports_to, self.flow.flow_id, result=result)

    def fail(self, reason: str) -> None:
        """End the flow as `FAILED`, and keep the changes that the handler has made; see also `GiveUp`."""
        self.flow.error = reason
        self.flow.status = FlowStatus.FAILED

    def retry(
        self,
        *,
        after: timedelta | None = None,
        reason: str = "the handler requested another attempt",
    ) -> None:
        """Attempt the step again, keeping the changes that the handler has made.

        The next attempt starts after the pause `after`, or according to the retry policy if you do not pass
        one. This attempt counts. If it was the last attempt, the flow fails as if the handler had raised
        `GiveUp`.
        """
        self._retry = RetryWish(None if after is None else _span(after), reason)

    def every(self, interval: timedelta) -> None:
        """End a round of a recurring flow: the flow is due again at its next planned time.

        Planned times are one interval apart, however late a round starts and however long it takes. If
        planned times were missed, a single round makes up for all of them. The results of `once` are
        discarded, so the next round does everything again.
        """
        self._schedule = by_interval(interval)

    def cron(self, expression: str, timezone: str = "UTC") -> None:
        """End a round of a recurring flow: the flow is due again at the next time of a cron expression.

        In all other respects, this method works like `every`. It requires the `worker` extra.
        """
        self._schedule = by_cron(expression, timezone)

    def suspend(self, wait: WaitCondition) -> None:
        """Make the flow wait for children or events; see `Session.suspend`."""
        self._session.suspend(self.flow, wait)

    def spawn(
        self,
        *children: FlowSnapshot[Any],
        wait_type: WaitType = WaitType.WHEN_ALL,
        timeout: timedelta | None = None,
        correlation_id: str | None = None,
    ) -> WaitCondition:
        """Start other flows, and go to the next step when they have ended or when `timeout` has passed.

        The commit of the run creates the children, which must be new flows, and suspends this flow. Each
        child reports its end (`reports_to`), however it ends. The next step finds the success, result and
        error of each child in `flow.wait_condition.results`. Unless you pass `correlation_id`, the id of the
        condition is made from the flow's id, position and version. Each child also gets the flow's tags,
        except for tags whose keys the child already has.

        One commit can contain up to 190 children; in a store with partitions, they must have the same `{tag}`
        as the flow. If the id of a child is already taken, the commit raises `FlowExistsError`, and the
        attempt fails. Raises `UsageError` if a child reports to a different condition.
        """
        flow = self.flow
        named = correlation_id or _wait_id(flow)
        wait = WaitCondition(
            named,
            flow_ids=tuple(child.flow_id for child in children),
            wait_type=wait_type,
            timeout=timeout,
        )
        for child in children:
            if child.reports_to not in (None, named) or child.revision is not None:
                message = (
                    "spawn: expected a new flow that does not report to another wait "
                    f"condition, got {child!r}"
                )
                raise UsageError(message)

            set_reports_to(child, named)
            child.tags = {**flow.tags, **child.tags}
            self._session.add(child)

        self.next()
        self.suspend(wait)
        return wait

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self.flow!r}{' lost' if self._is_lost else ''}>"


class Run(BaseRun[S]):
    """One run of a handler of a `Worker`.

    When the handler returns, its changes to `flow` and everything else that it has done in `session` are
    committed. By then, the handler must have moved the flow on, either with one of these methods or by
    setting the flow's position, status or due time.
    """

    @property
    def session(self) -> Session:
        """The session that contains the flow; it is committed when the handler returns."""
        session: Session = self._session
        return session

    def once(self, name: str, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Call a function once and keep its result; after a crash, return the stored result instead.

        The result is stored immediately as a part of the flow, which is named after the position and `name`.
        If the run has lost its claim, this write raises `ClaimLostError`. If a worker dies between the call
        and this write, the next attempt calls the function again, so pass an idempotency key to other
        services. The result is `bytes`, JSON data, or an instance of the class that is the function's return
        annotation; an instance of any other class is stored, too, but then every attempt raises `UsageError`
        until the function has the annotation. Costs two round trips, or one if the result is already stored.
        """
        return cast("R", drive(_once(self, name, function, args, kwargs)))


class AsyncRun(BaseRun[S]):
    """One run of a handler of an `AsyncWorker`.

    When the handler returns, its changes to `flow` and everything else that it has done in `session` are
    committed. By then, the handler must have moved the flow on, either with one of these methods or by
    setting the flow's position, status or due time.
    """

    @property
    def session(self) -> AsyncSession:
        """The session that contains the flow; it is committed when the handler returns."""
        session: AsyncSession = self._session
        return session

    @overload
    async def once(
        self,
        name: str,
        function: Callable[P, Awaitable[R]],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> R: ...
    @overload
    async def once(
        self, name: str, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs
    ) -> R: ...
    async def once(
        self, name: str, function: Callable[P, Any], *args: P.args, **kwargs: P.kwargs
    ) -> Any:
        """Call a function once and keep its result; after a crash, return the stored result instead.

        The result is stored immediately as a part of the flow, which is named after the position and `name`.
        If the run has lost its claim, this write raises `ClaimLostError`. If a worker dies between the call
        and this write, the next attempt calls the function again, so pass an idempotency key to other
        services. The result is `bytes`, JSON data, or an instance of the class that is the function's return
        annotation; an instance of any other class is stored, too, but then every attempt raises `UsageError`
        until the function has the annotation. Costs two round trips, or one if the result is already stored.
        """
        return await drive_async(_once(self, name, function, args, kwargs))


def _once(
    run: BaseRun[Any],
    name: str,
    function: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Generator[Any, Any, Any]:
    if not callable(function):
        message = f"once: expected a function to call, got {shown(function)}"
        raise UsageError(message)

    flow, store = run.flow, run._store
    # The position as it began: `run.next()` may come before or after.
    position = ".".join(map(str, run._position.path))
    part_name = as_part_name(f"{ONCE}{position}/{name}")
    body_type = _result_type(function)
    kept = yield store.get_part(flow.flow_id, part_name, body_type)
    if kept is not None:
        _check_type(name, kept, body_type)
        return kept.body

    result = yield function(*args, **kwargs)
    part: Part[Any] = Part(flow.flow_id, part_name, result, body_type=body_type)
    session = store.session()
    try:
        session.guard(flow)
        session.add_part(part)
        yield session.commit(resolve=True)
    finally:
        session.close()

    _check_type(name, part, body_type)
    return result


def _check_type(name: str, part: Part[Any], body_type: Any | None) -> None:
    """Refuse a result that is read back as plain data, now and in later attempts: it is stored already."""
    if body_type is None and part.type_name not in ("", "bytes"):
        message = (
            f"once({name!r}) has stored a result of type {part.type_name}, but can only read it back "
            "as plain data; annotate the function's return type with this type (the stored result "
            "is then used)"
        )
        raise UsageError(message)


def _result_type(function: Callable[..., Any]) -> Any | None:
    """The class that a function is annotated to return, if results of it can be kept as that."""
    called = inspect.unwrap(getattr(function, "func", function))
    try:
        found = typing.get_type_hints(called).get("return")
    except (NameError, TypeError):
        return None

    try:
        return found if codec.is_state_type(codec.class_of(found)) else None
    except (UsageError, TypeError):
        return None


def _wait_id(flow: FlowSnapshot[Any]) -> str:
    """The id of a condition for children of this step, in the partition of the flow."""
    flow_id = flow.flow_id
    tagged = flow_id if "{" in flow_id else f"{{{flow_id}}}"
    return f"{tagged}/{flow.position}/{flow.version}"


def _span(span: timedelta) -> timedelta:
    span_ms(span, "pause")
    return span


Run.__module__ = AsyncRun.__module__ = "catga_store"

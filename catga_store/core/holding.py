"""Keeping a claim while a step runs: extended every third of its lease, in a thread beside the step.

`keep` is the logic, which both APIs run; `Holding` is what a blocking `with` enters.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from types import TracebackType
from typing import Any
from typing import Self

from catga_store.core import claims
from catga_store.core.base_store import Runner
from catga_store.core.context import Context
from catga_store.errors import CatgaStoreError
from catga_store.errors import ClaimLostError
from catga_store.errors import CommitUncertainError
from catga_store.errors import StoreUnavailableError
from catga_store.model.flows import Claim
from catga_store.model.flows import FlowSnapshot
from catga_store.model.times import span_ms
from catga_store.protocol.conversation import Await
from catga_store.protocol.conversation import Conversation

__all__ = ["LONGEST_DOUBT", "PARTS", "BaseHolding", "Doubt", "Holding", "keep"]

_log = logging.getLogger(__name__)

PARTS = 3
"""A lease is extended that often before it would end."""
LONGEST_DOUBT = 0.5
"""For how many seconds a refused extension may be explained by a commit of the owner under way."""


class Doubt:
    """Whether a claim is lost whose extension was refused.

    One refusal does not say that: the owner itself may be about to end the claim, and not know yet that
    it has. A claim that the owner still believes in is lost when it is refused again.
    """

    def __init__(self) -> None:
        self.is_open = False

    def refused(self) -> bool:
        """Note a refusal; whether the claim is lost."""
        is_second, self.is_open = self.is_open, True
        return is_second

    def over(self) -> None:
        """Note that the claim was extended."""
        self.is_open = False


class Rhythm:
    """When a claim is to be extended next; the sleeper of an `Await`."""

    def __init__(self) -> None:
        self.notify: Callable[[], object] | None = None
        self._is_stopped = False
        self._next = 0.0

    def rest(self, seconds: float) -> None:
        """Sleep for this long from now on."""
        self._next = time.monotonic() + seconds

    def beat(self) -> None:
        """Sleep no longer: the clock of the store was moved."""
        self._next = 0.0
        self._poke()

    def stop(self) -> None:
        """End the sleep, and let there be no other."""
        self._is_stopped = True
        self._poke()

    def has_stopped(self) -> bool:
        """Whether it was stopped."""
        return self._is_stopped

    def seconds_left(self) -> float:
        """For how long to sleep."""
        return 0.0 if self._is_stopped else max(self._next - time.monotonic(), 0.0)

    def _poke(self) -> None:
        notify = self.notify
        if notify is not None:
            notify()


class BaseHolding:
    """A claim that is kept while a block runs."""

    def __init__(self, context: Context, flow: FlowSnapshot[Any], lease: timedelta | None) -> None:
        self._context = context
        self._flow = flow
        self._lease = lease
        self._rhythm = Rhythm()
        self._loss: ClaimLostError | None = None

    @property
    def lost(self) -> bool:
        """Whether the claim was lost. If so, another worker may have the flow, and the block can no longer commit."""
        return self._loss is not None

    def _listen(self, *, begin: bool) -> None:
        listeners: set[Any] | None = getattr(self._context.settings.clock, "listeners", None)
        if listeners is not None and begin:
            listeners.add(self._rhythm.beat)
        elif listeners is not None:
            listeners.discard(self._rhythm.beat)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self._flow.key}{' lost' if self.lost else ''}>"


class Holding(BaseHolding):
    """A claim that is kept while a `with` block runs. `Store.holding` returns it."""

    def __init__(
        self, run: Runner, context: Context, flow: FlowSnapshot[Any], lease: timedelta | None
    ) -> None:
        super().__init__(context, flow, lease)
        self._run = run
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        self._run(claims.extend(self._context, self._flow, self._lease))
        name = f"catga-store-holding-{self._flow.flow_id}"
        self._thread = threading.Thread(target=self._keep, name=name, daemon=True)
        self._listen(begin=True)
        self._thread.start()
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self._listen(begin=False)
        self._rhythm.stop()
        if self._thread is not None:
            self._thread.join()

        if error is None and self._loss is not None:
            raise self._loss

    def _keep(self) -> None:
        try:
            self._run(keep(self._context, self._flow, self._lease, self._rhythm))
        except ClaimLostError as error:
            self._loss = error
        except CatgaStoreError as error:
            _log.warning(
                "stopped extending the claim on %s, so the claim ends with its lease: %s",
                self._flow.key,
                error,
            )


def keep(
    context: Context, flow: FlowSnapshot[Any], lease: timedelta | None, rhythm: Rhythm
) -> Conversation[None]:
    """Extend a claim until it ends or `rhythm` is stopped; `ClaimLostError` when it is lost.

    A store that cannot be reached is asked again until it can: the claim stands until another
    worker takes the flow.
    """
    claim, doubt = claims.claim_of(flow), Doubt()
    seconds = (claim.lease_ms if lease is None else span_ms(lease, "lease")) / 1000
    pause = seconds / PARTS

    while True:
        rhythm.rest(pause)
        yield Await(rhythm)
        if rhythm.has_stopped() or not _is_held(flow, claim):
            return

        try:
            yield from claims.extend(context, flow, lease)
        except (StoreUnavailableError, CommitUncertainError) as error:
            _log.warning(
                "the claim on %s could not be extended and will be tried again: %s", flow.key, error
            )
            pause = min(seconds / PARTS / PARTS, 1.0)
        except ClaimLostError:
            if doubt.refused():
                raise

            pause = min(seconds / PARTS, LONGEST_DOUBT)
        else:
            doubt.over()
            pause = seconds / PARTS


def _is_held(flow: FlowSnapshot[Any], claim: Claim) -> bool:
    """Whether the owner has not ended the claim through this object."""
    held = flow._claim
    return held is not None and held.token == claim.token
